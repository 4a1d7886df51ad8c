//! A frame with a checked end: read, written, and made longer or shorter.

use bytemuck::{AnyBitPattern, NoUninit};

use crate::{announce, maps::Maps, packet::Mac, reason::Reason, tunnel, unusual};

/// A frame that may be read, and written where its first bytes are, with its end checked.
pub trait Frame {
    /// The value at `offset` bytes from the frame's start, in the frame's own byte order; `None` past the end.
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;
    /// What is at `offset` bytes from the frame's start, where it lies; `None` past the end. `T` has fields that need no
    /// alignment, in the frame's own byte order. Unlike [`Self::load`] it is not carried about: of a copy the compiler
    /// makes loads that no field asked for.
    fn view<T: AnyBitPattern>(&self, offset: usize) -> Option<&T>;
    /// Writes `value` at `offset`; `None`, and nothing written, past the end.
    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()>;
    /// Whether it has at least `length` bytes, those in further buffers included, which cannot be read.
    fn holds(&self, length: usize) -> bool;
    /// As [`Self::load`], from further buffers, too.
    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        self.load(offset)
    }
    /// [`unusual::look`]; in the program a function of its own.
    fn look<M: Maps>(&self, maps: &M) -> u64 {
        unusual::look(self, maps)
    }
    /// Writes both MAC addresses, counts, and sends the frame back by the interface that it came in by, where the frame
    /// can do so itself: whether it has. That is the short way of the common packet in the program; elsewhere
    /// whoever has asked does what the verdict says.
    fn send_back(&self, _reason: Reason, _to: Mac, _from: Mac, _destination: u32, _length: u32) -> bool {
        false
    }
    /// [`announce::asked`]; in the program a function of its own.
    fn asked<M: Maps>(&self, maps: &M, ingress: u32) -> u64 {
        announce::asked(self, maps, ingress)
    }
    /// [`unusual::walk`]; in the program a function of its own.
    fn walk(&self, first: u32, at: u32) -> u64 {
        unusual::walk(self, first, at)
    }
}

/// A frame whose length can be changed.
pub trait Resize: Frame {
    /// Puts `by` bytes, of any value, before the first one.
    fn grow(&mut self, by: u32) -> Option<()>;
    /// Takes the first `by` bytes away.
    fn shrink(&mut self, by: u32) -> Option<()>;
    /// Cuts the frame off behind `length` bytes.
    fn cut(&mut self, length: u32) -> Option<()>;
    /// [`tunnel::encapsulate`]; in the program a function of its own.
    fn encapsulate<M: Maps>(&mut self, maps: &M, destination: u32, carried: u64) -> u32 {
        tunnel::encapsulate(self, maps, destination, carried)
    }
    /// [`tunnel::too_big::refuse`]; in the program a function of its own.
    fn too_big<M: Maps>(&mut self, maps: &M, fits: u32) -> u32 {
        tunnel::too_big::refuse(self, maps, fits)
    }
    /// [`tunnel::carried`]; in the program a function of its own.
    fn carried<M: Maps>(&self, maps: &M, destination: u32) -> u64 {
        tunnel::carried(self, maps, destination)
    }
    /// [`announce::answer`], whether it could be done; in the program a function of its own.
    fn advertise<M: Maps>(&mut self, maps: &M, ingress: u32) -> u32 {
        u32::from(announce::answer(self, maps, ingress).is_some())
    }
}

/// Both MAC addresses of a frame, each word as its octets are lowest first.
#[derive(Clone, Copy, NoUninit)]
#[repr(C, packed)]
struct Macs {
    first: u64,
    second: u32,
}

const _: () = assert!(cfg!(target_endian = "little"));

/// Writes both MAC addresses of a frame: of a plain frame, the only bytes that direct routing changes.
///
/// As one 8-byte and one 4-byte store, not octet by octet.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "what does not fit went into the first store"
)]
pub fn rewrite_macs<F: Frame + ?Sized>(frame: &mut F, to: Mac, from: Mac) -> Option<()> {
    let macs = Macs {
        first: to.0 & Mac::MASK | from.0 << 48,
        second: (from.0 >> 16) as u32,
    };
    frame.store(0, macs)
}

impl Frame for [u8] {
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn view<T: AnyBitPattern>(&self, offset: usize) -> Option<&T> {
        bytemuck::try_from_bytes(self.get(offset..offset.checked_add(size_of::<T>())?)?).ok()
    }

    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()> {
        self.get_mut(offset..offset.checked_add(size_of::<T>())?)?
            .copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    fn holds(&self, length: usize) -> bool {
        self.len() >= length
    }
}

/// A frame in this process's memory, for tests and simulations.
#[cfg(not(target_arch = "bpf"))]
mod memory {
    use alloc::vec::Vec;

    use bytemuck::{AnyBitPattern, NoUninit};

    use super::{Frame, Resize};

    /// What new bytes are: no value that an answer could rest on.
    const ANY: u8 = 0xa5;

    impl Frame for Vec<u8> {
        fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
            self.as_slice().load(offset)
        }

        fn view<T: AnyBitPattern>(&self, offset: usize) -> Option<&T> {
            self.as_slice().view(offset)
        }

        fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()> {
            self.as_mut_slice().store(offset, value)
        }

        fn holds(&self, length: usize) -> bool {
            self.as_slice().holds(length)
        }
    }

    impl Resize for Vec<u8> {
        fn grow(&mut self, by: u32) -> Option<()> {
            self.splice(..0, core::iter::repeat_n(ANY, by as usize));
            Some(())
        }

        fn shrink(&mut self, by: u32) -> Option<()> {
            self.holds(by as usize).then(|| drop(self.drain(..by as usize)))
        }

        fn cut(&mut self, length: u32) -> Option<()> {
            // As in the kernel, behind what is there already a frame grows.
            self.resize(length as usize, ANY);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn only_the_mac_addresses_are_rewritten() {
        let mut frame: Vec<u8> = (0..60).collect();
        let before = frame.clone();
        rewrite_macs(
            &mut frame,
            Mac::from_octets([1, 2, 3, 4, 5, 6]),
            Mac::from_octets([7, 8, 9, 10, 11, 12]),
        );
        assert_eq!(frame[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(frame[12..], before[12..]);
    }
}
