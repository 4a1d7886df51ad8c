//! Calls in a large table: scripts make them in loops. How long they take is printed and not judged, for machines
//! differ.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Director, fed, stdout};

/// Services of a large director, and real servers of each: fewer of them for a program that is not optimised, which
/// is some ten times slower.
const LARGE: (usize, usize) = if cfg!(debug_assertions) {
    (500, 10)
} else {
    (10_000, 10)
};

fn large() -> Result<String> {
    let (services, servers) = LARGE;
    let mut rules = String::new();
    for number in 0..services {
        let port = number + 1;
        writeln!(rules, "-A -t 10.1.0.1:{port} -s wrr")?;
        for server in 1..=servers {
            writeln!(
                rules,
                "-a -t 10.1.0.1:{port} -r 10.2.{}.{server}:{port} -g -w {server}",
                number % 250
            )?;
        }
    }
    Ok(rules)
}

/// The middle of some times that a call takes.
fn time(mut call: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[test]
fn calls_in_a_large_table_say_what_there_is() -> Result<()> {
    let director = Director::start(&["--services", "16384", "--destinations", "131072"])?;
    let rules = large()?;
    let start = Instant::now();
    stdout(fed(director.command("ipvsadm-restore"), &rules)?)?;
    println!("restored in {:?}", start.elapsed());
    let (services, servers) = LARGE;
    let mut lines = 0;
    let list = time(|| {
        lines = director.ipvsadm("-L -n")?.lines().count();
        Ok(())
    })?;
    assert_eq!(lines, 3 + services * (1 + servers));
    let mut of_one = 0;
    let one = time(|| {
        of_one = director.ipvsadm("-L -n --stats -t 10.1.0.1:77")?.lines().count();
        Ok(())
    })?;
    assert_eq!(of_one, 3 + servers);
    let edit = time(|| director.ipvsadm("-e -t 10.1.0.1:77 -r 10.2.76.1 -w 7").map(drop))?;
    let service = time(|| director.ipvsadm("-E -t 10.1.0.1:77 -s wrr").map(drop))?;
    let version = time(|| director.ipvsadm("-v").map(drop))?;
    println!("-L {list:?}, -L -t {one:?}, -e {edit:?}, -E {service:?}, -v {version:?}");
    Ok(())
}
