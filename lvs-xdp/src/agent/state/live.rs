//! Making changes live: the one place where the model changes, and all that follows from it with it.

use std::{collections::BTreeSet, time::Instant};

use super::{STALE, State, Waiting, configure::Made, is_usable, tunnels::reach};
use crate::{
    agent::effective::{Effective, Standing},
    api::types::{ApiError, ErrorCode, ServerKey, ServerSpec, ServiceKey},
    journal::Transaction,
    model::Model,
};

impl State {
    /// Makes live in one step what waits, and brings stale services up to date. What makes no sense is
    /// refused at once, and hinders nothing else.
    ///
    /// # Errors
    ///
    /// Why nothing of the rest was made, and the rest.
    pub(super) fn attempt(
        &mut self,
        stale: &BTreeSet<ServiceKey>,
        waiting: Vec<Waiting>,
    ) -> Result<(), (ApiError, Vec<Waiting>)> {
        let mut wanted = self.model.clone();
        let mut touched = stale.clone();
        let mut told = BTreeSet::new();
        let mut accepted = Vec::new();
        for request in waiting {
            let changes = request.task.changes(&wanted);
            let also = wanted.touched(&changes);
            // Of a table of thousands of services most changes touch one.
            let before = wanted.part(&also);
            match wanted.apply(&changes) {
                Ok(()) => {
                    told.extend(Model::told(&changes));
                    let made = self.made(&request, changes, &before, &wanted.part(&also));
                    touched.extend(also);
                    accepted.push((request, made));
                }
                Err(error) => self.answer(request.origin, Err(error)),
            }
        }
        if accepted.is_empty() && stale.is_empty() {
            return Ok(());
        }
        let (requests, made): (Vec<_>, Vec<_>) = accepted.into_iter().unzip();
        let (transactions, plans): (Vec<_>, Vec<_>) = (made
            .into_iter()
            .map(|Made { transaction, plan }| (transaction, plan)))
        .unzip();
        if let Err(error) = self.make_live(wanted, &touched, &told, transactions) {
            return Err((error, requests));
        }
        if !stale.is_empty() {
            self.faults.note(STALE, Ok::<_, ApiError>(()));
        }
        for (request, plan) in requests.into_iter().zip(plans) {
            self.answer(request.origin, Ok(plan));
        }
        Ok(())
    }

    /// Plans, keeps and makes live: in this order, so that what is live is always what is kept, and what
    /// is kept has always fitted. The schedulers of services in `told` hear of it as IPVS's do.
    fn make_live(
        &mut self,
        wanted: Model,
        touched: &BTreeSet<ServiceKey>,
        told: &BTreeSet<ServiceKey>,
        transactions: Vec<Transaction>,
    ) -> Result<(), ApiError> {
        let addresses: BTreeSet<_> = touched
            .iter()
            .filter_map(|key| wanted.services().get(key))
            .flat_map(|entry| entry.destinations())
            .map(|server| (server.key.address, server.method.tunnel().is_some()))
            .collect();
        for &(address, is_tunnelled) in &addresses {
            self.note_way(address);
            if is_tunnelled {
                self.note_tunnel(address);
            }
        }
        let Self {
            compiler,
            neighbours,
            held_back,
            slow_start,
            checks,
            left_out,
            ..
        } = self;
        let weight = |service: &ServiceKey, server: &ServerKey| {
            let is_left_out = left_out.contains(&(*service, *server));
            compiler
                .effective_weight(service, server)
                .or(is_left_out.then_some(0))
        };
        let checked = checks.next(&wanted, touched, weight);
        let effective = Effective::new(&wanted, touched, |entry, server| {
            if let Some(follows) = checked.down(&entry.spec.key, &server.key) {
                Standing::Down(follows)
            } else if is_usable(reach(neighbours, server).as_ref(), held_back, server.key.address) {
                Standing::Usable
            } else {
                Standing::Unreachable
            }
        });
        let is_usable = |service: &ServiceKey, server: &ServerSpec| effective.is_usable(service, &server.key);
        let risen = slow_start.next(&wanted, touched, is_usable, Instant::now());
        let seen = effective.seen(&wanted);
        let plan = compiler.plan(&seen, touched, told, |service, server| {
            if is_usable(service, server) {
                risen.weight(service, server)
            } else {
                0
            }
        })?;
        if let Err(cause) = self.journal.append(transactions) {
            self.compiler.discard(plan);
            return Err(ApiError::new(
                ErrorCode::Internal,
                format!(
                    "the change could not be written to {}, so it was not made: {cause}",
                    self.config.state_dir.display()
                ),
            ));
        }
        self.dataplane.set_timeouts(wanted.timeouts());
        let concerned = self.uses.follow(touched, &self.model, &wanted);
        self.unfollowed.extend(&concerned);
        // Before the first packet could go round in circles.
        if self.uses.take_new_companions() || std::mem::take(&mut self.are_peers_stale) {
            self.follow_peers();
        }
        // The new ones before their services, the old ones until these are gone.
        let vips = self.vips.follow(touched, &self.model, &wanted);
        self.enter_vips(&vips);
        self.is_steering_stale |= self.checks.adopt(checked);
        if std::mem::take(&mut self.is_steering_stale) {
            self.follow_steered();
        }
        self.compiler.apply(plan);
        self.slow_start.adopt(risen);
        self.note_fallen_back(&wanted, touched, effective.fallen_back());
        self.model = wanted;
        for address in concerned {
            self.follow_hop(address);
        }
        self.note_usable(touched);
        self.follow_announced(&vips);
        Ok(())
    }
}
