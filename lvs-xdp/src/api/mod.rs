//! The agent's HTTP/JSON interface on its Unix socket: types, server, client.

pub mod types;
