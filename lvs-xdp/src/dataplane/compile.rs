//! From the desired state to the rows that the program reads.
//!
//! Each service has two configurations, of which one bit of the control row says which is live. A
//! change is planned (everything it needs is reserved, so that it cannot fail half way), written into
//! the other configuration of the services that it touches, and made live by flipping the bit. When
//! no packet is left that saw the old one, [`Compiler::settle`] makes both the same again.
//!
//! What the rows say is all there is: an agent that adopts pinned maps reads its bookkeeping from them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use lvs_xdp_common::{
    abi::{
        Control, Cursor, DestinationRow, IndexBucket, Kind, ListWord, RingWord, ServiceRow, destination_flag,
        index_buckets, index_word, list_entry, service_flag,
    },
    atomic::Word,
    hash,
    maps::Maps as _,
    packet::{Address, IpProto, Mac},
    ring::{self, MH_SLOTS, Member},
    scheduler::{self, HASH_SLOTS},
};

use super::{
    extents::{Extent, Extents},
    tables::{Capacity, Tables},
};
use crate::{
    api::types::{ApiError, ErrorCode, Protocol, Scheduler, SchedulerFlag, ServerKey, ServiceKey, Stats},
    model::{Model, ServiceEntry},
};

/// The way to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The real server's MAC address.
    pub mac: [u8; 6],
    /// The MAC address of the director's interface towards it.
    pub source_mac: [u8; 6],
    /// That interface.
    pub if_index: u32,
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
    local: HashSet<IpAddr>,
    /// Services whose two configurations differ until [`Compiler::settle`], and extents to give back then.
    unsettled: Vec<u32>,
    garbage: Vec<(Extent, Extent)>,
}

/// A change that has all it needs.
#[derive(Debug)]
pub struct Plan {
    services: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    key: ServiceKey,
    slot: Slot,
    is_new: bool,
    /// The list extent's words, header and places included.
    list: Vec<u64>,
    ring: Vec<u64>,
    ring_word: RingWord,
    /// New destinations, with their first weight.
    added: Vec<(u32, ServerKey)>,
    revived: Vec<u32>,
    removed: Vec<u32>,
    /// Last weight above 0 by destination.
    last_weights: Vec<(u32, u32)>,
}

impl Compiler {
    /// Reads the bookkeeping from the maps.
    pub(super) fn new(tables: Arc<Tables>, capacity: Capacity) -> Self {
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
            local: HashSet::new(),
            unsettled: Vec::new(),
            garbage: Vec::new(),
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
            if word.kind() == Kind::Absent {
                self.clear(id);
                continue;
            }
            self.free_services.remove(&id);
            let ids: Vec<u32> = (0..word.length())
                .filter_map(|index| tables.list(word.offset() + 1 + index))
                .map(|entry| low(entry.load()))
                .collect();
            let list = list_extent(word);
            let ring = ring_extent(RingWord(row.rings[live].load()));
            self.lists.reserve(list);
            self.rings.reserve(ring);
            self.carry_cursor(id, word);
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
            } else if towards & destination_flag::RESOLVED != 0 {
                // What was known goes on until the neighbours are known anew.
                let from = Mac(row.from.load() & Mac::MASK);
                let if_index = low(row.place.load());
                self.ways.insert(
                    server.address,
                    Way {
                        mac: Mac(towards & Mac::MASK).octets(),
                        source_mac: from.octets(),
                        if_index,
                    },
                );
            }
        }
    }

    /// Reserves what it takes to bring the touched services to what the model says.
    ///
    /// `weight` is the effective weight of a server: the configured one, or 0 where it gets nothing new.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Full`], naming the option that enlarges the table; then nothing is reserved.
    pub fn plan(
        &mut self,
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        weight: impl Fn(&ServerKey, u32) -> u32,
    ) -> Result<Plan, ApiError> {
        if model.services().len() > self.capacity.services as usize {
            return Err(full("services", self.capacity.services, "--services"));
        }
        let mut plan = Plan { services: Vec::new() };
        for key in touched {
            match self.plan_service(*key, model.services().get(key), &weight) {
                Ok(None) => {}
                Ok(Some(planned)) => plan.services.push(planned),
                Err(error) => {
                    self.discard(plan);
                    return Err(error);
                }
            }
        }
        Ok(plan)
    }

    fn plan_service(
        &mut self,
        key: ServiceKey,
        wanted: Option<&Arc<ServiceEntry>>,
        weight: &impl Fn(&ServerKey, u32) -> u32,
    ) -> Result<Option<Planned>, ApiError> {
        let present = self.services.get(&key).cloned();
        let Some(wanted) = wanted else {
            let Some(slot) = present else { return Ok(None) };
            if slot.word.kind() == Kind::Tombstone {
                return Ok(None);
            }
            let generation = slot.word.generation().wrapping_add(1);
            return Ok(Some(Planned {
                key,
                is_new: false,
                list: Vec::new(),
                ring: Vec::new(),
                ring_word: RingWord::default(),
                added: Vec::new(),
                revived: Vec::new(),
                removed: slot.ids.clone(),
                last_weights: Vec::new(),
                slot: Slot {
                    id: slot.id,
                    list: Extent::default(),
                    ring: Extent::default(),
                    word: ListWord::new(Kind::Tombstone, 0, 0, generation, true),
                    ids: Vec::new(),
                },
            }));
        };
        let mut reserved = Reserved::default();
        match self.plan_live(key, present.as_ref(), wanted, weight, &mut reserved) {
            Ok(planned) => Ok(Some(planned)),
            Err(error) => {
                self.release(reserved);
                Err(error)
            }
        }
    }

    fn plan_live(
        &mut self,
        key: ServiceKey,
        present: Option<&Slot>,
        wanted: &ServiceEntry,
        weight: &impl Fn(&ServerKey, u32) -> u32,
        reserved: &mut Reserved,
    ) -> Result<Planned, ApiError> {
        let id = match present {
            Some(slot) => slot.id,
            None => {
                let id = self.free_services.pop_first().ok_or_else(|| {
                    full(
                        "services, deleted ones with connections included",
                        self.capacity.services,
                        "--services",
                    )
                })?;
                reserved.service = Some(id);
                id
            }
        };
        let mut ids = Vec::with_capacity(wanted.servers.len());
        let mut revived = Vec::new();
        let mut members = Vec::with_capacity(wanted.servers.len());
        let mut last_weights = Vec::new();
        for server in &wanted.servers {
            let known = self.destinations.get(&(id, server.key)).copied();
            let destination = match known {
                Some(destination) => {
                    if self.removed.contains(&destination) {
                        revived.push(destination);
                    }
                    destination
                }
                None => {
                    let destination = self.free_destinations.pop_first().ok_or_else(|| {
                        full(
                            "destinations, removed ones with connections included",
                            self.capacity.destinations,
                            "--destinations",
                        )
                    })?;
                    reserved.destinations.push((destination, server.key));
                    destination
                }
            };
            ids.push(destination);
            let before = known.map_or(0, |_| {
                high(self.tables.destinations[destination as usize].port.load())
            });
            let last_weight = if server.weight > 0 { server.weight } else { before };
            last_weights.push((destination, last_weight));
            members.push(Member {
                address: address(server.key.address),
                port: server.key.port,
                weight: weight(&server.key, server.weight),
                last_weight,
            });
        }
        let kind = kind(wanted.spec.scheduler);
        let old_ids = present.map(|slot| slot.ids.as_slice()).unwrap_or_default();
        let restart = present.is_none_or(|slot| slot.word.kind() != kind);
        let list = list_words(&members, &ids, old_ids);
        let ring = ring_words(kind, &members);
        let list_extent = self
            .lists
            .take(count(list.len()))
            .ok_or_else(|| full("words of lists", length(&self.tables.lists), "--destinations"))?;
        reserved.list = list_extent;
        let ring_extent = self
            .rings
            .take(count(ring.len()))
            .ok_or_else(|| full("words of rings", length(&self.tables.rings), "--services"))?;
        reserved.ring = ring_extent;
        let flag = |flag| wanted.spec.flags.contains(&flag);
        let generation = present.map_or(0, |slot| slot.word.generation().wrapping_add(1));
        Ok(Planned {
            key,
            is_new: present.is_none(),
            ring_word: RingWord::new(
                ring_extent.offset,
                slots(kind),
                flag(SchedulerFlag::Fallback),
                flag(SchedulerFlag::Port),
            ),
            removed: old_ids.iter().copied().filter(|old| !ids.contains(old)).collect(),
            added: std::mem::take(&mut reserved.destinations),
            revived,
            last_weights,
            list,
            ring,
            slot: Slot {
                id,
                list: list_extent,
                ring: ring_extent,
                word: ListWord::new(kind, list_extent.offset, count(ids.len()), generation, restart),
                ids,
            },
        })
    }

    /// Gives back what a plan has reserved.
    pub fn discard(&mut self, plan: Plan) {
        for planned in plan.services {
            self.release(Reserved {
                service: planned.is_new.then_some(planned.slot.id),
                destinations: planned.added,
                list: planned.slot.list,
                ring: planned.slot.ring,
            });
        }
    }

    fn release(&mut self, reserved: Reserved) {
        self.free_services.extend(reserved.service);
        self.free_destinations
            .extend(reserved.destinations.into_iter().map(|(id, _)| id));
        self.lists.give(reserved.list);
        self.rings.give(reserved.ring);
    }

    /// Makes a plan live, in one step. [`Compiler::settle`] must have been called since the last one.
    pub fn apply(&mut self, plan: Plan) {
        let tables = Arc::clone(&self.tables);
        let control = &tables.control[0];
        let next = 1 - live(control);
        for planned in &plan.services {
            self.write(planned, next);
        }
        control
            .generation
            .store(control.generation.load().wrapping_add(1));
        for planned in plan.services {
            self.finish(planned);
        }
    }

    /// Writes what the next configuration of a service needs, where no packet sees it yet.
    fn write(&mut self, planned: &Planned, next: usize) {
        let tables = Arc::clone(&self.tables);
        let Planned {
            key,
            slot,
            is_new,
            list,
            ring,
            ring_word,
            added,
            revived,
            removed: _,
            last_weights,
        } = planned;
        let row = &tables.services[slot.id as usize];
        if *is_new {
            row.lists.iter().chain(&row.rings).for_each(|word| word.store(0));
            row.retired.iter().for_each(|word| word.store(0));
            let address = address(key.address);
            row.address[0].store(address.high());
            row.address[1].store(address.low());
            row.identity
                .store(ServiceRow::identity(key.port, IpProto(key.protocol.number())));
            row.flags.store(if self.local.contains(&key.address) {
                service_flag::LOCAL
            } else {
                0
            });
            self.enter(slot.id, *key);
        }
        for (id, server) in added {
            self.write_destination(*id, slot.id, *server);
        }
        for &(id, weight) in last_weights {
            let port = &tables.destinations[id as usize].port;
            port.store(port.load() & 0xffff_ffff | u64::from(weight) << 32);
        }
        for &id in revived {
            let towards = &tables.destinations[id as usize].towards;
            towards.store(towards.load() & !destination_flag::REMOVED);
        }
        store(&tables.lists, slot.list, list);
        store(&tables.rings, slot.ring, ring);
        if *is_new {
            // Nobody has it yet; all others move it on by themselves, or by `carry_cursor`.
            let current_weight = list.first().map_or(0, |&header| high(header));
            let cursor = Cursor {
                generation: slot.word.generation(),
                position: 0,
                current_weight,
            };
            tables.cursors[slot.id as usize].store(cursor.word());
        }
        row.rings[next].store(ring_word.0);
        row.lists[next].store(slot.word.0);
    }

    fn write_destination(&mut self, id: u32, service: u32, server: ServerKey) {
        let row = &self.tables.destinations[id as usize];
        let address = address(server.address);
        row.address[0].store(address.high());
        row.address[1].store(address.low());
        row.port.store(u64::from(server.port));
        row.place.store(u64::from(service) << 32);
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
        self.carry_cursor(slot.id, slot.word);
        self.unsettled.push(slot.id);
        if let Some(old) = self.services.insert(key, slot) {
            self.garbage.push((old.list, old.ring));
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
        !self.unsettled.is_empty()
    }

    /// Makes both configurations the same again and gives back what the old one used. No packet that
    /// saw the old one may be left: [`super::grace`] waits for that.
    pub fn settle(&mut self) {
        let live = live(&self.tables.control[0]);
        for id in std::mem::take(&mut self.unsettled) {
            let row = &self.tables.services[id as usize];
            row.rings[1 - live].store(row.rings[live].load());
            row.lists[1 - live].store(row.lists[live].load());
        }
        for (list, ring) in std::mem::take(&mut self.garbage) {
            self.lists.give(list);
            self.rings.give(ring);
        }
    }

    /// Enters a service into the index.
    fn enter(&self, id: u32, key: ServiceKey) {
        let control = &self.tables.control[0];
        let hash = hash::service(
            control.key(),
            address(key.address),
            key.port,
            key.protocol.number(),
        );
        enter_index(&self.tables.service_index, hash, control.service_mask.load(), id);
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
        self.tables.destinations[id as usize].towards.store(0);
        self.free_destinations.insert(id);
        let is_last = !self.members.values().any(|(other, _)| *other == service);
        let deleted = self
            .services
            .iter()
            .find(|(_, slot)| slot.id == service && slot.word.kind() == Kind::Tombstone);
        if let (true, Some((&key, _))) = (is_last, deleted) {
            self.bury(key);
        }
    }

    /// Frees the rows of deleted services that have no destinations.
    pub fn bury_empty(&mut self) {
        let busy: HashSet<u32> = self.members.values().map(|(service, _)| *service).collect();
        let empty: Vec<_> = self
            .services
            .iter()
            .filter(|(_, slot)| slot.word.kind() == Kind::Tombstone && !busy.contains(&slot.id))
            .map(|(key, _)| *key)
            .collect();
        for key in empty {
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
        row.lists.iter().for_each(|word| word.store(0));
        row.identity.store(0);
        leave_index(&self.tables.service_index, id);
    }

    /// Notes the way to a real server, or that it is not known; every destination there follows at once.
    pub fn set_way(&mut self, server: IpAddr, way: Option<Way>) {
        match way {
            Some(way) => self.ways.insert(server, way),
            None => self.ways.remove(&server),
        };
        for (id, (_, key)) in &self.members {
            if key.address == server {
                store_way(&self.tables.destinations[*id as usize], way);
            }
        }
    }

    /// Notes which addresses the host holds: a packet that the program has no use for goes to the host
    /// only where the VIP is one of them.
    pub fn set_local(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.local = addresses.into_iter().collect();
        for (key, slot) in &self.services {
            let flags = if self.local.contains(&key.address) {
                service_flag::LOCAL
            } else {
                0
            };
            self.tables.services[slot.id as usize].flags.store(flags);
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

    /// What a service's destinations that are gone had counted.
    pub fn retired(&self, service: &ServiceKey) -> Stats {
        let Some(slot) = self.services.get(service) else {
            return Stats::default();
        };
        let [connections, packets, bytes] = &self.tables.services[slot.id as usize].retired;
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

    /// Active and inactive connections of a destination.
    pub fn counts(&self, id: u32) -> (u64, u64) {
        let counts = self.tables.counts[id as usize].connections.load();
        (counts & 0xffff_ffff, counts >> 32)
    }
}

/// What was reserved for one service.
#[derive(Debug, Default)]
struct Reserved {
    service: Option<u32>,
    destinations: Vec<(u32, ServerKey)>,
    list: Extent,
    ring: Extent,
}

fn full(what: &str, limit: u32, option: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Full,
        format!("the table is full (room for {limit} {what}): start the agent with a larger {option}"),
    )
}

/// The word of the service index that was a service's, in a bucket that is full: it names row 0, which is no
/// service, and keeps the bucket full for those who look in their second one because of that.
const LEFT: u64 = index_word(1 << 32, 0);

/// Enters a word into the service index: into its first bucket, or, where that is full or has a word
/// of the same tag, into its second. The program looks at the second for the same two reasons.
pub(super) fn enter_index(index: &[IndexBucket], hash: u64, mask: u64, id: u32) {
    let (first, second) = index_buckets(hash, mask);
    let tag = index_word(hash, 0) >> 32;
    let free = [first, second]
        .into_iter()
        .filter_map(|bucket| index.get(bucket as usize))
        .filter(|bucket| {
            bucket
                .0
                .iter()
                .all(|word| low(word.load()) == 0 || word.load() >> 32 != tag)
        })
        .flat_map(|bucket| &bucket.0)
        .find(|word| low(word.load()) == 0);
    if let Some(word) = free {
        word.store(index_word(hash, id));
    }
}

/// Takes a service's word out of the service index.
fn leave_index(index: &[IndexBucket], id: u32) {
    for bucket in index {
        let is_full = bucket.0.iter().all(|word| word.load() != 0);
        let own = bucket.0.iter().filter(|word| low(word.load()) == id);
        own.for_each(|word| word.store(if is_full { LEFT } else { 0 }));
    }
}

fn live(control: &Control) -> usize {
    usize::from(control.generation.load() & 1 == 1)
}

fn list_words(members: &[Member], ids: &[u32], old_ids: &[u32]) -> Vec<u64> {
    let (di, mw) = ring::weighted_marks(members.iter().map(|member| member.weight));
    let places = ring::places(old_ids, ids);
    std::iter::once(u64::from(mw) << 32 | u64::from(di))
        .chain(
            members
                .iter()
                .zip(ids)
                .map(|(member, &id)| list_entry(member.weight, id)),
        )
        .chain(ring::pack(&places))
        .collect()
}

fn ring_words(kind: Kind, members: &[Member]) -> Vec<u64> {
    let slots = match kind {
        Kind::Sh => ring::source_hash(members),
        Kind::Dh => ring::destination_hash(members),
        Kind::Mh => ring::maglev(members),
        Kind::Absent | Kind::Tombstone | Kind::Rr | Kind::Wrr | Kind::Fo => Vec::new(),
    };
    ring::pack(&slots).collect()
}

fn slots(kind: Kind) -> u32 {
    match kind {
        Kind::Sh | Kind::Dh => HASH_SLOTS,
        Kind::Mh => MH_SLOTS,
        Kind::Absent | Kind::Tombstone | Kind::Rr | Kind::Wrr | Kind::Fo => 0,
    }
}

fn kind(scheduler: Scheduler) -> Kind {
    match scheduler {
        Scheduler::Rr => Kind::Rr,
        Scheduler::Wrr => Kind::Wrr,
        Scheduler::Fo => Kind::Fo,
        Scheduler::Sh => Kind::Sh,
        Scheduler::Dh => Kind::Dh,
        Scheduler::Mh => Kind::Mh,
    }
}

/// The extent of a list that is found in the maps. Its places are not needed again, since the cursor
/// is carried over before it is replaced; so only the list itself counts.
fn list_extent(word: ListWord) -> Extent {
    match word.kind() {
        Kind::Absent | Kind::Tombstone => Extent::default(),
        _ => Extent {
            offset: word.offset(),
            length: 1 + word.length(),
        },
    }
}

fn ring_extent(word: RingWord) -> Extent {
    Extent {
        offset: word.offset(),
        length: word.slots().div_ceil(4),
    }
}

fn store(words: &[Word], extent: Extent, values: &[u64]) {
    for (word, value) in words.iter().skip(extent.offset as usize).zip(values) {
        word.store(*value);
    }
}

fn store_way(row: &DestinationRow, way: Option<Way>) {
    let flags = row.towards.load() & !(Mac::MASK | destination_flag::RESOLVED);
    let Some(Way {
        mac,
        source_mac,
        if_index,
    }) = way
    else {
        row.towards.store(flags);
        return;
    };
    row.from.store(Mac::from_octets(source_mac).0);
    row.place
        .store(row.place.load() & !0xffff_ffff | u64::from(if_index));
    row.towards
        .store(flags | destination_flag::RESOLVED | Mac::from_octets(mac).0);
}

/// An address as the maps have it.
pub fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.to_bits()),
        IpAddr::V6(address) => Address::from_octets(address.octets()),
    }
}

/// An address from the maps.
pub fn ip(address: Address) -> IpAddr {
    if address.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from_bits(low(address.low())))
    } else {
        IpAddr::V6(Ipv6Addr::from(address.octets()))
    }
}

fn service_key(row: &ServiceRow) -> Option<ServiceKey> {
    let identity = row.identity.load();
    let protocol = match identity >> 16 & 0xff {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let address = ip(Address::from_halves(row.address[0].load(), row.address[1].load()));
    Some(ServiceKey {
        protocol,
        address,
        port: port(identity),
    })
}

fn server_key(row: &DestinationRow) -> ServerKey {
    let address = ip(Address::from_halves(row.address[0].load(), row.address[1].load()));
    ServerKey {
        address,
        port: port(row.port.load()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits are wanted")]
fn port(word: u64) -> u16 {
    word as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    low(word >> 32)
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn length<T>(rows: &[T]) -> u32 {
    count(rows.len())
}

#[cfg(test)]
mod tests {
    use lvs_xdp_common::{director, maps::memory::Memory, reason::Reason};

    use super::*;

    const VIP: u32 = 0x0a09_0064;

    /// What becomes of an ACK for a port of the VIP: [`Reason::NoConnection`] where there is a service.
    fn found(maps: &Memory, port: u16) -> bool {
        let mut frame = [0; 60];
        frame[..18].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40]);
        frame[23] = 6;
        frame[30..34].copy_from_slice(&VIP.to_be_bytes());
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[47] = 0x10;
        director::decide(&frame[..], maps, 1).reason == Reason::NoConnection
    }

    #[test]
    fn services_of_one_bucket_are_found_whatever_others_come_and_go() {
        let maps = Memory::new(16, 64, 8);
        let mask = maps.control.service_mask.load();
        let hash_of = |port| hash::service(maps.control.key(), Address::from_ipv4(VIP), port, 6);
        // Twelve services whose first bucket is the same: four have to be in their second one.
        let ports: Vec<u16> = (1..u16::MAX)
            .filter(|port| index_buckets(hash_of(*port), mask).0 == 5)
            .take(12)
            .collect();
        let id_of = |port: u16| 1 + count(ports.iter().position(|other| *other == port).unwrap_or(99));
        for &port in &ports {
            let row = &maps.services[id_of(port) as usize];
            row.address[1].store(Address::from_ipv4(VIP).low());
            row.identity.store(ServiceRow::identity(port, IpProto::TCP));
            row.lists[0].store(ListWord::new(Kind::Rr, 0, 0, 0, false).0);
            enter_index(&maps.service_index, hash_of(port), mask, id_of(port));
        }
        for &gone in &ports {
            leave_index(&maps.service_index, id_of(gone));
            for &port in &ports {
                assert_eq!(found(&maps, port), port != gone, "{port} while {gone} is gone");
            }
            enter_index(&maps.service_index, hash_of(gone), mask, id_of(gone));
            assert!(found(&maps, gone), "{gone} is back");
        }
        // All that is left at last are words that name nothing.
        for &port in &ports {
            leave_index(&maps.service_index, id_of(port));
        }
        assert!(ports.iter().all(|port| !found(&maps, *port)));
    }
}
