//! The director's interfaces, and the ways to real servers that lead through them.

use std::net::IpAddr;

use lvs_xdp_common::abi::Tags;
use tracing::{info, warn};

use super::State;
use crate::{
    dataplane::compile::Way,
    neighbour::{Exit, Link, Resolution},
};

impl State {
    /// Takes in that an interface has come, gone or changed.
    pub(super) fn hear_link(&mut self, if_index: u32, link: Option<Link>) {
        match link {
            None => {
                if let Some(attached) = self.dataplane.detached(if_index) {
                    warn!(
                        "{} is gone: no packet comes from it until it is back",
                        attached.name
                    );
                }
            }
            Some(link) => self.hear_change(if_index, &link),
        }
        self.note_macs();
        self.note_ways();
        if self.dataplane.is_attached(if_index) {
            self.announce_again();
        }
    }

    /// Tries again what could not be attached to when it came.
    pub(super) fn attach_missing(&mut self) {
        let links = self.neighbours.links();
        let found = self.interfaces.iter().filter_map(|name| links.named(name));
        let missing: Vec<_> = found
            .filter(|(if_index, _)| !self.dataplane.is_attached(*if_index))
            .map(|(if_index, link)| (if_index, link.clone()))
            .collect();
        for (if_index, link) in missing {
            self.hear_link(if_index, Some(link));
        }
    }

    fn hear_change(&mut self, if_index: u32, link: &Link) {
        let name = &link.name;
        if let Some(before) = self.dataplane.renamed(if_index, name) {
            info!("{before} is called {name} now: name it so when the agent is started again");
            self.interfaces.remove(&before);
            self.interfaces.insert(name.clone());
        }
        let is_attached = self.dataplane.is_attached(if_index);
        if !self.interfaces.contains(name) && !is_attached {
            return;
        }
        let objection = crate::nic::objection(&self.neighbours.links(), name);
        if !is_attached {
            let attached = match &objection {
                Some(objection) => Err(anyhow::anyhow!("{objection}")),
                None => self.dataplane.attach(name, self.config.xdp_mode.forced()),
            };
            if let Ok(attached) = &attached {
                info!("{name} is back: attached in {} mode", attached.mode);
            }
            self.faults
                .note(format!("{name} is back without the program"), attached);
            return;
        }
        self.faults.note(
            format!("{name} does not serve all that is on it"),
            objection.map_or(Ok(()), Err),
        );
    }

    /// Notes under which MAC addresses the director takes frames.
    pub(super) fn note_macs(&self) {
        let links = self.neighbours.links();
        for attached in self.dataplane.attached() {
            let if_index = attached.if_index;
            let macs = links.macs(if_index);
            // What comes to a bond is said to have come to the part that it came by.
            for one in std::iter::once(if_index).chain(links.parts(if_index)) {
                self.dataplane.set_macs(one, &macs);
            }
        }
    }

    /// Brings the ways to all servers into the tables: the interfaces between may have changed.
    fn note_ways(&mut self) {
        for (address, _, is_tunnelled) in self.uses.ways().collect::<Vec<_>>() {
            self.note_way(address);
            if is_tunnelled {
                self.note_tunnel(address);
            }
        }
    }

    /// Brings what is known of the way to a server into the tables.
    pub(super) fn note_way(&mut self, address: IpAddr) {
        let before = self.compiler.way(address);
        let way = match self.neighbours.resolution(address) {
            Some(Resolution::Ready {
                mac,
                source_mac,
                if_index,
                ..
            }) => {
                let way = self.neighbour_way(address, mac, source_mac, if_index);
                if way.is_none() {
                    return;
                }
                way
            }
            Some(Resolution::Local) => Some(Way::Local),
            // Connections keep the last MAC address; but what was the director is so no more.
            _ if before == Some(Way::Local) => None,
            _ => return,
        };
        if way == before {
            return;
        }
        if let Some(Way::Neighbour { if_index, .. }) = way
            && let Err(error) = self.dataplane.allow_redirect(if_index)
        {
            warn!("{address}: {error:#}");
        }
        self.compiler.set_way(address, way);
        self.are_peers_stale |= self.uses.is_companion(address);
        // Then others may be companions, which is noted there.
        self.uses.set_own(address, way == Some(Way::Local), &self.model);
    }

    /// The way to a server by a neighbour on an interface, which is the server or a router; `None` where frames
    /// cannot go there.
    pub(super) fn neighbour_way(
        &mut self,
        address: IpAddr,
        mac: [u8; 6],
        source_mac: [u8; 6],
        if_index: u32,
    ) -> Option<Way> {
        let links = self.neighbours.links();
        let exit = links.exit(if_index, |if_index| self.dataplane.is_attached(if_index));
        let tags = self.tags(&exit);
        let what = format!("real server {address} cannot be reached");
        let why = "it is behind more than two VLANs";
        self.faults.note(what, tags.map(drop).ok_or(why));
        Some(Way::Neighbour {
            mac,
            source_mac,
            if_index: exit.if_index,
            tags: tags?,
        })
    }

    /// The tags of frames that leave by an exit; `Some(None)` where no frame has to change its tags, and `None`
    /// where there is no room for all of them.
    fn tags(&self, exit: &Exit) -> Option<Option<Tags>> {
        let links = self.neighbours.links();
        let mut cards = self.dataplane.attached().map(|attached| attached.if_index);
        let has_vlans =
            !links.vlans(exit.if_index).is_empty() || cards.any(|card| !links.vlans(card).is_empty());
        tags(exit, has_vlans)
    }

    /// Notes which real servers may be directors and have this one for a real server: those of services that it serves
    /// itself.
    pub(super) fn follow_peers(&mut self) {
        let ways = self
            .uses
            .companions()
            .filter_map(|address| self.compiler.way(address));
        let peers = ways.filter_map(|way| match way {
            Way::Neighbour { mac, .. } => Some(mac),
            Way::Local => None,
        });
        let noted = self.dataplane.set_peers(&peers.collect());
        self.faults
            .note("packets from other directors are balanced again", noted);
    }
}

/// See [`State::tags`]. Where there are VLANs, a frame may come with a tag and go to where there is none.
fn tags(exit: &Exit, has_vlans: bool) -> Option<Option<Tags>> {
    let tags = match exit.tags[..] {
        [] if !has_vlans => return Some(None),
        [] => Tags::default(),
        [one] => Tags {
            count: 1,
            outer: one.id,
            is_outer_service: one.is_service,
            ..Tags::default()
        },
        [outer, inner] => Tags {
            count: 2,
            outer: outer.id,
            inner: inner.id,
            is_outer_service: outer.is_service,
            is_inner_service: inner.is_service,
        },
        _ => return None,
    };
    Some(Some(tags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::Tag;

    fn exit(tags: &[(u16, bool)]) -> Exit {
        let tags = tags.iter().map(|&(id, is_service)| Tag { id, is_service });
        Exit {
            if_index: 2,
            tags: tags.collect(),
        }
    }

    #[test]
    fn frames_keep_their_tags_where_there_are_no_vlans() {
        assert_eq!(tags(&exit(&[]), false), Some(None));
        assert_eq!(tags(&exit(&[]), true), Some(Some(Tags::default())));
        let one = Tags {
            count: 1,
            outer: 10,
            ..Tags::default()
        };
        assert_eq!(tags(&exit(&[(10, false)]), true), Some(Some(one)));
        let two = Tags {
            count: 2,
            inner: 20,
            is_outer_service: true,
            ..one
        };
        assert_eq!(tags(&exit(&[(10, true), (20, false)]), true), Some(Some(two)));
        assert_eq!(tags(&exit(&[(10, true), (20, false), (30, false)]), true), None);
    }
}
