//! Requests and solicitations, answered or left alone; the answers are read by a parser that is not ours.

use alloc::{vec, vec::Vec};

use etherparse::{Icmpv6Slice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::{
    abi::control_flag,
    director::decide,
    maps::memory::Memory,
    reason::Reason::{ArpAnswered, NeighbourAnswered, NotIp, NotUnicast, OtherHost, OtherProtocol},
};

const INGRESS: u32 = 3;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 10];
const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const CLIENT: [u8; 4] = [192, 168, 2, 1];
const VIP: [u8; 4] = [192, 168, 2, 100];
const OTHER: [u8; 4] = [192, 168, 2, 101];
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const VIP6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0xd4];
const GROUP6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xb2, 0xc3, 0xd4];
const GROUP_MAC: [u8; 6] = [0x33, 0x33, 0xff, 0xb2, 0xc3, 0xd4];
const NOBODY: [u8; 16] = [0; 16];
const TAGS: [&[u8]; 3] = [&[], &[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]];

fn director(flags: u64) -> Memory {
    let mut maps = Memory::new(16, 4, 4);
    maps.control.flags.store(control_flag::ANNOUNCE);
    let row = &maps.interfaces[INGRESS as usize];
    row.if_index.store(u64::from(INGRESS));
    row.macs[0].store(Mac::from_octets(OWN).0);
    maps.vips = vec![
        (Address::from_ipv4(u32::from_be_bytes(VIP)), flags),
        (Address::from_octets(VIP6), flags),
    ];
    maps
}

const ANNOUNCED: u64 = vip_flag::USED | vip_flag::ANNOUNCED;

fn arp(to: [u8; 6], tags: &[u8], asker: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &ASKER, &asker, &[0; 6], &target];
    let mut frame = [&to[..], &ASKER, tags, &[8, 6], &packet.concat()].concat();
    frame.resize(60, 0);
    frame
}

/// The message's checksum is right, whatever it had before.
fn icmpv6(source: [u8; 16], destination: [u8; 16], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let total = pseudo(
        Address::from_octets(source),
        Address::from_octets(destination),
        message.len(),
    );
    let check = checksum(sum(total, &message));
    message[2..4].copy_from_slice(&check);
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let header = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &source, &destination];
    [header.concat(), message].concat()
}

fn solicitation(to: [u8; 6], tags: &[u8], packet: &[u8]) -> Vec<u8> {
    [&to[..], &ASKER, tags, &[0x86, 0xdd], packet].concat()
}

/// A solicitation's message about the virtual address, with these options.
fn message(options: &[u8]) -> Vec<u8> {
    [&[135, 0, 0, 0, 0, 0, 0, 0][..], &VIP6, options].concat()
}

const OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];
const NONCE: [u8; 8] = [14, 1, 9, 8, 7, 6, 5, 4];

fn reason(maps: &Memory, frame: &[u8]) -> Reason {
    decide(frame, maps, INGRESS).reason
}

fn answered(maps: &Memory, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    answer(&mut frame, maps, INGRESS).expect("it is answered");
    frame
}

#[test]
fn a_request_is_answered_with_the_interfaces_address() {
    let maps = director(ANNOUNCED);
    for tags in TAGS {
        for to in [BROADCAST, OWN] {
            for asker in [CLIENT, [0; 4]] {
                let request = arp(to, tags, asker, VIP);
                assert_eq!(reason(&maps, &request), ArpAnswered);
                let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &OWN, &VIP, &ASKER, &asker];
                let mut expected = [&ASKER[..], &OWN, tags, &[8, 6], &reply.concat()].concat();
                expected.resize(60, 0);
                assert_eq!(answered(&maps, &request), expected);
            }
        }
    }
}

#[test]
fn what_is_not_announced_or_makes_no_sense_is_left_to_the_host() {
    let maps = director(ANNOUNCED);
    let good = arp(BROADCAST, &[], CLIENT, VIP);
    let mut cases = vec![
        ("another address", arp(BROADCAST, &[], CLIENT, OTHER)),
        ("somebody claims it", arp(BROADCAST, &[], VIP, VIP)),
        ("from a group", arp(BROADCAST, &[], [224, 0, 0, 1], VIP)),
        ("from loopback", arp(BROADCAST, &[], [127, 0, 0, 1], VIP)),
    ];
    for (name, at, value) in [
        ("a reply", 21, 2),
        ("another hardware", 15, 6),
        ("another protocol", 17, 6),
        ("another length", 18, 8),
        ("a group's MAC address", 22, 3),
        ("a group as sender", 6, 3),
    ] {
        let mut frame = good.clone();
        frame[at] = value;
        cases.push((name, frame));
    }
    for (name, frame) in cases {
        assert_eq!(reason(&maps, &frame), NotUnicast, "{name}");
    }
    assert_eq!(reason(&maps, &arp(OWN, &[], CLIENT, OTHER)), NotIp);
    assert_eq!(
        reason(&maps, &arp([2; 6], &[], CLIENT, VIP)),
        NotIp,
        "another host's"
    );
    for end in 14..42 {
        assert_eq!(reason(&maps, &good[..end]), NotUnicast, "cut at {end}");
    }
    assert_eq!(decide(&good[..], &maps, INGRESS + 1).reason, NotUnicast);

    for flags in [vip_flag::USED, ANNOUNCED | vip_flag::LOCAL] {
        assert_eq!(reason(&director(flags), &good), NotUnicast, "{flags}");
    }
    maps.control.flags.store(0);
    assert_eq!(reason(&maps, &good), NotUnicast, "the option is off");
}

/// An advertisement's destination, its flags and its target; its checksum is right.
fn read(frame: &[u8], tags: &[u8]) -> ([u8; 16], u8) {
    assert_eq!(frame[6..12], OWN);
    assert_eq!(&frame[12..12 + tags.len()], tags);
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("not IPv6: {packet:?}");
    };
    let header = ip.header();
    assert_eq!((header.source(), header.hop_limit()), (VIP6, 255));
    assert_eq!(
        usize::from(header.payload_length()),
        frame.len() - tags.len() - 54
    );
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else {
        panic!("not ICMPv6: {packet:?}");
    };
    let message: &Icmpv6Slice<'_> = icmp;
    assert!(message.is_checksum_valid(header.source(), header.destination()));
    let octets = message.slice();
    assert_eq!((octets[0], octets[1], octets.len()), (136, 0, 32));
    assert_eq!(octets[8..24], VIP6);
    assert_eq!(octets[24..], [2, 1, 2, 0, 0, 0, 0, 10]);
    (header.destination(), octets[4])
}

#[test]
fn a_solicitation_is_answered_to_who_asks() {
    let maps = director(ANNOUNCED);
    for tags in TAGS {
        for (mac, to, otherwise) in [(GROUP_MAC, GROUP6, NotUnicast), (OWN, VIP6, OtherProtocol)] {
            for options in [&[][..], &OPTION, &[OPTION, NONCE].concat()] {
                let packet = icmpv6(CLIENT6, to, &message(options));
                let frame = solicitation(mac, tags, &packet);
                assert_eq!(reason(&maps, &frame), NeighbourAnswered);
                let answer = answered(&maps, &frame);
                assert_eq!(answer[..6], ASKER);
                assert_eq!(read(&answer, tags), (CLIENT6, 0x60), "solicited, override");
                assert_eq!(reason(&director(vip_flag::USED), &frame), otherwise);
            }
        }
    }
}

#[test]
fn a_probe_is_answered_to_everybody() {
    let maps = director(ANNOUNCED);
    for options in [&[][..], &NONCE] {
        let frame = solicitation(GROUP_MAC, &[], &icmpv6(NOBODY, GROUP6, &message(options)));
        assert_eq!(reason(&maps, &frame), NeighbourAnswered);
        let answer = answered(&maps, &frame);
        assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(read(&answer, &[]), (ALL_NODES.octets(), 0x20), "override alone");
    }
}

#[test]
fn a_solicitation_that_is_not_valid_is_left_to_the_host() {
    let maps = director(ANNOUNCED);
    let about = |address: [u8; 16]| [&[135, 0, 0, 0, 0, 0, 0, 0][..], &address].concat();
    let with = |at: usize, value: u8| {
        let mut message = message(&OPTION);
        message[at] = value;
        message
    };
    let cases = [
        ("another type", icmpv6(CLIENT6, GROUP6, &with(0, 136))),
        ("a code", icmpv6(CLIENT6, GROUP6, &with(1, 1))),
        ("another address", icmpv6(CLIENT6, GROUP6, &about(CLIENT6))),
        ("somebody claims it", icmpv6(VIP6, GROUP6, &message(&OPTION))),
        ("from a group", icmpv6(GROUP6, GROUP6, &message(&[]))),
        (
            "to another group",
            icmpv6(CLIENT6, ALL_NODES.octets(), &message(&OPTION)),
        ),
        (
            "a probe with a MAC address",
            icmpv6(NOBODY, GROUP6, &message(&OPTION)),
        ),
        (
            "a probe that is not to the group",
            icmpv6(NOBODY, VIP6, &message(&[])),
        ),
        ("an option of no length", icmpv6(CLIENT6, GROUP6, &with(25, 0))),
        (
            "an option that is too long",
            icmpv6(CLIENT6, GROUP6, &with(25, 2)),
        ),
        ("half an option", icmpv6(CLIENT6, GROUP6, &message(&OPTION[..4]))),
        (
            "five options",
            icmpv6(CLIENT6, GROUP6, &message(&OPTION.repeat(5))),
        ),
        ("no target", icmpv6(CLIENT6, GROUP6, &message(&[])[..16])),
    ];
    for (name, packet) in cases {
        let frame = solicitation(GROUP_MAC, &[], &packet);
        assert_eq!(reason(&maps, &frame), NotUnicast, "{name}");
    }
    let good = icmpv6(CLIENT6, GROUP6, &message(&OPTION));
    for at in [7, 42, 43, 70] {
        let mut packet = good.clone();
        packet[at] ^= 1;
        let frame = solicitation(GROUP_MAC, &[], &packet);
        assert_eq!(
            reason(&maps, &frame),
            NotUnicast,
            "hop limit or checksum, at {at}"
        );
    }
    let frame = solicitation(GROUP_MAC, &[], &good);
    for end in 14..frame.len() {
        assert_eq!(reason(&maps, &frame[..end]), NotUnicast, "cut at {end}");
    }
}

#[test]
fn what_is_told_unasked_goes_to_everybody() {
    let own = Mac::from_octets(OWN);
    let frame = unsolicited(Address::from_ipv4(u32::from_be_bytes(VIP)), own);
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OWN, &VIP, &[0; 6], &VIP];
    assert_eq!(frame, [&BROADCAST[..], &OWN, &[8, 6], &packet.concat()].concat());
    let frame = unsolicited(Address::from_octets(VIP6), own);
    assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(read(&frame, &[]), (ALL_NODES.octets(), 0x20));
    // Another director with the same address is not asked, and does not answer.
    assert_eq!(reason(&director(ANNOUNCED), &frame), NotUnicast);
}

#[test]
fn a_packet_for_another_host_stays_so() {
    let maps = director(ANNOUNCED);
    maps.interfaces[INGRESS as usize].macs[0].store(Mac::from_octets([2; 6]).0);
    let frame = solicitation(OWN, &[], &icmpv6(CLIENT6, VIP6, &message(&OPTION)));
    assert_ne!(reason(&maps, &frame), NeighbourAnswered);
    assert_ne!(reason(&maps, &frame), OtherHost, "it is no packet of a service");
}

proptest! {
    /// However a request lies: what is answered is answered rightly.
    #[test]
    fn any_damage_is_answered_rightly_or_not_at_all(
        is_arp: bool,
        tags in 0..3usize,
        lies in proptest::collection::vec((12..100usize, any::<u8>()), 0..4),
        end in 14..120usize,
    ) {
        let maps = director(ANNOUNCED);
        let mut frame = if is_arp {
            arp(BROADCAST, TAGS[tags], CLIENT, VIP)
        } else {
            solicitation(GROUP_MAC, TAGS[tags], &icmpv6(CLIENT6, GROUP6, &message(&OPTION)))
        };
        for (at, lie) in lies {
            if let Some(octet) = frame.get_mut(at) {
                *octet = lie;
            }
        }
        frame.truncate(end);
        match reason(&maps, &frame) {
            NeighbourAnswered => {
                let tags = parse::ethernet(&frame[..]).unwrap().2 - 14;
                let answer = answered(&maps, &frame);
                let (_, flags) = read(&answer, &frame[12..12 + tags]);
                prop_assert!(flags == 0x60 || flags == 0x20);
            }
            ArpAnswered => {
                let at = parse::ethernet(&frame[..]).unwrap().2;
                let answer = answered(&maps, &frame);
                prop_assert_eq!(&answer[at..at + 8], &[0, 1, 8, 0, 6, 4, 0, 2]);
                prop_assert_eq!(&answer[at + 8..at + 14], &OWN);
                prop_assert_eq!(&answer[at + 14..at + 18], &VIP);
                prop_assert_eq!(&answer[at + 18..at + 28], &frame[at + 8..at + 18]);
            }
            _ => {}
        }
    }
}
