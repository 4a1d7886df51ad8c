//! Hosts that nobody has.

use super::*;
use crate::{
    dataplane::{ClockSample, Generation},
    doctor::tests::{bad, facts, status},
};

#[test]
fn a_host_without_fault() {
    assert_eq!(bad(host(&facts())), []);
    assert_eq!(bad(agent(&facts(), &status(), &[])), []);
}

#[test]
fn kernels() {
    let judged = |release: &str| {
        let mut facts = facts();
        release.clone_into(&mut facts.kernel.release);
        let found = kernel(&facts.kernel);
        (found.level, found.found)
    };
    assert_eq!(judged("6.6.1-x"), (Level::Ok, "Linux 6.6.1-x".to_owned()));
    let (level, found) = judged("6.1.0");
    assert_eq!(level, Level::Note);
    assert!(found.starts_with("Linux 6.1.0 has no TCX: "), "{found}");
    let (level, found) = judged("5.15.9");
    assert_eq!(level, Level::Warning);
    for part in ["bpf_loop: ", "no XDP on frames of several buffers: ", "no TCX: "] {
        assert!(found.contains(part), "{found}");
    }
    assert_eq!(judged("unknown").0, Level::Ok);
}

#[test]
fn what_a_kernel_may_lack() {
    let mut facts = facts();
    facts.kernel.has_jit = false;
    facts.kernel.has_btf = false;
    facts.kernel.has_membarrier = false;
    assert_eq!(
        bad(host(&facts)),
        [
            ("jit", Level::Warning),
            ("membarrier", Level::Warning),
            ("btf", Level::Note)
        ]
    );
}

#[test]
fn memory_against_what_the_tables_take() {
    let judged = |available, bytes| {
        let mut facts = facts();
        facts.memory.available = available;
        facts.pinned.generations = vec![Generation {
            number: 1,
            program: Some(7),
            bytes,
        }];
        memory(&facts).level
    };
    assert_eq!(judged(8 << 30, 1 << 30), Level::Ok);
    assert_eq!(judged(8 << 30, 9 << 30), Level::Note);
    assert_eq!(judged(100 << 20, 1 << 20), Level::Warning);
}

#[test]
fn tables_that_are_nearly_full() {
    let judged = |used| {
        let mut status = status();
        status.tables = vec![TableFill {
            name: "services".to_owned(),
            used,
            capacity: 100,
            option: "--services".to_owned(),
        }];
        bad(agent(&facts(), &status, &[]))
    };
    assert_eq!(judged(89), []);
    assert_eq!(judged(90), [("table-nearly-full", Level::Warning)]);
    let mut status = status();
    status.connections = 751;
    assert_eq!(
        bad(agent(&facts(), &status, &[])),
        [("table-fill", Level::Warning)]
    );
}

#[test]
fn limits_of_the_process() {
    let judged = |open, files, locked, release: &str| {
        let mut facts = facts();
        facts.process = Some(super::super::facts::Process { open, files, locked });
        release.clone_into(&mut facts.kernel.release);
        bad(agent(&facts, &status(), &[]))
    };
    assert_eq!(judged(30, 1024, 65_536, "5.11.0"), []);
    assert_eq!(
        judged(30, 1024, 65_536, "5.10.0"),
        [("locked-memory", Level::Warning)]
    );
    assert_eq!(judged(30, 1024, u64::MAX, "5.10.0"), []);
    assert_eq!(
        judged(30, 255, u64::MAX, "6.12.0"),
        [("open-files", Level::Warning)]
    );
    assert_eq!(
        judged(930, 1024, u64::MAX, "6.12.0"),
        [("open-files", Level::Warning)]
    );
    assert_eq!(judged(930, u64::MAX, u64::MAX, "6.12.0"), []);
}

#[test]
fn clocks() {
    let read = |seconds: u64, jiffies: u64, late: u64| Clock {
        sample: ClockSample {
            jiffies,
            nanoseconds: seconds * 1_000_000_000,
            rate: 250,
        },
        now: (seconds + late) * 1_000_000_000,
    };
    let judged = |before, after| clock(before, after).level;
    assert_eq!(judged(read(10, 2500, 0), read(13, 3250, 1)), Level::Ok);
    // A host that is busy ticks late, but for little.
    assert_eq!(judged(read(10, 2500, 0), read(13, 3255, 1)), Level::Ok);
    assert_eq!(judged(read(10, 2500, 0), read(13, 5500, 1)), Level::Warning);
    assert_eq!(judged(read(10, 2500, 0), read(13, 2500, 1)), Level::Warning);
    // Too short a time to measure anything.
    assert_eq!(judged(read(10, 2500, 0), read(10, 2500, 1)), Level::Ok);
    assert_eq!(judged(read(10, 2500, 8), read(10, 2500, 11)), Level::Broken);
}
