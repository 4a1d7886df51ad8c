//! From the desired state to the rows that the program reads.
//!
//! Each service has two configurations, of which one bit of the control row says which is live. A
//! change is planned (everything it needs is reserved, so that it cannot fail half way), written into
//! the other configuration of the services that it touches, and made live by flipping the bit. When
//! no packet is left that saw the old one, [`Compiler::settle`] makes both the same again.
//!
//! What the rows say is all there is: an agent that adopts pinned maps reads its bookkeeping from them.

mod adopt;
mod ending;
mod fill;
mod members;
mod mend;
mod plan;
mod ways;
mod wide;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lvs_xdp_common::{
    abi::{Counts, Cursor, Kind, ListWord, Options, Tags, control_flag, destination_flag},
    scheduler,
};

pub use self::plan::Plan;
use self::{
    members::Members,
    plan::{Planned, Setting},
    wide::Wide,
};
use super::{
    extents::{Extent, Extents},
    marks::Marks,
    rows::{address, high, length, live, low, service_row, store, store_way},
    tables::{Capacity, Tables},
};
use crate::api::types::{ServerKey, ServiceKey, Stats};

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
    members: Members,
    wide: Wide,
    /// Services whose row is kept for the connections of their destinations.
    deleted: BTreeSet<ServiceKey>,
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

/// Whether connections or templates name a destination.
fn is_busy(counts: &Counts) -> bool {
    counts.connections.load() != 0 || counts.templates.load() != 0
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
            members: Members::default(),
            wide: Wide::default(),
            deleted: BTreeSet::new(),
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
        self.wide.announce(control, planned);
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
            self.enter(slot.id, key);
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
        if options.has(Options::STATELESS) {
            let flags = &self.tables.control[0].flags;
            flags.store(flags.load() | control_flag::STATELESS);
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

    fn write_destination(&mut self, id: u32, service: u32, server: ServerKey) {
        let row = &self.tables.destinations[id as usize];
        let address = address(server.address);
        row.address[0].store(address.high());
        row.address[1].store(address.low());
        row.port.store(u64::from(server.port));
        row.place.store(u64::from(service) << 32);
        row.joined.store(0);
        row.towards.store(destination_flag::USED);
        self.members.enter(id, service, server);
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
            self.members.revive(id);
        }
        for id in removed {
            let towards = &self.tables.destinations[id as usize].towards;
            towards.store(towards.load() | destination_flag::REMOVED);
            self.members.remove(id);
        }
        if takes_turns(slot.word.kind()) {
            self.carry_cursor(slot.id, slot.word);
        } else if slot.word.restart() {
            self.forget_choices(&slot);
        }
        self.unsettled.push(slot.id);
        let next = slot.word.kind();
        let old = self.services.insert(key, slot);
        let before = old.as_ref().map_or(Kind::Absent, |old| old.word.kind());
        self.wide.note(&key, before, next);
        if next == Kind::Tombstone {
            self.deleted.insert(key);
        } else {
            self.deleted.remove(&key);
        }
        if let Some(old) = old {
            self.garbage.push((old.list, old.ring));
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
        self.wide.announce(&self.tables.control[0], std::iter::empty());
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
        self.members.id(self.service(service)?, server)
    }

    /// The effective weight that a service's list gives a server now.
    pub fn effective_weight(&self, service: &ServiceKey, server: &ServerKey) -> Option<u32> {
        let id = self.destination(service, server)?;
        // The row says what the list says, which is where packets look.
        let weight = || low(self.tables.destinations[id as usize].weight.load());
        (!self.is_removed(id)).then(weight)
    }

    /// Ids of the destinations that a service had and whose connections have not ended.
    pub fn leftovers(&self, service: &ServiceKey) -> Vec<u32> {
        let own = self.service(service);
        own.into_iter()
            .flat_map(|id| self.members.removed_of(id))
            .collect()
    }

    /// The id of a service.
    pub fn service(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|slot| slot.id)
    }

    /// Every destination that has an id, with its service's: those that are removed and have connections left
    /// among them.
    pub fn members(&self) -> impl Iterator<Item = (u32, u32)> {
        self.members.iter()
    }

    /// The id of the service whose destination this is.
    pub fn service_of(&self, id: u32) -> Option<u32> {
        self.members.get(id).map(|(service, _)| service)
    }

    /// The id that is above all of destinations.
    pub fn end(&self) -> u32 {
        length(&self.tables.destinations)
    }

    /// Whether no list names a destination any more: its row says so, too, and is at hand.
    fn is_removed(&self, id: u32) -> bool {
        self.tables.destinations[id as usize].towards.load() & destination_flag::REMOVED != 0
    }

    /// Whether there are connections or templates of a destination.
    pub fn is_busy(&self, id: u32) -> bool {
        is_busy(&self.tables.counts[id as usize])
    }

    /// The destinations of which there are.
    pub fn busy(&self) -> impl Iterator<Item = u32> {
        let counts = (0..).zip(self.tables.counts.iter());
        counts.filter(|(_, counts)| is_busy(counts)).map(|(id, _)| id)
    }

    /// The destinations whose packets leave no connection.
    pub fn uncounted(&self) -> impl Iterator<Item = u32> {
        let live = live(&self.tables.control[0]);
        let options = move |slot: &Slot| Options(self.tables.services[slot.id as usize].options[live].load());
        let slots = (self.services.values())
            .filter(move |slot| options(slot).has(Options::ONE_PACKET | Options::STATELESS));
        slots.flat_map(|slot| slot.ids.iter().copied())
    }

    /// The ids of one service's destinations.
    pub fn members_of(&self, service: &ServiceKey) -> Vec<u32> {
        let slot = self.services.get(service);
        slot.into_iter()
            .flat_map(|slot| slot.ids.iter().copied().chain(self.members.removed_of(slot.id)))
            .collect()
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
        self.members.get(id).map(|(_, server)| server)
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
