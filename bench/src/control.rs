//! `cargo xtask bench --control`: what changes, lists and tables cost the agent, and how that grows.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lvs_xdp::{
    api::{
        client::BlockingClient,
        types::{Change, Protocol, Scheduler, ServiceKey, Timeouts},
    },
    dataplane::{self, trial::Trials},
};
use lvs_xdp_tests::{
    agent::AgentConfig,
    frame::tcp,
    lab::{Lab, LabConfig},
    trial::{add_server, add_service, delete_server, edit_server, service_key, xdp},
};
use serde::Serialize;

use crate::{
    floors::{Floors, Order, Run, Stream},
    frames::{PORT, Template, virtual_address},
    measure::percentile,
};

/// Services, and real servers of each.
const SIZES: [(u32, u32); 7] = [
    (100, 10),
    (1_000, 10),
    (10_000, 10),
    (1_000, 1),
    (1_000, 100),
    (1_000, 300),
    (1_000, 1_000),
];
/// Real servers that an agent takes: an entry has 20 bits for one.
const MOST_DESTINATIONS: u32 = (1 << 20) - 1;
/// Entries of the tables that are passed over.
const TABLES: [u32; 2] = [1 << 20, 1 << 23];
/// Changes in one request: a tenth of what one may have.
const CHANGES: usize = 50_000;
/// Changes and questions that are timed one by one.
const TRIES: usize = 30;
/// How long the agent is watched.
const WATCH: Duration = Duration::from_secs(10);

/// What a configuration of one size costs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Size {
    pub(crate) services: u32,
    pub(crate) servers_each: u32,
    /// Seconds until all of it is live and durable, sent in requests of [`CHANGES`] to an agent that knows the real
    /// servers' MAC addresses, and nothing else.
    pub(crate) load: f64,
    /// Milliseconds that one weight takes, a real server more, and one less: medians; and of the weight the ninetieth
    /// percentile.
    pub(crate) change: [f64; 4],
    /// Of these the kernel's grace period, the median.
    grace: f64,
    /// Milliseconds that one service takes to be listed.
    one: f64,
    /// Seconds that all take to be listed; nothing, where that is more than a client waits.
    list: Option<f64>,
    /// Answers to `status` a second.
    status: f64,
    /// Percent of a CPU that the agent takes with it while nothing happens.
    idle: f64,
    /// Seconds from the start of an agent that restores it to its readiness.
    pub(crate) restart: f64,
    /// The agent's memory in MiB: all of it, and what is its own alone.
    memory: [u64; 2],
}

/// What a connection table of one size costs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Table {
    entries: u32,
    connections: u64,
    /// Percent of a CPU that the agent takes with an empty table, with these connections, and while all of them expire.
    share: [f64; 3],
    /// Seconds until all of them were listed, and until all had expired and gone.
    list: f64,
    expiry: f64,
    /// The agent's largest memory in MiB.
    memory: u64,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Control {
    pub(crate) sizes: Vec<Size>,
    pub(crate) tables: Vec<Table>,
}

impl Size {
    /// All real servers of all services.
    pub(crate) fn destinations(&self) -> u32 {
        self.services * self.servers_each
    }
}

/// Measures all of it, or the rows whose name contains a text.
///
/// # Errors
///
/// When the lab or an agent does not start, or something is refused.
pub(crate) fn run(only: Option<&str>) -> Result<Control> {
    let is_meant = |name: &str| {
        let is_meant = only.is_none_or(|text| name.contains(text));
        if is_meant {
            eprintln!("{name}");
        }
        is_meant
    };
    let mut sizes = Vec::new();
    for (services, servers) in SIZES {
        if is_meant(&format!("{services} services x {servers} real servers")) {
            sizes.push(size(services, servers)?);
        }
    }
    let mut tables = Vec::new();
    for entries in TABLES {
        if is_meant(&format!("a table of {entries} entries")) {
            tables.push(table(entries)?);
        }
    }
    Ok(Control { sizes, tables })
}

fn start(arguments: &[&str], connections: u32) -> Result<Lab> {
    Lab::start(LabConfig {
        real_servers: 1,
        agent: AgentConfig {
            connections: Some(connections),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..AgentConfig::default()
        },
        binary: None,
    })
}

fn service(number: u32) -> ServiceKey {
    service_key(Protocol::Tcp, virtual_address(number, false), PORT)
}

/// One host has the addresses of all real servers.
fn address(number: u32) -> Ipv4Addr {
    if number < 10 {
        Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 2, 230).to_bits() + number)
    } else {
        Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 16, 0).to_bits() + number)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn size(services: u32, servers: u32) -> Result<Size> {
    let _room = NeighbourRoom::raise()?;
    let destinations = ((services + 1) * servers + 64)
        .next_power_of_two()
        .min(MOST_DESTINATIONS)
        .to_string();
    let room = (services + 64).next_power_of_two().to_string();
    let arguments = ["--services", &room, "--destinations", &destinations];
    let mut lab = start(&arguments, 1 << 16)?;
    prepare(&lab, servers)?;
    let mut client = BlockingClient::new(lab.agent()?.socket());
    let pid = pid(&lab)?;

    // Their MAC addresses are known before anything is timed: whoever comes or goes changes the lists of all services.
    let last = service(services);
    let mut changes = vec![add_service(last, Scheduler::Rr, &[])];
    changes.extend((0..servers).map(|number| add_server(last, address(number), 1)));
    client.change(changes)?;
    let started = Instant::now();
    while client
        .service(last)?
        .servers
        .iter()
        .any(|server| server.effective_weight == 0)
    {
        ensure!(
            started.elapsed() < Duration::from_secs(60),
            "not all real servers have answered after a minute"
        );
        sleep(Duration::from_millis(200));
    }
    let mut changes = Vec::new();
    for number in 0..services {
        let key = service(number);
        changes.push(add_service(key, Scheduler::Wlc, &[]));
        changes.extend((0..servers).map(|number| add_server(key, address(number), 1)));
    }
    let started = Instant::now();
    for part in changes.chunks(CHANGES) {
        client.change(part.to_vec())?;
    }
    let load = started.elapsed().as_secs_f64();
    drop(changes);

    let mut times: [Vec<f64>; 4] = Default::default();
    for number in 0..TRIES {
        let key = service(number as u32 * services / TRIES as u32);
        let changes = [
            edit_server(key, address(0), 2),
            delete_server(key, address(0)),
            add_server(key, address(0), 1),
        ];
        for (change, times) in changes.into_iter().zip(&mut times) {
            let started = Instant::now();
            client.change(vec![change])?;
            times.push(milliseconds(started.elapsed()));
        }
        let started = Instant::now();
        dataplane::grace()?;
        times[3].push(milliseconds(started.elapsed()));
    }
    let [weights, less, more, grace] = &mut times;
    let change = [
        percentile(weights, 50),
        percentile(more, 50),
        percentile(less, 50),
        percentile(weights, 90),
    ];
    let grace = percentile(grace, 50);
    let started = Instant::now();
    for _ in 0..TRIES {
        client.service(service(services / 2))?;
    }
    let one = milliseconds(started.elapsed()) / TRIES as f64;
    let started = Instant::now();
    for _ in 0..TRIES {
        client.status()?;
    }
    let status = TRIES as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    let listed = client.services();
    let list = listed.is_ok().then(|| started.elapsed().as_secs_f64());
    drop(listed);
    let memory = [memory(pid, "VmRSS")?, memory(pid, "RssAnon")?];
    let idle = share(pid, WATCH)?;

    let config = lab.config().agent.clone();
    let agent = lab.agent_mut()?;
    agent.terminate()?;
    let started = Instant::now();
    agent.launch(&config)?;
    let restart = started.elapsed().as_secs_f64();
    Ok(Size {
        services,
        servers_each: servers,
        load,
        change,
        grace,
        one,
        list,
        status,
        idle,
        restart,
        memory,
    })
}

/// More neighbours than the kernel has room for by default: from 512 on it throws away what is still of use.
struct NeighbourRoom(Vec<(String, String)>);

impl NeighbourRoom {
    fn raise() -> Result<Self> {
        let mut before = Self(Vec::new());
        // The highest first: each must be above the one before.
        for (number, room) in [(3, "16384"), (2, "8192"), (1, "8192")] {
            let path = format!("/proc/sys/net/ipv4/neigh/default/gc_thresh{number}");
            let value = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            fs::write(&path, room).with_context(|| format!("cannot write {path}"))?;
            before.0.push((path, value));
        }
        Ok(before)
    }
}

impl Drop for NeighbourRoom {
    fn drop(&mut self) {
        for (path, value) in self.0.iter().rev() {
            if let Err(error) = fs::write(path, value) {
                eprintln!("{path} is not what it was, {}: {error}", value.trim_end());
            }
        }
    }
}

/// Gives the one real server of the lab the addresses of all.
fn prepare(lab: &Lab, servers: u32) -> Result<()> {
    let netns = lab.real_servers()[0].netns();
    if servers > 10 {
        lab.director().ip("address add 192.168.16.1/20 dev eth0")?;
    }
    for number in 0..servers {
        netns.ip(&format!("address add {}/20 dev eth0", address(number)))?;
    }
    Ok(())
}

fn pid(lab: &Lab) -> Result<u32> {
    lab.agent()?.pid().context("the agent runs")
}

/// A line of /proc/PID/status, in MiB.
fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("/proc has no {name}"))? / 1024)
}

/// Seconds of CPU that a process has taken.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may have spaces: utime and stime are the 12th and 13th, in hundredths (USER_HZ).
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// Percent of a CPU that a process takes for so long.
fn share(pid: u32, time: Duration) -> Result<f64> {
    let before = cpu(pid)?;
    sleep(time);
    Ok((cpu(pid)? - before) / time.as_secs_f64() * 100.0)
}

fn table(entries: u32) -> Result<Table> {
    // Frames of trials come from the loopback interface.
    let lab = start(&["--interface", "lo"], entries)?;
    prepare(&lab, 1)?;
    let mut client = BlockingClient::new(lab.agent()?.socket());
    let pid = pid(&lab)?;
    let key = service(0);
    client.change(vec![
        add_service(key, Scheduler::Rr, &[]),
        add_server(key, address(0), 1),
    ])?;
    let empty = share(pid, WATCH)?;

    let connections = u64::from(entries / 2);
    fill(lab.agent()?.pin_dir(), connections)?;
    let filled = share(pid, WATCH)?;
    let started = Instant::now();
    let mut listed = 0;
    client.each_connection(|_| listed += 1)?;
    let list = started.elapsed().as_secs_f64();
    let memory = memory(pid, "VmHWM")?;

    let before = cpu(pid)?;
    let started = Instant::now();
    client.change(vec![Change::SetTimeouts {
        timeouts: Timeouts {
            tcp: 1,
            ..Timeouts::default()
        },
    }])?;
    let left = |client: &mut BlockingClient| -> Result<u64> {
        let service = client.service(key)?;
        let counts = service.servers.iter().map(|server| server.active);
        Ok(counts.sum())
    };
    while left(&mut client)? > 0 && started.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(500));
    }
    ensure!(
        left(&mut client)? == 0,
        "not all connections have gone after two minutes"
    );
    let expiry = started.elapsed().as_secs_f64();
    Ok(Table {
        entries,
        connections: listed,
        share: [empty, filled, (cpu(pid)? - before) / expiry * 100.0],
        list,
        expiry,
        memory,
    })
}

/// Enters so many connections into the table of the program that is pinned there.
fn fill(pins: &Path, connections: u64) -> Result<()> {
    let mut floors = Floors::load(1 << 10, 1, Template::tcp(PORT, 0).virtual_address)?;
    let program: ProgramFd = Trials::open(pins)?.program()?;
    for flags in [tcp::SYN, tcp::ACK] {
        let mut template = Template::tcp(PORT, flags);
        // The loopback interface's own address.
        template.bytes[..6].fill(0);
        floors.run(&mut Run {
            program: &program,
            stream: Stream {
                template: &template,
                flows: connections,
                services: 1,
                order: Order::FILL,
            },
            position: &mut 0,
            packets: u32::try_from(connections)?,
            action: xdp::REDIRECT,
        })?;
    }
    Ok(())
}

/// How many times as much something costs for each doubling of the table from one size to another: 2 where it grows as
/// the table does, 4 where with its square.
fn doubling(from: &Size, to: &Size, what: impl Fn(&Size) -> f64) -> String {
    let doublings = (f64::from(to.destinations()) / f64::from(from.destinations())).log2();
    format!("{:.1}", (what(to) / what(from)).powf(1.0 / doublings))
}

/// As it is printed.
pub(crate) fn text(control: &Control) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>9}{:>9}{:>8}{:>5}{:>18}{:>5}{:>8}{:>8}{:>10}{:>8}{:>8}{:>10}{:>11}{:>5}{:>7}{:>12}",
        "services",
        "servers",
        "load s",
        "x2",
        "weight ms (90%)",
        "x2",
        "add ms",
        "del ms",
        "grace ms",
        "one ms",
        "all s",
        "status/s",
        "restart s",
        "x2",
        "idle %",
        "MiB (own)"
    );
    for (number, size) in control.sizes.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| &control.sizes[before]);
        let before = before.filter(|before| before.destinations() < size.destinations());
        let growth =
            |what: fn(&Size) -> f64| before.map_or(String::new(), |before| doubling(before, size, what));
        let _ = writeln!(
            out,
            "{:>9}{:>9}{:>8.2}{:>5}{:>18}{:>5}{:>8.1}{:>8.1}{:>10.1}{:>8.1}{:>8}{:>10.0}{:>11.2}{:>5}{:>7.1}{:>12}",
            size.services,
            size.servers_each,
            size.load,
            growth(|size| size.load),
            format!("{:.1} ({:.1})", size.change[0], size.change[3]),
            growth(|size| size.change[0]),
            size.change[1],
            size.change[2],
            size.grace,
            size.one,
            size.list.map_or("-".to_owned(), |list| format!("{list:.2}")),
            size.status,
            size.restart,
            growth(|size| size.restart),
            size.idle,
            format!("{} ({})", size.memory[0], size.memory[1])
        );
    }
    let _ = writeln!(
        out,
        "\n{:>9}{:>13}{:>12}{:>12}{:>14}{:>10}{:>10}{:>9}",
        "entries", "connections", "empty CPU%", "filled CPU%", "expiring CPU%", "list s", "expiry s", "MiB"
    );
    for table in &control.tables {
        let [empty, filled, expiring] = table.share;
        let _ = writeln!(
            out,
            "{:>9}{:>13}{empty:>12.1}{filled:>12.1}{expiring:>14.1}{:>10.2}{:>10.2}{:>9}",
            table.entries, table.connections, table.list, table.expiry, table.memory
        );
    }
    out
}
