use alloc::vec::Vec;

use super::*;
use crate::{
    abi::destination_flag::{RESOLVED, SPECIAL, USED, VLAN},
    maps::memory::Memory,
};

const TO: Mac = Mac::from_octets([2, 0, 0, 0, 2, 210]);
const FROM: Mac = Mac::from_octets([2, 0, 0, 0, 2, 200]);

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
    let outer = vlans.first().copied().map_or(0, u64::from);
    row.from.store(FROM.0 | outer << 48 | (vlans.len() as u64) << 60);
    row.port
        .store(80 | vlans.get(1).copied().map_or(0, u64::from) << 16);
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
        tagged(frame(&[]), &[7, 20]),
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
        tagged(frame(&[OWN]), &[8, 9]),
        with(&[[0x88, 0xa8, 0xb0, 8], [0x81, 0, 0xb0, 9]])
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
