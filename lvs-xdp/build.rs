//! Builds the eBPF program by its own tool chain and leaves the object at `$OUT_DIR/director`.
//!
//! Without a tool chain the file is empty and a warning says what to do: the command line, the unit tests and
//! clippy need no eBPF, and the agent finds the empty object when it starts.

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::exit,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

/// What the object is made of, from this package's directory.
const INPUTS: [&str; 7] = [
    "build.rs",
    "../xtask/src/ebpf.rs",
    "../lvs-xdp-ebpf",
    "../lvs-xdp-common/Cargo.toml",
    "../lvs-xdp-common/src",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() -> Result<()> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = target_dir(&out_dir)?;
    let object = out_dir.join("director");

    println!("cargo::rerun-if-env-changed={}", ebpf::TOOLCHAIN_VARIABLE);
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    let toolchain_file = ebpf::toolchain_file(&target_dir);
    ensure_file(&toolchain_file)?;
    println!("cargo::rerun-if-changed={}", toolchain_file.display());

    let toolchain = match ebpf::Toolchain::find(&target_dir) {
        Ok(toolchain) => toolchain,
        Err(ebpf::Missing { reason, named }) => {
            // A file that never exists makes cargo run this at every build: what comes back may be older than
            // this run, so that its own time tells nothing.
            if named {
                println!(
                    "cargo::rerun-if-changed={}",
                    out_dir.join("at-every-build").display()
                );
            }
            println!(
                "cargo::warning=the eBPF program is left out, so `lvs-xdp agent` cannot run: {reason}; \
                 run `cargo xtask setup` first"
            );
            return fs::write(&object, []).with_context(|| format!("cannot write {}", object.display()));
        }
    };
    for program in [toolchain.rustc(), toolchain.linker()] {
        println!("cargo::rerun-if-changed={}", program.display());
    }
    build(&toolchain, &object)
}

/// Runs the nested cargo; its warnings become ours, its errors are shown as they are.
fn build(toolchain: &ebpf::Toolchain, object: &Path) -> Result<()> {
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let endian = variable("CARGO_CFG_TARGET_ENDIAN")?;
    let is_rebuilt = env::var_os("CARGO_FEATURE_REBUILT_EBPF").is_some();
    let subcommand = if is_rebuilt { "rustc" } else { "build" };
    let mut cargo = toolchain.command(["cargo", subcommand], ebpf::DIRECTOR, &arch, &endian);
    cargo.arg("--quiet");
    if is_rebuilt {
        // Another program of the same source: its blocks stay in the order that they were written in.
        cargo.args(["--", "-Clink-arg=--llvm-args=-disable-block-placement"]);
    }
    let output = cargo
        .output()
        .with_context(|| format!("cannot run {:?}", cargo.get_program()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{messages}error: the eBPF program does not compile (see above)");
        exit(1);
    }
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
    let built = toolchain.object(ebpf::DIRECTOR, &endian);
    fs::copy(&built, object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(())
}

/// Cargo's target directory: the one above the profile's directory, or above the target's for a build with
/// `--target`. It is the `build` directory that counts: how deep `OUT_DIR` lies below it changes with cargo.
fn target_dir(out_dir: &Path) -> Result<PathBuf> {
    let above_profile = out_dir
        .ancestors()
        .find(|dir| dir.ends_with("build"))
        .and_then(|build| build.parent()?.parent())
        .with_context(|| {
            format!(
                "OUT_DIR is not below cargo's target directory: {}",
                out_dir.display()
            )
        })?;
    let triple = variable("TARGET")?;
    let target_dir = if above_profile.ends_with(&triple) {
        above_profile.parent()
    } else {
        None
    };
    Ok(target_dir.unwrap_or(above_profile).to_owned())
}

/// Creates `path` if it is missing: cargo would run this script at every build for a file that is not there.
fn ensure_file(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    // Older than this run, or cargo takes it for a change that came after it.
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    File::create_new(path)
        .and_then(|file| file.set_modified(old))
        .with_context(|| format!("cannot create {}", path.display()))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set; cargo sets it for build scripts"))
}
