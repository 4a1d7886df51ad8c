//! Removes what an earlier run that was killed could not remove itself.
//!
//! Everything the lab makes has a name that holds the id of the process that made it; when no such
//! process is alive, nobody will remove it.

use std::{fs, path::Path, sync::Once};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{process::run, vm::guest_exchange};

/// First letters of the lab's network namespaces.
pub(crate) const NAMESPACE_PREFIX: &str = "lx";
/// First letters of the lab's pin directories on bpffs.
pub(crate) const PIN_PREFIX: &str = "lvs-xdp-test-";
/// First letters of the lab's temporary directories.
pub(crate) const DIRECTORY_PREFIX: &str = "lvs-xdp-lab-";

/// Removes leftovers, at the first call in a process.
///
/// Failures are ignored: another run may be removing the same things at the same time, and what
/// cannot be removed harms nobody, for names do not repeat.
pub(crate) fn remove() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A guest sees the host's directories and not the processes that made them.
        if guest_exchange().is_some() {
            return;
        }
        for name in orphans(Path::new(crate::netns::DIRECTORY), NAMESPACE_PREFIX) {
            for pid in pids_inside(&name) {
                let _: nix::Result<()> = kill(pid, Signal::SIGKILL);
            }
            let _: anyhow::Result<String> = run(ip(&["netns", "del", &name]));
        }
        let bpffs = Path::new(crate::agent::BPFFS);
        for name in orphans(bpffs, PIN_PREFIX) {
            let _: std::io::Result<()> = fs::remove_dir_all(bpffs.join(name));
        }
        let temporary = std::env::temp_dir();
        for name in orphans(&temporary, DIRECTORY_PREFIX) {
            let _: std::io::Result<()> = fs::remove_dir_all(temporary.join(name));
        }
    });
}

/// Names in `directory` that begin with `prefix` and the id of a process that is not alive.
fn orphans(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            maker(name, prefix).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        })
        .collect()
}

/// The process id in `name`, if it is `PREFIX`, digits, `-` and more.
fn maker(name: &str, prefix: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(prefix)?.split_once('-')?;
    pid.parse().ok()
}

/// What runs in a namespace that the lab made was started by the lab.
fn pids_inside(namespace: &str) -> Vec<Pid> {
    let listed = run(ip(&["netns", "pids", namespace])).unwrap_or_default();
    listed
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .map(Pid::from_raw)
        .collect()
}

fn ip(arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new("ip");
    command.args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_dead_maker_are_orphans() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let alive = format!("lx{}-0-client", std::process::id());
        // Above the kernel's largest process id (PID_MAX_LIMIT, 2^22).
        for name in [
            alive.as_str(),
            "lx4194305-0-client",
            "lx-0-client",
            "lxc-container",
            "other4194305-0",
        ] {
            fs::write(directory.path().join(name), "")?;
        }
        assert_eq!(
            orphans(directory.path(), NAMESPACE_PREFIX),
            ["lx4194305-0-client"]
        );
        Ok(())
    }
}
