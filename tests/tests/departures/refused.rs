//! There is no real server to be had: who comes is told, at once.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    Icmpv4Type, Ipv4HeaderSlice, NetSlice, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader,
    ip_number,
};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::packets,
    datagram::connected,
    lab::{CLIENT, Lab, VIP},
    packet::{Capture, Frame},
    process::{COMMAND_LIMIT, output},
};

use crate::{CURL_REFUSED, empty_lab, in_both_modes};

in_both_modes!(
    who_finds_no_server_is_told_at_once,
    a_flood_is_not_answered_packet_by_packet
);

/// How long a client may take to hear of it.
const SOON: Duration = Duration::from_secs(2);
const PORT: u16 = 7;

/// A service over TCP and one over UDP, with nobody behind them.
fn lab(mode: XdpMode) -> Result<Lab> {
    let lab = empty_lab(mode, 1)?;
    lab.ipvsadm(["-A", "-t", &format!("{VIP}:80"), "-s", "rr"])?;
    lab.ipvsadm(["-A", "-u", &format!("{VIP}:{PORT}"), "-s", "wlc"])?;
    Ok(lab)
}

/// The ICMP packets among frames that came in from the director.
fn unreachables(lab: &Lab, frames: Vec<Frame>) -> Result<Vec<Frame>> {
    let director = lab.topology().mac("director", "eth0")?;
    Ok(frames
        .into_iter()
        .filter(|frame| !frame.outgoing && frame.bytes[6..12] == director)
        .filter(|frame| {
            SlicedPacket::from_ethernet(&frame.bytes)
                .is_ok_and(|packet| matches!(packet.transport, Some(TransportSlice::Icmpv4(_))))
        })
        .collect())
}

/// Looks at every bit of an answer; returns the protocol and the client's port of the packet that it quotes.
fn check_unreachable(router: [u8; 6], frame: &Frame) -> Result<(u8, u16)> {
    assert_eq!(frame.bytes[0..6], router);
    let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) = (packet.net, packet.transport)
    else {
        bail!("no ICMP over IPv4");
    };
    let header = ip.header();
    assert_eq!((header.source_addr(), header.destination_addr()), (VIP, CLIENT));
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum()
    );
    // Both headers, and of the packet that came its header and eight octets.
    assert_eq!((header.total_len(), header.ttl()), (20 + 8 + 20 + 8, 64));
    let kind = icmp.icmp_type();
    assert_eq!(
        kind,
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port)
    );
    assert_eq!(icmp.checksum(), kind.calc_checksum(icmp.payload()));
    let quoted = Ipv4HeaderSlice::from_slice(icmp.payload())?;
    assert_eq!((quoted.source_addr(), quoted.destination_addr()), (CLIENT, VIP));
    assert_eq!(
        quoted.header_checksum(),
        quoted.to_header().calc_header_checksum()
    );
    let ports = (icmp.payload().get(20..24)).context("no ports are quoted")?;
    let ours = u16::from_be_bytes([ports[2], ports[3]]);
    let wanted = if quoted.protocol() == ip_number::UDP {
        PORT
    } else {
        80
    };
    assert_eq!(ours, wanted);
    Ok((quoted.protocol().0, u16::from_be_bytes([ports[0], ports[1]])))
}

fn who_finds_no_server_is_told_at_once(mode: XdpMode) -> Result<()> {
    let lab = lab(mode)?;
    let capture = Capture::start(lab.router(), "eth1")?;
    let mut curl = lab.curl();
    curl.arg(format!("http://{VIP}/"));
    let started = Instant::now();
    let refused = output(curl, COMMAND_LIMIT)?;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(refused.status.code(), Some(CURL_REFUSED), "{refused:?}");

    let socket = connected(&lab, PORT)?;
    socket.send(b"who is there?")?;
    let started = Instant::now();
    let refused = socket.recv(&mut [0; 16]).err().context("nobody is there")?;
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());

    assert_eq!(packets(&lab, "no-destination")?, 2);
    assert_eq!(packets(&lab, "no-destination-quiet")?, 0);
    let answers = unreachables(&lab, capture.finish()?)?;
    let router = lab.topology().mac("router", "eth1")?;
    let quoted =
        (answers.iter().map(|frame| check_unreachable(router, frame))).collect::<Result<Vec<_>>>()?;
    assert_eq!(quoted.len(), 2, "{quoted:?}");
    assert_eq!(quoted[0].0, ip_number::TCP.0);
    assert_eq!(quoted[1], (ip_number::UDP.0, socket.local_addr()?.port()));
    Ok(())
}

fn a_flood_is_not_answered_packet_by_packet(mode: XdpMode) -> Result<()> {
    const FLOOD: u64 = 6_000;
    /// As many as the director's cable holds.
    const BURST: u64 = 50;
    const ANSWERS_A_SECOND: u64 = 1_000;
    let lab = lab(mode)?;
    // Not connected: it does not hear of the answers, and goes on.
    let socket = lab.client().enter(|| UdpSocket::bind((CLIENT, 0)))??;
    let capture = Capture::start(lab.router(), "eth1")?;
    let started = Instant::now();
    for number in 1..=FLOOD {
        socket.send_to(b"who is there?", (VIP, PORT))?;
        if number % BURST == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let seconds = started.elapsed().as_secs();
    let answers = unreachables(&lab, capture.finish()?)?;
    let router = lab.topology().mac("router", "eth1")?;
    let (answered, quiet) = (
        packets(&lab, "no-destination")?,
        packets(&lab, "no-destination-quiet")?,
    );
    assert_eq!(answered + quiet, FLOOD);
    assert_eq!(answered, answers.len() as u64);
    // The program's seconds are those of its clock: one may have begun before and one after.
    let limit = ANSWERS_A_SECOND * (seconds + 2);
    assert!(
        (ANSWERS_A_SECOND..=limit).contains(&answered),
        "{answered} of {FLOOD}"
    );
    ensure!(quiet > 0 || limit >= FLOOD, "{answered} answered in {seconds} s");
    for answer in &answers {
        check_unreachable(router, answer)?;
    }
    Ok(())
}
