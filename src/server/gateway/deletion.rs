//! Jobs that are deleted take their checkouts with them: the Manager would erase those of its own
//! Shaman, and knows nothing of ours. Whatever cannot be found out for certain erases nothing.
//!
//! A checkout goes if it is a whole one, on record, that the job names by its id or by the path of
//! its .blend, and if no other job may use any of it. The Manager's own word
//! (`what-would-delete-do`) counts for ids only, and only while its Shaman is enabled: without
//! one it says no to everything, and of jobs without an id it knows nothing.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, header},
};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    super::{App, body::next_piece},
    Gateway, Head, NoAnswer,
    json::Members,
    passed,
    paths::{BLENDFILE, JobPaths},
};
use crate::{
    domain::CheckoutPath,
    store::{EraseError, EraseOptions},
    wire::hide_tokens,
};

/// Where the Manager has its jobs.
const JOBS: &str = "/api/v3/jobs";

/// The end of the path under which the Manager says what the deletion of a job would do.
const PREVIEW: &str = "what-would-delete-do";

/// The name that no job has.
const MASS: &str = "mass-delete";

/// The longest request for a mass deletion.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// What of a job is looked at.
#[derive(Debug, Deserialize)]
struct Job {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    status: String,
    updated: Option<String>,
    storage: Option<Storage>,
    #[serde(default)]
    settings: Value,
    delete_requested_at: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Storage {
    shaman_checkout_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Jobs {
    jobs: Vec<Job>,
}

/// What the Manager says of a deletion beforehand.
#[derive(Debug, Deserialize)]
struct Preview {
    shaman_checkout: bool,
}

/// The request for a mass deletion.
#[derive(Debug, Deserialize)]
struct Selection {
    last_updated_max: String,
}

impl Job {
    /// The id of its checkout, if it says one.
    fn checkout_id(&self) -> Option<&str> {
        let id = self.storage.as_ref()?.shaman_checkout_id.as_deref()?;
        Some(id).filter(|id| !id.is_empty())
    }

    /// Whether it may use a checkout or any part of it.
    fn may_use(&self, checkout: &CheckoutPath, paths: &JobPaths) -> bool {
        paths.may_use(self.checkout_id(), &self.settings, checkout)
    }

    /// Whether a mass deletion up to this time is about this job.
    fn is_older(&self, max: Timestamp) -> bool {
        let updated = self.updated.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
        self.delete_requested_at.is_none() && updated.is_some_and(|updated| updated <= max)
    }
}

/// The time up to which jobs go: the Manager compares with the next whole second.
fn until(text: &str) -> Result<Timestamp, jiff::Error> {
    let time: Timestamp = text.parse()?;
    time.round(TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil))
}

/// A job that goes, and the checkout that goes with it.
#[derive(Debug)]
struct Doomed {
    job: String,
    checkout: CheckoutPath,
}

/// Whether a request asks to remove files that farmhand did not create, too.
fn with_outputs(head: &Head) -> bool {
    let mut pairs = head.target.query().unwrap_or_default().split('&');
    pairs.any(|pair| pair == "with_outputs=true")
}

/// A request that deletes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    One,
    Many,
}

impl Deletion {
    pub fn of(head: &Head) -> Option<Self> {
        let name = head.target.path().strip_prefix(JOBS)?.strip_prefix('/')?;
        match name {
            _ if head.method != Method::DELETE || name.is_empty() || name.contains('/') => None,
            MASS => Some(Self::Many),
            _ => Some(Self::One),
        }
    }

    /// Passes the request on, and erases what goes with the jobs; also when the client does not
    /// wait for the answer.
    pub async fn pass(
        self,
        app: &App,
        gateway: &Arc<Gateway>,
        head: Head,
        body: Body,
    ) -> Result<axum::response::Response, NoAnswer> {
        let (answered, answer) = oneshot::channel();
        let (app, gateway) = (app.clone(), gateway.clone());
        let end = app.end.clone();
        app.exec.clone().spawn(async move {
            let work = async {
                let questions = Questions::new(&app, &gateway, &head).await;
                match self {
                    Self::One => one(&questions, head, body, answered).await,
                    Self::Many => many(&questions, head, body, answered).await,
                }
            };
            end.run_until_cancelled(work).await;
        });
        answer.await.unwrap_or_else(|_| Err(NoAnswer::Broken("this server is stopping".into())))
    }
}

type Answered = oneshot::Sender<Result<axum::response::Response, NoAnswer>>;

/// Asks the Manager on behalf of whoever deletes.
struct Questions<'a> {
    app: &'a App,
    gateway: &'a Gateway,
    headers: HeaderMap,
    paths: JobPaths,
    with_outputs: bool,
}

/// The headers of a request, for a question without a body.
fn questions(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
        header::RANGE,
    ] {
        headers.remove(name);
    }
    headers
}

impl<'a> Questions<'a> {
    async fn new(app: &'a App, gateway: &'a Gateway, head: &Head) -> Self {
        let with_outputs = with_outputs(head);
        Self { with_outputs, ..Self::with(app, gateway, questions(&head.headers)).await }
    }

    async fn with(app: &'a App, gateway: &'a Gateway, headers: HeaderMap) -> Self {
        let paths = gateway.job_paths(app).await;
        Self { app, gateway, headers, paths, with_outputs: false }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, target: &str) -> Result<T, String> {
        self.gateway.ask(Method::GET, target, self.headers.clone(), None).await
    }

    /// All jobs that are not being deleted.
    async fn jobs(&self) -> Result<Vec<Job>, String> {
        let Jobs { mut jobs } = self.ask(JOBS).await?;
        jobs.retain(|job| job.delete_requested_at.is_none());
        Ok(jobs)
    }

    /// The checkout of this storage that a job has, as a whole.
    async fn checkout(&self, job: &Job) -> Result<Option<CheckoutPath>, String> {
        let store = self.app.store.clone();
        let by_id = job.checkout_id().map(|id| self.paths.identified(id));
        let by_blend = job.settings[BLENDFILE].as_str().and_then(|text| self.paths.resolve(text));
        let find = move || match by_id {
            // The .blend does not replace an id of something else: its meaning is not certain.
            Some(Some(id)) => Ok(store.is_on_record(&id)?.then_some(id)),
            Some(None) => Ok(None),
            None => by_blend.map_or(Ok(None), |path| store.checkout_above(&path)),
        };
        let found = self.app.exec.blocking(find).await;
        found.map_err(|error| format!("{error}: {}", error.source))
    }

    /// What goes with this job, unless another one uses it.
    async fn doomed(&self, path: &str, job: Job) -> Result<Option<Doomed>, String> {
        let Some(checkout) = self.checkout(&job).await? else { return Ok(None) };
        let has_veto = job.checkout_id().is_some() && !self.paths.manager_erases_nothing();
        if has_veto {
            let Preview { shaman_checkout } = self.ask(&format!("{path}/{PREVIEW}")).await?;
            if !shaman_checkout {
                return Ok(None);
            }
        }
        Ok(Some(Doomed { job: job.id, checkout }))
    }

    async fn one(&self, path: &str) -> Result<Option<Doomed>, String> {
        let job = self.ask(path).await?;
        self.doomed(path, job).await
    }

    async fn many(&self, request: &[u8]) -> Result<Vec<Doomed>, String> {
        let selection: Selection =
            serde_json::from_slice(request).map_err(|error| format!("what is to go: {error}"))?;
        let max = until(&selection.last_updated_max)
            .map_err(|error| format!("until when it is to go: {error}"))?;
        let mut all = Vec::new();
        for job in self.jobs().await?.into_iter().filter(|job| job.is_older(max)) {
            // A name that would be another path is none that a Manager gives.
            if job.id.is_empty() || !job.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            {
                continue;
            }
            let path = format!("{JOBS}/{}", job.id);
            all.extend(self.doomed(&path, job).await?);
        }
        Ok(all)
    }

    /// Another job that may use what goes.
    fn other_user<'j>(&self, doomed: &Doomed, jobs: &'j [Job]) -> Option<&'j Job> {
        let mut others = jobs.iter().filter(|job| job.id != doomed.job);
        others.find(|job| job.may_use(&doomed.checkout, &self.paths))
    }
}

/// The path of the job of which this asks what its deletion would do.
pub(super) fn previewed_job(path: &str) -> Option<&str> {
    let job = path.strip_suffix(PREVIEW)?.strip_suffix('/')?;
    let name = job.strip_prefix(JOBS)?.strip_prefix('/')?;
    (!name.is_empty() && !name.contains('/')).then_some(job)
}

/// What the deletion of the job of this request does with a checkout of this storage, given what the
/// Manager says of it; nothing, if that need not be corrected, or is not known.
pub(super) async fn preview(
    app: &App,
    gateway: &Gateway,
    head: &Head,
    theirs: &Members<'_>,
) -> Option<String> {
    let path = previewed_job(head.target.path())?;
    let says = theirs.get("shaman_checkout").ok().flatten()?;
    let questions = Questions::new(app, gateway, head).await;
    // Then the Manager erases the checkout itself.
    if says == "true" && !questions.paths.manager_erases_nothing() {
        return None;
    }
    let preview = async {
        let Some(doomed) = questions.one(path).await? else { return Ok(None) };
        let jobs = questions.jobs().await?;
        if questions.other_user(&doomed, &jobs).is_some() {
            return Ok(None);
        }
        let (store, checkout) = (app.store.clone(), doomed.checkout);
        let options = EraseOptions { dry_run: true, ..EraseOptions::default() };
        match app.exec.compute(move || store.erase(&checkout, options)).await {
            Ok(erased) => Ok(Some(erased)),
            Err(EraseError::Disk(error)) => Err(format!("{error}: {}", error.source)),
            Err(_) => Ok(None),
        }
    };
    match preview.await {
        Ok(Some(erased)) => {
            let erased = serde_json::to_string(&erased).expect("BUG: a report is plain data");
            let told = theirs.with("shaman_checkout", "true");
            Some(Members::read(told.as_bytes())?.with("checkout", &erased))
        }
        Ok(None) => (says != "false").then(|| theirs.with("shaman_checkout", "false")),
        Err(reason) => {
            tracing::debug!(reason, "what a deletion would do is passed on as the Manager says it");
            None
        }
    }
}

async fn one(questions: &Questions<'_>, head: Head, body: Body, answered: Answered) {
    let path = head.target.path();
    let doomed = questions.one(path).await.unwrap_or_else(|reason| {
        not_certain(path, &reason);
        None
    });
    if send(questions, &head, body, answered).await {
        // It was about this one job, whatever the list says of it a moment later.
        erase_unused(questions, path, doomed.into_iter().collect(), |_, _| true).await;
    }
}

async fn many(questions: &Questions<'_>, mut head: Head, mut body: Body, answered: Answered) {
    let mut request = Vec::new();
    loop {
        match next_piece(&mut body, questions.app.options.body_timeout).await {
            Ok(Some(piece)) if request.len() + piece.len() <= MAX_REQUEST_BYTES => {
                request.extend_from_slice(&piece);
            }
            Ok(None) => break,
            Ok(Some(_)) => {
                let reason = format!("it is longer than {MAX_REQUEST_BYTES} bytes");
                let _ = answered.send(Err(NoAnswer::ClientBroken(reason)));
                return;
            }
            Err(error) => {
                let _ = answered.send(Err(NoAnswer::ClientBroken(error.to_string())));
                return;
            }
        }
    }
    let doomed = questions.many(&request).await.unwrap_or_else(|reason| {
        not_certain(head.target.path(), &reason);
        Vec::new()
    });
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(request.len()));
    if send(questions, &head, Body::from(request), answered).await {
        // Which of them it was about is for the Manager to say.
        let goes = |doomed: &Doomed, left: &[Job]| !left.iter().any(|job| job.id == doomed.job);
        erase_unused(questions, head.target.path(), doomed, goes).await;
    }
}

/// Erases what goes, given the jobs that stay, but for what one of those uses.
async fn erase_unused(
    questions: &Questions<'_>,
    path: &str,
    doomed: Vec<Doomed>,
    goes: impl Fn(&Doomed, &[Job]) -> bool,
) {
    if doomed.is_empty() {
        return;
    }
    let left = match questions.jobs().await {
        Ok(jobs) => jobs,
        Err(reason) => return not_certain(path, &reason),
    };
    for doomed in doomed.into_iter().filter(|doomed| goes(doomed, &left)) {
        match questions.other_user(&doomed, &left) {
            Some(other) => tracing::info!(
                checkout = %doomed.checkout, job = doomed.job, other = other.id,
                "not erased with its job: another one uses it"
            ),
            None => erase(questions, doomed).await,
        }
    }
}

/// Passes the request on, hands the answer over, and says whether it is done.
async fn send(questions: &Questions<'_>, head: &Head, body: Body, answered: Answered) -> bool {
    let body_timeout = questions.app.options.body_timeout;
    let answer = questions.gateway.send(head, body, body_timeout).await;
    let is_done = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
    let _ = answered.send(answer.map(passed));
    is_done
}

fn not_certain(path: &str, reason: &str) {
    tracing::warn!(
        reason,
        "no checkout is erased with DELETE {}: the Manager does not say which",
        hide_tokens(path)
    );
}

async fn erase(questions: &Questions<'_>, Doomed { job, checkout }: Doomed) {
    let (store, path) = (questions.app.store.clone(), checkout.clone());
    let options = EraseOptions { with_outputs: questions.with_outputs, ..EraseOptions::default() };
    match questions.app.exec.compute(move || store.erase(&path, options)).await {
        Ok(erased) => {
            tracing::info!(%checkout, job, files = erased.files, "erased with its job");
            erased.log_outputs();
        }
        Err(EraseError::Unknown(_)) => tracing::debug!(%checkout, job, "there is none to erase"),
        Err(error) => tracing::warn!(%checkout, job, %error, "not erased with its job"),
    }
}

/// A job of the Manager that has not ended and may use a checkout: its id, its name and its status.
///
/// # Errors
/// If the Manager does not say which jobs it has.
pub(in super::super) async fn live_user(
    app: &App,
    gateway: &Gateway,
    checkout: &CheckoutPath,
) -> Result<Option<(String, String, String)>, String> {
    let mut headers = HeaderMap::new();
    gateway.sign(&mut headers);
    let questions = Questions::with(app, gateway, headers).await;
    let ended = |job: &Job| matches!(job.status.as_str(), "completed" | "failed" | "canceled");
    let jobs = questions.jobs().await?;
    let user = jobs
        .into_iter()
        .find(|job| !ended(job) && job.may_use(checkout, &questions.paths))
        .map(|job| (job.id, job.name, job.status));
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deletes_jobs() {
        let deletion = |method: Method, path: &str| {
            let target = path.try_into().unwrap();
            Deletion::of(&Head { method, target, headers: HeaderMap::new() })
        };
        assert_eq!(deletion(Method::DELETE, "/api/v3/jobs/a-b?x"), Some(Deletion::One));
        assert_eq!(deletion(Method::DELETE, "/api/v3/jobs/mass-delete"), Some(Deletion::Many));
        for path in ["", "/", "/a/", "/a/blocklist", "x/a"] {
            assert_eq!(deletion(Method::DELETE, &format!("/api/v3/jobs{path}")), None, "{path}");
        }
        assert_eq!(deletion(Method::GET, "/api/v3/jobs/a"), None);
    }

    #[test]
    fn only_jobs_that_are_certainly_old_go() {
        // As the Manager has it: up to the whole second, and no further.
        let max = until("2024-12-31T23:59:59.000001Z").unwrap();
        assert_eq!(until("2025-01-01T01:00:00+01:00").unwrap(), max);
        let is_older = |more: &str| {
            let job: Job = serde_json::from_str(&format!(r#"{{"id":"a"{more}}}"#)).unwrap();
            job.is_older(max)
        };
        assert!(is_older(r#","updated":"2025-01-01T01:00:00+01:00""#));
        assert!(!is_older(r#","updated":"2025-01-01T00:00:01Z""#));
        assert!(!is_older(r#","updated":"soon""#) && !is_older(""));
        assert!(!is_older(r#","updated":"2024-01-01T00:00:00Z","delete_requested_at":"x""#));
    }
}
