//! What the generator on a cable is told, and what it notes: one row. The benchmark compiles this file, too.

use lvs_xdp_common::atomic::Word;

/// The generator notes the time at the first packet and at every so many after it: once in a while, for the clock
/// costs as much as the rest of it.
pub(crate) const BETWEEN_MARKS: u64 = 1 << 11;

/// The row of the map `TRIP`.
#[repr(C)]
pub(crate) struct Trip {
    /// The interface that packets are sent by.
    pub(crate) if_index: Word,
    /// How many were sent: set to 0 before each run.
    pub(crate) sent: Word,
    /// When the first was, in ns of the monotonic clock.
    pub(crate) first: Word,
    /// When the last was whose number is a multiple of [`BETWEEN_MARKS`].
    pub(crate) last: Word,
}
