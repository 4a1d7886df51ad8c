//! Frames that mostly mean something, so that connections come about and go on, and that are then damaged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::Icmpv6Type;
use lvs_xdp_common::packet::{EtherType, IpProto};
use lvs_xdp_tests::frame::{CLIENT_MAC, DIRECTOR_MAC, tcp};

use crate::{
    random::Random,
    services::{LOCAL_VIP, NO_VIP, VIP, VIP6},
};

/// Frames that are kept to be sent again.
const KEPT: usize = 64;
/// The longest frame: a jumbo frame, which the kernel has in several buffers.
const LONGEST: usize = 9018;

/// Who talks to whom.
#[derive(Debug, Clone, Copy)]
struct Talk {
    client: IpAddr,
    vip: IpAddr,
    protocol: IpProto,
    client_port: u16,
    port: u16,
}

/// A sequence of frames.
pub(crate) struct Grammar {
    random: Random,
    kept: Vec<Vec<u8>>,
}

impl Grammar {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            random,
            kept: vec![Vec::new(); KEPT],
        }
    }

    /// What else is to happen at random.
    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// The next frame: at least an Ethernet header, which is the kernel's condition.
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        let mut frame = if self.random.one_in(20) {
            self.kept[self.random.index(KEPT)].clone()
        } else {
            self.sentence()
        };
        let place = self.random.index(KEPT);
        self.kept[place].clone_from(&frame);
        if self.random.one_in(8) {
            self.damage(&mut frame);
        }
        let shortest = frame.len().max(14);
        frame.resize(shortest, 0);
        frame.truncate(LONGEST);
        frame
    }

    /// A frame that the grammar has; its fields may lie.
    fn sentence(&mut self) -> Vec<u8> {
        let talk = self.talk();
        let (ether_type, packet) = match self.random.below(40) {
            0..=27 => self.segment(talk),
            28..=31 => self.fragment(talk),
            32..=35 => self.error(talk),
            36 => self.echo(talk),
            37 => self.discovery(talk),
            38 => (EtherType(self.random.word()), self.noise()),
            _ => {
                let protocol = IpProto(self.random.octet());
                let body = self.noise();
                self.ip(talk.client, talk.vip, protocol, &body, None)
            }
        };
        let mut frame = self.macs();
        if ether_type == EtherType::ARP && self.random.one_in(2) {
            frame[..6].fill(0xff);
        }
        self.tags(&mut frame);
        frame.extend(ether_type.0.to_be_bytes());
        frame.extend(packet);
        // Ethernet's shortest frame: what is behind the packet is padding.
        if frame.len() < 60 && self.random.one_in(4) {
            frame.resize(60, 0);
        }
        frame
    }

    fn talk(&mut self) -> Talk {
        let random = &mut self.random;
        let is_ipv6 = random.one_in(2);
        let client = random.below(8);
        let (mut client, mut vip): (IpAddr, IpAddr) = if is_ipv6 {
            let client = Ipv6Addr::from_bits(0xfd00_0040 << 96 | u128::from(client));
            (client.into(), VIP6.into())
        } else {
            (Ipv4Addr::from_bits(0x0a09_4000 + client).into(), VIP.into())
        };
        if !is_ipv6 && random.one_in(20) {
            vip = random.of(&[LOCAL_VIP, NO_VIP]).into();
        }
        if random.one_in(40) {
            client = match vip {
                IpAddr::V4(vip) => random
                    .of(&[
                        vip,
                        Ipv4Addr::LOCALHOST,
                        Ipv4Addr::BROADCAST,
                        Ipv4Addr::UNSPECIFIED,
                        Ipv4Addr::new(224, 0, 0, 251),
                    ])
                    .into(),
                IpAddr::V6(vip) => random
                    .of(&[
                        vip,
                        Ipv6Addr::LOCALHOST,
                        Ipv6Addr::UNSPECIFIED,
                        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                        NO_VIP.to_ipv6_mapped(),
                    ])
                    .into(),
            };
        }
        let protocol = random.of(&[
            IpProto::TCP,
            IpProto::TCP,
            IpProto::TCP,
            IpProto::UDP,
            IpProto::UDP,
            IpProto::SCTP,
        ]);
        let port = match random.below(24) {
            0 => 20,
            1 => 21,
            2 => 2000,
            3 => 0,
            // So that the busy services have more to do than the others.
            _ if protocol != IpProto::TCP => 80 + u16::from(random.octet() % 5),
            _ if vip == IpAddr::V4(LOCAL_VIP) => 80,
            _ => 80 + u16::from(random.octet() % 20),
        };
        let client_port = match random.below(60) {
            0 => 0,
            1 => 20,
            _ => 40_000 + u16::from(random.octet() % 2),
        };
        Talk {
            client,
            vip,
            protocol,
            client_port,
            port,
        }
    }

    fn macs(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut to = DIRECTOR_MAC;
        let mut from = CLIENT_MAC;
        if random.one_in(30) {
            to = random.of(&[
                [0xff; 6],
                [1, 0, 0x5e, 0, 0, 1],
                [0x33, 0x33, 0, 0, 0, 1],
                [2; 6],
                [0; 6],
            ]);
        }
        if random.one_in(50) {
            from = crate::PEER;
        }
        [to, from].concat()
    }

    /// None to three: two are walked over.
    fn tags(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        for _ in 0..random.of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]) {
            frame.extend(
                random
                    .of(&[EtherType::VLAN, EtherType::SERVICE_VLAN])
                    .0
                    .to_be_bytes(),
            );
            frame.extend(random.word().to_be_bytes());
        }
    }

    /// A whole packet to a service.
    fn segment(&mut self, talk: Talk) -> (EtherType, Vec<u8>) {
        let body = self.transport(talk);
        self.ip(talk.client, talk.vip, talk.protocol, &body, None)
    }

    /// A part of one, the first or a later one, of few packets at a time.
    fn fragment(&mut self, talk: Talk) -> (EtherType, Vec<u8>) {
        let random = &mut self.random;
        let identification = random.below(2);
        // So few packets that the parts of one meet.
        let talk = Talk {
            client: match talk.client {
                IpAddr::V4(_) => Ipv4Addr::from_bits(0x0a09_4000).into(),
                IpAddr::V6(_) => Ipv6Addr::from_bits(0xfd00_0040 << 96).into(),
            },
            protocol: random.of(&[IpProto::UDP, IpProto::UDP, IpProto::TCP, IpProto::SCTP]),
            client_port: 40_000,
            ..talk
        };
        let offset = random.of(&[0, 0, 0, 1, 185, 0x1fff]);
        let has_more = offset == 0 && !random.one_in(8) || random.one_in(2);
        let body = if offset == 0 {
            self.transport(talk)
        } else {
            let length = 8 * self.random.index(8);
            self.random.octets(length)
        };
        let fragment = Fragment {
            identification,
            offset,
            has_more,
        };
        self.ip(talk.client, talk.vip, talk.protocol, &body, Some(fragment))
    }

    /// An ICMP error about what a real server has sent, as if from a router or from the client itself.
    fn error(&mut self, talk: Talk) -> (EtherType, Vec<u8>) {
        let answer = Talk {
            client_port: talk.port,
            port: talk.client_port,
            ..talk
        };
        let transport = self.transport(answer);
        let fragment = self.random.one_in(12).then(|| Fragment {
            identification: 7,
            offset: self.random.of(&[0, 0, 1]),
            has_more: true,
        });
        let (_, mut quoted) = self.ip(talk.vip, talk.client, talk.protocol, &transport, fragment);
        if self.random.one_in(2) {
            let header = if talk.vip.is_ipv4() { 20 } else { 40 };
            quoted.truncate(header + self.random.index(30));
        }
        let any = self.random.octet();
        let (protocol, kind) = match talk.vip {
            IpAddr::V4(_) => (IpProto::ICMP, self.random.of(&[3, 3, 3, 4, 11, 12, 5, 0, any])),
            IpAddr::V6(_) => (IpProto::ICMPV6, self.random.of(&[1, 2, 2, 3, 4, 129, 0, any])),
        };
        let mut body = vec![kind, self.random.octet() % 6, 0, 0, 0, 0, 5, 0];
        body.extend(quoted);
        let router = match talk.client {
            IpAddr::V4(_) => Ipv4Addr::new(10, 9, 64, 254).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(0xfd00_0040 << 96 | 254).into(),
        };
        let source = self.random.of(&[router, router, talk.client]);
        self.ip(source, talk.vip, protocol, &body, None)
    }

    fn echo(&mut self, talk: Talk) -> (EtherType, Vec<u8>) {
        let (protocol, request) = match talk.vip {
            IpAddr::V4(_) => (IpProto::ICMP, 8),
            IpAddr::V6(_) => (IpProto::ICMPV6, 128),
        };
        let mut body = vec![request, self.random.of(&[0, 0, 0, 0, 1]), 0, 0];
        let length = self.random.index(64);
        body.extend(self.random.octets(length));
        self.ip(talk.client, talk.vip, protocol, &body, None)
    }

    /// ARP and neighbour discovery, for virtual addresses and others.
    fn discovery(&mut self, talk: Talk) -> (EtherType, Vec<u8>) {
        match (talk.client, talk.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let mut body = vec![0, 1, 8, 0, 6, 4, 0, self.random.of(&[1, 1, 1, 2, 0])];
                body.extend(CLIENT_MAC);
                body.extend(client.octets());
                body.extend([0; 6]);
                body.extend(vip.octets());
                (EtherType::ARP, body)
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                let packet = self.neighbour(client, vip);
                (EtherType::IPV6, packet)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                unreachable!("a talk has one family")
            }
        }
    }

    /// A message of neighbour discovery: mostly a solicitation that is valid (RFC 4861, 7.1.1), or a probe.
    fn neighbour(&mut self, client: Ipv6Addr, vip: Ipv6Addr) -> Vec<u8> {
        const SOLICITATION: u8 = 135;
        let random = &mut self.random;
        let is_probe = random.one_in(4);
        let source = if is_probe { Ipv6Addr::UNSPECIFIED } else { client };
        let group = Ipv6Addr::from_bits(0xff02 << 112 | 0x1_ff00_0000 | vip.to_bits() & 0xff_ffff);
        let destination = if is_probe {
            group
        } else {
            random.of(&[group, group, vip])
        };
        let kind = random.of(&[SOLICITATION, SOLICITATION, SOLICITATION, SOLICITATION, 136, 133]);
        let mut behind = vip.octets().to_vec();
        if !is_probe && !random.one_in(4) {
            behind.extend([1, 1]);
            behind.extend(CLIENT_MAC);
        }
        if random.one_in(4) {
            behind.extend([14, 1, 1, 2, 3, 4, 5, 6]);
        }
        let message = Icmpv6Type::Unknown {
            type_u8: kind,
            code_u8: u8::from(random.one_in(30)),
            bytes5to8: [0; 4],
        };
        let message = message
            .to_header(source.octets(), destination.octets(), &behind)
            .expect("a short message");
        let hop_limit = if random.one_in(20) { 64 } else { 255 };
        let length = u16::try_from(8 + behind.len()).expect("a short message");
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([IpProto::ICMPV6.0, hop_limit]);
        packet.extend(octets(source.into()));
        packet.extend(octets(destination.into()));
        packet.extend(message.to_bytes());
        packet.extend(behind);
        packet
    }

    fn noise(&mut self) -> Vec<u8> {
        let length = self.random.index(100);
        self.random.octets(length)
    }

    /// Header and data of a transport protocol.
    fn transport(&mut self, talk: Talk) -> Vec<u8> {
        let random = &mut self.random;
        let mut body = [talk.client_port, talk.port].map(u16::to_be_bytes).concat();
        let payload = match random.below(200) {
            0 | 2 => random.index(2000),
            1 if random.one_in(4) => random.index(9000),
            _ => random.index(24),
        };
        match talk.protocol {
            IpProto::TCP => {
                let flags = match random.below(10) {
                    0..=3 => tcp::SYN,
                    4..=6 => tcp::ACK,
                    7 => tcp::FIN | tcp::ACK,
                    8 => tcp::RST,
                    _ => random.octet(),
                };
                let options = if random.one_in(4) { random.index(11) } else { 0 };
                let words = u8::try_from(5 + options).expect("at most 15");
                let words = if random.one_in(40) {
                    random.octet() & 0xf
                } else {
                    words
                };
                body.extend(random.octets(8));
                body.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
                body.extend(random.octets(4 * options));
            }
            IpProto::SCTP => {
                let any = random.octet();
                body.extend([0; 8]);
                let kind = random.of(&[1, 1, 1, 2, 0, 10, 11, 3, 7, 8, 14, 6, 9, any]);
                let length = random.of(&[4u16, 4, 5, 8, 20, 3, 0xffff]);
                body.extend([kind, 0]);
                body.extend(length.to_be_bytes());
                if random.one_in(3) {
                    body.resize(12 + usize::from(length & 0x1c), 0);
                    body.extend([6, 0, 0, 4]);
                }
            }
            _ => {
                let length = u16::try_from(8 + payload).expect("short");
                let short = u16::from(random.octet() % 16);
                let length = if random.one_in(30) {
                    random.of(&[0, 7, 8, short, 0xffff])
                } else {
                    length
                };
                body.extend(length.to_be_bytes());
                body.extend([0, 0]);
            }
        }
        body.extend(random.octets(payload));
        body
    }

    /// A packet with options or extension headers, and fields that lie at times.
    fn ip(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProto,
        body: &[u8],
        fragment: Option<Fragment>,
    ) -> (EtherType, Vec<u8>) {
        if source.is_ipv4() {
            let packet = self.ipv4(source, destination, protocol, body, fragment);
            (EtherType::IPV4, packet)
        } else {
            let packet = self.ipv6(source, destination, protocol, body, fragment);
            (EtherType::IPV6, packet)
        }
    }

    /// A length that is not the true one, now and then.
    fn length(&mut self, length: usize) -> u16 {
        let length = u16::try_from(length).expect("a short packet");
        if !self.random.one_in(40) {
            return length;
        }
        let near = length.wrapping_add(self.random.below(5) as u16).wrapping_sub(2);
        let short = u16::from(self.random.octet() % 80);
        self.random
            .of(&[0, 19, 20, 27, 28, 39, 40, near, near, short, 0xffff])
    }

    fn ipv4(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProto,
        body: &[u8],
        fragment: Option<Fragment>,
    ) -> Vec<u8> {
        let options = if self.random.one_in(5) {
            self.random.index(11)
        } else {
            0
        };
        let words = u8::try_from(5 + options).expect("at most 15");
        let words = if self.random.one_in(60) {
            self.random.octet() & 0xf
        } else {
            words
        };
        let version = if self.random.one_in(100) {
            self.random.octet() & 0xf
        } else {
            4
        };
        let length = self.length(20 + 4 * options + body.len());
        let (identification, field) = match fragment {
            Some(Fragment {
                identification,
                offset,
                has_more,
            }) => (identification as u16, offset | u16::from(has_more) << 13),
            None => (self.random.word(), self.random.of(&[0x4000, 0x4000, 0, 0x8000])),
        };
        let mut packet = vec![version << 4 | words, 0];
        for value in [length, identification, field] {
            packet.extend(value.to_be_bytes());
        }
        packet.extend([64, protocol.0, 0, 0]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
        packet.extend(self.random.octets(4 * options));
        packet.extend(body);
        packet
    }

    fn ipv6(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProto,
        body: &[u8],
        fragment: Option<Fragment>,
    ) -> Vec<u8> {
        let mut kinds = Vec::new();
        if self.random.one_in(4) {
            for _ in 0..self.random.of(&[1, 1, 1, 2, 2, 3, 7, 8, 9]) {
                let any = self.random.octet();
                kinds.push(self.random.of(&[0, 43, 60, 60, 51, 44, 59, 135, any]));
            }
        }
        if fragment.is_some() {
            let place = self.random.index(kinds.len() + 1);
            kinds.insert(place, IpProto::FRAGMENT.0);
        }
        let first = kinds.first().copied().unwrap_or(protocol.0);
        let mut headers = Vec::new();
        for (index, &kind) in kinds.iter().enumerate() {
            headers.push(kinds.get(index + 1).copied().unwrap_or(protocol.0));
            match (IpProto(kind), fragment) {
                (IpProto::FRAGMENT, Some(fragment)) => {
                    headers.push(0);
                    headers.extend((fragment.offset << 3 | u16::from(fragment.has_more)).to_be_bytes());
                    headers.extend(fragment.identification.to_be_bytes());
                }
                (IpProto::FRAGMENT, None) => headers.extend([0; 7]),
                (IpProto::AUTHENTICATION, _) => {
                    let words = self.random.of(&[1u8, 4, 5]);
                    headers.push(words);
                    headers.extend(self.random.octets(usize::from(words) * 4 + 6));
                }
                _ => {
                    let eights = self.random.of(&[0u8, 0, 0, 1, 3]);
                    headers.push(eights);
                    headers.extend(self.random.octets(usize::from(eights) * 8 + 6));
                }
            }
        }
        let version = if self.random.one_in(100) {
            self.random.octet()
        } else {
            0x60
        };
        let length = self.length(headers.len() + body.len());
        let mut packet = vec![version, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([first, 64]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
        packet.extend(headers);
        packet.extend(body);
        packet
    }

    /// Bits, octets, lengths: whatever can happen to a frame.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        for _ in 0..=random.below(3) {
            if frame.is_empty() {
                return;
            }
            let at = random.index(frame.len());
            match random.below(8) {
                0..=2 => frame[at] ^= 1 << random.below(8),
                3 => frame[at] = random.octet(),
                4 => frame[at] = random.of(&[0, 1, 0x7f, 0x80, 0xff]),
                5 => frame.truncate(at),
                6 => {
                    let part = frame[at..frame.len().min(at + 16)].to_vec();
                    frame.splice(at..at, part);
                }
                _ => {
                    let end = frame.len().min(at + random.index(16));
                    frame.drain(at..end);
                }
            }
        }
    }
}

/// Which part of a packet it is.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    identification: u32,
    /// In units of 8 octets.
    offset: u16,
    has_more: bool,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
