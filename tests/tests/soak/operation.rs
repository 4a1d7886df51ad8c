//! What may happen to a director, drawn by chance.

use std::{fmt, time::Duration};

use fastrand::Rng;
use lvs_xdp::api::types::{
    Change, Configuration, ConfiguredService, Removal, Scheduler, ServerKey, ServerSpec, ServiceKey,
    ServiceSpec,
};

use crate::{
    SERVERS, address, keys,
    model::{self, Model},
};

const SCHEDULERS: [Scheduler; 10] = [
    Scheduler::Rr,
    Scheduler::Wrr,
    Scheduler::Lc,
    Scheduler::Wlc,
    Scheduler::Sed,
    Scheduler::Nq,
    Scheduler::Fo,
    Scheduler::Lblc,
    Scheduler::Sh,
    Scheduler::Mh,
];

/// One thing that happens.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Some changes by the API, and what the configuration is then.
    Change(Vec<Change>, Configuration),
    /// A whole configuration, in one step.
    Apply(Configuration),
    /// The same, and the agent is killed so long after it was asked for.
    KilledInApply(Configuration, Duration),
    /// Back to the configuration before.
    Rollback,
    /// A real server of the web service is drained, until it is gone.
    Drain(ServerKey),
    /// The agent is killed, clients go on, and another one starts.
    Kill,
    /// The agent is ended, and another one starts.
    Restart,
    /// A real server's cable is out for so long.
    Unplug(usize, Duration),
    /// A real server's card has another MAC address.
    Card(usize, [u8; 6]),
    /// So many SYNs from anywhere.
    Flood(u32),
    /// A connection that stays.
    Open,
    /// Such a one ends.
    Close(usize),
    /// A datagram, answered.
    Datagram,
    /// All counters are set to 0.
    Zero,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(changes, next) => {
                let kinds: Vec<_> = changes.iter().map(kind).collect();
                write!(f, "{}: {}", kinds.join(", "), Short(next))
            }
            Self::Apply(next) => write!(f, "apply {}", Short(next)),
            Self::KilledInApply(next, after) => write!(f, "killed {after:?} into apply {}", Short(next)),
            Self::Drain(server) => write!(f, "drain {server}"),
            other => write!(f, "{other:?}"),
        }
    }
}

fn kind(change: &Change) -> String {
    match change {
        Change::AddService { service } => format!("add {}", service.key),
        Change::EditService { service } => format!("edit {}", service.key),
        Change::DeleteService { service } => format!("delete {service}"),
        Change::AddServer { server, .. } => format!("add {}", model::name(server)),
        Change::EditServer { server, .. } => format!("edit {}", model::name(server)),
        Change::DeleteServer { server, .. } => format!("delete {server}"),
        other => format!("{other:?}"),
    }
}

/// A configuration's services: schedulers, and real servers with their weights.
struct Short<'a>(&'a Configuration);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.0.service.iter().map(|service| {
            let servers = service.server.iter();
            let servers: Vec<_> = servers
                .map(|server| format!("{}*{}", model::name(server), server.weight))
                .collect();
            let ServiceSpec { key, scheduler, .. } = &service.spec;
            format!("{key} {scheduler} [{}]", servers.join(" "))
        });
        f.write_str(&services.collect::<Vec<_>>().join(", "))
    }
}

/// The next operation.
pub(crate) fn draw(rng: &mut Rng, model: &Model) -> Operation {
    match rng.u32(0..100) {
        0..12 => Operation::Open,
        12..18 => Operation::Close(rng.usize(..)),
        18..26 => Operation::Datagram,
        26..30 => Operation::Kill,
        30..32 => Operation::Restart,
        32..35 => Operation::KilledInApply(
            any_configuration(rng, model),
            Duration::from_micros(rng.u64(0..30_000)),
        ),
        35..42 => Operation::Apply(any_configuration(rng, model)),
        42..47 if model.before().is_some() => Operation::Rollback,
        47..50 => Operation::Unplug(rng.usize(1..=SERVERS), Duration::from_millis(rng.u64(20..400))),
        50..53 => {
            let [.., a, b, c] = rng.u32(..).to_be_bytes();
            Operation::Card(rng.usize(1..=SERVERS), [0x02, 0x5a, 0, a, b, c])
        }
        53..57 => Operation::Flood(rng.u32(100..1_500)),
        57..59 => Operation::Zero,
        59..61 => match model.service(&keys()[0]) {
            Some(web) if web.server.len() > 1 => {
                Operation::Drain(web.server[rng.usize(..web.server.len())].key)
            }
            _ => Operation::Open,
        },
        _ => change(rng, model),
    }
}

/// A change of one service or of one of its real servers, whatever fits.
fn change(rng: &mut Rng, model: &Model) -> Operation {
    // The web service most of the time.
    let key = keys()[[0, 0, 0, 1, 1, 2][rng.usize(..6)]];
    let Some(service) = model.service(&key) else {
        return add_service(rng, model, key);
    };
    let now = model.now();
    let at = |rng: &mut Rng| rng.usize(..service.server.len().max(1));
    let mut next = service.clone();
    let change = match rng.u32(0..20) {
        0 => {
            let next = model::without(now, &key);
            return Operation::Change(vec![Change::DeleteService { service: key }], next);
        }
        1..4 => {
            next.spec = any_spec(rng, key);
            Change::EditService {
                service: next.spec.clone(),
            }
        }
        4..10 if service.server.len() < SERVERS => {
            let free = (1..=SERVERS).filter(|number| {
                let address = address(*number);
                service.server.iter().all(|server| server.key.address != address)
            });
            let free: Vec<usize> = free.collect();
            let number = free[rng.usize(..free.len())];
            let server = any_server(rng, &key, number);
            next.server.push(server.clone());
            Change::AddServer {
                service: key,
                server,
                require_on_link: true,
            }
        }
        10..13 if !service.server.is_empty() => {
            let server = next.server.remove(at(rng)).key;
            Change::DeleteServer { service: key, server }
        }
        _ if !service.server.is_empty() => {
            let server = &mut next.server[at(rng)];
            server.weight = rng.u32(0..4);
            Change::EditServer {
                service: key,
                server: server.clone(),
            }
        }
        _ => return Operation::Open,
    };
    Operation::Change(vec![change], model::with(now, next))
}

/// A service with all real servers, in one list of changes.
fn add_service(rng: &mut Rng, model: &Model, key: ServiceKey) -> Operation {
    let service = any_service(rng, key);
    let mut changes = vec![Change::AddService {
        service: service.spec.clone(),
    }];
    changes.extend(service.server.iter().map(|server| Change::AddServer {
        service: key,
        server: server.clone(),
        require_on_link: true,
    }));
    Operation::Change(changes, model::with(model.now(), service))
}

/// Some services in the place of those that there are; the web service always among them.
fn any_configuration(rng: &mut Rng, model: &Model) -> Configuration {
    let mut next = model.now().clone();
    for (number, key) in keys().into_iter().enumerate() {
        match rng.u32(0..4) {
            0 if number > 0 => next = model::without(&next, &key),
            0 | 1 => next = model::with(&next, any_service(rng, key)),
            _ => {}
        }
    }
    next
}

fn any_service(rng: &mut Rng, key: ServiceKey) -> ConfiguredService {
    let mut numbers: Vec<usize> = (1..=SERVERS).collect();
    rng.shuffle(&mut numbers);
    numbers.truncate(rng.usize(1..=SERVERS));
    ConfiguredService {
        spec: any_spec(rng, key),
        server: (numbers.into_iter())
            .map(|number| any_server(rng, &key, number))
            .collect(),
    }
}

fn any_spec(rng: &mut Rng, key: ServiceKey) -> ServiceSpec {
    ServiceSpec {
        removal: rng.bool().then(|| Removal::ALL[rng.usize(..Removal::ALL.len())]),
        ..ServiceSpec::new(key, SCHEDULERS[rng.usize(..SCHEDULERS.len())])
    }
}

fn any_server(rng: &mut Rng, service: &ServiceKey, number: usize) -> ServerSpec {
    let key = ServerKey {
        address: address(number),
        port: service.port(),
    };
    ServerSpec::new(key, rng.u32(0..4))
}
