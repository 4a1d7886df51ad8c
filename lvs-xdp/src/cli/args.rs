//! Defines the command line: what can be typed, and nothing of what it does.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{
    ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser},
};
use clap_complete::Shell;

use super::value;
use crate::agent::XdpMode;
use crate::api::types::{Protocol, Scheduler, SchedulerFlag};

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
    /// The agent's socket [default: the variable LVS_XDP_SOCKET, else /run/lvs-xdp/agent.sock]
    #[arg(long, global = true, value_name = "PATH", display_order = 100)]
    pub(super) socket: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) verb: Verb,
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
    Service(ServiceVerb),
    /// Add, edit, delete and list the real servers of a virtual service
    #[command(subcommand)]
    Server(ServerVerb),
    /// List the connection entries
    #[command(after_help = "Examples:\n  lvs-xdp connections | head\n  lvs-xdp connections --json")]
    Connections(ListArgs),
    /// Show the counters of every virtual service and real server
    #[command(after_help = "Examples:\n  lvs-xdp stats\n  lvs-xdp stats --json")]
    Stats(ListArgs),
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

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lvs-xdp agent --interface eth0\n  \
    lvs-xdp agent --interface eth0 --interface eth1 --connections 4194304")]
pub(super) struct AgentArgs {
    /// An interface to attach to; repeat it for more
    #[arg(long = "interface", value_name = "IF", required = true, value_parser = value::interface)]
    pub(super) interfaces: Vec<String>,
    /// Where the desired state is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lvs-xdp")]
    pub(super) state_dir: PathBuf,
    /// Where program and maps are pinned: a directory on a BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lvs-xdp")]
    pub(super) pin_dir: PathBuf,
    /// In the driver (native), above it (generic), or native where it works (auto)
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    pub(super) xdp_mode: XdpMode,
    /// Entries the connection table has room for: a power of two, 1024 to 2^30
    #[arg(long, value_name = "N", default_value = "1048576", value_parser = value::connections, allow_negative_numbers = true)]
    pub(super) connections: u32,
    /// Virtual services there is room for
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = up_to(65536), allow_negative_numbers = true)]
    pub(super) services: u32,
    /// Real servers there is room for, over all services
    // A destination's id has 20 bits, one of which stands for none.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = up_to((1 << 20) - 1), allow_negative_numbers = true)]
    pub(super) destinations: u32,
    /// Log packets from inside the program: slow, for debugging
    #[arg(long)]
    pub(super) log_packets: bool,
    /// The least important lines the agent logs
    #[arg(long, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub(super) log_level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, as the agent's API has it
    #[arg(long)]
    pub(super) json: bool,
}

/// Names a virtual service.
#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// The transport protocol
    #[arg(value_parser = protocol(), ignore_case = true)]
    pub(super) protocol: Protocol,
    /// The virtual address and port, such as 192.168.2.100:80 or [2001:db8::100]:80
    #[arg(value_name = "VIP:PORT", value_parser = value::virtual_address)]
    pub(super) virtual_address: SocketAddr,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServiceVerb {
    /// Add a virtual service
    #[command(after_help = "Examples:\n  \
        lvs-xdp service add tcp 192.168.2.100:80 --scheduler rr\n  \
        lvs-xdp service add udp 192.168.2.100:53 --scheduler sh --flag fallback --flag port")]
    Add {
        #[command(flatten)]
        service: ServiceArgs,
        /// How real servers are picked. (IPVS's default, wlc, is not there yet)
        #[arg(long, value_parser = scheduler(), default_value = "rr")]
        scheduler: Scheduler,
        /// A flag of the schedulers sh and mh: hash again when the real server is unusable
        /// (fallback), hash the client's port too (port). Repeat it for both
        #[arg(long = "flag", value_name = "FLAG", value_parser = scheduler_flag())]
        flags: Vec<SchedulerFlag>,
    },
    /// Change a virtual service: only what is named changes
    #[command(after_help = "Example:\n  lvs-xdp service edit tcp 192.168.2.100:80 --scheduler wrr")]
    #[command(group = ArgGroup::new("changes").required(true).multiple(true))]
    Edit {
        #[command(flatten)]
        service: ServiceArgs,
        /// How real servers are picked
        #[arg(long, value_parser = scheduler(), group = "changes")]
        scheduler: Option<Scheduler>,
        /// The scheduler's flags, in place of those it has; repeat it for both
        #[arg(long = "flag", value_name = "FLAG", value_parser = scheduler_flag(), group = "changes")]
        flags: Vec<SchedulerFlag>,
        /// Take the scheduler's flags away
        #[arg(long, conflicts_with = "flags", group = "changes")]
        no_flags: bool,
    },
    /// Delete a virtual service and its real servers
    #[command(after_help = "Example:\n  lvs-xdp service delete tcp 192.168.2.100:80")]
    Delete {
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// List the virtual services
    #[command(after_help = "Examples:\n  lvs-xdp service list\n  lvs-xdp service list --json")]
    List(ListArgs),
}

/// A real server's address as typed; the port, where there is one, must be the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RealServer {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServerVerb {
    /// Add a real server to a virtual service
    #[command(after_help = "Examples:\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.220\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.210 --weight 3")]
    Add {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
        /// Its share of new connections, 0 to 2147483647; 0 takes none
        #[arg(long, default_value_t = 1, value_parser = up_to_max_weight(), allow_negative_numbers = true)]
        weight: u32,
        /// Add it even where direct routing cannot reach it: behind a router, or without a route
        #[arg(long)]
        force: bool,
    },
    /// Change a real server: only what is named changes
    #[command(
        after_help = "Example: let it finish what it has, and send it nothing new\n  \
        lvs-xdp server edit tcp 192.168.2.100:80 192.168.2.220 --weight 0"
    )]
    Edit {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
        /// Its share of new connections, 0 to 2147483647; 0 takes none
        #[arg(long, value_parser = up_to_max_weight(), allow_negative_numbers = true)]
        weight: u32,
    },
    /// Delete a real server from a virtual service
    #[command(after_help = "Example:\n  lvs-xdp server delete tcp 192.168.2.100:80 192.168.2.220")]
    Delete {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
    },
    /// List the real servers, of one virtual service or of all
    #[command(after_help = "Examples:\n  \
        lvs-xdp server list\n  lvs-xdp server list tcp 192.168.2.100:80 --json")]
    List {
        /// The transport protocol
        #[arg(value_parser = protocol(), ignore_case = true, requires = "virtual_address")]
        protocol: Option<Protocol>,
        /// The virtual address and port
        #[arg(value_name = "VIP:PORT", value_parser = value::virtual_address)]
        virtual_address: Option<SocketAddr>,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RealserverVerb {
    /// Take the VIPs on, without answering ARP for them
    #[command(after_help = "Example:\n  lvs-xdp realserver setup --vip 192.168.2.100 --dry-run")]
    Setup {
        /// A virtual address this real server is to serve; repeat it for more
        #[arg(long = "vip", value_name = "VIP", required = true, value_parser = value::address)]
        vips: Vec<IpAddr>,
        /// The interface that gets the VIPs
        #[arg(long, value_name = "IF", default_value = "lo", value_parser = value::interface)]
        interface: String,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Undo what setup did
    #[command(after_help = "Example:\n  lvs-xdp realserver undo --vip 192.168.2.100")]
    Undo {
        /// A virtual address to give up; repeat it for more [default: all that setup added]
        #[arg(long = "vip", value_name = "VIP", value_parser = value::address)]
        vips: Vec<IpAddr>,
        /// The interface that has the VIPs
        #[arg(long, value_name = "IF", default_value = "lo", value_parser = value::interface)]
        interface: String,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the VIPs and settings of this real server
    #[command(after_help = "Examples:\n  lvs-xdp realserver show\n  lvs-xdp realserver show --json")]
    Show(ListArgs),
}

#[derive(Debug, Args)]
pub(super) struct IpvsadmArgs {
    /// ipvsadm's own words
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<std::ffi::OsString>,
}

fn protocol() -> impl TypedValueParser<Value = Protocol> {
    PossibleValuesParser::new(["tcp", "udp"]).try_map(|name| name.parse())
}

fn scheduler() -> impl TypedValueParser<Value = Scheduler> {
    PossibleValuesParser::new(Scheduler::ALL.map(Scheduler::name)).try_map(|name| name.parse())
}

fn scheduler_flag() -> impl TypedValueParser<Value = SchedulerFlag> {
    PossibleValuesParser::new(["fallback", "port"]).map(|name| match name.as_str() {
        "fallback" => SchedulerFlag::Fallback,
        _ => SchedulerFlag::Port,
    })
}

fn up_to(most: i64) -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..=most)
}

fn up_to_max_weight() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(0..=i64::from(i32::MAX))
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
