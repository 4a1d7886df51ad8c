//! `lvs-xdp agent`.

use ipnet::IpNet;
use tracing::Level;

use super::{
    Failure,
    args::{AgentArgs, LogLevel},
};
use crate::{
    agent::{self, Config},
    api::{access::Remote, target::ClientOptions},
};

/// Runs the agent until it is told to end.
pub(super) fn run(args: AgentArgs, connection: ClientOptions) -> Result<(), Failure> {
    let options = options(args, connection)?;
    agent::run(&options).map_err(|error| Failure::Refused(format!("{error:#}")))
}

fn options(args: AgentArgs, connection: ClientOptions) -> Result<Config, Failure> {
    let AgentArgs {
        interfaces,
        socket_mode,
        socket_group,
        listen,
        tls_client_ca,
        state_dir,
        pin_dir,
        config,
        xdp_mode,
        connections,
        services,
        destinations,
        announce,
        withdraw,
        tunnel_sources,
        log_packets,
        log_level,
    } = args;
    let socket = connection.socket_path();
    for (option, is_there) in [
        ("--connect", connection.connect.is_some()),
        ("--tls-ca", connection.tls_ca.is_some()),
    ] {
        if is_there {
            return Err(Failure::Usage(format!(
                "{option} is for the agent's clients: the agent itself has --listen and --tls-client-ca"
            )));
        }
    }
    let remote = Remote {
        listen,
        token_file: connection.token_file,
        tls_cert: connection.tls_cert,
        tls_key: connection.tls_key,
        tls_client_ca,
    };
    remote.check().map_err(Failure::Usage)?;
    for (index, name) in interfaces.iter().enumerate() {
        if interfaces[..index].contains(name) {
            return Err(Failure::Usage(format!(
                "--interface {name} is there twice: name each once"
            )));
        }
    }
    for (index, network) in tunnel_sources.iter().enumerate() {
        let is_ipv4 = |network: &IpNet| network.addr().is_ipv4();
        if tunnel_sources[..index]
            .iter()
            .any(|other| is_ipv4(other) == is_ipv4(network))
        {
            return Err(Failure::Usage(format!(
                "--tunnel-source {network} is the second one of its family: name one network for each"
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
        socket_mode,
        socket_group,
        remote,
        state_dir,
        pin_dir,
        config,
        xdp_mode,
        connections,
        services,
        destinations,
        announce,
        withdraw,
        tunnel_sources,
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
        options(args, cli.connection.into())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        assert_eq!(
            parse("lvs-xdp agent --interface eth0 --socket /s").unwrap(),
            Config {
                interfaces: vec!["eth0".into()],
                socket: "/s".into(),
                socket_mode: 0o660,
                socket_group: None,
                remote: Remote::default(),
                state_dir: "/var/lib/lvs-xdp".into(),
                pin_dir: "/sys/fs/bpf/lvs-xdp".into(),
                config: None,
                xdp_mode: XdpMode::Auto,
                connections: 1 << 20,
                services: 4096,
                destinations: 16384,
                announce: false,
                withdraw: false,
                tunnel_sources: Vec::new(),
                log_packets: false,
                log_level: Level::INFO,
            }
        );
    }

    #[test]
    fn every_option_arrives() {
        assert_eq!(
            parse(
                "lvs-xdp --socket /s agent --interface eth0 --interface eth1 --socket-mode 600 --socket-group adm --listen 192.0.2.1:7143 --listen [::1]:7143 --token-file /t --tls-cert /c --tls-key /k --tls-client-ca /i --state-dir /d --pin-dir /p \
                 --config /c.toml \
                 --xdp-mode generic --connections 2048 --services 5 --destinations 6 --announce --withdraw --tunnel-source 172.16.3.4/16 --log-packets \
                 --log-level debug"
            )
            .unwrap(),
            Config {
                interfaces: vec!["eth0".into(), "eth1".into()],
                socket: "/s".into(),
                socket_mode: 0o600,
                socket_group: Some("adm".into()),
                remote: Remote {
                    listen: vec!["192.0.2.1:7143".parse().unwrap(), "[::1]:7143".parse().unwrap()],
                    token_file: Some("/t".into()),
                    tls_cert: Some("/c".into()),
                    tls_key: Some("/k".into()),
                    tls_client_ca: Some("/i".into()),
                },
                state_dir: "/d".into(),
                pin_dir: "/p".into(),
                config: Some("/c.toml".into()),
                xdp_mode: XdpMode::Generic,
                connections: 2048,
                services: 5,
                destinations: 6,
                announce: true,
                withdraw: true,
                tunnel_sources: vec!["172.16.0.0/16".parse().unwrap()],
                log_packets: true,
                log_level: Level::DEBUG,
            }
        );
    }

    #[test]
    fn a_network_of_sources_is_checked() {
        for (network, part) in [
            ("172.16.0.0/15", "/16 to /32"),
            ("fd00::/64", "/112 to /128"),
            ("172.16.0.0/33", "no address or prefix"),
            ("127.0.0.0/16", "no address of a host"),
            ("ff02::/112", "no address of a host"),
        ] {
            let arguments = [
                "lvs-xdp",
                "agent",
                "--interface",
                "eth0",
                "--tunnel-source",
                network,
            ];
            let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{network}: {error}");
        }
        let twice =
            "lvs-xdp agent --interface eth0 --tunnel-source 172.16.0.0/16 --tunnel-source 10.0.0.0/24";
        assert!(matches!(parse(twice), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_sockets_mode_is_octal() {
        for (mode, part) in [
            ("0x1b0", "no octal number"),
            ("0680", "no octal number"),
            ("0770", "nobody executes"),
            ("1660", "nobody executes"),
            ("0060", "0600 at least"),
        ] {
            let arguments = ["lvs-xdp", "agent", "--interface", "eth0", "--socket-mode", mode];
            let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{mode}: {error}");
        }
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
