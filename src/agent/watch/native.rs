//! Events of a directory tree on systems other than Linux, by `notify`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};

use super::source::{Ear, NoEvents};
use crate::disk::Mounts;

/// A watcher of `notify`.
#[derive(Debug)]
pub(super) struct Watcher {
    watcher: Mutex<RecommendedWatcher>,
    root: PathBuf,
}

impl Watcher {
    /// Reads events, of no directory but `marks` so far. What is made there is reported as a mark.
    pub fn new(
        root: &Path,
        marks: &Path,
        _mounts: &Mounts,
        ear: Arc<Ear>,
    ) -> Result<Self, NoEvents> {
        let config = Config::default().with_follow_symlinks(false);
        let hear = {
            let marks = marks.to_owned();
            move |event| hear(&ear, event, &marks)
        };
        let mut watcher = RecommendedWatcher::new(hear, config)?;
        watcher.watch(marks, RecursiveMode::NonRecursive)?;
        Ok(Self { watcher: Mutex::new(watcher), root: root.to_owned() })
    }

    /// Watches the root and all directories below it.
    pub fn watch_all(&self) -> Result<(), NoEvents> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(watcher.watch(&self.root, RecursiveMode::Recursive)?)
    }
}

impl From<notify::Error> for NoEvents {
    fn from(error: notify::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Takes one event. Called by the thread that reads them: it must not wait for anything.
fn hear(ear: &Ear, event: notify::Result<Event>, marks: &Path) {
    ear.receive();
    let event = match event {
        Ok(event) => event,
        Err(error) => return ear.lose(error.to_string()),
    };
    // It has no paths.
    if event.need_rescan() {
        return ear.lose("the system had more events than it keeps");
    }
    // Reading a file changes nothing.
    if let EventKind::Access(kind) = event.kind
        && kind != AccessKind::Close(AccessMode::Write)
    {
        return;
    }
    for path in event.paths {
        match path.starts_with(marks) {
            true => ear.mark(&path),
            false => ear.note_path(path),
        }
    }
}
