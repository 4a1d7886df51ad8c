//! Thousands of services, ten thousand of them where the agent is an optimised build.

use std::{
    env,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use lvs_xdp::api::types::Plan;
use lvs_xdp_tests::{
    agent::AgentConfig,
    ask::{json, status},
    lab::{Lab, LabConfig},
    load::Load,
    report::tell,
};

use crate::{File, table};

/// So many services where `LVS_XDP_SERVICES` says no other number. An agent without optimisation takes some nine seconds to
/// load them; with it, one or two.
const SERVICES: u32 = 10_000;
const SERVERS: u32 = 10;

/// So many services beside that of the reference case; the first one's first real server has this weight.
fn many(services: u32, weight: u32) -> String {
    let mut text = table("rr", &[1]);
    for number in 0..services {
        let (high, low) = (number / 250, number % 250 + 1);
        let _ = write!(
            text,
            "[[service]]\nprotocol = \"tcp\"\naddress = \"10.100.{high}.{low}\"\nport = 80\nscheduler = \"wlc\"\n"
        );
        for host in 0..SERVERS {
            let weight = if number == 0 && host == 0 { weight } else { 1 };
            let _ = write!(
                text,
                "[[service.server]]\naddress = \"192.168.2.{}\"\nweight = {weight}\n",
                230 + host
            );
        }
    }
    text
}

/// The agent's memory in MiB.
fn memory(lab: &Lab) -> Result<u64> {
    let pid = lab.agent()?.pid().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or_default() / 1024)
}

#[test]
fn thousands_of_services_with_ten_real_servers_each() -> Result<()> {
    let services = env::var("LVS_XDP_SERVICES").map_or(Ok(SERVICES), |number| number.parse())?;
    let config = AgentConfig {
        arguments: ["--services", "16384", "--destinations", "131072"]
            .map(String::from)
            .to_vec(),
        ..AgentConfig::default()
    };
    let lab = Lab::start(LabConfig {
        real_servers: 1,
        agent: config,
        binary: None,
    })?;
    // One host has the addresses of all the real servers: ten that nobody has would keep the agent busy with their
    // coming and going, each of them in all of the services.
    for host in 0..SERVERS {
        let netns = lab.real_servers()[0].netns();
        netns.ip(&format!("address add 192.168.2.{}/24 dev eth0", 230 + host))?;
    }
    let small = File::new(&table("rr", &[1]))?;
    lab.cli(["apply", &small.name()])?;
    lab.fetch("/")?;
    let large = File::new(&many(services, 1))?;
    let changed = File::new(&many(services, 2))?;
    tell(format_args!("memory before: {} MiB", memory(&lab)?));

    let load = Load::steady(lab.vip(), 50, Duration::from_secs(600)).start(lab.client())?;
    let timed = |what: &str, words: &[&str]| -> Result<String> {
        let started = Instant::now();
        let told = lab.cli(words.iter().copied())?;
        tell(format_args!("{what}: {:?}", started.elapsed()));
        Ok(told)
    };
    timed("all of them applied", &["apply", &large.name()])?;
    tell(format_args!("memory after: {} MiB", memory(&lab)?));
    let now = status(&lab)?;
    assert_eq!(
        (now.services, now.servers),
        (u64::from(services) + 1, u64::from(services * SERVERS) + 1)
    );
    let told = timed("one of them changed by a file", &["apply", &changed.name()])?;
    assert!(told.contains("weight 1 -> 2"), "{told}");
    timed(
        "one of them changed by a command",
        &[
            "server",
            "edit",
            "tcp",
            "10.100.0.1:80",
            "192.168.2.230",
            "--weight",
            "3",
        ],
    )?;
    timed("gone back by one", &["rollback"])?;
    timed("exported", &["export"])?;
    let plan: Plan = json(&lab, &["apply", "--dry-run", &small.name()])?;
    assert_eq!(plan.steps.len(), services as usize);
    timed("all of them deleted", &["apply", &small.name()])?;
    assert_eq!(status(&lab)?.services, 1);
    let report = load.stop()?;
    tell(format_args!("requests meanwhile: {}", report.outcomes.len()));
    assert_eq!(report.failures(), []);
    Ok(())
}
