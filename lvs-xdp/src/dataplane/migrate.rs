//! To tables of another size, under traffic, with no connection lost.
//!
//! The new maps are filled from the old ones, then the program on the new maps takes the place of the
//! one on the old, then what changed meanwhile follows. In between, a TCP packet that finds no entry
//! is dropped instead of judged ([`control_flag::MIGRATING`]): its sender repeats it, and some
//! milliseconds later its entry is there. A kill at any moment leaves the old maps in use, or the new
//! ones with that flag, which makes the next agent finish.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use lvs_xdp_common::{
    abi::{COUNTER_WORDS, Control, control_flag, destination_flag, name},
    atomic::Word,
    flow::Flow,
    hash,
    maps::Maps as _,
    table::{self, Inserted, Key, New},
};

use super::{
    Dataplane,
    object::running_program,
    pins::{LinkPin, Pins, open_map},
    rows::{enter_index, service_key},
    sweep::Listed,
    tables::{Capacity, OTHER_MAPS, Shared, Tables},
};

type Counters = PerCpuArray<MapData, [u64; COUNTER_WORDS]>;
/// Values of counters by destination.
type Carried = HashMap<u32, PerCpuValues<[u64; COUNTER_WORDS]>>;

/// Which maps to use.
#[derive(Debug)]
pub(super) struct Plan {
    /// The generation to load the program with.
    pub(super) generation: u32,
    /// The generation that is there; the same one where nothing has to move.
    pub(super) from: Option<u32>,
    /// The sizes of that generation, where an agent was killed while it moved there and others are
    /// wanted now: that move is finished, on those sizes, before there is another plan.
    pub(super) unfinished: Option<Capacity>,
}

/// Maps that are made anew when any size changes: the connection table, what is counted of it, and
/// the row that holds the sizes.
const MOVED: [&str; 4] = [name::CONTROL, name::HOT, name::COLD, name::COUNTS];

/// Finds what is pinned and prepares the directory of a new generation where sizes have changed.
pub(super) fn plan(pins: &Pins, capacity: Capacity) -> anyhow::Result<Plan> {
    let shapes = capacity.shapes();
    let generations = pins.generations()?;
    let next = generations.last().map_or(1, |last| last + 1);
    let Some(live) = pins.live(running_program(&pins.links()?)?)? else {
        pins.keep_only(None)?;
        std::fs::create_dir_all(pins.generation(next)).context("cannot make a directory for the maps")?;
        return Ok(Plan {
            generation: next,
            from: None,
            unfinished: None,
        });
    };
    let differing = pins.differing(live, &shapes)?;
    let unfinished = if differing.is_empty() {
        None
    } else {
        unfinished(&pins.generation(live))?
    };
    if differing.is_empty() || unfinished.is_some() {
        return Ok(Plan {
            generation: live,
            from: Some(live),
            unfinished,
        });
    }
    pins.keep_only(Some(live))?;
    std::fs::create_dir_all(pins.generation(next)).context("cannot make a directory for the maps")?;
    for shape in &shapes {
        if !MOVED.contains(&shape.name) && !differing.iter().any(|other| other.name == shape.name) {
            pins.share(live, next, shape.name)?;
        }
    }
    for name in OTHER_MAPS {
        pins.share(live, next, name)?;
    }
    Ok(Plan {
        generation: next,
        from: Some(live),
        unfinished: None,
    })
}

/// The sizes of a generation, where an agent was killed while it moved there.
fn unfinished(directory: &Path) -> anyhow::Result<Option<Capacity>> {
    let control: Shared<Control> = Shared::open(directory, name::CONTROL)?;
    if control[0].flags.load() & control_flag::MIGRATING == 0 {
        return Ok(None);
    }
    Capacity::pinned(directory).map(Some)
}

/// Where a move to `live` was not finished: brings over what the generation before has, as soon as no
/// packet is in its program any more. The clock of `tables` is set.
fn finish(pins: &Pins, live: u32, tables: &Tables) -> anyhow::Result<()> {
    let flags = &tables.control[0].flags;
    if flags.load() & control_flag::MIGRATING == 0 {
        return Ok(());
    }
    super::grace().context("cannot wait for the old program's last packet")?;
    let before = pins
        .generations()?
        .into_iter()
        .rev()
        .find(|number| *number < live);
    if let Some(old) = before.and_then(|number| Tables::open(&pins.generation(number)).ok()) {
        old.set_now(tables.now());
        copy_connections(&old, tables);
    }
    flags.store(flags.load() & !control_flag::MIGRATING);
    Ok(())
}

impl Dataplane {
    /// Fills this generation's maps from another's and switches to them.
    pub(super) fn migrate(&mut self, from: u32, links: &[LinkPin]) -> anyhow::Result<()> {
        let old = Tables::open(&self.pins.generation(from))?;
        let new = Arc::clone(&self.tables);
        let control = &new.control[0];
        for (to, from) in control
            .hash_key
            .iter()
            .chain(&control.timeouts)
            .zip(old.control[0].hash_key.iter().chain(&old.control[0].timeouts))
        {
            to.store(from.load());
        }
        control.generation.store(old.control[0].generation.load());
        // The two clocks must agree: entries carry times of the old one.
        control.jiffies_base.store(old.control[0].jiffies_base.load());
        control
            .seconds_per_jiffy
            .store(old.control[0].seconds_per_jiffy.load());
        self.copy_configuration(&old)?;
        // Where they are not the same map: the old program counts until it is replaced.
        let counters: Option<Counters> = if old.destinations.len() == new.destinations.len() {
            None
        } else {
            Some(open_map(&self.pins.generation(from), name::COUNTERS)?)
        };
        let mut carried = HashMap::new();
        if let Some(counters) = &counters {
            self.carry_counters(&old, counters, &mut carried)?;
        }
        control
            .flags
            .store(old.control[0].flags.load() | control_flag::MIGRATING);
        let now = self.tick()?;
        old.set_now(now);
        copy_connections(&old, &new);
        self.take_over(links)?;
        finish(&self.pins, self.generation, &new)?;
        if let Some(counters) = &counters {
            self.carry_counters(&old, counters, &mut carried)?;
        }
        Ok(())
    }

    /// Adds what another generation has counted since the last call; `carried` is what it had then.
    ///
    /// A packet that the program counts for the same destination between reading and writing, some
    /// microseconds, is forgotten: no call adds to a counter that a program has.
    fn carry_counters(
        &mut self,
        old: &Tables,
        counters: &Counters,
        carried: &mut Carried,
    ) -> anyhow::Result<()> {
        for (index, row) in (0..self.counters.len()).zip(&*old.destinations) {
            if row.towards.load() & destination_flag::USED == 0 {
                continue;
            }
            let counted = counters.get(&index, 0)?;
            let before = carried.get(&index);
            let mut sums = self.counters.get(&index, 0)?.to_vec();
            let mut is_changed = false;
            for (cpu, (sums, counted)) in sums.iter_mut().zip(counted.iter()).enumerate() {
                for (word, (sum, count)) in sums.iter_mut().zip(counted).enumerate() {
                    let more = count - before.map_or(0, |before| before[cpu][word]);
                    is_changed |= more > 0;
                    *sum += more;
                }
            }
            if is_changed {
                self.counters.set(index, PerCpuValues::try_from(sums)?, 0)?;
                carried.insert(index, counted);
            }
        }
        Ok(())
    }

    /// Finishes a move that was interrupted.
    pub(super) fn finish_migration(&mut self) -> anyhow::Result<()> {
        self.tick()?;
        finish(&self.pins, self.generation, &self.tables)
    }

    /// Copies those of the configuration's maps that are not the same ones in both generations.
    fn copy_configuration(&self, old: &Tables) -> anyhow::Result<()> {
        let new = Arc::clone(&self.tables);
        let mut fits = true;
        if old.services.len() != new.services.len() {
            fits &= copy_rows(&old.services, &new.services, |row| {
                let words = row.address.iter().chain([&row.identity, &row.flags]);
                words
                    .chain(&row.lists)
                    .chain(&row.rings)
                    .chain(&row.options)
                    .chain(&row.retired)
                    .collect()
            });
            fits &= copy_rows(&old.cursors, &new.cursors, |word| vec![word]);
        }
        if old.lists.len() != new.lists.len() {
            fits &= copy_rows(&old.lists, &new.lists, |word| vec![word]);
        }
        if old.rings.len() != new.rings.len() {
            fits &= copy_rows(&old.rings, &new.rings, |word| vec![word]);
        }
        if old.destinations.len() != new.destinations.len() {
            fits &= copy_rows(&old.destinations, &new.destinations, |row| {
                [
                    &row.towards,
                    &row.from,
                    &row.place,
                    &row.port,
                    &row.joined,
                    &row.weight,
                ]
                .into_iter()
                .chain(&row.address)
                .collect()
            });
        }
        for (from, to) in old.counts.iter().zip(&*new.counts) {
            to.limits.store(from.limits.load());
            to.overload.store(from.overload.load());
        }
        if !fits {
            bail!(
                "the tables hold more than the new sizes have room for: start the agent with larger --services and --destinations"
            );
        }
        if old.service_index.len() != new.service_index.len() {
            let control = &new.control[0];
            for (id, row) in (0..).zip(new.services.iter()) {
                if service_key(row).is_some() {
                    let identity = row.identity.load();
                    let address = lvs_xdp_common::packet::Address::from_halves(
                        row.address[0].load(),
                        row.address[1].load(),
                    );
                    let [port, protocol] = [identity & 0xffff, identity >> 16 & 0xff];
                    let hash = hash::service(
                        control.key(),
                        address,
                        u16::try_from(port)?,
                        u8::try_from(protocol)?,
                    );
                    enter_index(&new.service_index, &new.control[0], hash, id);
                }
            }
        }
        Ok(())
    }
}

/// Copies rows word for word; false where a row that is used has no place in the new table.
fn copy_rows<'a, T>(old: &'a [T], new: &'a [T], words: impl Fn(&'a T) -> Vec<&'a Word>) -> bool {
    for (from, to) in old.iter().zip(new) {
        for (from, to) in words(from).into_iter().zip(words(to)) {
            to.store(from.load());
        }
    }
    old.iter()
        .skip(new.len())
        .all(|row| words(row).iter().all(|word| word.load() == 0))
}

/// Enters every live connection of one table in another, and brings those that are there up to date; the
/// templates first, so that their connections find them.
fn copy_connections(old: &Tables, new: &Tables) {
    old.renew_templates();
    let (templates, connections): (Vec<_>, Vec<_>) =
        old.connections().partition(|listed| listed.flow.is_template());
    let all = templates.iter().chain(&connections);
    let without_room = all.filter(|listed| !copy_connection(old, new, listed)).count();
    if without_room > 0 {
        tracing::warn!(
            "{without_room} connections have no room in the new table: start the agent with more --connections"
        );
    }
}

/// Whether there was room for it.
fn copy_connection(old: &Tables, new: &Tables, listed: &Listed) -> bool {
    let Listed { entry, flow, .. } = listed;
    let hash = hash::flow(new.control().key(), flow);
    let key = Key::new(hash, new.control().bucket_mask.load());
    match table::find(new, key) {
        Some((place, there)) if table::is_flow(new, place, flow) => {
            // Each program may have seen packets that the other has not: the later state of both
            // holds, so that a connection whose end only one has seen is not taken for open.
            let is_further = entry.state_number() > there.state_number();
            let is_later = entry.age(old.now()) < there.age(new.now());
            if there.destination() == entry.destination() && (is_further || is_later) {
                let state = if is_further { entry.state() } else { there.state() };
                let latest = if is_later { *entry } else { there };
                let _ = table::overwrite(new, place, there, latest.with_state(state));
            }
            true
        }
        Some(_) => false,
        None => {
            let control = old
                .cold(listed.index)
                .and_then(|row| table::controlling(old, row.control.load()))
                .map_or(0, |template| control(new, &template));
            let opened = old
                .cold(listed.index)
                .map_or(0, |row| u64::from(Flow::opened(row)));
            let inserted = table::insert(
                new,
                &New {
                    hash,
                    flow: *flow,
                    opened,
                },
                *entry,
                control,
            );
            if inserted != Inserted::Done {
                table::release(new, control);
            }
            matches!(inserted, Inserted::Done | Inserted::Exists(_))
        }
    }
}

/// One connection more for a template in the new table; how the connection's row refers to it.
fn control(new: &Tables, template: &Flow) -> u64 {
    let hash = hash::flow(new.control().key(), template);
    let Some((place, _)) = table::look_for(new, template, hash, new.now()) else {
        return 0;
    };
    table::hold(new, place.index)
}
