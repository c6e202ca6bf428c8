//! The agent proper: keeps folders uploaded while people work in them.

mod debounce;
mod folder;
#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
mod native;
mod shared;
mod source;
mod status;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::{sync::broadcast, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use debounce::Rhythm;
pub use folder::FolderOptions;
pub use shared::AgentEvent;
pub use status::{AgentStatus, FolderState, FolderStatus, UploadStatus, WatchMode};

use super::upload::{Hold, Line};
use crate::scan::{self, Scan, ScanError};
use folder::Folder;
use shared::Shared;

/// Keeps folders uploaded, from [`Agent::run`] on.
#[derive(Debug)]
pub struct Agent {
    folders: Vec<Arc<Folder>>,
    shared: Arc<Shared>,
    /// While it is paused.
    held: Mutex<Vec<Hold>>,
    started: Timestamp,
}

/// Why an agent has no scan to give.
#[derive(Debug, thiserror::Error)]
pub enum NoScan {
    /// It does not watch this folder, or with other rules.
    #[error("this agent does not watch {}, or ignores other files there", .0.display())]
    NotWatched(PathBuf),
    /// The folder cannot be scanned.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl Agent {
    /// An agent for these folders, which share the line. `marks` is a directory for its own use.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub fn new(
        folders: Vec<FolderOptions>,
        line: Arc<Line>,
        marks: &Path,
    ) -> Result<Self, ScanError> {
        let shared = Arc::new(Shared::new(line));
        let folders = folders.into_iter().enumerate().map(|(number, options)| {
            let root = real(&options.dir);
            let marks = marks.join(number.to_string());
            Folder::new(options, root, marks, shared.clone()).map(Arc::new)
        });
        let folders = folders.collect::<Result<_, _>>()?;
        Ok(Self { folders, shared, held: Mutex::default(), started: Timestamp::now() })
    }

    /// Keeps the folders uploaded until it is cancelled.
    pub async fn run(&self, end: CancellationToken) {
        let mut tasks = JoinSet::new();
        for folder in &self.folders {
            tasks.spawn(folder.clone().run(end.clone()));
        }
        end.cancelled().await;
        for folder in &self.folders {
            folder.stop();
        }
        tasks.join_all().await;
    }

    /// What it is at.
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            paused: self.shared.is_paused(),
            limit: self.shared.line.rate(),
            sent_bytes: self.folders.iter().map(|folder| folder.line.sent_bytes()).sum(),
            folders: self.folders.iter().map(|folder| folder.status()).collect(),
        }
    }

    /// What changes from now on.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.shared.events()
    }

    /// Sends nothing and looks at nothing until it is resumed.
    pub fn pause(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = self.folders.iter().map(|folder| folder.line.hold()).collect();
        self.shared.pause(true);
    }

    /// Goes on.
    pub fn resume(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clear();
        self.shared.pause(false);
    }

    /// Has all other folders than this send nothing while the guards live.
    pub fn yield_to(&self, dir: &Path) -> Vec<Hold> {
        let root = real(dir);
        let others = self.folders.iter().filter(|folder| folder.root != root);
        others.map(|folder| folder.line.hold()).collect()
    }

    /// A folder as it is now, and whether that was known without looking.
    ///
    /// # Errors
    /// If it is not watched with the same rules, or cannot be scanned.
    pub async fn scan(
        &self,
        dir: &Path,
        options: &scan::Options,
    ) -> Result<(Arc<Scan>, bool), NoScan> {
        let root = real(dir);
        let folder = self.folders.iter().find(|folder| folder.root == root);
        match folder.filter(|folder| folder.scans_like(options)) {
            Some(folder) => Ok(folder.scan_now().await?),
            None => Err(NoScan::NotWatched(dir.to_owned())),
        }
    }
}

/// The same path without links in it, if it is there.
pub fn real(dir: &Path) -> PathBuf {
    dir.canonicalize().or_else(|_| std::path::absolute(dir)).unwrap_or_else(|_| dir.to_owned())
}
