//! What the agent owns: the desired state, the program's tables, and what is waiting to be carried over.

mod announcements;
mod checks;
mod configure;
mod counters;
mod drain;
mod interfaces;
mod live;
mod report;
mod servers;
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
use self::configure::Task;
use self::counters::Estimators;
use super::{Author, Config, Request, hops::Hops, slow_start::SlowStart, uses::Uses, vips::Vips};
use crate::{
    api::types::{ApiError, ErrorCode, Plan, ServerKey, ServiceKey},
    checks::Checks,
    crash,
    dataplane::{
        self, Dataplane,
        compile::{Compiler, Way},
    },
    journal::Journal,
    model::Model,
    neighbour::{Event, Neighbours, Resolution},
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
    uses: Uses,
    vips: Vips,
    hops: Hops,
    /// Addresses that have begun or ended to be of use since [`State::follow_servers`], as far as anybody knows.
    unfollowed: BTreeSet<IpAddr>,
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
        let compiler = dataplane.compiler()?;
        let walked = Uses::of(&model, BTreeSet::new());
        let own = walked
            .addresses()
            .filter(|address| compiler.way(*address) == Some(Way::Local));
        let uses = Uses::of(&model, own.collect());
        Ok(Self {
            unfollowed: uses.addresses().collect(),
            uses,
            vips: Vips::of(&model, &BTreeSet::new()),
            hops: Hops::default(),
            compiler,
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
        self.find_servers().await;
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
            Request::Configure(request) => {
                crash::begin(crash::Work::Change);
                self.configure(request);
            }
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
            Ok(Ok(())) => {
                self.compiler.settle();
                crash::end();
            }
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
        if self.uses.take_new_companions() || std::mem::take(&mut self.are_peers_stale) {
            self.follow_peers();
        }
        if std::mem::take(&mut self.are_vips_stale) {
            let all = self.vips.addresses().chain(self.announced()).collect();
            self.follow_announced(&all);
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

    /// Takes in what the kernel says of neighbours, addresses and interfaces.
    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::Resolution { address, resolution } => self.hear_resolution(address, &resolution),
            Event::Path { address, .. } => {
                self.is_steering_stale = true;
                self.follow_hop(address);
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

    /// The second's work: expired entries, checks that ask nobody, drained servers, slow starts, ids that nothing names
    /// any more, the journal's size.
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
        self.judge_watched();
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

/// Whether a server gets new connections. While it is asked for the first time it does, as with IPVS.
fn is_usable(resolution: Option<&Resolution>, held_back: &HashSet<IpAddr>, address: IpAddr) -> bool {
    match resolution {
        Some(Resolution::Ready { .. } | Resolution::Local) => true,
        Some(Resolution::Unreachable | Resolution::NotOnLink(_)) => false,
        Some(Resolution::Resolving) | None => !held_back.contains(&address),
    }
}
