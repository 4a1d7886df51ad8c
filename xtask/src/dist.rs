//! `cargo xtask dist`: a static program, a Debian package, and the list of what is in them; and whether the package does
//! what it shall in a clean root.

use std::{
    fs, iter,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command,
    setup::{Needs, setup, static_target, tool::CargoTool},
    workspace::{Profile, Workspace, require_root},
};

/// Packs, by `[package.metadata.deb]` of lvs-xdp's Cargo.toml.
const CARGO_DEB: CargoTool = CargoTool {
    name: "cargo-deb",
    version: "3.8.0",
    takes: "some minutes",
};

/// Lists the crates that a program is made of.
const CARGO_CYCLONEDX: CargoTool = CargoTool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
    takes: "some minutes",
};

/// The crates whose parts are listed, and the lists' names in the package and beside it.
const LISTS: [(&str, &str); 2] = [
    ("lvs-xdp", "lvs-xdp.cdx.json"),
    ("lvs-xdp-ebpf", "lvs-xdp-ebpf.cdx.json"),
];

/// The oldest Debian that the package is for.
const SUITE: &str = "bookworm";

/// A clean root takes half a minute; from a mirror that is far away, more.
const ROOT_LIMIT: Duration = Duration::from_secs(900);

/// Builds everything into `target/dist`, and tries the package where `check` says so.
///
/// # Errors
/// A tool is missing and cannot be installed, something does not build, or the package does not do what it shall.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<ExitCode> {
    if check {
        require_root("dist --check")?;
    }
    setup(workspace, Needs::Dist)?;
    let cargo_deb = CARGO_DEB.ensure(workspace)?;
    let cyclonedx = CARGO_CYCLONEDX.ensure(workspace)?;

    let triple = static_target::triple();
    workspace.build(
        Profile::Release,
        &["--package", "lvs-xdp", "--bin", "lvs-xdp", "--target", &triple],
    )?;
    let release = workspace.target_dir().join(&triple).join("release");
    let binary = release.join("lvs-xdp");
    require_static(&binary)?;

    let package = release.join("package");
    recreate(&package)?;
    describe(&binary, &package)?;
    list_crates(workspace, &cyclonedx, &triple, &package)?;

    let dist = workspace.target_dir().join("dist");
    recreate(&dist)?;
    let mut pack = workspace.command(cargo_deb);
    pack.args([
        "--no-build",
        "--package",
        "lvs-xdp",
        "--target",
        &triple,
        "--output",
    ])
    .arg(&dist);
    let printed = command::output(&mut pack)?;
    let deb = printed.lines().last().map(PathBuf::from);
    let deb = deb.context("cargo-deb does not say where the package is")?;
    for from in iter::once(binary).chain(LISTS.map(|(_, name)| package.join(name))) {
        let name = from.file_name().unwrap_or_default();
        fs::copy(&from, dist.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }

    if check {
        try_package(workspace, &deb)?;
    }
    for entry in fs::read_dir(&dist)? {
        println!("{}", entry?.path().display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the directory, empty.
fn recreate(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// Refuses a program that loads libraries: it would want those of the machine that it was built on.
fn require_static(binary: &Path) -> Result<()> {
    let mut headers = Command::new("readelf");
    headers.args(["--program-headers", "--wide"]).arg(binary);
    let headers = command::output(&mut headers)?;
    ensure!(
        !headers.contains("INTERP"),
        "{} is not linked statically",
        binary.display()
    );
    Ok(())
}

/// Lets the program write its manual pages and completions.
fn describe(binary: &Path, directory: &Path) -> Result<()> {
    let pages = directory.join("man");
    command::output(Command::new(binary).args(["man", "--dir"]).arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        // Without name and time: the same pages make the same package.
        command::output(Command::new("gzip").args(["-9", "--no-name"]).arg(page?.path()))?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = command::output(Command::new(binary).args(["completions", shell]))?;
        fs::write(directory.join("lvs-xdp").with_extension(shell), script)?;
    }
    Ok(())
}

/// Writes the lists of the crates in the program and in the eBPF program that it carries (CycloneDX): their versions,
/// licences and sources.
fn list_crates(workspace: &Workspace, cyclonedx: &Path, triple: &str, directory: &Path) -> Result<()> {
    const NAME: &str = "lvs-xdp-sbom";
    let mut list = workspace.command(cyclonedx);
    list.args([
        "cyclonedx",
        "--quiet",
        "--format",
        "json",
        "--spec-version",
        "1.5",
    ])
    .args(["--no-build-deps", "--target", triple, "--override-filename", NAME]);
    let listed = command::output(&mut list);
    // It writes one for each crate of the workspace, into its directory.
    for (name, home) in workspace.packages()? {
        let written = home.join(NAME).with_extension("json");
        if !written.exists() {
            continue;
        }
        if let Some((_, kept)) = LISTS.iter().find(|(package, _)| *package == name) {
            let text = fs::read_to_string(&written)?;
            // Where it was built says nothing to others.
            let text = text.replace(&workspace.root().display().to_string(), "");
            fs::write(directory.join(kept), text).with_context(|| format!("cannot write {kept}"))?;
        }
        fs::remove_file(&written)?;
    }
    listed?;
    for (package, kept) in LISTS {
        ensure!(
            directory.join(kept).exists(),
            "cargo-cyclonedx has written no list of {package}"
        );
    }
    Ok(())
}

/// Installs the package in a clean Debian, uses it there and purges it, by `packaging/check.sh`.
fn try_package(workspace: &Workspace, deb: &Path) -> Result<()> {
    let root = workspace.target_dir().join("dist-root");
    if root.exists() {
        fs::remove_dir_all(&root).context("cannot remove the root of the last time")?;
    }
    eprintln!("making a clean Debian {SUITE} in {}", root.display());
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=essential", "--include=iproute2", SUITE])
        .arg(&root);
    command::silently(&mut make, ROOT_LIMIT)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;

    // Everything that it starts and mounts ends with its first process.
    let mut check = workspace.command("unshare");
    check
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--"])
        .args(["sh", "-eu", "packaging/check.sh"])
        .arg(&root)
        .arg(deb);
    let passed = command::status(&mut check)?.success();
    fs::remove_dir_all(&root).context("cannot remove the clean root")?;
    if !passed {
        bail!("the package does not do what it shall: see above");
    }
    Ok(())
}
