//! The layout of the maps: the contract between the program, the agent, and the next version of both.
//!
//! Every row is made of 64-bit words. Each word is written whole, so readers see its old or its new
//! value; what must change together with another word is either in the same word or becomes visible
//! by a third one (the generation bit of [`Control`], the entry's word of the connection table).
//!
//! A change of anything here raises [`ABI_VERSION`]: the directory of the pins carries it.

use crate::{
    atomic::Word,
    hash::HashKey,
    packet::{Address, IpProto, Mac},
};

/// The version of this layout.
pub const ABI_VERSION: u32 = 7;

/// The most destinations that one service can have.
pub const LIST_MAX: u32 = 4096;
/// Binary places of [`Control::seconds_per_jiffy`].
pub const SECONDS_SHIFT: u32 = 28;

/// The maps' names, as pinned and as in the object file.
pub mod name {
    /// [`super::Control`], one row.
    pub const CONTROL: &str = "CONTROL";
    /// Buckets of the service index.
    pub const SERVICE_INDEX: &str = "SERVICE_INDEX";
    /// [`super::ServiceRow`] by service id; row 0 is unused.
    pub const SERVICES: &str = "SERVICES";
    /// Destination lists, in extents.
    pub const LISTS: &str = "LISTS";
    /// Rings of the hash schedulers, in extents.
    pub const RINGS: &str = "RINGS";
    /// [`super::Cursor`] by service id.
    pub const CURSORS: &str = "CURSORS";
    /// [`super::DestinationRow`] by destination id; row 0 is unused.
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// [`super::Counts`] by destination id.
    pub const COUNTS: &str = "COUNTS";
    /// Per-CPU [`super::Counters`] by destination id.
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU packet counts by [`crate::reason::Reason`].
    pub const REASONS: &str = "REASONS";
    /// The connection table: buckets of entries' words.
    pub const HOT: &str = "HOT";
    /// Its companion: who the flow of each entry is.
    pub const COLD: &str = "COLD";
    /// MAC addresses of the director by interface.
    pub const INTERFACES: &str = "INTERFACES";
    /// Interfaces that frames are redirected to.
    pub const REDIRECT: &str = "REDIRECT";
    /// [`super::TunnelRow`] by destination id.
    pub const TUNNELS: &str = "TUNNELS";
    /// [`super::vip_flag`]s by virtual address (its two halves, a word each).
    pub const VIPS: &str = "VIPS";
    /// Where the fragments of a packet go: destination id, and in the upper half the second of the director's
    /// clock, by [`crate::unusual::FragmentKey`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`super::MarkRow`] by prefix of the destination address.
    pub const MARK_PREFIXES: &str = "MARK_PREFIXES";
    /// Rules of firewall marks, prefix by prefix: a configuration in each half.
    pub const MARK_RULES: &str = "MARK_RULES";
    /// MAC addresses, as a word each, of other directors that send packets to this one's local server.
    pub const PEERS: &str = "PEERS";
    /// Sockets of health checks: [`crate::steer::Row`] by [`crate::steer::Key`].
    pub const STEERED: &str = "STEERED";
    /// jiffies64 and CLOCK_MONOTONIC nanoseconds, written by the program `clock`.
    pub const CLOCK: &str = "CLOCK";
}

/// What holds for the whole director: one row, 384 bytes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Control {
    /// Bit 0: which of each service's two configurations is live.
    pub generation: Word,
    /// [`control_flag`]s.
    pub flags: Word,
    /// The secret of the flow hash.
    pub hash_key: [Word; 2],
    /// jiffies64 at second 0 of the director's clock.
    pub jiffies_base: Word,
    /// Seconds in a jiffy, as a binary fraction of [`SECONDS_SHIFT`] places.
    pub seconds_per_jiffy: Word,
    /// Buckets of the connection table, less 1.
    pub bucket_mask: Word,
    /// Buckets of the service index, less 1.
    pub service_mask: Word,
    /// Seconds without a packet after which an entry expires, by [`crate::connection::timeout_index`].
    pub timeouts: [Word; 32],
    zero: Word,
    spare: [Word; 7],
}

/// Flags of [`Control::flags`].
pub mod control_flag {
    /// The connection table is being filled from another one: TCP packets that open nothing and find
    /// no entry are dropped, not judged.
    pub const MIGRATING: u64 = 1;
    /// There is a service with port 0: what no other service takes is looked for there.
    pub const ALL_PORTS: u64 = 2;
    /// There is a TCP service with port 21: it takes FTP's data connections.
    pub const FTP: u64 = 4;
    /// There are rules that give packets marks.
    pub const MARKS: u64 = 8;
    /// ARP requests and neighbour solicitations for virtual addresses are answered.
    pub const ANNOUNCE: u64 = 16;
    /// The director serves a virtual address itself: what another director sends it is not balanced again.
    pub const PEERS: u64 = 32;
    /// Rules that gave packets marks were removed: what no service takes may be of a connection that such a rule
    /// has led to its service, and is looked for in the connection table.
    pub const UNMARKED: u64 = 64;
    /// Two services may stand under one tag in the two buckets that the index has for one of them; the one does not
    /// go when the reason goes.
    pub const TWINS: u64 = 128;
    /// There is, or was, a service with persistence: entries may be templates, or controlled by one.
    pub const TEMPLATES: u64 = 256;
    /// There are, or were, services whose options say [`Options::STATELESS`](super::Options::STATELESS).
    pub const STATELESS: u64 = 512;
}

/// Flags of a virtual address in [`name::VIPS`].
pub mod vip_flag {
    /// There is a service at this address; set in every row.
    pub const USED: u64 = 1;
    /// It is an address of the host.
    pub const LOCAL: u64 = 2;
    /// ARP requests and neighbour solicitations for it are answered by the program.
    pub const ANNOUNCED: u64 = 4;
}

/// Which rules of firewall marks hold for packets to a prefix and to no longer one: a
/// [`MarkList`](crate::marks::MarkList) for each of the two configurations. The key in [`name::MARK_PREFIXES`] is
/// the prefix's length and its 16 octets, IPv4 mapped.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MarkRow(pub [u64; 2]);

/// Words of a rule of firewall marks: a [`MarkMatch`](crate::marks::MarkMatch), and the mark.
pub const MARK_RULE_WORDS: u32 = 2;
/// The most rules that hold for one prefix.
pub const MARK_RULES_MAX: u32 = 64;
/// Prefixes that rules of marks can name in one configuration.
pub const MARK_PREFIXES_MAX: u32 = 4096;
/// Rules of one configuration, over all prefixes.
pub const MARK_RULES_ROOM: u32 = 16384;
/// Words of [`name::MARK_RULES`]: the one half is what is live, the other one what comes next.
pub const MARK_RULES_WORDS: u32 = 2 * MARK_RULES_ROOM * MARK_RULE_WORDS;

impl Control {
    /// The same value, of which the kernel's verifier knows nothing any more.
    ///
    /// Where a loop makes a choice at each round, a verifier that knows every choice follows every
    /// combination of them. What is added is a word that is always 0.
    #[inline(always)]
    pub fn forget(&self, value: u64) -> u64 {
        value.wrapping_add(self.zero.load())
    }

    /// The secret of the flow hash.
    #[inline(always)]
    pub fn key(&self) -> HashKey {
        HashKey(self.hash_key[0].load(), self.hash_key[1].load())
    }

    /// Seconds of the director's clock at this jiffy.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "136 years fit")]
    pub fn seconds(&self, jiffies: u64) -> u32 {
        let since = jiffies.wrapping_sub(self.jiffies_base.load());
        (since.wrapping_mul(self.seconds_per_jiffy.load()) >> SECONDS_SHIFT) as u32
    }
}

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
/// An extent of a list of n destinations in [`name::LISTS`]: word 0 is wrr's `mw << 32 | di`, words
/// 1 to n are [`list_entry`]s in the schedulers' order, and then come, four to a word, the places
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

/// One destination, 64 bytes.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct DestinationRow {
    /// Bits 0..48 the real server's MAC address, above them [`destination_flag`]s.
    pub towards: Word,
    /// Bits 0..48 the MAC address of the director's interface towards it, 48..64 its [`Tags`], which count where
    /// [`destination_flag::VLAN`] is set.
    pub from: Word,
    /// Bits 0..32 that interface's index, 32..64 the service's id.
    pub place: Word,
    /// The real server's address, in halves.
    pub address: [Word; 2],
    /// Bits 0..16 the real server's port; 16..28 the VLAN of the inner one of its [`Tags`]; 32..64 the last weight above 0, which
    /// mh goes by.
    pub port: Word,
    /// lblcr: when it joined the set of servers of its service, as a number that only grows; 0 where it is
    /// not in it.
    pub joined: Word,
    /// The effective weight, as in its service's list.
    pub weight: Word,
}

/// Flags of [`DestinationRow::towards`].
pub mod destination_flag {
    /// The MAC address is known.
    pub const RESOLVED: u64 = 1 << 48;
    /// It was removed: its connections' packets are dropped.
    pub const REMOVED: u64 = 1 << 49;
    /// The row is in use.
    pub const USED: u64 = 1 << 50;
    /// It is being drained: persistence templates that name it are void.
    pub const DRAINING: u64 = 1 << 51;
    /// There is more to do than to write two MAC addresses; what, say the flags below.
    pub const SPECIAL: u64 = 1 << 52;
    /// It is the director itself: its packets are passed to the host.
    pub const LOCAL: u64 = 1 << 53;
    /// It is reached through a tunnel: [`TunnelRow`](super::TunnelRow).
    pub const TUNNEL: u64 = 1 << 54;
    /// Frames to it have these tags, whatever tags they came with; without it they keep theirs.
    pub const VLAN: u64 = 1 << 55;
}

/// The tags of frames to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tags {
    /// How many, at most 2.
    pub count: usize,
    /// The VLAN of the first one.
    pub outer: u16,
    /// The VLAN of the second one.
    pub inner: u16,
    /// Whether the first one is a service tag (IEEE 802.1ad), and no customer tag (802.1Q).
    pub is_outer_service: bool,
    /// The same of the second one.
    pub is_inner_service: bool,
}

impl Tags {
    const OUTER: u32 = 48;
    const COUNT: u32 = 60;
    const OUTER_SERVICE: u32 = 62;
    const INNER_SERVICE: u32 = 63;
    const INNER: u32 = 16;
    /// The bits of [`DestinationRow::port`] that are the tags'.
    pub const PORT_BITS: u64 = 0xfff << Self::INNER;

    /// What [`DestinationRow::from`] has above the MAC address, and [`DestinationRow::port`] in
    /// [`Self::PORT_BITS`].
    pub const fn words(self) -> (u64, u64) {
        let from = (self.outer as u64 & 0xfff) << Self::OUTER
            | (self.count as u64 & 3) << Self::COUNT
            | (self.is_outer_service as u64) << Self::OUTER_SERVICE
            | (self.is_inner_service as u64) << Self::INNER_SERVICE;
        (from, (self.inner as u64 & 0xfff) << Self::INNER)
    }

    /// From the two words.
    #[inline(always)]
    pub const fn from_words(from: u64, port: u64) -> Self {
        Self {
            count: (from >> Self::COUNT & 3) as usize,
            outer: (from >> Self::OUTER & 0xfff) as u16,
            inner: (port >> Self::INNER & 0xfff) as u16,
            is_outer_service: from >> Self::OUTER_SERVICE & 1 != 0,
            is_inner_service: from >> Self::INNER_SERVICE != 0,
        }
    }
}

/// How packets for a destination are encapsulated, 32 bytes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct TunnelRow {
    /// The outer packet's source address, in halves. Its destination is the real server's.
    pub source: [Word; 2],
    /// [`crate::tunnel::How`]: bits 0..8 the kind, 8..16 flags of checksums, 16..32 GUE's destination port, 32..48
    /// the greatest length of the outer IP packet in bytes, 48..56 how many of the lowest bits of the source
    /// address are a flow's own.
    pub how: Word,
    spare: Word,
}

impl DestinationRow {
    /// What the packet of a connection wants to know of it, each word read once.
    #[inline(always)]
    pub fn way(&self) -> Way {
        Way {
            towards: self.towards.load(),
            from: self.from.load(),
            place: self.place.load(),
        }
    }

    /// The tags of frames to it.
    #[inline(always)]
    pub fn tags(&self) -> Tags {
        Tags::from_words(self.from.load(), self.port.load())
    }

    /// The service it belongs to.
    #[inline(always)]
    pub fn service(&self) -> u32 {
        (self.place.load() >> 32) as u32
    }
}

/// The way to a destination: the first three words of its row, as they were at one time.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    towards: u64,
    from: u64,
    place: u64,
}

impl Way {
    /// Whether it is by this interface, from this MAC address of ours.
    #[inline(always)]
    pub const fn is_by(self, if_index: u32, mac: Mac) -> bool {
        self.place as u32 == if_index && self.from & Mac::MASK == mac.0
    }

    /// The service that the destination belongs to.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        (self.place >> 32) as u32
    }

    /// Whether the destination was removed.
    #[inline(always)]
    pub const fn is_removed(self) -> bool {
        self.towards & destination_flag::REMOVED != 0
    }

    /// The real server's MAC address and ours towards it, where a frame that came in by this interface goes back by it
    /// with nothing else changed.
    #[inline(always)]
    pub fn plain(self, ingress: u32) -> Option<(Mac, Mac)> {
        use destination_flag::{LOCAL, RESOLVED, SPECIAL};
        let is_plain = self.towards & (RESOLVED | SPECIAL | LOCAL) == RESOLVED;
        (is_plain && self.place as u32 == ingress)
            .then_some((Mac(self.towards & Mac::MASK), Mac(self.from & Mac::MASK)))
    }
}

/// Connections of a destination, over all CPUs, and whether they are too many: 32 bytes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Counts {
    /// Active connections in the lower half, inactive ones in the upper.
    pub connections: Word,
    /// Persistence templates.
    pub templates: Word,
    /// Upper threshold in the upper half, in the lower one the number of connections below which it takes
    /// new ones again; 0 where there is no limit. The agent's.
    pub limits: Word,
    /// 1 while it is overloaded.
    pub overload: Word,
}

impl Counts {
    /// Active and inactive connections together.
    #[inline(always)]
    pub const fn total(connections: u64) -> u64 {
        (connections & 0xffff_ffff) + (connections >> 32)
    }
}

/// What one CPU has counted for a destination: 64 bytes. Nobody else writes to it while packets come.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets that were forwarded.
    pub packets: Word,
    /// Their bytes, without the link's header.
    pub bytes: Word,
    /// Connections that were begun.
    pub connections: Word,
    /// SYNs that opened a TCP connection, or opened one again that had ended.
    pub syns: Word,
    /// SYNs that were sent again: they met their own connection, of which nothing but a SYN had been seen.
    pub repeated_syns: Word,
    /// TCP connections whose client has acknowledged the real server's answer to its SYN.
    pub first_acks: Word,
    /// The jiffies from SYN to first acknowledgement, over all of these.
    pub first_ack_jiffies: Word,
    spare: Word,
}

/// Words of [`Counters`].
pub const COUNTER_WORDS: usize = size_of::<Counters>() / size_of::<Word>();

impl Counters {
    /// Not one atomic step: the row is this CPU's own.
    #[inline(always)]
    fn more(word: &Word, by: u64) {
        word.store(word.load().wrapping_add(by));
    }

    /// A packet was forwarded, and may have begun a connection.
    #[inline(always)]
    pub fn forwarded(&self, length: u32, is_new: bool) {
        Self::more(&self.packets, 1);
        Self::more(&self.bytes, u64::from(length));
        if is_new {
            Self::more(&self.connections, 1);
        }
    }

    /// A SYN has opened a connection.
    #[inline(always)]
    pub fn opened(&self) {
        Self::more(&self.syns, 1);
    }

    /// A SYN came again.
    #[inline(always)]
    pub fn opened_again(&self) {
        Self::more(&self.repeated_syns, 1);
    }

    /// A client has acknowledged what answered its SYN, so many jiffies after it.
    #[inline(always)]
    pub fn acknowledged(&self, jiffies: u32) {
        Self::more(&self.first_acks, 1);
        Self::more(&self.first_ack_jiffies, u64::from(jiffies));
    }
}

/// A bucket of the connection table: eight entries' words, one cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket(pub [Word; 8]);

/// Who the flow of an entry is, 64 bytes. Written while the entry is claimed, and read when what it
/// says matters: at changes of state, in lists, when the table is moved.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ColdRow {
    /// The client's address, in halves.
    pub client: [Word; 2],
    /// The virtual address, in halves.
    pub address: [Word; 2],
    /// Bits 0..16 virtual port, 16..32 client port, 32..40 protocol.
    pub ports: Word,
    /// Bits 0..32 the service's id, 32..64 of a TCP connection the lower half of jiffies64 when its SYN came.
    pub service: Word,
    /// Of a connection, the template that controls it: bits 0..32 its place (bucket * 8 + slot), 32..64 its
    /// mark; 0 where none does.
    pub control: Word,
    /// Of a template: bits 0..32 how many connections it controls, 32..64 its mark, which tells it from
    /// another one that had its place before. Of a connection, the last such mark, and a count of 0.
    pub controlled: Word,
}

/// MAC addresses under which the director takes packets of one interface, 64 bytes.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct InterfaceRow {
    /// The interface's index; 0 where the row is free.
    pub if_index: Word,
    /// MAC addresses; 0 where there is none.
    pub macs: [Word; 7],
}

/// Rows of [`name::INTERFACES`]: an interface's row is its index modulo this.
pub const INTERFACE_ROWS: u32 = 256;

impl InterfaceRow {
    /// Whether a frame of that interface to `mac` is for the director; true where nothing is known.
    #[inline(always)]
    pub fn takes(&self, if_index: u32, mac: Mac) -> bool {
        if self.if_index.load() != u64::from(if_index) {
            return true;
        }
        let mut index = 0;
        while index < 7 {
            if self.macs[index].load() == mac.0 {
                return true;
            }
            index += 1;
        }
        false
    }
}

const _: () = {
    assert!(size_of::<Control>() == 384);
    assert!(size_of::<IndexBucket>() == 64);
    assert!(size_of::<ServiceRow>() == 128);
    assert!(size_of::<DestinationRow>() == 64);
    assert!(size_of::<TunnelRow>() == 32);
    assert!(size_of::<MarkRow>() == 16);
    assert!(size_of::<Counts>() == 32);
    assert!(size_of::<Counters>() == 64);
    assert!(size_of::<Bucket>() == 64);
    assert!(size_of::<ColdRow>() == 64);
    assert!(size_of::<InterfaceRow>() == 64);
};

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
        fn tags_keep_their_parts(
            count in 0..=2usize, outer in 0..4096u16, inner in 0..4096u16, is_outer_service: bool,
            is_inner_service: bool, mac in 0..1u64 << 48, port: u16, weight: u32
        ) {
            let tags = Tags { count, outer, inner, is_outer_service, is_inner_service };
            let (from, bits) = tags.words();
            prop_assert_eq!((from & Mac::MASK, bits & !Tags::PORT_BITS), (0, 0));
            let row = DestinationRow {
                from: Word::new(from | mac),
                port: Word::new(bits | u64::from(port) | u64::from(weight) << 32),
                ..DestinationRow::default()
            };
            prop_assert_eq!(row.tags(), tags);
        }

        #[test]
        fn the_two_buckets_of_a_service_differ(hash: u64, bits in 1..16u32) {
            let (first, second) = index_buckets(hash, (1 << bits) - 1);
            prop_assert_ne!(first, second);
            prop_assert!(first < 1 << bits && second < 1 << bits);
        }
    }

    #[test]
    fn seconds_follow_the_tick_rate() {
        for hz in [100u64, 250, 300, 1000] {
            let control = Control {
                jiffies_base: Word::new(4_294_667_296),
                seconds_per_jiffy: Word::new((1 << SECONDS_SHIFT) / hz + 1),
                ..Control::default()
            };
            for second in [0u32, 1, 900, 86_400 * 365] {
                let seen = control.seconds(4_294_667_296 + u64::from(second) * hz);
                assert!(seen.abs_diff(second) <= second / 100_000, "{hz} {second} {seen}");
            }
        }
    }

    #[test]
    fn an_interface_takes_its_own_addresses_only() {
        let row = InterfaceRow {
            if_index: Word::new(3),
            ..InterfaceRow::default()
        };
        row.macs[1].store(77);
        assert!(row.takes(3, Mac(77)));
        assert!(!row.takes(3, Mac(78)));
        assert!(row.takes(259, Mac(78)), "another interface's row says nothing");
    }
}
