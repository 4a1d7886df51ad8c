//! The tables as the director sees them: given by the kernel's maps in the program, by memory on the host.

use crate::{
    abi::{
        Bucket, ColdRow, Control, Counters, Counts, Cursor, DestinationRow, IndexBucket, InterfaceRow, Kind,
        ListWord, RingWord, ServiceRow, TunnelRow,
    },
    atomic::Word,
    director,
    flow::Flow,
    marks,
    packet::{Address, Mac},
    scheduler,
    table::{self, New},
    unusual::{self, FragmentKey, Unusual},
};

/// The tables, and what time it is. A row past a table's end is `None`.
pub trait Maps {
    /// What holds for the whole director.
    fn control(&self) -> &Control;
    /// Seconds of the director's clock.
    fn now(&self) -> u32;
    /// jiffies64: what is shorter than a second is told by.
    fn jiffies(&self) -> u64;
    /// A bucket of the service index.
    fn service_bucket(&self, index: u32) -> Option<&IndexBucket>;
    /// A service by id.
    fn service(&self, id: u32) -> Option<&ServiceRow>;
    /// A word of the lists.
    fn list(&self, index: u32) -> Option<&Word>;
    /// A word of the rings.
    fn ring(&self, index: u32) -> Option<&Word>;
    /// A service's cursor.
    fn cursor(&self, service: u32) -> Option<&Word>;
    /// A destination by id.
    fn destination(&self, id: u32) -> Option<&DestinationRow>;
    /// A destination's connections.
    fn counts(&self, id: u32) -> Option<&Counts>;
    /// What this CPU has counted for a destination.
    fn counters(&self, id: u32) -> Option<&Counters> {
        let _ = id;
        None
    }
    /// A bucket of the connection table.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// The companion row of an entry: bucket * 8 + slot.
    fn cold(&self, index: u32) -> Option<&ColdRow>;
    /// The row of the director's MAC addresses for an interface.
    fn interface(&self, index: u32) -> Option<&InterfaceRow>;
    /// How packets for a destination are encapsulated.
    fn tunnel(&self, id: u32) -> Option<&TunnelRow>;
    /// The live [`marks::MarkList`] of the longest prefix around an address, 0 where there is none.
    fn mark_list(&self, high: u64, low: u64) -> u64 {
        let _ = (high, low);
        0
    }
    /// A word of the rules of marks.
    fn mark_rule(&self, index: u32) -> Option<&Word> {
        let _ = index;
        None
    }
    /// The [`crate::abi::vip_flag`]s of an address, 0 where no service has it.
    fn vip(&self, address: &Address) -> u64 {
        let _ = address;
        0
    }
    /// Whether a frame from this MAC address comes from another director.
    fn is_peer(&self, mac: Mac) -> bool {
        let _ = mac;
        false
    }
    /// Where the fragments of a packet go, as [`crate::abi::name::FRAGMENTS`] has it; 0 where nothing is known.
    fn fragment(&self, key: &FragmentKey) -> u64 {
        let _ = key;
        0
    }
    /// Keeps where the fragments of a packet go.
    fn keep_fragment(&self, key: &FragmentKey, value: u64) {
        let _ = (key, value);
    }
    /// Puts down what the second look has found, where [`Self::unusual`] finds it again.
    fn put_unusual(&self, found: &Unusual) {
        let _ = found;
    }
    /// What the second look has found.
    fn unusual(&self) -> Option<Unusual> {
        None
    }
    /// [`unusual::whose`]; in the program a function of its own.
    fn whose(&self) -> u32
    where
        Self: Sized,
    {
        unusual::whose(self)
    }
    /// [`unusual::keep_fragment`]; in the program a function of its own.
    fn keep_fragment_to(&self, destination: u32)
    where
        Self: Sized,
    {
        unusual::keep_fragment(self, destination);
    }
    /// Puts down what is to be entered where functions of their own find it: the program's stack of 512 bytes
    /// has no room for it. What was noted in that place before is gone. `None` where there is no place.
    fn note<'a>(&'a self, place: Note, new: &'a New) -> Option<&'a New> {
        let _ = place;
        Some(new)
    }
    /// [`director::begin`]; in the program a function of its own, which the verifier looks at by itself.
    fn begin(&self, new: &New, signal: u32) -> u64
    where
        Self: Sized,
    {
        director::begin(self, new, signal)
    }
    /// [`director::stateless`]; in the program a function of its own, too.
    fn stateless(&self, new: &New, signal: u32) -> u64
    where
        Self: Sized,
    {
        director::stateless(self, new, signal)
    }
    /// [`director::stateless_at_once`]; in the program a function of its own, too.
    fn stateless_at_once(&self, addresses: u64, ports: u64, id: u32, signal: u32) -> u64
    where
        Self: Sized,
    {
        director::stateless_at_once(self, addresses, ports, id, signal)
    }
    /// [`director::other_service`]; in the program a function of its own, too.
    fn other_service(&self, high: u64, low: u64, identity: u64, mark: u32) -> u64
    where
        Self: Sized,
    {
        director::other_service(self, high, low, identity, mark)
    }
    /// [`marks::mark_of`]; in the program a function of its own, too.
    fn mark_of(&self, high: u64, low: u64, identity: u64) -> u32
    where
        Self: Sized,
    {
        marks::mark_of(self, high, low, identity)
    }
    /// [`scheduler::in_turn`]; in the program a function of its own, too.
    fn in_turn(&self, service: u64, list: ListWord) -> u32
    where
        Self: Sized,
    {
        scheduler::in_turn(self, service, list)
    }
    /// [`scheduler::by_hash`]; in the program a function of its own, too.
    fn by_hash(&self, list: ListWord, ring: RingWord, flow: &Flow) -> u32
    where
        Self: Sized,
    {
        scheduler::by_hash(self, list, ring, flow)
    }
    /// [`scheduler::lblc`]; in the program a function of its own, too.
    fn lblc(&self, service: u64, list: ListWord) -> u32
    where
        Self: Sized,
    {
        scheduler::lblc(self, service, list)
    }
    /// [`scheduler::least`]; in the program a function of its own, too.
    fn least(&self, list: ListWord, kind: Kind) -> u32
    where
        Self: Sized,
    {
        scheduler::least(self, list, kind as u32)
    }
    /// [`scheduler::turn`]; in the program a function of its own, too.
    fn turn(&self, list: ListWord, cursor: Cursor) -> Cursor
    where
        Self: Sized,
    {
        scheduler::turn(self, list, cursor)
    }
    /// [`scheduler::is_any_idle`]; in the program a function of its own, too.
    fn is_any_idle(&self, list: ListWord) -> bool
    where
        Self: Sized,
    {
        scheduler::is_any_idle(self, list)
    }
    /// [`scheduler::lblcr`]; in the program a function of its own, too.
    fn lblcr(&self, service: u64, list: ListWord) -> u32
    where
        Self: Sized,
    {
        scheduler::lblcr(self, service, list)
    }
    /// [`table::follow`]; in the program a function of its own, too.
    fn follow(&self, template: &New, options: u64) -> u64
    where
        Self: Sized,
    {
        table::follow(self, template, options)
    }
    /// [`table::claim`]; in the program a function of its own, too.
    fn claim(&self, new: &New, destination: u32) -> u64
    where
        Self: Sized,
    {
        table::claim(self, new, destination)
    }
    /// [`table::settle`]; in the program a function of its own, too.
    fn settle(&self, new: &New, entry: u64, control: u64, place: u64) -> u64
    where
        Self: Sized,
    {
        table::settle(self, new, entry, control, place)
    }
    /// [`table::change_state`]; in the program a function of its own, too.
    fn change(&self, index: u32, tag: u32, flow: &Flow, signal: u32) -> u32
    where
        Self: Sized,
    {
        table::change_state(self, index, tag, flow, signal)
    }
    /// [`table::recount`]; in the program a function of its own, too.
    fn recount(&self, destination: u32, from: u32, to: u32)
    where
        Self: Sized,
    {
        table::recount(self, destination, from, to);
    }
    /// [`table::depart`]; in the program a function of its own, too.
    fn depart(&self, entry: u64, control: u64)
    where
        Self: Sized,
    {
        table::depart(self, entry, control);
    }
    /// [`table::survey`]; in the program a function of its own, too.
    fn survey(&self, primary: u32, partner: u32, tag: u32, now: u32) -> u64
    where
        Self: Sized,
    {
        table::survey(self, primary, partner, tag, now)
    }
    /// [`table::sharing`]; in the program a function of its own, too.
    fn sharing(&self, primary: u32, partner: u32, tag: u32) -> u64
    where
        Self: Sized,
    {
        table::sharing(self, primary, partner, tag)
    }
    /// Calls `step` with 0, 1, .. `count` - 1, until it returns false. In the program this is bpf_loop.
    fn repeat<S: Step<Self>>(&self, count: u32, step: &mut S)
    where
        Self: Sized;
}

/// The places for [`Maps::note`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Note {
    /// A connection.
    Connection = 0,
    /// A persistence template.
    Template = 1,
}

/// How many places there are.
pub const NOTES: u32 = 2;

/// The body of a loop that is too long for the verifier to walk.
pub trait Step<M> {
    /// Does round `index`; false ends the loop.
    fn step(&mut self, maps: &M, index: u32) -> bool;
}

/// A number in the context of a loop, alone in its word: of two neighbours the compiler makes one
/// store, and the verifier refuses it where it is not aligned, which on the stack is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(8))]
pub struct Alone(pub u32);

/// Tables in this process's memory, for tests and simulations.
#[cfg(not(target_arch = "bpf"))]
pub mod memory {
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicU32, Ordering};

    use super::{
        Address, Bucket, ColdRow, Control, Counters, Counts, DestinationRow, FragmentKey, IndexBucket,
        InterfaceRow, Mac, Maps, ServiceRow, Step, TunnelRow, Unusual, Word,
    };
    use crate::{
        abi::{INTERFACE_ROWS, MarkRow},
        connection::TIMEOUTS,
    };

    /// The tables, and a clock that stands until it is set.
    #[derive(Debug)]
    pub struct Memory {
        /// What holds for the whole director.
        pub control: Control,
        /// Seconds of the clock.
        pub clock: AtomicU32,
        /// The service index.
        pub service_index: Vec<IndexBucket>,
        /// Services.
        pub services: Vec<ServiceRow>,
        /// Lists.
        pub lists: Vec<Word>,
        /// Rings.
        pub rings: Vec<Word>,
        /// Cursors.
        pub cursors: Vec<Word>,
        /// Destinations.
        pub destinations: Vec<DestinationRow>,
        /// Counts.
        pub counts: Vec<Counts>,
        /// Counters, of one CPU.
        pub counters: Vec<Counters>,
        /// Buckets of the connection table.
        pub hot: Vec<Bucket>,
        /// Companion rows.
        pub cold: Vec<ColdRow>,
        /// Interfaces.
        pub interfaces: Vec<InterfaceRow>,
        /// How packets for a destination are encapsulated.
        pub tunnels: Vec<TunnelRow>,
        /// Virtual addresses with their flags.
        pub vips: Vec<(Address, u64)>,
        /// Other directors' MAC addresses.
        pub peers: Vec<Mac>,
        /// Prefixes, by address and length, and which rules of marks hold for them.
        pub mark_prefixes: Vec<(Address, u32, MarkRow)>,
        /// Rules of marks.
        pub mark_rules: Vec<Word>,
        /// Fragments, and what the second look has found.
        pub passing: Passing,
    }

    /// Fragments that [`Memory`] keeps at once.
    const FRAGMENTS: u32 = 64;

    /// What packets leave behind that is no part of the shared tables: where fragments go, and what the second
    /// look has found of the packet at hand.
    #[derive(Debug)]
    pub struct Passing {
        /// A key's five words and the value, from the place on that follows from the key; all 0 is free.
        fragments: Vec<[Word; 6]>,
        unusual: [Word; Unusual::WORDS],
    }

    impl Passing {
        /// Room for so many fragments. Where there is none left one gives way, but not the oldest, as in the
        /// kernel's map.
        pub fn new(fragments: u32) -> Self {
            Self {
                fragments: rows(fragments),
                unusual: Default::default(),
            }
        }

        /// The row of a key, else the free one for it; with neither, the first that was looked at.
        fn row(&self, key: &FragmentKey) -> &[Word; 6] {
            let words = key.words();
            // Fibonacci hashing: the upper bits are the mixed ones.
            let mix =
                |hash: u64, word: &u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hash = words.iter().fold(0, mix) >> 32;
            let length = self.fragments.len();
            let first = hash as usize % length;
            let is_its_or_free = |row: &&[Word; 6]| {
                let own = row.each_ref().map(Word::load);
                own[..5] == words || own == [0; 6]
            };
            let (before, behind) = self.fragments.split_at(first);
            let found = behind.iter().chain(before).find(is_its_or_free);
            found.unwrap_or(&self.fragments[first])
        }

        /// [`Maps::fragment`].
        pub fn fragment(&self, key: &FragmentKey) -> u64 {
            let row = self.row(key);
            let is_its = key.words().iter().zip(row).all(|(word, own)| own.load() == *word);
            if is_its { row[5].load() } else { 0 }
        }

        /// [`Maps::keep_fragment`].
        pub fn keep_fragment(&self, key: &FragmentKey, value: u64) {
            let words = key.words().into_iter().chain([value]);
            for (own, word) in self.row(key).iter().zip(words) {
                own.store(word);
            }
        }

        /// [`Maps::put_unusual`].
        pub fn put_unusual(&self, found: &Unusual) {
            for (own, word) in self.unusual.iter().zip(found.words()) {
                own.store(word);
            }
        }

        /// [`Maps::unusual`].
        pub fn unusual(&self) -> Unusual {
            Unusual::from_words(self.unusual.each_ref().map(Word::load))
        }
    }

    fn rows<T: Default>(count: u32) -> Vec<T> {
        (0..count).map(|_| T::default()).collect()
    }

    impl Memory {
        /// Jiffies of a second.
        pub const JIFFIES: u64 = 1000;

        /// Empty tables: `connections` entries, `services` and `destinations` rows, all powers of two.
        pub fn new(connections: u32, services: u32, destinations: u32) -> Self {
            let control = Control::default();
            for (word, seconds) in control.timeouts.iter().zip(TIMEOUTS) {
                word.store(u64::from(seconds));
            }
            control.bucket_mask.store(u64::from(connections / 8 - 1));
            let index = (services / 2).max(2);
            control.service_mask.store(u64::from(index - 1));
            Self {
                control,
                clock: AtomicU32::new(1_000_000),
                service_index: rows(index),
                services: rows(services),
                lists: rows(destinations * 8),
                rings: rows(services * 64 + 2048),
                cursors: rows(services),
                destinations: rows(destinations),
                counts: rows(destinations),
                counters: rows(destinations),
                hot: rows(connections / 8),
                cold: rows(connections),
                interfaces: rows(INTERFACE_ROWS),
                tunnels: rows(destinations),
                vips: Vec::new(),
                peers: Vec::new(),
                mark_prefixes: Vec::new(),
                mark_rules: Vec::new(),
                passing: Passing::new(FRAGMENTS),
            }
        }

        /// Moves the clock on.
        pub fn pass_time(&self, seconds: u32) {
            self.clock.fetch_add(seconds, Ordering::SeqCst);
        }
    }

    impl Maps for Memory {
        fn control(&self) -> &Control {
            &self.control
        }
        fn now(&self) -> u32 {
            self.clock.load(Ordering::SeqCst)
        }
        fn jiffies(&self) -> u64 {
            u64::from(self.now()) * Self::JIFFIES
        }
        fn counters(&self, id: u32) -> Option<&Counters> {
            self.counters.get(id as usize)
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
        fn vip(&self, address: &Address) -> u64 {
            self.vips
                .iter()
                .find(|(vip, _)| vip == address)
                .map_or(0, |(_, flags)| *flags)
        }
        fn mark_list(&self, high: u64, low: u64) -> u64 {
            let bits = |address: Address| u128::from_be_bytes(address.octets());
            let wanted = bits(Address::from_halves(high, low));
            let configuration = usize::from(self.control.generation.load() & 1 == 1);
            self.mark_prefixes
                .iter()
                .filter(|(prefix, length, _)| (bits(*prefix) ^ wanted).leading_zeros() >= *length)
                .max_by_key(|(_, length, _)| *length)
                .map_or(0, |(_, _, row)| row.0[configuration])
        }
        fn mark_rule(&self, index: u32) -> Option<&Word> {
            self.mark_rules.get(index as usize)
        }
        fn is_peer(&self, mac: Mac) -> bool {
            self.peers.contains(&mac)
        }
        fn fragment(&self, key: &FragmentKey) -> u64 {
            self.passing.fragment(key)
        }
        fn keep_fragment(&self, key: &FragmentKey, value: u64) {
            self.passing.keep_fragment(key, value);
        }
        fn put_unusual(&self, found: &Unusual) {
            self.passing.put_unusual(found);
        }
        fn unusual(&self) -> Option<Unusual> {
            Some(self.passing.unusual())
        }
        fn repeat<S: Step<Self>>(&self, count: u32, step: &mut S) {
            let _ = (0..count).all(|index| step.step(self, index));
        }
    }
}
