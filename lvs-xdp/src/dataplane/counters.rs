//! What the program counts, a row for each CPU: of destinations, and by reason.

use anyhow::Context as _;
use aya::maps::PerCpuValues;
use lvs_xdp_common::{
    abi::{COUNTER_WORDS, SECONDS_SHIFT},
    reason::Reason,
};

use super::{Dataplane, grace};
use crate::api::types::{Handshakes, ReasonCount, Stats};

impl Dataplane {
    /// A destination's counters, over all CPUs.
    pub fn stats(&self, destination: u32) -> Stats {
        self.counted(destination).0
    }

    /// The same, and what was seen of its TCP handshakes.
    pub fn counted(&self, destination: u32) -> (Stats, Handshakes) {
        let mut sums = [0_u64; COUNTER_WORDS];
        for row in self
            .counters
            .get(&destination, 0)
            .iter()
            .flat_map(|values| values.iter())
        {
            for (sum, word) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(*word);
            }
        }
        let [
            packets,
            bytes,
            connections,
            syns,
            repeated,
            acknowledged,
            jiffies,
            _,
        ] = sums;
        let stats = Stats {
            connections,
            packets,
            bytes,
        };
        let rate = self.tables.control[0].seconds_per_jiffy.load();
        let microseconds = (u128::from(jiffies) * u128::from(rate) * 1_000_000) >> SECONDS_SHIFT;
        let handshakes = Handshakes {
            syns,
            repeated,
            acknowledged,
            microseconds: u64::try_from(microseconds).unwrap_or(u64::MAX),
        };
        (stats, handshakes)
    }

    /// Sets destinations' counters to zero while packets are counted. It takes as long as a grace period.
    ///
    /// A CPU that has read its counter before it was set, and writes it after, undoes that. So what a CPU has after
    /// the grace period is compared with what it had, and where it has not begun anew it is set again, to what came
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// Where the map cannot be read or written.
    pub fn zero_stats(&mut self, destinations: &[u32]) -> anyhow::Result<()> {
        let mut before = Vec::with_capacity(destinations.len());
        for &id in destinations {
            before.push(self.counters.get(&id, 0)?);
            self.clear_stats(id)?;
        }
        grace().context("cannot wait for the packets that are being counted")?;
        for (&id, before) in destinations.iter().zip(before) {
            let mut now = self.counters.get(&id, 0)?.to_vec();
            let mut is_undone = false;
            for (now, before) in now.iter_mut().zip(before.iter()) {
                // Packets: whatever is counted, they are.
                if before[0] > 0 && now[0] >= before[0] {
                    for (now, before) in now.iter_mut().zip(before) {
                        *now = now.saturating_sub(*before);
                    }
                    is_undone = true;
                }
            }
            if is_undone {
                self.counters.set(id, PerCpuValues::try_from(now)?, 0)?;
            }
        }
        Ok(())
    }

    /// Sets a destination's counters to zero: for an id that no list and no entry names.
    pub(super) fn clear_stats(&mut self, destination: u32) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zero = PerCpuValues::try_from(vec![[0; COUNTER_WORDS]; cpus])?;
        Ok(self.counters.set(destination, zero, 0)?)
    }

    /// What became of packets, over all CPUs.
    pub fn reasons(&self) -> Vec<ReasonCount> {
        Reason::ALL
            .iter()
            .map(|&reason| ReasonCount {
                name: reason.name().to_owned(),
                verdict: reason.outcome().name().to_owned(),
                help: reason.help().to_owned(),
                packets: self.packets_of(reason),
            })
            .collect()
    }

    /// Packets of one reason, over all CPUs.
    pub fn packets_of(&self, reason: Reason) -> u64 {
        self.reasons
            .get(&(reason as u32), 0)
            .map_or(0, |values| values.iter().sum())
    }
}
