//! The ways to ask; each says in words what it has seen.

mod dns;
mod exec;
mod http;
mod tls;
mod udp;

pub(super) use self::tls::Tls;
use super::{
    Job,
    health::Outcome,
    host::Host,
    socket::{Deadline, Failure, connect},
};
use crate::api::types::Probe;

/// Asks once. `tls` is what an earlier time has made for this one, and what this one makes for later ones.
pub(super) async fn ask(job: &Job, host: &Host, tls: &mut Option<Tls>) -> Outcome {
    match try_once(job, host, tls).await {
        Ok(seen) => Outcome::Good(seen),
        Err(Failure::Bad(why)) => Outcome::Bad(why),
        Err(Failure::Unknown(why)) => Outcome::Unknown(why),
    }
}

async fn try_once(job: &Job, host: &Host, tls: &mut Option<Tls>) -> Result<String, Failure> {
    let target = job.target.as_ref().map_err(|why| Failure::Unknown(why.clone()))?;
    let deadline = Deadline::after(job.check.timeout.duration());
    match &job.check.probe {
        Probe::Tcp {} => {
            let (_lead, _stream) = connect(target, host, deadline).await?;
            Ok("connected".to_owned())
        }
        Probe::Http(probe) => http::ask(probe, target, host, tls, deadline).await,
        Probe::Udp(probe) => udp::ask(probe, target, host, deadline).await,
        Probe::Dns(probe) => dns::ask(probe, target, host, deadline).await,
        Probe::Exec(probe) => exec::ask(probe, target, deadline).await,
        Probe::Passive(_) => Err(Failure::Unknown("a passive check asks nobody".to_owned())),
    }
}

/// Whether a text is in some octets.
fn contains(octets: &[u8], text: &str) -> bool {
    octets
        .windows(text.len().max(1))
        .any(|part| part == text.as_bytes())
}
