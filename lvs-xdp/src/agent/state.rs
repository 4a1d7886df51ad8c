//! What the agent owns: the desired state, the program's tables, and what is waiting to be carried over.

mod announcements;
mod checks;
mod configure;
mod counters;
mod drain;
mod interfaces;
mod report;
mod tunnels;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    net::IpAddr,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::JoinHandle};
use tracing::{error, info, warn};

use self::announcements::Announcements;
use self::configure::{Made, Task};
use self::counters::Estimators;
use self::tunnels::{reach, tunnelled};
use super::{
    Author, Config, Request,
    effective::{Effective, Standing},
    slow_start::SlowStart,
};
use crate::{
    api::types::{ApiError, ErrorCode, Plan, ServerKey, ServerSpec, ServiceKey},
    checks::Checks,
    dataplane::{self, Dataplane, compile::Compiler},
    journal::{Journal, Transaction},
    model::Model,
    neighbour::{self, Event, Neighbours, Resolution},
};

/// How long the neighbours of the restored state are waited for before the first compilation.
const FIRST_RESOLUTION: Duration = Duration::from_millis(500);

/// Changes that are to be made together, or not at all.
struct Waiting {
    task: Task,
    author: Author,
    origin: Origin,
}

/// Who wants a change.
enum Origin {
    /// A client, which waits for the answer.
    Client(oneshot::Sender<Result<(), ApiError>>),
    /// The same, of a whole table.
    Table(oneshot::Sender<Result<Plan, ApiError>>),
    /// The command line's configuration file, by its name.
    Start(String),
    /// The agent itself: a drained server is to be removed. What is logged once it is.
    Drain(String),
}

/// Faults of what the agent does by itself, again and again: each is logged once, until it changes.
#[derive(Default)]
struct Faults(BTreeMap<Cow<'static, str>, String>);

impl Faults {
    /// Notes how something went, which is named as what did not happen.
    fn note<T>(&mut self, what: impl Into<Cow<'static, str>>, result: Result<T, impl fmt::Display>) {
        let what = what.into();
        let Err(error) = result else {
            self.0.remove(&what);
            return;
        };
        let error = format!("{error:#}");
        if self.0.get(&what) != Some(&error) {
            error!("{what}: {error}");
            self.0.insert(what, error);
        }
    }
}

/// What [`Faults`] calls a service whose list cannot be brought to what is known of its servers.
const STALE: &str = "a service was not brought up to date";
/// What it calls a drained server that stays.
const DRAINED: &str = "a drained real server was not removed";

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
    waiting: Vec<Waiting>,
    /// Services to be compiled anew for other reasons: a server came or went, or its slow start goes on.
    stale: BTreeSet<ServiceKey>,
    checks: Checks,
    slow_start: SlowStart,
    estimators: Estimators,
    faults: Faults,
    /// The wait for the last packet that saw the configuration before.
    grace: Option<JoinHandle<std::io::Result<()>>>,
    /// Servers that got nothing new when the agent before this one ended, until more is known.
    held_back: HashSet<IpAddr>,
    /// Servers that the agent before this one had left out of the list, until the first compilation.
    left_out: HashSet<(ServiceKey, ServerKey)>,
    /// The services whose fallback takes all new connections.
    fallen_back: BTreeSet<ServiceKey>,
    /// What was last heard of each address that is watched: servers', and routers' on the way to tunnels' ends.
    usable: BTreeMap<IpAddr, bool>,
    /// The same of servers behind tunnels.
    tunnels_usable: BTreeMap<IpAddr, bool>,
    connections: u64,
    /// Names of the interfaces to attach to, as they are called now.
    interfaces: BTreeSet<String>,
    /// The way to a server has changed since [`State::follow_peers`].
    are_peers_stale: bool,
    /// What is checked, or the way there, has changed since [`State::follow_steered`].
    is_steering_stale: bool,
    /// The host's own addresses have changed since [`State::follow_vips`].
    are_vips_stale: bool,
    announcements: Announcements,
}

impl State {
    pub(super) fn new(
        dataplane: Dataplane,
        checks: Checks,
        journal: Journal,
        model: Model,
        neighbours: Arc<Neighbours>,
        config: Config,
        warnings: Vec<String>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            compiler: dataplane.compiler()?,
            dataplane,
            model,
            journal,
            neighbours,
            interfaces: config.interfaces.iter().cloned().collect(),
            config,
            warnings,
            waiting: Vec::new(),
            stale: BTreeSet::new(),
            checks,
            slow_start: SlowStart::default(),
            estimators: Estimators::default(),
            faults: Faults::default(),
            grace: None,
            held_back: HashSet::new(),
            left_out: HashSet::new(),
            fallen_back: BTreeSet::new(),
            usable: BTreeMap::new(),
            tunnels_usable: BTreeMap::new(),
            connections: 0,
            are_peers_stale: true,
            is_steering_stale: true,
            are_vips_stale: true,
            announcements: Announcements::new()?,
        })
    }

    /// Brings the maps to what the journal says, whatever an agent before has left in them; or to another table, by
    /// its name, where one is given.
    pub(super) async fn start(&mut self, wanted: Option<(Model, String)>) -> anyhow::Result<()> {
        let servers = servers(&self.model);
        let known = self.compiler.services();
        for (service, entry) in self.model.services() {
            for server in &entry.servers {
                match self.compiler.effective_weight(service, &server.key) {
                    Some(0) if server.weight > 0 => drop(self.held_back.insert(server.key.address)),
                    None if known.contains(service) => drop(self.left_out.insert((*service, server.key))),
                    _ => {}
                }
            }
        }
        self.note_macs();
        self.adopt_announced();
        for &address in &servers {
            self.neighbours.watch(address).await;
        }
        let known = servers
            .iter()
            .map(|&address| self.neighbours.resolve(address, FIRST_RESOLUTION));
        futures_util::future::join_all(known).await;
        let routers = self.routers();
        let known = routers
            .iter()
            .map(|&address| self.neighbours.resolve(address, FIRST_RESOLUTION));
        futures_util::future::join_all(known).await;
        self.stale = self.compiler.services();
        self.stale.extend(self.model.services().keys().copied());
        if let Some((model, how)) = wanted {
            self.configure_at_start(model, how);
        }
        self.carry_out().await;
        self.left_out.clear();
        Ok(())
    }

    /// Takes a request: answers it, or keeps a change until [`State::carry_out`]. Breaks where the program
    /// was taken off: then there is nothing left to do.
    pub(super) fn take(&mut self, request: Request) -> ControlFlow<()> {
        match request {
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Services(service, answer) => {
                let _ = answer.send(self.services(service));
            }
            Request::Zero(service, answer) => {
                let _ = answer.send(self.zero(service));
            }
            Request::Checks(answer) => {
                let _ = answer.send(self.checks.statuses());
            }
            Request::Marks(answer) => {
                let _ = answer.send(Arc::clone(self.model.marks()));
            }
            Request::Announce(addresses, answer) => {
                let _ = answer.send(self.announce(&addresses));
            }
            Request::Tables(answer) => {
                if let Err(error) = self.dataplane.tick() {
                    error!("the kernel's clock cannot be read: {error:#}");
                }
                let _ = answer.send(Arc::clone(self.dataplane.tables()));
            }
            Request::Configuration(answer) => {
                let _ = answer.send(self.model.clone());
            }
            Request::Configure(request) => self.configure(request),
            Request::History(answer) => {
                let _ = answer.send(self.journal.history().cloned().collect());
            }
            Request::Change(changes, author, answer) => self.waiting.push(Waiting {
                task: Task::Changes(changes),
                author,
                origin: Origin::Client(answer),
            }),
            Request::Check(changes, answer) => {
                let _ = answer.send(self.model.clone().apply(&changes));
            }
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
        if std::mem::take(&mut self.are_peers_stale) {
            let peers = self.peers(&self.model);
            self.follow_peers(&peers);
        }
        if std::mem::take(&mut self.are_vips_stale) {
            self.follow_announced();
        }
        if std::mem::take(&mut self.is_steering_stale) {
            self.follow_steered();
        }
        if self.grace.is_some() || self.waiting.is_empty() && self.stale.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let stale = std::mem::take(&mut self.stale);
        let nothing = BTreeSet::new();
        match self.attempt(&stale, waiting) {
            Ok(()) => {}
            Err((error, refused)) if refused.len() + usize::from(!stale.is_empty()) == 1 => {
                self.give_up(&stale, refused, &error);
            }
            // Something of it is too much: each by itself, then.
            Err((_, refused)) => {
                if let Err((error, _)) = self.attempt(&stale, Vec::new()) {
                    self.give_up(&stale, Vec::new(), &error);
                }
                for one in refused {
                    self.settle_now();
                    if let Err((error, one)) = self.attempt(&nothing, vec![one]) {
                        self.give_up(&nothing, one, &error);
                    }
                }
            }
        }
        if self.compiler.is_unsettled() {
            self.grace = Some(tokio::task::spawn_blocking(dataplane::grace));
        }
        self.follow_servers().await;
    }

    /// Makes live in one step what waits, and brings stale services up to date. What makes no sense is
    /// refused at once, and hinders nothing else.
    ///
    /// # Errors
    ///
    /// Why nothing of the rest was made, and the rest.
    fn attempt(
        &mut self,
        stale: &BTreeSet<ServiceKey>,
        waiting: Vec<Waiting>,
    ) -> Result<(), (ApiError, Vec<Waiting>)> {
        let mut wanted = self.model.clone();
        let mut touched = stale.clone();
        let mut accepted = Vec::new();
        for request in waiting {
            let changes = request.task.changes(&wanted);
            let also = wanted.touched(&changes);
            // Of a table of thousands of services most changes touch one.
            let before = wanted.part(&also);
            match wanted.apply(&changes) {
                Ok(()) => {
                    let made = self.made(&request, changes, &before, &wanted.part(&also));
                    touched.extend(also);
                    accepted.push((request, made));
                }
                Err(error) => self.answer(request.origin, Err(error)),
            }
        }
        if accepted.is_empty() && stale.is_empty() {
            return Ok(());
        }
        let (requests, made): (Vec<_>, Vec<_>) = accepted.into_iter().unzip();
        let (transactions, plans): (Vec<_>, Vec<_>) = (made
            .into_iter()
            .map(|Made { transaction, plan }| (transaction, plan)))
        .unzip();
        if let Err(error) = self.make_live(wanted, &touched, transactions) {
            return Err((error, requests));
        }
        if !stale.is_empty() {
            self.faults.note(STALE, Ok::<_, ApiError>(()));
        }
        for (request, plan) in requests.into_iter().zip(plans) {
            self.answer(request.origin, Ok(plan));
        }
        Ok(())
    }

    /// Says that something was not made. Stale services stay so: nobody has asked, so nobody asks again.
    fn give_up(&mut self, stale: &BTreeSet<ServiceKey>, refused: Vec<Waiting>, error: &ApiError) {
        if !stale.is_empty() {
            self.faults.note(STALE, Err::<(), _>(error));
            self.stale.extend(stale);
        }
        for request in refused {
            if let Origin::Client(_) | Origin::Table(_) = request.origin {
                error!("a change was not made: {error}");
            }
            self.answer(request.origin, Err(error.clone()));
        }
    }

    fn answer(&mut self, origin: Origin, result: Result<Plan, ApiError>) {
        match origin {
            Origin::Client(answer) => {
                let _ = answer.send(result.map(drop));
            }
            Origin::Table(answer) => {
                let _ = answer.send(result);
            }
            Origin::Start(how) => self.tell_of_start(&how, result),
            Origin::Drain(done) => {
                match &result {
                    Ok(_) => info!("{done}"),
                    // Somebody else was faster.
                    Err(error)
                        if matches!(error.code, ErrorCode::NoSuchServer | ErrorCode::ServiceNotDefined) =>
                    {
                        return;
                    }
                    Err(_) => {}
                }
                self.faults.note(DRAINED, result);
            }
        }
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
        transactions: Vec<Transaction>,
    ) -> Result<(), ApiError> {
        let changes = transactions.iter().flat_map(|made| &made.changes);
        let told = Model::told(changes);
        let addresses: BTreeSet<_> = touched
            .iter()
            .filter_map(|key| wanted.services().get(key))
            .flat_map(|entry| entry.destinations().map(|server| server.key.address))
            .collect();
        for address in addresses {
            self.note_way(address);
        }
        for address in tunnelled(&wanted).into_keys() {
            self.note_tunnel(address);
        }
        let Self {
            compiler,
            neighbours,
            held_back,
            slow_start,
            checks,
            left_out,
            ..
        } = self;
        let weight = |service: &ServiceKey, server: &ServerKey| {
            let is_left_out = left_out.contains(&(*service, *server));
            compiler
                .effective_weight(service, server)
                .or(is_left_out.then_some(0))
        };
        let checked = checks.next(&wanted, touched, weight);
        let effective = Effective::new(&wanted, touched, |entry, server| {
            if let Some(follows) = checked.down(&entry.spec.key, &server.key) {
                Standing::Down(follows)
            } else if is_usable(reach(neighbours, server).as_ref(), held_back, server.key.address) {
                Standing::Usable
            } else {
                Standing::Unreachable
            }
        });
        let is_usable = |service: &ServiceKey, server: &ServerSpec| effective.is_usable(service, &server.key);
        let risen = slow_start.next(&wanted, touched, is_usable, Instant::now());
        let seen = effective.seen(&wanted);
        let plan = compiler.plan(&seen, touched, &told, |service, server| {
            if is_usable(service, server) {
                risen.weight(service, server)
            } else {
                0
            }
        })?;
        if let Err(cause) = self.journal.append(transactions) {
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
        // Before the first packet could go round in circles.
        let peers = self.peers(&wanted);
        self.follow_peers(&peers);
        // The new ones before their services, the old ones until these are gone.
        let mut vips = self.vips(&self.model);
        vips.extend(self.vips(&wanted));
        self.checks.host().set_vips(vips.keys().copied().collect());
        self.follow_vips(vips);
        self.checks.adopt(checked);
        self.follow_steered();
        self.compiler.apply(plan);
        self.slow_start.adopt(risen);
        self.note_fallen_back(&wanted, effective.fallen_back());
        self.model = wanted;
        self.follow_announced();
        Ok(())
    }

    /// Watches the servers that there are, and no others.
    async fn follow_servers(&mut self) {
        let mut wanted = servers(&self.model);
        wanted.extend(self.routers());
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
            Event::Path { address, .. } => {
                self.is_steering_stale = true;
                self.hear_hop(address);
            }
            Event::LocalAddresses(addresses) => {
                self.compiler.set_local(addresses);
                self.are_vips_stale = true;
            }
            Event::Link { if_index, link } => {
                self.is_steering_stale = true;
                self.hear_link(if_index, link);
            }
        }
    }

    fn hear_resolution(&mut self, address: IpAddr, resolution: &Resolution) {
        if !matches!(resolution, Resolution::Resolving) {
            self.held_back.remove(&address);
        }
        self.note_way(address);
        self.hear_hop(address);
        let usable = is_usable(Some(resolution), &self.held_back, address);
        let Some(before) = self.usable.get_mut(&address) else {
            return;
        };
        if *before == usable {
            return;
        }
        *before = usable;
        let concerned =
            self.services_with(|server| server.key.address == address && server.method.tunnel().is_none());
        if concerned.is_empty() {
            return;
        }
        match resolution {
            Resolution::Ready { interface, .. } => {
                info!("real server {address} answers on {interface}: it gets new connections");
            }
            Resolution::Local => info!("real server {address} is this director: it gets new connections"),
            Resolution::NotOnLink(why) => {
                warn!("real server {address} cannot work with direct routing: {why}");
            }
            Resolution::Unreachable | Resolution::Resolving => {
                let asked_by = neighbour::protocol(address);
                warn!("real server {address} does not answer {asked_by}: it gets no new connections");
            }
        }
        self.stale.extend(concerned);
    }

    /// The second's work: expired entries, drained servers, slow starts, ids that nothing names any more, the
    /// journal's size.
    pub(super) async fn tick(&mut self) {
        let clock = self.dataplane.tick();
        let is_known = clock.is_ok();
        self.faults.note("the kernel's clock cannot be read", clock);
        if !is_known {
            return;
        }
        let tables = Arc::clone(self.dataplane.tables());
        match tokio::task::spawn_blocking(move || tables.sweep()).await {
            Ok(connections) => self.connections = connections,
            Err(error) => error!("the sweep was broken off: {error}"),
        }
        self.estimate();
        self.attach_missing();
        self.repeat_announcements();
        self.stale.extend(self.slow_start.due(Instant::now()));
        if !self.compiler.is_unsettled() {
            self.end_drains();
            let reaped = self.dataplane.reap(&mut self.compiler);
            let what = "a removed destination's counters cannot be cleared";
            self.faults.note(what, reaped);
        }
        if self.journal.needs_compaction() {
            let compacted = self.journal.compact(&self.model);
            let what = "the state file cannot be written anew";
            self.faults.note(what, compacted);
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
        .flat_map(|entry| entry.destinations().map(|server| server.key.address))
        .collect()
}

/// Whether a server gets new connections. While it is asked for the first time it does, as with IPVS.
fn is_usable(resolution: Option<&Resolution>, held_back: &HashSet<IpAddr>, address: IpAddr) -> bool {
    match resolution {
        Some(Resolution::Ready { .. } | Resolution::Local) => true,
        Some(Resolution::Unreachable | Resolution::NotOnLink(_)) => false,
        Some(Resolution::Resolving) | None => !held_back.contains(&address),
    }
}
