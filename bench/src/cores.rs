//! `--wire` on two processors: whether two of them forward twice as many packets as one.
//!
//! Each has a generator and a cable of its own, to two ends of one director, and every packet stays on the processor that
//! it was sent from, as it does where a network card has a queue for each. The director's program and tables are the same
//! for both; the floors share nothing.

use std::{
    fmt::Write as _,
    sync::{Arc, Barrier},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lvs_xdp::dataplane::Mode;
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::{frame::tcp, netns::Netns, trial::Director};
use nix::sched::CpuSet;
use serde::Serialize;

use crate::{
    cable::{Cable, Generator, Seen, direct},
    floors::{Floors, Order, Stream},
    frames::{PORT, Template},
    measure::percentile,
    packets::SERVICES,
    report::short,
    stay_on,
};

const CONNECTIONS: u32 = 1 << 21;
/// Flows of each processor.
const FLOWS: [u64; 2] = [1, 1 << 17];
/// Packets that each processor sends in a round.
const PACKETS: u32 = 1_000_000;
/// The ends of a director's cables.
const ENDS: [&str; 2] = ["eth0", "eth1"];

/// A processor with its generator.
struct Lane {
    cpu: usize,
    generator: Generator,
    /// Which of the cables it sends to, and which virtual addresses.
    number: u32,
}

/// What both processors send to.
struct Row {
    name: &'static str,
    cables: [Cable; 2],
    /// The director, where it is one of lvs-xdp's.
    director: Option<Director>,
}

/// What a row did.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    row: &'static str,
    /// Flows of each processor.
    flows: u64,
    /// Millions of packets a second by one processor, while the other one has nothing to do: the median of all rounds.
    one: f64,
    /// Those by both at a time.
    two: f64,
    /// Of a hundred packets sent, so many came back.
    back: f64,
}

impl Lane {
    fn send(&mut self, row: &Row, flags: u8, flows: u64, order: Order, packets: u32) -> Result<Seen> {
        let mut template = Template::tcp(PORT, flags);
        template.virtual_address += self.number * SERVICES;
        let stream = Stream {
            template: &template,
            flows,
            services: SERVICES.into(),
            order,
        };
        let cable = &row.cables[self.number as usize];
        self.generator
            .send(cable, &stream, &mut 0, packets)
            .with_context(|| format!("`{}` with {flows} flows on processor {}", row.name, self.cpu))
    }
}

/// The processors that this process may use.
fn processors() -> Result<Vec<usize>> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let numbers = 0..CpuSet::count();
    Ok(Vec::from_iter(
        numbers.filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)),
    ))
}

/// Has the lanes send at a time, each on its own processor.
fn at_a_time(lanes: &mut [Lane], row: &Row, flows: u64) -> Result<Vec<Seen>> {
    let start = Barrier::new(lanes.len());
    thread::scope(|scope| {
        let threads = Vec::from_iter(lanes.iter_mut().map(|lane| {
            let start = &start;
            scope.spawn(move || {
                let here = stay_on(lane.cpu);
                start.wait();
                here?;
                lane.send(row, tcp::ACK, flows, Order::MEASURE, PACKETS)
            })
        }));
        let seen = threads.into_iter().map(|thread| {
            let outcome = thread.join();
            outcome.unwrap_or_else(|_| Err(anyhow!("a generator panicked")))
        });
        seen.collect()
    })
}

/// Measures both, in so many rounds; nothing where there is one processor only.
///
/// # Errors
///
/// When something cannot be loaded, or does not do what its row says.
pub(crate) fn run(rounds: u16) -> Result<Vec<Figure>> {
    let Ok(cpus) = <[usize; 2]>::try_from(Vec::from_iter(processors()?.into_iter().take(2))) else {
        return Ok(Vec::new());
    };
    let first = Template::tcp(PORT, 0).virtual_address;
    let mut lanes = Vec::new();
    for (number, cpu) in (0..).zip(cpus) {
        let floors = Floors::load(CONNECTIONS, SERVICES, first + number * SERVICES)?;
        lanes.push(Lane {
            cpu,
            generator: Generator::new(floors)?,
            number,
        });
    }
    let [one, two] = lanes.as_mut_slice() else {
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    for (name, program) in [("do nothing", "nothing"), ("line (L)", "line")] {
        let cables = cables(one, two, program)?;
        one.generator.attach(program, &cables[0])?;
        two.generator.attach(program, &cables[1])?;
        rows.push(Row {
            name,
            cables,
            director: None,
        });
    }
    let cables = cables(one, two, "both")?;
    let director = Some(direct(&cables.each_ref(), Mode::Native, CONNECTIONS)?);
    let row = Row {
        name: "lvs-xdp, native",
        cables,
        director,
    };
    for lane in &mut lanes {
        for flags in [tcp::SYN, tcp::ACK] {
            let flows = FLOWS[1];
            let seen = lane.send(&row, flags, flows, Order::FILL, u32::try_from(flows)?)?;
            seen.ensure_opened(row.name)?;
        }
    }
    rows.push(row);
    let cases = Vec::from_iter(
        FLOWS
            .iter()
            .flat_map(|&flows| rows.iter().map(move |row| (row, flows))),
    );
    let mut seen = vec![Vec::new(); cases.len()];
    // The first round warms the caches, and does not count.
    for round in 0..=rounds {
        for (&(row, flows), seen) in cases.iter().zip(&mut seen) {
            let alone = at_a_time(&mut lanes[..1], row, flows)?;
            let known = known(row);
            let both = at_a_time(&mut lanes, row, flows)?;
            let back = both.iter().map(|seen| seen.back).sum::<u64>();
            let known = self::known(row) - known;
            ensure!(
                row.director.is_none() || known * 100 >= back * 99,
                "`{}`: of {back} packets, {known} were of known connections",
                row.name
            );
            if round > 0 {
                seen.push((alone, both));
            }
        }
        eprint!("\r{round} of {rounds} rounds");
    }
    eprintln!();
    Ok(Vec::from_iter(
        cases
            .iter()
            .zip(&seen)
            .map(|(&(row, flows), seen)| figure(row.name, flows, seen)),
    ))
}

/// A cable from each lane to a namespace of both.
fn cables(one: &mut Lane, two: &mut Lane, label: &str) -> Result<[Cable; 2]> {
    let netns = Arc::new(Netns::new(label)?);
    let [first, second] = ENDS;
    Ok([
        one.generator.cable_to(Arc::clone(&netns), first)?,
        two.generator.cable_to(netns, second)?,
    ])
}

fn known(row: &Row) -> u64 {
    let director = row.director.as_ref();
    director.map_or(0, |director| director.dataplane.packets_of(Reason::Connection))
}

fn figure(row: &'static str, flows: u64, seen: &[(Vec<Seen>, Vec<Seen>)]) -> Figure {
    let rate = |seen: &[Seen]| seen.iter().map(|seen| 1e3 / seen.each).sum::<f64>();
    let median = |rates: &mut Vec<f64>| percentile(rates, 50);
    let all = || seen.iter().flat_map(|(alone, both)| alone.iter().chain(both));
    Figure {
        row,
        flows,
        one: median(&mut seen.iter().map(|(alone, _)| rate(alone)).collect()),
        two: median(&mut seen.iter().map(|(_, both)| rate(both)).collect()),
        back: 100.0 * all().map(|seen| seen.back).sum::<u64>() as f64
            / all().map(|seen| seen.sent).sum::<u64>() as f64,
    }
}

/// The table.
pub(crate) fn text(figures: &[Figure], rounds: u16) -> String {
    let mut out = format!(
        "Two cores, each with a generator, a cable to the director, and as many flows: millions of packets a second by \
         one of them and by both, medians of {rounds} rounds\n"
    );
    let _ = writeln!(
        out,
        "{:<20}{:>8}{:>8}{:>8}{:>8}{:>9}",
        "", "flows", "one", "both", "ratio", "% back"
    );
    for figure in figures {
        let _ = writeln!(
            out,
            "{:<20}{:>8}{:>8.2}{:>8.2}{:>8.2}{:>9.2}",
            figure.row,
            short(figure.flows),
            figure.one,
            figure.two,
            figure.two / figure.one,
            figure.back,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_both_at_a_time() {
        let seen = |each, back| Seen {
            sent: 100,
            back,
            each,
        };
        let round = |alone, [first, second]: [f64; 2]| {
            (vec![seen(alone, 100)], vec![seen(first, 100), seen(second, 97)])
        };
        let rounds = [
            round(500.0, [500.0, 500.0]),
            round(250.0, [500.0, 250.0]),
            round(1000.0, [1000.0, 1000.0]),
        ];
        let figure = figure("row", 1, &rounds);
        assert_eq!((figure.one, figure.two), (2.0, 4.0));
        assert_eq!(figure.back, 99.0);
    }
}
