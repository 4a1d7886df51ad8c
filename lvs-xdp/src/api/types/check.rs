//! Health checks as configured: what is asked of a real server, how often, and what follows from the answers.
//!
//! Times are texts such as `"500ms"` or `"2s"`; everything that has a default may be left out.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ForwardingMethod, by_name, is_default, one_of};

/// A time of whole milliseconds, written as humantime has it: `"500ms"`, `"2s"`, `"1m 30s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Span(Duration);

impl Span {
    /// The shortest: 10 ms.
    pub const SHORTEST: Self = Self(Duration::from_millis(10));
    /// The longest: a day.
    pub const LONGEST: Self = Self(Duration::from_secs(86_400));

    /// So many milliseconds, but no less than [`Self::SHORTEST`] and no more than [`Self::LONGEST`].
    pub fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis)).clamp(Self::SHORTEST, Self::LONGEST)
    }

    /// The same as the standard library has it.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = humantime::parse_duration(text)
            .map_err(|_| format!("`{text}` is no time: write one such as 500ms or 2s"))?;
        if time.subsec_nanos() % 1_000_000 != 0 {
            return Err(format!("`{text}` is no whole number of milliseconds"));
        }
        let span = Self(time);
        if !(Self::SHORTEST..=Self::LONGEST).contains(&span) {
            return Err(format!("`{text}` is out of range: use a time from 10ms to 1day"));
        }
        Ok(span)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

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

impl From<Statuses> for String {
    fn from(statuses: Statuses) -> Self {
        statuses.to_string()
    }
}

impl TryFrom<String> for Statuses {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

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

/// Which address of the real server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckTarget {
    /// The virtual address, on this very real server: what clients use.
    #[default]
    Vip,
    /// The real server's own address.
    Rip,
}

impl CheckTarget {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vip, Self::Rip];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Rip => "rip",
        }
    }
}

by_name!(CheckTarget, "target of a check", "vip or rip");

/// What a real server counts as before its first result. One that gets connections when its check is added, or
/// got them from the agent before, counts as up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InitialState {
    /// It gets nothing until the first good result.
    #[default]
    Down,
    /// It gets connections until so many results were bad.
    Up,
}

impl InitialState {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Down, Self::Up];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

by_name!(InitialState, "initial state", "down or up");

/// What becomes of a real server that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It gets no new connections and keeps those that it has: effective weight 0.
    #[default]
    Quiesce,
    /// It is taken out of the scheduler's list; the service's removal policy says what becomes of its connections.
    Remove,
}

impl OnFailure {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Quiesce, Self::Remove];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quiesce => "quiesce",
            Self::Remove => "remove",
        }
    }
}

by_name!(OnFailure, "action on failure", "quiesce or remove");

/// The health check of a service's real servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Which address is asked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub target: CheckTarget,
    /// The virtual address that is asked for, where the service has none or many (a mark's service).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The port that is asked; without it the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The time from one start to the next, 10 ms to a day.
    #[serde(
        default = "Check::default_interval",
        skip_serializing_if = "is_default_interval"
    )]
    #[schema(value_type = String)]
    pub interval: Span,
    /// How long a result may take, 10 ms to the interval; then it is a bad one.
    #[serde(
        default = "Check::default_timeout",
        skip_serializing_if = "is_default_timeout"
    )]
    #[schema(value_type = String)]
    pub timeout: Span,
    /// So many good results in a row make a real server that was down up, 1 to 100; the very first one does so alone.
    #[serde(default = "Check::default_rise", skip_serializing_if = "is_default_rise")]
    pub rise: u32,
    /// So many bad results in a row make it down, 1 to 100.
    #[serde(default = "Check::default_fall", skip_serializing_if = "is_default_fall")]
    pub fall: u32,
    /// How much shorter than the interval a wait may be, in percent, 0 to 50, another one each time: so that checks do
    /// not meet.
    #[serde(default = "Check::default_jitter", skip_serializing_if = "is_default_jitter")]
    pub jitter: u32,
    /// What a real server counts as before its first result.
    #[serde(default, skip_serializing_if = "is_default")]
    pub initial: InitialState,
    /// What becomes of a real server that is down.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// What is asked.
    // The last one: TOML wants tables behind values.
    pub probe: Probe,
}

impl Check {
    /// The most of [`Check::rise`] and [`Check::fall`].
    pub const MOST_RESULTS: u32 = 100;
    /// The most of [`Check::jitter`].
    pub const MOST_JITTER: u32 = 50;

    /// A check with everything else by default.
    pub fn new(probe: Probe) -> Self {
        Self {
            target: CheckTarget::default(),
            address: None,
            port: None,
            interval: Self::default_interval(),
            timeout: Self::default_timeout(),
            rise: Self::default_rise(),
            fall: Self::default_fall(),
            jitter: Self::default_jitter(),
            initial: InitialState::default(),
            on_failure: OnFailure::default(),
            probe,
        }
    }

    fn default_interval() -> Span {
        Span::from_millis(2_000)
    }

    fn default_timeout() -> Span {
        Span::from_millis(1_000)
    }

    fn default_rise() -> u32 {
        2
    }

    fn default_fall() -> u32 {
        3
    }

    fn default_jitter() -> u32 {
        10
    }
}

fn is_default_interval(interval: &Span) -> bool {
    *interval == Check::default_interval()
}

fn is_default_timeout(timeout: &Span) -> bool {
    *timeout == Check::default_timeout()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_default_rise(rise: &u32) -> bool {
    *rise == Check::default_rise()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_default_fall(fall: &u32) -> bool {
    *fall == Check::default_fall()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_default_jitter(jitter: &u32) -> bool {
    *jitter == Check::default_jitter()
}

/// What is another one for a real server than for its service. Where the service has no check, `probe` makes one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerCheck {
    /// It is not checked, and counts as up.
    #[serde(skip_serializing_if = "is_default")]
    pub off: bool,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<CheckTarget>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub interval: Option<Span>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub timeout: Option<Span>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<u32>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<InitialState>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// As in [`Check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

impl ServerCheck {
    /// The check of a real server, by what its service says and what is its own.
    pub fn over(&self, service: Option<&Check>) -> Option<Check> {
        let Self {
            off,
            target,
            port,
            interval,
            timeout,
            rise,
            fall,
            jitter,
            initial,
            on_failure,
            ref probe,
        } = *self;
        if off {
            return None;
        }
        let mut check = match (service, probe) {
            (Some(check), None) => check.clone(),
            (Some(check), Some(probe)) => Check {
                probe: probe.clone(),
                ..check.clone()
            },
            (None, Some(probe)) => Check::new(probe.clone()),
            (None, None) => return None,
        };
        check.target = target.unwrap_or(check.target);
        check.port = port.or(check.port);
        check.interval = interval.unwrap_or(check.interval);
        check.timeout = timeout.unwrap_or(check.timeout);
        check.rise = rise.unwrap_or(check.rise);
        check.fall = fall.unwrap_or(check.fall);
        check.jitter = jitter.unwrap_or(check.jitter);
        check.initial = initial.unwrap_or(check.initial);
        check.on_failure = on_failure.unwrap_or(check.on_failure);
        Some(check)
    }
}

/// The destination that takes a service's new connections while fewer of its real servers than its quorum are usable
/// (keepalived's `sorry_server`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// Its own address; it has the virtual address as real servers have, and is none of them.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// How packets reach it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: ForwardingMethod,
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};
    use serde_json::Value;

    use super::*;

    #[test]
    fn spans_and_statuses_are_read_as_they_are_written() {
        for (text, expected) in [
            ("10ms", Ok("10ms")),
            ("1500ms", Ok("1s 500ms")),
            ("1day", Ok("1day")),
            ("9ms", Err("out of range")),
            ("1day 1ms", Err("out of range")),
            ("1ms 1us", Err("no whole number of milliseconds")),
            ("2", Err("is no time")),
            ("", Err("is no time")),
        ] {
            let seen = text.parse::<Span>().map(|span| span.to_string());
            match (&seen, expected) {
                (Ok(seen), Ok(expected)) => assert_eq!(seen, expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                _ => panic!("{text}: {seen:?}"),
            }
        }
        for text in ["200", "200-399", "100-599"] {
            assert_eq!(text.parse::<Statuses>().unwrap().to_string(), text);
        }
        for bad in ["", "20", "2000", "99", "600", "300-200", "2xx", "200-", "+20"] {
            assert!(bad.parse::<Statuses>().is_err(), "{bad}");
        }
        let range: Statuses = "200-204".parse().unwrap();
        assert!(range.contains(200) && range.contains(204) && !range.contains(205));
    }

    #[test]
    fn octets_are_two_digits_each() {
        let probe = |send: &str, send_hex: &str| UdpProbe {
            send: send.to_owned(),
            send_hex: send_hex.to_owned(),
            ..UdpProbe::default()
        };
        assert_eq!(probe("ping", "").octets(), Ok(b"ping".to_vec()));
        assert_eq!(probe("", "00fFa1").octets(), Ok(vec![0, 0xff, 0xa1]));
        for (send, send_hex) in [
            ("", "0"),
            ("", "0g"),
            ("", "+1"),
            ("", "00 1"),
            ("", "é"),
            ("x", "00"),
        ] {
            assert!(probe(send, send_hex).octets().is_err(), "{send} {send_hex}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            r#"{ "probe": { "type": "tcp", "path": "/" } }"#,
            r#"{ "probe": { "type": "http", "paht": "/" } }"#,
            r#"{ "probe": { "type": "icmp" } }"#,
            r#"{ "probe": { "type": "tcp" }, "intervall": "1s" }"#,
            r#"{ "probe": { "type": "tcp" }, "interval": 1 }"#,
            r#"{ "interval": "1s" }"#,
        ] {
            assert!(serde_json::from_str::<Check>(text).is_err(), "{text}");
        }
        let short: Check = serde_json::from_str(r#"{ "probe": { "type": "tcp" } }"#).unwrap();
        assert_eq!(short, Check::new(Probe::Tcp {}));
    }

    fn any_probe() -> impl Strategy<Value = Probe> {
        let text = "[a-z]{1,8}";
        let tls =
            (any::<bool>(), option::of(text), option::of(text)).prop_map(|(verify, server_name, ca)| {
                TlsOptions {
                    verify,
                    server_name,
                    ca: ca.map(PathBuf::from),
                }
            });
        let status = (100u16..=599).prop_map(|status| status.to_string().parse().unwrap());
        let http = (
            option::of(text),
            vec(status, 0..3),
            option::of(text),
            option::of(tls),
        )
            .prop_map(|(host, status, contains, tls)| HttpProbe {
                host,
                status,
                contains,
                tls,
                ..HttpProbe::default()
            });
        let udp = (text, option::of(text), any::<bool>()).prop_map(|(send, contains, answer)| UdpProbe {
            send,
            contains,
            answer,
            ..UdpProbe::default()
        });
        let dns = (text, 0..DnsRecord::ALL.len(), option::of(any::<[u8; 4]>())).prop_map(
            |(name, record, address)| DnsProbe {
                name,
                record: DnsRecord::ALL[record],
                address: address.map(IpAddr::from),
            },
        );
        prop_oneof![
            Just(Probe::Tcp {}),
            http.prop_map(Probe::Http),
            udp.prop_map(Probe::Udp),
            dns.prop_map(Probe::Dns),
            vec(text, 1..4).prop_map(|command| Probe::Exec(ExecProbe { command })),
        ]
    }

    /// Whether a configuration file can have it: TOML knows no null and no integer beyond 63 bits.
    fn fits_toml(value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Number(number) => number.is_i64(),
            Value::Array(values) => values.iter().all(fits_toml),
            Value::Object(fields) => fields.values().all(fits_toml),
            Value::Bool(_) | Value::String(_) => true,
        }
    }

    proptest! {
        #[test]
        fn a_check_is_read_as_it_was_written(
            probe in any_probe(), interval in 10u64..90_000_000, rise in 1u32..100, port in option::of(1u16..),
            is_up in any::<bool>()
        ) {
            let check = Check {
                interval: Span::from_millis(interval),
                rise,
                port,
                initial: if is_up { InitialState::Up } else { InitialState::Down },
                ..Check::new(probe.clone())
            };
            let value = serde_json::to_value(&check).unwrap();
            prop_assert!(fits_toml(&value), "{}", value);
            prop_assert_eq!(serde_json::from_value::<Check>(value).unwrap(), check);
            let own = ServerCheck { rise: Some(rise), port, probe: Some(probe), ..ServerCheck::default() };
            let value = serde_json::to_value(&own).unwrap();
            prop_assert!(fits_toml(&value), "{}", value);
            prop_assert_eq!(serde_json::from_value::<ServerCheck>(value).unwrap(), own);
        }
    }
}
