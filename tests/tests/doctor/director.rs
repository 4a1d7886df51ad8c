//! What is broken on the director itself, and what cannot be told of real servers by their VIP alone.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::wait_for,
    lab::{Lab, LabConfig, VIP, real_server_address},
    netns::Netns,
    xdp_pass::XdpPass,
};
use serde_json::Value;

use crate::{Named, examined, found, text};

/// The reference case, with one more card of the director's on a segment of its own. There is room for four services.
fn lab() -> Result<Lab> {
    let arguments = ["--services", "4"].map(String::from);
    let mut lab = Lab::hosts(LabConfig {
        agent: AgentConfig {
            xdp_mode: XdpMode::Native,
            arguments: arguments.into(),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    let topology = lab.topology_mut();
    topology.add_switch("beside")?;
    topology.connect("router", "eth2", "beside", &["192.168.3.1/24"])?;
    topology.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
    lab.prepare_real_servers()?;
    lab.start_agent_on(&["eth0", "eth1"])?;
    lab.add_service("rr")?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    Ok(lab)
}

fn named(expected: &[(&str, &str)]) -> Vec<Named> {
    let owned = |(code, subject): &(&str, &str)| ((*code).to_owned(), (*subject).to_owned());
    expected.iter().map(owned).collect()
}

/// Exactly these are named, in this order, with this status. The agent notices some of it only after a while.
fn expect(lab: &Lab, expected: &[(&str, &str)], status: i32) -> Result<()> {
    let expected = (named(expected), Some(status));
    let what = format!("the doctor to find {expected:?}");
    wait_for(&what, || Ok(found(lab)? == expected))
        .map(drop)
        .with_context(|| format!("{:?}", found(lab)))
}

/// One finding of this code about this subject.
fn finding(lab: &Lab, code: &str, subject: &str) -> Result<Value> {
    let (findings, _) = examined(lab, &[])?;
    let mut found = findings.into_iter();
    found
        .find(|found| text(found, "code") == code && text(found, "subject") == subject)
        .with_context(|| format!("nothing is said of {code} of {subject}"))
}

/// Runs the command that mends what was found.
fn follow(host: &Netns, finding: &Value) -> Result<()> {
    let mend = text(finding, "mend");
    let mut words = mend.split(' ');
    host.run(words.next().context("no command")?, words).map(drop)
}

/// Adds a service for UDP on a port, with rs1.
fn add_udp(lab: &Lab, port: u16) -> Result<()> {
    let (vip, rip) = (VIP, real_server_address(1));
    lab.ipvsadm(["-A", "-u", &format!("{vip}:{port}")])?;
    lab.ipvsadm([
        "-a",
        "-u",
        &format!("{vip}:{port}"),
        "-r",
        &format!("{rip}:{port}"),
    ])
    .map(drop)
}

fn delete_udp(lab: &Lab, port: u16) -> Result<()> {
    lab.ipvsadm(["-D", "-u", &format!("{VIP}:{port}")]).map(drop)
}

#[test]
fn what_is_broken_on_the_way_to_real_servers() -> Result<()> {
    let lab = lab()?;
    expect(&lab, &[], 0)?;
    let (rs1, rs2) = (lab.real_servers()[0].netns(), lab.real_servers()[1].netns());
    // rs1 takes shorter packets than the director sends, and nobody listens at a UDP port of it. rs2 takes clients'
    // packets for martians: its route back to them is another one.
    rs1.ip("link set dev eth0 mtu 1400")?;
    add_udp(&lab, 5301)?;
    rs2.ip("link add br0 type bridge")?;
    rs2.ip("link set br0 up")?;
    rs2.ip("route add 192.168.3.0/24 dev br0")?;
    rs2.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    expect(
        &lab,
        &[
            ("mtu-of-way", "real server 192.168.2.220"),
            ("port-closed", "UDP 192.168.2.100:5301 at 192.168.2.220"),
            ("way-back", "real server 192.168.2.210"),
        ],
        2,
    )?;
    let mend = text(
        &finding(&lab, "port-closed", "UDP 192.168.2.100:5301 at 192.168.2.220")?,
        "mend",
    );
    assert!(mend.contains("ss -lun"), "{mend}");

    rs1.ip("link set dev eth0 mtu 1500")?;
    rs2.ip("route del 192.168.3.0/24 dev br0")?;
    // A server that says nothing to nothing is no worse than others, and nobody can tell whether it is there.
    let socket = rs1.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5301)))??;
    expect(&lab, &[], 0)?;
    let said = text(
        &finding(&lab, "server", "UDP 192.168.2.100:5301 at 192.168.2.220")?,
        "found",
    );
    assert!(said.ends_with("cannot be told"), "{said}");

    // Every service that there is room for; and one whose servers get nothing.
    for port in 5302..=5303 {
        add_udp(&lab, port)?;
    }
    let sockets = rs1.enter(|| {
        let bind = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        (5302..=5303).map(bind).collect::<Result<Vec<_>, _>>()
    })??;
    let (service, server) = (format!("{VIP}:5303"), format!("{}:5303", real_server_address(1)));
    lab.ipvsadm(["-e", "-u", &service, "-r", &server, "-w", "0"])?;
    expect(
        &lab,
        &[
            ("table-nearly-full", "table of services"),
            ("service-without-weight", "UDP 192.168.2.100:5303"),
        ],
        1,
    )?;
    for port in 5301..=5303 {
        delete_udp(&lab, port)?;
    }
    drop((socket, sockets));
    expect(&lab, &[], 0)
}

#[test]
fn what_is_broken_on_the_director() -> Result<()> {
    let mut lab = lab()?;
    expect(&lab, &[], 0)?;
    let director = lab.director().clone();
    let pins = lab.agent()?.pin_dir().to_owned();
    let pin_dir = pins.display().to_string();

    // A card that sends shorter packets than come in by the other, pins that
    // the next agent refuses, and a limit that is too small.
    director.ip("link set dev eth0 mtu 1400")?;
    fs::create_dir(pins.join("v1"))?;
    let pid = lab.agent()?.pid().context("the agent does not run")?.to_string();
    director.run("prlimit", ["--pid", &pid, "--nofile=200:"])?;
    expect(
        &lab,
        &[
            ("open-files", "agent"),
            ("pins-other-layout", &pin_dir),
            ("mtu-of-interface", "real server 192.168.2.210"),
            ("mtu-of-interface", "real server 192.168.2.220"),
        ],
        1,
    )?;
    // What it says is done.
    follow(
        &director,
        &finding(&lab, "mtu-of-interface", "real server 192.168.2.210")?,
    )?;
    fs::remove_dir(pins.join("v1"))?;
    director.run("prlimit", ["--pid", &pid, "--nofile=1024:"])?;
    expect(&lab, &[], 0)?;

    // As many queues as there may be.
    let queues = finding(&lab, "queues", "eth1")?;
    if text(&queues, "level") == "note" {
        follow(&director, &queues)?;
        assert_eq!(text(&finding(&lab, "queues", "eth1")?, "level"), "ok");
    }

    // Somebody removes a link's pin, and puts a program of his own there; then another card is gone.
    for link in fs::read_dir(
        fs::read_dir(&pins)?
            .next()
            .context("no pins")??
            .path()
            .join("links"),
    )? {
        fs::remove_file(link?.path())?;
    }
    expect(
        &lab,
        &[("program-detached", "eth0"), ("program-detached", "eth1")],
        2,
    )?;
    let other = XdpPass::attach(&director, "eth0")?;
    director.ip("link delete eth1")?;
    expect(&lab, &[("other-program", "eth0"), ("interface-gone", "eth1")], 2)?;
    drop(other);
    let beside = lab.topology_mut();
    beside.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
    beside.attach_xdp_pass("director", "eth1")?;
    // The agent puts it on a card that comes, and on eth0 when it is started again.
    expect(&lab, &[("program-detached", "eth0")], 2)?;
    let config = lab.config().agent.clone();
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&config)?;
    expect(&lab, &[], 0)?;

    // Nobody is there, and it goes on.
    lab.agent_mut()?.kill()?;
    let alone = ["--pin-dir", &pin_dir];
    let bad = |findings: Vec<Value>| -> Vec<_> {
        let findings = findings.into_iter();
        let bad = findings.filter(|found| !["ok", "note"].contains(&text(found, "level").as_str()));
        bad.map(|found| (text(&found, "code"), text(&found, "found")))
            .collect()
    };
    let (findings, status) = examined(&lab, &alone)?;
    let bad_alone = bad(findings);
    assert_eq!(status, Some(1), "{bad_alone:?}");
    let [(code, said)] = &bad_alone[..] else {
        panic!("{bad_alone:?}");
    };
    assert_eq!(code, "agent-not-running");
    assert!(
        said.ends_with("the program goes on forwarding on eth0, eth1"),
        "{said}"
    );
    assert!(lab.fetch("/")?.starts_with("rs"));
    lab.cli(["unload", "--pin-dir", &pin_dir])?;
    let (findings, status) = examined(&lab, &alone)?;
    let gone = bad(findings);
    assert_eq!((gone.len(), status), (1, Some(2)), "{gone:?}");
    assert!(gone[0].1.ends_with("no program is on any interface"), "{gone:?}");
    Ok(())
}

#[test]
fn a_card_without_native_mode_is_named_with_the_reason() -> Result<()> {
    let mut lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    lab.director().ip("link add br0 type bridge")?;
    lab.director().ip("link set br0 up")?;
    lab.prepare_real_servers()?;
    lab.start_agent_over(&["eth0", "br0"], &["eth0"])?;
    lab.add_service("rr")?;
    let (findings, status) = examined(&lab, &[])?;
    let modes: Vec<_> = findings
        .iter()
        .filter(|found| text(found, "code") == "mode")
        .map(|found| (text(found, "subject"), text(found, "level")))
        .collect();
    let expected =
        [("eth0", "ok"), ("br0", "warning")].map(|(name, level)| (name.to_owned(), level.to_owned()));
    assert_eq!(modes, expected);
    let said = text(&finding(&lab, "mode", "br0")?, "found");
    assert_eq!(said, "generic mode (driver bridge): the driver has no native XDP");
    // It is said once, and nothing else is.
    assert_eq!((found(&lab)?.0, status), (Vec::new(), Some(1)));
    Ok(())
}
