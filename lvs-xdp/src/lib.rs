//! lvs-xdp: LVS Direct Routing in XDP. The agent, the command line and the `ipvsadm` drop-in.
//!
//! The command line and [`ipvsadm`] are clients of [`api`]; behind it stands the [`agent`], which
//! carries the desired state ([`model`], kept by [`journal`]), the ways to the real servers ([`neighbour`]) and the
//! results of their health checks (`checks`) to the program ([`dataplane`]). [`config`] is the whole table as a
//! file. [`realserver`] is the other side: what a real server needs. [`doctor`] looks whether all of that holds on the wire.

pub mod agent;
pub mod api;
mod checks;
pub mod cli;
pub mod config;
mod crash;
pub mod dataplane;
pub mod doctor;
pub mod import;
pub mod ipvsadm;
pub mod journal;
mod line;
pub mod metrics;
pub mod model;
pub mod neighbour;
mod nic;
pub mod realserver;
mod tls;
