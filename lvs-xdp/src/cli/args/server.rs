//! What is typed of real servers, on the director and on themselves.

use std::{net::IpAddr, time::Duration};

use clap::{
    ArgGroup, Args, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::{ListArgs, ServiceArgs, in_range, service::service_kind};
use crate::{
    api::types::{TunnelChecksum, TunnelKind},
    cli::{
        check::{ServerCheckWord, server_check},
        value::{self, ServiceKind, ServiceName as NamedService},
    },
    model::{MAX_THRESHOLD, MAX_WEIGHT},
};

/// A real server's address as typed; the port, where there is one, must be the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct RealServer {
    pub(in crate::cli) address: IpAddr,
    pub(in crate::cli) port: Option<u16>,
}

/// How many connections a real server may have.
#[derive(Debug, Args)]
pub(in crate::cli) struct ThresholdArgs {
    /// With so many connections it gets no new ones, 0 to 2147483647; 0: no limit
    #[arg(
        long, short = 'x', value_name = "N", value_parser = in_range(0, MAX_THRESHOLD),
        allow_negative_numbers = true, group = "changes"
    )]
    pub(in crate::cli) upper_threshold: Option<u32>,
    /// Below so many it gets new ones again, up to the upper one; 0: three quarters of that
    #[arg(
        long, short = 'y', value_name = "N", value_parser = in_range(0, MAX_THRESHOLD),
        allow_negative_numbers = true, group = "changes"
    )]
    pub(in crate::cli) lower_threshold: Option<u32>,
}

/// How packets reach a real server.
#[derive(Debug, Args)]
pub(in crate::cli) struct TunnelArgs {
    /// Send it packets inside others, addressed to it: for real servers on other segments. Plain (ipip; also
    /// IPv6 in IPv6, and each in the other), in UDP (gue), or in GRE (gre) [default: direct routing]
    #[arg(long, value_name = "TYPE", value_parser = tunnel_kind(), group = "changes")]
    pub(in crate::cli) tunnel: Option<TunnelKind>,
    /// The UDP port on which the real server takes gue
    #[arg(
        long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "tunnel"
    )]
    pub(in crate::cli) tunnel_port: Option<u16>,
    /// The checksum over what gue and gre carry: none, computed (on), of gue also left to the receiver where
    /// the packet has none of its own yet (remote) [default: none]
    #[arg(long, value_name = "CHECKSUM", value_parser = tunnel_checksum(), requires = "tunnel")]
    pub(in crate::cli) tunnel_checksum: Option<TunnelChecksum>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServerVerb {
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
pub(in crate::cli) enum RealserverVerb {
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
pub(in crate::cli) enum TunnelOver {
    Ipv4,
    Ipv6,
}

fn tunnel_kind() -> impl TypedValueParser<Value = TunnelKind> {
    PossibleValuesParser::new(TunnelKind::ALL.map(TunnelKind::name)).try_map(|name| name.parse())
}

fn tunnel_checksum() -> impl TypedValueParser<Value = TunnelChecksum> {
    PossibleValuesParser::new(TunnelChecksum::ALL.map(TunnelChecksum::name)).try_map(|name| name.parse())
}
