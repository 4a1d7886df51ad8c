//! What a network card does that matters to the program, and which ones it can be attached to.

use std::io;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd as _;

use crate::neighbour::Links;

/// Why the program must not be on an interface: what to do, on one line.
pub(crate) fn objection(links: &Links, name: &str) -> Option<String> {
    let (if_index, _) = links.named(name)?;
    if let Some(bond) = links.bond_of(if_index) {
        let bond = &bond.name;
        return Some(format!(
            "{name} is part of {bond}: attach to all of it, by `--interface {bond}`"
        ));
    }
    let vlans = links.vlans(if_index);
    if vlans.is_empty() {
        return None;
    }
    let cards = std::iter::once(if_index).chain(links.parts(if_index));
    let names = cards.filter_map(|card| Some(links.get(card)?.name.as_str()));
    // A card that has no such setting leaves the tags where they are.
    let card = names
        .into_iter()
        .find(|card| flags(card).is_ok_and(|flags| flags & STRIPS_TAGS != 0))?;
    Some(format!(
        "{name} has VLANs ({}), and {card} takes their tags off before the program can see them: run `ethtool -K \
         {card} rxvlan off`",
        vlans.join(", ")
    ))
}

/// A flag of a card: it takes the VLAN tag off each frame that comes in, and tells it beside the frame
/// (`ETH_FLAG_RXVLAN`, linux/ethtool.h).
const STRIPS_TAGS: u32 = 1 << 8;
/// A flag of a card: it joins packets that come in (`ETH_FLAG_LRO`).
pub(crate) const LRO: u32 = 1 << 15;
/// `ETHTOOL_GFLAGS` (linux/ethtool.h), and the call (linux/sockios.h).
const ETHTOOL_GFLAGS: u32 = 0x25;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The flags of a network card: [`LRO`] and others.
///
/// # Errors
///
/// When there is no such interface, or it has no such flags.
pub(crate) fn flags(name: &str) -> io::Result<u32> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    // SAFETY: an ifreq of zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: what is longer is no interface's name.
    let (_, place) = request
        .ifr_name
        .split_last_mut()
        .ok_or(io::ErrorKind::InvalidInput)?;
    for (to, from) in place.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names a live ethtool_value, which is what this command reads and writes.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if status == 0 {
        Ok(value.data)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::{Link, LinkKind};

    fn links(kind: LinkKind) -> Links {
        let link = |name: &str, kind, lower, master| Link {
            name: name.to_owned(),
            kind,
            lower,
            master,
            ..Link::default()
        };
        let mut links = Links::default();
        links.set(8, Some(link("master", kind, None, None)));
        links.set(9, Some(link("no-such-card", LinkKind::Plain, None, Some(8))));
        let vlan = LinkKind::Vlan {
            id: 10,
            is_service: false,
        };
        links.set(10, Some(link("no-such-card.10", vlan, Some(9), None)));
        links
    }

    #[test]
    fn a_part_of_a_bond_is_refused_by_one_line() {
        assert_eq!(
            objection(&links(LinkKind::Bond), "no-such-card").as_deref(),
            Some("no-such-card is part of master: attach to all of it, by `--interface master`")
        );
        assert_eq!(objection(&links(LinkKind::Bond), "master"), None);
        // A bridge's port, with a VLAN upon it, of a card that cannot be asked.
        assert_eq!(objection(&links(LinkKind::Plain), "no-such-card"), None);
    }

    #[test]
    fn the_loopback_interface_takes_no_tags_off() {
        assert_eq!(flags("lo").unwrap() & STRIPS_TAGS, 0);
        assert!(flags("no-such-card").is_err());
    }
}
