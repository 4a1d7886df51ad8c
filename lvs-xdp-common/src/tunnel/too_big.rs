//! The answers to a packet that does not fit into a tunnel.

use network_types::ip::Ipv6Hdr;

use crate::{
    answer::{self, checksum, sum},
    director,
    frame::{Resize, rewrite_macs},
    maps::Maps,
    packet::{EtherType, IpProto, Mac, Packet},
    parse::{self, Ipv4, Ipv6, TAG},
    reason::Reason,
};

/// The shortest packet that every IPv4 network takes whole (RFC 791, 3.1).
const LEAST_IPV4: u32 = 68;
/// The shortest MTU of IPv6 (RFC 8200, 5): a sender goes no lower.
const LEAST_IPV6: u32 = 1280;
/// The offset of a fragment (RFC 791, 3.1).
const OFFSET_MASK: u16 = 0x1fff;
const TTL: u8 = 64;
const ICMPV6_TOO_BIG: u8 = 2;
const ICMPV6: usize = 8;
/// Octets of the packet that ICMPv6 quotes. A packet that does not fit is longer.
const QUOTED: usize = 128;

/// Answers a frame whose packet is too long: `fits` is the length in bytes that is not. The number of
/// [`Reason::TooBig`] where the frame has become the answer, else that of [`Reason::TooBigQuiet`].
#[inline(always)]
pub fn refuse<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, fits: u32) -> u32 {
    let answered = answer_it(frame, maps, fits);
    answered.map_or(Reason::TooBigQuiet, |()| Reason::TooBig) as u32
}

#[inline(always)]
fn answer_it<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, fits: u32) -> Option<()> {
    // Neither an error about an error, nor about a later fragment (RFC 1122, 3.2.2; RFC 4443, 2.4).
    let may_be_told = |packet: &Packet| {
        !matches!(packet.protocol, IpProto::ICMP | IpProto::ICMPV6) && packet.source.is_one_host()
    };
    let (ether_type, at) = parse::network(frame)?;
    if ether_type == EtherType::IPV4 {
        let header = Ipv4::read_cut(frame, at).ok()?;
        let is_later = header.fragment & OFFSET_MASK != 0;
        if is_later || fits < LEAST_IPV4 || !may_be_told(&header.packet) || !director::may_answer(maps) {
            return None;
        }
        answer::unreachable(
            frame,
            answer::ICMP_FRAGMENTATION_NEEDED,
            u16::try_from(fits).ok()?,
        )
    } else {
        let packet = Ipv6::read_cut(frame, at).ok()?.packet;
        if fits < LEAST_IPV6 || !may_be_told(&packet) || !director::may_answer(maps) {
            return None;
        }
        packet_too_big(frame, at, fits)
    }
}

/// Makes a packet over IPv6 the packet too big that answers it (RFC 4443, 3.2).
#[inline(always)]
fn packet_too_big<F: Resize + ?Sized>(frame: &mut F, at: usize, fits: u32) -> Option<()> {
    let macs: [u8; 12] = frame.load(0)?;
    // Up to two tags and the type; behind fewer tags there is something else, which is written over.
    let tags: [u8; 2 * TAG + 2] = frame.load(12)?;
    let [_, client_high, client_low, high, low]: [[u8; 8]; 5] = frame.load(at)?;

    let length = (ICMPV6 + QUOTED) as u32;
    let mut total = u32::from(IpProto::ICMPV6.0) + length;
    for half in [client_high, client_low, high, low] {
        total = sum(total, &half);
    }
    let mut icmp = [0; ICMPV6];
    icmp[0] = ICMPV6_TOO_BIG;
    icmp[4..8].copy_from_slice(&fits.to_be_bytes());
    total = sum(total, &icmp);
    let mut quoted = 0;
    while quoted < QUOTED {
        // Each with a check of its own, which the compiler must not draw together: the verifier would not
        // know the sum of them.
        let word: [u8; 8] = frame.load(core::hint::black_box(at + quoted) & 0xff)?;
        total = sum(total, &word);
        quoted += 8;
    }
    let check = checksum(total);
    icmp[2..4].copy_from_slice(&check);

    let first = 6 << 60 | u64::from(length) << 16 | u64::from(IpProto::ICMPV6.0) << 8 | u64::from(TTL);
    frame.grow((Ipv6Hdr::LEN + ICMPV6) as u32)?;
    frame.store(12, tags)?;
    rewrite_macs(
        frame,
        Mac::from_octets([macs[6], macs[7], macs[8], macs[9], macs[10], macs[11]]),
        Mac::from_octets([macs[0], macs[1], macs[2], macs[3], macs[4], macs[5]]),
    )?;
    frame.store(at, [first.to_be_bytes(), high, low, client_high, client_low])?;
    frame.store(at + Ipv6Hdr::LEN, icmp)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 198")]
    frame.cut((at + Ipv6Hdr::LEN + ICMPV6 + QUOTED) as u32)
}
