//! What the agent may do, who may talk to it, and what it says of who did.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lvs_xdp::api::types::CheckStatus;
use lvs_xdp_tests::{
    agent::AgentConfig,
    lab::{Lab, LabConfig},
    process::{COMMAND_LIMIT, output, run},
};

/// The bits of CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF in linux/capability.h.
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
const NET_RAW: u64 = 1 << 13;
/// How long a health check may take to have its first result.
const LIMIT: Duration = Duration::from_secs(10);

fn lab(arguments: &[&str]) -> Result<Lab> {
    Lab::start(LabConfig {
        real_servers: 1,
        agent: AgentConfig {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..AgentConfig::default()
        },
        binary: None,
    })
}

/// A set of capabilities in a `status` of /proc.
fn capabilities(status: &str, set: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
    let digits = line.with_context(|| format!("no {set} in:\n{status}"))?;
    Ok(u64::from_str_radix(digits.trim(), 16)?)
}

/// What a check of the only real server has said.
fn first_words(lab: &Lab) -> Result<String> {
    let end = Instant::now() + LIMIT;
    loop {
        let checks: Vec<CheckStatus> = serde_json::from_str(&lab.cli(["checks", "--json"])?)?;
        if let Some(result) = checks.into_iter().find_map(|check| check.last) {
            return Ok(result.why);
        }
        if Instant::now() > end {
            bail!("no check had a result");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn only_what_is_needed_is_kept_and_programs_get_less() -> Result<()> {
    let lab = lab(&[])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    lab.cli(["server", "add", "tcp", "192.168.2.100:80", "192.168.2.220"])?;
    let script = lab.agent()?.state_dir().join("asks-itself");
    fs::write(
        &script,
        "#!/bin/sh\necho $(grep -E '^(Uid|Cap|NoNewPrivs)' /proc/self/status)\n",
    )?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let check = format!("exec:{}", script.display());
    lab.cli(["service", "edit", "tcp", "192.168.2.100:80", "--check", &check])?;

    // First the programs, so that the threads that start them are there.
    let said = first_words(&lab)?;
    for part in [
        "Uid: 0 0 0 0".to_owned(),
        format!("CapPrm: {NET_RAW:016x}"),
        format!("CapEff: {NET_RAW:016x}"),
        format!("CapBnd: {NET_RAW:016x}"),
        "CapInh: 0000000000000000".to_owned(),
        "CapAmb: 0000000000000000".to_owned(),
        "NoNewPrivs: 1".to_owned(),
    ] {
        assert!(said.contains(&part), "{part} is not in: {said}");
    }

    let pid = lab.agent()?.pid().context("the agent runs")?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        assert_eq!(capabilities(&status, "CapEff")?, KEPT, "{status}");
        assert_eq!(capabilities(&status, "CapPrm")?, KEPT, "{status}");
        assert_eq!(capabilities(&status, "CapInh")?, 0, "{status}");
        assert_eq!(capabilities(&status, "CapBnd")?, NET_RAW, "{status}");
        threads += 1;
    }
    assert!(threads >= 2, "{threads}");
    let log = lab.agent()?.log()?;
    let names =
        "keeps CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON CAP_BPF; programs of health checks get CAP_NET_RAW";
    assert!(log.contains(names), "{log}");
    Ok(())
}

#[test]
fn an_agent_without_what_it_needs_says_what() -> Result<()> {
    let mut lab = lab(&[])?;
    lab.agent_mut()?.terminate()?;
    let inner = lab.agent()?.command(&AgentConfig::default());
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-perfmon", "--"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let ended = output(command, COMMAND_LIMIT)?;
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr)?;
    assert!(said.contains("the agent lacks CAP_PERFMON: give it"), "{said}");
    Ok(())
}

#[test]
fn the_socket_is_for_whom_it_is_said_to_be() -> Result<()> {
    let mut lab = lab(&["--socket-mode", "0620", "--socket-group", "daemon"])?;
    let socket = lab.agent()?.socket();
    let metadata = fs::metadata(&socket)?;
    assert_eq!(metadata.mode() & 0o7777, 0o620);
    let mut group = Command::new("id");
    group.args(["--group", "daemon"]);
    let group: u32 = run(group)?.trim().parse()?;
    assert_eq!((metadata.uid(), metadata.gid()), (0, group));

    lab.agent_mut()?.terminate()?;
    let config = AgentConfig {
        arguments: ["--socket-group", "lvs-xdp-nobody-has"].map(str::to_owned).into(),
        ..AgentConfig::default()
    };
    let ended = output(lab.agent()?.command(&config), COMMAND_LIMIT)?;
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr)?;
    assert!(
        said.contains("there is no group `lvs-xdp-nobody-has`: `groupadd"),
        "{said}"
    );
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn the_log_says_who_has_changed_something() -> Result<()> {
    let lab = lab(&["--socket-mode", "0666"])?;
    let binary = lab.agent()?.binary().to_owned();
    let as_nobody = |arguments: &[&str]| {
        let mut command = lab.director().command("setpriv");
        command
            .args(["--reuid=65534", "--clear-groups", "--"])
            .arg(&binary);
        command.args(arguments).arg("--socket").arg(lab.agent()?.socket());
        output(command, COMMAND_LIMIT)
    };
    // Where the lab's directory is, others may not look; the socket itself lets them.
    let directory = lab.agent()?.socket().with_file_name("");
    fs::set_permissions(&directory, Permissions::from_mode(0o711))?;
    as_nobody(&["service", "list"])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    let ended = as_nobody(&["service", "delete", "tcp", "192.168.2.100:81"])?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");

    let log = lab.agent()?.log()?;
    let calls: Vec<_> = log.lines().filter(|line| line.contains("/v1/")).collect();
    let [first, second] = calls.as_slice() else {
        bail!("two calls were to be logged:\n{log}");
    };
    assert!(first.contains(" INFO uid 0, process "), "{first}");
    assert!(first.ends_with(": POST /v1/changes: 200"), "{first}");
    assert!(second.contains(" INFO uid 65534, process "), "{second}");
    assert!(second.ends_with(": POST /v1/changes: 404"), "{second}");
    assert!(
        log.contains("every user of this host may configure the director"),
        "{log}"
    );
    Ok(())
}
