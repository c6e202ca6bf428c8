//! `/farmhand/v1/…`: operations on the store, for those who run it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, channel::Channel};
use serde::Serialize;
use tokio::sync::oneshot;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ApiError, App, Job, download, farm, gateway,
    routes::{parse, read_json},
    upkeep,
};
use crate::{
    domain::{
        CheckoutPath, Digest,
        report::{CheckoutInfo, Erased, GcReport, ScrubReport, Usage, VerifyReport, Why},
    },
    store::{EraseError, EraseOptions, GcError, GcOptions, ScrubError, ScrubOptions, Store, Work},
    wire::{GcRequest, Line, PinAnswer, PinsAnswer, Problem, ScrubRequest, VerifyRequest},
};

/// How often a long operation says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How soon a scrub in the background stops when it is told to.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(5);

/// The type of its answer.
const LINES: &str = "application/x-ndjson";

/// All routes of it.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(checkouts, erase))
        .routes(routes!(download::manifest))
        .routes(routes!(usage))
        .routes(routes!(why))
        .routes(routes!(download::download))
        .routes(routes!(pins))
        .routes(routes!(pin, unpin))
        .routes(routes!(gc))
        .routes(routes!(scrub))
        .routes(routes!(verify))
}

/// The digest in a path.
struct NamedDigest(Digest);

impl<S: Send + Sync> FromRequestParts<S> for NamedDigest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(sha) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        sha.parse().map(Self).map_err(|error| ApiError::bad_request(format!("{error}")))
    }
}

/// Which checkout.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Named {
    pub path: String,
}

pub(super) fn checkout_path(path: &str) -> Result<CheckoutPath, ApiError> {
    path.parse().map_err(|error| ApiError::bad_request(format!("checkout: {error}")))
}

/// All checkouts.
#[utoipa::path(
    get, path = "/checkouts", operation_id = "listCheckouts", tag = "store",
    responses(
        (status = 200, description = "All checkouts", body = Vec<CheckoutInfo>),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn checkouts(State(app): State<App>) -> Result<Json<Vec<CheckoutInfo>>, ApiError> {
    let store = app.store.clone();
    Ok(Json(app.exec.compute(move || store.checkouts()).await?))
}

/// Which checkout to delete, and how.
#[derive(Debug, serde::Deserialize)]
struct Deleted {
    path: String,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    with_outputs: bool,
    #[serde(default)]
    dry_run: bool,
}

/// Deletes a checkout.
///
/// Only what farmhand created is removed. Other files stay where they are, and are listed.
#[utoipa::path(
    delete, path = "/checkouts", operation_id = "eraseCheckout", tag = "store",
    params(
        ("path" = String, Query, description = "The checkout, as it is listed"),
        ("force" = Option<bool>, Query, description = "Also if a job uses it that has not ended"),
        ("with_outputs" = Option<bool>, Query, description = "Remove files that farmhand did not create, too"),
        ("dry_run" = Option<bool>, Query, description = "Remove nothing, and answer what would be removed"),
    ),
    responses(
        (status = 200, description = "It is gone, or would be", body = Erased),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is no such checkout", body = Problem),
        (status = 409, description = "It is not a whole checkout, or a job uses it", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn erase(
    State(app): State<App>,
    named: Result<Query<Deleted>, QueryRejection>,
) -> Result<Json<Erased>, ApiError> {
    let Query(Deleted { path, force, with_outputs, dry_run }) = named.map_err(|_| {
        ApiError::bad_request(
            "which checkout? Ask for /farmhand/v1/checkouts?path=PATH; force, with_outputs and dry_run \
             are true or false",
        )
    })?;
    let answered = match &app.options.manager {
        Some(manager) => manager.answered_checkout(&app, &path).await,
        None => None,
    };
    let path = answered.map_or_else(|| checkout_path(&path), Ok)?;
    let options = EraseOptions { with_outputs, dry_run, unrecorded: force };
    let store = app.store.clone();
    // First of all: a part of a checkout is refused whether a job uses it or not.
    let checked = path.clone();
    app.exec.blocking(move || store.require_deletable(&checked, force)).await?;
    let leaving = if force { None } else { Some(require_unused(&app, &path).await?) };
    let store = app.store.clone();
    let erased = app
        .exec
        .compute(move || {
            let _leaving = leaving;
            store.erase(&path, options)
        })
        .await?;
    if !dry_run {
        tracing::info!(checkout = %erased.path, files = erased.files, "erased");
        erased.log_outputs();
    }
    Ok(Json(erased))
}

/// Refuses if a job that has not ended uses a checkout. Until what is returned is dropped, no job is taken that
/// does.
async fn require_unused(app: &App, path: &CheckoutPath) -> Result<Option<farm::Leaving>, ApiError> {
    let used = |id: &str, name: &str, status: &str| {
        let name: String = name.chars().take(60).collect();
        let message = format!(
            "the checkout {path:?} is used by the job {id} ({name:?}, {status}); cancel or delete that job, or \
             delete the checkout all the same with force (--force)"
        );
        ApiError::new(StatusCode::CONFLICT, message)
    };
    if let Some(manager) = &app.options.manager {
        return match gateway::live_user(app, manager, path).await {
            Ok(None) => Ok(None),
            Ok(Some((id, name, status))) => Err(used(&id, &name, &status)),
            Err(reason) => Err(ApiError::new(
                StatusCode::CONFLICT,
                format!(
                    "it is not known whether a job of the Manager uses the checkout {path:?}: {reason}; try \
                     again, or delete it all the same with force (--force)"
                ),
            )),
        };
    }
    let store = app.store.clone();
    let user = match &app.options.farm {
        Some(farm) => match farm.leave(store, path.clone(), &app.exec).await? {
            Ok(None) => return Err(not_now(&EraseError::Busy(path.clone()))),
            Ok(leaving) => return Ok(leaving),
            Err(job) => Some(job),
        },
        None => {
            let path = path.clone();
            app.exec.blocking(move || farm::live_user(None, &store, &path)).await?
        }
    };
    match user {
        Some(job) => Err(used(&job.id, &job.submitted.name, job.status.name())),
        None => Ok(None),
    }
}

/// What fills the store.
#[utoipa::path(
    get, path = "/usage", operation_id = "getUsage", tag = "store",
    responses(
        (status = 200, description = "What takes how much", body = Usage),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn usage(State(app): State<App>) -> Result<Json<Usage>, ApiError> {
    let store = app.store.clone();
    Ok(Json(app.exec.compute(move || store.usage()).await?))
}

/// Why a blob is kept.
#[utoipa::path(
    get, path = "/blobs/{sha}", operation_id = "whyBlob", tag = "store",
    params(("sha" = String, Path, description = "SHA-256 as 64 lower-case hex digits")),
    responses(
        (status = 200, description = "What is stored under it, and what keeps it", body = Why),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn why(
    State(app): State<App>,
    NamedDigest(digest): NamedDigest,
) -> Result<Json<Why>, ApiError> {
    let (store, max_age) = (app.store.clone(), app.options.upkeep.max_age);
    Ok(Json(app.exec.compute(move || store.why(&digest, max_age)).await?))
}

/// All pinned digests.
#[utoipa::path(
    get, path = "/pins", operation_id = "listPins", tag = "store",
    responses(
        (status = 200, description = "All of them", body = PinsAnswer),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn pins(State(app): State<App>) -> Result<Json<PinsAnswer>, ApiError> {
    let store = app.store.clone();
    let pins = app.exec.blocking(move || store.pins()).await?;
    Ok(Json(PinsAnswer { pins: pins.into_iter().collect() }))
}

/// Keeps a digest, whether a checkout holds it or not.
#[utoipa::path(
    put, path = "/pins/{sha}", operation_id = "pinBlob", tag = "store",
    params(("sha" = String, Path, description = "SHA-256 as 64 lower-case hex digits")),
    responses(
        (status = 200, description = "It is pinned", body = PinAnswer),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn pin(app: State<App>, digest: NamedDigest) -> Result<Json<PinAnswer>, ApiError> {
    set_pin(app, digest, true).await
}

/// Keeps a digest no more.
#[utoipa::path(
    delete, path = "/pins/{sha}", operation_id = "unpinBlob", tag = "store",
    params(("sha" = String, Path, description = "SHA-256 as 64 lower-case hex digits")),
    responses(
        (status = 200, description = "It is not pinned", body = PinAnswer),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn unpin(app: State<App>, digest: NamedDigest) -> Result<Json<PinAnswer>, ApiError> {
    set_pin(app, digest, false).await
}

async fn set_pin(
    State(app): State<App>,
    NamedDigest(digest): NamedDigest,
    pinned: bool,
) -> Result<Json<PinAnswer>, ApiError> {
    let store = app.store.clone();
    let changed = app.exec.blocking(move || store.pin(digest, pinned)).await?;
    Ok(Json(PinAnswer { digest, pinned, changed }))
}

/// Removes the blobs that nobody needs.
#[utoipa::path(
    post, path = "/gc", operation_id = "collectGarbage", tag = "store",
    request_body = GcRequest,
    responses(
        (status = 200, description = "Lines: how far it is, and at last the report", content_type = "application/x-ndjson", body = Line<GcReport>),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 409, description = "Not now: another one is at it, or it is not certain what may go", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
        (status = 503, description = "The server stops", body = Problem),
    )
)]
async fn gc(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let GcRequest { dry_run, max_age_s } = parse(&read_json(&app, &headers, body).await?.bytes)?;
    let options = GcOptions {
        dry_run,
        max_age: max_age_s.map_or(app.options.upkeep.max_age, Duration::from_secs),
        threads: cores(),
        gentle: false,
    };
    let noted = app.clone();
    long(app, move |store, work| {
        let report = store.gc(options, work)?;
        if !dry_run {
            upkeep::succeeded(&noted, Job::Gc);
        }
        Ok(report)
    })
    .await
}

/// Reads blobs again, from where the last scrub stopped.
#[utoipa::path(
    post, path = "/scrub", operation_id = "scrubStore", tag = "store",
    request_body = ScrubRequest,
    responses(
        (status = 200, description = "Lines: how far it is, and at last the report", content_type = "application/x-ndjson", body = Line<ScrubReport>),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 409, description = "Another one is at it", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn scrub(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let ScrubRequest { rate, from_start } = parse(&read_json(&app, &headers, body).await?.bytes)?;
    let options = ScrubOptions { rate, from_start, threads: cores(), gentle: false };
    let upkeep = app.clone();
    long(app, move |store, work| {
        let start = Instant::now();
        let report = loop {
            // The one in the background gives way, and goes on afterwards.
            let gives_way = upkeep.background_scrub.give_way();
            match store.scrub(options, work) {
                Err(ScrubError::Busy) if gives_way && start.elapsed() < GIVES_WAY_WITHIN => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => break done?,
            }
        };
        if report.complete {
            upkeep::succeeded(&upkeep, Job::Scrub);
        }
        Ok(report)
    })
    .await
}

/// Checks that checkouts are whole.
#[utoipa::path(
    post, path = "/verify", operation_id = "verifyCheckouts", tag = "store",
    request_body = VerifyRequest,
    responses(
        (status = 200, description = "Lines: how far it is, and at last the report", content_type = "application/x-ndjson", body = Line<VerifyReport>),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is no such checkout", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
async fn verify(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let VerifyRequest { checkout, deep } = parse(&read_json(&app, &headers, body).await?.bytes)?;
    let only = checkout.as_deref().map(checkout_path).transpose()?;
    long(app, move |store, work| Ok(store.verify(only.as_ref(), deep, work)?)).await
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs an operation that may take hours. What is known within a second is the whole answer; after
/// that the answer is a line now and then that says how far it is, and at the end one that says what
/// came of it. It stops when the client goes away, or the server stops.
async fn long<T: Serialize + Send + 'static>(
    app: App,
    operation: impl FnOnce(&Store, &Work) -> Result<T, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (done, mut result) = oneshot::channel();
    let work = Arc::new(Work::default());
    let (store, stop) = (app.store.clone(), StopOnDrop(work.clone()));
    let exec = app.exec.clone();
    app.exec.spawn({
        let work = work.clone();
        async move {
            // Not received: nobody waits for it any more.
            let _ = done.send(exec.blocking(move || operation(&store, &work)).await);
        }
    });
    let (mut lines, body) = Channel::<Bytes, std::convert::Infallible>::new(4);
    let first = tokio::select! {
        done = &mut result => Some(received(done)?),
        () = tokio::time::sleep(PROGRESS_EVERY) => None,
        () = app.shutdown.cancelled() => None,
    };
    if let Some(report) = first {
        return Ok(answer(Body::from(line(&Line::Report(report)))));
    }
    let shutdown = app.shutdown.clone();
    app.exec.spawn(async move {
        let stop = stop;
        loop {
            let next = tokio::select! {
                done = &mut result => {
                    let last = match received(done) {
                        Ok(report) => Line::Report(report),
                        Err(error) => Line::Error {
                            code: error.status().as_u16(),
                            message: error.message().to_owned(),
                        },
                    };
                    let _ = lines.send_data(line(&last)).await;
                    return;
                }
                () = tokio::time::sleep(PROGRESS_EVERY) => line(&Line::<T>::Progress(work.done())),
                () = shutdown.cancelled(), if !stop.0.is_stopped() => {
                    stop.0.stop();
                    continue;
                }
            };
            if lines.send_data(next).await.is_err() {
                return;
            }
        }
    });
    Ok(answer(Body::new(body.boxed())))
}

/// Stops an operation for which nobody waits.
struct StopOnDrop(Arc<Work>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn received<T>(
    done: Result<Result<T, ApiError>, oneshot::error::RecvError>,
) -> Result<T, ApiError> {
    done.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this is a bug in the server; its log says more",
        ))
    })
}

fn line<T: Serialize>(line: &Line<T>) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("BUG: reports are plain data");
    text.push(b'\n');
    text.into()
}

fn answer(body: Body) -> Response {
    ([(header::CONTENT_TYPE, LINES)], body).into_response()
}

impl From<EraseError> for ApiError {
    fn from(error: EraseError) -> Self {
        match error {
            EraseError::Unknown(_) => Self::new(
                StatusCode::NOT_FOUND,
                format!("{error}; farmhand store list shows those there are"),
            ),
            EraseError::Folder(..) => {
                Self::new(StatusCode::CONFLICT, format!("{error}; erase these one by one"))
            }
            EraseError::Part { .. } => {
                Self::new(StatusCode::CONFLICT, format!("{error}; give the whole one"))
            }
            EraseError::Unrecorded(_) => Self::new(
                StatusCode::CONFLICT,
                format!("{error} that another server has created; delete it with force (--force)"),
            ),
            EraseError::Busy(_) => not_now(&error),
            EraseError::Disk(error) => error.into(),
        }
    }
}

/// Operations that cannot go on at the same time, or were stopped.
fn not_now(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, format!("{error}; try again when it is done"))
}

impl From<GcError> for ApiError {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Busy => not_now(&error),
            GcError::Stopped => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopped, because the server stops or nobody waits for it any more",
            ),
            GcError::NoCheckouts { .. } => Self::new(
                StatusCode::CONFLICT,
                format!("nothing was removed: {error} If they are gone for good, erase them"),
            ),
            GcError::Disk(error) => {
                let error = Self::from(error);
                Self::new(error.status(), format!("nothing was removed: {}", error.message()))
            }
        }
    }
}

impl From<ScrubError> for ApiError {
    fn from(error: ScrubError) -> Self {
        match error {
            ScrubError::Busy => not_now(&error),
            ScrubError::Disk(error) => error.into(),
        }
    }
}
