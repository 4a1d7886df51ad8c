//! Tunnels in the kernel, frame by frame, by BPF_PROG_TEST_RUN: what leaves is what the host's code makes.

use std::net::Ipv4Addr;

use lvs_xdp::api::types::{Protocol, Scheduler, ServiceKey, Tunnel, TunnelChecksum};
use lvs_xdp_common::{reason::Reason, rewrite::rewrite};
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    trial::{
        Director, TUNNEL_SOURCE, action, add_service, add_tunnel_server, mac_of, server_key, service_key,
    },
};

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 1, 200), 40_000);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 5);
const MTU: u16 = 1500;

const TUNNELS: [Tunnel; 5] = [
    Tunnel::Ipip,
    Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::None,
    },
    Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::On,
    },
    Tunnel::Gre { checksum: false },
    Tunnel::Gre { checksum: true },
];

fn web() -> ServiceKey {
    service_key(Protocol::Tcp, VIP, 80)
}

fn director(tunnel: Tunnel) -> Director {
    let mut director = Director::new(1024).expect("a director");
    director.resolve_tunnel(SERVER, MTU);
    director
        .change(&[
            add_service(web(), Scheduler::Rr, &[]),
            add_tunnel_server(web(), SERVER, tunnel),
        ])
        .expect("the service fits");
    director
}

fn packet(data: usize) -> Frame {
    Frame {
        payload: (0..=u8::MAX).cycle().take(data).collect(),
        ..Frame::tcp(CLIENT, (VIP, 80), tcp::SYN)
    }
}

/// What the host's code makes of the frame with the same tables, and why.
fn on_the_host(director: &Director, frame: &[u8]) -> (Vec<u8>, Result<(), Reason>) {
    let id = director
        .compiler
        .destination(&web(), &server_key(&web(), SERVER))
        .expect("its id");
    let mut made = frame.to_vec();
    let result = rewrite(&mut made, &**director.dataplane.tables(), id);
    (made, result)
}

#[test]
fn what_leaves_is_what_the_hosts_code_makes_of_every_length() {
    for tunnel in TUNNELS {
        let mut director = director(tunnel);
        for data in (0..140).chain([1000, 1399, 1400]) {
            for vlan in [None, Some(5)] {
                let frame = Frame { vlan, ..packet(data) }.bytes();
                let seen = director.send(&frame).expect("a trial");
                let forwarded = matches!(seen.reason, Reason::NewConnection | Reason::Connection);
                assert!(forwarded, "{tunnel}, {data}: {:?}", seen.reason);
                assert_eq!(seen.action, action(seen.reason, false));
                let (expected, result) = on_the_host(&director, &frame);
                assert_eq!((result, &seen.frame), (Ok(()), &expected), "{tunnel}, {data}");
                assert_eq!(seen.frame[..6], mac_of(SERVER));
                let inner = &frame[if vlan.is_some() { 18 } else { 14 }..];
                assert!(seen.frame.ends_with(inner), "{tunnel}, {data}");
            }
        }
    }
}

#[test]
fn an_ipip_packet_goes_from_the_director_to_the_real_server() {
    let seen = director(Tunnel::Ipip).send(&packet(10).bytes()).expect("a trial");
    let outer = &seen.frame[14..34];
    // The type of service is the inner packet's.
    assert_eq!(outer[..4], [0x45, 0x10, 0, 70]);
    assert_eq!(outer[9], 4);
    assert_eq!(outer[12..], [TUNNEL_SOURCE.octets(), SERVER.octets()].concat());
}

#[test]
fn what_does_not_fit_is_answered_and_errors_and_fragments_are_dropped() {
    for (tunnel, added) in TUNNELS.into_iter().zip([20, 32, 32, 24, 28]) {
        let mut director = director(tunnel);
        let fits = usize::from(MTU) - added - 40;
        let seen = director.send(&packet(fits).bytes()).expect("a trial");
        assert_eq!(seen.reason, Reason::NewConnection, "{tunnel}");
        let frame = packet(fits + 1).bytes();
        let seen = director.send(&frame).expect("a trial");
        assert_eq!(
            (seen.reason, seen.action),
            (Reason::TooBig, action(Reason::TooBig, false)),
            "{tunnel}"
        );
        let (expected, result) = on_the_host(&director, &frame);
        assert_eq!(
            (result, &seen.frame),
            (Err(Reason::TooBig), &expected),
            "{tunnel}"
        );

        // A first fragment, and the same packet's later one, of which nobody is told.
        let datagram = |fragment| Frame {
            fragment,
            ..packet(fits + 8)
        };
        let first = director.send(&datagram(0x2000).bytes()).expect("a trial");
        assert_eq!(first.reason, Reason::TooBig, "{tunnel}");
        let later = director.send(&datagram(185).bytes()).expect("a trial");
        assert_eq!(
            (later.reason, later.action),
            (Reason::TooBigQuiet, action(Reason::TooBigQuiet, false)),
            "{tunnel}"
        );
    }
}
