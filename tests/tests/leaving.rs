//! Real servers that leave, with curl as the client: what it sees, and how long it waits. Persistent
//! clients, services without a server, slow starts, lists and flushes, on the running director.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::{Connection, Server, ServerState, Status};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    lab::{Lab, LabConfig, VIP, real_server_address},
    process::Process,
};
use serde::de::DeserializeOwned;

/// How long whatever is waited for may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);
/// Exit statuses of curl: nobody listens, its own time is over, the connection was reset.
const REFUSED: i32 = 7;
const OUT_OF_TIME: i32 = 28;
const RESET: i32 = 56;
const SERVICE: [&str; 2] = ["tcp", "192.168.2.100:80"];

fn config(mode: XdpMode, connections: u32) -> AgentConfig {
    AgentConfig {
        xdp_mode: mode,
        connections: Some(connections),
        ..AgentConfig::default()
    }
}

/// A lab in native mode with the service of the reference case and two real servers.
fn lab(options: &[&str]) -> Result<Lab> {
    lab_in(XdpMode::Native, options)
}

fn lab_in(mode: XdpMode, options: &[&str]) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        real_servers: 2,
        agent: config(mode, 1 << 12),
        binary: None,
    })?;
    lab.cli([&["service", "add"], &SERVICE[..], options].concat())?;
    for number in 1..=2 {
        add(&lab, number)?;
    }
    Ok(lab)
}

fn add(lab: &Lab, number: usize) -> Result<()> {
    let address = real_server_address(number).to_string();
    lab.cli([&["server", "add"], &SERVICE[..], &[&address]].concat())?;
    Ok(())
}

fn delete(lab: &Lab, number: usize) -> Result<()> {
    let address = real_server_address(number).to_string();
    lab.cli([&["server", "delete"], &SERVICE[..], &[&address]].concat())?;
    Ok(())
}

fn json<T: DeserializeOwned>(lab: &Lab, verb: &[&str]) -> Result<T> {
    let text = lab.cli(verb.iter().chain(&["--json"]))?;
    serde_json::from_str(&text).with_context(|| format!("reading what `{}` wrote", verb.join(" ")))
}

fn servers(lab: &Lab) -> Result<Vec<Server>> {
    json(lab, &["server", "list"])
}

fn server(lab: &Lab, number: usize) -> Result<Option<Server>> {
    let address = IpAddr::V4(real_server_address(number));
    Ok(servers(lab)?
        .into_iter()
        .find(|server| server.spec.key.address == address))
}

fn packets(lab: &Lab, reason: &str) -> Result<u64> {
    let status: Status = json(lab, &["status"])?;
    let reason = status.reasons.iter().find(|count| count.name == reason);
    Ok(reason.context("a reason of this name")?.packets)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        ensure!(
            started.elapsed() < LIMIT,
            "waited {} s for {what}",
            LIMIT.as_secs()
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(started.elapsed())
}

/// A download that takes longer than any test, and who serves it.
struct Download {
    curl: Process,
    started: Instant,
    number: usize,
}

impl Download {
    fn start(lab: &Lab, rate: &str, max_time: &str) -> Result<Self> {
        let before: Vec<_> = servers(lab)?.iter().map(|server| server.active).collect();
        assert!(before.iter().all(|active| *active == 0), "{before:?}");
        let mut curl = lab.curl();
        curl.args([
            "--limit-rate",
            rate,
            "--max-time",
            max_time,
            "--output",
            "/dev/null",
        ]);
        curl.arg(format!("http://{VIP}/big"));
        let curl = Process::spawn(curl)?;
        let started = Instant::now();
        let mut number = None;
        wait_for("the download to be under way", || {
            for candidate in 1..=2 {
                let server = server(lab, candidate)?;
                if server.is_some_and(|server| server.active == 1 && server.stats.packets > 20) {
                    number = Some(candidate);
                }
            }
            Ok(number.is_some())
        })?;
        let number = number.context("a server has the download")?;
        Ok(Self {
            curl,
            started,
            number,
        })
    }

    fn other(&self) -> usize {
        3 - self.number
    }

    /// How curl ends, and how long after `since`.
    fn end(mut self, since: Instant) -> Result<(i32, Duration)> {
        let status = self.curl.wait(Duration::from_secs(40))?;
        Ok((status.code().context("curl was not killed")?, since.elapsed()))
    }
}

/// Every one of some new requests is answered by that real server, at once.
fn assert_all_at(lab: &Lab, number: usize) -> Result<()> {
    for _ in 0..4 {
        let started = Instant::now();
        assert_eq!(lab.fetch("/")?.trim(), format!("rs{number}"));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    Ok(())
}

#[test]
fn a_removed_server_leaves_its_clients_waiting_as_with_ipvs() -> Result<()> {
    let lab = lab(&["--scheduler", "rr"])?;
    let download = Download::start(&lab, "1M", "6")?;
    let started = download.started;
    let other = download.other();
    delete(&lab, download.number)?;
    assert_all_at(&lab, other)?;
    let (status, after) = download.end(started)?;
    assert_eq!(status, OUT_OF_TIME, "nobody tells the client");
    assert!(after >= Duration::from_millis(5_500), "{after:?}");
    assert!(packets(&lab, "destination-removed")? > 0);
    Ok(())
}

#[test]
fn a_server_that_comes_back_has_its_connections_again() -> Result<()> {
    let lab = lab(&["--scheduler", "rr"])?;
    let download = Download::start(&lab, "10M", "40")?;
    let number = download.number;
    delete(&lab, number)?;
    thread::sleep(Duration::from_millis(300));
    add(&lab, number)?;
    let back = server(&lab, number)?.context("it was added")?;
    assert_eq!(back.active, 1, "its connection is counted again");
    let (status, _) = download.end(Instant::now())?;
    assert_eq!(status, 0, "the download goes on and arrives");
    Ok(())
}

#[test]
fn a_removed_server_s_clients_are_reset_where_the_service_says_so() -> Result<()> {
    let lab = lab(&["--scheduler", "rr", "--removal", "reset"])?;
    // The reset is the program's own, not one of the host's: that holds no VIP.
    let _ = lab.director().ip(&format!("address del {VIP}/32 dev eth0"));
    let _ = lab.director().ip(&format!("address del {VIP}/32 dev lo"));
    lab.router().ip(&format!(
        "neighbour replace {VIP} lladdr {} nud permanent dev eth1",
        mac_text(lab.topology().mac("director", "eth0")?)
    ))?;
    let download = Download::start(&lab, "1M", "30")?;
    let other = download.other();
    let removed = Instant::now();
    delete(&lab, download.number)?;
    let (status, after) = download.end(removed)?;
    assert_eq!(status, RESET);
    assert!(after < Duration::from_secs(3), "the client knows after {after:?}");
    assert!(packets(&lab, "reset")? > 0);
    assert_all_at(&lab, other)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[test]
fn connections_of_a_deleted_service_are_reset_too() -> Result<()> {
    let lab = lab(&["--scheduler", "rr", "--removal", "reset"])?;
    let download = Download::start(&lab, "1M", "30")?;
    let removed = Instant::now();
    lab.cli([&["service", "delete"], &SERVICE[..]].concat())?;
    let (status, after) = download.end(removed)?;
    assert_eq!(status, RESET);
    assert!(after < Duration::from_secs(3), "{after:?}");
    assert!(packets(&lab, "reset")? > 0);
    Ok(())
}

#[test]
fn a_removed_server_s_connections_are_scheduled_anew_with_expire_nodest_conn() -> Result<()> {
    for (options, setting) in [
        (&["--scheduler", "rr", "--removal", "reschedule"][..], None),
        (
            &["--scheduler", "rr"][..],
            Some(["settings", "expire_nodest_conn", "1"]),
        ),
    ] {
        let lab = lab(options)?;
        if let Some(setting) = setting {
            lab.cli(setting)?;
        }
        let download = Download::start(&lab, "1M", "30")?;
        let other = download.other();
        let removed = Instant::now();
        delete(&lab, download.number)?;
        let (status, after) = download.end(removed)?;
        // A packet in the middle of a connection starts none: the director, which holds the VIP, resets it.
        assert_eq!(status, RESET);
        assert!(after < Duration::from_secs(3), "{after:?}");
        assert_eq!(packets(&lab, "reset")?, 0);
        assert_all_at(&lab, other)?;
    }
    Ok(())
}

#[test]
fn a_drained_server_leaves_when_its_last_connection_has_ended() -> Result<()> {
    let mut lab = lab(&["--scheduler", "rr"])?;
    lab.ipvsadm(["--set", "0", "1", "0"])?;
    let download = Download::start(&lab, "10M", "40")?;
    let (number, other) = (download.number, download.other());
    let address = real_server_address(number).to_string();
    lab.cli([&["server", "drain"], &SERVICE[..], &[&address]].concat())?;
    assert_all_at(&lab, other)?;
    let draining = server(&lab, number)?.context("it has a connection left")?;
    assert_eq!((draining.spec.weight, draining.active), (0, 1));
    // The next agent goes on with it.
    lab.agent_mut()?.kill()?;
    let again = config(XdpMode::Native, 1 << 12);
    lab.agent_mut()?.launch(&again)?;
    assert!(server(&lab, number)?.is_some_and(|server| server.spec.drain.is_some()));
    let (status, _) = download.end(Instant::now())?;
    assert_eq!(status, 0, "the download arrives");
    wait_for("the drained server to be gone", || {
        Ok(server(&lab, number)?.is_none())
    })?;
    assert_all_at(&lab, other)
}

#[test]
fn a_drain_ends_at_its_deadline() -> Result<()> {
    let lab = lab(&["--scheduler", "rr", "--removal", "reset"])?;
    let download = Download::start(&lab, "5M", "30")?;
    let (number, other) = (download.number, download.other());
    let address = real_server_address(number).to_string();
    let drained = Instant::now();
    lab.cli(
        [
            &["server", "drain"],
            &SERVICE[..],
            &[&address, "--deadline", "3s"],
        ]
        .concat(),
    )?;
    assert_all_at(&lab, other)?;
    let (status, after) = download.end(drained)?;
    assert_eq!(status, RESET);
    assert!(
        after > Duration::from_millis(1_900) && after < Duration::from_secs(8),
        "{after:?}"
    );
    assert!(server(&lab, number)?.is_none());
    Ok(())
}

#[test]
fn a_client_of_a_service_without_servers_is_refused_at_once() -> Result<()> {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let lab = lab_in(mode, &["--scheduler", "wlc"])?;
        for number in 1..=2 {
            delete(&lab, number)?;
        }
        let mut curl = lab.curl();
        curl.args(["--max-time", "10"]).arg(format!("http://{VIP}/"));
        let started = Instant::now();
        let status = Process::spawn(curl)?.wait(LIMIT)?;
        assert_eq!(status.code(), Some(REFUSED), "{mode:?}");
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_eq!(packets(&lab, "no-destination")?, 1);
    }
    Ok(())
}

/// PersistConn of every real server, as ipvsadm lists it.
fn persistent(lab: &Lab) -> Result<Vec<u64>> {
    let list = lab.ipvsadm(["-L", "-n", "--persistent-conn"])?;
    let rows = list.lines().filter(|line| line.starts_with("  -> 192."));
    rows.map(|row| {
        let field = row.split_whitespace().nth(3).context("a row has PersistConn")?;
        Ok(field.parse()?)
    })
    .collect()
}

#[test]
fn a_persistent_client_stays_over_agents_and_tables() -> Result<()> {
    let mut lab = lab(&["--scheduler", "rr", "--persistent=300"])?;
    let first = lab.fetch("/")?;
    let stays = |lab: &Lab| -> Result<()> {
        for _ in 0..6 {
            assert_eq!(lab.fetch("/")?, first);
        }
        assert_eq!(persistent(lab)?.iter().sum::<u64>(), 1);
        Ok(())
    };
    stays(&lab)?;
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&config(XdpMode::Native, 1 << 12))?;
    stays(&lab)?;
    lab.agent_mut()?.terminate()?;
    lab.agent_mut()?.launch(&config(XdpMode::Native, 1 << 13))?;
    stays(&lab)?;

    let all: Vec<Connection> = json(&lab, &["connections"])?;
    let templates: Vec<_> = all
        .iter()
        .filter(|connection| connection.client.port() == 0)
        .collect();
    assert_eq!(templates.len(), 1, "{all:?}");
    assert_eq!(templates[0].state, "ASSURED");
    assert!(
        lab.ipvsadm(["-L", "-n", "-c"])?
            .contains("ASSURED     192.168.1.200:0    192.168.2.100:80")
    );

    // A server that is drained loses its persistent clients at once.
    let number = if first.trim() == "rs1" { 1 } else { 2 };
    let address = real_server_address(number).to_string();
    lab.cli([&["server", "drain"], &SERVICE[..], &[&address]].concat())?;
    assert_all_at(&lab, 3 - number)
}

#[test]
fn a_server_that_is_added_to_others_starts_slowly() -> Result<()> {
    let lab = lab(&["--scheduler", "wrr", "--slow-start", "5s"])?;
    delete(&lab, 2)?;
    let address = real_server_address(2).to_string();
    lab.cli([&["server", "add"], &SERVICE[..], &[&address, "--weight", "100"]].concat())?;
    let first = server(&lab, 2)?.context("it was added")?;
    assert_eq!(first.spec.weight, 100, "what is configured is what is saved");
    assert!(first.effective_weight < 50, "{}", first.effective_weight);
    let mut seen = vec![first.effective_weight];
    wait_for("the server to have its weight", || {
        let server = server(&lab, 2)?.context("it is there")?;
        seen.push(server.effective_weight);
        Ok(server.effective_weight == 100 && server.state == ServerState::Ready)
    })?;
    assert!(seen.is_sorted(), "{seen:?}");
    seen.dedup();
    assert!(seen.len() > 3, "{seen:?}");
    Ok(())
}

#[test]
fn connections_are_listed_and_flushed_by_who_they_are() -> Result<()> {
    let lab = lab(&["--scheduler", "rr"])?;
    let target = SocketAddr::from((VIP, 80));
    let open: Vec<TcpStream> = (0..4)
        .map(|_| {
            Ok(lab
                .client()
                .enter(|| TcpStream::connect_timeout(&target, LIMIT))??)
        })
        .collect::<Result<_>>()?;
    let list =
        |filter: &[&str]| -> Result<Vec<Connection>> { json(&lab, &[&["connections"], filter].concat()) };
    wait_for("four established connections", || {
        Ok(list(&["--state", "ESTABLISHED"])?.len() == 4)
    })?;
    let one = real_server_address(1).to_string();
    assert_eq!(list(&["--server", &one])?.len(), 2);
    assert_eq!(list(&["--client", "192.168.1.0/24"])?.len(), 4);
    assert_eq!(list(&["--client", "192.168.3.0/24"])?.len(), 0);
    assert_eq!(list(&["--service", "tcp/192.168.2.100:80"])?.len(), 4);
    assert_eq!(list(&["--state", "FIN_WAIT"])?.len(), 0);
    let text = lab.cli(["connections", "--server", &one])?;
    assert_eq!(text.lines().count(), 3, "{text}");
    let port = open[0].local_addr()?.port();
    assert!(
        lab.cli(["connections"])?
            .contains(&format!("192.168.1.200:{port}"))
    );

    lab.cli(["connections", "flush", "--server", &one])?;
    assert_eq!(list(&[])?.len(), 2);
    assert!(server(&lab, 1)?.is_some_and(|server| server.active == 0));
    assert!(server(&lab, 2)?.is_some_and(|server| server.active == 2));
    lab.cli(["connections", "flush", "--all"])?;
    assert_eq!(list(&[])?.len(), 0);
    assert_eq!(
        servers(&lab)?
            .iter()
            .map(|server| server.active + server.inactive)
            .sum::<u64>(),
        0
    );
    Ok(())
}
