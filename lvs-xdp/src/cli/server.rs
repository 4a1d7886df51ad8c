//! `lvs-xdp server ...`.

use std::io::Write;

use serde::Serialize;

use super::{
    Failure,
    args::{RealServer, ServerVerb, ServiceArgs},
    service::{endpoint, find},
    table::Table,
    write_json,
};
use crate::api::{
    client::BlockingClient,
    types::{Change, Server, ServerKey, ServerSpec, ServerState, Service, ServiceKey},
};

pub(super) fn run(verb: ServerVerb, client: &mut BlockingClient, out: &mut dyn Write) -> Result<(), Failure> {
    let change =
        match verb {
            ServerVerb::List {
                protocol,
                virtual_address,
                list,
            } => {
                let mut services = client.services()?;
                // The definition of the arguments lets neither come alone.
                if let (Some(protocol), Some(virtual_address)) = (protocol, virtual_address) {
                    services = vec![find(
                        services,
                        ServiceArgs {
                            protocol,
                            virtual_address,
                        }
                        .key(),
                    )?];
                }
                return print(&services, list.json, out);
            }
            ServerVerb::Add {
                service,
                server,
                weight,
                force,
            } => {
                let service = service.key();
                let key = key(server, service)?;
                let server = ServerSpec::new(key, weight);
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
            } => {
                let service = service.key();
                let key = key(server, service)?;
                let found = find(client.services()?, service)?;
                let server = found.servers.into_iter().find(|server| server.spec.key == key).ok_or_else(|| {
                Failure::Refused(format!(
                    "no such real server: {key} in {service}; `lvs-xdp server list` shows what there is"
                ))
            })?;
                Change::EditServer {
                    service,
                    server: ServerSpec {
                        weight,
                        ..server.spec
                    },
                }
            }
            ServerVerb::Delete { service, server } => {
                let service = service.key();
                Change::DeleteServer {
                    service,
                    server: key(server, service)?,
                }
            }
        };
    Ok(client.change(vec![change])?)
}

/// The real server as the agent knows it: with direct routing its port is the service's.
fn key(server: RealServer, service: ServiceKey) -> Result<ServerKey, Failure> {
    let RealServer { address, port } = server;
    if let Some(port) = port.filter(|&port| port != service.port) {
        return Err(Failure::Usage(format!(
            "direct routing keeps the port: the real server's is {} as the service's, not {port}",
            service.port
        )));
    }
    Ok(ServerKey {
        address,
        port: service.port,
    })
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
        " WEIGHT",
        "STATE",
        "MAC",
        "INTERFACE",
        " ACTIVE",
        " INACTIVE",
    ]);
    for Listed { service, server } in servers {
        table.row([
            service.protocol.to_string(),
            endpoint(&service),
            server.spec.key.to_string(),
            server.spec.weight.to_string(),
            state(server.state).to_owned(),
            server.mac.clone().unwrap_or_default(),
            server.interface.clone().unwrap_or_default(),
            server.active.to_string(),
            server.inactive.to_string(),
        ]);
    }
    Ok(table.write(out)?)
}

fn state(state: ServerState) -> &'static str {
    match state {
        ServerState::Ready => "ready",
        ServerState::Resolving => "resolving",
        ServerState::Unreachable => "unreachable",
        ServerState::NotOnLink => "not-on-link",
    }
}
