//! Plays the commands of the recorded scheduling scenarios (tests/golden/schedulers.json) against a director in
//! memory, which is told which real server got each connection, and compares its lists byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, de::IgnoredAny};

use super::*;
use crate::api::types::Protocol;

#[derive(Debug, Deserialize)]
struct Scenario {
    name: String,
    setup: Vec<Vec<String>>,
    events: Vec<Event>,
}

/// `["open", id, source, source port, VIP, port, protocol, answer]`, `["close", id]`, `["ipvsadm", words...]` or
/// `["list", words..., standard output]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Event {
    Open(
        IgnoredAny,
        String,
        IpAddr,
        IgnoredAny,
        IpAddr,
        u16,
        Protocol,
        Option<String>,
    ),
    Words(Vec<String>),
}

/// Where a connection went, and whether the client has closed it.
struct Opened {
    protocol: Protocol,
    client: IpAddr,
    server: IpAddr,
    virtual_port: u16,
    virtual_address: IpAddr,
    closed: bool,
}

impl Opened {
    fn is_of(&self, service: ServiceKey, server: IpAddr) -> bool {
        let own = |port| ServiceKey::new(self.protocol, self.virtual_address, port);
        [own(self.virtual_port), own(0)].contains(&service) && self.server == server
    }

    fn is_active(&self) -> bool {
        self.protocol == Protocol::Tcp && !self.closed
    }
}

/// Sets the counts of every real server as IPVS counts: open TCP connections are active, all else is inactive, and
/// a persistent client has one template.
fn count(director: &mut Memory, opened: &BTreeMap<String, Opened>) {
    for service in &mut director.services {
        let key = service.spec.key;
        for server in &mut service.servers {
            let own = || {
                opened
                    .values()
                    .filter(|connection| connection.is_of(key, server.spec.key.address))
            };
            let active = own().filter(|connection| connection.is_active()).count();
            let inactive = own().count() - active;
            let clients: BTreeSet<IpAddr> = own().map(|connection| connection.client).collect();
            server.active = active.try_into().unwrap();
            server.inactive = inactive.try_into().unwrap();
            if service.spec.persistence.is_some() {
                server.persistent = clients.len().try_into().unwrap();
            }
        }
    }
}

#[test]
fn lists_of_scenarios_are_ipvsadms() {
    let records = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/schedulers.json"
    ));
    let scenarios: Vec<Scenario> = serde_json::from_str(records).unwrap();
    let (mut commands, mut lists) = (0, 0);
    for Scenario { name, setup, events } in &scenarios {
        let mut director = Memory::default();
        let mut opened = BTreeMap::new();
        let mut answer = |director: &mut Memory, words: &[String], stdout: &str| {
            let answer = run_words(director, words.to_vec());
            let seen = (answer.status, answer.stdout.as_str(), answer.stderr.as_str());
            assert_eq!(seen, (0, stdout, ""), "{name}: {words:?}");
            commands += 1;
        };
        for words in setup {
            answer(&mut director, words, "");
        }
        for event in events {
            match event {
                Event::Open(_, id, client, _, virtual_address, virtual_port, protocol, server) => {
                    let Some(server) = server else { continue };
                    let number: u8 = server.strip_prefix('r').unwrap().parse().unwrap();
                    let connection = Opened {
                        protocol: *protocol,
                        client: *client,
                        server: [10, 9, 0, 10 + number].into(),
                        virtual_port: *virtual_port,
                        virtual_address: *virtual_address,
                        closed: false,
                    };
                    opened.insert(id.clone(), connection);
                }
                Event::Words(words) => match words.as_slice() {
                    [event, id] if event == "close" => {
                        // One that nobody answered was not opened.
                        if let Some(connection) = opened.get_mut(id) {
                            connection.closed = true;
                        }
                    }
                    [event, words @ ..] if event == "ipvsadm" => answer(&mut director, words, ""),
                    [event, words @ .., stdout] if event == "list" => {
                        count(&mut director, &opened);
                        answer(&mut director, words, stdout);
                        lists += 1;
                    }
                    other => panic!("{name}: what is {other:?}?"),
                },
            }
        }
    }
    // A record that is no longer read would pass in silence.
    assert_eq!((scenarios.len(), commands, lists), (41, 292, 17));
}
