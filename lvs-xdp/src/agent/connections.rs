//! Connection entries for those who ask: listed piece by piece as the reader takes them, or removed.
//!
//! All of it is read from the mapped tables, without a system call an entry. A listing holds neither the
//! agent's task nor a thread while its reader is slow.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use axum::body::Bytes;
use futures_util::{Stream, stream};
use lvs_xdp_common::{abi::DestinationRow, maps::Maps as _, packet::Address};
use tokio::task::JoinError;

use crate::{
    api::{
        filter::{Clients, ConnectionFilter, ServiceName, StateName},
        types::{ApiError, Connection, Protocol},
    },
    dataplane::{Tables, rows, sweep::Listed},
    model::no_such_service,
};

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON array, one entry a line.
    Json,
    /// Columns of fixed width under a line of titles.
    Text,
}

/// Bytes in a piece, as many as make it worth while to change threads for it.
const PIECE: usize = 256 << 10;
/// Buckets of the table between two looks at the piece's length.
const STRIDE: u32 = 256;

/// Columns of the text, with their widths; the last one has none.
const COLUMNS: [(&str, usize); 6] = [
    ("PROTOCOL", 8),
    ("EXPIRES", 8),
    ("STATE", 11),
    ("CLIENT", 21),
    ("VIRTUAL", 21),
    ("DESTINATION", 0),
];

/// A filter, with the tables' numbers in place of names.
#[derive(Debug)]
struct Wanted {
    clients: Option<Clients>,
    /// The ids of the service. More than one only where it was deleted and another one was made meanwhile.
    services: Option<Vec<u64>>,
    server: Option<IpAddr>,
    state: Option<StateName>,
}

impl Wanted {
    fn new(filter: &ConnectionFilter, tables: &Tables) -> Result<Self, ApiError> {
        let ConnectionFilter {
            client,
            service,
            server,
            state,
        } = filter;
        let services = match service {
            None => None,
            Some(ServiceName(key)) => {
                let (address, identity) = rows::service_row(key);
                let rows = (1..).map_while(|id| Some((u64::from(id), tables.service(id)?)));
                let ids: Vec<_> = rows
                    .filter(|(_, row)| row.is(address, identity))
                    .map(|(id, _)| id)
                    .collect();
                if ids.is_empty() {
                    return Err(no_such_service(key));
                }
                Some(ids)
            }
        };
        Ok(Self {
            clients: *client,
            services,
            server: *server,
            state: state.clone(),
        })
    }

    /// Whether an entry is meant. An all-port service's entries have ports of their own, so it is the
    /// service's id that counts.
    fn takes(&self, tables: &Tables, listed: &Listed) -> bool {
        let is_client = |clients: &Clients| clients.contains(rows::ip(listed.flow.client));
        let is_service = |ids: &Vec<u64>| ids.contains(&listed.flow.service);
        let is_server = |address: &IpAddr| {
            let row = tables.destination(listed.entry.destination());
            row.is_some_and(|row| address_of(row) == *address)
        };
        let is_state = |state: &StateName| state.name() == listed.entry.state().name();
        self.services.as_ref().is_none_or(is_service)
            && self.state.as_ref().is_none_or(is_state)
            && self.clients.as_ref().is_none_or(is_client)
            && self.server.as_ref().is_none_or(is_server)
    }
}

fn address_of(row: &DestinationRow) -> IpAddr {
    rows::ip(Address::from_halves(row.address[0].load(), row.address[1].load()))
}

/// Removes the entries that are meant; returns how many those were. It takes as long as it takes to read the
/// whole table.
///
/// # Errors
///
/// [`ErrorCode::NoSuchService`](crate::api::types::ErrorCode::NoSuchService).
pub(crate) fn flush(tables: &Tables, filter: &ConnectionFilter) -> Result<u64, ApiError> {
    let wanted = Wanted::new(filter, tables)?;
    Ok(tables.flush(|listed| wanted.takes(tables, listed)))
}

/// A list on its way.
#[derive(Debug)]
pub(crate) struct Listing {
    tables: Arc<Tables>,
    wanted: Wanted,
    writer: Writer,
    /// Buckets that are still to be read; nothing once the end was written.
    rest: Option<Range<u32>>,
}

impl Listing {
    /// A list of the entries that are meant.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NoSuchService`](crate::api::types::ErrorCode::NoSuchService).
    pub(crate) fn new(
        tables: Arc<Tables>,
        filter: &ConnectionFilter,
        format: Format,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            wanted: Wanted::new(filter, &tables)?,
            writer: Writer::new(format),
            rest: Some(0..tables.buckets()),
            tables,
        })
    }

    /// The list in pieces, each of which is made when it is asked for. Where that is broken off, the last one
    /// is an error, so that the reader sees that the list is not whole.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<Bytes, JoinError>> {
        stream::unfold(Some(self), async |listing| {
            let mut listing = listing?;
            match tokio::task::spawn_blocking(move || (listing.piece(), listing)).await {
                Ok((piece, listing)) => piece.map(|piece| (Ok(piece), Some(listing))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn piece(&mut self) -> Option<Bytes> {
        let Self {
            tables,
            wanted,
            writer,
            rest,
        } = self;
        let mut out = Vec::with_capacity(PIECE + PIECE / 4);
        let buckets = rest.as_mut()?;
        while out.len() < PIECE && buckets.start < buckets.end {
            let part = buckets.start..buckets.end.min(buckets.start + STRIDE);
            buckets.start = part.end;
            for listed in tables.connections_in(part) {
                if wanted.takes(tables, &listed)
                    && let Some(row) = tables.destination(listed.entry.destination())
                {
                    // Direct routing changes no port: the client's is also the real server's.
                    let port = listed.flow.port();
                    writer.entry(&mut out, &listed, || SocketAddr::new(address_of(row), port));
                }
            }
        }
        if buckets.start >= buckets.end {
            writer.end(&mut out);
            *rest = None;
        }
        Some(out.into())
    }
}

/// Writes entries in one of the formats.
#[derive(Debug)]
struct Writer {
    format: Format,
    is_first: bool,
    /// The last virtual address and port, and their column: most entries have those of the one before.
    service: (SocketAddr, Vec<u8>),
    /// The texts of destinations by id, each with the port that it was last needed for.
    destinations: Vec<Option<(u16, Box<[u8]>)>>,
}

impl Writer {
    fn new(format: Format) -> Self {
        Self {
            format,
            is_first: true,
            service: (SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), Vec::new()),
            destinations: Vec::new(),
        }
    }

    fn start(&mut self, out: &mut Vec<u8>) -> bool {
        let is_first = std::mem::replace(&mut self.is_first, false);
        if is_first {
            match self.format {
                Format::Json => out.extend(b"["),
                Format::Text => {
                    for (title, width) in COLUMNS {
                        let start = out.len();
                        out.extend(title.as_bytes());
                        pad(out, start, width);
                    }
                    out.push(b'\n');
                }
            }
        }
        is_first
    }

    fn entry(&mut self, out: &mut Vec<u8>, listed: &Listed, destination: impl FnOnce() -> SocketAddr) {
        let is_first = self.start(out);
        match self.format {
            Format::Json => {
                out.extend(if is_first { &b"\n"[..] } else { b",\n" });
                let connection = Connection {
                    protocol: protocol(listed),
                    expires: u64::from(listed.expires),
                    state: listed.entry.state().name().to_owned(),
                    client: SocketAddr::new(rows::ip(listed.flow.client), listed.flow.client_port()),
                    virtual_address: SocketAddr::new(rows::ip(listed.flow.address), listed.flow.port()),
                    destination: destination(),
                };
                // Memory takes all that is written to it, and a connection has nothing that JSON lacks.
                let _ = serde_json::to_writer(out, &connection);
            }
            Format::Text => self.line(out, listed, destination),
        }
    }

    fn line(&mut self, out: &mut Vec<u8>, listed: &Listed, destination: impl FnOnce() -> SocketAddr) {
        let [
            protocol_width,
            expires_width,
            state_width,
            client_width,
            virtual_width,
            _,
        ] = COLUMNS.map(|(_, width)| width);
        let start = out.len();
        out.extend(match protocol(listed) {
            Some(Protocol::Tcp) => &b"TCP"[..],
            Some(Protocol::Udp) => b"UDP",
            Some(Protocol::Sctp) => b"SCTP",
            None => b"IP",
        });
        pad(out, start, protocol_width);

        // Minutes and seconds, as ipvsadm shows them.
        let start = out.len();
        let (minutes, seconds) = (listed.expires / 60, listed.expires % 60);
        for (number, separator) in [(minutes, &b":"[..]), (seconds, b"")] {
            if number < 10 {
                out.push(b'0');
            }
            decimal(out, number);
            out.extend(separator);
        }
        pad(out, start, expires_width);

        let start = out.len();
        out.extend(listed.entry.state().name().as_bytes());
        pad(out, start, state_width);

        let flow = &listed.flow;
        let start = out.len();
        endpoint(out, SocketAddr::new(rows::ip(flow.client), flow.client_port()));
        pad(out, start, client_width);

        let (service, column) = &mut self.service;
        let address = SocketAddr::new(rows::ip(flow.address), flow.port());
        if *service != address || column.is_empty() {
            *service = address;
            column.clear();
            endpoint(column, address);
            pad(column, 0, virtual_width);
        }
        out.extend_from_slice(column);

        let id = listed.entry.destination() as usize;
        if self.destinations.len() <= id {
            self.destinations.resize(id + 1, None);
        }
        let known = &mut self.destinations[id];
        if known.as_ref().is_none_or(|(port, _)| *port != flow.port()) {
            let mut text = Vec::new();
            endpoint(&mut text, destination());
            text.push(b'\n');
            *known = Some((flow.port(), text.into()));
        }
        out.extend(known.iter().flat_map(|(_, text)| text.iter()));
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        if self.format == Format::Json {
            out.extend(b"\n]\n");
        }
    }
}

/// None for a mark's template, which is for all.
fn protocol(listed: &Listed) -> Option<Protocol> {
    Protocol::from_number(listed.flow.protocol().0)
}

/// Fills a column up with blanks, and adds two between it and the next one.
fn pad(out: &mut Vec<u8>, start: usize, width: usize) {
    if width > 0 {
        let length = (out.len() - start).max(width) + 2;
        out.resize(start + length, b' ');
    }
}

fn decimal(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// An address and port as `Display` has them; for IPv4 without its detours, which a long list is mostly made of.
fn endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    let SocketAddr::V4(endpoint) = endpoint else {
        // Memory takes all that is written to it.
        let _ = write!(out, "{endpoint}");
        return;
    };
    for (octet, separator) in endpoint.ip().octets().into_iter().zip(*b"...:") {
        decimal(out, octet);
        out.push(separator);
    }
    decimal(out, endpoint.port());
}

#[cfg(test)]
mod tests {
    use lvs_xdp_common::{
        abi::ColdRow,
        atomic::Word,
        connection::{Entry, State},
        flow::Flow,
        packet::IpProto,
    };

    use super::*;

    fn listed(protocol: IpProto, state: State, client: &str, expires: u32) -> Listed {
        let client: SocketAddr = client.parse().unwrap();
        let vip = if client.is_ipv4() {
            "192.168.2.100"
        } else {
            "2001:db8::100"
        };
        let halves = |address| {
            let address = rows::address(address);
            [Word::new(address.high()), Word::new(address.low())]
        };
        let row = ColdRow {
            client: halves(client.ip()),
            address: halves(vip.parse().unwrap()),
            ports: Word::new(80 | u64::from(client.port()) << 16 | u64::from(protocol.0) << 32),
            service: Word::new(1),
            ..ColdRow::default()
        };
        Listed {
            index: 0,
            entry: Entry::new(1, 3, state, 1_000, 900),
            flow: Flow::read(&row),
            expires,
        }
    }

    fn written(format: Format, entries: &[Listed]) -> String {
        let (mut writer, mut out) = (Writer::new(format), Vec::new());
        for entry in entries {
            let ip = if entry.flow.address.is_ipv4() {
                "10.0.0.1"
            } else {
                "fd00::1"
            };
            let port = entry.flow.port();
            writer.entry(&mut out, entry, || SocketAddr::new(ip.parse().unwrap(), port));
            writer.destinations.clear();
        }
        writer.end(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn entries() -> [Listed; 4] {
        [
            listed(IpProto::TCP, State::Established, "192.168.1.200:40000", 897),
            listed(IpProto::UDP, State::Udp, "255.255.255.255:65535", 5),
            listed(IpProto::TCP, State::Assured, "1.2.3.0:0", 2_678_400),
            listed(IpProto::TCP, State::SynRecv, "[2001:db8::1]:1024", 60),
        ]
    }

    #[test]
    fn text_has_columns() {
        assert_eq!(
            written(Format::Text, &entries()),
            "PROTOCOL  EXPIRES   STATE        CLIENT                 VIRTUAL                DESTINATION\n\
             TCP       14:57     ESTABLISHED  192.168.1.200:40000    192.168.2.100:80       10.0.0.1:80\n\
             UDP       00:05     UDP          255.255.255.255:65535  192.168.2.100:80       10.0.0.1:80\n\
             TCP       44640:00  ASSURED      1.2.3.0:0              192.168.2.100:80       10.0.0.1:80\n\
             TCP       01:00     SYN_RECV     [2001:db8::1]:1024     [2001:db8::100]:80     [fd00::1]:80\n"
        );
        let titles = written(Format::Text, &[]);
        assert!(
            titles.starts_with("PROTOCOL ") && titles.ends_with("DESTINATION\n"),
            "{titles}"
        );
    }

    #[test]
    fn json_is_the_apis() {
        for count in 0..=4 {
            let entries = &entries()[..count];
            let text = written(Format::Json, entries);
            let read: Vec<Connection> = serde_json::from_str(&text).unwrap();
            assert_eq!(read.len(), count);
            assert_eq!(text.lines().count(), count + 2, "an entry a line: {text}");
            for (read, entry) in read.iter().zip(entries) {
                assert_eq!(read.expires, u64::from(entry.expires));
                assert_eq!(read.state, entry.entry.state().name());
                assert_eq!(read.client.port(), entry.flow.client_port());
                assert_eq!(read.virtual_address.ip(), rows::ip(entry.flow.address));
            }
        }
    }

    #[test]
    fn a_destinations_text_is_its_own() {
        let mut writer = Writer::new(Format::Text);
        for (id, host) in [(3, 1), (1, 2), (3, 9), (1, 9)] {
            let mut entry = entries()[0];
            entry.entry = Entry::new(1, id, State::Udp, 1_000, 300);
            let mut out = Vec::new();
            writer.entry(&mut out, &entry, || SocketAddr::from(([10, 0, 0, host], 80)));
            let expected = if id == 3 { "10.0.0.1:80\n" } else { "10.0.0.2:80\n" };
            assert!(out.ends_with(expected.as_bytes()), "{id}");
        }
    }
}
