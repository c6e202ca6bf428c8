//! A file that comes in pieces, in any order, over days and restarts, before it gets its name.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{DiskError, IoContext, OpenDir, change::Change, open_dir::no_follow, read_from_disk};

/// A file that is not whole yet. It stays where it is when this is dropped.
#[derive(Debug)]
pub struct PartFile {
    file: File,
    path: PathBuf,
}

impl PartFile {
    /// Opens what there is of it, or begins with nothing. What there is is read from the disk, and not from the
    /// memory of the system: that may have what never came to the disk, if writing it has failed.
    ///
    /// # Errors
    /// If it can be neither opened nor created.
    pub fn open(path: PathBuf) -> Result<Self, DiskError> {
        let mut options = File::options();
        options.read(true).write(true);
        no_follow(&mut options);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                options.create_new(true);
                Change::CreateFile.make(&path, None, || options.open(&path))?
            }
            found => {
                let file = match found {
                    // It was made read-only, and then nothing more came of it.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        make_writable(&path)?;
                        options.open(&path).on("open", &path)?
                    }
                    found => found.on("open", &path)?,
                };
                read_from_disk(&file);
                file
            }
        };
        Ok(Self { file, path })
    }

    /// How long it is: up to its last piece.
    ///
    /// # Errors
    /// If the file system does not answer.
    pub fn size_bytes(&self) -> Result<u64, DiskError> {
        Ok(self.file.metadata().on("look at", &self.path)?.len())
    }

    /// Reads exactly this range. Whether there is so much.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, DiskError> {
        read_at(&self.file, offset, buffer).on("read", &self.path)
    }

    /// Writes all of `data` at this place.
    ///
    /// # Errors
    /// If not all of it can be written.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        Change::Write.make(&self.path, None, || write_at(&self.file, offset, data))
    }

    /// Makes it so long, with nothing in what is new.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn set_len(&self, size_bytes: u64) -> Result<(), DiskError> {
        Change::Write.make(&self.path, None, || self.file.set_len(size_bytes))
    }

    /// Makes the content durable.
    ///
    /// # Errors
    /// If it cannot be synced: then nothing is known of it.
    pub fn sync(&self) -> Result<(), DiskError> {
        Change::SyncData.make(&self.path, None, || self.file.sync_data())
    }

    /// Makes it read-only for everybody and as young as one that has just been written, and gives it its name,
    /// replacing what stood there. The caller has made the content durable before, and makes the name durable
    /// with [`super::sync_dir`].
    ///
    /// # Errors
    /// If it cannot: then it is what it was.
    pub fn publish(&self, dir: &OpenDir, name: &str) -> Result<(), DiskError> {
        Change::ReadOnly.make(&self.path, None, || {
            #[cfg(unix)]
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o444);
            #[cfg(not(unix))]
            let permissions = {
                let mut permissions = self.file.metadata()?.permissions();
                permissions.set_readonly(true);
                permissions
            };
            self.file.set_modified(SystemTime::now())?;
            self.file.set_permissions(permissions)
        })?;
        dir.rename_from(&self.path, name)
    }
}

fn make_writable(path: &Path) -> Result<(), DiskError> {
    let mut permissions = std::fs::metadata(path).on("look at", path)?.permissions();
    #[cfg(unix)]
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    #[cfg(not(unix))]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions).on("make writable", path)
}

/// Reads exactly this range of a file. Whether there is so much.
///
/// # Errors
/// If it cannot be read.
pub fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<bool> {
    while !buffer.is_empty() {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(file, buffer, offset);
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
        match read {
            Ok(0) => return Ok(false),
            Ok(count) => {
                offset += count as u64;
                buffer = &mut buffer[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn write_at(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, data, offset);
    #[cfg(windows)]
    {
        let (mut offset, mut data) = (offset, data);
        while !data.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(file, data, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    offset += count as u64;
                    data = &data[count..];
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_comes_in_pieces_and_survives_being_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("part"), dir.path().join("blob"));
        let part = PartFile::open(path.clone()).unwrap();
        part.write_at(3, b"def").unwrap();
        drop(part);
        let part = PartFile::open(path.clone()).unwrap();
        let mut found = [0; 3];
        assert!(part.read_at(3, &mut found).unwrap());
        assert_eq!((&found, part.size_bytes().unwrap()), (b"def", 6));
        assert!(!part.read_at(4, &mut found).unwrap(), "there is no more");
        part.write_at(0, b"abc").unwrap();
        part.sync().unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        part.publish(&open, "blob").unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&target).unwrap(), b"abcdef");
        assert!(fs::metadata(&target).unwrap().permissions().readonly());
    }
}
