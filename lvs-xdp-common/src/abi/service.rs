//! Services: their index, their rows, and the words of lists and rings.

use crate::{
    atomic::Word,
    packet::{Address, IpProto},
};

/// The most destinations that one service can have.
pub const LIST_MAX: u32 = 4096;

/// A bucket of the service index: words of [`index_word`]; 0 is free. The second bucket of a service
/// is looked at only where the first has no free word.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct IndexBucket(pub [Word; 8]);

/// Set in every word of the index, so that a free one is found under no hash.
const TAGGED: u64 = 1 << 62;

/// The word of the service index for a service hash and id.
#[inline(always)]
pub const fn index_word(hash: u64, id: u32) -> u64 {
    hash & !0xffff_ffff | TAGGED | id as u64
}

/// The two buckets of the service index for a service hash.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "masked to the number of buckets, at most 2^16"
)]
pub fn index_buckets(hash: u64, mask: u64) -> (u32, u32) {
    let first = hash & mask;
    (first as u32, ((hash >> 16 | 1) & mask ^ first) as u32)
}

/// One service, 128 bytes. The first line is what a packet needs; the second is the agent's.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ServiceRow {
    /// The virtual address, in halves.
    pub address: [Word; 2],
    /// Bits 0..16 port, 16..24 protocol.
    pub identity: Word,
    /// [`service_flag`]s.
    pub flags: Word,
    /// The list of each of the two configurations: [`ListWord`].
    pub lists: [Word; 2],
    /// The ring of each of the two configurations: [`RingWord`].
    pub rings: [Word; 2],
    /// Connections, packets and bytes of destinations that were removed. The agent's.
    pub retired: [Word; 3],
    /// What else the service says, for each of the two configurations: [`Options`]. A hit does not read it.
    pub options: [Word; 2],
    spare: [Word; 3],
}

/// Flags of [`ServiceRow::flags`].
pub mod service_flag {
    /// The virtual address is an address of the host.
    pub const LOCAL: u64 = 1;
}

impl ServiceRow {
    /// Whether this is the row of that service.
    #[inline(always)]
    pub fn is(&self, address: Address, identity: u64) -> bool {
        self.identity.load() == identity
            && self.address[1].load() == address.low()
            && self.address[0].load() == address.high()
    }

    /// What a service of a firewall mark has for its address; its identity is 0. Of the address family, with the
    /// mark as the lowest bits: no address of a packet is like that.
    #[inline(always)]
    pub const fn mark(mark: u32, is_ipv4: bool) -> Address {
        Address::from_halves(if is_ipv4 { 4 } else { 6 }, mark as u64)
    }

    /// Whether it is a service of a firewall mark.
    #[inline(always)]
    pub fn is_mark(&self) -> bool {
        self.identity.load() == 0
    }

    /// The word [`Self::identity`] for a port and protocol.
    #[inline(always)]
    pub fn identity(port: u16, protocol: IpProto) -> u64 {
        u64::from(port) | u64::from(protocol.0) << 16
    }
}

/// What a service says beside its scheduler, in one word:
/// `client mask 32 | flags 10 | persistence's time-out 22`, from the top.
///
/// The mask is IPv4's, or IPv6's prefix length. What is a setting of the whole director is merged in by the
/// agent, so that the program looks in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options(pub u64);

impl Options {
    /// Each packet is scheduled by itself, and leaves no entry (UDP).
    pub const ONE_PACKET: u64 = 1 << 22;
    /// A removed destination's connections are scheduled anew; without it their packets are dropped.
    pub const RESCHEDULE: u64 = 1 << 23;
    /// A removed destination's TCP connections are answered with a reset.
    pub const RESET: u64 = 1 << 24;
    /// expire_nodest_conn: a SYN on a connection whose destination has weight 0 is scheduled anew.
    pub const EXPIRE_NODEST: u64 = 1 << 25;
    /// expire_quiescent_template: a template whose destination has weight 0 is void.
    pub const EXPIRE_QUIESCENT: u64 = 1 << 26;
    /// conn_reuse_mode is not 0: a SYN on a connection that is over is scheduled anew.
    pub const REUSE: u64 = 1 << 27;
    /// conn_reuse_mode has bit 1: after the client's FIN, too.
    pub const REUSE_FIN_WAIT: u64 = 1 << 28;
    /// sloppy_tcp: any TCP packet may start a connection.
    pub const SLOPPY_TCP: u64 = 1 << 29;
    /// sloppy_sctp: the same of SCTP.
    pub const SLOPPY_SCTP: u64 = 1 << 30;
    /// No packet leaves or finds an entry: the ring says where each goes.
    pub const STATELESS: u64 = 1 << 31;

    const TIMEOUT: u64 = (1 << 22) - 1;

    /// Packs a service's options: flags, persistence's time-out in seconds (0: none), client mask.
    pub const fn new(flags: u64, timeout: u32, mask: u32) -> Self {
        Self(flags | timeout as u64 & Self::TIMEOUT | (mask as u64) << 32)
    }

    /// Whether one of these flags is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether any packet of this protocol may start a connection.
    #[inline(always)]
    pub const fn is_sloppy(self, protocol: IpProto) -> bool {
        self.has(if protocol.0 == IpProto::SCTP.0 {
            Self::SLOPPY_SCTP
        } else {
            Self::SLOPPY_TCP
        })
    }

    /// Whether clients stay with their destination.
    #[inline(always)]
    pub const fn is_persistent(self) -> bool {
        self.0 & Self::TIMEOUT != 0
    }

    /// Seconds that a template lives without use.
    #[inline(always)]
    pub const fn timeout(self) -> u32 {
        (self.0 & Self::TIMEOUT) as u32
    }

    /// The client mask: IPv4's netmask in host byte order, IPv6's prefix length.
    #[inline(always)]
    pub const fn mask(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What the program does with a service's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// There is no such service in this configuration.
    Absent = 0,
    /// It was deleted; entries that name its destinations may remain.
    Tombstone = 1,
    /// Round robin.
    Rr = 2,
    /// Weighted round robin.
    Wrr = 3,
    /// The highest weight.
    Fo = 4,
    /// Source hashing.
    Sh = 5,
    /// Destination hashing.
    Dh = 6,
    /// Maglev hashing.
    Mh = 7,
    /// Least connections.
    Lc = 8,
    /// Weighted least connections.
    Wlc = 9,
    /// Shortest expected delay.
    Sed = 10,
    /// Never queue.
    Nq = 11,
    /// The highest weight that has room.
    Ovf = 12,
    /// Locality-based least connections.
    Lblc = 13,
    /// The same, with a set of destinations.
    Lblcr = 14,
}

impl Kind {
    /// The kind of this number; what no version knows is [`Kind::Absent`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Tombstone,
            2 => Self::Rr,
            3 => Self::Wrr,
            4 => Self::Fo,
            5 => Self::Sh,
            6 => Self::Dh,
            7 => Self::Mh,
            8 => Self::Lc,
            9 => Self::Wlc,
            10 => Self::Sed,
            11 => Self::Nq,
            12 => Self::Ovf,
            13 => Self::Lblc,
            14 => Self::Lblcr,
            _ => Self::Absent,
        }
    }

    /// Whether the destination follows from the packet alone, so that a flow needs no entry to stay with it.
    #[inline(always)]
    pub const fn is_hash(self) -> bool {
        matches!(self, Self::Sh | Self::Dh | Self::Mh)
    }
}

/// Which list a service has: kind, where it lies, how long it is, and its generation.
///
/// An extent of a list of n destinations in [`LISTS`](super::name::LISTS): word 0 is wrr's `mw << 32 | di`, words
/// 1 to n are [`ListEntry`]s in the schedulers' order, and then come, four to a word, the places
/// that the cursor's positions 0.. of the generation before become in this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListWord(pub u64);

impl ListWord {
    /// Packs a list's description. `offset` is in words, below 2^30.
    pub const fn new(kind: Kind, offset: u32, length: u32, generation: u16, restart: bool) -> Self {
        Self(
            kind as u64
                | (restart as u64) << 4
                | (length as u64) << 5
                | (generation as u64) << 18
                | (offset as u64) << 34,
        )
    }

    /// What the service is.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        Kind::from_number(self.0 & 0xf)
    }

    /// The same list, for a scheduler of this number.
    #[inline(always)]
    #[must_use]
    pub const fn scheduled_by(self, kind: u32) -> Self {
        Self(self.0 & !0xf | kind as u64 & 0xf)
    }

    /// Whether the scheduler starts anew, as after a change of scheduler.
    #[inline(always)]
    pub const fn restart(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// Number of destinations, at most [`LIST_MAX`].
    #[inline(always)]
    pub const fn length(self) -> u32 {
        (self.0 >> 5 & 0x1fff) as u32
    }

    /// Counts this service's lists.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 18 & 0xffff) as u16
    }

    /// First word of the extent.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 34) as u32
    }
}

/// One destination in a list: its effective weight and its id, and whether it has an upper threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListEntry(pub u64);

impl ListEntry {
    const LIMITED: u64 = 1 << 31;

    /// Packs an entry.
    #[inline(always)]
    pub const fn new(weight: u32, id: u32, is_limited: bool) -> Self {
        Self((weight as u64) << 32 | id as u64 | if is_limited { Self::LIMITED } else { 0 })
    }

    /// The effective weight.
    #[inline(always)]
    pub const fn weight(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The destination's id.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }

    /// Whether it can be overloaded: then its counts say whether it is.
    #[inline(always)]
    pub const fn is_limited(self) -> bool {
        self.0 & Self::LIMITED != 0
    }
}

/// Which ring a service has: flags, number of slots, and where it lies. A word holds four slots; a
/// slot is an index into the service's list, or [`RingWord::EMPTY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingWord(pub u64);

impl RingWord {
    /// A slot without a destination.
    pub const EMPTY: u16 = 0xffff;

    /// Packs a ring's description. `slots` is below 2^18, `offset` in words.
    pub const fn new(offset: u32, slots: u32, fallback: bool, port: bool) -> Self {
        Self(fallback as u64 | (port as u64) << 1 | (slots as u64) << 2 | (offset as u64) << 32)
    }

    /// Whether an unusable destination's clients are hashed again.
    #[inline(always)]
    pub const fn fallback(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the client's port is hashed with its address.
    #[inline(always)]
    pub const fn port(self) -> bool {
        self.0 & 2 != 0
    }

    /// Number of slots.
    #[inline(always)]
    pub const fn slots(self) -> u32 {
        (self.0 >> 2 & 0x3_ffff) as u32
    }

    /// First word of the extent.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Where rr and wrr stand in a service's list: one word, changed by compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The generation of the list that the position is a place in.
    pub generation: u16,
    /// 0: before the list's head; i + 1: at the destination of index i, chosen last.
    pub position: u16,
    /// wrr's current weight.
    pub current_weight: u32,
}

impl Cursor {
    /// From the word in the map.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the parts are wanted")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            generation: (word >> 48) as u16,
            position: (word >> 32) as u16,
            current_weight: word as u32,
        }
    }

    /// The word for the map.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.generation as u64) << 48 | (self.position as u64) << 32 | self.current_weight as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn list_words_keep_their_parts(
            kind in 0..15u64, offset in 0..1u32 << 30, length in 0..=LIST_MAX, generation: u16, restart: bool
        ) {
            let word = ListWord::new(Kind::from_number(kind), offset, length, generation, restart);
            prop_assert_eq!(
                (word.kind() as u64, word.offset(), word.length(), word.generation(), word.restart()),
                (kind, offset, length, generation, restart)
            );
        }

        #[test]
        fn ring_words_keep_their_parts(offset: u32, slots in 0..1u32 << 18, fallback: bool, port: bool) {
            let word = RingWord::new(offset, slots, fallback, port);
            prop_assert_eq!(
                (word.offset(), word.slots(), word.fallback(), word.port()),
                (offset, slots, fallback, port)
            );
        }

        #[test]
        fn list_entries_keep_their_parts(weight: u32, id in 0..1u32 << 20, limited: bool) {
            let entry = ListEntry::new(weight, id, limited);
            prop_assert_eq!((entry.weight(), entry.id(), entry.is_limited()), (weight, id, limited));
        }

        #[test]
        fn options_keep_their_parts(timeout in 0..=2_678_400u32, mask: u32, bit in 22..30u64) {
            let options = Options::new(1 << bit, timeout, mask);
            prop_assert_eq!((options.timeout(), options.mask()), (timeout, mask));
            for other in 22..30 {
                prop_assert_eq!(options.has(1 << other), other == bit);
            }
        }

        #[test]
        fn cursors_keep_their_parts(generation: u16, position: u16, current_weight: u32) {
            let cursor = Cursor { generation, position, current_weight };
            prop_assert_eq!(Cursor::from_word(cursor.word()), cursor);
        }

        #[test]
        fn the_two_buckets_of_a_service_differ(hash: u64, bits in 1..16u32) {
            let (first, second) = index_buckets(hash, (1 << bits) - 1);
            prop_assert_ne!(first, second);
            prop_assert!(first < 1 << bits && second < 1 << bits);
        }
    }
}
