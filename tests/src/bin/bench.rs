//! `lvs-xdp-bench`: what a packet costs, and how much memory a small director's agent takes.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::{
    api::types::{Protocol, Scheduler, Tunnel, TunnelChecksum},
    dataplane::trial::Trials,
};
use lvs_xdp_tests::{
    agent::AgentConfig,
    frame::{Frame, tcp},
    lab::{Lab, LabConfig},
    trial::{Director, add_server, add_service, add_tunnel_server, service_key},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 9, 64, 1), 40_000);
const OTHER_CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 9, 64, 2), 40_000);
const SERVERS: u8 = 16;
/// Entries of the connection table: it fits into a cache of 4 MB, so what is shown is the program's work.
const CONNECTIONS: u32 = 1 << 16;
const ROUNDS: usize = 15;
const PACKETS: u32 = 500_000;

fn frame(client: (Ipv4Addr, u16), port: u16, flags: u8) -> Vec<u8> {
    let mut frame = Frame::tcp(client, (VIP, port), flags);
    frame.payload.clear();
    frame.bytes()
}

fn packets() -> Result<()> {
    let mut director = Director::new(CONNECTIONS)?;
    let key = service_key(Protocol::Tcp, VIP, 80);
    let mut changes = vec![add_service(key, Scheduler::Rr, &[])];
    for number in 1..=SERVERS {
        let server = Ipv4Addr::new(10, 9, 0, number);
        director.resolve(server);
        changes.push(add_server(key, server, 1));
    }
    director.change(&changes)?;
    for flags in [tcp::SYN, tcp::ACK] {
        director.send(&frame(CLIENT, 80, flags))?;
    }
    director.send(&frame(OTHER_CLIENT, 80, tcp::SYN))?;

    let mut group = frame(CLIENT, 80, tcp::ACK);
    group[0] |= 1;
    let rows = [
        ("a frame that leaves at the first check", group),
        ("a packet that is for no service", frame(CLIENT, 81, tcp::ACK)),
        ("a packet of a known connection", frame(CLIENT, 80, tcp::ACK)),
        (
            "a repeated SYN of a half-open one",
            frame(OTHER_CLIENT, 80, tcp::SYN),
        ),
    ];
    let trials = Trials::open(director.pins())?;
    let mut times = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, frame), times) in rows.iter().zip(&mut times) {
            times.push(trials.time(frame, PACKETS)?);
        }
    }
    println!(
        "ns a packet, running the program by BPF_PROG_TEST_RUN included; {CONNECTIONS} entries, rr over {SERVERS} \
         real servers, one flow; {ROUNDS} interleaved rounds of {PACKETS} packets:"
    );
    println!("{:>8} {:>8} {:>8}", "least", "median", "most");
    for ((what, _), times) in rows.iter().zip(&mut times) {
        times.sort_unstable();
        let [least, median, most] =
            [0, ROUNDS / 2, ROUNDS - 1].map(|at| times.get(at).map_or(0, Duration::as_nanos));
        println!("{least:>8} {median:>8} {most:>8}  {what}");
    }
    println!("instructions verified: {}", trials.verified_instructions()?);
    Ok(())
}

/// What a tunnel costs beside direct routing. Each run has a frame of its own, since the frame grows: what it
/// takes to read the clock for each is in all of these numbers.
fn tunnels() -> Result<()> {
    const EACH: u32 = 20_000;
    let gue = |checksum| Tunnel::Gue { port: 6080, checksum };
    let rows = [
        ("direct routing", None),
        ("IPIP", Some(Tunnel::Ipip)),
        ("GUE", Some(gue(TunnelChecksum::None))),
        ("GUE with a checksum", Some(gue(TunnelChecksum::On))),
        ("GRE", Some(Tunnel::Gre { checksum: false })),
    ];
    println!(
        "ns a packet of a known connection, one run at a time, of {EACH} each; 40 and 1,440 bytes long:"
    );
    println!("{:>8} {:>8}", "40", "1440");
    for (what, tunnel) in rows {
        let mut director = Director::new(CONNECTIONS)?;
        let key = service_key(Protocol::Tcp, VIP, 80);
        let server = Ipv4Addr::new(10, 9, 0, 1);
        director.resolve(server);
        director.resolve_tunnel(server, 1500);
        let add = tunnel.map_or_else(
            || add_server(key, server, 1),
            |tunnel| add_tunnel_server(key, server, tunnel),
        );
        director.change(&[add_service(key, Scheduler::Rr, &[]), add])?;
        director.send(&frame(CLIENT, 80, tcp::SYN))?;
        let trials = Trials::open(director.pins())?;
        let short = trials.time_each(&frame(CLIENT, 80, tcp::ACK), EACH)?;
        let mut long = Frame::tcp(CLIENT, (VIP, 80), tcp::ACK);
        long.payload = vec![7; 1400];
        let long = trials.time_each(&long.bytes(), EACH)?;
        println!("{:>8} {:>8}  {what}", short.as_nanos(), long.as_nanos());
    }
    Ok(())
}

/// Memory of an agent with two real servers and a table of [`CONNECTIONS`] entries.
fn memory() -> Result<()> {
    let lab = Lab::start(LabConfig {
        agent: AgentConfig {
            connections: Some(CONNECTIONS),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    lab.add_service("rr")?;
    let pid = lab.agent()?.pid().context("the agent runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    println!("the agent's memory, {CONNECTIONS} entries and two real servers:");
    for name in ["VmRSS", "RssAnon", "RssFile", "RssShmem"] {
        let line = status.lines().find(|line| line.starts_with(name));
        println!("  {}", line.with_context(|| format!("/proc has no {name}"))?);
    }
    Ok(())
}

fn main() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark loads the program: run it as root, by `cargo xtask bench`"
    );
    packets()?;
    tunnels()?;
    memory()
}
