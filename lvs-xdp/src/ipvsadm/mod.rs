//! A drop-in for ipvsadm 1.31: the same words, tables, messages and exit statuses, spoken to the agent.
//!
//! It has the commands `-A -E -D -a -e -d -C -L --set -h -v` with the options of direct routing over TCP and
//! UDP; what the real one has beyond them is refused by one clear line. Without `-n` ports go by
//! the names of /etc/services, while addresses stay numbers: host names are understood, not printed.

mod args;
mod help;
mod names;
mod options;
mod order;
mod output;
mod popt;
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
    types::{ApiError, Change, ErrorCode, Service, ServiceKey, ServiceSpec, Timeouts},
};

/// What `-v` prints: scripts look at the version before they use an option.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)";

/// The director whose services are listed and changed.
pub trait Director {
    /// Every virtual service, as listed by the agent.
    fn services(&mut self) -> Result<Vec<Service>, ClientError>;

    /// The time-outs of connections.
    fn timeouts(&mut self) -> Result<Timeouts, ClientError>;

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
        Request::AddService(request) => {
            let service = service_spec(director, request, true)?;
            apply(director, &Change::AddService { service })
        }
        Request::EditService(request) => {
            let service = service_spec(director, request, false)?;
            apply(director, &Change::EditService { service })
        }
        Request::Change(change) => apply(director, &change),
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
    let mut table = Vec::new();
    output::list(&mut table, services, request, names)
        .map_err(|error| Failure::absent(format!("cannot format the list: {error}")))?;
    Ok(table)
}

fn apply(director: &mut dyn Director, change: &Change) -> Result<Vec<u8>, Failure> {
    director
        .change(change.clone())
        .map_err(|error| refusal(error, change))?;
    Ok(Vec::new())
}

/// A service as the agent takes it. A scheduler that is not there is found out as the kernel does it:
/// after it has looked whether the service may be added or edited at all.
fn service_spec(
    director: &mut dyn Director,
    request: ServiceRequest,
    new: bool,
) -> Result<ServiceSpec, Failure> {
    let ServiceRequest {
        key,
        scheduler,
        flags,
    } = request;
    if let Some(scheduler) = scheduler {
        return Ok(ServiceSpec {
            flags,
            ..ServiceSpec::new(key, scheduler)
        });
    }
    let exists = has_service(&services(director)?, key);
    Err(Failure::refused(match (new, exists) {
        (true, true) => "Service already exists",
        (false, false) => "No such service",
        _ => "Scheduler or persistence engine not found",
    }))
}

fn has_service(services: &[Service], key: ServiceKey) -> bool {
    services.iter().any(|service| service.spec.key == key)
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
        ErrorCode::Invalid | ErrorCode::NotOnLink | ErrorCode::Full | ErrorCode::Internal => message,
    })
}

/// Whether the real server of a change, if it has one, has an address that one host can have.
fn names_unicast(change: &Change) -> bool {
    let (Change::AddServer { server, .. } | Change::EditServer { server, .. }) = change else {
        return true;
    };
    let address = server.key.address;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || broadcast)
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
