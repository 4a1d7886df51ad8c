//! One thread for all checks: a task each, which sleeps, asks and reports.
//!
//! A thread of its own, so that thousands of answers do not hold up changes, nor a large change the answers.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime,
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{sleep, sleep_until},
};

use super::{Job, health::Outcome, host::Host, probe, schedule};

/// So many are asked at once at the most; the others wait for their turn.
const MOST_AT_ONCE: u64 = 4096;
/// File descriptors that are left to the rest of the agent.
const SPARE_FILES: u64 = 256;

/// A result.
#[derive(Debug)]
pub(crate) struct Report {
    /// The check's.
    pub(super) id: u64,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

/// Where results come in.
type Reports = mpsc::UnboundedReceiver<Report>;

#[derive(Debug)]
enum Command {
    Begin(u64, Box<Job>),
    End(u64),
}

/// Whoever makes the checks. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct Runner {
    commands: mpsc::UnboundedSender<Command>,
}

impl Runner {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Where there can be none.
    pub(crate) fn start(host: Host) -> anyhow::Result<(Self, Reports)> {
        let (commands, received) = mpsc::unbounded_channel();
        let (reports, results) = mpsc::unbounded_channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime of the health checks")?;
        let permits = Arc::new(Semaphore::new(at_once()));
        thread::Builder::new()
            .name("checks".to_owned())
            .spawn(move || runtime.block_on(run(received, reports, host, permits)))
            .context("cannot start the thread of the health checks")?;
        Ok((Self { commands }, results))
    }

    /// Begins a check; its reports carry this id.
    pub(super) fn begin(&self, id: u64, job: Job) {
        self.tell(Command::Begin(id, Box::new(job)));
    }

    /// Ends it; a report may still be on its way.
    pub(super) fn end(&self, id: u64) {
        self.tell(Command::End(id));
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the thread of the health checks has ended: nothing is checked any more");
        }
    }
}

/// How many can be asked at once, with as many file descriptors as this process may have.
fn at_once() -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(soft.max(2 * MOST_AT_ONCE));
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map(|()| wanted)
    });
    let files = raised.unwrap_or_else(|error| {
        tracing::warn!("{error}: the limit of open files stays as it is");
        1024
    });
    let most = files.saturating_sub(SPARE_FILES).clamp(16, MOST_AT_ONCE);
    usize::try_from(most).unwrap_or(16)
}

async fn run(
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
    host: Host,
    permits: Arc<Semaphore>,
) {
    let mut tasks = JoinSet::new();
    let mut handles: HashMap<u64, AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Begin(id, job)) => {
                    let task = tasks.spawn(keep_asking(id, *job, reports.clone(), host.clone(), Arc::clone(&permits)));
                    handles.insert(id, task);
                }
                Some(Command::End(id)) => {
                    if let Some(handle) = handles.remove(&id) {
                        handle.abort();
                    }
                }
                None => return,
            },
            Some(ended) = tasks.join_next() => if let Err(error) = ended
                && error.is_panic() {
                tracing::error!("a health check was broken off: {error}");
            },
        }
    }
}

async fn keep_asking(
    id: u64,
    job: Job,
    reports: mpsc::UnboundedSender<Report>,
    host: Host,
    permits: Arc<Semaphore>,
) -> io::Result<()> {
    sleep(schedule::first(&job.check, fastrand::f64())).await;
    let mut tls = None;
    loop {
        let started = Instant::now();
        let permit = permits.acquire().await.map_err(io::Error::other)?;
        let asked = Instant::now();
        let outcome = probe::ask(&job, &host, &mut tls).await;
        drop(permit);
        let report = Report {
            id,
            outcome,
            took: asked.elapsed(),
        };
        if reports.send(report).is_err() {
            return Ok(());
        }
        sleep_until((started + schedule::next(&job.check, fastrand::f64())).into()).await;
    }
}
