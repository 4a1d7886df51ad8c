use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::signal::{ABORT, COOKIE_ECHO, Event};

/// A frame as the reference case's client sends it, with `options` bytes of IP options, a VLAN tag if asked.
fn frame(tagged: bool, options: usize, protocol: u8, flags: u8) -> Vec<u8> {
    let mut frame = Vec::from([2, 0, 0, 0, 0, 10, 2, 0, 0, 0, 0, 1]);
    if tagged {
        frame.extend([0x81, 0x00, 0x20, 0x05]);
    }
    let length = u16::try_from(20 + options + 20 + 10).unwrap().to_be_bytes();
    frame.extend([
        8,
        0,
        0x45 + u8::try_from(options / 4).unwrap(),
        0,
        length[0],
        length[1],
    ]);
    frame.extend([
        0, 1, 0x40, 0, 64, protocol, 0, 0, 192, 168, 1, 200, 192, 168, 2, 100,
    ]);
    frame.extend(core::iter::repeat_n(1, options));
    frame.extend([
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0,
    ]);
    if protocol == 17 {
        let at = frame.len() - 16;
        frame[at..at + 2].copy_from_slice(&[0, 30]);
    }
    frame.extend(core::iter::repeat_n(b'x', 10));
    frame
}

#[test]
fn a_syn_is_read_with_and_without_tag_and_options() {
    for tagged in [false, true] {
        for options in [0, 4, 40] {
            let length = u32::try_from(50 + options).unwrap();
            let expected = Packet {
                length,
                ..Packet::sample()
            };
            assert_eq!(parse(&frame(tagged, options, 6, 0x02)[..]), Ok(expected));
        }
    }
}

#[test]
fn udp_has_no_flags() {
    let packet = parse(&frame(false, 0, 17, 0x02)[..]).unwrap();
    assert_eq!((packet.signal, packet.destination_port), (Signal(0), 80));
}

#[test]
fn flags_count_in_ipvs_order() {
    for (octet, event) in [
        (0x04 | 0x02, Event::Rst),
        (0x02 | 0x01, Event::Syn),
        (0x01 | 0x10, Event::Fin),
        (0x10 | 0x08, Event::Ack),
        (0x08, Event::None),
    ] {
        assert_eq!(Signal(octet).event(IpProto::TCP), event);
        assert_eq!(
            Signal(octet).is_quiet(false),
            matches!(event, Event::Ack | Event::None)
        );
    }
    for (octet, opens, starts) in [
        (0x02, true, [true, true]),
        (0x12, true, [true, true]),
        (0x03, true, [true, true]),
        (0x06, true, [false, false]),
        (0x10, false, [false, true]),
        (0x04, false, [false, false]),
        (0x00, false, [false, true]),
    ] {
        let packet = parse(&frame(false, 0, 6, octet)[..]).unwrap();
        assert_eq!(packet.signal.opens(packet.protocol), opens, "{octet:#04x}");
        let starts_if = |is_sloppy| packet.signal.starts(packet.protocol, is_sloppy);
        assert_eq!([false, true].map(starts_if), starts, "{octet:#04x}");
    }
}

#[test]
fn an_sctp_packet_is_known_by_its_first_chunk() {
    // The frame's length leaves room for 18 octets of chunks.
    let with = |chunks: &[u8]| {
        let mut frame = frame(false, 0, 132, 0);
        frame[14 + 20 + 12..][..chunks.len()].copy_from_slice(chunks);
        let packet = parse(&frame[..]).unwrap();
        assert_eq!((packet.source_port, packet.destination_port), (40000, 80));
        packet.signal
    };
    assert_eq!(with(&[1, 0, 0, 18]), Signal(1));
    assert!(with(&[1, 0, 0, 18]).opens(IpProto::SCTP));
    assert_eq!(with(&[0, 3, 0, 18]).event(IpProto::SCTP), Event::Data);
    assert_eq!(with(&[10, 0, 0, 6, 1, 2, 0, 0, 6, 0, 0, 4]), Signal(ABORT));
    assert_eq!(with(&[10, 0, 0, 8, 1, 2, 3, 4, 0, 3, 0, 4]), Signal(COOKIE_ECHO));
    assert_eq!(with(&[10, 0, 0, 3, 6, 0, 0, 4]), Signal(COOKIE_ECHO));
    assert_eq!(with(&[10, 0, 0x3f, 0xff]), Signal(COOKIE_ECHO));
    let mut short = frame(false, 0, 132, 0);
    short[17] = 32;
    assert_eq!(
        parse(&short[..]).unwrap().signal.event(IpProto::SCTP),
        Event::Data
    );
    short[17] = 31;
    assert_eq!(parse(&short[..]), Err(Reason::Malformed));
    for kind in 0..=255u8 {
        let is_data = Signal(kind).event(IpProto::SCTP) == Event::Data;
        assert_eq!(Signal(kind).is_quiet(true), is_data, "{kind}");
    }
}

#[test]
fn what_is_no_packet_of_ours_has_its_reason() {
    let change = |at: usize, to: u8| {
        let mut frame = frame(false, 0, 6, 0x10);
        frame[at] = to;
        parse(&frame[..])
    };
    assert_eq!(change(0, 3), Err(Reason::NotUnicast));
    assert_eq!(change(13, 6), Err(Reason::NotIp));
    assert_eq!(change(14, 0x65), Err(Reason::Malformed));
    assert_eq!(change(14, 0x44), Err(Reason::Malformed));
    assert_eq!(change(17, 39), Err(Reason::Malformed));
    assert_eq!(change(20, 0x20), Err(Reason::Fragment));
    assert_eq!(change(21, 1), Err(Reason::Fragment));
    assert_eq!(change(23, 1), Err(Reason::OtherProtocol));
}

#[test]
fn a_frame_cut_anywhere_in_its_headers_is_malformed() {
    let whole = frame(true, 8, 6, 0x02);
    for end in 0..18 + 28 + 14 {
        assert_eq!(parse(&whole[..end]), Err(Reason::Malformed), "cut at {end}");
    }
    assert_eq!(parse(&whole[..whole.len() - 1]), Err(Reason::Malformed));
    assert!(parse(&whole[..]).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse(&bytes[..]);
    }

    #[test]
    fn mutated_frames_are_parsed_without_a_panic(at in 0..64usize, to in any::<u8>(), end in 0..70usize) {
        let mut frame = frame(false, 4, 6, 0x10);
        frame[at % 68] = to;
        let end = end.min(frame.len());
        if let Ok(packet) = parse(&frame[..end]) {
            prop_assert!([IpProto::TCP, IpProto::UDP, IpProto::SCTP].contains(&packet.protocol));
            prop_assert!(packet.length >= 28);
        }
    }

    #[test]
    fn addresses_keep_their_octets(octets in any::<[u8; 16]>()) {
        prop_assert_eq!(Address::from_octets(octets).octets(), octets);
    }
}
