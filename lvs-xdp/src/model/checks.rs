//! Which health checks make sense.

use std::net::IpAddr;

use super::{MAX_SERVERS, Servers, ServiceEntry, check_server as check_destination, invalid};
use crate::api::types::{
    ApiError, Check, DnsProbe, DnsRecord, ExecProbe, HttpProbe, PassiveProbe, Probe, Protocol, ServerSpec,
    ServiceKey, ServiceSpec, Span, TlsOptions, UdpProbe,
};

/// Refuses a service's check, or that of one of its servers, which goes by it.
pub(super) fn check_service(spec: &ServiceSpec, servers: &Servers) -> Result<(), ApiError> {
    if let Some(check) = spec.check.as_deref() {
        check_one(&format!("service {}", spec.key), spec, check)?;
    }
    servers.iter().try_for_each(|server| check_server(spec, server))
}

/// Refuses a quorum that nothing follows from, and a fallback that can be none.
pub(super) fn check_fallback(spec: &ServiceSpec, servers: &Servers) -> Result<(), ApiError> {
    let ServiceSpec { key, quorum, .. } = spec;
    if !(1..=MAX_SERVERS as u32).contains(quorum) {
        return Err(invalid(format!(
            "service {key}: a quorum of {quorum} is out of range: use one from 1 to {MAX_SERVERS}"
        )));
    }
    let entry = ServiceEntry {
        spec: spec.clone(),
        servers: Servers::default(),
    };
    let Some(fallback) = entry.fallback() else {
        if *quorum > 1 {
            return Err(invalid(format!(
                "service {key}: without a fallback nothing follows from a quorum of {quorum}: name a fallback, or leave \
                 the quorum out"
            )));
        }
        return Ok(());
    };
    check_destination(key, &fallback)?;
    if servers
        .iter()
        .any(|server| server.key.address == fallback.key.address)
    {
        return Err(is_both(key, fallback.key.address));
    }
    Ok(())
}

fn is_both(service: &ServiceKey, address: IpAddr) -> ApiError {
    invalid(format!(
        "service {service}: {address} cannot be both a real server and the fallback: use another fallback"
    ))
}

/// Refuses the check of a server of a service that is there.
pub(super) fn check_added(entry: &ServiceEntry, server: &ServerSpec) -> Result<(), ApiError> {
    let fallback = entry.spec.fallback.as_ref();
    if fallback.is_some_and(|fallback| fallback.address == server.key.address) {
        return Err(is_both(&entry.spec.key, server.key.address));
    }
    check_server(&entry.spec, server)
}

fn check_server(service: &ServiceSpec, server: &ServerSpec) -> Result<(), ApiError> {
    let Some(own) = &server.check else { return Ok(()) };
    let whose = format!("real server {} of service {}", server.key, service.key);
    if let Some(Probe::Passive(_)) = own.probe {
        return Err(invalid(format!(
            "{whose}: a passive check compares the real servers of a service: give it to the service"
        )));
    }
    match own.over(service.check.as_deref()) {
        Some(check) => check_one(&whose, service, &check),
        None if own.off => Ok(()),
        None => Err(invalid(format!(
            "{whose}: its check says not what is asked, and the service has no check: give it a probe"
        ))),
    }
}

fn check_one(whose: &str, service: &ServiceSpec, check: &Check) -> Result<(), ApiError> {
    if let Some(passive) = check.passive() {
        return check_passive(service, check, passive).map_err(|why| invalid(format!("{whose}: {why}")));
    }
    let Check {
        target: _,
        address,
        port,
        interval,
        timeout,
        rise,
        fall,
        jitter,
        initial: _,
        on_failure: _,
        probe,
    } = check;
    let refuse = |why: String| Err(invalid(format!("{whose}: {why}")));
    if address.is_some_and(|address| address.is_ipv6() != service.key.is_ipv6()) {
        return refuse("the check's address is of another family: use one of the service's".to_owned());
    }
    if *port == Some(0) {
        return refuse("a check cannot ask port 0: use one from 1 to 65535".to_owned());
    }
    for (name, span) in [("interval", interval), ("timeout", timeout)] {
        if !(Span::SHORTEST..=Span::LONGEST).contains(span) {
            return refuse(format!(
                "a check's {name} of {span} is out of range: use a time from {} to {}",
                Span::SHORTEST,
                Span::LONGEST
            ));
        }
    }
    if timeout > interval {
        return refuse(format!(
            "a check's timeout of {timeout} is longer than its interval: use a timeout up to {interval}, or a \
             longer interval"
        ));
    }
    for (name, count) in [("rise", *rise), ("fall", *fall)] {
        if !(1..=Check::MOST_RESULTS).contains(&count) {
            return refuse(format!(
                "a check's {name} of {count} is out of range: use one from 1 to {}",
                Check::MOST_RESULTS
            ));
        }
    }
    if *jitter > Check::MOST_JITTER {
        return refuse(format!(
            "a check's jitter of {jitter} % is too much: use one from 0 to {}",
            Check::MOST_JITTER
        ));
    }
    match probe {
        Probe::Tcp {} => Ok(()),
        Probe::Http(http) => check_http(http).or_else(refuse),
        Probe::Udp(udp) => check_udp(udp).or_else(refuse),
        Probe::Dns(dns) => check_dns(dns).or_else(refuse),
        Probe::Exec(ExecProbe { command }) => match command.first() {
            Some(program) if program.starts_with('/') && !command.iter().any(|word| word.contains('\0')) => {
                Ok(())
            }
            _ => refuse(
                "a check's command begins with the program's whole path, such as /usr/bin/true".to_owned(),
            ),
        },
        // Looked at above, by what it has instead.
        Probe::Passive(_) => Ok(()),
    }
}

/// Refuses a passive check where there are no handshakes to be seen, and everything that only asking has.
fn check_passive(service: &ServiceSpec, check: &Check, passive: &PassiveProbe) -> Result<(), String> {
    if let Some(protocol) = service
        .key
        .protocol()
        .filter(|protocol| *protocol != Protocol::Tcp)
    {
        return Err(format!(
            "a passive check goes by TCP handshakes, and {protocol} has none: use another check"
        ));
    }
    if service.stateless {
        return Err(
            "a passive check goes by connections, and a stateless service keeps none: use another check"
                .to_owned(),
        );
    }
    let plain = Check {
        on_failure: check.on_failure,
        ..Check::new(check.probe.clone())
    };
    if *check != plain {
        return Err(
            "a passive check asks nobody: leave out its target, address, port, interval, timeout, rise, fall, jitter \
             and initial"
                .to_owned(),
        );
    }
    let PassiveProbe {
        window,
        connections,
        share,
        retry,
    } = *passive;
    let (second, hour) = (Span::from_millis(1_000), Span::from_millis(3_600_000));
    for (name, span, most) in [("window", window, hour), ("retry", retry, Span::LONGEST)] {
        if !(second..=most).contains(&span) {
            return Err(format!(
                "a passive check's {name} of {span} is out of range: use a time from {second} to {most}"
            ));
        }
    }
    for (name, value, most) in [
        ("connections", connections, PassiveProbe::MOST_CONNECTIONS),
        ("share", share, PassiveProbe::MOST_SHARE),
    ] {
        if !(1..=most).contains(&value) {
            return Err(format!(
                "a passive check's {name} of {value} is out of range: use a number from 1 to {most}"
            ));
        }
    }
    Ok(())
}

fn check_http(probe: &HttpProbe) -> Result<(), String> {
    let HttpProbe {
        method,
        path,
        host,
        status: _,
        contains,
        tls,
    } = probe;
    let is_token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_token {
        return Err(format!(
            "`{method}` is no method of HTTP: use one such as GET or HEAD"
        ));
    }
    let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.starts_with('/') || !is_visible(path) || path.contains('#') {
        return Err(format!(
            "`{path}` is no path: begin it with a slash, and write what is no visible ASCII as %XX"
        ));
    }
    if host
        .as_ref()
        .is_some_and(|host| host.is_empty() || !is_visible(host))
    {
        return Err("the check's host is no name: write one such as www.example.org".to_owned());
    }
    if contains.as_ref().is_some_and(String::is_empty) {
        return Err("every body contains the empty text: leave `contains` out".to_owned());
    }
    if contains.is_some() && method == "HEAD" {
        return Err("an answer to HEAD has no body: use GET with `contains`".to_owned());
    }
    match tls {
        Some(TlsOptions {
            verify: false,
            ca: Some(_),
            ..
        }) => Err("no certificate is looked at without `verify`: leave `ca` out, or switch it on".to_owned()),
        Some(TlsOptions {
            server_name: Some(name),
            ..
        }) if name.is_empty() || !is_visible(name) => {
            Err("the check's server_name is no name: write one such as www.example.org".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_udp(probe: &UdpProbe) -> Result<(), String> {
    // What goes through any segment in one piece.
    const MOST: usize = 1_200;
    let octets = probe.octets()?;
    if octets.len() > MOST {
        return Err(format!(
            "a check's datagram of {} octets is too long: {MOST} are the most",
            octets.len()
        ));
    }
    if probe.contains.as_ref().is_some_and(String::is_empty) {
        return Err("every answer contains the empty text: leave `contains` out, or use `answer`".to_owned());
    }
    Ok(())
}

fn check_dns(probe: &DnsProbe) -> Result<(), String> {
    let DnsProbe {
        name,
        record,
        address,
    } = probe;
    let labels = name.strip_suffix('.').unwrap_or(name);
    let is_label =
        |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic());
    let is_name = name == "." || labels.len() <= 253 && labels.split('.').all(is_label);
    if !is_name {
        return Err(format!(
            "`{name}` is no name to ask for: write one such as www.example.org"
        ));
    }
    match (address, record) {
        (None, _) | (Some(IpAddr::V4(_)), DnsRecord::A) | (Some(IpAddr::V6(_)), DnsRecord::Aaaa) => Ok(()),
        (Some(address), record) => Err(format!(
            "{address} is not what records of type {record} have: ask for A with an IPv4 address, for AAAA with an \
             IPv6 one"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::types::{
            Change, InitialState, OnFailure, Scheduler, ServerCheck, ServerKey, ServiceSpec, Statuses,
        },
        model::Model,
    };

    const KEY: ServiceKey = ServiceKey::new(
        Protocol::Tcp,
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        80,
    );

    fn server(check: ServerCheck) -> ServerSpec {
        let key = ServerKey {
            address: [198, 51, 100, 1].into(),
            port: 80,
        };
        ServerSpec {
            check: Some(Box::new(check)),
            ..ServerSpec::new(key, 1)
        }
    }

    /// What becomes of a service with this check and a server with that one.
    fn applied(check: Option<Check>, own: ServerCheck) -> Result<(), String> {
        let service = ServiceSpec {
            check: check.map(Box::new),
            ..ServiceSpec::new(KEY, Scheduler::Rr)
        };
        let changes = [
            Change::AddService { service },
            Change::AddServer {
                service: KEY,
                server: server(own),
                require_on_link: false,
            },
        ];
        Model::default().apply(&changes).map_err(|error| error.message)
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_said() {
        let tcp = || Check::new(Probe::Tcp {});
        let http = |http| Check::new(Probe::Http(http));
        let plain = HttpProbe::default;
        let span = Span::from_millis;
        for (check, part) in [
            (
                Check {
                    port: Some(0),
                    ..tcp()
                },
                "cannot ask port 0",
            ),
            (
                Check {
                    timeout: span(2_001),
                    ..tcp()
                },
                "a timeout up to 2s",
            ),
            (Check { rise: 0, ..tcp() }, "rise of 0 is out of range"),
            (Check { fall: 101, ..tcp() }, "fall of 101 is out of range"),
            (Check { jitter: 51, ..tcp() }, "from 0 to 50"),
            (
                Check {
                    address: Some([0; 16].into()),
                    ..tcp()
                },
                "another family",
            ),
            (
                http(HttpProbe {
                    method: "get it".into(),
                    ..plain()
                }),
                "no method",
            ),
            (
                http(HttpProbe {
                    path: "index".into(),
                    ..plain()
                }),
                "begin it with a slash",
            ),
            (
                http(HttpProbe {
                    path: "/a b".into(),
                    ..plain()
                }),
                "no path",
            ),
            (
                http(HttpProbe {
                    host: Some("a\r\nb".into()),
                    ..plain()
                }),
                "host is no name",
            ),
            (
                http(HttpProbe {
                    contains: Some(String::new()),
                    ..plain()
                }),
                "leave `contains` out",
            ),
            (
                http(HttpProbe {
                    contains: Some("x".into()),
                    method: "HEAD".into(),
                    ..plain()
                }),
                "has no body",
            ),
        ] {
            let error = applied(Some(check.clone()), ServerCheck::default()).unwrap_err();
            assert!(
                error.contains(part) && error.starts_with("service TCP"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_passive_check_is_a_tcp_services_and_has_nothing_of_the_others() {
        let passive = |probe| Check::new(Probe::Passive(probe));
        let plain = PassiveProbe::default();
        let span = Span::from_millis;
        let own = ServerCheck::default;
        let remove = Check {
            on_failure: OnFailure::Remove,
            ..passive(plain)
        };
        assert_eq!(applied(Some(remove), own()), Ok(()));
        for (check, part) in [
            (
                Check {
                    rise: 1,
                    ..passive(plain)
                },
                "asks nobody: leave out its target",
            ),
            (
                Check {
                    initial: InitialState::Up,
                    ..passive(plain)
                },
                "asks nobody",
            ),
            (
                passive(PassiveProbe {
                    window: span(999),
                    ..plain
                }),
                "window of 999ms is out of range: use a time from 1s to 1h",
            ),
            (
                passive(PassiveProbe {
                    retry: span(500),
                    ..plain
                }),
                "retry of 500ms",
            ),
            (
                passive(PassiveProbe {
                    connections: 0,
                    ..plain
                }),
                "connections of 0",
            ),
            (passive(PassiveProbe { share: 100, ..plain }), "from 1 to 99"),
        ] {
            let error = applied(Some(check), own()).unwrap_err();
            assert!(
                error.starts_with("service TCP") && error.contains(part),
                "{error}"
            );
        }
        let own_probe = ServerCheck {
            probe: Some(Probe::Passive(plain)),
            ..own()
        };
        let error = applied(Some(passive(plain)), own_probe).unwrap_err();
        assert!(error.contains("give it to the service"), "{error}");
        // One real server may be asked, or left alone, where the others are watched.
        let asked = ServerCheck {
            probe: Some(Probe::Tcp {}),
            interval: Some(span(5_000)),
            ..own()
        };
        let off = ServerCheck { off: true, ..own() };
        for own in [asked, off] {
            assert_eq!(applied(Some(passive(plain)), own), Ok(()));
        }
        let add = |service: ServiceSpec| {
            let check = Some(Box::new(passive(plain)));
            let service = ServiceSpec { check, ..service };
            let error = Model::default()
                .apply(&[Change::AddService { service }])
                .unwrap_err();
            error.message
        };
        let udp = ServiceKey::new(Protocol::Udp, [192, 0, 2, 1].into(), 80);
        let error = add(ServiceSpec::new(udp, Scheduler::Rr));
        assert!(error.contains("UDP has none"), "{error}");
        let stateless = ServiceSpec {
            stateless: true,
            ..ServiceSpec::new(KEY, Scheduler::Mh)
        };
        let error = add(stateless);
        assert!(error.contains("a stateless service keeps none"), "{error}");
    }

    #[test]
    fn a_servers_own_check_goes_by_its_services() {
        let http = Probe::Http(HttpProbe {
            status: vec!["200".parse::<Statuses>().unwrap()],
            ..HttpProbe::default()
        });
        let check = Check {
            interval: Span::from_millis(500),
            timeout: Span::from_millis(500),
            ..Check::new(Probe::Tcp {})
        };
        let own = ServerCheck {
            fall: Some(7),
            probe: Some(http.clone()),
            ..ServerCheck::default()
        };
        let expected = Check {
            fall: 7,
            probe: http,
            ..check.clone()
        };
        assert_eq!(own.over(Some(&check)), Some(expected));
        assert_eq!(
            own.over(None).map(|check| check.interval),
            Some(Span::from_millis(2_000))
        );
        assert_eq!(applied(None, own), Ok(()));
        let off = ServerCheck {
            off: true,
            ..ServerCheck::default()
        };
        assert_eq!(off.over(Some(&check)), None);
        assert_eq!(applied(None, off), Ok(()));
        let empty = applied(None, ServerCheck::default()).unwrap_err();
        assert!(empty.contains("give it a probe"), "{empty}");
        // Its own timeout is too long for the service's interval, now or once that is another one.
        let slow = ServerCheck {
            timeout: Some(Span::from_millis(600)),
            ..ServerCheck::default()
        };
        let refused = applied(Some(check.clone()), slow.clone()).unwrap_err();
        assert!(
            refused.starts_with("real server 198.51.100.1:80 of service TCP"),
            "{refused}"
        );
        let mut model = Model::default();
        let service = |check: Option<Check>| ServiceSpec {
            check: check.map(Box::new),
            ..ServiceSpec::new(KEY, Scheduler::Rr)
        };
        let slower = Check {
            interval: Span::from_millis(600),
            ..check.clone()
        };
        let add = Change::AddServer {
            service: KEY,
            server: server(slow),
            require_on_link: false,
        };
        let service_is = |check| Change::AddService {
            service: service(check),
        };
        model.apply(&[service_is(Some(slower)), add]).unwrap();
        let edit = |check| Change::EditService {
            service: service(check),
        };
        assert!(model.apply(&[edit(Some(check))]).is_err());
        assert!(model.apply(&[edit(None)]).is_err());
    }
}
