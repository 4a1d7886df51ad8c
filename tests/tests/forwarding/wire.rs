//! What is on the wire: which bytes a frame leaves with, and which cables it passes.

use std::{
    collections::BTreeMap,
    fs,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IpHeaders, Ipv4Header, Ipv4Options, NetSlice, PacketBuilder, SingleVlanHeader, SlicedPacket, TcpHeader,
    TransportSlice, VlanId, ip_number,
};
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{CLIENT, DIRECTOR, Lab, VIP},
    load::Load,
    netns::Netns,
    packet::{Capture, inject},
    process::{Process, run},
    topology::port_name,
};
use nix::sys::signal::Signal;

use crate::{in_both_modes, lab};

in_both_modes!(only_the_macs_change, answers_do_not_pass_the_director);

/// A capture, for the packets of virtual services in it.
pub(crate) struct Tap(Capture);

impl Tap {
    pub(crate) fn start(netns: &Netns, interface: &str) -> Result<Self> {
        Ok(Self(Capture::start(netns, interface)?))
    }

    /// Ends the capture; returns the frames that left by the interface, or came in by it, with an IPv4 packet to
    /// the VIP.
    pub(crate) fn finish(self, outgoing: bool) -> Result<Vec<Vec<u8>>> {
        let frames = self.0.finish()?.into_iter();
        Ok(frames
            .filter(|frame| frame.outgoing == outgoing)
            .filter(|frame| ipv4(&frame.bytes).is_some_and(|header| header.destination == VIP.octets()))
            .map(|frame| frame.bytes)
            .collect())
    }
}

/// Turns receive offload off where the switch takes what the director sends: with XDP on a veth comes GRO,
/// and merged frames are not those that were sent. VLAN tags go as bytes, not beside the frame.
pub(crate) fn keep_frames_apart(lab: &Lab) -> Result<()> {
    let port = port_name("director", "eth0");
    lab.topology()
        .switches()
        .run("ethtool", ["-K", &port, "gro", "off", "txvlan", "off"])?;
    Ok(())
}

/// The length of an IPv4 packet by its header, which is what IPVS counts.
pub(crate) fn ip_length(frame: &[u8]) -> Result<u64> {
    Ok(u64::from(ipv4(frame).context("no IPv4")?.total_len))
}

/// The IPv4 header of a frame.
fn ipv4(frame: &[u8]) -> Option<Ipv4Header> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ipv4) => Some(ipv4.header().to_header()),
        NetSlice::Ipv6(_) | NetSlice::Arp(_) => None,
    }
}

/// The source port of a frame that is whole: all its checksums are right.
fn checked_source_port(frame: &[u8]) -> Result<u16> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let header = ipv4(frame).context("no IPv4")?;
    ensure!(
        header.header_checksum == header.calc_header_checksum(),
        "IPv4's checksum is wrong"
    );
    let (port, found, right) = match packet.transport.context("no transport")? {
        TransportSlice::Tcp(tcp) => (
            tcp.source_port(),
            tcp.checksum(),
            tcp.calc_checksum_ipv4(header.source, header.destination)?,
        ),
        TransportSlice::Udp(udp) => (
            udp.source_port(),
            udp.checksum(),
            udp.to_header()
                .calc_checksum_ipv4_raw(header.source, header.destination, udp.payload())?,
        ),
        TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
            bail!("neither TCP nor UDP")
        }
    };
    ensure!(
        found == right,
        "the transport's checksum is {found:04x}, not {right:04x}"
    );
    Ok(port)
}

fn only_the_macs_change(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2)?;
    lab.add_service("rr")?;
    for command in [
        format!("-A -u {VIP}:7 -s rr"),
        format!("-a -u {VIP}:7 -r 192.168.2.210 -g"),
    ] {
        lab.ipvsadm(command.split_whitespace())?;
    }
    keep_frames_apart(&lab)?;
    let director = lab.topology().mac("director", "eth0")?;
    let router = lab.topology().mac("router", "eth1")?;
    let switch = Tap::start(lab.topology().switches(), &port_name("director", "eth0"))?;
    let servers = ["rs1", "rs2"].map(|name| -> Result<_> {
        let tap = Tap::start(lab.topology().host(name), "eth0")?;
        Ok((lab.topology().mac(name, "eth0")?, tap))
    });

    // Handshakes, requests and FINs; full-sized segments; datagrams of any length; IP options; a VLAN tag.
    let report = Load::sequential(VIP, 4).run(lab.client())?;
    assert_eq!(report.failures(), []);
    upload(&lab, 300_000)?;
    let socket = lab.client().enter(|| UdpSocket::bind((CLIENT, 7777)))??;
    for length in [0, 1, 777, 1472] {
        socket.send_to(&vec![0x5a; length], (VIP, 7))?;
    }
    inject(lab.router(), "eth1", &syn_with_options(router, director)?)?;
    inject(lab.router(), "eth1", &tagged_syn(router, director)?)?;
    thread::sleep(Duration::from_millis(300));

    let mut before: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in switch.finish(true)? {
        assert_eq!((&frame[..6], &frame[6..12]), (&director[..], &router[..]));
        let port = checked_source_port(&frame)?;
        before.entry(port).or_default().push(frame[12..].to_vec());
    }
    let mut after: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for server in servers {
        let (mac, tap) = server?;
        // Not what the switch floods before it has learnt where the director is.
        for frame in tap
            .finish(false)?
            .into_iter()
            .filter(|frame| frame[..6] != director)
        {
            assert_eq!((&frame[..6], &frame[6..12]), (&mac[..], &director[..]));
            let port = checked_source_port(&frame)?;
            after.entry(port).or_default().push(frame[12..].to_vec());
        }
    }
    assert!(
        before == after,
        "frames differ from the 13th byte on:\n{before:02x?}\n{after:02x?}"
    );

    // All of it was there: 4 requests, the upload, and the three ports of datagrams and injected frames.
    assert_eq!(after.len(), 8);
    assert_eq!(after[&7777].len(), 4);
    let full_sized = after.values().flatten().filter(|rest| rest.len() == 1502).count();
    assert!(full_sized >= 100, "{full_sized} full-sized frames");
    assert!(after[&OPTIONS_PORT].iter().any(|rest| rest[2] == 0x46));
    assert!(
        after[&TAGGED_PORT]
            .iter()
            .all(|rest| rest[..4] == [0x81, 0, 0, 7])
    );
    Ok(())
}

const OPTIONS_PORT: u16 = 7001;
const TAGGED_PORT: u16 = 7002;

fn header_to_vip(options: Ipv4Options, payload: u16) -> Result<Ipv4Header> {
    let mut header = Ipv4Header::new(payload, 64, ip_number::TCP, CLIENT.octets(), VIP.octets())?;
    header.options = options;
    Ok(header)
}

fn syn(port: u16) -> TcpHeader {
    TcpHeader {
        syn: true,
        ..TcpHeader::new(port, 80, 1, 65535)
    }
}

/// From the client, by way of the router, with two IP options: no operation, and the list's end.
fn syn_with_options(source: [u8; 6], destination: [u8; 6]) -> Result<Vec<u8>> {
    let header = header_to_vip(Ipv4Options::from([1, 1, 1, 0]), 0)?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(source, destination)
        .ip(IpHeaders::Ipv4(header, Default::default()))
        .tcp_header(syn(OPTIONS_PORT))
        .write(&mut frame, &[])?;
    Ok(frame)
}

/// From the client, by way of the router, in VLAN 7.
fn tagged_syn(source: [u8; 6], destination: [u8; 6]) -> Result<Vec<u8>> {
    let header = header_to_vip(Ipv4Options::default(), 0)?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(source, destination)
        .vlan(etherparse::VlanHeader::Single(SingleVlanHeader {
            vlan_id: VlanId::try_new(7)?,
            ..SingleVlanHeader::default()
        }))
        .ip(IpHeaders::Ipv4(header, Default::default()))
        .tcp_header(syn(TAGGED_PORT))
        .write(&mut frame, &[])?;
    Ok(frame)
}

/// Puts so many bytes of the lab's file through the VIP.
fn upload(lab: &Lab, length: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let part = directory.path().join("part");
    let big = fs::read(lab.big_file())?;
    fs::write(&part, &big[..length])?;
    let mut upload = lab.curl();
    upload.arg("--upload-file").arg(&part);
    upload.arg(format!("http://{VIP}/upload/part"));
    run(upload)?;
    Ok(())
}

fn answers_do_not_pass_the_director(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2)?;
    lab.add_service("rr")?;
    let director = Capture::start(lab.topology().switches(), &port_name("director", "eth0"))?;
    let router = Capture::start(lab.router(), "eth1")?;
    let report = Load::sequential(VIP, 20).run(lab.client())?;
    assert_eq!(report.failures(), []);
    thread::sleep(Duration::from_millis(100));

    let answers = |capture: Capture| -> Result<usize> {
        let frames = capture.finish()?;
        let from_vip = frames
            .iter()
            .filter(|frame| ipv4(&frame.bytes).is_some_and(|header| header.source == VIP.octets()));
        Ok(from_vip.count())
    };
    assert_eq!(answers(director)?, 0);
    // A SYN-ACK, an answer and a FIN for each request, at least.
    let passed = answers(router)?;
    assert!(passed >= 60, "{passed} packets passed the router");
    Ok(())
}

#[test]
fn tcpdump_on_the_director_sees_nothing_of_a_forwarded_flow() -> Result<()> {
    let lab = lab(XdpMode::Native, 2)?;
    lab.add_service("rr")?;
    let directory = tempfile::tempdir()?;
    let [seen, said] = ["seen", "said"].map(|name| directory.path().join(name));
    let mut tcpdump = lab.director().command("tcpdump");
    tcpdump
        .args(["-n", "-l", "--immediate-mode", "-i", "eth0", "tcp or icmp"])
        .stdout(fs::File::create(&seen)?)
        .stderr(fs::File::create(&said)?);
    let mut tcpdump = Process::spawn(tcpdump)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(&said)?.contains("listening on") {
        ensure!(
            Instant::now() < deadline,
            "tcpdump: {}",
            fs::read_to_string(&said)?
        );
        thread::sleep(Duration::from_millis(10));
    }
    let report = Load::sequential(VIP, 20).run(lab.client())?;
    assert_eq!(report.failures(), []);
    lab.client()
        .run("ping", ["-c", "1", "-W", "2", &DIRECTOR.to_string()])?;
    thread::sleep(Duration::from_millis(100));
    tcpdump.signal(Signal::SIGINT)?;
    let status = tcpdump.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "tcpdump: {}", fs::read_to_string(&said)?);

    // The ping's request and answer, and nothing else.
    let seen = fs::read_to_string(&seen)?;
    let lines: Vec<_> = seen.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 2, "{seen}");
    assert!(lines.iter().all(|line| line.contains("ICMP echo")), "{seen}");
    Ok(())
}
