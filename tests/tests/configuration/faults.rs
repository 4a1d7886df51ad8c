//! The agent is killed while it applies a large table, by the clock; `faults` kills it at each of its writes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lvs_xdp::api::types::Version;
use lvs_xdp_tests::{agent::AgentConfig, ask::json, process::Process};

use crate::{File, lab};

/// So many kills, unless the time is over.
const KILLS: u32 = 20;
/// How long it may take.
const BUDGET: Duration = Duration::from_secs(30);
/// Services of the tables, two real servers each.
const SERVICES: u16 = 300;

/// A table that has nothing but its shape in common with that of another scheduler.
fn table(scheduler: &str, host: u8) -> String {
    let mut text = String::new();
    for port in 1..=SERVICES {
        text += &format!(
            "[[service]]\nprotocol = \"tcp\"\naddress = \"192.168.2.100\"\nport = {port}\nscheduler = \"{scheduler}\"\n\
             [[service.server]]\naddress = \"192.168.2.{host}\"\n[[service.server]]\naddress = \"192.168.2.{}\"\n",
            host + 1
        );
    }
    text
}

#[test]
fn killed_at_any_moment_of_an_apply_the_table_is_the_old_or_the_new_one() -> Result<()> {
    let mut lab = lab(1)?;
    let files = [File::new(&table("rr", 10))?, File::new(&table("sh", 20))?];
    let mut tables = Vec::new();
    for file in &files {
        lab.cli(["apply", &file.name()])?;
        tables.push(lab.cli(["export"])?);
    }
    assert_ne!(tables[0], tables[1]);
    // As long as an apply takes, from the command on.
    let started = Instant::now();
    lab.cli(["apply", &files[0].name()])?;
    let whole = started.elapsed();

    let (mut current, mut kills, mut news) = (0, 0, 0);
    let begun = Instant::now();
    while kills < KILLS && begun.elapsed() < BUDGET {
        let before: Vec<Version> = json(&lab, &["history"])?;
        let other = 1 - current;
        let client = lab.agent()?.client(["apply", &files[other].name()]);
        let mut client = Process::spawn(client)?;
        thread::sleep(whole * kills / KILLS);
        lab.agent_mut()?.kill()?;
        client.wait(Duration::from_secs(20))?;
        kills += 1;

        lab.agent_mut()?.launch(&AgentConfig::default())?;
        let now = lab.cli(["export"])?;
        let found = tables.iter().position(|table| *table == now);
        let found = found.with_context(|| format!("kill {kills}: neither table:\n{now}"))?;
        // The history says the same: one version more, or none.
        let after: Vec<Version> = json(&lab, &["history"])?;
        let number = |versions: &[Version]| versions.first().map_or(0, |version| version.number);
        let is_new = found == other;
        assert_eq!(
            number(&after),
            number(&before) + u64::from(is_new),
            "kill {kills}"
        );
        if is_new {
            news += 1;
            lab.cli(["rollback"])?;
            assert_eq!(lab.cli(["export"])?, tables[current], "kill {kills}");
            lab.cli(["rollback"])?;
        }
        current = found;
    }
    println!("killed {kills} times within {whole:?}: {news} times the new table, else the old one");
    assert!(kills >= 10, "{kills}");
    Ok(())
}
