//! Real servers that nobody asks, judged by clients' handshakes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lvs_xdp::api::types::{Check, CheckState, Handshakes, PassiveProbe, Probe, Span};
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{LIMIT, json, server, wait_for},
    lab::{Lab, real_server_name},
    load::Load,
};
use serde_json::Value;

use crate::{client, empty_lab, key, serve, service, status, wait_for_state};

fn handshakes(lab: &Lab, number: usize) -> Result<Handshakes> {
    Ok(server(lab, number)?.handshakes)
}

/// Throws away what a real server says from the VIP, or no longer does.
fn silence(lab: &Lab, number: usize, verb: &str) -> Result<()> {
    let line = format!("rule {verb} from {} blackhole", lab.vip());
    let host = lab.topology().host(&real_server_name(number));
    host.ip(&line).map(drop)
}

/// One that answers no SYN is seen by the clients' SYNs alone, goes out, and comes back to be judged anew.
#[test]
fn one_that_answers_no_syn_is_seen_by_its_clients_handshakes() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    let check = Check::new(Probe::Passive(PassiveProbe {
        // More than a second, after which clients send their SYNs again.
        window: Span::from_millis(2_000),
        connections: 10,
        retry: Span::from_millis(4_000),
        ..PassiveProbe::default()
    }));
    serve(&lab, service(&lab, check))?;
    assert_eq!(status(&lab, 1)?.asked, None);

    let started = Instant::now();
    let report = Load::sequential(lab.vip(), 20).run(lab.client())?;
    ensure!(report.failures().is_empty(), "{:?}", report.failures());
    // One after the other, and for each of them the kernel's clock may be a tick of 10 ms off.
    let most = started.elapsed() + Duration::from_millis(100);
    for number in [1, 2] {
        let seen = handshakes(&lab, number)?;
        assert_eq!((seen.syns, seen.repeated, seen.acknowledged), (10, 0, 10));
        ensure!(
            Duration::from_micros(seen.microseconds) <= most,
            "{seen:?} within {most:?}"
        );
    }
    let shown = lab.cli(["handshakes", "tcp/192.168.2.100:80"])?;
    assert_eq!(shown.lines().count(), 3, "{shown}");

    // Clients that are answered when they try again, which they do after a second.
    silence(&lab, 1, "add")?;
    let late = Load::at_once(lab.vip(), 4).start(lab.client())?;
    wait_for("SYNs that are sent again", || {
        Ok(handshakes(&lab, 1)?.repeated >= 2)
    })?;
    silence(&lab, 1, "del")?;
    let report = late.finish()?;
    ensure!(report.failures().is_empty(), "{:?}", report.failures());
    let seen = handshakes(&lab, 1)?;
    assert_eq!((seen.syns, seen.acknowledged), (12, 12));
    ensure!(seen.microseconds >= 2 * 900_000, "{seen:?}");

    silence(&lab, 1, "add")?;
    let load = Load {
        timeout: Duration::from_millis(1_500),
        ..Load::steady(lab.vip(), 30, Duration::from_secs(120))
    }
    .start(lab.client())?;
    wait_for_state(&lab, 1, CheckState::Down, LIMIT)?;
    let last = status(&lab, 1)?.last.map(|last| last.why).unwrap_or_default();
    ensure!(last.contains("in trouble: "), "{last}");
    let (dead, well) = (handshakes(&lab, 1)?, handshakes(&lab, 2)?);
    ensure!(
        dead.syns > 20 && dead.repeated > 0 && dead.acknowledged == seen.acknowledged,
        "{dead:?}"
    );
    ensure!(well.acknowledged > 20, "{well:?}");
    assert_eq!(status(&lab, 2)?.state, CheckState::Up);

    silence(&lab, 1, "del")?;
    wait_for("a good result of rs1", || {
        let seen = status(&lab, 1)?;
        Ok(seen.state == CheckState::Up && seen.last.is_some_and(|last| last.is_good))
    })?;
    assert_eq!(server(&lab, 1)?.effective_weight, 1);

    // Where nobody answers, that is not one real server's doing: all stay.
    for number in [1, 2] {
        silence(&lab, number, "add")?;
    }
    for number in [1, 2] {
        wait_for("a bad result of both", || {
            let last = status(&lab, number)?.last;
            Ok(last.is_some_and(|last| !last.is_good && last.why.contains("its fellows")))
        })?;
    }
    for number in [1, 2] {
        assert_eq!(status(&lab, number)?.state, CheckState::Up);
    }
    load.stop()?;

    // They are counters like the others.
    client(&lab)?.zero(Some(key(&lab)))?;
    let zeroed: Value = json(&lab, &["handshakes"])?;
    ensure!(zeroed.as_array().is_some_and(|rows| rows.len() == 2), "{zeroed}");
    assert_eq!(zeroed[0]["syns"], 0);
    assert_eq!(zeroed[0]["troubled_percent"], Value::Null);
    Ok(())
}
