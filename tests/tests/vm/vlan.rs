//! VLANs on one card of the director: clients in one, real servers in others, in two at once, and in none.

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode, find_binary},
    lab::VIP,
    netns::Netns,
    packet::{Capture, Frame},
    process::run,
    topology::{Topology, port_name},
    web::WebServer,
};

use crate::in_the_guest;

in_the_guest!(
    servers_in_other_vlans_than_the_clients_answer_in_native_mode,
    a_part_of_a_bond_is_refused,
);

/// Hosts on one switch that knows VLANs, each with their addresses: those without a VLAN, in VLAN 10, in VLAN 20,
/// and in VLAN 40 inside VLAN 30.
const HOSTS: [(&str, [Option<&str>; 4]); 6] = [
    ("client", [None, Some("192.168.10.50"), None, None]),
    (
        "router",
        [
            Some("192.168.2.1"),
            Some("192.168.10.1"),
            Some("192.168.20.1"),
            Some("192.168.40.1"),
        ],
    ),
    (
        "director",
        [
            Some("192.168.2.200"),
            Some("192.168.10.200"),
            Some("192.168.20.200"),
            Some("192.168.40.200"),
        ],
    ),
    ("bare", [Some("192.168.2.210"), None, None, None]),
    ("tagged", [None, None, Some("192.168.20.220"), None]),
    ("stacked", [None, None, None, Some("192.168.40.230")]),
];

/// The real servers, and where frames for them are in the tag of VLAN 20, say, with the client's priority.
const SERVERS: [(&str, &str, &[[u8; 4]]); 3] = [
    ("bare", "192.168.2.210", &[]),
    ("tagged", "192.168.20.220", &[[0x81, 0, 0xa0, 20]]),
    (
        "stacked",
        "192.168.40.230",
        &[[0x81, 0, 0xa0, 30], [0x81, 0, 0xa0, 40]],
    ),
];

/// What is between the hosts.
fn topology() -> Result<Topology> {
    let mut topology = Topology::new()?;
    topology.add_switch("trunk")?;
    let switches = topology.switches().clone();
    switches.ip("link set trunk type bridge vlan_filtering 1")?;
    for (name, [bare, tagged, other, stacked]) in HOSTS {
        topology.add_host(name)?;
        let bare = bare.map(|address| format!("{address}/24"));
        topology.connect(name, "eth0", "trunk", bare.as_deref().as_slice())?;
        let port = port_name(name, "eth0");
        // Two tags more than the MTU is for.
        switches.ip(&format!("link set {port} mtu 1600"))?;
        // A switch of bridges hands tags over beside the frame, unless it is told not to.
        switches.run("ethtool", ["-K", &port, "txvlan", "off"])?;
        for vlan in [10, 20, 30] {
            switches.run("bridge", ["vlan", "add", "dev", &port, "vid", &vlan.to_string()])?;
        }
        let host = topology.host(name);
        host.ip("link set eth0 mtu 1600")?;
        if stacked.is_some() {
            add_vlan(host, "eth0", 30, None)?;
        }
        for (below, vlan, address) in [
            ("eth0", 10, tagged),
            ("eth0", 20, other),
            ("eth0.30", 40, stacked),
        ] {
            if address.is_some() {
                add_vlan(host, below, vlan, address)?;
            }
        }
    }
    topology.host("router").sysctl("net.ipv4.ip_forward", "1")?;
    for (name, gateway) in [
        ("client", "192.168.10.1"),
        ("bare", "192.168.2.1"),
        ("tagged", "192.168.20.1"),
        ("stacked", "192.168.40.1"),
    ] {
        topology
            .host(name)
            .ip(&format!("route add default via {gateway}"))?;
    }
    topology
        .host("director")
        .ip(&format!("address add {VIP}/32 dev lo"))?;
    let client = topology.host("client");
    client.ip(&format!("route add {VIP}/32 via 192.168.10.200"))?;
    client.ip("link set eth0.10 type vlan egress-qos-map 0:5")?;
    Ok(topology)
}

/// The VLAN's interface, as large as frames of one segment are.
fn add_vlan(host: &Netns, below: &str, vlan: u16, address: Option<&str>) -> Result<()> {
    let name = format!("{below}.{vlan}");
    host.ip(&format!("link add link {below} name {name} type vlan id {vlan}"))?;
    host.ip(&format!("link set {name} mtu 1500 up"))?;
    if let Some(address) = address {
        host.ip(&format!("address add {address}/24 dev {name}"))?;
    }
    Ok(())
}

fn fetch(client: &Netns) -> Result<String> {
    let mut curl = client.command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]);
    curl.arg(format!("http://{VIP}/"));
    Ok(run(curl)?.trim_end().to_owned())
}

/// The tags of the frames that came in for the VIP, each once.
fn tags_of(frames: &[Frame]) -> Result<Vec<&[u8]>> {
    let mut tags = Vec::new();
    for frame in frames.iter().filter(|frame| !frame.outgoing) {
        let bytes = &frame.bytes;
        let count = bytes[12..]
            .chunks(4)
            .take_while(|tag| tag.starts_with(&[0x81, 0]))
            .count();
        let (tag, packet) = bytes[12..].split_at(4 * count);
        if packet.starts_with(&[8, 0])
            && packet.get(18..22) == Some(&VIP.octets()[..])
            && !tags.contains(&tag)
        {
            tags.push(tag);
        }
    }
    ensure!(!tags.is_empty(), "nothing came in for the VIP");
    Ok(tags)
}

fn servers_in_other_vlans_than_the_clients_answer_in_native_mode() -> Result<()> {
    let mode = XdpMode::Native;
    let mut topology = topology()?;
    let binary = find_binary()?;
    let page = tempfile::NamedTempFile::new()?;
    let mut webs = Vec::new();
    for (name, ..) in SERVERS {
        let host = topology.host(name);
        webs.push(WebServer::start(host, name, page.path())?);
        host.run(&binary, ["realserver", "setup", "--vip", &VIP.to_string()])?;
    }
    let config = AgentConfig {
        xdp_mode: mode,
        ..AgentConfig::default()
    };
    if mode == XdpMode::Native {
        topology.attach_xdp_pass("director", "eth0")?;
    }
    let director = topology.host("director");

    // The card would take the tags off.
    let refused = Agent::start(&binary, director, &["eth0"], &config);
    let said = format!("{:#}", refused.err().context("the agent has started")?);
    assert!(said.contains("run `ethtool -K eth0 rxvlan off`"), "{said}");
    director.run("ethtool", ["-K", "eth0", "rxvlan", "off"])?;

    let agent = Agent::start(&binary, director, &["eth0"], &config)?;
    let service = format!("{VIP}:80");
    agent.ipvsadm(["-A", "-t", &service, "-s", "rr"])?;
    for (_, address, _) in SERVERS {
        agent.ipvsadm(["-a", "-t", &service, "-r", &format!("{address}:80")])?;
    }
    let client = topology.host("client");
    let captures = SERVERS.map(|(name, ..)| Capture::start(topology.host(name), "eth0"));
    let answers: Vec<_> = (0..6).map(|_| fetch(client)).collect::<Result<_>>()?;
    assert_eq!(answers, ["stacked", "tagged", "bare"].repeat(2));
    for (capture, (name, _, tags)) in captures.into_iter().zip(SERVERS) {
        let frames = capture?.finish()?;
        assert_eq!(tags_of(&frames)?, [tags.as_flattened()], "{name}");
    }

    // Somebody has the card take the tags off after all.
    director.run("ethtool", ["-K", "eth0", "rxvlan", "on"])?;
    let said = agent.cli_output(["doctor"])?;
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("mend: ethtool -K eth0 rxvlan off"), "{said}");
    director.run("ethtool", ["-K", "eth0", "rxvlan", "off"])?;

    // One of the VLANs goes and comes back.
    director.ip("link delete eth0.20")?;
    let without: Vec<_> = (0..3).map(|_| fetch(client)).collect::<Result<_>>()?;
    assert!(!without.contains(&"tagged".to_owned()), "{without:?}");
    add_vlan(director, "eth0", 20, Some("192.168.20.200"))?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while fetch(client)? != "tagged" {
        ensure!(std::time::Instant::now() < deadline, "{}", agent.log_tail());
    }
    Ok(())
}

fn a_part_of_a_bond_is_refused() -> Result<()> {
    let host = Netns::new("bonded")?;
    host.ip("link add eth0 type veth peer name other")?;
    host.ip("link add bond0 type bond")?;
    host.ip("link set eth0 master bond0")?;
    let refused = Agent::start(&find_binary()?, &host, &["eth0"], &AgentConfig::default());
    let said = format!("{:#}", refused.err().context("the agent has started")?);
    assert!(
        said.contains("eth0 is part of bond0: attach to all of it, by `--interface bond0`"),
        "{said}"
    );
    Ok(())
}
