//! From the words of a command line to what is to be done, with ipvsadm's checks in ipvsadm's order.
//!
//! What the words mean is decided here without asking the agent. All of ipvsadm's options are known,
//! so that usage errors are the real ones; an option that has a meaning this program does not have
//! yet is refused as soon as the line is known to be right.

use super::{
    Failure, Names,
    options::{Kind, Kinds, OPTIONS, Opt, Rule, Verb},
    popt::Scanner,
    values,
};
use crate::api::types::{
    Change, ClientMask, ForwardingMethod, Persistence, Protocol, Scheduler, SchedulerFlag, ServerKey,
    ServerSpec, ServiceKey, Timeouts, Tunnel, TunnelChecksum, TunnelKind,
};

/// Seconds of `-p` without a value.
const DEFAULT_PERSISTENCE: u32 = 360;

/// The weight of a real server that names none, for `-e` as for `-a`.
const DEFAULT_WEIGHT: u32 = 1;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Help,
    Version,
    List(ListRequest),
    /// `-L --timeout`
    ListTimeouts,
    /// `-L -c`
    ListConnections {
        /// Ports by number.
        numeric: bool,
    },
    /// `-S`
    Save {
        /// Ports by number.
        numeric: bool,
    },
    /// `-A`; whether there is such a scheduler is still to be looked at.
    AddService(ServiceRequest),
    /// `-E`; likewise.
    EditService(ServiceRequest),
    /// All that needs no further look.
    Change(Change),
}

/// A service with its settings; the scheduler is `None` where this program has none of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceRequest {
    pub(super) key: ServiceKey,
    pub(super) scheduler: Option<Scheduler>,
    pub(super) flags: Vec<SchedulerFlag>,
    pub(super) persistence: Option<Persistence>,
    pub(super) one_packet: bool,
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
    let verb = match scanner.next_option() {
        Some(Ok((Opt::Command(verb), _))) => verb,
        Some(Ok((Opt::Help, _))) => return Ok(Request::Help),
        Some(Ok((Opt::Version, _))) => return Ok(Request::Version),
        _ => {
            return Err(Failure::refused(
                "Try `ipvsadm -h' or 'ipvsadm --help' for more information.",
            ));
        }
    };
    let mut typed = Typed::default();
    while let Some(option) = scanner.next_option() {
        let (option, value) =
            option.map_err(|error| Failure::refused(format!("{}: {error}", scanner.last_word())))?;
        typed.take(option, value, scanner.last_word(), names)?;
    }
    match (verb, scanner.leftovers()) {
        (Verb::Set, &[tcp, tcp_fin, udp]) => typed.timeouts = values::timeouts(&[tcp, tcp_fin, udp])?,
        (Verb::Set, _) => return Err(Failure::usage("--set option requires 3 timeout values")),
        (_, &[word, ..]) => return Err(Failure::usage(format!("unexpected argument {word}"))),
        (_, []) => {}
    }
    check(verb, typed.kinds)?;
    typed.refuse_unsupported(verb)?;
    typed.request(verb, names)
}

/// The options of a line, as far as they have values.
#[derive(Debug, Default)]
struct Typed<'a> {
    kinds: Kinds,
    service: Option<ServiceKey>,
    server: Option<&'a str>,
    scheduler: Option<&'a str>,
    flags: Option<&'a str>,
    persistence: Option<u32>,
    mask: Option<ClientMask>,
    weight: Option<u32>,
    upper_threshold: u32,
    lower_threshold: u32,
    tunnels: bool,
    tunnel_kind: Option<TunnelKind>,
    tunnel_port: u16,
    mark: bool,
    timeouts: Timeouts,
    /// The first option on the line that has no meaning here.
    unsupported: Option<&'static str>,
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
            Opt::Ipv6 if self.mark => return Ok(()),
            Opt::Ipv6 => return Err(Failure::usage("-6 used before -f")),
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
        self.mark |= option == Opt::FirewallMark;
        self.tunnels |= option == Opt::Tunnelling;
        self.unsupported = self.unsupported.or(unsupported_option(option));
        let text = value.unwrap_or_default();
        match option {
            Opt::TcpService => self.take_service(text, Protocol::Tcp, names)?,
            Opt::UdpService => self.take_service(text, Protocol::Udp, names)?,
            Opt::SctpService => self.take_service(text, Protocol::Sctp, names)?,
            Opt::Other(Kind::RealServer) => self.server = Some(text),
            Opt::Other(Kind::Scheduler) => self.scheduler = Some(text),
            Opt::Other(Kind::SchedulerFlags) => self.flags = Some(text),
            Opt::Other(Kind::Persistent) => {
                self.persistence = Some(match value {
                    Some(text) => values::timeout(text, 1)?,
                    None => DEFAULT_PERSISTENCE,
                });
            }
            Opt::Other(Kind::Netmask) => self.mask = Some(values::client_mask(text, self.service)?),
            Opt::Other(kind @ Kind::Weight) => self.weight = Some(values::amount(text, kind)?),
            Opt::Other(kind @ Kind::UpperThreshold) => self.upper_threshold = values::amount(text, kind)?,
            Opt::Other(kind @ Kind::LowerThreshold) => self.lower_threshold = values::amount(text, kind)?,
            Opt::Other(Kind::TunnelType) => self.tunnel_kind = Some(values::tunnel_kind(text)?),
            Opt::Other(Kind::TunnelPort) => self.tunnel_port = values::tunnel_port(text)?,
            _ => {}
        }
        Ok(())
    }

    fn take_service(&mut self, text: &str, protocol: Protocol, names: &Names) -> Result<(), Failure> {
        let key = values::service_key(text, protocol, names)?;
        if key.address.is_ipv6() {
            // The mask of an IPv6 service comes after it; one before it was read as IPv4's, and is forgotten.
            self.mask = None;
        }
        self.service = Some(key);
        Ok(())
    }

    fn refuse_unsupported(&self, verb: Verb) -> Result<(), Failure> {
        let format = match verb {
            Verb::List => unsupported_list(self.kinds),
            _ => None,
        };
        match unsupported_command(verb).or(self.unsupported).or(format) {
            Some(what) => Err(Failure::refused(what)),
            None => Ok(()),
        }
    }

    fn request(self, verb: Verb, names: &Names) -> Result<Request, Failure> {
        if verb == Verb::Set {
            let timeouts = self.timeouts;
            return Ok(Request::Change(Change::SetTimeouts { timeouts }));
        }
        let numeric = self.kinds.has(Kind::Numeric);
        if verb == Verb::Save {
            return Ok(Request::Save { numeric });
        }
        if verb == Verb::List {
            return Ok(match () {
                () if self.kinds.has(Kind::Timeout) => Request::ListTimeouts,
                () if self.kinds.has(Kind::Connection) => Request::ListConnections { numeric },
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
            return Ok(Request::Change(Change::Clear));
        };
        let server = || self.server_spec(service, names);
        Ok(match verb {
            Verb::AddService => Request::AddService(self.service_request(service)?),
            Verb::EditService => Request::EditService(self.service_request(service)?),
            // A real server that cannot be reached is taken, as by IPVS; `lvs-xdp status` names it.
            Verb::AddServer => Request::Change(Change::AddServer {
                service,
                server: server()?,
                require_on_link: false,
            }),
            Verb::EditServer => Request::Change(Change::EditServer {
                service,
                server: server()?,
            }),
            Verb::DeleteServer => Request::Change(Change::DeleteServer {
                service,
                server: server()?.key,
            }),
            _ => Request::Change(Change::DeleteService { service }),
        })
    }

    fn service_request(&self, key: ServiceKey) -> Result<ServiceRequest, Failure> {
        let one_packet = self.kinds.has(Kind::OnePacket);
        if key.port == 0 && self.persistence.is_none() {
            return Err(Failure::usage("Zero port specified for non-persistent service"));
        }
        if one_packet && key.protocol != Protocol::Udp {
            return Err(Failure::usage(
                "One-Packet Scheduling is only for UDP virtual services",
            ));
        }
        let scheduler = self.scheduler.unwrap_or(Scheduler::default().name());
        let flags = values::scheduler_flags(self.flags.unwrap_or_default(), scheduler)?;
        // As in the kernel, a mask without persistence is taken and has no meaning.
        let persistence = self.persistence.map(|timeout| Persistence {
            timeout,
            mask: self.mask,
        });
        Ok(ServiceRequest {
            key,
            scheduler: scheduler.parse().ok(),
            flags,
            persistence,
            one_packet,
        })
    }

    fn server_spec(&self, service: ServiceKey, names: &Names) -> Result<ServerSpec, Failure> {
        let address = values::server_address(self.server.unwrap_or_default(), service.protocol, names)?;
        if address.is_ipv4() != service.address.is_ipv4() && !self.tunnels {
            return Err(Failure::usage(
                "Different address family is allowed only for tunneling servers",
            ));
        }
        let method = self.method()?;
        // Neither direct routing nor a tunnel can change the port: as ipvsadm does, whatever was typed is
        // overruled.
        let key = ServerKey {
            address,
            port: service.port,
        };
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
    let mut views = [
        Kind::Connection,
        Kind::ServiceAddress,
        Kind::Timeout,
        Kind::Daemon,
    ]
    .into_iter()
    .filter(|&kind| kinds.has(kind));
    if let (Some(one), Some(other)) = (views.next(), views.next()) {
        return Err(Failure::usage(format!(
            "The option '{}' conflicts with the '{}' option in the 'list' command",
            one.name(),
            other.name()
        )));
    }
    let counters = kinds.has_any(&[Kind::Stats, Kind::Rate, Kind::Thresholds]);
    let persistent = kinds.has(Kind::PersistentConnections);
    if (kinds.has(Kind::Connection) && counters)
        || (kinds.has_any(&[Kind::Timeout, Kind::Daemon]) && (counters || persistent))
    {
        return Err(Failure::usage("options conflicts in the list command"));
    }
    Ok(())
}

fn unsupported_command(verb: Verb) -> Option<&'static str> {
    match verb {
        Verb::StartDaemon => Some("--start-daemon (connection synchronisation) is not supported yet"),
        Verb::StopDaemon => Some("--stop-daemon (connection synchronisation) is not supported yet"),
        Verb::Restore => Some("-R (restoring rules) is not supported yet"),
        Verb::Zero => Some("-Z (zeroing counters) is not supported yet"),
        Verb::AddService
        | Verb::EditService
        | Verb::DeleteService
        | Verb::Flush
        | Verb::List
        | Verb::Save
        | Verb::Set
        | Verb::AddServer
        | Verb::DeleteServer
        | Verb::EditServer => None,
    }
}

fn unsupported_option(option: Opt) -> Option<&'static str> {
    match option {
        Opt::FirewallMark => Some("-f (firewall marks) is not supported yet"),
        Opt::Masquerading => Some(
            "-m (masquerading) is not direct routing, where real servers answer the client themselves: use -g",
        ),
        Opt::Other(Kind::Engine) => Some("--pe (persistence engines) is not supported yet"),
        _ => None,
    }
}

fn unsupported_list(kinds: Kinds) -> Option<&'static str> {
    match () {
        () if kinds.has(Kind::Daemon) => Some("-L --daemon is not supported yet"),
        // Counters come before rates where both are asked for, see `View::of`.
        () if kinds.has(Kind::Rate) && !kinds.has(Kind::Stats) => Some("-L --rate is not supported yet"),
        () => None,
    }
}
