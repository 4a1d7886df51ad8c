//! Asking an address for its MAC address, and hearing the answer: ARP (RFC 826) and neighbour
//! discovery (RFC 4861).
//!
//! The kernel hears the same answers and enters them into its own table. Here they only tell
//! whether somebody is there.

use std::{
    future,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
    num::NonZeroU8,
    os::fd::AsRawFd as _,
    ptr,
};

use anyhow::Context as _;
use nix::sys::socket::{
    ControlMessage, LinkAddr, MsgFlags, SockaddrIn6, recvfrom, sendmsg, setsockopt, sockopt::RcvBufForce,
};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Mac, table::Probe};

const ETH_P_ARP: u16 = 0x0806;
const BROADCAST: Mac = [0xff; 6];
const ARP_LEN: usize = 28;
const ARP_REPLY: u16 = 2;
pub(crate) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(crate) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Type, code, checksum, flags and target of a solicitation or an advertisement.
const NDP_LEN: usize = 24;
pub(crate) const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// The flag of an advertisement that answers a solicitation.
const SOLICITED: u8 = 0x40;

/// Somebody says that this address has this MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) address: IpAddr,
    /// The interface it came in by, where the socket tells.
    pub(super) if_index: Option<u32>,
    /// `None`: the one that was asked.
    pub(super) mac: Option<Mac>,
}

/// The sockets for questions and answers.
#[derive(Debug)]
pub(super) struct Probes {
    arp: AsyncFd<Socket>,
    /// `None` where the kernel has no IPv6.
    ndp: Option<AsyncFd<Socket>>,
}

impl Probes {
    pub(super) fn open() -> anyhow::Result<Self> {
        let arp = arp_socket().context(
            "cannot open a packet socket for ARP: the agent must run as root, or with CAP_NET_RAW",
        )?;
        let ndp = match ndp_socket() {
            Ok(socket) => Some(register(socket)?),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error).context("cannot open a raw socket for ICMPv6"),
        };
        Ok(Self {
            arp: register(arp)?,
            ndp,
        })
    }

    /// Asks the known MAC address, or everybody.
    pub(super) fn ask(&self, probe: Probe, everybody: bool) -> io::Result<()> {
        match probe.address {
            IpAddr::V4(target) => {
                let to = if everybody { BROADCAST } else { probe.mac };
                let source = match probe.source {
                    Some(IpAddr::V4(source)) => source,
                    // The "ARP probe" of RFC 5227: answered, and entered into nobody's table.
                    Some(IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
                };
                let request = arp_request(probe.source_mac, source, target);
                self.arp
                    .get_ref()
                    .send_to(&request, &link_address(probe.if_index, to))
                    .map(drop)
            }
            IpAddr::V6(target) => {
                let Some(ndp) = &self.ndp else { return Ok(()) };
                // A unicast goes, by the kernel's entry, to the known MAC address.
                let to = if everybody { solicited_node(target) } else { target };
                let to = SocketAddrV6::new(to, 0, 0, probe.if_index);
                let solicitation = solicitation(probe.source_mac, target);
                let ask_from = |source| send_from(ndp.get_ref(), source, to, &solicitation);
                let kernels_choice = Ipv6Addr::UNSPECIFIED;
                match probe.source {
                    // It cannot be used until the kernel knows that nobody else has it.
                    Some(IpAddr::V6(source)) => ask_from(source).or_else(|_| ask_from(kernels_choice)),
                    Some(IpAddr::V4(_)) | None => ask_from(kernels_choice),
                }
            }
        }
    }

    /// Waits until there is something to [`drain`](Self::drain).
    pub(super) async fn readable(&self) -> io::Result<()> {
        let arp = async { self.arp.readable().await.map(drop) };
        let ndp = async {
            match &self.ndp {
                Some(ndp) => ndp.readable().await.map(drop),
                None => future::pending().await,
            }
        };
        tokio::select! {
            ready = arp => ready,
            ready = ndp => ready,
        }
    }

    /// Takes every answer that has arrived.
    pub(super) fn drain(&self) -> Vec<Answer> {
        let mut answers = Vec::new();
        drain(&self.arp, receive_arp, &mut answers);
        if let Some(ndp) = &self.ndp {
            drain(ndp, receive_ndp, &mut answers);
        }
        answers
    }
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns one open descriptor for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Reads a socket until it is empty. `receive` gives `Ok(None)` for what is no answer.
///
/// It reads whether or not the runtime has seen that there is something: a task that was held up
/// must hear the answers that have come before it decides that there are none.
fn drain(
    socket: &AsyncFd<Socket>,
    receive: fn(&Socket) -> io::Result<Option<Answer>>,
    answers: &mut Vec<Answer>,
) {
    // What arrives meanwhile is taken too, but a flood must not keep the task here for ever.
    for _ in 0..4096 {
        match receive(socket.get_ref()) {
            Ok(answer) => answers.extend(answer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Tells the runtime that it is empty; the result is the error just given to it.
                drop(socket.try_io(Interest::READABLE, |_| Err::<(), _>(error)));
                return;
            }
            // An interface that went down is reported once on the socket.
            Err(error) => tracing::debug!(%error, "reading an answer"),
        }
    }
}

/// The answers of thousands of real servers fit in, also while the agent compiles all of their services: by the host's
/// usual limit some 300 do, and whose answer is lost is taken for silent.
const ANSWER_BUFFER: usize = 8 << 20;

fn make_room(socket: &Socket) -> io::Result<()> {
    // Beyond the limit where that is allowed, up to it where not.
    setsockopt(socket, RcvBufForce, &ANSWER_BUFFER)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_recv_buffer_size(ANSWER_BUFFER))
}

fn arp_socket() -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ETH_P_ARP.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))?;
    // Only replies: the requests of a large segment would wake the agent all the time. The packet
    // begins with the ARP header, since the socket is a datagram one; its operation is at 6.
    socket.attach_filter(&[
        SockFilter::new(0x28, 0, 0, 6),                    // ldh [6]
        SockFilter::new(0x15, 0, 1, u32::from(ARP_REPLY)), // jeq #2, next, last
        SockFilter::new(0x06, 0, 0, u32::MAX),             // ret all
        SockFilter::new(0x06, 0, 0, 0),                    // ret none
    ])?;
    make_room(&socket)?;
    Ok(socket)
}

fn ndp_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking(), Some(Protocol::ICMPV6))?;
    // RFC 4861, section 7.1: with any other hop limit it is not valid.
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_loop_v6(false)?;
    make_room(&socket)?;
    // ICMP6_FILTER of RFC 3542: a set bit blocks the type.
    const ICMP6_FILTER: libc::c_int = 1;
    let mut blocked = [u32::MAX; 8];
    blocked[usize::from(NEIGHBOUR_ADVERTISEMENT / 32)] &= !(1 << (NEIGHBOUR_ADVERTISEMENT % 32));
    let length = u32::try_from(size_of_val(&blocked)).map_err(io::Error::other)?;
    // SAFETY: the pointer and length are those of a live array, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            ptr::from_ref(&blocked).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A packet socket's address: a MAC address behind an interface.
pub(crate) fn link_address(if_index: u32, mac: Mac) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_ll` is plain data, smaller than the storage, which is aligned for every
    // kind of socket address and initialised with zeros.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ETH_P_ARP.to_be();
    address.sll_ifindex = if_index.cast_signed();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    // SAFETY: the storage holds the `sockaddr_ll` written above, and this is its length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

pub(crate) fn arp_request(source_mac: Mac, source: Ipv4Addr, target: Ipv4Addr) -> [u8; ARP_LEN] {
    let mut packet = [0; ARP_LEN];
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]); // Ethernet, IPv4, lengths, request
    packet[8..14].copy_from_slice(&source_mac);
    packet[14..18].copy_from_slice(&source.octets());
    packet[24..28].copy_from_slice(&target.octets());
    packet
}

fn receive_arp(socket: &Socket) -> io::Result<Option<Answer>> {
    let mut packet = [0; 64];
    let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut packet)?;
    // A promiscuous interface shows other hosts' answers too.
    let Some(from) = from.filter(|from| from.pkttype() != libc::PACKET_OTHERHOST) else {
        return Ok(None);
    };
    let Some((address, mac)) = parse_arp_reply(&packet[..length]) else {
        return Ok(None);
    };
    let if_index = u32::try_from(from.ifindex()).ok();
    Ok(Some(Answer {
        address: address.into(),
        if_index,
        mac: Some(mac),
    }))
}

pub(crate) fn parse_arp_reply(packet: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let packet: &[u8; ARP_LEN] = packet.first_chunk()?;
    let [0, 1, 8, 0, 6, 4, operation @ ..] = packet.first_chunk::<8>()? else {
        return None;
    };
    if u16::from_be_bytes(*operation) != ARP_REPLY {
        return None;
    }
    let mac = *packet[8..].first_chunk()?;
    let address: [u8; 4] = *packet[14..].first_chunk()?;
    Some((address.into(), mac))
}

/// The multicast group of everybody who might have this address (RFC 4291, section 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The checksum stays empty: the kernel fills it in on raw ICMPv6 sockets (RFC 3542, section 3.1).
fn solicitation(source_mac: Mac, target: Ipv6Addr) -> [u8; NDP_LEN + 8] {
    let mut packet = [0; NDP_LEN + 8];
    packet[0] = NEIGHBOUR_SOLICITATION;
    packet[8..24].copy_from_slice(&target.octets());
    packet[24..26].copy_from_slice(&[SOURCE_LINK_LAYER_ADDRESS, 1]);
    packet[26..].copy_from_slice(&source_mac);
    packet
}

/// Sends from this address, by the interface that is `to`'s scope.
fn send_from(socket: &Socket, source: Ipv6Addr, to: SocketAddrV6, packet: &[u8]) -> io::Result<()> {
    let way = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr {
            s6_addr: source.octets(),
        },
        ipi6_ifindex: to.scope_id(),
    };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(packet)],
        &[ControlMessage::Ipv6PacketInfo(&way)],
        MsgFlags::empty(),
        Some(&SockaddrIn6::from(to)),
    )?;
    Ok(())
}

fn receive_ndp(socket: &Socket) -> io::Result<Option<Answer>> {
    let mut buffer = [MaybeUninit::uninit(); 256];
    let (length, from) = socket.recv_from(&mut buffer)?;
    // SAFETY: the kernel has written so many bytes of the buffer.
    let packet = unsafe { buffer[..length].assume_init_ref() };
    let Some((address, mac)) = parse_advertisement(packet) else {
        return Ok(None);
    };
    // Only link-local senders have a scope.
    let if_index = from
        .as_socket_ipv6()
        .map(|from| from.scope_id())
        .filter(|index| *index != 0);
    Ok(Some(Answer {
        address: address.into(),
        if_index,
        mac,
    }))
}

/// The address that an advertisement is about, and its MAC address; `None` where it answers one who knows it
/// (RFC 4861, section 4.4), as Linux answers every solicitation that came by unicast.
fn parse_advertisement(packet: &[u8]) -> Option<(Ipv6Addr, Option<Mac>)> {
    let (header, mut options) = packet.split_first_chunk::<NDP_LEN>()?;
    if header[0] != NEIGHBOUR_ADVERTISEMENT {
        return None;
    }
    let target: [u8; 16] = *header[8..].first_chunk()?;
    while let [kind, units, ..] = *options {
        // RFC 4861, section 4.6: an option of no length makes the packet invalid.
        let length = usize::from(NonZeroU8::new(units)?.get()) * 8;
        let (option, rest) = options.split_at_checked(length)?;
        if kind == TARGET_LINK_LAYER_ADDRESS {
            return Some((target.into(), Some(*option[2..].first_chunk()?)));
        }
        options = rest;
    }
    let is_solicited = header[4] & SOLICITED != 0;
    (is_solicited && options.is_empty()).then_some((target.into(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 1, 2, 3, 4, 5];

    #[test]
    fn an_arp_request_asks_for_the_target() {
        let request = arp_request(MAC, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 9));
        #[rustfmt::skip]
        assert_eq!(request, [
            0, 1, 8, 0, 6, 4, 0, 1,
            2, 1, 2, 3, 4, 5, 192, 0, 2, 1,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 9,
        ]);
    }

    #[test]
    fn only_whole_arp_replies_are_answers() {
        let mut packet = arp_request(MAC, Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(parse_arp_reply(&packet), None, "a request");
        packet[7] = 2;
        assert_eq!(parse_arp_reply(&packet), Some((Ipv4Addr::new(192, 0, 2, 9), MAC)));
        assert_eq!(
            parse_arp_reply(&[&packet[..], &[0; 18]].concat()).map(|(_, mac)| mac),
            Some(MAC),
            "padded"
        );
        assert_eq!(parse_arp_reply(&packet[..27]), None, "cut");
        packet[1] = 6;
        assert_eq!(parse_arp_reply(&packet), None, "not Ethernet");
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_the_target() {
        let target: Ipv6Addr = "2001:db8::1:23:4567".parse().expect("an address");
        assert_eq!(
            solicited_node(target),
            "ff02::1:ff23:4567".parse::<Ipv6Addr>().expect("an address")
        );
        let packet = solicitation(MAC, target);
        assert_eq!(packet[..8], [135, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(packet[8..24], target.octets());
        assert_eq!(packet[24..], [1, 1, 2, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_mac_address_of_an_advertisement_is_in_its_option() {
        let target: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let mut packet = solicitation(MAC, target);
        packet[0] = NEIGHBOUR_ADVERTISEMENT;
        assert_eq!(
            parse_advertisement(&packet),
            None,
            "a source address is not what was asked for"
        );
        packet[24] = TARGET_LINK_LAYER_ADDRESS;
        assert_eq!(parse_advertisement(&packet), Some((target, Some(MAC))));
        // Another option before it, of two units.
        let long = [&packet[..24], &[14, 2], &[0; 14], &packet[24..]].concat();
        assert_eq!(parse_advertisement(&long), Some((target, Some(MAC))));
        // An option of no length would be read for ever.
        let endless = [&packet[..24], &[14, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(parse_advertisement(&endless), None);
        for length in 0..packet.len() {
            assert_eq!(parse_advertisement(&packet[..length]), None, "cut at {length}");
        }
        // It may be left out where one was asked who is known, and only there.
        packet[4] = SOLICITED;
        assert_eq!(parse_advertisement(&packet[..24]), Some((target, None)));
        assert_eq!(parse_advertisement(&packet), Some((target, Some(MAC))));
        for length in 25..packet.len() {
            assert_eq!(parse_advertisement(&packet[..length]), None, "cut at {length}");
        }
    }
}
