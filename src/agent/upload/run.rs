//! Acts on the plan: so many uploads at once, until nothing is left.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{task::JoinSet, time::Instant};

use super::{
    pace::WINDOW,
    plan::{Outcome, Patience, Plan, Step},
    send::{Sent, send},
};
use crate::{
    agent::sync::{Options, SyncError},
    client::{ClientError, Shaman, UploadOutcome},
    domain::{BlobId, BlobStatus, RelPath},
    exec::Exec,
    meter::Progress,
    scan::ScannedFile,
};

/// What all uploads of a job share.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub client: Shaman,
    /// The folder that the files are in.
    pub root: PathBuf,
    pub exec: Exec,
    pub progress: Arc<Progress>,
    pub options: Options,
    /// What was given to connections so far.
    pub sent_bytes: AtomicU64,
}

/// What was done. Blobs that are not stored now are those whose files are `doubtful`.
#[derive(Debug, Default)]
pub(in crate::agent) struct Ended {
    pub uploaded_blobs: u64,
    pub uploaded_bytes: u64,
    pub deferrals: u64,
    pub retries: u64,
    /// Files to hash again, and what the server said if it was the one to doubt them.
    pub doubtful: Vec<(RelPath, Option<String>)>,
}

/// What a task says at its end.
type Report = Result<(BlobId, Told), ClientError>;

enum Told {
    Outcome(UploadOutcome),
    Status(BlobStatus),
    Changed,
    Interrupted,
}

/// Sends these blobs, each from any of its files.
pub(in crate::agent) async fn run(
    job: Arc<Job>,
    blobs: Vec<(BlobId, Vec<ScannedFile>)>,
) -> Result<Ended, SyncError> {
    let patience = Patience { retries: job.options.retries, defer: job.options.defer };
    let ids = blobs.iter().map(|(id, _)| *id);
    let mut plan = Plan::new(ids, patience, job.options.uploads, fastrand::u64(..));
    let mut sources: HashMap<BlobId, Vec<ScannedFile>> = blobs.into_iter().collect();
    let mut ended = Ended::default();
    let mut tasks: JoinSet<Report> = JoinSet::new();
    let start = Instant::now();
    let line = &job.options.line;
    let mut holds = line.holds_ever();
    loop {
        let holds_before = std::mem::replace(&mut holds, line.holds_ever());
        let disturbed = line.is_held() || holds != holds_before;
        plan.look(start.elapsed(), job.sent_bytes.load(Relaxed), disturbed);
        let wake = loop {
            match plan.next(start.elapsed()) {
                Step::Send { id, may_defer } => {
                    let source = sources[&id].last().cloned();
                    let source = source.expect("BUG: a blob without a source is not planned");
                    let job = job.clone();
                    tasks.spawn(async move {
                        Ok((
                            id,
                            match send(&job, id, &source, may_defer).await? {
                                Sent::Outcome(outcome) => Told::Outcome(outcome),
                                Sent::Changed => Told::Changed,
                                Sent::Interrupted => Told::Interrupted,
                            },
                        ))
                    });
                }
                Step::Ask(id) => {
                    let job = job.clone();
                    tasks.spawn(async move {
                        // Not even that: what fails meanwhile would count.
                        job.options.line.until_free().await;
                        Ok((id, ask(&job.client, &id).await?))
                    });
                }
                Step::WaitUntil(time) => {
                    break start + time;
                }
                // Or to look again.
                Step::WaitForOutcome => break Instant::now() + WINDOW,
                Step::Done => {
                    ended.deferrals = plan.deferrals;
                    ended.retries = plan.retries;
                    return Ok(ended);
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            Some(report) = tasks.join_next() => {
                let (id, told) = report.map_err(|error| SyncError::Bug(error.to_string()))??;
                let outcome = note(&job, id, told, &mut sources, &mut ended);
                plan.report(id, outcome, start.elapsed(), fastrand::f64()).map_err(|exhausted| {
                    SyncError::Exhausted {
                        path: sources[&exhausted.id].last().map(|file| file.path.to_string()),
                        url: job.client.url().to_string(),
                        reason: exhausted.reason,
                        reached: exhausted.reached,
                    }
                })?;
            }
        }
    }
}

/// Asks once: when to ask again is for the plan to say.
async fn ask(client: &Shaman, id: &BlobId) -> Result<Told, ClientError> {
    match client.status_once(id).await {
        Ok(status) => Ok(Told::Status(status)),
        Err(error) if error.is_transient() => {
            let lost = matches!(error, ClientError::Unreachable { .. }) || error.is_gateway();
            let reason = error.to_string();
            Ok(Told::Outcome(UploadOutcome::Later { reason, pause: None, reached: !lost }))
        }
        Err(error) => Err(error),
    }
}

/// Counts what was done, and says what the plan needs to know of it.
fn note(
    job: &Job,
    id: BlobId,
    told: Told,
    sources: &mut HashMap<BlobId, Vec<ScannedFile>>,
    ended: &mut Ended,
) -> Outcome {
    let doubt = match told {
        Told::Status(BlobStatus::Stored) => {
            job.progress.add_bytes(id.size_bytes);
            job.progress.add_files(1);
            return Outcome::Status(BlobStatus::Stored);
        }
        Told::Status(status) => return Outcome::Status(status),
        Told::Outcome(UploadOutcome::Stored) => {
            ended.uploaded_blobs += 1;
            ended.uploaded_bytes += id.size_bytes;
            job.progress.add_files(1);
            return Outcome::Stored;
        }
        Told::Outcome(UploadOutcome::AlreadyStored) => {
            job.progress.add_files(1);
            return Outcome::Stored;
        }
        Told::Outcome(UploadOutcome::Deferred) => return Outcome::Deferred,
        Told::Outcome(UploadOutcome::Unknown(reason)) => return Outcome::Unknown(reason),
        Told::Outcome(UploadOutcome::Later { reason, pause, reached }) => {
            return Outcome::Later { reason, pause, reached };
        }
        Told::Interrupted => return Outcome::Interrupted,
        Told::Outcome(UploadOutcome::Rejected(reason)) => Some(reason),
        Told::Changed => None,
    };
    let files = sources.get_mut(&id).expect("BUG: only planned blobs are reported");
    let file = files.pop().expect("BUG: it was just sent from");
    tracing::debug!("{} is not what was hashed", file.path);
    ended.doubtful.push((file.path, doubt));
    // Another file may have the same content.
    if files.is_empty() { Outcome::NoSource } else { Outcome::OtherSource }
}
