//! Which destination a new connection gets: IPVS's schedulers, rule for rule.
//!
//! Each works over the service's list, in IPVS's order (the destination added last comes first), and
//! over what the agent has compiled beside it. The rules are those of the kernel's
//! net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,sed,nq,fo,ovf,lblc,lblcr,sh,dh,mh}.c.

mod hashed;
mod least;
mod local;

use crate::{
    abi::{Cursor, Kind, ListEntry, ListWord, RingWord},
    atomic::Word,
    flow::Flow,
    maps::{Alone, Maps, Step},
};

#[cfg(not(target_arch = "bpf"))]
pub use self::local::remembered;
pub use self::{
    hashed::{HASH_SLOTS, choose as by_hash, choose_first as first_by_hash},
    least::{choose as least, is_any_idle},
    local::{lblc, lblcr},
};

/// Tries to move a cursor on before the choice is taken without doing so.
const TRIES: u32 = 4;
/// No destination.
pub const NONE: u32 = u32::MAX;

/// The destination at a place of a list.
#[inline(always)]
fn entry<M: Maps>(maps: &M, list: ListWord, index: u32) -> ListEntry {
    ListEntry(maps.list(list.offset() + 1 + index).map_or(0, Word::load))
}

/// Whether a destination takes new connections: it has weight, and is not overloaded.
#[inline(always)]
fn is_usable<M: Maps>(maps: &M, entry: ListEntry) -> bool {
    entry.weight() > 0
        && !(entry.is_limited()
            && maps
                .counts(entry.id())
                .is_some_and(|counts| counts.overload.load() != 0))
}

/// The destination for a new connection of a service; [`NONE`] where none is usable.
#[inline(always)]
pub fn choose<M: Maps>(maps: &M, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
    match list.kind() {
        Kind::Absent | Kind::Tombstone => NONE,
        Kind::Rr | Kind::Wrr => match very_next(maps, flow.service, list) {
            NONE => maps.in_turn(flow.service, list),
            id => id,
        },
        Kind::Sh | Kind::Dh | Kind::Mh => maps.by_hash(list, ring, flow),
        Kind::Lblc => maps.lblc(flow.service, list),
        Kind::Lblcr => maps.lblcr(flow.service, list),
        Kind::Fo | Kind::Ovf | Kind::Lc | Kind::Wlc | Kind::Sed | Kind::Nq => maps.least(list, list.kind()),
    }
}

/// What [`in_turn`] chooses, where nothing has to be searched for: of rr, the very next destination, if it is usable
/// whatever its counts are, and no other CPU is about to take it; else [`NONE`].
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "ids of services are 32 bits, lists have at most LIST_MAX places"
)]
fn very_next<M: Maps>(maps: &M, service: u64, list: ListWord) -> u32 {
    let Some(word) = maps.cursor(service as u32) else {
        return NONE;
    };
    let old = word.load();
    let cursor = Cursor::from_word(old);
    let length = list.length();
    let place = u32::from(cursor.position);
    let place = if place < length { place } else { 0 };
    let next = entry(maps, list, place);
    let is_certain = next.weight() > 0 && !next.is_limited();
    if !is_certain
        || length == 0
        || cursor.generation != list.generation()
        || !matches!(list.kind(), Kind::Rr)
    {
        return NONE;
    }
    let moved = Cursor {
        position: place as u16 + 1,
        ..cursor
    };
    if moved.word() == old || word.swap(old, moved.word()) {
        next.id()
    } else {
        NONE
    }
}

/// rr and wrr: from where the cursor stands.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
pub fn in_turn<M: Maps>(maps: &M, service: u64, list: ListWord) -> u32 {
    let Some(word) = maps.cursor(service as u32) else {
        return NONE;
    };
    let mut turned = Cursor::default();
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let old = word.load();
        // Where the cursor is in a newer list than this packet sees, the choice must come from this list,
        // and must not move the other's mark.
        let carried = carry_over(maps, list, Cursor::from_word(old));
        turned = maps.turn(list, carried.unwrap_or_default());
        let next = Cursor {
            generation: list.generation(),
            ..turned
        };
        if carried.is_none() || next.word() == old || word.swap(old, next.word()) {
            break;
        }
    }
    if turned.generation != CHOSEN {
        return NONE;
    }
    entry(maps, list, u32::from(turned.position).wrapping_sub(1)).id()
}

/// The cursor as it stands in `list`: moved there from the generation before, where it is still in
/// that one. `None` where it is in a newer one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
pub fn carry_over<M: Maps>(maps: &M, list: ListWord, cursor: Cursor) -> Option<Cursor> {
    let generation = list.generation();
    if cursor.generation == generation {
        return Some(cursor);
    }
    if cursor.generation.wrapping_add(1) != generation {
        return None;
    }
    let (di, mw) = {
        let header = maps.list(list.offset())?.load();
        (header as u32, (header >> 32) as u32)
    };
    if list.restart() {
        return Some(Cursor {
            generation,
            position: 0,
            current_weight: mw,
        });
    }
    if matches!(list.kind(), Kind::Wrr) {
        let current_weight = after_change(cursor.current_weight, di, mw);
        return Some(Cursor {
            generation,
            position: 0,
            current_weight,
        });
    }
    let places = maps
        .list(list.offset() + 1 + list.length() + u32::from(cursor.position) / 4)?
        .load();
    let position = (places >> (u32::from(cursor.position) % 4 * 16)) as u16;
    Some(Cursor {
        generation,
        position,
        current_weight: cursor.current_weight,
    })
}

/// wrr's current weight after a change of any destination (`ip_vs_wrr_dest_changed`).
#[inline(always)]
pub const fn after_change(current: u32, di: u32, mw: u32) -> u32 {
    if current > mw || current == 0 {
        mw
    } else if di > 1 {
        current / di * di + 1
    } else {
        current
    }
}

/// What stands in the place of a cursor's generation where it is at the destination whose turn it is.
const CHOSEN: u16 = 1;

/// The cursor after the next turn: at the destination whose turn it is, or, with another generation than
/// `CHOSEN`, where the search for one has ended.
///
/// rr: the next usable one after the cursor, round the list once. wrr: the next one after the cursor whose
/// weight reaches the current weight; at the list's end the current weight falls by `di`, and below 1 starts
/// again from `mw`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
pub fn turn<M: Maps>(maps: &M, list: ListWord, cursor: Cursor) -> Cursor {
    let mut cursor = Cursor {
        generation: !CHOSEN,
        ..cursor
    };
    let length = list.length();
    let is_weighted = matches!(list.kind(), Kind::Wrr);
    let header = maps.list(list.offset()).map_or(0, Word::load);
    let (di, mw) = (header as u32, (header >> 32) as u32);
    if length == 0 || mw == 0 || di == 0 {
        // What follows the header of an empty list is no destination.
        return cursor;
    }
    let start = u32::from(cursor.position);
    let mut search = Search {
        list,
        place: Alone(start),
        threshold: Alone(1),
    };
    let mut rounds = length;
    if is_weighted {
        if cursor.current_weight == 0 {
            cursor.current_weight = mw;
        }
        search.threshold.0 = cursor.current_weight;
        rounds = length.saturating_sub(start);
    } else if start >= length {
        search.place.0 = 0;
    }
    // Nearly always the very next one is usable; only where it is not is there a loop.
    if rounds > 0 && search.step(maps, 0) {
        maps.repeat(rounds, &mut search);
    }
    if search.place.0 < FOUND && is_weighted {
        let heaviest = least::heaviest(maps, list);
        if heaviest == 0 {
            return after_refusal(cursor, di, mw);
        }
        // The kernel goes down step by step, a pass over the list each; the steps that no usable
        // destination's weight reaches are left out.
        let mut current = lower(cursor.current_weight.saturating_sub(di), di, heaviest);
        if current == 0 {
            current = lower(mw, di, heaviest);
        }
        cursor.current_weight = current;
        search.place.0 = 0;
        search.threshold.0 = current;
        maps.repeat(length, &mut search);
    }
    if search.place.0 >= FOUND {
        cursor.generation = CHOSEN;
        cursor.position = search.place.0 as u16 + 1;
    }
    cursor
}

/// Where wrr stands when it has found every destination overloaded (`ip_vs_wrr_schedule`, err_over): at the
/// list's head with the highest weight; or, where the first pass was one for any weight that began in the
/// middle of the list, where it began, with the lowest one.
#[inline(always)]
const fn after_refusal(cursor: Cursor, di: u32, mw: u32) -> Cursor {
    if cursor.position == 0 || cursor.current_weight > di {
        return Cursor {
            position: 0,
            current_weight: mw,
            ..cursor
        };
    }
    Cursor {
        // What is left of mw when it has been stepped down as far as it goes without reaching 0.
        current_weight: match (mw - 1).checked_rem(di) {
            Some(rest) => rest + 1,
            None => mw,
        },
        ..cursor
    }
}

/// The greatest of `from`, `from - di`, .. that is not above `limit`; 0 where there is none.
#[inline(always)]
const fn lower(from: u32, di: u32, limit: u32) -> u32 {
    if from <= limit {
        return from;
    }
    let steps = (from - limit - 1).checked_div(di);
    match steps {
        Some(steps) => from.saturating_sub((steps + 1).saturating_mul(di)),
        None => 0,
    }
}

/// Looks for a usable destination whose weight is at least `threshold`, round the list.
struct Search {
    list: ListWord,
    /// Where it begins; once one is found, where that is, and [`FOUND`].
    place: Alone,
    threshold: Alone,
}

/// More than any place in a list.
const FOUND: u32 = 1 << 16;

impl<M: Maps> Step<M> for Search {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let mut at = self.place.0 + index;
        if at >= self.list.length() {
            at -= self.list.length();
        }
        let entry = entry(maps, self.list, at);
        if entry.weight() >= self.threshold.0 && is_usable(maps, entry) {
            self.place.0 = FOUND | at;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests;
