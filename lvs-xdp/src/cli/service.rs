//! `lvs-xdp service ...`.

use std::{io::Write, net::SocketAddr};

use super::{
    Failure,
    args::{ListArgs, ServiceArgs, ServiceOptions, ServiceVerb},
    table::Table,
    value::{ServiceKind, ServiceName, SettingChange},
    write_json,
};
use crate::{
    api::{
        client::{BlockingClient, if_there},
        types::{Change, Persistence, SchedulerFlag, Service, ServiceKey, ServiceSpec, Setting},
    },
    model::objection,
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
            options,
        } => {
            let key = service.key()?;
            if options.netmask.is_some() && options.persistent.is_none() {
                return Err(Failure::Usage("--netmask takes --persistent".to_owned()));
            }
            if matches!(key, ServiceKey::Endpoint { port: 0, .. }) && options.persistent.is_none() {
                return Err(Failure::Usage(
                    "port 0 stands for all ports and takes --persistent: add it, or use a port from 1 to 65535"
                        .to_owned(),
                ));
            }
            let service = options.apply_to(ServiceSpec::new(key, scheduler))?;
            refuse_nonsense(&service)?;
            Change::AddService { service }
        }
        ServiceVerb::Edit {
            service,
            scheduler,
            options,
            no_flags,
            no_persistent,
            no_one_packet,
            no_stateless,
            no_check,
        } => {
            let mut service = find(client, service.key()?)?.spec;
            service.scheduler = scheduler.unwrap_or(service.scheduler);
            if no_flags {
                service.flags.clear();
            }
            if no_persistent {
                service.persistence = None;
            }
            if no_check {
                service.check = None;
            }
            if no_one_packet {
                service.one_packet = false;
            }
            if no_stateless {
                service.stateless = false;
            }
            let service = options.apply_to(service)?;
            refuse_nonsense(&service)?;
            Change::EditService { service }
        }
        ServiceVerb::Delete { service } => Change::DeleteService {
            service: service.key()?,
        },
    };
    Ok(client.change(vec![change])?)
}

impl ServiceArgs {
    pub(super) fn key(&self) -> Result<ServiceKey, Failure> {
        match (self.kind, self.name) {
            (ServiceKind::Protocol(protocol), ServiceName::Address(at)) => {
                Ok(ServiceKey::new(protocol, at.ip(), at.port()))
            }
            (ServiceKind::Mark { ipv6 }, ServiceName::Mark(mark)) => Ok(ServiceKey::Mark { mark, ipv6 }),
            (ServiceKind::Protocol(protocol), ServiceName::Mark(number)) => Err(Failure::Usage(format!(
                "{number} is no virtual address: after {protocol} write address and port, such as 192.168.2.100:80"
            ))),
            (ServiceKind::Mark { .. }, ServiceName::Address(at)) => Err(Failure::Usage(format!(
                "{at} is no mark: write a number, such as `mark 1`"
            ))),
        }
    }
}

impl ServiceOptions {
    /// The service with what was typed in place of what it had.
    fn apply_to(self, mut service: ServiceSpec) -> Result<ServiceSpec, Failure> {
        let Self {
            flags,
            persistent,
            netmask,
            one_packet,
            stateless,
            removal,
            slow_start,
            settings,
            check,
        } = self;
        if !flags.is_empty() {
            service.flags = normal(flags);
        }
        if let Some(timeout) = persistent {
            let mask = service.persistence.and_then(|before| before.mask);
            service.persistence = Some(Persistence { timeout, mask });
        }
        if netmask.is_some() {
            match &mut service.persistence {
                Some(persistence) => persistence.mask = netmask,
                None => {
                    return Err(Failure::Refused(format!(
                        "service {} is not persistent: --netmask takes --persistent",
                        service.key
                    )));
                }
            }
        }
        service.one_packet |= one_packet;
        service.stateless |= stateless;
        service.removal = removal.map_or(service.removal, |choice| choice.0);
        service.slow_start = slow_start.unwrap_or(service.slow_start);
        for SettingChange { setting, value } in settings {
            *setting.of_service(&mut service.settings) = value.0;
        }
        check.apply_to(&mut service)?;
        Ok(service)
    }
}

/// The service of that key, asked for alone: a list of ten thousand others takes the agent a second.
pub(super) fn find(client: &mut BlockingClient, key: ServiceKey) -> Result<Service, Failure> {
    if_there(client.service(key))?.ok_or_else(|| {
        Failure::Refused(format!(
            "no such service: {key}; `lvs-xdp service list` shows what there is"
        ))
    })
}

/// The agent takes all that IPVS takes, for ipvsadm's sake.
fn refuse_nonsense(service: &ServiceSpec) -> Result<(), Failure> {
    match objection(service) {
        Some(objection) => Err(Failure::Refused(objection)),
        None => Ok(()),
    }
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
    let mut table = Table::new(["PROTOCOL", "VIRTUAL", "SCHEDULER", "FLAGS", " SERVERS", "OPTIONS"]);
    for service in services {
        let spec = &service.spec;
        let flags: Vec<_> = spec.flags.iter().map(|&flag| flag_name(flag)).collect();
        table.row([
            protocol(&spec.key),
            endpoint(&spec.key),
            spec.scheduler.to_string(),
            flags.join(","),
            service.servers.len().to_string(),
            options(service),
        ]);
    }
    Ok(table.write(out)?)
}

/// What a service has that others have not, by the names of the options.
fn options(service: &Service) -> String {
    let spec = &service.spec;
    let mut options = Vec::new();
    if let Some(Persistence { timeout, mask }) = spec.persistence {
        options.push(format!("persistent={timeout}"));
        options.extend(mask.map(|mask| format!("netmask={mask}")));
    }
    if spec.one_packet {
        options.push("one-packet".to_owned());
    }
    if spec.stateless {
        options.push("stateless".to_owned());
    }
    options.extend(spec.removal.map(|removal| format!("removal={removal}")));
    if spec.slow_start > 0 {
        options.push(format!("slow-start={}s", spec.slow_start));
    }
    let mut settings = spec.settings;
    for setting in Setting::ALL {
        let value = setting.of_service(&mut settings);
        options.extend(value.map(|value| format!("{setting}={value}")));
    }
    if let Some(check) = &spec.check {
        options.push(format!(
            "check={} interval={}",
            check.probe.name(),
            check.interval
        ));
    }
    if let Some(fallback) = &spec.fallback {
        let is_used = if service.has_fallen_back { " (in use)" } else { "" };
        options.push(format!(
            "quorum={} fallback={}{is_used}",
            spec.quorum, fallback.address
        ));
    }
    options.join(" ")
}

/// What the service is named by, as it is typed: its protocol, or that it is a mark's.
pub(super) fn protocol(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Endpoint { protocol, .. } => protocol.to_string(),
        ServiceKey::Mark { ipv6: false, .. } => "mark".to_owned(),
        ServiceKey::Mark { ipv6: true, .. } => "mark6".to_owned(),
    }
}

/// The service's address and port, or its mark, as they are typed.
pub(super) fn endpoint(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Endpoint { address, port, .. } => SocketAddr::new(address, port).to_string(),
        ServiceKey::Mark { mark, .. } => mark.to_string(),
    }
}

fn flag_name(flag: SchedulerFlag) -> &'static str {
    match flag {
        SchedulerFlag::Fallback => "fallback",
        SchedulerFlag::Port => "port",
        SchedulerFlag::Third => "third",
    }
}
