//! The API's connections: who is at the other end, and how many, how large and how slow they may be.
//!
//! Whoever may write to the socket may configure the director; the limits are there so that a client that is broken
//! does not keep the others from it, nor take the memory that the agent needs.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http_body_util::LengthLimitError;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::unistd::{Gid, chown};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, info, warn};

use super::{access::Token, refusal::Refusal, remote::is_reading, types::ErrorCode};
use crate::agent::Author;

/// Clients that wait to be accepted; of more the kernel makes wait whoever connects (`net.core.somaxconn` is the most).
const QUEUE: i32 = 1024;
/// So much of a request's path and query is logged, in characters.
const LOGGED: usize = 200;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// A process of this host, by the kernel's word (`SO_PEERCRED`).
    Local {
        /// The user's id.
        uid: Option<u32>,
        /// The process's id, where it is in this process's namespace.
        pid: Option<i32>,
    },
    /// A client over the network.
    Remote {
        address: SocketAddr,
        /// The fingerprint of its certificate.
        certificate: Option<Arc<str>>,
        /// The token that its request had.
        token: Option<Token>,
    },
}

impl Peer {
    fn local(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self::Local {
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }

    /// A client that has not said who it is.
    pub(super) fn remote(address: SocketAddr) -> Self {
        Self::Remote {
            address,
            certificate: None,
            token: None,
        }
    }

    /// The same, which has shown a certificate of this fingerprint.
    pub(super) fn with_certificate(mut self, fingerprint: String) -> Self {
        if let Self::Remote { certificate, .. } = &mut self {
            *certificate = Some(fingerprint.into());
        }
        self
    }

    /// The same, with a request that has this token.
    pub(super) fn with_token(mut self, shown: Token) -> Self {
        if let Self::Remote { token, .. } = &mut self {
            *token = Some(shown);
        }
        self
    }

    /// As whom the history has it.
    pub(super) fn author(&self) -> Author {
        match self {
            Self::Local { uid, .. } => Author {
                uid: *uid,
                client: None,
            },
            Self::Remote { address, .. } => Author {
                uid: None,
                client: Some(format!("{}{}", self.credentials(), address.ip())),
            },
        }
    }

    /// What it has shown, with the word that leads on to its address.
    fn credentials(&self) -> String {
        let Self::Remote {
            certificate, token, ..
        } = self
        else {
            return String::new();
        };
        let token = token.map(|token| token.to_string());
        let certificate = certificate
            .as_ref()
            .map(|fingerprint| format!("certificate {fingerprint}"));
        let shown: Vec<_> = token.into_iter().chain(certificate).collect();
        match shown.as_slice() {
            [] => String::new(),
            shown => format!("{} at ", shown.join(", ")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => {
                match uid {
                    Some(uid) => write!(f, "uid {uid}")?,
                    None => write!(f, "unknown uid")?,
                }
                pid.map_or(Ok(()), |pid| write!(f, ", process {pid}"))
            }
            Self::Remote { address, .. } => write!(f, "{}{address}", self.credentials()),
        }
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

/// Serves the router's pages.
pub(super) async fn serve(listener: UnixListener, router: Router, limits: Limits) {
    let room = Room::new(router, limits, |router| router);
    let mut accept = Accept::default();
    loop {
        let Some((stream, _)) = accept.taken(listener.accept().await).await else {
            continue;
        };
        let peer = Peer::local(&stream);
        let place = room.place().await;
        tokio::spawn(place.serve(stream, peer, |router| router));
    }
}

/// Takes connections; what that fails with is tried again a second later.
#[derive(Default)]
pub(super) struct Accept {
    is_failing: bool,
}

impl Accept {
    /// A connection that was taken.
    pub(super) async fn taken<T>(&mut self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(connection) => {
                self.is_failing = false;
                Some(connection)
            }
            Err(error) => {
                // File descriptors, mostly; and they come back.
                if !self.is_failing {
                    warn!("no client is taken: {error}");
                }
                self.is_failing = true;
                sleep(Duration::from_secs(1)).await;
                None
            }
        }
    }
}

/// The room for clients.
pub(super) struct Room {
    router: Router,
    crowded: Router,
    limits: Limits,
    served: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

impl Room {
    /// Room for clients of these pages; `guarded` adds what comes before a request's body is read.
    pub(super) fn new(router: Router, limits: Limits, guarded: impl FnOnce(Router) -> Router) -> Self {
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
        Self {
            router: guarded(router),
            crowded,
            limits,
            served: Arc::new(Semaphore::new(limits.connections)),
            turned_away: Arc::new(Semaphore::new(limits.connections)),
        }
    }

    /// A place for a client, or one where it hears that there is none. Where there is no room for these either, the
    /// next ones wait in the kernel's queue.
    pub(super) async fn place(&self) -> Place {
        let permit = Arc::clone(&self.served).try_acquire_owned().ok();
        let router = if permit.is_some() {
            &self.router
        } else {
            &self.crowded
        }
        .clone();
        let permit = match permit {
            Some(permit) => Some(permit),
            // It is never closed.
            None => Arc::clone(&self.turned_away).acquire_owned().await.ok(),
        };
        Place {
            router,
            limits: self.limits,
            _permit: permit,
        }
    }
}

/// A client's place.
pub(super) struct Place {
    router: Router,
    limits: Limits,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Serves a connection to its end; `with` adds what the pages are to know of it.
    pub(super) async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: Peer,
        with: impl FnOnce(Router) -> Router,
    ) {
        let Self {
            router,
            limits,
            _permit,
        } = self;
        let service = with(router).layer(axum::Extension(ConnectInfo(peer)));
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.answer));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.head_size);
        // Boxed: it is large, and not to be moved.
        let connection =
            http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
        if let Err(error) = connection.await {
            debug!("a client's connection: {error}");
        }
    }
}

/// What of a request's path and query is logged.
pub(super) fn target(uri: &Uri) -> String {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    target.chars().take(LOGGED).collect()
}

/// Reads the body of a request that may change something, and logs what became of it and who has sent it.
async fn guard(
    State(limits): State<Limits>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if is_reading(request.method()) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let target = target(&parts.uri);
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
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    if let Some(group) = group {
        chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    // Until now nobody could connect, whatever the mode that the file was made with.
    socket.listen(QUEUE)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(net::UnixListener::from(OwnedFd::from(socket)))
}

#[cfg(test)]
mod tests;
