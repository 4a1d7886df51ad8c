//! `cargo xtask setup`: finds, or installs, what building and testing need.
//!
//! Every subcommand that needs something calls [`setup`] first, so looking must be cheap when all is there:
//! a few small programs, no network. Nothing outside the target directory changes but by rustup (a toolchain
//! beside the others, never the default) and the distribution's package manager.

mod apt;
mod compiler;
pub(crate) mod kernel;
mod linker;
pub(crate) mod machine;
mod packages;
mod qemu;
pub(crate) mod static_target;
pub(crate) mod tool;
mod toolchain;
mod version;

use std::{
    fs::File,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use self::kernel::Series;
use crate::workspace::Workspace;

/// How much has to be there.
#[derive(Clone, Copy)]
pub(crate) enum Needs<'a> {
    /// The eBPF tool chain and the linker.
    Build,
    /// What [`Self::Build`] needs, and what links a static program, with the programs that a clean root is made of.
    Dist,
    /// What [`Self::Build`] needs, and the programs that the lab runs.
    Lab,
    /// What [`Self::Lab`] needs, and a virtual machine for these kernels.
    Kernels(&'a [Series]),
}

impl Needs<'_> {
    /// All that building and testing need.
    pub(crate) const EVERYTHING: Self = Self::Kernels(kernel::TESTED);
}

/// Installs what is missing; says nothing when nothing is.
///
/// # Errors
/// Something can be neither found nor installed; the error has the commands that would.
pub(crate) fn setup(workspace: &Workspace, needs: Needs<'_>) -> Result<()> {
    let dir = workspace.tools_dir();
    // Two at once would install the same things twice; the second waits and then finds them.
    let lock = File::create(dir.join("setup.lock"))
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("cannot lock {}", dir.join("setup.lock").display()))?;
    toolchain::ensure(workspace)?;
    linker::ensure(workspace)?;
    match needs {
        Needs::Build => {}
        Needs::Dist => {
            packages::ensure(packages::DIST)?;
            static_target::ensure(workspace)?;
        }
        Needs::Lab => packages::ensure(packages::LAB)?,
        Needs::Kernels(series) => {
            packages::ensure(packages::LAB)?;
            machine::ensure(workspace, series).context("no virtual machine for the tests")?;
        }
    }
    drop(lock);
    Ok(())
}

/// Prints what is there and what is not; installs nothing.
///
/// # Errors
/// The machine cannot be looked at. Something missing is exit code 1.
pub(crate) fn report(workspace: &Workspace) -> Result<ExitCode> {
    let mut rows = vec![toolchain::report(workspace), linker::report(workspace)];
    rows.extend(packages::report(packages::LAB));
    rows.extend(machine::report(workspace));
    let mut out = io::stdout().lock();
    for Row { what, found } in &rows {
        match found {
            Ok(found) => writeln!(out, "{what:<18} {found}")?,
            Err(missing) => writeln!(out, "{what:<18} missing: {missing}")?,
        }
    }
    let missing = rows.iter().filter(|row| row.found.is_err()).count();
    if missing == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {missing} missing; `cargo xtask setup` installs what it can");
    Ok(ExitCode::FAILURE)
}

/// One line of [`report`].
struct Row {
    what: String,
    /// Where it was found, or what is missing.
    found: Result<String, String>,
}
