//! Which real server gets which connection, and what is counted of it.

use std::{
    collections::BTreeMap,
    iter,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{Lab, VIP, real_server_address, real_server_name},
    load::{Load, Report},
    topology::port_name,
};

use crate::{
    in_both_modes, lab,
    wire::{self, Tap},
};

in_both_modes!(
    round_robin_divides_a_thousand_by_two,
    statistics_are_what_was_on_the_wire,
);

fn round_robin_divides_a_thousand_by_two(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2)?;
    lab.add_service("rr")?;
    assert_eq!(answers(&lab, 1000)?, lab.round_robin_answers(1000));
    Ok(())
}

#[test]
fn round_robin_divides_a_thousand_by_seven() -> Result<()> {
    let lab = lab(XdpMode::Native, 7)?;
    lab.add_service("rr")?;
    let report = load(&lab, Load::sequential(VIP, 1000))?;
    assert_eq!(
        report.answers().collect::<Vec<_>>(),
        lab.round_robin_answers(1000)
    );
    // 1000 = 7 * 142 + 6: only the server at the end of the list has one less.
    let counts: Vec<_> = report.counts().into_values().collect();
    assert_eq!(counts, [142, 143, 143, 143, 143, 143, 143]);
    Ok(())
}

/// IPVS goes through the list, newest first, and takes those of at least weight cw, which goes down by the
/// weights' greatest common divisor at the list's end, and from there to the highest weight.
///
/// Where it begins is history: the first server alone made cw 1 (its weight - (divisor - 1), the divisor being
/// its weight), and the servers added after it leave cw at 1.
#[test]
fn weighted_round_robin_is_that_of_ipvs() -> Result<()> {
    let lab = lab(XdpMode::Native, 3)?;
    lab.ipvsadm(words(&format!("-A -t {VIP}:80 -s wrr")))?;
    for (number, weight) in [(1, 3), (2, 2), (3, 1)] {
        let address = real_server_address(number);
        lab.ipvsadm(words(&format!("-a -t {VIP}:80 -r {address}:80 -g -w {weight}")))?;
    }
    // cw: 1, 3, 2, and again.
    let round = [&["rs3", "rs2", "rs1"][..], &["rs1"], &["rs2", "rs1"]].concat();
    let expected: Vec<_> = round.iter().cycle().take(60).copied().collect();
    assert_eq!(answers(&lab, 60)?, expected);

    // Each change goes back to the list's head, with cw where it was (2) while the divisor is 1. The last makes
    // it 2, and so cw 2 / 2 * 2 + 1 = 3, of at most 6 - (2 - 1) = 5.
    for (number, weight) in [(1, 6), (2, 4), (3, 0)] {
        let address = real_server_address(number);
        lab.ipvsadm(words(&format!("-e -t {VIP}:80 -r {address}:80 -g -w {weight}")))?;
    }
    // cw: 3, 1, 5, and again.
    let round = [&["rs2", "rs1"][..], &["rs2", "rs1"], &["rs1"]].concat();
    let expected: Vec<_> = round.iter().cycle().take(50).copied().collect();
    assert_eq!(answers(&lab, 50)?, expected);
    Ok(())
}

#[test]
fn source_hashing_keeps_each_client_with_the_server_ipvs_picks() -> Result<()> {
    let lab = lab(XdpMode::Native, 3)?;
    lab.add_service("sh")?;
    let clients = (1..=20).map(|last| Ipv4Addr::new(192, 168, 1, 100 + last));
    for (index, client) in clients.enumerate() {
        lab.client().ip(&format!("address add {client}/24 dev eth0"))?;
        let first_port = 20_000 + 10 * u16::try_from(index)?;
        let sources = (first_port..first_port + 5).map(|port| SocketAddr::from((client, port)));
        let report = load(
            &lab,
            Load {
                sources: sources.collect(),
                ..Load::sequential(VIP, 5)
            },
        )?;
        // 256 slots, dealt to the list from its newest on: the slot is the upper 8 bits of the product.
        let slot = client.to_bits().wrapping_mul(0x61C8_8647) >> 24;
        let server = real_server_name(3 - usize::try_from(slot % 3)?);
        assert_eq!(
            report.counts().into_iter().collect::<Vec<_>>(),
            [(server.as_str(), 5)],
            "{client}"
        );
    }
    Ok(())
}

fn statistics_are_what_was_on_the_wire(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 2)?;
    lab.add_service("rr")?;
    wire::keep_frames_apart(&lab)?;
    let tap = Tap::start(lab.topology().switches(), &port_name("director", "eth0"))?;
    let servers = ["rs1", "rs2"].map(|name| Tap::start(lab.topology().host(name), "eth0"));
    load(&lab, Load::sequential(VIP, 20))?;
    // The last FINs are on their way.
    thread::sleep(Duration::from_millis(300));

    let count = |packets: Vec<Vec<u8>>| -> Result<[u64; 2]> {
        let bytes: Result<Vec<_>> = packets.iter().map(|frame| wire::ip_length(frame)).collect();
        Ok([u64::try_from(packets.len())?, bytes?.iter().sum()])
    };
    let [packets, bytes] = count(tap.finish(true)?)?;
    let mut expected = BTreeMap::from([(format!("{VIP}:80"), [20, packets, 0, bytes, 0])]);
    for (number, tap) in iter::zip(1.., servers) {
        let [packets, bytes] = count(tap?.finish(false)?)?;
        expected.insert(
            format!("{}:80", real_server_address(number)),
            [10, packets, 0, bytes, 0],
        );
    }
    let listed = lab.ipvsadm(["-L", "-n", "--stats", "--exact"])?;
    let mut found = BTreeMap::new();
    for line in listed.lines().skip(3) {
        let mut columns = line.split_whitespace().skip(1);
        let name = columns.next().context("a line without a name")?.to_owned();
        let numbers: Vec<u64> = columns.map(str::parse).collect::<Result<_, _>>()?;
        found.insert(
            name,
            <[u64; 5]>::try_from(numbers).ok().context("not five counts")?,
        );
    }
    assert_eq!(found, expected, "{listed}");
    Ok(())
}

fn words(line: &str) -> std::str::SplitWhitespace<'_> {
    line.split_whitespace()
}

/// Who answers so many connections, one after the other; all must succeed.
fn answers(lab: &Lab, connections: usize) -> Result<Vec<String>> {
    let report = load(lab, Load::sequential(VIP, connections))?;
    Ok(report.answers().map(str::to_owned).collect())
}

fn load(lab: &Lab, load: Load) -> Result<Report> {
    let report = load.run(lab.client())?;
    assert_eq!(report.failures(), []);
    Ok(report)
}
