//! keepalived.conf: its virtual servers, by keepalived.conf(5) of keepalived 2.
//!
//! [`text`] makes a tree of the text, [`service`] takes a block `virtual_server` apart, [`check`] what tests its real
//! servers. Here a table is made of it all: what the model refuses is named and left out, so that what comes out of an
//! import can be applied.

mod check;
mod service;
mod text;
mod value;

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use self::{
    service::{RealServer, VirtualServer},
    text::Directive,
};
use super::{Context, Fault, Imported, Place, Table};
use crate::api::types::{
    Change, Check, Protocol, ServerCheck, ServerKey, ServerSpec, ServiceKey, ServiceSpec,
};

/// The most services that are made of groups.
const MOST_SERVICES: usize = 1 << 16;

/// What a virtual server is for: one of these for each service that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Address(IpAddr, u16),
    Mark(u32),
}

pub(super) fn import(text: &str, context: Context<'_>) -> Result<Imported, Fault> {
    let mut table = Table::new();
    let tree = text::parse(text, context, &mut table.notes)?;
    let mut groups = BTreeMap::new();
    for directive in tree.iter().filter(|item| item.name() == "virtual_server_group") {
        let targets = group(directive, &mut table);
        match directive.word(1) {
            Some(name) if !groups.contains_key(name) => drop(groups.insert(name, targets)),
            Some(name) => table.note(
                &directive.place,
                format!("virtual_server_group {name}: not taken over: there is one of that name before"),
            ),
            None => table.note(
                &directive.place,
                "virtual_server_group: not taken over: it has no name",
            ),
        }
    }
    let mut used = HashSet::new();
    for directive in &tree {
        match directive.name() {
            "virtual_server_group" => {}
            "virtual_server" => {
                let targets = targets(directive, &groups, &mut used, &mut table);
                if !targets.is_empty() {
                    virtual_server(directive, &targets, &mut table);
                }
            }
            name => {
                let whole = directive.words.join(" ");
                let rest = directive
                    .block
                    .as_ref()
                    .map_or("", |_| ", with all that is in it");
                let why = why_not(name);
                table.note(&directive.place, format!("{whole}: not taken over{rest}: {why}"));
            }
        }
    }
    for directive in tree.iter().filter(|item| item.name() == "virtual_server_group") {
        if let Some(name) = directive.word(1).filter(|name| !used.contains(*name)) {
            table.note(
                &directive.place,
                format!("virtual_server_group {name}: not taken over: no virtual_server is of it"),
            );
        }
    }
    Ok(table.imported())
}

/// Why a block beside the virtual servers is not taken over.
fn why_not(name: &str) -> &'static str {
    match name {
        "vrrp_instance" | "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" | "vrrp_track_file" => {
            "moving addresses between directors (VRRP) stays with keepalived"
        }
        "static_ipaddress" | "static_routes" | "static_rules" | "interface_up_down_delays" => {
            "addresses, routes and rules of the host are no part of the table"
        }
        "SSL" => {
            "checks over TLS have no certificates of their own; `tls.ca` says who may have issued the server's"
        }
        "global_defs" => "there is nothing of it in the table",
        _ => "it is no part of the table",
    }
}

/// What a group stands for.
fn group(directive: &Directive, table: &mut Table) -> Vec<Target> {
    let mut targets = Vec::new();
    for item in directive.inside() {
        let words: Vec<_> = item.words.iter().map(String::as_str).collect();
        let found = match words[..] {
            _ if item.block.is_some() => None,
            ["fwmark", mark] => mark.parse().ok().map(|mark| vec![Target::Mark(mark)]),
            [range] => addresses(range, 0),
            [range, port] => port.parse().ok().and_then(|port| addresses(range, port)),
            _ => None,
        };
        match found {
            Some(found) => targets.extend(found),
            None => table.note(
                &item.place,
                format!(
                    "{}: not taken over: it is no address with its port, and no mark",
                    words.join(" ")
                ),
            ),
        }
    }
    targets
}

/// The addresses of `192.0.2.1-10`, or of `2001:db8::1-a`.
fn addresses(range: &str, port: u16) -> Option<Vec<Target>> {
    let (first, last) = range.split_once('-').unwrap_or((range, ""));
    let first: IpAddr = first.parse().ok()?;
    let target = |address: IpAddr| Target::Address(address, port);
    if !range.contains('-') {
        return Some(vec![target(first)]);
    }
    match first {
        IpAddr::V4(first) => {
            let [a, b, c, d] = first.octets();
            let last: u8 = last.parse().ok().filter(|last| *last >= d)?;
            Some(
                (d..=last)
                    .map(|d| target(Ipv4Addr::new(a, b, c, d).into()))
                    .collect(),
            )
        }
        IpAddr::V6(first) => {
            let bits = first.to_bits();
            let low = bits & 0xffff;
            let last = u16::from_str_radix(last, 16).ok().map(u128::from)?;
            (last >= low).then(|| {
                (low..=last)
                    .map(|part| target(Ipv6Addr::from_bits(bits & !0xffff | part).into()))
                    .collect()
            })
        }
    }
}

/// What a block `virtual_server` is for; none is named.
fn targets<'a>(
    directive: &'a Directive,
    groups: &BTreeMap<&str, Vec<Target>>,
    used: &mut HashSet<&'a str>,
    table: &mut Table,
) -> Vec<Target> {
    let words: Vec<_> = directive.words.iter().map(String::as_str).collect();
    let found = match words[1..] {
        ["group", name] => {
            used.insert(name);
            groups.get(name).cloned()
        }
        ["fwmark", mark] => mark.parse().ok().map(|mark| vec![Target::Mark(mark)]),
        [address] => address
            .parse()
            .ok()
            .map(|address| vec![Target::Address(address, 0)]),
        [address, port] => match (address.parse(), port.parse()) {
            (Ok(address), Ok(port)) => Some(vec![Target::Address(address, port)]),
            _ => None,
        },
        _ => None,
    };
    let Some(found) = found else {
        let whole = words.join(" ");
        table.note(
            &directive.place,
            format!(
                "{whole}: not taken over, with all that is in it: it is no address with its port, no `fwmark` and no \
                 group that there is"
            ),
        );
        return Vec::new();
    };
    if table.model.services().size() + found.len() > MOST_SERVICES {
        table.note(
            &directive.place,
            format!(
                "{}: not taken over, with all that is in it: with it there would be more than {MOST_SERVICES} services",
                words.join(" ")
            ),
        );
        return Vec::new();
    }
    found
}

/// Makes the services of a block.
fn virtual_server(directive: &Directive, targets: &[Target], table: &mut Table) {
    let block = VirtualServer::read(directive, table);
    for target in targets {
        let key = match *target {
            Target::Address(address, port) => {
                ServiceKey::new(block.protocol.unwrap_or(Protocol::Tcp), address, port)
            }
            Target::Mark(mark) => {
                table.note(
                    &directive.place,
                    format!(
                        "service of mark {mark} is taken over, but not the firewall's rules that give the mark: see \
                         `lvs-xdp mark add --help`"
                    ),
                );
                ServiceKey::Mark {
                    mark,
                    ipv6: block.is_ipv6(),
                }
            }
        };
        make_service(&directive.place, key, &block, table);
    }
}

/// Makes one service and its real servers; what the model refuses is left out.
fn make_service(place: &Place, key: ServiceKey, block: &VirtualServer, table: &mut Table) {
    let servers: Vec<(&RealServer, Option<Check>)> = block
        .servers
        .iter()
        .map(|server| {
            (
                server,
                server
                    .checked
                    .as_ref()
                    .map(|checked| checked.of(key, server.port)),
            )
        })
        .collect();
    let common = common_check(&servers);
    let fallback = block.fallback(key, table);
    let mut spec = ServiceSpec {
        check: common.clone().map(Box::new),
        quorum: block.quorum(fallback.is_some(), table),
        fallback,
        ..block.spec(key)
    };
    loop {
        let service = spec.clone();
        let Err(error) = table.make(Change::AddService { service }) else {
            break;
        };
        // What is least is left out first, and said.
        if spec.check.take().is_some() {
            table.note(
                place,
                format!("the check of service {key} is not taken over: {}", error.message),
            );
        } else if spec.fallback.take().is_some() {
            spec.quorum = 1;
            table.note(
                place,
                format!(
                    "the sorry_server of service {key} is not taken over: {}",
                    error.message
                ),
            );
        } else {
            table.note(
                place,
                format!("service {key} is not taken over: {}", error.message),
            );
            return;
        }
    }
    for (server, check) in servers {
        make_server(&spec, server, check, table);
    }
}

/// The check of most real servers.
fn common_check(servers: &[(&RealServer, Option<Check>)]) -> Option<Check> {
    let mut counts: Vec<(&Check, usize)> = Vec::new();
    for (_, check) in servers {
        let Some(check) = check else { continue };
        match counts.iter_mut().find(|(other, _)| *other == check) {
            Some((_, count)) => *count += 1,
            None => counts.push((check, 1)),
        }
    }
    // Of two the first, so that a file always means the same.
    let most = counts.iter().map(|(_, count)| *count).max()?;
    let (check, _) = counts.into_iter().find(|(_, count)| *count == most)?;
    Some(check.clone())
}

fn make_server(service: &ServiceSpec, server: &RealServer, check: Option<Check>, table: &mut Table) {
    let key = service.key;
    let Some(method) = server.method else { return };
    let port = match key {
        ServiceKey::Endpoint { port, .. } => port,
        ServiceKey::Mark { .. } => server.port,
    };
    if port != server.port {
        let asks = if check.is_some() {
            "; the check asks it"
        } else {
            ""
        };
        table.note(
            &server.place,
            format!(
                "real server {} of service {key}: its port {} is not taken over: packets arrive at the port that the \
                 client used{asks}",
                server.address, server.port
            ),
        );
    }
    let mut spec = ServerSpec {
        method,
        upper_threshold: server.upper_threshold,
        lower_threshold: server.lower_threshold,
        check: own_check(key, service.check.as_deref(), check).map(Box::new),
        ..ServerSpec::new(
            ServerKey {
                address: server.address,
                port,
            },
            server.weight,
        )
    };
    loop {
        let change = Change::AddServer {
            service: key,
            server: spec.clone(),
            require_on_link: false,
        };
        let Err(error) = table.make(change) else { return };
        let whose = format!("real server {} of service {key}", spec.key);
        if spec.check.take().is_some() {
            table.note(
                &server.place,
                format!("the check of {whose} is not taken over: {}", error.message),
            );
        } else {
            table.note(
                &server.place,
                format!("{whose} is not taken over: {}", error.message),
            );
            return;
        }
    }
}

/// What a real server's check has that its service's has not.
fn own_check(key: ServiceKey, service: Option<&Check>, own: Option<Check>) -> Option<ServerCheck> {
    let Some(own) = own else {
        return service.map(|_| ServerCheck {
            off: true,
            ..ServerCheck::default()
        });
    };
    if service == Some(&own) {
        return None;
    }
    // Without a service's check all is as by default that is not said.
    let of_service = service.cloned().unwrap_or_else(|| Check::new(own.probe.clone()));
    let differs = |yes: bool| yes.then_some(());
    Some(ServerCheck {
        off: false,
        target: differs(own.target != of_service.target).map(|()| own.target),
        port: differs(own.port != of_service.port).map(|()| own.port.unwrap_or(key.port())),
        interval: differs(own.interval != of_service.interval).map(|()| own.interval),
        timeout: differs(own.timeout != of_service.timeout).map(|()| own.timeout),
        rise: differs(own.rise != of_service.rise).map(|()| own.rise),
        fall: differs(own.fall != of_service.fall).map(|()| own.fall),
        jitter: differs(own.jitter != of_service.jitter).map(|()| own.jitter),
        initial: differs(own.initial != of_service.initial).map(|()| own.initial),
        on_failure: differs(own.on_failure != of_service.on_failure).map(|()| own.on_failure),
        probe: (service.is_none() || own.probe != of_service.probe).then_some(own.probe),
    })
}
