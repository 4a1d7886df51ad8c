//! IPVS's settings, of the director and of a service.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::Duration,
};

use anyhow::Result;
use etherparse::{PacketBuilder, TcpHeader};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{connections, packets, wait_for},
    lab::{CLIENT, Lab, VIP},
    packet::inject,
    stream::OpenConnection,
};

use crate::{cli, lab};

/// Where each client's connection goes.
fn destinations(lab: &Lab) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    Ok(connections(lab, &[])?
        .into_iter()
        .map(|connection| (connection.client, connection.destination))
        .collect())
}

#[test]
fn sloppy_tcp_takes_connections_up_in_their_middle() -> Result<()> {
    const PORTS: std::ops::Range<u16> = 21_000..21_016;
    let options = ["--scheduler", "mh", "--flag", "port"];
    let lab = lab(XdpMode::Native, 4, &options)?;
    let open = PORTS
        .map(|port| OpenConnection::from(&lab, SocketAddrV4::new(CLIENT, port)))
        .collect::<Result<Vec<_>>>()?;
    let before = destinations(&lab)?;
    assert_eq!(before.len(), PORTS.len());
    let macs = [
        lab.topology().mac("router", "eth1")?,
        lab.topology().mac("director", "eth0")?,
    ];
    let inject_all = |segment: fn(&mut TcpHeader)| -> Result<()> {
        for port in PORTS {
            // Far from every window: to the hosts at its ends it means nothing.
            let mut header = TcpHeader::new(port, 80, 0x1234_5678, 1024);
            segment(&mut header);
            let builder = PacketBuilder::ethernet2(macs[0], macs[1]).ipv4(CLIENT.octets(), VIP.octets(), 64);
            let mut frame = Vec::new();
            builder.tcp_header(header).write(&mut frame, b"")?;
            inject(lab.router(), "eth1", &frame)?;
        }
        Ok(())
    };
    let acknowledge = || inject_all(|header| header.ack = true);

    // As when this director has taken over from another one, whose entries it does not have.
    let forget = || lab.cli(["connections", "flush", "--all"]);
    forget()?;
    let unknown = || packets(&lab, "no-connection-passed");
    acknowledge()?;
    wait_for("packets that nobody knows", || {
        Ok(unknown()? == PORTS.len() as u64)
    })?;
    assert_eq!(destinations(&lab)?, BTreeMap::new());

    lab.cli(["settings", "sloppy_tcp", "1"])?;
    acknowledge()?;
    wait_for("connections that are taken up", || {
        Ok(destinations(&lab)? == before)
    })?;
    assert_eq!(connections(&lab, &["--state", "ESTABLISHED"])?.len(), PORTS.len());
    assert_eq!(unknown()?, PORTS.len() as u64);
    // Real connections go on, with the server that knows them.
    forget()?;
    for mut open in open {
        let server = open.server.clone();
        assert_eq!(open.ask()?, server);
    }
    // What ends a connection begins none; and the service's own word counts before the director's.
    forget()?;
    inject_all(|header| header.rst = true)?;
    wait_for("resets", || Ok(unknown()? == 2 * PORTS.len() as u64))?;
    cli(&lab, &["service", "edit"], &["--set", "sloppy_tcp=0"])?;
    acknowledge()?;
    wait_for("packets that nobody knows", || {
        Ok(unknown()? == 3 * PORTS.len() as u64)
    })?;
    assert_eq!(destinations(&lab)?, BTreeMap::new());
    Ok(())
}

#[test]
fn conn_reuse_mode_says_who_gets_a_port_that_is_used_again() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    // The client may use a port again a second after it has closed.
    lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    let source = SocketAddrV4::new(CLIENT, 22_000);
    let visit = |close: fn(OpenConnection) -> Result<()>, state: &str| -> Result<String> {
        let open = OpenConnection::from(&lab, source)?;
        let server = open.server.clone();
        close(open)?;
        wait_for("the connection's end", || {
            Ok(connections(&lab, &["--state", state])?.len() == 1)
        })?;
        Ok(server)
    };
    let reset = || visit(OpenConnection::reset, "CLOSE");
    // 1, the default: what is over is over, and a new one is new.
    assert_eq!([reset()?, reset()?, reset()?], ["rs2", "rs1", "rs2"]);
    // 0: what has an entry stays where it was.
    cli(&lab, &["service", "edit"], &["--set", "conn_reuse_mode=0"])?;
    assert_eq!([reset()?, reset()?], ["rs2", "rs2"]);
    cli(&lab, &["service", "edit"], &["--set", "conn_reuse_mode=default"])?;
    assert_eq!(reset()?, "rs1");

    let close = || -> Result<String> {
        let server = visit(
            |open| {
                drop(open);
                Ok(())
            },
            "FIN_WAIT",
        )?;
        thread::sleep(Duration::from_millis(1_200));
        Ok(server)
    };
    // A client's FIN is not the end, for all that a director sees of it ...
    assert_eq!([close()?, close()?], ["rs2", "rs2"]);
    // ... but with 3 it is enough.
    lab.cli(["settings", "conn_reuse_mode", "3"])?;
    assert_eq!([close()?, close()?], ["rs1", "rs2"]);
    Ok(())
}
