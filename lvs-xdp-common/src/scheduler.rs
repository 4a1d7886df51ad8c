//! Which destination a new connection gets: IPVS's schedulers, rule for rule.
//!
//! Each works over the service's list, in IPVS's order (the destination added last comes first), and
//! over what the agent has compiled beside it. The rules are those of the kernel's
//! net/netfilter/ipvs/ip_vs_{rr,wrr,fo,sh,dh,mh}.c.

use crate::{
    abi::{Cursor, Kind, ListWord, RingWord},
    atomic::Word,
    hash::{self, MH_KEY_1},
    maps::{Alone, Maps, Step},
    table::Flow,
};

/// Slots of the rings of sh and dh (`IP_VS_SH_TAB_SIZE`, `IP_VS_DH_TAB_SIZE`).
pub const HASH_SLOTS: u32 = 256;
const HASH_BITS: u32 = 8;
/// Tries to move a cursor on before the choice is taken without doing so.
const TRIES: u32 = 4;
/// No destination.
pub const NONE: u32 = u32::MAX;

#[inline(always)]
fn entry<M: Maps>(maps: &M, list: ListWord, index: u32) -> u64 {
    maps.list(list.offset() + 1 + index).map_or(0, Word::load)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
const fn parts(entry: u64) -> (u32, u32) {
    ((entry >> 32) as u32, entry as u32)
}

/// Whether a destination of this effective weight takes new connections.
#[inline(always)]
const fn is_usable(weight: u32) -> bool {
    weight > 0
}

/// The destination for a new connection of a service; [`NONE`] where none is usable.
#[inline(always)]
pub fn choose<M: Maps>(maps: &M, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
    match list.kind() {
        Kind::Absent
        | Kind::Tombstone
        | Kind::Lc
        | Kind::Wlc
        | Kind::Sed
        | Kind::Nq
        | Kind::Ovf
        | Kind::Lblc
        | Kind::Lblcr => NONE,
        Kind::Rr | Kind::Wrr => in_turn(maps, flow.service, list),
        Kind::Fo => highest(maps, list),
        Kind::Sh | Kind::Dh | Kind::Mh => by_hash(maps, list, ring, flow),
    }
}

/// rr and wrr: from where the cursor stands.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
fn in_turn<M: Maps>(maps: &M, service: u64, list: ListWord) -> u32 {
    let Some(word) = maps.cursor(service as u32) else {
        return NONE;
    };
    let mut chosen = NONE;
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let old = word.load();
        let Some(cursor) = carry_over(maps, list, Cursor::from_word(old)) else {
            // This packet still sees the list before the one that the cursor is in: the choice must
            // come from this list, and must not move the other's mark.
            return turn(maps, list, Cursor::default()).map_or(NONE, |(_, id)| id);
        };
        let Some((next, id)) = turn(maps, list, cursor) else {
            return NONE;
        };
        chosen = id;
        if word.swap(old, next.word()) {
            break;
        }
    }
    chosen
}

#[inline(always)]
fn turn<M: Maps>(maps: &M, list: ListWord, cursor: Cursor) -> Option<(Cursor, u32)> {
    if matches!(list.kind(), Kind::Wrr) {
        weighted_turn(maps, list, cursor)
    } else {
        plain_turn(maps, list, cursor)
    }
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

/// rr: the next usable one after the cursor, round the list once.
#[inline(always)]
fn plain_turn<M: Maps>(maps: &M, list: ListWord, cursor: Cursor) -> Option<(Cursor, u32)> {
    if list.length() == 0 {
        // What follows the list's header then is no destination.
        return None;
    }
    let start = u32::from(cursor.position);
    // Nearly always the very next one is usable; only where it is not is there a loop.
    let first = if start >= list.length() { 0 } else { start };
    let mut search = Search {
        list,
        start: Alone(first),
        threshold: Alone(1),
        found: Alone(NONE),
    };
    if search.step(maps, 0) {
        maps.repeat(list.length(), &mut search);
    }
    search.result(maps, cursor)
}

/// wrr: the next one after the cursor whose weight reaches the current weight; at the list's end the
/// current weight falls by `di`, and below 1 starts again from `mw`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
fn weighted_turn<M: Maps>(maps: &M, list: ListWord, mut cursor: Cursor) -> Option<(Cursor, u32)> {
    let header = maps.list(list.offset())?.load();
    let (di, mw) = (header as u32, (header >> 32) as u32);
    if mw == 0 || di == 0 {
        return None;
    }
    let start = u32::from(cursor.position);
    if cursor.current_weight == 0 {
        cursor.current_weight = mw;
    }
    let rest = list.length().saturating_sub(start);
    let mut search = Search {
        list,
        start: Alone(start),
        threshold: Alone(cursor.current_weight),
        found: Alone(NONE),
    };
    if rest > 0 && search.step(maps, 0) {
        maps.repeat(rest, &mut search);
    }
    if search.found.0 == NONE {
        let mut heaviest = Heaviest {
            list,
            weight: Alone(0),
            index: Alone(NONE),
        };
        maps.repeat(list.length(), &mut heaviest);
        if heaviest.weight.0 == 0 {
            return None;
        }
        // The kernel goes down step by step, a pass over the list each; the steps that no usable
        // destination's weight reaches are left out.
        let mut current = lower(cursor.current_weight.saturating_sub(di), di, heaviest.weight.0);
        if current == 0 {
            current = lower(mw, di, heaviest.weight.0);
        }
        cursor.current_weight = current;
        search = Search {
            list,
            start: Alone(0),
            threshold: Alone(current),
            found: Alone(NONE),
        };
        maps.repeat(list.length(), &mut search);
    }
    search.result(maps, cursor)
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

/// Looks for a usable destination whose weight is at least `threshold`, from `start` on, round the list.
struct Search {
    list: ListWord,
    start: Alone,
    threshold: Alone,
    found: Alone,
}

impl Search {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "indexes are below 4,096")]
    fn result<M: Maps>(&self, maps: &M, cursor: Cursor) -> Option<(Cursor, u32)> {
        if self.found.0 == NONE {
            return None;
        }
        let (_, id) = parts(entry(maps, self.list, self.found.0));
        Some((
            Cursor {
                generation: self.list.generation(),
                position: self.found.0 as u16 + 1,
                ..cursor
            },
            id,
        ))
    }
}

impl<M: Maps> Step<M> for Search {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let mut at = self.start.0 + index;
        if at >= self.list.length() {
            at -= self.list.length();
        }
        let (weight, _) = parts(entry(maps, self.list, at));
        if is_usable(weight) && weight >= self.threshold.0 {
            self.found.0 = at;
            return false;
        }
        true
    }
}

/// fo: the highest weight; the first in the list's order wins ties.
#[inline(always)]
fn highest<M: Maps>(maps: &M, list: ListWord) -> u32 {
    let mut heaviest = Heaviest {
        list,
        weight: Alone(0),
        index: Alone(NONE),
    };
    maps.repeat(list.length(), &mut heaviest);
    if heaviest.index.0 == NONE {
        return NONE;
    }
    parts(entry(maps, list, heaviest.index.0)).1
}

struct Heaviest {
    list: ListWord,
    weight: Alone,
    index: Alone,
}

impl<M: Maps> Step<M> for Heaviest {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let (weight, _) = parts(entry(maps, self.list, index));
        if is_usable(weight) && weight > self.weight.0 {
            self.weight.0 = weight;
            self.index.0 = index;
        }
        true
    }
}

/// What the hash schedulers hash of a packet.
#[derive(Clone, Copy)]
struct Hashed {
    kind: Kind,
    address: Alone,
    slots: Alone,
}

impl Hashed {
    /// The slot for a try: `extra` is 0 at first, and what the kernel adds at each fallback.
    #[inline(always)]
    fn slot(self, extra: u32) -> u32 {
        let hash = match self.kind {
            Kind::Mh => hash::hsiphash(self.address.0.wrapping_add(extra), MH_KEY_1),
            _ => hash::hash_32(self.address.0, HASH_BITS).wrapping_add(extra),
        };
        hash.checked_rem(self.slots.0).unwrap_or(0)
    }
}

/// sh, dh, mh: what stands in the slot of the ring.
#[inline(always)]
fn by_hash<M: Maps>(maps: &M, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
    let slots = ring.slots();
    if slots == 0 {
        return NONE;
    }
    let hashed_address = if matches!(list.kind(), Kind::Dh) {
        flow.address
    } else {
        flow.client
    };
    let port = if ring.port() {
        u32::from(flow.client_port())
    } else {
        0
    };
    let hashed = Hashed {
        kind: list.kind(),
        address: Alone(hash::fold(hashed_address).wrapping_add(port)),
        slots: Alone(slots),
    };
    let first = hashed.slot(0);
    let mut fallback = Fallback {
        list,
        ring,
        hashed,
        first: Alone(first),
        chosen: Alone(NONE),
    };
    if fallback.take(maps, first) || !ring.fallback() || matches!(hashed.kind, Kind::Dh) {
        return fallback.chosen.0;
    }
    maps.repeat(slots, &mut fallback);
    fallback.chosen.0
}

/// sh-fallback, mh-fallback: the slots that the kernel tries (`ip_vs_sh_get_fallback`, `ip_vs_mh_get_fallback`).
struct Fallback {
    list: ListWord,
    ring: RingWord,
    hashed: Hashed,
    first: Alone,
    chosen: Alone,
}

impl Fallback {
    #[inline(always)]
    fn take<M: Maps>(&mut self, maps: &M, slot: u32) -> bool {
        let Some(word) = maps.ring(self.ring.offset() + slot / 4) else {
            return false;
        };
        let index = (word.load() >> (slot % 4 * 16)) as u32 & 0xffff;
        if index >= self.list.length() {
            return false;
        }
        let (weight, id) = parts(entry(maps, self.list, index));
        if is_usable(weight) {
            self.chosen.0 = id;
        }
        is_usable(weight)
    }
}

impl<M: Maps> Step<M> for Fallback {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let slot = self.hashed.slot(
            (self.first.0 + index)
                .checked_rem(self.hashed.slots.0)
                .unwrap_or(0),
        );
        !self.take(maps, slot)
    }
}

#[cfg(test)]
mod tests;
