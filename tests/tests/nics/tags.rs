//! VLAN tags that frames to a real server have, in the kernel, frame by frame, by BPF_PROG_TEST_RUN.

use std::net::Ipv4Addr;

use anyhow::Result;
use lvs_xdp::{
    api::types::{Protocol, Scheduler},
    dataplane::compile::Way,
};
use lvs_xdp_common::{abi::Tags, reason::Reason};
use lvs_xdp_tests::{
    frame::{DIRECTOR_MAC, Frame, tcp},
    trial::{Director, LOOPBACK, add_server, add_service, mac_of, service_key, xdp},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 220);

/// A director with one real server.
fn director() -> Result<Director> {
    let mut director = Director::new(1024)?;
    let service = service_key(Protocol::Tcp, VIP, 80);
    director.change(&[
        add_service(service, Scheduler::Rr, &[]),
        add_server(service, SERVER, 1),
    ])?;
    Ok(director)
}

/// Has frames to the real server have these tags.
fn set_tags(director: &mut Director, tags: Option<Tags>) {
    let way = Way::Neighbour {
        mac: mac_of(SERVER),
        source_mac: DIRECTOR_MAC,
        if_index: LOOPBACK,
        tags,
    };
    director.compiler.set_way(SERVER.into(), Some(way));
}

/// The first packet of a connection, with so much data, and these tags in front of it.
fn frame(client_port: u16, tags: &[[u8; 4]], payload: usize) -> Vec<u8> {
    let syn = Frame {
        payload: (0..=255).cycle().take(payload).collect(),
        ..Frame::tcp((CLIENT, client_port), (VIP, 80), tcp::SYN)
    };
    let mut bytes = syn.bytes();
    bytes.splice(12..12, tags.as_flattened().iter().copied());
    bytes
}

/// What a real server gets of it.
fn sent(client_port: u16, tags: &[[u8; 4]], payload: usize) -> Vec<u8> {
    let mut bytes = frame(client_port, tags, payload);
    bytes[..6].copy_from_slice(&mac_of(SERVER));
    bytes[6..12].copy_from_slice(&DIRECTOR_MAC);
    bytes
}

const fn tag(vlan: u16) -> [u8; 4] {
    let [high, low] = vlan.to_be_bytes();
    [0x81, 0, high, low]
}

const fn service_tag(vlan: u16) -> [u8; 4] {
    let [high, low] = vlan.to_be_bytes();
    [0x88, 0xa8, high, low]
}

/// Priority 5, and that the frame may be dropped first.
const PRIORITY: u16 = 0xb000;

/// What is said of tags, those that a frame comes with, and those that it leaves with.
type Case<'a> = (Option<Tags>, &'a [[u8; 4]], &'a [[u8; 4]]);

#[test]
fn tags_are_pushed_popped_and_exchanged_in_frames_of_any_size() -> Result<()> {
    let one = Tags {
        count: 1,
        outer: 20,
        ..Tags::default()
    };
    let two = Tags {
        count: 2,
        inner: 30,
        ..one
    };
    let service = Tags {
        is_outer_service: true,
        ..two
    };
    let own = tag(PRIORITY | 10);
    let stacked = [service_tag(PRIORITY | 7), tag(10)];
    let cases: &[Case<'_>] = &[
        // Nothing is said of tags: they stay, QinQ too.
        (None, &[], &[]),
        (None, &[own], &[own]),
        (None, &stacked, &stacked),
        (Some(Tags::default()), &[], &[]),
        (Some(Tags::default()), &[own], &[]),
        (Some(Tags::default()), &stacked, &[]),
        (Some(one), &[], &[tag(20)]),
        (Some(one), &[own], &[tag(PRIORITY | 20)]),
        (Some(one), &stacked, &[tag(PRIORITY | 20)]),
        (Some(two), &[], &[tag(20), tag(30)]),
        (Some(two), &[own], &[tag(PRIORITY | 20), tag(PRIORITY | 30)]),
        (Some(service), &[], &[service_tag(20), tag(30)]),
        (
            Some(service),
            &stacked,
            &[service_tag(PRIORITY | 20), tag(PRIORITY | 30)],
        ),
    ];
    let mut director = director()?;
    let mut ports = 40_000..;
    for &(tags, before, after) in cases {
        set_tags(&mut director, tags);
        // The smallest, the largest of an MTU of 1,500, more than a page, a jumbo frame.
        for payload in [0, 1460, 4500, 8960] {
            let port = ports.next().unwrap_or_default();
            let seen = director.send(&frame(port, before, payload))?;
            let what = format!("{before:x?} to {tags:?}, {payload} bytes");
            assert_eq!(
                (seen.action, seen.reason),
                (xdp::TX, Reason::NewConnection),
                "{what}"
            );
            assert!(
                seen.frame == sent(port, after, payload),
                "{what}: {:x?}",
                &seen.frame[..24]
            );
        }
    }
    Ok(())
}

#[test]
fn what_goes_to_the_director_itself_keeps_all_that_it_has() -> Result<()> {
    let mut director = director()?;
    director.compiler.set_way(SERVER.into(), Some(Way::Local));
    for (port, tags) in (40_000..).zip([&[][..], &[tag(10)], &[service_tag(7), tag(10)]]) {
        let bytes = frame(port, tags, 5000);
        let seen = director.send(&bytes)?;
        assert_eq!((seen.action, seen.reason), (xdp::PASS, Reason::Local));
        assert!(seen.frame == bytes);
    }
    Ok(())
}
