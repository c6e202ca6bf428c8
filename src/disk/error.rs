//! I/O errors that say what was attempted on which path.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file system operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {}", path.display())]
pub struct DiskError {
    /// The operation, as a verb: `open`, `rename to`, …
    pub op: &'static str,
    /// What it was attempted on.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// Whether a file system has no room left: ENOSPC, or a quota.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// The same error, for each of those whom it concerns.
    pub fn again(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { op: self.op, path: self.path.clone(), source }
    }
}

/// Adds operation and path to an [`io::Result`].
pub trait IoContext<T> {
    /// Names what was attempted, on which path.
    ///
    /// # Errors
    /// The error of the operation itself.
    fn on(self, op: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, op: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|source| DiskError { op, path: path.to_owned(), source })
    }
}
