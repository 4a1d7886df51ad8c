//! The answers to a packet that does not fit into a tunnel.

use crate::{
    answer, director,
    frame::Resize,
    maps::Maps,
    packet::{EtherType, IpProto, Packet},
    parse::{self, Ipv4, Ipv6, OFFSET_MASK},
    reason::Reason,
};

/// The shortest packet that every IPv4 network takes whole (RFC 791, 3.1).
const LEAST_IPV4: u32 = 68;
/// The shortest MTU of IPv6 (RFC 8200, 5): a sender goes no lower.
const LEAST_IPV6: u32 = 1280;
const ICMPV6_TOO_BIG: u8 = 2;

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
        answer::v6::error(frame, at, ICMPV6_TOO_BIG, 0, fits)
    }
}
