//! `lvs-xdp-bench`: what lvs-xdp costs. `cargo xtask bench` builds all that it takes, and starts it.

mod args;
mod cable;
mod clients;
mod control;
mod cores;
mod floors;
mod frames;
mod ipvs;
mod measure;
mod packets;
#[path = "../floors/src/plan.rs"]
mod plan;
mod plot;
mod report;
#[path = "../floors/src/trip.rs"]
mod trip;
mod wire;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::{Pid, geteuid},
};

use crate::args::BenchArgs;

/// What lvs-xdp costs
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: BenchArgs,
}

/// Keeps this thread on the CPU that it is on: tables stay in that one's caches.
fn stay() -> Result<()> {
    stay_on(sched_getcpu()?)
}

/// Keeps this thread on a CPU.
fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on one CPU")
}

fn main() -> Result<()> {
    let args = Cli::parse().args;
    ensure!(
        geteuid().is_root(),
        "the benchmark loads programs into the kernel: run it as root, by `cargo xtask bench`"
    );
    let document = if args.control {
        // On all CPUs: the agent inherits where this may run.
        let control = control::run(args.only.as_deref())?;
        print!("{}", control::text(&control));
        if let Some(path) = &args.plot {
            plot::growth(&control, path)?;
        }
        serde_json::to_string_pretty(&control)?
    } else if args.ipvs {
        stay()?;
        let Some(counted) = ipvs::run()? else {
            return Ok(());
        };
        print!("{}", ipvs::text(&counted));
        ipvs::document(&counted)?
    } else if args.wire {
        // Before this thread stays on one of them.
        let cores = cores::run(args.rounds)?;
        stay()?;
        let figures = wire::run(args.rounds)?;
        println!("{}", wire::text(&figures, args.rounds));
        if !cores.is_empty() {
            println!("{}", cores::text(&cores, args.rounds));
        }
        let clients = clients::run()?;
        print!("{}", clients::text(&clients));
        wire::document(&figures, &cores, &clients, args.rounds)?
    } else {
        stay()?;
        let measured = packets::run(&args)?;
        print!("{}", report::text(&measured, args.rounds));
        if let Some(path) = &args.plot {
            plot::draw(&measured, path)?;
        }
        report::document(&measured, args.rounds)?
    };
    if let Some(path) = &args.json {
        fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
