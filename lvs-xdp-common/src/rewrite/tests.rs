use alloc::vec::Vec;

use super::*;
use crate::{
    abi::destination_flag::{RESOLVED, SPECIAL, USED, VLAN},
    maps::memory::Memory,
};

const TO: Mac = Mac::from_octets([2, 0, 0, 0, 2, 210]);
const FROM: Mac = Mac::from_octets([2, 0, 0, 0, 2, 200]);

/// Says in a VLAN's number that its tag is a service tag.
const SERVICE_TAG: u16 = 0x1000;

/// A frame with these tags, and what is behind them.
fn frame(tags: &[[u8; 4]]) -> Vec<u8> {
    let mut frame = Vec::from([9; 12]);
    frame.extend(tags.as_flattened());
    frame.extend([8, 0, 0x45, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    frame
}

/// What a frame becomes that goes to a destination behind these VLANs, outermost first.
fn tagged(mut frame: Vec<u8>, vlans: &[u16]) -> Vec<u8> {
    let maps = Memory::new(16, 4, 8);
    let row = &maps.destinations[1];
    row.towards.store(USED | RESOLVED | SPECIAL | VLAN | TO.0);
    let tags = Tags {
        count: vlans.len(),
        outer: vlans.first().map_or(0, |vlan| vlan & 0xfff),
        inner: vlans.get(1).map_or(0, |vlan| vlan & 0xfff),
        is_outer_service: vlans.first().is_some_and(|vlan| vlan & SERVICE_TAG != 0),
        is_inner_service: vlans.get(1).is_some_and(|vlan| vlan & SERVICE_TAG != 0),
    };
    let (from, port) = tags.words();
    row.from.store(FROM.0 | from);
    row.port.store(80 | port);
    rewrite(&mut frame, &maps, 1).unwrap();
    assert_eq!(frame[..6], TO.octets());
    assert_eq!(frame[6..12], FROM.octets());
    frame.drain(..12);
    frame
}

#[test]
fn tags_are_pushed_popped_and_exchanged_and_keep_their_priority() {
    let bare = frame(&[]).split_off(12);
    let with = |tags: &[[u8; 4]]| frame(tags).split_off(12);
    // Priority 5 with drop eligibility, VLAN 10.
    const OWN: [u8; 4] = [0x81, 0, 0xb0, 10];
    const SERVICE: [u8; 4] = [0x88, 0xa8, 0x20, 7];

    assert_eq!(tagged(frame(&[]), &[]), bare);
    assert_eq!(tagged(frame(&[]), &[20]), with(&[[0x81, 0, 0, 20]]));
    assert_eq!(
        tagged(frame(&[]), &[SERVICE_TAG | 7, 20]),
        with(&[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 20]])
    );
    assert_eq!(tagged(frame(&[OWN]), &[]), bare);
    assert_eq!(tagged(frame(&[OWN]), &[10]), with(&[OWN]));
    assert_eq!(tagged(frame(&[OWN]), &[20]), with(&[[0x81, 0, 0xb0, 20]]));
    assert_eq!(tagged(frame(&[SERVICE, OWN]), &[]), bare);
    assert_eq!(
        tagged(frame(&[SERVICE, OWN]), &[0x234]),
        with(&[[0x81, 0, 0x22, 0x34]])
    );
    assert_eq!(
        tagged(frame(&[OWN]), &[SERVICE_TAG | 8, 9]),
        with(&[[0x88, 0xa8, 0xb0, 8], [0x81, 0, 0xb0, 9]])
    );
    // Two customer tags, as `eth0.8.9` has them; a service tag alone; and two of those.
    assert_eq!(
        tagged(frame(&[OWN]), &[8, 9]),
        with(&[[0x81, 0, 0xb0, 8], [0x81, 0, 0xb0, 9]])
    );
    assert_eq!(
        tagged(frame(&[]), &[SERVICE_TAG | 8]),
        with(&[[0x88, 0xa8, 0, 8]])
    );
    assert_eq!(
        tagged(frame(&[SERVICE, OWN]), &[SERVICE_TAG | 8, SERVICE_TAG | 9]),
        with(&[[0x88, 0xa8, 0x20, 8], [0x88, 0xa8, 0x20, 9]])
    );
}

#[test]
fn a_frame_without_a_whole_tag_goes_nowhere() {
    let maps = Memory::new(16, 4, 8);
    maps.destinations[1]
        .towards
        .store(USED | RESOLVED | SPECIAL | VLAN | TO.0);
    let mut frame = Vec::from([0; 12]);
    frame.extend([0x81, 0, 0]);
    assert_eq!(rewrite(&mut frame, &maps, 1), Err(Reason::RewriteFailed));
}
