//! A drop-in for ipvsadm 1.31: the same words, tables, messages and exit statuses, spoken to the agent.
//!
//! What of it this director does not have is refused by one clear line: masquerading, the daemon that
//! synchronises connections, persistence engines. Where nobody can depend on the worse it is better: `-R` applies
//! its rules all or none, reports every bad line, and takes comments; `-S --full` saves what ipvsadm leaves out.

mod args;
mod desired;
mod help;
mod names;
mod options;
mod order;
mod output;
mod popt;
mod restore;
mod save;
#[cfg(test)]
mod tests;
mod values;

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::ExitCode,
};

pub use desired::Desired;
pub use names::Names;
pub(crate) use restore::rules;

use args::{ListRequest, Request, ServiceRequest};

use crate::{
    api::{
        client::{BlockingClient, ClientError, if_there},
        target::ClientOptions,
        types::{Change, Connection, ErrorCode, Scheduler, Service, ServiceKey, ServiceSpec, Timeouts},
    },
    model::is_host_address,
};

/// What `-v` prints: scripts look at the version before they use an option.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)";

/// What is said of a line that does not begin with a command.
const TRY_HELP: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.";

/// The same, of a program of another name.
fn try_help(program: &str) -> String {
    format!("Try `{program} -h' or '{program} --help' for more information.")
}

/// What the kernel says where it has no scheduler or persistence engine of a name.
const NO_SCHEDULER: &str = "Scheduler or persistence engine not found";

/// The director whose services are listed and changed.
pub trait Director {
    /// Every virtual service, as listed by the agent.
    fn services(&mut self) -> Result<Vec<Service>, ClientError>;

    /// One of them; refused where there is none of that name.
    fn service(&mut self, key: ServiceKey) -> Result<Service, ClientError>;

    /// The time-outs of connections.
    fn timeouts(&mut self) -> Result<Timeouts, ClientError>;

    /// Hands on every connection entry, persistence templates among them.
    fn connections(&mut self, take: &mut dyn FnMut(Connection)) -> Result<(), ClientError>;

    /// Sets the counters of one service or of all to 0.
    fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError>;

    /// Applies changes, all or none.
    fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError>;

    /// Says whether they could be applied, and changes nothing.
    fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError>;
}

impl Director for BlockingClient {
    fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        Self::services(self)
    }

    fn service(&mut self, key: ServiceKey) -> Result<Service, ClientError> {
        Self::service(self, key)
    }

    fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
        self.status().map(|status| status.timeouts)
    }

    fn connections(&mut self, take: &mut dyn FnMut(Connection)) -> Result<(), ClientError> {
        self.each_connection(take)
    }

    fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError> {
        Self::zero(self, service)
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        Self::change(self, changes)
    }

    fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        Self::check(self, changes)
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

/// By which of ipvsadm's names the program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `ipvsadm`
    Ipvsadm,
    /// `ipvsadm-save [-n] [--full]`: `ipvsadm -S`.
    Save,
    /// `ipvsadm-restore`: `ipvsadm -C` and `ipvsadm -R` in one step.
    Restore,
}

impl Face {
    /// Every one, with the name of its link.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Ipvsadm, "ipvsadm"),
        (Self::Save, "ipvsadm-save"),
        (Self::Restore, "ipvsadm-restore"),
    ];

    /// What a program is that was called by this path; nothing where it is not one of ipvsadm's. What stands before
    /// the name, as in `lvs-ipvsadm`, does not matter.
    pub fn of(called_as: &OsStr) -> Option<Self> {
        let name = Path::new(called_as).file_name()?.as_bytes();
        let face = Self::ALL
            .into_iter()
            .find(|(_, link)| name.ends_with(link.as_bytes()));
        face.map(|(face, _)| face)
    }
}

/// Runs as ipvsadm on this process's standard input, output and error. `program` is the name that it was called by,
/// `words` are those after it. ipvsadm has no option for the agent; `connection` is what those of `lvs-xdp` say.
pub fn main(
    face: Face,
    program: &OsStr,
    words: impl Iterator<Item = OsString>,
    connection: ClientOptions,
) -> ExitCode {
    // A word that is no text can be no address, scheduler or number: what replaces its bytes is none either.
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let target = match connection.target() {
        Ok(target) => target,
        Err(error) => {
            drop(writeln!(io::stderr(), "{}: {error}", program.to_string_lossy()));
            return ExitCode::from(2);
        }
    };
    let mut director = BlockingClient::new(target);
    let mut out = BufWriter::new(io::stdout().lock());
    let mut errors = Vec::new();
    let status = run(
        face,
        &words,
        &mut io::stdin(),
        &mut director,
        &Names::of_this_host(),
        &mut out,
        &mut errors,
    );
    // The real one names itself in this message as it was called.
    let errors = String::from_utf8_lossy(&errors).replace(TRY_HELP, &try_help(&program.to_string_lossy()));
    drop(io::stderr().write_all(errors.as_bytes()));
    ExitCode::from(status)
}

/// Runs one command line: `words` are those after the program's name, `input` is what `-R` reads. Returns the exit
/// status.
pub fn run(
    face: Face,
    words: &[String],
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let done = match face {
        Face::Ipvsadm => perform(words, input, director, names),
        Face::Save => save::parse(words).and_then(|request| answer(request, director, names)),
        Face::Restore => restore::replace(input, director, names),
    };
    let failure = match done {
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
fn perform(
    words: &[String],
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
) -> Result<Vec<u8>, Failure> {
    match args::parse(words, names)? {
        Request::Restore => restore::add(input, director, names),
        request => answer(request, director, names),
    }
}

/// Does what is asked for; returns what goes to standard output.
fn answer(request: Request, director: &mut dyn Director, names: &Names) -> Result<Vec<u8>, Failure> {
    match request {
        Request::Help => Ok(help::text().into()),
        Request::Version => Ok(format!("{VERSION}\n").into()),
        Request::List(request) => list(director, request, names),
        Request::ListTimeouts => {
            let Timeouts { tcp, tcp_fin, udp } = director.timeouts().map_err(unanswered)?;
            Ok(format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n").into())
        }
        // Without an agent there is nobody to have daemons or none.
        Request::ListDaemons => director.timeouts().map(|_| Vec::new()).map_err(unanswered),
        Request::ListConnections { numeric, engines } => {
            let names = (!numeric).then_some(names);
            let mut text = output::connection_titles(engines);
            // There may be millions of them.
            director
                .connections(&mut |connection| text += &output::connection(&connection, names))
                .map_err(unanswered)?;
            Ok(text.into())
        }
        Request::Save { numeric, full } => {
            let services = director.services().map_err(unanswered)?;
            let names = (!numeric).then_some(names);
            formatted(|out| save::rules(out, services, full, names))
        }
        Request::Zero(service) => {
            director.zero(service).map_err(|error| refusal(error, None))?;
            Ok(Vec::new())
        }
        Request::AddService(request) => {
            let service = new_service(director, request)?;
            apply(director, vec![Change::AddService { service }])
        }
        Request::EditService(request) => {
            let service = edited_service(director, request)?;
            apply(director, vec![Change::EditService { service }])
        }
        Request::Change(changes) => {
            let changes = with_checks(director, changes)?;
            apply(director, changes)
        }
        // The rules come from standard input, and that is taken already.
        Request::Restore => Err(args::no_command()),
    }
}

fn list(director: &mut dyn Director, request: ListRequest, names: &Names) -> Result<Vec<u8>, Failure> {
    let services = match request.service {
        None => director.services().map_err(unanswered)?,
        Some(wanted) => {
            let service = find(director, wanted)?;
            vec![service.ok_or_else(|| Failure::absent("No such service"))?]
        }
    };
    let names = (!request.numeric).then_some(names);
    formatted(|out| output::list(out, services, request, names))
}

fn formatted(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| Failure::absent(format!("cannot format the list: {error}")))?;
    Ok(text)
}

fn apply(director: &mut dyn Director, changes: Vec<Change>) -> Result<Vec<u8>, Failure> {
    let last = changes.last().cloned();
    director
        .change(changes)
        .map_err(|error| refusal(error, last.as_ref()))?;
    Ok(Vec::new())
}

/// What a line leaves out has IPVS's default. A scheduler that is not there is found out as the kernel does
/// it: after it has looked whether the service may be added at all.
fn new_service(director: &mut dyn Director, request: ServiceRequest) -> Result<ServiceSpec, Failure> {
    if request.scheduler.is_none() && find(director, request.key)?.is_some() {
        return Err(Failure::refused("Service already exists"));
    }
    let base = ServiceSpec::new(request.key, Scheduler::default());
    with_request(base, request)
}

/// Replaces all that ipvsadm has words for, with IPVS's default where the line leaves it out. What this
/// director has beyond that stays.
fn edited_service(director: &mut dyn Director, request: ServiceRequest) -> Result<ServiceSpec, Failure> {
    match find(director, request.key)? {
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
        own,
    } = request;
    spec.scheduler = scheduler.ok_or_else(|| Failure::refused(NO_SCHEDULER))?;
    spec.flags = flags;
    spec.persistence = persistence;
    spec.one_packet = one_packet;
    spec.removal = own.removal.or(spec.removal);
    spec.stateless |= own.stateless;
    spec.slow_start = own.slow_start.unwrap_or(spec.slow_start);
    spec.settings = own.settings.unwrap_or(spec.settings);
    Ok(spec)
}

fn find(director: &mut dyn Director, key: ServiceKey) -> Result<Option<Service>, Failure> {
    if_there(director.service(key)).map_err(unanswered)
}

/// An edited server keeps its health check, which ipvsadm has no words for.
fn with_checks(director: &mut dyn Director, mut changes: Vec<Change>) -> Result<Vec<Change>, Failure> {
    for change in &mut changes {
        let Change::EditServer { service, server } = change else {
            continue;
        };
        let known = find(director, *service)?.map_or_else(Vec::new, |service| service.servers);
        let before = known.into_iter().find(|known| known.spec.key == server.key);
        server.check = before.and_then(|before| before.spec.check);
    }
    Ok(changes)
}

/// A question that the agent did not answer.
fn unanswered(error: ClientError) -> Failure {
    match error {
        ClientError::Refused(error) => Failure::refused(error.message),
        error => unreachable_agent(&error),
    }
}

/// A refused change in the kernel's words, where it has words for it.
fn refusal(error: ClientError, change: Option<&Change>) -> Failure {
    match error {
        ClientError::Refused(error) => Failure::refused(in_kernels_words(error.code, error.message, change)),
        error => unreachable_agent(&error),
    }
}

fn in_kernels_words(code: ErrorCode, message: String, change: Option<&Change>) -> String {
    match code {
        ErrorCode::ServiceExists => "Service already exists".to_owned(),
        ErrorCode::NoSuchService => "No such service".to_owned(),
        ErrorCode::ServiceNotDefined => "Service not defined".to_owned(),
        ErrorCode::ServerExists => "Destination already exists".to_owned(),
        ErrorCode::NoSuchServer => "No such destination".to_owned(),
        ErrorCode::OutOfRange => "Numerical result out of range".to_owned(),
        ErrorCode::Invalid if change.is_some_and(|change| !names_unicast(change)) => {
            "Invalid operation.  Possibly wrong module version, address not unicast, ...".to_owned()
        }
        // The kernel never has these; the agent's own line says what to do.
        ErrorCode::Invalid
        | ErrorCode::MarkExists
        | ErrorCode::NoSuchMark
        | ErrorCode::NoSuchVersion
        | ErrorCode::NotOnLink
        | ErrorCode::Full
        | ErrorCode::Denied
        | ErrorCode::Internal => message,
    }
}

/// Whether the real server of a change, if it has one, has an address that one host alone can have
/// (`ip_vs_new_dest`).
fn names_unicast(change: &Change) -> bool {
    let (Change::AddServer { server, .. } | Change::EditServer { server, .. }) = change else {
        return true;
    };
    is_host_address(server.key.address)
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
