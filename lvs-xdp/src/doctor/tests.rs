//! What replies of real servers mean.

use super::*;
use crate::{
    api::types::{Rates, Scheduler, ServerKey, ServerSpec, ServiceSpec, Stats},
    doctor::wire::Reply::{Answered, Closed, Rejected, Silence},
};

fn service() -> Service {
    let key = ServiceKey::Endpoint {
        protocol: Protocol::Tcp,
        address: [192, 168, 2, 100].into(),
        port: 80,
    };
    Service {
        spec: ServiceSpec::new(key, Scheduler::Rr),
        stats: Stats::default(),
        rates: Rates::default(),
        has_fallen_back: false,
        servers: Vec::new(),
    }
}

fn server(state: ServerState) -> Server {
    let key = ServerKey {
        address: [192, 168, 2, 220].into(),
        port: 80,
    };
    Server {
        spec: ServerSpec::new(key, 1),
        state,
        mac: Some("02:00:00:00:02:dc".to_owned()),
        interface: Some("eth0".to_owned()),
        active: 0,
        inactive: 0,
        persistent: 0,
        health: None,
        effective_weight: 1,
        stats: Stats::default(),
        rates: Rates::default(),
    }
}

#[test]
fn replies_have_a_meaning() {
    let cases = [
        (Some(Answered), Answered, Some(Answered), Answered, "server"),
        // A server that answers no echo requests is none the worse.
        (Some(Answered), Silence, Some(Silence), Silence, "server"),
        (
            Some(Closed),
            Answered,
            Some(Answered),
            Answered,
            "listens-on-rip-only",
        ),
        (Some(Closed), Answered, Some(Closed), Answered, "port-closed"),
        (Some(Closed), Silence, Some(Silence), Silence, "port-closed"),
        (Some(Silence), Answered, Some(Answered), Answered, "firewall"),
        (Some(Rejected), Answered, Some(Silence), Answered, "firewall"),
        (Some(Silence), Silence, Some(Answered), Answered, "vip-missing"),
        (Some(Rejected), Silence, Some(Closed), Silence, "vip-missing"),
        (Some(Silence), Silence, Some(Silence), Answered, "vip-missing"),
        (Some(Silence), Silence, Some(Silence), Silence, "server-silent"),
        (None, Answered, None, Answered, "server"),
        (None, Silence, None, Answered, "vip-missing"),
        (None, Silence, None, Silence, "server-silent"),
    ];
    for (vip, vip_echo, rip, rip_echo, code) in cases {
        let replies = Replies {
            vip,
            vip_echo,
            rip,
            rip_echo,
        };
        let found = diagnosis(&service(), &server(ServerState::Ready), replies);
        assert_eq!(found.code, code, "{replies:?}");
        assert_eq!(found.level == Level::Ok, code == "server");
        assert_eq!(found.mend.is_some(), code != "server");
        assert_eq!(found.subject, "TCP 192.168.2.100:80 at 192.168.2.220");
    }
}

#[test]
fn what_cannot_be_asked_is_told_by_its_way() {
    for (state, code, level) in [
        (ServerState::Unreachable, "server-unreachable", Level::Broken),
        (ServerState::NotOnLink, "server-not-on-link", Level::Broken),
        (ServerState::Resolving, "server-resolving", Level::Warning),
        (ServerState::Local, "server", Level::Ok),
    ] {
        let found = way(&service(), &server(state)).expect("a finding");
        assert_eq!((found.code, found.level), (code, level));
    }
}

#[test]
fn a_mac_address_is_read_as_it_is_written() {
    let octets = [2, 0, 0, 0xa, 0xff, 1];
    assert_eq!(mac(&mac_text(octets)), Some(octets));
    for text in ["", "02:00", "02:00:00:0a:ff:01:02", "02:00:00:0a:ff:zz"] {
        assert_eq!(mac(text), None, "{text}");
    }
}

#[test]
fn the_worst_finding_is_the_status() {
    let finding = |level| Finding::new(level, "x", "y", String::new());
    for (levels, status) in [
        (&[][..], 0),
        (&[Level::Ok, Level::Note], 0),
        (&[Level::Warning, Level::Ok], 1),
        (&[Level::Warning, Level::Broken, Level::Note], 2),
    ] {
        let report = Report::new(levels.iter().copied().map(finding).collect());
        assert_eq!(report.status(), status);
    }
}
