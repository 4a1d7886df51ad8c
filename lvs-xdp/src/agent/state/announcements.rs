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
    model::is_host_address,
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

    /// The [`vip_flag`]s of a virtual address: whether the host holds it, and whether it is announced.
    fn vip_flags(&self, address: IpAddr) -> u64 {
        let flags = if self.compiler.is_local(address) {
            vip_flag::LOCAL
        } else if self.announcements.addresses.contains(&address) {
            vip_flag::ANNOUNCED
        } else {
            0
        };
        vip_flag::USED | flags
    }

    /// Notes those of these addresses that are virtual ones now. What is none any more stays.
    pub(super) fn enter_vips(&mut self, addresses: &BTreeSet<IpAddr>) {
        let entered = addresses
            .iter()
            .copied()
            .filter(|address| self.vips.contains(*address));
        let entered: Vec<_> = entered.collect();
        let host = self.checks.host();
        host.note_vips(entered.iter().map(|address| (*address, true)));
        if self.announcements.noted.is_some() {
            self.note_vips(entered);
        } else {
            // Whatever the map has of a run before: all that is served, and what is served until the change is live.
            self.note_vips(addresses.clone());
        }
    }

    /// Notes of these addresses which are virtual ones, and how.
    fn note_vips(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let noted = match self.announcements.noted.take() {
            Some(noted) => self.change_vips(noted, addresses),
            None => {
                let all = self.vips.addresses().chain(addresses);
                let all: BTreeMap<_, _> = all.map(|address| (address, self.vip_flags(address))).collect();
                self.dataplane.set_vips(&all).map(|()| all)
            }
        };
        let what = "echo requests to some virtual addresses are not answered";
        match noted {
            Ok(noted) => {
                self.announcements.noted = Some(noted);
                self.faults.note(what, Ok::<_, ApiError>(()));
            }
            Err(error) => self.faults.note(what, Err::<(), _>(error)),
        }
    }

    fn change_vips(
        &mut self,
        mut noted: BTreeMap<IpAddr, u64>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> anyhow::Result<BTreeMap<IpAddr, u64>> {
        let wanted = |address| self.vips.contains(address).then(|| self.vip_flags(address));
        let changes = addresses.into_iter().map(|address| (address, wanted(address)));
        let changes: Vec<_> = changes
            .filter(|(address, flags)| noted.get(address) != flags.as_ref())
            .collect();
        if changes.is_empty() {
            return Ok(noted);
        }
        self.dataplane.change_vips(&changes)?;
        for (address, flags) in changes {
            match flags {
                Some(flags) => noted.insert(address, flags),
                None => noted.remove(&address),
            };
        }
        Ok(noted)
    }

    /// What is announced now.
    pub(super) fn announced(&self) -> impl Iterator<Item = IpAddr> {
        self.announcements.addresses.iter().copied()
    }

    /// Takes in which of the touched services have a real server that gets new connections. Where nothing is announced
    /// nobody has to know.
    pub(super) fn note_usable(&mut self, touched: &BTreeSet<ServiceKey>) {
        if !self.config.announce {
            return;
        }
        for key in touched {
            let Some(entry) = self.model.services().get(key) else {
                continue;
            };
            let weight = |server: &ServerKey| self.compiler.effective_weight(key, server).unwrap_or(0);
            let is_usable = entry.destinations().any(|server| weight(&server.key) > 0);
            self.vips.set_usable(key, is_usable);
        }
    }

    /// Notes which of these addresses are virtual ones by what is live, and decides which of them are announced. New
    /// ones are told.
    pub(super) fn follow_announced(&mut self, addresses: &BTreeSet<IpAddr>) {
        let mut new = Vec::new();
        let mut is_other = false;
        for &address in addresses {
            let served = self.served(address);
            let is_local = self.compiler.is_local(address);
            let is_wanted = served.is_some_and(|is_usable| is_usable || !self.config.withdraw)
                && !is_local
                && is_host_address(address);
            let announced = &mut self.announcements.addresses;
            if is_wanted == announced.contains(&address) {
                continue;
            }
            is_other = true;
            if is_wanted {
                announced.insert(address);
                new.push(address);
                continue;
            }
            announced.remove(&address);
            if served.is_some() && !is_local {
                warn!("{address} is withdrawn: none of its real servers is usable");
            }
        }
        self.note_vips(addresses.iter().copied());
        let gone = addresses.iter().filter(|address| !self.vips.contains(**address));
        self.checks
            .host()
            .note_vips(gone.map(|address| (*address, false)));
        if is_other {
            self.listen();
        }
        for &address in &new {
            info!("{address} is announced");
        }
        // The program answers by now: who believes it and asks again is not left alone.
        self.tell(&new);
    }

    /// Whether one of the real servers of an address that has a service gets new connections; nothing, where it has
    /// none, or nothing is announced.
    fn served(&self, address: IpAddr) -> Option<bool> {
        self.config
            .announce
            .then(|| self.vips.is_usable(address))
            .flatten()
    }

    /// Who answers for each virtual address.
    pub(super) fn vip_states(&self) -> Vec<VipStatus> {
        let state = |address| {
            if self.compiler.is_local(address) {
                VipState::Host
            } else if self.announcements.addresses.contains(&address) {
                VipState::Announced
            } else if self.served(address).is_some() {
                VipState::Withdrawn
            } else {
                VipState::Silent
            }
        };
        (self.vips.addresses())
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

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 168, 2, last])
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
