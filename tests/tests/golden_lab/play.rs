//! A scenario being played, event by event.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode},
    process::run,
};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::{
    network::Network,
    record::{Event, Scenario, Transport},
};

/// How long an answer may take: longer than a lost SYN is sent again.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long nothing is heard until nothing is to come: shorter than a lost SYN is sent again, so that the
/// director judges as many packets as IPVS did.
const SILENCE_LIMIT: Duration = Duration::from_millis(900);

/// ipvsadm's commands that remove real servers.
const REMOVING: [&str; 6] = ["-C", "--clear", "-D", "--delete-service", "-d", "--delete-server"];

/// Plays a scenario with an agent of its own.
///
/// # Errors
///
/// When anything goes otherwise than the record has it: which event, what was seen, and the end of
/// the agent's log.
pub(crate) fn play(scenario: &Scenario, network: &Network, binary: &Path) -> Result<()> {
    let config = AgentConfig {
        xdp_mode: XdpMode::Native,
        ..AgentConfig::default()
    };
    let agent = Agent::start(binary, network.director(), &["eth0"], &config)?;
    let mut play = Play {
        network,
        agent: &agent,
        open: BTreeMap::new(),
    };
    play.whole(scenario)
        .with_context(|| format!("the agent says:\n{}", agent.log_tail()))
        .with_context(|| format!("scenario {}", scenario.name))
}

struct Play<'a> {
    network: &'a Network,
    agent: &'a Agent,
    /// Connections that the client has open, by the record's names.
    open: BTreeMap<String, Connection>,
}

struct Connection {
    stream: TcpStream,
    source: SocketAddrV4,
    server: String,
    /// A real server was removed since: IPVS drops what goes there, in silence.
    may_be_cut_off: bool,
}

impl Play<'_> {
    fn whole(&mut self, scenario: &Scenario) -> Result<()> {
        for (name, value) in &scenario.sysctl {
            self.command(["settings", name, &value.to_string()])?;
        }
        for arguments in &scenario.setup {
            self.ipvsadm(arguments)?;
        }
        for (number, event) in (1..).zip(&scenario.events) {
            self.event(event)
                .with_context(|| format!("event {number}, {event:?}"))?;
        }
        // The next scenario finds no connections.
        for (id, connection) in std::mem::take(&mut self.open) {
            self.close(&connection)
                .with_context(|| format!("after the last event, closing {id}"))?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Open {
                id,
                source,
                service,
                transport,
                answer,
            } => self.ask(id, *source, *service, *transport, answer.as_deref()),
            // What was refused is not open, nor are datagrams.
            Event::Close { id } => match self.open.remove(id) {
                Some(connection) => self.close(&connection),
                None => Ok(()),
            },
            Event::Ipvsadm(arguments) => {
                let printed = self.ipvsadm(arguments)?;
                ensure!(printed.is_empty(), "it printed:\n{printed}");
                if arguments
                    .first()
                    .is_some_and(|verb| REMOVING.contains(&verb.as_str()))
                {
                    for connection in self.open.values_mut() {
                        connection.may_be_cut_off = true;
                    }
                }
                Ok(())
            }
            Event::List { arguments, stdout } => {
                let printed = self.ipvsadm(arguments)?;
                ensure!(
                    printed == *stdout,
                    "IPVS's ipvsadm printed:\n{stdout}\nand this one:\n{printed}"
                );
                Ok(())
            }
            Event::Sleep(duration) => {
                thread::sleep(*duration);
                Ok(())
            }
        }
    }

    fn ipvsadm(&self, arguments: &[String]) -> Result<String> {
        self.command(std::iter::once("ipvsadm").chain(arguments.iter().map(String::as_str)))
    }

    /// Runs `lvs-xdp`; an error is without the agent's log, which [`play`] adds to every error.
    fn command<'s>(&self, arguments: impl IntoIterator<Item = &'s str>) -> Result<String> {
        run(self.agent.client(arguments))
    }

    /// Asks for `service` and compares who answers.
    fn ask(
        &mut self,
        id: &str,
        source: SocketAddrV4,
        service: SocketAddrV4,
        transport: Transport,
        expected: Option<&str>,
    ) -> Result<()> {
        let limit = if expected.is_some() {
            ANSWER_LIMIT
        } else {
            SILENCE_LIMIT
        };
        let asked = self.network.client().enter(|| match transport {
            Transport::Tcp => connect(source, service, limit).map(|(stream, server)| (Some(stream), server)),
            Transport::Udp => exchange(source, service, limit).map(|server| (None, server)),
        })?;
        match (asked, expected) {
            (Ok((stream, server)), Some(expected)) => {
                ensure!(server == expected, "{server} answered");
                if let Some(stream) = stream {
                    let connection = Connection {
                        stream,
                        source,
                        server,
                        may_be_cut_off: false,
                    };
                    self.open.insert(id.to_owned(), connection);
                }
                Ok(())
            }
            (Ok((_, server)), None) => bail!("{server} answered, and IPVS refused"),
            // By an ICMP message, by the host's RST where no service is left, or in silence.
            (Err(error), None) if error.kind() == ErrorKind::ConnectionRefused || is_silence(&error) => {
                Ok(())
            }
            (Err(error), _) => Err(error).context("asking"),
        }
    }

    /// The client closes, then the server; returns when the client's last ACK has reached the server, or
    /// when a removed server has not heard of it.
    fn close(&self, connection: &Connection) -> Result<()> {
        connection
            .stream
            .shutdown(Shutdown::Write)
            .context("closing the client's side")?;
        if connection.may_be_cut_off {
            connection.stream.set_read_timeout(Some(SILENCE_LIMIT))?;
        }
        let length = match (&connection.stream).read(&mut [0]) {
            Err(error) if connection.may_be_cut_off && is_silence(&error) => {
                // With a RST in place of its FIN sent again and again, into the next scenario.
                return SockRef::from(&connection.stream)
                    .set_linger(Some(Duration::ZERO))
                    .context("giving the connection up");
            }
            read => read.context("waiting for the server's end")?,
        };
        ensure!(length == 0, "{} said more than its name", connection.server);
        let ended = self.network.servers().wait_for_end()?;
        ensure!(
            ended.server == connection.server && ended.client == SocketAddr::V4(connection.source),
            "closed the connection of {} to {}, and this one ended: {ended:?}",
            connection.source,
            connection.server
        );
        Ok(())
    }
}

/// Whether nothing was heard within a limit.
fn is_silence(error: &io::Error) -> bool {
    // `poll` has the first for it, a socket's own time limit the second.
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// A connection from `source`, and the name that the server says.
fn connect(source: SocketAddrV4, service: SocketAddrV4, limit: Duration) -> io::Result<(TcpStream, String)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Another connection of the same source may be in TIME-WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(source))?;
    socket.connect_timeout(&SockAddr::from(service), limit)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut name = String::new();
    // It says nothing after its name: there is nothing for the reader to keep back.
    // And one that accepts and then says nothing has answered all the same: that is no silence.
    BufReader::new(&stream)
        .read_line(&mut name)
        .map_err(|error| io::Error::other(format!("connected, but not greeted: {error}")))?;
    Ok((stream, name.trim_end().to_owned()))
}

/// Sends a datagram from `source`; the name that the server says.
fn exchange(source: SocketAddrV4, service: SocketAddrV4, limit: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind(source)?;
    // Answers from other addresses are not heard then, and an ICMP message is.
    socket.connect(service)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(b"who?")?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
}
