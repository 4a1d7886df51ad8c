//! What the agent sees and tells: counters, servers, connections, its own status.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CheckTarget, Protocol, ServerKey, ServerSpec, ServiceKey, ServiceSpec, Settings, Timeouts};

/// Counters since the service or server was added, or since they were set to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets that came in for it.
    pub packets: u64,
    /// Bytes that came in for it: IP lengths, without the Ethernet header, as IPVS counts.
    pub bytes: u64,
}

/// What was seen of a real server's TCP handshakes, since it was added or its counters were set to 0. With direct
/// routing these are the clients' halves: a SYN that comes again, and no acknowledgement, tell of a real server that
/// does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Handshakes {
    /// SYNs that opened a connection.
    pub syns: u64,
    /// SYNs that were sent again, before anything else was seen of their connections.
    pub repeated: u64,
    /// Connections whose client has acknowledged the real server's answer.
    pub acknowledged: u64,
    /// Microseconds from SYN to first acknowledgement, over all of these. The kernel's clock for them ticks every 1 to
    /// 10 ms: of one connection that says little, the mean over many is right.
    pub microseconds: u64,
}

impl Handshakes {
    /// What came after `before`. Counters that have fallen were set to 0 meanwhile: then all that they have.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let has_fallen = self.syns < before.syns
            || self.repeated < before.repeated
            || self.acknowledged < before.acknowledged
            || self.microseconds < before.microseconds;
        if has_fallen {
            return self;
        }
        Self {
            syns: self.syns - before.syns,
            repeated: self.repeated - before.repeated,
            acknowledged: self.acknowledged - before.acknowledged,
            microseconds: self.microseconds - before.microseconds,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            syns: self.syns.saturating_add(other.syns),
            repeated: self.repeated.saturating_add(other.repeated),
            acknowledged: self.acknowledged.saturating_add(other.acknowledged),
            microseconds: self.microseconds.saturating_add(other.microseconds),
        }
    }

    /// Connections in trouble: those that were not acknowledged, or as many as SYNs were sent again if that is more.
    /// Never more than connections were opened.
    pub fn troubled(&self) -> u64 {
        let unacknowledged = self.syns.saturating_sub(self.acknowledged);
        unacknowledged.max(self.repeated).min(self.syns)
    }

    /// Their share, in percent, rounded down; nothing where no connection was opened.
    pub fn troubled_percent(&self) -> Option<u64> {
        let percent = u128::from(self.troubled()) * 100;
        u64::try_from(percent.checked_div(u128::from(self.syns))?).ok()
    }

    /// The mean time from SYN to first acknowledgement, in microseconds; nothing where none was acknowledged.
    pub fn mean_microseconds(&self) -> Option<u64> {
        self.microseconds.checked_div(self.acknowledged)
    }
}

/// Rates as IPVS estimates them: every two seconds each moves a quarter of the way to what the last two seconds had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Connections scheduled a second.
    pub connections: u64,
    /// Packets that came in for it a second.
    pub packets: u64,
    /// Bytes that came in for it a second.
    pub bytes: u64,
}

/// The body of `POST /v1/zero`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Zero {
    /// The service whose counters are set to 0, with its real servers'; without it, those of every service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceKey>,
}

/// What is known of the way to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Its MAC address is known.
    Ready,
    /// It is the director itself: its packets are passed to the host.
    Local,
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
    /// Persistence templates that name it (PersistConn of ipvsadm).
    pub persistent: u64,
    /// The weight that the scheduler goes by: the configured one, or less while it does not answer, is down by
    /// its check, or starts slowly.
    pub effective_weight: u32,
    /// What its check says; nothing where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<CheckState>,
    /// Its counters.
    pub stats: Stats,
    /// What was seen of its TCP handshakes.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// The rates of its counters.
    #[serde(default)]
    pub rates: Rates,
}

/// What a check says of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// It gets connections.
    Up,
    /// It gets no new ones.
    Down,
}

/// One result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckResult {
    /// When it was known, in milliseconds since 1970 (UTC).
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took: u64,
    /// Whether it was good.
    pub is_good: bool,
    /// What was seen, in words.
    pub why: String,
}

/// The check of one real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckStatus {
    /// The service.
    pub service: ServiceKey,
    /// The real server.
    pub server: ServerKey,
    /// What is asked: `tcp`, `http`.
    pub probe: String,
    /// Which address is asked.
    pub target: CheckTarget,
    /// That address and the port; nothing where there is no one to ask.
    #[schema(value_type = Option<String>)]
    pub asked: Option<SocketAddr>,
    /// What follows for the real server.
    pub state: CheckState,
    /// Since when, in milliseconds since 1970 (UTC).
    pub since: u64,
    /// So many results in a row were as the last one.
    pub in_a_row: u32,
    /// The last result that says something of the real server; nothing before the first one.
    pub last: Option<CheckResult>,
    /// Why there is no result for now, where that is not the real server's doing.
    pub fault: Option<String>,
}

/// A virtual service as configured and as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// As configured.
    #[serde(flatten)]
    pub spec: ServiceSpec,
    /// Its counters, those of removed servers included.
    pub stats: Stats,
    /// Their rates.
    #[serde(default)]
    pub rates: Rates,
    /// Whether its fallback takes its new connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_fallen_back: bool,
    /// Its real servers, the one added last first (the schedulers' order).
    pub servers: Vec<Server>,
}

/// One connection entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Transport protocol; none for the persistence template of a mark's service, which is for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Seconds until the entry expires.
    pub expires: u64,
    /// The state, by IPVS's name: `SYN_RECV`, `ESTABLISHED`, `FIN_WAIT`, `TIME_WAIT`, `CLOSE`, `UDP`; of a
    /// persistence template `NONE`, or `ASSURED` once one of its connections was established.
    pub state: String,
    /// The client.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// The virtual address and port. The template of a mark's service has the mark, written as an address, and
    /// port 0.
    #[schema(value_type = String)]
    pub virtual_address: SocketAddr,
    /// The real server.
    #[schema(value_type = String)]
    pub destination: SocketAddr,
}

/// The answer to `DELETE /v1/connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flushed {
    /// How many entries were removed.
    pub removed: u64,
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

/// Who answers ARP requests and neighbour solicitations for a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VipState {
    /// The program.
    Announced,
    /// The host: it is an address of one of its interfaces.
    Host,
    /// Nobody, until a real server of one of its services is usable again.
    Withdrawn,
    /// Nobody here: the agent runs without `--announce`, or no service has the address.
    Silent,
}

/// A virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VipStatus {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Who answers for it.
    pub state: VipState,
}

/// The body of `POST /v1/announce` and of its answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Virtual addresses: those to be announced, where there are none all that are answered for here; and those
    /// that are.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// How full a table is whose size was set when the agent was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TableFill {
    /// What it holds: `services`, `destinations`, `lists`, `rings`.
    pub name: String,
    /// Rows in use, those of what was removed and has connections left included.
    pub used: u64,
    /// Rows that there are.
    pub capacity: u64,
    /// The agent's option that sets its size.
    pub option: String,
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
    /// The directory of its pins.
    #[serde(default)]
    pub pin_dir: String,
    /// Interfaces the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Interfaces that it should be attached to and is not: they are gone, or something is in the way.
    #[serde(default)]
    pub detached: Vec<String>,
    /// The virtual addresses, and who answers for them.
    pub vips: Vec<VipStatus>,
    /// Entries in the connection table.
    pub connections: u64,
    /// Entries the connection table has room for.
    pub connection_capacity: u64,
    /// How full the tables of the configuration are.
    #[serde(default)]
    pub tables: Vec<TableFill>,
    /// Time-outs of connections.
    pub timeouts: Timeouts,
    /// Settings of the whole director.
    pub settings: Settings,
    /// Number of services.
    pub services: u64,
    /// Number of real servers, over all services.
    pub servers: u64,
    /// What became of packets.
    pub reasons: Vec<ReasonCount>,
    /// What needs attention, one line each.
    pub warnings: Vec<String>,
}
