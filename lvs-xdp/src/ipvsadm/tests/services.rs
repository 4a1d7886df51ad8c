//! What the lines about services and real servers mean.

use super::*;
use crate::api::types::{
    ClientMask, Drain, Persistence, Protocol, Removal, SchedulerFlag, ServerCheck, ServerKey, ServiceSettings,
};

/// The service that a line makes.
#[track_caller]
fn made(line: &str) -> ServiceSpec {
    let mut director = Memory::default();
    assert_eq!(stdout_of(&mut director, line), "");
    director.services.remove(0).spec
}

fn key(protocol: Protocol, address: &str, port: u16) -> ServiceKey {
    ServiceKey::new(protocol, address.parse().unwrap(), port)
}

#[test]
fn wlc_is_the_default_and_every_scheduler_has_its_name() {
    let web = key(Protocol::Tcp, "10.0.0.1", 80);
    assert_eq!(made("-A -t 10.0.0.1:80"), ServiceSpec::new(web, Scheduler::Wlc));
    for scheduler in Scheduler::ALL {
        let spec = made(&format!("-A -t 10.0.0.1:80 -s {scheduler}"));
        assert_eq!(spec, ServiceSpec::new(web, scheduler));
    }
    let sctp = key(Protocol::Sctp, "10.0.0.1", 5000);
    assert_eq!(
        made("-A --sctp-service 10.0.0.1:5000"),
        ServiceSpec::new(sctp, Scheduler::Wlc)
    );
}

#[test]
fn addresses_are_read_as_by_ipvsadm() {
    for (text, address, port) in [
        ("10.0.0.1:http", "10.0.0.1", 80),
        ("10.0.0.1: +80", "10.0.0.1", 80),
        ("10.0.0.1:080", "10.0.0.1", 80),
        ("rs1:80", "10.0.0.2", 80),
        ("1:80", "0.0.0.1", 80),
        ("10.1:80", "10.0.0.1", 80),
        ("0x0a000001:80", "10.0.0.1", 80),
        ("10.0.0.1 x:80", "10.0.0.1", 80),
        ("[fd00::1]:www", "fd00::1", 80),
        ("fd00::1", "fd00::1", 0),
        // Brackets are IPv6's: with anything else in them the port is forgotten.
        ("[10.0.0.1]:80", "10.0.0.1", 0),
        ("[rs1]:nonsense", "10.0.0.2", 0),
        ("10.0.0.1:-0", "10.0.0.1", 0),
    ] {
        let mut director = Memory::default();
        let words = ["-A", "-p", "-t", text].map(str::to_owned);
        let step = run_words(&mut director, words.into());
        assert_eq!((step.status, step.stderr.as_str()), (0, ""), "{text:?}");
        assert_eq!(
            director.services[0].spec.key,
            key(Protocol::Tcp, address, port),
            "{text:?}"
        );
    }
}

#[test]
fn flags_are_three_bits_by_any_name() {
    use SchedulerFlag::{Fallback, Port, Third};
    for (line, flags) in [
        ("-s rr -b flag-3,flag-1", vec![Fallback, Third]),
        ("-s sh -b ,flag-2,,sh-port,", vec![Port]),
        ("-s sh -b flag-1", vec![Fallback]),
        ("-s mh -b flag-2,flag-1", vec![Fallback, Port]),
        ("-s mh -b mh-port,flag-2", vec![Port]),
    ] {
        assert_eq!(made(&format!("-A -t 10.0.0.1:80 {line}")).flags, flags, "{line}");
    }
}

#[test]
fn persistence_has_ipvsadms_defaults() {
    let v4 = |text: &str| Some(ClientMask::V4(text.parse().unwrap()));
    for (line, expected) in [
        ("-t 10.0.0.1:80", None),
        ("-t 10.0.0.1:80 -M 255.0.0.0", None),
        ("-t 10.0.0.1:80 -p", Some((360, None))),
        ("-p -t 10.0.0.1:80", Some((360, None))),
        ("-t 10.0.0.1:80 -p1", Some((1, None))),
        ("-t 10.0.0.1:0 -p 2678400", Some((2_678_400, None))),
        ("-t 10.0.0.1 --persistent=60", Some((60, None))),
        ("-M 255.0.255.0 -p 9 -u 10.0.0.1:53", Some((9, v4("255.0.255.0")))),
        ("-t 10.0.0.1:80 -p 9 -M rs1", Some((9, v4("10.0.0.2")))),
        ("-t 10.0.0.1:80 -p 9 -M 255.255", Some((9, v4("255.0.0.255")))),
        ("-t 10.0.0.1:80 -p 9 -M 24", Some((9, v4("0.0.0.24")))),
        ("-t [fd00::1]:80 -p 9 -M 64", Some((9, Some(ClientMask::V6(64))))),
        ("-M 64 -t [fd00::1]:80 -p 9", Some((9, None))),
    ] {
        let persistence = expected.map(|(timeout, mask)| Persistence { timeout, mask });
        assert_eq!(made(&format!("-A {line}")).persistence, persistence, "{line}");
    }
}

#[test]
fn one_packet_scheduling_is_for_udp() {
    assert!(made("-A -u 10.0.0.1:53 -o").one_packet);
    assert!(made("-A -u 10.0.0.1:53 -p 60 --ops").one_packet);
    assert!(!made("-A -u 10.0.0.1:53").one_packet);
}

#[test]
fn an_edited_service_keeps_what_ipvsadm_has_no_words_for() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -u 10.0.0.1:53 -s sh -b sh-port -p 60 -o");
    let spec = &mut director.services[0].spec;
    (spec.removal, spec.slow_start) = (Some(Removal::Reset), 30);
    spec.settings = ServiceSettings {
        sloppy_tcp: Some(1),
        ..ServiceSettings::default()
    };
    let before = spec.clone();
    stdout_of(&mut director, "-E -u 10.0.0.1:53");
    let expected = ServiceSpec {
        scheduler: Scheduler::Wlc,
        flags: Vec::new(),
        persistence: None,
        one_packet: false,
        ..before
    };
    assert_eq!(director.services[0].spec, expected);
}

#[test]
fn an_edited_server_keeps_its_check() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:80");
    stdout_of(&mut director, "-a -t 10.0.0.1:80 -r 10.0.0.2 -w 5");
    let check = Some(Box::new(ServerCheck {
        off: true,
        ..ServerCheck::default()
    }));
    director.services[0].servers[0].spec.check.clone_from(&check);
    stdout_of(&mut director, "-e -t 10.0.0.1:80 -r 10.0.0.2 -w 7");
    let spec = &director.services[0].servers[0].spec;
    assert_eq!((spec.weight, &spec.check), (7, &check));
}

#[test]
fn an_edited_server_has_only_what_the_line_says() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:80");
    stdout_of(&mut director, "-a -t 10.0.0.1:80 -r 10.0.0.2 -w 5 -x 10 -y 5");
    let server = ServerKey {
        address: "10.0.0.2".parse().unwrap(),
        port: 80,
    };
    let expected = ServerSpec {
        upper_threshold: 10,
        lower_threshold: 5,
        ..ServerSpec::new(server, 5)
    };
    assert_eq!(director.services[0].servers[0].spec, expected);
    director.services[0].servers[0].spec.drain = Some(Drain::default());
    stdout_of(&mut director, "-e -t 10.0.0.1:80 -r 10.0.0.2");
    assert_eq!(director.services[0].servers[0].spec, ServerSpec::new(server, 1));
}

#[test]
fn real_servers_of_an_all_port_service_have_its_port() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:0 -p");
    for line in [
        "-a -t 10.0.0.1:0 -r 10.0.0.2",
        "-a -t 10.0.0.1:0 -r 10.0.0.3:0",
        "-a -t 10.0.0.1 -r 10.0.0.4:80",
    ] {
        stdout_of(&mut director, line);
    }
    let servers = &director.services[0].servers;
    assert!(servers.iter().all(|server| server.spec.key.port == 0));
    assert_eq!(servers.len(), 3);
    // Without -p it is a service that cannot be.
    assert_eq!(
        refused(&mut director, "-E -t 10.0.0.1:0"),
        "2: Zero port specified for non-persistent service"
    );
}
