//! The virtual addresses, for packets that have no port: echo requests, fragments.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use lvs_xdp_common::{
    abi::{control_flag, name},
    packet::Address,
};

use super::{Dataplane, pins::open_map, rows};

const NO_ROOM: &str = "there is no room for more virtual addresses";

impl Dataplane {
    /// The virtual addresses that are noted, with their flags.
    ///
    /// # Errors
    ///
    /// Where the map cannot be read.
    pub fn vips(&self) -> anyhow::Result<BTreeMap<IpAddr, u64>> {
        let map: HashMap<MapData, [u64; 2], u64> =
            open_map(&self.pins.generation(self.generation), name::VIPS)?;
        let rows = map.iter().map(|row| {
            let ([high, low], flags) = row?;
            Ok((rows::ip(Address::from_halves(high, low)), flags))
        });
        rows.collect()
    }

    /// Whether the program answers ARP requests and neighbour solicitations for the virtual addresses that are
    /// marked as announced.
    pub fn set_announcing(&self, is_on: bool) {
        let flags = &self.tables.control[0].flags;
        let others = flags.load() & !control_flag::ANNOUNCE;
        flags.store(others | if is_on { control_flag::ANNOUNCE } else { 0 });
    }

    /// Notes the virtual addresses with their [`vip_flag`](lvs_xdp_common::abi::vip_flag)s, and no others.
    ///
    /// # Errors
    ///
    /// Where they are more than the map has room for, or it cannot be changed.
    pub fn set_vips(&mut self, vips: &BTreeMap<IpAddr, u64>) -> anyhow::Result<()> {
        let mut map: HashMap<MapData, [u64; 2], u64> =
            open_map(&self.pins.generation(self.generation), name::VIPS)?;
        let wanted: BTreeMap<_, _> = vips
            .iter()
            .map(|(vip, flags)| {
                let address = rows::address(*vip);
                ([address.high(), address.low()], *flags)
            })
            .collect();
        let known: BTreeMap<_, _> = map.iter().collect::<Result<_, _>>()?;
        for gone in known.keys().filter(|address| !wanted.contains_key(*address)) {
            crate::crash::point();
            map.remove(gone)?;
        }
        for (address, flags) in &wanted {
            if known.get(address) != Some(flags) {
                map.insert(address, flags, 0).context(NO_ROOM)?;
            }
        }
        Ok(())
    }

    /// Notes virtual addresses with other flags than they have; `None`, of one that is noted, that it is none any more.
    ///
    /// # Errors
    ///
    /// As of [`Dataplane::set_vips`]; then some of them may be noted.
    pub fn change_vips(&mut self, changes: &[(IpAddr, Option<u64>)]) -> anyhow::Result<()> {
        let mut map: HashMap<MapData, [u64; 2], u64> =
            open_map(&self.pins.generation(self.generation), name::VIPS)?;
        for (vip, flags) in changes {
            let address = rows::address(*vip);
            let key = [address.high(), address.low()];
            match flags {
                Some(flags) => map.insert(key, flags, 0).context(NO_ROOM)?,
                None => map.remove(&key)?,
            }
        }
        Ok(())
    }
}
