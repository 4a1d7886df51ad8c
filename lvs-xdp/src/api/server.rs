//! The API's server: HTTP/1.1 and JSON on a Unix socket, described by OpenAPI at `/openapi.json`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        ConnectInfo, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse as _,
    routing::{get, post},
};
use futures_util::future::OptionFuture;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot},
};
use utoipa::OpenApi;

use super::{
    configuration::{
        __path_configuration, __path_configure, __path_history, __path_rollback, configuration, configure,
        history, rollback,
    },
    filter::{ConnectionFilter, ServiceFilter},
    listener::{self, Limits, Peer},
    refusal::{Answer, OfListener, Refusal},
    remote::{self, Gate},
    types::{
        Announcement, ApiError, Change, Changes, CheckStatus, Connection, ErrorCode, Flushed,
        ForwardingMethod, MarkRule, ServerSpec, Service, Status, Zero,
    },
};
use crate::{
    agent::{
        Request,
        connections::{self, Format, Listing},
    },
    metrics::{self, Seen},
    neighbour::{Neighbours, Resolution},
};

/// How long an added server's neighbour is waited for, so that the first connection finds it resolved.
const RESOLUTION: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub(super) struct Api {
    pub(super) agent: mpsc::Sender<Request>,
    pub(super) neighbours: Arc<Neighbours>,
}

/// Serves at the socket, and over the network where there is a gate, until it is dropped.
pub(crate) async fn serve(
    listener: UnixListener,
    remote: Option<(Gate, Vec<TcpListener>)>,
    agent: mpsc::Sender<Request>,
    neighbours: Arc<Neighbours>,
) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/checks", get(checks))
        .route("/v1/marks", get(marks))
        .route("/metrics", get(metrics))
        .route("/v1/zero", post(zero))
        .route("/v1/connections", get(list).delete(flush))
        .route("/v1/changes", post(changes))
        .route("/v1/configuration", get(configuration).put(configure))
        .route("/v1/rollback", post(rollback))
        .route("/v1/history", get(history))
        .route("/v1/announce", post(announce))
        .route("/v1/unload", post(unload))
        .route("/openapi.json", get(openapi))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such page: see /openapi.json"))
        .with_state(Api { agent, neighbours });
    let remote =
        remote.map(|(gate, listeners)| remote::serve(gate, listeners, router.clone(), Limits::AGENT));
    let remote = OptionFuture::from(remote);
    futures_util::join!(listener::serve(listener, router, Limits::AGENT), remote);
}

#[derive(OpenApi)]
#[openapi(
    info(title = "lvs-xdp agent", description = "The agent's API on its Unix socket, and over the network for whom a token or a certificate lets in."),
    paths(
        status,
        services,
        checks,
        metrics,
        marks,
        zero,
        list,
        flush,
        changes,
        configuration,
        configure,
        rollback,
        history,
        announce,
        unload
    ),
    modifiers(&OfListener)
)]
struct Document;

/// The description of the API.
async fn openapi() -> Json<Value> {
    Json(serde_json::to_value(Document::openapi()).unwrap_or_default())
}

/// Program, interfaces, fill of the tables, what became of packets, what needs attention.
#[utoipa::path(
    get,
    path = "/v1/status",
    responses((status = 200, body = Status), (status = 500, body = ApiError))
)]
async fn status(State(api): State<Api>) -> Answer {
    answer(api.ask(Request::Status).await?)
}

/// Every service with its real servers, their connections and counters.
#[utoipa::path(
    get,
    path = "/v1/services",
    params(ServiceFilter),
    responses(
        (status = 200, body = Vec<Service>),
        (status = 400, description = "The query is not understood.", body = ApiError),
        (status = 404, description = "There is no such service.", body = ApiError),
        (status = 500, description = "The agent failed.", body = ApiError),
    )
)]
async fn services(State(api): State<Api>, filter: Result<Query<ServiceFilter>, QueryRejection>) -> Answer {
    let Query(ServiceFilter { service }) = filter?;
    let service = service.map(|name| name.0);
    answer(api.ask(|reply| Request::Services(service, reply)).await??)
}

/// Sets the counters of a service and its real servers to 0, or those of all services; and their rates.
#[utoipa::path(
    post,
    path = "/v1/zero",
    request_body = Zero,
    responses(
        (status = 200, description = "They count from 0."),
        (status = 400, description = "The body is no JSON; nothing was changed.", body = ApiError),
        (status = 404, description = "There is no such service; nothing was changed.", body = ApiError),
        (status = 500, description = "The agent failed.", body = ApiError),
    )
)]
async fn zero(State(api): State<Api>, body: Result<Json<Zero>, JsonRejection>) -> Answer {
    let Json(Zero { service }) = body?;
    done(api.ask(|reply| Request::Zero(service, reply)).await??)
}

/// The health check of every real server that has one, with its last result.
#[utoipa::path(
    get,
    path = "/v1/checks",
    responses((status = 200, body = Vec<CheckStatus>), (status = 500, body = ApiError))
)]
async fn checks(State(api): State<Api>) -> Answer {
    answer(api.ask(Request::Checks).await?)
}

/// Counters, connections, health and tables as Prometheus reads them.
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, description = "OpenMetrics.", content_type = "application/openmetrics-text", body = String),
        (status = 500, body = ApiError),
    )
)]
async fn metrics(State(api): State<Api>) -> Answer {
    let seen = Seen {
        status: api.ask(Request::Status).await?,
        services: api.ask(|reply| Request::Services(None, reply)).await??,
        checks: api.ask(Request::Checks).await?,
    };
    // A large table takes a while to be written, which holds up nobody else so.
    let text = tokio::task::spawn_blocking(|| metrics::render(seen)).await;
    let failed = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal, error.to_string());
    let text = text
        .map_err(|error| failed(&error))?
        .map_err(|error| failed(&error))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// The rules that give packets firewall marks, in the order in which they are tried.
#[utoipa::path(
    get,
    path = "/v1/marks",
    responses((status = 200, body = Vec<MarkRule>), (status = 500, body = ApiError))
)]
async fn marks(State(api): State<Api>) -> Answer {
    answer(&*api.ask(Request::Marks).await?)
}

/// Connection entries, persistence templates among them, as they are while the list is sent. A list that
/// does not end as it should (a JSON array with its bracket, a chunked body with its last chunk) is not whole.
#[utoipa::path(
    get,
    path = "/v1/connections",
    params(
        ConnectionFilter,
        ("accept" = Option<String>, Header,
            description = "`application/json` (the default), or `text/plain`: columns under a line of titles."),
    ),
    responses(
        (status = 200, description = "One entry a line in both forms.",
            content((Vec<Connection> = "application/json"), (String = "text/plain"))),
        (status = 400, description = "The query is not understood.", body = ApiError),
        (status = 404, description = "There is no such service.", body = ApiError),
        (status = 500, description = "The agent failed.", body = ApiError),
    )
)]
async fn list(
    State(api): State<Api>,
    filter: Result<Query<ConnectionFilter>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let Query(filter) = filter?;
    let format = format(&headers);
    let content_type = match format {
        Format::Json => "application/json",
        Format::Text => "text/plain; charset=utf-8",
    };
    let listing = Listing::new(api.ask(Request::Tables).await?, &filter, format)?;
    let body = Body::from_stream(listing.stream());
    Ok(([(CONTENT_TYPE, content_type)], body).into_response())
}

/// The first of the two forms that the client names; JSON where it names neither.
fn format(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(ACCEPT).into_iter();
    let mut names = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.split(';').next());
    names
        .find_map(|name| match name.trim() {
            "application/json" => Some(Format::Json),
            "text/plain" => Some(Format::Text),
            _ => None,
        })
        .unwrap_or(Format::Json)
}

/// Removes connection entries: all of them, where there is no filter. The next packet of such a connection
/// is that of an unknown one.
#[utoipa::path(
    delete,
    path = "/v1/connections",
    params(ConnectionFilter),
    responses(
        (status = 200, body = Flushed),
        (status = 400, description = "The query is not understood.", body = ApiError),
        (status = 404, description = "There is no such service.", body = ApiError),
        (status = 500, description = "The agent failed.", body = ApiError),
    )
)]
async fn flush(State(api): State<Api>, filter: Result<Query<ConnectionFilter>, QueryRejection>) -> Answer {
    let Query(filter) = filter?;
    let tables = api.ask(Request::Tables).await?;
    let removed = tokio::task::spawn_blocking(move || connections::flush(&tables, &filter)).await;
    let broken_off = |_| ApiError::new(ErrorCode::Internal, "the table was not read to its end");
    let removed = removed.map_err(broken_off)??;
    answer(Flushed { removed })
}

/// Applies changes, all or none; or says what is wrong with them.
#[utoipa::path(
    post,
    path = "/v1/changes",
    request_body = Changes,
    responses(
        (status = 200, description = "All of them are live and durable."),
        (status = 400, description = "The body is no JSON; none was made.", body = ApiError),
        (status = 404, description = "A service, real server or rule is not there; none was made.", body = ApiError),
        (status = 409, description = "Something exists already, has no room or cannot be reached; none was made.",
            body = ApiError),
        (status = 422, description = "A value makes no sense; none was made.", body = ApiError),
        (status = 500, description = "The agent failed; none was made.", body = ApiError),
    )
)]
async fn changes(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Result<Json<Changes>, JsonRejection>,
) -> Answer {
    let Json(Changes { changes, check }) = body?;
    if check {
        return done(api.ask(|reply| Request::Check(changes, reply)).await??);
    }
    api.resolve(&changes).await?;
    done(
        api.ask(|reply| Request::Change(changes, peer.author(), reply))
            .await??,
    )
}

/// Tells everybody where virtual addresses are, some times a second apart: by gratuitous ARP, by unsolicited
/// neighbour advertisements.
#[utoipa::path(
    post,
    path = "/v1/announce",
    request_body = Announcement,
    responses(
        (status = 200, description = "What is told.", body = Announcement),
        (status = 400, description = "The body is no JSON; nothing is told.", body = ApiError),
        (status = 404, description = "An address is no virtual one; nothing is told.", body = ApiError),
        (status = 422, description = "This director does not answer for an address; nothing is told.",
            body = ApiError),
        (status = 500, description = "The agent failed.", body = ApiError),
    )
)]
async fn announce(State(api): State<Api>, body: Result<Json<Announcement>, JsonRejection>) -> Answer {
    let Json(Announcement { addresses }) = body?;
    let addresses = api.ask(|reply| Request::Announce(addresses, reply)).await??;
    answer(Announcement { addresses })
}

/// Takes the program off every interface, removes its pins, and ends the agent.
#[utoipa::path(
    post,
    path = "/v1/unload",
    responses((status = 200, description = "Nothing is forwarded any more."), (status = 500, body = ApiError))
)]
async fn unload(State(api): State<Api>) -> Answer {
    done(api.ask(Request::Unload).await??)
}

impl Api {
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ApiError> {
        let ended = |()| ApiError::new(ErrorCode::Internal, "the agent is ending");
        let (reply, answer) = oneshot::channel();
        self.agent.send(request(reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))
    }

    /// Gives the neighbours of servers that are to be added a moment, and refuses those that direct
    /// routing cannot reach where the request says so.
    pub(super) async fn resolve(&self, changes: &[Change]) -> Result<(), ApiError> {
        let added: Vec<(&ServerSpec, bool)> = changes
            .iter()
            .filter_map(|change| match change {
                Change::AddServer {
                    server,
                    require_on_link,
                    ..
                } => Some((server, *require_on_link)),
                _ => None,
            })
            .collect();
        // Thousands of services may have the same real servers.
        let addresses: BTreeSet<_> = added.iter().map(|(server, _)| server.key.address).collect();
        self.neighbours.resolve_all(addresses, RESOLUTION).await;
        let is_tunnelled = |server: &ServerSpec| server.method.tunnel().is_some();
        let tunnelled = added.iter().filter(|(server, _)| is_tunnelled(server));
        let routers: BTreeSet<_> = tunnelled
            .filter_map(|(server, _)| self.neighbours.resolution(server.key.address)?.router())
            .collect();
        self.neighbours.resolve_all(routers, RESOLUTION).await;
        for (server, _) in added.iter().filter(|(_, is_required)| *is_required) {
            let reached = self.neighbours.reach(server.key.address, is_tunnelled(server));
            if let Some(Resolution::NotOnLink(why)) = reached {
                let method = match server.method {
                    ForwardingMethod::Dr => "work with direct routing",
                    ForwardingMethod::Tunnel(_) => "be reached through a tunnel",
                };
                let address = server.key.address;
                return Err(ApiError::new(
                    ErrorCode::NotOnLink,
                    format!("{address} cannot {method}: {why}; --force adds it all the same"),
                ));
            }
        }
        Ok(())
    }
}

/// A good answer.
pub(super) fn answer<T: serde::Serialize>(value: T) -> Answer {
    Ok(Json(value).into_response())
}

/// The answer to what was done, of which there is nothing to tell.
fn done((): ()) -> Answer {
    answer(json!({}))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn lists_are_json_unless_text_is_asked_for() {
        for (accept, expected) in [
            (None, Format::Json),
            (Some("*/*"), Format::Json),
            (Some("text/plain"), Format::Text),
            (
                Some("text/html, text/plain;q=0.5, application/json;q=0.1"),
                Format::Text,
            ),
            (Some("application/json, text/plain"), Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))));
            assert_eq!(format(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn the_description_has_every_page_with_its_refusals() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let statuses = |path: &str, method: &str| {
            let responses = &document["paths"][path][method]["responses"];
            responses
                .as_object()
                .map(|responses| responses.keys().cloned().collect::<Vec<_>>())
        };
        for (path, method, expected) in [
            ("/v1/status", "get", &["200", "401", "431", "500", "503"][..]),
            (
                "/v1/services",
                "get",
                &["200", "400", "401", "404", "431", "500", "503"],
            ),
            (
                "/v1/zero",
                "post",
                &[
                    "200", "400", "401", "403", "404", "408", "413", "431", "500", "503",
                ],
            ),
            ("/v1/checks", "get", &["200", "401", "431", "500", "503"]),
            ("/v1/marks", "get", &["200", "401", "431", "500", "503"]),
            (
                "/v1/connections",
                "get",
                &["200", "400", "401", "404", "431", "500", "503"],
            ),
            (
                "/v1/connections",
                "delete",
                &[
                    "200", "400", "401", "403", "404", "408", "413", "431", "500", "503",
                ],
            ),
            (
                "/v1/changes",
                "post",
                &[
                    "200", "400", "401", "403", "404", "408", "409", "413", "422", "431", "500", "503",
                ],
            ),
            (
                "/v1/announce",
                "post",
                &[
                    "200", "400", "401", "403", "404", "408", "413", "422", "431", "500", "503",
                ],
            ),
            (
                "/v1/unload",
                "post",
                &["200", "401", "403", "408", "413", "431", "500", "503"],
            ),
        ] {
            let found = statuses(path, method).unwrap_or_default();
            assert_eq!(found, expected, "{method} {path}");
        }
        let list = &document["paths"]["/v1/connections"]["get"];
        let names: Vec<_> = list["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["name"])
            .collect();
        assert_eq!(names, ["client", "service", "server", "state", "accept"]);
        let content = list["responses"]["200"]["content"].as_object().unwrap();
        assert!(content.contains_key("application/json") && content.contains_key("text/plain"));
    }
}
