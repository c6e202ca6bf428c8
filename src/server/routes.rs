//! Which request goes where, and all endpoints but the upload.

use std::{any::Any, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tower_http::catch_panic::CatchPanicLayer;

use super::{ApiError, App, Peer, body::next_piece, upload::upload};
use crate::{
    domain::{BlobId, CheckoutPath, Manifest},
    store::CheckoutError,
    wire::{
        self, CheckoutAnswer, CheckoutRequest, FileSpec, FileStatus, RequirementsAnswer,
        RequirementsRequest, StatusAnswer,
    },
};

/// JSON bodies up to this size count as small: they share no budget, and are reserved at once.
const SMALL_JSON_BYTES: u64 = 1 << 20;

/// How long a JSON request may take to come in: a million files at 500 KB/s.
const JSON_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes as whole MiB, rounded up.
pub(super) fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

/// A JSON body, and its share of the memory for large ones.
struct JsonBody {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

/// The largest blob: what file systems can hold at most.
const MAX_BLOB_BYTES: u64 = i64::MAX as u64;

pub(super) fn router(app: App) -> Router {
    let shaman = Router::new()
        .route("/files/{sha}/{size}", get(status).post(upload))
        .route("/checkout/requirements", post(requirements))
        .route("/checkout/create", post(create));
    Router::new()
        .nest(wire::SHAMAN, shaman)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
}

/// The blob that a path names.
pub(super) struct NamedBlob(pub BlobId);

impl<S: Send + Sync> FromRequestParts<S> for NamedBlob {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((sha, size)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        let digest = sha.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
        let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        match size.parse() {
            Ok(size_bytes) if digits && size_bytes <= MAX_BLOB_BYTES => {
                Ok(Self(BlobId { digest, size_bytes }))
            }
            _ => Err(ApiError::bad_request(format!(
                "not a size in bytes (a whole number from 0 on): {:?}",
                size.chars().take(40).collect::<String>()
            ))),
        }
    }
}

async fn healthz() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

/// Whether uploads are taken, and if not, why.
async fn readyz(State(app): State<App>) -> Result<Json<serde_json::Value>, ApiError> {
    let store = app.store.clone();
    match app.exec.blocking(move || store.has_room()).await {
        Ok(()) => Ok(Json(serde_json::json!({ "status": "ready" }))),
        Err(error) => {
            let message = format!("not ready: {error}: {}", error.source);
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}

async fn status(
    State(app): State<App>,
    NamedBlob(id): NamedBlob,
) -> Result<Json<StatusAnswer>, ApiError> {
    let store = app.store.clone();
    let status = app.exec.blocking(move || store.status(&id)).await?;
    Ok(Json(StatusAnswer { status }))
}

async fn requirements(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_json(&app, &headers, body).await?;
    let (store, max_files) = (app.store.clone(), app.options.max_files);
    app.exec
        .compute(move || {
            let RequirementsRequest { files } = parse(&body)?;
            let ids = check_files(&files, max_files)?
                .into_iter()
                .map(|entry| entry.blob)
                .collect::<Vec<_>>();
            let needed = store.requirements(&ids)?;
            let files = needed
                .into_iter()
                .map(|(index, status)| {
                    let FileSpec { sha, size, path } = files[index].clone();
                    FileStatus { sha, size, path, status }
                })
                .collect();
            Ok(Json(RequirementsAnswer { files }).into_response())
        })
        .await
}

async fn create(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CheckoutAnswer>, ApiError> {
    let start = Instant::now();
    let body = read_json(&app, &headers, body).await?;
    let max_files = app.options.max_files;
    let (wish, manifest) = app
        .exec
        .compute(move || {
            let CheckoutRequest { checkout_path, files } = parse(&body)?;
            let wish: CheckoutPath = checkout_path
                .parse()
                .map_err(|error| ApiError::bad_request(format!("checkoutPath: {error}")))?;
            let manifest = Manifest::new(check_files(&files, max_files)?)
                .map_err(|error| ApiError::bad_request(format!("files: {error}")))?;
            Ok::<_, ApiError>((wish, manifest))
        })
        .await?;

    let deadline = start + app.options.create_wait;
    let (files, bytes) = (manifest.len(), manifest.total_bytes());
    let manifest = std::sync::Arc::new(manifest);
    let made = loop {
        let (store, wish, manifest) = (app.store.clone(), wish.clone(), manifest.clone());
        let made = app.exec.compute(move || store.checkout(&wish, &manifest)).await;
        let Err(CheckoutError::Missing(missing)) = &made else { break made };
        // Clients that cannot defer may ask while somebody else is still sending their blobs.
        let flights = app.store.flights(missing);
        if Instant::now() >= deadline {
            break made;
        }
        if flights.is_empty() {
            // Those that were in flight when they were looked for may have arrived since, or have
            // been taken over by another client.
            let (store, missing) = (app.store.clone(), missing.clone());
            if app.exec.blocking(move || store.any_known(&missing)).await? {
                continue;
            }
            break made;
        }
        for flight in flights {
            let _ = tokio::time::timeout_at(deadline, flight.ended()).await;
        }
    };
    let elapsed_ms = start.elapsed().as_millis();
    match made {
        Ok(used) => {
            tracing::info!(
                target: "farmhand::access",
                client = %peer.0, checkout = %used, files, bytes, elapsed_ms, "checkout"
            );
            Ok(Json(CheckoutAnswer { checkout_path: used.as_str().to_owned() }))
        }
        Err(error) => {
            let error = ApiError::from(error);
            tracing::info!(
                target: "farmhand::access",
                client = %peer.0, checkout = %wish, files, bytes, elapsed_ms,
                status = error.status().as_u16(), reason = error.message(), "checkout failed"
            );
            Err(error)
        }
    }
}

/// The whole body of a request that must be JSON.
async fn read_json(app: &App, headers: &HeaderMap, mut body: Body) -> Result<JsonBody, ApiError> {
    // Browsers send other types across origins without asking: this also keeps web pages out.
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if !kind.eq_ignore_ascii_case(b"application/json") {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send this request with Content-Type: application/json",
        ));
    }
    let limit = app.options.max_json_bytes;
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request is longer than the {limit} bytes this server accepts"),
        )
    };
    let promised = hyper::body::Body::size_hint(&body).exact();
    if promised.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut share = None;
    let mut bytes = Vec::with_capacity(promised.unwrap_or(0).min(SMALL_JSON_BYTES) as usize);
    let read = async {
        while let Some(piece) = next_piece(&mut body, app.options.body_timeout).await? {
            let length = (bytes.len() + piece.len()) as u64;
            if length > limit {
                return Err(too_large());
            }
            if length > SMALL_JSON_BYTES && share.is_none() {
                // One that does not say its length may be as long as any.
                let mib = mib(promised.unwrap_or(limit));
                let permit = app.json_mib.clone().acquire_many_owned(mib).await;
                share = Some(permit.expect("BUG: never closed"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(())
    };
    // Whoever has a share keeps others waiting: not for ever, however slowly the body drips in.
    match tokio::time::timeout(JSON_TIMEOUT, read).await {
        Ok(result) => result?,
        Err(_) => {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the request did not come in time, or the server has too many large ones: try again",
            ));
        }
    }
    Ok(JsonBody { bytes, _share: share })
}

fn parse<T: DeserializeOwned>(body: &JsonBody) -> Result<T, ApiError> {
    serde_json::from_slice(&body.bytes)
        .map_err(|error| ApiError::bad_request(format!("the request is not as expected: {error}")))
}

fn check_files(files: &[FileSpec], max: usize) -> Result<Vec<crate::domain::Entry>, ApiError> {
    if files.len() > max {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "{} files are more than the {max} this server accepts in one request",
                files.len()
            ),
        ));
    }
    files
        .iter()
        .enumerate()
        .map(|(index, file)| {
            let entry =
                file.to_entry(index).map_err(|error| ApiError::bad_request(error.to_string()))?;
            if entry.blob.size_bytes > MAX_BLOB_BYTES {
                return Err(ApiError::bad_request(format!(
                    "files[{index}]: size {} is too large",
                    file.size
                )));
            }
            Ok(entry)
        })
        .collect()
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    if uri.path().strip_prefix(wire::SHAMAN).is_some_and(|rest| rest.starts_with("/files/")) {
        return ApiError::bad_request(format!(
            "{} names no blob: expected {}/files/{{sha256}}/{{size}}",
            shown(&uri),
            wire::SHAMAN
        ));
    }
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {} here", shown(&uri)))
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {}", shown(request.uri()), request.method()),
    )
}

fn shown(uri: &Uri) -> String {
    wire::hide_tokens(uri.path()).chars().take(200).collect()
}

fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(message, "BUG: a request panicked");
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this is a bug in the server; its log says more",
    )
    .into_response()
}

/// Rounded for people.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
