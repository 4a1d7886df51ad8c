//! The pinned maps in the agent's own memory, through mmap: the same tables, the same code as in the kernel.

use std::{
    marker::PhantomData,
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;
use aya::maps::{MapData, MapInfo};
use lvs_xdp_common::{
    abi::{
        Bucket, COUNTER_WORDS, ColdRow, Control, Counts, DestinationRow, INTERFACE_ROWS, IndexBucket,
        InterfaceRow, ServiceRow, TunnelRow, name,
    },
    atomic::Word,
    maps::{Maps, Step},
    reason::Reason,
};
use memmap2::{MmapOptions, MmapRaw};

/// How many of each thing there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of the connection table: a power of two, at least 16.
    pub connections: u32,
    /// Services.
    pub services: u32,
    /// Destinations, over all services, those that left but still have connections included.
    pub destinations: u32,
}

/// What a map of this layout must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) value_size: u32,
    pub(super) entries: u32,
}

impl Capacity {
    /// The capacity that the maps pinned in a generation's directory were made for.
    pub(super) fn pinned(directory: &Path) -> anyhow::Result<Self> {
        let entries = |name| -> anyhow::Result<u32> {
            let info = MapInfo::from_pin(directory.join(name))
                .with_context(|| format!("cannot open the map {name}"))?;
            Ok(info.max_entries())
        };
        Ok(Self {
            connections: entries(name::COLD)?,
            services: (entries(name::SERVICES)? - 1) / 2,
            destinations: entries(name::DESTINATIONS)? - 1,
        })
    }

    /// The shapes of the maps whose size goes by the capacity, all of them arrays.
    pub(super) fn shapes(self) -> Vec<Shape> {
        let Self {
            connections,
            services,
            destinations,
        } = self;
        // A deleted service keeps its row until its last connection has ended.
        let rows = services * 2 + 1;
        let shape = |name, value_size: usize, entries| Shape {
            name,
            value_size: u32::try_from(value_size).unwrap_or(u32::MAX),
            entries,
        };
        vec![
            shape(name::CONTROL, size_of::<Control>(), 1),
            // At most a quarter full: nearly every service is in its first bucket.
            shape(
                name::SERVICE_INDEX,
                size_of::<IndexBucket>(),
                services.next_power_of_two().max(2),
            ),
            shape(name::SERVICES, size_of::<ServiceRow>(), rows),
            shape(name::CURSORS, size_of::<Word>(), rows),
            // Each list twice while it is changed, with its places.
            shape(name::LISTS, size_of::<Word>(), destinations * 4 + services * 8),
            shape(name::RINGS, size_of::<Word>(), services * 128 + 4096),
            shape(name::DESTINATIONS, size_of::<DestinationRow>(), destinations + 1),
            shape(name::TUNNELS, size_of::<TunnelRow>(), destinations + 1),
            shape(name::COUNTS, size_of::<Counts>(), destinations + 1),
            shape(
                name::COUNTERS,
                size_of::<[u64; COUNTER_WORDS]>(),
                destinations + 1,
            ),
            shape(
                name::REASONS,
                size_of::<u64>(),
                u32::try_from(Reason::ALL.len()).unwrap_or(0),
            ),
            shape(name::HOT, size_of::<Bucket>(), connections / 8),
            shape(name::COLD, size_of::<ColdRow>(), connections),
            shape(name::INTERFACES, size_of::<InterfaceRow>(), INTERFACE_ROWS),
            shape(name::CLOCK, size_of::<[u64; 2]>(), 1),
        ]
    }
}

/// Maps of one size whatever the capacity, which a generation shares with the next.
pub(super) const OTHER_MAPS: [&str; 6] = [
    name::REDIRECT,
    name::VIPS,
    name::PEERS,
    name::FRAGMENTS,
    name::MARK_PREFIXES,
    name::MARK_RULES,
];

/// A shared array map as a slice of rows.
#[derive(Debug)]
pub(super) struct Shared<T> {
    memory: MmapRaw,
    length: usize,
    rows: PhantomData<T>,
}

/// A row that is made of [`Word`]s only, so that any memory of its size is one, and may change under
/// a shared reference.
///
/// # Safety
///
/// The type must be `repr(C)` or `repr(transparent)`, without padding, of `Word`s or arrays of them.
pub(super) unsafe trait Row {}
// SAFETY: made of words only, sizes asserted in `lvs_xdp_common::abi`.
unsafe impl Row for Word {}
// SAFETY: as above.
unsafe impl Row for Control {}
// SAFETY: as above.
unsafe impl Row for IndexBucket {}
// SAFETY: as above.
unsafe impl Row for ServiceRow {}
// SAFETY: as above.
unsafe impl Row for DestinationRow {}
// SAFETY: as above.
unsafe impl Row for Counts {}
// SAFETY: as above.
unsafe impl Row for Bucket {}
// SAFETY: as above.
unsafe impl Row for ColdRow {}
// SAFETY: as above.
unsafe impl Row for InterfaceRow {}
// SAFETY: as above.
unsafe impl Row for TunnelRow {}

impl<T: Row> Shared<T> {
    pub(super) fn open(directory: &Path, name: &str) -> anyhow::Result<Self> {
        let map =
            MapData::from_pin(directory.join(name)).with_context(|| format!("cannot open the map {name}"))?;
        let length = map.info()?.max_entries() as usize;
        let memory = MmapOptions::new()
            .len(length * size_of::<T>())
            .map_raw(map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {name} into memory"))?;
        Ok(Self {
            memory,
            length,
            rows: PhantomData,
        })
    }
}

impl<T: Row> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is `length` rows long (asked of the kernel when it was made), page-aligned,
        // and lives as long as `self`; rows are made of words, for which any bytes are valid and which
        // may change while they are borrowed (`Row`).
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.length) }
    }
}

/// The row of [`name::CLOCK`].
#[repr(C)]
#[derive(Debug)]
pub(super) struct Clock {
    pub(super) jiffies: Word,
    pub(super) nanoseconds: Word,
}
// SAFETY: two words.
unsafe impl Row for Clock {}

/// All shared tables of one generation of pins.
#[derive(Debug)]
pub struct Tables {
    pub(super) control: Shared<Control>,
    pub(super) service_index: Shared<IndexBucket>,
    pub(super) services: Shared<ServiceRow>,
    pub(super) cursors: Shared<Word>,
    pub(super) lists: Shared<Word>,
    pub(super) rings: Shared<Word>,
    pub(super) destinations: Shared<DestinationRow>,
    pub(super) counts: Shared<Counts>,
    pub(super) hot: Shared<Bucket>,
    pub(super) cold: Shared<ColdRow>,
    pub(super) interfaces: Shared<InterfaceRow>,
    pub(super) tunnels: Shared<TunnelRow>,
    pub(super) mark_rules: Shared<Word>,
    /// jiffies64 and CLOCK_MONOTONIC nanoseconds, as the program `clock` wrote them last.
    pub(super) clock: Shared<Clock>,
    now: AtomicU32,
}

impl Tables {
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            control: Shared::open(directory, name::CONTROL)?,
            service_index: Shared::open(directory, name::SERVICE_INDEX)?,
            services: Shared::open(directory, name::SERVICES)?,
            cursors: Shared::open(directory, name::CURSORS)?,
            lists: Shared::open(directory, name::LISTS)?,
            rings: Shared::open(directory, name::RINGS)?,
            destinations: Shared::open(directory, name::DESTINATIONS)?,
            counts: Shared::open(directory, name::COUNTS)?,
            hot: Shared::open(directory, name::HOT)?,
            cold: Shared::open(directory, name::COLD)?,
            interfaces: Shared::open(directory, name::INTERFACES)?,
            tunnels: Shared::open(directory, name::TUNNELS)?,
            mark_rules: Shared::open(directory, name::MARK_RULES)?,
            clock: Shared::open(directory, name::CLOCK)?,
            now: AtomicU32::new(0),
        })
    }

    /// Sets the time that the agent's work on the table goes by.
    pub(super) fn set_now(&self, seconds: u32) {
        self.now.store(seconds, Ordering::Relaxed);
    }
}

impl Maps for Tables {
    fn control(&self) -> &Control {
        &self.control[0]
    }
    fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }
    /// The agent opens no connections.
    fn jiffies(&self) -> u64 {
        0
    }
    fn service_bucket(&self, index: u32) -> Option<&IndexBucket> {
        self.service_index.get(index as usize)
    }
    fn service(&self, id: u32) -> Option<&ServiceRow> {
        self.services.get(id as usize)
    }
    fn list(&self, index: u32) -> Option<&Word> {
        self.lists.get(index as usize)
    }
    fn ring(&self, index: u32) -> Option<&Word> {
        self.rings.get(index as usize)
    }
    fn cursor(&self, service: u32) -> Option<&Word> {
        self.cursors.get(service as usize)
    }
    fn destination(&self, id: u32) -> Option<&DestinationRow> {
        self.destinations.get(id as usize)
    }
    fn counts(&self, id: u32) -> Option<&Counts> {
        self.counts.get(id as usize)
    }
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.hot.get(index as usize)
    }
    fn cold(&self, index: u32) -> Option<&ColdRow> {
        self.cold.get(index as usize)
    }
    fn interface(&self, index: u32) -> Option<&InterfaceRow> {
        self.interfaces.get(index as usize)
    }
    fn tunnel(&self, id: u32) -> Option<&TunnelRow> {
        self.tunnels.get(id as usize)
    }
    fn mark_rule(&self, index: u32) -> Option<&Word> {
        self.mark_rules.get(index as usize)
    }
    fn repeat<S: Step<Self>>(&self, count: u32, step: &mut S) {
        let _ = (0..count).all(|index| step.step(self, index));
    }
}
