//! What the system tells of changes in a folder: hints, and that some were lost. A thin shell
//! around inotify, and around `notify` on other systems.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

#[cfg(target_os = "linux")]
use super::inotify::Watcher;
#[cfg(not(target_os = "linux"))]
use super::native::Watcher;
use crate::disk::{DirectoryId, Mounts};

/// More paths than this are not told apart: then it is "much".
const MAX_PATHS: usize = 256;

/// How long an event may be on its way before nothing is concluded from events.
const EVENT_DELAY: Duration = Duration::from_secs(3);

/// How often watches are added again if events were lost meanwhile.
const MAX_PASSES: usize = 3;

/// Why everything is looked at after a change of the mount table.
pub(super) const MOUNTED: &str = "a disk was mounted or unmounted";

/// What has been heard since it was last asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Paths that have changed.
    pub paths: Vec<PathBuf>,
    /// There were more than are listed.
    pub more: bool,
    /// Why anything may have changed, if so.
    pub lost: Option<String>,
    /// How many events that is in all since the start.
    pub count: u64,
}

impl Heard {
    pub fn is_nothing(&self) -> bool {
        self.paths.is_empty() && !self.more && self.lost.is_none()
    }
}

/// Where events are put, and are waited for.
#[derive(Debug, Default)]
pub(super) struct Ear {
    heard: Mutex<Heard>,
    count: AtomicU64,
    /// How often events were lost. Changes only while `heard` is locked.
    losses: AtomicU64,
    /// How many events the system has delivered, those of marks and of no consequence included.
    received: AtomicU64,
    pub wake: Notify,
    /// The number of the last mark that has come back.
    mark: watch::Sender<u64>,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there were so far.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// What was heard, once.
    pub fn take(&self) -> Heard {
        let mut heard = self.heard();
        let count = self.count();
        Heard { count, ..std::mem::take(&mut *heard) }
    }

    /// Something has changed, it is not known what.
    pub fn lose(&self, reason: impl Into<String>) {
        self.note(|heard| {
            self.losses.fetch_add(1, Relaxed);
            heard.lost = Some(reason.into());
        });
    }

    /// How often events were lost so far.
    fn losses(&self) -> u64 {
        self.losses.load(Relaxed)
    }

    /// Forgets what was heard, for a scan of everything that is about to begin; unless events were
    /// lost since there were this many losses.
    fn forget(&self, losses: u64) {
        let mut heard = self.heard();
        if self.losses() == losses {
            *heard = Heard::default();
        }
    }

    /// Something in the folder may not be what it was taken for.
    pub fn stir(&self) {
        self.note(|heard| heard.more = true);
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard();
        self.count.fetch_add(1, Relaxed);
        change(&mut heard);
        drop(heard);
        self.wake.notify_one();
    }

    /// Something happened at this path. Called by the thread that reads events, which must not
    /// wait.
    pub fn note_path(&self, path: PathBuf) {
        self.note(|heard| match heard.paths.len() {
            _ if heard.paths.last() == Some(&path) => {}
            MAX_PATHS.. => heard.more = true,
            _ => heard.paths.push(path),
        });
    }

    /// Something happened in the directory of marks.
    pub fn mark(&self, path: &Path) {
        let number = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            self.mark.send_if_modified(|last| {
                let is_new = *last < number;
                *last = number.max(*last);
                is_new
            });
        }
    }

    /// The system has delivered an event.
    pub fn receive(&self) {
        self.received.fetch_add(1, Relaxed);
    }
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
// Other systems have no such limits.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(super) enum NoEvents {
    /// The limit of directories that a user may watch is reached.
    #[error("the limit of watched directories is reached")]
    Watches,
    /// The limit of watchers that a user may have is reached, or that of open files.
    #[error("the limit of watchers is reached")]
    Watchers,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// A watch of one folder and all below. Dropped, it ends, which may take a while.
#[derive(Debug)]
pub(super) struct Events {
    watcher: Arc<Watcher>,
    root: PathBuf,
    /// What is watched is this directory, whatever becomes of its name.
    identity: DirectoryId,
    /// The file systems that are watched. A watch does not follow into one that is mounted later.
    mounts: Mounts,
    ear: Arc<Ear>,
    /// Losses before the watch was complete.
    losses: u64,
    marks: Arc<Marks>,
}

/// A directory of our own, watched by the same watcher. Events come in the order in which things
/// happened, so what is made here comes back after all that happened before.
#[derive(Debug)]
struct Marks {
    dir: PathBuf,
    next: AtomicU64,
    ear: Arc<Ear>,
}

impl Events {
    /// Begins to watch a folder, whose path has no links in it. Takes its time: one call for each
    /// directory. `mounts` are those of the folder, read just before.
    pub async fn start(
        root: &Path,
        marks: &Path,
        mounts: Mounts,
        ear: Arc<Ear>,
    ) -> Result<Self, NoEvents> {
        let (root, marks) = (root.to_owned(), marks.to_owned());
        let other = |error: io::Error| NoEvents::Other(error.to_string());
        let identify = |root: &Path| match DirectoryId::of(root) {
            Ok((identity, _)) => Ok(identity),
            Err(error) => Err(NoEvents::Other(error.to_string())),
        };
        let begun = blocking({
            let ear = ear.clone();
            move || {
                fs::create_dir_all(&marks).map_err(other)?;
                let marks = marks.canonicalize().map_err(other)?;
                let identity = identify(&root)?;
                let watcher = Arc::new(Watcher::new(&root, &marks, &mounts, ear.clone())?);
                let next = AtomicU64::new(*ear.mark.borrow());
                let marks = Arc::new(Marks { dir: marks, next, ear: ear.clone() });
                let losses = ear.losses();
                Ok(Self { watcher, root, identity, mounts, ear, losses, marks })
            }
        });
        let mut this = begun.await?;
        let pass = || {
            let (watcher, marks) = (this.watcher.clone(), this.marks.clone());
            async move {
                blocking(move || watcher.watch_all()).await?;
                // A loss is known once the events up to it have been read.
                marks.barrier().await;
                Ok(())
            }
        };
        this.losses = until_complete(&ear, pass).await?;
        if identify(&this.root)? != this.identity {
            return Err(NoEvents::Other("it has just become another directory".into()));
        }
        // The watcher reports what is mounted from its start on, and not what was mounted just
        // before.
        if !this.has_same_mounts() {
            this.ear.lose(MOUNTED);
        }
        Ok(this)
    }

    /// Everything is about to be scanned: what was heard until now is of no consequence.
    pub fn forget_hints(&self) {
        self.ear.forget(self.losses);
    }

    /// Returns when all is heard that happened before this was called, and directories that were
    /// made before are watched; `false` if that cannot be known, if events were lost, or if the
    /// folder is not the directory, or not on the file systems, that is watched.
    pub async fn catch_up(self: &Arc<Self>) -> bool {
        // Elsewhere, events are not in order, or are held back.
        if !cfg!(target_os = "linux") || !self.marks.barrier().await {
            return false;
        }
        let this = self.clone();
        let is_same = blocking(move || {
            let has_same_mounts = this.has_same_mounts();
            if !has_same_mounts {
                this.ear.lose(MOUNTED);
            }
            let found = DirectoryId::of(&this.root);
            Ok(has_same_mounts && found.is_ok_and(|(found, _)| found == this.identity))
        });
        is_same.await.unwrap_or(false) && self.ear.losses() == self.losses
    }

    fn has_same_mounts(&self) -> bool {
        Mounts::of(&self.root).is_ok_and(|mounts| mounts == self.mounts)
    }
}

impl Marks {
    /// Waits until the events of all that happened before have been read; `false` if that takes too
    /// long.
    async fn barrier(&self) -> bool {
        let number = 1 + self.next.fetch_add(1, Relaxed);
        let mut mark = self.ear.mark.subscribe();
        let path = self.dir.join(number.to_string());
        let made = fs::write(&path, "");
        let came = async { mark.wait_for(|last| *last >= number).await.is_ok() };
        let came = made.is_ok() && tokio::time::timeout(EVENT_DELAY, came).await == Ok(true);
        // A mark that stays costs nothing.
        let _ = fs::remove_file(&path);
        came
    }
}

/// Adds watches until no events were lost meanwhile: a directory whose creation was lost is not
/// watched. Returns the number of losses before the last pass.
async fn until_complete<F: Future<Output = Result<(), NoEvents>>>(
    ear: &Ear,
    mut pass: impl FnMut() -> F,
) -> Result<u64, NoEvents> {
    let mut losses = ear.losses();
    for _ in 0..MAX_PASSES {
        losses = ear.losses();
        pass().await?;
        if ear.losses() == losses {
            break;
        }
    }
    Ok(losses)
}

/// Runs work that waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NoEvents> + Send + 'static,
) -> Result<T, NoEvents> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(NoEvents::Other(format!("BUG: {error}"))))
}

#[cfg(all(test, target_os = "linux"))]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Watched {
        dir: tempfile::TempDir,
        root: PathBuf,
        ear: Arc<Ear>,
        events: Arc<Events>,
    }

    async fn watched() -> Watched {
        watched_with(|_| {}).await
    }

    async fn watched_with(prepare: impl FnOnce(&Path)) -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        prepare(&root);
        let ear = Arc::new(Ear::default());
        let mounts = Mounts::of(&root).unwrap();
        let events = Events::start(&root, &dir.path().join("marks"), mounts, ear.clone()).await;
        Watched { dir, root, ear, events: Arc::new(events.unwrap()) }
    }

    #[tokio::test]
    async fn what_happened_before_is_heard_after_catching_up() {
        let Watched { dir: _dir, root, ear, events } = watched().await;
        assert!(events.catch_up().await);
        assert!(ear.take().is_nothing());
        for round in 0..10 {
            // Each has to be watched before something in it is heard.
            let dirs = (0..100).map(|dir| root.join(format!("a{round}/b{dir}/c")));
            let dirs: Vec<_> = dirs.inspect(|dir| fs::create_dir_all(dir).unwrap()).collect();
            assert!(events.catch_up().await);
            for dir in &dirs {
                fs::write(dir.join("file"), "x").unwrap();
            }
            assert!(!ear.take().is_nothing());
            assert!(events.catch_up().await);
            let last = dirs.last().unwrap().join("file");
            fs::write(&last, "y").unwrap();
            assert!(events.catch_up().await);
            let heard = ear.take();
            assert!(heard.more || heard.paths.contains(&last), "{heard:?}");
            fs::remove_file(&last).unwrap();
            assert!(events.catch_up().await);
            assert!(ear.take().paths.contains(&last));
        }
    }

    #[tokio::test]
    async fn directories_that_were_made_are_watched_after_catching_up() {
        let Watched { dir: _dir, root, ear, events } = watched().await;
        for round in 0..50 {
            let dirs = (0..100).map(|dir| root.join(format!("a{round}/b{dir}")));
            let dirs: Vec<_> = dirs.inspect(|dir| fs::create_dir_all(dir).unwrap()).collect();
            assert!(events.catch_up().await);
            let file = dirs.last().unwrap().join("file");
            fs::write(&file, "x").unwrap();
            ear.take();
            fs::remove_file(&file).unwrap();
            assert!(events.catch_up().await);
            let heard = ear.take();
            assert!(heard.paths.contains(&file), "{round}: {heard:?}");
        }
    }

    #[tokio::test]
    async fn our_own_reading_is_not_heard() {
        let Watched { dir: _dir, root, ear, events } = watched().await;
        fs::write(root.join("file"), "x").unwrap();
        events.catch_up().await;
        ear.take();
        fs::read(root.join("file")).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
        events.catch_up().await;
        assert!(ear.take().is_nothing());
    }

    #[tokio::test]
    async fn lost_events_are_noticed() {
        let Watched { dir: _dir, root, ear, events } = watched().await;
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // The thread that reads events cannot go on.
        let stop = ear.heard.lock().unwrap();
        fs::write(root.join("first"), "x").unwrap();
        for number in 0..most {
            fs::create_dir(root.join(number.to_string())).unwrap();
            fs::remove_dir(root.join(number.to_string())).unwrap();
        }
        drop(stop);
        let mut heard = ear.take();
        while heard.lost.is_none() {
            tokio::time::timeout(Duration::from_secs(60), ear.wake.notified()).await.unwrap();
            heard = ear.take();
        }
        assert!(heard.lost.unwrap().contains("more events"));
        // A directory whose creation was lost is not watched.
        assert!(!events.catch_up().await);
    }

    /// Otherwise they overflow the queue of a large folder, which leads to the next scan, and so
    /// on.
    #[tokio::test]
    async fn watching_and_scanning_cause_no_events() {
        const DIRECTORIES: usize = 500;
        let Watched { dir: _dir, root, ear, events } = watched_with(|root| {
            for number in 0..DIRECTORIES {
                let dir = root.join(format!("{}/{number}", number % 20));
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("file"), "x").unwrap();
            }
        })
        .await;
        let files = walkdir::WalkDir::new(&root).into_iter().map(Result::unwrap);
        let files = files.filter(|entry| entry.file_type().is_file());
        assert_eq!(
            files.map(|file| fs::read(file.path()).unwrap().len()).sum::<usize>(),
            DIRECTORIES
        );
        assert!(events.catch_up().await);
        let marks = events.marks.next.load(Relaxed);
        assert_eq!((ear.received.load(Relaxed), ear.count()), (marks, 0));
    }

    #[tokio::test]
    async fn a_loss_repeats_the_adding_of_watches() {
        // (losses of each pass, passes that are made)
        for (losses, passes) in [(vec![0], 1), (vec![1, 0], 2), (vec![2, 1, 0], 3), (vec![1; 3], 3)]
        {
            let ear = Ear::default();
            let mut made = 0;
            let complete = until_complete(&ear, || {
                (0..losses[made]).for_each(|_| ear.lose("simulated"));
                made += 1;
                std::future::ready(Ok(()))
            });
            let complete = complete.await.unwrap();
            assert_eq!(made, passes, "{losses:?}");
            let is_complete = losses.last() == Some(&0);
            assert_eq!(complete == ear.losses(), is_complete, "{losses:?}");
            // The scan that follows sees everything, unless a loss came after the last pass began.
            ear.forget(complete);
            assert_eq!(ear.take().lost.is_none(), is_complete, "{losses:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_that_lost_events_proves_nothing() {
        let Watched { dir: _dir, root: _, ear, events } = watched().await;
        assert!(events.catch_up().await);
        ear.lose("simulated");
        assert!(!events.catch_up().await);
    }

    #[tokio::test]
    async fn other_mounts_prove_nothing() {
        let Watched { dir: _dir, root, ear, events } = watched().await;
        assert!(events.catch_up().await);
        let mut events = Arc::into_inner(events).unwrap();
        events.mounts = Mounts::parse(b"1 1 0:1 / / rw - ext4 /dev/x rw", &root);
        assert!(!Arc::new(events).catch_up().await);
        assert_eq!(ear.take().lost.unwrap(), MOUNTED);
    }

    #[tokio::test]
    async fn mounts_before_the_watch_are_noticed() {
        let Watched { dir, root, ear: _, events: _events } = watched().await;
        let before = Mounts::parse(b"1 1 0:1 / / rw - ext4 /dev/x rw", &root);
        let (marks, ear) = (dir.path().join("other marks"), Arc::new(Ear::default()));
        let events = Events::start(&root, &marks, before, ear.clone()).await.unwrap();
        events.forget_hints();
        assert_eq!(ear.take().lost.unwrap(), MOUNTED);
    }

    #[tokio::test]
    async fn moved_directories_are_heard() {
        let Watched { dir: _dir, root, ear, events } = watched_with(|root| {
            fs::create_dir_all(root.join("a/b/c")).unwrap();
        })
        .await;
        let hears = async |path: PathBuf| {
            ear.take();
            fs::write(&path, "x").unwrap();
            assert!(events.catch_up().await);
            assert!(ear.take().paths.contains(&path), "{}", path.display());
        };
        fs::rename(root.join("a"), root.join("z")).unwrap();
        assert!(events.catch_up().await);
        hears(root.join("z/b/c/file")).await;
        // Another one in its place.
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert!(events.catch_up().await);
        hears(root.join("a/b/file")).await;
        hears(root.join("z/b/other")).await;
        // Moved out and back: what happens to it outside is of no concern.
        let outside = root.parent().unwrap().join("outside");
        fs::rename(root.join("z"), &outside).unwrap();
        assert!(events.catch_up().await);
        ear.take();
        fs::write(outside.join("b/file"), "x").unwrap();
        assert!(events.catch_up().await);
        assert!(ear.take().is_nothing());
        fs::rename(&outside, root.join("y")).unwrap();
        assert!(events.catch_up().await);
        hears(root.join("y/b/c/last")).await;
    }
}
