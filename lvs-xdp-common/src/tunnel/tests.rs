use alloc::{collections::BTreeSet, vec::Vec};
use core::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, UdpHeader};
use proptest::prelude::*;

use super::*;
use crate::{
    abi::destination_flag::{RESOLVED, SPECIAL, TUNNEL, USED, VLAN},
    director,
    maps::memory::Memory,
    packet::Mac,
    rewrite::rewrite,
};

const TO: Mac = Mac::from_octets([2, 0, 0, 0, 2, 210]);
const FROM: Mac = Mac::from_octets([2, 0, 0, 0, 2, 200]);
const CLIENT: [u8; 6] = [2, 0, 0, 0, 1, 1];
const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 1, 200];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 5);
const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 200);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 5);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x200);
const MTU: u16 = 1500;
const PORT: u16 = 6080;

fn halves(is_ipv4: bool, v4: Ipv4Addr, v6: Ipv6Addr) -> Address {
    if is_ipv4 {
        Address::from_ipv4(v4.to_bits())
    } else {
        Address::from_octets(v6.octets())
    }
}

/// A director whose destination 1 is behind such a tunnel.
fn director(outer_is_ipv4: bool, how: How) -> Memory {
    let maps = Memory::new(16, 4, 8);
    let row = &maps.destinations[1];
    row.towards.store(USED | RESOLVED | SPECIAL | TUNNEL | TO.0);
    row.from.store(FROM.0);
    let to = halves(outer_is_ipv4, SERVER, SERVER6);
    row.address[0].store(to.high());
    row.address[1].store(to.low());
    let from = halves(outer_is_ipv4, SOURCE, SOURCE6);
    maps.tunnels[1].source[0].store(from.high());
    maps.tunnels[1].source[1].store(from.low());
    maps.tunnels[1].how.store(how.0);
    maps
}

/// A TCP packet of a client, with so many octets of data.
fn packet(is_ipv4: bool, data: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT, DIRECTOR);
    let builder = if is_ipv4 {
        let mut header = etherparse::Ipv4Header {
            dscp: etherparse::IpDscp::try_new(46).unwrap(),
            ecn: etherparse::IpEcn::try_new(3).unwrap(),
            time_to_live: 61,
            protocol: IpNumber::TCP,
            source: [192, 168, 1, 200],
            destination: [192, 168, 2, 100],
            identification: 0x1234,
            dont_fragment: true,
            ..Default::default()
        };
        header.set_payload_len(20 + data).unwrap();
        builder.ip(IpHeaders::Ipv4(header, Default::default()))
    } else {
        let header = etherparse::Ipv6Header {
            traffic_class: 46 << 2 | 1,
            hop_limit: 61,
            next_header: IpNumber::TCP,
            source: "fd00:1::200".parse::<Ipv6Addr>().unwrap().octets(),
            destination: "fd00:2::100".parse::<Ipv6Addr>().unwrap().octets(),
            payload_length: 20 + u16::try_from(data).unwrap(),
            ..Default::default()
        };
        builder.ip(IpHeaders::Ipv6(header, Default::default()))
    };
    let mut frame = Vec::new();
    let data: Vec<u8> = (0..data).map(|index| (index * 7 % 251) as u8).collect();
    builder
        .tcp(40_000, 80, 1, 1024)
        .syn()
        .write(&mut frame, &data)
        .unwrap();
    frame
}

fn tagged(mut frame: Vec<u8>, tags: usize) -> Vec<u8> {
    for _ in 0..tags {
        frame.splice(12..12, [0x81, 0, 0x20, 5]);
    }
    frame
}

/// What a receiver takes out of an outer packet, behind the Ethernet header and so many tags; checks every
/// length and checksum on the way.
fn decapsulated(frame: &[u8], tags: usize, how: How) -> Vec<u8> {
    let mut bare = frame.to_vec();
    bare.drain(12..12 + 4 * tags);
    let sliced = SlicedPacket::from_ethernet(&bare).unwrap();
    let (protocol, body, from, to): (IpNumber, Vec<u8>, Address, Address) = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(
                (ip.header().source_addr(), ip.header().destination_addr()),
                (SOURCE, SERVER)
            );
            (
                header.protocol,
                ip.payload().payload.to_vec(),
                Address::from_ipv4(SOURCE.to_bits()),
                Address::from_ipv4(SERVER.to_bits()),
            )
        }
        NetSlice::Ipv6(ip) => {
            assert_eq!(
                (ip.header().source_addr(), ip.header().destination_addr()),
                (SOURCE6, SERVER6)
            );
            (
                ip.header().next_header(),
                ip.payload().payload.to_vec(),
                Address::from_octets(SOURCE6.octets()),
                Address::from_octets(SERVER6.octets()),
            )
        }
        other => panic!("{other:?}"),
    };
    match how.kind().unwrap() {
        Kind::Ip => {
            let version = body[0] >> 4;
            assert_eq!(protocol.0, if version == 4 { 4 } else { 41 });
            body
        }
        Kind::Gue => {
            assert_eq!(protocol, IpNumber::UDP);
            let (udp, rest) = UdpHeader::from_slice(&body).unwrap();
            assert_eq!(
                (udp.destination_port, usize::from(udp.length)),
                (PORT, body.len())
            );
            assert!(udp.source_port >= FIRST_PORT);
            let expected = match (how.has_checksum(), to.is_ipv4()) {
                (false, _) => 0,
                (true, true) => udp
                    .calc_checksum_ipv4_raw(SOURCE.octets(), SERVER.octets(), rest)
                    .unwrap(),
                (true, false) => udp
                    .calc_checksum_ipv6_raw(from.octets(), to.octets(), rest)
                    .unwrap(),
            };
            assert_eq!(udp.checksum, expected);
            let version = rest[4] >> 4;
            assert_eq!(rest[..4], [0, if version == 4 { 4 } else { 41 }, 0, 0]);
            rest[4..].to_vec()
        }
        Kind::Gre => {
            assert_eq!(protocol, IpNumber::GRE);
            let skipped = if how.has_checksum() {
                assert_eq!(checksum(fold_all(&body)), [0, 0], "it sums up to all ones");
                assert_eq!(
                    (body[..2].to_vec(), body[6..8].to_vec()),
                    (Vec::from([0x80, 0]), Vec::from([0, 0]))
                );
                8
            } else {
                assert_eq!(body[..2], [0, 0]);
                4
            };
            let version = body[skipped] >> 4;
            assert_eq!(body[2..4], if version == 4 { [8, 0] } else { [0x86, 0xdd] });
            body[skipped..].to_vec()
        }
    }
}

/// The sum of octets, an odd one filled up with 0.
fn fold_all(octets: &[u8]) -> u32 {
    let mut even = octets.to_vec();
    even.resize(octets.len().next_multiple_of(2), 0);
    let total = sum(0, &even);
    (total & 0xffff) + (total >> 16)
}

fn any_how() -> impl Strategy<Value = How> {
    (0..5).prop_map(|number| match number {
        0 => How::new(Kind::Ip, false, 0, MTU, 0),
        1 => How::new(Kind::Gue, false, PORT, MTU, 0),
        2 => How::new(Kind::Gue, true, PORT, MTU, 0),
        3 => How::new(Kind::Gre, false, 0, MTU, 0),
        _ => How::new(Kind::Gre, true, 0, MTU, 0),
    })
}

proptest! {
    #[test]
    fn what_is_taken_out_is_what_was_put_in(
        how in any_how(), inner: bool, outer: bool, tags in 0..3usize, data in 0..1388usize, padding in 0..20usize,
    ) {
        let packet = packet(inner, data);
        let mut frame = tagged(packet.clone(), tags);
        frame.extend(core::iter::repeat_n(0, padding));
        rewrite(&mut frame, &director(outer, how), 1).unwrap();
        prop_assert_eq!(&frame[..6], &TO.octets());
        prop_assert_eq!(&frame[6..12], &FROM.octets());
        for tag in frame[12..12 + 4 * tags].chunks(4) {
            prop_assert_eq!(tag, &[0x81, 0, 0x20, 5]);
        }
        prop_assert_eq!(decapsulated(&frame, tags, how), &packet[14..]);
    }

    #[test]
    fn any_checksum_is_that_of_rfc_1071(octets in proptest::collection::vec(any::<u8>(), 0..3000), from in 0..40u32) {
        let mut frame = Vec::from([0x77; 40]);
        frame.truncate(from as usize);
        frame.extend(&octets);
        let maps = Memory::new(16, 4, 8);
        let seen = u32::try_from(sum_of(&frame, &maps, from, octets.len() as u32)).unwrap();
        prop_assert_eq!(checksum(seen), checksum(fold_all(&octets)));
        prop_assert_eq!(sum_of(&frame, &maps, from, octets.len() as u32 + 1), u64::MAX);
    }
}

#[test]
fn the_words_of_a_tunnel_keep_their_parts() {
    let how = How::new(Kind::Gue, true, 6080, 1500, 16);
    assert_eq!(how.0, 0x0010_05dc_17c0_0102);
    assert_eq!(
        (
            how.kind(),
            how.has_checksum(),
            how.port(),
            how.mtu(),
            how.spread()
        ),
        (Some(Kind::Gue), true, 6080, 1500, 0xffff)
    );
    assert_eq!(How(0).kind(), None);
}

#[test]
fn an_ipip_header_is_what_ipvs_writes() {
    let how = How::new(Kind::Ip, false, 0, MTU, 0);
    let inner = packet(true, 0);
    let mut frame = inner.clone();
    rewrite(&mut frame, &director(true, how), 1).unwrap();
    assert_eq!(frame.len(), inner.len() + 20);
    let outer = &frame[14..34];
    // Expedited forwarding; of the mark of congestion only that the flow can have one.
    assert_eq!(outer[..4], [0x45, 46 << 2 | 2, 0, 60]);
    assert_eq!(outer[6..10], [0x40, 0, 61, 4]);
    assert_eq!(outer[12..], [192, 168, 2, 200, 10, 7, 0, 5]);
    assert_eq!(fold_all(outer), 0xffff);
    assert_eq!(frame[34..], inner[14..]);
}

#[test]
fn what_allows_fragments_goes_in_what_allows_them_under_a_number_of_its_own() {
    let how = How::new(Kind::Ip, false, 0, MTU, 0);
    let maps = director(true, how);
    let outer = |identification: u8| {
        let mut frame = packet(true, 0);
        frame[19] = identification;
        frame[20] = 0;
        rewrite(&mut frame, &maps, 1).unwrap();
        frame[14..34].to_vec()
    };
    let (one, other) = (outer(1), outer(2));
    assert_eq!(one[6..8], [0, 0]);
    assert_ne!(one[4..6], other[4..6]);
}

#[test]
fn flows_are_told_apart_by_what_receivers_hash() {
    let distinct = |is_ipv4: bool, how: How, part: core::ops::Range<usize>| {
        let maps = director(is_ipv4, how);
        let seen: BTreeSet<Vec<u8>> = (0..64u8)
            .map(|port| {
                let mut frame = packet(true, 0);
                frame[35] = port;
                rewrite(&mut frame, &maps, 1).unwrap();
                frame[part.clone()].to_vec()
            })
            .collect();
        seen.len()
    };
    let gue = How::new(Kind::Gue, false, PORT, MTU, 0);
    assert!(distinct(true, gue, 34..36) > 50, "source ports");
    let plain = How::new(Kind::Ip, false, 0, MTU, 0);
    assert!(distinct(false, plain, 15..18) > 60, "flow labels");
    assert_eq!(distinct(true, plain, 26..30), 1, "the director's address");
    let maps = director(true, How::new(Kind::Ip, false, 0, MTU, 16));
    maps.tunnels[1].source[1].store(Address::from_ipv4(0x0a63_0000).low());
    let mut frame = packet(true, 0);
    rewrite(&mut frame, &maps, 1).unwrap();
    assert_eq!(frame[26..28], [10, 99]);
    assert_ne!(frame[28..30], [0, 0]);
    assert_eq!(fold_all(&frame[14..34]), 0xffff);
}

#[test]
fn an_outer_packet_gets_its_destinations_tags() {
    let how = How::new(Kind::Gre, false, 0, MTU, 0);
    let maps = director(true, how);
    let row = &maps.destinations[1];
    row.towards.store(row.towards.load() | VLAN);
    row.from.store(FROM.0 | 20 << 48 | 1 << 60);
    let inner = packet(true, 10);
    let mut frame = inner.clone();
    rewrite(&mut frame, &maps, 1).unwrap();
    assert_eq!(frame[12..18], [0x81, 0, 0, 20, 8, 0]);
    assert_eq!(decapsulated(&frame, 1, how), inner[14..]);
}

#[test]
fn what_does_not_fit_is_answered_with_the_length_that_would() {
    for (how, added) in [
        (How::new(Kind::Ip, false, 0, MTU, 0), 20),
        (How::new(Kind::Gue, true, PORT, MTU, 0), 32),
        (How::new(Kind::Gre, false, 0, MTU, 0), 24),
        (How::new(Kind::Gre, true, 0, MTU, 0), 28),
    ] {
        for (inner, header) in [(true, 40), (false, 60)] {
            for outer in [true, false] {
                let fits = usize::from(MTU) - added - if outer { 0 } else { 20 };
                let maps = director(outer, how);
                let mut frame = packet(inner, fits - header);
                assert_eq!(rewrite(&mut frame, &maps, 1), Ok(()));
                for tags in 0..3 {
                    let packet = packet(inner, fits - header + 1);
                    let mut frame = tagged(packet.clone(), tags);
                    assert_eq!(rewrite(&mut frame, &maps, 1), Err(Reason::TooBig));
                    check_answer(&frame, tags, &packet, fits as u32);
                }
            }
        }
    }
}

/// Whether a frame tells the sender of `packet` that so many bytes fit.
fn check_answer(frame: &[u8], tags: usize, packet: &[u8], fits: u32) {
    let mut bare = frame.to_vec();
    bare.drain(12..12 + 4 * tags);
    assert_eq!(bare[..12], [CLIENT, DIRECTOR].concat());
    let sliced = SlicedPacket::from_ethernet(&bare).unwrap();
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(
                (header.source, header.destination),
                ([192, 168, 2, 100], [192, 168, 1, 200])
            );
            assert_eq!(fold_all(icmp.slice()), 0xffff);
            let next_hop_mtu = fits as u16;
            assert_eq!(
                icmp.icmp_type(),
                etherparse::Icmpv4Type::DestinationUnreachable(
                    etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }
                )
            );
            assert_eq!(icmp.payload(), &packet[14..42]);
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
            assert_eq!(
                (header.source_addr(), header.destination_addr()),
                ("fd00:2::100".parse().unwrap(), "fd00:1::200".parse().unwrap())
            );
            assert_eq!(
                icmp.icmp_type(),
                etherparse::Icmpv6Type::PacketTooBig { mtu: fits }
            );
            assert_eq!(icmp.payload(), &packet[14..14 + 128]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_error_is_sent_about_errors_and_later_fragments_nor_in_a_flood() {
    let maps = director(true, How::new(Kind::Ip, false, 0, MTU, 0));
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = packet(true, 1460);
        change(&mut frame);
        rewrite(&mut frame, &maps, 1)
    };
    assert_eq!(refused(&|frame| frame[23] = 1), Err(Reason::TooBigQuiet));
    assert_eq!(refused(&|frame| frame[21] = 9), Err(Reason::TooBigQuiet));
    assert_eq!(refused(&|frame| frame[26] = 0), Err(Reason::TooBigQuiet));
    // A first fragment, and what allows fragments.
    assert_eq!(refused(&|frame| frame[20] = 0x20), Err(Reason::TooBig));
    assert_eq!(refused(&|frame| frame[20] = 0), Err(Reason::TooBig));
    let answered = (0..2 * director::ANSWERS_A_SECOND)
        .filter(|_| refused(&|_| ()) == Err(Reason::TooBig))
        .count();
    assert_eq!(answered as u64, director::ANSWERS_A_SECOND - 2);
}

#[test]
fn an_mtu_that_no_network_has_is_not_told() {
    for (inner, mtu) in [(true, 87), (false, 1299)] {
        let maps = director(true, How::new(Kind::Ip, false, 0, mtu, 0));
        let mut frame = packet(inner, 1400);
        assert_eq!(rewrite(&mut frame, &maps, 1), Err(Reason::TooBigQuiet));
    }
}

#[test]
fn later_fragments_and_errors_go_in_like_the_rest() {
    let how = How::new(Kind::Gue, false, PORT, MTU, 0);
    let maps = director(true, how);
    for change in [
        |frame: &mut Vec<u8>| frame[21] = 9,
        |frame: &mut Vec<u8>| frame[23] = 1,
    ] {
        let mut inner = packet(true, 100);
        change(&mut inner);
        let mut frame = inner.clone();
        rewrite(&mut frame, &maps, 1).unwrap();
        assert_eq!(decapsulated(&frame, 0, how), inner[14..]);
    }
}

#[test]
fn a_row_without_a_tunnel_and_a_frame_without_a_packet_go_nowhere() {
    let mut frame = packet(true, 0);
    assert_eq!(
        rewrite(&mut frame, &director(true, How(0)), 1),
        Err(Reason::RewriteFailed)
    );
    let mut frame = packet(true, 0);
    frame[12] = 9;
    let maps = director(true, How::new(Kind::Ip, false, 0, MTU, 0));
    assert_eq!(rewrite(&mut frame, &maps, 1), Err(Reason::RewriteFailed));
}
