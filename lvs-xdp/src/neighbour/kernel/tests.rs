//! Messages in, their meaning out.

use super::*;

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 210));
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 1));
const MAC: Mac = [2, 0, 0, 0, 0, 2];

fn neighbour_message(state: NeighbourState, attributes: Vec<NeighbourAttribute>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 7;
    message.header.state = state;
    message.attributes = attributes;
    message
        .attributes
        .insert(0, NeighbourAttribute::Destination(SERVER.into()));
    message
}

fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.kind = kind;
    message.attributes = attributes;
    message
}

#[test]
fn every_state_of_an_entry_has_its_meaning() {
    for (state, expected) in [
        (NeighbourState::None, EntryState::Pending),
        (NeighbourState::Incomplete, EntryState::Pending),
        (NeighbourState::Reachable, EntryState::Valid),
        (NeighbourState::Stale, EntryState::Valid),
        (NeighbourState::Delay, EntryState::Valid),
        (NeighbourState::Probe, EntryState::Valid),
        (NeighbourState::Failed, EntryState::Failed),
        (NeighbourState::Noarp, EntryState::Fixed),
        (NeighbourState::Permanent, EntryState::Fixed),
    ] {
        let message = neighbour_message(state, vec![NeighbourAttribute::LinkLayerAddress(MAC.to_vec())]);
        let entry = Entry {
            state: expected,
            mac: Some(MAC),
            external: false,
            managed_by_other: false,
        };
        assert_eq!(
            news(&RouteNetlinkMessage::NewNeighbour(message.clone())),
            Some(News::Neighbour {
                address: SERVER,
                if_index: 7,
                entry: Some(entry)
            })
        );
        assert_eq!(
            news(&RouteNetlinkMessage::DelNeighbour(message)),
            Some(News::Neighbour {
                address: SERVER,
                if_index: 7,
                entry: None
            })
        );
    }
}

#[test]
fn a_managed_entry_is_ours_by_its_protocol() {
    let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
    let ours = NeighbourAttribute::Protocol(PROTOCOL);
    for (attributes, by_other) in [
        (vec![], false),
        (vec![managed.clone()], true),
        (vec![managed, ours.clone()], false),
        (vec![ours], false),
    ] {
        let message = neighbour_message(NeighbourState::Reachable, attributes);
        assert_eq!(entry(&message).managed_by_other, by_other);
    }
}

#[test]
fn proxy_entries_and_the_tables_of_bridges_are_no_news() {
    let mut message = neighbour_message(NeighbourState::Reachable, vec![]);
    message.header.flags = NeighbourFlags::Proxy;
    assert_eq!(news(&RouteNetlinkMessage::NewNeighbour(message)), None);
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
    assert_eq!(news(&RouteNetlinkMessage::NewNeighbour(message)), None);
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    assert_eq!(news(&RouteNetlinkMessage::DelLink(message)), None);
}

#[test]
fn a_route_is_on_link_without_a_gateway_only() {
    let oif = RouteAttribute::Oif(7);
    let source = RouteAttribute::PrefSource(GATEWAY.into());
    let gateway = RouteAttribute::Gateway(GATEWAY.into());
    for (kind, attributes, expected) in [
        (
            RouteType::Unicast,
            vec![oif.clone(), source],
            Route::OnLink {
                if_index: 7,
                source: Some(GATEWAY),
            },
        ),
        (
            RouteType::Unicast,
            vec![oif.clone()],
            Route::OnLink {
                if_index: 7,
                source: None,
            },
        ),
        (
            RouteType::Unicast,
            vec![oif.clone(), gateway],
            Route::OffLink(OffLink::Gateway(Some(GATEWAY))),
        ),
        (
            RouteType::Unicast,
            vec![
                RouteAttribute::Via(RouteVia::Inet6(std::net::Ipv6Addr::LOCALHOST)),
                oif.clone(),
            ],
            Route::OffLink(OffLink::Gateway(Some(std::net::Ipv6Addr::LOCALHOST.into()))),
        ),
        (RouteType::Unicast, vec![], Route::OffLink(OffLink::NoRoute)),
        (RouteType::Local, vec![oif.clone()], Route::Local),
        (
            RouteType::Broadcast,
            vec![oif.clone()],
            Route::OffLink(OffLink::NotOneHost),
        ),
        (
            RouteType::Unreachable,
            vec![oif],
            Route::OffLink(OffLink::NoRoute),
        ),
    ] {
        assert_eq!(
            route(&route_message(kind, attributes.clone())),
            expected,
            "{kind:?} {attributes:?}"
        );
    }
}

#[test]
fn a_changed_route_names_its_network() {
    let mut message = route_message(
        RouteType::Unicast,
        vec![RouteAttribute::Destination(SERVER.into())],
    );
    message.header.destination_prefix_length = 32;
    let expected = News::Route {
        network: SERVER,
        prefix_len: 32,
    };
    assert_eq!(
        news(&RouteNetlinkMessage::DelRoute(message.clone())),
        Some(expected)
    );
    message.header.flags = RouteFlags::Cloned;
    assert_eq!(news(&RouteNetlinkMessage::NewRoute(message)), None);
    let default = route_message(RouteType::Unicast, vec![RouteAttribute::Gateway(GATEWAY.into())]);
    let expected = News::Route {
        network: [0; 4].into(),
        prefix_len: 0,
    };
    assert_eq!(news(&RouteNetlinkMessage::NewRoute(default)), Some(expected));
}

#[test]
fn the_local_address_of_a_point_to_point_interface_is_its_own_end() {
    let mut message = AddressMessage::default();
    message.header.index = 7;
    message.attributes = vec![AddressAttribute::Address(GATEWAY)];
    let own = |address| {
        Some(News::Address {
            address,
            if_index: 7,
            present: true,
        })
    };
    assert_eq!(
        news(&RouteNetlinkMessage::NewAddress(message.clone())),
        own(GATEWAY)
    );
    message.attributes.push(AddressAttribute::Local(SERVER));
    assert_eq!(news(&RouteNetlinkMessage::NewAddress(message)), own(SERVER));
}

#[test]
fn only_an_ethernet_interface_has_a_mac_address() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Address(MAC.to_vec()),
    ];
    for (kind, mac) in [
        (LinkLayerType::Ether, Some(MAC)),
        (LinkLayerType::Loopback, None),
        (LinkLayerType::Tunnel, None),
    ] {
        message.header.link_layer_type = kind;
        let link = Some(Link {
            name: "eth0".into(),
            mac,
            running: true,
            ..Link::default()
        });
        assert_eq!(
            news(&RouteNetlinkMessage::NewLink(message.clone())),
            Some(News::Link { if_index: 7, link })
        );
    }
    assert_eq!(
        news(&RouteNetlinkMessage::DelLink(message)),
        Some(News::Link {
            if_index: 7,
            link: None
        })
    );
}

/// What an interface of this kind is, which the kernel says is linked to interface 2.
fn stacked(info: Vec<LinkInfo>, more: Vec<LinkAttribute>) -> Link {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes = vec![
        LinkAttribute::IfName("upper".into()),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::Link(2),
        LinkAttribute::LinkInfo(info),
    ];
    message.attributes.extend(more);
    match news(&RouteNetlinkMessage::NewLink(message)) {
        Some(News::Link { link: Some(link), .. }) => link,
        other => panic!("{other:?}"),
    }
}

#[test]
fn vlans_and_macvlans_say_what_they_are_upon() {
    let vlan = |parts| {
        vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(parts)),
        ]
    };
    let customer = vlan(vec![
        InfoVlan::Protocol(VlanProtocol::Ieee8021Q),
        InfoVlan::Id(20),
    ]);
    let service = vlan(vec![
        InfoVlan::Id(4094),
        InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
    ]);
    for (info, kind) in [
        (
            customer.clone(),
            LinkKind::Vlan {
                id: 20,
                is_service: false,
            },
        ),
        (
            service,
            LinkKind::Vlan {
                id: 4094,
                is_service: true,
            },
        ),
        (vec![LinkInfo::Kind(InfoKind::MacVlan)], LinkKind::Macvlan),
        (vec![LinkInfo::Kind(InfoKind::MacVtap)], LinkKind::Macvlan),
    ] {
        let link = stacked(info, vec![]);
        assert_eq!((link.kind, link.lower), (kind, Some(2)));
    }
    let elsewhere = stacked(customer, vec![LinkAttribute::LinkNetNsId(0)]);
    assert_eq!(elsewhere.lower, None);
    // The other end of a veth is not below it.
    let veth = stacked(vec![LinkInfo::Kind(InfoKind::Veth)], vec![]);
    assert_eq!((veth.kind, veth.lower), (LinkKind::Plain, None));
}

#[test]
fn a_part_of_a_bond_says_so() {
    let part = stacked(vec![], vec![LinkAttribute::Controller(9)]);
    assert_eq!(part.master, Some(9));
    assert_eq!(stacked(vec![], vec![LinkAttribute::Controller(0)]).master, None);
    for kind in [InfoKind::Bond, InfoKind::Team] {
        assert_eq!(stacked(vec![LinkInfo::Kind(kind)], vec![]).kind, LinkKind::Bond);
    }
}
