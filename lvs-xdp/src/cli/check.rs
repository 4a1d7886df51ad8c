//! The options that set health checks.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::Failure;
use crate::api::types::{
    Check, CheckTarget, DnsProbe, ExecProbe, Fallback, ForwardingMethod, HttpProbe, InitialState, OnFailure,
    PassiveProbe, Probe, ServerCheck, ServerSpec, ServiceSpec, Span, Statuses, TlsOptions, UdpProbe,
};

/// A check in one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckWord {
    probe: Probe,
    port: Option<u16>,
}

const FORMS: &str = "write one such as tcp, tcp:8080, http:/health, http://www.example.org/, \
                     https://www.example.org:8443/, udp, dns:www.example.org, passive or \"exec:/usr/local/bin/check -v\"";

/// See [`FORMS`].
pub(super) fn check_word(text: &str) -> Result<CheckWord, String> {
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (text, None),
    };
    let port = |text: &str| match text.parse() {
        Ok(port @ 1u16..) => Ok(Some(port)),
        _ => Err(format!("`{text}` is no port: use one from 1 to 65535")),
    };
    let (probe, port) = match (kind, rest) {
        ("tcp", None) => (Probe::Tcp {}, None),
        ("tcp", Some(rest)) => (Probe::Tcp {}, port(rest)?),
        ("udp", None) => (Probe::Udp(UdpProbe::default()), None),
        ("udp", Some(rest)) => (Probe::Udp(UdpProbe::default()), port(rest)?),
        ("passive", None) => (Probe::Passive(PassiveProbe::default()), None),
        ("http" | "https", rest) => {
            let mut http = HttpProbe {
                tls: (kind == "https").then(TlsOptions::default),
                ..HttpProbe::default()
            };
            let rest = rest.unwrap_or("/");
            let mut asked = None;
            http.path = match rest.strip_prefix("//") {
                None => rest.to_owned(),
                Some(rest) => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    let (host, path) = rest.split_at(end);
                    // The last colon, unless it is within an IPv6 address.
                    if let Some((_, digits)) =
                        host.rsplit_once(':').filter(|(_, digits)| !digits.contains(']'))
                    {
                        asked = port(digits)?;
                    }
                    http.host = Some(host.to_owned());
                    if path.is_empty() { "/" } else { path }.to_owned()
                }
            };
            if !http.path.starts_with('/') || http.host.as_deref() == Some("") {
                return Err(format!("`{text}` is no check: {FORMS}"));
            }
            (Probe::Http(http), asked)
        }
        ("dns", Some(name)) if !name.is_empty() => {
            let probe = DnsProbe {
                name: name.to_owned(),
                record: crate::api::types::DnsRecord::default(),
                address: None,
            };
            (Probe::Dns(probe), None)
        }
        ("exec", Some(command)) if command.starts_with('/') => {
            let command = command.split_whitespace().map(str::to_owned).collect();
            (Probe::Exec(ExecProbe { command }), None)
        }
        _ => return Err(format!("`{text}` is no check: {FORMS}")),
    };
    Ok(CheckWord { probe, port })
}

/// How the real servers of a service are checked.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Check real servers, and give new connections to those that are up: tcp[:PORT], http[s]:/PATH,
    /// http[s]://HOST[:PORT]/PATH, udp[:PORT], dns:NAME, "exec:/PROGRAM [ARGUMENT]...", or passive: by clients' TCP handshakes
    #[arg(long, value_name = "CHECK", value_parser = check_word, group = "changes")]
    pub(super) check: Option<CheckWord>,
    /// The time from one check to the next, such as 2s or 500ms [default: 2s]
    #[arg(long, value_name = "TIME", group = "changes")]
    pub(super) check_interval: Option<Span>,
    /// How long an answer may take, up to the interval [default: 1s]
    #[arg(long, value_name = "TIME", group = "changes")]
    pub(super) check_timeout: Option<Span>,
    /// So many good results in a row bring a real server back [default: 2]
    #[arg(long, value_name = "N", group = "changes")]
    pub(super) check_rise: Option<u32>,
    /// So many bad ones take it out [default: 3]
    #[arg(long, value_name = "N", group = "changes")]
    pub(super) check_fall: Option<u32>,
    /// Which address of the real server is asked: the virtual one (vip), or its own (rip) [default: vip]
    #[arg(long, value_name = "TARGET", value_parser = target(), group = "changes")]
    pub(super) check_target: Option<CheckTarget>,
    /// What a real server counts as before its first result: down or up [default: down]
    #[arg(long, value_name = "STATE", value_parser = initial(), group = "changes")]
    pub(super) check_initial: Option<InitialState>,
    /// What becomes of one that is down: it keeps its connections (quiesce), or goes by the removal policy (remove)
    /// [default: quiesce]
    #[arg(long, value_name = "ACTION", value_parser = on_failure(), group = "changes")]
    pub(super) check_on_failure: Option<OnFailure>,
    /// Of HTTP: the statuses that are good, such as 200,301-308 [default: 200-399]
    #[arg(long, value_name = "LIST", value_delimiter = ',', group = "changes")]
    pub(super) check_status: Vec<Statuses>,
    /// Of HTTP and UDP: a text that has to be in the answer
    #[arg(long, value_name = "TEXT", group = "changes")]
    pub(super) check_contains: Option<String>,
    /// Of HTTPS: take any certificate
    #[arg(long, group = "changes", conflicts_with = "check_ca")]
    pub(super) check_insecure: bool,
    /// Of HTTPS: a file of the certificates of those who may have issued the server's [default: the director's own]
    #[arg(long, value_name = "FILE", group = "changes")]
    pub(super) check_ca: Option<PathBuf>,
    /// Of passive: over how long handshakes are counted [default: 10s]
    #[arg(long, value_name = "TIME", group = "changes")]
    pub(super) check_window: Option<Span>,
    /// Of passive: so many connections have to be opened in that time [default: 20]
    #[arg(long, value_name = "N", group = "changes")]
    pub(super) check_connections: Option<u32>,
    /// Of passive: the percentage of them in trouble that takes a real server out if it is exceeded [default: 50]
    #[arg(long, value_name = "PERCENT", group = "changes")]
    pub(super) check_share: Option<u32>,
    /// Of passive: how long a real server is out before it is tried again [default: 30s]
    #[arg(long, value_name = "TIME", group = "changes")]
    pub(super) check_retry: Option<Span>,
    /// Who takes all new connections while fewer real servers than the quorum are usable, or `none`
    #[arg(long, value_name = "RIP", value_parser = fallback, group = "changes")]
    pub(super) fallback: Option<FallbackChoice>,
    /// So many real servers have to be usable [default: 1]
    #[arg(long, value_name = "N", group = "changes")]
    pub(super) quorum: Option<u32>,
}

/// A fallback's address, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FallbackChoice(Option<std::net::IpAddr>);

fn fallback(text: &str) -> Result<FallbackChoice, String> {
    if text == "none" {
        return Ok(FallbackChoice(None));
    }
    let address = text
        .parse()
        .map_err(|_| format!("`{text}` is no IP address: write one, or `none`"))?;
    Ok(FallbackChoice(Some(address)))
}

impl CheckArgs {
    /// Puts what was typed in place of what the service had.
    pub(super) fn apply_to(self, service: &mut ServiceSpec) -> Result<(), Failure> {
        let Self {
            check: word,
            check_interval,
            check_timeout,
            check_rise,
            check_fall,
            check_target,
            check_initial,
            check_on_failure,
            check_status,
            check_contains,
            check_insecure,
            check_ca,
            check_window,
            check_connections,
            check_share,
            check_retry,
            fallback,
            quorum,
        } = self;
        if let Some(FallbackChoice(address)) = fallback {
            service.fallback = address.map(|address| Fallback {
                address,
                method: ForwardingMethod::Dr,
            });
            if address.is_none() {
                service.quorum = 1;
            }
        }
        service.quorum = quorum.unwrap_or(service.quorum);
        let asks = check_interval.is_some()
            || check_timeout.is_some()
            || check_rise.is_some()
            || check_fall.is_some()
            || check_target.is_some()
            || check_initial.is_some();
        let watches = check_window.is_some()
            || check_connections.is_some()
            || check_share.is_some()
            || check_retry.is_some();
        let has_more = asks
            || watches
            || check_on_failure.is_some()
            || !check_status.is_empty()
            || check_contains.is_some()
            || check_insecure
            || check_ca.is_some();
        let mut check = match (word, service.check.take()) {
            // What an asking check is told by says nothing to a watching one.
            (Some(CheckWord { probe, port }), Some(before))
                if before.passive().is_some() != matches!(probe, Probe::Passive(_)) =>
            {
                Box::new(Check {
                    port,
                    on_failure: before.on_failure,
                    ..Check::new(probe)
                })
            }
            (Some(CheckWord { probe, port }), Some(before)) => Box::new(Check {
                probe,
                port,
                ..*before
            }),
            (Some(CheckWord { probe, port }), None) => Box::new(Check {
                port,
                ..Check::new(probe)
            }),
            (None, Some(before)) => before,
            (None, None) if has_more => {
                return Err(Failure::Refused(format!(
                    "service {} has no check: say by --check what is asked",
                    service.key
                )));
            }
            (None, None) => return Ok(()),
        };
        check.interval = check_interval.unwrap_or(check.interval);
        // What is the default must fit whatever was typed.
        check.timeout = check_timeout.unwrap_or_else(|| check.timeout.min(check.interval));
        check.rise = check_rise.unwrap_or(check.rise);
        check.fall = check_fall.unwrap_or(check.fall);
        check.target = check_target.unwrap_or(check.target);
        check.initial = check_initial.unwrap_or(check.initial);
        check.on_failure = check_on_failure.unwrap_or(check.on_failure);
        let name = check.probe.name();
        let wrong = |option: &str, kinds: &str| {
            Err(Failure::Usage(format!(
                "{option} for checks by {kinds}, and this one is by {name}"
            )))
        };
        match &mut check.probe {
            Probe::Passive(_) if asks => {
                return Err(Failure::Usage(
                    "a passive check asks nobody: leave out --check-interval, --check-timeout, --check-rise, \
                     --check-fall, --check-target and --check-initial"
                        .to_owned(),
                ));
            }
            Probe::Passive(passive) => {
                passive.window = check_window.unwrap_or(passive.window);
                passive.connections = check_connections.unwrap_or(passive.connections);
                passive.share = check_share.unwrap_or(passive.share);
                passive.retry = check_retry.unwrap_or(passive.retry);
            }
            _ if watches => {
                return wrong(
                    "--check-window, --check-connections, --check-share and --check-retry are",
                    "passive",
                );
            }
            _ => {}
        }
        match (&mut check.probe, check_contains) {
            (_, None) => {}
            (Probe::Http(HttpProbe { contains, .. }) | Probe::Udp(UdpProbe { contains, .. }), text) => {
                *contains = text;
            }
            _ => return wrong("--check-contains is", "http, https and udp"),
        }
        match &mut check.probe {
            _ if check_status.is_empty() => {}
            Probe::Http(http) => http.status = check_status,
            _ => return wrong("--check-status is", "http and https"),
        }
        match &mut check.probe {
            _ if !check_insecure && check_ca.is_none() => {}
            Probe::Http(HttpProbe { tls: Some(tls), .. }) => {
                tls.verify = !check_insecure;
                tls.ca = check_ca;
            }
            _ => return wrong("--check-insecure and --check-ca are", "https"),
        }
        service.check = Some(check);
        Ok(())
    }
}

/// What is another one for a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServerCheckWord {
    /// As its service says.
    Default,
    /// It is not checked.
    Off,
    /// This is asked.
    Own(CheckWord),
}

/// `default`, `off`, or a [`check_word`].
pub(super) fn server_check(text: &str) -> Result<ServerCheckWord, String> {
    match text {
        "default" => Ok(ServerCheckWord::Default),
        "off" => Ok(ServerCheckWord::Off),
        text => check_word(text).map(ServerCheckWord::Own),
    }
}

impl ServerCheckWord {
    /// Puts it in place of what the server had.
    pub(super) fn apply_to(self, server: &mut ServerSpec) {
        let before = server.check.take().map(|check| *check).unwrap_or_default();
        server.check = match self {
            Self::Default => None,
            Self::Off => Some(ServerCheck { off: true, ..before }),
            Self::Own(CheckWord { probe, port }) => Some(ServerCheck {
                off: false,
                probe: Some(probe),
                port: port.or(before.port),
                ..before
            }),
        }
        .map(Box::new);
    }
}

fn target() -> impl TypedValueParser<Value = CheckTarget> {
    PossibleValuesParser::new(CheckTarget::ALL.map(CheckTarget::name)).try_map(|name| name.parse())
}

fn initial() -> impl TypedValueParser<Value = InitialState> {
    PossibleValuesParser::new(InitialState::ALL.map(InitialState::name)).try_map(|name| name.parse())
}

fn on_failure() -> impl TypedValueParser<Value = OnFailure> {
    PossibleValuesParser::new(OnFailure::ALL.map(OnFailure::name)).try_map(|name| name.parse())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::api::types::{Protocol, Scheduler, ServiceKey};

    #[derive(clap::Parser)]
    #[command(group = clap::ArgGroup::new("changes").multiple(true))]
    struct Line {
        #[command(flatten)]
        check: CheckArgs,
    }

    /// What a line makes of a service's check, or why it makes nothing of it.
    fn changed(before: Option<Check>, line: &str) -> Result<Option<Check>, String> {
        let key = ServiceKey::new(Protocol::Tcp, [192, 0, 2, 1].into(), 80);
        let mut service = ServiceSpec {
            check: before.map(Box::new),
            ..ServiceSpec::new(key, Scheduler::Rr)
        };
        let words = ["line"].into_iter().chain(line.split(' '));
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        match line.check.apply_to(&mut service) {
            Ok(()) => Ok(service.check.map(|check| *check)),
            Err(Failure::Usage(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_asks_and_what_watches_have_options_of_their_own() {
        let tcp = Check {
            interval: Span::from_millis(500),
            timeout: Span::from_millis(500),
            fall: 1,
            on_failure: OnFailure::Remove,
            ..Check::new(Probe::Tcp {})
        };
        // Only what holds for both stays.
        let passive = Check {
            on_failure: OnFailure::Remove,
            ..Check::new(Probe::Passive(PassiveProbe {
                share: 20,
                ..PassiveProbe::default()
            }))
        };
        let seen = changed(Some(tcp.clone()), "--check passive --check-share 20");
        assert_eq!(seen, Ok(Some(passive.clone())));
        let back = Check {
            on_failure: OnFailure::Remove,
            ..Check::new(Probe::Tcp {})
        };
        assert_eq!(changed(Some(passive.clone()), "--check tcp"), Ok(Some(back)));
        for (before, line, why) in [
            (
                &passive,
                "--check-fall 2",
                "a passive check asks nobody: leave out",
            ),
            (&passive, "--check passive --check-initial up", "asks nobody"),
            (
                &passive,
                "--check-contains x",
                "--check-contains is for checks by http, https and udp, and this one is by passive",
            ),
            (
                &tcp,
                "--check-retry 10s",
                "--check-retry are for checks by passive, and this one is by tcp",
            ),
            (
                &tcp,
                "--check-insecure",
                "--check-insecure and --check-ca are for checks by https",
            ),
        ] {
            let error = changed(Some(before.clone()), line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_check_is_one_word() {
        let http = |host: Option<&str>, path: &str, is_secure: bool| {
            Probe::Http(HttpProbe {
                host: host.map(str::to_owned),
                path: path.to_owned(),
                tls: is_secure.then(TlsOptions::default),
                ..HttpProbe::default()
            })
        };
        for (text, probe, port) in [
            ("tcp", Probe::Tcp {}, None),
            ("tcp:8080", Probe::Tcp {}, Some(8080)),
            ("udp", Probe::Udp(UdpProbe::default()), None),
            ("passive", Probe::Passive(PassiveProbe::default()), None),
            ("http", http(None, "/", false), None),
            ("https", http(None, "/", true), None),
            ("http:/health?deep=1", http(None, "/health?deep=1", false), None),
            (
                "http://www.example.org",
                http(Some("www.example.org"), "/", false),
                None,
            ),
            ("http://a:81/b/c", http(Some("a:81"), "/b/c", false), Some(81)),
            (
                "https://[2001:db8::1]/x",
                http(Some("[2001:db8::1]"), "/x", true),
                None,
            ),
            (
                "https://[2001:db8::1]:8443/x",
                http(Some("[2001:db8::1]:8443"), "/x", true),
                Some(8443),
            ),
        ] {
            assert_eq!(check_word(text), Ok(CheckWord { probe, port }), "{text}");
        }
        let exec = ExecProbe {
            command: vec!["/bin/check".to_owned(), "-v".to_owned()],
        };
        assert_eq!(
            check_word("exec:/bin/check -v").map(|word| word.probe),
            Ok(Probe::Exec(exec))
        );
        for bad in [
            "",
            "icmp",
            "tcp:0",
            "tcp:",
            "tcp:http",
            "http:health",
            "http:///x",
            "http://a:0/",
            "dns",
            "dns:",
            "exec",
            "exec:true",
            "passive:80",
        ] {
            assert!(check_word(bad).is_err(), "{bad}");
        }
    }
}
