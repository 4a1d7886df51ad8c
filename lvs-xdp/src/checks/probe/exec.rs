//! Asking by a program of the operator's.

use std::{ffi::OsString, io, process::Stdio};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    net::unix::pipe::Receiver,
    process::{Child, Command},
};

use crate::{
    api::types::ExecProbe,
    checks::{
        Target,
        socket::{Deadline, Failure},
    },
};

/// So much of what a program writes is looked at.
const WORDS: usize = 256;
/// What a program finds its tools by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with all that it has started. What is left of it is killed when this is dropped before it has ended.
struct Group {
    leader: Child,
    /// Nobody else has this number until the leader's end is noted.
    id: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // It may have ended just now: then there is nobody to kill.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

pub(super) async fn ask(probe: &ExecProbe, target: &Target, deadline: Deadline) -> Result<String, Failure> {
    let unknown = |what: &str, error: &io::Error| Failure::Unknown(format!("{what}: {error}"));
    let Some((program, arguments)) = probe.command.split_first() else {
        return Err(Failure::Unknown("there is no command".to_owned()));
    };
    let (reader, writer) = io::pipe().map_err(|error| unknown("no pipe", &error))?;
    let mut words = Receiver::from_owned_fd(reader.into()).map_err(|error| unknown("no pipe", &error))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(environment(target))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(|error| unknown("no pipe", &error))?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let leader = command
        .spawn()
        .map_err(|error| unknown(&format!("{program} cannot be run"), &error))?;
    // It holds the pipe's other end.
    drop(command);
    let id = leader
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    let mut group = Group { leader, id };
    let mut written = Vec::new();
    let ended = deadline.wait("end of the program", async {
        let mut is_open = true;
        loop {
            tokio::select! {
                status = group.leader.wait() => {
                    group.id = None;
                    return status.map_err(|error| unknown("the program's end was missed", &error));
                }
                ready = words.readable(), if is_open => {
                    is_open = ready.is_ok() && read(&mut words, &mut written);
                }
            }
        }
    });
    let status = ended.await?;
    read(&mut words, &mut written);
    let text = String::from_utf8_lossy(&written).into_owned();
    let first = text.lines().next().unwrap_or_default().trim();
    let said = if first.is_empty() {
        String::new()
    } else {
        format!(": {first}")
    };
    if status.success() {
        Ok(format!("status 0{said}"))
    } else {
        Err(Failure::Bad(format!("{status}{said}")))
    }
}

/// Takes what has been written, and keeps the beginning; whether there may be more.
fn read(words: &mut Receiver, written: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match words.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                let room = WORDS.saturating_sub(written.len());
                written.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn environment(target: &Target) -> Vec<(&'static str, OsString)> {
    let Target {
        rip,
        asked,
        vip,
        protocol,
        ..
    } = target;
    let mut variables = vec![
        ("LVS_XDP_RIP", rip.to_string().into()),
        ("LVS_XDP_PORT", asked.port().to_string().into()),
    ];
    variables.extend(vip.map(|vip| ("LVS_XDP_VIP", vip.to_string().into())));
    variables.extend(protocol.map(|protocol| ("LVS_XDP_PROTOCOL", protocol.to_string().into())));
    variables
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::api::types::Protocol;

    /// What becomes of a script.
    fn run(script: &str, limit: Duration) -> Result<String, Failure> {
        probe(&["/bin/sh", "-c", script], limit)
    }

    fn probe(command: &[&str], limit: Duration) -> Result<String, Failure> {
        let probe = ExecProbe {
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        let target = Target {
            rip: [192, 0, 2, 7].into(),
            asked: "192.0.2.1:80".parse().unwrap(),
            vip: Some([192, 0, 2, 1].into()),
            protocol: Some(Protocol::Tcp),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime
            .unwrap()
            .block_on(ask(&probe, &target, Deadline::after(limit)))
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_status_decides_and_the_first_line_says_why() {
        assert_eq!(run("true", LONG), Ok("status 0".to_owned()));
        assert_eq!(run("echo fine; echo more", LONG), Ok("status 0: fine".to_owned()));
        assert_eq!(
            run("echo 'no database' >&2; exit 3", LONG),
            Err(Failure::Bad("exit status: 3: no database".to_owned()))
        );
        assert_eq!(
            run("kill -9 $$", LONG),
            Err(Failure::Bad("signal: 9 (SIGKILL)".to_owned()))
        );
        let long = run("head -c 300000 /dev/zero | tr '\\0' x", LONG).unwrap();
        assert_eq!(long, format!("status 0: {}", "x".repeat(WORDS)));
        let absent = probe(&["/no/such/program"], LONG);
        assert!(
            matches!(&absent, Err(Failure::Unknown(why)) if why.contains("cannot be run")),
            "{absent:?}"
        );
    }

    #[test]
    fn it_is_told_whom_to_ask() {
        let script = "echo $LVS_XDP_VIP $LVS_XDP_RIP $LVS_XDP_PORT $LVS_XDP_PROTOCOL; test -z \"$HOME\"";
        assert_eq!(
            run(script, LONG),
            Ok("status 0: 192.0.2.1 192.0.2.7 80 TCP".to_owned())
        );
    }

    #[test]
    fn what_takes_too_long_is_killed_with_all_that_it_has_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let started = Instant::now();
        let script = format!("sleep 600 & echo $! > {path}; sleep 600");
        assert_eq!(
            run(&script, Duration::from_millis(300)),
            Err(Failure::Bad("no end of the program within 300ms".to_owned()))
        );
        assert!(started.elapsed() < LONG / 2);
        let child: i32 = std::fs::read_to_string(file.path())
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        while !is_gone() {
            assert!(started.elapsed() < LONG, "{child} is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_it_leaves_behind_does_not_hold_up_the_result() {
        let started = Instant::now();
        assert_eq!(run("sleep 3 & echo fine", LONG), Ok("status 0: fine".to_owned()));
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}
