//! Real servers that are full.

use std::io::ErrorKind;

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{packets, server, wait_for},
    lab::Lab,
    stream::OpenConnection,
};

use crate::{change_server, forget_closed_after, lab};

/// Waits until real server `number` has so many connections, active and inactive.
fn wait_for_connections(lab: &Lab, number: usize, connections: u64) -> Result<()> {
    wait_for("connections to end", || {
        let server = server(lab, number)?;
        Ok(server.active + server.inactive == connections)
    })?;
    Ok(())
}

fn assert_refused(lab: &Lab) -> Result<()> {
    let error = OpenConnection::new(lab).err().context("all servers are full")?;
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}

#[test]
fn full_servers_get_nothing_new_until_they_have_room() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    forget_closed_after(&lab, 1)?;
    change_server(&lab, "edit", 1, &["-x", "1"])?;
    change_server(&lab, "edit", 2, &["-x", "3", "-y", "2"])?;
    let open = || OpenConnection::new(&lab);
    let first = open()?;
    let second = open()?;
    let mut third = open()?;
    let fourth = open()?;
    // rr would go on with rs1, which is full.
    let answered = [&first, &second, &third, &fourth].map(|open| open.server.as_str());
    assert_eq!(answered, ["rs2", "rs1", "rs2", "rs2"]);
    assert_refused(&lab)?;
    assert_refused(&lab)?;
    assert_eq!(packets(&lab, "no-destination")?, 2);
    // Full or not, what it has it keeps.
    assert_eq!(third.ask()?, "rs2");

    // Two are not fewer than the lower threshold.
    drop(first);
    wait_for_connections(&lab, 2, 2)?;
    assert_refused(&lab)?;
    drop(third);
    wait_for_connections(&lab, 2, 1)?;
    let third = open()?;
    let first = open()?;
    assert_eq!([third.server.as_str(), first.server.as_str()], ["rs2", "rs2"]);
    assert_refused(&lab)?;
    // Without a lower one three quarters of the upper one do: of one, none.
    drop(second);
    wait_for_connections(&lab, 1, 0)?;
    assert_eq!(open()?.server, "rs1");
    // Without thresholds there is no limit.
    change_server(&lab, "edit", 2, &["-x", "0", "-y", "0"])?;
    let more = (0..4).map(|_| Ok(open()?.server)).collect::<Result<Vec<_>>>()?;
    assert!(more.iter().filter(|name| *name == "rs2").count() >= 2, "{more:?}");
    Ok(())
}
