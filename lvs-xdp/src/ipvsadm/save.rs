//! The rules of `-S`: the commands that make the services and their real servers, as ipvsadm 1.31 writes
//! them. It leaves out thresholds; with `--full` they are there, and so is what ipvsadm has no words for, by options
//! of our own, and the real servers are in the order in which they were added, which `-R` then keeps.

use std::io::{self, Write};

use super::{
    Failure, Names,
    args::Request,
    order,
    output::{endpoint, flags},
};
use crate::api::types::{
    Persistence, Protocol, ServerSpec, Service, ServiceKey, ServiceSpec, Setting, Tunnel, TunnelChecksum,
};

/// Reads the words of `ipvsadm-save`. As the real one, which is a script, it does not look at words that are no
/// option.
pub(super) fn parse(words: &[String]) -> Result<Request, Failure> {
    let (mut numeric, mut full) = (false, false);
    for word in words {
        match word.as_str() {
            "-n" => numeric = true,
            "--full" => full = true,
            word if word.starts_with('-') => {
                return Err(Failure::absent(
                    "ipvsadm-save: Script to save the IPVS table to stdout.\n   \
                     With the -n option, prints out the table in numeric format.\n   \
                     With the --full option, prints out what ipvsadm leaves out, too.",
                ));
            }
            _ => {}
        }
    }
    Ok(Request::Save { numeric, full })
}

/// Writes the commands, each without the program's name.
pub(super) fn rules(
    out: &mut dyn Write,
    services: Vec<Service>,
    full: bool,
    names: Option<&Names>,
) -> io::Result<()> {
    for service in order::services(services) {
        let spec = service.spec;
        let name = name(spec.key, names);
        write_service(out, &name, &spec, full)?;
        let mut servers = service.servers;
        if full {
            // The one that was added last is the first.
            servers.reverse();
        } else {
            servers = order::servers(servers);
        }
        for server in servers {
            write_server(out, &name, spec.key.protocol(), &server.spec, full, names)?;
        }
    }
    Ok(())
}

/// The service's option, `-t 10.0.0.1:80`.
fn name(key: ServiceKey, names: Option<&Names>) -> String {
    match key {
        ServiceKey::Endpoint {
            protocol,
            address,
            port,
        } => {
            let option = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{option} {}", endpoint(address, port, Some(protocol), names))
        }
        // The real one writes those above 2147483647 as negative numbers, which it does not take back.
        ServiceKey::Mark { mark, ipv6: false } => format!("-f {mark}"),
        ServiceKey::Mark { mark, ipv6: true } => format!("-f {mark} -6"),
    }
}

fn write_service(out: &mut dyn Write, name: &str, spec: &ServiceSpec, full: bool) -> io::Result<()> {
    write!(out, "-A {name} -s {}", spec.scheduler)?;
    if let Some(Persistence { timeout, mask }) = spec.persistence {
        write!(out, " -p {timeout}")?;
        if let Some(mask) = mask {
            write!(out, " -M {mask}")?;
        }
    }
    if spec.one_packet {
        write!(out, " -o")?;
    }
    if !spec.flags.is_empty() {
        write!(out, " -b {}", flags(spec))?;
    }
    if full {
        write_own(out, spec)?;
    }
    writeln!(out)
}

fn write_own(out: &mut dyn Write, spec: &ServiceSpec) -> io::Result<()> {
    if let Some(removal) = spec.removal {
        write!(out, " --removal {removal}")?;
    }
    if spec.slow_start > 0 {
        write!(out, " --slow-start {}", spec.slow_start)?;
    }
    if spec.stateless {
        write!(out, " --stateless")?;
    }
    let mut settings = spec.settings;
    let set: Vec<_> = Setting::ALL
        .into_iter()
        .filter_map(|setting| Some(format!("{setting}={}", (*setting.of_service(&mut settings))?)))
        .collect();
    if !set.is_empty() {
        write!(out, " --settings {}", set.join(","))?;
    }
    Ok(())
}

fn write_server(
    out: &mut dyn Write,
    service: &str,
    protocol: Option<Protocol>,
    spec: &ServerSpec,
    full: bool,
    names: Option<&Names>,
) -> io::Result<()> {
    let server = endpoint(spec.key.address, spec.key.port, protocol, names);
    let tunnel = spec.method.tunnel();
    let method = if tunnel.is_some() { "-i" } else { "-g" };
    write!(out, "-a {service} -r {server} {method} -w {}", spec.weight)?;
    if let Some(tunnel) = tunnel {
        write!(out, "{}", options(tunnel))?;
    }
    if full {
        for (option, threshold) in [("-x", spec.upper_threshold), ("-y", spec.lower_threshold)] {
            if threshold > 0 {
                write!(out, " {option} {threshold}")?;
            }
        }
        if let Some(drain) = spec.drain {
            write!(out, " --drain")?;
            if let Some(deadline) = drain.deadline {
                write!(out, " {deadline}")?;
            }
        }
    }
    writeln!(out)
}

/// The options of a tunnel, each with a blank before it.
fn options(tunnel: Tunnel) -> String {
    let mut text = format!(" --tun-type {}", tunnel.kind());
    if let Some(port) = tunnel.port() {
        text += &format!(" --tun-port {port}");
    }
    text += match tunnel.checksum() {
        None => "",
        Some(TunnelChecksum::None) => " --tun-nocsum",
        Some(TunnelChecksum::On) => " --tun-csum",
        Some(TunnelChecksum::Remote) => " --tun-remcsum",
    };
    text
}
