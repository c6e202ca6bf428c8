//! The sync job: everything in a scan is stored on the server, and made a checkout if asked for.

mod sync;
mod upload;

pub use sync::{Options, SyncError, SyncReport, create_checkout, lacking, sync};
pub use upload::{BadLimit, Hold, Limit, Line, Timetable, UploadNow};
