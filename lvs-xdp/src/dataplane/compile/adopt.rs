//! What an agent finds in the maps when it starts.

use std::{collections::HashSet, sync::Arc};

use lvs_xdp_common::{
    abi::{Kind, ListEntry, ListWord, RingWord, destination_flag},
    maps::Maps as _,
};

use super::{Compiler, Slot, takes_turns};
use crate::dataplane::rows::{list_extent, live, ring_extent, server_key, service_key, tunnel_way, way};

impl Compiler {
    /// Makes the bookkeeping of what the maps say.
    pub(super) fn adopt(&mut self) {
        let tables = Arc::clone(&self.tables);
        let live = live(&tables.control[0]);
        for (id, row) in (0..).zip(tables.services.iter()) {
            let Some(key) = service_key(row) else { continue };
            let word = ListWord(row.lists[live].load());
            // An agent that was killed between making a change live and settling it left the other
            // configuration behind; one that was killed before left a row that nothing refers to.
            row.lists[1 - live].store(word.0);
            row.rings[1 - live].store(row.rings[live].load());
            row.options[1 - live].store(row.options[live].load());
            if word.kind() == Kind::Absent {
                self.clear(id, &key);
                continue;
            }
            self.free_services.remove(&id);
            let entries = (0..word.length())
                .filter_map(|index| tables.list(word.offset() + 1 + index))
                .map(|entry| ListEntry(entry.load()));
            let entries: Vec<_> = entries.collect();
            for entry in &entries {
                // Where an agent was killed before it made a change live, the row says what should have come.
                if let Some(row) = tables.destinations.get(entry.id() as usize) {
                    row.weight.store(u64::from(entry.weight()));
                }
            }
            let ids = entries.iter().map(|entry| entry.id()).collect();
            let list = list_extent(word);
            let ring = ring_extent(RingWord(row.rings[live].load()));
            self.lists.reserve(list);
            self.rings.reserve(ring);
            if takes_turns(word.kind()) {
                self.carry_cursor(id, word);
            }
            self.wide.note(&key, Kind::Absent, word.kind());
            if word.kind() == Kind::Tombstone {
                self.deleted.insert(key);
            }
            self.services.insert(
                key,
                Slot {
                    id,
                    list,
                    ring,
                    word,
                    ids,
                },
            );
        }
        let listed: HashSet<u32> = self
            .services
            .values()
            .flat_map(|slot| slot.ids.iter().copied())
            .collect();
        for (id, row) in (0..).zip(tables.destinations.iter()) {
            let towards = row.towards.load();
            if towards & destination_flag::USED == 0 {
                continue;
            }
            let server = server_key(row);
            self.free_destinations.remove(&id);
            self.members.enter(id, row.service(), server);
            if towards & destination_flag::REMOVED != 0 || !listed.contains(&id) {
                row.towards.store(towards | destination_flag::REMOVED);
                self.members.remove(id);
            } else if let Some(tunnel) = tunnel_way(row, &tables.tunnels[id as usize]) {
                self.tunnels.insert(server.address, tunnel);
            } else if let Some(way) = way(row) {
                // What was known goes on until the neighbours are known anew.
                self.ways.insert(server.address, way);
            }
        }
        self.mend_ways();
    }
}
