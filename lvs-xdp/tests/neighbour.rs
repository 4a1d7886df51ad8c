//! Neighbours on real (veth) interfaces: the director's namespace and a real server's.

mod netns;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lvs_xdp::neighbour::{Event, Mac, Neighbours, OffLink, Resolution};
use netns::Netns;
use tokio::sync::mpsc::UnboundedReceiver;

const DIRECTOR: &str = "192.168.2.200";
const SERVER: &str = "192.168.2.210";
const SERVER6: &str = "2001:db8:2::210";
const SERVER_MAC: Mac = [2, 0, 0, 0, 2, 0x10];
const OTHER_MAC: Mac = [2, 0, 0, 0, 2, 0x99];
/// `server add` waits so long.
const PATIENCE: Duration = Duration::from_millis(200);

/// A director and a real server on one segment.
struct Segment {
    director: Netns,
    server: Netns,
}

impl Segment {
    fn new() -> Self {
        let segment = Self {
            director: Netns::new(),
            server: Netns::new(),
        };
        let Self { director, server } = &segment;
        director.join("eth0", server, "eth0");
        director.ip("address add 192.168.2.200/24 dev eth0");
        director.ip("address add 2001:db8:2::200/64 dev eth0 nodad");
        server.ip("address add 192.168.2.210/24 dev eth0");
        server.ip("address add 2001:db8:2::210/64 dev eth0 nodad");
        // Announces nothing of itself.
        assert_eq!(server.sysctl("ipv4/conf/eth0/arp_notify"), "0");
        assert_eq!(server.sysctl("ipv6/conf/eth0/ndisc_notify"), "0");
        segment.set_server_mac(SERVER_MAC);
        segment
    }

    fn set_server_mac(&self, mac: Mac) {
        let mac: Vec<_> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
        self.server
            .ip(&format!("link set eth0 address {}", mac.join(":")));
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn mac_of(resolution: &Resolution) -> Option<Mac> {
    match resolution {
        Resolution::Ready { mac, .. } => Some(*mac),
        Resolution::Resolving | Resolution::Local | Resolution::Unreachable | Resolution::NotOnLink(_) => {
            None
        }
    }
}

/// Waits for a resolution that is as wanted, and says how long it took.
async fn wait_for(
    events: &mut UnboundedReceiver<Event>,
    of: IpAddr,
    within: Duration,
    wanted: impl Fn(&Resolution) -> bool,
) -> Duration {
    let start = Instant::now();
    let mut seen = Vec::new();
    let wait = async {
        loop {
            match events.recv().await.expect("the task runs") {
                Event::Resolution { address, resolution } if address == of => {
                    if wanted(&resolution) {
                        return;
                    }
                    seen.push(resolution);
                }
                _ => {}
            }
        }
    };
    let arrived = tokio::time::timeout(within, wait).await.is_ok();
    assert!(arrived, "{of}: not within {within:?}; seen: {seen:?}");
    start.elapsed()
}

#[test]
fn resolves_within_the_patience_of_server_add() {
    let segment = Segment::new();
    // A new interface is not ready for IPv6 at once.
    while [&segment.director, &segment.server]
        .iter()
        .any(|host| !host.ip("-6 address show tentative").is_empty())
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        for server in [SERVER, SERVER6].map(ip) {
            assert_eq!(neighbours.resolution(server), None);
            let start = Instant::now();
            let resolution = neighbours.resolve(server, PATIENCE).await;
            println!("{server} resolved in {:?}", start.elapsed());
            let Resolution::Ready {
                mac,
                source_mac,
                if_index,
                interface,
            } = &resolution
            else {
                panic!("{server}: {resolution:?}")
            };
            assert_eq!((*mac, interface.as_str()), (SERVER_MAC, "eth0"));
            let link = segment.director.ip("-o link show eth0");
            let own: Vec<_> = source_mac.iter().map(|octet| format!("{octet:02x}")).collect();
            assert!(link.contains(&own.join(":")), "{source_mac:x?} in {link}");
            assert!(link.starts_with(&format!("{if_index}:")), "{if_index} in {link}");
            assert_eq!(neighbours.resolution(server).as_ref(), Some(&resolution));
            let entry = segment.director.ip(&format!("neighbour show {server}"));
            assert!(entry.contains("managed"), "{entry}");
            wait_for(&mut events, server, PATIENCE, |told| *told == resolution).await;
        }
    });
}

#[test]
fn what_is_not_on_the_segment_is_named() {
    let segment = Segment::new();
    segment.director.ip("route add 10.0.0.0/8 via 192.168.2.1");
    segment.director.ip("route add blackhole 10.9.0.0/16");
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        for (address, reason) in [
            ("10.1.2.3", OffLink::Gateway(Some(ip("192.168.2.1")))),
            ("10.9.2.3", OffLink::NoRoute),
            ("172.16.0.1", OffLink::NoRoute),
            ("2001:db8:3::1", OffLink::NoRoute),
            ("192.168.2.255", OffLink::NotOneHost),
        ] {
            let resolution = neighbours.resolve(ip(address), PATIENCE).await;
            assert_eq!(resolution, Resolution::NotOnLink(reason), "{address}");
        }
        for own in [DIRECTOR, "127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(
                neighbours.resolve(ip(own), PATIENCE).await,
                Resolution::Local,
                "{own}"
            );
        }
        // A route that makes it on-link, and is taken away again.
        let server = ip("172.16.0.1");
        segment.server.ip("address add 172.16.0.1/32 dev eth0");
        segment.director.ip("route add 172.16.0.0/24 dev eth0");
        wait_for(&mut events, server, Duration::from_secs(1), |r| {
            mac_of(r) == Some(SERVER_MAC)
        })
        .await;
        segment.director.ip("route del 172.16.0.0/24 dev eth0");
        let no_route = Resolution::NotOnLink(OffLink::NoRoute);
        wait_for(&mut events, server, Duration::from_secs(1), |r| *r == no_route).await;
    });
}

#[test]
fn a_server_that_goes_and_comes_back_is_followed() {
    let segment = Segment::new();
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        for (server, prefix) in [(SERVER, "24"), (SERVER6, "64")] {
            let address = ip(server);
            neighbours.resolve(address, PATIENCE).await;
            segment
                .server
                .ip(&format!("address del {server}/{prefix} dev eth0"));
            let gone = wait_for(&mut events, address, Duration::from_secs(5), |r| {
                *r == Resolution::Unreachable
            });
            println!("{server} found gone after {:?}", gone.await);
            // Long enough for the kernel to have failed and begun again on its own.
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(neighbours.resolution(address), Some(Resolution::Unreachable));
            segment
                .server
                .ip(&format!("address add {server}/{prefix} dev eth0 nodad"));
            let back = wait_for(&mut events, address, Duration::from_secs(5), |r| {
                mac_of(r) == Some(SERVER_MAC)
            });
            println!("{server} found back after {:?}", back.await);
        }
    });
}

#[test]
fn a_server_that_was_never_there_is_unreachable() {
    let segment = Segment::new();
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        let nobody = ip("192.168.2.99");
        let start = Instant::now();
        assert_eq!(neighbours.resolve(nobody, PATIENCE).await, Resolution::Resolving);
        assert!(start.elapsed() < PATIENCE * 2, "waited {:?}", start.elapsed());
        wait_for(&mut events, nobody, Duration::from_secs(5), |r| {
            *r == Resolution::Unreachable
        })
        .await;
    });
}

/// The reason for the director's own probes: the kernel needs half a minute for this.
#[test]
fn a_changed_mac_address_is_noticed_within_about_a_second() {
    let segment = Segment::new();
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        for server in [SERVER, SERVER6].map(ip) {
            neighbours.resolve(server, PATIENCE).await;
            let mut slowest = Duration::ZERO;
            let mut mac = SERVER_MAC;
            for round in 0..6 {
                // Out of step with the probes, and past the kernel's `locktime`.
                tokio::time::sleep(Duration::from_millis(1100 + 130 * round)).await;
                mac = if mac == SERVER_MAC { OTHER_MAC } else { SERVER_MAC };
                segment.set_server_mac(mac);
                let limit = Duration::from_secs(3);
                let time = wait_for(&mut events, server, limit, |r| mac_of(r) == Some(mac)).await;
                println!("{server}: a changed MAC address was noticed after {time:?}");
                slowest = slowest.max(time);
            }
            // A second by design; the rest is for a test machine that is busy.
            assert!(slowest < Duration::from_millis(1500), "{server}: {slowest:?}");
        }
    });
}

#[test]
fn an_announced_mac_address_is_noticed_at_once() {
    let segment = Segment::new();
    segment.server.set_sysctl("ipv4/conf/eth0/arp_notify", "1");
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        segment.set_server_mac(OTHER_MAC);
        let limit = Duration::from_secs(1);
        let time = wait_for(&mut events, ip(SERVER), limit, |r| mac_of(r) == Some(OTHER_MAC)).await;
        println!("an announced MAC address was noticed after {time:?}");
    });
}

#[test]
fn probes_disturb_nobody_while_they_are_answered() {
    let segment = Segment::new();
    // Its router solicitations and group reports are not to be counted.
    segment.director.set_sysctl("ipv6/conf/eth0/disable_ipv6", "1");
    segment.server.set_sysctl("ipv6/conf/eth0/disable_ipv6", "1");
    segment.director.block_on(async || {
        let (neighbours, _events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        let sent_and_received = || {
            let statistics = segment.director.ip("-s -j link show eth0");
            let statistics: serde_json::Value = serde_json::from_str(&statistics).expect("JSON");
            ["tx", "rx"].map(|way| {
                statistics[0]["stats64"][way]["packets"]
                    .as_u64()
                    .expect("a count")
            })
        };
        let before = sent_and_received();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = sent_and_received();
        // Four probes and four answers. An unanswered probe would show as a broadcast after it.
        let [sent, received] = [after[0] - before[0], after[1] - before[1]];
        assert!(
            (3..=5).contains(&sent) && received.abs_diff(sent) <= 1,
            "sent {sent}, received {received}"
        );
        assert_eq!(
            mac_of(&neighbours.resolution(ip(SERVER)).expect("watched")),
            Some(SERVER_MAC)
        );
    });
    let reachable = segment.director.sysctl("ipv4/neigh/eth0/base_reachable_time_ms");
    assert_eq!(reachable, "30000", "the sysctls of the host are left alone");
}

/// The VIP is nearer to the real server's address than the director's own, so that the kernel would send from it;
/// and what answers the VIP never leaves the real server, which has it too.
#[test]
fn the_vip_is_never_what_a_real_server_is_asked_from() {
    const VIP: &str = "2001:db8:2::211";
    let segment = Segment::new();
    for host in [&segment.director, &segment.server] {
        host.set_sysctl("ipv6/conf/eth0/router_solicitations", "0");
    }
    let vip_on = |interface| format!("address add {VIP}/128 dev {interface} nodad");
    segment.director.ip(&vip_on("eth0"));
    segment.server.ip(&vip_on("lo"));
    let route = segment.director.ip(&format!("route get {SERVER6}"));
    assert!(
        route.contains(&format!("src {VIP}")),
        "the test tests nothing: {route}"
    );

    // Of the packets that the real server takes in and sends: for groups, solicitations, advertisements.
    let counted = || {
        segment.server.enter(|| {
            let counters =
                std::fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0").expect("it is there");
            [
                "Ip6InMcastPkts",
                "Icmp6InNeighborSolicits",
                "Icmp6OutNeighborAdvertisements",
            ]
            .map(|name| {
                let mut lines = counters
                    .lines()
                    .filter_map(|line| line.split_once(char::is_whitespace));
                let (_, count) = lines.find(|(other, _)| *other == name).expect("it is counted");
                count.trim().parse::<u64>().expect("a number")
            })
        })
    };
    segment.director.block_on(async || {
        let (neighbours, _events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER6), PATIENCE).await;
        // Both hosts have introduced themselves by then.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = counted();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = counted();
        let [groups, asked, answered] = std::array::from_fn(|at| after[at] - before[at]);
        assert!(
            groups == 0 && (3..=5).contains(&asked) && answered == asked,
            "for groups {groups}, asked {asked}, answered {answered}"
        );
        let resolution = neighbours.resolution(ip(SERVER6)).expect("watched");
        assert_eq!(mac_of(&resolution), Some(SERVER_MAC));
    });
}

#[test]
fn local_addresses_and_interfaces_are_followed() {
    let segment = Segment::new();
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        let (director, vip) = (ip(DIRECTOR), ip("192.168.2.100"));
        assert!(neighbours.is_local(director) && neighbours.is_local(ip("127.0.0.1")));
        assert!(!neighbours.is_local(vip));
        segment.director.ip("address add 192.168.2.100/32 dev eth0");
        let mut told: Option<BTreeSet<IpAddr>> = None;
        while !told.as_ref().is_some_and(|addresses| addresses.contains(&vip)) {
            if let Event::LocalAddresses(addresses) = events.recv().await.expect("the task runs") {
                told = Some(addresses);
            }
        }
        assert!(neighbours.is_local(vip));
        segment
            .director
            .ip("link add extra type veth peer name extra-peer");
        let index = loop {
            if let Event::Link {
                if_index,
                link: Some(link),
            } = events.recv().await.expect("the task runs")
                && link.name == "extra"
            {
                assert!(link.mac.is_some() && !link.running, "{link:?}");
                break if_index;
            }
        };
        segment.director.ip("link del extra");
        let vanished = Event::Link {
            if_index: index,
            link: None,
        };
        while events.recv().await.expect("the task runs") != vanished {}
    });
}

#[test]
fn an_interface_that_goes_down_takes_its_servers_along_and_brings_them_back() {
    let segment = Segment::new();
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        segment.director.ip("link set eth0 down");
        let no_route = Resolution::NotOnLink(OffLink::NoRoute);
        wait_for(&mut events, ip(SERVER), Duration::from_secs(1), |r| {
            *r == no_route
        })
        .await;
        segment.director.ip("link set eth0 up");
        wait_for(&mut events, ip(SERVER), Duration::from_secs(3), |r| {
            mac_of(r) == Some(SERVER_MAC)
        })
        .await;
        // The other end of the cable is pulled out: the route stays.
        segment.server.ip("link set eth0 down");
        wait_for(&mut events, ip(SERVER), Duration::from_secs(5), |r| {
            *r == Resolution::Unreachable
        })
        .await;
        segment.server.ip("link set eth0 up");
        wait_for(&mut events, ip(SERVER), Duration::from_secs(5), |r| {
            mac_of(r) == Some(SERVER_MAC)
        })
        .await;
    });
}

#[test]
fn entries_of_others_stay_as_they_are() {
    let segment = Segment::new();
    let fixed = "neighbour add 192.168.2.210 lladdr 02:00:00:00:00:77 nud permanent dev eth0";
    segment.director.ip(fixed);
    segment
        .director
        .ip("neighbour add 192.168.2.211 dev eth0 managed extern_learn");
    let before = segment.director.ip("neighbour show 192.168.2.210");
    segment.director.block_on(async || {
        let (neighbours, _events) = Neighbours::start().await.expect("it starts");
        let resolution = neighbours.resolve(ip(SERVER), PATIENCE).await;
        assert_eq!(
            mac_of(&resolution),
            Some([2, 0, 0, 0, 0, 0x77]),
            "the administrator's word counts"
        );
        neighbours.resolve(ip("192.168.2.211"), PATIENCE).await;
        // Long enough for it to be given up, if it were asked for.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(neighbours.resolution(ip(SERVER)), Some(resolution));
        neighbours.forget(ip(SERVER)).await;
        neighbours.forget(ip("192.168.2.211")).await;
        assert_eq!(neighbours.resolution(ip(SERVER)), None);
    });
    assert_eq!(segment.director.ip("neighbour show 192.168.2.210"), before);
    let managed = segment.director.ip("neighbour show 192.168.2.211");
    assert!(
        managed.contains("managed") && managed.contains("extern_learn"),
        "{managed}"
    );
}

#[test]
fn what_was_set_is_taken_back() {
    let segment = Segment::new();
    let entry = || segment.director.ip("neighbour show 192.168.2.210");
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        assert!(entry().contains("managed"), "{}", entry());
        neighbours.forget(ip(SERVER)).await;
        assert!(!entry().contains("managed"), "{}", entry());
        while let Ok(event) = events.try_recv() {
            drop(event);
        }
        segment.set_server_mac(OTHER_MAC);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(events.try_recv().is_err(), "it is forgotten");
    });
    // An agent that was killed leaves a managed entry behind; the next one knows it for its own.
    segment
        .director
        .ip("neighbour replace 192.168.2.210 dev eth0 managed protocol 76");
    segment.director.block_on(async || {
        let (neighbours, _events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        assert!(entry().contains("managed"), "{}", entry());
    });
    assert!(!entry().contains("managed"), "dropped: {}", entry());
}

/// Thousands of events while the task cannot run: the kernel throws some away, and says so.
#[test]
fn an_overrun_of_events_loses_nothing() {
    let segment = Segment::new();
    let lost = || -> u64 {
        segment.director.enter(|| {
            let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("it is there");
            let drops = |line: &str| line.split_whitespace().nth(8)?.parse::<u64>().ok();
            sockets.lines().filter_map(drops).sum()
        })
    };
    segment.director.block_on(async || {
        let (neighbours, mut events) = Neighbours::start().await.expect("it starts");
        neighbours.resolve(ip(SERVER), PATIENCE).await;
        let vip = ip("192.168.2.100");
        // Nothing is awaited from here on, so the task does not run.
        let swarm: String = (0..6000).map(|n| format!("route add 10.{}.{}.0/24 dev eth0\n", n / 250, n % 250)).collect();
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), swarm).expect("it can be written");
        segment.director.ip(&format!("-batch {}", file.path().display()));
        segment.director.ip("address add 192.168.2.100/32 dev eth0");
        segment.director.ip("link set eth0 name renamed");
        segment.director.ip("neighbour replace 192.168.2.210 lladdr 02:00:00:00:00:77 nud permanent dev renamed");
        assert!(lost() > 0, "the kernel threw no event away: the test tests nothing");
        let expected = |r: &Resolution| {
            matches!(r, Resolution::Ready { mac: [2, 0, 0, 0, 0, 0x77], interface, .. } if interface == "renamed")
        };
        wait_for(&mut events, ip(SERVER), Duration::from_secs(5), expected).await;
        assert!(neighbours.is_local(vip));
    });
}
