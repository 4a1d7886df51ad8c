//! The keyed hash of a flow, and IPVS's own hashes.

use crate::{flow::Flow, packet::Address};

/// A secret of the director, drawn by the agent when the maps are made: nobody outside can aim at a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub u64, pub u64);

const M1: u64 = 0xbf58_476d_1ce4_e5b9;
const M2: u64 = 0x94d0_49bb_1331_11eb;

/// One round of SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[inline(always)]
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(M1);
    value = (value ^ (value >> 27)).wrapping_mul(M2);
    value ^ (value >> 31)
}

/// The secret goes in before and between the rounds, so that knowing where one flow goes says
/// nothing of where another does.
#[inline(always)]
fn finish(key: HashKey, addresses: u64, rest: u64) -> u64 {
    mix(mix(addresses ^ key.0).wrapping_add(rest) ^ key.1)
}

#[inline(always)]
fn absorb(state: u64, address: Address) -> u64 {
    mix(mix(state ^ address.high()) ^ address.low())
}

/// The hash of a flow: client, virtual address, ports, protocol, and whether it is a template's.
#[inline(always)]
pub fn flow(key: HashKey, flow: &Flow) -> u64 {
    let addresses = if flow.client.is_ipv4() {
        flow.short()
    } else {
        absorb(absorb(key.1, flow.client), flow.address)
    };
    finish(key, addresses, flow.ports())
}

/// The hash under which a service stands in the index. Of IPv4, address, port and protocol fit one word.
#[inline(always)]
pub fn service(key: HashKey, address: Address, port: u16, protocol: u8) -> u64 {
    let address = if address.is_ipv4() {
        address.low() & 0xffff_ffff
    } else {
        absorb(key.0, address)
    };
    mix(address ^ u64::from(port) << 32 ^ u64::from(protocol) << 48 ^ key.1)
}

/// IPVS's fold of an address to 32 bits: IPv4 in host byte order, IPv6 the XOR of its words
/// (`ip_vs_sh_hashkey`, net/netfilter/ipvs/ip_vs_sh.c).
#[inline(always)]
pub fn fold(address: Address) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    if address.is_ipv4() {
        address.low() as u32
    } else {
        let both = address.high() ^ address.low();
        (both >> 32) as u32 ^ both as u32
    }
}

/// The kernel's `hash_32` (include/linux/hash.h).
#[inline(always)]
pub fn hash_32(value: u32, bits: u32) -> u32 {
    value.wrapping_mul(0x61C8_8647) >> (32 - bits)
}

/// The key of Maglev's first hash in IPVS (`ip_vs_mh.c`): both words of it.
pub const MH_KEY_1: u64 = 2_654_435_761;
/// The key of Maglev's second hash in IPVS.
pub const MH_KEY_2: u64 = 2_654_446_892;

/// The kernel's `hsiphash` of one 32-bit value on a 64-bit machine: SipHash-1-3, lower half
/// (Aumasson and Bernstein, "SipHash: a fast short-input PRF"; lib/siphash.c). Both key words are `key`.
#[inline(always)]
pub fn hsiphash(value: u32, key: u64) -> u32 {
    let mut v = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key,
    ];
    let block = 4 << 56 | u64::from(value);
    v[3] ^= block;
    sip_round(&mut v);
    v[0] ^= block;
    v[2] ^= 0xff;
    sip_round(&mut v);
    sip_round(&mut v);
    sip_round(&mut v);
    #[expect(clippy::cast_possible_truncation, reason = "hsiphash returns the lower half")]
    let low = (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32;
    low
}

#[inline(always)]
fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    #[test]
    fn hash_32_is_the_golden_ratio_hash() {
        assert_eq!(hash_32(1, 8), 0x61);
        assert_eq!(hash_32(0, 8), 0);
        assert_eq!(hash_32(2, 32), 0xC391_0C8E);
    }

    #[test]
    fn ipv6_folds_to_the_xor_of_its_words() {
        let address = Address::from_octets([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 8]);
        assert_eq!(fold(address), 15);
        assert_eq!(fold(Address::from_ipv4(0xc0a8_0264)), 0xc0a8_0264);
    }

    #[test]
    fn the_flow_hash_depends_on_the_key_and_every_field() {
        let packet = Packet::sample();
        let key = HashKey(1, 2);
        let hash = |key, packet: &Packet| flow(key, &Flow::new(packet, 1));
        let base = hash(key, &packet);
        assert_ne!(base, hash(HashKey(2, 2), &packet));
        assert_ne!(base, hash(HashKey(1, 3), &packet));
        assert_ne!(base, flow(key, &Flow::new(&packet, 1).template(0, u32::MAX)));
        for change in [
            |p: &mut Packet| p.source_port += 1,
            |p: &mut Packet| p.destination_port += 1,
            |p: &mut Packet| p.protocol.0 = 17,
            |p: &mut Packet| p.source = Address::from_ipv4(1),
            |p: &mut Packet| p.destination = Address::from_ipv4(1),
        ] {
            let mut other = packet;
            change(&mut other);
            assert_ne!(base, hash(key, &other));
        }
    }
}
