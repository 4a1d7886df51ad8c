//! Real servers behind tunnels, on a segment that the director reaches by a router.
//!
//! The other end is a [`Decapsulator`]: this kernel may have none. A real server that decapsulates by the
//! kernel's own devices is in the virtual machine's cases.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::packets,
    decapsulator::Decapsulator,
    family::Family,
    far::Far,
    in_both_modes_and_families,
    load::Load,
    packet::Capture,
};

in_both_modes_and_families!(
    every_tunnel_of_every_family_serves_beside_direct_routing,
    a_tunnel_follows_its_router,
    outer_sources_are_of_the_network_that_is_named,
);

/// Options of ipvsadm for each tunnel, and the outer protocol: `None` for that of the inner family.
const TUNNELS: [(&str, Option<u8>); 6] = [
    ("-i", None),
    ("-i --tun-type gue --tun-port 6080", Some(17)),
    ("-i --tun-type gue --tun-port 6080 --tun-csum", Some(17)),
    ("-i --tun-type gue --tun-port 6080 --tun-remcsum", Some(17)),
    ("-i --tun-type gre", Some(47)),
    ("-i --tun-type gre --tun-csum", Some(47)),
];

/// The lab, whose far server's tunnels end in this process.
fn far(mode: XdpMode, family: Family, arguments: &[&str]) -> Result<(Far, Decapsulator)> {
    let agent = AgentConfig {
        xdp_mode: mode,
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        ..AgentConfig::default()
    };
    let far = Far::new(agent, family)?;
    let vip = far.lab.vip().to_string();
    far.realserver(&["setup", "--vip", &vip])?;
    let end = Decapsulator::start(far.host())?;
    Ok((far, end))
}

fn every_tunnel_of_every_family_serves_beside_direct_routing(mode: XdpMode, family: Family) -> Result<()> {
    let (far, end) = far(mode, family, &[])?;
    for outer in Family::ALL {
        for (index, (options, protocol)) in TUNNELS.into_iter().enumerate() {
            let what = || format!("{options} over {outer:?}");
            if index == 0 {
                far.server("-a", outer, options)?;
            } else {
                far.server("-e", outer, options)?;
            }
            let protocol = protocol.unwrap_or(match family {
                Family::V4 => 4,
                Family::V6 => 41,
            });
            let before = end.taken(protocol);
            far.check_turns().with_context(what)?;
            ensure!(end.taken(protocol) > before, "{}: nothing came", what());
            if index < 2 {
                let before = packets(&far.lab, "too-big")?;
                far.check_upload(&format!("{outer:?}-{index}"))
                    .with_context(what)?;
                ensure!(
                    packets(&far.lab, "too-big")? > before,
                    "{}: the client was not told",
                    what()
                );
            }
        }
        far.server("-d", outer, "")?;
    }
    assert_eq!(packets(&far.lab, "rewrite-failed")?, 0);
    Ok(())
}

fn a_tunnel_follows_its_router(mode: XdpMode, family: Family) -> Result<()> {
    let (far, _end) = far(mode, family, &[])?;
    far.server("-a", family, "-i")?;
    far.check_turns()?;
    far.lab
        .topology()
        .set_mac("router", "eth1", [0x02, 0, 0, 0, 0, 0x77])?;
    // The real server beside would believe for half a minute that it is where it was.
    let rs1 = far.lab.real_servers()[0].netns();
    rs1.ip("neighbour flush dev eth0")?;
    far.soon("the router's new MAC address was not found", || {
        far.check_turns().is_ok()
    })?;
    // Without a way it gets nothing, and the status says so; the other one goes on.
    let network = format!("{}/{}", family.of([192, 168, 3, 0]), family.prefix_len());
    let director = far.lab.director();
    director.ip(&format!("route replace unreachable {network} metric 1"))?;
    director.ip(&format!("route del {network} via {}", family.router_inside()))?;
    let all_go_to_rs1 = || {
        let report = Load::sequential(far.lab.vip(), 4).run(far.lab.client());
        report.is_ok_and(|report| report.answers().all(|answer| answer == "rs1"))
    };
    far.soon("the lost way was not noticed", all_go_to_rs1)?;
    let status = far.lab.cli(["status"])?;
    ensure!(
        status.contains("its tunnel has no way: there is no route to it"),
        "{status}"
    );
    director.ip(&format!("route add {network} via {}", family.router_inside()))?;
    director.ip(&format!("route del unreachable {network} metric 1"))?;
    far.soon("the way that is back was not noticed", || {
        far.check_turns().is_ok()
    })
}

/// Of IPIP there is nothing but the outer source address that could tell flows apart.
fn outer_sources_are_of_the_network_that_is_named(mode: XdpMode, family: Family) -> Result<()> {
    let networks: [(&str, IpAddr); 2] = [
        ("172.16.0.0/16", [172, 16, 0, 0].into()),
        ("fd00:16::/112", [0xfd00, 0x16, 0, 0, 0, 0, 0, 0].into()),
    ];
    let arguments = networks.map(|(network, _)| ["--tunnel-source", network]);
    let (far, end) = far(mode, family, arguments.as_flattened())?;
    for (outer, (_, network)) in Family::ALL.into_iter().zip(networks) {
        far.server("-a", outer, "-i")?;
        let capture = Capture::start(far.host(), "eth0")?;
        far.check_turns()?;
        far.check_turns()?;
        let frames = capture.finish()?;
        let incoming = frames.iter().filter(|frame| !frame.outgoing);
        let carried: Vec<_> = incoming
            .filter_map(|frame| outer_source(&frame.bytes, outer))
            .collect();
        // Packets of ten connections; those of one have one source.
        let sources: BTreeSet<_> = carried.iter().copied().collect();
        ensure!((5..=10).contains(&sources.len()), "{sources:?}");
        ensure!(carried.len() >= 40, "{carried:?}");
        for source in sources {
            match (source, network) {
                (IpAddr::V4(source), IpAddr::V4(network)) => {
                    assert_eq!(source.to_bits() >> 16, network.to_bits() >> 16);
                }
                (IpAddr::V6(source), IpAddr::V6(network)) => {
                    assert_eq!(source.to_bits() >> 16, network.to_bits() >> 16);
                }
                _ => unreachable!("of one family"),
            }
        }
        far.server("-d", outer, "")?;
    }
    drop(end);
    Ok(())
}

/// The source of a packet that carries another one.
fn outer_source(frame: &[u8], outer: Family) -> Option<IpAddr> {
    const CARRIED: [u8; 2] = [4, 41];
    let packet = frame.get(14..)?;
    match outer {
        Family::V4 if frame[12..14] == [8, 0] && CARRIED.contains(&packet[9]) => {
            Some(<[u8; 4]>::try_from(&packet[12..16]).ok()?.into())
        }
        Family::V6 if frame[12..14] == [0x86, 0xdd] && CARRIED.contains(&packet[6]) => {
            Some(<[u8; 16]>::try_from(&packet[8..24]).ok()?.into())
        }
        Family::V4 | Family::V6 => None,
    }
}
