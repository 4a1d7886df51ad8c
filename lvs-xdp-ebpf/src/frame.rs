//! The packet of an XDP program as a frame with a checked end.

use aya_ebpf::programs::XdpContext;
use bytemuck::{AnyBitPattern, NoUninit};
use lvs_xdp_common::packet::Frame;

/// The packet.
pub(crate) struct Packet<'a>(pub(crate) &'a XdpContext);

impl Packet<'_> {
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.0.data() + offset;
        (start + size_of::<T>() <= self.0.data_end()).then_some(start as *mut T)
    }
}

impl Frame for Packet<'_> {
    #[inline(always)]
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared the value's end with the packet's; any bytes are a valid `T`.
        self.at::<T>(offset)
            .map(|value| unsafe { value.read_unaligned() })
    }

    #[inline(always)]
    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` has compared the value's end with the packet's.
        self.at::<T>(offset)
            .map(|place| unsafe { place.write_unaligned(value) })
    }
}
