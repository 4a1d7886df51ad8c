//! The connection table: find, insert, change and expire entries, without a lock.
//!
//! A flow's hash gives a primary bucket, a partner bucket and a tag. The partner is the primary
//! XORed with a number made of the tag alone, so all flows of one tag that can meet share one *pair*
//! of buckets, and no two live entries of a pair have the same tag. That is what makes a tag enough
//! to tell the flows of established connections apart with one cache line read.
//!
//! - Every write of an entry's word is a compare-and-swap; who wins it applies the change of the
//!   destination's counts, and nobody else does.
//! - A new entry is claimed, then its cold row is written, then its word. A claim carries its tag,
//!   and after claiming the pair is looked at again: of two CPUs that enter one flow, at least one
//!   sees the other. The one in the lower place goes on, the other gives way and its packet is
//!   dropped, to be sent again.
//! - An entry past its time-out is no entry: find does not return it, insert takes its place.

use crate::{
    abi::{Bucket, ColdRow},
    atomic::Word,
    connection::{Count, Entry, State},
    maps::{Alone, Maps, Step},
    packet::{Address, IpProto, Packet, TcpFlag, TcpFlags},
};

/// Tries of a compare-and-swap before giving up: each failure means that another CPU succeeded.
const TRIES: u32 = 4;
/// Times a claim of another CPU is looked at while waiting for it to become an entry or to go.
const PATIENCE: u32 = 8;
/// With this many live entries in the primary bucket a new one goes to the emptier of the two.
const CROWDED: u64 = 7;

/// Where in the table a flow may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(8))] // Copied in whole words, which must be aligned on the program's stack.
pub struct Key {
    tag: u32,
    primary: u32,
    partner: u32,
}

impl Key {
    /// The key of a flow hash, in a table of `mask` + 1 buckets (a power of two, at least 2).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked, or the upper 23 bits")]
    pub const fn new(hash: u64, mask: u64) -> Self {
        // Never 0, so that a free word has no flow's tag.
        let tag = if hash >> 41 == 0 { 1 } else { (hash >> 41) as u32 };
        let primary = (hash & mask) as u32;
        // Odd times odd is odd: the partner is never the primary.
        let offset = (tag | 1).wrapping_mul(0x9E37_79B1) & mask as u32 | 1;
        Self {
            tag,
            primary,
            partner: primary ^ offset,
        }
    }
}

/// Who a flow is: what the cold row keeps of a packet. Whole words, without padding.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The client's address.
    pub client: Address,
    /// The virtual address.
    pub address: Address,
    /// Bits 0..16 client port, 16..32 virtual port, 32..40 protocol.
    ports: u64,
    /// The service's id.
    pub service: u64,
}

impl Flow {
    /// The flow of a packet for a service.
    #[inline(always)]
    pub const fn new(packet: &Packet, service: u32) -> Self {
        Self {
            client: packet.source,
            address: packet.destination,
            ports: packet.source_port as u64
                | (packet.destination_port as u64) << 16
                | (packet.protocol.0 as u64) << 32,
            service: service as u64,
        }
    }

    /// The client's port.
    pub const fn client_port(&self) -> u16 {
        (self.ports & 0xffff) as u16
    }

    /// The virtual port.
    pub const fn port(&self) -> u16 {
        (self.ports >> 16 & 0xffff) as u16
    }

    /// The protocol.
    pub const fn protocol(&self) -> IpProto {
        IpProto((self.ports >> 32 & 0xff) as u8)
    }

    /// Reads a cold row. Meaningful only where the entry's word is the same before and after.
    #[inline(always)]
    pub fn read(row: &ColdRow) -> Self {
        Self {
            client: Address::from_halves(row.client[0].load(), row.client[1].load()),
            address: Address::from_halves(row.address[0].load(), row.address[1].load()),
            ports: row.ports.load(),
            service: row.service.load() & 0xffff_ffff,
        }
    }

    #[inline(always)]
    fn write(&self, row: &ColdRow) {
        row.client[0].store(self.client.high());
        row.client[1].store(self.client.low());
        row.address[0].store(self.address.high());
        row.address[1].store(self.address.low());
        row.ports.store(self.ports);
        row.service.store(self.service);
    }

    #[inline(always)]
    fn is(&self, row: &ColdRow) -> bool {
        row.ports.load() == self.ports
            && row.client[1].load() == self.client.low()
            && row.address[1].load() == self.address.low()
            && row.client[0].load() == self.client.high()
            && row.address[0].load() == self.address.high()
    }
}

/// The place of one entry.
#[derive(Debug)]
pub struct Place<'m> {
    /// Its word.
    pub word: &'m Word,
    /// Bucket * 8 + slot: the index of its cold row.
    pub index: u32,
}

impl Clone for Place<'_> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Place<'_> {}

/// The time-out of an entry's state, in seconds.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "time-outs are at most 2,678,400 s"
)]
fn timeout<M: Maps>(maps: &M, state_number: u64) -> u32 {
    // The compiler knows that states end at 9 and leaves the mask out; the verifier does not know.
    let state_number = core::hint::black_box(state_number);
    maps.control().timeouts[(state_number & 0xf) as usize].load() as u32
}

/// Whether an entry is past its time-out.
#[inline(always)]
pub fn is_expired<M: Maps>(maps: &M, entry: Entry, now: u32) -> bool {
    entry.is_expired(now, timeout(maps, entry.state_number()))
}

/// What a count of one more entry in this state adds to its destination's counts.
#[inline(always)]
const fn count_of(state: State) -> u64 {
    match state.count() {
        Count::Active => 1,
        Count::Inactive => 1 << 32,
        Count::Nothing | Count::Template => 0,
    }
}

/// Changes a destination's counts: one entry fewer in state `from`, one more in state `to`.
#[inline(always)]
fn recount<M: Maps>(maps: &M, destination: u32, from: State, to: State) {
    let Some(counts) = maps.counts(destination) else {
        return;
    };
    let delta = count_of(to).wrapping_sub(count_of(from));
    if delta != 0 {
        counts.connections.add(delta);
    }
    let templates = u64::from(matches!(to.count(), Count::Template))
        .wrapping_sub(u64::from(matches!(from.count(), Count::Template)));
    if templates != 0 {
        counts.templates.add(templates);
    }
}

/// The live entry of a flow's tag, if there is one; expired ones are returned too.
#[inline(always)]
pub fn find<'m, M: Maps>(maps: &'m M, key: Key) -> Option<(Place<'m>, Entry)> {
    match scan(maps, maps.bucket(key.primary)?, key.primary, key.tag) {
        Some(found) => Some(found),
        None => scan(maps, maps.bucket(key.partner)?, key.partner, key.tag),
    }
}

#[inline(always)]
fn scan<'m, M: Maps>(maps: &M, bucket: &'m Bucket, index: u32, tag: u32) -> Option<(Place<'m>, Entry)> {
    let mut found = Entry::EMPTY;
    let mut slot = 0;
    while slot < 8 {
        let entry = Entry(bucket.0[slot].load());
        if entry.tag() == tag && entry.is_live() {
            found = entry;
            break;
        }
        slot += 1;
    }
    if found.0 == 0 {
        return None;
    }
    // One path for all slots from here on.
    let slot = maps.control().forget(slot as u64) & 7;
    let index = index * 8 + slot as u32;
    Some((
        Place {
            word: &bucket.0[slot as usize],
            index,
        },
        found,
    ))
}

/// Whether a packet can change nothing but the time of an entry in this state: then a tag is identity
/// enough. SYN, FIN, RST and every change of state go to [`change`], which looks at the cold row.
#[inline(always)]
pub const fn is_plain(state: State, flag: TcpFlag) -> bool {
    !matches!(flag, TcpFlag::Syn | TcpFlag::Fin | TcpFlag::Rst) && state.next(flag) as u64 == state as u64
}

/// Notes that a packet was seen that [`is_plain`] in the entry's state. Within the same second of the
/// clock this writes nothing.
#[inline(always)]
pub fn refresh<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, now: u32) {
    let fresh = entry.seen(entry.state(), now, timeout(maps, entry.state_number()));
    if fresh.0 != entry.0 {
        // Where this fails another CPU has done it, or has changed the state, which did it too.
        let _ = place.word.swap(entry.0, fresh.0);
    }
}

/// What became of an entry that a telling packet was seen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Changed {
    /// It is this flow's, and in its next state now.
    Kept,
    /// It is another flow's of the same tag, or gone.
    Foreign,
    /// It was this flow's, and over; the client starts anew, and the entry was taken out.
    Over,
}

/// Moves the entry at a place on to the state that follows a packet.
#[inline(always)]
pub fn change<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, flow: &Flow, flags: TcpFlags) -> Changed {
    match maps.change(place.index, entry.tag(), flow, u32::from(flags.0)) {
        0 => Changed::Kept,
        2 => Changed::Over,
        _ => Changed::Foreign,
    }
}

/// The longer part of [`change`]; says what became of the entry as a number.
#[inline(always)]
pub fn change_state<M: Maps>(maps: &M, index: u32, tag: u32, flow: &Flow, flags: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "it was an octet")]
    let flags = TcpFlags(flags as u8);
    try_change(maps, index, tag, flow, flags) as u32
}

#[inline(always)]
fn try_change<M: Maps>(maps: &M, index: u32, tag: u32, flow: &Flow, flags: TcpFlags) -> Changed {
    let Some(word) = word_at(maps, index) else {
        return Changed::Foreign;
    };
    match maps.cold(index) {
        Some(row) if flow.is(row) => {}
        _ => return Changed::Foreign,
    }
    let now = maps.now();
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let entry = Entry(word.load());
        if entry.tag() != tag || !entry.is_live() {
            return Changed::Foreign;
        }
        let state = entry.state();
        // A SYN opens one whatever comes with it, as in `is_new_conn`: the state machine would see an RST first.
        if flags.opens() && state.is_over() {
            if remove(maps, word, entry) {
                return Changed::Over;
            }
            continue;
        }
        let next = state.next(flags.telling());
        let fresh = entry.seen(next, now, timeout(maps, next as u64));
        if fresh.0 == entry.0 {
            break;
        }
        if word.swap(entry.0, fresh.0) {
            recount(maps, entry.destination(), state, next);
            break;
        }
    }
    // After this many tries others have changed it again and again: it is there, and fresh.
    Changed::Kept
}

/// The word of the entry at an index: bucket * 8 + slot.
#[inline(always)]
fn word_at<M: Maps>(maps: &M, index: u32) -> Option<&Word> {
    let bucket = maps.bucket(index / 8)?;
    // Known to nobody, so that the mask stays, which shows the verifier that it is a slot.
    Some(&bucket.0[core::hint::black_box(index as usize) & 7])
}

/// Whether an entry is this flow's, by the cold row.
#[inline(always)]
pub fn is_flow<M: Maps>(maps: &M, place: Place<'_>, flow: &Flow) -> bool {
    maps.cold(place.index).is_some_and(|row| flow.is(row))
}

/// Takes an entry out and settles its destination's counts; false where its word has changed meanwhile.
#[inline(always)]
pub fn remove<M: Maps>(maps: &M, word: &Word, entry: Entry) -> bool {
    let removed = word.swap(entry.0, Entry::EMPTY.0);
    if removed {
        recount(maps, entry.destination(), entry.state(), State::Empty);
    }
    removed
}

/// Brings an entry to a state and time that another table has for the same flow; false where its word
/// has changed meanwhile.
#[cfg(not(target_arch = "bpf"))]
pub fn overwrite<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, state: State, seen: u32) -> bool {
    let swapped = place
        .word
        .swap(entry.0, entry.seen(state, seen, timeout(maps, state as u64)).0);
    if swapped {
        recount(maps, entry.destination(), entry.state(), state);
    }
    swapped
}

/// A flow to be entered, of which [`find`] has found no live entry. Whole words, without padding.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct New {
    /// Its flow hash.
    pub hash: u64,
    /// Who it is.
    pub flow: Flow,
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
/// expired (claimed ones included), and then the score of its best place: rank 2 | order 32 | slot 3.
#[derive(Clone, Copy)]
struct Survey(u64);

const LIVE_SHIFT: u32 = 60;
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
    const fn slot(self) -> u64 {
        self.0 & 7
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

/// The score of one entry as a place for a flow of this tag, without its slot.
///
/// Without a branch: sixteen entries are scored for a new connection, each branch would be mispredicted
/// half the time, and would double what the verifier has to follow. ([`crate::abi::Control::forget`] keeps the
/// compiler from making branches of the arithmetic.) Of expired and of half-open entries the oldest
/// comes first; an expired one of the same tag has to be the one that goes.
#[inline(always)]
fn score<M: Maps>(maps: &M, entry: Entry, tag: u32, now: u32) -> u64 {
    let control = maps.control();
    let state = entry.state_number();
    let age = u64::from(entry.age(now));
    let expired = control.forget(u64::from(timeout(maps, state)).wrapping_sub(age)) >> 63;
    let alive = RANKS >> (2 * state) & 3;
    let rank = alive ^ (alive ^ EXPIRED) & expired.wrapping_neg();
    let other = control.forget(u64::from(entry.tag() ^ tag).wrapping_neg()) >> 63;
    let order = 0xffff_ffff ^ age;
    // All ones, but for an expired entry of the same tag, which scores 0.
    let mask = (expired & (other ^ 1)).wrapping_sub(1);
    (rank << RANK_SHIFT | order << ORDER_SHIFT) & mask
}

/// What a bucket has to offer for a flow of this tag, as [`Survey`] reads it.
#[inline(always)]
pub fn survey<M: Maps>(maps: &M, bucket: u32, tag: u32, now: u32) -> u64 {
    let control = maps.control();
    let Some(bucket) = maps.bucket(bucket) else {
        return TAKEN << RANK_SHIFT;
    };
    let mut best = TAKEN << RANK_SHIFT | u64::from(u32::MAX) << ORDER_SHIFT;
    let mut live = 0;
    let mut slot = 0;
    while slot < 8 {
        let score = score(maps, Entry(bucket.0[slot].load()), tag, now) | slot as u64;
        // Half open and taken, 2 and 3, are the live ones.
        live += score >> (RANK_SHIFT + 1) & 1;
        let difference = score.wrapping_sub(best);
        let is_better = control.forget(difference) >> 63;
        best = best.wrapping_add(difference & is_better.wrapping_neg());
        slot += 1;
    }
    live << LIVE_SHIFT | best
}

/// Enters a flow, last seen at second `seen` of the director's clock (now, but for one that is moved here
/// from another table).
///
/// The place taken is a free one, else that of an expired entry, else that of the oldest half-open
/// one; the counts of what was displaced are settled.
#[inline(always)]
pub fn insert<M: Maps>(maps: &M, new: &New, destination: u32, state: State, seen: u32) -> Inserted {
    Inserted::unpack(maps.enter(new, u64::from(destination) | (state as u64) << 32, seen))
}

/// [`insert`] with what fits into registers: `what` is the destination's id in its lower half and the
/// state's number in its upper one; the outcome is packed.
#[inline(always)]
pub fn enter<M: Maps>(maps: &M, new: &New, what: u64, seen: u32) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the destination"
    )]
    try_enter(maps, new, what as u32, State::from_number(what >> 32), seen).pack()
}

#[inline(always)]
fn try_enter<M: Maps>(maps: &M, new: &New, destination: u32, state: State, seen: u32) -> Inserted {
    let New { hash, flow } = new;
    let key = Key::new(*hash, maps.control().bucket_mask.load());
    let now = maps.now();
    let claim = Entry::new(key.tag, destination, State::Claimed, now, 0);
    let entry = Entry::new(key.tag, destination, state, seen, timeout(maps, state as u64));
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let first = Survey(maps.survey(key.primary, key.tag, now));
        let mut chosen = first;
        let mut bucket = key.primary;
        if first.live() >= CROWDED || first.rank() >= HALF_OPEN {
            let second = Survey(maps.survey(key.partner, key.tag, now));
            // The emptier one; and no entry is displaced while the other bucket has room.
            let better = if second.rank() < HALF_OPEN {
                second.live() < first.live() || first.rank() >= HALF_OPEN
            } else {
                second.rank() < first.rank()
            };
            if better {
                chosen = second;
                bucket = key.partner;
            }
        }
        if chosen.rank() == TAKEN {
            return Inserted::Full;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 8")]
        let index = bucket * 8 + chosen.slot() as u32;
        let Some(word) = word_at(maps, index) else {
            return Inserted::Full;
        };
        let place = Place { word, index };
        let victim = Entry(place.word.load());
        // It may have changed since it was chosen: an established connection must not be the victim.
        if score(maps, victim, key.tag, now) >> RANK_SHIFT != chosen.rank()
            || !place.word.swap(victim.0, claim.0)
        {
            continue;
        }
        recount(maps, victim.destination(), victim.state(), State::Empty);
        if maps.sharing(key.primary, key.tag) + maps.sharing(key.partner, key.tag) > 1 {
            let outcome = Inserted::unpack(contend(maps, &key, flow, place.index));
            if !matches!(outcome, Inserted::Done) {
                return outcome;
            }
        }
        if let Some(row) = maps.cold(place.index) {
            flow.write(row);
        }
        // Counted before it can be seen, so that whoever ends it finds it counted.
        recount(maps, destination, State::Empty, state);
        place.word.store(entry.0);
        return Inserted::Done;
    }
    Inserted::Race
}

/// How many words of a bucket have this tag.
#[inline(always)]
pub fn sharing<M: Maps>(maps: &M, bucket: u32, tag: u32) -> u64 {
    let Some(bucket) = maps.bucket(bucket) else {
        return 0;
    };
    let mut others = 0;
    let mut slot = 0;
    while slot < 8 {
        let difference = u64::from(Entry(bucket.0[slot].load()).tag() ^ tag);
        others += maps.control().forget(difference.wrapping_neg()) >> 63;
        slot += 1;
    }
    8 - others
}

/// After claiming a place: who else has an entry or a claim of this tag in the pair of buckets, and may
/// keep it? [`Inserted::Done`] where nobody may; else the claim has been given up.
#[inline(never)]
fn contend<M: Maps>(maps: &M, key: &Key, flow: &Flow, own: u32) -> u64 {
    let mut contest = Contest {
        key: *key,
        own: Alone(own),
        rival: Contest::NOBODY,
    };
    maps.repeat(16, &mut contest);
    if contest.rival == Contest::NOBODY {
        return Inserted::Done.pack();
    }
    if let Some(word) = word_at(maps, own) {
        word.store(Entry::EMPTY.0);
    }
    let Some(rival) = u32::try_from(contest.rival)
        .ok()
        .and_then(|at| word_at(maps, at).map(|word| (at, word)))
    else {
        return Inserted::Race.pack();
    };
    let entry = Entry(rival.1.load());
    match maps.cold(rival.0) {
        Some(row) if flow.is(row) && entry.tag() == key.tag => Inserted::Exists(entry.destination()).pack(),
        _ => Inserted::Collision.pack(),
    }
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
            key.partner * 8 + index - 8
        };
        let Some(word) = word_at(maps, at) else {
            return true;
        };
        let seen = Entry(word.load());
        if seen.tag() != key.tag || at == own.0 {
            return true;
        }
        if seen.is_live() && is_expired(maps, seen, maps.now()) {
            let _ = remove(maps, word, seen);
            return true;
        }
        // Two claims: the one in the lower place goes on, but waits for what becomes of the other, which
        // may have looked before this claim was made. The one in the higher place is given up.
        if !seen.is_live() && own.0 > at {
            self.rival = Self::CLAIM;
            return false;
        }
        let settled = settle(word, key.tag);
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
fn settle(word: &Word, tag: u32) -> Entry {
    let mut seen = Entry(word.load());
    let mut looks = 0;
    while looks < PATIENCE && !seen.is_live() && seen.tag() == tag {
        seen = Entry(word.load());
        looks += 1;
    }
    seen
}

#[cfg(test)]
mod tests;
