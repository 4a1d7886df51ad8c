//! The benchmark's own programs in the kernel: the generator, the floors, and how long a program takes for a packet.

use std::{
    collections::BTreeMap,
    env, fs,
    marker::PhantomData,
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, ProgramArray},
    programs::{ProgramFd, ProgramInfo, TestRun as _, TestRunOptions, Xdp},
};
use memmap2::{MmapOptions, MmapRaw};

use crate::{
    frames::Template,
    plan::{Plan, WORDS},
};

/// Names the object, which `cargo xtask bench` has built.
pub(crate) const OBJECT_VARIABLE: &str = "LVS_XDP_FLOORS";
/// What programs of the object answer with, but for mistakes.
const ABORTED: u32 = 0;

/// An order in which the generator goes through flows. Tables are filled in one and measured in another: in the same,
/// the processor would find the next entry beside the last one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    multiplier: u64,
    increment: u64,
}

impl Order {
    pub(crate) const FILL: Self = Self {
        multiplier: 0x5851_f42d_4c95_7f2d,
        increment: 0x1405_7b7e_f767_814f,
    };
    pub(crate) const MEASURE: Self = Self {
        multiplier: 0xd134_2543_de82_ef95,
        increment: 0x2545_f491_4f6c_dd1d,
    };
}

/// The size of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Size {
    /// Instructions, as the kernel keeps them.
    pub(crate) instructions: u32,
    /// Bytes of machine code.
    pub(crate) machine_code: u32,
    /// Instructions that the verifier has followed.
    pub(crate) verified: u32,
}

impl Size {
    /// What the kernel says of a program.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub(crate) fn of(info: &ProgramInfo) -> Result<Self> {
        Ok(Self {
            instructions: info.size_translated().context("no instructions")? / 8,
            machine_code: info.size_jitted(),
            verified: info.verified_instruction_count().context("not verified")?,
        })
    }
}

/// A row that is made of [`Word`](lvs_xdp_common::atomic::Word)s and of nothing else.
///
/// # Safety
///
/// Of no other type: what is shared with programs changes at any time.
pub(crate) unsafe trait OfWords {}

// SAFETY: all of its fields are words, or arrays of them.
unsafe impl OfWords for Plan {}

/// The one row of an array of the object's, shared with its programs.
pub(crate) struct Shared<T>(MmapRaw, PhantomData<T>);

impl<T: OfWords> Shared<T> {
    /// Maps the array into memory.
    ///
    /// # Errors
    ///
    /// When it is no array, or the kernel refuses.
    pub(crate) fn map(map: Map) -> Result<Self> {
        let Map::Array(array) = map else {
            bail!("a row is shared of an array only");
        };
        let memory = MmapOptions::new()
            .len(size_of::<T>())
            .map_raw(array.fd().as_fd().as_raw_fd())
            .context("cannot map an array of the object's")?;
        Ok(Self(memory, PhantomData))
    }
}

impl<T: OfWords> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is as long as the row, aligned to a page, and lives as long as `self`; the row is
        // made of words, which may change at any time.
        unsafe { &*self.0.as_ptr().cast::<T>() }
    }
}

/// The programs, with tables as large as those of a director with so many connections.
pub(crate) struct Floors {
    ebpf: Ebpf,
    under_test: ProgramArray<MapData>,
    plan: Shared<Plan>,
    sizes: BTreeMap<&'static str, Size>,
}

impl Floors {
    /// The names of the floors, the least first.
    pub(crate) const NAMES: [&str; 6] = ["nothing", "parsing", "rewriting", "line", "lines", "usual"];

    /// What generates packets, sends them through a cable, and takes them off there.
    const HELPERS: [&str; 4] = ["generate", "transmit", "sink", "dropping"];

    /// Loads them, for a table of `connections` and `services` services.
    ///
    /// # Errors
    ///
    /// When the object is not there, or the kernel refuses it.
    pub(crate) fn load(connections: u32, services: u32, virtual_address: u32) -> Result<Self> {
        let path = env::var_os(OBJECT_VARIABLE)
            .with_context(|| format!("{OBJECT_VARIABLE} is not set: run `cargo xtask bench`"))?;
        let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let [hot, cold] = [connections / 8, connections];
        let [hot_mask, cold_mask] = [hot, cold].map(|rows| u64::from(rows - 1));
        let mut ebpf = EbpfLoader::new()
            .override_global("HOT_MASK", &hot_mask, true)
            .override_global("COLD_MASK", &cold_mask, true)
            .map_max_entries("HOT", hot)
            .map_max_entries("COLD", cold)
            .map_max_entries("CONNECTIONS", connections)
            .load(&object)
            .context("cannot load the floors")?;
        let mut sizes = BTreeMap::new();
        for name in Self::NAMES.into_iter().chain(Self::HELPERS) {
            let program = program(&mut ebpf, name)?;
            program
                .load()
                .with_context(|| format!("the kernel refuses the program `{name}`"))?;
            sizes.insert(name, Size::of(&program.info()?)?);
        }

        let mut destinations = Array::<_, [u64; 2]>::try_from(map(&mut ebpf, "DESTINATIONS")?)?;
        for number in 0..16u8 {
            let macs = [2, 0xee, 0, 0, 0, number, 2, 0, 0, 0, 2, 200, 0, 0, 0, 0];
            let macs: [[u8; 8]; 2] = bytemuck::cast(macs);
            destinations.set(u32::from(number), macs.map(u64::from_ne_bytes), 0)?;
        }
        let mut table = HashMap::<_, [u32; 2], u64>::try_from(map(&mut ebpf, "SERVICES")?)?;
        for number in 0..services {
            let address = (virtual_address + number).to_be();
            for protocol in [6, 17] {
                let port = u32::from(crate::frames::PORT.to_be()) << 8;
                table.insert([address, port | protocol], u64::from(number), 0)?;
            }
        }
        let under_test = ProgramArray::try_from(ebpf.take_map("UNDER_TEST").context("no UNDER_TEST")?)?;
        let plan = Shared::map(ebpf.take_map("PLAN").context("no PLAN")?)?;
        Ok(Self {
            ebpf,
            under_test,
            plan,
            sizes,
        })
    }

    /// How large one of its programs is.
    pub(crate) fn size(&self, name: &str) -> Option<Size> {
        self.sizes.get(name).copied()
    }

    /// One of its programs, to be attached.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub(crate) fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        program(&mut self.ebpf, name)
    }

    /// Takes a map of the object's.
    ///
    /// # Errors
    ///
    /// When there is none of this name, or it was taken before.
    pub(crate) fn take_map(&mut self, name: &str) -> Result<Map> {
        self.ebpf
            .take_map(name)
            .with_context(|| format!("the object has no map `{name}`"))
    }

    /// A handle of a floor.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub(crate) fn program(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(program(&mut self.ebpf, name)?.fd()?.try_clone()?)
    }

    /// Tells the generator what comes next: a stream, from behind the flow of this number.
    pub(crate) fn tell(&self, stream: &Stream<'_>, position: u64) {
        let Stream {
            template,
            flows,
            services,
            order,
        } = *stream;
        let plan = &*self.plan;
        let mut words = [[0; 8]; WORDS];
        for (place, &byte) in words.as_flattened_mut().iter_mut().zip(&template.bytes) {
            *place = byte;
        }
        for (word, bytes) in plan.template.iter().zip(words) {
            word.store(u64::from_ne_bytes(bytes));
        }
        plan.length.store(template.bytes.len() as u64);
        plan.multiplier.store(order.multiplier);
        plan.increment.store(order.increment);
        plan.flow.store(position);
        plan.flows_mask.store(flows - 1);
        plan.skew.store(if template.is_skewed {
            flows.ilog2().into()
        } else {
            0
        });
        plan.services_mask.store(services - 1);
        plan.client_at.store(template.client_at);
        plan.client_port_at.store(template.client_port_at);
        for (word, &at) in plan.virtual_at.iter().zip(&template.virtual_at) {
            word.store(at);
        }
        plan.client.store(template.client.into());
        plan.virtual_address.store(template.virtual_address.into());
    }

    /// The number of the last flow of which the generator has made a packet.
    pub(crate) fn position(&self) -> u64 {
        self.plan.flow.load()
    }

    /// Runs a program on `packets` packets of so many flows to so many services; what it took for each, the
    /// generator included. The last packet's answer must be `action`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the last answer was another one.
    pub(crate) fn run(&mut self, run: &mut Run<'_>) -> Result<Duration> {
        self.under_test.set(0, run.program, 0)?;
        self.tell(&run.stream, *run.position);
        let made = self.plan.made.load();
        let template = run.stream.template;
        let mut out = vec![0; template.bytes.len() + 128];
        let result = program(&mut self.ebpf, "generate")?.test_run(TestRunOptions {
            data_in: Some(&template.bytes),
            data_out: Some(&mut out),
            repeat: run.packets,
            ..TestRunOptions::new()
        })?;
        *run.position = self.position();
        let made = self.plan.made.load() - made;
        if made != u64::from(run.packets) {
            bail!("the generator made {made} packets, not {}", run.packets);
        }
        if result.return_value != run.action {
            let why = if result.return_value == ABORTED {
                " (the generator could not make a frame, or no program was there)"
            } else {
                ""
            };
            bail!("the last packet's answer is {}{why}", result.return_value);
        }
        Ok(result.duration)
    }
}

/// Packets of many flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) template: &'a Template,
    /// A power of two.
    pub(crate) flows: u64,
    /// A power of two.
    pub(crate) services: u64,
    pub(crate) order: Order,
}

/// What [`Floors::run`] is to do.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) program: &'a ProgramFd,
    pub(crate) stream: Stream<'a>,
    /// The number of the last flow: the stream goes on behind it, and leaves here where it ends.
    pub(crate) position: &'a mut u64,
    pub(crate) packets: u32,
    /// The answer that the last packet gets: one of the `XDP_*` of linux/bpf.h.
    pub(crate) action: u32,
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    Ok(program
        .with_context(|| format!("the object has no program `{name}`"))?
        .try_into()?)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    ebpf.map_mut(name)
        .with_context(|| format!("the object has no map `{name}`"))
}
