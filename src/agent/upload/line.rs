//! What all uploads of a process share: how fast they may send, and whether they may at all.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{throttle::Throttle, timetable::Timetable};

/// With a limit, what is sent at once is what it allows in this time, so that no upload stands
/// still for long while the others have their turns.
const SLICES_A_SECOND: u64 = 4;

/// The least that is sent at once.
const SLICE_MIN_BYTES: usize = 1 << 10;

/// The way out, which all uploads of a process share: a limit on bytes a second, a stop for as long
/// as anybody wants it, and an account of what goes on.
#[derive(Debug)]
pub struct Line {
    throttle: Arc<Throttle>,
    holds: watch::Sender<Holds>,
    uploads: Mutex<BTreeMap<u64, Arc<Running>>>,
    begun: AtomicU64,
    sent_bytes: AtomicU64,
}

/// Guards that live now, and that ever lived.
#[derive(Debug, Default, Clone, Copy)]
struct Holds {
    now: usize,
    ever: u64,
}

/// While it lives, nothing more is sent. Dropping the last one wakes all uploads up.
#[derive(Debug)]
#[must_use = "it holds uploads back only as long as it lives"]
pub struct Hold {
    holds: watch::Sender<Holds>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.send_modify(|holds| holds.now -= 1);
    }
}

/// An upload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadNow {
    /// The file, below the folder that is sent.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// What has been handed to the connection.
    pub sent_bytes: u64,
    /// Since it began.
    pub elapsed: Duration,
}

#[derive(Debug)]
struct Running {
    path: String,
    size_bytes: u64,
    sent_bytes: AtomicU64,
    was_held: AtomicBool,
    began: Instant,
}

impl Default for Line {
    /// Without a limit.
    fn default() -> Self {
        Self::new(Timetable::default())
    }
}

impl Line {
    /// A line with these limits.
    pub fn new(limits: Timetable) -> Self {
        Self {
            throttle: Arc::new(Throttle::new(limits)),
            holds: watch::Sender::default(),
            uploads: Mutex::default(),
            begun: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// A line that keeps to the same limits together with this one, and is held, and accounts, for
    /// itself.
    pub fn branch(&self) -> Self {
        Self { throttle: self.throttle.clone(), ..Self::default() }
    }

    /// Stops everything until the guard is dropped: no upload begins, and those under way stop
    /// between two pieces. When this returns, no further byte is given to any connection; what
    /// these have already may still be on its way.
    pub fn hold(&self) -> Hold {
        self.holds.send_modify(|holds| {
            holds.now += 1;
            holds.ever += 1;
        });
        Hold { holds: self.holds.clone() }
    }

    /// Whether anybody holds it.
    pub fn is_held(&self) -> bool {
        self.holds.borrow().now > 0
    }

    /// How many bytes a second are allowed just now; `None`: without a limit.
    pub fn rate(&self) -> Option<u64> {
        self.throttle.rate()
    }

    /// The uploads under way, the oldest first.
    pub fn uploads(&self) -> Vec<UploadNow> {
        let now = |running: &Arc<Running>| UploadNow {
            path: running.path.clone(),
            size_bytes: running.size_bytes,
            sent_bytes: running.sent_bytes.load(Relaxed),
            elapsed: running.began.elapsed(),
        };
        self.running().values().map(now).collect()
    }

    /// All bytes of files that were ever sent through it; what was sent twice counts twice.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    /// How often it was held so far.
    pub(super) fn holds_ever(&self) -> u64 {
        self.holds.borrow().ever
    }

    /// Waits until nobody holds it.
    pub(super) async fn until_free(&self) {
        self.when_free(|| {}, || {}).await;
    }

    /// Begins an upload as soon as nobody holds the line.
    pub(super) async fn begin(self: &Arc<Self>, path: &str, size_bytes: u64) -> Upload {
        let begin = || {
            let running = Arc::new(Running {
                path: path.to_owned(),
                size_bytes,
                sent_bytes: AtomicU64::new(0),
                was_held: AtomicBool::new(false),
                began: Instant::now(),
            });
            let number = self.begun.fetch_add(1, Relaxed);
            self.running().insert(number, running.clone());
            Upload { line: self.clone(), number, running }
        };
        self.when_free(|| {}, begin).await
    }

    /// Does something while nobody holds the line, and nobody can begin to.
    async fn when_free<T>(&self, must_wait: impl Fn(), act: impl FnOnce() -> T) -> T {
        let mut holds = self.holds.subscribe();
        loop {
            {
                let holds = holds.borrow_and_update();
                if holds.now == 0 {
                    return act();
                }
            }
            must_wait();
            // The sender is ours: it cannot be gone.
            let _ = holds.changed().await;
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Running>>> {
        self.uploads.lock().expect("BUG: no one panics with this lock")
    }
}

/// An upload that has begun; it has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    line: Arc<Line>,
    number: u64,
    running: Arc<Running>,
}

impl Upload {
    /// Waits until so many bytes may be sent, and counts them as sent.
    pub async fn pass(&self, bytes: u64) {
        self.line.throttle.take(bytes).await;
        let must_wait = || self.running.was_held.store(true, Relaxed);
        let count = || {
            self.line.sent_bytes.fetch_add(bytes, Relaxed);
            self.running.sent_bytes.fetch_add(bytes, Relaxed);
        };
        self.line.when_free(must_wait, count).await;
    }

    /// How much to ask for at once.
    pub fn slice_bytes(&self) -> usize {
        match self.line.rate() {
            None => usize::MAX,
            Some(rate) => {
                usize::try_from(rate / SLICES_A_SECOND).unwrap_or(usize::MAX).max(SLICE_MIN_BYTES)
            }
        }
    }

    /// Whether it was stopped by somebody who holds the line. Whatever became of it then says
    /// nothing about the server.
    pub fn was_held(&self) -> bool {
        self.running.was_held.load(Relaxed)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.line.running().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// So many uploads that send all the time, 1000 bytes each millisecond.
    async fn busy(line: &Arc<Line>, uploads: usize) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for number in 0..uploads {
            let upload = line.begin(&format!("file {number}"), 1 << 40).await;
            tasks.spawn(async move {
                loop {
                    upload.pass(1000).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        tasks
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_held_nothing_is_sent_and_nothing_begins() {
        let line = Arc::new(Line::default());
        let mut tasks = busy(&line, 4).await;
        let (one, other) = (line.hold(), line.hold());
        let sent = line.sent_bytes();
        assert!(sent >= 1_000_000, "{sent}");
        let beginning = tokio::spawn({
            let line = line.clone();
            async move { line.begin("another", 1).await }
        });
        tokio::time::sleep(HOUR).await;
        drop(one);
        tokio::time::sleep(HOUR).await;
        assert!(line.is_held() && line.sent_bytes() == sent && !beginning.is_finished());
        assert_eq!(line.uploads().len(), 4);
        drop(other);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!line.is_held() && line.sent_bytes() >= 2 * sent - 10_000);
        let another = beginning.await.unwrap();
        assert!(!another.was_held());
        assert_eq!(line.uploads().last().unwrap().path, "another");
        drop(another);
        tasks.shutdown().await;
        assert_eq!(line.uploads(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_knows_that_it_was_stopped() {
        let line = Arc::new(Line::default());
        let upload = line.begin("file", 10).await;
        drop(line.hold());
        upload.pass(4).await;
        assert!(!upload.was_held());
        let hold = line.hold();
        let passing = tokio::time::timeout(HOUR, upload.pass(4)).await;
        assert!(passing.is_err() && upload.was_held());
        drop(hold);
        assert_eq!((line.holds_ever(), line.uploads()[0].sent_bytes, line.sent_bytes()), (2, 4, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn with_the_lowest_limit_many_uploads_all_move() {
        let line = Arc::new(Line::new("1KiB/s".parse().unwrap()));
        assert_eq!(line.rate(), Some(1024));
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let upload = line.begin("file", 1 << 20).await;
            tasks.spawn(async move {
                loop {
                    let asked = tokio::time::Instant::now();
                    upload.pass(upload.slice_bytes().min(256 * 1024) as u64).await;
                    // Servers wait for a minute.
                    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
                }
            });
        }
        tokio::time::sleep(HOUR).await;
        assert!(tasks.try_join_next().is_none(), "one of them has panicked");
        let sent = line.sent_bytes();
        assert!((3590 * 1024..3610 * 1024).contains(&sent), "{sent}");
    }
}
