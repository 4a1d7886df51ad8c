//! What a health check asks of a real server, and what its answer has to be.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Span, as_text, by_name, is_default, one_of};

/// Statuses of HTTP: one, such as `"200"`, or a range, such as `"200-399"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Statuses {
    first: u16,
    last: u16,
}

impl Statuses {
    /// What is expected unless something else is said: 200 to 399.
    pub const SUCCESS: Self = Self {
        first: 200,
        last: 399,
    };

    /// Whether a status is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let status = |text: &str| {
            let is_number = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse::<u16>().ok()).flatten()
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first), status(last)) {
            (Some(first @ 100..=599), Some(last @ 100..=599)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "`{text}` is no status or range of statuses: write one such as 200 or 200-399, from 100 to 599"
            )),
        }
    }
}

as_text!(Statuses);

/// What is asked of a real server, and what its answer has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp {},
    /// A page is served, by HTTP/1.1, with `tls` over TLS.
    Http(HttpProbe),
    /// A datagram is answered, or at least not refused.
    Udp(UdpProbe),
    /// A name is known to a name server; in a TCP service it is asked over TCP.
    Dns(DnsProbe),
    /// A program on the director ends with status 0.
    Exec(ExecProbe),
    /// Nobody is asked: clients' TCP handshakes get on as well as those with the service's other real servers.
    Passive(PassiveProbe),
}

impl Probe {
    /// Its name, for lists.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp {} => "tcp",
            Self::Http(HttpProbe { tls: None, .. }) => "http",
            Self::Http(HttpProbe { tls: Some(_), .. }) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Exec(_) => "exec",
            Self::Passive(_) => "passive",
        }
    }
}

/// A request over HTTP/1.1, and what its answer has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// The method.
    #[serde(default = "get", skip_serializing_if = "is_get")]
    pub method: String,
    /// The path with its query; it begins with a slash.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub path: String,
    /// The header `Host`; without it the address and port that are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The statuses that are good; without any 200 to 399.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub status: Vec<Statuses>,
    /// A text that has to be in the first 64 KiB of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// TLS; without it the connection is a plain one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsOptions>,
}

impl Default for HttpProbe {
    fn default() -> Self {
        Self {
            method: get(),
            path: root(),
            host: None,
            status: Vec::new(),
            contains: None,
            tls: None,
        }
    }
}

/// How a TLS session is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// Whether the certificate has to be valid, for the name and now.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub verify: bool,
    /// The name that is asked for (SNI) and that the certificate has to have; without it the probe's host, else the
    /// address that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// A file of certificates (PEM) of those who may have issued it; without it those that the director trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca: Option<PathBuf>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            verify: true,
            server_name: None,
            ca: None,
        }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// A datagram, and what has to come back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UdpProbe {
    /// What is sent, as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub send: String,
    /// What is sent, in hexadecimal digits, two an octet; in the place of `send`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub send_hex: String,
    /// A text that has to be in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Whether there has to be an answer; else it is enough that no ICMP error comes within the timeout.
    #[serde(skip_serializing_if = "is_default")]
    pub answer: bool,
}

impl UdpProbe {
    /// What is sent.
    ///
    /// # Errors
    ///
    /// Where `send_hex` is no octets, or there is `send` too.
    pub fn octets(&self) -> Result<Vec<u8>, String> {
        let Self { send, send_hex, .. } = self;
        if send_hex.is_empty() {
            return Ok(send.clone().into_bytes());
        }
        if !send.is_empty() {
            return Err("both `send` and `send_hex` are given: use one of them".to_owned());
        }
        let digits = send_hex.as_bytes();
        let octets = digits.chunks(2).map(|pair| {
            let is_hex = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            let text = is_hex.then(|| std::str::from_utf8(pair).ok()).flatten()?;
            u8::from_str_radix(text, 16).ok()
        });
        octets.collect::<Option<_>>().ok_or_else(|| {
            format!("`{send_hex}` is no octets: use two hexadecimal digits for each, such as 00ff10")
        })
    }
}

/// A question to a name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsProbe {
    /// The name.
    pub name: String,
    /// What is asked of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub record: DnsRecord,
    /// An address that has to be among the answers; without it any answer without an error is a good one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// A type of records (IANA "Resource Record (RR) TYPEs").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsRecord {
    /// An IPv4 address.
    #[default]
    A,
    /// An IPv6 address.
    Aaaa,
    /// Another name.
    Cname,
    /// A mail server.
    Mx,
    /// A name server.
    Ns,
    /// The name of an address.
    Ptr,
    /// The beginning of a zone.
    Soa,
    /// Where a service is.
    Srv,
    /// Text.
    Txt,
}

impl DnsRecord {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::A,
        Self::Aaaa,
        Self::Cname,
        Self::Mx,
        Self::Ns,
        Self::Ptr,
        Self::Soa,
        Self::Srv,
        Self::Txt,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Mx => "MX",
            Self::Ns => "NS",
            Self::Ptr => "PTR",
            Self::Soa => "SOA",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
        }
    }
}

by_name!(
    DnsRecord,
    "type of records",
    one_of(DnsRecord::ALL.map(DnsRecord::name))
);

/// A program, run by the agent as its own user. It gets `LVS_XDP_VIP`, `LVS_XDP_RIP`, `LVS_XDP_PORT` and
/// `LVS_XDP_PROTOCOL` in its environment, and nothing else but `PATH`. What leads other checks to the virtual address
/// does not lead it. Status 0 is good; else the first line that it writes says why. When the timeout is over it is
/// killed with its process group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecProbe {
    /// The program's path, which begins with a slash, and its arguments.
    pub command: Vec<String>,
}

/// What is seen of clients' TCP handshakes ([`Handshakes`](super::Handshakes)), by which a real server is judged after
/// each window of time. It is down where too many of its connections are in trouble, and less than half as many of
/// those of its fellows: the service's other real servers with this check, together. So nobody goes down for what all
/// have in common, as a flood of SYNs; and never more than half of the real servers are out. One that is out sees no
/// handshakes: it is tried again after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PassiveProbe {
    /// The time over which handshakes are counted, 1 s to an hour.
    #[serde(skip_serializing_if = "is_default_window")]
    #[schema(value_type = String)]
    pub window: Span,
    /// So many connections have to be opened in it, to a real server and to its fellows together, for a judgement, 1 to
    /// 1,000,000.
    #[serde(skip_serializing_if = "is_default_connections")]
    pub connections: u32,
    /// The share of them in trouble that is too much if it is exceeded, in percent, 1 to 99: those that were not
    /// acknowledged, or as many as SYNs were sent again if that is more.
    #[serde(skip_serializing_if = "is_default_share")]
    pub share: u32,
    /// How long a real server is out before it gets new connections again, 1 s to a day.
    #[serde(skip_serializing_if = "is_default_retry")]
    #[schema(value_type = String)]
    pub retry: Span,
}

impl PassiveProbe {
    /// The most of [`PassiveProbe::connections`].
    pub const MOST_CONNECTIONS: u32 = 1_000_000;
    /// The most of [`PassiveProbe::share`].
    pub const MOST_SHARE: u32 = 99;
}

impl Default for PassiveProbe {
    fn default() -> Self {
        Self {
            window: Span::from_millis(10_000),
            connections: 20,
            share: 50,
            retry: Span::from_millis(30_000),
        }
    }
}

fn is_default_window(window: &Span) -> bool {
    *window == PassiveProbe::default().window
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_default_connections(connections: &u32) -> bool {
    *connections == PassiveProbe::default().connections
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_default_share(share: &u32) -> bool {
    *share == PassiveProbe::default().share
}

fn is_default_retry(retry: &Span) -> bool {
    *retry == PassiveProbe::default().retry
}

fn get() -> String {
    "GET".to_owned()
}

fn is_get(method: &str) -> bool {
    method == "GET"
}

fn root() -> String {
    "/".to_owned()
}

fn is_root(path: &str) -> bool {
    path == "/"
}
