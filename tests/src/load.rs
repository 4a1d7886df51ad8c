//! Many HTTP requests at once or in a row, counted by the server that answered.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{netns::Netns, port::fresh_source};

/// What to request, and how.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to; each request is a connection of its own.
    pub target: SocketAddr,
    /// What for, such as `/`.
    pub path: String,
    /// How many requests in all.
    pub requests: usize,
    /// How many at a time.
    pub concurrency: usize,
    /// The time from one request's start to the next one's; `None`: as fast as they are answered.
    pub interval: Option<Duration>,
    /// Open `concurrency` connections before a first request is sent, so that all of them are open
    /// at the same time; `requests` must be a multiple of it.
    pub together: bool,
    /// The address and port each request comes from, by its number; those without one have a [fresh port](crate::port).
    /// An address must be the client's own or belong to a local route of it.
    pub sources: Vec<SocketAddr>,
    /// How long each of connecting, and waiting for more of the answer, may take.
    pub timeout: Duration,
}

impl Load {
    /// `requests` requests for `/` at port 80 of `address`, one after the other.
    pub fn sequential(address: impl Into<IpAddr>, requests: usize) -> Self {
        Self {
            target: SocketAddr::new(address.into(), 80),
            path: String::from("/"),
            requests,
            concurrency: 1,
            interval: None,
            together: false,
            sources: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }

    /// `requests` connections to port 80 of `address` that are all open at the same time.
    pub fn at_once(address: impl Into<IpAddr>, requests: usize) -> Self {
        Self {
            concurrency: requests,
            together: true,
            ..Self::sequential(address, requests)
        }
    }

    /// `rate` requests a second for `time`, whether or not earlier ones were answered (up to 64 may be open).
    pub fn steady(address: impl Into<IpAddr>, rate: u32, time: Duration) -> Self {
        let requests = (f64::from(rate) * time.as_secs_f64()).round() as usize;
        Self {
            concurrency: 64,
            interval: Some(Duration::from_secs(1) / rate),
            ..Self::sequential(address, requests)
        }
    }

    /// Makes the requests from inside `client`, and waits for the last answer.
    ///
    /// # Errors
    ///
    /// When the client cannot be entered. A request that fails is no error but an [`Outcome`].
    pub fn run(self, client: &Netns) -> Result<Report> {
        self.start(client)?.finish()
    }

    /// Starts making the requests from inside `client`.
    ///
    /// # Errors
    ///
    /// When the numbers contradict each other.
    pub fn start(self, client: &Netns) -> Result<RunningLoad> {
        ensure!(
            self.concurrency > 0,
            "a load needs at least one connection at a time"
        );
        ensure!(
            !self.together || self.requests.is_multiple_of(self.concurrency),
            "{} requests cannot be made {} together",
            self.requests,
            self.concurrency
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Ok(RunningLoad {
            thread: client.spawn_thread(move || self.run_here(&stopped)),
            stop,
        })
    }

    fn run_here(&self, stop: &AtomicBool) -> Result<Report> {
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(BTreeMap::new());
        let opened = self.together.then(|| Barrier::new(self.concurrency));
        let started = Instant::now();
        thread::scope(|scope| {
            for _ in 0..self.concurrency {
                // Hundreds of threads that hold next to nothing.
                thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, || {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            // Connections that are made together wait for each other: all or none.
                            let stopped = stop.load(Ordering::Relaxed) && !self.together;
                            if number >= self.requests || stopped {
                                break;
                            }
                            if let Some(interval) = self.interval {
                                let due = started + interval * u32::try_from(number).unwrap_or(u32::MAX);
                                thread::sleep(due.saturating_duration_since(Instant::now()));
                            }
                            let outcome = self.request(number, opened.as_ref());
                            outcomes
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .insert(number, outcome);
                        }
                    })?;
            }
            anyhow::Ok(())
        })
        .context("starting the client's threads")?;
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Report {
            outcomes: outcomes.into_values().collect(),
        })
    }

    fn request(&self, number: usize, opened: Option<&Barrier>) -> Outcome {
        let started = Instant::now();
        let mut source = None;
        let connection = self.connect(number, &mut source);
        if let Some(barrier) = opened {
            // Those whose connection failed come too: the others wait for them.
            barrier.wait();
        }
        let answer = connection.and_then(|connection| self.ask(connection));
        Outcome {
            source,
            answer: answer.map_err(|error| format!("{error:#}")),
            time: started.elapsed(),
        }
    }

    fn connect(&self, number: usize, source: &mut Option<SocketAddr>) -> Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(self.target),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        let wanted = self.sources.get(number).copied();
        *source = wanted;
        let wanted = wanted.unwrap_or_else(|| fresh_source(self.target.ip()));
        // A port may be used again while an earlier connection from it is in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket
            .bind(&SockAddr::from(wanted))
            .with_context(|| format!("binding to {wanted}"))?;
        let connected = socket.connect_timeout(&self.target.into(), self.timeout);
        *source = socket.local_addr()?.as_socket().or(*source);
        connected.with_context(|| format!("connecting to {}", self.target))?;
        Ok(socket)
    }

    fn ask(&self, mut connection: Socket) -> Result<String> {
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", self.path, self.target);
        connection
            .write_all(request.as_bytes())
            .context("sending the request")?;
        let mut answer = String::new();
        connection
            .read_to_string(&mut answer)
            .context("reading the answer")?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            bail!(
                "the answer ended after {} bytes, before its header did",
                answer.len()
            );
        };
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "answered by `{status}`");
        ensure!(!body.is_empty(), "answered without a body");
        Ok(body.trim_end().to_owned())
    }
}

/// A load that is being made.
#[derive(Debug)]
pub struct RunningLoad {
    thread: JoinHandle<Result<Report>>,
    stop: Arc<AtomicBool>,
}

impl RunningLoad {
    /// Waits for the last answer.
    ///
    /// # Errors
    ///
    /// As [`Load::run`].
    ///
    /// # Panics
    ///
    /// When a thread of the load did.
    pub fn finish(self) -> Result<Report> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts no more requests and waits for the answers of those that were started; a load that is
    /// made together goes on to its end.
    ///
    /// # Errors
    ///
    /// As [`Load::run`].
    pub fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Where it came from, where that is known.
    pub source: Option<SocketAddr>,
    /// The page without its last newline, which names the server, or what went wrong.
    pub answer: Result<String, String>,
    /// From its start to its end.
    pub time: Duration,
}

/// What became of the requests, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One for each request that was made.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// How many requests each server answered.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for name in self.answers() {
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    /// Who answered, in the requests' order, without those that failed.
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        self.outcomes
            .iter()
            .filter_map(|outcome| outcome.answer.as_deref().ok())
    }

    /// What went wrong, with the request's number.
    pub fn failures(&self) -> Vec<(usize, &str)> {
        self.outcomes
            .iter()
            .enumerate()
            .filter_map(|(number, outcome)| Some((number, outcome.answer.as_ref().err()?.as_str())))
            .collect()
    }
}
