//! The floors: each program does what the one before does, and one thing more.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, xdp_action},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lvs_xdp_common::atomic::Word;

use crate::{at, load, mix};

const SHARED: usize = BPF_F_MMAPABLE as usize;

/// Rows of [`HOT`] less 1, and of [`COLD`]: powers of two; set when the object is loaded.
#[unsafe(no_mangle)]
static HOT_MASK: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static COLD_MASK: Global<u64> = Global::new(0);

/// A cache line.
type Line = [Word; 8];

/// Where frames go: both MAC addresses as they stand in a frame, in 8 and 4 of 16 bytes. 16 rows.
#[btf_map]
static DESTINATIONS: Array<[u64; 2], 16, SHARED> = Array::new();
/// As large as the table of connections: a line for each eight.
#[btf_map]
static HOT: Array<Line, 2, SHARED> = Array::new();
/// A line for each connection.
#[btf_map]
static COLD: Array<Line, 16, SHARED> = Array::new();
/// The usual design's: services by address, port and protocol; connections by all five.
#[btf_map]
static SERVICES: HashMap<[u32; 2], u64, 65_536> = HashMap::new();
#[btf_map]
static CONNECTIONS: LruHashMap<[u32; 4], u64, 16> = LruHashMap::new();
#[btf_map]
static COUNTERS: PerCpuArray<[u64; 2], 16> = PerCpuArray::new();

/// What a director has to know of a packet.
struct Tuple {
    client: u32,
    address: u32,
    ports: u32,
    protocol: u8,
    length: u16,
}

impl Tuple {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let addresses = u64::from(self.client) << 32 | u64::from(self.address);
        mix(mix(addresses) ^ u64::from(self.ports) << 8 ^ u64::from(self.protocol))
    }
}

/// TCP or UDP in IPv4, without options or fragments.
#[inline(always)]
fn parse(context: &XdpContext) -> Option<Tuple> {
    // Of the packet as far as a TCP header without options goes, checked once.
    let _: *mut [u8; 54] = at(context, 0)?;
    let ether_type: u16 = load(context, 12)?;
    let version: u16 = load(context, 14)?;
    let fragment: u16 = load(context, 20)?;
    let protocol: u8 = load(context, 23)?;
    if ether_type != 0x0800u16.to_be()
        || version & 0xff != 0x45
        || fragment & 0xff3fu16.to_le() != 0
        || protocol != 6 && protocol != 17
    {
        return None;
    }
    Some(Tuple {
        client: load(context, 26)?,
        address: load(context, 30)?,
        ports: load(context, 34)?,
        protocol,
        length: u16::from_be(load(context, 16)?),
    })
}

/// Sends the packet to the destination that a number says.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the number is masked")]
fn send(context: &XdpContext, number: u64) -> Option<u32> {
    // SAFETY: nobody writes the rows while the program is measured.
    let [first, second] = unsafe { *DESTINATIONS.get_ptr(number as u32 & 15)? };
    let macs: *mut [u8; 12] = at(context, 0)?;
    // SAFETY: `at` has compared the end of both with the packet's.
    unsafe {
        macs.cast::<u64>().write_unaligned(first);
        macs.byte_add(8).cast::<u32>().write_unaligned(second as u32);
    }
    Some(xdp_action::XDP_TX)
}

macro_rules! floor {
    ($(#[$doc:meta])* $name:ident, $body:expr) => {
        $(#[$doc])*
        #[xdp(frags)]
        fn $name(context: XdpContext) -> u32 {
            let body: fn(&XdpContext) -> Option<u32> = $body;
            body(&context).unwrap_or(xdp_action::XDP_DROP)
        }
    };
}

floor!(
    /// Sends every packet back where it came from: what all others are measured net of.
    nothing,
    |_| Some(xdp_action::XDP_TX)
);

floor!(
    /// Reads what a director has to know.
    parsing,
    |context| {
        let tuple = parse(context)?;
        // Nothing hashes to it, but the compiler does not know.
        Some(if tuple.hash() == 1 { xdp_action::XDP_PASS } else { xdp_action::XDP_TX })
    }
);

floor!(
    /// And writes the two MAC addresses: direct routing with no more state than 16 destinations.
    rewriting,
    |context| send(context, parse(context)?.hash())
);

floor!(
    /// L, what a director with a table of connections costs at least: and reads the one line where a flow's entry is.
    line,
    |context| {
        let hash = parse(context)?.hash();
        // SAFETY: rows live as long as the map, and are made of words.
        let line = unsafe { &*HOT.get_ptr((hash & HOT_MASK.load()) as u32)? };
        send(context, line[(hash >> 61) as usize & 7].load() ^ hash)
    }
);

floor!(
    /// L2, what a new connection costs at least: and writes the entry into that line, and all of its cold row.
    lines,
    |context| {
        let tuple = parse(context)?;
        let hash = tuple.hash();
        // SAFETY: as for `line`.
        let line = unsafe { &*HOT.get_ptr((hash & HOT_MASK.load()) as u32)? };
        line[(hash >> 61) as usize & 7].store(hash);
        // SAFETY: as for `line`.
        let row = unsafe { &*COLD.get_ptr((hash >> 20 & COLD_MASK.load()) as u32)? };
        let addresses = u64::from(tuple.client) << 32 | u64::from(tuple.address);
        let rest = u64::from(tuple.ports) << 32 | u64::from(tuple.protocol);
        for (word, value) in row.iter().zip([addresses, 0, rest, hash, addresses, 0, rest, hash]) {
            word.store(value);
        }
        send(context, hash)
    }
);

floor!(
    /// The usual design: a hash map of services, and an LRU hash map of connections.
    usual,
    |context| {
        let tuple = parse(context)?;
        let service = [tuple.address, (tuple.ports >> 16) << 8 | u32::from(tuple.protocol)];
        // SAFETY: nobody removes a service while the program is measured.
        let first = *unsafe { SERVICES.get(service) }?;
        let flow = [tuple.client, tuple.address, tuple.ports, u32::from(tuple.protocol)];
        // SAFETY: the value is one word.
        let destination = match unsafe { CONNECTIONS.get(flow) } {
            Some(destination) => *destination,
            None => {
                let destination = first.wrapping_add(tuple.hash()) & 15;
                CONNECTIONS.insert(flow, destination, 0).ok()?;
                destination
            }
        };
        let counters = COUNTERS.get_ptr_mut(destination as u32 & 15)?;
        // SAFETY: the row is this CPU's own.
        let [packets, bytes] = unsafe { &mut *counters };
        *packets += 1;
        *bytes += u64::from(tuple.length);
        send(context, destination)
    }
);
