//! What must go on: forwarding without the agent, connections over every change, state over a reboot.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use lvs_xdp::api::types::{Connection, Server, ServerState, Service, Status};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode},
    lab::{BIG_SIZE, CLIENT, Lab, LabConfig, VIP, real_server_address},
    load::{Load, Report},
    process::{COMMAND_LIMIT, Process, output},
    trace::Traced,
};
use serde::de::DeserializeOwned;

/// The connection table's capacity, in entries.
const CAPACITY: u32 = 65_536;
/// How long whatever is waited for may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);
/// How long a request loop lasts.
const LOOP_TIME: Duration = Duration::from_secs(10);
/// Its requests a second.
const LOOP_RATE: u32 = 200;
/// Its requests.
const LOOP_REQUESTS: usize = 2_000;

fn agent_config() -> AgentConfig {
    AgentConfig {
        xdp_mode: XdpMode::Native,
        connections: Some(CAPACITY),
        arguments: Vec::new(),
    }
}

/// A lab in native mode with the service of the reference case, its real servers resolved.
fn lab(real_servers: usize, scheduler: &str) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        real_servers,
        agent: agent_config(),
        binary: None,
    })?;
    lab.add_service(scheduler)?;
    wait_for("real servers that answer ARP", || {
        Ok(servers(&lab)?
            .iter()
            .all(|server| server.state == ServerState::Ready))
    })?;
    Ok(lab)
}

fn json<T: DeserializeOwned>(lab: &Lab, verb: &[&str]) -> Result<T> {
    let text = lab.cli(verb.iter().chain(&["--json"]))?;
    serde_json::from_str(&text).with_context(|| format!("reading what `{}` wrote", verb.join(" ")))
}

fn status(lab: &Lab) -> Result<Status> {
    json(lab, &["status"])
}

fn services(lab: &Lab) -> Result<Vec<Service>> {
    json(lab, &["service", "list"])
}

/// The real servers of all services.
fn servers(lab: &Lab) -> Result<Vec<Server>> {
    Ok(services(lab)?
        .into_iter()
        .flat_map(|service| service.servers)
        .collect())
}

/// Real server `number` in the only service.
fn server(lab: &Lab, number: usize) -> Result<Server> {
    let address = IpAddr::V4(real_server_address(number));
    servers(lab)?
        .into_iter()
        .find(|server| server.spec.key.address == address)
        .with_context(|| format!("there is no real server {address}"))
}

/// Where each client's connection goes.
fn destinations(lab: &Lab) -> Result<HashMap<SocketAddr, SocketAddr>> {
    let connections: Vec<Connection> = json(lab, &["connections"])?;
    Ok(connections
        .iter()
        .map(|connection| (connection.client, connection.destination))
        .collect())
}

/// Connections that the only service was asked for, as its counters have it.
fn counted_connections(lab: &Lab) -> Result<u64> {
    Ok(services(lab)?
        .first()
        .context("there is no service")?
        .stats
        .connections)
}

/// Packets that the program has dropped, by reason.
fn drops(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let reasons = status(lab)?.reasons;
    Ok(reasons
        .into_iter()
        .filter(|reason| reason.verdict == "drop" && reason.packets > 0)
        .map(|reason| (reason.name, reason.packets))
        .collect())
}

/// The one directory of pins below the agent's: that of the layout's version.
fn version_directory(agent: &Agent) -> Result<PathBuf> {
    let Some(version) = fs::read_dir(agent.pin_dir())?.next() else {
        bail!("nothing is pinned in {}", agent.pin_dir().display());
    };
    Ok(version?.path())
}

/// The kernel's ids of the pinned link and of the program that it runs.
fn link(lab: &Lab) -> Result<(u32, u32)> {
    let pins = fs::read_dir(version_directory(lab.agent()?)?.join("links"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let [pin] = pins.as_slice() else {
        bail!("one link should be pinned, not {pins:?}");
    };
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let info = link.info()?;
    Ok((info.id(), info.program_id()))
}

/// Waits until something is so; returns how long that took.
fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        ensure!(
            started.elapsed() < LIMIT,
            "waited {} s for {what}",
            LIMIT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(started.elapsed())
}

/// A connection of the client's that stays open, and over which it can ask again and again.
#[derive(Debug)]
struct OpenConnection {
    stream: BufReader<TcpStream>,
    /// Who answered first.
    server: String,
}

impl OpenConnection {
    fn new(lab: &Lab) -> Result<Self> {
        let target = SocketAddr::from((VIP, 80));
        let stream = lab
            .client()
            .enter(|| TcpStream::connect_timeout(&target, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut connection = Self {
            stream: BufReader::new(stream),
            server: String::new(),
        };
        connection.server = connection.ask()?;
        Ok(connection)
    }

    /// The client's address and port.
    fn client(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    fn send(&mut self) -> Result<()> {
        let request = format!("GET / HTTP/1.1\r\nHost: {VIP}\r\n\r\n");
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    /// The page that answers a request, without its newline.
    fn receive(&mut self) -> Result<String> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?.trim_end().to_owned())
    }

    fn ask(&mut self) -> Result<String> {
        self.send()?;
        self.receive()
    }

    /// Nothing comes for a while, not even the connection's end.
    fn expect_silence(&mut self, time: Duration) -> Result<()> {
        self.stream.get_mut().set_read_timeout(Some(time))?;
        let heard = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_mut().set_read_timeout(Some(LIMIT))?;
        match heard {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("the connection should be silent"),
            Ok(length) => bail!("the connection should be silent, but {length} bytes came"),
        }
    }
}

/// A download and an upload of the big file, both at 4 MB/s: some 12 s.
struct Transfers {
    download: Process,
    upload: Process,
    downloaded: PathBuf,
    _directory: tempfile::TempDir,
}

impl Transfers {
    fn start(lab: &Lab) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let downloaded = directory.path().join("downloaded");
        let slow = ["--limit-rate", "4M", "--max-time", "60"];
        let mut download = lab.curl();
        download.args(slow).arg("--output").arg(&downloaded);
        download.arg(format!("http://{VIP}/big"));
        let mut upload = lab.curl();
        upload.args(slow).arg("--upload-file").arg(lab.big_file());
        upload.arg(format!("http://{VIP}/upload/copy"));
        Ok(Self {
            download: Process::spawn(download)?,
            upload: Process::spawn(upload)?,
            downloaded,
            _directory: directory,
        })
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.download.ended()?.is_none() && self.upload.ended()?.is_none())
    }

    /// Waits for their ends and compares what arrived with what was sent.
    fn finish(mut self, lab: &Lab) -> Result<()> {
        for (what, process) in [("download", &mut self.download), ("upload", &mut self.upload)] {
            let status = process.wait(Duration::from_secs(60))?;
            ensure!(status.success(), "the {what} failed, {status}");
        }
        let uploaded = lab
            .real_servers()
            .iter()
            .find_map(|server| server.uploaded("copy"))
            .context("no real server has the upload")?;
        let sent = fs::read(lab.big_file())?;
        ensure!(fs::read(&self.downloaded)? == sent, "the download differs");
        ensure!(fs::read(uploaded)? == sent, "the upload differs");
        Ok(())
    }
}

/// The request loop, each request from a port of its own: a client that takes a port again soon enough
/// goes on with the entry that is there, and is not counted again.
fn request_loop() -> Load {
    let ports = 10_000..10_000 + u16::try_from(LOOP_REQUESTS).unwrap_or(u16::MAX);
    Load {
        sources: ports.map(|port| SocketAddrV4::new(CLIENT, port)).collect(),
        ..Load::steady(VIP, LOOP_RATE, LOOP_TIME)
    }
}

/// Every request of the loop was answered.
fn assert_none_lost(what: &str, report: &Report) {
    assert_eq!(report.failures(), [], "{what}");
    assert_eq!(report.outcomes.len(), LOOP_REQUESTS, "{what}");
    let slowest = report.outcomes.iter().map(|outcome| outcome.time).max();
    eprintln!("{what}: the slowest request took {slowest:?}");
}

/// Ends the agent one way or another in the middle of transfers and a request loop, and starts it again.
fn restart_under_load(what: &str, end: impl FnOnce(&mut Agent) -> Result<()>) -> Result<()> {
    let mut lab = lab(2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    let client = open.client()?;
    let going_to = destinations(&lab)?.get(&client).copied();
    assert!(going_to.is_some());
    let (link_before, program_before) = link(&lab)?;
    assert_eq!(status(&lab)?.program_id, program_before);

    let mut transfers = Transfers::start(&lab)?;
    let load = request_loop().start(lab.client())?;
    std::thread::sleep(Duration::from_millis(1500));
    let counted_before = counted_connections(&lab)?;
    assert!(counted_before > 3, "{counted_before}");
    end(lab.agent_mut()?)?;
    // Nobody is there, and it goes on.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(open.ask()?, open.server);
    assert!(!lab.cli_output(["status"])?.status.success());
    assert_eq!(link(&lab)?, (link_before, program_before));

    lab.agent_mut()?.launch(&agent_config())?;
    let (link_after, program_after) = link(&lab)?;
    assert_eq!(link_after, link_before, "{what}: the link is another one");
    assert_ne!(
        program_after, program_before,
        "{what}: the agent's own program should run"
    );
    assert_eq!(status(&lab)?.program_id, program_after);
    assert_eq!(destinations(&lab)?.get(&client).copied(), going_to);
    assert!(
        counted_connections(&lab)? > counted_before,
        "{what}: the counters began anew"
    );
    assert!(
        transfers.is_running()?,
        "{what}: the transfers ended before they could be disturbed"
    );

    assert_none_lost(what, &load.finish()?);
    transfers.finish(&lab)?;
    assert_eq!(open.ask()?, open.server);
    // The loop, two transfers and the open connection: nothing was counted twice or forgotten.
    let counts = lab_counts(&lab)?;
    assert_eq!(counts, LOOP_REQUESTS as u64 + 3, "{what}");
    assert_eq!(drops(&lab)?, [], "{what}");
    Ok(())
}

/// Connections counted by the only service's real servers, added up.
fn lab_counts(lab: &Lab) -> Result<u64> {
    let sum = servers(lab)?.iter().map(|server| server.stats.connections).sum();
    assert_eq!(counted_connections(lab)?, sum);
    Ok(sum)
}

#[test]
fn nothing_is_lost_when_the_agent_is_killed() -> Result<()> {
    restart_under_load("kill -9", Agent::kill)
}

#[test]
fn nothing_is_lost_when_the_agent_ends_and_another_takes_over() -> Result<()> {
    restart_under_load("SIGTERM", |agent| {
        let socket = agent.socket();
        let ended = agent.terminate()?;
        assert_eq!(ended.code(), Some(0));
        assert!(!socket.exists());
        Ok(())
    })
}

#[test]
fn nothing_is_lost_when_the_tables_grow() -> Result<()> {
    const OPEN: usize = 100;
    let mut lab = lab(2, "rr")?;
    let (link_before, _) = link(&lab)?;
    let mut open: Vec<_> = (0..OPEN)
        .map(|_| OpenConnection::new(&lab))
        .collect::<Result<_>>()?;
    let clients = open
        .iter()
        .map(OpenConnection::client)
        .collect::<Result<Vec<_>>>()?;
    let going_to = |lab: &Lab| -> Result<Vec<_>> {
        let destinations = destinations(lab)?;
        Ok(clients
            .iter()
            .map(|client| destinations.get(client).copied())
            .collect())
    };
    let before = going_to(&lab)?;
    assert!(before.iter().all(Option::is_some));
    let mut transfers = Transfers::start(&lab)?;
    let load = request_loop().start(lab.client())?;

    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status(&lab)?.connection_capacity, u64::from(CAPACITY));
    let doubled = AgentConfig {
        connections: Some(2 * CAPACITY),
        ..agent_config()
    };
    lab.agent_mut()?.terminate()?;
    lab.agent_mut()?.launch(&doubled)?;
    assert_eq!(status(&lab)?.connection_capacity, u64::from(2 * CAPACITY));
    assert_eq!(going_to(&lab)?, before);
    assert!(
        transfers.is_running()?,
        "the tables grew in the middle of a transfer"
    );

    std::thread::sleep(Duration::from_millis(1500));
    let larger = AgentConfig {
        arguments: ["--services", "9000", "--destinations", "50000"]
            .map(String::from)
            .into(),
        ..doubled
    };
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&larger)?;
    assert_eq!(going_to(&lab)?, before);
    assert_eq!(link(&lab)?.0, link_before);

    assert_none_lost("larger tables", &load.finish()?);
    transfers.finish(&lab)?;
    assert_eq!(going_to(&lab)?, before);
    for open in &mut open {
        assert_eq!(open.ask()?, open.server);
    }
    // One may be forgotten: nobody can add to a counter that the program has without a gap.
    let counts = lab_counts(&lab)?;
    let expected = (LOOP_REQUESTS + OPEN + 2) as u64;
    assert!(
        (expected - 1..=expected).contains(&counts),
        "{counts} connections counted, not {expected}"
    );
    let active: u64 = servers(&lab)?.iter().map(|server| server.active).sum();
    assert_eq!(active, OPEN as u64);
    // The new tables can be filled to their new size, not only be asked for it.
    lab.cli(["service", "add", "udp", "192.168.2.100:53"])?;
    assert_eq!(lab.fetch("/")?.get(..2), Some("rs"));
    Ok(())
}

/// `BPF_LINK_UPDATE` of linux/bpf.h: the program of a link is replaced.
const BPF_LINK_UPDATE: u64 = 29;

#[test]
fn nothing_is_lost_when_the_agent_is_killed_while_the_tables_grow() -> Result<()> {
    let mut lab = lab(2, "rr")?;
    let sized = |connections| AgentConfig {
        connections: Some(connections),
        ..agent_config()
    };
    let listed = |lab: &Lab, client: SocketAddr| -> Result<Connection> {
        let connections: Vec<Connection> = json(lab, &["connections"])?;
        connections
            .into_iter()
            .find(|connection| connection.client == client)
            .with_context(|| format!("there is no connection of {client}"))
    };
    let (link_before, program_before) = link(&lab)?;
    let opened = Instant::now();
    let mut early = OpenConnection::new(&lab)?;
    let closing = OpenConnection::new(&lab)?;
    // The director's clock begins with the tables: it has to be past the time by which an entry may
    // seem to come from the future, or wrong ages would look right.
    std::thread::sleep(Duration::from_secs(18));

    lab.agent_mut()?.kill()?;
    let mut mover = Traced::spawn(lab.agent()?.command(&sized(2 * CAPACITY)))?;
    mover.run_to(libc::SYS_bpf, Some(BPF_LINK_UPDATE))?;
    // All that is there was carried over; what comes now is in the old tables only.
    assert_eq!(link(&lab)?, (link_before, program_before));
    let mut between = OpenConnection::new(&lab)?;
    let closed = closing.client()?;
    drop(closing);
    std::thread::sleep(Duration::from_millis(200));
    mover.run_to(libc::SYS_membarrier, None)?;
    // The new program runs, and the old tables are about to be looked through again.
    mover.kill()?;
    let (link_killed, program_killed) = link(&lab)?;
    assert_eq!(link_killed, link_before);
    assert_ne!(program_killed, program_before);
    between.send()?;
    between.expect_silence(Duration::from_millis(500))?;
    let mut late = OpenConnection::new(&lab)?;

    lab.agent_mut()?.launch(&sized(4 * CAPACITY))?;
    let status = status(&lab)?;
    assert_eq!(status.connection_capacity, u64::from(4 * CAPACITY));
    let idle = listed(&lab, early.client()?)?;
    let age = 900_u64.saturating_sub(idle.expires);
    let expected = opened.elapsed().as_secs();
    assert!(expected.abs_diff(age) <= 2, "{idle:?} should be {expected} s old");
    assert_eq!(listed(&lab, closed)?.state, "FIN_WAIT");
    assert_eq!(between.receive()?, between.server);
    for open in [&mut early, &mut between, &mut late] {
        assert_eq!(open.ask()?, open.server);
    }
    let active: u64 = servers(&lab)?.iter().map(|server| server.active).sum();
    assert_eq!(active, 3);
    assert_eq!(link(&lab)?.0, link_before);
    // What the killed agent has left is gone.
    let generations = fs::read_dir(version_directory(lab.agent()?)?)?.count();
    assert_eq!(generations, 2, "one generation and the links");
    Ok(())
}

/// Downloads the big file at some 12 MB/s; returns it and the longest time that nothing came.
fn paced_download(lab: &Lab) -> JoinHandle<Result<(Vec<u8>, Duration)>> {
    lab.client().spawn_thread(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET /big HTTP/1.0\r\n\r\n")?;
        let mut received = Vec::new();
        let mut stall = Duration::ZERO;
        let mut chunk = vec![0; 16 << 10];
        loop {
            let started = Instant::now();
            let length = stream.read(&mut chunk)?;
            stall = stall.max(started.elapsed());
            if length == 0 {
                return Ok((received, stall));
            }
            received.extend_from_slice(&chunk[..length]);
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

#[test]
fn a_transfer_goes_on_when_the_real_servers_card_is_replaced() -> Result<()> {
    let lab = lab(1, "rr")?;
    let mac = [0x02, 0x01, 0x02, 0x03, 0x04, 0x05];
    let download = paced_download(&lab);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!download.is_finished());
    lab.topology().set_mac("rs1", "eth0", mac)?;
    let noticed = wait_for("the new MAC address", || {
        Ok(server(&lab, 1)?.mac.as_deref() == Some("02:01:02:03:04:05"))
    })?;
    let (received, stall) = download
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    eprintln!("another MAC address: noticed after {noticed:?}, nothing came for {stall:?}");
    let (_, body) = received.split_at(received.len() - usize::try_from(BIG_SIZE)?);
    assert!(body == fs::read(lab.big_file())?, "the download differs");
    // About a second, and what TCP waits on top before it tries again; not the kernel's 30 s and more.
    assert!(noticed < Duration::from_secs(4), "{noticed:?}");
    assert!(stall < Duration::from_secs(8), "{stall:?}");
    Ok(())
}

#[test]
fn a_real_server_that_is_gone_gets_nothing_until_it_is_back() -> Result<()> {
    let mut lab = lab(2, "rr")?;
    let both = Load::sequential(VIP, 10).run(lab.client())?;
    assert_eq!(
        both.counts().into_iter().collect::<Vec<_>>(),
        [("rs1", 5), ("rs2", 5)]
    );

    lab.topology().set_plugged("rs2", "eth0", false)?;
    let noticed = wait_for("rs2 to be unreachable", || {
        Ok(server(&lab, 2)?.state == ServerState::Unreachable)
    })?;
    eprintln!("a real server that is gone was noticed after {noticed:?}");
    let alone = Load::sequential(VIP, 100).run(lab.client())?;
    assert_eq!(alone.failures(), []);
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 100)]);
    let warnings = status(&lab)?.warnings;
    assert!(
        warnings.iter().any(|line| line.contains("192.168.2.210")),
        "{warnings:?}"
    );

    // An agent that has just started does not try it again at the clients' cost.
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&agent_config())?;
    let alone = Load::sequential(VIP, 100).run(lab.client())?;
    assert_eq!(alone.failures(), []);
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 100)]);

    lab.topology().set_plugged("rs2", "eth0", true)?;
    let back = wait_for("rs2 to be back", || {
        Ok(server(&lab, 2)?.state == ServerState::Ready)
    })?;
    eprintln!("a real server that is back was noticed after {back:?}");
    let both = Load::sequential(VIP, 10).run(lab.client())?;
    assert_eq!(
        both.counts().into_iter().collect::<Vec<_>>(),
        [("rs1", 5), ("rs2", 5)]
    );
    Ok(())
}

#[test]
fn the_desired_state_survives_a_reboot() -> Result<()> {
    let mut lab = lab(3, "rr")?;
    for command in [
        "-A -u 192.168.2.100:53 -s sh -b sh-fallback,sh-port",
        "-A -t 192.168.2.100:443 -s wrr",
        "-a -t 192.168.2.100:443 -r 192.168.2.210:443 -g -w 3",
        "-a -t 192.168.2.100:443 -r 192.168.2.220:443 -g -w 0",
        "-a -t 192.168.2.100:443 -r 192.168.2.221:443 -g -w 2147483647",
        "-d -t 192.168.2.100:443 -r 192.168.2.210:443",
        "-a -t 192.168.2.100:443 -r 192.168.2.210:443 -g -w 7",
        "-E -t 192.168.2.100:443 -s fo",
    ] {
        lab.ipvsadm(command.split_whitespace())?;
    }
    let configured = |lab: &Lab| -> Result<Vec<_>> {
        Ok(services(lab)?
            .into_iter()
            .map(|service| {
                let servers: Vec<_> = service.servers.into_iter().map(|server| server.spec).collect();
                (service.spec, servers)
            })
            .collect())
    };
    let before = configured(&lab)?;
    assert_eq!(before.len(), 3);
    lab.fetch("/")?;
    let mut left = OpenConnection::new(&lab)?;

    // After a reboot the disk is all there is.
    lab.agent_mut()?.terminate()?;
    fs::remove_dir_all(lab.agent()?.pin_dir())?;
    wait_for("the program to be gone", || {
        Ok(!lab
            .director()
            .ip("-details link show dev eth0")?
            .contains("prog/xdp"))
    })?;
    lab.agent_mut()?.launch(&agent_config())?;

    assert_eq!(configured(&lab)?, before);
    assert_eq!(counted_connections(&lab)?, 0);
    let asked = Load::sequential(VIP, 6).run(lab.client())?;
    assert_eq!(asked.failures(), []);
    assert_eq!(asked.answers().collect::<Vec<_>>(), lab.round_robin_answers(6));
    // Its entry is gone with the maps: IPVS resets such a connection, or leaves it to the kernel.
    assert!(left.ask().is_err());
    Ok(())
}

#[test]
fn a_deleted_service_drops_what_is_open_and_revives_it() -> Result<()> {
    let lab = lab(2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    assert_eq!(server(&lab, 2)?.active, 1);

    lab.ipvsadm(["-D", "-t", "192.168.2.100:80"])?;
    assert_eq!(services(&lab)?, []);
    open.send()?;
    open.expect_silence(Duration::from_millis(1200))?;

    lab.add_service("rr")?;
    // The client's kernel repeats the request by itself.
    assert_eq!(open.receive()?, "rs2");
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(server(&lab, 2)?.active, 1);
    let destination = destinations(&lab)?.remove(&open.client()?);
    assert_eq!(destination, Some(SocketAddr::from((real_server_address(2), 80))));
    Ok(())
}

#[test]
fn a_real_server_that_is_removed_and_added_again_keeps_its_connections() -> Result<()> {
    let lab = lab(2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    let counted = server(&lab, 2)?.stats.connections;
    let rs2 = real_server_address(2).to_string();

    lab.ipvsadm(["-d", "-t", "192.168.2.100:80", "-r", &rs2])?;
    assert_eq!(servers(&lab)?.len(), 1);
    let alone = Load::sequential(VIP, 10).run(lab.client())?;
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 10)]);

    lab.ipvsadm(["-a", "-t", "192.168.2.100:80", "-r", &rs2, "-g"])?;
    assert_eq!(open.ask()?, "rs2");
    let listed = server(&lab, 2)?;
    assert_eq!(listed.active, 1);
    assert!(listed.stats.connections >= counted, "{listed:?}");
    let table = lab.ipvsadm(["-L", "-n"])?;
    let line = table
        .lines()
        .find(|line| line.contains(&rs2))
        .context("rs2 is not listed")?;
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["->", "192.168.2.210:80", "Route", "1", "1", "0"]
    );
    Ok(())
}

#[test]
fn changes_made_at_once_are_all_made() -> Result<()> {
    const CHANGES: u16 = 10;
    let mut lab = lab(2, "rr")?;
    let load = Load::steady(VIP, LOOP_RATE, Duration::from_secs(2)).start(lab.client())?;
    let mut commands = Vec::new();
    for port in 8000..8000 + CHANGES {
        let service = format!("{VIP}:{port}");
        commands.push(lab.agent()?.client(["service", "add", "tcp", &service]));
    }
    for last in 100..100 + CHANGES {
        let server = format!("192.168.2.{}", last + 1);
        commands.push(lab.agent()?.client([
            "server",
            "add",
            "tcp",
            "192.168.2.100:80",
            &server,
            "--weight",
            "0",
        ]));
    }
    let running: Vec<_> = commands
        .into_iter()
        .map(|command| std::thread::spawn(|| output(command, COMMAND_LIMIT)))
        .collect();
    for thread in running {
        let ended = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        assert!(ended.status.success(), "{ended:?}");
    }
    let check = |lab: &Lab| -> Result<()> {
        let services = services(lab)?;
        assert_eq!(services.len(), usize::from(CHANGES) + 1);
        let ports: Vec<_> = services.iter().map(|service| service.spec.key.port).collect();
        assert!(
            (8000..8000 + CHANGES).all(|port| ports.contains(&port)),
            "{ports:?}"
        );
        assert_eq!(servers(lab)?.len(), usize::from(CHANGES) + 2);
        Ok(())
    };
    check(&lab)?;
    assert_eq!(load.finish()?.failures(), []);
    // What was acknowledged was kept, too.
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&agent_config())?;
    check(&lab)
}

#[test]
fn unload_removes_what_a_dead_agent_has_left() -> Result<()> {
    let mut lab = lab(1, "rr")?;
    lab.agent_mut()?.kill()?;
    assert_eq!(lab.fetch("/")?, "rs1\n", "forwarding needs no agent");
    let pins = lab.agent()?.pin_dir().to_owned();
    let unload = ["unload".as_ref(), "--pin-dir".as_ref(), pins.as_os_str()];
    assert_eq!(lab.cli(unload)?, "");
    assert!(!pins.exists(), "{} is still there", pins.display());
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(!shown.contains("prog/xdp"), "{shown}");
    let again = lab.cli_output(unload)?;
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("nothing is loaded"), "{message}");
    Ok(())
}

#[test]
fn unload_takes_the_program_off_and_ends_the_agent() -> Result<()> {
    let mut lab = lab(1, "rr")?;
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let (pins, socket) = {
        let agent = lab.agent()?;
        (agent.pin_dir().to_owned(), agent.socket())
    };
    assert!(pins.exists());
    assert_eq!(lab.cli(["unload"])?, "");
    assert!(!pins.exists(), "{} is still there", pins.display());
    let ended = lab.agent_mut()?.terminate()?;
    assert_eq!(ended.code(), Some(0), "{}", lab.agent()?.log()?);
    assert!(!Path::new(&socket).exists());
    let shown = lab.director().ip("-details link show dev eth0")?;
    assert!(!shown.contains("prog/xdp"), "{shown}");
    // The VIP is the director's own again, and nobody listens there.
    let refused = lab.fetch("/").err().context("somebody forwards still")?;
    assert!(format!("{refused:#}").contains("curl: (7)"), "{refused:#}");
    Ok(())
}
