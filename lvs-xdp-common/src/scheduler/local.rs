//! lblc and lblcr: an address stays with the server, or the set of servers, that it had
//! (net/netfilter/ipvs/ip_vs_{lblc,lblcr}.c).
//!
//! They remember by the virtual address, and a service here has one; so what the kernel keeps in a table is
//! the service's cursor, and, for lblcr, a number in each destination's row: when it joined the set.

use super::{
    NONE, entry, is_usable,
    least::{self, Load, forgotten},
};
use crate::{
    abi::{DestinationRow, Kind, ListWord, destination_flag},
    maps::{Alone, Maps, Step},
};

/// Seconds after which what was not used is forgotten, and after which a set that has not changed loses its
/// most loaded server (`DEFAULT_EXPIRATION`).
const EXPIRATION: u32 = 24 * 60 * 60;

/// Whether a destination is still this service's and not removed.
#[inline(always)]
fn is_available(row: &DestinationRow, service: u64) -> bool {
    let flags = row.towards.load() & (destination_flag::USED | destination_flag::REMOVED);
    u64::from(row.service()) == service && flags == destination_flag::USED
}

/// Whether a destination has so much to do that another one should help it (`is_overloaded`).
#[inline(always)]
fn is_overloaded<M: Maps>(maps: &M, list: ListWord, id: u32, weight: u64) -> bool {
    least::is_over(maps, id, weight) && maps.is_any_idle(list)
}

/// What lblc remembers, as a cursor's word: bits 0..20 the destination's id, bit 20 set where there is one,
/// 32..64 the second it was used last.
#[derive(Clone, Copy)]
struct Last(u64);

impl Last {
    #[inline(always)]
    const fn new(id: u32, now: u32) -> Self {
        Self(id as u64 | 1 << 20 | (now as u64) << 32)
    }

    #[inline(always)]
    const fn id(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }

    #[inline(always)]
    const fn is_fresh(self, now: u32) -> bool {
        self.0 & 1 << 20 != 0 && now.wrapping_sub((self.0 >> 32) as u32) <= EXPIRATION
    }
}

/// The id of the destination that an lblc service's cursor remembers.
#[cfg(not(target_arch = "bpf"))]
pub const fn remembered(cursor: u64) -> Option<u32> {
    let last = Last(cursor);
    if cursor & 1 << 20 == 0 {
        None
    } else {
        Some(last.id())
    }
}

/// lblc: the server that the address had, while it can serve; else wlc's choice, remembered.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
pub fn lblc<M: Maps>(maps: &M, service: u64, list: ListWord) -> u32 {
    let Some(word) = maps.cursor(service as u32) else {
        return NONE;
    };
    let now = maps.now();
    let old = word.load();
    let last = Last(old);
    let mut id = NONE;
    if last.is_fresh(now)
        && let Some(row) = maps.destination(last.id())
    {
        let weight = row.weight.load();
        if is_available(row, service) && weight > 0 && !is_overloaded(maps, list, last.id(), weight) {
            id = last.id();
        }
    }
    if id == NONE {
        id = maps.least(list, Kind::Wlc);
    }
    // Asked for in vain, what is remembered is used all the same.
    let remembered = if id == NONE { last.id() } else { id };
    let new = Last::new(remembered, now);
    if (id != NONE || last.is_fresh(now)) && new.0 != old {
        // Where this fails another CPU has remembered something in this moment.
        let _ = word.swap(old, new.0);
    }
    id
}

/// What lblcr remembers, as a cursor's word: bits 0..20 the number of the set's last change, bit 20 set where
/// there is a set, 21..32 which of the service's sets it is, 32..48 when it changed last and 48..64 when it was
/// used last, in units of 64 s.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Set(u64);

const UNIT_SHIFT: u32 = 6;

impl Set {
    /// One more change, now.
    #[inline(always)]
    const fn changed(self, now: u32) -> Self {
        let number = (self.0 + 1) & 0xf_ffff;
        let unit = (now >> UNIT_SHIFT) as u64 & 0xffff;
        Self(self.0 & 0xffff_0000_fff0_0000 | number | unit << 32)
    }

    /// A new set, which nothing has joined.
    #[inline(always)]
    const fn another(self, now: u32) -> Self {
        let which = ((self.0 >> 21) + 1) & 0x7ff;
        Self(which << 21 | 1 << 20).changed(now).used(now)
    }

    #[inline(always)]
    const fn used(self, now: u32) -> Self {
        Self(self.0 & 0xffff_ffff_ffff | ((now >> UNIT_SHIFT) as u64 & 0xffff) << 48)
    }

    /// What stands in the row of a destination that joined at the last change: never 0.
    #[inline(always)]
    const fn ticket(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// Whether a destination's ticket is one of this set.
    #[inline(always)]
    const fn has(self, ticket: u64) -> bool {
        ticket >> 20 == self.0 >> 20 & 0xfff
    }

    #[inline(always)]
    const fn is_older(since: u64, now: u32) -> bool {
        let age = (now >> UNIT_SHIFT).wrapping_sub(since as u32) & 0xffff;
        age > EXPIRATION >> UNIT_SHIFT
    }

    #[inline(always)]
    const fn is_fresh(self, now: u32) -> bool {
        self.0 & 1 << 20 != 0 && !Self::is_older(self.0 >> 48, now)
    }

    #[inline(always)]
    const fn is_unchanged(self, now: u32) -> bool {
        Self::is_older(self.0 >> 32, now)
    }
}

/// lblcr: the least loaded of the address's set of servers; where that one is overloaded, wlc's choice over
/// all joins the set.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
pub fn lblcr<M: Maps>(maps: &M, service: u64, list: ListWord) -> u32 {
    let Some(word) = maps.cursor(service as u32) else {
        return NONE;
    };
    let now = maps.now();
    let old = word.load();
    let mut set = Set(old);
    if set.is_fresh(now) {
        set = set.used(now);
        let mut extreme = Extreme::least(list, set);
        maps.repeat(list.length(), &mut extreme);
        let least = extreme.id.0;
        if extreme.size.0 > 1 && set.is_unchanged(now) {
            extreme.is_most.0 = 1;
            extreme.best = Load::NOTHING;
            extreme.id.0 = NONE;
            extreme.ticket = 0;
            maps.repeat(list.length(), &mut extreme);
            if let Some(row) = maps.destination(extreme.id.0) {
                row.joined.store(0);
                set = set.changed(now);
            }
        }
        if least != NONE
            && let Some(row) = maps.destination(least)
            && !is_overloaded(maps, list, least, row.weight.load())
        {
            if set.0 != old {
                // Where this fails another CPU has changed the set, or has used it, within the same minute.
                let _ = word.swap(old, set.0);
            }
            return least;
        }
    } else {
        set = set.another(now);
    }
    let id = maps.least(list, Kind::Wlc);
    if let Some(row) = maps.destination(id)
        && !set.has(row.joined.load())
    {
        set = set.changed(now);
        row.joined.store(set.ticket());
    }
    // Asked for in vain, a set is used all the same; and one that has lost a server has changed. A new one
    // that nobody has joined is the same as none.
    if set.0 != old {
        let _ = word.swap(old, set.0);
    }
    id
}

/// The least or the most loaded destination of a set. Of equals the one that joined last is the first, as in
/// the kernel's list.
struct Extreme {
    list: ListWord,
    set: Set,
    is_most: Alone,
    size: Alone,
    best: Load,
    id: Alone,
    ticket: u64,
}

impl Extreme {
    #[inline(always)]
    const fn least(list: ListWord, set: Set) -> Self {
        Self {
            list,
            set,
            is_most: Alone(0),
            size: Alone(0),
            best: Load::NOBODY,
            id: Alone(NONE),
            ticket: 0,
        }
    }
}

impl<M: Maps> Step<M> for Extreme {
    #[inline(always)]
    fn step(&mut self, maps: &M, index: u32) -> bool {
        let entry = entry(maps, self.list, index);
        let ticket = maps.destination(entry.id()).map_or(0, |row| row.joined.load());
        if !self.set.has(ticket) {
            return true;
        }
        self.size.0 = forgotten(maps, self.size.0 + 1);
        let is_most = self.is_most.0 != 0;
        if entry.weight() == 0 || !is_most && !is_usable(maps, entry) {
            return true;
        }
        let load = Load::overhead(least::connections(maps, entry.id()), entry.weight());
        let (is_better, is_worse) = if is_most {
            (self.best.is_less_than(load), load.is_less_than(self.best))
        } else {
            (load.is_less_than(self.best), self.best.is_less_than(load))
        };
        if is_better || !is_worse && ticket > self.ticket {
            self.best = load.forgotten(maps);
            self.id.0 = forgotten(maps, entry.id());
            self.ticket = maps.control().forget(ticket);
        }
        true
    }
}
