//! The host: kernel, memory, limits, the clock, and what the agent says of itself.

use super::{
    facts::{Clock, Facts, Kernel},
    finding::{Finding, Level},
};
use crate::api::types::{ServerState, Service, Status, TableFill};

/// The oldest kernel that the program is known to load on.
const OLDEST: (u32, u32) = (6, 1);
/// What newer kernels have that is used where it is there: since when, and what is done without it.
const FEATURES: [(&str, (u32, u32), &str); 5] = [
    ("bpf_loop", (5, 17), "the program does not load"),
    (
        "XDP on frames of several buffers",
        (5, 18),
        "jumbo frames take generic mode",
    ),
    (
        "managed neighbour entries",
        (5, 16),
        "a real server that is silent is asked for by the agent alone",
    ),
    (
        "programs by reference (BPF_LINK_UPDATE)",
        (5, 9),
        "an upgrade of the agent loses packets",
    ),
    (
        "TCX",
        (6, 6),
        "health checks of the VIP are led by filters of tc, which stay when the agent is killed until the next one comes",
    ),
];
/// From this part of the connection table on, in percent, new connections may find no room in their bucket.
const FULL: u64 = 75;
/// From this part of another table on, in percent, the next change may be refused.
const NEARLY: u64 = 90;
/// The kernel that counts the memory of maps by control groups and no longer as locked memory.
const UNLOCKED: (u32, u32) = (5, 11);
/// Files that the agent opens beside one for each health check: maps, netlink, clients.
const OTHER_FILES: u64 = 256;
/// Free memory below which the kernel may begin to end processes, as a part of all of it.
const SCARCE: u64 = 32;
/// The agent reads the clock every second; after so many nanoseconds without it something is wrong.
const STOPPED: u64 = 10_000_000_000;
/// A rate is measured over so many nanoseconds, at least.
const MEASURED: u64 = 900_000_000;

/// What holds whether an agent runs or not.
pub(super) fn host(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        kernel(&facts.kernel),
        jit(&facts.kernel),
        membarrier(&facts.kernel),
    ];
    if !facts.kernel.has_btf {
        findings.push(
            Finding::new(
                Level::Note,
                "btf",
                "kernel",
                "it does not describe its types (BTF)".to_owned(),
            )
            .because("bpftool shows maps as bytes; the program needs none of it"),
        );
    }
    findings.push(memory(facts));
    findings
}

/// What the agent's own state says.
pub(super) fn agent(facts: &Facts, status: &Status, services: &[Service]) -> Vec<Finding> {
    let mut findings = vec![connections(status)];
    findings.extend(status.tables.iter().map(table));
    findings.extend(files(facts, services));
    findings.extend(locked_memory(facts));
    findings.extend(warnings(status, services));
    findings
}

fn kernel(kernel: &Kernel) -> Finding {
    let release = &kernel.release;
    let finding = |level, found| Finding::new(level, "kernel", "kernel", found);
    let Some(version) = kernel.version() else {
        return finding(Level::Ok, format!("Linux {release}"));
    };
    let lacking = FEATURES.iter().filter(|(_, since, _)| version < *since);
    let lacking: Vec<_> = lacking
        .map(|(what, _, without)| format!("{what}: {without}"))
        .collect();
    let found = if lacking.is_empty() {
        format!("Linux {release}")
    } else {
        format!("Linux {release} has no {}", lacking.join("; no "))
    };
    if version < OLDEST {
        finding(Level::Warning, found)
            .because("the program is tested on Linux 6.1 and newer")
            .mend("install a newer kernel")
    } else if lacking.is_empty() {
        finding(Level::Ok, found)
    } else {
        finding(Level::Note, found).because("newer kernels have it, and nothing has to be done")
    }
}

fn jit(kernel: &Kernel) -> Finding {
    let finding = |level, found: &str| Finding::new(level, "jit", "kernel", found.to_owned());
    if kernel.has_jit {
        finding(Level::Ok, "BPF programs are compiled")
    } else {
        finding(Level::Warning, "BPF programs are interpreted")
            .because("every packet costs many times as much")
            .mend("sysctl -w net.core.bpf_jit_enable=1")
    }
}

fn membarrier(kernel: &Kernel) -> Finding {
    let finding = |level, found: &str| Finding::new(level, "membarrier", "kernel", found.to_owned());
    if kernel.has_membarrier {
        finding(Level::Ok, "membarrier(2) tells when the last packet has left")
    } else {
        finding(Level::Warning, "there is no membarrier(2)")
            .because("each change waits for a second before the next one is made")
            .mend("use a kernel with CONFIG_MEMBARRIER, or let the agent's sandbox allow membarrier(2)")
    }
}

fn memory(facts: &Facts) -> Finding {
    const MIB: u64 = 1 << 20;
    let memory = facts.memory;
    let tables = facts
        .pinned
        .generations
        .iter()
        .map(|generation| generation.bytes)
        .sum::<u64>();
    let found = format!(
        "{} MiB of {} MiB are available, the tables take {} MiB",
        memory.available / MIB,
        memory.total / MIB,
        tables / MIB
    );
    let finding = |level| Finding::new(level, "memory", "host", found.clone());
    if memory.available < memory.total / SCARCE {
        finding(Level::Warning)
            .because("where memory runs out the kernel ends processes, the agent among them")
            .mend("free memory, or start the agent with a smaller --connections")
    } else if memory.available < tables {
        finding(Level::Note).because(
            "another --connections takes new tables before it gives the old ones back, and there is no room",
        )
    } else {
        finding(Level::Ok)
    }
}

fn connections(status: &Status) -> Finding {
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

fn table(fill: &TableFill) -> Finding {
    let TableFill {
        name,
        used,
        capacity,
        option,
    } = fill;
    let found = format!("{used} of {capacity} rows are in use");
    let finding = |level| {
        Finding::new(
            level,
            "table-nearly-full",
            &format!("table of {name}"),
            found.clone(),
        )
    };
    if *used * 100 >= *capacity * NEARLY {
        finding(Level::Warning)
            .because("what does not fit is refused")
            .mend(format!(
                "start the agent with a greater {option}: nothing is lost by it"
            ))
    } else {
        finding(Level::Ok)
    }
}

fn files(facts: &Facts, services: &[Service]) -> Option<Finding> {
    let process = facts.process?;
    let servers = services.iter().flat_map(|service| &service.servers);
    let checks = servers.filter(|server| server.health.is_some()).count() as u64;
    let found = format!(
        "{} of {} files are open, and {checks} health checks may need one each",
        process.open, process.files
    );
    let finding = |level| Finding::new(level, "open-files", "agent", found.clone());
    Some(
        if process.files < checks + OTHER_FILES || process.open * 10 > process.files.saturating_mul(9) {
            finding(Level::Warning)
                .because("checks fail, and clients are refused, where no file can be opened")
                .mend(format!(
                    "systemctl edit lvs-xdp: LimitNOFILE={}",
                    (2 * (checks + OTHER_FILES)).next_power_of_two()
                ))
        } else {
            finding(Level::Ok)
        },
    )
}

fn locked_memory(facts: &Facts) -> Option<Finding> {
    let (process, version) = (facts.process?, facts.kernel.version()?);
    // Since then it is no limit of a process.
    if version >= UNLOCKED {
        return None;
    }
    let finding = |level, found: &str| Finding::new(level, "locked-memory", "agent", found.to_owned());
    Some(if process.locked == u64::MAX {
        finding(Level::Ok, "it may lock as much memory as it needs")
    } else {
        finding(Level::Warning, "its memory for maps is limited")
            .because("this kernel counts maps as locked memory, and larger tables are refused")
            .mend("systemctl edit lvs-xdp: LimitMEMLOCK=infinity")
    })
}

/// What the agent warns of, but for what is found out elsewhere.
fn warnings(status: &Status, services: &[Service]) -> Vec<Finding> {
    let servers = services.iter().flat_map(|service| &service.servers);
    let unreached = servers
        .filter(|server| server.state != ServerState::Ready)
        .map(|server| format!("real server {}: ", server.spec.key.address));
    let generic = status
        .interfaces
        .iter()
        .filter(|interface| interface.reason.is_some());
    let generic = generic.map(|interface| format!("{} is in generic mode", interface.name));
    let fallen_back = services.iter().filter(|service| service.has_fallen_back);
    let fallen_back = fallen_back.map(|service| format!("service {} has fewer usable", service.spec.key));
    let known: Vec<_> = unreached.chain(generic).chain(fallen_back).collect();
    let is_known = |warning: &str| known.iter().any(|beginning| warning.starts_with(beginning));
    let warnings = status.warnings.iter().filter(|warning| !is_known(warning));
    let found = warnings.map(|warning| {
        Finding::new(Level::Warning, "agent-warning", "agent", warning.clone())
            .because("the agent asks for attention")
            .mend("do what it says; lvs-xdp status shows it as well")
    });
    found.collect()
}

/// The clock by which connections age, read twice.
pub(super) fn clock(before: Clock, after: Clock) -> Finding {
    let finding = |level, found| Finding::new(level, "clock", "clock", found);
    let rate = after.sample.rate;
    let age = after.now.saturating_sub(after.sample.nanoseconds);
    if age > STOPPED {
        return finding(
            Level::Broken,
            format!("the agent has not looked at it for {} s", age / 1_000_000_000),
        )
        .because("entries that are over stay, and the lists of connections and the counts stand still")
        .mend("see what the agent does, and start it again: systemctl restart lvs-xdp");
    }
    let passed = after.sample.nanoseconds.saturating_sub(before.sample.nanoseconds);
    let ticks = after.sample.jiffies.saturating_sub(before.sample.jiffies);
    if passed >= MEASURED {
        let measured = u128::from(ticks) * 1_000_000_000 / u128::from(passed);
        // A tick more or less, and what a busy host adds.
        if measured.abs_diff(u128::from(rate)) * 20 > u128::from(rate) {
            return finding(
                Level::Warning,
                format!("the kernel ticks {measured} times a second, and the tables count {rate}"),
            )
            .because("connections age too fast or too slowly by that much")
            .mend("lvs-xdp unload, and start the agent again: it measures the rate of new tables");
        }
    }
    finding(Level::Ok, format!("{rate} ticks a second"))
}

#[cfg(test)]
mod tests;
