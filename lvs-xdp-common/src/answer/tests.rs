//! The answers, as another implementation reads them.

use alloc::{vec, vec::Vec};

use etherparse::{
    Icmpv4Slice, IpHeaders, IpNumber, Ipv4Header, Ipv4HeaderSlice, LinkExtSlice, LinkSlice, NetSlice,
    PacketBuilder, SlicedPacket, TcpHeader, TcpSlice, TransportSlice, VlanHeader,
};
use proptest::prelude::*;

use super::*;
use crate::parse;

mod any_family;

const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 2, 200];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 2, 1];
const CLIENT: [u8; 4] = [192, 168, 1, 200];
const VIP: [u8; 4] = [192, 168, 2, 100];

/// A packet of the client's, to be answered.
#[derive(Debug, Clone)]
struct Request {
    /// The tag control information of an 802.1Q tag, less the drop eligibility.
    vlan: Option<u16>,
    /// Words of IP options.
    options: u8,
    /// Words of TCP options.
    tcp_options: u8,
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
    payload: usize,
    /// Bytes behind the packet, which bring a short frame to its minimum.
    padding: usize,
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

impl Request {
    fn new(flags: u8) -> Self {
        Self {
            vlan: None,
            options: 0,
            tcp_options: 0,
            sequence: 0x8000_0001,
            acknowledgment: 0xfedc_ba98,
            flags,
            payload: 0,
            padding: 0,
        }
    }

    fn ip(&self, protocol: IpNumber) -> IpHeaders {
        let mut header = Ipv4Header::new(0, 61, protocol, CLIENT, VIP).expect("it is short");
        header.options = [1u8; 40][..usize::from(self.options) * 4]
            .try_into()
            .expect("whole words");
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    }

    fn tcp(&self) -> Vec<u8> {
        let mut header = TcpHeader::new(40_000, 80, self.sequence, 1024);
        header.acknowledgment_number = self.acknowledgment;
        header
            .set_options_raw(&[1u8; 40][..usize::from(self.tcp_options) * 4])
            .expect("whole words");
        let payload = vec![b'x'; self.payload];
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(ROUTER, DIRECTOR);
        let result = match self.vlan {
            Some(tag) => builder
                .vlan(VlanHeader::Single(vlan(tag)))
                .ip(self.ip(IpNumber::TCP))
                .tcp_header(header)
                .write_to_vec(&mut frame, &payload),
            None => builder
                .ip(self.ip(IpNumber::TCP))
                .tcp_header(header)
                .write_to_vec(&mut frame, &payload),
        };
        result.expect("it can be written");
        let transport = self.transport();
        frame[transport + 13] = self.flags;
        self.pad(frame)
    }

    fn udp(&self) -> Vec<u8> {
        let payload = vec![b'x'; self.payload];
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(ROUTER, DIRECTOR);
        let result = match self.vlan {
            Some(tag) => builder
                .vlan(VlanHeader::Single(vlan(tag)))
                .ip(self.ip(IpNumber::UDP))
                .udp(40_000, 53)
                .write_to_vec(&mut frame, &payload),
            None => builder
                .ip(self.ip(IpNumber::UDP))
                .udp(40_000, 53)
                .write_to_vec(&mut frame, &payload),
        };
        result.expect("it can be written");
        self.pad(frame)
    }

    fn pad(&self, mut frame: Vec<u8>) -> Vec<u8> {
        frame.extend(core::iter::repeat_n(0, self.padding));
        frame
    }

    fn network(&self) -> usize {
        if self.vlan.is_some() { 18 } else { 14 }
    }

    fn transport(&self) -> usize {
        self.network() + 20 + usize::from(self.options) * 4
    }
}

fn vlan(tag: u16) -> etherparse::SingleVlanHeader {
    etherparse::SingleVlanHeader::from_bytes([tag.to_be_bytes()[0], tag.to_be_bytes()[1], 8, 0])
}

fn any_request() -> impl Strategy<Value = Request> {
    (
        proptest::option::of(any::<u16>()),
        0..=10u8,
        0..=10u8,
        any::<u32>(),
        any::<u32>(),
        any::<u8>(),
        0..1400usize,
        0..20usize,
    )
        .prop_map(
            |(vlan, options, tcp_options, sequence, acknowledgment, flags, payload, padding)| Request {
                vlan,
                options,
                tcp_options,
                sequence,
                acknowledgment,
                flags,
                payload,
                padding,
            },
        )
}

/// The Internet checksum of octets that hold their own: 0 where it is right (RFC 1071).
fn residue(octets: &[u8]) -> u16 {
    let mut sum: u64 = octets
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("16 bits")
}

/// What holds for every answer: whole, to the host that sent the frame, from the virtual address, with right
/// checksums and nothing behind it. Its IP payload.
fn read<'a>(answer: &'a [u8], request: &[u8]) -> SlicedPacket<'a> {
    let packet = SlicedPacket::from_ethernet(answer).expect("a packet");
    let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else {
        panic!("not Ethernet: {packet:?}");
    };
    assert_eq!((ethernet.destination(), ethernet.source()), (ROUTER, DIRECTOR));
    let tagged = request[12..14] == [0x81, 0];
    let tag = packet.link_exts.iter().find_map(|extension| match extension {
        LinkExtSlice::Vlan(tag) => Some(tag.slice()),
        LinkExtSlice::Macsec(_) => None,
    });
    assert_eq!(
        tag.map(|tag| &tag[..4]),
        tagged.then(|| &request[14..18]),
        "the tag stays"
    );
    let ip = ip(&packet);
    assert_eq!((ip.source(), ip.destination()), (VIP, CLIENT));
    assert_eq!(residue(ip.slice()), 0);
    assert_eq!((ip.ihl(), ip.ttl(), ip.dont_fragment()), (5, 64, true));
    assert!(!ip.is_fragmenting_payload());
    let network = if tagged { 18 } else { 14 };
    assert_eq!(answer.len(), network + usize::from(ip.total_len()));
    packet
}

fn ip<'a>(packet: &'a SlicedPacket<'_>) -> Ipv4HeaderSlice<'a> {
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => ip.header(),
        other => panic!("not IPv4: {other:?}"),
    }
}

fn tcp<'a>(packet: &SlicedPacket<'a>) -> TcpSlice<'a> {
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.clone(),
        other => panic!("not TCP: {other:?}"),
    }
}

fn icmp<'a>(packet: &SlicedPacket<'a>) -> Icmpv4Slice<'a> {
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.clone(),
        other => panic!("not ICMP: {other:?}"),
    }
}

/// The reset of a request, in (sequence number, acknowledgment number where there is one).
fn reset_of(request: &Request) -> (u32, Option<u32>) {
    let frame = request.tcp();
    let mut answer = frame.clone();
    reset(&mut answer).expect("it is answered");
    let packet = read(&answer, &frame);
    let tcp = tcp(&packet);
    assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
    assert!(tcp.rst() && !(tcp.syn() || tcp.fin() || tcp.psh() || tcp.urg()));
    assert_eq!((tcp.data_offset(), tcp.payload().len()), (5, 0));
    assert_eq!(
        tcp.checksum(),
        tcp.calc_checksum_ipv4(VIP, CLIENT).expect("it is short")
    );
    if !tcp.ack() {
        assert_eq!(tcp.acknowledgment_number(), 0);
    }
    (
        tcp.sequence_number(),
        tcp.ack().then_some(tcp.acknowledgment_number()),
    )
}

#[test]
fn a_segment_that_acknowledges_is_reset_where_the_client_is() {
    for flags in [ACK, ACK | PSH, ACK | FIN, ACK | SYN] {
        for payload in [0, 10] {
            let request = Request {
                payload,
                ..Request::new(flags)
            };
            assert_eq!(reset_of(&request), (0xfedc_ba98, None), "{request:?}");
        }
    }
}

#[test]
fn a_segment_that_does_not_is_acknowledged() {
    for (flags, payload, counts) in [
        (SYN, 0, 1),
        (FIN, 0, 1),
        (SYN | FIN, 0, 2),
        (0, 0, 0),
        (PSH, 100, 100),
        (SYN, 7, 8),
        (FIN, 7, 8),
    ] {
        for sequence in [5, u32::MAX] {
            let request = Request {
                payload,
                sequence,
                ..Request::new(flags)
            };
            assert_eq!(
                reset_of(&request),
                (0, Some(sequence.wrapping_add(counts))),
                "{request:?}"
            );
        }
    }
}

#[test]
fn tags_options_and_padding_change_nothing() {
    for vlan in [None, Some(0x2005)] {
        for options in [0, 1, 10] {
            for (tcp_options, padding) in [(0, 6), (5, 0), (10, 3)] {
                let request = Request {
                    vlan,
                    options,
                    tcp_options,
                    padding,
                    payload: 3,
                    ..Request::new(SYN)
                };
                assert_eq!(reset_of(&request), (0, Some(0x8000_0005)), "{request:?}");
            }
        }
    }
}

#[test]
fn a_reset_is_not_answered() {
    for flags in [RST, RST | ACK, RST | SYN] {
        let frame = Request::new(flags).tcp();
        let mut answer = frame.clone();
        assert_eq!(reset(&mut answer), None);
        assert_eq!(answer, frame);
    }
}

/// Port unreachable for a frame; what it quotes is the frame's own beginning.
fn unreachable_of(frame: &[u8], request: &Request) {
    let mut answer = frame.to_vec();
    port_unreachable(&mut answer).expect("it is answered");
    let packet = read(&answer, frame);
    let icmp = icmp(&packet);
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 3), "port unreachable");
    assert_eq!(residue(icmp.slice()), 0);
    assert_eq!(icmp.bytes5to8(), [0; 4]);
    assert_eq!(
        icmp.payload(),
        &frame[request.network()..request.transport() + 8],
        "RFC 792: header and 8 octets"
    );
}

#[test]
fn a_packet_without_a_server_is_answered_with_port_unreachable() {
    for vlan in [None, Some(0x2005)] {
        for options in [0, 1, 10] {
            for (payload, padding) in [(0, 18), (0, 0), (9, 0), (1400, 0)] {
                let request = Request {
                    vlan,
                    options,
                    payload,
                    padding,
                    ..Request::new(SYN)
                };
                unreachable_of(&request.udp(), &request);
                unreachable_of(&request.tcp(), &request);
            }
        }
    }
}

/// What the director never decides to answer may come here whole or in part: it is answered rightly or not at all.
#[test]
fn a_frame_that_ends_early_is_not_answered() {
    let request = Request {
        vlan: Some(5),
        options: 2,
        ..Request::new(ACK)
    };
    let whole = request.tcp();
    let (network, transport) = (request.network(), request.transport());
    for end in 0..whole.len() {
        let mut cut = whole[..end].to_vec();
        let is_enough = end >= transport + 14 && end >= network + 40;
        assert_eq!(reset(&mut cut).is_some(), is_enough, "reset, cut at {end}");
        let mut cut = whole[..end].to_vec();
        let is_enough = end >= transport + 8;
        assert_eq!(
            port_unreachable(&mut cut).is_some(),
            is_enough,
            "unreachable, cut at {end}"
        );
    }
}

proptest! {
    #[test]
    fn every_reset_is_a_valid_segment(request in any_request()) {
        if request.flags & RST != 0 {
            prop_assert_eq!(reset(&mut request.tcp()), None);
        } else if request.flags & ACK != 0 {
            prop_assert_eq!(reset_of(&request), (request.acknowledgment, None));
        } else {
            let length = u32::try_from(request.payload).unwrap()
                + u32::from(request.flags & SYN != 0)
                + u32::from(request.flags & FIN != 0);
            prop_assert_eq!(reset_of(&request), (0, Some(request.sequence.wrapping_add(length))));
        }
    }

    #[test]
    fn every_port_unreachable_is_a_valid_message(request in any_request()) {
        unreachable_of(&request.udp(), &request);
        unreachable_of(&request.tcp(), &request);
    }

    /// Of every frame that is a packet to the director, however it lies, an answer is a valid packet.
    #[test]
    fn frames_that_lie_are_answered_rightly_or_not_at_all(
        request in any_request(),
        lies in proptest::collection::vec((12..60usize, any::<u8>()), 0..4),
        end in 0..200usize,
        is_udp: bool,
    ) {
        let mut frame = if is_udp { request.udp() } else { request.tcp() };
        for (at, lie) in lies {
            // Addresses apart, which `read` knows.
            let address = request.network() + 12..request.network() + 20;
            if at < frame.len() && !address.contains(&at) {
                frame[at] = lie;
            }
        }
        frame.truncate(end.max(14));
        let (mut as_reset, mut as_unreachable) = (frame.clone(), frame.clone());
        let answers = (reset(&mut as_reset), port_unreachable(&mut as_unreachable));
        if let Ok(packet) = parse::parse(&frame[..]) {
            if packet.protocol == IpProto::TCP && answers.0.is_some() {
                let packet = read(&as_reset, &frame);
                let tcp = tcp(&packet);
                prop_assert!(tcp.rst());
                prop_assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(VIP, CLIENT).unwrap());
            }
            if answers.1.is_some() {
                let packet = read(&as_unreachable, &frame);
                prop_assert_eq!(residue(icmp(&packet).slice()), 0);
            }
        }
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = reset(&mut bytes.clone());
        let _ = port_unreachable(&mut bytes.clone());
    }
}
