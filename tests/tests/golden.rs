//! IPVS's own answers, connection by connection: scenarios that were played to the kernel's IPVS, played to
//! the program.

use std::net::{Ipv4Addr, SocketAddrV4};

use lvs_xdp::api::types::{
    Change, Persistence, Protocol, Scheduler, SchedulerFlag, ServerSpec, ServiceKey, ServiceSpec, Settings,
};
use lvs_xdp_common::reason::Outcome;
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    trial::{Director, delete_server, mac_of, server_key, service_key},
};
use serde_json::Value;

/// Recorded on Linux 6.1 with ipvsadm 1.31. `setup` and the `ipvsadm` events are its words, `open` has
/// the real server that IPVS chose (`r1` is 10.9.0.11), or null where it refused.
const SCENARIOS: &str = include_str!("../golden/schedulers.json");

fn words(value: &Value) -> Vec<&str> {
    let words = value.as_array().expect("a list");
    words.iter().map(|word| word.as_str().expect("a word")).collect()
}

fn option<'a>(command: &[&'a str], name: &str) -> Option<&'a str> {
    let at = command.iter().position(|word| *word == name)?;
    command.get(at + 1).copied()
}

fn service_of(command: &[&str]) -> ServiceKey {
    let (protocol, address) = match (option(command, "-t"), option(command, "-u")) {
        (Some(address), _) => (Protocol::Tcp, address),
        (_, address) => (Protocol::Udp, address.expect("-t or -u")),
    };
    let address: SocketAddrV4 = address.parse().expect("an address with a port");
    service_key(protocol, *address.ip(), address.port())
}

/// A command of ipvsadm as a change.
fn change_of(command: &[&str]) -> Change {
    let service = service_of(command);
    let server = || {
        let address: SocketAddrV4 = option(command, "-r")
            .and_then(|text| text.parse().ok())
            .expect("-r");
        *address.ip()
    };
    let number = |name: &str, default: u32| {
        option(command, name).map_or(default, |value| value.parse().expect("a number"))
    };
    let server_spec = || ServerSpec {
        upper_threshold: number("-x", 0),
        lower_threshold: number("-y", 0),
        ..ServerSpec::new(server_key(&service, server()), number("-w", 1))
    };
    match command[0] {
        "-A" => {
            let flags: Vec<_> = option(command, "-b")
                .iter()
                .flat_map(|flags| flags.split(','))
                .map(|flag| match flag {
                    "sh-port" | "mh-port" => SchedulerFlag::Port,
                    "sh-fallback" | "mh-fallback" => SchedulerFlag::Fallback,
                    other => panic!("there is no flag {other}"),
                })
                .collect();
            let scheduler =
                option(command, "-s").map_or(Scheduler::Wlc, |name| name.parse().expect("a scheduler"));
            let persistence = option(command, "-p").map(|timeout| Persistence {
                timeout: timeout.parse().expect("seconds"),
                mask: option(command, "-M").map(|mask| mask.parse().expect("a netmask")),
            });
            Change::AddService {
                service: ServiceSpec {
                    flags,
                    persistence,
                    one_packet: command.contains(&"-o"),
                    ..ServiceSpec::new(service, scheduler)
                },
            }
        }
        "-a" => Change::AddServer {
            service,
            server: server_spec(),
            require_on_link: false,
        },
        "-e" => Change::EditServer {
            service,
            server: server_spec(),
        },
        "-d" => delete_server(service, server()),
        other => panic!("{other} is no command of these scenarios"),
    }
}

fn real_server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, 10 + number)
}

/// A scenario that is being played.
struct Play {
    director: Director,
    /// Connections that are open: name, frame without flags.
    open: Vec<(String, Frame)>,
    opened: usize,
}

impl Play {
    fn new() -> Self {
        let mut director = Director::new(4096).expect("a director");
        for number in 1..=6 {
            director.resolve(real_server(number));
        }
        Self {
            director,
            open: Vec::new(),
            opened: 0,
        }
    }

    /// Sets what the record has as sysctls net.ipv4.vs.*.
    fn set(&mut self, sysctls: &serde_json::Map<String, Value>) {
        let mut settings = serde_json::to_value(Settings::default()).expect("settings are JSON");
        for (name, value) in sysctls {
            assert!(settings.get(name).is_some(), "there is no setting {name}");
            settings[name] = value.clone();
        }
        let settings = serde_json::from_value(settings).expect("numbers");
        self.director
            .change(&[Change::SetSettings { settings }])
            .expect("the settings are valid");
    }

    fn command(&mut self, command: &[&str]) {
        let change = change_of(command);
        self.director
            .change(&[change])
            .unwrap_or_else(|error| panic!("{command:?}: {error:#}"));
    }

    fn event(&mut self, event: &[Value]) {
        match event[0].as_str().expect("a kind") {
            "open" => self.connect(event),
            "close" => self.close(&event[1]),
            // What -S prints is no matter of the program.
            "list" if event[1] == "-S" => {}
            "list" => self.compare_list(event.last().and_then(Value::as_str).expect("a listing")),
            "ipvsadm" => {
                let command: Vec<_> = event[1..].iter().filter_map(Value::as_str).collect();
                self.command(&command);
            }
            other => panic!("there is no event {other}"),
        }
    }

    fn connect(&mut self, event: &[Value]) {
        let address = |at: usize| -> (Ipv4Addr, u16) {
            let host = event[at].as_str().and_then(|text| text.parse().ok());
            let port = event[at + 1].as_u64().and_then(|port| u16::try_from(port).ok());
            (host.expect("an address"), port.expect("a port"))
        };
        let frame = match event[6].as_str() {
            Some("tcp") => Frame::tcp(address(2), address(4), tcp::SYN),
            _ => Frame::udp(address(2), address(4)),
        };
        let seen = self.director.send(&frame.bytes()).expect("a trial");
        let expected = event[7]
            .as_str()
            .map(|name| real_server(name[1..].parse().expect("a number")));
        match expected {
            Some(server) => assert_eq!(
                (seen.reason.outcome(), &seen.frame[..6]),
                (Outcome::Forward, &mac_of(server)[..]),
                "{event:?}: {:?}",
                seen.reason
            ),
            None => assert_ne!(seen.reason.outcome(), Outcome::Forward, "{event:?}"),
        }
        if frame.protocol == 6 && expected.is_some() {
            let seen = self.director.send(
                &Frame {
                    flags: tcp::ACK,
                    ..frame.clone()
                }
                .bytes(),
            );
            assert_eq!(seen.expect("a trial").frame[..6], seen_mac(expected), "{event:?}");
            self.open
                .push((event[1].as_str().expect("a name").to_owned(), frame));
        }
        self.opened += 1;
    }

    /// The client closes, and answers what the server closes with.
    fn close(&mut self, name: &Value) {
        // UDP is not closed, nor what was refused.
        if let Some(at) = self.open.iter().position(|(open, _)| name == open.as_str()) {
            let (_, frame) = self.open.remove(at);
            for flags in [tcp::FIN | tcp::ACK, tcp::ACK] {
                self.director
                    .send(
                        &Frame {
                            flags,
                            ..frame.clone()
                        }
                        .bytes(),
                    )
                    .expect("a trial");
            }
        }
    }

    /// The counts of `ipvsadm -L -n`: ActiveConn and InActConn of each destination.
    fn compare_list(&self, listing: &str) {
        let mut service = None;
        let mut compared = 0;
        for line in listing.lines() {
            let fields: Vec<_> = line.split_whitespace().collect();
            match fields.as_slice() {
                ["TCP", address, ..] => service = Some(service_of(&["-t", address])),
                ["UDP", address, ..] => service = Some(service_of(&["-u", address])),
                // With --thresholds the two thresholds stand before the counts, and no method.
                ["->", server, .., active, inactive] if server.contains('.') => {
                    let server: SocketAddrV4 = server.parse().expect("an address");
                    let service = service.as_ref().expect("a service stands above its servers");
                    let expected = (
                        active.parse().expect("a number"),
                        inactive.parse().expect("a number"),
                    );
                    assert_eq!(self.director.counts(service, *server.ip()), expected, "{listing}");
                    compared += 1;
                }
                _ => {}
            }
        }
        assert!(compared > 0, "{listing}");
    }
}

fn seen_mac(server: Option<Ipv4Addr>) -> [u8; 6] {
    mac_of(server.expect("a server was chosen"))
}

#[test]
fn every_connection_goes_where_ipvs_sent_it() {
    let scenarios: Vec<Value> = serde_json::from_str(SCENARIOS).expect("the record is JSON");
    let mut opened = 0;
    for scenario in &scenarios {
        let mut play = Play::new();
        if let Some(sysctls) = scenario["sysctl"].as_object() {
            play.set(sysctls);
        }
        for command in scenario["setup"].as_array().expect("a list") {
            play.command(&words(command));
        }
        for (number, event) in (1..).zip(scenario["events"].as_array().expect("a list")) {
            println!("{}, event {number}", scenario["name"]);
            play.event(event.as_array().expect("a list"));
        }
        opened += play.opened;
    }
    println!(
        "{opened} connections of {} scenarios went where IPVS sent them",
        scenarios.len()
    );
    assert_eq!(scenarios.len(), 41);
}
