//! The tool chain for the eBPF program: which to use, and how to get one.
//!
//! `-Z build-std=core` wants the sources of core and a compiler that takes -Z options: a nightly, or any
//! compiler with RUSTC_BOOTSTRAP=1. In order: what LVS_XDP_EBPF_TOOLCHAIN names; the pinned nightly of rustup;
//! the distribution's rustc with its package of sources.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Row,
    apt::{self, Candidate},
    compiler::{Compiler, oldest, sources},
    linker,
    packages::find_command,
};
use crate::{command, ebpf, workspace::Workspace};

/// The nightly that is used where rustup can have it. Its LLVM must be the linker's: [`linker::LLVM_MAJOR`].
const NIGHTLY: &str = "nightly-2026-05-20";

/// Where distributions install their rustc.
const DISTRIBUTION_DIR: &str = "/usr";

/// Debian's packages: the compiler, its sources, and clippy, which the build does without.
/// The first set is the recent rustc that Debian's stable releases get for building browsers.
const PACKAGES: [[&str; 3]; 2] = [
    ["rustc-web", "rust-web-src", "rust-web-clippy"],
    ["rustc", "rust-src", "rust-clippy"],
];

/// Downloading the nightly takes less on any line that one would want to wait for.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);

/// What is known about the machine; looking at it changes nothing.
#[derive(Debug, Default)]
struct Facts {
    /// What LVS_XDP_EBPF_TOOLCHAIN names, or why it cannot be used.
    given: Option<Result<PathBuf, String>>,
    /// rustup is there.
    rustup: bool,
    /// The pinned nightly, with sources.
    pinned: Option<PathBuf>,
    /// The distribution's rustc can be used, or why not.
    distribution: Option<Result<(), String>>,
    /// The distribution's rustc was chosen by an earlier run.
    distribution_recorded: bool,
    /// Packages can be installed.
    apt: bool,
}

/// What has been attempted in this run.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    pinned: bool,
    distribution: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use(PathBuf),
    UseDistribution,
    InstallPinned,
    InstallDistribution,
    /// What the user names cannot be used.
    Refuse(String),
    /// There is no way; the reason, if there is one to name.
    GiveUp(Option<String>),
}

/// The order of preference, with no look at the machine.
fn next_step(facts: &Facts, tried: Tried) -> Step {
    if let Some(given) = &facts.given {
        return match given {
            Ok(dir) => Step::Use(dir.clone()),
            Err(reason) => Step::Refuse(reason.clone()),
        };
    }
    if let Some(dir) = &facts.pinned {
        return Step::Use(dir.clone());
    }
    let distribution_usable = matches!(facts.distribution, Some(Ok(())));
    // Chosen because the nightly could not be had: not worth a download at the start of every run.
    let settled = facts.distribution_recorded && distribution_usable;
    if facts.rustup && !tried.pinned && !settled {
        Step::InstallPinned
    } else if distribution_usable {
        Step::UseDistribution
    } else if facts.apt && !tried.distribution {
        Step::InstallDistribution
    } else {
        Step::GiveUp(facts.distribution.clone().and_then(Result::err))
    }
}

impl Facts {
    fn gather(workspace: &Workspace) -> Self {
        let given = ebpf::given_dir().transpose().map(|dir| {
            let dir = dir?;
            Compiler::ask(&dir)
                .and_then(|compiler| compiler.problem().map_or(Ok(()), Err))
                .map_err(|problem| format!("{}: {problem}", ebpf::TOOLCHAIN_VARIABLE))?;
            Ok(dir)
        });
        let pinned = ebpf::rustup_dir(NIGHTLY).filter(|dir| sources(dir).is_file());
        if given.is_some() || pinned.is_some() {
            return Self {
                given,
                pinned,
                ..Self::default()
            };
        }
        Self {
            given,
            rustup: find_command("rustup").is_some(),
            pinned,
            distribution: distribution(),
            distribution_recorded: recorded(workspace).is_some_and(|dir| dir == distribution_dir(workspace)),
            apt: apt::is_usable(),
        }
    }
}

/// Chooses a tool chain, installs it if it must, and records it for `lvs-xdp/build.rs`.
///
/// # Errors
/// No tool chain can be had; the error has the commands that make one.
pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    let mut tried = Tried::default();
    loop {
        match next_step(&Facts::gather(workspace), tried) {
            Step::Use(dir) => return record(workspace, &dir),
            Step::UseDistribution => {
                let dir = distribution_dir(workspace);
                lay_out_distribution(&dir)?;
                return record(workspace, &dir);
            }
            Step::InstallPinned => {
                tried.pinned = true;
                eprintln!("installing Rust {NIGHTLY} with rustup, beside your toolchains");
                if let Err(error) = install_pinned() {
                    eprintln!("going on without it: {error:#}");
                }
            }
            Step::InstallDistribution => {
                tried.distribution = true;
                if let Err(error) = install_distribution() {
                    eprintln!("going on without it: {error:#}");
                }
            }
            Step::Refuse(reason) => bail!("{reason}; name another tool chain, or unset it"),
            Step::GiveUp(reason) => bail!("{}", instructions(reason.as_deref())),
        }
    }
}

/// What [`ensure`] would use, as nothing is installed.
pub(super) fn report(workspace: &Workspace) -> Row {
    let facts = Facts::gather(workspace);
    let found = match next_step(
        &facts,
        Tried {
            pinned: true,
            distribution: true,
        },
    ) {
        Step::Use(dir) => Ok(dir),
        Step::UseDistribution => Ok(DISTRIBUTION_DIR.into()),
        Step::Refuse(reason) => Err(Some(reason)),
        Step::GiveUp(reason) => Err(reason),
        Step::InstallPinned | Step::InstallDistribution => Err(None),
    };
    let found = match found {
        Ok(dir) => Compiler::ask(&dir)
            .map(|compiler| format!("rustc {} with sources, in {}", compiler.release, dir.display())),
        Err(reason) => Err(reason.unwrap_or_else(|| format!("Rust {NIGHTLY} with rust-src"))),
    };
    Row {
        what: "eBPF tool chain".into(),
        found,
    }
}

fn install_pinned() -> Result<()> {
    let had_default = rustup_default().is_some();
    let mut install = Command::new("rustup");
    install
        .args([
            "toolchain",
            "install",
            NIGHTLY,
            "--profile",
            "minimal",
            "--no-self-update",
        ])
        .args(["--component", "rust-src", "--component", "clippy"])
        .env("RUSTUP_MAX_RETRIES", "1")
        .env("RUSTUP_DOWNLOAD_TIMEOUT", "60");
    let installed = command::silently(&mut install, DOWNLOAD_LIMIT);
    // rustup makes the first toolchain the default if there is none.
    if !had_default && rustup_default().is_some_and(|default| default.contains(NIGHTLY)) {
        command::silently(
            Command::new("rustup").args(["default", "none"]),
            Duration::from_secs(10),
        )?;
    }
    installed
}

fn rustup_default() -> Option<String> {
    command::output(Command::new("rustup").arg("default"))
        .ok()
        .filter(|text| !text.contains("no default"))
}

/// Whether the distribution's rustc can be used; none if there is no such program.
fn distribution() -> Option<Result<(), String>> {
    let dir = Path::new(DISTRIBUTION_DIR);
    let rustc = dir.join("bin/rustc");
    // Debian's rustup is installed as /usr/bin/rustc too; its toolchains are rustup's.
    let real = rustc
        .canonicalize()
        .ok()
        .filter(|real| !real.ends_with("rustup"))?;
    real.is_file()
        .then(|| Compiler::ask(dir).and_then(|compiler| compiler.problem().map_or(Ok(()), Err)))
}

/// The directory in which the distribution's compiler is laid out as a tool chain.
fn distribution_dir(workspace: &Workspace) -> PathBuf {
    workspace.tools_dir().join("ebpf-rustc")
}

/// Links the compiler, clippy where there is one, and the LLVM that the compiler uses.
///
/// The LLVM has a directory to itself: bpf-linker opens the first it finds, and a distribution has several.
fn lay_out_distribution(dir: &Path) -> Result<()> {
    let bin = Path::new(DISTRIBUTION_DIR).join("bin");
    for program in ["rustc", "clippy-driver", "cargo-clippy"] {
        if bin.join(program).is_file() {
            link(&bin.join(program), &dir.join("bin").join(program))?;
        }
    }
    let loaded = command::output(Command::new("ldd").arg(bin.join("rustc")))?;
    if let Some(llvm) = llvm_library(&loaded) {
        link(llvm, &dir.join("llvm/libLLVM.so"))?;
    }
    Ok(())
}

/// The path of libLLVM in what ldd prints.
fn llvm_library(ldd: &str) -> Option<&Path> {
    ldd.lines()
        .find(|line| line.trim_start().starts_with("libLLVM"))?
        .split_whitespace()
        .nth(2)
        .map(Path::new)
}

fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    let context = || format!("cannot link {} to {}", link.display(), target.display());
    if let Some(dir) = link.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(context),
        _ => {}
    }
    symlink(target, link).with_context(context)
}

fn install_distribution() -> Result<()> {
    let offered = apt::candidates(PACKAGES.as_flattened());
    let packages = choose_packages(&offered)
        .with_context(|| format!("the distribution has no rustc {} or newer with sources", oldest()))?;
    apt::install(&packages)
}

/// The first set whose compiler is new enough and whose sources are of the same version.
fn choose_packages(offered: &[Candidate]) -> Option<Vec<String>> {
    let version = |name: &str| offered.iter().find(|it| it.package == name).map(|it| it.version);
    let [rustc, source, clippy] = PACKAGES.into_iter().find(|[rustc, source, _]| {
        version(rustc).is_some_and(|found| found >= oldest()) && version(source) == version(rustc)
    })?;
    let with_clippy = version(clippy) == version(rustc);
    let packages = [rustc, source].into_iter().chain(with_clippy.then_some(clippy));
    Some(packages.map(str::to_owned).collect())
}

/// The tool chain that is recorded for `lvs-xdp/build.rs`.
fn recorded(workspace: &Workspace) -> Option<PathBuf> {
    let text = fs::read_to_string(ebpf::toolchain_file(workspace.tools_dir())).ok()?;
    text.lines().next().map(PathBuf::from)
}

/// Records `dir`; the file changes, and the program is built anew, only with the directory or the compiler in it.
fn record(workspace: &Workspace, dir: &Path) -> Result<()> {
    let version = command::output(Command::new(dir.join("bin/rustc")).arg("--version"))?;
    let text = format!("{}\n{version}", dir.display());
    let file = ebpf::toolchain_file(workspace.tools_dir());
    if fs::read_to_string(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// What a user can do when nothing could be found or installed.
fn instructions(reason: Option<&str>) -> String {
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!(
        "there is no Rust tool chain for the eBPF program{reason}. One of these makes one:\n  \
         rustup toolchain install {NIGHTLY} --profile minimal -c rust-src -c clippy\n  \
         {}\n  \
         export {}=DIR   # DIR/bin/rustc: {} or newer, LLVM {}, with rust-src",
        apt::install_line(&PACKAGES[0][..2]),
        ebpf::TOOLCHAIN_VARIABLE,
        oldest(),
        linker::LLVM_MAJOR,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::version::Version;

    const NONE: Tried = Tried {
        pinned: false,
        distribution: false,
    };
    const PINNED: Tried = Tried {
        pinned: true,
        distribution: false,
    };
    const BOTH: Tried = Tried {
        pinned: true,
        distribution: true,
    };

    #[test]
    fn what_the_user_names_goes_before_all() {
        let facts = Facts {
            given: Some(Ok("/opt/rust".into())),
            pinned: Some("/nightly".into()),
            ..Facts::default()
        };
        assert_eq!(next_step(&facts, NONE), Step::Use("/opt/rust".into()));
    }

    #[test]
    fn what_the_user_names_wrongly_is_not_replaced() {
        let facts = Facts {
            given: Some(Err("too old".into())),
            pinned: Some("/nightly".into()),
            rustup: true,
            apt: true,
            ..Facts::default()
        };
        assert_eq!(next_step(&facts, NONE), Step::Refuse("too old".into()));
    }

    #[test]
    fn the_pinned_nightly_goes_before_the_distribution() {
        let mut facts = Facts {
            rustup: true,
            distribution: Some(Ok(())),
            distribution_recorded: true,
            pinned: Some("/nightly".into()),
            ..Facts::default()
        };
        assert_eq!(next_step(&facts, NONE), Step::Use("/nightly".into()));
        // Not there, but perhaps to be had: tried once, not again at each later run.
        facts.pinned = None;
        facts.distribution_recorded = false;
        assert_eq!(next_step(&facts, NONE), Step::InstallPinned);
        assert_eq!(next_step(&facts, PINNED), Step::UseDistribution);
        facts.distribution_recorded = true;
        assert_eq!(next_step(&facts, NONE), Step::UseDistribution);
    }

    #[test]
    fn a_recorded_distribution_that_broke_is_reconsidered() {
        let facts = Facts {
            rustup: true,
            distribution: Some(Err("too old".into())),
            distribution_recorded: true,
            apt: true,
            ..Facts::default()
        };
        assert_eq!(next_step(&facts, NONE), Step::InstallPinned);
        assert_eq!(next_step(&facts, PINNED), Step::InstallDistribution);
        assert_eq!(next_step(&facts, BOTH), Step::GiveUp(Some("too old".into())));
    }

    #[test]
    fn without_rustup_and_apt_there_is_no_way() {
        assert_eq!(next_step(&Facts::default(), NONE), Step::GiveUp(None));
        let text = instructions(None);
        assert!(text.contains("rustup toolchain install nightly-"), "{text}");
        assert!(
            text.contains("sudo apt-get install rustc-web rust-web-src\n"),
            "{text}"
        );
        assert!(text.contains("LVS_XDP_EBPF_TOOLCHAIN=DIR"), "{text}");
    }

    fn offered(packages: &[(&str, &str)]) -> Vec<Candidate> {
        let candidate = |&(package, version): &(&str, &str)| Candidate {
            package: package.into(),
            version: Version::parse(version).expect("a version"),
        };
        packages.iter().map(candidate).collect()
    }

    #[test]
    fn packages_are_new_enough_and_of_one_version() {
        let debian_12 = offered(&[
            ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
            ("rust-web-src", "1.96.0+dfsg1-1~deb12u2"),
            ("rust-web-clippy", "1.96.0+dfsg1-1~deb12u2"),
            ("rustc", "1.63.0+dfsg1-2"),
            ("rust-src", "1.63.0+dfsg1-2"),
        ]);
        let chosen = choose_packages(&debian_12).expect("the first set");
        assert_eq!(chosen, ["rustc-web", "rust-web-src", "rust-web-clippy"]);

        let later = offered(&[
            ("rustc", "1.99.0"),
            ("rust-src", "1.99.0"),
            ("rust-clippy", "1.98.0"),
        ]);
        assert_eq!(
            choose_packages(&later).expect("the second set"),
            ["rustc", "rust-src"]
        );

        assert_eq!(
            choose_packages(&offered(&[("rustc", "1.63.0"), ("rust-src", "1.63.0")])),
            None
        );
        assert_eq!(
            choose_packages(&offered(&[("rustc", "1.99.0"), ("rust-src", "1.98.0")])),
            None
        );
    }

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f128c8b1000)\n\
                   \tlibrustc_driver-1.so => /lib/x86_64-linux-gnu/librustc_driver-1.so (0x00007f1)\n\
                   \tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f132b600000)\n";
        assert_eq!(
            llvm_library(ldd),
            Some(Path::new("/lib/x86_64-linux-gnu/libLLVM.so.22.1"))
        );
        assert_eq!(llvm_library("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"), None);
    }
}
