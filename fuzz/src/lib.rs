//! What comes from outside, for a fuzzer: frames, and all the texts that become the table.
//!
//! Each module has one target of `cargo xtask fuzz`, a function that takes an input and panics where something is
//! wrong with what is made of it. `corpus` keeps inputs of each; the tests try all of them without a fuzzer.

#[cfg(feature = "texts")]
pub mod api;
#[cfg(feature = "texts")]
pub mod config;
pub mod decide;
#[cfg(feature = "texts")]
pub mod keepalived;
#[cfg(feature = "texts")]
pub mod restore;
#[cfg(feature = "texts")]
pub mod table;
