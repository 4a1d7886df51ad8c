//! Real servers that fail in one way or another, under the eyes of clients that go on asking.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{CheckState, CheckTarget};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{LIMIT, server},
    family::Family,
    in_both_modes,
    lab::Lab,
    load::Load,
    report::tell,
    web::WebServer,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    FALL, INTERVAL, TIMEOUT, check, empty_lab, http, lab_with, serve, service, status, wait_for_state,
};

/// The longest time from a fault to a real server without new connections: the last result comes that late, and a
/// busy machine takes its time.
const SEEN_WITHIN: Duration =
    Duration::from_millis((INTERVAL.as_millis() * FALL as u128 + TIMEOUT.as_millis()) as u64 + 2000);

/// Breaks rs1 while clients ask, waits until it is out, sees that it gets nothing, mends it, and waits until it is
/// back. Returns the words of the check.
pub(crate) fn outage(
    lab: &mut Lab,
    what: &str,
    break_it: impl FnOnce(&mut Lab) -> Result<()>,
    mend: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<String> {
    let load = Load {
        timeout: Duration::from_secs(1),
        ..Load::steady(lab.vip(), 50, Duration::from_secs(60))
    }
    .start(lab.client())?;
    thread::sleep(Duration::from_millis(500));
    let broken = Instant::now();
    break_it(lab)?;
    wait_for_state(lab, 1, CheckState::Down, LIMIT)?;
    let seen_after = broken.elapsed();
    let why = status(lab, 1)?.last.context("there is no result")?.why;
    // What is configured, and what is saved, knows nothing of it.
    assert_eq!(server(lab, 1)?.spec.weight, 1);
    let saved = lab.ipvsadm(["-S", "-n"])?;
    ensure!(!saved.contains("-w 0"), "{saved}");
    let first = thread::spawn({
        let (client, vip) = (lab.client().clone(), lab.vip());
        move || Load::sequential(vip, 40).run(&client)
    });
    let during = first.join().expect("a load")?;
    assert!(during.failures().is_empty(), "{what}: {:?}", during.failures());
    assert_eq!(during.counts().into_keys().collect::<Vec<_>>(), ["rs2"], "{what}");
    let mended = Instant::now();
    mend(lab)?;
    wait_for_state(lab, 1, CheckState::Up, LIMIT)?;
    let back_after = mended.elapsed();
    let report = load.stop()?;
    let after = Load::sequential(lab.vip(), 10).run(lab.client())?;
    assert_eq!(after.counts().get("rs1"), Some(&5), "{what}: {after:?}");
    tell(format_args!(
        "{what}: seen after {} ms, back after {} ms; {} of {} requests failed; {why}",
        seen_after.as_millis(),
        back_after.as_millis(),
        report.failures().len(),
        report.outcomes.len(),
    ));
    ensure!(seen_after < SEEN_WITHIN, "{what}: seen after {seen_after:?} only");
    Ok(why)
}

/// Ends the web server of rs1, and starts another one in its place.
fn web_server_is_killed(lab: &mut Lab) -> Result<String> {
    let mut another = None;
    let big = lab.big_file();
    outage(
        lab,
        "its web server is killed",
        |lab| signal(lab, Signal::SIGKILL),
        |lab| {
            another = Some(WebServer::start(
                lab.topology().host("rs1"),
                "rs1",
                Path::new(&big),
            )?);
            Ok(())
        },
    )
}

pub(crate) fn signal(lab: &Lab, signal: Signal) -> Result<()> {
    let pid = lab.real_servers()[0].pid().try_into()?;
    Ok(kill(Pid::from_raw(pid), signal)?)
}

/// What runs `ip` with this line on rs1.
fn at_rs1(line: String) -> impl FnOnce(&mut Lab) -> Result<()> {
    move |lab| lab.topology().host("rs1").ip(&line).map(drop)
}

/// The VIP is taken off lo: the real server answers at its own address as before.
fn vip_is_gone(lab: &mut Lab) -> Result<String> {
    let vip = lab.vip();
    let length = lab.family().host_prefix_len();
    let address = |verb: &str| at_rs1(format!("address {verb} {vip}/{length} dev lo"));
    outage(lab, "its VIP is taken off lo", address("del"), address("add"))
}

/// What the real server says from the VIP is thrown away on it, as a packet filter would.
fn filter_is_set(lab: &mut Lab) -> Result<String> {
    let vip = lab.vip();
    let flag = lab.family().flag();
    let rule = |verb: &str| at_rs1(format!("{flag} rule {verb} from {vip} blackhole"));
    outage(lab, "a filter drops its answers", rule("add"), rule("del"))
}

fn cable_is_cut(lab: &mut Lab) -> Result<String> {
    outage(
        lab,
        "its cable is cut",
        |lab| lab.topology().set_plugged("rs1", "eth0", false),
        |lab| lab.topology().set_plugged("rs1", "eth0", true),
    )
}

fn process_hangs(lab: &mut Lab) -> Result<String> {
    outage(
        lab,
        "its web server hangs",
        |lab| signal(lab, Signal::SIGSTOP),
        |lab| signal(lab, Signal::SIGCONT),
    )
}

/// One after the other, as checks of the VIP see them.
fn each_outage(lab: &mut Lab) -> Result<()> {
    serve(lab, service(lab, check(http(), CheckTarget::Vip)))?;
    assert_eq!(status(lab, 1)?.asked, Some(lab.service()));
    for (outage, words) in [
        (
            vip_is_gone as fn(&mut Lab) -> Result<String>,
            "no connection within 150ms",
        ),
        (filter_is_set, "no connection within 150ms"),
        (process_hangs, "no answer within 150ms"),
        (cable_is_cut, "no connection"),
        (web_server_is_killed, "Connection refused"),
    ] {
        let why = outage(lab)?;
        ensure!(why.contains(words), "{why}");
    }
    Ok(())
}

/// The director has the VIP itself: by its routes the checks would never leave it.
fn where_the_director_has_the_vip(mode: XdpMode) -> Result<()> {
    each_outage(&mut empty_lab(mode)?)
}

in_both_modes!(where_the_director_has_the_vip);

#[test]
fn where_nobody_has_the_vip_but_the_real_servers() -> Result<()> {
    let mut lab = lab_with(XdpMode::Native, &["--announce"])?;
    lab.director()
        .ip(&format!("address del {}/32 dev eth0", lab.vip()))?;
    each_outage(&mut lab)
}

#[test]
fn over_ipv6() -> Result<()> {
    each_outage(&mut empty_lab(XdpMode::Native)?.over(Family::V6))
}

/// A check of the real server's own address sees less: the VIP is gone, and clients wait for nothing.
#[test]
fn the_real_servers_own_address_is_another_matter() -> Result<()> {
    let mut lab = empty_lab(XdpMode::Native)?;
    serve(&lab, service(&lab, check(http(), CheckTarget::Rip)))?;
    lab.topology()
        .host("rs1")
        .ip(&format!("address del {}/32 dev lo", lab.vip()))?;
    thread::sleep(2 * SEEN_WITHIN);
    assert_eq!(status(&lab, 1)?.state, CheckState::Up);
    lab.topology()
        .host("rs1")
        .ip(&format!("address add {}/32 dev lo", lab.vip()))?;
    let why = web_server_is_killed(&mut lab)?;
    ensure!(why.contains("Connection refused"), "{why}");
    Ok(())
}
