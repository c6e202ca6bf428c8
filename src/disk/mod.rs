//! Every call that changes a file system or asks it for evidence goes through here, so that each
//! error names the operation and the path, and the platforms' differences have one home.

mod change;
mod error;
mod lock;
mod publish;
mod rename;
mod stat;

pub use change::{
    create_dir, create_dir_if_missing, remove_dir_all, remove_file, rename_new, symlink, sync_dir,
    sync_file_system,
};
pub use error::{DiskError, IoContext};
pub use lock::{Lock, LockError};
pub use publish::TempFile;
pub(crate) use stat::unix_ns;
pub use stat::{Fingerprint, Space, touch};
