//! Services of firewall marks, as clients see them: several ports and addresses, one service.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{Connection, MarkRule, Protocol, ServerState};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode, find_binary},
    ask::{connections, json, servers, wait_for},
    family::Family,
    in_both_modes_and_families,
    lab::{Lab, LabConfig},
    process::run,
    stream::OpenConnection,
};

in_both_modes_and_families!(
    a_client_stays_over_ports_and_addresses,
    ports_take_turns_and_outlive_an_agent,
    connections_outlive_their_rule,
    rules_have_prefixes_and_ranges,
);

/// curl's exit status when nobody answers at the address.
const CURL_REFUSED: i32 = 7;

fn agent_config(mode: XdpMode) -> AgentConfig {
    AgentConfig {
        xdp_mode: mode,
        ..AgentConfig::default()
    }
}

/// The second virtual address.
fn other_vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 168, 2, 101]),
        Family::V6 => IpAddr::from([0xfd00, 2, 0, 0, 0, 0, 0, 0x101]),
    }
}

/// The second client.
fn other_client(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 168, 1, 201]),
        Family::V6 => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 0x201]),
    }
}

/// What names the service of mark 1.
fn service(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["mark", "1"],
        Family::V6 => ["mark6", "1"],
    }
}

/// A lab with two virtual addresses, and a service of mark 1 with two real servers that are resolved. No rule
/// gives the mark yet.
fn lab(mode: XdpMode, family: Family, options: &[&str]) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        agent: agent_config(mode),
        ..LabConfig::default()
    })?
    .over(family);
    let vip = other_vip(family).to_string();
    let address = match family {
        Family::V4 => format!("{vip}/32"),
        Family::V6 => format!("{vip}/128 preferred_lft 0 nodad"),
    };
    lab.director().ip(&format!("address add {address} dev eth0"))?;
    let binary = find_binary()?;
    for server in lab.real_servers() {
        server
            .netns()
            .run(&binary, ["realserver", "setup", "--vip", &vip])?;
    }
    lab.cli([&["service", "add"], &service(family)[..], options].concat())?;
    for number in 1..=2 {
        let address = family.real_server(number).to_string();
        lab.cli([&["server", "add"], &service(family)[..], &[&address]].concat())?;
    }
    wait_for("real servers that answer", || {
        let mut servers = servers(&lab)?.into_iter();
        Ok(servers.all(|server| server.state == ServerState::Ready))
    })?;
    Ok(lab)
}

fn mark(lab: &Lab, verb: &str, arguments: &str) -> Result<()> {
    let words = ["mark", verb, "1"]
        .into_iter()
        .chain(arguments.split_whitespace());
    lab.cli(words)?;
    Ok(())
}

/// curl for `/` at an address and port.
fn curl(lab: &Lab, to: SocketAddr, from: Option<IpAddr>) -> Command {
    let mut command = lab.curl();
    command.arg(format!("http://{to}/"));
    if let Some(from) = from {
        command.args(["--interface", &from.to_string()]);
    }
    command
}

/// Who answers there.
fn answer(lab: &Lab, address: IpAddr, port: u16) -> Result<String> {
    let body = run(curl(lab, SocketAddr::new(address, port), None))?;
    Ok(body.trim_end().to_owned())
}

/// Nobody has this port of the director: its own kernel says so.
fn assert_refused(lab: &Lab, address: IpAddr, port: u16) -> Result<()> {
    let output = curl(lab, SocketAddr::new(address, port), None).output()?;
    assert_eq!(
        output.status.code(),
        Some(CURL_REFUSED),
        "{address} {port}: {output:?}"
    );
    Ok(())
}

fn a_client_stays_over_ports_and_addresses(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, family, &["--scheduler", "rr", "--persistent=300"])?;
    let (vip, vip2, other) = (lab.vip(), other_vip(family), other_client(family));
    mark(
        &lab,
        "add",
        &format!("--protocol tcp --address {vip} --address {vip2} --ports 80,443"),
    )?;
    let length = if other.is_ipv4() { "/24" } else { "/64 nodad" };
    lab.client()
        .ip(&format!("address add {other}{length} dev eth0"))?;
    let everywhere = [(vip, 80), (vip, 443), (vip2, 80), (vip2, 443)];
    let ask_everywhere = |from| -> Result<Vec<String>> {
        let ask = |&(address, port)| run(curl(&lab, SocketAddr::new(address, port), Some(from)));
        everywhere.iter().map(ask).collect()
    };
    let client = family.client();
    for _ in 0..2 {
        assert_eq!(ask_everywhere(client)?, ["rs2\n"; 4]);
        assert_eq!(ask_everywhere(other)?, ["rs1\n"; 4]);
    }
    // A template each; in place of an address they have the mark, as with IPVS.
    let all = connections(&lab, &[])?;
    let (templates, entries): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|connection| connection.client.port() == 0);
    let place: SocketAddr = match family {
        Family::V4 => "0.0.0.1:0".parse()?,
        Family::V6 => "[0:1::]:0".parse()?,
    };
    for client in [client, other] {
        let of_client = |one: &&Connection| one.client.ip() == client;
        let own: Vec<_> = templates.iter().filter(of_client).collect();
        ensure!(own.len() == 1, "{templates:?}");
        assert_eq!((own[0].protocol, own[0].virtual_address), (None, place));
        for (address, port) in everywhere {
            let to = SocketAddr::new(address, port);
            let there = entries.iter().filter(of_client);
            let there = there.filter(|one| one.virtual_address == to && one.protocol == Some(Protocol::Tcp));
            assert_eq!(there.count(), 2, "{to}");
        }
    }
    let list = lab.ipvsadm(["-L", "-n", "-c"])?;
    assert_eq!(list.matches("\nIP ").count(), 2, "{list}");
    Ok(())
}

fn ports_take_turns_and_outlive_an_agent(mode: XdpMode, family: Family) -> Result<()> {
    let mut lab = lab(mode, family, &["--scheduler", "rr"])?;
    let (vip, vip2) = (lab.vip(), other_vip(family));
    mark(
        &lab,
        "add",
        &format!("--protocol tcp --address {vip} --ports 80,443"),
    )?;
    mark(&lab, "add", &format!("--address {vip2}"))?;
    let ask_around = |lab: &Lab| -> Result<Vec<String>> {
        let ports = [(vip, 80), (vip, 443), (vip2, 8080), (vip, 80)];
        ports
            .iter()
            .map(|&(address, port)| answer(lab, address, port))
            .collect()
    };
    assert_eq!(ask_around(&lab)?, ["rs2", "rs1", "rs2", "rs1"]);
    let rules: Vec<MarkRule> = json(&lab, &["mark", "list"])?;
    assert_eq!(rules.len(), 2);
    let saved = lab.ipvsadm(["-S", "-n"])?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");

    lab.agent_mut()?.kill()?;
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(answer(&lab, vip, 443)?, "rs1");
    lab.agent_mut()?.launch(&agent_config(mode))?;
    assert_eq!(json::<Vec<MarkRule>>(&lab, &["mark", "list"])?, rules);
    assert_eq!(lab.ipvsadm(["-S", "-n"])?, saved);
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(ask_around(&lab)?, ["rs2", "rs1", "rs2", "rs1"]);

    // To other tables: the rules move with the services.
    let larger = AgentConfig {
        connections: Some(1 << 17),
        arguments: ["--services", "512"].map(str::to_owned).to_vec(),
        ..agent_config(mode)
    };
    lab.agent_mut()?.terminate()?;
    lab.agent_mut()?.launch(&larger)?;
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(ask_around(&lab)?, ["rs2", "rs1", "rs2", "rs1"]);
    // And without the agent's having changed anything they are still its to change.
    mark(&lab, "delete", "")?;
    assert_refused(&lab, vip2, 8080)?;
    assert_eq!(json::<Vec<MarkRule>>(&lab, &["mark", "list"])?, []);
    Ok(())
}

fn connections_outlive_their_rule(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, family, &["--scheduler", "rr"])?;
    let vip = lab.vip();
    let (web, tls) = (
        format!("--protocol tcp --address {vip} --ports 80"),
        format!("--protocol tcp --address {vip} --ports 443"),
    );
    mark(&lab, "add", &web)?;
    mark(&lab, "add", &tls)?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    mark(&lab, "delete", &web)?;
    for _ in 0..5 {
        assert_eq!(open.ask()?, "rs2");
        assert_refused(&lab, vip, 80)?;
    }
    assert_eq!(answer(&lab, vip, 443)?, "rs1");
    // Nor does the last rule's end harm it, nor that of the service's mark.
    mark(&lab, "delete", "")?;
    assert_refused(&lab, vip, 443)?;
    assert_eq!(open.ask()?, "rs2");
    mark(&lab, "add", &tls)?;
    mark(&lab, "add", &web)?;
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(answer(&lab, vip, 80)?, "rs2");
    assert_eq!(answer(&lab, vip, 443)?, "rs1");
    // A service of the address's own has what the mark's has left.
    lab.cli([&["service", "delete"], &service(family)[..]].concat())?;
    assert_refused(&lab, vip, 80)?;
    lab.add_service("rr")?;
    assert_eq!(answer(&lab, vip, 80)?, "rs2");
    assert_refused(&lab, vip, 443)?;
    Ok(())
}

fn rules_have_prefixes_and_ranges(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, family, &["--scheduler", "rr"])?;
    let (vip, vip2) = (lab.vip(), other_vip(family));
    let (prefix, host) = match family {
        Family::V4 => ("192.168.2.96/29", "/32"),
        Family::V6 => ("fd00:2::100/120", "/128"),
    };
    mark(
        &lab,
        "add",
        &format!("--protocol tcp --address {prefix} --ports 79-81,8000-8100"),
    )?;
    // Behind the other one it comes too late, though its prefix is longer.
    lab.cli(["mark", "add", "2", "--address", &vip2.to_string()])?;
    let answers: Result<Vec<_>> = [(vip, 80), (vip2, 8080), (vip2, 80), (vip, 8080)]
        .iter()
        .map(|&(address, port)| answer(&lab, address, port))
        .collect();
    assert_eq!(answers?, ["rs2", "rs1", "rs2", "rs1"]);
    assert_refused(&lab, vip, 443)?;
    // Of mark 2, which has no service.
    assert_refused(&lab, vip2, 443)?;
    let list = lab.cli(["mark", "list"])?;
    let lines: Vec<_> = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let second = format!("2 any {vip2}{host} any");
    assert_eq!(
        lines,
        [
            "MARK PROTOCOL ADDRESSES PORTS",
            &format!("1 TCP {prefix} 79-81,8000-8100"),
            &second
        ]
    );

    // What cannot be is told in one line, and changes nothing.
    let many: Vec<_> = (1..=63).map(|number| (1000 + 2 * number).to_string()).collect();
    let many = many.join(",");
    for (line, part) in [
        (
            format!("add 3 --address {vip2} --ports {many}"),
            format!("{vip2}{host} would have 66 rules of marks"),
        ),
        (format!("add 2 --address {vip2}"), "exists already".to_owned()),
        (
            format!("delete 2 --address {vip}"),
            "no such rule of mark 2".to_owned(),
        ),
        ("delete 3".to_owned(), "mark 3 has no rules".to_owned()),
    ] {
        let output = lab.cli_output(["mark"].into_iter().chain(line.split_whitespace()))?;
        let error = String::from_utf8(output.stderr).context("UTF-8")?;
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        assert_eq!(error.matches('\n').count(), 1, "{error}");
        assert!(error.contains(&part), "{line}: {error}");
    }
    assert_eq!(lab.cli(["mark", "list"])?, list);
    assert_eq!(answer(&lab, vip2, 80)?, "rs2");
    Ok(())
}
