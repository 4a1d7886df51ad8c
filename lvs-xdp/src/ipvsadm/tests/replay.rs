//! Replays the recorded sessions of the real ipvsadm 1.31 (tests/golden/cli.json) against a director
//! in memory, and compares status, output and errors byte for byte.

use serde::Deserialize;

use super::{Memory, Step, run_words};

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Session {
    name: String,
    steps: Vec<Step>,
}

/// Each recorded session with how many of its calls are replayed, of how many. Left out are the calls
/// that need what this drop-in does not have yet, and after the first of those that changed the
/// director all but usage errors, whose answers do not depend on what went before.
const COVERAGE: &[(&str, usize, usize)] = &[
    ("seed", 20, 25),
    ("defaults", 11, 11),
    ("service-names", 9, 9),
    ("edit", 15, 15),
    ("delete", 11, 11),
    ("duplicates", 7, 7),
    ("scheduler-rr", 4, 4),
    ("scheduler-wrr", 4, 4),
    ("scheduler-lc", 4, 4),
    ("scheduler-wlc", 4, 4),
    ("scheduler-lblc", 4, 4),
    ("scheduler-lblcr", 4, 4),
    ("scheduler-dh", 4, 4),
    ("scheduler-sh", 4, 4),
    ("scheduler-sed", 4, 4),
    ("scheduler-nq", 4, 4),
    ("scheduler-fo", 4, 4),
    ("scheduler-ovf", 4, 4),
    ("scheduler-mh", 4, 4),
    ("scheduler-flags", 12, 12),
    ("persistence", 16, 16),
    ("one-packet", 6, 6),
    ("ipv6", 20, 21),
    ("fwmark", 14, 14),
    ("sctp", 5, 5),
    ("forwarding-methods", 7, 15),
    ("weights", 10, 10),
    ("thresholds", 11, 11),
    ("bad-addresses", 13, 13),
    ("bad-real-servers", 12, 12),
    ("bad-usage", 33, 33),
    ("timeouts", 12, 12),
    ("daemon", 0, 11),
    ("restore", 0, 10),
    ("many-sorted", 13, 13),
    ("zero-port-real-server", 5, 5),
    ("long-options", 14, 15),
    ("pe", 0, 6),
];

/// Whether the drop-in has all that a call asks for. This is written down here once more, from the
/// words alone, so that an option refused by mistake is not left out by mistake as well.
fn is_supported(step: &Step) -> bool {
    const MISSING: &str = "-R --restore -Z --zero --start-daemon --stop-daemon --daemon --pe -m";
    let has = |word: &str| step.argv.iter().any(|other| other == word);
    let rate_alone = has("--rate") && !has("--stats");
    !(MISSING.split_whitespace().any(has) || rate_alone)
}

fn is_change(step: &Step) -> bool {
    let listing = [
        "-L", "-l", "-Ln", "--list", "-S", "--save", "-Z", "--zero", "--set", "-h", "-v",
    ];
    step.argv
        .first()
        .is_some_and(|first| !listing.contains(&first.as_str()))
}

#[test]
fn sessions_are_answered_as_by_ipvsadm() {
    let records = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/cli.json"));
    let sessions: Vec<Session> = serde_json::from_str(records).unwrap();
    let mut coverage = Vec::new();
    for session in &sessions {
        let (mut director, mut diverged, mut replayed) = (Memory::default(), false, 0);
        for recorded in &session.steps {
            let usage_error = recorded.status == 2 || recorded.stderr.contains("missing argument");
            if !is_supported(recorded) && !usage_error {
                diverged |= recorded.status == 0 && is_change(recorded);
                continue;
            }
            if diverged && !usage_error {
                continue;
            }
            let mut ours = run_words(&mut director, recorded.argv.clone());
            if !is_supported(recorded) && ours.stderr.contains("not supported") {
                // Faults in the values of an option that is refused whatever its value is.
                assert_eq!((ours.status, ours.stdout.as_str()), (255, ""));
                continue;
            }
            replayed += 1;
            // The order of --nosort is that of the kernel's hash rows.
            let has_lines = |text: &str| {
                let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            if recorded.argv.iter().any(|word| word == "--nosort")
                && has_lines(&ours.stdout) == has_lines(&recorded.stdout)
            {
                ours.stdout.clone_from(&recorded.stdout);
            }
            // Help is ours.
            if recorded.stdout.starts_with("(help text") {
                assert_eq!(
                    (ours.status, ours.stderr.as_str()),
                    (0, ""),
                    "{}: {:?}",
                    session.name,
                    ours.argv
                );
            } else {
                assert_eq!(ours, *recorded, "session {}", session.name);
            }
        }
        coverage.push((session.name.as_str(), replayed, session.steps.len()));
    }
    assert_eq!(coverage, COVERAGE);
}
