//! Slow start: a real server that comes new or back to a service rises to its weight step by step.
//!
//! Pure: what time it is and who is usable is told. A server starts slowly when it begins to get new
//! connections while another one of its service already has them to take; where all that a service has
//! would start slowly, nobody would be spared by it, and all go at full weight. So does what an agent finds
//! when it starts, and what a service has when slow start is switched on for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    api::types::{ServerKey, ServerSpec, ServiceKey},
    model::{Model, ServiceEntry},
};

/// The least time between two steps.
const SHORTEST_STEP: Duration = Duration::from_secs(1);
/// Steps of a slow start that is long enough for them.
const STEPS: u32 = 10;

/// One server on its way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rise {
    since: Instant,
    /// The step that the scheduler goes by.
    step: u32,
}

/// One service with slow start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Service {
    /// How long a rise takes.
    length: Duration,
    /// The servers that get new connections, with their rise, where they have not reached their weight.
    working: BTreeMap<ServerKey, Option<Rise>>,
}

impl Service {
    /// What follows for a service from what it was and what it is to be; nothing, where it has no slow start.
    fn next(
        before: Option<&Self>,
        entry: &ServiceEntry,
        is_usable: impl Fn(&ServerSpec) -> bool,
        now: Instant,
    ) -> Option<Self> {
        if entry.spec.slow_start == 0 {
            return None;
        }
        let length = Duration::from_secs(u64::from(entry.spec.slow_start));
        let rise = |key: &ServerKey| match before?.working.get(key) {
            Some(known) => known.filter(|rise| now.saturating_duration_since(rise.since) < length),
            None => Some(Rise { since: now, step: 0 }),
        };
        let mut working: BTreeMap<ServerKey, Option<Rise>> = (entry.servers.iter())
            .filter(|server| server.weight > 0 && is_usable(server))
            .map(|server| (server.key, rise(&server.key)))
            .collect();
        if working.values().all(Option::is_some) {
            working.values_mut().for_each(|rise| *rise = None);
        }
        let mut service = Self { length, working };
        let step = service.step_length();
        for rise in service.working.values_mut().flatten() {
            rise.step = steps(now, rise.since, step);
        }
        Some(service)
    }

    fn step_length(&self) -> Duration {
        (self.length / STEPS).max(SHORTEST_STEP)
    }

    /// The weight of a server that is usable.
    fn weight(&self, server: &ServerSpec) -> u32 {
        let Some(Some(Rise { step, .. })) = self.working.get(&server.key) else {
            return server.weight;
        };
        // A tenth at the start, all of it at the end. In milliseconds: below 2^31 * 2^27 * 10.
        let length = self.length.as_millis();
        let risen = (self.step_length() * *step).as_millis().min(length);
        let weight = u128::from(server.weight) * (length + 9 * risen) / (10 * length);
        u32::try_from(weight).unwrap_or(server.weight).max(1)
    }

    /// Whether the time of another step has come for one of its servers.
    fn is_due(&self, now: Instant) -> bool {
        let step = self.step_length();
        let mut rises = self.working.values().flatten();
        rises.any(|rise| steps(now, rise.since, step) > rise.step)
    }
}

/// How many steps there were since.
fn steps(now: Instant, since: Instant, step: Duration) -> u32 {
    let steps = now.saturating_duration_since(since).as_millis() / step.as_millis();
    u32::try_from(steps).unwrap_or(u32::MAX)
}

/// Every service with slow start.
#[derive(Debug, Default)]
pub(super) struct SlowStart {
    services: BTreeMap<ServiceKey, Service>,
}

/// What a change makes of slow start, to be made true by [`SlowStart::adopt`] once the change is live.
#[derive(Debug)]
pub(super) struct Next(BTreeMap<ServiceKey, Option<Service>>);

impl SlowStart {
    /// What follows for the touched services of `model`. `is_usable` says of a server whether it may get new
    /// connections at all.
    pub(super) fn next(
        &self,
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        is_usable: impl Fn(&ServiceKey, &ServerSpec) -> bool,
        now: Instant,
    ) -> Next {
        let of = |key: &ServiceKey| {
            let entry = model.services().get(key)?;
            let is_usable = |server: &ServerSpec| is_usable(key, server);
            Service::next(self.services.get(key), entry, is_usable, now)
        };
        Next(touched.iter().map(|key| (*key, of(key))).collect())
    }

    /// Notes what is live now.
    pub(super) fn adopt(&mut self, next: Next) {
        for (key, service) in next.0 {
            match service {
                Some(service) => self.services.insert(key, service),
                None => self.services.remove(&key),
            };
        }
    }

    /// The services whose list needs a new weight by now.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = ServiceKey> {
        let due = self
            .services
            .iter()
            .filter(move |(_, service)| service.is_due(now));
        due.map(|(key, _)| *key)
    }
}

impl Next {
    /// The weight of a usable server: the configured one, or less while it rises.
    pub(super) fn weight(&self, service: &ServiceKey, server: &ServerSpec) -> u32 {
        match self.0.get(service) {
            Some(Some(service)) => service.weight(server),
            _ => server.weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::IpAddr};

    use super::*;
    use crate::api::types::{Change, Drain, Protocol, Scheduler, ServiceSpec};

    /// A service with slow start, its clock, and who does not answer.
    struct Played {
        model: Model,
        slow_start: SlowStart,
        start: Instant,
        silent: HashSet<IpAddr>,
    }

    const KEY: ServiceKey = ServiceKey::new(
        Protocol::Tcp,
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        80,
    );

    fn server(host: u8, weight: u32) -> ServerSpec {
        let key = ServerKey {
            address: [198, 51, 100, host].into(),
            port: 80,
        };
        ServerSpec::new(key, weight)
    }

    fn add(host: u8, weight: u32) -> Change {
        Change::AddServer {
            service: KEY,
            server: server(host, weight),
            require_on_link: false,
        }
    }

    fn edit(host: u8, weight: u32) -> Change {
        Change::EditServer {
            service: KEY,
            server: server(host, weight),
        }
    }

    fn service(slow_start: u32) -> ServiceSpec {
        ServiceSpec {
            slow_start,
            ..ServiceSpec::new(KEY, Scheduler::Wrr)
        }
    }

    impl Played {
        fn new(slow_start: u32, changes: &[Change]) -> Self {
            let mut played = Self {
                model: Model::default(),
                slow_start: SlowStart::default(),
                start: Instant::now(),
                silent: HashSet::new(),
            };
            let add = Change::AddService {
                service: service(slow_start),
            };
            played.change(0, &[&[add], changes].concat());
            played
        }

        /// The weights that the scheduler goes by after a change at this second, by host.
        fn change(&mut self, second: u64, changes: &[Change]) -> Vec<(u8, u32)> {
            self.model.apply(changes).unwrap();
            let is_usable = |server: &ServerSpec| !self.silent.contains(&server.key.address);
            let now = self.start + Duration::from_secs(second);
            let next = (self.slow_start).next(&self.model, &[KEY].into(), |_, server| is_usable(server), now);
            let servers = self.model.services().get(&KEY).map(|entry| &entry.servers);
            let mut weights: Vec<_> = (servers.into_iter().flatten())
                .filter(|server| is_usable(server))
                .map(|server| match server.key.address {
                    IpAddr::V4(address) => (address.octets()[3], next.weight(&KEY, server)),
                    IpAddr::V6(address) => panic!("{address}"),
                })
                .collect();
            weights.sort_unstable();
            self.slow_start.adopt(next);
            weights
        }

        /// The same where a step is due; nothing where none is.
        fn tick(&mut self, second: u64) -> Option<Vec<(u8, u32)>> {
            let now = self.start + Duration::from_secs(second);
            self.slow_start.due(now).next()?;
            Some(self.change(second, &[]))
        }

        fn silence(&mut self, second: u64, host: u8) -> Vec<(u8, u32)> {
            self.silent.insert([198, 51, 100, host].into());
            self.change(second, &[])
        }

        fn answer(&mut self, second: u64, host: u8) -> Vec<(u8, u32)> {
            self.silent.remove(&IpAddr::from([198, 51, 100, host]));
            self.change(second, &[])
        }
    }

    #[test]
    fn a_new_server_rises_in_ten_steps() {
        let mut played = Played::new(60, &[add(1, 100)]);
        assert_eq!(played.change(100, &[add(2, 100)]), [(1, 100), (2, 10)]);
        let mut seen = Vec::new();
        for second in 101..=170 {
            if let Some(weights) = played.tick(second) {
                assert_eq!(weights[0], (1, 100));
                seen.push((second, weights[1].1));
            }
        }
        let expected = [19, 28, 37, 46, 55, 64, 73, 82, 91, 100];
        assert_eq!(seen, (1..).map(|n| 100 + 6 * n).zip(expected).collect::<Vec<_>>());
    }

    #[test]
    fn steps_are_a_second_at_least_and_weights_1() {
        let mut played = Played::new(3, &[add(1, 4)]);
        assert_eq!(played.change(10, &[add(2, 4), add(3, 1)])[1..], [(2, 1), (3, 1)]);
        let seen: Vec<_> = (11..20)
            .filter_map(|second| Some((second, played.tick(second)?[1].1)))
            .collect();
        assert_eq!(seen, [(11, 1), (12, 2), (13, 4)]);
        assert_eq!(played.change(20, &[]), [(1, 4), (2, 4), (3, 1)]);
    }

    #[test]
    fn the_highest_weight_and_the_longest_start_do_not_overflow() {
        let most = crate::model::MAX_WEIGHT;
        let mut played = Played::new(crate::model::MAX_SLOW_START, &[add(1, most)]);
        assert_eq!(played.change(0, &[add(2, most)])[1].1, most / 10);
        assert_eq!(
            played.change(43_200, &[])[1].1,
            (u64::from(most) * 55 / 100) as u32
        );
        assert_eq!(played.change(86_400, &[])[1].1, most);
    }

    #[test]
    fn a_brand_new_service_starts_at_full_weight() {
        let mut played = Played::new(60, &[add(1, 10), add(2, 20)]);
        assert_eq!(played.tick(60), None);
        assert_eq!(played.change(60, &[]), [(1, 10), (2, 20)]);
        // Its first servers may also come after it.
        let mut played = Played::new(60, &[]);
        assert_eq!(played.change(5, &[add(1, 10)]), [(1, 10)]);
        assert_eq!(played.change(6, &[add(2, 10)]), [(1, 10), (2, 1)]);
        // Servers of weight 0 take nothing, so they spare nobody.
        let mut played = Played::new(60, &[add(1, 0)]);
        assert_eq!(played.change(5, &[add(2, 10)]), [(1, 0), (2, 10)]);
    }

    #[test]
    fn a_server_that_answers_again_starts_anew() {
        let mut played = Played::new(10, &[add(1, 10), add(2, 10)]);
        assert_eq!(played.silence(1, 2), [(1, 10)]);
        assert_eq!(played.answer(50, 2), [(1, 10), (2, 1)]);
        assert_eq!(played.tick(55), Some(vec![(1, 10), (2, 5)]));
        assert_eq!(played.silence(56, 2), [(1, 10)]);
        assert_eq!(played.tick(57), None);
        assert_eq!(played.answer(58, 2), [(1, 10), (2, 1)]);
    }

    #[test]
    fn the_last_one_left_takes_all() {
        let mut played = Played::new(10, &[add(1, 10)]);
        assert_eq!(played.change(1, &[add(2, 10)]), [(1, 10), (2, 1)]);
        assert_eq!(played.silence(2, 1), [(2, 10)]);
        // And keeps its weight, now that there is somebody else to spare.
        assert_eq!(played.answer(3, 1), [(1, 1), (2, 10)]);
        // All of them gone, the first to come back is the only one.
        played.silence(4, 1);
        assert_eq!(played.silence(5, 2), []);
        assert_eq!(played.answer(6, 1), [(1, 10)]);
    }

    #[test]
    fn weights_0_and_back_start_anew_and_other_edits_do_not() {
        let mut played = Played::new(10, &[add(1, 10), add(2, 10)]);
        assert_eq!(played.change(1, &[edit(2, 20)]), [(1, 10), (2, 20)]);
        assert_eq!(played.change(2, &[edit(2, 0)]), [(1, 10), (2, 0)]);
        assert_eq!(played.change(3, &[edit(2, 20)]), [(1, 10), (2, 2)]);
        assert_eq!(played.change(8, &[edit(2, 40)]), [(1, 10), (2, 22)]);
        let drain = Change::DrainServer {
            service: KEY,
            server: server(2, 0).key,
            drain: Drain::default(),
        };
        assert_eq!(played.change(9, &[drain]), [(1, 10), (2, 0)]);
        assert_eq!(played.change(10, &[edit(2, 10)]), [(1, 10), (2, 1)]);
    }

    #[test]
    fn switching_it_on_and_off_is_no_start() {
        let mut played = Played::new(0, &[add(1, 10)]);
        assert_eq!(played.change(1, &[add(2, 10)]), [(1, 10), (2, 10)]);
        let set = |seconds| Change::EditService {
            service: service(seconds),
        };
        assert_eq!(played.change(2, &[set(10)]), [(1, 10), (2, 10)]);
        assert_eq!(played.change(3, &[add(3, 10)]), [(1, 10), (2, 10), (3, 1)]);
        // A shorter one is over sooner.
        assert_eq!(played.change(6, &[set(2)])[2], (3, 10));
        assert_eq!(played.change(7, &[add(4, 10)])[3], (4, 1));
        assert_eq!(played.change(7, &[set(0)])[3], (4, 10));
        assert_eq!(played.tick(9), None);
        assert_eq!(played.change(10, &[Change::Clear]), []);
        assert!(played.slow_start.services.is_empty());
    }
}
