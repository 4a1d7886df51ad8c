//! The virtual machine of the tests: virtme-ng in a Python environment of its own, QEMU, and kernels to boot.
//!
//! `tests/src/vm.rs` looks for what this puts in place: `vm/venv/bin/vng` and `vm/kernels/SERIES`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    Row, apt,
    kernel::{self, Series},
    packages::{self, Tool},
    qemu,
};
use crate::{command, workspace::Workspace};

/// The environment variable that tells the tests where the machine is: [`directory`].
pub(crate) const VARIABLE: &str = "LVS_XDP_VM";

/// virtme-ng boots a kernel on the host's own file system; this version is tested.
const VIRTME_NG: &str = "virtme-ng==1.42";

const TOOLS: &[Tool] = &[
    // virtme-ng's initramfs is made of it.
    Tool {
        command: "busybox",
        packages: &["busybox-static"],
    },
    Tool {
        command: "depmod",
        packages: &["kmod"],
    },
    // QEMU's console wants a terminal.
    Tool {
        command: "script",
        packages: &["bsdutils"],
    },
    Tool {
        command: "strip",
        packages: &["binutils"],
    },
    Tool {
        command: "python3",
        packages: &["python3"],
    },
];

/// Where virtme-ng and the kernels are.
pub(crate) fn directory(workspace: &Workspace) -> PathBuf {
    workspace.tools_dir().join("vm")
}

/// Installs what a machine needs and fetches the kernels, unless they are there.
///
/// # Errors
/// This is no x86-64 machine, or something can be neither found nor installed.
pub(super) fn ensure(workspace: &Workspace, series: &[Series]) -> Result<()> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "the tests boot kernels for x86-64, and this machine is {}",
        env::consts::ARCH
    );
    packages::ensure(TOOLS)?;
    let directory = directory(workspace);
    std::fs::create_dir_all(directory.join("kernels"))?;
    ensure_virtme(&directory)?;
    qemu::ensure(&directory.join("qemu"), &bin(&directory))?;
    for &series in series {
        kernel::ensure(&directory.join("kernels"), series)?;
    }
    Ok(())
}

/// What [`ensure()`] would find, with the kernels of the tests.
pub(super) fn report(workspace: &Workspace) -> impl Iterator<Item = Row> {
    let directory = directory(workspace);
    let virtme = Row {
        what: "virtme-ng".into(),
        found: found(vng(&directory).is_file().then(|| vng(&directory)), VIRTME_NG),
    };
    let qemu = qemu::report(&bin(&directory));
    let kernels = kernel::TESTED.iter().map(move |&series| Row {
        what: format!("Linux {}", series.version),
        found: found(
            kernel::find(&directory.join("kernels"), series),
            "a kernel of Debian's to boot",
        ),
    });
    packages::report(TOOLS).chain([virtme, qemu]).chain(kernels)
}

fn found(path: Option<PathBuf>, missing: &str) -> Result<String, String> {
    path.map(|path| path.display().to_string())
        .ok_or_else(|| missing.to_owned())
}

fn vng(directory: &Path) -> PathBuf {
    bin(directory).join("vng")
}

/// virtme-ng's own programs, which it finds before the machine's.
fn bin(directory: &Path) -> PathBuf {
    directory.join("venv/bin")
}

fn ensure_virtme(directory: &Path) -> Result<()> {
    if vng(directory).is_file() {
        return Ok(());
    }
    eprintln!("installing {VIRTME_NG} in {}", directory.join("venv").display());
    let make = || {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(directory.join("venv"));
        command::silently(&mut venv, Duration::from_secs(120))
    };
    if let Err(error) = make() {
        // Debian's python3 has the module venv, but not all that it needs.
        ensure!(
            apt::is_usable(),
            "no Python environment can be made ({error:#}); try {}",
            apt::install_line(&["python3-venv"])
        );
        apt::candidates(&["python3-venv"]);
        apt::install(&["python3-venv".to_owned()])?;
        make()?;
    }
    let mut pip = Command::new(directory.join("venv/bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", VIRTME_NG]);
    command::silently(&mut pip, Duration::from_secs(300))
}
