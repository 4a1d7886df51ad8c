//! The command line of the benchmark. `cargo xtask bench` has the same, and compiles this file too.

use std::path::PathBuf;

use clap::Args;

/// What to measure, and where to put it.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Measure packets a second on a cable: a generator, the director, and what takes the packets off; then requests
    /// a second of real clients
    #[arg(long, conflicts_with_all = ["ipvs", "only", "plot"])]
    pub(crate) wire: bool,
    /// Measure instructions a packet beside the kernel's own IPVS, in a virtual machine that counts them
    #[arg(long, conflicts_with_all = ["only", "plot", "rounds"])]
    pub(crate) ipvs: bool,
    /// Measure what changes, lists and large tables cost the agent
    #[arg(long, conflicts_with_all = ["wire", "ipvs", "rounds"])]
    pub(crate) control: bool,
    /// Measure only rows whose name contains this, and the floors; of `--control` the rows that it names while it runs
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Rounds; each runs every program once
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u16).range(3..=999))]
    pub(crate) rounds: u16,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw them into this file as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}
