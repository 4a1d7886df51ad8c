//! What is configured: every kind of service and of real server, and how it changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lvs_xdp::{
    api::types::{
        Change, ClientMask, MarkRule, Persistence, Protocol, Removal, Scheduler, SchedulerFlag, ServerSpec,
        ServiceKey, ServiceSettings, ServiceSpec,
    },
    model::Model,
};
use lvs_xdp_common::{
    abi::Tags,
    tunnel::{How, Kind},
};
use lvs_xdp_tests::trial::{add_server, server_key, service_key};

use crate::random::Random;

/// The virtual address of most services.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
/// The same in IPv6.
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 100);
/// A virtual address that the host holds.
pub(crate) const LOCAL_VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 101);
/// An address of nobody.
pub(crate) const NO_VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 102);

/// What is special about a real server: one of each number.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Special {
    /// Nothing.
    No,
    /// Frames to it have these tags.
    Tagged(Tags),
    /// It is reached through a tunnel.
    Tunnel(How),
    /// It is the director.
    Local,
    /// Behind an interface that frames are not redirected to.
    NotAllowed,
    /// Its MAC address is not known.
    Unresolved,
}

const fn tagged(count: usize, outer: u16, inner: u16) -> Special {
    Special::Tagged(Tags {
        count,
        outer,
        inner,
        is_outer_service: count == 2,
        is_inner_service: false,
    })
}

/// The real servers, by number.
pub(crate) const SERVERS: &[Special] = &[
    Special::No,
    Special::No,
    tagged(1, 0x123, 0),
    tagged(0, 0, 0),
    tagged(2, 0x321, 0xfff),
    Special::Tunnel(How::new(Kind::Ip, false, 0, 1500, 16)),
    Special::Tunnel(How::new(Kind::Gue, true, 6080, 1400, 0)),
    Special::Tunnel(How::new(Kind::Gre, true, 0, 1500, 4)),
    Special::Local,
    Special::NotAllowed,
    Special::Unresolved,
];

/// A real server's address, by the family of its service.
pub(crate) fn server(family: IpAddr, number: u32) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from_bits(0x0a09_000b + number).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(VIP6.to_bits() - 89 + u128::from(number)).into(),
    }
}

/// Where the outer packets to a tunnel's end come from.
pub(crate) fn tunnel_source(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => Ipv4Addr::new(10, 9, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// An address of a service's family.
fn family(service: &ServiceKey) -> IpAddr {
    if service.is_ipv6() {
        VIP6.into()
    } else {
        VIP.into()
    }
}

/// The service of a mark.
const MARK: ServiceKey = ServiceKey::Mark { mark: 1, ipv6: false };

/// Rules that give packets marks: for an address without a service of its own, before services that there are,
/// and one, around them, of a mark without a service.
pub(crate) fn rules() -> [MarkRule; 3] {
    let rule = |mark, protocol, addresses: &[IpNet], ports: &[&str]| MarkRule {
        mark,
        protocol,
        addresses: addresses.to_vec(),
        ports: ports.iter().map(|ports| ports.parse().expect("ports")).collect(),
    };
    let [vip, vip6, no_vip] = [IpAddr::from(VIP), VIP6.into(), NO_VIP.into()].map(IpNet::from);
    [
        rule(1, None, &[no_vip], &["80-84", "90"]),
        rule(1, Some(Protocol::Tcp), &[vip, vip6], &["83", "95-97"]),
        rule(2, None, &["10.9.0.0/16".parse().expect("a prefix")], &[]),
    ]
}

/// A service with everything else as IPVS has it by default.
fn service(protocol: Protocol, port: u16, scheduler: Scheduler) -> ServiceSpec {
    ServiceSpec::new(service_key(protocol, VIP, port), scheduler)
}

/// The services: all protocols, persistence of each kind, every setting, and one of each scheduler; over IPv4, over
/// IPv6, and one whose address the host holds.
pub(crate) fn services() -> Vec<ServiceSpec> {
    let mut services = of_ipv4();
    let of_ipv6 = services.clone().into_iter().map(|mut spec| {
        spec.key = match spec.key {
            ServiceKey::Endpoint { protocol, port, .. } => service_key(protocol, VIP6, port),
            ServiceKey::Mark { mark, .. } => ServiceKey::Mark { mark, ipv6: true },
        };
        if let Some(Persistence { mask, .. }) = &mut spec.persistence {
            *mask = mask.map(|_| ClientMask::V6(126));
        }
        spec
    });
    services.extend(of_ipv6.collect::<Vec<_>>());
    services.push(ServiceSpec::new(
        service_key(Protocol::Tcp, LOCAL_VIP, 80),
        Scheduler::Rr,
    ));
    services
}

fn of_ipv4() -> Vec<ServiceSpec> {
    use Protocol::{Sctp, Tcp, Udp};
    let both = || vec![SchedulerFlag::Fallback, SchedulerFlag::Port];
    let flagged = |port, scheduler| ServiceSpec {
        flags: both(),
        ..service(Tcp, port, scheduler)
    };
    let persistent = |service, timeout, mask| ServiceSpec {
        persistence: Some(Persistence { timeout, mask }),
        ..service
    };
    let network = Some(ClientMask::V4(Ipv4Addr::from_bits(0xffff_fffc)));
    let removing = |service, removal| ServiceSpec {
        removal: Some(removal),
        ..service
    };
    let with = |service, settings| ServiceSpec { settings, ..service };
    let set = ServiceSettings::default;
    // Those with a port of their own, in the order of their ports, and then the others.
    let mut services: Vec<_> = (80..)
        .zip(Scheduler::ALL)
        .map(|(port, scheduler)| match scheduler {
            Scheduler::Sh | Scheduler::Mh => flagged(port, scheduler),
            _ => service(Tcp, port, scheduler),
        })
        .collect();
    let others = [
        service(Tcp, 93, Scheduler::Mh),
        persistent(service(Tcp, 94, Scheduler::Wlc), 30, network),
        persistent(
            removing(service(Tcp, 95, Scheduler::Rr), Removal::Reschedule),
            90,
            None,
        ),
        removing(service(Tcp, 96, Scheduler::Lblcr), Removal::Reset),
        with(
            service(Tcp, 97, Scheduler::Wrr),
            ServiceSettings {
                conn_reuse_mode: Some(2),
                sloppy_tcp: Some(1),
                expire_nodest_conn: Some(1),
                ..set()
            },
        ),
        with(
            persistent(service(Tcp, 98, Scheduler::Sh), 20_000, None),
            ServiceSettings {
                expire_quiescent_template: Some(1),
                conn_reuse_mode: Some(0),
                ..set()
            },
        ),
        persistent(service(Tcp, 0, Scheduler::Lc), 60, None),
        persistent(service(Tcp, 21, Scheduler::Rr), 60, None),
        service(Udp, 80, Scheduler::Wrr),
        ServiceSpec {
            stateless: true,
            ..service(Udp, 81, Scheduler::Sh)
        },
        ServiceSpec {
            one_packet: true,
            ..service(Udp, 82, Scheduler::Rr)
        },
        ServiceSpec {
            one_packet: true,
            ..persistent(service(Udp, 83, Scheduler::Sed), 30, None)
        },
        removing(service(Udp, 84, Scheduler::Nq), Removal::Reset),
        service(Sctp, 80, Scheduler::Wlc),
        with(
            removing(service(Sctp, 81, Scheduler::Lblc), Removal::Reset),
            ServiceSettings {
                sloppy_sctp: Some(1),
                ..set()
            },
        ),
        persistent(service(Sctp, 82, Scheduler::Rr), 60, network),
        persistent(ServiceSpec::new(MARK, Scheduler::Wlc), 60, network),
    ];
    services.extend(others);
    services
}

/// Adds a service with its first real servers.
pub(crate) fn add(spec: ServiceSpec) -> Vec<Change> {
    let service = spec.key;
    let mut changes = vec![Change::AddService { service: spec }];
    changes.extend(
        (0u32..)
            .zip([1, 3, 2])
            .map(|(number, weight)| add_server(service, server(family(&service), number), weight)),
    );
    changes
}

/// Another configuration: servers come and go, change their weights and thresholds, and are drained; now and then
/// a service goes, and comes back.
pub(crate) fn change(random: &mut Random, model: &Model) -> Vec<Change> {
    if random.one_in(6) {
        let rule = random.of(&[0, 1, 2]);
        let rule = rules()[rule].clone();
        let is_there = model.marks().contains(&rule);
        return vec![if is_there {
            Change::DeleteMark { rule }
        } else {
            Change::AddMark { rule }
        }];
    }
    let specs = services();
    let spec = &specs[random.index(specs.len())];
    let service: ServiceKey = spec.key;
    let Some(configured) = model.services().get(&service) else {
        return add(spec.clone());
    };
    if random.one_in(40) {
        return vec![Change::DeleteService { service }];
    }
    let number = random.index(SERVERS.len());
    let key = server_key(
        &service,
        server(family(&service), u32::try_from(number).expect("few")),
    );
    let any = random.below(20);
    let weight = random.of(&[0, 0, 1, 1, 2, 3, any, 65_535, 2_147_483_647]);
    let upper_threshold = random.of(&[0, 0, 1, 2, 4, 9]);
    let lower_threshold = random.below(upper_threshold.min(3) + 1);
    let spec = ServerSpec {
        upper_threshold,
        lower_threshold,
        ..ServerSpec::new(key, weight)
    };
    let is_there = configured.servers.iter().any(|spec| spec.key == key);
    vec![match (is_there, random.below(3)) {
        (false, _) => Change::AddServer {
            service,
            server: spec,
            require_on_link: false,
        },
        (true, 0) => Change::DeleteServer { service, server: key },
        (true, _) => Change::EditServer {
            service,
            server: spec,
        },
    }]
}
