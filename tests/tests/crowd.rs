//! Very many connections: the table half full, a flood of SYNs, and a million short connections on a
//! running director; all of it by the real program, on every CPU at once.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lvs_xdp::{
    api::types::{Change, Persistence, Protocol, Scheduler, ServiceKey, ServiceSpec},
    dataplane::trial::Trials,
};
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::{
    agent::AgentConfig,
    frame::{Frame, tcp},
    lab::{Lab, LabConfig, VIP, real_server_address},
    trial::{Director, add_server, service_key, xdp},
};

/// Threads that send at once, each on a CPU of its own where there are as many.
const SENDERS: u32 = 2;
const SERVERS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 9, 0, 11),
    Ipv4Addr::new(10, 9, 0, 12),
    Ipv4Addr::new(10, 9, 0, 13),
    Ipv4Addr::new(10, 9, 0, 14),
];

/// One thread's way to send frames: a TCP frame to a VIP of which client and flags change.
struct Sender {
    trials: Trials,
    frame: Vec<u8>,
    out: Vec<u8>,
}

impl Sender {
    fn new(trials: Trials, vip: Ipv4Addr) -> Self {
        let mut frame = Frame::tcp((Ipv4Addr::UNSPECIFIED, 0), (vip, 80), 0);
        frame.payload.clear();
        let frame = frame.bytes();
        Self {
            trials,
            out: vec![0; frame.len() + 64],
            frame,
        }
    }

    /// The real server that a packet of a client goes to, by the last octet of its MAC address; `None` where
    /// it goes nowhere.
    fn send(&mut self, client: (u32, u16), flags: u8) -> Option<u8> {
        self.frame[26..30].copy_from_slice(&client.0.to_be_bytes());
        self.frame[34..36].copy_from_slice(&client.1.to_be_bytes());
        self.frame[47] = flags;
        let action = self.trials.run(&self.frame, &mut self.out).expect("a trial");
        let is_forwarded = action == xdp::TX || action == xdp::REDIRECT;
        // An answer goes back to where the frame came from.
        (is_forwarded && self.out[..6] != self.frame[6..12]).then(|| self.out[5])
    }
}

/// Runs `work` on every sender at once, with its number.
fn at_once<T: Send>(work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..SENDERS)
            .map(|number| {
                scope.spawn(move || {
                    let mut cpus = nix::sched::CpuSet::new();
                    let cpu = number as usize % thread::available_parallelism().map_or(1, usize::from);
                    if cpus.set(cpu).is_ok() {
                        // Where the CPU is not ours to choose the scheduler does it.
                        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus);
                    }
                    work(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a sender does not panic"))
            .collect()
    })
}

/// The `number`-th of very many clients, all different.
fn client(number: u32) -> (u32, u16) {
    let port = u16::try_from(1024 + number % 50_000).expect("a port");
    (0x0a40_0000 + number / 50_000 * 7 + number % 7, port)
}

fn director(
    connections: u32,
    scheduler: Scheduler,
    persistence: Option<Persistence>,
) -> (Director, ServiceKey) {
    let mut director = Director::new(connections).expect("a director");
    let key = service_key(Protocol::Tcp, VIP, 80);
    let mut changes = vec![Change::AddService {
        service: ServiceSpec {
            persistence,
            ..ServiceSpec::new(key, scheduler)
        },
    }];
    for server in SERVERS {
        director.resolve(server);
        changes.push(add_server(key, server, 1));
    }
    director.change(&changes).expect("the change fits");
    (director, key)
}

fn sender(director: &Director) -> Sender {
    Sender::new(Trials::open(director.pins()).expect("the program is pinned"), VIP)
}

fn count_of(director: &Director, reason: Reason) -> u64 {
    let reasons = director.dataplane.reasons();
    reasons[reason as usize].packets
}

fn active(director: &Director, service: &ServiceKey) -> u64 {
    SERVERS
        .iter()
        .map(|server| director.counts(service, *server).0)
        .sum()
}

#[test]
fn half_a_table_of_established_connections_displaces_none() {
    const CAPACITY: u32 = 1 << 20;
    const CONNECTIONS: u32 = CAPACITY / 2;
    let (director, service) = director(CAPACITY, Scheduler::Rr, None);
    let kept: Vec<AtomicU32> = (0..CONNECTIONS).map(|_| AtomicU32::new(0)).collect();
    at_once(|number| {
        let mut sender = sender(&director);
        for connection in (number..CONNECTIONS).step_by(SENDERS as usize) {
            if let Some(server) = sender.send(client(connection), tcp::SYN) {
                assert_eq!(sender.send(client(connection), tcp::ACK), Some(server));
                kept[connection as usize].store(u32::from(server), Ordering::Relaxed);
            }
        }
    });
    let refused = kept
        .iter()
        .filter(|server| server.load(Ordering::Relaxed) == 0)
        .count() as u64;
    assert_eq!(
        refused,
        [Reason::TableFull, Reason::TagCollision, Reason::InsertRace]
            .map(|reason| count_of(&director, reason))
            .iter()
            .sum::<u64>(),
        "each was refused once, for a reason that is counted"
    );
    println!("{refused} of {CONNECTIONS} connections found no place");
    assert!(
        refused <= 4,
        "{refused} of {CONNECTIONS} connections found no place"
    );
    assert_eq!(active(&director, &service), u64::from(CONNECTIONS) - refused);
    let lost = at_once(|number| {
        let mut sender = sender(&director);
        let mine = (number..CONNECTIONS).step_by(SENDERS as usize);
        let kept = mine.map(|connection| (connection, kept[connection as usize].load(Ordering::Relaxed)));
        kept.filter(|(_, server)| *server != 0)
            .filter(|(connection, server)| {
                sender.send(client(*connection), tcp::ACK).map(u32::from) != Some(*server)
            })
            .count()
    });
    assert_eq!(lost.iter().sum::<usize>(), 0);
}

/// What became of connections that were tried during a flood, by how many SYNs of the flood came between the
/// client's SYN and its ACK.
fn flood(scheduler: Scheduler, persistence: Option<Persistence>, syns: u32) {
    const CAPACITY: u32 = 1 << 16;
    const ESTABLISHED: u32 = 20_000;
    const DELAYS: [u32; 3] = [100, 5_000, 50_000];
    let (director, service) = director(CAPACITY, scheduler, persistence);
    let mut first = sender(&director);
    let mut established = Vec::new();
    for number in 0..ESTABLISHED {
        let server = first.send(client(number), tcp::SYN);
        assert_eq!(first.send(client(number), tcp::ACK), server);
        established.extend(server.map(|server| (number, server)));
    }
    assert!(established.len() as u32 > ESTABLISHED - 4);
    let before = active(&director, &service);

    let tried: [AtomicU64; 3] = Default::default();
    let succeeded: [AtomicU64; 3] = Default::default();
    at_once(|number| {
        let mut sender = sender(&director);
        // xorshift: the flood's addresses and ports, all over the place.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(number + 1);
        let mut pending: Vec<(u32, usize, (u32, u16), u8)> = Vec::new();
        for sent in 0..syns / SENDERS {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let source = ((state >> 32) as u32 | 0x8000_0000, (state & 0xffff) as u16);
            sender.send(source, tcp::SYN);
            if sent % 1_000 == 0 {
                let which = (sent / 1_000) as usize % DELAYS.len();
                let honest = client(1_000_000 + number * 1_000_000 + sent / 1_000);
                tried[which].fetch_add(1, Ordering::Relaxed);
                if let Some(server) = sender.send(honest, tcp::SYN) {
                    pending.push((sent + DELAYS[which] / SENDERS, which, honest, server));
                }
            }
            if sent % 50 == 0 {
                pending.retain(|&(due, which, honest, server)| {
                    if due > sent {
                        return true;
                    }
                    if sender.send(honest, tcp::ACK) == Some(server) {
                        succeeded[which].fetch_add(1, Ordering::Relaxed);
                    }
                    false
                });
            }
        }
        // Those that the flood's end has left.
        for (_, which, ..) in pending {
            tried[which].fetch_sub(1, Ordering::Relaxed);
        }
    });
    let lost = established
        .iter()
        .filter(|(number, server)| first.send(client(*number), tcp::ACK) != Some(*server))
        .count();
    assert_eq!(lost, 0, "established connections lost their server");
    for ((delay, tried), succeeded) in DELAYS.iter().zip(&tried).zip(&succeeded) {
        let (tried, succeeded) = (tried.load(Ordering::Relaxed), succeeded.load(Ordering::Relaxed));
        println!(
            "{scheduler}: ACK {delay} SYNs of the flood after the SYN: {succeeded} of {tried} connections established"
        );
        // What comes later is reported; these must not be hurt.
        assert!(
            *delay > 100 || succeeded * 100 >= tried * 95,
            "{succeeded} of {tried}"
        );
    }
    for reason in [
        Reason::NewConnection,
        Reason::TableFull,
        Reason::TagCollision,
        Reason::InsertRace,
    ] {
        println!("{scheduler}: {}: {}", reason.name(), count_of(&director, reason));
    }
    assert!(
        active(&director, &service) >= before,
        "what was established is still counted"
    );
    assert!(
        active(&director, &service) <= u64::from(CAPACITY),
        "memory is bounded"
    );
}

#[test]
fn a_flood_of_ten_million_syns_displaces_no_established_connection() {
    flood(Scheduler::Wlc, None, 10_000_000);
}

#[test]
fn a_flood_on_a_persistent_service_displaces_no_established_connection() {
    let persistence = Persistence {
        timeout: 360,
        mask: None,
    };
    flood(Scheduler::Rr, Some(persistence), 1_000_000);
}

#[test]
fn a_million_short_connections_leave_counts_of_exactly_zero() {
    const CONNECTIONS: u32 = 1_000_000;
    let lab = Lab::start(LabConfig {
        real_servers: 4,
        agent: AgentConfig {
            connections: Some(1 << 20),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })
    .expect("the lab");
    // Templates outlive the connections that they control, those that are reset (10 s) among them.
    lab.ipvsadm(["-A", "-t", &format!("{VIP}:80"), "-s", "wlc", "-p", "15"])
        .expect("-A");
    for number in 1..=4 {
        let address = real_server_address(number).to_string();
        lab.ipvsadm(["-a", "-t", &format!("{VIP}:80"), "-r", &address, "-g"])
            .expect("-a");
    }
    lab.ipvsadm(["--set", "2", "2", "2"]).expect("--set");

    let pins = lab.agent().expect("an agent").pin_dir();
    let forwarded: u64 = at_once(|number| {
        let mut sender = Sender::new(Trials::open(pins).expect("the program is pinned"), VIP);
        let mut forwarded = 0;
        for connection in (number..CONNECTIONS).step_by(SENDERS as usize) {
            let client = client(connection);
            if let Some(server) = sender.send(client, tcp::SYN) {
                forwarded += 1;
                let end = if connection % 5 == 0 {
                    tcp::RST
                } else {
                    tcp::FIN | tcp::ACK
                };
                for flags in [tcp::ACK, end] {
                    assert_eq!(sender.send(client, flags), Some(server));
                }
            }
        }
        forwarded
    })
    .iter()
    .sum();
    assert!(
        forwarded >= u64::from(CONNECTIONS) - 16,
        "{forwarded} of {CONNECTIONS}"
    );

    let started = Instant::now();
    loop {
        let services: serde_json::Value =
            serde_json::from_str(&lab.cli(["server", "list", "--json"]).expect("a list")).expect("JSON");
        let servers = services.as_array().expect("a list of servers");
        let sum = |name: &str| -> u64 {
            servers
                .iter()
                .map(|server| server[name].as_u64().expect(name))
                .sum()
        };
        let counts = ["active", "inactive", "persistent"].map(sum);
        if counts == [0; 3] {
            let connections: u64 = servers
                .iter()
                .map(|server| server["stats"]["connections"].as_u64().expect("a number"))
                .sum();
            assert_eq!(connections, forwarded, "every connection was counted once");
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(90),
            "still counted: {counts:?}"
        );
        thread::sleep(Duration::from_millis(500));
    }
}
