//! The layout of the maps: the contract between the program, the agent, and the next version of both.
//!
//! Every row is made of 64-bit words. Each word is written whole, so readers see its old or its new
//! value; what must change together with another word is either in the same word or becomes visible
//! by a third one (the generation bit of [`Control`], the entry's word of the connection table).
//!
//! A change of anything here raises [`ABI_VERSION`]: the directory of the pins carries it.

mod control;
mod destination;
mod service;

use crate::{atomic::Word, packet::Mac};

pub use self::{
    control::{Control, SECONDS_SHIFT, control_flag},
    destination::{COUNTER_WORDS, Counters, Counts, DestinationRow, Tags, TunnelRow, Way, destination_flag},
    service::{
        Cursor, IndexBucket, Kind, LIST_MAX, ListEntry, ListWord, Options, RingWord, ServiceRow,
        index_buckets, index_word, service_flag,
    },
};

/// The version of this layout.
pub const ABI_VERSION: u32 = 7;

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
    use super::*;

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
