//! Other directors that send packets to a service's local server: told by their MAC addresses.

use std::collections::BTreeSet;

use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use lvs_xdp_common::{
    abi::{control_flag, name},
    packet::Mac,
};

use super::{Dataplane, pins::open_map};

impl Dataplane {
    /// Notes the MAC addresses from which packets for a service are not balanced again, and no others.
    ///
    /// # Errors
    ///
    /// Where they are more than the map has room for, or it cannot be changed.
    pub fn set_peers(&mut self, peers: &BTreeSet<[u8; 6]>) -> anyhow::Result<()> {
        let mut map: HashMap<MapData, u64, u64> =
            open_map(&self.pins.generation(self.generation), name::PEERS)?;
        let wanted: BTreeSet<_> = peers.iter().map(|mac| Mac::from_octets(*mac).0).collect();
        let known: BTreeSet<_> = map.keys().collect::<Result<_, _>>()?;
        let flags = &self.tables.control[0].flags;
        let others = flags.load() & !control_flag::PEERS;
        if wanted.is_empty() {
            flags.store(others);
        }
        for gone in known.difference(&wanted) {
            crate::crash::point();
            map.remove(gone)?;
        }
        for new in wanted.difference(&known) {
            map.insert(*new, 1, 0).context(
                "there is no room for more real servers of a service that the director serves too",
            )?;
        }
        if !wanted.is_empty() {
            flags.store(others | control_flag::PEERS);
        }
        Ok(())
    }
}
