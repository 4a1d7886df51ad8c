//! What an agent that was killed may have left half written.

use super::Compiler;
use crate::dataplane::rows::{tunnel_way, way};

impl Compiler {
    /// Has all destinations of a real server's address go the same way, the one that was found in the maps: an agent
    /// that was killed may have written a row without its way, or only some of the rows when the way changed. Who
    /// notes the ways later leaves out what is the same as what is known.
    pub(super) fn mend_ways(&self) {
        for (id, server) in self.members.all() {
            let row = &self.tables.destinations[id as usize];
            let tunnel = self.setting(id).tunnel;
            let is_known = if tunnel == 0 {
                way(row) == self.ways.get(&server.address).copied()
            } else {
                tunnel_way(row, &self.tables.tunnels[id as usize])
                    == self.tunnels.get(&server.address).copied()
            };
            if !is_known {
                self.lead(id, tunnel);
            }
        }
    }
}
