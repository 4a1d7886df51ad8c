//! To tables of another size, under traffic.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lvs_xdp::api::types::Connection;
use lvs_xdp_tests::{agent::AgentConfig, ask::connections, lab::Lab, stream::OpenConnection, trace::Traced};

use crate::{
    CAPACITY, agent_config,
    clients::{LOOP_REQUESTS, Transfers, assert_none_lost, request_loop},
    destinations, lab, lab_counts, link, servers, status, version_directory,
};

/// `BPF_LINK_UPDATE` of linux/bpf.h: the program of a link is replaced.
const BPF_LINK_UPDATE: u64 = 29;

#[test]
fn nothing_is_lost_when_the_tables_grow() -> Result<()> {
    const OPEN: usize = 100;
    let mut lab = lab(2, "rr")?;
    let (link_before, _) = link(&lab)?;
    let mut open: Vec<_> = (0..OPEN)
        .map(|_| OpenConnection::new(&lab))
        .collect::<Result<_>>()?;
    let clients = open
        .iter()
        .map(OpenConnection::client)
        .collect::<Result<Vec<_>>>()?;
    let going_to = |lab: &Lab| -> Result<Vec<_>> {
        let destinations = destinations(lab)?;
        Ok(clients
            .iter()
            .map(|client| destinations.get(client).copied())
            .collect())
    };
    let before = going_to(&lab)?;
    assert!(before.iter().all(Option::is_some));
    let mut transfers = Transfers::start(&lab)?;
    let load = request_loop(&lab).start(lab.client())?;

    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status(&lab)?.connection_capacity, u64::from(CAPACITY));
    let doubled = AgentConfig {
        connections: Some(2 * CAPACITY),
        ..agent_config()
    };
    lab.agent_mut()?.terminate()?;
    lab.agent_mut()?.launch(&doubled)?;
    assert_eq!(status(&lab)?.connection_capacity, u64::from(2 * CAPACITY));
    assert_eq!(going_to(&lab)?, before);
    assert!(
        transfers.is_running()?,
        "the tables grew in the middle of a transfer"
    );

    std::thread::sleep(Duration::from_millis(1500));
    let larger = AgentConfig {
        arguments: ["--services", "9000", "--destinations", "50000"]
            .map(String::from)
            .into(),
        ..doubled
    };
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&larger)?;
    assert_eq!(going_to(&lab)?, before);
    assert_eq!(link(&lab)?.0, link_before);

    assert_none_lost("larger tables", &load.finish()?);
    transfers.finish(&lab)?;
    assert_eq!(going_to(&lab)?, before);
    for open in &mut open {
        assert_eq!(open.ask()?, open.server);
    }
    // One may be forgotten: nobody can add to a counter that the program has without a gap.
    let counts = lab_counts(&lab)?;
    let expected = (LOOP_REQUESTS + OPEN + 2) as u64;
    assert!(
        (expected - 1..=expected).contains(&counts),
        "{counts} connections counted, not {expected}"
    );
    let active: u64 = servers(&lab)?.iter().map(|server| server.active).sum();
    assert_eq!(active, OPEN as u64);
    // The new tables can be filled to their new size, not only be asked for it.
    lab.cli(["service", "add", "udp", "192.168.2.100:53"])?;
    assert_eq!(lab.fetch("/")?.get(..2), Some("rs"));
    Ok(())
}

#[test]
fn nothing_is_lost_when_the_agent_is_killed_while_the_tables_grow() -> Result<()> {
    let mut lab = lab(2, "rr")?;
    let sized = |connections| AgentConfig {
        connections: Some(connections),
        ..agent_config()
    };
    let listed = |lab: &Lab, client: SocketAddr| -> Result<Connection> {
        connections(lab, &[])?
            .into_iter()
            .find(|connection| connection.client == client)
            .with_context(|| format!("there is no connection of {client}"))
    };
    let (link_before, program_before) = link(&lab)?;
    let opened = Instant::now();
    let mut early = OpenConnection::new(&lab)?;
    let closing = OpenConnection::new(&lab)?;
    // The director's clock begins with the tables: it has to be past the time by which an entry may
    // seem to come from the future, or wrong ages would look right.
    std::thread::sleep(Duration::from_secs(18));

    lab.agent_mut()?.kill()?;
    let mut mover = Traced::spawn(lab.agent()?.command(&sized(2 * CAPACITY)))?;
    mover.run_to(libc::SYS_bpf, Some(BPF_LINK_UPDATE))?;
    // All that is there was carried over; what comes now is in the old tables only.
    assert_eq!(link(&lab)?, (link_before, program_before));
    let mut between = OpenConnection::new(&lab)?;
    let closed = closing.client()?;
    drop(closing);
    std::thread::sleep(Duration::from_millis(200));
    mover.run_to(libc::SYS_membarrier, None)?;
    // The new program runs, and the old tables are about to be looked through again.
    mover.kill()?;
    let (link_killed, program_killed) = link(&lab)?;
    assert_eq!(link_killed, link_before);
    assert_ne!(program_killed, program_before);
    between.send()?;
    between.expect_silence(Duration::from_millis(500))?;
    let mut late = OpenConnection::new(&lab)?;

    lab.agent_mut()?.launch(&sized(4 * CAPACITY))?;
    let status = status(&lab)?;
    assert_eq!(status.connection_capacity, u64::from(4 * CAPACITY));
    let idle = listed(&lab, early.client()?)?;
    let age = 900_u64.saturating_sub(idle.expires);
    let expected = opened.elapsed().as_secs();
    assert!(expected.abs_diff(age) <= 2, "{idle:?} should be {expected} s old");
    assert_eq!(listed(&lab, closed)?.state, "FIN_WAIT");
    assert_eq!(between.receive()?, between.server);
    for open in [&mut early, &mut between, &mut late] {
        assert_eq!(open.ask()?, open.server);
    }
    let active: u64 = servers(&lab)?.iter().map(|server| server.active).sum();
    assert_eq!(active, 3);
    assert_eq!(link(&lab)?.0, link_before);
    // What the killed agent has left is gone.
    let generations = fs::read_dir(version_directory(lab.agent()?)?)?.count();
    assert_eq!(generations, 2, "one generation and the links");
    Ok(())
}
