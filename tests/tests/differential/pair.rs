//! Two directors with equal tables: one whose program is used, one whose tables the host works on.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use lvs_xdp::{
    api::types::Change,
    dataplane::{Capacity, Tables, compile::Way, rows},
};
use lvs_xdp_common::{
    abi::{control_flag, destination_flag, vip_flag},
    answer,
    atomic::Word,
    director,
    flow::Flow,
    frame::rewrite_macs,
    hash::HashKey,
    maps::Maps as _,
    packet::{Address, Mac},
    reason::{Outcome, Reason},
    rewrite,
};
use lvs_xdp_tests::{
    frame::DIRECTOR_MAC,
    trial::{Director, LOOPBACK, action, mac_of, xdp},
};

use crate::{
    PEER,
    host::{self, Host},
    random::Random,
    services::{self, LOCAL_VIP, SERVERS, Special, VIP, VIP6},
};

/// Room in the tables: so little for connections that they compete for it.
const CAPACITY: Capacity = Capacity {
    connections: 256,
    services: 64,
    destinations: 1024,
};
/// Rows of services: twice as many as services, and one that is none.
const SERVICE_ROWS: u32 = CAPACITY.services * 2 + 1;
/// An interface that frames are not redirected to.
const NOT_ALLOWED: u32 = 4_000_000;

/// The two directors.
pub(crate) struct Pair {
    kernel: Director,
    host: Director,
    maps: Host,
    /// Packets of each reason that the program has counted.
    counted: [u64; Reason::ALL.len()],
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Decision {
    reason: Reason,
    action: u32,
    frame: Vec<u8>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let [kernel, host] = [(); 2].map(|()| {
            let mut director = Director::with_capacity(CAPACITY).expect("a director");
            director.set_key(HashKey(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210));
            let local = vip_flag::USED | vip_flag::LOCAL;
            let announced = vip_flag::USED | vip_flag::ANNOUNCED;
            let vips = [
                (VIP.into(), announced),
                (VIP6.into(), announced),
                (LOCAL_VIP.into(), local),
            ];
            director
                .dataplane
                .set_vips(&BTreeMap::from(vips))
                .expect("there is room");
            director.dataplane.set_announcing(true);
            host::peers(&director)
                .expect("the map of peers")
                .insert(Mac::from_octets(PEER).0, 1, 0)
                .expect("there is room");
            director
        });
        let maps = Host::new(&host).expect("the maps are there");
        let mut pair = Self {
            kernel,
            host,
            maps,
            counted: [0; Reason::ALL.len()],
        };
        pair.both(|director| {
            director.stop_clock(1000).expect("the clock can be read");
            director.compiler.set_local([LOCAL_VIP.into()]);
            let rules = services::rules().map(|rule| Change::AddMark { rule });
            director.change_between_frames(&rules).expect("a change");
            for spec in services::services() {
                director
                    .change_between_frames(&services::add(spec))
                    .expect("a change");
            }
            for family in [VIP.into(), VIP6.into()] {
                for (number, special) in (0..).zip(SERVERS) {
                    let server = services::server(family, number);
                    director.compiler.set_way(server, way(server, *special));
                }
            }
        });
        pair.settle();
        pair
    }

    fn both(&mut self, mut what: impl FnMut(&mut Director)) {
        what(&mut self.kernel);
        what(&mut self.host);
    }

    /// What is no part of the configuration, and what it has put where the host does not see it.
    fn settle(&mut self) {
        for director in [&self.kernel, &self.host] {
            let tables = director.dataplane.tables();
            let flags = &tables.control().flags;
            flags.store(flags.load() | control_flag::PEERS);
            for id in 1..=CAPACITY.destinations {
                make_tunnel(tables, id);
            }
        }
        self.maps.read(&self.host).expect("the maps are there");
    }

    /// Another configuration.
    pub(crate) fn change(&mut self, random: &mut Random) {
        for _ in 0..=random.below(6) {
            let changes = services::change(random, self.kernel.model());
            self.both(|director| director.change_between_frames(&changes).expect("a change"));
        }
        if random.one_in(8) {
            self.both(Director::reap);
        }
        self.maps.read(&self.host).expect("the maps are there");
        self.settle();
    }

    pub(crate) fn set_clock(&mut self, seconds: u32) {
        self.both(|director| director.stop_clock(seconds).expect("the clock can be read"));
    }

    pub(crate) fn set_migrating(&mut self, is_migrating: bool) {
        self.both(|director| {
            let flags = &director.dataplane.tables().control().flags;
            let others = flags.load() & !control_flag::MIGRATING;
            flags.store(others | if is_migrating { control_flag::MIGRATING } else { 0 });
        });
    }

    /// Compares what becomes of a frame: reason, action, bytes.
    pub(crate) fn compare(&mut self, number: u32, frame: &[u8]) -> Reason {
        let expected = self.on_host(frame);
        let seen = self.kernel.dataplane.trial(frame, LOOPBACK).expect("a trial");
        let reason = expected.reason;
        let counted = self.kernel.dataplane.packets_of(reason);
        let before = std::mem::replace(&mut self.counted[reason as usize], counted);
        // What cannot be rewritten is dropped, with as much done to it as was possible.
        let is_same = reason == Reason::RewriteFailed || seen.frame == expected.frame;
        if counted != before + 1 || seen.action != expected.action || !is_same {
            self.counted[reason as usize] = before;
            panic!(
                "frame {number}: {}\nkernel: {:?}, action {}, {}\nhost: {reason:?}, action {}, {}",
                hex(frame),
                self.newly_counted(),
                seen.action,
                hex(&seen.frame),
                expected.action,
                hex(&expected.frame),
            );
        }
        reason
    }

    /// The reasons whose counters have gone up.
    fn newly_counted(&self) -> Vec<Reason> {
        let reasons = Reason::ALL.iter().copied();
        reasons
            .filter(|&reason| self.kernel.dataplane.packets_of(reason) != self.counted[reason as usize])
            .collect()
    }

    /// What the program does (`director`, `forward` and `answer` of lvs-xdp-ebpf), by the same code on the host.
    fn on_host(&self, frame: &[u8]) -> Decision {
        let maps = &self.maps;
        let verdict = director::decide(frame, maps, LOOPBACK);
        let reason = verdict.reason;
        let mut frame = frame.to_vec();
        let elsewhere = verdict.if_index != LOOPBACK;
        let (reason, action) = match reason.outcome() {
            Outcome::Forward => {
                let rewritten = if verdict.is_special {
                    rewrite::rewrite(&mut frame, maps, verdict.destination)
                } else {
                    rewrite_macs(&mut frame, verdict.to, verdict.from).ok_or(Reason::RewriteFailed)
                };
                match rewritten {
                    Ok(()) if elsewhere => (Reason::RedirectFailed, xdp::DROP),
                    Ok(()) => (reason, xdp::TX),
                    // The frame is the answer already, if there is one.
                    Err(reason) => (reason, action(reason, false)),
                }
            }
            Outcome::Answer => {
                let answered = answer::answer(&mut frame, maps, LOOPBACK, reason);
                (reason, if answered.is_some() { xdp::TX } else { xdp::DROP })
            }
            Outcome::Pass | Outcome::Drop => (reason, action(reason, false)),
        };
        Decision {
            reason,
            action,
            frame,
        }
    }

    /// Compares the tables: every word of the connection table, who is in it, counts, and cursors; and that no
    /// packet was counted by another reason, too.
    pub(crate) fn compare_tables(&self, number: u32) {
        assert_eq!(self.newly_counted(), [], "also counted until frame {number}");
        let [kernel, host] = [&self.kernel, &self.host].map(|director| director.dataplane.tables());
        for bucket in 0..CAPACITY.connections / 8 {
            let words = |maps: &Tables| {
                let bucket = maps.bucket(bucket).expect("a bucket");
                bucket.0.each_ref().map(Word::load)
            };
            assert_eq!(words(kernel), words(host), "bucket {bucket} after frame {number}");
        }
        for index in 0..CAPACITY.connections {
            let row = |maps: &Tables| {
                let row = maps.cold(index).expect("a row");
                (Flow::read(row), row.control.load(), row.controlled.load())
            };
            assert_eq!(row(kernel), row(host), "row {index} after frame {number}");
        }
        for id in 0..=CAPACITY.destinations {
            let counts = |maps: &Tables| {
                let row = maps.counts(id).expect("a row");
                [&row.connections, &row.templates, &row.overload].map(Word::load)
            };
            assert_eq!(
                counts(kernel),
                counts(host),
                "destination {id} after frame {number}"
            );
            let joined = |maps: &Tables| maps.destination(id).map(|row| row.joined.load());
            assert_eq!(
                joined(kernel),
                joined(host),
                "destination {id} after frame {number}"
            );
        }
        for id in 0..SERVICE_ROWS {
            let cursor = |maps: &Tables| maps.cursor(id).expect("a row").load();
            assert_eq!(cursor(kernel), cursor(host), "service {id} after frame {number}");
        }
    }
}

/// The way to a real server.
fn way(server: IpAddr, special: Special) -> Option<Way> {
    let by = |if_index, tags| Way::Neighbour {
        mac: mac_of(server),
        source_mac: DIRECTOR_MAC,
        if_index,
        tags,
    };
    match special {
        Special::No | Special::Tunnel(_) => Some(by(LOOPBACK, None)),
        Special::Tagged(tags) => Some(by(LOOPBACK, Some(tags))),
        Special::Local => Some(Way::Local),
        Special::NotAllowed => Some(by(NOT_ALLOWED, None)),
        Special::Unresolved => None,
    }
}

/// Puts the tunnel to a real server that has one where the program finds it.
fn make_tunnel(tables: &Tables, id: u32) {
    let row = tables.destination(id).expect("a row");
    let towards = row.towards.load();
    if towards & destination_flag::USED == 0 {
        return;
    }
    let to = Address::from_halves(row.address[0].load(), row.address[1].load());
    let to = rows::ip(to);
    let mut specials = (0..).zip(SERVERS);
    let own = specials.find(|(number, _)| services::server(to, *number) == to);
    if let Some((_, Special::Tunnel(how))) = own {
        let from = rows::address(services::tunnel_source(to));
        let tunnel = tables.tunnel(id).expect("a row");
        tunnel.source[0].store(from.high());
        tunnel.source[1].store(from.low());
        tunnel.how.store(how.0);
        row.towards
            .store(towards | destination_flag::SPECIAL | destination_flag::TUNNEL);
    }
}

/// A frame to be copied.
fn hex(frame: &[u8]) -> String {
    frame.iter().fold(String::new(), |mut text, octet| {
        write!(text, "{octet:02x}").expect("a string takes all");
        text
    })
}
