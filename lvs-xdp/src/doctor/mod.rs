//! `lvs-xdp doctor`: what is wrong with a director, its segment and its real servers, and what mends it.
//!
//! It asks the agent what is configured and known, the host what it is like ([`facts`]), and the wire what is true: who
//! answers for each virtual address, and whether each real server takes packets for it ([`wire`]). What that means is
//! said by `host`, `pins`, `interfaces` and `servers`, which read nothing themselves. It changes nothing.

mod facts;
mod finding;
mod host;
mod interfaces;
mod pins;
mod servers;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex, sys::socket::LinkAddr};

pub use self::finding::{Finding, Level, Report};
use self::{
    facts::{Clock, Facts},
    wire::{Place, Wire},
};
use crate::{
    api::types::{Service, Status, VipState, VipStatus},
    dataplane::mac_text,
    neighbour::{self, Mac},
    realserver::host_prefix,
};

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Looks at everything of a director whose agent answers.
///
/// # Errors
///
/// Without root's rights, or when the kernel does not say what interfaces there are.
pub fn examine(status: &Status, services: &[Service]) -> anyhow::Result<Report> {
    let wire = Wire::open()?;
    let own = Own::read()?;
    let pin_dir = Path::new(&status.pin_dir);
    let facts = Facts::read(Some(status), pin_dir)?;
    // The second time is some seconds later: whoever answers is waited for in between.
    let clock = Clock::read(pin_dir);
    let cpus =
        thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    let mut findings = host::host(&facts);
    findings.extend(host::agent(&facts, status, services));
    findings.extend(pins::pins(&facts, status));
    findings.extend(interfaces::interfaces(&facts, status, cpus));
    findings.extend(vips(&wire, &own, status, services)?);
    findings.extend(servers::servers(&wire, &own, &facts, status, services)?);
    if let (Some(before), Some(after)) = (clock, Clock::read(pin_dir)) {
        findings.push(host::clock(before, after));
    }
    Ok(Report::new(findings))
}

/// Looks at a director whose agent does not answer, as `error` says: what it has left, and what works without it.
///
/// # Errors
///
/// As [`examine`].
pub fn examine_alone(pin_dir: &Path, error: &str) -> anyhow::Result<Report> {
    let facts = Facts::read(None, pin_dir)?;
    let mut findings = host::host(&facts);
    findings.extend(pins::orphans(&facts, error));
    Ok(Report::new(findings))
}

/// This host's interfaces.
struct Own {
    macs: BTreeMap<String, Mac>,
    addresses: Vec<(String, IpNet)>,
}

impl Own {
    fn read() -> anyhow::Result<Self> {
        let (mut macs, mut addresses) = (BTreeMap::new(), Vec::new());
        for entry in getifaddrs().context("cannot read the interfaces")? {
            let Some(address) = entry.address else { continue };
            if let Some(mac) = address.as_link_addr().and_then(LinkAddr::addr) {
                macs.insert(entry.interface_name.clone(), mac);
            }
            let ip = |address: &nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
                let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
            };
            let (Some(address), Some(mask)) = (ip(&address), entry.netmask.as_ref().and_then(ip)) else {
                continue;
            };
            if let Ok(net) = IpNet::with_netmask(address, mask) {
                addresses.push((entry.interface_name, net));
            }
        }
        Ok(Self { macs, addresses })
    }

    /// From where an address behind an interface is asked: from one of its own addresses that is no virtual one, best
    /// from the network that the address is in.
    fn place(&self, interface: &str, asked: IpAddr, vips: &BTreeSet<IpAddr>) -> Option<Place> {
        let fit = self.addresses.iter().filter(|(name, net)| {
            name == interface && net.addr().is_ipv4() == asked.is_ipv4() && !vips.contains(&net.addr())
        });
        let (_, net) = fit.max_by_key(|(_, net)| (net.contains(&asked), net.prefix_len()))?;
        Some(Place {
            if_index: if_nametoindex(interface).ok()?,
            mac: *self.macs.get(interface)?,
            address: net.addr(),
        })
    }

    /// From where an address that is in another network than a real server's is asked: as clients are, it is reached by
    /// way of a router.
    fn far(&self, place: Place, asked: IpAddr, vips: &BTreeSet<IpAddr>) -> Option<Place> {
        let near = self
            .addresses
            .iter()
            .filter(|(_, net)| net.contains(&asked))
            .map(|(_, net)| net.trunc());
        let near: Vec<_> = near.collect();
        let is_far = |net: &IpNet| {
            let address = net.addr();
            let is_fit = address.is_ipv4() == asked.is_ipv4() && !vips.contains(&address);
            // A neighbour's own segment has no router, and an address of one host alone may be known to nobody.
            is_fit
                && !address.is_loopback()
                && !is_link_local(address)
                && net.prefix_len() < net.max_prefix_len()
                && !near.iter().any(|near| near.contains(&address))
        };
        let (_, net) = self.addresses.iter().find(|(_, net)| is_far(net))?;
        Some(Place {
            address: net.addr(),
            ..place
        })
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn mac(text: &str) -> Option<Mac> {
    let mut octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16));
    let mut mac = Mac::default();
    for place in &mut mac {
        *place = octets.next()?.ok()?;
    }
    octets.next().is_none().then_some(mac)
}

/// Every virtual address: who answers for it.
fn vips(wire: &Wire, own: &Own, status: &Status, services: &[Service]) -> anyhow::Result<Vec<Finding>> {
    let addresses: BTreeSet<IpAddr> = status.vips.iter().map(|vip| vip.address).collect();
    let places: Vec<Place> = status
        .interfaces
        .iter()
        .flat_map(|interface| {
            let sample = |is_v4| addresses.iter().find(move |vip| vip.is_ipv4() == is_v4);
            let samples = [sample(true), sample(false)].into_iter().flatten();
            samples.filter_map(|vip| own.place(&interface.name, *vip, &addresses))
        })
        .collect();
    let claims = wire
        .who_has(&places, &addresses, PATIENCE)
        .context("cannot hear who answers for the virtual addresses")?;
    let known = servers_by_mac(services);
    let nobody = BTreeSet::new();
    let found = status.vips.iter().flat_map(|vip| {
        let others = claims.get(&vip.address).unwrap_or(&nobody);
        let elsewhere = others
            .iter()
            .map(|mac| elsewhere(vip, mac, known.get(mac).copied()));
        elsewhere.chain(own_answer(vip)).collect::<Vec<_>>()
    });
    Ok(found.collect())
}

fn servers_by_mac(services: &[Service]) -> BTreeMap<Mac, IpAddr> {
    let servers = services.iter().flat_map(|service| &service.servers);
    let known = servers.filter_map(|server| Some((mac(server.mac.as_deref()?)?, server.spec.key.address)));
    known.collect()
}

/// Somebody else who says that a virtual address is at his MAC address.
fn elsewhere(vip: &VipStatus, mac: &Mac, server: Option<IpAddr>) -> Finding {
    let address = vip.address;
    let protocol = neighbour::protocol(address);
    let finding = |found| Finding::new(Level::Broken, "vip-elsewhere", &address.to_string(), found);
    match server {
        Some(server) => finding(format!("real server {server} ({}) answers {protocol} for it", mac_text(*mac)))
            .because(
                "whoever hears that answer sends straight to this real server, past the director: the classic mistake \
                 of direct routing",
            )
            .mend(format!(
                "on {server}: lvs-xdp realserver setup --vip {address} (net.ipv4.conf.all.arp_ignore=1 and \
                 net.ipv4.conf.all.arp_announce=2, and the VIP on lo)"
            )),
        None => finding(format!("another host ({}) answers {protocol} for it", mac_text(*mac)))
            .because("clients reach that host and not the director; two directors of one segment must not have one VIP at a time")
            .mend(format!("find the host of {} and take {address} from it", mac_text(*mac))),
    }
}

/// Whether the director answers for a virtual address.
fn own_answer(vip: &VipStatus) -> Vec<Finding> {
    let subject = vip.address.to_string();
    let finding = |level, code, found: &str| Finding::new(level, code, &subject, found.to_owned());
    let (address, length) = (vip.address, host_prefix(vip.address));
    match vip.state {
        VipState::Announced => vec![finding(Level::Ok, "vip-answer", "the program answers for it")],
        VipState::Host => vec![
            finding(Level::Ok, "vip-answer", "this host answers for it"),
            finding(
                Level::Note,
                "vip-local-client",
                "connections from this host itself do not pass the program",
            )
            .because("a packet to an address of the host never reaches a network card: test from another host"),
        ],
        VipState::Withdrawn => vec![
            finding(Level::Warning, "vip-withdrawn", "nobody answers for it: no real server is usable")
                .because("the agent runs with --withdraw")
                .mend("mend its real servers, see below"),
        ],
        VipState::Silent => vec![
            finding(Level::Broken, "vip-unanswered", "nobody here answers for it")
                .because("no host on the segment can find the director")
                .mend(format!(
                    "ip address add {address}/{length} dev IF, or start the agent with --announce; none of both is \
                     needed where a router sends the VIP here by a route"
                )),
        ],
    }
}

#[cfg(test)]
mod tests;
