//! lblc and lblcr.

use alloc::vec;

use super::{least_loaded::weighted_least, *};

/// Seconds after which the kernel forgets what was not used.
const DAY: u32 = 86_400;

fn find(list: &[Destination], id: u32) -> Option<&Destination> {
    list.iter().find(|one| one.id == id)
}

/// Whether it has more than it can do while another has next to nothing to do.
fn is_overloaded(list: &[Destination], one: &Destination) -> bool {
    one.active > one.weight && list.iter().any(|other| other.active * 2 < other.weight)
}

/// lblc: one destination that is remembered, and when it was used last.
#[derive(Default)]
struct Locality {
    last: Option<(u32, u32)>,
}

impl Model for Locality {
    fn choose(&mut self, list: &[Destination], client: Client) -> Option<u32> {
        self.last = self.last.filter(|(_, used)| client.now - used <= DAY);
        if let Some((id, used)) = &mut self.last {
            *used = client.now;
            // Its thresholds are not looked at.
            if find(list, *id).is_some_and(|one| one.weight > 0 && !is_overloaded(list, one)) {
                return Some(*id);
            }
        }
        let id = weighted_least(list)?;
        self.last = Some((id, client.now));
        Some(id)
    }
}

/// lblcr: a set of destinations, the one that joined last first.
#[derive(Default)]
struct Replicated {
    set: Option<Set>,
}

/// Its times are in units of 64 s.
struct Set {
    members: Vec<u32>,
    changed: u32,
    used: u32,
}

const UNIT: u32 = 64;

impl Set {
    fn of<'a>(&self, list: &'a [Destination]) -> Vec<&'a Destination> {
        self.members.iter().filter_map(|id| find(list, *id)).collect()
    }

    /// As compared by the kernel, the set's first stays where another one is only as good.
    fn extreme<'a>(
        candidates: &[&'a Destination],
        is_better: impl Fn(u128, u128) -> bool,
    ) -> Option<&'a Destination> {
        let load =
            |one: &Destination, other: &Destination| u128::from(one.overhead()) * u128::from(other.weight);
        candidates.iter().copied().reduce(|best, one| {
            if is_better(load(one, best), load(best, one)) {
                one
            } else {
                best
            }
        })
    }

    fn join(&mut self, id: u32, now: u32) {
        if !self.members.contains(&id) {
            self.members.insert(0, id);
            self.changed = now;
        }
    }
}

impl Model for Replicated {
    fn changed(&mut self, list: &[Destination], gone: Option<usize>, _: bool) {
        if let (Some(set), Some(_)) = (&mut self.set, gone) {
            set.members.retain(|id| find(list, *id).is_some());
        }
    }

    fn choose(&mut self, list: &[Destination], client: Client) -> Option<u32> {
        let now = client.now / UNIT;
        let age = |since: u32| now - since;
        self.set.take_if(|set| age(set.used) > DAY / UNIT);
        let Some(set) = &mut self.set else {
            let id = weighted_least(list)?;
            self.set = Some(Set {
                members: Vec::from([id]),
                changed: now,
                used: now,
            });
            return Some(id);
        };
        set.used = now;
        let mut candidates = set.of(list);
        let count = candidates.len();
        candidates.retain(|one| one.weight > 0);
        let most = Set::extreme(&candidates, |one, best| one > best);
        candidates.retain(|one| one.has_room());
        let least = Set::extreme(&candidates, |one, best| one < best);
        if count > 1
            && age(set.changed) > DAY / UNIT
            && let Some(most) = most
        {
            set.members.retain(|id| *id != most.id);
            set.changed = now;
        }
        if let Some(least) = least
            && !is_overloaded(list, least)
        {
            return Some(least.id);
        }
        let id = weighted_least(list)?;
        set.join(id, now);
        Some(id)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn lblc_keeps_its_server(happenings in happenings(any_weight())) {
        compare(Kind::Lblc, (false, false), &mut Locality::default(), happenings)?;
    }

    #[test]
    fn lblcr_keeps_its_set_of_servers(happenings in happenings(weight())) {
        compare(Kind::Lblcr, (false, false), &mut Replicated::default(), happenings)?;
    }
}

const CLIENT: Client = Client {
    address: 1,
    port: 1,
    virtual_address: 1,
    now: 0,
};

fn with_active(id: u32, weight: u32, active: u32) -> Destination {
    Destination {
        active,
        ..Destination::new(id, weight, false)
    }
}

/// What is remembered counts as used by whoever asks for it, be it in vain.
#[test]
fn lblc_remembers_while_it_is_asked() {
    let mut service = Service::new(Kind::Lblc, (false, false));
    service.lay(&[with_active(1, 1, 0), with_active(2, 1, 0)]);
    assert_eq!(service.choose(CLIENT), Some(1));
    service.lay(&[with_active(1, 0, 1), with_active(2, 0, 0)]);
    service.maps.pass_time(DAY - 1);
    assert_eq!(service.choose(CLIENT), None);
    service.lay(&[with_active(1, 1, 1), with_active(2, 1, 0)]);
    service.maps.pass_time(DAY);
    assert_eq!(service.choose(CLIENT), Some(1));
    service.maps.pass_time(DAY + 1);
    assert_eq!(service.choose(CLIENT), Some(2), "by its connections");
}

/// The set loses one a day, however often it is asked for one in vain.
#[test]
fn lblcr_loses_one_server_a_day() {
    let mut service = Service::new(Kind::Lblcr, (false, false));
    // Each has too much to do in turn, and the next one joins the set.
    for active in [[0, 0, 0], [2, 0, 0], [2, 2, 0]] {
        let [a, b, c] = active;
        service.lay(&[with_active(1, 1, a), with_active(2, 1, b), with_active(3, 1, c)]);
        assert!(service.choose(CLIENT).is_some());
    }
    let members = |service: &Service| {
        let is_member = |id: &usize| service.maps.destinations[*id].joined.load() != 0;
        (1..4).filter(is_member).collect::<Vec<_>>()
    };
    assert_eq!(members(&service), [1, 2, 3]);
    service.lay(&[with_active(1, 1, 1), with_active(2, 1, 3), with_active(3, 1, 2)]);
    for id in 1..4 {
        service.maps.counts[id].overload.store(1);
        let entry = &service.maps.lists[service.list.offset() as usize + id];
        entry.store(ListEntry::new(1, u32::try_from(id).expect("small"), true).0);
    }
    // The last one stays.
    for left in [vec![1, 3], vec![1], vec![1]] {
        // Used within the day, and then not changed for more than one.
        for _ in 0..2 {
            service.maps.pass_time(DAY - UNIT);
            assert_eq!(service.choose(CLIENT), None);
        }
        assert_eq!(service.choose(CLIENT), None);
        assert_eq!(members(&service), left);
    }
}
