//! Answers over IPv6: a TCP reset, ICMPv6 errors.

use network_types::ip::Ipv6Hdr;

use super::{ICMP_HEADER, TCP, TTL, anew, checksum, reset_segment, sum, turn_back};
use crate::{
    frame::{Frame, Resize},
    packet::{Address, IpProto},
    parse::TAG,
    unusual,
    verifier::opaque,
};

const IPV6: usize = Ipv6Hdr::LEN;
const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_PORT_UNREACHABLE: u8 = 4;
/// The most octets of a packet that an error quotes: its headers, and then some. RFC 4443, 2.4 wants as many as
/// go into 1,280; whoever is to know needs the ports.
const QUOTED: usize = 128;

/// What an answer needs of the header that it answers.
struct Header {
    client: [[u8; 8]; 2],
    address: [[u8; 8]; 2],
    next: IpProto,
    length: usize,
}

impl Header {
    /// `None` where the sender is not one host, so that there is nobody to answer (RFC 4443, 2.4 e).
    #[inline(always)]
    fn read<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Self> {
        let [first, client_high, client_low, high, low]: [[u8; 8]; 5] = frame.load(at)?;
        let client = [client_high, client_low];
        (first[0] >> 4 == 6 && Address::from_words(client).is_one_host()).then_some(Self {
            client,
            address: [high, low],
            next: IpProto(first[6]),
            length: usize::from(u16::from_be_bytes([first[4], first[5]])),
        })
    }

    /// The sum of the pseudo-header of an answer of this length (RFC 8200, 8.1).
    #[inline(always)]
    fn pseudo(&self, protocol: IpProto, length: usize) -> u32 {
        let ([a, b], [c, d]) = (self.client, self.address);
        #[expect(clippy::cast_possible_truncation, reason = "an answer is short")]
        let total = u32::from(protocol.0) + length as u32;
        // One after the other: of an iterator the compiler makes a loop that the verifier does not follow.
        sum(sum(sum(sum(total, &a), &b), &c), &d)
    }

    /// The header of an answer of this length.
    #[inline(always)]
    fn turned(&self, protocol: IpProto, length: usize) -> [[u8; 8]; 5] {
        let first = 6 << 60 | (length as u64) << 16 | u64::from(protocol.0) << 8 | u64::from(TTL);
        let ([high, low], [client_high, client_low]) = (self.address, self.client);
        [first.to_be_bytes(), high, low, client_high, client_low]
    }
}

/// Makes a TCP packet the reset that answers it ([`super::reset`]); the IPv6 header is at `at`.
#[inline(always)]
pub(super) fn reset<F: Resize + ?Sized>(frame: &mut F, macs: [u8; 12], at: usize) -> Option<()> {
    let header = Header::read(frame, at)?;
    #[expect(clippy::cast_possible_truncation, reason = "a place in a frame")]
    let skipped =
        unusual::Walked(frame.walk(u32::from(header.next.0), (at + IPV6) as u32)).to(IpProto::TCP)?;
    let segment: [u8; 14] = frame.load(at + IPV6 + skipped)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 65,535")]
    let room = header.length.wrapping_sub(skipped) as u32;
    let mut tcp = reset_segment(&segment, room)?;
    let check = checksum(sum(header.pseudo(IpProto::TCP, TCP), &tcp));
    tcp[16..18].copy_from_slice(&check);

    turn_back(frame, macs)?;
    let at = anew(at);
    frame.store(at, header.turned(IpProto::TCP, TCP))?;
    frame.store(at + IPV6, tcp)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 82")]
    frame.cut((at + IPV6 + TCP) as u32)
}

/// Makes a packet the ICMPv6 port unreachable that answers it (RFC 4443, 3.1).
#[inline(always)]
pub(super) fn port_unreachable<F: Resize + ?Sized>(frame: &mut F, at: usize) -> Option<()> {
    error(frame, at, ICMPV6_UNREACHABLE, ICMPV6_PORT_UNREACHABLE, 0)
}

/// Makes a packet whose IPv6 header is at `at` an ICMPv6 error. `value` is the second word of its header.
#[inline(always)]
pub(crate) fn error<F: Resize + ?Sized>(
    frame: &mut F,
    at: usize,
    kind: u8,
    code: u8,
    value: u32,
) -> Option<()> {
    let macs = super::macs(frame)?;
    let header = Header::read(frame, at)?;
    // Up to two tags and the type; behind fewer tags there is something else, which is written over.
    let tags: [u8; 2 * TAG + 2] = frame.load(12)?;
    // Whole words, so that none of a checksum's halves is missing.
    let quoted = (IPV6 + header.length).min(QUOTED) & !3;
    let length = ICMP_HEADER + quoted;
    let mut icmp = [0; ICMP_HEADER];
    icmp[0] = kind;
    icmp[1] = code;
    icmp[4..8].copy_from_slice(&value.to_be_bytes());
    let mut total = sum(header.pseudo(IpProto::ICMPV6, length), &icmp);
    let mut place = 0;
    while place < QUOTED {
        if place < quoted {
            // Each with a check of its own, which the compiler must not draw together: the verifier would not
            // know the sum of them.
            let word: [u8; 4] = frame.load(opaque(at + place) & 0xff)?;
            total = sum(total, &word);
        }
        place += 4;
    }
    let check = checksum(total);
    icmp[2..4].copy_from_slice(&check);

    #[expect(clippy::cast_possible_truncation, reason = "48")]
    frame.grow((IPV6 + ICMP_HEADER) as u32)?;
    frame.store(12, tags)?;
    turn_back(frame, macs)?;
    frame.store(at, header.turned(IpProto::ICMPV6, length))?;
    frame.store(at + IPV6, icmp)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 198")]
    frame.cut((at + IPV6 + length) as u32)
}
