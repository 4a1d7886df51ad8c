//! What the agent owns: the desired state, the program's tables, and what is waiting to be carried over.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle};
use tracing::{error, info, warn};

use super::{Config, Request};
use crate::{
    api::types::{
        ApiError, Change, Connection, ErrorCode, Protocol, Server, ServerKey, ServerSpec, ServerState,
        Service, ServiceKey, Stats, Status,
    },
    dataplane::{
        self, Dataplane,
        compile::{Compiler, Way},
        rows,
    },
    journal::Journal,
    model::{Model, ServiceEntry},
    neighbour::{Event, Neighbours, Resolution},
};

/// How long the neighbours of the restored state are waited for before the first compilation.
const FIRST_RESOLUTION: Duration = Duration::from_millis(500);

type Answer = oneshot::Sender<Result<(), ApiError>>;

pub(crate) struct State {
    dataplane: Dataplane,
    compiler: Compiler,
    model: Model,
    journal: Journal,
    neighbours: Arc<Neighbours>,
    config: Config,
    /// What was wrong when the agent started.
    warnings: Vec<String>,
    /// Changes that wait for the last one to settle.
    waiting: Vec<(Vec<Change>, Answer)>,
    /// Services to be compiled anew for other reasons: a server came or went.
    stale: BTreeSet<ServiceKey>,
    /// The wait for the last packet that saw the configuration before.
    grace: Option<JoinHandle<std::io::Result<()>>>,
    /// Servers that got nothing new when the agent before this one ended, until more is known.
    held_back: HashSet<IpAddr>,
    /// What was last heard of each server.
    usable: BTreeMap<IpAddr, bool>,
    connections: u64,
}

impl State {
    pub(super) fn new(
        dataplane: Dataplane,
        journal: Journal,
        model: Model,
        neighbours: Arc<Neighbours>,
        config: Config,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            compiler: dataplane.compiler(),
            dataplane,
            model,
            journal,
            neighbours,
            config,
            warnings,
            waiting: Vec::new(),
            stale: BTreeSet::new(),
            grace: None,
            held_back: HashSet::new(),
            usable: BTreeMap::new(),
            connections: 0,
        }
    }

    /// Brings the maps to what the journal says, whatever an agent before has left in them.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let servers = servers(&self.model);
        for (service, entry) in self.model.services() {
            for server in &entry.servers {
                if self.compiler.effective_weight(service, &server.key) == Some(0) && server.weight > 0 {
                    self.held_back.insert(server.key.address);
                }
            }
        }
        for &address in &servers {
            self.neighbours.watch(address).await;
        }
        let known = servers
            .iter()
            .map(|&address| self.neighbours.resolve(address, FIRST_RESOLUTION));
        futures_util::future::join_all(known).await;
        self.stale = self.compiler.services();
        self.stale.extend(self.model.services().keys().copied());
        self.carry_out().await;
        Ok(())
    }

    /// Takes a request: answers it, or keeps a change until [`State::carry_out`]. Breaks where the program
    /// was taken off: then there is nothing left to do.
    pub(super) fn take(&mut self, request: Request) -> ControlFlow<()> {
        match request {
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Services(answer) => {
                let _ = answer.send(self.services());
            }
            Request::Connections(answer) => {
                let _ = answer.send(self.list());
            }
            Request::Change(changes, answer) => self.waiting.push((changes, answer)),
            Request::Unload(answer) => {
                let result = self.unload();
                let is_done = result.is_ok();
                let _ = answer.send(result);
                if is_done {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes the program off and removes its pins.
    fn unload(&mut self) -> Result<(), ApiError> {
        self.dataplane
            .unload()
            .map_err(|error| ApiError::new(ErrorCode::Internal, format!("cannot unload: {error:#}")))
    }

    /// Ends when the last change has settled; never, where none is on its way.
    pub(super) async fn settled(&mut self) {
        let Some(grace) = &mut self.grace else {
            return std::future::pending().await;
        };
        let result = grace.await;
        self.grace = None;
        match result {
            Ok(Ok(())) => self.compiler.settle(),
            // Without membarrier there is no telling when the last packet has left; in a second it has.
            Ok(Err(error)) => {
                warn!("membarrier: {error}: waiting a second after each change instead");
                self.grace = Some(tokio::task::spawn_blocking(a_second));
            }
            Err(error) => {
                error!("the wait for a change to settle was broken off: {error}");
                self.grace = Some(tokio::task::spawn_blocking(a_second));
            }
        }
    }

    /// Carries out every change that waits, in one step, unless the last one has not settled.
    pub(super) async fn carry_out(&mut self) {
        if self.grace.is_some() || self.waiting.is_empty() && self.stale.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut wanted = self.model.clone();
        let mut touched = std::mem::take(&mut self.stale);
        let mut accepted = Vec::new();
        let mut answers = Vec::new();
        for (changes, answer) in waiting {
            let also = wanted.touched(&changes);
            match wanted.apply(&changes) {
                Ok(()) => {
                    touched.extend(also);
                    accepted.push(changes);
                    answers.push(answer);
                }
                Err(error) => {
                    let _ = answer.send(Err(error));
                }
            }
        }
        let result = self.make_live(wanted, &touched, &accepted);
        let retry = accepted.len() > 1 && result.is_err();
        if retry {
            // One of them is too much: each by itself, then.
            for (changes, answer) in accepted.into_iter().zip(answers) {
                let mut wanted = self.model.clone();
                let touched = wanted.touched(&changes);
                let result = wanted.apply(&changes).and_then(|()| {
                    self.settle_now();
                    self.make_live(wanted, &touched, &[changes])
                });
                let _ = answer.send(result);
            }
        } else {
            if let Err(error) = &result {
                error!("a change was not made: {error}");
                if accepted.is_empty() {
                    // Nobody asked for it, so nobody asks again.
                    self.stale.extend(touched);
                }
            }
            for answer in answers {
                let _ = answer.send(result.clone());
            }
        }
        if self.compiler.is_unsettled() {
            self.grace = Some(tokio::task::spawn_blocking(dataplane::grace));
        }
        self.follow_servers().await;
    }

    fn settle_now(&mut self) {
        if self.compiler.is_unsettled() {
            let _ = dataplane::grace().or_else(|_| a_second());
            self.compiler.settle();
        }
    }

    /// Plans, keeps and makes live: in this order, so that what is live is always what is kept, and what
    /// is kept has always fitted.
    fn make_live(
        &mut self,
        wanted: Model,
        touched: &BTreeSet<ServiceKey>,
        accepted: &[Vec<Change>],
    ) -> Result<(), ApiError> {
        let addresses: BTreeSet<_> = touched
            .iter()
            .filter_map(|key| wanted.services().get(key))
            .flat_map(|entry| entry.servers.iter().map(|server| server.key.address))
            .collect();
        for address in addresses {
            self.note_way(address);
        }
        let Self {
            compiler,
            neighbours,
            held_back,
            ..
        } = self;
        let changes: Vec<_> = accepted.iter().flatten().cloned().collect();
        let plan = compiler.plan(&wanted, touched, &Model::told(&changes), |_, server| {
            if is_usable(
                neighbours.resolution(server.key.address).as_ref(),
                held_back,
                server.key.address,
            ) {
                server.weight
            } else {
                0
            }
        })?;
        if let Err(cause) = self.journal.append(&changes) {
            self.compiler.discard(plan);
            return Err(ApiError::new(
                ErrorCode::Internal,
                format!(
                    "the change could not be written to {}, so it was not made: {cause}",
                    self.config.state_dir.display()
                ),
            ));
        }
        self.dataplane.set_timeouts(wanted.timeouts());
        self.compiler.apply(plan);
        self.model = wanted;
        Ok(())
    }

    /// Brings what is known of the way to a server into the tables.
    fn note_way(&mut self, address: IpAddr) {
        if let Some(Resolution::Ready {
            mac,
            source_mac,
            if_index,
            ..
        }) = self.neighbours.resolution(address)
        {
            let way = Way {
                mac,
                source_mac,
                if_index,
            };
            if let Err(error) = self.dataplane.allow_redirect(if_index) {
                warn!("{address}: {error:#}");
            }
            self.compiler.set_way(address, Some(way));
        }
    }

    /// Watches the servers that there are, and no others.
    async fn follow_servers(&mut self) {
        let wanted = servers(&self.model);
        for &address in &wanted {
            if !self.usable.contains_key(&address) {
                self.neighbours.watch(address).await;
                let usable = is_usable(
                    self.neighbours.resolution(address).as_ref(),
                    &self.held_back,
                    address,
                );
                self.usable.insert(address, usable);
            }
        }
        let gone: Vec<_> = self
            .usable
            .keys()
            .copied()
            .filter(|address| !wanted.contains(address))
            .collect();
        for address in gone {
            self.usable.remove(&address);
            self.neighbours.forget(address).await;
        }
    }

    /// Takes in what the kernel says of neighbours, addresses and interfaces.
    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::Resolution { address, resolution } => self.hear_resolution(address, &resolution),
            Event::LocalAddresses(addresses) => self.compiler.set_local(addresses),
            Event::Link { if_index, link } => {
                let Some(link) = link else {
                    if self.dataplane.detached(if_index) {
                        warn!("interface {if_index} is gone: no packet comes from it any more");
                    }
                    return;
                };
                if !self.dataplane.is_attached(if_index) && self.config.interfaces.contains(&link.name) {
                    match self.dataplane.attach(&link.name, self.config.xdp_mode.forced()) {
                        Ok(attached) => info!("{} is back: attached in {} mode", link.name, attached.mode),
                        Err(error) => error!("{} is back, but: {error:#}", link.name),
                    }
                }
                if self.dataplane.is_attached(if_index) {
                    self.dataplane.set_macs(if_index, link.mac.as_slice());
                }
            }
        }
    }

    fn hear_resolution(&mut self, address: IpAddr, resolution: &Resolution) {
        if !matches!(resolution, Resolution::Resolving) {
            self.held_back.remove(&address);
        }
        self.note_way(address);
        let usable = is_usable(Some(resolution), &self.held_back, address);
        let Some(before) = self.usable.get_mut(&address) else {
            return;
        };
        if *before == usable {
            return;
        }
        *before = usable;
        match resolution {
            Resolution::Ready { interface, .. } => {
                info!("real server {address} answers on {interface}: it gets new connections");
            }
            Resolution::NotOnLink(why) => {
                warn!("real server {address} cannot work with direct routing: {why}");
            }
            Resolution::Unreachable | Resolution::Resolving => {
                warn!("real server {address} does not answer ARP: it gets no new connections");
            }
        }
        let concerned = (self.model.services().iter())
            .filter(|(_, entry)| entry.servers.iter().any(|server| server.key.address == address))
            .map(|(key, _)| *key);
        self.stale.extend(concerned);
    }

    /// The second's work: expired entries, ids that nothing names any more, the journal's size.
    pub(super) async fn tick(&mut self) {
        if let Err(error) = self.dataplane.tick() {
            error!("the kernel's clock cannot be read: {error:#}");
            return;
        }
        let tables = Arc::clone(self.dataplane.tables());
        match tokio::task::spawn_blocking(move || tables.sweep()).await {
            Ok(connections) => self.connections = connections,
            Err(error) => error!("the sweep was broken off: {error}"),
        }
        if !self.compiler.is_unsettled()
            && let Err(error) = self.dataplane.reap(&mut self.compiler)
        {
            error!("a removed destination's counters cannot be cleared: {error:#}");
        }
        if self.journal.needs_compaction()
            && let Err(error) = self.journal.compact(&self.model)
        {
            error!("the state file cannot be written anew: {error}");
        }
    }

    fn services(&self) -> Vec<Service> {
        self.model
            .services()
            .values()
            .map(|entry| self.service(entry))
            .collect()
    }

    fn service(&self, entry: &ServiceEntry) -> Service {
        let key = &entry.spec.key;
        let servers: Vec<_> = entry
            .servers
            .iter()
            .map(|server| self.server(key, server))
            .collect();
        let leftovers = self
            .compiler
            .leftovers(key)
            .into_iter()
            .map(|id| self.dataplane.stats(id));
        let parts = servers.iter().map(|server| server.stats).chain(leftovers);
        Service {
            spec: entry.spec.clone(),
            stats: parts.fold(self.compiler.retired(key), sum),
            servers,
        }
    }

    fn server(&self, service: &ServiceKey, spec: &ServerSpec) -> Server {
        let id = self.compiler.destination(service, &spec.key);
        let (active, inactive) = id.map(|id| self.compiler.counts(id)).unwrap_or_default();
        let (state, mac, interface) = match self.neighbours.resolution(spec.key.address) {
            Some(Resolution::Ready { mac, interface, .. }) => (
                ServerState::Ready,
                Some(dataplane::mac_text(mac)),
                Some(interface),
            ),
            Some(Resolution::Unreachable) => (ServerState::Unreachable, None, None),
            Some(Resolution::NotOnLink(_)) => (ServerState::NotOnLink, None, None),
            Some(Resolution::Resolving) | None => (ServerState::Resolving, None, None),
        };
        Server {
            spec: spec.clone(),
            state,
            mac,
            interface,
            active,
            inactive,
            persistent: id.map_or(0, |id| self.compiler.templates(id)),
            effective_weight: self.compiler.effective_weight(service, &spec.key).unwrap_or(0),
            stats: id.map(|id| self.dataplane.stats(id)).unwrap_or_default(),
        }
    }

    fn list(&mut self) -> Vec<Connection> {
        if let Err(error) = self.dataplane.tick() {
            error!("the kernel's clock cannot be read: {error:#}");
        }
        self.dataplane
            .tables()
            .connections()
            .filter_map(|listed| {
                let protocol = match listed.flow.protocol() {
                    lvs_xdp_common::packet::IpProto::UDP => Protocol::Udp,
                    _ => Protocol::Tcp,
                };
                let ServerKey { address, port } = self.compiler.server(listed.entry.destination())?;
                Some(Connection {
                    protocol,
                    expires: u64::from(listed.expires),
                    state: listed.entry.state().name().to_owned(),
                    client: SocketAddr::new(rows::ip(listed.flow.client), listed.flow.client_port()),
                    virtual_address: SocketAddr::new(rows::ip(listed.flow.address), listed.flow.port()),
                    destination: SocketAddr::new(address, port),
                })
            })
            .collect()
    }

    fn status(&self) -> Status {
        let capacity = self.dataplane.capacity();
        let generic = self.dataplane.attached().filter_map(|attached| {
            let reason = attached.reason.as_ref()?;
            Some(format!(
                "{} is in generic mode, which is slower: {reason}",
                attached.name
            ))
        });
        let servers = servers(&self.model).into_iter().filter_map(|address| {
            let why = match self.neighbours.resolution(address)? {
                Resolution::Unreachable => "it does not answer ARP: it gets no new connections".to_owned(),
                Resolution::NotOnLink(why) => format!("direct routing cannot reach it: {why}"),
                Resolution::Resolving | Resolution::Ready { .. } => return None,
            };
            Some(format!("real server {address}: {why}"))
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            abi: dataplane::LAYOUT,
            program_id: self.dataplane.program_id().unwrap_or(0),
            interfaces: self.dataplane.interfaces(),
            connections: self.connections,
            connection_capacity: u64::from(capacity.connections),
            timeouts: self.model.timeouts(),
            settings: self.model.settings(),
            services: self.model.services().len() as u64,
            servers: self
                .model
                .services()
                .values()
                .map(|entry| entry.servers.len() as u64)
                .sum(),
            reasons: self.dataplane.reasons(),
            warnings: self
                .warnings
                .iter()
                .cloned()
                .chain(generic)
                .chain(servers)
                .collect(),
        }
    }
}

fn a_second() -> std::io::Result<()> {
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

fn servers(model: &Model) -> BTreeSet<IpAddr> {
    let entries = model.services().values();
    entries
        .flat_map(|entry| entry.servers.iter().map(|server| server.key.address))
        .collect()
}

/// Whether a server gets new connections. While it is asked for the first time it does, as with IPVS.
fn is_usable(resolution: Option<&Resolution>, held_back: &HashSet<IpAddr>, address: IpAddr) -> bool {
    match resolution {
        Some(Resolution::Ready { .. }) => true,
        Some(Resolution::Unreachable | Resolution::NotOnLink(_)) => false,
        Some(Resolution::Resolving) | None => !held_back.contains(&address),
    }
}

fn sum(a: Stats, b: Stats) -> Stats {
    Stats {
        connections: a.connections + b.connections,
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}
