//! What is known of real servers, and their replies, mean.

use super::*;
use crate::{
    api::types::{
        ForwardingMethod, Handshakes, InterfaceStatus, Rates, Scheduler, ServerKey, ServerSpec, ServiceSpec,
        Stats,
    },
    doctor::{
        tests::{facts, status},
        wire::Reply::{Answered, Closed, Rejected, Silence},
    },
    neighbour::Link,
};

fn of(protocol: Protocol) -> Service {
    let key = ServiceKey::Endpoint {
        protocol,
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
        handshakes: Handshakes::default(),
        rates: Rates::default(),
    }
}

fn replies(vip: Option<Reply>, vip_echo: Reply, rip: Option<Reply>, rip_echo: Reply) -> Asked<Reply> {
    Asked {
        vip,
        vip_echo,
        rip,
        rip_echo,
        long_echo: None,
        far_echo: None,
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
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let replies = replies(vip, vip_echo, rip, rip_echo);
            let found = diagnosis(&of(protocol), &server(ServerState::Ready), replies);
            // That a UDP port is silent is no fault: an empty datagram is no question.
            let is_silent = protocol == Protocol::Udp && vip == Some(Silence);
            let code = if code == "firewall" && is_silent {
                "server"
            } else {
                code
            };
            assert_eq!(found.code, code, "{protocol:?} {replies:?}");
            assert_eq!(found.level == Level::Ok, code == "server");
            assert_eq!(found.mend.is_some(), code != "server");
            let name = if protocol == Protocol::Tcp { "TCP" } else { "UDP" };
            assert_eq!(found.subject, format!("{name} 192.168.2.100:80 at 192.168.2.220"));
        }
    }
    let silent = replies(Some(Silence), Answered, Some(Silence), Answered);
    let found = diagnosis(&of(Protocol::Udp), &server(ServerState::Ready), silent).found;
    assert!(found.ends_with("cannot be told"), "{found}");
}

#[test]
fn what_cannot_be_asked_is_told_by_its_way() {
    for (state, code, level) in [
        (ServerState::Unreachable, "server-unreachable", Level::Broken),
        (ServerState::NotOnLink, "server-not-on-link", Level::Broken),
        (ServerState::Resolving, "server-resolving", Level::Warning),
        (ServerState::Local, "server", Level::Ok),
    ] {
        let found = way(&of(Protocol::Tcp), &server(state));
        assert_eq!((found.code, found.level), (code, level));
    }
}

#[test]
fn answers_go_to_the_questions_that_were_asked() {
    let asked = Asked {
        vip: Some('a'),
        vip_echo: 'b',
        rip: None,
        rip_echo: 'c',
        long_echo: None,
        far_echo: Some('d'),
    };
    assert_eq!(asked.all().collect::<String>(), "abcd");
    let mut answers = 1..;
    let answered = asked.answered(&mut answers).expect("enough of them");
    assert_eq!(answered.all().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((answered.rip, answered.far_echo), (None, Some(4)));
    assert_eq!(answers.next(), Some(5));
    assert_eq!(asked.answered(&mut [1, 2].into_iter()), None);
}

#[test]
fn a_service_without_anybody_is_named() {
    let with = |weights: &[(i32, u32)]| {
        let mut service = of(Protocol::Tcp);
        for (configured, effective) in weights {
            let mut one = server(ServerState::Ready);
            one.spec.weight = u32::try_from(*configured).expect("no weight is negative");
            one.effective_weight = *effective;
            service.servers.push(one);
        }
        service
    };
    let code = |of: &Service| service(of).map(|found| (found.code, found.level));
    assert_eq!(code(&with(&[])), Some(("service-without-server", Level::Warning)));
    assert_eq!(
        code(&with(&[(0, 0), (0, 0)])),
        Some(("service-without-weight", Level::Warning))
    );
    assert_eq!(
        code(&with(&[(0, 0), (1, 0)])),
        Some(("service-down", Level::Broken))
    );
    assert_eq!(code(&with(&[(0, 0), (1, 1)])), None);
    let mut fallen_back = with(&[(1, 0)]);
    fallen_back.has_fallen_back = true;
    assert_eq!(code(&fallen_back), Some(("fallback-in-use", Level::Warning)));
}

#[test]
fn narrow_ways_are_named() {
    let judged = |server_mtu, method: ForwardingMethod| {
        let mut facts = facts();
        let link = |name: &str, mtu| Link {
            name: name.to_owned(),
            mtu,
            ..Link::default()
        };
        facts.links.set(2, Some(link("eth0", server_mtu)));
        facts.links.set(3, Some(link("eth1", 1500)));
        let mut status = status();
        status.interfaces = vec![InterfaceStatus {
            name: "eth1".to_owned(),
            index: 3,
            mode: "native".to_owned(),
            reason: None,
        }];
        let mut service = of(Protocol::Tcp);
        let mut one = server(ServerState::Ready);
        one.spec.method = method;
        service.servers = vec![one.clone(), one];
        let found = mtus(&facts, &status, &[service.clone(), service]);
        found
            .into_iter()
            .map(|found| (found.code, found.found))
            .collect::<Vec<_>>()
    };
    let direct = ForwardingMethod::default();
    assert_eq!(judged(1500, direct), []);
    assert_eq!(
        judged(1400, direct),
        [(
            "mtu-of-interface",
            "eth0 sends packets of up to 1400 bytes, and clients' come with up to 1500".to_owned()
        )]
    );
    let tunnel = ForwardingMethod::Tunnel(Tunnel::Gre { checksum: true });
    assert_eq!(judged(1528, tunnel), []);
    assert_eq!(
        judged(1527, tunnel),
        [(
            "mtu-of-tunnel",
            "packets of more than 1499 bytes do not fit into its tunnel over eth0 (MTU 1527)".to_owned()
        )]
    );
}

#[test]
fn long_packets_are_judged_by_short_ones() {
    let mut facts = facts();
    let link = Link {
        name: "eth0".to_owned(),
        mtu: 9000,
        ..Link::default()
    };
    facts.links.set(2, Some(link));
    let judged = |short, long| {
        let replies = Asked {
            long_echo: Some(long),
            ..replies(None, Answered, None, short)
        };
        long_way(&facts, &server(ServerState::Ready), replies).map(|found| found.level)
    };
    assert_eq!(judged(Answered, Answered), Some(Level::Ok));
    assert_eq!(judged(Answered, Silence), Some(Level::Warning));
    assert_eq!(judged(Silence, Silence), None);
}

#[test]
fn a_way_back_is_judged_by_that_of_others() {
    let from = IpAddr::from([192, 168, 3, 200]);
    let judged = |all: &[(bool, bool)]| {
        let addresses = (1..).map(|last| IpAddr::from([192, 168, 2, last]));
        let asked = addresses
            .zip(all)
            .map(|(address, (near, far))| (address, (from, *near, *far)));
        let found = far_way(&asked.collect());
        found.into_iter().map(|found| found.level).collect::<Vec<_>>()
    };
    assert_eq!(
        judged(&[(true, true), (true, false)]),
        [Level::Ok, Level::Warning]
    );
    // Nobody knows a way to that address: the director is to blame, and no client.
    assert_eq!(
        judged(&[(true, false), (true, false)]),
        [Level::Note, Level::Note]
    );
    // What has not even the VIP is found out otherwise.
    assert_eq!(judged(&[(true, true), (false, false)]), [Level::Ok]);
}
