use super::*;
use crate::{
    abi::{DestinationRow, ListEntry, destination_flag},
    maps::memory::Memory,
    packet::{Address, Mac},
    reason::Reason::{
        Connection, DestinationRemoved, Malformed, Migrating, NewConnection, NoConnection,
        NoConnectionPassed, NoDestination, NotForUs, NotIp, NotUnicast, OtherHost, OtherProtocol, TableFull,
        TagCollision, Unresolved, Untracked,
    },
    ring,
    table::find,
};

mod any_packet;
mod handshakes;
mod marks;
mod persistence;
mod settings;

const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 2, 200];
const VIP: u32 = 0xc0a8_0264;
const SERVICE: u32 = 1;
const INGRESS: u32 = 3;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Destinations, by what is the matter with them.
const READY: u32 = 1;
const NEXT: u32 = 2;

fn mac(id: u32) -> Mac {
    Mac(u64::from(id) << 40 | 0x02)
}

/// A director with one service and two destinations that are resolved, [`READY`] first.
fn director(kind: Kind, protocol: IpProto) -> Memory {
    let maps = Memory::new(16, 4, 8);
    for id in [READY, NEXT] {
        let row = &maps.destinations[id as usize];
        row.towards
            .store(destination_flag::USED | destination_flag::RESOLVED | mac(id).0);
        row.from.store(Mac::from_octets(DIRECTOR).0);
        row.place.store(u64::from(SERVICE) << 32 | u64::from(INGRESS));
        row.weight.store(1);
    }
    // As by default.
    set_options(&maps, Options::REUSE, 0, u32::MAX);
    enter_service(&maps, SERVICE, 80, protocol);
    list(&maps, kind, &[(1, READY), (1, NEXT)]);
    maps.interfaces[INGRESS as usize]
        .if_index
        .store(u64::from(INGRESS));
    maps.interfaces[INGRESS as usize].macs[6].store(Mac::from_octets(DIRECTOR).0);
    maps
}

/// What the service says in both configurations.
fn set_options(maps: &Memory, flags: u64, timeout: u32, mask: u32) {
    if timeout > 0 {
        let flags = &maps.control.flags;
        flags.store(flags.load() | control_flag::TEMPLATES);
    }
    let options = &maps.services[SERVICE as usize].options;
    options
        .iter()
        .for_each(|word| word.store(Options::new(flags, timeout, mask).0));
}

fn enter_service(maps: &Memory, id: u32, port: u16, protocol: IpProto) {
    let address = Address::from_ipv4(VIP);
    let row = &maps.services[id as usize];
    row.address[1].store(address.low());
    row.identity.store(ServiceRow::identity(port, protocol));
    let hash = hash::service(maps.control.key(), address, port, protocol.0);
    let (first, _) = index_buckets(hash, maps.control.service_mask.load());
    let bucket = &maps.service_index[first as usize].0;
    let free = bucket.iter().find(|word| word.load() == 0).expect("a free word");
    free.store(index_word(hash, id));
}

/// Makes a list, weight and id by place, the service's; a ring of its first destination comes with it.
fn list(maps: &Memory, kind: Kind, entries: &[(u32, u32)]) {
    let (di, mw) = ring::weighted_marks(entries.iter().map(|(weight, _)| *weight));
    maps.lists[0].store(u64::from(mw) << 32 | u64::from(di));
    for (word, (weight, id)) in maps.lists[1..].iter().zip(entries) {
        word.store(ListEntry::new(*weight, *id, false).0);
    }
    let length = u32::try_from(entries.len()).expect("few");
    let word = ListWord::new(kind, 0, length, 0, false);
    let row = &maps.services[SERVICE as usize];
    row.lists.iter().for_each(|list| list.store(word.0));
    row.rings
        .iter()
        .for_each(|ring| ring.store(RingWord::new(0, 256, false, false).0));
}

/// A frame of the client `port`.
fn frame(protocol: IpProto, port: u16, flags: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&DIRECTOR);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 2, 1]);
    frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, 40]);
    frame[22..24].copy_from_slice(&[64, protocol.0]);
    frame[26..30].copy_from_slice(&[192, 168, 1, 200]);
    frame[30..34].copy_from_slice(&VIP.to_be_bytes());
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&80u16.to_be_bytes());
    if protocol == IpProto::UDP {
        frame[38..40].copy_from_slice(&20u16.to_be_bytes());
    } else {
        // TCP's header without options; of SCTP, the first chunk's type, which only some tests set.
        frame[46] = if protocol == IpProto::TCP { 0x50 } else { 0 };
    }
    frame[47] = flags;
    frame
}

/// Who sends packets to the VIP.
#[derive(Debug, Clone, Copy)]
struct Client {
    protocol: IpProto,
    address: [u8; 4],
    port: u16,
    /// The virtual port.
    to: u16,
}

impl Client {
    /// One of TCP, at a port of its own, who wants the service at port 80.
    fn tcp(port: u16) -> Self {
        Self {
            protocol: IpProto::TCP,
            address: [192, 168, 1, 200],
            port,
            to: 80,
        }
    }

    /// Sends a packet: with these flags of TCP, or with a chunk of this type.
    fn send(self, maps: &Memory, signal: u8) -> (Reason, u32) {
        let mut frame = frame(self.protocol, self.port, signal);
        frame[26..30].copy_from_slice(&self.address);
        frame[36..38].copy_from_slice(&self.to.to_be_bytes());
        if self.protocol == IpProto::SCTP {
            frame[46..50].copy_from_slice(&[signal, 0, 0, 4]);
        }
        let verdict = decide(&frame[..], maps, INGRESS);
        (verdict.reason, verdict.destination)
    }

    fn flow(self) -> Flow {
        let packet = Packet {
            source: Address::from_ipv4(u32::from_be_bytes(self.address)),
            source_port: self.port,
            destination: Address::from_ipv4(VIP),
            destination_port: self.to,
            protocol: self.protocol,
            ..Packet::sample()
        };
        Flow::new(&packet, SERVICE)
    }
}

/// Where the entry of a flow is, and what it says, expired or not.
fn entry_of<'m>(maps: &'m Memory, flow: &Flow) -> Option<(Place<'m>, Entry)> {
    let key = Key::new(
        hash::flow(maps.control.key(), flow),
        maps.control.bucket_mask.load(),
    );
    find(maps, key).filter(|(place, _)| table::is_flow(maps, *place, flow))
}

/// (active, inactive, templates) of a destination.
fn counts(maps: &Memory, destination: u32) -> (u64, u64, u64) {
    let counts = &maps.counts[destination as usize];
    let connections = counts.connections.load();
    (
        connections & 0xffff_ffff,
        connections >> 32,
        counts.templates.load(),
    )
}

fn send(maps: &Memory, port: u16, flags: u8) -> Verdict {
    decide(&frame(IpProto::TCP, port, flags)[..], maps, INGRESS)
}

fn set(row: &DestinationRow, flag: u64) {
    row.towards.store(row.towards.load() | flag);
}

fn live(maps: &Memory) -> usize {
    let words = maps.hot.iter().flat_map(|bucket| &bucket.0);
    words.filter(|word| word.load() != 0).count()
}

#[test]
fn what_is_not_for_a_service_is_left_alone() {
    let maps = director(Kind::Rr, IpProto::TCP);
    for (name, at, to, reason) in [
        ("another VIP", 33, 0x65, NotForUs),
        ("another port", 37, 81, NotForUs),
        ("another protocol", 23, 132, NotForUs),
        ("ICMP", 23, 1, OtherProtocol),
        ("a fragment", 21, 1, NotForUs),
        ("no IP", 12, 0x86, NotIp),
        ("broadcast", 0, 0xff, NotUnicast),
        ("another version", 14, 0x65, Malformed),
        ("another host", 5, 201, OtherHost),
    ] {
        let mut frame = frame(IpProto::TCP, 1, SYN);
        frame[at] = to;
        assert_eq!(
            decide(&frame[..], &maps, INGRESS),
            Verdict::stay(reason),
            "{name}"
        );
    }
    assert_eq!(live(&maps), 0);
    // Of an interface whose addresses are not known every frame is taken.
    let mut other = frame(IpProto::TCP, 1, SYN);
    other[5] = 201;
    assert_eq!(decide(&other[..], &maps, 4).reason, NewConnection);
}

#[test]
fn a_connection_lives_through_its_packets() {
    let maps = director(Kind::Rr, IpProto::TCP);
    for (flags, reason, destination) in [
        (SYN, NewConnection, READY),
        (SYN, Connection, READY),
        (ACK, Connection, READY),
        (FIN | ACK, Connection, READY),
        (ACK, Connection, READY),
        (RST, Connection, READY),
        // Closed: the next SYN is a new connection's.
        (SYN, NewConnection, NEXT),
    ] {
        let expected = Verdict {
            reason,
            destination,
            to: mac(destination),
            from: Mac::from_octets(DIRECTOR),
            if_index: INGRESS,
            length: 40,
            is_special: false,
            is_new: reason == NewConnection,
        };
        assert_eq!(send(&maps, 1, flags), expected, "{flags:#04x}");
    }
    assert_eq!(maps.counts[READY as usize].connections.load(), 0);
    assert_eq!(maps.counts[NEXT as usize].connections.load(), 1);
}

#[test]
fn udp_needs_nothing_to_start_and_sticks() {
    let maps = director(Kind::Rr, IpProto::UDP);
    let send = |port| decide(&frame(IpProto::UDP, port, 0)[..], &maps, INGRESS);
    for (port, reason, destination) in [
        (1, NewConnection, READY),
        (2, NewConnection, NEXT),
        (1, Connection, READY),
        (2, Connection, NEXT),
    ] {
        let verdict = send(port);
        assert_eq!(
            (verdict.reason, verdict.destination),
            (reason, destination),
            "{port}"
        );
    }
    maps.pass_time(301);
    assert_eq!(
        send(2).destination,
        READY,
        "the next in turn: the entry has expired"
    );
    assert_eq!(maps.counts[READY as usize].connections.load(), 2 << 32);
    assert_eq!(maps.counts[NEXT as usize].connections.load(), 0);
}

/// A name, what is done to the tables, TCP's flags, and what becomes of the packet.
type Case = (&'static str, fn(&Memory), u8, Reason);

/// One packet on a director of which something was changed.
#[test]
fn where_nothing_can_be_forwarded_the_reason_says_why() {
    let local = |maps: &Memory| maps.services[SERVICE as usize].flags.store(service_flag::LOCAL);
    let migrating = |maps: &Memory| maps.control.flags.store(control_flag::MIGRATING);
    let cases: [Case; 13] = [
        ("ACK, VIP elsewhere", |_| {}, ACK, NoConnection),
        ("FIN, VIP elsewhere", |_| {}, FIN, NoConnection),
        ("RST, VIP elsewhere", |_| {}, RST, NoConnection),
        ("no flag, VIP elsewhere", |_| {}, 0, NoConnection),
        ("ACK, VIP here", local, ACK, NoConnectionPassed),
        ("ACK while migrating", migrating, ACK, Migrating),
        ("SYN while migrating", migrating, SYN, NewConnection),
        (
            "no destinations",
            |maps| list(maps, Kind::Rr, &[]),
            SYN,
            NoDestination,
        ),
        (
            "all quiesced",
            |maps| list(maps, Kind::Rr, &[(0, 1), (0, 2)]),
            SYN,
            NoDestination,
        ),
        (
            "not resolved",
            |maps| maps.destinations[1].towards.store(destination_flag::USED),
            SYN,
            Unresolved,
        ),
        (
            "a deleted service, SYN",
            |maps| list(maps, Kind::Tombstone, &[]),
            SYN,
            NotForUs,
        ),
        (
            "a deleted service, ACK",
            |maps| list(maps, Kind::Tombstone, &[]),
            ACK,
            NotForUs,
        ),
        (
            "a service that is no more",
            |maps| list(maps, Kind::Absent, &[]),
            SYN,
            NotForUs,
        ),
    ];
    for (name, change, flags, reason) in cases {
        let maps = director(Kind::Rr, IpProto::TCP);
        change(&maps);
        let verdict = send(&maps, 1, flags);
        assert_eq!(verdict.reason, reason, "{name}");
        if reason != NewConnection {
            assert_eq!(verdict, Verdict::stay(reason), "{name}");
        }
    }
}

#[test]
fn the_live_configuration_is_the_one_that_the_bit_says() {
    let maps = director(Kind::Rr, IpProto::TCP);
    let row = &maps.services[SERVICE as usize];
    row.lists[1].store(ListWord::new(Kind::Absent, 0, 0, 0, false).0);
    assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
    maps.control.generation.store(7);
    assert_eq!(send(&maps, 2, SYN).reason, NotForUs);
    maps.control.generation.store(8);
    assert_eq!(send(&maps, 2, SYN).reason, NewConnection);
    assert_eq!(send(&maps, 1, ACK).reason, Connection);
}

#[test]
fn a_removed_destinations_packets_are_dropped_and_do_not_keep_it() {
    let maps = director(Kind::Rr, IpProto::TCP);
    assert_eq!(send(&maps, 1, SYN).destination, READY);
    assert_eq!(send(&maps, 1, ACK).destination, READY);
    set(&maps.destinations[READY as usize], destination_flag::REMOVED);
    list(&maps, Kind::Rr, &[(1, NEXT)]);
    for flags in [ACK, SYN, FIN, RST] {
        maps.pass_time(200);
        assert_eq!(
            send(&maps, 1, flags),
            Verdict::stay(DestinationRemoved),
            "{flags:#04x}"
        );
    }
    // 900 s after the last packet that was forwarded, whatever has come since.
    maps.pass_time(101);
    assert_eq!(send(&maps, 1, ACK).reason, NoConnection);
    assert_eq!(send(&maps, 1, SYN).destination, NEXT);
    assert_eq!(maps.counts[READY as usize].connections.load(), 0);
}

#[test]
fn a_connection_that_is_over_starts_anew_while_its_destination_is_gone() {
    for flags in [SYN, SYN | ACK] {
        let maps = director(Kind::Rr, IpProto::TCP);
        for flags in [SYN, ACK, RST] {
            assert_eq!(send(&maps, 1, flags).destination, READY);
        }
        set(&maps.destinations[READY as usize], destination_flag::REMOVED);
        list(&maps, Kind::Rr, &[(1, NEXT)]);
        assert_eq!(send(&maps, 1, ACK).reason, DestinationRemoved);
        let verdict = send(&maps, 1, flags);
        assert_eq!(
            (verdict.reason, verdict.destination),
            (NewConnection, NEXT),
            "{flags:#04x}"
        );
    }
}

#[test]
fn a_deleted_services_connections_are_dropped() {
    let maps = director(Kind::Rr, IpProto::TCP);
    assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
    set(&maps.destinations[READY as usize], destination_flag::REMOVED);
    list(&maps, Kind::Tombstone, &[]);
    assert_eq!(send(&maps, 1, ACK).reason, DestinationRemoved);
    assert_eq!(send(&maps, 2, SYN).reason, NotForUs);
}

#[test]
fn an_entry_of_another_services_flow_is_no_hit() {
    let maps = director(Kind::Rr, IpProto::TCP);
    assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
    // The same tag, as of another service's flow.
    maps.destinations[READY as usize]
        .place
        .store(2 << 32 | u64::from(INGRESS));
    let row = maps.cold.iter().find(|row| row.ports.load() != 0).expect("a row");
    row.address[1].store(row.address[1].load() ^ 1);
    assert_eq!(send(&maps, 1, ACK).reason, NoConnection);
}

/// As of a service for all ports, beside which one for this port was added later.
#[test]
fn a_connection_stays_where_it_began_when_another_service_takes_its_packets() {
    let maps = director(Kind::Rr, IpProto::TCP);
    assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
    maps.destinations[READY as usize]
        .place
        .store(2 << 32 | u64::from(INGRESS));
    for flags in [ACK, SYN, FIN, ACK] {
        let verdict = send(&maps, 1, flags);
        assert_eq!((verdict.reason, verdict.destination), (Connection, READY));
    }
}

#[test]
fn another_flow_of_the_same_tag_is_a_collision() {
    for (kind, reason) in [(Kind::Rr, TagCollision), (Kind::Sh, Untracked)] {
        let maps = director(kind, IpProto::TCP);
        assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
        assert_eq!(send(&maps, 1, ACK).reason, Connection);
        // The entry's row is another client's, as if their tags were the same.
        let row = maps.cold.iter().find(|row| row.ports.load() != 0).expect("a row");
        row.client[1].store(row.client[1].load() ^ 1);
        for flags in [SYN, SYN | ACK] {
            assert_eq!(send(&maps, 1, flags).reason, reason, "{flags:#04x}");
        }
        assert_eq!(send(&maps, 1, FIN).reason, NoConnection);
        assert_eq!(live(&maps), 1);
        assert_eq!(
            maps.counts[READY as usize].connections.load(),
            1,
            "the other's is as it was"
        );
    }
}

#[test]
fn without_room_a_hash_goes_on_untracked_and_others_are_refused() {
    for (kind, reason) in [(Kind::Rr, TableFull), (Kind::Mh, Untracked)] {
        let maps = director(kind, IpProto::TCP);
        for port in 1..=16 {
            assert_eq!(send(&maps, port, SYN).reason, NewConnection);
            assert_eq!(send(&maps, port, ACK).reason, Connection);
        }
        let verdict = send(&maps, 99, SYN);
        assert_eq!(verdict.reason, reason);
        assert_eq!(verdict.to, if reason == Untracked { mac(READY) } else { Mac(0) });
        // Nothing was given up for it, and what expires makes room.
        for port in 1..=16 {
            assert_eq!(send(&maps, port, ACK).reason, Connection);
        }
        maps.pass_time(901);
        assert_eq!(send(&maps, 99, SYN).reason, NewConnection);
    }
}

#[test]
fn a_second_lookup_finds_what_did_not_fit_into_the_first_bucket() {
    let maps = director(Kind::Rr, IpProto::TCP);
    let hash = hash::service(maps.control.key(), Address::from_ipv4(VIP), 80, IpProto::TCP.0);
    let (first, second) = index_buckets(hash, maps.control.service_mask.load());
    let bucket = |index: u32| &maps.service_index[index as usize].0;
    for word in bucket(first) {
        word.store(index_word(!hash, 2));
    }
    assert_eq!(send(&maps, 1, SYN).reason, NotForUs);
    bucket(second)[7].store(index_word(hash, SERVICE));
    assert_eq!(send(&maps, 1, SYN).reason, NewConnection);
    // A service of the same tag in the first bucket is another one.
    bucket(first)[3].store(index_word(hash, 2));
    assert_eq!(
        send(&maps, 2, SYN).reason,
        NotForUs,
        "the other one's row is looked at"
    );
    maps.control.flags.store(control_flag::TWINS);
    assert_eq!(send(&maps, 1, ACK).reason, Connection);
    assert_eq!(send(&maps, 2, SYN).reason, NewConnection);
}

/// Any sequence of a flow's packets goes to one and the same destination until the connection is over.
#[test]
fn a_flow_keeps_its_destination() {
    let maps = director(Kind::Rr, IpProto::TCP);
    let mut step = 1u32;
    for port in 1_001..1_200u16 {
        let first = send(&maps, port, SYN);
        assert_eq!(first.reason, NewConnection);
        for _ in 0..5 {
            step = step.wrapping_mul(0x9E37_79B1) ^ 1;
            let flags = [SYN, ACK, FIN, ACK | 8][step as usize >> 20 & 3];
            let packet = parse::parse(&frame(IpProto::TCP, port, flags)[..]).expect("a packet");
            let hash = hash::flow(maps.control.key(), &Flow::new(&packet, SERVICE));
            let state =
                find(&maps, Key::new(hash, maps.control.bucket_mask.load())).map(|(_, entry)| entry.state());
            let verdict = send(&maps, port, flags);
            if flags & SYN == 0 || !state.is_some_and(State::is_over) {
                assert_eq!(
                    (verdict.reason, verdict.to),
                    (Connection, first.to),
                    "{port} {flags:#04x}"
                );
            } else {
                break;
            }
        }
        maps.pass_time(901);
    }
}
