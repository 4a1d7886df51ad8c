//! Health checks that ask for the virtual address on one real server.
//!
//! The agent connects a socket to the real server's own address (RIP), by the host's ordinary routes and neighbours,
//! and says so in a table. Where its packets leave, the destination becomes the virtual address (VIP); where the
//! answers come in, before the host looks at them, the source becomes the RIP again. So the real server is asked what
//! clients ask it, and the host sees a connection to its neighbour: it needs no route, no rule and no mark, and it
//! does not matter whether the VIP is an address of its own too.
//!
//! Checksums are changed by what the addresses change (RFC 1624).

use bytemuck::AnyBitPattern;

use crate::packet::{Address, IpProto};

/// Whose packets are led: the local end of a socket of the agent. Address (its two halves), then
/// `protocol << 16 | port`.
pub type Key = [u64; 3];

/// Where: the halves of the RIP, to which the socket is connected, then those of the VIP.
pub type Row = [u64; 4];

/// The key of a local end.
pub const fn key(local: Address, port: u16, protocol: IpProto) -> Key {
    [local.high(), local.low(), (protocol.0 as u64) << 16 | port as u64]
}

/// The row of a RIP and a VIP.
pub const fn row(rip: Address, vip: Address) -> Row {
    [rip.high(), rip.low(), vip.high(), vip.low()]
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the real server.
    Out,
    /// From the real server to the host.
    In,
}

/// A frame whose checksums are changed with it. Values are in host byte order. All methods return `None` where the
/// frame ends before.
pub trait Packet {
    /// What is at an offset, as it goes over the wire. Whole words: the verifier wants them aligned on the stack.
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;

    /// Puts 4 bytes of an address in the place of others. `is_summed`: no checksum but the transport protocol's
    /// covers them, as with IPv6.
    fn store(&mut self, offset: usize, new: u32, is_summed: bool) -> Option<()>;

    /// Changes IPv4's header checksum at an offset as 4 bytes of the header have changed.
    fn change_header_sum(&mut self, offset: usize, old: u32, new: u32) -> Option<()>;

    /// Changes a transport protocol's checksum at an offset as 4 bytes of what it covers have changed. `is_optional`:
    /// 0 stands for none.
    fn change_sum(&mut self, offset: usize, old: u32, new: u32, is_optional: bool) -> Option<()>;
}

const ETHERNET: usize = 14;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const ICMP_HEADER: usize = 8;
const IPV4_SUM: usize = 10;
const ICMP_SUM: usize = 2;

/// The header of an IP packet.
#[derive(Clone, Copy)]
struct Header {
    is_ipv4: bool,
    at: usize,
    protocol: IpProto,
    /// Where the transport protocol's header is.
    transport: usize,
    source: Address,
    destination: Address,
}

impl Header {
    /// Of a packet that is whole and has no extension headers: no other is led.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of words are wanted")]
    fn load(packet: &impl Packet, at: usize, is_ipv4: bool) -> Option<Self> {
        if is_ipv4 {
            // The last four octets are the ports already.
            let [first, second, third] = packet.load::<[u64; 3]>(at)?.map(u64::from_be);
            let length = (first >> 56 & 0xf) as usize * 4;
            // More fragments, or an offset.
            let is_fragment = first & 0x3fff != 0;
            if first >> 60 != 4 || length < 20 || is_fragment {
                return None;
            }
            return Some(Self {
                is_ipv4,
                at,
                protocol: IpProto((second >> 48) as u8),
                transport: at + length,
                source: Address::from_ipv4(second as u32),
                destination: Address::from_ipv4((third >> 32) as u32),
            });
        }
        let [first, a, b, c, d] = packet.load::<[u64; 5]>(at)?.map(u64::from_be);
        (first >> 60 == 6).then_some(Self {
            is_ipv4,
            at,
            protocol: IpProto((first >> 8) as u8),
            transport: at + 40,
            source: Address::from_halves(a, b),
            destination: Address::from_halves(c, d),
        })
    }

    /// Where the transport protocol has its checksum, and whether it may have none.
    #[inline(always)]
    fn sum(&self) -> Option<(usize, bool)> {
        match self.protocol {
            IpProto::TCP => Some((self.transport + 16, false)),
            IpProto::UDP => Some((self.transport + 6, self.is_ipv4)),
            _ => None,
        }
    }

    /// The source port and the destination port.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    fn ports(&self, packet: &impl Packet) -> Option<(u16, u16)> {
        let ports = u32::from_be(packet.load(self.transport)?);
        Some(((ports >> 16) as u16, ports as u16))
    }

    /// Puts another address in the place of one, in the header and in a checksum that covers it.
    #[inline(always)]
    fn change(
        &self,
        packet: &mut impl Packet,
        is_source: bool,
        new: Address,
        sum: Option<(usize, bool)>,
    ) -> Option<()> {
        let (old, offset) = match (is_source, self.is_ipv4) {
            (true, true) => (self.source, 12),
            (false, true) => (self.destination, 16),
            (true, false) => (self.source, 8),
            (false, false) => (self.destination, 24),
        };
        let (old, new) = (words(old), words(new));
        if self.is_ipv4 {
            packet.change_header_sum(self.at + IPV4_SUM, old[3], new[3])?;
            if let Some((sum, is_optional)) = sum {
                packet.change_sum(sum, old[3], new[3], is_optional)?;
            }
            return packet.store(self.at + offset, new[3], false);
        }
        for (place, (old, new)) in old.into_iter().zip(new).enumerate() {
            if let Some((sum, is_optional)) = sum {
                packet.change_sum(sum, old, new, is_optional)?;
            }
            packet.store(self.at + offset + 4 * place, new, true)?;
        }
        Some(())
    }
}

/// An address in words of 4 bytes; the last one is an IPv4 address.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
const fn words(address: Address) -> [u32; 4] {
    let (high, low) = (address.high(), address.low());
    [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]
}

/// The frame's IP header. Generic XDP may make a copy of a frame that is said to have no Ethernet header
/// (`skb_pp_cow_data`: `__copy_skb_header` leaves `mac_len` out): then the packet begins with the IP header.
#[inline(always)]
fn begin(packet: &impl Packet) -> Option<Header> {
    let framed = match u32::from_be(packet.load(12)?) >> 16 {
        IPV4 => Header::load(packet, ETHERNET, true),
        IPV6 => Header::load(packet, ETHERNET, false),
        _ => None,
    };
    if framed.is_some() {
        return framed;
    }
    let version = u32::from_be(packet.load(0)?) >> 28;
    Header::load(packet, 0, version == 4)
}

/// Leads a frame, if it is one of a check. `None`: it is not, and has not changed; or it ends within its headers.
#[inline(always)]
pub fn steer(
    packet: &mut impl Packet,
    direction: Direction,
    find: impl Fn(&Key) -> Option<Row>,
) -> Option<()> {
    let outer = begin(packet)?;
    let is_ipv4 = outer.is_ipv4;
    let (rip_of, vip_of) = (
        |row: Row| Address::from_halves(row[0], row[1]),
        |row: Row| Address::from_halves(row[2], row[3]),
    );
    let is_error = matches!(
        (is_ipv4, outer.protocol),
        (true, IpProto::ICMP) | (false, IpProto::ICMPV6)
    );
    if is_error {
        // Only what comes back: the host says nothing of this kind to a server that it asks.
        (direction == Direction::In).then_some(())?;
        let kind = u32::from_be(packet.load(outer.transport)?) >> 24;
        // Destination unreachable, time exceeded, parameter problem; of ICMPv6 also packet too big.
        matches!((is_ipv4, kind), (true, 3 | 11 | 12) | (false, 1..=4)).then_some(())?;
        let quoted = Header::load(packet, outer.transport + ICMP_HEADER, is_ipv4)?;
        let (port, _) = quoted.ports(packet)?;
        let row = find(&key(quoted.source, port, quoted.protocol))?;
        let vip = vip_of(row);
        (quoted.destination == vip).then_some(())?;
        // ICMPv6's checksum covers both. ICMP's covers the quoted header with its own checksum: the two changes
        // there make up for each other.
        let sum = (!is_ipv4).then_some((outer.transport + ICMP_SUM, false));
        quoted.change(packet, false, rip_of(row), sum)?;
        if outer.source == vip {
            outer.change(packet, true, rip_of(row), sum)?;
        }
        return Some(());
    }
    let sum = outer.sum()?;
    let (source_port, destination_port) = outer.ports(packet)?;
    match direction {
        Direction::Out => {
            let row = find(&key(outer.source, source_port, outer.protocol))?;
            (outer.destination == rip_of(row)).then_some(())?;
            outer.change(packet, false, vip_of(row), Some(sum))
        }
        Direction::In => {
            let row = find(&key(outer.destination, destination_port, outer.protocol))?;
            (outer.source == vip_of(row)).then_some(())?;
            outer.change(packet, true, rip_of(row), Some(sum))
        }
    }
}

#[cfg(test)]
mod tests;
