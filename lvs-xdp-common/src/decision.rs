//! What is decided about a packet: in one register while it is being decided, and in full for whoever sends it.

use crate::{abi::destination_flag, maps::Maps, packet::Mac, reason::Reason};

/// What becomes of a packet, in one register, so that each of the many ways to say "it stays" costs one
/// instruction: `length 32 | goes 1 | is sent 1 | is first fragment 1 | is packet 1 | reason 8 | destination 20`,
/// from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision(pub u64);

impl Decision {
    const PACKET: u64 = 1 << 28;
    const FIRST: u64 = 1 << 29;
    const SENT: u64 = 1 << 30;
    const GOES: u64 = 1 << 31;
    /// Nothing is left to do: the frame has been sent ([`crate::frame::Frame::send_back`]).
    pub const DONE: Self = Self(Self::SENT);

    /// It stays, for this reason.
    #[inline(always)]
    pub const fn stays(reason: Reason) -> Self {
        Self((reason as u64) << 20)
    }

    /// It goes to a destination. `length` is that of the IP packet, in bytes.
    #[inline(always)]
    pub const fn goes(reason: Reason, destination: u32, length: u32) -> Self {
        Self((length as u64) << 32 | Self::GOES | (reason as u64) << 20 | destination as u64)
    }

    /// Nothing is decided: the second look has found a packet, of which further fragments will come or not.
    #[inline(always)]
    pub const fn packet(is_first_fragment: bool) -> Self {
        Self(if is_first_fragment {
            Self::PACKET | Self::FIRST
        } else {
            Self::PACKET
        })
    }

    /// Whether nothing is decided yet: a packet was found and put down.
    #[inline(always)]
    pub const fn is_packet(self) -> bool {
        self.0 & Self::PACKET != 0
    }

    /// Whether nothing is left to do.
    #[inline(always)]
    pub const fn is_done(self) -> bool {
        self.0 & Self::SENT != 0
    }

    /// Whether further fragments of the packet will come.
    #[inline(always)]
    pub const fn is_first_fragment(self) -> bool {
        self.0 & Self::FIRST != 0
    }

    /// What becomes of it, and why.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        Reason::from_number((self.0 >> 20 & 0xff) as u32)
    }

    /// Where it goes; of an ICMP error, [`crate::unusual::whose`] says that.
    #[inline(always)]
    pub const fn destination(self) -> u32 {
        (self.0 & 0xf_ffff) as u32
    }

    /// Length of the IP packet in bytes, of what goes somewhere.
    #[inline(always)]
    pub const fn length(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// All that whoever sends the packet has to know.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the interface")]
    pub fn verdict<M: Maps>(self, maps: &M) -> Verdict {
        let was = self.reason();
        if self.0 & Self::GOES == 0 {
            return Verdict::stay(was);
        }
        let Some(row) = maps.destination(self.destination()) else {
            return Verdict::stay(Reason::Internal);
        };
        let towards = row.towards.load();
        let flags =
            towards & (destination_flag::RESOLVED | destination_flag::SPECIAL | destination_flag::LOCAL);
        let reason = if flags & destination_flag::LOCAL != 0 {
            Reason::Local
        } else if flags & destination_flag::RESOLVED == 0 {
            return Verdict::stay(Reason::Unresolved);
        } else {
            was
        };
        Verdict {
            reason,
            is_new: matches!(was, Reason::NewConnection | Reason::OnePacket),
            is_special: flags & destination_flag::SPECIAL != 0,
            destination: self.destination(),
            to: Mac(towards & Mac::MASK),
            from: Mac(row.from.load() & Mac::MASK),
            if_index: row.place.load() as u32,
            length: self.length(),
        }
    }
}

/// What is to be done with a packet: what [`Reason::outcome`] says. The rest is where it goes, and 0
/// where it goes nowhere (not an enum: what a variant leaves open, the compiler leaves uninitialised in
/// a register, which the verifier refuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it, and why.
    pub reason: Reason,
    /// The destination's id.
    pub destination: u32,
    /// The real server's MAC address.
    pub to: Mac,
    /// The MAC address of the director's interface towards it.
    pub from: Mac,
    /// That interface.
    pub if_index: u32,
    /// Length of the IP packet in bytes, for the counters.
    pub length: u32,
    /// Whether there is more to do to the frame than to write the MAC addresses ([`crate::rewrite`]).
    pub is_special: bool,
    /// Whether it starts a connection, for the counters.
    pub is_new: bool,
}

impl Verdict {
    /// A packet that goes nowhere.
    #[inline(always)]
    pub const fn stay(reason: Reason) -> Self {
        Self {
            reason,
            destination: 0,
            to: Mac(0),
            from: Mac(0),
            if_index: 0,
            length: 0,
            is_special: false,
            is_new: false,
        }
    }
}
