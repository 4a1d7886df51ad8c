//! What is only looked at: `lvs-xdp status` and `lvs-xdp stats`.

use std::io::Write;

use serde::Serialize;

use super::{
    Failure,
    args::ListArgs,
    service::{endpoint, protocol},
    table::Table,
    write_json,
};
use crate::api::types::{
    InterfaceStatus, ServerKey, Service, ServiceKey, Stats, Status, VipState, VipStatus,
};

pub(super) fn status(status: &Status, list: &ListArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if list.json {
        return write_json(status, out);
    }
    let Status {
        version,
        pid,
        abi,
        program_id,
        services,
        servers,
        ..
    } = status;
    writeln!(
        out,
        "Agent {version}, process {pid}; program {program_id}, layout of the maps {abi}"
    )?;

    writeln!(out, "\nInterfaces")?;
    for InterfaceStatus {
        name, mode, reason, ..
    } in &status.interfaces
    {
        let reason = reason
            .as_ref()
            .map(|reason| format!(" (no native mode: {reason})"))
            .unwrap_or_default();
        writeln!(out, "  {name}: {mode}{reason}")?;
    }

    let is_ours = |vip: &VipStatus| matches!(vip.state, VipState::Announced | VipState::Withdrawn);
    // Where the program announces nothing there is nothing to say.
    if status.vips.iter().any(is_ours) {
        writeln!(out, "\nVirtual addresses")?;
        for VipStatus { address, state } in &status.vips {
            let told = match state {
                VipState::Announced => "announced",
                VipState::Withdrawn => "withdrawn: no real server is usable",
                VipState::Host => "answered by the host",
                VipState::Silent => "not answered: it has no service",
            };
            writeln!(out, "  {address}: {told}")?;
        }
    }

    let (connections, capacity) = (status.connections, status.connection_capacity);
    // A fill in per cent needs no more than a float's 52 bits.
    let fill = 100.0 * connections as f64 / capacity.max(1) as f64;
    writeln!(out, "\nTables")?;
    writeln!(out, "  connections:  {connections} of {capacity} ({fill:.1} %)")?;
    writeln!(out, "  services:     {services}")?;
    writeln!(out, "  real servers: {servers}")?;

    let seen = status.reasons.iter().filter(|reason| reason.packets > 0);
    let mut packets = Table::new(["VERDICT", "REASON", " PACKETS", "MEANING"]);
    for reason in seen {
        packets.row([
            reason.verdict.clone(),
            reason.name.clone(),
            reason.packets.to_string(),
            reason.help.clone(),
        ]);
    }
    writeln!(out, "\nPackets")?;
    if packets.is_empty() {
        writeln!(out, "  none yet")?;
    } else {
        packets.write_indented(out)?;
    }

    if !status.warnings.is_empty() {
        writeln!(out, "\nWarnings")?;
    }
    for warning in &status.warnings {
        writeln!(out, "  {warning}")?;
    }
    Ok(())
}

/// The counters of a service, as `stats --json` has them.
#[derive(Debug, Serialize)]
struct ServiceStats {
    #[serde(flatten)]
    service: ServiceKey,
    stats: Stats,
    servers: Vec<ServerStats>,
}

/// The counters of one of its real servers.
#[derive(Debug, Serialize)]
struct ServerStats {
    #[serde(flatten)]
    server: ServerKey,
    stats: Stats,
}

pub(super) fn stats(services: &[Service], list: &ListArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if list.json {
        let stats = services.iter().map(|service| ServiceStats {
            service: service.spec.key,
            stats: service.stats,
            servers: service
                .servers
                .iter()
                .map(|server| ServerStats {
                    server: server.spec.key,
                    stats: server.stats,
                })
                .collect(),
        });
        return write_json(&stats.collect::<Vec<_>>(), out);
    }
    let mut table = Table::new([
        "PROTOCOL",
        "VIRTUAL",
        "REAL SERVER",
        " CONNECTIONS",
        " PACKETS",
        " BYTES",
    ]);
    for service in services {
        let (key, stats) = (service.spec.key, service.stats);
        let mut row = |server: &str, stats: Stats| {
            table.row([
                protocol(&key),
                endpoint(&key),
                server.to_owned(),
                stats.connections.to_string(),
                stats.packets.to_string(),
                stats.bytes.to_string(),
            ]);
        };
        // The service's own line counts servers that were removed as well.
        row("all", stats);
        for server in &service.servers {
            row(&server.spec.key.to_string(), server.stats);
        }
    }
    Ok(table.write(out)?)
}
