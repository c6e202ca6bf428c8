//! The sync job: everything in a scan is stored on the server, and made a checkout if asked for.

mod sync;
mod upload;
mod watch;

pub use sync::{ModeCount, Options, SyncError, SyncReport, create_checkout, lacking, sync};
pub use upload::{BadLimit, Delta, Hold, Limit, Line, Mode, Timetable, UploadNow};
pub use watch::{
    Agent, AgentEvent, AgentStatus, FolderOptions, FolderState, FolderStatus, NoScan, Rhythm,
    UploadStatus, WatchMode, real,
};
