//! Which request goes where, and all endpoints but the upload.

use std::{any::Any, borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ApiError, App, Farm, Peer, access_log::CheckoutRecord, admin, body::next_piece, extension,
    farm, metrics, openapi, upload,
};
use crate::{
    domain::{BlobId, CheckoutPath, Manifest},
    store::CheckoutError,
    wire::{
        self, BadFile, CheckoutAnswer, CheckoutRequest, FileSpec, FileStatus, Problem,
        RequirementsAnswer, RequirementsRequest, StatusAnswer,
    },
};

/// JSON bodies up to this size count as small: they share no budget, and are reserved at once.
const SMALL_JSON_BYTES: u64 = 1 << 20;

/// How long a JSON request may take to come in: a million files at 500 KB/s.
const JSON_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a create rests before it looks again for blobs that it has missed, and that seem to be there.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Bytes as whole MiB, rounded up.
pub(super) fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

/// A JSON body, and its share of the memory for large ones.
pub(super) struct JsonBody {
    pub bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

/// How the server is.
#[derive(Serialize, utoipa::ToSchema)]
struct Health {
    status: &'static str,
}

/// The largest blob: what file systems can hold at most.
const MAX_BLOB_BYTES: u64 = i64::MAX as u64;

/// What the document says of the whole.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "farmhand", description = "A Shaman server: files by their content, and checkouts made of them."),
    tags(
        (name = "shaman", description = "The file store, as render farms speak to it."),
        (name = "extension", description = "What makes sending cheaper, between farmhand's client and server."),
        (name = "store", description = "What is in the store, what may go, and whether it is whole."),
        (name = "farm", description = "Jobs, as render farms speak of them."),
        (name = "server", description = "How the server is.")
    )
)]
struct Api;

/// All routes, and the OpenAPI document that lists them. A route is registered here or nowhere: then
/// the two cannot disagree.
pub(super) fn routes(farm: Option<Arc<Farm>>) -> (Router<App>, OpenApi) {
    let shaman = OpenApiRouter::new()
        .routes(routes!(status, upload::upload))
        .routes(routes!(requirements))
        .routes(routes!(create));
    let mut all = OpenApiRouter::with_openapi(Api::openapi());
    if let Some(farm) = farm {
        all = all.nest(wire::API.trim_end_matches('/'), farm::routes(farm));
    }
    let (routes, mut document) = all
        .nest(wire::SHAMAN, shaman)
        .nest(wire::ADMIN, admin::routes().merge(extension::routes()))
        .routes(routes!(document))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(scrape))
        .split_for_parts();
    openapi::describe_access(&mut document);
    (routes, document)
}

pub(super) fn to_json(openapi: &OpenApi) -> Bytes {
    serde_json::to_vec(openapi).expect("BUG: the document is JSON").into()
}

pub(super) fn router(routes: Router<App>, app: App) -> Router {
    routes
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), metrics::measure))
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

/// This document
#[utoipa::path(
    get, path = "/api/v3/openapi3.json", operation_id = "getOpenAPI", tag = "server",
    responses((status = 200, description = "All that this server serves, as OpenAPI 3.1", body = Object))
)]
async fn document(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone())
}

/// Whether the server runs
#[utoipa::path(
    get, path = "/healthz", operation_id = "getHealth", tag = "server",
    responses((status = 200, description = "It does", body = Health))
)]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether uploads are taken, and if not, why
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "server",
    responses(
        (status = 200, description = "They are", body = Health),
        (status = 503, description = "They are not: there is no room, the storage fails, or the Manager's storage is not proven to be this one", body = Problem),
    )
)]
async fn readyz(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let store = app.store.clone();
    let room = app.exec.blocking(move || store.has_room()).await;
    let objection = match room {
        Ok(()) => app.options.manager.as_ref().and_then(|manager| manager.objection()),
        Err(error) => Some(format!("{error}: {}", error.source)),
    };
    match objection {
        None => Ok(Json(Health { status: "ready" })),
        Some(objection) => {
            let message = format!("not ready: {objection}");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "server",
    responses((
        status = 200, description = "All metrics as OpenMetrics text", body = String,
        content_type = "application/openmetrics-text"
    ))
)]
async fn scrape(State(app): State<App>) -> impl IntoResponse {
    let asked = app.clone();
    // It asks the file system.
    let text = app.exec.blocking(move || asked.metrics.text()).await;
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// What is known of a file
#[utoipa::path(
    get, path = "/files/{sha}/{size}", operation_id = "shamanFileStoreCheck", tag = "shaman",
    params(
        ("sha" = String, Path, description = "SHA-256 as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size in bytes"),
    ),
    responses(
        (status = 200, description = "Whether it is stored, on its way, or unknown", body = StatusAnswer),
        (status = 400, description = "The path names no file", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn status(
    State(app): State<App>,
    NamedBlob(id): NamedBlob,
) -> Result<Json<StatusAnswer>, ApiError> {
    let status = match app.store.status_at_once(&id) {
        Some(status) => status,
        None => app.briefly(move |store| store.status(&id)).await?,
    };
    Ok(Json(StatusAnswer { status }))
}

/// Which files must still be sent
///
/// Each content once, by its first place in the request.
#[utoipa::path(
    post, path = "/checkout/requirements", operation_id = "shamanCheckoutRequirements", tag = "shaman",
    request_body = RequirementsRequest,
    responses(
        (status = 200, description = "The files to send; `uploading`: somebody else is at it", body = RequirementsAnswer),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 413, description = "The request is too long, or has too many files", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 503, description = "There are too many large requests", body = Problem),
    )
)]
async fn requirements(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_json(&app, &headers, body).await?;
    let (store, max_files) = (app.store.clone(), app.options.max_files);
    app.exec
        .compute(move || {
            let RequirementsRequest { files } = parse(&body.bytes)?;
            let needed = store.requirements(&check_files(&files, max_files, FileSpec::to_blob)?)?;
            let files = needed
                .into_iter()
                .map(|(place, status)| {
                    let FileSpec { sha, size, path } = &files[place];
                    let (sha, path) = (Cow::Borrowed(&**sha), Cow::Borrowed(&**path));
                    FileStatus { sha, size: *size, path, status }
                })
                .collect();
            Ok(json_answer(&RequirementsAnswer { files }))
        })
        .await
}

/// An answer as JSON. Large ones are written to the end and not copied.
fn json_answer(answer: &RequirementsAnswer) -> Response {
    // What the names of the fields and a number take.
    const AROUND_BYTES: usize = 80;
    let said = |file: &FileStatus| AROUND_BYTES + file.sha.len() + file.path.len();
    let mut text = Vec::with_capacity(AROUND_BYTES + answer.files.iter().map(said).sum::<usize>());
    serde_json::to_writer(&mut text, answer).expect("BUG: plain data is JSON");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Make a checkout
///
/// A directory of links to the files. If the name is taken, another one is made from it.
#[utoipa::path(
    post, path = "/checkout/create", operation_id = "shamanCheckout", tag = "shaman",
    request_body = CheckoutRequest,
    responses(
        (status = 200, description = "It is there, under this name", body = CheckoutAnswer),
        (status = 409, description = "The name is in the way of something else, or the file system does not tell two names apart", body = Problem),
        (status = 424, description = "Files are missing: ask for the requirements, and send them", body = Problem),
        (status = 507, description = "The storage is full", body = Problem),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 412, description = "The Manager behind this server uses another storage", body = Problem),
        (status = 413, description = "The request is too long, or has too many files", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 503, description = "There are too many large requests, or it is not known whether the Manager uses this storage", body = Problem),
    )
)]
async fn create(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CheckoutAnswer>, ApiError> {
    let mut record = CheckoutRecord::new(app.clone(), peer.0);
    match make_checkout(&app, &headers, body, &mut record).await {
        Ok((prefix, used)) => {
            record.checkout = Some(used.as_str().to_owned());
            record.created();
            Ok(Json(CheckoutAnswer { checkout_path: format!("{prefix}{used}") }))
        }
        Err(error) => {
            record.failed(&error);
            Err(error)
        }
    }
}

async fn make_checkout(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    record: &mut CheckoutRecord,
) -> Result<(String, CheckoutPath), ApiError> {
    let body = read_json(app, headers, body).await?;
    let max_files = app.options.max_files;
    let (checkout_path, parsed) = app
        .exec
        .compute(move || match parse(&body.bytes) {
            Ok(CheckoutRequest { checkout_path, files }) => {
                let parsed = to_checkout(&checkout_path, &files, max_files);
                (Some(checkout_path.chars().take(200).collect()), parsed)
            }
            Err(error) => (None, Err(error)),
        })
        .await;
    record.checkout = checkout_path;
    let (wish, manifest) = parsed?;
    (record.files, record.bytes) = (manifest.len(), manifest.total_bytes());
    // Before anything is made that no job would find.
    let prefix = match &app.options.manager {
        Some(manager) => manager.checkout_prefix(app).await?,
        None => String::new(),
    };
    let used = make_when_complete(app, wish, manifest, record.start).await?;
    Ok((prefix, used))
}

/// Makes a checkout; waits, within bounds, for blobs that are still being sent.
async fn make_when_complete(
    app: &App,
    wish: CheckoutPath,
    manifest: Manifest,
    start: Instant,
) -> Result<CheckoutPath, ApiError> {
    let deadline = start + app.options.create_wait;
    let manifest = Arc::new(manifest);
    loop {
        let (store, wish, manifest) = (app.store.clone(), wish.clone(), manifest.clone());
        let made = app.exec.compute(move || store.checkout(&wish, &manifest)).await;
        let Err(CheckoutError::Missing(missing)) = &made else { return Ok(made?) };
        // Clients that cannot defer may ask while somebody else is still sending their blobs.
        let flights = app.store.flights(missing);
        if Instant::now() >= deadline {
            return Ok(made?);
        }
        if flights.is_empty() {
            // Those that were in flight when they were looked for may have arrived since, or have
            // been taken over by another client.
            let (store, missing) = (app.store.clone(), missing.clone());
            if app.exec.blocking(move || store.any_known(&missing)).await? {
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                continue;
            }
            return Ok(made?);
        }
        for flight in flights {
            let _ = tokio::time::timeout_at(deadline, flight.ended()).await;
        }
    }
}

/// What a request for a checkout says, if it can be made.
pub(super) fn to_checkout(
    checkout_path: &str,
    files: &[FileSpec],
    max_files: usize,
) -> Result<(CheckoutPath, Manifest), ApiError> {
    let wish = checkout_path
        .parse()
        .map_err(|error| ApiError::bad_request(format!("checkoutPath: {error}")))?;
    let manifest = Manifest::new(check_files(files, max_files, FileSpec::to_entry)?)
        .map_err(|error| ApiError::bad_request(format!("files: {error}")))?;
    Ok((wish, manifest))
}

/// The whole body of a request that must be JSON.
pub(super) async fn read_json(
    app: &App,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<JsonBody, ApiError> {
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
                // Only what has been paid for.
                let to_come = promised.unwrap_or(0).saturating_sub(bytes.len() as u64);
                bytes.reserve_exact(usize::try_from(to_come).unwrap_or(0));
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

pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    // A list of its fields' values is an object, too, for serde.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_request(
            "the request is not as expected: it is a list, no object",
        ));
    }
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the request is not as expected: {error}")))
}

/// What is made of each file of a list, if all of them are as they should be.
pub(super) fn check_files<'a, T: Send>(
    files: &[FileSpec<'a>],
    max: usize,
    make: impl Fn(&FileSpec<'a>, usize) -> Result<T, BadFile> + Sync,
) -> Result<Vec<T>, ApiError> {
    if files.len() > max {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "{} files are more than the {max} this server accepts in one request",
                files.len()
            ),
        ));
    }
    let check = |(index, file): (usize, &FileSpec<'a>)| {
        let made = make(file, index).map_err(|error| ApiError::bad_request(error.to_string()))?;
        if file.size > MAX_BLOB_BYTES {
            return Err(ApiError::bad_request(format!(
                "files[{index}]: size {} is too large",
                file.size
            )));
        }
        Ok(made)
    };
    let made = files.par_iter().enumerate().with_min_len(1024).map(check).collect();
    match made {
        // Which of several mistakes was found first is chance: it is to be the first one of the list.
        Err(_) => files.iter().enumerate().map(check).collect(),
        made => made,
    }
}

async fn not_found(State(app): State<App>, method: Method, uri: Uri) -> ApiError {
    if uri.path().strip_prefix(wire::SHAMAN).is_some_and(|rest| rest.starts_with("/files/")) {
        return ApiError::bad_request(format!(
            "{} names no blob: expected {}/files/{{sha256}}/{{size}}",
            shown(&uri),
            wire::SHAMAN
        ));
    }
    if app.options.farm.is_some() && farm::is_ours(uri.path()) {
        return not_here(&method, &uri);
    }
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {} here", shown(&uri)))
}

/// What a Manager has and we have not.
pub(super) fn not_here(method: &Method, uri: &Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        format!(
            "{method} {} needs a Flamenco Manager: this farmhand serves files and jobs without one",
            shown(uri)
        ),
    )
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {}", shown(request.uri()), request.method()),
    )
}

pub(super) fn shown(uri: &Uri) -> String {
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
