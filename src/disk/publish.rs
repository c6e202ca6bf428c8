//! Whole files or none: temp → write → sync → rename → sync the directories.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    DiskError, IoContext, OpenDir,
    change::{Change, remove_file, rename, sync_dir},
    open_dir::no_follow,
};

/// A file that is being written and is not yet visible under its name. Dropped unpublished, it is removed.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    published: bool,
    /// Nobody is to write to it once it has its name.
    #[cfg_attr(not(windows), allow(dead_code))]
    read_only: bool,
}

impl TempFile {
    /// Creates `path`, which must not exist, read-only for everybody once it is closed.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: PathBuf) -> Result<Self, DiskError> {
        Self::open(path, true)
    }

    /// The same for a file that a user has asked for, and may write to.
    ///
    /// # Errors
    /// As [`TempFile::create`].
    pub fn create_writable(path: PathBuf) -> Result<Self, DiskError> {
        Self::open(path, false)
    }

    fn open(path: PathBuf, read_only: bool) -> Result<Self, DiskError> {
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if read_only {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o444);
        }
        let file = Change::CreateFile.make(&path, None, || options.open(&path))?;
        Ok(Self { file, path, published: false, read_only })
    }

    /// Appends all of `data`.
    ///
    /// # Errors
    /// If not all of it can be written.
    pub fn write(&mut self, data: &[u8]) -> Result<(), DiskError> {
        Change::Write.make(&self.path, None, || self.file.write_all(data))
    }

    /// Makes the content durable.
    ///
    /// # Errors
    /// If it cannot be synced: then nothing is known of it, and it must be written again.
    pub fn sync(&self) -> Result<(), DiskError> {
        Change::SyncData.make(&self.path, None, || self.file.sync_data())
    }

    /// Gives the file its name, replacing what stood there. The directory of `target` must exist; the
    /// caller has made the content durable before, and makes the name durable with
    /// [`super::sync_dir`].
    ///
    /// # Errors
    /// If the name cannot be given; the temp file is removed then.
    pub fn publish(mut self, target: &Path) -> Result<(), DiskError> {
        #[cfg(windows)]
        if self.read_only {
            set_read_only(&self.file, &self.path)?;
        }
        rename(&self.path, target)?;
        self.published = true;
        Ok(())
    }

    /// The same for a name in an open directory.
    ///
    /// # Errors
    /// As [`TempFile::publish`].
    pub fn publish_in(mut self, dir: &OpenDir, name: &str) -> Result<(), DiskError> {
        #[cfg(windows)]
        if self.read_only {
            set_read_only(&self.file, &self.path)?;
        }
        dir.rename_from(&self.path, name)?;
        self.published = true;
        Ok(())
    }
}

/// Writes a small file of our own as a whole: readers see the old content or the new one. If `durable`,
/// its content is synced before it gets its name; the name is the caller's affair.
///
/// # Errors
/// If it cannot be written: then the old content stands.
pub fn replace_file(path: &Path, content: &[u8], durable: bool) -> Result<(), DiskError> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let temp = PathBuf::from(temp);
    // What a killed process was writing.
    if temp.exists() {
        remove_file(&temp)?;
    }
    let mut file = TempFile::create(temp)?;
    file.write(content)?;
    if durable {
        file.sync()?;
    }
    file.publish(path)
}

/// Appends to a small file of our own, which is made if it is not there. If `durable`, it is on the disk then,
/// name and all.
///
/// # Errors
/// If not all of it can be written: then the end of the file may be a part of it.
pub fn append_file(path: &Path, content: &[u8], durable: bool) -> Result<(), DiskError> {
    let mut options = File::options();
    options.append(true);
    no_follow(&mut options);
    let (mut file, is_new) = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            options.create(true);
            (Change::CreateFile.make(path, None, || options.open(path))?, true)
        }
        found => (found.on("open", path)?, false),
    };
    Change::Write.make(path, None, || file.write_all(content))?;
    if durable {
        Change::SyncData.make(path, None, || file.sync_data())?;
        if let (true, Some(dir)) = (is_new, path.parent()) {
            sync_dir(dir)?;
        }
    }
    Ok(())
}

#[cfg(windows)]
fn set_read_only(file: &File, path: &Path) -> Result<(), DiskError> {
    let mut permissions = file.metadata().on("look at", path)?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions).on("make read-only", path)
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.published {
            // Nothing better can be done here; a leftover is removed when the store is next opened.
            let _ = remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::sync_dir;

    #[test]
    fn a_published_file_is_whole_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (temp, target) = (dir.path().join("t"), dir.path().join("blob"));
        let mut file = TempFile::create(temp.clone()).unwrap();
        file.write(b"whole").unwrap();
        assert!(!target.exists());
        file.sync().unwrap();
        file.publish(&target).unwrap();
        sync_dir(dir.path()).unwrap();
        assert!(!temp.exists());
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert!(fs::metadata(&target).unwrap().permissions().readonly());
    }

    #[test]
    fn what_a_user_has_asked_for_can_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("mine");
        let file = TempFile::create_writable(dir.path().join("t")).unwrap();
        file.publish(&target).unwrap();
        assert!(!fs::metadata(&target).unwrap().permissions().readonly());
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = TempFile::create(dir.path().join("t")).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn errors_name_operation_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/t");
        let error = TempFile::create(missing.clone()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}", missing.display()));
        assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
    }
}
