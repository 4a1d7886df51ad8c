//! What holds for the whole director.

use crate::{atomic::Word, hash::HashKey};

/// Binary places of [`Control::seconds_per_jiffy`].
pub const SECONDS_SHIFT: u32 = 28;

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
    /// There are, or were, services whose options say [`Options::STATELESS`](super::super::Options::STATELESS).
    pub const STATELESS: u64 = 512;
}

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
