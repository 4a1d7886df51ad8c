//! What a frame needs beside two MAC addresses before it goes to its real server: to be put into another
//! packet, another VLAN tag, or none.

use crate::{
    abi::{Tags, destination_flag},
    frame::{Resize, rewrite_macs},
    maps::Maps,
    packet::{EtherType, Mac},
    parse::{self, MAX_TAGS, TAG},
    reason::Reason,
    tunnel,
};

/// The priority and drop-eligibility bits of a tag (IEEE 802.1Q, 9.6).
const PRIORITY: u16 = 0xf000;

/// Makes a frame one for `destination`, whose row says that there is more to do than to write its MAC
/// addresses.
///
/// # Errors
///
/// The reason why the frame cannot go there; it may have been changed. Where the reason's outcome is an answer,
/// the frame has become it.
#[inline(always)]
pub fn rewrite<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, destination: u32) -> Result<(), Reason> {
    wrap(frame, maps, destination)?;
    address(frame, maps, destination)
}

/// The first part of [`rewrite`]: puts the packet into another one, where the destination is behind a tunnel. Apart
/// from the second one, so that the program's stack holds the frames of one of them at a time.
///
/// # Errors
///
/// As for [`rewrite`].
#[inline(always)]
pub fn wrap<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, destination: u32) -> Result<(), Reason> {
    let row = maps.destination(destination).ok_or(Reason::Internal)?;
    if row.towards.load() & destination_flag::TUNNEL != 0 {
        let carried = frame.carried(maps, destination);
        let done = frame.encapsulate(maps, destination, carried);
        if done != tunnel::DONE {
            let reason = Reason::from_number(done & 0xff);
            let is_too_big = matches!(reason, Reason::TooBig);
            return Err(if is_too_big {
                Reason::from_number(frame.too_big(maps, done >> 8))
            } else {
                reason
            });
        }
    }
    Ok(())
}

/// The second part of [`rewrite`]: tags and MAC addresses.
///
/// # Errors
///
/// As for [`rewrite`].
#[inline(always)]
pub fn address<F: Resize + ?Sized, M: Maps>(frame: &mut F, maps: &M, destination: u32) -> Result<(), Reason> {
    let row = maps.destination(destination).ok_or(Reason::Internal)?;
    let flags = row.towards.load();
    let from = row.from.load();
    if flags & destination_flag::VLAN != 0 {
        retag(frame, row.tags()).ok_or(Reason::RewriteFailed)?;
    }
    rewrite_macs(frame, Mac(flags & Mac::MASK), Mac(from & Mac::MASK)).ok_or(Reason::RewriteFailed)
}

/// Gives a frame the tags of `wanted` in place of its own. The priority of the outermost tag that it had is kept.
#[inline(always)]
fn retag<F: Resize + ?Sized>(frame: &mut F, wanted: Tags) -> Option<()> {
    let (_, network) = parse::network(frame)?;
    let tags = (network - 14) / TAG;
    let priority = if tags > 0 {
        parse::be16(frame, 14)? & PRIORITY
    } else {
        0
    };
    let count = wanted.count;
    // At most two each, so that the lengths below are constants to the verifier.
    if tags > MAX_TAGS {
        return None;
    }
    match count.cast_signed() - tags.cast_signed() {
        2 => frame.grow(8)?,
        1 => frame.grow(4)?,
        -1 => frame.shrink(4)?,
        -2 => frame.shrink(8)?,
        _ => {}
    }
    let tag = |is_service: bool, vlan: u16| -> [u8; 4] {
        let kind = if is_service {
            EtherType::SERVICE_VLAN
        } else {
            EtherType::VLAN
        };
        let [a, b] = kind.0.to_be_bytes();
        let [c, d] = (priority | vlan).to_be_bytes();
        [a, b, c, d]
    };
    if count >= 1 {
        frame.store(12, tag(wanted.is_outer_service, wanted.outer))?;
    }
    if count == 2 {
        frame.store(16, tag(wanted.is_inner_service, wanted.inner))?;
    }
    Some(())
}

#[cfg(test)]
mod tests;
