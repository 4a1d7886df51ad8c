//! Planning a change: what it takes to bring services to what the model says is reserved first, so that
//! making it live cannot fail half way.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use lvs_xdp_common::{
    abi::{Kind, ListWord, Options, RingWord, destination_flag},
    atomic::Word,
    ring::Member,
};

use super::{Compiler, Slot};
use crate::{
    api::types::{ApiError, ErrorCode, SchedulerFlag, ServerKey, ServerSpec, ServiceKey, Settings},
    dataplane::{
        extents::Extent,
        marks::Prepared,
        rows::{
            TUNNEL_WORD, address, count, high, kind, length, limits, list_words, live, low, options,
            ring_extent, ring_words, slots, tunnel_word,
        },
    },
    model::{Model, ServiceEntry},
};

/// A change that has all it needs.
#[derive(Debug)]
pub struct Plan {
    pub(super) services: Vec<Planned>,
    /// Other rules of marks than those that are live.
    pub(super) marks: Option<Prepared>,
}

#[derive(Debug)]
pub(super) struct Planned {
    pub(super) key: ServiceKey,
    pub(super) slot: Slot,
    pub(super) is_new: bool,
    /// It was deleted, and comes back while connections name its destinations: it counts from 0.
    pub(super) is_back: bool,
    /// The list extent's words, header and places included.
    pub(super) list: Vec<u64>,
    pub(super) ring: Vec<u64>,
    pub(super) ring_word: RingWord,
    /// New destinations, with their first weight.
    pub(super) added: Vec<(u32, ServerKey)>,
    pub(super) revived: Vec<u32>,
    pub(super) removed: Vec<u32>,
    pub(super) options: Options,
    /// What each of its destinations is set to.
    pub(super) settings: Vec<Setting>,
}

/// What a destination's rows say of how it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) id: u32,
    /// The effective weight.
    pub(super) weight: u32,
    /// The last configured weight above 0.
    pub(super) last_weight: u32,
    /// [`limits`].
    pub(super) limits: u64,
    pub(super) is_draining: bool,
    /// [`tunnel_word`].
    pub(super) tunnel: u64,
}

impl Compiler {
    /// Reserves what it takes to bring the touched services to what the model says.
    ///
    /// `told` are those whose scheduler is to be told of a change even where nothing has changed: wrr goes
    /// back to the list's head then. `weight` is the effective weight of a server: the configured one, or 0
    /// where it gets nothing new.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Full`], naming the option that enlarges the table, or which rules of marks are too many;
    /// [`ErrorCode::Internal`] where the kernel does not take those. Then nothing is reserved.
    pub fn plan(
        &mut self,
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        told: &BTreeSet<ServiceKey>,
        weight: impl Fn(&ServiceKey, &ServerSpec) -> u32,
    ) -> Result<Plan, ApiError> {
        if model.services().size() > self.capacity.services as usize {
            return Err(full("services", self.capacity.services, "--services"));
        }
        let mut plan = Plan {
            services: Vec::new(),
            marks: None,
        };
        for key in touched {
            let wanted = model.services().get(key);
            match self.plan_service(*key, wanted, model.settings(), told.contains(key), &weight) {
                Ok(None) => {}
                Ok(Some(planned)) => plan.services.push(planned),
                Err(error) => {
                    self.discard(plan);
                    return Err(error);
                }
            }
        }
        match self.marks.prepare(model.marks()) {
            Ok(marks) => plan.marks = marks,
            Err(error) => {
                self.discard(plan);
                return Err(error);
            }
        }
        Ok(plan)
    }

    fn plan_service(
        &mut self,
        key: ServiceKey,
        wanted: Option<&Arc<ServiceEntry>>,
        settings: Settings,
        is_told: bool,
        weight: &impl Fn(&ServiceKey, &ServerSpec) -> u32,
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
                is_back: false,
                list: Vec::new(),
                ring: Vec::new(),
                ring_word: RingWord::default(),
                added: Vec::new(),
                revived: Vec::new(),
                removed: slot.ids.clone(),
                // What becomes of its connections goes by what it said last.
                options: Options(
                    self.tables.services[slot.id as usize].options[live(&self.tables.control[0])].load(),
                ),
                settings: Vec::new(),
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
        let options = options(&wanted.spec, settings);
        match self.plan_live(key, present.as_ref(), wanted, options, weight, &mut reserved) {
            Ok(planned) if !is_told => Ok(self.without_need(planned)),
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
        options: Options,
        weight: &impl Fn(&ServiceKey, &ServerSpec) -> u32,
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
        let mut settings = Vec::with_capacity(wanted.servers.len());
        for server in &wanted.servers {
            let known = self.members.id(id, &server.key);
            let destination = match known {
                Some(destination) => {
                    if self.is_removed(destination) {
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
            let effective = weight(&key, server);
            settings.push(Setting {
                id: destination,
                weight: effective,
                last_weight,
                limits: limits(server),
                is_draining: server.drain.is_some(),
                tunnel: tunnel_word(server.method),
            });
            members.push(Member {
                address: address(server.key.address),
                port: server.key.port,
                weight: effective,
                last_weight,
                is_limited: server.upper_threshold > 0,
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
        // IPVS keeps flags of schedulers that have none, and so they mean nothing.
        let flag = |flag| slots(kind) > 0 && wanted.spec.flags.contains(&flag);
        let generation = present.map_or(0, |slot| slot.word.generation().wrapping_add(1));
        let staying: HashSet<u32> = ids.iter().copied().collect();
        let removed = old_ids.iter().copied().filter(|old| !staying.contains(old));
        let removed = removed.collect();
        Ok(Planned {
            key,
            is_new: present.is_none(),
            is_back: present.is_some_and(|slot| slot.word.kind() == Kind::Tombstone),
            ring_word: RingWord::new(
                ring_extent.offset,
                slots(kind),
                flag(SchedulerFlag::Fallback),
                flag(SchedulerFlag::Port),
            ),
            removed,
            added: std::mem::take(&mut reserved.destinations),
            revived,
            options,
            settings,
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

    /// A planned service that its scheduler need not be told of. Where its list is the one that it has, it
    /// keeps the list's generation, so that its cursor stays; where all is as it was, nothing is to be done.
    fn without_need(&mut self, mut planned: Planned) -> Option<Planned> {
        let Some(present) = self.services.get(&planned.key) else {
            return Some(planned);
        };
        let length = present.ids.len();
        let words = |all: &[Word], extent: Extent, count: usize| -> Vec<u64> {
            let words = all.iter().skip(extent.offset as usize).take(count);
            words.map(Word::load).collect()
        };
        let is_same_list = present.word.kind() == planned.slot.word.kind()
            && present.ids == planned.slot.ids
            && words(&self.tables.lists, present.list, 1 + length) == planned.list[..=length];
        if !is_same_list {
            return Some(planned);
        }
        let live = live(&self.tables.control[0]);
        let ring_word = RingWord(self.tables.services[present.id as usize].rings[live].load());
        let is_same_ring = (ring_word.slots(), ring_word.fallback(), ring_word.port())
            == (
                planned.ring_word.slots(),
                planned.ring_word.fallback(),
                planned.ring_word.port(),
            )
            && words(&self.tables.rings, ring_extent(ring_word), planned.ring.len()) == planned.ring;
        let options = &self.tables.services[present.id as usize].options[live];
        let is_all_the_same = is_same_ring
            && options.load() == planned.options.0
            && planned
                .settings
                .iter()
                .all(|setting| self.setting(setting.id) == *setting);
        if is_all_the_same {
            self.discard(Plan {
                services: vec![planned],
                marks: None,
            });
            return None;
        }
        let word = planned.slot.word;
        planned.slot.word = ListWord::new(
            word.kind(),
            word.offset(),
            word.length(),
            present.word.generation(),
            false,
        );
        Some(planned)
    }

    /// What a destination is set to.
    pub(super) fn setting(&self, id: u32) -> Setting {
        let row = &self.tables.destinations[id as usize];
        let is_tunnel = row.towards.load() & destination_flag::TUNNEL != 0;
        let tunnel = self.tables.tunnels[id as usize].how.load() & TUNNEL_WORD;
        Setting {
            id,
            weight: low(row.weight.load()),
            last_weight: high(row.port.load()),
            limits: self.tables.counts[id as usize].limits.load(),
            is_draining: row.towards.load() & destination_flag::DRAINING != 0,
            tunnel: if is_tunnel { tunnel } else { 0 },
        }
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
        // What is left of them is taken back before the next attempt, if not now.
        if plan.marks.is_some()
            && let Err(error) = self.marks.settle()
        {
            tracing::warn!("rules of marks that were not made live are still in the maps: {error}");
        }
    }

    fn release(&mut self, reserved: Reserved) {
        self.free_services.extend(reserved.service);
        self.free_destinations
            .extend(reserved.destinations.into_iter().map(|(id, _)| id));
        self.lists.give(reserved.list);
        self.rings.give(reserved.ring);
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
