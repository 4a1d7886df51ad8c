//! The values of ipvsadm's options: what each may be, and what is said of one that may not.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{Failure, Names, options::Kind};
use crate::{
    api::types::{
        ClientMask, Drain, Protocol, Removal, Scheduler, SchedulerFlag, ServiceKey, ServiceSettings, Setting,
        Timeouts, TunnelKind,
    },
    model::{MAX_SLOW_START, MAX_TIMEOUT, MAX_WEIGHT},
};

/// The virtual address and port of `-t`, `-u` and `--sctp-service`; no port is port 0.
pub(super) fn service_key(text: &str, protocol: Protocol, names: &Names) -> Result<ServiceKey, Failure> {
    let (address, port) = host_and_port(text, Some(protocol), names)
        .ok_or_else(|| Failure::usage("illegal virtual server address[:port] specified"))?;
    Ok(ServiceKey::new(protocol, address, port.unwrap_or(0)))
}

/// The mark of `-f`.
pub(super) fn mark(text: &str) -> Result<u32, Failure> {
    number(text, 1..=u32::MAX)
        .ok_or_else(|| Failure::usage(format!("invalid fwmark value `{text}' specified")))
}

/// The address of `-r`, and the port where there is one.
pub(super) fn server_address(
    text: &str,
    protocol: Option<Protocol>,
    names: &Names,
) -> Result<(IpAddr, Option<u16>), Failure> {
    host_and_port(text, protocol, names).ok_or_else(no_server)
}

/// What is said where `-r` has no address.
pub(super) fn no_server() -> Failure {
    Failure::usage("illegal real server address[:port] specified")
}

/// `host[:port]`, `[v6]:port` or a bare IPv6 address. Brackets need a port, which is forgotten where an IPv4 address
/// is in them; one number alone is no host.
fn host_and_port(text: &str, protocol: Option<Protocol>, names: &Names) -> Option<(IpAddr, Option<u16>)> {
    let port = |text: &str| {
        let number = number(text, 0..=u16::MAX.into());
        number.map_or_else(|| names.port(text, protocol), |port| u16::try_from(port).ok())
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once("]:")?;
        return match host.parse::<Ipv6Addr>() {
            Ok(address) => Some((address.into(), Some(port(rest)?))),
            Err(_) => Some((names.ipv4_host(host)?.into(), None)),
        };
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some((address.into(), None));
    }
    match text.split_once(':') {
        Some((host, rest)) => Some((names.ipv4_host(host)?.into(), Some(port(rest)?))),
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => None,
        None => Some((names.ipv4_host(text)?.into(), None)),
    }
}

/// Whether the daemon of `--start-daemon` or `--stop-daemon` is one.
pub(super) fn is_daemon(text: Option<&str>) -> bool {
    matches!(text, Some("master" | "backup"))
}

/// Looks at a number of the daemons that synchronise connections.
pub(super) fn daemon_number(text: &str, kind: Kind) -> Result<(), Failure> {
    let range = match kind {
        Kind::SyncId => 0..=255,
        // What fits a UDP datagram.
        Kind::SyncMaxLength => 1..=65_507,
        Kind::MulticastPort => 1..=u16::MAX.into(),
        _ => 1..=255,
    };
    match number(text, range) {
        Some(_) => Ok(()),
        None => Err(Failure::usage(format!("illegal {} specified", kind.name()))),
    }
}

/// Looks at `--mcast-group`.
pub(super) fn multicast_group(text: &str) -> Result<(), Failure> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_multicast() => Ok(()),
        _ => Err(Failure::usage(format!("invalid {family} mcast-group `{text}'"))),
    }
}

/// `-w`, `-x` and `-y`: a signed 32-bit number in the kernel, which is never below 0.
pub(super) fn amount(text: &str, kind: Kind) -> Result<u32, Failure> {
    number(text, 0..=MAX_WEIGHT).ok_or_else(|| {
        Failure::usage(match kind {
            Kind::UpperThreshold => "illegal u_threshold specified",
            Kind::LowerThreshold => "illegal l_threshold specified",
            _ => "illegal weight specified",
        })
    })
}

/// `--tun-type`.
pub(super) fn tunnel_kind(text: &str) -> Result<TunnelKind, Failure> {
    text.parse()
        .map_err(|_| Failure::usage("illegal tunnel type specified"))
}

/// `--tun-port`.
pub(super) fn tunnel_port(text: &str) -> Result<u16, Failure> {
    number(text, 1..=u16::MAX.into())
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| Failure::usage("illegal tunnel port specified"))
}

/// `--removal`, our own.
pub(super) fn removal(text: &str) -> Result<Removal, Failure> {
    text.parse().map_err(Failure::usage)
}

/// `--slow-start`, our own: seconds, up to a day.
pub(super) fn slow_start(text: &str) -> Result<u32, Failure> {
    number(text, 0..=MAX_SLOW_START).ok_or_else(|| {
        Failure::usage(format!(
            "invalid slow start `{text}' specified: use 0 to {MAX_SLOW_START} seconds"
        ))
    })
}

/// `--settings`, our own: `sloppy_tcp=1,conn_reuse_mode=2`.
pub(super) fn settings(text: &str) -> Result<ServiceSettings, Failure> {
    let mut settings = ServiceSettings::default();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let unfit = || Failure::usage(format!("invalid setting `{word}' specified: use NAME=NUMBER"));
        let (name, value) = word.split_once('=').ok_or_else(unfit)?;
        let setting: Setting = name.parse().map_err(Failure::usage)?;
        let value = number(value, 0..=setting.most()).ok_or_else(unfit)?;
        *setting.of_service(&mut settings) = Some(value);
    }
    Ok(settings)
}

/// `--drain`, our own: until no connection is left, or until so many seconds after 1970 (UTC).
pub(super) fn drain(text: Option<&str>) -> Result<Drain, Failure> {
    let deadline = text.map(|text| {
        text.parse().map_err(|_| {
            Failure::usage(format!(
                "invalid deadline `{text}' specified: use seconds since 1970"
            ))
        })
    });
    Ok(Drain {
        deadline: deadline.transpose()?,
    })
}

/// The three values of `--set`: seconds, 0 to 31 days, 0 for one that stays.
pub(super) fn timeouts(words: &[&str; 3]) -> Result<Timeouts, Failure> {
    let [tcp, tcp_fin, udp] = words.map(|word| timeout(word, 0));
    Ok(Timeouts {
        tcp: tcp?,
        tcp_fin: tcp_fin?,
        udp: udp?,
    })
}

/// Seconds, up to 31 days.
pub(super) fn timeout(text: &str, least: u32) -> Result<u32, Failure> {
    number(text, least..=MAX_TIMEOUT)
        .ok_or_else(|| Failure::usage(format!("invalid timeout value `{text}' specified")))
}

/// A decimal number as strtol(3) takes it: blanks and a sign may come first.
fn number(text: &str, range: RangeInclusive<u32>) -> Option<u32> {
    let number = text.trim_ascii_start().parse::<i64>().ok()?;
    u32::try_from(number).ok().filter(|number| range.contains(number))
}

/// `-M`: the prefix length of an IPv6 service, and a netmask before or after any other, in all the forms in which
/// an address may be written.
pub(super) fn client_mask(
    text: &str,
    service: Option<ServiceKey>,
    names: &Names,
) -> Result<ClientMask, Failure> {
    if service.is_some_and(|service| service.is_ipv6()) {
        return number(text, 1..=128)
            .and_then(|length| u8::try_from(length).ok())
            .map(ClientMask::V6)
            .ok_or_else(|| Failure::usage("illegal ipv6 netmask specified"));
    }
    names
        .ipv4_host(text)
        .map(ClientMask::V4)
        .ok_or_else(|| Failure::usage("illegal virtual server persistent mask specified"))
}

/// The name of a flag on the command line and in lists.
pub(super) fn flag_name(scheduler: Scheduler, flag: SchedulerFlag) -> String {
    let has_flags = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
    match flag {
        SchedulerFlag::Fallback if has_flags => format!("{scheduler}-fallback"),
        SchedulerFlag::Port if has_flags => format!("{scheduler}-port"),
        SchedulerFlag::Fallback => "flag-1".to_owned(),
        SchedulerFlag::Port => "flag-2".to_owned(),
        SchedulerFlag::Third => "flag-3".to_owned(),
    }
}

/// `-b`: names joined by commas. They are three bits, which every scheduler may have; those of sh and mh have
/// names of their own beside.
pub(super) fn scheduler_flags(text: &str, scheduler: &str) -> Result<Vec<SchedulerFlag>, Failure> {
    let mut flags = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        let (flag, only_for) = match name {
            "sh-fallback" => (SchedulerFlag::Fallback, Some("sh")),
            "sh-port" => (SchedulerFlag::Port, Some("sh")),
            "mh-fallback" => (SchedulerFlag::Fallback, Some("mh")),
            "mh-port" => (SchedulerFlag::Port, Some("mh")),
            "flag-1" => (SchedulerFlag::Fallback, None),
            "flag-2" => (SchedulerFlag::Port, None),
            "flag-3" => (SchedulerFlag::Third, None),
            _ => return Err(Failure::usage(format!("invalid scheduler flag `{name}'"))),
        };
        if only_for.is_some_and(|owner| owner != scheduler) {
            return Err(Failure::usage(format!("incompatible scheduler flag `{name}'")));
        }
        flags.push(flag);
    }
    flags.sort_unstable();
    flags.dedup();
    Ok(flags)
}
