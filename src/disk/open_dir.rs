//! Directories that are held open, and changes below them that follow no symbolic link.
//!
//! A path is looked up anew by every system call, so a check of it proves nothing about the next call:
//! a directory on the way can have become a link meanwhile. An open directory stays the one that was
//! opened, and [`OpenDir::open_below`] opens one below it only if no link is on the way.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use super::{DiskError, Fingerprint, Found, IoContext, change::Change};

/// The kind of a directory entry. Links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A regular file.
    File,
    /// A device, a pipe, a socket.
    Other,
}

/// The answer of `stat` for a directory entry. Links are not followed.
#[derive(Debug, Clone, Copy)]
pub struct EntryStat {
    /// Its kind.
    pub kind: EntryKind,
    /// Size, times, inode and device. The time of birth is left out.
    pub fingerprint: Fingerprint,
    /// How many names the inode has.
    pub names: u64,
}

/// A directory that is held open: its entries are found without its path.
#[derive(Debug)]
pub struct OpenDir {
    path: PathBuf,
    #[cfg(unix)]
    dir: fs::File,
}

impl OpenDir {
    /// Opens a directory. Links on the way to it are followed.
    ///
    /// # Errors
    /// If there is none, or it cannot be opened.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        #[cfg(unix)]
        {
            use rustix::fs::{CWD, Mode, OFlags, openat};
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let dir = openat(CWD, &path, flags, Mode::empty())?.into();
            Ok(Self { path, dir })
        }
        #[cfg(not(unix))]
        match fs::metadata(&path)?.is_dir() {
            true => Ok(Self { path }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Opens a directory below this one, by a relative path; an empty path is this directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotADirectory`] if a component is a symbolic link or a file, and
    /// [`io::ErrorKind::InvalidInput`] if one is `..`.
    pub fn open_below(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let is_plain = |part| matches!(part, std::path::Component::Normal(_));
        if !path.components().all(is_plain) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Joined with nothing, a path gets a slash.
        let empty = path.as_os_str().is_empty();
        let full = if empty { self.path.clone() } else { self.path.join(path) };
        #[cfg(unix)]
        {
            let dir = if empty { self.dir.try_clone()? } else { open_beneath(&self.dir, path)? };
            Ok(Self { path: full, dir })
        }
        #[cfg(not(unix))]
        {
            let mut at = self.path.clone();
            for part in path {
                at.push(part);
                if !fs::symlink_metadata(&at)?.is_dir() {
                    return Err(a_link());
                }
            }
            Ok(Self { path: full })
        }
    }

    /// The directory's path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at what stands under this name, and at no link's target.
    ///
    /// # Errors
    /// If nothing does, or the file system cannot say.
    pub fn look(&self, name: &str) -> io::Result<Found> {
        #[cfg(unix)]
        {
            use rustix::fs::{AtFlags, statat};
            Ok(Found::from(&statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
        }
        #[cfg(not(unix))]
        fs::symlink_metadata(self.path.join(name)).map(|found| Found::from(&found))
    }

    /// Kind, fingerprint and number of names of an entry. Links are not followed.
    ///
    /// # Errors
    /// If there is no such entry, or the file system cannot say.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<EntryStat> {
        let name = name.as_ref();
        #[cfg(unix)]
        {
            use rustix::fs::{AtFlags, FileType, statat};
            let found = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            #[allow(clippy::unnecessary_cast)] // The type differs between systems.
            let kind = match FileType::from_raw_mode(found.st_mode as _) {
                FileType::Directory => EntryKind::Directory,
                FileType::Symlink => EntryKind::Link,
                FileType::RegularFile => EntryKind::File,
                _ => EntryKind::Other,
            };
            #[allow(clippy::unnecessary_cast)]
            let names = found.st_nlink as u64;
            Ok(EntryStat { kind, fingerprint: Fingerprint::from(&found), names })
        }
        #[cfg(not(unix))]
        {
            let found = fs::symlink_metadata(self.path.join(name))?;
            let kind = match found.file_type() {
                kind if kind.is_symlink() => EntryKind::Link,
                kind if kind.is_dir() => EntryKind::Directory,
                kind if kind.is_file() => EntryKind::File,
                _ => EntryKind::Other,
            };
            Ok(EntryStat { kind, fingerprint: Fingerprint::of(&found), names: 1 })
        }
    }

    /// A number of the mount that this directory is on: also a bind mount has one of its own. Where mounts
    /// have no numbers (before Linux 5.8), that of the device.
    ///
    /// # Errors
    /// If the file system cannot say.
    pub fn mount(&self) -> io::Result<u64> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{AtFlags, StatxFlags, statx};
            let found = statx(&self.dir, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
            if let Ok(found) = found
                && found.stx_mask & StatxFlags::MNT_ID.bits() != 0
            {
                return Ok(found.stx_mnt_id);
            }
        }
        #[cfg(unix)]
        return Ok(Fingerprint::of(&self.dir.metadata()?).device);
        #[cfg(not(unix))]
        Ok(0)
    }

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// If it is none.
    pub fn link_text(&self, name: impl AsRef<OsStr>) -> io::Result<PathBuf> {
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            let text = rustix::fs::readlinkat(&self.dir, name.as_ref(), Vec::new())?;
            Ok(OsString::from_vec(text.into_bytes()).into())
        }
        #[cfg(not(unix))]
        fs::read_link(self.path.join(name.as_ref()))
    }

    /// Names and kinds of all entries.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn entries(&self) -> io::Result<Vec<(OsString, EntryKind)>> {
        let mut entries = Vec::new();
        #[cfg(unix)]
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            use rustix::fs::FileType;
            use std::os::unix::ffi::OsStrExt;
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Directory => EntryKind::Directory,
                FileType::Symlink => EntryKind::Link,
                FileType::RegularFile => EntryKind::File,
                // Some file systems do not say.
                FileType::Unknown => match self.stat(name) {
                    Ok(found) => found.kind,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
                _ => EntryKind::Other,
            };
            entries.push((name.to_owned(), kind));
        }
        #[cfg(not(unix))]
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let kind = self.stat(&name)?.kind;
            entries.push((name, kind));
        }
        Ok(entries)
    }

    /// How many directories there are in it, by the number of its names; `None` where those are not counted.
    pub fn directories(&self) -> Option<u64> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            // Itself by its name, and as `.`. File systems that do not count say 1.
            self.dir.metadata().ok()?.nlink().checked_sub(2)
        }
        #[cfg(not(unix))]
        None
    }

    /// All names in it that are text; `None` if it has more names than that, or cannot be listed.
    pub fn names(&self, most: usize) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for (number, entry) in fs::read_dir(&self.path).ok()?.enumerate() {
            let name = entry.ok().filter(|_| number < most)?.file_name();
            names.extend(name.into_string());
        }
        Some(names)
    }

    /// Creates a directory of this name.
    ///
    /// # Errors
    /// If it cannot be created, [`io::ErrorKind::AlreadyExists`] among them.
    pub fn create_dir(&self, name: &str) -> Result<(), DiskError> {
        #[cfg(unix)]
        {
            let mode = rustix::fs::Mode::from_raw_mode(0o777);
            let create = || Ok(rustix::fs::mkdirat(&self.dir, name, mode)?);
            Change::CreateDir.make_in(&self.path, name, create)
        }
        #[cfg(not(unix))]
        super::create_dir(&self.path.join(name))
    }

    /// Creates a file of this name for writing; nothing may have the name.
    ///
    /// # Errors
    /// If it cannot be created, [`io::ErrorKind::AlreadyExists`] among them.
    pub fn create_file(&self, name: &str) -> io::Result<fs::File> {
        #[cfg(unix)]
        {
            use rustix::fs::{Mode, OFlags, openat};
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            Ok(openat(&self.dir, name, flags, Mode::from_raw_mode(0o666))?.into())
        }
        #[cfg(not(unix))]
        fs::File::options().write(true).create_new(true).open(self.path.join(name))
    }

    /// Makes a symbolic link of this name in it; see [`super::symlink`].
    ///
    /// # Errors
    /// The same.
    pub fn symlink(&self, target: &str, name: &str) -> Result<(), DiskError> {
        #[cfg(unix)]
        {
            let make = || Ok(rustix::fs::symlinkat(target, &self.dir, name)?);
            Change::Symlink.make_in(&self.path, name, make)
        }
        #[cfg(not(unix))]
        super::symlink(Path::new(target), &self.path.join(name))
    }

    /// Makes another name of `file` in it.
    ///
    /// # Errors
    /// If the name is taken, or the file system has no more names for the file, or none at all.
    pub fn hard_link(&self, file: &Path, name: &str) -> Result<(), DiskError> {
        let link = self.path.join(name);
        Change::HardLink.make(&link, Some(file), || {
            #[cfg(unix)]
            {
                use rustix::fs::{AtFlags, CWD, linkat};
                Ok(linkat(CWD, file, &self.dir, name, AtFlags::empty())?)
            }
            #[cfg(not(unix))]
            fs::hard_link(file, &link)
        })
    }

    /// Renames an entry into another open directory, replacing a file that has the name there.
    ///
    /// # Errors
    /// If there is no such entry, the other directory is on another file system, or a directory has
    /// the name.
    pub fn rename(&self, name: &str, to: &Self, new: &str) -> Result<(), DiskError> {
        let (from, target) = (self.path.join(name), to.path.join(new));
        Change::Rename.make(&target, Some(&from), || {
            #[cfg(unix)]
            return Ok(rustix::fs::renameat(&self.dir, name, &to.dir, new)?);
            #[cfg(not(unix))]
            fs::rename(&from, &target)
        })
    }

    /// Gives an entry another name in the same directory.
    ///
    /// # Errors
    /// If there is no such entry, or a directory has the new name.
    pub fn rename_aside(&self, name: &OsStr, aside: &str) -> Result<(), DiskError> {
        let (from, target) = (self.path.join(name), self.path.join(aside));
        Change::Rename.make(&target, Some(&from), || {
            #[cfg(unix)]
            return Ok(rustix::fs::renameat(&self.dir, name, &self.dir, aside)?);
            #[cfg(not(unix))]
            fs::rename(&from, &target)
        })
    }

    /// Gives an entry its name back, unless another has taken it: then the entry is removed.
    ///
    /// # Errors
    /// If neither can be done.
    pub fn rename_back(&self, aside: &str, name: &OsStr) -> Result<(), DiskError> {
        let (from, target) = (self.path.join(aside), self.path.join(name));
        #[cfg(unix)]
        let linked = {
            use rustix::fs::{AtFlags, linkat};
            let link = || Ok(linkat(&self.dir, aside, &self.dir, name, AtFlags::empty())?);
            Change::HardLink.make(&target, Some(&from), link)
        };
        #[cfg(not(unix))]
        let linked = Change::HardLink.make(&target, Some(&from), || fs::hard_link(&from, &target));
        match linked {
            Err(error) if error.source.kind() != io::ErrorKind::AlreadyExists => {
                // A file system without hard links.
                self.rename_aside(OsStr::new(aside), &name.to_string_lossy())
            }
            _ => self.remove_file(aside),
        }
    }

    /// Renames a file on the same file system into it, replacing a file that has the name there.
    ///
    /// # Errors
    /// If there is no such file, it is on another file system, or a directory has the name.
    pub fn rename_from(&self, file: &Path, name: &str) -> Result<(), DiskError> {
        let target = self.path.join(name);
        Change::Rename.make(&target, Some(file), || {
            #[cfg(unix)]
            return Ok(rustix::fs::renameat(rustix::fs::CWD, file, &self.dir, name)?);
            #[cfg(not(unix))]
            fs::rename(file, &target)
        })
    }

    /// Renames a directory in it into another open directory, if the name is free there, in one step.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken.
    pub fn rename_new(&self, name: &str, to: &Self, new: &str) -> Result<(), DiskError> {
        let (from, target) = (self.path.join(name), to.path.join(new));
        Change::Rename.make(&target, Some(&from), || {
            #[cfg(unix)]
            return super::rename::rename_new((&self.dir, name), (&to.dir, new));
            #[cfg(not(unix))]
            super::rename::claim_and_rename(&from, &target)
        })
    }

    /// Removes an entry that is not a directory. A link is removed, and its target left alone.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> Result<(), DiskError> {
        let name = name.as_ref();
        #[cfg(unix)]
        {
            use rustix::fs::{AtFlags, unlinkat};
            let remove = || Ok(unlinkat(&self.dir, name, AtFlags::empty())?);
            Change::Remove.make_in(&self.path, name, remove)
        }
        #[cfg(not(unix))]
        super::remove_file(&self.path.join(name))
    }

    /// Removes an empty directory. Returns whether it is gone: it stays if something is in it.
    ///
    /// # Errors
    /// If it is empty and cannot be removed.
    pub fn remove_dir_if_empty(&self, name: impl AsRef<OsStr>) -> Result<bool, DiskError> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound};
        let name = name.as_ref();
        #[cfg(unix)]
        let removed = {
            use rustix::fs::{AtFlags, unlinkat};
            let remove = || Ok(unlinkat(&self.dir, name, AtFlags::REMOVEDIR)?);
            Change::Remove.make_in(&self.path, name, remove)
        };
        #[cfg(not(unix))]
        let removed = {
            let path = self.path.join(name);
            Change::Remove.make(&path, None, || fs::remove_dir(&path))
        };
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == NotFound => Ok(true),
            Err(error) if error.source.kind() == DirectoryNotEmpty => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry of any kind, with everything below it. Links are removed, not followed.
    ///
    /// # Errors
    /// If something below it cannot be removed.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> Result<(), DiskError> {
        let name = name.as_ref();
        let path = || self.path.join(name);
        let below = match self.open_below(name) {
            Ok(below) => below,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return self.remove_file(name);
            }
            Err(error) => return Err(error).on("open", &path()),
        };
        for (entry, kind) in below.entries().on("list", &path())? {
            match kind {
                EntryKind::Directory => below.remove_all(&entry)?,
                _ => below.remove_file(&entry)?,
            }
        }
        self.remove_dir_if_empty(name).map(drop)
    }

    /// Makes the names in it durable; see [`super::sync_dir`].
    ///
    /// # Errors
    /// The same.
    pub fn sync(&self) -> Result<(), DiskError> {
        Change::SyncDir.make(&self.path, None, || {
            #[cfg(unix)]
            self.dir.sync_all()?;
            Ok(())
        })
    }

    /// Sets the modification time of the file under this name to now.
    ///
    /// # Errors
    /// If the file is gone or not ours.
    pub fn touch(&self, name: &str) -> Result<(), DiskError> {
        #[cfg(unix)]
        {
            let touched = super::stat::touch_at(&self.dir, Path::new(name));
            touched.map_err(|source| DiskError { op: "touch", path: self.path.join(name), source })
        }
        #[cfg(not(unix))]
        super::touch(&self.path.join(name))
    }
}

/// Has a file opened only if its name is no symbolic link.
pub(super) fn no_follow(options: &mut fs::OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        options,
        rustix::fs::OFlags::NOFOLLOW.bits().cast_signed(),
    );
    #[cfg(not(unix))]
    let _ = options;
}

/// The error for a path with a symbolic link on it.
fn a_link() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotADirectory,
        "it is a symbolic link or not a directory, or a directory above it is; farmhand follows no \
         links there",
    )
}

#[cfg(unix)]
fn open_beneath(dir: &fs::File, path: &Path) -> io::Result<fs::File> {
    #[cfg(target_os = "linux")]
    {
        use rustix::{
            fs::{Mode, OFlags, ResolveFlags, openat2},
            io::Errno,
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(dir, path, flags, Mode::empty(), resolve) {
            Ok(found) => return Ok(found.into()),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(a_link()),
            Err(error @ Errno::NOENT) => return Err(error.into()),
            // Linux before 5.6, a container that forbids the call, or a rename at the same moment. What
            // is wrong otherwise, the walk finds, too.
            Err(_) => {}
        }
    }
    walk_beneath(dir, path)
}

/// Opens one component after the other, each from the one before.
#[cfg(unix)]
fn walk_beneath(dir: &fs::File, path: &Path) -> io::Result<fs::File> {
    use rustix::{
        fs::{Mode, OFlags, openat},
        io::Errno,
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<fs::File> = None;
    for part in path {
        at = match openat(at.as_ref().unwrap_or(dir), part, flags, Mode::empty()) {
            Ok(found) => Some(found.into()),
            // Systems differ in which of these a link is.
            Err(Errno::LOOP | Errno::NOTDIR | Errno::MLINK) => return Err(a_link()),
            Err(error) => return Err(error.into()),
        };
    }
    at.map_or_else(|| dir.try_clone(), Ok)
}

#[cfg(all(test, unix))]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// `root/real/deep`, and `root/link` that leads outside to a directory with a file.
    fn tree() -> (tempfile::TempDir, OpenDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("real/deep")).unwrap();
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("real", root.join("inside")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        (dir, OpenDir::open(root).unwrap(), outside)
    }

    #[test]
    fn links_on_the_way_are_refused() {
        let (_dir, root, _) = tree();
        type Open = fn(&fs::File, &Path) -> io::Result<fs::File>;
        for open in [open_beneath as Open, walk_beneath] {
            let kind = |path: &str| open(&root.dir, Path::new(path)).unwrap_err().kind();
            assert!(open(&root.dir, Path::new("real/deep")).is_ok());
            for bad in ["link", "link/deep", "inside", "inside/deep", "file", "file/x"] {
                assert_eq!(kind(bad), io::ErrorKind::NotADirectory, "{bad}");
            }
            assert_eq!(kind("gone"), io::ErrorKind::NotFound);
        }
        for bad in ["..", "real/../..", "/", "/etc"] {
            let error = root.open_below(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(root.open_below("").unwrap().path(), root.path());
    }

    #[test]
    fn removal_leaves_link_targets_alone() {
        let (_dir, root, outside) = tree();
        let all = root.path().to_owned();
        let above = OpenDir::open(all.parent().unwrap().to_owned()).unwrap();
        above.remove_all("root").unwrap();
        assert!(!all.exists());
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
        above.remove_all("root").unwrap();
    }

    #[test]
    fn entries_are_told_by_kind() {
        let (_dir, root, _) = tree();
        let mut entries = root.entries().unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("file", EntryKind::File),
            ("inside", EntryKind::Link),
            ("link", EntryKind::Link),
            ("real", EntryKind::Directory),
        ];
        assert_eq!(entries, expected.map(|(name, kind)| (OsString::from(name), kind)));
        assert_eq!(root.link_text("inside").unwrap(), Path::new("real"));
        for (name, kind) in expected {
            assert_eq!(root.stat(name).unwrap().kind, kind);
        }
        let file = fs::symlink_metadata(root.path().join("file")).unwrap();
        let expected = Fingerprint { born_ns: 0, ..Fingerprint::of(&file) };
        assert_eq!(root.stat("file").unwrap().fingerprint, expected);
    }

    #[test]
    fn a_rename_follows_no_link_and_replaces_none() {
        let (_dir, root, outside) = tree();
        root.create_dir("new").unwrap();
        let taken = root.rename_new("new", &root, "link").unwrap_err();
        assert_eq!(taken.source.kind(), io::ErrorKind::AlreadyExists);
        // A file takes the link's name, and not the place of its target.
        root.rename("file", &root, "link").unwrap();
        assert_eq!(root.stat("link").unwrap().kind, EntryKind::File);
        assert!(outside.join("file").exists());
    }
}
