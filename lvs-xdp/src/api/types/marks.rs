//! The rules that give packets firewall marks.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Protocol, as_text};

/// A rule: packets to one of these addresses and ports have a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MarkRule {
    /// The mark, not 0.
    pub mark: u32,
    /// The transport protocol; without it every one that services can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The destination addresses, as prefixes such as `192.168.2.100/32`; sorted, without repetition.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
    /// The destination ports, such as `80` or `8000-8100`; none: every port. Sorted, without overlaps.
    #[schema(value_type = Vec<String>)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
}

impl MarkRule {
    /// The same rule in the form in which it is kept: prefixes and ports in their order, those that another
    /// one covers left out, and ports that follow each other joined.
    #[must_use]
    pub fn normal(&self) -> Self {
        let Self {
            mark,
            protocol,
            addresses,
            ports,
        } = self;
        Self {
            mark: *mark,
            protocol: *protocol,
            addresses: {
                let all: Vec<_> = addresses.iter().map(IpNet::trunc).collect();
                let mut kept: Vec<_> = (all.iter().copied())
                    .filter(|net| !all.iter().any(|other| other != net && other.contains(net)))
                    .collect();
                kept.sort_unstable();
                kept.dedup();
                kept
            },
            ports: joined(ports),
        }
    }

    /// The ports, as ranges.
    pub fn ranges(&self) -> impl Iterator<Item = Ports> {
        let every = self.ports.is_empty().then_some(Ports::ALL);
        every.into_iter().chain(self.ports.iter().copied())
    }
}

/// Ranges in their order, joined where nothing is between them; none where they are all the ports.
fn joined(ports: &[Ports]) -> Vec<Ports> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<Ports> = Vec::new();
    for ports in sorted {
        match joined.last_mut() {
            Some(last) if u32::from(ports.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(ports.last);
            }
            _ => joined.push(ports),
        }
    }
    if joined == [Ports::ALL] {
        joined.clear();
    }
    joined
}

/// A port, or the ports from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Every port that a packet can be for.
    pub const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// The lowest.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    pub const fn last(self) -> u16 {
        self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number
                .then(|| text.parse::<u16>().ok())
                .flatten()
                .filter(|port| *port > 0)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "`{text}` is no port or range of ports: write one such as 80 or 8000-8100, from 1 to 65535"
            )),
        }
    }
}

as_text!(Ports);

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: &str) -> Vec<Ports> {
        list.split(',').map(|ports| ports.parse().unwrap()).collect()
    }

    #[test]
    fn ports_are_numbers_or_ranges() {
        for bad in [
            "", "0", "-", "80-", "-80", "90-80", "65536", "http", "+80", "1-2-3", "80 ", "0-9",
        ] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?}");
        }
        assert_eq!(
            ports("1,80-80,1-65535"),
            [
                Ports { first: 1, last: 1 },
                Ports { first: 80, last: 80 },
                Ports::ALL
            ]
        );
        let text = serde_json::to_string(&ports("80,8000-8100")).unwrap();
        assert_eq!(text, r#"["80","8000-8100"]"#);
        assert_eq!(
            serde_json::from_str::<Vec<Ports>>(&text).unwrap(),
            ports("80,8000-8100")
        );
    }

    #[test]
    fn rules_have_one_form() {
        let rule = |addresses: &[&str], ports: Vec<Ports>| MarkRule {
            mark: 1,
            protocol: None,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ports,
        };
        let given = rule(
            &[
                "192.168.2.7/24",
                "10.0.0.1/32",
                "192.168.2.100/32",
                "10.0.0.1/32",
                "::/0",
            ],
            ports("443,81,70-79,80,75-77,65535"),
        );
        let kept = rule(
            &["10.0.0.1/32", "192.168.2.0/24", "::/0"],
            ports("70-81,443,65535"),
        );
        assert_eq!(given.normal(), kept);
        assert_eq!(kept.normal(), kept);
        assert!(
            rule(&["10.0.0.1/32"], ports("1-80,81-65535"))
                .normal()
                .ports
                .is_empty()
        );
    }
}
