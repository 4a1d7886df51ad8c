//! Neighbour discovery beside a director that forwards, and real servers that keep quiet about the VIP.

use anyhow::Result;
use lvs_xdp::dataplane::mac_text;
use lvs_xdp_tests::{agent::XdpMode, ask::wait_for, family::Family, lab::Lab, netns::Netns};

use crate::{VIP, in_both_modes, lab};

in_both_modes!(only_the_director_answers_for_the_vip);

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
    Ok(mac_text(mac))
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
