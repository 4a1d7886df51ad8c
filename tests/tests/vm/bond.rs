//! A director whose NIC is a bond.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{DIRECTOR, Lab, ROUTER_INSIDE, VIP},
};

use crate::{config, in_the_guest};

in_the_guest!(a_bond_forwards_in_native_mode_also_when_a_cable_is_pulled);

fn a_bond_forwards_in_native_mode_also_when_a_cable_is_pulled() -> Result<()> {
    let mut lab = lab(XdpMode::Native)?;
    // In native mode the bond hands the program to both of its slaves.
    lab.start_agent_over(&["bond0"], &["eth0", "eth1"])?;
    lab.add_service("rr")?;
    let turns = |requests| (0..requests).map(|_| lab.fetch("/")).collect::<Result<String>>();
    assert_eq!(turns(4)?, "rs2\nrs1\nrs2\nrs1\n");
    assert_eq!(active_slave(&lab)?, "eth0");

    lab.topology().set_plugged("director", "eth0", false)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while active_slave(&lab)? != "eth1" {
        ensure!(Instant::now() < deadline, "the bond has not gone over to eth1");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(turns(4)?, "rs2\nrs1\nrs2\nrs1\n");
    Ok(())
}

/// The reference case whose director has two cables to its segment, and `bond0` over them; no agent yet.
fn lab(mode: XdpMode) -> Result<Lab> {
    let mut lab = Lab::hosts(config(mode))?;
    lab.topology_mut().connect("director", "eth1", "inside", &[])?;
    let director = lab.director();
    director.ip("link add bond0 type bond mode active-backup miimon 50")?;
    for slave in ["eth0", "eth1"] {
        director.ip(&format!("address flush dev {slave}"))?;
        director.ip(&format!("link set {slave} down"))?;
        director.ip(&format!("link set {slave} master bond0"))?;
    }
    director.run("ethtool", ["-K", "bond0", "tx", "off"])?;
    director.ip("link set bond0 up")?;
    director.ip(&format!("address add {DIRECTOR}/24 dev bond0"))?;
    director.ip(&format!("address add {VIP}/32 dev bond0"))?;
    director.ip(&format!("route add default via {ROUTER_INSIDE}"))?;
    lab.prepare_real_servers()?;
    Ok(lab)
}

fn active_slave(lab: &Lab) -> Result<String> {
    let shown = lab.director().ip("-json -details link show dev bond0")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let slave = &shown[0]["linkinfo"]["info_data"]["active_slave"];
    Ok(slave.as_str().unwrap_or_default().to_owned())
}
