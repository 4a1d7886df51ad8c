//! Names on ipvsadm's command line and in its tables: host names, and the ports of /etc/services.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs as _},
};

use crate::api::types::Protocol;

/// Where names come from. Nothing is read or asked before the first name is met, so that scripts
/// that use numbers throughout pay for nothing.
#[derive(Debug)]
pub struct Names {
    read_services: fn() -> String,
    resolve: fn(&str) -> Option<Ipv4Addr>,
    name_of: fn(IpAddr) -> Option<String>,
    services: OnceCell<Services>,
    hosts: RefCell<HashMap<IpAddr, Option<String>>>,
}

#[derive(Debug)]
struct Services {
    by_port: HashMap<(u16, Protocol), String>,
    by_name: HashMap<(String, Protocol), u16>,
}

impl Names {
    /// The names this host knows: /etc/services itself, and the system's resolver.
    pub fn of_this_host() -> Self {
        // A host without the file has no names, as getservbyname(3) has it.
        Self::new(
            || fs::read_to_string("/etc/services").unwrap_or_default(),
            |host| {
                let mut addresses = (host, 0).to_socket_addrs().ok()?;
                addresses.find_map(|address| match address.ip() {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
            },
            |address| {
                // Without a name it is the address again.
                let name = dns_lookup::lookup_addr(&address).ok()?;
                name.parse::<IpAddr>().is_err().then_some(name)
            },
        )
    }

    /// Names from elsewhere: the text of a services(5) file, a resolver of host names, and one of addresses.
    pub fn new(
        read_services: fn() -> String,
        resolve: fn(&str) -> Option<Ipv4Addr>,
        name_of: fn(IpAddr) -> Option<String>,
    ) -> Self {
        Self {
            read_services,
            resolve,
            name_of,
            services: OnceCell::new(),
            hosts: RefCell::new(HashMap::new()),
        }
    }

    /// The name of a port, where it has one: of no protocol in particular it has none.
    pub(super) fn port_name(&self, port: u16, protocol: Option<Protocol>) -> Option<&str> {
        let protocol = protocol?;
        self.services().by_port.get(&(port, protocol)).map(String::as_str)
    }

    /// The port of a name, where there is a protocol.
    pub(super) fn port(&self, name: &str, protocol: Option<Protocol>) -> Option<u16> {
        self.services()
            .by_name
            .get(&(name.to_owned(), protocol?))
            .copied()
    }

    /// The name of an address; the first question about each is the only one.
    pub(super) fn host_name(&self, address: IpAddr) -> Option<String> {
        let mut known = self.hosts.borrow_mut();
        known
            .entry(address)
            .or_insert_with(|| (self.name_of)(address))
            .clone()
    }

    /// An IPv4 host: an address in any of inet_aton(3)'s forms, or a name.
    pub(super) fn ipv4_host(&self, text: &str) -> Option<Ipv4Addr> {
        if text.is_empty() {
            return None;
        }
        match inet_aton(text) {
            Some(address) => Some(address),
            // What is made of digits and dots alone is a broken address: no name server need hear of it.
            None if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => None,
            None => (self.resolve)(text),
        }
    }

    fn services(&self) -> &Services {
        self.services
            .get_or_init(|| Services::parse(&(self.read_services)()))
    }
}

impl Services {
    /// Reads services(5): `name port/protocol aliases... # comment`. The first line for a port or a
    /// name counts.
    fn parse(text: &str) -> Self {
        let mut services = Self {
            by_port: HashMap::new(),
            by_name: HashMap::new(),
        };
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            let Some((port, protocol)) = words.next().and_then(|word| word.split_once('/')) else {
                continue;
            };
            let (Ok(port), Ok(protocol)) = (port.parse(), protocol.parse()) else {
                continue;
            };
            services
                .by_port
                .entry((port, protocol))
                .or_insert_with(|| name.to_owned());
            for name in [name].into_iter().chain(words) {
                services
                    .by_name
                    .entry((name.to_owned(), protocol))
                    .or_insert(port);
            }
        }
        services
    }
}

/// inet_aton(3): one to four parts, each decimal, octal (`0...`) or hexadecimal (`0x...`), the last of
/// which fills the bytes that are left (`10.1` is 10.0.0.1). What stands behind a blank is not looked at.
pub(super) fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let text = text.split(|c: char| c.is_ascii_whitespace()).next()?;
    let parts: Vec<u32> = text.split('.').map(inet_aton_part).collect::<Option<_>>()?;
    let (&last, leading) = parts.split_last()?;
    let free_bits = 32 - 8 * u32::try_from(leading.len()).ok().filter(|&count| count < 4)?;
    let mut address = 0;
    for (shift, &part) in [24, 16, 8].into_iter().zip(leading) {
        address |= u32::from(u8::try_from(part).ok()?) << shift;
    }
    let last_fits = u64::from(last) < 1 << free_bits;
    last_fits.then(|| Ipv4Addr::from(address | last))
}

fn inet_aton_part(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    // from_str_radix alone would take a sign.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new(
            || {
                "# services\nhttp 80/tcp www # WorldWideWeb\ndomain 53/tcp\ndomain 53/udp\nweb 80/tcp\nodd\n"
                    .into()
            },
            |host| (host == "rs1").then_some([10, 0, 0, 7].into()),
            |address| (address == IpAddr::from([10, 0, 0, 7])).then(|| "rs1".to_owned()),
        )
    }

    #[test]
    fn ports_have_names_by_protocol() {
        let names = names();
        assert_eq!(names.port_name(80, Some(Protocol::Tcp)), Some("http"));
        assert_eq!(names.port_name(80, Some(Protocol::Udp)), None);
        assert_eq!(names.port("www", Some(Protocol::Tcp)), Some(80));
        assert_eq!(names.port("domain", Some(Protocol::Udp)), Some(53));
        assert_eq!(names.port("http", Some(Protocol::Udp)), None);
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        let names = names();
        for (text, address) in [
            ("10.0.0.1", Some([10, 0, 0, 1])),
            ("10.0.0", Some([10, 0, 0, 0])),
            ("10.1", Some([10, 0, 0, 1])),
            ("10.65535", Some([10, 0, 255, 255])),
            ("0x0a.010.0.1", Some([10, 8, 0, 1])),
            ("255.255.255.255", Some([255, 255, 255, 255])),
            ("rs1", Some([10, 0, 0, 7])),
            ("rs2", None),
            ("12345", Some([0, 0, 48, 57])),
            ("10.0.0.1 x", Some([10, 0, 0, 1])),
            (" 10.0.0.1", None),
            ("300.1.1.1", None),
            ("10.16777216", None),
            ("10.0.0.0.1", None),
            ("10..1", None),
            ("10.+1", None),
            ("08.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(names.ipv4_host(text), address.map(Ipv4Addr::from), "{text:?}");
        }
        assert_eq!(names.host_name([10, 0, 0, 7].into()).as_deref(), Some("rs1"));
        assert_eq!(names.host_name([10, 0, 0, 8].into()), None);
    }
}
