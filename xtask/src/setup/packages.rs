//! The programs that the lab and the tests run, and the packages that have them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::{Row, apt};

/// A program, and the Debian packages of which any one has it, the preferred first.
pub(super) struct Tool {
    pub(super) command: &'static str,
    pub(super) packages: &'static [&'static str],
}

/// What the lab, and the tests in it, run.
pub(super) const LAB: &[Tool] = &[
    Tool {
        command: "ip",
        packages: &["iproute2"],
    },
    Tool {
        command: "nginx",
        packages: &["nginx-light", "nginx"],
    },
    Tool {
        command: "curl",
        packages: &["curl"],
    },
    // Many connections at a time, by a client that says which of them failed.
    Tool {
        command: "wrk",
        packages: &["wrk"],
    },
    Tool {
        command: "elinks",
        packages: &["elinks"],
    },
    Tool {
        command: "tcpdump",
        packages: &["tcpdump"],
    },
    // A reader of frames that is none of the project's.
    Tool {
        command: "tshark",
        packages: &["tshark"],
    },
    // For libFuzzer, which is in C++.
    Tool {
        command: "c++",
        packages: &["g++"],
    },
    Tool {
        command: "ethtool",
        packages: &["ethtool"],
    },
    Tool {
        command: "sysctl",
        packages: &["procps"],
    },
    Tool {
        command: "ping",
        packages: &["iputils-ping"],
    },
    Tool {
        command: "nsenter",
        packages: &["util-linux"],
    },
    // Debian's own scripts around ipvsadm, which are run with the drop-in in its place.
    Tool {
        command: "ipvsadm-restore",
        packages: &["ipvsadm"],
    },
    // To check the units in packaging/; it needs no systemd that runs.
    Tool {
        command: "systemd-analyze",
        packages: &["systemd"],
    },
];

/// What makes packages, and a clean root to try them in.
pub(super) const DIST: &[Tool] = &[
    // For the parts in C of a static program.
    Tool {
        command: "musl-gcc",
        packages: &["musl-tools"],
    },
    Tool {
        command: "readelf",
        packages: &["binutils"],
    },
    Tool {
        command: "dpkg",
        packages: &["dpkg"],
    },
    Tool {
        command: "mmdebstrap",
        packages: &["mmdebstrap"],
    },
    Tool {
        command: "unshare",
        packages: &["util-linux"],
    },
];

/// Installs the packages of those of `tools` that are missing.
///
/// # Errors
/// They cannot be installed from here; the error has the command that would.
pub(super) fn ensure(tools: &'static [Tool]) -> Result<()> {
    let missing = missing(tools, |command| find_command(command).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let commands: Vec<_> = missing.iter().map(|tool| tool.command).collect();
    let commands = commands.join(", ");
    let preferred: Vec<_> = missing.iter().map(|tool| tool.packages[0]).collect();
    let by_hand = apt::install_line(&preferred);
    if !apt::is_usable() {
        bail!("missing: {commands}; install: {by_hand} (or your distribution's packages)");
    }
    let wanted: Vec<_> = missing.iter().flat_map(|tool| tool.packages).copied().collect();
    let offered: Vec<_> = apt::candidates(&wanted)
        .into_iter()
        .map(|candidate| candidate.package)
        .collect();
    let packages = choose(&missing, &offered);
    if let Err(error) = apt::install(&packages) {
        bail!("missing: {commands}, which cannot be installed ({error:#}); try {by_hand}");
    }
    if packages.iter().any(|package| package.starts_with("nginx"))
        && let Err(error) = apt::disable_service("nginx")
    {
        eprintln!("warning: {error:#}");
    }
    let still = self::missing(tools, |command| find_command(command).is_some());
    if let Some(tool) = still.first() {
        bail!(
            "`{}` is still missing after installing {}",
            tool.command,
            packages.join(" ")
        );
    }
    Ok(())
}

pub(super) fn report(tools: &'static [Tool]) -> impl Iterator<Item = Row> {
    tools.iter().map(|tool| Row {
        what: tool.command.into(),
        found: find_command(tool.command)
            .map(|path| path.display().to_string())
            .ok_or_else(|| format!("package {}", tool.packages[0])),
    })
}

/// The file of a command. Administration's directories count also when an ordinary user's PATH lacks them.
pub(super) fn find_command(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(command))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn missing(tools: &'static [Tool], is_there: impl Fn(&str) -> bool) -> Vec<&'static Tool> {
    tools.iter().filter(|tool| !is_there(tool.command)).collect()
}

/// For each tool the first of its packages that is offered; apt-get's own complaint is best if none is.
fn choose(tools: &[&Tool], offered: &[String]) -> Vec<String> {
    tools
        .iter()
        .map(|tool| {
            let known = tool
                .packages
                .iter()
                .find(|package| offered.iter().any(|name| name == *package));
            (*known.unwrap_or(&tool.packages[0])).to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_programs_are_installed() {
        let missing = missing(LAB, |command| command != "ping" && command != "nginx");
        let commands: Vec<_> = missing.iter().map(|tool| tool.command).collect();
        assert_eq!(commands, ["nginx", "ping"]);
        let offered = ["nginx".to_owned(), "iputils-ping".to_owned()];
        assert_eq!(choose(&missing, &offered), ["nginx", "iputils-ping"]);
        assert_eq!(choose(&missing, &[]), ["nginx-light", "iputils-ping"]);
    }

    #[test]
    fn a_command_is_an_executable_file() {
        assert!(find_command("sh").is_some());
        assert_eq!(find_command("lvs-xdp-no-such-command"), None);
        assert!(!is_executable(Path::new("/etc/passwd")));
        assert!(!is_executable(Path::new("/usr")));
    }
}
