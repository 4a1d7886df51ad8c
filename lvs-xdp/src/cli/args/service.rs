//! What is typed of services, and of the marks that lead to some.

use clap::{
    ArgGroup, Args, Subcommand,
    builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser},
};
use ipnet::IpNet;

use super::{ListArgs, in_range};
use crate::{
    api::types::{ClientMask, Ports, Protocol, Removal, Scheduler, SchedulerFlag},
    cli::{
        check::CheckArgs,
        mark::RuleProtocol,
        value::{self, RemovalChoice, ServiceKind, ServiceName as NamedService, SettingChange},
    },
    model::MAX_TIMEOUT,
};

/// Names a virtual service.
#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceArgs {
    /// The transport protocol; or `mark`, for the service of a firewall mark (of IPv6: `mark6`)
    #[arg(value_name = "PROTOCOL", value_parser = service_kind(), ignore_case = true)]
    pub(in crate::cli) kind: ServiceKind,
    /// The virtual address and port, such as 192.168.2.100:80 or [2001:db8::100]:80; with port 0 all
    /// ports of a persistent service that no other service has. Of a mark's service the mark
    #[arg(value_name = "VIP:PORT", value_parser = value::service_name)]
    pub(in crate::cli) name: NamedService,
}

/// What a virtual service has beside its name and its scheduler.
#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceOptions {
    /// A flag of the schedulers sh and mh: hash again when the real server is unusable
    /// (fallback), hash the client's port too (port). Repeat it for both
    #[arg(long = "flag", value_name = "FLAG", value_parser = scheduler_flag(), group = "changes")]
    pub(in crate::cli) flags: Vec<SchedulerFlag>,
    /// Keep a client with its real server for so many seconds after its last new connection: 1 to
    /// 2678400, 360 where none is given
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "360",
        value_parser = in_range(1, MAX_TIMEOUT), group = "changes"
    )]
    pub(in crate::cli) persistent: Option<u32>,
    /// Keep clients of one network together: an IPv4 netmask such as 255.255.255.0, or an IPv6 prefix
    /// length [default: each client for itself]
    #[arg(long, value_name = "MASK", group = "changes")]
    pub(in crate::cli) netmask: Option<ClientMask>,
    /// Schedule each packet of a UDP service by itself
    #[arg(long, group = "changes")]
    pub(in crate::cli) one_packet: bool,
    /// Keep no connections: each packet goes where its client's hash says. For the schedulers mh, sh
    /// and dh
    #[arg(long, group = "changes")]
    pub(in crate::cli) stateless: bool,
    /// What becomes of a removed real server's connections: their packets are dropped (drop), scheduled
    /// anew (reschedule), or, of TCP, answered with a reset (reset); default is what the setting
    /// expire_nodest_conn says, drop or reschedule
    #[arg(long, value_name = "POLICY", value_parser = removal(), group = "changes")]
    pub(in crate::cli) removal: Option<RemovalChoice>,
    /// Raise a new or returning real server to its weight within this time, such as 60s or 2m, while
    /// others take its share; 0s: at once
    #[arg(long, value_name = "DURATION", value_parser = value::slow_start, group = "changes")]
    pub(in crate::cli) slow_start: Option<u32>,
    /// A setting of this service that takes the place of the director's (see `lvs-xdp settings`), or
    /// NAME=default for the director's. Repeat it for more
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = value::setting, group = "changes")]
    pub(in crate::cli) settings: Vec<SettingChange>,
    #[command(flatten)]
    pub(in crate::cli) check: CheckArgs,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServiceVerb {
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

/// What packets a rule gives its mark to.
#[derive(Debug, Args)]
pub(in crate::cli) struct RuleArgs {
    /// A destination address or prefix, such as 192.168.2.100 or 2001:db8::/64; repeat it for more
    #[arg(
        long = "address", value_name = "ADDRESS[/PREFIX]", value_parser = value::prefix, value_delimiter = ','
    )]
    pub(in crate::cli) addresses: Vec<IpNet>,
    /// The transport protocol
    #[arg(long, value_parser = rule_protocol(), ignore_case = true, default_value = "any", requires = "addresses")]
    pub(in crate::cli) protocol: RuleProtocol,
    /// Destination ports, such as 80,443,8000-8100 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "addresses")]
    pub(in crate::cli) ports: Vec<Ports>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum MarkVerb {
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

pub(super) fn service_kind() -> impl TypedValueParser<Value = ServiceKind> {
    let names = ["tcp", "udp", "sctp", "mark", "mark6"];
    PossibleValuesParser::new(names).try_map(|name| {
        Ok::<_, String>(match name.to_ascii_lowercase().as_str() {
            "mark" => ServiceKind::Mark { ipv6: false },
            "mark6" => ServiceKind::Mark { ipv6: true },
            protocol => ServiceKind::Protocol(protocol.parse()?),
        })
    })
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

fn removal() -> impl TypedValueParser<Value = RemovalChoice> {
    let names = Removal::ALL.into_iter().map(Removal::name).chain(["default"]);
    PossibleValuesParser::new(names).map(|name| RemovalChoice(name.parse().ok()))
}

fn mark() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..=i64::from(u32::MAX))
}

fn rule_protocol() -> impl TypedValueParser<Value = RuleProtocol> {
    PossibleValuesParser::new(["any", "tcp", "udp", "sctp"])
        .map(|name| RuleProtocol(name.parse::<Protocol>().ok()))
}
