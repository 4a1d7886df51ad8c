//! The tables of a director as the host sees them, those included that the agent does not have in memory.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use aya::maps::{HashMap, LpmTrie, Map, MapData, lpm_trie};
use lvs_xdp::dataplane::Tables;
use lvs_xdp_common::{
    abi::{
        Bucket, ColdRow, Control, Counts, DestinationRow, IndexBucket, InterfaceRow, ServiceRow, TunnelRow,
        name,
    },
    atomic::Word,
    maps::{Maps, Step, memory::Passing},
    packet::{Address, Mac},
    unusual::{FragmentKey, Unusual},
};
use lvs_xdp_tests::trial::Director;

/// Fragments that there is room for: the program's own map never has to let one go in this test, so nor must this.
const FRAGMENTS: u32 = 1 << 14;

/// The tables.
pub(crate) struct Host {
    tables: Arc<Tables>,
    passing: Passing,
    vips: BTreeMap<[u64; 2], u64>,
    peers: BTreeSet<u64>,
    /// Prefixes of marks, the longest first, each with its length and its rules.
    marks: Vec<(u32, u128, [u64; 2])>,
}

impl Host {
    /// Those of a director, whose program is not used.
    pub(crate) fn new(director: &Director) -> Result<Self> {
        let mut host = Self {
            tables: Arc::clone(director.dataplane.tables()),
            passing: Passing::new(FRAGMENTS),
            vips: BTreeMap::new(),
            peers: BTreeSet::new(),
            marks: Vec::new(),
        };
        host.read(director)?;
        Ok(host)
    }

    /// Reads anew what is not in memory.
    pub(crate) fn read(&mut self, director: &Director) -> Result<()> {
        self.vips = vips(director)?.iter().collect::<Result<_, _>>()?;
        self.peers = peers(director)?.keys().collect::<Result<_, _>>()?;
        let marks: LpmTrie<MapData, [u8; 16], [u64; 2]> =
            Map::LpmTrie(director.map(name::MARK_PREFIXES)?).try_into()?;
        let row = |(key, row): (lpm_trie::Key<[u8; 16]>, _)| {
            (key.prefix_len(), u128::from_be_bytes(key.data()), row)
        };
        self.marks = marks
            .iter()
            .map(|found| found.map(row))
            .collect::<Result<_, _>>()?;
        self.marks.sort_unstable_by_key(|(length, ..)| Reverse(*length));
        Ok(())
    }
}

/// The virtual addresses of a director.
pub(crate) fn vips(director: &Director) -> Result<HashMap<MapData, [u64; 2], u64>> {
    Ok(Map::HashMap(director.map(name::VIPS)?).try_into()?)
}

/// The other directors of a director.
pub(crate) fn peers(director: &Director) -> Result<HashMap<MapData, u64, u64>> {
    Ok(Map::HashMap(director.map(name::PEERS)?).try_into()?)
}

impl Maps for Host {
    fn control(&self) -> &Control {
        self.tables.control()
    }
    fn now(&self) -> u32 {
        self.tables.now()
    }
    fn jiffies(&self) -> u64 {
        self.tables.jiffies()
    }
    fn service_bucket(&self, index: u32) -> Option<&IndexBucket> {
        self.tables.service_bucket(index)
    }
    fn service(&self, id: u32) -> Option<&ServiceRow> {
        self.tables.service(id)
    }
    fn list(&self, index: u32) -> Option<&Word> {
        self.tables.list(index)
    }
    fn ring(&self, index: u32) -> Option<&Word> {
        self.tables.ring(index)
    }
    fn cursor(&self, service: u32) -> Option<&Word> {
        self.tables.cursor(service)
    }
    fn destination(&self, id: u32) -> Option<&DestinationRow> {
        self.tables.destination(id)
    }
    fn counts(&self, id: u32) -> Option<&Counts> {
        self.tables.counts(id)
    }
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.tables.bucket(index)
    }
    fn cold(&self, index: u32) -> Option<&ColdRow> {
        self.tables.cold(index)
    }
    fn interface(&self, index: u32) -> Option<&InterfaceRow> {
        self.tables.interface(index)
    }
    fn tunnel(&self, id: u32) -> Option<&TunnelRow> {
        self.tables.tunnel(id)
    }
    fn mark_list(&self, high: u64, low: u64) -> u64 {
        let wanted = u128::from_be_bytes(Address::from_halves(high, low).octets());
        let configuration = usize::from(self.control().generation.load() & 1 == 1);
        self.marks
            .iter()
            .find(|(length, prefix, _)| (prefix ^ wanted).leading_zeros() >= *length)
            .map_or(0, |(_, _, row)| row[configuration])
    }
    fn mark_rule(&self, index: u32) -> Option<&Word> {
        self.tables.mark_rule(index)
    }
    fn vip(&self, address: &Address) -> u64 {
        let key = [address.high(), address.low()];
        self.vips.get(&key).copied().unwrap_or(0)
    }
    fn is_peer(&self, mac: Mac) -> bool {
        self.peers.contains(&mac.0)
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
