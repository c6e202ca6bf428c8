//! Every call that changes a file system or asks it for evidence goes through here, so that each
//! error names the operation and the path, and the platforms' differences have one home.

mod error;
mod link;
mod lock;
mod publish;
mod stat;

pub use error::{DiskError, IoContext};
pub use link::{rename_new, symlink};
pub use lock::{Lock, LockError};
pub use publish::{TempFile, sync_dir, sync_file_system};
pub(crate) use stat::unix_ns;
pub use stat::{Fingerprint, touch};
