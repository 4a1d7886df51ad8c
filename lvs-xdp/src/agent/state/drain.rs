//! Draining: a server whose last connection has ended, or whose time has come, is removed by a change like any other.

use std::time::{Duration, SystemTime};

use super::{Origin, State, Waiting, configure::Task};
use crate::{
    agent::Author,
    api::types::{Change, Drain},
};

impl State {
    /// Has the drained servers removed whose time has come. No packet may be left that saw a list with one of
    /// them: it could still be making a connection.
    pub(super) fn end_drains(&mut self) {
        let now = (SystemTime::now().duration_since(SystemTime::UNIX_EPOCH))
            .as_ref()
            .map_or(0, Duration::as_secs);
        let entries = self
            .uses
            .drained()
            .filter_map(|key| self.model.services().get_key_value(key));
        for (service, entry) in entries {
            for server in &entry.servers {
                let Some(drain) = server.drain else { continue };
                let (active, inactive) = (self.compiler.destination(service, &server.key))
                    .map(|id| self.compiler.counts(id))
                    .unwrap_or_default();
                let Some(why) = is_over(drain, active + inactive, now) else {
                    continue;
                };
                self.waiting.push(Waiting {
                    task: Task::Changes(vec![Change::DeleteServer {
                        service: *service,
                        server: server.key,
                    }]),
                    author: Author::default(),
                    origin: Origin::Drain(format!(
                        "real server {} of service {service} is removed: {why}",
                        server.key
                    )),
                });
            }
        }
    }
}

/// Why a server with so many connections is drained long enough, in seconds since 1970; or that it is not.
fn is_over(drain: Drain, connections: u64, now: u64) -> Option<String> {
    if connections == 0 {
        return Some("drained, no connection was left".to_owned());
    }
    let deadline = drain.deadline.filter(|&deadline| deadline <= now)?;
    Some(format!(
        "drained until its deadline, {} s ago; connections left: {connections}",
        now - deadline
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_with_the_last_connection_or_at_the_deadline() {
        for (deadline, connections, ended) in [
            (None, 0, Some("no connection was left")),
            (None, 1, None),
            (Some(1_000), 0, Some("no connection was left")),
            (Some(1_000), 7, Some("0 s ago; connections left: 7")),
            (Some(900), 1, Some("100 s ago; connections left: 1")),
            (Some(1_001), 7, None),
            (Some(2_000), 0, Some("no connection was left")),
        ] {
            let why = is_over(Drain { deadline }, connections, 1_000);
            assert_eq!(
                why.is_some(),
                ended.is_some(),
                "{deadline:?} {connections}: {why:?}"
            );
            if let (Some(why), Some(part)) = (why, ended) {
                assert!(why.contains(part), "{why}");
            }
        }
    }
}
