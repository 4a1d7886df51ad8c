//! `lvs-xdp server ...`.

use std::io::Write;

use serde::Serialize;

use super::{
    Failure,
    args::{RealServer, ServerVerb, ServiceArgs, ThresholdArgs, TunnelArgs},
    drain,
    service::{endpoint, find, protocol},
    table::Table,
    write_json,
};
use crate::api::{
    client::BlockingClient,
    types::{
        Change, CheckState, Drain, ForwardingMethod, Server, ServerKey, ServerSpec, ServerState, Service,
        ServiceKey, Tunnel, TunnelChecksum, TunnelKind,
    },
};

pub(super) fn run(verb: ServerVerb, client: &mut BlockingClient, out: &mut dyn Write) -> Result<(), Failure> {
    let change = match verb {
        ServerVerb::List { kind, name, list } => {
            // The definition of the arguments lets neither come alone.
            let services = match (kind, name) {
                (Some(kind), Some(name)) => vec![find(client, ServiceArgs { kind, name }.key()?)?],
                _ => client.services()?,
            };
            return print(&services, list.json, out);
        }
        ServerVerb::Add {
            service,
            server,
            weight,
            thresholds,
            tunnel,
            check,
            force,
        } => {
            let service = service.key()?;
            let key = key(server, service)?;
            if matches!(service, ServiceKey::Endpoint { address, .. } if address == key.address) {
                return Err(Failure::Refused(format!(
                    "real server {key} has the virtual address of its service: use the real server's own address"
                )));
            }
            let mut server = ServerSpec::new(key, weight);
            thresholds.apply_to(&mut server);
            server.method = tunnel.method()?.unwrap_or_default();
            if let Some(check) = check {
                check.apply_to(&mut server);
            }
            Change::AddServer {
                service,
                server,
                require_on_link: !force,
            }
        }
        ServerVerb::Edit {
            service,
            server,
            weight,
            thresholds,
            tunnel,
            no_tunnel,
            check,
        } => {
            let service = service.key()?;
            let key = key(server, service)?;
            let found = find(client, service)?.servers.into_iter();
            let mut server = found
                .map(|server| server.spec)
                .find(|spec| spec.key == key)
                .ok_or_else(|| {
                    Failure::Refused(format!(
                        "no such real server: {key} in {service}; `lvs-xdp server list` shows what there is"
                    ))
                })?;
            server.weight = weight.unwrap_or(server.weight);
            server.drain = None;
            thresholds.apply_to(&mut server);
            server.method = match tunnel.method()? {
                Some(method) => method,
                None if no_tunnel => ForwardingMethod::Dr,
                None => server.method,
            };
            if let Some(check) = check {
                check.apply_to(&mut server);
            }
            Change::EditServer { service, server }
        }
        ServerVerb::Drain {
            service,
            server,
            deadline,
            wait,
            json,
        } => {
            let service = service.key()?;
            let key = key(server, service)?;
            return drain::run(service, key, deadline, wait, json, client, out);
        }
        ServerVerb::Delete { service, server } => {
            let service = service.key()?;
            Change::DeleteServer {
                service,
                server: key(server, service)?,
            }
        }
    };
    Ok(client.change(vec![change])?)
}

impl ThresholdArgs {
    /// Puts what was typed in place of what the server had.
    fn apply_to(&self, server: &mut ServerSpec) {
        server.upper_threshold = self.upper_threshold.unwrap_or(server.upper_threshold);
        server.lower_threshold = self.lower_threshold.unwrap_or(server.lower_threshold);
    }
}

impl TunnelArgs {
    /// The method that was typed.
    fn method(&self) -> Result<Option<ForwardingMethod>, Failure> {
        let Self {
            tunnel,
            tunnel_port,
            tunnel_checksum,
        } = *self;
        let tunnel = match (tunnel, tunnel_port, tunnel_checksum) {
            (None, ..) => return Ok(None),
            (Some(TunnelKind::Ipip), None, None) => Tunnel::Ipip,
            (Some(TunnelKind::Ipip), ..) => {
                return Err(Failure::Usage(
                    "--tunnel ipip has neither a port nor a checksum: leave --tunnel-port and \
                     --tunnel-checksum out"
                        .to_owned(),
                ));
            }
            (Some(TunnelKind::Gue), Some(port), checksum) => Tunnel::Gue {
                port,
                checksum: checksum.unwrap_or_default(),
            },
            (Some(TunnelKind::Gue), None, _) => {
                return Err(Failure::Usage(
                    "--tunnel gue needs the port on which the real server takes it: add --tunnel-port"
                        .to_owned(),
                ));
            }
            (Some(TunnelKind::Gre), None, None | Some(TunnelChecksum::None)) => {
                Tunnel::Gre { checksum: false }
            }
            (Some(TunnelKind::Gre), None, Some(TunnelChecksum::On)) => Tunnel::Gre { checksum: true },
            (Some(TunnelKind::Gre), ..) => {
                return Err(Failure::Usage(
                    "--tunnel gre has no port, and --tunnel-checksum none or on".to_owned(),
                ));
            }
        };
        Ok(Some(ForwardingMethod::Tunnel(tunnel)))
    }
}

/// The real server as the agent knows it: its port is the service's. In a mark's service, which has many, it may be
/// named by any.
fn key(server: RealServer, service: ServiceKey) -> Result<ServerKey, Failure> {
    let RealServer { address, port } = server;
    let own = match service {
        ServiceKey::Endpoint { port, .. } => port,
        ServiceKey::Mark { .. } => port.unwrap_or(0),
    };
    if let Some(port) = port.filter(|&port| port != own) {
        return Err(Failure::Usage(format!(
            "neither direct routing nor a tunnel changes the port: the real server's is {own} as the service's, not {port}"
        )));
    }
    Ok(ServerKey { address, port: own })
}

/// A real server with the service it is in, as `server list --json` has it.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    service: ServiceKey,
    #[serde(flatten)]
    server: &'a Server,
}

fn print(services: &[Service], json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let servers = services.iter().flat_map(|service| {
        service.servers.iter().map(|server| Listed {
            service: service.spec.key,
            server,
        })
    });
    if json {
        return write_json(&servers.collect::<Vec<_>>(), out);
    }
    let mut table = Table::new([
        "PROTOCOL",
        "VIRTUAL",
        "REAL SERVER",
        "METHOD",
        " WEIGHT",
        " EFFECTIVE",
        "STATE",
        "MAC",
        "INTERFACE",
        " ACTIVE",
        " INACTIVE",
        " PERSISTENT",
        "THRESHOLDS",
        "DRAINING",
    ]);
    for Listed { service, server } in servers {
        table.row([
            protocol(&service),
            endpoint(&service),
            server.spec.key.to_string(),
            server.spec.method.to_string(),
            server.spec.weight.to_string(),
            effective(server),
            state(server).to_owned(),
            server.mac.clone().unwrap_or_default(),
            server.interface.clone().unwrap_or_default(),
            server.active.to_string(),
            server.inactive.to_string(),
            server.persistent.to_string(),
            thresholds(&server.spec),
            draining(server.spec.drain, drain::seconds_since_1970()),
        ]);
    }
    Ok(table.write(out)?)
}

/// The effective weight, where it is not the configured one.
fn effective(server: &Server) -> String {
    if server.effective_weight == server.spec.weight {
        return String::new();
    }
    server.effective_weight.to_string()
}

/// The upper and the lower threshold, where there are any.
fn thresholds(spec: &ServerSpec) -> String {
    match (spec.upper_threshold, spec.lower_threshold) {
        (0, _) => String::new(),
        (upper, 0) => upper.to_string(),
        (upper, lower) => format!("{upper},{lower}"),
    }
}

/// Whether it is being drained, and how long that may go on.
fn draining(drain: Option<Drain>, now: u64) -> String {
    match drain {
        None => String::new(),
        Some(Drain { deadline: None }) => "yes".to_owned(),
        Some(Drain {
            deadline: Some(deadline),
        }) => format!("yes,{}s", deadline.saturating_sub(now)),
    }
}

/// What is known of the way to it; of one that can be reached, whether its check says that it is down.
fn state(server: &Server) -> &'static str {
    match server.state {
        ServerState::Ready | ServerState::Local if server.health == Some(CheckState::Down) => "down",
        ServerState::Ready => "ready",
        ServerState::Local => "local",
        ServerState::Resolving => "resolving",
        ServerState::Unreachable => "unreachable",
        ServerState::NotOnLink => "not-on-link",
    }
}
