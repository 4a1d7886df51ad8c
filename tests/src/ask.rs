//! What the director says of itself: the command line's JSON, as the API's own types.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{Connection, Server, Service, Status};
use serde::de::DeserializeOwned;

use crate::lab::Lab;

/// How long whatever is waited for may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(15);

/// What `lvs-xdp VERB --json` prints.
///
/// # Errors
///
/// When it fails, or prints something else.
pub fn json<T: DeserializeOwned>(lab: &Lab, verb: &[&str]) -> Result<T> {
    let text = lab.cli(verb.iter().chain(&["--json"]))?;
    serde_json::from_str(&text).with_context(|| format!("reading what `{}` wrote", verb.join(" ")))
}

/// `lvs-xdp status`.
///
/// # Errors
///
/// As [`json`].
pub fn status(lab: &Lab) -> Result<Status> {
    json(lab, &["status"])
}

/// `lvs-xdp service list`.
///
/// # Errors
///
/// As [`json`].
pub fn services(lab: &Lab) -> Result<Vec<Service>> {
    json(lab, &["service", "list"])
}

/// The real servers of all services.
///
/// # Errors
///
/// As [`json`].
pub fn servers(lab: &Lab) -> Result<Vec<Server>> {
    Ok(services(lab)?
        .into_iter()
        .flat_map(|service| service.servers)
        .collect())
}

/// Real server `number` in the first service that has it.
///
/// # Errors
///
/// As [`json`], and when no service has it.
pub fn server(lab: &Lab, number: usize) -> Result<Server> {
    let address = lab.family().real_server(number);
    servers(lab)?
        .into_iter()
        .find(|server| server.spec.key.address == address)
        .with_context(|| format!("there is no real server {address}"))
}

/// `lvs-xdp connections`, with filters.
///
/// # Errors
///
/// As [`json`].
pub fn connections(lab: &Lab, filters: &[&str]) -> Result<Vec<Connection>> {
    json(lab, &[&["connections"], filters].concat())
}

/// Packets that were counted under a reason.
///
/// # Errors
///
/// As [`json`], and when there is no such reason.
pub fn packets(lab: &Lab, reason: &str) -> Result<u64> {
    let reasons = status(lab)?.reasons;
    let found = reasons.into_iter().find(|counted| counted.name == reason);
    Ok(found
        .with_context(|| format!("there is no reason {reason}"))?
        .packets)
}

/// Waits until something is so; returns how long that took.
///
/// # Errors
///
/// When it is not so within [`LIMIT`], or asking fails.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        ensure!(
            started.elapsed() < LIMIT,
            "waited {} s for {what}",
            LIMIT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(started.elapsed())
}
