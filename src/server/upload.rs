//! `POST files/{sha}/{size}`: one blob.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::{
    ApiError, App, Defer, Peer,
    body::{next_piece, pieces},
    routes::{NamedBlob, millis},
};
use crate::{
    domain::BlobId,
    store::{Begin, Ticket},
    wire,
};

/// How an upload ended well.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Stored,
    AlreadyStored,
    Deferred,
}

impl Outcome {
    fn status(self) -> StatusCode {
        match self {
            Self::Stored => StatusCode::NO_CONTENT,
            Self::AlreadyStored => StatusCode::ALREADY_REPORTED,
            Self::Deferred => StatusCode::TOO_EARLY,
        }
    }
}

pub(super) async fn upload(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    NamedBlob(id): NamedBlob,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let start = Instant::now();
    let name =
        headers.get(wire::ORIGINAL_FILENAME).map(|value| wire::decode_filename(value.as_bytes()));
    let result = receive(&app, id, &headers, body).await;
    let name = name.as_deref().unwrap_or("-");
    let elapsed_ms = millis(start.elapsed());
    match result {
        Ok(outcome) => {
            tracing::info!(
                target: "farmhand::access",
                client = %peer.0, blob = %id, name, outcome = ?outcome, elapsed_ms, "upload"
            );
            match outcome {
                Outcome::Deferred => ApiError::new(
                    outcome.status(),
                    "another client is sending this file: go on with others, then ask again",
                )
                .into_response(),
                _ => outcome.status().into_response(),
            }
        }
        Err(error) => {
            tracing::info!(
                target: "farmhand::access",
                client = %peer.0, blob = %id, name, status = error.status().as_u16(),
                reason = error.message(), elapsed_ms, "upload failed"
            );
            error.into_response()
        }
    }
}

async fn receive(
    app: &App,
    id: BlobId,
    headers: &HeaderMap,
    body: Body,
) -> Result<Outcome, ApiError> {
    let promised = hyper::body::Body::size_hint(&body).exact();
    if promised.is_some_and(|length| length != id.size_bytes) {
        return Err(ApiError::new(
            StatusCode::EXPECTATION_FAILED,
            format!(
                "Content-Length {} is not the size in the address, {}; hash the file again",
                promised.unwrap_or_default(),
                id.size_bytes
            ),
        ));
    }
    let ticket = match begin(app, id, may_defer(app, headers)).await? {
        Ok(ticket) => ticket,
        Err(outcome) => return Ok(outcome),
    };
    store(app, ticket, body).await?;
    Ok(Outcome::Stored)
}

fn may_defer(app: &App, headers: &HeaderMap) -> bool {
    let says_so =
        || headers.get(wire::CAN_DEFER).is_some_and(|value| wire::means_true(value.as_bytes()));
    let is_addon = || {
        headers
            .get(header::USER_AGENT)
            .is_some_and(|value| wire::is_blender_addon(value.as_bytes()))
    };
    match app.options.defer {
        Defer::Never => false,
        Defer::Always => says_so(),
        Defer::Auto => says_so() && !is_addon(),
    }
}

/// Gets the right to receive a blob; `Err` if there is nothing to receive. A client that cannot
/// defer is held while another one sends the blob, and takes over if that fails or takes too long.
async fn begin(
    app: &App,
    id: BlobId,
    may_defer: bool,
) -> Result<Result<Ticket, Outcome>, ApiError> {
    let deadline = Instant::now() + app.options.hold;
    loop {
        let store = app.store.clone();
        match app.exec.blocking(move || store.begin(id)).await? {
            Begin::Stored => return Ok(Err(Outcome::AlreadyStored)),
            Begin::Receive(ticket) => return Ok(Ok(ticket)),
            Begin::Busy(_) if may_defer => return Ok(Err(Outcome::Deferred)),
            Begin::Busy(flight) => {
                if tokio::time::timeout_at(deadline, flight.ended()).await.is_err() {
                    return Ok(Ok(app.store.join(id)));
                }
            }
        }
    }
}

/// Hands the body to a thread that stores it. If this future is dropped, because the client is
/// gone, the thread sees the end of the body and cleans up.
async fn store(app: &App, ticket: Ticket, mut body: Body) -> Result<(), ApiError> {
    let permit = app.uploads.clone().acquire_owned().await.expect("BUG: never closed");
    let (sender, mut reader) = pieces();
    let receiving = app.exec.blocking(move || {
        let _permit = permit;
        ticket.receive(&mut reader)
    });
    // `move`: when this ends, however, the receiver must see the end, and the body be drained.
    let idle = app.options.body_timeout;
    let feeding = async move {
        while let Some(piece) = next_piece(&mut body, idle).await? {
            // The receiver has seen enough; what it says is the answer.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        Ok::<_, ApiError>(())
    };
    let (received, fed) = tokio::join!(receiving, feeding);
    // A body that broke off is why the blob is not whole, and the better answer.
    fed?;
    Ok(received?)
}
