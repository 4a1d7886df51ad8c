//! Directors at the ends of cables, and a generator at the other end of all of them.
//!
//! ```text
//!   generator              director N
//!   cableN  transmit ────▶ eth0  the program under test
//!           sink     ◀────       (or the kernel's own stack)
//! ```
//!
//! A cable is a veth pair. Each director has a network namespace of its own, so that all of them are set up before
//! anything is measured, and nothing is attached or detached between two measurements. The generator runs on frames
//! of the kernel's own (live frames of BPF_PROG_TEST_RUN), which it puts into the director's end; those that come back
//! are counted and dropped, and the generator gets them again. With everything on one CPU nothing is lost: the
//! kernel lets the director and the sink have their turn after each batch.

use std::{
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRunAttrs,
    maps::{MapData, PerCpuArray},
    programs::{TestRun as _, TestRunOptions, XdpMode},
};
use lvs_xdp::{
    api::types::{Protocol, Scheduler},
    dataplane::{Capacity, Mode, interface_index, mac_text},
};
use lvs_xdp_tests::{
    frame::{CLIENT_MAC, DIRECTOR_MAC},
    netns::Netns,
    trial::{Director, add_server, add_service, service_key},
};

use crate::{
    floors::{Floors, OfWords, Shared, Stream},
    frames::{PORT, virtual_address},
    packets::{SERVERS, SERVERS_EACH, SERVICES, server},
    trip::{BETWEEN_MARKS, Trip},
};

/// The director's end of every cable.
pub(crate) const END: &str = "eth0";
/// Packets that the generator makes at once: an eighth of what the ring between two veth ends holds.
const BATCH: u32 = 32;
/// How long packets may still be on their way after the last was sent.
const PATIENCE: Duration = Duration::from_millis(200);

/// A director at the end of a cable. What is in the namespace is the caller's.
#[derive(Debug)]
pub(crate) struct Cable {
    /// The generator's end.
    if_index: u32,
    /// The director's namespace.
    pub(crate) netns: Arc<Netns>,
    /// The director's end.
    end: &'static str,
}

/// What a run has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Packets that were sent, and that have come back.
    pub(crate) sent: u64,
    pub(crate) back: u64,
    /// ns from packet to packet.
    pub(crate) each: f64,
}

impl Seen {
    /// Whether as good as all of the first packets came back. Of a connection whose first one was lost no packet does.
    ///
    /// # Errors
    ///
    /// When more than one of a thousand was lost.
    pub(crate) fn ensure_opened(&self, row: &str) -> Result<()> {
        ensure!(
            self.back * 1000 >= self.sent * 999,
            "`{row}`: of {} first packets, {} came back",
            self.sent,
            self.back
        );
        Ok(())
    }
}

// SAFETY: all of its fields are words.
unsafe impl OfWords for Trip {}

/// The generator.
pub(crate) struct Generator {
    pub(crate) floors: Floors,
    netns: Netns,
    received: PerCpuArray<MapData, u64>,
    trip: Shared<Trip>,
    cables: u32,
}

impl Generator {
    /// Sets it up, with no cable yet.
    ///
    /// # Errors
    ///
    /// When there can be no namespace, or the object is not as expected.
    pub(crate) fn new(mut floors: Floors) -> Result<Self> {
        let received = PerCpuArray::try_from(floors.take_map("RECEIVED")?)?;
        let trip = Shared::map(floors.take_map("TRIP")?)?;
        Ok(Self {
            floors,
            netns: Netns::new("generator")?,
            received,
            trip,
            cables: 0,
        })
    }

    /// Lays a cable to a new director: nothing is on its end yet.
    ///
    /// # Errors
    ///
    /// When a command fails, or the sink is refused.
    pub(crate) fn cable(&mut self, label: &str) -> Result<Cable> {
        self.cable_to(Arc::new(Netns::new(label)?), END)
    }

    /// Lays a cable to a director in this namespace, to an end of this name.
    ///
    /// # Errors
    ///
    /// When a command fails, or the sink is refused.
    pub(crate) fn cable_to(&mut self, netns: Arc<Netns>, end: &'static str) -> Result<Cable> {
        let near = format!("cable{}", self.cables);
        self.cables += 1;
        let [director, client] = [DIRECTOR_MAC, CLIENT_MAC].map(mac_text);
        // No queue in front of the cable, as in front of a network card with none waiting.
        self.netns.ip(&format!(
            "link add {near} address {client} type veth peer name {end} address {director} netns {}",
            netns.name()
        ))?;
        for (netns, end) in [(&self.netns, near.as_str()), (&*netns, end)] {
            // Neither end asks for anything, and what leaves is what a wire would have.
            netns.sysctl(&format!("net.ipv6.conf.{end}.disable_ipv6"), "1")?;
            netns.run("ethtool", ["-K", end, "tx", "off", "tso", "off"])?;
            netns.ip(&format!("link set {end} up"))?;
        }
        let floors = &mut self.floors;
        let if_index = self.netns.enter(|| -> Result<u32> {
            let sink = floors.xdp("sink")?;
            sink.attach(&near, XdpMode::Driver)
                .with_context(|| format!("cannot attach the sink to {near}"))?;
            interface_index(&near)
        })??;
        Ok(Cable { if_index, netns, end })
    }

    /// Attaches a floor to a director's end, in native mode.
    ///
    /// # Errors
    ///
    /// When there is no such floor, or it is refused.
    pub(crate) fn attach(&mut self, name: &str, cable: &Cable) -> Result<()> {
        let floors = &mut self.floors;
        cable.netns.enter(|| -> Result<()> {
            floors.xdp(name)?.attach(cable.end, XdpMode::Driver)?;
            Ok(())
        })?
    }

    /// Sends so many packets of a stream to a director and counts what comes back; `position` is the number of the
    /// last flow of which one was sent.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the generator could not make them all.
    pub(crate) fn send(
        &mut self,
        cable: &Cable,
        stream: &Stream<'_>,
        position: &mut u64,
        packets: u32,
    ) -> Result<Seen> {
        self.floors.tell(stream, *position);
        let trip = &*self.trip;
        trip.if_index.store(cable.if_index.into());
        trip.sent.store(0);
        let before = self.received()?;
        let floors = &mut self.floors;
        // The interface is looked for where the caller is.
        self.netns.enter(|| -> Result<()> {
            floors.xdp("transmit")?.test_run(TestRunOptions {
                data_in: Some(&stream.template.bytes),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })?;
            Ok(())
        })??;
        *position = self.floors.position();
        let trip = &*self.trip;
        let sent = trip.sent.load();
        ensure!(
            sent == u64::from(packets),
            "the generator made {sent} packets, not {packets}"
        );
        let between = (sent - 1) / BETWEEN_MARKS * BETWEEN_MARKS;
        let nanoseconds = trip.last.load() - trip.first.load();

        let end = Instant::now() + PATIENCE;
        let mut back = self.received()? - before;
        while back < sent && Instant::now() < end {
            sleep(Duration::from_millis(5));
            back = self.received()? - before;
        }
        Ok(Seen {
            sent,
            back,
            each: nanoseconds as f64 / between as f64,
        })
    }

    fn received(&self) -> Result<u64> {
        Ok(self.received.get(&0, 0)?.iter().sum())
    }
}

/// Puts lvs-xdp on the ends of cables to one namespace, with [`SERVICES`] services for each of them, whose real servers
/// are behind it, and with room for so many connections.
///
/// # Errors
///
/// When it cannot be loaded or attached.
pub(crate) fn direct(cables: &[&Cable], mode: Mode, connections: u32) -> Result<Director> {
    let ends = u32::try_from(cables.len())?;
    let mut director = Director::with_capacity(Capacity {
        connections,
        services: ends * SERVICES,
        destinations: (ends * SERVICES * SERVERS_EACH + 64).next_power_of_two(),
    })?;
    let mut changes = Vec::new();
    for (number, cable) in (0..).zip(cables) {
        let if_index = cable.netns.enter(|| interface_index(cable.end))??;
        director.dataplane.set_macs(if_index, &[DIRECTOR_MAC]);
        let first = number * SERVERS;
        for server_number in first..first + SERVERS {
            director.resolve_by(server(server_number), if_index);
        }
        for service in 0..SERVICES {
            let address = virtual_address(number * SERVICES + service, false);
            let key = service_key(Protocol::Tcp, address, PORT);
            changes.push(add_service(key, Scheduler::Rr, &[]));
            changes.extend(servers_of(service).map(|number| add_server(key, server(first + number), 1)));
        }
    }
    director.change(&changes)?;
    for cable in cables {
        if mode == Mode::Generic {
            take_in_turns(cable)?;
        }
        let dataplane = &mut director.dataplane;
        cable.netns.enter(|| dataplane.attach(cable.end, Some(mode)))??;
    }
    Ok(director)
}

/// The numbers of the real servers that a service has: services share servers, but no two the same ones.
pub(crate) fn servers_of(service: u32) -> impl Iterator<Item = u32> {
    (0..SERVERS_EACH).map(move |number| (number + 7 * service) % SERVERS)
}

/// Lets a director's end be polled as a network card is, though no native program is on it: without, the kernel
/// puts no frame of a generator into it.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn take_in_turns(cable: &Cable) -> Result<()> {
    cable.netns.run("ethtool", ["-K", cable.end, "gro", "on"])?;
    Ok(())
}
