//! What a packet means to lvs-xdp: everything that is decided about a packet, and the bytes it is decided from.
//!
//! The same code runs in the kernel, called by the XDP program, and on the host, called by tests and
//! by the agent. It has no clock, no randomness and no input or output of its own: the frame comes
//! through [`frame::Frame`], the tables and the time through [`maps::Maps`].
//!
//! In reading order:
//! - [`frame`], [`parse`]: from a frame to a [`packet::Packet`]; [`unusual`]: what is no common one
//! - [`director`]: from a packet to a [`decision::Verdict`], top to bottom as a packet goes
//! - [`rewrite`], [`tunnel`], [`answer`]: what is written into a frame that leaves
//! - [`connection`]: what one connection entry says: states, time-outs, the entry's word
//! - [`table`]: the connection table: find, insert, change, expire, without a lock
//! - [`scheduler`]: which destination a new connection gets
//! - [`ring`]: how the agent fills the rings of the hash schedulers
//! - [`hash`]: the flow hash, and IPVS's own hashes
//! - [`steer`]: how the packets of health checks reach the virtual address on one real server
//! - [`maps`], [`abi`], [`atomic`]: the tables' layout, shared with the agent
//! - `crash`: where a process may die, for tests of that
//! - [`verifier`]: what only the kernel's verifier needs
//! - [`reason`]: a name for everything that can become of a packet
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "core::sync::atomic has no compare-and-swap on this target"
    )
)]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

pub mod abi;
pub mod announce;
pub mod answer;
pub mod atomic;
pub mod connection;
#[cfg(not(target_arch = "bpf"))]
pub mod crash;
pub mod decision;
pub mod director;
pub mod flow;
pub mod frame;
pub mod hash;
pub mod maps;
pub mod marks;
pub mod packet;
pub mod parse;
pub mod reason;
pub mod rewrite;
#[cfg(not(target_arch = "bpf"))]
pub mod ring;
pub mod scheduler;
pub mod signal;
pub mod steer;
pub mod table;
pub mod tunnel;
pub mod unusual;
pub mod verifier;
