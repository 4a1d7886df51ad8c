//! The program in the kernel and the same code on the host decide alike: about random frames, about frames that
//! are nearly right, in one sequence over equal tables.

use std::{net::Ipv4Addr, sync::Arc};

use lvs_xdp::{
    api::types::{
        Change, ClientMask, Persistence, Protocol, Removal, Scheduler, SchedulerFlag, ServerSpec,
        ServiceSettings, ServiceSpec,
    },
    dataplane::Tables,
};
use lvs_xdp_common::{
    answer,
    atomic::Word,
    director,
    flow::Flow,
    frame::rewrite_macs,
    hash::HashKey,
    maps::Maps as _,
    reason::{Outcome, Reason},
};
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    trial::{Director, LOOPBACK, action, add_server, server_key, service_key, xdp},
};
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Frames of the test.
const FRAMES: u32 = 40_000;
/// The generator's seed: a run can be repeated.
const SEED: [u8; 32] = *b"lvs-xdp: kernel and host agree .";
/// After so many frames some of the configuration changes.
const CHANGE_EVERY: u32 = 100;
/// After so many frames the clock goes on.
const CLOCK_EVERY: u32 = 400;
/// Room for connections: so little that they compete for it.
const CONNECTIONS: u32 = 256;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
/// An interface that frames are not redirected to.
const NOT_ALLOWED: u32 = 4_000_000;

fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a09_000b + number)
}

/// A service with everything else as IPVS has it by default.
fn service(protocol: Protocol, port: u16, scheduler: Scheduler) -> ServiceSpec {
    ServiceSpec::new(service_key(protocol, VIP, port), scheduler)
}

/// The services: one of each scheduler, all protocols, persistence of each kind, and every setting.
fn services() -> Vec<ServiceSpec> {
    use Protocol::{Sctp, Tcp, Udp};
    let both = || vec![SchedulerFlag::Fallback, SchedulerFlag::Port];
    let flagged = |port, scheduler| ServiceSpec {
        flags: both(),
        ..service(Tcp, port, scheduler)
    };
    let persistent = |service, timeout, mask| ServiceSpec {
        persistence: Some(Persistence { timeout, mask }),
        ..service
    };
    let network = Some(ClientMask::V4(Ipv4Addr::from_bits(0xffff_fffc)));
    let removing = |service, removal| ServiceSpec {
        removal: Some(removal),
        ..service
    };
    let with = |service, settings| ServiceSpec { settings, ..service };
    let set = ServiceSettings::default;
    // Those with a port of their own, in the order of their ports, and then the others.
    let mut services: Vec<_> = (80..)
        .zip(Scheduler::ALL)
        .map(|(port, scheduler)| match scheduler {
            Scheduler::Sh | Scheduler::Mh => flagged(port, scheduler),
            _ => service(Tcp, port, scheduler),
        })
        .collect();
    let others = [
        service(Tcp, 93, Scheduler::Mh),
        persistent(service(Tcp, 94, Scheduler::Wlc), 30, network),
        persistent(
            removing(service(Tcp, 95, Scheduler::Rr), Removal::Reschedule),
            90,
            None,
        ),
        removing(service(Tcp, 96, Scheduler::Lblcr), Removal::Reset),
        with(
            service(Tcp, 97, Scheduler::Wrr),
            ServiceSettings {
                conn_reuse_mode: Some(2),
                sloppy_tcp: Some(1),
                expire_nodest_conn: Some(1),
                ..set()
            },
        ),
        with(
            persistent(service(Tcp, 98, Scheduler::Sh), 20_000, None),
            ServiceSettings {
                expire_quiescent_template: Some(1),
                conn_reuse_mode: Some(0),
                ..set()
            },
        ),
        persistent(service(Tcp, 0, Scheduler::Lc), 60, None),
        persistent(service(Tcp, 21, Scheduler::Rr), 60, None),
        service(Udp, 80, Scheduler::Wrr),
        service(Udp, 81, Scheduler::Sh),
        ServiceSpec {
            one_packet: true,
            ..service(Udp, 82, Scheduler::Rr)
        },
        ServiceSpec {
            one_packet: true,
            ..persistent(service(Udp, 83, Scheduler::Sed), 30, None)
        },
        removing(service(Udp, 84, Scheduler::Nq), Removal::Reset),
        service(Sctp, 80, Scheduler::Wlc),
        with(
            removing(service(Sctp, 81, Scheduler::Lblc), Removal::Reset),
            ServiceSettings {
                sloppy_sctp: Some(1),
                ..set()
            },
        ),
        persistent(service(Sctp, 82, Scheduler::Rr), 60, network),
    ];
    services.extend(others);
    services
}

/// Random numbers.
struct Random(TestRng);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        use proptest::prelude::Rng as _;
        self.0.next_u32() % limit
    }

    fn octet(&mut self) -> u8 {
        self.below(256).to_le_bytes()[0]
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.octet(), self.octet()])
    }

    fn one_in(&mut self, number: u32) -> bool {
        self.below(number) == 0
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        let index = self.below(u32::try_from(values.len()).expect("few values"));
        values[index as usize]
    }

    /// A frame that mostly means something, so that connections come about and go on.
    fn frame(&mut self) -> Vec<u8> {
        let client = Ipv4Addr::from_bits(0x0a09_4000 + self.below(8));
        let port = 40_000 + u16::from(self.octet() % 2);
        let service = match self.below(24) {
            0 => 20,
            1 => 21,
            2 => 2000,
            _ => 80 + u16::from(self.octet() % 20),
        };
        let mut frame = Frame::tcp((client, port), (VIP, service), 0);
        frame.flags = match self.below(10) {
            0..=3 => tcp::SYN,
            4..=6 => tcp::ACK,
            7 => tcp::FIN | tcp::ACK,
            8 => tcp::RST,
            _ => self.octet(),
        };
        match self.below(8) {
            0 => frame.protocol = 17,
            1 => {
                frame.protocol = 132;
                let any = self.octet();
                frame.chunk = self.of(&[1, 1, 1, 2, 0, 10, 11, 3, 7, 8, 14, 6, 9, any]);
            }
            _ => {}
        }
        // So that the busy services have more to do than the others.
        if frame.protocol != 6 {
            frame.destination.1 = 80 + service % 5;
        }
        frame.payload.truncate(self.below(19) as usize);
        self.lie(&mut frame);
        let mut bytes = frame.bytes();
        if self.one_in(12) {
            for _ in 0..=self.below(3) {
                let at = self.below(u32::try_from(bytes.len()).expect("small")) as usize;
                bytes[at] = self.octet();
            }
        }
        if self.one_in(10) {
            // The kernel takes nothing shorter than an Ethernet header.
            let rest = u32::try_from(bytes.len() - 14).expect("small");
            bytes.truncate(14 + self.below(rest + 1) as usize);
        }
        if self.one_in(100) {
            bytes = (0..14 + self.below(80)).map(|_| self.octet()).collect();
        }
        bytes
    }

    /// What the grammar allows, and what it does not.
    fn lie(&mut self, frame: &mut Frame) {
        if self.one_in(4) {
            frame.vlan = Some(self.word());
        }
        if self.one_in(4) {
            frame.options = (0..4 * self.below(11)).map(|_| self.octet()).collect();
        }
        if self.one_in(15) {
            frame.header_words = Some(self.octet() & 0xf);
        }
        if self.one_in(15) {
            let short = u16::from(self.octet() % 80);
            frame.total_length = Some(self.of(&[0, 19, 20, 27, 28, 39, 40, short, 0xffff]));
        }
        if self.one_in(15) {
            let any = self.word();
            frame.fragment = self.of(&[0, 0x2000, 0x2001, 1, 0x8000, 0x1fff, any]);
        }
        if self.one_in(30) {
            let any = self.octet();
            frame.protocol = self.of(&[0, 1, 2, 41, 47, 50, 132, any]);
        }
        if self.one_in(30) {
            let any = self.octet() & 0xf;
            frame.version = self.of(&[0, 6, 15, any]);
        }
        if self.one_in(30) {
            let any = self.word();
            frame.ether_type = self.of(&[0x86dd, 0x0806, 0x8100, 0x88a8, 60, any]);
        }
        if self.one_in(30) {
            frame.macs[0] = self.of(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2; 6], [0; 6]]);
        }
        if self.one_in(20) {
            frame.destination.0 = Ipv4Addr::from_bits(VIP.to_bits() ^ 1 << self.below(32));
        }
    }

    /// Another configuration: servers come and go, change their weights and thresholds, and are drained.
    fn change(&mut self, director: &Director) -> Change {
        let keys: Vec<_> = services().iter().map(|spec| spec.key).collect();
        let service = self.of(&keys);
        let key = server_key(&service, server(self.below(6)));
        let any = self.below(20);
        let weight = self.of(&[0, 0, 1, 1, 2, 3, any, 65_535, 2_147_483_647]);
        let upper_threshold = self.of(&[0, 0, 1, 2, 4, 9]);
        let lower_threshold = self.below(upper_threshold.min(3) + 1);
        let spec = ServerSpec {
            upper_threshold,
            lower_threshold,
            ..ServerSpec::new(key, weight)
        };
        let servers = &director.model().services()[&service].servers;
        match (servers.iter().any(|spec| spec.key == key), self.below(3)) {
            (false, _) => Change::AddServer {
                service,
                server: spec,
                require_on_link: false,
            },
            (true, 0) => Change::DeleteServer { service, server: key },
            (true, _) => Change::EditServer {
                service,
                server: spec,
            },
        }
    }
}

/// Two directors with equal tables: one whose program is used, one whose tables the host works on.
struct Pair {
    kernel: Director,
    host: Director,
}

impl Pair {
    fn new() -> Self {
        let [kernel, host] = [(); 2].map(|()| {
            let director = Director::new(CONNECTIONS).expect("a director");
            director.set_key(HashKey(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210));
            director
        });
        let mut pair = Self { kernel, host };
        pair.both(|director| {
            director.stop_clock(1000).expect("the clock can be read");
            for spec in services() {
                let service = spec.key;
                director
                    .change(&[
                        Change::AddService { service: spec },
                        add_server(service, server(0), 1),
                        add_server(service, server(1), 3),
                        add_server(service, server(2), 2),
                    ])
                    .expect("a change");
            }
            // The last of the six is never resolved, and the last but one is where no frame can be sent.
            for number in 0..4 {
                director.resolve(server(number));
            }
            director.resolve_by(server(4), NOT_ALLOWED);
        });
        pair
    }

    fn both(&mut self, mut what: impl FnMut(&mut Director)) {
        what(&mut self.kernel);
        what(&mut self.host);
    }

    /// Compares what becomes of a frame: reason, action, bytes.
    fn compare(&mut self, number: u32, frame: &[u8]) -> Reason {
        let seen = self.kernel.send(frame).expect("a trial");
        let tables = Arc::clone(self.host.dataplane.tables());
        let verdict = director::decide(frame, &*tables, LOOPBACK);
        let mut expected = frame.to_vec();
        let elsewhere = verdict.if_index != LOOPBACK;
        let (reason, action) = match verdict.reason.outcome() {
            Outcome::Forward => {
                rewrite_macs(&mut expected[..], verdict.to, verdict.from).expect("it has a header");
                let reason = if elsewhere {
                    Reason::RedirectFailed
                } else {
                    verdict.reason
                };
                (reason, action(reason, elsewhere))
            }
            Outcome::Answer => {
                let answered = match verdict.reason {
                    Reason::Reset => answer::reset(&mut expected),
                    _ => answer::port_unreachable(&mut expected),
                };
                (
                    verdict.reason,
                    if answered.is_some() { xdp::TX } else { xdp::DROP },
                )
            }
            Outcome::Pass | Outcome::Drop => (verdict.reason, action(verdict.reason, false)),
        };
        assert_eq!(
            (seen.reason, seen.action),
            (reason, action),
            "frame {number}: {frame:02x?}"
        );
        assert_eq!(seen.frame, expected, "frame {number}: {frame:02x?}");
        reason
    }

    /// Compares the tables: every word of the connection table, who is in it, counts, and cursors.
    fn compare_tables(&self, number: u32) {
        let [kernel, host] = [&self.kernel, &self.host].map(|director| director.dataplane.tables());
        for bucket in 0..CONNECTIONS / 8 {
            let words = |maps: &Tables| {
                let bucket = maps.bucket(bucket).expect("a bucket");
                bucket.0.each_ref().map(Word::load)
            };
            assert_eq!(words(kernel), words(host), "bucket {bucket} after frame {number}");
        }
        for index in 0..CONNECTIONS {
            let row = |maps: &Tables| {
                let row = maps.cold(index).expect("a row");
                (Flow::read(row), row.control.load(), row.controlled.load())
            };
            assert_eq!(row(kernel), row(host), "row {index} after frame {number}");
        }
        for id in 0..512 {
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
        for id in 0..64 {
            let cursor = |maps: &Tables| maps.cursor(id).map(Word::load);
            assert_eq!(cursor(kernel), cursor(host), "service {id} after frame {number}");
        }
    }
}

#[test]
fn kernel_and_host_decide_alike() {
    println!("{FRAMES} frames from the seed {}", SEED.escape_ascii());
    let mut random = Random(TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    let mut pair = Pair::new();
    let mut seconds = 1000;
    let mut met = [0u32; Reason::ALL.len()];
    for number in 0..FRAMES {
        if number % CHANGE_EVERY == CHANGE_EVERY - 1 {
            let change = random.change(&pair.kernel);
            pair.both(|director| director.change(std::slice::from_ref(&change)).expect("a change"));
        }
        if number % CLOCK_EVERY == CLOCK_EVERY - 1 {
            // Entries expire at one second or another, at the edge and far beyond it.
            seconds += random.of(&[1, 5, 10, 11, 30, 60, 61]);
            pair.both(|director| director.stop_clock(seconds).expect("the clock can be read"));
            pair.compare_tables(number);
        }
        let frame = random.frame();
        met[pair.compare(number, &frame) as usize] += 1;
    }
    pair.compare_tables(FRAMES);
    for &reason in Reason::ALL {
        println!("{:>22} {}", reason.name(), met[reason as usize]);
    }
    // What needs two CPUs, a move to other tables, the VIP on the host, a flood, or a defect.
    let absent = [
        Reason::InsertRace,
        Reason::Migrating,
        Reason::NoConnectionPassed,
        Reason::NoDestinationQuiet,
        Reason::TagCollision,
        Reason::Internal,
    ];
    for &reason in Reason::ALL {
        assert_eq!(
            met[reason as usize] == 0,
            absent.contains(&reason),
            "{}",
            reason.name()
        );
    }
}
