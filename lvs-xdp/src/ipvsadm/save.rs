//! The rules of `-S`: the commands that make the services and their real servers, as ipvsadm 1.31 writes
//! them. Thresholds are not among them, nor what ipvsadm has no words for.

use std::io::{self, Write};

use super::{
    Names, order,
    output::{endpoint, flags},
};
use crate::api::types::{Persistence, Protocol, Service, Tunnel, TunnelChecksum};

/// Writes the commands, each without the program's name.
pub(super) fn rules(out: &mut dyn Write, services: Vec<Service>, names: Option<&Names>) -> io::Result<()> {
    for service in order::services(services) {
        let spec = service.spec;
        let key = spec.key;
        let option = match key.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        };
        let name = endpoint(key.address, key.port, key.protocol, names);
        write!(out, "-A {option} {name} -s {}", spec.scheduler)?;
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
            write!(out, " -b {}", flags(&spec))?;
        }
        writeln!(out)?;
        for server in order::servers(service.servers) {
            let spec = server.spec;
            let server = endpoint(spec.key.address, spec.key.port, key.protocol, names);
            let tunnel = spec.method.tunnel();
            let method = if tunnel.is_some() { "-i" } else { "-g" };
            write!(out, "-a {option} {name} -r {server} {method} -w {}", spec.weight)?;
            if let Some(tunnel) = tunnel {
                write!(out, "{}", options(tunnel))?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
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
