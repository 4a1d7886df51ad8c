//! Every map of the program, and the director's view of them.

use crate::frame::Packet;
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_md},
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_jiffies64, bpf_loop},
    macros::btf_map,
    programs::XdpContext,
};
use core::ffi::c_void;
use lvs_xdp_common::{
    abi::{
        Bucket, ColdRow, Control, Counters, Counts, Cursor, DestinationRow, INTERFACE_ROWS, IndexBucket,
        InterfaceRow, Kind, ListWord, MARK_PREFIXES_MAX, MARK_RULES_WORDS, MarkRow, RingWord, ServiceRow,
        TunnelRow,
    },
    announce,
    atomic::Word,
    decision::Decision,
    director,
    flow::Flow,
    maps::{self, Maps, Note, Step},
    marks,
    packet::{Address, Mac},
    reason::Reason,
    scheduler, steer,
    table::{self, New},
    tunnel,
    unusual::{self, FragmentKey, Unusual},
};

const SHARED: usize = BPF_F_MMAPABLE as usize;

// The sizes are the smallest that make sense: the agent sets the real ones when it loads the program.
#[btf_map]
static CONTROL: Array<Control, 1, SHARED> = Array::new();
#[btf_map]
static SERVICE_INDEX: Array<IndexBucket, 2, SHARED> = Array::new();
#[btf_map]
static SERVICES: Array<ServiceRow, 2, SHARED> = Array::new();
#[btf_map]
static LISTS: Array<Word, 64, SHARED> = Array::new();
#[btf_map]
static RINGS: Array<Word, 2048, SHARED> = Array::new();
#[btf_map]
static CURSORS: Array<Word, 2, SHARED> = Array::new();
#[btf_map]
static DESTINATIONS: Array<DestinationRow, 2, SHARED> = Array::new();
#[btf_map]
static COUNTS: Array<Counts, 2, SHARED> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, 2> = PerCpuArray::new();
#[btf_map]
static REASONS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();
#[btf_map]
static HOT: Array<Bucket, 2, SHARED> = Array::new();
#[btf_map]
static COLD: Array<ColdRow, 16, SHARED> = Array::new();
#[btf_map]
static INTERFACES: Array<InterfaceRow, { INTERFACE_ROWS as usize }, SHARED> = Array::new();
#[btf_map]
pub(crate) static REDIRECT: DevMapHash<64> = DevMapHash::new();
#[btf_map]
static TUNNELS: Array<TunnelRow, 2, SHARED> = Array::new();
#[btf_map]
static VIPS: HashMap<[u64; 2], u64, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static PEERS: HashMap<u64, u64, 4096> = HashMap::new();
// While rules change, those before and those after.
#[btf_map]
static MARK_PREFIXES: LpmTrie<[u8; 16], MarkRow, { 2 * MARK_PREFIXES_MAX as usize }> = LpmTrie::new();
#[btf_map]
static MARK_RULES: Array<Word, { MARK_RULES_WORDS as usize }, SHARED> = Array::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, u64, 8192> = LruHashMap::new();
// Not pinned with the others: these have nothing to keep.
#[btf_map]
static UNUSUAL: PerCpuArray<Unusual, 1> = PerCpuArray::new();
#[btf_map]
static NOTES: PerCpuArray<New, { maps::NOTES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static STEERED: HashMap<steer::Key, steer::Row, 16_384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static CLOCK: Array<[u64; 2], 1, SHARED> = Array::new();

/// A row of a shared array as a reference: rows are made of words, which may change at any time.
macro_rules! row {
    ($map:ident, $index:expr) => {
        $map.get_ptr($index).map(|row| {
            // SAFETY: array elements live as long as the map, which lives as long as the program, and
            // are made of `Word`s only. Those of a per-CPU array are whole and aligned to 8, too.
            unsafe { &*row }
        })
    };
}

/// Counts a packet by its reason.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the row is this CPU's own, and the program is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

/// Counts a forwarded packet for its destination.
#[inline(always)]
pub(crate) fn count_forwarded(destination: u32, length: u32, is_new: bool) {
    if let Some(counters) = row!(COUNTERS, destination) {
        counters.forwarded(length, is_new);
    }
}

/// Writes what time it is, in jiffies and in nanoseconds of CLOCK_MONOTONIC, for the agent.
pub(crate) fn write_clock(nanoseconds: u64) {
    if let Some(clock) = CLOCK.get_ptr_mut(0) {
        // SAFETY: the agent runs this one at a time, and reads when it has run.
        unsafe { *clock = [bpf_jiffies64(), nanoseconds] };
    }
}

/// The kernel's maps.
pub(crate) struct Kernel {
    control: &'static Control,
}

impl Kernel {
    #[inline(always)]
    pub(crate) fn new() -> Option<Self> {
        Some(Self {
            control: row!(CONTROL, 0)?,
        })
    }
}

impl Maps for Kernel {
    #[inline(always)]
    fn control(&self) -> &Control {
        self.control
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        self.control.seconds(self.jiffies())
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: takes no argument and cannot fail.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn service_bucket(&self, index: u32) -> Option<&IndexBucket> {
        row!(SERVICE_INDEX, index)
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&ServiceRow> {
        row!(SERVICES, id)
    }

    #[inline(always)]
    fn list(&self, index: u32) -> Option<&Word> {
        row!(LISTS, index)
    }

    #[inline(always)]
    fn ring(&self, index: u32) -> Option<&Word> {
        row!(RINGS, index)
    }

    #[inline(always)]
    fn cursor(&self, service: u32) -> Option<&Word> {
        row!(CURSORS, service)
    }

    #[inline(always)]
    fn destination(&self, id: u32) -> Option<&DestinationRow> {
        row!(DESTINATIONS, id)
    }

    #[inline(always)]
    fn counts(&self, id: u32) -> Option<&Counts> {
        row!(COUNTS, id)
    }

    #[inline(always)]
    fn counters(&self, id: u32) -> Option<&Counters> {
        row!(COUNTERS, id)
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        row!(HOT, index)
    }

    #[inline(always)]
    fn cold(&self, index: u32) -> Option<&ColdRow> {
        row!(COLD, index)
    }

    #[inline(always)]
    fn interface(&self, index: u32) -> Option<&InterfaceRow> {
        row!(INTERFACES, index)
    }

    #[inline(always)]
    fn tunnel(&self, id: u32) -> Option<&TunnelRow> {
        row!(TUNNELS, id)
    }

    #[inline(always)]
    fn mark_list(&self, high: u64, low: u64) -> u64 {
        let key = Key::new(128, Address::from_halves(high, low).octets());
        let configuration = (self.control.generation.load() & 1) as usize;
        // The agent replaces values whole.
        MARK_PREFIXES.get(&key).map_or(0, |row| row.0[configuration])
    }

    #[inline(always)]
    fn mark_rule(&self, index: u32) -> Option<&Word> {
        row!(MARK_RULES, index)
    }

    #[inline(always)]
    fn mark_of(&self, high: u64, low: u64, identity: u64) -> u32 {
        mark_of(high, low, identity)
    }

    #[inline(always)]
    fn vip(&self, address: &Address) -> u64 {
        let key = [address.high(), address.low()];
        // SAFETY: a copy is made at once; the agent replaces values whole.
        unsafe { VIPS.get(key) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn is_peer(&self, mac: Mac) -> bool {
        // SAFETY: as for `vip`.
        unsafe { PEERS.get(mac.0) }.is_some()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> u64 {
        // SAFETY: as for `vip`.
        unsafe { FRAGMENTS.get(key) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, value: u64) {
        // Where this fails the later fragments are counted as unknown.
        let _ = FRAGMENTS.insert(key, value, 0);
    }

    #[inline(always)]
    fn put_unusual(&self, found: &Unusual) {
        if let Some(row) = UNUSUAL.get_ptr_mut(0) {
            // SAFETY: the row is this CPU's own and the program is not interrupted by itself.
            unsafe { row.write(*found) };
        }
    }

    #[inline(always)]
    fn unusual(&self) -> Option<Unusual> {
        // SAFETY: as for `put_unusual`.
        UNUSUAL.get_ptr(0).map(|row| unsafe { *row })
    }

    #[inline(always)]
    fn whose(&self) -> u32 {
        whose()
    }

    #[inline(always)]
    fn keep_fragment_to(&self, destination: u32) {
        keep_fragment_to(destination);
    }

    #[inline(always)]
    fn note<'a>(&'a self, place: Note, new: &'a New) -> Option<&'a New> {
        let row = NOTES.get_ptr_mut(place as u32)?;
        // SAFETY: the row is this CPU's own and the program is not interrupted by itself; whoever has a
        // reference to what was noted before does not use it any more (`Maps::note`).
        unsafe {
            row.write(*new);
            Some(&*row)
        }
    }

    #[inline(always)]
    fn begin(&self, new: &New, signal: u32) -> u64 {
        begin(new, signal)
    }

    #[inline(always)]
    fn stateless(&self, new: &New, signal: u32) -> u64 {
        stateless(new, signal)
    }

    #[inline(always)]
    fn stateless_at_once(&self, addresses: u64, ports: u64, id: u32, signal: u32) -> u64 {
        stateless_at_once(addresses, ports, id, signal)
    }

    #[inline(always)]
    fn other_service(&self, high: u64, low: u64, identity: u64, mark: u32) -> u64 {
        other_service(high, low, identity, mark)
    }

    #[inline(always)]
    fn in_turn(&self, service: u64, list: ListWord) -> u32 {
        in_turn(service, list.0)
    }

    #[inline(always)]
    fn by_hash(&self, list: ListWord, ring: RingWord, flow: &Flow) -> u32 {
        by_hash(list.0, ring.0, flow)
    }

    #[inline(always)]
    fn lblc(&self, service: u64, list: ListWord) -> u32 {
        lblc(service, list.0)
    }

    #[inline(always)]
    fn least(&self, list: ListWord, kind: Kind) -> u32 {
        least(list.0, kind as u32)
    }

    #[inline(always)]
    fn turn(&self, list: ListWord, cursor: Cursor) -> Cursor {
        Cursor::from_word(turn(list.0, cursor.word()))
    }

    #[inline(always)]
    fn is_any_idle(&self, list: ListWord) -> bool {
        is_any_idle(list.0) != 0
    }

    #[inline(always)]
    fn lblcr(&self, service: u64, list: ListWord) -> u32 {
        lblcr(service, list.0)
    }

    #[inline(always)]
    fn follow(&self, template: &New, options: u64) -> u64 {
        follow(template, options)
    }

    #[inline(always)]
    fn claim(&self, new: &New, destination: u32) -> u64 {
        claim(new, destination)
    }

    #[inline(always)]
    fn settle(&self, new: &New, entry: u64, control: u64, place: u64) -> u64 {
        settle(new, entry, control, place)
    }

    #[inline(always)]
    fn change(&self, index: u32, tag: u32, flow: &Flow, signal: u32) -> u32 {
        change(index, tag, flow, signal)
    }

    #[inline(always)]
    fn recount(&self, destination: u32, from: u32, to: u32) {
        recount(destination, from, to);
    }

    #[inline(always)]
    fn depart(&self, entry: u64, control: u64) {
        depart(entry, control);
    }

    #[inline(always)]
    fn survey(&self, primary: u32, partner: u32, tag: u32, now: u32) -> u64 {
        survey(primary, partner, tag, now)
    }

    #[inline(always)]
    fn sharing(&self, primary: u32, partner: u32, tag: u32) -> u64 {
        sharing(primary, partner, tag)
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, count: u32, step: &mut S) {
        // SAFETY: bpf_loop (Linux 5.17) calls `round` with this pointer before it returns, and with no other.
        unsafe {
            bpf_loop(
                count,
                round::<S> as *mut c_void,
                core::ptr::from_mut(step).cast(),
                0,
            );
        }
    }
}

// Global functions: the verifier looks at each by itself and once, not anew for each path that leads to
// it (Linux 5.6). Their arguments are numbers, or pointers to structures of whole words.

/// [`director::begin`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begin(new: *const New, signal: u32) -> u64 {
    // SAFETY: the only caller passes a reference; the verifier wants the check all the same.
    let (Some(kernel), Some(new)) = (Kernel::new(), unsafe { new.as_ref() }) else {
        return u64::MAX;
    };
    director::begin(&kernel, new, signal)
}

/// [`director::stateless`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stateless(new: *const New, signal: u32) -> u64 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(new)) = (Kernel::new(), unsafe { new.as_ref() }) else {
        return 0;
    };
    director::stateless(&kernel, new, signal)
}

/// [`director::stateless_at_once`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stateless_at_once(addresses: u64, ports: u64, id: u32, signal: u32) -> u64 {
    Kernel::new().map_or(0, |kernel| {
        director::stateless_at_once(&kernel, addresses, ports, id, signal)
    })
}

/// [`unusual::look`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn look(context: *mut xdp_md) -> u64 {
    let Some(kernel) = Kernel::new() else {
        return Decision::stays(Reason::Internal).0;
    };
    unusual::look(&Packet(&XdpContext::new(context)), &kernel)
}

/// [`announce::asked`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn asked(context: *mut xdp_md, ingress: u32) -> u64 {
    let Some(kernel) = Kernel::new() else {
        return 0;
    };
    announce::asked(&Packet(&XdpContext::new(context)), &kernel, ingress)
}

/// [`announce::answer`]: whether the frame is the answer now.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn advertise(context: *mut xdp_md, ingress: u32) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return 0;
    };
    let answered = announce::answer(&mut Packet(&XdpContext::new(context)), &kernel, ingress);
    u32::from(answered.is_some())
}

/// [`unusual::walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn walk(context: *mut xdp_md, first: u32, at: u32) -> u64 {
    unusual::walk(&Packet(&XdpContext::new(context)), first, at)
}

/// [`tunnel::encapsulate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn encapsulate(context: *mut xdp_md, destination: u32, carried: u64) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return Reason::Internal as u32;
    };
    tunnel::encapsulate(
        &mut Packet(&XdpContext::new(context)),
        &kernel,
        destination,
        carried,
    )
}

/// [`tunnel::too_big::refuse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn too_big(context: *mut xdp_md, fits: u32) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return Reason::Internal as u32;
    };
    tunnel::too_big::refuse(&mut Packet(&XdpContext::new(context)), &kernel, fits)
}

/// [`tunnel::carried`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn carried(context: *mut xdp_md, destination: u32) -> u64 {
    Kernel::new().map_or(u64::MAX, |kernel| {
        tunnel::carried(&Packet(&XdpContext::new(context)), &kernel, destination)
    })
}

/// [`unusual::whose`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn whose() -> u32 {
    Kernel::new().map_or(scheduler::NONE, |kernel| unusual::whose(&kernel))
}

/// [`unusual::keep_fragment`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn keep_fragment_to(destination: u32) -> u32 {
    if let Some(kernel) = Kernel::new() {
        unusual::keep_fragment(&kernel, destination);
    }
    0
}

/// [`director::other_service`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn other_service(high: u64, low: u64, identity: u64, mark: u32) -> u64 {
    Kernel::new().map_or(0, |kernel| {
        director::other_service(&kernel, high, low, identity, mark)
    })
}

/// [`marks::mark_of`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_of(high: u64, low: u64, identity: u64) -> u32 {
    Kernel::new().map_or(0, |kernel| marks::mark_of(&kernel, high, low, identity))
}

/// [`scheduler::in_turn`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn in_turn(service: u64, list: u64) -> u32 {
    Kernel::new().map_or(scheduler::NONE, |kernel| {
        scheduler::in_turn(&kernel, service, ListWord(list))
    })
}

/// [`scheduler::by_hash`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn by_hash(list: u64, ring: u64, flow: *const Flow) -> u32 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(flow)) = (Kernel::new(), unsafe { flow.as_ref() }) else {
        return scheduler::NONE;
    };
    scheduler::by_hash(&kernel, ListWord(list), RingWord(ring), flow)
}

/// [`scheduler::lblc`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lblc(service: u64, list: u64) -> u32 {
    Kernel::new().map_or(scheduler::NONE, |kernel| {
        scheduler::lblc(&kernel, service, ListWord(list))
    })
}

/// [`scheduler::least`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn least(list: u64, kind: u32) -> u32 {
    Kernel::new().map_or(scheduler::NONE, |kernel| {
        scheduler::least(&kernel, ListWord(list), kind)
    })
}

/// [`scheduler::turn`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn turn(list: u64, cursor: u64) -> u64 {
    Kernel::new().map_or(0, |kernel| {
        scheduler::turn(&kernel, ListWord(list), Cursor::from_word(cursor)).word()
    })
}

/// [`scheduler::is_any_idle`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_any_idle(list: u64) -> u32 {
    Kernel::new().map_or(0, |kernel| {
        u32::from(scheduler::is_any_idle(&kernel, ListWord(list)))
    })
}

/// [`scheduler::lblcr`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lblcr(service: u64, list: u64) -> u32 {
    Kernel::new().map_or(scheduler::NONE, |kernel| {
        scheduler::lblcr(&kernel, service, ListWord(list))
    })
}

/// [`table::follow`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow(template: *const New, options: u64) -> u64 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(template)) = (Kernel::new(), unsafe { template.as_ref() }) else {
        return 0;
    };
    table::follow(&kernel, template, options)
}

/// [`table::claim`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim(new: *const New, destination: u32) -> u64 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(new)) = (Kernel::new(), unsafe { new.as_ref() }) else {
        return u64::MAX;
    };
    table::claim(&kernel, new, destination)
}

/// [`table::settle`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle(new: *const New, entry: u64, control: u64, place: u64) -> u64 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(new)) = (Kernel::new(), unsafe { new.as_ref() }) else {
        return u64::MAX;
    };
    table::settle(&kernel, new, entry, control, place)
}

/// [`table::change_state`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn change(index: u32, tag: u32, flow: *const Flow, signal: u32) -> u32 {
    // SAFETY: as for `begin`.
    let (Some(kernel), Some(flow)) = (Kernel::new(), unsafe { flow.as_ref() }) else {
        return table::Changed::Foreign as u32;
    };
    table::change_state(&kernel, index, tag, flow, signal)
}

/// [`table::recount`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recount(destination: u32, from: u32, to: u32) -> u32 {
    if let Some(kernel) = Kernel::new() {
        table::recount(&kernel, destination, from, to);
    }
    0
}

/// [`table::depart`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn depart(entry: u64, control: u64) -> u32 {
    if let Some(kernel) = Kernel::new() {
        table::depart(&kernel, entry, control);
    }
    0
}

/// [`table::survey`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn survey(primary: u32, partner: u32, tag: u32, now: u32) -> u64 {
    Kernel::new().map_or(u64::MAX, |kernel| {
        table::survey(&kernel, primary, partner, tag, now)
    })
}

/// [`table::sharing`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sharing(primary: u32, partner: u32, tag: u32) -> u64 {
    Kernel::new().map_or(0, |kernel| table::sharing(&kernel, primary, partner, tag))
}

/// One round of [`Maps::repeat`]: 1 ends the loop.
extern "C" fn round<S: Step<Kernel>>(index: u32, step: *mut c_void) -> i64 {
    let Some(kernel) = Kernel::new() else { return 1 };
    // SAFETY: `repeat` passes a valid pointer to an `S` that nobody else uses meanwhile.
    let step = unsafe { &mut *step.cast::<S>() };
    i64::from(!step.step(&kernel, index))
}
