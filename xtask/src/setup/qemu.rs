//! QEMU, where the distribution's own cannot be installed beside what is there.
//!
//! A machine that has a part of another release's QEMU (qemu-utils from backports) can have the whole one only at the
//! price of that part, and no package is removed for the tests. Then the packages are unpacked below the target
//! directory, with the libraries that the machine lacks, and a script of QEMU's name finds them there.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    Row, apt,
    packages::{self, Tool, find_command},
};
use crate::command;

const QEMU: Tool = Tool {
    command: "qemu-system-x86_64",
    packages: &["qemu-system-x86"],
};

/// Installs QEMU, or unpacks it into `directory` and leaves a script that starts it in `bin`, unless one is there.
///
/// # Errors
/// It can be neither installed nor unpacked.
pub(super) fn ensure(directory: &Path, bin: &Path) -> Result<()> {
    if find(bin).is_some() {
        return Ok(());
    }
    let Err(refused) = packages::ensure(&[QEMU]) else {
        return Ok(());
    };
    unpack(directory, bin)
        .with_context(|| format!("{refused:#}; nor can it be unpacked in {}", directory.display()))
}

/// What [`ensure`] would find.
pub(super) fn report(bin: &Path) -> Row {
    Row {
        what: QEMU.command.into(),
        found: find(bin)
            .map(|path| path.display().to_string())
            .ok_or_else(|| format!("package {}", QEMU.packages[0])),
    }
}

fn find(bin: &Path) -> Option<PathBuf> {
    let script = bin.join(QEMU.command);
    script
        .is_file()
        .then_some(script)
        .or_else(|| find_command(QEMU.command))
}

fn unpack(directory: &Path, bin: &Path) -> Result<()> {
    eprintln!("unpacking {} in {}", QEMU.packages[0], directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    let archives = directory.join("archives");
    fs::create_dir_all(&archives)?;
    for archive in apt::download(&apt::missing(QEMU.packages)?, &archives)? {
        command::silently(
            Command::new("dpkg-deb").arg("-x").arg(archive).arg(directory),
            Duration::from_secs(300),
        )?;
    }
    fs::remove_dir_all(archives)?;
    // QEMU finds its firmware from where it is itself.
    let program = directory.join("usr/bin").join(QEMU.command);
    let libraries = directory.join("usr/lib/x86_64-linux-gnu");
    let script = script(&program, &libraries);
    // Whole or not at all: the script's name is taken for a QEMU that works.
    let partial = directory.join("script");
    fs::write(&partial, script)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    command::output(Command::new(&partial).arg("--version"))?;
    fs::rename(partial, bin.join(QEMU.command))?;
    Ok(())
}

fn script(program: &Path, libraries: &Path) -> String {
    let [program, libraries] = [program, libraries].map(|path| path.to_string_lossy().replace('\'', r"'\''"));
    format!("#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{program}' \"$@\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_starts_a_program_with_libraries_of_its_own() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        // A link, and a shell for the script: a file that was just written may be open in a process of another test.
        std::os::unix::fs::symlink("/bin/sh", at("it's a shell"))?;
        fs::write(
            at("script"),
            script(&at("it's a shell"), Path::new("/some libraries")),
        )?;
        let mut sh = Command::new("sh");
        sh.arg(at("script"))
            .args(["-c", r#"echo "$LD_LIBRARY_PATH,$1,$2""#, "sh", "a b", "c"]);
        assert_eq!(command::output(&mut sh)?, "/some libraries,a b,c\n");
        Ok(())
    }
}
