//! The agent as systemd runs it: the units that README.md gives, and the protocol of `Type=notify`.

use std::{
    fs,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::{AgentConfig, find_binary},
    lab::{Lab, LabConfig},
    process::{COMMAND_LIMIT, Process, output},
};
use nix::sys::signal::Signal;

/// Where README.md has the binary.
const INSTALLED: &str = "/usr/local/sbin/lvs-xdp";
/// How long the agent may take to start, or to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The units in README.md, each in a code block that follows the name of its file.
fn units() -> Result<Vec<(String, String)>> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let mut units = Vec::new();
    for rest in readme.split("`/etc/systemd/system/").skip(1) {
        let (name, rest) = rest.split_once('`').context("a file's name without an end")?;
        let (_, rest) = rest.split_once("```ini\n").context("no code block follows")?;
        let (unit, _) = rest.split_once("```").context("a code block without an end")?;
        units.push((name.to_owned(), unit.to_owned()));
    }
    Ok(units)
}

#[test]
fn the_units_of_the_readme_are_sound() -> Result<()> {
    let units = units()?;
    let names: Vec<_> = units.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lvs-xdp.service", "lvs-xdp-realserver.service"]);
    let binary = find_binary()?;
    let directory = tempfile::tempdir()?;
    for (name, unit) in &units {
        assert!(unit.contains(INSTALLED), "{name} runs something else:\n{unit}");
        let path = directory.path().join(name);
        fs::write(&path, unit.replace(INSTALLED, &binary.to_string_lossy()))?;
        let mut verify = Command::new("systemd-analyze");
        verify.arg("verify").arg(&path);
        let ended = output(verify, COMMAND_LIMIT)?;
        let said = String::from_utf8(ended.stderr)?;
        assert!(ended.status.success(), "{said}");
        // What it has to say of the machine's own units is not ours; of a key that it does not know it says
        // so, and is content.
        let ours: Vec<_> = said.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(ours, Vec::<&str>::new());
    }
    Ok(())
}

#[test]
fn systemd_hears_when_the_agent_is_ready_and_when_it_ends() -> Result<()> {
    let mut lab = Lab::start(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    lab.agent_mut()?.terminate()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let hear = || -> Result<String> {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).context("systemd was not told")?;
        Ok(String::from_utf8(buffer[..length].to_vec())?
            .trim_end()
            .to_owned())
    };

    let agent = lab.agent()?;
    let file = directory.path().join("lvs-xdp.toml");
    fs::write(&file, "")?;
    let mut command = agent.command(&AgentConfig {
        arguments: vec!["--config".into(), file.to_string_lossy().into_owned()],
        ..AgentConfig::default()
    });
    command.env("NOTIFY_SOCKET", &path);
    let mut process = Process::spawn(command)?;
    assert_eq!(hear()?, "READY=1");
    // Units that are ordered after this one can talk to it, and clients are served.
    UnixStream::connect(agent.socket())?;
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(shown.contains("prog/xdp"), "{shown}");

    // As `systemctl reload` does, with a file that is wrong: the reload ends all the same.
    fs::write(&file, "nonsense")?;
    process.signal(Signal::SIGHUP)?;
    let heard = hear()?;
    assert!(heard.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard}");
    assert_eq!(hear()?, "READY=1");

    process.signal(Signal::SIGTERM)?;
    assert_eq!(hear()?, "STOPPING=1");
    assert_eq!(process.wait(LIMIT)?.code(), Some(0));
    Ok(())
}
