//! Every call that changes a file system or asks it for evidence goes through here, so that each
//! error names the operation and the path, and the platforms' differences have one home.

mod change;
mod error;
mod filesystem;
mod lock;
mod look;
mod mounts;
mod open_dir;
mod part;
mod publish;
mod rename;
mod stat;
mod trial;
mod watch_limits;
mod writers;

pub use change::{
    SyncPoint, copy_file, create_dir, create_dirs_if_missing, make_read_only, reflink, remove_file,
    rename, symlink, sync_dir, sync_file_system,
};
pub use error::{DiskError, IoContext};
pub use filesystem::{FileSystem, is_rotational};
pub use lock::{Lock, LockError};
pub use look::{AtOnce, Found, look_at_once};
pub use mounts::{Mounts, SilentFileSystem};
pub use open_dir::{EntryKind, EntryStat, OpenDir};
pub use part::{PartFile, read_at};
pub use publish::{TempFile, append_file, replace_file};
pub(crate) use stat::unix_ns;
pub use stat::{DirectoryId, Fingerprint, Space, be_gentle, read_from_disk, rest_if_gentle, touch};
pub use trial::{nearest_existing, try_writing};
pub use watch_limits::{WatchLimits, watches_needed};
pub use writers::written_to;
