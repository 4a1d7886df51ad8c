//! Real servers behind tunnels: their packets go to a router, or to a neighbour that is the server itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tracing::{info, warn};

use super::{State, is_usable};
use crate::{
    api::types::{ServerSpec, ServiceKey},
    dataplane::compile::{TunnelWay, Way},
    model::Model,
    neighbour::{Neighbours, OffLink, Resolution},
};

/// The longest packet that IP has a length for.
const LONGEST: u32 = u16::MAX as u32;

/// What is known of the way to a server by the method that it has.
pub(super) fn reach(neighbours: &Neighbours, server: &ServerSpec) -> Option<Resolution> {
    let address = server.key.address;
    let direct = neighbours.resolution(address)?;
    Some(match (direct, server.method.tunnel()) {
        (Resolution::NotOnLink(OffLink::Gateway(Some(gateway))), Some(_)) => {
            neighbours.resolution(gateway).unwrap_or(Resolution::Resolving)
        }
        (direct, _) => direct,
    })
}

/// The servers behind tunnels, each address once.
pub(super) fn tunnelled(model: &Model) -> BTreeMap<IpAddr, ServerSpec> {
    let servers = model.services().values().flat_map(|entry| entry.destinations());
    let tunnelled = servers.filter(|server| server.method.tunnel().is_some());
    tunnelled
        .map(|server| (server.key.address, server.into_owned()))
        .collect()
}

impl State {
    /// The routers on the ways to servers behind tunnels.
    pub(super) fn routers(&self) -> BTreeSet<IpAddr> {
        let servers = tunnelled(&self.model);
        let paths = servers
            .keys()
            .filter_map(|address| self.neighbours.path(*address));
        paths.filter_map(|path| path.gateway).collect()
    }

    /// Brings what is known of the way to a server through a tunnel into the tables.
    pub(super) fn note_tunnel(&mut self, address: IpAddr) {
        let Some(path) = self.neighbours.path(address) else {
            return;
        };
        let hop = path.gateway.unwrap_or(address);
        let way = match self.neighbours.resolution(hop) {
            Some(Resolution::Ready {
                mac,
                source_mac,
                if_index,
                ..
            }) => self.neighbour_way(address, mac, source_mac, if_index),
            _ => None,
        };
        let (Some(way), Some(source)) = (way, path.source) else {
            return;
        };
        let links = self.neighbours.links();
        let sent = links.get(path.if_index).map_or(LONGEST, |link| link.mtu);
        let mtu = path.mtu.map_or(sent, |mtu| mtu.min(sent)).min(LONGEST);
        if let Way::Neighbour { if_index, .. } = way
            && let Err(error) = self.dataplane.allow_redirect(if_index)
        {
            warn!("{address}: {error:#}");
        }
        let (source, spread) = self.outer_source(source);
        let way = TunnelWay {
            way,
            source,
            spread,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        };
        self.compiler.set_tunnel(address, way);
    }

    /// The lowest of the outer source addresses, and how many bits of them are a flow's own, where the route's is this
    /// one.
    fn outer_source(&self, of_route: IpAddr) -> (IpAddr, u8) {
        let mut networks = self.config.tunnel_sources.iter();
        let network = networks.find(|network| network.addr().is_ipv4() == of_route.is_ipv4());
        network.map_or((of_route, 0), |network| {
            (network.network(), network.max_prefix_len() - network.prefix_len())
        })
    }

    /// Takes in that something has changed at an address that may be on the way to servers behind tunnels: their
    /// own, or a router's.
    pub(super) fn hear_hop(&mut self, hop: IpAddr) {
        for (address, server) in tunnelled(&self.model) {
            let path = self.neighbours.path(address);
            if address != hop && path.and_then(|path| path.gateway) != Some(hop) {
                continue;
            }
            self.note_tunnel(address);
            let reached = reach(&self.neighbours, &server);
            let usable = is_usable(reached.as_ref(), &self.held_back, address);
            if self.tunnels_usable.insert(address, usable) != Some(usable) {
                match reached {
                    Some(Resolution::Ready { interface, .. }) => {
                        info!("real server {address} is reached through a tunnel by {interface}");
                    }
                    Some(Resolution::NotOnLink(why)) => {
                        warn!("real server {address} cannot be reached through a tunnel: {why}");
                    }
                    Some(Resolution::Unreachable) => {
                        warn!(
                            "the next hop to real server {address} does not answer: it gets no new connections"
                        );
                    }
                    Some(Resolution::Local | Resolution::Resolving) | None => {}
                }
            }
            let concerned = self
                .services_with(|server| server.key.address == address && server.method.tunnel().is_some());
            self.stale.extend(concerned);
        }
        let servers = tunnelled(&self.model);
        self.tunnels_usable
            .retain(|address, _| servers.contains_key(address));
    }

    /// The services that have such a server.
    pub(super) fn services_with(&self, is_such: impl Fn(&ServerSpec) -> bool) -> BTreeSet<ServiceKey> {
        let services = self.model.services().iter();
        let concerned = services.filter(|(_, entry)| entry.destinations().any(|server| is_such(&server)));
        concerned.map(|(key, _)| *key).collect()
    }
}
