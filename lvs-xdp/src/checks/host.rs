//! What the checks need to know of the host they leave from, and how they do.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
};

use super::{Target, socket::Failure};
use crate::{
    api::types::Protocol,
    dataplane::steering::{Lead, Steering},
    neighbour::{Neighbours, Resolution},
};

/// The host, as the agent and the checks see it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    neighbours: Arc<Neighbours>,
    steering: Steering,
    facts: Arc<RwLock<Facts>>,
}

#[derive(Debug, Default)]
struct Facts {
    /// The interfaces on which packets are led.
    steered: BTreeSet<u32>,
    /// Real servers have these too: what is sent from one is answered nowhere.
    vips: BTreeSet<IpAddr>,
}

/// How a socket reaches what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// What it is connected to.
    pub(super) to: SocketAddr,
    /// What it is bound to, where that is not the kernel's choice.
    pub(super) from: Option<IpAddr>,
    /// Where its packets are led.
    pub(super) vip: Option<IpAddr>,
}

impl Host {
    pub(crate) fn new(neighbours: Arc<Neighbours>, steering: Steering) -> Self {
        Self {
            neighbours,
            steering,
            facts: Arc::default(),
        }
    }

    /// Notes on which interfaces packets are led.
    pub(crate) fn set_steered(&self, interfaces: impl IntoIterator<Item = u32>) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        facts.steered = interfaces.into_iter().collect();
    }

    /// Notes which addresses are virtual ones, and which are so no more.
    pub(crate) fn note_vips(&self, vips: impl IntoIterator<Item = (IpAddr, bool)>) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        for (address, is_vip) in vips {
            if is_vip {
                facts.vips.insert(address);
            } else {
                facts.vips.remove(&address);
            }
        }
    }

    /// The way to a target.
    pub(super) fn way(&self, target: &Target) -> Result<Way, Failure> {
        let Target { rip, asked, .. } = *target;
        let is_local = matches!(self.neighbours.resolution(rip), Some(Resolution::Local));
        let to = SocketAddr::new(rip, asked.port());
        if is_local {
            let is_here = self.neighbours.is_local(asked.ip());
            return Ok(Way {
                to: if is_here { asked } else { to },
                from: None,
                vip: None,
            });
        }
        let unknown = |why: &str| Failure::Unknown(why.to_owned());
        let path = self.neighbours.path(rip);
        let facts = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        let usual = path.and_then(|path| path.source);
        let is_own = usual.is_none_or(|source| !facts.vips.contains(&source));
        if asked.ip() == rip && is_own {
            return Ok(Way {
                to,
                from: None,
                vip: None,
            });
        }
        let own = usual
            .filter(|_| is_own)
            .or_else(|| source(&self.neighbours.local(), &facts.vips, rip));
        let Some(from) = own else {
            return Err(unknown(
                "this host has no address but virtual ones to ask from: give it one of its own",
            ));
        };
        if asked.ip() == rip {
            return Ok(Way {
                to,
                from: Some(from),
                vip: None,
            });
        }
        let path = path.ok_or_else(|| unknown("there is no route to it"))?;
        if !facts.steered.contains(&path.if_index) {
            return Err(unknown(
                "its interface is not ready for checks of the virtual address",
            ));
        }
        Ok(Way {
            to,
            from: Some(from),
            vip: Some(asked.ip()),
        })
    }

    /// Has the packets of a socket go where its way says.
    pub(super) fn lead(
        &self,
        way: &Way,
        local: SocketAddr,
        protocol: Protocol,
    ) -> Result<Option<Lead>, Failure> {
        let Some(vip) = way.vip else { return Ok(None) };
        let lead = self.steering.lead(local, protocol, way.to.ip(), vip);
        lead.map(Some)
            .map_err(|error| Failure::Unknown(format!("{error:#}")))
    }
}

/// Of a host's addresses the one that is nearest to a real server's and no virtual one.
fn source(local: &BTreeSet<IpAddr>, vips: &BTreeSet<IpAddr>, rip: IpAddr) -> Option<IpAddr> {
    let near = |address: IpAddr| match (address, rip) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => 0,
    };
    let is_fit = |address: &IpAddr| match address {
        IpAddr::V4(v4) => rip.is_ipv4() && !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => rip.is_ipv6() && !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let own = local
        .iter()
        .copied()
        .filter(|address| is_fit(address) && !vips.contains(address));
    own.max_by_key(|address| near(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_leave_from_the_nearest_address_of_the_hosts_own() {
        let set = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<BTreeSet<IpAddr>>()
        };
        let vips = set(&["192.168.2.221", "fd00:2::221"]);
        let local = set(&[
            "127.0.0.1",
            "10.0.0.9",
            "192.168.2.1",
            "192.168.2.221",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "fd00:2::221",
            "fd00:2::9",
            "fd00:9::1",
        ]);
        for (rip, expected) in [
            ("192.168.2.220", Some("192.168.2.1")),
            ("10.7.0.5", Some("10.0.0.9")),
            ("fd00:2::220", Some("fd00:2::9")),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(source(&local, &vips, rip.parse().unwrap()), expected, "{rip}");
        }
        assert_eq!(source(&vips, &vips, [192, 168, 2, 220].into()), None);
    }
}
