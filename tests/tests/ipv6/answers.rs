//! What the program itself says: the reset of a connection whose server was removed, and the ICMPv6 error where there
//! is no server to be had.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    Icmpv6Type, Ipv6HeaderSlice, NetSlice, SlicedPacket, TransportSlice, icmpv6::DestUnreachableCode,
    ip_number,
};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{packets, wait_for},
    datagram::connected,
    family::Family,
    lab::Lab,
    load::Load,
    packet::{Capture, Frame},
    process::{COMMAND_LIMIT, output},
    stream::{Download, OpenConnection},
};

use crate::{CLIENT, SERVICE, VIP, answered, empty_lab, in_both_modes, lab};

in_both_modes!(
    reset_tells_the_client_at_once,
    who_finds_no_server_is_told_at_once,
);

/// How long a client may take to hear of it.
const SOON: Duration = Duration::from_secs(3);
const PORT: u16 = 7;
/// curl's exit status when nobody answers at the address.
const CURL_REFUSED: i32 = 7;
/// curl's exit status when the connection breaks while it receives.
const CURL_BROKEN: i32 = 56;
/// Octets of an IPv6 header.
const IPV6: usize = 40;

/// The frames that came in from the director.
fn from_director(lab: &Lab, capture: Capture) -> Result<Vec<Frame>> {
    let director = lab.topology().mac("director", "eth0")?;
    let frames = capture.finish()?.into_iter();
    Ok(frames
        .filter(|frame| !frame.outgoing && frame.bytes[6..12] == director)
        .collect())
}

/// Looks at the headers of an answer from the VIP to the client; returns the octets behind IPv6's.
fn check_headers(lab: &Lab, frame: &Frame, protocol: u8) -> Result<usize> {
    assert_eq!(frame.bytes[0..6], lab.topology().mac("router", "eth1")?);
    let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
    let Some(NetSlice::Ipv6(ip)) = packet.net else {
        bail!("no IPv6");
    };
    let header = ip.header();
    assert_eq!((header.source_addr(), header.destination_addr()), (VIP, CLIENT));
    assert_eq!((header.next_header().0, header.hop_limit()), (protocol, 64));
    let length = usize::from(header.payload_length());
    assert_eq!(
        frame.bytes.len(),
        14 + IPV6 + length,
        "what the header says is there"
    );
    Ok(length)
}

/// Looks at every bit of a reset; returns the client's port.
fn check_reset(lab: &Lab, frame: &Frame) -> Result<u16> {
    assert_eq!(check_headers(lab, frame, 6)?, 20);
    let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        bail!("no TCP");
    };
    assert_eq!(tcp.source_port(), 80);
    // What has acknowledged something is answered with what it acknowledged, and with nothing else set.
    assert!(tcp.rst() && !tcp.ack() && !tcp.syn() && !tcp.fin());
    assert_eq!((tcp.acknowledgment_number(), tcp.window_size()), (0, 0));
    assert_ne!(tcp.sequence_number(), 0);
    let right = tcp.calc_checksum_ipv6(VIP.octets(), CLIENT.octets())?;
    assert_eq!(tcp.checksum(), right);
    Ok(tcp.destination_port())
}

fn reset_tells_the_client_at_once(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    // Little fits in between, so that a client that reads slowly is noticed at once.
    lab.client().sysctl("net.ipv4.tcp_rmem", "4096 65536 131072")?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let slow = Download::start(&lab, &["--limit-rate", "3M", "--max-time", "60"])?;
    wait_for("a download that is under way", || Ok(slow.received() > 200_000))?;

    let capture = Capture::start(lab.router(), "eth1")?;
    let server = Family::V6.real_server(2).to_string();
    lab.cli(["server", "delete", "tcp", SERVICE, &server])?;
    let ended = slow.finish(SOON)?;
    assert_eq!(ended.status, Some(CURL_BROKEN), "{}", ended.message);
    assert!(
        ended.message.contains("Connection reset by peer"),
        "{}",
        ended.message
    );
    let said = Instant::now();
    let refused = open.ask().err().context("the connection should have ended")?;
    assert!(format!("{refused:#}").contains("reset"), "{refused:#}");
    assert!(said.elapsed() < SOON, "{:?}", said.elapsed());
    let report = answered(&lab, Load::sequential(VIP, 5))?;
    assert_eq!(report.counts().into_iter().collect::<Vec<_>>(), [("rs1", 5)]);

    let mut ports = Vec::new();
    for frame in from_director(&lab, capture)? {
        let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
        if matches!(packet.transport, Some(TransportSlice::Tcp(_))) && frame.bytes[12..14] == [0x86, 0xdd] {
            ports.push(check_reset(&lab, &frame)?);
        }
    }
    assert_eq!(packets(&lab, "reset")?, ports.len() as u64);
    assert!(ports.contains(&open.client()?.port()), "{ports:?}");
    Ok(())
}

/// Looks at every bit of a port unreachable; returns the protocol and the client's port of the packet that it quotes.
fn check_unreachable(lab: &Lab, frame: &Frame) -> Result<(u8, u16)> {
    let length = check_headers(lab, frame, 58)?;
    let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
        bail!("no ICMPv6");
    };
    assert_eq!(
        icmp.icmp_type(),
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port)
    );
    assert!(icmp.is_checksum_valid(VIP.octets(), CLIENT.octets()));
    // RFC 4443, 2.4 (c): no more than fits the least MTU.
    assert!(IPV6 + length <= 1280, "{length}");
    let quoted = Ipv6HeaderSlice::from_slice(icmp.payload())?;
    assert_eq!((quoted.source_addr(), quoted.destination_addr()), (CLIENT, VIP));
    let ports = icmp
        .payload()
        .get(IPV6..IPV6 + 4)
        .context("no ports are quoted")?;
    let wanted = if quoted.next_header() == ip_number::UDP {
        PORT
    } else {
        80
    };
    assert_eq!(u16::from_be_bytes([ports[2], ports[3]]), wanted);
    let client = u16::from_be_bytes([ports[0], ports[1]]);
    Ok((quoted.next_header().0, client))
}

fn who_finds_no_server_is_told_at_once(mode: XdpMode) -> Result<()> {
    let lab = empty_lab(mode, 1)?;
    lab.ipvsadm(["-A", "-t", SERVICE, "-s", "rr"])?;
    lab.ipvsadm(["-A", "-u", &format!("[{VIP}]:{PORT}"), "-s", "wlc"])?;
    let capture = Capture::start(lab.router(), "eth1")?;
    let mut curl = lab.curl();
    curl.arg(lab.url("/"));
    let started = Instant::now();
    let refused = output(curl, COMMAND_LIMIT)?;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(refused.status.code(), Some(CURL_REFUSED), "{refused:?}");

    // Short, and longer than what is quoted of it.
    let mut ports = Vec::new();
    for length in [1, 13, 1452] {
        let socket = connected(&lab, PORT)?;
        socket.send(&vec![0x5a; length])?;
        let refused = socket.recv(&mut [0; 16]).err().context("nobody is there")?;
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        ports.push((ip_number::UDP.0, socket.local_addr()?.port()));
    }

    let answered = packets(&lab, "no-destination")?;
    assert_eq!(packets(&lab, "no-destination-quiet")?, 0);
    let mut quoted = Vec::new();
    for frame in from_director(&lab, capture)? {
        let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
            continue;
        };
        // Not neighbour discovery.
        if matches!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(_)) {
            quoted.push(check_unreachable(&lab, &frame)?);
        }
    }
    assert_eq!(quoted.len() as u64, answered, "{quoted:?}");
    // A client that is told while it is still in its call to connect sends its SYN again after a second.
    let syns = quoted.len() - ports.len();
    assert!((1..=2).contains(&syns), "{quoted:?}");
    let client = (ip_number::TCP.0, quoted[0].1);
    assert_eq!(quoted[..syns], [client, client][..syns]);
    assert_eq!(quoted[syns..], ports);
    Ok(())
}
