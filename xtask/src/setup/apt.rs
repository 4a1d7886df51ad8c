//! Debian's package manager: what it offers, and how to install without side effects.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{packages::find_command, version::Version};
use crate::{command, workspace::is_root};

/// A package that can be installed, and its version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) package: String,
    pub(super) version: Version,
}

/// Whether this process can install packages.
pub(super) fn is_usable() -> bool {
    is_root() && find_command("apt-get").is_some()
}

/// Those of `packages` that can be installed. The lists of packages are brought up to date once, if they can be.
pub(super) fn candidates(packages: &[&str]) -> Vec<Candidate> {
    static UPDATED: OnceLock<()> = OnceLock::new();
    UPDATED.get_or_init(|| {
        eprintln!("bringing apt's package lists up to date");
        // One mirror out of reach is no reason to stop: the package may be in another's list, or an older one.
        if let Err(error) = command::silently(apt_get().arg("update"), Duration::from_secs(300)) {
            eprintln!("going on with the old lists: {error:#}");
        }
    });
    command::output(
        Command::new("apt-cache")
            .arg("policy")
            .args(packages)
            .env("LC_ALL", "C"),
    )
    .map(|policy| parse_policy(&policy))
    .unwrap_or_default()
}

/// Installs `packages`, starts no service of theirs, and removes no package.
///
/// # Errors
/// apt-get failed; the error has its complaint.
pub(super) fn install(packages: &[String]) -> Result<()> {
    eprintln!("installing packages: {}", packages.join(" "));
    let _guard = NoServices::new();
    let mut install = apt_get();
    // --no-remove: Debian's rustc conflicts with Debian's rustup, and the user's choice of toolchain stays.
    install
        .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
        .args(packages);
    command::silently(&mut install, Duration::from_secs(900))
}

/// The packages that would have to be installed for `packages`, themselves among them, whatever else they are at odds with.
///
/// # Errors
/// apt-get knows no way to install them.
pub(super) fn missing(packages: &[&str]) -> Result<Vec<String>> {
    let plan = command::output(
        apt_get()
            .args(["--simulate", "--no-install-recommends", "install"])
            .args(packages),
    )?;
    Ok(parse_plan(&plan))
}

/// Downloads `packages` into `directory`, and gives their files.
///
/// # Errors
/// apt-get failed; the error has its complaint.
pub(super) fn download(packages: &[String], directory: &Path) -> Result<Vec<PathBuf>> {
    let mut download = apt_get();
    // The user _apt may not write to the target directory.
    download
        .args(["-o", "APT::Sandbox::User=root", "download"])
        .args(packages)
        .current_dir(directory);
    command::silently(&mut download, Duration::from_secs(900))?;
    let files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    files.collect()
}

/// The command with which a user installs `packages`.
pub(super) fn install_line(packages: &[impl AsRef<str>]) -> String {
    let packages: Vec<_> = packages.iter().map(AsRef::as_ref).collect();
    format!("sudo apt-get install {}", packages.join(" "))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

/// While this lives, packages that are installed do not start their services.
///
/// nginx would take port 80 of the machine. invoke-rc.d and deb-systemd-invoke ask policy-rc.d first.
struct NoServices {
    created: bool,
}

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Self {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(Self::POLICY);
        // A policy that is there already is the machine's own (container images have one) and stands.
        let created = file
            .and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n"))
            .is_ok();
        Self { created }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.created
            && let Err(error) = fs::remove_file(Self::POLICY)
        {
            eprintln!(
                "warning: cannot remove {}, which keeps services from starting: {error}",
                Self::POLICY
            );
        }
    }
}

/// Keeps the service of a package that was just installed from starting at the next boot.
///
/// # Errors
/// systemctl failed.
pub(super) fn disable_service(service: &str) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    command::output(Command::new("systemctl").args(["disable", "--quiet", service]))
        .map(drop)
        .with_context(|| format!("{service} was installed for the tests and will start at the next boot"))
}

/// The packages that `apt-get --simulate install` would install: `Inst wrk (4.1.0-3 Debian:12 [amd64])`.
fn parse_plan(plan: &str) -> Vec<String> {
    let words = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
    words
        .filter_map(|words| words.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The installable packages in what `apt-cache policy` prints, in its order.
fn parse_policy(policy: &str) -> Vec<Candidate> {
    let mut package = "";
    let mut candidates = Vec::new();
    for line in policy.lines() {
        if !line.starts_with(' ') {
            package = line.trim_end_matches(':');
        } else if let Some(version) = line.trim_start().strip_prefix("Candidate: ")
            // "(none)" for a package that is only named by others.
            && let Some(version) = Version::parse(version)
        {
            candidates.push(Candidate {
                package: package.to_owned(),
                version,
            });
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_what_can_be_installed() {
        let policy = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
rust-src:
  Installed: (none)
  Candidate: (none)
  Version table:
rustc:
  Installed: (none)
  Candidate: 1.63.0+dfsg1-2
";
        let version = |text| Version::parse(text).expect("a version");
        assert_eq!(
            parse_policy(policy),
            [
                Candidate {
                    package: "rustc-web".into(),
                    version: version("1.96.0")
                },
                Candidate {
                    package: "rustc".into(),
                    version: version("1.63.0")
                },
            ]
        );
        assert_eq!(parse_policy(""), []);
    }

    #[test]
    fn a_plan_names_what_would_be_installed() {
        let plan = "\
Reading package lists...
The following packages will be REMOVED:
  qemu-utils
Remv qemu-utils [1:10.0.2+ds-2]
Inst libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])
Inst qemu-system-x86 [1:7.1] (1:7.2+dfsg-7 Debian:12.15/oldstable [amd64])
Conf libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])
";
        assert_eq!(parse_plan(plan), ["libslirp0", "qemu-system-x86"]);
    }

    #[test]
    fn the_command_to_type_is_whole() {
        assert_eq!(
            install_line(&["curl", "nginx-light"]),
            "sudo apt-get install curl nginx-light"
        );
    }
}
