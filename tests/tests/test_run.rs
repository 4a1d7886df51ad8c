//! The program in the kernel, frame by frame, by BPF_PROG_TEST_RUN.

use std::net::Ipv4Addr;

use lvs_xdp::api::types::{Change, MarkRule, Protocol, Scheduler, ServiceKey};
use lvs_xdp_common::{
    abi::control_flag,
    answer,
    maps::Maps as _,
    reason::{Outcome, Reason},
};
use lvs_xdp_tests::{
    frame::{DIRECTOR_MAC, Frame, tcp},
    trial::{
        Director, STATES, action, add_server, add_service, delete_server, edit_server, mac_of, service_key,
    },
};

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 1, 200), 40_000);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
const RS1: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 220);
const RS2: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 210);
const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 230);

/// Ports of the services that [`director`] has.
const WEB: u16 = 80;
const EMPTY: u16 = 81;
const NOBODY_THERE: u16 = 82;
const QUIESCED: u16 = 83;
const DNS: u16 = 53;
const SIGNALLING: u16 = 2905;

fn tcp_service(port: u16) -> ServiceKey {
    service_key(Protocol::Tcp, VIP, port)
}

/// A director with services of all conditions. The VIP is not an address of the host.
fn director() -> Director {
    let mut director = Director::new(1024).expect("a director");
    let dns = service_key(Protocol::Udp, VIP, DNS);
    let signalling = service_key(Protocol::Sctp, VIP, SIGNALLING);
    director
        .change(&[
            add_service(tcp_service(WEB), Scheduler::Rr, &[]),
            add_server(tcp_service(WEB), RS1, 1),
            add_service(tcp_service(EMPTY), Scheduler::Rr, &[]),
            add_service(tcp_service(NOBODY_THERE), Scheduler::Rr, &[]),
            add_server(tcp_service(NOBODY_THERE), UNRESOLVED, 1),
            add_service(tcp_service(QUIESCED), Scheduler::Rr, &[]),
            add_server(tcp_service(QUIESCED), RS1, 0),
            add_service(dns, Scheduler::Rr, &[]),
            add_server(dns, RS1, 1),
            add_service(signalling, Scheduler::Rr, &[]),
            add_server(signalling, RS1, 1),
        ])
        .expect("the services fit");
    director.resolve(RS1);
    director.resolve(RS2);
    director
}

/// What becomes of a frame that is answered with ICMP port unreachable.
fn unreachable(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    answer::port_unreachable(&mut answer).expect("there is an answer");
    answer
}

fn syn(port: u16) -> Frame {
    Frame::tcp(CLIENT, (VIP, port), tcp::SYN)
}

/// A frame with another EtherType and body.
fn other(ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = [DIRECTOR_MAC, [0x02, 0, 0, 0, 2, 1]].concat();
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(body);
    bytes.resize(60, 0);
    bytes
}

/// One frame on a fresh director.
struct Fixture {
    name: &'static str,
    frame: Vec<u8>,
    reason: Reason,
}

fn fixture(name: &'static str, frame: &Frame, reason: Reason) -> Fixture {
    Fixture {
        name,
        frame: frame.bytes(),
        reason,
    }
}

#[rustfmt::skip]
fn fixtures() -> Vec<Fixture> {
    use Reason::{
        Malformed, NewConnection, NoConnection, NoDestination, NotForUs, NotIp, NotUnicast, OtherHost,
        OtherProtocol, Unresolved,
    };
    let udp = Frame::udp(CLIENT, (VIP, DNS));
    let init = Frame::sctp(CLIENT, (VIP, SIGNALLING), 1);
    let mut fixtures = vec![
        fixture("a SYN", &syn(WEB), NewConnection),
        fixture("a SYN with all of IP's options", &Frame { options: vec![1; 40], ..syn(WEB) }, NewConnection),
        fixture("a SYN with a few options", &Frame { options: vec![1; 4], ..syn(WEB) }, NewConnection),
        fixture("a SYN with a VLAN tag", &Frame { vlan: Some(0x2005), ..syn(WEB) }, NewConnection),
        fixture("a SYN with tag and options", &Frame { vlan: Some(5), options: vec![1; 8], ..syn(WEB) }, NewConnection),
        fixture("a SYN with data up to the MTU", &Frame { payload: vec![7; 1460], ..syn(WEB) }, NewConnection),
        fixture("a SYN with an ECN set-up", &Frame { flags: tcp::SYN | 0xc0, ..syn(WEB) }, NewConnection),
        fixture("a datagram", &udp, NewConnection),
        fixture("a datagram without data", &Frame { payload: Vec::new(), ..udp.clone() }, NewConnection),
        fixture("an ACK without a connection", &Frame { flags: tcp::ACK, ..syn(WEB) }, NoConnection),
        fixture("a FIN without a connection", &Frame { flags: tcp::FIN | tcp::ACK, ..syn(WEB) }, NoConnection),
        fixture("an RST without a connection", &Frame { flags: tcp::RST, ..syn(WEB) }, NoConnection),
        fixture("no flag at all", &Frame { flags: 0, ..syn(WEB) }, NoConnection),
        fixture("a service without servers", &syn(EMPTY), NoDestination),
        fixture("a service whose server is quiesced", &syn(QUIESCED), NoDestination),
        fixture("a server whose neighbour is not known", &syn(NOBODY_THERE), Unresolved),
        fixture("another port", &syn(22), NotForUs),
        fixture("another protocol on a service's port", &Frame::udp(CLIENT, (VIP, WEB)), NotForUs),
        fixture("another address", &Frame::tcp(CLIENT, (Ipv4Addr::new(192, 168, 2, 200), WEB), tcp::SYN), NotForUs),
        fixture("an answer to a health check", &Frame::tcp((VIP, WEB), CLIENT, tcp::SYN | tcp::ACK), NotForUs),
        fixture("another host's MAC address", &Frame { macs: [[2, 0, 0, 0, 9, 9]; 2], ..syn(WEB) }, OtherHost),
        fixture("broadcast", &Frame { macs: [[0xff; 6], [2; 6]], ..syn(WEB) }, NotUnicast),
        fixture("multicast", &Frame { macs: [[1, 0, 0x5e, 0, 0, 1], [2; 6]], ..syn(WEB) }, NotUnicast),
        fixture("a first fragment", &Frame { fragment: 0x2000, ..syn(WEB) }, NewConnection),
        fixture("a later fragment of nothing", &Frame { fragment: 185, ..syn(WEB) }, NotForUs),
        fixture("ICMP for the VIP", &Frame { protocol: 1, ..syn(WEB) }, OtherProtocol),
        fixture("an INIT", &init, NewConnection),
        fixture("an INIT for another service", &Frame { destination: (VIP, WEB), ..init.clone() }, NotForUs),
        fixture("SCTP data without a connection", &Frame { chunk: 0, ..init.clone() }, NoConnection),
        fixture("a packet without room for an SCTP header", &Frame { total_length: Some(31), ..init }, Malformed),
        fixture("ESP", &Frame { protocol: 50, ..syn(WEB) }, OtherProtocol),
        fixture("a header that is too short to be one", &Frame { header_words: Some(4), ..syn(WEB) }, Malformed),
        fixture("a header that is longer than the packet", &Frame { total_length: Some(19), ..syn(WEB) }, Malformed),
        fixture("a packet without room for a TCP header", &Frame { total_length: Some(39), ..syn(WEB) }, Malformed),
        fixture("a packet without room for a UDP header", &Frame { total_length: Some(27), ..udp }, Malformed),
        fixture("IPv6's version in an IPv4 packet", &Frame { version: 6, ..syn(WEB) }, Malformed),
        fixture("two VLAN tags", &Frame { vlan: Some(5), ether_type: 0x8100, ..syn(WEB) }, NotIp),
        Fixture { name: "ARP", frame: other(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]), reason: NotIp },
        Fixture { name: "IPv6 that is cut off", frame: other(0x86dd, &[0x60, 0, 0, 0, 0, 20, 6, 64]), reason: Malformed },
        Fixture { name: "LLC", frame: other(38, &[0x42, 0x42, 3]), reason: NotIp },
    ];
    let whole = Frame { vlan: Some(5), options: vec![1; 8], ..syn(WEB) }.bytes();
    // The kernel takes no frame shorter than an Ethernet header.
    fixtures.extend((14..whole.len()).map(|end| Fixture {
        name: "a frame that ends early",
        frame: whole[..end].to_vec(),
        reason: Malformed,
    }));
    fixtures
}

#[test]
fn every_kind_of_frame_has_its_answer() {
    let mut director = director();
    for (
        client,
        Fixture {
            name,
            mut frame,
            reason,
        },
    ) in (1u8..).zip(fixtures())
    {
        // Another client for each, so that no connection is there.
        if reason == Reason::NewConnection {
            let address = frame.windows(4).position(|part| part == CLIENT.0.octets());
            frame[address.expect("the client's address") + 3] = client;
        }
        let seen = director.send(&frame).expect(name);
        assert_eq!(seen.reason, reason, "{name}");
        assert_eq!(seen.action, action(reason, false), "{name}");
        let mut expected = frame.clone();
        if reason == Reason::NewConnection {
            expected[..6].copy_from_slice(&mac_of(RS1));
            expected[6..12].copy_from_slice(&DIRECTOR_MAC);
        }
        if reason == Reason::NoDestination {
            expected = unreachable(&frame);
        }
        assert_eq!(seen.frame, expected, "{name}");
    }
}

#[test]
fn a_connection_goes_on_to_its_server_and_is_counted() {
    let mut director = director();
    let mut bytes = 0;
    for (flags, reason, counts) in [
        (tcp::SYN, Reason::NewConnection, (1, 0)),
        (tcp::SYN, Reason::Connection, (1, 0)),
        (tcp::ACK, Reason::Connection, (1, 0)),
        (tcp::ACK, Reason::Connection, (1, 0)),
        (tcp::FIN | tcp::ACK, Reason::Connection, (0, 1)),
        (tcp::ACK, Reason::Connection, (0, 1)),
    ] {
        let frame = Frame::tcp(CLIENT, (VIP, WEB), flags).bytes();
        bytes += frame.len() - 14;
        let seen = director.send(&frame).expect("a trial");
        assert_eq!(
            (seen.reason, seen.action),
            (reason, action(reason, false)),
            "{flags:#x}"
        );
        assert_eq!(seen.frame[..6], mac_of(RS1));
        assert_eq!(director.counts(&tcp_service(WEB), RS1), counts);
    }
    let key = lvs_xdp_tests::trial::server_key(&tcp_service(WEB), RS1);
    let id = director
        .compiler
        .destination(&tcp_service(WEB), &key)
        .expect("its id");
    let stats = director.dataplane.stats(id);
    assert_eq!(
        (stats.connections, stats.packets, stats.bytes),
        (1, 6, bytes as u64)
    );
}

#[test]
fn a_mark_leads_to_its_service_and_what_it_has_led_there_outlives_it() {
    const MARK: ServiceKey = ServiceKey::Mark { mark: 7, ipv6: false };
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 1);
    let mut director = director();
    let rule = |mark, net: &str, ports: &[&str]| MarkRule {
        mark,
        protocol: Some(Protocol::Tcp),
        addresses: vec![net.parse().expect("a prefix")],
        ports: ports.iter().map(|ports| ports.parse().expect("ports")).collect(),
    };
    let wide = rule(7, "192.168.2.0/24", &["80", "8000-8100"]);
    let none = rule(9, "192.168.2.100/32", &["82"]);
    let all = rule(7, "192.168.0.0/16", &["8200"]);
    let rules = [&wide, &none, &all].map(|rule| Change::AddMark { rule: rule.clone() });
    director.change(&rules).expect("the rules fit");
    director
        .change(&[add_service(MARK, Scheduler::Rr, &[]), add_server(MARK, RS2, 1)])
        .expect("the service fits");
    let seen = |director: &mut Director, port, to: (Ipv4Addr, u16), flags| {
        let frame = Frame::tcp((CLIENT.0, port), to, flags).bytes();
        let seen = director.send(&frame).expect("a trial");
        let server = [RS1, RS2]
            .into_iter()
            .find(|server| seen.frame[..6] == mac_of(*server));
        (
            seen.reason,
            server.filter(|_| seen.reason.outcome() == Outcome::Forward),
        )
    };
    let (new, rs2) = (Reason::NewConnection, Some(RS2));
    for (port, to, expected) in [
        // Before the address's own service, whose server is another one.
        (1, (VIP, WEB), (new, rs2)),
        (2, (VIP, 8000), (new, rs2)),
        (3, (VIP, 8100), (new, rs2)),
        (4, (VIP, 8101), (Reason::NotForUs, None)),
        (5, (VIP, 8200), (new, rs2)),
        (6, (OUTSIDE, 8200), (new, rs2)),
        (7, (OUTSIDE, WEB), (Reason::NotForUs, None)),
        // A mark without a service is none.
        (8, (VIP, NOBODY_THERE), (Reason::Unresolved, None)),
    ] {
        assert_eq!(seen(&mut director, port, to, tcp::SYN), expected, "{to:?}");
    }
    let datagram = director
        .send(&Frame::udp(CLIENT, (VIP, DNS)).bytes())
        .expect("a trial");
    assert_eq!((datagram.reason, &datagram.frame[..6]), (new, &mac_of(RS1)[..]));

    director
        .change(&[wide, none, all].map(|rule| Change::DeleteMark { rule }))
        .expect("the rules are there");
    for (port, to, flags, expected) in [
        (1, (VIP, WEB), tcp::ACK, (Reason::Connection, rs2)),
        (9, (VIP, WEB), tcp::SYN, (new, Some(RS1))),
        (2, (VIP, 8000), tcp::ACK, (Reason::Connection, rs2)),
        (2, (VIP, 8000), tcp::FIN | tcp::ACK, (Reason::Connection, rs2)),
        (9, (VIP, 8000), tcp::SYN, (Reason::NotForUs, None)),
        (6, (OUTSIDE, 8200), tcp::ACK, (Reason::Connection, rs2)),
        (6, (OUTSIDE, 8201), tcp::ACK, (Reason::NotForUs, None)),
    ] {
        assert_eq!(seen(&mut director, port, to, flags), expected, "{to:?}");
    }
    // As long as such a connection is there, and no longer, what nobody takes is looked for in the table.
    let looks = |director: &Director| {
        director.dataplane.tables().control().flags.load() & control_flag::UNMARKED != 0
    };
    director.reap();
    assert!(looks(&director));
    director.stop_clock(100_000).expect("the clock stops");
    director.dataplane.tables().sweep();
    director.reap();
    assert!(!looks(&director));
}

#[test]
fn where_the_vip_is_the_hosts_own_its_stack_answers() {
    let mut director = director();
    director.compiler.set_local([VIP.into()]);
    for flags in [tcp::ACK, tcp::FIN, tcp::RST, 0] {
        let frame = Frame::tcp(CLIENT, (VIP, WEB), flags).bytes();
        let seen = director.send(&frame).expect("a trial");
        assert_eq!(seen.reason, Reason::NoConnectionPassed);
        assert_eq!(seen.action, action(Reason::NoConnectionPassed, false));
        assert_eq!(seen.frame, frame);
    }
}

#[test]
fn live_connections_follow_a_new_mac_address_at_once() {
    let mut director = director();
    director.send(&syn(NOBODY_THERE).bytes()).expect("a trial");
    director.resolve(UNRESOLVED);
    let ack = Frame {
        flags: tcp::ACK,
        ..syn(NOBODY_THERE)
    };
    let seen = director.send(&ack.bytes()).expect("a trial");
    assert_eq!(
        (seen.reason, &seen.frame[..6]),
        (Reason::Connection, &mac_of(UNRESOLVED)[..])
    );
    director.compiler.set_way(UNRESOLVED.into(), None);
    assert_eq!(
        director.send(&ack.bytes()).expect("a trial").reason,
        Reason::Unresolved
    );
}

#[test]
fn a_removed_servers_connections_are_dropped_until_it_is_back() {
    let mut director = director();
    let web = tcp_service(WEB);
    let send = |director: &mut Director, flags| {
        let seen = director.send(&Frame { flags, ..syn(WEB) }.bytes());
        seen.expect("a trial").reason
    };
    assert_eq!(send(&mut director, tcp::SYN), Reason::NewConnection);
    assert_eq!(send(&mut director, tcp::ACK), Reason::Connection);
    director
        .change(&[add_server(web, RS2, 1), delete_server(web, RS1)])
        .expect("a change");
    for flags in [tcp::ACK, tcp::SYN, tcp::RST] {
        assert_eq!(
            send(&mut director, flags),
            Reason::DestinationRemoved,
            "{flags:#x}"
        );
    }
    director.change(&[add_server(web, RS1, 1)]).expect("a change");
    assert_eq!(director.counts(&web, RS1), (1, 0), "its counts come back");
    assert_eq!(send(&mut director, tcp::ACK), Reason::Connection);
    // A quiesced server keeps its connections.
    director.change(&[edit_server(web, RS1, 0)]).expect("a change");
    assert_eq!(send(&mut director, tcp::ACK), Reason::Connection);
    // A connection that is over may be opened anew while its server is gone, and goes to another.
    assert_eq!(send(&mut director, tcp::RST), Reason::Connection);
    director.change(&[delete_server(web, RS1)]).expect("a change");
    assert_eq!(send(&mut director, tcp::ACK), Reason::DestinationRemoved);
    let seen = director.send(
        &Frame {
            flags: tcp::SYN | tcp::ACK,
            ..syn(WEB)
        }
        .bytes(),
    );
    let seen = seen.expect("a trial");
    assert_eq!(
        (seen.reason, &seen.frame[..6]),
        (Reason::NewConnection, &mac_of(RS2)[..])
    );
}

#[test]
fn a_deleted_service_leaves_new_packets_to_the_host_and_drops_old_connections() {
    let mut director = director();
    director.send(&syn(WEB).bytes()).expect("a trial");
    let service = tcp_service(WEB);
    director
        .change(&[Change::DeleteService { service }])
        .expect("a change");
    let seen = director.send(
        &Frame {
            flags: tcp::ACK,
            ..syn(WEB)
        }
        .bytes(),
    );
    assert_eq!(seen.expect("a trial").reason, Reason::DestinationRemoved);
    let stranger = Frame::tcp((CLIENT.0, 1), (VIP, WEB), tcp::SYN);
    assert_eq!(
        director.send(&stranger.bytes()).expect("a trial").reason,
        Reason::NotForUs
    );
}

#[test]
fn a_server_behind_another_interface_is_redirected_to() {
    // In a network namespace of its own, which ends with its thread.
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let made = std::process::Command::new("ip")
            .args(["link", "add", "there", "type", "veth", "peer", "name", "here"])
            .status();
        assert!(made.expect("ip runs").success());
        let there = nix::net::if_::if_nametoindex("there").expect("it was made");
        let mut director = director();
        director.resolve_by(RS1, there);
        let frame = syn(WEB).bytes();
        let seen = director.send(&frame).expect("a trial");
        assert_eq!(seen.reason, Reason::RedirectFailed, "it is not allowed yet");
        assert_eq!(seen.action, action(Reason::RedirectFailed, true));
        director
            .dataplane
            .allow_redirect(there)
            .expect("the interface is there");
        let seen = director.send(&frame).expect("a trial");
        assert_eq!(
            (seen.reason, seen.action),
            (Reason::Connection, action(Reason::Connection, true))
        );
        assert_eq!(seen.frame[..6], mac_of(RS1));
        assert_eq!(seen.frame[12..], frame[12..]);
    })
    .join()
    .expect("the thread's assertions hold");
}

/// Without an agent: the program itself makes room where entries have expired, and settles their counts.
#[test]
fn expired_entries_make_room_and_their_counts_go_down_without_an_agent() {
    // Two buckets: every flow can be in either.
    let mut director = Director::new(16).expect("a director");
    let web = tcp_service(WEB);
    director
        .change(&[add_service(web, Scheduler::Rr, &[]), add_server(web, RS1, 1)])
        .expect("a change");
    director.resolve(RS1);
    for state in STATES {
        director.dataplane.set_timeout(state, 1);
    }
    let connection = |director: &mut Director, port: u16, flags| {
        let seen = director.send(&Frame::tcp((CLIENT.0, port), (VIP, WEB), flags).bytes());
        seen.expect("a trial").reason
    };
    // The entries have to be young when the last is entered: all of this takes some milliseconds.
    for port in 1..=16 {
        assert_eq!(connection(&mut director, port, tcp::SYN), Reason::NewConnection);
        assert_eq!(connection(&mut director, port, tcp::ACK), Reason::Connection);
    }
    assert_eq!(director.counts(&web, RS1), (16, 0));
    assert_eq!(connection(&mut director, 99, tcp::SYN), Reason::TableFull);

    director
        .change(&[add_server(web, RS2, 1), edit_server(web, RS1, 0)])
        .expect("a change");
    director.resolve(RS2);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert_eq!(director.counts(&web, RS1), (16, 0), "nobody has looked yet");
    assert_eq!(
        connection(&mut director, 1, tcp::ACK),
        Reason::NoConnection,
        "it is no entry any more"
    );
    for port in 101..=116 {
        assert_eq!(connection(&mut director, port, tcp::SYN), Reason::NewConnection);
        let entered = u64::from(port) - 100;
        assert_eq!(director.counts(&web, RS1), (16 - entered, 0));
        assert_eq!(director.counts(&web, RS2), (entered, 0));
    }
    // What is half open gives way to the next.
    assert_eq!(connection(&mut director, 200, tcp::SYN), Reason::NewConnection);
    assert_eq!(director.counts(&web, RS2), (16, 0));
}
