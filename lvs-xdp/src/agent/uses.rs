//! Who uses an address: of the live model what has to be known of addresses, kept so that neither a change nor news of
//! a neighbour needs a walk over all services.
//!
//! Pure. All of it follows from the model and from which addresses are the director's own ([`Uses::of`]);
//! [`Uses::follow`] brings it to another model, by the services that differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    api::types::ServiceKey,
    model::{Model, ServiceEntry},
};

/// The services that have a destination at an address, fallbacks included.
#[derive(Debug, Default, PartialEq, Eq)]
struct Users {
    direct: BTreeSet<ServiceKey>,
    /// Those that reach it through a tunnel.
    tunnelled: BTreeSet<ServiceKey>,
}

/// What is known of the addresses of destinations.
#[derive(Debug, Default)]
pub(super) struct Uses {
    users: BTreeMap<IpAddr, Users>,
    /// The destinations that are the director itself.
    own: BTreeSet<IpAddr>,
    /// The destinations of services that the director serves itself, with how many such services have each.
    companions: BTreeMap<IpAddr, u32>,
    /// Others are among these than when that was asked last.
    are_companions_new: bool,
    /// Services with a drained real server.
    drained: BTreeSet<ServiceKey>,
    /// Destinations that were looked at.
    #[cfg(test)]
    looked_at: usize,
}

/// The addresses of a service's destinations, each once.
fn addresses(entry: &ServiceEntry) -> BTreeSet<IpAddr> {
    entry.destinations().map(|server| server.key.address).collect()
}

impl Uses {
    /// By a walk over a whole model.
    pub(super) fn of(model: &Model, own: BTreeSet<IpAddr>) -> Self {
        let mut uses = Self {
            own,
            ..Self::default()
        };
        for entry in model.services().values() {
            uses.enter(entry);
        }
        uses
    }

    /// Goes from one model to another, which differ in these services only. The addresses whose use may have changed.
    pub(super) fn follow(
        &mut self,
        touched: &BTreeSet<ServiceKey>,
        before: &Model,
        after: &Model,
    ) -> BTreeSet<IpAddr> {
        let mut concerned = BTreeSet::new();
        for key in touched {
            let (before, after) = (before.services().get(key), after.services().get(key));
            if let (Some(before), Some(after)) = (before, after)
                && Arc::ptr_eq(before, after)
            {
                continue;
            }
            if let Some(entry) = before {
                concerned.extend(self.leave(entry));
            }
            if let Some(entry) = after {
                concerned.extend(self.enter(entry));
            }
        }
        concerned
    }

    /// Notes whether an address is the director's own. `model` is the one that this is about.
    pub(super) fn set_own(&mut self, address: IpAddr, is_own: bool, model: &Model) {
        if self.own.contains(&address) == is_own {
            return;
        }
        let mut users = self.direct(address);
        users.extend(self.tunnelled(address));
        let entries = users.iter().filter_map(|key| model.services().get(key));
        let entries: Vec<_> = entries.map(|entry| addresses(entry)).collect();
        for addresses in &entries {
            self.leave_companions(addresses);
        }
        if is_own {
            self.own.insert(address);
        } else {
            self.own.remove(&address);
        }
        for addresses in &entries {
            self.enter_companions(addresses);
        }
    }

    fn enter(&mut self, entry: &ServiceEntry) -> BTreeSet<IpAddr> {
        let key = entry.spec.key;
        self.count(entry);
        for server in entry.destinations() {
            let users = self.users.entry(server.key.address).or_default();
            let way = match server.method.tunnel() {
                None => &mut users.direct,
                Some(_) => &mut users.tunnelled,
            };
            way.insert(key);
        }
        if entry.servers.iter().any(|server| server.drain.is_some()) {
            self.drained.insert(key);
        }
        let addresses = addresses(entry);
        self.enter_companions(&addresses);
        addresses
    }

    fn leave(&mut self, entry: &ServiceEntry) -> BTreeSet<IpAddr> {
        let key = entry.spec.key;
        self.count(entry);
        let addresses = addresses(entry);
        self.leave_companions(&addresses);
        self.drained.remove(&key);
        for address in &addresses {
            let Some(users) = self.users.get_mut(address) else {
                continue;
            };
            users.direct.remove(&key);
            users.tunnelled.remove(&key);
            if users.direct.is_empty() && users.tunnelled.is_empty() {
                self.users.remove(address);
            }
        }
        addresses
    }

    #[cfg(test)]
    fn count(&mut self, entry: &ServiceEntry) {
        self.looked_at += entry.destinations().count();
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests count")]
    fn count(&self, _: &ServiceEntry) {}

    fn is_shared(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.own.iter().any(|own| addresses.contains(own))
    }

    fn enter_companions(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.is_shared(addresses) {
            for address in addresses {
                let count = self.companions.entry(*address).or_default();
                *count += 1;
                self.are_companions_new |= *count == 1;
            }
        }
    }

    fn leave_companions(&mut self, addresses: &BTreeSet<IpAddr>) {
        if !self.is_shared(addresses) {
            return;
        }
        for address in addresses {
            if let Some(count) = self.companions.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.companions.remove(address);
                    self.are_companions_new = true;
                }
            }
        }
    }

    /// Whether a service has a destination there.
    pub(super) fn is_used(&self, address: IpAddr) -> bool {
        self.users.contains_key(&address)
    }

    /// Whether one is reached there through a tunnel.
    pub(super) fn is_tunnelled(&self, address: IpAddr) -> bool {
        let users = self.users.get(&address);
        users.is_some_and(|users| !users.tunnelled.is_empty())
    }

    /// Every address of a destination.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.users.keys().copied()
    }

    /// The same with whether it is reached directly, and whether through a tunnel.
    pub(super) fn ways(&self) -> impl Iterator<Item = (IpAddr, bool, bool)> {
        let users = self.users.iter();
        users.map(|(address, users)| (*address, !users.direct.is_empty(), !users.tunnelled.is_empty()))
    }

    /// The services that have a destination there, directly.
    pub(super) fn direct(&self, address: IpAddr) -> BTreeSet<ServiceKey> {
        let users = self.users.get(&address);
        users.map(|users| users.direct.clone()).unwrap_or_default()
    }

    /// The services that have a destination there through a tunnel.
    pub(super) fn tunnelled(&self, address: IpAddr) -> BTreeSet<ServiceKey> {
        let users = self.users.get(&address);
        users.map(|users| users.tunnelled.clone()).unwrap_or_default()
    }

    /// The destinations of the services that the director serves itself, itself among them.
    pub(super) fn companions(&self) -> impl Iterator<Item = IpAddr> {
        self.companions.keys().copied()
    }

    /// Whether others are among them than when this was asked last.
    pub(super) fn take_new_companions(&mut self) -> bool {
        std::mem::take(&mut self.are_companions_new)
    }

    /// Whether it is one of them.
    pub(super) fn is_companion(&self, address: IpAddr) -> bool {
        self.companions.contains_key(&address)
    }

    /// The services that have a drained real server.
    pub(super) fn drained(&self) -> impl Iterator<Item = &ServiceKey> {
        self.drained.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        api::types::{
            Change, Fallback, ForwardingMethod, Protocol, Scheduler, ServerKey, ServerSpec, ServiceSpec,
            Tunnel,
        },
        model::tests::any_change,
    };

    fn host(number: u8) -> IpAddr {
        [198, 51, 100, number].into()
    }

    /// Changes among which there are tunnels and fallbacks, too.
    fn change() -> impl Strategy<Value = Change> {
        (any_change(), 0..4u8).prop_map(|(mut change, which)| {
            let method = if which % 2 == 0 {
                ForwardingMethod::Dr
            } else {
                ForwardingMethod::Tunnel(Tunnel::Ipip)
            };
            match &mut change {
                Change::AddServer { server, .. } | Change::EditServer { server, .. } => {
                    server.method = method;
                }
                Change::AddService { service } | Change::EditService { service }
                    if which > 1 && !service.key.is_ipv6() =>
                {
                    let address = host(which);
                    service.fallback = Some(Fallback { address, method });
                }
                _ => {}
            }
            change
        })
    }

    fn addresses_where(model: &Model, is_meant: impl Fn(&ServerSpec) -> bool) -> BTreeSet<IpAddr> {
        let entries = model.services().values();
        let servers = entries.flat_map(|entry| entry.destinations());
        servers
            .filter(|server| is_meant(server))
            .map(|server| server.key.address)
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_followed_is_what_a_walk_finds(
            steps in vec((vec(change(), 1..4), option_of_own()), 0..60)
        ) {
            let (mut model, mut uses) = (Model::default(), Uses::default());
            for (changes, own) in steps {
                let before = uses.companions.clone();
                let before = before.keys();
                if let Some((address, is_own)) = own {
                    uses.set_own(address, is_own, &model);
                }
                let mut next = model.clone();
                let touched = model.touched(&changes);
                if next.apply(&changes).is_ok() {
                    let concerned = uses.follow(&touched, &model, &next);
                    let (before, after) = (addresses_where(&model, |_| true), addresses_where(&next, |_| true));
                    prop_assert!(before.symmetric_difference(&after).all(|address| concerned.contains(address)));
                    model = next;
                }
                let walked = Uses::of(&model, uses.own.clone());
                prop_assert_eq!(&uses.users, &walked.users);
                prop_assert_eq!(&uses.companions, &walked.companions);
                prop_assert!(uses.take_new_companions() || before.eq(walked.companions.keys()));
                prop_assert_eq!(&uses.drained, &walked.drained);

                // What that is, by a walk of another sort.
                let has_tunnel = |server: &ServerSpec| server.method.tunnel().is_some();
                prop_assert_eq!(uses.addresses().collect::<BTreeSet<_>>(), addresses_where(&model, |_| true));
                let tunnelled = uses.addresses().filter(|address| uses.is_tunnelled(*address));
                prop_assert_eq!(tunnelled.collect::<BTreeSet<_>>(), addresses_where(&model, has_tunnel));
                for address in uses.addresses() {
                    for (key, entry) in model.services() {
                        let uses_it = |is_tunnel| {
                            let mut servers = entry.destinations();
                            servers.any(|server| server.key.address == address && has_tunnel(&server) == is_tunnel)
                        };
                        prop_assert_eq!(uses.direct(address).contains(key), uses_it(false));
                        prop_assert_eq!(uses.tunnelled(address).contains(key), uses_it(true));
                    }
                }
                let shared = model.services().values().filter(|entry| {
                    entry.destinations().any(|server| uses.own.contains(&server.key.address))
                });
                let companions: BTreeSet<_> = shared.flat_map(|entry| addresses(entry)).collect();
                prop_assert_eq!(uses.companions().collect::<BTreeSet<_>>(), companions);
                let drained = model.services().iter().filter(|(_, entry)| {
                    entry.servers.iter().any(|server| server.drain.is_some())
                });
                prop_assert!(uses.drained().eq(drained.map(|(key, _)| key)));
            }
        }
    }

    #[test]
    fn one_change_costs_the_same_in_a_large_table() {
        let key = |number: u32| {
            let address = IpAddr::V4((0x0a00_0000 + number).into());
            ServiceKey::new(Protocol::Tcp, address, 80)
        };
        let server = |number| {
            let address = host(number);
            ServerSpec::new(ServerKey { address, port: 80 }, 1)
        };
        let add = |service, host| Change::AddServer {
            service,
            server: server(host),
            require_on_link: false,
        };
        let cost = |services: u32| {
            let mut model = Model::default();
            let changes = (0..services).flat_map(|number| {
                let service = ServiceSpec::new(key(number), Scheduler::Rr);
                let add_service = Change::AddService { service };
                let servers = (1..=5).map(move |host| add(key(number), host));
                std::iter::once(add_service).chain(servers)
            });
            model.apply(&changes.collect::<Vec<_>>()).unwrap();
            let mut uses = Uses::of(&model, [host(1)].into());
            uses.looked_at = 0;
            let changes = [
                Change::EditServer {
                    service: key(3),
                    server: ServerSpec {
                        weight: 7,
                        ..server(2)
                    },
                },
                add(key(3), 6),
            ];
            let mut next = model.clone();
            next.apply(&changes).unwrap();
            let concerned = uses.follow(&model.touched(&changes), &model, &next);
            assert_eq!(concerned, (1..=6).map(host).collect());
            let untouched = next.services().iter().filter(|(key, entry)| {
                let before = model.services().get(key);
                before.is_some_and(|before| Arc::ptr_eq(before, entry))
            });
            assert_eq!(untouched.count() + 1, services as usize);
            uses.looked_at
        };
        // The service's five destinations before, and six after.
        assert_eq!((cost(10), cost(2_000)), (11, 11));
    }

    /// An address that has become the director's own, or is so no more.
    fn option_of_own() -> impl Strategy<Value = Option<(IpAddr, bool)>> {
        proptest::option::of((1..4u8, any::<bool>()).prop_map(|(number, is_own)| (host(number), is_own)))
    }
}
