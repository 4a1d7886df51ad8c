//! The ways to ask; each says in words what it has seen.

mod http;

use super::{
    Job,
    health::Outcome,
    socket::{Deadline, Failure, connect},
};
use crate::api::types::Probe;

/// Asks once.
pub(super) async fn ask(job: &Job) -> Outcome {
    match try_once(job).await {
        Ok(seen) => Outcome::Good(seen),
        Err(Failure::Bad(why)) => Outcome::Bad(why),
        Err(Failure::Unknown(why)) => Outcome::Unknown(why),
    }
}

async fn try_once(job: &Job) -> Result<String, Failure> {
    let target = job.target.as_ref().map_err(|why| Failure::Unknown(why.clone()))?;
    let deadline = Deadline::after(job.check.timeout.duration());
    match &job.check.probe {
        Probe::Tcp {} => connect(target, deadline)
            .await
            .map(|_stream| "connected".to_owned()),
        Probe::Http(probe) => http::ask(probe, target, deadline).await,
    }
}
