//! The one door between async and blocking code. (What a store in memory does at once needs none.)

use std::{panic, sync::Arc};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Runs blocking work on threads of its own, and knows what still runs.
#[derive(Debug, Clone)]
pub struct Exec {
    tracker: TaskTracker,
    cpu: Arc<Semaphore>,
}

impl Default for Exec {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { tracker: TaskTracker::new(), cpu: Arc::new(Semaphore::new(2 * cores)) }
    }
}

impl Exec {
    /// Runs work that mostly waits, for a disk or for a client. The caller bounds how much of it there is.
    /// It runs to its end even if the future is dropped. A panic in it goes on here.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.tracker.spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(payload) => panic::resume_unwind(payload),
                // Only a runtime that is being dropped cancels blocking work before it starts.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Runs work that keeps a core busy; only so much of it at once as there are cores for it.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let permit = self.cpu.clone().acquire_owned().await.expect("BUG: never closed");
        self.blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    }

    /// Runs a task that must come to its end before the process does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Waits until everything has come to its end. Nothing new may be started any more.
    pub async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
