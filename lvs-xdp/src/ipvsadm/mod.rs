//! A drop-in for ipvsadm 1.31: the same words, tables, messages and exit statuses, spoken to the agent.
//!
//! It has the commands `-A -E -D -a -e -d -C -L -S --set -h -v` with the options of direct routing over TCP,
//! UDP and SCTP; what the real one has beyond them is refused by one clear line. Without `-n` ports go by
//! the names of /etc/services, while addresses stay numbers: host names are understood, not printed.

mod args;
mod help;
mod names;
mod options;
mod order;
mod output;
mod popt;
mod save;
#[cfg(test)]
mod tests;
mod values;

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
};

pub use names::Names;

use args::{ListRequest, Request, ServiceRequest};

use crate::api::{
    client::{self, BlockingClient, ClientError},
    types::{ApiError, Change, Connection, ErrorCode, Scheduler, Service, ServiceKey, ServiceSpec, Timeouts},
};

/// What `-v` prints: scripts look at the version before they use an option.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)";

/// The director whose services are listed and changed.
pub trait Director {
    /// Every virtual service, as listed by the agent.
    fn services(&mut self) -> Result<Vec<Service>, ClientError>;

    /// The time-outs of connections.
    fn timeouts(&mut self) -> Result<Timeouts, ClientError>;

    /// Every connection entry, persistence templates among them.
    fn connections(&mut self) -> Result<Vec<Connection>, ClientError>;

    /// Applies one change.
    fn change(&mut self, change: Change) -> Result<(), ClientError>;
}

impl Director for BlockingClient {
    fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        Self::services(self)
    }

    fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
        self.status().map(|status| status.timeouts)
    }

    fn connections(&mut self) -> Result<Vec<Connection>, ClientError> {
        Self::connections(self)
    }

    fn change(&mut self, change: Change) -> Result<(), ClientError> {
        Self::change(self, vec![change])
    }
}

/// Why nothing was done: ipvsadm's exit status and its message for standard error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// What was asked for is not there to be listed.
    fn absent(message: impl Into<String>) -> Self {
        Self {
            status: 1,
            message: message.into(),
        }
    }

    /// The line is wrong, or there is nobody to ask.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            status: 2,
            message: message.into(),
        }
    }

    /// The director refuses, or popt does.
    fn refused(message: impl Into<String>) -> Self {
        Self {
            status: 255,
            message: message.into(),
        }
    }
}

/// Runs as ipvsadm on this process's standard output and error. `words` are those after the program's
/// name. ipvsadm has no option for the socket; `socket` is what `lvs-xdp --socket` had.
pub fn main(words: impl Iterator<Item = OsString>, socket: Option<PathBuf>) -> ExitCode {
    // A word that is no text can be no address, scheduler or number: what replaces its bytes is none either.
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let mut director = BlockingClient::new(client::socket_path(socket));
    let mut out = BufWriter::new(io::stdout().lock());
    let status = run(
        &words,
        &mut director,
        &Names::of_this_host(),
        &mut out,
        &mut io::stderr(),
    );
    ExitCode::from(status)
}

/// Runs one command line: `words` are those after the program's name. Returns the exit status.
pub fn run(
    words: &[String],
    director: &mut dyn Director,
    names: &Names,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let failure = match perform(words, director, names) {
        Ok(text) => match out.write_all(&text).and_then(|()| out.flush()) {
            Ok(()) => return 0,
            // Whoever read the list has seen enough of it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return 0,
            Err(error) => Failure::absent(format!("cannot write the list: {error}")),
        },
        Err(failure) => failure,
    };
    // With standard error gone as well there is nobody left to tell; the status still tells.
    drop(writeln!(err, "{failure}"));
    failure.status
}

/// Does what the words say; returns what goes to standard output.
fn perform(words: &[String], director: &mut dyn Director, names: &Names) -> Result<Vec<u8>, Failure> {
    match args::parse(words, names)? {
        Request::Help => Ok(help::text().into()),
        Request::Version => Ok(format!("{VERSION}\n").into()),
        Request::List(request) => list(director, request, names),
        Request::ListTimeouts => {
            let Timeouts { tcp, tcp_fin, udp } = director.timeouts().map_err(unanswered)?;
            Ok(format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n").into())
        }
        Request::ListConnections { numeric } => {
            let connections = director.connections().map_err(unanswered)?;
            let names = (!numeric).then_some(names);
            formatted(|out| output::connections(out, &connections, names))
        }
        Request::Save { numeric } => {
            let services = services(director)?;
            let names = (!numeric).then_some(names);
            formatted(|out| save::rules(out, services, names))
        }
        Request::AddService(request) => {
            let service = new_service(director, request)?;
            apply(director, &Change::AddService { service })
        }
        Request::EditService(request) => {
            let service = edited_service(director, request)?;
            apply(director, &Change::EditService { service })
        }
        Request::Change(change) => {
            let change = with_check(director, change)?;
            apply(director, &change)
        }
    }
}

fn list(director: &mut dyn Director, request: ListRequest, names: &Names) -> Result<Vec<u8>, Failure> {
    let mut services = services(director)?;
    if let Some(wanted) = request.service {
        services.retain(|service| service.spec.key == wanted);
        if services.is_empty() {
            return Err(Failure::absent("No such service"));
        }
    }
    let names = (!request.numeric).then_some(names);
    formatted(|out| output::list(out, services, request, names))
}

fn formatted(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| Failure::absent(format!("cannot format the list: {error}")))?;
    Ok(text)
}

fn apply(director: &mut dyn Director, change: &Change) -> Result<Vec<u8>, Failure> {
    director
        .change(change.clone())
        .map_err(|error| refusal(error, change))?;
    Ok(Vec::new())
}

/// What a line leaves out has IPVS's default. A scheduler that is not there is found out as the kernel does
/// it: after it has looked whether the service may be added at all.
fn new_service(director: &mut dyn Director, request: ServiceRequest) -> Result<ServiceSpec, Failure> {
    if request.scheduler.is_none() && find(services(director)?, request.key).is_some() {
        return Err(Failure::refused("Service already exists"));
    }
    let base = ServiceSpec::new(request.key, Scheduler::default());
    with_request(base, request)
}

/// Replaces all that ipvsadm has words for, with IPVS's default where the line leaves it out. What this
/// director has beyond that stays.
fn edited_service(director: &mut dyn Director, request: ServiceRequest) -> Result<ServiceSpec, Failure> {
    match find(services(director)?, request.key) {
        Some(service) => with_request(service.spec, request),
        None => Err(Failure::refused("No such service")),
    }
}

fn with_request(mut spec: ServiceSpec, request: ServiceRequest) -> Result<ServiceSpec, Failure> {
    let ServiceRequest {
        key: _,
        scheduler,
        flags,
        persistence,
        one_packet,
    } = request;
    let missing = || Failure::refused("Scheduler or persistence engine not found");
    spec.scheduler = scheduler.ok_or_else(missing)?;
    spec.flags = flags;
    spec.persistence = persistence;
    spec.one_packet = one_packet;
    Ok(spec)
}

/// An edited server keeps its health check, which ipvsadm has no words for.
fn with_check(director: &mut dyn Director, mut change: Change) -> Result<Change, Failure> {
    if let Change::EditServer { service, server } = &mut change
        && let Some(known) = find(services(director)?, *service)
    {
        let mut servers = known.servers.into_iter();
        let before = servers.find(|known| known.spec.key == server.key);
        server.check = before.and_then(|before| before.spec.check);
    }
    Ok(change)
}

fn find(services: Vec<Service>, key: ServiceKey) -> Option<Service> {
    services.into_iter().find(|service| service.spec.key == key)
}

fn services(director: &mut dyn Director) -> Result<Vec<Service>, Failure> {
    director.services().map_err(unanswered)
}

/// A question that the agent did not answer.
fn unanswered(error: ClientError) -> Failure {
    match error {
        ClientError::Refused(error) => Failure::refused(error.message),
        error => unreachable_agent(&error),
    }
}

/// A refused change in the kernel's words, where it has words for it.
fn refusal(error: ClientError, change: &Change) -> Failure {
    let ApiError { code, message } = match error {
        ClientError::Refused(error) => error,
        error => return unreachable_agent(&error),
    };
    Failure::refused(match code {
        ErrorCode::ServiceExists => "Service already exists".to_owned(),
        ErrorCode::NoSuchService => "No such service".to_owned(),
        ErrorCode::ServiceNotDefined => "Service not defined".to_owned(),
        ErrorCode::ServerExists => "Destination already exists".to_owned(),
        ErrorCode::NoSuchServer => "No such destination".to_owned(),
        ErrorCode::OutOfRange => "Numerical result out of range".to_owned(),
        ErrorCode::Invalid if !names_unicast(change) => {
            "Invalid operation.  Possibly wrong module version, address not unicast, ...".to_owned()
        }
        // The kernel never has these; the agent's own line says what to do.
        ErrorCode::Invalid
        | ErrorCode::MarkExists
        | ErrorCode::NoSuchMark
        | ErrorCode::NotOnLink
        | ErrorCode::Full
        | ErrorCode::Internal => message,
    })
}

/// Whether the real server of a change, if it has one, has an address that one host alone can have
/// (`ip_vs_new_dest`).
fn names_unicast(change: &Change) -> bool {
    let (Change::AddServer { server, .. } | Change::EditServer { server, .. }) = change else {
        return true;
    };
    let address = server.key.address;
    let is_refused = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_multicast() || is_refused)
}

/// No answer from an agent is what a kernel without IPVS is to ipvsadm: the same status.
fn unreachable_agent(error: &ClientError) -> Failure {
    match error {
        ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::refused("Permission denied (you must be root)")
        }
        error => Failure::usage(format!("Can't initialize ipvs: {error}")),
    }
}
