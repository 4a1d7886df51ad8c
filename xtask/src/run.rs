//! `cargo xtask run`: the lab, or the agent on a real interface.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    setup::{Needs, setup},
    workspace::{Profile, Workspace, require_root},
};

/// The environment variable that names the lvs-xdp program to the lab and to the tests.
pub(crate) const BINARY_VARIABLE: &str = "LVS_XDP_BIN";

/// Builds the lab and becomes it.
///
/// # Errors
/// Not root, no tool chain, or a failed build; otherwise this does not return.
pub(crate) fn lab(workspace: &Workspace) -> Result<ExitCode> {
    require_root("run")?;
    setup(workspace, Needs::Everything)?;
    let selection = [
        "--package",
        "lvs-xdp",
        "--package",
        "lvs-xdp-tests",
        "--bin",
        "lvs-xdp",
        "--bin",
        "lvs-xdp-lab",
    ];
    workspace.build(Profile::Dev, &selection)?;
    let mut lab = workspace.command(workspace.binary(Profile::Dev, "lvs-xdp-lab"));
    lab.env(BINARY_VARIABLE, workspace.binary(Profile::Dev, "lvs-xdp"));
    become_program(lab)
}

/// Builds the benchmark and becomes it.
///
/// # Errors
/// Not root, no tool chain, or a failed build; otherwise this does not return.
pub(crate) fn bench(workspace: &Workspace) -> Result<ExitCode> {
    require_root("bench")?;
    setup(workspace, Needs::Everything)?;
    let selection = [
        "--package",
        "lvs-xdp",
        "--package",
        "lvs-xdp-tests",
        "--bin",
        "lvs-xdp",
        "--bin",
        "lvs-xdp-bench",
    ];
    workspace.build(Profile::Release, &selection)?;
    let mut bench = workspace.command(workspace.binary(Profile::Release, "lvs-xdp-bench"));
    bench.env(BINARY_VARIABLE, workspace.binary(Profile::Release, "lvs-xdp"));
    become_program(bench)
}

/// Builds the agent and becomes it, attached to `interfaces`.
///
/// # Errors
/// Not root, no tool chain, or a failed build; otherwise this does not return.
pub(crate) fn agent(workspace: &Workspace, interfaces: &[String], options: &[String]) -> Result<ExitCode> {
    require_root("run")?;
    setup(workspace, Needs::Build)?;
    workspace.build(Profile::Release, &["--package", "lvs-xdp", "--bin", "lvs-xdp"])?;
    let mut agent = Command::new(workspace.binary(Profile::Release, "lvs-xdp"));
    agent.arg("agent");
    for interface in interfaces {
        agent.args(["--interface", interface]);
    }
    agent.args(options);
    become_program(agent)
}

/// The program takes this process over, so that signals, terminal and exit status are its own.
fn become_program(mut program: Command) -> Result<ExitCode> {
    Err(program.exec()).with_context(|| format!("cannot run {}", program.get_program().display()))
}
