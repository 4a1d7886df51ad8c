//! The XDP program: gives packet and maps to [`lvs_xdp_common::director`] and does what it says.
#![no_std]
#![no_main]

mod frame;
mod maps;
mod steer;

use aya_ebpf::{Global, bindings::xdp_action, helpers::bpf_ktime_get_ns, macros::xdp, programs::XdpContext};
use aya_log_ebpf::info;
use lvs_xdp_common::{
    answer,
    decision::{Decision, Verdict},
    director,
    frame::rewrite_macs,
    reason::{Outcome, Reason},
    rewrite,
    verifier::opaque,
};

use crate::{
    frame::Packet,
    maps::{Kernel, REDIRECT},
};

/// Set by the agent when it loads the program: log every packet for a service. Off, the verifier
/// removes all of it.
#[unsafe(no_mangle)]
pub(crate) static LOG_PACKETS: Global<u32> = Global::new(0);

/// Decides about every packet that comes in.
#[xdp(frags)]
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn director(context: XdpContext) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return xdp_action::XDP_PASS;
    };
    let ingress = context.ingress_ifindex() as u32;
    let decision = director::consider(&Packet(&context), &kernel, ingress);
    if decision.is_done() {
        return xdp_action::XDP_TX;
    }
    // Without this the compiler prepares, before the first look at the packet, what a verdict would say that stops there.
    let verdict = Decision(opaque(decision.0 as usize) as u64).verdict(&kernel);
    if LOG_PACKETS.load() != 0 {
        log(&context, &verdict);
    }
    match verdict.reason.outcome() {
        Outcome::Forward => forward(&context, &verdict, ingress),
        Outcome::Answer => answer(&context, verdict.reason as u32),
        Outcome::Pass => {
            maps::count(verdict.reason);
            if verdict.destination != 0 {
                maps::count_forwarded(verdict.destination, verdict.length, verdict.is_new);
            }
            xdp_action::XDP_PASS
        }
        Outcome::Drop => {
            maps::count(verdict.reason);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn forward(context: &XdpContext, to: &Verdict, ingress: u32) -> u32 {
    let rewritten = if to.is_special {
        let wrapped = wrap(context, to.destination);
        if wrapped == REWRITTEN {
            address(context, to.destination)
        } else {
            wrapped
        }
    } else if rewrite_macs(&mut Packet(context), to.to, to.from).is_some() {
        REWRITTEN
    } else {
        Reason::RewriteFailed as u32
    };
    if rewritten != REWRITTEN {
        let reason = Reason::from_number(rewritten);
        maps::count(reason);
        // The frame is the answer already.
        return if matches!(reason.outcome(), Outcome::Answer) {
            xdp_action::XDP_TX
        } else {
            xdp_action::XDP_DROP
        };
    }
    if to.if_index != ingress
        && REDIRECT
            .redirect(to.if_index, u64::from(xdp_action::XDP_DROP))
            .is_err()
    {
        maps::count(Reason::RedirectFailed);
        return xdp_action::XDP_DROP;
    }
    maps::count(to.reason);
    maps::count_forwarded(to.destination, to.length, to.is_new);
    if to.if_index == ingress {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_REDIRECT
    }
}

/// What [`wrap`] and [`address`] say where all went well: no reason's number.
const REWRITTEN: u32 = u32::MAX;

/// [`rewrite::wrap`]: the number of the reason why not, or [`REWRITTEN`].
// Not inlined, so that the common packet does not pay for it.
#[inline(never)]
fn wrap(context: &XdpContext, destination: u32) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return Reason::Internal as u32;
    };
    match rewrite::wrap(&mut Packet(context), &kernel, destination) {
        Ok(()) => REWRITTEN,
        Err(reason) => reason as u32,
    }
}

/// [`rewrite::address`]: the number of the reason why not, or [`REWRITTEN`].
// Not inlined, so that the common packet does not pay for it.
#[inline(never)]
fn address(context: &XdpContext, destination: u32) -> u32 {
    let Some(kernel) = Kernel::new() else {
        return Reason::Internal as u32;
    };
    match rewrite::address(&mut Packet(context), &kernel, destination) {
        Ok(()) => REWRITTEN,
        Err(reason) => reason as u32,
    }
}

/// Makes the frame its own answer and sends it back where it came from. What cannot be answered is dropped.
// Not inlined, so that its buffers are not on the stack of every packet.
#[inline(never)]
fn answer(context: &XdpContext, reason: u32) -> u32 {
    let reason = Reason::from_number(reason);
    maps::count(reason);
    let Some(kernel) = Kernel::new() else {
        return xdp_action::XDP_DROP;
    };
    let ingress = context.ingress_ifindex() as u32;
    if answer::answer(&mut Packet(context), &kernel, ingress, reason).is_some() {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_DROP
    }
}

// Not inlined, for the same reason.
#[inline(never)]
fn log(context: &XdpContext, verdict: &Verdict) {
    if !matches!(
        verdict.reason,
        Reason::NotForUs | Reason::NotIp | Reason::NotUnicast
    ) {
        info!(
            context,
            "reason {} destination {}", verdict.reason as u32, verdict.destination
        );
    }
}

/// Says what time it is: the agent runs it by BPF_PROG_TEST_RUN, it is attached nowhere.
#[xdp]
fn clock(_: XdpContext) -> u32 {
    // SAFETY: takes no argument and cannot fail.
    maps::write_clock(unsafe { bpf_ktime_get_ns() });
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
