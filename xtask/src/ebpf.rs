//! How the eBPF crate is compiled: its tool chain, linker, flags and environment.
//!
//! One source, two users: `lvs-xdp/build.rs` includes this file to build the object that the agent embeds,
//! and `cargo xtask lint` lints the crate with the very same flags. So it uses the standard library alone.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the tool chain to use instead of the one that `cargo xtask setup` chose: a directory with `bin/rustc`,
/// or the name of a rustup toolchain.
pub(crate) const TOOLCHAIN_VARIABLE: &str = "LVS_XDP_EBPF_TOOLCHAIN";

/// A crate that is compiled for the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The package.
    pub(crate) package: &'static str,
    /// Its one binary: the object file.
    pub(crate) binary: &'static str,
}

/// The program of lvs-xdp.
pub(crate) const DIRECTOR: Program = Program {
    package: "lvs-xdp-ebpf",
    binary: "director",
};

/// A Rust tool chain that has the sources of `core`, and the BPF linker that goes with it.
#[derive(Debug)]
pub(crate) struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    llvm: Option<PathBuf>,
    linker: PathBuf,
    target_dir: PathBuf,
}

/// Why there is no [`Toolchain`].
#[derive(Debug)]
pub(crate) struct Missing {
    /// One line that says what is missing.
    pub(crate) reason: String,
    /// A tool chain is named all the same: what it lacks may be there the next time.
    pub(crate) named: bool,
}

/// The file in which `cargo xtask setup` leaves the tool chain's directory; `target_dir` is cargo's.
///
/// Its first line is the directory. An empty file stands for "none set up".
pub(crate) fn toolchain_file(target_dir: &Path) -> PathBuf {
    target_dir.join("ebpf-toolchain")
}

/// The BPF linker that `cargo xtask setup` installs.
pub(crate) fn linker(target_dir: &Path) -> PathBuf {
    target_dir.join("tools/bin/bpf-linker")
}

/// The directory of the tool chain that [`TOOLCHAIN_VARIABLE`] names, if it is set.
///
/// # Errors
/// One line that says which rustup toolchain is not there.
pub(crate) fn given_dir() -> Result<Option<PathBuf>, String> {
    let Some(given) = env::var_os(TOOLCHAIN_VARIABLE).filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    let dir = Path::new(&given);
    if dir.components().count() > 1 {
        return Ok(Some(dir.to_owned()));
    }
    let name = given.to_string_lossy();
    rustup_dir(&name)
        .map(Some)
        .ok_or_else(|| format!("{TOOLCHAIN_VARIABLE}={name}: rustup has no toolchain of this name"))
}

/// The directory of the installed rustup toolchain `name`; never installs it.
pub(crate) fn rustup_dir(name: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["which", "--toolchain", name, "rustc"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let rustc = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    Some(rustc.parent()?.parent()?.to_owned())
}

impl Toolchain {
    /// The tool chain of [`TOOLCHAIN_VARIABLE`], else the one recorded in [`toolchain_file`].
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn find(target_dir: &Path) -> Result<Self, Missing> {
        let dir = match given_dir().map_err(|reason| Missing { reason, named: true })? {
            Some(dir) => dir,
            None => fs::read_to_string(toolchain_file(target_dir))
                .ok()
                .and_then(|text| text.lines().next().map(PathBuf::from))
                .filter(|dir| !dir.as_os_str().is_empty())
                .ok_or_else(|| Missing {
                    reason: "no tool chain for it is set up".into(),
                    named: false,
                })?,
        };
        let rustc = dir.join("bin/rustc");
        let linker = linker(target_dir);
        for file in [&rustc, &linker] {
            if !file.is_file() {
                let reason = format!("{} is missing", file.display());
                return Err(Missing { reason, named: true });
            }
        }
        // A distribution's rustc may come without a cargo; the one that runs this build will do.
        let own_cargo = dir.join("bin/cargo");
        let cargo = if own_cargo.is_file() {
            own_cargo
        } else {
            env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into()
        };
        let llvm = ["llvm", "lib"]
            .map(|sub| dir.join(sub))
            .into_iter()
            .find(|dir| holds_llvm(dir));
        Ok(Self {
            rustc,
            cargo,
            llvm,
            linker,
            target_dir: target_dir.join("ebpf"),
        })
    }

    /// The tool chain's compiler.
    pub(crate) fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// The linker for its output.
    pub(crate) fn linker(&self) -> &Path {
        &self.linker
    }

    /// A cargo command that handles `program` for the kernel of `arch` ("x86_64") and `endian` ("little").
    ///
    /// `subcommand` is the program and its first argument: `["cargo", "build"]`, or another program of the tool
    /// chain's `bin` directory that takes cargo's options.
    pub(crate) fn command(
        &self,
        [tool, subcommand]: [&str; 2],
        program: Program,
        arch: &str,
        endian: &str,
    ) -> Command {
        let mut command = match tool {
            "cargo" => Command::new(&self.cargo),
            other => Command::new(self.rustc.with_file_name(other)),
        };
        command
            .args([
                subcommand,
                "--package",
                program.package,
                "--bin",
                program.binary,
                "--release",
            ])
            .args(["--target", target(endian), "-Z", "build-std=core", "--target-dir"])
            .arg(&self.target_dir);

        // What the outer cargo set for the package it builds is not about this one (HOST matters most:
        // aya-ebpf is rebuilt whenever it comes or goes), nor is a profile that was changed for the host:
        // bpf-linker wants optimized code.
        for name in env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
            if is_about_one_package(&name) || name.starts_with("CARGO_PROFILE_") {
                command.env_remove(name);
            }
        }
        command
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            // -Z options on a stable compiler; a nightly needs no permission.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            // Of the target, not of the host; wins over RUSTFLAGS and the configuration's rustflags.
            // v3: compare-and-swap and 32-bit registers; the kernel has them since 5.12.
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                [
                    &format!("--cfg=bpf_target_arch=\"{arch}\""),
                    "-Cdebuginfo=2",
                    "-Clink-arg=--btf",
                    "-Ctarget-cpu=v3",
                    // The kernel takes unaligned loads from packets; without this each becomes eight byte loads.
                    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
                ]
                .join("\x1f"),
            )
            // A build directory shared with the outer cargo would be locked by it.
            .env("CARGO_BUILD_BUILD_DIR", &self.target_dir)
            .env("PATH", prepended("PATH", self.linker.parent()));
        if let Some(llvm) = &self.llvm {
            // bpf-linker opens the first libLLVM it meets on this path, whatever its version.
            command.env("LD_LIBRARY_PATH", prepended("LD_LIBRARY_PATH", Some(llvm)));
        }
        command
    }

    /// Where [`Self::command`] with `cargo build` leaves the object.
    pub(crate) fn object(&self, program: Program, endian: &str) -> PathBuf {
        let directory = self.target_dir.join(target(endian)).join("release");
        directory.join(program.binary)
    }
}

/// Whether cargo sets the environment variable `name` for one package's build script or program only.
pub(crate) fn is_about_one_package(name: &str) -> bool {
    const PREFIXES: [&str; 7] = [
        "CARGO_BIN_",
        "CARGO_CFG_",
        "CARGO_CRATE_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "DEP_",
    ];
    const NAMES: [&str; 9] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC_LINKER",
        "RUSTDOC",
        "TARGET",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn target(endian: &str) -> &'static str {
    if endian == "big" {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

fn holds_llvm(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libLLVM"))
    })
}

/// The search path in `variable` with `dir` before what it holds.
fn prepended(variable: &str, dir: Option<&Path>) -> OsString {
    let inherited = env::var_os(variable).unwrap_or_default();
    let dirs = dir
        .map(Path::to_owned)
        .into_iter()
        .chain(env::split_paths(&inherited));
    // Fails only for a directory with a colon in its name, which no search path can hold.
    env::join_paths(dirs).unwrap_or(inherited)
}
