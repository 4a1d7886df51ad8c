//! Entering a flow: the place is chosen, claimed, and contended for, then the entry is written.

use super::{Key, Place, TRIES, expire, is_expired, is_kept, recount, timeout, word_at};
use crate::{
    abi::control_flag,
    atomic::Word,
    connection::{Entry, State},
    flow::Flow,
    maps::{Alone, Maps, Step},
    verifier::opaque,
};

/// Times a claim of another CPU is looked at while waiting for it to become an entry or to go.
const PATIENCE: u32 = 8;
/// With this many live entries in the primary bucket a new one goes to the emptier of the two.
const CROWDED: u64 = 6;

/// A flow to be entered, of which [`find`](super::find) has found no live entry. Whole words, without padding.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct New {
    /// Its flow hash.
    pub hash: u64,
    /// Who it is.
    pub flow: Flow,
    /// The jiffy that it is opened in; its lower half is kept.
    pub opened: u64,
}

/// What came of entering a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the table.
    Done,
    /// Another CPU has entered the same flow, with this destination.
    Exists(u32),
    /// A live entry of another flow has the same tag.
    Collision,
    /// Both buckets are full of entries that do not give way.
    Full,
    /// Another CPU is entering a flow of this tag and did not finish in time.
    Race,
}

impl Inserted {
    /// In one register: all that a function of the program that is not inlined can return.
    #[inline(always)]
    const fn pack(self) -> u64 {
        match self {
            Self::Done => 0,
            Self::Exists(destination) => 1 | (destination as u64) << 8,
            Self::Collision => 2,
            Self::Full => 3,
            Self::Race => 4,
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "ids have 20 bits")]
    const fn unpack(packed: u64) -> Self {
        match packed & 0xff {
            0 => Self::Done,
            1 => Self::Exists((packed >> 8) as u32),
            2 => Self::Collision,
            3 => Self::Full,
            _ => Self::Race,
        }
    }
}

/// How dear an entry is, as a place for a new one: the lower, the better.
const FREE: u64 = 0;
const EXPIRED: u64 = 1;
const HALF_OPEN: u64 = 2;
const TAKEN: u64 = 3;

/// What a bucket has to offer, packed: from the top 4 bits the number of entries that have not
/// expired (claimed ones included), a bit that says that it is the partner bucket, and then the score of its best
/// place: rank 2 | order 32 | slot 3.
#[derive(Clone, Copy)]
struct Survey(u64);

/// Of places that are as good as each other, the one that a flow of this tag takes: there it is looked for first. And of
/// half-open entries of one age, the one that goes: were it always the first, in a flood each would displace the one
/// that came just before it.
#[inline(always)]
const fn first_slot(tag: u32) -> u64 {
    tag as u64 & 7
}

const LIVE_SHIFT: u32 = 60;
const PARTNER: u64 = 1 << 59;
const RANK_SHIFT: u32 = 35;
const ORDER_SHIFT: u32 = 3;

impl Survey {
    #[inline(always)]
    const fn live(self) -> u64 {
        self.0 >> LIVE_SHIFT
    }

    #[inline(always)]
    const fn rank(self) -> u64 {
        self.0 >> RANK_SHIFT & 3
    }

    #[inline(always)]
    const fn is_partners(self) -> bool {
        self.0 & PARTNER != 0
    }

    /// The place, for a flow of this tag.
    #[inline(always)]
    const fn slot(self, tag: u32) -> u64 {
        self.0 & 7 ^ first_slot(tag)
    }
}

/// The rank of an entry that has not expired, two bits a state.
const RANKS: u64 = {
    let mut ranks = 0;
    let mut number = 0;
    while number < 16 {
        let rank = match State::from_number(number) {
            State::Empty if number == 0 => FREE,
            state if state.is_half_open() => HALF_OPEN,
            _ => TAKEN,
        };
        ranks |= rank << (2 * number);
        number += 1;
    }
    ranks
};

/// The score of one entry as a place for another one, without its slot.
///
/// Without a branch: up to sixteen entries are scored for a new connection, each branch would be mispredicted
/// half the time, and would double what the verifier has to follow. ([`opaque`] keeps the compiler from making
/// branches of the arithmetic.) Of expired and of half-open entries the oldest comes first.
#[inline(always)]
fn score<M: Maps>(maps: &M, entry: Entry, now: u32) -> u64 {
    let overdue = entry.overdue(now, timeout(maps, entry));
    let expired = opaque(overdue.0 as usize) as u64 >> 63;
    let alive = RANKS >> (2 * entry.state_number()) & 3;
    let rank = alive ^ (alive ^ EXPIRED) & expired.wrapping_neg();
    (rank << RANK_SHIFT).wrapping_add((0xffff_ffff - u64::from(overdue.1)) << ORDER_SHIFT)
}

/// What a bucket has to offer for a flow of this tag.
#[inline(always)]
fn offer<M: Maps>(maps: &M, bucket: u32, tag: u32, now: u32) -> Survey {
    let Some(bucket) = maps.bucket(bucket) else {
        return Survey(TAKEN << RANK_SHIFT);
    };
    let mut best = TAKEN << RANK_SHIFT | u64::from(u32::MAX) << ORDER_SHIFT;
    let mut live = 0;
    let mut slot = 0;
    while slot < 8 {
        let score = score(maps, Entry(bucket.0[slot].load()), now);
        let score = score | slot as u64 ^ first_slot(tag);
        // Half open and taken, 2 and 3, are the live ones.
        live += score >> (RANK_SHIFT + 1) & 1;
        let difference = score.wrapping_sub(best);
        // All ones where it is less.
        let is_better = opaque(difference as usize) as i64 >> 63;
        best = best.wrapping_add(difference & is_better as u64);
        slot += 1;
    }
    Survey(live << LIVE_SHIFT | best)
}

/// The best place for a flow of this tag in a pair of buckets, as `Survey` reads it.
#[inline(always)]
pub fn survey<M: Maps>(maps: &M, primary: u32, partner: u32, tag: u32, now: u32) -> u64 {
    let first = offer(maps, primary, tag, now);
    if first.live() < CROWDED && first.rank() < HALF_OPEN {
        return first.0;
    }
    let second = offer(maps, partner, tag, now);
    // The emptier one; and no entry is displaced while the other bucket has room.
    let is_better = if second.rank() < HALF_OPEN {
        second.live() < first.live() || first.rank() >= HALF_OPEN
    } else {
        second.rank() < first.rank()
    };
    if is_better { second.0 | PARTNER } else { first.0 }
}

/// Enters a flow with the destination, state and time that `entry` has; its tag is the flow's. `control` is
/// the template that controls it, as its cold row names it, or 0.
///
/// The place taken is a free one, else that of an expired entry, else that of the oldest half-open
/// one; the counts of what was displaced are settled.
#[inline(always)]
pub fn insert<M: Maps>(maps: &M, new: &New, entry: Entry, control: u64) -> Inserted {
    let place = maps.claim(new, entry.destination());
    if place & FAILED != 0 {
        return Inserted::unpack(place & !FAILED);
    }
    Inserted::unpack(maps.settle(new, entry.0, control, place))
}

/// Where [`claim`] has no place to say but an [`Inserted`].
const FAILED: u64 = 1 << 63;

/// The first half of [`insert`]: the place that is claimed, or why there is none.
#[inline(always)]
pub fn claim<M: Maps>(maps: &M, new: &New, destination: u32) -> u64 {
    let key = Key::new(new.hash, maps.control().bucket_mask.load());
    let now = maps.now();
    let claim = Entry::new(key.tag, destination, State::Claimed, now, 0);
    // Where it will be looked for first there is often room; then nothing has to be weighed.
    #[expect(clippy::cast_possible_truncation, reason = "below 8")]
    let best = key.primary * 8 + first_slot(key.tag) as u32;
    if let Some(word) = word_at(maps, best)
        && word.load() == Entry::EMPTY.0
        && word.swap(Entry::EMPTY.0, claim.0)
    {
        return u64::from(best);
    }
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let chosen = Survey(maps.survey(key.primary, key.partner(), key.tag, now));
        let bucket = if chosen.is_partners() {
            key.partner()
        } else {
            key.primary
        };
        if chosen.rank() == TAKEN {
            return FAILED | Inserted::Full.pack();
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 8")]
        let index = bucket * 8 + chosen.slot(key.tag) as u32;
        let (Some(word), Some(cold)) = (word_at(maps, index), maps.cold(index)) else {
            return FAILED | Inserted::Full.pack();
        };
        let place = Place { word, index };
        let victim = Entry(place.word.load());
        // Before the place can be another's. A line of memory that is nowhere near, so only where it says something.
        let control = if has_templates(maps) {
            cold.control.load()
        } else {
            0
        };
        // It may have changed since it was chosen: an established connection must not be the victim. And
        // a template whose time is over may live on for the connections that it controls.
        if score(maps, victim, now) >> RANK_SHIFT != chosen.rank()
            || chosen.rank() < HALF_OPEN && is_kept(maps, place, victim, now)
            || !place.word.swap(victim.0, claim.0)
        {
            continue;
        }
        maps.depart(victim.0, control);
        return u64::from(index);
    }
    FAILED | Inserted::Race.pack()
}

/// The second half of [`insert`]: the entry is written at the place that was claimed, unless somebody else has
/// entered the flow, or one of the same tag.
#[inline(always)]
pub fn settle<M: Maps>(maps: &M, new: &New, entry: u64, control: u64, place: u64) -> u64 {
    let key = Key::new(new.hash, maps.control().bucket_mask.load());
    let entry = Entry(entry).with_tag(key.tag);
    #[expect(clippy::cast_possible_truncation, reason = "a place has 32 bits")]
    let index = place as u32;
    let (Some(word), Some(cold)) = (word_at(maps, index), maps.cold(index)) else {
        return Inserted::Full.pack();
    };
    if maps.sharing(key.primary, key.partner(), key.tag) > 1 {
        let outcome = contend(maps, key, &new.flow, index);
        if !matches!(outcome, Inserted::Done) {
            word.store(Entry::EMPTY.0);
            return outcome.pack();
        }
    }
    // Counted before it can be seen, so that whoever ends it finds it counted; and before the row is written, which is
    // far away, and which a locked operation would wait for.
    recount(
        maps,
        entry.destination(),
        State::Empty as u32,
        entry.state() as u32,
    );
    new.flow.write(cold, new.opened);
    // Both are 0 in every row until there are templates.
    if has_templates(maps) {
        cold.control.store(control);
        let before = cold.controlled.load() & !0xffff_ffff;
        cold.controlled.store(if new.flow.is_template() {
            next_mark(before)
        } else {
            before
        });
    }
    word.store(entry.0);
    Inserted::Done.pack()
}

/// What tells a template from another one that had its place before, in the upper half of a word: their number,
/// never 0.
#[inline(always)]
const fn next_mark(before: u64) -> u64 {
    const ONE: u64 = 1 << 32;
    let next = before.wrapping_add(ONE);
    if next == 0 { ONE } else { next }
}

/// Whether any entry may be a template, or controlled by one.
#[inline(always)]
fn has_templates<M: Maps>(maps: &M) -> bool {
    maps.control().flags.load() & control_flag::TEMPLATES != 0
}

/// How many words of two buckets have this tag.
#[inline(always)]
pub fn sharing<M: Maps>(maps: &M, primary: u32, partner: u32, tag: u32) -> u64 {
    let mut others = 0;
    for index in [primary, partner] {
        let Some(bucket) = maps.bucket(index) else {
            return 0;
        };
        let mut slot = 0;
        while slot < 8 {
            let difference = u64::from(Entry(bucket.0[slot].load()).tag() ^ tag);
            // All ones where they differ. One after the other: all at once they would not fit the registers.
            others += opaque(difference.wrapping_neg() as usize) as u64 >> 63;
            slot += 1;
        }
    }
    16 - others
}

/// After claiming a place: who else has an entry or a claim of this tag in the pair of buckets, and may
/// keep it? [`Inserted::Done`] where nobody may; else the claim is to be given up.
#[inline(always)]
fn contend<M: Maps>(maps: &M, key: Key, flow: &Flow, own: u32) -> Inserted {
    let mut contest = Contest {
        key,
        own: Alone(own),
        rival: Contest::NOBODY,
    };
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        contest.rival = Contest::NOBODY;
        maps.repeat(16, &mut contest);
        if contest.rival == Contest::NOBODY {
            return Inserted::Done;
        }
        let rival = u32::try_from(contest.rival)
            .ok()
            .and_then(|at| word_at(maps, at).map(|word| Place { word, index: at }));
        let Some(place) = rival else {
            return Inserted::Race;
        };
        let entry = Entry(place.word.load());
        let now = maps.now();
        if entry.is_live() && is_expired(maps, entry, now) && expire(maps, place, entry, now) {
            continue;
        }
        let is_same = maps.cold(place.index).is_some_and(|row| flow.is(row));
        // Looked at once more: the row is that of the entry only while the entry is there.
        let after = Entry(place.word.load());
        return match (after.tag() == key.tag && after.is_live(), is_same) {
            (true, true) => Inserted::Exists(after.destination()),
            (true, false) => Inserted::Collision,
            (false, _) => Inserted::Race,
        };
    }
    Inserted::Race
}

struct Contest {
    key: Key,
    /// The place that was claimed.
    own: Alone,
    /// The place of the entry that stays, or one of the two below.
    rival: u64,
}

impl Contest {
    const NOBODY: u64 = u64::MAX;
    const CLAIM: u64 = u64::MAX - 1;
}

impl<M: Maps> Step<M> for Contest {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let Self { key, own, .. } = *self;
        let at = if index < 8 {
            key.primary * 8 + index
        } else {
            key.partner() * 8 + index - 8
        };
        let Some(word) = word_at(maps, at) else {
            return true;
        };
        let seen = Entry(word.load());
        if seen.tag() != key.tag || at == own.0 {
            return true;
        }
        // Two claims: the one in the lower place goes on, but waits for what becomes of the other, which
        // may have looked before this claim was made. The one in the higher place is given up.
        if !seen.is_live() && own.0 > at {
            self.rival = Self::CLAIM;
            return false;
        }
        let settled = wait_for(word, key.tag);
        if settled.tag() != key.tag {
            return true;
        }
        self.rival = if settled.is_live() {
            u64::from(at)
        } else {
            Self::CLAIM
        };
        false
    }
}

/// A word once it is no claim of this tag any more, or, after a while, as it is then.
#[inline(always)]
fn wait_for(word: &Word, tag: u32) -> Entry {
    let mut seen = Entry(word.load());
    let mut looks = 0;
    while looks < PATIENCE && !seen.is_live() && seen.tag() == tag {
        seen = Entry(word.load());
        looks += 1;
    }
    seen
}
