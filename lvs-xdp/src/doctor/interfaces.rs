//! The network cards: where the program is on them, what else is, and what they do to frames.

use super::{
    facts::{Card, Facts, Program},
    finding::{Finding, Level},
};
use crate::api::types::{InterfaceStatus, Status};

/// Every interface that the agent is to be on.
pub(super) fn interfaces(facts: &Facts, status: &Status, cpus: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in &status.interfaces {
        findings.push(program(facts, status, interface));
        findings.push(mode(facts, interface));
        findings.extend(card(facts, &interface.name, interface.index, cpus));
    }
    findings.extend(status.detached.iter().map(|name| detached(facts, name)));
    findings
}

fn named(program: &Program) -> String {
    let Program { id, name, .. } = program;
    if name.is_empty() {
        format!("the XDP program {id}")
    } else {
        format!("the XDP program {id} (`{name}`)")
    }
}

/// What takes a program off that somebody else has put there.
fn take_off(interface: &str, program: &Program) -> String {
    let kind = if program.is_generic {
        "xdpgeneric"
    } else {
        "xdpdrv"
    };
    format!(
        "end what has loaded it (bpftool prog show id {}; ip link set dev {interface} {kind} off), then start the \
         agent again: systemctl restart lvs-xdp",
        program.id
    )
}

/// Whether the program that an interface runs is the agent's.
fn program(facts: &Facts, status: &Status, interface: &InterfaceStatus) -> Finding {
    let name = &interface.name;
    match facts.programs.get(&interface.index) {
        Some(program) if program.id == status.program_id => Finding::new(
            Level::Ok,
            "program",
            name,
            format!("it runs the agent's program ({})", program.id),
        ),
        Some(program) => Finding::new(
            Level::Broken,
            "other-program",
            name,
            format!("it runs {}, which is not the agent's", named(program)),
        )
        .because("nothing that comes in there is balanced")
        .mend(take_off(name, program)),
        None => Finding::new(
            Level::Broken,
            "program-detached",
            name,
            "no XDP program is on it, and the agent takes it for attached".to_owned(),
        )
        .because(
            "somebody has removed its pin, or taken it off by force: nothing that comes in there is balanced",
        )
        .mend("systemctl restart lvs-xdp"),
    }
}

/// An interface that the program is to be on and is not.
fn detached(facts: &Facts, name: &str) -> Finding {
    let finding = |code, found| Finding::new(Level::Broken, code, name, found);
    let Some((if_index, _)) = facts.links.named(name) else {
        return finding("interface-gone", "there is no such interface".to_owned())
            .because("no packet comes in there until it is back; then it is attached by itself")
            .mend("ip link shows which there are; name others with --interface and start the agent again");
    };
    if let Some(program) = facts.programs.get(&if_index) {
        return finding(
            "other-program",
            format!("it runs {}, and lvs-xdp's cannot be beside it", named(program)),
        )
        .because("nothing that comes in there is balanced")
        .mend(take_off(name, program));
    }
    if let Some(found) = tags(facts, name, if_index) {
        return found;
    }
    finding("interface-detached", "the program is not on it".to_owned())
        .because("nothing that comes in there is balanced")
        .mend("the agent tries every second, and its log says why it fails: journalctl -u lvs-xdp")
}

fn mode(facts: &Facts, interface: &InterfaceStatus) -> Finding {
    let InterfaceStatus {
        name, mode, reason, ..
    } = interface;
    let driver = facts.cards.get(name).and_then(|card| card.driver.as_ref());
    let driver = driver
        .map(|driver| format!(" (driver {driver})"))
        .unwrap_or_default();
    let slow = |level, found| {
        Finding::new(level, "mode", name, found)
            .because("every packet takes the long way into the kernel first")
    };
    match (mode.as_str(), reason) {
        ("native", _) => Finding::new(Level::Ok, "mode", name, format!("native mode{driver}")),
        (_, Some(reason)) => slow(Level::Warning, format!("generic mode{driver}: {reason}"))
            .mend("use a network card whose driver has XDP, or mend what the reason says"),
        (_, None) => slow(
            Level::Note,
            format!("generic mode{driver}, as the agent was told"),
        )
        .mend("start the agent with --xdp-mode auto"),
    }
}

/// What a card does to frames, and by how many queues.
fn card(facts: &Facts, name: &str, if_index: u32, cpus: u32) -> Vec<Finding> {
    let Some(card) = facts.cards.get(name) else {
        return Vec::new();
    };
    let tags = tags(facts, name, if_index).or_else(|| {
        let keeps = !card.strips_tags?;
        let found = if keeps {
            "VLAN tags are left on frames"
        } else {
            "VLAN tags are taken off frames, and no VLAN is upon it"
        };
        Some(Finding::new(Level::Ok, "vlan-offload", name, found.to_owned()))
    });
    [joined(name, card), tags, queues(name, card, cpus)]
        .into_iter()
        .flatten()
        .collect()
}

/// Packets that the card has joined are longer than the real servers' segment allows.
fn joined(name: &str, card: &Card) -> Option<Finding> {
    Some(if card.joins_packets? {
        Finding::new(
            Level::Broken,
            "lro",
            name,
            "large receive offload is on".to_owned(),
        )
        .because("packets that the card has joined are too long for the real servers' segment")
        .mend(format!("ethtool -K {name} lro off"))
    } else {
        Finding::new(Level::Ok, "lro", name, "the card joins no packets".to_owned())
    })
}

/// Tags that a card takes off, where there are VLANs upon it.
fn tags(facts: &Facts, name: &str, if_index: u32) -> Option<Finding> {
    let vlans = facts.links.vlans(if_index);
    if vlans.is_empty() {
        return None;
    }
    let parts = facts.links.parts(if_index);
    let mut cards =
        std::iter::once(name).chain(parts.filter_map(|part| Some(facts.links.get(part)?.name.as_str())));
    let card = cards.find(|card| facts.cards.get(*card).and_then(|card| card.strips_tags) == Some(true))?;
    Some(
        Finding::new(
            Level::Broken,
            "vlan-offload",
            name,
            format!(
                "{card} takes VLAN tags off, and there are VLANs: {}",
                vlans.join(", ")
            ),
        )
        .because("the program sees the frames of all VLANs without their tags, and mixes them up")
        .mend(format!("ethtool -K {card} rxvlan off")),
    )
}

/// Queues of a card against CPUs.
fn queues(name: &str, card: &Card, cpus: u32) -> Option<Finding> {
    let channels = card.channels?;
    let found = format!(
        "{} receive queues of {} that it may have, {cpus} CPUs",
        channels.receive, channels.most
    );
    let finding = |level| Finding::new(level, "queues", name, found.clone());
    let best = cpus.min(channels.most);
    Some(if channels.receive < best {
        let kind = if channels.are_combined { "combined" } else { "rx" };
        finding(Level::Note)
            .because("only as many CPUs as there are queues work at what comes in")
            .mend(format!("ethtool -L {name} {kind} {best}"))
    } else {
        finding(Level::Ok)
    })
}

#[cfg(test)]
mod tests;
