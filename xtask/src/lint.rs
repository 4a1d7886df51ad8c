//! `cargo xtask lint`: formatting, and clippy on every crate, the eBPF one for its own target.

use std::{
    env::consts::ARCH,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bench::{ENDIAN, FLOORS},
    command,
    ebpf::{self, DIRECTOR, Program},
    setup::{Needs, setup},
    workspace::Workspace,
};

/// Runs all checks, also after one has failed.
///
/// # Errors
/// No tool chain, or cargo cannot be run. What the checks find is the exit code.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    setup(workspace, Needs::Build)?;
    ensure_components(workspace)?;

    let mut format = workspace.cargo();
    format.args(["fmt", "--all", "--check"]);

    let mut host = workspace.cargo();
    host.args([
        "clippy",
        "--workspace",
        "--exclude",
        DIRECTOR.package,
        "--exclude",
        FLOORS.package,
        "--all-targets",
    ]);
    host.args(["--", "-D", "warnings"]);

    let mut passed = true;
    let [mut director, mut floors] = [ebpf_clippy(workspace, DIRECTOR)?, ebpf_clippy(workspace, FLOORS)?];
    for check in [&mut format, &mut host, &mut director, &mut floors] {
        if !command::status(check)?.success() {
            eprintln!("error: `{}` failed", command::line(check));
            passed = false;
        }
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Clippy on a crate for the kernel: as it is built, if its tool chain has a clippy; else for the host.
fn ebpf_clippy(workspace: &Workspace, program: Program) -> Result<Command> {
    let toolchain = ebpf::Toolchain::find(workspace.tools_dir())
        .map_err(|missing| anyhow!("the eBPF tool chain that was set up is gone: {}", missing.reason))?;
    let bin = toolchain.rustc().parent().context("rustc is in a directory")?;
    if bin.join("cargo-clippy").is_file() && bin.join("clippy-driver").is_file() {
        eprintln!("{}: clippy for the kernel, by {}", program.package, bin.display());
        let mut clippy = toolchain.command(["cargo-clippy", "clippy"], program, ARCH, ENDIAN);
        clippy.args(["--", "-D", "warnings"]);
        return Ok(clippy);
    }
    eprintln!(
        "{}: clippy for the host, as the tool chain in {} has none",
        program.package,
        bin.display()
    );
    let mut clippy = workspace.cargo();
    clippy
        .args([
            "clippy",
            "--package",
            program.package,
            "--bin",
            program.binary,
            "--target-dir",
        ])
        // A directory of its own: RUSTC_BOOTSTRAP would make the next ordinary build compile all anew.
        .arg(workspace.tools_dir().join("ebpf-host-clippy"))
        .args(["--", "-C", "panic=abort", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(clippy)
}

/// Installs rustfmt and clippy for the toolchain in use where rustup can; a minimal one has neither.
fn ensure_components(workspace: &Workspace) -> Result<()> {
    for component in ["fmt", "clippy"] {
        let mut version = workspace.cargo();
        version.args([component, "--version"]);
        if command::output(&mut version).is_ok() {
            continue;
        }
        let mut add = workspace.command("rustup");
        add.args(["component", "add", "rustfmt", "clippy"]);
        eprintln!("installing rustfmt and clippy: {}", command::line(&add));
        if let Err(error) = command::silently(&mut add, Duration::from_secs(300)) {
            bail!(
                "`cargo {component}` is missing and cannot be installed ({error:#}): \
                 install the rustfmt and clippy that belong to your cargo"
            );
        }
    }
    Ok(())
}
