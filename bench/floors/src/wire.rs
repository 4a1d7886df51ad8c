//! The other end of the director's cable: what sends packets into it, and what takes those that come back.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    btf_maps::{Array, PerCpuArray},
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

use crate::{
    generator::make,
    load, store,
    trip::{BETWEEN_MARKS, Trip},
};

#[btf_map]
static TRIP: Array<Trip, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Packets that have come back.
#[btf_map]
static RECEIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Makes the next packet as `generate` does, and sends it. The kernel runs it on frames that it uses again as they
/// come back.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn transmit(context: XdpContext) -> u32 {
    let Some(trip) = TRIP.get_ptr(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the row lives as long as the map, and is made of words.
    let trip = unsafe { &*trip };
    if make(&context).is_none() || sum(&context).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    let number = trip.sent.load();
    trip.sent.store(number + 1);
    if number.is_multiple_of(BETWEEN_MARKS) {
        // SAFETY: it only reads the clock.
        let now = unsafe { bpf_ktime_get_ns() };
        if number == 0 {
            trip.first.store(now);
        }
        trip.last.store(now);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "indices of interfaces have 31 bits"
    )]
    // SAFETY: it only notes where the frame goes to.
    let action = unsafe { bpf_redirect(trip.if_index.load() as u32, 0) };
    action as u32
}

/// Writes the checksum of the IPv4 header (RFC 1071), which the kernel's own stack looks at.
#[inline(always)]
fn sum(context: &XdpContext) -> Option<()> {
    let words: [u16; 10] = load(context, 14)?;
    // The sixth word is the checksum itself. Two foldings do for ten words.
    let sum: u32 = (0..10).filter(|&at| at != 5).map(|at| u32::from(words[at])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    store(context, 24, !(sum as u16))
}

/// Counts a packet and drops it.
#[xdp(frags)]
fn sink(_: XdpContext) -> u32 {
    if let Some(packets) = RECEIVED.get_ptr_mut(0) {
        // SAFETY: the row is this CPU's own.
        unsafe { *packets += 1 };
    }
    xdp_action::XDP_DROP
}

/// Drops a packet where it comes in: what a packet costs before the program under test has it.
#[xdp(frags)]
fn dropping(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}
