//! Echo replies (RFC 792, RFC 4443, 4.2): the request turned round in place.

use network_types::ip::Ipv6Hdr;

use super::{TTL, anew, turn_back};
use crate::{
    frame::{Frame, Resize},
    packet::{Address, EtherType, IpProto},
    parse::{self, Ipv4, Ipv6},
    unusual,
};

const ICMP_REPLY: u8 = 0;
const ICMPV6_REPLY: u8 = 129;

/// Makes an echo request its reply. `None` where nobody may be answered.
///
/// The checksum is changed by what changes (RFC 1624), so that a request that was damaged on its way is one that
/// is refused.
#[inline(always)]
pub fn echo<F: Resize + ?Sized>(frame: &mut F) -> Option<()> {
    let macs = super::macs(frame)?;
    let (ether_type, at) = parse::network(frame)?;
    if ether_type == EtherType::IPV4 {
        let header = Ipv4::read_cut(frame, at).ok()?;
        if !header.packet.source.is_one_host() {
            return None;
        }
        turn_back(frame, macs)?;
        // Both addresses change places, which no checksum shows; so does a word with the TTL in it, which does.
        let [source, destination]: [[u8; 4]; 2] = frame.load(at + 12)?;
        frame.store(at + 12, [destination, source])?;
        let word: [u8; 2] = frame.load(at + 8)?;
        exchange(frame, at + 8, at + 10, [TTL, word[1]])?;
        let icmp = at + header.length;
        exchange(frame, icmp, icmp + 2, [ICMP_REPLY, 0])
    } else {
        let header = Ipv6::read_cut(frame, at).ok()?;
        if !header.packet.source.is_one_host() {
            return None;
        }
        let behind = at + Ipv6Hdr::LEN;
        #[expect(clippy::cast_possible_truncation, reason = "a place in a frame")]
        let walked = frame.walk(u32::from(header.packet.protocol.0), behind as u32);
        let skipped = unusual::Walked(walked).to(IpProto::ICMPV6)?;
        turn_back(frame, macs)?;
        let at = anew(at);
        frame.store(at + 8, words(header.packet.destination))?;
        frame.store(at + 24, words(header.packet.source))?;
        frame.store(at + 7, [TTL])?;
        let icmp = behind + skipped;
        exchange(frame, icmp, icmp + 2, [ICMPV6_REPLY, 0])
    }
}

const fn words(address: Address) -> [[u8; 8]; 2] {
    [address.high().to_be_bytes(), address.low().to_be_bytes()]
}

/// Writes two octets, and brings the checksum at `check` to them.
#[inline(always)]
fn exchange<F: Frame + ?Sized>(frame: &mut F, at: usize, check: usize, new: [u8; 2]) -> Option<()> {
    let old = u32::from(parse::be16(frame, at)?);
    let sum = u32::from(parse::be16(frame, check)?);
    let total = (!sum & 0xffff) + (!old & 0xffff) + u32::from(u16::from_be_bytes(new));
    frame.store(at, new)?;
    frame.store(check, super::checksum(total))
}
