//! Directories of pins that nobody has.

use super::*;
use crate::{
    dataplane::Pinned,
    doctor::tests::{bad, facts, status},
    neighbour::Link,
};

fn generation(number: u32, program: Option<u32>) -> Generation {
    Generation {
        number,
        program,
        bytes: 1,
    }
}

#[test]
fn the_pins_of_an_agent_that_runs() {
    let mut facts = facts();
    facts.pinned.generations = vec![generation(1, Some(7))];
    assert_eq!(bad(pins(&facts, &status())), []);
    facts.pinned.generations.push(generation(2, None));
    assert_eq!(bad(pins(&facts, &status())), [("pins-left-over", Level::Note)]);
    facts.pinned.other_layouts = vec!["v1".to_owned()];
    assert_eq!(
        bad(pins(&facts, &status())),
        [
            ("pins-other-layout", Level::Warning),
            ("pins-left-over", Level::Note)
        ]
    );
    facts.pinned = Pinned::default();
    assert_eq!(bad(pins(&facts, &status())), [("pins-unmounted", Level::Broken)]);
    facts.pinned.is_bpf = true;
    assert_eq!(bad(pins(&facts, &status())), [("pins-gone", Level::Broken)]);
    // Another program is pinned than the one that runs.
    facts.pinned.generations = vec![generation(1, Some(8))];
    assert_eq!(bad(pins(&facts, &status())), [("pins-gone", Level::Broken)]);
}

#[test]
fn what_a_dead_agent_has_left() {
    let mut facts = facts();
    let found = orphans(&facts, "nobody answers");
    assert_eq!(bad(found.clone()), [("agent-not-running", Level::Broken)]);
    assert_eq!(found[0].found, "nobody answers; no program is on any interface");

    facts.pinned.is_bpf = false;
    assert_eq!(
        bad(orphans(&facts, "")),
        [
            ("pins-unmounted", Level::Note),
            ("agent-not-running", Level::Broken)
        ]
    );
    facts.pinned.is_bpf = true;
    facts.pinned.generations = vec![generation(3, Some(7))];
    assert_eq!(
        bad(orphans(&facts, "")),
        [
            ("agent-not-running", Level::Broken),
            ("pins-left-over", Level::Note)
        ]
    );

    facts.pinned.linked = vec![2];
    let program = Program {
        id: 7,
        name: String::new(),
        is_generic: false,
    };
    facts.programs.insert(2, program);
    let link = Link {
        name: "eth0".to_owned(),
        ..Link::default()
    };
    facts.links.set(2, Some(link));
    let found = orphans(&facts, "nobody answers");
    assert_eq!(bad(found.clone()), [("agent-not-running", Level::Warning)]);
    assert_eq!(
        found[0].found,
        "nobody answers; the program goes on forwarding on eth0"
    );
    // What runs there is somebody else's.
    facts.programs.values_mut().for_each(|program| program.id = 8);
    assert_eq!(
        bad(orphans(&facts, "")),
        [
            ("agent-not-running", Level::Broken),
            ("pins-left-over", Level::Note)
        ]
    );
}
