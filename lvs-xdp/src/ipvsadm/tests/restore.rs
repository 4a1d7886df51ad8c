//! Rules from standard input.

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
            panic!("what there was does not matter")
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
