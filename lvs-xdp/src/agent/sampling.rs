//! Rates of destinations, of which there may be a million and most have nothing to do.
//!
//! To read one counter takes a call of the kernel. So of each sample only those are read that may have changed: that
//! have connections, had some the last time, or whose rates have not died away. In case something is counted without
//! any of that, one in [`TURNS`] of the others is read as well, each in its turn. Pure: what was read is told.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::rates::Estimate;
use crate::api::types::{Rates, Stats};

/// Every so many samples each destination is read, whatever is known of it.
const TURNS: u32 = 16;

/// What is known of a destination that has ever counted anything.
#[derive(Debug)]
struct Sampled {
    estimate: Estimate,
    service: u32,
    at: Instant,
    /// It had grown since the sample before.
    has_grown: bool,
}

/// The rates of destinations, and what those of a service have counted together.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    destinations: HashMap<u32, Sampled>,
    /// By service: the sum of what its destinations had counted when they were read last.
    totals: HashMap<u32, Stats>,
    /// When the last sample was taken; nothing before the first one.
    sampled: Option<Instant>,
    /// The numbers of samples that there were.
    samples: u32,
    /// When those had their turn that have it in this place; before that the first sample was the one of all.
    turns: [Option<Instant>; TURNS as usize],
}

/// What has come to a counter, which begins anew when it is set to 0.
fn moved(total: Stats, from: Stats, to: Stats) -> Stats {
    let moved = |total: u64, from: u64, to: u64| total.wrapping_add(to).wrapping_sub(from);
    Stats {
        connections: moved(total.connections, from.connections, to.connections),
        packets: moved(total.packets, from.packets, to.packets),
        bytes: moved(total.bytes, from.bytes, to.bytes),
    }
}

impl Sampling {
    /// Whether every destination is to be read: nothing is known of what they had counted before.
    pub(super) fn is_first(&self) -> bool {
        self.sampled.is_none()
    }

    /// The destinations that are to be read because of what is known of them.
    pub(super) fn lively(&self) -> impl Iterator<Item = u32> {
        let lively = self.destinations.iter();
        lively
            .filter(|(_, sampled)| sampled.has_grown || !sampled.estimate.is_still())
            .map(|(id, _)| *id)
    }

    /// Of all ids below this one those whose turn it is.
    pub(super) fn turn(&self, end: u32) -> impl Iterator<Item = u32> + use<> {
        (self.samples % TURNS..end).step_by(TURNS as usize)
    }

    /// Takes a sample: destinations with what they have counted, and whether they have connections. `service_of` says
    /// whose a destination is, which may be nobody's by now.
    pub(super) fn sample(
        &mut self,
        read: impl Iterator<Item = (u32, Stats, bool)>,
        service_of: impl Fn(u32) -> Option<u32>,
        now: Instant,
    ) {
        let Self {
            destinations, totals, ..
        } = self;
        destinations.retain(|id, sampled| {
            let stays = service_of(*id) == Some(sampled.service);
            if !stays && let Some(total) = totals.get_mut(&sampled.service) {
                *total = moved(*total, sampled.estimate.last(), Stats::default());
            }
            stays
        });
        let last = self.sampled.replace(now);
        for (id, stats, is_busy) in read {
            let Some(service) = service_of(id) else { continue };
            if stats == Stats::default() && !destinations.contains_key(&id) {
                continue;
            }
            // What was never read before has counted from 0: since the last sample, or since its last turn.
            let turn = self.turns[(id % TURNS) as usize].or(last);
            let sampled = destinations.entry(id).or_insert_with(|| Sampled {
                estimate: Estimate::default(),
                service,
                at: if is_busy { last } else { turn }.unwrap_or(now),
                has_grown: false,
            });
            let before = sampled.estimate.last();
            let total = totals.entry(service).or_default();
            *total = moved(*total, before, stats);
            if last.is_some() {
                let elapsed = now.saturating_duration_since(sampled.at);
                sampled
                    .estimate
                    .follow(stats, elapsed.max(Duration::from_millis(1)));
            } else {
                sampled.estimate.begin(stats);
            }
            sampled.has_grown = stats != before && last.is_some();
            sampled.at = now;
        }
        self.turns[(self.samples % TURNS) as usize] = last.map(|_| now);
        self.samples = self.samples.wrapping_add(1);
    }

    /// What the destinations of a service have counted together.
    pub(super) fn total(&self, service: u32) -> Stats {
        self.totals.get(&service).copied().unwrap_or_default()
    }

    /// The rates of a destination.
    pub(super) fn rates(&self, id: u32) -> Rates {
        let sampled = self.destinations.get(&id);
        sampled.map(|sampled| sampled.estimate.read()).unwrap_or_default()
    }

    /// Starts one anew whose counters are set to 0.
    pub(super) fn zero(&mut self, id: u32) {
        if let Some(sampled) = self.destinations.get_mut(&id) {
            let last = std::mem::take(&mut sampled.estimate).last();
            if let Some(total) = self.totals.get_mut(&sampled.service) {
                *total = moved(*total, last, Stats::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SAMPLE: Duration = Duration::from_secs(2);

    fn stats(packets: u64) -> Stats {
        Stats {
            packets,
            ..Stats::default()
        }
    }

    /// Counters of destinations, of which every second one is a service's; and who has connections.
    struct Played {
        sampling: Sampling,
        counters: Vec<u64>,
        busy: BTreeSet<u32>,
        start: Instant,
        read: usize,
    }

    impl Played {
        fn new(destinations: usize) -> Self {
            Self {
                sampling: Sampling::default(),
                counters: vec![0; destinations],
                busy: BTreeSet::new(),
                start: Instant::now(),
                read: 0,
            }
        }

        /// A sample as the agent takes it, the next one.
        fn sample(&mut self) {
            let end = u32::try_from(self.counters.len()).unwrap();
            let ids: BTreeSet<u32> = if self.sampling.is_first() {
                (0..end).collect()
            } else {
                let known = self.sampling.lively().chain(self.busy.iter().copied());
                known
                    .chain(self.sampling.turn(end))
                    .filter(|id| *id < end)
                    .collect()
            };
            self.read = ids.len();
            let now = self.start + SAMPLE * self.sampling.samples;
            let read = ids
                .into_iter()
                .map(|id| (id, stats(self.counters[id as usize]), self.busy.contains(&id)));
            self.sampling.sample(read, |id| (id < end).then_some(id % 2), now);
            for service in 0..2 {
                let counted: u64 = (self.sampling.destinations.iter())
                    .filter(|(id, _)| *id % 2 == service)
                    .map(|(_, sampled)| sampled.estimate.last().packets)
                    .sum();
                assert_eq!(self.sampling.total(service).packets, counted);
            }
        }

        fn rate(&self, id: u32) -> u64 {
            self.sampling.rates(id).packets
        }
    }

    #[test]
    fn what_has_nothing_to_do_is_not_read() {
        let mut played = Played::new(1_600);
        played.counters[7] = 1_000_000;
        played.sample();
        assert_eq!(
            (played.read, played.rate(7)),
            (1_600, 0),
            "what is found is no burst"
        );
        played.sample();
        assert_eq!(played.read, 100, "one in sixteen");
        played.busy.insert(3);
        for expected in [50, 87, 116] {
            played.counters[3] += 400;
            played.sample();
            assert_eq!(played.rate(3), expected);
            assert!(played.read <= 101, "{}", played.read);
        }
        // It is followed until its rate has died away, also when its connections are gone.
        played.busy.clear();
        for _ in 0..60 {
            played.sample();
        }
        assert_eq!(played.rate(3), 0);
        assert_eq!(played.read, 100);
        assert_eq!(played.sampling.total(1).packets, 1_001_200);
    }

    #[test]
    fn what_counts_without_connections_is_found_in_its_turn() {
        let mut played = Played::new(64);
        played.sample();
        for _ in 0..40 {
            played.counters[5] += 200;
            played.sample();
        }
        assert_eq!(
            played.rate(5),
            100,
            "as many as there were, also before it was found"
        );
    }

    #[test]
    fn zero_and_leaving_take_from_the_total() {
        let mut played = Played::new(4);
        played.busy = [0, 1, 2, 3].into();
        played.sample();
        played.counters = vec![10, 20, 30, 40];
        played.sample();
        assert_eq!(played.sampling.total(0).packets, 40);
        played.sampling.zero(0);
        assert_eq!(
            (played.sampling.total(0).packets, played.rate(0)),
            (30, 0),
            "it counts from 0"
        );
        played.counters[0] = 4;
        played.sample();
        assert_eq!(played.sampling.total(0).packets, 34);
        assert_eq!(played.rate(0), 0, "half a packet a second is none");
        played.counters.truncate(2);
        played.busy = [0, 1].into();
        played.sample();
        assert_eq!(played.sampling.total(0).packets, 4);
        assert_eq!(played.rate(2), 0);
    }
}
