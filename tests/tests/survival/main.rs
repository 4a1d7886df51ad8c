//! What must go on: forwarding without the agent, connections over every change, state over a reboot.

mod capacities;
mod clients;
mod neighbours;
mod restart;
mod services;
mod unload;

use std::{collections::HashMap, fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};
use lvs_xdp::api::types::ServerState;
pub(crate) use lvs_xdp_tests::ask::{LIMIT, server, servers, services, status, wait_for};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode},
    ask::connections,
    family::Family,
    lab::{Lab, LabConfig},
};

/// The connection table's capacity, in entries.
pub(crate) const CAPACITY: u32 = 65_536;

pub(crate) fn agent_config() -> AgentConfig {
    AgentConfig {
        xdp_mode: XdpMode::Native,
        connections: Some(CAPACITY),
        arguments: Vec::new(),
    }
}

/// A lab in native mode with the service of the reference case, its real servers resolved.
pub(crate) fn lab(real_servers: usize, scheduler: &str) -> Result<Lab> {
    lab_over(Family::V4, real_servers, scheduler)
}

/// As [`lab`], of a family.
pub(crate) fn lab_over(family: Family, real_servers: usize, scheduler: &str) -> Result<Lab> {
    let config = LabConfig {
        real_servers,
        agent: agent_config(),
        binary: None,
    };
    let lab = Lab::start(config)?.over(family);
    lab.add_service(scheduler)?;
    wait_for("real servers that answer", || {
        Ok(servers(&lab)?
            .iter()
            .all(|server| server.state == ServerState::Ready))
    })?;
    Ok(lab)
}

/// Where each client's connection goes.
pub(crate) fn destinations(lab: &Lab) -> Result<HashMap<SocketAddr, SocketAddr>> {
    Ok(connections(lab, &[])?
        .iter()
        .map(|connection| (connection.client, connection.destination))
        .collect())
}

/// Connections that the only service was asked for, as its counters have it.
pub(crate) fn counted_connections(lab: &Lab) -> Result<u64> {
    Ok(services(lab)?
        .first()
        .context("there is no service")?
        .stats
        .connections)
}

/// Connections counted by the only service's real servers, added up.
pub(crate) fn lab_counts(lab: &Lab) -> Result<u64> {
    let sum = servers(lab)?.iter().map(|server| server.stats.connections).sum();
    assert_eq!(counted_connections(lab)?, sum);
    Ok(sum)
}

/// Packets that the program has dropped, by reason.
pub(crate) fn drops(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let reasons = status(lab)?.reasons;
    Ok(reasons
        .into_iter()
        .filter(|reason| reason.verdict == "drop" && reason.packets > 0)
        .map(|reason| (reason.name, reason.packets))
        .collect())
}

/// The one directory of pins below the agent's: that of the layout's version.
pub(crate) fn version_directory(agent: &Agent) -> Result<PathBuf> {
    let Some(version) = fs::read_dir(agent.pin_dir())?.next() else {
        bail!("nothing is pinned in {}", agent.pin_dir().display());
    };
    Ok(version?.path())
}

/// The kernel's ids of the pinned link and of the program that it runs.
pub(crate) fn link(lab: &Lab) -> Result<(u32, u32)> {
    let pins = fs::read_dir(version_directory(lab.agent()?)?.join("links"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let [pin] = pins.as_slice() else {
        bail!("one link should be pinned, not {pins:?}");
    };
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let info = link.info()?;
    Ok((info.id(), info.program_id()))
}
