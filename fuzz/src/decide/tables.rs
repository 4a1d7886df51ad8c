//! Tables from 8 octets: a service of each protocol at an address of each family, with two real servers each.
//!
//! Octet 0 is the scheduler, 1 the director's flags, 2 and 3 the services' options, 4 the persistence's time-out,
//! 5 and 6 the ways to the two real servers, 7 what is said of the virtual addresses.

use lvs_xdp_common::{
    abi::{
        DestinationRow, Kind, ListEntry, ListWord, Options, RingWord, ServiceRow, Tags, control_flag,
        destination_flag, index_buckets, index_word, vip_flag,
    },
    hash,
    maps::memory::Memory,
    packet::{Address, IpProto, Mac},
    ring,
    tunnel::{self, How},
};

use super::input::SETTINGS;

/// The interface that frames come in by.
pub const INGRESS: u32 = 2;
/// The director's MAC address.
pub const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 2, 200];
/// Another director's MAC address.
pub const PEER: [u8; 6] = [2, 0, 0, 0, 2, 201];
/// The virtual address over IPv4.
pub const VIP: u32 = 0x0a09_0064;
/// The virtual address over IPv6.
pub const VIP6: [u8; 16] = [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];
/// What is served at both.
pub const SERVICES: [(IpProto, u16); 3] = [(IpProto::TCP, 80), (IpProto::UDP, 53), (IpProto::SCTP, 2905)];

/// Words of a list's extent.
const EXTENT: u32 = 8;
/// The way to a real server that [`remove`] removes.
const REMOVED_LATER: u8 = 2;

/// The virtual addresses.
pub fn addresses() -> [Address; 2] {
    [Address::from_ipv4(VIP), Address::from_octets(VIP6)]
}

/// Makes the tables.
pub fn tables(settings: [u8; SETTINGS]) -> Memory {
    let [kind, flags, high, low, timeout, first, second, vip] = settings;
    let mut maps = Memory::new(64, 8, 16);
    let flag = |bit: u8, flag: u64| if flags >> bit & 1 != 0 { flag } else { 0 };
    maps.control.flags.store(
        flag(0, control_flag::MIGRATING)
            | flag(1, control_flag::ALL_PORTS)
            | flag(2, control_flag::FTP)
            | flag(3, control_flag::PEERS)
            | flag(4, control_flag::ANNOUNCE)
            | if timeout > 0 { control_flag::TEMPLATES } else { 0 },
    );
    maps.peers.push(Mac::from_octets(PEER));
    let interface = &maps.interfaces[INGRESS as usize];
    interface.if_index.store(u64::from(INGRESS));
    interface.macs[0].store(Mac::from_octets(DIRECTOR).0);
    if vip & 1 == 0 {
        let bit = |bit: u8, flag: u64| if vip & bit != 0 { flag } else { 0 };
        let flags = vip_flag::USED | bit(2, vip_flag::LOCAL) | bit(8, vip_flag::ANNOUNCED);
        maps.vips = addresses().map(|vip| (vip, flags)).to_vec();
    }
    for slot in &maps.rings[..64] {
        slot.store(0x0001_0000_0001_0000);
    }
    let kind = Kind::from_number(2 + u64::from(kind % 13));
    // The lowest flag of the options is their bit 22.
    let flags = u64::from(u16::from_be_bytes([high, low]) & 0x3ff) << 22;
    let mut id = 1;
    for address in addresses() {
        let mask = if address.is_ipv4() { 0xffff_fffc } else { 126 };
        let options = Options::new(flags, u32::from(timeout), mask);
        for (protocol, port) in SERVICES {
            let port = if vip & 4 != 0 && protocol == IpProto::TCP {
                0
            } else {
                port
            };
            let servers = [2 * id - 1, 2 * id];
            for (destination, way) in servers.into_iter().zip([first, second]) {
                enter_destination(&maps, destination, id, way);
            }
            enter_service(&maps, id, (address, port, protocol), kind, options, servers);
            id += 1;
        }
    }
    maps
}

fn enter_service(
    maps: &Memory,
    id: u32,
    (address, port, protocol): (Address, u16, IpProto),
    kind: Kind,
    options: Options,
    servers: [u32; 2],
) {
    const WEIGHTS: [u32; 2] = [1, 3];
    let row = &maps.services[id as usize];
    row.address[0].store(address.high());
    row.address[1].store(address.low());
    row.identity.store(ServiceRow::identity(port, protocol));
    let hash = hash::service(maps.control.key(), address, port, protocol.0);
    let (bucket, _) = index_buckets(hash, maps.control.service_mask.load());
    let bucket = &maps.service_index[bucket as usize].0;
    let free = bucket.iter().find(|word| word.load() == 0).expect("a free word");
    free.store(index_word(hash, id));

    let offset = id * EXTENT;
    let (di, mw) = ring::weighted_marks(WEIGHTS.into_iter());
    let list = &maps.lists[offset as usize..];
    list[0].store(u64::from(mw) << 32 | u64::from(di));
    for (word, (weight, id)) in list[1..].iter().zip(WEIGHTS.into_iter().zip(servers)) {
        word.store(ListEntry::new(weight, id, false).0);
    }
    for configuration in 0..2 {
        let list = ListWord::new(kind, offset, 2, 0, false);
        row.lists[configuration].store(list.0);
        row.rings[configuration].store(RingWord::new(0, 256, false, true).0);
        row.options[configuration].store(options.0);
    }
}

/// Removes the real servers whose way says so, as the agent does: they are chosen no more, and their connections
/// stay.
pub fn remove(maps: &Memory, settings: [u8; SETTINGS]) {
    let services = 1..=u32::try_from(2 * SERVICES.len()).expect("few services");
    for (service, place) in services.flat_map(|service| [(service, 0), (service, 1)]) {
        if settings[5 + place as usize] % 16 != REMOVED_LATER {
            continue;
        }
        let id = 2 * service - 1 + place;
        let entry = &maps.lists[(service * EXTENT + 1 + place) as usize];
        entry.store(ListEntry::new(0, id, false).0);
        let towards = &maps.destinations[id as usize].towards;
        towards.store(towards.load() | destination_flag::REMOVED);
    }
}

/// The MAC address of a real server.
pub fn mac(destination: u32) -> Mac {
    Mac::from_octets([2, 0xee, 0, 0, 0, destination.to_le_bytes()[0]])
}

fn enter_destination(maps: &Memory, id: u32, service: u32, way: u8) {
    use destination_flag::{DRAINING, LOCAL, RESOLVED, SPECIAL, TUNNEL, USED, VLAN};
    let row = &maps.destinations[id as usize];
    row.place.store(u64::from(service) << 32 | u64::from(INGRESS));
    row.from.store(Mac::from_octets(DIRECTOR).0);
    row.weight.store(1);
    let flags = match way % 16 {
        0 => RESOLVED,
        1 => 0,
        REMOVED_LATER => RESOLVED,
        3 => RESOLVED | DRAINING,
        4 => LOCAL | SPECIAL,
        // From no tag to two.
        way @ 5..=7 => {
            set_tags(row, usize::from(way - 5));
            RESOLVED | SPECIAL | VLAN
        }
        way => {
            set_tunnel(maps, id, way);
            RESOLVED | SPECIAL | TUNNEL
        }
    };
    row.towards.store(USED | flags | mac(id).0);
}

fn set_tags(row: &DestinationRow, count: usize) {
    let tags = Tags {
        count,
        outer: 0x123,
        inner: 0xfff,
        is_outer_service: count == 2,
        is_inner_service: false,
    };
    let (from, port) = tags.words();
    row.from.store(row.from.load() | from);
    row.port.store(port);
}

/// A tunnel of each kind over each family, one of them with little room.
fn set_tunnel(maps: &Memory, id: u32, way: u8) {
    let (kind, has_checksum, mtu) = match way >> 1 & 3 {
        0 => (tunnel::Kind::Ip, false, 1500),
        1 => (tunnel::Kind::Gue, true, 1500),
        2 => (tunnel::Kind::Gre, true, 1500),
        _ => (tunnel::Kind::Ip, false, 150),
    };
    let [from, to] = if way & 1 == 0 {
        [0x0a09_0001, 0x0a07_0005].map(Address::from_ipv4)
    } else {
        [1, 5].map(|host| Address::from_halves(0xfd00_0007 << 32, host))
    };
    let row = &maps.destinations[id as usize];
    row.address[0].store(to.high());
    row.address[1].store(to.low());
    let tunnel = &maps.tunnels[id as usize];
    tunnel.source[0].store(from.high());
    tunnel.source[1].store(from.low());
    tunnel.how.store(How::new(kind, has_checksum, 6080, mtu, 0).0);
}
