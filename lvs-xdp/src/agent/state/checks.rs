//! Health checks: their results, and the interfaces by which they leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use tracing::{info, warn};

use super::State;
use crate::{api::types::ServiceKey, checks::Report, model::Model};

impl State {
    /// Takes in the result of a health check.
    pub(in crate::agent) fn hear_check(&mut self, report: Report) {
        self.stale.extend(self.checks.hear(report));
    }

    /// Judges the real servers that are watched by what was counted of their handshakes.
    pub(super) fn judge_watched(&mut self) {
        let Self {
            checks,
            compiler,
            dataplane,
            stale,
            ..
        } = self;
        let changed = checks.watch(Instant::now(), |service, server| {
            let id = compiler.destination(service, server);
            id.map(|id| dataplane.counted(id).1).unwrap_or_default()
        });
        stale.extend(changed);
    }

    /// Says which services have fallen back, and which have their real servers again.
    pub(super) fn note_fallen_back(
        &mut self,
        model: &Model,
        touched: &BTreeSet<ServiceKey>,
        services: impl Iterator<Item = (ServiceKey, bool)>,
    ) {
        for (key, has_fallen_back) in services {
            let Some(entry) = model.services().get(&key) else {
                continue;
            };
            let quorum = entry.spec.quorum;
            if !has_fallen_back {
                if self.fallen_back.remove(&key) && entry.spec.fallback.is_some() {
                    info!("service {key} has {quorum} usable real servers again: they get new connections");
                }
            } else if let (Some(fallback), true) = (&entry.spec.fallback, self.fallen_back.insert(key)) {
                let address = fallback.address;
                warn!(
                    "service {key} has fewer than {quorum} usable real servers: {address} gets all new connections"
                );
            }
        }
        for key in touched {
            if !model.services().contains_key(key) {
                self.fallen_back.remove(key);
            }
        }
    }

    /// Makes the interfaces ready by which checks of virtual addresses leave, and no others.
    pub(super) fn follow_steered(&mut self) {
        let links = self.neighbours.links();
        let interfaces: BTreeMap<u32, String> = (self.checks.steered())
            .filter_map(|rip| {
                let if_index = self.neighbours.path(rip)?.if_index;
                Some((if_index, links.get(if_index)?.name.clone()))
            })
            .collect();
        let (ready, result) = self.dataplane.steer_on(&interfaces);
        self.checks.host().set_steered(ready);
        self.faults.note("some real servers cannot be checked", result);
    }
}
