//! bpf-linker: at a pinned version, in the target directory.

use std::process::Command;

use anyhow::{Result, bail};

use super::Row;
use crate::{command, ebpf, workspace::Workspace};

/// The version that is installed, and no other is used.
const VERSION: &str = "0.10.3";

/// The LLVM whose interface this version calls, in the tool chain's own library.
pub(super) const LLVM_MAJOR: u32 = 22;

/// Builds bpf-linker from crates.io unless it is there.
///
/// # Errors
/// Cargo cannot download or compile it.
pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    if installed(workspace).as_deref() == Some(VERSION) {
        return Ok(());
    }
    eprintln!("installing bpf-linker {VERSION} into the target directory (a minute or two)");
    let mut install = workspace.cargo();
    install
        .args([
            "install",
            "--quiet",
            "--locked",
            "--force",
            &format!("bpf-linker@{VERSION}"),
            "--root",
        ])
        .arg(workspace.tools_dir().join("tools"))
        // Cargo says that the directory is not in PATH; it need not be.
        .env("PATH", path_with_tools(workspace));
    if !command::status(&mut install)?.success() {
        bail!(
            "bpf-linker cannot be installed (see above); \
             with access to crates.io, `{}` would do",
            command::line(&install)
        );
    }
    match installed(workspace) {
        Some(version) if version == VERSION => Ok(()),
        _ => bail!("{} does not run", ebpf::linker(workspace.tools_dir()).display()),
    }
}

pub(super) fn report(workspace: &Workspace) -> Row {
    let path = ebpf::linker(workspace.tools_dir());
    let found = match installed(workspace) {
        Some(version) if version == VERSION => Ok(format!("{version}, {}", path.display())),
        Some(version) => Err(format!("{VERSION} (there is {version}, {})", path.display())),
        None => Err(format!("{VERSION}, {}", path.display())),
    };
    Row {
        what: "bpf-linker".into(),
        found,
    }
}

fn installed(workspace: &Workspace) -> Option<String> {
    let output = command::output(Command::new(ebpf::linker(workspace.tools_dir())).arg("--version")).ok()?;
    parse_version(&output).map(str::to_owned)
}

fn parse_version(output: &str) -> Option<&str> {
    output.trim().strip_prefix("bpf-linker ")
}

fn path_with_tools(workspace: &Workspace) -> std::ffi::OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let tools = workspace.tools_dir().join("tools/bin");
    std::env::join_paths(std::env::split_paths(&inherited).chain([tools])).unwrap_or(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_after_the_name() {
        assert_eq!(parse_version("bpf-linker 0.10.3\n"), Some("0.10.3"));
        assert_eq!(parse_version("ld 2.40\n"), None);
    }
}
