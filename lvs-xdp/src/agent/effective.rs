//! Which destinations get new connections: the one place where what is configured, what is known of the way to a
//! server, what its health check says, draining, quorum and fallback come together.
//!
//! The configured model stays what it is. What is made of it here is seen by the data plane alone; a server that is
//! usable then goes by [`slow_start`](super::slow_start). Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    api::types::{OnFailure, Scheduler, ServerKey, ServerSpec, ServiceKey},
    model::{Model, ServiceEntry},
};

/// What is known of a destination by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can be reached, and serves as far as anybody knows.
    Usable,
    /// It cannot be reached: what it has stays, in the hope of its return.
    Unreachable,
    /// Its health check says that it does not serve.
    Down(OnFailure),
}

/// What follows for one service.
#[derive(Debug, Default)]
struct Service {
    /// Those who get new connections, as far as their weight lets them.
    usable: BTreeSet<ServerKey>,
    /// Whether that is the fallback alone.
    has_fallen_back: bool,
    /// What the data plane sees in the place of what is configured.
    seen: Option<ServiceEntry>,
}

/// What follows for the services that are brought up to date.
#[derive(Debug)]
pub(super) struct Effective(BTreeMap<ServiceKey, Service>);

impl Effective {
    /// For the touched services of a model.
    pub(super) fn new(
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        standing: impl Fn(&ServiceEntry, &ServerSpec) -> Standing,
    ) -> Self {
        let entries = touched.iter().filter_map(|key| model.services().get(key));
        let services = entries.map(|entry| {
            let service = Service::new(entry, |server| standing(entry, server));
            (entry.spec.key, service)
        });
        Self(services.collect())
    }

    /// Whether a destination gets new connections, as far as its weight lets it.
    pub(super) fn is_usable(&self, service: &ServiceKey, server: &ServerKey) -> bool {
        self.0
            .get(service)
            .is_some_and(|service| service.usable.contains(server))
    }

    /// Whether the fallback of each service takes all new connections.
    pub(super) fn fallen_back(&self) -> impl Iterator<Item = (ServiceKey, bool)> {
        (self.0.iter()).map(|(key, service)| (*key, service.has_fallen_back))
    }

    /// The model as the data plane sees it.
    pub(super) fn seen<'a>(&self, model: &'a Model) -> Cow<'a, Model> {
        let mut others = self
            .0
            .values()
            .filter_map(|service| service.seen.clone())
            .peekable();
        if others.peek().is_none() {
            return Cow::Borrowed(model);
        }
        Cow::Owned(model.with_entries(others))
    }
}

impl Service {
    fn new(entry: &ServiceEntry, standing: impl Fn(&ServerSpec) -> Standing) -> Self {
        let standings: Vec<_> = entry
            .servers
            .iter()
            .map(|server| (server, standing(server)))
            .collect();
        let usable = standings
            .iter()
            .filter(|(_, standing)| *standing == Standing::Usable);
        let serving = usable.clone().filter(|(server, _)| server.weight > 0).count();
        let fallback = entry.fallback().filter(|fallback| {
            serving < entry.spec.quorum as usize && standing(fallback) == Standing::Usable
        });
        let usable = match &fallback {
            Some(fallback) => BTreeSet::from([fallback.key]),
            None => usable.map(|(server, _)| server.key).collect(),
        };
        let has_fallen_back = fallback.is_some();
        let has_down = standings
            .iter()
            .any(|(_, standing)| matches!(standing, Standing::Down(_)));
        let seen = (has_down || has_fallen_back).then(|| {
            let servers = standings.into_iter().filter_map(seen_server);
            let mut seen = ServiceEntry {
                spec: entry.spec.clone(),
                servers: servers.chain(fallback).collect(),
            };
            if has_fallen_back {
                // The rings of these keep the places of servers without weight, whose clients would be refused. With
                // one that has any, all schedulers are the same.
                if matches!(seen.spec.scheduler, Scheduler::Sh | Scheduler::Dh | Scheduler::Mh) {
                    seen.spec.scheduler = Scheduler::Rr;
                    seen.spec.flags.clear();
                }
            }
            seen
        });
        Self {
            usable,
            has_fallen_back,
            seen,
        }
    }
}

/// A real server as the data plane sees it. One that is down is so as if it were drained: persistent clients do not
/// follow to it.
fn seen_server((server, standing): (&ServerSpec, Standing)) -> Option<ServerSpec> {
    match standing {
        Standing::Usable | Standing::Unreachable => Some(server.clone()),
        Standing::Down(OnFailure::Quiesce) => Some(ServerSpec {
            drain: Some(server.drain.unwrap_or_default()),
            ..server.clone()
        }),
        Standing::Down(OnFailure::Remove) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::api::types::{Change, Fallback, ForwardingMethod, Protocol, ServiceSpec};

    const KEY: ServiceKey = ServiceKey::new(
        Protocol::Tcp,
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        80,
    );

    fn key(host: u8) -> ServerKey {
        ServerKey {
            address: [198, 51, 100, host].into(),
            port: 80,
        }
    }

    /// A service with three real servers, the third one of weight 0; with a quorum the fallback is 9.
    fn model(scheduler: Scheduler, quorum: Option<u32>) -> Model {
        let service = ServiceSpec {
            quorum: quorum.unwrap_or(1),
            fallback: quorum.map(|_| Fallback {
                address: key(9).address,
                method: ForwardingMethod::Dr,
            }),
            ..ServiceSpec::new(KEY, scheduler)
        };
        let add = |(host, weight)| Change::AddServer {
            service: KEY,
            server: ServerSpec::new(key(host), weight),
            require_on_link: false,
        };
        let servers = [(1, 5), (2, 5), (3, 0)].map(add);
        let mut model = Model::default();
        model
            .apply(&[&[Change::AddService { service }][..], &servers].concat())
            .unwrap();
        model
    }

    /// Who is usable, and who is seen by the data plane, with `d` where they are as if drained.
    fn effective(model: &Model, standing: impl Fn(u8) -> Standing) -> (Vec<u8>, String) {
        let host = |key: &ServerKey| match key.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => panic!("{address}"),
        };
        let effective = Effective::new(model, &[KEY].into(), |_, server| standing(host(&server.key)));
        let usable = (1..=9).filter(|host| effective.is_usable(&KEY, &key(*host)));
        let seen = effective.seen(model);
        let servers = seen.services()[&KEY].servers.iter().map(|server| {
            let drained = if server.drain.is_some() { "d" } else { "" };
            format!("{}{drained}", host(&server.key))
        });
        (usable.collect(), servers.collect::<Vec<_>>().join(" "))
    }

    use Standing::{Down, Unreachable, Usable};

    #[test]
    fn who_is_down_gets_nothing_new_and_stays_or_goes() {
        let model = model(Scheduler::Rr, None);
        assert_eq!(effective(&model, |_| Usable), (vec![1, 2, 3], "3 2 1".into()));
        let one = |standing| move |host| if host == 1 { standing } else { Usable };
        assert_eq!(effective(&model, one(Unreachable)), (vec![2, 3], "3 2 1".into()));
        assert_eq!(
            effective(&model, one(Down(OnFailure::Quiesce))),
            (vec![2, 3], "3 2 1d".into())
        );
        assert_eq!(
            effective(&model, one(Down(OnFailure::Remove))),
            (vec![2, 3], "3 2".into())
        );
        assert!(matches!(
            Effective::new(&model, &[KEY].into(), |_, _| Unreachable).seen(&model),
            Cow::Borrowed(_)
        ));
    }

    #[test]
    fn below_the_quorum_the_fallback_takes_all() {
        for scheduler in [Scheduler::Wlc, Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
            let model = model(scheduler, Some(2));
            assert_eq!(effective(&model, |_| Usable), (vec![1, 2, 3], "3 2 1".into()));
            let down = |host| {
                if host == 1 {
                    Down(OnFailure::Quiesce)
                } else {
                    Usable
                }
            };
            assert_eq!(effective(&model, down), (vec![9], "3 2 1d 9".into()));
            let seen = Effective::new(&model, &[KEY].into(), |_, server| {
                down(if server.key == key(1) { 1 } else { 2 })
            });
            let seen = seen.seen(&model).services()[&KEY].spec.scheduler;
            assert_eq!(
                seen,
                if scheduler == Scheduler::Wlc {
                    scheduler
                } else {
                    Scheduler::Rr
                }
            );
            // A fallback that is not there is no help.
            let lost = |host| if host == 9 { Unreachable } else { down(host) };
            assert_eq!(effective(&model, lost), (vec![2, 3], "3 2 1d".into()));
        }
        // One that has weight 0 does not count.
        let model = model(Scheduler::Rr, Some(3));
        assert_eq!(effective(&model, |_| Usable).0, [9]);
    }
}
