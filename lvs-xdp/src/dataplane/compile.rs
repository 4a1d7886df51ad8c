//! From the desired state to the rows that the program reads.
//!
//! Each service has two configurations, of which one bit of the control row says which is live. A
//! change is planned (everything it needs is reserved, so that it cannot fail half way), written into
//! the other configuration of the services that it touches, and made live by flipping the bit. When
//! no packet is left that saw the old one, [`Compiler::settle`] makes both the same again.
//!
//! What the rows say is all there is: an agent that adopts pinned maps reads its bookkeeping from them.

mod fill;
mod mend;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lvs_xdp_common::{
    abi::{Cursor, Kind, ListEntry, ListWord, RingWord, Tags, control_flag, destination_flag, service_flag},
    flow::FTP_PORT,
    hash,
    maps::Maps as _,
    scheduler,
};

pub use self::plan::Plan;
use self::plan::{Planned, Setting};
use super::{
    extents::{Extent, Extents},
    marks::Marks,
    rows::{
        address, count, enter_index, high, leave_index, length, list_extent, live, ring_extent, server_key,
        service_key, service_row, store, store_tunnel, store_way, tunnel_way, way,
    },
    tables::{Capacity, Tables},
};
use crate::api::types::{Protocol, ServerKey, ServiceKey, Stats};

/// The way to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// There is none to go: it is the director itself.
    Local,
    /// By frames on a segment of the director.
    Neighbour {
        /// The real server's MAC address.
        mac: [u8; 6],
        /// The MAC address of the director's interface towards it.
        source_mac: [u8; 6],
        /// That interface.
        if_index: u32,
        /// The tags that frames to it have; `None` where they keep those that they came with.
        tags: Option<Tags>,
    },
}

/// The way to a real server through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelWay {
    /// The way that the outer packet goes: its next hop is a router, or the real server.
    pub way: Way,
    /// The outer packet's source address, of the real server's family.
    pub source: IpAddr,
    /// How many of its lowest bits, all 0, are another value for each flow.
    pub spread: u8,
    /// The greatest length of the outer packet, in bytes.
    pub mtu: u16,
}

/// A service that the maps have.
#[derive(Debug, Clone)]
struct Slot {
    id: u32,
    list: Extent,
    ring: Extent,
    word: ListWord,
    /// Destination ids in the list's order.
    ids: Vec<u32>,
}

/// Where every service and destination stands in the maps.
#[derive(Debug)]
pub struct Compiler {
    tables: Arc<Tables>,
    capacity: Capacity,
    lists: Extents,
    rings: Extents,
    services: BTreeMap<ServiceKey, Slot>,
    destinations: HashMap<(u32, ServerKey), u32>,
    members: HashMap<u32, (u32, ServerKey)>,
    removed: BTreeSet<u32>,
    free_services: BTreeSet<u32>,
    free_destinations: BTreeSet<u32>,
    ways: HashMap<IpAddr, Way>,
    tunnels: HashMap<IpAddr, TunnelWay>,
    local: HashSet<IpAddr>,
    /// Services whose two configurations differ until [`Compiler::settle`], and extents to give back then.
    unsettled: Vec<u32>,
    garbage: Vec<(Extent, Extent)>,
    marks: Marks,
}

/// Whether a scheduler goes by a place in its list.
fn takes_turns(kind: Kind) -> bool {
    matches!(kind, Kind::Rr | Kind::Wrr)
}

/// What a service's cursor starts as.
fn first_cursor(kind: Kind, place: Cursor) -> u64 {
    if takes_turns(kind) { place.word() } else { 0 }
}

impl Compiler {
    /// Reads the bookkeeping from the maps.
    pub(super) fn new(tables: Arc<Tables>, capacity: Capacity, marks: Marks) -> Self {
        let mut compiler = Self {
            lists: Extents::new(length(&tables.lists)),
            rings: Extents::new(length(&tables.rings)),
            services: BTreeMap::new(),
            destinations: HashMap::new(),
            members: HashMap::new(),
            removed: BTreeSet::new(),
            free_services: (1..length(&tables.services)).collect(),
            free_destinations: (1..length(&tables.destinations)).collect(),
            ways: HashMap::new(),
            tunnels: HashMap::new(),
            local: HashSet::new(),
            unsettled: Vec::new(),
            garbage: Vec::new(),
            marks,
            tables,
            capacity,
        };
        compiler.adopt();
        compiler
    }

    fn adopt(&mut self) {
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
                self.clear(id);
                continue;
            }
            self.free_services.remove(&id);
            let ids: Vec<u32> = (0..word.length())
                .filter_map(|index| tables.list(word.offset() + 1 + index))
                .map(|entry| ListEntry(entry.load()).id())
                .collect();
            let list = list_extent(word);
            let ring = ring_extent(RingWord(row.rings[live].load()));
            self.lists.reserve(list);
            self.rings.reserve(ring);
            if takes_turns(word.kind()) {
                self.carry_cursor(id, word);
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
            self.destinations.insert((row.service(), server), id);
            self.members.insert(id, (row.service(), server));
            if towards & destination_flag::REMOVED != 0 || !listed.contains(&id) {
                row.towards.store(towards | destination_flag::REMOVED);
                self.removed.insert(id);
            } else if let Some(tunnel) = tunnel_way(row, &tables.tunnels[id as usize]) {
                self.tunnels.insert(server.address, tunnel);
            } else if let Some(way) = way(row) {
                // What was known goes on until the neighbours are known anew.
                self.ways.insert(server.address, way);
            }
        }
        self.mend_ways();
    }

    /// Makes a plan live, in one step. [`Compiler::settle`] must have been called since the last one.
    pub fn apply(&mut self, plan: Plan) {
        let tables = Arc::clone(&self.tables);
        let control = &tables.control[0];
        let next = 1 - live(control);
        for planned in &plan.services {
            self.write(planned, next);
        }
        // Too early rather than too late: a flag without its service costs a look-up.
        let planned = plan
            .services
            .iter()
            .map(|planned| (planned.key, planned.slot.word.kind()));
        self.note_wide_services(planned.chain(self.kinds()));
        if let Some(rules) = &plan.marks {
            self.marks.announce(rules);
        }
        control
            .generation
            .store(control.generation.load().wrapping_add(1));
        for planned in plan.services {
            self.finish(planned);
        }
        if let Some(rules) = plan.marks {
            self.marks.adopt_prepared(rules);
            self.note_local();
        }
    }

    /// Writes what the next configuration of a service needs, where no packet sees it yet.
    fn write(&mut self, planned: &Planned, next: usize) {
        let tables = Arc::clone(&self.tables);
        let Planned {
            key,
            slot,
            is_new,
            is_back,
            list,
            ring,
            ring_word,
            added,
            revived,
            removed: _,
            options,
            settings,
        } = planned;
        let row = &tables.services[slot.id as usize];
        if *is_new || *is_back {
            row.retired.iter().for_each(|word| word.store(0));
        }
        if *is_new {
            row.lists.iter().chain(&row.rings).for_each(|word| word.store(0));
            let (address, identity) = service_row(key);
            row.address[0].store(address.high());
            row.address[1].store(address.low());
            row.identity.store(identity);
            row.flags.store(self.local_flag(key));
            self.enter(slot.id, *key);
        }
        for (id, server) in added {
            self.write_destination(*id, slot.id, *server);
        }
        for setting in settings {
            self.set(setting);
        }
        for &id in revived {
            let towards = &tables.destinations[id as usize].towards;
            towards.store(towards.load() & !destination_flag::REMOVED);
        }
        store(&tables.lists, slot.list, list);
        store(&tables.rings, slot.ring, ring);
        let had_turns = self
            .services
            .get(key)
            .is_some_and(|slot| takes_turns(slot.word.kind()));
        if slot.word.restart() && !had_turns {
            // Nobody has one; all others move it on by themselves, or by `carry_cursor`.
            let current_weight = list.first().map_or(0, |&header| high(header));
            let cursor = Cursor {
                generation: slot.word.generation(),
                position: 0,
                current_weight,
            };
            tables.cursors[slot.id as usize].store(first_cursor(slot.word.kind(), cursor));
        }
        if options.is_persistent() {
            let flags = &self.tables.control[0].flags;
            flags.store(flags.load() | control_flag::TEMPLATES);
        }
        row.options[next].store(options.0);
        row.rings[next].store(ring_word.0);
        row.lists[next].store(slot.word.0);
    }

    /// Writes how a destination is configured. A higher upper threshold, or none, ends an overload
    /// (`__ip_vs_update_dest`).
    fn set(&self, setting: &Setting) {
        let Setting {
            id,
            weight,
            last_weight,
            limits,
            is_draining,
            tunnel,
        } = *setting;
        if tunnel != self.setting(id).tunnel {
            self.lead(id, tunnel);
        }
        let row = &self.tables.destinations[id as usize];
        let counts = &self.tables.counts[id as usize];
        row.port
            .store(row.port.load() & 0xffff_ffff | u64::from(last_weight) << 32);
        row.weight.store(u64::from(weight));
        let draining = if is_draining {
            destination_flag::DRAINING
        } else {
            0
        };
        row.towards
            .store(row.towards.load() & !destination_flag::DRAINING | draining);
        let before = counts.limits.load();
        counts.limits.store(limits);
        if limits == 0 || high(limits) > high(before) {
            counts.overload.store(0);
        }
    }

    /// Notes by which method packets go to a destination, which is by what [`tunnel_word`](super::rows::tunnel_word)
    /// says, and the way that is known for it.
    fn lead(&self, id: u32, tunnel: u64) {
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

    fn write_destination(&mut self, id: u32, service: u32, server: ServerKey) {
        let row = &self.tables.destinations[id as usize];
        let address = address(server.address);
        row.address[0].store(address.high());
        row.address[1].store(address.low());
        row.port.store(u64::from(server.port));
        row.place.store(u64::from(service) << 32);
        row.joined.store(0);
        row.towards.store(destination_flag::USED);
        self.destinations.insert((service, server), id);
        self.members.insert(id, (service, server));
        if let Some(way) = self.ways.get(&server.address) {
            store_way(row, Some(*way));
        }
    }

    /// What follows once a service's next configuration is live.
    fn finish(&mut self, planned: Planned) {
        let Planned {
            key,
            slot,
            removed,
            revived,
            ..
        } = planned;
        for id in revived {
            self.removed.remove(&id);
        }
        for id in removed {
            let towards = &self.tables.destinations[id as usize].towards;
            towards.store(towards.load() | destination_flag::REMOVED);
            self.removed.insert(id);
        }
        if takes_turns(slot.word.kind()) {
            self.carry_cursor(slot.id, slot.word);
        } else if slot.word.restart() {
            self.forget_choices(&slot);
        }
        self.unsettled.push(slot.id);
        if let Some(old) = self.services.insert(key, slot) {
            self.garbage.push((old.list, old.ring));
        }
    }

    /// lblc must not take the next destination of this id for the one that it remembers.
    fn forget_choice(&self, service: u32, id: u32) {
        let cursor = &self.tables.cursors[service as usize];
        let seen = cursor.load();
        if scheduler::remembered(seen) != Some(id) {
            return;
        }
        // Last, since there may be thousands of services, and as many destinations go in one step.
        let is_lblc = self
            .services
            .values()
            .any(|slot| slot.id == service && slot.word.kind() == Kind::Lblc);
        if is_lblc {
            // Where this fails it remembers another one by now.
            let _ = cursor.swap(seen, 0);
        }
    }

    /// lblc and lblcr start without a memory.
    fn forget_choices(&self, slot: &Slot) {
        self.tables.cursors[slot.id as usize].store(0);
        for &id in &slot.ids {
            self.tables.destinations[id as usize].joined.store(0);
        }
    }

    /// Moves a service's cursor into the list that is live now, so that it is never more than one behind.
    fn carry_cursor(&self, id: u32, word: ListWord) {
        let cursor = &self.tables.cursors[id as usize];
        loop {
            let old = cursor.load();
            let seen = Cursor::from_word(old);
            match scheduler::carry_over(&*self.tables, word, seen) {
                Some(new) if new == seen || cursor.swap(old, new.word()) => return,
                Some(_) => {}
                // Neither this generation nor the one before: start from the head, as the scheduler would.
                None => {
                    let new = Cursor {
                        generation: word.generation(),
                        ..Cursor::default()
                    };
                    if cursor.swap(old, new.word()) {
                        return;
                    }
                }
            }
        }
    }

    fn kinds(&self) -> impl Iterator<Item = (ServiceKey, Kind)> {
        self.services.iter().map(|(key, slot)| (*key, slot.word.kind()))
    }

    /// Notes whether there are services that take other ports than their own.
    fn note_wide_services(&self, services: impl Iterator<Item = (ServiceKey, Kind)>) {
        let wide = services
            .filter(|(_, kind)| !matches!(kind, Kind::Absent | Kind::Tombstone))
            .fold(0, |flags, (key, _)| match key {
                ServiceKey::Endpoint { port: 0, .. } => flags | control_flag::ALL_PORTS,
                ServiceKey::Endpoint {
                    protocol: Protocol::Tcp,
                    port: FTP_PORT,
                    ..
                } => flags | control_flag::FTP,
                _ => flags,
            });
        let flags = &self.tables.control[0].flags;
        let others = flags.load() & !(control_flag::ALL_PORTS | control_flag::FTP);
        flags.store(others | wide);
    }

    /// Whether a change was made live that has not been settled.
    pub fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty() || self.marks.is_unsettled()
    }

    /// Makes both configurations the same again and gives back what the old one used. No packet that
    /// saw the old one may be left: [`super::grace`] waits for that.
    pub fn settle(&mut self) {
        let live = live(&self.tables.control[0]);
        for id in std::mem::take(&mut self.unsettled) {
            let row = &self.tables.services[id as usize];
            row.rings[1 - live].store(row.rings[live].load());
            row.options[1 - live].store(row.options[live].load());
            row.lists[1 - live].store(row.lists[live].load());
        }
        self.note_wide_services(self.kinds());
        if let Err(error) = self.marks.settle() {
            tracing::error!(
                "the rules of marks are not settled, and no change is made until they are: {error}"
            );
        }
        for (list, ring) in std::mem::take(&mut self.garbage) {
            self.lists.give(list);
            self.rings.give(ring);
        }
    }

    /// Enters a service into the index.
    fn enter(&self, id: u32, key: ServiceKey) {
        let control = &self.tables.control[0];
        let (address, _) = service_row(&key);
        let protocol = key.protocol().map_or(0, Protocol::number);
        let hash = hash::service(control.key(), address, key.port(), protocol);
        enter_index(&self.tables.service_index, control, hash, id);
    }

    /// Frees the ids of destinations that nothing names any more, and the rows of deleted services
    /// without destinations. Returns the destinations, whose counters are to be retired by
    /// [`Compiler::retire`] before they are used again.
    pub fn reap(&mut self) -> Vec<u32> {
        if self.is_unsettled() {
            return Vec::new();
        }
        let unused = |id: &u32| {
            let counts = &self.tables.counts[*id as usize];
            counts.connections.load() == 0 && counts.templates.load() == 0
        };
        self.removed.iter().copied().filter(unused).collect()
    }

    /// Adds a removed destination's counters to its service's and frees its id.
    pub fn retire(&mut self, id: u32, stats: Stats) {
        let Some((service, server)) = self.members.remove(&id) else {
            return;
        };
        self.destinations.remove(&(service, server));
        self.removed.remove(&id);
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

    /// Frees the rows of deleted services that have no destinations.
    pub fn bury_empty(&mut self) {
        let deleted: Vec<_> = self
            .services
            .iter()
            .filter(|(_, slot)| slot.word.kind() == Kind::Tombstone)
            .map(|(key, slot)| (*key, slot.id))
            .collect();
        if deleted.is_empty() {
            // Nearly always: all destinations need not be walked through every second.
            return;
        }
        let busy: HashSet<u32> = self.members.values().map(|(service, _)| *service).collect();
        for (key, _) in deleted.into_iter().filter(|(_, id)| !busy.contains(id)) {
            self.bury(key);
        }
    }

    fn bury(&mut self, key: ServiceKey) {
        let Some(slot) = self.services.remove(&key) else {
            return;
        };
        self.clear(slot.id);
        self.free_services.insert(slot.id);
    }

    /// Takes a service's row out of the index. A packet that found the row before reads on in it, and
    /// finds no list, also when the row is used again: its list is what becomes visible last.
    fn clear(&self, id: u32) {
        let row = &self.tables.services[id as usize];
        row.lists
            .iter()
            .chain([&row.identity])
            .chain(&row.address)
            .for_each(|word| word.store(0));
        leave_index(&self.tables.service_index, id);
    }

    /// Notes the way to a real server, or that it is not known; every destination there follows at once.
    pub fn set_way(&mut self, server: IpAddr, way: Option<Way>) {
        match way {
            Some(way) => self.ways.insert(server, way),
            None => self.ways.remove(&server),
        };
        for (id, (_, key)) in &self.members {
            if key.address == server && self.setting(*id).tunnel == 0 {
                store_way(&self.tables.destinations[*id as usize], way);
            }
        }
    }

    /// Notes the way to a real server through a tunnel; every destination there that has one follows at once.
    pub fn set_tunnel(&mut self, server: IpAddr, way: TunnelWay) {
        if self.tunnels.insert(server, way) == Some(way) {
            return;
        }
        for (id, (_, key)) in &self.members {
            let tunnel = self.setting(*id).tunnel;
            if key.address == server && tunnel != 0 {
                self.lead(*id, tunnel);
            }
        }
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

    fn note_local(&self) {
        for (key, slot) in &self.services {
            let flags = self.local_flag(key);
            self.tables.services[slot.id as usize].flags.store(flags);
        }
    }

    fn local_flag(&self, key: &ServiceKey) -> u64 {
        let is_local = match key {
            ServiceKey::Endpoint { address, .. } => self.local.contains(address),
            ServiceKey::Mark { mark, ipv6 } => self.marks.is_local(*mark, *ipv6, &self.local),
        };
        if is_local { service_flag::LOCAL } else { 0 }
    }

    /// Ends the search for connections that a removed rule has led to a mark's service, where such services have
    /// no connection any more.
    pub(super) fn forget_unmarked(&self) {
        let flags = &self.tables.control[0].flags;
        if flags.load() & control_flag::UNMARKED == 0 {
            return;
        }
        let is_busy = self.members.iter().any(|(id, (service, _))| {
            self.tables.services[*service as usize].is_mark()
                && self.tables.counts[*id as usize].connections.load() != 0
        });
        if !is_busy {
            flags.store(flags.load() & !control_flag::UNMARKED);
        }
    }

    /// The services that the maps have and that are not deleted.
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        let live = self
            .services
            .iter()
            .filter(|(_, slot)| slot.word.kind() != Kind::Tombstone);
        live.map(|(key, _)| *key).collect()
    }

    /// The id of a destination.
    pub fn destination(&self, service: &ServiceKey, server: &ServerKey) -> Option<u32> {
        let slot = self.services.get(service)?;
        self.destinations.get(&(slot.id, *server)).copied()
    }

    /// The effective weight that a service's list gives a server now.
    pub fn effective_weight(&self, service: &ServiceKey, server: &ServerKey) -> Option<u32> {
        let slot = self.services.get(service)?;
        let id = self.destinations.get(&(slot.id, *server))?;
        let index = slot.ids.iter().position(|other| other == id)?;
        let entry = self.tables.list(slot.word.offset() + 1 + count(index))?;
        Some(high(entry.load()))
    }

    /// Ids of the destinations that a service had and whose connections have not ended.
    pub fn leftovers(&self, service: &ServiceKey) -> Vec<u32> {
        let Some(slot) = self.services.get(service) else {
            return Vec::new();
        };
        self.removed
            .iter()
            .copied()
            .filter(|id| self.members.get(id).is_some_and(|(of, _)| *of == slot.id))
            .collect()
    }

    /// The id of a service.
    pub fn service(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|slot| slot.id)
    }

    /// Every destination that has an id, with its service's: those that are removed and have connections left
    /// among them.
    pub fn members(&self) -> impl Iterator<Item = (u32, u32)> {
        self.members.iter().map(|(id, (service, _))| (*id, *service))
    }

    /// Every service's id, with what its destinations that are gone had counted.
    pub fn all_retired(&self) -> impl Iterator<Item = (u32, Stats)> {
        self.services
            .values()
            .map(|slot| (slot.id, self.retired_by(slot.id)))
    }

    /// Forgets what the destinations that are gone had counted, of one service or of all.
    pub fn zero_retired(&self, service: Option<u32>) {
        for slot in self.services.values() {
            if service.is_none_or(|only| only == slot.id) {
                let row = &self.tables.services[slot.id as usize];
                row.retired.iter().for_each(|word| word.store(0));
            }
        }
    }

    /// What a service's destinations that are gone had counted.
    pub fn retired(&self, service: &ServiceKey) -> Stats {
        self.service(service)
            .map_or_else(Stats::default, |id| self.retired_by(id))
    }

    fn retired_by(&self, service: u32) -> Stats {
        let [connections, packets, bytes] = &self.tables.services[service as usize].retired;
        Stats {
            connections: connections.load(),
            packets: packets.load(),
            bytes: bytes.load(),
        }
    }

    /// The server behind a destination id.
    pub fn server(&self, id: u32) -> Option<ServerKey> {
        self.members.get(&id).map(|(_, server)| *server)
    }

    /// Persistence templates that name a destination.
    pub fn templates(&self, id: u32) -> u64 {
        self.tables.counts[id as usize].templates.load()
    }

    /// Active and inactive connections of a destination.
    pub fn counts(&self, id: u32) -> (u64, u64) {
        let counts = self.tables.counts[id as usize].connections.load();
        (counts & 0xffff_ffff, counts >> 32)
    }
}
