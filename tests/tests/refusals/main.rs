//! Bad input: one line that says what to do, a status, and nothing changed.

mod kernel;

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use lvs_xdp::api::types::{ServerState, Service, Status};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    family::Family,
    lab::{Lab, LabConfig},
    netns::Netns,
    over_both_families,
    process::{output, run},
    xdp_pass::XdpPass,
};

/// An agent that is refused has ended by then.
const LIMIT: Duration = Duration::from_secs(10);

/// A lab with one real server, without services.
fn lab(arguments: &[&str]) -> Result<Lab> {
    Lab::start(LabConfig {
        real_servers: 1,
        agent: agent_config(arguments),
        binary: None,
    })
}

fn agent_config(arguments: &[&str]) -> AgentConfig {
    AgentConfig {
        xdp_mode: XdpMode::Native,
        connections: Some(4096),
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
    }
}

/// The one line on standard error with which a command has ended; nothing is on standard output.
fn refusal(ended: Output, code: i32) -> Result<String> {
    let said = String::from_utf8(ended.stderr)?;
    assert_eq!(ended.status.code(), Some(code), "{said}");
    assert_eq!(String::from_utf8(ended.stdout)?, "");
    // What the agent logs on its way is not the refusal; no refusal is hidden between such lines.
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.contains(" INFO ") && !line.contains(" WARN "))
        .collect();
    let [line] = lines.as_slice() else {
        anyhow::bail!("one line was expected:\n{said}");
    };
    Ok((*line).to_owned())
}

/// Runs `lvs-xdp ARGUMENTS` on the director, which must be refused with this status and these parts of
/// one line, and checks that services and real servers are what they were.
#[track_caller]
fn assert_refused(lab: &Lab, arguments: &str, code: i32, parts: &[&str]) {
    let attempt = || -> Result<String> {
        let before = lab.cli(["service", "list", "--json"])?;
        let line = refusal(lab.cli_output(arguments.split_whitespace())?, code)?;
        let settings = |text: &str| -> Result<Vec<_>> {
            let services: Vec<Service> = serde_json::from_str(text)?;
            Ok(services
                .into_iter()
                .map(|service| {
                    let servers: Vec<_> = service.servers.into_iter().map(|server| server.spec).collect();
                    (service.spec, servers)
                })
                .collect())
        };
        let after = lab.cli(["service", "list", "--json"])?;
        assert_eq!(settings(&before)?, settings(&after)?, "{arguments}");
        Ok(line)
    };
    match attempt() {
        Ok(line) => assert_parts(&line, parts),
        Err(error) => panic!("{arguments}: {error:#}"),
    }
}

#[track_caller]
fn assert_parts(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
}

fn status(lab: &Lab) -> Result<Status> {
    Ok(serde_json::from_str(&lab.cli(["status", "--json"])?)?)
}

/// An agent's command with every path below `directory`, on the BPF file system where that matters.
fn agent_command(netns: &Netns, directory: &Path, pins: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = netns.command(lvs_xdp_tests::agent::find_binary()?);
    command.arg("agent");
    command.arg("--socket").arg(directory.join("agent.sock"));
    command.arg("--state-dir").arg(directory.join("state"));
    command.arg("--pin-dir").arg(pins);
    command.args(["--connections", "4096"]).args(arguments);
    Ok(command)
}

/// Names of everything in a directory, however deep.
fn listing(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn changes_that_make_no_sense() -> Result<()> {
    let lab = lab(&[])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    lab.cli(["server", "add", "tcp", "192.168.2.100:80", "192.168.2.220"])?;
    let http = "tcp 192.168.2.100:80";
    for (arguments, code, parts) in [
        (
            format!("service add {http}"),
            1,
            ["TCP 192.168.2.100:80", "exists already"],
        ),
        (
            format!("server add {http} 192.168.2.220"),
            1,
            ["192.168.2.220:80", "exists already"],
        ),
        (
            String::from("service add tcp 192.168.2.100:65536"),
            2,
            ["port 65536 is out of range", "1 to 65535"],
        ),
        (
            String::from("service add tcp 192.168.2.100:0"),
            2,
            ["port 0", "port"],
        ),
        (
            String::from("service add tcp 192.168.2.101:80 --scheduler best"),
            2,
            [
                "best",
                "rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh",
            ],
        ),
        (
            String::from("service delete tcp 192.168.2.100:81"),
            1,
            ["no service", "192.168.2.100:81"],
        ),
        (
            format!("server delete {http} 192.168.2.9"),
            1,
            ["no real server", "192.168.2.9"],
        ),
        (
            format!("server add {http} 192.168.2.210:81"),
            2,
            ["neither direct routing nor a tunnel changes the port", "80"],
        ),
        (
            String::from("server add tcp 192.168.2.100:81 192.168.2.210"),
            1,
            ["192.168.2.100:81 is not defined", "add the service"],
        ),
        (
            format!("server add {http} 192.168.2.210 --weight 2147483648"),
            2,
            ["--weight", "2147483647"],
        ),
        (
            String::from("ipvsadm -A -t 192.168.2.100:80 -s rr"),
            255,
            ["Service already exists", ""],
        ),
        (
            String::from("ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.220:80 -g"),
            255,
            ["Destination already exists", ""],
        ),
        (
            String::from("ipvsadm -A -t 192.168.2.100:70000 -s rr"),
            2,
            ["illegal virtual server address[:port] specified", ""],
        ),
        (
            String::from("service add tcp [fe80::100]:80"),
            1,
            ["fe80::100 is link-local", "use a global or unique local address"],
        ),
        (
            String::from("service add tcp [::ffff:192.168.2.100]:81"),
            1,
            ["::ffff:192.168.2.100", "use the IPv4 address"],
        ),
        (
            String::from("service add tcp fd00:2::100:80"),
            2,
            ["it has no port", "[2001:db8::100]:80"],
        ),
        (
            format!("server add {http} fd00:2::220 --force"),
            1,
            ["fd00:2::220", "another address family"],
        ),
        (
            String::from("service add tcp [fd00:2::100]:80 --persistent --netmask 255.255.255.0"),
            1,
            ["no mask for IPv6 clients", "a prefix length from 1 to 128"],
        ),
        (
            String::from("ipvsadm -A -t [fd00:2::100]:80 -p -M 129"),
            2,
            ["illegal ipv6 netmask specified", ""],
        ),
    ] {
        assert_refused(&lab, &arguments, code, &parts);
    }
    Ok(())
}

over_both_families!(a_real_server_behind_a_router);

fn a_real_server_behind_a_router(family: Family) -> Result<()> {
    let lab = lab(&[])?.over(family);
    let service = lab.service().to_string();
    lab.cli(["service", "add", "tcp", &service])?;
    let [far, other] = match family {
        Family::V4 => ["10.1.2.3", "10.1.2.4"],
        Family::V6 => ["2001:db8::3", "2001:db8::4"],
    };
    let router = family.router_inside().to_string();
    assert_refused(
        &lab,
        &format!("server add tcp {service} {far}"),
        1,
        &[far, "direct routing", &router, "--force"],
    );
    lab.cli(["server", "add", "tcp", &service, far, "--force"])?;
    let server = SocketAddr::new(other.parse()?, 80).to_string();
    lab.ipvsadm(["-a", "-t", &service, "-r", &server, "-g"])?;
    let services: Vec<Service> = serde_json::from_str(&lab.cli(["service", "list", "--json"])?)?;
    let states: Vec<_> = services
        .iter()
        .flat_map(|service| &service.servers)
        .map(|server| server.state)
        .collect();
    assert_eq!(states, [ServerState::NotOnLink; 2]);
    let warnings = status(&lab)?.warnings;
    for address in [far, other] {
        assert!(
            warnings
                .iter()
                .any(|line| line.contains(address) && line.contains("direct routing")),
            "{warnings:?}"
        );
    }
    Ok(())
}

#[test]
fn more_than_the_tables_have_room_for() -> Result<()> {
    let mut lab = lab(&["--services", "2", "--destinations", "3"])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:81"])?;
    assert_refused(&lab, "service add tcp 192.168.2.100:82", 1, &["--services", "2"]);
    for last in [11, 12, 13] {
        let server = format!("192.168.2.{last}");
        lab.cli(["server", "add", "tcp", "192.168.2.100:80", &server])?;
    }
    assert_refused(
        &lab,
        "server add tcp 192.168.2.100:80 192.168.2.14",
        1,
        &["--destinations", "3"],
    );

    // Tables that have become too small for what they hold: the agent does not start, and what runs stays.
    lab.agent_mut()?.terminate()?;
    for (option, small) in [("--services", ["1", "3"]), ("--destinations", ["2", "2"])] {
        let [services, destinations] = small;
        let small = agent_config(&["--services", services, "--destinations", destinations]);
        let ended = output(lab.agent()?.command(&small), LIMIT)?;
        assert_parts(&refusal(ended, 1)?, &[option]);
    }
    lab.agent_mut()?
        .launch(&agent_config(&["--services", "2", "--destinations", "3"]))?;
    assert_eq!(status(&lab)?.servers, 3);
    Ok(())
}

#[test]
fn a_second_agent() -> Result<()> {
    let lab = lab(&[])?;
    let before = status(&lab)?.program_id;
    let agent = lab.agent()?;
    let line = refusal(output(agent.command(&agent_config(&[])), LIMIT)?, 1)?;
    assert_parts(&line, &["another agent"]);

    // With a socket of its own it still finds state and pins taken.
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("agent.sock");
    let mut second = agent.client(["agent", "--interface", "eth0", "--socket"]);
    second.arg(&socket).arg("--state-dir").arg(agent.state_dir());
    second.arg("--pin-dir").arg(agent.pin_dir());
    let line = refusal(output(second, LIMIT)?, 1)?;
    let state = agent.state_dir();
    assert_parts(&line, &["--state-dir", &state.to_string_lossy()]);
    assert!(!socket.exists());

    let mut third = agent.client(["agent", "--interface", "eth0", "--socket"]);
    third.arg(&socket).arg("--state-dir").arg(directory.path());
    third.arg("--pin-dir").arg(agent.pin_dir());
    let line = refusal(output(third, LIMIT)?, 1)?;
    let pins = agent.pin_dir();
    assert_parts(&line, &["--pin-dir", &pins.to_string_lossy()]);

    assert_eq!(status(&lab)?.program_id, before);
    Ok(())
}

#[test]
fn interfaces_that_cannot_be_had() -> Result<()> {
    let mut lab = lab(&[])?;
    let directory = tempfile::tempdir()?;
    // A directory of its own, below the lab's, which removes it.
    let pins = lab.agent()?.pin_dir().join("other");
    let unknown = agent_command(lab.director(), directory.path(), &pins, &["--interface", "eth9"])?;
    let line = refusal(output(unknown, LIMIT)?, 1)?;
    assert_parts(&line, &["no interface `eth9`", "ip link"]);
    assert_eq!(listing(directory.path())?, Vec::<PathBuf>::new());
    assert!(!pins.exists());

    lab.cli(["unload"])?;
    lab.agent_mut()?.terminate()?;
    let other = XdpPass::attach(lab.director(), "eth0")?;
    for mode in XdpMode::ALL {
        let busy = agent_command(
            lab.director(),
            directory.path(),
            &pins,
            &["--interface", "eth0", "--xdp-mode", mode.name()],
        )?;
        let line = refusal(output(busy, LIMIT)?, 1)?;
        assert_parts(&line, &["eth0 has another XDP program", "ip link show eth0"]);
        assert!(!pins.exists(), "{} is left", pins.display());
        assert!(!directory.path().join("agent.sock").exists());
    }
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(shown.contains("prog/xdp"), "{shown}");
    drop(other);
    Ok(())
}

#[test]
fn someone_who_is_not_root() -> Result<()> {
    // A copy, in a place that another user can enter, by a process of its own: one that another test
    // starts here meanwhile would hold a descriptor that is open for writing (ETXTBSY).
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    let copy = directory.path().join("lvs-xdp");
    let mut command = Command::new("cp");
    command.arg(lvs_xdp_tests::agent::find_binary()?).arg(&copy);
    run(command)?;
    let before = listing(directory.path())?;
    let mut command = Command::new(&copy);
    command.args(["agent", "--interface", "lo", "--socket"]);
    command
        .arg(directory.path().join("agent.sock"))
        .arg("--state-dir");
    command.arg(directory.path().join("state"));
    command.uid(65534).gid(65534);
    let line = refusal(output(command, LIMIT)?, 1)?;
    assert_parts(&line, &["root"]);
    assert_eq!(listing(directory.path())?, before);
    Ok(())
}

#[test]
fn a_state_file_that_is_damaged() -> Result<()> {
    let mut lab = lab(&[])?;
    for port in ["80", "81", "82"] {
        lab.cli(["service", "add", "tcp", &format!("192.168.2.100:{port}")])?;
    }
    lab.agent_mut()?.terminate()?;
    let directory = lab.agent()?.state_dir();
    let path = directory.join("state");
    let mut bytes = fs::read(&path)?;
    let text = String::from_utf8(bytes.clone())?;
    // Not the digits alone: a checksum may have them, too.
    let port = r#""port":81"#;
    let inside = text.find(port).context("the state file does not name port 81")?;
    bytes[inside + port.len() - 2] = b'9';
    fs::write(&path, &bytes)?;

    lab.agent_mut()?.launch(&agent_config(&[]))?;
    let services: Vec<Service> = serde_json::from_str(&lab.cli(["service", "list", "--json"])?)?;
    let ports: Vec<_> = services.iter().map(|service| service.spec.key.port()).collect();
    assert_eq!(ports, [80, 82]);
    let kept: Vec<_> = listing(&directory)?
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("corrupt"))
        .collect();
    let [kept] = kept.as_slice() else {
        panic!("one damaged file should be kept: {kept:?}");
    };
    assert_eq!(fs::read(kept)?, bytes);
    let warnings = status(&lab)?.warnings;
    assert!(
        warnings
            .iter()
            .any(|line| line.contains(&*kept.to_string_lossy())),
        "{warnings:?}"
    );
    assert!(lab.agent()?.log()?.contains(&*kept.to_string_lossy()));
    Ok(())
}

#[test]
fn pins_that_are_not_ours() -> Result<()> {
    let mut lab = lab(&[])?;
    lab.cli(["service", "add", "tcp", "192.168.2.100:80"])?;
    lab.agent_mut()?.terminate()?;
    let pins = lab.agent()?.pin_dir().to_owned();

    let newer = pins.join("v999");
    fs::create_dir(&newer)?;
    let before = listing(&pins)?;
    let refused = |lab: &Lab| -> Result<String> {
        let line = refusal(output(lab.agent()?.command(&agent_config(&[])), LIMIT)?, 1)?;
        assert_eq!(listing(&pins)?, before);
        assert!(!lab.agent()?.socket().exists());
        Ok(line)
    };
    let line = refused(&lab)?;
    assert_parts(&line, &["another version", "v999", "--pin-dir"]);
    fs::remove_dir(&newer)?;

    // The same version by name, but a table with rows of another size: the map of reasons stands in.
    let own = listing(&pins)?;
    let find = |name: &str| {
        own.iter()
            .find(|path| path.ends_with(name))
            .cloned()
            .with_context(|| format!("there is no map {name}"))
    };
    let (services, reasons) = (find("SERVICES")?, find("REASONS")?);
    let aside = pins.join("aside");
    let map = MapData::from_pin(&services)?;
    map.pin(&aside)?;
    fs::remove_file(&services)?;
    MapData::from_pin(&reasons)?.pin(&services)?;
    let line = refusal(output(lab.agent()?.command(&agent_config(&[])), LIMIT)?, 1)?;
    assert_parts(
        &line,
        &["no map of this version", &services.to_string_lossy(), "--pin-dir"],
    );
    assert_eq!(
        MapInfo::from_pin(&services)?.id(),
        MapInfo::from_pin(&reasons)?.id()
    );

    // Whatever was refused has broken nothing: with the table back in its place all is as it was.
    fs::remove_file(&services)?;
    map.pin(&services)?;
    fs::remove_file(&aside)?;
    lab.agent_mut()?.launch(&agent_config(&[]))?;
    assert_eq!(status(&lab)?.services, 1);
    Ok(())
}

#[test]
fn a_pin_directory_on_a_disk() -> Result<()> {
    let netns = Netns::new("alone")?;
    let directory = tempfile::tempdir()?;
    let pins = directory.path().join("pins");
    let command = agent_command(&netns, directory.path(), &pins, &["--interface", "lo"])?;
    let line = refusal(output(command, LIMIT)?, 1)?;
    assert_parts(
        &line,
        &[
            &pins.to_string_lossy(),
            "BPF file system",
            "--pin-dir",
            "/sys/fs/bpf",
        ],
    );
    assert_eq!(listing(directory.path())?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn no_agent_to_talk_to() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nobody.sock");
    for arguments in [
        "status",
        "service list",
        "service add tcp 192.168.2.100:80",
        "connections",
        "unload",
    ] {
        let mut command = Command::new(lvs_xdp_tests::agent::find_binary()?);
        command.args(arguments.split(' ')).arg("--socket").arg(&socket);
        let line = refusal(output(command, LIMIT)?, 1)?;
        assert_parts(&line, &[&socket.to_string_lossy(), "lvs-xdp agent"]);
    }
    let mut command = Command::new(lvs_xdp_tests::agent::find_binary()?);
    command
        .args(["ipvsadm", "-L", "-n"])
        .env("LVS_XDP_SOCKET", &socket);
    let ended = output(command, LIMIT)?;
    assert!(!ended.status.success());
    let said = String::from_utf8(ended.stderr)?;
    assert_parts(&said, &[&socket.to_string_lossy()]);
    Ok(())
}

#[test]
fn options_that_cannot_be_meant() -> Result<()> {
    let netns = Netns::new("alone")?;
    let directory = tempfile::tempdir()?;
    let pins = directory.path().join("pins");
    for (option, value, part) in [
        ("--connections", "5000", "8192"),
        ("--connections", "0", "out of range"),
        ("--services", "0", "1..=65536"),
        ("--destinations", "1048576", "1..=1048575"),
        ("--xdp-mode", "fast", "auto, native, generic"),
        ("--interface", "lo", "twice"),
    ] {
        let mut command = netns.command(lvs_xdp_tests::agent::find_binary()?);
        command.args(["agent", "--interface", "lo", option, value]);
        command.arg("--pin-dir").arg(&pins);
        command.arg("--state-dir").arg(directory.path().join("state"));
        command.arg("--socket").arg(directory.path().join("agent.sock"));
        let line = refusal(output(command, LIMIT)?, 2)?;
        assert_parts(&line, &[option, part]);
        assert_eq!(listing(directory.path())?, Vec::<PathBuf>::new());
    }
    Ok(())
}
