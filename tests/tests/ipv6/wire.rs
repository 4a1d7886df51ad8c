//! Which bytes an IPv6 frame leaves with, extension headers and full-sized segments included.

use std::{collections::BTreeMap, fs, net::UdpSocket, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use lvs_xdp_tests::{
    agent::XdpMode,
    family::Family,
    lab::Lab,
    load::Load,
    packet::{Capture, inject},
    process::run,
    topology::port_name,
};

use crate::{CLIENT, VIP, answered, in_both_modes, lab};

in_both_modes!(only_the_macs_change);

const EXTENDED_PORT: u16 = 7001;
const DATAGRAM_PORT: u16 = 7777;

/// The source port of a TCP segment or a datagram to the VIP whose checksum is right; `None` for what is neither.
fn checked_source_port(frame: &[u8]) -> Result<Option<u16>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        return Ok(None);
    };
    let (source, destination) = (ip.header().source(), ip.header().destination());
    if destination != VIP.octets() {
        return Ok(None);
    }
    let (port, found, right) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (
            tcp.source_port(),
            tcp.checksum(),
            tcp.calc_checksum_ipv6(source, destination)?,
        ),
        Some(TransportSlice::Udp(udp)) => (
            udp.source_port(),
            udp.checksum(),
            udp.to_header()
                .calc_checksum_ipv6_raw(source, destination, udp.payload())?,
        ),
        // Neighbour discovery asks the director about the VIP.
        Some(TransportSlice::Icmpv6(_)) => return Ok(None),
        other => bail!("neither TCP nor UDP but {other:?}"),
    };
    ensure!(found == right, "the checksum is {found:04x}, not {right:04x}");
    Ok(Some(port))
}

/// What follows the MAC addresses of each frame for the VIP, by its source port; all have these MAC addresses.
fn by_port(capture: Capture, outgoing: bool, macs: [[u8; 6]; 2]) -> Result<BTreeMap<u16, Vec<Vec<u8>>>> {
    let mut frames: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in capture.finish()? {
        // Not what the switch floods before it has learnt where everybody is.
        if frame.outgoing != outgoing || frame.bytes[..6] != macs[0] {
            continue;
        }
        if let Some(port) = checked_source_port(&frame.bytes)? {
            assert_eq!(frame.bytes[6..12], macs[1]);
            let rest = frame.bytes[12..].to_vec();
            frames.entry(port).or_default().push(rest);
        }
    }
    Ok(frames)
}

/// A SYN from the client, by way of the router, behind hop-by-hop options, a routing header that is used up, and
/// destination options.
fn extended_syn(macs: [[u8; 6]; 2]) -> Result<Vec<u8>> {
    const HOP_BY_HOP: u8 = 0;
    const TCP: u8 = 6;
    const ROUTING: u8 = 43;
    const DESTINATION_OPTIONS: u8 = 60;
    let syn = TcpHeader {
        syn: true,
        ..TcpHeader::new(EXTENDED_PORT, 80, 1, 65535)
    };
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(macs[1], macs[0])
        .ipv6(CLIENT.octets(), VIP.octets(), 64)
        .tcp_header(syn)
        .write(&mut plain, &[])?;
    let (head, segment) = plain.split_at(14 + 40);
    let mut frame = head.to_vec();
    // PadN of six octets; a routing header of type 0 with no segments left; PadN of twelve.
    frame.extend([ROUTING, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend([TCP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(segment);
    let length = u16::try_from(frame.len() - 14 - 40)?;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = HOP_BY_HOP;
    Ok(frame)
}

/// Puts so many bytes of the lab's file through the VIP.
fn upload(lab: &Lab, length: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let part = directory.path().join("part");
    fs::write(&part, &fs::read(lab.big_file())?[..length])?;
    let mut upload = lab.curl();
    upload
        .arg("--upload-file")
        .arg(&part)
        .arg(lab.url("/upload/part"));
    run(upload)?;
    Ok(())
}

fn only_the_macs_change(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr"])?;
    let server = Family::V6.real_server(2).to_string();
    lab.cli(["service", "add", "udp", "[fd00:2::100]:7"])?;
    lab.cli(["server", "add", "udp", "[fd00:2::100]:7", &server])?;
    // With XDP on a veth comes GRO, and merged frames are not those that were sent.
    let port = port_name("director", "eth0");
    let switches = lab.topology().switches();
    switches.run("ethtool", ["-K", &port, "gro", "off"])?;
    let director = lab.topology().mac("director", "eth0")?;
    let router = lab.topology().mac("router", "eth1")?;
    let switch = Capture::start(switches, &port)?;
    let servers = ["rs1", "rs2"].map(|name| -> Result<_> {
        let capture = Capture::start(lab.topology().host(name), "eth0")?;
        Ok((lab.topology().mac(name, "eth0")?, capture))
    });

    // Handshakes, requests and FINs; full-sized segments; datagrams of any length; extension headers.
    answered(&lab, Load::sequential(VIP, 4))?;
    upload(&lab, 300_000)?;
    let socket = lab
        .client()
        .enter(|| UdpSocket::bind((CLIENT, DATAGRAM_PORT)))??;
    for length in [0, 1, 777, 1452] {
        socket.send_to(&vec![0x5a; length], (VIP, 7))?;
    }
    inject(lab.router(), "eth1", &extended_syn([director, router])?)?;
    thread::sleep(Duration::from_millis(300));

    let before = by_port(switch, true, [director, router])?;
    let mut after: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for server in servers {
        let (mac, capture) = server?;
        after.extend(by_port(capture, false, [mac, director])?);
    }
    assert!(
        before == after,
        "frames differ from the 13th byte on:\n{before:02x?}\n{after:02x?}"
    );

    // All of it was there: 4 requests, the upload, the datagrams and the SYN.
    assert_eq!(after.len(), 7);
    assert_eq!(after[&DATAGRAM_PORT].len(), 4);
    let full_sized = after.values().flatten().filter(|rest| rest.len() == 1502).count();
    assert!(full_sized >= 100, "{full_sized} full-sized frames");
    let extended = after.get(&EXTENDED_PORT).context("the SYN was not forwarded")?;
    // The type, and the IPv6 header's first octets and its next header.
    assert_eq!((&extended[0][..3], extended[0][8]), (&[0x86, 0xdd, 0x60][..], 0));
    Ok(())
}
