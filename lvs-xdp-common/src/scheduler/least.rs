//! lc, wlc, sed, nq, fo, ovf: least of all, over the whole list (net/netfilter/ipvs/ip_vs_{lc,wlc,sed,nq,fo,ovf}.c).
//!
//! All six look for the least load in proportion to a weight and differ in what they call load: fo and ovf
//! take 1, so that the highest weight wins. Of equals the first in the list's order wins.

use super::{NONE, entry, is_usable};
use crate::{
    abi::{Counts, Kind, ListEntry, ListWord},
    maps::{Alone, Maps, Step},
};

/// How much dearer an active connection is than an inactive one (`ip_vs_dest_conn_overhead`: times 256).
const ACTIVE_SHIFT: u32 = 8;

/// The destination that a scheduler of these, by its number, chooses; [`NONE`] where none is usable.
#[inline(always)]
pub fn choose<M: Maps>(maps: &M, list: ListWord, kind: u32) -> u32 {
    let mut least = Least {
        list: list.scheduled_by(kind),
        best: Load::NOBODY,
        id: Alone(NONE),
    };
    maps.repeat(list.length(), &mut least);
    least.id.0
}

/// A load in proportion to a weight: two of them are compared as products, without a division. Both are at
/// most 2^32 - 1, so that the product fits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    load: u64,
    weight: u64,
}

impl Load {
    /// More than any other.
    pub(super) const NOBODY: Self = Self { load: 1, weight: 0 };

    /// Less than any other, or as much.
    pub(super) const NOTHING: Self = Self { load: 0, weight: 1 };

    /// The load of a destination as lc and all that are weighted like wlc see it.
    #[inline(always)]
    pub(super) fn overhead(connections: u64, weight: u32) -> Self {
        let load = (active(connections) << ACTIVE_SHIFT) + (connections >> 32);
        Self {
            // IPVS counts in 32 bits, too.
            load: load.min(0xffff_ffff),
            weight: u64::from(weight),
        }
    }

    /// The same, of which the verifier knows nothing: else it would follow a loop for each thing that it
    /// knows of the best so far.
    #[inline(always)]
    pub(super) fn forgotten<M: Maps>(self, maps: &M) -> Self {
        Self {
            load: maps.control().forget(self.load),
            weight: maps.control().forget(self.weight),
        }
    }

    #[inline(always)]
    pub(super) const fn is_less_than(self, other: Self) -> bool {
        other.load * self.weight > self.load * other.weight
    }
}

/// The same number, of which the verifier knows nothing.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "nothing but 0 is added")]
pub(super) fn forgotten<M: Maps>(maps: &M, number: u32) -> u32 {
    maps.control().forget(u64::from(number)) as u32
}

#[inline(always)]
const fn active(connections: u64) -> u64 {
    connections & 0xffff_ffff
}

/// The connections of a destination, as [`Counts::connections`] has them.
#[inline(always)]
pub(super) fn connections<M: Maps>(maps: &M, id: u32) -> u64 {
    maps.counts(id).map_or(0, |counts| counts.connections.load())
}

/// Whether a destination has more active connections than weight.
#[inline(always)]
pub(super) fn is_over<M: Maps>(maps: &M, id: u32, weight: u64) -> bool {
    active(connections(maps, id)) > weight
}

struct Least {
    list: ListWord,
    best: Load,
    id: Alone,
}

impl<M: Maps> Step<M> for Least {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let entry = entry(maps, self.list, index);
        if !is_usable(maps, entry) {
            return true;
        }
        let kind = self.list.kind();
        let connections = connections(maps, entry.id());
        let weight = u64::from(entry.weight());
        let load = match kind {
            Kind::Lc => Load::overhead(connections, 1),
            Kind::Sed | Kind::Nq => Load {
                load: active(connections) + 1,
                weight,
            },
            Kind::Fo => Load { load: 1, weight },
            Kind::Ovf if active(connections) > weight => return true,
            Kind::Ovf => Load { load: 1, weight },
            _ => Load::overhead(connections, entry.weight()),
        };
        if matches!(kind, Kind::Nq) && active(connections) == 0 {
            self.id.0 = entry.id();
            return false;
        }
        if load.is_less_than(self.best) {
            self.best = load.forgotten(maps);
            self.id.0 = forgotten(maps, entry.id());
        }
        true
    }
}

/// The highest weight of a usable destination; 0 where there is none.
#[inline(always)]
pub(super) fn heaviest<M: Maps>(maps: &M, list: ListWord) -> u32 {
    let mut heaviest = Heaviest {
        list,
        weight: Alone(0),
    };
    maps.repeat(list.length(), &mut heaviest);
    heaviest.weight.0
}

struct Heaviest {
    list: ListWord,
    weight: Alone,
}

impl<M: Maps> Step<M> for Heaviest {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let entry: ListEntry = entry(maps, self.list, index);
        if entry.weight() > self.weight.0 && is_usable(maps, entry) {
            self.weight.0 = forgotten(maps, entry.weight());
        }
        true
    }
}

/// Whether some destination of the list has less than half as many active connections as weight.
#[inline(always)]
pub fn is_any_idle<M: Maps>(maps: &M, list: ListWord) -> bool {
    let mut idle = Idle {
        list,
        found: Alone(0),
    };
    maps.repeat(list.length(), &mut idle);
    idle.found.0 != 0
}

struct Idle {
    list: ListWord,
    found: Alone,
}

impl<M: Maps> Step<M> for Idle {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let entry = entry(maps, self.list, index);
        if active(connections(maps, entry.id())) * 2 < u64::from(entry.weight()) {
            self.found.0 = 1;
            return false;
        }
        true
    }
}

const _: () = assert!(size_of::<Counts>() == 32, "one line has two of them");
