//! The agent's side of the connection table: it takes out what has expired, and lists what is there.
//!
//! The program knows an expired entry by itself; the sweep only makes counts and lists exact, and
//! frees destinations that were removed, when no packet comes by to do it.

use std::ops::Range;

use lvs_xdp_common::{
    abi::destination_flag,
    atomic::Word,
    connection::Entry,
    flow::Flow,
    maps::Maps,
    table::{self, Place},
};

use super::{rows::length, tables::Tables};

/// Seconds after which a claim is one that nobody will finish: its CPU takes nanoseconds, but an agent
/// that was moving entries may have been killed.
const STALE_CLAIM: u32 = 3;

/// An entry with the flow it is for.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    /// The entry's word.
    pub entry: Entry,
    /// Where it is: bucket * 8 + slot.
    pub index: u32,
    /// Who the flow is.
    pub flow: Flow,
    /// Seconds until it expires.
    pub expires: u32,
}

impl Tables {
    /// Takes out every expired entry, and the templates of destinations that are being drained, which no
    /// client follows any more; returns how many are left.
    pub fn sweep(&self) -> u64 {
        let now = self.now();
        let mut live = 0;
        for Place { word, index } in self.places() {
            let entry = Entry(word.load());
            if entry.0 == 0 {
                continue;
            }
            if !entry.is_live() {
                if entry.age(now) > STALE_CLAIM && entry.age(now) < u32::from(u16::MAX) - STALE_CLAIM {
                    // Whoever has it instead keeps it.
                    let _ = word.swap(entry.0, Entry::EMPTY.0);
                }
                continue;
            }
            let place = Place { word, index };
            let is_gone = if table::is_expired(self, entry, now) {
                table::expire(self, place, entry, now)
            } else {
                entry.state().is_template() && self.is_draining(entry) && table::remove(self, place, entry)
            };
            live += u64::from(!is_gone);
        }
        live
    }

    /// Every place of the table.
    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let words = self.hot.iter().flat_map(|bucket| &bucket.0);
        (0..).zip(words).map(|(index, word)| Place { word, index })
    }

    fn is_draining(&self, entry: Entry) -> bool {
        self.destination(entry.destination())
            .is_some_and(|row| row.towards.load() & destination_flag::DRAINING != 0)
    }

    /// Every live entry, as it is while this goes on.
    pub fn connections(&self) -> impl Iterator<Item = Listed> + '_ {
        self.connections_in(0..self.buckets())
    }

    /// Every live entry of a range of buckets: for those who list the table piece by piece.
    pub fn connections_in(&self, buckets: Range<u32>) -> impl Iterator<Item = Listed> + '_ {
        let now = self.now();
        buckets
            .filter_map(|index| Some((index, self.bucket(index)?)))
            .flat_map(|(index, bucket)| (index * 8..).zip(&bucket.0))
            .filter_map(move |(index, word)| self.listed(index, word, now))
    }

    /// How many buckets the connection table has.
    pub fn buckets(&self) -> u32 {
        length(&self.hot)
    }

    /// Takes out every live entry that `matches`; returns how many those were.
    pub fn flush(&self, matches: impl Fn(&Listed) -> bool) -> u64 {
        let now = self.now();
        let mut removed = 0;
        for Place { word, index } in self.places() {
            // Packets may change its word meanwhile; it is gone when somebody has taken it out.
            while let Some(listed) = self.listed(index, word, now).filter(&matches) {
                if table::remove(self, Place { word, index }, listed.entry) {
                    removed += 1;
                }
            }
        }
        removed
    }

    /// Gives templates whose time is over, but which control connections, their next minute: what else does so may be
    /// yet to come.
    pub(super) fn renew_templates(&self) {
        let now = self.now();
        for Place { word, index } in self.places() {
            let entry = Entry(word.load());
            if entry.is_live() && table::is_expired(self, entry, now) {
                table::is_kept(self, Place { word, index }, entry, now);
            }
        }
    }

    fn listed(&self, index: u32, word: &Word, now: u32) -> Option<Listed> {
        let entry = Entry(word.load());
        if !entry.is_live() || table::is_expired(self, entry, now) {
            return None;
        }
        let flow = Flow::read(self.cold(index)?);
        // The same entry before and after: then the row is its own.
        let after = Entry(word.load());
        if after.tag() != entry.tag() || !after.is_live() || after.destination() != entry.destination() {
            return None;
        }
        Some(Listed {
            entry: after,
            index,
            flow,
            expires: table::timeout(self, after).saturating_sub(after.age(now)),
        })
    }
}
