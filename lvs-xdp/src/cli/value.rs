//! Reads the values of options and arguments; each error says what is wrong and how to write it.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::args::RealServer;
use crate::{
    api::types::{Protocol, Removal, Setting},
    dataplane::rows,
    model::MAX_SLOW_START,
};

/// The kernel's limit of an interface name: IFNAMSIZ, less the terminating NUL.
const MAX_INTERFACE_NAME: usize = 15;

/// What a service is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceKind {
    /// A protocol, with an address and port.
    Protocol(Protocol),
    /// A firewall mark, of one address family.
    Mark {
        /// Whether it is IPv6.
        ipv6: bool,
    },
}

/// The name of a service of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceName {
    /// Its address and port.
    Address(SocketAddr),
    /// Its mark.
    Mark(u32),
}

/// A removal policy, or `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RemovalChoice(pub(super) Option<Removal>);

/// A setting's value, or `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SettingValue(pub(super) Option<u32>);

/// `NAME=VALUE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SettingChange {
    pub(super) setting: Setting,
    pub(super) value: SettingValue,
}

/// `NAME=VALUE`, `NAME=default` or `NAME=`.
pub(super) fn setting(text: &str) -> Result<SettingChange, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("it is no NAME=VALUE: write one such as sloppy_tcp=1")?;
    let setting = name.parse()?;
    let value = match value {
        "" => SettingValue(None),
        value => setting_value(value)?,
    };
    check_setting(setting, value)?;
    Ok(SettingChange { setting, value })
}

/// A number, or `default`.
pub(super) fn setting_value(text: &str) -> Result<SettingValue, String> {
    match text {
        "default" => Ok(SettingValue(None)),
        _ => match text.parse() {
            Ok(value) => Ok(SettingValue(Some(value))),
            Err(_) => Err(format!("`{text}` is no value: use a number, or `default`")),
        },
    }
}

/// Refuses a value that a setting cannot have.
pub(super) fn check_setting(setting: Setting, value: SettingValue) -> Result<(), String> {
    let most = setting.most();
    match value.0 {
        Some(value) if value > most => Err(format!(
            "{setting} cannot be {value}: use a value from 0 to {most}, or `default`"
        )),
        _ => Ok(()),
    }
}

/// A time of whole seconds, such as `90s` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.subsec_nanos() == 0 => Ok(time),
        Ok(_) => Err("it is no whole number of seconds".to_owned()),
        Err(_) => Err("it is no time: write one such as 90s or 10m".to_owned()),
    }
}

/// The length of a slow start, in seconds.
pub(super) fn slow_start(text: &str) -> Result<u32, String> {
    match u32::try_from(duration(text)?.as_secs()) {
        Ok(seconds) if seconds <= MAX_SLOW_START => Ok(seconds),
        _ => Err("it is too long: a day is the most".to_owned()),
    }
}

/// `VIP:PORT`, `[VIP]:PORT` for IPv6.
pub(super) fn virtual_address(text: &str) -> Result<SocketAddr, String> {
    let example = "such as 192.168.2.100:80 or [2001:db8::100]:80";
    match split(text)? {
        (address, Some(port)) => Ok(SocketAddr::new(address, port)),
        (_, None) => Err(format!("it has no port: write address and port, {example}")),
    }
}

/// [`virtual_address`], or a mark.
pub(super) fn service_name(text: &str) -> Result<ServiceName, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return virtual_address(text).map(ServiceName::Address);
    }
    match text.parse() {
        Ok(mark) if mark > 0 => Ok(ServiceName::Mark(mark)),
        _ => Err(format!("mark {text} is out of range: use 1 to {}", u32::MAX)),
    }
}

/// An address, or a prefix.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| {
        format!("`{text}` is no address or prefix: write one such as 192.168.2.100 or 2001:db8::/64")
    })
}

/// A network whose addresses tunnels send from, the flow's own bits of which the data path can fill in.
pub(super) fn tunnel_source(text: &str) -> Result<IpNet, String> {
    const FLOW_BITS: u8 = 16;
    let net = prefix(text)?.trunc();
    let address = rows::address(net.addr());
    if !address.is_one_host() {
        return Err(format!(
            "{text} holds no address of a host: name a network of your own"
        ));
    }
    let longest = net.max_prefix_len();
    let shortest = longest - FLOW_BITS;
    if net.prefix_len() < shortest {
        return Err(format!(
            "{text} is too large: use a prefix length of /{shortest} to /{longest}, for as many as 65,536 addresses"
        ));
    }
    Ok(net)
}

/// `RIP` or `RIP:PORT`.
pub(super) fn real_server(text: &str) -> Result<RealServer, String> {
    let (address, port) = split(text)?;
    Ok(RealServer { address, port })
}

/// An address without a port.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is no IP address: write it in numbers, such as 192.168.2.100 or 2001:db8::100")
    })
}

/// An interface's name, by the kernel's rules for one (dev_valid_name).
pub(super) fn interface(text: &str) -> Result<String, String> {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace();
    match text {
        "" | "." | ".." => Err("no interface has this name".to_owned()),
        _ if text.len() > MAX_INTERFACE_NAME => {
            Err(format!("interface names have at most {MAX_INTERFACE_NAME} bytes"))
        }
        _ if text.bytes().any(bad) => Err("interface names have no slash, colon or blank".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// The mode of a socket, which the agent itself can use.
pub(super) fn socket_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Err(_) => Err("it is no octal number, such as 0660".to_owned()),
        Ok(mode) if mode & !0o666 != 0 => Err("nobody executes a socket: use the bits of 0666".to_owned()),
        Ok(mode) if mode & 0o600 != 0o600 => {
            Err("its owner has to read and write: use 0600 at least".to_owned())
        }
        Ok(mode) => Ok(mode),
    }
}

/// The connection table's capacity.
pub(super) fn connections(text: &str) -> Result<u32, String> {
    const LEAST: u32 = 1 << 10;
    const MOST: u32 = 1 << 30;
    match text.parse::<u64>() {
        Err(_) => Err("it is no number".to_owned()),
        Ok(number) => match u32::try_from(number) {
            Ok(number) if number.is_power_of_two() && (LEAST..=MOST).contains(&number) => Ok(number),
            Ok(number) if (LEAST..MOST).contains(&number) => Err(format!(
                "it is no power of two: the next is {}",
                number.next_power_of_two()
            )),
            _ => Err(format!("it is out of range: use {LEAST} to {MOST}")),
        },
    }
}

fn split(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Err("it lacks a `]`".to_owned());
        };
        let host = host
            .parse::<Ipv6Addr>()
            .map_err(|_| format!("`{host}` is no IPv6 address"))?;
        return match rest.strip_prefix(':') {
            Some(text) => Ok((host.into(), Some(port(text)?))),
            None if rest.is_empty() => Ok((host.into(), None)),
            None => Err("after `]` comes `:` and the port".to_owned()),
        };
    }
    match text.split_once(':') {
        Some((host, text)) if !text.contains(':') => Ok((address(host)?, Some(port(text)?))),
        _ => Ok((address(text)?, None)),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits => Ok(port),
        _ if digits => Err(format!("port {text} is out of range: use 1 to 65535")),
        _ => Err(format!("`{text}` is no port: use 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses() {
        for (text, expected) in [
            ("192.168.2.100:80", "192.168.2.100:80"),
            ("[2001:db8::100]:443", "[2001:db8::100]:443"),
            ("192.168.2.100", "it has no port"),
            ("2001:db8::100", "it has no port"),
            ("[2001:db8::100]", "it has no port"),
            ("[2001:db8::100:80", "it lacks a `]`"),
            ("[2001:db8::100]80", "after `]` comes `:`"),
            ("[192.168.2.100]:80", "`192.168.2.100` is no IPv6 address"),
            ("192.168.2.100:0", "192.168.2.100:0"),
            ("192.168.2.100:65536", "port 65536 is out of range"),
            (
                "192.168.2.100:99999999999999999999",
                "port 99999999999999999999 is out of range",
            ),
            ("192.168.2.100:", "`` is no port"),
            ("192.168.2.100:+80", "`+80` is no port"),
            ("192.168.2.100:http", "`http` is no port"),
            ("300.1.1.1:80", "`300.1.1.1` is no IP address"),
            ("10.0.0:80", "`10.0.0` is no IP address"),
            (":80", "`` is no IP address"),
            ("", "`` is no IP address"),
        ] {
            let result = virtual_address(text).map(|address| address.to_string());
            let result = result.unwrap_or_else(|error| error);
            assert!(result.starts_with(expected), "{text}: {result}");
        }
    }

    #[test]
    fn services_have_addresses_or_marks() {
        let address = "10.0.0.1:80".parse().unwrap();
        assert_eq!(service_name("10.0.0.1:80"), Ok(ServiceName::Address(address)));
        assert_eq!(service_name("4294967295"), Ok(ServiceName::Mark(u32::MAX)));
        for bad in ["0", "4294967296", "", "-1", "+1", "one", "10.0.0.1"] {
            assert!(service_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_are_networks_or_hosts() {
        for (text, expected) in [
            ("192.168.2.100", "192.168.2.100/32"),
            ("192.168.2.0/24", "192.168.2.0/24"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(prefix(text).map(|net| net.to_string()), Ok(expected.to_owned()));
        }
        for bad in [
            "",
            "192.168.2",
            "192.168.2.0/33",
            "192.168.2.1:80",
            "::/129",
            "vip",
        ] {
            assert!(prefix(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn real_servers_need_no_port() {
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert_eq!(
            real_server("10.0.0.1"),
            Ok(RealServer {
                address: v4,
                port: None
            })
        );
        assert_eq!(
            real_server("10.0.0.1:80"),
            Ok(RealServer {
                address: v4,
                port: Some(80)
            })
        );
        assert_eq!(
            real_server("fd00::1"),
            Ok(RealServer {
                address: v6,
                port: None
            })
        );
        assert_eq!(
            real_server("[fd00::1]:80"),
            Ok(RealServer {
                address: v6,
                port: Some(80)
            })
        );
    }

    #[test]
    fn settings_are_name_and_value() {
        for (text, expected) in [
            ("sloppy_tcp=1", Some(1)),
            ("conn_reuse_mode=3", Some(3)),
            ("sloppy_tcp=default", None),
            ("sloppy_tcp=", None),
        ] {
            assert_eq!(setting(text).map(|change| change.value.0), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("sloppy_tcp", "no NAME=VALUE"),
            ("sloppy=1", "use one of expire_nodest_conn "),
            ("sloppy_tcp=2", "use a value from 0 to 1"),
            ("conn_reuse_mode=4", "use a value from 0 to 3"),
            ("sloppy_tcp=-1", "`-1` is no value"),
            ("sloppy_tcp=on", "`on` is no value"),
        ] {
            let error = setting(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_whole_seconds() {
        for (text, seconds) in [("60s", 60), ("2m", 120), ("1h 30m", 5400), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["60", "", "s", "-1s", "1500ms", "1x"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(slow_start("1day"), Ok(86_400));
        assert!(slow_start("86401s").is_err() && slow_start("10000years").is_err());
    }

    #[test]
    fn interfaces_have_kernel_names() {
        assert_eq!(interface("eth0.100"), Ok("eth0.100".to_owned()));
        for bad in ["", ".", "..", "a-name-too-long-", "a/b", "eth0:1", "a b"] {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn capacities_are_powers_of_two() {
        assert_eq!(connections("1024"), Ok(1024));
        assert_eq!(connections("1073741824"), Ok(1 << 30));
        assert_eq!(
            connections("1000000"),
            Err("it is no power of two: the next is 1048576".to_owned())
        );
        for bad in ["0", "512", "2147483648", "18446744073709551616", "-1", "x", ""] {
            assert!(connections(bad).is_err(), "{bad:?}");
        }
    }
}
