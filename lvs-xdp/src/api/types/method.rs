//! How packets reach a real server.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{by_name, is_default};

/// How packets reach the real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardingMethod {
    /// Direct routing (gatewaying), `-g`: only the MAC addresses change.
    #[default]
    Dr,
    /// Tunnelling, `-i`: inside another packet, which is addressed to the real server. It may be on any segment.
    Tunnel(Tunnel),
}

impl ForwardingMethod {
    /// The tunnel, where there is one.
    pub fn tunnel(self) -> Option<Tunnel> {
        match self {
            Self::Dr => None,
            Self::Tunnel(tunnel) => Some(tunnel),
        }
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dr => f.pad("dr"),
            Self::Tunnel(tunnel) => f.pad(&tunnel.to_string()),
        }
    }
}

/// What is between the outer and the inner packet of a tunnel (`--tun-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Tunnel {
    /// Nothing (RFC 2003, RFC 2473, RFC 4213).
    Ipip,
    /// UDP and generic UDP encapsulation, variant 0, as Linux's `fou` takes it.
    Gue {
        /// The UDP port on which the real server listens; not 0.
        port: u16,
        /// UDP's checksum.
        #[serde(default, skip_serializing_if = "is_default")]
        checksum: TunnelChecksum,
    },
    /// Generic routing encapsulation (RFC 2784).
    Gre {
        /// Whether there is a checksum.
        #[serde(default, skip_serializing_if = "is_default")]
        checksum: bool,
    },
}

impl Tunnel {
    /// Its type.
    pub fn kind(self) -> TunnelKind {
        match self {
            Self::Ipip => TunnelKind::Ipip,
            Self::Gue { .. } => TunnelKind::Gue,
            Self::Gre { .. } => TunnelKind::Gre,
        }
    }

    /// GUE's port.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Gue { port, .. } => Some(port),
            Self::Ipip | Self::Gre { .. } => None,
        }
    }

    /// The checksum over what is carried; `None` where there can be none.
    pub fn checksum(self) -> Option<TunnelChecksum> {
        match self {
            Self::Ipip => None,
            Self::Gue { checksum, .. } => Some(checksum),
            Self::Gre { checksum: false } => Some(TunnelChecksum::None),
            Self::Gre { checksum: true } => Some(TunnelChecksum::On),
        }
    }
}

/// As `--tun-info` of ipvsadm: `ipip`, `gue:6080:-c`, `gre:+c`.
impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.kind().to_string();
        if let Some(port) = self.port() {
            text += &format!(":{port}");
        }
        text += match self.checksum() {
            None => "",
            Some(TunnelChecksum::None) => ":-c",
            Some(TunnelChecksum::On) => ":+c",
            Some(TunnelChecksum::Remote) => ":r+c",
        };
        f.pad(&text)
    }
}

/// A tunnel's type, by ipvsadm's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// See [`Tunnel::Ipip`].
    Ipip,
    /// See [`Tunnel::Gue`].
    Gue,
    /// See [`Tunnel::Gre`].
    Gre,
}

impl TunnelKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::Gue, Self::Gre];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }
}

by_name!(TunnelKind, "tunnel", "ipip, gue or gre");

/// The checksum of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// None (`--tun-nocsum`).
    #[default]
    None,
    /// Computed (`--tun-csum`).
    On,
    /// Remote checksum offload (`--tun-remcsum`). It is for packets whose own checksum is not computed yet; such
    /// do not come over a wire. For all others IPVS computes this one, and so does the director.
    Remote,
}

impl TunnelChecksum {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::On, Self::Remote];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::On => "on",
            Self::Remote => "remote",
        }
    }
}

by_name!(TunnelChecksum, "checksum of a tunnel", "none, on or remote");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_kept_in_words_that_stay() {
        let gue = |checksum| Tunnel::Gue { port: 6080, checksum };
        for (method, json, info) in [
            (ForwardingMethod::Dr, r#""dr""#, "dr"),
            (
                ForwardingMethod::Tunnel(Tunnel::Ipip),
                r#"{"tunnel":{"type":"ipip"}}"#,
                "ipip",
            ),
            (
                ForwardingMethod::Tunnel(gue(TunnelChecksum::None)),
                r#"{"tunnel":{"type":"gue","port":6080}}"#,
                "gue:6080:-c",
            ),
            (
                ForwardingMethod::Tunnel(gue(TunnelChecksum::On)),
                r#"{"tunnel":{"type":"gue","port":6080,"checksum":"on"}}"#,
                "gue:6080:+c",
            ),
            (
                ForwardingMethod::Tunnel(gue(TunnelChecksum::Remote)),
                r#"{"tunnel":{"type":"gue","port":6080,"checksum":"remote"}}"#,
                "gue:6080:r+c",
            ),
            (
                ForwardingMethod::Tunnel(Tunnel::Gre { checksum: false }),
                r#"{"tunnel":{"type":"gre"}}"#,
                "gre:-c",
            ),
            (
                ForwardingMethod::Tunnel(Tunnel::Gre { checksum: true }),
                r#"{"tunnel":{"type":"gre","checksum":true}}"#,
                "gre:+c",
            ),
        ] {
            assert_eq!(serde_json::to_string(&method).unwrap(), json);
            assert_eq!(serde_json::from_str::<ForwardingMethod>(json).unwrap(), method);
            assert_eq!(method.to_string(), info);
        }
    }
}
