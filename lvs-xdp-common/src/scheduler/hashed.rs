//! sh, dh, mh: a hash picks the slot of a ring (net/netfilter/ipvs/ip_vs_{sh,dh,mh}.c).

use super::{NONE, entry, is_usable};
use crate::{
    abi::{Kind, ListWord, RingWord},
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
        let entry = entry(maps, self.list, index);
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
