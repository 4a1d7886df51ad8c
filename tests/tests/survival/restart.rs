//! The agent goes, and another comes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use lvs_xdp_tests::{
    agent::{Agent, find_rebuilt_binary},
    family::Family,
    lab::Lab,
    stream::OpenConnection,
};

use crate::{
    agent_config,
    clients::{LOOP_REQUESTS, Transfers, assert_none_lost, request_loop},
    counted_connections, destinations, drops, lab_counts, lab_over, link, status,
};

/// The tag of the program that runs: the kernel's hash of its instructions.
fn tag(lab: &Lab) -> Result<u64> {
    let (_, id) = link(lab)?;
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .context("the program of the link is not loaded")?;
    Ok(program.tag())
}

/// Ends the agent one way or another in the middle of transfers and a request loop, and starts it again;
/// returns the tags of the program before and after.
fn restart_under_load(
    what: &str,
    family: Family,
    end: impl FnOnce(&mut Agent) -> Result<()>,
) -> Result<[u64; 2]> {
    let mut lab = lab_over(family, 2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    let client = open.client()?;
    let going_to = destinations(&lab)?.get(&client).copied();
    assert!(going_to.is_some());
    let (link_before, program_before) = link(&lab)?;
    assert_eq!(status(&lab)?.program_id, program_before);
    let tag_before = tag(&lab)?;

    let mut transfers = Transfers::start(&lab)?;
    let load = request_loop(&lab).start(lab.client())?;
    std::thread::sleep(Duration::from_millis(1500));
    let counted_before = counted_connections(&lab)?;
    assert!(counted_before > 3, "{counted_before}");
    end(lab.agent_mut()?)?;
    // Nobody is there, and it goes on.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(open.ask()?, open.server);
    assert!(!lab.cli_output(["status"])?.status.success());
    assert_eq!(link(&lab)?, (link_before, program_before));

    lab.agent_mut()?.launch(&agent_config())?;
    let (link_after, program_after) = link(&lab)?;
    assert_eq!(link_after, link_before, "{what}: the link is another one");
    assert_ne!(
        program_after, program_before,
        "{what}: the agent's own program should run"
    );
    assert_eq!(status(&lab)?.program_id, program_after);
    assert_eq!(destinations(&lab)?.get(&client).copied(), going_to);
    assert!(
        counted_connections(&lab)? > counted_before,
        "{what}: the counters began anew"
    );
    assert!(
        transfers.is_running()?,
        "{what}: the transfers ended before they could be disturbed"
    );

    assert_none_lost(what, &load.finish()?);
    transfers.finish(&lab)?;
    assert_eq!(open.ask()?, open.server);
    // The loop, two transfers and the open connection: nothing was counted twice or forgotten.
    let counts = lab_counts(&lab)?;
    assert_eq!(counts, LOOP_REQUESTS as u64 + 3, "{what}");
    assert_eq!(drops(&lab)?, [], "{what}");
    Ok([tag_before, tag(&lab)?])
}

#[test]
fn nothing_is_lost_when_the_agent_is_killed() -> Result<()> {
    let [before, after] = restart_under_load("kill -9", Family::V4, Agent::kill)?;
    assert_eq!(before, after, "the program was not built again");
    Ok(())
}

#[test]
fn nothing_is_lost_over_ipv6_when_the_agent_is_killed() -> Result<()> {
    let [before, after] = restart_under_load("kill -9 over IPv6", Family::V6, Agent::kill)?;
    assert_eq!(before, after, "the program was not built again");
    Ok(())
}

#[test]
fn nothing_is_lost_when_the_agent_ends_and_another_takes_over() -> Result<()> {
    let [before, after] = restart_under_load("SIGTERM", Family::V4, |agent| {
        let socket = agent.socket();
        let ended = agent.terminate()?;
        assert_eq!(ended.code(), Some(0));
        assert!(!socket.exists());
        Ok(())
    })?;
    assert_eq!(before, after, "the program was not built again");
    Ok(())
}

#[test]
fn nothing_is_lost_when_a_newly_built_program_takes_over() -> Result<()> {
    let rebuilt = find_rebuilt_binary()?;
    let [before, after] = restart_under_load("an upgrade", Family::V4, |agent| {
        agent.terminate()?;
        agent.replace_binary(rebuilt);
        Ok(())
    })?;
    assert_ne!(before, after, "the two programs do not differ");
    Ok(())
}
