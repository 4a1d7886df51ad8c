//! Requests a second of real clients: wrk asks nginx, directly and through the director.
//!
//! Both ask the same server behind the same router, so the director's part is what differs. All of it - client,
//! router, director, server - runs on one core, and the figure is what all of them cost together.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    lab::{Lab, LabConfig, real_server_address},
    process::output,
};
use serde::Serialize;

use crate::measure::percentile;

/// How long wrk asks, in seconds.
const SECONDS: u64 = 2;
/// How many connections it has at a time.
const AT_A_TIME: u16 = 32;
const ROUNDS: u16 = 5;
/// A new connection for each request leaves an entry for two minutes.
const CONNECTIONS: u32 = 1 << 20;

/// How one way of asking went.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) way: &'static str,
    /// Whether each request had a connection of its own.
    pub(crate) new_connections: bool,
    /// Requests a second: the median of all rounds.
    pub(crate) requests: f64,
    /// A tenth of the rounds have less.
    pub(crate) p10: f64,
    /// A tenth of the rounds have more.
    pub(crate) p90: f64,
    /// µs until half, nine tenths and all but a hundredth of the requests were answered: medians of all rounds.
    pub(crate) latencies: [f64; 3],
    /// Requests that were not answered as they should, in all rounds.
    pub(crate) errors: u64,
}

/// What wrk has said.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Said {
    requests: f64,
    latencies: [f64; 3],
    errors: u64,
}

impl Said {
    fn read(text: &str) -> Result<Self> {
        let after = |label: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(label))
                .map(str::trim)
                .with_context(|| format!("wrk says nothing of `{label}`:\n{text}"))
        };
        let mut latencies = [0.0; 3];
        for (place, label) in latencies.iter_mut().zip(["50%", "90%", "99%"]) {
            *place = microseconds(after(label)?)?;
        }
        // wrk is silent about both where there are none.
        let errors = ["Socket errors:", "Non-2xx or 3xx responses:"]
            .iter()
            .filter_map(|label| after(label).ok())
            .flat_map(|counts| counts.split([' ', ',']))
            .filter_map(|word| word.parse::<u64>().ok())
            .sum();
        Ok(Self {
            requests: after("Requests/sec:")?.parse()?,
            latencies,
            errors,
        })
    }
}

/// A time as wrk writes it: `635.00us`, `1.20ms`, `2.00s`.
fn microseconds(text: &str) -> Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
    for (unit, factor) in units {
        if let Some(Ok(number)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(number * factor);
        }
    }
    bail!("`{text}` is no time of wrk's")
}

fn ask(lab: &Lab, url: &str, new_connections: bool) -> Result<Said> {
    let mut wrk = lab.client().command("wrk");
    wrk.args(["--threads", "1", "--latency"])
        .args(["--connections", &AT_A_TIME.to_string()])
        .args(["--duration", &format!("{SECONDS}s")]);
    if new_connections {
        wrk.args(["--header", "Connection: close"]);
    }
    wrk.arg(url);
    let output = output(wrk, Duration::from_secs(SECONDS + 30))?;
    Said::read(&String::from_utf8_lossy(&output.stdout)).with_context(|| {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("wrk has ended with {}: {complaint}", output.status)
    })
}

/// A lab with one real server.
fn lab(xdp_mode: XdpMode) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        real_servers: 1,
        agent: AgentConfig {
            xdp_mode,
            connections: Some(CONNECTIONS),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    lab.add_service("rr")?;
    Ok(lab)
}

/// Measures them.
///
/// # Errors
///
/// When the lab cannot be built, or wrk gets no answer.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let [native, generic] = [lab(XdpMode::Native)?, lab(XdpMode::Generic)?];
    let directly = format!("http://{}/", real_server_address(1));
    let ways = [
        ("directly", &native, directly),
        ("lvs-xdp, native", &native, native.url("/")),
        ("lvs-xdp, generic", &generic, generic.url("/")),
    ];
    let cases = Vec::from_iter([false, true].into_iter().flat_map(|new| {
        ways.iter()
            .map(move |(way, lab, url)| (*way, *lab, url.as_str(), new))
    }));
    let mut said = vec![Vec::new(); cases.len()];
    for round in 1..=ROUNDS {
        for ((_, lab, url, new), said) in cases.iter().zip(&mut said) {
            said.push(ask(lab, url, *new)?);
        }
        eprint!("\r{round} of {ROUNDS} rounds of clients");
    }
    eprintln!();
    let figures = cases
        .iter()
        .zip(&said)
        .map(|((way, _, _, new_connections), said)| {
            let over = |value: &dyn Fn(&Said) -> f64, percent| {
                percentile(&mut Vec::from_iter(said.iter().map(value)), percent)
            };
            let requests = |percent| over(&|said| said.requests, percent);
            Figure {
                way,
                new_connections: *new_connections,
                requests: requests(50),
                p10: requests(10),
                p90: requests(90),
                latencies: [0, 1, 2].map(|at| over(&|said| said.latencies[at], 50)),
                errors: said.iter().map(|said| said.errors).sum(),
            }
        });
    Ok(figures.collect())
}

/// The table.
pub(crate) fn text(figures: &[Figure]) -> String {
    let mut out = format!(
        "wrk, {AT_A_TIME} connections at a time, and nginx behind a router, all on one core: requests a second \
         (median, 10th..90th percentile of {ROUNDS} rounds) and how long they took, in µs\n\
         {:<20}{:<16}{:>10}{:>18}{:>10}{:>8}{:>8}{:>8}{:>8}\n",
        "", "connections", "requests", "p10..p90", "x direct", "50 %", "90 %", "99 %", "errors"
    );
    for figure in figures {
        let direct = figures
            .iter()
            .find(|other| other.new_connections == figure.new_connections);
        let [half, most, all] = figure.latencies;
        let _ = writeln!(
            out,
            "{:<20}{:<16}{:>10.0}{:>18}{:>10.2}{half:>8.0}{most:>8.0}{all:>8.0}{:>8}",
            figure.way,
            if figure.new_connections {
                "one a request"
            } else {
                "kept"
            },
            figure.requests,
            format!("{:.0}..{:.0}", figure.p10, figure.p90),
            direct.map_or(f64::NAN, |direct| figure.requests / direct.requests),
            figure.errors
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 2s test @ http://192.168.2.220/\n  1 threads and 32 connections\n  Latency \
                        Distribution\n     50%    1.20ms\n     75%    1.30ms\n     90%  950.00us\n     99%    \
                        2.00s \n  100 requests in 2.00s, 20.00KB read\nRequests/sec:     50.25\nTransfer/sec: 10KB\n";

    #[test]
    fn what_wrk_says_is_read() {
        let said = Said::read(GOOD).expect("a whole report");
        let latencies = [1200.0, 950.0, 2e6];
        assert_eq!(
            said,
            Said {
                requests: 50.25,
                latencies,
                errors: 0
            }
        );
    }

    #[test]
    fn errors_are_counted() {
        let bad = format!(
            "{GOOD}  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 4\n"
        );
        assert_eq!(Said::read(&bad).expect("a whole report").errors, 10);
        assert!(Said::read("unable to connect").is_err());
    }
}
