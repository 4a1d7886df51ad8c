use alloc::{format, vec, vec::Vec};

use proptest::prelude::*;

use super::{
    compile::{Lists, Prefix, Rule, TooMany, compile, longest},
    *,
};
use crate::{
    abi::{MARK_PREFIXES_MAX, MARK_RULES_ROOM, MarkRow, ServiceRow},
    atomic::Word,
    maps::memory::Memory,
    packet::{Address, IpProto},
};

const V4: Address = Address::from_ipv4(0xc0a8_0264);

/// Tables with these lists as both configurations.
fn tables(lists: &Lists) -> Memory {
    let mut maps = Memory::new(16, 4, 8);
    for (prefix, rules) in lists {
        let offset = u32::try_from(maps.mark_rules.len()).expect("few");
        let count = u32::try_from(rules.len()).expect("few");
        let words = rules
            .iter()
            .flat_map(|(matched, mark)| [matched.0, u64::from(*mark)]);
        maps.mark_rules.extend(words.map(Word::new));
        let row = MarkRow([MarkList::new(offset, count).0; 2]);
        let address = Address::from_octets(prefix.octets());
        maps.mark_prefixes
            .push((address, u32::from(prefix.length()), row));
    }
    maps
}

fn mark(maps: &Memory, address: Address, port: u16, protocol: IpProto) -> u32 {
    let identity = ServiceRow::identity(port, protocol);
    mark_of(maps, address.high(), address.low(), identity)
}

fn rule(length: u8, first: u16, last: u16, protocol: u8, mark: u32) -> Rule {
    Rule {
        prefix: Prefix::new(V4, length),
        matched: MarkMatch::new(first, last, protocol),
        mark,
    }
}

#[test]
fn the_rule_that_was_added_first_gives_the_mark_whatever_its_prefix() {
    let rules = [
        rule(96 + 16, 443, 443, 6, 1),
        rule(128, 0, 65535, 6, 2),
        rule(128, 80, 90, 0, 3),
        rule(96, 0, 65535, 0, 4),
    ];
    let maps = tables(&compile(&rules).expect("few rules"));
    for (port, protocol, expected) in [
        (443, IpProto::TCP, 1),
        (80, IpProto::TCP, 2),
        (80, IpProto::UDP, 3),
        (90, IpProto::SCTP, 3),
        (91, IpProto::UDP, 4),
        (79, IpProto::UDP, 4),
    ] {
        assert_eq!(
            mark(&maps, V4, port, protocol),
            expected,
            "{port} by {protocol:?}"
        );
    }
    let neighbour = Address::from_ipv4(0xc0a8_0265);
    assert_eq!(mark(&maps, neighbour, 443, IpProto::TCP), 1);
    assert_eq!(mark(&maps, neighbour, 80, IpProto::TCP), 4);
    let six = Address::from_halves(0x2001_0db8 << 32, 1);
    assert_eq!(mark(&maps, six, 443, IpProto::TCP), 0);
}

#[test]
fn all_of_ipv6_is_nothing_of_ipv4() {
    let everything = Rule {
        prefix: Prefix::new(V4, 0),
        matched: MarkMatch::new(0, 65535, 0),
        mark: 6,
    };
    let maps = tables(&compile(&[everything]).expect("few rules"));
    assert_eq!(mark(&maps, V4, 80, IpProto::TCP), 0);
    assert_eq!(mark(&maps, Address::from_halves(1, 1), 80, IpProto::TCP), 6);
}

#[test]
fn too_many_rules_are_named() {
    let of_one_prefix: Vec<_> = (0..65).map(|port| rule(128, port, port, 6, 1)).collect();
    assert_eq!(
        compile(&of_one_prefix),
        Err(TooMany::ForPrefix(Prefix::new(V4, 128), 65))
    );
    assert!(compile(&of_one_prefix[1..]).is_ok());
    let hosts = |count: u32, each: u16| -> Vec<_> {
        let host = |index| Prefix::new(Address::from_ipv4(0x0a00_0000 + index), 128);
        let rules = |index| {
            (0..each).map(move |port| Rule {
                prefix: host(index),
                ..rule(128, port, port, 6, 1)
            })
        };
        (0..count).flat_map(rules).collect()
    };
    // One prefix more stands for all of IPv4.
    assert!(compile(&hosts(MARK_PREFIXES_MAX - 1, 1)).is_ok());
    assert_eq!(compile(&hosts(MARK_PREFIXES_MAX, 1)), Err(TooMany::Prefixes));
    assert!(compile(&hosts(MARK_RULES_ROOM / 64, 64)).is_ok());
    assert_eq!(compile(&hosts(MARK_RULES_ROOM / 64 + 1, 64)), Err(TooMany::Rules));
}

#[test]
fn a_list_that_leads_past_the_end_gives_no_mark() {
    let mut maps = tables(&Lists::new());
    let row = MarkRow([MarkList::new(u32::MAX, u32::MAX).0; 2]);
    maps.mark_prefixes = vec![(V4, 128, row)];
    assert_eq!(mark(&maps, V4, 80, IpProto::TCP), 0);
}

/// An address out of few, so that rules meet.
fn address() -> impl Strategy<Value = Address> {
    let four = (0u32..4, 0u32..4).prop_map(|(high, low)| Address::from_ipv4(high << 30 | 0xa00 | low));
    let six = (0u64..4, 0u64..4).prop_map(|(high, low)| Address::from_halves(high << 62, low));
    // What looks like the key of a mark's service, and IPv4's neighbours.
    let odd = prop_oneof![
        Just(Address::from_halves(4, 1)),
        Just(Address::from_halves(0, 0xfffe_0000_0a00)),
        Just(Address::from_halves(0, 1)),
    ];
    prop_oneof![4 => four, 4 => six, 1 => odd]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let length = prop_oneof![
        Just(0u8),
        Just(1),
        Just(2),
        Just(128),
        Just(127),
        96u8..=128,
        0u8..=128
    ];
    let ports = (0u16..6, 0u16..6).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let protocol = prop_oneof![Just(0u8), Just(6), Just(17), Just(132)];
    (address(), length, ports, protocol, 1u32..5).prop_map(
        |(address, length, (first, last), protocol, mark)| {
            // As the agent does: an IPv4 prefix is never shorter than its address family.
            let length = if address.is_ipv4() { length.max(96) } else { length };
            Rule {
                prefix: Prefix::new(address, length),
                matched: MarkMatch::new(first, last, protocol),
                mark,
            }
        },
    )
}

/// Whether a rule is for an address, told bit by bit.
fn covers(rule: &Rule, address: Address) -> bool {
    let bits = |address: Address| u128::from_be_bytes(address.octets());
    let prefix = Address::from_octets(rule.prefix.octets());
    let is_same_family = (rule.prefix.length() >= 96 && prefix.is_ipv4()) == address.is_ipv4();
    let differing = bits(prefix) ^ bits(address);
    is_same_family && (0..rule.prefix.length()).all(|bit| differing >> (127 - bit) & 1 == 0)
}

proptest! {
    #[test]
    fn one_look_up_finds_what_trying_rule_by_rule_does(
        rules in prop::collection::vec(any_rule(), 0..40),
        address in address(), port in 0u16..6, protocol in prop_oneof![Just(6u8), Just(17), Just(132)],
    ) {
        let maps = tables(&compile(&rules).expect("at most 40"));
        let first = rules.iter().find(|rule| {
            let matched = rule.matched.0;
            let (from, to, by) = (matched & 0xffff, matched >> 16 & 0xffff, matched >> 32);
            covers(rule, address)
                && (from..=to).contains(&u64::from(port))
                && (by == 0 || by == u64::from(protocol))
        });
        prop_assert_eq!(
            mark(&maps, address, port, IpProto(protocol)),
            first.map_or(0, |rule| rule.mark),
            "{}", format!("{rules:?}")
        );
    }

    #[test]
    fn the_longest_prefix_is_one_around_it(
        rules in prop::collection::vec(any_rule(), 0..20), one in any_rule(),
    ) {
        let lists = compile(&rules).expect("few");
        let around = lists.keys().filter(|prefix| one.prefix.ancestors().any(|other| other == **prefix));
        let expected = around.max_by_key(|prefix| prefix.length()).map(|prefix| &lists[prefix]);
        prop_assert_eq!(longest(&lists, one.prefix), expected);
    }
}
