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
pub(crate) fn lab(workspace: &Workspace, ipv6: bool) -> Result<ExitCode> {
    require_root("run")?;
    let options: &[&str] = if ipv6 { &["--ipv6"] } else { &[] };
    setup(workspace, Needs::Lab)?;
    let packages = ["--package", "lvs-xdp", "--package", "lvs-xdp-tests"];
    let programs = ["--bin", "lvs-xdp", "--bin", "lvs-xdp-lab"];
    workspace.build(Profile::Dev, &[packages, programs].concat())?;
    let mut command = workspace.command(workspace.binary(Profile::Dev, "lvs-xdp-lab"));
    command.env(BINARY_VARIABLE, workspace.binary(Profile::Dev, "lvs-xdp"));
    command.args(options);
    become_program(command)
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
pub(crate) fn become_program(mut program: Command) -> Result<ExitCode> {
    Err(program.exec()).with_context(|| format!("cannot run {}", program.get_program().display()))
}
