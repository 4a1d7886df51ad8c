//! Programs of crates.io, each at a pinned version, in the target directory.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{command, workspace::Workspace};

/// A program that cargo builds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CargoTool {
    /// The crate's name, and the program's.
    pub(crate) name: &'static str,
    /// The version that is installed, and no other is used.
    pub(crate) version: &'static str,
    /// How long it takes to build, for whoever waits.
    pub(crate) takes: &'static str,
}

impl CargoTool {
    /// Builds the program from crates.io unless it is there.
    ///
    /// # Errors
    /// Cargo cannot download or compile it.
    pub(crate) fn ensure(self, workspace: &Workspace) -> Result<PathBuf> {
        let Self { name, version, takes } = self;
        let path = self.path(workspace);
        if installed(&path).as_deref() == Some(version) {
            return Ok(path);
        }
        eprintln!("installing {name} {version} into the target directory ({takes})");
        let mut install = workspace.cargo();
        install
            .args(["install", "--quiet", "--locked", "--force"])
            .arg(format!("{name}@{version}"))
            .arg("--root")
            .arg(workspace.tools_dir().join("tools"))
            // Cargo says that the directory is not in PATH; it need not be.
            .env("PATH", path_with(path.parent()));
        if !command::status(&mut install)?.success() {
            bail!(
                "{name} cannot be installed (see above); with access to crates.io, `{}` would do",
                command::line(&install)
            );
        }
        match installed(&path) {
            Some(found) if found == version => Ok(path),
            _ => bail!("{} does not run", path.display()),
        }
    }

    /// Where it is, or what is there in its place.
    pub(super) fn find(self, workspace: &Workspace) -> Result<String, String> {
        let path = self.path(workspace);
        match installed(&path) {
            Some(found) if found == self.version => Ok(format!("{found}, {}", path.display())),
            Some(found) => Err(format!("{} (there is {found}, {})", self.version, path.display())),
            None => Err(format!("{}, {}", self.version, path.display())),
        }
    }

    fn path(self, workspace: &Workspace) -> PathBuf {
        workspace.tools_dir().join("tools/bin").join(self.name)
    }
}

fn installed(path: &Path) -> Option<String> {
    let mut ask = Command::new(path);
    // Cargo's own subcommands take their name first.
    if let Some("cargo-cyclonedx") = path.file_name().and_then(|name| name.to_str()) {
        ask.arg("cyclonedx");
    }
    let output = command::output(ask.arg("--version")).ok()?;
    parse_version(&output).map(str::to_owned)
}

/// The version stands after the name, or alone.
fn parse_version(output: &str) -> Option<&str> {
    let last = output.split_whitespace().last()?;
    last.starts_with(|first: char| first.is_ascii_digit())
        .then_some(last)
}

fn path_with(dir: Option<&Path>) -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&inherited).chain(dir.map(Path::to_owned));
    env::join_paths(dirs).unwrap_or(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_after_the_name() {
        assert_eq!(parse_version("bpf-linker 0.10.3\n"), Some("0.10.3"));
        assert_eq!(parse_version("3.8.0\n"), Some("3.8.0"));
        assert_eq!(parse_version("no version here\n"), None);
        assert_eq!(parse_version(""), None);
    }
}
