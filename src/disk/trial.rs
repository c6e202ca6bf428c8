//! Whether something can be written, found out in the only way that is sure.

use std::path::{Path, PathBuf};

use super::{DiskError, TempFile};

/// Makes a file in a directory and removes it. What permissions say need not hold: on network disks the
/// server decides, and a disk may be mounted for reading only.
///
/// # Errors
/// If no file can be made there, or it cannot be written.
pub fn try_writing(dir: &Path) -> Result<(), DiskError> {
    let name = format!(".farmhand-trial-{}-{:016x}", std::process::id(), fastrand::u64(..));
    TempFile::create(dir.join(name))?.write(b"trial")
}

/// The path itself if there is something, or else the nearest directory above it that there is.
pub fn nearest_existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        try_writing(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(try_writing(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn what_is_missing_has_something_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let found = nearest_existing(&dir.path().join("a/b/c")).unwrap();
        assert_eq!(found, dir.path());
        assert_eq!(nearest_existing(dir.path()).unwrap(), dir.path());
    }
}
