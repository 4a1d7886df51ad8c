//! What is IPv6's own: its addresses in hashes and prefixes, its extension headers, its neighbour discovery, its
//! resets and ICMPv6 errors. What is the same in both families is tested over both elsewhere.

mod answers;
mod host;
mod neighbours;
mod persistence;
mod scheduling;
mod wire;

use std::{net::Ipv6Addr, process::Command};

use anyhow::{Result, ensure};
use lvs_xdp::api::types::ServerState;
pub(crate) use lvs_xdp_tests::in_both_modes;
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{servers, wait_for},
    family::Family,
    lab::{Lab, LabConfig},
    load::{Load, Report},
    process::run,
};

/// The virtual address.
pub(crate) const VIP: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x100);
/// The client.
pub(crate) const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x200);
/// The service of the reference case, as it is typed.
pub(crate) const SERVICE: &str = "[fd00:2::100]:80";

/// A lab that speaks IPv6 and has no service.
pub(crate) fn empty_lab(mode: XdpMode, real_servers: usize) -> Result<Lab> {
    let config = LabConfig {
        real_servers,
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    };
    Ok(Lab::start(config)?.over(Family::V6))
}

/// A lab with the service of the reference case, its options as `lvs-xdp service add` takes them, and real servers
/// that answer.
pub(crate) fn lab(mode: XdpMode, real_servers: usize, options: &[&str]) -> Result<Lab> {
    let lab = empty_lab(mode, real_servers)?;
    lab.cli([&["service", "add", "tcp", SERVICE], options].concat())?;
    for number in 1..=real_servers {
        let server = Family::V6.real_server(number).to_string();
        lab.cli(["server", "add", "tcp", SERVICE, &server])?;
    }
    wait_for("real servers that answer", || {
        let mut servers = servers(&lab)?.into_iter();
        Ok(servers.all(|server| server.state == ServerState::Ready))
    })?;
    Ok(lab)
}

#[test]
fn the_lab_shows_the_reference_case() -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lvs-xdp-lab"));
    command.arg("--ipv6");
    let shown = run(command)?;
    for (asked, answer) in [("", "rs2"), ("rs2\n", "rs1"), ("rs1\n", "rs2")] {
        let lines = format!("{asked}  client# curl http://[fd00:2::100]\n  {answer}\n");
        assert!(shown.contains(&lines), "{shown}");
    }
    assert!(
        shown.contains("TCP  [fd00:2::100]:80 rr\n  -> [fd00:2::210]:80 "),
        "{shown}"
    );
    Ok(())
}

/// Gives the client more addresses, on its segment.
pub(crate) fn add_clients(lab: &Lab, clients: &[Ipv6Addr]) -> Result<()> {
    for client in clients {
        lab.client()
            .ip(&format!("address add {client}/64 dev eth0 nodad"))?;
    }
    Ok(())
}

/// Makes requests; all must be answered.
pub(crate) fn answered(lab: &Lab, load: Load) -> Result<Report> {
    let report = load.run(lab.client())?;
    ensure!(report.failures().is_empty(), "{:?}", report.failures());
    Ok(report)
}
