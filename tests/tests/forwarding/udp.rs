//! Virtual services over UDP.

use std::net::SocketAddr;

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    datagram::{Echo, ask, connected},
    family::Family,
    lab::real_server_name,
};

use crate::{in_both_modes_and_families, lab};

in_both_modes_and_families!(a_flow_stays_and_new_flows_go_round);

fn a_flow_stays_and_new_flows_go_round(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, 3)?.over(family);
    let service = SocketAddr::new(lab.vip(), 7).to_string();
    lab.ipvsadm(["-A", "-u", &service, "-s", "rr"])?;
    let mut servers = Vec::new();
    for number in 1..=3 {
        let (name, address) = (real_server_name(number), family.real_server(number));
        servers.push(Echo::at(lab.topology().host(&name), &name, lab.vip(), 7)?);
        let server = SocketAddr::new(address, 7).to_string();
        lab.ipvsadm(["-a", "-u", &service, "-r", &server, "-g"])?;
    }
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
