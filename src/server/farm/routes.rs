//! The endpoints.

use std::{collections::BTreeMap, fs::DirEntry, io, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{FromRequestParts, Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Audience, Farm, Leaving, Meaning, default_output, now, output_dir, variables::abbreviate,
};
use crate::{
    domain::{
        CheckoutPath,
        report::{Erased, Outputs},
    },
    jobs::{
        BadSetting, Job, JobStatus, JobType, NotNow, OUTPUT_ROOT_SETTING, OUTPUT_SETTING, Platform,
        SubmittedJob, checkout_of, uses_checkout,
    },
    ledger::{Entry, LedgerError, Run},
    server::{
        ApiError, App, Peer,
        routes::{parse, read_json},
    },
    store::{EraseError, EraseOptions, Store},
    wire::{self, Problem},
};

/// A job with all its settings, in bytes.
const MAX_JOB_BYTES: usize = 1 << 20;

const PRIORITIES: std::ops::RangeInclusive<i64> = 0..=100;

/// All routes, below `/api/v3`.
pub(in crate::server) fn routes(farm: Arc<Farm>) -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(version))
        .routes(routes!(status))
        .routes(routes!(configuration))
        .routes(routes!(shared_storage))
        .routes(routes!(variables))
        .routes(routes!(tags, create_tag))
        .routes(routes!(job_types))
        .routes(routes!(job_type))
        .routes(routes!(check))
        .routes(routes!(jobs, submit))
        .routes(routes!(job, delete))
        .routes(routes!(what_would_delete_do))
        .routes(routes!(set_status))
        .routes(routes!(set_priority))
        .routes(routes!(tasks))
        .routes(routes!(task))
        .routes(routes!(log_tail))
        .layer(Extension(farm))
}

/// Whether this is a path of the Manager's API that is not served here.
pub(in crate::server) fn is_ours(path: &str) -> bool {
    path.starts_with(wire::API) && !path.starts_with(wire::SHAMAN)
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        let full = error.source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        let status =
            if full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
        tracing::error!("{error}");
        Self::new(status, error.to_string())
    }
}

impl From<NotNow> for ApiError {
    fn from(error: NotNow) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<BadSetting> for ApiError {
    fn from(error: BadSetting) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// The version that clients compare with their own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FlamencoVersion)]
struct Version {
    /// For people.
    version: String,
    /// For add-ons, which want their own.
    shortversion: String,
    /// What serves.
    name: &'static str,
    /// The version again, as a tag.
    git: String,
}

/// The version
///
/// Add-ons ask each time whether the short one is theirs, so it is.
#[utoipa::path(
    get, path = "/version", operation_id = "getVersion", tag = "farm",
    responses((status = 200, description = "The version", body = Version))
)]
async fn version(headers: HeaderMap) -> Json<Version> {
    let own = env!("CARGO_PKG_VERSION");
    let agent = headers.get(header::USER_AGENT).map(|value| value.as_bytes()).unwrap_or_default();
    let theirs = wire::is_blender_addon(agent)
        .then(|| String::from_utf8_lossy(agent))
        .and_then(|agent| Some(agent.strip_prefix("Flamenco/")?.split(' ').next()?.to_owned()));
    Json(Version {
        version: format!("farmhand {own}"),
        shortversion: theirs.unwrap_or_else(|| own.to_owned()),
        name: wire::FARM_NAME,
        git: format!("v{own}"),
    })
}

/// How the farm is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FarmStatusReport)]
struct Status {
    /// `active`: a job is worked on; `waiting`: jobs wait; `idle`: there is nothing to do; `inoperative`: no
    /// command is configured to run jobs.
    status: &'static str,
}

/// Whether there is something to do
#[utoipa::path(
    get, path = "/status", operation_id = "getFarmStatus", tag = "farm",
    responses(
        (status = 200, description = "How the farm is", body = Status),
        (status = 500, description = "The jobs cannot be read", body = Problem),
    )
)]
async fn status(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
) -> Result<Json<Status>, ApiError> {
    let has_command = farm.options.hook.is_some();
    let all = app.exec.blocking(move || farm.ledger.all()).await?;
    let is = |status| all.iter().any(|entry| entry.job.status == status);
    let status = match () {
        // Without a command, too, if another program has fetched it and says so.
        () if is(JobStatus::Active) => "active",
        () if !has_command => "inoperative",
        () if is(JobStatus::Queued) => "waiting",
        () => "idle",
    };
    Ok(Json(Status { status }))
}

/// How the server is set up.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ManagerConfiguration)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    /// The directory of the storage.
    storage_location: String,
    /// Whether files can be sent: always.
    shaman_enabled: bool,
    /// Whether it has still to be set up: never.
    is_first_run: bool,
}

/// How the server is set up
#[utoipa::path(
    get, path = "/configuration", operation_id = "getConfiguration", tag = "farm",
    responses((status = 200, description = "How the server is set up", body = Configuration))
)]
async fn configuration(Extension(farm): Extension<Arc<Farm>>) -> Json<Configuration> {
    Json(Configuration {
        storage_location: farm.location(Platform::HERE),
        shaman_enabled: true,
        is_first_run: false,
    })
}

/// For whom, and where.
struct For(Audience, Platform, String, String);

impl<S: Send + Sync> FromRequestParts<S> for For {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((audience, platform)) =
            path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        let shown = |text: &str| text.chars().take(40).collect::<String>();
        let who = serde_json::from_value(audience.clone().into()).map_err(|_| {
            ApiError::bad_request(format!("{:?}: ask for workers or users", shown(&audience)))
        })?;
        let place = serde_json::from_value(platform.clone().into()).map_err(|_| {
            let platform = shown(&platform);
            ApiError::bad_request(format!("{platform:?}: ask for linux, windows or darwin"))
        })?;
        Ok(Self(who, place, audience, platform))
    }
}

/// Where the storage is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SharedStorageLocation)]
#[serde(rename_all = "camelCase")]
struct Location {
    /// The directory.
    location: String,
    /// For whom.
    audience: String,
    /// On which platform.
    platform: String,
    /// Whether files can be sent: always.
    shaman_enabled: bool,
}

/// Where the storage is
#[utoipa::path(
    get, path = "/configuration/shared-storage/{audience}/{platform}",
    operation_id = "getSharedStorage", tag = "farm",
    params(
        ("audience" = String, Path, description = "workers or users"),
        ("platform" = String, Path, description = "linux, windows or darwin"),
    ),
    responses(
        (status = 200, description = "Where it is", body = Location),
        (status = 400, description = "The path names nobody, or no platform", body = Problem),
    )
)]
async fn shared_storage(
    Extension(farm): Extension<Arc<Farm>>,
    For(_, place, audience, platform): For,
) -> Json<Location> {
    Json(Location { location: farm.location(place), audience, platform, shaman_enabled: true })
}

/// What variables stand for
#[utoipa::path(
    get, path = "/configuration/variables/{audience}/{platform}",
    operation_id = "getVariables", tag = "farm",
    params(
        ("audience" = String, Path, description = "workers or users"),
        ("platform" = String, Path, description = "linux, windows or darwin"),
    ),
    responses(
        (status = 200, description = "All of them by name", body = BTreeMap<String, Meaning>),
        (status = 400, description = "The path names nobody, or no platform", body = Problem),
    )
)]
async fn variables(
    Extension(farm): Extension<Arc<Farm>>,
    For(who, place, ..): For,
) -> Json<BTreeMap<String, Meaning>> {
    Json(farm.meanings(who, place))
}

/// Groups of workers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerTagList)]
struct Tags {
    /// None: there are no workers here.
    tags: [String; 0],
}

/// Groups of workers
#[utoipa::path(
    get, path = "/worker-mgt/tags", operation_id = "fetchWorkerTags", tag = "farm",
    responses((status = 200, description = "None: there are no workers here", body = Tags))
)]
async fn tags() -> Json<Tags> {
    Json(Tags { tags: [] })
}

/// There are no workers here to be put into groups
#[utoipa::path(
    post, path = "/worker-mgt/tags", operation_id = "createWorkerTag", tag = "farm",
    responses((status = 501, description = "This is not served here", body = Problem))
)]
async fn create_tag(method: Method, uri: Uri) -> ApiError {
    crate::server::routes::not_here(&method, &uri)
}

/// All types of jobs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AvailableJobTypes)]
struct Types {
    /// By name.
    job_types: Vec<JobType>,
}

async fn read_types(app: &App, farm: &Arc<Farm>) -> Result<Vec<JobType>, ApiError> {
    let reading = farm.clone();
    app.exec.blocking(move || reading.types.usable()).await.map_err(|error| {
        tracing::error!("the job types cannot be read: {error}");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the job types cannot be read: {error}"),
        )
    })
}

fn no_type(types: &[JobType], name: &str) -> String {
    let names: Vec<_> = types.iter().map(|one| one.name.as_str()).collect();
    let name: String = name.chars().take(60).collect();
    format!("there is no job type {name:?} here; there is {}", names.join(", "))
}

/// What types of jobs there are
#[utoipa::path(
    get, path = "/jobs/types", operation_id = "getJobTypes", tag = "farm",
    responses(
        (status = 200, description = "All of them", body = Types),
        (status = 500, description = "They cannot be read", body = Problem),
    )
)]
async fn job_types(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
) -> Result<Json<Types>, ApiError> {
    Ok(Json(Types { job_types: read_types(&app, &farm).await? }))
}

/// A type of jobs
#[utoipa::path(
    get, path = "/jobs/type/{name}", operation_id = "getJobType", tag = "farm",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What it takes", body = JobType),
        (status = 404, description = "There is none of that name", body = Problem),
        (status = 500, description = "They cannot be read", body = Problem),
    )
)]
async fn job_type(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
    Path(name): Path<String>,
) -> Result<Json<JobType>, ApiError> {
    let types = read_types(&app, &farm).await?;
    let found = types.iter().find(|one| one.name == name).cloned();
    found.map(Json).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, no_type(&types, &name)))
}

async fn read_job(
    app: &App,
    farm: &Arc<Farm>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(SubmittedJob, bool), ApiError> {
    let body = read_json(app, headers, body).await?;
    if body.bytes.len() > MAX_JOB_BYTES {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a job must not be longer than {MAX_JOB_BYTES} bytes"),
        ));
    }
    let mut job: SubmittedJob = parse(&body.bytes)?;
    if job.name.trim().is_empty() {
        return Err(ApiError::bad_request("the job has no name"));
    }
    if !PRIORITIES.contains(&job.priority) {
        return Err(bad_priority(StatusCode::BAD_REQUEST, job.priority));
    }
    let initial = job.initial_status.unwrap_or(JobStatus::Queued);
    if !matches!(initial, JobStatus::Queued | JobStatus::Paused) {
        return Err(ApiError::bad_request(format!(
            "a job cannot be {initial} at first; queued or paused"
        )));
    }
    if job.worker_tag.as_ref().is_some_and(|tag| !tag.is_empty()) {
        return Err(ApiError::bad_request("there are no worker tags here: submit without one"));
    }
    let types = read_types(app, farm).await?;
    let Some(kind) = types.iter().find(|one| one.name == job.job_type) else {
        return Err(ApiError::bad_request(no_type(&types, &job.job_type)));
    };
    if job.type_etag.as_ref().is_some_and(|etag| *etag != kind.etag) {
        return Err(ApiError::new(
            StatusCode::PRECONDITION_FAILED,
            format!(
                "the job type {} has changed: fetch the job types again, and look over the settings",
                kind.name
            ),
        ));
    }
    kind.complete(&mut job.settings)?;
    let needs_output =
        kind.setting(OUTPUT_SETTING).is_ok() && !job.settings.contains_key(OUTPUT_SETTING);
    Ok((job, needs_output))
}

fn bad_priority(status: StatusCode, priority: i64) -> ApiError {
    ApiError::new(status, format!("{priority} is no priority: it goes from 0 to 100"))
}

/// Whether a job would be taken
#[utoipa::path(
    post, path = "/jobs/check", operation_id = "submitJobCheck", tag = "farm",
    request_body = SubmittedJob,
    responses(
        (status = 204, description = "It would"),
        (status = 400, description = "The job is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 412, description = "The type of job has changed: fetch the types again", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "The job types cannot be read", body = Problem),
    )
)]
async fn check(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    read_job(&app, &farm, &headers, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A job, and what became of the command that it was given to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobWithRun)]
struct JobAnswer {
    #[serde(flatten)]
    job: Job,
    /// Left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
}

/// Submit a job
///
/// It is kept before it is answered. Where a command is configured, it is given to that in its turn.
#[utoipa::path(
    post, path = "/jobs", operation_id = "submitJob", tag = "farm",
    request_body = SubmittedJob,
    responses(
        (status = 200, description = "It is taken", body = JobAnswer),
        (status = 400, description = "The job is not as expected", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 409, description = "Its checkout is being erased with its job", body = Problem),
        (status = 412, description = "The type of job has changed: fetch the types again", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 500, description = "It cannot be kept", body = Problem),
        (status = 507, description = "The disk is full", body = Problem),
    )
)]
async fn submit(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<JobAnswer>, ApiError> {
    let (mut submitted, needs_output) = read_job(&app, &farm, &headers, body).await?;
    // Held by what does it, which goes on when the client has gone.
    let turn = farm.taking.clone().lock_owned().await;
    let (taking, store) = (farm.clone(), app.store.clone());
    let entry = app
        .exec
        .blocking(move || {
            let meanings = taking.meanings(Audience::Users, submitted.submitter_platform);
            abbreviate(&mut submitted.settings, &meanings);
            let checkout = checkout_used(&store, &submitted)?;
            let jobs_dir = super::shown(&taking.checkouts);
            let going = taking.going();
            let deleted = store.being_deleted();
            let deleted = deleted.iter().find(|deleted| {
                uses_checkout(deleted, checkout.as_deref(), &submitted.settings, &jobs_dir)
            });
            let gone = going.needed_by(checkout.as_deref(), &submitted, &jobs_dir);
            if let Some(gone) = gone.or(deleted.map(CheckoutPath::as_str)) {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    format!("the checkout {gone:?} is being erased with its job: make another one"),
                ));
            }
            drop(going);
            let now = now();
            let id = uuid::Uuid::new_v4().to_string();
            if needs_output {
                let root =
                    submitted.settings.get(OUTPUT_ROOT_SETTING).and_then(|root| root.as_str());
                let path = default_output(root, &submitted.name, &id);
                submitted.settings.insert(OUTPUT_SETTING.into(), path.into());
            }
            let job = Job {
                status: submitted.initial_status.unwrap_or(JobStatus::Queued),
                id,
                created: now,
                updated: now,
                activity: String::new(),
                steps_completed: 0,
                steps_total: 1,
                submitted,
            };
            let entry = Entry { job, checkout, run: None };
            taking.ledger.add(&entry)?;
            drop(turn);
            Ok::<_, ApiError>(entry)
        })
        .await?;
    farm.wake.notify_one();
    let job = farm.shown_job(entry.job);
    let name: String = job.submitted.name.chars().take(200).collect();
    tracing::info!(client = %peer.0, job = job.id, name, checkout = entry.checkout, "a job is taken");
    Ok(Json(JobAnswer { job, run: None }))
}

/// The checkout that a job's files are in: what it says, if that is one; or else what its .blend is in, so
/// that this one is kept whatever else the job says.
fn checkout_used(store: &Store, job: &SubmittedJob) -> Result<Option<String>, ApiError> {
    let said = job.storage.as_ref().and_then(|storage| storage.shaman_checkout_id.as_deref());
    let said = said.and_then(|id| id.parse::<CheckoutPath>().ok());
    if let Some(said) = said.as_ref().filter(|said| !is_folder(store, said)) {
        return Ok(Some(said.as_str().to_owned()));
    }
    let found = match checkout_of(&job.settings) {
        Some(path) => store.checkout_above(path)?,
        None => None,
    };
    Ok(found.or(said).map(|checkout| checkout.as_str().to_owned()))
}

/// Whether this is a directory that has no file in it and is not on record: there may be checkouts in it,
/// but it is none.
fn is_folder(store: &Store, checkout: &CheckoutPath) -> bool {
    let Ok(mut entries) = std::fs::read_dir(store.checkouts_dir().join(checkout.as_str())) else {
        return false;
    };
    let is_dir = |entry: io::Result<DirEntry>| entry?.file_type().map(|kind| kind.is_dir());
    // What cannot be found out is not one for certain.
    entries.all(|entry| is_dir(entry).unwrap_or(false))
        && store
            .checkout_above(&format!("{checkout}/x"))
            .is_ok_and(|found| found.as_ref() != Some(checkout))
}

/// All jobs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobsQueryResult)]
struct Jobs {
    /// The latest first.
    jobs: Vec<Job>,
}

/// All jobs
#[utoipa::path(
    get, path = "/jobs", operation_id = "fetchJobs", tag = "farm",
    responses(
        (status = 200, description = "The latest first", body = Jobs),
        (status = 500, description = "They cannot be read", body = Problem),
    )
)]
async fn jobs(
    State(app): State<App>,
    Extension(farm): Extension<Arc<Farm>>,
) -> Result<Json<Jobs>, ApiError> {
    let asked = farm.clone();
    let all = app.exec.blocking(move || asked.ledger.all()).await?;
    Ok(Json(Jobs { jobs: all.into_iter().map(|entry| farm.shown_job(entry.job)).collect() }))
}

/// A job that there is.
struct NamedJob(Arc<Farm>, Entry);

fn no_job(id: &str) -> ApiError {
    let id: String = id.chars().take(60).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no job {id:?} here"))
}

impl FromRequestParts<App> for NamedJob {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(id) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        if matches!(id.as_str(), "mass-delete" | "last-rendered") {
            return Err(crate::server::routes::not_here(&parts.method, &parts.uri));
        }
        let farm = parts.extensions.get::<Arc<Farm>>().expect("BUG: it is a layer").clone();
        let (asked, name) = (farm.clone(), id.clone());
        let found = app.exec.blocking(move || asked.ledger.get(&name)).await?;
        found.map(|entry| Self(farm, entry)).ok_or_else(|| no_job(&id))
    }
}

/// A job
#[utoipa::path(
    get, path = "/jobs/{id}", operation_id = "fetchJob", tag = "farm",
    params(("id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "What it is at", body = JobAnswer),
        (status = 404, description = "There is none", body = Problem),
        (status = 500, description = "It cannot be read", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn job(NamedJob(farm, entry): NamedJob) -> Json<JobAnswer> {
    let mut run = entry.run;
    let running = farm.running().get(&entry.job.id).cloned();
    if let (Some(run), Some(running)) = (&mut run, running) {
        run.output = running.output();
    }
    Json(JobAnswer { job: farm.shown_job(entry.job), run })
}

/// The files that a deletion of a job removes, and those that it leaves where they are.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = JobDeletionInfo)]
struct Deletion {
    /// Whether its checkout is deleted.
    shaman_checkout: bool,
    /// The checkout that is deleted: how much of it farmhand created, and the files that it did not, which stay
    /// unless they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkout: Option<Erased>,
    /// Files in the job's directory below `renders/`. They stay, too, unless they are asked for.
    renders: Outputs,
}

fn being_deleted(id: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, format!("the job {id} is being deleted"))
}

/// The checkout that is deleted with a job: a whole one that no other job uses, nor anything in it or above it.
fn deleted_with(
    farm: &Farm,
    store: &Store,
    entry: &Entry,
) -> Result<Option<CheckoutPath>, ApiError> {
    let checkout = entry.checkout.as_deref().and_then(|text| text.parse().ok());
    let Some(checkout): Option<CheckoutPath> = checkout else { return Ok(None) };
    let id = &entry.job.id;
    if farm.ledger.all()?.iter().any(|other| other.job.id != *id && farm.uses(other, &checkout)) {
        return Ok(None);
    }
    match store.require_deletable(&checkout, false) {
        Ok(()) => Ok(Some(checkout)),
        Err(EraseError::Disk(error)) => Err(error.into()),
        // Nothing that could be deleted as this job's.
        Err(error) => {
            tracing::debug!(job = id, "no checkout is deleted with the job: {error}");
            Ok(None)
        }
    }
}

/// Preview the deletion of a job
#[utoipa::path(
    get, path = "/jobs/{id}/what-would-delete-do", operation_id = "deleteJobWhatWouldItDo", tag = "farm",
    params(("id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Whether its checkout is deleted, and which files stay", body = Deletion),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 500, description = "It cannot be read", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn what_would_delete_do(
    State(app): State<App>,
    NamedJob(farm, entry): NamedJob,
) -> Result<Json<Deletion>, ApiError> {
    let store = app.store.clone();
    app.exec
        .blocking(move || {
            let preview = EraseOptions { dry_run: true, ..EraseOptions::default() };
            let checkout = deleted_with(&farm, &store, &entry)?;
            let checkout = checkout.map(|checkout| store.erase(&checkout, preview)).transpose()?;
            let renders = store.outputs_of_job(&output_dir(&entry.job), false)?;
            Ok(Json(Deletion { shaman_checkout: checkout.is_some(), checkout, renders }))
        })
        .await
}

/// How a job is deleted.
#[derive(Debug, Default, Deserialize)]
pub(in crate::server) struct DeleteOptions {
    /// Removes files that farmhand did not create, too.
    #[serde(default)]
    pub with_outputs: bool,
    /// Answers what was deleted, instead of nothing.
    #[serde(default)]
    pub report: bool,
}

/// Delete a job, and its checkout if no other job uses it
///
/// Of the checkout, only what farmhand created is removed. Other files stay where they are.
#[utoipa::path(
    delete, path = "/jobs/{id}", operation_id = "deleteJob", tag = "farm",
    params(
        ("id" = String, Path, description = "Its id"),
        ("with_outputs" = Option<bool>, Query, description = "Remove files that farmhand did not create, too"),
        ("report" = Option<bool>, Query, description = "Answer what was deleted"),
    ),
    responses(
        (status = 200, description = "It is gone, and this with it; if a report was asked for", body = Deletion),
        (status = 204, description = "It is gone"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is none", body = Problem),
        (status = 409, description = "It is being deleted already", body = Problem),
        (status = 500, description = "It cannot be deleted", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn delete(
    State(app): State<App>,
    NamedJob(farm, entry): NamedJob,
    options: Result<Query<DeleteOptions>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(options) =
        options.map_err(|_| ApiError::bad_request("with_outputs and report are true or false"))?;
    let id = entry.job.id.clone();
    let parting = Parting::begin(&farm, &id)?;
    // Not given to the command any more, and taken from it if it has it.
    let asked = farm.clone();
    let (parting, running) = app
        .exec
        .blocking(move || {
            let running = parting.end_job()?;
            Ok::<_, ApiError>((parting, running))
        })
        .await?;
    if let Some(running) = running {
        running.cancel.cancel();
        running.ended.cancelled().await;
    }
    // Held by what does it, which goes on when the client has gone.
    let turn = asked.taking.clone().lock_owned().await;
    let store = app.store.clone();
    let deletion = app
        .exec
        .compute(move || {
            let _parting = parting;
            let checkout = deleted_with(&asked, &store, &entry)?;
            let _leaving = checkout.as_ref().map(|checkout| Leaving::begin(&asked, checkout));
            // Others are taken meanwhile, but none for this checkout.
            drop(turn);
            let mut deletion = Deletion::default();
            if let Some(checkout) = checkout {
                let with_outputs = options.with_outputs;
                let options = EraseOptions { with_outputs, ..EraseOptions::default() };
                match store.erase(&checkout, options) {
                    Ok(erased) => {
                        tracing::info!(checkout = %erased.path, files = erased.files, "erased");
                        erased.log_outputs();
                        deletion.checkout = Some(erased);
                    }
                    Err(EraseError::Disk(error)) => return Err(error.into()),
                    // Another request has deleted it meanwhile.
                    Err(error) => tracing::info!(job = id, "{error}"),
                }
            }
            let renders = output_dir(&entry.job);
            deletion.renders = store.outputs_of_job(&renders, false)?;
            if options.with_outputs {
                deletion.renders = store.outputs_of_job(&renders, true)?;
            } else {
                store.remove_empty_output_dir(&renders)?;
            }
            deletion.shaman_checkout = deletion.checkout.is_some();
            // At last: if the disk fails before, the job is still there to be deleted again.
            asked.ledger.remove(&id)?;
            tracing::info!(job = id, "a job is deleted");
            Ok::<_, ApiError>(deletion)
        })
        .await?;
    Ok(match options.report {
        true => Json(deletion).into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
}

/// A job that is being deleted, until this is dropped: nothing else may happen to it.
struct Parting {
    farm: Arc<Farm>,
    id: String,
}

impl Parting {
    fn begin(farm: &Arc<Farm>, id: &str) -> Result<Self, ApiError> {
        if !farm.going().jobs.insert(id.to_owned()) {
            return Err(being_deleted(id));
        }
        Ok(Self { farm: farm.clone(), id: id.to_owned() })
    }

    /// Has it end; returns what runs of it.
    fn end_job(&self) -> Result<Option<Arc<super::hook::Running>>, ApiError> {
        // No job begins or ends meanwhile.
        let all = self.farm.running();
        let changed = self.farm.ledger.update(&self.id, |mut entry| {
            entry.job.status = JobStatus::Canceled;
            Some(entry)
        })?;
        if changed.is_none() { Err(no_job(&self.id)) } else { Ok(all.get(&self.id).cloned()) }
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        self.farm.going().jobs.remove(&self.id);
    }
}

/// Changes a job; returns what runs of it.
async fn change(
    app: &App,
    farm: &Arc<Farm>,
    id: &str,
    make: impl FnOnce(Entry) -> Result<Entry, ApiError> + Send + 'static,
) -> Result<Option<Arc<super::hook::Running>>, ApiError> {
    let (farm, id) = (farm.clone(), id.to_owned());
    app.exec
        .blocking(move || {
            // No job begins or ends meanwhile.
            let all = farm.running();
            if farm.going().jobs.contains(&id) {
                return Err(being_deleted(&id));
            }
            let mut refusal = None;
            let changed = farm.ledger.update(&id, |entry| match make(entry) {
                Ok(entry) => Some(entry),
                Err(error) => {
                    refusal = Some(error);
                    None
                }
            })?;
            match refusal {
                Some(error) => Err(error),
                None if changed.is_none() => Err(no_job(&id)),
                None => Ok(all.get(&id).cloned()),
            }
        })
        .await
}

/// What a job is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = JobStatusChange)]
struct StatusChange {
    /// The status.
    status: JobStatus,
    /// Why.
    #[serde(default)]
    reason: String,
}

/// Change what a job is at
#[utoipa::path(
    post, path = "/jobs/{id}/setstatus", operation_id = "setJobStatus", tag = "farm",
    params(("id" = String, Path, description = "Its id")),
    request_body = StatusChange,
    responses(
        (status = 204, description = "It is changed"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 409, description = "The job is being deleted", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 422, description = "The job cannot become that now", body = Problem),
        (status = 500, description = "It cannot be kept", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
        (status = 507, description = "The disk is full", body = Problem),
    )
)]
async fn set_status(
    State(app): State<App>,
    NamedJob(farm, entry): NamedJob,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let StatusChange { status, reason } = parse(&read_json(&app, &headers, body).await?.bytes)?;
    let reason: String = reason.chars().take(1000).collect();
    let id = entry.job.id;
    let running = change(&app, &farm, &id, move |mut entry| {
        let before = entry.job.status;
        entry.job.status = before.change(status, entry.runs())?;
        if !reason.is_empty() {
            entry.job.activity = reason;
        }
        Ok(entry)
    })
    .await?;
    // The only status that something that runs can be given.
    if let Some(running) = running
        && matches!(status, JobStatus::Canceled | JobStatus::CancelRequested)
    {
        running.cancel.cancel();
    }
    farm.wake.notify_one();
    tracing::info!(job = id, %status, "a job's status is set");
    Ok(StatusCode::NO_CONTENT)
}

/// How soon a job is to be done.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = JobPriorityChange)]
struct PriorityChange {
    /// From 0 to 100; higher goes first.
    priority: i64,
}

/// Change a job's priority
#[utoipa::path(
    post, path = "/jobs/{id}/setpriority", operation_id = "setJobPriority", tag = "farm",
    params(("id" = String, Path, description = "Its id")),
    request_body = PriorityChange,
    responses(
        (status = 204, description = "It is changed"),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 408, description = "The request did not come to its end", body = Problem),
        (status = 409, description = "The job is being deleted", body = Problem),
        (status = 413, description = "The request is too long", body = Problem),
        (status = 415, description = "It is not sent as application/json", body = Problem),
        (status = 422, description = "This is no priority", body = Problem),
        (status = 500, description = "It cannot be kept", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
        (status = 507, description = "The disk is full", body = Problem),
    )
)]
async fn set_priority(
    State(app): State<App>,
    NamedJob(farm, entry): NamedJob,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let PriorityChange { priority } = parse(&read_json(&app, &headers, body).await?.bytes)?;
    if !PRIORITIES.contains(&priority) {
        return Err(bad_priority(StatusCode::UNPROCESSABLE_ENTITY, priority));
    }
    change(&app, &farm, &entry.job.id, move |mut entry| {
        entry.job.submitted.priority = priority;
        Ok(entry)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A step of a job: all there is of one is what its command does.
#[derive(Debug, Serialize, ToSchema)]
struct TaskSummary {
    /// The job's id: it has one task.
    id: String,
    /// What people call it.
    name: &'static str,
    /// What it is at.
    status: JobStatus,
    /// The job's.
    priority: i64,
    /// Always `command`.
    task_type: &'static str,
    /// When it last changed.
    #[schema(value_type = String)]
    updated: jiff::Timestamp,
}

/// The steps of a job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobTasksSummary)]
struct Tasks {
    /// One, once the job has been given to a command.
    tasks: Vec<TaskSummary>,
}

fn task_of(entry: &Entry) -> Option<TaskSummary> {
    entry.run.as_ref().map(|_| TaskSummary {
        id: entry.job.id.clone(),
        name: "command",
        status: entry.job.status,
        priority: entry.job.submitted.priority,
        task_type: "command",
        updated: entry.job.updated,
    })
}

/// The steps of a job
#[utoipa::path(
    get, path = "/jobs/{id}/tasks", operation_id = "fetchJobTasks", tag = "farm",
    params(("id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "One, once it has been given to a command", body = Tasks),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 500, description = "It cannot be read", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn tasks(NamedJob(_, entry): NamedJob) -> Json<Tasks> {
    Json(Tasks { tasks: task_of(&entry).into_iter().collect() })
}

/// A step of a job
#[utoipa::path(
    get, path = "/tasks/{id}", operation_id = "fetchTask", tag = "farm",
    params(("id" = String, Path, description = "Its id, which is that of its job")),
    responses(
        (status = 200, description = "What it is at", body = TaskSummary),
        (status = 404, description = "There is none", body = Problem),
        (status = 500, description = "It cannot be read", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn task(NamedJob(_, entry): NamedJob) -> Result<Json<TaskSummary>, ApiError> {
    task_of(&entry).map(Json).ok_or_else(|| no_job(&entry.job.id))
}

/// The last of what a job's command has written
#[utoipa::path(
    get, path = "/tasks/{id}/logtail", operation_id = "fetchTaskLogTail", tag = "farm",
    params(("id" = String, Path, description = "Its id, which is that of its job")),
    responses(
        (status = 200, description = "The last of it", body = String, content_type = "text/plain"),
        (status = 204, description = "Nothing yet"),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 500, description = "It cannot be read", body = Problem),
        (status = 501, description = "This is not served here", body = Problem),
    )
)]
async fn log_tail(named: NamedJob) -> Response {
    match job(named).await.0.run {
        Some(run) if !run.output.is_empty() => {
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], run.output).into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}
