//! Acts on the plan: so many uploads at once, until nothing is left.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{task::JoinSet, time::Instant};

use super::{
    batch::send_batch,
    buffers::Buffers,
    pace::WINDOW,
    plan::{Outcome, Patience, Plan, Step},
    send::{Sent, send},
    way::{Chooser, MODES, Mode},
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
    pub buffers: Buffers,
    pub progress: Arc<Progress>,
    pub options: Options,
    /// What was given to connections so far, but for heads of requests.
    pub sent_bytes: AtomicU64,
    /// What the server does not mix up with those of another job: letters and digits.
    pub sender: String,
    pub tally: Tally,
    /// Blobs that were begun in pieces, and in which way.
    pub begun: Mutex<HashMap<BlobId, Mode>>,
    pub chooser: Mutex<Chooser>,
}

impl Job {
    pub fn begun(&self) -> MutexGuard<'_, HashMap<BlobId, Mode>> {
        self.begun.lock().expect("BUG: no one panics with this lock")
    }

    pub fn chooser(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().expect("BUG: no one panics with this lock")
    }
}

/// In which way how much was sent.
#[derive(Debug, Default)]
pub(in crate::agent) struct Tally {
    /// What did not have to be sent of blobs, because the server had it.
    pub reused_bytes: AtomicU64,
    /// By [`MODES`]: blobs, and their bytes.
    modes: [(AtomicU64, AtomicU64); MODES.len()],
}

impl Tally {
    pub fn count(&self, mode: Mode, size_bytes: u64) {
        let (blobs, bytes) = &self.modes[mode as usize];
        blobs.fetch_add(1, Relaxed);
        bytes.fetch_add(size_bytes, Relaxed);
    }

    /// Blobs and bytes that were sent in a way.
    pub fn of(&self, mode: Mode) -> (u64, u64) {
        let (blobs, bytes) = &self.modes[mode as usize];
        (blobs.load(Relaxed), bytes.load(Relaxed))
    }
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

/// What a task says at its end: of one blob, or of many.
type Report = Result<Vec<(BlobId, Told)>, ClientError>;

enum Told {
    Outcome(UploadOutcome),
    Status(BlobStatus),
    Changed,
    Interrupted,
}

impl From<Sent> for Told {
    fn from(sent: Sent) -> Self {
        match sent {
            Sent::Outcome(outcome) => Self::Outcome(outcome),
            Sent::Changed => Self::Changed,
            Sent::Interrupted => Self::Interrupted,
        }
    }
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
            let step = match plan.next(start.elapsed()) {
                // As far as the server knows, somebody is sending it: we are. To begin again tells more.
                Step::Ask(id) if job.begun().contains_key(&id) => {
                    Step::Send { id, may_defer: true }
                }
                step => step,
            };
            match step {
                Step::Send { id, may_defer } => {
                    let source = |id: &BlobId| {
                        let source = sources[id].last().cloned();
                        source.expect("BUG: a blob without a source is not planned")
                    };
                    let batch = job.chooser().batch().filter(|_| may_defer);
                    let riders = plan.riders(&id, batch);
                    let job = job.clone();
                    if riders.is_empty() {
                        let source = source(&id);
                        tasks.spawn(async move {
                            Ok(vec![(id, send(&job, id, &source, may_defer).await?.into())])
                        });
                    } else {
                        let blobs: Vec<_> =
                            std::iter::once(id).chain(riders).map(|id| (id, source(&id))).collect();
                        tasks.spawn(async move {
                            let sent = send_batch(&job, blobs).await?.into_iter();
                            Ok(sent.map(|(id, sent)| (id, sent.into())).collect())
                        });
                    }
                }
                Step::Ask(id) => {
                    let job = job.clone();
                    tasks.spawn(async move {
                        // Not even that: what fails meanwhile would count.
                        job.options.line.until_free().await;
                        Ok(vec![(id, ask(&job.client, &id).await?)])
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
                for (id, told) in report.map_err(|error| SyncError::Bug(error.to_string()))?? {
                    let outcome = note(&job, id, told, &mut sources, &mut ended);
                    let reported = plan.report(id, outcome, start.elapsed(), fastrand::f64());
                    reported.map_err(|exhausted| SyncError::Exhausted {
                        path: sources[&exhausted.id].last().map(|file| file.path.to_string()),
                        url: job.client.url().to_string(),
                        reason: exhausted.reason,
                        reached: exhausted.reached,
                    })?;
                }
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
