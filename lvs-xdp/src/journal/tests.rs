use std::{env, os::unix::fs::PermissionsExt as _, process::Command};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigHandler, Signal, signal},
};
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::*;
use crate::{
    api::types::{
        MarkRule, Protocol, Scheduler, SchedulerFlag, ServerKey, ServerSpec, ServiceKey, ServiceSpec,
        Settings, Timeouts,
    },
    model::tests::any_change,
};

fn key(port: u16) -> ServiceKey {
    ServiceKey::new(Protocol::Udp, [192, 0, 2, 1].into(), port)
}

fn service(port: u16) -> Change {
    let flags = vec![SchedulerFlag::Fallback, SchedulerFlag::Port];
    Change::AddService {
        service: ServiceSpec {
            flags,
            ..ServiceSpec::new(key(port), Scheduler::Mh)
        },
    }
}

fn server(port: u16, host: u8, weight: u32) -> ServerSpec {
    let key = ServerKey {
        address: [198, 51, 100, host].into(),
        port,
    };
    ServerSpec::new(key, weight)
}

/// A transaction that needs no other: a service with two servers.
fn whole(port: u16) -> Vec<Change> {
    let add = |host| Change::AddServer {
        service: key(port),
        server: server(port, host, 10),
        require_on_link: false,
    };
    vec![service(port), add(1), add(2)]
}

fn model(transactions: &[Vec<Change>]) -> Model {
    let mut model = Model::default();
    for changes in transactions {
        model.apply(changes).unwrap();
    }
    model
}

/// A state file without a history.
fn file(transactions: &[Vec<Change>]) -> Vec<u8> {
    transactions.iter().fold(header(VERSION), |mut bytes, changes| {
        bytes.extend(transaction(changes).unwrap());
        bytes
    })
}

/// A change as the agent makes it.
fn made(changes: &[Change]) -> Transaction {
    Transaction {
        version: Version {
            number: 0,
            time: 1_767_225_600,
            uid: Some(1000),
            client: None,
            what: "a change".to_owned(),
        },
        changes: changes.to_vec(),
    }
}

fn append(journal: &mut Journal, changes: &[Change]) -> io::Result<()> {
    journal.append(vec![made(changes)])
}

/// What successive calls of `append` write, the first one with this number.
fn appended(first: u64, transactions: &[Vec<Change>]) -> Vec<u8> {
    let lines = (first..).zip(transactions).map(|(number, changes)| {
        let mut made = made(changes);
        made.version.number = number;
        line(&serde_json::to_vec(&Line { versions: vec![made] }).unwrap())
    });
    lines.flatten().collect()
}

/// A state directory with this state file.
fn directory(bytes: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(FILE), bytes).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Opens, expects nothing to be said, and gives the model.
#[track_caller]
fn reopen(dir: &Path) -> Model {
    let Opened { model, warnings, .. } = Journal::open(dir).unwrap();
    assert_eq!(warnings, [""; 0]);
    model
}

#[test]
fn what_was_appended_is_there_when_opened_again() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("a/b");
    let Opened {
        mut journal,
        model: empty,
        warnings,
    } = Journal::open(&dir).unwrap();
    assert_eq!((&empty, warnings.len()), (&Model::default(), 0));
    let edit = Change::EditServer {
        service: key(53),
        server: server(53, 1, 0),
    };
    let remove = Change::DeleteServer {
        service: key(53),
        server: server(53, 2, 0).key,
    };
    let history = [whole(53), whole(54), vec![edit], vec![remove], vec![]];
    for changes in &history {
        append(&mut journal, changes).unwrap();
    }
    drop(journal);
    assert_eq!(reopen(&dir), model(&history));
    let expected = [header(VERSION), appended(1, &history[..4])].concat();
    assert_eq!(fs::read(dir.join(FILE)).unwrap(), expected);
    assert_eq!(names(&dir), ["lock", "state"]);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&dir), mode(&dir.join(FILE)), mode(&dir.join("lock"))),
        (0o700, 0o600, 0o600)
    );
}

proptest! {
    #[test]
    fn any_history_is_read_back(history in vec(vec(any_change(), 1..4), 0..40)) {
        let mut model = Model::default();
        let taken: Vec<_> = history.into_iter().filter(|changes| model.apply(changes).is_ok()).collect();
        let versions = [header(VERSION), appended(1, &taken)].concat();
        for bytes in [file(&taken), versions, snapshot(&model).unwrap()] {
            let contents = read(&bytes).unwrap();
            prop_assert_eq!(contents.faults, [""; 0]);
            prop_assert_eq!((&contents.model, contents.torn), (&model, false));
            prop_assert_eq!(contents.length, bytes.len() as u64);
        }
    }
}

#[test]
fn a_cut_anywhere_in_the_last_line_gives_the_state_before_it() {
    let history = [whole(1), whole(2)];
    let bytes = file(&history);
    let before = file(&history[..1]).len();
    for cut in before..bytes.len() {
        let dir = directory(&bytes[..cut]);
        let Opened {
            mut journal,
            model: read,
            warnings,
        } = Journal::open(dir.path()).unwrap();
        assert_eq!(read, model(&history[..1]), "cut at {cut}");
        if cut == before {
            assert_eq!(warnings.len(), 0);
        } else {
            assert!(
                matches!(&warnings[..], [line] if line.contains("cut short")),
                "{warnings:?}"
            );
        }
        assert_eq!(names(dir.path()), ["lock", "state"]);
        append(&mut journal, &history[1]).unwrap();
        drop(journal);
        assert_eq!(reopen(dir.path()), model(&history));
    }
}

#[test]
fn every_flipped_bit_is_seen_and_costs_no_other_line() {
    let history = [whole(1), whole(2), whole(3)];
    let bytes = file(&history);
    let mut line = 0;
    for (at, byte) in bytes.iter().enumerate() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let contents = read(&flipped).unwrap();
            assert!(!contents.faults.is_empty(), "byte {at} bit {bit}");
            // A line end that is gone joins two lines.
            let lost = if *byte == b'\n' {
                line..=line + 1
            } else {
                line..=line
            };
            for n in (1..=history.len()).filter(|n| !lost.contains(n)) {
                let port = u16::try_from(n).unwrap();
                assert!(
                    contents.model.services().contains_key(&key(port)),
                    "byte {at} bit {bit} line {n}"
                );
            }
        }
        line += usize::from(*byte == b'\n');
    }
}

#[test]
fn a_damaged_file_is_kept_and_the_rest_of_it_restored() {
    let history = [whole(1), whole(2), whole(3)];
    let bytes = file(&history);
    let starts = [
        0,
        file(&[]).len(),
        file(&history[..1]).len(),
        file(&history[..2]).len(),
    ];
    for (line, start) in starts.into_iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[start + 20] ^= 4;
        let dir = directory(&damaged);
        let Opened {
            mut journal,
            model: read,
            warnings,
        } = Journal::open(dir.path()).unwrap();
        let rest: Vec<_> = (1..=3)
            .filter(|&n| n != line)
            .map(|n| history[n - 1].clone())
            .collect();
        assert_eq!(read, model(&rest), "line {line}");

        let names = names(dir.path());
        let [_, _, aside] = &names[..] else {
            panic!("{names:?}")
        };
        assert!(aside.starts_with("state.corrupt-"), "{aside}");
        assert_eq!(fs::read(dir.path().join(aside)).unwrap(), damaged);
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(
            warning.contains(aside) && warning.contains(&format!("line {}", line + 1)),
            "{warning}"
        );

        append(&mut journal, &whole(9)).unwrap();
        drop(journal);
        assert_eq!(reopen(dir.path()), model(&[rest, vec![whole(9)]].concat()));
    }
}

#[test]
fn damage_upon_damage_keeps_every_file() {
    let dir = TempDir::new().unwrap();
    let garbage: [&[u8]; 4] = [b"", b"garbage", b"garbage\nmore\n\xff\0\n", b"\n\n"];
    for bytes in garbage {
        fs::write(dir.path().join("written"), bytes).unwrap();
        fs::rename(dir.path().join("written"), dir.path().join(FILE)).unwrap();
        let Opened { model, warnings, .. } = Journal::open(dir.path()).unwrap();
        assert_eq!((model, warnings.len()), (Model::default(), 1));
    }
    let mut kept: Vec<_> = names(dir.path())
        .into_iter()
        .filter(|name| name.starts_with("state.corrupt-"))
        .map(|name| fs::read(dir.path().join(name)).unwrap())
        .collect();
    kept.sort();
    let mut expected = garbage.map(<[u8]>::to_vec);
    expected.sort();
    assert_eq!(kept, expected);
}

#[test]
fn what_does_not_depend_on_a_damaged_line_is_restored() {
    let add = |port| Change::AddServer {
        service: key(port),
        server: server(port, 9, 1),
        require_on_link: false,
    };
    let mut bytes = file(&[whole(1), whole(2), vec![add(1), service(3), add(2)]]);
    let first = header(VERSION).len();
    bytes[first] ^= 1;
    let contents = read(&bytes).unwrap();
    assert_eq!(contents.model, model(&[whole(2), vec![service(3), add(2)]]));
    assert!(
        matches!(&contents.faults[..], [a, b] if a.starts_with("line 2") && b.starts_with("line 4")),
        "{:?}",
        contents.faults
    );
}

#[test]
fn a_file_of_another_version_is_left_alone() {
    let mut bytes = header(VERSION + 1);
    bytes.extend(line(b"who knows"));
    let dir = directory(&bytes);
    let error = format!("{:#}", Journal::open(dir.path()).unwrap_err());
    assert!(
        error.contains(&format!("format version {}", VERSION + 1)) && !error.contains('\n'),
        "{error}"
    );
    assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), bytes);
    assert_eq!(names(dir.path()), ["lock", "state"]);
}

/// As the first version wrote it, which knew nothing of persistence, thresholds, draining and settings.
#[test]
fn a_file_from_before_there_were_options_is_read() {
    let before = r#"5157aa74 lvs-xdp state 1
c9d0dbc9 [{"change":"set-timeouts","timeouts":{"tcp":600,"tcp_fin":0,"udp":30}}]
900e9963 [{"change":"add-service","service":{"protocol":"udp","address":"192.0.2.1","port":53,"scheduler":"mh","flags":["fallback","port"]}},{"change":"add-server","service":{"protocol":"udp","address":"192.0.2.1","port":53},"server":{"address":"198.51.100.1","port":53,"weight":10,"method":"dr"},"require_on_link":true},{"change":"add-server","service":{"protocol":"udp","address":"192.0.2.1","port":53},"server":{"address":"198.51.100.2","port":53,"weight":10,"method":"dr"},"require_on_link":false}]
43f1da4b [{"change":"edit-server","service":{"protocol":"udp","address":"192.0.2.1","port":53},"server":{"address":"198.51.100.1","port":53,"weight":0,"method":"dr"}}]
"#;
    let dir = directory(before.as_bytes());
    let timeouts = Timeouts {
        tcp: 600,
        tcp_fin: 0,
        udp: 30,
    };
    let edit = Change::EditServer {
        service: key(53),
        server: server(53, 1, 0),
    };
    let expected = model(&[vec![Change::SetTimeouts { timeouts }], whole(53), vec![edit]]);
    let read = reopen(dir.path());
    assert_eq!(read, expected);
    assert_eq!(read.settings(), Settings::default());
    // It may get lines now that an agent of that version would misread.
    assert_eq!(
        fs::read(dir.path().join(FILE)).unwrap(),
        snapshot(&expected).unwrap()
    );
    assert_eq!(reopen(dir.path()), expected);
    assert_eq!(names(dir.path()), ["lock", "state"]);

    let torn = directory(&[before.as_bytes(), b"0011"].concat());
    let Opened { model, warnings, .. } = Journal::open(torn.path()).unwrap();
    assert_eq!(model, expected);
    assert!(
        matches!(&warnings[..], [one] if one.contains("was cut short")),
        "{warnings:?}"
    );
    assert_eq!(reopen(torn.path()), expected);
}

/// As the second version wrote it, which knew nothing of marks.
#[test]
fn a_file_from_before_there_were_marks_is_read() {
    let service = "[{\"change\":\"add-service\",\"service\":{\"protocol\":\"tcp\",\"address\":\"192.0.2.1\",\
                   \"port\":80,\"scheduler\":\"rr\",\"persistence\":{\"timeout\":60}}}]";
    let before = [header(2), line(service.as_bytes())].concat();
    let dir = directory(&before);
    let read = reopen(dir.path());
    let web = ServiceKey::new(Protocol::Tcp, [192, 0, 2, 1].into(), 80);
    assert_eq!(read.services()[&web].spec.scheduler, Scheduler::Rr);
    assert!(read.marks().is_empty());
    assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), snapshot(&read).unwrap());
}

/// As the third version wrote it, which knew nothing of health checks.
#[test]
fn a_file_from_before_there_were_checks_is_read() {
    let service =
        "[{\"change\":\"add-service\",\"service\":{\"mark\":7,\"scheduler\":\"rr\",\"slow_start\":60}}]";
    let before = [header(3), line(service.as_bytes())].concat();
    let dir = directory(&before);
    let read = reopen(dir.path());
    let spec = &read.services()[&ServiceKey::Mark { mark: 7, ipv6: false }].spec;
    assert_eq!(
        (spec.slow_start, &spec.check, spec.quorum, &spec.fallback),
        (60, &None, 1, &None)
    );
    assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), snapshot(&read).unwrap());
}

#[test]
fn marks_are_kept() {
    let dir = TempDir::new().unwrap();
    let rule = MarkRule {
        mark: 7,
        protocol: Some(Protocol::Tcp),
        addresses: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        ports: vec!["80".parse().unwrap(), "8000-8100".parse().unwrap()],
    };
    let key = ServiceKey::Mark { mark: 7, ipv6: true };
    let changes = [
        Change::AddMark { rule: rule.clone() },
        Change::AddService {
            service: ServiceSpec::new(key, Scheduler::Wlc),
        },
        Change::Clear,
        Change::AddService {
            service: ServiceSpec::new(key, Scheduler::Rr),
        },
    ];
    let mut journal = Journal::open(dir.path()).unwrap().journal;
    append(&mut journal, &changes).unwrap();
    drop(journal);
    for _ in 0..2 {
        let Opened {
            mut journal,
            model,
            warnings,
        } = Journal::open(dir.path()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(model.marks().as_slice(), slice::from_ref(&rule));
        assert_eq!(model.services()[&key].spec, ServiceSpec::new(key, Scheduler::Rr));
        journal.compact(&model).unwrap();
    }
}

#[test]
fn a_directory_has_one_journal_at_a_time() {
    let dir = TempDir::new().unwrap();
    let first = Journal::open(dir.path()).unwrap();
    let error = format!("{:#}", Journal::open(dir.path()).unwrap_err());
    assert!(
        error.contains(&format!("another agent (pid {})", process::id())),
        "{error}"
    );
    assert!(!error.contains('\n'), "{error}");
    drop(first);
    Journal::open(dir.path()).unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let dir = directory(b"");
    let error = format!("{:#}", Journal::open(&dir.path().join(FILE)).unwrap_err());
    assert!(
        error.contains("as the state directory") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn a_grown_file_is_written_anew() {
    let dir = TempDir::new().unwrap();
    let Opened {
        mut journal,
        mut model,
        ..
    } = Journal::open(dir.path()).unwrap();
    let mut change = |journal: &mut Journal, changes: &[Change]| {
        append(journal, changes).unwrap();
        model.apply(changes).unwrap();
        model.clone()
    };
    let mut latest = change(&mut journal, &whole(1));
    let mut weight = 0;
    let mut versions = vec![latest.clone()];
    while !journal.needs_compaction() {
        // Many edits in one transaction, since each transaction waits for the disk.
        let edits: Vec<_> = (0..20)
            .map(|_| {
                weight += 1;
                Change::EditServer {
                    service: key(1),
                    server: server(1, 1, weight),
                }
            })
            .collect();
        latest = change(&mut journal, &edits);
        versions.push(latest.clone());
    }
    let length = || dir.path().join(FILE).metadata().unwrap().len();
    let before = length();
    assert!(before > SMALL && versions.len() > KEPT_VERSIONS);
    journal.compact(&latest).unwrap();
    assert!(!journal.needs_compaction());
    assert!(length() + SMALL < before);
    assert_eq!(journal.history().count(), KEPT_VERSIONS);
    for (back, version) in versions.iter().rev().enumerate().take(KEPT_VERSIONS + 1) {
        assert_eq!(journal.back(back).unwrap(), *version, "{back} back");
    }
    let error = journal.back(KEPT_VERSIONS + 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);

    latest = change(&mut journal, &whole(2));
    drop(journal);
    assert_eq!(reopen(dir.path()), latest);
    assert_eq!(names(dir.path()), ["lock", "state"]);
}

#[test]
fn a_grown_file_is_written_anew_when_opened() {
    let edits = |n| {
        vec![
            Change::EditServer {
                service: key(1),
                server: server(1, 1, n)
            };
            20
        ]
    };
    let history: Vec<_> = std::iter::once(whole(1)).chain((0..150).map(edits)).collect();
    let dir = directory(&[header(VERSION), appended(1, &history)].concat());
    assert_eq!(reopen(dir.path()), model(&history));
    let (old, new) = history.split_at(history.len() - KEPT_VERSIONS);
    let first = old.len() as u64 + 1;
    assert_eq!(
        fs::read(dir.path().join(FILE)).unwrap(),
        [snapshot(&model(old)).unwrap(), appended(first, new)].concat()
    );
}

#[test]
fn versions_of_one_step_are_gone_back_from_one_by_one() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap().journal;
    let history = [whole(1), whole(2), whole(3), whole(4)];
    append(&mut journal, &history[0]).unwrap();
    journal
        .append(history[1..].iter().map(|changes| made(changes)).collect())
        .unwrap();
    for _ in 0..2 {
        let numbers: Vec<_> = journal.history().map(|version| version.number).collect();
        assert_eq!(numbers, [4, 3, 2, 1]);
        for back in 0..=4 {
            assert_eq!(
                journal.back(back).unwrap(),
                model(&history[..4 - back]),
                "{back} back"
            );
        }
        drop(journal);
        journal = Journal::open(dir.path()).unwrap().journal;
    }
}

#[test]
fn the_history_is_lost_where_it_leads_elsewhere_and_the_table_is_not() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap().journal;
    append(&mut journal, &whole(1)).unwrap();
    append(&mut journal, &whole(2)).unwrap();
    let table = model(&[whole(1), whole(2)]);
    // A flipped bit on the disk, while the agent runs.
    journal.file.write_all_at(b"x", journal.length - 9).unwrap();
    assert_eq!(journal.back(1).unwrap(), model(&[whole(1)]));
    journal.back(2).unwrap();
    journal.compact(&table).unwrap();
    assert_eq!(journal.history().count(), 0);
    append(&mut journal, &whole(3)).unwrap();
    assert_eq!(journal.history().next().unwrap().number, 3);
    drop(journal);
    assert_eq!(reopen(dir.path()), model(&[whole(1), whole(2), whole(3)]));
}

#[test]
fn a_crash_while_the_file_is_written_anew_leaves_the_old_one() {
    let dir = directory(&file(&[whole(1)]));
    fs::write(dir.path().join(ASIDE), &file(&[whole(2)])[..60]).unwrap();
    let Opened {
        mut journal,
        model: read,
        warnings,
    } = Journal::open(dir.path()).unwrap();
    assert_eq!((&read, warnings.len()), (&model(&[whole(1)]), 0));
    journal.compact(&read).unwrap();
    drop(journal);
    assert_eq!(reopen(dir.path()), read);
    assert_eq!(names(dir.path()), ["lock", "state"]);
}

#[test]
fn a_transaction_is_taken_back_with_the_model_before_it() {
    let dir = directory(&file(&[whole(1)]));
    let Opened {
        mut journal,
        model: before,
        ..
    } = Journal::open(dir.path()).unwrap();
    append(&mut journal, &whole(2)).unwrap();
    journal.compact(&before).unwrap();
    append(&mut journal, &whole(3)).unwrap();
    drop(journal);
    assert_eq!(reopen(dir.path()), model(&[whole(1), whole(3)]));
}

#[test]
fn what_a_failure_left_is_removed_before_the_next_transaction() {
    let dir = directory(&file(&[whole(1)]));
    let Opened { mut journal, .. } = Journal::open(dir.path()).unwrap();
    // As after an append that failed, and whose remains could not be removed then.
    journal.file.write_all_at(&[b'x'; 4096], journal.length).unwrap();
    journal.torn = true;
    append(&mut journal, &whole(2)).unwrap();
    drop(journal);
    assert_eq!(
        fs::read(dir.path().join(FILE)).unwrap(),
        [file(&[whole(1)]), appended(1, &[whole(2)])].concat()
    );
}

/// A file size limit stands in for the full disk: the kernel writes what fits, then refuses, as with ENOSPC.
/// It is the whole process's, so the test runs itself again in one of its own.
#[test]
fn a_full_disk_refuses_the_change_and_harms_nothing() {
    const DIRECTORY: &str = "LVS_XDP_TEST_FULL_DISK";
    let history = [whole(1), whole(2), whole(3)];
    let Some(dir) = env::var_os(DIRECTORY) else {
        let dir = directory(&file(&history[..1]));
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "journal::tests::a_full_disk_refuses_the_change_and_harms_nothing",
            ])
            .env(DIRECTORY, dir.path())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && printed.contains("1 passed"),
            "{printed}"
        );
        assert_eq!(reopen(dir.path()), model(&history));
        assert_eq!(names(dir.path()), ["lock", "state"]);
        return;
    };

    let Opened {
        mut journal,
        model: read,
        ..
    } = Journal::open(Path::new(&dir)).unwrap();
    let on_disk = || fs::read(Path::new(&dir).join(FILE)).unwrap();
    // SAFETY: no handler runs; the signal is ignored so that the write fails instead.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let part = journal.length + 30;
    setrlimit(Resource::RLIMIT_FSIZE, part, hard).unwrap();
    for _ in 0..2 {
        let error = append(&mut journal, &history[1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(on_disk(), file(&history[..1]));
    }
    let damaged = directory(b"garbage\n");
    setrlimit(Resource::RLIMIT_FSIZE, 10, hard).unwrap();
    journal.compact(&read).unwrap_err();
    assert_eq!(on_disk(), file(&history[..1]));
    assert_eq!(names(Path::new(&dir)), ["lock", "state"]);
    // A damaged file is not given another name before there is one to take its place.
    Journal::open(damaged.path()).unwrap_err();
    assert_eq!(names(damaged.path()), ["lock", "state"]);

    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    for changes in &history[1..] {
        append(&mut journal, changes).unwrap();
    }
}
