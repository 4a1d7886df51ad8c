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
        .find(|card| strips_tags(card).unwrap_or(false))?;
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
const LRO: u32 = 1 << 15;
/// Commands of linux/ethtool.h, and the call (linux/sockios.h).
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// A structure of linux/ethtool.h whose first word is a command that fills the rest of it.
///
/// # Safety
///
/// The type must be `repr(C)` and as large as the one that the kernel writes for [`Question::COMMAND`]; any bytes must be
/// a value of it.
unsafe trait Question {
    const COMMAND: u32;
}

/// `struct ethtool_value`, of the flags.
#[repr(C)]
struct Flags {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    others: [u8; 4 * 32 + 12 + 5 * 4],
}

/// `struct ethtool_channels`.
#[repr(C)]
struct RawChannels {
    command: u32,
    most_receive: u32,
    most_send: u32,
    most_other: u32,
    most_combined: u32,
    receive: u32,
    send: u32,
    other: u32,
    combined: u32,
}

// SAFETY: two words of numbers.
unsafe impl Question for Flags {
    const COMMAND: u32 = ETHTOOL_GFLAGS;
}
// SAFETY: 196 bytes, as there, without padding.
unsafe impl Question for DriverInfo {
    const COMMAND: u32 = ETHTOOL_GDRVINFO;
}
// SAFETY: nine words of numbers.
unsafe impl Question for RawChannels {
    const COMMAND: u32 = ETHTOOL_GCHANNELS;
}

/// The queues of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Queues by which frames come in.
    pub(crate) receive: u32,
    /// The most that there could be.
    pub(crate) most: u32,
    /// Each is for both ways: `ethtool -L` calls them `combined`, else `rx`.
    pub(crate) are_combined: bool,
}

/// The flags of a network card.
///
/// # Errors
///
/// When there is no such interface, or it has no such flags.
fn flags(name: &str) -> io::Result<u32> {
    ask::<Flags>(name).map(|answer| answer.data)
}

/// Whether a card takes the VLAN tags off frames before a program can see them.
///
/// # Errors
///
/// When there is no such interface, or it has no such setting.
pub(crate) fn strips_tags(name: &str) -> io::Result<bool> {
    Ok(flags(name)? & STRIPS_TAGS != 0)
}

/// Whether a card joins packets that come in (large receive offload).
///
/// # Errors
///
/// As [`strips_tags`].
pub(crate) fn joins_packets(name: &str) -> io::Result<bool> {
    Ok(flags(name)? & LRO != 0)
}

/// The name of an interface's driver.
///
/// # Errors
///
/// When there is no such interface, or its driver does not say.
pub(crate) fn driver(name: &str) -> io::Result<String> {
    let answer: DriverInfo = ask(name)?;
    let length = answer.driver.iter().position(|&byte| byte == 0);
    let name = answer.driver.get(..length.unwrap_or(answer.driver.len()));
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}

/// The queues of a card.
///
/// # Errors
///
/// When there is no such interface, or its driver does not say.
pub(crate) fn channels(name: &str) -> io::Result<Channels> {
    let RawChannels {
        most_receive,
        most_combined,
        receive,
        combined,
        ..
    } = ask(name)?;
    Ok(Channels {
        receive: receive + combined,
        most: most_receive.max(most_combined),
        are_combined: most_combined > 0,
    })
}

/// Asks the driver of an interface of this network namespace.
fn ask<T: Question>(name: &str) -> io::Result<T> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: any bytes are a value of the type (`Question`), zeroes among them.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: the type begins with the command (`Question`).
    unsafe { (&raw mut value).cast::<u32>().write(T::COMMAND) };
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
    // SAFETY: the request names a live value of the command's type, which is what it reads and writes (`Question`).
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if status == 0 {
        Ok(value)
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
        assert!(!strips_tags("lo").unwrap());
        assert!(flags("no-such-card").is_err());
    }

    #[test]
    fn what_the_kernel_writes_fits() {
        assert_eq!(size_of::<Flags>(), 8);
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<RawChannels>(), 36);
        assert!(driver("no-such-card").is_err() && channels("no-such-card").is_err());
    }
}
