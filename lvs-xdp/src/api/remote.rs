//! The API over the network: the pages of the socket, for whom a token or a certificate lets in.
//!
//! Whoever may reach the port may be anybody, so that everything costs little until a client has said who it is: TLS
//! handshakes are few and short, and of a request no body is read. Clients over the network have room of their own; they
//! take none from those at the socket.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{AUTHORIZATION, CONNECTION},
    },
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    access::{Credentials, Remote, fingerprint},
    listener::{Accept, Limits, Peer, Room, target},
    refusal::Refusal,
    types::ErrorCode,
};

/// TLS handshakes at a time; more clients wait in the kernel's queue.
const HANDSHAKES: usize = 16;
/// How long a handshake may take as a whole.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Of clients that are not let in one is logged in so long a time, and how many the others were.
const QUIET: Duration = Duration::from_secs(1);

/// Who is let in, by the files as they were read last.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    remote: Remote,
    current: RwLock<Arc<Credentials>>,
    refused: Mutex<Refused>,
}

/// Clients that were not let in: when one was logged last, and how many since.
#[derive(Default)]
struct Refused {
    last: Option<Instant>,
    unsaid: u64,
}

/// The credentials by which a connection was made.
#[derive(Clone)]
struct Entered(Arc<Credentials>);

impl Gate {
    /// Reads the files; none where the agent is at its socket only.
    ///
    /// # Errors
    ///
    /// What is wrong with them, on one line.
    pub(crate) fn new(remote: &Remote) -> anyhow::Result<Option<Self>> {
        if remote.listen.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self(Arc::new(Inner {
            remote: remote.clone(),
            current: RwLock::new(Arc::new(Credentials::read(remote)?)),
            refused: Mutex::default(),
        }))))
    }

    /// Reads the files again. Where one is wrong, all stays as it was.
    pub(crate) fn reload(&self) {
        let current = Credentials::read(&self.0.remote);
        match current {
            Ok(current) => {
                *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
                info!("SIGHUP: tokens and certificates were read again");
            }
            Err(error) => warn!("SIGHUP: {error:#}; tokens and certificates stay as they were"),
        }
    }

    /// Listens wherever clients are to come in.
    ///
    /// # Errors
    ///
    /// Names the address, and why not there.
    pub(crate) async fn listen(&self) -> anyhow::Result<Vec<TcpListener>> {
        let mut listeners = Vec::new();
        for &address in &self.0.remote.listen {
            let advice = |error: &io::Error| match error.kind() {
                io::ErrorKind::PermissionDenied => ": use a port from 1024 on",
                io::ErrorKind::AddrNotAvailable => ": no interface of this host has the address",
                _ => "",
            };
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|error| {
                let advice = advice(&error);
                anyhow::Error::new(error).context(format!("cannot listen at {address}{advice}"))
            })?);
        }
        Ok(listeners)
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who a client is that asks this, or how it is refused.
    fn admit(
        &self,
        peer: Peer,
        entered: &Entered,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Peer, Refusal> {
        let current = self.credentials();
        let is_old = entered.0.acceptor().is_some() && !Arc::ptr_eq(&entered.0, &current);
        if is_old {
            return Err(denied(
                StatusCode::UNAUTHORIZED,
                "the agent's certificates were read again meanwhile: connect anew",
            ));
        }
        let Some(tokens) = current.tokens() else {
            return Ok(peer);
        };
        let shown = headers.get(AUTHORIZATION).and_then(bearer);
        let unknown = |message| denied(StatusCode::UNAUTHORIZED, message);
        let shown =
            shown.ok_or_else(|| unknown("the request has no token: send `authorization: Bearer TOKEN`"))?;
        let token = tokens
            .find(shown)
            .ok_or_else(|| unknown("the agent has no such token"))?;
        if token.is_read_only && !is_reading(method) {
            return Err(denied(
                StatusCode::FORBIDDEN,
                "the token is one to read with: it changes nothing",
            ));
        }
        Ok(peer.with_token(token))
    }

    /// Logs that somebody was not let in, now or with the next one.
    fn log_refusal(&self, who: &str, what: &str, why: &str) {
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.last.is_some_and(|last| last.elapsed() < QUIET) {
            refused.unsaid += 1;
            return;
        }
        let others = match std::mem::take(&mut refused.unsaid) {
            0 => String::new(),
            others => format!(" (and {others} more since the last one)"),
        };
        refused.last = Some(Instant::now());
        warn!("{who}: {what}: {why}{others}");
    }
}

pub(super) fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn denied(status: StatusCode, message: &str) -> Refusal {
    Refusal::new(status, message).with_code(ErrorCode::Denied)
}

/// The token of a header such as `Bearer TOKEN`.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token.trim_ascii())
}

/// Before anything else of a request is looked at.
async fn authorise(
    State(gate): State<Gate>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(entered): Extension<Entered>,
    mut request: Request,
    next: Next,
) -> Response {
    match gate.admit(peer.clone(), &entered, request.method(), request.headers()) {
        Ok(peer) => {
            request.extensions_mut().insert(ConnectInfo(peer));
            next.run(request).await
        }
        Err(refusal) => {
            let what = format!("{} {}", request.method(), target(request.uri()));
            gate.log_refusal(&peer.to_string(), &what, &refusal.to_string());
            let mut response = refusal.into_response();
            // A body that was not read is in the way of the next request.
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

/// Serves the router's pages to those who are let in, at all of the listeners.
pub(super) async fn serve(gate: Gate, listeners: Vec<TcpListener>, router: Router, limits: Limits) {
    let authorise = middleware::from_fn_with_state(gate.clone(), authorise);
    let room = Arc::new(Room::new(router, limits, |router| router.layer(authorise)));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(
            listener,
            gate.clone(),
            Arc::clone(&room),
            Arc::clone(&handshakes),
        ));
    }
    tasks.join_all().await;
}

async fn accept(listener: TcpListener, gate: Gate, room: Arc<Room>, handshakes: Arc<Semaphore>) {
    let mut accept = Accept::default();
    loop {
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let Some((stream, address)) = accept.taken(listener.accept().await).await else {
            continue;
        };
        let (gate, room) = (gate.clone(), Arc::clone(&room));
        tokio::spawn(async move {
            if let Err(error) = enter(stream, address, &gate, &room, handshake).await {
                gate.log_refusal(&address.to_string(), "no TLS session", &format!("{error:#}"));
            }
        });
    }
}

/// Makes the TLS session of a connection, where there is to be one, and serves it.
async fn enter(
    stream: TcpStream,
    address: SocketAddr,
    gate: &Gate,
    room: &Room,
    handshake: tokio::sync::OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    // Small answers go out at once; without it they only do so later.
    if let Err(error) = stream.set_nodelay(true) {
        debug!("{address}: {error}");
    }
    let credentials = gate.credentials();
    let peer = Peer::remote(address);
    let entered = Extension(Entered(Arc::clone(&credentials)));
    match credentials.acceptor() {
        None => {
            let place = room.place().await;
            drop(handshake);
            place.serve(stream, peer, |router| router.layer(entered)).await;
        }
        Some(acceptor) => {
            let session = timeout(HANDSHAKE, acceptor.accept(stream))
                .await
                .with_context(|| format!("it was not made within {} s", HANDSHAKE.as_secs()))??;
            let shown = session.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let peer = match shown {
                Some(certificate) => peer.with_certificate(fingerprint(certificate)),
                None => peer,
            };
            let place = room.place().await;
            drop(handshake);
            place.serve(session, peer, |router| router.layer(entered)).await;
        }
    }
    Ok(())
}
