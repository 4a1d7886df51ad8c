//! A second look at what is no common packet: fragments, extension headers, ICMP errors, echo requests.
//!
//! What is found is a packet like any other, put down where the director finds it ([`Unusual`]), or a decision:
//! where it goes, or why it stays. In the program all of this is a function of its own, so that the
//! common packet does not pay for it.

use network_types::ip::Ipv6Hdr;

use crate::{
    abi::{ListWord, Options, RingWord, destination_flag, vip_flag},
    decision::Decision,
    director,
    flow::Flow,
    frame::Frame,
    hash,
    maps::Maps,
    packet::{Address, EtherType, IpProto, Packet},
    parse::{self, FRAGMENT_MASK, Ipv4, Ipv6, OFFSET_MASK},
    reason::Reason,
    scheduler,
    signal::Signal,
    table::{self, Key},
    verifier::opaque,
};

/// The most extension headers that are walked over.
const MAX_HEADERS: u32 = 8;
/// Seconds after which no fragment is expected any more: the kernel's time for reassembly
/// (`ipfrag_time`, `ip6frag_time`: 30 and 60).
const FRAGMENT_SECONDS: u32 = 60;

/// What tells the fragments of one packet from others' (RFC 791, 3.2; RFC 8200, 4.5). Whole words.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey {
    /// Who sent it.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// Bits 0..32 the identification, 32..40 the protocol (of IPv6: 0).
    pub identification: u64,
}

impl FragmentKey {
    /// As words.
    #[cfg(not(target_arch = "bpf"))]
    pub const fn words(&self) -> [u64; 5] {
        let Self {
            source,
            destination,
            identification,
        } = self;
        [
            source.high(),
            source.low(),
            destination.high(),
            destination.low(),
            *identification,
        ]
    }
}

/// A packet that was found on the second look, as whole words: it lies in a row of its own.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unusual {
    /// Its addresses, and what its further fragments are known by.
    pub key: FragmentKey,
    /// Bits 0..16 its source port, 16..32 destination port, 32..40 protocol, 40..48 signal.
    what: u64,
    /// Length of the IP packet in bytes.
    length: u64,
}

impl Unusual {
    #[inline(always)]
    fn new(packet: &Packet, identification: u64) -> Self {
        Self {
            key: FragmentKey {
                source: packet.source,
                destination: packet.destination,
                identification,
            },
            what: u64::from(packet.source_port)
                | u64::from(packet.destination_port) << 16
                | u64::from(packet.protocol.0) << 32
                | u64::from(packet.signal.0) << 40,
            length: u64::from(packet.length),
        }
    }

    /// Words of it.
    pub const WORDS: usize = 7;

    /// As words.
    #[cfg(not(target_arch = "bpf"))]
    pub const fn words(&self) -> [u64; Self::WORDS] {
        let [a, b, c, d, e] = self.key.words();
        [a, b, c, d, e, self.what, self.length]
    }

    /// From its words.
    #[cfg(not(target_arch = "bpf"))]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [a, b, c, d, identification, what, length] = words;
        Self {
            key: FragmentKey {
                source: Address::from_halves(a, b),
                destination: Address::from_halves(c, d),
                identification,
            },
            what,
            length,
        }
    }

    /// The packet.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
    pub fn packet(&self) -> Packet {
        Packet {
            source: self.key.source,
            destination: self.key.destination,
            source_port: self.what as u16,
            destination_port: (self.what >> 16) as u16,
            protocol: IpProto((self.what >> 32) as u8),
            signal: Signal((self.what >> 40) as u8),
            length: self.length as u32,
        }
    }
}

/// Looks at a frame that [`parse::parse`] found to be no common packet. The result is [`Decision`]'s.
#[inline(always)]
pub fn look<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M) -> u64 {
    let Some((header, ether_type, at)) = parse::ethernet(frame) else {
        return Decision::stays(Reason::Malformed).0;
    };
    let seen = match ether_type {
        _ if header.to().is_group() => Ok(Decision::stays(Reason::NotUnicast)),
        EtherType::IPV4 => ipv4(frame, maps, at),
        EtherType::IPV6 => ipv6(frame, maps, at),
        _ => Ok(Decision::stays(Reason::NotIp)),
    };
    match seen {
        Ok(seen) => seen.0,
        Err(reason) => Decision::stays(reason).0,
    }
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, at: usize) -> Result<Decision, Reason> {
    let header = Ipv4::read(frame, at)?;
    let packet = header.packet;
    let identification = u64::from(header.identification) | u64::from(packet.protocol.0) << 32;
    if header.fragment & OFFSET_MASK != 0 {
        return Ok(later_fragment(maps, &packet, identification));
    }
    let is_first = header.fragment & FRAGMENT_MASK != 0;
    let at = at + header.length;
    if packet.protocol == IpProto::ICMP && !is_first {
        return icmp(frame, maps, &packet, at, header.room());
    }
    let packet = parse::transport(frame, packet, at, header.room(), !is_first)?;
    Ok(put_down(maps, &packet, identification, is_first))
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, at: usize) -> Result<Decision, Reason> {
    let header = Ipv6::read(frame, at)?;
    let behind = at + Ipv6Hdr::LEN;
    let walked = walked(frame, header.packet.protocol, behind)?;
    let packet = Packet {
        protocol: walked.protocol(),
        ..header.packet
    };
    let identification = match walked.fragment() {
        Some(place) => {
            let field = frame.load(behind + place + 4).ok_or(Reason::Malformed)?;
            u64::from(u32::from_be_bytes(field))
        }
        None => 0,
    };
    let room = header
        .room
        .checked_sub(walked.skipped())
        .ok_or(Reason::Malformed)?;
    if walked.0 & Walked::LATER != 0 {
        return Ok(later_fragment(maps, &packet, identification));
    }
    let is_first = walked.0 & Walked::FIRST != 0;
    let at = behind + walked.skipped();
    if packet.protocol == IpProto::ICMPV6 && !is_first {
        return icmpv6(frame, maps, &packet, at, room);
    }
    let packet = parse::transport(frame, packet, at, room, !is_first)?;
    Ok(put_down(maps, &packet, identification, is_first))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a place in a frame")]
fn walked<F: Frame + ?Sized>(frame: &F, first: IpProto, at: usize) -> Result<Walked, Reason> {
    Walked(frame.walk(u32::from(first.0), at as u32)).check()
}

/// Puts a packet down where the director finds it.
#[inline(always)]
fn put_down<M: Maps>(maps: &M, packet: &Packet, identification: u64, is_first: bool) -> Decision {
    maps.put_unusual(&Unusual::new(packet, identification));
    Decision::packet(is_first)
}

/// What is behind IPv6's extension headers, in one register:
/// bits 0..8 the protocol, 8..23 octets skipped, 24 first fragment, 25 later one, 26 any, 28..43 octets before the
/// fragment header; from 48 on one more than the reason why they cannot be walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked(pub u64);

impl Walked {
    const FIRST: u64 = 1 << 24;
    const LATER: u64 = 1 << 25;
    const FRAGMENT: u64 = 1 << 26;

    #[inline(always)]
    const fn failed(reason: Reason) -> Self {
        Self((reason as u64 + 1) << 48)
    }

    #[inline(always)]
    fn check(self) -> Result<Self, Reason> {
        if self.0 >> 48 == 0 {
            Ok(self)
        } else {
            Err(Reason::from_number((self.0 >> 48) as u32 - 1))
        }
    }

    /// What the last header says.
    #[inline(always)]
    const fn protocol(self) -> IpProto {
        IpProto((self.0 & 0xff) as u8)
    }

    /// Octets of all of them.
    #[inline(always)]
    const fn skipped(self) -> usize {
        (self.0 >> 8 & MASK as u64) as usize
    }

    /// Octets before the header of `protocol`; `None` where something else is there, or a fragment.
    #[inline(always)]
    pub(crate) fn to(self, protocol: IpProto) -> Option<usize> {
        let is_there = self.0 >> 48 == 0 && self.0 & Self::FRAGMENT == 0 && self.protocol() == protocol;
        is_there.then_some(self.skipped())
    }

    /// Octets before the fragment header; `None` where there is none.
    #[inline(always)]
    const fn fragment(self) -> Option<usize> {
        if self.0 & Self::FRAGMENT != 0 {
            Some((self.0 >> 28 & MASK as u64) as usize)
        } else {
            None
        }
    }
}

/// How far extension headers are followed: 16 KiB. Two such walks end within the 64 KiB that the verifier follows a
/// pointer into a packet.
const MASK: usize = 0x3fff;

/// Walks over IPv6's extension headers from `at` on (RFC 8200, 4.1; `ipv6_find_hdr`). Behind a fragment's header
/// that is not the first one there are none. The result is [`Walked`]'s.
#[inline(always)]
pub fn walk<F: Frame + ?Sized>(frame: &F, first: u32, at: u32) -> u64 {
    let at = opaque(at as usize) & MASK;
    #[expect(clippy::cast_possible_truncation, reason = "it was an octet")]
    let mut protocol = IpProto(first as u8);
    let mut skipped = 0;
    let mut fragment = 0;
    let mut round = 0;
    while round < MAX_HEADERS {
        let Some([next, length, high, low]) = frame.load::<[u8; 4]>(at + skipped) else {
            return Walked::failed(Reason::Malformed).0;
        };
        let length = match protocol {
            IpProto::FRAGMENT => {
                fragment = Walked::FRAGMENT
                    | (skipped as u64) << 28
                    | if high != 0 || low >> 3 != 0 {
                        Walked::LATER
                    } else if low & 1 != 0 {
                        Walked::FIRST
                    } else {
                        0
                    };
                8
            }
            IpProto::HOP_BY_HOP | IpProto::ROUTING | IpProto::DESTINATION_OPTIONS => {
                (usize::from(length) + 1) * 8
            }
            IpProto::AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => return u64::from(protocol.0) | (skipped as u64) << 8 | fragment,
        };
        protocol = IpProto(next);
        // The mask comes last, and of what the compiler knows nothing: it is what shows the verifier that
        // there is a bound.
        skipped = opaque(skipped + length) & MASK;
        if fragment & Walked::LATER != 0 {
            return u64::from(protocol.0) | (skipped as u64) << 8 | fragment;
        }
        round += 1;
    }
    Walked::failed(Reason::TooManyHeaders).0
}

/// A fragment that is not the first one has no ports: it goes where the first one went.
#[inline(always)]
fn later_fragment<M: Maps>(maps: &M, packet: &Packet, identification: u64) -> Decision {
    let found = Unusual::new(packet, identification);
    let kept = maps.fragment(&found.key);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    let (destination, since) = (kept as u32, (kept >> 32) as u32);
    let is_there = maps.destination(destination).is_some_and(|row| {
        let flags = row.towards.load();
        flags & destination_flag::USED != 0 && flags & destination_flag::REMOVED == 0
    });
    if destination != 0 && is_there && maps.now().wrapping_sub(since) <= FRAGMENT_SECONDS {
        Decision::goes(Reason::Fragment, destination, packet.length)
    } else if maps.vip(&found.key.destination) == 0 {
        Decision::stays(Reason::NotForUs)
    } else {
        Decision::stays(Reason::FragmentUnknown)
    }
}

/// Keeps where the first fragment of the packet that was put down goes.
#[inline(always)]
pub fn keep_fragment<M: Maps>(maps: &M, destination: u32) {
    if let Some(found) = maps.unusual() {
        maps.keep_fragment(&found.key, u64::from(maps.now()) << 32 | u64::from(destination));
    }
}

/// Octets of the header of an error or an echo request, of ICMP and ICMPv6.
const ICMP_HEADER: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_SOURCE_QUENCH: u8 = 4;
const ICMP_ECHO: u8 = 8;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER_PROBLEM: u8 = 12;
const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_PARAMETER_PROBLEM: u8 = 4;
const ICMPV6_ECHO: u8 = 128;

#[inline(always)]
fn icmp<F: Frame + ?Sized, M: Maps>(
    frame: &F,
    maps: &M,
    outer: &Packet,
    at: usize,
    room: usize,
) -> Result<Decision, Reason> {
    let [kind, code]: [u8; 2] = frame.load(at).ok_or(Reason::Malformed)?;
    match kind {
        ICMP_ECHO => Ok(echo(maps, outer, code, room)),
        ICMP_UNREACHABLE | ICMP_SOURCE_QUENCH | ICMP_TIME_EXCEEDED | ICMP_PARAMETER_PROBLEM => {
            let at = at + ICMP_HEADER;
            let inner = Ipv4::read_cut(frame, at)?;
            if inner.fragment & OFFSET_MASK != 0 {
                // Without ports there is no telling whose it is.
                return Ok(Decision::stays(Reason::RelatedUnknown));
            }
            related(frame, maps, outer, inner.packet, at + inner.length)
        }
        _ => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn icmpv6<F: Frame + ?Sized, M: Maps>(
    frame: &F,
    maps: &M,
    outer: &Packet,
    at: usize,
    room: usize,
) -> Result<Decision, Reason> {
    let [kind, code]: [u8; 2] = frame.load(at).ok_or(Reason::Malformed)?;
    match kind {
        ICMPV6_ECHO => Ok(echo(maps, outer, code, room)),
        ICMPV6_UNREACHABLE..=ICMPV6_PARAMETER_PROBLEM => {
            let at = at + ICMP_HEADER;
            let inner = Ipv6::read_cut(frame, at)?;
            let walked = walked(frame, inner.packet.protocol, at + Ipv6Hdr::LEN)?;
            if walked.0 & Walked::LATER != 0 {
                return Ok(Decision::stays(Reason::RelatedUnknown));
            }
            let packet = Packet {
                protocol: walked.protocol(),
                ..inner.packet
            };
            related(frame, maps, outer, packet, at + Ipv6Hdr::LEN + walked.skipped())
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// An echo request is the host's own, unless it is to a virtual address that the host has not.
#[inline(always)]
fn echo<M: Maps>(maps: &M, outer: &Packet, code: u8, room: usize) -> Decision {
    let flags = maps.vip(&outer.destination);
    if flags == 0 || flags & vip_flag::LOCAL != 0 || code != 0 || room < ICMP_HEADER {
        Decision::stays(Reason::OtherProtocol)
    } else {
        Decision::stays(Reason::Echo)
    }
}

/// An ICMP error about a packet that a real server has sent (`ip_vs_in_icmp`), whose header is at `at`: puts down the
/// packet that it answered.
#[inline(always)]
fn related<F: Frame + ?Sized, M: Maps>(
    frame: &F,
    maps: &M,
    outer: &Packet,
    inner: Packet,
    at: usize,
) -> Result<Decision, Reason> {
    if !inner.protocol.has_services() || inner.source != outer.destination {
        return Err(Reason::OtherProtocol);
    }
    // The first 8 octets are all that must be there (RFC 792).
    let ports = frame.load(at).map(u32::from_be_bytes).ok_or(Reason::Malformed)?;
    let answered = Packet {
        source: inner.destination,
        destination: inner.source,
        ..parse::with_ports(inner, ports.rotate_left(16))
    };
    maps.put_unusual(&Unusual::new(&answered, 0));
    // Whose it is, the director asks: called from here it would be one more frame on a stack that has no room.
    Ok(Decision::goes(Reason::Related, 0, outer.length))
}

/// The destination that the flow of the packet that was put down goes to, by its entry, or by its hash alone;
/// [`scheduler::NONE`] where there is none. The entry stays as it is.
#[inline(always)]
pub fn whose<M: Maps>(maps: &M) -> u32 {
    let Some(found) = maps.unusual() else {
        return scheduler::NONE;
    };
    let packet = &found.packet();
    let id = director::search_service(maps, packet);
    let Some(row) = maps.service(id) else {
        return scheduler::NONE;
    };
    if id == 0 && !director::is_unmarked(maps) {
        return scheduler::NONE;
    }
    let flow = Flow::new(packet, id);
    let control = maps.control();
    let key = Key::new(hash::flow(control.key(), &flow), control.bucket_mask.load());
    if let Some((place, entry)) = table::find(maps, key)
        && !table::is_expired(maps, entry, maps.now())
        && table::is_flow(maps, place, &flow)
        // From before it was so there may be entries, which its other packets do not go by.
        && !director::is_stateless(maps, row)
    {
        let is_there = maps
            .destination(entry.destination())
            .is_some_and(|row| row.towards.load() & destination_flag::REMOVED == 0);
        return if is_there {
            entry.destination()
        } else {
            scheduler::NONE
        };
    }
    let configuration = (control.generation.load() & 1) as usize;
    let list = ListWord(row.lists[configuration].load());
    let options = Options(row.options[configuration].load());
    if list.kind().is_hash() && !options.is_persistent() {
        let ring = RingWord(row.rings[configuration].load());
        return scheduler::choose(maps, list, ring, &flow);
    }
    scheduler::NONE
}

#[cfg(test)]
mod tests;
