//! Answers to those who ask for the MAC address of a virtual address that no interface of the host holds: ARP
//! (RFC 826, RFC 5227) and neighbour discovery (RFC 4861, RFC 4862).
//!
//! First [`asked`] decides, and changes nothing: what it does not take goes to the host untouched. Then
//! [`answer`] makes the frame its own answer. The tags stay as they are. What is told unasked the agent sends
//! ([`unsolicited`]).

#[cfg(not(target_arch = "bpf"))]
use alloc::vec::Vec;

use network_types::ip::Ipv6Hdr;

use crate::{
    abi::{INTERFACE_ROWS, InterfaceRow, vip_flag},
    answer::{anew, checksum, sum},
    decision::Decision,
    frame::{Frame, Resize, rewrite_macs},
    maps::Maps,
    packet::{Address, EtherType, IpProto, Mac},
    parse::{self, Ipv6},
    reason::Reason,
    verifier::opaque,
};

const IPV6: usize = Ipv6Hdr::LEN;
/// Octets of an ARP packet about IPv4 on Ethernet.
const ARP: usize = 28;
/// How such a request begins: Ethernet, IPv4, their lengths, and the operation.
const ARP_REQUEST: u64 = 0x0001_0800_0604_0001;
const ARP_REPLY: [u8; 2] = [0, 2];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Octets of a solicitation or an advertisement without options.
const MESSAGE: usize = 24;
/// Octets of an advertisement with its one option, the MAC address.
const ADVERTISED: usize = MESSAGE + 8;
/// The most options that a solicitation may have, in units of 8 octets. It is known to have two: the asker's MAC
/// address, and a nonce (RFC 7527).
const OPTIONS: usize = 4;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// The hop limit shows that no router has forwarded it (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;
const SOLICITED: u64 = 0x40;
const OVERRIDE: u64 = 0x20;
const ALL_NODES: Address = Address::from_halves(0xff02 << 48, 1);
const ALL_NODES_MAC: Mac = Mac::from_octets([0x33, 0x33, 0, 0, 0, 1]);

/// The group of everybody whose address ends like this one (RFC 4291, 2.7.1).
#[inline(always)]
const fn solicited_node(address: Address) -> Address {
    Address::from_halves(0xff02 << 48, 0x1_ff00_0000 | address.low() & 0xff_ffff)
}

/// The row of an interface, and its own MAC address: the first in the row.
#[inline(always)]
fn interface<M: Maps>(maps: &M, ingress: u32) -> Option<(&InterfaceRow, Mac)> {
    let row = maps.interface(ingress & (INTERFACE_ROWS - 1))?;
    let own = row.macs[0].load();
    (row.if_index.load() == u64::from(ingress) && own != 0).then_some((row, Mac(own)))
}

/// Whether the program answers for an address. For the host's own, the host does.
#[inline(always)]
fn is_announced<M: Maps>(maps: &M, address: Address) -> bool {
    maps.vip(&address) & (vip_flag::ANNOUNCED | vip_flag::LOCAL) == vip_flag::ANNOUNCED
}

/// Whether a frame asks for an announced address's MAC address, and is to be answered: a [`Decision`] then, else 0.
/// What makes no sense, or is not for the director, is not.
#[inline(always)]
pub fn asked<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32) -> u64 {
    find(frame, maps, ingress).map_or(0, |reason| Decision::stays(reason).0)
}

#[inline(always)]
fn find<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32) -> Option<Reason> {
    let (header, ether_type, at) = parse::ethernet(frame)?;
    let (row, _) = interface(maps, ingress)?;
    let mac = header.to();
    if !mac.is_group() && !row.takes(ingress, mac) || header.from().is_group() {
        return None;
    }
    match ether_type {
        EtherType::ARP => is_request(frame, maps, at)?.then_some(Reason::ArpAnswered),
        EtherType::IPV6 => is_solicitation(frame, maps, at)?.then_some(Reason::NeighbourAnswered),
        _ => None,
    }
}

/// Who asks from no address wants to know whether it is taken (RFC 5227, 2.1.1), which it is. Who asks for its own
/// claims it, and asks nothing.
#[inline(always)]
fn is_request<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, at: usize) -> Option<bool> {
    let beginning = frame.load(at).map(u64::from_be_bytes)?;
    let asker: [u8; 6] = frame.load(at + 8)?;
    let [from, to] = [at + 14, at + 24].map(|at| frame.load(at).map(u32::from_be_bytes));
    let (from, to) = (from?, to?);
    let asker = Mac::from_octets(asker);
    let is_sender = !asker.is_group() && asker.0 != 0;
    let is_asking = from == 0 || from != to && Address::from_ipv4(from).is_one_host();
    Some(beginning == ARP_REQUEST && is_sender && is_asking && is_announced(maps, Address::from_ipv4(to)))
}

/// RFC 4861, 7.1.1, in full. What has extension headers is left to the host.
#[inline(always)]
fn is_solicitation<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, at: usize) -> Option<bool> {
    let Ipv6 { packet, room } = Ipv6::read(frame, at).ok()?;
    let [hop_limit]: [u8; 1] = frame.load(at + 7)?;
    let message: [[u8; 8]; 3] = frame.load(at + IPV6)?;
    let [kind, code, ..] = message[0];
    let units = room.checked_sub(MESSAGE)? / 8;
    if packet.protocol != IpProto::ICMPV6
        || hop_limit != HOP_LIMIT
        || kind != SOLICITATION
        || code != 0
        || room % 8 != 0
        || units > OPTIONS
    {
        return None;
    }
    let target = Address::from_words([message[1], message[2]]);
    let group = solicited_node(target);
    // Who asks from no address wants to know whether it is taken (RFC 4862, 5.4.3).
    let is_probe = packet.source.high() == 0 && packet.source.low() == 0;
    let is_for_it = packet.destination == group || packet.destination == target && !is_probe;
    let is_asking = is_probe || packet.source != target && packet.source.is_one_host();
    if !is_for_it || !is_asking || !is_announced(maps, target) {
        return None;
    }

    let mut total = pseudo(packet.source, packet.destination, room);
    total = sum(sum(sum(total, &message[0]), &message[1]), &message[2]);
    let mut unit = 0;
    let mut next = 0;
    while unit < OPTIONS {
        if unit < units {
            // With a check of its own, as in an error's quotation.
            let place = opaque(at + IPV6 + MESSAGE + unit * 8) & 0xff;
            let word: [u8; 8] = frame.load(place)?;
            total = sum(total, &word);
            if unit == next {
                if word[1] == 0 || is_probe && word[0] == SOURCE_MAC {
                    return None;
                }
                next += usize::from(word[1]);
            }
        }
        unit += 1;
    }
    Some(next == units && checksum(total) == [0, 0])
}

/// The sum of the pseudo-header of an ICMPv6 message (RFC 8200, 8.1).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a message is short")]
fn pseudo(source: Address, destination: Address, length: usize) -> u32 {
    let total = u32::from(IpProto::ICMPV6.0) + length as u32;
    let total = sum(
        sum(total, &source.high().to_be_bytes()),
        &source.low().to_be_bytes(),
    );
    sum(
        sum(total, &destination.high().to_be_bytes()),
        &destination.low().to_be_bytes(),
    )
}

/// Makes a frame that [`asked`] has taken its answer, with the MAC address of the interface that it came in by.
/// `None` where that cannot be done, and the frame is to be dropped.
#[inline(always)]
pub fn answer<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, ingress: u32) -> Option<()> {
    let (_, own) = interface(maps, ingress)?;
    let (_, ether_type, at) = parse::ethernet(frame)?;
    if ether_type == EtherType::ARP {
        reply(frame, own, at)
    } else {
        advertisement(frame, own, at)
    }
}

/// The reply goes to the MAC address that the request says (RFC 826).
#[inline(always)]
fn reply<F: Frame + ?Sized>(frame: &mut F, own: Mac, at: usize) -> Option<()> {
    let packet: [u8; ARP] = frame.load(at)?;
    let mut asker = [0; 10];
    asker.copy_from_slice(&packet[8..18]);
    let [a, b, c, d, e, f, ..] = asker;
    let address = [packet[24], packet[25], packet[26], packet[27]];
    rewrite_macs(frame, Mac::from_octets([a, b, c, d, e, f]), own)?;
    frame.store(at + 6, ARP_REPLY)?;
    frame.store(at + 8, own.octets())?;
    frame.store(at + 14, address)?;
    frame.store(at + 18, asker)
}

/// Who has no address yet is answered together with all others (RFC 4861, 7.2.4).
#[inline(always)]
fn advertisement<F: Resize + ?Sized>(frame: &mut F, own: Mac, at: usize) -> Option<()> {
    let asker = parse::ethernet(frame)?.0.from();
    let source = Address::from_words(frame.load(at + 8)?);
    let target = Address::from_words(frame.load(at + IPV6 + 8)?);
    let is_probe = source.high() == 0 && source.low() == 0;
    let (mac, to, flags) = if is_probe {
        (ALL_NODES_MAC, ALL_NODES, OVERRIDE)
    } else {
        (asker, source, SOLICITED | OVERRIDE)
    };
    let packet = advertised(target, own, to, flags);

    #[expect(clippy::cast_possible_truncation, reason = "at most 94")]
    frame.cut((at + IPV6 + ADVERTISED) as u32)?;
    let at = anew(at);
    rewrite_macs(frame, mac, own)?;
    frame.store(at, packet)
}

/// The packet of an advertisement.
#[inline(always)]
fn advertised(target: Address, own: Mac, to: Address, flags: u64) -> [[u8; 8]; 9] {
    let [a, b, c, d, e, f] = own.octets();
    let beginning = u64::from(ADVERTISEMENT) << 56 | flags << 24;
    let option = [TARGET_MAC, 1, a, b, c, d, e, f];
    let [high, low] = [target.high().to_be_bytes(), target.low().to_be_bytes()];
    let total = sum(pseudo(target, to, ADVERTISED), &beginning.to_be_bytes());
    let check = checksum(sum(sum(sum(total, &high), &low), &option));
    let beginning = beginning | u64::from(u16::from_be_bytes(check)) << 32;
    let first =
        6 << 60 | (ADVERTISED as u64) << 16 | u64::from(IpProto::ICMPV6.0) << 8 | u64::from(HOP_LIMIT);
    let [to_high, to_low] = [to.high().to_be_bytes(), to.low().to_be_bytes()];
    [
        first.to_be_bytes(),
        high,
        low,
        to_high,
        to_low,
        beginning.to_be_bytes(),
        high,
        low,
        option,
    ]
}

/// The frame that tells everybody, unasked, that an address is at this MAC address: an ARP announcement (RFC 5227,
/// 2.3), or an unsolicited advertisement that overrides what is known (RFC 4861, 7.2.6).
#[cfg(not(target_arch = "bpf"))]
pub fn unsolicited(address: Address, own: Mac) -> Vec<u8> {
    let ethernet = |to: Mac, ether_type: EtherType| {
        [&to.octets()[..], &own.octets(), &ether_type.0.to_be_bytes()].concat()
    };
    if address.is_ipv4() {
        let [.., a, b, c, d] = address.octets();
        let address = [a, b, c, d];
        let mut frame = ethernet(Mac(Mac::MASK), EtherType::ARP);
        frame.extend(ARP_REQUEST.to_be_bytes());
        frame.extend(own.octets());
        frame.extend(address);
        frame.extend([0; 6]);
        frame.extend(address);
        frame
    } else {
        let mut frame = ethernet(ALL_NODES_MAC, EtherType::IPV6);
        frame.extend(advertised(address, own, ALL_NODES, OVERRIDE).as_flattened());
        frame
    }
}

#[cfg(test)]
mod tests;
