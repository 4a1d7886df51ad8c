//! `lvs-xdp agent`.

use std::path::PathBuf;

use tracing::Level;

use super::{
    Failure,
    args::{AgentArgs, LogLevel},
};
use crate::{
    agent::{self, Config},
    api::client,
};

/// Runs the agent until it is told to end.
pub(super) fn run(args: AgentArgs, socket: Option<PathBuf>) -> Result<(), Failure> {
    let options = options(args, client::socket_path(socket))?;
    agent::run(&options).map_err(|error| Failure::Refused(format!("{error:#}")))
}

fn options(args: AgentArgs, socket: PathBuf) -> Result<Config, Failure> {
    let AgentArgs {
        interfaces,
        state_dir,
        pin_dir,
        xdp_mode,
        connections,
        services,
        destinations,
        announce,
        withdraw,
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
    Ok(Config {
        interfaces,
        socket,
        state_dir,
        pin_dir,
        xdp_mode,
        connections,
        services,
        destinations,
        announce,
        withdraw,
        log_packets,
        log_level,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        agent::XdpMode,
        cli::args::{Cli, Verb},
    };

    fn parse(line: &str) -> Result<Config, Failure> {
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
            Config {
                interfaces: vec!["eth0".into()],
                socket: "/s".into(),
                state_dir: "/var/lib/lvs-xdp".into(),
                pin_dir: "/sys/fs/bpf/lvs-xdp".into(),
                xdp_mode: XdpMode::Auto,
                connections: 1 << 20,
                services: 4096,
                destinations: 16384,
                announce: false,
                withdraw: false,
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
                 --xdp-mode generic --connections 2048 --services 5 --destinations 6 --announce --withdraw --log-packets \
                 --log-level debug"
            )
            .unwrap(),
            Config {
                interfaces: vec!["eth0".into(), "eth1".into()],
                socket: "/s".into(),
                state_dir: "/d".into(),
                pin_dir: "/p".into(),
                xdp_mode: XdpMode::Generic,
                connections: 2048,
                services: 5,
                destinations: 6,
                announce: true,
                withdraw: true,
                log_packets: true,
                log_level: Level::DEBUG,
            }
        );
    }

    #[test]
    fn only_what_is_announced_can_be_withdrawn() {
        let parsed = Cli::try_parse_from(["lvs-xdp", "agent", "--interface", "eth0", "--withdraw"]);
        assert!(parsed.unwrap_err().to_string().contains("--announce"));
    }

    #[test]
    fn an_interface_is_named_once() {
        let error = parse("lvs-xdp agent --interface eth0 --interface eth0").unwrap_err();
        assert!(matches!(error, Failure::Usage(_)), "{error}");
    }
}
