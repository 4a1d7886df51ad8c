//! Real servers that say their names.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often connections that wait for the client's last ACK are looked at, in milliseconds: `poll`
/// does not tell when it comes.
const CLOSING_INTERVAL: u16 = 1;
/// How long the end of a connection may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A connection that has ended, on the side of the real server.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The real server.
    pub(crate) server: String,
    /// Who had connected.
    pub(crate) client: SocketAddr,
}

/// What all real servers listen on; one thread serves it until this is dropped.
///
/// Whoever connects is sent the name of the real server and a newline, and so is whoever sends a
/// datagram. A connection stays open until the client closes it.
#[derive(Debug)]
pub(crate) struct Servers {
    /// In the order in which they ended; an error ends the thread.
    ended: Receiver<Result<Ended>>,
    /// The thread ends when this end of the pair is closed.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Listens in each of `hosts` on the ports of `tcp`, and on the addresses and ports of `udp`.
    ///
    /// The VIPs must be there: a datagram is answered from the address that it was sent to.
    pub(crate) fn start<'a>(
        hosts: impl IntoIterator<Item = (&'a str, &'a Netns)>,
        tcp: &BTreeSet<SocketAddrV4>,
        udp: &BTreeSet<SocketAddrV4>,
    ) -> Result<Self> {
        let ports: BTreeSet<_> = tcp.iter().map(SocketAddrV4::port).collect();
        let mut endpoints = Vec::new();
        for (server, netns) in hosts {
            let sockets = netns
                .enter(|| listen(&ports, udp))?
                .with_context(|| format!("listening on {server}"))?;
            endpoints.extend(sockets.into_iter().map(|socket| Endpoint {
                server: server.to_owned(),
                socket,
            }));
        }
        let (stop, stopped) = UnixStream::pair()?;
        let (report, ended) = channel();
        let thread = thread::spawn(move || {
            if let Err(error) = serve(&endpoints, &stopped, &report) {
                // The receiver outlives this thread: see `Drop`.
                let _: Result<(), _> = report.send(Err(error.context("the real servers")));
            }
        });
        Ok(Self {
            ended,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Waits for the end of a connection: the client's last ACK has passed the director then.
    pub(crate) fn wait_for_end(&self) -> Result<Ended> {
        self.ended
            .recv_timeout(CLOSE_LIMIT)
            .context("no real server has seen the connection end")?
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the real servers' thread panicked");
        }
        for error in self.ended.try_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}

#[derive(Debug)]
struct Endpoint {
    server: String,
    socket: Listening,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    ends: Ended,
}

fn listen(ports: &BTreeSet<u16>, udp: &BTreeSet<SocketAddrV4>) -> io::Result<Vec<Listening>> {
    let tcp = ports
        .iter()
        .map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).map(Listening::Tcp));
    let udp = udp
        .iter()
        .map(|address| UdpSocket::bind(address).map(Listening::Udp));
    tcp.chain(udp).collect()
}

fn serve(endpoints: &[Endpoint], stopped: &UnixStream, report: &Sender<Result<Ended>>) -> Result<()> {
    let mut open: Vec<Connection> = Vec::new();
    let mut closing: Vec<Connection> = Vec::new();
    loop {
        let mut polled: Vec<_> = std::iter::once(stopped.as_fd())
            .chain(endpoints.iter().map(|endpoint| endpoint.socket.as_fd()))
            .chain(open.iter().map(|connection| connection.stream.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = if closing.is_empty() {
            PollTimeout::NONE
        } else {
            PollTimeout::from(CLOSING_INTERVAL)
        };
        poll(&mut polled, timeout).context("polling")?;
        let mut ready = polled
            .iter()
            .map(|fd| fd.any() == Some(true))
            .collect::<Vec<_>>()
            .into_iter();
        if ready.next() == Some(true) {
            return Ok(());
        }

        let mut accepted = Vec::new();
        for (endpoint, ready) in endpoints.iter().zip(ready.by_ref()) {
            if ready {
                accepted.extend(endpoint.answer()?);
            }
        }
        for (connection, ready) in std::mem::take(&mut open).into_iter().zip(ready) {
            if !ready {
                open.push(connection);
            } else if connection.close()? {
                closing.push(connection);
            }
        }
        open.extend(accepted);

        for connection in std::mem::take(&mut closing) {
            if connection.is_gone() {
                report.send(connection.end()).context("reporting an end")?;
            } else {
                closing.push(connection);
            }
        }
    }
}

impl Endpoint {
    /// Says the server's name to the next client; a TCP connection is then open.
    fn answer(&self) -> Result<Option<Connection>> {
        let name = format!("{}\n", self.server);
        match &self.socket {
            Listening::Tcp(listener) => {
                let (mut stream, client) = listener.accept().context("accepting")?;
                stream
                    .write_all(name.as_bytes())
                    .with_context(|| format!("{} greeting {client}", self.server))?;
                let ends = Ended {
                    server: self.server.clone(),
                    client,
                };
                Ok(Some(Connection { stream, ends }))
            }
            Listening::Udp(socket) => {
                let (_, client) = socket.recv_from(&mut [0; 16]).context("receiving")?;
                socket
                    .send_to(name.as_bytes(), client)
                    .with_context(|| format!("{} answering {client}", self.server))?;
                Ok(None)
            }
        }
    }
}

impl Connection {
    /// Closes what the client has closed; false where the client has reset it, which nobody waits for.
    fn close(&self) -> Result<bool> {
        let length = match (&self.stream).read(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            read => read.with_context(|| format!("reading, {:?}", self.ends))?,
        };
        ensure!(length == 0, "{:?} sent {length} bytes, not its end", self.ends);
        self.stream
            .shutdown(Shutdown::Write)
            .with_context(|| format!("closing, {:?}", self.ends))?;
        Ok(true)
    }

    /// Whether a connection that both sides have closed has ended: its socket has no peer any more then.
    fn is_gone(&self) -> bool {
        self.stream
            .peer_addr()
            .is_err_and(|error| error.kind() == ErrorKind::NotConnected)
    }

    /// How it ended: an error if by a reset, or for want of the last ACK.
    fn end(self) -> Result<Ended> {
        match self.stream.take_error()? {
            None => Ok(self.ends),
            Some(error) => Err(error).with_context(|| format!("{:?}", self.ends)),
        }
    }
}
