//! Defines the command line: what can be typed, and nothing of what it does.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{
    ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser},
};
use clap_complete::Shell;
use ipnet::IpNet;

use super::{
    check::{CheckArgs, ServerCheckWord, server_check},
    mark::RuleProtocol,
    value::{self, RemovalChoice, ServiceKind, ServiceName as NamedService, SettingChange, SettingValue},
};
use crate::{
    agent::XdpMode,
    api::{
        filter::{Clients, ServiceName, StateName},
        target::ClientOptions,
        types::{
            ClientMask, Ports, Protocol, Removal, Scheduler, SchedulerFlag, Setting, TunnelChecksum,
            TunnelKind,
        },
    },
    model::{MAX_THRESHOLD, MAX_TIMEOUT, MAX_WEIGHT},
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

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lvs-xdp agent --interface eth0\n  \
    lvs-xdp agent --interface eth0 --interface eth1 --connections 4194304")]
pub(super) struct AgentArgs {
    /// An interface to attach to; repeat it for more
    #[arg(long = "interface", value_name = "IF", required = true, value_parser = value::interface)]
    pub(super) interfaces: Vec<String>,
    /// The socket's mode, in octal: who may write to the socket may configure the director
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = value::socket_mode)]
    pub(super) socket_mode: u32,
    /// The socket's group, by name or number [default: the agent's own]
    #[arg(long, value_name = "GROUP")]
    pub(super) socket_group: Option<String>,
    /// Listen here for clients over the network, too, such as 192.0.2.1:7143; repeat it for more
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) listen: Vec<SocketAddr>,
    /// Of clients over the network take only those with a certificate of these issuers: a file in PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub(super) tls_client_ca: Option<PathBuf>,
    /// Where the desired state is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lvs-xdp")]
    pub(super) state_dir: PathBuf,
    /// Where program and maps are pinned: a directory on a BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lvs-xdp")]
    pub(super) pin_dir: PathBuf,
    /// A configuration file: the table at the start, whatever it was, and again at SIGHUP
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
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
    /// Answer ARP and neighbour discovery for virtual addresses that no interface of this host has
    #[arg(long)]
    pub(super) announce: bool,
    /// Answer only for those that have a usable real server
    #[arg(long, requires = "announce")]
    pub(super) withdraw: bool,
    /// Send into tunnels from addresses of this network, another one for each flow; once for each family
    // What a receiver tells flows apart by where it looks at nothing but the outer addresses.
    #[arg(long = "tunnel-source", value_name = "NETWORK", value_parser = value::tunnel_source)]
    pub(super) tunnel_sources: Vec<IpNet>,
    /// Log packets from inside the program: slow, for debugging
    #[arg(long)]
    pub(super) log_packets: bool,
    /// The least important lines the agent logs
    #[arg(long, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub(super) log_level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ImportFormat {
    /// The rules of ipvsadm-save
    Ipvsadm,
    /// keepalived.conf
    Keepalived,
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

/// Names a virtual service.
#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// The transport protocol; or `mark`, for the service of a firewall mark (of IPv6: `mark6`)
    #[arg(value_name = "PROTOCOL", value_parser = service_kind(), ignore_case = true)]
    pub(super) kind: ServiceKind,
    /// The virtual address and port, such as 192.168.2.100:80 or [2001:db8::100]:80; with port 0 all
    /// ports of a persistent service that no other service has. Of a mark's service the mark
    #[arg(value_name = "VIP:PORT", value_parser = value::service_name)]
    pub(super) name: NamedService,
}

/// What packets a rule gives its mark to.
#[derive(Debug, Args)]
pub(super) struct RuleArgs {
    /// A destination address or prefix, such as 192.168.2.100 or 2001:db8::/64; repeat it for more
    #[arg(
        long = "address", value_name = "ADDRESS[/PREFIX]", value_parser = value::prefix, value_delimiter = ','
    )]
    pub(super) addresses: Vec<IpNet>,
    /// The transport protocol
    #[arg(long, value_parser = rule_protocol(), ignore_case = true, default_value = "any", requires = "addresses")]
    pub(super) protocol: RuleProtocol,
    /// Destination ports, such as 80,443,8000-8100 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "addresses")]
    pub(super) ports: Vec<Ports>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MarkVerb {
    /// Add a rule: of all rules that a packet matches the one added first gives it its mark
    #[command(after_help = "Examples: two ports of a VIP form one service\n  \
        lvs-xdp mark add 1 --protocol tcp --address 192.168.2.100 --ports 80,443\n  \
        lvs-xdp service add mark 1 --scheduler rr --persistent\n  \
        lvs-xdp server add mark 1 192.168.2.220\n\n\
        Others:\n  \
        lvs-xdp mark add 2 --address 192.168.3.0/24 --address 192.168.4.1 --protocol udp --ports 5000-5999\n  \
        lvs-xdp mark add 3 --address 2001:db8::100")]
    #[command(group = ArgGroup::new("where").args(["addresses"]).required(true))]
    Add {
        /// The mark, from 1 on
        #[arg(value_parser = mark())]
        mark: u32,
        #[command(flatten)]
        rule: RuleArgs,
    },
    /// Delete a rule, named by all that it was added with, or all rules of a mark
    #[command(after_help = "Examples:\n  \
        lvs-xdp mark delete 1 --protocol tcp --address 192.168.2.100 --ports 80,443\n  \
        lvs-xdp mark delete 1")]
    Delete {
        /// The mark
        #[arg(value_parser = mark())]
        mark: u32,
        #[command(flatten)]
        rule: RuleArgs,
    },
    /// List the rules, in the order in which they are tried
    #[command(after_help = "Examples:\n  lvs-xdp mark list\n  lvs-xdp mark list --json")]
    List(ListArgs),
}

/// What a virtual service has beside its name and its scheduler.
#[derive(Debug, Args)]
pub(super) struct ServiceOptions {
    /// A flag of the schedulers sh and mh: hash again when the real server is unusable
    /// (fallback), hash the client's port too (port). Repeat it for both
    #[arg(long = "flag", value_name = "FLAG", value_parser = scheduler_flag(), group = "changes")]
    pub(super) flags: Vec<SchedulerFlag>,
    /// Keep a client with its real server for so many seconds after its last new connection: 1 to
    /// 2678400, 360 where none is given
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "360",
        value_parser = in_range(1, MAX_TIMEOUT), group = "changes"
    )]
    pub(super) persistent: Option<u32>,
    /// Keep clients of one network together: an IPv4 netmask such as 255.255.255.0, or an IPv6 prefix
    /// length [default: each client for itself]
    #[arg(long, value_name = "MASK", group = "changes")]
    pub(super) netmask: Option<ClientMask>,
    /// Schedule each packet of a UDP service by itself
    #[arg(long, group = "changes")]
    pub(super) one_packet: bool,
    /// Keep no connections: each packet goes where its client's hash says. For the schedulers mh, sh
    /// and dh
    #[arg(long, group = "changes")]
    pub(super) stateless: bool,
    /// What becomes of a removed real server's connections: their packets are dropped (drop), scheduled
    /// anew (reschedule), or, of TCP, answered with a reset (reset); default is what the setting
    /// expire_nodest_conn says, drop or reschedule
    #[arg(long, value_name = "POLICY", value_parser = removal(), group = "changes")]
    pub(super) removal: Option<RemovalChoice>,
    /// Raise a new or returning real server to its weight within this time, such as 60s or 2m, while
    /// others take its share; 0s: at once
    #[arg(long, value_name = "DURATION", value_parser = value::slow_start, group = "changes")]
    pub(super) slow_start: Option<u32>,
    /// A setting of this service that takes the place of the director's (see `lvs-xdp settings`), or
    /// NAME=default for the director's. Repeat it for more
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = value::setting, group = "changes")]
    pub(super) settings: Vec<SettingChange>,
    #[command(flatten)]
    pub(super) check: CheckArgs,
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

#[derive(Debug, Subcommand)]
pub(super) enum ServiceVerb {
    /// Add a virtual service
    #[command(after_help = "Examples:\n  \
        lvs-xdp service add tcp 192.168.2.100:80 --scheduler rr\n  \
        lvs-xdp service add udp 192.168.2.100:53 --scheduler sh --flag fallback --flag port\n  \
        lvs-xdp service add tcp 192.168.2.100:443 --persistent=600 --netmask 255.255.255.0\n  \
        lvs-xdp service add tcp 192.168.2.100:0 --persistent\n  \
        lvs-xdp service add mark 1 --scheduler rr\n  \
        lvs-xdp service add tcp 192.168.2.100:80 --removal reset --slow-start 60s --set sloppy_tcp=1\n  \
        lvs-xdp service add tcp 192.168.2.100:80 --check http://www.example.org/health --check-interval 1s\n  \
        lvs-xdp service add udp 192.168.2.100:53 --check dns:www.example.org --fallback 192.168.2.230 --quorum 2")]
    #[command(group = ArgGroup::new("changes").multiple(true))]
    Add {
        #[command(flatten)]
        service: ServiceArgs,
        /// How real servers are picked
        #[arg(long, value_parser = scheduler(), default_value_t)]
        scheduler: Scheduler,
        #[command(flatten)]
        options: ServiceOptions,
    },
    /// Change a virtual service: only what is named changes
    #[command(after_help = "Examples:\n  \
        lvs-xdp service edit tcp 192.168.2.100:80 --scheduler wrr\n  \
        lvs-xdp service edit tcp 192.168.2.100:80 --no-persistent --slow-start 0s\n  \
        lvs-xdp service edit tcp 192.168.2.100:80 --removal default --set conn_reuse_mode=default\n  \
        lvs-xdp service edit tcp 192.168.2.100:80 --check tcp --check-fall 2\n  \
        lvs-xdp service edit tcp 192.168.2.100:80 --no-check --fallback none")]
    #[command(group = ArgGroup::new("changes").required(true).multiple(true))]
    Edit {
        #[command(flatten)]
        service: ServiceArgs,
        /// How real servers are picked
        #[arg(long, value_parser = scheduler(), group = "changes")]
        scheduler: Option<Scheduler>,
        #[command(flatten)]
        options: ServiceOptions,
        /// Take the scheduler's flags away
        #[arg(long, conflicts_with = "flags", group = "changes")]
        no_flags: bool,
        /// Let clients go to another real server with each connection
        #[arg(long, conflicts_with_all = ["persistent", "netmask"], group = "changes")]
        no_persistent: bool,
        /// Let the packets of a UDP flow stay together
        #[arg(long, conflicts_with = "one_packet", group = "changes")]
        no_one_packet: bool,
        /// Keep connections again; those that are open are dropped, since nothing is known of them
        #[arg(long, conflicts_with = "stateless", group = "changes")]
        no_stateless: bool,
        /// Check its real servers no more: they count as up
        #[arg(
            long, group = "changes",
            conflicts_with_all = [
                "check", "check_interval", "check_timeout", "check_rise", "check_fall", "check_target",
                "check_initial", "check_on_failure", "check_status", "check_contains", "check_insecure", "check_ca",
            ]
        )]
        no_check: bool,
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

/// How many connections a real server may have.
#[derive(Debug, Args)]
pub(super) struct ThresholdArgs {
    /// With so many connections it gets no new ones, 0 to 2147483647; 0: no limit
    #[arg(
        long, short = 'x', value_name = "N", value_parser = in_range(0, MAX_THRESHOLD),
        allow_negative_numbers = true, group = "changes"
    )]
    pub(super) upper_threshold: Option<u32>,
    /// Below so many it gets new ones again, up to the upper one; 0: three quarters of that
    #[arg(
        long, short = 'y', value_name = "N", value_parser = in_range(0, MAX_THRESHOLD),
        allow_negative_numbers = true, group = "changes"
    )]
    pub(super) lower_threshold: Option<u32>,
}

/// How packets reach a real server.
#[derive(Debug, Args)]
pub(super) struct TunnelArgs {
    /// Send it packets inside others, addressed to it: for real servers on other segments. Plain (ipip; also
    /// IPv6 in IPv6, and each in the other), in UDP (gue), or in GRE (gre) [default: direct routing]
    #[arg(long, value_name = "TYPE", value_parser = tunnel_kind(), group = "changes")]
    pub(super) tunnel: Option<TunnelKind>,
    /// The UDP port on which the real server takes gue
    #[arg(
        long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "tunnel"
    )]
    pub(super) tunnel_port: Option<u16>,
    /// The checksum over what gue and gre carry: none, computed (on), of gue also left to the receiver where
    /// the packet has none of its own yet (remote) [default: none]
    #[arg(long, value_name = "CHECKSUM", value_parser = tunnel_checksum(), requires = "tunnel")]
    pub(super) tunnel_checksum: Option<TunnelChecksum>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServerVerb {
    /// Add a real server to a virtual service
    #[command(after_help = "Examples:\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.220\n  \
        lvs-xdp server add tcp 192.168.2.100:80 192.168.2.210 --weight 3 -x 1000 -y 800\n  \
        lvs-xdp server add tcp 192.168.2.100:80 10.7.0.5 --tunnel gue --tunnel-port 6080\n  \
        lvs-xdp server add mark 1 192.168.2.220")]
    #[command(group = ArgGroup::new("changes").multiple(true))]
    Add {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
        /// Its share of new connections, 0 to 2147483647; 0 takes none
        #[arg(long, default_value_t = 1, value_parser = in_range(0, MAX_WEIGHT), allow_negative_numbers = true)]
        weight: u32,
        #[command(flatten)]
        thresholds: ThresholdArgs,
        #[command(flatten)]
        tunnel: TunnelArgs,
        /// Check it by something else than its service says (as with `service add --check`), or not at all (off)
        #[arg(long, value_name = "CHECK", value_parser = server_check)]
        check: Option<ServerCheckWord>,
        /// Add it even where it cannot be reached: by direct routing behind a router, or without a route
        #[arg(long)]
        force: bool,
    },
    /// Change a real server: only what is named changes, and its draining ends
    #[command(
        after_help = "Examples: let it finish what it has, and send it nothing new; send it new ones again\n  \
        lvs-xdp server edit tcp 192.168.2.100:80 192.168.2.220 --weight 0\n  \
        lvs-xdp server edit tcp 192.168.2.100:80 192.168.2.220 --weight 1"
    )]
    #[command(group = ArgGroup::new("changes").required(true).multiple(true))]
    Edit {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
        /// Its share of new connections, 0 to 2147483647; 0 takes none
        #[arg(long, value_parser = in_range(0, MAX_WEIGHT), allow_negative_numbers = true, group = "changes")]
        weight: Option<u32>,
        #[command(flatten)]
        thresholds: ThresholdArgs,
        #[command(flatten)]
        tunnel: TunnelArgs,
        /// Reach it by direct routing again
        #[arg(long, conflicts_with = "tunnel", group = "changes")]
        no_tunnel: bool,
        /// Check it by something else than its service says, not at all (off), or as that says (default)
        #[arg(long, value_name = "CHECK", value_parser = server_check, group = "changes")]
        check: Option<ServerCheckWord>,
    },
    /// Take a real server out of service without breaking a connection
    #[command(
        after_help = "It gets weight 0, persistent clients go elsewhere, and when its last connection has \
        ended, or at the deadline, it is removed. `lvs-xdp server edit --weight N` calls it off.\n\nExamples:\n  \
        lvs-xdp server drain tcp 192.168.2.100:80 192.168.2.220\n  \
        lvs-xdp server drain tcp 192.168.2.100:80 192.168.2.220 --deadline 10m --wait"
    )]
    Drain {
        #[command(flatten)]
        service: ServiceArgs,
        /// The real server's own address
        #[arg(value_name = "RIP", value_parser = value::real_server)]
        server: RealServer,
        /// Remove it after this time, such as 90s or 10m, whatever is left; the service's removal policy says
        /// what becomes of that [default: wait for the last connection]
        #[arg(long, value_name = "DURATION", value_parser = value::duration)]
        deadline: Option<Duration>,
        /// Say every second how many connections are left, until it is removed
        #[arg(long)]
        wait: bool,
        /// Print JSON, one object each time
        #[arg(long)]
        json: bool,
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
        /// The transport protocol, `mark` or `mark6`
        #[arg(value_name = "PROTOCOL", value_parser = service_kind(), ignore_case = true, requires = "name")]
        kind: Option<ServiceKind>,
        /// The virtual address and port, or the mark
        #[arg(value_name = "VIP:PORT", value_parser = value::service_name)]
        name: Option<NamedService>,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RealserverVerb {
    /// Take the VIPs on, without answering ARP or neighbour discovery for them
    #[command(after_help = "Examples:\n  \
        lvs-xdp realserver setup --vip 192.168.2.100 --dry-run\n  \
        lvs-xdp realserver setup --vip 192.168.2.100 --tunnel gue --tunnel-port 6080")]
    Setup {
        /// A virtual address this real server is to serve; repeat it for more
        #[arg(long = "vip", value_name = "VIP", required = true, value_parser = value::address)]
        vips: Vec<IpAddr>,
        /// The interface that gets the VIPs
        #[arg(long, value_name = "IF", default_value = "lo", value_parser = value::interface)]
        interface: String,
        /// Take the packets out of a tunnel, too, by the kernel's own device for it: `tunl0`, `sit0` or `ip6tnl0`
        /// (ipip, gue), `gre0` or `ip6gre0` (gre, without a checksum)
        #[arg(long, value_name = "TYPE", value_parser = tunnel_kind())]
        tunnel: Option<TunnelKind>,
        /// The UDP port for gue
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "tunnel")]
        tunnel_port: Option<u16>,
        /// What the outer packets are: the family of this real server's own address
        #[arg(long, value_enum, value_name = "FAMILY", default_value_t = TunnelOver::Ipv4, requires = "tunnel")]
        tunnel_over: TunnelOver,
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
    /// Show the VIPs and settings of this real server, and what is missing
    #[command(
        visible_alias = "check",
        after_help = "Examples:\n  lvs-xdp realserver check\n  lvs-xdp realserver show --json"
    )]
    Show(ListArgs),
}

/// The family of a tunnel's outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TunnelOver {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Args)]
pub(super) struct IpvsadmArgs {
    /// ipvsadm's own words
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<std::ffi::OsString>,
}

fn service_kind() -> impl TypedValueParser<Value = ServiceKind> {
    let names = ["tcp", "udp", "sctp", "mark", "mark6"];
    PossibleValuesParser::new(names).try_map(|name| {
        Ok::<_, String>(match name.to_ascii_lowercase().as_str() {
            "mark" => ServiceKind::Mark { ipv6: false },
            "mark6" => ServiceKind::Mark { ipv6: true },
            protocol => ServiceKind::Protocol(protocol.parse()?),
        })
    })
}

fn rule_protocol() -> impl TypedValueParser<Value = RuleProtocol> {
    PossibleValuesParser::new(["any", "tcp", "udp", "sctp"])
        .map(|name| RuleProtocol(name.parse::<Protocol>().ok()))
}

fn mark() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..=i64::from(u32::MAX))
}

fn scheduler() -> impl TypedValueParser<Value = Scheduler> {
    PossibleValuesParser::new(Scheduler::ALL.map(Scheduler::name)).try_map(|name| name.parse())
}

fn tunnel_kind() -> impl TypedValueParser<Value = TunnelKind> {
    PossibleValuesParser::new(TunnelKind::ALL.map(TunnelKind::name)).try_map(|name| name.parse())
}

fn tunnel_checksum() -> impl TypedValueParser<Value = TunnelChecksum> {
    PossibleValuesParser::new(TunnelChecksum::ALL.map(TunnelChecksum::name)).try_map(|name| name.parse())
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

fn in_range(least: u32, most: u32) -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(i64::from(least)..=i64::from(most))
}

fn removal() -> impl TypedValueParser<Value = RemovalChoice> {
    let names = Removal::ALL.into_iter().map(Removal::name).chain(["default"]);
    PossibleValuesParser::new(names).map(|name| RemovalChoice(name.parse().ok()))
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
