//! `lvs-xdp unload` leaves nothing behind.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::lab;

#[test]
fn unload_removes_what_a_dead_agent_has_left() -> Result<()> {
    let mut lab = lab(1, "rr")?;
    lab.agent_mut()?.kill()?;
    assert_eq!(lab.fetch("/")?, "rs1\n", "forwarding needs no agent");
    let pins = lab.agent()?.pin_dir().to_owned();
    let unload = ["unload".as_ref(), "--pin-dir".as_ref(), pins.as_os_str()];
    assert_eq!(lab.cli(unload)?, "");
    assert!(!pins.exists(), "{} is still there", pins.display());
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(!shown.contains("prog/xdp"), "{shown}");
    let again = lab.cli_output(unload)?;
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("nothing is loaded"), "{message}");
    Ok(())
}

#[test]
fn unload_takes_the_program_off_and_ends_the_agent() -> Result<()> {
    let mut lab = lab(1, "rr")?;
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let (pins, socket) = {
        let agent = lab.agent()?;
        (agent.pin_dir().to_owned(), agent.socket())
    };
    assert!(pins.exists());
    assert_eq!(lab.cli(["unload"])?, "");
    assert!(!pins.exists(), "{} is still there", pins.display());
    let ended = lab.agent_mut()?.terminate()?;
    assert_eq!(ended.code(), Some(0), "{}", lab.agent()?.log()?);
    assert!(!Path::new(&socket).exists());
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(!shown.contains("prog/xdp"), "{shown}");
    // The VIP is the director's own again, and nobody listens there.
    let refused = lab.fetch("/").err().context("somebody forwards still")?;
    assert!(format!("{refused:#}").contains("curl: (7)"), "{refused:#}");
    Ok(())
}
