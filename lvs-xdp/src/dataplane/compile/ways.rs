//! The ways to real servers: known by address, and in the rows of every destination there.

use std::net::IpAddr;

use lvs_xdp_common::abi::{destination_flag, service_flag};

use super::{Compiler, TunnelWay, Way};
use crate::{
    api::types::ServiceKey,
    dataplane::rows::{server_key, store_tunnel, store_way},
};

impl Compiler {
    /// Notes the way to a real server, or that it is not known; every destination there follows at once.
    pub fn set_way(&mut self, server: IpAddr, way: Option<Way>) {
        match way {
            Some(way) => self.ways.insert(server, way),
            None => self.ways.remove(&server),
        };
        for id in self.members.at(server) {
            if self.setting(id).tunnel == 0 {
                store_way(&self.tables.destinations[id as usize], way);
            }
        }
    }

    /// Notes the way to a real server through a tunnel; every destination there that has one follows at once.
    pub fn set_tunnel(&mut self, server: IpAddr, way: TunnelWay) {
        if self.tunnels.insert(server, way) == Some(way) {
            return;
        }
        for id in self.members.at(server) {
            let tunnel = self.setting(id).tunnel;
            if tunnel != 0 {
                self.lead(id, tunnel);
            }
        }
    }

    /// Notes by which method packets go to a destination, which is by what
    /// [`tunnel_word`](crate::dataplane::rows::tunnel_word) says, and the way that is known for it.
    pub(super) fn lead(&self, id: u32, tunnel: u64) {
        let tables = &self.tables;
        let row = &tables.destinations[id as usize];
        let server = server_key(row).address;
        let towards = row.towards.load() & !destination_flag::TUNNEL;
        if tunnel == 0 {
            row.towards.store(towards);
            store_way(row, self.ways.get(&server).copied());
            return;
        }
        store_tunnel(&tables.tunnels[id as usize], tunnel, self.tunnels.get(&server));
        // Of no effect before the way follows, which makes the destination a special one.
        row.towards.store(towards | destination_flag::TUNNEL);
        store_way(row, self.tunnels.get(&server).map(|tunnel| tunnel.way));
    }

    /// What was noted last of the way to a real server.
    pub fn way(&self, server: IpAddr) -> Option<Way> {
        self.ways.get(&server).copied()
    }

    /// Whether the host holds an address.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    /// Notes which addresses the host holds: a packet that the program has no use for goes to the host
    /// only where the VIP is one of them.
    pub fn set_local(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.local = addresses.into_iter().collect();
        self.note_local();
    }

    pub(super) fn note_local(&self) {
        for (key, slot) in &self.services {
            let flags = self.local_flag(key);
            self.tables.services[slot.id as usize].flags.store(flags);
        }
    }

    pub(super) fn local_flag(&self, key: &ServiceKey) -> u64 {
        let is_local = match key {
            ServiceKey::Endpoint { address, .. } => self.local.contains(address),
            ServiceKey::Mark { mark, ipv6 } => self.marks.is_local(*mark, *ipv6, &self.local),
        };
        if is_local { service_flag::LOCAL } else { 0 }
    }
}
