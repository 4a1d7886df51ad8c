//! `lvs-xdp-kernels`: the program and the reference case on the running kernel, and on others in a virtual machine.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lvs_xdp::dataplane::trial::Trials;
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    lab::{Lab, LabConfig},
    trial::Director,
    vm::{Machine, exchange_directory, guest_exchange, last_words},
};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

/// The running kernel's name on the command line.
const RUNNING: &str = "running";
/// How long a kernel may take, its boot included.
const LIMIT: Duration = Duration::from_secs(300);
/// Where a guest leaves its report.
const REPORT: &str = "report.json";
/// Entries of the connection table.
const CONNECTIONS: u32 = 1 << 16;

/// Loads the program and runs the reference case of LVS Direct Routing on each kernel, and prints what became of
/// it. The status is 0 if it was as it should be on all of them.
#[derive(Debug, Parser)]
#[command(name = "lvs-xdp-kernels", version)]
struct Options {
    /// `running`, or the series of a kernel that `cargo xtask kernels` has fetched, as 6.12.
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lvs-xdp-kernels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "must run as root: it makes network namespaces and loads XDP programs; try sudo"
    );
    if let Some(exchange) = guest_exchange() {
        let report = serde_json::to_string(&Report::of_this_kernel()?)?;
        fs::write(exchange.join(REPORT), report)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<24} {:>12} {:>8}  {:<16} {:<16}",
        "kernel", "instructions", "load", "native", "generic"
    );
    let mut passed = true;
    for kernel in &options.kernels {
        passed &= match report(kernel) {
            Ok(report) => {
                println!("{}", report.row());
                for (mode, error) in report.errors() {
                    eprintln!("{}, {mode}: {error}", report.kernel);
                }
                report.passed()
            }
            Err(error) => {
                println!(
                    "{kernel:<24} {:>12} {:>8}  {:<16} {:<16} fail",
                    "-", "-", "-", "-"
                );
                eprintln!("{kernel}: {error:#}");
                false
            }
        };
    }
    println!(
        "instructions: followed by the verifier; load: until program and maps are in the kernel (all but the \
         running kernel on an emulated processor); native, generic: who answered"
    );
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What a kernel makes of the program.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// `uname -r`.
    kernel: String,
    /// Instructions that the verifier has followed.
    instructions: u32,
    /// From the object file to program and maps in the kernel.
    load: Duration,
    native: Answers,
    generic: Answers,
}

/// The names of who answered, or why nobody did.
type Answers = Result<Vec<String>, String>;

impl Report {
    fn of_this_kernel() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim_end()
            .to_owned();
        let started = Instant::now();
        let director = Director::new(CONNECTIONS).context("loading the program")?;
        let load = started.elapsed();
        let instructions = Trials::open(director.pins())?.verified_instructions()?;
        drop(director);
        Ok(Self {
            kernel,
            instructions,
            load,
            native: reference_case(XdpMode::Native),
            generic: reference_case(XdpMode::Generic),
        })
    }

    fn row(&self) -> String {
        let Self {
            kernel,
            instructions,
            load,
            native,
            generic,
        } = self;
        let answers = |answers: &Answers| answers.as_ref().map_or("error".into(), |names| names.join(" "));
        let verdict = if self.passed() { "pass" } else { "fail" };
        format!(
            "{kernel:<24} {instructions:>12} {:>6.2} s  {:<16} {:<16} {verdict}",
            load.as_secs_f64(),
            answers(native),
            answers(generic)
        )
    }

    fn passed(&self) -> bool {
        [&self.native, &self.generic].into_iter().all(|answers| {
            answers
                .as_ref()
                .is_ok_and(|names| names == &["rs2", "rs1", "rs2", "rs1"])
        })
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        [("native", &self.native), ("generic", &self.generic)]
            .into_iter()
            .filter_map(|(mode, answers)| Some((mode, answers.as_ref().err()?.as_str())))
    }
}

/// Who answers four requests.
fn reference_case(mode: XdpMode) -> Answers {
    let requests = || -> Result<Vec<String>> {
        let lab = Lab::start(LabConfig {
            agent: AgentConfig {
                xdp_mode: mode,
                ..AgentConfig::default()
            },
            ..LabConfig::default()
        })?;
        lab.add_service("rr")?;
        (0..4)
            .map(|_| Ok(lab.fetch("/")?.trim_end().to_owned()))
            .collect()
    };
    requests().map_err(|error| format!("{error:#}"))
}

fn report(kernel: &str) -> Result<Report> {
    if kernel == RUNNING {
        return Report::of_this_kernel();
    }
    let machine = Machine::find(kernel)?;
    let exchange = exchange_directory()?;
    let mut guest = Command::new(std::env::current_exe()?);
    guest.arg(kernel);
    eprintln!("booting Linux {}", machine.release());
    machine.run(&guest, exchange.path(), LIMIT)?;
    read(&exchange.path().join(REPORT))
        .with_context(|| format!("no report came; {}", last_words(exchange.path())))
}

fn read(report: &Path) -> Result<Report> {
    Ok(serde_json::from_slice(&fs::read(report)?)?)
}
