//! Every change of a file system, one by one: named in errors, seen in the log, and, in debug
//! builds, made to fail on demand.
//!
//! The log (`FARMHAND_LOG=farmhand::disk=trace`) is what the tests of durability read: it says what
//! was done in which order, and so what would be left after a power cut at any point.

use std::{fs, io, path::Path};

use super::{DiskError, IoContext};

/// A kind of change. The names are those in the log and of the fault points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    CreateFile,
    Write,
    SyncData,
    Rename,
    CreateDir,
    Symlink,
    SyncDir,
    SyncFileSystem,
    Remove,
}

impl Change {
    /// Its name, and how errors call it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::CreateFile => ("create-file", "create"),
            Self::Write => ("write", "write"),
            Self::SyncData => ("sync-data", "sync"),
            Self::Rename => ("rename", "rename to"),
            Self::CreateDir => ("create-dir", "create the directory"),
            Self::Symlink => ("symlink", "make the link"),
            Self::SyncDir => ("sync-dir", "sync the directory"),
            Self::SyncFileSystem => ("sync-file-system", "sync the file system of"),
            Self::Remove => ("remove", "remove"),
        }
    }

    /// Makes this change to `path`; `from` is where a renamed file was.
    pub fn make<T>(
        self,
        path: &Path,
        from: Option<&Path>,
        change: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let (name, verb) = self.names();
        let made = fault(name).and_then(|()| change()).on(verb, path);
        let from = from.unwrap_or(Path::new(""));
        tracing::trace!(
            target: "farmhand::disk",
            change = name, from = %from.display(), path = %path.display(), failed = made.is_err()
        );
        made
    }
}

/// Makes a directory.
///
/// # Errors
/// If it cannot be made, [`io::ErrorKind::AlreadyExists`] among them.
pub fn create_dir(path: &Path) -> Result<(), DiskError> {
    Change::CreateDir.make(path, None, || fs::create_dir(path))
}

/// Makes a directory if there is none.
///
/// # Errors
/// If it cannot be made for another reason than being there.
pub fn create_dir_if_missing(path: &Path) -> Result<(), DiskError> {
    match create_dir(path) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Removes a file.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), DiskError> {
    Change::Remove.make(path, None, || fs::remove_file(path))
}

/// Removes a directory and all that is in it.
///
/// # Errors
/// If not all of it can be removed.
pub fn remove_dir_all(path: &Path) -> Result<(), DiskError> {
    Change::Remove.make(path, None, || fs::remove_dir_all(path))
}

/// Makes `link` a symbolic link to this target, written with `/` and kept as it is, but for Windows,
/// which only follows relative links written with `\`.
///
/// # Errors
/// If something stands at `link`, or links cannot be made there. Windows needs Developer Mode or the privilege.
pub fn symlink(target: &Path, link: &Path) -> Result<(), DiskError> {
    Change::Symlink.make(link, None, || {
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(target, link);
        #[cfg(windows)]
        let made = {
            let target = target.to_string_lossy().replace('/', "\\");
            std::os::windows::fs::symlink_file(target, link)
        };
        made
    })
}

/// Makes the names in a directory durable. Windows has no such call and needs none: NTFS journals names.
///
/// # Errors
/// If the directory cannot be opened or synced.
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    Change::SyncDir.make(path, None, || {
        #[cfg(unix)]
        fs::File::open(path)?.sync_all()?;
        Ok(())
    })
}

/// Makes everything durable that was written before to the file system that `path` is on.
///
/// # Errors
/// If it cannot be synced.
pub fn sync_file_system(path: &Path) -> Result<(), DiskError> {
    Change::SyncFileSystem.make(path, None, || {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(fs::File::open(path)?)?;
        #[cfg(all(unix, not(target_os = "linux")))]
        rustix::fs::sync();
        // Windows: NTFS journals names, and content is synced before it is renamed.
        Ok(())
    })
}

/// In debug builds, `FARMHAND_FAULT=CHANGE:N=ACTION` strikes before the N-th change of a kind: `kill`
/// ends the process as `kill -9` does, an error number makes that change fail.
#[cfg(not(debug_assertions))]
fn fault(_name: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
fn fault(name: &str) -> io::Result<()> {
    use std::sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    };
    static FAULT: OnceLock<Option<(String, AtomicI64, String)>> = OnceLock::new();
    let fault = FAULT.get_or_init(|| {
        let text = std::env::var("FARMHAND_FAULT").ok()?;
        let (at, action) = text.split_once('=')?;
        let (change, number) = at.split_once(':')?;
        Some((change.to_owned(), AtomicI64::new(number.parse().ok()?), action.to_owned()))
    });
    let Some((change, left, action)) = fault else { return Ok(()) };
    if change != name || left.fetch_sub(1, Relaxed) != 1 {
        return Ok(());
    }
    match action.parse() {
        Ok(error) => Err(io::Error::from_raw_os_error(error)),
        Err(_) => {
            #[cfg(unix)]
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            std::process::abort()
        }
    }
}

/// A rename within one file system, replacing what stands at `to`.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    Change::Rename.make(to, Some(from), || fs::rename(from, to))
}

/// Renames the directory `from` to `to` if nothing stands there, in one step.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if `to` is taken.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), DiskError> {
    Change::Rename.make(to, Some(from), || super::rename::rename_new(from, to))
}
