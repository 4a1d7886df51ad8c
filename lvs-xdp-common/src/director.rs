//! From a packet to a verdict, top to bottom as a packet goes.

use crate::{
    abi::{
        INTERFACE_ROWS, Kind, ListWord, RingWord, ServiceRow, control_flag, destination_flag, index_buckets,
        index_word, service_flag,
    },
    connection::{Entry, State},
    hash,
    maps::Maps,
    packet::{self, Frame, IpProto, Mac, Packet},
    reason::{Outcome, Reason},
    scheduler,
    table::{self, Changed, Flow, Inserted, Key, New, Place},
};

/// What is to be done with a packet: what [`Reason::outcome`] says. The rest is where it goes, and 0
/// where it goes nowhere (not an enum: what a variant leaves open, the compiler leaves uninitialised in
/// a register, which the verifier refuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it, and why.
    pub reason: Reason,
    /// The destination's id.
    pub destination: u32,
    /// The real server's MAC address.
    pub to: Mac,
    /// The MAC address of the director's interface towards it.
    pub from: Mac,
    /// That interface.
    pub if_index: u32,
    /// Length of the IP packet in bytes, for the counters.
    pub length: u16,
}

impl Verdict {
    /// A packet that goes nowhere.
    #[inline(always)]
    pub const fn stay(reason: Reason) -> Self {
        Self {
            reason,
            destination: 0,
            to: Mac(0),
            from: Mac(0),
            if_index: 0,
            length: 0,
        }
    }
}

/// A service that a packet is for, in the configuration that is live.
#[derive(Clone, Copy)]
struct Service {
    list: ListWord,
    ring: RingWord,
    local: bool,
}

/// What an entry of a packet's tag means for the packet.
enum Fate {
    /// It goes to this destination.
    Kept(u32),
    /// Its destination was removed.
    Dropped,
    /// The entry is none for it.
    New,
}

/// Decides about a frame that came in on interface `ingress`. The frame itself is not changed:
/// [`packet::rewrite_macs`] does that to one that is forwarded.
#[inline(always)]
pub fn decide<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32) -> Verdict {
    let packet = match packet::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::stay(reason),
    };
    let Some((id, service)) = find_service(maps, &packet) else {
        return Verdict::stay(Reason::NotForUs);
    };
    if let Some(row) = maps.interface(ingress & (INTERFACE_ROWS - 1))
        && !row.takes(ingress, packet.mac)
    {
        return Verdict::stay(Reason::OtherHost);
    }
    let control = maps.control();
    let hash = hash::flow(control.key(), &packet);
    let key = Key::new(hash, control.bucket_mask.load());
    let flow = Flow::new(&packet, id);
    let fate = table::find(maps, key).map_or(Fate::New, |(place, entry)| {
        known(maps, &packet, &flow, place, entry)
    });
    let (reason, destination) = match fate {
        Fate::Kept(destination) => (Reason::Connection, destination),
        Fate::Dropped => (Reason::DestinationRemoved, 0),
        Fate::New => begin(maps, &packet, service, &New { hash, flow }),
    };
    match reason.outcome() {
        Outcome::Forward => forward(maps, packet.length, destination, reason),
        Outcome::Pass | Outcome::Drop => Verdict::stay(reason),
    }
}

/// The service of a packet: one cache line of the index, then the service's own.
#[inline(always)]
fn find_service<M: Maps>(maps: &M, packet: &Packet) -> Option<(u32, Service)> {
    let control = maps.control();
    let hash = hash::service(
        control.key(),
        packet.destination,
        packet.destination_port,
        packet.protocol.0,
    );
    let identity = ServiceRow::identity(packet.destination_port, packet.protocol);
    let tag = index_word(hash, 0) >> 32;
    let (first, second) = index_buckets(hash, control.service_mask.load());
    let mut index = first;
    let mut round = 0;
    while round < 2 {
        let bucket = maps.service_bucket(index)?;
        let mut has_room = false;
        let mut found = 0;
        let mut slot = 0;
        while slot < 8 {
            let word = bucket.0[slot].load();
            slot += 1;
            has_room |= word == 0;
            if word != 0 && word >> 32 == tag {
                found = word;
                break;
            }
        }
        if found != 0 {
            #[expect(clippy::cast_possible_truncation, reason = "the lower half is the id")]
            let id = found as u32;
            let row = maps.service(id)?;
            if row.is(packet.destination, identity) {
                return live_service(maps, id, row);
            }
        } else if has_room {
            return None;
        }
        index = second;
        round += 1;
    }
    None
}

#[inline(always)]
fn live_service<M: Maps>(maps: &M, id: u32, row: &ServiceRow) -> Option<(u32, Service)> {
    let configuration = (maps.control().generation.load() & 1) as usize;
    let list = ListWord(row.lists[configuration].load());
    if matches!(list.kind(), Kind::Absent) {
        return None;
    }
    let ring = RingWord(row.rings[configuration].load());
    let local = row.flags.load() & service_flag::LOCAL != 0;
    Some((id, Service { list, ring, local }))
}

/// A packet whose tag is in the table.
#[inline(always)]
fn known<M: Maps>(maps: &M, packet: &Packet, flow: &Flow, place: Place<'_>, entry: Entry) -> Fate {
    let now = maps.now();
    // Past its time it is no entry; and one of another service is another flow's of the same tag.
    let Some(row) = maps.destination(entry.destination()) else {
        return Fate::New;
    };
    if table::is_expired(maps, entry, now) || u64::from(row.service()) != flow.service {
        return Fate::New;
    }
    let state = entry.state();
    let anew = packet.flags.opens() && state.is_over();
    if row.towards.load() & destination_flag::REMOVED != 0 && !anew {
        // Without restarting its time, as the kernel does (`ip_vs_in_hook`).
        return Fate::Dropped;
    }
    if table::is_plain(state, packet.flags.telling()) {
        table::refresh(maps, place, entry, now);
    } else if table::change(maps, place, entry, flow, packet.flags) != Changed::Kept {
        return Fate::New;
    }
    Fate::Kept(entry.destination())
}

/// Decides about a packet of a flow that has no entry: what becomes of it, and where it goes.
#[inline(always)]
fn begin<M: Maps>(maps: &M, packet: &Packet, service: Service, new: &New) -> (Reason, u32) {
    let Service { list, ring, local } = service;
    if matches!(list.kind(), Kind::Tombstone) {
        return (Reason::NotForUs, 0);
    }
    let is_tcp = packet.protocol == IpProto::TCP;
    if is_tcp && !packet.flags.opens() {
        let reason = if maps.control().flags.load() & control_flag::MIGRATING != 0 {
            Reason::Migrating
        } else if local {
            Reason::NoConnectionPassed
        } else {
            Reason::NoConnection
        };
        return (reason, 0);
    }
    let destination = maps.choose(list, ring, &new.flow);
    if destination == scheduler::NONE {
        return (Reason::NoDestination, 0);
    }
    let state = State::first(is_tcp, packet.flags.telling());
    match table::insert(maps, new, destination, state, maps.now()) {
        Inserted::Done => (Reason::NewConnection, destination),
        Inserted::Exists(other) => (Reason::Connection, other),
        Inserted::Collision | Inserted::Full if list.kind().is_hash() => (Reason::Untracked, destination),
        Inserted::Collision => (Reason::TagCollision, 0),
        Inserted::Full => (Reason::TableFull, 0),
        Inserted::Race => (Reason::InsertRace, 0),
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the interface")]
fn forward<M: Maps>(maps: &M, length: u16, destination: u32, reason: Reason) -> Verdict {
    let Some(row) = maps.destination(destination) else {
        return Verdict::stay(Reason::Internal);
    };
    let towards = row.towards.load();
    if towards & destination_flag::RESOLVED == 0 {
        return Verdict::stay(Reason::Unresolved);
    }
    Verdict {
        reason,
        destination,
        to: Mac(towards & Mac::MASK),
        from: Mac(row.from.load() & Mac::MASK),
        if_index: row.place.load() as u32,
        length,
    }
}

#[cfg(test)]
mod tests;
