//! Virtual services over UDP.

use std::net::SocketAddr;

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::packets,
    datagram::{Echo, ask, connected},
    family::Family,
    lab::{Lab, real_server_name},
};

use crate::{in_both_modes_and_families, lab};

in_both_modes_and_families!(
    a_flow_stays_and_new_flows_go_round,
    datagrams_larger_than_a_frame_arrive,
);

/// A lab with a UDP service on port 7, and the echoes of so many real servers.
fn echoing(mode: XdpMode, family: Family, real_servers: usize) -> Result<(Vec<Echo>, Lab)> {
    let lab = lab(mode, real_servers)?.over(family);
    let service = SocketAddr::new(lab.vip(), 7).to_string();
    lab.ipvsadm(["-A", "-u", &service, "-s", "rr"])?;
    let mut servers = Vec::new();
    for number in 1..=real_servers {
        let (name, address) = (real_server_name(number), family.real_server(number));
        servers.push(Echo::at(lab.topology().host(&name), &name, lab.vip(), 7)?);
        let server = SocketAddr::new(address, 7).to_string();
        lab.ipvsadm(["-a", "-u", &service, "-r", &server, "-g"])?;
    }
    Ok((servers, lab))
}

fn a_flow_stays_and_new_flows_go_round(mode: XdpMode, family: Family) -> Result<()> {
    let (_echoes, lab) = echoing(mode, family, 3)?;
    let service = SocketAddr::new(lab.vip(), 7).to_string();
    let sockets = (0..6).map(|_| connected(&lab, 7)).collect::<Result<Vec<_>>>()?;
    // Round by round, so that each flow's next datagram comes after other flows' first ones.
    for round in 0..4 {
        for (socket, server) in sockets.iter().zip(["rs3", "rs2", "rs1"].into_iter().cycle()) {
            let answer = ask(socket, format!(" hears {round}").as_bytes())?;
            assert_eq!(
                String::from_utf8_lossy(&answer),
                format!("{server} hears {round}")
            );
        }
    }
    let listed = lab.ipvsadm(["-L", "-n", "-u", &service])?;
    for number in 1..=3 {
        // As IPVS has it: a UDP flow is inactive.
        let server = SocketAddr::new(family.real_server(number), 7).to_string();
        let columns = listed.lines().find(|line| line.contains(&server));
        let columns: Vec<_> = columns.unwrap_or_default().split_whitespace().collect();
        assert_eq!(columns[2..], ["Route", "1", "0", "2"], "{listed}");
    }
    Ok(())
}

/// Each goes in fragments, of which only the first has ports.
fn datagrams_larger_than_a_frame_arrive(mode: XdpMode, family: Family) -> Result<()> {
    const UDP_HEADER: usize = 8;
    // Of a frame's 1500, without the headers, rounded down to eights.
    let room = match family {
        Family::V4 => 1480,
        Family::V6 => 1448,
    };
    let (_echoes, lab) = echoing(mode, family, 2)?;
    let sockets = (0..2).map(|_| connected(&lab, 7)).collect::<Result<Vec<_>>>()?;
    let mut fragments = 0;
    for length in [1473, 8_000, 60_000, 8_000] {
        let datagram: Vec<u8> = (0..=250).cycle().take(length).collect();
        for (socket, server) in sockets.iter().zip(["rs2", "rs1"]) {
            let answer = ask(socket, &datagram)?;
            assert!(
                answer == [server.as_bytes(), &datagram].concat(),
                "{server}, {length}"
            );
            fragments += (UDP_HEADER + length).div_ceil(room) as u64 - 1;
        }
    }
    // All but the first ones.
    assert_eq!(packets(&lab, "fragment")?, fragments);
    assert_eq!(packets(&lab, "fragment-unknown")?, 0);
    Ok(())
}
