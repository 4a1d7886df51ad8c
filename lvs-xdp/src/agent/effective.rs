//! Which real servers get new connections: the one place where what is configured, what is known of the way to a
//! server and what its health check says come together.
//!
//! The configured weight stays what it is. What is made of it here is seen by the data plane alone; a server that is
//! usable then goes by [`slow_start`](super::slow_start).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::types::{ServerKey, ServerSpec, ServiceKey},
    model::{Model, ServiceEntry},
};

/// What follows for the services that are brought up to date.
#[derive(Debug)]
pub(super) struct Effective {
    usable: BTreeMap<ServiceKey, BTreeSet<ServerKey>>,
}

impl Effective {
    /// `is_usable` says of a real server by itself whether it can be reached and serves.
    pub(super) fn new(
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        is_usable: impl Fn(&ServiceEntry, &ServerSpec) -> bool,
    ) -> Self {
        let entries = touched.iter().filter_map(|key| model.services().get(key));
        let usable = entries.map(|entry| {
            let usable = entry.servers.iter().filter(|server| is_usable(entry, server));
            (entry.spec.key, usable.map(|server| server.key).collect())
        });
        Self {
            usable: usable.collect(),
        }
    }

    /// Whether a real server gets new connections, as far as its weight lets it.
    pub(super) fn is_usable(&self, service: &ServiceKey, server: &ServerKey) -> bool {
        self.usable
            .get(service)
            .is_some_and(|usable| usable.contains(server))
    }
}
