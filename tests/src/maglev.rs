//! mh's table, a second time: from the kernel's formula and another crate's SipHash.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

/// The kernel's number of slots, by default.
const SLOTS: u32 = 4093;
const FIRST: u64 = 2_654_435_761;
const SECOND: u64 = 2_654_446_892;

/// hsiphash of one 32-bit number, as the kernel has it on 64 bits.
fn hash(value: u32, key: u64) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(key, key);
    hasher.write(&value.to_le_bytes());
    (hasher.finish() & 0xffff_ffff) as u32
}

/// Which of its servers each slot has, by its place in the list.
#[derive(Debug)]
pub struct Table(Vec<usize>);

impl Table {
    /// The kernel's table for these servers, in the order of its list, all of weight 1, at this port. An address is
    /// what the kernel folds it to: of IPv6, the XOR of its four words.
    pub fn new(servers: &[u32], port: u16) -> Self {
        let mut next: Vec<(u32, u32)> = servers
            .iter()
            .map(|server| {
                let what = server.wrapping_add(u32::from(port));
                (hash(what, FIRST) % SLOTS, hash(what, SECOND) % (SLOTS - 1) + 1)
            })
            .collect();
        let mut table = vec![None; SLOTS as usize];
        let mut filled = 0;
        while filled < SLOTS {
            for (server, (offset, skip)) in next.iter_mut().enumerate() {
                if filled == SLOTS {
                    break;
                }
                while table[*offset as usize].is_some() {
                    *offset = (*offset + *skip) % SLOTS;
                }
                table[*offset as usize] = Some(server);
                filled += 1;
            }
        }
        Self(table.into_iter().flatten().collect())
    }

    /// The place in the list of the server that a client goes to.
    pub fn server(&self, client: u32) -> usize {
        self.0[(hash(client, FIRST) % SLOTS) as usize]
    }
}
