//! `lvs-xdp-kernels`: the program and the reference case on the running kernel, and on others in a virtual machine.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lvs_xdp::{
    api::types::{CheckState, CheckStatus},
    dataplane::trial::Trials,
};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{json, wait_for},
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
        "{:<24} {:>12} {:>8}  {:<16} {:<16} {:<7}",
        "kernel", "instructions", "load", "native", "generic", "checks"
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
                    "{kernel:<24} {:>12} {:>8}  {:<16} {:<16} {:<7} fail",
                    "-", "-", "-", "-", "-"
                );
                eprintln!("{kernel}: {error:#}");
                false
            }
        };
    }
    println!(
        "instructions: followed by the verifier; load: until program and maps are in the kernel (all but the \
         running kernel on an emulated processor); native, generic: who answered; checks: whether the health checks of \
         the virtual address saw it come and go on a real server, also those of an agent after one that was killed"
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
    /// What health checks of the virtual address did not see.
    checks: Result<(), String>,
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
            checks: health_checks().map_err(|error| format!("{error:#}")),
        })
    }

    fn row(&self) -> String {
        let Self {
            kernel,
            instructions,
            load,
            native,
            generic,
            checks,
        } = self;
        let answers = |answers: &Answers| answers.as_ref().map_or("error".into(), |names| names.join(" "));
        let verdict = if self.passed() { "pass" } else { "fail" };
        format!(
            "{kernel:<24} {instructions:>12} {:>6.2} s  {:<16} {:<16} {:<7} {verdict}",
            load.as_secs_f64(),
            answers(native),
            answers(generic),
            if checks.is_ok() { "seen" } else { "error" }
        )
    }

    fn passed(&self) -> bool {
        let are_in_turns = |answers: &Answers| {
            answers
                .as_ref()
                .is_ok_and(|names| names == &["rs2", "rs1", "rs2", "rs1"])
        };
        are_in_turns(&self.native) && are_in_turns(&self.generic) && self.checks.is_ok()
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        let errors = [
            ("native", self.native.as_ref().err()),
            ("generic", self.generic.as_ref().err()),
            ("checks", self.checks.as_ref().err()),
        ];
        errors
            .into_iter()
            .filter_map(|(what, error)| Some((what, error?.as_str())))
    }
}

fn lab(mode: XdpMode) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    lab.add_service("rr")?;
    Ok(lab)
}

/// Who answers four requests.
fn reference_case(mode: XdpMode) -> Answers {
    let requests = || -> Result<Vec<String>> {
        let lab = lab(mode)?;
        (0..4)
            .map(|_| Ok(lab.fetch("/")?.trim_end().to_owned()))
            .collect()
    };
    requests().map_err(|error| format!("{error:#}"))
}

/// Has the virtual address checked on the real servers, takes it off one of them and puts it there again, before an agent
/// was killed and after. How its programs for that are attached differs from kernel to kernel (TCX came with Linux 6.6).
fn health_checks() -> Result<()> {
    let mut lab = lab(XdpMode::Native)?;
    let service = lab.service().to_string();
    lab.cli(["service", "edit", "tcp", &service].into_iter().chain([
        "--check",
        "http",
        "--check-interval",
        "300ms",
    ]))?;
    for _ in 0..2 {
        wait_for_states(&lab, [CheckState::Up, CheckState::Up])?;
        let address = format!("{}/{}", lab.vip(), lab.family().host_prefix_len());
        let rs1 = lab.topology().host("rs1").clone();
        rs1.ip(&format!("address del {address} dev lo"))?;
        wait_for_states(&lab, [CheckState::Down, CheckState::Up])?;
        rs1.ip(&format!("address add {address} dev lo"))?;
        wait_for_states(&lab, [CheckState::Up, CheckState::Up])?;
        lab.agent_mut()?.kill()?;
        let config = lab.config().agent.clone();
        lab.agent_mut()?.launch(&config)?;
    }
    Ok(())
}

/// Waits for what the checks say of rs1 and rs2.
fn wait_for_states(lab: &Lab, wanted: [CheckState; 2]) -> Result<()> {
    let mut last = String::new();
    let are_so = || -> Result<bool> {
        let checks: Vec<CheckStatus> = json(lab, &["checks"])?;
        last = format!("{checks:?}");
        let state = |number| {
            let address = lab.family().real_server(number);
            let found = checks.iter().find(|check| check.server.address == address);
            found.map(|check| check.state)
        };
        Ok([state(1), state(2)] == wanted.map(Some))
    };
    wait_for(&format!("{wanted:?}"), are_so).map(drop).context(last)
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
