//! Real servers as neighbours: which addresses are watched, and what follows from news of them.

use std::net::IpAddr;

use tracing::{info, warn};

use super::{FIRST_RESOLUTION, State, is_usable};
use crate::neighbour::{self, Resolution};

impl State {
    /// Watches what there is when the agent starts, and waits a moment until it is found.
    pub(super) async fn find_servers(&mut self) {
        let servers: Vec<_> = self.uses.addresses().collect();
        self.neighbours
            .resolve_all(servers.iter().copied(), FIRST_RESOLUTION)
            .await;
        for address in servers {
            self.follow_hop(address);
        }
        self.neighbours
            .resolve_all(self.hops.routers(), FIRST_RESOLUTION)
            .await;
    }

    /// Watches the servers that there are, and no others.
    pub(super) async fn follow_servers(&mut self) {
        for address in std::mem::take(&mut self.unfollowed) {
            let is_wanted = self.uses.is_used(address) || self.hops.is_router(address);
            let is_known = self.usable.contains_key(&address);
            if is_wanted && !is_known {
                self.neighbours.watch(address).await;
                let usable = is_usable(
                    self.neighbours.resolution(address).as_ref(),
                    &self.held_back,
                    address,
                );
                self.usable.insert(address, usable);
            } else if !is_wanted && is_known {
                self.usable.remove(&address);
                self.neighbours.forget(address).await;
            }
        }
    }

    /// Takes in what has become of the way to an address.
    pub(super) fn hear_resolution(&mut self, address: IpAddr, resolution: &Resolution) {
        if !matches!(resolution, Resolution::Resolving) {
            self.held_back.remove(&address);
        }
        self.note_way(address);
        self.hear_hop(address);
        let usable = is_usable(Some(resolution), &self.held_back, address);
        let Some(before) = self.usable.get_mut(&address) else {
            return;
        };
        if *before == usable {
            return;
        }
        *before = usable;
        let concerned = self.uses.direct(address);
        if concerned.is_empty() {
            return;
        }
        match resolution {
            Resolution::Ready { interface, .. } => {
                info!("real server {address} answers on {interface}: it gets new connections");
            }
            Resolution::Local => info!("real server {address} is this director: it gets new connections"),
            Resolution::NotOnLink(why) => {
                warn!("real server {address} cannot work with direct routing: {why}");
            }
            Resolution::Unreachable | Resolution::Resolving => {
                let asked_by = neighbour::protocol(address);
                warn!("real server {address} does not answer {asked_by}: it gets no new connections");
            }
        }
        self.stale.extend(concerned);
    }
}
