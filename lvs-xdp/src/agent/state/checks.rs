//! Health checks: their results, and the interfaces by which they leave.

use std::collections::BTreeMap;

use super::State;
use crate::checks::Report;

impl State {
    /// Takes in the result of a health check.
    pub(in crate::agent) fn hear_check(&mut self, report: Report) {
        self.stale.extend(self.checks.hear(report));
    }

    /// Makes the interfaces ready by which checks of virtual addresses leave, and no others.
    pub(super) fn follow_steered(&mut self) {
        let links = self.neighbours.links();
        let interfaces: BTreeMap<u32, String> = (self.checks.steered().into_iter())
            .filter_map(|rip| {
                let if_index = self.neighbours.path(rip)?.if_index;
                Some((if_index, links.get(if_index)?.name.clone()))
            })
            .collect();
        let (ready, result) = self.dataplane.steer_on(&interfaces);
        self.checks.host().set_steered(ready);
        self.faults.note("some real servers cannot be checked", result);
    }
}
