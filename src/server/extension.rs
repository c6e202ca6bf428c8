//! `/farmhand/v1/…`: what makes sending cheaper than Shaman alone. `docs/EXTENSION.md` describes it.

use std::{io::BufRead, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ApiError, App, Peer,
    access_log::UploadRecord,
    body::{PieceReader, next_piece, read_by_thread},
    error::chain,
    metrics::UploadEnd,
    routes::NamedBlob,
};
use crate::{
    domain::{BlobId, Chunk, MAX_CHUNK_BYTES},
    store::{Batch, Batched, BeginPieces, MIN_INDEXED_BYTES, Received, Store, UnfinishedError},
    wire::{
        self, BLOB_HEAD_BYTES, BatchAnswer, BatchLimits, BatchResult, BeginAnswer,
        CHUNK_HEAD_BYTES, Capabilities, ChunkLimits, FrameError, KnownAnswer, Problem,
        RECIPE_ENTRY_BYTES, RecipeAnswer, read_blob, read_chunk, read_recipe, runs_of,
    },
};

/// The most chunks in one recipe: less than a MiB, as other small requests.
const MAX_RECIPE_CHUNKS: usize = 16_384;

/// The longest body with chunks, in bytes.
const MAX_CHUNKS_BYTES: u64 = 64 << 20;

/// What counts for batches.
const BATCH: BatchLimits =
    BatchLimits { max_blobs: 1024, max_blob_bytes: 256 << 10, max_body_bytes: 16 << 20 };

/// The longest name of a sender.
const MAX_SENDER_BYTES: usize = 64;

/// All routes of it.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(capabilities))
        .routes(routes!(known))
        .routes(routes!(begin, abandon))
        .routes(routes!(recipe))
        .routes(routes!(chunks))
        .routes(routes!(finish))
        .routes(routes!(batch))
}

impl From<UnfinishedError> for ApiError {
    fn from(error: UnfinishedError) -> Self {
        let (status, next) = match &error {
            UnfinishedError::NotBegun => (StatusCode::NOT_FOUND, "begin anew"),
            UnfinishedError::TooMany | UnfinishedError::Scattered => {
                (StatusCode::CONFLICT, "send the file as a whole")
            }
            UnfinishedError::Busy { .. } => (StatusCode::TOO_EARLY, "ask again what is missing"),
            UnfinishedError::Outside { .. } => {
                (StatusCode::BAD_REQUEST, "chunks must lie within the blob")
            }
            UnfinishedError::WrongChunk { .. } | UnfinishedError::WrongBlob => (
                StatusCode::EXPECTATION_FAILED,
                "hash the file again and send it under its new name",
            ),
            UnfinishedError::Conflict { .. } => (StatusCode::CONFLICT, "send the file as a whole"),
            UnfinishedError::Incomplete { .. } => {
                (StatusCode::CONFLICT, "ask what is missing, and send it")
            }
            UnfinishedError::Disk(_) => (StatusCode::INTERNAL_SERVER_ERROR, ""),
        };
        match error {
            UnfinishedError::Disk(error) => error.into(),
            error => Self::new(status, format!("{error}; {next}")),
        }
    }
}

impl From<FrameError> for ApiError {
    fn from(error: FrameError) -> Self {
        Self::bad_request(chain(&error))
    }
}

/// Who sends the pieces.
fn sender(headers: &HeaderMap) -> Result<String, ApiError> {
    let value = headers.get(wire::SENDER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_right = (1..=MAX_SENDER_BYTES).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_right {
        return Ok(value.to_owned());
    }
    Err(ApiError::bad_request(format!(
        "the header {} must have 1 to {MAX_SENDER_BYTES} letters and digits, the same for all requests of one client",
        wire::SENDER
    )))
}

/// A recipe, or a sample of one.
async fn read_chunk_list(app: &App, mut body: Body) -> Result<Vec<Chunk>, ApiError> {
    let limit = (MAX_RECIPE_CHUNKS * RECIPE_ENTRY_BYTES) as u64;
    let promised = hyper::body::Body::size_hint(&body).exact();
    if promised.is_some_and(|length| length > limit) {
        return Err(ApiError::too_long(limit));
    }
    let mut bytes = Vec::with_capacity(promised.unwrap_or_default() as usize);
    while let Some(piece) = next_piece(&mut body, app.options.body_timeout).await? {
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(ApiError::too_long(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    app.metrics.received_bytes.inc_by(bytes.len() as u64);
    Ok(read_recipe(&bytes)?)
}

/// What this server can do beside Shaman
#[utoipa::path(
    get, path = "/capabilities", operation_id = "getCapabilities", tag = "extension",
    responses((status = 200, description = "What it can", body = Capabilities))
)]
async fn capabilities(State(app): State<App>) -> Json<Capabilities> {
    Json(Capabilities {
        software: wire::FARM_NAME.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        chunks: Some(ChunkLimits {
            reuse: app.store.indexes_chunks(),
            cut: wire::CUT.to_owned(),
            max_chunk_bytes: MAX_CHUNK_BYTES,
            max_recipe_chunks: MAX_RECIPE_CHUNKS as u32,
            max_body_bytes: MAX_CHUNKS_BYTES,
            zstd: true,
            min_blob_bytes: MIN_INDEXED_BYTES,
        }),
        batch: Some(BATCH),
        download: true,
    })
}

/// Ask how much of something the server knows
///
/// To find out, with a sample of a file's chunks, whether it is worth sending it by its chunks. Of what is
/// stored when the file is sent, more or less may be known.
#[utoipa::path(
    post, path = "/chunks/known", operation_id = "countKnownChunks", tag = "extension",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "Some chunks: a digest (BLAKE3, 32 bytes) and a length (4 bytes, little-endian) for each"),
    responses(
        (status = 200, description = "How many of them are known", body = KnownAnswer),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 408, description = "No data came for too long", body = Problem),
        (status = 413, description = "There are too many chunks", body = Problem),
    )
)]
async fn known(State(app): State<App>, body: Body) -> Result<Json<KnownAnswer>, ApiError> {
    let sample = read_chunk_list(&app, body).await?;
    let store = app.store.clone();
    let known = app.exec.blocking(move || store.known_chunks(&sample)).await;
    Ok(Json(KnownAnswer { known: known as u32 }))
}

/// Begin to send a file in pieces, or go on
///
/// What has come of a file survives restarts of both sides for some days.
#[utoipa::path(
    post, path = "/unfinished/{sha}/{size}", operation_id = "beginUnfinished", tag = "extension",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("X-Farmhand-Sender" = String, Header, description = "1 to 64 letters and digits that the client has made up for itself"),
    ),
    responses(
        (status = 200, description = "Go on", body = BeginAnswer),
        (status = 208, description = "It is stored already"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 425, description = "Somebody else is sending it: go on with other files, then ask again", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 409, description = "Too many files are being sent in pieces: send it as a whole", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
    )
)]
async fn begin(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    blob: Result<NamedBlob, ApiError>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let NamedBlob(id) = blob?;
    let sender = sender(&headers)?;
    let store = app.store.clone();
    // It may have to wait until somebody has hashed the blob.
    let begun = app.exec.blocking(move || store.begin_pieces(id, &sender)).await?;
    if let BeginPieces::Begun { resumable } = begun {
        return Ok(Json(BeginAnswer { resumable }).into_response());
    }
    // It ends here.
    let mut record = UploadRecord::new(app.clone(), peer.0);
    record.blob = id.to_string();
    Ok(if let BeginPieces::Stored = begun {
        record.ended(UploadEnd::AlreadyStored, StatusCode::ALREADY_REPORTED);
        StatusCode::ALREADY_REPORTED.into_response()
    } else {
        record.ended(UploadEnd::Deferred, StatusCode::TOO_EARLY);
        busy().into_response()
    })
}

/// Give up a file that was begun
///
/// What has come of it is removed, and anybody may send it.
#[utoipa::path(
    delete, path = "/unfinished/{sha}/{size}", operation_id = "abandonUnfinished", tag = "extension",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("X-Farmhand-Sender" = String, Header, description = "As at the beginning"),
    ),
    responses(
        (status = 204, description = "It is given up"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "Nothing was begun under this name, or somebody else goes on with it", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn abandon(
    State(app): State<App>,
    blob: Result<NamedBlob, ApiError>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let NamedBlob(id) = blob?;
    let sender = sender(&headers)?;
    let store = app.store.clone();
    app.exec.blocking(move || store.abandon_pieces(&id, &sender)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn busy() -> ApiError {
    let message = "another client is sending this file: go on with others, then ask again";
    ApiError::new(StatusCode::TOO_EARLY, message)
}

/// Where a recipe begins.
#[derive(Debug, serde::Deserialize)]
struct At {
    offset: u64,
}

/// Say what a part of a file is made of
///
/// Consecutive chunks of it. Those that the server has, from an earlier try or in other files, are put in
/// place; it answers which ones must be sent.
#[utoipa::path(
    post, path = "/unfinished/{sha}/{size}/recipe", operation_id = "layUnfinished", tag = "extension",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("offset" = u64, Query, description = "Where in the content the first chunk is"),
        ("X-Farmhand-Sender" = String, Header, description = "As at the beginning"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The chunks: a digest (BLAKE3, 32 bytes) and a length (4 bytes, little-endian) for each"),
    responses(
        (status = 200, description = "What is missing", body = RecipeAnswer),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "Nothing was begun under this name, or somebody else goes on with it", body = Problem),
        (status = 408, description = "No data came for too long", body = Problem),
        (status = 409, description = "There is something else in that place", body = Problem),
        (status = 413, description = "There are too many chunks", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
    )
)]
async fn recipe(
    State(app): State<App>,
    blob: Result<NamedBlob, ApiError>,
    at: Result<Query<At>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RecipeAnswer>, ApiError> {
    let NamedBlob(id) = blob?;
    let Query(At { offset }) = at.map_err(|_| {
        ApiError::bad_request("where does the recipe begin? Ask with ?offset=BYTES")
    })?;
    let sender = sender(&headers)?;
    let chunks = read_chunk_list(&app, body).await?;
    let store = app.store.clone();
    let laid = app.exec.compute(move || store.lay_chunks(&id, &sender, offset, &chunks)).await?;
    app.metrics.reused_bytes.inc_by(laid.reused_bytes);
    Ok(Json(RecipeAnswer { missing: runs_of(laid.missing) }))
}

/// Send chunks of a file
///
/// Each is verified by itself and kept at once, also if one that follows is wrong or does not come.
#[utoipa::path(
    post, path = "/unfinished/{sha}/{size}/chunks", operation_id = "sendUnfinished", tag = "extension",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("X-Farmhand-Sender" = String, Header, description = "As at the beginning"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "For each chunk: digest (BLAKE3, 32 bytes), place in the content (8), length (4), length as sent (4; all little-endian), and the content, as a zstd frame if it is sent shorter than it is"),
    responses(
        (status = 204, description = "They are in place"),
        (status = 400, description = "The request is not as expected, or the body broke off", body = Problem),
        (status = 404, description = "Nothing was begun under this name, or somebody else goes on with it", body = Problem),
        (status = 408, description = "No data came for too long", body = Problem),
        (status = 409, description = "There is something else in that place", body = Problem),
        (status = 413, description = "The body is too long", body = Problem),
        (status = 425, description = "Another request is writing to that place", body = Problem),
        (status = 417, description = "A chunk is not what its digest says", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
    )
)]
async fn chunks(
    State(app): State<App>,
    blob: Result<NamedBlob, ApiError>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let NamedBlob(id) = blob?;
    let sender = sender(&headers)?;
    let asked = app.store.clone();
    let from = sender.clone();
    // However long the body takes: who sends it is not silent.
    let _request = app.exec.blocking(move || asked.request(&id, &from)).await?;
    let watch = CutOff { app: &app, id, sender: Some(&sender) };
    let (store, from) = (app.store.clone(), sender.clone());
    let limit = MAX_CHUNKS_BYTES + CHUNK_HEAD_BYTES as u64;
    let take = move |body: &mut PieceReader| take_chunks(&store, &id, &from, body);
    let result = read_by_thread(&app, (bytes::Bytes::new(), body), limit, &mut 0, take).await;
    // A body that was whole, whatever was in it, came from somebody who is there.
    if !matches!(&result, Err(error) if error.is_about_the_line()) {
        watch.call_off();
    }
    result??;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells the store that a sender is gone, also if that is why its request is dropped.
struct CutOff<'a> {
    app: &'a App,
    id: BlobId,
    sender: Option<&'a str>,
}

impl CutOff<'_> {
    /// The sender is there.
    fn call_off(mut self) {
        self.sender = None;
    }
}

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender {
            self.app.store.sender_broke_off(&self.id, sender);
        }
    }
}

fn take_chunks(
    store: &Store,
    id: &BlobId,
    sender: &str,
    body: &mut dyn BufRead,
) -> Result<(), ApiError> {
    let (mut frame, mut content) = (0, Vec::new());
    while let Some(found) = read_chunk(body, frame, &mut content)? {
        store.put_chunk(id, sender, found.offset, &found.chunk, &content)?;
        frame += 1;
    }
    Ok(store.hash_ahead(id, sender)?)
}

/// Have a file stored of which all pieces are there
#[utoipa::path(
    post, path = "/unfinished/{sha}/{size}/finish", operation_id = "finishUnfinished", tag = "extension",
    params(
        ("sha" = String, Path, description = "SHA-256 of the content, as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size of the content in bytes"),
        ("X-Farmhand-Sender" = String, Header, description = "As at the beginning"),
        ("X-Shaman-Original-Filename" = Option<String>, Header, description = "The file's name on the client, as an encoded word (RFC 2047), for the log"),
    ),
    responses(
        (status = 204, description = "It is stored now"),
        (status = 208, description = "Somebody else has stored it meanwhile"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "Nothing was begun under this name, or somebody else goes on with it", body = Problem),
        (status = 409, description = "Pieces are missing", body = Problem),
        (status = 417, description = "It is not what its name says: hash it again", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
    )
)]
async fn finish(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    blob: Result<NamedBlob, ApiError>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let NamedBlob(id) = blob?;
    let sender = sender(&headers)?;
    let mut record = UploadRecord::new(app.clone(), peer.0);
    record.blob = id.to_string();
    let name = headers.get(wire::ORIGINAL_FILENAME);
    record.name = name.map(|value| wire::decode_filename(value.as_bytes()));
    let store = app.store.clone();
    match app.exec.blocking(move || store.finish_pieces(&id, &sender)).await {
        Ok(Some(finished)) => {
            record.bytes = finished.sent_bytes;
            app.metrics.stored(id.size_bytes, finished.received.synced);
            record.ended(UploadEnd::Stored, StatusCode::NO_CONTENT);
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(None) => {
            record.ended(UploadEnd::AlreadyStored, StatusCode::ALREADY_REPORTED);
            Ok(StatusCode::ALREADY_REPORTED)
        }
        Err(error) => {
            if let UnfinishedError::WrongBlob = error {
                app.metrics.wrong_digest();
            }
            let error = error.into();
            record.failed(&error);
            Err(error)
        }
    }
}

/// Send many small files at once
///
/// Each is verified by itself, and answered by itself, in the order in which they came. Only when the body
/// has come to its end are they stored: one that is not as it must be stores none of them.
#[utoipa::path(
    post, path = "/batch", operation_id = "sendBatch", tag = "extension",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "For each file: SHA-256 (32 bytes), size (4), size as sent (4), length of the name (2; all little-endian), the name, and the content, as a zstd frame if it is sent shorter than it is"),
    responses(
        (status = 200, description = "What became of each", body = BatchAnswer),
        (status = 400, description = "The request is not as expected, or the body broke off", body = Problem),
        (status = 408, description = "No data came for too long", body = Problem),
        (status = 413, description = "The body is too long, or has too many files", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn batch(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Result<Json<BatchAnswer>, ApiError> {
    let store = app.store.clone();
    let log = app.clone();
    let limit = BATCH.max_body_bytes;
    let read = move |body: &mut PieceReader| take_batch(&log, peer, &store, body);
    let blobs = read_by_thread(&app, (bytes::Bytes::new(), body), limit, &mut 0, read).await??;
    Ok(Json(BatchAnswer { blobs }))
}

fn take_batch(
    app: &App,
    peer: Peer,
    store: &Arc<Store>,
    body: &mut dyn BufRead,
) -> Result<Vec<BatchResult>, ApiError> {
    let mut batch = Batch::new(store)?;
    let (mut records, mut content) = (Vec::new(), Vec::new());
    while let Some(found) =
        read_blob(body, BATCH.max_blob_bytes, records.len() as u64, &mut content)?
    {
        if records.len() >= BATCH.max_blobs as usize {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("there are more than {} files: send fewer at once", BATCH.max_blobs),
            ));
        }
        let mut record = UploadRecord::new(app.clone(), peer.0);
        record.blob = found.id.to_string();
        record.name = Some(String::from_utf8_lossy(&found.name).into_owned());
        record.bytes = u64::from(found.sent_bytes);
        batch.take(found.id, &content);
        records.push((record, found.id));
    }
    let results = batch.store().into_iter().zip(records);
    Ok(results.map(|(result, (record, id))| answer(app, result, record, &id)).collect())
}

fn answer(app: &App, result: Batched, mut record: UploadRecord, id: &BlobId) -> BatchResult {
    let failed = |mut record: UploadRecord, error: ApiError| {
        record.failed(&error);
        let (status, message) = (error.status().as_u16(), Some(error.message().to_owned()));
        BatchResult { status, message }
    };
    let (end, status) = match result {
        Batched::AlreadyStored => (UploadEnd::AlreadyStored, StatusCode::ALREADY_REPORTED),
        Batched::Received(Ok(Received { synced })) => {
            app.metrics.stored(id.size_bytes, synced);
            (UploadEnd::Stored, StatusCode::NO_CONTENT)
        }
        Batched::Busy => {
            record.ended(UploadEnd::Deferred, StatusCode::TOO_EARLY);
            let message = Some(busy().message().to_owned());
            return BatchResult { status: StatusCode::TOO_EARLY.as_u16(), message };
        }
        Batched::Received(Err(error)) => {
            app.metrics.not_received(&error);
            return failed(record, error.into());
        }
    };
    record.ended(end, status);
    BatchResult { status: status.as_u16(), message: None }
}

// The longest frames fit into what may be sent at once.
const _: () = assert!(MAX_CHUNKS_BYTES > (CHUNK_HEAD_BYTES + MAX_CHUNK_BYTES as usize) as u64);
const _: () = assert!(
    BATCH.max_body_bytes
        > (BLOB_HEAD_BYTES + u16::MAX as usize) as u64 + BATCH.max_blob_bytes as u64
);
