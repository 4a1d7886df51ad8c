//! The agent's HTTP/JSON interface on its Unix socket and over the network: types, filters, server, refusals, listener, client.

pub(crate) mod access;
pub mod client;
pub(crate) mod configuration;
pub mod filter;
pub(crate) mod listener;
mod refusal;
pub(crate) mod remote;
pub(crate) mod server;
pub mod target;
pub mod types;
