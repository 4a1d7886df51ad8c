//! What the program leaves to the director's own stack.

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{packets, wait_for},
    family::Family,
    stream::OpenConnection,
};

use crate::{VIP, in_both_modes, lab};

in_both_modes!(
    traffic_that_is_for_no_service_goes_its_way,
    what_nobody_knows_is_the_hosts_where_it_has_the_vip,
);

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

fn what_nobody_knows_is_the_hosts_where_it_has_the_vip(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2, &["--scheduler", "rr"])?;
    let mut open = OpenConnection::new(&lab)?;
    let mut other = OpenConnection::new(&lab)?;
    lab.cli(["connections", "flush", "--all"])?;
    let refused = open.ask().err().context("nobody should know the connection")?;
    assert!(format!("{refused:#}").contains("reset"), "{refused:#}");
    assert_eq!(packets(&lab, "no-connection-passed")?, 1);

    // A host that has not the VIP could say nothing.
    lab.director().ip(&format!("address del {VIP}/128 dev eth0"))?;
    let director = Family::V6.director();
    lab.router()
        .ip(&format!("route add {VIP}/128 via {director} dev eth1"))?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    other.send()?;
    wait_for("packets that are dropped", || {
        Ok(packets(&lab, "no-connection")? > 0)
    })?;
    assert_eq!(packets(&lab, "no-connection-passed")?, 1);
    Ok(())
}
