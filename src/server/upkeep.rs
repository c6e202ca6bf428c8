//! What is done in the background: garbage collection, scrubbing, and stalled temp files.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{App, Job};
use crate::disk::DiskError;
use crate::store::{GcError, GcOptions, History, ScrubError, ScrubOptions, Work};

/// What is done in the background, and when.
#[derive(Debug, Clone, Copy)]
pub struct Upkeep {
    /// How long a blob must not have been needed before garbage collection may remove it.
    pub max_age: Duration,
    /// How often garbage is collected.
    pub gc_every: Option<Duration>,
    /// How often the whole store is read again.
    pub scrub_every: Option<Duration>,
    /// How fast that is done, in bytes per second.
    pub scrub_rate: u64,
    /// How long nothing of this is done after the start.
    pub quiet_start: Duration,
}

impl Default for Upkeep {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            // As Flamenco's own.
            max_age: 31 * DAY,
            gc_every: Some(DAY),
            scrub_every: Some(7 * DAY),
            scrub_rate: 20 << 20,
            quiet_start: Duration::from_secs(600),
        }
    }
}

/// How long a temp file must not have been written to. Uploads that stand still are broken off
/// much earlier.
const STALLED_FOR: Duration = Duration::from_secs(86_400);

/// How long what has come of an unfinished blob is kept when nobody goes on with it: over a weekend.
const UNFINISHED_FOR: Duration = Duration::from_secs(3 * 86_400);

/// How often it is looked whether those who send blobs in pieces are still there.
const LOOK_FOR_SILENT: Duration = Duration::from_secs(1);

/// How often they are looked for, and how long upkeep rests after it was stopped or has failed.
const HOUR: Duration = Duration::from_secs(3600);

/// How long the scrub in the background gives way to another one.
const GIVES_WAY: Duration = Duration::from_secs(60);

/// The scrub that goes on in the background, if there is one.
#[derive(Debug, Default)]
pub(super) struct Background(Mutex<Option<Arc<Work>>>);

impl Background {
    /// Has it stop soon. Whether there is one.
    pub fn give_way(&self) -> bool {
        let work = self.0.lock().expect("BUG: no one panics with this lock");
        work.as_ref().inspect(|work| work.stop()).is_some()
    }

    fn begin(&self) -> Arc<Work> {
        let work = Arc::new(Work::default());
        self.set(Some(work.clone()));
        work
    }

    fn set(&self, work: Option<Arc<Work>>) {
        *self.0.lock().expect("BUG: no one panics with this lock") = work;
    }
}

/// Notes that a job has succeeded just now.
pub(super) fn succeeded(app: &App, job: Job) {
    app.metrics.succeeded(job);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut history = app.history.lock().expect("BUG: no one panics with this lock");
    match job {
        Job::Gc => history.gc_s = Some(now),
        Job::Scrub => history.scrub_s = Some(now),
        Job::TempCleanup => return,
    }
    if let Err(error) = app.store.remember(&history) {
        tracing::warn!("{error}: {}", error.source);
    }
}

/// Notes what is known to have succeeded before this server began.
pub(super) fn recall(app: &App) {
    // Opening a store removes what an earlier process left.
    app.metrics.succeeded(Job::TempCleanup);
    let history = app.history.lock().expect("BUG: no one panics with this lock");
    for (job, seconds) in [(Job::Gc, history.gc_s), (Job::Scrub, history.scrub_s)] {
        if let Some(seconds) = seconds {
            app.metrics.succeeded_at(job, seconds as f64);
        }
    }
}

/// Does all of it until the server is to stop.
pub(super) async fn run(app: App) {
    tokio::join!(count(&app), collect(&app), scrub(&app), clean(&app), index(&app), give_up(&app));
}

/// Waits; `Err` if the server is to stop.
async fn rest(app: &App, time: Duration) -> Result<(), ()> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = app.shutdown.cancelled() => Err(()),
    }
}

/// How long until a job is due that last succeeded then.
fn due_in(last_s: Option<u64>, every: Duration) -> Duration {
    let last = last_s.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    let since = last.and_then(|last| SystemTime::now().duration_since(last).ok());
    since.map_or(Duration::ZERO, |since| every.saturating_sub(since))
}

async fn until_due(
    app: &App,
    every: Duration,
    last: impl Fn(&History) -> Option<u64>,
) -> Result<(), ()> {
    let last = last(&app.history.lock().expect("BUG: no one panics with this lock"));
    rest(app, due_in(last, every)).await
}

/// Runs an operation that stops with the server.
async fn with_work<T: Send + 'static>(
    app: &App,
    work: Arc<Work>,
    operation: impl FnOnce(&Work) -> T + Send + 'static,
) -> T {
    let stop = work.clone();
    let running = app.exec.blocking(move || operation(&work));
    tokio::pin!(running);
    tokio::select! {
        done = &mut running => return done,
        () = app.shutdown.cancelled() => stop.stop(),
    }
    running.await
}

/// Counts what is stored, for the metrics.
async fn count(app: &App) {
    let store = app.store.clone();
    if let Err(error) = with_work(app, Arc::default(), move |work| store.count(work)).await {
        tracing::warn!("the metrics lack what is stored: {error}: {}", error.source);
    }
}

async fn collect(app: &App) -> Option<()> {
    let every = app.options.upkeep.gc_every?;
    rest(app, app.options.upkeep.quiet_start).await.ok()?;
    loop {
        until_due(app, every, |history| history.gc_s).await.ok()?;
        let options = GcOptions {
            dry_run: false,
            max_age: app.options.upkeep.max_age,
            threads: 1,
            gentle: true,
        };
        let store = app.store.clone();
        let done = with_work(app, Arc::default(), move |work| store.gc(options, work)).await;
        let pause = match done {
            Ok(report) => {
                tracing::info!(
                    stored = report.stored.blobs,
                    removed = report.removed.blobs,
                    removed_bytes = report.removed.bytes,
                    failed = report.failed,
                    "garbage collected"
                );
                for error in &report.errors {
                    tracing::error!("garbage stays: {error}");
                }
                succeeded(app, Job::Gc);
                // Whatever the clock says.
                every.min(HOUR)
            }
            Err(GcError::Stopped) => return None,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                tracing::error!("no garbage was collected: {error}{}", cause.unwrap_or_default());
                HOUR
            }
        };
        rest(app, pause).await.ok()?;
    }
}

async fn scrub(app: &App) -> Option<()> {
    let every = app.options.upkeep.scrub_every?;
    rest(app, app.options.upkeep.quiet_start).await.ok()?;
    loop {
        until_due(app, every, |history| history.scrub_s).await.ok()?;
        let options = ScrubOptions {
            rate: Some(app.options.upkeep.scrub_rate),
            from_start: false,
            threads: 1,
            gentle: true,
        };
        let (store, work) = (app.store.clone(), app.background_scrub.begin());
        let done = with_work(app, work, move |work| store.scrub(options, work)).await;
        app.background_scrub.set(None);
        let pause = match done {
            Ok(report) if report.complete => {
                tracing::info!(
                    blobs = report.read.blobs,
                    bytes = report.read.bytes,
                    quarantined = report.quarantined.len(),
                    unreadable = report.unreadable.len(),
                    "scrubbed"
                );
                succeeded(app, Job::Scrub);
                every.min(HOUR)
            }
            Ok(_) | Err(ScrubError::Busy) => GIVES_WAY,
            Err(ScrubError::Disk(error)) => {
                tracing::error!("the scrub broke off: {error}: {}", error.source);
                HOUR
            }
        };
        rest(app, pause).await.ok()?;
    }
}

/// Indexes the chunks of what is stored, whenever there is something new.
async fn index(app: &App) -> Option<()> {
    loop {
        tokio::select! {
            () = app.store.index_is_behind() => {}
            () = app.shutdown.cancelled() => return None,
        }
        let store = app.store.clone();
        if let Err(error) = with_work(app, Arc::default(), move |work| store.index(work)).await {
            tracing::warn!("chunks are not all indexed: {error}: {}", error.source);
            rest(app, HOUR).await.ok()?;
        }
    }
}

/// Gives up blobs whose senders have gone, so that others need not wait for them.
async fn give_up(app: &App) -> Option<()> {
    loop {
        rest(app, LOOK_FOR_SILENT).await.ok()?;
        if app.store.has_unfinished() {
            let store = app.store.clone();
            app.exec.blocking(move || store.give_up_silent()).await;
        }
    }
}

async fn clean(app: &App) -> Option<()> {
    loop {
        rest(app, HOUR).await.ok()?;
        let store = app.store.clone();
        let remove = move || -> Result<u64, DiskError> {
            Ok(store.remove_stalled(STALLED_FOR)? + store.forget_unfinished(UNFINISHED_FOR)?)
        };
        match app.exec.blocking(remove).await {
            Ok(removed) => {
                if removed > 0 {
                    tracing::warn!(removed, "removed temp files of uploads that have ended");
                }
                succeeded(app, Job::TempCleanup);
            }
            Err(error) => tracing::error!("{error}: {}", error.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_due_when_its_time_has_passed_or_was_never() {
        let every = Duration::from_secs(1000);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(due_in(None, every), Duration::ZERO);
        assert_eq!(due_in(Some(now - 2000), every), Duration::ZERO);
        let left = due_in(Some(now - 400), every).as_secs();
        assert!((590..=600).contains(&left), "{left}");
        // A clock that was set back does not keep it from being done.
        assert_eq!(due_in(Some(now + 100_000), every), Duration::ZERO);
    }
}
