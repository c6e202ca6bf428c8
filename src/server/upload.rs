//! `POST files/{sha}/{size}`: one blob.

use std::time::Duration;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    ApiError, App, Defer, Peer,
    access_log::UploadRecord,
    body::{PieceReader, next_counted, read_by_thread, read_whole},
    metrics::{Counted, HoldEnd, UploadEnd},
    routes::{NamedBlob, shown},
};
use crate::{
    domain::BlobId,
    store::{Begin, Claimed, ReceiveError, Received, Receiving, Ticket},
    wire::{self, Problem},
};

/// Bodies up to this size are read as a whole before anything is done with them.
const SMALL_BYTES: u64 = 64 << 10;

/// If they come within this time. One that has been sent is there already.
const SMALL_COMES_WITHIN: Duration = Duration::from_millis(50);

/// A store in memory takes blobs up to this size without a thread: to free the memory of one that breaks off keeps the core busy.
const MAX_HERE_BYTES: u64 = 4 << 30;

/// Send a file
///
/// Answers may come before the body has been read. A client that says it can defer is told so if
/// somebody else is sending the same file; any other waits for the end of that.
#[utoipa::path(
    post, path = "/files/{sha}/{size}", operation_id = "shamanFileStore", tag = "shaman",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("X-Shaman-Can-Defer-Upload" = Option<bool>, Header, description = "Whether the client goes on with other files if somebody else is sending this one"),
        ("X-Shaman-Original-Filename" = Option<String>, Header, description = "The file's name on the client, as an encoded word (RFC 2047), for the log"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The content"),
    responses(
        (status = 204, description = "It is stored now"),
        (status = 208, description = "It was stored already"),
        (status = 400, description = "The path names no file, or the body broke off", body = Problem),
        (status = 408, description = "No data came for too long", body = Problem),
        (status = 417, description = "It is not what its name says: hash it again", body = Problem),
        (status = 425, description = "Somebody else is sending it: go on with other files, then ask again", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
    )
)]
pub(super) async fn upload(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    blob: Result<NamedBlob, ApiError>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut record = UploadRecord::new(app.clone(), peer.0);
    let name = headers.get(wire::ORIGINAL_FILENAME);
    record.name = name.map(|value| wire::decode_filename(value.as_bytes()));
    record.blob = match &blob {
        Ok(NamedBlob(id)) => id.to_string(),
        Err(_) => shown(&uri).trim_start_matches("/files/").to_owned(),
    };
    let received = match blob {
        Ok(NamedBlob(id)) => receive(&app, id, &headers, body, &mut record.bytes).await,
        Err(error) => Err(error),
    };
    match received {
        Ok(end) => {
            let status = match end {
                UploadEnd::AlreadyStored | UploadEnd::Absorbed => StatusCode::ALREADY_REPORTED,
                UploadEnd::Deferred => StatusCode::TOO_EARLY,
                _ => StatusCode::NO_CONTENT,
            };
            record.ended(end, status);
            if end == UploadEnd::Deferred {
                let message =
                    "another client is sending this file: go on with others, then ask again";
                return ApiError::new(status, message).into_response();
            }
            status.into_response()
        }
        Err(error) => {
            record.failed(&error);
            error.into_response()
        }
    }
}

async fn receive(
    app: &App,
    id: BlobId,
    headers: &HeaderMap,
    body: Body,
    bytes: &mut u64,
) -> Result<UploadEnd, ApiError> {
    let promised = hyper::body::Body::size_hint(&body).exact();
    if promised.is_some_and(|length| length != id.size_bytes) {
        app.metrics.wrong_size();
        return Err(ApiError::new(
            StatusCode::EXPECTATION_FAILED,
            format!(
                "Content-Length {} is not the size in the address, {}; hash the file again",
                promised.unwrap_or_default(),
                id.size_bytes
            ),
        ));
    }
    if app.store.is_kept_at_once(&id) {
        return Ok(UploadEnd::AlreadyStored);
    }
    // A client that waits for our word must not be kept waiting until it has sent everything.
    let is_small = promised.is_some_and(|length| length <= SMALL_BYTES);
    if is_small
        && !headers.contains_key(header::EXPECT)
        && let Ok(permit) = app.uploads.clone().try_acquire_owned()
        && let Some(claimed) = app.store.claim(id)
    {
        return receive_small(app, id, (claimed, permit), body, bytes).await;
    }
    match begin(app, id, may_defer(app, headers)).await? {
        Ok(ticket) => receive_pieces(app, id, ticket, (Bytes::new(), body), bytes).await,
        Err(end) => Ok(end),
    }
}

/// All of a small body is there before a thread is asked to store it: waking one takes as long as that. If it
/// does not come at once, it is received like any other: nothing is claimed for long that may be stored already.
async fn receive_small(
    app: &App,
    id: BlobId,
    (claimed, permit): (Claimed, OwnedSemaphorePermit),
    mut body: Body,
    bytes: &mut u64,
) -> Result<UploadEnd, ApiError> {
    let in_flight = Counted::new(&app.metrics.uploads_in_flight);
    let mut content = Vec::with_capacity(usize::try_from(id.size_bytes).unwrap_or_default());
    let read = read_whole(app, &mut body, &mut content, bytes);
    match tokio::time::timeout(SMALL_COMES_WITHIN, read).await {
        Ok(read) => read?,
        Err(_) => {
            drop((permit, in_flight));
            return match app.briefly(move |_| claimed.begin(0)).await? {
                Begin::Receive(ticket) => {
                    receive_pieces(app, id, ticket, (content.into(), body), bytes).await
                }
                _ => Ok(UploadEnd::AlreadyStored),
            };
        }
    }
    let received = app.briefly(move |_| {
        let _permit = permit;
        claimed.receive(&content)
    });
    let received = received.await.inspect_err(|error| app.metrics.not_received(error))?;
    let Some(received) = received else { return Ok(UploadEnd::AlreadyStored) };
    app.metrics.stored(id.size_bytes, received.synced);
    Ok(UploadEnd::Stored)
}

/// Stores a body, of which something has been read, as it comes.
async fn receive_pieces(
    app: &App,
    id: BlobId,
    ticket: Ticket,
    body: (Bytes, Body),
    bytes: &mut u64,
) -> Result<UploadEnd, ApiError> {
    let received = if app.store.is_in_memory() && id.size_bytes <= MAX_HERE_BYTES {
        receive_here(app, ticket, body, bytes).await?
    } else {
        let store = move |body: &mut PieceReader| ticket.receive(body);
        read_by_thread(app, body, u64::MAX, bytes, store).await?
    };
    let received = received.inspect_err(|error| app.metrics.not_received(error))?;
    app.metrics.stored(id.size_bytes, received.synced);
    Ok(UploadEnd::Stored)
}

/// The same without a thread for the disk: for a store that has none.
async fn receive_here(
    app: &App,
    ticket: Ticket,
    (begun, mut body): (Bytes, Body),
    bytes: &mut u64,
) -> Result<Result<Received, ReceiveError>, ApiError> {
    let _permit = app.uploads.acquire().await.expect("BUG: never closed");
    let _in_flight = Counted::new(&app.metrics.uploads_in_flight);
    let mut receiving = ticket.start();
    if !begun.is_empty() {
        receiving = receiving.and_then(|receiving| receiving.write(&begun));
    }
    while receiving.is_ok()
        && let Some(piece) = next_counted(app, &mut body, bytes).await?
    {
        receiving = receiving.and_then(|receiving| receiving.write(&piece));
    }
    Ok(receiving.and_then(Receiving::finish))
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
) -> Result<Result<Ticket, UploadEnd>, ApiError> {
    let deadline = Instant::now() + app.options.hold;
    let mut held = false;
    loop {
        match app.briefly(move |store| store.begin(id)).await? {
            Begin::Stored if held => {
                app.metrics.hold_ended(HoldEnd::Absorbed);
                return Ok(Err(UploadEnd::Absorbed));
            }
            Begin::Stored => return Ok(Err(UploadEnd::AlreadyStored)),
            Begin::Receive(ticket) => {
                if held {
                    app.metrics.hold_ended(HoldEnd::TookOver);
                }
                return Ok(Ok(ticket));
            }
            Begin::Busy(_) if may_defer => return Ok(Err(UploadEnd::Deferred)),
            Begin::Busy(flight) => {
                held = true;
                let _waiting = Counted::new(&app.metrics.uploads_waiting);
                if tokio::time::timeout_at(deadline, flight.ended()).await.is_err() {
                    app.metrics.hold_ended(HoldEnd::Beside);
                    return Ok(Ok(app.store.join(id)));
                }
            }
        }
    }
}
