//! What is no common packet: IPv6, fragments, ICMP errors, nonsense; and destinations that are special.

use alloc::vec::Vec;

use super::*;
use crate::{
    abi::vip_flag,
    reason::Reason::{
        BadFlags, Echo, Fragment, FragmentUnknown, FromPeer, Local, Martian, Related, RelatedUnknown,
        ZeroPort,
    },
};

const CLIENT6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const VIP6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];

/// The same service at an IPv6 address.
fn at_ipv6(maps: &Memory) {
    let address = Address::from_octets(VIP6);
    let row = &maps.services[SERVICE as usize];
    row.address[0].store(address.high());
    row.address[1].store(address.low());
    let hash = hash::service(maps.control.key(), address, 80, IpProto::TCP.0);
    let (first, _) = index_buckets(hash, maps.control.service_mask.load());
    maps.service_index[first as usize].0[0].store(index_word(hash, SERVICE));
}

fn frame6(port: u16, flags: u8) -> [u8; 74] {
    let mut frame = [0; 74];
    frame[..6].copy_from_slice(&DIRECTOR);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 2, 1]);
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[18..22].copy_from_slice(&[0, 20, 6, 64]);
    frame[22..38].copy_from_slice(&CLIENT6);
    frame[38..54].copy_from_slice(&VIP6);
    frame[54..56].copy_from_slice(&port.to_be_bytes());
    frame[56..58].copy_from_slice(&80u16.to_be_bytes());
    frame[66] = 0x50;
    frame[67] = flags;
    frame
}

fn seen(maps: &Memory, frame: &[u8]) -> (Reason, u32) {
    let verdict = decide(frame, maps, INGRESS);
    (verdict.reason, verdict.destination)
}

#[test]
fn ipv6_is_balanced_like_ipv4() {
    let maps = director(Kind::Rr, IpProto::TCP);
    at_ipv6(&maps);
    for (port, destination) in [(1, READY), (2, NEXT), (3, READY)] {
        for (flags, reason) in [(SYN, NewConnection), (ACK, Connection), (FIN, Connection)] {
            assert_eq!(seen(&maps, &frame6(port, flags)), (reason, destination));
        }
    }
    assert_eq!(maps.counts[READY as usize].connections.load(), 2 << 32);
    assert_eq!(seen(&maps, &frame6(4, ACK)), (NoConnection, 0));
}

#[test]
fn the_fragments_of_a_datagram_go_where_the_first_one_goes() {
    let mut maps = director(Kind::Rr, IpProto::UDP);
    let fragment = |port: u16, flags: u8, offset: u8| {
        let mut frame = frame(IpProto::UDP, port, 0);
        frame[18..20].copy_from_slice(&port.to_be_bytes());
        frame[20..22].copy_from_slice(&[flags, offset]);
        frame[38..40].copy_from_slice(&8008u16.to_be_bytes());
        frame
    };
    for (port, destination) in [(1, READY), (2, NEXT)] {
        assert_eq!(
            seen(&maps, &fragment(port, 0x20, 0)),
            (NewConnection, destination)
        );
    }
    for (port, destination) in [(2, NEXT), (1, READY)] {
        assert_eq!(seen(&maps, &fragment(port, 0x20, 3)), (Fragment, destination));
        assert_eq!(seen(&maps, &fragment(port, 0, 6)), (Fragment, destination));
    }
    assert_eq!(seen(&maps, &fragment(3, 0, 6)), (NotForUs, 0));
    maps.vips.push((Address::from_ipv4(VIP), vip_flag::USED));
    assert_eq!(seen(&maps, &fragment(3, 0, 6)), (FragmentUnknown, 0));
    assert_eq!(maps.counts[READY as usize].connections.load(), 1 << 32);
}

/// An ICMP error that quotes what a real server has sent to the client's `port`.
fn error(kind: u8, port: u16, protocol: IpProto) -> Vec<u8> {
    let mut frame = Vec::from(frame(IpProto::ICMP, 0, 0));
    frame[16..18].copy_from_slice(&56u16.to_be_bytes());
    frame.truncate(14 + 20);
    frame.extend([kind, 4, 0, 0, 0, 0, 5, 0]);
    frame.extend([0x45, 0, 5, 220, 0, 0, 0x40, 0, 63, protocol.0, 0, 0]);
    frame.extend(VIP.to_be_bytes());
    frame.extend([192, 168, 1, 200]);
    frame.extend([0, 80]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1]);
    frame
}

#[test]
fn an_icmp_error_goes_to_the_connection_that_it_is_about_and_leaves_it_as_it_is() {
    let maps = director(Kind::Rr, IpProto::TCP);
    for (port, destination) in [(1, READY), (2, NEXT)] {
        assert_eq!(send(&maps, port, SYN).destination, destination);
        for kind in [3, 4, 11, 12] {
            assert_eq!(
                seen(&maps, &error(kind, port, IpProto::TCP)),
                (Related, destination)
            );
        }
    }
    assert_eq!(seen(&maps, &error(3, 3, IpProto::TCP)), (RelatedUnknown, 0));
    assert_eq!(seen(&maps, &error(3, 1, IpProto::UDP)), (RelatedUnknown, 0));
    assert_eq!(
        seen(&maps, &error(5, 1, IpProto::TCP)),
        (OtherProtocol, 0),
        "a redirect"
    );
    maps.pass_time(61);
    assert_eq!(
        seen(&maps, &error(3, 1, IpProto::TCP)),
        (RelatedUnknown, 0),
        "it does not keep the connection"
    );
}

#[test]
fn an_icmp_error_about_a_flow_without_an_entry_goes_where_the_hash_says() {
    let maps = director(Kind::Sh, IpProto::TCP);
    for slot in &maps.rings[..64] {
        slot.store(0x0001_0001_0001_0001);
    }
    assert_eq!(seen(&maps, &error(3, 7, IpProto::TCP)), (Related, NEXT));
}

#[test]
fn an_echo_request_to_an_address_that_the_host_has_not_is_answered() {
    let mut maps = director(Kind::Rr, IpProto::TCP);
    let mut request = frame(IpProto::ICMP, 0, 0);
    request[34] = 8;
    assert_eq!(seen(&maps, &request), (OtherProtocol, 0));
    maps.vips.push((Address::from_ipv4(VIP), vip_flag::USED));
    assert_eq!(seen(&maps, &request), (Echo, 0));
    request[5] = 77;
    assert_eq!(seen(&maps, &request), (OtherHost, 0));
}

#[test]
fn nonsense_starts_no_connection() {
    let maps = director(Kind::Rr, IpProto::TCP);
    for (name, at, with, reason) in [
        ("a land packet", 26, VIP.to_be_bytes(), Martian),
        ("from a loopback address", 26, [127, 0, 0, 1], Martian),
        ("from a multicast group", 26, [224, 0, 0, 1], Martian),
        ("from nobody", 26, [0, 0, 0, 0], Martian),
        ("broadcast", 26, [255, 255, 255, 255], Martian),
        ("from port 0", 34, [0, 0, 0, 80], ZeroPort),
        ("SYN and FIN", 44, [0, 0, 0x50, SYN | FIN], BadFlags),
        ("no flags at all", 44, [0, 0, 0x50, 0], NoConnection),
        ("a header that is too short", 44, [0, 0, 0x40, SYN], Malformed),
        ("a header past the packet's end", 44, [0, 0, 0x60, SYN], Malformed),
        ("a length past the frame's end", 16, [0, 47, 0, 1], Malformed),
    ] {
        let mut frame = frame(IpProto::TCP, 1, SYN);
        frame[at..at + 4].copy_from_slice(&with);
        assert_eq!(seen(&maps, &frame), (reason, 0), "{name}");
    }
    assert_eq!(live(&maps), 0);
}

#[test]
fn what_another_director_sends_is_not_balanced_again() {
    let mut maps = director(Kind::Rr, IpProto::TCP);
    maps.peers.push(Mac::from_octets([2, 0, 0, 0, 2, 1]));
    assert_eq!(seen(&maps, &frame(IpProto::TCP, 1, SYN)), (NewConnection, READY));
    maps.control.flags.store(control_flag::PEERS);
    assert_eq!(seen(&maps, &frame(IpProto::TCP, 2, SYN)), (FromPeer, 0));
    maps.peers.clear();
    assert_eq!(seen(&maps, &frame(IpProto::TCP, 2, SYN)), (NewConnection, NEXT));
}

#[test]
fn a_local_destination_has_connections_and_no_way() {
    let maps = director(Kind::Rr, IpProto::TCP);
    maps.destinations[READY as usize]
        .towards
        .store(destination_flag::USED | destination_flag::SPECIAL | destination_flag::LOCAL);
    let verdict = send(&maps, 1, SYN);
    assert_eq!(
        (verdict.reason, verdict.destination, verdict.is_new),
        (Local, READY, true)
    );
    let verdict = send(&maps, 1, ACK);
    assert_eq!(
        (verdict.reason, verdict.destination, verdict.is_new),
        (Local, READY, false)
    );
    assert_eq!(maps.counts[READY as usize].connections.load(), 1);
    set(&maps.destinations[NEXT as usize], destination_flag::SPECIAL);
    assert!(send(&maps, 2, SYN).is_special);
}
