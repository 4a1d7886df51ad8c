use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::{
    maps::memory::Memory,
    packet::{Address, Packet},
};

extern crate std;

mod crowd;
mod places;

/// Two buckets, each the other's partner, whatever the tag.
const PAIR: u32 = 16;
const BUCKET: [u64; 2] = [0, 1];

/// Tables of so many entries with one service, as it is by default, and destinations of it.
fn tables(connections: u32) -> Memory {
    let maps = Memory::new(connections, 2, 16);
    maps.services[1].options[0].store(Options::new(Options::REUSE, 0, u32::MAX).0);
    for row in &maps.destinations {
        row.towards.store(destination_flag::USED);
        row.place.store(1 << 32);
        row.weight.store(1);
    }
    maps
}

/// The `client`-th client's flow with a hash of this tag and primary bucket.
fn new(tag: u64, bucket: u64, client: u32) -> New {
    let packet = Packet {
        source: Address::from_ipv4(client),
        ..Packet::sample()
    };
    New {
        hash: tag << 41 | bucket,
        flow: Flow::new(&packet, 1),
        opened: 0,
    }
}

fn key(maps: &Memory, new: &New) -> Key {
    Key::new(new.hash, maps.control.bucket_mask.load())
}

fn enter_in(maps: &Memory, new: &New, destination: u32, state: State) -> Inserted {
    let entry = Entry::new(0, destination, state, maps.now(), timeout_of(maps, state));
    insert(maps, new, entry, 0)
}

/// Fills a bucket with entries of other tags, from `first` on, all for destination 9.
fn fill(maps: &Memory, bucket: usize, first: u32, state: State) {
    for (tag, slot) in (first..).zip(0..8) {
        put(maps, bucket, slot, Entry::new(tag, 9, state, maps.now(), 0));
    }
}

/// Puts an entry at a place of its own, counted.
fn put(maps: &Memory, bucket: usize, slot: usize, entry: Entry) {
    count(maps, entry.destination(), State::Empty, entry.state());
    maps.hot[bucket].0[slot].store(entry.0);
}

/// Counts an entry that goes from one state to another.
fn count(maps: &Memory, destination: u32, from: State, to: State) {
    recount(maps, destination, from as u32, to as u32);
}

fn state_of(maps: &Memory, new: &New) -> Option<State> {
    find(maps, key(maps, new)).map(|(_, entry)| entry.state())
}

/// (active, inactive) of a destination.
fn counts(maps: &Memory, destination: usize) -> (u64, u64) {
    let counts = maps.counts[destination].connections.load();
    (counts & 0xffff_ffff, counts >> 32)
}

/// A packet of a flow whose entry is there.
fn packet(maps: &Memory, new: &New, flags: u8) -> Changed {
    let (place, entry) = find(maps, key(maps, new)).expect("the entry is there");
    change(maps, place.index, entry, &new.flow, Signal(flags))
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

#[test]
fn what_is_entered_is_found() {
    let maps = tables(1024);
    for client in 1..200 {
        let new = new(u64::from(client), u64::from(client), client);
        assert!(find(&maps, key(&maps, &new)).is_none());
        let destination = client % 7;
        assert_eq!(enter_in(&maps, &new, destination, State::SynRecv), Inserted::Done);
        let (place, entry) = find(&maps, key(&maps, &new)).expect("it was entered");
        assert_eq!(
            (entry.destination(), entry.state()),
            (destination, State::SynRecv)
        );
        assert!(is_flow(&maps, place, &new.flow));
        assert_eq!(Flow::read(&maps.cold[place.index as usize]), new.flow);
    }
}

#[test]
fn a_tag_is_never_0() {
    let maps = tables(PAIR);
    let zero = new(0, 0, 1);
    assert!(find(&maps, key(&maps, &zero)).is_none(), "free words have tag 0");
    assert_eq!(enter_in(&maps, &zero, 3, State::Udp), Inserted::Done);
    assert_eq!(find(&maps, key(&maps, &zero)).expect("it was entered").1.tag(), 1);
}

#[test]
fn an_entry_lives_to_the_second_of_its_time_out() {
    let maps = tables(PAIR);
    let new = new(3, 0, 1);
    assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
    let (_, entry) = find(&maps, key(&maps, &new)).expect("it was entered");
    maps.pass_time(60);
    assert!(!is_expired(&maps, entry, maps.now()));
    maps.pass_time(1);
    assert!(is_expired(&maps, entry, maps.now()));
}

#[test]
fn two_live_entries_of_a_pair_never_share_a_tag() {
    for state in [State::SynRecv, State::Established, State::Udp, State::TimeWait] {
        for (first, second) in [(0, 0), (0, 1), (1, 0)] {
            let maps = tables(PAIR);
            let there = new(3, first, 1);
            assert_eq!(enter_in(&maps, &there, 4, state), Inserted::Done);
            let before: Vec<_> = words(&maps);
            let other = new(3, second, 2);
            assert_eq!(enter_in(&maps, &other, 5, State::SynRecv), Inserted::Collision);
            assert_eq!(words(&maps), before);
            assert_eq!(counts(&maps, 5), (0, 0));
            assert_eq!(enter_in(&maps, &there, 6, State::SynRecv), Inserted::Exists(4));
            assert_eq!(words(&maps), before);
        }
    }
}

fn words(maps: &Memory) -> Vec<u64> {
    let words = maps.hot.iter().flat_map(|bucket| &bucket.0);
    words.map(Word::load).collect()
}

#[test]
fn a_claim_of_the_same_tag_that_is_not_finished_is_a_race() {
    for slot in [0, 7] {
        let maps = tables(PAIR);
        let claim = Entry::new(3, 4, State::Claimed, maps.now(), 0);
        maps.hot[1].0[slot].store(claim.0);
        assert_eq!(enter_in(&maps, &new(3, 0, 1), 5, State::SynRecv), Inserted::Race);
        assert_eq!(words(&maps).iter().filter(|&&word| word != 0).count(), 1);
        assert!(
            find(&maps, key(&maps, &new(3, 0, 1))).is_none(),
            "a claim is no entry"
        );
    }
}

#[test]
fn counts_follow_the_states() {
    let maps = tables(PAIR);
    let new = new(3, 0, 1);
    assert_eq!(enter_in(&maps, &new, 4, State::SynRecv), Inserted::Done);
    assert_eq!(counts(&maps, 4), (1, 0));
    for (flags, state, expected) in [
        (SYN, State::SynRecv, (1, 0)),
        (ACK, State::Established, (1, 0)),
        (SYN, State::Established, (1, 0)),
        (FIN | ACK, State::FinWait, (0, 1)),
        (ACK, State::FinWait, (0, 1)),
        // A FIN_WAIT is not over: the client may be a new one on the same port.
        (SYN, State::SynRecv, (1, 0)),
        (FIN, State::TimeWait, (0, 1)),
        (RST, State::Close, (0, 1)),
        (ACK, State::Close, (0, 1)),
    ] {
        assert_eq!(packet(&maps, &new, flags), Changed::Kept);
        assert_eq!(state_of(&maps, &new), Some(state));
        assert_eq!(counts(&maps, 4), expected, "{flags:#04x} to {state:?}");
    }
    assert_eq!(packet(&maps, &new, SYN), Changed::Over);
    assert_eq!((state_of(&maps, &new), counts(&maps, 4)), (None, (0, 0)));
}

#[test]
fn templates_are_counted_as_such() {
    let maps = tables(PAIR);
    let new = new(3, 0, 1);
    assert_eq!(enter_in(&maps, &new, 4, State::Template), Inserted::Done);
    assert_eq!((counts(&maps, 4), maps.counts[4].templates.load()), ((0, 0), 1));
    let (place, entry) = find(&maps, key(&maps, &new)).expect("it was entered");
    assert!(remove(&maps, place, entry));
    assert_eq!(maps.counts[4].templates.load(), 0);
    assert!(!remove(&maps, place, entry), "it was taken out already");
    assert_eq!(maps.counts[4].templates.load(), 0);
}

#[test]
fn a_syn_on_a_connection_that_is_over_starts_anew() {
    for state in [State::TimeWait, State::Close] {
        let maps = tables(PAIR);
        let new = new(3, 0, 1);
        assert_eq!(enter_in(&maps, &new, 4, state), Inserted::Done);
        // What opens a connection is the SYN alone, whatever comes with it.
        for flags in [SYN, SYN | ACK, SYN | RST, SYN | FIN] {
            assert_eq!(packet(&maps, &new, flags), Changed::Over, "{flags:#04x}");
            assert_eq!(counts(&maps, 4), (0, 0));
            assert_eq!(enter_in(&maps, &new, 4, state), Inserted::Done);
        }
    }
}

#[test]
fn another_flow_of_the_same_tag_changes_nothing() {
    for (state, flags) in [
        (State::Established, FIN),
        (State::Established, RST),
        (State::Established, SYN),
        (State::SynRecv, ACK),
        (State::TimeWait, SYN),
        (State::Close, SYN),
    ] {
        let maps = tables(PAIR);
        let there = new(3, 0, 1);
        assert_eq!(enter_in(&maps, &there, 4, state), Inserted::Done);
        maps.pass_time(5);
        let before = words(&maps);
        let mut others = Vec::from([new(3, 0, 2), new(3, 1, 3)]);
        // Each part of a flow counts.
        for change in [
            |packet: &mut Packet| packet.source_port += 1,
            |packet: &mut Packet| packet.destination_port += 1,
            |packet: &mut Packet| packet.protocol = IpProto::UDP,
            |packet: &mut Packet| packet.destination = Address::from_ipv4(9),
            |packet: &mut Packet| packet.source = Address::from_halves(1, packet.source.low()),
            |packet: &mut Packet| packet.destination = Address::from_halves(1, packet.destination.low()),
        ] {
            let mut packet = Packet {
                source: Address::from_ipv4(1),
                ..Packet::sample()
            };
            change(&mut packet);
            others.push(New {
                hash: there.hash,
                flow: Flow::new(&packet, 1),
                opened: 0,
            });
        }
        for other in &others {
            assert!(!is_plain(Entry::EMPTY.with_state(state), Signal(flags)));
            assert_eq!(packet(&maps, other, flags), Changed::Foreign);
            assert_eq!(words(&maps), before);
        }
    }
}

#[test]
fn a_plain_packet_only_restarts_the_time_and_writes_once_a_second() {
    let maps = tables(PAIR);
    let new = new(3, 0, 1);
    assert_eq!(enter_in(&maps, &new, 4, State::Established), Inserted::Done);
    let (place, before) = find(&maps, key(&maps, &new)).expect("it was entered");
    refresh(&maps, place.index, before, maps.now());
    assert_eq!(place.word.load(), before.0);
    maps.pass_time(7);
    refresh(&maps, place.index, before, maps.now());
    let after = Entry(place.word.load());
    assert_eq!((after.age(maps.now()), before.age(maps.now())), (0, 7));
    assert_eq!(
        (after.tag(), after.destination(), after.state()),
        (3, 4, State::Established)
    );
    // Whoever comes late changes nothing.
    refresh(&maps, place.index, before, maps.now());
    assert_eq!(place.word.load(), after.0);
    assert_eq!(counts(&maps, 4), (1, 0));
}

proptest! {
    #[test]
    fn the_pair_of_a_tag_is_the_same_from_both_sides(tag in 0..1u64 << 23, at: u32, bits in 1..20u32) {
        let mask = (1u64 << bits) - 1;
        let key = Key::new(tag << 41 | u64::from(at) & mask, mask);
        prop_assert_ne!(key.primary, key.partner());
        prop_assert!(u64::from(key.primary | key.partner()) <= mask);
        let back = Key::new(tag << 41 | u64::from(key.partner()), mask);
        prop_assert_eq!((back.primary, back.partner()), (key.partner(), key.primary));
    }

    /// Any sequence of packets against a plain list of what is there: tags, destinations, states, counts.
    #[test]
    fn the_table_is_a_map(steps in proptest::collection::vec((0..24u32, 0..5usize, 0..70u32), 1..300)) {
        let maps = tables(PAIR * 2);
        let mut model = std::collections::HashMap::<u32, (u32, State, u32)>::new();
        for (client, flag, seconds) in steps {
            maps.pass_time(seconds / 10);
            let now = maps.now();
            // Few tags for many clients, so that tags collide.
            let new = new(u64::from(client % 17) + 1, u64::from(client), client);
            let flags = Signal([SYN, ACK, FIN, RST, SYN][flag]);
            model.retain(|_, (_, state, seen)| now - *seen <= timeout_of(&maps, *state));
            let found = find(&maps, key(&maps, &new))
                .filter(|(place, entry)| !is_expired(&maps, *entry, now) && is_flow(&maps, *place, &new.flow));
            prop_assert_eq!(
                found.map(|(_, entry)| (entry.destination(), entry.state())),
                model.get(&client).map(|(destination, state, _)| (*destination, *state))
            );
            if let Some((place, entry)) = found {
                match change(&maps, place.index, entry, &new.flow, flags) {
                    Changed::Kept => {
                        let next = entry.state().next(flags.event(IpProto::TCP));
                        model.insert(client, (entry.destination(), next, now));
                    }
                    Changed::Over => {
                        prop_assert!(flags.opens(IpProto::TCP) && entry.state().is_over());
                        model.remove(&client);
                    }
                    other => prop_assert!(false, "it was this flow's, and its destination is there: {:?}", other),
                }
            } else if flags.opens(IpProto::TCP) {
                let destination = client % 5 + 1;
                let before = words(&maps);
                match enter_in(&maps, &new, destination, State::SynRecv) {
                    Inserted::Done => {
                        // At most one half-open entry has made room for it.
                        model.retain(|other, _| {
                            let other = self::new(u64::from(other % 17) + 1, u64::from(*other), *other);
                            find(&maps, key(&maps, &other)).is_some_and(|(place, _)| is_flow(&maps, place, &other.flow))
                        });
                        model.insert(client, (destination, State::SynRecv, now));
                    }
                    Inserted::Collision => {
                        let (place, _) = find(&maps, key(&maps, &new)).expect("the other one");
                        prop_assert!(!is_flow(&maps, place, &new.flow));
                    }
                    Inserted::Full => prop_assert_eq!(words(&maps), before),
                    other => prop_assert!(false, "{:?} with one thread", other),
                }
            }
            check_counts(&maps)?;
        }
    }
}

/// The counts are those of the entries that stand in the table, expired ones included.
fn check_counts(maps: &Memory) -> Result<(), TestCaseError> {
    let mut expected = [0u64; 16];
    for word in words(maps) {
        let entry = Entry(word);
        expected[entry.destination() as usize] += count_of(entry.state());
    }
    for (counts, expected) in maps.counts.iter().zip(expected) {
        prop_assert_eq!(counts.connections.load(), expected);
    }
    Ok(())
}

#[test]
fn overload_begins_at_the_upper_threshold_and_ends_below_the_lower_one() {
    let maps = tables(PAIR);
    // 10, and three quarters of it, as the agent has it without a lower threshold.
    for (upper, lower) in [(10u64, 8u64), (10, 2), (1, 1), (4, 4)] {
        let counts = &maps.counts[4];
        counts.limits.store(upper << 32 | lower);
        let mut expected = false;
        for round in 0..3 {
            for total in 1..=upper {
                count(&maps, 4, State::Empty, State::SynRecv);
                expected |= total == upper;
                assert_eq!(counts.overload.load() != 0, expected, "up to {total}");
                // What changes between active and inactive changes nothing.
                count(&maps, 4, State::SynRecv, State::Close);
                count(&maps, 4, State::Close, State::Established);
                count(&maps, 4, State::Empty, State::Template);
                count(&maps, 4, State::Template, State::Assured);
                assert_eq!(counts.overload.load() != 0, expected);
            }
            for total in (0..upper).rev() {
                count(&maps, 4, State::Established, State::Empty);
                count(&maps, 4, State::Assured, State::Empty);
                expected &= total >= lower;
                assert_eq!(
                    counts.overload.load() != 0,
                    expected,
                    "down to {total} in {round}"
                );
            }
            assert_eq!((counts.connections.load(), counts.templates.load()), (0, 0));
        }
    }
}
