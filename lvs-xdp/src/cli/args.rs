//! Defines the command line: what can be typed, and nothing of what it does.

mod agent;
mod server;
mod service;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, builder::RangedI64ValueParser};
use clap_complete::Shell;

use super::value::{self, SettingValue};
use crate::api::{
    filter::{Clients, ServiceName, StateName},
    target::ClientOptions,
    types::Setting,
};

pub(super) use self::{
    agent::{AgentArgs, LogLevel},
    server::{RealServer, RealserverVerb, ServerVerb, ThresholdArgs, TunnelArgs, TunnelOver},
    service::{MarkVerb, RuleArgs, ServiceArgs, ServiceOptions, ServiceVerb},
};

/// LVS Direct Routing in XDP: the agent on the director, and the commands that talk to it
#[derive(Debug, Parser)]
#[command(
    name = "lvs-xdp",
    version,
    after_help = "Exit status: 0 done, 1 refused, 2 wrong usage.\n\n\
        Example: a virtual service with two real servers\n  \
        lvs-xdp agent --interface eth0 &\n  \
        lvs-xdp service add tcp 192.168.2.100:80 --scheduler rr\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.220\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.210\n  \
        lvs-xdp server list"
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Where the agent is, and what is shown to it; of the agent itself: where it is to be, and what it shows and wants.
#[derive(Debug, Clone, Args)]
pub(super) struct ConnectionArgs {
    /// The agent's socket [default: the variable LVS_XDP_SOCKET, else /run/lvs-xdp/agent.sock]
    #[arg(long, global = true, value_name = "PATH", display_order = 100)]
    socket: Option<PathBuf>,
    /// The agent over the network, as https://HOST:PORT [default: the variable LVS_XDP_CONNECT, else its socket]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        display_order = 101,
        conflicts_with = "socket"
    )]
    connect: Option<String>,
    /// The token to show over the network, in a file of mode 0600; of the agent those that it takes, one a line, those
    /// with `ro:` before them only to read [default: the variable LVS_XDP_TOKEN_FILE, but not of the agent]
    #[arg(long, global = true, value_name = "FILE", display_order = 102)]
    token_file: Option<PathBuf>,
    /// Who issues the certificate of an agent over the network: a file in PEM [default: the variable LVS_XDP_TLS_CA,
    /// else whom this host trusts]
    #[arg(long, global = true, value_name = "FILE", display_order = 103)]
    tls_ca: Option<PathBuf>,
    /// The certificate to show over the network: a file in PEM [default: the variable LVS_XDP_TLS_CERT, but not of the
    /// agent]
    #[arg(long, global = true, value_name = "FILE", display_order = 104)]
    tls_cert: Option<PathBuf>,
    /// The certificate's key: a file in PEM [default: the variable LVS_XDP_TLS_KEY, but not of the agent]
    #[arg(long, global = true, value_name = "FILE", display_order = 105)]
    tls_key: Option<PathBuf>,
}

impl From<ConnectionArgs> for ClientOptions {
    fn from(args: ConnectionArgs) -> Self {
        let ConnectionArgs {
            socket,
            connect,
            token_file,
            tls_ca,
            tls_cert,
            tls_key,
        } = args;
        Self {
            socket,
            connect,
            token_file,
            tls_ca,
            tls_cert,
            tls_key,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the agent: load the program, attach it, look after it
    Agent(AgentArgs),
    /// Show the program, the tables' fill, what became of packets, and what needs attention
    #[command(after_help = "Examples:\n  lvs-xdp status\n  lvs-xdp status --json")]
    Status(ListArgs),
    /// Add, edit, delete and list virtual services
    #[command(subcommand)]
    Service(Box<ServiceVerb>),
    /// Add, edit, delete and list the real servers of a virtual service
    #[command(subcommand)]
    Server(ServerVerb),
    /// Give packets firewall marks, so that several ports or addresses form one service
    #[command(subcommand)]
    Mark(MarkVerb),
    /// List the connection entries, or remove them
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  \
            lvs-xdp connections | head\n  \
            lvs-xdp connections --service tcp/192.168.2.100:80 --state ESTABLISHED\n  \
            lvs-xdp connections --client 192.168.1.0/24 --json\n  \
            lvs-xdp connections flush --server 192.168.2.220",
        group = ArgGroup::new("which").multiple(true)
    )]
    Connections(ConnectionsArgs),
    /// Show and change the settings of the whole director, by IPVS's names
    #[command(
        after_help = "A service may have its own: lvs-xdp service edit --set NAME=VALUE\n\nExamples:\n  \
        lvs-xdp settings\n  lvs-xdp settings sloppy_tcp 1\n  lvs-xdp settings sloppy_tcp default\n  \
        lvs-xdp settings --json"
    )]
    Settings {
        /// Which setting [default: all]
        name: Option<Setting>,
        /// Its new value, or `default`
        #[arg(value_parser = value::setting_value, conflicts_with = "json")]
        value: Option<SettingValue>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Make the whole table what a file says, in one step
    #[command(
        after_help = "The file has everything: what is not in it is deleted. What stays keeps its connections, and \
        nothing is changed where anything in the file is wrong. `lvs-xdp export` writes such a file.\n\nExamples:\n  \
        lvs-xdp apply --dry-run /etc/lvs-xdp.toml\n  lvs-xdp apply /etc/lvs-xdp.toml"
    )]
    Apply {
        /// The configuration file, in TOML; `-` for standard input
        file: PathBuf,
        /// Only show what would change, and how many connections it would touch
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Print the whole table as a configuration file
    #[command(after_help = "Examples:\n  lvs-xdp export > /etc/lvs-xdp.toml\n  lvs-xdp export --json")]
    Export(ListArgs),
    /// Print a saved IPVS table, or keepalived's virtual servers, as a configuration file
    #[command(
        after_help = "What is not taken over is named on standard error, with its line and why. Nothing is changed: look \
        at the result, then apply it.\n\nExamples:\n  \
        ipvsadm-save -n | lvs-xdp import - > /etc/lvs-xdp.toml\n  \
        lvs-xdp import /etc/keepalived/keepalived.conf > /etc/lvs-xdp.toml\n  \
        lvs-xdp apply --dry-run /etc/lvs-xdp.toml"
    )]
    Import {
        /// The rules of ipvsadm-save, or keepalived.conf; `-` for standard input
        file: PathBuf,
        /// What it is written in [default: what it looks like]
        #[arg(long, value_enum, value_name = "FORMAT")]
        format: Option<ImportFormat>,
        /// keepalived's configuration id, for lines that begin with `@` [default: the first part of this host's name]
        #[arg(long, value_name = "ID")]
        config_id: Option<String>,
    },
    /// Go back to the table of before the last change, or the last changes
    #[command(
        after_help = "Going back is a change as well: going back by one undoes it. `lvs-xdp history` lists the changes.\n\n\
        Examples:\n  lvs-xdp rollback --dry-run\n  lvs-xdp rollback\n  lvs-xdp rollback 3"
    )]
    Rollback {
        /// How many changes back
        #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        back: u32,
        /// Only show what would change, and how many connections it would touch
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        list: ListArgs,
    },
    /// List the last changes of the table: when, by whom, what
    #[command(after_help = "Examples:\n  lvs-xdp history | head\n  lvs-xdp history --json")]
    History(ListArgs),
    /// Show the counters of every virtual service and real server
    #[command(after_help = "Examples:\n  lvs-xdp stats\n  lvs-xdp stats --json")]
    Stats(ListArgs),
    /// Show the health check of every real server: its state, since when, and the last result
    #[command(after_help = "Examples:\n  lvs-xdp checks\n  lvs-xdp checks --json")]
    Checks(ListArgs),
    /// Show what is seen of TCP handshakes with each real server: SYNs, those sent again, the time to the first
    /// acknowledgement
    #[command(
        after_help = "TROUBLED are the connections that were not acknowledged, or as many as SYNs were sent again if that \
        is more.\n\nExamples:\n  lvs-xdp handshakes\n  lvs-xdp handshakes tcp/192.168.2.100:80 --over 10s"
    )]
    Handshakes(HandshakesArgs),
    /// Print what Prometheus reads from the agent: counters, connections, health, tables
    #[command(
        after_help = "The agent serves it itself, too: curl --unix-socket /run/lvs-xdp/agent.sock http://agent/metrics\n\n\
        Example, for node_exporter, which may not see half of it:\n  \
        cd /var/lib/prometheus/node-exporter && lvs-xdp metrics > lvs_xdp.new && mv lvs_xdp.new lvs_xdp.prom"
    )]
    Metrics,
    /// Tell everybody where virtual addresses are: gratuitous ARP, unsolicited neighbour advertisements
    #[command(
        after_help = "Told are those that the agent answers for (--announce) and those that an interface of the \
        director has.\n\nExamples:\n  lvs-xdp announce\n  lvs-xdp announce 192.168.2.100 2001:db8:2::100"
    )]
    Announce {
        /// Which virtual addresses [default: all]
        #[arg(value_name = "VIP")]
        addresses: Vec<IpAddr>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Find what is wrong with this director, its segment and its real servers, and what mends it
    #[command(
        after_help = "Asked are the agent, this host, everybody on the segment (who answers for each VIP), and each \
        real server (whether it takes packets for the VIP). Nothing is changed.\n\n\
        Exit status: 0 all is well, 1 warnings (or it could not look), 2 something is broken.\n\n\
        Examples:\n  lvs-xdp doctor\n  lvs-xdp doctor --all\n  lvs-xdp doctor --json"
    )]
    Doctor {
        /// Show what is well, too
        #[arg(long, conflicts_with = "json")]
        all: bool,
        /// Where no agent answers: the pins that one has left, which may go on forwarding
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lvs-xdp")]
        pin_dir: PathBuf,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Detach the program from every interface: the director forwards no more
    #[command(
        after_help = "Ending the agent does not detach; this does, and it ends the agent.\n\nExamples:\n  \
        lvs-xdp unload\n  lvs-xdp unload --pin-dir /sys/fs/bpf/lvs-xdp"
    )]
    Unload {
        /// Where no agent runs: remove what a dead one has left in this directory
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<PathBuf>,
    },
    /// Prepare a real server for direct routing: on the real server, not on the director
    #[command(subcommand)]
    Realserver(RealserverVerb),
    /// Be ipvsadm, as when called by that name
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  \
            lvs-xdp ipvsadm -A -t 192.168.2.100:80 -s rr\n  lvs-xdp ipvsadm -L -n\n  lvs-xdp ipvsadm -h"
    )]
    Ipvsadm(IpvsadmArgs),
    /// Make the links ipvsadm, ipvsadm-save and ipvsadm-restore to this program
    #[command(after_help = "What stands in their place is left alone.\n\nExamples:\n  \
            lvs-xdp install-ipvsadm\n  lvs-xdp install-ipvsadm --prefix /usr")]
    InstallIpvsadm {
        /// Where: the links are made in DIR/sbin
        #[arg(long, value_name = "DIR", default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  lvs-xdp completions bash > /etc/bash_completion.d/lvs-xdp")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, or write the pages of every command
    #[command(
        after_help = "Examples:\n  lvs-xdp man | man -l -\n  lvs-xdp man --dir /usr/local/share/man/man1"
    )]
    Man {
        /// Write lvs-xdp.1 and a page for every command into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the description of the agent's API, in OpenAPI's JSON
    #[command(after_help = "Example:\n  lvs-xdp openapi > openapi.json")]
    Openapi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ImportFormat {
    /// The rules of ipvsadm-save
    Ipvsadm,
    /// keepalived.conf
    Keepalived,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, as the agent's API has it
    #[arg(long)]
    pub(super) json: bool,
}

/// Whose handshakes are shown, and since when.
#[derive(Debug, Args)]
pub(super) struct HandshakesArgs {
    /// Those of one service, such as tcp/192.168.2.100:80 or mark/1 [default: of all]
    #[arg(value_name = "PROTOCOL/VIP:PORT")]
    pub(super) service: Option<ServiceName>,
    /// Wait so long, and show what has come meanwhile [default: all since the counters were 0]
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    pub(super) over: Option<Duration>,
    #[command(flatten)]
    pub(super) list: ListArgs,
}

#[derive(Debug, Args)]
pub(super) struct ConnectionsArgs {
    #[command(subcommand)]
    pub(super) verb: Option<ConnectionsVerb>,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConnectionsVerb {
    /// Remove connection entries: the next packet of such a connection is that of an unknown one
    #[command(after_help = "Examples:\n  \
        lvs-xdp connections flush --client 192.168.1.7\n  \
        lvs-xdp connections flush --service udp/192.168.2.100:53 --server 192.168.2.220\n  \
        lvs-xdp connections flush --all")]
    #[command(group = ArgGroup::new("which").required(true).multiple(true))]
    Flush {
        #[command(flatten)]
        filter: FilterArgs,
        /// Every entry there is
        #[arg(long, group = "which", conflicts_with_all = ["client", "service", "server", "state"])]
        all: bool,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// Which connection entries are meant: those to which all of these apply.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Those of a client or a network, such as 192.168.1.7 or 192.168.1.0/24; a persistence template
    /// stands under its network's address
    #[arg(long, value_name = "ADDRESS[/PREFIX]", group = "which")]
    pub(super) client: Option<Clients>,
    /// Those of a virtual service, such as tcp/192.168.2.100:80, mark/1 or mark6/1
    #[arg(long, value_name = "PROTOCOL/VIP:PORT", group = "which")]
    pub(super) service: Option<ServiceName>,
    /// Those of a real server
    #[arg(long, value_name = "RIP", value_parser = value::address, group = "which")]
    pub(super) server: Option<IpAddr>,
    /// Those in a state, such as ESTABLISHED or UDP
    #[arg(long, value_name = "NAME", group = "which")]
    pub(super) state: Option<StateName>,
}

#[derive(Debug, Args)]
pub(super) struct IpvsadmArgs {
    /// ipvsadm's own words
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<std::ffi::OsString>,
}

fn up_to(most: i64) -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..=most)
}

fn in_range(least: u32, most: u32) -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(i64::from(least)..=i64::from(most))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_does_something_has_an_example() {
        fn look(command: &clap::Command) {
            if command.get_subcommands().next().is_none() {
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(help.contains("Example"), "{}", command.get_name());
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }
}
