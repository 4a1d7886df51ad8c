//! Real servers behind tunnels: their packets go to a router, or to a neighbour that is the server itself.

use std::net::IpAddr;

use tracing::{info, warn};

use super::{State, is_usable};
use crate::{
    api::types::ServerSpec,
    dataplane::compile::{TunnelWay, Way},
    neighbour::{Neighbours, Resolution},
};

/// The longest packet that IP has a length for.
const LONGEST: u32 = u16::MAX as u32;

/// What is known of the way to a server by the method that it has.
pub(super) fn reach(neighbours: &Neighbours, server: &ServerSpec) -> Option<Resolution> {
    neighbours.reach(server.key.address, server.method.tunnel().is_some())
}

impl State {
    /// Notes whether a server there is behind a tunnel, and the router on the way to it.
    pub(super) fn follow_hop(&mut self, address: IpAddr) {
        let concerned = if self.uses.is_tunnelled(address) {
            let path = self.neighbours.path(address);
            self.hops.note(address, path.and_then(|path| path.gateway))
        } else {
            self.tunnels_usable.remove(&address);
            self.hops.forget(address)
        };
        self.unfollowed.extend(concerned);
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
        for address in self.hops.concerned(hop) {
            self.note_tunnel(address);
            let reached = self.neighbours.reach(address, true);
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
            self.stale.extend(self.uses.tunnelled(address));
        }
    }
}
