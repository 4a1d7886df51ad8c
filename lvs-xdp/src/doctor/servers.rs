//! The real servers: the way to each, and what it answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use anyhow::Context as _;

use super::{
    Own, PATIENCE,
    facts::Facts,
    finding::{Finding, Level},
    mac,
    wire::{Question, Reply, What, Wire},
};
use crate::{
    api::types::{Protocol, Server, ServerState, Service, ServiceKey, Status, Tunnel, TunnelChecksum},
    neighbour::Mac,
};

/// Questions at a time: their answers have to fit into the socket's buffer.
const AT_ONCE: usize = 512;

/// What a real server is asked about one service, or what came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked<T> {
    /// The virtual address and port; `None` where that cannot be asked (SCTP, any port).
    vip: Option<T>,
    /// An echo of the virtual address.
    vip_echo: T,
    /// The real server's own address and port.
    rip: Option<T>,
    /// An echo of its own address.
    rip_echo: T,
    /// An echo of its own address, of the longest packet that the director sends there. Once for each address.
    long_echo: Option<T>,
    /// An echo of the virtual address to an address behind a router, where the director has one. Once for each address.
    far_echo: Option<T>,
}

impl<T: Copy> Asked<T> {
    fn all(&self) -> impl Iterator<Item = T> {
        let Self {
            vip,
            vip_echo,
            rip,
            rip_echo,
            long_echo,
            far_echo,
        } = *self;
        [vip, Some(vip_echo), rip, Some(rip_echo), long_echo, far_echo]
            .into_iter()
            .flatten()
    }

    /// The same of what belongs to each, in the order of [`Self::all`]; `None` where there is too little of it.
    fn answered<U>(&self, answers: &mut impl Iterator<Item = U>) -> Option<Asked<U>> {
        let mut next = |is_asked: bool| {
            if is_asked {
                answers.next().map(Some)
            } else {
                Some(None)
            }
        };
        Some(Asked {
            vip: next(self.vip.is_some())?,
            vip_echo: next(true)??,
            rip: next(self.rip.is_some())?,
            rip_echo: next(true)??,
            long_echo: next(self.long_echo.is_some())?,
            far_echo: next(self.far_echo.is_some())?,
        })
    }
}

/// Every service and every real server of it.
pub(super) fn servers(
    wire: &Wire,
    own: &Own,
    facts: &Facts,
    status: &Status,
    services: &[Service],
) -> anyhow::Result<Vec<Finding>> {
    let vips: BTreeSet<IpAddr> = status.vips.iter().map(|vip| vip.address).collect();
    let mut findings: Vec<Finding> = services.iter().filter_map(service).collect();
    findings.extend(mtus(facts, status, services));
    let mut asked = Vec::new();
    let mut known = BTreeSet::new();
    for service in services {
        for server in &service.servers {
            let is_first = !known.contains(&server.spec.key.address);
            match questions(own, facts, service, server, &vips, is_first) {
                Some(questions) => {
                    known.insert(server.spec.key.address);
                    asked.push((service, server, questions));
                }
                None => findings.push(way(service, server)),
            }
        }
    }
    let questions: Vec<Question> = asked
        .iter()
        .flat_map(|(_, _, questions)| questions.all())
        .collect();
    let mut replies = Vec::with_capacity(questions.len());
    for some in questions.chunks(AT_ONCE) {
        let heard = wire
            .ask(some, PATIENCE)
            .context("cannot hear the real servers' answers")?;
        replies.extend(heard);
    }
    let mut replies = replies.into_iter();
    let mut far = BTreeMap::new();
    for (service, server, questions) in &asked {
        let Some(replies) = questions.answered(&mut replies) else {
            break;
        };
        findings.push(diagnosis(service, server, replies));
        findings.extend(long_way(facts, server, replies));
        if let (Some(question), Some(reply)) = (questions.far_echo, replies.far_echo) {
            let is_near = replies.vip_echo == Reply::Answered;
            far.insert(
                server.spec.key.address,
                (question.from.address, is_near, reply == Reply::Answered),
            );
        }
    }
    findings.extend(far_way(&far));
    Ok(findings)
}

/// A service that has nobody to serve it.
fn service(service: &Service) -> Option<Finding> {
    let subject = service.spec.key.to_string();
    let finding = |level, code, found| Finding::new(level, code, &subject, found);
    let servers = &service.servers;
    if servers.is_empty() {
        return Some(
            finding(
                Level::Warning,
                "service-without-server",
                "it has no real server".to_owned(),
            )
            .because("its clients are refused")
            .mend("lvs-xdp server add"),
        );
    }
    if service.has_fallen_back {
        return Some(
            finding(
                Level::Warning,
                "fallback-in-use",
                "it has fewer usable real servers than its quorum: its fallback takes all new connections"
                    .to_owned(),
            )
            .because("clients get what the fallback has to say")
            .mend("mend its real servers: lvs-xdp checks says what each is checked by, and why it is down"),
        );
    }
    if servers.iter().any(|server| server.effective_weight > 0) {
        return None;
    }
    Some(if servers.iter().all(|server| server.spec.weight == 0) {
        finding(
            Level::Warning,
            "service-without-weight",
            "all its real servers have weight 0".to_owned(),
        )
        .because("new clients are refused; who is connected stays so")
        .mend("lvs-xdp server edit ... --weight 1")
    } else {
        finding(
            Level::Broken,
            "service-down",
            format!("none of its {} real servers gets new connections", servers.len()),
        )
        .because("new clients are refused")
        .mend("mend its real servers: lvs-xdp checks, and what is said of each here")
    })
}

/// Ways to real servers that are narrower than the way of the clients' packets.
fn mtus(facts: &Facts, status: &Status, services: &[Service]) -> Vec<Finding> {
    let mtu = |name: &str| facts.links.named(name).map(|(_, link)| link.mtu);
    let most = status
        .interfaces
        .iter()
        .filter_map(|interface| mtu(&interface.name))
        .max();
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for server in services.iter().flat_map(|service| &service.servers) {
        let (Some(most), Some(interface)) = (most, &server.interface) else {
            continue;
        };
        let Some(mtu) = mtu(interface) else { continue };
        let address = server.spec.key.address;
        let tunnel = server.spec.method.tunnel();
        if !known.insert((address, tunnel)) {
            continue;
        }
        let finding = |level, code, text| Finding::new(level, code, &format!("real server {address}"), text);
        match tunnel {
            None if mtu < most => {
                let text = format!(
                    "{interface} sends packets of up to {mtu} bytes, and clients' come with up to {most}"
                );
                let finding = finding(Level::Warning, "mtu-of-interface", text)
                    .because("longer packets are dropped, and nobody is told: uploads hang")
                    .mend(format!("ip link set dev {interface} mtu {most}"));
                found.push(finding);
            }
            Some(tunnel) if mtu < most + overhead(tunnel, address) => {
                let fits = mtu.saturating_sub(overhead(tunnel, address));
                let text = format!(
                    "packets of more than {fits} bytes do not fit into its tunnel over {interface} (MTU {mtu})"
                );
                let finding = finding(Level::Note, "mtu-of-tunnel", text)
                    .because("clients are told by ICMP, and send shorter ones; where ICMP is filtered, uploads hang")
                    .mend(format!(
                        "ip link set dev {interface} mtu {}, where the way there carries that; or have the real server \
                         announce a smaller MSS: ip route change ... advmss {}",
                        most + overhead(tunnel, address),
                        fits.saturating_sub(40)
                    ));
                found.push(finding);
            }
            None | Some(_) => {}
        }
    }
    found
}

/// Bytes that a tunnel puts before a packet.
fn overhead(tunnel: Tunnel, end: IpAddr) -> u32 {
    let outer = if end.is_ipv4() { 20 } else { 40 };
    let between = match tunnel {
        Tunnel::Ipip => 0,
        Tunnel::Gue {
            checksum: TunnelChecksum::Remote,
            ..
        } => 8 + 4 + 8,
        Tunnel::Gue { .. } => 8 + 4,
        Tunnel::Gre { checksum: true } => 8,
        Tunnel::Gre { checksum: false } => 4,
    };
    outer + between
}

/// What a real server is asked; `None` where it cannot be asked.
fn questions(
    own: &Own,
    facts: &Facts,
    service: &Service,
    server: &Server,
    vips: &BTreeSet<IpAddr>,
    is_first: bool,
) -> Option<Asked<Question>> {
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
    let to: Mac = mac(server.mac.as_deref()?)?;
    let what = match protocol {
        _ if port == 0 => None,
        Protocol::Tcp => Some(What::Tcp(port)),
        Protocol::Udp => Some(What::Udp(port)),
        Protocol::Sctp => None,
    };
    let about = |address, what| Question {
        from,
        to,
        address,
        what,
    };
    let mtu = facts
        .links
        .get(from.if_index)
        .map(|link| link.mtu)
        .filter(|_| is_first);
    let far = own.far(from, rip, vips).filter(|_| is_first);
    Some(Asked {
        vip: what.map(|what| about(address, what)),
        vip_echo: about(address, What::Echo),
        rip: what.map(|what| about(rip, what)),
        rip_echo: about(rip, What::Echo),
        long_echo: mtu.map(|mtu| about(rip, What::LongEcho(mtu))),
        far_echo: far.map(|from| Question {
            from,
            ..about(address, What::Echo)
        }),
    })
}

fn subject(service: &Service, server: &Server) -> String {
    format!("{} at {}", service.spec.key, server.spec.key.address)
}

/// A real server that cannot be asked about the virtual address: what the agent knows of the way to it.
fn way(service: &Service, server: &Server) -> Finding {
    let subject = subject(service, server);
    let finding = |level, code, found: &str| Finding::new(level, code, &subject, found.to_owned());
    let address = server.spec.key.address;
    match server.state {
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
    }
}

/// What the replies of a real server mean.
fn diagnosis(service: &Service, server: &Server, replies: Asked<Reply>) -> Finding {
    let ServiceKey::Endpoint {
        protocol,
        address: vip,
        port,
        ..
    } = service.spec.key
    else {
        return way(service, server);
    };
    let rip = server.spec.key.address;
    let subject = subject(service, server);
    let finding = |level, code, found: String| Finding::new(level, code, &subject, found);
    let has_vip =
        replies.vip_echo == Reply::Answered || replies.vip.is_some_and(|reply| reply >= Reply::Closed);
    let is_there =
        replies.rip_echo == Reply::Answered || replies.rip.is_some_and(|reply| reply >= Reply::Closed);
    let (kind, resets) = if protocol == Protocol::Udp {
        ('u', "it refuses every packet")
    } else {
        ('t', "it resets every connection")
    };
    match (replies.vip, replies.rip) {
        (Some(Reply::Answered), _) => finding(Level::Ok, "server", format!("it answers at {vip} port {port}")),
        (Some(Reply::Closed), Some(Reply::Answered)) => {
            finding(Level::Broken, "listens-on-rip-only", format!("it listens on {rip} and not on {vip}"))
                .because("packets arrive with the VIP as their destination, and it refuses them")
                .mend(format!("on {rip}: have the server listen on all addresses, or on {vip} port {port}, too"))
        }
        (Some(Reply::Closed), _) => finding(Level::Broken, "port-closed", format!("nobody listens on port {port}"))
            .because(resets)
            .mend(format!("on {rip}: start the server; ss -l{kind}n 'sport = :{port}' shows who listens")),
        // What came is no question of that protocol, and silence is an answer.
        (Some(Reply::Silence), _) if has_vip && protocol == Protocol::Udp => finding(
            Level::Ok,
            "server",
            format!("it has {vip}, and no answer from UDP port {port}: whether somebody listens cannot be told"),
        ),
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
            .mend(format!(
                "on {rip}: lvs-xdp realserver setup --vip {vip}; lvs-xdp realserver check says what is missing"
            )),
        (_, _) => finding(Level::Broken, "server-silent", "it has a MAC address, and answers nothing".to_owned())
            .because("its firewall throws everything away, or it hangs")
            .mend(format!("look at {rip} itself")),
    }
}

/// Whether the longest packets get through to a real server.
fn long_way(facts: &Facts, server: &Server, replies: Asked<Reply>) -> Option<Finding> {
    let address = server.spec.key.address;
    let interface = server.interface.as_deref()?;
    let (_, link) = facts.links.named(interface)?;
    let finding = |level, found| Finding::new(level, "mtu-of-way", &format!("real server {address}"), found);
    match (replies.rip_echo, replies.long_echo?) {
        (Reply::Answered, Reply::Answered) => {
            let found = format!("packets of {} bytes reach it", link.mtu);
            Some(finding(Level::Ok, found))
        }
        (Reply::Answered, _) => Some(
            finding(
                Level::Warning,
                format!("it answers short packets, and none of {} bytes, the MTU of {interface}", link.mtu),
            )
            .because("its card, or a switch on the way, has a smaller MTU: uploads hang")
            .mend(format!(
                "on {address}: ip link show, and give its card the MTU {}; or the director a smaller one: ip link set dev \
                 {interface} mtu ...",
                link.mtu
            )),
        ),
        // That it answers no echoes is no fault.
        _ => None,
    }
}

/// Which real servers answer packets that come from behind a router, as clients' do: from where each was asked, and
/// whether it has answered what is near and what is far.
fn far_way(asked: &BTreeMap<IpAddr, (IpAddr, bool, bool)>) -> Vec<Finding> {
    let is_answered = asked.values().any(|(_, _, is_far)| *is_far);
    let found = asked.iter().filter(|(_, (_, is_near, _))| *is_near);
    let found = found.map(|(address, (from, _, is_far))| {
        let finding = |level, found| Finding::new(level, "way-back", &format!("real server {address}"), found);
        if *is_far {
            return finding(Level::Ok, format!("it answers {from}, which is not on its segment"));
        }
        let silent = format!("it answers for the VIP on its segment, and not {from}, which is elsewhere");
        let found = if is_answered {
            finding(Level::Warning, format!("{silent}; other real servers do"))
        } else {
            // There may be no way to that address, which no client has.
            finding(Level::Note, silent)
        };
        found
            .because(
                "clients are elsewhere, too: its reverse path filter takes their packets for martians, or it has no \
                 route back",
            )
            .mend(format!(
                "on {address}: ip route get {from}; sysctl -a --pattern rp_filter (2 takes packets whose way back is another one)"
            ))
    });
    found.collect()
}

#[cfg(test)]
mod tests;
