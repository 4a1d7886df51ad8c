//! The virtual addresses of the live model, with what follows for each from the services that it has.
//!
//! Pure, and kept as [`uses`](super::uses) is: [`Vips::of`] walks over a whole model, [`Vips::follow`] brings what it
//! has found to another one, by the services that differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    api::types::{MarkRule, ServiceKey},
    model::Model,
};

/// One virtual address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Vip {
    /// Services and prefixes of marks that name it.
    names: u32,
    /// Services that its packets go to.
    services: u32,
    /// Those of them with a real server that gets new connections.
    usable: u32,
}

/// All of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Vips {
    vips: BTreeMap<IpAddr, Vip>,
    usable: BTreeSet<ServiceKey>,
    /// The single addresses that rules give each mark. Of a prefix nobody can tell which of its addresses are virtual
    /// ones.
    marked: BTreeMap<u32, Vec<IpAddr>>,
}

/// See [`Vips::marked`].
fn marked(rules: &Arc<Vec<MarkRule>>) -> BTreeMap<u32, Vec<IpAddr>> {
    let mut marked: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    for rule in rules.iter() {
        let single = rule.addresses.iter();
        let single = single.filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
        let addresses = single.map(ipnet::IpNet::addr);
        marked.entry(rule.mark).or_default().extend(addresses);
    }
    let marked = marked.into_iter();
    marked
        .map(|(mark, addresses)| (mark, addresses.into_iter().collect()))
        .collect()
}

impl Vips {
    /// By a walk over a whole model. `usable` are the services with a real server that gets new connections.
    pub(super) fn of(model: &Model, usable: &BTreeSet<ServiceKey>) -> Self {
        let mut vips = Self {
            marked: marked(model.marks()),
            ..Self::default()
        };
        for address in vips.marked.values().flatten() {
            vips.vips.entry(*address).or_default().names += 1;
        }
        for key in model.services().keys() {
            vips.enter(key);
            if usable.contains(key) {
                vips.set_usable(key, true);
            }
        }
        vips
    }

    /// Goes from one model to another, which differ in these services, and in what is no service's. The addresses that
    /// have come, gone, or got other services.
    pub(super) fn follow(
        &mut self,
        touched: &BTreeSet<ServiceKey>,
        before: &Model,
        after: &Model,
    ) -> BTreeSet<IpAddr> {
        if before.marks() != after.marks() {
            let mut concerned: BTreeSet<_> = self.addresses().collect();
            *self = Self::of(after, &self.usable);
            concerned.extend(self.addresses());
            return concerned;
        }
        let mut concerned = BTreeSet::new();
        for key in touched {
            let is_there = |model: &Model| model.services().contains_key(key);
            concerned.extend(self.addresses_of(key));
            match (is_there(before), is_there(after)) {
                (true, false) => self.leave(key),
                (false, true) => self.enter(key),
                (true, true) | (false, false) => {}
            }
        }
        concerned
    }

    /// Notes whether a service that there is has a real server that gets new connections.
    pub(super) fn set_usable(&mut self, key: &ServiceKey, is_usable: bool) {
        let has_changed = if is_usable {
            self.usable.insert(*key)
        } else {
            self.usable.remove(key)
        };
        if has_changed {
            self.each(key, |vip| {
                vip.usable = if is_usable { vip.usable + 1 } else { vip.usable - 1 }
            });
        }
    }

    fn enter(&mut self, key: &ServiceKey) {
        let is_endpoint = matches!(key, ServiceKey::Endpoint { .. });
        self.each(key, |vip| {
            vip.names += u32::from(is_endpoint);
            vip.services += 1;
        });
    }

    fn leave(&mut self, key: &ServiceKey) {
        self.set_usable(key, false);
        let is_endpoint = matches!(key, ServiceKey::Endpoint { .. });
        self.each(key, |vip| {
            vip.names -= u32::from(is_endpoint);
            vip.services -= 1;
        });
    }

    /// Changes every address of a service, and forgets those that nothing names any more.
    fn each(&mut self, key: &ServiceKey, change: impl Fn(&mut Vip)) {
        for address in self.addresses_of(key) {
            let vip = self.vips.entry(address).or_default();
            change(vip);
            if vip.names == 0 {
                self.vips.remove(&address);
            }
        }
    }

    /// The addresses whose packets may go to a service.
    fn addresses_of(&self, key: &ServiceKey) -> Vec<IpAddr> {
        match key {
            ServiceKey::Endpoint { address, .. } => vec![*address],
            ServiceKey::Mark { mark, ipv6 } => {
                let addresses = self.marked.get(mark).into_iter().flatten().copied();
                addresses.filter(|address| address.is_ipv6() == *ipv6).collect()
            }
        }
    }

    /// Every virtual address.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.keys().copied()
    }

    /// Whether it is one.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.vips.contains_key(&address)
    }

    /// Whether one of its services has a real server that gets new connections; nothing, where it has no service.
    pub(super) fn is_usable(&self, address: IpAddr) -> Option<bool> {
        let vip = self.vips.get(&address).filter(|vip| vip.services > 0)?;
        Some(vip.usable > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        api::types::{Change, Protocol, Scheduler, ServiceSpec},
        model::tests::any_change,
    };

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 168, 2, last])
    }

    fn rule(mark: u32, prefix: &str) -> Change {
        Change::AddMark {
            rule: MarkRule {
                mark,
                protocol: None,
                addresses: vec![prefix.parse().unwrap()],
                ports: Vec::new(),
            },
        }
    }

    #[test]
    fn an_address_is_usable_while_one_of_its_services_is() {
        let mut model = Model::default();
        let mark = ServiceKey::Mark { mark: 1, ipv6: false };
        let services = [
            (ServiceKey::new(Protocol::Tcp, address(100), 80), true),
            (ServiceKey::new(Protocol::Tcp, address(100), 443), false),
            (ServiceKey::new(Protocol::Tcp, address(101), 80), false),
            (mark, true),
        ];
        for (key, _) in services {
            let service = ServiceSpec::new(key, Scheduler::Rr);
            model.apply(&[Change::AddService { service }]).unwrap();
        }
        for change in [
            rule(1, "192.168.2.103/32"),
            rule(1, "192.168.3.0/24"),
            rule(2, "192.168.2.104/32"),
            rule(1, "2001:db8::1/128"),
        ] {
            model.apply(&[change]).unwrap();
        }
        let usable = services.into_iter().filter(|(_, is_usable)| *is_usable);
        let mut vips = Vips::of(&model, &usable.map(|(key, _)| key).collect());
        for (address, expected) in [
            (address(100), Some(true)),
            (address(101), Some(false)),
            (address(103), Some(true)),
            (address(104), None),
            ("2001:db8::1".parse().unwrap(), None),
        ] {
            assert!(vips.contains(address), "{address}");
            assert_eq!(vips.is_usable(address), expected, "{address}");
        }
        assert!(!vips.contains(IpAddr::from([192, 168, 3, 0])));
        vips.set_usable(&mark, false);
        assert_eq!(vips.is_usable(address(103)), Some(false));
    }

    /// Changes among which there are rules of single addresses.
    fn change() -> impl Strategy<Value = Change> {
        let prefix = prop_oneof![
            Just("192.0.2.1/32"),
            Just("192.0.2.2/32"),
            Just("2001:db8::1/128")
        ];
        prop_oneof![6 => any_change(), 1 => (1..3u32, prefix).prop_map(|(mark, prefix)| rule(mark, prefix))]
    }

    proptest! {
        #[test]
        fn what_is_followed_is_what_a_walk_finds(steps in vec((vec(change(), 1..4), any::<u8>()), 0..60)) {
            let (mut model, mut vips) = (Model::default(), Vips::default());
            for (changes, chosen) in steps {
                let mut next = model.clone();
                let touched = model.touched(&changes);
                if next.apply(&changes).is_ok() {
                    let was = |address: &IpAddr| vips.vips.get(address).map(|vip| vip.services);
                    let before: BTreeMap<_, _> = vips.addresses().map(|address| (address, was(&address))).collect();
                    let concerned = vips.follow(&touched, &model, &next);
                    let after: BTreeMap<_, _> =
                        vips.vips.iter().map(|(address, vip)| (*address, Some(vip.services))).collect();
                    let all = before.keys().chain(after.keys());
                    for address in all.filter(|address| before.get(address) != after.get(address)) {
                        prop_assert!(concerned.contains(address));
                    }
                    model = next;
                }
                let place = usize::from(chosen >> 1) % model.services().size().max(1);
                if let Some(key) = model.services().keys().nth(place) {
                    vips.set_usable(key, chosen & 1 == 1);
                }
                prop_assert!(vips.usable.iter().all(|key| model.services().contains_key(key)));
                prop_assert_eq!(&vips, &Vips::of(&model, &vips.usable.clone()));
            }
        }
    }
}
