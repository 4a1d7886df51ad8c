//! sh, dh and mh.

use alloc::vec;

use super::*;

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
    fn choose(&mut self, list: &[Destination], client: Client) -> Option<u32> {
        let slots = self.slots(list);
        let hashed = match (self.by_destination, self.port) {
            (true, _) => client.virtual_address,
            (false, true) => client.address.wrapping_add(u32::from(client.port)),
            (false, false) => client.address,
        };
        let slot = golden_ratio_hash(hashed);
        let usable = |slot: u32| {
            slots
                .get(slot as usize)
                .filter(|one| one.is_usable())
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
        let weights = || list.iter().map(|one| one.last_weight);
        let Some(most) = weights().max().filter(|most| *most > 0) else {
            return slots;
        };
        let least = weights().filter(|weight| *weight > 0).min().unwrap_or(1);
        let divisor = (1..=least)
            .rev()
            .find(|n| weights().all(|weight| weight % n == 0))
            .unwrap_or(1);
        let mut shift = 0;
        while (most / divisor) >> shift >= 64 {
            shift += 1;
        }
        let hashes: Vec<_> = list
            .iter()
            .map(|one| [2_654_435_761, 2_654_446_892].map(|key| hash::hsiphash(one.address() + 80, key)))
            .collect();
        let mut next = vec![0u64; list.len()];
        let mut left = slots.len();
        loop {
            for (index, one) in list.iter().enumerate() {
                let turns = match one.last_weight {
                    0 => 0,
                    weight => ((weight / divisor) >> shift).max(1),
                };
                let offset = u64::from(hashes[index][0] % 4093);
                let skip = u64::from(hashes[index][1] % 4092 + 1);
                for _ in 0..turns {
                    loop {
                        let slot = usize::try_from((offset + next[index] * skip) % 4093).expect("small");
                        if slots[slot].is_none() {
                            slots[slot] = Some(index);
                            break;
                        }
                        next[index] += 1;
                    }
                    left -= 1;
                    if left == 0 {
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

    fn choose(&mut self, list: &[Destination], client: Client) -> Option<u32> {
        let slots = self.filled.get_or_insert_with(|| Self::fill(list));
        let hashed = if self.port {
            client.address.wrapping_add(u32::from(client.port))
        } else {
            client.address
        };
        let slot_of = |extra: u32| hash::hsiphash(hashed.wrapping_add(extra), 2_654_435_761) % 4093;
        let usable = |slot: u32| {
            let one = list[slots[slot as usize]?];
            one.is_usable().then_some(one.id)
        };
        let first = slot_of(0);
        let tries = if self.fallback { 4093 } else { 0 };
        usable(first).or_else(|| (0..tries).find_map(|i| usable(slot_of((first + i) % 4093))))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sh_hashes_the_client(happenings in happenings(any_weight()), fallback: bool, port: bool) {
        let mut model = Hashed256 { by_destination: false, fallback, port };
        compare(Kind::Sh, (fallback, port), &mut model, happenings)?;
    }

    #[test]
    fn dh_hashes_the_virtual_address(happenings in happenings(any_weight())) {
        let mut model = Hashed256 { by_destination: true, fallback: false, port: false };
        compare(Kind::Dh, (false, false), &mut model, happenings)?;
    }
}

proptest! {
    // A ring of mh has 4093 slots, which are filled anew at each change.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn mh_takes_turns(happenings in happenings(weight()), fallback: bool, port: bool) {
        let mut model = Maglev { fallback, port, filled: None };
        compare(Kind::Mh, (fallback, port), &mut model, happenings)?;
    }
}
