//! A link between router and client that is narrower than all others: servers learn of it by the router's ICMP
//! errors, which go to the VIP, and so to the director.

use anyhow::Result;
use lvs_xdp_tests::{agent::XdpMode, ask::packets, family::Family};

use crate::{download, hosts, in_both_modes_and_families};

in_both_modes_and_families!(a_black_hole_heals);

fn a_black_hole_heals(mode: XdpMode, family: Family) -> Result<()> {
    let mut lab = hosts(mode, 2)?.over(family);
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    lab.add_service("rr")?;
    let router = lab.router();
    router.ip("link set eth0 mtu 1280")?;

    // Without the errors the hole stays: the router keeps them to itself.
    let (ip, protocol) = match family {
        Family::V4 => ("-4", "icmp"),
        Family::V6 => ("-6", "ipv6-icmp"),
    };
    let silence = format!("to {} ipproto {protocol} blackhole", lab.vip());
    router.ip(&format!("{ip} rule add {silence}"))?;
    assert!(!download(&lab, 3)?, "what the router does not tell nobody knows");
    assert_eq!(packets(&lab, "related")?, 0);

    router.ip(&format!("{ip} rule delete {silence}"))?;
    // Each real server has to learn it for itself.
    for told in 1..=2 {
        assert!(download(&lab, 25)?);
        assert!(packets(&lab, "related")? >= told);
    }
    assert_eq!(packets(&lab, "related-unknown")?, 0);
    Ok(())
}
