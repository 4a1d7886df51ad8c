//! The order of ipvsadm's lists, which is by address and port and not the schedulers'.

use std::{cmp::Ordering, net::IpAddr};

use crate::api::types::{Server, Service, ServiceKey};

/// The services in the order of the lists.
pub(super) fn services(services: Vec<Service>) -> Vec<Service> {
    merge_sort(services, &compare_services)
}

/// The real servers of one service in the order of the lists.
pub(super) fn servers(servers: Vec<Server>) -> Vec<Server> {
    merge_sort(servers, &compare_servers)
}

/// By mark, of which those that are no mark's have 0; then IPv4 before IPv6, TCP before UDP before SCTP, then by
/// address and port.
fn compare_services(one: &Service, other: &Service) -> Ordering {
    fn parts(key: ServiceKey) -> (u32, bool, u8, Option<IpAddr>) {
        match key {
            ServiceKey::Endpoint {
                protocol, address, ..
            } => (0, address.is_ipv6(), protocol.number(), Some(address)),
            ServiceKey::Mark { mark, ipv6 } => (mark, ipv6, 0, None),
        }
    }
    let (one, other) = (one.spec.key, other.spec.key);
    let (own, others) = (parts(one), parts(other));
    // By the sign of the difference, as addresses are.
    let marks = own.0.wrapping_sub(others.0).cast_signed().cmp(&0);
    let addresses = || match (own.3, others.3) {
        (Some(one), Some(other)) => compare_addresses(one, other),
        _ => Ordering::Equal,
    };
    marks
        .then(own.1.cmp(&others.1))
        .then(own.2.cmp(&others.2))
        .then_with(addresses)
        .then(one.port().cmp(&other.port()))
}

fn compare_servers(one: &Server, other: &Server) -> Ordering {
    let (one, other) = (one.spec.key, other.spec.key);
    compare_addresses(one.address, other.address).then(one.port.cmp(&other.port))
}

/// Addresses in ipvsadm's order: by the sign of the 32-bit difference of their words, which wraps.
/// 224.0.0.1 so comes before 10.0.0.1, and there are addresses that run in a circle.
fn compare_addresses(one: IpAddr, other: IpAddr) -> Ordering {
    fn words(address: IpAddr) -> [u32; 4] {
        match address {
            IpAddr::V4(address) => [address.to_bits(), 0, 0, 0],
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                // Truncation is the point: one word of the four.
                [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
            }
        }
    }
    let difference = words(one)
        .into_iter()
        .zip(words(other))
        .map(|(one, other)| one.wrapping_sub(other));
    let first = difference
        .into_iter()
        .find(|&difference| difference != 0)
        .unwrap_or(0);
    first.cast_signed().cmp(&0)
}

/// A stable merge sort. The standard library's sorts may panic when an order is not total, and
/// ipvsadm's is not; where it is one for the items at hand, every sort gives the same answer.
fn merge_sort<T>(mut items: Vec<T>, compare: &dyn Fn(&T, &T) -> Ordering) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let right = items.split_off(items.len() / 2);
    let mut left = merge_sort(items, compare).into_iter().peekable();
    let mut right = merge_sort(right, compare).into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    loop {
        let right_first = match (left.peek(), right.peek()) {
            (Some(left), Some(right)) => compare(left, right).is_gt(),
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => return merged,
        };
        merged.extend(if right_first { right.next() } else { left.next() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_ipvsadms_order() {
        let sorted = |addresses: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            merge_sort(addresses, &|&one, &other| compare_addresses(one, other))
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sorted(&["10.0.0.0", "0.0.0.0", "255.255.255.255", "224.0.0.1"]),
            ["224.0.0.1", "255.255.255.255", "0.0.0.0", "10.0.0.0"]
        );
        assert_eq!(sorted(&["200.0.0.1", "100.0.0.1"]), ["100.0.0.1", "200.0.0.1"]);
        assert_eq!(
            sorted(&["fd00::2", "fd00::1", "2001:db8::1"]),
            ["fd00::1", "fd00::2", "2001:db8::1"]
        );
        // A circle: no order is right, but none may panic or lose one of them.
        assert_eq!(sorted(&["0.0.0.0", "96.0.0.0", "192.0.0.0"]).len(), 3);
    }
}
