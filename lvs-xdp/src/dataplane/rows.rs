//! Rows and their words: from the model's types to the maps' layout and back. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lvs_xdp_common::{
    abi::{
        Control, DestinationRow, IndexBucket, Kind, ListWord, RingWord, ServiceRow, destination_flag,
        index_buckets, index_word, list_entry,
    },
    atomic::Word,
    packet::{Address, Mac},
    ring::{self, MH_SLOTS, Member},
    scheduler::HASH_SLOTS,
};

use super::{compile::Way, extents::Extent};
use crate::api::types::{Protocol, Scheduler, ServerKey, ServiceKey};

/// Enters a word into the service index: into its first bucket, or, where that is full or has a word
/// of the same tag, into its second. The program looks at the second for the same two reasons.
pub(super) fn enter_index(index: &[IndexBucket], hash: u64, mask: u64, id: u32) {
    let (first, second) = index_buckets(hash, mask);
    let tag = index_word(hash, 0) >> 32;
    let free = [first, second]
        .into_iter()
        .filter_map(|bucket| index.get(bucket as usize))
        .filter(|bucket| {
            bucket
                .0
                .iter()
                .all(|word| word.load() == 0 || word.load() >> 32 != tag)
        })
        .flat_map(|bucket| &bucket.0)
        .find(|word| word.load() == 0);
    if let Some(word) = free {
        word.store(index_word(hash, id));
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
                .map(|(member, &id)| list_entry(member.weight, id)),
        )
        .chain(ring::pack(&places))
        .collect()
}

pub(super) fn ring_words(kind: Kind, members: &[Member]) -> Vec<u64> {
    let slots = match kind {
        Kind::Sh => ring::source_hash(members),
        Kind::Dh => ring::destination_hash(members),
        Kind::Mh => ring::maglev(members),
        Kind::Absent | Kind::Tombstone | Kind::Rr | Kind::Wrr | Kind::Fo => Vec::new(),
    };
    ring::pack(&slots).collect()
}

pub(super) fn slots(kind: Kind) -> u32 {
    match kind {
        Kind::Sh | Kind::Dh => HASH_SLOTS,
        Kind::Mh => MH_SLOTS,
        Kind::Absent | Kind::Tombstone | Kind::Rr | Kind::Wrr | Kind::Fo => 0,
    }
}

pub(super) fn kind(scheduler: Scheduler) -> Kind {
    match scheduler {
        Scheduler::Rr => Kind::Rr,
        Scheduler::Wrr => Kind::Wrr,
        Scheduler::Fo => Kind::Fo,
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
    let flags = row.towards.load() & !(Mac::MASK | destination_flag::RESOLVED);
    let Some(Way {
        mac,
        source_mac,
        if_index,
    }) = way
    else {
        row.towards.store(flags);
        return;
    };
    row.from.store(Mac::from_octets(source_mac).0);
    row.place
        .store(row.place.load() & !0xffff_ffff | u64::from(if_index));
    row.towards
        .store(flags | destination_flag::RESOLVED | Mac::from_octets(mac).0);
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

pub(super) fn service_key(row: &ServiceRow) -> Option<ServiceKey> {
    let identity = row.identity.load();
    let protocol = match identity >> 16 & 0xff {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let address = ip(Address::from_halves(row.address[0].load(), row.address[1].load()));
    Some(ServiceKey {
        protocol,
        address,
        port: port(identity),
    })
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
