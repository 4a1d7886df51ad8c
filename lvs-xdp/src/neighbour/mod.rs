//! The way to each real server: its MAC address, and the interface it is behind.
//!
//! Everything that is known here comes from the kernel's own tables, by netlink events: which route
//! an address has, what its neighbour entry says, what the interfaces are. The kernel's neighbour
//! entry is the one truth about a MAC address, so `ip neighbour` always shows what the director
//! uses, and an entry that an administrator made permanent is respected.
//!
//! # How an entry is kept fresh
//!
//! - The entry is made with `NTF_EXT_MANAGED` (Linux 5.16): the kernel resolves it and keeps trying
//!   for as long as the entry exists, whether there is traffic or not. The same message carries
//!   `NTF_USE`, which makes an older kernel resolve too, and it is repeated while there is no
//!   answer, so a kernel that knows nothing of managed entries needs no code of its own.
//! - That alone notices a changed MAC address only after half a minute: the kernel believes an
//!   entry for 15 to 45 s (`base_reachable_time_ms`), and then asks the *old* MAC address three times, a
//!   second apart, before it gives up. So each entry is also probed by the director itself:
//!   every 750 ms one ARP request (for IPv6 a neighbour solicitation) as *unicast* to the known
//!   MAC address, which disturbs nobody else on the segment. Only when 250 ms pass without an
//!   answer does the question go to everybody; whoever answers is entered by the kernel, which
//!   sees the same answer, and a netlink event says so. A MAC address that changes without any
//!   announcement is so followed in a second at most, and as the kernel's entry is confirmed
//!   by each answer, the steady state makes no netlink traffic at all.
//! - After three unanswered broadcasts (2.5 s after the unicast) the entry is set to
//!   `NUD_FAILED`, as the kernel would have done later, and the managed entry starts again from
//!   there. The destination is [`Resolution::Unreachable`] until somebody answers.
//!
//! Why not `NUD_PROBE` by netlink: it takes the managed flag off the entry (a state can only be set
//! by a message that says "not managed"), makes two events a probe, and asks the old MAC address
//! three seconds long. Why not shorter sysctls: they are the host's, and would outlive a killed
//! agent. Why not broadcasts only: with a thousand real servers that is a thousand interrupts a
//! second on every machine of the segment.
//!
//! The kernel takes no new MAC address for an entry that changed less than `locktime` (1 s) ago;
//! the broadcasts go on until it has.
//!
//! # Files
//!
//! `table` is what is known and what follows from it, without a clock or a socket of its own; `links` how
//! interfaces are stacked;
//! `schedule` when an address is asked for next; `kernel` speaks netlink; `probe` sends and
//! receives ARP and neighbour discovery; `actor` joins them.

mod actor;
mod announce;
mod kernel;
mod links;
pub(crate) mod probe;
mod schedule;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::announce::Announcer;
pub(crate) use self::kernel::listed;
pub use self::links::{Exit, Link, LinkKind, Links, Tag};

/// A MAC address.
pub type Mac = [u8; 6];

/// What is known of the way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Its MAC address is being asked for, for the first time.
    Resolving,
    /// Frames for it can be sent.
    Ready {
        /// The neighbour's MAC address.
        mac: Mac,
        /// The MAC address of the director's interface.
        source_mac: Mac,
        /// The index of the director's interface.
        if_index: u32,
        /// The name of the director's interface.
        interface: String,
    },
    /// It is this host.
    Local,
    /// Nobody on its segment answers for it. It is still being asked for.
    Unreachable,
    /// It cannot be reached by a MAC address of its own.
    NotOnLink(OffLink),
}

impl Resolution {
    /// The router that the address is behind.
    pub fn router(&self) -> Option<IpAddr> {
        match self {
            Self::NotOnLink(OffLink::Gateway(router)) => *router,
            _ => None,
        }
    }
}

/// Why an address cannot be reached by a MAC address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffLink {
    /// It is behind a router; the address of the router, where it is given as one.
    Gateway(Option<IpAddr>),
    /// There is no route to it.
    NoRoute,
    /// It is a broadcast, multicast or anycast address.
    NotOneHost,
    /// Its route leads to an interface that has no MAC addresses, such as a tunnel.
    NotEthernet,
}

/// How an address is asked for its MAC address: `ARP`, or `neighbour discovery`.
pub fn protocol(address: IpAddr) -> &'static str {
    if address.is_ipv4() {
        "ARP"
    } else {
        "neighbour discovery"
    }
}

impl fmt::Display for OffLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(Some(gateway)) => write!(f, "it is behind the router {gateway}"),
            Self::Gateway(None) => f.write_str("it is behind a router"),
            Self::NoRoute => f.write_str("there is no route to it"),
            Self::NotOneHost => f.write_str("it is no address of a single host"),
            Self::NotEthernet => f.write_str("its route leads to an interface without MAC addresses"),
        }
    }
}

/// What the kernel's routes say of packets that this host sends to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// The router that they are sent to; `None` where the address is on a segment of this host.
    pub gateway: Option<IpAddr>,
    /// The interface that they leave by.
    pub if_index: u32,
    /// The address that they are sent from.
    pub source: Option<IpAddr>,
    /// The longest packet in bytes, where that is known to be less than what the interface sends.
    pub mtu: Option<u32>,
}

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The way to a watched address.
    Resolution {
        /// The address.
        address: IpAddr,
        /// The way to it from now on.
        resolution: Resolution,
    },
    /// The path of packets to a watched address.
    Path {
        /// The address.
        address: IpAddr,
        /// The path from now on; `None` where there is no route.
        path: Option<Path>,
    },
    /// The addresses held by the interfaces of this host, all of them.
    LocalAddresses(BTreeSet<IpAddr>),
    /// An interface appeared, changed, or vanished (`None`). An interface whose index is not seen
    /// again is gone, even if another of the same name takes its place.
    Link {
        /// Its index.
        if_index: u32,
        /// What it is from now on.
        link: Option<Link>,
    },
}

/// The latest of everything, for callers that ask instead of waiting for events.
#[derive(Debug, Clone, Default)]
struct View {
    resolutions: BTreeMap<IpAddr, Resolution>,
    paths: BTreeMap<IpAddr, Path>,
    local: BTreeSet<IpAddr>,
    links: Arc<Links>,
}

/// What a [`Neighbours`] asks of its task; `done` is told once the view has the effect of it.
#[derive(Debug)]
enum Command {
    Watch {
        address: IpAddr,
        done: oneshot::Sender<()>,
    },
    Forget {
        address: IpAddr,
        done: oneshot::Sender<()>,
    },
}

/// Watches the way to real servers, in the network namespace in which it was started.
///
/// Dropped, it stops, and takes back what it set on the kernel's neighbour entries; the entries
/// themselves stay and age as any other.
#[derive(Debug)]
pub struct Neighbours {
    commands: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
}

impl Neighbours {
    /// Starts to watch, in the network namespace of the calling thread.
    ///
    /// It subscribes to the kernel's events before it reads the tables, so no change is missed. The
    /// local addresses are known when it returns, and the interfaces and local addresses that
    /// there are come as the first events.
    ///
    /// # Errors
    ///
    /// When a socket cannot be opened (`CAP_NET_RAW` for ARP) or the kernel's tables cannot be read.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn start() -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::unbounded_channel();
        let (view_sender, view) = watch::channel(View::default());
        let actor = actor::Actor::start(event_sender, view_sender).await?;
        let task = tokio::spawn(actor.run(command_receiver));
        Ok((Self { commands, view, task }, events))
    }

    /// Watches an address from now on; to watch it twice is to watch it once.
    ///
    /// An [`Event::Resolution`] says what is known at first, and one follows at each change.
    /// When this returns, [`resolution`](Self::resolution) knows the address.
    pub async fn watch(&self, address: IpAddr) {
        self.command(|done| Command::Watch { address, done }).await;
    }

    /// Watches an address no longer, and takes back what was set on its neighbour entry. No event
    /// about it follows.
    pub async fn forget(&self, address: IpAddr) {
        self.command(|done| Command::Forget { address, done }).await;
    }

    /// What is known of the way to an address; `None` where it is not watched.
    pub fn resolution(&self, address: IpAddr) -> Option<Resolution> {
        self.view.borrow().resolutions.get(&address).cloned()
    }

    /// What is known of the way to a server there: of one behind a tunnel, of the way to the router, where there is one.
    pub fn reach(&self, address: IpAddr, is_tunnelled: bool) -> Option<Resolution> {
        Some(match self.resolution(address)? {
            Resolution::NotOnLink(OffLink::Gateway(Some(router))) if is_tunnelled => {
                self.resolution(router).unwrap_or(Resolution::Resolving)
            }
            direct => direct,
        })
    }

    /// Watches an address and waits until more is known than [`Resolution::Resolving`], `timeout` at
    /// most. The address stays watched, whatever the answer.
    pub async fn resolve(&self, address: IpAddr, timeout: Duration) -> Resolution {
        self.watch(address).await;
        let mut view = self.view.clone();
        let known = view.wait_for(|view| {
            view.resolutions
                .get(&address)
                .is_some_and(|resolution| *resolution != Resolution::Resolving)
        });
        // Time out, task gone: what is known by then is the answer in either case.
        drop(tokio::time::timeout(timeout, known).await);
        self.resolution(address).unwrap_or(Resolution::Resolving)
    }

    /// The same of many addresses, all of them together: until more is known of each, `timeout` at most.
    pub async fn resolve_all(&self, addresses: impl IntoIterator<Item = IpAddr>, timeout: Duration) {
        let mut unknown: Vec<IpAddr> = Vec::new();
        for address in addresses {
            if matches!(self.resolution(address), None | Some(Resolution::Resolving)) {
                self.watch(address).await;
                unknown.push(address);
            }
        }
        let mut view = self.view.clone();
        let known = view.wait_for(|view| {
            // Each change looks at those only that have become known, and at one that has not.
            while let Some(address) = unknown.last() {
                match view.resolutions.get(address) {
                    None | Some(Resolution::Resolving) => return false,
                    Some(_) => unknown.pop(),
                };
            }
            true
        });
        // Time out, task gone: callers ask for what is known by then.
        drop(tokio::time::timeout(timeout, known).await);
    }

    /// The path of packets to a watched address, where there is a route.
    pub fn path(&self, address: IpAddr) -> Option<Path> {
        self.view.borrow().paths.get(&address).copied()
    }

    /// Whether an interface of this host holds this address.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.view.borrow().local.contains(&address)
    }

    /// The addresses of this host.
    pub fn local(&self) -> BTreeSet<IpAddr> {
        self.view.borrow().local.clone()
    }

    /// The interfaces of this host, as of now.
    pub fn links(&self) -> Arc<Links> {
        Arc::clone(&self.view.borrow().links)
    }

    async fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, wait) = oneshot::channel();
        // Both fail only when the task has ended, which it does by a panic alone.
        if self.commands.send(command(done)).is_err() || wait.await.is_err() {
            tracing::error!("the neighbour task has ended: neighbours are no longer watched");
        }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.task.abort();
    }
}
