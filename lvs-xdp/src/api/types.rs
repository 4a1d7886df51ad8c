//! The words that go over the agent's socket: what is configured, what is seen, what can be changed.
//!
//! The same types are the model of the desired state, so that what the API takes, what is kept on
//! disk and what is listed cannot drift apart.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The transport protocol of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, `-t` of ipvsadm.
    Tcp,
    /// UDP, `-u` of ipvsadm.
    Udp,
}

impl Protocol {
    /// The IP protocol number (RFC 790 and successors; IANA "Protocol Numbers").
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(format!("`{text}` is no protocol: use tcp or udp")),
        }
    }
}

/// The scheduler of a virtual service, by IPVS's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Fail-over: the highest weight.
    Fo,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Maglev hashing.
    Mh,
}

impl Scheduler {
    /// Every scheduler, in the order in which help texts name them.
    pub const ALL: [Self; 6] = [Self::Rr, Self::Wrr, Self::Fo, Self::Sh, Self::Dh, Self::Mh];

    /// IPVS's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Fo => "fo",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Mh => "mh",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|scheduler| scheduler.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.into_iter().map(Self::name).collect();
                format!("`{text}` is no scheduler: use one of {}", names.join(" "))
            })
    }
}

/// A flag of the sh and mh schedulers, `-b` of ipvsadm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchedulerFlag {
    /// An unusable destination's clients are hashed again (`sh-fallback`, `mh-fallback`).
    Fallback,
    /// The client's port is part of the hash (`sh-port`, `mh-port`).
    Port,
}

/// How packets reach the real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardingMethod {
    /// Direct routing (gatewaying), `-g`: only the MAC addresses change.
    #[default]
    Dr,
}

/// What identifies a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct ServiceKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The virtual address (VIP).
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The virtual port, 1 to 65535.
    pub port: u16,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            address,
            port,
        } = *self;
        write!(f, "{} {}", protocol, SocketAddr::new(address, port))
    }
}

/// What identifies a real server inside its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct ServerKey {
    /// The real server's own address (RIP).
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The port; with direct routing that of the service.
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
    pub scheduler: Scheduler,
    /// Flags of the sh and mh schedulers, sorted, without repetition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<SchedulerFlag>,
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
        /// The real server.
        server: ServerSpec,
        /// Refuse a server that is not on-link (true), or take it and name the fault in the status (false).
        #[serde(default)]
        require_on_link: bool,
    },
    /// `-e`: replaces the settings of a real server.
    EditServer {
        /// The service.
        service: ServiceKey,
        /// The server's new settings.
        server: ServerSpec,
    },
    /// `-d`: removes a real server.
    DeleteServer {
        /// The service.
        service: ServiceKey,
        /// Which server.
        server: ServerKey,
    },
    /// `-C`: removes every service.
    Clear,
    /// `--set`: time-outs of connections; one of 0 stays as it is.
    SetTimeouts {
        /// The new time-outs.
        timeouts: Timeouts,
    },
}

/// Seconds without a packet after which a connection expires, as `--set` of ipvsadm has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp: u32,
    /// TCP, after the client's FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl Default for Timeouts {
    /// IPVS's own.
    fn default() -> Self {
        Self {
            tcp: 900,
            tcp_fin: 120,
            udp: 300,
        }
    }
}

/// The body of `POST /v1/changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// Applied in this order, all or none.
    pub changes: Vec<Change>,
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
    /// The request's values make no sense together; the message says which.
    Invalid,
    /// The server cannot be reached by its MAC address.
    NotOnLink,
    /// A table is full; the message names the option that enlarges it.
    Full,
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
}

impl ApiError {
    /// An error with its message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Counters since the service or server was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets that came in for it.
    pub packets: u64,
    /// Bytes that came in for it: IP lengths, without the Ethernet header, as IPVS counts.
    pub bytes: u64,
}

/// What is known of the way to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Its MAC address is known.
    Ready,
    /// Its MAC address is being asked for.
    Resolving,
    /// Nobody answers for its address: it gets no new connections.
    Unreachable,
    /// It is behind a router, or there is no route: direct routing cannot reach it.
    NotOnLink,
}

/// A real server as configured and as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// As configured.
    #[serde(flatten)]
    pub spec: ServerSpec,
    /// What is known of the way to it.
    pub state: ServerState,
    /// Its MAC address, where known, as `aa:bb:cc:dd:ee:ff`.
    pub mac: Option<String>,
    /// The director's interface towards it, where known.
    pub interface: Option<String>,
    /// Connections in an active state (SYN_RECV, ESTABLISHED).
    pub active: u64,
    /// All other connections, UDP among them.
    pub inactive: u64,
    /// Its counters.
    pub stats: Stats,
}

/// A virtual service as configured and as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// As configured.
    #[serde(flatten)]
    pub spec: ServiceSpec,
    /// Its counters, those of removed servers included.
    pub stats: Stats,
    /// Its real servers, the one added last first (the schedulers' order).
    pub servers: Vec<Server>,
}

/// One connection entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Seconds until the entry expires.
    pub expires: u64,
    /// The state, by IPVS's name: `SYN_RECV`, `ESTABLISHED`, `FIN_WAIT`, `TIME_WAIT`, `CLOSE`, `UDP`.
    pub state: String,
    /// The client.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// The virtual address and port.
    #[schema(value_type = String)]
    pub virtual_address: SocketAddr,
    /// The real server.
    #[schema(value_type = String)]
    pub destination: SocketAddr,
}

/// One interface of the director.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// Why it is generic, where native was tried and failed.
    pub reason: Option<String>,
}

/// A named counter of what became of packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// Its name, such as `not-for-us`.
    pub name: String,
    /// `forward`, `pass` or `drop`.
    pub verdict: String,
    /// What it means.
    pub help: String,
    /// Packets since the program was loaded first.
    pub packets: u64,
}

/// The body of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// The version of the maps' layout.
    pub abi: u32,
    /// The kernel's id of the XDP program.
    pub program_id: u32,
    /// Interfaces the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Entries in the connection table.
    pub connections: u64,
    /// Entries the connection table has room for.
    pub connection_capacity: u64,
    /// Time-outs of connections.
    pub timeouts: Timeouts,
    /// Number of services.
    pub services: u64,
    /// Number of real servers, over all services.
    pub servers: u64,
    /// What became of packets.
    pub reasons: Vec<ReasonCount>,
    /// What needs attention, one line each.
    pub warnings: Vec<String>,
}
