//! Questions, and their answers by the program in the kernel, frame by frame, by BPF_PROG_TEST_RUN.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use lvs_xdp_common::{abi::vip_flag, announce, reason::Reason};
use lvs_xdp_tests::{
    dissect::dissect,
    frame::DIRECTOR_MAC,
    trial::{Director, LOOPBACK, xdp},
};

const ASKER: [u8; 6] = [2, 0, 0, 0, 2, 1];
const TAGS: [&[u8]; 3] = [&[], &[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]];
const VIP: [u8; 4] = [192, 168, 2, 100];
const VIP6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const GROUP6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 1, 0];
const OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 2, 1];
const NONCE: [u8; 8] = [14, 1, 9, 8, 7, 6, 5, 4];

fn director(flags: u64) -> Result<Director> {
    let mut director = Director::new(1024)?;
    let vips = [IpAddr::from(VIP), IpAddr::from(VIP6)].map(|vip| (vip, vip_flag::USED | flags));
    director.dataplane.set_vips(&BTreeMap::from(vips))?;
    director.dataplane.set_announcing(true);
    Ok(director)
}

fn arp(to: [u8; 6], tags: &[u8], from: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &ASKER, &from, &[0; 6], &target].concat();
    let mut frame = [&to[..], &ASKER, tags, &[8, 6], &packet].concat();
    frame.resize(60, 0);
    frame
}

fn solicitation(tags: &[u8], source: [u8; 16], options: &[u8]) -> Vec<u8> {
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &VIP6, options].concat();
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let summed = [&source[..], &GROUP6, &length, &[0, 58], &message].concat();
    let mut total: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    message[2..4].copy_from_slice(&(!(total as u16)).to_be_bytes());
    let header = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &source, &GROUP6].concat();
    let to = [0x33, 0x33, 0xff, 0, 1, 0];
    [&to[..], &ASKER, tags, &[0x86, 0xdd], &header, &message].concat()
}

/// Every frame that is answered, with its reason.
fn questions() -> Vec<(Reason, Vec<u8>)> {
    let mut questions = Vec::new();
    for tags in TAGS {
        for to in [[0xff; 6], DIRECTOR_MAC] {
            for from in [[192, 168, 2, 1], [0; 4]] {
                questions.push((Reason::ArpAnswered, arp(to, tags, from, VIP)));
            }
        }
        for options in [&[][..], &OPTION, &[OPTION, NONCE].concat()] {
            questions.push((Reason::NeighbourAnswered, solicitation(tags, CLIENT6, options)));
        }
        // One that makes the frame longer.
        questions.push((Reason::NeighbourAnswered, solicitation(tags, [0; 16], &[])));
    }
    questions
}

#[test]
fn the_kernel_answers_as_the_host_does_and_as_others_read_it() -> Result<()> {
    let mut director = director(vip_flag::ANNOUNCED)?;
    let mut answers = Vec::new();
    for (reason, question) in questions() {
        let seen = director.send(&question)?;
        assert_eq!((seen.reason, seen.action), (reason, xdp::TX), "{question:02x?}");
        let mut expected = question.clone();
        announce::answer(&mut expected, &**director.dataplane.tables(), LOOPBACK)
            .context("the host answers too")?;
        assert_eq!(seen.frame, expected);
        assert_eq!(seen.frame[6..12], DIRECTOR_MAC);
        answers.push(seen.frame);
    }
    for found in dissect(&answers)? {
        assert!(found.complaints.is_empty(), "{found:?}");
    }
    Ok(())
}

#[test]
fn nothing_else_is_touched() -> Result<()> {
    let group = |frame: &[u8]| frame[0] & 1 != 0;
    for flags in [0, vip_flag::LOCAL, vip_flag::LOCAL | vip_flag::ANNOUNCED] {
        let mut director = director(flags)?;
        for (_, question) in questions() {
            let seen = director.send(&question)?;
            let reason = if group(&question) {
                Reason::NotUnicast
            } else {
                Reason::NotIp
            };
            assert_eq!((seen.reason, seen.action), (reason, xdp::PASS), "{question:02x?}");
            assert_eq!(seen.frame, question);
        }
    }
    let mut director = director(vip_flag::ANNOUNCED)?;
    let mut others = vec![arp([0xff; 6], &[], [192, 168, 2, 1], [192, 168, 2, 101])];
    for (_, question) in questions() {
        others.extend((14..42).map(|end| question[..end].to_vec()));
    }
    for other in others {
        let seen = director.send(&other)?;
        assert_eq!(seen.action, xdp::PASS, "{other:02x?}");
        assert_eq!(seen.frame, other);
    }
    director.dataplane.set_announcing(false);
    for (_, question) in questions() {
        assert_eq!(director.send(&question)?.action, xdp::PASS, "{question:02x?}");
    }
    Ok(())
}
