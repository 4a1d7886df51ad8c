//! The director itself: kernel, file systems, network cards.

use std::{fs, io, path::Path};

use super::finding::{Finding, Level};
use crate::{
    api::types::{InterfaceStatus, ServerState, Service, Status},
    nic,
};

/// The oldest kernel that the program is known to load on.
const OLDEST: (u32, u32) = (6, 1);
/// From this part of the connection table on, in percent, new connections may find no room in their bucket.
const FULL: u64 = 75;

/// The kernel, and what the agent warns of.
pub(super) fn host(status: &Status, services: &[Service]) -> Vec<Finding> {
    let mut findings = vec![kernel(), jit(), table(status)];
    // That a real server cannot be reached is found by the way to it.
    let servers = services.iter().flat_map(|service| &service.servers);
    let unreached: Vec<_> = servers
        .filter(|server| server.state != ServerState::Ready)
        .map(|server| format!("real server {}: ", server.spec.key.address))
        .collect();
    let is_found = |warning: &str| unreached.iter().any(|beginning| warning.starts_with(beginning));
    let warnings = status.warnings.iter().filter(|warning| !is_found(warning));
    findings.extend(warnings.map(|warning| {
        Finding::new(Level::Warning, "agent-warning", "agent", warning.clone())
            .because("the agent asks for attention")
            .mend("do what it says; lvs-xdp status shows it as well")
    }));
    findings
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    );
    let finding = |level, found| Finding::new(level, "kernel", "kernel", found);
    match version(&release) {
        Some(version) if version < OLDEST => finding(Level::Warning, format!("Linux {release}"))
            .because("the program is tested on Linux 6.1 and newer")
            .mend("install a newer kernel"),
        _ => finding(Level::Ok, format!("Linux {release}")),
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|digit: char| !digit.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn jit() -> Finding {
    // Where the kernel has no interpreter there is no such file, or 1 in it.
    let value = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    let finding = |level, found: &str| Finding::new(level, "jit", "kernel", found.to_owned());
    if value.trim() == "0" {
        finding(Level::Warning, "BPF programs are interpreted")
            .because("every packet costs many times as much")
            .mend("sysctl -w net.core.bpf_jit_enable=1")
    } else {
        finding(Level::Ok, "BPF programs are compiled")
    }
}

fn table(status: &Status) -> Finding {
    let Status {
        connections,
        connection_capacity,
        ..
    } = status;
    let found = format!("{connections} of {connection_capacity} entries are in use");
    let finding = |level| Finding::new(level, "table-fill", "connection table", found.clone());
    if *connections * 100 > *connection_capacity * FULL {
        finding(Level::Warning)
            .because("new connections find no room, and half-open ones give way")
            .mend("start the agent with a greater --connections: entries are moved, none is lost")
    } else {
        finding(Level::Ok)
    }
}

/// An interface that the program is attached to.
pub(super) fn interface(interface: &InterfaceStatus) -> Vec<Finding> {
    let InterfaceStatus {
        name, mode, reason, ..
    } = interface;
    let driver = driver(name)
        .map(|driver| format!(" (driver {driver})"))
        .unwrap_or_default();
    let mode = match (mode.as_str(), reason) {
        ("native", _) => Finding::new(Level::Ok, "mode", name, format!("native mode{driver}")),
        (_, Some(reason)) => Finding::new(
            Level::Warning,
            "mode",
            name,
            format!("generic mode{driver}: {reason}"),
        )
        .because("every packet takes the long way into the kernel first")
        .mend("use a network card whose driver has XDP, or mend what the reason says"),
        (_, None) => Finding::new(
            Level::Note,
            "mode",
            name,
            format!("generic mode{driver}, as the agent was told"),
        )
        .because("every packet takes the long way into the kernel first")
        .mend("start the agent with --xdp-mode auto"),
    };
    [Some(mode), lro(name), queues(name)]
        .into_iter()
        .flatten()
        .collect()
}

fn driver(name: &str) -> Option<String> {
    let link = fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Packets that the card has joined are longer than the real servers' segment allows.
fn lro(name: &str) -> Option<Finding> {
    let flags = nic::flags(name).ok()?;
    Some(if flags & nic::LRO == 0 {
        Finding::new(Level::Ok, "lro", name, "the card joins no packets".to_owned())
    } else {
        Finding::new(
            Level::Broken,
            "lro",
            name,
            "large receive offload is on".to_owned(),
        )
        .because("packets that the card has joined are too long for the real servers' segment")
        .mend(format!("ethtool -K {name} lro off"))
    })
}

/// Queues of a card against CPUs. What is no card has as many as it needs.
fn queues(name: &str) -> Option<Finding> {
    driver(name)?;
    let queues = receive_queues(name).ok()?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = format!("{queues} receive queues, {cpus} CPUs");
    let finding = |level| Finding::new(level, "queues", name, found.clone());
    Some(if queues < cpus && queues == 1 {
        finding(Level::Note)
            .because("one CPU does all the work")
            .mend(format!("ethtool -L {name} combined {cpus}"))
    } else {
        finding(Level::Ok)
    })
}

fn receive_queues(name: &str) -> io::Result<usize> {
    let queues = fs::read_dir(Path::new("/sys/class/net").join(name).join("queues"))?;
    let mut count = 0;
    for queue in queues {
        count += usize::from(queue?.file_name().as_encoded_bytes().starts_with(b"rx-"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(version("6.1.0-50-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("6.18.44-x"), Some((6, 18)));
        assert_eq!(version(""), None);
        assert!(version("5.15.1") < Some(OLDEST));
    }
}
