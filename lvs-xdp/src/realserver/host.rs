//! This host's interfaces and addresses, by netlink.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, bail, ensure};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags},
    },
};
use tokio::task::JoinSet;

use super::tunnel;

/// An address of an interface.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) address: IpAddr,
    pub(super) prefix_len: u8,
    pub(super) if_index: u32,
    pub(super) message: AddressMessage,
}

/// An interface.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) flags: LinkFlags,
}

/// This host's interfaces and addresses, and the way to change them.
pub(super) struct Host {
    pub(super) handle: Handle,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) addresses: Vec<Held>,
    /// The task of the connection; it ends with this.
    _connection: JoinSet<()>,
}

impl Host {
    pub(super) async fn read() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = JoinSet::from_iter([connection]);
        let links: Vec<_> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot read the interfaces")?;
        let interfaces = links.into_iter().filter_map(|link| {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
            Some((
                link.header.index,
                Interface {
                    name,
                    flags: link.header.flags,
                },
            ))
        });
        let interfaces = interfaces.collect();
        let messages: Vec<_> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot read the addresses")?;
        let addresses = messages.into_iter().filter_map(|message| {
            let attribute = |local| {
                message
                    .attributes
                    .iter()
                    .find_map(move |attribute| match attribute {
                        AddressAttribute::Local(address) if local => Some(*address),
                        AddressAttribute::Address(address) if !local => Some(*address),
                        _ => None,
                    })
            };
            let address = attribute(true).or_else(|| attribute(false))?;
            let (prefix_len, if_index) = (message.header.prefix_len, message.header.index);
            Some(Held {
                address,
                prefix_len,
                if_index,
                message,
            })
        });
        let addresses = addresses.collect();
        Ok(Self {
            handle,
            interfaces,
            addresses,
            _connection: connection,
        })
    }

    /// The index of an interface that is fit to hold a VIP.
    pub(super) fn interface_for_vips(&self, name: &str) -> anyhow::Result<u32> {
        let Some((index, interface)) = self
            .interfaces
            .iter()
            .find(|(_, interface)| interface.name == name)
        else {
            let names: Vec<_> = self
                .interfaces
                .values()
                .map(|interface| interface.name.as_str())
                .collect();
            bail!(
                "there is no interface {name}: use lo, or another of {}",
                names.join(" ")
            );
        };
        ensure!(
            interface.flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp),
            "{name} answers ARP and neighbour discovery for its own addresses, so a VIP on it would draw the director's traffic: \
             use --interface lo"
        );
        Ok(*index)
    }

    pub(super) fn interface_name(&self, if_index: u32) -> &str {
        self.interfaces
            .get(&if_index)
            .map_or("an unknown interface", |interface| interface.name.as_str())
    }

    /// Whether an interface has an IPv4 address.
    pub(super) fn has_ipv4(&self, name: &str) -> bool {
        let mut held = self.addresses.iter();
        held.any(|held| held.address.is_ipv4() && self.interface_name(held.if_index) == name)
    }

    /// Where a VIP is: on the interface (`true`) or nowhere where it matters (`false`): on a
    /// tunnel device nobody asks for it.
    ///
    /// # Errors
    ///
    /// When it is where, or as, it must not be; the message says how to remove it.
    pub(super) fn holds(&self, vip: IpAddr, if_index: u32) -> anyhow::Result<bool> {
        let mut found = false;
        for held in self.addresses.iter().filter(|held| held.address == vip) {
            let name = self.interface_name(held.if_index);
            if held.if_index != if_index && tunnel::is_tunnel(name) {
                continue;
            }
            let remove = format!("ip address del {vip}/{} dev {name}", held.prefix_len);
            ensure!(
                held.if_index == if_index,
                "{vip} is on {name}, where it is announced: remove it first: {remove}"
            );
            ensure!(
                held.prefix_len == host_prefix(vip),
                "{vip} is on {name} with the prefix length {}, which makes its whole network local: \
                 remove it first: {remove}",
                held.prefix_len
            );
            found = true;
        }
        Ok(found)
    }

    pub(super) async fn add(&self, vip: IpAddr, if_index: u32) -> anyhow::Result<()> {
        let mut request = self.handle.address().add(if_index, vip, host_prefix(vip));
        if vip.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(netlink_error).with_context(|| {
            let hint = if vip.is_ipv6() {
                " (is IPv6 disabled there?)"
            } else {
                ""
            };
            format!("cannot add {vip} to {}{hint}", self.interface_name(if_index))
        })
    }

    pub(super) async fn remove(&self, held: &Held) -> anyhow::Result<()> {
        let request = self.handle.address().del(held.message.clone());
        request.execute().await.map_err(netlink_error).with_context(|| {
            format!(
                "cannot remove {} from {}",
                held.address,
                self.interface_name(held.if_index)
            )
        })
    }

    pub(super) async fn set_up(&self, if_index: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(if_index).up().build();
        let request = self.handle.link().set(message);
        request
            .execute()
            .await
            .map_err(netlink_error)
            .with_context(|| format!("cannot set {} up", self.interface_name(if_index)))
    }
}

pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

pub(super) fn netlink_error(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io().into(),
        error => error.into(),
    }
}
