//! What one connection entry says: its state, its time-out, and the word that holds both.
//!
//! The states are those of net/netfilter/ipvs/ip_vs_proto_tcp.c, table `tcp_states`, as they are seen
//! from one side only (INPUT_ONLY), since with direct routing the answers do not pass the director.

use crate::packet::TcpFlag;

/// The state of an entry. Its number stands in the entry's word and indexes the time-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No entry.
    Empty = 0,
    /// A CPU is writing the entry.
    Claimed = 1,
    /// A persistence template none of whose connections was established yet.
    Template = 2,
    /// A persistence template.
    Assured = 3,
    /// UDP.
    Udp = 4,
    /// TCP: a SYN was seen, nothing else.
    SynRecv = 5,
    /// TCP: established.
    Established = 6,
    /// TCP: the client closed.
    FinWait = 7,
    /// TCP: closed.
    TimeWait = 8,
    /// TCP: reset.
    Close = 9,
}

/// How an entry counts for its destination (`ip_vs_tcp_state_active` and its like).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Not at all.
    Nothing,
    /// As active.
    Active,
    /// As inactive.
    Inactive,
    /// As a template.
    Template,
}

impl State {
    /// The state of this number; what no version knows is [`State::Empty`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Claimed,
            2 => Self::Template,
            3 => Self::Assured,
            4 => Self::Udp,
            5 => Self::SynRecv,
            6 => Self::Established,
            7 => Self::FinWait,
            8 => Self::TimeWait,
            9 => Self::Close,
            _ => Self::Empty,
        }
    }

    /// IPVS's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty | Self::Claimed | Self::Template => "NONE",
            Self::Assured => "ASSURED",
            Self::Udp => "UDP",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
        }
    }

    /// How an entry in this state counts.
    #[inline(always)]
    pub const fn count(self) -> Count {
        match self {
            Self::Empty | Self::Claimed => Count::Nothing,
            Self::Template | Self::Assured => Count::Template,
            Self::SynRecv | Self::Established => Count::Active,
            Self::Udp | Self::FinWait | Self::TimeWait | Self::Close => Count::Inactive,
        }
    }

    /// Whether an entry in this state gives way when a new one needs room: nobody has proved to be there.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::Template | Self::SynRecv)
    }

    /// Whether a SYN may be scheduled anew (`is_new_conn_expected`, conn_reuse_mode 1, without answers seen).
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close)
    }

    /// The state that a packet starts an entry in.
    #[inline(always)]
    pub const fn first(is_tcp: bool, flag: TcpFlag) -> Self {
        if !is_tcp {
            return Self::Udp;
        }
        match flag {
            TcpFlag::Syn => Self::SynRecv,
            TcpFlag::Ack => Self::Established,
            TcpFlag::Fin | TcpFlag::Rst | TcpFlag::None => Self::Close,
        }
    }

    /// The state after a packet.
    ///
    /// CLOSE_WAIT and LAST_ACK of the kernel's table are reached from themselves only when answers are
    /// not seen, so they are not here.
    #[inline(always)]
    pub const fn next(self, flag: TcpFlag) -> Self {
        match (flag, self) {
            (TcpFlag::Syn, Self::Established) => Self::Established,
            (TcpFlag::Syn, Self::SynRecv | Self::FinWait | Self::TimeWait | Self::Close) => Self::SynRecv,
            (TcpFlag::Fin, Self::Established) => Self::FinWait,
            (TcpFlag::Fin, Self::SynRecv) => Self::TimeWait,
            (TcpFlag::Ack, Self::SynRecv) => Self::Established,
            (TcpFlag::Rst, Self::Established | Self::FinWait | Self::TimeWait) => Self::Close,
            _ => self,
        }
    }
}

/// The time-outs of IPVS in seconds, by state: what `Control::timeouts` starts with.
/// Templates take their service's.
pub const TIMEOUTS: [u32; 16] = {
    let mut timeouts = [0; 16];
    // No entries: they never expire.
    timeouts[State::Empty as usize] = u32::MAX;
    timeouts[State::Claimed as usize] = u32::MAX;
    timeouts[State::Template as usize] = 360;
    timeouts[State::Assured as usize] = 360;
    timeouts[State::Udp as usize] = 300;
    timeouts[State::SynRecv as usize] = 60;
    timeouts[State::Established as usize] = 900;
    timeouts[State::FinWait as usize] = 120;
    timeouts[State::TimeWait as usize] = 120;
    timeouts[State::Close as usize] = 10;
    timeouts
};

/// Time-outs above this are counted in units of [`COARSE_SECONDS`].
pub const FINE_MAX: u32 = 16_384;
/// The coarse unit.
pub const COARSE_SECONDS: u32 = 1 << COARSE_SHIFT;
const COARSE_SHIFT: u32 = 6;

/// An entry of the connection table: one 64-bit word.
///
/// `tag 23 | destination id 20 | state 4 | coarse 1 | last seen 16`, from the top. The time it was
/// last seen is in seconds of the director's clock, or, with `coarse`, in units of 64 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub u64);

const TAG_SHIFT: u32 = 41;
const DESTINATION_SHIFT: u32 = 21;
const STATE_SHIFT: u32 = 17;
const COARSE: u64 = 1 << 16;
const SEEN_MASK: u64 = 0xffff;

impl Entry {
    /// No entry.
    pub const EMPTY: Self = Self(0);

    /// An entry last seen at second `now`; `timeout` is its state's, in seconds.
    #[inline(always)]
    pub const fn new(tag: u32, destination: u32, state: State, now: u32, timeout: u32) -> Self {
        let stamp = if timeout > FINE_MAX {
            COARSE | (now / COARSE_SECONDS) as u64 & SEEN_MASK
        } else {
            now as u64 & SEEN_MASK
        };
        Self(
            (tag as u64) << TAG_SHIFT
                | (destination as u64) << DESTINATION_SHIFT
                | (state as u64) << STATE_SHIFT
                | stamp,
        )
    }

    /// Tells the flows of a bucket apart; 23 bits of the flow hash.
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        (self.0 >> TAG_SHIFT) as u32
    }

    /// The destination's id.
    #[inline(always)]
    pub const fn destination(self) -> u32 {
        (self.0 >> DESTINATION_SHIFT & 0xf_ffff) as u32
    }

    /// The state.
    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_number(self.state_number())
    }

    /// The state's number, below 16.
    #[inline(always)]
    pub const fn state_number(self) -> u64 {
        self.0 >> STATE_SHIFT & 0xf
    }

    /// Whether this is an entry, and a whole one.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.state_number() > State::Claimed as u64
    }

    /// The same entry, seen at second `now` in `state`, whose time-out is `timeout` seconds.
    #[inline(always)]
    pub const fn seen(self, state: State, now: u32, timeout: u32) -> Self {
        Self::new(self.tag(), self.destination(), state, now, timeout)
    }

    /// Seconds since it was last seen. Times before `now` wrap after 65,520 units; up to 16 units after
    /// `now` are no age at all: another CPU, or the program while the agent looks, may be a tick ahead.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        // 0 or 6, without a branch.
        let shift = (self.0 >> 14 & 4 | self.0 >> 15 & 2) as u32;
        let ahead = ((now >> shift).wrapping_sub(self.0 as u32).wrapping_add(16) & 0xffff).wrapping_sub(16);
        // All ones where it is negative.
        (ahead & !((ahead as i32 >> 31) as u32)) << shift
    }

    /// Whether its time-out of `timeout` seconds has passed.
    #[inline(always)]
    pub const fn is_expired(self, now: u32, timeout: u32) -> bool {
        self.age(now) > timeout
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_entry_of_a_clock_that_is_ahead_is_new() {
        for state in [State::Established, State::Udp] {
            for timeout in [60, 900, 1_000_000] {
                let entry = Entry::new(1, 2, state, 6_400_000, timeout);
                assert_eq!(entry.age(6_400_000 - 2), 0);
                assert!(!entry.is_expired(6_400_000 - 2, timeout));
                assert_eq!(entry.age(6_400_000 + 640), 640);
            }
        }
    }

    use proptest::prelude::*;

    use super::*;

    /// ipvs.md's table, row by row, for the states that are reached: the kernel's `tcp_states`, INPUT_ONLY.
    #[test]
    fn tcp_states_are_the_kernels() {
        use State::{Close as CL, Established as ES, FinWait as FW, SynRecv as SR, TimeWait as TW};
        let from = [ES, SR, FW, TW, CL];
        for (flag, to) in [
            (TcpFlag::Syn, [ES, SR, SR, SR, SR]),
            (TcpFlag::Fin, [FW, TW, FW, TW, CL]),
            (TcpFlag::Ack, [ES, ES, FW, TW, CL]),
            (TcpFlag::Rst, [CL, SR, CL, CL, CL]),
        ] {
            assert_eq!(from.map(|state| state.next(flag)), to, "{flag:?}");
        }
        for state in from {
            assert_eq!(state.next(TcpFlag::None), state);
        }
    }

    #[test]
    fn an_entry_starts_as_its_first_packet_says() {
        assert_eq!(State::first(true, TcpFlag::Syn), State::SynRecv);
        assert_eq!(State::first(true, TcpFlag::Ack), State::Established);
        assert_eq!(State::first(true, TcpFlag::Fin), State::Close);
        assert_eq!(State::first(true, TcpFlag::Rst), State::Close);
        assert_eq!(State::first(false, TcpFlag::None), State::Udp);
    }

    #[test]
    fn time_outs_are_ipvs_defaults() {
        let of = |state: State| TIMEOUTS[state as usize];
        assert_eq!(
            [of(State::SynRecv), of(State::Established), of(State::FinWait)],
            [60, 900, 120]
        );
        assert_eq!(
            [of(State::TimeWait), of(State::Close), of(State::Udp)],
            [120, 10, 300]
        );
    }

    proptest! {
        #[test]
        fn a_word_keeps_its_parts(tag in 0..1u32 << 23, destination in 0..1u32 << 20, state in 0..10u64, now: u32, timeout in 0..2_678_400u32) {
            let state = State::from_number(state);
            let entry = Entry::new(tag, destination, state, now, timeout);
            prop_assert_eq!((entry.tag(), entry.destination(), entry.state()), (tag, destination, state));
            prop_assert!(entry.age(now) < COARSE_SECONDS);
        }

        #[test]
        fn an_entry_expires_when_its_time_has_passed_and_not_before(now in 0..u32::MAX / 2, timeout in 1..2_678_400u32, after in 0..3_000_000u32) {
            let entry = Entry::new(1, 1, State::Assured, now, timeout);
            let unit = if timeout > FINE_MAX { COARSE_SECONDS } else { 1 };
            // The word's clock has 65,536 units; the sweep removes entries long before they wrap.
            prop_assume!(after < 65_536 * unit - unit);
            if after > timeout + unit {
                prop_assert!(entry.is_expired(now + after, timeout));
            }
            if after <= timeout {
                prop_assert!(!entry.is_expired(now + after, timeout) || after + unit > timeout);
            }
        }
    }
}
