//! Virtual services over UDP.

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    datagram::{Echo, ask, connected},
    lab::{VIP, real_server_address, real_server_name},
};

use crate::{in_both_modes, lab};

in_both_modes!(a_flow_stays_and_new_flows_go_round);

fn a_flow_stays_and_new_flows_go_round(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 3)?;
    lab.ipvsadm(["-A", "-u", &format!("{VIP}:7"), "-s", "rr"])?;
    let mut servers = Vec::new();
    for number in 1..=3 {
        let (name, address) = (real_server_name(number), real_server_address(number));
        servers.push(Echo::start(lab.topology().host(&name), &name, 7)?);
        let server = format!("{address}:7");
        lab.ipvsadm(["-a", "-u", &format!("{VIP}:7"), "-r", &server, "-g"])?;
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
    let listed = lab.ipvsadm(["-L", "-n", "-u", &format!("{VIP}:7")])?;
    for number in 1..=3 {
        // As IPVS has it: a UDP flow is inactive.
        let address = real_server_address(number);
        let columns = listed.lines().find(|line| line.contains(&format!("{address}:7")));
        let columns: Vec<_> = columns.unwrap_or_default().split_whitespace().collect();
        assert_eq!(columns[2..], ["Route", "1", "0", "2"], "{listed}");
    }
    Ok(())
}
