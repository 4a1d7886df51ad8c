//! `lvs-xdp-lab`: builds the reference case, shows it working, and lets one play with it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, builder::PossibleValue};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    family::Family,
    lab::{Lab, LabConfig, REAL_SERVER_LIMIT},
};
use nix::{
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::geteuid,
};

/// How many requests are made.
const REQUESTS: usize = 4;

/// Builds the reference case of LVS Direct Routing in network namespaces - a client, a router, a director with the
/// VIP 192.168.2.100, and real servers - and requests http://192.168.2.100 four times.
///
/// On a terminal the lab then stays until Ctrl-C; otherwise it ends, with status 0 if the answers were those of
/// IPVS's rr: rs2, rs1, rs2, rs1.
#[derive(Debug, Parser)]
#[command(name = "lvs-xdp-lab", version)]
struct Options {
    /// How the agent attaches its program.
    #[arg(long, value_enum, default_value = "auto")]
    xdp_mode: Mode,
    /// Number of real servers.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse_real_servers)]
    real_servers: usize,
    /// Speak IPv6: the VIP is fd00:2::100.
    #[arg(long)]
    ipv6: bool,
    /// Arguments for the agent, after `--`.
    #[arg(last = true, value_name = "AGENT ARGUMENT")]
    agent_arguments: Vec<String>,
}

/// [`XdpMode`] as clap wants it.
#[derive(Debug, Clone, Copy)]
struct Mode(XdpMode);

impl clap::ValueEnum for Mode {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            &[
                Self(XdpMode::ALL[0]),
                Self(XdpMode::ALL[1]),
                Self(XdpMode::ALL[2]),
            ]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

fn parse_real_servers(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=REAL_SERVER_LIMIT).contains(number))
        .ok_or_else(|| format!("use a number from 1 to {REAL_SERVER_LIMIT}"))
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lvs-xdp-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "must run as root: it makes network namespaces and loads XDP programs; try sudo"
    );
    let signals = Signals::take_over()?;

    say("Building the lab: client, router, director and real servers, each a network namespace.")?;
    let config = LabConfig {
        real_servers: options.real_servers,
        agent: AgentConfig {
            xdp_mode: options.xdp_mode.0,
            // As an operator would start it, and the arguments may say otherwise.
            connections: None,
            arguments: options.agent_arguments.clone(),
        },
        binary: None,
    };
    let family = if options.ipv6 { Family::V6 } else { Family::V4 };
    let lab = Lab::start(config)?.over(family);
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();

    let as_expected = demonstrate(&lab, &signals)?;
    if interactive {
        say(&invitation(&lab)?)?;
        signals.wait()?;
        say("\nTaking the lab down.")?;
    }
    Ok(if as_expected {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Configures the service, makes the requests and shows the tables; tells whether the answers were rr's.
fn demonstrate(lab: &Lab, signals: &Signals) -> Result<bool> {
    signals.check()?;
    say("\nThe virtual service, on the director:")?;
    for command in lab.service_commands("rr") {
        say(&format!("  director# ipvsadm {command}"))?;
        lab.ipvsadm(command.split_whitespace())?;
    }

    say("\nThe client asks:")?;
    let mut answers = Vec::new();
    for _ in 0..REQUESTS {
        signals.check()?;
        say(&format!("  client# curl {}", lab.url("")))?;
        let answer = lab.fetch("/")?;
        let answer = answer.trim_end();
        say(&format!("  {answer}"))?;
        answers.push(answer.to_owned());
    }

    for arguments in ["-L -n", "-L -n --stats"] {
        say(&format!("\n  director# ipvsadm {arguments}"))?;
        say(lab.ipvsadm(arguments.split_whitespace())?.trim_end())?;
    }

    let expected = lab.round_robin_answers(REQUESTS);
    if answers != expected {
        let (got, wanted) = (answers.join(", "), expected.join(", "));
        eprintln!("lvs-xdp-lab: the answers were {got}; IPVS's rr gives {wanted}");
        if let Ok(agent) = lab.agent() {
            eprintln!("the agent says:\n{}", agent.log_tail());
        }
    }
    Ok(answers == expected)
}

fn invitation(lab: &Lab) -> Result<String> {
    let hosts: Vec<_> = lab
        .topology()
        .hosts()
        .map(|(name, netns)| format!("  {name:<9} nsenter --net={} bash", netns.path().display()))
        .collect();
    let agent = lab.agent()?;
    let binary = agent.binary().display();
    let socket = agent.socket();
    let pid = agent.pid().unwrap_or_default();
    Ok(format!(
        "
The lab stays until Ctrl-C. To enter a host (as root, in another terminal):
{hosts}

Things to try:
  on the client    elinks --dump {url}
                   curl --output /dev/null {url}/big
                   curl --upload-file FILE {url}/upload/NAME
  on the director  export LVS_XDP_SOCKET={socket}
                   {binary} ipvsadm -L -n --stats
                   {binary} status
                   tcpdump -n -i eth0 tcp port 80      (native XDP: forwarded packets are not seen)
  on rs1 or rs2    tcpdump -n -e -i eth0 tcp port 80   (the director's MAC, the client's IP address)
  anywhere         kill -9 {pid}                       (the agent dies, forwarding goes on)
",
        hosts = hosts.join("\n"),
        socket = socket.display(),
        url = lab.url(""),
    ))
}

/// The signals that end the lab.
struct Signals {
    mask: SigSet,
    arrived: SignalFd,
}

impl Signals {
    /// Takes them over from the kernel, which would end the process with the lab still there.
    ///
    /// Called before any other thread is made, for threads inherit the mask; child processes start with an empty one.
    fn take_over() -> Result<Self> {
        let mask = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        mask.thread_block().context("blocking signals")?;
        let arrived = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("making a descriptor for signals")?;
        Ok(Self { mask, arrived })
    }

    /// Between steps: an error if one has come.
    fn check(&self) -> Result<()> {
        if let Some(signal) = self.arrived.read_signal().context("looking for signals")? {
            let signal = i32::try_from(signal.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok());
            bail!("ended by {}", signal.map_or("a signal", Signal::as_str));
        }
        Ok(())
    }

    /// Waits until one comes.
    fn wait(&self) -> Result<()> {
        self.mask.wait().context("waiting for a signal")?;
        Ok(())
    }
}

/// Writes a line at once; a reader that has gone away is an error, not a panic.
fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("writing to standard output")
}
