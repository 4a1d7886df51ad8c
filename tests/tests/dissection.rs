//! What leaves the director is well-formed in the eyes of tshark: lengths and every checksum.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use etherparse::{PacketBuilder, VlanId};
use lvs_xdp::{
    api::types::{Change, Protocol, Removal, Scheduler, ServiceKey, ServiceSpec},
    dataplane::{compile::Way, rows},
};
use lvs_xdp_common::{
    abi::{Tags, destination_flag, vip_flag},
    maps::Maps as _,
    reason::{Outcome, Reason},
    tunnel::{How, Kind},
};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    dissect::{Dissection, dissect},
    frame::{CLIENT_MAC, DIRECTOR_MAC},
    in_both_modes,
    lab::{Lab, LabConfig, VIP as LAB_VIP},
    load::Load,
    packet::Capture,
    topology::port_name,
    trial::{Director, LOOPBACK, add_server, delete_server, mac_of, server_key, service_key, vip_of, xdp},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 200);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 100);

/// What the service on a port is like.
#[derive(Debug, Clone, Copy)]
enum Port {
    /// Its real server has frames as they come.
    Plain,
    /// Its real server is behind so many tags.
    Tagged(usize),
    /// Its real server is behind a tunnel.
    Tunnel(How),
    /// It has no real server.
    Empty,
    /// Its real server was removed, and clients are told so.
    Removed,
}

/// The services, by port from 80 on.
const PORTS: [Port; 9] = [
    Port::Plain,
    Port::Tagged(0),
    Port::Tagged(1),
    Port::Tagged(2),
    Port::Empty,
    Port::Removed,
    Port::Tunnel(How::new(Kind::Ip, false, 0, 1500, 0)),
    Port::Tunnel(How::new(Kind::Gue, true, 6080, 1500, 0)),
    Port::Tunnel(How::new(Kind::Gre, true, 0, 1500, 0)),
];
const PLAIN: u16 = 80;
const UNTAGGED: u16 = 81;
const TAGGED: u16 = 82;
const DOUBLY_TAGGED: u16 = 83;
const EMPTY: u16 = 84;
const REMOVED: u16 = 85;
const IPIP: u16 = 86;
const GUE: u16 = 87;
const GRE: u16 = 88;

/// Of which protocol it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Tcp,
    Udp,
    /// An echo request.
    Ping,
}

/// What comes in.
#[derive(Debug, Clone, Copy)]
struct Asked {
    is_ipv6: bool,
    tags: usize,
    what: What,
    /// Of an echo request without meaning.
    port: u16,
    data: usize,
}

const SYN: Asked = Asked {
    is_ipv6: false,
    tags: 0,
    what: What::Tcp,
    port: PLAIN,
    data: 0,
};
const SYN6: Asked = Asked { is_ipv6: true, ..SYN };

/// Each of them with what tshark is to find in what leaves.
#[rustfmt::skip]
const CASES: &[(Asked, &str)] = &[
    (SYN, "eth:ethertype:ip:tcp"),
    (SYN6, "eth:ethertype:ipv6:tcp"),
    (Asked { what: What::Udp, data: 100, ..SYN }, "eth:ethertype:ip:udp:data"),
    (Asked { what: What::Udp, data: 100, ..SYN6 }, "eth:ethertype:ipv6:udp:data"),
    (Asked { tags: 1, ..SYN }, "eth:ethertype:vlan:ethertype:ip:tcp"),
    (Asked { tags: 2, ..SYN }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ip:tcp"),
    (Asked { tags: 2, ..SYN6 }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ipv6:tcp"),
    (Asked { tags: 1, port: UNTAGGED, ..SYN }, "eth:ethertype:ip:tcp"),
    (Asked { tags: 2, port: UNTAGGED, ..SYN6 }, "eth:ethertype:ipv6:tcp"),
    (Asked { port: TAGGED, ..SYN }, "eth:ethertype:vlan:ethertype:ip:tcp"),
    (Asked { port: TAGGED, ..SYN6 }, "eth:ethertype:vlan:ethertype:ipv6:tcp"),
    (Asked { port: DOUBLY_TAGGED, ..SYN }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ip:tcp"),
    (Asked { tags: 1, port: DOUBLY_TAGGED, ..SYN6 }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ipv6:tcp"),
    (Asked { port: EMPTY, ..SYN }, "eth:ethertype:ip:icmp:ip:tcp"),
    (Asked { what: What::Udp, data: 500, port: EMPTY, ..SYN }, "eth:ethertype:ip:icmp:ip:udp"),
    (Asked { tags: 1, port: EMPTY, ..SYN }, "eth:ethertype:vlan:ethertype:ip:icmp:ip:tcp"),
    (Asked { tags: 2, port: EMPTY, ..SYN }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ip:icmp:ip:tcp"),
    (Asked { port: REMOVED, ..SYN }, "eth:ethertype:ip:tcp"),
    (Asked { tags: 2, port: REMOVED, ..SYN }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ip:tcp"),
    (Asked { port: EMPTY, ..SYN6 }, "eth:ethertype:ipv6:icmpv6:ipv6:tcp"),
    (Asked { tags: 2, port: EMPTY, ..SYN6 }, "eth:ethertype:ieee8021ad:ethertype:vlan:ethertype:ipv6:icmpv6:ipv6:tcp"),
    (Asked { port: REMOVED, ..SYN6 }, "eth:ethertype:ipv6:tcp"),
    (Asked { what: What::Ping, data: 56, ..SYN }, "eth:ethertype:ip:icmp:data"),
    (Asked { what: What::Ping, data: 1400, tags: 1, ..SYN }, "eth:ethertype:vlan:ethertype:ip:icmp:data"),
    (Asked { what: What::Ping, data: 57, ..SYN6 }, "eth:ethertype:ipv6:icmpv6:data"),
    (Asked { port: IPIP, ..SYN }, "eth:ethertype:ip:ip:tcp"),
    (Asked { port: IPIP, ..SYN6 }, "eth:ethertype:ipv6:ipv6:tcp"),
    (Asked { tags: 1, port: IPIP, ..SYN }, "eth:ethertype:vlan:ethertype:ip:ip:tcp"),
    (Asked { port: GUE, ..SYN }, "eth:ethertype:ip:udp:data"),
    (Asked { port: GUE, ..SYN6 }, "eth:ethertype:ipv6:udp:data"),
    (Asked { port: GRE, ..SYN }, "eth:ethertype:ip:gre:ip:tcp"),
    (Asked { port: GRE, ..SYN6 }, "eth:ethertype:ipv6:gre:ipv6:tcp"),
    (Asked { what: What::Udp, data: 1470, port: IPIP, ..SYN }, "eth:ethertype:ip:icmp:ip:udp"),
    (Asked { what: What::Udp, data: 1450, port: GUE, ..SYN6 }, "eth:ethertype:ipv6:icmpv6:ipv6:udp:data"),
];

impl Asked {
    /// The frame, with right checksums: of TCP a SYN, or what comes after it.
    fn frame(self, is_first: bool) -> Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC);
        let vlan = |id| VlanId::try_new(id).context("a VLAN");
        let (from, to) = (CLIENT.octets(), VIP.octets());
        let (from6, to6) = (CLIENT6.octets(), VIP6.octets());
        let ip = match (self.tags, self.is_ipv6) {
            (0, false) => builder.ipv4(from, to, 63),
            (0, true) => builder.ipv6(from6, to6, 63),
            (1, false) => builder.single_vlan(vlan(5)?).ipv4(from, to, 63),
            (1, true) => builder.single_vlan(vlan(5)?).ipv6(from6, to6, 63),
            (_, false) => builder.double_vlan(vlan(6)?, vlan(7)?).ipv4(from, to, 63),
            (_, true) => builder.double_vlan(vlan(6)?, vlan(7)?).ipv6(from6, to6, 63),
        };
        let data = vec![0x5a; self.data];
        let mut frame = Vec::new();
        match self.what {
            What::Tcp => {
                let tcp = ip.tcp(40_000, self.port, 1000, 64_000);
                let tcp = if is_first { tcp.syn() } else { tcp.ack(2000) };
                tcp.write(&mut frame, &data)?;
            }
            What::Udp => ip.udp(40_000, self.port).write(&mut frame, &data)?,
            What::Ping if self.is_ipv6 => ip.icmpv6_echo_request(7, 1).write(&mut frame, &data)?,
            What::Ping => ip.icmpv4_echo_request(7, 1).write(&mut frame, &data)?,
        }
        Ok(frame)
    }
}

/// The real server of a service.
fn server(service: &ServiceKey) -> IpAddr {
    let host = service.port() - 80 + 210;
    match vip_of(service) {
        IpAddr::V4(_) => Ipv4Addr::new(192, 168, 2, host.to_le_bytes()[0]).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, host).into(),
    }
}

/// A director with all of the services, over both families and protocols.
fn director() -> Result<Director> {
    let mut director = Director::new(1024)?;
    for (port, kind) in (80..).zip(PORTS) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for address in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
                add(&mut director, service_key(protocol, address, port), kind)?;
            }
        }
    }
    let vips = [VIP.into(), VIP6.into()].map(|vip| (vip, vip_flag::USED));
    director.dataplane.set_vips(&BTreeMap::from(vips))?;
    Ok(director)
}

fn add(director: &mut Director, service: ServiceKey, kind: Port) -> Result<()> {
    let spec = ServiceSpec {
        removal: Some(Removal::Reset),
        ..ServiceSpec::new(service, Scheduler::Rr)
    };
    let mut changes = vec![Change::AddService { service: spec }];
    let server = server(&service);
    if !matches!(kind, Port::Empty) {
        changes.push(add_server(service, server, 1));
    }
    director.change_between_frames(&changes)?;
    let tags = match kind {
        Port::Tagged(count) => Some(Tags {
            count,
            outer: 0x123,
            inner: 0x234,
            is_outer_service: count == 2,
            is_inner_service: false,
        }),
        Port::Plain | Port::Tunnel(_) | Port::Empty | Port::Removed => None,
    };
    let way = Way::Neighbour {
        mac: mac_of(server),
        source_mac: DIRECTOR_MAC,
        if_index: LOOPBACK,
        tags,
    };
    director.compiler.set_way(server, Some(way));
    if let Port::Tunnel(how) = kind {
        make_tunnel(director, &service, how)?;
    }
    Ok(())
}

fn make_tunnel(director: &Director, service: &ServiceKey, how: How) -> Result<()> {
    let key = server_key(service, server(service));
    let id = director
        .compiler
        .destination(service, &key)
        .context("it was added")?;
    let tables = director.dataplane.tables();
    let from = rows::address(match vip_of(service) {
        IpAddr::V4(_) => Ipv4Addr::new(192, 168, 2, 200).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 200).into(),
    });
    let tunnel = tables.tunnel(id).context("a row")?;
    tunnel.source[0].store(from.high());
    tunnel.source[1].store(from.low());
    tunnel.how.store(how.0);
    let towards = &tables.destination(id).context("a row")?.towards;
    towards.store(towards.load() | destination_flag::SPECIAL | destination_flag::TUNNEL);
    Ok(())
}

/// What leaves the director when this comes in.
fn leaves(director: &mut Director, asked: Asked) -> Result<Vec<u8>> {
    let mut seen = director.send(&asked.frame(true)?)?;
    if asked.port == REMOVED {
        // The connection is there now. Its server goes, and comes back for the next case.
        let vip = if asked.is_ipv6 {
            IpAddr::from(VIP6)
        } else {
            IpAddr::from(VIP)
        };
        let service = service_key(Protocol::Tcp, vip, REMOVED);
        director.change_between_frames(&[delete_server(service, server(&service))])?;
        seen = director.send(&asked.frame(false)?)?;
        assert_eq!(seen.reason, Reason::Reset, "{asked:?}");
        director.change_between_frames(&[add_server(service, server(&service), 1)])?;
    }
    let does_leave = matches!(seen.reason.outcome(), Outcome::Forward | Outcome::Answer);
    assert!(
        does_leave && seen.action == xdp::TX,
        "{asked:?}: {:?}",
        seen.reason
    );
    Ok(seen.frame)
}

#[test]
fn another_reader_finds_nothing_wrong_with_what_leaves() -> Result<()> {
    let mut director = director()?;
    let frames = CASES.iter().map(|(asked, _)| leaves(&mut director, *asked));
    let frames: Vec<_> = frames.collect::<Result<_>>()?;
    for ((asked, protocols), found) in CASES.iter().zip(dissect(&frames)?) {
        println!("{asked:?}: {found:?}");
        assert_eq!(found.complaints, [""; 0], "{asked:?}: {}", found.protocols);
        assert_eq!(found.protocols, *protocols, "{asked:?}");
        assert!(found.right_checksums > 0, "{asked:?}");
    }
    Ok(())
}

#[test]
fn the_reader_finds_what_is_wrong() -> Result<()> {
    let mut director = director()?;
    let whole = leaves(&mut director, SYN)?;
    let broken = |at: usize| {
        let mut frame = whole.clone();
        frame[at] ^= 1;
        frame
    };
    // A sequence number, a time to live, and a length.
    let found = dissect(&[
        whole.clone(),
        broken(41),
        broken(22),
        whole[..50].to_vec(),
        broken(46),
    ])?;
    let complaints = |found: &Dissection| found.complaints.len();
    assert_eq!(complaints(&found[0]), 0, "{found:?}");
    for found in &found[1..] {
        assert!(complaints(found) > 0, "{found:?}");
    }
    Ok(())
}

in_both_modes!(another_reader_finds_nothing_wrong_in_the_lab);

/// What the real servers of a lab get, and what leaves the director's cable.
fn another_reader_finds_nothing_wrong_in_the_lab(mode: XdpMode) -> Result<()> {
    let lab = Lab::start(LabConfig {
        real_servers: 2,
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        binary: None,
    })?;
    lab.add_service("rr")?;
    // A service without servers: its clients get an answer from the program.
    lab.ipvsadm(["-A", "-t", &format!("{LAB_VIP}:81"), "-s", "rr"])?;
    let port = port_name("director", "eth0");
    let switches = lab.topology().switches();
    switches.run("ethtool", ["-K", &port, "gro", "off", "txvlan", "off"])?;
    let capture = Capture::start(switches, &port)?;
    let report = Load::sequential(LAB_VIP, 4).run(lab.client())?;
    assert_eq!(report.failures(), []);
    let refused = lab
        .client()
        .enter(|| std::net::TcpStream::connect((LAB_VIP, 81)))?;
    assert!(refused.is_err(), "somebody answers on port 81");
    let frames = capture.finish()?;
    // Into the switch: from the director.
    let frames = frames
        .into_iter()
        .filter(|frame| !frame.outgoing && !frame.checksum_pending);
    let frames: Vec<_> = frames.map(|frame| frame.bytes).collect();
    let mut met = [0; 2];
    for (frame, found) in frames.iter().zip(dissect(&frames)?) {
        assert_eq!(found.complaints, [""; 0], "{}: {frame:02x?}", found.protocols);
        met[0] += usize::from(found.protocols.contains(":ip:tcp"));
        met[1] += usize::from(found.protocols.contains(":icmp:ip:tcp"));
    }
    assert!(met[0] >= 4 * 5 && met[1] >= 1, "{met:?}");
    Ok(())
}
