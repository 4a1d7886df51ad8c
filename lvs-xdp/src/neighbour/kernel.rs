//! The kernel's tables: what is asked of them, what is set in them, and what their events mean.

use std::{io, net::IpAddr};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use rtnetlink::{
    Error, Handle, MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
            VlanProtocol,
        },
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
            NeighbourState,
        },
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
            RouteVia,
        },
    },
    sys::{AsyncSocket as _, Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::task::JoinSet;

use super::{
    Link, LinkKind, Mac, OffLink, Path,
    table::{Entry, EntryState, News, Route},
};

/// Marks the entries that we made managed (`NDA_PROTOCOL`, Linux 5.0), so that an agent that follows
/// on a killed one knows them. `ip neighbour` shows it as `proto 76`; nobody else uses it.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(76);

/// The events of a director that fails over a thousand real servers fit in; when they do not, what
/// was missed is read again.
const EVENT_BUFFER: u32 = 1 << 20;

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// What comes from the kernel unasked.
#[derive(Debug)]
pub(super) enum Notice {
    News(News),
    /// Events were lost: everything has to be read again.
    Lost,
}

/// The socket for requests, apart from that for events, which so cannot crowd out the answers.
#[derive(Debug)]
pub(super) struct Kernel {
    handle: Handle,
    /// The task of the connection; it ends with this.
    _connection: JoinSet<()>,
}

/// The socket for events.
pub(super) struct Events {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    /// The task of the connection; it ends with this.
    _connection: JoinSet<()>,
}

impl Events {
    /// Subscribes; from now on no event is missed.
    pub(super) fn open() -> anyhow::Result<Self> {
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .context("cannot subscribe to the kernel's netlink events")?;
        let socket = connection.socket_mut().socket_mut();
        socket
            .set_rx_buf_sz(EVENT_BUFFER)
            .context("cannot set the buffer of the netlink socket")?;
        let messages = messages.map(|(message, _)| message).boxed();
        Ok(Self {
            messages,
            _connection: JoinSet::from_iter([connection]),
        })
    }

    /// The next event of interest; `None` when the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Notice> {
        loop {
            match self.messages.next().await?.payload {
                NetlinkPayload::Overrun(_) => return Some(Notice::Lost),
                NetlinkPayload::InnerMessage(message) => {
                    if let Some(news) = news(&message) {
                        return Some(Notice::News(news));
                    }
                }
                _ => {}
            }
        }
    }
}

impl Kernel {
    pub(super) fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            _connection: JoinSet::from_iter([connection]),
        })
    }

    /// Reads all interfaces and local addresses.
    pub(super) async fn read(&self) -> anyhow::Result<Vec<News>> {
        let links = self.handle.link().get().execute();
        let links = links.map_ok(RouteNetlinkMessage::NewLink).map_err(to_io);
        let mut messages: Vec<_> = links.try_collect().await.context("cannot read the interfaces")?;
        let addresses = self.handle.address().get().execute();
        let addresses = addresses.map_ok(RouteNetlinkMessage::NewAddress).map_err(to_io);
        messages.extend(
            addresses
                .try_collect::<Vec<_>>()
                .await
                .context("cannot read the addresses")?,
        );
        Ok(messages.iter().filter_map(news).collect())
    }

    /// How an address is reached, by interface `by` where that is given, and what more is known of a packet's path.
    pub(super) async fn route(&self, address: IpAddr, by: Option<u32>) -> io::Result<(Route, Option<Path>)> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        message.attributes.extend(by.map(RouteAttribute::Oif));
        match self
            .handle
            .route()
            .get(message)
            .execute()
            .try_next()
            .await
            .map_err(to_io)
        {
            Ok(Some(answer)) => Ok((route(&answer), path(&answer))),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => match error.raw_os_error() {
                // No route; a route of type unreachable, prohibit, blackhole.
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                    Ok((Route::OffLink(OffLink::NoRoute), None))
                }
                _ => Err(error),
            },
        }
    }

    /// The entry of an address on an interface, where there is one.
    pub(super) async fn entry(&self, address: IpAddr, if_index: u32) -> io::Result<Option<Entry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = if_index;
        message
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST;
        match self.request(request).await {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => Ok(Some(entry(&message))),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the kernel resolve an address and keep its entry, which is made where there is none.
    pub(super) async fn manage(&self, address: IpAddr, if_index: u32, external: bool) -> io::Result<()> {
        let mut message = use_entry(address, if_index, external);
        message
            .attributes
            .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        message.attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
        self.set(message, NLM_F_CREATE).await
    }

    /// Says that nobody answers for an address. This takes the managed flag off its entry.
    pub(super) async fn fail(&self, address: IpAddr, if_index: u32, external: bool) -> io::Result<()> {
        let mut message = use_entry(address, if_index, external);
        message.header.flags.remove(NeighbourFlags::Use);
        message.header.state = NeighbourState::Failed;
        self.set(message, 0).await
    }

    async fn set(&self, message: NeighbourMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE | flags;
        self.request(request).await.map(drop)
    }

    /// Sends a request and waits for the one message that answers it, if any, or for its acknowledgement.
    async fn request(
        &self,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut response = self.handle.clone().request(request).map_err(to_io)?;
        while let Some(message) = response.next().await {
            match message.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Takes back what [`Kernel::manage`] set, without waiting: also from a `Drop`.
#[derive(Debug)]
pub(super) struct Releaser(Socket);

impl Releaser {
    pub(super) fn open() -> anyhow::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        // No answer is asked for, and an error is none to wait for either.
        socket
            .set_non_blocking(true)
            .context("cannot set up the netlink socket")?;
        Ok(Self(socket))
    }

    /// The entry of an address is no longer managed by us; it stays and ages. The kernel offers
    /// no way to say that which does not use the entry once.
    pub(super) fn release(&self, address: IpAddr, if_index: u32, external: bool) {
        let message = use_entry(address, if_index, external);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_REPLACE;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        if let Err(error) = self.0.send_to(&buffer, &SocketAddr::new(0, 0), 0) {
            tracing::debug!(%address, %error, "giving back a neighbour entry");
        }
    }
}

/// The message by which an entry is used (`NTF_USE`); its flags for others are kept.
fn use_entry(address: IpAddr, if_index: u32, external: bool) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = if_index;
    message.header.flags = NeighbourFlags::Use;
    message.header.flags.set(NeighbourFlags::ExtLearned, external);
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(error) => error.to_io(),
        error => io::Error::other(error.to_string()),
    }
}

fn to_mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok()
}

/// What an event, or an item of a dump, means.
fn news(message: &RouteNetlinkMessage) -> Option<News> {
    use RouteNetlinkMessage as M;
    match message {
        M::NewLink(message) => link(message, true),
        M::DelLink(message) => link(message, false),
        M::NewAddress(message) => local_address(message, true),
        M::DelAddress(message) => local_address(message, false),
        M::NewRoute(message) | M::DelRoute(message) => changed_route(message),
        M::NewRule(_) | M::DelRule(_) => Some(News::Rule),
        M::NewNeighbour(message) => neighbour(message, true),
        M::DelNeighbour(message) => neighbour(message, false),
        _ => None,
    }
}

/// The index of the interface that an item of a dump is about, and what it is.
pub(crate) fn listed(message: &LinkMessage) -> Option<(u32, Link)> {
    match link(message, true)? {
        News::Link { if_index, link } => Some((if_index, link?)),
        _ => None,
    }
}

fn link(message: &LinkMessage, exists: bool) -> Option<News> {
    // A bridge tells in its own family of a port that it took or lost; the link is unaffected.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let if_index = message.header.index;
    if !exists {
        return Some(News::Link { if_index, link: None });
    }
    let mut name = None;
    let mut mac = None;
    let mut mtu = 0;
    let mut kind = LinkKind::Plain;
    let mut lower = None;
    let mut master = None;
    let mut is_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Address(value) => mac = to_mac(value),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::LinkInfo(info) => kind = link_kind(info),
            LinkAttribute::Link(index) => lower = Some(*index),
            // That index counts the interfaces of another network namespace.
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::Controller(index) => master = Some(*index),
            _ => {}
        }
    }
    // The loopback interface has an address of zeros, a tunnel perhaps one that is none.
    let mac = mac.filter(|_| message.header.link_layer_type == LinkLayerType::Ether);
    let running = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    Some(News::Link {
        if_index,
        link: Some(Link {
            name: name?,
            mac,
            mtu,
            running,
            kind,
            // Of other kinds it is something else: a veth's is the cable's other end.
            lower: lower
                .filter(|_| !is_elsewhere && matches!(kind, LinkKind::Vlan { .. } | LinkKind::Macvlan)),
            master: master.filter(|index| *index != 0),
        }),
    })
}

fn link_kind(info: &[LinkInfo]) -> LinkKind {
    let kind = info.iter().find_map(|part| match part {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Vlan) => {}
        Some(InfoKind::MacVlan | InfoKind::MacVtap) => return LinkKind::Macvlan,
        Some(InfoKind::Bond | InfoKind::Team) => return LinkKind::Bond,
        _ => return LinkKind::Plain,
    }
    let parts = info.iter().filter_map(|part| match part {
        LinkInfo::Data(InfoData::Vlan(parts)) => Some(parts),
        _ => None,
    });
    let mut vlan = None;
    let mut is_service = false;
    for part in parts.flatten() {
        match part {
            InfoVlan::Id(number) => vlan = Some(*number),
            InfoVlan::Protocol(protocol) => is_service = *protocol == VlanProtocol::Ieee8021Ad,
            _ => {}
        }
    }
    vlan.map_or(LinkKind::Plain, |id| LinkKind::Vlan { id, is_service })
}

fn local_address(message: &AddressMessage, present: bool) -> Option<News> {
    // On a point-to-point interface `Address` is that of the other end.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(News::Address {
        address,
        if_index: message.header.index,
        present,
    })
}

fn changed_route(message: &RouteMessage) -> Option<News> {
    // An entry of the IPv6 routing cache is no change of the way.
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let network = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => to_ip(address),
        _ => None,
    });
    let prefix_len = message.header.destination_prefix_length;
    Some(News::Route {
        network: network.unwrap_or(unspecified),
        prefix_len,
    })
}

fn neighbour(message: &NeighbourMessage, exists: bool) -> Option<News> {
    // Proxy entries say what the host answers for, not who answers the host.
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let entry = exists.then(|| entry(message));
    Some(News::Neighbour {
        address,
        if_index: message.header.ifindex,
        entry,
    })
}

fn entry(message: &NeighbourMessage) -> Entry {
    let state = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            EntryState::Valid
        }
        NeighbourState::Permanent | NeighbourState::Noarp => EntryState::Fixed,
        NeighbourState::Failed => EntryState::Failed,
        _ => EntryState::Pending,
    };
    let mut mac = None;
    let mut managed = false;
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(value) => mac = to_mac(value),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(protocol) => ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    let external = message.header.flags.contains(NeighbourFlags::ExtLearned);
    Entry {
        state,
        mac,
        external,
        managed_by_other: managed && !ours,
    }
}

fn route(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Route::OffLink(OffLink::NotOneHost);
        }
        _ => return Route::OffLink(OffLink::NoRoute),
    }
    let mut if_index = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => return Route::OffLink(OffLink::Gateway(to_ip(gateway))),
            RouteAttribute::Via(via) => {
                let gateway = match via {
                    RouteVia::Inet(gateway) => Some(IpAddr::V4(*gateway)),
                    RouteVia::Inet6(gateway) => Some(IpAddr::V6(*gateway)),
                    _ => None,
                };
                return Route::OffLink(OffLink::Gateway(gateway));
            }
            // Wrapped into something else on its way.
            RouteAttribute::EncapType(_) => return Route::OffLink(OffLink::NotEthernet),
            RouteAttribute::Oif(index) => if_index = Some(*index),
            RouteAttribute::PrefSource(address) => source = to_ip(address),
            _ => {}
        }
    }
    match if_index {
        Some(if_index) => Route::OnLink { if_index, source },
        None => Route::OffLink(OffLink::NoRoute),
    }
}

/// The path of packets that are routed; `None` where they are not, or are wrapped into something else.
fn path(message: &RouteMessage) -> Option<Path> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut path = Path::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => path.gateway = to_ip(gateway),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => path.gateway = Some((*gateway).into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => path.gateway = Some((*gateway).into()),
            RouteAttribute::EncapType(_) => return None,
            RouteAttribute::Oif(index) => path.if_index = *index,
            RouteAttribute::PrefSource(address) => path.source = to_ip(address),
            RouteAttribute::Metrics(metrics) => {
                path.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(path)
}

fn to_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
