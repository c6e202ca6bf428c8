//! What the system tells of changes in a folder: hints, and that some were lost. A thin shell around
//! `notify`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::{Notify, watch};

use crate::disk::DirectoryId;

/// More paths than this are not told apart: then it is "much".
const MAX_PATHS: usize = 256;

/// How long an event may be on its way before nothing is concluded from events.
const EVENT_DELAY: Duration = Duration::from_secs(3);

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
    pub wake: Notify,
    /// The number of the last mark that has come back.
    mark: watch::Sender<u64>,
}

impl Ear {
    /// How many events there were so far.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// What was heard, once.
    pub fn take(&self) -> Heard {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.count();
        Heard { count, ..std::mem::take(&mut *heard) }
    }

    /// Something has changed, it is not known what.
    pub fn lose(&self, reason: impl Into<String>) {
        self.note(|heard| heard.lost = Some(reason.into()));
    }

    /// Something in the folder may not be what it was taken for.
    pub fn stir(&self) {
        self.note(|heard| heard.more = true);
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.count.fetch_add(1, Relaxed);
        change(&mut heard);
        drop(heard);
        self.wake.notify_one();
    }

    /// Takes one event. Called by the thread that reads them: it must not wait for anything.
    fn hear(&self, event: notify::Result<Event>, marks: &Path) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.lose(error.to_string()),
        };
        // It has no paths.
        if event.need_rescan() {
            return self.lose("the system had more events than it keeps");
        }
        // On Linux, our own reading is among these.
        if let EventKind::Access(kind) = event.kind
            && kind != AccessKind::Close(AccessMode::Write)
        {
            return;
        }
        for path in event.paths {
            if !path.starts_with(marks) {
                self.note(|heard| match heard.paths.len() {
                    _ if heard.paths.last() == Some(&path) => {}
                    MAX_PATHS.. => heard.more = true,
                    _ => heard.paths.push(path),
                });
                continue;
            }
            let number = path.file_name().and_then(|name| name.to_str());
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                self.mark.send_if_modified(|last| {
                    let is_new = *last < number;
                    *last = number.max(*last);
                    is_new
                });
            }
        }
    }
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
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

impl From<notify::Error> for NoEvents {
    fn from(error: notify::Error) -> Self {
        // inotify_add_watch(2) says ENOSPC, inotify_init(2) EMFILE.
        match &error.kind {
            notify::ErrorKind::MaxFilesWatch => Self::Watches,
            notify::ErrorKind::Io(source)
                if cfg!(target_os = "linux") && source.raw_os_error() == Some(24) =>
            {
                Self::Watchers
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// A watch of one folder and all below. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Events {
    watcher: Mutex<RecommendedWatcher>,
    root: PathBuf,
    /// What is watched is this directory, whatever becomes of its name.
    identity: DirectoryId,
    ear: Arc<Ear>,
    /// A directory of our own, watched by the same watcher. Events come in the order in which things
    /// happened, so what is made here comes back after all that happened before.
    marks: PathBuf,
    next: AtomicU64,
}

impl Events {
    /// Begins to watch a folder, whose path has no links in it. Takes its time: one call for each
    /// directory.
    pub fn start(root: &Path, marks: &Path, ear: Arc<Ear>) -> Result<Self, NoEvents> {
        let other = |error: io::Error| NoEvents::Other(error.to_string());
        fs::create_dir_all(marks).map_err(other)?;
        let marks = marks.canonicalize().map_err(other)?;
        let config = Config::default().with_follow_symlinks(false);
        let hear = {
            let (ear, marks) = (ear.clone(), marks.clone());
            move |event| ear.hear(event, &marks)
        };
        let identify = || DirectoryId::of(root).map_err(|error| NoEvents::Other(error.to_string()));
        let (identity, _) = identify()?;
        let mut watcher = RecommendedWatcher::new(hear, config)?;
        watcher.watch(&marks, RecursiveMode::NonRecursive)?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        if identify()?.0 != identity {
            return Err(NoEvents::Other("it has just become another directory".into()));
        }
        let next = AtomicU64::new(*ear.mark.borrow());
        let (watcher, root) = (Mutex::new(watcher), root.to_owned());
        Ok(Self { watcher, root, identity, ear, marks, next })
    }

    /// Returns when all is heard that happened before this was called, and directories that were made
    /// before are watched; `false` if that cannot be known, or the folder is another directory than
    /// the one that is watched.
    pub async fn catch_up(self: &Arc<Self>) -> bool {
        // Elsewhere, events are not in order, or are held back.
        if !cfg!(target_os = "linux") {
            return false;
        }
        let number = 1 + self.next.fetch_add(1, Relaxed);
        let mut mark = self.ear.mark.subscribe();
        let path = self.marks.join(number.to_string());
        let made = fs::write(&path, "");
        let came = async { mark.wait_for(|last| *last >= number).await.is_ok() };
        let came = made.is_ok() && tokio::time::timeout(EVENT_DELAY, came).await == Ok(true);
        // A mark that stays costs nothing.
        let _ = fs::remove_file(&path);
        let this = self.clone();
        // Its thread does this between two rounds of events; at the end of a round it watches the
        // directories that were made.
        let again = tokio::task::spawn_blocking(move || {
            let mut watcher = this.watcher.lock().unwrap_or_else(PoisonError::into_inner);
            let watched = watcher.watch(&this.marks, RecursiveMode::NonRecursive).is_ok();
            watched && DirectoryId::of(&this.root).is_ok_and(|(found, _)| found == this.identity)
        });
        came && again.await.unwrap_or(false)
    }
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

    fn watched() -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        let ear = Arc::new(Ear::default());
        let events = Events::start(&root, &dir.path().join("marks"), ear.clone()).unwrap();
        Watched { dir, root, ear, events: Arc::new(events) }
    }

    #[tokio::test]
    async fn what_happened_before_is_heard_after_catching_up() {
        let Watched { dir: _dir, root, ear, events } = watched();
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
        let Watched { dir: _dir, root, ear, events } = watched();
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
        let Watched { dir: _dir, root, ear, events } = watched();
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
        let Watched { dir: _dir, root, ear, events } = watched();
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
        assert!(events.catch_up().await, "it goes on");
    }
}
