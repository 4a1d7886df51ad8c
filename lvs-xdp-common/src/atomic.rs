//! A 64-bit word that the program, the agent and all CPUs share.

use core::cell::UnsafeCell;

/// One 64-bit word of a map, read and changed atomically.
///
/// Every row of every shared map is made of these, so that no reader ever sees half a word and a
/// reference to a row may be held while others write to it.
#[repr(transparent)]
#[derive(Default)]
pub struct Word(UnsafeCell<u64>);

// SAFETY: all access goes through atomic operations (on BPF: volatile 8-byte loads and stores, which
// the kernel's JITs emit as one instruction, and the atomic instructions of ISA v3).
unsafe impl Sync for Word {}

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::Word;
    use crate::crash;

    impl Word {
        fn atomic(&self) -> &AtomicU64 {
            // SAFETY: `Word` has the size and alignment of a u64, lives as long as the reference that
            // is returned, and is accessed atomically only.
            unsafe { AtomicU64::from_ptr(self.0.get()) }
        }

        /// The word's value.
        pub fn load(&self) -> u64 {
            self.atomic().load(Ordering::Acquire)
        }

        /// Sets the value.
        pub fn store(&self, value: u64) {
            crash::point();
            self.atomic().store(value, Ordering::Release);
        }

        /// Replaces `old` by `new`; false, and nothing changed, where the word is not `old`.
        #[must_use]
        pub fn swap(&self, old: u64, new: u64) -> bool {
            crash::point();
            self.atomic()
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        }

        /// Adds `delta`, wrapping; what the word is after that.
        pub fn add(&self, delta: u64) -> u64 {
            crash::point();
            self.atomic()
                .fetch_add(delta, Ordering::SeqCst)
                .wrapping_add(delta)
        }
    }
}

#[cfg(target_arch = "bpf")]
mod imp {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

    use super::Word;

    impl Word {
        /// The word's value.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: the reference is valid and aligned; a volatile 8-byte load is one instruction.
            unsafe { self.0.get().read_volatile() }
        }

        /// Sets the value.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: as for `load`.
            unsafe { self.0.get().write_volatile(value) };
        }

        /// Replaces `old` by `new`; false, and nothing changed, where the word is not `old`.
        #[inline(always)]
        #[must_use]
        pub fn swap(&self, old: u64, new: u64) -> bool {
            const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
            // SAFETY: the reference is valid and aligned, and the word is accessed atomically only.
            unsafe { atomic_cxchg::<u64, ORDER, ORDER>(self.0.get(), old, new).0 == old }
        }

        /// Adds `delta`, wrapping; what the word is after that.
        #[inline(always)]
        pub fn add(&self, delta: u64) -> u64 {
            // SAFETY: as for `swap`.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), delta) }
                .wrapping_add(delta)
        }
    }
}

impl Word {
    /// A word of this value.
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }
}

impl core::fmt::Debug for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.load())
    }
}
