//! Deletes checkouts: the links, files and directories that farmhand created, and nothing else.
//!
//! A job may write below its checkout, frames above all. So each entry is judged just before it is
//! removed, and removed at its place: an output stays where it is, and a renderer that still runs
//! keeps its directory. All of it goes through open directories, so no link is followed.
//!
//! The record is renamed first, which ends the checkout. A start that finds such a record finishes the
//! deletion.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    io,
    path::Path,
    sync::MutexGuard,
};

use super::{
    Durability, Store,
    layout::{JOBS, Layout, RENDERS},
    records::{Copied, ErasedRecord},
};
use crate::{
    disk::{DiskError, EntryKind, EntryStat, IoContext, OpenDir, replace_file},
    domain::{
        BlobId, CheckoutPath,
        report::{Erased, LinkMode, Outputs},
    },
};

/// How many outputs are listed one by one.
const LISTED_OUTPUTS: usize = 1000;

/// Deeper trees are not deleted: each level holds a directory open.
const MAX_DEPTH: usize = 256;

/// How to delete a checkout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EraseOptions {
    /// Removes files that farmhand did not create, too.
    pub with_outputs: bool,
    /// Removes nothing, and reports what would be removed and what would stay.
    pub dry_run: bool,
    /// Also a directory that only looks like a checkout: it may be a part of one that another server
    /// has created.
    pub unrecorded: bool,
}

/// Why a checkout was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// There is none of this name.
    #[error("there is no checkout {0:?}")]
    Unknown(CheckoutPath),
    /// It is a directory with checkouts in it.
    #[error(
        "{0:?} cannot be deleted as one checkout: there are checkouts in it ({1:?} and perhaps more)"
    )]
    Folder(CheckoutPath, String),
    /// It is a directory of a checkout.
    #[error(
        "{path:?} is only a part of the checkout {whole:?}, and a checkout is deleted as a whole"
    )]
    Part {
        /// The directory.
        path: CheckoutPath,
        /// The checkout that it is in.
        whole: CheckoutPath,
    },
    /// It looks like a checkout, and is not on record.
    #[error("{0:?} looks like a checkout, and is not on record: it may be only a part of one")]
    Unrecorded(CheckoutPath),
    /// Another request is deleting it.
    #[error("the checkout {0:?} is being deleted")]
    Busy(CheckoutPath),
    /// The file system refused. A deletion that has begun is finished by the next request or start.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Checkouts whose deletion has begun and is not finished, and whether one is at it now.
pub(super) type Erasing = BTreeMap<CheckoutPath, bool>;

/// The evidence that tells farmhand's files from those of others.
struct Origin {
    /// Files of their own that the checkout was created with, by path.
    copies: HashMap<String, Copied>,
    /// Blobs that may have other names in the checkout, by device and inode.
    hard_links: HashMap<(u64, u64), BlobId>,
}

impl Origin {
    fn is_created(
        &self,
        dir: &OpenDir,
        name: &OsStr,
        found: &EntryStat,
        shown: &str,
    ) -> io::Result<bool> {
        let print = &found.fingerprint;
        Ok(match found.kind {
            EntryKind::Link => match dir.link_text(name) {
                Ok(text) => Layout::blob_of(&text).is_some(),
                // It has been replaced since it was looked at.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => false,
                Err(error) => return Err(error),
            },
            EntryKind::File => {
                let is_copy = |copied: &Copied| {
                    (copied.size_bytes, copied.mtime_ns) == (print.size_bytes, print.mtime_ns)
                };
                self.copies.get(shown).is_some_and(is_copy)
                    || self.hard_links.contains_key(&(print.device, print.inode))
            }
            EntryKind::Directory | EntryKind::Other => false,
        })
    }
}

/// Goes through a checkout and removes what is to be removed.
struct Removal {
    origin: Origin,
    options: EraseOptions,
    /// The mount that the checkout is on.
    mount: u64,
    /// A name for an entry between the last look at it and its removal.
    aside: String,
    files: u64,
    directories: u64,
    outputs: Outputs,
}

/// Whether an error is about one entry that this process cannot remove: it stays.
fn must_stay(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ResourceBusy};
    matches!(error.kind(), CrossesDevices | PermissionDenied | ResourceBusy)
}

impl Removal {
    fn new(origin: Origin, options: EraseOptions, mount: u64) -> Self {
        let aside = format!(".farmhand-erasing-{:016x}", fastrand::u64(..));
        let outputs = Outputs::default();
        Self { origin, options, mount, aside, files: 0, directories: 0, outputs }
    }

    /// Clears a directory. Returns whether it is empty then, or would be.
    fn clear(&mut self, dir: &OpenDir, inside: &str, depth: usize) -> Result<bool, DiskError> {
        let mut is_empty = true;
        for (name, kind) in dir.entries().on("list", dir.path())? {
            let shown = match inside {
                "" => name.to_string_lossy().into_owned(),
                inside => format!("{inside}/{}", name.to_string_lossy()),
            };
            is_empty &= match kind {
                EntryKind::Directory => self.directory(dir, &name, &shown, depth)?,
                _ => self.file(dir, &name, &shown)?,
            };
        }
        Ok(is_empty)
    }

    /// Notes an entry that stays in any case.
    fn stays(&mut self, shown: &str) -> bool {
        self.outputs.add(shown, 0, LISTED_OUTPUTS);
        self.outputs.left += 1;
        false
    }

    fn directory(
        &mut self,
        dir: &OpenDir,
        name: &OsStr,
        shown: &str,
        depth: usize,
    ) -> Result<bool, DiskError> {
        let path = || dir.path().join(name);
        let opened = dir.open_below(name).and_then(|below| Ok((below.mount()?, below)));
        let (mount, below) = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) if must_stay(&error) => return Ok(self.stays(shown)),
            opened => opened.on("open", &path())?,
        };
        // A mount was not created with the checkout, and is no output of it.
        if mount != self.mount || depth >= MAX_DEPTH {
            return Ok(self.stays(shown));
        }
        let is_empty = match self.clear(&below, shown, depth + 1) {
            Err(error) if must_stay(&error.source) => return Ok(self.stays(shown)),
            cleared => cleared?,
        };
        if !is_empty {
            return Ok(false);
        }
        let removed = if self.options.dry_run { Ok(true) } else { dir.remove_dir_if_empty(name) };
        match removed {
            Err(error) if must_stay(&error.source) => Ok(self.stays(shown)),
            removed => {
                let is_gone = removed?;
                self.directories += u64::from(is_gone);
                Ok(is_gone)
            }
        }
    }

    /// Returns whether the entry is gone, or would be.
    fn file(&mut self, dir: &OpenDir, name: &OsStr, shown: &str) -> Result<bool, DiskError> {
        let Some((is_created, size_bytes)) = self.judge(dir, name, shown)? else { return Ok(true) };
        if is_created && !self.options.dry_run {
            return self.remove_created(dir, name, shown);
        }
        if is_created {
            self.files += 1;
            return Ok(true);
        }
        self.outputs.add(shown, size_bytes, LISTED_OUTPUTS);
        if !self.options.with_outputs {
            return Ok(false);
        }
        if self.options.dry_run {
            return Ok(true);
        }
        match dir.remove_file(name) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if must_stay(&error.source) => {
                self.outputs.left += 1;
                Ok(false)
            }
            removed => removed.map(|()| true),
        }
    }

    /// Whether farmhand created an entry, and its size; nothing, if it is gone.
    fn judge(
        &self,
        dir: &OpenDir,
        name: &OsStr,
        shown: &str,
    ) -> Result<Option<(bool, u64)>, DiskError> {
        let judged = dir.stat(name).and_then(|found| {
            let is_created = self.origin.is_created(dir, name, &found, shown)?;
            Ok((is_created, found.fingerprint.size_bytes))
        });
        match judged {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            judged => judged.on("look at", &dir.path().join(name)).map(Some),
        }
    }

    /// Removes an entry that farmhand created, unless another file has taken its name since it was looked
    /// at: programs save by renaming over the old file. Returns whether the name is free.
    fn remove_created(
        &mut self,
        dir: &OpenDir,
        name: &OsStr,
        shown: &str,
    ) -> Result<bool, DiskError> {
        let aside = self.aside.clone();
        match dir.rename_aside(name, &aside) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) if must_stay(&error.source) => return Ok(self.stays(shown)),
            moved => moved?,
        }
        let Some((is_created, size_bytes)) = self.judge(dir, OsStr::new(&aside), shown)? else {
            return Ok(true);
        };
        if !is_created {
            // If the name is taken again, this was the older one of two saves.
            dir.rename_back(&aside, name)?;
            self.outputs.add(shown, size_bytes, LISTED_OUTPUTS);
            return Ok(false);
        }
        dir.remove_file(&aside)?;
        self.files += 1;
        Ok(true)
    }
}

impl Store {
    /// Deletes a checkout: its links and directories at once, its blobs when they are garbage. Files
    /// that farmhand did not create stay, with the directories that hold them, and are reported.
    ///
    /// # Errors
    /// If it is not a whole checkout, or the file system refuses.
    pub fn erase(&self, path: &CheckoutPath, options: EraseOptions) -> Result<Erased, EraseError> {
        let record = {
            let _one = self.naming.lock().expect("BUG: no one panics with this lock");
            let record = self.require_whole(path, options.unrecorded)?;
            if self.erasing().get(path) == Some(&true) {
                return Err(EraseError::Busy(path.clone()));
            }
            if !options.dry_run {
                self.begin_erasing(path, options.with_outputs)?;
            }
            record
        };
        let erased = self.remove_created(path, &record, options);
        if options.dry_run {
            return Ok(erased?);
        }
        match &erased {
            // The checkout has ended: the next request or start goes on.
            Err(_) => drop(self.erasing().insert(path.clone(), false)),
            Ok(_) => self.end_erasing(path)?,
        }
        Ok(erased?)
    }

    /// Checks that this is a whole checkout, which can be deleted.
    ///
    /// # Errors
    /// If it is not, with the reason.
    pub fn require_deletable(
        &self,
        path: &CheckoutPath,
        unrecorded: bool,
    ) -> Result<(), EraseError> {
        self.require_whole(path, unrecorded).map(drop)
    }

    /// The checkouts whose deletion has begun and is not finished.
    pub fn being_deleted(&self) -> Vec<CheckoutPath> {
        self.erasing().keys().cloned().collect()
    }

    /// Whether this is a whole checkout, on record or by its look, and what its record says.
    ///
    /// # Errors
    /// If it is not, with the reason.
    fn require_whole(
        &self,
        path: &CheckoutPath,
        unrecorded: bool,
    ) -> Result<ErasedRecord, EraseError> {
        let unknown = || EraseError::Unknown(path.clone());
        if Layout::is_reserved(path) {
            return Err(unknown());
        }
        let record = self.record(path)?;
        if record.is_some() || self.erasing().contains_key(path) {
            return match self.record_inside(path)? {
                Some(inside) => Err(EraseError::Folder(path.clone(), inside)),
                None => Ok(match record {
                    Some(record) => record.into(),
                    None => self.erasing_record(path)?,
                }),
            };
        }
        let text = path.as_str();
        for (end, _) in text.match_indices('/') {
            let above = text[..end].parse().expect("BUG: a part of a checkout's path is one");
            let is_known = self.record(&above)?.is_some() || self.erasing().contains_key(&above);
            if is_known || self.looks_like_checkout(&above)? {
                return Err(EraseError::Part { path: path.clone(), whole: above });
            }
        }
        if let Some(inside) = self.record_inside(path)? {
            return Err(EraseError::Folder(path.clone(), inside));
        }
        if self.looks_like_checkout(path)? {
            return match unrecorded {
                true => Ok(ErasedRecord::by_look(path)),
                false => Err(EraseError::Unrecorded(path.clone())),
            };
        }
        match self.checkout_inside(path)? {
            Some(inside) => Err(EraseError::Folder(path.clone(), inside)),
            None => Err(unknown()),
        }
    }

    /// Whether a directory holds a link to a blob, as checkouts do. One of hard links or copies is known by
    /// its record alone.
    pub(super) fn looks_like_checkout(&self, path: &CheckoutPath) -> Result<bool, DiskError> {
        use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
        let dir = match self.root.open_below(Path::new(JOBS).join(path.as_str())) {
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidFilename) => {
                return Ok(false);
            }
            opened => opened.on("open", &self.layout.checkout(path))?,
        };
        for (name, kind) in dir.entries().on("list", dir.path())? {
            if kind != EntryKind::Link {
                continue;
            }
            match dir.link_text(&name) {
                Ok(text) if Layout::blob_of(&text).is_some() => return Ok(true),
                Ok(_) => {}
                // Gone meanwhile, or replaced.
                Err(error) if matches!(error.kind(), NotFound | InvalidInput) => {}
                Err(error) => return Err(error).on("look at", &dir.path().join(&name)),
            }
        }
        Ok(false)
    }

    /// A checkout on record below this path.
    fn record_inside(&self, path: &CheckoutPath) -> Result<Option<String>, DiskError> {
        let prefix = format!("{path}/");
        let records = self.records()?.into_iter();
        let mut inside = records.filter(|(other, _)| other.as_str().starts_with(&prefix));
        Ok(inside.next().map(|(inside, _)| inside.as_str().to_owned()))
    }

    pub(super) fn erasing(&self) -> MutexGuard<'_, Erasing> {
        self.erasing.lock().expect("BUG: no one panics with this lock")
    }

    /// Ends a checkout: from here on, only its files are left. The caller holds `naming`.
    fn begin_erasing(&self, path: &CheckoutPath, with_outputs: bool) -> Result<(), DiskError> {
        let already_begun = self.erasing().contains_key(path);
        let records = self.open_dir(Layout::RECORDS)?;
        let name = Layout::erasing_name(path, with_outputs);
        let other = Layout::erasing_name(path, !with_outputs);
        let take = |from: &str| match records.rename(from, &records, &name) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            taken => taken.map(|()| true),
        };
        // The last request says whether outputs are removed, too.
        let was_other = take(&other)?;
        let was_recorded = take(&Layout::record_name(path))?;
        if !(was_other || was_recorded || already_begun) {
            let text = serde_json::to_vec(&ErasedRecord::by_look(path)).map_err(io::Error::from);
            let file = self.layout.records().join(&name);
            let is_full = self.options.durability == Durability::Full;
            replace_file(&file, &text.on("write", &file)?, is_full)?;
        }
        self.sync_dir(&self.layout.records())?;
        self.erasing().insert(path.clone(), true);
        Ok(())
    }

    /// Forgets a deletion that was not finished, now that another checkout has the name.
    pub(super) fn forget_deletion(&self, path: &CheckoutPath) -> Result<(), DiskError> {
        if self.erasing().contains_key(path) {
            self.remove_erasing_record(path)?;
            self.erasing().remove(path);
        }
        Ok(())
    }

    /// Forgets a deletion that is finished.
    fn end_erasing(&self, path: &CheckoutPath) -> Result<(), DiskError> {
        let removed = self.remove_erasing_record(path);
        let mut erasing = self.erasing();
        match removed {
            Ok(()) => drop(erasing.remove(path)),
            Err(_) => drop(erasing.insert(path.clone(), false)),
        }
        removed
    }

    /// Removes what farmhand created of a checkout, and the directories above it that are empty then.
    fn remove_created(
        &self,
        path: &CheckoutPath,
        record: &ErasedRecord,
        options: EraseOptions,
    ) -> Result<Erased, DiskError> {
        let (above, name) = path.as_rel().split();
        let above_path = Path::new(JOBS).join(above.unwrap_or_default());
        let mut erased = Erased { path: path.as_str().to_owned(), ..Erased::default() };
        erased.outputs_removed = options.with_outputs && !options.dry_run;
        erased.dry_run = options.dry_run;
        let opened = self.root.open_below(&above_path).and_then(|above| {
            let dir = above.open_below(name)?;
            Ok((above, dir))
        });
        let (above, dir) = match opened {
            // It was removed by other means, or is a link now: there is nothing of the checkout left.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(erased);
            }
            opened => opened.on("open", &self.layout.checkout(path))?,
        };
        let origin = self.origin(&dir, record)?;
        let mount = dir.mount().on("look at", dir.path())?;
        let mut removal = Removal::new(origin, options, mount);
        let is_empty = removal.clear(&dir, "", 0)?;
        let Removal { files, directories, outputs, .. } = removal;
        (erased.files, erased.directories, erased.outputs) = (files, directories, outputs);
        if options.dry_run {
            erased.directories += u64::from(is_empty);
            return Ok(erased);
        }
        // A checkout of the same name, or below it, must not lose the directories that it needs.
        let _one = self.naming.lock().expect("BUG: no one panics with this lock");
        let removed = if is_empty { above.remove_dir_if_empty(name) } else { Ok(false) };
        let is_gone = match removed {
            // The checkout's own directory is a mount, or its parent another user's.
            Err(error) if must_stay(&error.source) => false,
            removed => removed?,
        };
        if is_gone {
            erased.directories += 1 + self.remove_empty_above(path)?;
        } else if self.options.durability == Durability::Full {
            dir.sync()?;
        }
        Ok(erased)
    }

    /// Removes the directories above a checkout as far as they are empty, and makes that durable.
    fn remove_empty_above(&self, path: &CheckoutPath) -> Result<u64, DiskError> {
        let mut removed = 0;
        let mut at = path.as_rel().split().0;
        while let Some(dir) = at {
            let (above, name) = dir.rsplit_once('/').map_or((None, dir), |(a, n)| (Some(a), n));
            let open = self.root.open_below(Path::new(JOBS).join(above.unwrap_or_default()));
            let Ok(open) = open else { break };
            if !open.remove_dir_if_empty(name)? {
                break;
            }
            removed += 1;
            at = above;
        }
        let stays = at.map_or_else(|| self.layout.jobs(), |dir| self.layout.jobs().join(dir));
        self.sync_dir(&stays)?;
        Ok(removed)
    }

    /// The evidence for the files of a checkout that farmhand created.
    fn origin(&self, dir: &OpenDir, record: &ErasedRecord) -> Result<Origin, DiskError> {
        let copies = self.read_copies(record)?;
        let may_have_links = record.link_mode.is_none_or(|mode| mode == LinkMode::Hardlink);
        let mut sizes = HashSet::new();
        if may_have_links {
            linked_sizes(dir, &mut sizes, 0)?;
        }
        Ok(Origin { copies, hard_links: self.blobs_by_inode(&sizes)? })
    }

    /// Finishes the deletions that a process which was killed has begun.
    pub(super) fn finish_erasing(&self) -> Result<(), DiskError> {
        for (path, record, with_outputs) in self.records_of_erasing()? {
            // One that was created since then has this name now.
            if self.record(&path)?.is_some() {
                self.remove_erasing_record(&path)?;
                continue;
            }
            self.erasing().insert(path.clone(), false);
            let options = EraseOptions { with_outputs, dry_run: false, unrecorded: true };
            let erased = self.remove_created(&path, &record, options);
            let ended = erased.and_then(|erased| self.end_erasing(&path).map(|()| erased));
            match ended {
                Ok(erased) => {
                    tracing::info!(checkout = %path, files = erased.files, "finished a deletion");
                    erased.log_outputs();
                }
                Err(error) => {
                    tracing::warn!(checkout = %path, "cannot finish a deletion: {error}: {}", error.source);
                }
            }
        }
        Ok(())
    }

    /// Creates a directory for the outputs of a job, below `renders/`, if there is none yet.
    ///
    /// # Errors
    /// If it cannot be created, or something else has its name.
    pub fn create_output_dir(&self, job: &str) -> Result<std::path::PathBuf, DiskError> {
        let exists = |error: &DiskError| error.source.kind() == io::ErrorKind::AlreadyExists;
        for (above, name) in [("", RENDERS), (RENDERS, job)] {
            match self.open_dir(above)?.create_dir(name) {
                Err(error) if exists(&error) => {}
                created => created?,
            }
        }
        let dir = self.open_dir(&format!("{RENDERS}/{job}"))?;
        Ok(dir.path().to_owned())
    }

    /// Removes the directory of a job below `renders/`, if nothing is in it.
    ///
    /// # Errors
    /// If it is empty and cannot be removed.
    pub fn remove_empty_output_dir(&self, job: &str) -> Result<(), DiskError> {
        match self.root.open_below(RENDERS) {
            Ok(all) => all.remove_dir_if_empty(job).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// The outputs of a job below `renders/`; removed with their directory, if `remove` says so.
    ///
    /// # Errors
    /// If they cannot be listed or removed.
    pub fn outputs_of_job(&self, job: &str, remove: bool) -> Result<Outputs, DiskError> {
        let path = self.layout.root().join(RENDERS);
        let opened = self.root.open_below(RENDERS).and_then(|all| {
            let dir = all.open_below(job)?;
            Ok((all, dir))
        });
        let (all, dir) = match opened {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Outputs::default());
            }
            opened => opened.on("open", &path.join(job))?,
        };
        let origin = Origin { copies: HashMap::new(), hard_links: HashMap::new() };
        let options = EraseOptions { with_outputs: true, dry_run: !remove, unrecorded: true };
        let mount = dir.mount().on("look at", dir.path())?;
        let mut removal = Removal::new(origin, options, mount);
        if removal.clear(&dir, "", 0)? && remove {
            all.remove_dir_if_empty(job)?;
        }
        let mut outputs = removal.outputs;
        // A link that a job made in its own directory is an output, too, also one to a blob.
        outputs.files += removal.files;
        Ok(outputs)
    }
}

/// The sizes of all files with several names.
fn linked_sizes(dir: &OpenDir, sizes: &mut HashSet<u64>, depth: usize) -> Result<(), DiskError> {
    for (name, kind) in dir.entries().on("list", dir.path())? {
        let path = || dir.path().join(&name);
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match kind {
            EntryKind::Directory if depth < MAX_DEPTH => match dir.open_below(&name) {
                Err(error) if gone(&error) || must_stay(&error) => {}
                below => match linked_sizes(&below.on("open", &path())?, sizes, depth + 1) {
                    Err(error) if must_stay(&error.source) => {}
                    listed => listed?,
                },
            },
            EntryKind::File => match dir.stat(&name) {
                Err(error) if gone(&error) => {}
                found => {
                    let found = found.on("look at", &path())?;
                    if found.names > 1 {
                        sizes.insert(found.fingerprint.size_bytes);
                    }
                }
            },
            _ => {}
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;

    fn removal(dir: &OpenDir, other_device: bool) -> Removal {
        let origin = Origin { copies: HashMap::new(), hard_links: HashMap::new() };
        let options = EraseOptions { with_outputs: true, dry_run: false, unrecorded: true };
        let mount = dir.mount().expect("a mount") + u64::from(other_device);
        Removal::new(origin, options, mount)
    }

    #[test]
    fn a_checkout_is_deleted_once_at_a_time() {
        use crate::{domain::Manifest, store::Options};
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let name: CheckoutPath = "shot".parse().unwrap();
        store.checkout(&name, &Manifest::default()).unwrap();
        store.erasing().insert(name.clone(), true);
        let busy = store.erase(&name, EraseOptions::default());
        assert!(matches!(busy, Err(EraseError::Busy(_))), "{busy:?}");
        store.erasing().remove(&name);
        store.erase(&name, EraseOptions::default()).unwrap();
    }

    #[test]
    fn mounted_file_systems_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mounted")).unwrap();
        fs::write(dir.path().join("mounted/precious"), "x").unwrap();
        fs::write(dir.path().join("output"), "x").unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        // As if all that is below were on another device.
        let mut elsewhere = removal(&open, true);
        assert!(!elsewhere.clear(&open, "", 0).unwrap());
        assert_eq!(elsewhere.outputs.paths.iter().filter(|path| *path == "mounted").count(), 1);
        assert!(dir.path().join("mounted/precious").exists());
        assert!(!dir.path().join("output").exists());
        let mut here = removal(&open, false);
        assert!(here.clear(&open, "", 0).unwrap());
        assert!(!dir.path().join("mounted").exists());
    }

    #[test]
    fn trees_without_end_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        let mut removal = removal(&open, false);
        assert!(!removal.clear(&open, "", 0).unwrap());
        assert_eq!((removal.outputs.files, removal.outputs.left), (1, 1));
        assert!(deep.exists());
    }
}
