//! Neighbour discovery beside a director that forwards, and real servers that keep quiet about the VIP.

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{packets, wait_for},
    family::Family,
    lab::Lab,
    netns::Netns,
};

use crate::{VIP, in_both_modes, lab};

in_both_modes!(
    only_the_director_answers_for_the_vip,
    traffic_that_is_for_no_service_goes_its_way,
);

/// The MAC address of a neighbour that is asked for anew.
fn ask_for(netns: &Netns, interface: &str, address: impl std::fmt::Display) -> Result<Option<String>> {
    // What is known must not be the answer; there may be nothing.
    let _: Result<String> = netns.ip(&format!("neighbour del {address} dev {interface}"));
    netns.ip(&format!(
        "neighbour replace {address} dev {interface} nud none use"
    ))?;
    let mut found = None;
    wait_for("an answer, or none", || {
        let entry = netns.ip(&format!("neighbour show {address} dev {interface}"))?;
        let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
        found = words.nth(1).map(str::to_owned);
        Ok(found.is_some() || entry.contains("FAILED"))
    })?;
    Ok(found)
}

fn mac(lab: &Lab, host: &str) -> Result<String> {
    let mac = lab.topology().mac(host, "eth0")?;
    Ok(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

fn only_the_director_answers_for_the_vip(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr"])?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    let router = lab.router();
    let director = Some(mac(&lab, "director")?);
    for address in [VIP.into(), Family::V6.director()] {
        assert_eq!(ask_for(router, "eth1", address)?, director, "{address}");
    }
    assert_eq!(
        ask_for(router, "eth1", Family::V6.real_server(1))?,
        Some(mac(&lab, "rs1")?)
    );
    assert_eq!(lab.fetch("/")?, "rs1\n");

    // Without the director nobody answers: the real servers have the VIP, and do not say so.
    lab.topology().set_plugged("director", "eth0", false)?;
    assert_eq!(ask_for(router, "eth1", VIP)?, None);
    lab.topology().set_plugged("director", "eth0", true)?;
    // The kernel may still remember that it has asked in vain.
    wait_for("the director to be back", || {
        Ok(ask_for(router, "eth1", VIP)? == director)
    })?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    Ok(())
}

fn traffic_that_is_for_no_service_goes_its_way(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr"])?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    // Groups: all nodes, which the director and both real servers answer, and the router itself.
    let pinged = lab
        .router()
        .run("ping", ["-6", "-c", "1", "-W", "2", "ff02::1%eth1"]);
    assert!(pinged?.contains("1 received"));
    // The director out into the world, by its own address although it has the VIP.
    let client = Family::V6.client().to_string();
    lab.director().run("ping", ["-c", "1", "-W", "2", &client])?;
    let route = lab
        .director()
        .ip(&format!("route get {}", Family::V6.real_server(1)))?;
    let source = route.split_once(" src ").context("no source")?.1;
    assert!(
        source.starts_with(&format!("{} ", Family::V6.director())),
        "{route}"
    );
    // An address that is added is asked for first; nobody objects.
    lab.director().sysctl("net.ipv6.conf.eth0.accept_dad", "1")?;
    lab.director().ip("address add fd00:2::123/64 dev eth0")?;
    wait_for("duplicate address detection", || {
        let shown = lab.director().ip("-6 address show dev eth0")?;
        assert!(!shown.contains("dadfailed"), "{shown}");
        Ok(shown.contains("fd00:2::123") && !shown.contains("tentative"))
    })?;
    assert_eq!(packets(&lab, "malformed")?, 0);
    Ok(())
}
