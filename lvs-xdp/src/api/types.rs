//! The words that go over the agent's socket: what is configured, what is seen, what can be changed.
//!
//! The same types are the model of the desired state, so that what the API takes, what is kept on
//! disk and what is listed cannot drift apart.

mod bounded;
mod check;
mod configuration;
mod marks;
mod method;
mod probe;
mod seen;
mod settings;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::line::one_line;

pub use self::{
    bounded::MAX_CHANGES,
    check::{Check, CheckTarget, Fallback, InitialState, OnFailure, ServerCheck, Span},
    configuration::{Action, Configuration, ConfiguredService, Plan, Rollback, Step, Version},
    marks::{MarkRule, Ports},
    method::{ForwardingMethod, Tunnel, TunnelChecksum, TunnelKind},
    probe::{DnsProbe, DnsRecord, ExecProbe, HttpProbe, PassiveProbe, Probe, Statuses, TlsOptions, UdpProbe},
    seen::{
        Announcement, CheckResult, CheckState, CheckStatus, Connection, Flushed, Handshakes, InterfaceStatus,
        Rates, ReasonCount, Server, ServerState, Service, Stats, Status, TableFill, VipState, VipStatus,
        Zero,
    },
    settings::{ClientMask, Persistence, Removal, ServiceSettings, Setting, Settings, Timeouts},
};

/// Lets a word that has a name be written by it and be read from it; what cannot be read is told what to use.
macro_rules! by_name {
    ($type:ident, $what:literal, $usable:expr) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .into_iter()
                    .find(|word| word.name() == text)
                    .ok_or_else(|| format!("`{text}` is no {}: use {}", $what, $usable))
            }
        }
    };
}
use by_name;

/// Reads and writes a type as its text, for `#[serde(into = "String", try_from = "String")]`.
macro_rules! as_text {
    ($name:ident) => {
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}
pub(super) use as_text;

fn one_of<const N: usize>(names: [&str; N]) -> String {
    format!("one of {}", names.join(" "))
}

/// The transport protocol of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, `-t` of ipvsadm.
    Tcp,
    /// UDP, `-u` of ipvsadm.
    Udp,
    /// SCTP, `--sctp-service` of ipvsadm.
    Sctp,
}

impl Protocol {
    /// The IP protocol number (RFC 790 and successors; IANA "Protocol Numbers").
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("`{text}` is no protocol: use tcp, udp or sctp")),
        }
    }
}

/// The scheduler of a virtual service, by IPVS's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    #[default]
    Wlc,
    /// Locality-based least connections.
    Lblc,
    /// The same, with a set of servers for each address.
    Lblcr,
    /// Destination hashing.
    Dh,
    /// Source hashing.
    Sh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Fail-over: the highest weight.
    Fo,
    /// Overflow: the highest weight that has room.
    Ovf,
    /// Maglev hashing.
    Mh,
}

impl Scheduler {
    /// Every scheduler, in the order in which help texts name them.
    pub const ALL: [Self; 13] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
    ];

    /// IPVS's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Mh => "mh",
        }
    }
}

by_name!(
    Scheduler,
    "scheduler",
    one_of(Scheduler::ALL.map(Scheduler::name))
);

/// A flag of the sh and mh schedulers, `-b` of ipvsadm. As IPVS does, other schedulers take them without a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchedulerFlag {
    /// An unusable destination's clients are hashed again (`sh-fallback`, `mh-fallback`).
    Fallback,
    /// The client's port is part of the hash (`sh-port`, `mh-port`).
    Port,
    /// IPVS's third one (`flag-3`), which none of its schedulers has a meaning for.
    Third,
}

/// What identifies a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "a service is named by `protocol`, `address` and `port`, or by `mark`"
)]
pub enum ServiceKey {
    /// The service of a protocol, address and port.
    Endpoint {
        /// Transport protocol.
        protocol: Protocol,
        /// The virtual address (VIP).
        #[schema(value_type = String)]
        address: IpAddr,
        /// The virtual port; 0 is every port of the address that no other service has, and takes persistence.
        port: u16,
    },
    /// The service of all packets that have a firewall mark, of one address family.
    Mark {
        /// The mark, not 0.
        mark: u32,
        /// Whether it is for IPv6.
        #[serde(default, skip_serializing_if = "is_default")]
        ipv6: bool,
    },
}

impl ServiceKey {
    /// The service of a protocol, address and port.
    pub const fn new(protocol: Protocol, address: IpAddr, port: u16) -> Self {
        Self::Endpoint {
            protocol,
            address,
            port,
        }
    }

    /// Whether its clients and real servers have IPv6 addresses.
    pub const fn is_ipv6(&self) -> bool {
        match self {
            Self::Endpoint { address, .. } => address.is_ipv6(),
            Self::Mark { ipv6, .. } => *ipv6,
        }
    }

    /// Its protocol; a mark's service may have all of them.
    pub const fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Endpoint { protocol, .. } => Some(*protocol),
            Self::Mark { .. } => None,
        }
    }

    /// Its port; 0 where it has more than one.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Endpoint { port, .. } => *port,
            Self::Mark { .. } => 0,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Endpoint {
                protocol,
                address,
                port,
            } => write!(f, "{} {}", protocol, SocketAddr::new(address, port)),
            Self::Mark { mark, ipv6: false } => write!(f, "mark {mark}"),
            Self::Mark { mark, ipv6: true } => write!(f, "mark {mark} IPv6"),
        }
    }
}

/// What identifies a real server inside its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct ServerKey {
    /// The real server's own address (RIP).
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The port: that of the service. In a mark's service it has no meaning, and is usually 0.
    pub port: u16,
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// A virtual service as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSpec {
    /// Its identity.
    #[serde(flatten)]
    pub key: ServiceKey,
    /// The scheduler.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Flags of the scheduler, sorted, without repetition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<SchedulerFlag>,
    /// Persistence, `-p` and `-M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
    /// One-packet scheduling, `-o`: each packet of a UDP service is scheduled by itself.
    #[serde(default, skip_serializing_if = "is_default")]
    pub one_packet: bool,
    /// No connections are kept: each packet goes where the hash of its client says (sh, dh and mh only).
    #[serde(default, skip_serializing_if = "is_default")]
    pub stateless: bool,
    /// What becomes of a removed real server's connections; without it what `expire_nodest_conn` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<Removal>,
    /// Seconds in which a new or returning real server comes up to its weight; 0: at once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub slow_start: u32,
    /// Settings of this service that take the place of the director's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settings: ServiceSettings,
    /// How its real servers are checked; without it they count as up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Box<Check>>,
    /// So many of its real servers have to be usable, with a weight above 0; while they are fewer, its fallback takes
    /// all new connections.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub quorum: u32,
    /// Who does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

impl ServiceSpec {
    /// A service with everything else as IPVS has it by default.
    pub fn new(key: ServiceKey, scheduler: Scheduler) -> Self {
        Self {
            key,
            scheduler,
            flags: Vec::new(),
            persistence: None,
            one_packet: false,
            stateless: false,
            removal: None,
            slow_start: 0,
            settings: ServiceSettings::default(),
            check: None,
            quorum: 1,
            fallback: None,
        }
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A real server that is being drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// When it is removed although it has connections left, in seconds since 1970 (UTC); without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
}

/// A real server as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerSpec {
    /// Its identity.
    #[serde(flatten)]
    pub key: ServerKey,
    /// Weight, 0 to 2147483647; 0 keeps connections and takes no new ones.
    pub weight: u32,
    /// How packets reach it.
    #[serde(default)]
    pub method: ForwardingMethod,
    /// `-x`: with so many connections, active and inactive, it gets no new ones; 0: no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upper_threshold: u32,
    /// `-y`: below so many it gets new ones again; 0: three quarters of the upper one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lower_threshold: u32,
    /// Set while it is drained: it takes nothing new, and is removed when its last connection has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What is another one for it than in its service's check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Box<ServerCheck>>,
}

impl ServerSpec {
    /// A server reached by direct routing, without thresholds.
    pub fn new(key: ServerKey, weight: u32) -> Self {
        Self {
            key,
            weight,
            method: ForwardingMethod::Dr,
            upper_threshold: 0,
            lower_threshold: 0,
            drain: None,
            check: None,
        }
    }
}

/// One change of the desired state; a request carries a list, applied all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// `-A`: a new service.
    AddService {
        /// The service.
        service: ServiceSpec,
    },
    /// `-E`: replaces the settings of a service.
    EditService {
        /// The service's new settings.
        service: ServiceSpec,
    },
    /// `-D`: removes a service and its servers.
    DeleteService {
        /// Which one.
        service: ServiceKey,
    },
    /// `-a`: a new real server, at the head of the service's list.
    AddServer {
        /// The service.
        service: ServiceKey,
        /// The real server; its `drain` is not looked at.
        server: ServerSpec,
        /// Refuse a server that is not on-link (true), or take it and name the fault in the status (false).
        #[serde(default)]
        require_on_link: bool,
    },
    /// `-e`: replaces the settings of a real server, and ends its draining.
    EditServer {
        /// The service.
        service: ServiceKey,
        /// The server's new settings; its `drain` is not looked at.
        server: ServerSpec,
    },
    /// `-d`: removes a real server.
    DeleteServer {
        /// The service.
        service: ServiceKey,
        /// Which server.
        server: ServerKey,
    },
    /// Takes a real server out of service without breaking a connection: weight 0, no persistent client
    /// follows to it any more, and when its last connection has ended it is removed.
    DrainServer {
        /// The service.
        service: ServiceKey,
        /// Which server.
        server: ServerKey,
        /// Until when, at the most.
        #[serde(default)]
        drain: Drain,
    },
    /// A new rule that gives packets a mark, behind those that there are: of all rules that match a packet the
    /// first one gives the mark.
    AddMark {
        /// The rule.
        rule: MarkRule,
    },
    /// Removes such a rule.
    DeleteMark {
        /// Which one: the same mark, protocol, addresses and ports.
        rule: MarkRule,
    },
    /// `-C`: removes every service. Rules of marks stay, as the packet filter's do.
    ///
    /// At the head of a list that makes all services anew it replaces the whole table in one step: a service that
    /// is the same after it goes on undisturbed, and no packet sees a table without it.
    Clear,
    /// Removes every rule that gives packets a mark.
    ClearMarks,
    /// `--set`: time-outs of connections; one of 0 stays as it is.
    SetTimeouts {
        /// The new time-outs.
        timeouts: Timeouts,
    },
    /// Replaces the settings of the whole director.
    SetSettings {
        /// The new settings.
        settings: Settings,
    },
}

/// The body of `POST /v1/changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// Applied in this order, all or none; at most [`MAX_CHANGES`].
    #[serde(deserialize_with = "bounded::list")]
    pub changes: Vec<Change>,
    /// Only say what is wrong with them, as far as that can be said without making them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub check: bool,
}

/// Why a request was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// `-A` of a service that exists.
    ServiceExists,
    /// `-E`, `-D` of a service that does not exist.
    NoSuchService,
    /// `-a`, `-e`, `-d` in a service that does not exist.
    ServiceNotDefined,
    /// `-a` of a server that exists.
    ServerExists,
    /// `-e`, `-d` of a server that does not exist.
    NoSuchServer,
    /// A rule that gives packets a mark exists already.
    MarkExists,
    /// There is no such rule.
    NoSuchMark,
    /// The history does not reach back so far.
    NoSuchVersion,
    /// The request's values make no sense together; the message says which.
    Invalid,
    /// A weight or threshold is out of range, where IPVS answers ERANGE; the message says which.
    OutOfRange,
    /// The server cannot be reached by its MAC address.
    NotOnLink,
    /// A table is full, and the message names the option that enlarges it; or the agent has too many clients at once.
    Full,
    /// The client has not said who it is, or may not do this.
    Denied,
    /// The agent itself failed; its log has more.
    Internal,
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// One line for people: what is wrong and what to do.
    pub message: String,
    /// Of a list of changes each one that makes no sense, the first of which is the error itself; a change is looked
    /// at as if those before it that make no sense were not there. None where the error is about no single change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// What is wrong with one of several changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Which one, counted from 0.
    pub index: u64,
    /// For programs.
    pub code: ErrorCode,
    /// One line for people.
    pub message: String,
}

impl ApiError {
    /// An error with its message, in one line: control characters in it are escaped.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: one_line(message),
            faults: Vec::new(),
        }
    }
}
