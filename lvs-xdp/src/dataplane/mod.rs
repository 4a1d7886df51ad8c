//! The program in the kernel and its maps: the only part of lvs-xdp that knows aya.
//!
//! [`Dataplane::open`] loads the program, adopting maps and links that an earlier agent has pinned,
//! and [`Dataplane::attach`] puts it on an interface. From then on forwarding needs no agent.
//! In reading order: [`tables`] (the maps in memory), `pins`, [`compile`] (from the desired state to
//! [`rows`], in extents of `extents`), `peers`, [`sweep`] (expiry, lists of connections), `migrate` (to tables of
//! another size), [`steering`] (the way of health checks).

mod clock;
pub mod compile;
mod extents;
mod marks;
mod migrate;
mod object;
mod peers;
mod pins;
pub mod rows;
pub mod steering;
pub mod sweep;
mod tables;
pub mod trial;
mod vips;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues, xdp::DevMapHash},
    programs::{
        ProgramError, TestRun as _, TestRunOptions, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use lvs_xdp_common::{
    abi::{ABI_VERSION, COUNTER_WORDS, INTERFACE_ROWS, SECONDS_SHIFT, name},
    connection::{State, TIMEOUTS, timeout_index},
    packet::Mac,
    reason::Reason,
};
use nix::net::if_::if_indextoname;

pub(crate) use self::{
    clock::Sample as ClockSample,
    pins::{Generation, Pinned},
};
use self::{
    compile::Compiler,
    marks::Marks,
    migrate::Plan,
    object::{OBJECT, director, is_busy, is_unlinked, load, load_program, refused, why},
    pins::{LinkPin, Pins, open_map},
};
pub use self::{
    object::{object_file, require_bpf},
    pins::is_linked,
    tables::{Capacity, Tables},
};
use crate::{
    api::types::{Handshakes, InterfaceStatus, ReasonCount, Stats, Timeouts},
    crash,
};

/// Where in the network driver's path the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of the frame.
    Native,
    /// In the kernel's generic path: works with every driver, slower.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            _ => Err(()),
        }
    }
}

/// What [`Dataplane::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of the pins, on a BPF file system.
    pub pin_directory: PathBuf,
    /// Room in the tables.
    pub capacity: Capacity,
    /// Log every packet for a service.
    pub log_packets: bool,
}

/// An interface with the program on it.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The interface.
    pub if_index: u32,
    /// Its name when it was attached.
    pub name: String,
    /// The mode.
    pub mode: Mode,
    /// Why it is generic, where native was tried and refused.
    pub reason: Option<String>,
}

/// The loaded program with its maps.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: Pins,
    generation: u32,
    capacity: Capacity,
    tables: Arc<Tables>,
    counters: PerCpuArray<MapData, [u64; COUNTER_WORDS]>,
    reasons: PerCpuArray<MapData, u64>,
    redirect: DevMapHash<MapData>,
    attached: BTreeMap<u32, Attached>,
    steered: steering::Steered,
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane")
            .field("generation", &self.generation)
            .field("capacity", &self.capacity)
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Loads the program with the maps that are pinned, or with new ones, and puts it in the place of
    /// the one that runs, where one does.
    ///
    /// # Errors
    ///
    /// Without the rights, without BPF in the kernel, with pins of another layout, or where the kernel
    /// refuses the program: one line that says so.
    pub fn open(options: &Options) -> anyhow::Result<Self> {
        if OBJECT.is_empty() {
            bail!(
                "this binary was built without its eBPF program: run `cargo xtask setup` and build it again"
            );
        }
        require_root()?;
        let pins = Pins::open(&options.pin_directory)?;
        let mut plan = migrate::plan(&pins, options.capacity)?;
        if let Some(capacity) = plan.unfinished {
            // As any move is: by a program that runs on every link, and with the clock set.
            let sizes_there = Options {
                capacity,
                ..options.clone()
            };
            Self::follow(&plan, pins.clone(), &sizes_there)?;
            plan = migrate::plan(&pins, options.capacity)?;
        }
        Self::follow(&plan, pins, options)
    }

    /// Loads the program with the maps of the generation that was chosen, and moves there.
    fn follow(plan: &Plan, pins: Pins, options: &Options) -> anyhow::Result<Self> {
        let links = pins.links()?;
        let directory = pins.generation(plan.generation);
        let mut ebpf = load(&directory, options)?;
        let tables = Arc::new(Tables::open(&directory)?);
        let mut dataplane = Self {
            counters: open_map(&directory, name::COUNTERS)?,
            reasons: open_map(&directory, name::REASONS)?,
            redirect: open_map(&directory, name::REDIRECT)?,
            attached: BTreeMap::new(),
            steered: BTreeMap::new(),
            capacity: options.capacity,
            generation: plan.generation,
            pins,
            tables,
            ebpf: {
                for program in ["director", "clock"] {
                    load_program(&mut ebpf, program)?;
                }
                ebpf
            },
        };
        dataplane.initialise(plan.from.is_none())?;
        match plan.from {
            Some(from) if from != plan.generation => dataplane.migrate(from, &links)?,
            _ => {
                dataplane.take_over(&links)?;
                crash::point();
                dataplane.finish_migration()?;
            }
        }
        dataplane.pins.keep_only(Some(dataplane.generation))?;
        Ok(dataplane)
    }

    /// Sets up what new maps need.
    fn initialise(&mut self, is_new: bool) -> anyhow::Result<()> {
        let tables = Arc::clone(&self.tables);
        let control = &tables.control[0];
        if control.seconds_per_jiffy.load() == 0 {
            let (base, hz) = self.calibrate()?;
            control.jiffies_base.store(base);
            control.seconds_per_jiffy.store((1 << SECONDS_SHIFT) / hz + 1);
        }
        control
            .bucket_mask
            .store(u64::from(self.capacity.connections / 8 - 1));
        control
            .service_mask
            .store(self.tables.service_index.len() as u64 - 1);
        if is_new && control.hash_key[0].load() == 0 {
            let mut key = [0; 16];
            std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)
                .context("cannot read /dev/urandom")?;
            let (first, second) = key.split_at(8);
            for (word, bytes) in control.hash_key.iter().zip([first, second]) {
                word.store(u64::from_ne_bytes(bytes.try_into()?));
            }
            for (word, seconds) in control.timeouts.iter().zip(TIMEOUTS) {
                word.store(u64::from(seconds));
            }
        }
        Ok(())
    }

    /// Puts the loaded program in the place of the one that the links run: no packet is missed.
    fn take_over(&mut self, links: &[LinkPin]) -> anyhow::Result<()> {
        for pin in links {
            self.replace(pin)?;
        }
        self.pin_program()
    }

    fn replace(&mut self, pin: &LinkPin) -> anyhow::Result<()> {
        let Ok(interface) = if_indextoname(pin.if_index) else {
            // The interface is gone, and its link holds nothing.
            let _ = std::fs::remove_file(&pin.path);
            return Ok(());
        };
        let link = FdLink::from(PinnedLink::from_pin(&pin.path).context("cannot open a pinned link")?);
        crash::point();
        match director(&mut self.ebpf)?.attach_to_link(link.try_into()?) {
            Ok(_) => {}
            Err(error) if is_unlinked(&error) => {
                // The interface is gone, and another one has its index.
                let _ = std::fs::remove_file(&pin.path);
                return Ok(());
            }
            Err(error) => {
                return Err(error).context("cannot put the new program in the place of the one that runs");
            }
        }
        let name = interface.to_string_lossy().into_owned();
        self.attached.insert(
            pin.if_index,
            Attached {
                if_index: pin.if_index,
                name,
                mode: pin.mode,
                reason: None,
            },
        );
        Ok(())
    }

    /// Pins the program in its generation's directory: this is what makes the directory complete.
    fn pin_program(&mut self) -> anyhow::Result<()> {
        let path = self.pins.program(self.generation);
        crash::point();
        let _ = std::fs::remove_file(&path);
        crash::point();
        director(&mut self.ebpf)?
            .pin(&path)
            .context("cannot pin the program")?;
        Ok(())
    }

    /// Attaches the program to an interface; does nothing where it is attached already.
    ///
    /// # Errors
    ///
    /// The interface has another XDP program, or the mode that was asked for is refused.
    pub fn attach(&mut self, interface: &str, wanted: Option<Mode>) -> anyhow::Result<Attached> {
        let if_index = nix::net::if_::if_nametoindex(interface).map_err(|_| {
            anyhow::anyhow!("there is no interface `{interface}`: `ip link` lists those that there are")
        })?;
        if let Some(attached) = self.attached.get(&if_index) {
            if wanted.is_some_and(|mode| mode != attached.mode) {
                bail!(
                    "the program is attached to {interface} in {} mode: run `lvs-xdp unload` before changing the mode",
                    attached.mode
                );
            }
            return Ok(attached.clone());
        }
        let (mode, reason) = match wanted {
            Some(mode) => {
                self.try_attach(if_index, mode)
                    .map_err(|error| refused(interface, mode, &error))?;
                (mode, None)
            }
            None => match self.try_attach(if_index, Mode::Native) {
                Ok(()) => (Mode::Native, None),
                Err(error) if is_busy(&error) => return Err(refused(interface, Mode::Native, &error)),
                Err(error) => {
                    self.try_attach(if_index, Mode::Generic)
                        .map_err(|error| refused(interface, Mode::Generic, &error))?;
                    (Mode::Generic, Some(why(&error)))
                }
            },
        };
        let attached = Attached {
            if_index,
            name: interface.to_owned(),
            mode,
            reason,
        };
        self.attached.insert(if_index, attached.clone());
        self.allow_redirect(if_index)?;
        Ok(attached)
    }

    fn try_attach(&mut self, if_index: u32, mode: Mode) -> Result<(), ProgramError> {
        let path = self.pins.link(if_index, mode);
        let program = director(&mut self.ebpf).map_err(|_| ProgramError::NotLoaded)?;
        let id = program.attach_to_if_index(
            if_index,
            match mode {
                Mode::Native => XdpMode::Driver,
                Mode::Generic => XdpMode::Skb,
            },
        )?;
        let link: FdLink = program
            .take_link(id)?
            .try_into()
            .map_err(|_: LinkError| ProgramError::UnexpectedProgramType)?;
        link.pin(path).map_err(|error| match error {
            aya::pin::PinError::SyscallError(error) => ProgramError::SyscallError(error),
            _ => ProgramError::UnexpectedProgramType,
        })?;
        Ok(())
    }

    /// Lets frames be redirected out of an interface.
    pub fn allow_redirect(&mut self, if_index: u32) -> anyhow::Result<()> {
        self.redirect
            .insert(if_index, if_index, None, 0)
            .context("cannot enter an interface for redirection")
    }

    /// The interfaces that the program is attached to.
    pub fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.attached.values()
    }

    /// Whether the program is attached to an interface.
    pub fn is_attached(&self, if_index: u32) -> bool {
        self.attached.contains_key(&if_index)
    }

    /// Forgets an interface that is gone, where the program was attached to it.
    pub fn detached(&mut self, if_index: u32) -> Option<Attached> {
        let attached = self.attached.remove(&if_index)?;
        // The link holds nothing any more, and another interface may get this index.
        let _ = std::fs::remove_file(self.pins.link(if_index, attached.mode));
        Some(attached)
    }

    /// Notes the name that an interface has now; the one that it had, where that is another one and the program
    /// is attached to it.
    pub fn renamed(&mut self, if_index: u32, name: &str) -> Option<String> {
        let attached = self.attached.get_mut(&if_index)?;
        (attached.name != name).then(|| std::mem::replace(&mut attached.name, name.to_owned()))
    }

    /// The records that the program logs, to be read when they are ready.
    ///
    /// # Errors
    ///
    /// Where it was taken before.
    pub fn logger(&mut self) -> anyhow::Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).context("the program has no log")
    }

    /// What the status says of them.
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.attached()
            .map(|attached| InterfaceStatus {
                name: attached.name.clone(),
                index: attached.if_index,
                mode: attached.mode.to_string(),
                reason: attached.reason.clone(),
            })
            .collect()
    }

    /// Notes the MAC addresses under which the director takes frames of an interface.
    pub fn set_macs(&self, if_index: u32, macs: &[[u8; 6]]) {
        let row = &self.tables.interfaces[(if_index % INTERFACE_ROWS) as usize];
        // Unknown while it changes: then every frame is taken.
        row.if_index.store(0);
        let mut macs = macs.iter();
        for word in &row.macs {
            word.store(macs.next().map_or(0, |mac| Mac::from_octets(*mac).0));
        }
        if macs.next().is_none() {
            row.if_index.store(u64::from(if_index));
        }
    }

    /// Sets the time-outs of connections that can be set.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        let Timeouts { tcp, tcp_fin, udp } = timeouts;
        for (state, seconds) in [
            (State::Established, tcp),
            (State::FinWait, tcp_fin),
            (State::Udp, udp),
        ] {
            self.set_timeout(state, seconds);
        }
    }

    /// Sets the time-out of one state.
    pub fn set_timeout(&self, state: State, seconds: u32) {
        let timeouts = &self.tables.control[0].timeouts;
        for is_coarse in [false, true] {
            timeouts[timeout_index(state, is_coarse)].store(u64::from(seconds));
        }
    }

    /// The tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The bookkeeping of what the maps hold.
    ///
    /// # Errors
    ///
    /// Where the rules of marks cannot be read.
    pub fn compiler(&self) -> anyhow::Result<Compiler> {
        let tables = Arc::clone(&self.tables);
        let marks = Marks::open(&self.pins.generation(self.generation), Arc::clone(&tables))
            .context("cannot read the rules of marks")?;
        Ok(Compiler::new(tables, self.capacity, marks))
    }

    /// Frees what removed destinations and deleted services have used, where no connection is left.
    ///
    /// # Errors
    ///
    /// Where a counter cannot be cleared.
    pub fn reap(&mut self, compiler: &mut Compiler) -> anyhow::Result<()> {
        for id in compiler.reap() {
            compiler.retire(id, self.stats(id));
            self.clear_stats(id)?;
        }
        compiler.bury_empty();
        compiler.forget_unmarked();
        Ok(())
    }

    /// Room in the tables.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The kernel's id of the program.
    pub fn program_id(&self) -> anyhow::Result<u32> {
        let program: &Xdp = self.ebpf.program("director").context("no program")?.try_into()?;
        Ok(program.info()?.id())
    }

    /// Asks the kernel what time it is, and sets the tables' clock; seconds of the director's clock.
    pub fn tick(&mut self) -> anyhow::Result<u32> {
        let (jiffies, _) = self.clock()?;
        let seconds = self.tables.control[0].seconds(jiffies);
        self.tables.set_now(seconds);
        Ok(seconds)
    }

    /// jiffies64 and CLOCK_MONOTONIC nanoseconds, now.
    fn clock(&mut self) -> anyhow::Result<(u64, u64)> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut("clock")
            .context("no program `clock`")?
            .try_into()?;
        let frame = [0; 14];
        program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ..TestRunOptions::new()
            })
            .context("cannot read the kernel's clock")?;
        let clock = &self.tables.clock[0];
        Ok((clock.jiffies.load(), clock.nanoseconds.load()))
    }

    /// The base of the director's clock, in jiffies, and the kernel's tick rate.
    ///
    /// `sysconf(_SC_CLK_TCK)` is 100 whatever the kernel's HZ, so it is measured.
    fn calibrate(&mut self) -> anyhow::Result<(u64, u64)> {
        const RATES: [u64; 6] = [100, 250, 300, 512, 1000, 1024];
        let (first, from) = self.clock()?;
        std::thread::sleep(Duration::from_millis(120));
        let (last, until) = self.clock()?;
        let measured = (last - first).saturating_mul(1_000_000_000) / (until - from).max(1);
        let hz = RATES
            .into_iter()
            .min_by_key(|rate| rate.abs_diff(measured))
            .unwrap_or(250);
        Ok((first, hz))
    }

    /// A destination's counters, over all CPUs.
    pub fn stats(&self, destination: u32) -> Stats {
        self.counted(destination).0
    }

    /// The same, and what was seen of its TCP handshakes.
    pub fn counted(&self, destination: u32) -> (Stats, Handshakes) {
        let mut sums = [0_u64; COUNTER_WORDS];
        for row in self
            .counters
            .get(&destination, 0)
            .iter()
            .flat_map(|values| values.iter())
        {
            for (sum, word) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(*word);
            }
        }
        let [
            packets,
            bytes,
            connections,
            syns,
            repeated,
            acknowledged,
            jiffies,
            _,
        ] = sums;
        let stats = Stats {
            connections,
            packets,
            bytes,
        };
        let rate = self.tables.control[0].seconds_per_jiffy.load();
        let microseconds = (u128::from(jiffies) * u128::from(rate) * 1_000_000) >> SECONDS_SHIFT;
        let handshakes = Handshakes {
            syns,
            repeated,
            acknowledged,
            microseconds: u64::try_from(microseconds).unwrap_or(u64::MAX),
        };
        (stats, handshakes)
    }

    /// Sets destinations' counters to zero while packets are counted. It takes as long as a grace period.
    ///
    /// A CPU that has read its counter before it was set, and writes it after, undoes that. So what a CPU has after
    /// the grace period is compared with what it had, and where it has not begun anew it is set again, to what came
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// Where the map cannot be read or written.
    pub fn zero_stats(&mut self, destinations: &[u32]) -> anyhow::Result<()> {
        let mut before = Vec::with_capacity(destinations.len());
        for &id in destinations {
            before.push(self.counters.get(&id, 0)?);
            self.clear_stats(id)?;
        }
        grace().context("cannot wait for the packets that are being counted")?;
        for (&id, before) in destinations.iter().zip(before) {
            let mut now = self.counters.get(&id, 0)?.to_vec();
            let mut is_undone = false;
            for (now, before) in now.iter_mut().zip(before.iter()) {
                // Packets: whatever is counted, they are.
                if before[0] > 0 && now[0] >= before[0] {
                    for (now, before) in now.iter_mut().zip(before) {
                        *now = now.saturating_sub(*before);
                    }
                    is_undone = true;
                }
            }
            if is_undone {
                self.counters.set(id, PerCpuValues::try_from(now)?, 0)?;
            }
        }
        Ok(())
    }

    /// Sets a destination's counters to zero: for an id that no list and no entry names.
    fn clear_stats(&mut self, destination: u32) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zero = PerCpuValues::try_from(vec![[0; COUNTER_WORDS]; cpus])?;
        Ok(self.counters.set(destination, zero, 0)?)
    }

    /// What became of packets, over all CPUs.
    pub fn reasons(&self) -> Vec<ReasonCount> {
        Reason::ALL
            .iter()
            .map(|&reason| ReasonCount {
                name: reason.name().to_owned(),
                verdict: reason.outcome().name().to_owned(),
                help: reason.help().to_owned(),
                packets: self.packets_of(reason),
            })
            .collect()
    }

    /// Packets of one reason, over all CPUs.
    pub fn packets_of(&self, reason: Reason) -> u64 {
        self.reasons
            .get(&(reason as u32), 0)
            .map_or(0, |values| values.iter().sum())
    }

    /// Takes the program off all interfaces and removes every pin.
    pub fn unload(&self) -> anyhow::Result<()> {
        self.pins.remove_all()
    }
}

/// Refuses everybody but root.
///
/// # Errors
///
/// Where this process is not root's.
pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading an XDP program needs root: run the agent as root");
    }
    Ok(())
}

/// The index of an interface.
///
/// # Errors
///
/// Where there is no such interface.
pub fn interface_index(name: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|_| anyhow::anyhow!("there is no interface `{name}`: `ip link` lists those that there are"))
}

/// A MAC address as people write it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Removes the program and its pins where no agent runs.
///
/// # Errors
///
/// Where a pin cannot be removed, or the directory holds those of another layout.
pub fn unload(pin_directory: &Path) -> anyhow::Result<()> {
    require_root()?;
    if !pin_directory.exists() {
        bail!("{} is not there: nothing is loaded", pin_directory.display());
    }
    Pins::open(pin_directory)?.remove_all()
}

/// Waits until every packet has left that was in the program when this was called.
///
/// membarrier(2) waits for an RCU grace period, and the program runs inside an RCU read-side critical
/// section (`synchronize_rcu` in kernel/sched/membarrier.c). Some 20 ms.
///
/// # Errors
///
/// Where the kernel has no membarrier: CONFIG_MEMBARRIER is off.
pub fn grace() -> std::io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier takes three integers and touches no memory of this process.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if status == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The layout's version.
pub const LAYOUT: u32 = ABI_VERSION;
