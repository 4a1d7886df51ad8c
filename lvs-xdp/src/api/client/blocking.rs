//! The client for those who wait for each answer.

use std::{io, net::IpAddr};

use tokio::runtime::{self, Runtime};

use super::{Client, ClientError, ListForm};
use crate::api::{
    filter::ConnectionFilter,
    target::Target,
    types::{
        Change, CheckStatus, Configuration, Connection, MarkRule, Plan, Service, ServiceKey, Status, Version,
    },
};

/// [`Client`] for programs that have nothing else to do while they wait. Its runtime is made at the
/// first request, so that a call that never asks the agent does not pay for it.
#[derive(Debug)]
pub struct BlockingClient {
    client: Client,
    runtime: Option<Runtime>,
}

impl BlockingClient {
    /// A client of the agent at `target`, such as the path of its socket; nothing is opened yet.
    pub fn new(target: impl Into<Target>) -> Self {
        Self {
            client: Client::new(target),
            runtime: None,
        }
    }

    /// [`Client::status`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.wait(async |client| client.status().await)
    }

    /// [`Client::services`].
    pub fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        self.wait(async |client| client.services().await)
    }

    /// [`Client::service`].
    pub fn service(&mut self, key: ServiceKey) -> Result<Service, ClientError> {
        self.wait(async |client| client.service(key).await)
    }

    /// [`Client::zero`].
    pub fn zero(&mut self, service: Option<ServiceKey>) -> Result<(), ClientError> {
        self.wait(async |client| client.zero(service).await)
    }

    /// [`Client::checks`].
    pub fn checks(&mut self) -> Result<Vec<CheckStatus>, ClientError> {
        self.wait(async |client| client.checks().await)
    }

    /// [`Client::metrics`].
    pub fn metrics(&mut self) -> Result<String, ClientError> {
        self.wait(async |client| client.metrics().await)
    }

    /// [`Client::marks`].
    pub fn marks(&mut self) -> Result<Vec<MarkRule>, ClientError> {
        self.wait(async |client| client.marks().await)
    }

    /// [`Client::each_connection`].
    pub fn each_connection(&mut self, take: impl FnMut(Connection)) -> Result<(), ClientError> {
        self.wait(async |client| client.each_connection(take).await)
    }

    /// [`Client::list_connections`].
    pub fn list_connections(
        &mut self,
        filter: &ConnectionFilter,
        form: ListForm,
        take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, ClientError> {
        self.wait(async |client| client.list_connections(filter, form, take).await)
    }

    /// [`Client::flush_connections`].
    pub fn flush_connections(&mut self, filter: &ConnectionFilter) -> Result<u64, ClientError> {
        self.wait(async |client| client.flush_connections(filter).await)
    }

    /// [`Client::change`].
    pub fn change(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        self.wait(async |client| client.change(changes).await)
    }

    /// [`Client::check`].
    pub fn check(&mut self, changes: Vec<Change>) -> Result<(), ClientError> {
        self.wait(async |client| client.check(changes).await)
    }

    /// [`Client::configuration`].
    pub fn configuration(&mut self) -> Result<Configuration, ClientError> {
        self.wait(async |client| client.configuration().await)
    }

    /// [`Client::configure`].
    pub fn configure(
        &mut self,
        configuration: &Configuration,
        dry_run: bool,
        source: String,
    ) -> Result<Plan, ClientError> {
        self.wait(async |client| client.configure(configuration, dry_run, source).await)
    }

    /// [`Client::rollback`].
    pub fn rollback(&mut self, back: u32, dry_run: bool) -> Result<Plan, ClientError> {
        self.wait(async |client| client.rollback(back, dry_run).await)
    }

    /// [`Client::history`].
    pub fn history(&mut self) -> Result<Vec<Version>, ClientError> {
        self.wait(async |client| client.history().await)
    }

    /// [`Client::announce`].
    pub fn announce(&mut self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, ClientError> {
        self.wait(async |client| client.announce(addresses).await)
    }

    /// [`Client::unload`].
    pub fn unload(&mut self) -> Result<(), ClientError> {
        self.wait(async |client| client.unload().await)
    }

    /// [`Client::openapi`].
    pub fn openapi(&mut self) -> Result<serde_json::Value, ClientError> {
        self.wait(async |client| client.openapi().await)
    }

    /// Whether the agent is one over the network.
    pub fn is_remote(&self) -> bool {
        self.client.target.is_remote()
    }

    fn wait<T>(
        &mut self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let runtime = match &mut self.runtime {
            Some(runtime) => runtime,
            none => none.insert(
                runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(ClientError::Runtime)?,
            ),
        };
        runtime.block_on(ask(&self.client))
    }
}
