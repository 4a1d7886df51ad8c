//! The benchmark's own XDP programs: one that makes packets, one that takes them off a cable, and the floors - what
//! a packet costs at least, for a program that does so much and no more.
//!
//! None of this shares more with lvs-xdp than its atomic word: a floor that did would sink and rise with it.
#![no_std]
#![no_main]

mod floors;
mod generator;
mod plan;
mod trip;
mod wire;

use aya_ebpf::programs::XdpContext;

/// A value of the packet, `offset` bytes from its beginning, if all of it is there.
#[inline(always)]
fn at<T>(context: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = context.data() + offset;
    (start + size_of::<T>() <= context.data_end()).then_some(start as *mut T)
}

/// Reads what [`at`] finds.
#[inline(always)]
fn load<T: Copy>(context: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: `at` has compared the value's end with the packet's; `T` is an integer, or an array of them.
    at::<T>(context, offset).map(|value| unsafe { value.read_unaligned() })
}

/// Writes where [`at`] finds room.
#[inline(always)]
fn store<T: Copy>(context: &XdpContext, offset: usize, value: T) -> Option<()> {
    // SAFETY: as for `load`.
    at::<T>(context, offset).map(|place| unsafe { place.write_unaligned(value) })
}

/// A number that differs in all of its bits where the argument does in one; a bijection (splitmix64's).
#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
