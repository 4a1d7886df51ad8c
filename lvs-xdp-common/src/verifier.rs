//! What the kernel's verifier has to see, and the compiler would leave out.

/// A number of which the compiler knows nothing, so that the mask or the check that follows it stays: what the
/// compiler has learnt of it elsewhere, the verifier has not.
///
/// Unlike [`core::hint::black_box`], which goes by way of the stack, it costs one move.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn opaque(mut number: usize) -> usize {
    // An instruction it must be: the kernel refuses line information for none.
    // SAFETY: the register keeps its value.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// The same number: there is no verifier here.
#[inline(always)]
#[cfg(not(target_arch = "bpf"))]
pub fn opaque(number: usize) -> usize {
    number
}
