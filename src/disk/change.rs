//! Every change of a file system, one by one: named in errors, seen in the log, and, in debug
//! builds, made to fail on demand.
//!
//! The log (`FARMHAND_LOG=farmhand::disk=trace`) is what the tests of durability read: it says what
//! was done in which order, and so what would be left after a power cut at any point.

use std::{fs, io, path::Path};

use super::{DiskError, IoContext, OpenDir};

/// A kind of change. The names are those in the log and of the fault points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    CreateFile,
    Write,
    SyncData,
    Rename,
    CreateDir,
    Symlink,
    HardLink,
    Reflink,
    Copy,
    ReadOnly,
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
            Self::HardLink => ("hard-link", "make the hard link"),
            Self::Reflink => ("reflink", "make the reflink"),
            Self::Copy => ("copy", "copy to"),
            Self::ReadOnly => ("read-only", "make read-only"),
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
        let made = fault(self.names().0).and_then(|()| change());
        self.tell(path, from, made)
    }

    /// The same to what is called so in an open directory. The whole path is made only for those who want it.
    #[cfg(unix)]
    pub fn make_in<T>(
        self,
        dir: &Path,
        name: impl AsRef<Path>,
        change: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, DiskError> {
        match fault(self.names().0).and_then(|()| change()) {
            Ok(made) if !tracing::enabled!(target: "farmhand::disk", tracing::Level::TRACE) => {
                Ok(made)
            }
            made => self.tell(&dir.join(name), None, made),
        }
    }

    fn tell<T>(
        self,
        path: &Path,
        from: Option<&Path>,
        made: io::Result<T>,
    ) -> Result<T, DiskError> {
        let (name, verb) = self.names();
        let from = from.unwrap_or(Path::new(""));
        tracing::trace!(
            target: "farmhand::disk",
            change = name, from = %from.display(), path = %path.display(), failed = made.is_err()
        );
        made.on(verb, path)
    }
}

/// Makes a directory.
///
/// # Errors
/// If it cannot be made, [`io::ErrorKind::AlreadyExists`] among them.
pub fn create_dir(path: &Path) -> Result<(), DiskError> {
    Change::CreateDir.make(path, None, || fs::create_dir(path))
}

/// Makes a directory, and those above it, where there are none: each is a change of its own.
///
/// # Errors
/// If one cannot be made, or something else stands there.
pub fn create_dirs_if_missing(path: &Path) -> Result<(), DiskError> {
    // Looked at first: what is there needs no change.
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dirs_if_missing(parent)?;
    }
    create_dir(path)
}

/// Removes a file.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), DiskError> {
    Change::Remove.make(path, None, || fs::remove_file(path))
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

/// Makes a file of this name in a directory that shares its content with `file` until one of them is
/// written.
///
/// # Errors
/// If the name is taken, or the file system cannot share content: few can.
pub fn reflink(file: &Path, (dir, name): (&OpenDir, &str)) -> Result<(), DiskError> {
    Change::Reflink.make(&dir.path().join(name), Some(file), || {
        #[cfg(target_os = "linux")]
        {
            let source = fs::File::open(file)?;
            let target = dir.create_file(name)?;
            rustix::fs::ioctl_ficlone(&target, &source)?;
            Ok(())
        }
        #[cfg(not(target_os = "linux"))]
        Err(io::Error::new(io::ErrorKind::Unsupported, "farmhand makes reflinks on Linux only"))
    })
}

/// Makes a file of this name in a directory, with the content of `file`.
///
/// # Errors
/// If the name is taken, or the content cannot be read or written.
pub fn copy_file(file: &Path, (dir, name): (&OpenDir, &str)) -> Result<(), DiskError> {
    Change::Copy.make(&dir.path().join(name), Some(file), || {
        let mut source = fs::File::open(file)?;
        let mut target = dir.create_file(name)?;
        io::copy(&mut source, &mut target)?;
        Ok(())
    })
}

/// Takes the right to write away from everybody.
///
/// # Errors
/// If the file is gone or not ours.
pub fn make_read_only(path: &Path) -> Result<(), DiskError> {
    Change::ReadOnly.make(path, None, || {
        let mut permissions = fs::metadata(path)?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(path, permissions)
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

/// Makes everything durable that was written to a file system after this was made, and knows of every error
/// since then.
///
/// An error of writing is told once to each who has the file system open by then: who opens it only to sync
/// it may come too late.
#[derive(Debug)]
pub struct SyncPoint {
    #[cfg(target_os = "linux")]
    handle: fs::File,
    #[cfg(target_os = "linux")]
    path: std::path::PathBuf,
}

impl SyncPoint {
    /// Begins, on the file system that the directory `path` is on; `None` where it would sync nothing, or its errors
    /// not be told: other systems than Linux, Linux before 5.8, and file systems that are not of a disk of this
    /// machine.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub fn begin(path: &Path) -> Result<Option<Self>, DiskError> {
        #[cfg(target_os = "linux")]
        if tells_errors(&rustix::system::uname().release().to_string_lossy())
            && ["ext4", "xfs", "btrfs", "f2fs", "tmpfs"]
                .contains(&&*super::FileSystem::of(path)?.name)
        {
            let handle = fs::File::open(path).on("open", path)?;
            return Ok(Some(Self { handle, path: path.to_owned() }));
        }
        let _ = path;
        Ok(None)
    }

    /// Syncs.
    ///
    /// # Errors
    /// If anything that was written since the beginning may not be durable.
    pub fn sync(&self) -> Result<(), DiskError> {
        #[cfg(target_os = "linux")]
        return Change::SyncFileSystem
            .make(&self.path, None, || Ok(rustix::fs::syncfs(&self.handle)?));
        #[cfg(not(target_os = "linux"))]
        unreachable!("BUG: there is none here")
    }
}

/// Whether `syncfs` of this version of Linux tells of errors: from 5.8 on (syncfs(2)).
#[cfg(target_os = "linux")]
fn tells_errors(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let version: (Option<u32>, Option<u32>) = (parts.next().flatten(), parts.next().flatten());
    version >= (Some(5), Some(8))
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

/// A rename within one file system, replacing a file that stands at `to`.
///
/// # Errors
/// If `from` is not there, or on another file system, or a directory stands at `to`.
pub fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    Change::Rename.make(to, Some(from), || fs::rename(from, to))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn versions_of_linux_are_compared_as_numbers() {
        for new in ["5.8", "5.8.0-1-amd64", "5.10.234", "6.1", "10.0.0"] {
            assert!(tells_errors(new), "{new}");
        }
        for old in ["5.7.19", "4.18.0-553.el8", "3.10", "", "unknown"] {
            assert!(!tells_errors(old), "{old}");
        }
    }
}
