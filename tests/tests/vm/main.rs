//! What needs another kernel than the one that runs, or one with more in it: SCTP sockets, bonds, VLAN
//! devices, tunnels. All of it runs in one virtual machine; `lvs_xdp_tests::vm` says how to add to it.

mod bond;
mod sctp;
mod tunnel;
mod vlan;

use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    in_the_guest,
    lab::LabConfig,
};

/// What a lab of two real servers is made from that forwards in the mode, and in no other.
fn config(mode: XdpMode) -> LabConfig {
    LabConfig {
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    }
}
