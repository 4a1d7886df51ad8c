use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, ip_number};
use proptest::prelude::*;

use super::*;

/// A frame as the kernel's helpers change it.
struct Bytes(Vec<u8>);

impl Bytes {
    /// RFC 1624, equation 3.
    fn update(&mut self, offset: usize, old: u32, new: u32) -> Option<()> {
        let [a, b] = self.load::<[u8; 2]>(offset)?;
        let words = |value: u32| [value >> 16, value & 0xffff];
        let mut total = u32::from(!u16::from_be_bytes([a, b]));
        total += words(old).into_iter().map(|word| !word & 0xffff).sum::<u32>();
        total += words(new).into_iter().sum::<u32>();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        let sum = !u16::try_from(total).unwrap();
        self.0[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        Some(())
    }
}

impl Packet for Bytes {
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..)?.get(..size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store(&mut self, offset: usize, new: u32, _is_summed: bool) -> Option<()> {
        self.0
            .get_mut(offset..)?
            .get_mut(..4)?
            .copy_from_slice(&new.to_be_bytes());
        Some(())
    }

    fn change_header_sum(&mut self, offset: usize, old: u32, new: u32) -> Option<()> {
        self.update(offset, old, new)
    }

    fn change_sum(&mut self, offset: usize, old: u32, new: u32, is_optional: bool) -> Option<()> {
        if is_optional && self.load::<[u8; 2]>(offset)? == [0; 2] {
            return Some(());
        }
        self.update(offset, old, new)
    }
}

const PORT: u16 = 40_001;
const SERVED: u16 = 80;

/// The host's address, the RIP and the VIP of a family.
fn addresses(is_ipv4: bool) -> [IpAddr; 3] {
    if is_ipv4 {
        [200, 220, 100].map(|last| Ipv4Addr::new(192, 168, 2, last).into())
    } else {
        [0x200, 0x220, 0x100].map(|last| Ipv6Addr::new(0xfd00, last, 3, 0, 0, last, 7, last).into())
    }
}

fn halves(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.to_bits()),
        IpAddr::V6(address) => Address::from_octets(address.octets()),
    }
}

fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => builder.ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, 64, ip_number::TCP, source.octets(), destination.octets())
                .unwrap(),
            Default::default(),
        )),
        (IpAddr::V6(source), IpAddr::V6(destination)) => builder.ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                hop_limit: 64,
                ..Default::default()
            },
            Default::default(),
        )),
        _ => panic!("two families"),
    }
}

fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = ip(from.0, to.0).tcp(from.1, to.1, 7, 1024).ack(9);
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(from.0, to.0)
        .udp(from.1, to.1)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// An ICMP error about a frame that the host has sent.
fn error(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let quoted = &about[ETHERNET..];
    if from.is_ipv4() {
        let kind = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
        ip(from, to).icmpv4(kind).write(&mut frame, quoted).unwrap();
    } else {
        let kind = Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
        ip(from, to).icmpv6(kind).write(&mut frame, quoted).unwrap();
    }
    frame
}

/// What becomes of a frame where one check of each protocol is under way; nothing where it is none's.
fn steered(frame: &[u8], direction: Direction, is_ipv4: bool) -> Option<Vec<u8>> {
    let [host, rip, vip] = addresses(is_ipv4).map(halves);
    let mut bytes = Bytes(frame.to_vec());
    let result = steer(&mut bytes, direction, |asked| {
        let known = [IpProto::TCP, IpProto::UDP].map(|protocol| key(host, PORT, protocol));
        known.contains(asked).then_some(row(rip, vip))
    });
    if result.is_none() {
        assert_eq!(bytes.0, frame, "what is no check's has not changed");
    }
    result.map(|()| bytes.0)
}

#[test]
fn questions_go_to_the_vip_and_answers_come_from_the_rip() {
    for is_ipv4 in [true, false] {
        let [host, rip, vip] = addresses(is_ipv4);
        for make in [tcp, udp] {
            for payload in [&b""[..], b"x", b"GET / HTTP/1.1"] {
                let here = (host, PORT);
                assert_eq!(
                    steered(&make(here, (rip, SERVED), payload), Direction::Out, is_ipv4),
                    Some(make(here, (vip, SERVED), payload))
                );
                let (answer, expected) = (
                    make((vip, SERVED), here, payload),
                    make((rip, SERVED), here, payload),
                );
                assert_eq!(steered(&answer, Direction::In, is_ipv4).as_ref(), Some(&expected));
                // As generic XDP may leave it.
                assert_eq!(
                    steered(&answer[ETHERNET..], Direction::In, is_ipv4).as_deref(),
                    Some(&expected[ETHERNET..])
                );
            }
        }
    }
}

#[test]
fn all_else_is_left_alone() {
    for is_ipv4 in [true, false] {
        let [host, rip, vip] = addresses(is_ipv4);
        for (frame, direction) in [
            (tcp((host, PORT + 1), (rip, SERVED), b""), Direction::Out),
            (tcp((host, PORT), (vip, SERVED), b""), Direction::Out),
            (tcp((vip, PORT), (rip, SERVED), b""), Direction::Out),
            (tcp((rip, SERVED), (host, PORT), b""), Direction::In),
            (tcp((vip, SERVED), (host, PORT + 1), b""), Direction::In),
            (tcp((vip, SERVED), (rip, PORT), b""), Direction::In),
            // The other way round.
            (tcp((vip, SERVED), (host, PORT), b""), Direction::Out),
            (tcp((host, PORT), (rip, SERVED), b""), Direction::In),
            (
                error(vip, host, &tcp((host, PORT), (rip, SERVED), b"")),
                Direction::In,
            ),
            (
                error(rip, host, &tcp((host, PORT), (vip, SERVED), b"")),
                Direction::Out,
            ),
        ] {
            assert_eq!(steered(&frame, direction, is_ipv4), None);
        }
        let mut no_ip = tcp((host, PORT), (rip, SERVED), b"");
        no_ip[12] = 0x88;
        assert_eq!(steered(&no_ip, Direction::Out, is_ipv4), None);
    }
    // A fragment has ports no more.
    let [host, rip, _] = addresses(true);
    let mut fragment = udp((host, PORT), (rip, SERVED), b"12345678");
    fragment[ETHERNET + 6] = 0x20;
    assert_eq!(steered(&fragment, Direction::Out, true), None);
}

#[test]
fn errors_are_about_what_the_host_has_sent() {
    for is_ipv4 in [true, false] {
        let [host, rip, vip] = addresses(is_ipv4);
        let router = if is_ipv4 {
            IpAddr::from([192, 168, 2, 1])
        } else {
            IpAddr::from([7; 16])
        };
        let sent = |to| udp((host, PORT), (to, SERVED), b"query");
        // The quoted transport checksum is that of the packet that was on the wire, and nobody's concern.
        let quoted = |mut about: Vec<u8>, sum: &[u8]| {
            let at = about.len() - b"query".len() - 2;
            about[at..at + 2].copy_from_slice(sum);
            about
        };
        let on_wire = sent(vip);
        let at = on_wire.len() - b"query".len() - 2;
        let sum = on_wire[at..at + 2].to_vec();
        for (from, seen_from) in [(vip, rip), (router, router), (rip, rip)] {
            assert_eq!(
                steered(&error(from, host, &on_wire), Direction::In, is_ipv4),
                Some(error(seen_from, host, &quoted(sent(rip), &sum))),
                "{from}"
            );
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without_one() {
    let [host, rip, vip] = addresses(true);
    let without = |to| {
        let mut frame = udp((host, PORT), (to, SERVED), b"query");
        frame[ETHERNET + 26..ETHERNET + 28].fill(0);
        frame
    };
    assert_eq!(steered(&without(rip), Direction::Out, true), Some(without(vip)));
}

proptest! {
    /// Frames that end anywhere, and with any octet changed: nothing panics.
    #[test]
    fn any_frame(
        is_ipv4 in any::<bool>(), is_error in any::<bool>(), is_out in any::<bool>(), end in 0usize..120,
        at in 0usize..120, octet in any::<u8>()
    ) {
        let [host, rip, vip] = addresses(is_ipv4);
        let sent = tcp((host, PORT), (if is_error { vip } else { rip }, SERVED), b"12345678");
        let mut frame = if is_error { error(vip, host, &sent) } else { sent };
        frame.truncate(end);
        if let Some(place) = frame.get_mut(at) {
            *place = octet;
        }
        let [host, rip, vip] = [host, rip, vip].map(halves);
        let known = [key(host, PORT, IpProto::TCP)];
        let mut bytes = Bytes(frame);
        let direction = if is_out { Direction::Out } else { Direction::In };
        let length = bytes.0.len();
        let _ = steer(&mut bytes, direction, |asked| known.contains(asked).then_some(row(rip, vip)));
        prop_assert_eq!(bytes.0.len(), length);
    }
}
