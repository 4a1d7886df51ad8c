//! The two families of addresses, and the addresses of the reference case in each.

use std::net::{IpAddr, Ipv6Addr};

use crate::lab::{CLIENT, DIRECTOR, ROUTER_INSIDE, ROUTER_OUTSIDE, VIP, real_server_address};

/// Makes of each function that takes the family a test over IPv4 and one over IPv6.
#[macro_export]
macro_rules! over_both_families {
    ($($test:ident),+ $(,)?) => {
        mod ipv4 {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test($crate::family::Family::V4)
            })+
        }
        mod ipv6 {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test($crate::family::Family::V6)
            })+
        }
    };
}

/// Makes of each function that takes mode and family four tests, one for each pair.
#[macro_export]
macro_rules! in_both_modes_and_families {
    ($($test:ident),+ $(,)?) => {
        $crate::in_both_modes_and_families!(@ ipv4 V4 $($test),+);
        $crate::in_both_modes_and_families!(@ ipv6 V6 $($test),+);
    };
    (@ $module:ident $family:ident $($test:ident),+) => {
        mod $module {
            $(fn $test(mode: $crate::agent::XdpMode) -> anyhow::Result<()> {
                super::$test(mode, $crate::family::Family::$family)
            })+
            $crate::in_both_modes!($($test),+);
        }
    };
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// The reference case as it is drawn: 192.168.1.0/24 and 192.168.2.0/24.
    V4,
    /// The same in fd00:1::/64 and fd00:2::/64, each host with the last number of its IPv4 address.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The virtual address.
    pub fn vip(self) -> IpAddr {
        self.of(VIP.octets())
    }

    /// The client.
    pub fn client(self) -> IpAddr {
        self.of(CLIENT.octets())
    }

    /// The director's own address.
    pub fn director(self) -> IpAddr {
        self.of(DIRECTOR.octets())
    }

    /// The router's address towards the client.
    pub fn router_outside(self) -> IpAddr {
        self.of(ROUTER_OUTSIDE.octets())
    }

    /// The router's address towards the director and the real servers.
    pub fn router_inside(self) -> IpAddr {
        self.of(ROUTER_INSIDE.octets())
    }

    /// Real server `number`, counted from 1.
    ///
    /// # Panics
    ///
    /// As [`real_server_address`].
    pub fn real_server(self, number: usize) -> IpAddr {
        self.of(real_server_address(number).octets())
    }

    /// The length of a segment's prefix.
    pub fn prefix_len(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// The length of one host's prefix.
    pub fn host_prefix_len(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The option of `ip` that stands for it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// This family's address of the host that has this IPv4 address.
    pub fn of(self, address: [u8; 4]) -> IpAddr {
        let [.., segment, host] = address;
        match self {
            Self::V4 => address.into(),
            Self::V6 => Ipv6Addr::new(0xfd00, as_written(segment), 0, 0, 0, 0, 0, as_written(host)).into(),
        }
    }
}

/// The number whose hexadecimal digits are this one's decimal digits.
fn as_written(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100 * 16 + number / 10 % 10) * 16 + number % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_look_alike_in_both_families() {
        assert_eq!(Family::V4.vip().to_string(), "192.168.2.100");
        assert_eq!(Family::V6.vip().to_string(), "fd00:2::100");
        assert_eq!(Family::V6.client().to_string(), "fd00:1::200");
        assert_eq!(Family::V6.real_server(1).to_string(), "fd00:2::220");
        assert_eq!(Family::V6.real_server(32).to_string(), "fd00:2::250");
    }
}
