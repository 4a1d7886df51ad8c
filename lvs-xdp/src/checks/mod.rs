//! Health checks: what is asked of real servers, and which of them are up.
//!
//! [`Checks`] belongs to the agent's task: it knows every check with its state ([`health`]). [`runner`] asks, on a
//! thread of its own for all checks together, each when its turn comes ([`schedule`]), by one of the ways to ask
//! ([`probe`]); it reports results and decides nothing. Those that ask nobody are judged by what the program has counted
//! ([`passive`]).
//!
//! What is kept on disk knows nothing of results: the agent makes an effective weight of them, which only the data
//! plane sees, and an agent that starts learns from the weights in the maps who was down.

mod health;
mod host;
mod passive;
mod probe;
mod runner;
mod schedule;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime},
};

use tracing::{info, warn};

use self::{
    health::{Health, millis},
    passive::{Turned, Watch},
};
pub(crate) use self::{
    host::Host,
    runner::{Report, Runner},
};
use crate::{
    api::types::{
        Check, CheckState, CheckStatus, CheckTarget, Handshakes, InitialState, OnFailure, Protocol,
        ServerKey, ServerSpec, ServiceKey,
    },
    model::{Model, ServiceEntry},
};

/// A real server of a service.
type Name = (ServiceKey, ServerKey);

/// Whom a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The real server's own address.
    rip: IpAddr,
    /// The address that is asked, and the port.
    asked: SocketAddr,
    /// The virtual address, where the service has one or the check names one.
    vip: Option<IpAddr>,
    /// The service's protocol, where it has one.
    protocol: Option<Protocol>,
}

/// A check with all that it takes to make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    check: Check,
    /// Why there is none is said in words.
    target: Result<Target, String>,
}

impl Job {
    /// The check of a real server, where it has one.
    pub(crate) fn new(entry: &ServiceEntry, server: &ServerSpec) -> Option<Self> {
        let service = entry.spec.check.as_deref();
        let check = match &server.check {
            Some(own) => own.over(service)?,
            None => service?.clone(),
        };
        let target = target(&entry.spec.key, server, &check);
        Some(Self { check, target })
    }
}

/// Whom a check asks, or why there is nobody to ask.
fn target(service: &ServiceKey, server: &ServerSpec, check: &Check) -> Result<Target, String> {
    let ServerKey { address: rip, port } = server.key;
    if check.passive().is_some() {
        return Ok(Target {
            rip,
            asked: SocketAddr::new(rip, port),
            vip: None,
            protocol: service.protocol(),
        });
    }
    let (vip, port) = match *service {
        ServiceKey::Endpoint { address, port, .. } => (Some(address), port),
        ServiceKey::Mark { .. } => (None, port),
    };
    let vip = check.address.or(vip);
    let address = match check.target {
        CheckTarget::Rip => rip,
        // Only the program puts packets into the tunnel.
        CheckTarget::Vip if server.method.tunnel().is_some() => rip,
        CheckTarget::Vip => vip.ok_or("a mark's service has no one virtual address: name it in the check")?,
    };
    let port = match check.port.unwrap_or(port) {
        0 => return Err("the service has no one port: name it in the check".to_owned()),
        port => port,
    };
    Ok(Target {
        rip,
        asked: SocketAddr::new(address, port),
        vip,
        protocol: service.protocol(),
    })
}

/// What no real server of a service comes before.
fn lowest(service: &ServiceKey) -> Name {
    let lowest = ServerKey {
        address: IpAddr::from([0; 4]),
        port: 0,
    };
    (*service, lowest)
}

#[derive(Debug)]
struct Entry {
    id: u64,
    job: Job,
    health: Health,
}

/// Every check of the director.
#[derive(Debug)]
pub(crate) struct Checks {
    runner: Runner,
    host: Host,
    entries: BTreeMap<Name, Entry>,
    /// Who it is that the runner's reports are about.
    names: HashMap<u64, Name>,
    /// The real servers that are asked for a virtual address, with how many checks do so.
    steered: BTreeMap<IpAddr, u32>,
    /// The services whose real servers are watched, not asked.
    watches: BTreeMap<ServiceKey, Watch>,
    last_id: u64,
}

impl Checks {
    pub(crate) fn new(runner: Runner, host: Host) -> Self {
        Self {
            runner,
            host,
            entries: BTreeMap::new(),
            names: HashMap::new(),
            steered: BTreeMap::new(),
            watches: BTreeMap::new(),
            last_id: 0,
        }
    }

    /// What is known of a real server; nothing, where it has no check.
    pub(crate) fn known(&self, service: &ServiceKey, server: &ServerKey) -> Option<CheckState> {
        Some(self.entries.get(&(*service, *server))?.health.state)
    }

    /// What follows for the touched services of `model`. `weight` is the one that the scheduler goes by now for a real
    /// server, where it goes by any.
    pub(crate) fn next(
        &self,
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        weight: impl Fn(&ServiceKey, &ServerKey) -> Option<u32>,
    ) -> Next {
        let of = |service: &ServiceKey| {
            let entry = model.services().get(service);
            let servers = entry
                .into_iter()
                .flat_map(|entry| entry.servers.iter().map(move |server| (entry, server)));
            let checked = servers.filter_map(|(entry, server)| {
                let job = Job::new(entry, server)?;
                let state = self.known(service, &server.key).unwrap_or_else(|| {
                    let initial = match job.check.passive() {
                        // Without connections there is nothing to be seen.
                        Some(_) => InitialState::Up,
                        None => job.check.initial,
                    };
                    first_state(initial, server.weight, weight(service, &server.key))
                });
                Some((server.key, (job, state)))
            });
            (*service, checked.collect())
        };
        Next(touched.iter().map(of).collect())
    }

    /// Begins the checks that there are to be, and ends those that there are not. Whether others than before are
    /// [`Checks::steered`].
    pub(crate) fn adopt(&mut self, next: Next) -> bool {
        let mut is_other = false;
        for (service, checked) in next.0 {
            for name in self.names_of(&service) {
                if !checked.contains_key(&name.1) {
                    is_other |= self.end(&name);
                }
            }
            match checked.values().find_map(|(job, _)| job.check.passive()) {
                Some(passive) => self.watches.entry(service).or_default().go_by(*passive),
                None => drop(self.watches.remove(&service)),
            }
            for (server, (job, state)) in checked {
                is_other |= self.begin((service, server), job, state);
            }
        }
        is_other
    }

    fn names_of(&self, service: &ServiceKey) -> Vec<Name> {
        let names = self.entries.range(lowest(service)..).map(|(name, _)| *name);
        names.take_while(|name| name.0 == *service).collect()
    }

    /// Begins a check, or goes on with one; what is known of the real server stays.
    fn begin(&mut self, name: Name, job: Job, state: CheckState) -> bool {
        let before = self.entries.get_mut(&name);
        if before.as_ref().is_some_and(|before| before.job == job) {
            return false;
        }
        self.last_id += 1;
        let id = self.last_id;
        let mut health = match before {
            Some(before) => {
                self.runner.end(before.id);
                self.names.remove(&before.id);
                before.health.clone()
            }
            None => Health::new(state, SystemTime::now()),
        };
        health.fault = job.target.as_ref().err().cloned();
        if job.check.passive().is_none() {
            self.runner.begin(id, job.clone());
        }
        self.names.insert(id, name);
        let mut is_other = self.note_steered(&job, true);
        if let Some(before) = self.entries.insert(name, Entry { id, job, health }) {
            is_other |= self.note_steered(&before.job, false);
        }
        is_other
    }

    fn end(&mut self, name: &Name) -> bool {
        let Some(entry) = self.entries.remove(name) else {
            return false;
        };
        self.runner.end(entry.id);
        self.names.remove(&entry.id);
        self.note_steered(&entry.job, false)
    }

    /// Notes that there is a check, or is one no more. Whether its real server is the first or last such.
    fn note_steered(&mut self, job: &Job, is_there: bool) -> bool {
        let target = job.target.as_ref().ok();
        let Some(target) = target.filter(|target| target.asked.ip() != target.rip) else {
            return false;
        };
        let count = self.steered.entry(target.rip).or_default();
        *count = if is_there { *count + 1 } else { *count - 1 };
        match *count {
            0 => self.steered.remove(&target.rip).is_some(),
            count => count == 1 && is_there,
        }
    }

    /// Takes in a result. The service whose real servers are to be looked at anew, where one has changed its state.
    pub(crate) fn hear(&mut self, report: Report) -> Option<ServiceKey> {
        let name = *self.names.get(&report.id)?;
        let Entry { job, health, .. } = self.entries.get_mut(&name)?;
        let fault = health.fault.clone();
        let has_changed = health.note(report.outcome, report.took, &job.check, SystemTime::now());
        let (service, server) = name;
        if health.fault != fault
            && let Some(fault) = &health.fault
        {
            warn!("real server {server} of service {service} cannot be checked: {fault}");
        }
        if !has_changed {
            return None;
        }
        let why = health.last.as_ref().map_or("", |last| last.why.as_str());
        tell(&service, &server, health.state, why);
        Some(service)
    }

    /// Looks at the handshakes with the real servers that are watched: once a second. `counted` says what there were in
    /// all with one. The services whose real servers are to be looked at anew, as one has changed its state.
    pub(crate) fn watch(
        &mut self,
        now: Instant,
        counted: impl Fn(&ServiceKey, &ServerKey) -> Handshakes,
    ) -> Vec<ServiceKey> {
        let mut changed = Vec::new();
        for (service, watch) in &mut self.watches {
            let entries = self.entries.range_mut(lowest(service)..);
            let own = entries.take_while(|(name, _)| name.0 == *service);
            let watched = own.filter(|(_, entry)| entry.job.check.passive().is_some());
            let watched = watched.map(|(name, entry)| (name.1, &mut entry.health));
            let turned = watch.look(watched.collect(), now, SystemTime::now(), |server| {
                counted(service, server)
            });
            for Turned { server, state, why } in &turned {
                tell(service, server, *state, why);
            }
            if !turned.is_empty() {
                changed.push(*service);
            }
        }
        changed
    }

    /// The real servers that need attention: that they are down, or cannot be checked, and why.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = (ServiceKey, ServerKey, String)> {
        let entries = self.entries.iter();
        entries.filter_map(|(&(service, server), entry)| Some((service, server, complaint(entry)?)))
    }

    /// The host that the checks leave from.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The real servers that are asked for a virtual address.
    pub(crate) fn steered(&self) -> impl Iterator<Item = IpAddr> {
        self.steered.keys().copied()
    }

    /// Every check with its last result.
    pub(crate) fn statuses(&self) -> Vec<CheckStatus> {
        let statuses = self.entries.iter().map(|(&(service, server), entry)| {
            let Entry { job, health, .. } = entry;
            CheckStatus {
                service,
                server,
                probe: job.check.probe.name().to_owned(),
                target: job.check.target,
                asked: (job.target.as_ref().ok())
                    .filter(|_| job.check.passive().is_none())
                    .map(|target| target.asked),
                state: health.state,
                since: millis(health.since),
                in_a_row: health.in_a_row,
                last: health.last.clone(),
                fault: health.fault.clone(),
            }
        });
        statuses.collect()
    }
}

/// What a change makes of the checks, to be made true by [`Checks::adopt`] once the change is live.
#[derive(Debug)]
pub(crate) struct Next(BTreeMap<ServiceKey, BTreeMap<ServerKey, (Job, CheckState)>>);

impl Next {
    /// What follows for a real server that is down.
    pub(crate) fn down(&self, service: &ServiceKey, server: &ServerKey) -> Option<OnFailure> {
        let (job, state) = self.0.get(service)?.get(server)?;
        (*state == CheckState::Down).then_some(job.check.on_failure)
    }
}

/// Says that a real server has changed its state.
fn tell(service: &ServiceKey, server: &ServerKey, state: CheckState, why: &str) {
    match state {
        CheckState::Up => info!("real server {server} of service {service} is up: {why}"),
        CheckState::Down => warn!("real server {server} of service {service} is down: {why}"),
    }
}

fn complaint(entry: &Entry) -> Option<String> {
    let Health {
        state, last, fault, ..
    } = &entry.health;
    match (state, fault, last) {
        (CheckState::Up, None, _) => None,
        (CheckState::Up, Some(fault), _) => Some(format!("cannot be checked, and counts as up: {fault}")),
        (CheckState::Down, Some(fault), _) => Some(format!("cannot be checked, and counts as down: {fault}")),
        (CheckState::Down, None, None) if entry.job.check.passive().is_some() => {
            Some("counts as down, as before, until it is tried again".to_owned())
        }
        (CheckState::Down, None, Some(last)) => Some(format!("is down: {}", last.why)),
        (CheckState::Down, None, None) => Some("counts as down until its first check".to_owned()),
    }
}

/// What a real server counts as before the first result: as what the scheduler takes it for, where that is known; so
/// a new check takes nobody out of service, and a new agent brings nobody back who was down. `weight` is the one that
/// the scheduler goes by, where it goes by any.
fn first_state(initial: InitialState, configured: u32, weight: Option<u32>) -> CheckState {
    match (weight, initial) {
        (Some(1..), _) => CheckState::Up,
        (Some(0), _) if configured > 0 => CheckState::Down,
        (_, InitialState::Up) => CheckState::Up,
        (_, InitialState::Down) => CheckState::Down,
    }
}
