//! Which ids stand for which real servers: found by any of what is asked for, so that a change costs by what it
//! touches, not by how much there is.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use crate::api::types::ServerKey;

/// Every destination that has an id.
///
/// All of it follows from the members alone; here is the only place that brings the rest to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// The service's id and the real server, by the destination's id.
    members: HashMap<u32, (u32, ServerKey)>,
    ids: HashMap<(u32, ServerKey), u32>,
    /// The ids at one address, over all services.
    at: HashMap<IpAddr, BTreeSet<u32>>,
    /// How many of them a service has, those that are removed included; of a service that has none, nothing.
    counts: HashMap<u32, u32>,
    /// Those that are removed and have connections left, as far as anybody knows: the service's id and their own.
    removed: BTreeSet<(u32, u32)>,
}

impl Members {
    /// Gives an id that is free to a real server that has none.
    pub(super) fn enter(&mut self, id: u32, service: u32, server: ServerKey) {
        self.members.insert(id, (service, server));
        self.ids.insert((service, server), id);
        self.at.entry(server.address).or_default().insert(id);
        *self.counts.entry(service).or_default() += 1;
    }

    /// Takes an id back; whose it was.
    pub(super) fn leave(&mut self, id: u32) -> Option<(u32, ServerKey)> {
        let (service, server) = self.members.remove(&id)?;
        self.ids.remove(&(service, server));
        self.removed.remove(&(service, id));
        if let Some(ids) = self.at.get_mut(&server.address) {
            ids.remove(&id);
            if ids.is_empty() {
                self.at.remove(&server.address);
            }
        }
        if let Some(count) = self.counts.get_mut(&service) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&service);
            }
        }
        Some((service, server))
    }

    /// Notes that no list names a destination any more.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some((service, _)) = self.members.get(&id) {
            self.removed.insert((*service, id));
        }
    }

    /// Notes that a list names it again.
    pub(super) fn revive(&mut self, id: u32) {
        if let Some((service, _)) = self.members.get(&id) {
            self.removed.remove(&(*service, id));
        }
    }

    /// The id of a real server.
    pub(super) fn id(&self, service: u32, server: &ServerKey) -> Option<u32> {
        self.ids.get(&(service, *server)).copied()
    }

    /// The service's id and the real server behind an id.
    pub(super) fn get(&self, id: u32) -> Option<(u32, ServerKey)> {
        self.members.get(&id).copied()
    }

    /// Every destination: its id, and the real server behind it.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, ServerKey)> {
        self.members.iter().map(|(id, (_, server))| (*id, *server))
    }

    /// The ids at an address, over all services.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.at.get(&address).into_iter().flatten().copied()
    }

    /// Those that no list names any more.
    pub(super) fn removed(&self) -> impl Iterator<Item = u32> {
        self.removed.iter().map(|(_, id)| *id)
    }

    /// The same of one service.
    pub(super) fn removed_of(&self, service: u32) -> impl Iterator<Item = u32> {
        let own = self.removed.range((service, 0)..=(service, u32::MAX));
        own.map(|(_, id)| *id)
    }

    /// Whether a service has one, be it removed.
    pub(super) fn has_any(&self, service: u32) -> bool {
        self.counts.contains_key(&service)
    }

    /// Every id with its service's.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.members.iter().map(|(id, (service, _))| (*id, *service))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is done to one of few ids, of few services and addresses.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Enter(u32, u8),
        Leave,
        Remove,
        Revive,
    }

    /// The id, its service, its host, and whether it is removed.
    type Plain = (u32, u32, u8, bool);

    fn step() -> impl Strategy<Value = (u32, Step)> {
        let step = prop_oneof![
            3 => (0..3u32, 0..4u8).prop_map(|(service, host)| Step::Enter(service, host)),
            1 => Just(Step::Leave),
            1 => Just(Step::Remove),
            1 => Just(Step::Revive),
        ];
        (0..12u32, step)
    }

    fn server(host: u8) -> ServerKey {
        ServerKey {
            address: [198, 51, 100, host].into(),
            port: 80,
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_walk_over_all_finds(steps in proptest::collection::vec(step(), 0..80)) {
            let mut members = Members::default();
            let mut plain: Vec<Plain> = Vec::new();
            for (id, step) in steps {
                let place = plain.iter().position(|one| one.0 == id);
                match (step, place) {
                    (Step::Enter(service, host), None)
                        if !plain.iter().any(|one| (one.1, one.2) == (service, host)) =>
                    {
                        members.enter(id, service, server(host));
                        plain.push((id, service, host, false));
                    }
                    (Step::Enter(..), _) => {}
                    (Step::Leave, _) => {
                        let left = place.map(|place| plain.remove(place));
                        prop_assert_eq!(members.leave(id), left.map(|one| (one.1, server(one.2))));
                    }
                    (Step::Remove | Step::Revive, _) => {
                        let is_removed = matches!(step, Step::Remove);
                        if is_removed {
                            members.remove(id);
                        } else {
                            members.revive(id);
                        }
                        if let Some(place) = place {
                            plain[place].3 = is_removed;
                        }
                    }
                }
                let ids = |is_meant: &dyn Fn(&Plain) -> bool| {
                    plain.iter().filter(|one| is_meant(one)).map(|one| one.0).collect::<BTreeSet<_>>()
                };
                prop_assert_eq!(members.iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), ids(&|_| true));
                prop_assert_eq!(members.removed().collect::<BTreeSet<_>>(), ids(&|one| one.3));
                for service in 0..3 {
                    prop_assert_eq!(members.has_any(service), !ids(&|one| one.1 == service).is_empty());
                    let removed = members.removed_of(service).collect::<BTreeSet<_>>();
                    prop_assert_eq!(removed, ids(&|one| one.3 && one.1 == service));
                }
                for host in 0..4 {
                    let at = members.at(server(host).address).collect::<BTreeSet<_>>();
                    prop_assert_eq!(at, ids(&|one| one.2 == host));
                }
                for &(id, service, host, _) in &plain {
                    prop_assert_eq!(members.id(service, &server(host)), Some(id));
                    prop_assert_eq!(members.get(id), Some((service, server(host))));
                }
                // Nothing is kept of what has left.
                let mut anew = Members::default();
                for &(id, service, host, is_removed) in &plain {
                    anew.enter(id, service, server(host));
                    if is_removed {
                        anew.remove(id);
                    }
                }
                prop_assert_eq!(&members, &anew);
            }
        }
    }
}
