//! A name for everything that can become of a packet.

/// What the program does with a packet, without the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Sent to a real server.
    Forward,
    /// Answered by the program itself.
    Answer,
    /// Left to the host's own stack, untouched.
    Pass,
    /// Thrown away.
    Drop,
}

impl Outcome {
    /// Its name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Answer => "answer",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $outcome:ident;)+) => {
        /// Why a packet was forwarded, passed or dropped. Its number is its index in the per-CPU counters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The reason of this number; a number that no reason has is [`Reason::Internal`].
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                $(if number == Self::$variant as u32 {
                    return Self::$variant;
                })+
                Self::Internal
            }

            /// Its name in listings and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line about it.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What became of the packet.
            #[inline(always)]
            pub fn outcome(self) -> Outcome {
                match self { $(Self::$variant => Outcome::$outcome,)+ }
            }
        }
    };
}

reasons! {
    /// Belonged to a known connection.
    Connection = "connection", Forward;
    /// Started a connection.
    NewConnection = "new-connection", Forward;
    /// The connection table had no room; a hash scheduler serves the flow without an entry.
    Untracked = "untracked", Forward;
    /// Scheduled by itself, without a connection (one-packet scheduling).
    OnePacket = "one-packet", Forward;
    /// Of a stateless service: went where the hash of its client says.
    Stateless = "stateless", Forward;
    /// A later fragment: went where the first one of its packet went.
    Fragment = "fragment", Forward;
    /// An ICMP error about a packet of a known connection.
    Related = "related", Forward;
    /// Its destination is the director itself.
    Local = "local", Pass;
    /// A new connection, but no destination is usable: answered with ICMP port unreachable.
    NoDestination = "no-destination", Answer;
    /// The connection's destination was removed, and its service says `reset`: answered with a TCP reset.
    Reset = "reset", Answer;
    /// An echo request to a virtual address that is none of the host's.
    Echo = "echo", Answer;
    /// An ARP request for a virtual address that is announced.
    ArpAnswered = "arp-answered", Answer;
    /// A neighbour solicitation for a virtual address that is announced.
    NeighbourAnswered = "neighbour-answered", Answer;
    /// Too long for the tunnel to its real server: answered with ICMP fragmentation needed, or packet too big.
    TooBig = "too-big", Answer;
    /// Neither IPv4 nor IPv6.
    NotIp = "not-ip", Pass;
    /// Ethernet multicast or broadcast.
    NotUnicast = "not-unicast", Pass;
    /// Too short for the headers it announces, or headers that contradict each other.
    Malformed = "malformed", Pass;
    /// A later fragment of a packet for a virtual address, whose first fragment was not seen.
    FragmentUnknown = "fragment-unknown", Pass;
    /// IPv6 with more extension headers than are walked over.
    TooManyHeaders = "too-many-headers", Pass;
    /// An ICMP error about a packet of no known connection.
    RelatedUnknown = "related-unknown", Pass;
    /// Neither TCP nor UDP nor SCTP.
    OtherProtocol = "other-protocol", Pass;
    /// No virtual service has this address, port and protocol.
    NotForUs = "not-for-us", Pass;
    /// For a virtual service, but its MAC address is not the director's.
    OtherHost = "other-host", Pass;
    /// From another director, which has this one for a real server: not balanced again.
    FromPeer = "from-peer", Pass;
    /// TCP without a connection and no SYN; the host, which holds the VIP, answers with a reset.
    NoConnectionPassed = "no-connection-passed", Pass;
    /// TCP without a connection and no SYN, and the VIP is not an address of the host.
    NoConnection = "no-connection", Drop;
    /// A new connection, but no destination is usable, and too many were answered in this second.
    NoDestinationQuiet = "no-destination-quiet", Drop;
    /// Too long for the tunnel to its real server, and not answered: an ICMP packet or a later fragment, or too
    /// many were answered in this second.
    TooBigQuiet = "too-big-quiet", Drop;
    /// A new connection from an address that no client can have, or from the virtual address itself.
    Martian = "martian", Drop;
    /// A new connection from or to port 0 (of UDP: to port 0).
    ZeroPort = "zero-port", Drop;
    /// A new TCP connection with flags that contradict each other: SYN and FIN.
    BadFlags = "bad-flags", Drop;
    /// The connection's destination was removed.
    DestinationRemoved = "destination-removed", Drop;
    /// The destination's MAC address is not known yet.
    Unresolved = "unresolved", Drop;
    /// A new connection, but the connection table has no room for it.
    TableFull = "table-full", Drop;
    /// A new connection whose tag collides with another's in the connection table.
    TagCollision = "tag-collision", Drop;
    /// Two CPUs were entering the same connection; the client sends again.
    InsertRace = "insert-race", Drop;
    /// The connection table is being moved to another; the client sends again.
    Migrating = "migrating", Drop;
    /// The destination is behind an interface that frames cannot be redirected to.
    RedirectFailed = "redirect-failed", Drop;
    /// The frame has no room for what the destination needs: another tag, another header.
    RewriteFailed = "rewrite-failed", Drop;
    /// A map has another size than the program was told: a defect.
    Internal = "internal", Pass;
}

impl Reason {
    /// Of the reasons why a frame is no common packet: whether it may be for a service all the same.
    #[inline(always)]
    pub const fn may_be_ours(self) -> bool {
        matches!(self, Self::Fragment | Self::OtherProtocol)
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn the_readme_has_a_line_for_every_reason() {
        let readme = include_str!("../../README.md");
        for reason in Reason::ALL {
            let line = format!(
                "\n| `{}` | {} | {} |\n",
                reason.name(),
                reason.outcome().name(),
                reason.help()
            );
            assert!(readme.contains(&line), "{line}");
        }
    }
}
