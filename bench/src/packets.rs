//! What a packet costs: the rows and columns of the table.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lvs_xdp::{
    api::types::{Change, Protocol, Scheduler, ServiceKey, ServiceSpec, Tunnel, TunnelChecksum},
    dataplane::Capacity,
};
use lvs_xdp_common::reason::Reason;
use lvs_xdp_tests::{
    frame::tcp,
    trial::{Director, add_server, add_tunnel_server, service_key},
};

use crate::{
    args::BenchArgs,
    floors::{Floors, Size},
    frames::{OTHER_PORT, PORT, Template, virtual_address},
    measure::{Case, Figure, Stage, Tested},
};

/// Entries of the table of connections: 16 MB of entries, 128 MB of cold rows.
const CONNECTIONS: u32 = 1 << 21;
/// That of the table for 8 M flows.
const MANY_CONNECTIONS: u32 = 1 << 24;
const FLOWS: [u64; 4] = [1, 1 << 10, 1 << 16, 1 << 20];
const MANY_FLOWS: u64 = 1 << 23;
/// More than a table holds: each of their packets is the first of a connection, the table being full of others.
const NEW_FLOWS: u64 = 1 << 24;
/// As others are measured: 64 services, of 16 out of 100 real servers each.
pub(crate) const SERVICES: u32 = 64;
pub(crate) const SERVERS_EACH: u32 = 16;
pub(crate) const SERVERS: u32 = 100;
/// Services of the director with many.
const MANY_SERVICES: u32 = 1 << 16;

/// What was measured.
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    pub(crate) sizes: Vec<(&'static str, Size)>,
}

/// The address of a real server, by its number.
pub(crate) fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + number)
}

/// The same real server's other address.
fn server6(number: u32) -> Ipv6Addr {
    server(number).to_ipv6_compatible()
}

/// The change that adds a real server to a service, by direct routing or through a tunnel.
fn server_added(key: ServiceKey, number: u32, group: &Group) -> Change {
    match group.tunnel {
        Some(tunnel) => add_tunnel_server(key, server(number), tunnel),
        None if group.ipv6 => add_server(key, server6(number), 1),
        None => add_server(key, server(number), 1),
    }
}

/// A group of services, from the `first`th virtual address on.
struct Group {
    protocol: Protocol,
    ipv6: bool,
    first: u32,
    services: u32,
    servers_each: u32,
    scheduler: Scheduler,
    tunnel: Option<Tunnel>,
    stateless: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            protocol: Protocol::Tcp,
            ipv6: false,
            first: 0,
            services: SERVICES,
            servers_each: SERVERS_EACH,
            scheduler: Scheduler::Rr,
            tunnel: None,
            stateless: false,
        }
    }
}

/// A director with these services.
fn director(connections: u32, groups: &[Group]) -> Result<Director> {
    let destinations: u32 = groups
        .iter()
        .map(|group| group.services * group.servers_each)
        .sum();
    // Room for rings goes by services, and Maglev's takes that of eight.
    let room = |group: &Group| match group.scheduler {
        Scheduler::Mh => 8 * group.services,
        _ => group.services,
    };
    let services: u32 = groups.iter().map(room).sum();
    let mut director = Director::with_capacity(Capacity {
        connections,
        services: services.next_power_of_two().max(64),
        destinations: (destinations + 64).next_power_of_two(),
    })?;
    let most = groups.iter().map(|group| group.servers_each).max();
    for number in 0..SERVERS.max(most.unwrap_or(0)) {
        director.resolve(server(number));
        director.resolve(server6(number));
        director.resolve_tunnel(server(number), 1500);
    }
    let mut changes = Vec::new();
    for group in groups {
        for service in 0..group.services {
            let address = virtual_address(group.first + service, group.ipv6);
            let key = service_key(group.protocol, address, PORT);
            changes.push(Change::AddService {
                service: ServiceSpec {
                    stateless: group.stateless,
                    ..ServiceSpec::new(key, group.scheduler)
                },
            });
            // Services share servers, but no two the same ones.
            let count = SERVERS.max(group.servers_each);
            changes.extend(
                (0..group.servers_each)
                    .map(|number| server_added(key, (number + 7 * service) % count, group)),
            );
        }
    }
    director.change(&changes)?;
    Ok(director)
}

/// Has a director know so many flows: `first` opens them, `next` goes on.
fn open(
    stage: &mut Stage,
    director: usize,
    [first, next]: [&Template; 2],
    flows: u64,
    services: u64,
) -> Result<()> {
    for (template, reason) in [(first, Reason::NewConnection), (next, Reason::Connection)] {
        stage.fill(template, flows, services, &Tested::Director(director, reason))?;
    }
    Ok(())
}

/// Fills and measures the known connections of a director: `first` opens one, `next` is measured.
fn known(
    stage: &mut Stage,
    row: &'static str,
    director: Director,
    [first, next]: [Template; 2],
    flows: &[u64],
) -> Result<usize> {
    let number = stage.add(director)?;
    let all = flows.iter().copied().max().unwrap_or(1);
    let services = u64::from(SERVICES);
    open(stage, number, [&first, &next], all, services)?;
    for &flows in flows {
        stage.measure(Case {
            row,
            flows,
            services,
            template: next.clone(),
            tested: Tested::Director(number, Reason::Connection),
            before: 0,
            makes_room: false,
        });
    }
    Ok(number)
}

fn floors(stage: &mut Stage, names: &[&'static str], flows: &[u64]) -> Result<()> {
    let most = flows.iter().copied().max().unwrap_or(1);
    stage.fill(
        &Template::tcp(PORT, tcp::ACK),
        most,
        SERVICES.into(),
        &Tested::Floor("usual"),
    )?;
    for &row in names {
        for &flows in flows {
            stage.measure(Case {
                row,
                flows,
                services: u64::from(SERVICES),
                template: Template::tcp(PORT, tcp::ACK),
                tested: Tested::Floor(row),
                before: 0,
                makes_room: false,
            });
        }
    }
    Ok(())
}

/// What is asked for.
struct Wanted<'a>(Option<&'a str>);

impl Wanted<'_> {
    fn has(&self, row: &str) -> bool {
        self.0.is_none_or(|text| row.contains(text))
    }
}

/// Measures what `args` ask for.
///
/// # Errors
///
/// When something cannot be loaded, or does not do what its row says.
pub(crate) fn run(args: &BenchArgs) -> Result<Measured> {
    let wanted = Wanted(args.only.as_deref());
    let mut figures = Vec::new();
    let mut sizes = Vec::new();
    for make in [common, many_flows, many_services] {
        if let Some(stage) = make(&wanted, &mut sizes)? {
            figures.extend(stage.rounds(args.rounds)?);
        }
    }
    Ok(Measured { figures, sizes })
}

fn load_floors(connections: u32) -> Result<Floors> {
    Floors::load(connections, SERVICES, Template::tcp(PORT, 0).virtual_address)
}

type Sizes = Vec<(&'static str, Size)>;

/// Every kind of packet.
fn common(wanted: &Wanted<'_>, sizes: &mut Sizes) -> Result<Option<Stage>> {
    let loaded = load_floors(CONNECTIONS)?;
    sizes.extend(
        Floors::NAMES
            .map(|name| Some((name, loaded.size(name)?)))
            .into_iter()
            .flatten(),
    );
    let mut stage = Stage::new(loaded);
    floors(&mut stage, &Floors::NAMES, &FLOWS)?;

    let both = [tcp::SYN, tcp::ACK];
    let row = "TCP, known connection";
    let main = director(CONNECTIONS, &[Group::default()])?;
    sizes.push((
        "director",
        Size::of(&lvs_xdp::dataplane::trial::Trials::open(main.pins())?.info()?)?,
    ));
    let number = known(
        &mut stage,
        row,
        main,
        both.map(|flags| Template::tcp(PORT, flags)),
        &FLOWS,
    )?;
    skewed(&mut stage, wanted, number);
    let mut other = |row, flows, template, reason| {
        if wanted.has(row) {
            stage.measure(Case {
                row,
                flows,
                services: u64::from(SERVICES),
                template,
                tested: Tested::Director(number, reason),
                before: 0,
                makes_room: false,
            });
        }
    };
    other(
        "not for us",
        1,
        Template::tcp(OTHER_PORT, tcp::ACK),
        Reason::NotForUs,
    );
    other(
        "not for us",
        1 << 20,
        Template::tcp(OTHER_PORT, tcp::ACK),
        Reason::NotForUs,
    );
    for flows in FLOWS {
        other("ICMP error", flows, Template::too_long(), Reason::Related);
    }

    let gue = Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::None,
    };
    let ipv4 = |tunnel| Group {
        tunnel,
        ..Group::default()
    };
    let kinds: [(&'static str, Group, [Template; 2]); 6] = [
        (
            "UDP, known connection",
            Group {
                protocol: Protocol::Udp,
                ..Group::default()
            },
            [Template::udp(), Template::udp()],
        ),
        (
            "IPv6 TCP, known connection",
            Group {
                ipv6: true,
                ..Group::default()
            },
            both.map(Template::ipv6),
        ),
        (
            "TCP with a VLAN tag, known",
            ipv4(None),
            both.map(Template::tagged),
        ),
        (
            "TCP into an IPIP tunnel, known",
            ipv4(Some(Tunnel::Ipip)),
            both.map(|flags| Template::tcp(PORT, flags)),
        ),
        (
            "TCP into a GUE tunnel, known",
            ipv4(Some(gue)),
            both.map(|flags| Template::tcp(PORT, flags)),
        ),
        (
            "TCP into a GRE tunnel, known",
            ipv4(Some(Tunnel::Gre { checksum: false })),
            both.map(|flags| Template::tcp(PORT, flags)),
        ),
    ];
    for (row, group, templates) in kinds {
        if wanted.has(row) {
            known(
                &mut stage,
                row,
                director(CONNECTIONS, &[group])?,
                templates,
                &FLOWS,
            )?;
        }
    }
    stateless(&mut stage, wanted)?;
    new_connections(&mut stage, wanted)?;
    Ok(Some(stage))
}

/// What is most of real traffic: packets of known connections, few of which have most of them; and the floor for it.
fn skewed(stage: &mut Stage, wanted: &Wanted<'_>, director: usize) {
    let row = "TCP, known, few have most";
    if !wanted.has(row) {
        return;
    }
    for (row, tested) in [
        ("line, few have most", Tested::Floor("line")),
        (row, Tested::Director(director, Reason::Connection)),
    ] {
        for flows in FLOWS.into_iter().filter(|flows| *flows > 1) {
            stage.measure(Case {
                row,
                flows,
                services: u64::from(SERVICES),
                template: Template::tcp(PORT, tcp::ACK).skewed(),
                tested,
                before: 0,
                makes_room: false,
            });
        }
    }
}

/// Packets of services that keep no connections.
fn stateless(stage: &mut Stage, wanted: &Wanted<'_>) -> Result<()> {
    let rows = [
        ("TCP, stateless service, mh", Scheduler::Mh),
        ("TCP, stateless service, sh", Scheduler::Sh),
    ];
    for (row, scheduler) in rows.into_iter().filter(|(row, _)| wanted.has(row)) {
        let group = Group {
            scheduler,
            stateless: true,
            ..Group::default()
        };
        let number = stage.add(director(CONNECTIONS, &[group])?)?;
        for flows in FLOWS {
            stage.measure(Case {
                row,
                flows,
                services: u64::from(SERVICES),
                template: Template::tcp(PORT, tcp::ACK),
                tested: Tested::Director(number, Reason::Stateless),
                before: 0,
                makes_room: false,
            });
        }
    }
    Ok(())
}

/// The first packets of connections, by scheduler.
fn new_connections(stage: &mut Stage, wanted: &Wanted<'_>) -> Result<()> {
    let rows = [
        ("new connection, rr", Scheduler::Rr, 16),
        ("new connection, mh", Scheduler::Mh, 16),
        ("new connection, sh", Scheduler::Sh, 16),
        ("new connection, wlc, 2 servers", Scheduler::Wlc, 2),
        ("new connection, wlc, 16 servers", Scheduler::Wlc, 16),
        ("new connection, wlc, 256 servers", Scheduler::Wlc, 256),
        ("new connection, wlc, 4096 servers", Scheduler::Wlc, 4096),
    ];
    let first = |number: usize| 0x1_0000 * (1 + number as u32);
    let groups = Vec::from_iter(rows.iter().enumerate().filter(|(_, row)| wanted.has(row.0)).map(
        |(number, &(_, scheduler, servers_each))| Group {
            first: first(number),
            services: 1,
            servers_each,
            scheduler,
            ..Group::default()
        },
    ));
    if !groups.is_empty() {
        let director = stage.add(director(CONNECTIONS, &groups)?)?;
        for (number, (row, ..)) in rows.into_iter().enumerate() {
            if !wanted.has(row) {
                continue;
            }
            let mut template = Template::tcp(PORT, tcp::SYN);
            template.virtual_address += first(number);
            let reason = Reason::NewConnection;
            stage.measure(Case {
                row,
                flows: NEW_FLOWS,
                services: 1,
                template,
                tested: Tested::Director(director, reason),
                // The first one fills the table for all.
                before: if number == 0 { 2 * CONNECTIONS } else { 0 },
                makes_room: false,
            });
        }
    }
    let row = "usual, new connection";
    if wanted.has(row) {
        stage.measure(Case {
            row,
            flows: NEW_FLOWS,
            services: u64::from(SERVICES),
            template: Template::tcp(PORT, tcp::SYN),
            tested: Tested::Floor("usual"),
            before: 2 * CONNECTIONS,
            makes_room: false,
        });
    }
    new_connections_with_room(stage, wanted)?;
    let row = "SYN flood";
    if wanted.has(row) {
        let flooded = Group {
            first: 0x1_0000,
            services: 1,
            ..Group::default()
        };
        let director = director(CONNECTIONS, &[Group::default(), flooded])?;
        let both = [tcp::SYN, tcp::ACK].map(|flags| Template::tcp(PORT, flags));
        let number = known(stage, "TCP, known, under a SYN flood", director, both, &[1 << 20])?;
        let mut template = Template::tcp(PORT, tcp::SYN);
        template.virtual_address += 0x1_0000;
        let tested = Tested::Director(number, Reason::NewConnection);
        stage.measure(Case {
            row,
            flows: NEW_FLOWS,
            services: 1,
            template,
            tested,
            before: CONNECTIONS,
            makes_room: false,
        });
    }
    Ok(())
}

/// The same where half of the table is taken by known connections: as many as it is meant for.
fn new_connections_with_room(stage: &mut Stage, wanted: &Wanted<'_>) -> Result<()> {
    let rows = [
        ("new connection, rr, half full", Scheduler::Rr),
        ("new connection, mh, half full", Scheduler::Mh),
    ];
    let rows = Vec::from_iter((1..).zip(rows).filter(|(_, row)| wanted.has(row.0)));
    let first = |number: u32| 0x1_0000 * number;
    let opened = rows.iter().map(|&(number, (_, scheduler))| Group {
        first: first(number),
        services: 1,
        scheduler,
        ..Group::default()
    });
    let groups = Vec::from_iter([Group::default()].into_iter().chain(opened));
    if rows.is_empty() {
        return Ok(());
    }
    let number = stage.add(director(CONNECTIONS, &groups)?)?;
    let [syn, ack] = [tcp::SYN, tcp::ACK].map(|flags| Template::tcp(PORT, flags));
    open(
        stage,
        number,
        [&syn, &ack],
        u64::from(CONNECTIONS / 2),
        u64::from(SERVICES),
    )?;
    for (group, (row, _)) in rows {
        stage.measure(Case {
            row,
            flows: NEW_FLOWS,
            services: 1,
            template: Template {
                virtual_address: syn.virtual_address + first(group),
                ..syn.clone()
            },
            tested: Tested::Director(number, Reason::NewConnection),
            before: 0,
            makes_room: true,
        });
    }
    Ok(())
}

/// A table for eight million flows.
fn many_flows(wanted: &Wanted<'_>, _: &mut Sizes) -> Result<Option<Stage>> {
    let row = "TCP, known connection";
    if !wanted.has(row) {
        return Ok(None);
    }
    let mut stage = Stage::new(load_floors(MANY_CONNECTIONS)?);
    floors(&mut stage, &Floors::NAMES, &[MANY_FLOWS])?;
    let templates = [tcp::SYN, tcp::ACK].map(|flags| Template::tcp(PORT, flags));
    known(
        &mut stage,
        row,
        director(MANY_CONNECTIONS, &[Group::default()])?,
        templates,
        &[MANY_FLOWS],
    )?;
    Ok(Some(stage))
}

/// One, a thousand, and 64 thousand services with packets.
fn many_services(wanted: &Wanted<'_>, _: &mut Sizes) -> Result<Option<Stage>> {
    let row = "TCP, known, of many services";
    if !wanted.has(row) {
        return Ok(None);
    }
    let mut stage = Stage::new(load_floors(CONNECTIONS)?);
    let group = Group {
        services: MANY_SERVICES,
        servers_each: 2,
        ..Group::default()
    };
    let number = stage.add(director(CONNECTIONS, &[group])?)?;
    let [first, next] = [tcp::SYN, tcp::ACK].map(|flags| Template::tcp(PORT, flags));
    for services in [1, 1 << 10, u64::from(MANY_SERVICES)] {
        // Each number of services has flows of its own: their clients differ.
        let of = |template: &Template| Template {
            client: template.client + (services.ilog2() << 16),
            ..template.clone()
        };
        open(&mut stage, number, [&of(&first), &of(&next)], 1 << 16, services)?;
        for row in ["line", row] {
            stage.measure(Case {
                row,
                flows: 1 << 16,
                services,
                template: of(&next),
                tested: if row == "line" {
                    Tested::Floor(row)
                } else {
                    Tested::Director(number, Reason::Connection)
                },
                before: 0,
                makes_room: false,
            });
        }
    }
    Ok(Some(stage))
}
