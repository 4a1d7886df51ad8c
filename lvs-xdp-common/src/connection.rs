//! What one connection entry says: its state, its time-out, and the word that holds both.
//!
//! The states are those of net/netfilter/ipvs/ip_vs_proto_{tcp,sctp}.c (`tcp_states`, `sctp_states`), as
//! they are seen from one side only (INPUT_ONLY), since with direct routing the answers do not pass the
//! director. States that are never reached from there are left out.

use crate::{
    packet::IpProto,
    signal::{Event, Signal},
};

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
    /// SCTP: an INIT was seen.
    Init1 = 10,
    /// SCTP: more than one INIT was seen.
    Init = 11,
    /// SCTP: the client has answered an INIT of the server's.
    CookieEchoed = 12,
    /// SCTP: established.
    Associated = 13,
    /// SCTP: the client closed.
    ShutdownReceived = 14,
    /// SCTP: closed.
    Closed = 15,
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
            10 => Self::Init1,
            11 => Self::Init,
            12 => Self::CookieEchoed,
            13 => Self::Associated,
            14 => Self::ShutdownReceived,
            15 => Self::Closed,
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
            Self::Established | Self::Associated => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::Init1 => "INIT1",
            Self::Init => "INIT",
            Self::CookieEchoed => "C-ECHOED",
            Self::ShutdownReceived => "S-RECEIVED",
            Self::Closed => "CLOSED",
        }
    }

    /// How an entry in this state counts.
    #[inline(always)]
    pub const fn count(self) -> Count {
        match self {
            Self::Empty | Self::Claimed => Count::Nothing,
            Self::Template | Self::Assured => Count::Template,
            Self::SynRecv | Self::Established | Self::Associated => Count::Active,
            Self::Udp
            | Self::FinWait
            | Self::TimeWait
            | Self::Close
            | Self::Init1
            | Self::Init
            | Self::CookieEchoed
            | Self::ShutdownReceived
            | Self::Closed => Count::Inactive,
        }
    }

    /// Whether an entry in this state gives way when a new one needs room: nobody has proved to be there.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(
            self,
            Self::Template | Self::SynRecv | Self::Init1 | Self::Init | Self::CookieEchoed
        )
    }

    /// Whether it is a persistence template's.
    #[inline(always)]
    pub const fn is_template(self) -> bool {
        matches!(self, Self::Template | Self::Assured)
    }

    /// Whether it is an SCTP association's.
    #[inline(always)]
    pub const fn is_sctp(self) -> bool {
        self as u8 >= Self::Init1 as u8
    }

    /// Whether a connection in this state has been set up by both sides: then its client is really there
    /// (`ip_vs_control_assure_ct`).
    #[inline(always)]
    pub const fn is_established(self) -> bool {
        matches!(self, Self::Established | Self::Associated)
    }

    /// Whether what opens a connection may be scheduled anew (`is_new_conn_expected`, conn_reuse_mode 1).
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close | Self::Closed)
    }

    /// The state that a packet starts an entry in.
    #[inline(always)]
    pub const fn first(protocol: IpProto, signal: Signal) -> Self {
        match protocol {
            IpProto::TCP => Self::from_number(FIRST >> (4 * signal.event(protocol) as u64) & 0xf),
            IpProto::SCTP => Self::from_number(FIRST >> (4 * signal.event(protocol) as u64) & 0xf),
            _ => Self::Udp,
        }
    }

    /// The state after an event of the entry's own protocol.
    #[inline(always)]
    pub const fn next(self, event: Event) -> Self {
        Self::from_number(transitions(event) >> (4 * self as u64) & 0xf)
    }
}

/// The state that an event starts an entry in, four bits an event.
const FIRST: u64 = {
    use State::{Associated, Close, Closed, CookieEchoed, Established, Init1, ShutdownReceived, SynRecv};
    let states = [
        (Event::None, Close),
        (Event::Rst, Close),
        (Event::Syn, SynRecv),
        (Event::Fin, Close),
        (Event::Ack, Established),
        (Event::Data, Associated),
        (Event::Init, Init1),
        (Event::InitAck, CookieEchoed),
        (Event::CookieEcho, Associated),
        (Event::CookieAck, Associated),
        (Event::Shutdown, ShutdownReceived),
        (Event::ShutdownAck, Closed),
        (Event::ShutdownComplete, Closed),
        (Event::Error, Closed),
        (Event::Abort, Closed),
    ];
    let mut table = 0;
    let mut index = 0;
    while index < states.len() {
        table |= (states[index].1 as u64) << (4 * states[index].0 as u64);
        index += 1;
    }
    table
};

/// Every state's next one, four bits a state. Events of the other protocol and states without a
/// transition stay.
const fn table(changes: &[(State, State)]) -> u64 {
    let mut table = 0xfedc_ba98_7654_3210;
    let mut index = 0;
    while index < changes.len() {
        let (from, to) = changes[index];
        let shift = 4 * from as u64;
        table = table & !(0xf << shift) | (to as u64) << shift;
        index += 1;
    }
    table
}

/// The rows of the kernel's two tables, column by column where anything changes.
#[inline(always)]
const fn transitions(event: Event) -> u64 {
    use State::{
        Associated as ES, Close as CL, Closed as SCL, CookieEchoed as CE, Established as EST, FinWait as FW,
        Init as IN, Init1 as I1, ShutdownReceived as SR, SynRecv as SYN, TimeWait as TW,
    };
    match event {
        Event::None | Event::Data | Event::Error => const { table(&[]) },
        Event::Syn => const { table(&[(FW, SYN), (TW, SYN), (CL, SYN)]) },
        Event::Fin => const { table(&[(EST, FW), (SYN, TW)]) },
        Event::Ack => const { table(&[(SYN, EST)]) },
        Event::Rst => const { table(&[(EST, CL), (FW, CL), (TW, CL)]) },
        Event::Init => const { table(&[(I1, IN), (SCL, IN)]) },
        Event::InitAck => const { table(&[(I1, CE), (IN, CE)]) },
        Event::CookieEcho => const { table(&[(I1, ES), (IN, ES)]) },
        Event::CookieAck => const { table(&[(CE, ES)]) },
        Event::Shutdown => const { table(&[(ES, SR)]) },
        Event::ShutdownAck => const { table(&[(I1, IN), (ES, SCL)]) },
        Event::ShutdownComplete => const { table(&[(I1, SCL), (IN, SCL), (SR, SCL)]) },
        Event::Abort => const { table(&[(I1, SCL), (IN, SCL), (CE, SCL), (ES, SCL), (SR, SCL)]) },
    }
}

/// Where the time-out of an entry stands in `Control::timeouts`: its state's number and its `coarse` bit.
#[inline(always)]
pub const fn timeout_index(state: State, is_coarse: bool) -> usize {
    (state as usize) << 1 | is_coarse as usize
}

/// The time-outs of IPVS in seconds: what `Control::timeouts` starts with, by [`timeout_index`].
///
/// Templates have their service's time-out: their word says when they end, not when they were last seen
/// ([`Entry::until`]), so what stands here for them is the longest that their unit can say.
pub const TIMEOUTS: [u32; 32] = {
    let seconds = [
        // No entries: they never expire.
        (State::Empty, u32::MAX),
        (State::Claimed, u32::MAX),
        (State::Template, FINE_MAX),
        (State::Assured, FINE_MAX),
        (State::Udp, 300),
        (State::SynRecv, 60),
        (State::Established, 900),
        (State::FinWait, 120),
        (State::TimeWait, 120),
        (State::Close, 10),
        (State::Init1, 4),
        (State::Init, 61),
        (State::CookieEchoed, 61),
        (State::Associated, 900),
        (State::ShutdownReceived, 61),
        (State::Closed, 61),
    ];
    let mut timeouts = [0; 32];
    let mut index = 0;
    while index < seconds.len() {
        let (state, seconds) = seconds[index];
        timeouts[timeout_index(state, false)] = seconds;
        timeouts[timeout_index(state, true)] = if state.is_template() { COARSE_MAX } else { seconds };
        index += 1;
    }
    timeouts
};

/// Time-outs above this are counted in units of [`COARSE_SECONDS`].
pub const FINE_MAX: u32 = 16_384;
/// The longest time-out: 31 days (`MAX_TIMEOUT` of ipvsadm), a whole number of coarse units.
pub const COARSE_MAX: u32 = 86_400 * 31;
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
/// Units of its clock that the one who has written an entry may be ahead of the one who reads it.
const AHEAD: u32 = 16;

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
        Self::pack(tag, destination, state, stamp)
    }

    /// A template that ends `remaining` seconds after `now`, at most [`COARSE_MAX`]: seen as long ago as
    /// leaves it so much of the longest time-out.
    #[inline(always)]
    pub const fn until(tag: u32, destination: u32, state: State, now: u32, remaining: u32) -> Self {
        let stamp = if remaining > FINE_MAX {
            let units = remaining.div_ceil(COARSE_SECONDS);
            COARSE
                | (now / COARSE_SECONDS)
                    .wrapping_add(units)
                    .wrapping_sub(COARSE_MAX / COARSE_SECONDS) as u64
                    & SEEN_MASK
        } else {
            now.wrapping_add(remaining).wrapping_sub(FINE_MAX) as u64 & SEEN_MASK
        };
        Self::pack(tag, destination, state, stamp)
    }

    #[inline(always)]
    const fn pack(tag: u32, destination: u32, state: State, stamp: u64) -> Self {
        Self(
            (tag as u64) << TAG_SHIFT
                | (destination as u64) << DESTINATION_SHIFT
                | (state as u64) << STATE_SHIFT
                | stamp,
        )
    }

    /// The same entry with another tag.
    #[inline(always)]
    pub const fn with_tag(self, tag: u32) -> Self {
        Self(self.0 & ((1 << TAG_SHIFT) - 1) | (tag as u64) << TAG_SHIFT)
    }

    /// The same entry in another state, with its time as it is.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self(self.0 & !(0xf << STATE_SHIFT) | (state as u64) << STATE_SHIFT)
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

    /// Where its time-out stands in `Control::timeouts`, below 32.
    #[inline(always)]
    pub const fn timeout_index(self) -> u64 {
        self.0 >> 16 & 0x1f
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

    /// Whether it was last seen in second `now`, by its own clock of seconds; of one that has a coarse clock nothing is
    /// said.
    #[inline(always)]
    pub const fn is_current(self, now: u32) -> bool {
        self.0 & (COARSE | SEEN_MASK) == now as u64 & SEEN_MASK
    }

    /// Seconds since it was last seen. Times before `now` wrap after 65,520 units; up to 16 units after
    /// `now` are no age at all: another CPU, or the program while the agent looks, may be a tick ahead.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        let ahead = self.units(now).wrapping_sub(AHEAD);
        // All ones where it is negative.
        (ahead & !((ahead as i32 >> 31) as u32)) << self.shift()
    }

    /// 0, or what makes seconds of the units of a coarse clock; without a branch.
    #[inline(always)]
    const fn shift(self) -> u32 {
        (self.0 >> 16 & 1) as u32 * COARSE_SHIFT
    }

    /// Units of its clock since it was last seen, and [`AHEAD`] more.
    #[inline(always)]
    const fn units(self, now: u32) -> u32 {
        (now >> self.shift())
            .wrapping_sub(self.0 as u32)
            .wrapping_add(AHEAD)
            & 0xffff
    }

    /// Whether its time-out of `timeout` seconds has passed, in the top bit of the first number, whose others mean
    /// nothing; the second is the greater, the longer ago it was seen.
    #[inline(always)]
    pub const fn overdue(self, now: u32, timeout: u32) -> (u64, u32) {
        let units = self.units(now);
        let most = (timeout >> self.shift()) as u64 + AHEAD as u64;
        (most.wrapping_sub(units as u64), units << self.shift())
    }

    /// Whether its time-out of `timeout` seconds has passed.
    #[inline(always)]
    pub const fn is_expired(self, now: u32, timeout: u32) -> bool {
        self.overdue(now, timeout).0 >> 63 != 0
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
        for (event, to) in [
            (Event::Syn, [ES, SR, SR, SR, SR]),
            (Event::Fin, [FW, TW, FW, TW, CL]),
            (Event::Ack, [ES, ES, FW, TW, CL]),
            (Event::Rst, [CL, SR, CL, CL, CL]),
            (Event::None, from),
        ] {
            assert_eq!(from.map(|state| state.next(event)), to, "{event:?}");
        }
        assert_eq!(State::Udp.next(Event::None), State::Udp);
    }

    /// The rows of the kernel's `sctp_states`, INPUT_ONLY, for the states that are reached.
    #[test]
    fn sctp_states_are_the_kernels() {
        use State::{
            Associated as ES, Closed as CL, CookieEchoed as CE, Init as IN, Init1 as I1,
            ShutdownReceived as SR,
        };
        let from = [I1, IN, CE, ES, SR, CL];
        for (event, first, to) in [
            (Event::Data, ES, from),
            (Event::Init, I1, [IN, IN, CE, ES, SR, IN]),
            (Event::InitAck, CE, [CE, CE, CE, ES, SR, CL]),
            (Event::CookieEcho, ES, [ES, ES, CE, ES, SR, CL]),
            (Event::CookieAck, ES, [I1, IN, ES, ES, SR, CL]),
            (Event::Shutdown, SR, [I1, IN, CE, SR, SR, CL]),
            (Event::ShutdownAck, CL, [IN, IN, CE, CL, SR, CL]),
            (Event::ShutdownComplete, CL, [CL, CL, CE, ES, CL, CL]),
            (Event::Error, CL, from),
            (Event::Abort, CL, [CL; 6]),
        ] {
            assert_eq!(from.map(|state| state.next(event)), to, "{event:?}");
            assert_eq!(
                State::from_number(FIRST >> (4 * event as u64) & 0xf),
                first,
                "{event:?}"
            );
        }
    }

    #[test]
    fn an_entry_starts_as_its_first_packet_says() {
        let tcp = |flags| State::first(IpProto::TCP, Signal(flags));
        assert_eq!(tcp(0x02), State::SynRecv);
        assert_eq!(tcp(0x10), State::Established);
        assert_eq!(tcp(0x11), State::Close);
        assert_eq!(tcp(0x04), State::Close);
        assert_eq!(tcp(0x00), State::Close);
        assert_eq!(State::first(IpProto::UDP, Signal(0)), State::Udp);
        assert_eq!(State::first(IpProto::SCTP, Signal(1)), State::Init1);
        assert_eq!(State::first(IpProto::SCTP, Signal(0)), State::Associated);
    }

    #[test]
    fn time_outs_are_ipvs_defaults() {
        let of = |state: State| TIMEOUTS[timeout_index(state, false)];
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
        fn what_is_current_is_alive_and_has_nothing_to_note(state in 2..16u64, seen: u32, after in 0..3u32, timeout in 1..40_000u32) {
            let state = State::from_number(state);
            let now = seen.wrapping_add(after);
            let entry = Entry::new(1, 2, state, seen, timeout);
            prop_assert_eq!(entry.is_current(now), after == 0 && timeout <= FINE_MAX);
            if entry.is_current(now) {
                prop_assert!(!entry.is_expired(now, timeout));
                prop_assert_eq!(entry.seen(state, now, timeout), entry);
            }
        }

        #[test]
        fn a_word_keeps_its_parts(tag in 0..1u32 << 23, destination in 0..1u32 << 20, state in 0..16u64, now: u32, timeout in 0..2_678_400u32) {
            let state = State::from_number(state);
            let entry = Entry::new(tag, destination, state, now, timeout);
            prop_assert_eq!((entry.tag(), entry.destination(), entry.state()), (tag, destination, state));
            prop_assert!(entry.age(now) < COARSE_SECONDS);
        }

        #[test]
        fn an_entry_expires_when_its_time_has_passed_and_not_before(now in 0..u32::MAX / 2, timeout in 1..2_678_400u32, after in 0..3_000_000u32) {
            let entry = Entry::new(1, 1, State::Established, now, timeout);
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

        #[test]
        fn a_template_ends_when_its_word_says(now in 0..u32::MAX / 2, remaining in 1..=COARSE_MAX, after in 0..3_000_000u32) {
            let entry = Entry::until(7, 3, State::Template, now, remaining);
            prop_assert_eq!((entry.tag(), entry.destination(), entry.state()), (7, 3, State::Template));
            let is_coarse = remaining > FINE_MAX;
            let unit = if is_coarse { COARSE_SECONDS } else { 1 };
            // It is swept long before its clock wraps: 65,520 units after it began to count the longest time-out.
            prop_assume!(after < remaining + 23_000 * unit);
            let timeout = TIMEOUTS[timeout_index(State::Template, is_coarse)];
            prop_assert_eq!(usize::try_from(entry.timeout_index()).unwrap(), timeout_index(State::Template, is_coarse));
            if after > remaining + 2 * unit {
                prop_assert!(entry.is_expired(now + after, timeout));
            }
            if after <= remaining {
                prop_assert!(!entry.is_expired(now + after, timeout));
            }
        }
    }
}
