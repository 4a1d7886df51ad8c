//! Real servers that are the director itself, and two directors that are each other's real servers.

use std::net::IpAddr;

use anyhow::Result;
use lvs_xdp::{
    api::types::{ServerState, Status},
    dataplane::mac_text,
};
use lvs_xdp_tests::{
    agent::{Agent, XdpMode, find_binary},
    ask::{packets, server, servers, wait_for},
    family::Family,
    lab::Lab,
    load::Load,
    topology::Topology,
    web::WebServer,
};

use crate::{hosts, in_both_modes, in_both_modes_and_families};

in_both_modes_and_families!(
    a_director_serves_its_share_itself,
    two_directors_serve_each_others_clients,
);
in_both_modes!(a_server_is_the_director_for_as_long_as_its_address_is);

/// A service's or server's address and port as it is typed.
fn typed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:80"),
        IpAddr::V6(address) => format!("[{address}]:80"),
    }
}

/// Requests from the client, and who answered how often.
fn answers(lab: &Lab, requests: usize) -> Result<Vec<(String, usize)>> {
    let report = Load::sequential(lab.vip(), requests).run(lab.client())?;
    assert_eq!(report.failures(), []);
    let counts = report.counts().into_iter();
    Ok(counts.map(|(name, count)| (name.to_owned(), count)).collect())
}

fn a_director_serves_its_share_itself(mode: XdpMode, family: Family) -> Result<()> {
    let mut lab = hosts(mode, 1)?.over(family);
    let _web = WebServer::start(lab.director(), "director", &lab.big_file())?;
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    lab.add_service("rr")?;
    let (service, own) = (typed(lab.vip()), typed(family.director()));
    lab.cli(["server", "add", "tcp", &service, &own])?;
    let loopback = match family {
        Family::V4 => "127.0.0.1:80",
        Family::V6 => "[::1]:80",
    };
    lab.cli(["server", "add", "tcp", &service, loopback])?;
    assert_eq!(
        answers(&lab, 30)?,
        [("director".to_owned(), 20), ("rs1".to_owned(), 10)]
    );
    let listed = lab.ipvsadm(["-L", "-n"])?;
    // As the real one does, a local server is listed, and saved, as one of direct routing.
    for address in [own.as_str(), loopback, &typed(family.real_server(1))] {
        let mut lines = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.get(1) == Some(&address));
        assert_eq!(line.map(|words| words[2]), Some("Route"), "{listed}");
    }
    assert!(lab.ipvsadm(["-S", "-n"])?.contains(&format!("-r {own} -g")));
    for server in servers(&lab)? {
        let is_rs1 = server.spec.key.address == family.real_server(1);
        let state = if is_rs1 {
            ServerState::Ready
        } else {
            ServerState::Local
        };
        assert_eq!((server.state, server.stats.connections), (state, 10));
        assert!(server.stats.packets >= 40, "{server:?}");
    }
    assert!(packets(&lab, "local")? >= 80);
    Ok(())
}

fn a_server_is_the_director_for_as_long_as_its_address_is(mode: XdpMode) -> Result<()> {
    let mut lab = hosts(mode, 1)?;
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    lab.add_service("rr")?;
    let address = Family::V4.real_server(1);
    let state = || server(&lab, 1).map(|server| server.state);
    assert_eq!(state()?, ServerState::Ready);
    let director = lab.director();
    director.ip(&format!("address add {address}/32 dev lo"))?;
    wait_for("a local server", || Ok(state()? == ServerState::Local))?;
    let mut refused = lab.curl();
    refused.arg(lab.url("/"));
    assert!(!refused.status()?.success(), "nobody listens on the director");
    director.ip(&format!("address delete {address}/32 dev lo"))?;
    wait_for("its neighbour", || Ok(state()? == ServerState::Ready))?;
    assert_eq!(lab.fetch("/")?, "rs1\n");
    Ok(())
}

/// The second director, which is rs1: its agent.
fn second_director(mode: XdpMode, lab: &mut Lab) -> Result<Agent> {
    let config = lab.config().agent.clone();
    let topology: &mut Topology = lab.topology_mut();
    if mode == XdpMode::Native {
        topology.attach_xdp_pass("rs1", "eth0")?;
    }
    Agent::start(&find_binary()?, topology.host("rs1"), &["eth0"], &config)
}

/// Packets that an agent's program has counted under a reason.
fn counted(agent: &Agent, reason: &str) -> Result<u64> {
    let status: Status = serde_json::from_str(&agent.cli(["status", "--json"])?)?;
    let found = status.reasons.into_iter().find(|counted| counted.name == reason);
    Ok(found.map_or(0, |counted| counted.packets))
}

fn two_directors_serve_each_others_clients(mode: XdpMode, family: Family) -> Result<()> {
    const REQUESTS: usize = 40;
    let mut lab = hosts(mode, 1)?.over(family);
    let _web = WebServer::start(lab.director(), "director", &lab.big_file())?;
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    let second = second_director(mode, &mut lab)?;
    let first = lab.agent()?;
    let service = typed(lab.vip());
    for agent in [first, &second] {
        agent.cli(["service", "add", "tcp", &service, "--scheduler", "rr"])?;
        for server in [family.director(), family.real_server(1)] {
            agent.cli(["server", "add", "tcp", &service, &typed(server)])?;
        }
    }
    let half = [
        ("director".to_owned(), REQUESTS / 2),
        ("rs1".to_owned(), REQUESTS / 2),
    ];

    assert_eq!(answers(&lab, REQUESTS)?, half);
    // What the first one has sent the second has left there, and nothing has come back.
    let sent = counted(first, "new-connection")? + counted(first, "connection")?;
    assert_eq!(counted(&second, "from-peer")?, sent);
    assert!(sent >= 2 * REQUESTS as u64, "{sent}");
    assert_eq!(counted(first, "from-peer")?, 0);
    for reason in ["new-connection", "connection", "local"] {
        assert_eq!(counted(&second, reason)?, 0, "{reason}");
    }

    // The second one takes over: the router sends it what is for the VIP.
    let mac = mac_text(lab.topology().mac("rs1", "eth0")?);
    let vip = lab.vip();
    lab.router().ip(&format!(
        "neighbour replace {vip} lladdr {mac} nud permanent dev eth1"
    ))?;
    assert_eq!(answers(&lab, REQUESTS)?, half);
    let back = counted(&second, "new-connection")? + counted(&second, "connection")?;
    assert_eq!(counted(first, "from-peer")?, back);
    assert!(back >= 2 * REQUESTS as u64, "{back}");
    assert_eq!(counted(&second, "from-peer")?, sent, "nothing went round");
    Ok(())
}
