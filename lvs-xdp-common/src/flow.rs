//! Who a flow is: what tells one connection, or one persistence template, from another.

use crate::{
    abi::ColdRow,
    packet::{Address, IpProto, Packet},
};

/// A connection's client, virtual address, ports and protocol, or those of a persistence template. Whole
/// words, without padding.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The client's address; of a template, what the service's mask leaves of it.
    pub client: Address,
    /// The virtual address.
    pub address: Address,
    /// Bits 0..16 virtual port, 16..32 client port, as they go over the wire; 32..40 protocol, 40 set for a template.
    ports: u64,
    /// The service's id.
    pub service: u64,
}

const TEMPLATE: u64 = 1 << 40;
const SERVICE_BITS: u32 = 32;
const SERVICE: u64 = (1 << SERVICE_BITS) - 1;
/// FTP's control port (RFC 959): persistence of such a service covers the data connections, too.
pub const FTP_PORT: u16 = 21;
/// FTP's data port.
pub const FTP_DATA_PORT: u16 = 20;

impl Flow {
    /// The flow of a packet for a service.
    #[inline(always)]
    pub const fn new(packet: &Packet, service: u32) -> Self {
        Self {
            client: packet.source,
            address: packet.destination,
            ports: packet.destination_port as u64
                | (packet.source_port as u64) << 16
                | (packet.protocol.0 as u64) << 32,
            service: service as u64,
        }
    }

    /// Both addresses in one word, of a flow of IPv4.
    #[inline(always)]
    pub const fn short(&self) -> u64 {
        self.client.low() << 32 | self.address.low() & 0xffff_ffff
    }

    /// The flow of IPv4 with these addresses ([`Self::short`]) and [`Self::ports`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    pub const fn from_short(addresses: u64, ports: u64, service: u32) -> Self {
        Self {
            client: Address::from_ipv4((addresses >> 32) as u32),
            address: Address::from_ipv4(addresses as u32),
            ports,
            service: service as u64,
        }
    }

    /// The template that controls this flow: of the client's network by `mask` (IPv4's netmask, IPv6's
    /// prefix length), for `port`, which is 0 where it is for all ports (`ip_vs_sched_persist`).
    #[inline(always)]
    pub const fn template(&self, port: u16, mask: u32) -> Self {
        Self {
            client: masked(self.client, mask),
            address: self.address,
            ports: self.ports & 0xff_0000_0000 | port as u64 | TEMPLATE,
            service: self.service,
        }
    }

    /// The template that controls this flow where its service is a mark's: one for every address, port and protocol
    /// that has the mark. As in IPVS it is of protocol 0, and stands under the mark in place of an address.
    #[inline(always)]
    pub const fn template_of_mark(&self, mark: u64, mask: u32) -> Self {
        Self {
            client: masked(self.client, mask),
            address: if self.client.is_ipv4() {
                Address::from_ipv4(mark as u32)
            } else {
                Address::from_halves(mark << 32, 0)
            },
            ports: TEMPLATE,
            service: self.service,
        }
    }

    /// Whether it is a template's.
    #[inline(always)]
    pub const fn is_template(&self) -> bool {
        self.ports & TEMPLATE != 0
    }

    /// Ports, protocol and kind as one word.
    #[inline(always)]
    pub const fn ports(&self) -> u64 {
        self.ports
    }

    /// The client's port; 0 for a template.
    #[inline(always)]
    pub const fn client_port(&self) -> u16 {
        (self.ports >> 16 & 0xffff) as u16
    }

    /// The virtual port.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        (self.ports & 0xffff) as u16
    }

    /// The protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> IpProto {
        IpProto((self.ports >> 32 & 0xff) as u8)
    }

    /// Reads a cold row. Meaningful only where the entry's word is the same before and after.
    #[inline(always)]
    pub fn read(row: &ColdRow) -> Self {
        Self {
            client: Address::from_halves(row.client[0].load(), row.client[1].load()),
            address: Address::from_halves(row.address[0].load(), row.address[1].load()),
            ports: row.ports.load(),
            service: row.service.load() & SERVICE,
        }
    }

    /// Writes a cold row, all but what templates and connections know of each other; `opened` is the jiffy that it was
    /// opened in.
    #[inline(always)]
    pub fn write(&self, row: &ColdRow, opened: u64) {
        row.client[0].store(self.client.high());
        row.client[1].store(self.client.low());
        row.address[0].store(self.address.high());
        row.address[1].store(self.address.low());
        row.ports.store(self.ports);
        row.service.store(self.service | opened << SERVICE_BITS);
    }

    /// The lower half of the jiffy in which a cold row's connection was opened.
    #[inline(always)]
    pub fn opened(row: &ColdRow) -> u32 {
        (row.service.load() >> SERVICE_BITS) as u32
    }

    /// Notes in a cold row that its connection was opened once more. Where the row is another flow's by now that flow
    /// has it to itself.
    #[inline(always)]
    pub fn reopen(row: &ColdRow, opened: u64) {
        let before = row.service.load();
        let _ = row
            .service
            .swap(before, before & SERVICE | opened << SERVICE_BITS);
    }

    /// Whether a cold row is this flow's, whichever service it came by.
    #[inline(always)]
    pub fn is(&self, row: &ColdRow) -> bool {
        row.ports.load() == self.ports
            && row.client[1].load() == self.client.low()
            && row.address[1].load() == self.address.low()
            && row.client[0].load() == self.client.high()
            && row.address[0].load() == self.address.high()
    }
}

#[inline(always)]
const fn masked(address: Address, mask: u32) -> Address {
    if address.is_ipv4() {
        return Address::from_halves(
            address.high(),
            address.low() & (0xffff_ffff_0000_0000 | mask as u64),
        );
    }
    // A shift by 64 or more is none for a 64-bit number: each half by itself.
    let (high, low) = if mask >= 64 { (64, mask - 64) } else { (mask, 0) };
    Address::from_halves(address.high() & prefix(high), address.low() & prefix(low))
}

/// The upper `length` bits.
#[inline(always)]
const fn prefix(length: u32) -> u64 {
    if length == 0 {
        0
    } else if length >= 64 {
        u64::MAX
    } else {
        u64::MAX << (64 - length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_of_the_clients_network() {
        let flow = Flow::new(&Packet::sample(), 3);
        let template = flow.template(80, 0xffff_ff00);
        assert_eq!(template.client, Address::from_ipv4(0xc0a8_0100));
        assert_eq!(
            (template.client_port(), template.port(), template.protocol()),
            (0, 80, IpProto::TCP)
        );
        assert!(template.is_template() && !flow.is_template());
        assert_eq!(
            flow.template(0, 0xff00_ff00).client,
            Address::from_ipv4(0xc000_0100)
        );
        assert_eq!(flow.template(0, 0).client, Address::from_ipv4(0));
    }

    #[test]
    fn a_flow_from_port_0_is_no_template() {
        let packet = Packet {
            source_port: 0,
            ..Packet::sample()
        };
        let flow = Flow::new(&packet, 1);
        assert_ne!(flow, flow.template(80, u32::MAX));
        assert_eq!(flow.client, flow.template(80, u32::MAX).client);
    }

    #[test]
    fn ipv6_clients_are_masked_by_a_prefix() {
        let address = Address::from_octets([0xff; 16]);
        for (length, high, low) in [
            (0, 0, 0),
            (1, 1 << 63, 0),
            (48, u64::MAX << 16, 0),
            (64, u64::MAX, 0),
            (65, u64::MAX, 1 << 63),
            (128, u64::MAX, u64::MAX),
        ] {
            assert_eq!(
                masked(address, length),
                Address::from_halves(high, low),
                "{length}"
            );
        }
    }
}
