//! What an agent says of itself, to people and programs.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An agent and its folders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub started: Timestamp,
    /// Whether it was told to pause.
    pub paused: bool,
    /// Bytes a second that it may send now, if there is a limit.
    pub limit: Option<u64>,
    /// Bytes of files that it has sent.
    pub sent_bytes: u64,
    /// Its folders.
    pub folders: Vec<FolderStatus>,
}

/// A folder that is kept uploaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FolderStatus {
    /// The folder.
    pub dir: PathBuf,
    /// The server, without secrets.
    pub server: String,
    /// Folders with a higher one go first.
    pub priority: i32,
    /// What it is at.
    pub state: FolderState,
    /// How it hears of changes.
    pub watch: WatchMode,
    /// Files at the last look, ignored ones aside.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, files that are not known to be on the server.
    pub queued_files: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Files that wait until they are written, or to be hashed.
    pub waiting_files: u64,
    /// Files that cannot be taken along.
    pub skipped_files: u64,
    /// One of them, and why.
    pub skipped_example: Option<String>,
    /// What is being sent.
    pub uploads: Vec<UploadStatus>,
    /// When everything was last on the server.
    pub last_sync: Option<Timestamp>,
    /// What went wrong last, if it has not gone well since.
    pub last_error: Option<String>,
}

/// What a folder is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FolderState {
    /// Everything is on the server, as far as is known.
    Synced,
    /// Something has changed, and may go on changing.
    Settling,
    /// It is looked at, and what is new is hashed.
    Scanning,
    /// What is missing is being sent.
    Uploading,
    /// Something failed; it is tried again.
    Retrying,
    /// The folder is not there.
    Gone,
    /// The agent was told to pause.
    Paused,
}

/// How a folder is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum WatchMode {
    /// The system tells of changes.
    Events,
    /// All is looked at every so many seconds.
    Poll {
        /// The seconds.
        every_s: u64,
        /// Why.
        reason: String,
    },
}

impl WatchMode {
    /// Whether it polls, and for this reason.
    pub(super) fn polls_because(&self, why: &str) -> bool {
        matches!(self, Self::Poll { reason, .. } if reason == why)
    }
}

/// An upload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStatus {
    /// The file, below the folder.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// What has been sent of it.
    pub sent_bytes: u64,
    /// Bytes a second since it began.
    pub rate: u64,
}
