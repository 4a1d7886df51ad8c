//! `lvs-xdp handshakes`: what is seen of TCP handshakes, from the clients' side of them.

use std::{collections::HashMap, io::Write, thread};

use serde::Serialize;

use super::{
    Failure,
    args::HandshakesArgs,
    service::{endpoint, protocol},
    table::Table,
    write_json,
};
use crate::api::{
    client::BlockingClient,
    filter::ServiceName,
    types::{Handshakes, ServerKey, Service, ServiceKey},
};

/// Those of one real server, as `handshakes --json` has them.
#[derive(Debug, Serialize)]
struct Row {
    service: ServiceKey,
    server: ServerKey,
    #[serde(flatten)]
    handshakes: Handshakes,
    troubled_percent: Option<u64>,
    mean_microseconds: Option<u64>,
}

pub(super) fn run(
    args: &HandshakesArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let HandshakesArgs { service, over, list } = args;
    let mut ask = || match service {
        Some(ServiceName(key)) => client.service(*key).map(|service| vec![service]),
        None => client.services(),
    };
    let mut before = HashMap::new();
    if let Some(over) = over {
        before.extend(counted(&ask()?));
        thread::sleep(*over);
    }
    let rows = rows(&ask()?, &before);
    if list.json {
        return write_json(&rows, out);
    }
    Ok(table(&rows).write(out)?)
}

/// What each real server of each service has counted, in the order of lists.
fn counted(services: &[Service]) -> impl Iterator<Item = ((ServiceKey, ServerKey), Handshakes)> {
    services.iter().flat_map(|service| {
        let servers = service.servers.iter();
        servers.map(|server| ((service.spec.key, server.spec.key), server.handshakes))
    })
}

/// What came after `before`, or all of it where there is nothing before.
fn rows(services: &[Service], before: &HashMap<(ServiceKey, ServerKey), Handshakes>) -> Vec<Row> {
    let rows = counted(services).map(|(name, total)| {
        let handshakes = total.since(before.get(&name).copied().unwrap_or_default());
        Row {
            service: name.0,
            server: name.1,
            handshakes,
            troubled_percent: handshakes.troubled_percent(),
            mean_microseconds: handshakes.mean_microseconds(),
        }
    });
    rows.collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "PROTOCOL",
        "VIRTUAL",
        "REAL SERVER",
        " SYNS",
        " SENT AGAIN",
        " ACKNOWLEDGED",
        " TROUBLED",
        " MEAN TIME",
    ]);
    for row in rows {
        let seen = row.handshakes;
        table.row([
            protocol(&row.service),
            endpoint(&row.service),
            row.server.to_string(),
            seen.syns.to_string(),
            seen.repeated.to_string(),
            seen.acknowledged.to_string(),
            row.troubled_percent
                .map(|percent| format!("{percent}%"))
                .unwrap_or_default(),
            row.mean_microseconds.map(milliseconds).unwrap_or_default(),
        ]);
    }
    table
}

/// Microseconds as milliseconds with one place.
fn milliseconds(microseconds: u64) -> String {
    let tenths = microseconds.saturating_add(50) / 100;
    format!("{}.{}ms", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Protocol;

    #[test]
    fn each_real_server_has_a_line() {
        let row = |host, handshakes: Handshakes| Row {
            service: ServiceKey::new(Protocol::Tcp, [192, 168, 2, 100].into(), 80),
            server: ServerKey {
                address: [192, 168, 2, host].into(),
                port: 80,
            },
            handshakes,
            troubled_percent: handshakes.troubled_percent(),
            mean_microseconds: handshakes.mean_microseconds(),
        };
        let seen = Handshakes {
            syns: 8,
            repeated: 1,
            acknowledged: 6,
            microseconds: 7_290,
        };
        let mut out = Vec::new();
        table(&[row(210, seen), row(220, Handshakes::default())])
            .write(&mut out)
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][2..], ["192.168.2.210:80", "8", "1", "6", "25%", "1.2ms"]);
        assert_eq!(lines[2][2..], ["192.168.2.220:80", "0", "0", "0", "-", "-"]);
    }
}
