//! ipvsadm as scripts use it: links, Debian's own scripts, recorded sessions, ten callers at once; and what its lists
//! say of traffic.

mod replay;
mod scripts;
mod speed;
mod traffic;

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode, find_binary},
    netns::Netns,
    process::{output, output_fed, run},
    topology::Topology,
};
use tempfile::TempDir;

/// How long a call may take, with a table of 10,000 services and on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// An agent on a director without real servers, and the links that `lvs-xdp install-ipvsadm` makes.
struct Director {
    // In the order in which they have to go.
    agent: Agent,
    _topology: Topology,
    links: TempDir,
}

impl Director {
    fn start(arguments: &[&str]) -> Result<Self> {
        let binary = find_binary()?;
        let mut topology = Topology::new()?;
        topology.add_switch("lan")?;
        topology.add_host("director")?;
        topology.connect("director", "eth0", "lan", &["192.168.2.1/24"])?;
        let config = AgentConfig {
            xdp_mode: XdpMode::Generic,
            connections: Some(4096),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        let agent = Agent::start(&binary, topology.host("director"), &["eth0"], &config)?;
        let links = tempfile::tempdir()?;
        agent.cli([
            "install-ipvsadm".as_ref(),
            "--prefix".as_ref(),
            links.path().as_os_str(),
        ])?;
        Ok(Self {
            agent,
            _topology: topology,
            links,
        })
    }

    /// A command on the director that finds the agent; programs are looked for among the links first.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.netns().command(program.as_ref());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env(
            "PATH",
            format!("{}:{path}", self.links.path().join("sbin").display()),
        );
        command.env("LVS_XDP_SOCKET", self.agent.socket());
        command
    }

    fn netns(&self) -> &Netns {
        self.agent.netns()
    }

    /// Calls `ipvsadm WORDS`; the program's name is `ipvsadm`, without a path.
    fn call(&self, words: &[impl AsRef<str>], input: &str) -> Result<Output> {
        let mut command = self.command("ipvsadm");
        command.args(words.iter().map(AsRef::as_ref));
        fed(command, input)
    }

    /// Runs `ipvsadm WORDS`, which must succeed, and returns what it prints.
    fn ipvsadm(&self, line: &str) -> Result<String> {
        self.fed(line, "")
    }

    /// The same with standard input.
    fn fed(&self, line: &str, input: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        stdout(self.call(&words, input)?).with_context(|| format!("ipvsadm {line}"))
    }
}

/// Runs a command with this on its standard input.
fn fed(command: Command, input: &str) -> Result<Output> {
    output_fed(command, input, LIMIT)
}

/// What a command has printed that has ended well and said nothing on standard error.
fn stdout(ended: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(
        ended.status.success() && said.is_empty(),
        "{}: {said}",
        ended.status
    );
    Ok(String::from_utf8(ended.stdout)?)
}

#[test]
fn links_are_made_once_and_take_nobodys_place() -> Result<()> {
    let binary = find_binary()?;
    let prefix = tempfile::tempdir()?;
    let install = || {
        let mut command = Command::new(&binary);
        command.arg("install-ipvsadm").arg("--prefix").arg(prefix.path());
        command
    };
    let said = run(install())?;
    let names = ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"];
    for name in names {
        let link = prefix.path().join("sbin").join(name);
        assert_eq!(std::fs::read_link(&link)?, binary);
        assert!(said.contains(&link.display().to_string()), "{said}");
    }
    run(install())?;

    // It names itself as it was called.
    let link = prefix.path().join("sbin/ipvsadm");
    let mut command = Command::new(&link);
    command.arg("--nonsense");
    let ended = output(command, LIMIT)?;
    let link = link.display();
    assert_eq!(
        (ended.status.code(), String::from_utf8(ended.stderr)?),
        (
            Some(255),
            format!("Try `{link} -h' or '{link} --help' for more information.\n")
        )
    );

    // One that is another's, and none is made.
    let sbin = prefix.path().join("sbin");
    std::fs::remove_file(sbin.join("ipvsadm"))?;
    std::fs::remove_file(sbin.join("ipvsadm-restore"))?;
    std::fs::write(sbin.join("ipvsadm-restore"), "#!/bin/sh\n")?;
    let refused = output(install(), LIMIT)?;
    let said = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.lines().count() == 1 && said.contains("ipvsadm-restore is there") && said.contains("--prefix"),
        "{said}"
    );
    assert!(!sbin.join("ipvsadm").exists());
    Ok(())
}
