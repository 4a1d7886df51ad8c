//! The agent: loads the program, and from then on carries what is wanted and what is seen to its maps.
//!
//! One task owns everything and takes one thing at a time from a queue: requests, news of neighbours,
//! the second's tick. [`state`] is what it owns; [`crate::api::server`] puts requests into the queue.
//! [`reload`] reads the configuration file. [`crate::nic`] says what the program cannot be attached to, and why.
//! [`effective`] is the one place that says which servers get new connections; [`slow_start`] is the rule by which they
//! rise to their weight, [`rates`] that by which rates follow counters, [`sampling`] which are read. [`uses`], [`vips`] and [`hops`] know of the live
//! model what has to be found by address. [`privileges`] says what it may do once it is set
//! up. [`connections`] lists and removes connection entries beside the task: their tables may change under whoever reads
//! them.
//! Forwarding needs none of it: an agent may be killed at any moment, and the next one goes on.

pub(crate) mod connections;
mod effective;
mod hops;
mod privileges;
mod rates;
mod reload;
mod sampling;
mod slow_start;
mod state;
mod uses;
mod vips;

use std::{
    io::{self, IsTerminal as _},
    net::IpAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use ipnet::IpNet;
use nix::unistd::{Gid, Group};
use tokio::{
    io::unix::AsyncFd,
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::{Level, info, warn};

pub(crate) use self::state::State;
use crate::{
    api::{
        access::Remote,
        listener,
        remote::Gate,
        server,
        types::{ApiError, Change, CheckStatus, MarkRule, Plan, Service, ServiceKey, Status, Version},
    },
    checks::{Checks, Host, Runner},
    crash,
    dataplane::{self, Dataplane, Mode, Options, Tables},
    journal::{Journal, Opened},
    model::Model,
    neighbour::{Links, Neighbours},
};

/// How the program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// In the driver where it can, else above it, with the reason as a warning.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Above the driver, whatever the driver can do.
    Generic,
}

impl XdpMode {
    fn forced(self) -> Option<Mode> {
        match self {
            Self::Auto => None,
            Self::Native => Some(Mode::Native),
            Self::Generic => Some(Mode::Generic),
        }
    }
}

/// What the agent is told by the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Names of the interfaces to attach to, at least one, none twice.
    pub interfaces: Vec<String>,
    /// Where it listens for clients.
    pub socket: PathBuf,
    /// The socket's mode: who may write to it may configure the director.
    pub socket_mode: u32,
    /// The socket's group, by name or number; the agent's own where there is none.
    pub socket_group: Option<String>,
    /// Where it listens besides, and for whom.
    pub remote: Remote,
    /// The directory of the desired state.
    pub state_dir: PathBuf,
    /// The directory, on a BPF file system, of program and maps.
    pub pin_dir: PathBuf,
    /// The configuration file: the table at the start, and at SIGHUP.
    pub config: Option<PathBuf>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Capacity of the connection table in entries: a power of two.
    pub connections: u32,
    /// Capacity in virtual services.
    pub services: u32,
    /// Capacity in real servers, over all services.
    pub destinations: u32,
    /// Whether the program answers ARP requests and neighbour solicitations for virtual addresses that the host has not.
    pub announce: bool,
    /// Whether it does so only for those that have a usable real server.
    pub withdraw: bool,
    /// Where the outer source addresses of tunnels come from, at most one network for each family; of the others they
    /// are those of the routes. At most 16 bits of an address are a flow's own.
    pub tunnel_sources: Vec<IpNet>,
    /// Whether the program itself logs packets.
    pub log_packets: bool,
    /// The least important lines that are logged.
    pub log_level: Level,
}

/// What a client asks of the agent; each with the way back.
#[derive(Debug)]
pub(crate) enum Request {
    /// `GET /v1/status`
    Status(oneshot::Sender<Status>),
    /// `GET /v1/services`: one of them, or all.
    Services(
        Option<ServiceKey>,
        oneshot::Sender<Result<Vec<Service>, ApiError>>,
    ),
    /// `POST /v1/zero`: one service, or all.
    Zero(Option<ServiceKey>, oneshot::Sender<Result<(), ApiError>>),
    /// `GET /v1/checks`
    Checks(oneshot::Sender<Vec<CheckStatus>>),
    /// `GET /v1/marks`
    Marks(oneshot::Sender<Arc<Vec<MarkRule>>>),
    /// `GET` and `DELETE /v1/connections`: the tables, with their clock set.
    Tables(oneshot::Sender<Arc<Tables>>),
    /// `POST /v1/changes`
    Change(Vec<Change>, Author, oneshot::Sender<Result<(), ApiError>>),
    /// The same with `check`: what is wrong with them, and nothing else.
    Check(Vec<Change>, oneshot::Sender<Result<(), ApiError>>),
    /// `GET /v1/configuration`
    Configuration(oneshot::Sender<Model>),
    /// `PUT /v1/configuration`, `POST /v1/rollback`, and the configuration file at SIGHUP
    Configure(Configure),
    /// `GET /v1/history`
    History(oneshot::Sender<Vec<Version>>),
    /// `POST /v1/announce`: these addresses, or all; the answer is what was announced.
    Announce(Vec<IpAddr>, oneshot::Sender<Result<Vec<IpAddr>, ApiError>>),
    /// `POST /v1/unload`
    Unload(oneshot::Sender<Result<(), ApiError>>),
}

/// Who asks for a change; the agent itself where it has neither.
#[derive(Debug, Clone, Default)]
pub(crate) struct Author {
    /// A user of this host.
    pub(crate) uid: Option<u32>,
    /// A client over the network.
    pub(crate) client: Option<String>,
}

/// A whole table in place of what there is.
#[derive(Debug)]
pub(crate) struct Configure {
    pub(crate) wanted: Wanted,
    /// Only what would change is asked for.
    pub(crate) is_dry: bool,
    pub(crate) author: Author,
    pub(crate) answer: oneshot::Sender<Result<Plan, ApiError>>,
}

/// Which table.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// This one, and where it comes from.
    Table(Box<Model>, String),
    /// That of before so many versions.
    Back(u32),
}

/// Runs the agent until it is told to end by SIGTERM, SIGINT or `lvs-xdp unload`.
///
/// # Errors
///
/// Whatever keeps it from starting, on one line.
pub fn run(config: &Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(config.log_level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The grace period, the sweep, and the pieces of lists of connections block, none of them for long.
        .max_blocking_threads(4)
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // What needs nothing but a look comes first: an agent that is refused leaves nothing behind.
    dataplane::require_root()?;
    privileges::require()?;
    for name in &config.interfaces {
        dataplane::interface_index(name)?;
    }
    dataplane::require_bpf(&config.pin_dir)?;
    let group = config.socket_group.as_deref().map(find_group).transpose()?;
    let gate = Gate::new(&config.remote)?;
    let file = config.config.as_deref().map(reload::load).transpose()?;
    let (neighbours, mut news) = Neighbours::start().await?;
    let neighbours = Arc::new(neighbours);
    check_interfaces(&neighbours.links(), config)?;
    crash::begin(crash::Work::Start);
    let Opened {
        journal,
        model,
        warnings,
    } = Journal::open(&config.state_dir)?;
    for line in &warnings {
        warn!("{line}");
    }
    check_room(&model, config, &config.state_dir)?;
    if let (Some((model, _)), Some(path)) = (&file, &config.config) {
        check_room(model, config, path)?;
    }
    let listener = listen(config, group).await?;
    let socket = SocketFile(&config.socket);
    let remote = match &gate {
        Some(gate) => Some((gate.clone(), gate.listen().await?)),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let mut dataplane = Dataplane::open(&Options {
        pin_directory: config.pin_dir.clone(),
        capacity: dataplane::Capacity {
            connections: config.connections,
            services: config.services,
            destinations: config.destinations,
        },
        log_packets: config.log_packets,
    })?;
    if config.log_packets {
        log_packets(&mut dataplane)?;
    }
    attach(&mut dataplane, config)?;

    // Before the thread of the health checks, which inherits what is left.
    privileges::drop_unneeded()?;
    let host = Host::new(Arc::clone(&neighbours), dataplane.steering()?);
    let (runner, mut reports) = Runner::start(host.clone())?;
    let mut state = State::new(
        dataplane,
        Checks::new(runner, host),
        journal,
        model,
        Arc::clone(&neighbours),
        config.clone(),
        warnings,
    )?;
    state.start(file).await?;
    crash::end();

    let (sender, mut requests) = mpsc::channel(1024);
    let server = tokio::spawn(server::serve(
        listener,
        remote,
        sender.clone(),
        Arc::clone(&neighbours),
    ));
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
        .context("cannot tell systemd that the agent is ready")?;
    info!("ready: clients are served at {}", config.socket.display());
    for address in &config.remote.listen {
        info!("clients over the network are served at {address}");
    }

    let ended = loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => {
                if let Some(gate) = &gate {
                    gate.reload();
                }
                match &config.config {
                    Some(path) => reload::reload(path, &sender, &neighbours),
                    None if gate.is_some() => {}
                    None => warn!("SIGHUP: there is no file to read: start the agent with --config FILE"),
                }
            }
            event = news.recv() => match event {
                Some(event) => {
                    state.hear(event);
                    while let Ok(event) = news.try_recv() {
                        state.hear(event);
                    }
                }
                None => bail!("the kernel's messages about neighbours have ended: start the agent again"),
            },
            () = state.settled() => {}
            report = reports.recv() => match report {
                Some(report) => {
                    state.hear_check(report);
                    while let Ok(report) = reports.try_recv() {
                        state.hear_check(report);
                    }
                }
                None => bail!("the thread of the health checks has ended: start the agent again"),
            },
            request = requests.recv() => match request {
                Some(request) => {
                    if state.take(request).is_break() {
                        // The answer goes out before the process ends.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        break "unload";
                    }
                }
                None => bail!("the API has ended: start the agent again"),
            },
            _ = second.tick() => state.tick().await,
        }
        state.carry_out().await;
    };
    server.abort();
    drop(socket);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if ended == "unload" {
        info!("ended: the program was taken off");
    } else {
        info!("ended by {ended}: the program goes on forwarding");
    }
    Ok(())
}

/// Refuses tables without room for what is to be restored, while the program that runs has it all.
fn check_room(model: &Model, config: &Config, holder: &Path) -> anyhow::Result<()> {
    let services = model.services().size();
    let servers: usize = model
        .services()
        .values()
        .map(|entry| entry.destinations().count())
        .sum();
    for (held, room, what, option) in [
        (services, config.services, "services", "--services"),
        (servers, config.destinations, "real servers", "--destinations"),
    ] {
        if held > room as usize {
            bail!(
                "{} holds {held} {what}, and {option} {room} has no room for them: start the agent with {option} {held} or more",
                holder.display()
            );
        }
    }
    Ok(())
}

/// The agent's socket in the file system, gone when the agent ends, however it ends.
struct SocketFile<'a>(&'a Path);

impl Drop for SocketFile<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Refuses interfaces that the program must not be on. Where it runs already it is better to go on and say so.
fn check_interfaces(links: &Links, config: &Config) -> anyhow::Result<()> {
    for name in &config.interfaces {
        let Some(objection) = crate::nic::objection(links, name) else {
            continue;
        };
        let is_linked = |(if_index, _)| dataplane::is_linked(&config.pin_dir, if_index);
        if !links.named(name).is_some_and(is_linked) {
            bail!(objection);
        }
        warn!("{objection}");
    }
    Ok(())
}

/// Attaches the program to every interface that was named. Where that fails and the program was on none,
/// nothing of it is left.
fn attach(dataplane: &mut Dataplane, config: &Config) -> anyhow::Result<()> {
    let was_attached = dataplane.attached().next().is_some();
    for name in &config.interfaces {
        match dataplane.attach(name, config.xdp_mode.forced()) {
            Ok(attached) => {
                if let Some(reason) = &attached.reason {
                    warn!("{name}: attached in generic mode, which is slower: {reason}");
                } else {
                    info!("{name}: attached in {} mode", attached.mode);
                }
            }
            Err(error) => {
                if !was_attached {
                    dataplane.unload()?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Listens at the socket, in the place of an agent that has died, but not of one that lives.
async fn listen(config: &Config, group: Option<Gid>) -> anyhow::Result<UnixListener> {
    let path = config.socket.as_path();
    if UnixStream::connect(path).await.is_ok() {
        bail!(
            "another agent serves {}: end it first, or name another --socket, --state-dir and --pin-dir",
            path.display()
        );
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if let Ok(left) = std::fs::symlink_metadata(path) {
        if !left.file_type().is_socket() {
            bail!(
                "{} is there and is no socket: name another --socket",
                path.display()
            );
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if config.socket_mode & 0o006 != 0 {
        warn!(
            "--socket-mode {:04o}: every user of this host may configure the director",
            config.socket_mode
        );
    }
    listener::bind(path, config.socket_mode, group)
        .with_context(|| format!("cannot listen at {}", path.display()))
}

/// The group of that name or number.
fn find_group(name: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let group = Group::from_name(name).with_context(|| format!("cannot look for the group `{name}`"))?;
    let group =
        group.with_context(|| format!("there is no group `{name}`: `groupadd --system {name}` makes one"))?;
    Ok(group.gid)
}

/// Brings what the program logs to the agent's log.
fn log_packets(dataplane: &mut Dataplane) -> anyhow::Result<()> {
    tracing_log::LogTracer::init().context("cannot take the program's log")?;
    let logger = dataplane.logger()?;
    // SAFETY: the logger owns its ring buffer's descriptor, always the same one, until it is dropped.
    let mut logger = unsafe { AsyncFd::register(logger) }.context("cannot read the program's log")?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
