//! Services of firewall marks.

use super::*;
use crate::{
    abi::MarkRow,
    atomic::Word,
    marks::{MarkList, MarkMatch},
    reason::Reason::OnePacket,
};

const MARK: u32 = 7;

/// Gives every packet to the VIP with these ports the mark.
fn give_mark(maps: &mut Memory, ports: &[(u16, u16)]) {
    let words = |&(first, last): &(u16, u16)| [MarkMatch::new(first, last, 0).0, u64::from(MARK)];
    maps.mark_rules = ports.iter().flat_map(words).map(Word::new).collect();
    let count = u32::try_from(ports.len()).expect("few");
    let row = MarkRow([MarkList::new(0, count).0; 2]);
    maps.mark_prefixes = alloc::vec![(Address::from_ipv4(VIP), 128, row)];
    let flags = maps.control.flags.load();
    maps.control.flags.store(flags | control_flag::MARKS);
}

/// A director whose service is the mark's, of every port of the VIP from 80 to 90 and of 443.
fn marked(kind: Kind) -> Memory {
    let mut maps = director(kind, IpProto::TCP);
    for word in maps.service_index.iter().flat_map(|bucket| &bucket.0) {
        word.store(0);
    }
    let address = ServiceRow::mark(MARK, true);
    let row = &maps.services[SERVICE as usize];
    row.address[0].store(address.high());
    row.address[1].store(address.low());
    row.identity.store(0);
    let hash = hash::service(maps.control.key(), address, 0, 0);
    let (first, _) = index_buckets(hash, maps.control.service_mask.load());
    maps.service_index[first as usize].0[0].store(index_word(hash, SERVICE));
    give_mark(&mut maps, &[(80, 90), (443, 443)]);
    maps
}

fn to(port: u16, protocol: IpProto, virtual_port: u16) -> Client {
    Client {
        protocol,
        to: virtual_port,
        ..Client::tcp(port)
    }
}

#[test]
fn the_ports_of_a_mark_take_turns_together() {
    let maps = marked(Kind::Rr);
    for (port, virtual_port, destination) in [(1, 80, READY), (2, 443, NEXT), (3, 90, READY), (4, 80, NEXT)] {
        let client = to(port, IpProto::TCP, virtual_port);
        assert_eq!(client.send(&maps, SYN), (NewConnection, destination));
        assert_eq!(client.send(&maps, ACK), (Connection, destination));
        // The entry has the address and port that the client knows.
        assert!(entry_of(&maps, &client.flow()).is_some());
    }
    assert_eq!(to(9, IpProto::TCP, 91).send(&maps, SYN), (NotForUs, 0));
}

#[test]
fn a_client_has_one_template_for_all_that_has_the_mark() {
    let maps = marked(Kind::Rr);
    set_options(&maps, 0, 60, u32::MAX);
    for (port, protocol, virtual_port) in [
        (1, IpProto::TCP, 80),
        (2, IpProto::TCP, 443),
        (3, IpProto::UDP, 85),
    ] {
        let client = to(port, protocol, virtual_port);
        assert_eq!(client.send(&maps, SYN), (NewConnection, READY));
    }
    assert_eq!(counts(&maps, READY), (2, 1, 1));
    let other = Client {
        address: [192, 168, 1, 201],
        ..to(1, IpProto::TCP, 443)
    };
    assert_eq!(other.send(&maps, SYN), (NewConnection, NEXT));
    let template = other.flow().template_of_mark(u64::from(MARK), u32::MAX);
    assert!(template.is_template());
    assert_eq!((template.protocol(), template.port()), (IpProto(0), 0));
    assert_eq!(template.address, Address::from_ipv4(MARK));
    assert!(entry_of(&maps, &template).is_some());
}

#[test]
fn one_packet_is_for_udp_only() {
    let maps = marked(Kind::Rr);
    set_options(&maps, Options::ONE_PACKET, 0, u32::MAX);
    assert_eq!(to(1, IpProto::UDP, 80).send(&maps, 0), (OnePacket, READY));
    assert_eq!(to(1, IpProto::UDP, 80).send(&maps, 0), (OnePacket, NEXT));
    assert_eq!(to(2, IpProto::TCP, 80).send(&maps, SYN), (NewConnection, READY));
    assert_eq!(to(2, IpProto::TCP, 80).send(&maps, ACK), (Connection, READY));
}

#[test]
fn a_mark_goes_before_the_packets_own_service_and_without_one_is_nothing() {
    let mut maps = director(Kind::Rr, IpProto::TCP);
    give_mark(&mut maps, &[(80, 80)]);
    assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));

    let maps = marked(Kind::Rr);
    enter_service(&maps, 2, 80, IpProto::TCP);
    maps.services[2].lists.iter().for_each(|list| {
        list.store(ListWord::new(Kind::Rr, 0, 0, 0, false).0);
    });
    // Service 2 has no destination, and is not asked.
    assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
    // The mark's was deleted: what it had goes on, what is new is the other one's.
    let row = &maps.services[SERVICE as usize];
    let tombstone = ListWord::new(Kind::Tombstone, 0, 0, 1, true);
    row.lists.iter().for_each(|list| list.store(tombstone.0));
    assert_eq!(Client::tcp(1).send(&maps, ACK), (Connection, READY));
    assert_eq!(Client::tcp(2).send(&maps, SYN), (NoDestination, 0));
}

#[test]
fn connections_go_on_when_their_rule_is_gone() {
    let maps = marked(Kind::Rr);
    let (open, new) = (to(1, IpProto::TCP, 443), to(2, IpProto::TCP, 443));
    assert_eq!(open.send(&maps, SYN), (NewConnection, READY));
    maps.control.flags.store(0);
    assert_eq!(open.send(&maps, ACK), (NotForUs, 0));
    maps.control.flags.store(control_flag::UNMARKED);
    assert_eq!(open.send(&maps, ACK), (Connection, READY));
    assert_eq!(new.send(&maps, SYN), (NotForUs, 0));
    assert_eq!(open.send(&maps, FIN | ACK), (Connection, READY));
    assert_eq!(open.send(&maps, RST), (Connection, READY));
    assert_eq!(counts(&maps, READY), (0, 1, 0));
}
