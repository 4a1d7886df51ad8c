//! Removal policies, expire_nodest_conn, conn_reuse_mode, sloppy protocols, one-packet scheduling, and answers.

extern crate std;

use super::*;
use crate::reason::Reason::{Martian, NoDestinationQuiet, OnePacket, Reset, Stateless};

const INIT: u8 = 1;
const DATA: u8 = 0;
const COOKIE_ECHO: u8 = 10;
const ABORT: u8 = 6;

pub(super) fn client(protocol: IpProto) -> Client {
    Client {
        protocol,
        ..Client::tcp(1)
    }
}

/// A director with one connection, to the first destination, which is removed then.
fn bereft(protocol: IpProto, flags: u64) -> Memory {
    let maps = director(Kind::Rr, protocol);
    set_options(&maps, Options::REUSE | flags, 0, u32::MAX);
    let signals = match protocol {
        IpProto::TCP => [SYN, ACK],
        IpProto::SCTP => [INIT, COOKIE_ECHO],
        _ => [0, 0],
    };
    assert_eq!(client(protocol).send(&maps, signals[0]), (NewConnection, READY));
    assert_eq!(client(protocol).send(&maps, signals[1]), (Connection, READY));
    set(&maps.destinations[READY as usize], destination_flag::REMOVED);
    list(&maps, Kind::Rr, &[(1, NEXT)]);
    maps
}

#[test]
fn a_removed_destinations_connections_go_as_the_service_says() {
    const RESCHEDULE: u64 = Options::RESCHEDULE;
    const RESET: u64 = Options::RESET;
    let to_next = (NewConnection, NEXT);
    let refused = (NoConnection, 0);
    let dropped = (DestinationRemoved, 0);
    for (protocol, flags, signal, expected) in [
        (IpProto::TCP, 0, ACK, dropped),
        (IpProto::TCP, 0, SYN, dropped),
        (IpProto::UDP, 0, 0, dropped),
        (IpProto::SCTP, 0, DATA, dropped),
        (IpProto::SCTP, 0, INIT, dropped),
        (IpProto::TCP, RESCHEDULE, SYN, to_next),
        (IpProto::TCP, RESCHEDULE, ACK, refused),
        (IpProto::TCP, RESCHEDULE | Options::SLOPPY_TCP, ACK, to_next),
        (IpProto::UDP, RESCHEDULE, 0, to_next),
        (IpProto::SCTP, RESCHEDULE, INIT, to_next),
        (IpProto::SCTP, RESCHEDULE, DATA, refused),
        (IpProto::TCP, RESET, ACK, (Reset, 0)),
        (IpProto::TCP, RESET, FIN | ACK, (Reset, 0)),
        (IpProto::TCP, RESET, RST, dropped),
        (IpProto::TCP, RESET, SYN, to_next),
        (IpProto::UDP, RESET, 0, to_next),
        (IpProto::SCTP, RESET, INIT, to_next),
        (IpProto::SCTP, RESET, DATA, refused),
    ] {
        let maps = bereft(protocol, flags);
        let name = std::format!("{protocol:?} {flags:#x} {signal:#04x}");
        assert_eq!(client(protocol).send(&maps, signal), expected, "{name}");
        let (active, inactive, _) = counts(&maps, READY);
        let stays = u64::from(expected == dropped || expected.0 == Reset);
        assert_eq!(active + inactive, stays, "{name}");
        let (active, inactive, _) = counts(&maps, NEXT);
        assert_eq!(active + inactive, u64::from(expected == to_next), "{name}");
    }
}

#[test]
fn every_packet_of_a_reset_connection_is_answered_until_it_is_closed() {
    let maps = bereft(IpProto::TCP, Options::RESET);
    for _ in 0..3 {
        assert_eq!(client(IpProto::TCP).send(&maps, ACK), (Reset, 0));
        assert_eq!(counts(&maps, READY), (0, 1, 0));
        maps.pass_time(3);
    }
    // Its time is not restarted.
    maps.pass_time(2);
    assert_eq!(client(IpProto::TCP).send(&maps, ACK), (NoConnection, 0));
    assert_eq!(client(IpProto::TCP).send(&maps, SYN), (NewConnection, NEXT));
    assert_eq!(
        (counts(&maps, READY), counts(&maps, NEXT)),
        ((0, 0, 0), (1, 0, 0))
    );
}

#[test]
fn what_is_scheduled_anew_may_find_nobody() {
    for (protocol, signal) in [(IpProto::TCP, SYN), (IpProto::UDP, 0), (IpProto::SCTP, INIT)] {
        let maps = bereft(protocol, Options::RESCHEDULE);
        list(&maps, Kind::Rr, &[(0, NEXT)]);
        assert_eq!(client(protocol).send(&maps, signal), (NoDestination, 0));
        assert_eq!(counts(&maps, READY), (0, 0, 0));
    }
}

#[test]
fn a_deleted_services_connections_go_as_it_has_said_last() {
    for (flags, expected) in [
        (0, DestinationRemoved),
        (Options::RESCHEDULE, NotForUs),
        (Options::RESET, Reset),
    ] {
        let maps = bereft(IpProto::TCP, flags);
        list(&maps, Kind::Tombstone, &[]);
        assert_eq!(client(IpProto::TCP).send(&maps, ACK), (expected, 0));
        assert_eq!(Client::tcp(2).send(&maps, SYN), (NotForUs, 0));
    }
}

#[test]
fn a_syn_leaves_a_destination_of_weight_0_where_expire_nodest_conn_says_so() {
    for (flags, signal, expected) in [
        (Options::EXPIRE_NODEST, SYN, (NewConnection, NEXT)),
        (Options::EXPIRE_NODEST, ACK, (Connection, READY)),
        (Options::EXPIRE_NODEST, FIN, (Connection, READY)),
        (0, SYN, (Connection, READY)),
        (Options::RESCHEDULE, SYN, (Connection, READY)),
    ] {
        let maps = director(Kind::Rr, IpProto::TCP);
        set_options(&maps, flags, 0, u32::MAX);
        assert_eq!(Client::tcp(1).send(&maps, SYN), (NewConnection, READY));
        assert_eq!(Client::tcp(1).send(&maps, ACK), (Connection, READY));
        maps.destinations[READY as usize].weight.store(0);
        list(&maps, Kind::Rr, &[(0, READY), (1, NEXT)]);
        assert_eq!(
            Client::tcp(1).send(&maps, signal),
            expected,
            "{flags:#x} {signal:#04x}"
        );
    }
}

#[test]
fn a_connection_that_is_over_is_reused_as_conn_reuse_mode_says() {
    const ALWAYS: u64 = Options::REUSE | Options::REUSE_FIN_WAIT;
    // How the connection ends, the flags, and whether a SYN is scheduled anew.
    for (end, flags, is_anew) in [
        (RST, 0, false),
        (RST, Options::REUSE, true),
        (RST, ALWAYS, true),
        (FIN, 0, false),
        (FIN, Options::REUSE, false),
        (FIN, ALWAYS, true),
        (ACK, ALWAYS, false),
    ] {
        let maps = director(Kind::Rr, IpProto::TCP);
        set_options(&maps, flags, 0, u32::MAX);
        for (signal, reason) in [(SYN, NewConnection), (ACK, Connection), (end, Connection)] {
            assert_eq!(Client::tcp(1).send(&maps, signal), (reason, READY));
        }
        let expected = if is_anew {
            (NewConnection, NEXT)
        } else {
            (Connection, READY)
        };
        assert_eq!(Client::tcp(1).send(&maps, SYN), expected, "{end:#04x} {flags:#x}");
        assert_eq!(counts(&maps, expected.1), (1, 0, 0));
    }
    for (flags, expected) in [(0, (Connection, READY)), (Options::REUSE, (NewConnection, NEXT))] {
        let maps = director(Kind::Rr, IpProto::SCTP);
        set_options(&maps, flags, 0, u32::MAX);
        let client = client(IpProto::SCTP);
        for (signal, reason) in [
            (INIT, NewConnection),
            (COOKIE_ECHO, Connection),
            (ABORT, Connection),
        ] {
            assert_eq!(client.send(&maps, signal), (reason, READY));
        }
        assert_eq!(client.send(&maps, INIT), expected);
    }
}

#[test]
fn a_sloppy_service_takes_up_connections_in_their_middle() {
    for (protocol, signal, state) in [
        (IpProto::TCP, ACK, Some(State::Established)),
        (IpProto::TCP, FIN | ACK, Some(State::Close)),
        (IpProto::TCP, 0, Some(State::Close)),
        (IpProto::TCP, RST, None),
        (IpProto::TCP, SYN | RST, None),
        (IpProto::SCTP, DATA, Some(State::Associated)),
        (IpProto::SCTP, COOKIE_ECHO, Some(State::Associated)),
        (IpProto::SCTP, ABORT, Some(State::Closed)),
    ] {
        let name = std::format!("{protocol:?} {signal:#04x}");
        let maps = director(Kind::Rr, protocol);
        assert_eq!(client(protocol).send(&maps, signal), (NoConnection, 0), "{name}");
        set_options(&maps, Options::SLOPPY_TCP | Options::SLOPPY_SCTP, 0, u32::MAX);
        let expected = if state.is_some() {
            (NewConnection, READY)
        } else {
            (NoConnection, 0)
        };
        assert_eq!(client(protocol).send(&maps, signal), expected, "{name}");
        let entry = entry_of(&maps, &client(protocol).flow());
        assert_eq!(entry.map(|(_, entry)| entry.state()), state, "{name}");
    }
}

#[test]
fn an_association_lives_through_its_chunks() {
    let maps = director(Kind::Rr, IpProto::SCTP);
    let client = client(IpProto::SCTP);
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_COMPLETE: u8 = 14;
    for (chunk, reason, state, expected) in [
        (INIT, NewConnection, State::Init1, (0, 1, 0)),
        (DATA, Connection, State::Init1, (0, 1, 0)),
        (INIT, Connection, State::Init, (0, 1, 0)),
        (COOKIE_ECHO, Connection, State::Associated, (1, 0, 0)),
        (DATA, Connection, State::Associated, (1, 0, 0)),
        (SHUTDOWN, Connection, State::ShutdownReceived, (0, 1, 0)),
        (SHUTDOWN_COMPLETE, Connection, State::Closed, (0, 1, 0)),
    ] {
        assert_eq!(client.send(&maps, chunk), (reason, READY), "{chunk}");
        let (_, entry) = entry_of(&maps, &client.flow()).expect("the association");
        assert_eq!(
            (entry.state(), counts(&maps, READY)),
            (state, expected),
            "{chunk}"
        );
        maps.pass_time(4);
    }
    maps.pass_time(61);
    assert_eq!(client.send(&maps, DATA), (NoConnection, 0));
}

#[test]
fn each_packet_is_scheduled_by_itself_with_one_packet_scheduling() {
    let maps = director(Kind::Rr, IpProto::UDP);
    set_options(&maps, Options::ONE_PACKET, 0, u32::MAX);
    for destination in [READY, NEXT, READY, NEXT] {
        assert_eq!(client(IpProto::UDP).send(&maps, 0), (OnePacket, destination));
    }
    assert_eq!(live(&maps), 0);
    assert_eq!(counts(&maps, READY), (0, 0, 0));
    list(&maps, Kind::Rr, &[]);
    assert_eq!(client(IpProto::UDP).send(&maps, 0), (NoDestination, 0));
}

#[test]
fn a_stateless_service_goes_by_its_ring_and_remembers_nothing() {
    for kind in [Kind::Sh, Kind::Dh, Kind::Mh] {
        let maps = director(kind, IpProto::TCP);
        // Its connections from before are not looked for.
        assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
        assert_eq!(send(&maps, 1, ACK).reason, Connection);
        let before = counts(&maps, READY);
        set_options(&maps, Options::STATELESS, 0, u32::MAX);
        let flags = &maps.control.flags;
        flags.store(flags.load() | control_flag::STATELESS);
        // The ring's first half is the list's second destination's.
        for word in &maps.rings[..32] {
            word.store(0x0001_0001_0001_0001);
        }
        let mut seen = [0; 2];
        for port in 1..200 {
            let client = Client {
                address: [10, 1, 7, u8::try_from(port).expect("small")],
                ..client(IpProto::TCP)
            };
            let first = client.send(&maps, SYN);
            assert_eq!(first.0, Stateless, "{kind:?}");
            for flags in [ACK, FIN | ACK, RST, ACK, SYN] {
                assert_eq!(client.send(&maps, flags), first, "{kind:?} {port} {flags}");
            }
            seen[usize::from(first.1 == NEXT)] += 1;
        }
        // dh goes by the virtual address, of which there is one.
        assert_eq!(seen.contains(&0), kind == Kind::Dh, "{kind:?} {seen:?}");
        assert_eq!((live(&maps), counts(&maps, READY)), (1, before));

        let nobody = Client {
            address: [127, 0, 0, 1],
            ..client(IpProto::TCP)
        };
        assert_eq!(nobody.send(&maps, ACK).0, Martian);
        // Another one's word under the same hash.
        maps.services[SERVICE as usize].identity.store(7);
        assert_eq!(client(IpProto::TCP).send(&maps, ACK), (NotForUs, 0));
        maps.services[SERVICE as usize]
            .identity
            .store(ServiceRow::identity(80, IpProto::TCP));
        list(&maps, kind, &[]);
        assert_eq!(client(IpProto::TCP).send(&maps, ACK).0, NoDestination);
        // Deleted, it has no ring; the connection from before goes on as those of others do.
        list(&maps, Kind::Tombstone, &[]);
        assert_eq!(Client::tcp(2).send(&maps, ACK), (NotForUs, 0));
        assert_eq!(client(IpProto::TCP).send(&maps, ACK), (Connection, READY));
    }
}

#[test]
fn no_more_than_so_many_packets_a_second_are_answered() {
    let maps = director(Kind::Rr, IpProto::UDP);
    list(&maps, Kind::Rr, &[]);
    for _ in 0..3 {
        for number in 0..ANSWERS_A_SECOND + 10 {
            let expected = if number < ANSWERS_A_SECOND {
                NoDestination
            } else {
                NoDestinationQuiet
            };
            assert_eq!(client(IpProto::UDP).send(&maps, 0), (expected, 0), "{number}");
        }
        maps.pass_time(1);
    }
}

#[test]
fn an_overloaded_destination_gets_nothing_new_until_its_connections_have_ended() {
    let maps = director(Kind::Rr, IpProto::TCP);
    // At most 4, and again below 2.
    maps.counts[READY as usize].limits.store(4 << 32 | 2);
    maps.lists[1].store(ListEntry::new(1, READY, true).0);
    maps.lists[2].store(ListEntry::new(0, NEXT, false).0);
    for port in 1..=4 {
        assert_eq!(Client::tcp(port).send(&maps, SYN), (NewConnection, READY));
    }
    assert_eq!(Client::tcp(5).send(&maps, SYN), (NoDestination, 0));
    // An inactive connection counts, too, and those that it has go on.
    assert_eq!(Client::tcp(1).send(&maps, ACK), (Connection, READY));
    assert_eq!(Client::tcp(1).send(&maps, RST), (Connection, READY));
    assert_eq!(counts(&maps, READY), (3, 1, 0));
    for (port, is_over) in [(1, true), (2, true), (3, false)] {
        assert_eq!(
            Client::tcp(9).send(&maps, SYN),
            (NoDestination, 0),
            "before {port} ends"
        );
        let (place, entry) = entry_of(&maps, &Client::tcp(port).flow()).expect("the connection");
        assert!(table::remove(&maps, place, entry));
        assert_eq!(maps.counts[READY as usize].overload.load() != 0, is_over);
    }
    for port in 11..=13 {
        assert_eq!(Client::tcp(port).send(&maps, SYN), (NewConnection, READY));
    }
    assert_eq!(Client::tcp(14).send(&maps, SYN), (NoDestination, 0));
}

#[test]
fn what_comes_from_ftps_data_port_is_never_scheduled() {
    for protocol in [IpProto::TCP, IpProto::UDP] {
        let maps = director(Kind::Rr, protocol);
        let from = |port| Client {
            protocol,
            ..Client::tcp(port)
        };
        assert_eq!(from(20).send(&maps, SYN).0, NotForUs);
        assert_eq!(live(&maps), 0);
        assert_eq!(from(21).send(&maps, SYN).0, NewConnection);
    }
}
