//! What can be set beside services and servers: persistence, what becomes of removed servers' connections,
//! IPVS's settings, time-outs.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{as_text, by_name, one_of};

/// Which part of a client's address persistence goes by, `-M` of ipvsadm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ClientMask {
    /// IPv4: a netmask, such as `255.255.255.0`; as with IPVS any one, contiguous or not.
    V4(Ipv4Addr),
    /// IPv6: a prefix length, 1 to 128.
    V6(u8),
}

impl fmt::Display for ClientMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(mask) => mask.fmt(f),
            Self::V6(length) => length.fmt(f),
        }
    }
}

impl FromStr for ClientMask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(mask) = text.parse() {
            return Ok(Self::V4(mask));
        }
        match text.parse() {
            Ok(length @ 1..=128) => Ok(Self::V6(length)),
            _ => Err(format!(
                "`{text}` is no mask: use an IPv4 netmask such as 255.255.255.0, or an IPv6 prefix length from 1 to 128"
            )),
        }
    }
}

as_text!(ClientMask);

/// Persistence of a virtual service, `-p` of ipvsadm: a client (or its network) stays with its real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Persistence {
    /// Seconds after the last new connection for which the client stays with its real server, 1 to 2678400.
    pub timeout: u32,
    /// Who counts as one client: an IPv4 netmask or an IPv6 prefix length; without it, each address for itself.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<ClientMask>,
}

/// What becomes of a removed real server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Removal {
    /// Their packets are dropped until they expire: what IPVS does.
    Drop,
    /// The next packet of each is scheduled anew, or refused where it opens nothing: what IPVS does with
    /// expire_nodest_conn.
    Reschedule,
    /// The next packet of a TCP connection is answered with a reset from the virtual address, so that the
    /// client connects again at once. All else is as with `reschedule`.
    Reset,
}

impl Removal {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Drop, Self::Reschedule, Self::Reset];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reschedule => "reschedule",
            Self::Reset => "reset",
        }
    }
}

by_name!(Removal, "removal policy", "drop, reschedule or reset");

/// What IPVS has as sysctls net.ipv4.vs.*, under the same names. Each is for the whole director
/// ([`Settings`]) or, here, for one service, where it takes the director's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// 0 or 1: connections of a removed real server are scheduled anew, and so is a SYN on a connection
    /// whose real server has weight 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_nodest_conn: Option<u32>,
    /// 0 or 1: a persistent client leaves a real server of weight 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_quiescent_template: Option<u32>,
    /// 0: a SYN on a connection that has ended goes where that went; 1: it is scheduled anew; with bit 1
    /// (2, 3) also after the client's FIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conn_reuse_mode: Option<u32>,
    /// 0 or 1: a TCP packet that is no SYN may start a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sloppy_tcp: Option<u32>,
    /// 0 or 1: an SCTP packet that is no INIT may start a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sloppy_sctp: Option<u32>,
}

/// The settings of the whole director, by IPVS's names and with its defaults (net.ipv4.vs.*,
/// Documentation/networking/ipvs-sysctl.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    /// As in [`ServiceSettings`].
    pub expire_nodest_conn: u32,
    /// As in [`ServiceSettings`].
    pub expire_quiescent_template: u32,
    /// As in [`ServiceSettings`].
    pub conn_reuse_mode: u32,
    /// As in [`ServiceSettings`].
    pub sloppy_tcp: u32,
    /// As in [`ServiceSettings`].
    pub sloppy_sctp: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            expire_nodest_conn: 0,
            expire_quiescent_template: 0,
            conn_reuse_mode: 1,
            sloppy_tcp: 0,
            sloppy_sctp: 0,
        }
    }
}

/// One of [`Settings`], by IPVS's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// [`ServiceSettings::expire_nodest_conn`].
    ExpireNodestConn,
    /// [`ServiceSettings::expire_quiescent_template`].
    ExpireQuiescentTemplate,
    /// [`ServiceSettings::conn_reuse_mode`].
    ConnReuseMode,
    /// [`ServiceSettings::sloppy_tcp`].
    SloppyTcp,
    /// [`ServiceSettings::sloppy_sctp`].
    SloppySctp,
}

impl Setting {
    /// Every setting, in the order in which they are listed.
    pub const ALL: [Self; 5] = [
        Self::ExpireNodestConn,
        Self::ExpireQuiescentTemplate,
        Self::ConnReuseMode,
        Self::SloppyTcp,
        Self::SloppySctp,
    ];

    /// IPVS's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExpireNodestConn => "expire_nodest_conn",
            Self::ExpireQuiescentTemplate => "expire_quiescent_template",
            Self::ConnReuseMode => "conn_reuse_mode",
            Self::SloppyTcp => "sloppy_tcp",
            Self::SloppySctp => "sloppy_sctp",
        }
    }

    /// Its highest value; the lowest is 0.
    pub fn most(self) -> u32 {
        match self {
            Self::ConnReuseMode => 3,
            _ => 1,
        }
    }

    /// Its value for the whole director.
    pub fn of(self, settings: &mut Settings) -> &mut u32 {
        match self {
            Self::ExpireNodestConn => &mut settings.expire_nodest_conn,
            Self::ExpireQuiescentTemplate => &mut settings.expire_quiescent_template,
            Self::ConnReuseMode => &mut settings.conn_reuse_mode,
            Self::SloppyTcp => &mut settings.sloppy_tcp,
            Self::SloppySctp => &mut settings.sloppy_sctp,
        }
    }

    /// Its value for one service, where the service has one of its own.
    pub fn of_service(self, settings: &mut ServiceSettings) -> &mut Option<u32> {
        match self {
            Self::ExpireNodestConn => &mut settings.expire_nodest_conn,
            Self::ExpireQuiescentTemplate => &mut settings.expire_quiescent_template,
            Self::ConnReuseMode => &mut settings.conn_reuse_mode,
            Self::SloppyTcp => &mut settings.sloppy_tcp,
            Self::SloppySctp => &mut settings.sloppy_sctp,
        }
    }
}

by_name!(Setting, "setting", one_of(Setting::ALL.map(Setting::name)));

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
