//! A director without an interface: the real program and maps, which frames are fed to one by one.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use lvs_xdp::{
    api::types::{
        Change, ForwardingMethod, Protocol, Scheduler, SchedulerFlag, ServerKey, ServerSpec, ServiceKey,
        ServiceSpec, Tunnel,
    },
    dataplane::{
        self, Capacity, Dataplane, Options,
        compile::{Compiler, TunnelWay, Way},
    },
    model::Model,
};
use lvs_xdp_common::{
    abi::{ABI_VERSION, SECONDS_SHIFT},
    connection::State,
    hash::HashKey,
    maps::Maps as _,
    reason::{Outcome, Reason},
};

use crate::{
    agent::BPFFS,
    frame::DIRECTOR_MAC,
    stale::{self, PIN_PREFIX},
};

/// The loopback interface, which every network namespace has: frames are said to come from there.
pub const LOOPBACK: u32 = 1;

/// The source address of tunnels in trials.
pub const TUNNEL_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 200);

/// Actions of an XDP program (linux/bpf.h).
pub mod xdp {
    /// `XDP_DROP`.
    pub const DROP: u32 = 1;
    /// `XDP_PASS`.
    pub const PASS: u32 = 2;
    /// `XDP_TX`.
    pub const TX: u32 = 3;
    /// `XDP_REDIRECT`.
    pub const REDIRECT: u32 = 4;
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The program's answer.
    pub action: u32,
    /// The counter that was raised.
    pub reason: Reason,
    /// The frame as it was left.
    pub frame: Vec<u8>,
}

/// A directory of pins that goes with its guard.
struct PinDirectory(PathBuf);

impl PinDirectory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        stale::remove();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PIN_PREFIX}{}-trial-{number}", std::process::id());
        Self(Path::new(BPFFS).join(name))
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        if let Err(error) = dataplane::unload(&self.0) {
            eprintln!("{} is left behind: {error:#}", self.0.display());
        }
    }
}

/// The director.
pub struct Director {
    /// The program and its maps.
    pub dataplane: Dataplane,
    /// Where everything stands in the maps.
    pub compiler: Compiler,
    model: Model,
    reasons: Vec<u64>,
    pins: PinDirectory,
}

impl fmt::Debug for Director {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Director").field(&self.dataplane).finish()
    }
}

impl Director {
    /// Loads the program with maps of its own.
    ///
    /// # Errors
    ///
    /// When not root, or the kernel refuses the program.
    pub fn new(connections: u32) -> Result<Self> {
        Self::with_capacity(Capacity {
            connections,
            services: 64,
            destinations: 512,
        })
    }

    /// As [`Self::new`], with room for more.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_capacity(capacity: Capacity) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test loads the program: run it as root, by `cargo xtask test`"
        );
        let pins = PinDirectory::new();
        let dataplane = Dataplane::open(&Options {
            pin_directory: pins.0.clone(),
            capacity,
            log_packets: false,
        })?;
        let compiler = dataplane.compiler()?;
        dataplane.set_macs(LOOPBACK, &[DIRECTOR_MAC]);
        let mut director = Self {
            dataplane,
            compiler,
            model: Model::default(),
            reasons: Vec::new(),
            pins,
        };
        director.reasons = director.count_reasons();
        Ok(director)
    }

    /// The pin of a map, by its name in [`lvs_xdp_common::abi::name`].
    ///
    /// # Errors
    ///
    /// When there is none, or not one only.
    pub fn map(&self, name: &str) -> Result<MapData> {
        let layout = self.pins().join(format!("v{ABI_VERSION}"));
        let mut found = Vec::new();
        for generation in std::fs::read_dir(layout)? {
            let pin = generation?.path().join(name);
            if pin.exists() {
                found.push(pin);
            }
        }
        match found.as_slice() {
            [pin] => MapData::from_pin(pin).with_context(|| format!("cannot open the map {name}")),
            others => bail!("{name} is pinned {} times: {others:?}", others.len()),
        }
    }

    /// The directory of its pins.
    pub fn pins(&self) -> &Path {
        &self.pins.0
    }

    /// Sets the secret of the flow hash. Only before there is any service or connection.
    pub fn set_key(&self, key: HashKey) {
        let words = &self.dataplane.tables().control().hash_key;
        words[0].store(key.0);
        words[1].store(key.1);
    }

    /// Stops the clock of the program, which else goes by the kernel's, at so many seconds.
    ///
    /// # Errors
    ///
    /// When the kernel's clock cannot be read.
    pub fn stop_clock(&mut self, seconds: u32) -> Result<()> {
        // One second in 2^28 jiffies is as good as none; half of that away from the next.
        const JIFFIES: u64 = 1 << SECONDS_SHIFT;
        let tables = Arc::clone(self.dataplane.tables());
        let control = tables.control();
        control.jiffies_base.store(0);
        control.seconds_per_jiffy.store(JIFFIES);
        let jiffies = u64::from(self.dataplane.tick()?);
        control.seconds_per_jiffy.store(1);
        control.jiffies_base.store(
            jiffies
                .wrapping_sub(JIFFIES / 2)
                .wrapping_sub(u64::from(seconds) * JIFFIES),
        );
        self.dataplane.tick()?;
        Ok(())
    }

    /// Changes what is configured, as the agent does.
    ///
    /// # Errors
    ///
    /// When the change is refused.
    pub fn change(&mut self, changes: &[Change]) -> Result<()> {
        self.plan_and_apply(changes)?;
        dataplane::grace()?;
        self.compiler.settle();
        Ok(())
    }

    /// As [`Self::change`], but waits for no packet to leave the program: for whoever feeds it all of its frames,
    /// one after the other.
    ///
    /// # Errors
    ///
    /// When the change is refused.
    pub fn change_between_frames(&mut self, changes: &[Change]) -> Result<()> {
        self.plan_and_apply(changes)?;
        self.compiler.settle();
        Ok(())
    }

    fn plan_and_apply(&mut self, changes: &[Change]) -> Result<()> {
        let touched = self.model.touched(changes);
        self.model.apply(changes)?;
        let told = Model::told(changes);
        let plan = self
            .compiler
            .plan(&self.model, &touched, &told, |_, server| server.weight)?;
        self.compiler.apply(plan);
        Ok(())
    }

    /// Goes on as an agent does that finds what another one has left: its bookkeeping is what the maps say, ways that are
    /// still the same are not noted again, and every service is compiled anew. These are the real servers.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read, or have no room.
    pub fn adopt(&mut self, servers: impl IntoIterator<Item = IpAddr>) -> Result<()> {
        self.compiler = self.dataplane.compiler()?;
        for server in servers {
            if self.compiler.way(server) != Some(way_to(server, LOOPBACK)) {
                self.resolve(server);
            }
        }
        let mut touched = self.compiler.services();
        touched.extend(self.model.services().keys().copied());
        let plan = self
            .compiler
            .plan(&self.model, &touched, &BTreeSet::new(), |_, server| server.weight)?;
        self.compiler.apply(plan);
        self.compiler.settle();
        Ok(())
    }

    /// Frees what removed destinations and deleted services have used, as the agent does every second.
    ///
    /// # Panics
    ///
    /// When a counter cannot be cleared.
    pub fn reap(&mut self) {
        self.dataplane
            .reap(&mut self.compiler)
            .expect("the counters are there");
    }

    /// Notes the way to a real server: by [`LOOPBACK`], to the MAC address of [`mac_of`].
    pub fn resolve(&mut self, server: impl Into<IpAddr>) {
        self.resolve_by(server, LOOPBACK);
    }

    /// As [`Self::resolve`], by another interface.
    pub fn resolve_by(&mut self, server: impl Into<IpAddr>, if_index: u32) {
        let server = server.into();
        self.compiler.set_way(server, Some(way_to(server, if_index)));
    }

    /// Notes the way to a real server through a tunnel: as [`Self::resolve`], from [`TUNNEL_SOURCE`], with an MTU.
    pub fn resolve_tunnel(&mut self, server: Ipv4Addr, mtu: u16) {
        let way = TunnelWay {
            way: way_to(server.into(), LOOPBACK),
            source: TUNNEL_SOURCE.into(),
            spread: 0,
            mtu,
        };
        self.compiler.set_tunnel(server.into(), way);
    }

    /// Feeds the program a frame that comes from [`LOOPBACK`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses the frame, or not exactly one counter of a reason was raised by one.
    pub fn send(&mut self, frame: &[u8]) -> Result<Seen> {
        let trial = self.dataplane.trial(frame, LOOPBACK)?;
        let now = self.count_reasons();
        let mut raised = Reason::ALL.iter().zip(self.reasons.iter().zip(&now));
        let first = raised.find(|(_, (before, after))| before != after);
        let (&reason, (before, after)) = first.context("no reason was counted")?;
        let second = raised.find(|(_, (before, after))| before != after);
        ensure!(
            second.is_none() && before + 1 == *after,
            "counted {} times, and {second:?}",
            after - before
        );
        self.reasons = now;
        Ok(Seen {
            action: trial.action,
            reason,
            frame: trial.frame,
        })
    }

    fn count_reasons(&self) -> Vec<u64> {
        let reasons = self.dataplane.reasons();
        reasons.iter().map(|reason| reason.packets).collect()
    }

    /// Active and inactive connections of a destination.
    ///
    /// # Panics
    ///
    /// When there is no such destination.
    pub fn counts(&self, service: &ServiceKey, server: impl Into<IpAddr>) -> (u64, u64) {
        let id = self.compiler.destination(service, &server_key(service, server));
        self.compiler.counts(id.expect("the destination is there"))
    }

    /// Persistence templates of a destination.
    ///
    /// # Panics
    ///
    /// When there is no such destination.
    pub fn templates(&self, service: &ServiceKey, server: impl Into<IpAddr>) -> u64 {
        let id = self.compiler.destination(service, &server_key(service, server));
        self.compiler.templates(id.expect("the destination is there"))
    }

    /// What is configured.
    pub fn model(&self) -> &Model {
        &self.model
    }
}

/// The action of a packet of this reason that goes to an interface other than where it came from, or not.
pub fn action(reason: Reason, elsewhere: bool) -> u32 {
    match reason.outcome() {
        Outcome::Forward if elsewhere => xdp::REDIRECT,
        Outcome::Forward | Outcome::Answer => xdp::TX,
        Outcome::Pass => xdp::PASS,
        Outcome::Drop => xdp::DROP,
    }
}

/// Every state of a connection, for a time-out of its own.
pub const STATES: [State; 6] = [
    State::Udp,
    State::SynRecv,
    State::Established,
    State::FinWait,
    State::TimeWait,
    State::Close,
];

/// The MAC address that a real server has in trials: with the last octets of its address.
pub fn mac_of(server: impl Into<IpAddr>) -> [u8; 6] {
    let [a, b, c, d] = match server.into() {
        IpAddr::V4(server) => server.octets(),
        IpAddr::V6(server) => {
            let [.., a, b, c, d] = server.octets();
            [a, b, c, d]
        }
    };
    [0x02, 0xee, a, b, c, d]
}

/// A virtual service's identity.
pub fn service_key(protocol: Protocol, address: impl Into<IpAddr>, port: u16) -> ServiceKey {
    ServiceKey::new(protocol, address.into(), port)
}

/// The virtual address of a service that is none of a mark's.
///
/// # Panics
///
/// For a mark's service, which has none.
pub fn vip_of(service: &ServiceKey) -> IpAddr {
    match service {
        ServiceKey::Endpoint { address, .. } => *address,
        ServiceKey::Mark { .. } => panic!("{service} has no address"),
    }
}

/// A real server's identity: with direct routing the port is the service's.
pub fn server_key(service: &ServiceKey, server: impl Into<IpAddr>) -> ServerKey {
    ServerKey {
        address: server.into(),
        port: service.port(),
    }
}

/// The way to a real server by an interface, to the MAC address of [`mac_of`].
fn way_to(server: IpAddr, if_index: u32) -> Way {
    Way::Neighbour {
        mac: mac_of(server),
        source_mac: DIRECTOR_MAC,
        if_index,
        tags: None,
    }
}

/// `-A`.
pub fn add_service(key: ServiceKey, scheduler: Scheduler, flags: &[SchedulerFlag]) -> Change {
    Change::AddService {
        service: ServiceSpec {
            flags: flags.to_vec(),
            ..ServiceSpec::new(key, scheduler)
        },
    }
}

fn server_spec(service: &ServiceKey, server: impl Into<IpAddr>, weight: u32) -> ServerSpec {
    ServerSpec::new(server_key(service, server), weight)
}

/// `-a`.
pub fn add_server(service: ServiceKey, server: impl Into<IpAddr>, weight: u32) -> Change {
    Change::AddServer {
        service,
        server: server_spec(&service, server, weight),
        require_on_link: false,
    }
}

/// `-a -i`.
pub fn add_tunnel_server(service: ServiceKey, server: Ipv4Addr, tunnel: Tunnel) -> Change {
    Change::AddServer {
        service,
        server: ServerSpec {
            method: ForwardingMethod::Tunnel(tunnel),
            ..server_spec(&service, server, 1)
        },
        require_on_link: false,
    }
}

/// `-e`.
pub fn edit_server(service: ServiceKey, server: impl Into<IpAddr>, weight: u32) -> Change {
    Change::EditServer {
        service,
        server: server_spec(&service, server, weight),
    }
}

/// `-d`.
pub fn delete_server(service: ServiceKey, server: impl Into<IpAddr>) -> Change {
    Change::DeleteServer {
        service,
        server: server_key(&service, server),
    }
}
