//! Checkouts: built aside, renamed in, never half visible.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    Durability, Store,
    layout::{JOBS, Layout, Links},
    materialize,
    records::{Copied, Record},
};
use crate::{
    disk::{DiskError, EntryKind, Fingerprint, IoContext, OpenDir, sync_file_system},
    domain::{BlobId, CheckoutPath, Entry, Manifest, report::LinkMode},
};

/// How often a taken name gets another suffix. With 36⁴ of them, failing this often means that
/// something else is wrong.
const NAME_TRIES: usize = 50;

/// The longest path that system calls take: Linux's `PATH_MAX` without the NUL.
const LONGEST_PATH_BYTES: usize = 4095;

/// Why there is no checkout. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// These blobs are not stored.
    #[error("{} of the files are not stored", .0.len())]
    Missing(Vec<BlobId>),
    /// The name stands in the way of something else.
    #[error("cannot create the checkout {path:?}: {reason}")]
    Conflict {
        /// The name wished for.
        path: CheckoutPath,
        /// What is in the way.
        reason: String,
    },
    /// A path that is too long where it would stand.
    #[error("{path:?} is too long for the server's file system")]
    TooLong {
        /// The end of the path.
        path: String,
    },
    /// Two names that this file system holds to be one.
    #[error(
        "{0:?} is also the name of another file here: the file system does not tell them apart"
    )]
    SameName(String),
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Store {
    /// Makes a directory of links to the blobs. If the name is taken, another one is made from it.
    /// Returns the name used.
    ///
    /// # Errors
    /// If blobs are missing, the name is impossible, or the file system refuses.
    pub fn checkout(
        &self,
        wish: &CheckoutPath,
        manifest: &Manifest,
    ) -> Result<CheckoutPath, CheckoutError> {
        if Layout::is_reserved(wish) {
            let reason = "farmhand builds checkouts there".into();
            return Err(CheckoutError::Conflict { path: wish.clone(), reason });
        }
        self.check_lengths(wish, manifest)?;
        self.require_all(manifest)?;
        let staging = Staging::create(self.open_dir(Layout::BUILDING)?)?;
        let copies = self.fill(&staging.dir, wish, manifest)?;
        let _one = self.naming.lock().expect("BUG: no one panics with this lock");
        let mut parents = Parents::default();
        let above = self.make_parents(wish, &mut parents)?;
        let used = self.name(wish, &staging, &above, manifest, copies.as_deref())?;
        parents.keep();
        Ok(used)
    }

    /// Where a checkout is built its paths are short; where it will stand, they must be usable, too.
    fn check_lengths(&self, wish: &CheckoutPath, manifest: &Manifest) -> Result<(), CheckoutError> {
        let above = self.layout.checkout(wish).as_os_str().len() + "-xxxx/".len();
        match manifest.entries().iter().find(|e| above + e.path.as_str().len() > LONGEST_PATH_BYTES)
        {
            Some(entry) => Err(CheckoutError::TooLong { path: entry.path.as_str().to_owned() }),
            None => Ok(()),
        }
    }

    fn require_all(&self, manifest: &Manifest) -> Result<(), CheckoutError> {
        let ids: Vec<BlobId> = manifest.entries().iter().map(|entry| entry.blob).collect();
        let mut missing: Vec<BlobId> =
            self.requirements(&ids)?.into_iter().map(|(at, _)| ids[at]).collect();
        missing.sort_unstable();
        if missing.is_empty() { Ok(()) } else { Err(CheckoutError::Missing(missing)) }
    }

    /// Makes the directories above a checkout, and opens the last. Each is a real directory, and no
    /// checkout itself, by its record or its look: none must grow into another job's.
    fn make_parents(
        &self,
        wish: &CheckoutPath,
        made: &mut Parents,
    ) -> Result<OpenDir, CheckoutError> {
        let conflict = |reason| CheckoutError::Conflict { path: wish.clone(), reason };
        let mut above = self.open_dir(JOBS)?;
        for (end, _) in wish.as_str().match_indices('/') {
            let parent: CheckoutPath =
                wish.as_str()[..end].parse().expect("BUG: a part of a checkout's path is one");
            let (part, name) = (parent.as_str(), parent.as_rel().split().1);
            if self.erasing().contains_key(&parent) {
                return Err(conflict(format!("{part:?} is being deleted")));
            }
            above = loop {
                match above.open_below(name) {
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                        return Err(conflict(format!("{part:?} is not a directory")));
                    }
                    Ok(dir) => {
                        if self.record(&parent)?.is_some() || holds_files(&dir)? {
                            return Err(conflict(format!("{part:?} is itself a checkout")));
                        }
                        // Whoever made it may not have come this far.
                        self.sync_dir(above.path())?;
                        break dir;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error).on("open", &above.path().join(name))?,
                }
                // Of a checkout that somebody has removed.
                self.remove_record(&parent)?;
                match above.create_dir(name) {
                    Ok(()) => made
                        .0
                        .push((above.open_below("").on("open", above.path())?, name.to_owned())),
                    // Somebody was faster: look what it is.
                    Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error.into()),
                }
            };
        }
        Ok(above)
    }

    /// Makes all directories and links, and makes them durable.
    ///
    /// Returns the files that are its own, where there may be such.
    fn fill(
        &self,
        dir: &OpenDir,
        name: &CheckoutPath,
        manifest: &Manifest,
    ) -> Result<Option<Vec<Copied>>, CheckoutError> {
        let folders = folders(manifest);
        let open = |path: &str| dir.open_below(path).on("open", &dir.path().join(path));
        // A directory sorts before what is in it.
        for folder in folders.iter().skip(1) {
            let (above, name) = folder.path.rsplit_once('/').unwrap_or(("", folder.path));
            open(above)?.create_dir(name).map_err(bad_name)?;
        }
        let mode = self.options.link_mode;
        // One thread for each directory: the file system lets no more than one make names in it.
        folders.par_iter().with_max_len(1).filter(|folder| !folder.runs.is_empty()).try_for_each(
            |folder| {
                let open = open(folder.path)?;
                let make = |entry: &Entry, links: &mut Links| {
                    let blob = || self.layout.blob(&entry.blob).1;
                    let at = (&open, entry.path.split().1);
                    materialize::make(mode, || links.to(&entry.blob), blob, at).map_err(bad_name)
                };
                let links = || Links::new(name, folder.path);
                if materialize::has_content(mode) {
                    // What takes time is the content, not the name.
                    let entries = folder.runs.par_iter().flat_map(|run| run.par_iter());
                    return entries.try_for_each_init(links, |links, entry| make(entry, links));
                }
                let mut links = links();
                folder.runs.iter().copied().flatten().try_for_each(|entry| make(entry, &mut links))
            },
        )?;
        let copies = match mode {
            LinkMode::Symlink => None,
            _ => Some(own_files(dir, &folders)?),
        };
        if materialize::has_content(mode) && self.options.durability == Durability::Full {
            // One call for all of the files and directories.
            sync_file_system(dir.path())?;
            return Ok(copies);
        }
        folders.par_iter().try_for_each(|folder| self.sync_dir(&folder.below(dir.path())))?;
        Ok(copies)
    }

    /// Moves a finished checkout to its name, or to a free one made from it, and records it.
    fn name(
        &self,
        wish: &CheckoutPath,
        staging: &Staging,
        above: &OpenDir,
        manifest: &Manifest,
        copies: Option<&[Copied]>,
    ) -> Result<CheckoutPath, CheckoutError> {
        let mut name = wish.clone();
        for _ in 0..NAME_TRIES {
            let last = name.as_rel().split().1;
            match staging.building.rename_new(&staging.name, above, last) {
                Ok(()) => {
                    let record = Record::new(&name, manifest, self.options.link_mode);
                    let kept = self
                        .sync_dir(above.path())
                        .and_then(|()| self.forget_deletion(&name))
                        .and_then(|()| {
                            copies.map_or(Ok(()), |copies| self.write_copies(&name, copies))
                        })
                        .and_then(|()| self.write_record(&name, &record));
                    if let Err(error) = kept {
                        // It is not to be seen if it is not to be relied on.
                        let _ = above.rename_new(last, &staging.building, &staging.name);
                        let _ = self.remove_record(&name);
                        return Err(error.into());
                    }
                    return Ok(name);
                }
                Err(error) if is_taken(&error.source) => {
                    let suffixed = format!("{wish}-{}", suffix());
                    name = suffixed.parse().map_err(|_| CheckoutError::Conflict {
                        path: wish.clone(),
                        reason: "it exists, and the name is too long for a suffix".into(),
                    })?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let reason = format!("it exists, and so do {NAME_TRIES} names made from it");
        Err(CheckoutError::Conflict { path: wish.clone(), reason })
    }
}

/// The files of a new checkout that have no other name: copies, and not links to blobs.
fn own_files(dir: &OpenDir, folders: &[Folder<'_>]) -> Result<Vec<Copied>, DiskError> {
    let mut copies = Vec::new();
    for folder in folders {
        let open = dir.open_below(folder.path).on("open", &dir.path().join(folder.path))?;
        for entry in folder.runs.iter().copied().flatten() {
            let name = entry.path.split().1;
            let found = open.stat(name).on("look at", &open.path().join(name))?;
            if found.names == 1 {
                let Fingerprint { size_bytes, mtime_ns, .. } = found.fingerprint;
                copies.push(Copied { path: entry.path.as_str().to_owned(), size_bytes, mtime_ns });
            }
        }
    }
    Ok(copies)
}

/// A directory of a checkout.
struct Folder<'a> {
    /// Below the checkout; `""` is the checkout itself.
    path: &'a str,
    /// The files in it, not below it.
    runs: Vec<&'a [Entry]>,
}

impl Folder<'_> {
    /// Where it is if the checkout is there.
    fn below(&self, checkout: &Path) -> PathBuf {
        // Joined with nothing, a path gets a slash.
        if self.path.is_empty() { checkout.to_owned() } else { checkout.join(self.path) }
    }
}

/// All directories of a checkout, itself the first, each before those in it.
fn folders(manifest: &Manifest) -> Vec<Folder<'_>> {
    fn above(path: &str) -> &str {
        path.rsplit_once('/').map_or("", |(above, _)| above)
    }
    let mut folders = BTreeMap::from([("", Vec::new())]);
    for run in manifest.entries().chunk_by(|a, b| a.path.split().0 == b.path.split().0) {
        let path = above(run[0].path.as_str());
        folders.entry(path).or_insert_with(Vec::new).push(run);
        let mut path = above(path);
        // Neighbours share most of the way: stop at what is known.
        while !folders.contains_key(path) {
            folders.insert(path, Vec::new());
            path = above(path);
        }
    }
    folders.into_iter().map(|(path, runs)| Folder { path, runs }).collect()
}

fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

/// Four of `[a-z0-9]`, as Shaman's own suffixes.
fn suffix() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).map(|c| c.to_ascii_lowercase()).take(4).collect()
}

/// Whether a directory has anything but directories in it, as checkouts have.
pub(super) fn holds_files(dir: &OpenDir) -> Result<bool, DiskError> {
    let entries = dir.entries().on("list", dir.path())?;
    Ok(entries.iter().any(|(_, kind)| *kind != EntryKind::Directory))
}

/// In a fresh directory, these errors are about the names asked for.
fn bad_name(error: DiskError) -> CheckoutError {
    let name = error.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match error.source.kind() {
        io::ErrorKind::AlreadyExists => CheckoutError::SameName(name),
        io::ErrorKind::InvalidFilename => CheckoutError::TooLong { path: name },
        _ => error.into(),
    }
}

/// A checkout without a name. Dropped before it has one, it is removed.
struct Staging {
    building: OpenDir,
    name: String,
    dir: OpenDir,
}

impl Staging {
    fn create(building: OpenDir) -> Result<Self, DiskError> {
        let name = format!("{}-{}", std::process::id(), fastrand::u64(..));
        building.create_dir(&name)?;
        let dir = building.open_below(&name).on("open", &building.path().join(&name))?;
        Ok(Self { building, name, dir })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Finds nothing when the checkout has moved to its name. A leftover is removed at
        // the next start.
        let _ = self.building.remove_all(&self.name);
    }
}

/// Directories made above a checkout that does not exist yet. Dropped before it does, they are removed.
#[derive(Default)]
struct Parents(Vec<(OpenDir, String)>);

impl Parents {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for (above, name) in self.0.iter().rev() {
            // Not if another checkout moved in meanwhile.
            let _ = above.remove_dir_if_empty(name);
        }
    }
}

/// Removes what a killed process was building.
pub(super) fn remove_leftovers(root: &OpenDir) -> Result<(), DiskError> {
    let path = root.path().join(Layout::BUILDING);
    let building = root.open_below(Layout::BUILDING).on("open", &path)?;
    for (name, _) in building.entries().on("list", &path)? {
        super::remove_leftover(building.remove_all(&name));
    }
    Ok(())
}
