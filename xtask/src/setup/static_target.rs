//! The target of static programs: Rust's standard library with musl, for the toolchain in use.

use std::{env::consts::ARCH, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, bail};

use super::packages::find_command;
use crate::{command, workspace::Workspace};

/// Its name.
pub(crate) fn triple() -> String {
    format!("{ARCH}-unknown-linux-musl")
}

/// Adds it to the toolchain in use, which stays what it is otherwise.
///
/// # Errors
/// It is not there, and rustup is not or cannot download it.
pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    if is_there(workspace) {
        return Ok(());
    }
    let triple = triple();
    if find_command("rustup").is_none() {
        bail!(
            "the Rust in use has no target {triple}, and there is no rustup to add it: see https://rustup.rs"
        );
    }
    eprintln!("adding the target {triple} to the toolchain in use, with rustup");
    // In the workspace and with cargo's environment: the toolchain is the one of this cargo.
    let mut add = workspace.command("rustup");
    add.args(["target", "add", &triple]);
    command::silently(&mut add, Duration::from_secs(300))?;
    if !is_there(workspace) {
        bail!("the Rust in use has no target {triple}, although rustup has added it to its toolchain");
    }
    Ok(())
}

fn is_there(workspace: &Workspace) -> bool {
    let mut ask = match std::env::var_os("RUSTC") {
        Some(rustc) => Command::new(rustc),
        None => workspace.command("rustc"),
    };
    ask.args(["--print", "target-libdir", "--target", &triple()]);
    command::output(&mut ask).is_ok_and(|directory| PathBuf::from(directory.trim_end()).is_dir())
}
