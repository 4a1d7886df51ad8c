//! The frames that are measured, and where they have what differs from flow to flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lvs_xdp_tests::frame::{CLIENT_MAC, DIRECTOR_MAC, Frame};

/// The port of every service.
pub(crate) const PORT: u16 = 80;
/// A port of none.
pub(crate) const OTHER_PORT: u16 = 81;
/// The first virtual address; the others follow it.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 200, 0, 0, 10, 0);
/// The first client.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 64, 0, 0, 10, 0);
/// Frames are this long, but for those that have to be longer: 64 octets on the wire.
const SHORT: usize = 60;
const LONG: usize = 96;
const ETHERNET: u64 = 14;

/// A frame, and where in it what stands.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    /// 60 or 96 bytes.
    pub(crate) bytes: Vec<u8>,
    pub(crate) client_at: u64,
    pub(crate) client_port_at: u64,
    pub(crate) virtual_at: [u64; 2],
    /// The last four bytes of the first client's address.
    pub(crate) client: u32,
    /// The last four bytes of the first virtual address.
    pub(crate) virtual_address: u32,
    /// Whether few flows have most of the packets, by Zipf's law, in the place of all as many.
    pub(crate) is_skewed: bool,
}

/// The virtual address of a service, by its number.
pub(crate) fn virtual_address(number: u32, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::from_bits(VIP6.to_bits() + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(VIP.to_bits() + number).into()
    }
}

impl Template {
    fn ipv4(frame: &Frame) -> Self {
        let header = ETHERNET + if frame.vlan.is_some() { 4 } else { 0 };
        let mut bytes = frame.bytes();
        bytes.resize(SHORT, 0);
        Self {
            bytes,
            client_at: header + 12,
            client_port_at: header + 20,
            virtual_at: [header + 16; 2],
            client: CLIENT.to_bits(),
            virtual_address: VIP.to_bits(),
            is_skewed: false,
        }
    }

    /// A TCP segment in IPv4 without data.
    pub(crate) fn tcp(port: u16, flags: u8) -> Self {
        Self::ipv4(&Frame {
            payload: Vec::new(),
            ..Frame::tcp((CLIENT, 0), (VIP, port), flags)
        })
    }

    /// The same packets, of which few flows have most.
    pub(crate) fn skewed(self) -> Self {
        Self {
            is_skewed: true,
            ..self
        }
    }

    /// As [`Self::tcp`], with a VLAN tag.
    pub(crate) fn tagged(flags: u8) -> Self {
        let frame = Frame::tcp((CLIENT, 0), (VIP, PORT), flags);
        Self::ipv4(&Frame {
            payload: Vec::new(),
            vlan: Some(10),
            ..frame
        })
    }

    /// A UDP datagram in IPv4, of 18 octets.
    pub(crate) fn udp() -> Self {
        Self::ipv4(&Frame::udp((CLIENT, 0), (VIP, PORT)))
    }

    /// A TCP segment in IPv6, of 22 octets.
    pub(crate) fn ipv6(flags: u8) -> Self {
        let mut bytes = [DIRECTOR_MAC, CLIENT_MAC].concat();
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 42, 6, 64]);
        bytes.extend(CLIENT6.octets());
        bytes.extend(VIP6.octets());
        bytes.extend([
            0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        bytes.resize(LONG, 7);
        Self {
            bytes,
            client_at: ETHERNET + 20,
            client_port_at: ETHERNET + 40,
            virtual_at: [ETHERNET + 36; 2],
            client: 10 << 16,
            virtual_address: 10 << 16,
            is_skewed: false,
        }
    }

    /// A router's word that a packet of a virtual address to a client was too long (RFC 1191), which quotes it.
    pub(crate) fn too_long() -> Self {
        let mut quoted = Self::tcp(PORT, 0x10);
        quoted.bytes.drain(..14);
        // What the server had sent: the other way round.
        quoted.bytes[12..20].rotate_left(4);
        quoted.bytes[20..24].rotate_left(2);
        let router = Ipv4Addr::new(10, 64, 255, 254);
        let mut payload = vec![3, 4, 0, 0, 0, 0, 5, 0];
        payload.append(&mut quoted.bytes);
        payload.truncate(LONG - 34);
        let mut bytes = Frame::tcp((router, 0), (VIP, 0), 0).bytes();
        bytes.truncate(34);
        bytes.append(&mut payload);
        bytes.resize(LONG, 0);
        bytes[16..18].copy_from_slice(&82u16.to_be_bytes());
        bytes[23] = 1;
        let inner = ETHERNET + 20 + 8;
        Self {
            bytes,
            client_at: inner + 16,
            client_port_at: inner + 22,
            virtual_at: [ETHERNET + 16, inner + 12],
            client: CLIENT.to_bits(),
            virtual_address: VIP.to_bits(),
            is_skewed: false,
        }
    }
}
