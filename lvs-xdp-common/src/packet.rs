//! What the director needs to know of a packet, and the words that it is told in.

use crate::{signal::Signal, verifier::opaque};

/// An EtherType (IEEE 802.3), host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(0x0800);
    /// IPv6 (RFC 2464).
    pub const IPV6: Self = Self(0x86dd);
    /// ARP (RFC 826).
    pub const ARP: Self = Self(0x0806);
    /// An 802.1Q tag follows.
    pub const VLAN: Self = Self(0x8100);
    /// A service tag follows, and behind it another (802.1ad, QinQ).
    pub const SERVICE_VLAN: Self = Self(0x88a8);

    /// Whether a tag follows.
    #[inline(always)]
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}

/// An IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpProto(pub u8);

impl IpProto {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// IPv4 inside (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// IPv6's hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: Self = Self(0);
    /// IPv6's routing header.
    pub const ROUTING: Self = Self(43);
    /// IPv6 inside (RFC 2473).
    pub const IPV6: Self = Self(41);
    /// Generic routing encapsulation (RFC 2784).
    pub const GRE: Self = Self(47);
    /// IPv6's fragment header.
    pub const FRAGMENT: Self = Self(44);
    /// The authentication header (RFC 4302).
    pub const AUTHENTICATION: Self = Self(51);
    /// IPv6's destination options.
    pub const DESTINATION_OPTIONS: Self = Self(60);

    /// Whether its packets are forwarded.
    #[inline(always)]
    pub const fn has_services(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
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

    /// The address at the beginning of these two words, as they go over the wire.
    #[inline(always)]
    pub const fn from_words(words: [[u8; 8]; 2]) -> Self {
        Self::from_halves(u64::from_be_bytes(words[0]), u64::from_be_bytes(words[1]))
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

    /// Whether it can be one host's, in a packet that has come over a wire: no group, no loopback, not
    /// unspecified (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2, 2.5.3, 2.7).
    #[inline(always)]
    pub const fn is_one_host(self) -> bool {
        if self.is_ipv4() {
            !matches!(self.low >> 24 & 0xff, 0 | 127 | 224..)
        } else {
            self.high >> 56 != 0xff && !(self.high == 0 && self.low <= 1)
        }
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

/// A TCP, UDP or SCTP packet with whole headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
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
    /// Length of the IP packet in bytes, as its header says: at most 65,575 (IPv6's header is not in its own length).
    pub length: u32,
}

impl Packet {
    /// The same packet, of whose IPv4 addresses the compiler knows no more than their 32 bits: what else belongs to them
    /// is computed where it is wanted, and not carried along by the packets for which it never is.
    #[inline(always)]
    #[must_use]
    pub fn anew(&self) -> Self {
        let anew = |address: Address| {
            if address.is_ipv4() {
                Address::from_ipv4(opaque(address.low() as u32 as usize) as u32)
            } else {
                address
            }
        };
        Self {
            source: anew(self.source),
            destination: anew(self.destination),
            ..*self
        }
    }
}

#[cfg(test)]
impl Packet {
    /// A SYN from 192.168.1.200:40000 to 192.168.2.100:80.
    pub(crate) fn sample() -> Self {
        Self {
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
