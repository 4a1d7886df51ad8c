//! `cargo xtask test`: every test of the workspace, those that need a kernel and root among them, and a short search
//! of the fuzzer.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    bench::FLOORS,
    command,
    ebpf::DIRECTOR,
    fuzz::{self, Target, Task},
    run::BINARY_VARIABLE,
    setup::{Needs, machine, setup},
    workspace::{Profile, Workspace, require_root},
};

/// Builds and runs the tests whose name contains `filter`; `options` go to the test binaries. Without a filter the
/// fuzzer runs, too.
///
/// # Errors
/// Not root, no tool chain or test package, or a failed build. Failed tests are the exit code.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, options: &[String]) -> Result<ExitCode> {
    require_root("test")?;
    setup(workspace, Needs::EVERYTHING)?;
    let binary = build_agents(workspace)?;
    let mut cargo = workspace.cargo();
    cargo
        // What is for the kernel is no program of the host.
        .args([
            "test",
            "--workspace",
            "--exclude",
            DIRECTOR.package,
            "--exclude",
            FLOORS.package,
            "--no-fail-fast",
        ])
        .args(filter)
        .arg("--")
        .args(options)
        .env(BINARY_VARIABLE, binary)
        .env(machine::VARIABLE, machine::directory(workspace));
    let status = command::status(&mut cargo)?;
    if filter.is_some() {
        return Ok(command::exit_code(status));
    }
    let search = Task::Search {
        seconds: fuzz::TEST_SECONDS,
    };
    let fuzzed = fuzz::run(workspace, Some(Target::Decide), &search)?;
    Ok(if status.success() {
        fuzzed
    } else {
        command::exit_code(status)
    })
}

/// Builds the agent, which the tests start as a program of its own, and beside it `lvs-xdp-rebuilt`: the same
/// with another eBPF program, to which the test of an upgrade goes over. Returns the path of the first.
fn build_agents(workspace: &Workspace) -> Result<PathBuf> {
    let agent = ["--package", "lvs-xdp", "--bin", "lvs-xdp"];
    let binary = workspace.binary(Profile::Dev, "lvs-xdp");
    let rebuilt = workspace.binary(Profile::Dev, "lvs-xdp-rebuilt");
    // Cargo keeps what both are made of, but has one name for the two.
    workspace.build(
        Profile::Dev,
        &[&agent[..], &["--features", "rebuilt-ebpf"]].concat(),
    )?;
    fs::rename(&binary, &rebuilt)
        .with_context(|| format!("cannot move {} to {}", binary.display(), rebuilt.display()))?;
    workspace.build(Profile::Dev, &agent)?;
    Ok(binary)
}
