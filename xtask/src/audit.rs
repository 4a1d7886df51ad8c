//! `cargo xtask audit`: licences, sources and known faults of everything that the product is made of, by cargo-deny.

use std::process::ExitCode;

use anyhow::Result;

use crate::{command, setup::tool::CargoTool, workspace::Workspace};

/// Judges crates by `deny.toml`.
const CARGO_DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
    takes: "ten minutes",
};

/// Runs all checks, or, where `is_local`, those that need no list of known faults.
///
/// # Errors
/// cargo-deny is not there and cannot be installed. What it finds is the exit code.
pub(crate) fn run(workspace: &Workspace, is_local: bool) -> Result<ExitCode> {
    let mut deny = workspace.command(CARGO_DENY.ensure(workspace)?);
    deny.args(["--workspace", "check", "bans", "licenses", "sources"]);
    if !is_local {
        deny.arg("advisories");
    }
    Ok(command::exit_code(command::status(&mut deny)?))
}
