//! The API's server: HTTP/1.1 and JSON on a Unix socket, described by OpenAPI at `/openapi.json`.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use utoipa::OpenApi;

use super::types::{ApiError, Change, Changes, Connection, ErrorCode, Service, Status};
use crate::{
    agent::Request,
    neighbour::{Neighbours, Resolution},
};

/// How long an added server's neighbour is waited for, so that the first connection finds it resolved.
const RESOLUTION: Duration = Duration::from_millis(200);
/// The largest body that is read: some 100,000 changes.
const BODY_LIMIT: usize = 16 << 20;

#[derive(Clone)]
struct Api {
    agent: mpsc::Sender<Request>,
    neighbours: Arc<Neighbours>,
}

/// Serves until the listener fails.
pub(crate) async fn serve(listener: UnixListener, agent: mpsc::Sender<Request>, neighbours: Arc<Neighbours>) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/connections", get(connections))
        .route("/v1/changes", post(changes))
        .route("/v1/unload", post(unload))
        .route("/openapi.json", get(openapi))
        .fallback(async || {
            refuse(
                StatusCode::NOT_FOUND,
                ErrorCode::Invalid,
                "no such page: see /openapi.json",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Api { agent, neighbours });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("the API has ended: {error}");
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "lvs-xdp agent", description = "The agent's API on its Unix socket."),
    paths(status, services, connections, changes, unload)
)]
struct Document;

/// The description of the API.
async fn openapi() -> Json<Value> {
    Json(serde_json::to_value(Document::openapi()).unwrap_or_default())
}

/// Program, interfaces, fill of the tables, what became of packets, what needs attention.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(api): State<Api>) -> Response {
    answer(api.ask(Request::Status).await)
}

/// Every service with its real servers, their connections and counters.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Vec<Service>)))]
async fn services(State(api): State<Api>) -> Response {
    answer(api.ask(Request::Services).await)
}

/// Every connection entry.
#[utoipa::path(get, path = "/v1/connections", responses((status = 200, body = Vec<Connection>)))]
async fn connections(State(api): State<Api>) -> Response {
    answer(api.ask(Request::Connections).await)
}

/// Applies changes, all or none.
#[utoipa::path(
    post,
    path = "/v1/changes",
    request_body = Changes,
    responses(
        (status = 200, description = "All of them are live and durable."),
        (status = 409, description = "None of them was made.", body = ApiError),
    )
)]
async fn changes(State(api): State<Api>, body: Result<Json<Changes>, JsonRejection>) -> Response {
    let Json(Changes { changes }) = match body {
        Ok(body) => body,
        Err(error) => return refuse(error.status(), ErrorCode::Invalid, &error.body_text()),
    };
    if let Err(error) = api.resolve(&changes).await {
        return refused(error);
    }
    match api.ask(|reply| Request::Change(changes, reply)).await {
        Ok(Ok(())) => Json(json!({})).into_response(),
        Ok(Err(error)) | Err(error) => refused(error),
    }
}

/// Takes the program off every interface, removes its pins, and ends the agent.
#[utoipa::path(
    post,
    path = "/v1/unload",
    responses((status = 200, description = "Nothing is forwarded any more."), (status = 500, body = ApiError))
)]
async fn unload(State(api): State<Api>) -> Response {
    match api.ask(Request::Unload).await {
        Ok(Ok(())) => Json(json!({})).into_response(),
        Ok(Err(error)) | Err(error) => refused(error),
    }
}

impl Api {
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ApiError> {
        let ended = |()| ApiError::new(ErrorCode::Internal, "the agent is ending");
        let (reply, answer) = oneshot::channel();
        self.agent.send(request(reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))
    }

    /// Gives the neighbours of servers that are to be added a moment, and refuses those that direct
    /// routing cannot reach where the request says so.
    async fn resolve(&self, changes: &[Change]) -> Result<(), ApiError> {
        let added: Vec<(IpAddr, bool)> = changes
            .iter()
            .filter_map(|change| match change {
                Change::AddServer {
                    server,
                    require_on_link,
                    ..
                } => Some((server.key.address, *require_on_link)),
                _ => None,
            })
            .collect();
        let resolutions = added
            .iter()
            .map(|&(address, _)| self.neighbours.resolve(address, RESOLUTION));
        let resolutions = futures_util::future::join_all(resolutions).await;
        for (&(address, required), resolution) in added.iter().zip(resolutions) {
            if let (true, Resolution::NotOnLink(why)) = (required, resolution) {
                return Err(ApiError::new(
                    ErrorCode::NotOnLink,
                    format!("{address} cannot work with direct routing: {why}; --force adds it all the same"),
                ));
            }
        }
        Ok(())
    }
}

fn answer<T: serde::Serialize>(result: Result<T, ApiError>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => refused(error),
    }
}

fn refused(error: ApiError) -> Response {
    let status = match error.code {
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::NoSuchService | ErrorCode::ServiceNotDefined | ErrorCode::NoSuchServer => {
            StatusCode::NOT_FOUND
        }
        ErrorCode::Invalid | ErrorCode::OutOfRange => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::ServiceExists | ErrorCode::ServerExists | ErrorCode::NotOnLink | ErrorCode::Full => {
            StatusCode::CONFLICT
        }
    };
    (status, Json(error)).into_response()
}

fn refuse(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, Json(ApiError::new(code, message))).into_response()
}
