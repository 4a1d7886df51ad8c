//! A desired state in the place of an agent: for tests, and for the fuzzer.

use super::Director;
use crate::{
    api::{
        client::ClientError,
        types::{
            Change, Connection, Handshakes, Rates, Server, ServerSpec, ServerState, Service, ServiceKey,
            Stats, Timeouts,
        },
    },
    model::{Model, ServiceEntry, no_such_service},
};

/// A director that forwards nothing: what an agent with this table would answer before the first packet.
#[derive(Debug, Clone, Default)]
pub struct Desired(pub Model);

impl Director for Desired {
    fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        Ok(self.0.services().values().map(|entry| service(entry)).collect())
    }

    fn service(&mut self, key: ServiceKey) -> Result<Service, ClientError> {
        let entry = self.0.services().get(&key);
        Ok(service(entry.ok_or_else(|| no_such_service(&key))?))
    }

    fn timeouts(&mut self) -> Result<Timeouts, ClientError> {
        Ok(self.0.timeouts())
    }

    fn connections(&mut self, _take: &mut dyn FnMut(Connection)) -> Result<(), ClientError> {
        Ok(())
    }

    fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError> {
        match service {
            Some(key) if !self.0.services().contains_key(&key) => Err(no_such_service(&key).into()),
            Some(_) | None => Ok(()),
        }
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        Ok(self.0.apply(&changes)?)
    }

    fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        Ok(self.0.clone().apply(&changes)?)
    }
}

fn service(entry: &ServiceEntry) -> Service {
    Service {
        spec: entry.spec.clone(),
        stats: Stats::default(),
        rates: Rates::default(),
        has_fallen_back: false,
        servers: entry.servers.iter().cloned().map(server).collect(),
    }
}

fn server(spec: ServerSpec) -> Server {
    Server {
        state: ServerState::Ready,
        mac: None,
        interface: None,
        active: 0,
        inactive: 0,
        persistent: 0,
        effective_weight: spec.weight,
        health: None,
        stats: Stats::default(),
        rates: Rates::default(),
        handshakes: Handshakes::default(),
        spec,
    }
}
