//! Two tables, from each to the other of which a director is brought while it is killed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    lab::VIP,
    trial::{mac_of, xdp},
};

/// Frames to each port: whole rounds of the schedulers.
pub(crate) const FRAMES: usize = 8;
/// The ports of both tables.
pub(crate) const PORTS: [u16; 6] = [80, 81, 82, 83, 84, 85];
/// How many frames go to which real server, by its last octet.
pub(crate) type Shares = BTreeMap<u8, usize>;

/// Services on ports, with a scheduler and real servers of these last octets and weights.
pub(crate) type Services = &'static [(u16, &'static str, &'static [(u8, u32)])];

/// Two tables: a service loses a real server and gets another one, one gets other weights, one goes, one comes, one
/// is as it was, and one has a ring.
pub(crate) const TABLES: [Services; 2] = [
    &[
        (80, "rr", &[(10, 1), (11, 1)]),
        (81, "wrr", &[(10, 1), (11, 3)]),
        (82, "rr", &[(12, 1)]),
        (84, "rr", &[(13, 1)]),
        (85, "sh", &[(14, 1)]),
    ],
    &[
        (80, "rr", &[(10, 1), (20, 1)]),
        (81, "wrr", &[(10, 3), (11, 1)]),
        (83, "wlc", &[(21, 1)]),
        (84, "rr", &[(13, 1)]),
        (85, "sh", &[(22, 1)]),
    ],
];

/// The table as a file; each has rules of marks of its own.
pub(crate) fn file(services: Services, number: usize) -> String {
    let mut text = format!(
        "[[mark]]\nmark = {0}\nprotocol = \"tcp\"\naddresses = [\"192.168.9.{0}/32\"]\n",
        number + 1
    );
    for (port, scheduler, servers) in services {
        text += &format!(
            "[[service]]\nprotocol = \"tcp\"\naddress = \"{VIP}\"\nport = {port}\nscheduler = \"{scheduler}\"\n"
        );
        for (last, weight) in *servers {
            text += &format!("[[service.server]]\naddress = \"192.168.2.{last}\"\nweight = {weight}\n");
        }
    }
    text
}

/// Where the frames to each port are to go.
pub(crate) fn expected(services: Services) -> BTreeMap<u16, Shares> {
    let none = PORTS.map(|port| (port, Shares::new()));
    let mut expected = BTreeMap::from(none);
    for (port, _, servers) in services {
        let all: u32 = servers.iter().map(|(_, weight)| weight).sum();
        let share = |weight: u32| FRAMES * weight as usize / all as usize;
        let shares = servers.iter().map(|&(last, weight)| (last, share(weight)));
        expected.insert(*port, shares.collect());
    }
    expected
}

/// A real server, by its last octet.
pub(crate) fn server(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 168, 2, last).into()
}

/// All real servers that there may be.
pub(crate) fn servers() -> impl Iterator<Item = IpAddr> {
    (10..30).map(server)
}

/// Adds where a frame went, of which the program has said this.
pub(crate) fn note(shares: &mut Shares, action: u32, frame: &[u8]) -> Result<()> {
    if action == xdp::REDIRECT || action == xdp::TX {
        let to = frame.first_chunk::<6>().context("a frame without a head")?;
        ensure!(*to == mac_of(server(to[5])), "a frame went to {to:?}");
        *shares.entry(to[5]).or_default() += 1;
    }
    Ok(())
}

/// Which of the two tables frames went by; both in part is neither.
pub(crate) fn followed(seen: &BTreeMap<u16, Shares>) -> Result<usize> {
    let found = TABLES.iter().position(|services| expected(services) == *seen);
    found.with_context(|| format!("frames went by no table: {seen:?}"))
}
