//! The sysctls that direct routing needs on a real server.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// A sysctl that direct routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// Its path below `/proc/sys`.
    pub(super) path: String,
    /// The value that is set.
    pub(super) wanted: &'static str,
    /// Values that serve as well.
    pub(super) accepted: &'static [&'static str],
}

impl Sysctl {
    /// Those for IPv4; `all` first, which counts for every interface at once.
    pub(super) fn needed(interface: &str) -> Vec<Self> {
        // arp_ignore=2 asks in addition that the sender is in the same subnet. 3 and 8 are silent about
        // the real server's own address too.
        let settings: [(_, _, &[_]); 2] = [("arp_ignore", "1", &["1", "2"]), ("arp_announce", "2", &["2"])];
        let of = |interface: &str| {
            let path = |name| format!("net/ipv4/conf/{interface}/{name}");
            settings.map(|(name, wanted, accepted)| Self {
                path: path(name),
                wanted,
                accepted,
            })
        };
        let own = if interface == "all" {
            None
        } else {
            Some(of(interface))
        };
        [of("all")].into_iter().chain(own).flatten().collect()
    }

    pub(super) fn file(path: &str) -> PathBuf {
        Path::new("/proc/sys").join(path)
    }

    pub(super) fn read(path: &str) -> anyhow::Result<String> {
        let file = Self::file(path);
        let value = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(value.trim().to_owned())
    }

    pub(super) fn write(path: &str, value: &str) -> anyhow::Result<()> {
        let file = Self::file(path);
        fs::write(&file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
    }

    /// The name as sysctl(8) takes it, which exchanges dots and slashes.
    pub(super) fn name(path: &str) -> String {
        path.chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect()
    }

    pub(super) fn command(path: &str, value: &str) -> String {
        format!("sysctl -w {}={value}", Self::name(path))
    }
}

/// What `setup` writes to a sysctl.
pub(super) fn sysctl_value(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?;
    Sysctl::needed("all")
        .into_iter()
        .find(|sysctl| sysctl.path.ends_with(name))
        .map(|sysctl| sysctl.wanted)
}
