//! The lab: LVS's reference case on real packets, in network namespaces, and the tools of the tests that need it.
//!
//! Everything here needs root, and makes only network namespaces, files and pins that carry this
//! process's id and are removed when their guards are dropped. What a run that was killed left
//! behind is removed by the next one.
//!
//! Modules in reading order: [`lab`] is the whole, the rest are its parts; but for [`trial`], which has the
//! program alone, without a packet on any wire, [`frame`], which makes what it is fed, and [`vm`], which has
//! another kernel for all of it.

pub mod agent;
pub mod ask;
pub mod datagram;
pub mod decapsulator;
pub mod dissect;
pub mod family;
pub mod far;
pub mod frame;
pub mod interpreter;
pub mod lab;
pub mod load;
pub mod maglev;
pub mod netns;
pub mod packet;
pub mod port;
pub mod process;
pub mod report;
mod stale;
pub mod stream;
pub mod topology;
pub mod trace;
pub mod trial;
pub mod vm;
pub mod web;
pub mod xdp_pass;
