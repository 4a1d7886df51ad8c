//! The interfaces of this host, and how they are stacked upon each other.

use std::collections::{BTreeMap, BTreeSet};

use super::Mac;

/// What kind of interface one is, as far as it matters to the frames that leave by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkKind {
    /// A network card, or what is used like one.
    #[default]
    Plain,
    /// One VLAN of the interface below it.
    Vlan {
        /// The VLAN's number.
        id: u16,
        /// Whether its tags are service tags (IEEE 802.1ad), and not customer tags (802.1Q).
        is_service: bool,
    },
    /// Another MAC address of the interface below it (macvlan, macvtap).
    Macvlan,
    /// Several network cards used as one (bond, team).
    Bond,
}

/// An interface of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` where it has none (a tunnel).
    pub mac: Option<Mac>,
    /// The longest packet that it sends, in bytes.
    pub mtu: u32,
    /// Whether it is set up (`ip link set up`) and has a carrier.
    pub running: bool,
    /// What kind it is.
    pub kind: LinkKind,
    /// Index of the interface below a VLAN or a macvlan; `None` where that is in another network namespace.
    pub lower: Option<u32>,
    /// Index of the bond or bridge that it is part of.
    pub master: Option<u32>,
}

/// One VLAN tag of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The VLAN's number.
    pub id: u16,
    /// Whether it is a service tag (IEEE 802.1ad).
    pub is_service: bool,
}

/// Where a frame leaves the host that is routed to some interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The interface whose frames they are.
    pub if_index: u32,
    /// The tags that they have there, outermost first.
    pub tags: Vec<Tag>,
}

/// All interfaces of this host, by index.
#[derive(Debug, Clone, Default)]
pub struct Links(BTreeMap<u32, Link>);

/// Deeper than the kernel lets interfaces be stacked (`MAX_NEST_DEV`).
const DEPTH: usize = 8;

impl Links {
    /// Notes what an interface is, or that it is gone.
    pub fn set(&mut self, if_index: u32, link: Option<Link>) {
        match link {
            Some(link) => self.0.insert(if_index, link),
            None => self.0.remove(&if_index),
        };
    }

    /// An interface.
    pub fn get(&self, if_index: u32) -> Option<&Link> {
        self.0.get(&if_index)
    }

    /// The interface of a name, with its index.
    pub fn named(&self, name: &str) -> Option<(u32, &Link)> {
        let mut links = self.0.iter().map(|(if_index, link)| (*if_index, link));
        links.find(|(_, link)| link.name == name)
    }

    /// Where frames leave that are routed to an interface: below its VLANs and macvlans, but not below one that
    /// the program is attached to, which `is_attached` says.
    pub fn exit(&self, if_index: u32, is_attached: impl Fn(u32) -> bool) -> Exit {
        let mut exit = Exit {
            if_index,
            tags: Vec::new(),
        };
        for _ in 0..DEPTH {
            let link = self.get(exit.if_index).filter(|_| !is_attached(exit.if_index));
            match link.map(|link| (link.kind, link.lower)) {
                Some((LinkKind::Vlan { id, is_service }, Some(lower))) => {
                    exit.tags.insert(0, Tag { id, is_service });
                    exit.if_index = lower;
                }
                Some((LinkKind::Macvlan, Some(lower))) => exit.if_index = lower,
                _ => break,
            }
        }
        exit
    }

    /// The MAC addresses of an interface and of all VLANs and macvlans upon it, each once.
    pub fn macs(&self, if_index: u32) -> Vec<Mac> {
        let own = self.get(if_index).and_then(|link| link.mac);
        let upon: BTreeSet<_> = self.upon(if_index).filter_map(|link| link.mac).collect();
        let others = upon.into_iter().filter(|mac| Some(*mac) != own);
        own.into_iter().chain(others).collect()
    }

    /// The names of the VLANs upon an interface.
    pub fn vlans(&self, if_index: u32) -> Vec<&str> {
        let is_vlan = |link: &&Link| matches!(link.kind, LinkKind::Vlan { .. });
        let vlans = self.upon(if_index).filter(is_vlan);
        vlans.map(|link| link.name.as_str()).collect()
    }

    /// The interfaces that a bond is made of.
    pub fn parts(&self, if_index: u32) -> impl Iterator<Item = u32> {
        let is_bond = self.get(if_index).is_some_and(|link| link.kind == LinkKind::Bond);
        let parts = self
            .0
            .iter()
            .filter(move |(_, link)| is_bond && link.master == Some(if_index));
        parts.map(|(part, _)| *part)
    }

    /// The bond that an interface is part of.
    pub fn bond_of(&self, if_index: u32) -> Option<&Link> {
        let master = self.get(self.get(if_index)?.master?)?;
        (master.kind == LinkKind::Bond).then_some(master)
    }

    /// The VLANs and macvlans upon an interface, also those upon each other.
    fn upon(&self, if_index: u32) -> impl Iterator<Item = &Link> {
        let is_upon = move |link: &&Link| {
            let mut below = link.lower;
            for _ in 0..DEPTH {
                if below == Some(if_index) {
                    return true;
                }
                below = below.and_then(|index| self.get(index)?.lower);
            }
            false
        };
        self.0.values().filter(is_upon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;
    const ETH1: u32 = 3;
    const ETH0_10: u32 = 10;
    const ETH0_10_20: u32 = 11;
    const MACVLAN: u32 = 12;
    const BOND: u32 = 20;

    fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn link(name: &str, kind: LinkKind, lower: Option<u32>, last: u8) -> Link {
        Link {
            name: name.to_owned(),
            mac: Some(mac(last)),
            mtu: 1500,
            running: true,
            kind,
            lower,
            master: None,
        }
    }

    fn vlan(id: u16, is_service: bool) -> LinkKind {
        LinkKind::Vlan { id, is_service }
    }

    /// Two cards; on the first a VLAN 10 of service tags with a VLAN 20 upon it, and a macvlan upon VLAN 10.
    fn links() -> Links {
        let mut links = Links::default();
        for (if_index, link) in [
            (ETH0, link("eth0", LinkKind::Plain, None, 1)),
            (ETH1, link("eth1", LinkKind::Plain, None, 2)),
            (ETH0_10, link("eth0.10", vlan(10, true), Some(ETH0), 1)),
            (ETH0_10_20, link("eth0.10.20", vlan(20, false), Some(ETH0_10), 4)),
            (MACVLAN, link("vrrp", LinkKind::Macvlan, Some(ETH0_10), 5)),
        ] {
            links.set(if_index, Some(link));
        }
        links
    }

    #[test]
    fn frames_leave_by_the_card_with_the_tags_of_all_that_is_between() {
        let links = links();
        let outer = Tag {
            id: 10,
            is_service: true,
        };
        let inner = Tag {
            id: 20,
            is_service: false,
        };
        for (from, tags) in [
            (ETH0, vec![]),
            (ETH0_10, vec![outer]),
            (ETH0_10_20, vec![outer, inner]),
            (MACVLAN, vec![outer]),
        ] {
            let exit = links.exit(from, |if_index| if_index == ETH0);
            assert_eq!(exit, Exit { if_index: ETH0, tags }, "{from}");
        }
        // The program on the VLAN itself sees and sends frames without its tag.
        let exit = links.exit(ETH0_10_20, |if_index| if_index == ETH0_10);
        let tags = vec![inner];
        assert_eq!(
            exit,
            Exit {
                if_index: ETH0_10,
                tags
            }
        );
    }

    #[test]
    fn what_is_not_known_or_goes_in_circles_is_taken_as_it_is() {
        let mut links = links();
        let unknown = Exit {
            if_index: 99,
            tags: vec![],
        };
        assert_eq!(links.exit(99, |_| false), unknown);
        links.set(30, Some(link("a", LinkKind::Macvlan, Some(31), 7)));
        links.set(31, Some(link("b", LinkKind::Macvlan, Some(30), 8)));
        assert_eq!(links.exit(30, |_| false).tags, []);
        assert_eq!(links.macs(ETH1), [mac(2)]);
    }

    #[test]
    fn a_card_has_the_addresses_of_all_that_is_upon_it() {
        let mut links = links();
        assert_eq!(links.macs(ETH0), [mac(1), mac(4), mac(5)]);
        assert_eq!(links.macs(ETH0_10), [mac(1), mac(4), mac(5)]);
        assert_eq!(links.macs(ETH1), [mac(2)]);
        assert_eq!(links.vlans(ETH0), ["eth0.10", "eth0.10.20"]);
        assert!(links.vlans(ETH1).is_empty());
        links.set(ETH0_10_20, None);
        links.set(ETH0_10, None);
        assert_eq!(links.macs(ETH0), [mac(1)]);
        assert!(links.vlans(ETH0).is_empty());
    }

    #[test]
    fn a_bond_knows_its_parts_and_they_know_it() {
        let mut links = links();
        links.set(BOND, Some(link("bond0", LinkKind::Bond, None, 9)));
        let part = Link {
            master: Some(BOND),
            ..link("eth1", LinkKind::Plain, None, 9)
        };
        links.set(ETH1, Some(part.clone()));
        assert_eq!(links.parts(BOND).collect::<Vec<_>>(), [ETH1]);
        assert_eq!(links.bond_of(ETH1).map(|bond| bond.name.as_str()), Some("bond0"));
        assert_eq!(links.bond_of(ETH0), None);
        assert_eq!(links.named("bond0").map(|(if_index, _)| if_index), Some(BOND));
        // A bridge's ports are cards of their own.
        links.set(BOND, Some(link("br0", LinkKind::Plain, None, 9)));
        assert_eq!(links.parts(BOND).count(), 0);
        assert_eq!(links.bond_of(ETH1), None);
    }
}
