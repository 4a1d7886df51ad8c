//! A director that has no VIP, and answers for it all the same: ARP, neighbour discovery, echo requests.

mod wire;

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::{api::types::VipState, dataplane::mac_text};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{packets, status, wait_for},
    dissect::dissect,
    family::Family,
    in_both_modes, in_both_modes_and_families,
    lab::{Lab, LabConfig},
    packet::{Capture, Frame, capture_for},
};

/// A lab whose director has no VIP, and whose agent has these arguments. It has no service.
fn lab(mode: XdpMode, family: Family, arguments: &[&str]) -> Result<Lab> {
    let mut lab = Lab::hosts(LabConfig {
        agent: AgentConfig {
            xdp_mode: mode,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    lab.prepare_real_servers()?;
    for family in Family::ALL {
        let (vip, length) = (family.vip(), family.host_prefix_len());
        lab.director()
            .ip(&format!("address del {vip}/{length} dev eth0"))?;
    }
    lab.start_agent()?;
    Ok(lab.over(family))
}

/// Who answers for the VIP.
fn state(lab: &Lab) -> Result<VipState> {
    let vips = status(lab)?.vips;
    let vip = vips.iter().find(|vip| vip.address == lab.vip());
    Ok(vip.context("the status does not name the VIP")?.state)
}

fn wait_until(lab: &Lab, wanted: VipState) -> Result<()> {
    wait_for(&format!("a VIP that is {wanted:?}"), || Ok(state(lab)? == wanted)).map(drop)
}

/// Whether an address answers one echo request of the router's, which has forgotten all neighbours.
fn answers(lab: &Lab, address: IpAddr) -> Result<bool> {
    lab.router().ip("neighbour flush all")?;
    let mut ping = lab.router().command("ping");
    ping.args(["-c", "1", "-W", "1", &address.to_string()]);
    Ok(lvs_xdp_tests::process::output(ping, Duration::from_secs(10))?
        .status
        .success())
}

/// What a frame says about an address: who has it, or where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Question,
    Answer,
    Announcement,
}

/// What ARP or neighbour discovery says about an address.
fn said(frame: &[u8], about: IpAddr) -> Option<Said> {
    match about {
        IpAddr::V4(address) => {
            let packet = frame.strip_prefix(&frame[..12])?.strip_prefix(&[8, 6])?;
            let address = address.octets();
            match (
                packet.get(7)?,
                packet.get(14..18)? == address,
                packet.get(24..28)? == address,
            ) {
                (1, true, true) => Some(Said::Announcement),
                (1, false, true) => Some(Said::Question),
                (2, true, false) => Some(Said::Answer),
                _ => None,
            }
        }
        IpAddr::V6(address) => {
            let packet = frame.strip_prefix(&frame[..12])?.strip_prefix(&[0x86, 0xdd])?;
            if *packet.get(6)? != 58 || packet.get(48..64)? != address.octets() {
                return None;
            }
            match (packet[40], packet[44] & 0x40 != 0) {
                (135, _) => Some(Said::Question),
                (136, true) => Some(Said::Answer),
                (136, false) => Some(Said::Announcement),
                _ => None,
            }
        }
    }
}

fn count(frames: &[Frame], about: IpAddr, what: Said) -> usize {
    let found = frames
        .iter()
        .filter(|frame| said(&frame.bytes, about) == Some(what));
    found.count()
}

/// Waits until the router has heard the director announce the VIP, from what `change` does on.
fn announced(lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let director = lab.topology().mac("director", "eth0")?;
    let capture = Capture::start(lab.router(), "eth1")?;
    change()?;
    let started = Instant::now();
    // At once, and again after a second.
    thread::sleep(Duration::from_millis(2500).saturating_sub(started.elapsed()));
    let frames = capture.finish()?;
    let heard = count(&frames, lab.vip(), Said::Announcement);
    ensure!((2..=5).contains(&heard), "{heard} announcements in {frames:?}");
    for frame in &frames {
        if said(&frame.bytes, lab.vip()) == Some(Said::Announcement) {
            assert_eq!(frame.bytes[6..12], director);
            assert_eq!(frame.bytes[0] & 1, 1, "to everybody");
        }
    }
    Ok(())
}

/// A service, two servers, and a client that knows nothing: as if the director had the VIP.
fn a_vip_that_no_interface_has_is_served(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, family, &["--announce"])?;
    let vip = lab.vip();
    assert!(!answers(&lab, vip)?, "there is no service yet");
    announced(&lab, || lab.add_service("rr"))?;
    assert_eq!(state(&lab)?, VipState::Announced);
    let shown = lab.cli(["status"])?;
    assert!(
        shown.contains(&format!("\nVirtual addresses\n  {vip}: announced\n")),
        "{shown}"
    );

    lab.router().ip("neighbour flush all")?;
    let capture = Capture::start(lab.router(), "eth1")?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let before = packets(&lab, "echo")?;
    lab.client().run(
        "ping",
        ["-c", "3", "-i", "0.2", "-W", "2", "-s", "1000", &vip.to_string()],
    )?;
    let frames = capture.finish()?;
    let director = lab.topology().mac("director", "eth0")?;
    let neighbours = lab.router().ip(&format!("neighbour show {vip}"))?;
    let mac = mac_text(director);
    assert!(neighbours.contains(&mac), "{neighbours}");
    assert_eq!(packets(&lab, "echo")? - before, 3);
    let reason = if family == Family::V4 {
        "arp-answered"
    } else {
        "neighbour-answered"
    };
    assert!(packets(&lab, reason)? > 0);

    // Whatever the director has said itself, somebody else finds right.
    let own = frames.iter().filter(|frame| frame.bytes[6..12] == director);
    let own: Vec<_> = own.map(|frame| frame.bytes.clone()).collect();
    ensure!(own.len() >= 4, "an answer and three echo replies: {own:?}");
    for found in dissect(&own)? {
        assert!(found.complaints.is_empty(), "{found:?}");
    }
    Ok(())
}

/// Nobody answers twice: neither for what the program answers for, nor for what the host does.
fn every_question_has_one_answer(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, family, &["--announce"])?;
    lab.add_service("rr")?;
    wait_until(&lab, VipState::Announced)?;
    for address in [lab.vip(), family.director()] {
        let capture = Capture::start(lab.router(), "eth1")?;
        assert!(answers(&lab, address)?);
        thread::sleep(Duration::from_millis(200));
        let frames = capture.finish()?;
        let from_router: Vec<_> = frames.iter().filter(|frame| frame.outgoing).cloned().collect();
        let questions = count(&from_router, address, Said::Question);
        assert!(questions > 0, "{frames:?}");
        assert_eq!(count(&frames, address, Said::Answer), questions, "{address}");
    }
    Ok(())
}

fn a_vip_without_a_usable_server_is_withdrawn_until_there_is_one(
    mode: XdpMode,
    family: Family,
) -> Result<()> {
    let lab = lab(mode, family, &["--announce", "--withdraw"])?;
    let vip = lab.vip();
    let commands = lab.service_commands("rr");
    lab.ipvsadm(commands[0].split_whitespace())?;
    assert_eq!(state(&lab)?, VipState::Withdrawn);
    assert!(!answers(&lab, vip)?);
    announced(&lab, || lab.ipvsadm(commands[1].split_whitespace()).map(drop))?;
    assert_eq!(lab.fetch("/")?, "rs1\n");

    let weight = |weight: &str| {
        let edit = commands[1].replacen("-a", "-e", 1);
        lab.ipvsadm(edit.split_whitespace().chain(["-w", weight]))
            .map(drop)
    };
    weight("0")?;
    wait_until(&lab, VipState::Withdrawn)?;
    assert!(!answers(&lab, vip)?);
    let refused = lab.cli_output(["announce", &vip.to_string()])?;
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr)?;
    assert_eq!(
        why,
        format!("lvs-xdp: {vip} is withdrawn: none of its real servers is usable\n")
    );
    announced(&lab, || weight("1"))?;
    assert!(answers(&lab, vip)?);
    // A server that goes down takes it away as well.
    lab.topology().set_plugged("rs1", "eth0", false)?;
    wait_until(&lab, VipState::Withdrawn)
}

fn announcements_can_be_asked_for(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, Family::V4, &["--announce"])?;
    lab.add_service("rr")?;
    // Until it says nothing of itself any more.
    wait_for("silence", || {
        let frames = capture_for(lab.router(), "eth1", Duration::from_millis(1500))?;
        Ok(count(&frames, lab.vip(), Said::Announcement) == 0)
    })?;
    announced(&lab, || {
        assert_eq!(lab.cli(["announce"])?, "192.168.2.100 is announced\n");
        Ok(())
    })?;
    let refused = lab.cli_output(["announce", "192.168.2.100", "192.168.2.1"])?;
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(refused.stderr)?,
        "lvs-xdp: 192.168.2.1 is no virtual address: no service has it\n"
    );
    Ok(())
}

/// Without the option nothing is answered but what the host has; that may be announced, and nothing else.
fn without_the_option_the_host_alone_answers(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, Family::V4, &[])?;
    lab.add_service("rr")?;
    assert_eq!(state(&lab)?, VipState::Silent);
    assert!(!answers(&lab, lab.vip())?);
    for arguments in [&["announce"][..], &["announce", "192.168.2.100"]] {
        let refused = lab.cli_output(arguments)?;
        assert_eq!(refused.status.code(), Some(1));
        let why = String::from_utf8(refused.stderr)?;
        assert!(
            why.ends_with("start the agent with --announce, or give the address to an interface\n"),
            "{why}"
        );
    }
    lab.director().ip("address add 192.168.2.100/32 dev eth0")?;
    wait_until(&lab, VipState::Host)?;
    announced(&lab, || lab.cli(["announce", "192.168.2.100"]).map(drop))?;
    assert!(answers(&lab, lab.vip())?);
    assert_eq!(packets(&lab, "arp-answered")?, 0);
    Ok(())
}

/// The program answers without an agent, and an agent that is not to announce has it stop.
fn what_is_announced_outlives_the_agent_and_not_the_option(mode: XdpMode) -> Result<()> {
    let mut lab = lab(mode, Family::V4, &["--announce"])?;
    let vip = lab.vip();
    lab.add_service("rr")?;
    wait_until(&lab, VipState::Announced)?;
    lab.agent_mut()?.kill()?;
    assert!(answers(&lab, vip)?);

    let mut config = lab.config().agent.clone();
    lab.agent_mut()?.launch(&config)?;
    announced(&lab, || Ok(()))?;
    lab.agent_mut()?.kill()?;
    config.arguments.clear();
    lab.agent_mut()?.launch(&config)?;
    assert_eq!(state(&lab)?, VipState::Silent);
    assert!(!answers(&lab, vip)?);

    lab.agent_mut()?.kill()?;
    config.arguments.push("--announce".into());
    lab.agent_mut()?.launch(&config)?;
    wait_until(&lab, VipState::Announced)?;
    // Where the host gets the address it is the host's, and back.
    lab.director().ip("address add 192.168.2.100/32 dev eth0")?;
    wait_until(&lab, VipState::Host)?;
    lab.director().ip("address del 192.168.2.100/32 dev eth0")?;
    wait_until(&lab, VipState::Announced)?;
    lab.ipvsadm(["-C"])?;
    assert!(status(&lab)?.vips.is_empty());
    assert!(!answers(&lab, vip)?);
    Ok(())
}

in_both_modes_and_families!(
    a_vip_that_no_interface_has_is_served,
    every_question_has_one_answer,
    a_vip_without_a_usable_server_is_withdrawn_until_there_is_one,
);
in_both_modes!(
    announcements_can_be_asked_for,
    without_the_option_the_host_alone_answers,
    what_is_announced_outlives_the_agent_and_not_the_option,
);
