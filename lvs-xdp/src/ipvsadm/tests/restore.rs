//! Rules from standard input.

use std::net::IpAddr;

use super::*;

fn restore(director: &mut dyn Director, rules: &str) -> Step {
    run_as(Face::Ipvsadm, director, vec!["-R".to_owned()], rules)
}

fn replace(director: &mut dyn Director, rules: &str) -> Step {
    run_as(Face::Restore, director, Vec::new(), rules)
}

fn with_web() -> Memory {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:80 -s rr");
    stdout_of(&mut director, "-a -t 10.0.0.1:80 -r 10.0.0.2");
    director
}

#[track_caller]
fn good(step: &Step) {
    assert_eq!(
        (step.status, step.stdout.as_str(), step.stderr.as_str()),
        (0, "", "")
    );
}

#[test]
fn rules_are_words_between_blanks() {
    let mut director = Memory::default();
    good(&restore(
        &mut director,
        "# a comment\n\n   \t\n  # another\nipvsadm -A -t 10.0.0.1:80 -s rr\r\n\t-a  -t 10.0.0.1:80 \t-r 10.0.0.2\nipvsadm\n\
         -A -u 10.0.0.1:53 -p\n-E -u 10.0.0.1:53 -s sh\n--set 10 20 30\n-D -t 10.0.0.1:80\n-A -f 7",
    ));
    assert_eq!(
        stdout_of(&mut director, "-S -n"),
        "-A -u 10.0.0.1:53 -s sh\n-A -f 7 -s wlc\n"
    );
    assert_eq!(director.timeouts.udp, 30);
    good(&restore(&mut nobody(), "# nothing to do\n"));
}

#[test]
fn every_bad_line_is_named_and_none_is_applied() {
    let mut director = with_web();
    let before = stdout_of(&mut director, "-S -n");
    let step = restore(
        &mut director,
        "-A -t 10.0.0.9:80 -s rr\n-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.9:80 -r 10.0.0.2\n\
         -a -t 10.0.0.8:80 -r 10.0.0.2\n-a -t 10.0.0.1:80 -r 224.0.0.1\n-e -t 10.0.0.1:80 -r 10.0.0.3\n",
    );
    assert_eq!(
        (step.status, step.stderr.as_str()),
        (
            255,
            "line 2: Service already exists\nline 4: Service not defined\n\
             line 5: Invalid operation.  Possibly wrong module version, address not unicast, ...\n\
             line 6: No such destination\n"
        )
    );
    // A line that cannot be read does not hide those that can.
    let step = restore(
        &mut director,
        "garbage\n-A -t 10.0.0.9:99999\n-A -t 10.0.0.1:80\n-A -t 10.0.0.7:80 -s no\n-a -t 10.0.0.7:80 -r 10.0.0.2\n\
         -a -t 10.0.0.7:80 -r 10.0.0.2 -m\n-R\n-E -t 10.0.0.6:80\n",
    );
    let lines: Vec<_> = step.stderr.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "line 1: Try `ipvsadm -h' or 'ipvsadm --help' for more information.",
            "line 2: illegal virtual server address[:port] specified",
            "line 3: Service already exists",
            "line 4: Scheduler or persistence engine not found",
            "line 6: -m (masquerading) is refused: real servers answer their clients directly here; use -g (direct \
             routing), or -i (tunnelling) for those on other segments",
        ]
    );
    assert!(lines[5].starts_with("line 7: Try ") && lines[6] == "line 8: No such service");
    assert_eq!((step.status, lines.len()), (255, 7));
    assert_eq!(restore(&mut director, "-A -t x\n").status, 2);
    // By itself this one ends with an empty line.
    let step = restore(&mut director, "-A -6 -f 7\n-A -t 10.0.0.7:80 --o\u{1b}[2Jo\n");
    assert_eq!(step.stderr.lines().count(), 2, "{}", step.stderr);
    assert!(step.stderr.starts_with("line 1: -6 used before -f\n"));
    assert!(!step.stderr.contains('\u{1b}'), "{}", step.stderr);
    assert_eq!(stdout_of(&mut director, "-S -n"), before);
}

#[test]
fn lists_and_zeroing_come_after_the_changes() {
    let mut director = with_web();
    director.services[0].stats.packets = 5;
    let step = restore(&mut director, "-Z\n-S -n\n-A -t 10.0.0.9:80 -s rr\n-v\n");
    assert_eq!(
        step.stdout,
        format!(
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1\n-A -t 10.0.0.9:80 -s rr\n{VERSION}\n"
        )
    );
    assert_eq!(director.services[0].stats, Stats::default());
}

#[test]
fn restoring_replaces_in_one_step() {
    struct Watched(Memory, usize);
    impl Director for Watched {
        fn services(&mut self) -> Result<Vec<Service>, ClientError> {
            self.0.services()
        }
        fn service(&mut self, _key: ServiceKey) -> Result<Service, ClientError> {
            panic!("the whole table is asked for at once")
        }
        fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
            self.0.timeouts()
        }
        fn connections(&mut self, take: &mut dyn FnMut(Connection)) -> Result<(), ClientError> {
            self.0.connections(take)
        }
        fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError> {
            self.0.zero(service)
        }
        fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
            self.1 += 1;
            self.0.change(changes)
        }
        fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
            self.0.check(changes)
        }
    }
    let mut director = Watched(with_web(), 0);
    good(&replace(
        &mut director,
        "# saved\n-A -t 10.0.0.1:80 -s wrr\n-E -t 10.0.0.1:80 -s sh\n-A -t 10.0.0.9:80 -s rr\n",
    ));
    assert_eq!(director.1, 1, "all in one request");
    let rules = "-A -t 10.0.0.1:80 -s sh\n-A -t 10.0.0.9:80 -s rr\n";
    assert_eq!(stdout_of(&mut director, "-S -n"), rules);
    let step = replace(&mut director, "-A -t 10.0.0.2:80\n-A -t 10.0.0.2:80\n");
    assert_eq!(
        (step.status, step.stderr.as_str()),
        (255, "line 2: Service already exists\n")
    );
    assert_eq!(stdout_of(&mut director, "-S -n"), rules);
    good(&replace(&mut director, ""));
    assert_eq!(stdout_of(&mut director, "-S -n"), "");
}

/// A table with what ipvsadm has no words for.
fn with_checks() -> Desired {
    let text = r#"
        [[service]]
        protocol = "tcp"
        address = "10.0.0.1"
        port = 80
        check = { probe = { type = "tcp" } }
        quorum = 2
        fallback = { address = "10.0.0.9" }
        [[service.server]]
        address = "10.0.0.2"
        check = { fall = 1 }
        [[service.server]]
        address = "10.0.0.3"
        [[service]]
        mark = 7
        check = { address = "10.0.0.1", port = 80, probe = { type = "tcp" } }
    "#;
    Desired(crate::config::read(text).unwrap().1)
}

#[test]
fn what_is_restored_keeps_its_checks() {
    let mut director = with_checks();
    let before = director.0.clone();
    let saved = stdout_of(&mut director, "-S -n --full");
    good(&replace(&mut director, &saved));
    assert_eq!(director.0, before);
    // What is new has none, and what the rules say is taken.
    good(&replace(
        &mut director,
        "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2 -w 5\n-a -t 10.0.0.1:80 -r 10.0.0.4\n-A -t 10.0.0.5:80\n",
    ));
    let services: Vec<_> = director.0.services().values().collect();
    let (kept, new) = (services[0], services[1]);
    let known = &before.services()[&kept.spec.key];
    assert_eq!(
        kept.spec,
        ServiceSpec {
            scheduler: Scheduler::Rr,
            ..known.spec.clone()
        }
    );
    let checks: Vec<_> = kept.servers.iter().map(|server| server.check.is_some()).collect();
    assert_eq!((checks, new.spec.check.is_some()), (vec![false, true], false));
    assert_eq!(services.len(), 2);
}

#[test]
fn rules_that_delete_by_name_take_checks_along() {
    for (rules, service, server) in [
        ("-e -t 10.0.0.1:80 -r 10.0.0.2 -w 9\n", true, true),
        (
            "-d -t 10.0.0.1:80 -r 10.0.0.2\n-a -t 10.0.0.1:80 -r 10.0.0.2\n",
            true,
            false,
        ),
        (
            "-D -t 10.0.0.1:80\n-A -t 10.0.0.1:80\n-a -t 10.0.0.1:80 -r 10.0.0.2\n",
            false,
            false,
        ),
        (
            "-D -t 10.0.0.1:80\n-C\n-A -t 10.0.0.1:80\n-a -t 10.0.0.1:80 -r 10.0.0.2\n",
            false,
            false,
        ),
        (
            "-C\n-A -t 10.0.0.1:80\n-a -t 10.0.0.1:80 -r 10.0.0.2\n",
            true,
            true,
        ),
    ] {
        let mut director = with_checks();
        good(&restore(&mut director, rules));
        let entry = director.0.services().values().next().unwrap();
        let of_server = entry
            .servers
            .iter()
            .find(|server| server.key.address == IpAddr::from([10, 0, 0, 2]));
        let has = (entry.spec.check.is_some(), of_server.unwrap().check.is_some());
        assert_eq!(has, (service, server), "{rules}");
    }
}

#[test]
fn a_question_about_no_service_is_known_before_anything_is_changed() {
    for question in ["-L -n -t 10.0.0.8:80", "-Z -t 10.0.0.8:80", "-Z -t 10.0.0.1:80"] {
        let mut director = with_web();
        let rules = format!("{question}\n-A -t 10.0.0.9:80\n-D -t 10.0.0.1:80\n");
        let step = restore(&mut director, &rules);
        assert_eq!(
            (step.stdout.as_str(), step.stderr.as_str()),
            ("", "line 1: No such service\n")
        );
        assert_ne!(step.status, 0);
        assert_eq!(director.services.len(), 1, "{question}");
    }
}

#[test]
fn saving_by_its_own_name() {
    let mut director = with_web();
    let mut save = |line: &str| {
        let words = line.split_whitespace().map(str::to_owned).collect();
        run_as(Face::Save, &mut director, words, "")
    };
    let rules = "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1\n";
    assert_eq!(save("-n").stdout, rules);
    assert_eq!(save("-n --full extra").stdout, rules);
    assert!(save("").stdout.contains("10.0.0.1:http"));
    let help = save("-x");
    assert_eq!((help.status, help.stdout.as_str()), (1, ""));
    assert!(help.stderr.contains("-n option"), "{}", help.stderr);
    for (called_as, face) in [
        ("ipvsadm", Some(Face::Ipvsadm)),
        ("/usr/local/sbin/ipvsadm", Some(Face::Ipvsadm)),
        ("lvs-ipvsadm", Some(Face::Ipvsadm)),
        ("/sbin/ipvsadm-save", Some(Face::Save)),
        ("ipvsadm-restore", Some(Face::Restore)),
        ("/usr/sbin/lvs-xdp", None),
        ("", None),
    ] {
        assert_eq!(Face::of(OsStr::new(called_as)), face, "{called_as}");
    }
}
