//! Which virtual addresses the program answers ARP and neighbour discovery for, and who is told of them unasked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lvs_xdp_common::abi::vip_flag;
use tracing::{info, warn};

use super::State;
use crate::{
    api::types::{ApiError, ErrorCode, ServerKey, ServiceKey, VipState, VipStatus},
    model::{Model, is_host_address},
    neighbour::{Announcer, Mac},
};

/// How often a place of an address is told, a second apart (`vrrp_garp_master_repeat` of keepalived).
const REPEATS: u32 = 5;

/// What is announced.
pub(super) struct Announcements {
    announcer: Announcer,
    /// The addresses that the program answers for.
    addresses: BTreeSet<IpAddr>,
    /// How often an address is still to be told unasked.
    due: BTreeMap<IpAddr, u32>,
    /// What the map says of each virtual address; `None`: it is to be read anew.
    noted: Option<BTreeMap<IpAddr, u64>>,
}

impl Announcements {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            announcer: Announcer::open()?,
            addresses: BTreeSet::new(),
            due: BTreeMap::new(),
            noted: None,
        })
    }
}

impl State {
    /// Takes over what an agent before has announced, and goes on with it without a gap.
    pub(super) fn adopt_announced(&mut self) {
        let is_on = self.config.announce;
        if is_on && let Ok(vips) = self.dataplane.vips() {
            let announced = vips.iter().filter(|(_, flags)| *flags & vip_flag::ANNOUNCED != 0);
            let addresses: BTreeSet<_> = announced.map(|(address, _)| *address).collect();
            self.announcements.due = addresses.iter().map(|address| (*address, REPEATS)).collect();
            self.announcements.addresses = addresses;
        }
        self.dataplane.set_announcing(is_on);
    }

    /// The virtual addresses of a model with their [`vip_flag`]s: which the host holds, and which are announced.
    pub(super) fn vips(&self, model: &Model) -> BTreeMap<IpAddr, u64> {
        let flags = |address| {
            let flags = if self.compiler.is_local(address) {
                vip_flag::LOCAL
            } else if self.announcements.addresses.contains(&address) {
                vip_flag::ANNOUNCED
            } else {
                0
            };
            (address, vip_flag::USED | flags)
        };
        let endpoints = model.services().keys().filter_map(|key| match key {
            ServiceKey::Endpoint { address, .. } => Some(*address),
            ServiceKey::Mark { .. } => None,
        });
        let marked = marked(model).map(|(_, address)| address);
        endpoints.chain(marked).map(flags).collect()
    }

    /// Notes which there are.
    pub(super) fn follow_vips(&mut self, vips: BTreeMap<IpAddr, u64>) {
        if self.announcements.noted.as_ref() == Some(&vips) {
            return;
        }
        let noted = self.dataplane.set_vips(&vips);
        self.announcements.noted = noted.is_ok().then_some(vips);
        self.faults
            .note("echo requests to some virtual addresses are not answered", noted);
    }

    /// Notes the virtual addresses of what is live, and decides which of them are announced. New ones are told.
    pub(super) fn follow_announced(&mut self) {
        let served = self.served();
        let wanted: BTreeSet<_> = (served.iter())
            .filter(|(_, is_usable)| **is_usable || !self.config.withdraw)
            .map(|(address, _)| *address)
            .filter(|address| !self.compiler.is_local(*address) && is_host_address(*address))
            .collect();
        for gone in self.announcements.addresses.difference(&wanted) {
            if served.contains_key(gone) && !self.compiler.is_local(*gone) {
                warn!("{gone} is withdrawn: none of its real servers is usable");
            }
        }
        let new: Vec<_> = wanted
            .difference(&self.announcements.addresses)
            .copied()
            .collect();
        self.announcements.addresses = wanted;
        let vips = self.vips(&self.model);
        self.follow_vips(vips);
        self.listen();
        for &address in &new {
            info!("{address} is announced");
        }
        // The program answers by now: who believes it and asks again is not left alone.
        self.tell(&new);
    }

    /// The addresses that have a service, and whether one of their real servers gets new connections. Where nothing is
    /// announced nobody has to know, and no change has to look through all services: none.
    fn served(&self) -> BTreeMap<IpAddr, bool> {
        if !self.config.announce {
            return BTreeMap::new();
        }
        served(&self.model, |service, server| {
            self.compiler.effective_weight(service, server).unwrap_or(0)
        })
    }

    /// Who answers for each virtual address.
    pub(super) fn vip_states(&self) -> Vec<VipStatus> {
        let served = self.served();
        let state = |address| {
            if self.compiler.is_local(address) {
                VipState::Host
            } else if self.announcements.addresses.contains(&address) {
                VipState::Announced
            } else if served.contains_key(&address) {
                VipState::Withdrawn
            } else {
                VipState::Silent
            }
        };
        let addresses = self.vips(&self.model).into_keys();
        addresses
            .map(|address| VipStatus {
                address,
                state: state(address),
            })
            .collect()
    }

    /// Tells these addresses unasked, now and some more times; where none is named, all that are answered for.
    ///
    /// # Errors
    ///
    /// Where one is none, or nobody here answers for it: then nothing is told.
    pub(super) fn announce(&mut self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, ApiError> {
        let chosen = choose(&self.vip_states(), addresses)?;
        self.tell(&chosen);
        Ok(chosen)
    }

    /// Tells every address again that is announced: there may be somebody new behind an interface.
    pub(super) fn announce_again(&mut self) {
        self.listen();
        let announced = self.announcements.addresses.iter();
        self.announcements.due = announced.map(|address| (*address, REPEATS)).collect();
    }

    /// Tells what is still to be told again.
    pub(super) fn repeat_announcements(&mut self) {
        let due = std::mem::take(&mut self.announcements.due);
        for (address, left) in due {
            let is_announced = self.announcements.addresses.contains(&address);
            if !is_announced && !self.compiler.is_local(address) {
                continue;
            }
            self.tell_once(address);
            if left > 1 {
                self.announcements.due.insert(address, left - 1);
            }
        }
    }

    /// Has the kernel let neighbour solicitations for what is announced come in.
    fn listen(&mut self) {
        let places = self.places().into_iter();
        let interfaces: Vec<_> = places.map(|(_, if_index, _)| if_index).collect();
        let Announcements {
            announcer, addresses, ..
        } = &mut self.announcements;
        let joined = announcer.listen(addresses, &interfaces);
        self.faults.note(
            "neighbour solicitations for some virtual addresses may not be heard",
            joined,
        );
    }

    fn tell(&mut self, addresses: &[IpAddr]) {
        for &address in addresses {
            self.tell_once(address);
            self.announcements.due.insert(address, REPEATS - 1);
        }
    }

    fn tell_once(&mut self, address: IpAddr) {
        for (name, if_index, mac) in self.places() {
            let told = self.announcements.announcer.announce(address, mac, if_index);
            let what = format!("{name}: nobody is told where {address} is");
            self.faults.note(what, told);
        }
    }

    /// The interfaces that announcements leave by: those that the program is attached to and the VLANs upon them, as
    /// far as they are up.
    fn places(&self) -> Vec<(String, u32, Mac)> {
        let links = self.neighbours.links();
        let cards = self.dataplane.attached().map(|attached| attached.if_index);
        let all = cards.flat_map(|card| {
            let vlans = links.vlans(card).into_iter();
            let vlans = vlans.filter_map(|name| Some(links.named(name)?.0));
            std::iter::once(card).chain(vlans)
        });
        let up = all.filter_map(|if_index| {
            let link = links.get(if_index).filter(|link| link.running)?;
            Some((link.name.clone(), if_index, link.mac?))
        });
        up.collect()
    }
}

/// The single addresses that rules give marks, each with its mark. Of a prefix nobody can tell which of its
/// addresses are virtual ones.
fn marked(model: &Model) -> impl Iterator<Item = (u32, IpAddr)> {
    let rules = model.marks().iter();
    let all = rules.flat_map(|rule| rule.addresses.iter().map(|prefix| (rule.mark, prefix)));
    all.filter(|(_, prefix)| prefix.prefix_len() == prefix.max_prefix_len())
        .map(|(mark, prefix)| (mark, prefix.addr()))
}

/// See [`State::served`]; `weight` is the one that the scheduler goes by.
fn served(model: &Model, weight: impl Fn(&ServiceKey, &ServerKey) -> u32) -> BTreeMap<IpAddr, bool> {
    let mut addresses_of: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (mark, address) in marked(model) {
        addresses_of.entry(mark).or_default().push(address);
    }
    let mut served = BTreeMap::new();
    for (key, entry) in model.services() {
        let is_usable = entry.destinations().any(|server| weight(key, &server.key) > 0);
        let mut note = |address| *served.entry(address).or_insert(false) |= is_usable;
        match key {
            ServiceKey::Endpoint { address, .. } => note(*address),
            ServiceKey::Mark { mark, ipv6 } => {
                let addresses = addresses_of.get(mark).into_iter().flatten();
                addresses
                    .filter(|address| address.is_ipv6() == *ipv6)
                    .for_each(|address| note(*address));
            }
        }
    }
    served
}

/// The addresses that are to be told unasked: an announcement must not say more than is true.
fn choose(vips: &[VipStatus], addresses: &[IpAddr]) -> Result<Vec<IpAddr>, ApiError> {
    const HOW: &str = "start the agent with --announce, or give the address to an interface";
    let is_answered = |state| matches!(state, VipState::Announced | VipState::Host);
    if addresses.is_empty() {
        let answered = vips.iter().filter(|vip| is_answered(vip.state));
        let answered: Vec<_> = answered.map(|vip| vip.address).collect();
        if answered.is_empty() {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!("this director answers for no virtual address, so there is none to announce: {HOW}"),
            ));
        }
        return Ok(answered);
    }
    for address in addresses {
        let Some(vip) = vips.iter().find(|vip| vip.address == *address) else {
            return Err(ApiError::new(
                ErrorCode::NoSuchService,
                format!("{address} is no virtual address: no service has it"),
            ));
        };
        let why = match vip.state {
            VipState::Announced | VipState::Host => continue,
            VipState::Withdrawn => format!("{address} is withdrawn: none of its real servers is usable"),
            VipState::Silent => format!("this director does not answer for {address}: {HOW}"),
        };
        return Err(ApiError::new(ErrorCode::Invalid, why));
    }
    Ok(addresses.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Change, MarkRule, Protocol, Scheduler, ServerSpec, ServiceSpec};

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 168, 2, last])
    }

    #[test]
    fn an_address_is_served_while_one_of_its_services_is() {
        let mut model = Model::default();
        let mark = ServiceKey::Mark { mark: 1, ipv6: false };
        let services = [
            (ServiceKey::new(Protocol::Tcp, address(100), 80), Some(1)),
            (ServiceKey::new(Protocol::Tcp, address(100), 443), Some(2)),
            (ServiceKey::new(Protocol::Tcp, address(101), 80), Some(2)),
            (ServiceKey::new(Protocol::Udp, address(102), 53), None),
            (mark, Some(1)),
        ];
        for (service, server) in services {
            let add = Change::AddService {
                service: ServiceSpec::new(service, Scheduler::Rr),
            };
            model.apply(&[add]).unwrap();
            let add = server.map(|last| Change::AddServer {
                service,
                server: ServerSpec::new(
                    ServerKey {
                        address: address(last),
                        port: service.port(),
                    },
                    1,
                ),
                require_on_link: false,
            });
            model.apply(add.as_slice()).unwrap();
        }
        for (mark, prefix) in [
            (1, "192.168.2.103/32"),
            (1, "192.168.3.0/24"),
            (2, "192.168.2.104/32"),
        ] {
            let rule = MarkRule {
                mark,
                protocol: None,
                addresses: vec![prefix.parse().unwrap()],
                ports: Vec::new(),
            };
            model.apply(&[Change::AddMark { rule }]).unwrap();
        }
        let only_1 = |_: &ServiceKey, server: &ServerKey| u32::from(server.address == address(1));
        let expected = [(100, true), (101, false), (102, false), (103, true)];
        let expected = expected.map(|(last, is_usable)| (address(last), is_usable));
        assert_eq!(served(&model, only_1), BTreeMap::from(expected));
    }

    #[test]
    fn nothing_is_announced_that_nobody_answers_for() {
        let vip = |last, state| VipStatus {
            address: address(last),
            state,
        };
        let vips = [
            vip(1, VipState::Announced),
            vip(2, VipState::Host),
            vip(3, VipState::Withdrawn),
            vip(4, VipState::Silent),
        ];
        assert_eq!(choose(&vips, &[]), Ok(vec![address(1), address(2)]));
        assert_eq!(choose(&vips, &[address(2)]), Ok(vec![address(2)]));
        for (addresses, part) in [
            (&[address(1), address(3)][..], "is withdrawn"),
            (&[address(4)], "--announce"),
            (&[address(5)], "no service has it"),
        ] {
            let error = choose(&vips, addresses).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
        assert!(
            choose(&vips[2..], &[])
                .unwrap_err()
                .message
                .contains("--announce")
        );
    }
}
