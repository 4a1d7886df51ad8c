//! What the doctor asks on the wire: who has a virtual address, and whether a real server answers for it.
//!
//! Frames are made by hand and sent to a real server's MAC address, as the program in the kernel does it: so a packet
//! for the virtual address reaches one real server, also where the director holds the address itself. What comes
//! back is read from the same packet socket, before the kernel would throw away what it takes for its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use etherparse::{
    EtherType, Ethernet2Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{LinkAddr, recvfrom},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::neighbour::{
    Mac,
    probe::{self, link_address, solicited_node},
};

/// `ETH_P_ALL`.
const ALL: u16 = 3;
/// Every question is asked so often, in as many parts of the time.
const TIMES: u32 = 2;
const TTL: u8 = 64;
const WINDOW: u16 = 1024;
/// RFC 4861, 7.1: with any other hop limit it is not valid.
const HOP_LIMIT: u8 = 255;
/// No frame is longer.
const LONGEST: usize = 65_600;
/// Octets of TCP's ports and sequence number, which an ICMP error quotes (RFC 792).
const QUOTED: usize = 8;

/// From where a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) if_index: u32,
    pub(super) mac: Mac,
    pub(super) address: IpAddr,
}

/// A question to one real server, whose answer is known by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) from: Place,
    /// The real server's MAC address.
    pub(super) to: Mac,
    /// The address that is asked: its own, or the virtual one.
    pub(super) address: IpAddr,
    pub(super) what: What,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// An echo.
    Echo,
    /// An echo of a packet of so many bytes.
    LongEcho(u32),
    /// That a TCP port is opened.
    Tcp(u16),
    /// A UDP port, by an empty datagram.
    Udp(u16),
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reply {
    /// Nothing.
    Silence,
    /// An ICMP error.
    Rejected,
    /// TCP's reset, or for UDP that the port cannot be reached: the address is there, and nobody listens.
    Closed,
    /// The connection was accepted, the echo returned, or a datagram.
    Answered,
}

/// The doctor's ear and mouth.
#[derive(Debug)]
pub(super) struct Wire {
    frames: Socket,
    /// Keeps the port that questions come from from everybody else; it accepts nothing.
    _reserved: Socket,
    port: u16,
    /// Where the sequence numbers begin.
    first: u32,
}

impl Wire {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Without root's rights.
    pub(super) fn open() -> anyhow::Result<Self> {
        let reserved = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        reserved.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
        let port = reserved
            .local_addr()?
            .as_socket()
            .map(|address| address.port())
            .context("the kernel gave no port")?;
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let frames = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))
            .context("cannot open a packet socket: run it as root, or with CAP_NET_RAW")?;
        // Best effort: where there is much traffic that the program leaves to the host, some answers may be lost.
        drop(frames.set_recv_buffer_size(4 << 20));
        Ok(Self {
            frames,
            _reserved: reserved,
            port,
            first: std::process::id() << 16,
        })
    }

    fn send(&self, if_index: u32, frame: &[u8]) -> io::Result<()> {
        let to = frame.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        self.frames.send_to(frame, &link_address(if_index, *to)).map(drop)
    }

    /// Hands on every frame that comes in until the time is over, or `hear` says that it has heard enough.
    fn listen(&self, until: Instant, mut hear: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let mut frame = vec![0; LONGEST];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            poll(
                &mut [PollFd::new(self.frames.as_fd(), PollFlags::POLLIN)],
                timeout,
            )?;
            match recvfrom::<LinkAddr>(self.frames.as_raw_fd(), &mut frame) {
                Ok((length, from)) => {
                    let is_incoming = from.is_none_or(|from| from.pkttype() != libc::PACKET_OUTGOING);
                    if is_incoming && hear(frame.get(..length).unwrap_or(&frame)) {
                        return Ok(());
                    }
                }
                // An interface that went down is reported once.
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR | nix::errno::Errno::ENETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks everybody behind these places for addresses: the MAC addresses that say they have them.
    ///
    /// # Errors
    ///
    /// When nothing can be received.
    pub(super) fn who_has(
        &self,
        places: &[Place],
        addresses: &BTreeSet<IpAddr>,
        time: Duration,
    ) -> io::Result<BTreeMap<IpAddr, BTreeSet<Mac>>> {
        let mut found: BTreeMap<IpAddr, BTreeSet<Mac>> = BTreeMap::new();
        for _ in 0..TIMES {
            for place in places {
                let asked = addresses
                    .iter()
                    .filter(|address| address.is_ipv4() == place.address.is_ipv4());
                for address in asked {
                    // An interface that is down is found out otherwise.
                    drop(self.send(place.if_index, &request(place, *address)));
                }
            }
            self.listen(Instant::now() + time / TIMES, |frame| {
                if let Some((address, mac)) = claim(frame)
                    && addresses.contains(&address)
                {
                    found.entry(address).or_default().insert(mac);
                }
                // There may always be one more.
                false
            })?;
        }
        Ok(found)
    }

    /// Asks all these questions, and says what came back to each, the best where there was more than one.
    ///
    /// # Errors
    ///
    /// When nothing can be received.
    pub(super) fn ask(&self, questions: &[Question], time: Duration) -> io::Result<Vec<Reply>> {
        let mut replies = vec![Reply::Silence; questions.len()];
        // There is no better one.
        let is_over = |replies: &[Reply]| replies.iter().all(|reply| *reply == Reply::Answered);
        for _ in 0..TIMES {
            for (number, question) in questions.iter().enumerate() {
                if replies[number] == Reply::Silence {
                    let frame = self.question(question, number);
                    drop(self.send(question.from.if_index, &frame));
                }
            }
            self.listen(Instant::now() + time / TIMES, |frame| {
                let Some((number, reply)) = self.reply(frame, questions) else {
                    return false;
                };
                let (Some(question), Some(known)) = (questions.get(number), replies.get_mut(number)) else {
                    return false;
                };
                if reply == Reply::Answered
                    && let What::Tcp(port) = question.what
                {
                    // Else it would wait for half a minute for the rest of the handshake.
                    drop(self.send(question.from.if_index, &self.reset(question, port, number)));
                }
                *known = reply.max(*known);
                is_over(&replies)
            })?;
            if is_over(&replies) {
                break;
            }
        }
        Ok(replies)
    }

    #[expect(clippy::cast_possible_truncation, reason = "there are far fewer questions")]
    fn sequence(&self, number: usize) -> u32 {
        self.first.wrapping_add(number as u32 * 2)
    }

    fn question(&self, question: &Question, number: usize) -> Vec<u8> {
        let Question {
            from,
            to,
            address,
            what,
        } = *question;
        let builder = PacketBuilder::ethernet2(from.mac, to);
        let sequence = self.sequence(number);
        let [high, low] = [(number >> 16) as u16, number as u16];
        let identifier = self.port ^ high;
        let mut frame = Vec::with_capacity(96);
        // Writing into memory does not fail, nor is anything too long.
        let _ = match (from.address, address) {
            (IpAddr::V4(source), IpAddr::V4(address)) => {
                let builder = builder.ipv4(source.octets(), address.octets(), TTL);
                match what {
                    What::Echo | What::LongEcho(_) => builder
                        .icmpv4_echo_request(identifier, low)
                        .write(&mut frame, &vec![0; padding(what, Ipv4Header::MIN_LEN)]),
                    What::Tcp(port) => builder
                        .tcp(self.port, port, sequence, WINDOW)
                        .syn()
                        .write(&mut frame, &[]),
                    What::Udp(port) => builder.udp(self.port, port).write(&mut frame, &[]),
                }
            }
            (IpAddr::V6(source), IpAddr::V6(address)) => {
                let builder = builder.ipv6(source.octets(), address.octets(), TTL);
                match what {
                    What::Echo | What::LongEcho(_) => builder
                        .icmpv6_echo_request(identifier, low)
                        .write(&mut frame, &vec![0; padding(what, Ipv6Header::LEN)]),
                    What::Tcp(port) => builder
                        .tcp(self.port, port, sequence, WINDOW)
                        .syn()
                        .write(&mut frame, &[]),
                    What::Udp(port) => builder.udp(self.port, port).write(&mut frame, &[]),
                }
            }
            // Nothing is sent, and nothing comes back.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Ok(()),
        };
        frame
    }

    /// What ends the connection that a question has half opened.
    fn reset(&self, question: &Question, port: u16, number: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(question.from.mac, question.to);
        let sequence = self.sequence(number).wrapping_add(1);
        let mut frame = Vec::with_capacity(96);
        let _ = match (question.from.address, question.address) {
            (IpAddr::V4(source), IpAddr::V4(address)) => builder
                .ipv4(source.octets(), address.octets(), TTL)
                .tcp(self.port, port, sequence, 0)
                .rst()
                .write(&mut frame, &[]),
            (IpAddr::V6(source), IpAddr::V6(address)) => builder
                .ipv6(source.octets(), address.octets(), TTL)
                .tcp(self.port, port, sequence, 0)
                .rst()
                .write(&mut frame, &[]),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Ok(()),
        };
        frame
    }

    /// The number of the question that a frame answers, and the answer.
    fn reply(&self, frame: &[u8], questions: &[Question]) -> Option<(usize, Reply)> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let udp = |address, port| {
            let from = frame.get(6..12)?;
            let is_it = |question: &Question| {
                question.what == What::Udp(port) && question.address == address && question.to == from
            };
            questions.iter().position(is_it)
        };
        let net = packet.net?;
        let Some(transport) = packet.transport else {
            // A real server whose MTU is smaller returns a long echo in pieces.
            let payload = net.ip_payload_ref()?;
            let kind = if matches!(net, NetSlice::Ipv4(_)) { 0 } else { 129 };
            return match *payload.payload {
                [first, 0, _, _, a, b, c, d, ..] if payload.fragmented && first == kind => {
                    self.echo([a, b, c, d])
                }
                _ => None,
            };
        };
        match transport {
            TransportSlice::Tcp(tcp) if tcp.destination_port() == self.port && tcp.ack() => {
                let number = self.number(tcp.acknowledgment_number().wrapping_sub(1))?;
                let reply = if tcp.rst() {
                    Reply::Closed
                } else if tcp.syn() {
                    Reply::Answered
                } else {
                    return None;
                };
                Some((number, reply))
            }
            TransportSlice::Udp(answer) if answer.destination_port() == self.port => {
                let source = match net {
                    NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
                    NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
                    NetSlice::Arp(_) => return None,
                };
                Some((udp(source, answer.source_port())?, Reply::Answered))
            }
            TransportSlice::Icmpv4(icmp) => match (icmp.type_u8(), icmp.code_u8()) {
                (0, 0) => self.echo(icmp.bytes5to8()),
                (3, code) => {
                    let quoted = Quoted::v4(icmp.payload())?;
                    let is_port = code == 3;
                    self.quoted(&quoted, is_port, udp)
                }
                _ => None,
            },
            TransportSlice::Icmpv6(icmp) => match (icmp.type_u8(), icmp.code_u8()) {
                (129, _) => self.echo(icmp.bytes5to8()),
                (1, code) => {
                    let quoted = Quoted::v6(icmp.payload())?;
                    let is_port = code == 4;
                    self.quoted(&quoted, is_port, udp)
                }
                _ => None,
            },
            TransportSlice::Tcp(_) | TransportSlice::Udp(_) | TransportSlice::Igmp(_) => None,
        }
    }

    fn number(&self, sequence: u32) -> Option<usize> {
        let offset = sequence.wrapping_sub(self.first);
        offset.is_multiple_of(2).then_some(offset as usize / 2)
    }

    fn echo(&self, [a, b, c, d]: [u8; 4]) -> Option<(usize, Reply)> {
        let high = u16::from_be_bytes([a, b]) ^ self.port;
        let number = usize::from(high) << 16 | usize::from(u16::from_be_bytes([c, d]));
        Some((number, Reply::Answered))
    }

    /// Of an error about an echo request nothing is said: that the address answers none is no fault.
    fn quoted(
        &self,
        quoted: &Quoted,
        is_port: bool,
        udp: impl Fn(IpAddr, u16) -> Option<usize>,
    ) -> Option<(usize, Reply)> {
        let [a, b, c, d, sequence @ ..] = quoted.transport;
        if u16::from_be_bytes([a, b]) != self.port {
            return None;
        }
        if quoted.protocol == IpNumber::UDP {
            let number = udp(quoted.destination, u16::from_be_bytes([c, d]))?;
            return Some((number, if is_port { Reply::Closed } else { Reply::Rejected }));
        }
        Some((self.number(u32::from_be_bytes(sequence))?, Reply::Rejected))
    }
}

/// What an ICMP error says of the packet that it is about.
struct Quoted {
    destination: IpAddr,
    protocol: IpNumber,
    /// What every error quotes of the transport's header.
    transport: [u8; QUOTED],
}

impl Quoted {
    fn v4(packet: &[u8]) -> Option<Self> {
        let length = usize::from(packet.first()? & 0xf) * 4;
        let destination: [u8; 4] = *packet.get(16..)?.first_chunk()?;
        Some(Self {
            destination: destination.into(),
            protocol: IpNumber(*packet.get(9)?),
            transport: *packet.get(length..)?.first_chunk()?,
        })
    }

    fn v6(packet: &[u8]) -> Option<Self> {
        let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
        Some(Self {
            destination: destination.into(),
            protocol: IpNumber(*packet.get(6)?),
            transport: *packet.get(Ipv6Header::LEN..)?.first_chunk()?,
        })
    }
}

/// Bytes behind an echo's header, of a packet whose IP header has this length.
fn padding(what: What, header: usize) -> usize {
    /// ICMP's header of an echo, in both families.
    const ECHO: usize = 8;
    match what {
        What::LongEcho(mtu) => {
            let longest = usize::from(u16::MAX);
            usize::try_from(mtu)
                .unwrap_or(longest)
                .min(longest)
                .saturating_sub(header + ECHO)
        }
        What::Echo | What::Tcp(_) | What::Udp(_) => 0,
    }
}

/// Asks everybody for an address's MAC address.
fn request(place: &Place, address: IpAddr) -> Vec<u8> {
    match (place.address, address) {
        (IpAddr::V4(source), IpAddr::V4(address)) => {
            let mut frame = ethernet(place.mac, [0xff; 6], EtherType::ARP);
            frame.extend(probe::arp_request(place.mac, source, address));
            frame
        }
        (IpAddr::V6(source), IpAddr::V6(address)) => solicitation(place.mac, source, address),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}

fn ethernet(source: Mac, destination: Mac, ether_type: EtherType) -> Vec<u8> {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    header.to_bytes().to_vec()
}

fn solicitation(mac: Mac, source: Ipv6Addr, address: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(address);
    let mut behind = address.octets().to_vec();
    behind.extend([probe::SOURCE_LINK_LAYER_ADDRESS, 1]);
    behind.extend(mac);
    let kind = Icmpv6Type::Unknown {
        type_u8: probe::NEIGHBOUR_SOLICITATION,
        code_u8: 0,
        bytes5to8: [0; 4],
    };
    let Ok(message) = kind.to_header(source.octets(), group.octets(), &behind) else {
        return Vec::new();
    };
    let [.., a, b, c, d] = group.octets();
    let mut frame = ethernet(mac, [0x33, 0x33, a, b, c, d], EtherType::IPV6);
    let header = Ipv6Header {
        payload_length: 32,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: HOP_LIMIT,
        source: source.octets(),
        destination: group.octets(),
        ..Ipv6Header::default()
    };
    frame.extend(header.to_bytes());
    frame.extend(message.to_bytes());
    frame.extend(behind);
    frame
}

/// What a frame claims: that this address is at this MAC address.
fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (packet.net?, packet.transport) {
        (NetSlice::Arp(arp), _) => {
            let (address, mac) = probe::parse_arp_reply(arp.slice())?;
            Some((address.into(), mac))
        }
        (NetSlice::Ipv6(_), Some(TransportSlice::Icmpv6(icmp))) => {
            if icmp.type_u8() != probe::NEIGHBOUR_ADVERTISEMENT {
                return None;
            }
            let target: [u8; 16] = *icmp.payload().first_chunk()?;
            // Whoever has sent it: the option may be left out.
            let mac = *frame.get(6..12)?.first_chunk()?;
            Some((Ipv6Addr::from(target).into(), mac))
        }
        _ => None,
    }
}
