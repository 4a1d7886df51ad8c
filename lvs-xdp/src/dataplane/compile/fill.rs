//! How full the tables are.

use lvs_xdp_common::abi::Kind;

use super::Compiler;
use crate::{api::types::TableFill, dataplane::rows::length};

impl Compiler {
    /// How full each table is whose size was set at the start.
    pub fn fill(&self) -> Vec<TableFill> {
        let services = self
            .services
            .values()
            .filter(|slot| slot.word.kind() != Kind::Tombstone);
        // Row 0 is nobody's.
        let destinations = u64::from(length(&self.tables.destinations)) - 1;
        let (lists, rings) = (length(&self.tables.lists), length(&self.tables.rings));
        let fill = |name: &str, used, capacity, option: &str| TableFill {
            name: name.to_owned(),
            used,
            capacity,
            option: option.to_owned(),
        };
        vec![
            // Deleted ones with connections left have rows beside these.
            fill(
                "services",
                services.count() as u64,
                u64::from(self.capacity.services),
                "--services",
            ),
            fill(
                "destinations",
                destinations - self.free_destinations.len() as u64,
                destinations,
                "--destinations",
            ),
            fill(
                "lists",
                u64::from(lists - self.lists.free()),
                u64::from(lists),
                "--destinations",
            ),
            fill(
                "rings",
                u64::from(rings - self.rings.free()),
                u64::from(rings),
                "--services",
            ),
        ]
    }
}
