//! The director forwards: real clients, real servers, and the frames between them.

mod errors;
mod redirect;
mod reference;
mod scheduling;
mod udp;
mod untouched;
mod wire;

use anyhow::Result;
pub(crate) use lvs_xdp_tests::{in_both_modes, in_both_modes_and_families};

use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    lab::{Lab, LabConfig},
};

/// What a lab is made from that forwards in the mode, and in no other.
pub(crate) fn config(mode: XdpMode, real_servers: usize) -> LabConfig {
    LabConfig {
        real_servers,
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        binary: None,
    }
}

/// A lab of so many real servers whose agent forwards in the mode.
pub(crate) fn lab(mode: XdpMode, real_servers: usize) -> Result<Lab> {
    Lab::start(config(mode, real_servers))
}
