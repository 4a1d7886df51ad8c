//! Ports of clients that none of their connections had before.
//!
//! A connection from a port that an earlier one had is led to that one's real server for as long as its entry lasts, which
//! is two minutes after the client's FIN: so does IPVS with direct routing (`is_new_conn_expected` and the sysctl
//! conn_reuse_mode, net/netfilter/ipvs/ip_vs_core.c). The kernel goes through its own ports in some thousand connections,
//! and all network namespaces share where it is. Who expects turns, or counts of connections, takes these.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

/// Below those that the kernel chooses by itself (`ip_local_port_range`), above the privileged ones.
const FIRST: u16 = 1024;
const END: u16 = 32_768;

static TAKEN: AtomicU16 = AtomicU16::new(0);

/// The next port that nobody in this process had; after 31,744 of them they begin anew.
pub fn fresh() -> u16 {
    let next = |taken| Some((taken + 1) % (END - FIRST));
    let taken = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    FIRST + taken.unwrap_or_else(|taken| taken)
}

/// Any of a client's addresses in the family of `target`, and the next port.
pub fn fresh_source(target: IpAddr) -> SocketAddr {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, fresh())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_comes_twice_before_all_have_come() {
        let seen = BTreeSet::from_iter((FIRST..END).map(|_| fresh()));
        assert_eq!(seen, BTreeSet::from_iter(FIRST..END));
    }
}
