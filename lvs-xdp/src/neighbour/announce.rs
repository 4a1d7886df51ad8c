//! Telling everybody on a segment where an address is, unasked; and hearing who asks.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
};

use anyhow::Context as _;
use lvs_xdp_common::{announce::unsolicited, packet};
use socket2::{Domain, Socket, Type};

use super::{
    Mac,
    probe::{link_address, solicited_node},
};
use crate::dataplane::rows;

/// The sockets that it takes.
#[derive(Debug)]
pub struct Announcer {
    frames: Socket,
    /// The one whose memberships in groups these are; `None` where the kernel has no IPv6.
    member: Option<Socket>,
    groups: BTreeSet<(Ipv6Addr, u32)>,
}

impl Announcer {
    /// Opens them; they receive nothing.
    ///
    /// # Errors
    ///
    /// Without root's rights.
    pub fn open() -> anyhow::Result<Self> {
        let frames = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None).context(
            "cannot open a packet socket for announcements: the agent must run as root, or with CAP_NET_RAW",
        )?;
        Ok(Self {
            frames,
            member: Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), None).ok(),
            groups: BTreeSet::new(),
        })
    }

    /// Tells everybody behind an interface that an address is at this MAC address: by gratuitous ARP, or by an
    /// unsolicited neighbour advertisement.
    ///
    /// # Errors
    ///
    /// Where the kernel does not send it: the interface is down, or gone.
    pub fn announce(&self, address: IpAddr, mac: Mac, if_index: u32) -> io::Result<()> {
        let frame = unsolicited(rows::address(address), packet::Mac::from_octets(mac));
        let to = frame.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        self.frames
            .send_to(&frame, &link_address(if_index, *to))
            .map(drop)
    }

    /// Joins, behind these interfaces, the groups that neighbour solicitations for these addresses go to, and leaves
    /// all others: else neither a switch that looks after groups nor the network card would hand them on.
    ///
    /// # Errors
    ///
    /// Why a group could not be joined; it is tried again the next time.
    pub fn listen(&mut self, addresses: &BTreeSet<IpAddr>, interfaces: &[u32]) -> io::Result<()> {
        let Some(member) = &self.member else {
            return Ok(());
        };
        let groups = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(solicited_node(*address)),
        });
        let wanted: BTreeSet<_> = groups
            .flat_map(|group| interfaces.iter().map(move |if_index| (group, *if_index)))
            .collect();
        self.groups.retain(|place @ (group, if_index)| {
            let stays = wanted.contains(place);
            if !stays {
                // With an interface that is gone its memberships have gone.
                drop(member.leave_multicast_v6(group, *if_index));
            }
            stays
        });
        let mut result = Ok(());
        for (group, if_index) in wanted {
            if self.groups.contains(&(group, if_index)) {
                continue;
            }
            match member.join_multicast_v6(&group, if_index) {
                Ok(()) => drop(self.groups.insert((group, if_index))),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}
