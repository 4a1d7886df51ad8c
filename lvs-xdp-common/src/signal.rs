//! What of a packet drives its connection's state.

use crate::packet::IpProto;

/// What of a packet drives its connection's state, as it came: the 14th octet of a TCP header, the type of
/// an SCTP packet's first chunk, 0 for UDP. A program that knows which event it is has a path for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub u8);

impl Signal {
    /// An SCTP packet without a whole chunk, or whose first chunk is of a type without a meaning here.
    pub(crate) const OTHER_CHUNK: u8 = 0;

    /// Whether it opens a connection, be there one already: TCP's SYN, whatever comes with it, SCTP's INIT
    /// (`is_new_conn`). UDP has nothing to tell its first packet by.
    #[inline(always)]
    pub const fn opens(self, protocol: IpProto) -> bool {
        match protocol {
            IpProto::TCP => self.0 & 0x02 != 0,
            IpProto::SCTP => self.0 == 1,
            _ => false,
        }
    }

    /// Whether it has TCP's SYN flag. Of another protocol this says nothing.
    #[inline(always)]
    pub const fn is_syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// Whether a packet without a connection is scheduled: of TCP a SYN, or, where that is sloppy, anything, but
    /// never an RST (`tcp_conn_schedule`); of SCTP an INIT, or anything (`sctp_conn_schedule`).
    #[inline(always)]
    pub const fn starts(self, protocol: IpProto, is_sloppy: bool) -> bool {
        match protocol {
            IpProto::TCP => self.0 & 0x04 == 0 && (is_sloppy || self.opens(protocol)),
            IpProto::SCTP => is_sloppy || self.opens(protocol),
            _ => true,
        }
    }

    /// Whether it can be no more than a sign of life for an entry in any state but TCP's SYN_RECV: no SYN,
    /// FIN or RST, no chunk but data and what comes with it.
    #[inline(always)]
    pub const fn is_quiet(self, is_sctp: bool) -> bool {
        if is_sctp {
            // DATA, SACK, HEARTBEAT, HEARTBEAT ACK, ECNE, CWR, and all from 15 on.
            CHUNKS_WITH_MEANING >> (self.0 & 0x1f) & 1 == 0 || self.0 > 0x1f
        } else {
            self.0 & 0x07 == 0
        }
    }

    /// TCP's SYN and FIN at once: no host sends that, and none answers it alike.
    #[inline(always)]
    pub const fn is_nonsense(self) -> bool {
        self.0 & 0x03 == 0x03
    }

    /// TCP's ACK flag.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// What it is to the state machine.
    ///
    /// TCP: RST, else SYN, else FIN, else ACK (`tcp_state_idx`, net/netfilter/ipvs/ip_vs_proto_tcp.c).
    /// SCTP: by the chunk's type (`sctp_events`, ip_vs_proto_sctp.c; RFC 9260, 3.2).
    #[inline(always)]
    pub const fn event(self, protocol: IpProto) -> Event {
        match protocol {
            IpProto::TCP => {
                if self.0 & 0x04 != 0 {
                    Event::Rst
                } else if self.0 & 0x02 != 0 {
                    Event::Syn
                } else if self.0 & 0x01 != 0 {
                    Event::Fin
                } else if self.0 & 0x10 != 0 {
                    Event::Ack
                } else {
                    Event::None
                }
            }
            IpProto::SCTP => match self.0 {
                1 => Event::Init,
                2 => Event::InitAck,
                6 => Event::Abort,
                7 => Event::Shutdown,
                8 => Event::ShutdownAck,
                9 => Event::Error,
                10 => Event::CookieEcho,
                11 => Event::CookieAck,
                14 => Event::ShutdownComplete,
                _ => Event::Data,
            },
            _ => Event::None,
        }
    }
}

/// Types of chunks that are not data to the state machine.
const CHUNKS_WITH_MEANING: u32 =
    1 << 1 | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14;
pub(crate) const ABORT: u8 = 6;
pub(crate) const COOKIE_ECHO: u8 = 10;
pub(crate) const COOKIE_ACK: u8 = 11;

/// What drives the state machines of TCP and SCTP; the numbers index [`crate::connection`]'s tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// TCP without a flag that counts, UDP: changes nothing.
    None = 0,
    /// TCP: resets the connection.
    Rst = 1,
    /// TCP: opens one.
    Syn = 2,
    /// TCP: closes one.
    Fin = 3,
    /// TCP: acknowledges.
    Ack = 4,
    /// SCTP: DATA, SACK, HEARTBEAT and what has no meaning here.
    Data = 5,
    /// SCTP: opens an association.
    Init = 6,
    /// SCTP: INIT ACK.
    InitAck = 7,
    /// SCTP: COOKIE ECHO.
    CookieEcho = 8,
    /// SCTP: COOKIE ACK.
    CookieAck = 9,
    /// SCTP: SHUTDOWN.
    Shutdown = 10,
    /// SCTP: SHUTDOWN ACK.
    ShutdownAck = 11,
    /// SCTP: SHUTDOWN COMPLETE.
    ShutdownComplete = 12,
    /// SCTP: ERROR.
    Error = 13,
    /// SCTP: ABORT.
    Abort = 14,
}
