//! One process at a time: an advisory lock that vanishes with its holder.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{DiskError, IoContext, open_dir::no_follow};

/// A held lock; dropped, it is free again.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it, and left this note.
    #[error("held by another process ({note})")]
    Held {
        /// What the holder wrote with [`Lock::note`].
        note: String,
    },
    /// The lock file cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Lock {
    /// Takes the lock of this file, creating it if needed, without waiting.
    ///
    /// # Errors
    /// If another process holds it, or the file cannot be opened.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        // A link would have another file emptied.
        no_follow(&mut options);
        let mut file = options.open(path).on("open", path)?;
        match file.try_lock() {
            Ok(()) => {
                // What the last holder said of itself does not hold for us.
                file.set_len(0).on("write", path)?;
                Ok(Self { file, path: path.to_owned() })
            }
            Err(TryLockError::WouldBlock) => {
                let mut note = String::new();
                // The note is a courtesy: a holder that left none still holds the lock.
                let _ = file.read_to_string(&mut note);
                Err(LockError::Held { note: note.trim().to_owned() })
            }
            Err(TryLockError::Error(source)) => {
                Err(DiskError { op: "lock", path: path.to_owned(), source }.into())
            }
        }
    }

    /// Who holds the lock of this file, in words of its own; `None`: nobody, as far as can be known.
    /// Nothing is written.
    pub fn holder(path: &Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut note = String::new();
                let _ = file.read_to_string(&mut note);
                Some(note.trim().to_owned())
            }
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// Takes the lock of a directory, too, where that can be had: nobody removes that by mistake, as
    /// they may the file, whose lock would be worth nothing then.
    ///
    /// # Errors
    /// If another process holds it.
    pub fn acquire_directory(path: &Path) -> Result<Option<File>, LockError> {
        // Network disks and Windows do not lock directories: then there is the file's lock only.
        let Ok(dir) = File::open(path) else { return Ok(None) };
        match dir.try_lock() {
            Ok(()) => Ok(Some(dir)),
            Err(TryLockError::WouldBlock) => {
                Err(LockError::Held { note: "its lock file has been removed".into() })
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Leaves a note for those who find the lock held.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&mut self, text: &str) -> Result<(), DiskError> {
        (|| {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(text.as_bytes())
        })()
        .on("write", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_is_no_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("lock"), dir.path().join("target"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(Lock::acquire(&path), Err(LockError::Disk(_))));
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut first = Lock::acquire(&path).unwrap();
        first.note("pid 7").unwrap();
        match Lock::acquire(&path) {
            Err(LockError::Held { note }) => assert_eq!(note, "pid 7"),
            other => panic!("{other:?}"),
        }
        assert_eq!(Lock::holder(&path).as_deref(), Some("pid 7"));
        drop(first);
        assert_eq!(Lock::holder(&path), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"pid 7", "it was written to");
        assert_eq!(Lock::holder(&dir.path().join("none")), None);
        // The note was the first one's; it does not hold for the next.
        let _next = Lock::acquire(&path).unwrap();
        assert!(matches!(Lock::acquire(&path), Err(LockError::Held { note }) if note.is_empty()));
    }
}
