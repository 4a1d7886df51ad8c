//! The tables of ipvsadm's commands and options: which there are, and which go together.

use super::popt::{Spec, Value};

/// A command, by the name ipvsadm's messages give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl Verb {
    /// Its name in ipvsadm's messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AddService => "add-service",
            Self::EditService => "edit-service",
            Self::DeleteService => "delete-service",
            Self::Flush => "flush",
            Self::List => "list",
            Self::AddServer => "add-server",
            Self::DeleteServer => "delete-server",
            Self::EditServer => "edit-server",
            Self::Set => "set",
            Self::StartDaemon => "start-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::Restore => "restore",
            Self::Save => "save",
            Self::Zero => "zero",
        }
    }

    /// Whether it needs, takes or refuses an option.
    pub(super) fn rule(self, kind: Kind) -> Rule {
        use Kind as K;
        let (required, allowed): (&[Kind], &[Kind]) = match self {
            Self::AddService | Self::EditService => (
                &[K::ServiceAddress],
                &[
                    K::Scheduler,
                    K::Persistent,
                    K::Netmask,
                    K::OnePacket,
                    K::Engine,
                    K::SchedulerFlags,
                    K::Removal,
                    K::SlowStart,
                    K::Stateless,
                    K::Settings,
                ],
            ),
            Self::DeleteService => (&[K::ServiceAddress], &[]),
            Self::AddServer | Self::EditServer => (
                &[K::ServiceAddress, K::RealServer],
                &[
                    K::ForwardingMethod,
                    K::Weight,
                    K::UpperThreshold,
                    K::LowerThreshold,
                    K::TunnelType,
                    K::TunnelPort,
                    K::TunnelNoChecksum,
                    K::TunnelChecksum,
                    K::TunnelRemoteChecksum,
                    K::Drain,
                ],
            ),
            Self::DeleteServer => (&[K::ServiceAddress, K::RealServer], &[]),
            Self::List => (
                &[],
                &[
                    K::Numeric,
                    K::Connection,
                    K::ServiceAddress,
                    K::Timeout,
                    K::Daemon,
                    K::Stats,
                    K::Rate,
                    K::Thresholds,
                    K::PersistentConnections,
                    K::NoSort,
                    // As the real one, which has no use for it there.
                    K::SyncId,
                    K::Exact,
                    K::TunnelInfo,
                ],
            ),
            Self::Save => (&[], &[K::Numeric, K::Full]),
            Self::Zero => (&[], &[K::ServiceAddress]),
            Self::StartDaemon => (
                &[],
                &[
                    K::MulticastInterface,
                    K::SyncId,
                    K::SyncMaxLength,
                    K::MulticastGroup,
                    K::MulticastPort,
                    K::MulticastTtl,
                ],
            ),
            Self::StopDaemon => (&[], &[K::SyncId]),
            Self::Flush | Self::Set | Self::Restore => (&[], &[]),
        };
        match () {
            () if required.contains(&kind) => Rule::Required,
            () if allowed.contains(&kind) => Rule::Allowed,
            () => Rule::Illegal,
        }
    }
}

/// What a command makes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Required,
    Allowed,
    Illegal,
}

/// What an option is about: `-t`, `-u` and `-f` are all the service's address. The order is the one
/// in which ipvsadm checks them, and so decides which of two faults it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Numeric,
    Connection,
    ServiceAddress,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    ForwardingMethod,
    Weight,
    UpperThreshold,
    LowerThreshold,
    MulticastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConnections,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    Engine,
    SchedulerFlags,
    MulticastGroup,
    MulticastPort,
    MulticastTtl,
    SyncMaxLength,
    TunnelInfo,
    TunnelType,
    TunnelPort,
    TunnelNoChecksum,
    TunnelChecksum,
    TunnelRemoteChecksum,
    /// From here on options of our own, for `-S --full` and what it writes.
    Full,
    Removal,
    SlowStart,
    Stateless,
    Settings,
    Drain,
}

impl Kind {
    /// Every kind, in the order of the checks.
    pub(super) const ALL: [Self; 40] = [
        Self::Numeric,
        Self::Connection,
        Self::ServiceAddress,
        Self::Scheduler,
        Self::Persistent,
        Self::Netmask,
        Self::RealServer,
        Self::ForwardingMethod,
        Self::Weight,
        Self::UpperThreshold,
        Self::LowerThreshold,
        Self::MulticastInterface,
        Self::Timeout,
        Self::Daemon,
        Self::Stats,
        Self::Rate,
        Self::Thresholds,
        Self::PersistentConnections,
        Self::NoSort,
        Self::SyncId,
        Self::Exact,
        Self::OnePacket,
        Self::Engine,
        Self::SchedulerFlags,
        Self::MulticastGroup,
        Self::MulticastPort,
        Self::MulticastTtl,
        Self::SyncMaxLength,
        Self::TunnelInfo,
        Self::TunnelType,
        Self::TunnelPort,
        Self::TunnelNoChecksum,
        Self::TunnelChecksum,
        Self::TunnelRemoteChecksum,
        Self::Full,
        Self::Removal,
        Self::SlowStart,
        Self::Stateless,
        Self::Settings,
        Self::Drain,
    ];

    /// Its name in ipvsadm's messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Numeric => "numeric",
            Self::Connection => "connection",
            Self::ServiceAddress => "service-address",
            Self::Scheduler => "scheduler",
            Self::Persistent => "persistent",
            Self::Netmask => "netmask",
            Self::RealServer => "real-server",
            Self::ForwardingMethod => "forwarding-method",
            Self::Weight => "weight",
            Self::UpperThreshold => "u-threshold",
            Self::LowerThreshold => "l-threshold",
            Self::MulticastInterface => "mcast-interface",
            Self::Timeout => "timeout",
            Self::Daemon => "daemon",
            Self::Stats => "stats",
            Self::Rate => "rate",
            Self::Thresholds => "thresholds",
            Self::PersistentConnections => "persistent-conn",
            Self::NoSort => "nosort",
            Self::SyncId => "syncid",
            Self::Exact => "exact",
            Self::OnePacket => "ops",
            Self::Engine => "pe",
            Self::SchedulerFlags => "sched-flags",
            Self::TunnelInfo => "tun-info",
            Self::TunnelType => "tun-type",
            Self::TunnelPort => "tun-port",
            Self::TunnelNoChecksum => "tun-nocsum",
            Self::TunnelChecksum => "tun-csum",
            Self::TunnelRemoteChecksum => "tun-remcsum",
            Self::SyncMaxLength => "sync-maxlen",
            Self::MulticastGroup => "mcast-group",
            Self::MulticastPort => "mcast-port",
            Self::MulticastTtl => "mcast-ttl",
            Self::Full => "full",
            Self::Removal => "removal",
            Self::SlowStart => "slow-start",
            Self::Stateless => "stateless",
            Self::Settings => "settings",
            Self::Drain => "drain",
        }
    }

    fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Which kinds of options a command line has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kinds(u64);

impl Kinds {
    /// Adds a kind; false where it was there.
    pub(super) fn insert(&mut self, kind: Kind) -> bool {
        let new = !self.has(kind);
        self.0 |= kind.bit();
        new
    }

    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }

    pub(super) fn has_any(self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|&kind| self.has(kind))
    }
}

/// What one option of the command line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opt {
    Command(Verb),
    Help,
    Version,
    TcpService,
    UdpService,
    SctpService,
    FirewallMark,
    Ipv6,
    Masquerading,
    Tunnelling,
    Gatewaying,
    Sort,
    /// An option that is alone in its kind.
    Other(Kind),
}

const fn command(short: char, long: &'static str, verb: Verb) -> Spec<Opt> {
    Spec {
        short: Some(short),
        long,
        value: Value::No,
        id: Opt::Command(verb),
    }
}

const fn short(short: char, long: &'static str, value: Value, id: Opt) -> Spec<Opt> {
    Spec {
        short: Some(short),
        long,
        value,
        id,
    }
}

const fn long(long: &'static str, value: Value, id: Opt) -> Spec<Opt> {
    Spec {
        short: None,
        long,
        value,
        id,
    }
}

/// Every option of ipvsadm 1.31, and those of our own.
pub(super) static OPTIONS: &[Spec<Opt>] = &[
    command('A', "add-service", Verb::AddService),
    command('E', "edit-service", Verb::EditService),
    command('D', "delete-service", Verb::DeleteService),
    command('C', "clear", Verb::Flush),
    command('L', "list", Verb::List),
    command('l', "list", Verb::List),
    command('Z', "zero", Verb::Zero),
    command('R', "restore", Verb::Restore),
    command('S', "save", Verb::Save),
    command('a', "add-server", Verb::AddServer),
    command('e', "edit-server", Verb::EditServer),
    command('d', "delete-server", Verb::DeleteServer),
    long("set", Value::No, Opt::Command(Verb::Set)),
    long("start-daemon", Value::Required, Opt::Command(Verb::StartDaemon)),
    long("stop-daemon", Value::Required, Opt::Command(Verb::StopDaemon)),
    short('h', "help", Value::No, Opt::Help),
    short('v', "version", Value::No, Opt::Version),
    short('t', "tcp-service", Value::Required, Opt::TcpService),
    short('u', "udp-service", Value::Required, Opt::UdpService),
    long("sctp-service", Value::Required, Opt::SctpService),
    short('f', "fwmark-service", Value::Required, Opt::FirewallMark),
    short('6', "ipv6", Value::No, Opt::Ipv6),
    short('s', "scheduler", Value::Required, Opt::Other(Kind::Scheduler)),
    short('p', "persistent", Value::Optional, Opt::Other(Kind::Persistent)),
    short('M', "netmask", Value::Required, Opt::Other(Kind::Netmask)),
    short('o', "ops", Value::No, Opt::Other(Kind::OnePacket)),
    long("pe", Value::Required, Opt::Other(Kind::Engine)),
    short(
        'b',
        "sched-flags",
        Value::Required,
        Opt::Other(Kind::SchedulerFlags),
    ),
    short('r', "real-server", Value::Required, Opt::Other(Kind::RealServer)),
    short('m', "masquerading", Value::No, Opt::Masquerading),
    short('i', "ipip", Value::No, Opt::Tunnelling),
    short('g', "gatewaying", Value::No, Opt::Gatewaying),
    short('w', "weight", Value::Required, Opt::Other(Kind::Weight)),
    short(
        'x',
        "u-threshold",
        Value::Required,
        Opt::Other(Kind::UpperThreshold),
    ),
    short(
        'y',
        "l-threshold",
        Value::Required,
        Opt::Other(Kind::LowerThreshold),
    ),
    long("tun-type", Value::Required, Opt::Other(Kind::TunnelType)),
    long("tun-port", Value::Required, Opt::Other(Kind::TunnelPort)),
    long("tun-nocsum", Value::No, Opt::Other(Kind::TunnelNoChecksum)),
    long("tun-csum", Value::No, Opt::Other(Kind::TunnelChecksum)),
    long("tun-remcsum", Value::No, Opt::Other(Kind::TunnelRemoteChecksum)),
    short('n', "numeric", Value::No, Opt::Other(Kind::Numeric)),
    short('c', "connection", Value::No, Opt::Other(Kind::Connection)),
    long("timeout", Value::No, Opt::Other(Kind::Timeout)),
    long("daemon", Value::No, Opt::Other(Kind::Daemon)),
    long("stats", Value::No, Opt::Other(Kind::Stats)),
    long("rate", Value::No, Opt::Other(Kind::Rate)),
    long("thresholds", Value::No, Opt::Other(Kind::Thresholds)),
    long(
        "persistent-conn",
        Value::No,
        Opt::Other(Kind::PersistentConnections),
    ),
    long("tun-info", Value::No, Opt::Other(Kind::TunnelInfo)),
    long("sort", Value::No, Opt::Sort),
    long("nosort", Value::No, Opt::Other(Kind::NoSort)),
    short('X', "exact", Value::No, Opt::Other(Kind::Exact)),
    long(
        "mcast-interface",
        Value::Required,
        Opt::Other(Kind::MulticastInterface),
    ),
    long("syncid", Value::Required, Opt::Other(Kind::SyncId)),
    long("sync-maxlen", Value::Required, Opt::Other(Kind::SyncMaxLength)),
    long("mcast-group", Value::Required, Opt::Other(Kind::MulticastGroup)),
    long("mcast-port", Value::Required, Opt::Other(Kind::MulticastPort)),
    long("mcast-ttl", Value::Required, Opt::Other(Kind::MulticastTtl)),
    long("full", Value::No, Opt::Other(Kind::Full)),
    long("removal", Value::Required, Opt::Other(Kind::Removal)),
    long("slow-start", Value::Required, Opt::Other(Kind::SlowStart)),
    long("stateless", Value::No, Opt::Other(Kind::Stateless)),
    long("settings", Value::Required, Opt::Other(Kind::Settings)),
    long("drain", Value::Optional, Opt::Other(Kind::Drain)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_checked_in_their_order() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
        }
    }

    #[test]
    fn no_name_is_used_twice() {
        for (index, one) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[index + 1..] {
                assert!(one.short.is_none() || one.short != other.short, "{:?}", one.short);
                // `-l` is a second short name of `--list`.
                assert!(one.long != other.long || one.id == other.id, "{}", one.long);
            }
        }
    }
}
