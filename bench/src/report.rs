//! The table on the terminal, and the same as JSON.

use std::{fmt::Write as _, fs};

use anyhow::Result;
use serde_json::json;

use crate::{
    floors::Size,
    measure::{Figure, noise},
    packets::Measured,
};

/// Width of a column.
const COLUMN: usize = 18;
const FIRST: usize = 36;

/// A number of flows, in few letters.
pub(crate) fn short(number: u64) -> String {
    match number {
        0..1024 => number.to_string(),
        1024..1_048_576 => format!("{} k", number >> 10),
        _ => format!("{} M", number >> 20),
    }
}

/// The values of a key, in order, each once.
fn columns<'a>(figures: &[&'a Figure], key: impl Fn(&'a Figure) -> u64) -> Vec<u64> {
    let mut columns = Vec::from_iter(figures.iter().map(|figure| key(figure)));
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Rows in the order of their first figure, one column for each value of `key`.
fn table<'a>(out: &mut String, title: &str, figures: &[&'a Figure], key: impl Fn(&'a Figure) -> u64 + Copy) {
    let columns = columns(figures, key);
    let _ = write!(out, "{title:<FIRST$}");
    for &column in &columns {
        let _ = write!(out, "{:>COLUMN$}", short(column));
    }
    out.push('\n');
    let mut rows: Vec<&str> = Vec::new();
    for figure in figures {
        if !rows.contains(&figure.row) {
            rows.push(figure.row);
        }
    }
    for row in rows {
        let _ = write!(out, "{row:<FIRST$}");
        for &column in &columns {
            let figure = figures
                .iter()
                .find(|figure| figure.row == row && key(figure) == column);
            let cell = figure.map_or(String::new(), |figure| {
                format!(
                    "{:.0} {:.0}..{:.0}, {:.0}",
                    figure.median, figure.p10, figure.p90, figure.quiet
                )
            });
            let _ = write!(out, "{cell:>COLUMN$}");
        }
        out.push('\n');
    }
}

/// How many times what `floor` costs a row does, by flows.
fn ratios(out: &mut String, figures: &[Figure], row: &str, floor: &str) {
    let of = |name: &str, flows: u64, services: u64| {
        figures
            .iter()
            .find(|figure| figure.row == name && figure.flows == flows && figure.services == services)
            .map(|figure| figure.median)
    };
    for figure in figures.iter().filter(|figure| figure.row == row) {
        let least = of(floor, figure.flows, figure.services)
            // New connections come from more flows than there is a column of the floors for.
            .or_else(|| of(floor, 1 << 20, 64));
        if let Some(least) = least {
            let _ = writeln!(
                out,
                "{row}, {} flows: {:.0} ns, {:.2} x `{floor}` ({least:.0} ns)",
                short(figure.flows),
                figure.median,
                figure.median / least
            );
        }
    }
}

/// All of it, as it is printed.
pub(crate) fn text(measured: &Measured, rounds: u16) -> String {
    let mut out = String::new();
    let figures = &measured.figures;
    let _ = writeln!(
        out,
        "ns a packet, net of a program that does nothing: median, 10th..90th percentile of {rounds} rounds, and when quiet"
    );
    let (by_services, by_flows): (Vec<&Figure>, Vec<&Figure>) = figures.iter().partition(|figure| {
        figure.services != 64 && figure.services != 1 || figure.flows == 1 << 16 && figure.services == 1
    });
    table(&mut out, "flows", &by_flows, |figure| figure.flows);
    out.push('\n');
    if !by_services.is_empty() {
        table(&mut out, "services (64 k flows)", &by_services, |figure| {
            figure.services
        });
        out.push('\n');
    }
    ratios(&mut out, figures, "TCP, known connection", "line");
    ratios(&mut out, figures, "new connection, rr", "lines");
    ratios(&mut out, figures, "new connection, mh", "lines");
    ratios(&mut out, figures, "SYN flood", "lines");
    let _ = writeln!(
        out,
        "\n{:<FIRST$}{:>14}{:>14}{:>14}",
        "program", "instructions", "machine code", "verified"
    );
    for (
        name,
        Size {
            instructions,
            machine_code,
            verified,
        },
    ) in &measured.sizes
    {
        let _ = writeln!(
            out,
            "{name:<FIRST$}{instructions:>14}{machine_code:>14}{verified:>14}"
        );
    }
    let (is_noisy, spread) = noise(figures);
    let _ = writeln!(
        out,
        "\nThe program that does nothing was up to {spread:.0} ns away from itself{}",
        if is_noisy {
            ": the machine was too busy to tell differences of that size; measure again when it is quiet."
        } else {
            "."
        }
    );
    out
}

/// The kernel's release, and the processor where the kernel names it.
///
/// # Errors
///
/// When the kernel does not say.
pub(crate) fn machine() -> Result<(String, Option<String>)> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let processor = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches(['\t', ' ', ':']).to_owned());
    Ok((kernel.trim_end().to_owned(), processor))
}

/// The figures as JSON: times in ns a packet.
///
/// # Errors
///
/// When a figure is no number.
pub(crate) fn document(measured: &Measured, rounds: u16) -> Result<String> {
    let (kernel, processor) = machine()?;
    let (is_noisy, noise) = noise(&measured.figures);
    let sizes = measured
        .sizes
        .iter()
        .map(|(program, size)| json!({ "program": program, "size": size }));
    Ok(serde_json::to_string_pretty(&json!({
        "kernel": kernel,
        "processor": processor,
        "rounds": rounds,
        "noise": noise,
        "too_noisy": is_noisy,
        "figures": measured.figures,
        "programs": Vec::from_iter(sizes),
    }))?)
}
