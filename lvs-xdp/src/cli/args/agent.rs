//! What `lvs-xdp agent` takes.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::up_to;
use crate::{
    agent::XdpMode,
    cli::value::{self},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lvs-xdp agent --interface eth0\n  \
    lvs-xdp agent --interface eth0 --interface eth1 --connections 4194304")]
pub(in crate::cli) struct AgentArgs {
    /// An interface to attach to; repeat it for more
    #[arg(long = "interface", value_name = "IF", required = true, value_parser = value::interface)]
    pub(in crate::cli) interfaces: Vec<String>,
    /// The socket's mode, in octal: who may write to the socket may configure the director
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = value::socket_mode)]
    pub(in crate::cli) socket_mode: u32,
    /// The socket's group, by name or number [default: the agent's own]
    #[arg(long, value_name = "GROUP")]
    pub(in crate::cli) socket_group: Option<String>,
    /// Listen here for clients over the network, too, such as 192.0.2.1:7143; repeat it for more
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(in crate::cli) listen: Vec<SocketAddr>,
    /// Of clients over the network take only those with a certificate of these issuers: a file in PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub(in crate::cli) tls_client_ca: Option<PathBuf>,
    /// Where the desired state is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lvs-xdp")]
    pub(in crate::cli) state_dir: PathBuf,
    /// Where program and maps are pinned: a directory on a BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lvs-xdp")]
    pub(in crate::cli) pin_dir: PathBuf,
    /// A configuration file: the table at the start, whatever it was, and again at SIGHUP
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// In the driver (native), above it (generic), or native where it works (auto)
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    pub(in crate::cli) xdp_mode: XdpMode,
    /// Entries the connection table has room for: a power of two, 1024 to 2^30
    #[arg(long, value_name = "N", default_value = "1048576", value_parser = value::connections, allow_negative_numbers = true)]
    pub(in crate::cli) connections: u32,
    /// Virtual services there is room for
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = up_to(65536), allow_negative_numbers = true)]
    pub(in crate::cli) services: u32,
    /// Real servers there is room for, over all services
    // A destination's id has 20 bits, one of which stands for none.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = up_to((1 << 20) - 1), allow_negative_numbers = true)]
    pub(in crate::cli) destinations: u32,
    /// Answer ARP and neighbour discovery for virtual addresses that no interface of this host has
    #[arg(long)]
    pub(in crate::cli) announce: bool,
    /// Answer only for those that have a usable real server
    #[arg(long, requires = "announce")]
    pub(in crate::cli) withdraw: bool,
    /// Send into tunnels from addresses of this network, another one for each flow; once for each family
    // What a receiver tells flows apart by where it looks at nothing but the outer addresses.
    #[arg(long = "tunnel-source", value_name = "NETWORK", value_parser = value::tunnel_source)]
    pub(in crate::cli) tunnel_sources: Vec<IpNet>,
    /// Log packets from inside the program: slow, for debugging
    #[arg(long)]
    pub(in crate::cli) log_packets: bool,
    /// The least important lines the agent logs
    #[arg(long, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub(in crate::cli) log_level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}
