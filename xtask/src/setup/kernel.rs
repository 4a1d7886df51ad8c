//! Debian's kernels, to boot in a virtual machine: fetched by apt, unpacked, never installed.
//!
//! apt is given sources, lists and a cache of its own below the target directory, so that nothing of the
//! machine's own configuration changes, and a machine that has other sources can fetch them all the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::apt;
use crate::command;

/// Where Debian's packages come from.
const MIRROR: &str = "http://deb.debian.org/debian";
/// What Debian signs them with, and the package that has it.
const KEYRING: (&str, &str) = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "debian-archive-keyring",
);
/// The package that always depends on a suite's newest kernel.
const NEWEST: &str = "linux-image-amd64";

/// A series of Linux that the program is tried on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Series {
    /// Its version, as `6.12`.
    pub(crate) version: &'static str,
    /// Debian's suites whose newest kernel is of this series, the preferred first.
    suites: &'static [&'static str],
}

/// The oldest that the program is written for, and the one that the tests boot.
pub(crate) const SERIES: [Series; 2] = [
    Series {
        version: "6.1",
        suites: &["bookworm"],
    },
    Series {
        version: "6.12",
        // Backports end with the release they are for; the next release has the same series.
        suites: &["bookworm-backports", "trixie"],
    },
];

/// The series that `cargo xtask test` boots.
pub(crate) const TESTED: &[Series] = &[SERIES[1]];

/// The kernel of a series that is there: `SERIES/boot/vmlinuz-RELEASE`, with its modules in `SERIES/lib`.
pub(super) fn find(kernels: &Path, series: Series) -> Option<PathBuf> {
    image(&kernels.join(series.version))
}

/// Fetches the newest kernel of a series unless one is there.
///
/// # Errors
/// None of its suites can be read, or what they have is no kernel.
pub(super) fn ensure(kernels: &Path, series: Series) -> Result<()> {
    if find(kernels, series).is_some() {
        return Ok(());
    }
    ensure_keyring()?;
    let mut complaints = Vec::new();
    for suite in series.suites {
        match fetch(kernels, series, suite) {
            Ok(()) => return Ok(()),
            Err(error) => complaints.push(format!("{suite}: {error:#}")),
        }
    }
    bail!(
        "Linux {} cannot be fetched from {MIRROR} ({})",
        series.version,
        complaints.join("; ")
    )
}

fn fetch(kernels: &Path, series: Series, suite: &str) -> Result<()> {
    eprintln!("fetching Linux {} of Debian {suite}", series.version);
    let apt = PrivateApt::new(&kernels.join(format!(".apt-{suite}")), suite)?;
    let package = apt.newest_kernel()?;
    ensure!(
        is_of(&package, series),
        "its newest kernel is {package}, not {}",
        series.version
    );
    let archive = apt.download(&package)?;
    // Whole or not at all: a directory of the final name is taken for a kernel.
    let partial = kernels.join(format!(".{}", series.version));
    remove(&partial)?;
    unpack(&archive, &partial)?;
    fs::rename(&partial, kernels.join(series.version))?;
    // Lists and package are some 100 MB that nobody needs again.
    remove(&apt.directory)
}

/// Unpacks a kernel's package, and lists its modules for modprobe, which installing would have done.
fn unpack(archive: &Path, directory: &Path) -> Result<()> {
    command::silently(
        Command::new("dpkg-deb").arg("-x").arg(archive).arg(directory),
        Duration::from_secs(300),
    )?;
    // Debian has moved modules to /usr/lib; depmod and virtme-ng look below /lib.
    if !directory.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", directory.join("lib"))?;
    }
    let image = image(directory).context("the package has no boot/vmlinuz")?;
    let release = release(&image).context("the kernel's file is not named after its release")?;
    command::silently(
        Command::new("depmod").arg("-b").arg(directory).arg(release),
        Duration::from_secs(120),
    )
}

fn image(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory.join("boot"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| release(path).is_some())
}

fn release(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// Whether a package, `linux-image-6.12.117+deb12-amd64`, is of a series.
fn is_of(package: &str, series: Series) -> bool {
    package
        .strip_prefix("linux-image-")
        .and_then(|release| release.strip_prefix(series.version))
        .is_some_and(|rest| rest.starts_with('.'))
}

fn ensure_keyring() -> Result<()> {
    let (file, package) = KEYRING;
    if Path::new(file).exists() {
        return Ok(());
    }
    ensure!(
        apt::is_usable(),
        "Debian's keys are missing; install them: {}",
        apt::install_line(&[package])
    );
    apt::install(&[package.to_owned()])
}

/// apt with one suite of Debian, and no part in the machine's own packages.
struct PrivateApt {
    directory: PathBuf,
}

impl PrivateApt {
    /// Makes the directory and reads the suite's lists.
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        for inside in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(inside))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let (keys, _package) = KEYRING;
        fs::write(
            directory.join("sources.list"),
            format!("deb [arch=amd64 signed-by={keys}] {MIRROR} {suite} main\n"),
        )?;
        let apt = Self {
            directory: directory.to_owned(),
        };
        command::silently(apt.command("apt-get").arg("update"), Duration::from_secs(300))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str, path: &str| format!("{name}={}", self.directory.join(path).display());
        let options = [
            at("Dir::Etc::SourceList", "sources.list"),
            at("Dir::State", "state"),
            at("Dir::Cache", "cache"),
            "Dir::Etc::SourceParts=-".into(),
            // Pins of the machine's own are not meant for this.
            "Dir::Etc::Preferences=-".into(),
            "Dir::Etc::PreferencesParts=-".into(),
            "APT::Default-Release=".into(),
            // The user _apt may not write to the target directory.
            "APT::Sandbox::User=root".into(),
            // A mirror that cannot be read is an error, not a warning.
            "APT::Update::Error-Mode=any".into(),
            "Acquire::Retries=3".into(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C").current_dir(&self.directory);
        command
    }

    /// The package of the suite's newest kernel, `linux-image-6.1.0-56-amd64`.
    fn newest_kernel(&self) -> Result<String> {
        let shown = command::output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions", NEWEST]),
        )?;
        dependency(&shown).with_context(|| format!("{NEWEST} depends on no kernel"))
    }

    /// Downloads a package, or where it is not in the suite the same without a signature for Secure Boot.
    fn download(&self, package: &str) -> Result<PathBuf> {
        let get = |package: &str| {
            let mut download = self.command("apt-get");
            download.args(["download", package]);
            command::silently(&mut download, Duration::from_secs(900))
        };
        get(package).or_else(|_| get(&format!("{package}-unsigned")))?;
        fs::read_dir(&self.directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get has downloaded nothing")
    }
}

/// The kernel in what `apt-cache show linux-image-amd64` prints.
fn dependency(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends
        .split(',')
        .filter_map(|package| package.split_whitespace().next())
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_empty_package_depends_on() {
        let shown = "Package: linux-image-amd64\nSource: linux-signed-amd64 (6.1.180+1)\nVersion: 6.1.180-1\n\
                     Depends: linux-image-6.1.0-56-amd64 (= 6.1.180-1)\nSize: 1480\n";
        assert_eq!(dependency(shown).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("Package: linux-image-amd64\n"), None);
    }

    #[test]
    fn a_series_is_not_the_beginning_of_another() {
        let [old, new] = SERIES;
        assert!(is_of("linux-image-6.1.0-56-amd64", old));
        assert!(is_of("linux-image-6.12.117+deb12-amd64", new));
        assert!(!is_of("linux-image-6.12.117+deb12-amd64", old));
        assert!(!is_of("linux-headers-6.1.0-56-amd64", old));
    }

    #[test]
    fn a_kernel_is_named_after_its_release() {
        assert_eq!(
            release(Path::new("k/boot/vmlinuz-6.1.0-56-amd64")),
            Some("6.1.0-56-amd64")
        );
        assert_eq!(release(Path::new("k/boot/config-6.1.0-56-amd64")), None);
    }
}
