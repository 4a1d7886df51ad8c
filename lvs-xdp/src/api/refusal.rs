//! What is answered to a request that is not carried out: one status for each reason, and [`ApiError`] as its body.

use std::fmt;

use axum::{
    Json,
    extract::rejection::{JsonRejection, QueryRejection},
    http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE},
    response::{IntoResponse, Response},
};
use utoipa::{
    Modify, ToSchema as _,
    openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder, path::Operation, response::Responses},
};

use super::types::{ApiError, ErrorCode};

/// What a page answers with.
pub(super) type Answer = Result<Response, Refusal>;

/// A refusal, with its status.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    /// A refusal that the status explains to programs.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            error: ApiError::new(ErrorCode::Invalid, message),
        }
    }

    /// The same with another code.
    pub(super) fn with_code(mut self, code: ErrorCode) -> Self {
        self.error.code = code;
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let is_unknown = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(self.error)).into_response();
        if is_unknown {
            let scheme = HeaderValue::from_static("Bearer realm=\"lvs-xdp\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error.message, self.status.as_u16())
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let status = match error.code {
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Denied => StatusCode::FORBIDDEN,
            ErrorCode::NoSuchService
            | ErrorCode::ServiceNotDefined
            | ErrorCode::NoSuchServer
            | ErrorCode::NoSuchMark
            | ErrorCode::NoSuchVersion => StatusCode::NOT_FOUND,
            ErrorCode::Invalid | ErrorCode::OutOfRange => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::ServiceExists
            | ErrorCode::ServerExists
            | ErrorCode::MarkExists
            | ErrorCode::NotOnLink
            | ErrorCode::Full => StatusCode::CONFLICT,
        };
        Self { status, error }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// Adds to the description of every page what the listener itself answers, before the page is asked.
pub(super) struct OfListener;

/// What may be answered to any request; a head that is too large is answered without a body, by the HTTP library.
const TO_ALL: [(&str, &str, bool); 3] = [
    (
        "401",
        "The client is none that is let in, over the network; nothing was changed.",
        true,
    ),
    ("431", "The request's head is too large.", false),
    ("503", "The agent serves as many clients as it can.", true),
];

/// What may be answered besides to a request with a body.
const TO_BODIES: [(&str, &str, bool); 3] = [
    (
        "403",
        "The client's token is one to read with; nothing was changed.",
        true,
    ),
    (
        "408",
        "The request's body comes too slowly; nothing was changed.",
        true,
    ),
    (
        "413",
        "The request's body is too large; nothing was changed.",
        true,
    ),
];

impl Modify for OfListener {
    fn modify(&self, document: &mut OpenApi) {
        for item in document.paths.paths.values_mut() {
            for operation in [&mut item.get].into_iter().flatten() {
                add(operation, &TO_ALL);
            }
            let changing = [&mut item.put, &mut item.post, &mut item.delete];
            for operation in changing.into_iter().flatten() {
                add(operation, &TO_ALL);
                add(operation, &TO_BODIES);
            }
        }
    }
}

fn add(operation: &mut Operation, refusals: &[(&str, &str, bool)]) {
    let Responses { responses, .. } = &mut operation.responses;
    for &(status, description, has_body) in refusals {
        let mut response = ResponseBuilder::new().description(description);
        if has_body {
            let schema = Ref::from_schema_name(ApiError::name());
            response = response.content(
                "application/json",
                ContentBuilder::new().schema(Some(schema)).build(),
            );
        }
        responses.insert(status.to_owned(), RefOr::T(response.build()));
    }
}
