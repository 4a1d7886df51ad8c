//! Real servers that come and go, and more events than the agent can hear.

use std::time::Duration;

use anyhow::Result;
use lvs_xdp::api::types::ServerState;
use lvs_xdp_tests::{
    ask::{server, wait_for},
    lab::{Lab, LabConfig},
    load::Load,
};
use nix::sys::signal::Signal;

fn lab() -> Result<Lab> {
    let lab = Lab::start(LabConfig::default())?;
    lab.add_service("rr")?;
    wait_for("both real servers", || {
        Ok(server(&lab, 1)?.state == ServerState::Ready && server(&lab, 2)?.state == ServerState::Ready)
    })?;
    Ok(lab)
}

fn logged(lab: &Lab, line: &str) -> Result<usize> {
    Ok(lab.agent()?.log()?.matches(line).count())
}

#[test]
fn a_real_server_that_comes_and_goes_is_followed_and_logged_each_time_once() -> Result<()> {
    const TIMES: usize = 3;
    let lab = lab()?;
    for _ in 0..TIMES {
        for (is_there, state) in [(false, ServerState::Unreachable), (true, ServerState::Ready)] {
            lab.topology().set_plugged("rs2", "eth0", is_there)?;
            wait_for("rs2's state", || Ok(server(&lab, 2)?.state == state))?;
            let report = Load::sequential(lab.vip(), 10).run(lab.client())?;
            assert_eq!(report.failures(), []);
            let expected = if is_there { 5 } else { 0 };
            assert_eq!(report.counts().get("rs2").copied().unwrap_or(0), expected);
        }
    }
    assert_eq!(
        logged(&lab, "real server 192.168.2.210 does not answer ARP")?,
        TIMES
    );
    assert_eq!(logged(&lab, "real server 192.168.2.210 answers on eth0")?, TIMES);
    assert_eq!(logged(&lab, "real server 192.168.2.220")?, 0);
    Ok(())
}

#[test]
fn an_agent_that_has_missed_events_reads_everything_again_and_says_so_once() -> Result<()> {
    const ROUTES: usize = 6000;
    let mut lab = lab()?;
    let mac = [0x02, 0, 0, 0, 0, 0x77];
    // It does not run while these come, and the kernel throws some of them away.
    lab.agent_mut()?.signal(Signal::SIGSTOP)?;
    let route = |number: usize| format!("route add 10.{}.{}.0/24 dev eth0\n", number / 250, number % 250);
    let swarm = tempfile::NamedTempFile::new()?;
    std::fs::write(swarm.path(), (0..ROUTES).map(route).collect::<String>())?;
    lab.director().ip(&format!("-batch {}", swarm.path().display()))?;
    // What is among those.
    lab.topology().set_mac("rs1", "eth0", mac)?;
    lab.director()
        .ip("neighbour replace 192.168.2.220 lladdr 02:00:00:00:00:77 nud permanent dev eth0")?;
    lab.director().ip("address del 192.168.2.100/32 dev eth0")?;
    std::thread::sleep(Duration::from_millis(200));
    lab.agent_mut()?.signal(Signal::SIGCONT)?;

    wait_for("the new MAC address", || {
        Ok(server(&lab, 1)?.mac.as_deref() == Some("02:00:00:00:00:77"))
    })?;
    wait_for("that the VIP is not there", || {
        let vips = lvs_xdp_tests::ask::status(&lab)?.vips;
        Ok(vips
            .iter()
            .all(|vip| vip.state == lvs_xdp::api::types::VipState::Silent))
    })?;
    lab.director().ip("address add 192.168.2.100/32 dev eth0")?;
    let report = Load::sequential(lab.vip(), 10).run(lab.client())?;
    assert_eq!(report.failures(), []);
    assert_eq!(
        logged(&lab, "netlink events were lost: reading the tables again")?,
        1
    );
    Ok(())
}
