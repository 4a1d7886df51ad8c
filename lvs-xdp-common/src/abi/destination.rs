//! Destinations: the way to each, its tunnel, its counts, and what is counted of it.

use crate::{atomic::Word, packet::Mac};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
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
    }
}
