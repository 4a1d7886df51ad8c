//! The two programs beside the XDP program: they lead the packets of health checks to the virtual address on one real
//! server, and the answers back. [`lvs_xdp_common::steer`] says which and how.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use bytemuck::AnyBitPattern;
use lvs_xdp_common::steer::{self, Direction, Packet};

use crate::maps::STEERED;

/// What leaves an interface.
#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn steer_out(context: TcContext) -> i32 {
    lead(&context, Direction::Out)
}

/// What comes in, behind the XDP program and before the host.
#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn steer_in(context: TcContext) -> i32 {
    lead(&context, Direction::In)
}

#[inline(always)]
fn lead(context: &TcContext, direction: Direction) -> i32 {
    // SAFETY: a row is copied out at once; the agent never changes one in place.
    let found = |key: &steer::Key| unsafe { STEERED.get(key) }.copied();
    // A frame that is nobody's has not changed: the next program, or the host, goes on with it.
    let _ = steer::steer(&mut Buffer(context), direction, found);
    TC_ACT_UNSPEC
}

/// The kernel's packet, whose checksum may still be the card's to compute.
struct Buffer<'a>(&'a TcContext);

/// A value as the helpers take it: as it goes over the wire.
fn word(value: u32) -> u64 {
    u64::from(value.to_be())
}

impl Packet for Buffer<'_> {
    #[inline(always)]
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        self.0.load(offset).ok()
    }

    #[inline(always)]
    fn store(&mut self, offset: usize, new: u32, is_summed: bool) -> Option<()> {
        let flags = if is_summed {
            u64::from(BPF_F_RECOMPUTE_CSUM)
        } else {
            0
        };
        self.0.store(offset, &new.to_be(), flags).ok()
    }

    #[inline(always)]
    fn change_header_sum(&mut self, offset: usize, old: u32, new: u32) -> Option<()> {
        self.0.l3_csum_replace(offset, word(old), word(new), 4).ok()
    }

    #[inline(always)]
    fn change_sum(&mut self, offset: usize, old: u32, new: u32, is_optional: bool) -> Option<()> {
        let optional = if is_optional {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let flags = 4 | u64::from(BPF_F_PSEUDO_HDR) | optional;
        self.0.l4_csum_replace(offset, word(old), word(new), flags).ok()
    }
}
