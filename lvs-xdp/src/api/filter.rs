//! Which connection entries or services a request is about: the queries of `/v1/connections` and `/v1/services`.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use lvs_xdp_common::connection::State;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::types::{ServiceKey, as_text};

/// Which services are listed: the query of `/v1/services`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ServiceFilter {
    /// A virtual service, such as `tcp/192.168.2.100:80`, `mark/1` or, of IPv6, `mark6/1`; without it, every one.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
}

/// What an entry must have to be meant; an empty filter means every one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConnectionFilter {
    /// A client's address, or a network of clients, such as `192.168.1.7` or `192.168.1.0/24`. A persistence
    /// template has the address of its network.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Clients>,
    /// A virtual service, such as `tcp/192.168.2.100:80`, `mark/1` or, of IPv6, `mark6/1`; it may be one that was
    /// deleted.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// A real server's address.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<IpAddr>,
    /// A state by IPVS's name, such as `ESTABLISHED`.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateName>,
}

impl ConnectionFilter {
    /// Whether it means every entry.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A client, or a network of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Clients(IpNet);
as_text!(Clients);

impl Clients {
    /// Whether this address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| {
            format!("`{text}` is no address or network: write one such as 192.168.1.7 or 192.168.1.0/24")
        })
    }
}

/// A virtual service in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceName(pub ServiceKey);
as_text!(ServiceName);

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServiceKey::Endpoint {
                protocol,
                address,
                port,
            } => {
                let protocol = protocol.to_string().to_lowercase();
                write!(f, "{protocol}/{}", SocketAddr::new(address, port))
            }
            ServiceKey::Mark { mark, ipv6: false } => write!(f, "mark/{mark}"),
            ServiceKey::Mark { mark, ipv6: true } => write!(f, "mark6/{mark}"),
        }
    }
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = text.split_once('/').and_then(|(kind, name)| match kind {
            "mark" | "mark6" => Some(ServiceKey::Mark {
                mark: name.parse().ok()?,
                ipv6: kind == "mark6",
            }),
            _ => {
                let endpoint: SocketAddr = name.parse().ok()?;
                let protocol = kind.parse().ok()?;
                Some(ServiceKey::new(protocol, endpoint.ip(), endpoint.port()))
            }
        });
        key.map(Self).ok_or_else(|| {
            format!(
                "`{text}` is no service: write protocol, address and port, such as tcp/192.168.2.100:80, or a mark, \
                 such as mark/1 or, for IPv6, mark6/1"
            )
        })
    }
}

/// A state of connection entries, by IPVS's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StateName(String);
as_text!(StateName);

impl StateName {
    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Every name that an entry can have.
    pub fn all() -> BTreeSet<&'static str> {
        (0..=u8::MAX)
            .map(|number| State::from_number(u64::from(number)).name())
            .collect()
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for StateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = Self::all();
        let name = names.iter().find(|name| name.eq_ignore_ascii_case(text));
        name.map(|&name| Self(name.to_owned())).ok_or_else(|| {
            let names: Vec<_> = names.into_iter().collect();
            format!("`{text}` is no state: use one of {}", names.join(" "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Protocol;

    #[test]
    fn clients_are_addresses_or_networks() {
        let all: Clients = "192.168.1.77/24".parse().unwrap();
        let one: Clients = "192.168.1.7".parse().unwrap();
        let six: Clients = "2001:db8::/32".parse().unwrap();
        for (address, expected) in [
            ("192.168.1.7", [true, true, false]),
            ("192.168.1.8", [true, false, false]),
            ("192.168.2.7", [false, false, false]),
            ("2001:db8::7", [false, false, true]),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                [all, one, six].map(|clients| clients.contains(address)),
                expected,
                "{address}"
            );
        }
        let everybody: Clients = "0.0.0.0/0".parse().unwrap();
        assert!(everybody.contains("10.0.0.1".parse().unwrap()));
        for bad in [
            "",
            "192.168.1",
            "192.168.1.0/33",
            "192.168.1.7:80",
            "::1/129",
            "a",
        ] {
            assert!(bad.parse::<Clients>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_filter_goes_through_a_query_and_back() {
        let filter = ConnectionFilter {
            client: Some("2001:db8::/32".parse().unwrap()),
            service: Some(ServiceName(ServiceKey::new(
                Protocol::Sctp,
                "2001:db8::1".parse().unwrap(),
                0,
            ))),
            server: Some("fd00::1".parse().unwrap()),
            state: Some("established".parse().unwrap()),
        };
        let query = serde_urlencoded::to_string(&filter).unwrap();
        assert_eq!(
            query,
            "client=2001%3Adb8%3A%3A%2F32&service=sctp%2F%5B2001%3Adb8%3A%3A1%5D%3A0&server=fd00%3A%3A1\
             &state=ESTABLISHED"
        );
        assert_eq!(serde_urlencoded::from_str(&query), Ok(filter));
        for (text, ipv6) in [("mark/7", false), ("mark6/7", true)] {
            let name: ServiceName = text.parse().unwrap();
            assert_eq!(name.0, ServiceKey::Mark { mark: 7, ipv6 });
            assert_eq!(name.to_string(), text);
        }
        let empty = ConnectionFilter::default();
        assert!(empty.is_empty());
        assert_eq!(serde_urlencoded::to_string(&empty).unwrap(), "");
        assert_eq!(serde_urlencoded::from_str(""), Ok(empty));
        for bad in [
            "service=tcp",
            "service=tcp/10.0.0.1",
            "service=mark/x",
            "service=mark/10.0.0.1:80",
            "state=OPEN",
            "clients=10.0.0.1",
            "server=rs1",
        ] {
            assert!(
                serde_urlencoded::from_str::<ConnectionFilter>(bad).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn states_have_the_kernels_names() {
        let names = StateName::all();
        for name in [
            "NONE",
            "ASSURED",
            "UDP",
            "SYN_RECV",
            "ESTABLISHED",
            "FIN_WAIT",
            "TIME_WAIT",
            "CLOSE",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }
}
