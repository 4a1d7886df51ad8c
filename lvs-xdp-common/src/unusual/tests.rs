use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::maps::memory::Memory;

const CLIENT: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xc8];
const VIP: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];

/// An IPv6 frame whose first next header is `first`, with these octets behind its header.
fn frame(first: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = Vec::from([2, 0, 0, 0, 0, 10, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    frame.extend([first, 64]);
    frame.extend(CLIENT);
    frame.extend(VIP);
    frame.extend(rest);
    frame
}

const SYN: [u8; 20] = [
    0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
];
const DATAGRAM: [u8; 8] = [0x9c, 0x40, 0, 80, 0x20, 0, 0, 0];

fn maps() -> Memory {
    Memory::new(16, 4, 8)
}

fn seen(maps: &Memory, frame: &[u8]) -> Decision {
    Decision(look(frame, maps))
}

#[test]
fn a_packet_is_found_behind_extension_headers() {
    let hop = [43, 0, 1, 4, 0, 0, 0, 0];
    let routing = [60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let options = [51, 0, 1, 4, 0, 0, 0, 0];
    let authentication = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let rest = [&hop[..], &routing, &options, &authentication, &SYN].concat();
    let maps = maps();
    let seen = seen(&maps, &frame(0, &rest));
    assert!(seen.is_packet() && !seen.is_first_fragment());
    let packet = maps.unusual().unwrap().packet();
    assert_eq!(
        packet,
        Packet {
            source: Address::from_octets(CLIENT),
            destination: Address::from_octets(VIP),
            source_port: 40000,
            destination_port: 80,
            protocol: IpProto::TCP,
            signal: Signal(0x02),
            length: 40 + 44 + 20,
        }
    );
}

#[test]
fn chains_that_do_not_end_in_the_packet_are_malformed() {
    let rest = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &SYN].concat();
    let whole = frame(0, &rest);
    for end in 0..whole.len() {
        assert_eq!(
            seen(&maps(), &whole[..end]).reason(),
            Reason::Malformed,
            "cut at {end}"
        );
    }
    // A header that is longer than the packet says it is.
    let mut short = whole.clone();
    short[19] = 7;
    assert_eq!(seen(&maps(), &short).reason(), Reason::Malformed);
    let many: Vec<u8> = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    assert_eq!(
        seen(&maps(), &frame(60, &[&many[..], &SYN].concat())).reason(),
        Reason::TooManyHeaders
    );
}

#[test]
fn fragments_follow_the_first_one() {
    let maps = maps();
    let at = |offset: u8, more: u8, next: &[u8]| {
        let header = [17, 0, 0, offset << 3 | more, 0xde, 0xad, 0xbe, 0xef];
        frame(44, &[&header[..], next].concat())
    };
    // Before the first one nothing is known; of a virtual address that has a reason.
    assert_eq!(seen(&maps, &at(1, 1, &[7; 16])).reason(), Reason::NotForUs);
    let mut maps = maps;
    maps.vips.push((Address::from_octets(VIP), vip_flag::USED));
    assert_eq!(seen(&maps, &at(1, 1, &[7; 16])).reason(), Reason::FragmentUnknown);

    let first = seen(&maps, &at(0, 1, &DATAGRAM));
    assert!(first.is_packet() && first.is_first_fragment());
    assert_eq!(maps.unusual().unwrap().packet().destination_port, 80);
    maps.destinations[5].towards.store(destination_flag::USED);
    keep_fragment(&maps, 5);
    let later = seen(&maps, &at(1, 0, &[7; 16]));
    assert_eq!(
        (later.reason(), later.destination(), later.length()),
        (Reason::Fragment, 5, 64)
    );
    // Another packet's.
    let mut other = at(1, 0, &[7; 16]);
    other[58 + 3] = 0;
    assert_eq!(seen(&maps, &other).reason(), Reason::FragmentUnknown);
    // Removed, or too late.
    maps.destinations[5]
        .towards
        .store(destination_flag::USED | destination_flag::REMOVED);
    assert_eq!(seen(&maps, &at(1, 0, &[7; 16])).reason(), Reason::FragmentUnknown);
    maps.destinations[5].towards.store(destination_flag::USED);
    maps.pass_time(61);
    assert_eq!(seen(&maps, &at(1, 0, &[7; 16])).reason(), Reason::FragmentUnknown);
    // A fragment that is the whole packet is one.
    let atomic = seen(&maps, &at(0, 0, &[0x9c, 0x40, 0, 80, 0, 8, 0, 0]));
    assert!(atomic.is_packet() && !atomic.is_first_fragment());
}

#[test]
fn an_error_is_about_the_packet_in_it_turned_round() {
    let mut inner = frame(6, &SYN);
    inner.drain(..14);
    let (source, destination) = (8, 24);
    inner[source..source + 16].copy_from_slice(&VIP);
    inner[destination..destination + 16].copy_from_slice(&CLIENT);
    inner[40..44].copy_from_slice(&[0, 80, 0x9c, 0x40]);
    let maps = maps();
    let error = frame(58, &[&[2, 0, 0, 0, 0, 0, 5, 0][..], &inner].concat());
    let seen = seen(&maps, &error);
    assert_eq!((seen.reason(), seen.length()), (Reason::Related, 40 + 8 + 60));
    let packet = maps.unusual().unwrap().packet();
    assert_eq!(packet.source, Address::from_octets(CLIENT));
    assert_eq!(packet.destination, Address::from_octets(VIP));
    assert_eq!((packet.source_port, packet.destination_port), (40000, 80));

    // Not about a packet of the address that it came to.
    let mut stray = error;
    stray[14 + 40 + 8 + 8] = 0xfe;
    assert_eq!(Decision(look(&stray[..], &maps)).reason(), Reason::OtherProtocol);
}

#[test]
fn echo_is_the_hosts_own_but_for_addresses_that_it_has_not() {
    let request = frame(58, &[128, 0, 0, 0, 0, 1, 0, 1]);
    let mut maps = maps();
    assert_eq!(seen(&maps, &request).reason(), Reason::OtherProtocol);
    maps.vips.push((Address::from_octets(VIP), vip_flag::USED));
    assert_eq!(seen(&maps, &request).reason(), Reason::Echo);
    maps.vips[0].1 |= vip_flag::LOCAL;
    assert_eq!(seen(&maps, &request).reason(), Reason::OtherProtocol);
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_without_a_panic(
        kind in proptest::sample::select(&[[8u8, 0], [0x86, 0xdd]]),
        first in proptest::sample::select(&[0u8, 1, 6, 17, 43, 44, 51, 58, 60]),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
        at in 12..80usize, to: u8,
    ) {
        let mut frame = frame(first, &rest);
        frame[12..14].copy_from_slice(&kind);
        if kind == [8, 0] {
            frame[14] = 0x45;
            frame[23] = first;
        }
        let at = at % frame.len();
        frame[at] = to;
        let _ = look(&frame[..], &maps());
    }
}
