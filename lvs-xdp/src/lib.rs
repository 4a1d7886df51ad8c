//! lvs-xdp: LVS Direct Routing in XDP. The agent, the command line and the `ipvsadm` drop-in.

pub mod api;
pub mod neighbour;
pub mod realserver;
