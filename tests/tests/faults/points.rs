//! The agent's work on the maps is broken off before each of its writes, all of them one after the other, and taken up
//! again by its successor, which is broken off, too.

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::{
    api::types::{Change, Protocol, Scheduler, ServerKey, ServerSpec, ServiceKey, ServiceSpec},
    config,
    model::Model,
};
use lvs_xdp_common::crash;
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    lab::VIP,
    trial::{Director, LOOPBACK, xdp},
};

use crate::tables::{FRAMES, PORTS, Services, Shares, TABLES, followed, note, server, servers};

thread_local! {
    /// So many writes are left until the end; none where it is not to come.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// What a work ends with that was broken off.
struct Crashed;

fn at_point() {
    match LEFT.get() {
        Some(0 | 1) => {
            LEFT.set(None);
            resume_unwind(Box::new(Crashed));
        }
        left => LEFT.set(left.map(|left| left - 1)),
    }
}

/// Does something up to a write; whether it was broken off there.
fn broken_off(point: usize, work: impl FnOnce() -> Result<()>) -> Result<bool> {
    LEFT.set(Some(point));
    let ended = catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match ended {
        Ok(result) => result.map(|()| false),
        Err(payload) if payload.is::<Crashed>() => Ok(true),
        Err(payload) => resume_unwind(payload),
    }
}

fn model(services: Services) -> Result<Model> {
    let mut model = Model::default();
    for (port, scheduler, servers) in services {
        let key = ServiceKey::new(Protocol::Tcp, VIP.into(), *port);
        let scheduler: Scheduler = scheduler.parse().ok().context("no scheduler")?;
        let mut changes = vec![Change::AddService {
            service: ServiceSpec::new(key, scheduler),
        }];
        changes.extend(servers.iter().map(|&(last, weight)| {
            let server_key = ServerKey {
                address: server(last),
                port: *port,
            };
            Change::AddServer {
                service: key,
                server: ServerSpec::new(server_key, weight),
                require_on_link: false,
            }
        }));
        model.apply(&changes)?;
    }
    Ok(model)
}

struct Clients {
    director: Director,
    /// Seconds of its clock.
    now: u32,
    /// The last one.
    number: u32,
    /// The last client of each port and real server, with a connection.
    connected: BTreeMap<(u16, u8), Ipv4Addr>,
}

impl Clients {
    /// All connections end, and the rows of removed real servers are free again; who frees them is broken off before
    /// this write.
    fn forget(&mut self, point: usize) -> Result<()> {
        self.now += 1000;
        self.director.stop_clock(self.now)?;
        let left = self.director.dataplane.tables().sweep();
        ensure!(left == 0, "{left} connections are left");
        let director = &mut self.director;
        let reap = || {
            director.reap();
            Ok(())
        };
        if broken_off(point, reap)? {
            self.director.adopt(servers())?;
            self.director.reap();
        }
        self.connected.clear();
        Ok(())
    }

    /// Which table the first packets of new clients go by.
    fn followed(&mut self) -> Result<usize> {
        let mut all = BTreeMap::new();
        for port in PORTS {
            let mut shares = Shares::new();
            for _ in 0..FRAMES {
                self.number += 1;
                let client = Ipv4Addr::from(0x0a00_0000 + self.number);
                if let Some(to) = self.send(client, port, tcp::SYN, &mut shares)? {
                    self.connected.insert((port, to), client);
                }
            }
            all.insert(port, shares);
        }
        followed(&all)
    }

    /// Has a client send a packet; where it went.
    fn send(&mut self, client: Ipv4Addr, port: u16, flags: u8, shares: &mut Shares) -> Result<Option<u8>> {
        let frame = Frame::tcp((client, 40_000), (VIP, port), flags);
        let seen = self.director.dataplane.trial(&frame.bytes(), LOOPBACK)?;
        let before: usize = shares.values().sum();
        note(shares, seen.action, &seen.frame)?;
        let is_sent = shares.values().sum::<usize>() > before;
        Ok(is_sent.then(|| seen.frame[5]))
    }

    /// What is open goes on where its real server is in this table, and nowhere else does anything go.
    fn check_connected(&mut self, table: usize) -> Result<()> {
        for ((port, last), client) in self.connected.clone() {
            let mut services = TABLES[table].iter().filter(|(of, ..)| *of == port);
            let is_there = services.any(|(_, _, servers)| servers.iter().any(|(server, _)| *server == last));
            let went = self.send(client, port, tcp::ACK, &mut Shares::new())?;
            let expected = is_there.then_some(last);
            ensure!(
                went == expected,
                "port {port}, server {last}: it went to {went:?}"
            );
        }
        Ok(())
    }

    /// Brings the director from the table that is live to another one, broken off before this write, and has
    /// three successors, two of them broken off as well. False where the change has no such write.
    fn break_off(&mut self, point: usize, from: usize, to: usize, changes: &[Change]) -> Result<bool> {
        let director = &mut self.director;
        if !broken_off(point, || director.change_between_frames(changes))? {
            return Ok(false);
        }
        let first = self.followed().context("after the first one")?;
        // Other points of the successor's work each time, and all of them in the end.
        // Early and late, and at other points each time.
        for successors_point in [1 + point / 2, 1 + point * 3 / 2] {
            let director = &mut self.director;
            broken_off(successors_point, || director.adopt(servers()))?;
            let second = self.followed().context("after the next one")?;
            ensure!(first == from || second == to, "it went back");
        }
        self.director.adopt(servers())?;
        ensure!(self.followed()? == to, "it is not the table that was on disk");
        self.check_connected(to)?;
        self.director.reap();
        Ok(true)
    }
}

/// A director with the first table, whose writes are watched.
fn director() -> Result<Clients> {
    let mut director = Director::new(1 << 17)?;
    for server in servers() {
        director.resolve(server);
    }
    director.change(&config::diff(director.model(), &model(TABLES[0])?))?;
    crash::watch(at_point);
    Ok(Clients {
        director,
        now: 100_000,
        number: 0,
        connected: BTreeMap::new(),
    })
}

#[test]
fn broken_off_while_the_way_to_a_real_server_changes_it_is_one_way_in_the_end() -> Result<()> {
    /// No interface of this number is there, and none is needed for a trial.
    const ELSEWHERE: u32 = 1000;
    let mut clients = director()?;
    for point in 1.. {
        for server in servers() {
            clients.director.resolve_by(server, ELSEWHERE);
        }
        let director = &mut clients.director;
        // One real server of two services, of which one knows the way and the other does not yet.
        let resolve = || {
            director.resolve(server(10));
            Ok(())
        };
        if !broken_off(point, resolve)? {
            ensure!(point > 4, "only {point} writes");
            return Ok(());
        }
        clients.director.adopt(servers())?;
        for port in [80, 81] {
            for _ in 0..FRAMES {
                clients.number += 1;
                let client = Ipv4Addr::from(0x0a00_0000 + clients.number);
                let frame = Frame::tcp((client, 40_000), (VIP, port), tcp::SYN);
                let seen = clients.director.dataplane.trial(&frame.bytes(), LOOPBACK)?;
                ensure!(
                    seen.action == xdp::TX,
                    "broken off before write {point}: port {port}: {seen:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn broken_off_before_each_write_it_goes_by_the_old_table_or_the_new_one() -> Result<()> {
    let models = [model(TABLES[0])?, model(TABLES[1])?];
    let mut clients = director()?;
    let mut points = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        for point in 1.. {
            ensure!(clients.followed()? == from, "it is not where it was brought to");
            let changes = config::diff(&models[from], &models[to]);
            let is_broken_off = clients.break_off(point, from, to, &changes);
            if !is_broken_off.with_context(|| format!("before write {point} from {from} to {to}"))? {
                break;
            }
            points += 1;
            let back = config::diff(&models[to], &models[from]);
            clients.director.change_between_frames(&back)?;
            clients.check_connected(from)?;
            // Else a real server that was removed would keep its row, and be revived.
            clients.forget(1 + point % 40)?;
        }
    }
    println!("broken off before each of {points} writes");
    assert!(points > 250, "{points}");
    Ok(())
}
