//! What tests a real server: keepalived's checkers as checks.
//!
//! keepalived tests the real server's own address; so do these (`target = "rip"`). It repeats a failed test some times,
//! `delay_before_retry` apart, and takes one success for enough: that is `fall`, apart by `interval`, and `rise = 1`.

use super::{
    super::Table,
    text::Directive,
    value::{flag, leave, number, one, span, text, words},
};
use crate::api::types::{
    Check, CheckTarget, DnsProbe, ExecProbe, HttpProbe, InitialState, OnFailure, Probe, ServiceKey, Span,
    Statuses, TlsOptions, UdpProbe,
};

/// Milliseconds of `delay_loop` by default.
const DEFAULT_INTERVAL: u64 = 60_000;
/// Milliseconds of `connect_timeout` by default.
const DEFAULT_TIMEOUT: u64 = 5_000;

/// What a block says that holds for the blocks inside of it as well.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    interval: Option<Span>,
    timeout: Option<Span>,
    retry: Option<u32>,
    is_down_first: bool,
    is_quiesced: bool,
    host: Option<String>,
}

impl Defaults {
    /// Takes a directive that may stand in all of them; whether it is one.
    pub(super) fn take(&mut self, item: &Directive, table: &mut Table) -> bool {
        match item.name() {
            "delay_loop" => self.interval = span(item, table).or(self.interval),
            "connect_timeout" => self.timeout = span(item, table).or(self.timeout),
            "retry" => self.retry = number(item, table).or(self.retry),
            "alpha" => self.is_down_first = flag(item, table).unwrap_or(self.is_down_first),
            "inhibit_on_failure" => self.is_quiesced = flag(item, table).unwrap_or(self.is_quiesced),
            "virtualhost" => self.host = text(item, table).or(self.host.take()),
            "delay_before_retry" => leave(
                item,
                "a failed check is repeated when its interval is over",
                table,
            ),
            "warmup" => leave(item, "checks begin at once; `jitter` keeps them apart", table),
            _ => return false,
        }
        true
    }
}

/// A check, wherever it asks.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    check: Check,
    /// `connect_port`.
    port: Option<u16>,
}

impl Checked {
    /// The check of a real server that has this port in the file.
    pub(super) fn of(&self, key: ServiceKey, server: u16) -> Check {
        let port = self.port.unwrap_or(server);
        Check {
            port: Some(port).filter(|port| *port != 0 && *port != key.port()),
            ..self.check.clone()
        }
    }
}

/// Whether a block of a real server is a checker.
pub(super) fn is_check(name: &str) -> bool {
    name.ends_with("_CHECK") || matches!(name, "HTTP_GET" | "SSL_GET")
}

/// Reads a checker; none where there is nothing like it.
pub(super) fn read(directive: &Directive, defaults: &Defaults, table: &mut Table) -> Option<Checked> {
    let mut reader = Reader {
        defaults: defaults.clone(),
        port: None,
        target: CheckTarget::Rip,
    };
    let inside = directive.inside();
    let (probe, retry) = match directive.name() {
        "TCP_CHECK" => {
            reader.rest(inside, table);
            (Probe::Tcp {}, 1)
        }
        "HTTP_GET" => (Probe::Http(reader.http(inside, None, table)), 1),
        // keepalived looks at no certificate.
        "SSL_GET" => {
            let tls = TlsOptions {
                verify: false,
                ..TlsOptions::default()
            };
            (Probe::Http(reader.http(inside, Some(tls), table)), 1)
        }
        "UDP_CHECK" => (Probe::Udp(reader.udp(inside, table)), 1),
        "DNS_CHECK" => (Probe::Dns(reader.dns(inside, table)), 3),
        "MISC_CHECK" => match reader.misc(inside, table) {
            Some(probe) => (Probe::Exec(probe), 0),
            None => {
                leave(directive, "it has no misc_path that begins with a slash", table);
                return None;
            }
        },
        _ => {
            leave(
                directive,
                "there is no such check: a `tcp` or `exec` one may do",
                table,
            );
            return None;
        }
    };
    let Reader {
        defaults,
        port,
        target,
    } = reader;
    let interval = defaults.interval.unwrap_or(Span::from_millis(DEFAULT_INTERVAL));
    let timeout = defaults.timeout.unwrap_or(Span::from_millis(DEFAULT_TIMEOUT));
    if timeout > interval && defaults.timeout.is_some() {
        table.note(
            &directive.place,
            format!(
                "{}: a timeout of {timeout} is taken over as {interval}, the interval",
                directive.name()
            ),
        );
    }
    let fall = defaults.retry.unwrap_or(retry).saturating_add(1);
    if fall > Check::MOST_RESULTS {
        table.note(
            &directive.place,
            format!(
                "{}: a retry of {} is taken over as {}",
                directive.name(),
                fall - 1,
                Check::MOST_RESULTS - 1
            ),
        );
    }
    let check = Check {
        target,
        interval,
        timeout: timeout.min(interval),
        rise: 1,
        fall: fall.min(Check::MOST_RESULTS),
        initial: if defaults.is_down_first {
            InitialState::Down
        } else {
            InitialState::Up
        },
        on_failure: if defaults.is_quiesced {
            OnFailure::Quiesce
        } else {
            OnFailure::Remove
        },
        ..Check::new(probe)
    };
    Some(Checked { check, port })
}

struct Reader {
    defaults: Defaults,
    port: Option<u16>,
    target: CheckTarget,
}

impl Reader {
    /// What every checker may have, and what none has.
    fn take(&mut self, item: &Directive, table: &mut Table) {
        if self.defaults.take(item, table) {
            return;
        }
        match item.name() {
            "connect_port" => self.port = number(item, table).or(self.port),
            "connect_ip" => leave(
                item,
                "a check asks the real server's address, or with `target = \"vip\"` the virtual one on it",
                table,
            ),
            "bindto" | "bind_if" | "bind_port" | "fwmark" => {
                leave(
                    item,
                    "the director's routing says where a check comes from",
                    table,
                );
            }
            _ => leave(item, "the check has no such thing here", table),
        }
    }

    fn rest(&mut self, inside: &[Directive], table: &mut Table) {
        for item in inside {
            self.take(item, table);
        }
    }

    fn http(&mut self, inside: &[Directive], tls: Option<TlsOptions>, table: &mut Table) -> HttpProbe {
        let mut probe = HttpProbe {
            // keepalived's, where there is no `status_code`.
            status: "200-299".parse().ok().into_iter().collect(),
            tls,
            ..HttpProbe::default()
        };
        let mut has_url = false;
        for item in inside {
            match item.name() {
                "url" if has_url => leave(item, "a check asks for one page, the first of these", table),
                "url" => {
                    has_url = true;
                    url(item, &mut probe, table);
                }
                // The name is asked for where there is one.
                "enable_sni" => {
                    let _ = flag(item, table);
                }
                _ => self.take(item, table),
            }
        }
        probe.host = probe.host.or_else(|| self.defaults.host.clone());
        probe
    }

    fn udp(&mut self, inside: &[Directive], table: &mut Table) -> UdpProbe {
        let mut probe = UdpProbe::default();
        for item in inside {
            match item.name() {
                "payload" => match words(item, table).map(octets) {
                    Some(Some(hex)) => probe.send_hex = hex,
                    Some(None) => leave(item, "it takes octets in hexadecimal digits", table),
                    None => {}
                },
                "require_reply" => {
                    probe.answer = true;
                    match words(item, table) {
                        Some([]) | None => {}
                        Some(_) => leave(
                            item,
                            "any answer is taken for a good one; `contains` asks for a text",
                            table,
                        ),
                    }
                }
                _ => self.take(item, table),
            }
        }
        probe
    }

    fn dns(&mut self, inside: &[Directive], table: &mut Table) -> DnsProbe {
        let mut probe = DnsProbe {
            name: ".".to_owned(),
            record: crate::api::types::DnsRecord::Soa,
            address: None,
        };
        for item in inside {
            match item.name() {
                "name" => probe.name = text(item, table).unwrap_or(probe.name),
                "type" => {
                    let known = |word: &str| word.to_ascii_uppercase().parse().ok();
                    let found = one(item, "a type of records (SOA is used)", known, table);
                    probe.record = found.unwrap_or(probe.record);
                }
                _ => self.take(item, table),
            }
        }
        probe
    }

    fn misc(&mut self, inside: &[Directive], table: &mut Table) -> Option<ExecProbe> {
        let mut command = Vec::new();
        // A program's time is its own, by default as long as the interval.
        self.defaults.timeout = None;
        for item in inside {
            match item.name() {
                "misc_path" => {
                    let words = words(item, table).unwrap_or_default();
                    command = words.iter().flat_map(|word| arguments(word)).collect();
                }
                "misc_timeout" => self.defaults.timeout = span(item, table),
                "misc_dynamic" => leave(item, "a check changes no weight", table),
                "user" => leave(item, "the agent runs it as its own user", table),
                _ => self.take(item, table),
            }
        }
        let interval = self
            .defaults
            .interval
            .unwrap_or(Span::from_millis(DEFAULT_INTERVAL));
        self.defaults.timeout = self.defaults.timeout.or(Some(interval));
        let is_path = command
            .first()
            .is_some_and(|program: &String| program.starts_with('/'));
        is_path.then_some(ExecProbe { command })
    }
}

fn url(directive: &Directive, probe: &mut HttpProbe, table: &mut Table) {
    for item in directive.inside() {
        match item.name() {
            "path" => probe.path = text(item, table).unwrap_or(std::mem::take(&mut probe.path)),
            "virtualhost" => probe.host = text(item, table).or(probe.host.take()),
            "status_code" => {
                let read = |word: &String| word.parse::<Statuses>().ok();
                let statuses = words(item, table).map(|words| words.iter().map(read).collect());
                match statuses {
                    Some(Some(statuses)) => probe.status = statuses,
                    Some(None) => leave(item, "it takes statuses such as 200 or 200-299", table),
                    None => {}
                }
            }
            "digest" => leave(
                item,
                "a page has no digest here; `contains` asks for a text of it",
                table,
            ),
            _ => leave(item, "the check has no such thing here", table),
        }
    }
}

/// Octets in hexadecimal digits, with blanks between some.
fn octets(words: &[String]) -> Option<String> {
    let hex = words.concat().to_ascii_lowercase();
    let is_hex = !hex.is_empty() && hex.len() % 2 == 0 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then_some(hex)
}

/// The words of a command, some of them in quotes.
fn arguments(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
