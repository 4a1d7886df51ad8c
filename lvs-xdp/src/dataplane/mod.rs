//! The program in the kernel and its maps: the only part of lvs-xdp that knows aya.
//!
//! [`Dataplane::open`] loads the program, adopting maps and links that an earlier agent has pinned,
//! and [`Dataplane::attach`] puts it on an interface. From then on forwarding needs no agent.
//! In reading order: [`tables`] (the maps in memory), `pins`, `interfaces`, `counters`, [`compile`] (from the desired state to
//! [`rows`], in extents of `extents`), `peers`, [`sweep`] (expiry, lists of connections), `migrate` (to tables of
//! another size), [`steering`] (the way of health checks).

mod clock;
pub mod compile;
mod counters;
mod extents;
mod interfaces;
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
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, xdp::DevMapHash},
    programs::{
        TestRun as _, TestRunOptions, Xdp,
        links::{FdLink, PinnedLink},
    },
};
use lvs_xdp_common::{
    abi::{ABI_VERSION, COUNTER_WORDS, SECONDS_SHIFT, name},
    connection::{State, TIMEOUTS, timeout_index},
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
    object::{OBJECT, director, is_unlinked, load, load_program},
    pins::{LinkPin, Pins, open_map},
};
pub use self::{
    interfaces::{Attached, Mode, interface_index, mac_text},
    object::{object_file, require_bpf},
    pins::is_linked,
    tables::{Capacity, Tables},
};
use crate::{api::types::Timeouts, crash};

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

    /// The records that the program logs, to be read when they are ready.
    ///
    /// # Errors
    ///
    /// Where it was taken before.
    pub fn logger(&mut self) -> anyhow::Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).context("the program has no log")
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
