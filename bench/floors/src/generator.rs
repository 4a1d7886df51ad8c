//! `generate`: makes the frame of a flow, and lets the program under test have it.
//!
//! The kernel's BPF_PROG_TEST_RUN does not put the frame back between two runs of a program. So the generator is what
//! it runs: each time it takes off what the last run has put in front, writes the frame anew for the next of so many
//! flows, in an order in which no table was filled, and goes on to the program.

use core::array;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    btf_maps::{Array, ProgramArray},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

use lvs_xdp_common::{atomic::Word, verifier::opaque};

use crate::{
    at,
    plan::{Plan, WORDS},
    store,
};

/// What an offset into the frame may be at most; it is masked by this.
const OFFSETS: u64 = 127;

#[btf_map]
static PLAN: Array<Plan, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// The program under test is in slot 0: a constant, so that the kernel makes a jump of the call.
#[btf_map]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn generate(context: XdpContext) -> u32 {
    if make(&context).is_some() {
        // SAFETY: the array holds XDP programs only, and nothing here is to be dropped.
        unsafe { UNDER_TEST.tail_call(&context, 0) };
    }
    // Nothing that is measured says so: the benchmark takes it for a mistake of its own.
    xdp_action::XDP_ABORTED
}

/// A flow by Zipf's law, of two to the power of `bits`, by a number that is any: each power of two of ranks has as many
/// packets as the next one, and within it all have as many. Ranks that follow each other are not neighbours.
#[inline(always)]
const fn by_zipf(number: u64, bits: u64) -> u64 {
    let mixed = (number ^ number >> 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let octave = ((mixed >> 32) * bits) >> 32 & 31;
    let first = 1 << octave;
    let rank = first | mixed & (first - 1);
    rank.wrapping_mul(0x9e37_79b1)
}

/// Makes the frame of the next flow.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "flows and offsets are small")]
pub(crate) fn make(context: &XdpContext) -> Option<()> {
    // SAFETY: the row lives as long as the map, and is made of words.
    let plan = unsafe { &*PLAN.get_ptr(0)? };
    // A locked operation: no packet begins before the stores of the one before are done, as between two packets of a
    // network card's that lie apart.
    plan.made.add(1);

    // Also where it is nothing: it costs the same for every program then.
    // Of the two ends no number can be made but by a subtraction, which the compiler would do in another order.
    let now = opaque(context.data_end() - context.data());
    let length = plan.length.load();
    let by = now as i64 - length as i64;
    // SAFETY: the context is the program's own; the ends are read anew below.
    if unsafe { bpf_xdp_adjust_head(context.ctx, by as i32) } != 0 {
        return None;
    }
    let word = |at: usize| plan.template[at].load();
    if length > 60 {
        let place = at::<[u64; WORDS]>(context, 0)?;
        // SAFETY: `at` has compared its end with the packet's.
        unsafe { place.write_unaligned(array::from_fn(word)) };
    } else {
        let place = at::<[u64; 7]>(context, 0)?;
        // SAFETY: as above.
        unsafe { place.write_unaligned(array::from_fn(word)) };
        store(context, 56, word(7) as u32)?;
    }

    let flow = plan
        .flow
        .load()
        .wrapping_mul(plan.multiplier.load())
        .wrapping_add(plan.increment.load())
        & plan.flows_mask.load();
    plan.flow.store(flow);
    let flow = match plan.skew.load() {
        0 => flow,
        bits => by_zipf(flow, bits) & plan.flows_mask.load(),
    };
    // Of one client some flows, and for each service some clients.
    let client = (plan.client.load() as u32).wrapping_add(flow as u32 & 0xffff);
    let port = 0x4000 | (flow >> 16) as u16;
    let service = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & plan.services_mask.load();
    let address = (plan.virtual_address.load() as u32)
        .wrapping_add(service as u32)
        .to_be();
    let offset = |at: &Word| (at.load() & OFFSETS) as usize;
    store(context, offset(&plan.client_at), client.to_be())?;
    store(context, offset(&plan.client_port_at), port.to_be())?;
    store(context, offset(&plan.virtual_at[0]), address)?;
    store(context, offset(&plan.virtual_at[1]), address)
}
