//! What is pinned, and whether it is what runs.

use super::{
    facts::{Facts, Program},
    finding::{Finding, Level},
};
use crate::{api::types::Status, dataplane::Generation};

/// The pins of an agent that runs.
pub(super) fn pins(facts: &Facts, status: &Status) -> Vec<Finding> {
    let generations = &facts.pinned.generations;
    let mut findings = layouts(facts);
    let subject = facts.pin_dir.as_str();
    let is_there = generations
        .iter()
        .any(|generation| generation.program == Some(status.program_id));
    if !facts.pinned.is_bpf {
        findings.push(unmounted(facts, Level::Broken));
    } else if !is_there {
        findings.push(
            Finding::new(
                Level::Broken,
                "pins-gone",
                subject,
                format!(
                    "the program that runs ({}) is not pinned there",
                    status.program_id
                ),
            )
            .because("the next agent does not find its tables: every connection is lost when it starts")
            .mend("systemctl restart lvs-xdp at a quiet time, and find who has removed the pins"),
        );
    } else if findings.is_empty() {
        let found = format!("program {} and its maps are pinned", status.program_id);
        findings.push(Finding::new(Level::Ok, "pins", subject, found));
    }
    if let [_, _, ..] = generations[..] {
        let numbers: Vec<_> = generations
            .iter()
            .map(|generation| format!("g{}", generation.number))
            .collect();
        findings.push(
            Finding::new(
                Level::Note,
                "pins-left-over",
                subject,
                format!(
                    "there are {} generations of maps: {}",
                    numbers.len(),
                    numbers.join(", ")
                ),
            )
            .because(
                "an agent was killed while it moved to other tables; the memory of the others is not free",
            )
            .mend("systemctl restart lvs-xdp removes what is not in use"),
        );
    }
    findings
}

/// A directory that is on no BPF file system.
fn unmounted(facts: &Facts, level: Level) -> Finding {
    Finding::new(
        level,
        "pins-unmounted",
        &facts.pin_dir,
        "it is on no BPF file system: there is none, or something is mounted over it".to_owned(),
    )
    .because("the next agent finds neither its tables nor the connections in them")
    .mend("umount what is over it; mount -t bpf bpf /sys/fs/bpf, where nothing is")
}

/// Pins of another layout's maps.
fn layouts(facts: &Facts) -> Vec<Finding> {
    let names = facts.pinned.other_layouts.iter();
    let found = names.map(|name| {
        Finding::new(
            Level::Warning,
            "pins-other-layout",
            &facts.pin_dir,
            format!("there are pins of another layout: {name}"),
        )
        .because("the next agent refuses to start beside them")
        .mend(format!(
            "with the lvs-xdp that made them: lvs-xdp unload --pin-dir {0}; or, where nothing of them runs: rm -r {0}/{name}",
            facts.pin_dir
        ))
    });
    found.collect()
}

/// What is left where no agent answers, which `error` says.
pub(super) fn orphans(facts: &Facts, error: &str) -> Vec<Finding> {
    let pinned = &facts.pinned;
    let ours = |program: &Program| {
        let mut generations = pinned.generations.iter();
        generations.any(|Generation { program: id, .. }| *id == Some(program.id))
    };
    let on: Vec<_> = facts
        .programs
        .iter()
        .filter(|(if_index, program)| pinned.linked.contains(if_index) && ours(program))
        .filter_map(|(if_index, _)| Some(facts.links.get(*if_index)?.name.as_str()))
        .collect();
    let (level, what, why) = if on.is_empty() {
        (
            Level::Broken,
            "no program is on any interface".to_owned(),
            "nothing is balanced",
        )
    } else {
        (
            Level::Warning,
            format!("the program goes on forwarding on {}", on.join(", ")),
            "connections and new clients are served as it was configured last; but real servers that die or move are \
             not noticed, nothing is checked, lists and counts stand still, and nothing can be changed",
        )
    };
    let mut findings = layouts(facts);
    if !pinned.is_bpf {
        // The agent mounts it where systemd has not.
        findings.push(unmounted(facts, Level::Note));
    }
    findings.push(
        Finding::new(level, "agent-not-running", "agent", format!("{error}; {what}"))
            .because(why)
            .mend("systemctl start lvs-xdp; journalctl -u lvs-xdp says why it has ended"),
    );
    if !on.is_empty() || pinned.generations.is_empty() {
        return findings;
    }
    findings.push(
        Finding::new(
            Level::Note,
            "pins-left-over",
            &facts.pin_dir,
            "maps are pinned, and no interface runs their program".to_owned(),
        )
        .because(
            "the next agent takes them over, with the connections in them; until then they only take memory",
        )
        .mend(format!("lvs-xdp unload --pin-dir {} removes them", facts.pin_dir)),
    );
    findings
}

#[cfg(test)]
mod tests;
