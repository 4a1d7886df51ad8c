//! mh keeps clients with their servers when one of them leaves and comes back: as many as the kernel's own
//! table does.

use std::{collections::BTreeMap, net::Ipv4Addr};

use lvs_xdp::api::types::{Change, Protocol, Scheduler, ServiceKey, ServiceSpec};
use lvs_xdp_tests::{
    frame::{Frame, tcp},
    maglev::Table,
    trial::{Director, add_server, add_service, delete_server, service_key},
};

const CLIENTS: u32 = 10_000;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);

fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, 10 + number)
}

fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a09_4000 + number)
}

/// Where every client goes by the kernel's table.
fn expected(servers: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let addresses: Vec<_> = servers.iter().map(|server| server.to_bits()).collect();
    let table = Table::new(&addresses, 80);
    (0..CLIENTS)
        .map(|number| servers[table.server(client(number).to_bits())])
        .collect()
}

/// Where every client is sent; `port` makes new connections of them.
fn seen(director: &mut Director, port: u16) -> Vec<Ipv4Addr> {
    sent(director, port, tcp::SYN)
}

/// Where every client's packet with these flags is sent.
fn sent(director: &mut Director, port: u16, flags: u8) -> Vec<Ipv4Addr> {
    let sent = (0..CLIENTS).map(|number| {
        let frame = Frame::tcp((client(number), port), (VIP, 80), flags).bytes();
        let seen = director.send(&frame).expect("a trial");
        let [_, _, a, b, c, d, ..] = seen.frame[..] else {
            panic!("a short frame")
        };
        Ipv4Addr::new(a, b, c, d)
    });
    sent.collect()
}

fn moved(before: &[Ipv4Addr], after: &[Ipv4Addr]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count()
}

#[test]
fn as_many_clients_move_as_with_the_kernels_table() {
    let mut director = Director::new(1 << 16).expect("a director");
    let key: ServiceKey = service_key(Protocol::Tcp, VIP, 80);
    let mut changes = vec![add_service(key, Scheduler::Mh, &[])];
    for number in 1..=10 {
        director.resolve(server(number));
        changes.push(add_server(key, server(number), 1));
    }
    director.change(&changes).expect("the servers");
    // The one that was added last is the first of the list.
    let all: Vec<_> = (1..=10).rev().map(server).collect();
    let gone = server(4);
    let nine: Vec<_> = all.iter().copied().filter(|server| *server != gone).collect();
    let back: Vec<_> = [gone].into_iter().chain(nine.iter().copied()).collect();

    let with_all = seen(&mut director, 1);
    assert_eq!(with_all, expected(&all));
    director.change(&[delete_server(key, gone)]).expect("-d");
    let with_nine = seen(&mut director, 2);
    assert_eq!(with_nine, expected(&nine));
    director.change(&[add_server(key, gone, 1)]).expect("-a");
    let with_it_back = seen(&mut director, 3);
    assert_eq!(with_it_back, expected(&back));

    let of_the_gone = with_all.iter().filter(|server| **server == gone).count();
    let left = moved(&with_all, &with_nine);
    let returned = moved(&with_nine, &with_it_back);
    println!(
        "of {CLIENTS} clients {of_the_gone} were at the server that left; {left} moved when it left, \
         {returned} when it came back"
    );
    // Those of the server itself, and few others.
    assert!(left >= of_the_gone && left < of_the_gone * 3);
    let shares = with_all.iter().fold(BTreeMap::new(), |mut shares, server| {
        *shares.entry(server).or_insert(0u32) += 1;
        shares
    });
    assert_eq!(shares.len(), 10);
    assert!(
        shares.values().all(|share| (850..=1150).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn a_stateless_service_goes_by_the_kernels_table_packet_by_packet() {
    let mut director = Director::new(1 << 10).expect("a director");
    let key: ServiceKey = service_key(Protocol::Tcp, VIP, 80);
    let service = ServiceSpec {
        stateless: true,
        ..ServiceSpec::new(key, Scheduler::Mh)
    };
    let mut changes = vec![Change::AddService { service }];
    for number in 1..=10 {
        director.resolve(server(number));
        changes.push(add_server(key, server(number), 1));
    }
    director.change(&changes).expect("the servers");
    let all: Vec<_> = (1..=10).rev().map(server).collect();
    // More clients than the table has room for; the first of their packets may be any.
    for flags in [tcp::ACK, tcp::SYN, tcp::RST, tcp::FIN | tcp::ACK] {
        assert_eq!(sent(&mut director, 1, flags), expected(&all));
    }
    // Who leaves has no packet more, in the middle of whatever connection.
    let nine: Vec<_> = all.iter().copied().filter(|other| *other != server(4)).collect();
    director.change(&[delete_server(key, server(4))]).expect("-d");
    assert_eq!(sent(&mut director, 1, tcp::ACK), expected(&nine));
}
