//! Network cards that nobody has.

use super::*;
use crate::{
    doctor::tests::{bad, facts, status},
    neighbour::{Link, LinkKind},
    nic::Channels,
};

/// The host's first card, with the agent's program on it.
fn host() -> (Facts, Status) {
    let (mut facts, mut status) = (facts(), status());
    let link = Link {
        name: "eth0".to_owned(),
        ..Link::default()
    };
    facts.links.set(2, Some(link));
    facts.programs.insert(2, ours());
    let card = Card {
        driver: Some("ice".to_owned()),
        joins_packets: Some(false),
        strips_tags: Some(false),
        channels: Some(Channels {
            receive: 8,
            most: 8,
            are_combined: true,
        }),
    };
    facts.cards.insert("eth0".to_owned(), card);
    status.interfaces = vec![InterfaceStatus {
        name: "eth0".to_owned(),
        index: 2,
        mode: "native".to_owned(),
        reason: None,
    }];
    (facts, status)
}

fn ours() -> Program {
    Program {
        id: 7,
        name: "director".to_owned(),
        is_generic: false,
    }
}

fn judged(facts: &Facts, status: &Status) -> Vec<(&'static str, Level)> {
    bad(interfaces(facts, status, 8))
}

#[test]
fn a_card_without_fault() {
    let (facts, status) = host();
    let found = interfaces(&facts, &status, 8);
    let codes: Vec<_> = found.iter().map(|found| found.code).collect();
    assert_eq!(codes, ["program", "mode", "lro", "vlan-offload", "queues"]);
    assert!(found.iter().all(|found| found.level == Level::Ok), "{found:?}");
    assert_eq!(found[1].found, "native mode (driver ice)");
}

#[test]
fn what_a_card_does_to_frames() {
    let (mut facts, status) = host();
    let card = facts.cards.get_mut("eth0").expect("the card");
    card.joins_packets = Some(true);
    // Without a VLAN upon it there is nothing to lose.
    card.strips_tags = Some(true);
    assert_eq!(judged(&facts, &status), [("lro", Level::Broken)]);
    facts.cards.get_mut("eth0").expect("the card").joins_packets = None;
    let vlan = Link {
        name: "eth0.5".to_owned(),
        kind: LinkKind::Vlan {
            id: 5,
            is_service: false,
        },
        lower: Some(2),
        ..Link::default()
    };
    facts.links.set(3, Some(vlan));
    assert_eq!(judged(&facts, &status), [("vlan-offload", Level::Broken)]);
}

#[test]
fn tags_are_taken_off_by_the_parts_of_a_bond() {
    let (mut facts, mut status) = host();
    let link = |name: &str, kind, lower, master| Link {
        name: name.to_owned(),
        kind,
        lower,
        master,
        ..Link::default()
    };
    facts
        .links
        .set(4, Some(link("bond0", LinkKind::Bond, None, None)));
    facts
        .links
        .set(2, Some(link("eth0", LinkKind::Plain, None, Some(4))));
    let vlan = LinkKind::Vlan {
        id: 5,
        is_service: false,
    };
    facts.links.set(5, Some(link("bond0.5", vlan, Some(4), None)));
    facts.cards.get_mut("eth0").expect("the card").strips_tags = Some(true);
    facts.cards.insert("bond0".to_owned(), Card::default());
    facts.programs = [(4, ours())].into();
    status.interfaces[0].name = "bond0".to_owned();
    status.interfaces[0].index = 4;
    let found = interfaces(&facts, &status, 8);
    let bad: Vec<_> = found.iter().filter(|found| found.level > Level::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(bad[0].mend.as_deref(), Some("ethtool -K eth0 rxvlan off"));
}

#[test]
fn queues_are_as_many_as_can_be() {
    let judged = |receive, most, are_combined, cpus| {
        let (mut facts, status) = host();
        let channels = Channels {
            receive,
            most,
            are_combined,
        };
        facts.cards.get_mut("eth0").expect("the card").channels = Some(channels);
        let found = interfaces(&facts, &status, cpus);
        let found = found.into_iter().find(|found| found.code == "queues");
        found.and_then(|found| found.mend)
    };
    assert_eq!(judged(8, 64, true, 8), None);
    assert_eq!(judged(1, 1, true, 8), None);
    assert_eq!(
        judged(1, 4, true, 8).as_deref(),
        Some("ethtool -L eth0 combined 4")
    );
    assert_eq!(judged(2, 16, false, 8).as_deref(), Some("ethtool -L eth0 rx 8"));
}

#[test]
fn modes() {
    let judged = |mode: &str, reason: Option<&str>| {
        let (facts, mut status) = host();
        mode.clone_into(&mut status.interfaces[0].mode);
        status.interfaces[0].reason = reason.map(str::to_owned);
        judged(&facts, &status)
    };
    assert_eq!(judged("native", None), []);
    assert_eq!(judged("generic", None), [("mode", Level::Note)]);
    assert_eq!(judged("generic", Some("no")), [("mode", Level::Warning)]);
}

#[test]
fn what_runs_on_an_interface() {
    let (mut facts, mut status) = host();
    facts.programs.clear();
    assert_eq!(judged(&facts, &status), [("program-detached", Level::Broken)]);
    let other = Program {
        id: 9,
        name: "xdp_pass".to_owned(),
        is_generic: true,
    };
    facts.programs.insert(2, other);
    assert_eq!(judged(&facts, &status), [("other-program", Level::Broken)]);

    // The same of an interface that the agent knows that it is not on.
    status.interfaces.clear();
    status.detached = vec!["eth0".to_owned()];
    let found = interfaces(&facts, &status, 8);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .found
            .starts_with("it runs the XDP program 9 (`xdp_pass`)"),
        "{found:?}"
    );
    let mend = found[0].mend.as_deref().unwrap_or_default();
    assert!(mend.contains("ip link set dev eth0 xdpgeneric off"), "{mend}");
    facts.programs.clear();
    assert_eq!(judged(&facts, &status), [("interface-detached", Level::Broken)]);
    facts.links.set(2, None);
    assert_eq!(judged(&facts, &status), [("interface-gone", Level::Broken)]);
}
