//! What the agent says of its state: services with their real servers, and the status.

use std::{collections::BTreeSet, net::IpAddr};

use super::{State, tunnels::reach};
use crate::{
    api::types::{ApiError, Server, ServerSpec, ServerState, Service, ServiceKey, Stats, Status},
    dataplane,
    model::{ServiceEntry, no_such_service},
    neighbour::{self, Resolution},
};

impl State {
    /// One service, or all.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NoSuchService`].
    pub(super) fn services(&self, only: Option<ServiceKey>) -> Result<Vec<Service>, ApiError> {
        let services = self.model.services();
        match only {
            None => Ok(services.values().map(|entry| self.service(entry)).collect()),
            Some(key) => match services.get(&key) {
                Some(entry) => Ok(vec![self.service(entry)]),
                None => Err(no_such_service(&key)),
            },
        }
    }

    fn service(&self, entry: &ServiceEntry) -> Service {
        let key = &entry.spec.key;
        let servers: Vec<_> = entry
            .servers
            .iter()
            .map(|server| self.server(key, server))
            .collect();
        // A server that its check has taken out of the list is listed here all the same.
        let destinations = entry.destinations();
        let ids = destinations.filter_map(|server| self.compiler.destination(key, &server.key));
        let ids: BTreeSet<_> = ids.chain(self.compiler.leftovers(key)).collect();
        let parts = ids.into_iter().map(|id| self.dataplane.stats(id));
        Service {
            spec: entry.spec.clone(),
            stats: parts.fold(self.compiler.retired(key), sum),
            rates: self.service_rates(key),
            has_fallen_back: self.fallen_back.contains(key),
            servers,
        }
    }

    fn server(&self, service: &ServiceKey, spec: &ServerSpec) -> Server {
        let id = self.compiler.destination(service, &spec.key);
        let (active, inactive) = id.map(|id| self.compiler.counts(id)).unwrap_or_default();
        let (state, mac, interface) = match reach(&self.neighbours, spec) {
            Some(Resolution::Ready { mac, interface, .. }) => (
                ServerState::Ready,
                Some(dataplane::mac_text(mac)),
                Some(interface),
            ),
            Some(Resolution::Local) => (ServerState::Local, None, None),
            Some(Resolution::Unreachable) => (ServerState::Unreachable, None, None),
            Some(Resolution::NotOnLink(_)) => (ServerState::NotOnLink, None, None),
            Some(Resolution::Resolving) | None => (ServerState::Resolving, None, None),
        };
        let (stats, handshakes) = id.map(|id| self.dataplane.counted(id)).unwrap_or_default();
        Server {
            spec: spec.clone(),
            state,
            mac,
            interface,
            active,
            inactive,
            persistent: id.map_or(0, |id| self.compiler.templates(id)),
            effective_weight: self.compiler.effective_weight(service, &spec.key).unwrap_or(0),
            health: self.checks.known(service, &spec.key),
            stats,
            handshakes,
            rates: id.map(|id| self.destination_rates(id)).unwrap_or_default(),
        }
    }

    /// Why a server gets nothing, where it can get nothing.
    fn fault(&self, address: IpAddr, is_tunnelled: bool) -> Option<String> {
        let why = match (self.neighbours.reach(address, is_tunnelled)?, is_tunnelled) {
            (Resolution::Unreachable, false) => format!(
                "it does not answer {}: it gets no new connections",
                neighbour::protocol(address)
            ),
            (Resolution::Unreachable, true) => {
                let path = self.neighbours.path(address);
                let hop = path.and_then(|path| path.gateway).unwrap_or(address);
                format!(
                    "{hop}, the next hop of its tunnel, does not answer {}: it gets no new connections",
                    neighbour::protocol(hop)
                )
            }
            (Resolution::NotOnLink(why), false) => format!("direct routing cannot reach it: {why}"),
            (Resolution::NotOnLink(why), true) => format!("its tunnel has no way: {why}"),
            (Resolution::Resolving | Resolution::Local | Resolution::Ready { .. }, _) => return None,
        };
        Some(format!("real server {address}: {why}"))
    }

    /// The interfaces that the program should be on and is not.
    fn detached(&self) -> Vec<String> {
        let is_attached = |name: &String| self.dataplane.attached().any(|attached| attached.name == *name);
        let missing = self.interfaces.iter().filter(|name| !is_attached(name));
        missing.cloned().collect()
    }

    pub(super) fn status(&self) -> Status {
        let capacity = self.dataplane.capacity();
        let generic = self.dataplane.attached().filter_map(|attached| {
            let reason = attached.reason.as_ref()?;
            Some(format!(
                "{} is in generic mode, which is slower: {reason}",
                attached.name
            ))
        });
        let faults: BTreeSet<_> = (self.uses.ways())
            .flat_map(|(address, is_direct, is_tunnelled)| {
                let direct = is_direct.then(|| self.fault(address, false));
                let tunnelled = is_tunnelled.then(|| self.fault(address, true));
                direct.into_iter().chain(tunnelled).flatten()
            })
            .collect();
        let unhealthy = self.checks.complaints().map(|(service, server, complaint)| {
            format!("real server {server} of service {service} {complaint}")
        });
        let fallen_back = (self.fallen_back.iter()).map(|key| {
            format!("service {key} has fewer usable real servers than its quorum: its fallback is in use")
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            abi: dataplane::LAYOUT,
            program_id: self.dataplane.program_id().unwrap_or(0),
            pin_dir: self.config.pin_dir.display().to_string(),
            interfaces: self.dataplane.interfaces(),
            detached: self.detached(),
            vips: self.vip_states(),
            connections: self.connections,
            connection_capacity: u64::from(capacity.connections),
            tables: self.compiler.fill(),
            timeouts: self.model.timeouts(),
            settings: self.model.settings(),
            services: self.model.services().size() as u64,
            servers: self
                .model
                .services()
                .values()
                .map(|entry| entry.servers.len() as u64)
                .sum(),
            reasons: self.dataplane.reasons(),
            warnings: self
                .warnings
                .iter()
                .cloned()
                .chain(generic)
                .chain(faults)
                .chain(unhealthy)
                .chain(fallen_back)
                .collect(),
        }
    }
}

pub(super) fn sum(a: Stats, b: Stats) -> Stats {
    Stats {
        connections: a.connections + b.connections,
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}
