//! Errors as clients see them: a status and a JSON body that says what is wrong.

use std::error::Error;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::body::BodyError;
use crate::{
    disk::DiskError,
    store::{CheckoutError, ReceiveError},
    wire::Problem,
};

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The body of the request did not come to its end.
    broke_off: bool,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), broke_off: false }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A body has more bytes than this.
    pub(super) fn too_long(limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the request is longer than the {limit} bytes this server accepts: send less at once"
            ),
        )
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether it is for want of a body that came to its end.
    pub(super) fn is_about_the_line(&self) -> bool {
        self.broke_off
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.status.as_u16();
        let mut answer =
            (self.status, Json(Problem { code, message: self.message })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        answer
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<DiskError> for ApiError {
    fn from(error: DiskError) -> Self {
        let message = chain(&error);
        if error.is_full() {
            tracing::error!(reason = message, "the storage is full");
            Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("the server's storage is full: {message}; free space there and try again"),
            )
        } else {
            tracing::error!(reason = message, "the storage failed");
            Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the server's storage failed: {message}"),
            )
        }
    }
}

impl From<ReceiveError> for ApiError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Size { .. } | ReceiveError::Digest { .. } => Self::new(
                StatusCode::EXPECTATION_FAILED,
                format!("{error}; hash the file again and send it under its new name"),
            ),
            ReceiveError::Body { .. } => Self::bad_request(chain(&error)),
            ReceiveError::Disk(error) => error.into(),
        }
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::Silent(_) => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        Self { broke_off: true, ..Self::new(status, error.to_string()) }
    }
}

impl From<CheckoutError> for ApiError {
    fn from(error: CheckoutError) -> Self {
        match error {
            CheckoutError::Missing(ref ids) => {
                let some: Vec<_> = ids.iter().take(3).map(ToString::to_string).collect();
                let dots = if ids.len() > some.len() { ", …" } else { "" };
                Self::new(
                    StatusCode::FAILED_DEPENDENCY,
                    format!(
                        "{error}: {}{dots}; ask for the requirements and send them",
                        some.join(", ")
                    ),
                )
            }
            CheckoutError::TooLong { .. } => {
                Self::bad_request(format!("{error}; use shorter names"))
            }
            CheckoutError::Conflict { .. } | CheckoutError::SameName(_) => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            CheckoutError::Disk(error) => error.into(),
        }
    }
}
