//! The agent's HTTP/JSON interface on its Unix socket: types, filters, server, refusals, listener, client.

pub mod client;
pub(crate) mod configuration;
pub mod filter;
pub(crate) mod listener;
mod refusal;
pub(crate) mod server;
pub mod types;
