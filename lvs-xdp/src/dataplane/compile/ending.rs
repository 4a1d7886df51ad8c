//! The rows of services and destinations: how they come into the index and go, and when an id is free again.

use lvs_xdp_common::{
    abi::{Kind, ListWord, control_flag},
    hash, scheduler,
};

use super::Compiler;
use crate::{
    api::types::{Protocol, ServiceKey, Stats},
    dataplane::rows::{enter_index, leave_index, live, service_row},
};

impl Compiler {
    /// Enters a service into the index.
    pub(super) fn enter(&self, id: u32, key: &ServiceKey) {
        let control = &self.tables.control[0];
        enter_index(&self.tables.service_index, control, self.hash(key), id);
    }

    fn hash(&self, key: &ServiceKey) -> u64 {
        let (address, _) = service_row(key);
        let protocol = key.protocol().map_or(0, Protocol::number);
        hash::service(self.tables.control[0].key(), address, key.port(), protocol)
    }

    /// Takes a service's row out of the index. A packet that found the row before reads on in it, and
    /// finds no list, also when the row is used again: its list is what becomes visible last.
    ///
    /// The row has its name for as long as the index has its word, so that an agent that was killed in between
    /// can be followed by one that takes it out.
    pub(super) fn clear(&self, id: u32, key: &ServiceKey) {
        let row = &self.tables.services[id as usize];
        row.lists.iter().for_each(|word| word.store(0));
        leave_index(
            &self.tables.service_index,
            &self.tables.control[0],
            self.hash(key),
            id,
        );
        [&row.identity]
            .into_iter()
            .chain(&row.address)
            .for_each(|word| word.store(0));
    }

    /// The ids of destinations that nothing names any more, whose counters are to be retired by
    /// [`Compiler::retire`] before they are used again.
    pub fn reap(&mut self) -> Vec<u32> {
        if self.is_unsettled() {
            return Vec::new();
        }
        self.members.removed().filter(|id| !self.is_busy(*id)).collect()
    }

    /// Adds a removed destination's counters to its service's and frees its id.
    pub fn retire(&mut self, id: u32, stats: Stats) {
        let Some((service, _)) = self.members.leave(id) else {
            return;
        };
        let retired = &self.tables.services[service as usize].retired;
        for (word, value) in retired
            .iter()
            .zip([stats.connections, stats.packets, stats.bytes])
        {
            word.add(value);
        }
        self.forget_choice(service, id);
        let row = &self.tables.destinations[id as usize];
        row.towards.store(0);
        row.joined.store(0);
        let counts = &self.tables.counts[id as usize];
        counts.limits.store(0);
        counts.overload.store(0);
        self.free_destinations.insert(id);
    }

    /// lblc must not take the next destination of this id for the one that it remembers.
    fn forget_choice(&self, service: u32, id: u32) {
        let tables = &self.tables;
        let word = ListWord(tables.services[service as usize].lists[live(&tables.control[0])].load());
        if word.kind() != Kind::Lblc {
            return;
        }
        let cursor = &tables.cursors[service as usize];
        let seen = cursor.load();
        if scheduler::remembered(seen) == Some(id) {
            // Where this fails it remembers another one by now.
            let _ = cursor.swap(seen, 0);
        }
    }

    /// Frees the rows of deleted services that have no destinations.
    pub fn bury_empty(&mut self) {
        let members = &self.members;
        let empty = self.deleted.iter().filter(|key| {
            self.services
                .get(key)
                .is_none_or(|slot| !members.has_any(slot.id))
        });
        for key in Vec::from_iter(empty.copied()) {
            self.deleted.remove(&key);
            self.bury(&key);
        }
    }

    fn bury(&mut self, key: &ServiceKey) {
        let Some(slot) = self.services.remove(key) else {
            return;
        };
        self.clear(slot.id, key);
        self.free_services.insert(slot.id);
    }

    /// Ends the search for connections that a removed rule has led to a mark's service, where such services have
    /// no connection any more.
    pub(in crate::dataplane) fn forget_unmarked(&self) {
        let flags = &self.tables.control[0].flags;
        if flags.load() & control_flag::UNMARKED == 0 {
            return;
        }
        let marked = (self.services.iter()).filter(|(key, _)| matches!(key, ServiceKey::Mark { .. }));
        let mut ids = marked.flat_map(|(_, slot)| {
            let removed = self.members.removed_of(slot.id);
            slot.ids.iter().copied().chain(removed)
        });
        let is_busy = ids.any(|id| self.tables.counts[id as usize].connections.load() != 0);
        if !is_busy {
            flags.store(flags.load() & !control_flag::UNMARKED);
        }
    }
}
