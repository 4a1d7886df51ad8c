//! From a packet to a verdict, top to bottom as a packet goes.

use crate::{
    abi::{
        Counters, INTERFACE_ROWS, IndexBucket, Kind, ListWord, Options, RingWord, ServiceRow, Way,
        control_flag, index_buckets, index_word, service_flag,
    },
    connection::{Entry, State},
    decision::{Decision, Verdict},
    flow::{FTP_DATA_PORT, FTP_PORT, Flow},
    frame::Frame,
    hash,
    maps::{Maps, Note},
    packet::{Address, EtherType, IpProto, Packet},
    parse::{self, Ethernet},
    reason::{Outcome, Reason},
    scheduler,
    signal::Signal,
    table::{self, Changed, Followed, Inserted, Key, New, Place},
    verifier::opaque,
};

mod stateless;

pub(crate) use self::stateless::is_stateless;
#[doc(inline)]
pub use self::stateless::{stateless, stateless_at_once};

/// Packets a second, over all CPUs, that are answered with ICMP port unreachable; a flood is not answered
/// packet by packet (`icmp_msgs_per_sec` of the kernel).
pub const ANSWERS_A_SECOND: u64 = 1000;
/// Ports from here on may be FTP data connections' (`ip_unprivileged_port_start`).
const UNPRIVILEGED: u16 = 1024;

/// The entry of a packet's tag, its place (bucket * 8 + slot), and the way to its destination.
#[derive(Clone, Copy)]
struct Hit {
    index: u32,
    entry: Entry,
    way: Way,
}

/// A packet that may tell something of its connection.
struct Telling<'a> {
    packet: &'a Packet,
    /// Its service.
    id: u32,
    /// The hash of its flow.
    hash: u64,
    is_first_fragment: bool,
}

/// What an entry of a packet's tag means for the packet.
enum Fate {
    /// It goes to the entry's destination, and changes nothing.
    Plain,
    /// It may change the entry, whose row says whether it is the packet's.
    Telling,
    /// The entry is none for it.
    New,
}

/// Decides about a frame that came in on interface `ingress`. The frame itself is not changed:
/// [`crate::frame::rewrite_macs`] or [`crate::rewrite`] does that to one that is forwarded.
#[inline(always)]
pub fn decide<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32) -> Verdict {
    consider(frame, maps, ingress).verdict(maps)
}

/// [`decide`] before it is said in full: a common packet may have been sent by then, which [`Decision::is_done`] says.
#[inline(always)]
pub fn consider<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32) -> Decision {
    let Some((header, ether_type, at)) = parse::ethernet(frame) else {
        return Decision::stays(Reason::Malformed);
    };
    if header.to().is_group() {
        return asked(frame, maps, ingress, Reason::NotUnicast);
    }
    let parsed = match ether_type {
        EtherType::IPV4 => match parse::ipv4(frame, at) {
            // A path of its own: that its addresses have but 32 bits is known all along it.
            Ok(packet) => return judge::<true, _, _>(frame, maps, header, ingress, &packet, false),
            Err(reason) => Err(reason),
        },
        EtherType::IPV6 => parse::ipv6(frame, at),
        _ => return asked(frame, maps, ingress, Reason::NotIp),
    };
    let (packet, is_first_fragment) = match parsed {
        Ok(packet) => (packet, false),
        Err(reason) if reason.may_be_ours() => {
            let seen = Decision(frame.look(maps));
            if !seen.is_packet() {
                return look_again(maps, header, ingress, seen, || {
                    asked(frame, maps, ingress, seen.reason())
                });
            }
            let Some(found) = maps.unusual() else {
                return Decision::stays(Reason::Internal);
            };
            (found.packet(), seen.is_first_fragment())
        }
        Err(reason) => return Decision::stays(reason),
    };
    judge::<false, _, _>(frame, maps, header, ingress, &packet, is_first_fragment)
}

/// Decides about a packet. `SHORT`: its addresses are known to have 32 bits.
#[inline(always)]
fn judge<const SHORT: bool, F: Frame + ?Sized, M: Maps>(
    frame: &F,
    maps: &M,
    header: &Ethernet,
    ingress: u32,
    packet: &Packet,
    is_first_fragment: bool,
) -> Decision {
    let control = maps.control();
    let flags = control.flags.load();
    // Where a service has what is its own and no more, its hash says enough: a packet of a connection is told by its own,
    // and of what has none [`begin`] looks who it is for.
    let id = if flags & SEARCHED == 0 {
        listed(maps, packet)
    } else {
        search_service(maps, packet)
    };
    if id == 0 && flags & control_flag::UNMARKED == 0 {
        return Decision::stays(Reason::NotForUs);
    }
    if flags & control_flag::STATELESS != 0 {
        let found = stateless::by_ring::<SHORT, _>(maps, packet, id);
        if found.0 != 0 {
            let reason = not_ours(maps, flags, header, ingress);
            return reason.map_or_else(
                || stateless::send(frame, maps, ingress, packet, is_first_fragment, found),
                Decision::stays,
            );
        }
    }
    let hash = hash::flow(control.key(), &Flow::new(packet, id));
    let telling = Telling {
        packet,
        id,
        hash,
        is_first_fragment,
    };
    let key = Key::new(hash, control.bucket_mask.load());
    if packet.signal.is_syn() {
        table::fetch(maps, key);
    }
    let Some(hit) = look_for(maps, key) else {
        if let Some(reason) = not_ours(maps, flags, header, ingress) {
            return Decision::stays(reason);
        }
        return told(maps, &telling, 0, Entry::EMPTY);
    };
    // To the address of ours that it leaves from, it was sent to us; only else the interface's row is looked at.
    if (!hit.way.is_by(ingress, header.to()) || flags & control_flag::PEERS != 0)
        && let Some(reason) = not_ours(maps, flags, header, ingress)
    {
        return Decision::stays(reason);
    }
    match known(maps, packet.signal, id, hit) {
        Fate::Plain => {}
        Fate::Telling => return told(maps, &telling, hit.index, hit.entry),
        Fate::New => return told(maps, &telling, 0, Entry::EMPTY),
    }
    let destination = hit.entry.destination();
    if is_first_fragment {
        maps.keep_fragment_to(destination);
    } else if let Some((to, from)) = hit.way.plain(ingress)
        && frame.send_back(Reason::Connection, to, from, destination, packet.length)
    {
        return Decision::DONE;
    }
    Decision::goes(Reason::Connection, destination, packet.length)
}

/// The verdict on what the second look has found to be no packet of its own.
#[inline(always)]
fn look_again<M: Maps>(
    maps: &M,
    header: &Ethernet,
    ingress: u32,
    seen: Decision,
    asked: impl FnOnce() -> Decision,
) -> Decision {
    let reason = seen.reason();
    if matches!(reason, Reason::OtherProtocol) {
        return asked();
    }
    if !matches!(reason.outcome(), Outcome::Forward | Outcome::Answer) {
        return seen;
    }
    if is_others(header, maps, ingress) {
        return Decision::stays(Reason::OtherHost);
    }
    let destination = match reason {
        Reason::Related => maps.whose(),
        Reason::Fragment => seen.destination(),
        _ => return seen,
    };
    if destination == scheduler::NONE {
        return Decision::stays(Reason::RelatedUnknown);
    }
    Decision::goes(reason, destination, seen.length())
}

/// The decision on what is no packet: where virtual addresses are announced it may ask for one of them, `otherwise`
/// it stays for this reason.
#[inline(always)]
fn asked<F: Frame + ?Sized, M: Maps>(frame: &F, maps: &M, ingress: u32, otherwise: Reason) -> Decision {
    if maps.control().flags.load() & control_flag::ANNOUNCE != 0 {
        let answered = frame.asked(maps, ingress);
        if answered != 0 {
            return Decision(answered);
        }
    }
    Decision::stays(otherwise)
}

/// Why a frame with a packet for a service is none of ours, if it is none: it is addressed to another host, or comes from
/// a director like this one.
#[inline(always)]
fn not_ours<M: Maps>(maps: &M, flags: u64, header: &Ethernet, ingress: u32) -> Option<Reason> {
    if is_others(header, maps, ingress) {
        Some(Reason::OtherHost)
    } else if flags & control_flag::PEERS != 0 && maps.is_peer(header.from()) {
        Some(Reason::FromPeer)
    } else {
        None
    }
}

/// Whether a frame is addressed to another host.
#[inline(always)]
fn is_others<M: Maps>(header: &Ethernet, maps: &M, ingress: u32) -> bool {
    maps.interface(ingress & (INTERFACE_ROWS - 1))
        .is_some_and(|row| !row.takes(ingress, header.to()))
}

/// Whether what no service takes may be of a connection that has one: a rule gave it its mark, and is gone. As in
/// IPVS, which looks for the connection first, it goes on; [`begin`] starts no other one.
#[inline(always)]
pub(crate) fn is_unmarked<M: Maps>(maps: &M) -> bool {
    maps.control().flags.load() & control_flag::UNMARKED != 0
}

/// With one of these a packet's service is not always the one that stands in the index under its address and port.
const SEARCHED: u64 = control_flag::MARKS | control_flag::FTP | control_flag::ALL_PORTS | control_flag::TWINS;

/// Whether every packet's service is the one that stands in the index under its address and port, alone with its hash.
#[inline(always)]
fn is_simple<M: Maps>(maps: &M) -> bool {
    maps.control().flags.load() & SEARCHED == 0
}

/// The id that stands in the service index under the hash of a packet's address, port and protocol, 0 where there is
/// none; of 2^32 others that there may be packets for, one has the same.
#[inline(always)]
fn listed<M: Maps>(maps: &M, packet: &Packet) -> u32 {
    let identity = ServiceRow::identity(packet.destination_port, packet.protocol);
    let (hash, buckets) = index_key(maps, packet.destination, identity);
    let tag = index_word(hash, 0) >> 32;
    match maps.service_bucket(buckets.0).map(|bucket| tagged(bucket, tag)) {
        Some(Tagged::Word(word)) => Found(word).id(),
        Some(Tagged::Full) => match maps.service_bucket(buckets.1).map(|bucket| tagged(bucket, tag)) {
            Some(Tagged::Word(word)) => Found(word).id(),
            _ => 0,
        },
        _ => 0,
    }
}

/// The hash of a service, and the two buckets of the index that it may be in.
#[inline(always)]
fn index_key<M: Maps>(maps: &M, address: Address, identity: u64) -> (u64, (u32, u32)) {
    let control = maps.control();
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of port, 8 of protocol")]
    let hash = hash::service(control.key(), address, identity as u16, (identity >> 16) as u8);
    (hash, index_buckets(hash, control.service_mask.load()))
}

/// What a bucket of the service index has under a tag.
enum Tagged {
    /// The word.
    Word(u64),
    /// Nothing, and there is room for it: so the other bucket has nothing, either.
    Nothing,
    /// Nothing, and the bucket is full.
    Full,
}

#[inline(always)]
fn tagged(bucket: &IndexBucket, tag: u64) -> Tagged {
    let is_it = |word: u64| word >> 32 == tag;
    // Most are where they are best.
    let word = bucket.0[opaque(tag as usize) & 7].load();
    if is_it(word) {
        return Tagged::Word(word);
    }
    let mut has_room = false;
    let mut slot = 0;
    while slot < 8 {
        let word = bucket.0[slot].load();
        slot += 1;
        has_room |= word == 0;
        if is_it(word) {
            return Tagged::Word(word);
        }
    }
    if has_room { Tagged::Nothing } else { Tagged::Full }
}

/// The id of a packet's service, 0 where there is none: the one of its mark, else of its address and port, else an
/// FTP service for what may be FTP's data connection, else the one for all ports (`ip_vs_service_find`). One that
/// was deleted is found where there is no other, for the entries that name its destinations.
#[inline(always)]
pub(crate) fn search_service<M: Maps>(maps: &M, packet: &Packet) -> u32 {
    let identity = ServiceRow::identity(packet.destination_port, packet.protocol);
    let (high, low) = (packet.destination.high(), packet.destination.low());
    let has_marks = maps.control().flags.load() & control_flag::MARKS != 0;
    let mark = if has_marks {
        maps.mark_of(high, low, identity)
    } else {
        0
    };
    Found(maps.other_service(high, low, identity, mark)).id()
}

/// What the service index says: bits 0..32 the service's id, 0 where there is none, bit 32 whether it is live.
#[derive(Clone, Copy)]
struct Found(u64);

impl Found {
    const NONE: Self = Self(0);

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the id")]
    const fn id(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn is_live(self) -> bool {
        self.0 >> 32 != 0
    }
}

/// The service that takes a packet of this address and identity, packed as `Found`: that of its mark (0: it has
/// none), its own, an FTP service, one for all ports; the first of these that is live, else one that was deleted.
#[inline(always)]
pub fn other_service<M: Maps>(maps: &M, high: u64, low: u64, identity: u64, mark: u32) -> u64 {
    const PORT: u64 = 0xffff;
    let flags = maps.control().flags.load();
    let own = Address::from_halves(high, low);
    let port = (identity & PORT) as u16;
    let is_tcp = identity & !PORT == ServiceRow::identity(0, IpProto::TCP);
    let may_be_ftp = is_tcp && (port == FTP_DATA_PORT || port >= UNPRIVILEGED);
    let mut deleted = Found::NONE;
    let mut round = 0;
    // One after the other in a loop, so that the verifier has one look-up to follow.
    while round < 4 {
        let (is_wanted, address, identity) = match round {
            0 => (mark != 0, ServiceRow::mark(mark, own.is_ipv4()), 0),
            1 => (true, own, identity),
            2 => (
                flags & control_flag::FTP != 0 && may_be_ftp,
                own,
                identity & !PORT | u64::from(FTP_PORT),
            ),
            _ => (flags & control_flag::ALL_PORTS != 0, own, identity & !PORT),
        };
        round += 1;
        if !is_wanted {
            continue;
        }
        let found = look_up(maps, address, identity);
        if found.is_live() {
            return found.0;
        }
        // Which one it is matters little: entries are found by the flow, whichever service they came by.
        if found.0 != 0 {
            deleted = found;
        }
    }
    deleted.0
}

/// Looks in the service index: one cache line, and the service's own.
#[inline(always)]
fn look_up<M: Maps>(maps: &M, address: Address, identity: u64) -> Found {
    let (hash, (first, second)) = index_key(maps, address, identity);
    let tag = index_word(hash, 0) >> 32;
    let mut index = first;
    let mut round = 0;
    while round < 2 {
        let Some(bucket) = maps.service_bucket(index) else {
            return Found::NONE;
        };
        match tagged(bucket, tag) {
            Tagged::Word(word) => {
                let id = Found(word).id();
                let Some(row) = maps.service(id) else {
                    return Found::NONE;
                };
                if row.is(address, identity) {
                    return live_service(maps, id, row);
                }
            }
            Tagged::Nothing => return Found::NONE,
            Tagged::Full => {}
        }
        index = second;
        round += 1;
    }
    Found::NONE
}

#[inline(always)]
fn live_service<M: Maps>(maps: &M, id: u32, row: &ServiceRow) -> Found {
    let configuration = (maps.control().generation.load() & 1) as usize;
    match ListWord(row.lists[configuration].load()).kind() {
        Kind::Absent => Found::NONE,
        Kind::Tombstone => Found(u64::from(id)),
        _ => Found(u64::from(id) | 1 << 32),
    }
}

/// The entry of a key.
#[inline(always)]
fn look_for<M: Maps>(maps: &M, key: Key) -> Option<Hit> {
    let (Place { index, .. }, entry) = table::find(maps, key)?;
    let way = maps.destination(entry.destination())?.way();
    Some(Hit { index, entry, way })
}

/// What the entry of its tag means for a packet of service `id`.
#[inline(always)]
fn known<M: Maps>(maps: &M, signal: Signal, id: u32, hit: Hit) -> Fate {
    let Hit { index, entry, way } = hit;
    let now = maps.now();
    // What was seen in this very second is not over, and has nothing to note.
    let is_current = entry.is_current(now);
    if !is_current && table::is_expired(maps, entry, now) {
        // Past its time it is no entry.
        return Fate::New;
    }
    // An entry of another service is another flow's of the same tag, or was made when there was no other
    // service for this one: its row tells.
    if way.service() != id || way.is_removed() || !table::is_plain(entry, signal) {
        return Fate::Telling;
    }
    if !is_current {
        table::refresh(maps, index, entry, now);
    }
    Fate::Plain
}

/// Decides about a packet that may change the `entry` at `index`, or has none (`EMPTY`).
#[inline(always)]
fn told<M: Maps>(maps: &M, telling: &Telling<'_>, index: u32, entry: Entry) -> Decision {
    let &Telling {
        packet,
        id,
        hash,
        is_first_fragment,
    } = telling;
    let new = New {
        hash,
        flow: Flow::new(&packet.anew(), id),
        opened: maps.jiffies(),
    };
    let Some(new) = maps.note(Note::Connection, &new) else {
        return Decision::stays(Reason::Internal);
    };
    let signal = packet.signal;
    let changed = if entry == Entry::EMPTY {
        Changed::Foreign
    } else {
        table::change(maps, index, entry, &new.flow, signal)
    };
    let (reason, destination) = match changed {
        Changed::Kept => (Reason::Connection, entry.destination()),
        Changed::Dropped => (Reason::DestinationRemoved, 0),
        Changed::Reset => (Reason::Reset, 0),
        Changed::Foreign | Changed::Over => Begun(maps.begin(new, u32::from(signal.0))).unpack(),
    };
    match reason.outcome() {
        Outcome::Forward => {
            if is_first_fragment {
                maps.keep_fragment_to(destination);
            }
            Decision::goes(reason, destination, packet.length)
        }
        Outcome::Pass | Outcome::Drop | Outcome::Answer => Decision::stays(reason),
    }
}

/// What becomes of a flow that has no entry, in one register: bits 0..32 its destination, then the reason.
#[derive(Clone, Copy)]
struct Begun(u64);

impl Begun {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    const fn unpack(self) -> (Reason, u32) {
        (Reason::from_number((self.0 >> 32) as u32), self.0 as u32)
    }

    #[inline(always)]
    const fn pack(reason: Reason, destination: u32) -> u64 {
        (reason as u64) << 32 | destination as u64
    }
}

/// Decides about a packet of a flow that has no entry: what becomes of it, and where it goes, packed as
/// `Begun`.
#[inline(always)]
pub fn begin<M: Maps>(maps: &M, new: &New, signal: u32) -> u64 {
    let flow = &new.flow;
    #[expect(clippy::cast_possible_truncation, reason = "it was an octet")]
    let signal = Signal(signal as u8);
    #[expect(clippy::cast_possible_truncation, reason = "ids of services are 32 bits")]
    let Some(row) = maps.service(flow.service as u32) else {
        return Begun::pack(Reason::Internal, 0);
    };
    if is_simple(maps) && !row.is(flow.address, ServiceRow::identity(flow.port(), flow.protocol())) {
        return Begun::pack(Reason::NotForUs, 0);
    }
    let configuration = (maps.control().generation.load() & 1) as usize;
    let list = ListWord(row.lists[configuration].load());
    let ring = RingWord(row.rings[configuration].load());
    let options = Options(row.options[configuration].load());
    let protocol = flow.protocol();
    let is_migrating = maps.control().flags.load() & control_flag::MIGRATING != 0;
    // What comes from FTP's data port is taken for a real server's data connection, and never scheduled
    // (`ip_vs_schedule`).
    if matches!(list.kind(), Kind::Tombstone | Kind::Absent) || flow.client_port() == FTP_DATA_PORT {
        return Begun::pack(Reason::NotForUs, 0);
    }
    if let Some(reason) = never_starts(flow, signal) {
        return Begun::pack(reason, 0);
    }
    if !signal.starts(protocol, options.is_sloppy(protocol)) {
        let is_local = row.flags.load() & service_flag::LOCAL != 0;
        let reason = if is_migrating {
            Reason::Migrating
        } else if is_local && protocol == IpProto::TCP {
            // SCTP is dropped, as the kernel does (`sctp_conn_schedule`).
            Reason::NoConnectionPassed
        } else {
            Reason::NoConnection
        };
        return Begun::pack(reason, 0);
    }
    let is_own_port = row.is_mark() || row.identity.load() & 0xffff == u64::from(flow.port());
    if !options.is_persistent() {
        if !is_own_port {
            // An FTP service without persistence has its own port only.
            return Begun::pack(Reason::NotForUs, 0);
        }
        let destination = scheduler::choose(maps, list, ring, flow);
        if destination == scheduler::NONE {
            return Begun::pack(no_destination(maps), 0);
        }
        let chosen = Followed::chosen(destination);
        return enter(maps, new, signal, options, list.kind(), chosen);
    }
    let template = if row.is_mark() {
        flow.template_of_mark(row.address[1].load(), options.mask())
    } else if is_own_port && flow.port() != FTP_PORT {
        flow.template(flow.port(), options.mask())
    } else {
        flow.template(0, options.mask())
    };
    let followed = persist(maps, new, template, list, ring, options);
    if !followed.is_somewhere() {
        return Begun::pack(followed.reason(), 0);
    }
    enter(maps, new, signal, options, list.kind(), followed)
}

/// Why a packet starts no connection, whatever its service says.
#[inline(always)]
fn never_starts(flow: &Flow, signal: Signal) -> Option<Reason> {
    let protocol = flow.protocol();
    // UDP's source port is optional (RFC 768).
    let has_zero_port = flow.port() == 0 || flow.client_port() == 0 && protocol != IpProto::UDP;
    if flow.client == flow.address || !flow.client.is_one_host() {
        Some(Reason::Martian)
    } else if has_zero_port {
        Some(Reason::ZeroPort)
    } else if protocol == IpProto::TCP && signal.is_nonsense() {
        Some(Reason::BadFlags)
    } else {
        None
    }
}

/// Where a client's template, `flow`, says, or the scheduler, whose choice becomes the template's.
#[inline(always)]
fn persist<M: Maps>(
    maps: &M,
    new: &New,
    flow: Flow,
    list: ListWord,
    ring: RingWord,
    options: Options,
) -> Followed {
    let template = New {
        hash: hash::flow(maps.control().key(), &flow),
        flow,
        opened: 0,
    };
    let Some(template) = maps.note(Note::Template, &template) else {
        return Followed::nowhere(Reason::Internal);
    };
    let followed = Followed(maps.follow(template, options.0));
    if followed.is_somewhere() {
        return followed;
    }
    if maps.control().flags.load() & control_flag::MIGRATING != 0 {
        return Followed::nowhere(Reason::Migrating);
    }
    let destination = scheduler::choose(maps, list, ring, &new.flow);
    if destination == scheduler::NONE {
        return Followed::nowhere(no_destination(maps));
    }
    let entry = Entry::until(0, destination, State::Template, maps.now(), options.timeout());
    match table::insert(maps, template, entry, 0) {
        Inserted::Done | Inserted::Exists(_) => {
            // Followed like any other: it is this one, or the one of a CPU that was quicker.
            let followed = Followed(maps.follow(template, options.0));
            if followed.is_somewhere() {
                return followed;
            }
            // It has given way already, or was void. This connection goes its way without it.
            Followed::chosen(destination)
        }
        Inserted::Collision => Followed::nowhere(Reason::TagCollision),
        Inserted::Full => Followed::nowhere(Reason::TableFull),
        Inserted::Race => Followed::nowhere(Reason::InsertRace),
    }
}

/// Enters a connection whose destination is known.
#[inline(always)]
fn enter<M: Maps>(
    maps: &M,
    new: &New,
    signal: Signal,
    options: Options,
    kind: Kind,
    followed: Followed,
) -> u64 {
    let destination = followed.destination();
    // A mark's service may have other protocols beside UDP.
    if options.has(Options::ONE_PACKET) && new.flow.protocol() == IpProto::UDP {
        return Begun::pack(Reason::OnePacket, destination);
    }
    let control = if followed.is_template() {
        table::hold(maps, followed.place())
    } else {
        0
    };
    let state = State::first(new.flow.protocol(), signal);
    let entry = Entry::new(0, destination, state, maps.now(), table::timeout_of(maps, state));
    let (reason, destination) = match table::insert(maps, new, entry, control) {
        Inserted::Done => {
            if matches!(state, State::SynRecv) {
                table::count(maps, destination, Counters::opened);
            }
            return Begun::pack(Reason::NewConnection, destination);
        }
        Inserted::Exists(other) => (Reason::Connection, other),
        Inserted::Collision | Inserted::Full if kind.is_hash() => (Reason::Untracked, destination),
        Inserted::Collision => (Reason::TagCollision, 0),
        Inserted::Full => (Reason::TableFull, 0),
        Inserted::Race => (Reason::InsertRace, 0),
    };
    table::release(maps, control);
    Begun::pack(reason, destination)
}

/// No destination is usable: the client is told, but not more often than [`ANSWERS_A_SECOND`].
#[inline(always)]
fn no_destination<M: Maps>(maps: &M) -> Reason {
    if may_answer(maps) {
        Reason::NoDestination
    } else {
        Reason::NoDestinationQuiet
    }
}

/// Whether one more packet may be answered with an ICMP error in this second. It is counted as answered then.
#[inline(always)]
pub(crate) fn may_answer<M: Maps>(maps: &M) -> bool {
    // No service has id 0: its cursor counts the answers of a second.
    let Some(word) = maps.cursor(0) else {
        return false;
    };
    let now = u64::from(maps.now()) << 32;
    let seen = word.load();
    if seen & !0xffff_ffff != now {
        // Where this fails another CPU has begun the second, and one more is answered.
        let _ = word.swap(seen, now | 1);
    } else if seen & 0xffff_ffff >= ANSWERS_A_SECOND {
        return false;
    } else {
        word.add(1);
    }
    true
}

#[cfg(test)]
mod tests;
