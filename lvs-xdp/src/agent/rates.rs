//! Rates as IPVS estimates them (ip_vs_est.c): every two seconds each moves a quarter of the way to what the last
//! two seconds had.
//!
//! Pure: counters and times are told. Fractions are kept as the kernel keeps them, so that a rate that falls
//! reaches 0 when the kernel's does.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use crate::api::types::{Rates, Stats};

/// The time between two samples.
const INTERVAL: Duration = Duration::from_secs(2);

/// A tick may come this much early and still count as the interval's end.
const TOLERANCE: Duration = Duration::from_millis(500);

/// Bits of fraction of the rates of connections and packets.
const FINE: u32 = 10;

/// Bits of fraction of the rate of bytes.
const COARSE: u32 = 5;

/// One rate, with its bits of fraction.
#[derive(Debug, Clone, Copy, Default)]
struct Rate(i64);

impl Rate {
    /// Moves a quarter of the way to `count` in `elapsed`.
    fn follow<const BITS: u32>(&mut self, count: u64, elapsed: Duration) {
        let sample = (u128::from(count) << BITS) * 1_000 / elapsed.as_millis().max(1);
        let sample = i64::try_from(sample).unwrap_or(i64::MAX);
        self.0 += sample.saturating_sub(self.0) >> 2;
    }

    /// Whole ones a second, rounded; a half is left out.
    fn read<const BITS: u32>(self) -> u64 {
        (self.0.unsigned_abs() + (1 << (BITS - 1)) - 1) >> BITS
    }
}

/// What is known of one service or destination.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    last: Stats,
    connections: Rate,
    packets: Rate,
    bytes: Rate,
}

impl Estimate {
    /// Takes a sample, so long after the last one.
    pub(super) fn follow(&mut self, now: Stats, elapsed: Duration) {
        // Counters that have fallen were set to 0 meanwhile.
        let grown = |now: u64, last: u64| if now < last { now } else { now - last };
        let Self {
            last,
            connections,
            packets,
            bytes,
        } = self;
        connections.follow::<FINE>(grown(now.connections, last.connections), elapsed);
        packets.follow::<FINE>(grown(now.packets, last.packets), elapsed);
        bytes.follow::<COARSE>(grown(now.bytes, last.bytes), elapsed);
        *last = now;
    }

    /// Takes a first sample, which later ones are compared with.
    pub(super) fn begin(&mut self, now: Stats) {
        self.last = now;
    }

    /// What had been counted at the last sample.
    pub(super) fn last(&self) -> Stats {
        self.last
    }

    /// Whether samples without anything new change nothing any more.
    pub(super) fn is_still(&self) -> bool {
        let rates = [self.connections, self.packets, self.bytes];
        rates.iter().all(|rate| -rate.0 >> 2 == 0)
    }

    /// The rates as they are listed.
    pub(super) fn read(&self) -> Rates {
        Rates {
            connections: self.connections.read::<FINE>(),
            packets: self.packets.read::<FINE>(),
            bytes: self.bytes.read::<COARSE>(),
        }
    }
}

/// The rates of everything that is counted under a kind of key.
#[derive(Debug)]
pub(super) struct Estimator<K> {
    estimates: HashMap<K, Estimate>,
    /// When the last sample was taken; nothing before the first one.
    sampled: Option<Instant>,
}

impl<K> Default for Estimator<K> {
    fn default() -> Self {
        Self {
            estimates: HashMap::new(),
            sampled: None,
        }
    }
}

impl<K: Copy + Eq + Hash> Estimator<K> {
    /// Whether it is time for another sample.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.sampled
            .is_none_or(|sampled| now.saturating_duration_since(sampled) + TOLERANCE >= INTERVAL)
    }

    /// Takes a sample of everything there is; what is not in it is forgotten.
    ///
    /// What is new has counted from 0; but the first sample of all, of which nobody knows since when it was
    /// counted, is only what the next one is compared with.
    pub(super) fn sample(&mut self, counted: impl Iterator<Item = (K, Stats)>, now: Instant) {
        let before = std::mem::take(&mut self.estimates);
        let elapsed = self
            .sampled
            .replace(now)
            .map(|last| now.saturating_duration_since(last));
        self.estimates = counted
            .map(|(key, stats)| {
                let mut estimate = before.get(&key).copied().unwrap_or_default();
                match elapsed {
                    Some(elapsed) => estimate.follow(stats, elapsed),
                    None => estimate.begin(stats),
                }
                (key, estimate)
            })
            .collect();
    }

    /// The rates of one; 0 before its first sample.
    pub(super) fn rates(&self, key: K) -> Rates {
        self.estimates.get(&key).map(Estimate::read).unwrap_or_default()
    }

    /// Starts one anew whose counters are set to 0, as `-Z` does.
    pub(super) fn zero(&mut self, key: K) {
        if let Some(estimate) = self.estimates.get_mut(&key) {
            *estimate = Estimate::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(connections: u64, packets: u64, bytes: u64) -> Stats {
        Stats {
            connections,
            packets,
            bytes,
        }
    }

    /// Samples of one thing, two seconds apart; the rates after each.
    fn after(samples: &[Stats]) -> Vec<[u64; 3]> {
        let mut estimator = Estimator::default();
        let start = Instant::now();
        estimator.sample(std::iter::empty(), start);
        let rates = (1..).zip(samples).map(|(number, &stats)| {
            estimator.sample([((), stats)].into_iter(), start + INTERVAL * number);
            let Rates {
                connections,
                packets,
                bytes,
            } = estimator.rates(());
            [connections, packets, bytes]
        });
        rates.collect()
    }

    #[test]
    fn rates_move_a_quarter_of_the_way() {
        // 100 a second in each sample: 25, 43.75, 57.8, 68.4, 76.3.
        let steady: Vec<_> = (1..=5).map(|n| stats(200 * n, 200 * n, 200_000 * n)).collect();
        assert_eq!(
            after(&steady),
            [
                [25, 25, 25_000],
                [44, 44, 43_750],
                [58, 58, 57_812],
                [68, 68, 68_359],
                [76, 76, 76_270],
            ]
        );
    }

    #[test]
    fn rates_die_away() {
        let burst = vec![stats(8, 80, 8_000); 60];
        let rates = after(&burst);
        assert_eq!(rates[0], [1, 10, 1_000]);
        // 0.75, 7.5 and 750, and then 0.56, 5.6 and 562.5.
        assert_eq!(rates[1], [1, 7, 750]);
        assert_eq!(rates[2], [1, 6, 562]);
        assert_eq!(rates[59], [0; 3]);
        assert!(
            rates
                .windows(2)
                .all(|pair| (0..3).all(|at| pair[1][at] <= pair[0][at]))
        );
    }

    #[test]
    fn a_late_sample_counts_for_its_time() {
        let mut estimator = Estimator::default();
        let start = Instant::now();
        estimator.sample(std::iter::empty(), start);
        assert!(!estimator.is_due(start + Duration::from_secs(1)));
        assert!(estimator.is_due(start + Duration::from_millis(1_900)));
        estimator.sample(
            [(1, stats(400, 0, 0))].into_iter(),
            start + Duration::from_secs(4),
        );
        assert_eq!(estimator.rates(1).connections, 25);
    }

    #[test]
    fn what_an_agent_finds_is_no_burst_and_zero_starts_anew() {
        let mut estimator = Estimator::default();
        let start = Instant::now();
        let sample = |estimator: &mut Estimator<u32>, number: u32, connections| {
            let stats = stats(connections, 0, 0);
            estimator.sample([(1, stats)].into_iter(), start + INTERVAL * number);
            estimator.rates(1).connections
        };
        assert_eq!(sample(&mut estimator, 0, 1_000_000), 0);
        assert_eq!(sample(&mut estimator, 1, 1_000_800), 100);
        estimator.zero(1);
        assert_eq!(estimator.rates(1), Rates::default());
        assert_eq!(sample(&mut estimator, 2, 80), 10);
        // Deleted and added again: it counts from 0.
        assert_eq!(sample(&mut estimator, 3, 16), 9);
        assert_eq!(estimator.rates(2), Rates::default());
        estimator.sample(std::iter::empty(), start + INTERVAL * 4);
        assert_eq!(estimator.rates(1), Rates::default());
    }
}
