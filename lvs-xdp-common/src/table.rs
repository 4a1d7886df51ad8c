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

mod insert;
mod template;

use crate::{
    abi::{Bucket, Counters, Counts, Options, destination_flag},
    atomic::Word,
    connection::{Count, Entry, State},
    flow::Flow,
    maps::Maps,
    packet::IpProto,
    signal::{Event, Signal},
    verifier::opaque,
};

#[cfg(not(target_arch = "bpf"))]
pub use self::template::controlling;
pub use self::{
    insert::{Inserted, New, claim, insert, settle, sharing, survey},
    template::{Followed, follow, hold, is_kept, look_for, release},
};

/// Tries of a compare-and-swap before giving up: each failure means that another CPU succeeded.
const TRIES: u32 = 4;

/// Where in the table a flow may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(8))] // Copied in whole words, which must be aligned on the program's stack.
pub struct Key {
    tag: u32,
    primary: u32,
    mask: u32,
}

impl Key {
    /// The key of a flow hash, in a table of `mask` + 1 buckets (a power of two, at least 2).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked, or the upper 23 bits")]
    pub const fn new(hash: u64, mask: u64) -> Self {
        // Never 0, so that a free word has no flow's tag.
        let tag = if hash >> 41 == 0 { 1 } else { (hash >> 41) as u32 };
        let primary = (hash & mask) as u32;
        Self {
            tag,
            primary,
            mask: mask as u32,
        }
    }

    /// The partner of the primary bucket. Computed where it is wanted, which for most packets is nowhere.
    #[inline(always)]
    fn partner(self) -> u32 {
        // Odd times odd is odd: the partner is never the primary.
        let tag = opaque(self.tag as usize) as u32;
        let offset = (tag | 1).wrapping_mul(0x9E37_79B1) & self.mask | 1;
        self.primary ^ offset
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

/// The time-out of an entry, in seconds.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "time-outs are at most 2,678,400 s"
)]
pub fn timeout<M: Maps>(maps: &M, entry: Entry) -> u32 {
    // The compiler knows how many there are and leaves the mask out; the verifier does not know.
    let index = opaque(entry.timeout_index() as usize);
    maps.control().timeouts[index & 0x1f].load() as u32
}

/// The time-out of a connection's state, in seconds.
#[inline(always)]
pub fn timeout_of<M: Maps>(maps: &M, state: State) -> u32 {
    timeout(maps, Entry::EMPTY.with_state(state))
}

/// Whether an entry is past its time-out.
#[inline(always)]
pub fn is_expired<M: Maps>(maps: &M, entry: Entry, now: u32) -> bool {
    entry.is_expired(now, timeout(maps, entry))
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

/// Changes a destination's counts: one entry fewer in state `from`, one more in state `to`, as numbers.
/// Where that takes the destination to its upper threshold, or below its lower one, it is, or is no
/// longer, overloaded (`ip_vs_bind_dest`, `ip_vs_unbind_dest`).
#[inline(always)]
pub fn recount<M: Maps>(maps: &M, destination: u32, from: u32, to: u32) {
    let (from, to) = (
        State::from_number(u64::from(from)),
        State::from_number(u64::from(to)),
    );
    let Some(counts) = maps.counts(destination) else {
        return;
    };
    let delta = count_of(to).wrapping_sub(count_of(from));
    if delta != 0 {
        let connections = counts.connections.add(delta);
        let limits = counts.limits.load();
        if limits != 0 {
            if count_of(from) == 0 {
                judge_more(counts, connections, limits);
            } else if count_of(to) == 0 {
                judge_fewer(counts, connections, limits);
            }
        }
    }
    let templates = u64::from(matches!(to.count(), Count::Template))
        .wrapping_sub(u64::from(matches!(from.count(), Count::Template)));
    if templates != 0 {
        counts.templates.add(templates);
    }
}

/// After one connection more. What is said is looked at again once it is said: of two CPUs of which one
/// counts up and one counts down, the one that speaks last has seen what the other has counted.
#[inline(always)]
fn judge_more(counts: &Counts, connections: u64, limits: u64) {
    if Counts::total(connections) >= limits >> 32 {
        counts.overload.store(1);
        if Counts::total(counts.connections.add(0)) < limits & 0xffff_ffff {
            counts.overload.store(0);
        }
    }
}

/// After one connection fewer.
#[inline(always)]
fn judge_fewer(counts: &Counts, connections: u64, limits: u64) {
    if Counts::total(connections) < limits & 0xffff_ffff && counts.overload.load() != 0 {
        counts.overload.store(0);
        if Counts::total(counts.connections.add(0)) >= limits >> 32 {
            counts.overload.store(1);
        }
    }
}

/// Reads what will be wanted of a flow that is probably new, and uses nothing of it: the processor goes on meanwhile, and
/// what would be fetched from memory one after the other is fetched at once. The program has no other way to say that.
#[inline(always)]
pub fn fetch<M: Maps>(maps: &M, key: Key) {
    if let Some(bucket) = maps.bucket(key.partner()) {
        bucket.0[0].load();
    }
    // Of the rows of the primary bucket, which lie side by side, the one that will probably be written.
    if let Some(row) = maps.cold(key.primary * 8 + (key.tag & 7)) {
        row.ports.load();
    }
}

/// The live entry of a flow's tag, if there is one; expired ones are returned too.
#[inline(always)]
pub fn find<'m, M: Maps>(maps: &'m M, key: Key) -> Option<(Place<'m>, Entry)> {
    let bucket = maps.bucket(key.primary)?;
    // Most are where they are best: one comparison that seldom fails, in place of some of which nobody can say
    // which one succeeds.
    let slot = opaque(key.tag as usize) & 7;
    let word = &bucket.0[slot];
    let entry = Entry(word.load());
    if entry.tag() == key.tag && entry.is_live() {
        let index = key.primary * 8 + slot as u32;
        return Some((Place { word, index }, entry));
    }
    match scan(maps, bucket, key.primary, key.tag) {
        Some(found) => Some(found),
        None => scan(maps, maps.bucket(key.partner())?, key.partner(), key.tag),
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
/// enough, unless it is a template's, whose time says something else. What opens or closes, and every change of state, goes to [`change`], which looks at the cold row.
#[inline(always)]
pub const fn is_plain(entry: Entry, signal: Signal) -> bool {
    // By its number: of a state the compiler makes a search for which one it is.
    if PLAIN >> entry.state_number() & 1 != 0 {
        return signal.is_quiet(false);
    }
    let state = entry.state();
    !state.is_template()
        && signal.is_quiet(state.is_sctp())
        && !(matches!(state, State::SynRecv) && signal.acknowledges())
}

/// The states of UDP, and those of TCP but SYN_RECV, a bit each: what most packets find, looked for first.
const PLAIN: u64 = 1 << State::Udp as u64
    | 1 << State::Established as u64
    | 1 << State::FinWait as u64
    | 1 << State::TimeWait as u64
    | 1 << State::Close as u64;

/// Notes that a packet was seen that [`is_plain`] for the entry at `index` (bucket * 8 + slot). Within the same unit of the
/// clock this writes nothing.
#[inline(always)]
pub fn refresh<M: Maps>(maps: &M, index: u32, entry: Entry, now: u32) {
    let fresh = entry.seen(entry.state(), now, timeout(maps, entry));
    if fresh.0 != entry.0
        && let Some(word) = word_at(maps, index)
    {
        // Where this fails another CPU has done it, or has changed the state, which did it too.
        let _ = word.swap(entry.0, fresh.0);
    }
}

/// What became of an entry that a telling packet was seen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Changed {
    /// It is this flow's, and in its next state now.
    Kept = 0,
    /// It is another flow's of the same tag, or gone.
    Foreign = 1,
    /// It was this flow's, and was taken out: the packet is to be scheduled anew.
    Over = 2,
    /// Its destination was removed, and its packets are dropped.
    Dropped = 3,
    /// Its destination was removed, and its client is to be told by a reset.
    Reset = 4,
}

/// Moves the entry at `index` (bucket * 8 + slot) on to what follows a packet.
#[inline(always)]
pub fn change<M: Maps>(maps: &M, index: u32, entry: Entry, flow: &Flow, signal: Signal) -> Changed {
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        match maps.change(index, entry.tag(), flow, u32::from(signal.0)) {
            0 => return Changed::Kept,
            1 => return Changed::Foreign,
            2 => return Changed::Over,
            3 => return Changed::Dropped,
            4 => return Changed::Reset,
            _ => {}
        }
    }
    // After this many tries others have changed it again and again: it is there, and fresh.
    Changed::Kept
}

/// What [`change_state`] says where the entry's word has changed meanwhile.
const AGAIN: u32 = 5;

/// One try of [`change`]; says what became of the entry as a number.
#[inline(always)]
pub fn change_state<M: Maps>(maps: &M, index: u32, tag: u32, flow: &Flow, signal: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "it was an octet")]
    let signal = Signal(signal as u8);
    try_change(maps, index, tag, flow, signal).map_or(AGAIN, |changed| changed as u32)
}

/// In the order of the kernel's `ip_vs_in_hook`: first whether what opens a connection is scheduled anew,
/// then whether the destination is still there, then the state machine. `None` where another CPU was quicker.
#[inline(always)]
fn try_change<M: Maps>(maps: &M, index: u32, tag: u32, flow: &Flow, signal: Signal) -> Option<Changed> {
    let (Some(word), Some(cold)) = (word_at(maps, index), maps.cold(index)) else {
        return Some(Changed::Foreign);
    };
    let place = Place { word, index };
    let entry = Entry(word.load());
    if !flow.is(cold) || entry.tag() != tag || !entry.is_live() {
        return Some(Changed::Foreign);
    }
    let Some(destination) = maps.destination(entry.destination()) else {
        return Some(Changed::Foreign);
    };
    let control = cold.control.load();
    let protocol = flow.protocol();
    let now = maps.now();
    let state = entry.state();
    let options = options_of(maps, destination.service());
    let opens = signal.opens(protocol);
    let is_removed = destination.towards.load() & destination_flag::REMOVED != 0;
    if is_removed && !opens && !options.has(Options::RESCHEDULE | Options::RESET) {
        // Without restarting its time, as the kernel does.
        return Some(Changed::Dropped);
    }
    if is_removed && options.has(Options::RESET) && !opens && protocol == IpProto::TCP {
        // The entry stays for as long as one that was reset, so that every packet that is still on its
        // way is answered, and goes then.
        let closed = entry.seen(State::Close, now, timeout_of(maps, State::Close));
        if !matches!(state, State::Close) && word.swap(entry.0, closed.0) {
            maps.recount(entry.destination(), state as u32, State::Close as u32);
        }
        // A reset is not answered (RFC 9293, 3.10.7.1): who sends one knows already.
        let is_reset = matches!(signal.event(protocol), Event::Rst);
        return Some(if is_reset {
            Changed::Dropped
        } else {
            Changed::Reset
        });
    }
    if is_removed && options.has(Options::RESCHEDULE | Options::RESET)
        || opens && may_start_anew(options, state, control, destination.weight.load())
    {
        return remove(maps, place, entry).then_some(Changed::Over);
    }
    if is_removed {
        return Some(Changed::Dropped);
    }
    let next = state.next(signal.event(protocol));
    let is_half_open = matches!(state, State::SynRecv);
    if is_half_open && opens {
        count(maps, entry.destination(), Counters::opened_again);
    }
    let fresh = entry.seen(next, now, timeout_of(maps, next));
    if fresh.0 == entry.0 {
        return Some(Changed::Kept);
    }
    if !word.swap(entry.0, fresh.0) {
        return None;
    }
    if next as u64 != state as u64 {
        maps.recount(entry.destination(), state as u32, next as u32);
        if next.is_established() {
            template::assure(maps, control);
            if is_half_open {
                #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is kept")]
                let since = (maps.jiffies() as u32).wrapping_sub(Flow::opened(cold));
                count(maps, entry.destination(), |counters| {
                    counters.acknowledged(since);
                });
            }
        } else if matches!(next, State::SynRecv) {
            Flow::reopen(cold, maps.jiffies());
            count(maps, entry.destination(), Counters::opened);
        }
    }
    Some(Changed::Kept)
}

/// Counts something for a destination.
#[inline(always)]
pub fn count<M: Maps>(maps: &M, destination: u32, what: impl FnOnce(&Counters)) {
    if let Some(counters) = maps.counters(destination) {
        what(counters);
    }
}

/// Whether what opens a connection is scheduled anew although it has an entry: of a destination of weight 0
/// with expire_nodest_conn, and of a connection that is over by conn_reuse_mode, unless a template controls
/// it (`is_new_conn_expected`).
#[inline(always)]
fn may_start_anew(options: Options, state: State, control: u64, weight: u64) -> bool {
    let is_over = state.is_over() || matches!(state, State::FinWait) && options.has(Options::REUSE_FIN_WAIT);
    options.has(Options::EXPIRE_NODEST) && weight == 0
        || options.has(Options::REUSE) && is_over && control == 0
}

/// What a service says, in the configuration that is live.
#[inline(always)]
fn options_of<M: Maps>(maps: &M, service: u32) -> Options {
    let configuration = (maps.control().generation.load() & 1) as usize;
    maps.service(service).map_or(Options::default(), |row| {
        Options(row.options[configuration].load())
    })
}

/// The word of the entry at an index: bucket * 8 + slot.
#[inline(always)]
fn word_at<M: Maps>(maps: &M, index: u32) -> Option<&Word> {
    let bucket = maps.bucket(index / 8)?;
    // Known to nobody, so that the mask stays, which shows the verifier that it is a slot.
    Some(&bucket.0[opaque(index as usize) & 7])
}

/// Whether an entry is this flow's, by the cold row.
#[inline(always)]
pub fn is_flow<M: Maps>(maps: &M, place: Place<'_>, flow: &Flow) -> bool {
    maps.cold(place.index).is_some_and(|row| flow.is(row))
}

/// Takes an entry out, settles its destination's counts and lets its template go; false where its word
/// has changed meanwhile.
#[inline(always)]
pub fn remove<M: Maps>(maps: &M, place: Place<'_>, entry: Entry) -> bool {
    // Before the place can be another's.
    let control = maps.cold(place.index).map_or(0, |row| row.control.load());
    let removed = place.word.swap(entry.0, Entry::EMPTY.0);
    if removed {
        maps.depart(entry.0, control);
    }
    removed
}

/// What follows when an entry that was controlled by `control` has gone.
#[inline(always)]
pub fn depart<M: Maps>(maps: &M, entry: u64, control: u64) {
    let entry = Entry(entry);
    if entry.is_live() {
        recount(
            maps,
            entry.destination(),
            entry.state() as u32,
            State::Empty as u32,
        );
        release(maps, control);
    }
}

/// Takes an expired entry out; false where it stays: its word has changed, or it is a template that controls
/// connections, which lives on for a while ([`is_kept`]).
#[inline(always)]
pub fn expire<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, now: u32) -> bool {
    !is_kept(maps, place, entry, now) && remove(maps, place, entry)
}

/// Brings an entry to what another table has for the same flow; false where its word has changed meanwhile.
#[cfg(not(target_arch = "bpf"))]
pub fn overwrite<M: Maps>(maps: &M, place: Place<'_>, entry: Entry, wanted: Entry) -> bool {
    let swapped = place.word.swap(entry.0, wanted.with_tag(entry.tag()).0);
    if swapped {
        maps.recount(entry.destination(), entry.state() as u32, wanted.state() as u32);
    }
    swapped
}

#[cfg(test)]
mod tests;
