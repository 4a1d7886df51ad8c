use std::collections::BTreeMap;

use super::*;
use crate::api::types::{
    CheckTarget, Handshakes, InterfaceStatus, Protocol, Rates, ReasonCount, Scheduler, ServerSpec,
    ServerState, ServiceSpec, Settings, Stats, TableFill, Timeouts, VipStatus,
};

const SERVER: &str = "192.168.2.210";

fn server(address: &str, active: u64) -> Server {
    Server {
        spec: ServerSpec::new(
            ServerKey {
                address: address.parse().unwrap(),
                port: 80,
            },
            3,
        ),
        state: ServerState::Ready,
        mac: None,
        interface: None,
        active,
        inactive: 7,
        persistent: 0,
        effective_weight: 0,
        health: None,
        stats: Stats {
            connections: 12,
            packets: 340,
            bytes: 5_600,
        },
        handshakes: Handshakes {
            syns: 12,
            repeated: 3,
            acknowledged: 10,
            microseconds: 2_000_000,
        },
        rates: Rates::default(),
    }
}

fn service(key: ServiceKey, servers: Vec<Server>) -> Service {
    Service {
        spec: ServiceSpec::new(key, Scheduler::Rr),
        stats: Stats::default(),
        rates: Rates::default(),
        has_fallen_back: false,
        servers,
    }
}

fn seen(services: Vec<Service>) -> Seen {
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: 1,
        abi: 6,
        program_id: 1,
        pin_dir: String::new(),
        interfaces: vec![InterfaceStatus {
            name: "eth\"0\n".to_owned(),
            index: 2,
            mode: "native".to_owned(),
            reason: None,
        }],
        detached: Vec::new(),
        vips: vec![VipStatus {
            address: "192.168.2.100".parse().unwrap(),
            state: VipState::Withdrawn,
        }],
        connections: 5,
        connection_capacity: 1024,
        tables: vec![TableFill {
            name: "services".to_owned(),
            used: 2,
            capacity: 64,
            option: "--services".to_owned(),
        }],
        timeouts: Timeouts::default(),
        settings: Settings::default(),
        services: 2,
        servers: 2,
        reasons: vec![ReasonCount {
            name: "not-for-us".to_owned(),
            verdict: "pass".to_owned(),
            help: String::new(),
            packets: u64::MAX,
        }],
        warnings: vec!["one".to_owned()],
    };
    let checks = vec![CheckStatus {
        service: ServiceKey::new(Protocol::Tcp, "192.168.2.100".parse().unwrap(), 80),
        server: ServerKey {
            address: SERVER.parse().unwrap(),
            port: 80,
        },
        probe: "http".to_owned(),
        target: CheckTarget::Vip,
        asked: None,
        state: CheckState::Down,
        since: 0,
        in_a_row: 1,
        last: None,
        fault: None,
    }];
    Seen {
        status,
        services,
        checks,
    }
}

/// The samples of a text by name and labels; every line of which is understood.
fn samples(text: &str) -> BTreeMap<String, u64> {
    assert!(text.ends_with("# EOF\n"));
    let lines = text.lines().filter(|line| !line.starts_with("# "));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(name.starts_with("lvs_xdp_"), "{line}");
            assert_eq!(name.ends_with('}'), name.contains('{'), "{line}");
            // Those of seconds have a fraction.
            let value = value.strip_suffix(".0").unwrap_or(value);
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn a_text_has_what_was_seen() {
    let vip = "192.168.2.100".parse().unwrap();
    let web = service(
        ServiceKey::new(Protocol::Tcp, vip, 80),
        vec![server(SERVER, 4), server("192.168.2.211", 0)],
    );
    let text = render(seen(vec![web])).unwrap();
    let samples = samples(&text);
    let of = |name: &str| samples.get(name).copied();
    let labels = "local_address=\"192.168.2.100\",local_port=\"80\",local_mark=\"\",proto=\"TCP\"";
    let backend = |name: &str| {
        of(&format!(
            "lvs_xdp_{name}{{{labels},remote_address=\"{SERVER}\",remote_port=\"80\"}}"
        ))
    };
    assert_eq!(backend("backend_connections_active"), Some(4));
    assert_eq!(backend("backend_connections_inactive"), Some(7));
    assert_eq!(backend("backend_weight"), Some(3));
    assert_eq!(backend("backend_effective_weight"), Some(0));
    assert_eq!(backend("backend_incoming_bytes_total"), Some(5_600));
    assert_eq!(backend("handshakes_syns_total"), Some(12));
    assert_eq!(backend("handshakes_repeated_syns_total"), Some(3));
    assert_eq!(backend("handshakes_acknowledged_total"), Some(10));
    assert_eq!(backend("handshakes_acknowledged_seconds_total"), Some(2));
    let check =
        format!("lvs_xdp_check_up{{{labels},remote_address=\"{SERVER}\",remote_port=\"80\",probe=\"http\"}}");
    assert_eq!(of(&check), Some(0));
    assert_eq!(
        of("lvs_xdp_packets_total{verdict=\"pass\",reason=\"not-for-us\"}"),
        Some(u64::MAX)
    );
    assert_eq!(of("lvs_xdp_vip_answered{address=\"192.168.2.100\"}"), Some(0));
    assert_eq!(of("lvs_xdp_table_used{table=\"connections\"}"), Some(5));
    assert_eq!(of("lvs_xdp_table_capacity{table=\"services\"}"), Some(64));
    assert_eq!(of("lvs_xdp_warnings"), Some(1));
    // What a label may not have is escaped.
    assert_eq!(
        of("lvs_xdp_interface_info{device=\"eth\\\"0\\n\",mode=\"native\"}"),
        Some(1)
    );
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let count = text.matches(&format!("# TYPE {family}\n")).count();
        assert_eq!(count, 1, "{family}");
    }
}

#[test]
fn marks_are_written_as_the_kernel_lists_them() {
    let mark = |ipv6| ServiceKey::Mark { mark: 0xbeef, ipv6 };
    let services = [
        service(mark(false), vec![server(SERVER, 4)]),
        service(mark(true), vec![server("2001:db8::1", 5)]),
    ];
    let samples = samples(&render(seen(services.to_vec())).unwrap());
    for (protocol, address, active) in [("FWM", SERVER, 4), ("FWM6", "2001:db8::1", 5)] {
        let labels =
            format!("local_address=\"\",local_port=\"0\",local_mark=\"0000BEEF\",proto=\"{protocol}\"");
        let of_service = format!("lvs_xdp_service_connections_total{{{labels}}}");
        assert_eq!(samples.get(&of_service), Some(&0), "{of_service}");
        let of_server = format!(
            "lvs_xdp_backend_connections_active{{{labels},remote_address=\"{address}\",remote_port=\"80\"}}"
        );
        assert_eq!(samples.get(&of_server), Some(&active), "{of_server}");
    }
}

#[test]
fn a_family_without_samples_is_left_out() {
    let text = render(seen(Vec::new())).unwrap();
    assert!(!text.contains("backend_"), "{text}");
}
