//! Every scheduler against a plain model of its rule, as the kernel's C works it out: with random weights,
//! random counts, random overload, and changes of the list in the middle.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::destination_flag,
    hash,
    maps::memory::Memory,
    packet::{Address, Packet},
    ring::{self, MH_SLOTS, Member},
};

mod hash_rings;
mod least_loaded;
mod locality;
mod turns;

/// A destination of the plain models.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Destination {
    id: u32,
    weight: u32,
    /// The last weight above 0.
    last_weight: u32,
    /// Whether it has an upper threshold: only then can it be overloaded.
    is_limited: bool,
    is_overloaded: bool,
    active: u32,
    inactive: u32,
}

impl Destination {
    fn new(id: u32, weight: u32, is_limited: bool) -> Self {
        Self {
            id,
            weight,
            last_weight: weight,
            is_limited,
            is_overloaded: false,
            active: 0,
            inactive: 0,
        }
    }

    fn address(self) -> u32 {
        0x0a09_0000 + self.id
    }

    fn has_room(self) -> bool {
        !(self.is_limited && self.is_overloaded)
    }

    fn is_usable(self) -> bool {
        self.weight > 0 && self.has_room()
    }

    /// The kernel's `ip_vs_dest_conn_overhead`.
    fn overhead(self) -> u64 {
        u64::from(self.active) * 256 + u64::from(self.inactive)
    }
}

/// Who asks for a destination, and when.
#[derive(Debug, Clone, Copy)]
struct Client {
    address: u32,
    port: u16,
    virtual_address: u32,
    /// Seconds of the director's clock.
    now: u32,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// A new destination, at the list's head, perhaps with a threshold.
    Add(u32, bool),
    /// Another weight.
    Edit(usize, u32),
    Delete(usize),
    /// A destination has so many connections now, active and inactive.
    Count(usize, u32, u32),
    /// A destination is, or is no longer, overloaded.
    Overload(usize, bool),
    /// So many seconds go by.
    Wait(u32),
    /// So many connections.
    Connections(u32),
}

/// Weights that divide each other, that do not, that are far apart, and 0.
fn weight() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        2 => Just(0),
        6 => 0..5u32,
        4 => (1..9u32).prop_map(|n| n * 6),
        1 => 500..520u32,
    ]
}

/// The heaviest that the API takes, too.
fn any_weight() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        8 => weight(),
        1 => Just(65_535),
        1 => Just(i32::MAX.unsigned_abs()),
    ]
}

fn happenings(weight: impl Strategy<Value = u32> + Clone) -> impl Strategy<Value = Vec<Happening>> {
    let index = 0..8usize;
    let count = || prop_oneof![3 => 0..4u32, 3 => 0..40u32, 1 => 0..1_000_000u32];
    let happening = prop_oneof![
        4 => (weight.clone(), any::<bool>()).prop_map(|(weight, is_limited)| Happening::Add(weight, is_limited)),
        2 => (index.clone(), weight).prop_map(|(index, weight)| Happening::Edit(index, weight)),
        1 => index.clone().prop_map(Happening::Delete),
        3 => (index.clone(), count(), count()).prop_map(|(index, active, inactive)| {
            Happening::Count(index, active, inactive)
        }),
        3 => (index, any::<bool>()).prop_map(|(index, is_overloaded)| Happening::Overload(index, is_overloaded)),
        3 => prop_oneof![0..200u32, Just(3600), 80_000..90_000u32].prop_map(Happening::Wait),
        8 => (1..20u32).prop_map(Happening::Connections),
    ];
    proptest::collection::vec(happening, 1..60)
}

/// A service in the tables, its list and ring laid out as the agent does: each change goes to the other of two
/// extents, with the generation after.
struct Service {
    maps: Memory,
    kind: Kind,
    flags: (bool, bool),
    list: ListWord,
    ring: RingWord,
    ids: Vec<u32>,
}

/// Words of one extent in the tables of [`Service`].
const EXTENT: u32 = 128;

impl Service {
    fn new(kind: Kind, flags: (bool, bool)) -> Self {
        let mut service = Self {
            maps: Memory::new(16, 2, 64),
            kind,
            flags,
            // The last generation there is, so that the next is 0: a new service's.
            list: ListWord::new(kind, EXTENT, 0, u16::MAX, true),
            ring: RingWord::default(),
            ids: Vec::new(),
        };
        service.lay(&[]);
        service.maps.cursors[1].store(0);
        service
    }

    /// Brings the tables to these destinations, in the list's order.
    fn lay(&mut self, destinations: &[Destination]) {
        let members: Vec<_> = destinations
            .iter()
            .map(|destination| Member {
                address: Address::from_ipv4(destination.address()),
                port: 80,
                weight: destination.weight,
                last_weight: destination.last_weight,
                is_limited: destination.is_limited,
            })
            .collect();
        let ids: Vec<_> = destinations.iter().map(|destination| destination.id).collect();
        let (di, mw) = ring::weighted_marks(members.iter().map(|member| member.weight));
        let entries = destinations
            .iter()
            .map(|one| ListEntry::new(one.weight, one.id, one.is_limited).0);
        let places = ring::places(&self.ids, &ids);
        let offset = EXTENT - self.list.offset();
        let words = [u64::from(mw) << 32 | u64::from(di)].into_iter().chain(entries);
        for (word, value) in self.maps.lists[offset as usize..]
            .iter()
            .zip(words.chain(ring::pack(&places)))
        {
            word.store(value);
        }
        let (slots, ring) = match self.kind {
            Kind::Sh => (HASH_SLOTS, ring::source_hash(&members)),
            Kind::Dh => (HASH_SLOTS, ring::destination_hash(&members)),
            Kind::Mh => (MH_SLOTS, ring::maglev(&members)),
            _ => (0, Vec::new()),
        };
        for (word, value) in self.maps.rings[64..].iter().zip(ring::pack(&ring)) {
            word.store(value);
        }
        self.lay_rows(destinations);
        self.ring = RingWord::new(64, slots, self.flags.0, self.flags.1);
        let length = u32::try_from(ids.len()).expect("few");
        let generation = self.list.generation().wrapping_add(1);
        self.list = ListWord::new(self.kind, offset, length, generation, false);
        self.ids = ids;
        // As the agent does, so that it is never more than one generation behind. Every other time, so that
        // connections do it as well.
        if generation.is_multiple_of(2) && self.has_mark() {
            self.carry();
        }
    }

    fn lay_rows(&self, destinations: &[Destination]) {
        for id in &self.ids {
            let row = &self.maps.destinations[*id as usize];
            row.towards
                .store(destination_flag::USED | destination_flag::REMOVED);
        }
        for one in destinations {
            let row = &self.maps.destinations[one.id as usize];
            row.towards.store(destination_flag::USED);
            row.place.store(1 << 32);
            row.weight.store(u64::from(one.weight));
            self.count(*one);
        }
    }

    /// Whether the cursor is a place in the list.
    fn has_mark(&self) -> bool {
        matches!(self.kind, Kind::Rr | Kind::Wrr)
    }

    fn carry(&self) {
        let word = &self.maps.cursors[1];
        let cursor = carry_over(&self.maps, self.list, Cursor::from_word(word.load()));
        word.store(cursor.expect("one generation behind").word());
    }

    /// Brings a destination's counts to the tables.
    fn count(&self, one: Destination) {
        let counts = &self.maps.counts[one.id as usize];
        counts
            .connections
            .store(u64::from(one.inactive) << 32 | u64::from(one.active));
        counts.overload.store(u64::from(one.is_overloaded));
    }

    fn choose(&self, client: Client) -> Option<u32> {
        let packet = Packet {
            source: Address::from_ipv4(client.address),
            source_port: client.port,
            destination: Address::from_ipv4(client.virtual_address),
            ..Packet::sample()
        };
        let chosen = choose(&self.maps, self.list, self.ring, &Flow::new(&packet, 1));
        (chosen != NONE).then_some(chosen)
    }
}

/// What a scheduler of the kernel keeps, with the kernel's own plain way of working.
trait Model {
    /// The list has changed; `gone` is the index in the list before of the one that was deleted.
    fn changed(&mut self, _list: &[Destination], _gone: Option<usize>, _added: bool) {}
    fn choose(&mut self, list: &[Destination], client: Client) -> Option<u32>;
}

/// Plays what happens to both and compares every choice.
fn compare(
    kind: Kind,
    flags: (bool, bool),
    model: &mut impl Model,
    happenings: Vec<Happening>,
) -> Result<(), TestCaseError> {
    static CLIENT: AtomicU32 = AtomicU32::new(0x0a09_4001);
    let mut service = Service::new(kind, flags);
    let mut list: Vec<Destination> = Vec::new();
    let mut next_id = 1;
    model.changed(&list, None, false);
    for happening in happenings {
        let mut gone = None;
        let mut added = false;
        match happening {
            Happening::Add(weight, is_limited) if list.len() < 8 => {
                list.insert(0, Destination::new(next_id, weight, is_limited));
                next_id += 1;
                added = true;
            }
            Happening::Edit(index, weight) if index < list.len() => {
                let one = &mut list[index];
                one.weight = weight;
                one.last_weight = if weight > 0 { weight } else { one.last_weight };
            }
            Happening::Delete(index) if index < list.len() => {
                list.remove(index);
                gone = Some(index);
            }
            Happening::Count(index, active, inactive) if index < list.len() => {
                list[index].active = active;
                list[index].inactive = inactive;
                service.count(list[index]);
                continue;
            }
            Happening::Overload(index, is_overloaded) if index < list.len() => {
                list[index].is_overloaded = is_overloaded;
                service.count(list[index]);
                continue;
            }
            Happening::Wait(seconds) => {
                service.maps.pass_time(seconds);
                continue;
            }
            Happening::Connections(number) => {
                for _ in 0..number {
                    let address = CLIENT.fetch_add(0x0001_0007, Ordering::Relaxed);
                    let client = Client {
                        address,
                        port: u16::try_from(address % 50_000).expect("small") + 1024,
                        virtual_address: 0x0a09_0064 + address % 5,
                        now: service.maps.now(),
                    };
                    let chosen = service.choose(client);
                    prop_assert_eq!(chosen, model.choose(&list, client), "{:?}", list);
                    if let Some(one) = list.iter_mut().find(|one| Some(one.id) == chosen) {
                        one.active += 1;
                        service.count(*one);
                    }
                }
                continue;
            }
            _ => continue,
        }
        // Only one change at a time, which the cursor has to follow.
        if service.list.generation() % 2 == 1 && service.has_mark() {
            service.carry();
        }
        service.lay(&list);
        model.changed(&list, gone, added);
    }
    Ok(())
}
