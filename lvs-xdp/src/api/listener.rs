//! The API's connections: who is at the other end, and how many, how large and how slow they may be.
//!
//! Whoever may write to the socket may configure the director; the limits are there so that a client that is broken
//! does not keep the others from it, nor take the memory that the agent needs.

use std::{
    fmt, fs, future::Future, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http_body_util::LengthLimitError;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, chown},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, info, warn};

use super::{refusal::Refusal, types::ErrorCode};

/// So much of a request's path and query is logged, in characters.
const LOGGED: usize = 200;

/// Who is at the other end of a connection, by the kernel's word (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// The user's id.
    pub(super) uid: Option<u32>,
    /// The process's id, where it is in this process's namespace.
    pub(super) pid: Option<i32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self {
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid {uid}")?,
            None => write!(f, "unknown uid")?,
        }
        self.pid.map_or(Ok(()), |pid| write!(f, ", process {pid}"))
    }
}

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections that are served at a time. As many more are told that there is no room.
    connections: usize,
    /// How long a request's head may take, and the time between two requests.
    head: Duration,
    /// How long a request's body may take as a whole.
    body: Duration,
    /// How long a client may read nothing of an answer.
    answer: Duration,
    /// The largest head that is read, in bytes.
    head_size: usize,
    /// The largest body that is read, in bytes.
    body_size: usize,
}

impl Limits {
    /// What the agent allows.
    pub(super) const AGENT: Self = Self {
        connections: 64,
        head: Duration::from_secs(10),
        body: Duration::from_secs(30),
        // A list in a pager waits for its reader.
        answer: Duration::from_secs(600),
        head_size: 64 << 10,
        // Some 400,000 changes, enough to replace a table of 10,000 services with 20 real servers each.
        body_size: 64 << 20,
    };
}

/// Serves the router's pages; what a listener fails with is tried again a second later.
pub(super) async fn serve(listener: UnixListener, router: Router, limits: Limits) {
    let router = router
        // Instead of it: `guard` reads bodies, whole and within the limits.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(limits, guard));
    let crowded = Router::new().fallback(move || async move {
        let message = format!(
            "the agent serves {} clients already, and has no room for more: try again, or end some of them",
            limits.connections
        );
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code(ErrorCode::Full)
    });
    let served = Arc::new(Semaphore::new(limits.connections));
    let turned_away = Arc::new(Semaphore::new(limits.connections));
    let mut is_failing = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // File descriptors, mostly; and they come back.
                if !is_failing {
                    warn!("no client is taken: {error}");
                }
                is_failing = true;
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        is_failing = false;
        let (router, permit) = match Arc::clone(&served).try_acquire_owned() {
            Ok(permit) => (&router, permit),
            // Where there is no room for these either, the next ones wait in the kernel's queue.
            Err(_) => match Arc::clone(&turned_away).acquire_owned().await {
                Ok(permit) => (&crowded, permit),
                Err(_) => continue,
            },
        };
        let connection = connection(stream, router.clone(), limits);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("a client's connection: {error}");
            }
            drop(permit);
        });
    }
}

fn connection(
    stream: UnixStream,
    router: Router,
    limits: Limits,
) -> impl Future<Output = hyper::Result<()>> + Send {
    let service = router.layer(axum::Extension(ConnectInfo(Peer::of(&stream))));
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.answer));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_size);
    async move {
        // Boxed: it is large, and not to be moved.
        http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service))
            .await
    }
}

/// Reads the body of a request that may change something, and logs what became of it and who has sent it.
async fn guard(
    State(limits): State<Limits>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let target: String = target.chars().take(LOGGED).collect();
    let method = parts.method.clone();
    let response = match read(body, limits).await {
        Ok(body) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(refusal) => refusal.into_response(),
    };
    info!("{peer}: {method} {target}: {}", response.status().as_u16());
    response
}

/// A body, or with which status and words it is refused.
async fn read(body: Body, limits: Limits) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!(
            "the request's body is larger than {} MiB: send it in several requests",
            limits.body_size >> 20
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    // Before it is sent, where the client waits for a word.
    if body.size_hint().lower() > limits.body_size as u64 {
        return Err(too_large());
    }
    match timeout(limits.body, to_bytes(body, limits.body_size)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_too_large(&error) => Err(too_large()),
        Ok(Err(error)) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("the request's body broke off: {error}"),
        )),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the request's body was not there after {} s: send it at once",
                limits.body.as_secs()
            ),
        )),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    match std::error::Error::source(error) {
        Some(source) => source.is::<LengthLimitError>(),
        None => false,
    }
}

/// Listens at the socket `path`, which gets this mode and group before anybody can connect.
///
/// # Errors
///
/// Where there can be no such socket.
pub(crate) fn bind(path: &Path, mode: u32, group: Option<Gid>) -> io::Result<UnixListener> {
    // Nobody else's until it has its group.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    if let Some(group) = group {
        chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
