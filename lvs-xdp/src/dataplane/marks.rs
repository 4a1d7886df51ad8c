//! The rules of firewall marks in the maps.
//!
//! Each half of `MARK_RULES` holds the lists of one configuration, and a row of `MARK_PREFIXES` names one for
//! each of the two that the generation bit chooses from. A prefix that only one of them has is there for both
//! while they differ: for the other one with the list of the longest prefix around it, which is what it would
//! find without it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use aya::maps::{LpmTrie, MapData, MapError, lpm_trie::Key};
use ipnet::IpNet;
use lvs_xdp_common::{
    abi::{MARK_PREFIXES_MAX, MARK_RULE_WORDS, MARK_RULES_MAX, MARK_RULES_ROOM, control_flag, name},
    marks::{
        MarkList, MarkMatch,
        compile::{Lists, Prefix, Rule, TooMany, compile, longest},
    },
    packet::Address,
};

use super::{
    pins::open_map,
    rows::{address, count, ip, live},
    tables::Tables,
};
use crate::{
    api::types::{ApiError, ErrorCode, MarkRule, Protocol},
    crash,
};

/// The first word of a configuration's half.
const HALVES: [u32; 2] = [0, MARK_RULES_ROOM * MARK_RULE_WORDS];

/// What is to be live next. It is in the maps already, where no packet sees it.
#[derive(Debug)]
pub(super) struct Prepared {
    rules: Arc<Vec<MarkRule>>,
    lists: Lists,
    places: BTreeMap<Prefix, MarkList>,
    half: usize,
}

/// The rules as the maps have them.
pub(super) struct Marks {
    tables: Arc<Tables>,
    prefixes: LpmTrie<MapData, [u8; 16], [u64; 2]>,
    /// What the live lists were compiled from, where that is known.
    rules: Option<Arc<Vec<MarkRule>>>,
    lists: Lists,
    places: BTreeMap<Prefix, MarkList>,
    half: usize,
    /// Prefixes whose rows may differ from what is live: to be brought to it by [`Marks::settle`].
    unsettled: BTreeSet<Prefix>,
}

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Marks")
            .field("lists", &self.lists)
            .field("unsettled", &self.unsettled)
            .finish_non_exhaustive()
    }
}

impl Marks {
    /// Reads what is live from the maps that are pinned in a directory.
    pub(super) fn open(directory: &Path, tables: Arc<Tables>) -> anyhow::Result<Self> {
        let mut marks = Self {
            prefixes: open_map(directory, name::MARK_PREFIXES)?,
            tables,
            rules: None,
            lists: Lists::new(),
            places: BTreeMap::new(),
            half: 0,
            unsettled: BTreeSet::new(),
        };
        marks.adopt()?;
        Ok(marks)
    }

    fn adopt(&mut self) -> anyhow::Result<()> {
        let live = live(&self.tables.control[0]);
        let rows = self.prefixes.iter().collect::<Result<Vec<_>, _>>()?;
        for (key, row) in rows {
            let length = u8::try_from(key.prefix_len())?;
            let prefix = Prefix::new(Address::from_octets(key.data()), length);
            let place = MarkList(row[live]);
            if place.offset() >= HALVES[1] {
                self.half = 1;
            }
            self.lists.insert(prefix, self.list(place));
            self.places.insert(prefix, place);
            if row[0] != row[1] {
                self.unsettled.insert(prefix);
            }
        }
        self.settle()?;
        Ok(())
    }

    fn list(&self, place: MarkList) -> Vec<(MarkMatch, u32)> {
        let words = self.tables.mark_rules.iter().skip(place.offset() as usize);
        let words: Vec<u64> = words
            .take((place.count().min(MARK_RULES_MAX) * MARK_RULE_WORDS) as usize)
            .map(lvs_xdp_common::atomic::Word::load)
            .collect();
        let (rules, _) = words.as_chunks::<2>();
        rules
            .iter()
            .map(|&[matched, mark]| (MarkMatch(matched), super::rows::low(mark)))
            .collect()
    }

    /// Whether the two configurations differ.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Writes rules where no packet sees them; nothing, where they are the ones that are live. Either
    /// [`Marks::adopt_prepared`] or [`Marks::settle`] must follow.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Full`] where they are too many; [`ErrorCode::Internal`] where the kernel has no memory.
    pub(super) fn prepare(&mut self, rules: &Arc<Vec<MarkRule>>) -> Result<Option<Prepared>, ApiError> {
        self.settle().map_err(|error| without_memory(&error))?;
        if self.rules.as_ref() == Some(rules) {
            return Ok(None);
        }
        let single: Vec<Rule> = rules.iter().flat_map(singles).collect();
        let lists = compile(&single).map_err(too_many)?;
        if lists == self.lists {
            self.rules = Some(Arc::clone(rules));
            return Ok(None);
        }
        let half = 1 - self.half;
        let mut words = self.tables.mark_rules.iter().skip(HALVES[half] as usize);
        let mut offset = HALVES[half];
        let mut places = BTreeMap::new();
        for (prefix, list) in &lists {
            places.insert(*prefix, MarkList::new(offset, count(list.len())));
            offset += count(list.len()) * MARK_RULE_WORDS;
            let values = list
                .iter()
                .flat_map(|(matched, mark)| [matched.0, u64::from(*mark)]);
            for (value, word) in values.zip(&mut words) {
                word.store(value);
            }
        }
        let live = live(&self.tables.control[0]);
        let all: BTreeSet<Prefix> = self.places.keys().chain(places.keys()).copied().collect();
        for prefix in all {
            let of = |places| longest(places, prefix).map_or(0, |place: &MarkList| place.0);
            let mut row = [of(&places); 2];
            row[live] = of(&self.places);
            self.unsettled.insert(prefix);
            crash::point();
            if let Err(error) = self.prefixes.insert(&key(prefix), row, 0) {
                // What is left of it is taken back, at the latest before the next attempt.
                let _ = self.settle();
                return Err(without_memory(&error));
            }
        }
        Ok(Some(Prepared {
            rules: Arc::clone(rules),
            lists,
            places,
            half,
        }))
    }

    /// Sets the flags that go with rules that will be live in a moment.
    pub(super) fn announce(&self, next: &Prepared) {
        let is_gone = |(prefix, list): (&Prefix, &Vec<_>)| {
            let then = longest(&next.lists, *prefix);
            list.iter()
                .any(|rule| then.is_none_or(|then| !then.contains(rule)))
        };
        let mut wanted = 0;
        if !next.lists.is_empty() {
            wanted |= control_flag::MARKS;
        }
        if self.lists.iter().any(is_gone) {
            wanted |= control_flag::UNMARKED;
        }
        let flags = &self.tables.control[0].flags;
        flags.store(flags.load() | wanted);
    }

    /// Notes that prepared rules are live.
    pub(super) fn adopt_prepared(&mut self, next: Prepared) {
        self.rules = Some(next.rules);
        self.lists = next.lists;
        self.places = next.places;
        self.half = next.half;
    }

    /// Makes both configurations what is live. No packet that saw another one may be left.
    ///
    /// # Errors
    ///
    /// Where the kernel has no memory; it can be tried again.
    pub(super) fn settle(&mut self) -> Result<(), MapError> {
        while let Some(&prefix) = self.unsettled.first() {
            crash::point();
            match self.places.get(&prefix) {
                Some(place) => self.prefixes.insert(&key(prefix), [place.0; 2], 0)?,
                None => match self.prefixes.remove(&key(prefix)) {
                    // It was not inserted at all.
                    Err(MapError::KeyNotFound) => {}
                    Err(MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                    result => result?,
                },
            }
            self.unsettled.remove(&prefix);
        }
        if self.places.is_empty() {
            let flags = &self.tables.control[0].flags;
            flags.store(flags.load() & !control_flag::MARKS);
        }
        Ok(())
    }

    /// Whether all packets of a mark, of one family, are for addresses of the host.
    pub(super) fn is_local(&self, mark: u32, is_ipv6: bool, local: &HashSet<IpAddr>) -> bool {
        let mut prefixes = (self.lists.iter())
            .filter(|(_, list)| list.iter().any(|(_, other)| *other == mark))
            .map(|(prefix, _)| (prefix.length(), ip(Address::from_octets(prefix.octets()))))
            .filter(|(length, address)| (*length < 96 || address.is_ipv6()) == is_ipv6)
            .peekable();
        prefixes.peek().is_some()
            && prefixes.all(|(length, address)| length == 128 && local.contains(&address))
    }
}

fn key(prefix: Prefix) -> Key<[u8; 16]> {
    Key::new(u32::from(prefix.length()), prefix.octets())
}

/// A rule as many that have one prefix and one range of ports each.
fn singles(rule: &MarkRule) -> impl Iterator<Item = Rule> {
    let protocol = rule.protocol.map_or(0, Protocol::number);
    rule.addresses.iter().flat_map(move |net| {
        let before = if net.addr().is_ipv4() { 96 } else { 0 };
        let prefix = Prefix::new(address(net.addr()), before + net.prefix_len());
        rule.ranges().map(move |ports| Rule {
            prefix,
            matched: MarkMatch::new(ports.first(), ports.last(), protocol),
            mark: rule.mark,
        })
    })
}

fn too_many(why: TooMany) -> ApiError {
    let message = match why {
        TooMany::Prefixes => format!(
            "the rules of marks name more than {} prefixes: use fewer, shorter ones",
            MARK_PREFIXES_MAX - 1
        ),
        TooMany::Rules => format!(
            "the rules of marks are more than {MARK_RULES_ROOM}, counting each prefix and range of ports by itself \
             and again for every longer prefix: use ranges of ports, or fewer prefixes"
        ),
        TooMany::ForPrefix(prefix, rules) => format!(
            "{} would have {rules} rules of marks, counting each port or range by itself and those of the prefixes \
             around it; {MARK_RULES_MAX} are the most: use ranges of ports, or fewer rules",
            net(prefix)
        ),
    };
    ApiError::new(ErrorCode::Full, message)
}

fn net(prefix: Prefix) -> String {
    let address = Address::from_octets(prefix.octets());
    let length = if address.is_ipv4() && prefix.length() >= 96 {
        prefix.length() - 96
    } else {
        prefix.length()
    };
    IpNet::new(ip(address), length).map_or_else(|_| "a prefix".to_owned(), |net| net.to_string())
}

fn without_memory(error: &MapError) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        format!("the rules of marks cannot be written to the maps: {error}"),
    )
}
