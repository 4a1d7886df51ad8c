//! Health checks as configured: what is asked of a real server, how often, and what follows from the answers.
//!
//! Times are texts such as `"500ms"` or `"2s"`; everything that has a default may be left out.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ForwardingMethod, PassiveProbe, Probe, as_text, by_name, is_default};

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

as_text!(Span);

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

    /// What a passive check is told by, which asks nobody.
    pub fn passive(&self) -> Option<&PassiveProbe> {
        match &self.probe {
            Probe::Passive(passive) => Some(passive),
            _ => None,
        }
    }

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
mod tests;
