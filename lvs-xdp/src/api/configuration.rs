//! The pages of the whole table: what it is, what another one would change, which there were before.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Json,
    extract::{
        ConnectInfo, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    listener::Peer,
    refusal::Answer,
    server::{Api, answer},
    types::{ApiError, Change, Configuration, Plan, Rollback, Version},
};
use crate::{
    agent::{Author, Configure, Request, Wanted},
    config,
    model::Model,
    neighbour::Neighbours,
};

/// How a table is applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Application {
    /// Only say what would change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) dry_run: bool,
    /// Where the table comes from, such as a file's name, for the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

/// The longest [`Application::source`] that is kept, in characters.
const LONGEST_SOURCE: usize = 200;

impl Application {
    /// The source as it is kept: of one line that is not too long.
    fn source(&self) -> String {
        let source = self.source.iter().flat_map(|source| source.chars());
        let printed = source.filter(|character| !character.is_control());
        printed.take(LONGEST_SOURCE).collect()
    }
}

/// Everything that is configured.
#[utoipa::path(
    get,
    path = "/v1/configuration",
    responses((status = 200, body = Configuration), (status = 500, body = ApiError))
)]
pub(super) async fn configuration(State(api): State<Api>) -> Answer {
    let model = api.ask(Request::Configuration).await?;
    answer(Configuration::of(&model))
}

/// Replaces everything that is configured, in one step: what is not in the body is deleted, and what stays is not
/// touched.
#[utoipa::path(
    put,
    path = "/v1/configuration",
    params(
        ("dry_run" = Option<bool>, Query, description = "Only say what would change."),
        ("source" = Option<String>, Query, description = "Where the table comes from, for the history."),
    ),
    request_body = Configuration,
    responses(
        (status = 200, description = "It is live and durable; or, of a dry run, it could be.", body = Plan),
        (status = 400, description = "The body or the query is not understood; nothing was changed.", body = ApiError),
        (status = 409, description = "Something is there twice or has no room; nothing was changed.", body = ApiError),
        (status = 422, description = "A value makes no sense; nothing was changed.", body = ApiError),
        (status = 500, description = "The agent failed; nothing was changed.", body = ApiError),
    )
)]
pub(super) async fn configure(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    how: Result<Query<Application>, QueryRejection>,
    body: Result<Json<Configuration>, JsonRejection>,
) -> Answer {
    let (Query(how), Json(configuration)) = (how?, body?);
    answer(api.configure(configuration.model()?, &how, peer.author()).await?)
}

/// Goes back to the table of before the last versions. That is a new version, so going back by one undoes it.
#[utoipa::path(
    post,
    path = "/v1/rollback",
    params(("dry_run" = Option<bool>, Query, description = "Only say what would change.")),
    request_body = Rollback,
    responses(
        (status = 200, description = "It is live and durable; or, of a dry run, it could be.", body = Plan),
        (status = 400, description = "The body or the query is not understood; nothing was changed.", body = ApiError),
        (status = 404, description = "The history does not reach back so far.", body = ApiError),
        (status = 409, description = "It has no room; nothing was changed.", body = ApiError),
        (status = 500, description = "The agent failed; nothing was changed.", body = ApiError),
    )
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    how: Result<Query<Application>, QueryRejection>,
    body: Result<Json<Rollback>, JsonRejection>,
) -> Answer {
    let (Query(Application { dry_run, .. }), Json(Rollback { back })) = (how?, body?);
    answer(api.apply(Wanted::Back(back), dry_run, peer.author()).await?)
}

/// The versions of the table that can be gone back to, the newest first.
#[utoipa::path(
    get,
    path = "/v1/history",
    responses((status = 200, body = Vec<Version>), (status = 500, body = ApiError))
)]
pub(super) async fn history(State(api): State<Api>) -> Answer {
    answer(api.ask(Request::History).await?)
}

/// Applies a table as `PUT /v1/configuration` does, by the agent's own wish.
///
/// # Errors
///
/// Why nothing was changed.
pub(crate) async fn apply(
    agent: mpsc::Sender<Request>,
    neighbours: Arc<Neighbours>,
    model: Model,
    source: String,
) -> Result<Plan, ApiError> {
    let how = Application {
        dry_run: false,
        source: Some(source),
    };
    Api { agent, neighbours }
        .configure(model, &how, Author::default())
        .await
}

impl Api {
    /// Applies a table; the neighbours of its new real servers get a moment first.
    async fn configure(&self, model: Model, how: &Application, author: Author) -> Result<Plan, ApiError> {
        if !how.dry_run {
            let current = self.ask(Request::Configuration).await?;
            let mut changes = config::diff(&current, &model);
            let mut seen = HashSet::new();
            // A real server of many services has one neighbour.
            changes.retain(|change| match change {
                Change::AddServer { server, .. } => seen.insert(server.key.address),
                _ => false,
            });
            self.resolve(&changes).await?;
        }
        let wanted = Wanted::Table(Box::new(model), how.source());
        self.apply(wanted, how.dry_run, author).await
    }

    async fn apply(&self, wanted: Wanted, is_dry: bool, author: Author) -> Result<Plan, ApiError> {
        let configure = |answer| {
            Request::Configure(Configure {
                wanted,
                is_dry,
                author,
                answer,
            })
        };
        self.ask(configure).await?
    }
}
