//! Asking for a page.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Tls;
use crate::{
    api::types::{HttpProbe, Statuses},
    checks::{
        Target,
        host::Host,
        socket::{Deadline, Failure, connect},
    },
};

/// So much of a body is looked at.
const BODY_LIMIT: usize = 64 << 10;

pub(super) async fn ask(
    probe: &HttpProbe,
    target: &Target,
    host: &Host,
    tls: &mut Option<Tls>,
    deadline: Deadline,
) -> Result<String, Failure> {
    let tls = match (&probe.tls, &mut *tls) {
        (None, _) => None,
        (Some(_), Some(tls)) => Some(tls.clone()),
        (Some(options), made) => Some(made.insert(Tls::new(options, &name(probe, target))?).clone()),
    };
    // The lead outlives the stream, which ends with the exchange.
    let (_lead, stream) = connect(target, host, deadline).await?;
    if let Some(tls) = tls {
        let stream = tls.connect(stream, deadline).await?;
        return deadline.wait("answer", exchange(probe, target, stream)).await;
    }
    deadline.wait("answer", exchange(probe, target, stream)).await
}

/// The name that a certificate has to have: the header's, without its port.
fn name(probe: &HttpProbe, target: &Target) -> String {
    let Some(host) = &probe.host else {
        return target.asked.ip().to_string();
    };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().to_string();
    }
    let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    let name = if is_port { name } else { host };
    name.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Sends the request and judges the answer. The connection ends with it.
async fn exchange(
    probe: &HttpProbe,
    target: &Target,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
) -> Result<String, Failure> {
    let request = request(probe, target)?;
    let broken = |error: hyper::Error| Failure::Bad(format!("no answer: {}", words(&error)));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        judge(probe, response).await
    };
    tokio::pin!(answered);
    tokio::select! {
        biased;
        result = &mut answered => result,
        // What it had to say is with the answer.
        _ = connection => answered.await,
    }
}

fn request(probe: &HttpProbe, target: &Target) -> Result<Request<Empty<Bytes>>, Failure> {
    let method = Method::from_bytes(probe.method.as_bytes());
    let host = probe.host.clone().unwrap_or_else(|| target.asked.to_string());
    let request = method.map_err(hyper::http::Error::from).and_then(|method| {
        Request::builder()
            .method(method)
            .uri(&probe.path)
            .header(HOST, host)
            .header(USER_AGENT, concat!("lvs-xdp/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Empty::new())
    });
    request.map_err(|error| Failure::Unknown(format!("the request makes no sense: {error}")))
}

async fn judge(probe: &HttpProbe, response: Response<Incoming>) -> Result<String, Failure> {
    let status = response.status().as_u16();
    if !is_expected(&probe.status, status) {
        return Err(Failure::Bad(format!(
            "status {status}, expected {}",
            expected(&probe.status)
        )));
    }
    let Some(text) = &probe.contains else {
        return Ok(format!("status {status}"));
    };
    let mut body = Limited::new(response.into_body(), BODY_LIMIT);
    let mut seen = Vec::new();
    // A body that is longer, or breaks, has said what it has said.
    while let Some(Ok(frame)) = body.frame().await {
        seen.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if super::contains(&seen, text) {
            return Ok(format!("status {status}, with the text"));
        }
    }
    Err(Failure::Bad(format!(
        "status {status}, but the body has no `{text}`"
    )))
}

fn is_expected(statuses: &[Statuses], status: u16) -> bool {
    match statuses {
        [] => Statuses::SUCCESS.contains(status),
        statuses => statuses.iter().any(|statuses| statuses.contains(status)),
    }
}

fn expected(statuses: &[Statuses]) -> String {
    match statuses {
        [] => Statuses::SUCCESS.to_string(),
        statuses => statuses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// An error with its causes, on one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
