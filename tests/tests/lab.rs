//! The lab itself: what the other tests stand on.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    ask::wait_for,
    family::Family,
    lab::{BIG_SIZE, CLIENT, DIRECTOR, Lab, LabConfig, VIP, real_server_address},
    load::Load,
    netns::Netns,
    packet::{Capture, inject},
    process::{COMMAND_LIMIT, output, run},
    topology::Topology,
    web::WebServer,
};
use tempfile::TempDir;

/// A client asks a host directly, by its own address.
fn ask(lab: &Lab, address: impl Into<IpAddr>, path: &str) -> Result<String> {
    let mut command = lab.curl();
    let address = SocketAddr::new(address.into(), 80);
    command.arg(format!("http://{address}{path}"));
    run(command)
}

/// An executable script that stands for `lvs-xdp`.
fn script(text: &str) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("lvs-xdp");
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((directory, path))
}

fn namespaces() -> Result<Vec<String>> {
    let listed = fs::read_dir("/run/netns")?;
    listed
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[test]
fn the_client_reaches_every_real_server_through_the_router() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 3,
        ..LabConfig::default()
    })?;
    for (number, server) in (1..).zip(lab.real_servers()) {
        for family in Family::ALL {
            let (client, address) = (family.client(), family.real_server(number));
            assert_eq!(ask(&lab, address, "/")?, format!("rs{number}\n"));
            // Routed, not translated: the real server sees who asks.
            let (from, what) = (format!("{client}:"), format!(" {address} \"GET / HTTP/1.1\" 200"));
            // nginx logs what it has answered already.
            wait_for("the request in the log", || {
                let log = server.access_log()?;
                let last = log.lines().last().unwrap_or_default();
                Ok(last.starts_with(&from) && last.contains(&what))
            })?;
        }
    }
    Ok(())
}

#[test]
fn every_host_has_the_addresses_of_the_reference_case() -> Result<()> {
    let lab = Lab::hosts(LabConfig::default())?;
    let shown = lab.director().ip("-oneline -4 address show dev eth0")?;
    assert!(shown.contains(&format!("inet {DIRECTOR}/24")), "{shown}");
    assert!(shown.contains(&format!("inet {VIP}/32")), "{shown}");
    let shown = lab
        .director()
        .ip("-oneline -6 address show dev eth0 scope global")?;
    assert!(shown.contains("inet6 fd00:2::200/64 scope global"), "{shown}");
    assert!(
        shown.contains("inet6 fd00:2::100/128 scope global deprecated"),
        "{shown}"
    );
    for (host, family, gateway) in [
        ("client", "-4", "192.168.1.1"),
        ("client", "-6", "fd00:1::1"),
        ("director", "-4", "192.168.2.1"),
        ("director", "-6", "fd00:2::1"),
        ("rs2", "-4", "192.168.2.1"),
        ("rs2", "-6", "fd00:2::1"),
    ] {
        let routes = lab
            .topology()
            .host(host)
            .ip(&format!("{family} route show default"))?;
        assert!(
            routes.starts_with(&format!("default via {gateway} dev eth0")) && routes.lines().count() == 1,
            "{host}: {routes}"
        );
    }
    assert_eq!(lab.topology().mac("rs1", "eth0")?, [2, 0, 192, 168, 2, 220]);
    // No service, no VIP on a real server: the director is who answers, and it does not listen.
    for family in Family::ALL {
        let failure = ask(&lab, family.vip(), "/")
            .err()
            .context("the VIP answers though nothing serves it")?;
        assert!(format!("{failure:#}").contains("curl: (7)"), "{failure:#}");
    }
    Ok(())
}

#[test]
fn files_go_both_ways_unchanged() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    let big = fs::read(lab.big_file())?;
    assert_eq!(u64::try_from(big.len())?, BIG_SIZE);
    let url = format!("http://{}", real_server_address(1));
    let directory = tempfile::tempdir()?;
    let downloaded = directory.path().join("downloaded");

    let mut download = lab.curl();
    download
        .arg("--output")
        .arg(&downloaded)
        .arg(format!("{url}/big"));
    run(download)?;
    assert!(fs::read(&downloaded)? == big, "the download differs");

    assert_eq!(lab.real_servers()[0].uploaded("copy"), None);
    let mut upload = lab.curl();
    upload
        .arg("--upload-file")
        .arg(lab.big_file())
        .arg(format!("{url}/upload/copy"));
    run(upload)?;
    let uploaded = lab.real_servers()[0]
        .uploaded("copy")
        .context("the upload was not kept")?;
    assert!(fs::read(uploaded)? == big, "the upload differs");
    Ok(())
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() -> Result<()> {
    let lab = Lab::hosts(LabConfig::default())?;
    let mut names: Vec<_> = lab
        .topology()
        .hosts()
        .map(|(_, netns)| netns.name().to_owned())
        .collect();
    names.push(lab.topology().switches().name().to_owned());
    assert_eq!(names.len(), 6);
    let there = namespaces()?;
    assert!(
        names.iter().all(|name| there.contains(name)),
        "{names:?} are not all in {there:?}"
    );
    let pids: Vec<_> = lab.real_servers().iter().map(WebServer::pid).collect();
    let content = lab.big_file();

    drop(lab);

    let there = namespaces()?;
    assert!(
        !names.iter().any(|name| there.contains(name)),
        "some of {names:?} are still in {there:?}"
    );
    for pid in pids {
        assert!(
            !Path::new("/proc").join(pid.to_string()).exists(),
            "nginx {pid} is still there"
        );
    }
    assert!(!content.exists());
    Ok(())
}

#[test]
fn a_lab_of_no_or_too_many_real_servers_is_refused() {
    for real_servers in [0, 33] {
        let refused = Lab::hosts(LabConfig {
            real_servers,
            ..LabConfig::default()
        });
        assert_eq!(
            refused.err().map(|error| error.to_string()),
            Some(format!("{real_servers} real servers: a lab can have 1 to 32"))
        );
    }
}

#[test]
fn a_load_counts_answers_and_failures() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    let address = real_server_address(1);

    let report = Load::at_once(address, 300).run(lab.client())?;
    assert_eq!(report.failures(), []);
    assert_eq!(report.counts().into_iter().collect::<Vec<_>>(), [("rs1", 300)]);

    let sources: Vec<_> = (40_000..40_003)
        .map(|port| SocketAddr::from((CLIENT, port)))
        .collect();
    let report = Load {
        sources: sources.clone(),
        ..Load::sequential(address, 3)
    }
    .run(lab.client())?;
    let seen: Vec<_> = report.outcomes.iter().map(|outcome| outcome.source).collect();
    assert_eq!(seen, sources.into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(report.failures(), []);

    let closed = Load {
        target: SocketAddr::from((address, 81)),
        ..Load::sequential(address, 2)
    };
    let report = closed.run(lab.client())?;
    assert_eq!(report.counts().len(), 0);
    let failures = report.failures();
    assert_eq!(failures.len(), 2);
    assert!(failures[1].1.contains("Connection refused"), "{failures:?}");

    let missing = Load {
        path: String::from("/nowhere"),
        ..Load::sequential(address, 1)
    }
    .run(lab.client())?;
    assert!(missing.failures()[0].1.contains("404 Not Found"), "{missing:?}");
    Ok(())
}

#[test]
fn a_steady_load_keeps_its_rate_and_can_be_stopped() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    let address = real_server_address(1);
    let started = std::time::Instant::now();
    let report = Load::steady(address, 100, Duration::from_secs(1)).run(lab.client())?;
    assert_eq!((report.outcomes.len(), report.failures()), (100, Vec::new()));
    // The last of them is due after 0.99 s.
    assert!(
        started.elapsed() >= Duration::from_millis(990),
        "{:?}",
        started.elapsed()
    );

    let running = Load::steady(address, 100, Duration::from_secs(600)).start(lab.client())?;
    std::thread::sleep(Duration::from_millis(300));
    let report = running.stop()?;
    assert!(
        (1..600).contains(&report.outcomes.len()),
        "{} requests",
        report.outcomes.len()
    );
    assert_eq!(report.failures(), []);
    Ok(())
}

#[test]
fn frames_are_captured_byte_for_byte() -> Result<()> {
    let mut topology = Topology::new()?;
    topology.add_switch("lan")?;
    for (host, address) in [("left", "10.0.0.1/24"), ("right", "10.0.0.2/24")] {
        topology.add_host(host)?;
        topology.connect(host, "eth0", "lan", &[address])?;
    }
    let [left, right] = ["left", "right"].map(|host| topology.host(host));
    // Both with an ethertype for local experiments (IEEE 802), the second behind a VLAN tag, which the
    // kernel takes out of what it shows.
    let mut plain = [[0xff; 6], topology.mac("left", "eth0")?].concat();
    let mut tagged = plain.clone();
    plain.extend([0x88, 0xb5]);
    tagged.extend([0x81, 0x00, 0x60, 0x07, 0x88, 0xb5]);
    for frame in [&mut plain, &mut tagged] {
        frame.extend(0..64);
    }

    let capture = Capture::start(right, "eth0")?;
    let own = Capture::start(left, "eth0")?;
    inject(left, "eth0", &plain)?;
    inject(left, "eth0", &tagged)?;
    std::thread::sleep(Duration::from_millis(100));
    // Other frames may be there: IPv6 introduces itself.
    let is_ours = |frame: &lvs_xdp_tests::packet::Frame| frame.bytes == plain || frame.bytes == tagged;
    let received: Vec<_> = capture.finish()?.into_iter().filter(is_ours).collect();
    let sent: Vec<_> = own.finish()?.into_iter().filter(is_ours).collect();
    assert_eq!(
        received
            .iter()
            .map(|frame| (&frame.bytes, frame.outgoing))
            .collect::<Vec<_>>(),
        [(&plain, false), (&tagged, false)]
    );
    assert_eq!(
        sent.iter()
            .map(|frame| (&frame.bytes, frame.outgoing))
            .collect::<Vec<_>>(),
        [(&plain, true), (&tagged, true)]
    );
    Ok(())
}

#[test]
fn what_hosts_send_has_its_checksums() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    let capture = Capture::start(lab.topology().host("rs1"), "eth0")?;
    ask(&lab, real_server_address(1), "/")?;
    let frames = capture.finish()?;
    let tcp: Vec<_> = frames
        .iter()
        .filter(|frame| frame.bytes.get(12..14) == Some(&[0x08, 0x00]))
        .collect();
    assert!(
        tcp.iter().any(|frame| frame.outgoing) && tcp.iter().any(|frame| !frame.outgoing),
        "{tcp:?}"
    );
    assert!(tcp.iter().all(|frame| !frame.checksum_pending), "{tcp:?}");
    Ok(())
}

#[test]
fn the_far_end_of_a_cable_passes_by_xdp() -> Result<()> {
    let mut topology = Topology::new()?;
    topology.add_switch("lan")?;
    for (host, address) in [("left", "10.0.0.1/24"), ("right", "10.0.0.2/24")] {
        topology.add_host(host)?;
        topology.connect(host, "eth0", "lan", &[address])?;
    }
    topology.attach_xdp_pass("left", "eth0")?;
    let shown = topology.switches().ip("-details link show dev left-eth0")?;
    assert!(shown.contains("prog/xdp "), "{shown}");

    // Still a cable: ARP, and a refused connection is an answer.
    let mut command = topology.host("left").command("curl");
    command.args(["--silent", "--show-error", "--max-time", "5", "http://10.0.0.2/"]);
    let refused = output(command, COMMAND_LIMIT)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("curl: (7)"), "{said}");

    let again = topology
        .attach_xdp_pass("left", "eth0")
        .err()
        .context("a second program was attached")?;
    assert!(
        format!("{again:#}").contains("attaching it in native mode"),
        "{again:#}"
    );
    let unknown = topology
        .attach_xdp_pass("left", "eth9")
        .err()
        .context("eth9 does not exist")?;
    assert!(
        format!("{unknown:#}").contains("looking for the interface"),
        "{unknown:#}"
    );
    Ok(())
}

#[test]
fn cables_can_be_pulled_and_cards_replaced() -> Result<()> {
    let lab = Lab::hosts(LabConfig {
        real_servers: 1,
        ..LabConfig::default()
    })?;
    let topology = lab.topology();
    let address = real_server_address(1);
    let has_carrier = || {
        anyhow::Ok(
            !topology
                .host("rs1")
                .ip("link show dev eth0")?
                .contains("NO-CARRIER"),
        )
    };

    topology.set_plugged("rs1", "eth0", false)?;
    assert!(!has_carrier()?);
    topology.set_plugged("rs1", "eth0", true)?;
    assert!(has_carrier()?);
    assert_eq!(ask(&lab, address, "/")?, "rs1\n");

    let mac = [0x02, 0x01, 0x02, 0x03, 0x04, 0x05];
    topology.set_mac("rs1", "eth0", mac)?;
    assert_eq!(topology.mac("rs1", "eth0")?, mac);
    Ok(())
}

#[test]
fn names_that_the_kernel_would_refuse_are_named() -> Result<()> {
    let mut topology = Topology::new()?;
    let refused = topology
        .add_switch("a-very-long-switch")
        .err()
        .context("the name was taken")?;
    assert_eq!(
        refused.to_string(),
        "`a-very-long-switch` cannot be an interface's name: 1 to 15 characters"
    );
    topology.add_host("twin")?;
    assert!(topology.add_host("twin").is_err());
    Ok(())
}

#[test]
fn a_failed_command_says_what_it_said() -> Result<()> {
    let netns = Netns::new("alone")?;
    let error = netns
        .ip("link show dev nowhere")
        .err()
        .context("nowhere exists")?
        .to_string();
    assert!(error.contains("link show dev nowhere"), "{error}");
    assert!(error.contains("Device \"nowhere\" does not exist"), "{error}");
    let mut command = netns.command("sleep");
    command.arg("60");
    let error = output(command, Duration::from_millis(200))
        .err()
        .context("it slept on")?
        .to_string();
    assert!(error.contains("sleep 60` had not ended after 0.2 s"), "{error}");
    Ok(())
}

#[test]
fn an_agent_that_does_not_come_up_is_shown_by_its_log() -> Result<()> {
    let (_directory, binary) =
        script("if [ \"$1\" = agent ]; then echo \"no program for $2 $3 at $6 $7\" >&2; exit 1; fi")?;
    let mut lab = Lab::hosts(LabConfig {
        real_servers: 1,
        binary: Some(binary),
        ..LabConfig::default()
    })?;
    let error = lab
        .start_agent()
        .err()
        .context("the script passes for an agent")?;
    let error = format!("{error:#}");
    assert!(
        error.contains("no program for --interface eth0 at --state-dir"),
        "{error}"
    );
    assert!(
        error.contains("the agent ended at once, exit status: 1"),
        "{error}"
    );
    Ok(())
}

#[test]
fn real_servers_are_prepared_in_their_own_namespaces() -> Result<()> {
    // What the product's command does, in its shortest form.
    let (_directory, binary) = script(
        "test \"$1 $2 $3 $5\" = 'realserver setup --vip --vip' &&
         ip addr add $4/32 dev lo && ip addr add $6/128 dev lo nodad",
    )?;
    let lab = Lab::hosts(LabConfig {
        binary: Some(binary),
        ..LabConfig::default()
    })?;
    lab.prepare_real_servers()?;
    for host in ["rs1", "rs2"] {
        let shown = lab.topology().host(host).ip("-oneline address show dev lo")?;
        assert!(shown.contains(&format!("inet {VIP}/32")), "{shown}");
        assert!(shown.contains("inet6 fd00:2::100/128"), "{shown}");
    }
    assert!(
        !lab.client()
            .ip("-4 address show dev lo")?
            .contains(&VIP.to_string())
    );
    let again = lab
        .prepare_real_servers()
        .err()
        .context("the address was added twice")?;
    let again = format!("{again:#}");
    assert!(
        again.contains("preparing rs1: ")
            && again.contains("setup --vip 192.168.2.100 --vip fd00:2::100` failed"),
        "{again}"
    );
    Ok(())
}

#[test]
fn the_lab_binary_fails_in_one_piece() -> Result<()> {
    let (_directory, binary) = script("echo 'not today' >&2; exit 1")?;
    // What a run that was killed has left: no process has an id above 2^22 (the kernel's PID_MAX_LIMIT).
    let leftover = "lx4194399-0-client";
    if !namespaces()?.iter().any(|name| name == leftover) {
        let mut command = Command::new("ip");
        command.args(["netns", "add", leftover]);
        run(command)?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_lvs-xdp-lab"));
    command.env("LVS_XDP_BIN", &binary);
    let ended = output(command, Duration::from_secs(60))?;
    let said = String::from_utf8(ended.stderr)?;
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("lvs-xdp-lab: preparing rs1") && said.contains("not today"),
        "{said}"
    );
    assert!(
        !namespaces()?.iter().any(|name| name == leftover),
        "{leftover} is still there"
    );
    Ok(())
}

#[test]
fn the_lab_binary_refuses_bad_options_and_users() -> Result<()> {
    let lab = env!("CARGO_BIN_EXE_lvs-xdp-lab");
    for arguments in [
        ["--real-servers", "0"],
        ["--real-servers", "x"],
        ["--xdp-mode", "fast"],
    ] {
        let mut command = Command::new(lab);
        command.args(arguments);
        let refused = output(command, COMMAND_LIMIT)?;
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }

    // A copy, in a place that another user can enter.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("lvs-xdp-lab");
    // By a process of its own: one that another test starts here meanwhile would hold a copy of our
    // descriptor, and what is open for writing cannot be run (ETXTBSY).
    let mut command = Command::new("cp");
    command.arg(lab).arg(&copy);
    run(command)?;
    let mut command = Command::new(&copy);
    command.uid(65534).gid(65534);
    let refused = output(command, COMMAND_LIMIT)?;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr)?;
    assert_eq!(
        said,
        "lvs-xdp-lab: must run as root: it makes network namespaces and loads XDP programs; try sudo\n"
    );
    Ok(())
}
