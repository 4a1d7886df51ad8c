//! The whole table as one document, and what its application changes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MarkRule, ServerSpec, ServiceSpec, Settings, Timeouts};

/// Everything that is configured: what a configuration file says, and what `GET /v1/configuration` answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// The settings of the whole director.
    pub settings: Settings,
    /// The time-outs of connections; one of 0 is IPVS's own.
    pub timeouts: Timeouts,
    /// The rules that give packets firewall marks, in the order in which they are tried.
    pub mark: Vec<MarkRule>,
    /// The virtual services.
    pub service: Vec<ConfiguredService>,
}

/// A virtual service with its real servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfiguredService {
    /// The service.
    #[serde(flatten)]
    pub spec: ServiceSpec,
    /// Its real servers, as if each was added in this order: the last one is the first that schedulers look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server: Vec<ServerSpec>,
}

/// The body of `POST /v1/rollback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// How many versions back, from 1 on.
    pub back: u32,
}

/// What a step does to its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// It stays, with other settings.
    Change,
    /// It stays as it is, at another place in its order.
    Move,
    /// It is removed.
    Delete,
}

/// One difference between the table as it is and as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To what, such as `real server 192.168.2.210:80 of TCP 192.168.2.100:80`.
    pub object: String,
    /// Its settings, or those that change; may be empty.
    pub detail: String,
    /// So many live connections are touched: those of a real server that is removed, or reached in another way.
    pub connections: u64,
}

/// What the application of a table changes, or has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Every difference; none where the table is as wanted.
    pub steps: Vec<Step>,
    /// So many live connections are touched.
    pub touched: u64,
    /// Of so many.
    pub connections: u64,
}

/// One change of the table that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Its number: 1 is the first, each has one more than that before.
    pub number: u64,
    /// When, in seconds since 1970 (UTC).
    pub time: u64,
    /// Who asked for it: a user's id; without it and [`Self::client`] the agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Who asked for it over the network, such as `token 2 at 192.0.2.7`: the token by its line in the agent's file, a
    /// certificate by its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// What it changed, in words.
    pub what: String,
}

#[cfg(test)]
mod tests;
