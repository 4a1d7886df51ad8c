//! What is counted of handshakes, of which the director sees the client's half.

use super::*;
use crate::atomic::Word;

/// (SYNs, SYNs sent again, first acknowledgements, jiffies until these) of a destination.
fn handshakes(maps: &Memory, destination: u32) -> [u64; 4] {
    let row = &maps.counters[destination as usize];
    [
        &row.syns,
        &row.repeated_syns,
        &row.first_acks,
        &row.first_ack_jiffies,
    ]
    .map(Word::load)
}

#[test]
fn a_handshake_is_counted_once_with_its_time() {
    let maps = director(Kind::Fo, IpProto::TCP);
    let client = Client::tcp(1);
    for (signal, after, expected) in [
        (SYN, 0, [1, 0, 0, 0]),
        // In the same second and in another one.
        (SYN, 0, [1, 1, 0, 0]),
        (SYN, 2, [1, 2, 0, 0]),
        (ACK, 1, [1, 2, 1, 3 * Memory::JIFFIES]),
        (ACK, 1, [1, 2, 1, 3 * Memory::JIFFIES]),
        // Of a connection that stands a SYN means nothing.
        (SYN, 1, [1, 2, 1, 3 * Memory::JIFFIES]),
        (FIN | ACK, 1, [1, 2, 1, 3 * Memory::JIFFIES]),
        // The connection is opened once more (conn_reuse_mode leaves those in FIN_WAIT), and has its own time.
        (SYN, 10, [2, 2, 1, 3 * Memory::JIFFIES]),
        (ACK, 4, [2, 2, 2, 7 * Memory::JIFFIES]),
    ] {
        maps.pass_time(after);
        client.send(&maps, signal);
        assert_eq!(handshakes(&maps, READY), expected, "{signal:#04x}");
    }
    assert_eq!(handshakes(&maps, NEXT), [0; 4]);
}

#[test]
fn what_is_no_handshake_is_not_counted() {
    let maps = director(Kind::Fo, IpProto::TCP);
    set_options(&maps, Options::SLOPPY_TCP, 0, u32::MAX);
    // Opened by an acknowledgement; refused; reset by the client before anything was answered.
    for signals in [&[ACK, ACK][..], &[SYN | FIN], &[SYN, RST]] {
        for (port, signal) in signals.iter().enumerate() {
            let _ = Client::tcp(7 + u16::from(*signal) + port as u16).send(&maps, *signal);
        }
    }
    let client = Client::tcp(99);
    for signal in [SYN, RST, SYN] {
        client.send(&maps, signal);
    }
    assert_eq!(handshakes(&maps, READY), [2, 1, 0, 0]);

    let udp = director(Kind::Fo, IpProto::UDP);
    for _ in 0..3 {
        settings::client(IpProto::UDP).send(&udp, 0);
    }
    assert_eq!(handshakes(&udp, READY), [0; 4]);
}

#[test]
fn the_time_of_a_handshake_stands_beside_its_service_in_the_row() {
    let maps = director(Kind::Fo, IpProto::TCP);
    let client = Client::tcp(1);
    client.send(&maps, SYN);
    let (place, _) = entry_of(&maps, &client.flow()).expect("the connection");
    let row = &maps.cold[place.index as usize];
    assert_eq!(u64::from(Flow::opened(row)), maps.jiffies() & 0xffff_ffff);
    assert_eq!(Flow::read(row), client.flow());
}
