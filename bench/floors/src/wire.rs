//! The other end of the director's cable.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::PerCpuArray,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// Packets that have come back.
#[btf_map]
static RECEIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Counts a packet and drops it.
#[xdp]
fn sink(_: XdpContext) -> u32 {
    if let Some(packets) = RECEIVED.get_ptr_mut(0) {
        // SAFETY: the row is this CPU's own.
        unsafe { *packets += 1 };
    }
    xdp_action::XDP_DROP
}
