//! A real server is taken out of service, and one that takes nothing new is left in it.

use std::{
    fs,
    process::Output,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lvs_xdp::api::types::Server;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{server, servers, wait_for},
    lab::{Lab, real_server_address},
    process::output,
    stream::{Download, OpenConnection},
};

use crate::{
    SERVICE, agent_config, ask_around, assert_reset, change_server, cli, forget_closed_after, lab, only,
};

/// Some 16 s.
const SLOWLY: [&str; 4] = ["--limit-rate", "3M", "--max-time", "60"];
/// How long after its last connection a drained server may still be listed: a second until that is forgotten,
/// one until the agent looks, and what a busy machine takes.
const SOON: Duration = Duration::from_secs(6);

/// Real server `number`, if it is there.
fn found(lab: &Lab, number: usize) -> Result<Option<Server>> {
    let address = real_server_address(number);
    let mut servers = servers(lab)?.into_iter();
    Ok(servers.find(|server| server.spec.key.address == address))
}

fn wait_until_gone(lab: &Lab, number: usize) -> Result<Duration> {
    wait_for("the drained server to be gone", || {
        Ok(found(lab, number)?.is_none())
    })
}

/// `lvs-xdp server drain --wait` of rs2, running beside the test.
fn drain_and_wait(lab: &Lab, options: &[&str]) -> Result<JoinHandle<Result<Output>>> {
    let address = real_server_address(2).to_string();
    let words = [&["server", "drain"], &SERVICE[..], &[&address, "--wait"], options].concat();
    let command = lab.agent()?.client(words);
    let thread = thread::spawn(|| output(command, Duration::from_secs(30)));
    wait_for("the drain", || {
        Ok(found(lab, 2)?.is_none_or(|server| server.spec.drain.is_some()))
    })?;
    Ok(thread)
}

fn ended<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn a_drained_server_ends_what_it_has_and_goes() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    forget_closed_after(&lab, 1)?;
    let mut download = Download::start(
        &lab,
        &["--limit-rate", "2M", "--max-time", "60", "--range", "0-5999999"],
    )?;
    wait_for("a download that is under way", || {
        Ok(download.received() > 100_000)
    })?;
    let waiting = drain_and_wait(&lab, &[])?;
    assert_eq!(ask_around(&lab, 10)?, only("rs1", 10));
    let drained = server(&lab, 2)?;
    assert_eq!((drained.spec.weight, drained.effective_weight), (0, 0));
    assert_eq!((drained.active, drained.spec.drain.is_some()), (1, true));
    assert!(download.is_running()?);
    let done = download.finish(Duration::from_secs(30))?;
    assert_eq!(done.status, Some(0), "{}", done.message);
    assert!(
        done.body == fs::read(lab.big_file())?[..6_000_000],
        "the download differs"
    );
    let gone = wait_until_gone(&lab, 2)?;
    assert!(gone < SOON, "{gone:?}");
    let waited = ended(waiting)?;
    assert!(waited.status.success(), "{waited:?}");
    let text = String::from_utf8(waited.stdout)?;
    assert!(
        text.starts_with("connections left: 1 (1 active, 0 inactive)\n"),
        "{text}"
    );
    assert!(text.ends_with("\nremoved\n"), "{text}");
    let log = lab.agent()?.log()?;
    assert!(log.contains("drained, no connection was left"), "{log}");
    assert_eq!(ask_around(&lab, 4)?, only("rs1", 4));
    Ok(())
}

#[test]
fn a_drain_ends_at_its_deadline() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--removal", "reset"])?;
    let download = Download::start(&lab, &SLOWLY)?;
    wait_for("a download that is under way", || {
        Ok(download.received() > 100_000)
    })?;
    let drained = Instant::now();
    let waiting = drain_and_wait(&lab, &["--deadline", "3s", "--json"])?;
    let done = download.finish(Duration::from_secs(20))?;
    // Deadlines are whole seconds of the clock: up to one earlier.
    let after = drained.elapsed();
    assert!(
        (Duration::from_millis(1_900)..Duration::from_secs(7)).contains(&after),
        "{after:?}"
    );
    assert_reset(&done, Duration::from_secs(7));
    wait_until_gone(&lab, 2)?;
    let waited = ended(waiting)?;
    assert!(waited.status.success(), "{waited:?}");
    let told: Vec<serde_json::Value> = serde_json::Deserializer::from_slice(&waited.stdout)
        .into_iter()
        .collect::<Result<_, _>>()?;
    let (last, before) = told.split_last().context("something was told")?;
    assert_eq!(last["removed"], true);
    assert!(before.len() >= 2, "{told:?}");
    assert!(
        before
            .iter()
            .all(|left| left["removed"] == false && left["connections"] == 1)
    );
    Ok(())
}

#[test]
fn a_drain_survives_the_agent_and_is_called_off() -> Result<()> {
    let mut lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    forget_closed_after(&lab, 1)?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    change_server(&lab, "drain", 2, &[])?;
    lab.agent_mut()?.kill()?;
    assert_eq!(open.ask()?, "rs2");
    lab.agent_mut()?.launch(&agent_config(XdpMode::Native))?;
    assert!(server(&lab, 2)?.spec.drain.is_some());
    assert_eq!(ask_around(&lab, 4)?, only("rs1", 4));
    assert_eq!(open.ask()?, "rs2");

    // Called off, it takes its turns again, and is not removed without a connection.
    change_server(&lab, "edit", 2, &["--weight", "3"])?;
    let back = server(&lab, 2)?;
    assert_eq!(
        (back.spec.weight, back.effective_weight, back.spec.drain),
        (3, 3, None)
    );
    assert_eq!(ask_around(&lab, 4)?.get("rs2"), Some(&2));
    drop(open);
    wait_for("rs2 without a connection", || {
        let server = server(&lab, 2)?;
        Ok(server.active + server.inactive == 0)
    })?;
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(server(&lab, 2)?.spec.weight, 3);

    // What has no connection goes at once.
    change_server(&lab, "drain", 2, &[])?;
    let gone = wait_until_gone(&lab, 2)?;
    assert!(gone < SOON, "{gone:?}");
    Ok(())
}

#[test]
fn persistent_clients_leave_a_drained_server() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--persistent=600"])?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    assert_eq!(ask_around(&lab, 4)?, only("rs2", 4));
    change_server(&lab, "drain", 2, &[])?;
    assert_eq!(ask_around(&lab, 4)?, only("rs1", 4));
    // What it has already stays.
    assert_eq!(open.ask()?, "rs2");
    wait_for("the template to be taken out", || {
        Ok(server(&lab, 2)?.persistent == 0)
    })?;
    assert_eq!(server(&lab, 1)?.persistent, 1);
    Ok(())
}

#[test]
fn weight_0_takes_nothing_new_and_keeps_what_there_is() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr"])?;
    let tenth = ["--limit-rate", "2M", "--max-time", "60", "--range", "0-3999999"];
    let download = Download::start(&lab, &tenth)?;
    wait_for("a download that is under way", || {
        Ok(download.received() > 100_000)
    })?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs1");
    change_server(&lab, "edit", 1, &["--weight", "0"])?;
    change_server(&lab, "edit", 2, &["--weight", "0"])?;
    // Nobody takes it, which the client hears at once.
    let refused = lab.fetch("/").err().context("nobody takes it")?;
    assert!(format!("{refused:#}").contains("curl: (7)"), "{refused:#}");
    change_server(&lab, "edit", 1, &["--weight", "1"])?;
    assert_eq!(ask_around(&lab, 6)?, only("rs1", 6));
    let done = download.finish(Duration::from_secs(30))?;
    assert_eq!(done.status, Some(0), "{}", done.message);
    assert_eq!(done.body.len(), 4_000_000);
    assert_eq!(open.ask()?, "rs1");

    // Persistent clients stay with a server of weight 0, unless the setting says otherwise.
    cli(&lab, &["service", "edit"], &["--persistent=600"])?;
    change_server(&lab, "edit", 2, &["--weight", "1"])?;
    let before = ask_around(&lab, 1)?;
    let (name, _) = before.first_key_value().context("one has answered")?;
    let number = if name == "rs1" { 1 } else { 2 };
    let other = if number == 1 { "rs2" } else { "rs1" };
    change_server(&lab, "edit", number, &["--weight", "0"])?;
    assert_eq!(ask_around(&lab, 4)?, only(name, 4));
    lab.cli(["settings", "expire_quiescent_template", "1"])?;
    assert_eq!(ask_around(&lab, 4)?, only(other, 4));
    Ok(())
}
