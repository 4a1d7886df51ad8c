//! `cargo xtask test`: every test of the workspace, those that need a kernel and root among them.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    command,
    run::BINARY_VARIABLE,
    setup::{Needs, setup},
    workspace::{Profile, Workspace, require_root},
};

/// Builds and runs the tests whose name contains `filter`; `options` go to the test binaries.
///
/// # Errors
/// Not root, no tool chain or test package, or a failed build. Failed tests are the exit code.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, options: &[String]) -> Result<ExitCode> {
    require_root("test")?;
    setup(workspace, Needs::Everything)?;
    // The tests start the agent as a program of its own.
    workspace.build(Profile::Dev, &["--package", "lvs-xdp", "--bin", "lvs-xdp"])?;
    let mut cargo = workspace.cargo();
    cargo
        // The eBPF crate is no program of the host; lvs-xdp's build script has built it.
        .args([
            "test",
            "--workspace",
            "--exclude",
            "lvs-xdp-ebpf",
            "--no-fail-fast",
        ])
        .args(filter)
        .arg("--")
        .args(options)
        .env(BINARY_VARIABLE, workspace.binary(Profile::Dev, "lvs-xdp"));
    Ok(command::exit_code(command::status(&mut cargo)?))
}
