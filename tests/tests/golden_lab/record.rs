//! The record of what the kernel's IPVS did, as types.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// Recorded on Linux 6.1 with ipvsadm 1.31, each scenario on a director without any connection.
const RECORD: &str = include_str!("../../golden/schedulers.json");

#[derive(Debug, Deserialize)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// Arguments of ipvsadm, a list for each call.
    pub(crate) setup: Vec<Vec<String>>,
    /// Values of `net.ipv4.vs.*`, set before the setup.
    #[serde(default)]
    pub(crate) sysctl: BTreeMap<String, u64>,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<Value>")]
pub(crate) enum Event {
    /// A client opens a connection, or sends a datagram.
    Open {
        id: String,
        source: SocketAddrV4,
        service: SocketAddrV4,
        transport: Transport,
        /// The real server that IPVS chose; `None` where it refused or dropped.
        answer: Option<String>,
    },
    /// The client closes what it opened.
    Close {
        id: String,
    },
    /// Changes the table.
    Ipvsadm(Vec<String>),
    /// Prints the table.
    List {
        arguments: Vec<String>,
        stdout: String,
    },
    Sleep(Duration),
}

impl TryFrom<Vec<Value>> for Event {
    type Error = anyhow::Error;

    fn try_from(event: Vec<Value>) -> Result<Self> {
        let (kind, fields) = event.split_first().context("an event without a kind")?;
        let kind = kind.as_str().context("a kind that is no word")?;
        match (kind, fields) {
            ("open", [id, source, source_port, vip, port, transport, answer]) => Ok(Self::Open {
                id: word(id)?,
                source: address(source, source_port)?,
                service: address(vip, port)?,
                transport: match transport.as_str() {
                    Some("tcp") => Transport::Tcp,
                    Some("udp") => Transport::Udp,
                    _ => bail!("{transport} is no protocol"),
                },
                answer: Option::deserialize(answer)?,
            }),
            ("close", [id]) => Ok(Self::Close { id: word(id)? }),
            ("ipvsadm", arguments) => Ok(Self::Ipvsadm(words(arguments)?)),
            ("list", [arguments @ .., stdout]) => Ok(Self::List {
                arguments: words(arguments)?,
                stdout: word(stdout)?,
            }),
            ("sleep", [seconds]) => {
                let seconds = seconds.as_f64().context("seconds that are no number")?;
                Ok(Self::Sleep(Duration::try_from_secs_f64(seconds)?))
            }
            _ => bail!("there is no event `{kind}` with {} fields", fields.len()),
        }
    }
}

fn word(value: &Value) -> Result<String> {
    let word = value.as_str().with_context(|| format!("{value} is no word"))?;
    Ok(word.to_owned())
}

fn words(values: &[Value]) -> Result<Vec<String>> {
    values.iter().map(word).collect()
}

fn address(host: &Value, port: &Value) -> Result<SocketAddrV4> {
    let host: Ipv4Addr = word(host)?.parse()?;
    Ok(SocketAddrV4::new(host, u16::deserialize(port)?))
}

/// Every scenario, in the record's order.
pub(crate) fn recorded() -> Result<Vec<Scenario>> {
    scenarios(RECORD)
}

/// The scenarios of a text in the record's format.
pub(crate) fn scenarios(text: &str) -> Result<Vec<Scenario>> {
    serde_json::from_str(text).context("reading the record")
}

/// Every address and port that some client of `scenarios` asks for.
pub(crate) fn services(scenarios: &[Scenario], wanted: Transport) -> BTreeSet<SocketAddrV4> {
    let events = scenarios.iter().flat_map(|scenario| &scenario.events);
    events
        .filter_map(|event| match event {
            Event::Open {
                service, transport, ..
            } if *transport == wanted => Some(*service),
            _ => None,
        })
        .collect()
}
