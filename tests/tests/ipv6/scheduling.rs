//! Which real server a client gets: by hashes of addresses of 128 bits, and by weight.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    family::Family,
    lab::{Lab, real_server_name},
    load::Load,
    maglev::Table,
};

use crate::{SERVICE, add_clients, answered, empty_lab, in_both_modes, lab};

in_both_modes!(source_hashing_keeps_each_client_with_the_server_ipvs_picks);

const SERVERS: usize = 3;

/// IPVS's fold of an address: the XOR of its words.
fn fold(address: Ipv6Addr) -> u32 {
    let bits = address.to_bits();
    [96, 64, 32, 0]
        .into_iter()
        .fold(0, |folded, shift| folded ^ (bits >> shift & 0xffff_ffff) as u32)
}

/// Clients that differ in each word of theirs that a segment leaves them.
fn clients() -> Vec<Ipv6Addr> {
    let host = |number: u16| Ipv6Addr::new(0xfd00, 1, 0, 0, number << 9, number, number << 4, 0x300 + number);
    (1..=16).map(host).collect()
}

/// Each client asks thrice and is answered by one and the same real server: by which, in the list's order.
fn places(lab: &Lab, clients: &[Ipv6Addr]) -> Result<Vec<usize>> {
    add_clients(lab, clients)?;
    let mut places = Vec::new();
    for &client in clients {
        let report = answered(
            lab,
            Load {
                sources: (30_000..30_003)
                    .map(|port| SocketAddr::new(client.into(), port))
                    .collect(),
                ..Load::sequential(lab.vip(), 3)
            },
        )?;
        let counts: Vec<_> = report.counts().into_iter().collect();
        let [(server, 3)] = counts[..] else {
            panic!("{client} went to several: {counts:?}")
        };
        // The one that was added last is the first of the list.
        let place = (0..SERVERS).find(|place| real_server_name(SERVERS - place) == server);
        places.extend(place);
    }
    Ok(places)
}

fn source_hashing_keeps_each_client_with_the_server_ipvs_picks(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, SERVERS, &["--scheduler", "sh"])?;
    let clients = clients();
    // 256 slots, dealt to the list: the slot is the upper 8 bits of the product.
    let slot = |client: &Ipv6Addr| (fold(*client).wrapping_mul(0x61C8_8647) >> 24) as usize;
    let expected: Vec<_> = clients.iter().map(|client| slot(client) % SERVERS).collect();
    assert!(
        (0..SERVERS).all(|place| expected.contains(&place)),
        "{expected:?}"
    );
    assert_eq!(places(&lab, &clients)?, expected);
    Ok(())
}

#[test]
fn maglev_keeps_each_client_with_the_server_of_the_kernels_table() -> Result<()> {
    let lab = lab(XdpMode::Native, SERVERS, &["--scheduler", "mh"])?;
    let servers: Vec<_> = (1..=SERVERS)
        .rev()
        .filter_map(|number| match Family::V6.real_server(number) {
            std::net::IpAddr::V6(address) => Some(fold(address)),
            std::net::IpAddr::V4(_) => None,
        })
        .collect();
    let table = Table::new(&servers, 80);
    let clients = clients();
    let expected: Vec<_> = clients.iter().map(|client| table.server(fold(*client))).collect();
    assert!(
        (0..SERVERS).all(|place| expected.contains(&place)),
        "{expected:?}"
    );
    assert_eq!(places(&lab, &clients)?, expected);
    Ok(())
}

/// The order is that of IPv4, which `forwarding` derives; here several clients share it.
#[test]
fn weighted_round_robin_goes_round_over_all_clients() -> Result<()> {
    let lab = empty_lab(XdpMode::Native, SERVERS)?;
    lab.ipvsadm(["-A", "-t", SERVICE, "-s", "wrr"])?;
    for (number, weight) in [(1, "3"), (2, "2"), (3, "1")] {
        let server = SocketAddr::new(Family::V6.real_server(number), 80).to_string();
        lab.ipvsadm(["-a", "-t", SERVICE, "-r", &server, "-g", "-w", weight])?;
    }
    let clients = clients();
    add_clients(&lab, &clients)?;
    let sources: Vec<_> = (30_000..)
        .zip(clients.iter().cycle())
        .map(|(port, &client)| SocketAddr::new(client.into(), port))
        .take(60)
        .collect();
    let report = answered(
        &lab,
        Load {
            sources,
            ..Load::sequential(lab.vip(), 60)
        },
    )?;
    let round = ["rs3", "rs2", "rs1", "rs1", "rs2", "rs1"];
    assert_eq!(report.answers().collect::<Vec<_>>(), round.repeat(10));
    Ok(())
}
