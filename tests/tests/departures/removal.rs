//! A real server is removed in the middle of what it does for clients.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{packets, server, wait_for},
    datagram::{Echo, ask, connected},
    lab::{BIG_SIZE, CLIENT, DIRECTOR, Lab, VIP, real_server_address},
    packet::{Capture, Frame},
    stream::{Download, OpenConnection},
};

use crate::{
    CURL_TIMEOUT, IPVSADM_SERVICE, add_server, ask_around, assert_reset, change_server, cli, in_both_modes,
    lab, only,
};

in_both_modes!(reset_tells_the_client_at_once);

/// How long a client may take to hear of it.
const SOON: Duration = Duration::from_secs(3);
/// Slow enough to last until something is done about it. curl reads in bursts, and looks away between them:
/// at less a second for longer.
const SLOWLY: [&str; 4] = ["--limit-rate", "3M", "--max-time", "60"];

/// A download from rs2 in its middle.
fn under_way(lab: &Lab, arguments: &[&str]) -> Result<Download> {
    let mut download = Download::start(lab, arguments)?;
    wait_for("a download that is under way", || {
        Ok(download.received() > 200_000)
    })?;
    assert!(download.is_running()?);
    Ok(download)
}

#[test]
fn drop_leaves_the_client_hanging() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--removal", "drop"])?;
    let started = Instant::now();
    let download = under_way(&lab, &["--limit-rate", "3M", "--max-time", "5"])?;
    change_server(&lab, "delete", 2, &[])?;
    assert_eq!(ask_around(&lab, 5)?, only("rs1", 5));
    let received = download.received();
    let ended = download.finish(PATIENCE * 2)?;
    assert_eq!(ended.status, Some(CURL_TIMEOUT), "{}", ended.message);
    assert!(started.elapsed() >= PATIENCE, "{:?}", started.elapsed());
    // What was on its way came, and no more.
    let length = ended.body.len() as u64;
    assert!(length < received + 1_000_000, "{received} {length}");
    assert!(packets(&lab, "destination-removed")? > 0);
    assert_eq!(packets(&lab, "reset")?, 0);
    Ok(())
}

#[test]
fn a_transfer_goes_on_when_its_server_is_added_again() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    let mut download = under_way(&lab, &["--limit-rate", "12M", "--max-time", "60"])?;
    let before = server(&lab, 2)?;
    assert_eq!((before.active, before.inactive), (1, 0));
    change_server(&lab, "delete", 2, &[])?;
    wait_for("packets that are dropped", || {
        Ok(packets(&lab, "destination-removed")? > 2)
    })?;
    assert!(download.is_running()?);
    let held_up = download.received();
    assert!(held_up < BIG_SIZE);
    add_server(&lab, 2, &[])?;
    let after = server(&lab, 2)?;
    assert_eq!((after.active, after.inactive), (1, 0));
    assert!(
        after.stats.connections >= before.stats.connections,
        "{after:?} {before:?}"
    );
    assert!(
        after.stats.packets >= before.stats.packets,
        "{after:?} {before:?}"
    );
    let ended = download.finish(Duration::from_secs(40))?;
    assert_eq!(ended.status, Some(0), "{}", ended.message);
    assert!(ended.body == fs::read(lab.big_file())?, "the download differs");
    Ok(())
}

/// The TCP resets among frames that came in from the director.
fn resets(lab: &Lab, frames: Vec<Frame>) -> Result<Vec<Frame>> {
    let director = lab.topology().mac("director", "eth0")?;
    Ok(frames
        .into_iter()
        .filter(|frame| !frame.outgoing && frame.bytes[6..12] == director)
        .filter(
            |frame| match SlicedPacket::from_ethernet(&frame.bytes).map(|packet| packet.transport) {
                Ok(Some(TransportSlice::Tcp(tcp))) => tcp.rst(),
                _ => false,
            },
        )
        .collect())
}

/// Looks at every bit of a reset: it is one that the client's stack, and whoever is between, believes.
fn check_reset(lab: &Lab, frame: &Frame, client_port: u16) -> Result<()> {
    assert_eq!(frame.bytes[0..6], lab.topology().mac("router", "eth1")?);
    let packet = SlicedPacket::from_ethernet(&frame.bytes)?;
    let Some(NetSlice::Ipv4(ip)) = packet.net else {
        bail!("no IPv4");
    };
    let header = ip.header();
    assert_eq!(header.source_addr(), VIP);
    assert_eq!(header.destination_addr(), CLIENT);
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum()
    );
    assert_eq!((header.total_len(), header.ttl()), (40, 64));
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        bail!("no TCP");
    };
    assert_eq!((tcp.source_port(), tcp.destination_port()), (80, client_port));
    // What has acknowledged something is answered with what it acknowledged, and with nothing else set.
    assert!(tcp.rst() && !tcp.ack() && !tcp.syn() && !tcp.fin());
    assert_eq!((tcp.acknowledgment_number(), tcp.window_size()), (0, 0));
    assert_ne!(tcp.sequence_number(), 0);
    let right = tcp.calc_checksum_ipv4(header.source(), header.destination())?;
    assert_eq!(tcp.checksum(), right);
    assert_eq!(tcp.payload(), b"");
    Ok(())
}

fn destination_port(frame: &Frame) -> Option<u16> {
    match SlicedPacket::from_ethernet(&frame.bytes).ok()?.transport? {
        TransportSlice::Tcp(tcp) => Some(tcp.destination_port()),
        _ => None,
    }
}

fn reset_tells_the_client_at_once(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    change_server(&lab, "edit", 1, &["--weight", "0"])?;
    let mut open = OpenConnection::new(&lab)?;
    let client = open.client()?;
    let slow = under_way(&lab, &SLOWLY)?;
    // One that tries again by itself, a tenth of the file.
    let again = ["--retry", "2", "--retry-all-errors", "--retry-delay", "1"];
    let tenth = ["--limit-rate", "2M", "--max-time", "60", "--range", "0-4999999"];
    let retried = under_way(&lab, &[tenth.as_slice(), again.as_slice()].concat())?;
    assert_eq!(server(&lab, 2)?.active, 3);
    change_server(&lab, "edit", 1, &["--weight", "1"])?;

    let capture = Capture::start(lab.router(), "eth1")?;
    change_server(&lab, "delete", 2, &[])?;
    assert_reset(&slow.finish(SOON)?, SOON);
    assert_eq!(ask_around(&lab, 3)?, only("rs1", 3));
    // Nobody has told the one that is silent, until it says something.
    let said = Instant::now();
    let refused = open.ask().err().context("the connection should have ended")?;
    assert!(format!("{refused:#}").contains("reset"), "{refused:#}");
    assert!(said.elapsed() < SOON, "{:?}", said.elapsed());
    let ended = retried.finish(Duration::from_secs(20))?;
    assert_eq!(ended.status, Some(0), "{}", ended.message);
    assert!(
        ended.body == fs::read(lab.big_file())?[..5_000_000],
        "the download differs"
    );

    let resets = resets(&lab, capture.finish()?)?;
    assert_eq!(packets(&lab, "reset")?, resets.len() as u64);
    let mine: Vec<_> = (resets.iter())
        .filter(|frame| destination_port(frame) == Some(client.port()))
        .collect();
    assert_eq!((mine.len(), resets.len() >= 3), (1, true), "{}", resets.len());
    check_reset(&lab, mine[0], client.port())
}

#[test]
fn reset_needs_no_virtual_address_on_the_director() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    // The router sends what is for the virtual address to the director, which is not asked for it.
    lab.director().ip(&format!("address del {VIP}/32 dev eth0"))?;
    lab.router()
        .ip(&format!("route add {VIP}/32 via {DIRECTOR} dev eth1"))?;
    lab.router().ip("neighbour flush dev eth1")?;
    let slow = under_way(&lab, &SLOWLY)?;
    change_server(&lab, "delete", 2, &[])?;
    assert_reset(&slow.finish(SOON)?, SOON);
    assert_eq!(ask_around(&lab, 3)?, only("rs1", 3));
    // What nobody knows is dropped here: there is no host to answer it.
    assert!(packets(&lab, "reset")? > 0);
    assert_eq!(packets(&lab, "no-connection-passed")?, 0);
    Ok(())
}

#[test]
fn reset_tells_the_clients_of_a_deleted_service() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    let slow = under_way(&lab, &SLOWLY)?;
    cli(&lab, &["service", "delete"], &[])?;
    assert_reset(&slow.finish(SOON)?, SOON);
    assert!(packets(&lab, "reset")? > 0);
    // The host, which holds the address, answers new ones.
    assert!(format!("{:#}", lab.fetch("/").err().context("nobody is there")?).contains("curl: (7)"));
    Ok(())
}

/// A UDP service beside the one of the reference case, and its servers.
fn echoes(lab: &Lab, options: &[&str]) -> Result<[Echo; 2]> {
    let service = ["udp", "192.168.2.100:7"];
    lab.cli([&["service", "add"], &service[..], &["--scheduler", "rr"], options].concat())?;
    for number in [1, 2] {
        let address = real_server_address(number).to_string();
        lab.cli([&["server", "add"], &service[..], &[address.as_str()]].concat())?;
    }
    let [first, second] = ["rs1", "rs2"].map(|name| Echo::start(lab.topology().host(name), name, 7));
    Ok([first?, second?])
}

/// Removes rs2 from both services under a TCP and a UDP client: the one is told by the host that holds the
/// virtual address, the other's next datagram goes to rs1.
fn rescheduled(lab: &Lab, options: &[&str]) -> Result<()> {
    let _echoes = echoes(lab, options)?;
    let slow = under_way(lab, &SLOWLY)?;
    let datagrams = connected(lab, 7)?;
    assert_eq!(ask(&datagrams, b"")?, b"rs2");
    assert_eq!(ask(&datagrams, b"")?, b"rs2");
    let capture = Capture::start(lab.router(), "eth1")?;
    lab.ipvsadm(["-d", "-u", "192.168.2.100:7", "-r", "192.168.2.210"])?;
    change_server(lab, "delete", 2, &[])?;
    let asked = Instant::now();
    assert_eq!(ask(&datagrams, b"")?, b"rs1");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_reset(&slow.finish(SOON)?, SOON);
    assert_eq!(ask_around(lab, 3)?, only("rs1", 3));
    assert_eq!(packets(lab, "reset")?, 0);
    assert_eq!(packets(lab, "destination-removed")?, 0);
    let resets = resets(lab, capture.finish()?)?;
    assert!(!resets.is_empty());
    assert!(packets(lab, "no-connection-passed")? >= resets.len() as u64);
    Ok(())
}

#[test]
fn reschedule_gives_clients_another_server() -> Result<()> {
    let options = ["--removal", "reschedule"];
    let lab = lab(
        XdpMode::Native,
        2,
        &["--scheduler", "rr", "--removal", "reschedule"],
    )?;
    rescheduled(&lab, &options)
}

#[test]
fn expire_nodest_conn_reschedules() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    lab.cli(["settings", "expire_nodest_conn", "1"])?;
    rescheduled(&lab, &[])
}

#[test]
fn a_services_own_expire_nodest_conn_reschedules() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    cli(&lab, &["service", "edit"], &["--set", "expire_nodest_conn=1"])?;
    rescheduled(&lab, &["--set", "expire_nodest_conn=1"])
}

#[test]
fn ipvsadm_removes_as_the_service_says() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    // -E is a full replace, but for what ipvsadm does not know.
    lab.ipvsadm([&["-E"], &IPVSADM_SERVICE[..], &["-s", "rr"]].concat())?;
    let slow = under_way(&lab, &SLOWLY)?;
    lab.ipvsadm([&["-d"], &IPVSADM_SERVICE[..], &["-r", "192.168.2.210"]].concat())?;
    assert_reset(&slow.finish(SOON)?, SOON);
    Ok(())
}
