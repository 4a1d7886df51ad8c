//! Counters: their rates, and setting them to 0.

use std::{collections::BTreeSet, time::Instant};

use super::{State, report::sum};
use crate::{
    agent::{rates::Estimator, sampling::Sampling},
    api::types::{ApiError, ErrorCode, Rates, ServiceKey},
    model::no_such_service,
};

/// The rates of destinations and services, by the ids that they have in the tables.
#[derive(Debug, Default)]
pub(super) struct Estimators {
    destinations: Sampling,
    services: Estimator<u32>,
}

impl State {
    /// Takes a sample of the counters that may have changed, every second time that it is called in as many seconds.
    pub(super) fn estimate(&mut self) {
        let now = Instant::now();
        let Estimators {
            destinations: sampling,
            services,
        } = &mut self.estimators;
        if !services.is_due(now) {
            return;
        }
        let compiler = &self.compiler;
        let ids: BTreeSet<u32> = if sampling.is_first() {
            compiler.members().map(|(id, _)| id).collect()
        } else {
            let busy = compiler
                .busy()
                .chain(compiler.uncounted())
                .chain(sampling.lively());
            busy.chain(sampling.turn(compiler.end())).collect()
        };
        let service_of = |id| compiler.service_of(id);
        let read = (ids.into_iter())
            .filter(|id| service_of(*id).is_some())
            .map(|id| (id, self.dataplane.stats(id), compiler.is_busy(id)));
        sampling.sample(read, service_of, now);
        let counted = (compiler.all_retired()).map(|(id, retired)| (id, sum(retired, sampling.total(id))));
        services.sample(counted, now);
    }

    /// The rates of a destination.
    pub(super) fn destination_rates(&self, id: u32) -> Rates {
        self.estimators.destinations.rates(id)
    }

    /// The rates of a service.
    pub(super) fn service_rates(&self, key: &ServiceKey) -> Rates {
        let id = self.compiler.service(key);
        id.map(|id| self.estimators.services.rates(id))
            .unwrap_or_default()
    }

    /// `-Z`: sets the counters of a service and its real servers to 0, or those of all services, and their rates.
    /// Those of real servers that were removed, and have connections left, are the service's.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NoSuchService`]; [`ErrorCode::Internal`] where the kernel does not take it.
    pub(super) fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ApiError> {
        if let Some(key) = service.filter(|key| !self.model.services().contains_key(key)) {
            return Err(no_such_service(&key));
        }
        let only = service.and_then(|key| self.compiler.service(&key));
        let ids: Vec<_> = match service {
            None => self.compiler.members().map(|(id, _)| id).collect(),
            Some(key) => self.compiler.members_of(&key),
        };
        self.dataplane.zero_stats(&ids).map_err(|error| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the counters cannot be set to 0: {error:#}"),
            )
        })?;
        self.compiler.zero_retired(only);
        for id in ids {
            self.estimators.destinations.zero(id);
        }
        let services = match only {
            Some(id) => vec![id],
            None => self.compiler.all_retired().map(|(id, _)| id).collect(),
        };
        for id in services {
            self.estimators.services.zero(id);
        }
        Ok(())
    }
}
