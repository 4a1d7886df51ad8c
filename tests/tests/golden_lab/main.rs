//! IPVS's own answers, connection by connection, on real packets: scenarios that were played to the
//! kernel's IPVS, played by real clients and servers to a real agent and its ipvsadm.

mod network;
mod play;
mod record;
mod servers;

use anyhow::{Result, ensure};
use lvs_xdp_tests::agent::find_binary;

use crate::{
    network::Network,
    play::play,
    record::{Scenario, recorded, scenarios},
};

/// How many scenarios the record has: none is lost on the way.
const SCENARIOS: usize = 41;
/// The scenarios are dealt to as many tests, which run side by side.
const TESTS: usize = 4;

/// What IPVS does by its rules and the record has no example of, in the record's format: mostly, that it
/// is silent about connections of a removed server, which go on when the server is back.
const RULES: &str = include_str!("rules.json");

fn play_share(share: usize) -> Result<()> {
    let scenarios = recorded()?;
    ensure!(
        scenarios.len() == SCENARIOS,
        "the record has {} scenarios, not {SCENARIOS}",
        scenarios.len()
    );
    play_some(&scenarios, share, TESTS)
}

/// Plays every `step`th of the scenarios, from `first` on.
fn play_some(scenarios: &[Scenario], first: usize, step: usize) -> Result<()> {
    let binary = find_binary()?;
    let network = Network::build(&binary, scenarios)?;
    for scenario in scenarios.iter().skip(first).step_by(step) {
        play(scenario, &network, &binary)?;
        println!("{}", scenario.name);
    }
    Ok(())
}

#[test]
fn connections_go_where_ipvs_sent_them_1() -> Result<()> {
    play_share(0)
}

#[test]
fn connections_go_where_ipvs_sent_them_2() -> Result<()> {
    play_share(1)
}

#[test]
fn connections_go_where_ipvs_sent_them_3() -> Result<()> {
    play_share(2)
}

#[test]
fn connections_go_where_ipvs_sent_them_4() -> Result<()> {
    play_share(3)
}

#[test]
fn connections_go_where_ipvs_rules_send_them() -> Result<()> {
    play_some(&scenarios(RULES)?, 0, 1)
}
