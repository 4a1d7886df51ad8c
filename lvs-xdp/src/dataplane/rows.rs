//! Rows and their words: from the model's types to the maps' layout and back. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lvs_xdp_common::{
    abi::{
        Control, DestinationRow, IndexBucket, Kind, ListEntry, ListWord, Options, RingWord, ServiceRow, Tags,
        TunnelRow, control_flag, destination_flag, index_buckets, index_word,
    },
    atomic::Word,
    packet::{Address, IpProto, Mac},
    ring::{self, MH_SLOTS, Member},
    scheduler::HASH_SLOTS,
    tunnel::{self, How},
};

use super::{
    compile::{TunnelWay, Way},
    extents::Extent,
};
use crate::api::types::{
    ClientMask, ForwardingMethod, Protocol, Removal, Scheduler, ServerKey, ServerSpec, ServiceKey,
    ServiceSpec, Settings, TunnelChecksum, TunnelKind,
};

/// The word of the service index that was a service's, in a bucket that is full: it names row 0, which is no
/// service, and keeps the bucket full for those who look in their second one because of that.
const LEFT: u64 = index_word(1 << 32, 0);

/// Enters a word into the service index: into its first bucket, or, where that is full or has a word
/// of the same tag, into its second. The program looks at the second for the same two reasons, the latter of which
/// it is told of by [`control_flag::TWINS`].
pub(super) fn enter_index(index: &[IndexBucket], control: &Control, hash: u64, id: u32) {
    let (first, second) = index_buckets(hash, control.service_mask.load());
    let tag = index_word(hash, 0) >> 32;
    let has_twin = |bucket: &&IndexBucket| {
        let mut words = bucket.0.iter().map(Word::load);
        words.any(|word| low(word) != 0 && word >> 32 == tag)
    };
    let buckets = || {
        [first, second]
            .into_iter()
            .filter_map(|bucket| index.get(bucket as usize))
    };
    if buckets().any(|bucket| has_twin(&bucket)) {
        control.flags.store(control.flags.load() | control_flag::TWINS);
    }
    let free = buckets()
        .filter(|bucket| !has_twin(bucket))
        // Where the program looks first comes first.
        .flat_map(|bucket| (0..8).map(move |slot| &bucket.0[slot ^ (tag & 7) as usize]))
        .find(|word| low(word.load()) == 0);
    if let Some(word) = free {
        word.store(index_word(hash, id));
    }
}

/// Takes a service's word out of the service index: out of the two buckets in which [`enter_index`] may have put it.
pub(super) fn leave_index(index: &[IndexBucket], control: &Control, hash: u64, id: u32) {
    let (first, second) = index_buckets(hash, control.service_mask.load());
    let buckets = [first, second].into_iter();
    for bucket in buckets.filter_map(|bucket| index.get(bucket as usize)) {
        let is_full = bucket.0.iter().all(|word| word.load() != 0);
        let own = bucket.0.iter().filter(|word| low(word.load()) == id);
        own.for_each(|word| word.store(if is_full { LEFT } else { 0 }));
    }
}

pub(super) fn live(control: &Control) -> usize {
    usize::from(control.generation.load() & 1 == 1)
}

pub(super) fn list_words(members: &[Member], ids: &[u32], old_ids: &[u32]) -> Vec<u64> {
    let (di, mw) = ring::weighted_marks(members.iter().map(|member| member.weight));
    let places = ring::places(old_ids, ids);
    std::iter::once(u64::from(mw) << 32 | u64::from(di))
        .chain(
            members
                .iter()
                .zip(ids)
                .map(|(member, &id)| ListEntry::new(member.weight, id, member.is_limited).0),
        )
        .chain(ring::pack(&places))
        .collect()
}

pub(super) fn ring_words(kind: Kind, members: &[Member]) -> Vec<u64> {
    let slots = match kind {
        Kind::Sh => ring::source_hash(members),
        Kind::Dh => ring::destination_hash(members),
        Kind::Mh => ring::maglev(members),
        _ => Vec::new(),
    };
    ring::pack(&slots).collect()
}

pub(super) fn slots(kind: Kind) -> u32 {
    match kind {
        Kind::Sh | Kind::Dh => HASH_SLOTS,
        Kind::Mh => MH_SLOTS,
        _ => 0,
    }
}

/// What a service says beside its scheduler; its own settings take the place of the director's.
pub(super) fn options(spec: &ServiceSpec, director: Settings) -> Options {
    let own = &spec.settings;
    let is_set = |own: Option<u32>, director: u32| own.unwrap_or(director) != 0;
    let expires_nodest = is_set(own.expire_nodest_conn, director.expire_nodest_conn);
    // A client that was never answered may come again from the same port: that is a new connection, too.
    let starts_anew = spec.check.is_some() && own.expire_nodest_conn.is_none();
    let reuse = own.conn_reuse_mode.unwrap_or(director.conn_reuse_mode);
    let removal = spec.removal.unwrap_or(if expires_nodest {
        Removal::Reschedule
    } else {
        Removal::Drop
    });
    let flags = [
        (spec.one_packet, Options::ONE_PACKET),
        (spec.stateless, Options::STATELESS),
        (removal == Removal::Reschedule, Options::RESCHEDULE),
        (removal == Removal::Reset, Options::RESET),
        (expires_nodest || starts_anew, Options::EXPIRE_NODEST),
        (
            is_set(own.expire_quiescent_template, director.expire_quiescent_template),
            Options::EXPIRE_QUIESCENT,
        ),
        (reuse != 0, Options::REUSE),
        (reuse & 2 != 0, Options::REUSE_FIN_WAIT),
        (is_set(own.sloppy_tcp, director.sloppy_tcp), Options::SLOPPY_TCP),
        (
            is_set(own.sloppy_sctp, director.sloppy_sctp),
            Options::SLOPPY_SCTP,
        ),
    ];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
    let persistence = spec.persistence.as_ref();
    let mask = match persistence.and_then(|persistence| persistence.mask) {
        Some(ClientMask::V4(mask)) => mask.to_bits(),
        Some(ClientMask::V6(length)) => u32::from(length),
        None if spec.key.is_ipv6() => 128,
        None => u32::MAX,
    };
    Options::new(
        flags.fold(0, |all, (_, flag)| all | flag),
        persistence.map_or(0, |persistence| persistence.timeout),
        mask,
    )
}

/// The word of [`Counts::limits`](lvs_xdp_common::abi::Counts::limits): with no lower threshold three quarters of
/// the upper one take its place (`ip_vs_unbind_dest`).
pub(super) fn limits(server: &ServerSpec) -> u64 {
    let ServerSpec {
        upper_threshold: upper,
        lower_threshold: lower,
        ..
    } = *server;
    let release = if lower == 0 { upper - upper / 4 } else { lower };
    if upper == 0 {
        0
    } else {
        u64::from(upper) << 32 | u64::from(release)
    }
}

pub(super) fn kind(scheduler: Scheduler) -> Kind {
    match scheduler {
        Scheduler::Rr => Kind::Rr,
        Scheduler::Wrr => Kind::Wrr,
        Scheduler::Lc => Kind::Lc,
        Scheduler::Wlc => Kind::Wlc,
        Scheduler::Lblc => Kind::Lblc,
        Scheduler::Lblcr => Kind::Lblcr,
        Scheduler::Sed => Kind::Sed,
        Scheduler::Nq => Kind::Nq,
        Scheduler::Fo => Kind::Fo,
        Scheduler::Ovf => Kind::Ovf,
        Scheduler::Sh => Kind::Sh,
        Scheduler::Dh => Kind::Dh,
        Scheduler::Mh => Kind::Mh,
    }
}

/// The extent of a list that is found in the maps. Its places are not needed again, since the cursor
/// is carried over before it is replaced; so only the list itself counts.
pub(super) fn list_extent(word: ListWord) -> Extent {
    match word.kind() {
        Kind::Absent | Kind::Tombstone => Extent::default(),
        _ => Extent {
            offset: word.offset(),
            length: 1 + word.length(),
        },
    }
}

pub(super) fn ring_extent(word: RingWord) -> Extent {
    Extent {
        offset: word.offset(),
        length: word.slots().div_ceil(4),
    }
}

pub(super) fn store(words: &[Word], extent: Extent, values: &[u64]) {
    for (word, value) in words.iter().skip(extent.offset as usize).zip(values) {
        word.store(*value);
    }
}

pub(super) fn store_way(row: &DestinationRow, way: Option<Way>) {
    const WAY: u64 =
        Mac::MASK | destination_flag::RESOLVED | destination_flag::LOCAL | destination_flag::VLAN;
    let others = row.towards.load() & !(WAY | destination_flag::SPECIAL);
    let towards = match way {
        None => 0,
        Some(Way::Local) => destination_flag::LOCAL,
        Some(Way::Neighbour {
            mac,
            source_mac,
            if_index,
            tags,
        }) => {
            let (from, port) = tags.unwrap_or_default().words();
            row.from.store(Mac::from_octets(source_mac).0 | from);
            row.port.store(row.port.load() & !Tags::PORT_BITS | port);
            row.place
                .store(row.place.load() & !0xffff_ffff | u64::from(if_index));
            let is_tagged = tags.map_or(0, |_| destination_flag::VLAN);
            destination_flag::RESOLVED | is_tagged | Mac::from_octets(mac).0
        }
    };
    let flags = others | towards;
    let is_special =
        flags & (destination_flag::LOCAL | destination_flag::TUNNEL | destination_flag::VLAN) != 0;
    row.towards
        .store(flags | if is_special { destination_flag::SPECIAL } else { 0 });
}

/// The way that a destination's row says.
pub(super) fn way(row: &DestinationRow) -> Option<Way> {
    let towards = row.towards.load();
    if towards & destination_flag::LOCAL != 0 {
        return Some(Way::Local);
    }
    (towards & destination_flag::RESOLVED != 0).then(|| Way::Neighbour {
        mac: Mac(towards & Mac::MASK).octets(),
        source_mac: Mac(row.from.load() & Mac::MASK).octets(),
        if_index: low(row.place.load()),
        tags: (towards & destination_flag::VLAN != 0).then(|| row.tags()),
    })
}

/// The part of [`TunnelRow::how`] that is configured.
pub(super) const TUNNEL_WORD: u64 = 0xffff_ffff;

/// That part of a real server's row; 0 where it has no tunnel.
pub(super) fn tunnel_word(method: ForwardingMethod) -> u64 {
    let Some(tunnel) = method.tunnel() else {
        return 0;
    };
    let kind = match tunnel.kind() {
        TunnelKind::Ipip => tunnel::Kind::Ip,
        TunnelKind::Gue => tunnel::Kind::Gue,
        TunnelKind::Gre => tunnel::Kind::Gre,
    };
    // What comes over a wire has its checksum, so that it cannot be left to the receiver (`ipvs_gue_encap`).
    let has_checksum = matches!(
        tunnel.checksum(),
        Some(TunnelChecksum::On | TunnelChecksum::Remote)
    );
    How::new(kind, has_checksum, tunnel.port().unwrap_or(0), 0, 0).0
}

/// Writes what outer packets say. Where the way is not known, the destination is not resolved.
pub(super) fn store_tunnel(row: &TunnelRow, word: u64, way: Option<&TunnelWay>) {
    let Some(TunnelWay {
        source, spread, mtu, ..
    }) = way
    else {
        row.how.store(word);
        return;
    };
    let source = address(*source);
    row.source[0].store(source.high());
    row.source[1].store(source.low());
    row.how.store(How(word).on(*mtu, *spread).0);
}

/// The way that the rows of a destination say, which has a tunnel.
pub(super) fn tunnel_way(row: &DestinationRow, tunnel: &TunnelRow) -> Option<TunnelWay> {
    let has_tunnel = row.towards.load() & destination_flag::TUNNEL != 0;
    let how = How(tunnel.how.load());
    let source = Address::from_halves(tunnel.source[0].load(), tunnel.source[1].load());
    Some(TunnelWay {
        way: has_tunnel.then(|| way(row))??,
        source: ip(source),
        spread: how.spread_bits(),
        mtu: how.mtu(),
    })
}

/// An address as the maps have it.
pub fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.to_bits()),
        IpAddr::V6(address) => Address::from_octets(address.octets()),
    }
}

/// An address from the maps.
pub fn ip(address: Address) -> IpAddr {
    if address.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from_bits(low(address.low())))
    } else {
        IpAddr::V6(Ipv6Addr::from(address.octets()))
    }
}

/// The address and identity under which a service has its row.
pub fn service_row(key: &ServiceKey) -> (Address, u64) {
    match *key {
        ServiceKey::Endpoint {
            protocol,
            address: vip,
            port,
        } => (
            address(vip),
            ServiceRow::identity(port, IpProto(protocol.number())),
        ),
        ServiceKey::Mark { mark, ipv6 } => (ServiceRow::mark(mark, !ipv6), 0),
    }
}

pub(super) fn service_key(row: &ServiceRow) -> Option<ServiceKey> {
    let identity = row.identity.load();
    let address = Address::from_halves(row.address[0].load(), row.address[1].load());
    if row.is_mark() {
        let mark = low(address.low());
        let key = |ipv6| ServiceKey::Mark { mark, ipv6 };
        // A row that is not used has no address.
        return [key(false), key(true)]
            .into_iter()
            .find(|key| mark != 0 && service_row(key).0 == address);
    }
    let protocol = Protocol::from_number(u8::try_from(identity >> 16 & 0xff).ok()?)?;
    Some(ServiceKey::new(protocol, ip(address), port(identity)))
}

pub(super) fn server_key(row: &DestinationRow) -> ServerKey {
    let address = ip(Address::from_halves(row.address[0].load(), row.address[1].load()));
    ServerKey {
        address,
        port: port(row.port.load()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits are wanted")]
pub(super) fn port(word: u64) -> u16 {
    word as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
pub(super) fn low(word: u64) -> u32 {
    word as u32
}

pub(super) fn high(word: u64) -> u32 {
    low(word >> 32)
}

pub(super) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

pub(super) fn length<T>(rows: &[T]) -> u32 {
    count(rows.len())
}

#[cfg(test)]
mod tests {
    use lvs_xdp_common::{director, hash, maps::memory::Memory, reason::Reason};

    use super::*;
    use crate::api::types::Tunnel;

    #[test]
    fn rows_name_their_service() {
        let row = ServiceRow::default();
        assert_eq!(service_key(&row), None);
        let (mark, four) = (0xffff_ffff, IpAddr::from([10, 9, 0, 100]));
        for key in [
            ServiceKey::new(Protocol::Udp, four, 0),
            ServiceKey::new(Protocol::Sctp, "2001:db8::4".parse().unwrap(), 65535),
            ServiceKey::Mark { mark, ipv6: false },
            ServiceKey::Mark { mark: 4, ipv6: true },
        ] {
            let (address, identity) = service_row(&key);
            row.address[0].store(address.high());
            row.address[1].store(address.low());
            row.identity.store(identity);
            assert_eq!(service_key(&row), Some(key));
        }
    }

    const VIP: u32 = 0x0a09_0064;

    /// What becomes of an ACK for a port of the VIP: [`Reason::NoConnection`] where there is a service.
    fn found(maps: &Memory, port: u16) -> bool {
        let mut frame = [0; 60];
        frame[..18].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40]);
        frame[23] = 6;
        frame[30..34].copy_from_slice(&VIP.to_be_bytes());
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[35] = 1;
        frame[46..48].copy_from_slice(&[0x50, 0x10]);
        director::decide(&frame[..], maps, 1).reason == Reason::NoConnection
    }

    #[test]
    fn a_way_is_read_as_it_was_written_and_leaves_the_rest() {
        let row = DestinationRow::default();
        row.towards
            .store(destination_flag::USED | destination_flag::DRAINING);
        row.port.store(7 << 32 | 80);
        row.place.store(5 << 32);
        let neighbour = |tags| Way::Neighbour {
            mac: [2, 1, 2, 3, 4, 5],
            source_mac: [2, 5, 4, 3, 2, 1],
            if_index: 9,
            tags,
        };
        let tags = Tags {
            count: 2,
            outer: 10,
            inner: 20,
            is_outer_service: true,
            is_inner_service: false,
        };
        for (expected, is_special) in [
            (Some(neighbour(None)), false),
            (Some(neighbour(Some(Tags::default()))), true),
            (Some(neighbour(Some(tags))), true),
            (Some(Way::Local), true),
            (Some(neighbour(None)), false),
            (None, false),
        ] {
            store_way(&row, expected);
            assert_eq!(way(&row), expected);
            let flags = row.towards.load();
            assert_eq!(flags & destination_flag::SPECIAL != 0, is_special, "{expected:?}");
            assert_ne!(flags & destination_flag::USED, 0);
            assert_ne!(flags & destination_flag::DRAINING, 0);
            assert_eq!(
                (port(row.port.load()), high(row.port.load()), row.service()),
                (80, 7, 5)
            );
        }
        row.towards
            .store(destination_flag::USED | destination_flag::TUNNEL);
        store_way(&row, Some(neighbour(None)));
        assert_ne!(
            row.towards.load() & destination_flag::SPECIAL,
            0,
            "a tunnel is special by itself"
        );
    }

    #[test]
    fn a_tunnel_is_read_as_it_was_written() {
        let (row, tunnel) = (DestinationRow::default(), TunnelRow::default());
        row.towards.store(destination_flag::USED);
        assert_eq!(tunnel_word(ForwardingMethod::Dr), 0);
        for (method, word) in [
            (Tunnel::Ipip, 1),
            (
                Tunnel::Gue {
                    port: 6080,
                    checksum: TunnelChecksum::None,
                },
                0x17c0_0002,
            ),
            (
                Tunnel::Gue {
                    port: 6080,
                    checksum: TunnelChecksum::Remote,
                },
                0x17c0_0102,
            ),
            (Tunnel::Gre { checksum: false }, 3),
            (Tunnel::Gre { checksum: true }, 0x103),
        ] {
            assert_eq!(tunnel_word(ForwardingMethod::Tunnel(method)), word);
            let expected = TunnelWay {
                way: Way::Neighbour {
                    mac: [2, 1, 2, 3, 4, 5],
                    source_mac: [2, 5, 4, 3, 2, 1],
                    if_index: 9,
                    tags: None,
                },
                source: "fd00::1".parse().unwrap(),
                spread: 3,
                mtu: 1500,
            };
            assert_eq!(tunnel_way(&row, &tunnel), None, "it has no tunnel yet");
            row.towards
                .store(destination_flag::USED | destination_flag::TUNNEL);
            store_tunnel(&tunnel, word, Some(&expected));
            store_way(&row, Some(expected.way));
            assert_eq!(tunnel.how.load() & TUNNEL_WORD, word);
            assert_eq!(tunnel_way(&row, &tunnel), Some(expected));
            row.towards.store(destination_flag::USED);
        }
        // What is summed up has an end.
        store_tunnel(
            &tunnel,
            0x103,
            Some(&TunnelWay {
                way: Way::Local,
                source: "fd00::1".parse().unwrap(),
                spread: 0,
                mtu: u16::MAX,
            }),
        );
        assert_eq!(How(tunnel.how.load()).mtu(), tunnel::MOST_SUMMED);
    }

    #[test]
    fn services_of_one_bucket_are_found_whatever_others_come_and_go() {
        let maps = Memory::new(16, 64, 8);
        let mask = maps.control.service_mask.load();
        let hash_of = |port| hash::service(maps.control.key(), Address::from_ipv4(VIP), port, 6);
        // Twelve services whose first bucket is the same: four have to be in their second one.
        let ports: Vec<u16> = (1..u16::MAX)
            .filter(|port| index_buckets(hash_of(*port), mask).0 == 5)
            .take(12)
            .collect();
        let id_of = |port: u16| 1 + count(ports.iter().position(|other| *other == port).unwrap_or(99));
        for &port in &ports {
            let row = &maps.services[id_of(port) as usize];
            row.address[1].store(Address::from_ipv4(VIP).low());
            row.identity.store(ServiceRow::identity(port, IpProto::TCP));
            row.lists[0].store(ListWord::new(Kind::Rr, 0, 0, 0, false).0);
            enter_index(&maps.service_index, &maps.control, hash_of(port), id_of(port));
        }
        for &gone in &ports {
            leave_index(&maps.service_index, &maps.control, hash_of(gone), id_of(gone));
            for &port in &ports {
                assert_eq!(found(&maps, port), port != gone, "{port} while {gone} is gone");
            }
            enter_index(&maps.service_index, &maps.control, hash_of(gone), id_of(gone));
            assert!(found(&maps, gone), "{gone} is back");
        }
        // All that is left at last are words that name nothing.
        for &port in &ports {
            leave_index(&maps.service_index, &maps.control, hash_of(port), id_of(port));
        }
        assert!(ports.iter().all(|port| !found(&maps, *port)));
    }
}
