//! From a packet to a verdict, top to bottom as a packet goes.

use crate::{
    abi::{
        INTERFACE_ROWS, Kind, ListWord, RingWord, ServiceRow, control_flag, destination_flag, index_buckets,
        index_word, service_flag,
    },
    connection::{Entry, State},
    hash,
    maps::Maps,
    packet::{self, Frame, IpProto, Mac, Packet, TcpFlags},
    reason::Reason,
    scheduler,
    table::{self, Changed, Flow, Inserted, Key, New, Place},
};

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it to a real server.
    Forward(Forward),
    /// Leave it to the host's own stack, as it came.
    Pass(Reason),
    /// Throw it away.
    Drop(Reason),
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Why.
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
    /// Why.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Forward(forward) => forward.reason,
            Self::Pass(reason) | Self::Drop(reason) => *reason,
        }
    }
}

/// A service that a packet is for, in the configuration that is live.
#[derive(Clone, Copy)]
struct Service {
    id: u32,
    list: ListWord,
    ring: RingWord,
    local: bool,
}

/// What is known of a packet for a service. Handed on by reference: a function of the program that is
/// not inlined has five registers for its arguments, and its stack is short.
struct Seen {
    key: Key,
    flow: Flow,
    service: Service,
    flags: TcpFlags,
    length: u16,
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
        Err(reason) => return Verdict::Pass(reason),
    };
    let Some(service) = find_service(maps, &packet) else {
        return Verdict::Pass(Reason::NotForUs);
    };
    if let Some(row) = maps.interface(ingress & (INTERFACE_ROWS - 1))
        && !row.takes(ingress, packet.mac)
    {
        return Verdict::Pass(Reason::OtherHost);
    }
    let control = maps.control();
    let key = Key::new(hash::flow(control.key(), &packet), control.bucket_mask.load());
    let seen = Seen {
        key,
        flow: Flow::new(maps.control(), &packet, service.id),
        service,
        flags: packet.flags,
        length: packet.length,
    };
    let fate = table::find(maps, key).map_or(Fate::New, |(place, entry)| known(maps, &seen, place, entry));
    match fate {
        Fate::Kept(destination) => forward(maps, seen.length, destination, Reason::Connection),
        Fate::Dropped => Verdict::Drop(Reason::DestinationRemoved),
        // In one place: the verifier follows a function anew from each.
        Fate::New => unknown(maps, &seen),
    }
}

/// The service of a packet: one cache line of the index, then the service's own.
#[inline(always)]
fn find_service<M: Maps>(maps: &M, packet: &Packet) -> Option<Service> {
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
fn live_service<M: Maps>(maps: &M, id: u32, row: &ServiceRow) -> Option<Service> {
    let configuration = (maps.control().generation.load() & 1) as usize;
    let list = ListWord(row.lists[configuration].load());
    if matches!(list.kind(), Kind::Absent) {
        return None;
    }
    let ring = RingWord(row.rings[configuration].load());
    Some(Service {
        id,
        list,
        ring,
        local: row.flags.load() & service_flag::LOCAL != 0,
    })
}

/// A packet whose tag is in the table.
#[inline(always)]
fn known<M: Maps>(maps: &M, seen: &Seen, place: Place<'_>, entry: Entry) -> Fate {
    let now = maps.now();
    // Past its time it is no entry; and one of another service is another flow's of the same tag.
    let Some(row) = maps.destination(entry.destination()) else {
        return Fate::New;
    };
    if table::is_expired(maps, entry, now) || row.service() != seen.service.id {
        return Fate::New;
    }
    let state = entry.state();
    let anew = seen.flags.opens() && state.is_over();
    if row.towards.load() & destination_flag::REMOVED != 0 && !anew {
        // Without restarting its time, as the kernel does (`ip_vs_in_hook`).
        return Fate::Dropped;
    }
    if table::is_plain(state, seen.flags.telling()) {
        table::refresh(maps, place, entry, now);
    } else if table::change(maps, place, entry, &seen.flow, seen.flags) != Changed::Kept {
        return Fate::New;
    }
    Fate::Kept(entry.destination())
}

/// A packet of a flow that has no entry.
#[inline(never)]
fn unknown<M: Maps>(maps: &M, seen: &Seen) -> Verdict {
    let Seen {
        key,
        flow,
        service,
        flags,
        length,
    } = seen;
    if matches!(service.list.kind(), Kind::Tombstone) {
        return Verdict::Pass(Reason::NotForUs);
    }
    let is_tcp = flow.protocol() == IpProto::TCP;
    if is_tcp && !flags.opens() {
        return if maps.control().flags.load() & control_flag::MIGRATING != 0 {
            Verdict::Drop(Reason::Migrating)
        } else if service.local {
            Verdict::Pass(Reason::NoConnectionPassed)
        } else {
            Verdict::Drop(Reason::NoConnection)
        };
    }
    let Some(destination) = scheduler::choose(maps, service.id, service.list, service.ring, flow) else {
        return Verdict::Drop(Reason::NoDestination);
    };
    let new = New {
        key: *key,
        flow: *flow,
        destination,
        state: State::first(is_tcp, flags.telling()),
        seen: maps.now(),
    };
    let length = *length;
    match table::insert(maps, &new) {
        Inserted::Done => forward(maps, length, destination, Reason::NewConnection),
        Inserted::Exists(other) => forward(maps, length, other, Reason::Connection),
        Inserted::Collision | Inserted::Full if service.list.kind().is_hash() => {
            forward(maps, length, destination, Reason::Untracked)
        }
        Inserted::Collision => Verdict::Drop(Reason::TagCollision),
        Inserted::Full => Verdict::Drop(Reason::TableFull),
        Inserted::Race => Verdict::Drop(Reason::InsertRace),
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the interface")]
fn forward<M: Maps>(maps: &M, length: u16, destination: u32, reason: Reason) -> Verdict {
    let Some(row) = maps.destination(destination) else {
        return Verdict::Pass(Reason::Internal);
    };
    let towards = row.towards.load();
    if towards & destination_flag::RESOLVED == 0 {
        return Verdict::Drop(Reason::Unresolved);
    }
    Verdict::Forward(Forward {
        reason,
        destination,
        to: Mac(towards & Mac::MASK),
        from: Mac(row.from.load() & Mac::MASK),
        if_index: row.place.load() as u32,
        length,
    })
}
