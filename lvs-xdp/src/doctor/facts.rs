//! What this host is like: read here, judged elsewhere, so that the judgement can be tested on hosts that nobody has.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use aya::programs::loaded_programs;
use futures_util::TryStreamExt as _;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use tokio::task::JoinSet;

use crate::{
    api::types::Status,
    dataplane::{ClockSample, Pinned},
    neighbour::{self, Links},
    nic::{self, Channels},
};

/// This host, as far as the director needs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) kernel: Kernel,
    pub(super) memory: Memory,
    /// The agent's process; `None` where it cannot be looked at.
    pub(super) process: Option<Process>,
    /// All interfaces.
    pub(super) links: Links,
    /// The XDP programs on them, by the interface's index.
    pub(super) programs: BTreeMap<u32, Program>,
    /// What the drivers of those say that the agent is to be on, by name.
    pub(super) cards: BTreeMap<String, Card>,
    /// The directory of pins, and what is in it.
    pub(super) pin_dir: String,
    pub(super) pinned: Pinned,
}

/// The kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel {
    /// Its release, such as `6.12.0-50-amd64`.
    pub(super) release: String,
    /// BPF programs are compiled.
    pub(super) has_jit: bool,
    /// It describes its types (BTF).
    pub(super) has_btf: bool,
    /// membarrier(2) waits for all programs.
    pub(super) has_membarrier: bool,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// All of it.
    pub(super) total: u64,
    /// What can be had without swapping.
    pub(super) available: u64,
}

/// Limits of the agent's process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Process {
    /// Files that are open.
    pub(super) open: u64,
    /// Files that may be.
    pub(super) files: u64,
    /// Bytes that may be locked into memory.
    pub(super) locked: u64,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) id: u32,
    /// Its name; empty where it has none.
    pub(super) name: String,
    /// It is in the kernel's generic path.
    pub(super) is_generic: bool,
}

/// What a driver says of an interface; `None` for what it does not know.
#[derive(Debug, Clone, Default)]
pub(super) struct Card {
    pub(super) driver: Option<String>,
    pub(super) joins_packets: Option<bool>,
    pub(super) strips_tags: Option<bool>,
    pub(super) channels: Option<Channels>,
}

/// What the tables' clock said, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) sample: ClockSample,
    /// `CLOCK_MONOTONIC` when it was read, in nanoseconds.
    pub(super) now: u64,
}

impl Facts {
    /// Looks at this host, whose agent has this status, or where none answers.
    ///
    /// # Errors
    ///
    /// When the kernel does not say what interfaces there are.
    pub(super) fn read(status: Option<&Status>, pin_dir: &Path) -> anyhow::Result<Self> {
        let messages = links()?;
        let mut links = Links::default();
        for (if_index, link) in messages.iter().filter_map(neighbour::listed) {
            links.set(if_index, Some(link));
        }
        let pinned = Pinned::read(pin_dir)?;
        let programs: BTreeMap<_, _> = messages
            .iter()
            .filter_map(|message| Some((message.header.index, program(message)?)))
            .collect();
        let wanted = status.into_iter().flat_map(|status| {
            let attached = status.interfaces.iter().map(|interface| interface.name.clone());
            attached.chain(status.detached.iter().cloned())
        });
        let mut cards = BTreeMap::new();
        for name in wanted {
            // Those that a bond is made of take tags off, not the bond.
            let if_index = links.named(&name).map(|(if_index, _)| if_index);
            let parts = if_index.into_iter().flat_map(|if_index| links.parts(if_index));
            let parts = parts.filter_map(|part| Some(links.get(part)?.name.clone()));
            for name in parts.chain([name]) {
                cards.insert(name.clone(), Card::read(&name));
            }
        }
        Ok(Self {
            kernel: Kernel::read(),
            memory: Memory::read(),
            process: status.and_then(|status| Process::read(status.pid)),
            cards,
            links,
            programs: named(programs),
            pin_dir: pin_dir.display().to_string(),
            pinned,
        })
    }
}

fn links() -> anyhow::Result<Vec<LinkMessage>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let _connection = JoinSet::from_iter([connection]);
        let links = handle.link().get().execute().try_collect();
        links.await.context("cannot read the interfaces")
    })
}

/// The XDP program on an interface, without its name.
fn program(message: &LinkMessage) -> Option<Program> {
    let xdp = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    })?;
    let id = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    })?;
    let is_generic = xdp
        .iter()
        .any(|attribute| matches!(attribute, LinkXdp::SkbProgId(_)));
    Some(Program {
        id,
        name: String::new(),
        is_generic,
    })
}

/// The same with their names.
fn named(mut programs: BTreeMap<u32, Program>) -> BTreeMap<u32, Program> {
    for loaded in loaded_programs().filter_map(Result::ok) {
        for program in programs.values_mut().filter(|program| program.id == loaded.id()) {
            loaded
                .name_as_str()
                .unwrap_or_default()
                .clone_into(&mut program.name);
        }
    }
    programs
}

impl Kernel {
    fn read() -> Self {
        let release = nix::sys::utsname::uname().map_or_else(
            |_| String::new(),
            |names| names.release().to_string_lossy().into_owned(),
        );
        // Where the kernel has no interpreter there is no such file, or 1 in it.
        let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
        Self {
            release,
            has_jit: jit.trim() != "0",
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            has_membarrier: has_membarrier(),
        }
    }

    /// The first two numbers of its release.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|digit: char| !digit.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

fn has_membarrier() -> bool {
    const MEMBARRIER_CMD_QUERY: libc::c_long = 0;
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier takes three integers and touches no memory of this process.
    let known = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    known > 0 && known & MEMBARRIER_CMD_GLOBAL != 0
}

impl Memory {
    fn read() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().ok()?;
            Some(kilobytes * 1024)
        };
        Self {
            total: bytes("MemTotal:").unwrap_or(0),
            available: bytes("MemAvailable:").unwrap_or(0),
        }
    }
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let directory = Path::new("/proc").join(pid.to_string());
        let limits = fs::read_to_string(directory.join("limits")).ok()?;
        Some(Self {
            open: fs::read_dir(directory.join("fd")).ok()?.count() as u64,
            files: limit(&limits, "Max open files")?,
            locked: limit(&limits, "Max locked memory")?,
        })
    }
}

/// A soft limit, by its name in `/proc/PID/limits`.
fn limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

impl Card {
    fn read(name: &str) -> Self {
        Self {
            driver: nic::driver(name).ok().filter(|driver| !driver.is_empty()),
            joins_packets: nic::joins_packets(name).ok(),
            strips_tags: nic::strips_tags(name).ok(),
            channels: nic::channels(name).ok(),
        }
    }
}

impl Clock {
    /// Reads it; `None` where nothing of this layout is pinned.
    pub(super) fn read(pin_dir: &Path) -> Option<Self> {
        let sample = ClockSample::read(pin_dir).ok()?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
        let nanoseconds = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
        Some(Self {
            sample,
            now: u64::try_from(nanoseconds).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_two_numbers() {
        for (release, version) in [
            ("6.1.0-50-amd64", Some((6, 1))),
            ("5.10", Some((5, 10))),
            ("6.18.44-x", Some((6, 18))),
            ("", None),
        ] {
            let kernel = Kernel {
                release: release.to_owned(),
                ..Kernel::default()
            };
            assert_eq!(kernel.version(), version, "{release}");
        }
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max locked memory         8388608              8388608              bytes     \n\
                    Max open files            unlimited            524288               files     \n";
        assert_eq!(limit(text, "Max locked memory"), Some(8_388_608));
        assert_eq!(limit(text, "Max open files"), Some(u64::MAX));
        assert_eq!(limit(text, "Max processes"), None);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let memory = Memory::parse("MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    4096 kB\n");
        assert_eq!((memory.total, memory.available), (16 << 20, 4 << 20));
    }
}
