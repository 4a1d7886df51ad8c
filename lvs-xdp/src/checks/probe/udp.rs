//! Asking by a datagram.

use crate::{
    api::types::UdpProbe,
    checks::{
        Target,
        host::Host,
        socket::{Deadline, Failure, datagrams},
    },
};

/// The longest answer there can be.
const LONGEST: usize = 65_535;

pub(super) async fn ask(
    probe: &UdpProbe,
    target: &Target,
    host: &Host,
    deadline: Deadline,
) -> Result<String, Failure> {
    let question = probe.octets().map_err(Failure::Unknown)?;
    let (_lead, socket) = datagrams(target, host).await?;
    let refused = |error| Failure::of("no answer", &error);
    socket.send(&question).await.map_err(refused)?;
    let mut answer = vec![0; LONGEST];
    let received = deadline.wait("answer", async {
        socket.recv(&mut answer).await.map_err(refused)
    });
    let length = match received.await {
        Ok(length) => length,
        Err(Failure::Bad(_)) if deadline.is_over() && !probe.answer && probe.contains.is_none() => {
            return Ok("no answer, and no error".to_owned());
        }
        Err(failure) => return Err(failure),
    };
    judge(probe, &answer[..length])
}

fn judge(probe: &UdpProbe, answer: &[u8]) -> Result<String, Failure> {
    let length = answer.len();
    match &probe.contains {
        Some(text) if !super::contains(answer, text) => Err(Failure::Bad(format!(
            "an answer of {length} octets, without `{text}`"
        ))),
        Some(_) => Ok(format!("an answer of {length} octets, with the text")),
        None => Ok(format!("an answer of {length} octets")),
    }
}
