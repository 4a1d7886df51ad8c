//! Firewall marks: which mark the director's own rules give a packet.
//!
//! IPVS takes marks from the packet filter, which XDP runs before. Here the agent compiles rules of prefix,
//! protocol and destination ports into a trie of prefixes and, for each prefix, a list of rules: its own
//! and those of the prefixes around it, in the order in which they were added. So one look-up finds every
//! rule that can hold for an address, and the first one of them that matches gives the mark.

#[cfg(not(target_arch = "bpf"))]
pub mod compile;

use crate::{
    abi::{MARK_RULE_WORDS, MARK_RULES_MAX},
    atomic::Word,
    maps::Maps,
};

/// Which rules hold for a prefix, as a configuration of [`crate::abi::MarkRow`] has it; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MarkList(pub u64);

impl MarkList {
    /// So many rules, from this word of [`crate::abi::name::MARK_RULES`] on.
    pub const fn new(offset: u32, count: u32) -> Self {
        Self((offset as u64) << 32 | count as u64)
    }

    /// The first word.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// How many rules there are.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the number")]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }
}

/// What a rule matches: its first word in [`crate::abi::name::MARK_RULES`]; the second is the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkMatch(pub u64);

impl MarkMatch {
    /// Packets to the ports from `first` to `last` by a protocol; 0 stands for every protocol.
    pub const fn new(first: u16, last: u16, protocol: u8) -> Self {
        Self(first as u64 | (last as u64) << 16 | (protocol as u64) << 32)
    }

    /// Whether a packet of this identity (see [`crate::abi::ServiceRow::identity`]) is one of them.
    #[inline(always)]
    pub const fn takes(self, identity: u64) -> bool {
        let port = identity & 0xffff;
        let protocol = self.0 >> 32 & 0xff;
        port >= self.0 & 0xffff
            && port <= self.0 >> 16 & 0xffff
            && (protocol == 0 || protocol == identity >> 16 & 0xff)
    }
}

/// The mark of a packet to this address, port and protocol; 0 where no rule gives it one.
#[inline(always)]
pub fn mark_of<M: Maps>(maps: &M, high: u64, low: u64, identity: u64) -> u32 {
    let list = MarkList(maps.mark_list(high, low));
    let mut rule = 0;
    while rule < MARK_RULES_MAX {
        if rule >= list.count() {
            break;
        }
        let at = list.offset().wrapping_add(rule * MARK_RULE_WORDS);
        rule += 1;
        let Some(matched) = maps.mark_rule(at) else { break };
        if MarkMatch(matched.load()).takes(identity) {
            #[expect(clippy::cast_possible_truncation, reason = "marks have 32 bits")]
            return maps.mark_rule(at.wrapping_add(1)).map_or(0, Word::load) as u32;
        }
    }
    0
}

#[cfg(test)]
mod tests;
