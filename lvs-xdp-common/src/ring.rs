//! How the agent fills what the schedulers look things up in: rings, wrr's marks, cursor places.
//!
//! The rules are those of the kernel's ip_vs_sh.c, ip_vs_dh.c, ip_vs_mh.c and ip_vs_wrr.c; their
//! results were compared with the kernel's, connection by connection.

use alloc::{collections::BTreeMap, vec, vec::Vec};

use crate::{
    abi::RingWord,
    hash::{self, MH_KEY_1, MH_KEY_2},
    packet::Address,
    scheduler::HASH_SLOTS,
};

/// Slots of mh's ring: IPVS's default (CONFIG_IP_VS_MH_TAB_INDEX 12).
pub const MH_SLOTS: u32 = 4093;
/// Half of CONFIG_IP_VS_MH_TAB_INDEX (`IP_VS_MH_TAB_BITS`).
const MH_BITS: u32 = 6;

/// What a ring is made of: a destination, in the list's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The real server's address.
    pub address: Address,
    /// The real server's port.
    pub port: u16,
    /// The effective weight.
    pub weight: u32,
    /// The last weight above 0 that it had; mh goes by this, so that a quiesced server keeps its slots.
    pub last_weight: u32,
    /// Whether it has an upper threshold.
    pub is_limited: bool,
}

/// The ring of sh: each destination takes `weight` slots in a row, round and round; weight 0 still takes one.
pub fn source_hash(members: &[Member]) -> Vec<u16> {
    blocks(members, |member| member.weight.max(1))
}

/// The ring of dh: one slot each, round and round.
pub fn destination_hash(members: &[Member]) -> Vec<u16> {
    blocks(members, |_| 1)
}

fn blocks(members: &[Member], size: impl Fn(&Member) -> u32) -> Vec<u16> {
    let slots = HASH_SLOTS as usize;
    if members.is_empty() {
        return vec![RingWord::EMPTY; slots];
    }
    (0..members.len())
        .cycle()
        .flat_map(|index| core::iter::repeat_n(index, size(&members[index]).min(HASH_SLOTS) as usize))
        .take(slots)
        .map(|index| u16::try_from(index).unwrap_or(RingWord::EMPTY))
        .collect()
}

/// The ring of mh: Maglev's permutations (Eisenbud et al., NSDI 2016, section 3.4) as IPVS fills them.
pub fn maglev(members: &[Member]) -> Vec<u16> {
    let slots = MH_SLOTS as usize;
    let mut ring = vec![RingWord::EMPTY; slots];
    let divisor = members.iter().map(|member| member.last_weight).fold(0, gcd);
    if divisor == 0 {
        return ring;
    }
    let heaviest = members.iter().map(|member| member.last_weight).max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - heaviest.leading_zeros()).saturating_sub(MH_BITS);
    let mut permutations: Vec<_> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.last_weight > 0)
        .map(|(index, member)| {
            let what = hash::fold(member.address).wrapping_add(u32::from(member.port));
            Permutation {
                index: u16::try_from(index).unwrap_or(RingWord::EMPTY),
                turns: ((member.last_weight / divisor) >> shift).max(1),
                at: hash::hsiphash(what, MH_KEY_1) % MH_SLOTS,
                skip: hash::hsiphash(what, MH_KEY_2) % (MH_SLOTS - 1) + 1,
            }
        })
        .collect();
    let mut filled = 0;
    loop {
        for permutation in &mut permutations {
            for _ in 0..permutation.turns {
                while ring[permutation.at as usize] != RingWord::EMPTY {
                    permutation.at = (permutation.at + permutation.skip) % MH_SLOTS;
                }
                ring[permutation.at as usize] = permutation.index;
                filled += 1;
                if filled == slots {
                    return ring;
                }
            }
        }
    }
}

struct Permutation {
    index: u16,
    turns: u32,
    at: u32,
    skip: u32,
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// wrr's marks for these weights: (di, mw), the step and the starting weight (`ip_vs_wrr_gcd_weight`,
/// `ip_vs_wrr_max_weight`).
pub fn weighted_marks(weights: impl Iterator<Item = u32> + Clone) -> (u32, u32) {
    let di = weights.clone().fold(0, gcd).max(1);
    let heaviest = weights.max().unwrap_or(0);
    (di, if heaviest == 0 { 0 } else { heaviest - (di - 1) })
}

/// Where each place of a cursor in a list of `old` ends up in a list of `new`, by destination id:
/// place 0 is the list's head, place i + 1 the destination of index i. The mark of a destination that
/// is gone moves back by one, as `ip_vs_rr_del_dest` has it.
pub fn places(old: &[u32], new: &[u32]) -> Vec<u16> {
    let place_of: BTreeMap<u32, u16> = new.iter().copied().zip(1..=u16::MAX).collect();
    let mut places = Vec::with_capacity(old.len() + 1);
    places.push(0);
    for id in old {
        let before = places.last().copied().unwrap_or(0);
        places.push(place_of.get(id).copied().unwrap_or(before));
    }
    places
}

/// Four 16-bit values to a word, as the maps have them; the last word is filled up with [`RingWord::EMPTY`].
pub fn pack(values: &[u16]) -> impl Iterator<Item = u64> + '_ {
    values.chunks(4).map(|chunk| {
        (0..4).fold(0, |word, index| {
            word | u64::from(chunk.get(index).copied().unwrap_or(RingWord::EMPTY)) << (16 * index)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        (0..)
            .zip(weights)
            .map(|(n, &weight)| Member {
                address: Address::from_ipv4(0x0a09_000b + n),
                port: 80,
                weight,
                last_weight: weight,
                is_limited: false,
            })
            .collect()
    }

    #[test]
    fn sh_gives_each_its_weight_in_a_row() {
        let ring = source_hash(&members(&[3, 0, 1]));
        assert_eq!(ring[..10], [0, 0, 0, 1, 2, 0, 0, 0, 1, 2]);
        assert_eq!(ring.len(), 256);
        assert!(source_hash(&[]).iter().all(|&slot| slot == RingWord::EMPTY));
        assert!(
            source_hash(&members(&[2_147_483_647, 1]))
                .iter()
                .all(|&slot| slot == 0)
        );
    }

    #[test]
    fn dh_gives_each_one_slot() {
        assert_eq!(destination_hash(&members(&[3, 0, 1]))[..4], [0, 1, 2, 0]);
    }

    #[test]
    fn maglev_shares_by_weight_and_moves_little() {
        let ten = members(&[1; 10]);
        let with = maglev(&ten);
        for index in 0..10 {
            let share = with.iter().filter(|&&slot| slot == index).count();
            assert!((409..=410).contains(&share), "{share}");
        }
        let without = maglev(&ten[1..]);
        let moved = with
            .iter()
            .zip(&without)
            .filter(|(a, b)| **a != 0 && **a != **b + 1)
            .count();
        assert!(
            moved < 4093 / 5,
            "{moved} slots changed hands beyond those of the one that left"
        );

        let weighted = maglev(&members(&[1, 3]));
        let share = weighted.iter().filter(|&&slot| slot == 1).count();
        assert!((3068..=3071).contains(&share), "{share}");
        assert!(
            maglev(&members(&[0, 0]))
                .iter()
                .all(|&slot| slot == RingWord::EMPTY)
        );
    }

    #[test]
    fn marks_are_the_kernels() {
        let marks = |weights: &[u32]| weighted_marks(weights.iter().copied());
        assert_eq!(marks(&[4, 6, 0]), (2, 5));
        assert_eq!(marks(&[3]), (3, 1));
        assert_eq!(marks(&[]), (1, 0));
        assert_eq!(marks(&[0]), (1, 0));
    }

    #[test]
    fn a_cursor_stays_with_its_destination() {
        assert_eq!(places(&[7, 8, 9], &[6, 7, 8, 9]), [0, 2, 3, 4]);
        assert_eq!(places(&[7, 8, 9], &[7, 9]), [0, 1, 1, 2]);
        assert_eq!(places(&[7, 8], &[8]), [0, 0, 1]);
        assert_eq!(
            pack(&[1, 2, 3, 4, 5]).collect::<Vec<_>>(),
            [0x0004_0003_0002_0001, 0xffff_ffff_ffff_0005]
        );
    }
}
