//! Random numbers from a seed.

use proptest::test_runner::{RngAlgorithm, TestRng};

/// Random numbers.
pub(crate) struct Random(TestRng);

impl Random {
    /// Those of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut bytes = *b"lvs-xdp: the same for kernel and";
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// One below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        use proptest::prelude::Rng as _;
        self.0.next_u32() % limit
    }

    /// An index of so many things.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(u32::try_from(length).expect("few things")) as usize
    }

    /// Any octet.
    pub(crate) fn octet(&mut self) -> u8 {
        self.below(256).to_le_bytes()[0]
    }

    /// Any two octets.
    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.octet(), self.octet()])
    }

    /// So many octets.
    pub(crate) fn octets(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.octet()).collect()
    }

    /// True once in `number` times.
    pub(crate) fn one_in(&mut self, number: u32) -> bool {
        self.below(number) == 0
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.index(values.len())]
    }
}
