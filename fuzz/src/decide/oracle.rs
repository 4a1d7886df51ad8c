//! What must hold of a frame that leaves, whatever came in.

use etherparse::{
    ArpOperation, Icmpv6Slice, Ipv4HeaderSlice, Ipv6Header, Ipv6HeaderSlice, LinkExtSlice, NetSlice,
    SlicedPacket, TcpSlice, TransportSlice, UdpSlice, err::packet::SliceError,
};
use lvs_xdp_common::{
    abi::{DestinationRow, destination_flag},
    maps::{Maps as _, memory::Memory},
    packet::{Address, Mac},
    reason::Reason,
};

use super::tables::{DIRECTOR, addresses, mac};

/// Octets of the two MAC addresses.
const MACS: usize = 12;

/// Checks a frame that goes to a plain real server: nothing but its MAC addresses has changed.
///
/// # Panics
///
/// Where that does not hold.
pub fn forwarded(maps: &Memory, destination: u32, before: &[u8], after: &[u8]) {
    leaves_for(maps, destination, after);
    assert_eq!(
        before[MACS..],
        after[MACS..],
        "more than the MAC addresses has changed"
    );
    whole(after);
}

/// Checks a frame that goes to a real server behind tags or a tunnel.
///
/// # Panics
///
/// Where the tags are not those, or the packet has not arrived whole inside.
pub fn special(maps: &Memory, destination: u32, before: &[u8], after: &[u8]) {
    let row = leaves_for(maps, destination, after);
    let flags = row.towards.load();
    let packet = packet(before);
    let Some(found) = whole(after) else {
        return;
    };
    if flags & destination_flag::VLAN != 0 {
        let wanted = row.tags();
        let wanted: Vec<u16> = [wanted.outer, wanted.inner][..wanted.count].to_vec();
        let tags = found.link_exts.iter().filter_map(|tag| match tag {
            LinkExtSlice::Vlan(tag) => Some(tag.vlan_identifier().value()),
            LinkExtSlice::Macsec(_) => None,
        });
        assert_eq!(tags.collect::<Vec<_>>(), wanted, "the tags are others");
    }
    let behind = &after[at(&found)..];
    if flags & destination_flag::TUNNEL == 0 {
        assert_eq!(behind, packet, "the packet has changed");
        return;
    }
    assert_eq!(wrong_checksum(&found), None, "a wrong checksum of the tunnel");
    let Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)) = found.net else {
        panic!("a tunnel without IP");
    };
    let length = ip_length(packet);
    let outer = outer_length(&found);
    let carried = &behind[..outer];
    assert!(
        carried.ends_with(&packet[..length]),
        "the packet in the tunnel has changed"
    );
}

/// Checks a frame that was made the answer to another one.
///
/// # Panics
///
/// Where it does not go back from a virtual address, or a length or checksum is wrong.
pub fn answer(reason: Reason, before: &[u8], after: &[u8]) {
    if matches!(reason, Reason::ArpAnswered | Reason::NeighbourAnswered) {
        return discovered(before, after);
    }
    assert_eq!(after[..6], before[6..MACS], "it goes to another host");
    assert_eq!(after[6..MACS], before[..6], "it comes from another host");
    let Some(found) = whole(after) else {
        assert_eq!(
            reason,
            Reason::Echo,
            "only what is turned round has extension headers"
        );
        return;
    };
    let asked = SlicedPacket::from_ethernet(before);
    if let Ok(asked) = &asked {
        let tags = |packet: &SlicedPacket<'_>| {
            let tags = packet.link_exts.iter().map(|tag| match tag {
                LinkExtSlice::Vlan(tag) => tag.slice()[..2].to_vec(),
                LinkExtSlice::Macsec(_) => Vec::new(),
            });
            tags.collect::<Vec<_>>()
        };
        assert_eq!(tags(&found), tags(asked), "the answer has other tags");
    }
    let source = match &found.net {
        Some(NetSlice::Ipv4(packet)) => {
            assert!(
                !packet.header().destination_addr().is_multicast(),
                "an answer to a group"
            );
            Address::from_ipv4(packet.header().source_addr().to_bits())
        }
        Some(NetSlice::Ipv6(packet)) => {
            assert!(
                !packet.header().destination_addr().is_multicast(),
                "an answer to a group"
            );
            Address::from_octets(packet.header().source())
        }
        Some(NetSlice::Arp(_)) | None => panic!("an answer without IP"),
    };
    assert!(addresses().contains(&source), "an answer from no virtual address");
    // An echo reply keeps what was behind the request: a short frame's padding.
    let end = at(&found) + outer_length(&found);
    assert!(
        end == after.len() || reason == Reason::Echo,
        "something is behind the answer"
    );
    assert!(found.transport.is_some(), "an answer that says nothing");
    // An echo reply is the request turned round: it is as broken as that was.
    let was_broken = asked.is_ok_and(|asked| wrong_checksum(&asked).is_some());
    if !(was_broken && reason == Reason::Echo) {
        assert_eq!(wrong_checksum(&found), None, "a wrong checksum of an answer");
    }
}

/// Checks the answer to a question where a virtual address is: it says that the director has it.
fn discovered(before: &[u8], after: &[u8]) {
    assert_eq!(after[6..MACS], DIRECTOR, "it comes from another host");
    let found = whole(after).expect("there are no extension headers");
    assert_eq!(after[MACS..at(&found)], before[MACS..at(&found)], "other tags");
    let (target, asker) = match (&found.net, &found.transport) {
        (Some(NetSlice::Arp(arp)), None) => {
            assert_eq!(arp.operation(), ArpOperation::REPLY);
            assert_eq!(arp.sender_hw_addr(), DIRECTOR);
            let target = arp.sender_protocol_addr().try_into().expect("four octets");
            (
                Address::from_ipv4(u32::from_be_bytes(target)),
                arp.target_hw_addr(),
            )
        }
        (Some(NetSlice::Ipv6(packet)), Some(TransportSlice::Icmpv6(icmp))) => {
            assert_eq!(
                wrong_checksum(&found),
                None,
                "a wrong checksum of an advertisement"
            );
            assert_eq!(
                (packet.header().hop_limit(), icmp.type_u8(), icmp.code_u8()),
                (255, 136, 0)
            );
            assert_eq!(
                at(&found) + outer_length(&found),
                after.len(),
                "something is behind it"
            );
            let [target @ .., _, _, _, _, _, _, _, _] = icmp.slice() else {
                panic!("an advertisement without an option");
            };
            assert_eq!(
                icmp.slice()[target.len()..][..2],
                [2, 1],
                "the target's MAC address"
            );
            assert_eq!(icmp.slice()[target.len() + 2..], DIRECTOR);
            let target = target[8..].try_into().expect("sixteen octets");
            let is_to_all = packet.header().destination_addr().is_multicast();
            let all: &[u8] = &[0x33, 0x33, 0, 0, 0, 1];
            let asker = if is_to_all { all } else { &before[6..MACS] };
            (Address::from_octets(target), asker)
        }
        _ => panic!("neither ARP nor an advertisement"),
    };
    assert_eq!(&after[..6], asker, "it goes to another host");
    assert!(addresses().contains(&target), "about no virtual address");
}

/// The row of the destination that a frame leaves for; it must be one that packets may go to.
fn leaves_for<'a>(maps: &'a Memory, destination: u32, after: &[u8]) -> &'a DestinationRow {
    let row = maps.destination(destination).expect("a destination");
    let flags = row.towards.load();
    assert!(flags & destination_flag::RESOLVED != 0, "nobody knows the way");
    assert!(flags & destination_flag::REMOVED == 0, "it was removed");
    assert_eq!(after[..6], mac(destination).octets(), "to another host");
    assert_eq!(
        after[6..MACS],
        Mac(row.from.load() & Mac::MASK).octets(),
        "from another host"
    );
    row
}

/// A frame whose lengths all hold, taken apart; `None` where its extension headers come in an order that should not
/// be, but that the kernel follows, too (`ipv6_find_hdr`): what they mean is the real server's business.
fn whole(frame: &[u8]) -> Option<SlicedPacket<'_>> {
    match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => Some(packet),
        Err(SliceError::Ipv6Exts(_)) => None,
        Err(error) => panic!("it leaves malformed: {error}"),
    }
}

/// Where the packet in a frame begins.
fn at(frame: &SlicedPacket<'_>) -> usize {
    14 + frame
        .link_exts
        .iter()
        .map(LinkExtSlice::header_len)
        .sum::<usize>()
}

/// The packet of a frame that has at most two tags.
fn packet(frame: &[u8]) -> &[u8] {
    let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    let tags = if !is_tag(12) {
        0
    } else if !is_tag(16) {
        1
    } else {
        2
    };
    &frame[14 + 4 * tags..]
}

/// Length of an IP packet by its own header.
fn ip_length(packet: &[u8]) -> usize {
    if let Ok(header) = Ipv4HeaderSlice::from_slice(packet) {
        usize::from(header.total_len())
    } else {
        let header = Ipv6HeaderSlice::from_slice(packet).expect("an IP packet");
        Ipv6Header::LEN + usize::from(header.payload_length())
    }
}

/// Length of a frame's IP packet by its own header.
fn outer_length(frame: &SlicedPacket<'_>) -> usize {
    match &frame.net {
        Some(NetSlice::Ipv4(packet)) => usize::from(packet.header().total_len()),
        Some(NetSlice::Ipv6(packet)) => 40 + usize::from(packet.header().payload_length()),
        Some(NetSlice::Arp(_)) | None => panic!("no IP packet"),
    }
}

/// The checksum that is wrong; `None` where all are right that can be told.
fn wrong_checksum(frame: &SlicedPacket<'_>) -> Option<&'static str> {
    match &frame.net {
        Some(NetSlice::Ipv4(packet)) => {
            let header = packet.header().to_header();
            if header.header_checksum != header.calc_header_checksum() {
                return Some("IPv4");
            }
            let (from, to) = (header.source, header.destination);
            wrong_in(
                frame,
                |tcp| tcp.calc_checksum_ipv4(from, to).ok(),
                |udp| {
                    let header = udp.to_header();
                    header.calc_checksum_ipv4_raw(from, to, udp.payload()).ok()
                },
                |_| None,
            )
        }
        Some(NetSlice::Ipv6(packet)) => {
            let (from, to) = (packet.header().source(), packet.header().destination());
            wrong_in(
                frame,
                |tcp| tcp.calc_checksum_ipv6(from, to).ok(),
                |udp| {
                    let header = udp.to_header();
                    header.calc_checksum_ipv6_raw(from, to, udp.payload()).ok()
                },
                |icmp| icmp.icmp_type().calc_checksum(from, to, icmp.payload()).ok(),
            )
        }
        Some(NetSlice::Arp(_)) | None => None,
    }
}

/// As [`wrong_checksum`], of what is in the IP packet; the right ones are as the functions say.
fn wrong_in(
    frame: &SlicedPacket<'_>,
    tcp_sum: impl Fn(&TcpSlice<'_>) -> Option<u16>,
    udp_sum: impl Fn(&UdpSlice<'_>) -> Option<u16>,
    icmpv6_sum: impl Fn(&Icmpv6Slice<'_>) -> Option<u16>,
) -> Option<&'static str> {
    let (name, found, right) = match &frame.transport {
        Some(TransportSlice::Tcp(tcp)) => ("TCP", tcp.checksum(), tcp_sum(tcp)),
        // 0 says that there is none (RFC 768).
        Some(TransportSlice::Udp(udp)) if udp.checksum() == 0 => return None,
        Some(TransportSlice::Udp(udp)) => ("UDP", udp.checksum(), udp_sum(udp)),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let right = icmp.icmp_type().calc_checksum(icmp.payload());
            ("ICMP", icmp.checksum(), Some(right))
        }
        Some(TransportSlice::Icmpv6(icmp)) => ("ICMPv6", icmp.checksum(), icmpv6_sum(icmp)),
        Some(TransportSlice::Igmp(_)) | None => return None,
    };
    (right != Some(found)).then_some(name)
}
