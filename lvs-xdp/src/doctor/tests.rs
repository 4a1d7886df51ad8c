//! What several parts of the doctor's tests need, and what is no part's.

use super::*;
use crate::{
    api::types::{Settings, Timeouts},
    dataplane::Pinned,
    neighbour::Links,
};

/// A host without fault, and without interfaces.
pub(super) fn facts() -> Facts {
    Facts {
        kernel: facts::Kernel {
            release: "6.12.1".to_owned(),
            has_jit: true,
            has_btf: true,
            has_membarrier: true,
        },
        memory: facts::Memory {
            total: 16 << 30,
            available: 8 << 30,
        },
        process: Some(facts::Process {
            open: 30,
            files: 1024,
            locked: u64::MAX,
        }),
        links: Links::default(),
        pin_dir: "/sys/fs/bpf/lvs-xdp".to_owned(),
        pinned: Pinned {
            is_bpf: true,
            ..Pinned::default()
        },
        ..Facts::default()
    }
}

/// The status of an agent without interfaces and services.
pub(super) fn status() -> Status {
    Status {
        version: "1".to_owned(),
        pid: 1,
        abi: 2,
        program_id: 7,
        pin_dir: "/sys/fs/bpf/lvs-xdp".to_owned(),
        interfaces: Vec::new(),
        detached: Vec::new(),
        vips: Vec::new(),
        connections: 0,
        connection_capacity: 1000,
        tables: Vec::new(),
        timeouts: Timeouts::default(),
        settings: Settings::default(),
        services: 0,
        servers: 0,
        reasons: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Codes and levels of what is not well.
pub(super) fn bad(found: impl IntoIterator<Item = Finding>) -> Vec<(&'static str, Level)> {
    let found = found.into_iter().filter(|found| found.level > Level::Ok);
    let found = found.inspect(|found| {
        assert!(!found.why.is_empty(), "{found:?}");
        assert!(found.level < Level::Warning || found.mend.is_some(), "{found:?}");
    });
    found.map(|found| (found.code, found.level)).collect()
}

#[test]
fn a_mac_address_is_read_as_it_is_written() {
    let octets = [2, 0, 0, 0xa, 0xff, 1];
    assert_eq!(mac(&mac_text(octets)), Some(octets));
    for text in ["", "02:00", "02:00:00:0a:ff:01:02", "02:00:00:0a:ff:zz"] {
        assert_eq!(mac(text), None, "{text}");
    }
}

#[test]
fn the_worst_finding_is_the_status() {
    let finding = |level| Finding::new(level, "x", "y", String::new());
    for (levels, status) in [
        (&[][..], 0),
        (&[Level::Ok, Level::Note], 0),
        (&[Level::Warning, Level::Ok], 1),
        (&[Level::Warning, Level::Broken, Level::Note], 2),
    ] {
        let report = Report::new(levels.iter().copied().map(finding).collect());
        assert_eq!(report.status(), status);
    }
}
