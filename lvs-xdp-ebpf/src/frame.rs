//! The packet of an XDP program as a frame with a checked end.

use core::{hint::assert_unchecked, mem::MaybeUninit};

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use bytemuck::{AnyBitPattern, NoUninit};
use lvs_xdp_common::{
    frame::{Frame, Resize, rewrite_macs},
    maps::Maps,
    packet::Mac,
    reason::Reason,
    verifier::opaque,
};

use crate::{
    LOG_PACKETS,
    maps::{advertise, asked, carried, count, count_forwarded, encapsulate, look, too_big, walk},
};

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
    fn view<T: AnyBitPattern>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let value = self.at::<T>(offset)?;
        // SAFETY: no packet is at address 0, of which the compiler would make a check of its own.
        unsafe { assert_unchecked(!value.is_null()) };
        // SAFETY: `at` has compared the value's end with the packet's; any bytes are a valid `T`, which needs no
        // alignment. What changes the packet takes it by `&mut`, or returns to nobody who looks at it again.
        Some(unsafe { &*value })
    }

    #[inline(always)]
    fn store<T: NoUninit>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` has compared the value's end with the packet's.
        self.at::<T>(offset)
            .map(|place| unsafe { place.write_unaligned(value) })
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        // One subtraction of the two ends, which the verifier allows, before anything else is done with them.
        let first_buffer = opaque(self.0.data_end() - self.0.data());
        // SAFETY: the context is the program's own.
        length <= first_buffer || length as u64 <= unsafe { bpf_xdp_get_buff_len(self.0.ctx) }
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the program reads no value of 4 GiB, nor behind as much"
    )]
    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let length = size_of::<T>() as u32;
        // SAFETY: the context is the program's own, and the place has `length` bytes.
        let status =
            unsafe { bpf_xdp_load_bytes(self.0.ctx, offset as u32, value.as_mut_ptr().cast(), length) };
        // SAFETY: the kernel has written all of it where it returns 0; any bytes are a valid `T`.
        (status == 0).then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn look<M: Maps>(&self, _: &M) -> u64 {
        // There is one set of maps.
        look(self.0.ctx)
    }

    #[inline(always)]
    fn send_back(&self, reason: Reason, to: Mac, from: Mac, destination: u32, length: u32) -> bool {
        // What is logged has to go the long way.
        if LOG_PACKETS.load() != 0 || rewrite_macs(&mut Packet(self.0), to, from).is_none() {
            return false;
        }
        count(reason);
        count_forwarded(destination, length, false);
        true
    }

    #[inline(always)]
    fn asked<M: Maps>(&self, _: &M, ingress: u32) -> u64 {
        asked(self.0.ctx, ingress)
    }

    #[inline(always)]
    fn walk(&self, first: u32, at: u32) -> u64 {
        walk(self.0.ctx, first, at)
    }
}

impl Resize for Packet<'_> {
    #[inline(always)]
    fn grow(&mut self, by: u32) -> Option<()> {
        // SAFETY: the context is the program's own; every access to the packet reads its ends anew.
        let status = unsafe { bpf_xdp_adjust_head(self.0.ctx, -by.cast_signed()) };
        (status == 0).then_some(())
    }

    #[inline(always)]
    fn shrink(&mut self, by: u32) -> Option<()> {
        // SAFETY: as for `grow`.
        let status = unsafe { bpf_xdp_adjust_head(self.0.ctx, by.cast_signed()) };
        (status == 0).then_some(())
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a frame has less than 2^31 bytes")]
    fn cut(&mut self, length: u32) -> Option<()> {
        // SAFETY: the context is the program's own. All buffers count: what is cut off lies in the last one.
        let now = unsafe { bpf_xdp_get_buff_len(self.0.ctx) } as u32;
        // SAFETY: as for `grow`.
        let status = unsafe { bpf_xdp_adjust_tail(self.0.ctx, length.cast_signed() - now.cast_signed()) };
        (status == 0).then_some(())
    }

    #[inline(always)]
    fn encapsulate<M: Maps>(&mut self, _: &M, destination: u32, carried: u64) -> u32 {
        encapsulate(self.0.ctx, destination, carried)
    }

    #[inline(always)]
    fn too_big<M: Maps>(&mut self, _: &M, fits: u32) -> u32 {
        too_big(self.0.ctx, fits)
    }

    #[inline(always)]
    fn carried<M: Maps>(&self, _: &M, destination: u32) -> u64 {
        carried(self.0.ctx, destination)
    }

    #[inline(always)]
    fn advertise<M: Maps>(&mut self, _: &M, ingress: u32) -> u32 {
        advertise(self.0.ctx, ingress)
    }
}
