//! Whole tables: what their application changes, and what is kept of it.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::{error, info};

use super::{Origin, State, Waiting};
use crate::{
    agent::{Author, Configure, Wanted},
    api::types::{ApiError, Change, ErrorCode, Plan, ServerKey, ServiceKey, Version},
    config,
    journal::Transaction,
    model::Model,
};

/// What is to be made of the table.
pub(super) enum Task {
    /// These changes.
    Changes(Vec<Change>),
    /// This table, whatever there is; and where it comes from.
    Table(Model, String),
}

impl Task {
    /// The changes that do it.
    pub(super) fn changes(&self, from: &Model) -> Vec<Change> {
        match self {
            Self::Changes(changes) => changes.clone(),
            Self::Table(to, _) => config::diff(from, to),
        }
    }
}

/// A change that is taken and waits to become live.
pub(super) struct Made {
    pub(super) transaction: Transaction,
    pub(super) plan: Plan,
}

impl State {
    /// Answers what a table would change, or keeps it until it is made.
    pub(super) fn configure(&mut self, request: Configure) {
        let Configure {
            wanted,
            is_dry,
            author,
            answer,
        } = request;
        let (model, how) = match wanted {
            Wanted::Table(model, how) => (*model, how),
            Wanted::Back(back) => match self.before(back) {
                Ok(found) => found,
                Err(error) => {
                    let _ = answer.send(Err(error));
                    return;
                }
            },
        };
        if is_dry {
            let _ = answer.send(Ok(self.plan(&self.model, &model)));
        } else {
            self.waiting.push(Waiting {
                task: Task::Table(model, how),
                author,
                origin: Origin::Table(answer),
            });
        }
    }

    /// Has a table made by nobody's request but the command line's.
    pub(super) fn configure_at_start(&mut self, model: Model, how: String) {
        self.waiting.push(Waiting {
            task: Task::Table(model, how.clone()),
            author: Author::default(),
            origin: Origin::Start(how),
        });
    }

    /// The table before the last so many versions.
    fn before(&self, back: u32) -> Result<(Model, String), ApiError> {
        let position = back as usize;
        let kept = self.journal.history().count();
        let Some(undone) = position
            .checked_sub(1)
            .and_then(|position| self.journal.history().nth(position))
        else {
            return Err(ApiError::new(
                ErrorCode::NoSuchVersion,
                format!(
                    "there is no going back by {back}: {kept} versions are kept; `lvs-xdp history` lists them"
                ),
            ));
        };
        let how = format!("back to before version {}", undone.number);
        match self.journal.back(position) {
            Ok(model) => Ok((model, how)),
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => Err(ApiError::new(
                ErrorCode::Internal,
                format!(
                    "the history in {} is damaged: the table itself is not, and `lvs-xdp export` writes it",
                    self.config.state_dir.display()
                ),
            )),
            Err(cause) => Err(ApiError::new(
                ErrorCode::Internal,
                format!(
                    "the history in {} cannot be read: {cause}",
                    self.config.state_dir.display()
                ),
            )),
        }
    }

    fn plan(&self, from: &Model, to: &Model) -> Plan {
        let of = |service: &ServiceKey, server: &ServerKey| {
            let id = self.compiler.destination(service, server);
            id.map_or(0, |id| {
                let (active, inactive) = self.compiler.counts(id);
                active + inactive
            })
        };
        let steps = config::steps(from, to, of);
        Plan {
            touched: steps.iter().map(|step| step.connections).sum(),
            connections: (self.model.services())
                .iter()
                .flat_map(|(key, entry)| entry.servers.iter().map(|server| of(key, &server.key)))
                .sum(),
            steps,
        }
    }

    /// What is kept of a change, and told of it; from and to what is of what it touches. One that leaves all as it is,
    /// such as an edit to the same weight, is no version that anybody would want to go back before.
    pub(super) fn made(&self, request: &Waiting, changes: Vec<Change>, from: &Model, to: &Model) -> Made {
        let plan = match request.task {
            Task::Table(..) => self.plan(from, to),
            Task::Changes(_) => Plan {
                steps: config::steps(from, to, |_, _| 0),
                ..Plan::default()
            },
        };
        let what = config::summary(&plan.steps);
        let what = match &request.task {
            Task::Table(_, how) if !how.is_empty() => format!("{how}: {what}"),
            Task::Table(..) | Task::Changes(_) => what,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Made {
            transaction: Transaction {
                version: Version {
                    number: 0,
                    time: now.map_or(0, |time| time.as_secs()),
                    uid: request.author.uid,
                    client: request.author.client.clone(),
                    what,
                },
                changes: if from == to { Vec::new() } else { changes },
            },
            plan,
        }
    }

    /// Says how the table of the command line fared.
    pub(super) fn tell_of_start(&self, how: &str, result: Result<Plan, ApiError>) {
        match result {
            Ok(plan) => info!("{how}: {}", config::summary(&plan.steps)),
            Err(error) => error!("{how}: {error}; the table stays as it was"),
        }
    }
}
