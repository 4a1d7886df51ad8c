//! Persistence: clients stay with their destination.

use super::*;
use crate::reason::Reason::OnePacket;

const MINUTE: u32 = 60;
const NETWORK: u32 = 0xffff_ff00;

/// A director whose service is persistent, for so long and by this mask.
fn persistent(protocol: IpProto, timeout: u32, mask: u32) -> Memory {
    let maps = director(Kind::Rr, protocol);
    set_options(&maps, Options::REUSE, timeout, mask);
    maps
}

/// The template of a client, as the service at port 80 has it.
fn template(client: Client) -> Flow {
    client.flow().template(80, u32::MAX)
}

/// The template's state, while it has one that has not expired.
fn state_of(maps: &Memory, flow: &Flow) -> Option<State> {
    let (_, entry) = entry_of(maps, flow)?;
    (!table::is_expired(maps, entry, maps.now())).then(|| entry.state())
}

/// How many connections a template controls.
fn controlled(maps: &Memory, flow: &Flow) -> u64 {
    let (place, _) = entry_of(maps, flow).expect("the template is there");
    maps.cold[place.index as usize].controlled.load() & 0xffff_ffff
}

/// Ends what has expired, as the agent's sweep does.
fn sweep(maps: &Memory) {
    for (index, word) in (0..).zip(maps.hot.iter().flat_map(|bucket| &bucket.0)) {
        let entry = Entry(word.load());
        if entry.is_live() && table::is_expired(maps, entry, maps.now()) {
            table::expire(maps, Place { word, index }, entry, maps.now());
        }
    }
}

/// Gives the service another port.
fn move_service(maps: &Memory, port: u16) {
    for word in maps.service_index.iter().flat_map(|bucket| &bucket.0) {
        word.store(0);
    }
    enter_service(maps, SERVICE, port, IpProto::TCP);
}

#[test]
fn a_client_stays_with_its_destination() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    let other = Client {
        address: [192, 168, 1, 201],
        ..Client::tcp(1)
    };
    for port in 1..4 {
        assert_eq!(Client::tcp(port).send(&maps, SYN), (NewConnection, READY));
    }
    assert_eq!(other.send(&maps, SYN), (NewConnection, NEXT));
    assert_eq!(Client::tcp(4).send(&maps, SYN), (NewConnection, READY));
    assert_eq!(
        (counts(&maps, READY), counts(&maps, NEXT)),
        ((4, 0, 1), (1, 0, 1))
    );
    assert_eq!(controlled(&maps, &template(Client::tcp(1))), 4);
    assert_eq!(controlled(&maps, &template(other)), 1);
    // Each connection knows which one controls it.
    let (place, _) = entry_of(&maps, &Client::tcp(3).flow()).expect("the connection");
    let control = maps.cold[place.index as usize].control.load();
    assert_eq!(table::controlling(&maps, control), Some(template(Client::tcp(3))));
}

#[test]
fn a_network_is_one_client() {
    let maps = persistent(IpProto::UDP, MINUTE, NETWORK);
    let from = |address| Client {
        protocol: IpProto::UDP,
        address,
        ..Client::tcp(1)
    };
    assert_eq!(from([10, 0, 0, 1]).send(&maps, 0), (NewConnection, READY));
    assert_eq!(from([10, 0, 1, 1]).send(&maps, 0), (NewConnection, NEXT));
    assert_eq!(from([10, 0, 0, 255]).send(&maps, 0), (NewConnection, READY));
    assert_eq!(from([10, 0, 1, 7]).send(&maps, 0), (NewConnection, NEXT));
    assert_eq!(counts(&maps, READY), (0, 2, 1));
}

#[test]
fn a_template_lives_as_long_as_the_service_says_after_its_last_use() {
    for timeout in [20, MINUTE, 16_384, 16_385, 86_400 * 31] {
        let maps = persistent(IpProto::TCP, timeout, u32::MAX);
        // A coarse one may live on for two of its units.
        let unit = if timeout > 16_384 { 64 } else { 0 };
        assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
        assert_eq!(Client::tcp(1).send(&maps, RST), (Connection, READY));
        maps.pass_time(timeout);
        sweep(&maps);
        assert_eq!(
            Client::tcp(2).send(&maps, SYN),
            (NewConnection, READY),
            "in time, {timeout}"
        );
        assert_eq!(Client::tcp(2).send(&maps, ACK), (Connection, READY));
        assert_eq!(Client::tcp(2).send(&maps, RST), (Connection, READY));
        maps.pass_time(timeout);
        sweep(&maps);
        assert_eq!(
            Client::tcp(3).send(&maps, SYN),
            (NewConnection, READY),
            "since its last use, {timeout}"
        );
        assert_eq!(Client::tcp(3).send(&maps, ACK), (Connection, READY));
        assert_eq!(Client::tcp(3).send(&maps, RST), (Connection, READY));
        maps.pass_time(timeout + 1 + 2 * unit);
        // What was closed is swept with it, and no minute is added for that.
        sweep(&maps);
        sweep(&maps);
        maps.pass_time(61);
        sweep(&maps);
        assert_eq!(
            Client::tcp(4).send(&maps, SYN),
            (NewConnection, NEXT),
            "too late, {timeout}"
        );
    }
}

#[test]
fn a_template_lives_on_while_it_controls_a_connection() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    let client = Client::tcp(1);
    assert_eq!(client.send(&maps, SYN), (NewConnection, READY));
    for _ in 0..30 {
        assert_eq!(client.send(&maps, ACK), (Connection, READY));
        maps.pass_time(50);
        sweep(&maps);
    }
    assert_eq!(state_of(&maps, &template(client)), Some(State::Assured));
    assert_eq!(
        Client::tcp(2).send(&maps, SYN),
        (NewConnection, READY),
        "25 minutes later"
    );
    // Without the sweep, whoever looks for it finds it alive.
    maps.pass_time(800);
    assert_eq!(client.send(&maps, ACK), (Connection, READY));
    assert_eq!(Client::tcp(3).send(&maps, SYN), (NewConnection, READY));
    // When the last connection has ended, a minute at a time is no more given.
    maps.pass_time(1000);
    sweep(&maps);
    maps.pass_time(61);
    sweep(&maps);
    assert_eq!(state_of(&maps, &template(client)), None);
    for destination in [READY, NEXT] {
        assert_eq!(counts(&maps, destination), (0, 0, 0));
    }
}

#[test]
fn a_template_is_assured_by_its_first_established_connection() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    let flow = template(Client::tcp(1));
    for (port, signal, state) in [
        (1, SYN, State::Template),
        (2, SYN, State::Template),
        (2, SYN, State::Template),
        (1, FIN, State::Template),
        (2, ACK, State::Assured),
        (2, RST, State::Assured),
        (3, SYN, State::Assured),
    ] {
        Client::tcp(port).send(&maps, signal);
        assert_eq!(state_of(&maps, &flow), Some(state), "{port} {signal:#04x}");
    }
    assert_eq!(counts(&maps, READY).2, 1);
}

#[test]
fn an_association_assures_its_template_and_udp_never_does() {
    let maps = persistent(IpProto::SCTP, MINUTE, u32::MAX);
    let client = Client {
        protocol: IpProto::SCTP,
        ..Client::tcp(1)
    };
    assert_eq!(client.send(&maps, 1), (NewConnection, READY));
    assert_eq!(state_of(&maps, &template(client)), Some(State::Template));
    assert_eq!(client.send(&maps, 10), (Connection, READY));
    assert_eq!(state_of(&maps, &template(client)), Some(State::Assured));

    let maps = persistent(IpProto::UDP, MINUTE, u32::MAX);
    let client = Client {
        protocol: IpProto::UDP,
        ..client
    };
    for reason in [NewConnection, Connection, Connection] {
        assert_eq!(client.send(&maps, 0), (reason, READY));
        maps.pass_time(5);
    }
    assert_eq!(state_of(&maps, &template(client)), Some(State::Template));
}

#[test]
fn a_client_at_port_0_is_no_template() {
    // Only UDP has clients at port 0.
    let maps = persistent(IpProto::UDP, MINUTE, u32::MAX);
    let client = Client {
        protocol: IpProto::UDP,
        ..Client::tcp(0)
    };
    assert_eq!(client.send(&maps, 0), (NewConnection, READY));
    assert_eq!(client.send(&maps, 0), (Connection, READY));
    assert_eq!(state_of(&maps, &client.flow()), Some(State::Udp));
    assert_eq!(state_of(&maps, &template(client)), Some(State::Template));
    assert_eq!(counts(&maps, READY), (0, 1, 1));
}

#[test]
fn a_templates_time_is_not_touched_by_a_flow_of_its_tag() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
    // The template's entry at a stranger's place, as if their tags were the same.
    let (place, entry) = entry_of(&maps, &template(Client::tcp(1))).expect("the template");
    let place_of = |stranger: Client| {
        let hash = hash::flow(maps.control.key(), &stranger.flow());
        let bucket = usize::try_from(hash & maps.control.bucket_mask.load()).expect("small");
        (stranger, hash, &maps.hot[bucket].0[7])
    };
    let (stranger, hash, word) = (9..)
        .map(|port| place_of(Client::tcp(port)))
        .find(|(_, _, word)| word.load() == 0)
        .expect("a free place");
    let tag = u32::try_from(hash >> 41).expect("23 bits");
    place.word.store(0);
    word.store(entry.with_tag(tag).0);
    maps.pass_time(10);
    assert_eq!(stranger.send(&maps, ACK).0, NoConnection);
    assert_eq!(word.load(), entry.with_tag(tag).0);
}

#[test]
fn a_template_is_void_without_its_destination() {
    // What is done to the first destination, the service's flags, and whether it is void by that.
    let weightless = |maps: &Memory| {
        maps.destinations[READY as usize].weight.store(0);
        list(maps, Kind::Rr, &[(0, READY), (1, NEXT)]);
    };
    let gone = |maps: &Memory, flag| {
        set(&maps.destinations[READY as usize], flag);
        list(maps, Kind::Rr, &[(1, NEXT)]);
    };
    type Change<'a> = &'a dyn Fn(&Memory);
    let cases: [(&str, Change<'_>, u64, bool); 5] = [
        ("removed", &|maps| gone(maps, destination_flag::REMOVED), 0, true),
        ("drained", &|maps| gone(maps, destination_flag::DRAINING), 0, true),
        ("weight 0", &weightless, 0, false),
        ("weight 0, expires", &weightless, Options::EXPIRE_QUIESCENT, true),
        ("as it was", &|_| {}, Options::EXPIRE_QUIESCENT, false),
    ];
    for (name, change, flags, is_void) in cases {
        let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
        set_options(&maps, Options::REUSE | flags, MINUTE, u32::MAX);
        assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY), "{name}");
        change(&maps);
        let expected = if is_void { NEXT } else { READY };
        for port in 2..4 {
            assert_eq!(
                Client::tcp(port).send(&maps, SYN),
                (NewConnection, expected),
                "{name}"
            );
        }
        assert_eq!(counts(&maps, READY).2, u64::from(!is_void), "{name}");
        assert_eq!(counts(&maps, NEXT).2, u64::from(is_void), "{name}");
        // The old connection's end is none of the new template's business.
        let flow = template(Client::tcp(1));
        let before = controlled(&maps, &flow);
        let (place, entry) = entry_of(&maps, &Client::tcp(1).flow()).expect("the first connection");
        assert!(table::remove(&maps, place, entry));
        assert_eq!(controlled(&maps, &flow), before - u64::from(!is_void), "{name}");
    }
}

#[test]
fn connections_under_a_template_are_not_scheduled_anew() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    for (signal, reason) in [
        (SYN, NewConnection),
        (ACK, Connection),
        (RST, Connection),
        (SYN, Connection),
    ] {
        assert_eq!(
            Client::tcp(1).send(&maps, signal),
            (reason, READY),
            "{signal:#04x}"
        );
    }
    assert_eq!(counts(&maps, READY), (1, 0, 1));
}

#[test]
fn a_connection_lets_its_template_go_however_it_ends() {
    type End<'a> = &'a dyn Fn(&Memory, Client);
    let place_of = |maps: &Memory, client: Client| {
        let (place, entry) = entry_of(maps, &client.flow()).expect("the connection");
        (place.index, entry)
    };
    let ends: [(&str, End<'_>); 5] = [
        ("swept", &|maps, _| {
            maps.pass_time(61);
            sweep(maps);
        }),
        ("flushed", &|maps, client| {
            let (index, entry) = place_of(maps, client);
            let word = &maps.hot[index as usize / 8].0[index as usize % 8];
            assert!(table::remove(maps, Place { word, index }, entry));
        }),
        ("expired, and its place taken", &|maps, client| {
            let (index, entry) = place_of(maps, client);
            maps.pass_time(61);
            // The same tag: that entry has to be the one that goes.
            let new = New {
                hash: u64::from(entry.tag()) << 41 | u64::from(index / 8),
                flow: Client::tcp(99).flow(),
                opened: 0,
            };
            let entry = Entry::new(0, NEXT, State::SynRecv, maps.now(), 60);
            assert_eq!(table::insert(maps, &new, entry, 0), Inserted::Done);
        }),
        ("displaced", &|maps, client| {
            // All of both buckets is established but for this one.
            let (index, _) = place_of(maps, client);
            let free = maps.hot.iter().flat_map(|bucket| &bucket.0);
            for (tag, word) in (1000..).zip(free.filter(|word| word.load() == 0)) {
                word.store(Entry::new(tag, NEXT, State::Udp, maps.now(), 300).0);
            }
            let flow = template(client);
            let (place, entry) = entry_of(maps, &flow).expect("the template");
            place.word.store(entry.with_state(State::Assured).0);
            let new = New {
                hash: 7 << 41 | u64::from(index / 8),
                flow: Client::tcp(99).flow(),
                opened: 0,
            };
            let entry = Entry::new(0, NEXT, State::SynRecv, maps.now(), 60);
            assert_eq!(table::insert(maps, &new, entry, 0), Inserted::Done);
        }),
        ("scheduled anew", &|maps, client| {
            maps.destinations[READY as usize].weight.store(0);
            set_options(maps, Options::EXPIRE_NODEST, MINUTE * 10, u32::MAX);
            // It goes where the template says, which has weight 0, too.
            assert_eq!(client.send(maps, SYN), (NewConnection, READY));
            let (index, entry) = place_of(maps, client);
            let word = &maps.hot[index as usize / 8].0[index as usize % 8];
            assert!(table::remove(maps, Place { word, index }, entry));
        }),
    ];
    for (name, end) in ends {
        let maps = persistent(IpProto::TCP, MINUTE * 10, u32::MAX);
        let client = Client::tcp(1);
        assert_eq!(client.send(&maps, SYN), (NewConnection, READY), "{name}");
        assert_eq!(controlled(&maps, &template(client)), 1, "{name}");
        end(&maps, client);
        assert_eq!(controlled(&maps, &template(client)), 0, "{name}");
        assert_eq!(counts(&maps, READY), (0, 0, 1), "{name}");
    }
}

#[test]
fn a_connection_that_finds_no_room_is_not_controlled() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    for port in 1..=15 {
        assert_eq!(Client::tcp(port).send(&maps, SYN), (NewConnection, READY));
        assert_eq!(Client::tcp(port).send(&maps, ACK), (Connection, READY));
    }
    assert_eq!(Client::tcp(16).send(&maps, SYN), (TableFull, 0));
    assert_eq!(controlled(&maps, &template(Client::tcp(1))), 15);
    let stranger = Client {
        address: [10, 0, 0, 1],
        ..Client::tcp(1)
    };
    assert_eq!(stranger.send(&maps, SYN), (TableFull, 0), "for its template");
    assert_eq!(counts(&maps, READY), (15, 0, 1));
    assert_eq!(counts(&maps, NEXT), (0, 0, 0));
}

#[test]
fn a_flood_displaces_a_template_only_while_it_is_not_assured() {
    for is_assured in [false, true] {
        let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
        assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
        if is_assured {
            assert_eq!(Client::tcp(1).send(&maps, ACK), (Connection, READY));
        }
        maps.pass_time(1);
        for octet in 1..=200 {
            let stranger = Client {
                address: [10, 0, 0, octet],
                ..Client::tcp(1)
            };
            stranger.send(&maps, SYN);
        }
        let is_there = state_of(&maps, &template(Client::tcp(1))).is_some();
        assert_eq!(is_there, is_assured);
        // Nothing that was displaced is still counted.
        let (mut connections, mut templates) = (0, 0);
        for destination in [READY, NEXT] {
            let (active, inactive, of_templates) = counts(&maps, destination);
            connections += active + inactive;
            templates += of_templates;
        }
        assert_eq!(
            usize::try_from(connections + templates).expect("few"),
            live(&maps)
        );
    }
}

#[test]
fn all_ports_of_an_address_are_one_service() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    // The service's own port is 0, beside one for port 443 alone, without destinations.
    move_service(&maps, 0);
    enter_service(&maps, 2, 443, IpProto::TCP);
    let empty = ListWord::new(Kind::Rr, 20, 0, 0, false);
    maps.services[2].lists.iter().for_each(|list| list.store(empty.0));
    let to = |port, to| Client {
        to,
        ..Client::tcp(port)
    };
    assert_eq!(to(1, 80).send(&maps, SYN), (NotForUs, 0), "nobody has said so");
    maps.control
        .flags
        .store(control_flag::TEMPLATES | control_flag::ALL_PORTS);
    for (port, virtual_port) in [(1, 80), (2, 81), (3, 65_535), (4, 1)] {
        assert_eq!(to(port, virtual_port).send(&maps, SYN), (NewConnection, READY));
        assert_eq!(to(port, virtual_port).send(&maps, ACK), (Connection, READY));
    }
    assert_eq!(to(1, 443).send(&maps, SYN), (NoDestination, 0), "its own service");
    assert_eq!(counts(&maps, READY), (4, 0, 1));
    assert_eq!(controlled(&maps, &Client::tcp(1).flow().template(0, u32::MAX)), 4);
    let other = Client {
        protocol: IpProto::UDP,
        ..Client::tcp(1)
    };
    assert_eq!(other.send(&maps, 0), (NotForUs, 0));
}

#[test]
fn a_service_of_its_own_leaves_an_all_port_services_connections_alone() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    move_service(&maps, 0);
    maps.control
        .flags
        .store(control_flag::TEMPLATES | control_flag::ALL_PORTS);
    assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
    enter_service(&maps, 2, 80, IpProto::TCP);
    let own = ListWord::new(Kind::Rr, 20, 1, 0, false);
    maps.lists[20].store(1 << 32 | 1);
    maps.lists[21].store(ListEntry::new(1, 3, false).0);
    let row = &maps.destinations[3];
    row.towards
        .store(destination_flag::USED | destination_flag::RESOLVED);
    row.place.store(2 << 32 | u64::from(INGRESS));
    maps.services[2].lists.iter().for_each(|list| list.store(own.0));
    for (signal, state) in [
        (ACK, State::Established),
        (ACK, State::Established),
        (FIN, State::FinWait),
    ] {
        assert_eq!(Client::tcp(1).send(&maps, signal), (Connection, READY));
        assert_eq!(state_of(&maps, &Client::tcp(1).flow()), Some(state));
    }
    assert_eq!(Client::tcp(2).send(&maps, SYN), (NewConnection, 3));
    assert_eq!(counts(&maps, READY), (0, 1, 1));
}

#[test]
fn an_ftp_services_data_goes_with_its_control() {
    let maps = director(Kind::Rr, IpProto::TCP);
    move_service(&maps, FTP_PORT);
    maps.control
        .flags
        .store(control_flag::TEMPLATES | control_flag::FTP);
    let to = |port, to| Client {
        to,
        ..Client::tcp(port)
    };
    // Without persistence it has its own port only.
    assert_eq!(to(1, 21).send(&maps, SYN), (NewConnection, READY));
    assert_eq!(to(1, 20).send(&maps, SYN), (NotForUs, 0));
    assert_eq!(to(1, 40_000).send(&maps, SYN), (NotForUs, 0));

    set_options(&maps, 0, MINUTE, u32::MAX);
    let client = |port, to| Client {
        address: [10, 0, 0, 1],
        to,
        ..Client::tcp(port)
    };
    assert_eq!(client(1, 21).send(&maps, SYN), (NewConnection, NEXT));
    for virtual_port in [20, 1024, 40_000, 65_535] {
        assert_eq!(client(2, virtual_port).send(&maps, SYN), (NewConnection, NEXT));
    }
    for virtual_port in [0, 19, 22, 80, 1023] {
        assert_eq!(client(2, virtual_port).send(&maps, SYN), (NotForUs, 0));
    }
    let flow = client(1, 21).flow().template(0, u32::MAX);
    assert_eq!(controlled(&maps, &flow), 5);
}

#[test]
fn one_packet_scheduling_follows_a_template_without_being_controlled() {
    let maps = persistent(IpProto::UDP, MINUTE, u32::MAX);
    set_options(&maps, Options::ONE_PACKET, MINUTE, u32::MAX);
    let client = |port| Client {
        protocol: IpProto::UDP,
        ..Client::tcp(port)
    };
    for port in [1, 1, 2, 3] {
        assert_eq!(client(port).send(&maps, 0), (OnePacket, READY));
    }
    assert_eq!(counts(&maps, READY), (0, 0, 1));
    assert_eq!(controlled(&maps, &template(client(1))), 0);
    maps.pass_time(MINUTE + 1);
    assert_eq!(client(1).send(&maps, 0), (OnePacket, NEXT));
}

#[test]
fn a_void_template_is_taken_out_although_it_lives_on_for_its_connections() {
    let maps = persistent(IpProto::TCP, MINUTE, u32::MAX);
    assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
    assert_eq!(Client::tcp(1).send(&maps, ACK), (Connection, READY));
    // Its time is over, but not that of the connection; then its destination goes.
    maps.pass_time(2 * MINUTE);
    set(&maps.destinations[READY as usize], destination_flag::REMOVED);
    assert_eq!(Client::tcp(2).send(&maps, SYN), (NewConnection, NEXT));
    let (_, entry) = entry_of(&maps, &template(Client::tcp(1))).expect("a template");
    assert_eq!(entry.destination(), NEXT);
    assert_eq!(counts(&maps, READY).2, 0);
}
