//! Health checks: who is seen to be down, how soon, what clients notice, and what stays as it was configured.

mod consequences;
mod kinds;
mod outages;
mod passive;
mod thousands;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::{
    client::BlockingClient,
    types::{
        Change, Check, CheckState, CheckStatus, CheckTarget, HttpProbe, Probe, Protocol, Scheduler,
        ServerKey, ServerSpec, ServiceKey, ServiceSpec, Span,
    },
};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{LIMIT, server},
    lab::{Lab, LabConfig},
};

/// How often the checks of these tests ask, and how long an answer may take.
pub(crate) const INTERVAL: Duration = Duration::from_millis(300);
pub(crate) const TIMEOUT: Duration = Duration::from_millis(150);
/// Bad results in a row until a server is down.
pub(crate) const FALL: u32 = 3;

/// A check with the times of these tests.
pub(crate) fn check(probe: Probe, target: CheckTarget) -> Check {
    Check {
        target,
        interval: Span::from_millis(300),
        timeout: Span::from_millis(150),
        fall: FALL,
        ..Check::new(probe)
    }
}

/// `GET /`, as clients ask.
pub(crate) fn http() -> Probe {
    Probe::Http(HttpProbe::default())
}

/// A lab with two real servers and nothing configured.
pub(crate) fn empty_lab(mode: XdpMode) -> Result<Lab> {
    lab_with(mode, &[])
}

/// The same, with more arguments for the agent.
pub(crate) fn lab_with(mode: XdpMode, arguments: &[&str]) -> Result<Lab> {
    Lab::start(LabConfig {
        agent: AgentConfig {
            xdp_mode: mode,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })
}

/// A client of the agent's API.
pub(crate) fn client(lab: &Lab) -> Result<BlockingClient> {
    Ok(BlockingClient::new(lab.agent()?.socket()))
}

/// The service of the reference case.
pub(crate) fn key(lab: &Lab) -> ServiceKey {
    ServiceKey::new(Protocol::Tcp, lab.vip(), 80)
}

pub(crate) fn service(lab: &Lab, check: Check) -> ServiceSpec {
    ServiceSpec {
        check: Some(Box::new(check)),
        ..ServiceSpec::new(key(lab), Scheduler::Rr)
    }
}

pub(crate) fn add_server(lab: &Lab, number: usize) -> Change {
    let address = lab.family().real_server(number);
    Change::AddServer {
        service: key(lab),
        server: ServerSpec::new(ServerKey { address, port: 80 }, 1),
        require_on_link: true,
    }
}

/// The service with both real servers, and both up.
pub(crate) fn serve(lab: &Lab, service: ServiceSpec) -> Result<()> {
    let changes = vec![
        Change::AddService { service },
        add_server(lab, 1),
        add_server(lab, 2),
    ];
    client(lab)?.change(changes)?;
    for number in [1, 2] {
        wait_for_state(lab, number, CheckState::Up, LIMIT)?;
    }
    Ok(())
}

/// What the check of a real server says.
pub(crate) fn status(lab: &Lab, number: usize) -> Result<CheckStatus> {
    let address = lab.family().real_server(number);
    let checks = client(lab)?.checks()?;
    let found = checks.into_iter().find(|check| check.server.address == address);
    found.with_context(|| format!("real server {number} has no check"))
}

/// Waits until the check of a real server says so and the scheduler goes by it; returns how long that took.
pub(crate) fn wait_for_state(
    lab: &Lab,
    number: usize,
    state: CheckState,
    limit: Duration,
) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let seen = status(lab, number)?;
        let weight = server(lab, number)?.effective_weight;
        let took = started.elapsed();
        if seen.state == state && (weight > 0) == (state == CheckState::Up) {
            return Ok(took);
        }
        ensure!(
            took < limit,
            "after {took:?} the weight is {weight} and the check says {seen:?}; the agent says:\n{}",
            lab.agent()?.log_tail()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
