//! `lvs-xdp server drain`.

use std::{
    io::Write,
    thread::sleep,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::Failure;
use crate::api::{
    client::{BlockingClient, if_there},
    types::{Change, Drain, Server, ServerKey, ServiceKey},
};

/// Between two looks at what is left.
const PAUSE: Duration = Duration::from_secs(1);

/// What is left of a server that is being drained, as `--json` has it.
#[derive(Debug, Serialize)]
struct Left {
    /// Whether it was removed.
    removed: bool,
    /// Connections, active and inactive.
    connections: u64,
    active: u64,
    inactive: u64,
    persistent: u64,
}

pub(super) fn run(
    service: ServiceKey,
    key: ServerKey,
    deadline: Option<Duration>,
    wait: bool,
    json: bool,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let deadline = deadline.map(|time| seconds_since_1970().saturating_add(time.as_secs()));
    client.change(vec![Change::DrainServer {
        service,
        server: key,
        drain: Drain { deadline },
    }])?;
    loop {
        let servers = if_there(client.service(service))?.map_or_else(Vec::new, |service| service.servers);
        let server = servers.into_iter().find(|server| server.spec.key == key);
        if server.as_ref().is_some_and(|server| server.spec.drain.is_none()) {
            return Err(Failure::Refused(format!(
                "{key} is not being drained any more: somebody has edited it, or added it again"
            )));
        }
        let left = left(server.as_ref());
        write(&left, json, out)?;
        if left.removed || !wait {
            return Ok(());
        }
        sleep(PAUSE);
    }
}

/// The agent's clock is this machine's.
pub(super) fn seconds_since_1970() -> u64 {
    (SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)).map_or(0, |time| time.as_secs())
}

fn left(server: Option<&Server>) -> Left {
    let (active, inactive) = server.map_or((0, 0), |server| (server.active, server.inactive));
    Left {
        removed: server.is_none(),
        connections: active + inactive,
        active,
        inactive,
        persistent: server.map_or(0, |server| server.persistent),
    }
}

fn write(left: &Left, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let Left {
        removed,
        connections,
        active,
        inactive,
        ..
    } = left;
    let text = if json {
        serde_json::to_string(left).map_err(std::io::Error::from)?
    } else if *removed {
        "removed".to_owned()
    } else {
        format!("connections left: {connections} ({active} active, {inactive} inactive)")
    };
    writeln!(out, "{text}")?;
    // Who waits wants to see it now.
    Ok(out.flush()?)
}
