//! The disk is full, or gives back other bytes than were written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::{
    api::types::{Change, Protocol, Scheduler, ServerKey, ServerSpec, ServiceKey, ServiceSpec, Version},
    journal::{Journal, Opened, Transaction},
    model::Model,
};
use lvs_xdp_tests::{
    agent::AgentConfig,
    ask::{json, status},
    lab::{Lab, LabConfig, VIP},
    process::run,
};

/// A file system of a few pages, on a directory; gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(directory: PathBuf) -> Result<Self> {
        let mut command = std::process::Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", "size=64k", "small"])
            .arg(&directory);
        run(command)?;
        Ok(Self(directory))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("umount");
        command.arg("--lazy").arg(&self.0);
        if let Err(error) = run(command) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_full_disk_refuses_a_change_in_one_line_and_goes_on_when_there_is_room() -> Result<()> {
    let config = AgentConfig::default();
    let mut lab = Lab::start(LabConfig {
        real_servers: 1,
        agent: config.clone(),
        ..LabConfig::default()
    })?;
    lab.agent_mut()?.terminate()?;
    let directory = lab.agent()?.state_dir();
    let small = Small::mount(directory.clone())?;
    lab.agent_mut()?.launch(&config)?;
    lab.add_service("rr")?;
    let before = lab.cli(["export"])?;
    let history: Vec<Version> = json(&lab, &["history"])?;
    let state = fs::read(directory.join("state"))?;

    let ballast = directory.join("ballast");
    // As much as fits.
    let _: std::io::Result<()> = fs::write(&ballast, vec![b'x'; 1 << 20]);
    let mut refused = 0;
    for port in 1000..1100 {
        let service = format!("{VIP}:{port}");
        let output = lab.cli_output(["service", "add", "tcp", &service])?;
        if output.status.success() {
            // There was room in the last page.
            lab.cli(["service", "delete", "tcp", &service])?;
            continue;
        }
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(
            (output.status.code(), said.lines().count()),
            (Some(1), 1),
            "{said}"
        );
        assert!(
            said.contains("could not be written") && said.contains("No space left"),
            "{said}"
        );
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3);
    assert_eq!(lab.cli(["export"])?, before);
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let now = fs::read(directory.join("state"))?;
    assert!(now.starts_with(&state), "what was there is not what it was");
    let logged = lab.agent()?.log()?.matches("a change was not made").count();
    assert_eq!(logged, refused, "each refusal is logged once");

    fs::remove_file(&ballast)?;
    lab.cli(["service", "add", "tcp", &format!("{VIP}:81")])?;
    let after = lab.cli(["export"])?;
    let versions: Vec<Version> = json(&lab, &["history"])?;
    ensure!(versions.len() > history.len(), "{versions:?}");
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&config)?;
    assert_eq!(lab.cli(["export"])?, after);
    assert_eq!(status(&lab)?.warnings, Vec::<String>::new());
    lab.agent_mut()?.kill()?;
    drop(small);
    Ok(())
}

/// Four services, added by a transaction each.
fn journal(directory: &Path) -> Result<Vec<Model>> {
    let Opened {
        mut journal, model, ..
    } = Journal::open(directory)?;
    let mut models = vec![model];
    for port in 80..84 {
        let service = ServiceKey::new(Protocol::Tcp, VIP.into(), port);
        let key = ServerKey {
            address: [192, 168, 2, 10].into(),
            port,
        };
        let changes = vec![
            Change::AddService {
                service: ServiceSpec::new(service, Scheduler::Rr),
            },
            Change::AddServer {
                service,
                server: ServerSpec::new(key, 1),
                require_on_link: false,
            },
        ];
        let mut model = models.last().context("no table")?.clone();
        model.apply(&changes)?;
        models.push(model);
        let version = Version {
            number: 0,
            time: 0,
            uid: Some(0),
            client: None,
            what: String::from("a test"),
        };
        journal.append(vec![Transaction { version, changes }])?;
    }
    Ok(models)
}

/// Where a sync costs nothing: each cut is one journal.
const MEMORY: &str = "/dev/shm";

#[test]
fn a_state_file_cut_anywhere_is_the_table_of_some_time_before() -> Result<()> {
    let directory = tempfile::tempdir_in(MEMORY)?;
    let models = journal(directory.path())?;
    let bytes = fs::read(directory.path().join("state"))?;
    for length in 0..bytes.len() {
        let directory = tempfile::tempdir_in(MEMORY)?;
        let path = directory.path().join("state");
        fs::write(&path, &bytes[..length])?;
        let Opened { model, warnings, .. } = Journal::open(directory.path())?;
        // Never half of a transaction, and all that are whole.
        let whole = bytes[..length].iter().filter(|&&byte| byte == b'\n').count();
        ensure!(
            model == models[whole.saturating_sub(1)],
            "cut at {length}: {model:?}"
        );
        let is_said = warnings
            .iter()
            .any(|line| line.contains(&*path.to_string_lossy()));
        // What ends behind a line is whole, and nobody can say that there was more.
        let is_whole = bytes[..length].ends_with(b"\n");
        ensure!(
            is_said != is_whole || length == 0,
            "cut at {length}: {warnings:?}"
        );
    }
    Ok(())
}
