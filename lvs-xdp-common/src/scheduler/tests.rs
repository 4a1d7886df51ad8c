use alloc::{vec, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::{
    hash,
    maps::memory::Memory,
    packet::{Address, Packet},
    ring::{self, MH_SLOTS, Member},
};

/// A destination of the plain model: which one, its weight, and the last that it had above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Destination {
    id: u32,
    weight: u32,
    last_weight: u32,
}

impl Destination {
    fn address(self) -> u32 {
        0x0a09_0000 + self.id
    }
}

/// A change of a service, in the middle of its connections.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A new destination, at the list's head.
    Add(u32),
    /// Another weight.
    Edit(usize, u32),
    Delete(usize),
    /// So many connections.
    Connections(u32),
}

/// Weights that divide each other, that do not, that are far apart, and 0.
fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        0..5u32,
        (1..9u32).prop_map(|n| n * 6),
        Just(65_534),
        Just(65_535)
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => weight().prop_map(Step::Add),
        2 => (0..8usize, weight()).prop_map(|(index, weight)| Step::Edit(index, weight)),
        1 => (0..8usize).prop_map(Step::Delete),
        4 => (1..40u32).prop_map(Step::Connections),
    ];
    proptest::collection::vec(step, 1..40)
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
                is_limited: false,
            })
            .collect();
        let ids: Vec<_> = destinations.iter().map(|destination| destination.id).collect();
        let (di, mw) = ring::weighted_marks(members.iter().map(|member| member.weight));
        let entries = destinations
            .iter()
            .map(|one| ListEntry::new(one.weight, one.id, false).0);
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
        self.ring = RingWord::new(64, slots, self.flags.0, self.flags.1);
        let length = u32::try_from(ids.len()).expect("few");
        let generation = self.list.generation().wrapping_add(1);
        self.list = ListWord::new(self.kind, offset, length, generation, false);
        self.ids = ids;
        // As the agent does, so that it is never more than one generation behind. Every other time, so that
        // connections do it as well.
        if generation.is_multiple_of(2) {
            self.carry();
        }
    }

    fn carry(&self) {
        let word = &self.maps.cursors[1];
        let cursor = carry_over(&self.maps, self.list, Cursor::from_word(word.load()));
        word.store(cursor.expect("one generation behind").word());
    }

    fn choose(&self, client: u32, port: u16, virtual_address: u32) -> Option<u32> {
        let packet = Packet {
            source: Address::from_ipv4(client),
            source_port: port,
            destination: Address::from_ipv4(virtual_address),
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
    fn choose(&mut self, list: &[Destination], client: u32, port: u16, address: u32) -> Option<u32>;
}

/// rr: a mark, as an index, at the one chosen last; before the first at the start.
#[derive(Default)]
struct RoundRobin {
    mark: Option<usize>,
}

impl Model for RoundRobin {
    fn changed(&mut self, _: &[Destination], gone: Option<usize>, added: bool) {
        if added {
            self.mark = self.mark.map(|mark| mark + 1);
        }
        if let (Some(gone), Some(mark)) = (gone, self.mark)
            && gone <= mark
        {
            self.mark = mark.checked_sub(1);
        }
    }

    fn choose(&mut self, list: &[Destination], _: u32, _: u16, _: u32) -> Option<u32> {
        let start = self.mark.map_or(0, |mark| mark + 1);
        let index = (start..start + list.len())
            .map(|index| index % list.len())
            .find(|&index| list[index].weight > 0)?;
        self.mark = Some(index);
        Some(list[index].id)
    }
}

/// wrr: cw goes down step by step, a pass over the list each.
#[derive(Default)]
struct Weighted {
    current: Option<usize>,
    cw: i64,
    di: i64,
    mw: i64,
}

impl Model for Weighted {
    fn changed(&mut self, list: &[Destination], _: Option<usize>, _: bool) {
        let weights = || {
            list.iter()
                .map(|one| i64::from(one.weight))
                .filter(|weight| *weight > 0)
        };
        let most = weights().max().unwrap_or(0);
        // By trial: the greatest number that divides all of them.
        let least = weights().min().unwrap_or(1);
        self.di = (1..=least)
            .rev()
            .find(|n| weights().all(|weight| weight % n == 0))
            .unwrap_or(1);
        self.mw = most - (self.di - 1);
        self.current = None;
        if self.cw > self.mw || self.cw == 0 {
            self.cw = self.mw;
        } else if self.di > 1 {
            self.cw = self.cw / self.di * self.di + 1;
        }
    }

    fn choose(&mut self, list: &[Destination], _: u32, _: u16, _: u32) -> Option<u32> {
        if list.iter().all(|one| one.weight == 0) {
            return None;
        }
        loop {
            let next = self.current.map_or(0, |current| current + 1);
            for (index, one) in list.iter().enumerate().skip(next) {
                if i64::from(one.weight) >= self.cw {
                    self.current = Some(index);
                    return Some(one.id);
                }
            }
            self.current = None;
            self.cw -= self.di;
            if self.cw <= 0 {
                self.cw = self.mw;
            }
        }
    }
}

/// fo: the highest weight, the first of them.
struct FailOver;

impl Model for FailOver {
    fn choose(&mut self, list: &[Destination], _: u32, _: u16, _: u32) -> Option<u32> {
        let mut best: Option<Destination> = None;
        for one in list {
            if one.weight > best.map_or(0, |best| best.weight) {
                best = Some(*one);
            }
        }
        best.map(|best| best.id)
    }
}

fn golden_ratio_hash(value: u32) -> u32 {
    let product = u64::from(value) * 0x61C8_8647 % (1 << 32);
    u32::try_from(product >> 24).expect("8 bits")
}

/// sh and dh: a table of slots, filled one by one.
struct Hashed256 {
    by_destination: bool,
    fallback: bool,
    port: bool,
}

impl Hashed256 {
    fn slots(&self, list: &[Destination]) -> Vec<Destination> {
        let mut slots = Vec::new();
        let (mut at, mut given) = (0, 0);
        while slots.len() < 256 && !list.is_empty() {
            slots.push(list[at]);
            given += 1;
            if self.by_destination || given >= list[at].weight {
                (at, given) = ((at + 1) % list.len(), 0);
            }
        }
        slots
    }
}

impl Model for Hashed256 {
    fn choose(&mut self, list: &[Destination], client: u32, port: u16, address: u32) -> Option<u32> {
        let slots = self.slots(list);
        let hashed = match (self.by_destination, self.port) {
            (true, _) => address,
            (false, true) => client.wrapping_add(u32::from(port)),
            (false, false) => client,
        };
        let slot = golden_ratio_hash(hashed);
        let usable = |slot: u32| {
            slots
                .get(slot as usize)
                .filter(|one| one.weight > 0)
                .map(|one| one.id)
        };
        let tries = if self.fallback && !self.by_destination {
            256
        } else {
            0
        };
        usable(slot).or_else(|| (0..tries).find_map(|i| usable((2 * slot + i) % 256)))
    }
}

/// mh: every destination's turns at its own permutation of the slots.
struct Maglev {
    fallback: bool,
    port: bool,
    /// The slots, filled with indexes into the list.
    filled: Option<Vec<Option<usize>>>,
}

impl Maglev {
    fn fill(list: &[Destination]) -> Vec<Option<usize>> {
        let mut slots = vec![None; 4093];
        let weights: Vec<_> = list.iter().map(|one| one.last_weight).collect();
        let Some(most) = weights.iter().copied().max().filter(|most| *most > 0) else {
            return slots;
        };
        let divisor = (1..=most)
            .rev()
            .find(|n| weights.iter().all(|weight| weight % n == 0))
            .unwrap_or(1);
        let mut shift = 0;
        while (most / divisor) >> shift >= 64 {
            shift += 1;
        }
        let mut next = vec![0u64; list.len()];
        loop {
            for (index, one) in list.iter().enumerate() {
                let turns = match one.last_weight {
                    0 => 0,
                    weight => ((weight / divisor) >> shift).max(1),
                };
                for _ in 0..turns {
                    let offset = u64::from(hash::hsiphash(one.address() + 80, 2_654_435_761) % 4093);
                    let skip = u64::from(hash::hsiphash(one.address() + 80, 2_654_446_892) % 4092 + 1);
                    loop {
                        let slot = usize::try_from((offset + next[index] * skip) % 4093).expect("small");
                        if slots[slot].is_none() {
                            slots[slot] = Some(index);
                            break;
                        }
                        next[index] += 1;
                    }
                    if slots.iter().all(Option::is_some) {
                        return slots;
                    }
                }
            }
        }
    }
}

impl Model for Maglev {
    fn changed(&mut self, _: &[Destination], _: Option<usize>, _: bool) {
        self.filled = None;
    }

    fn choose(&mut self, list: &[Destination], client: u32, port: u16, _: u32) -> Option<u32> {
        let slots = self.filled.get_or_insert_with(|| Self::fill(list));
        let hashed = if self.port {
            client.wrapping_add(u32::from(port))
        } else {
            client
        };
        let slot_of = |extra: u32| hash::hsiphash(hashed.wrapping_add(extra), 2_654_435_761) % 4093;
        let usable = |slot: u32| {
            let one = list[slots[slot as usize]?];
            (one.weight > 0).then_some(one.id)
        };
        let first = slot_of(0);
        let tries = if self.fallback { 4093 } else { 0 };
        usable(first).or_else(|| (0..tries).find_map(|i| usable(slot_of((first + i) % 4093))))
    }
}

/// Plays the steps to both and compares every choice.
fn compare(
    kind: Kind,
    flags: (bool, bool),
    model: &mut impl Model,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    static CLIENT: AtomicU32 = AtomicU32::new(0x0a09_4001);
    let mut service = Service::new(kind, flags);
    let mut list: Vec<Destination> = Vec::new();
    let mut next_id = 1;
    model.changed(&list, None, false);
    for step in steps {
        let mut gone = None;
        let mut added = false;
        match step {
            Step::Add(weight) if list.len() < 8 => {
                list.insert(
                    0,
                    Destination {
                        id: next_id,
                        weight,
                        last_weight: weight,
                    },
                );
                next_id += 1;
                added = true;
            }
            Step::Edit(index, weight) if index < list.len() => {
                let one = &mut list[index];
                one.weight = weight;
                one.last_weight = if weight > 0 { weight } else { one.last_weight };
            }
            Step::Delete(index) if index < list.len() => {
                list.remove(index);
                gone = Some(index);
            }
            Step::Connections(number) => {
                for _ in 0..number {
                    let client = CLIENT.fetch_add(0x0001_0007, Ordering::Relaxed);
                    let port = u16::try_from(client % 50_000).expect("small") + 1024;
                    let address = 0x0a09_0064 + client % 5;
                    prop_assert_eq!(
                        service.choose(client, port, address),
                        model.choose(&list, client, port, address),
                        "{:?}",
                        list
                    );
                }
                continue;
            }
            _ => continue,
        }
        // Only one change at a time, which the cursor has to follow.
        if service.list.generation() % 2 == 1 {
            service.carry();
        }
        service.lay(&list);
        model.changed(&list, gone, added);
    }
    Ok(())
}

proptest! {
    #[test]
    fn rr_goes_round(steps in steps()) {
        compare(Kind::Rr, (false, false), &mut RoundRobin::default(), steps)?;
    }

    #[test]
    fn wrr_steps_down(steps in steps()) {
        compare(Kind::Wrr, (false, false), &mut Weighted::default(), steps)?;
    }

    #[test]
    fn fo_takes_the_heaviest(steps in steps()) {
        compare(Kind::Fo, (false, false), &mut FailOver, steps)?;
    }

    #[test]
    fn sh_hashes_the_client(steps in steps(), fallback: bool, port: bool) {
        let mut model = Hashed256 { by_destination: false, fallback, port };
        compare(Kind::Sh, (fallback, port), &mut model, steps)?;
    }

    #[test]
    fn dh_hashes_the_virtual_address(steps in steps()) {
        let mut model = Hashed256 { by_destination: true, fallback: false, port: false };
        compare(Kind::Dh, (false, false), &mut model, steps)?;
    }
}

proptest! {
    // The plain way of filling Maglev's slots takes its time.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn mh_takes_turns(steps in steps(), fallback: bool, port: bool) {
        let mut model = Maglev { fallback, port, filled: None };
        compare(Kind::Mh, (fallback, port), &mut model, steps)?;
    }
}

#[test]
fn a_packet_that_sees_the_list_before_does_not_move_the_mark() {
    let mut service = Service::new(Kind::Rr, (false, false));
    let one = |id| Destination {
        id,
        weight: 1,
        last_weight: 1,
    };
    service.lay(&[one(2), one(1)]);
    let before = service.list;
    assert_eq!(
        (service.choose(1, 1, 1), service.choose(1, 1, 1)),
        (Some(2), Some(1))
    );
    service.lay(&[one(3), one(2), one(1)]);
    service.carry();
    let cursor = service.maps.cursors[1].load();
    let flow = Flow::new(&Packet::sample(), 1);
    assert_eq!(choose(&service.maps, before, RingWord::default(), &flow), 2);
    assert_eq!(service.maps.cursors[1].load(), cursor);
    assert_eq!(service.choose(1, 1, 1), Some(3));
}
