//! Services without connections: the ring alone says where a packet goes.

use super::{Begun, is_simple, never_starts, no_destination};
use crate::{
    abi::{ListWord, Options, RingWord, ServiceRow},
    decision::Decision,
    flow::Flow,
    frame::Frame,
    maps::{Maps, Note},
    packet::Packet,
    reason::{Outcome, Reason},
    scheduler,
    signal::Signal,
    table::New,
};

/// Whether a service's packets go by its ring alone.
#[inline(always)]
pub(crate) fn is_stateless<M: Maps>(maps: &M, row: &ServiceRow) -> bool {
    let configuration = (maps.control().generation.load() & 1) as usize;
    Options(row.options[configuration].load()).has(Options::STATELESS)
}

/// [`stateless`], of a packet for a service; most of IPv4 are decided about without a note of who they are.
#[inline(always)]
pub(super) fn by_ring<const SHORT: bool, M: Maps>(maps: &M, packet: &Packet, id: u32) -> Begun {
    if SHORT {
        let flow = Flow::new(packet, id);
        let at_once =
            Begun(maps.stateless_at_once(flow.short(), flow.ports(), id, u32::from(packet.signal.0)));
        if at_once.unpack().1 != scheduler::NONE {
            return at_once;
        }
    }
    let new = New {
        hash: 0,
        flow: Flow::new(&packet.anew(), id),
        opened: 0,
    };
    maps.note(Note::Connection, &new).map_or(Begun(0), |new| {
        Begun(maps.stateless(new, u32::from(packet.signal.0)))
    })
}

/// [`stateless`], of an IPv4 packet, by its addresses in one word ([`Flow::short`]). The destination is
/// [`scheduler::NONE`] where there is more to look at.
#[inline(always)]
pub fn stateless_at_once<M: Maps>(maps: &M, addresses: u64, ports: u64, id: u32, signal: u32) -> u64 {
    let flow = Flow::from_short(addresses, ports, id);
    decide(maps, &flow, signal, scheduler::first_by_hash)
}

/// Sends a packet on to what its service's ring says.
#[inline(always)]
pub(super) fn send<F: Frame + ?Sized, M: Maps>(
    frame: &F,
    maps: &M,
    ingress: u32,
    packet: &Packet,
    is_first_fragment: bool,
    found: Begun,
) -> Decision {
    let (reason, destination) = found.unpack();
    if !matches!(reason.outcome(), Outcome::Forward) {
        return Decision::stays(reason);
    }
    if is_first_fragment {
        maps.keep_fragment_to(destination);
    } else if let Some(row) = maps.destination(destination)
        && let Some((to, from)) = row.way().plain(ingress)
        && frame.send_back(Reason::Stateless, to, from, destination, packet.length)
    {
        return Decision::DONE;
    }
    Decision::goes(reason, destination, packet.length)
}

/// Decides about a packet of a stateless service: what becomes of it, and where it goes by its client's hash alone,
/// packed as `Begun`. 0 where the service is none of these.
#[inline(always)]
pub fn stateless<M: Maps>(maps: &M, new: &New, signal: u32) -> u64 {
    let found = decide(maps, &new.flow, signal, scheduler::by_hash);
    if Begun(found).unpack().1 == scheduler::NONE {
        Begun::pack(no_destination(maps), 0)
    } else {
        found
    }
}

/// [`stateless`] with `choose` to look into the ring. The destination is [`scheduler::NONE`] where that finds none.
#[inline(always)]
fn decide<M: Maps>(
    maps: &M,
    flow: &Flow,
    signal: u32,
    choose: impl FnOnce(&M, ListWord, RingWord, &Flow) -> u32,
) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "it was an octet")]
    let signal = Signal(signal as u8);
    #[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
    let Some(row) = maps.service(flow.service as u32) else {
        return 0;
    };
    let configuration = (maps.control().generation.load() & 1) as usize;
    let list = ListWord(row.lists[configuration].load());
    // A deleted one has no ring.
    if !is_stateless(maps, row) || !list.kind().is_hash() {
        return 0;
    }
    let is_own_port = row.is_mark() || row.identity.load() & 0xffff == u64::from(flow.port());
    if !is_own_port
        || is_simple(maps) && !row.is(flow.address, ServiceRow::identity(flow.port(), flow.protocol()))
    {
        return Begun::pack(Reason::NotForUs, 0);
    }
    if let Some(reason) = never_starts(flow, signal) {
        return Begun::pack(reason, 0);
    }
    let ring = RingWord(row.rings[configuration].load());
    Begun::pack(Reason::Stateless, choose(maps, list, ring, flow))
}
