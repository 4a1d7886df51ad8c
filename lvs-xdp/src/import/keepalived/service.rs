//! A block `virtual_server`: what it says of its services, and of their real servers.

use std::{cmp::Reverse, net::IpAddr};

use super::{
    super::{Place, Table},
    check::{self, Checked, Defaults},
    text::Directive,
    value::{flag, leave, number, one, words},
};
use crate::api::types::{
    ClientMask, Fallback, ForwardingMethod, Persistence, Protocol, Scheduler, SchedulerFlag, ServiceKey,
    ServiceSpec, Tunnel, TunnelChecksum,
};

/// Seconds of `persistence_timeout` without a value.
const DEFAULT_PERSISTENCE: u32 = 360;

/// Why nothing of network address translation is taken over.
const NO_NAT: &str = "real servers answer their clients directly here: give them the virtual address (`lvs-xdp \
                      realserver setup`) and use DR, or TUN for those on other segments";

/// What a block says; what it says to nobody's use is named already.
pub(super) struct VirtualServer {
    pub(super) protocol: Option<Protocol>,
    pub(super) servers: Vec<RealServer>,
    is_ipv6: Option<bool>,
    scheduler: Scheduler,
    flags: Vec<SchedulerFlag>,
    one_packet: bool,
    persistence: Option<Persistence>,
    quorum: Option<(Place, u32)>,
    sorry: Option<Sorry>,
}

/// A real server of it.
pub(super) struct RealServer {
    pub(super) place: Place,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// `None` where there is no such method here.
    pub(super) method: Option<ForwardingMethod>,
    pub(super) weight: u32,
    pub(super) upper_threshold: u32,
    pub(super) lower_threshold: u32,
    pub(super) checked: Option<Checked>,
}

/// The server that takes over below the quorum.
struct Sorry {
    place: Place,
    address: IpAddr,
    port: u16,
    method: Option<ForwardingMethod>,
}

/// How a block's servers are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// keepalived's own default.
    Unsaid,
    Nat,
    Here(ForwardingMethod),
}

impl Kind {
    fn method(self) -> Option<ForwardingMethod> {
        match self {
            Self::Here(method) => Some(method),
            Self::Unsaid | Self::Nat => None,
        }
    }
}

impl VirtualServer {
    /// Takes a block apart.
    pub(super) fn read(directive: &Directive, table: &mut Table) -> Self {
        let mut block = Self {
            protocol: None,
            servers: Vec::new(),
            is_ipv6: None,
            scheduler: Scheduler::default(),
            flags: Vec::new(),
            one_packet: false,
            persistence: None,
            quorum: None,
            sorry: None,
        };
        // What holds for real servers may stand behind them.
        let mut defaults = Defaults::default();
        let (mut kind, mut weight, mut sorry_kind) = (Kind::Unsaid, 1, None);
        for item in directive.inside() {
            match item.name() {
                "real_server" => {}
                "lb_kind" | "lvs_method" => kind = method(item, table).unwrap_or(kind),
                "sorry_server_lvs_method" => sorry_kind = method(item, table).or(sorry_kind),
                "weight" => weight = number(item, table).unwrap_or(weight),
                _ => {
                    if !defaults.take(item, table) {
                        block.take(item, table);
                    }
                }
            }
        }
        if let Some(sorry) = &mut block.sorry {
            sorry.method = sorry_kind.unwrap_or(kind).method();
            if sorry.method.is_none() {
                table.note(&sorry.place, format!("sorry_server: not taken over: {NO_NAT}"));
                block.sorry = None;
            }
        }
        for item in directive
            .inside()
            .iter()
            .filter(|item| item.name() == "real_server")
        {
            block
                .servers
                .extend(RealServer::read(item, &defaults, kind, weight, table));
        }
        block
    }

    fn take(&mut self, item: &Directive, table: &mut Table) {
        match item.name() {
            "ip_family" => {
                let family = |word: &str| match word {
                    "inet" => Some(false),
                    "inet6" => Some(true),
                    _ => None,
                };
                self.is_ipv6 = one(item, "inet or inet6", family, table).or(self.is_ipv6);
            }
            "lb_algo" | "lvs_sched" => {
                let known = |word: &str| word.parse().ok();
                let found = one(item, "a scheduler of IPVS (wlc is used)", known, table);
                self.scheduler = found.unwrap_or_default();
            }
            "flag-1" | "sh-fallback" | "mh-fallback" => self.flag(SchedulerFlag::Fallback, item, table),
            "flag-2" | "sh-port" | "mh-port" => self.flag(SchedulerFlag::Port, item, table),
            "flag-3" => self.flag(SchedulerFlag::Third, item, table),
            "ops" => self.one_packet = flag(item, table).unwrap_or(false),
            "persistence_timeout" => self.persist(item, table),
            "persistence_granularity" => {
                let mask = one(
                    item,
                    "a netmask or a prefix length",
                    |word| word.parse().ok(),
                    table,
                );
                if let Some(mask) = mask {
                    let timeout = self
                        .persistence
                        .map_or(DEFAULT_PERSISTENCE, |known| known.timeout);
                    let mask: Option<ClientMask> = Some(mask);
                    self.persistence = Some(Persistence { timeout, mask });
                }
            }
            "protocol" => {
                let known = |word: &str| word.parse().ok();
                self.protocol = one(item, "TCP, UDP or SCTP", known, table).or(self.protocol);
            }
            "quorum" => {
                let quorum: Option<u32> = number(item, table);
                self.quorum = quorum.map(|quorum| (item.place.clone(), quorum.max(1)));
            }
            "sorry_server" => match address(item) {
                Some((address, port)) => {
                    self.sorry = Some(Sorry {
                        place: item.place.clone(),
                        address,
                        port,
                        method: None,
                    });
                }
                None => leave(item, "it takes an address and a port", table),
            },
            name => leave(item, why_not(name), table),
        }
    }

    fn flag(&mut self, scheduler_flag: SchedulerFlag, item: &Directive, table: &mut Table) {
        if flag(item, table) == Some(true) {
            self.flags.push(scheduler_flag);
        }
    }

    fn persist(&mut self, item: &Directive, table: &mut Table) {
        let timeout = match words(item, table) {
            Some([]) => Some(DEFAULT_PERSISTENCE),
            Some(_) => number(item, table),
            None => None,
        };
        if let Some(timeout) = timeout {
            let mask = self.persistence.and_then(|known| known.mask);
            self.persistence = Some(Persistence { timeout, mask });
        }
    }

    /// Whether the service of a mark is for IPv6: as said, or as its servers are, tunnelled ones last.
    pub(super) fn is_ipv6(&self) -> bool {
        let first = self
            .servers
            .iter()
            .min_by_key(|server| Reverse(server.method == Some(ForwardingMethod::Dr)));
        self.is_ipv6
            .unwrap_or_else(|| first.is_some_and(|server| server.address.is_ipv6()))
    }

    /// The service without its check and its fallback.
    pub(super) fn spec(&self, key: ServiceKey) -> ServiceSpec {
        ServiceSpec {
            flags: self.flags.clone(),
            persistence: self.persistence,
            one_packet: self.one_packet,
            ..ServiceSpec::new(key, self.scheduler)
        }
    }

    /// The fallback of a service.
    pub(super) fn fallback(&self, key: ServiceKey, table: &mut Table) -> Option<Fallback> {
        let sorry = self.sorry.as_ref()?;
        if !matches!(key, ServiceKey::Mark { .. }) && sorry.port != key.port() {
            table.note(
                &sorry.place,
                format!(
                    "sorry_server {} of service {key}: its port {} is not taken over: packets arrive at the port that \
                     the client used",
                    sorry.address, sorry.port
                ),
            );
        }
        Some(Fallback {
            address: sorry.address,
            method: sorry.method?,
        })
    }

    /// The quorum: keepalived counts weights, here real servers are counted.
    pub(super) fn quorum(&self, has_fallback: bool, table: &mut Table) -> u32 {
        let Some((place, wanted)) = &self.quorum else {
            return 1;
        };
        if *wanted == 1 {
            return 1;
        }
        let mut weights = self.servers.iter().map(|server| server.weight);
        let first = weights.next().unwrap_or(1);
        if !has_fallback {
            table.note(
                place,
                format!("quorum {wanted}: not taken over: without a sorry_server nothing follows from it"),
            );
            1
        } else if first == 0 || weights.any(|weight| weight != first) {
            table.note(
                place,
                format!(
                    "quorum {wanted}: not taken over: here it is a number of real servers, not of weights, and their \
                     weights differ"
                ),
            );
            1
        } else {
            wanted.div_ceil(first)
        }
    }
}

impl RealServer {
    fn read(
        directive: &Directive,
        defaults: &Defaults,
        kind: Kind,
        weight: u32,
        table: &mut Table,
    ) -> Option<Self> {
        let Some((address, port)) = address(directive) else {
            leave(directive, "it takes an address and a port", table);
            return None;
        };
        let (mut kind, mut defaults) = (kind, defaults.clone());
        let mut server = Self {
            place: directive.place.clone(),
            address,
            port,
            method: None,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            checked: None,
        };
        let mut checks = Vec::new();
        for item in directive.inside() {
            match item.name() {
                "weight" => server.weight = number(item, table).unwrap_or(server.weight),
                "lb_kind" | "lvs_method" => kind = method(item, table).unwrap_or(kind),
                "uthreshold" => server.upper_threshold = number(item, table).unwrap_or(0),
                "lthreshold" => server.lower_threshold = number(item, table).unwrap_or(0),
                name if check::is_check(name) => checks.push(item),
                name => {
                    if !defaults.take(item, table) {
                        leave(item, why_not(name), table);
                    }
                }
            }
        }
        server.method = kind.method();
        if server.method.is_none() {
            let unsaid = if kind == Kind::Unsaid {
                " (no lvs_method is NAT)"
            } else {
                ""
            };
            leave(directive, &format!("{NO_NAT}{unsaid}"), table);
            return None;
        }
        for item in checks {
            if server.checked.is_some() {
                leave(item, "a real server has one check, the first of these", table);
            } else {
                server.checked = check::read(item, &defaults, table);
            }
        }
        Some(server)
    }
}

/// The address and port behind a directive's name.
fn address(directive: &Directive) -> Option<(IpAddr, u16)> {
    let words: Vec<_> = directive.words.iter().map(String::as_str).collect();
    match words[1..] {
        [address] => Some((address.parse().ok()?, 0)),
        [address, port] => Some((address.parse().ok()?, port.parse().ok()?)),
        _ => None,
    }
}

/// `NAT`, `DR`, or `TUN [type ipip|gue port NUMBER|gre] [nocsum|csum|remcsum]`.
fn method(directive: &Directive, table: &mut Table) -> Option<Kind> {
    let words: Vec<_> = words(directive, table)?.iter().map(String::as_str).collect();
    let gue = |port: &str, checksum| {
        let port = port.parse().ok()?;
        Some(Tunnel::Gue { port, checksum })
    };
    let tunnel = match words[..] {
        ["NAT"] => {
            leave(directive, NO_NAT, table);
            return Some(Kind::Nat);
        }
        ["DR"] => return Some(Kind::Here(ForwardingMethod::Dr)),
        ["TUN"] | ["TUN", "type", "ipip"] => Some(Tunnel::Ipip),
        ["TUN", "type", "gue", "port", port] | ["TUN", "type", "gue", "port", port, "nocsum"] => {
            gue(port, TunnelChecksum::None)
        }
        ["TUN", "type", "gue", "port", port, "csum"] => gue(port, TunnelChecksum::On),
        ["TUN", "type", "gue", "port", port, "remcsum"] => gue(port, TunnelChecksum::Remote),
        ["TUN", "type", "gre"] | ["TUN", "type", "gre", "nocsum"] => Some(Tunnel::Gre { checksum: false }),
        ["TUN", "type", "gre", "csum"] => Some(Tunnel::Gre { checksum: true }),
        _ => None,
    };
    if tunnel.is_none() {
        leave(directive, "it takes DR, or TUN with the tunnel's type", table);
    }
    tunnel.map(|tunnel| Kind::Here(ForwardingMethod::Tunnel(tunnel)))
}

/// Why a directive of a virtual server or of a real server is not taken over.
fn why_not(name: &str) -> &'static str {
    match name {
        "persistence_engine" => "there are no persistence engines here",
        "ha_suspend" => "checks do not wait for an address",
        "hysteresis" => "a quorum has none here; `rise` and `fall` of the check keep it from flapping",
        "quorum_up" | "quorum_down" | "notify_up" | "notify_down" => {
            "no programs are run at a change: `lvs-xdp checks` and the agent's log tell of it"
        }
        "smtp_alert" => "no mail is sent: the agent's log tells of it",
        "omega" => "an agent that ends runs nothing: the program goes on forwarding",
        "sorry_server_inhibit" => "the fallback is in the table when it is needed, and not else",
        "hashed" => "IPVS itself has no use for it",
        _ => "there is no such thing here",
    }
}
