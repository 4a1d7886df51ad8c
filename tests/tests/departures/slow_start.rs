//! A real server that comes to others that are at work.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::{server, servers},
    lab::Lab,
};

use crate::{add_server, ask_around, cli, empty_lab, listed, wait_until_ready};

/// rs1 at work, and rs2 ready to come.
fn lab(scheduler: &str, slow_start: &str) -> Result<Lab> {
    let lab = empty_lab(XdpMode::Native, 2)?;
    let options = ["--scheduler", scheduler, "--slow-start", slow_start];
    cli(&lab, &["service", "add"], &options)?;
    add_server(&lab, 1, &["--weight", "100"])?;
    wait_until_ready(&lab)?;
    // The first one has nobody who could spare it.
    assert_eq!(server(&lab, 1)?.effective_weight, 100);
    Ok(lab)
}

/// How many of so many requests rs2 answers.
fn share(lab: &Lab, requests: usize) -> Result<usize> {
    Ok(ask_around(lab, requests)?.get("rs2").copied().unwrap_or_default())
}

/// Watches rs2 rise to its weight; returns the weights that were seen and when it had all of it.
fn watch(lab: &Lab, limit: Duration) -> Result<(Vec<u32>, Duration)> {
    let started = Instant::now();
    let mut seen = Vec::new();
    while started.elapsed() < limit {
        let rs2 = server(lab, 2)?;
        // What is configured stays as it is.
        assert_eq!(rs2.spec.weight, 100);
        assert_eq!(listed(lab, 2, &[])?[0], 100);
        seen.push(rs2.effective_weight);
        if rs2.effective_weight == 100 {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    seen.dedup();
    Ok((seen, started.elapsed()))
}

#[test]
fn wrr_gives_a_new_server_more_step_by_step() -> Result<()> {
    let lab = lab("wrr", "10s")?;
    add_server(&lab, 2, &["--weight", "100"])?;
    let added = Instant::now();
    let first = share(&lab, 110)?;
    // A tenth of the weight is 10 of 110; two steps later, on a busy machine, it were 24.
    assert!((5..=30).contains(&first), "{first} of the first 110 requests");
    let saved = lab.ipvsadm(["-S", "-n"])?;
    assert!(saved.contains("-r 192.168.2.210:80 -g -w 100\n"), "{saved}");
    let (seen, _) = watch(&lab, Duration::from_secs(15))?;
    let risen = added.elapsed();
    assert!(seen.is_sorted() && seen.last() == Some(&100), "{seen:?}");
    assert!(seen.len() >= 7, "{seen:?}");
    assert!(
        (Duration::from_secs(9)..Duration::from_secs(14)).contains(&risen),
        "{risen:?}"
    );
    assert_eq!(servers(&lab)?.len(), 2);
    let last = share(&lab, 100)?;
    assert!((48..=52).contains(&last), "{last} of the last 100 requests");
    Ok(())
}

#[test]
fn wlc_does_not_flood_a_new_server() -> Result<()> {
    let lab = lab("wlc", "4s")?;
    assert_eq!(share(&lab, 60)?, 0);
    add_server(&lab, 2, &["--weight", "100"])?;
    // As long as it weighs a tenth it is not behind with more than a tenth of the other's connections. Without a
    // slow start it would get all of these.
    let first = share(&lab, 40)?;
    assert!((1..=30).contains(&first), "{first} of the first 40 requests");
    let (seen, took) = watch(&lab, Duration::from_secs(8))?;
    assert!(seen.is_sorted() && seen.last() == Some(&100), "{seen:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    // Now it makes up for it; the other one gets what comes before the end of the connection before was seen.
    let last = share(&lab, 20)?;
    assert!(last > 12, "{last} of the last 20 requests");
    Ok(())
}
