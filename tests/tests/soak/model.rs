//! What the director should be: its configuration, and how it came to be.

use std::collections::BTreeSet;

use lvs_xdp::api::types::{Configuration, ConfiguredService, Scheduler, ServerSpec, ServiceKey};
use lvs_xdp_tests::lab::real_server_name;

/// The configuration, and those before it.
#[derive(Debug)]
pub(crate) struct Model {
    /// The last one is what holds.
    versions: Vec<Configuration>,
}

impl Model {
    pub(crate) fn new(first: Configuration) -> Self {
        Self {
            versions: vec![first],
        }
    }

    pub(crate) fn now(&self) -> &Configuration {
        &self.versions[self.versions.len() - 1]
    }

    /// What a rollback by one leads to.
    pub(crate) fn before(&self) -> Option<&Configuration> {
        self.versions
            .len()
            .checked_sub(2)
            .map(|index| &self.versions[index])
    }

    /// What holds from now on; where it is the same, nothing has changed.
    pub(crate) fn become_this(&mut self, next: Configuration) {
        if next != *self.now() {
            self.versions.push(next);
        }
    }

    /// Nobody goes back beyond this.
    pub(crate) fn forget(&mut self) {
        self.versions.drain(..self.versions.len() - 1);
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&ConfiguredService> {
        self.now().service.iter().find(|service| service.spec.key == *key)
    }

    /// The real servers of a service that may get new connections.
    pub(crate) fn usable(&self, key: &ServiceKey) -> BTreeSet<String> {
        let servers = self.service(key).map_or(&[][..], |service| &service.server);
        let usable = servers.iter().filter(|server| server.weight > 0);
        usable.map(name).collect()
    }

    /// Whether every client of a service gets an answer: a hash may lead it to a real server of weight 0, as in IPVS.
    pub(crate) fn serves_all(&self, key: &ServiceKey) -> bool {
        self.service(key).is_some_and(|service| {
            let is_hash = matches!(service.spec.scheduler, Scheduler::Sh | Scheduler::Mh);
            let usable = service.server.iter().filter(|server| server.weight > 0).count();
            usable > 0 && (!is_hash || usable == service.server.len())
        })
    }
}

/// The configuration with another service in the place of one of its key, or beside the others.
pub(crate) fn with(configuration: &Configuration, service: ConfiguredService) -> Configuration {
    let mut next = without(configuration, &service.spec.key);
    next.service.push(service);
    next.service.sort_by_key(|service| service.spec.key);
    next
}

/// The configuration without a service.
pub(crate) fn without(configuration: &Configuration, key: &ServiceKey) -> Configuration {
    let mut next = configuration.clone();
    next.service.retain(|service| service.spec.key != *key);
    next
}

/// The name of a real server's web server, by the last octet of its address.
pub(crate) fn name(server: &ServerSpec) -> String {
    (1..=crate::SERVERS)
        .find(|number| crate::address(*number) == server.key.address)
        .map_or_else(|| server.key.to_string(), real_server_name)
}
