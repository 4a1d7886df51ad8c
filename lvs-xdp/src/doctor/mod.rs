//! `lvs-xdp doctor`: what is wrong with a director, its segment and its real servers, and what mends it.
//!
//! It asks the agent what is configured and known, and the wire what is true: who answers for each virtual address,
//! and whether each real server takes packets for it. It changes nothing.

mod finding;
mod host;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex, sys::socket::LinkAddr};

pub use self::finding::{Finding, Level, Report};
use self::wire::{Place, Question, Reply, Wire};
use crate::{
    api::types::{Protocol, Server, ServerState, Service, ServiceKey, Status, VipState, VipStatus},
    dataplane::mac_text,
    neighbour::{self, Mac},
    realserver::host_prefix,
};

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Questions at a time: their answers have to fit into the socket's buffer.
const AT_ONCE: usize = 512;

/// Looks at everything.
///
/// # Errors
///
/// Without root's rights, or when the kernel does not say what interfaces there are.
pub fn examine(status: &Status, services: &[Service]) -> anyhow::Result<Report> {
    let wire = Wire::open()?;
    let own = Own::read()?;
    let mut findings = host::host(status, services);
    findings.extend(status.interfaces.iter().flat_map(host::interface));
    findings.extend(vips(&wire, &own, status, services)?);
    findings.extend(servers(&wire, &own, status, services)?);
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

/// What came back from a real server for one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replies {
    /// At the virtual address and port; `None` where that cannot be told (UDP, SCTP).
    vip: Option<Reply>,
    /// To an echo request to the virtual address.
    vip_echo: Reply,
    /// At the real server's own address and port.
    rip: Option<Reply>,
    /// To an echo request to its own address.
    rip_echo: Reply,
}

/// Every real server of every service.
fn servers(wire: &Wire, own: &Own, status: &Status, services: &[Service]) -> anyhow::Result<Vec<Finding>> {
    let vips: BTreeSet<IpAddr> = status.vips.iter().map(|vip| vip.address).collect();
    let mut findings = Vec::new();
    let mut asked = Vec::new();
    for service in services {
        if service.servers.is_empty() {
            findings.push(
                Finding::new(
                    Level::Warning,
                    "service-without-server",
                    &service.spec.key.to_string(),
                    "it has no real server".to_owned(),
                )
                .because("its clients are refused")
                .mend("lvs-xdp server add"),
            );
        }
        for server in &service.servers {
            match questions(own, service, server, &vips) {
                Some(questions) => asked.push((service, server, questions)),
                None => findings.extend(way(service, server)),
            }
        }
    }
    let questions: Vec<Question> = asked.iter().flat_map(|(_, _, questions)| *questions).collect();
    let mut replies = Vec::with_capacity(questions.len());
    for some in questions.chunks(AT_ONCE) {
        let heard = wire
            .ask(some, PATIENCE)
            .context("cannot hear the real servers' answers")?;
        replies.extend(heard);
    }
    for ((service, server, questions), replies) in asked.iter().zip(replies.chunks(QUESTIONS)) {
        let [vip, vip_echo, rip, rip_echo] = *replies else {
            continue;
        };
        let is_told = questions[0].port.is_some();
        let replies = Replies {
            vip: is_told.then_some(vip),
            vip_echo,
            rip: is_told.then_some(rip),
            rip_echo,
        };
        findings.push(diagnosis(service, server, replies));
    }
    Ok(findings)
}

/// Questions to a real server about one service.
const QUESTIONS: usize = 4;

/// What a real server is asked: the virtual address with the port and without, and the same of its own address.
/// `None` where it cannot be asked.
fn questions(
    own: &Own,
    service: &Service,
    server: &Server,
    vips: &BTreeSet<IpAddr>,
) -> Option<[Question; QUESTIONS]> {
    let ServiceKey::Endpoint {
        protocol,
        address,
        port,
        ..
    } = service.spec.key
    else {
        return None;
    };
    let is_direct = server.spec.method.tunnel().is_none() && server.state == ServerState::Ready;
    if !is_direct {
        return None;
    }
    let rip = server.spec.key.address;
    let from = own.place(server.interface.as_deref()?, rip, vips)?;
    let to = mac(server.mac.as_deref()?)?;
    let port = (protocol == Protocol::Tcp && port != 0).then_some(port);
    let about = |address, port| Question {
        from,
        to,
        address,
        port,
    };
    Some([
        about(address, port),
        about(address, None),
        about(rip, port),
        about(rip, None),
    ])
}

fn subject(service: &Service, server: &Server) -> String {
    format!("{} at {}", service.spec.key, server.spec.key.address)
}

/// A real server that cannot be asked about the virtual address: what the agent knows of the way to it.
fn way(service: &Service, server: &Server) -> Option<Finding> {
    let subject = subject(service, server);
    let finding = |level, code, found: &str| Finding::new(level, code, &subject, found.to_owned());
    let address = server.spec.key.address;
    Some(match server.state {
        ServerState::Unreachable => finding(
            Level::Broken,
            "server-unreachable",
            "nobody answers for its address",
        )
        .because("it gets no new connections")
        .mend(format!(
            "see whether it runs and is on this segment: ip neighbour show {address}"
        )),
        ServerState::NotOnLink => finding(
            Level::Broken,
            "server-not-on-link",
            "it is behind a router, or there is no route",
        )
        .because("direct routing reaches only what is on a segment of the director")
        .mend("put it on the director's segment, or use a tunnel: lvs-xdp server edit ... --tunnel ipip"),
        ServerState::Resolving => finding(
            Level::Warning,
            "server-resolving",
            "its MAC address is still being asked for",
        )
        .because("it gets no new connections until it is known")
        .mend("look again in some seconds"),
        ServerState::Local => finding(Level::Ok, "server", "it is the director itself"),
        // Behind a tunnel, or of a mark: the way is known, and more cannot be told from here.
        ServerState::Ready => finding(Level::Ok, "server", "the way to it is known"),
    })
}

/// What the replies of a real server mean.
fn diagnosis(service: &Service, server: &Server, replies: Replies) -> Finding {
    let ServiceKey::Endpoint {
        address: vip, port, ..
    } = service.spec.key
    else {
        return Finding::new(
            Level::Ok,
            "server",
            &subject(service, server),
            "the way to it is known".to_owned(),
        );
    };
    let rip = server.spec.key.address;
    let subject = subject(service, server);
    let finding = |level, code, found: String| Finding::new(level, code, &subject, found);
    let has_vip =
        replies.vip_echo == Reply::Answered || replies.vip.is_some_and(|reply| reply >= Reply::Closed);
    let is_there =
        replies.rip_echo == Reply::Answered || replies.rip.is_some_and(|reply| reply >= Reply::Closed);
    match (replies.vip, replies.rip) {
        (Some(Reply::Answered), _) => finding(Level::Ok, "server", format!("it answers at {vip} port {port}")),
        (Some(Reply::Closed), Some(Reply::Answered)) => {
            finding(Level::Broken, "listens-on-rip-only", format!("it listens on {rip} and not on {vip}"))
                .because("packets arrive with the VIP as their destination, and it resets them")
                .mend(format!("on {rip}: have the server listen on all addresses, or on {vip} port {port}, too"))
        }
        (Some(Reply::Closed), _) => finding(Level::Broken, "port-closed", format!("nobody listens on port {port}"))
            .because("it resets every connection")
            .mend(format!("on {rip}: start the server; ss -ltn 'sport = :{port}' shows who listens")),
        (Some(_), _) if has_vip => {
            finding(Level::Broken, "firewall", format!("it has {vip}, and does not answer on port {port}"))
                .because("a firewall on it refuses, or throws away, what comes for the VIP")
                .mend(format!("on {rip}: let {vip} port {port} in; nft list ruleset shows what does not"))
        }
        (_, _) if has_vip => finding(Level::Ok, "server", format!("it has {vip}")),
        (_, _) if is_there => finding(Level::Broken, "vip-missing", format!("it answers at {rip}, and not for {vip}"))
            .because(
                "the VIP is not on its lo (or its firewall or reverse path filter throws away all that comes for it)",
            )
            .mend(format!("on {rip}: lvs-xdp realserver setup --vip {vip}")),
        (_, _) => finding(Level::Broken, "server-silent", "it has a MAC address, and answers nothing".to_owned())
            .because("its firewall throws everything away, or it hangs")
            .mend(format!("look at {rip} itself")),
    }
}

#[cfg(test)]
mod tests;
