//! `cargo xtask fuzz`: libFuzzer on what comes from outside - frames, and the texts that become the table - from kept
//! corpora.
//!
//! Coverage is LLVM's own pass, which every rustc has, so neither a nightly nor cargo-fuzz is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    command,
    setup::{Needs, setup},
    workspace::Workspace,
};

/// Seconds of fuzzing the decision that are a part of `cargo xtask test`; of the other targets it has the corpora alone.
pub(crate) const TEST_SECONDS: u32 = 60;

/// Where the corpora are kept, in the workspace, one for each target: small inputs, each of which reaches what no other
/// does.
const CORPORA: &str = "fuzz/corpus";
/// Where the words are that the inputs of some targets are made of, in libFuzzer's format.
const DICTIONARIES: &str = "fuzz/dictionaries";
/// Where inputs are left that made the fuzzer fail, for each target.
const FOUND: &str = "fuzz/found";
/// An input longer than this says nothing that a shorter one does not: some frames of a usual length, some services.
const LONGEST_INPUT: u32 = 4096;

/// What is fuzzed: a program in the crate `fuzz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// The decision about a frame
    Decide,
    /// The bodies of the API's changing pages
    Api,
    /// Configuration files
    Config,
    /// Rules for ipvsadm -R, ipvsadm-restore and import
    Restore,
    /// keepalived.conf
    Keepalived,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Decide => "decide",
            Self::Api => "api",
            Self::Config => "config",
            Self::Restore => "restore",
            Self::Keepalived => "keepalived",
        }
    }

    /// The features of the crate that it takes. What reads texts is all of lvs-xdp, which takes minutes to build with
    /// coverage; frames go without.
    fn features(self) -> &'static str {
        match self {
            Self::Decide => "libfuzzer",
            Self::Api | Self::Config | Self::Restore | Self::Keepalived => "libfuzzer,texts",
        }
    }
}

/// What libFuzzer wants to be told of the program under test, as cargo-fuzz has it, without a sanitizer: there is no
/// unsafe code in what is tested but for words that are read and written whole.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// What to do.
pub(crate) enum Task {
    /// Look for new inputs for so many seconds, from the kept corpus and what earlier runs have found.
    Search { seconds: u32 },
    /// Try one input again.
    Replay(PathBuf),
    /// Keep what earlier runs have found, and of all of it only what the rest does not reach.
    Minimise,
}

/// Builds the fuzzer of a target and runs it; without a target each of them, one after the other.
///
/// # Errors
/// A failed build, or a directory that cannot be made. What the fuzzer finds is the exit code, that of the first one
/// that finds something.
pub(crate) fn run(workspace: &Workspace, wanted: Option<Target>, task: &Task) -> Result<ExitCode> {
    setup(workspace, Needs::Build)?;
    let mut result = ExitCode::SUCCESS;
    for &target in Target::value_variants() {
        if result == ExitCode::SUCCESS && wanted.is_none_or(|wanted| wanted == target) {
            result = Fuzzer::build(workspace, target)?.perform(task)?;
        }
    }
    Ok(result)
}

struct Fuzzer<'a> {
    workspace: &'a Workspace,
    target: Target,
    program: PathBuf,
    /// What searches have found beyond the corpus.
    new: PathBuf,
}

impl<'a> Fuzzer<'a> {
    fn build(workspace: &'a Workspace, target: Target) -> Result<Self> {
        let host = host(workspace)?;
        // A directory of its own: other flags would make the next ordinary build compile all anew.
        let directory = workspace.tools_dir().join("fuzz");
        let mut cargo = workspace.cargo();
        cargo
            .args([
                "build",
                "--quiet",
                "--profile",
                "fuzz",
                "--package",
                "lvs-xdp-fuzz",
            ])
            .args(["--bin", target.name(), "--no-default-features"])
            .args(["--features", target.features()])
            // With a target named, build scripts do without the flags.
            .args(["--target", &host, "--target-dir"])
            .arg(&directory)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", COVERAGE.join(" "));
        if !command::status(&mut cargo)?.success() {
            bail!("`{}` failed: see above", command::line(&cargo));
        }
        let fuzzer = Self {
            workspace,
            target,
            program: directory.join(host).join("fuzz").join(target.name()),
            new: directory.join("corpus").join(target.name()),
        };
        for directory in [&fuzzer.new, &fuzzer.in_workspace(FOUND)] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(fuzzer)
    }

    fn perform(&self, task: &Task) -> Result<ExitCode> {
        match task {
            Task::Search { seconds } => self.search(*seconds),
            Task::Replay(input) => {
                // Named from where the user stands.
                let input = input
                    .canonicalize()
                    .with_context(|| format!("cannot read {}", input.display()))?;
                Ok(command::exit_code(command::status(self.command().arg(input))?))
            }
            Task::Minimise => self.minimise(),
        }
    }

    /// What the target has in a directory of the workspace.
    fn in_workspace(&self, path: &str) -> PathBuf {
        self.workspace.root().join(path).join(self.target.name())
    }

    fn command(&self) -> Command {
        let mut command = self.workspace.command(&self.program);
        let found = format!("-artifact_prefix={}/", self.in_workspace(FOUND).display());
        command.args([found, format!("-max_len={LONGEST_INPUT}"), "-timeout=10".into()]);
        let dictionary = self.in_workspace(DICTIONARIES);
        if dictionary.exists() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        command
    }

    fn search(&self, seconds: u32) -> Result<ExitCode> {
        let name = self.target.name();
        eprintln!("fuzzing {name} for {seconds} s");
        let mut command = self.command();
        command
            .args([
                // 0 would be without end.
                &format!("-max_total_time={}", seconds.max(1)),
                "-print_final_stats=1",
                "-verbosity=0",
            ])
            .args([&self.new, &self.in_workspace(CORPORA)]);
        let status = command::status(&mut command)?;
        if !status.success() {
            eprintln!(
                "error: an input fails (its name is above, after \"Test unit written to\"): \
                 `cargo xtask fuzz {name} --input FILE` tries it again"
            );
        }
        Ok(command::exit_code(status))
    }

    fn minimise(&self) -> Result<ExitCode> {
        let corpus = self.in_workspace(CORPORA);
        let merged = self.new.with_extension("merged");
        remake(&merged)?;
        let mut merge = self.command();
        merge
            // One input for each edge: how often it is taken makes no difference worth a file.
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .args([&merged, &corpus, &self.new]);
        let status = command::status(&mut merge)?;
        if !status.success() {
            bail!("the corpus stays as it was: libFuzzer could not merge it (see above)");
        }
        remake(&corpus)?;
        for input in fs::read_dir(&merged)? {
            let input = input?;
            fs::copy(input.path(), corpus.join(input.file_name()))?;
        }
        remake(&self.new)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes a directory that is empty.
fn remake(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// The target that the compiler builds for by itself.
fn host(workspace: &Workspace) -> Result<String> {
    let version = command::output(workspace.command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}
