//! sh, dh, mh: a hash picks the slot of a ring (net/netfilter/ipvs/ip_vs_{sh,dh,mh}.c).

use super::{NONE, entry, is_usable};
use crate::{
    abi::{Kind, ListEntry, ListWord, RingWord},
    flow::Flow,
    hash::{self, MH_KEY_1},
    maps::{Alone, Maps, Step},
};

/// Slots of the rings of sh and dh (`IP_VS_SH_TAB_SIZE`, `IP_VS_DH_TAB_SIZE`).
pub const HASH_SLOTS: u32 = 256;
const HASH_BITS: u32 = 8;

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
        let most = self.slots.0.wrapping_sub(1);
        if self.slots.0 & most == 0 {
            // sh's and dh's rings: a division takes as long as all the rest.
            return hash & most;
        }
        hash.checked_rem(self.slots.0).unwrap_or(0)
    }
}

/// sh, dh, mh: what stands in the slot of the ring.
#[inline(always)]
pub fn choose<M: Maps>(maps: &M, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
    let mut fallback = Fallback::new(list, ring, flow);
    let Hashed { kind, slots, .. } = fallback.hashed;
    let first = fallback.first.0;
    if fallback.take(maps, first) || !ring.fallback() || matches!(kind, Kind::Dh) {
        return fallback.chosen.0;
    }
    maps.repeat(slots.0, &mut fallback);
    fallback.chosen.0
}

/// What [`choose`] takes, where it is the first thing that it looks at and usable whatever its counts are; else [`NONE`].
#[inline(always)]
pub fn choose_first<M: Maps>(maps: &M, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
    let fallback = Fallback::new(list, ring, flow);
    let first = fallback.at(maps, fallback.first.0);
    if first.weight() > 0 && !first.is_limited() {
        first.id()
    } else {
        NONE
    }
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
    fn new(list: ListWord, ring: RingWord, flow: &Flow) -> Self {
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
            slots: Alone(ring.slots()),
        };
        Self {
            list,
            ring,
            hashed,
            first: Alone(hashed.slot(0)),
            chosen: Alone(NONE),
        }
    }

    /// The destination in a slot of the ring; one of weight 0 where there is none.
    #[inline(always)]
    fn at<M: Maps>(&self, maps: &M, slot: u32) -> ListEntry {
        // A ring without slots has no words.
        if slot >= self.hashed.slots.0 {
            return ListEntry(0);
        }
        let Some(word) = maps.ring(self.ring.offset() + slot / 4) else {
            return ListEntry(0);
        };
        let index = (word.load() >> (slot % 4 * 16)) as u32 & 0xffff;
        if index >= self.list.length() {
            return ListEntry(0);
        }
        entry(maps, self.list, index)
    }

    #[inline(always)]
    fn take<M: Maps>(&mut self, maps: &M, slot: u32) -> bool {
        let entry = self.at(maps, slot);
        let is_usable = is_usable(maps, entry);
        if is_usable {
            self.chosen.0 = entry.id();
        }
        is_usable
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
