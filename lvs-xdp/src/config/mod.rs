//! The whole table as a TOML file, with the names of the API: read, written, compared with another one.
//!
//! [`read`] takes a file, with the place of everything that is wrong in it; [`write`] writes one. [`diff`] finds the
//! way from one table to another. All of it is pure.

mod diff;
mod load;
mod read;
mod words;
mod write;

pub(crate) use self::load::{load_text, source};
pub use self::{
    diff::{diff, steps},
    load::{LoadError, load},
    read::{Fault, Faults, read},
    words::summary,
    write::write,
};

use crate::{
    api::types::{ApiError, Change, Configuration, ConfiguredService},
    model::Model,
};

impl Configuration {
    /// What a model says.
    pub fn of(model: &Model) -> Self {
        let services = model.services().values().map(|entry| ConfiguredService {
            spec: entry.spec.clone(),
            server: entry.servers.iter().rev().cloned().collect(),
        });
        Self {
            settings: model.settings(),
            timeouts: model.timeouts(),
            mark: model.marks().to_vec(),
            service: services.collect(),
        }
    }

    /// The changes that make it out of nothing.
    pub fn changes(&self) -> Vec<Change> {
        let Self {
            settings,
            timeouts,
            mark,
            service,
        } = self;
        let general = [
            Change::SetSettings { settings: *settings },
            Change::SetTimeouts { timeouts: *timeouts },
        ];
        let marks = mark.iter().cloned().map(|rule| Change::AddMark { rule });
        let services = (service.iter()).flat_map(|service| service.spec.added(service.server.iter()));
        general.into_iter().chain(marks).chain(services).collect()
    }

    /// The same as a model.
    ///
    /// # Errors
    ///
    /// The first thing that makes no sense.
    pub fn model(&self) -> Result<Model, ApiError> {
        let mut model = Model::default();
        model.apply(&self.changes())?;
        Ok(model)
    }
}
