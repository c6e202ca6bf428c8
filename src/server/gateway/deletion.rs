//! Jobs that are deleted take their checkouts with them: the Manager would erase those of its own
//! Shaman, and knows nothing of ours. Whatever cannot be found out for certain erases nothing.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, header},
};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::{Deserialize, de::IgnoredAny};
use tokio::sync::oneshot;

use super::{
    super::{App, body::next_piece},
    Gateway, Head, NoAnswer, passed,
};
use crate::{
    domain::CheckoutPath,
    store::{EraseError, EraseOptions},
    wire::hide_tokens,
};

/// Where the Manager has its jobs.
const JOBS: &str = "/api/v3/jobs";

/// The name that no job has.
const MASS: &str = "mass-delete";

/// The longest request for a mass deletion.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// What of a job is looked at.
#[derive(Debug, Deserialize)]
struct Job {
    id: String,
    updated: Option<String>,
    storage: Option<Storage>,
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
    fn checkout(&self) -> Option<CheckoutPath> {
        self.storage.as_ref()?.shaman_checkout_id.as_ref()?.parse().ok()
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
                let questions = Questions { gateway: &gateway, headers: questions(&head.headers) };
                match self {
                    Self::One => one(&app, &questions, head, body, answered).await,
                    Self::Many => many(&app, &questions, head, body, answered).await,
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
    gateway: &'a Gateway,
    headers: HeaderMap,
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

impl Questions<'_> {
    async fn jobs(&self) -> Result<Vec<Job>, String> {
        let Jobs { jobs } = self.gateway.ask(JOBS, self.headers.clone()).await?;
        Ok(jobs)
    }

    /// What goes with this job, if the Manager says that its checkout does.
    async fn doomed(&self, path: &str, job: Job) -> Result<Option<Doomed>, String> {
        let Some(checkout) = job.checkout() else { return Ok(None) };
        let target = format!("{path}/what-would-delete-do");
        let Preview { shaman_checkout } = self.gateway.ask(&target, self.headers.clone()).await?;
        Ok(shaman_checkout.then_some(Doomed { job: job.id, checkout }))
    }

    async fn one(&self, path: &str) -> Result<Option<Doomed>, String> {
        let job = self.gateway.ask(path, self.headers.clone()).await?;
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
}

async fn one(app: &App, questions: &Questions<'_>, head: Head, body: Body, answered: Answered) {
    let path = head.target.path();
    let doomed = questions.one(path).await.unwrap_or_else(|reason| {
        not_certain(path, &reason);
        None
    });
    if send(app, questions.gateway, &head, body, answered).await {
        // It was about this one job, whatever the list says of it a moment later.
        erase_unused(app, questions, path, doomed.into_iter().collect(), |_, _| true).await;
    }
}

async fn many(
    app: &App,
    questions: &Questions<'_>,
    mut head: Head,
    mut body: Body,
    answered: Answered,
) {
    let mut request = Vec::new();
    loop {
        match next_piece(&mut body, app.options.body_timeout).await {
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
    if send(app, questions.gateway, &head, Body::from(request), answered).await {
        // Which of them it was about is for the Manager to say.
        let goes = |doomed: &Doomed, left: &[Job]| !left.iter().any(|job| job.id == doomed.job);
        erase_unused(app, questions, head.target.path(), doomed, goes).await;
    }
}

/// Erases what goes, given the jobs that stay, but for what one of those uses.
async fn erase_unused(
    app: &App,
    questions: &Questions<'_>,
    path: &str,
    doomed: Vec<Doomed>,
    goes: impl Fn(&Doomed, &[Job]) -> bool,
) {
    if doomed.is_empty() {
        return;
    }
    let left = match questions.jobs().await {
        Ok(mut jobs) => {
            jobs.retain(|job| job.delete_requested_at.is_none());
            jobs
        }
        Err(reason) => return not_certain(path, &reason),
    };
    for doomed in doomed.into_iter().filter(|doomed| goes(doomed, &left)) {
        let uses =
            |job: &&Job| job.id != doomed.job && job.checkout().as_ref() == Some(&doomed.checkout);
        match left.iter().find(uses) {
            Some(other) => tracing::info!(
                checkout = %doomed.checkout, job = doomed.job, other = other.id,
                "not erased with its job: another one uses it"
            ),
            None => erase(app, doomed).await,
        }
    }
}

/// Passes the request on, hands the answer over, and says whether it is done.
async fn send(app: &App, gateway: &Gateway, head: &Head, body: Body, answered: Answered) -> bool {
    let answer = gateway.send(head, body, app.options.body_timeout).await;
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

async fn erase(app: &App, Doomed { job, checkout }: Doomed) {
    let (store, path) = (app.store.clone(), checkout.clone());
    match app.exec.compute(move || store.erase(&path, EraseOptions::default())).await {
        Ok(erased) => {
            tracing::info!(%checkout, job, files = erased.files, "erased with its job");
            erased.log_outputs();
        }
        Err(EraseError::Unknown(_)) => tracing::debug!(%checkout, job, "there is none to erase"),
        Err(error) => tracing::warn!(%checkout, job, %error, "not erased with its job"),
    }
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
