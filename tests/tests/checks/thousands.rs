//! Thousands of checks in one agent.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{
    Change, Check, CheckState, CheckTarget, Probe, Protocol, Scheduler, ServerKey, ServerSpec, ServiceKey,
    ServiceSpec, Span,
};
use lvs_xdp_tests::{agent::XdpMode, report::tell};

use crate::{check, client, empty_lab};

/// Services of two real servers each.
const SERVICES: u16 = 1000;

/// The processor time that a process has had, in both modes, and its resident memory in MiB.
fn used(pid: u32) -> Result<(Duration, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    let field =
        |index: usize| -> Result<u64> { Ok(fields.split(' ').nth(index).context("no such field")?.parse()?) };
    // proc_pid_stat(5): fields 14, 15 and 24, and what was split off are two; 100 ticks are a second everywhere.
    let ticks = field(11)? + field(12)?;
    Ok((Duration::from_millis(ticks * 10), (field(21)? * 4096) >> 20))
}

/// Two thousand checks of VIPs, all of which nginx answers; then each of a thousand finds nobody.
#[test]
fn two_thousand_checks_are_made_in_time() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    let mut client = client(&lab)?;
    let key = |number: u16| ServiceKey::new(Protocol::Tcp, lab.vip(), 10_000 + number);
    let spec = |number: u16, port: u16| ServiceSpec {
        check: Some(Box::new(Check {
            port: Some(port),
            interval: Span::from_millis(2_000),
            timeout: Span::from_millis(1_000),
            fall: 2,
            ..check(Probe::Tcp {}, CheckTarget::Vip)
        })),
        ..ServiceSpec::new(key(number), Scheduler::Rr)
    };
    let changes = (0..SERVICES).flat_map(|number| {
        let servers = [1, 2].map(|server| Change::AddServer {
            service: key(number),
            server: ServerSpec::new(
                ServerKey {
                    address: lab.family().real_server(server),
                    port: 10_000 + number,
                },
                1,
            ),
            require_on_link: false,
        });
        let service = Change::AddService {
            service: spec(number, 80),
        };
        std::iter::once(service).chain(servers)
    });
    let started = Instant::now();
    client.change(changes.collect())?;
    let mut wait = |what: &str, number_up: usize| -> Result<Duration> {
        let since = Instant::now();
        loop {
            let checks = client.checks()?;
            let up = checks
                .iter()
                .filter(|check| check.state == CheckState::Up)
                .count();
            if checks.len() == 2 * usize::from(SERVICES) && up == number_up {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < Duration::from_secs(30), "{what}: {up} are up");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let up_after = wait("all of them", 2 * usize::from(SERVICES))?;
    let pid = lab.agent()?.pid().context("no agent")?;
    let (before, _) = used(pid)?;
    let seconds = 6;
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, memory) = used(pid)?;
    let late: Vec<_> = (client_checks(&lab)?.into_iter())
        .filter(|age| *age > Duration::from_secs(10))
        .collect();
    assert!(
        late.is_empty(),
        "{} results are late: {:?}",
        late.len(),
        late.iter().max()
    );
    let edits = (0..SERVICES / 2).map(|number| Change::EditService {
        service: spec(number, 81),
    });
    crate::client(&lab)?.change(edits.collect())?;
    let down_after = wait("half of them", usize::from(SERVICES))?;
    tell(format_args!(
        "{} checks, one each 2 s: up {up_after:?} after {:?}, {:.1} % of a processor, {memory} MiB; down {down_after:?} \
         after the change",
        2 * SERVICES,
        started.elapsed(),
        (after - before).as_secs_f64() * 100.0 / seconds as f64,
    ));
    Ok(())
}

/// How old the last result of each check is.
fn client_checks(lab: &lvs_xdp_tests::lab::Lab) -> Result<Vec<Duration>> {
    let checks = client(lab)?.checks()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let ages = checks.iter().filter_map(|check| check.last.as_ref());
    Ok(ages
        .map(|last| now.saturating_sub(Duration::from_millis(last.at)))
        .collect())
}
