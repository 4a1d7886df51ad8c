//! Rounds, in which every program runs once after the other, and what they say.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramFd;
use lvs_xdp::dataplane::trial::Trials;
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::trial::{Director, action, xdp};
use serde::Serialize;

use crate::{
    floors::{Floors, Order, Run, Stream},
    frames::Template,
};

/// Packets that each program gets in a round: some milliseconds.
pub(crate) const PACKETS: u32 = 100_000;
/// What the do-nothing program costs net of itself is 0. Where the middle eight tenths of what is measured lie further
/// apart than this, in ns, the machine was busy with other things.
const QUIET: f64 = 12.0;

/// What is measured: a program with a stream of packets.
pub(crate) struct Case {
    pub(crate) row: &'static str,
    /// The number of flows, a power of two.
    pub(crate) flows: u64,
    /// The number of services that they go to, a power of two.
    pub(crate) services: u64,
    pub(crate) template: Template,
    pub(crate) tested: Tested,
    /// Packets of the stream that come before all rounds.
    pub(crate) before: u32,
    /// Whether the half-open connections are taken out after each round, so that the next one finds the same room.
    pub(crate) makes_room: bool,
}

/// Where a stream goes on: the number of its last flow.
type Position = u64;

/// Whose program it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tested {
    /// One of the [`Floors`].
    Floor(&'static str),
    /// That of a director, by its number; and what becomes of every packet, but for a few.
    Director(usize, Reason),
}

/// What a row costs with so many flows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) row: &'static str,
    pub(crate) flows: u64,
    pub(crate) services: u64,
    /// ns a packet, net of the do-nothing program in the same round: the median over all rounds.
    pub(crate) median: f64,
    /// A tenth of the rounds have less.
    pub(crate) p10: f64,
    /// A tenth of the rounds have more.
    pub(crate) p90: f64,
    /// The tenth percentile of the program less that of the do-nothing program: what it costs while the machine is
    /// quiet, for what disturbs it only adds.
    pub(crate) quiet: f64,
}

impl Figure {
    fn of(case: &Case, times: &[(Duration, Duration)]) -> Self {
        let mut net = Vec::from_iter(
            times
                .iter()
                .map(|(nothing, program)| nanoseconds(*program) - nanoseconds(*nothing)),
        );
        let [mut nothing, mut program]: [Vec<f64>; 2] = [
            times.iter().map(|times| nanoseconds(times.0)).collect(),
            times.iter().map(|times| nanoseconds(times.1)).collect(),
        ];
        Self {
            row: case.row,
            flows: case.flows,
            services: case.services,
            median: percentile(&mut net, 50),
            p10: percentile(&mut net, 10),
            p90: percentile(&mut net, 90),
            quiet: percentile(&mut program, 10) - percentile(&mut nothing, 10),
        }
    }

    /// Whether it is one of the do-nothing program, which says how noisy the machine was.
    pub(crate) fn is_noise(&self) -> bool {
        self.row == NOTHING
    }
}

/// The row of the do-nothing program.
pub(crate) const NOTHING: &str = "nothing";

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// The value that so many of a hundred lie below.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last * percent + 50) / 100)
        .copied()
        .unwrap_or(f64::NAN)
}

/// What is loaded at the same time, and measured in the same rounds.
pub(crate) struct Stage {
    floors: Floors,
    directors: Vec<(Director, ProgramFd)>,
    cases: Vec<Case>,
}

impl Stage {
    pub(crate) fn new(floors: Floors) -> Self {
        Self {
            floors,
            directors: Vec::new(),
            cases: Vec::new(),
        }
    }

    /// Takes a director in; its number.
    ///
    /// # Errors
    ///
    /// When its program cannot be opened.
    pub(crate) fn add(&mut self, director: Director) -> Result<usize> {
        let program = Trials::open(director.pins())?.program()?;
        self.directors.push((director, program));
        Ok(self.directors.len() - 1)
    }

    /// Has all flows of a stream pass through a program once, in another order than they are measured in.
    ///
    /// # Errors
    ///
    /// When more than a few of them end otherwise than is said.
    pub(crate) fn fill(
        &mut self,
        stream: &Template,
        flows: u64,
        services: u64,
        tested: &Tested,
    ) -> Result<()> {
        let packets = u32::try_from(flows)?;
        self.run(tested, stream, (flows, services), (Order::FILL, &mut 0), packets)?;
        Ok(())
    }

    /// Has a case measured.
    pub(crate) fn measure(&mut self, case: Case) {
        self.cases.push(case);
    }

    fn run(
        &mut self,
        tested: &Tested,
        template: &Template,
        (flows, services): (u64, u64),
        (order, position): (Order, &mut Position),
        packets: u32,
    ) -> Result<Duration> {
        let (program, action) = match tested {
            Tested::Floor(name) => (&self.floors.program(name)?, xdp::TX),
            Tested::Director(number, reason) => (&self.directors[*number].1, action(*reason, false)),
        };
        let before = self.counted(tested);
        let time = self.floors.run(&mut Run {
            program,
            stream: Stream {
                template,
                flows,
                services,
                order,
            },
            position,
            packets,
            action,
        })?;
        // A stream that is not what its row says it is would be measured all the same.
        let counted = self.counted(tested) - before;
        let Tested::Director(number, reason) = tested else {
            return Ok(time);
        };
        if counted < u64::from(packets - packets / 100) {
            let reasons = self.directors[*number].0.dataplane.reasons();
            let seen = reasons.iter().filter(|reason| reason.packets > 0);
            bail!(
                "of {packets} packets, {counted} were counted as {}; since the beginning: {}",
                reason.name(),
                Vec::from_iter(seen.map(|reason| format!("{} {}", reason.packets, reason.name))).join(", ")
            );
        }
        Ok(time)
    }

    fn make_room(&self, tested: &Tested) {
        if let Tested::Director(number, _) = tested {
            let tables = self.directors[*number].0.dataplane.tables();
            tables.flush(|connection| connection.entry.state().is_half_open());
        }
    }

    fn counted(&self, tested: &Tested) -> u64 {
        match tested {
            Tested::Floor(_) => 0,
            Tested::Director(number, reason) => self.directors[*number].0.dataplane.packets_of(*reason),
        }
    }

    /// Runs all cases in so many rounds, one after the other in each, each right after the do-nothing program with the
    /// same frames.
    ///
    /// # Errors
    ///
    /// When something cannot be run, or does not do what its row says.
    pub(crate) fn rounds(mut self, rounds: u16) -> Result<Vec<Figure>> {
        let cases = std::mem::take(&mut self.cases);
        ensure!(!cases.is_empty(), "nothing is left to measure");
        let mut times = vec![Vec::new(); cases.len()];
        let mut positions = vec![0; cases.len()];
        // The first round warms the caches, and does not count.
        for round in 0..=rounds {
            for ((case, times), position) in cases.iter().zip(&mut times).zip(&mut positions) {
                let stream = (case.flows, case.services);
                let mut time = |tested: &Tested, position: &mut Position, packets| {
                    self.run(
                        tested,
                        &case.template,
                        stream,
                        (Order::MEASURE, position),
                        packets,
                    )
                    .with_context(|| format!("`{}` with {} flows", case.row, case.flows))
                };
                if round == 0 && case.before > 0 {
                    time(&case.tested, position, case.before)?;
                }
                let nothing = time(&Tested::Floor(NOTHING), &mut 0, PACKETS)?;
                let program = time(&case.tested, position, PACKETS)?;
                if case.makes_room {
                    self.make_room(&case.tested);
                }
                if round > 0 {
                    times.push((nothing, program));
                }
            }
            eprint!("\r{round} of {rounds} rounds");
        }
        eprintln!();
        Ok(Vec::from_iter(
            cases
                .iter()
                .zip(&times)
                .map(|(case, times)| Figure::of(case, times)),
        ))
    }
}

/// Whether the machine was so busy that figures tell little, and how far apart the do-nothing program lies from
/// itself, in ns.
pub(crate) fn noise(figures: &[Figure]) -> (bool, f64) {
    let spread = figures
        .iter()
        .filter(|figure| figure.is_noise())
        .map(|figure| figure.p90 - figure.p10)
        .fold(0.0, f64::max);
    (spread > QUIET, spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_values_in_order() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(
            [0, 10, 50, 90, 100].map(|percent| percentile(&mut values, percent)),
            [1.0, 1.0, 3.0, 5.0, 5.0]
        );
        assert!(percentile(&mut [], 50).is_nan());
    }

    #[test]
    fn figures_are_net_of_the_same_round() {
        let case = Case {
            row: "row",
            flows: 1,
            services: 64,
            template: Template::udp(),
            tested: Tested::Floor(NOTHING),
            before: 0,
            makes_room: false,
        };
        let nanoseconds = Duration::from_nanos;
        // A machine that was busy in one round costs both programs.
        let times = [(50, 80), (50, 82), (90, 121)]
            .map(|(nothing, program)| (nanoseconds(nothing), nanoseconds(program)));
        let figure = Figure::of(&case, &times);
        assert_eq!(figure.median.round(), 31.0);
        assert_eq!((figure.p10.round(), figure.p90.round()), (30.0, 32.0));
        assert_eq!(figure.quiet.round(), 30.0);
    }
}
