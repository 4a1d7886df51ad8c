//! `lvs-xdp service ...`.

use std::{io::Write, net::SocketAddr};

use super::{
    Failure,
    args::{ListArgs, ServiceArgs, ServiceVerb},
    table::Table,
    write_json,
};
use crate::api::{
    client::BlockingClient,
    types::{Change, SchedulerFlag, Service, ServiceKey, ServiceSpec},
};

pub(super) fn run(
    verb: ServiceVerb,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let change = match verb {
        ServiceVerb::List(list) => return print(&client.services()?, &list, out),
        ServiceVerb::Add {
            service,
            scheduler,
            flags,
        } => Change::AddService {
            service: ServiceSpec {
                flags: normal(flags),
                ..ServiceSpec::new(service.key(), scheduler)
            },
        },
        ServiceVerb::Edit {
            service,
            scheduler,
            flags,
            no_flags,
        } => {
            let mut service = find(client.services()?, service.key())?.spec;
            service.scheduler = scheduler.unwrap_or(service.scheduler);
            if no_flags || !flags.is_empty() {
                service.flags = normal(flags);
            }
            Change::EditService { service }
        }
        ServiceVerb::Delete { service } => Change::DeleteService {
            service: service.key(),
        },
    };
    Ok(client.change(vec![change])?)
}

impl ServiceArgs {
    pub(super) fn key(&self) -> ServiceKey {
        let Self {
            protocol,
            virtual_address,
        } = *self;
        ServiceKey {
            protocol,
            address: virtual_address.ip(),
            port: virtual_address.port(),
        }
    }
}

/// The service of that key, or the refusal the agent would give.
pub(super) fn find(services: Vec<Service>, key: ServiceKey) -> Result<Service, Failure> {
    services
        .into_iter()
        .find(|service| service.spec.key == key)
        .ok_or_else(|| {
            Failure::Refused(format!(
                "no such service: {key}; `lvs-xdp service list` shows what there is"
            ))
        })
}

/// Flags as the agent keeps them: sorted, without repetition.
fn normal(mut flags: Vec<SchedulerFlag>) -> Vec<SchedulerFlag> {
    flags.sort_unstable();
    flags.dedup();
    flags
}

fn print(services: &[Service], list: &ListArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if list.json {
        return write_json(services, out);
    }
    let mut table = Table::new(["PROTOCOL", "VIRTUAL", "SCHEDULER", "FLAGS", " SERVERS"]);
    for service in services {
        let ServiceSpec {
            key,
            scheduler,
            flags,
            ..
        } = &service.spec;
        let flags: Vec<_> = flags.iter().map(|&flag| flag_name(flag)).collect();
        table.row([
            key.protocol.to_string(),
            endpoint(key),
            scheduler.to_string(),
            flags.join(","),
            service.servers.len().to_string(),
        ]);
    }
    Ok(table.write(out)?)
}

/// The service's address and port, as they are typed.
pub(super) fn endpoint(key: &ServiceKey) -> String {
    SocketAddr::new(key.address, key.port).to_string()
}

fn flag_name(flag: SchedulerFlag) -> &'static str {
    match flag {
        SchedulerFlag::Fallback => "fallback",
        SchedulerFlag::Port => "port",
    }
}
