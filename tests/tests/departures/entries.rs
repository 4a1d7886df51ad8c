//! The list of connections, and their removal from it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context as _, Result, bail};
use lvs_xdp::api::types::Connection;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{connections, json, packets, server, status, wait_for},
    datagram::{Echo, ask, connected},
    lab::{CLIENT, Lab},
    stream::OpenConnection,
};

use crate::lab;

const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 201);
const TCP: &str = "tcp/192.168.2.100:80";
const UDP: &str = "udp/192.168.2.100:7";

/// A lab with one connection, or flow, of each kind.
struct Busy {
    lab: Lab,
    /// From the client: to rs2, rs1 and rs2.
    open: [OpenConnection; 3],
    /// From the other client: to rs1.
    other: OpenConnection,
    _echo: Echo,
}

impl Busy {
    fn new() -> Result<Self> {
        let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
        lab.client()
            .ip(&format!("address add {OTHER_CLIENT}/24 dev eth0"))?;
        lab.ipvsadm(["-A", "-u", "192.168.2.100:7", "-s", "rr"])?;
        lab.ipvsadm(["-a", "-u", "192.168.2.100:7", "-r", "192.168.2.220", "-g"])?;
        let from = |address, port| OpenConnection::from(&lab, SocketAddrV4::new(address, port));
        let open = [
            from(CLIENT, 20_001)?,
            from(CLIENT, 20_002)?,
            from(CLIENT, 20_003)?,
        ];
        let other = from(OTHER_CLIENT, 20_004)?;
        // rs2's turn: one that is closed.
        drop(from(CLIENT, 20_005)?);
        let echo = Echo::start(lab.topology().host("rs1"), "rs1", 7)?;
        assert_eq!(ask(&connected(&lab, 7)?, b"")?, b"rs1");
        wait_for("the closed connection", || {
            Ok(connections(&lab, &["--state", "FIN_WAIT"])?.len() == 1)
        })?;
        Ok(Self {
            lab,
            open,
            other,
            _echo: echo,
        })
    }

    fn ports(&self, filters: &[&str]) -> Result<BTreeSet<u16>> {
        let found = connections(&self.lab, filters)?;
        let tcp = found
            .iter()
            .filter(|connection| connection.virtual_address.port() == 80);
        Ok(tcp.map(|connection| connection.client.port()).collect())
    }
}

#[test]
fn filters_find_what_they_name() -> Result<()> {
    let busy = Busy::new()?;
    let lab = &busy.lab;
    let all = connections(lab, &[])?;
    assert_eq!(all.len(), 6, "{all:?}");
    // Counted once a second.
    wait_for("the table's fill", || Ok(status(lab)?.connections == 6))?;
    let client = CLIENT.to_string();
    for (filters, expected) in [
        (&["--client", &client][..], &[20_001, 20_002, 20_003, 20_005][..]),
        (&["--client", "192.168.1.201"], &[20_004]),
        (
            &["--client", "192.168.1.200/31"],
            &[20_001, 20_002, 20_003, 20_004, 20_005],
        ),
        (&["--client", "10.0.0.0/8"], &[]),
        (&["--server", "192.168.2.210"], &[20_001, 20_003, 20_005]),
        (&["--server", "192.168.2.220"], &[20_002, 20_004]),
        (&["--server", "192.168.2.221"], &[]),
        (&["--service", TCP], &[20_001, 20_002, 20_003, 20_004, 20_005]),
        (&["--service", UDP], &[]),
        (&["--state", "ESTABLISHED"], &[20_001, 20_002, 20_003, 20_004]),
        (&["--state", "fin_wait"], &[20_005]),
        (&["--state", "UDP"], &[]),
        (
            &[
                "--state",
                "ESTABLISHED",
                "--server",
                "192.168.2.210",
                "--client",
                &client,
            ],
            &[20_001, 20_003],
        ),
    ] {
        let expected: BTreeSet<u16> = expected.iter().copied().collect();
        assert_eq!(busy.ports(filters)?, expected, "{filters:?}");
        // The text has the same entries below its titles, in columns.
        let text = lab.cli([&["connections"], filters].concat())?;
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let titles = ["PROTOCOL", "EXPIRES", "STATE", "CLIENT", "VIRTUAL", "DESTINATION"];
        assert_eq!(lines.next().as_deref(), Some(&titles[..]), "{text}");
        let found: Vec<Connection> = json(lab, &[&["connections"], filters].concat())?;
        let rows: BTreeSet<_> = lines.map(|row| row[2..].join(" ")).collect();
        let expected: BTreeSet<_> = found
            .iter()
            .map(|entry| {
                let Connection {
                    state,
                    client,
                    virtual_address,
                    destination,
                    ..
                } = entry;
                format!("{state} {client} {virtual_address} {destination}")
            })
            .collect();
        assert_eq!(rows, expected, "{filters:?}");
    }
    // Everything of one entry.
    let flow = connections(lab, &["--service", UDP])?;
    let [flow] = flow.as_slice() else {
        bail!("one flow, not {flow:?}");
    };
    assert_eq!(
        (flow.state.as_str(), flow.client.ip().to_string()),
        ("UDP", client)
    );
    assert_eq!(flow.virtual_address.to_string(), "192.168.2.100:7");
    assert_eq!(flow.destination.to_string(), "192.168.2.220:7");
    assert!((290..=300).contains(&flow.expires), "{flow:?}");

    // What is not there, or is no filter, is said in one line.
    for (filters, status) in [
        (["--service", "tcp/192.168.2.100:81"], 1),
        (["--state", "OPEN"], 2),
        (["--client", "192.168.1.0/33"], 2),
    ] {
        let refused = lab.cli_output([&["connections"], &filters[..]].concat())?;
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    Ok(())
}

#[test]
fn a_flush_takes_out_just_those() -> Result<()> {
    let Busy {
        lab,
        open: [mut first, _second, mut third],
        mut other,
        _echo,
    } = Busy::new()?;
    let counts = |number| {
        let server = server(&lab, number)?;
        Ok::<_, anyhow::Error>((server.active, server.inactive))
    };
    assert_eq!((counts(1)?, counts(2)?), ((2, 0), (2, 1)));
    let flush = |filters: &[&str]| lab.cli([&["connections", "flush"], filters].concat());
    assert_eq!(flush(&["--client", "10.0.0.0/8"])?, "0 removed\n");
    assert_eq!(flush(&["--client", "192.168.1.201"])?, "1 removed\n");
    assert_eq!((counts(1)?, counts(2)?), ((1, 0), (2, 1)));
    // Nobody knows it any more: the host, which holds the address, ends it.
    let passed = packets(&lab, "no-connection-passed")?;
    let ended = other.ask().err().context("its entry is gone")?;
    assert!(format!("{ended:#}").contains("reset"), "{ended:#}");
    assert!(packets(&lab, "no-connection-passed")? > passed);
    assert_eq!(first.ask()?, "rs2");

    assert_eq!(
        flush(&["--state", "FIN_WAIT", "--json"])?.trim(),
        "{\n  \"removed\": 1\n}"
    );
    assert_eq!((counts(1)?, counts(2)?), ((1, 0), (2, 0)));
    assert_eq!(
        flush(&["--service", UDP, "--server", "192.168.2.210"])?,
        "0 removed\n"
    );
    assert_eq!(
        flush(&["--service", UDP, "--server", "192.168.2.220"])?,
        "1 removed\n"
    );
    assert_eq!(
        flush(&["--service", TCP, "--server", "192.168.2.220"])?,
        "1 removed\n"
    );
    assert_eq!((counts(1)?, counts(2)?), ((0, 0), (2, 0)));
    assert_eq!(third.ask()?, "rs2");

    // All of them only where that is said.
    assert_eq!(lab.cli_output(["connections", "flush"])?.status.code(), Some(2));
    assert_eq!(counts(2)?, (2, 0));
    assert_eq!(flush(&["--all"])?, "2 removed\n");
    assert_eq!((counts(1)?, counts(2)?), ((0, 0), (0, 0)));
    assert_eq!(connections(&lab, &[])?, []);
    wait_for("an empty table", || Ok(status(&lab)?.connections == 0))?;
    assert!(first.ask().is_err());
    // And new ones are as welcome as ever.
    assert_eq!(lab.fetch("/")?, "rs1\n");
    Ok(())
}
