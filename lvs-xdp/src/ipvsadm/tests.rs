//! Whole command lines against a director in memory; [`scenarios`] has some that were recorded.

mod lists;
mod restore;
mod roundtrip;
mod scenarios;
mod services;

use super::*;
use crate::api::types::{
    ApiError, Fault, Handshakes, Rates, Server, ServerSpec, ServerState, Stats, Timeouts,
};

/// A director without agent, program or network: what the kernel would say to each change.
#[derive(Default)]
struct Memory {
    services: Vec<Service>,
    timeouts: Timeouts,
    connections: Vec<Connection>,
}

impl Memory {
    fn service(&mut self, key: ServiceKey, missing: ErrorCode) -> Result<&mut Service, ApiError> {
        let service = self.services.iter_mut().find(|service| service.spec.key == key);
        service.ok_or_else(|| ApiError::new(missing, "agent's words"))
    }

    fn apply(&mut self, change: Change) -> Result<(), ApiError> {
        use ErrorCode as E;
        let refuse = |code| Err(ApiError::new(code, "agent's words"));
        match change {
            Change::AddService { service: spec } => {
                if self.service(spec.key, E::NoSuchService).is_ok() {
                    return refuse(E::ServiceExists);
                }
                self.services.push(Service {
                    spec,
                    stats: Stats::default(),
                    rates: Rates::default(),
                    has_fallen_back: false,
                    servers: Vec::new(),
                });
            }
            Change::EditService { service: spec } => {
                let service = self.service(spec.key, E::NoSuchService)?;
                service.spec = spec;
            }
            Change::DeleteService { service } => {
                self.service(service, E::NoSuchService)?;
                self.services.retain(|other| other.spec.key != service);
            }
            Change::AddServer {
                service,
                server: spec,
                require_on_link,
            } => {
                assert!(!require_on_link, "ipvsadm takes every real server");
                let service = self.service(service, E::ServiceNotDefined)?;
                thresholds_fit(&spec)?;
                if !is_host_address(spec.key.address) {
                    return refuse(E::Invalid);
                }
                if service.servers.iter().any(|server| server.spec.key == spec.key) {
                    return refuse(E::ServerExists);
                }
                let (mac, interface, stats) = (None, None, Stats::default());
                let server = Server {
                    spec,
                    state: ServerState::Ready,
                    mac,
                    interface,
                    active: 0,
                    inactive: 0,
                    persistent: 0,
                    effective_weight: 1,
                    health: None,
                    stats,
                    handshakes: Handshakes::default(),
                    rates: Rates::default(),
                };
                service.servers.insert(0, server);
            }
            Change::EditServer {
                service,
                server: spec,
            } => {
                let service = self.service(service, E::ServiceNotDefined)?;
                thresholds_fit(&spec)?;
                match service
                    .servers
                    .iter_mut()
                    .find(|server| server.spec.key == spec.key)
                {
                    Some(server) => server.spec = spec,
                    None => return refuse(E::NoSuchServer),
                }
            }
            Change::DeleteServer { service, server: key } => {
                let servers = &mut self.service(service, E::ServiceNotDefined)?.servers;
                match servers.iter().position(|server| server.spec.key == key) {
                    Some(index) => drop(servers.remove(index)),
                    None => return refuse(E::NoSuchServer),
                }
            }
            Change::Clear => self.services.clear(),
            Change::SetTimeouts { timeouts } => {
                let keep = |new, old| if new == 0 { old } else { new };
                self.timeouts = Timeouts {
                    tcp: keep(timeouts.tcp, self.timeouts.tcp),
                    tcp_fin: keep(timeouts.tcp_fin, self.timeouts.tcp_fin),
                    udp: keep(timeouts.udp, self.timeouts.udp),
                };
            }
            Change::DrainServer {
                service,
                server,
                drain,
            } => {
                let servers = &mut self.service(service, E::ServiceNotDefined)?.servers;
                match servers.iter_mut().find(|other| other.spec.key == server) {
                    Some(server) => (server.spec.weight, server.spec.drain) = (0, Some(drain)),
                    None => return refuse(E::NoSuchServer),
                }
            }
            Change::SetSettings { .. }
            | Change::AddMark { .. }
            | Change::DeleteMark { .. }
            | Change::ClearMarks => {
                unreachable!("ipvsadm has no words for it")
            }
        }
        Ok(())
    }
}

fn thresholds_fit(spec: &ServerSpec) -> Result<(), ApiError> {
    if spec.lower_threshold > spec.upper_threshold {
        return Err(ApiError::new(ErrorCode::OutOfRange, "agent's words"));
    }
    Ok(())
}

impl Memory {
    /// All or none, as the agent does it.
    fn apply_all(&mut self, changes: Vec<Change>) -> Result<(), ApiError> {
        let before = (self.services.clone(), self.timeouts);
        let is_one = changes.len() == 1;
        let mut faults = Vec::new();
        for (index, change) in (0..).zip(changes) {
            if let Err(ApiError { code, message, .. }) = self.apply(change) {
                faults.push(Fault { index, code, message });
            }
        }
        let Some(first) = faults.first() else {
            return Ok(());
        };
        (self.services, self.timeouts) = before;
        let mut error = ApiError::new(first.code, first.message.clone());
        if !is_one {
            error.faults = faults;
        }
        Err(error)
    }
}

impl Director for Memory {
    fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        Ok(self.services.clone())
    }

    fn service(&mut self, key: ServiceKey) -> Result<Service, ClientError> {
        Ok(Self::service(self, key, ErrorCode::NoSuchService).cloned()?)
    }

    fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
        Ok(self.timeouts)
    }

    fn connections(&mut self, take: &mut dyn FnMut(Connection)) -> Result<(), ClientError> {
        self.connections.iter().cloned().for_each(take);
        Ok(())
    }

    fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError> {
        if let Some(key) = service {
            Self::service(self, key, ErrorCode::NoSuchService)?;
        }
        for counted in &mut self.services {
            if service.is_none_or(|key| key == counted.spec.key) {
                counted.stats = Stats::default();
            }
        }
        Ok(())
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        Ok(self.apply_all(changes)?)
    }

    fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        let mut copy = Self {
            services: self.services.clone(),
            ..Self::default()
        };
        Ok(copy.apply_all(changes)?)
    }
}

/// A director whose agent is not there, does not let this user in, or refuses every change.
struct Deaf(fn() -> ClientError);

impl Director for Deaf {
    fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        Err(self.0())
    }

    fn service(&mut self, _key: ServiceKey) -> Result<Service, ClientError> {
        Err(self.0())
    }

    fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
        Err(self.0())
    }

    fn connections(&mut self, _take: &mut dyn FnMut(Connection)) -> Result<(), ClientError> {
        Err(self.0())
    }

    fn zero(&mut self, _service: Option<ServiceKey>) -> Result<(), ClientError> {
        Err(self.0())
    }

    fn change(&mut self, _changes: Vec<Change>) -> Result<(), ClientError> {
        Err(self.0())
    }

    fn check(&mut self, _changes: Vec<Change>) -> Result<(), ClientError> {
        Err(self.0())
    }
}

/// A director nobody must ask.
fn nobody() -> Deaf {
    Deaf(|| panic!("asked"))
}

fn unreachable(kind: io::ErrorKind) -> ClientError {
    ClientError::Connect {
        target: std::path::PathBuf::from("/agent.sock").into(),
        source: kind.into(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Step {
    argv: Vec<String>,
    status: u8,
    stdout: String,
    stderr: String,
}

/// The names of the machine the records were made on: no reverse DNS, and a usual /etc/services.
fn names() -> Names {
    Names::new(
        || "domain 53/tcp\ndomain 53/udp\nhttp 80/tcp www\n".into(),
        |host| (host == "rs1").then_some([10, 0, 0, 2].into()),
        |_| None,
    )
}

fn run_words(director: &mut dyn Director, argv: Vec<String>) -> Step {
    run_as(Face::Ipvsadm, director, argv, "")
}

fn run_as(face: Face, director: &mut dyn Director, argv: Vec<String>, input: &str) -> Step {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = run(
        face,
        &argv,
        &mut input.as_bytes(),
        director,
        &names(),
        &mut out,
        &mut err,
    );
    let (stdout, stderr) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
    Step {
        argv,
        status,
        stdout,
        stderr,
    }
}

fn run_line(director: &mut dyn Director, line: &str) -> Step {
    run_words(director, line.split_whitespace().map(str::to_owned).collect())
}

fn stdout_of(director: &mut dyn Director, line: &str) -> String {
    let answer = run_line(director, line);
    assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{line}");
    answer.stdout
}

/// What a line is refused with, as `status: message`.
fn refused(director: &mut dyn Director, line: &str) -> String {
    let Step {
        status,
        stdout,
        stderr,
        ..
    } = run_line(director, line);
    assert_eq!(stdout, "", "{line}");
    assert_eq!(stderr.matches('\n').count(), 1, "{line}: {stderr:?}");
    format!("{status}: {}", stderr.trim_end())
}

#[test]
fn what_there_is_not_is_refused_in_one_line() {
    for (line, message) in [
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -m",
            "-m (masquerading) is refused: real servers answer their clients directly here; use -g",
        ),
        (
            "-e -t 10.0.0.1:80 -r 10.0.0.2:8080 --masquerading",
            "-m (masquerading) is refused",
        ),
        ("--start-daemon master", "--start-daemon is refused"),
        (
            "--start-daemon backup --mcast-interface eth0 --syncid 7",
            "--start-daemon is refused",
        ),
        ("--stop-daemon master", "No daemon is running"),
        ("--stop-daemon backup --syncid 7", "No daemon is running"),
    ] {
        let refusal = refused(&mut nobody(), line);
        assert!(
            refusal.starts_with(&format!("255: {message}")),
            "{line}: {refusal}"
        );
    }
    let mut director = Memory::default();
    let not_found = "255: Scheduler or persistence engine not found";
    assert_eq!(
        refused(&mut director, "-A -u 10.0.0.1:53 -s rr --pe sip -p"),
        not_found
    );
    assert_eq!(
        refused(&mut director, "-A -u 10.0.0.1:53 -s rr --pe sip -p"),
        not_found
    );
    assert_eq!(stdout_of(&mut director, "-L --daemon"), "");
}

#[test]
fn usage_errors_need_no_agent() {
    for (line, message) in [
        (
            "-L -c -t 10.0.0.1:80",
            "The option 'service-address' conflicts with the 'connection' option in the 'list' command",
        ),
        (
            "-L --daemon --timeout -c",
            "The option 'timeout' conflicts with the 'connection' option in the 'list' command",
        ),
        ("-L --timeout --rate", "options conflicts in the list command"),
        (
            "-L --daemon --persistent-conn",
            "options conflicts in the list command",
        ),
        ("-L -n -n", "multiple 'numeric' options specified"),
        (
            "-A -t 12345 -s rr",
            "illegal virtual server address[:port] specified",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2:x",
            "illegal real server address[:port] specified",
        ),
        (
            "-a -t 10.0.0.1:80 -r [fd00::2]:80",
            "Different address family is allowed only for tunneling servers",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gue --tun-port 0",
            "illegal tunnel port specified",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-port 1",
            "Illegal 'tun-port' option with the 'ipip' tunnel type",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gre --tun-remcsum",
            "Illegal 'tun-remcsum' option with the 'gre' tunnel type",
        ),
        (
            "-e -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gue --tun-port 1 --tun-nocsum --tun-csum",
            "The option 'tun-csum' conflicts with the 'tun-nocsum' option in the 'gue' tunnel type",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 --tun-csum",
            "Tunnel options conflict with forward method",
        ),
        ("-a -t 10.0.0.1:80 -r 10.0.0.2 -w=-1", "illegal weight specified"),
        ("-A -t 10.0.0.1:80 -s rr -b zz", "invalid scheduler flag `zz'"),
        (
            "-A -t 10.0.0.1:80 -s mh -b sh-port",
            "incompatible scheduler flag `sh-port'",
        ),
        (
            "-A -t 10.0.0.1:80 --add-service",
            "invalid option `--add-service'",
        ),
        ("--set 1 x", "--set option requires 3 timeout values"),
        ("--set 1 2 3 4", "unexpected argument 4"),
        ("--set 1 x 3 4", "invalid timeout value `x' specified"),
        (
            "--start-daemon MASTER foo",
            "illegal start-daemon parameter specified",
        ),
        ("--stop-daemon -n --bogus", "illegal start_daemon specified"),
        (
            "--start-daemon master --start-daemon backup",
            "invalid option `backup'",
        ),
        ("--start-daemon master --syncid 256", "illegal syncid specified"),
        (
            "--start-daemon master --sync-maxlen 65508",
            "illegal sync-maxlen specified",
        ),
        (
            "--start-daemon backup --mcast-port 0",
            "illegal mcast-port specified",
        ),
        ("-L --mcast-ttl 256 foo", "illegal mcast-ttl specified"),
        ("-L --mcast-group 1.2.3.4", "invalid IPv4 mcast-group `1.2.3.4'"),
        ("-L --mcast-group fe80::1", "invalid IPv6 mcast-group `fe80::1'"),
        (
            "--stop-daemon backup --mcast-ttl 3",
            "Illegal 'mcast-ttl' option with the 'stop-daemon' command",
        ),
        // The name of a port is that of the service before it.
        (
            "-a -r 10.0.0.2:http -t 10.0.0.1:80",
            "illegal real server address[:port] specified",
        ),
        ("-A -b x", "invalid scheduler flag `x'"),
        ("-A -b x foo", "unexpected argument foo"),
        (
            "-a -t 10.0.0.1:80 -r [fd00::2]:80 -m",
            "Different address family is allowed only for tunneling servers",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -m --tun-type gue",
            "Tunnel options conflict with forward method",
        ),
        (
            "-A -t [10.0.0.1]:80",
            "Zero port specified for non-persistent service",
        ),
        ("--set 1 2 2678401", "invalid timeout value `2678401' specified"),
        (
            "-A -t 10.0.0.1:80 -p 2678401",
            "invalid timeout value `2678401' specified",
        ),
        ("-A -t 10.0.0.1:80 -p=", "invalid timeout value `' specified"),
        (
            "-A -t 10.0.0.1:80 -p -M 300.0.0.0",
            "illegal virtual server persistent mask specified",
        ),
        (
            "-A -t 10.0.0.1:80 -p -M /24",
            "illegal virtual server persistent mask specified",
        ),
        (
            "-A -t [fd00::1]:80 -p -M 255.255.255.0",
            "illegal ipv6 netmask specified",
        ),
        ("-A -t [fd00::1]:80 -p -M 0", "illegal ipv6 netmask specified"),
        (
            "-A -M fd00::1 -t [fd00::1]:80 -p",
            "illegal virtual server persistent mask specified",
        ),
        (
            "-A -t 10.0.0.1:0",
            "Zero port specified for non-persistent service",
        ),
        (
            "-E --sctp-service 10.0.0.1:80 -o",
            "One-Packet Scheduling is only for UDP virtual services",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -x 2147483648",
            "illegal u_threshold specified",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -y x",
            "illegal l_threshold specified",
        ),
        (
            "-d -t 10.0.0.1:80 -r 10.0.0.2 -x 1",
            "Illegal 'u-threshold' option with the 'delete-server' command",
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -p 60",
            "Illegal 'persistent' option with the 'add-server' command",
        ),
        ("-S --nosort", "Illegal 'nosort' option with the 'save' command"),
        ("-L -c --thresholds", "options conflicts in the list command"),
    ] {
        assert_eq!(refused(&mut nobody(), line), format!("2: {message}"), "{line}");
    }
    let step = run_line(&mut nobody(), "-A -6 -t 10.0.0.1:80");
    assert_eq!((step.status, step.stderr.as_str()), (2, "-6 used before -f\n\n"));
}

#[test]
fn words_are_taken_as_popt_takes_them() {
    let mut director = Memory::default();
    for line in [
        "-At 10.0.0.1:80 -ssh -bsh-port",
        "-at 10.0.0.1:80 -r10.0.0.2 -gw=3",
        "--add-server --tcp-service=10.0.0.1:80 --real-server=10.0.0.3:8080 --weight=4 --",
    ] {
        assert_eq!(stdout_of(&mut director, line), "");
    }
    assert_eq!(
        stdout_of(&mut director, "-lnt10.0.0.1:80"),
        "Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  10.0.0.1:80 sh (sh-port)\n\
         \x20 -> 10.0.0.2:80                  Route   3      0          0         \n\
         \x20 -> 10.0.0.3:80                  Route   4      0          0         \n"
    );
}

#[test]
fn schedulers_that_are_missing_are_not_found() {
    let mut director = Memory::default();
    let not_found = "255: Scheduler or persistence engine not found";
    assert_eq!(refused(&mut director, "-A -t 10.0.0.1:80 -s xyz"), not_found);
    assert_eq!(
        refused(&mut director, "-E -t 10.0.0.1:80 -s xyz"),
        "255: No such service"
    );
    stdout_of(&mut director, "-A -t 10.0.0.1:80 -s rr");
    assert_eq!(
        refused(&mut director, "-A -t 10.0.0.1:80 -s xyz"),
        "255: Service already exists"
    );
    assert_eq!(refused(&mut director, "-E -t 10.0.0.1:80 -s xyz"), not_found);
}

#[test]
fn refusals_are_in_the_kernels_words_or_the_agents() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:80 -s rr");
    let out_of_range = "255: Numerical result out of range";
    let line = "-a -t 10.0.0.1:80 -r 10.0.0.2 -x 5 -y 6";
    assert_eq!(refused(&mut director, line), out_of_range);
    let not_unicast = "255: Invalid operation.  Possibly wrong module version, address not unicast, ...";
    assert_eq!(
        refused(&mut director, "-a -t 10.0.0.1:80 -r 224.0.0.1"),
        not_unicast
    );

    let mut full =
        Deaf(|| ApiError::new(ErrorCode::Full, "no room: start the agent with more --services").into());
    let line = "-A -t 10.0.0.1:80 -s rr";
    assert_eq!(
        refused(&mut full, line),
        "255: no room: start the agent with more --services"
    );
}

#[test]
fn without_an_agent_help_and_version_still_answer() {
    let mut absent = Deaf(|| unreachable(io::ErrorKind::NotFound));
    let help = stdout_of(&mut absent, "-h");
    assert!(help.contains("ipvsadm -A|E SERVICE"));
    assert!(help.contains("rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh;"));
    assert_eq!(stdout_of(&mut absent, "-v"), format!("{VERSION}\n"));
    for line in ["", "-C", "-A -t 10.0.0.1:80 -s wlc"] {
        let refusal = refused(&mut absent, line);
        assert!(
            refusal.starts_with("2: Can't initialize ipvs: no agent answers on /agent.sock:"),
            "{refusal}"
        );
    }
    let mut forbidden = Deaf(|| unreachable(io::ErrorKind::PermissionDenied));
    assert_eq!(
        refused(&mut forbidden, "-Ln"),
        "255: Permission denied (you must be root)"
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    struct Closed(io::ErrorKind);
    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let list = ["-L".to_owned()];
    for (kind, status) in [(io::ErrorKind::BrokenPipe, 0), (io::ErrorKind::StorageFull, 1)] {
        let mut err = Vec::new();
        assert_eq!(
            run(
                Face::Ipvsadm,
                &list,
                &mut io::empty(),
                &mut Memory::default(),
                &names(),
                &mut Closed(kind),
                &mut err
            ),
            status
        );
        assert_eq!(err.is_empty(), status == 0);
    }
}
