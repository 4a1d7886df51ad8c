//! Clients of one network, by its prefix, stay with one real server.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Result;
use lvs_xdp_tests::{agent::XdpMode, ask::connections, load::Load};

use crate::{add_clients, answered, in_both_modes, lab};

in_both_modes!(clients_of_one_prefix_stay_together);

fn host(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number)
}

fn clients_of_one_prefix_stay_together(mode: XdpMode) -> Result<()> {
    let options = ["--scheduler", "rr", "--persistent", "--netmask", "120"];
    let lab = lab(mode, 2, &options)?;
    // The first of the two is the lab's own client.
    let (one, other) = ([0x200, 0x201, 0x2ff].map(host), [0x300, 0x301].map(host));
    add_clients(&lab, &[&one[1..], &other[..]].concat())?;
    // In turns, so that rr alone would mix them.
    let in_turns = [one[0], other[0], one[1], one[2], other[1], one[0], other[0]];
    let sources: Vec<_> = (30_000..)
        .zip(in_turns)
        .map(|(port, client)| SocketAddr::new(client.into(), port))
        .collect();
    let report = answered(
        &lab,
        Load {
            sources,
            ..Load::sequential(lab.vip(), in_turns.len())
        },
    )?;
    let expected = in_turns.map(|client| if one.contains(&client) { "rs2" } else { "rs1" });
    assert_eq!(report.answers().collect::<Vec<_>>(), expected);

    let mut templates: Vec<_> = connections(&lab, &[])?
        .into_iter()
        .filter(|connection| connection.client.port() == 0)
        .map(|template| {
            let client = template.client.ip().to_string();
            (client, template.state, template.destination.to_string())
        })
        .collect();
    templates.sort();
    let template = |client: &str, server: &str| (client.to_owned(), "ASSURED".to_owned(), server.to_owned());
    assert_eq!(
        templates,
        [
            template("fd00:1::200", "[fd00:2::210]:80"),
            template("fd00:1::300", "[fd00:2::220]:80"),
        ]
    );

    // Every way to look at them writes addresses as IPv6 does.
    let listed = lab.ipvsadm(["-L", "-n"])?;
    assert!(
        listed.contains("TCP  [fd00:2::100]:80 rr persistent 360 mask 120\n"),
        "{listed}"
    );
    let listed = lab.ipvsadm(["-L", "-n", "-c"])?;
    let row = (listed.lines()).find(|line| line.contains("[fd00:1::300]:0"));
    let row: Vec<_> = row.unwrap_or_default().split_whitespace().skip(2).collect();
    assert_eq!(
        row,
        [
            "ASSURED",
            "[fd00:1::300]:0",
            "[fd00:2::100]:80",
            "[fd00:2::220]:80"
        ],
        "{listed}"
    );
    // Filters take addresses, networks and services of IPv6.
    let filtered = |filter: &[&str]| Ok::<_, anyhow::Error>(connections(&lab, filter)?.len());
    assert_eq!(filtered(&["--client", "fd00:1::300/120"])?, 4);
    assert_eq!(filtered(&["--client", "fd00:1::301"])?, 1);
    assert_eq!(filtered(&["--server", "fd00:2::210"])?, 5);
    assert_eq!(filtered(&["--service", "tcp/[fd00:2::100]:80"])?, 9);
    assert_eq!(filtered(&["--client", "0.0.0.0/0"])?, 0);
    let flushed = lab.cli(["connections", "flush", "--client", "fd00:1::300/120"])?;
    assert_eq!(flushed, "4 removed\n");
    assert_eq!(filtered(&[])?, 5);
    Ok(())
}
