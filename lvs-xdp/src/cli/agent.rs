//! `lvs-xdp agent`.

use std::path::PathBuf;

use clap::ValueEnum;
use tracing::Level;

use super::{
    Failure,
    args::{AgentArgs, LogLevel},
};
use crate::api::client;

/// How the program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// In the driver where it can, else above it, with the reason as a warning.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Above the driver, whatever the driver can do.
    Generic,
}

/// What the agent is told by the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// Names of the interfaces to attach to, at least one, none twice.
    pub interfaces: Vec<String>,
    /// Where it listens for clients.
    pub socket: PathBuf,
    /// The directory of the desired state.
    pub state_dir: PathBuf,
    /// The directory, on a BPF file system, of program and maps.
    pub pin_dir: PathBuf,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Capacity of the connection table in entries: a power of two.
    pub connections: u32,
    /// Capacity in virtual services.
    pub services: u32,
    /// Capacity in real servers, over all services.
    pub destinations: u32,
    /// Whether the program itself logs packets.
    pub log_packets: bool,
    /// The least important lines that are logged.
    pub log_level: Level,
}

/// Runs the agent until it is told to end.
pub(super) fn run(args: AgentArgs, socket: Option<PathBuf>) -> Result<(), Failure> {
    start(&options(args, client::socket_path(socket))?)
}

/// Where the command line meets the agent.
fn start(options: &AgentOptions) -> Result<(), Failure> {
    Err(Failure::Refused(format!(
        "cannot attach to {}: this build has no agent in it",
        options.interfaces.join(", ")
    )))
}

fn options(args: AgentArgs, socket: PathBuf) -> Result<AgentOptions, Failure> {
    let AgentArgs {
        interfaces,
        state_dir,
        pin_dir,
        xdp_mode,
        connections,
        services,
        destinations,
        log_packets,
        log_level,
    } = args;
    for (index, name) in interfaces.iter().enumerate() {
        if interfaces[..index].contains(name) {
            return Err(Failure::Usage(format!(
                "--interface {name} is there twice: name each once"
            )));
        }
    }
    let log_level = match log_level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    Ok(AgentOptions {
        interfaces,
        socket,
        state_dir,
        pin_dir,
        xdp_mode,
        connections,
        services,
        destinations,
        log_packets,
        log_level,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Verb};

    fn parse(line: &str) -> Result<AgentOptions, Failure> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Verb::Agent(args) = cli.verb else {
            panic!("{:?}", cli.verb)
        };
        options(args, client::socket_path(cli.socket))
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        assert_eq!(
            parse("lvs-xdp agent --interface eth0 --socket /s").unwrap(),
            AgentOptions {
                interfaces: vec!["eth0".into()],
                socket: "/s".into(),
                state_dir: "/var/lib/lvs-xdp".into(),
                pin_dir: "/sys/fs/bpf/lvs-xdp".into(),
                xdp_mode: XdpMode::Auto,
                connections: 1 << 20,
                services: 4096,
                destinations: 16384,
                log_packets: false,
                log_level: Level::INFO,
            }
        );
    }

    #[test]
    fn every_option_arrives() {
        assert_eq!(
            parse(
                "lvs-xdp --socket /s agent --interface eth0 --interface eth1 --state-dir /d --pin-dir /p \
                 --xdp-mode generic --connections 2048 --services 5 --destinations 6 --log-packets \
                 --log-level debug"
            )
            .unwrap(),
            AgentOptions {
                interfaces: vec!["eth0".into(), "eth1".into()],
                socket: "/s".into(),
                state_dir: "/d".into(),
                pin_dir: "/p".into(),
                xdp_mode: XdpMode::Generic,
                connections: 2048,
                services: 5,
                destinations: 6,
                log_packets: true,
                log_level: Level::DEBUG,
            }
        );
    }

    #[test]
    fn an_interface_is_named_once() {
        let error = parse("lvs-xdp agent --interface eth0 --interface eth0").unwrap_err();
        assert!(matches!(error, Failure::Usage(_)), "{error}");
    }
}
