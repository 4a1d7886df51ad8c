//! Sessions of the real ipvsadm 1.31 with the kernel's IPVS, replayed with the drop-in and the agent.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Director;

/// Recorded on Linux 6.1: every call with its status, standard output and standard error, each session from an
/// empty table.
const SESSIONS: &str = include_str!("../../golden/cli.json");

#[derive(Debug, Deserialize)]
struct Session {
    name: String,
    steps: Vec<Step>,
}

/// A call, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Step {
    argv: Vec<String>,
    #[serde(default)]
    stdin: String,
    status: i32,
    stdout: String,
    stderr: String,
}

impl Step {
    fn has(&self, word: &str) -> bool {
        self.argv.iter().any(|other| other == word)
    }

    fn answers(&mut self, status: i32, stderr: &str) {
        self.status = status;
        stderr.clone_into(&mut self.stderr);
        self.stdout.clear();
    }

    /// Takes the lines out of a list that have this text.
    fn lacks(&mut self, text: &str) {
        let kept = self
            .stdout
            .split_inclusive('\n')
            .filter(|line| !line.contains(text));
        self.stdout = kept.collect();
    }
}

/// Where the drop-in is to answer in another way than the real one did.
struct Exception {
    why: &'static str,
    /// Makes of a session what is to be answered.
    adapt: fn(&mut Session),
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        why: "help is our own",
        adapt: |session| {
            for step in &mut session.steps {
                if step.stdout.starts_with("(help text") {
                    HELP.clone_into(&mut step.stdout);
                }
            }
        },
    },
    Exception {
        why: "masquerading is refused: real servers answer their clients directly",
        adapt: |session| {
            for step in &mut session.steps {
                if step.has("-m") {
                    step.answers(
                        255,
                        "-m (masquerading) is refused: real servers answer their clients directly here; use -g \
                         (direct routing), or -i (tunnelling) for those on other segments\n",
                    );
                }
                step.lacks(" Masq ");
                step.lacks(" -m ");
            }
        },
    },
    Exception {
        why: "connections are not synchronised: there is no daemon to start, to list or to stop",
        adapt: |session| {
            for step in &mut session.steps {
                // What is wrong with the line itself is said all the same.
                if step.has("--start-daemon") && step.status != 2 {
                    step.answers(
                        255,
                        "--start-daemon is refused: this director does not synchronise its connections with \
                         another one\n",
                    );
                }
                if step.has("--stop-daemon") {
                    step.answers(255, "No daemon is running\n");
                }
                step.lacks(" sync daemon ");
            }
        },
    },
    Exception {
        why: "there is no persistence engine",
        adapt: |session| {
            for step in &mut session.steps {
                if step.has("--pe") {
                    step.answers(255, "Scheduler or persistence engine not found\n");
                }
                step.lacks(" pe sip");
                step.lacks(" --pe sip");
            }
        },
    },
    Exception {
        why: "-R takes comments, names every bad line, and applies all or none",
        adapt: |session| {
            if session.name != "restore" {
                return;
            }
            let mut is_commented = false;
            for step in &mut session.steps {
                match step.stdin.as_str() {
                    "\n# a comment\n-A -t 10.0.0.9:80 -s rr\n" => {
                        step.answers(0, "");
                        is_commented = true;
                    }
                    "-A -t 10.0.0.8:80 -s nosuch\n-A -t 10.0.0.7:80 -s rr\n" => {
                        step.answers(255, "line 1: Scheduler or persistence engine not found\n");
                    }
                    "garbage here\n" => step.answers(255, &format!("line 1: {}", step.stderr.clone())),
                    _ => {}
                }
                // The service that was not to be added with a bad one, and the one behind the comment.
                step.lacks("10.0.0.7:80");
                if is_commented {
                    for (before, added) in [
                        ("UDP  10.0.0.1:53", "TCP  10.0.0.9:80 rr\n"),
                        ("-A -u", "-A -t 10.0.0.9:80 -s rr\n"),
                    ] {
                        step.stdout = step.stdout.replace(before, &format!("{added}{before}"));
                    }
                }
            }
        },
    },
];

/// In the place of a help text.
const HELP: &str = "(help)";

#[test]
fn every_session_is_answered_as_by_the_real_one() -> Result<()> {
    let director = Director::start(&[])?;
    let mut sessions: Vec<Session> = serde_json::from_str(SESSIONS)?;
    let mut calls = 0;
    for session in &mut sessions {
        for Exception { why, adapt } in EXCEPTIONS {
            let recorded = session.steps.clone();
            adapt(session);
            for (recorded, ours) in recorded.iter().zip(&session.steps) {
                if recorded != ours {
                    println!("{}: {:?}: not as recorded: {why}", session.name, ours.argv);
                }
            }
        }
        director.ipvsadm("-C")?;
        director.ipvsadm("--set 900 120 300")?;
        for expected in &session.steps {
            let seen = play(&director, expected)?;
            assert_eq!(seen, *expected, "session {}", session.name);
            calls += 1;
        }
    }
    // Records that are no longer read would pass in silence.
    assert_eq!((sessions.len(), calls), (38, 370));
    Ok(())
}

/// Makes the call of a step.
fn play(director: &Director, expected: &Step) -> Result<Step> {
    let ended = director.call(&expected.argv, &expected.stdin)?;
    let mut seen = Step {
        status: ended.status.code().context("ended by a signal")?,
        stdout: String::from_utf8(ended.stdout)?,
        stderr: String::from_utf8(ended.stderr)?,
        ..expected.clone()
    };
    if expected.stdout == HELP && seen.stdout.contains("Usage:") {
        HELP.clone_into(&mut seen.stdout);
    }
    // The order of --nosort is that of the kernel's hash rows.
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    if expected.has("--nosort") && sorted(&seen.stdout) == sorted(&expected.stdout) {
        seen.stdout.clone_from(&expected.stdout);
    }
    Ok(seen)
}
