//! Hosts, switches and the cables between them.
//!
//! Every host is a network namespace; all switches are bridges in one more. A cable is a veth pair
//! whose host end is an interface of the host and whose other end is a port of a switch.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};

use lvs_xdp::dataplane::mac_text;

use crate::{netns::Netns, xdp_pass::XdpPass};

/// The kernel's limit of an interface's name (IFNAMSIZ without the terminating zero).
const NAME_LIMIT: usize = 15;

/// Sysctls of every host, so that nothing depends on how the machine is set up: a new namespace
/// takes over much of net.ipv4 from the first one (net.core.devconf_inherit_init_net).
const HOST_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.arp_ignore", "0"),
    ("net.ipv4.conf.all.arp_announce", "0"),
    ("net.ipv4.conf.default.arp_ignore", "0"),
    ("net.ipv4.conf.default.arp_announce", "0"),
    // Addresses are usable at once, and no host asks for routers that do not exist.
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
];

/// Hosts and switches, gone with everything in them when dropped.
#[derive(Debug)]
pub struct Topology {
    // Before the namespaces: links are detached while their interfaces exist.
    passes: Vec<XdpPass>,
    hosts: BTreeMap<String, Netns>,
    switches: Netns,
}

impl Topology {
    /// An empty topology: only the namespace of the switches.
    ///
    /// # Errors
    ///
    /// As [`Netns::new`].
    pub fn new() -> Result<Self> {
        let switches = Netns::new("switch")?;
        switches.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        switches.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        Ok(Self {
            passes: Vec::new(),
            hosts: BTreeMap::new(),
            switches,
        })
    }

    /// Adds a switch: a bridge called `name`.
    ///
    /// # Errors
    ///
    /// When the name is too long or taken.
    pub fn add_switch(&mut self, name: &str) -> Result<()> {
        check_name(name)?;
        // No spanning tree: ports forward at once. No snooping: multicast goes everywhere, without queries.
        self.switches.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        self.switches.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Adds a host without any interface but `lo`.
    ///
    /// # Errors
    ///
    /// When there is a host of that name.
    pub fn add_host(&mut self, name: &str) -> Result<&Netns> {
        ensure!(
            !self.hosts.contains_key(name),
            "there is a host called {name} already"
        );
        let netns = Netns::new(name)?;
        for (sysctl, value) in HOST_SYSCTLS {
            netns.sysctl(sysctl, value)?;
        }
        Ok(self.hosts.entry(name.to_owned()).or_insert(netns))
    }

    /// Puts a cable between a new `interface` of `host` and `switch`, and gives the interface its addresses,
    /// each with its prefix length. Its MAC is `02:00` and the first address's four bytes, if that is IPv4.
    ///
    /// The interface has no checksum offload, and with that no segmentation offload: what XDP sends
    /// on leaves as it came, so a checksum that is still to be filled in would never be.
    ///
    /// # Errors
    ///
    /// When a name is too long or taken, the switch is unknown, or an address is none.
    ///
    /// # Panics
    ///
    /// When there is no such host.
    pub fn connect(&mut self, host: &str, interface: &str, switch: &str, addresses: &[&str]) -> Result<()> {
        let netns = self.host(host);
        let port = port_name(host, interface);
        check_name(interface)?;
        check_name(&port)?;
        let switches = self.switches.name();
        let mac = match addresses
            .first()
            .map(|address| parse_address(address))
            .transpose()?
        {
            Some(IpAddr::V4(address)) => format!("address {}", mac_text(mac_of(address.octets()))),
            Some(IpAddr::V6(_)) | None => String::new(),
        };
        // Both ends are born where they belong: nothing passes through the machine's own namespace.
        netns.ip(&format!(
            "link add {interface} {mac} type veth peer name {port} netns {switches}"
        ))?;
        self.switches.ip(&format!("link set {port} master {switch} up"))?;
        netns.run("ethtool", ["-K", interface, "tx", "off"])?;
        netns.ip(&format!("link set {interface} up"))?;
        for address in addresses {
            netns.ip(&format!("address add {address} dev {interface}"))?;
        }
        Ok(())
    }

    /// Attaches a pass-everything XDP program to the switch's end of a cable, which native XDP on the
    /// host's end needs (see [`crate::xdp_pass`]).
    ///
    /// # Errors
    ///
    /// As [`XdpPass::attach`].
    pub fn attach_xdp_pass(&mut self, host: &str, interface: &str) -> Result<()> {
        self.passes
            .push(XdpPass::attach(&self.switches, &port_name(host, interface))?);
        Ok(())
    }

    /// The namespace of a host.
    ///
    /// # Panics
    ///
    /// When there is no such host: a mistake in the test.
    pub fn host(&self, name: &str) -> &Netns {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("the topology has no host called {name}"))
    }

    /// Names and namespaces of all hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &Netns)> {
        self.hosts.iter().map(|(name, netns)| (name.as_str(), netns))
    }

    /// The namespace of the switches.
    pub fn switches(&self) -> &Netns {
        &self.switches
    }

    /// Plugs a cable into its switch, or pulls it: the host's interface keeps its addresses and loses
    /// its carrier.
    ///
    /// # Errors
    ///
    /// When there is no such cable.
    pub fn set_plugged(&self, host: &str, interface: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.switches
            .ip(&format!("link set {} {state}", port_name(host, interface)))?;
        Ok(())
    }

    /// The MAC address of a host's interface.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn mac(&self, host: &str, interface: &str) -> Result<[u8; 6]> {
        let listed = self.host(host).ip(&format!("-json link show dev {interface}"))?;
        let listed: serde_json::Value =
            serde_json::from_str(&listed).context("reading what `ip -json` wrote")?;
        let text = listed[0]["address"]
            .as_str()
            .context("`ip -json link` shows no address")?;
        parse_mac(text).with_context(|| format!("`{text}` is no MAC address"))
    }

    /// Gives a host's interface another MAC address, as a replaced network card would.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn set_mac(&self, host: &str, interface: &str, mac: [u8; 6]) -> Result<()> {
        self.host(host)
            .ip(&format!("link set {interface} address {}", mac_text(mac)))?;
        Ok(())
    }
}

/// The name of the switch's end of a cable.
pub fn port_name(host: &str, interface: &str) -> String {
    format!("{host}-{interface}")
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_LIMIT {
        bail!("`{name}` cannot be an interface's name: 1 to {NAME_LIMIT} characters");
    }
    Ok(())
}

/// A locally administered address that shows whose it is in a capture.
fn mac_of([a, b, c, d]: [u8; 4]) -> [u8; 6] {
    [0x02, 0x00, a, b, c, d]
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    bytes.try_into().ok()
}

fn parse_address(text: &str) -> Result<IpAddr> {
    let (address, _) = text
        .split_once('/')
        .with_context(|| format!("`{text}` has no prefix length"))?;
    address
        .parse()
        .with_context(|| format!("`{address}` is no IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read_as_written() {
        assert_eq!(
            parse_mac(&mac_text([2, 0, 192, 168, 2, 220])),
            Some([2, 0, 192, 168, 2, 220])
        );
        assert_eq!(parse_mac("02:00:c0:a8:02"), None);
        assert_eq!(parse_mac("02:00:c0:a8:02:xx"), None);
    }

    #[test]
    fn names_keep_to_the_kernels_limit() {
        assert!(check_name("director-eth0").is_ok());
        assert!(check_name("sixteen-letters-").is_err());
        assert!(check_name("").is_err());
    }
}
