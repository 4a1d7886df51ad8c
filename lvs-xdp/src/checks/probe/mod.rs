//! The ways to ask; each says in words what it has seen.

mod http;

use super::{
    Job,
    health::Outcome,
    host::Host,
    socket::{Deadline, Failure, connect},
};
use crate::api::types::Probe;

/// Asks once.
pub(super) async fn ask(job: &Job, host: &Host) -> Outcome {
    match try_once(job, host).await {
        Ok(seen) => Outcome::Good(seen),
        Err(Failure::Bad(why)) => Outcome::Bad(why),
        Err(Failure::Unknown(why)) => Outcome::Unknown(why),
    }
}

async fn try_once(job: &Job, host: &Host) -> Result<String, Failure> {
    let target = job.target.as_ref().map_err(|why| Failure::Unknown(why.clone()))?;
    let deadline = Deadline::after(job.check.timeout.duration());
    match &job.check.probe {
        Probe::Tcp {} => {
            let (_lead, _stream) = connect(target, host, deadline).await?;
            Ok("connected".to_owned())
        }
        Probe::Http(probe) => http::ask(probe, target, host, deadline).await,
    }
}
