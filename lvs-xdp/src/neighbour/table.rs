//! What is known of the watched addresses, and what follows from each piece of news.
//!
//! No socket and no clock: news and the time come as arguments; what is to be told and to be done
//! is collected until it is taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use super::{
    Event, Link, Mac, OffLink, Path, Resolution,
    schedule::{Schedule, Step},
};

/// The state of a neighbour entry, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryState {
    /// `NUD_REACHABLE`, `NUD_STALE`, `NUD_DELAY`, `NUD_PROBE`: the kernel uses its MAC address.
    Valid,
    /// `NUD_PERMANENT`, `NUD_NOARP`: the MAC address was set by hand, or by the kind of interface.
    Fixed,
    /// `NUD_FAILED`: nobody answered.
    Failed,
    /// `NUD_NONE`, `NUD_INCOMPLETE`: the kernel is asking.
    Pending,
}

/// A neighbour entry of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: EntryState,
    pub(super) mac: Option<Mac>,
    /// `NTF_EXT_LEARNED`: somebody else looks after it. The flag is kept.
    pub(super) external: bool,
    /// Managed, and not by us.
    pub(super) managed_by_other: bool,
}

impl Entry {
    fn usable_mac(&self) -> Option<Mac> {
        match self.state {
            EntryState::Valid | EntryState::Fixed => self.mac,
            EntryState::Failed | EntryState::Pending => None,
        }
    }
}

/// The kernel's answer to "how is this address reached".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// On the segment behind this interface; `source` is the address the host would send from.
    OnLink { if_index: u32, source: Option<IpAddr> },
    /// It is an address of this host.
    Local,
    /// Not by a MAC address of its own.
    OffLink(OffLink),
}

/// One change of the kernel's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// An interface is so, or has vanished.
    Link { if_index: u32, link: Option<Link> },
    /// An interface has, or has no longer, this address.
    Address {
        address: IpAddr,
        if_index: u32,
        present: bool,
    },
    /// A route for this network changed.
    Route { network: IpAddr, prefix_len: u8 },
    /// A routing rule changed.
    Rule,
    /// A neighbour entry is so, or was deleted.
    Neighbour {
        address: IpAddr,
        if_index: u32,
        entry: Option<Entry>,
    },
}

#[derive(Debug)]
struct Watched {
    /// `None` until it was asked for.
    route: Option<Route>,
    path: Option<Path>,
    entry: Option<Entry>,
    /// Nobody answered since it was last usable: a kernel that starts to ask again does not
    /// make it better.
    failed: bool,
    /// The MAC address that is being probed.
    probed: Option<Mac>,
    resolution: Resolution,
    schedule: Schedule,
    /// Under which time it is in [`Table::queue`].
    queued: Option<Instant>,
}

/// What a probe needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) address: IpAddr,
    pub(super) if_index: u32,
    pub(super) mac: Mac,
    pub(super) source_mac: Mac,
    /// The address to ask from, where one is known.
    pub(super) source: Option<IpAddr>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Table {
    watched: BTreeMap<IpAddr, Watched>,
    /// Addresses by when their next step is due.
    queue: BTreeSet<(Instant, IpAddr)>,
    links: HashMap<u32, Link>,
    local: BTreeSet<(IpAddr, u32)>,
    events: Vec<Event>,
    /// Addresses whose route may have changed.
    reroute: BTreeSet<IpAddr>,
    /// Addresses whose entry is gone, and has to be made again.
    lost: BTreeSet<IpAddr>,
}

impl Table {
    /// Watches an address; says whether it is a new one.
    pub(super) fn watch(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.watched.contains_key(&address) {
            return false;
        }
        let watched = Watched {
            route: None,
            path: None,
            entry: None,
            failed: false,
            probed: None,
            resolution: Resolution::Resolving,
            schedule: Schedule::new(now),
            queued: None,
        };
        self.watched.insert(address, watched);
        true
    }

    /// Tells what was found of a new address, even if it is no more than [`Resolution::Resolving`].
    pub(super) fn announce(&mut self, address: IpAddr) {
        let told = |event: &Event| matches!(event, Event::Resolution { address: of, .. } if *of == address);
        if let Some(watched) = self.watched.get(&address)
            && !self.events.iter().any(told)
        {
            let resolution = watched.resolution.clone();
            self.events.push(Event::Resolution { address, resolution });
        }
    }

    pub(super) fn forget(&mut self, address: IpAddr) {
        let watched = self.watched.remove(&address);
        if let Some(due) = watched.and_then(|watched| watched.queued) {
            self.queue.remove(&(due, address));
        }
        self.reroute.remove(&address);
        self.lost.remove(&address);
    }

    /// Everything that is watched.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.watched.keys().copied()
    }

    /// The interface an address is behind, where it is on-link.
    pub(super) fn on_link(&self, address: IpAddr) -> Option<u32> {
        match self.watched.get(&address)?.route? {
            Route::OnLink { if_index, .. } => Some(if_index),
            Route::Local | Route::OffLink(_) => None,
        }
    }

    /// The kernel's entry for an address, as far as it is known.
    pub(super) fn entry(&self, address: IpAddr) -> Option<Entry> {
        self.watched.get(&address)?.entry
    }

    /// The interface that a link-local IPv6 address is meant to be behind, which by itself names a host of each
    /// segment: that of the way on which it is a router.
    pub(super) fn scope(&self, address: IpAddr) -> Option<u32> {
        // Only routers have such addresses here, and there are few of them.
        let IpAddr::V6(v6) = address else { return None };
        if !v6.is_unicast_link_local() {
            return None;
        }
        let mut paths = self.watched.values().filter_map(|watched| watched.path);
        let path = paths.find(|path| path.gateway == Some(address))?;
        Some(path.if_index)
    }

    /// What the kernel's routes say of packets to an address.
    pub(super) fn set_path(&mut self, address: IpAddr, path: Option<Path>) {
        if let Some(watched) = self.watched.get_mut(&address)
            && watched.path != path
        {
            watched.path = path;
            self.events.push(Event::Path { address, path });
            let gateway = path.and_then(|path| path.gateway);
            // A router of that address may be meant to be on another segment now.
            self.reroute
                .extend(gateway.filter(|gateway| self.watched.contains_key(gateway)));
        }
    }

    /// The kernel's answer to how an address is reached.
    pub(super) fn set_route(&mut self, address: IpAddr, route: Route, now: Instant) {
        // A route to an interface without MAC addresses is on-link only for the kernel.
        let route = match route {
            Route::OnLink { if_index, .. } if self.links.get(&if_index).is_some_and(|l| l.mac.is_none()) => {
                Route::OffLink(OffLink::NotEthernet)
            }
            Route::OnLink { .. } | Route::Local | Route::OffLink(_) => route,
        };
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        let interface = |route| match route {
            Some(Route::OnLink { if_index, .. }) => Some(if_index),
            Some(Route::Local | Route::OffLink(_)) | None => None,
        };
        if interface(watched.route) != interface(Some(route)) {
            // Another segment: what was known of the old one says nothing about it.
            watched.entry = None;
            watched.failed = false;
        }
        watched.route = Some(route);
        self.conclude(address, now);
    }

    /// The kernel's entry for an address on an interface, by an event or by asking.
    pub(super) fn set_entry(&mut self, address: IpAddr, if_index: u32, entry: Option<Entry>, now: Instant) {
        if self.on_link(address) != Some(if_index) {
            return;
        }
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        watched.entry = entry;
        match entry.map(|entry| entry.state) {
            Some(EntryState::Failed) => watched.failed = true,
            Some(EntryState::Valid | EntryState::Fixed) => watched.failed = false,
            Some(EntryState::Pending) => {}
            None => drop(self.lost.insert(address)),
        }
        self.conclude(address, now);
    }

    /// Takes in one change of the kernel's tables.
    pub(super) fn apply(&mut self, news: News, now: Instant) {
        match news {
            News::Link { if_index, link } => {
                let old = match link.clone() {
                    Some(link) => self.links.insert(if_index, link),
                    None => self.links.remove(&if_index),
                };
                if old == link {
                    return;
                }
                self.events.push(Event::Link { if_index, link });
                // The kernel removes an interface's IPv4 routes without a word when it goes down.
                self.reroute_all();
                for address in self.addresses().collect::<Vec<_>>() {
                    self.conclude(address, now);
                }
            }
            News::Address {
                address,
                if_index,
                present,
            } => {
                let changed = if present {
                    self.local.insert((address, if_index))
                } else {
                    self.local.remove(&(address, if_index))
                };
                if changed {
                    self.events.push(Event::LocalAddresses(self.local_addresses()));
                    self.reroute_all();
                }
            }
            News::Route { network, prefix_len } => {
                let concerned = self
                    .watched
                    .keys()
                    .filter(|address| contains(network, prefix_len, **address));
                self.reroute.extend(concerned);
            }
            News::Rule => self.reroute_all(),
            News::Neighbour {
                address,
                if_index,
                entry,
            } => self.set_entry(address, if_index, entry, now),
        }
    }

    /// Replaces what is known of interfaces and local addresses by what was read anew; every route
    /// is to be asked for again.
    pub(super) fn replace(&mut self, news: Vec<News>, now: Instant) {
        let mut links = BTreeSet::new();
        let mut local = BTreeSet::new();
        for item in &news {
            match item {
                News::Link { if_index, .. } => drop(links.insert(*if_index)),
                News::Address {
                    address, if_index, ..
                } => drop(local.insert((*address, *if_index))),
                News::Route { .. } | News::Rule | News::Neighbour { .. } => {}
            }
        }
        let vanished: Vec<_> = self
            .links
            .keys()
            .filter(|index| !links.contains(index))
            .copied()
            .collect();
        for if_index in vanished {
            self.apply(News::Link { if_index, link: None }, now);
        }
        for (address, if_index) in self.local.difference(&local).copied().collect::<Vec<_>>() {
            self.apply(
                News::Address {
                    address,
                    if_index,
                    present: false,
                },
                now,
            );
        }
        for item in news {
            self.apply(item, now);
        }
        self.reroute_all();
    }

    /// The addresses of this host.
    pub(super) fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.local.iter().map(|(address, _)| *address).collect()
    }

    /// Somebody says that an address has this MAC address, or, with `None`, still has the one that was asked.
    pub(super) fn answered(
        &mut self,
        address: IpAddr,
        if_index: Option<u32>,
        mac: Option<Mac>,
        now: Instant,
    ) {
        let on_link = self.on_link(address);
        if on_link.is_none() || if_index.is_some_and(|index| Some(index) != on_link) {
            return;
        }
        if let Some(watched) = self.watched.get_mut(&address) {
            let from_known = mac.is_none() || mac == watched.probed;
            watched.schedule.answered(from_known, now);
            self.enqueue(address);
        }
    }

    /// Puts an address where its schedule says.
    fn enqueue(&mut self, address: IpAddr) {
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        let due = watched.schedule.due();
        let before = mem::replace(&mut watched.queued, due);
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, address));
        }
        if let Some(due) = due {
            self.queue.insert((due, address));
        }
    }

    /// When the next step of any address is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The steps that are due at `now`.
    pub(super) fn steps(&mut self, now: Instant) -> Vec<(IpAddr, Step)> {
        let due = self.queue.iter().take_while(|(due, _)| *due <= now);
        let addresses: BTreeSet<_> = due.map(|(_, address)| *address).collect();
        let mut steps = Vec::new();
        for address in addresses {
            let watched = self.watched.get_mut(&address);
            let step = watched.and_then(|watched| watched.schedule.step(now));
            steps.extend(step.map(|step| (address, step)));
            self.enqueue(address);
        }
        steps
    }

    /// What a probe for this address needs to know.
    pub(super) fn probe(&self, address: IpAddr) -> Option<Probe> {
        let watched = self.watched.get(&address)?;
        let Some(Route::OnLink { if_index, source }) = watched.route else {
            return None;
        };
        let source_mac = self.links.get(&if_index)?.mac?;
        let source = match address {
            IpAddr::V4(_) => source,
            // As the kernel asks itself (`ndisc_solicit()`). The address that the host would send from may be
            // a VIP, and a real server has the VIP itself: its answer would not leave it.
            IpAddr::V6(_) => self.link_local(if_index),
        };
        Some(Probe {
            address,
            if_index,
            mac: watched.probed?,
            source_mac,
            source,
        })
    }

    /// A link-local IPv6 address of this host on an interface.
    fn link_local(&self, if_index: u32) -> Option<IpAddr> {
        // fe80::/10 (RFC 4291, section 2.4).
        let first = (Ipv6Addr::from_bits(0xfe80 << 112).into(), 0);
        let end = (Ipv6Addr::from_bits(0xfec0 << 112).into(), 0);
        let mut addresses = self.local.range(first..end);
        addresses
            .find(|(_, index)| *index == if_index)
            .map(|(address, _)| *address)
    }

    /// What is to be told, in order.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// Whether routes are to be asked for again.
    pub(super) fn must_reroute(&self) -> bool {
        !self.reroute.is_empty()
    }

    /// The addresses whose route is to be asked for again.
    pub(super) fn take_reroute(&mut self) -> BTreeSet<IpAddr> {
        mem::take(&mut self.reroute)
    }

    /// The addresses whose entry has to be made again.
    pub(super) fn take_lost(&mut self) -> BTreeSet<IpAddr> {
        mem::take(&mut self.lost)
    }

    fn reroute_all(&mut self) {
        self.reroute.extend(self.watched.keys());
    }

    /// Draws the conclusion from route, entry and interface: resolution, and what to ask.
    fn conclude(&mut self, address: IpAddr, now: Instant) {
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        let unresolved = if watched.failed {
            Resolution::Unreachable
        } else {
            Resolution::Resolving
        };
        let resolution = match watched.route {
            None => unresolved,
            Some(Route::Local) => Resolution::Local,
            Some(Route::OffLink(reason)) => Resolution::NotOnLink(reason),
            Some(Route::OnLink { if_index, .. }) => {
                let mac = watched.entry.and_then(|entry| entry.usable_mac());
                let link = self.links.get(&if_index);
                match (mac, link.and_then(|link| Some((link.mac?, &link.name)))) {
                    (Some(mac), Some((source_mac, name))) => Resolution::Ready {
                        mac,
                        source_mac,
                        if_index,
                        interface: name.clone(),
                    },
                    _ => unresolved,
                }
            }
        };
        let valid = watched
            .entry
            .is_some_and(|entry| entry.state == EntryState::Valid);
        match resolution {
            Resolution::Ready { mac, .. } if valid => {
                watched.schedule.known(watched.probed != Some(mac), address, now);
                watched.probed = Some(mac);
            }
            Resolution::Ready { .. } | Resolution::Local | Resolution::NotOnLink(_) => {
                watched.schedule.idle();
                watched.probed = None;
            }
            Resolution::Resolving | Resolution::Unreachable => {
                watched.schedule.resolving(now);
                watched.probed = None;
            }
        }
        if watched.resolution != resolution {
            watched.resolution = resolution.clone();
            self.events.push(Event::Resolution { address, resolution });
        }
        self.enqueue(address);
    }
}

/// Whether a network contains an address.
fn contains(network: IpAddr, prefix_len: u8, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let host_bits = 128 - u32::from(prefix_len.min(width)) - (128 - u32::from(width));
    let difference: u128 = network ^ address;
    difference.checked_shr(host_bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests;
