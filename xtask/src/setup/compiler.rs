//! What a rustc is, and whether the eBPF program can be built with it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{linker, version::Version};
use crate::command;

/// What a compiler says about itself.
#[derive(Debug)]
pub(super) struct Compiler {
    /// As it writes it: `1.97.0-nightly`.
    pub(super) release: String,
    version: Version,
    llvm_major: u32,
    has_sources: bool,
}

impl Compiler {
    /// Asks `bin/rustc` in `dir`.
    ///
    /// # Errors
    /// One line that says why there is no answer.
    pub(super) fn ask(dir: &Path) -> Result<Self, String> {
        let rustc = dir.join("bin/rustc");
        let ask = |arguments: &[&str]| {
            // It may be rustup under the name of rustc, which must not install a toolchain to answer.
            command::output(
                Command::new(&rustc)
                    .args(arguments)
                    .env("RUSTUP_AUTO_INSTALL", "0"),
            )
            .map_err(|error| format!("{error:#}"))
        };
        let described = ask(&["-vV"])?;
        let sysroot = ask(&["--print", "sysroot"])?;
        Self::parse(&described, sources(Path::new(sysroot.trim_end())).is_file())
            .ok_or_else(|| format!("{} does not describe itself as a rustc", rustc.display()))
    }

    /// Reads what `rustc -vV` prints.
    fn parse(described: &str, has_sources: bool) -> Option<Self> {
        let field = |name: &str| described.lines().find_map(|line| line.strip_prefix(name));
        let release = field("release: ")?;
        Some(Self {
            release: release.to_owned(),
            version: Version::parse(release)?,
            llvm_major: Version::parse(field("LLVM version: ")?)?.major(),
            has_sources,
        })
    }

    /// Why the eBPF program cannot be built with this compiler.
    pub(super) fn problem(&self) -> Option<String> {
        let Self {
            release,
            version,
            llvm_major,
            has_sources,
        } = self;
        if *version < oldest() {
            Some(format!("rustc {release} is too old, {} is needed", oldest()))
        } else if *llvm_major != linker::LLVM_MAJOR {
            Some(format!(
                "rustc {release} has LLVM {llvm_major}, but the pinned bpf-linker needs LLVM {}",
                linker::LLVM_MAJOR
            ))
        } else if !has_sources {
            Some(format!(
                "rustc {release} is there without the sources of core (rust-src)"
            ))
        } else {
            None
        }
    }
}

/// The oldest compiler that builds this workspace.
pub(super) fn oldest() -> Version {
    Version::parse(env!("CARGO_PKG_RUST_VERSION")).expect("the workspace's rust-version is a version")
}

/// A file that is there when the sources of core are.
pub(super) fn sources(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(release: &str, llvm: &str, has_sources: bool) -> Compiler {
        let described = format!(
            "rustc {release} (ac68faa20 2026-05-25)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
             release: {release}\nLLVM version: {llvm}\n"
        );
        Compiler::parse(&described, has_sources).expect("what rustc -vV prints")
    }

    #[test]
    fn a_compiler_is_judged_by_version_llvm_and_sources() {
        assert_eq!(compiler("1.96.0", "22.1.8", true).problem(), None);
        assert_eq!(compiler("1.97.0-nightly", "22.1.4", true).problem(), None);
        let problem = |compiler: Compiler| compiler.problem().expect("a problem");
        assert!(problem(compiler("1.63.0", "14.0.6", true)).contains("too old"));
        assert!(problem(compiler("1.99.0", "23.1.0", true)).contains("LLVM 23"));
        assert!(problem(compiler("1.96.0", "22.1.8", false)).contains("rust-src"));
        assert!(Compiler::parse("gcc 12.2.0", true).is_none());
    }
}
