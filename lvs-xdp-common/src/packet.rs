//! From a frame to what the director needs to know of it.
//!
//! A cursor walks the headers; each is read through [`Frame::load`], which checks the end of the
//! frame at every step, so nothing past the end is ever read, whatever the lengths inside say.

use bytemuck::{AnyBitPattern, NoUninit};
use network_types::{eth::EthHdr, ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr};

use crate::reason::Reason;

/// A frame that may be read, and written where its first bytes are, with its end checked.
pub trait Frame {
    /// The value at `offset` bytes from the frame's start, in the frame's own byte order; `None` past the end.
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;
    /// Writes `value` at `offset`; `None`, and nothing written, past the end.
    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()>;
}

impl Frame for [u8] {
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()> {
        self.get_mut(offset..offset.checked_add(size_of::<T>())?)?
            .copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }
}

/// An EtherType (IEEE 802.3), host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(0x0800);
    /// An 802.1Q tag follows.
    pub const VLAN: Self = Self(0x8100);
}

/// An IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpProto(pub u8);

impl IpProto {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
}

/// An IPv6 address, or an IPv4 address mapped into one (RFC 4291, 2.5.5.2), as two big-endian halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    high: u64,
    low: u64,
}

const MAPPED: u64 = 0xffff_0000_0000;

impl Address {
    /// The mapped form of an IPv4 address given in host byte order.
    #[inline(always)]
    pub const fn from_ipv4(address: u32) -> Self {
        Self {
            high: 0,
            low: MAPPED | address as u64,
        }
    }

    /// The address of these 16 octets, as they go over the wire.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(octets);
        #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
        Self::from_halves((value >> 64) as u64, value as u64)
    }

    /// The address of these two halves, each in host byte order.
    #[inline(always)]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The 16 octets as they go over the wire.
    pub const fn octets(self) -> [u8; 16] {
        ((self.high as u128) << 64 | self.low as u128).to_be_bytes()
    }

    /// The upper 64 bits.
    #[inline(always)]
    pub const fn high(self) -> u64 {
        self.high
    }

    /// The lower 64 bits.
    #[inline(always)]
    pub const fn low(self) -> u64 {
        self.low
    }

    /// Whether it is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_ipv4(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
}

/// A 48-bit MAC address as the lower bits of a word, its first octet lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub u64);

impl Mac {
    /// All the bits of a MAC address.
    pub const MASK: u64 = 0xffff_ffff_ffff;

    /// From the octets as they go over the wire.
    pub const fn from_octets(o: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([o[0], o[1], o[2], o[3], o[4], o[5], 0, 0]))
    }

    /// The octets as they go over the wire.
    pub const fn octets(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Whether it is a group address (IEEE 802: the first octet's lowest bit).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }
}

/// What of a packet drives its connection's state, as it came: the 14th octet of a TCP header, the type of
/// an SCTP packet's first chunk, 0 for UDP. A program that knows which event it is has a path for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub u8);

impl Signal {
    /// An SCTP packet without a whole chunk, or whose first chunk is of a type without a meaning here.
    const OTHER_CHUNK: u8 = 0;

    /// Whether it opens a connection, be there one already: TCP's SYN, whatever comes with it, SCTP's INIT
    /// (`is_new_conn`). UDP has nothing to tell its first packet by.
    #[inline(always)]
    pub const fn opens(self, protocol: IpProto) -> bool {
        match protocol {
            IpProto::TCP => self.0 & 0x02 != 0,
            IpProto::SCTP => self.0 == 1,
            _ => false,
        }
    }

    /// Whether a packet without a connection is scheduled: of TCP a SYN, or, where that is sloppy, anything, but
    /// never an RST (`tcp_conn_schedule`); of SCTP an INIT, or anything (`sctp_conn_schedule`).
    #[inline(always)]
    pub const fn starts(self, protocol: IpProto, is_sloppy: bool) -> bool {
        match protocol {
            IpProto::TCP => self.0 & 0x04 == 0 && (is_sloppy || self.opens(protocol)),
            IpProto::SCTP => is_sloppy || self.opens(protocol),
            _ => true,
        }
    }

    /// Whether it can be no more than a sign of life for an entry in any state but TCP's SYN_RECV: no SYN,
    /// FIN or RST, no chunk but data and what comes with it.
    #[inline(always)]
    pub const fn is_quiet(self, is_sctp: bool) -> bool {
        if is_sctp {
            // DATA, SACK, HEARTBEAT, HEARTBEAT ACK, ECNE, CWR, and all from 15 on.
            CHUNKS_WITH_MEANING >> (self.0 & 0x1f) & 1 == 0 || self.0 > 0x1f
        } else {
            self.0 & 0x07 == 0
        }
    }

    /// TCP's ACK flag.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// What it is to the state machine.
    ///
    /// TCP: RST, else SYN, else FIN, else ACK (`tcp_state_idx`, net/netfilter/ipvs/ip_vs_proto_tcp.c).
    /// SCTP: by the chunk's type (`sctp_events`, ip_vs_proto_sctp.c; RFC 9260, 3.2).
    #[inline(always)]
    pub const fn event(self, protocol: IpProto) -> Event {
        match protocol {
            IpProto::TCP => {
                if self.0 & 0x04 != 0 {
                    Event::Rst
                } else if self.0 & 0x02 != 0 {
                    Event::Syn
                } else if self.0 & 0x01 != 0 {
                    Event::Fin
                } else if self.0 & 0x10 != 0 {
                    Event::Ack
                } else {
                    Event::None
                }
            }
            IpProto::SCTP => match self.0 {
                1 => Event::Init,
                2 => Event::InitAck,
                6 => Event::Abort,
                7 => Event::Shutdown,
                8 => Event::ShutdownAck,
                9 => Event::Error,
                10 => Event::CookieEcho,
                11 => Event::CookieAck,
                14 => Event::ShutdownComplete,
                _ => Event::Data,
            },
            _ => Event::None,
        }
    }
}

/// Types of chunks that are not data to the state machine.
const CHUNKS_WITH_MEANING: u32 =
    1 << 1 | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// What drives the state machines of TCP and SCTP; the numbers index [`crate::connection`]'s tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// TCP without a flag that counts, UDP: changes nothing.
    None = 0,
    /// TCP: resets the connection.
    Rst = 1,
    /// TCP: opens one.
    Syn = 2,
    /// TCP: closes one.
    Fin = 3,
    /// TCP: acknowledges.
    Ack = 4,
    /// SCTP: DATA, SACK, HEARTBEAT and what has no meaning here.
    Data = 5,
    /// SCTP: opens an association.
    Init = 6,
    /// SCTP: INIT ACK.
    InitAck = 7,
    /// SCTP: COOKIE ECHO.
    CookieEcho = 8,
    /// SCTP: COOKIE ACK.
    CookieAck = 9,
    /// SCTP: SHUTDOWN.
    Shutdown = 10,
    /// SCTP: SHUTDOWN ACK.
    ShutdownAck = 11,
    /// SCTP: SHUTDOWN COMPLETE.
    ShutdownComplete = 12,
    /// SCTP: ERROR.
    Error = 13,
    /// SCTP: ABORT.
    Abort = 14,
}

/// A TCP, UDP or SCTP packet over IPv4, not a fragment, with whole headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// To whom the frame is addressed.
    pub mac: Mac,
    /// The client.
    pub source: Address,
    /// The virtual address, if there is a service for it.
    pub destination: Address,
    /// The client's port, host byte order.
    pub source_port: u16,
    /// The virtual port, host byte order.
    pub destination_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: IpProto,
    /// What it does to its connection.
    pub signal: Signal,
    /// Length of the IP packet in bytes, as its header says.
    pub length: u16,
}

/// Octets of an 802.1Q tag.
pub(crate) const VLAN_LENGTH: usize = 4;
const FRAGMENT_MASK: u16 = 0x3fff; // more fragments, and the offset (RFC 791)

#[inline(always)]
fn be16<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<u16> {
    frame.load::<[u8; 2]>(offset).map(u16::from_be_bytes)
}

/// Reads a frame's headers.
///
/// # Errors
///
/// The reason why this is no packet that a service could be found for. All of these reasons leave
/// the packet to the host: whether it is for a virtual service cannot be told.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Packet, Reason> {
    let octets: [u8; 6] = frame.load(0).ok_or(Reason::Malformed)?;
    let mac = Mac::from_octets(octets);
    if mac.is_group() {
        return Err(Reason::NotUnicast);
    }
    let mut ether_type = EtherType(be16(frame, 12).ok_or(Reason::Malformed)?);
    let mut network = EthHdr::LEN;
    if ether_type == EtherType::VLAN {
        ether_type = EtherType(be16(frame, EthHdr::LEN + 2).ok_or(Reason::Malformed)?);
        network += VLAN_LENGTH;
    }
    if ether_type != EtherType::IPV4 {
        return Err(Reason::NotIp);
    }
    parse_ipv4(frame, network, mac)
}

#[inline(always)]
fn parse_ipv4<F: Frame + ?Sized>(frame: &F, network: usize, mac: Mac) -> Result<Packet, Reason> {
    // One check for the whole fixed header: the loads below it need none of their own.
    let header: [u8; Ipv4Hdr::LEN] = frame.load(network).ok_or(Reason::Malformed)?;
    let field16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let field32 =
        |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = field16(2);
    if header[0] >> 4 != 4 || header_length < Ipv4Hdr::LEN || usize::from(length) < header_length {
        return Err(Reason::Malformed);
    }
    if field16(6) & FRAGMENT_MASK != 0 {
        return Err(Reason::Fragment);
    }
    let protocol = IpProto(header[9]);
    let transport = network + header_length;
    let packet = Packet {
        mac,
        source: Address::from_ipv4(field32(12)),
        destination: Address::from_ipv4(field32(16)),
        source_port: 0,
        destination_port: 0,
        protocol,
        signal: Signal(0),
        length,
    };
    match protocol {
        IpProto::TCP => {
            if usize::from(length) < header_length + TcpHdr::LEN {
                return Err(Reason::Malformed);
            }
            // One load, so that one check of the end covers both the ports and the flags.
            let header: [u8; 14] = frame.load(transport).ok_or(Reason::Malformed)?;
            let ports = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            Ok(Packet {
                signal: Signal(header[13]),
                ..with_ports(packet, ports)
            })
        }
        IpProto::UDP => {
            if usize::from(length) < header_length + UdpHdr::LEN {
                return Err(Reason::Malformed);
            }
            Ok(with_ports(
                packet,
                frame
                    .load(transport)
                    .map(u32::from_be_bytes)
                    .ok_or(Reason::Malformed)?,
            ))
        }
        IpProto::SCTP => {
            if usize::from(length) < header_length + SCTP_HEADER {
                return Err(Reason::Malformed);
            }
            let ports: [u8; 4] = frame.load(transport).ok_or(Reason::Malformed)?;
            let room = usize::from(length) - header_length;
            Ok(Packet {
                signal: sctp_signal(frame, transport, room),
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
    if kind == COOKIE_ECHO || kind == COOKIE_ACK {
        let length = usize::from(u16::from_be_bytes([high, low]));
        // Rounded up to four octets; at most 16 KiB. The mask comes last, and of what the compiler knows nothing:
        // it is what shows the verifier that there is a bound.
        let next = SCTP_HEADER + ((core::hint::black_box(length) + 3) & 0x3ffc);
        if length >= CHUNK_HEADER && chunk(next).is_some_and(|next| next[0] == ABORT) {
            return Signal(ABORT);
        }
    }
    Signal(kind)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
fn with_ports(packet: Packet, ports: u32) -> Packet {
    Packet {
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        ..packet
    }
}

/// Writes both MAC addresses of a frame: the only bytes that direct routing changes.
///
/// As one 8-byte and one 4-byte store, not octet by octet.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "what does not fit went into the first store"
)]
pub fn rewrite_macs<F: Frame + ?Sized>(frame: &mut F, to: Mac, from: Mac) -> Option<()> {
    frame.store(0, (to.0 & Mac::MASK | from.0 << 48).to_le_bytes())?;
    frame.store(8, ((from.0 >> 16) as u32).to_le_bytes())
}

#[cfg(test)]
impl Packet {
    /// A SYN from 192.168.1.200:40000 to 192.168.2.100:80.
    pub(crate) fn sample() -> Self {
        Self {
            mac: Mac::from_octets([2, 0, 0, 0, 0, 10]),
            source: Address::from_ipv4(0xc0a8_01c8),
            destination: Address::from_ipv4(0xc0a8_0264),
            source_port: 40000,
            destination_port: 80,
            protocol: IpProto::TCP,
            signal: Signal(0x02),
            length: 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A frame as the reference case's client sends it, with `options` bytes of IP options, a VLAN tag if asked.
    fn frame(tagged: bool, options: usize, protocol: u8, flags: u8) -> Vec<u8> {
        let mut frame = Vec::from([2, 0, 0, 0, 0, 10, 2, 0, 0, 0, 0, 1]);
        if tagged {
            frame.extend([0x81, 0x00, 0x20, 0x05]);
        }
        let length = u16::try_from(20 + options + 20 + 10).unwrap().to_be_bytes();
        frame.extend([
            8,
            0,
            0x45 + u8::try_from(options / 4).unwrap(),
            0,
            length[0],
            length[1],
        ]);
        frame.extend([
            0, 1, 0x40, 0, 64, protocol, 0, 0, 192, 168, 1, 200, 192, 168, 2, 100,
        ]);
        frame.extend(core::iter::repeat_n(1, options));
        frame.extend([
            0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(core::iter::repeat_n(b'x', 10));
        frame
    }

    #[test]
    fn a_syn_is_read_with_and_without_tag_and_options() {
        for tagged in [false, true] {
            for options in [0, 4, 40] {
                let length = u16::try_from(50 + options).unwrap();
                let expected = Packet {
                    length,
                    ..Packet::sample()
                };
                assert_eq!(parse(&frame(tagged, options, 6, 0x02)[..]), Ok(expected));
            }
        }
    }

    #[test]
    fn udp_has_no_flags() {
        let packet = parse(&frame(false, 0, 17, 0x02)[..]).unwrap();
        assert_eq!((packet.signal, packet.destination_port), (Signal(0), 80));
    }

    #[test]
    fn flags_count_in_ipvs_order() {
        for (octet, event) in [
            (0x04 | 0x02, Event::Rst),
            (0x02 | 0x01, Event::Syn),
            (0x01 | 0x10, Event::Fin),
            (0x10 | 0x08, Event::Ack),
            (0x08, Event::None),
        ] {
            assert_eq!(Signal(octet).event(IpProto::TCP), event);
            assert_eq!(
                Signal(octet).is_quiet(false),
                matches!(event, Event::Ack | Event::None)
            );
        }
        for (octet, opens, starts) in [
            (0x02, true, [true, true]),
            (0x12, true, [true, true]),
            (0x03, true, [true, true]),
            (0x06, true, [false, false]),
            (0x10, false, [false, true]),
            (0x04, false, [false, false]),
            (0x00, false, [false, true]),
        ] {
            let packet = parse(&frame(false, 0, 6, octet)[..]).unwrap();
            assert_eq!(packet.signal.opens(packet.protocol), opens, "{octet:#04x}");
            let starts_if = |is_sloppy| packet.signal.starts(packet.protocol, is_sloppy);
            assert_eq!([false, true].map(starts_if), starts, "{octet:#04x}");
        }
    }

    #[test]
    fn an_sctp_packet_is_known_by_its_first_chunk() {
        // The frame's length leaves room for 18 octets of chunks.
        let with = |chunks: &[u8]| {
            let mut frame = frame(false, 0, 132, 0);
            frame[14 + 20 + 12..][..chunks.len()].copy_from_slice(chunks);
            let packet = parse(&frame[..]).unwrap();
            assert_eq!((packet.source_port, packet.destination_port), (40000, 80));
            packet.signal
        };
        assert_eq!(with(&[1, 0, 0, 18]), Signal(1));
        assert!(with(&[1, 0, 0, 18]).opens(IpProto::SCTP));
        assert_eq!(with(&[0, 3, 0, 18]).event(IpProto::SCTP), Event::Data);
        assert_eq!(with(&[10, 0, 0, 6, 1, 2, 0, 0, 6, 0, 0, 4]), Signal(ABORT));
        assert_eq!(with(&[10, 0, 0, 8, 1, 2, 3, 4, 0, 3, 0, 4]), Signal(COOKIE_ECHO));
        assert_eq!(with(&[10, 0, 0, 3, 6, 0, 0, 4]), Signal(COOKIE_ECHO));
        assert_eq!(with(&[10, 0, 0x3f, 0xff]), Signal(COOKIE_ECHO));
        let mut short = frame(false, 0, 132, 0);
        short[17] = 32;
        assert_eq!(
            parse(&short[..]).unwrap().signal.event(IpProto::SCTP),
            Event::Data
        );
        short[17] = 31;
        assert_eq!(parse(&short[..]), Err(Reason::Malformed));
        for kind in 0..=255u8 {
            let is_data = Signal(kind).event(IpProto::SCTP) == Event::Data;
            assert_eq!(Signal(kind).is_quiet(true), is_data, "{kind}");
        }
    }

    #[test]
    fn what_is_no_packet_of_ours_has_its_reason() {
        let change = |at: usize, to: u8| {
            let mut frame = frame(false, 0, 6, 0x10);
            frame[at] = to;
            parse(&frame[..])
        };
        assert_eq!(change(0, 3), Err(Reason::NotUnicast));
        assert_eq!(change(13, 6), Err(Reason::NotIp));
        assert_eq!(change(14, 0x65), Err(Reason::Malformed));
        assert_eq!(change(14, 0x44), Err(Reason::Malformed));
        assert_eq!(change(17, 39), Err(Reason::Malformed));
        assert_eq!(change(20, 0x20), Err(Reason::Fragment));
        assert_eq!(change(21, 1), Err(Reason::Fragment));
        assert_eq!(change(23, 1), Err(Reason::OtherProtocol));
    }

    #[test]
    fn a_frame_cut_anywhere_in_its_headers_is_malformed() {
        let whole = frame(true, 8, 6, 0x02);
        for end in 0..18 + 28 + 14 {
            assert_eq!(parse(&whole[..end]), Err(Reason::Malformed), "cut at {end}");
        }
        assert!(parse(&whole[..18 + 28 + 14]).is_ok());
    }

    #[test]
    fn only_the_mac_addresses_are_rewritten() {
        let mut rewritten = frame(false, 0, 6, 0x10);
        let before = rewritten.clone();
        rewrite_macs(
            &mut rewritten[..],
            Mac::from_octets([1, 2, 3, 4, 5, 6]),
            Mac::from_octets([7, 8, 9, 10, 11, 12]),
        );
        assert_eq!(rewritten[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(rewritten[12..], before[12..]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes[..]);
        }

        #[test]
        fn mutated_frames_are_parsed_without_a_panic(at in 0..64usize, to in any::<u8>(), end in 0..70usize) {
            let mut frame = frame(false, 4, 6, 0x10);
            frame[at % 68] = to;
            let end = end.min(frame.len());
            if let Ok(packet) = parse(&frame[..end]) {
                prop_assert!([IpProto::TCP, IpProto::UDP, IpProto::SCTP].contains(&packet.protocol));
                prop_assert!(usize::from(packet.length) >= 28);
            }
        }

        #[test]
        fn addresses_keep_their_octets(octets in any::<[u8; 16]>()) {
            prop_assert_eq!(Address::from_octets(octets).octets(), octets);
        }
    }
}
