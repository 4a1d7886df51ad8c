//! From a frame to a [`Packet`]: the common one, straight through.
//!
//! Each header is read through [`Frame::load`], which checks the end of the frame at every step, so nothing
//! past the end is ever read, whatever the lengths inside say. What is not common has a reason here, and is
//! looked at again where it may be for a service ([`crate::unusual`]).

use bytemuck::AnyBitPattern;
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    frame::Frame,
    packet::{Address, EtherType, IpProto, Mac, Packet},
    reason::Reason,
    signal::{self, Signal},
    verifier::opaque,
};

/// Octets of an 802.1Q tag.
pub(crate) const TAG: usize = 4;
/// The most tags that are walked over.
pub(crate) const MAX_TAGS: usize = 2;
/// IPv4: a fragment has an offset, or more fragments come (RFC 791, 3.1).
pub(crate) const FRAGMENT_MASK: u16 = 0x3fff;
/// IPv4: the offset of a fragment, in units of 8 octets (RFC 791, 3.1).
pub(crate) const OFFSET_MASK: u16 = 0x1fff;

/// An Ethernet header as it goes over the wire: both addresses in two words, which is how they are written, too.
#[derive(Clone, Copy, AnyBitPattern)]
#[repr(C, packed)]
pub struct Ethernet {
    /// To whom, and the first two octets of from whom.
    first: [u8; 8],
    second: [u8; 4],
    ether_type: u16,
}

impl Ethernet {
    /// To whom the frame is addressed.
    #[inline(always)]
    pub fn to(&self) -> Mac {
        Mac(u64::from_le_bytes(self.first) & Mac::MASK)
    }

    /// From whom it comes.
    #[inline(always)]
    pub fn from(&self) -> Mac {
        Mac(u64::from_le_bytes(self.first) >> 48 | u64::from(u32::from_le_bytes(self.second)) << 16)
    }
}

/// An IPv4 header without options as it goes over the wire (RFC 791, 3.1), its fields whole numbers: of octets the
/// compiler makes loads that no field asked for, and takes them apart again.
#[derive(Clone, Copy, AnyBitPattern)]
#[repr(C, packed)]
struct RawIpv4 {
    version_and_length: u8,
    _service: u8,
    total: u16,
    identification: u16,
    fragment: u16,
    _time_to_live: u8,
    protocol: u8,
    _checksum: u16,
    source: u32,
    destination: u32,
}

/// The beginning of a TCP header (RFC 9293, 3.1), in the same way.
#[derive(Clone, Copy, AnyBitPattern)]
#[repr(C, packed)]
struct RawTcp {
    ports: u32,
    _sequence: u32,
    _acknowledgment: u32,
    offset: u8,
    flags: u8,
}

/// A UDP header (RFC 768), in the same way.
#[derive(Clone, Copy, AnyBitPattern)]
#[repr(C, packed)]
struct RawUdp {
    ports: u32,
    length: u16,
    _checksum: u16,
}

const _: () = assert!(size_of::<RawIpv4>() == Ipv4Hdr::LEN && size_of::<RawUdp>() == UdpHdr::LEN);

#[inline(always)]
pub(crate) fn be16<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<u16> {
    frame.load::<[u8; 2]>(offset).map(u16::from_be_bytes)
}

/// What is behind the tags of a frame, and where it begins.
#[inline(always)]
pub(crate) fn network<F: Frame + ?Sized>(frame: &F) -> Option<(EtherType, usize)> {
    ethernet(frame).map(|(_, ether_type, at)| (ether_type, at))
}

/// A frame's Ethernet header, what is behind its tags, and where that begins.
#[inline(always)]
pub(crate) fn ethernet<F: Frame + ?Sized>(frame: &F) -> Option<(&Ethernet, EtherType, usize)> {
    let header: &Ethernet = frame.view(0)?;
    let mut ether_type = EtherType(u16::from_be(header.ether_type));
    let mut at = EthHdr::LEN;
    // Not a loop: the verifier is to know where the header begins.
    if ether_type.is_tag() {
        ether_type = EtherType(be16(frame, at + 2)?);
        at += TAG;
        if ether_type.is_tag() {
            ether_type = EtherType(be16(frame, at + 2)?);
            at += TAG;
        }
    }
    Some((header, ether_type, at))
}

/// Reads the headers of a TCP, UDP or SCTP packet, not a fragment, over IPv4, or over IPv6 without extension
/// headers, behind at most two tags.
///
/// # Errors
///
/// The reason why it is none. All of these reasons leave the packet to the host, unless something else is
/// found in it.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Packet, Reason> {
    let (header, ether_type, at) = ethernet(frame).ok_or(Reason::Malformed)?;
    if header.to().is_group() {
        return Err(Reason::NotUnicast);
    }
    match ether_type {
        EtherType::IPV4 => ipv4(frame, at),
        EtherType::IPV6 => ipv6(frame, at),
        _ => Err(Reason::NotIp),
    }
}

/// [`parse`] of a frame whose IPv4 header is at `at`.
#[inline(always)]
pub(crate) fn ipv4<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Packet, Reason> {
    let header = Ipv4::read(frame, at)?;
    if header.fragment & FRAGMENT_MASK != 0 {
        return Err(Reason::Fragment);
    }
    transport(frame, header.packet, at + header.length, header.room(), true)
}

/// [`parse`] of a frame whose IPv6 header is at `at`.
#[inline(always)]
pub(crate) fn ipv6<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Packet, Reason> {
    let header = Ipv6::read(frame, at)?;
    transport(frame, header.packet, at + Ipv6Hdr::LEN, header.room, true)
}

/// An IPv4 header.
pub(crate) struct Ipv4 {
    /// Addresses, protocol and length; the rest is still to be read.
    pub(crate) packet: Packet,
    /// Octets of the header.
    pub(crate) length: usize,
    /// Identification.
    pub(crate) identification: u16,
    /// Flags and offset, the latter in units of 8 octets.
    pub(crate) fragment: u16,
}

impl Ipv4 {
    /// Octets behind the header, as the header says: no less than none, which was looked at when it was read.
    #[inline(always)]
    pub(crate) fn room(&self) -> usize {
        self.packet.length as usize - self.length
    }

    /// Reads a header whose packet is all there.
    #[inline(always)]
    pub(crate) fn read<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Self, Reason> {
        let header = Self::read_cut(frame, at)?;
        if !frame.holds(at + header.packet.length as usize) {
            return Err(Reason::Malformed);
        }
        Ok(header)
    }

    /// Reads a header whose packet may have been cut off, as one in an ICMP error.
    #[inline(always)]
    pub(crate) fn read_cut<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Self, Reason> {
        let header: &RawIpv4 = frame.view(at).ok_or(Reason::Malformed)?;
        let length = usize::from(header.version_and_length & 0x0f) * 4;
        let total = u16::from_be(header.total);
        if header.version_and_length >> 4 != 4 || length < Ipv4Hdr::LEN || usize::from(total) < length {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            packet: Packet {
                source: Address::from_ipv4(u32::from_be(header.source)),
                destination: Address::from_ipv4(u32::from_be(header.destination)),
                source_port: 0,
                destination_port: 0,
                protocol: IpProto(header.protocol),
                signal: Signal(0),
                length: u32::from(total),
            },
            length,
            identification: u16::from_be(header.identification),
            fragment: u16::from_be(header.fragment),
        })
    }
}

/// An IPv6 header.
pub(crate) struct Ipv6 {
    /// Addresses, what the first next header is, and length; the rest is still to be read.
    pub(crate) packet: Packet,
    /// Octets behind the header, as the header says.
    pub(crate) room: usize,
}

impl Ipv6 {
    /// Reads a header whose packet is all there.
    #[inline(always)]
    pub(crate) fn read<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Self, Reason> {
        let header = Self::read_cut(frame, at)?;
        if !frame.holds(at + header.packet.length as usize) {
            return Err(Reason::Malformed);
        }
        Ok(header)
    }

    /// Reads a header whose packet may have been cut off, as one in an ICMP error.
    #[inline(always)]
    pub(crate) fn read_cut<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Self, Reason> {
        let [first, source_high, source_low, high, low]: [[u8; 8]; 5] =
            frame.load(at).ok_or(Reason::Malformed)?;
        if first[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let room = u16::from_be_bytes([first[4], first[5]]);
        let packet = Packet {
            source: Address::from_words([source_high, source_low]),
            destination: Address::from_words([high, low]),
            source_port: 0,
            destination_port: 0,
            protocol: IpProto(first[6]),
            signal: Signal(0),
            length: u32::from(room) + Ipv6Hdr::LEN as u32,
        };
        // A mapped address on the wire would be taken for IPv4's (draft-itojun-v6ops-v4mapped-harmful).
        if packet.source.is_ipv4() || packet.destination.is_ipv4() {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            packet,
            room: usize::from(room),
        })
    }
}

/// Reads the header at `at` of a packet whose `protocol` says what it is. `room` is how many octets the
/// packet has from there on; not all of them are its own unless it `is_whole`.
#[inline(always)]
pub(crate) fn transport<F: Frame + ?Sized>(
    frame: &F,
    packet: Packet,
    at: usize,
    room: usize,
    is_whole: bool,
) -> Result<Packet, Reason> {
    match packet.protocol {
        IpProto::TCP => {
            // One load, so that one check of the end covers both the ports and the flags.
            let header: &RawTcp = frame.view(at).ok_or(Reason::Malformed)?;
            let length = usize::from(header.offset >> 4) * 4;
            if length < TcpHdr::LEN || length > room {
                return Err(Reason::Malformed);
            }
            Ok(Packet {
                signal: Signal(header.flags),
                ..with_ports(packet, u32::from_be(header.ports))
            })
        }
        IpProto::UDP => {
            let header: &RawUdp = frame.view(at).ok_or(Reason::Malformed)?;
            let length = usize::from(u16::from_be(header.length));
            if room < UdpHdr::LEN || length < UdpHdr::LEN || (is_whole && length > room) {
                return Err(Reason::Malformed);
            }
            Ok(with_ports(packet, u32::from_be(header.ports)))
        }
        IpProto::SCTP => {
            if room < SCTP_HEADER {
                return Err(Reason::Malformed);
            }
            let ports: [u8; 4] = frame.load(at).ok_or(Reason::Malformed)?;
            Ok(Packet {
                signal: sctp_signal(frame, at, room),
                ..with_ports(packet, u32::from_be_bytes(ports))
            })
        }
        _ => Err(Reason::OtherProtocol),
    }
}

const SCTP_HEADER: usize = 12;
const CHUNK_HEADER: usize = 4;

/// The type of an SCTP packet's first chunk. Behind a COOKIE ECHO or COOKIE ACK an ABORT may follow, and
/// counts then (`set_sctp_state`). `room` is the length of header and chunks together.
#[inline(always)]
fn sctp_signal<F: Frame + ?Sized>(frame: &F, transport: usize, room: usize) -> Signal {
    let chunk = |at: usize| -> Option<[u8; CHUNK_HEADER]> {
        (at + CHUNK_HEADER <= room)
            .then(|| frame.load(transport + at))
            .flatten()
    };
    let Some([kind, _, high, low]) = chunk(SCTP_HEADER) else {
        return Signal(Signal::OTHER_CHUNK);
    };
    if kind == signal::COOKIE_ECHO || kind == signal::COOKIE_ACK {
        let length = usize::from(u16::from_be_bytes([high, low]));
        // Rounded up to four octets; at most 16 KiB. The mask comes last, and of what the compiler knows nothing:
        // it is what shows the verifier that there is a bound.
        let next = SCTP_HEADER + ((opaque(length) + 3) & 0x3ffc);
        if length >= CHUNK_HEADER && chunk(next).is_some_and(|next| next[0] == signal::ABORT) {
            return Signal(signal::ABORT);
        }
    }
    Signal(kind)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
pub(crate) fn with_ports(packet: Packet, ports: u32) -> Packet {
    Packet {
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        ..packet
    }
}

#[cfg(test)]
mod tests;
