//! The whole table from a file: applied, exported, gone back from, at the start and at SIGHUP, under load.

mod faults;
mod import;
mod scale;

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{Plan, Version};
use lvs_xdp_tests::{
    agent::AgentConfig,
    ask::{json, servers, services, wait_for},
    lab::{Lab, LabConfig, real_server_address, real_server_name},
    load::Load,
    stream::{Download, OpenConnection},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The service of the reference case, with these real servers of the lab in the order in which they are added.
pub(crate) fn table(scheduler: &str, servers: &[usize]) -> String {
    let mut text = format!(
        "[[service]]\nprotocol = \"tcp\"\naddress = \"192.168.2.100\"\nport = 80\nscheduler = \"{scheduler}\"\n"
    );
    for number in servers {
        let address = real_server_address(*number);
        let _ = writeln!(text, "[[service.server]]\naddress = \"{address}\"");
    }
    text
}

/// A configuration file of one test.
pub(crate) struct File {
    directory: TempDir,
}

impl File {
    pub(crate) fn new(text: &str) -> Result<Self> {
        let file = Self {
            directory: tempfile::tempdir()?,
        };
        file.write(text)?;
        Ok(file)
    }

    pub(crate) fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.path(), text)?)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("lvs-xdp.toml")
    }

    pub(crate) fn name(&self) -> String {
        self.path().to_string_lossy().into_owned()
    }
}

pub(crate) fn lab(real_servers: usize) -> Result<Lab> {
    Lab::start(LabConfig {
        real_servers,
        ..LabConfig::default()
    })
}

pub(crate) fn apply(lab: &Lab, file: &File, text: &str) -> Result<String> {
    file.write(text)?;
    lab.cli(["apply", &file.name()])
}

fn wait_until_ready(lab: &Lab, count: usize) -> Result<()> {
    wait_for("the real servers to be reached", || {
        let servers = servers(lab)?;
        Ok(servers.len() == count && servers.iter().all(|server| server.mac.is_some()))
    })?;
    Ok(())
}

#[test]
fn what_is_exported_applies_as_the_same_table() -> Result<()> {
    let lab = lab(2)?;
    let file = File::new("")?;
    for words in [
        "service add tcp 192.168.2.100:80 --scheduler mh --flag port --persistent=600 --netmask 255.255.255.0",
        "server add tcp 192.168.2.100:80 192.168.2.220 --weight 5 -x 100 -y 80",
        "server add tcp 192.168.2.100:80 192.168.2.210",
        "server drain tcp 192.168.2.100:80 192.168.2.210 --deadline 1h",
        "service add udp [2001:db8::100]:53 --slow-start 30s --set sloppy_tcp=1 --removal reset",
        "mark add 7 --protocol tcp --address 192.168.2.101 --ports 80,443",
        "service add mark 7 --scheduler rr",
        "settings conn_reuse_mode 3",
    ] {
        lab.cli(words.split(' '))?;
    }
    let text = lab.cli(["export"])?;
    file.write(&text)?;
    assert_eq!(lab.cli(["apply", &file.name()])?, "nothing to change\n");
    let before = services(&lab)?
        .into_iter()
        .map(|service| service.spec)
        .collect::<Vec<_>>();
    lab.cli(["apply", "/dev/null"])?;
    assert_eq!(services(&lab)?, []);
    assert!(lab.cli(["mark", "list", "--json"])?.trim() == "[]");
    lab.cli(["apply", &file.name()])?;
    assert_eq!(lab.cli(["export"])?, text);
    let after = services(&lab)?
        .into_iter()
        .map(|service| service.spec)
        .collect::<Vec<_>>();
    assert_eq!(after, before);
    Ok(())
}

#[test]
fn servers_that_stay_notice_nothing_of_an_apply() -> Result<()> {
    let lab = lab(3)?;
    let file = File::new("")?;
    apply(&lab, &file, &table("rr", &[1, 2]))?;
    wait_until_ready(&lab, 2)?;
    let mut connections = [OpenConnection::new(&lab)?, OpenConnection::new(&lab)?];
    let download = Download::start(
        &lab,
        &["--limit-rate", "3M", "--max-time", "60", "--range", "0-11999999"],
    )?;
    let load = Load::steady(lab.vip(), 100, Duration::from_secs(4)).start(lab.client())?;
    for servers in [&[1, 2, 3][..], &[3, 1, 2], &[1, 2], &[2, 1], &[1, 2, 3]] {
        thread::sleep(Duration::from_millis(400));
        apply(&lab, &file, &table("rr", servers))?;
    }
    let report = load.finish()?;
    assert_eq!(report.failures(), []);
    for connection in &mut connections {
        assert_eq!(connection.ask()?, connection.server);
    }
    let done = download.finish(Duration::from_secs(30))?;
    assert_eq!(done.status, Some(0), "{}", done.message);
    assert!(
        done.body == fs::read(lab.big_file())?[..12_000_000],
        "the download differs"
    );
    Ok(())
}

#[test]
fn the_scheduler_goes_on_where_it_was() -> Result<()> {
    let lab = lab(2)?;
    let file = File::new("")?;
    apply(&lab, &file, &table("rr", &[1, 2]))?;
    wait_until_ready(&lab, 2)?;
    let first = lab.fetch("/")?;
    // Another service, and a weight of this one: rr's position is what it was.
    let other = "[[service]]\nprotocol = \"udp\"\naddress = \"192.168.2.100\"\nport = 53\n";
    apply(&lab, &file, &(table("rr", &[1, 2]) + "weight = 7\n" + other))?;
    let second = lab.fetch("/")?;
    assert_ne!(first, second);
    apply(&lab, &file, &(table("rr", &[1, 2]) + "weight = 7\n"))?;
    assert_eq!(lab.fetch("/")?, first);
    Ok(())
}

#[test]
fn all_real_servers_are_exchanged_under_load_without_a_failed_request() -> Result<()> {
    let lab = lab(4)?;
    let file = File::new("")?;
    // A client that uses a port again within two minutes meets the entry of its earlier connection, which may be one of
    // a real server that has gone. As with IPVS this mode alone lets such a connection begin anew where the director
    // sees one direction only.
    let table = |servers: &[usize]| format!("[settings]\nconn_reuse_mode = 3\n{}", table("wlc", servers));
    apply(&lab, &file, &table(&[1, 2]))?;
    wait_until_ready(&lab, 2)?;
    let load = Load::steady(lab.vip(), 150, Duration::from_secs(8)).start(lab.client())?;
    // The old ones get nothing new, then they go.
    let quiet = |kept: &[usize], quiesced: &[usize]| {
        let mut text = table(kept);
        for number in quiesced {
            let address = real_server_address(*number);
            let _ = write!(text, "[[service.server]]\naddress = \"{address}\"\nweight = 0\n");
        }
        text
    };
    for text in [
        quiet(&[3, 2], &[1]),
        quiet(&[3, 2], &[]),
        quiet(&[3, 4], &[2]),
        quiet(&[3, 4], &[]),
    ] {
        thread::sleep(Duration::from_millis(1200));
        apply(&lab, &file, &text)?;
    }
    let report = load.finish()?;
    assert_eq!(report.failures(), [], "of {}", report.outcomes.len());
    let counts = report.counts();
    println!(
        "requests: {}, failed: 0, answered by {counts:?}",
        report.outcomes.len()
    );
    for number in 1..=4 {
        assert!(
            counts.contains_key(real_server_name(number).as_str()),
            "{counts:?}"
        );
    }
    let last = report.answers().last().context("no answer")?;
    assert!(last == "rs3" || last == "rs4", "{last}");
    Ok(())
}

#[test]
fn a_dry_run_says_what_it_touches_and_changes_nothing() -> Result<()> {
    let lab = lab(2)?;
    let file = File::new("")?;
    apply(&lab, &file, &table("rr", &[1, 2]))?;
    wait_until_ready(&lab, 2)?;
    let _connections = [OpenConnection::new(&lab)?, OpenConnection::new(&lab)?];
    let before = lab.cli(["export"])?;
    let versions = json::<Vec<Version>>(&lab, &["history"])?;
    file.write(&table("wrr", &[2]))?;
    let text = lab.cli(["apply", "--dry-run", &file.name()])?;
    assert_eq!(
        text,
        "~ service TCP 192.168.2.100:80: scheduler rr -> wrr\n\
         - real server 192.168.2.220:80 of TCP 192.168.2.100:80 (1 connection)\n\
         2 changes, not made, touch 1 of 2 connections (50.0 %)\n"
    );
    let plan: Plan = json(&lab, &["apply", "--dry-run", &file.name()])?;
    assert_eq!((plan.steps.len(), plan.touched, plan.connections), (2, 1, 2));
    assert_eq!(lab.cli(["export"])?, before);
    assert_eq!(json::<Vec<Version>>(&lab, &["history"])?, versions);
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_names_every_fault() -> Result<()> {
    let lab = lab(1)?;
    let file = File::new("")?;
    apply(&lab, &file, &table("rr", &[1]))?;
    let before = lab.cli(["export"])?;
    file.write(
        "[[service]]\nprotocol = \"tpc\"\naddress = \"192.168.2.100\"\nport = 80\nscheduelr = \"rr\"\n",
    )?;
    let output = lab.cli_output(["apply", &file.name()])?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr)?;
    let lines: Vec<_> = stderr.lines().collect();
    assert!(
        matches!(lines[..], [first, second]
            if first.starts_with(&format!("lvs-xdp: {}: line 2, column 12: `protocol`", file.name()))
                && second.starts_with(&format!("lvs-xdp: {}: line 5, column 1: unknown key `scheduelr`", file.name()))),
        "{stderr}"
    );
    assert_eq!(lab.cli(["export"])?, before);
    Ok(())
}

#[test]
fn each_change_can_be_gone_back_from() -> Result<()> {
    let lab = lab(2)?;
    let file = File::new("")?;
    let mut tables = vec![lab.cli(["export"])?];
    apply(&lab, &file, &table("rr", &[1, 2]))?;
    tables.push(lab.cli(["export"])?);
    // What leaves all as it is, as the second time does, is no version.
    for _ in 0..2 {
        lab.cli([
            "server",
            "edit",
            "tcp",
            "192.168.2.100:80",
            "192.168.2.220",
            "--weight",
            "9",
        ])?;
    }
    tables.push(lab.cli(["export"])?);
    lab.ipvsadm(["-C"])?;
    tables.push(lab.cli(["export"])?);

    let history: Vec<Version> = json(&lab, &["history"])?;
    let told: Vec<_> = history.iter().map(|version| version.what.as_str()).collect();
    let applied = format!("{}: 1 service added, 2 real servers added", file.name());
    assert_eq!(
        told,
        [
            "deleted service TCP 192.168.2.100:80",
            "changed real server 192.168.2.220:80 of TCP 192.168.2.100:80: weight 1 -> 9",
            &applied,
        ]
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for version in &history {
        assert_eq!(version.uid, Some(nix::unistd::getuid().as_raw()));
        assert!((now - 60..=now).contains(&version.time), "{} {now}", version.time);
    }
    let text = lab.cli(["history"])?;
    assert!(
        text.contains("   1        3  20") && text.contains("root"),
        "{text}"
    );

    let dry = lab.cli(["rollback", "--dry-run"])?;
    assert!(
        dry.contains("+ service TCP 192.168.2.100:80") && dry.contains("not made"),
        "{dry}"
    );
    lab.cli(["rollback"])?;
    assert_eq!(lab.cli(["export"])?, tables[2]);
    // That was a change as well.
    lab.cli(["rollback"])?;
    assert_eq!(lab.cli(["export"])?, tables[3]);
    lab.cli(["rollback", "4"])?;
    assert_eq!(lab.cli(["export"])?, tables[1]);
    let output = lab.cli_output(["rollback", "100"])?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr)?;
    assert!(stderr.contains("6 versions are kept"), "{stderr}");
    assert_eq!(lab.cli(["export"])?, tables[1]);
    Ok(())
}

/// An agent with a file; what is in its state directory is of before.
fn with_file(file: &File) -> AgentConfig {
    AgentConfig {
        arguments: vec!["--config".into(), file.name()],
        ..AgentConfig::default()
    }
}

#[test]
fn the_file_is_the_table_at_the_start_and_at_sighup() -> Result<()> {
    let mut lab = lab(2)?;
    lab.cli(["service", "add", "udp", "192.168.2.100:53"])?;
    lab.agent_mut()?.terminate()?;
    let file = File::new(&table("rr", &[1]))?;
    lab.agent_mut()?.launch(&with_file(&file))?;
    wait_until_ready(&lab, 1)?;
    assert_eq!(services(&lab)?.len(), 1);
    let mut open = OpenConnection::new(&lab)?;

    file.write(&table("rr", &[1, 2]))?;
    lab.agent_mut()?.signal(Signal::SIGHUP)?;
    wait_until_ready(&lab, 2)?;
    let history: Vec<Version> = json(&lab, &["history"])?;
    ensure!(history[0].uid.is_none(), "{history:?}");
    assert!(history[0].what.starts_with(&file.name()), "{history:?}");
    assert_eq!(open.ask()?, open.server);

    // A bad one is told of, and changes nothing.
    let before = lab.cli(["export"])?;
    file.write("[[service]]\nprotocol = \"tcp\"\naddress = \"192.168.2.100\"\nport = 80\nwieght = 1\n")?;
    lab.agent_mut()?.signal(Signal::SIGHUP)?;
    wait_for("a word on the bad file", || {
        Ok(lab
            .agent()?
            .log()?
            .contains("line 5, column 1: unknown key `wieght`"))
    })?;
    assert_eq!(lab.cli(["export"])?, before);
    assert_eq!(open.ask()?, open.server);

    // Nor does an agent start with it; what runs goes on.
    lab.agent_mut()?.terminate()?;
    let error = format!("{:#}", lab.agent_mut()?.launch(&with_file(&file)).unwrap_err());
    assert!(
        error.contains("line 5, column 1: unknown key `wieght`"),
        "{error}"
    );
    assert_eq!(open.ask()?, open.server);
    file.write("")?;
    lab.agent_mut()?.launch(&with_file(&file))?;
    assert_eq!(services(&lab)?, []);
    Ok(())
}

#[test]
fn sighup_without_a_file_is_no_end() -> Result<()> {
    let mut lab = lab(1)?;
    lab.agent_mut()?.signal(Signal::SIGHUP)?;
    wait_for("a word on the missing file", || {
        Ok(lab.agent()?.log()?.contains("start the agent with --config FILE"))
    })?;
    lab.cli(["status"])?;
    Ok(())
}
