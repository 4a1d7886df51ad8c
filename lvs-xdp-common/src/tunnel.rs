//! Tunnels: a packet for a real server on another segment goes inside another packet, addressed to the real
//! server itself (`-i`; `ip_vs_tunnel_xmit`, net/netfilter/ipvs/ip_vs_xmit.c).
//!
//! The inner packet is not touched. The outer one takes from it what IPVS takes: TTL, the traffic class, and
//! over IPv4 whether it may be fragmented. What does not fit the way is answered here, with the length that
//! would fit; the program cannot make two frames of one, so this is also done where the client allows
//! fragments, which IPVS makes.

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    abi::TunnelRow,
    answer::{checksum, sum},
    flow::Flow,
    frame::Resize,
    hash::{self, HashKey},
    maps::{Maps, Step},
    packet::{Address, EtherType, IpProto},
    parse::{self, FRAGMENT_MASK, Ipv4, Ipv6, TAG},
    reason::Reason,
    verifier::opaque,
};

pub mod too_big;

/// What [`encapsulate`] says where all went well: no reason's number.
pub const DONE: u32 = u32::MAX;

/// "Don't fragment" among IPv4's flags and offset (RFC 791, 3.1).
const DONT_FRAGMENT: u16 = 0x4000;
/// GUE's header without options (draft-ietf-intarea-gue-09, 3.2).
const GUE: usize = 4;
/// GRE's header (RFC 2784), without its checksum.
const GRE: usize = 4;
/// GRE: there is a checksum.
const GRE_CHECKSUM: u16 = 0x8000;
/// The longest header between the two IP headers: UDP and GUE.
const LONGEST: usize = UdpHdr::LEN + GUE;
/// The lowest source port of GUE: those above are for such use (RFC 6335, 6).
const FIRST_PORT: u16 = 0xc000;
/// The longest packet that is summed up for a checksum, which the agent keeps to.
pub const MOST_SUMMED: u16 = 16_384;

/// What there is between the two IP headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: IPIP (RFC 2003), IPv6 in IPv6 (RFC 2473), and their mixtures (RFC 4213).
    Ip = 1,
    /// Generic UDP encapsulation, variant 0.
    Gue = 2,
    /// Generic routing encapsulation.
    Gre = 3,
}

/// The word [`TunnelRow::how`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How(pub u64);

impl How {
    const CHECKSUM: u64 = 1 << 8;

    /// Packs it: whether GUE or GRE have a checksum over what they carry, GUE's destination port, the greatest
    /// length of the outer packet in bytes, and how many of the lowest bits of the outer source address are a
    /// flow's own.
    pub const fn new(kind: Kind, has_checksum: bool, port: u16, mtu: u16, spread: u8) -> Self {
        let checksum = if has_checksum { Self::CHECKSUM } else { 0 };
        Self(kind as u64 | checksum | (port as u64) << 16 | (mtu as u64) << 32 | (spread as u64) << 48)
    }

    /// What is between the headers; no number that is unknown.
    #[inline(always)]
    pub const fn kind(self) -> Option<Kind> {
        match self.0 & 0xff {
            1 => Some(Kind::Ip),
            2 => Some(Kind::Gue),
            3 => Some(Kind::Gre),
            _ => None,
        }
    }

    #[inline(always)]
    const fn has_checksum(self) -> bool {
        self.0 & Self::CHECKSUM != 0
    }

    #[inline(always)]
    const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The same on a way of this MTU, with so many bits of the source address a flow's own.
    #[must_use]
    pub const fn on(self, mtu: u16, spread: u8) -> Self {
        let configured = self.0 & 0xffff_ffff;
        let mtu = if self.has_checksum() && mtu > MOST_SUMMED {
            MOST_SUMMED
        } else {
            mtu
        };
        Self(configured | (mtu as u64) << 32 | (spread as u64) << 48)
    }

    /// The greatest length of the outer packet, in bytes.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// How many of the lowest bits of the outer source address are a flow's own.
    pub const fn spread_bits(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// The bits of the source address that are a flow's own.
    #[inline(always)]
    const fn spread(self) -> u64 {
        // At most 32 of them, whatever the word says.
        (1 << (self.0 >> 48 & 0x1f)) - 1
    }

    /// Octets between the two IP headers.
    #[inline(always)]
    const fn length(self) -> usize {
        match self.kind() {
            Some(Kind::Gue) => LONGEST,
            Some(Kind::Gre) if self.has_checksum() => 2 * GRE,
            Some(Kind::Gre) => GRE,
            Some(Kind::Ip) | None => 0,
        }
    }
}

/// What the outer packet takes from the inner one.
#[derive(Clone, Copy)]
struct Inner {
    is_ipv4: bool,
    /// Length in bytes.
    length: u32,
    /// IPv4's type of service, IPv6's traffic class.
    traffic_class: u8,
    /// Time to live, hop limit.
    ttl: u8,
    /// IPv4's flags and offset; IPv6: 0.
    fragment: u16,
    identification: u16,
    /// Of the flow; of a fragment, of its two hosts.
    hash: u64,
}

impl Inner {
    #[inline(always)]
    fn read<F: Resize + ?Sized, M: Maps>(frame: &F, maps: &M, is_ipv4: bool, at: usize) -> Option<Self> {
        let [first, second, ..]: [u8; 4] = frame.load(at)?;
        let (inner, packet, transport) = if is_ipv4 {
            let header = Ipv4::read_cut(frame, at).ok()?;
            let [ttl]: [u8; 1] = frame.load(at + 8)?;
            let inner = Self {
                is_ipv4,
                length: header.packet.length,
                traffic_class: second,
                ttl,
                fragment: header.fragment,
                identification: header.identification,
                hash: 0,
            };
            (inner, header.packet, at + header.length)
        } else {
            let packet = Ipv6::read_cut(frame, at).ok()?.packet;
            let [ttl]: [u8; 1] = frame.load(at + 7)?;
            let inner = Self {
                is_ipv4,
                length: packet.length,
                traffic_class: first << 4 | second >> 4,
                ttl,
                fragment: 0,
                identification: 0,
                hash: 0,
            };
            (inner, packet, at + Ipv6Hdr::LEN)
        };
        let has_ports = packet.protocol.has_services() && inner.fragment & FRAGMENT_MASK == 0;
        let ports = if has_ports {
            frame.load::<[u8; 4]>(transport).map_or(0, u32::from_be_bytes)
        } else {
            0
        };
        let flow = Flow::new(&parse::with_ports(packet, ports), 0);
        // Not the hash that the connection table goes by: what leaves the director says nothing about it.
        let HashKey(one, other) = maps.control().key();
        Some(Self {
            hash: hash::flow(HashKey(other, one), &flow),
            ..inner
        })
    }

    /// The outer packet's traffic class: a mark of congestion stays with the inner packet (RFC 3168, 9.1.1; the
    /// kernel's `INET_ECN_encapsulate`).
    #[inline(always)]
    const fn outer_class(&self) -> u8 {
        const ECN: u8 = 3;
        const CAPABLE: u8 = 2;
        if self.traffic_class & ECN == ECN {
            self.traffic_class & !ECN | CAPABLE
        } else {
            self.traffic_class
        }
    }

    /// Its number as the outer packet's protocol.
    #[inline(always)]
    const fn as_protocol(&self) -> IpProto {
        if self.is_ipv4 {
            IpProto::IPIP
        } else {
            IpProto::IPV6
        }
    }

    #[inline(always)]
    const fn ether_type(&self) -> EtherType {
        if self.is_ipv4 {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        }
    }
}

/// The sum of a frame's packet, as [`encapsulate`] wants it: 0 where the tunnel to `destination` has no checksum,
/// more than 16 bits where there is none.
#[inline(always)]
pub fn carried<F: Resize + ?Sized, M: Maps>(frame: &F, maps: &M, destination: u32) -> u64 {
    let Some(tunnel) = maps.tunnel(destination) else {
        return u64::MAX;
    };
    if !How(tunnel.how.load()).has_checksum() {
        return 0;
    }
    let Some((ether_type, at)) = parse::network(frame) else {
        return u64::MAX;
    };
    let length = if ether_type == EtherType::IPV4 {
        parse::be16(frame, at + 2).map(u32::from)
    } else {
        parse::be16(frame, at + 4).map(|length| u32::from(length) + Ipv6Hdr::LEN as u32)
    };
    length.map_or(u64::MAX, |length| sum_of(frame, maps, at as u32, length))
}

/// Puts the packet of a frame into another one for `destination`: [`DONE`], or the number of the reason why not.
/// Where that is [`Reason::TooBig`], above its 8 bits is the length that would fit, and [`too_big::refuse`] is
/// to follow. The frame keeps its tags; the MAC addresses are to be written. `carried` is what [`carried`] says.
#[inline(always)]
pub fn encapsulate<F: Resize + ?Sized, M: Maps>(
    frame: &mut F,
    maps: &M,
    destination: u32,
    carried: u64,
) -> u32 {
    match wrap(frame, maps, destination, carried) {
        Ok(None) => DONE,
        Ok(Some(fits)) => Reason::TooBig as u32 | fits << 8,
        Err(reason) => reason as u32,
    }
}

/// As [`encapsulate`]: the length that would fit, where this one does not.
#[inline(always)]
fn wrap<F: Resize + ?Sized, M: Maps>(
    frame: &mut F,
    maps: &M,
    destination: u32,
    carried: u64,
) -> Result<Option<u32>, Reason> {
    const FAILED: Reason = Reason::RewriteFailed;
    let (Some(row), Some(tunnel)) = (maps.destination(destination), maps.tunnel(destination)) else {
        return Err(Reason::Internal);
    };
    let to = Address::from_halves(row.address[0].load(), row.address[1].load());
    let how = How(tunnel.how.load());
    let (ether_type, at) = parse::network(frame).ok_or(FAILED)?;
    let is_ipv4 = ether_type == EtherType::IPV4;
    if !is_ipv4 && ether_type != EtherType::IPV6 || how.kind().is_none() {
        return Err(FAILED);
    }
    let inner = Inner::read(frame, maps, is_ipv4, at).ok_or(FAILED)?;
    let (header, outer_type) = if to.is_ipv4() {
        (Ipv4Hdr::LEN, EtherType::IPV4)
    } else {
        (Ipv6Hdr::LEN, EtherType::IPV6)
    };
    let added = header + how.length();
    let most = u32::from(how.mtu());
    if inner.length + added as u32 > most {
        let fits = most.saturating_sub(added as u32);
        return Ok(Some(fits));
    }
    let from = source(tunnel, how, inner.hash);
    let carried = u32::try_from(carried).map_err(|_| FAILED)?;

    // Two tags at the most; behind fewer there is something else, which is written over.
    let tags: [u8; 2 * TAG] = frame.load(12).ok_or(FAILED)?;
    frame.grow(added as u32).ok_or(FAILED)?;
    frame.store(12, tags).ok_or(FAILED)?;
    frame.store(at - 2, outer_type.0.to_be_bytes()).ok_or(FAILED)?;
    let (protocol, length) = between(frame, at + header, how, &inner, from, to, carried).ok_or(FAILED)?;
    if to.is_ipv4() {
        let header = ipv4(&inner, protocol, length, from, to);
        frame.store(at, header).ok_or(FAILED)?;
    } else {
        let header = ipv6(&inner, protocol, length, from, to);
        frame.store(at, header).ok_or(FAILED)?;
    }
    Ok(None)
}

/// The outer source address: the director's, or one of its own for each flow.
#[inline(always)]
fn source(tunnel: &TunnelRow, how: How, hash: u64) -> Address {
    let low = tunnel.source[1].load() | hash & how.spread();
    Address::from_halves(tunnel.source[0].load(), low)
}

/// Writes what is between the two IP headers; returns the outer packet's protocol, and the length of what it
/// carries. `carried` is the sum of the inner packet where a checksum is wanted.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a packet that fits has less than 65,536 bytes"
)]
fn between<F: Resize + ?Sized>(
    frame: &mut F,
    at: usize,
    how: How,
    inner: &Inner,
    from: Address,
    to: Address,
    carried: u32,
) -> Option<(IpProto, u16)> {
    let length = (inner.length as usize + how.length()) as u16;
    match how.kind()? {
        Kind::Ip => Some((inner.as_protocol(), length)),
        Kind::Gue => {
            let mut header = [0; LONGEST];
            header[0..2].copy_from_slice(&(FIRST_PORT | inner.hash as u16 & !FIRST_PORT).to_be_bytes());
            header[2..4].copy_from_slice(&how.port().to_be_bytes());
            header[4..6].copy_from_slice(&length.to_be_bytes());
            // Variant 0, data, no options: all of that is 0.
            header[9] = inner.as_protocol().0;
            if how.has_checksum() {
                let pseudo = u32::from(IpProto::UDP.0) + u32::from(length);
                let pseudo = add_address(add_address(pseudo, from), to);
                // 0 says that there is none (RFC 768).
                let check = match checksum(sum(pseudo + carried, &header)) {
                    [0, 0] => [0xff, 0xff],
                    check => check,
                };
                header[6..8].copy_from_slice(&check);
            }
            frame.store(at, header)?;
            Some((IpProto::UDP, length))
        }
        Kind::Gre => {
            let [a, b] = inner.ether_type().0.to_be_bytes();
            if how.has_checksum() {
                let [c, d] = GRE_CHECKSUM.to_be_bytes();
                let header = [c, d, a, b];
                let [e, f] = checksum(sum(carried, &header));
                frame.store(at, [c, d, a, b, e, f, 0, 0])?;
            } else {
                frame.store(at, [0, 0, a, b])?;
            }
            Some((IpProto::GRE, length))
        }
    }
}

/// Adds an address to the sum of a checksum. What a mapped IPv4 address has before it, 0xffff, counts as nothing.
#[inline(always)]
fn add_address(total: u32, address: Address) -> u32 {
    let high = sum(total, &address.high().to_be_bytes());
    sum(high, &address.low().to_be_bytes())
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the address")]
fn ipv4(inner: &Inner, protocol: IpProto, length: u16, from: Address, to: Address) -> [u8; Ipv4Hdr::LEN] {
    let mut header = [0; Ipv4Hdr::LEN];
    header[0] = 0x45;
    header[1] = inner.outer_class();
    header[2..4].copy_from_slice(&(length + Ipv4Hdr::LEN as u16).to_be_bytes());
    // Another one for each packet of a flow where that matters: where routers may fragment.
    let identification = inner.identification ^ (inner.hash >> 16) as u16;
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&(inner.fragment & DONT_FRAGMENT).to_be_bytes());
    header[8] = inner.ttl;
    header[9] = protocol.0;
    header[12..16].copy_from_slice(&(from.low() as u32).to_be_bytes());
    header[16..20].copy_from_slice(&(to.low() as u32).to_be_bytes());
    let check = checksum(sum(0, &header));
    header[10..12].copy_from_slice(&check);
    header
}

/// An IPv6 header, its flow label of the flow's hash (RFC 6438).
#[inline(always)]
fn ipv6(inner: &Inner, protocol: IpProto, length: u16, from: Address, to: Address) -> [[u8; 8]; 5] {
    let label = inner.hash >> 32 & 0xf_ffff;
    let first = 6 << 60
        | u64::from(inner.outer_class()) << 52
        | label << 32
        | u64::from(length) << 16
        | u64::from(protocol.0) << 8
        | u64::from(inner.ttl);
    [first, from.high(), from.low(), to.high(), to.low()].map(u64::to_be_bytes)
}

/// Octets that are added to a checksum's sum at once.
const CHUNK: u32 = 32;

/// The sum of a checksum (RFC 1071) over `length` octets of a frame, folded to 16 bits; more than that where
/// they are not all there, or more than [`MOST_SUMMED`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub fn sum_of<F: Resize + ?Sized, M: Maps>(frame: &F, maps: &M, from: u32, length: u32) -> u64 {
    if length > u32::from(MOST_SUMMED) {
        return u64::MAX;
    }
    let mut sum = Sum {
        frame,
        from: u64::from(from),
        length: u64::from(length),
        total: 0,
        missing: 0,
    };
    maps.repeat(length.div_ceil(CHUNK), &mut sum);
    if sum.missing != 0 {
        return u64::MAX;
    }
    // At most 2^41 before the first time.
    let mut folded = (sum.total & 0xffff_ffff) + (sum.total >> 32);
    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    u64::from((folded as u16).swap_bytes())
}

/// The loop of [`sum_of`]. Whole words, so that the compiler joins no two of them into a store that is not
/// aligned.
struct Sum<'a, F: ?Sized> {
    frame: &'a F,
    from: u64,
    length: u64,
    total: u64,
    missing: u64,
}

impl<F: Resize + ?Sized> Sum<'_, F> {
    /// Adds the `N` octets at `at`: an even number, or the last one.
    #[inline(always)]
    fn add<const N: usize>(&mut self, at: u64) {
        // The mask comes last, and of what the compiler knows nothing: it shows the verifier that there is a bound.
        #[expect(clippy::cast_possible_truncation, reason = "a frame is shorter than 64 KiB")]
        let at = opaque(at as usize) & 0x7fff;
        // What is behind the first buffer is not to be had so.
        // The few that are left at the end are not worth two ways, which the verifier would both follow.
        if N == CHUNK as usize
            && let Some(octets) = self.frame.view::<[u8; N]>(at)
        {
            self.total += added(octets);
        } else if let Some(octets) = self.frame.read::<[u8; N]>(at) {
            self.total += added(&octets);
        } else {
            self.missing = 1;
        }
    }
}

/// The sum of octets, lowest first, four at once: that of RFC 1071 but for the order of its octets.
#[inline(always)]
fn added<const N: usize>(octets: &[u8; N]) -> u64 {
    let mut total = 0;
    let mut index = 0;
    while index < N {
        let octet = |at: usize| if at < N { octets[at] } else { 0 };
        let word = [octet(index), octet(index + 1), octet(index + 2), octet(index + 3)];
        total += u64::from(u32::from_le_bytes(word));
        index += 4;
    }
    total
}

impl<F: Resize + ?Sized, M: Maps> Step<M> for Sum<'_, F> {
    #[inline(always)]
    fn step(&mut self, _: &M, index: u32) -> bool {
        let done = u64::from(index * CHUNK);
        let mut at = self.from + done;
        let left = self.length.saturating_sub(done);
        if left >= u64::from(CHUNK) {
            self.add::<{ CHUNK as usize }>(at);
            return self.missing == 0;
        }
        if left & 16 != 0 {
            self.add::<16>(at);
            at += 16;
        }
        if left & 8 != 0 {
            self.add::<8>(at);
            at += 8;
        }
        if left & 4 != 0 {
            self.add::<4>(at);
            at += 4;
        }
        if left & 2 != 0 {
            self.add::<2>(at);
            at += 2;
        }
        if left & 1 != 0 {
            self.add::<1>(at);
        }
        false
    }
}

#[cfg(test)]
mod tests;
