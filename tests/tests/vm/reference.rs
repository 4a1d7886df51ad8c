//! The reference case on this kernel.

use anyhow::Result;
use lvs_xdp_tests::{agent::XdpMode, lab::Lab};

use crate::{config, in_the_guest};

in_the_guest!(
    real_servers_answer_in_turns_in_native_mode,
    real_servers_answer_in_turns_in_generic_mode,
);

fn real_servers_answer_in_turns_in_native_mode() -> Result<()> {
    real_servers_answer_in_turns(XdpMode::Native)
}

fn real_servers_answer_in_turns_in_generic_mode() -> Result<()> {
    real_servers_answer_in_turns(XdpMode::Generic)
}

fn real_servers_answer_in_turns(mode: XdpMode) -> Result<()> {
    let lab = Lab::start(config(mode))?;
    lab.add_service("rr")?;
    let answers = (0..4).map(|_| lab.fetch("/")).collect::<Result<String>>()?;
    assert_eq!(answers, "rs2\nrs1\nrs2\nrs1\n");
    Ok(())
}
