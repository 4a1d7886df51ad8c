//! Set-up, build, run and test of lvs-xdp: `cargo xtask --help`.

mod audit;
mod bench;
#[path = "../../bench/src/args.rs"]
mod bench_args;
mod command;
mod dist;
#[expect(dead_code, reason = "shared with lvs-xdp/build.rs, which uses the rest")]
mod ebpf;
mod fuzz;
mod kernels;
mod lint;
mod run;
mod setup;
mod soak;
mod test;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, builder::PossibleValuesParser};

use crate::{
    bench_args::BenchArgs,
    fuzz::{Target, Task},
    setup::{Needs, setup},
    soak::SoakArgs,
    workspace::{Profile, Workspace},
};

/// Set-up, build, run and test of lvs-xdp
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install all that building and testing need
    ///
    /// The eBPF program needs the sources of Rust's core library: a pinned nightly from rustup, else the
    /// distribution's rustc. Tools are kept in the target directory; the default toolchain stays what it is.
    Setup {
        /// Install nothing: say what is there, and end with status 1 if something is missing
        #[arg(long)]
        check: bool,
    },
    /// The same as `setup --check`
    DoctorBuild,
    /// Build lvs-xdp with the eBPF program in it
    Build {
        /// Build with optimizations
        #[arg(long)]
        release: bool,
    },
    /// Show Direct Routing in a lab of network namespaces, or run the agent on a real interface
    ///
    /// Without --interface: the lab, from the dev profile, which builds in a fraction of the release
    /// profile's time; the eBPF program is optimized in both. With --interface: a release build of the agent.
    Run(RunArgs),
    /// Build and run all tests; needs root
    Test(TestArgs),
    /// Make up what comes from outside, and look for what goes wrong with it
    ///
    /// Frames are decided about and written on the host, by the same code as in the kernel; texts are read as the
    /// agent and the command line read them, up to the table that they make. The search starts from the inputs in
    /// fuzz/corpus, and leaves one that fails in fuzz/found. `cargo xtask test` does it with frames for a minute,
    /// and tries all of fuzz/corpus.
    Fuzz(FuzzArgs),
    /// Let things happen to a director by chance, and compare it with a model after each; needs root
    ///
    /// In a lab of its own: changes, whole configurations, rollbacks, agents that are killed, also in an apply, cables,
    /// cards, floods of SYNs, under the eyes of clients. The operations follow from the seed; one that fails is named
    /// with it. `cargo xtask test` plays 150 of a fixed one.
    Soak(SoakArgs),
    /// Load the program and run the reference case on the running kernel and on Debian's; needs root
    ///
    /// Debian's kernels are fetched into the target directory and booted in a virtual machine with an emulated
    /// processor. The table has what the verifier took to accept the program, and who answered four requests.
    Kernels {
        /// Only this kernel
        #[arg(value_parser = PossibleValuesParser::new(kernels::versions()))]
        version: Option<String>,
    },
    /// Measure what lvs-xdp costs, beside floors and other designs; needs root
    ///
    /// Figures are medians of interleaved rounds in one run: compare them with each other, not with those of
    /// another machine or another hour. docs/performance.md has the method.
    Bench(BenchArgs),
    /// Make what is given to others: a static program, a Debian package, and the list of what they contain
    ///
    /// It is left in target/dist. The list is a software bill of materials in CycloneDX's JSON.
    Dist {
        /// Install the package in a clean Debian, start the agent there, upgrade and purge it; needs root
        #[arg(long)]
        check: bool,
    },
    /// Check the formatting, and run clippy on every crate
    Lint,
    /// Check the licences, sources and known faults of every crate that is used, by deny.toml
    Audit {
        /// Leave out the known faults, the list of which is fetched from GitHub
        #[arg(long)]
        local: bool,
    },
}

#[derive(Args)]
struct RunArgs {
    /// The network interface to serve (may be repeated)
    #[arg(long, value_name = "IF")]
    interface: Vec<String>,
    /// Let the lab speak IPv6
    #[arg(long, conflicts_with = "interface")]
    ipv6: bool,
    /// More options of `lvs-xdp agent`
    #[arg(last = true, value_name = "AGENT OPTIONS", requires = "interface")]
    agent_options: Vec<String>,
}

#[derive(Args)]
struct TestArgs {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Options of the test binaries, such as --nocapture
    #[arg(last = true, value_name = "TEST OPTIONS")]
    test_options: Vec<String>,
}

#[derive(Args)]
struct FuzzArgs {
    /// What to make up; without it each, one after the other
    #[arg(value_enum)]
    target: Option<Target>,
    /// How long to search, in seconds
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Try this input again, and do nothing else
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seconds")]
    input: Option<PathBuf>,
    /// Put what searches have found into fuzz/corpus, without what the rest of it reaches as well
    #[arg(long, conflicts_with_all = ["seconds", "input"])]
    minimise: bool,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup { check: false } => {
            setup(&workspace, Needs::EVERYTHING)?;
            setup::report(&workspace)
        }
        Command::Setup { check: true } | Command::DoctorBuild => setup::report(&workspace),
        Command::Build { release } => {
            let profile = if release { Profile::Release } else { Profile::Dev };
            setup(&workspace, Needs::Build)?;
            workspace.build(profile, &["--package", "lvs-xdp"])?;
            println!("{}", workspace.binary(profile, "lvs-xdp").display());
            Ok(ExitCode::SUCCESS)
        }
        // There are no agent options here: clap takes them only with an interface.
        Command::Run(args) if args.interface.is_empty() => run::lab(&workspace, args.ipv6),
        Command::Run(args) => run::agent(&workspace, &args.interface, &args.agent_options),
        Command::Test(TestArgs { filter, test_options }) => {
            test::run(&workspace, filter.as_deref(), &test_options)
        }
        Command::Fuzz(FuzzArgs {
            target,
            seconds,
            input,
            minimise,
        }) => {
            let task = match input {
                Some(input) => Task::Replay(input),
                None if minimise => Task::Minimise,
                None => Task::Search { seconds },
            };
            fuzz::run(&workspace, target, &task)
        }
        Command::Soak(args) => soak::run(&workspace, &args),
        Command::Kernels { version } => kernels::run(&workspace, version.as_deref()),
        // Its words go on to the benchmark as they are.
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Dist { check } => dist::run(&workspace, check),
        Command::Audit { local } => audit::run(&workspace, local),
        Command::Lint => lint::run(&workspace),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn agent_options_need_an_interface() {
        assert!(Cli::try_parse_from(["xtask", "run", "--", "--xdp-mode", "generic"]).is_err());
        let line = [
            "xtask",
            "run",
            "--interface",
            "a",
            "--interface",
            "b",
            "--",
            "--xdp-mode",
            "generic",
        ];
        let Command::Run(args) = Cli::try_parse_from(line).expect("a full command line").command else {
            panic!("`run` is parsed as another subcommand");
        };
        assert_eq!(args.interface, ["a", "b"]);
        assert_eq!(args.agent_options, ["--xdp-mode", "generic"]);
    }

    #[test]
    fn test_takes_a_filter_and_options() {
        let line = ["xtask", "test", "wrr", "--", "--nocapture"];
        let Command::Test(args) = Cli::try_parse_from(line).expect("a full command line").command else {
            panic!("`test` is parsed as another subcommand");
        };
        assert_eq!(args.filter.as_deref(), Some("wrr"));
        assert_eq!(args.test_options, ["--nocapture"]);
    }
}
