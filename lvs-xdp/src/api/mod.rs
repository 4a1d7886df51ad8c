//! The agent's HTTP/JSON interface on its Unix socket: types, server, client.

pub mod client;
pub(crate) mod server;
pub mod types;
