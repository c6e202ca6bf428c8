//! A folder that is sent and the store that it is sent to must not contain each other: the store would grow
//! with each run by what the run before has stored.

use std::path::{Component, Path, PathBuf};

use super::{
    exit::{Exit, Failure},
    settings::Settings,
};
use crate::{agent::real, domain::RelPath};

/// What every store has in its directory.
const LOCK_FILE: &str = "farmhand.lock";
const BLOBS_DIR: &str = "file-store";

/// Refuses folders that contain the store of the settings, or are in it or in another store.
pub(super) fn require_apart(settings: &Settings, dirs: &[PathBuf]) -> Result<(), Failure> {
    let store = settings.values.storage.as_deref().map(resolved);
    for dir in dirs {
        let root = real(dir);
        if let Some(store) = &store {
            if store.starts_with(&root) {
                return Err(contains_store(&root, store));
            }
            if root.starts_with(store) {
                return Err(in_store(&root, store));
            }
        }
        if let Some(store) = root.ancestors().find(|dir| is_store(dir)) {
            return Err(in_store(&root, store));
        }
    }
    Ok(())
}

/// Refuses a list of files that contains a store; the settings need not name it.
pub(super) fn require_no_store<'a>(
    root: &Path,
    files: impl IntoIterator<Item = &'a RelPath>,
) -> Result<(), Failure> {
    let mut files = files.into_iter().map(|path| path.as_str());
    let is_lock = |path: &&str| path.rsplit('/').next() == Some(LOCK_FILE);
    let dirs = files.by_ref().filter(is_lock).map(|path| root.join(path));
    let store = dirs.filter_map(|path| Some(path.parent()?.to_owned())).find(|dir| is_store(dir));
    store.map_or(Ok(()), |store| Err(contains_store(root, &store)))
}

fn is_store(dir: &Path) -> bool {
    dir.join(LOCK_FILE).is_file() && dir.join(BLOBS_DIR).is_dir()
}

fn contains_store(root: &Path, store: &Path) -> Failure {
    let message = format!(
        "the store {} is inside the folder {} that is sent, and would grow with each run by what it holds \
         already; nothing was sent. Move the store out of the folder, or give another --storage",
        store.display(),
        root.display()
    );
    Failure::new(Exit::Usage, message)
}

fn in_store(root: &Path, store: &Path) -> Failure {
    let message = format!(
        "the folder {} is inside the store {}; nothing was sent. Give the folder that its files come from",
        root.display(),
        store.display()
    );
    Failure::new(Exit::Usage, message)
}

/// A path without links in it, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    match existing {
        Some((dir, real)) => match path.strip_prefix(dir) {
            Ok(rest) if !rest.as_os_str().is_empty() => lexical(&real.join(rest)),
            _ => real,
        },
        None => lexical(&path),
    }
}

/// A path without `.` and `..` in it; links are not looked at.
pub(super) fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_and_missing_parts_are_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("project")).unwrap();
        std::os::unix::fs::symlink(real.join("project"), real.join("link")).unwrap();
        assert_eq!(resolved(&real.join("link")), real.join("project"));
        assert_eq!(resolved(&real.join("link/new/store")), real.join("project/new/store"));
        assert_eq!(resolved(&real.join("new/../link/store")), real.join("link/store"));
    }
}
