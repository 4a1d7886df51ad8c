//! What packets cost, without a clock: instructions, map look-ups and cache lines, against what is written down.
//!
//! Where one of these counts has changed on purpose, the test prints what `tests/tests/guard/footprints.json` has to
//! say; the commit that changes it says why.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{Protocol, Scheduler};
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    interpreter::{Footprint, Interpreter},
    trial::{Director, add_server, add_service, service_key, xdp},
};
use serde::{Deserialize, Serialize};

/// What is written down.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Guard {
    /// The compiler of which the instructions are. With another one they are printed, and not compared.
    compiler: String,
    /// Instructions of the whole program.
    program: usize,
    /// What each packet takes.
    packets: BTreeMap<String, Footprint>,
}

const WRITTEN: &str = include_str!("footprints.json");
const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);

fn frame(client_port: u16, port: u16, flags: u8) -> Vec<u8> {
    Frame::tcp((Ipv4Addr::new(10, 9, 64, 1), client_port), (VIP, port), flags).bytes()
}

/// The compiler's name, as it stands in what it has made.
fn compiler() -> Result<String> {
    const MARK: &[u8] = b"rustc version ";
    let object = lvs_xdp::dataplane::object_file();
    let at = object.windows(MARK.len()).position(|window| window == MARK);
    let rest = &object[at.context("the object does not name its compiler")?..];
    let end = rest.iter().position(|&byte| byte == b')' || byte == 0);
    Ok(String::from_utf8_lossy(&rest[..end.unwrap_or(0)]).into_owned() + ")")
}

fn measured() -> Result<Guard> {
    let mut director = Director::new(1 << 16)?;
    director.stop_clock(1_000)?;
    let mut changes = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let key = service_key(protocol, VIP, 80);
        changes.push(add_service(key, Scheduler::Rr, &[]));
        for number in 1..=16 {
            let server = Ipv4Addr::new(10, 9, 0, number);
            director.resolve(server);
            changes.push(add_server(key, server, 1));
        }
    }
    director.change(&changes)?;

    let udp = Frame::udp((Ipv4Addr::new(10, 9, 64, 1), 40_000), (VIP, 80)).bytes();
    for (frame, reason) in [
        (frame(40_000, 80, tcp::SYN), Reason::NewConnection),
        (frame(40_000, 80, tcp::ACK), Reason::Connection),
        (frame(40_001, 80, tcp::SYN), Reason::NewConnection),
        (udp.clone(), Reason::NewConnection),
    ] {
        let seen = director.send(&frame)?;
        ensure!(seen.reason == reason, "{seen:?}");
    }
    let mut interpreter = Interpreter::new(&director)?;
    let mut packets = BTreeMap::new();
    for (name, frame, action) in [
        ("known connection", frame(40_000, 80, tcp::ACK), xdp::TX),
        ("known UDP connection", udp, xdp::TX),
        ("repeated SYN", frame(40_001, 80, tcp::SYN), xdp::TX),
        ("new connection", frame(40_002, 80, tcp::SYN), xdp::TX),
        ("not for us", frame(40_000, 81, tcp::ACK), xdp::PASS),
    ] {
        let (answer, footprint) = interpreter.run(&frame).context(name)?;
        ensure!(answer == u64::from(action), "{name}: the answer is {answer}");
        packets.insert(name.to_owned(), footprint);
    }
    Ok(Guard {
        compiler: compiler()?,
        program: interpreter.length(),
        packets,
    })
}

#[test]
fn a_packet_costs_what_is_written_down() -> Result<()> {
    let mut written: Guard = serde_json::from_str(WRITTEN)?;
    let measured = measured()?;
    let now = serde_json::to_string_pretty(&measured)?;
    if measured.compiler != written.compiler {
        println!(
            "the instructions written down are of {}, and are not compared with these of {}",
            written.compiler, measured.compiler
        );
        written.compiler.clone_from(&measured.compiler);
        written.program = measured.program;
        for (name, footprint) in &mut written.packets {
            if let Some(now) = measured.packets.get(name) {
                footprint.instructions = now.instructions;
            }
        }
    }
    ensure!(
        measured == written,
        "what packets cost has changed. If it is meant to, tests/tests/guard/footprints.json is to say:\n{now}"
    );
    Ok(())
}

/// The interpreter does what the kernel does: a connection that the one begins is the other one's.
#[test]
fn the_interpreter_and_the_kernel_are_of_one_mind() -> Result<()> {
    let mut director = Director::new(1 << 12)?;
    director.stop_clock(1_000)?;
    let key = service_key(Protocol::Tcp, VIP, 80);
    let server = Ipv4Addr::new(10, 9, 0, 1);
    director.resolve(server);
    director.change(&[add_service(key, Scheduler::Rr, &[]), add_server(key, server, 1)])?;
    let (answer, _) = Interpreter::new(&director)?.run(&frame(40_000, 80, tcp::SYN))?;
    assert_eq!(answer, u64::from(xdp::TX));
    assert_eq!(director.counts(&key, server), (1, 0));
    let seen = director.send(&frame(40_000, 80, tcp::ACK))?;
    assert_eq!(seen.reason, Reason::Connection);
    assert_eq!(director.counts(&key, server), (1, 0));
    Ok(())
}
