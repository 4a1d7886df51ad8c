//! Which routers are on the ways to real servers behind tunnels. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// The real servers behind tunnels and their routers, each found by the other.
#[derive(Debug, Default)]
pub(super) struct Hops {
    /// The router on the way to a server, where there is one.
    routers: BTreeMap<IpAddr, Option<IpAddr>>,
    /// The servers behind each router.
    behind: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
}

impl Hops {
    /// Notes the router on the way to a server. The routers that have come or may have gone by that.
    pub(super) fn note(&mut self, server: IpAddr, router: Option<IpAddr>) -> Vec<IpAddr> {
        if self.routers.get(&server) == Some(&router) {
            return Vec::new();
        }
        let mut concerned = self.forget(server);
        self.routers.insert(server, router);
        if let Some(router) = router {
            self.behind.entry(router).or_default().insert(server);
            concerned.push(router);
        }
        concerned
    }

    /// Forgets a server. The router that may have gone by that.
    pub(super) fn forget(&mut self, server: IpAddr) -> Vec<IpAddr> {
        let Some(router) = self.routers.remove(&server).flatten() else {
            return Vec::new();
        };
        if let Some(servers) = self.behind.get_mut(&router) {
            servers.remove(&server);
            if servers.is_empty() {
                self.behind.remove(&router);
            }
        }
        vec![router]
    }

    /// Whether something at this address is of any concern to these servers' ways: the servers.
    pub(super) fn concerned(&self, hop: IpAddr) -> BTreeSet<IpAddr> {
        let mut servers = self.behind.get(&hop).cloned().unwrap_or_default();
        if self.routers.contains_key(&hop) {
            servers.insert(hop);
        }
        servers
    }

    /// Whether it is a router on the way to one of them.
    pub(super) fn is_router(&self, address: IpAddr) -> bool {
        self.behind.contains_key(&address)
    }

    /// All routers.
    pub(super) fn routers(&self) -> impl Iterator<Item = IpAddr> {
        self.behind.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_one_while_a_server_is_behind_it() {
        let [one, other, router, next] = [1, 2, 8, 9].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut hops = Hops::default();
        assert!(hops.note(one, None).is_empty());
        assert_eq!(hops.concerned(one), [one].into());
        assert_eq!(hops.note(one, Some(router)), [router]);
        assert!(hops.note(one, Some(router)).is_empty());
        assert_eq!(hops.note(other, Some(router)), [router]);
        assert_eq!(hops.concerned(router), [one, other].into());
        assert_eq!(hops.note(one, Some(next)), [router, next]);
        assert!(hops.is_router(router) && hops.is_router(next));
        assert_eq!(hops.forget(other), [router]);
        assert!(!hops.is_router(router));
        // A router may be a server behind a tunnel itself.
        assert!(hops.note(next, None).is_empty());
        assert_eq!(hops.concerned(next), [one, next].into());
        assert_eq!(hops.routers().collect::<Vec<_>>(), [next]);
        assert_eq!(hops.forget(one), [next]);
        assert_eq!(hops.routers().count(), 0);
    }
}
