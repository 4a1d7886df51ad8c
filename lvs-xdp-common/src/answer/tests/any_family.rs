//! Answers over IPv6, and echo replies over both, read by a parser that is not ours.

use alloc::vec::Vec;

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use proptest::prelude::*;

use crate::answer::{echo, port_unreachable, reset};

const CLIENT: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xc8];
const VIP: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

/// What a request has below its transport header: MAC addresses, two tags if asked.
fn below(tagged: bool) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC);
    if tagged {
        ethernet
            .double_vlan(VlanId::try_new(7).unwrap(), VlanId::try_new(20).unwrap())
            .ipv6(CLIENT, VIP, 3)
    } else {
        ethernet.ipv6(CLIENT, VIP, 3)
    }
}

/// The answer's addresses, which must be the request's turned round; its tags are the request's.
fn read<'a>(answer: &'a [u8], request: &[u8], tagged: bool) -> SlicedPacket<'a> {
    let packet = SlicedPacket::from_ethernet(answer).expect("a packet");
    assert_eq!(answer[..6], request[6..12]);
    assert_eq!(answer[6..12], request[..6]);
    let network = if tagged { 22 } else { 14 };
    assert_eq!(answer[12..network], request[12..network]);
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("no IPv6");
    };
    let header = ip.header();
    assert_eq!((header.source(), header.destination()), (VIP, CLIENT));
    assert_eq!(header.hop_limit(), 64);
    assert_eq!(
        usize::from(header.payload_length()),
        answer.len() - network - 40,
        "nothing behind the packet"
    );
    packet
}

/// 0 where the checksum of an ICMPv6 message is right.
fn residue(message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&VIP[..], &CLIENT, &length, &[0, 0, 0, IpNumber::IPV6_ICMP.0]].concat();
    !sum16(&[&pseudo[..], message].concat())
}

fn sum16(octets: &[u8]) -> u16 {
    let mut total: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap()
}

proptest! {
    #[test]
    fn a_segment_over_ipv6_is_reset(
        tagged: bool, sequence: u32, acknowledged in proptest::option::of(any::<u32>()), syn: bool, fin: bool,
        payload in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut segment = below(tagged).tcp(40_000, 80, sequence, 1000);
        if let Some(number) = acknowledged {
            segment = segment.ack(number);
        }
        if syn {
            segment = segment.syn();
        }
        if fin {
            segment = segment.fin();
        }
        let mut request = Vec::new();
        segment.write(&mut request, &payload).unwrap();
        let mut answer = request.clone();
        prop_assert!(reset(&mut answer).is_some());
        let packet = read(&answer, &request, tagged);
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
            panic!("no TCP");
        };
        prop_assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.rst()), (80, 40_000, true));
        prop_assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(VIP, CLIENT).unwrap());
        match acknowledged {
            Some(number) => prop_assert_eq!((tcp.sequence_number(), tcp.ack()), (number, false)),
            None => {
                let octets = u32::try_from(payload.len()).unwrap() + u32::from(syn) + u32::from(fin);
                prop_assert_eq!(
                    (tcp.acknowledgment_number(), tcp.ack()),
                    (sequence.wrapping_add(octets), true)
                );
            }
        }
    }

    #[test]
    fn a_packet_over_ipv6_is_unreachable(
        tagged: bool, is_udp: bool, payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut request = Vec::new();
        if is_udp {
            below(tagged).udp(40_000, 53).write(&mut request, &payload).unwrap();
        } else {
            below(tagged).tcp(40_000, 80, 1, 1000).syn().write(&mut request, &payload).unwrap();
        }
        let mut answer = request.clone();
        prop_assert!(port_unreachable(&mut answer).is_some());
        let packet = read(&answer, &request, tagged);
        let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else {
            panic!("no ICMPv6");
        };
        prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 4));
        prop_assert_eq!(residue(icmp.slice()), 0);
        let network = if tagged { 22 } else { 14 };
        let quoted = icmp.payload();
        prop_assert_eq!(quoted, &request[network..network + quoted.len()]);
        prop_assert!(quoted.len() >= 48 && quoted.len() <= 128);
    }

    #[test]
    fn an_echo_request_over_ipv6_gets_its_reply(
        tagged: bool, id: u16, sequence: u16, payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut request = Vec::new();
        below(tagged).icmpv6_echo_request(id, sequence).write(&mut request, &payload).unwrap();
        let mut answer = request.clone();
        prop_assert!(echo(&mut answer).is_some());
        let packet = read(&answer, &request, tagged);
        let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else {
            panic!("no ICMPv6");
        };
        prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (129, 0));
        prop_assert_eq!(residue(icmp.slice()), 0);
        prop_assert_eq!(icmp.payload(), &payload[..]);
    }

    #[test]
    fn an_echo_request_over_ipv4_gets_its_reply(
        ttl: u8, id: u16, sequence: u16, payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut request = Vec::new();
        PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC)
            .ipv4([192, 168, 1, 200], [192, 168, 2, 100], ttl)
            .icmpv4_echo_request(id, sequence)
            .write(&mut request, &payload)
            .unwrap();
        let mut answer = request.clone();
        prop_assert!(echo(&mut answer).is_some());
        let packet = SlicedPacket::from_ethernet(&answer).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else {
            panic!("no IPv4");
        };
        let header = ip.header();
        prop_assert_eq!((header.source(), header.destination()), ([192, 168, 2, 100], [192, 168, 1, 200]));
        prop_assert_eq!((header.ttl(), sum16(header.slice())), (64, 0xffff));
        let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else {
            panic!("no ICMP");
        };
        prop_assert_eq!((icmp.type_u8(), sum16(icmp.slice())), (0, 0xffff));
        prop_assert_eq!(icmp.payload(), &payload[..]);
    }

    #[test]
    fn any_bytes_over_ipv6_are_answered_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0..64u8,
    ) {
        let mut frame = Vec::from([2, 0, 0, 0, 0, 10, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, first]);
        frame.extend(bytes);
        let _ = reset(&mut frame.clone());
        let _ = port_unreachable(&mut frame.clone());
        let _ = echo(&mut frame);
    }
}

#[test]
fn nobody_is_answered_who_is_not_one_host() {
    for client in [[0; 16], [0xff; 16]] {
        let mut request = Vec::new();
        PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC)
            .ipv6(client, VIP, 3)
            .tcp(1, 80, 1, 1)
            .syn()
            .write(&mut request, &[])
            .unwrap();
        assert_eq!(reset(&mut request.clone()), None);
        assert_eq!(port_unreachable(&mut request.clone()), None);
        assert_eq!(echo(&mut request), None);
    }
}
