//! The workspace: where it is, where cargo puts things, and how to call cargo in it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;
use serde_json::Value;

use crate::{command, ebpf};

/// The cargo profile of a build.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// `dev`: compiles fast.
    Dev,
    /// `release`: runs fast.
    Release,
}

/// This workspace, and the cargo that runs in it.
pub(crate) struct Workspace {
    root: PathBuf,
    cargo: OsString,
    /// Where programs end up.
    target_dir: PathBuf,
    /// Where build scripts write. The same directory unless cargo's build.build-dir says otherwise.
    build_dir: PathBuf,
}

impl Workspace {
    /// Asks cargo about the workspace that this program was built from.
    ///
    /// # Errors
    /// Cargo cannot be run.
    pub(crate) fn find() -> Result<Self> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // The path compiled in is wrong once the workspace has moved; cargo then gives the new one.
        let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let mut command = Command::new(&cargo);
        command
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(package);
        let metadata: Value = serde_json::from_str(&command::output(&mut command)?)?;
        let path = |name: &str| metadata[name].as_str().map(PathBuf::from);
        let target_dir = path("target_directory").context("cargo metadata names no target_directory")?;
        Ok(Self {
            root: path("workspace_root").context("cargo metadata names no workspace_root")?,
            cargo,
            build_dir: path("build_directory").unwrap_or_else(|| target_dir.clone()),
            target_dir,
        })
    }

    /// Its directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo leaves programs, by profile.
    pub(crate) fn target_dir(&self) -> &Path {
        &self.target_dir
    }

    /// The directory for the eBPF tool chain, the linker and what they build: `lvs-xdp/build.rs` looks there.
    pub(crate) fn tools_dir(&self) -> &Path {
        &self.build_dir
    }

    /// The workspace's packages, and their directories.
    ///
    /// # Errors
    /// Cargo cannot be run.
    pub(crate) fn packages(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut command = self.cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&command::output(&mut command)?)?;
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let package = |package: &Value| {
            let manifest = Path::new(package["manifest_path"].as_str()?);
            Some((
                package["name"].as_str()?.to_owned(),
                manifest.parent()?.to_owned(),
            ))
        };
        Ok(packages.filter_map(package).collect())
    }

    /// A program that [`Self::build`] has built.
    pub(crate) fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        let dir = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target_dir.join(dir).join(name)
    }

    /// The cargo that runs this program.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self.command(&self.cargo);
        // What `cargo run` has set for this program would look to build scripts like a change.
        for name in env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
            if ebpf::is_about_one_package(&name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// A program that runs in the workspace's root.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// Builds the programs that `selection`, options of `cargo build`, names.
    ///
    /// # Errors
    /// The build failed; cargo has said why.
    pub(crate) fn build(&self, profile: Profile, selection: &[&str]) -> Result<()> {
        let mut cargo = self.cargo();
        cargo.arg("build").args(selection);
        if matches!(profile, Profile::Release) {
            cargo.arg("--release");
        }
        if !command::status(&mut cargo)?.success() {
            bail!("`{}` failed: see above", command::line(&cargo));
        }
        Ok(())
    }
}

/// Whether this process may load eBPF programs and make network namespaces.
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Refuses to go on as an ordinary user; `subcommand` is what was asked of xtask.
///
/// # Errors
/// Not root.
pub(crate) fn require_root(subcommand: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {subcommand}` loads eBPF programs and makes network namespaces, so it must run as root: \
         sudo -E env \"PATH=$PATH\" cargo xtask {subcommand}"
    )
}
