//! `--wire`: packets a second through a cable, the director and back.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::dataplane::Mode;
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::{frame::tcp, trial::Director};
use serde::Serialize;
use serde_json::json;

use crate::{
    cable::{Cable, Generator, Seen, direct},
    clients, cores,
    floors::{Floors, Order, Stream},
    frames::{PORT, Template},
    measure::percentile,
    packets::SERVICES,
    report::{machine, short},
};

/// Entries of the table of connections, and lines of the floor's.
const CONNECTIONS: u32 = 1 << 21;
const FLOWS: [u64; 3] = [1, 1 << 10, 1 << 17];
/// Packets that a row gets in a round: some tenths of a second.
const PACKETS: u32 = 1_000_000;
/// Of a hundred packets so many have to come back, or the cable is measured and not the program.
const LEAST_BACK: f64 = 99.0;

/// What is at the end of a cable.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) cable: Cable,
    /// The director, where it is one of lvs-xdp's.
    pub(crate) director: Option<Director>,
    /// Whether packets come back.
    pub(crate) answers: bool,
}

/// What a row did with so many flows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) row: &'static str,
    pub(crate) flows: u64,
    /// ns from packet to packet: the median of all rounds.
    pub(crate) median: f64,
    /// A tenth of the rounds have less.
    pub(crate) p10: f64,
    /// A tenth of the rounds have more.
    pub(crate) p90: f64,
    /// Millions of packets a second, by the median.
    pub(crate) mpps: f64,
    /// Of a hundred packets sent, so many came back.
    pub(crate) back: f64,
}

/// Opens the flows of a row: what the others are that it does not know from before.
///
/// # Errors
///
/// When more than a few packets are lost.
pub(crate) fn open(generator: &mut Generator, row: &Row, flows: u64) -> Result<()> {
    for flags in [tcp::SYN, tcp::ACK] {
        let template = Template::tcp(PORT, flags);
        let stream = Stream {
            template: &template,
            flows,
            services: SERVICES.into(),
            order: Order::FILL,
        };
        let seen = generator.send(&row.cable, &stream, &mut 0, u32::try_from(flows)?)?;
        if row.answers {
            seen.ensure_opened(row.name)?;
        }
    }
    Ok(())
}

/// Sends every row so many packets in each of so many rounds, one row after the other, and by each number of flows.
///
/// # Errors
///
/// When something cannot be run, or does not do what its row says.
pub(crate) fn rounds(
    generator: &mut Generator,
    rows: &[Row],
    flows: &[u64],
    packets: u32,
    rounds: u16,
) -> Result<Vec<Figure>> {
    let template = Template::tcp(PORT, tcp::ACK);
    let cases = Vec::from_iter(
        flows
            .iter()
            .flat_map(|&flows| rows.iter().map(move |row| (row, flows))),
    );
    let mut seen = vec![Vec::new(); cases.len()];
    let mut positions = vec![0; cases.len()];
    // The first round warms the caches, and does not count.
    for round in 0..=rounds {
        for ((&(row, flows), seen), position) in cases.iter().zip(&mut seen).zip(&mut positions) {
            let stream = Stream {
                template: &template,
                flows,
                services: SERVICES.into(),
                order: Order::MEASURE,
            };
            let known = |row: &Row| {
                let director = row.director.as_ref();
                director.map_or(0, |director| director.dataplane.packets_of(Reason::Connection))
            };
            let before = known(row);
            let run = generator
                .send(&row.cable, &stream, position, packets)
                .with_context(|| format!("`{}` with {flows} flows", row.name))?;
            let known = known(row) - before;
            ensure!(
                row.director.is_none() || known * 100 >= run.back * 99,
                "`{}`: of {} packets, {known} were of known connections",
                row.name,
                run.back
            );
            if round > 0 {
                seen.push(run);
            }
        }
        eprint!("\r{round} of {rounds} rounds");
    }
    eprintln!();
    Ok(Vec::from_iter(cases.iter().zip(&seen).map(
        |(&(row, flows), seen)| {
            let mut times = Vec::from_iter(seen.iter().map(|seen| seen.each));
            let total = |count: fn(&Seen) -> u64| seen.iter().map(count).sum::<u64>() as f64;
            let median = percentile(&mut times, 50);
            Figure {
                row: row.name,
                flows,
                median,
                p10: percentile(&mut times, 10),
                p90: percentile(&mut times, 90),
                mpps: 1e3 / median,
                back: 100.0 * total(|seen| seen.back) / total(|seen| seen.sent),
            }
        },
    )))
}

/// A floor at the end of a cable of its own.
///
/// # Errors
///
/// When it cannot be attached.
pub(crate) fn floor(
    generator: &mut Generator,
    name: &'static str,
    program: &str,
    answers: bool,
) -> Result<Row> {
    let cable = generator.cable(program)?;
    generator.attach(program, &cable)?;
    Ok(Row {
        name,
        cable,
        director: None,
        answers,
    })
}

/// lvs-xdp at the end of a cable of its own.
///
/// # Errors
///
/// When it cannot be attached.
pub(crate) fn director(
    generator: &mut Generator,
    name: &'static str,
    mode: Mode,
    connections: u32,
) -> Result<Row> {
    let cable = generator.cable(&mode.to_string())?;
    let director = Some(direct(&[&cable], mode, connections)?);
    Ok(Row {
        name,
        cable,
        director,
        answers: true,
    })
}

/// Measures what a cable lets through.
///
/// # Errors
///
/// When something cannot be loaded, or does not do what its row says.
pub(crate) fn run(rounds_wanted: u16) -> Result<Vec<Figure>> {
    let first = Template::tcp(PORT, 0).virtual_address;
    let mut generator = Generator::new(Floors::load(CONNECTIONS, SERVICES, first)?)?;
    let mut rows = Vec::new();
    for (name, program) in [
        ("do nothing", "nothing"),
        ("rewriting", "rewriting"),
        ("line (L)", "line"),
    ] {
        rows.push(floor(&mut generator, name, program, true)?);
    }
    for (name, mode) in [
        ("lvs-xdp, native", Mode::Native),
        ("lvs-xdp, generic", Mode::Generic),
    ] {
        let row = director(&mut generator, name, mode, CONNECTIONS)?;
        open(&mut generator, &row, FLOWS[2])?;
        rows.push(row);
    }
    rounds(&mut generator, &rows, &FLOWS, PACKETS, rounds_wanted)
}

/// The table.
pub(crate) fn text(figures: &[Figure], rounds: u16) -> String {
    let mut out = format!(
        "One core, packets through a cable, the director and back: ns from packet to packet (median, 10th..90th \
         percentile of {rounds} rounds), the generator and both ends of the cable included\n"
    );
    let _ = writeln!(
        out,
        "{:<20}{:>8}{:>8}{:>14}{:>8}{:>9}{:>9}",
        "", "flows", "ns", "p10..p90", "Mpps", "x least", "% back"
    );
    for figure in figures {
        let least = figures.iter().find(|other| other.flows == figure.flows);
        let _ = writeln!(
            out,
            "{:<20}{:>8}{:>8.0}{:>14}{:>8.2}{:>9.2}{:>9.2}{}",
            figure.row,
            short(figure.flows),
            figure.median,
            format!("{:.0}..{:.0}", figure.p10, figure.p90),
            figure.mpps,
            least.map_or(f64::NAN, |least| figure.median / least.median),
            figure.back,
            if figure.back < LEAST_BACK {
                "  the cable lost packets: this is no figure of the program's"
            } else {
                ""
            }
        );
    }
    out
}

/// The figures as JSON: times in ns from packet to packet.
///
/// # Errors
///
/// When the kernel does not say what it is, or a figure is no number.
pub(crate) fn document(
    figures: &[Figure],
    cores: &[cores::Figure],
    clients: &[clients::Figure],
    rounds: u16,
) -> Result<String> {
    let (kernel, processor) = machine()?;
    Ok(serde_json::to_string_pretty(&json!({
        "kernel": kernel,
        "processor": processor,
        "rounds": rounds,
        "figures": figures,
        "cores": cores,
        "clients": clients,
    }))?)
}
