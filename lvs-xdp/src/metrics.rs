//! What the agent sees, as Prometheus reads it: `GET /metrics` and `lvs-xdp metrics`.
//!
//! The names are those of node_exporter's collector for IPVS where they mean the same, with `lvs_xdp` for
//! `node_ipvs`, so that its dashboards need no more than another prefix. There are no sums over services: a deleted
//! service would make them fall, which Prometheus takes for a counter that has begun anew.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::api::types::{CheckState, CheckStatus, Server, ServerKey, Service, ServiceKey, Status, VipState};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of all metrics, in the OpenMetrics format.
///
/// # Errors
///
/// None that a text in memory can have.
pub fn render(seen: Seen) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("lvs_xdp");
    registry.register_collector(Box::new(seen));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// What the metrics are made of: what the agent was asked for one after the other.
#[derive(Debug)]
pub struct Seen {
    /// The agent, its interfaces, tables and packets.
    pub status: Status,
    /// The services with their real servers.
    pub services: Vec<Service>,
    /// The checks of real servers.
    pub checks: Vec<CheckStatus>,
}

type Label = (&'static str, String);

/// A kind of metric: name, help, and whether it only grows.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Whether its values are microseconds, to be written as seconds: what Prometheus wants.
    is_time: bool,
}

impl Family {
    const fn counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: MetricType::Counter,
            is_time: false,
        }
    }

    /// A counter of microseconds.
    const fn time(name: &'static str, help: &'static str) -> Self {
        Self {
            is_time: true,
            ..Self::counter(name, help)
        }
    }

    const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: MetricType::Gauge,
            is_time: false,
        }
    }

    /// Writes all of a family; nothing where there is nothing of it.
    fn write(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (Vec<Label>, u64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, self.kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                // There is but one.
                return self.write_value(metric, value);
            }
            self.write_value(metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    fn write_value(&self, sample: MetricEncoder<'_>, value: u64) -> fmt::Result {
        match self.kind {
            MetricType::Counter if self.is_time => {
                ConstCounter::new(Duration::from_micros(value).as_secs_f64()).encode(sample)
            }
            MetricType::Counter => ConstCounter::new(value).encode(sample),
            // A gauge is signed; nothing here comes near to 2^63.
            _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(sample),
        }
    }
}

/// The labels of a service, by node_exporter's names: the virtual address is the local one.
///
/// A mark's service has the values that node_exporter reads from /proc/net/ip_vs: the mark in eight hexadecimal
/// digits, port 0. There, those of both address families are `FWM`; here, IPv6's is another protocol, as two services
/// of one mark would else be one.
fn service_labels(key: &ServiceKey) -> Vec<Label> {
    let (address, mark, protocol) = match key {
        ServiceKey::Endpoint {
            protocol, address, ..
        } => (address.to_string(), String::new(), protocol.to_string()),
        ServiceKey::Mark { mark, ipv6 } => {
            let protocol = if *ipv6 { "FWM6" } else { "FWM" };
            (String::new(), format!("{mark:08X}"), protocol.to_owned())
        }
    };
    vec![
        ("local_address", address),
        ("local_port", key.port().to_string()),
        ("local_mark", mark),
        ("proto", protocol),
    ]
}

fn server_labels(service: &ServiceKey, server: &ServerKey) -> Vec<Label> {
    let mut labels = service_labels(service);
    labels.push(("remote_address", server.address.to_string()));
    labels.push(("remote_port", server.port.to_string()));
    labels
}

/// A family of services, and what of a service it is.
type OfService = (Family, fn(&Service) -> u64);

const OF_SERVICES: [OfService; 4] = [
    (
        Family::counter("service_connections", "Connections scheduled for the service."),
        |service| service.stats.connections,
    ),
    (
        Family::counter(
            "service_incoming_packets",
            "Packets that came in for the service.",
        ),
        |service| service.stats.packets,
    ),
    (
        Family::counter(
            "service_incoming_bytes",
            "Bytes that came in for the service, without Ethernet headers.",
        ),
        |service| service.stats.bytes,
    ),
    (
        Family::gauge(
            "service_fallen_back",
            "Whether the service's fallback takes its new connections.",
        ),
        |service| u64::from(service.has_fallen_back),
    ),
];

/// A family of real servers, and what of a real server it is.
type OfServer = (Family, fn(&Server) -> u64);

const OF_SERVERS: [OfServer; 12] = [
    (
        Family::gauge("backend_connections_active", "Connections in an active state."),
        |server| server.active,
    ),
    (
        Family::gauge(
            "backend_connections_inactive",
            "All other connections, UDP among them.",
        ),
        |server| server.inactive,
    ),
    (
        Family::gauge("backend_connections_persistent", "Persistence templates."),
        |server| server.persistent,
    ),
    (
        Family::gauge("backend_weight", "The weight as configured."),
        |server| u64::from(server.spec.weight),
    ),
    (
        Family::gauge(
            "backend_effective_weight",
            "The weight that the scheduler goes by; 0 for one that gets no new connections.",
        ),
        |server| u64::from(server.effective_weight),
    ),
    (
        Family::counter("backend_connections", "Connections scheduled to the real server."),
        |server| server.stats.connections,
    ),
    (
        Family::counter("backend_incoming_packets", "Packets sent to the real server."),
        |server| server.stats.packets,
    ),
    (
        Family::counter(
            "backend_incoming_bytes",
            "Bytes sent to the real server, without Ethernet headers.",
        ),
        |server| server.stats.bytes,
    ),
    (
        Family::counter(
            "handshakes_syns",
            "SYNs that opened a connection to the real server.",
        ),
        |server| server.handshakes.syns,
    ),
    (
        Family::counter(
            "handshakes_repeated_syns",
            "SYNs that were sent again because nothing had come back.",
        ),
        |server| server.handshakes.repeated,
    ),
    (
        Family::counter(
            "handshakes_acknowledged",
            "Connections whose client has acknowledged the real server's answer to its SYN.",
        ),
        |server| server.handshakes.acknowledged,
    ),
    (
        Family::time(
            "handshakes_acknowledged_seconds",
            "Time from SYN to first acknowledgement, over all connections that were acknowledged.",
        ),
        |server| server.handshakes.microseconds,
    ),
];

impl Collector for Seen {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.write_agent(encoder)?;
        for (family, value) in &OF_SERVICES {
            let samples = self.services.iter();
            family.write(
                encoder,
                samples.map(|service| (service_labels(&service.spec.key), value(service))),
            )?;
        }
        for (family, value) in &OF_SERVERS {
            let samples = self.services.iter().flat_map(|service| {
                let labels = |server: &Server| server_labels(&service.spec.key, &server.spec.key);
                (service.servers.iter()).map(move |server| (labels(server), value(server)))
            });
            family.write(encoder, samples)?;
        }
        let checks = self.checks.iter().map(|check| {
            let mut labels = server_labels(&check.service, &check.server);
            labels.push(("probe", check.probe.clone()));
            (labels, u64::from(check.state == CheckState::Up))
        });
        Family::gauge("check_up", "Whether the real server is up by its check.").write(encoder, checks)
    }
}

impl Seen {
    fn write_agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.status;
        let build = vec![
            ("version", status.version.clone()),
            ("layout", status.abi.to_string()),
        ];
        Family::gauge("build_info", "The agent's version and the layout of its maps.")
            .write(encoder, [(build, 1)])?;
        let interfaces = status.interfaces.iter().map(|interface| {
            let labels = vec![
                ("device", interface.name.clone()),
                ("mode", interface.mode.clone()),
            ];
            (labels, 1)
        });
        Family::gauge(
            "interface_info",
            "Interfaces that the program is attached to, and how.",
        )
        .write(encoder, interfaces)?;
        let vips = status.vips.iter().map(|vip| {
            let is_answered = matches!(vip.state, VipState::Announced | VipState::Host);
            (vec![("address", vip.address.to_string())], u64::from(is_answered))
        });
        Family::gauge(
            "vip_answered",
            "Whether anybody here answers for the virtual address.",
        )
        .write(encoder, vips)?;

        let entries = [("connections", status.connections, status.connection_capacity)];
        let tables = (status.tables.iter()).map(|table| (table.name.as_str(), table.used, table.capacity));
        let tables = Vec::from_iter(entries.into_iter().chain(tables));
        let of = |name: &str| vec![("table", name.to_owned())];
        Family::gauge("table_used", "Rows of the table in use.")
            .write(encoder, tables.iter().map(|(name, used, _)| (of(name), *used)))?;
        Family::gauge("table_capacity", "Rows that the table has.").write(
            encoder,
            tables.iter().map(|(name, _, capacity)| (of(name), *capacity)),
        )?;
        let warnings = u64::try_from(status.warnings.len()).unwrap_or(u64::MAX);
        Family::gauge(
            "warnings",
            "What needs attention: the lines that `lvs-xdp status` shows.",
        )
        .write(encoder, [(Vec::new(), warnings)])?;

        let packets = status.reasons.iter().map(|reason| {
            let labels = vec![
                ("verdict", reason.verdict.clone()),
                ("reason", reason.name.clone()),
            ];
            (labels, reason.packets)
        });
        Family::counter(
            "packets",
            "What became of packets since the program was loaded first.",
        )
        .write(encoder, packets)
    }
}

#[cfg(test)]
mod tests;
