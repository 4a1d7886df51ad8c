//! Frames of 9,000 bytes, which lie in more than one buffer.

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::packets,
    datagram::{Echo, ask, connected},
    family::Family,
    lab::{Lab, VIP},
    netns::Netns,
    packet::Capture,
    topology::port_name,
    web::WebServer,
};

use crate::{download, hosts, in_both_modes, in_both_modes_and_families, upload};

in_both_modes_and_families!(frames_larger_than_a_page_arrive_unharmed);
in_both_modes!(they_are_redirected_to_another_card);

const MTU: u32 = 9000;
/// The largest that a frame of one buffer can be: a page.
const PAGE: usize = 4096;

fn set_mtu(netns: &Netns, interface: &str) -> Result<()> {
    netns.ip(&format!("link set {interface} mtu {MTU}"))?;
    Ok(())
}

/// Lets all cables and switches carry jumbo frames.
fn widen(lab: &Lab, cables: &[(&str, &str)], switches: &[&str]) -> Result<()> {
    let topology = lab.topology();
    for (host, interface) in cables {
        set_mtu(topology.host(host), interface)?;
        set_mtu(topology.switches(), &port_name(host, interface))?;
    }
    for switch in switches {
        set_mtu(topology.switches(), switch)?;
    }
    Ok(())
}

const CABLES: [(&str, &str); 5] = [
    ("client", "eth0"),
    ("router", "eth0"),
    ("router", "eth1"),
    ("director", "eth0"),
    ("rs1", "eth0"),
];

fn frames_larger_than_a_page_arrive_unharmed(mode: XdpMode, family: Family) -> Result<()> {
    let mut lab = hosts(mode, 1)?.over(family);
    widen(&lab, &CABLES, &["outside", "inside"])?;
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    lab.add_service("rr")?;
    let capture = Capture::start(lab.real_servers()[0].netns(), "eth0")?;
    upload(&lab, &lab.real_servers()[0])?;
    let frames = capture.finish()?;
    let large = frames
        .iter()
        .filter(|frame| !frame.outgoing && frame.bytes.len() > PAGE);
    assert!(large.count() > 1000, "of {} frames", frames.len());
    assert!(download(&lab, 25)?);

    let (service, server) = match family {
        Family::V4 => (format!("{VIP}:7"), "192.168.2.220:7"),
        Family::V6 => ("[fd00:2::100]:7".to_owned(), "[fd00:2::220]:7"),
    };
    lab.cli(["service", "add", "udp", &service, "--scheduler", "rr"])?;
    lab.cli(["server", "add", "udp", &service, server])?;
    let _echo = Echo::at(lab.real_servers()[0].netns(), "rs1", lab.vip(), 7)?;
    let socket = connected(&lab, 7)?;
    for length in [1, PAGE - 42, PAGE, 8000] {
        let text: Vec<u8> = (0..=255).cycle().take(length).collect();
        assert!(
            ask(&socket, &text)? == [b"rs1", &text[..]].concat(),
            "{length} bytes differ"
        );
    }
    assert_eq!(packets(&lab, "fragment")?, 0, "each was one frame");
    Ok(())
}

fn they_are_redirected_to_another_card(mode: XdpMode) -> Result<()> {
    let mut lab = hosts(mode, 1)?;
    let topology = lab.topology_mut();
    topology.add_switch("beside")?;
    topology.connect("router", "eth2", "beside", &["192.168.3.1/24"])?;
    topology.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
    topology.add_host("far")?;
    topology.connect("far", "eth0", "beside", &["192.168.3.220/24"])?;
    topology.host("far").ip("route add default via 192.168.3.1")?;
    widen(&lab, &CABLES, &["outside", "inside"])?;
    widen(
        &lab,
        &[("router", "eth2"), ("director", "eth1"), ("far", "eth0")],
        &["beside"],
    )?;
    let far = WebServer::start(lab.topology().host("far"), "far", &lab.big_file())?;
    lab.start_agent_on(&["eth0", "eth1"])?;
    let vip = VIP.to_string();
    far.netns()
        .run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])?;
    let service = format!("{VIP}:80");
    lab.ipvsadm(["-A", "-t", &service])?;
    lab.ipvsadm(["-a", "-t", &service, "-r", "192.168.3.220:80"])?;
    let capture = Capture::start(far.netns(), "eth0")?;
    upload(&lab, &far)?;
    let frames = capture.finish()?;
    let large = frames
        .iter()
        .filter(|frame| !frame.outgoing && frame.bytes.len() > PAGE);
    assert!(large.count() > 1000, "of {} frames", frames.len());
    Ok(())
}
