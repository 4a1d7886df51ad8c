//! Frames put together field by field, lies included.

use std::net::Ipv4Addr;

/// TCP's flags (RFC 9293, section 3.1).
pub mod tcp {
    /// The client closes.
    pub const FIN: u8 = 0x01;
    /// The client opens.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// An Ethernet frame with an IPv4 packet in it.
///
/// The length fields come out right unless they are set. Checksums are 0: the program neither reads
/// nor changes them.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Destination and source MAC addresses.
    pub macs: [[u8; 6]; 2],
    /// Tag control information of an 802.1Q tag, if there is one.
    pub vlan: Option<u16>,
    /// The EtherType of what follows.
    pub ether_type: u16,
    /// The IP version.
    pub version: u8,
    /// IP options; 4, 8, .. 40 bytes.
    pub options: Vec<u8>,
    /// The header's length in words, where it is not what the options make it.
    pub header_words: Option<u8>,
    /// The packet's length in bytes, where it is not the true one.
    pub total_length: Option<u16>,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// The client and its port.
    pub source: (Ipv4Addr, u16),
    /// The virtual address and port.
    pub destination: (Ipv4Addr, u16),
    /// TCP's flags; without meaning in other protocols.
    pub flags: u8,
    /// The type of SCTP's first chunk; without meaning in other protocols.
    pub chunk: u8,
    /// Data after the transport header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A TCP segment to the director.
    pub fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8) -> Self {
        Self {
            macs: [DIRECTOR_MAC, CLIENT_MAC],
            vlan: None,
            ether_type: 0x0800,
            version: 4,
            options: Vec::new(),
            header_words: None,
            total_length: None,
            fragment: 0x4000,
            protocol: 6,
            source,
            destination,
            flags,
            chunk: 0,
            payload: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        }
    }

    /// A UDP datagram to the director.
    pub fn udp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self {
            protocol: 17,
            ..Self::tcp(source, destination, 0)
        }
    }

    /// An SCTP packet of one chunk to the director.
    pub fn sctp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), chunk: u8) -> Self {
        Self {
            protocol: 132,
            chunk,
            ..Self::tcp(source, destination, 0)
        }
    }

    /// The frame's bytes.
    ///
    /// # Panics
    ///
    /// When the payload is longer than an IPv4 packet can be.
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let length = 20 + self.options.len() + transport.len();
        let length = u16::try_from(length).expect("an IPv4 packet has at most 65,535 bytes");
        let words = u8::try_from(5 + self.options.len() / 4).expect("at most 40 bytes of options");
        let mut bytes = self.macs.concat();
        if let Some(tag) = self.vlan {
            bytes.extend(0x8100u16.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(self.ether_type.to_be_bytes());
        bytes.extend([self.version << 4 | self.header_words.unwrap_or(words) & 0xf, 0x10]);
        bytes.extend(self.total_length.unwrap_or(length).to_be_bytes());
        bytes.extend([0xab, 0xcd]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source.0.octets());
        bytes.extend(self.destination.0.octets());
        bytes.extend(&self.options);
        bytes.extend(transport);
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = [self.source.1, self.destination.1].map(u16::to_be_bytes).concat();
        match self.protocol {
            17 => {
                let length = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX);
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
            }
            132 => {
                // A tag of 0, as INIT has it, and the chunk's header.
                let length = u16::try_from(4 + self.payload.len()).unwrap_or(u16::MAX);
                bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, self.chunk, 0]);
                bytes.extend(length.to_be_bytes());
            }
            _ => bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]),
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// The MAC address that the director has in frames for it.
pub const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 2, 200];
/// The MAC address that frames come from.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 2, 1];
