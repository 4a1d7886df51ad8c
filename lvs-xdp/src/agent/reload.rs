//! The configuration file of the command line: applied at the start, and anew at SIGHUP.

use std::{path::Path, sync::Arc};

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tracing::{error, info};

use super::Request;
use crate::{api::configuration, config, model::Model, neighbour::Neighbours};

/// Reads a configuration file; with it how it is named in the history.
///
/// # Errors
///
/// All that is wrong with it, a line each.
pub(super) fn load(path: &Path) -> Result<(Model, String), config::LoadError> {
    let (_, model) = config::load(path)?;
    Ok((model, path.display().to_string()))
}

/// Reads the file again and has the agent's task apply it, beside that task: a large file takes its time.
pub(super) fn reload(path: &Path, agent: &mpsc::Sender<Request>, neighbours: &Arc<Neighbours>) {
    let (path, agent, neighbours) = (path.to_owned(), agent.clone(), Arc::clone(neighbours));
    tokio::spawn(async move {
        let now = NotifyState::monotonic_usec_now();
        let _ = match now {
            Ok(now) => sd_notify::notify(&[NotifyState::Reloading, now]),
            Err(error) => Err(error),
        };
        match apply(&path, agent, neighbours).await {
            Ok(what) => info!("SIGHUP: {}: {what}", path.display()),
            Err(faults) => {
                for line in faults.lines() {
                    error!("SIGHUP: {line}");
                }
                error!("SIGHUP: the table stays as it was");
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    });
}

async fn apply(
    path: &Path,
    agent: mpsc::Sender<Request>,
    neighbours: Arc<Neighbours>,
) -> Result<String, String> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || load(&file)).await;
    let (model, how) = read
        .map_err(|error| format!("{}: the reading was broken off: {error}", path.display()))?
        .map_err(|error| error.to_string())?;
    let plan = configuration::apply(agent, neighbours, model, how).await;
    plan.map(|plan| config::summary(&plan.steps))
        .map_err(|error| format!("{}: {error}", path.display()))
}
