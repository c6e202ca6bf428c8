//! Checkouts: built aside, renamed in, never half visible.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    Durability, Store,
    layout::{Layout, Links},
    materialize,
    records::{self, Record},
};
use crate::{
    disk::{
        DiskError, IoContext, OpenDir, create_dir, remove_dir_all, remove_file, rename_new,
        sync_file_system,
    },
    domain::{BlobId, CheckoutPath, Entry, Manifest},
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
        let staging = Staging::create(&self.layout.building())?;
        self.fill(&staging.0, wish, manifest)?;
        let _one = self.naming.lock().expect("BUG: no one panics with this lock");
        let mut parents = Parents::default();
        self.make_parents(wish, &mut parents)?;
        let used = self.name(wish, &staging, manifest)?;
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

    /// Makes the directories above a checkout. Each is a real directory, and no checkout itself, by
    /// its record or its look: none must grow into another job's.
    fn make_parents(&self, wish: &CheckoutPath, made: &mut Parents) -> Result<(), CheckoutError> {
        let conflict = |reason| CheckoutError::Conflict { path: wish.clone(), reason };
        let mut dir = self.layout.jobs();
        for (end, _) in wish.as_str().match_indices('/') {
            let above = dir;
            let parent: CheckoutPath =
                wish.as_str()[..end].parse().expect("BUG: a part of a checkout's path is one");
            dir = self.layout.checkout(&parent);
            let part = parent.as_str();
            loop {
                match fs::symlink_metadata(&dir) {
                    Ok(found) if !found.is_dir() => {
                        return Err(conflict(format!("{part:?} is not a directory")));
                    }
                    Ok(_) if self.record(&parent)?.is_some() || holds_files(&dir)? => {
                        return Err(conflict(format!("{part:?} is itself a checkout")));
                    }
                    Ok(_) => {
                        // Whoever made it may not have come this far.
                        self.sync_dir(&above)?;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error).on("look at", &dir)?,
                }
                // Of a checkout that somebody has removed.
                self.remove_record(&parent)?;
                match create_dir(&dir) {
                    Ok(()) => made.0.push(dir.clone()),
                    // Somebody was faster: look what it is.
                    Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Makes all directories and links, and makes them durable.
    fn fill(
        &self,
        dir: &Path,
        name: &CheckoutPath,
        manifest: &Manifest,
    ) -> Result<(), CheckoutError> {
        let folders = folders(manifest);
        // A directory sorts before what is in it.
        for folder in folders.iter().skip(1) {
            create_dir(&folder.below(dir)).map_err(bad_name)?;
        }
        let mode = self.options.link_mode;
        // One thread for each directory: the file system lets no more than one make names in it.
        folders.par_iter().with_max_len(1).filter(|folder| !folder.runs.is_empty()).try_for_each(
            |folder| {
                let path = folder.below(dir);
                let open = OpenDir::open(path.clone()).on("open", &path)?;
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
        if materialize::has_content(mode) && self.options.durability == Durability::Full {
            // One call for all of the files and directories.
            return Ok(sync_file_system(dir)?);
        }
        folders.par_iter().try_for_each(|folder| self.sync_dir(&folder.below(dir)))?;
        Ok(())
    }

    /// Moves a finished checkout to its name, or to a free one made from it, and records it.
    fn name(
        &self,
        wish: &CheckoutPath,
        staging: &Staging,
        manifest: &Manifest,
    ) -> Result<CheckoutPath, CheckoutError> {
        let mut name = wish.clone();
        for _ in 0..NAME_TRIES {
            let target = self.layout.checkout(&name);
            match rename_new(&staging.0, &target) {
                Ok(()) => {
                    let above = target.parent().expect("BUG: a checkout is below jobs/");
                    let record = Record::new(&name, manifest, self.options.link_mode);
                    let kept =
                        self.sync_dir(above).and_then(|()| self.write_record(&name, &record));
                    if let Err(error) = kept {
                        // It is not to be seen if it is not to be relied on.
                        let _ = rename_new(&target, &staging.0);
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
pub(super) fn holds_files(dir: &Path) -> Result<bool, DiskError> {
    for entry in fs::read_dir(dir).on("list", dir)? {
        let entry = entry.on("list", dir)?;
        if !entry.file_type().on("look at", &entry.path())?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
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
struct Staging(PathBuf);

impl Staging {
    fn create(building: &Path) -> Result<Self, DiskError> {
        let dir = building.join(format!("{}-{}", std::process::id(), fastrand::u64(..)));
        create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Fails harmlessly when the checkout has moved to its name. What is left otherwise is
        // removed at the next start.
        let _ = remove_dir_all(&self.0);
    }
}

/// Directories made above a checkout that does not exist yet. Dropped before it does, they are removed.
#[derive(Default)]
struct Parents(Vec<PathBuf>);

impl Parents {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // Not if another checkout moved in meanwhile.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Removes what a killed process was building.
pub(super) fn remove_leftovers(layout: &Layout) -> Result<(), DiskError> {
    let dir = layout.building();
    for entry in fs::read_dir(&dir).on("list", &dir)? {
        let entry = entry.on("list", &dir)?;
        let path = entry.path();
        if !entry.file_type().on("look at", &path)?.is_dir() {
            // What a mode of links was tried with.
            super::remove_leftover(remove_file(&path));
            continue;
        }
        let erased = entry.file_name().to_str().and_then(Layout::erased);
        // The name says which record may be left, so it goes after that.
        super::remove_leftover(
            erased
                .map_or(Ok(()), |digest| records::forget_erased(layout, &digest))
                .and_then(|()| remove_dir_all(&path)),
        );
    }
    Ok(())
}
