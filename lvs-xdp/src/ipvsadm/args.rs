//! From the words of a command line to what is to be done, with ipvsadm's checks in ipvsadm's order.
//!
//! What the words mean is decided here without asking the agent. All of ipvsadm's options are known,
//! so that usage errors are the real ones; what this program does not do is refused once the line is known to be
//! right.

use std::net::IpAddr;

use super::{
    Failure, Names, TRY_HELP,
    options::{Kind, Kinds, OPTIONS, Opt, Rule, Verb},
    popt::Scanner,
    values,
};
use crate::api::types::{
    Change, ClientMask, Drain, ForwardingMethod, Persistence, Protocol, Removal, Scheduler, SchedulerFlag,
    ServerKey, ServerSpec, ServiceKey, ServiceSettings, Timeouts, Tunnel, TunnelChecksum, TunnelKind,
};

/// Seconds of `-p` without a value.
const DEFAULT_PERSISTENCE: u32 = 360;

/// The weight of a real server that names none, for `-e` as for `-a`.
const DEFAULT_WEIGHT: u32 = 1;

/// Why `-m` is refused: with masquerading the answers pass the director, and it changes addresses and ports.
const MASQUERADING: &str = "-m (masquerading) is refused: real servers answer their clients directly here; use -g \
                            (direct routing), or -i (tunnelling) for those on other segments";

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Help,
    Version,
    List(ListRequest),
    /// `-L --timeout`
    ListTimeouts,
    /// `-L --daemon`
    ListDaemons,
    /// `-L -c`
    ListConnections {
        /// Addresses and ports by number.
        numeric: bool,
        /// With titles for what persistence engines go by.
        engines: bool,
    },
    /// `-S`
    Save {
        /// Addresses and ports by number.
        numeric: bool,
        /// What ipvsadm leaves out, too.
        full: bool,
    },
    /// `-R`
    Restore,
    /// `-Z`, of one service or of all.
    Zero(Option<ServiceKey>),
    /// `-A`; whether there is such a scheduler is still to be looked at.
    AddService(ServiceRequest),
    /// `-E`; likewise.
    EditService(ServiceRequest),
    /// All that needs no further look: one change, or a real server that is added and drained.
    Change(Vec<Change>),
}

/// A service with its settings; the scheduler is `None` where this program has none of that name, or not the
/// persistence engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceRequest {
    pub(super) key: ServiceKey,
    pub(super) scheduler: Option<Scheduler>,
    pub(super) flags: Vec<SchedulerFlag>,
    pub(super) persistence: Option<Persistence>,
    pub(super) one_packet: bool,
    pub(super) own: OwnOptions,
}

/// What a service has beyond ipvsadm, as far as the line says it: options of our own, which `-S --full` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OwnOptions {
    pub(super) removal: Option<Removal>,
    pub(super) slow_start: Option<u32>,
    pub(super) stateless: bool,
    pub(super) settings: Option<ServiceSettings>,
}

/// What to list, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ListRequest {
    /// Only this service, without the first line.
    pub(super) service: Option<ServiceKey>,
    /// Ports by number.
    pub(super) numeric: bool,
    pub(super) view: View,
    /// Counters in full.
    pub(super) exact: bool,
    /// In the agent's order in place of the addresses'.
    pub(super) unsorted: bool,
}

/// What a list of services shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum View {
    /// Weights, active and inactive connections.
    #[default]
    Weights,
    /// Counters.
    Stats,
    /// What the counters grow by in a second.
    Rates,
    /// Thresholds, active and inactive connections.
    Thresholds,
    /// Weights, persistence templates, active and inactive connections.
    PersistentConnections,
    /// As [`Self::Weights`], with the tunnels.
    TunnelInfo,
}

impl View {
    /// Of several formats the first of this order counts: stats, rate, thresholds, persistent-conn, tun-info.
    fn of(kinds: Kinds) -> Self {
        match () {
            () if kinds.has(Kind::Stats) => Self::Stats,
            () if kinds.has(Kind::Rate) => Self::Rates,
            () if kinds.has(Kind::Thresholds) => Self::Thresholds,
            () if kinds.has(Kind::PersistentConnections) => Self::PersistentConnections,
            () if kinds.has(Kind::TunnelInfo) => Self::TunnelInfo,
            () => Self::Weights,
        }
    }
}

/// Reads the words after the program's name.
pub(super) fn parse(words: &[String], names: &Names) -> Result<Request, Failure> {
    if words.is_empty() {
        return Ok(Request::List(ListRequest::default()));
    }
    let mut scanner = Scanner::new(OPTIONS, words);
    let (verb, value) = match scanner.next_option() {
        Some(Ok((Opt::Command(verb), value))) => (verb, value),
        Some(Ok((Opt::Help, _))) => return Ok(Request::Help),
        Some(Ok((Opt::Version, _))) => return Ok(Request::Version),
        _ => return Err(no_command()),
    };
    match verb {
        Verb::StartDaemon if !values::is_daemon(value) => {
            return Err(Failure::usage("illegal start-daemon parameter specified"));
        }
        Verb::StopDaemon if !values::is_daemon(value) => {
            return Err(Failure::usage("illegal start_daemon specified"));
        }
        _ => {}
    }
    let mut typed = Typed::default();
    while let Some(option) = scanner.next_option() {
        let (option, value) =
            option.map_err(|error| Failure::refused(format!("{}: {error}", scanner.last_word())))?;
        typed.take(option, value, scanner.last_word(), names)?;
    }
    let leftovers = match (verb, scanner.leftovers()) {
        (Verb::Set, [tcp, tcp_fin, udp, rest @ ..]) => {
            typed.timeouts = values::timeouts(&[tcp, tcp_fin, udp])?;
            rest
        }
        (Verb::Set, _) => return Err(Failure::usage("--set option requires 3 timeout values")),
        (_, words) => words,
    };
    if let Some(word) = leftovers.first() {
        return Err(Failure::usage(format!("unexpected argument {word}")));
    }
    typed.read_flags()?;
    check(verb, typed.kinds)?;
    typed.request(verb)
}

/// What is said of a line that does not begin with a command.
pub(super) fn no_command() -> Failure {
    Failure::refused(TRY_HELP)
}

/// The options of a line, as far as they have values.
#[derive(Debug, Default)]
struct Typed<'a> {
    kinds: Kinds,
    service: Option<ServiceKey>,
    /// The address and port of the real server.
    server: Option<(IpAddr, Option<u16>)>,
    scheduler: Option<&'a str>,
    flags_text: Option<&'a str>,
    flags: Vec<SchedulerFlag>,
    persistence: Option<u32>,
    mask: Option<ClientMask>,
    weight: Option<u32>,
    upper_threshold: u32,
    lower_threshold: u32,
    tunnels: bool,
    tunnel_kind: Option<TunnelKind>,
    tunnel_port: u16,
    timeouts: Timeouts,
    masquerades: bool,
    engine: Option<&'a str>,
    own: OwnOptions,
    drain: Option<Drain>,
}

impl<'a> Typed<'a> {
    fn take(
        &mut self,
        option: Opt,
        value: Option<&'a str>,
        word: &str,
        names: &Names,
    ) -> Result<(), Failure> {
        let kind = match option {
            Opt::Command(_) | Opt::Help | Opt::Version => {
                return Err(Failure::usage(format!("invalid option `{word}'")));
            }
            Opt::Sort => return Ok(()),
            Opt::Ipv6 => return self.take_ipv6(),
            Opt::TcpService | Opt::UdpService | Opt::SctpService | Opt::FirewallMark => Kind::ServiceAddress,
            Opt::Masquerading | Opt::Tunnelling | Opt::Gatewaying => Kind::ForwardingMethod,
            Opt::Other(kind) => kind,
        };
        if !self.kinds.insert(kind) {
            return Err(Failure::usage(format!(
                "multiple '{}' options specified",
                kind.name()
            )));
        }
        self.tunnels |= option == Opt::Tunnelling;
        self.masquerades |= option == Opt::Masquerading;
        let text = value.unwrap_or_default();
        match option {
            Opt::TcpService => self.take_service(text, Protocol::Tcp, names)?,
            Opt::UdpService => self.take_service(text, Protocol::Udp, names)?,
            Opt::SctpService => self.take_service(text, Protocol::Sctp, names)?,
            Opt::FirewallMark => {
                let mark = values::mark(text)?;
                self.service = Some(ServiceKey::Mark { mark, ipv6: false });
            }
            // Names of ports are those of the service, where it stands before.
            Opt::Other(Kind::RealServer) => {
                let protocol = self.service.map(|key| key.protocol().unwrap_or(Protocol::Tcp));
                self.server = Some(values::server_address(text, protocol, names)?);
            }
            Opt::Other(
                kind @ (Kind::SyncId | Kind::SyncMaxLength | Kind::MulticastPort | Kind::MulticastTtl),
            ) => {
                values::daemon_number(text, kind)?;
            }
            Opt::Other(Kind::MulticastGroup) => values::multicast_group(text)?,
            // An empty name is none.
            Opt::Other(Kind::Scheduler) => self.scheduler = Some(text).filter(|name| !name.is_empty()),
            Opt::Other(Kind::Engine) => self.engine = Some(text).filter(|name| !name.is_empty()),
            Opt::Other(Kind::SchedulerFlags) => self.flags_text = Some(text),
            Opt::Other(Kind::Persistent) => {
                self.persistence = Some(match value {
                    Some(text) => values::timeout(text, 1)?,
                    None => DEFAULT_PERSISTENCE,
                });
            }
            Opt::Other(Kind::Netmask) => self.mask = Some(values::client_mask(text, self.service, names)?),
            Opt::Other(kind @ Kind::Weight) => self.weight = Some(values::amount(text, kind)?),
            Opt::Other(kind @ Kind::UpperThreshold) => self.upper_threshold = values::amount(text, kind)?,
            Opt::Other(kind @ Kind::LowerThreshold) => self.lower_threshold = values::amount(text, kind)?,
            Opt::Other(Kind::TunnelType) => self.tunnel_kind = Some(values::tunnel_kind(text)?),
            Opt::Other(Kind::Removal) => self.own.removal = Some(values::removal(text)?),
            Opt::Other(Kind::SlowStart) => self.own.slow_start = Some(values::slow_start(text)?),
            Opt::Other(Kind::Settings) => self.own.settings = Some(values::settings(text)?),
            Opt::Other(Kind::Drain) => self.drain = Some(values::drain(value)?),
            Opt::Other(Kind::TunnelPort) => self.tunnel_port = values::tunnel_port(text)?,
            _ => {}
        }
        Ok(())
    }

    /// Which flags there are is up to the scheduler, which may stand behind them.
    fn read_flags(&mut self) -> Result<(), Failure> {
        let flags = self.flags_text.unwrap_or_default();
        self.flags = values::scheduler_flags(flags, self.scheduler_name())?;
        Ok(())
    }

    fn scheduler_name(&self) -> &'a str {
        self.scheduler.unwrap_or(Scheduler::default().name())
    }

    fn take_service(&mut self, text: &str, protocol: Protocol, names: &Names) -> Result<(), Failure> {
        let key = values::service_key(text, protocol, names)?;
        if key.is_ipv6() {
            // The mask of an IPv6 service comes after it; one before it was read as IPv4's, and is forgotten.
            self.mask = None;
        }
        self.service = Some(key);
        Ok(())
    }

    fn take_ipv6(&mut self) -> Result<(), Failure> {
        let Some(ServiceKey::Mark { ipv6, .. }) = &mut self.service else {
            // The real one adds a line of its own.
            return Err(Failure::usage("-6 used before -f\n"));
        };
        *ipv6 = true;
        // As for an IPv6 address.
        self.mask = None;
        Ok(())
    }

    fn request(self, verb: Verb) -> Result<Request, Failure> {
        if verb == Verb::Set {
            let timeouts = self.timeouts;
            return Ok(Request::Change(vec![Change::SetTimeouts { timeouts }]));
        }
        let numeric = self.kinds.has(Kind::Numeric);
        match verb {
            Verb::Save => {
                let full = self.kinds.has(Kind::Full);
                return Ok(Request::Save { numeric, full });
            }
            Verb::Restore => return Ok(Request::Restore),
            Verb::Zero => return Ok(Request::Zero(self.service)),
            // There is none.
            Verb::StopDaemon => return Err(Failure::refused("No daemon is running")),
            Verb::StartDaemon => {
                return Err(Failure::refused(
                    "--start-daemon is refused: this director does not synchronise its connections with another one",
                ));
            }
            _ => {}
        }
        if verb == Verb::List {
            return Ok(match () {
                () if self.kinds.has(Kind::Timeout) => Request::ListTimeouts,
                () if self.kinds.has(Kind::Daemon) => Request::ListDaemons,
                () if self.kinds.has(Kind::Connection) => Request::ListConnections {
                    numeric,
                    engines: self.kinds.has(Kind::PersistentConnections),
                },
                () => Request::List(ListRequest {
                    service: self.service,
                    numeric,
                    view: View::of(self.kinds),
                    exact: self.kinds.has(Kind::Exact),
                    unsorted: self.kinds.has(Kind::NoSort),
                }),
            });
        }
        // `check` has seen to it that every other command has a service, except `-C`.
        let Some(service) = self.service else {
            return Ok(Request::Change(vec![Change::Clear]));
        };
        let server = || self.server_spec(service);
        Ok(match verb {
            Verb::AddService => Request::AddService(self.service_request(service)?),
            Verb::EditService => Request::EditService(self.service_request(service)?),
            // A real server that cannot be reached is taken, as by IPVS; `lvs-xdp status` names it.
            Verb::AddServer => self.drained(
                service,
                Change::AddServer {
                    service,
                    server: server()?,
                    require_on_link: false,
                },
            )?,
            Verb::EditServer => self.drained(
                service,
                Change::EditServer {
                    service,
                    server: server()?,
                },
            )?,
            Verb::DeleteServer => Request::Change(vec![Change::DeleteServer {
                service,
                server: self.server_key(service)?,
            }]),
            _ => Request::Change(vec![Change::DeleteService { service }]),
        })
    }

    /// A change of a real server, and its draining where the line says so.
    fn drained(&self, service: ServiceKey, change: Change) -> Result<Request, Failure> {
        let mut changes = vec![change];
        if let Some(drain) = self.drain {
            changes.push(Change::DrainServer {
                service,
                server: self.server_key(service)?,
                drain,
            });
        }
        Ok(Request::Change(changes))
    }

    fn service_request(&self, key: ServiceKey) -> Result<ServiceRequest, Failure> {
        let one_packet = self.kinds.has(Kind::OnePacket);
        if matches!(key, ServiceKey::Endpoint { port: 0, .. }) && self.persistence.is_none() {
            return Err(Failure::usage("Zero port specified for non-persistent service"));
        }
        if one_packet && key.protocol().is_some_and(|protocol| protocol != Protocol::Udp) {
            return Err(Failure::usage(
                "One-Packet Scheduling is only for UDP virtual services",
            ));
        }
        // As in the kernel, a mask without persistence is taken and has no meaning.
        let persistence = self.persistence.map(|timeout| Persistence {
            timeout,
            mask: self.mask,
        });
        Ok(ServiceRequest {
            key,
            // There is no persistence engine, whatever its name.
            scheduler: self
                .scheduler_name()
                .parse()
                .ok()
                .filter(|_| self.engine.is_none()),
            flags: self.flags.clone(),
            persistence,
            one_packet,
            own: OwnOptions {
                stateless: self.kinds.has(Kind::Stateless),
                ..self.own
            },
        })
    }

    /// The real server; none, where there was no -r, is refused before.
    fn server_key(&self, service: ServiceKey) -> Result<ServerKey, Failure> {
        let (address, typed) = self.server.ok_or_else(values::no_server)?;
        let port = match service {
            // Neither direct routing nor a tunnel can change the port: as ipvsadm does, whatever was typed is
            // overruled.
            ServiceKey::Endpoint { port, .. } => port,
            ServiceKey::Mark { .. } => typed.unwrap_or(0),
        };
        Ok(ServerKey { address, port })
    }

    fn server_spec(&self, service: ServiceKey) -> Result<ServerSpec, Failure> {
        let key = self.server_key(service)?;
        if key.address.is_ipv6() != service.is_ipv6() && !self.tunnels {
            return Err(Failure::usage(
                "Different address family is allowed only for tunneling servers",
            ));
        }
        let method = self.method()?;
        Ok(ServerSpec {
            method,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
            ..ServerSpec::new(key, self.weight.unwrap_or(DEFAULT_WEIGHT))
        })
    }
}

/// What a tunnel's options are to each type of it (`tunnel_types_v_options` of ipvsadm).
const TUNNEL_OPTIONS: [(Kind, [Rule; 3]); 4] = {
    use Rule::{Allowed, Illegal, Required};
    [
        // Of ipip, gue and gre.
        (Kind::TunnelPort, [Illegal, Required, Illegal]),
        (Kind::TunnelNoChecksum, [Illegal, Allowed, Allowed]),
        (Kind::TunnelChecksum, [Illegal, Allowed, Allowed]),
        (Kind::TunnelRemoteChecksum, [Illegal, Allowed, Illegal]),
    ]
};

impl Typed<'_> {
    /// How packets reach the server of the line.
    fn method(&self) -> Result<ForwardingMethod, Failure> {
        let options = TUNNEL_OPTIONS.map(|(kind, _)| kind);
        if !self.tunnels {
            return if self.kinds.has(Kind::TunnelType) || self.kinds.has_any(&options) {
                Err(Failure::usage("Tunnel options conflict with forward method"))
            } else if self.masquerades {
                Err(Failure::refused(MASQUERADING))
            } else {
                Ok(ForwardingMethod::Dr)
            };
        }
        let tunnel = self.tunnel_kind.unwrap_or(TunnelKind::Ipip);
        let mut checksum = None;
        for (kind, rules) in TUNNEL_OPTIONS {
            let option = kind.name();
            match (&rules[tunnel as usize], self.kinds.has(kind)) {
                (Rule::Required, false) => {
                    return Err(Failure::usage(format!(
                        "You need to supply the '{option}' option for the '{tunnel}' tunnel type"
                    )));
                }
                (Rule::Illegal, true) => {
                    return Err(Failure::usage(format!(
                        "Illegal '{option}' option with the '{tunnel}' tunnel type"
                    )));
                }
                (Rule::Allowed, true) => {
                    if let Some(last) = checksum.replace(kind) {
                        return Err(Failure::usage(format!(
                            "The option '{option}' conflicts with the '{}' option in the '{tunnel}' tunnel type",
                            last.name()
                        )));
                    }
                }
                _ => {}
            }
        }
        let checksum = match checksum {
            Some(Kind::TunnelChecksum) => TunnelChecksum::On,
            Some(Kind::TunnelRemoteChecksum) => TunnelChecksum::Remote,
            _ => TunnelChecksum::None,
        };
        Ok(ForwardingMethod::Tunnel(match tunnel {
            TunnelKind::Ipip => Tunnel::Ipip,
            TunnelKind::Gue => Tunnel::Gue {
                port: self.tunnel_port,
                checksum,
            },
            TunnelKind::Gre => Tunnel::Gre {
                checksum: checksum == TunnelChecksum::On,
            },
        }))
    }
}

/// ipvsadm's check of which options a command needs and takes.
fn check(verb: Verb, kinds: Kinds) -> Result<(), Failure> {
    let mut subject = None;
    for kind in Kind::ALL {
        let (option, command) = (kind.name(), verb.name());
        match (verb.rule(kind), kinds.has(kind)) {
            (Rule::Required, false) => {
                return Err(Failure::usage(format!(
                    "You need to supply the '{option}' option for the '{command}' command"
                )));
            }
            (Rule::Illegal, true) => {
                return Err(Failure::usage(format!(
                    "Illegal '{option}' option with the '{command}' command"
                )));
            }
            // A list is of one thing.
            (_, true)
                if verb == Verb::List
                    && matches!(
                        kind,
                        Kind::Connection | Kind::ServiceAddress | Kind::Timeout | Kind::Daemon
                    ) =>
            {
                if let Some(last) = subject.replace(option) {
                    return Err(Failure::usage(format!(
                        "The option '{option}' conflicts with the '{last}' option in the 'list' command"
                    )));
                }
            }
            _ => {}
        }
    }
    if verb == Verb::List {
        check_list(kinds)
    } else {
        Ok(())
    }
}

fn check_list(kinds: Kinds) -> Result<(), Failure> {
    let counters = kinds.has_any(&[Kind::Stats, Kind::Rate, Kind::Thresholds]);
    let persistent = kinds.has(Kind::PersistentConnections);
    if (kinds.has(Kind::Connection) && counters)
        || (kinds.has_any(&[Kind::Timeout, Kind::Daemon]) && (counters || persistent))
    {
        return Err(Failure::usage("options conflicts in the list command"));
    }
    Ok(())
}
