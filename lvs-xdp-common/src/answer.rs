//! Packets that the director answers itself, built in the frame that they came in.
//!
//! The answer leaves by the interface that the packet came from, to the host that sent the frame, from the
//! virtual address. Checksums are computed from nothing: none of the packet's own is trusted.

mod echo;
pub(crate) mod v6;

use network_types::ip::Ipv4Hdr;

use crate::{
    frame::{Frame, Resize},
    maps::Maps,
    packet::{EtherType, IpProto},
    parse::network,
    reason::Reason,
    verifier::opaque,
};

pub use self::echo::echo;

const TTL: u8 = 64;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const IPV4: usize = Ipv4Hdr::LEN;
/// TCP's header without options, which a reset has not.
const TCP: usize = 20;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
const ICMP_HEADER: usize = 8;
/// Octets of the packet behind its IP header that an ICMP error quotes (RFC 792): ports and, of TCP, the
/// sequence number, which is what the client's stack finds its socket by.
const QUOTED: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_PORT_UNREACHABLE: u8 = 3;
/// The packet is too long, and may not be fragmented (RFC 792).
pub(crate) const ICMP_FRAGMENTATION_NEEDED: u8 = 4;

/// Whether an address is that of one host, which may be answered (RFC 1122, 3.2.2): no group, no loopback,
/// not "this network".
#[inline(always)]
const fn is_one_host(address: [u8; 4]) -> bool {
    !matches!(address[0], 0 | 127 | 224..)
}

/// The MAC addresses of a frame.
#[inline(always)]
fn macs<F: Frame + ?Sized>(frame: &F) -> Option<[u8; 12]> {
    frame.load(0)
}

/// Turns a frame that had these MAC addresses back to the host that it came from.
#[inline(always)]
fn turn_back<F: Frame + ?Sized>(frame: &mut F, macs: [u8; 12]) -> Option<()> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    frame.store(anew(0), [g, h, i, j, k, l, a, b, c, d, e, f])
}

/// The same place in a frame, of which the compiler knows nothing. What was checked to be in the frame further
/// behind, it takes for a check of this place too; the verifier does not, once a function was called in between.
#[inline(always)]
pub(crate) fn anew(place: usize) -> usize {
    opaque(place)
}

/// Adds octets to the sum of an Internet checksum (RFC 1071), two by two.
#[inline(always)]
pub(crate) fn sum(mut total: u32, octets: &[u8]) -> u32 {
    let mut index = 0;
    while index + 1 < octets.len() {
        total += u32::from(u16::from_be_bytes([octets[index], octets[index + 1]]));
        index += 2;
    }
    total
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub(crate) const fn checksum(total: u32) -> [u8; 2] {
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!folded as u16).to_be_bytes()
}

/// An IPv4 header without options, of an answer from `source` to `destination`.
#[inline(always)]
fn ipv4(protocol: IpProto, length: u16, source: [u8; 4], destination: [u8; 4]) -> [u8; IPV4] {
    let mut header = [0; IPV4];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&DONT_FRAGMENT);
    header[8] = TTL;
    header[9] = protocol.0;
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let sum = checksum(sum(0, &header));
    header[10..12].copy_from_slice(&sum);
    header
}

/// Makes a frame the answer that goes with a reason whose outcome is one. `None` where it cannot be answered, and
/// is to be dropped.
#[inline(always)]
pub fn answer<F: Resize + ?Sized, M: Maps>(
    frame: &mut F,
    maps: &M,
    ingress: u32,
    reason: Reason,
) -> Option<()> {
    match reason {
        Reason::Reset => reset(frame),
        Reason::Echo => echo(frame),
        Reason::ArpAnswered | Reason::NeighbourAnswered => {
            (frame.advertise(maps, ingress) != 0).then_some(())
        }
        _ => port_unreachable(frame),
    }
}

/// Makes a TCP packet the reset that answers it, as a host without such a connection would (RFC 9293, 3.10.7.1).
/// `None` where there is nothing to answer: it is a reset itself.
#[inline(always)]
pub fn reset<F: Resize + ?Sized>(frame: &mut F) -> Option<()> {
    let macs = macs(frame)?;
    let (ether_type, network) = network(frame)?;
    if ether_type == EtherType::IPV6 {
        return v6::reset(frame, macs, network);
    }
    let [first, ..]: [u8; 1] = frame.load(network)?;
    let header_length = usize::from(first & 0x0f) * 4;
    let total: [u8; 2] = frame.load(network + 2)?;
    let client: [u8; 4] = frame.load(network + 12)?;
    let address: [u8; 4] = frame.load(network + 16)?;
    let segment: [u8; 14] = frame.load(network + header_length)?;
    if !is_one_host(client) {
        return None;
    }
    let room = u32::from(u16::from_be_bytes(total)).wrapping_sub(u32::from(first & 0x0f) * 4);
    let mut tcp = reset_segment(&segment, room)?;
    let pseudo = u32::from(IpProto::TCP.0) + TCP as u32;
    let pseudo = sum(sum(pseudo, &client), &address);
    let check = checksum(sum(pseudo, &tcp));
    tcp[16..18].copy_from_slice(&check);

    turn_back(frame, macs)?;
    frame.store(network, ipv4(IpProto::TCP, (IPV4 + TCP) as u16, address, client))?;
    frame.store(network + IPV4, tcp)?;
    frame.cut((network + IPV4 + TCP) as u32)
}

/// The header of the reset that answers a segment which begins like this and has `room` octets, header included;
/// its checksum is still to come. `None` for a reset.
#[inline(always)]
fn reset_segment(segment: &[u8; 14], room: u32) -> Option<[u8; TCP]> {
    let flags = segment[13];
    if flags & TCP_RST != 0 {
        return None;
    }
    let field = |at: usize| -> [u8; 4] { [segment[at], segment[at + 1], segment[at + 2], segment[at + 3]] };
    let mut tcp = [0; TCP];
    tcp[0..2].copy_from_slice(&segment[2..4]);
    tcp[2..4].copy_from_slice(&segment[0..2]);
    tcp[12] = 5 << 4;
    if flags & TCP_ACK != 0 {
        tcp[4..8].copy_from_slice(&field(8));
        tcp[13] = TCP_RST;
    } else {
        let payload = room.wrapping_sub(u32::from(segment[12] >> 4) * 4);
        let length = payload
            .wrapping_add(u32::from(flags & TCP_SYN != 0))
            .wrapping_add(u32::from(flags & TCP_FIN != 0));
        let acknowledged = u32::from_be_bytes(field(4)).wrapping_add(length);
        tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        tcp[13] = TCP_RST | TCP_ACK;
    }
    Some(tcp)
}

/// Makes a packet the ICMP or ICMPv6 port unreachable that answers it (RFC 792), as IPVS does (`ip_vs_leave`).
#[inline(always)]
pub fn port_unreachable<F: Resize + ?Sized>(frame: &mut F) -> Option<()> {
    let (ether_type, at) = network(frame)?;
    if ether_type == EtherType::IPV6 {
        return v6::port_unreachable(frame, at);
    }
    unreachable(frame, ICMP_PORT_UNREACHABLE, 0)
}

/// Makes a packet over IPv4 an ICMP unreachable. `mtu` is 0 but where the code is
/// [`ICMP_FRAGMENTATION_NEEDED`] (RFC 1191, 4).
#[inline(always)]
pub(crate) fn unreachable<F: Resize + ?Sized>(frame: &mut F, code: u8, mtu: u16) -> Option<()> {
    let (_, network) = network(frame)?;
    let macs = macs(frame)?;
    // Up to two tags and the type; behind fewer tags there is something else, which is written over.
    let tags: [u8; 10] = frame.load(12)?;
    let [first, ..]: [u8; 1] = frame.load(network)?;
    let client: [u8; 4] = frame.load(network + 12)?;
    let address: [u8; 4] = frame.load(network + 16)?;
    let quoted = usize::from(first & 0x0f) * 4 + QUOTED;
    if !is_one_host(client) {
        return None;
    }

    let mut icmp = [0; ICMP_HEADER];
    icmp[0] = ICMP_UNREACHABLE;
    icmp[1] = code;
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    let mut total = sum(0, &icmp);
    let mut at = 0;
    // The longest IP header has 60 octets.
    while at < 60 + QUOTED {
        if at < quoted {
            let word: [u8; 4] = frame.load(network + at)?;
            total = sum(total, &word);
        }
        at += 4;
    }
    let check = checksum(total);
    icmp[2..4].copy_from_slice(&check);

    let length = IPV4 + ICMP_HEADER + quoted;
    frame.grow((IPV4 + ICMP_HEADER) as u32)?;
    frame.store(12, tags)?;
    turn_back(frame, macs)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 96")]
    let header = ipv4(IpProto::ICMP, length as u16, address, client);
    frame.store(network, header)?;
    frame.store(network + IPV4, icmp)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 114")]
    frame.cut((network + length) as u32)
}

#[cfg(test)]
mod tests;
