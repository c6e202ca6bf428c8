//! Refuses a storage in which another user could have farmhand write or remove elsewhere.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::layout::{JOBS, Layout};
use crate::disk::{DiskError, IoContext};

/// Directories of the store, each below one before it.
const DIRECTORIES: [&str; 8] = [
    "file-store",
    Layout::STORED,
    Layout::UPLOADING,
    Layout::QUARANTINE,
    "farmhand",
    Layout::RECORDS,
    JOBS,
    Layout::BUILDING,
];

/// Files of the store.
const FILES: [&str; 7] = [
    "farmhand.lock",
    "farmhand/pins",
    "farmhand/scrub.json",
    "farmhand/history.json",
    "farmhand/chunks-1.sqlite",
    "farmhand/jobs-1.sqlite",
    "farmhand/jobs-1.sqlite-wal",
];

/// Why a storage is refused.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    /// A link: a change of it is a change somewhere else.
    #[error(
        "{} is {what}, and farmhand writes and removes nothing through one; replace it with a {expected} \
         of its own (to keep it on another disk, mount that disk there)", path.display()
    )]
    Linked {
        /// The path.
        path: PathBuf,
        /// What stands there.
        what: &'static str,
        /// What should.
        expected: &'static str,
    },
    /// Another user's file or directory.
    #[error(
        "{} belongs to user {owner}, who could have farmhand (user {user}) write or remove files elsewhere; \
         run farmhand as user {owner}, or give it the storage: chown -R {user} {}",
        path.display(), storage.display()
    )]
    Owner {
        /// The path.
        path: PathBuf,
        /// The storage directory.
        storage: PathBuf,
        /// The number of the user who owns it.
        owner: u32,
        /// The number of the user who runs this program.
        user: u32,
    },
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Checks all files and directories of the store that exist.
pub(super) fn check(layout: &Layout) -> Result<(), NotOurs> {
    let root = layout.root();
    match fs::metadata(root) {
        Ok(found) => require_owner(root, root, &found, root)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).on("look at", root)?,
    }
    let prefixes = (0..=u8::MAX).map(|prefix| format!("{}/{prefix:02x}", Layout::STORED));
    let directories = DIRECTORIES.into_iter().map(str::to_owned).chain(prefixes);
    for below in directories {
        check_one(layout.root(), &below, true)?;
    }
    FILES.into_iter().try_for_each(|below| check_one(layout.root(), below, false))
}

fn check_one(storage: &Path, below: &str, is_dir: bool) -> Result<(), NotOurs> {
    let path = storage.join(below);
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).on("look at", &path)?,
    };
    let expected = if is_dir { "directory" } else { "file" };
    let linked = |what| Err(NotOurs::Linked { path: path.clone(), what, expected });
    if found.is_symlink() {
        return linked("a symbolic link");
    }
    require_owner(storage, &path, &found, if is_dir { &path } else { storage })
}

/// Checks that a file or directory belongs to this process's user, or to root. `dir` is a directory in which
/// that user's files can be seen.
fn require_owner(
    storage: &Path,
    path: &Path,
    found: &fs::Metadata,
    dir: &Path,
) -> Result<(), NotOurs> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let user = rustix::process::geteuid().as_raw();
        if !is_trusted(found.uid(), user) && squashed_user(dir) != Some(found.uid()) {
            let (path, storage, owner) = (path.to_owned(), storage.to_owned(), found.uid());
            return Err(NotOurs::Owner { path, storage, owner, user });
        }
    }
    #[cfg(not(unix))]
    let _ = (storage, path, found, dir);
    Ok(())
}

/// Root can do anything anyway.
#[cfg(unix)]
fn is_trusted(owner: u32, user: u32) -> bool {
    owner == user || owner == 0
}

/// The user to whom this process's files belong there: NFS servers may give all to one.
#[cfg(unix)]
fn squashed_user(dir: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let probe = dir.join(format!(".farmhand-probe-{:016x}", fastrand::u64(..)));
    let file = fs::File::options().write(true).create_new(true).open(&probe).ok()?;
    let owner = file.metadata().ok().map(|found| found.uid());
    let _ = fs::remove_file(&probe);
    owner
}

#[cfg(all(test, unix))]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_in_the_storage_are_refused() {
        for (below, is_dir) in DIRECTORIES
            .map(|below| (below, true))
            .into_iter()
            .chain(FILES.map(|below| (below, false)))
            .chain([("file-store/stored/ab", true)])
        {
            let dir = tempfile::tempdir().unwrap();
            let (storage, outside) = (dir.path().join("storage"), dir.path().join("outside"));
            let path = storage.join(below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let layout = Layout::new(&storage);
            let check = || check(&layout);
            check().unwrap();
            let expected = format!("{} is a symbolic link", path.display());
            symlink(&outside, &path).unwrap();
            let dangling = check().unwrap_err().to_string();
            assert!(dangling.starts_with(&expected), "{dangling}");
            match is_dir {
                true => fs::create_dir(&outside).unwrap(),
                false => fs::write(&outside, "precious").unwrap(),
            }
            assert!(check().unwrap_err().to_string().starts_with(&expected));
            fs::remove_file(&path).unwrap();
            check().unwrap();
        }
    }

    #[test]
    fn another_users_storage_is_refused() {
        assert!(is_trusted(1000, 1000) && is_trusted(0, 1000) && !is_trusted(1000, 0));
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join(JOBS);
        fs::create_dir(&jobs).unwrap();
        check(&Layout::new(dir.path())).unwrap();
        assert_eq!(squashed_user(&jobs), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(fs::read_dir(&jobs).unwrap().count(), 0, "the probe is removed");
        // Only root can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&jobs, Some(12345), None).unwrap();
            let refused = check(&Layout::new(dir.path())).unwrap_err().to_string();
            assert!(refused.contains("jobs belongs to user 12345"), "{refused}");
            assert!(refused.contains("chown -R 0 "), "{refused}");
            std::os::unix::fs::chown(&jobs, Some(0), None).unwrap();
            std::os::unix::fs::chown(dir.path(), Some(12345), None).unwrap();
            let refused = check(&Layout::new(dir.path())).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 12345"), "{refused}");
        }
    }
}
