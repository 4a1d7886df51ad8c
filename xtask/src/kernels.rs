//! `cargo xtask kernels`: the program and the reference case on each kernel.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    run::{BINARY_VARIABLE, become_program},
    setup::{
        Needs,
        kernel::{SERIES, Series},
        machine, setup,
    },
    workspace::{Profile, Workspace, require_root},
};

/// The running kernel's name among the versions.
const RUNNING: &str = "running";

/// The names of what can be asked for.
pub(crate) fn versions() -> impl Iterator<Item = &'static str> {
    [RUNNING]
        .into_iter()
        .chain(SERIES.iter().map(|series| series.version))
}

/// Fetches and builds what it takes, and becomes the program of the tests' crate that prints the table. `version`
/// is one of [`versions`]; all of them without it.
///
/// # Errors
/// Not root, no tool chain or virtual machine, or a failed build; otherwise this does not return.
pub(crate) fn run(workspace: &Workspace, version: Option<&str>) -> Result<ExitCode> {
    require_root("kernels")?;
    let wanted = |name: &str| version.is_none_or(|version| version == name);
    let series: Vec<Series> = SERIES
        .into_iter()
        .filter(|series| wanted(series.version))
        .collect();
    setup(
        workspace,
        if series.is_empty() {
            Needs::Lab
        } else {
            Needs::Kernels(&series)
        },
    )?;
    let packages = ["--package", "lvs-xdp", "--package", "lvs-xdp-tests"];
    let programs = ["--bin", "lvs-xdp", "--bin", "lvs-xdp-kernels"];
    workspace.build(Profile::Dev, &[packages, programs].concat())?;
    let mut command = workspace.command(workspace.binary(Profile::Dev, "lvs-xdp-kernels"));
    command
        .args(versions().filter(|name| wanted(name)))
        .env(BINARY_VARIABLE, workspace.binary(Profile::Dev, "lvs-xdp"))
        .env(machine::VARIABLE, machine::directory(workspace));
    become_program(command)
}
