//! The agent as systemd runs it: the units in packaging/, and the protocol of `Type=notify`.

use std::{
    fs,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{AgentConfig, find_binary},
    lab::{Lab, LabConfig},
    process::{COMMAND_LIMIT, Process, output},
};
use nix::sys::signal::Signal;

/// How long the agent may take to start, or to end.
const LIMIT: Duration = Duration::from_secs(10);

/// A unit of those in packaging/.
fn unit(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging")
        .join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The values of a unit's key, of all its lines.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

#[test]
fn the_units_are_sound() -> Result<()> {
    let binary = find_binary()?;
    let directory = tempfile::tempdir()?;
    for name in ["lvs-xdp.service", "lvs-xdp-realserver.service"] {
        let unit = unit(name)?;
        let path = directory.path().join(name);
        // It is not installed here.
        let command = format!("={} ", binary.display());
        fs::write(&path, unit.replace("=lvs-xdp ", &command))?;
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]).arg(&path);
        let ended = output(verify, COMMAND_LIMIT)?;
        let said = String::from_utf8(ended.stderr)?;
        assert!(ended.status.success(), "{said}");
        // What it has to say of the machine's own units is not ours; of a key that it does not know it says
        // so, and is content.
        let ours: Vec<_> = said.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(ours, Vec::<&str>::new());

        // The options that the file of defaults shows as an example are options.
        let key = name.trim_end_matches(".service");
        let defaults = fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../packaging/{key}.default")),
        )?;
        let variable = key.to_uppercase().replace('-', "_") + "_OPTIONS";
        assert!(defaults.contains(&format!("#{variable}=")), "{defaults}");
        assert!(unit.contains(&format!("${variable}")), "{unit}");
        assert!(
            unit.contains(&format!("EnvironmentFile=-/etc/default/{key}\n")),
            "{unit}"
        );
    }
    Ok(())
}

/// systemd's own judgement, from 0 (nothing is open) to 10: what is left is what the agent needs.
#[test]
fn the_agents_unit_is_hardened() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("lvs-xdp.service");
    fs::write(&path, unit("lvs-xdp.service")?)?;
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true", "--threshold=40", "--no-pager"])
        .arg(&path);
    let ended = output(security, COMMAND_LIMIT)?;
    let said = String::from_utf8(ended.stdout)?;
    assert!(ended.status.success(), "{said}");
    Ok(())
}

/// The agent with the capabilities that the unit leaves it: `setpriv` names them without `CAP_`.
#[test]
fn the_units_capabilities_are_enough() -> Result<()> {
    let mut lab = Lab::start(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    // Killed: the next one has to look for the program that runs.
    lab.agent_mut()?.kill()?;
    let unit = unit("lvs-xdp.service")?;
    let granted: String = values(&unit, "CapabilityBoundingSet")
        .iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let agent = lab.agent()?;
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--bounding-set=-all{granted}"))
        .args(["--no-new-privs", "--"]);
    let inner = agent.command(&AgentConfig::default());
    command.arg(inner.get_program()).args(inner.get_args());
    let mut process = Process::spawn(command)?;
    let deadline = Instant::now() + LIMIT;
    while UnixStream::connect(agent.socket()).is_err() {
        ensure!(
            process.ended()?.is_none() && Instant::now() < deadline,
            "the agent did not come up"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    lab.cli(["server", "add", "tcp", "192.168.2.100:80", "192.168.2.220"])?;
    lab.cli(["unload"])?;
    assert_eq!(process.wait(LIMIT)?.code(), Some(0));
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
