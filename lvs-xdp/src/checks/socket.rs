//! Sockets to the address that a check asks.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use super::{
    Target,
    host::{Host, Way},
};
use crate::{api::types::Protocol, dataplane::steering::Lead};

/// Why there is no good result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The real server does not serve.
    Bad(String),
    /// The director could not ask.
    Unknown(String),
}

impl Failure {
    /// What an error of the kernel means: some say of the director only that it has no more room or may not.
    pub(super) fn of(what: &str, error: &io::Error) -> Self {
        let text = format!("{what}: {error}");
        match error.raw_os_error() {
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EACCES
                | libc::EPERM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EAFNOSUPPORT,
            ) => Self::Unknown(text),
            _ => Self::Bad(text),
        }
    }
}

/// Until when a result is waited for, and how long that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// Whether the time is over.
    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.at
    }

    /// Waits for something that has a name.
    pub(super) async fn wait<T>(
        self,
        what: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let timeout = humantime::format_duration(self.timeout);
        timeout_at(self.at, work)
            .await
            .unwrap_or_else(|_| Err(Failure::Bad(format!("no {what} within {timeout}"))))
    }
}

/// Connects to the target. The stream is to end before the lead: variables end in the order opposite to that in which
/// they begin.
pub(super) async fn connect(
    target: &Target,
    host: &Host,
    deadline: Deadline,
) -> Result<(Option<Lead>, TcpStream), Failure> {
    let way = host.way(target)?;
    let no_socket = |error: io::Error| Failure::of("no socket", &error);
    let socket = tcp_socket(&way).map_err(no_socket)?;
    let local = socket.local_addr().map_err(no_socket)?;
    let lead = host.lead(&way, local, Protocol::Tcp)?;
    let connected = deadline.wait("connection", async {
        let connected = socket.connect(way.to).await;
        connected.map_err(|error| Failure::of("no connection", &error))
    });
    let stream = connected.await?;
    Ok((lead, stream))
}

/// A socket for datagrams to the target and from it, which is to end before the lead.
pub(super) async fn datagrams(target: &Target, host: &Host) -> Result<(Option<Lead>, UdpSocket), Failure> {
    let way = host.way(target)?;
    let no_socket = |error: io::Error| Failure::of("no socket", &error);
    let any = match way.to {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let from = SocketAddr::new(way.from.unwrap_or(any), 0);
    let socket = UdpSocket::bind(from).await.map_err(no_socket)?;
    let local = socket.local_addr().map_err(no_socket)?;
    let lead = host.lead(&way, local, Protocol::Udp)?;
    socket.connect(way.to).await.map_err(no_socket)?;
    Ok((lead, socket))
}

/// A socket whose connection ends with a reset: thousands that end otherwise would keep thousands of ports for a
/// minute each.
fn tcp_socket(way: &Way) -> io::Result<TcpSocket> {
    let socket = if way.to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    if let Some(from) = way.from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    Ok(socket)
}
