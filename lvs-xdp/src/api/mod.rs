//! The agent's HTTP/JSON interface on its Unix socket: types, filters, server, listener, client.

pub mod client;
pub(crate) mod configuration;
pub mod filter;
pub(crate) mod listener;
pub(crate) mod server;
pub mod types;
