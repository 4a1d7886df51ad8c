//! Services with as many real servers as there may be, by every scheduler; and a director with more than
//! 100,000 of them.

use std::net::Ipv4Addr;

use lvs_xdp::{
    api::types::{Change, Protocol, Scheduler, ServiceKey},
    dataplane::Capacity,
};
use lvs_xdp_common::{abi::LIST_MAX, reason::Reason};
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    trial::{Director, add_server, add_service, delete_server, service_key},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
const MANY: u32 = LIST_MAX;

fn service(port: u16) -> ServiceKey {
    service_key(Protocol::Tcp, VIP, port)
}

fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a20_0000 + number)
}

/// A service with as many servers as a service can have.
fn crowded(port: u16, scheduler: Scheduler) -> Vec<Change> {
    let servers = (0..MANY).map(|number| add_server(service(port), server(number), 1 + number % 3));
    [add_service(service(port), scheduler, &[])]
        .into_iter()
        .chain(servers)
        .collect()
}

fn director(services: u32) -> Director {
    let mut director = Director::with_capacity(Capacity {
        connections: 1 << 16,
        services,
        destinations: services * (MANY + 1),
    })
    .expect("a director");
    for number in 0..MANY {
        director.resolve(server(number));
    }
    director
}

/// The real server that a new client of a port is sent to.
fn ask(director: &mut Director, client: u32, port: u16) -> Ipv4Addr {
    let client = Ipv4Addr::from_bits(0x0a40_0000 + client);
    let frame = Frame::tcp((client, 40_000), (VIP, port), tcp::SYN).bytes();
    let seen = director.send(&frame).expect("a trial");
    assert_eq!(seen.reason, Reason::NewConnection, "port {port}");
    let [_, _, a, b, c, d, ..] = seen.frame[..] else {
        panic!("a short frame")
    };
    Ipv4Addr::new(a, b, c, d)
}

#[test]
fn every_scheduler_takes_as_many_servers_as_a_service_can_have() {
    let mut director = director(2);
    for scheduler in Scheduler::ALL {
        director.change(&crowded(80, scheduler)).expect("it fits");
        let mut asked: Vec<_> = (0..20).map(|client| ask(&mut director, client, 80)).collect();
        let last = server(MANY - 1);
        match scheduler {
            // The first of the list is the one that was added last.
            Scheduler::Rr | Scheduler::Lc | Scheduler::Nq => assert_eq!(asked[0], last, "{scheduler}"),
            // The highest weight, 3, of those the one that was added last.
            Scheduler::Wrr | Scheduler::Fo | Scheduler::Ovf | Scheduler::Sed => {
                assert_eq!(asked[0], server(MANY - 2), "{scheduler}");
            }
            _ => {}
        }
        asked.sort_unstable();
        asked.dedup();
        let fewest = match scheduler {
            Scheduler::Fo | Scheduler::Dh | Scheduler::Lblc | Scheduler::Lblcr => 1,
            // Four of weight 3 for each that is asked before the next one's turn.
            Scheduler::Ovf => 5,
            _ => 10,
        };
        assert!(asked.len() >= fewest, "{scheduler}: {asked:?}");
        // What is usable stands at the list's very end.
        let all_but_the_first = (1..MANY).map(|number| delete_server(service(80), server(number)));
        director
            .change(&all_but_the_first.collect::<Vec<_>>())
            .expect("they are there");
        assert_eq!(ask(&mut director, 1_000, 80), server(0), "{scheduler}");
        director
            .change(&[Change::DeleteService { service: service(80) }])
            .expect("it is there");
        director.dataplane.tables().flush(|_| true);
        director.reap();
    }
}

#[test]
fn a_director_has_more_than_a_hundred_thousand_servers() {
    const SERVICES: u16 = 25;
    let mut director = director(u32::from(SERVICES));
    for port in 0..SERVICES {
        director
            .change(&crowded(1_000 + port, Scheduler::Rr))
            .expect("it fits");
    }
    for port in 0..SERVICES {
        let asked: Vec<_> = (0..3)
            .map(|client| ask(&mut director, client, 1_000 + port))
            .collect();
        assert_eq!(asked, [server(MANY - 1), server(MANY - 2), server(MANY - 3)]);
    }
    let key = service(1_000 + SERVICES - 1);
    assert_eq!(director.counts(&key, server(MANY - 1)), (1, 0));
}
