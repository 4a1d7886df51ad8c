//! What the generator makes: the row by which the benchmark tells it. Both compile this file.

use lvs_xdp_common::atomic::Word;

/// Words of a template: 96 bytes.
pub(crate) const WORDS: usize = 12;

/// The row of the map `PLAN`.
#[repr(C)]
pub(crate) struct Plan {
    /// The frame, padded with zeros.
    pub(crate) template: [Word; WORDS],
    /// Its length in bytes: 60, or 96.
    pub(crate) length: Word,
    /// The number of the last flow. The next one's is `flow * multiplier + increment`, modulo the number of flows.
    pub(crate) flow: Word,
    /// Of the order of flows; 1 more than a multiple of 4.
    pub(crate) multiplier: Word,
    /// Of the order of flows; odd.
    pub(crate) increment: Word,
    /// The number of flows less 1; that number is a power of two, so that the order meets all of them.
    pub(crate) flows_mask: Word,
    /// 0: all flows have as many packets. Else the number of flows is two to the power of this, and the flow that has
    /// the n-th most packets has about 1/n of the first one's (Zipf's law).
    pub(crate) skew: Word,
    /// The number of services less 1; a power of two too.
    pub(crate) services_mask: Word,
    /// Where the frame has the last four bytes of the client's address.
    pub(crate) client_at: Word,
    /// Where it has the client's port.
    pub(crate) client_port_at: Word,
    /// Where it has the last four bytes of the virtual address; an ICMP error has it twice.
    pub(crate) virtual_at: [Word; 2],
    /// The last four bytes of the first client's address, as a number.
    pub(crate) client: Word,
    /// The last four bytes of the first virtual address, as a number.
    pub(crate) virtual_address: Word,
    /// How many packets were made.
    pub(crate) made: Word,
}
