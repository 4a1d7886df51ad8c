//! The network of the record: one segment with a client, the director and six real servers.
//!
//! ```text
//!  client  10.9.0.2, and every address of 10.9.64.0/18 ─┬─ director  10.9.0.1, VIPs on lo
//!                                                       ├─ r1  10.9.0.11, VIPs on lo
//!                                                       ├─ ...
//!                                                       └─ r6  10.9.0.16, VIPs on lo
//! ```

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{netns::Netns, topology::Topology};

use crate::{
    record::{Scenario, Transport, services},
    servers::Servers,
};

const SWITCH: &str = "segment";
const PREFIX_LENGTH: u8 = 16;
/// Where the record's clients are.
const CLIENTS: &str = "10.9.64.0/18";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const VIPS: std::ops::RangeInclusive<u8> = 100..=107;
const REAL_SERVERS: std::ops::RangeInclusive<u8> = 1..=6;

/// The hosts, with servers on the real servers; all is gone when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    // Its sockets keep the hosts' namespaces alive: it goes first.
    servers: Servers,
    topology: Topology,
}

impl Network {
    /// Builds the hosts, prepares the real servers with `binary`, and serves all that the clients of
    /// `scenarios` ask for.
    pub(crate) fn build(binary: &Path, scenarios: &[Scenario]) -> Result<Self> {
        let mut topology = Topology::new()?;
        topology.add_switch(SWITCH)?;
        add_host(&mut topology, "client", CLIENT)?;
        topology
            .host("client")
            .ip(&format!("route add local {CLIENTS} dev lo"))?;

        add_host(&mut topology, "director", DIRECTOR)?;
        for vip in vips() {
            topology
                .host("director")
                .ip(&format!("address add {vip}/32 dev lo"))?;
        }
        topology.attach_xdp_pass("director", "eth0")?;

        let mut setup = vec![String::from("realserver"), String::from("setup")];
        setup.extend(vips().flat_map(|vip| [String::from("--vip"), vip.to_string()]));
        let names: Vec<_> = REAL_SERVERS.map(|number| format!("r{number}")).collect();
        for (name, number) in names.iter().zip(REAL_SERVERS) {
            add_host(&mut topology, name, Ipv4Addr::new(10, 9, 0, 10 + number))?;
            let host = topology.host(name);
            // One neighbour for all clients.
            host.ip(&format!("route add {CLIENTS} via {CLIENT}"))?;
            host.run(binary, &setup)
                .with_context(|| format!("preparing {name}"))?;
        }

        let servers = Servers::start(
            names.iter().map(|name| (name.as_str(), topology.host(name))),
            &services(scenarios, Transport::Tcp),
            &services(scenarios, Transport::Udp),
        )?;
        Ok(Self { servers, topology })
    }

    pub(crate) fn client(&self) -> &Netns {
        self.topology.host("client")
    }

    pub(crate) fn director(&self) -> &Netns {
        self.topology.host("director")
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }
}

fn vips() -> impl Iterator<Item = Ipv4Addr> {
    VIPS.map(|last| Ipv4Addr::new(10, 9, 0, last))
}

fn add_host(topology: &mut Topology, name: &str, address: Ipv4Addr) -> Result<()> {
    topology.add_host(name)?;
    topology.connect(name, "eth0", SWITCH, &[&format!("{address}/{PREFIX_LENGTH}")])
}
