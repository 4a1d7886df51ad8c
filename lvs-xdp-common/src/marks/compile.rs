//! From rules as they are given to lists by prefix. The agent's part; it is here beside what reads the lists.

use alloc::{collections::BTreeMap, vec::Vec};

use super::MarkMatch;
use crate::{
    abi::{MARK_PREFIXES_MAX, MARK_RULES_MAX, MARK_RULES_ROOM},
    packet::Address,
};

/// A network of destination addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: u128,
    length: u8,
}

/// Bits before an IPv4 address in its mapped form.
const MAPPED: u8 = 96;

impl Prefix {
    /// Every IPv4 address. It is always there, so that no IPv6 prefix around it is found for one of them.
    pub const IPV4: Self = Self {
        bits: 0xffff_0000_0000,
        length: MAPPED,
    };

    /// The addresses that have the first `length` bits, of 128, in common with this one.
    pub fn new(address: Address, length: u8) -> Self {
        Self {
            bits: u128::from_be_bytes(address.octets()),
            length: 128,
        }
        .shortened(length)
    }

    /// Of how many bits, of 128.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// The octets as they go over the wire, those behind the prefix 0.
    pub const fn octets(self) -> [u8; 16] {
        self.bits.to_be_bytes()
    }

    /// The prefix of this length around it.
    fn shortened(self, length: u8) -> Self {
        let length = length.min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self {
            bits: self.bits & mask,
            length,
        }
    }

    /// It, and every prefix of its address family around it, the longest first.
    pub fn ancestors(self) -> impl Iterator<Item = Self> {
        let is_ipv4 = self.length >= MAPPED && self.shortened(MAPPED) == Self::IPV4;
        let shortest = if is_ipv4 { MAPPED } else { 0 };
        (shortest..=self.length)
            .rev()
            .map(move |length| self.shortened(length))
    }
}

/// One rule: for one prefix, one range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Packets to these addresses.
    pub prefix: Prefix,
    /// By which protocol, to which ports.
    pub matched: MarkMatch,
    /// The mark, not 0.
    pub mark: u32,
}

/// The rules that hold for each prefix, in their order.
pub type Lists = BTreeMap<Prefix, Vec<(MarkMatch, u32)>>;

/// Why rules cannot be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// More than [`MARK_PREFIXES_MAX`] prefixes.
    Prefixes,
    /// More than [`MARK_RULES_ROOM`] rules over all prefixes.
    Rules,
    /// So many rules, more than [`MARK_RULES_MAX`], that hold for one prefix.
    ForPrefix(Prefix, usize),
}

/// Compiles rules, given in the order in which they are tried.
///
/// # Errors
///
/// Where they are too many for the maps.
pub fn compile(rules: &[Rule]) -> Result<Lists, TooMany> {
    let mut own: BTreeMap<Prefix, Vec<(usize, &Rule)>> = BTreeMap::new();
    for (order, rule) in rules.iter().enumerate() {
        own.entry(rule.prefix).or_default().push((order, rule));
    }
    if !own.is_empty() {
        own.entry(Prefix::IPV4).or_default();
    }
    if own.len() > MARK_PREFIXES_MAX as usize {
        return Err(TooMany::Prefixes);
    }
    let mut lists = Lists::new();
    let mut room = MARK_RULES_ROOM as usize;
    for &prefix in own.keys() {
        let around = prefix.ancestors().filter_map(|ancestor| own.get(&ancestor));
        let mut holding: Vec<_> = around.flatten().collect();
        holding.sort_unstable_by_key(|(order, _)| *order);
        if holding.len() > MARK_RULES_MAX as usize {
            return Err(TooMany::ForPrefix(prefix, holding.len()));
        }
        room = room.checked_sub(holding.len()).ok_or(TooMany::Rules)?;
        let rules = holding.into_iter().map(|(_, rule)| (rule.matched, rule.mark));
        lists.insert(prefix, rules.collect());
    }
    Ok(lists)
}

/// What the longest prefix around one has, it itself included.
pub fn longest<V>(by_prefix: &BTreeMap<Prefix, V>, prefix: Prefix) -> Option<&V> {
    prefix.ancestors().find_map(|ancestor| by_prefix.get(&ancestor))
}
