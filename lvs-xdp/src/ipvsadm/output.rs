//! The tables of `-L`, byte for byte those of ipvsadm 1.31: its widths and its trailing blanks.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

use super::{
    Names,
    args::{ListRequest, View},
    order, values,
};
use crate::api::types::{
    Connection, Persistence, Protocol, Rates, Server, ServerSpec, Service, ServiceKey, ServiceSpec, Stats,
};

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
    services: Vec<Service>,
    request: ListRequest,
    names: Option<&Names>,
) -> io::Result<()> {
    let services = if request.unsorted {
        services
    } else {
        order::services(services)
    };
    if request.service.is_none() {
        writeln!(out, "{BANNER}")?;
    }
    let [service_title, server_title] = titles(request.view);
    writeln!(out, "{service_title}")?;
    writeln!(out, "{server_title}")?;
    for service in services {
        write_service(out, service, request, names)?;
    }
    Ok(())
}

/// The line above the services and the one above their real servers.
fn titles(view: View) -> [String; 2] {
    const SERVICE: &str = "Prot LocalAddress:Port";
    const SERVER: &str = "  -> RemoteAddress:Port";
    let (service, server) = match view {
        View::Weights => (
            " Scheduler Flags".to_owned(),
            "           Forward Weight ActiveConn InActConn",
        ),
        View::TunnelInfo => (
            " Scheduler Flags".to_owned(),
            "           Forward TunnelInfo    Weight ActiveConn InActConn",
        ),
        View::Stats | View::Rates => {
            let [a, b, c, d, e] = match view {
                View::Stats => ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"],
                _ => ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"],
            };
            (format!("            {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}"), "")
        }
        View::Thresholds => {
            let [a, b, c, d] = ["Uthreshold", "Lthreshold", "ActiveConn", "InActConn"];
            (format!("            {a:<10} {b:<10} {c:<10} {d:<10}"), "")
        }
        View::PersistentConnections => {
            let [a, b, c, d] = ["Weight", "PersistConn", "ActiveConn", "InActConn"];
            (format!("            {a:<9} {b:<11} {c:<10} {d:<10}"), "")
        }
    };
    [format!("{SERVICE}{service}"), format!("{SERVER}{server}")]
}

fn write_service(
    out: &mut dyn Write,
    service: Service,
    request: ListRequest,
    names: Option<&Names>,
) -> io::Result<()> {
    let ListRequest { view, exact, .. } = request;
    let key = service.spec.key;
    let name = match key {
        ServiceKey::Endpoint {
            protocol,
            address,
            port,
        } => format!("{protocol:<4} {}", endpoint(address, port, Some(protocol), names)),
        // As a signed number, as the real one writes it.
        ServiceKey::Mark { mark, ipv6: false } => format!("FWM  {}", mark.cast_signed()),
        ServiceKey::Mark { mark, ipv6: true } => format!("FWM  {} IPv6", mark.cast_signed()),
    };
    let name = cut(&name, key.is_ipv6(), SERVICE_WIDTH);
    match view {
        View::Stats => writeln!(out, "{name:<33}{}", counters(service.stats, exact))?,
        View::Rates => writeln!(
            out,
            "{name:<33}{}",
            rates(service.rates).map(|rate| number(rate, exact)).concat()
        )?,
        _ => writeln!(out, "{name} {}", scheduling(&service.spec))?,
    }
    let servers = if request.unsorted {
        service.servers
    } else {
        order::servers(service.servers)
    };
    for server in servers {
        let at = server.spec.key;
        let name = endpoint(at.address, at.port, key.protocol(), names);
        let name = cut(&name, at.address.is_ipv6(), SERVER_WIDTH);
        writeln!(out, "  -> {name:<28}{}", columns(&server, view, exact))?;
    }
    Ok(())
}

/// What stands behind a service's name: `sh (sh-fallback,sh-port) persistent 360 mask 255.255.255.0 ops`.
fn scheduling(spec: &ServiceSpec) -> String {
    let mut text = spec.scheduler.to_string();
    if !spec.flags.is_empty() {
        text += &format!(" ({})", flags(spec));
    }
    if let Some(Persistence { timeout, mask }) = spec.persistence {
        text += &format!(" persistent {timeout}");
        if let Some(mask) = mask {
            text += &format!(" mask {mask}");
        }
    }
    if spec.one_packet {
        text += " ops";
    }
    text
}

/// How packets get to a real server, as it is configured: one that is the director itself is no other.
fn forward(server: &Server) -> &'static str {
    if server.spec.method.tunnel().is_some() {
        "Tunnel"
    } else {
        "Route"
    }
}

/// What stands behind a real server's name.
fn columns(server: &Server, view: View, exact: bool) -> String {
    let (active, inactive, persistent) = (server.active, server.inactive, server.persistent);
    let ServerSpec {
        weight,
        upper_threshold: upper,
        lower_threshold: lower,
        ..
    } = server.spec;
    let connections = format!("{active:<10} {inactive:<10}");
    match view {
        View::Stats => counters(server.stats, exact),
        // Those of connections and packets are never shortened here.
        View::Rates => {
            let [connections, packets_in, packets_out, bytes_in, bytes_out] = rates(server.rates);
            let bytes = [bytes_in, bytes_out].map(|rate| number(rate, exact)).concat();
            format!(" {connections:>8} {packets_in:>8} {packets_out:>8}{bytes}")
        }
        View::Weights => format!(" {:<7} {weight:<6} {connections}", forward(server)),
        View::TunnelInfo => {
            let tunnel = server.spec.method.tunnel();
            let tunnel = tunnel.map_or_else(|| "n/a".to_owned(), |tunnel| tunnel.to_string());
            format!(" {:<7} {tunnel:<13} {weight:<6} {connections}", forward(server))
        }
        View::Thresholds => format!(" {upper:<10} {lower:<10} {connections}"),
        View::PersistentConnections => format!(" {weight:<9} {persistent:<11} {connections}"),
    }
}

/// The lines above the entries of `-L -c`; with `engines` there are titles for what persistence engines go by, which
/// no entry here has.
pub(super) fn connection_titles(engines: bool) -> String {
    let engines = if engines {
        "        pe name          pe_data"
    } else {
        ""
    };
    format!(
        "IPVS connection entries\npro expire {:<11} {:<18} {:<18} destination{engines}\n",
        "state", "source", "virtual"
    )
}

/// A connection entry's line.
pub(super) fn connection(connection: &Connection, names: Option<&Names>) -> String {
    let Connection {
        protocol,
        expires,
        ref state,
        client,
        virtual_address,
        destination,
    } = *connection;
    let name = protocol.map_or_else(|| "IP".to_owned(), |protocol| protocol.to_string());
    let expires = format!("{:02}:{:02}", expires / 60, expires % 60);
    let [source, service, destination] =
        [client, virtual_address, destination].map(|at| endpoint(at.ip(), at.port(), protocol, names));
    format!("{name:<3} {expires:<6} {state:<11} {source:<18} {service:<18} {destination}\n")
}

/// `address:port`, where `names` is given with the names that both have.
pub(super) fn endpoint(
    address: IpAddr,
    port: u16,
    protocol: Option<Protocol>,
    names: Option<&Names>,
) -> String {
    let Some(names) = names else {
        return SocketAddr::new(address, port).to_string();
    };
    let host = names.host_name(address).unwrap_or_else(|| address.to_string());
    let port = names
        .port_name(port, protocol)
        .map_or_else(|| port.to_string(), str::to_owned);
    if address.is_ipv6() {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn cut(name: &str, is_ipv6: bool, width: usize) -> &str {
    match name.char_indices().nth(width) {
        Some((end, _)) if !is_ipv6 => &name[..end],
        _ => name,
    }
}

/// `sh-fallback,sh-port`
pub(super) fn flags(spec: &ServiceSpec) -> String {
    let names: Vec<_> = spec
        .flags
        .iter()
        .map(|&flag| values::flag_name(spec.scheduler, flag))
        .collect();
    names.join(",")
}

/// Connections, packets in and out, bytes in and out. Answers do not pass a director that routes
/// directly, so what goes out is 0, as it is with IPVS.
fn counters(stats: Stats, exact: bool) -> String {
    [stats.connections, stats.packets, 0, stats.bytes, 0]
        .map(|count| number(count, exact))
        .concat()
}

/// The same of rates.
fn rates(rates: Rates) -> [u64; 5] {
    [rates.connections, rates.packets, 0, rates.bytes, 0]
}

fn number(count: u64, exact: bool) -> String {
    if exact {
        exact_number(count)
    } else {
        short_number(count)
    }
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
        assert_eq!(cut("10.0.0.1:a-name-of-a-port", false, 11), "10.0.0.1:a-");
        assert_eq!(cut("10.0.0.1:80", false, 11), "10.0.0.1:80");
        assert_eq!(cut("[fd00::1]:80", true, 4), "[fd00::1]:80");
    }
}
