//! News in, conclusions out.

use std::time::Duration;

use super::*;

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 210));
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 200));
const OWN: Mac = [2, 0, 0, 0, 0, 1];
const OLD: Mac = [2, 0, 0, 0, 0, 2];
const NEW: Mac = [2, 0, 0, 0, 0, 3];
const ETH0: u32 = 7;

fn link(mac: Option<Mac>) -> News {
    News::Link {
        if_index: ETH0,
        link: Some(Link {
            name: "eth0".into(),
            mac,
            running: true,
            ..Link::default()
        }),
    }
}

fn entry(state: EntryState, mac: Option<Mac>) -> Option<Entry> {
    Some(Entry {
        state,
        mac,
        external: false,
        managed_by_other: false,
    })
}

fn ready(mac: Mac) -> Resolution {
    Resolution::Ready {
        mac,
        source_mac: OWN,
        if_index: ETH0,
        interface: "eth0".into(),
    }
}

/// A table that watches the server, on-link behind eth0; nothing left to be told.
fn watching(now: Instant) -> Table {
    let mut table = Table::default();
    table.apply(link(Some(OWN)), now);
    assert!(table.watch(SERVER, now));
    table.set_route(
        SERVER,
        Route::OnLink {
            if_index: ETH0,
            source: Some(SOURCE),
        },
        now,
    );
    table.take_events();
    table.take_reroute();
    table
}

/// The resolutions told since the last time.
fn told(table: &mut Table) -> Vec<Resolution> {
    let resolution = |event| match event {
        Event::Resolution { address, resolution } if address == SERVER => Some(resolution),
        _ => None,
    };
    table.take_events().into_iter().filter_map(resolution).collect()
}

#[test]
fn each_state_of_the_entry_has_its_resolution() {
    let now = Instant::now();
    for (state, mac, expected) in [
        (EntryState::Valid, Some(OLD), Some(ready(OLD))),
        (EntryState::Fixed, Some(OLD), Some(ready(OLD))),
        (EntryState::Fixed, None, None),
        (EntryState::Valid, None, None),
        (EntryState::Pending, None, None),
        (EntryState::Failed, None, Some(Resolution::Unreachable)),
        // The kernel leaves the last MAC address in a failed entry; it is not to be used.
        (EntryState::Failed, Some(OLD), Some(Resolution::Unreachable)),
    ] {
        let mut table = watching(now);
        table.set_entry(SERVER, ETH0, entry(state, mac), now);
        assert_eq!(told(&mut table), Vec::from_iter(expected), "{state:?} {mac:?}");
    }
}

#[test]
fn unreachable_stays_until_somebody_answers() {
    let now = Instant::now();
    let mut table = watching(now);
    table.set_entry(SERVER, ETH0, entry(EntryState::Failed, None), now);
    assert_eq!(told(&mut table), [Resolution::Unreachable]);
    table.set_entry(SERVER, ETH0, entry(EntryState::Pending, None), now);
    table.set_entry(SERVER, ETH0, None, now);
    assert_eq!(told(&mut table), []);
    table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(NEW)), now);
    assert_eq!(told(&mut table), [ready(NEW)]);
}

#[test]
fn the_same_again_is_no_event() {
    let now = Instant::now();
    let mut table = watching(now);
    for _ in 0..3 {
        table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(OLD)), now);
        table.apply(link(Some(OWN)), now);
        table.set_route(
            SERVER,
            Route::OnLink {
                if_index: ETH0,
                source: Some(SOURCE),
            },
            now,
        );
    }
    assert_eq!(told(&mut table), [ready(OLD)]);
    assert!(!table.watch(SERVER, now), "it is watched already");
}

#[test]
fn a_new_address_is_announced_once() {
    let now = Instant::now();
    let mut table = Table::default();
    table.watch(SERVER, now);
    table.announce(SERVER);
    assert_eq!(told(&mut table), [Resolution::Resolving]);
    let mut table = Table::default();
    table.watch(SERVER, now);
    table.set_route(SERVER, Route::OffLink(OffLink::NoRoute), now);
    table.announce(SERVER);
    assert_eq!(told(&mut table), [Resolution::NotOnLink(OffLink::NoRoute)]);
}

#[test]
fn another_route_forgets_the_old_segment() {
    let now = Instant::now();
    let mut table = watching(now);
    table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(OLD)), now);
    let gateway = OffLink::Gateway(Some(SOURCE));
    table.set_route(SERVER, Route::OffLink(gateway), now);
    // An event for the old interface that was under way still.
    table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(OLD)), now);
    assert_eq!(told(&mut table), [ready(OLD), Resolution::NotOnLink(gateway)]);
    assert_eq!(table.due(), None, "nothing is asked off-link");
    table.set_route(
        SERVER,
        Route::OnLink {
            if_index: ETH0,
            source: None,
        },
        now,
    );
    assert_eq!(told(&mut table), [Resolution::Resolving]);
}

#[test]
fn an_interface_without_mac_addresses_is_not_ethernet() {
    let now = Instant::now();
    let mut table = watching(now);
    table.apply(link(None), now);
    table.set_route(
        SERVER,
        Route::OnLink {
            if_index: ETH0,
            source: None,
        },
        now,
    );
    assert_eq!(told(&mut table), [Resolution::NotOnLink(OffLink::NotEthernet)]);
}

#[test]
fn the_own_mac_address_and_name_are_followed() {
    let now = Instant::now();
    let mut table = watching(now);
    table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(OLD)), now);
    told(&mut table);
    table.apply(link(Some(NEW)), now);
    assert_eq!(
        told(&mut table),
        [Resolution::Ready {
            mac: OLD,
            source_mac: NEW,
            if_index: ETH0,
            interface: "eth0".into()
        }]
    );
}

#[test]
fn only_routes_that_contain_an_address_are_looked_up_again() {
    let now = Instant::now();
    let mut table = watching(now);
    for (network, prefix_len, concerned) in [
        ("0.0.0.0", 0, true),
        ("192.168.2.0", 24, true),
        ("192.168.2.210", 32, true),
        ("192.168.3.0", 24, false),
        ("192.168.2.211", 32, false),
        ("::", 0, false),
    ] {
        table.apply(
            News::Route {
                network: network.parse().expect("an address"),
                prefix_len,
            },
            now,
        );
        assert_eq!(table.must_reroute(), concerned, "{network}/{prefix_len}");
        table.take_reroute();
    }
    for news in [
        News::Rule,
        link(None),
        News::Address {
            address: SOURCE,
            if_index: ETH0,
            present: true,
        },
    ] {
        table.apply(news, now);
        assert_eq!(table.take_reroute(), BTreeSet::from([SERVER]));
    }
}

#[test]
fn networks_contain_addresses_in_both_families() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert!(contains(address("2001:db8::"), 32, address("2001:db8:1::1")));
    assert!(!contains(address("2001:db8::"), 32, address("2001:db9::1")));
    assert!(contains(address("::"), 0, address("ffff::")));
    assert!(!contains(address("0.0.0.0"), 0, address("::")));
    assert!(!contains(address("2001:db8::1"), 128, address("2001:db8::2")));
}

#[test]
fn an_address_on_two_interfaces_stays_local_until_both_lost_it() {
    let now = Instant::now();
    let mut table = Table::default();
    for (if_index, present, local) in [
        (1, true, true),
        (2, true, true),
        (1, false, true),
        (2, false, false),
    ] {
        table.apply(
            News::Address {
                address: SERVER,
                if_index,
                present,
            },
            now,
        );
        assert_eq!(table.local_addresses().contains(&SERVER), local);
    }
}

#[test]
fn a_deleted_entry_is_made_again_and_an_answer_needs_the_right_interface() {
    let now = Instant::now();
    let mut table = watching(now);
    table.set_entry(SERVER, ETH0, entry(EntryState::Valid, Some(OLD)), now);
    let first = now + Duration::from_secs(1);
    assert_eq!(table.steps(first), [(SERVER, Step::Unicast)]);
    let asked = table.due();
    table.answered(SERVER, Some(ETH0 + 1), Some(OLD), first);
    assert_eq!(table.due(), asked, "an answer from another segment");
    table.answered(SERVER, Some(ETH0), Some(OLD), first);
    assert!(table.due() > asked);
    assert_eq!(
        table.probe(SERVER),
        Some(Probe {
            address: SERVER,
            if_index: ETH0,
            mac: OLD,
            source_mac: OWN,
            source: Some(SOURCE)
        })
    );
    table.set_entry(SERVER, ETH0, None, first);
    assert_eq!(table.take_lost(), BTreeSet::from([SERVER]));
    assert_eq!(table.probe(SERVER), None);
}

#[test]
fn an_ipv6_neighbour_is_asked_from_a_link_local_address() {
    let now = Instant::now();
    let [server, vip, own, other]: [IpAddr; 4] =
        ["2001:db8::1", "2001:db8::2", "fe80::1", "fe80::2"].map(|text| text.parse().unwrap());
    let mut table = watching(now);
    table.watch(server, now);
    let route = Route::OnLink {
        if_index: ETH0,
        source: Some(vip),
    };
    table.set_route(server, route, now);
    table.set_entry(server, ETH0, entry(EntryState::Valid, Some(OLD)), now);
    let source = |table: &Table| table.probe(server).map(|probe| probe.source);
    assert_eq!(source(&table), Some(None), "the kernel's choice");
    for (address, if_index) in [(vip, ETH0), (other, ETH0 + 1), (own, ETH0)] {
        let present = true;
        table.apply(
            News::Address {
                address,
                if_index,
                present,
            },
            now,
        );
    }
    assert_eq!(source(&table), Some(Some(own)));

    // One who was asked by its MAC address need not say it again.
    let later = now + Duration::from_secs(1);
    table.steps(later);
    let asked = table.due();
    table.answered(server, None, None, later);
    table.answered(SERVER, None, Some(OLD), later);
    assert!(table.due() > asked);
}

#[test]
fn a_fixed_entry_is_not_probed() {
    let now = Instant::now();
    let mut table = watching(now);
    table.set_entry(SERVER, ETH0, entry(EntryState::Fixed, Some(OLD)), now);
    assert_eq!(table.due(), None);
}

#[test]
fn what_is_read_anew_replaces_what_was_known() {
    let now = Instant::now();
    let mut table = watching(now);
    table.apply(
        News::Link {
            if_index: 9,
            link: Some(Link {
                name: "gone".into(),
                mac: None,
                running: true,
                ..Link::default()
            }),
        },
        now,
    );
    table.apply(
        News::Address {
            address: SOURCE,
            if_index: ETH0,
            present: true,
        },
        now,
    );
    table.take_events();
    let new = IpAddr::from([10, 0, 0, 1]);
    table.replace(
        vec![
            link(Some(OWN)),
            News::Address {
                address: new,
                if_index: ETH0,
                present: true,
            },
        ],
        now,
    );
    assert_eq!(table.local_addresses(), BTreeSet::from([new]));
    assert!(table.take_events().contains(&Event::Link {
        if_index: 9,
        link: None
    }));
    assert_eq!(table.take_reroute(), BTreeSet::from([SERVER]));
}
