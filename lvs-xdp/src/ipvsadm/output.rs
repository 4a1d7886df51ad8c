//! The tables of `-L`, byte for byte those of ipvsadm 1.31: its widths and its trailing blanks.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

use super::{Names, args::ListRequest, order, values};
use crate::api::types::{Protocol, Service, ServiceSpec, Stats};

/// The first line of a full list: the version of IPVS that is spoken, and the number of its hash rows,
/// which is the kernel's default here: scripts know the line, and this program has no such rows.
const BANNER: &str = "IP Virtual Server version 1.2.1 (size=4096)";

/// Where ipvsadm cuts what names an IPv4 service; the IPv6 ones are never cut.
const SERVICE_WIDTH: usize = 33;

/// Where it cuts an IPv4 real server.
const SERVER_WIDTH: usize = 28;

/// Writes the table of `services`, of which there is one where the request names it.
pub(super) fn list(
    out: &mut dyn Write,
    mut services: Vec<Service>,
    request: ListRequest,
    names: &Names,
) -> io::Result<()> {
    if !request.unsorted {
        services = order::services(services);
    }
    if request.service.is_none() {
        writeln!(out, "{BANNER}")?;
    }
    if request.stats {
        writeln!(
            out,
            "{:<33} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "Prot LocalAddress:Port", "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"
        )?;
        writeln!(out, "  -> RemoteAddress:Port")?;
    } else {
        writeln!(out, "Prot LocalAddress:Port Scheduler Flags")?;
        writeln!(
            out,
            "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"
        )?;
    }
    for service in services {
        write_service(out, service, request, names)?;
    }
    Ok(())
}

fn write_service(
    out: &mut dyn Write,
    service: Service,
    request: ListRequest,
    names: &Names,
) -> io::Result<()> {
    let key = service.spec.key;
    let names = (!request.numeric).then_some(names);
    let name = format!(
        "{:<4} {}",
        key.protocol,
        endpoint(key.address, key.port, key.protocol, names)
    );
    let name = cut(&name, key.address, SERVICE_WIDTH);
    if request.stats {
        writeln!(out, "{name:<33}{}", counters(service.stats, request.exact))?;
    } else {
        writeln!(out, "{name} {}{}", service.spec.scheduler, flags(&service.spec))?;
    }
    let servers = if request.unsorted {
        service.servers
    } else {
        order::servers(service.servers)
    };
    for server in servers {
        let at = server.spec.key;
        let name = endpoint(at.address, at.port, key.protocol, names);
        let name = cut(&name, at.address, SERVER_WIDTH);
        if request.stats {
            writeln!(out, "  -> {name:<28}{}", counters(server.stats, request.exact))?;
        } else {
            let (weight, active, inactive) = (server.spec.weight, server.active, server.inactive);
            // Every real server is reached by direct routing, which is "Route" here.
            writeln!(
                out,
                "  -> {name:<28} {:<7} {weight:<6} {active:<10} {inactive:<10}",
                "Route"
            )?;
        }
    }
    Ok(())
}

/// `address:port`, with the port's name where `names` is given and has one. Addresses stay numbers.
fn endpoint(address: IpAddr, port: u16, protocol: Protocol, names: Option<&Names>) -> String {
    match names.and_then(|names| names.port_name(port, protocol)) {
        Some(name) if address.is_ipv6() => format!("[{address}]:{name}"),
        Some(name) => format!("{address}:{name}"),
        None => SocketAddr::new(address, port).to_string(),
    }
}

fn cut(name: &str, address: IpAddr, width: usize) -> &str {
    match name.char_indices().nth(width) {
        Some((end, _)) if address.is_ipv4() => &name[..end],
        _ => name,
    }
}

/// ` (sh-fallback,sh-port)`, or nothing.
fn flags(spec: &ServiceSpec) -> String {
    if spec.flags.is_empty() {
        return String::new();
    }
    let names: Vec<_> = spec
        .flags
        .iter()
        .map(|&flag| values::flag_name(spec.scheduler, flag))
        .collect();
    format!(" ({})", names.join(","))
}

/// Connections, packets in and out, bytes in and out. Answers do not pass a director that routes
/// directly, so what goes out is 0, as it is with IPVS.
fn counters(stats: Stats, exact: bool) -> String {
    [stats.connections, stats.packets, 0, stats.bytes, 0]
        .map(|count| {
            if exact {
                exact_number(count)
            } else {
                short_number(count)
            }
        })
        .concat()
}

/// A count in a column of nine, in thousands and so on where it is large.
fn short_number(count: u64) -> String {
    match count {
        ..100_000_000 => format!("{count:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", count / 1_000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", count / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", count / 1_000_000_000),
        100_000_000_000_000.. => format!("{:>8}T", count / 1_000_000_000_000),
    }
}

/// A count in full, with a blank before it however long it is.
fn exact_number(count: u64) -> String {
    format!(" {count:>8}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_shortened() {
        for (count, short, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (99_999_999_999_999, "   99999G", " 99999999999999"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
        ] {
            assert_eq!(short_number(count), short);
            assert_eq!(exact_number(count), exact);
        }
    }

    #[test]
    fn only_ipv4_names_are_cut() {
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert_eq!(cut("10.0.0.1:a-name-of-a-port", v4, 11), "10.0.0.1:a-");
        assert_eq!(cut("10.0.0.1:80", v4, 11), "10.0.0.1:80");
        assert_eq!(cut("[fd00::1]:80", v6, 4), "[fd00::1]:80");
    }
}
