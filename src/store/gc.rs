//! Garbage collection: blobs that nobody needs go.
//!
//! First those are listed that have not been needed for long; then everything that checkouts hold is
//! marked; what is left is removed, each after one more look that no upload, requirement or checkout
//! can come in between. Any doubt (an error, a directory that cannot be read, pins that cannot be
//! understood) ends it before the first removal.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime},
};

use rayon::prelude::*;

use super::{
    Stopped, Store, Work,
    blobs::TOUCHED_RECENTLY,
    layout::Layout,
    walk::{Held, Item, Walk},
};
use crate::{
    disk::{DirectoryId, DiskError, IoContext, remove_file, rest_if_gentle},
    domain::{
        BlobId,
        report::{Amount, GcReport},
    },
};

/// What has been needed within this time stays, whatever the maximal age: somebody has asked for the
/// requirements, is sending what is missing, and will have a checkout made.
pub const MIN_AGE: Duration = Duration::from_secs(6 * 3600);

// A blob that is needed again is not touched again within this time.
const _: () = assert!(MIN_AGE.as_secs() >= 2 * TOUCHED_RECENTLY.as_secs());

/// How many blobs are removed while all others wait.
const BATCH: usize = 32;
/// The same, if all others go first.
const GENTLE_BATCH: usize = 4;
/// How many bytes they have together at most, if they are not one: to free them takes time, too.
const BATCH_BYTES: u64 = 256 << 20;

/// How long the others then have.
const BETWEEN_BATCHES: Duration = Duration::from_micros(50);

/// How many of these blobs, of which there are some, are removed while all others wait.
fn next_batch(garbage: &[BlobId], most: usize) -> usize {
    let mut bytes = 0u64;
    let fits = |id: &&BlobId| {
        bytes = bytes.saturating_add(id.size_bytes);
        bytes <= BATCH_BYTES
    };
    garbage.iter().take(most).take_while(fits).count().max(1)
}

/// How often directories that change while they are walked are looked at again while checkouts are made,
/// and then how often while none gets its name.
const FREE_ROUNDS: u32 = 3;
const SETTLE_ROUNDS: u32 = 12;

/// How many errors are told in words.
const TOLD_ERRORS: usize = 20;

/// How to collect garbage.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// How long a blob must not have been needed; at least [`MIN_AGE`] counts.
    pub max_age: Duration,
    /// How many threads look.
    pub threads: usize,
    /// Others go first: they wait for a processor less than this.
    pub gentle: bool,
}

/// Why no garbage was collected. Nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Another one is at it.
    #[error("a garbage collection is going on")]
    Busy,
    /// It was told to.
    #[error("stopped")]
    Stopped,
    /// Checkouts are known, and none of them is there.
    #[error(
        "none of the {known} checkouts that are known is there (the first: {first:?}): is the disk \
         with the checkouts mounted?"
    )]
    NoCheckouts {
        /// How many are known.
        known: usize,
        /// One of them.
        first: String,
    },
    /// Something could not be looked at.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<Stopped> for GcError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// A blob that has not been needed for long.
struct Candidate {
    id: BlobId,
    held: AtomicBool,
}

/// Whether a blob is too young to go, by the time of its file. One from the future is.
pub(super) fn is_young(modified: SystemTime, now: SystemTime, max_age: Duration) -> bool {
    now.duration_since(modified).map_or(true, |age| age < max_age.max(MIN_AGE))
}

/// How many names a file has.
pub(super) fn names_of(found: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(found);
    #[cfg(not(unix))]
    {
        let _ = found;
        1
    }
}

/// What keeps a blob, of what its file alone tells.
enum Kept {
    Young,
    /// It has other names: checkouts of hard links.
    Held,
    No,
}

fn kept(found: &fs::Metadata, now: SystemTime, max_age: Duration) -> io::Result<Kept> {
    Ok(if is_young(found.modified()?, now, max_age) {
        Kept::Young
    } else if names_of(found) > 1 {
        Kept::Held
    } else {
        Kept::No
    })
}

impl Store {
    /// Removes the blobs that nobody needs.
    ///
    /// # Errors
    /// If it cannot be known which these are; nothing has been removed then.
    pub fn gc(&self, options: GcOptions, work: &Work) -> Result<GcReport, GcError> {
        let _one = self.collecting.try_lock().map_err(|_| GcError::Busy)?;
        let pool = self.pool(options.threads, options.gentle)?;
        pool.install(|| self.collect(options, work))
    }

    fn collect(&self, options: GcOptions, work: &Work) -> Result<GcReport, GcError> {
        let max_age = options.max_age.max(MIN_AGE);
        let mut report = GcReport {
            dry_run: options.dry_run,
            max_age_s: max_age.as_secs(),
            ..GcReport::default()
        };
        let pins = self.pins()?;
        let candidates = self.candidates(max_age, &mut report, work)?;
        self.mark(&candidates, work)?;
        let mut garbage = Vec::new();
        for candidate in candidates {
            if candidate.held.into_inner() {
                report.held.add(candidate.id.size_bytes);
            } else if pins.contains(&candidate.id.digest) {
                report.pinned.add(candidate.id.size_bytes);
            } else {
                garbage.push(candidate.id);
            }
        }
        let batch = if options.gentle { GENTLE_BATCH } else { BATCH };
        let mut left = &garbage[..];
        while !left.is_empty() {
            let (batch, after) = left.split_at(next_batch(left, batch));
            left = after;
            work.go_on()?;
            if options.dry_run {
                batch.iter().for_each(|id| report.removed.add(id.size_bytes));
            } else {
                self.sweep(batch, max_age, &mut report);
                // The lock is given to whoever comes first. Whoever waits must first wake up.
                if options.gentle { rest_if_gentle() } else { thread::sleep(BETWEEN_BATCHES) }
            }
        }
        if !options.dry_run {
            if report.removed.blobs > 0 {
                self.index_all();
            }
            // From here on blobs are gone: what fails is told beside that.
            if let Err(error) = self.forget_gone_checkouts() {
                failed(&error, &mut report);
            }
            if let Err(error) = self.empty_quarantine(max_age, &mut report) {
                failed(&error, &mut report);
            }
        }
        Ok(report)
    }

    /// All blobs that nothing keeps so far, sorted.
    fn candidates(
        &self,
        max_age: Duration,
        report: &mut GcReport,
        work: &Work,
    ) -> Result<Vec<Candidate>, GcError> {
        let now = SystemTime::now();
        let parts: Vec<_> = (0..=u8::MAX)
            .into_par_iter()
            .map(|prefix| {
                work.go_on()?;
                let (mut stored, mut young, mut held) = <(Amount, Amount, Amount)>::default();
                let (mut ids, mut old) = (Vec::new(), Vec::new());
                self.blobs_with_prefix(prefix, |item| {
                    if let Item::Blob(id) = item {
                        ids.push(id);
                    }
                })?;
                for id in ids {
                    rest_if_gentle();
                    let Some(found) = self.look(&id)?.filter(fs::Metadata::is_file) else {
                        continue;
                    };
                    stored.add(id.size_bytes);
                    match kept(&found, now, max_age).on("look at", &self.layout.blob(&id).1)? {
                        Kept::Young => young.add(id.size_bytes),
                        Kept::Held => held.add(id.size_bytes),
                        Kept::No => old.push(id),
                    }
                }
                self.counts.counted(prefix, stored);
                work.did(stored.blobs, 0);
                Ok((stored, young, held, old))
            })
            .collect::<Result<_, GcError>>()?;
        let mut all = Vec::with_capacity(parts.iter().map(|part| part.3.len()).sum());
        for (stored, young, held, old) in parts {
            report.stored += stored;
            report.young += young;
            report.held += held;
            all.extend(old.into_iter().map(|id| Candidate { id, held: AtomicBool::new(false) }));
        }
        all.sort_unstable_by_key(|candidate| candidate.id);
        Ok(all)
    }

    /// Marks what checkouts hold.
    fn mark(&self, candidates: &[Candidate], work: &Work) -> Result<(), GcError> {
        let (jobs, seen) = (self.layout.jobs(), AtomicU64::new(0));
        // A directory that is not there holds nothing, and that would be too easy.
        DirectoryId::of(&jobs)?;
        let visit = |_: &Path, held: Held| {
            if let Held::Link(id) = held
                && let Ok(at) = candidates.binary_search_by_key(&id, |candidate| candidate.id)
            {
                candidates[at].held.store(true, Relaxed);
            }
            seen.fetch_add(1, Relaxed);
            rest_if_gentle();
        };
        // What is being built needs its blobs since it was begun, so they are young.
        let walk = Walk::new(&visit).except(self.layout.building());
        walk.run(&jobs)?;
        work.go_on()?;
        if !walk.settle(FREE_ROUNDS)? {
            // On a busy farm there is always another checkout: they wait for their names now.
            let _no_more = self.naming.lock().expect("BUG: no one panics with this lock");
            if !walk.settle(SETTLE_ROUNDS)? {
                let source = io::Error::other("somebody moves checkouts all the time; try again");
                return Err(DiskError { op: "see all of", path: jobs, source }.into());
            }
        }
        work.go_on()?;
        self.require_checkouts()
    }

    /// If all checkouts that are known have vanished, their disk is missing, not they.
    fn require_checkouts(&self) -> Result<(), GcError> {
        // One that is being erased loses its name before its record.
        let _unchanged = self.naming.lock().expect("BUG: no one panics with this lock");
        let records = self.records()?;
        let is_there = |path| self.layout.checkout(path).symlink_metadata().is_ok();
        match records.first() {
            Some((first, _)) if !records.iter().any(|(path, _)| is_there(path)) => {
                let first = first.as_str().to_owned();
                Err(GcError::NoCheckouts { known: records.len(), first })
            }
            _ => Ok(()),
        }
    }

    /// Removes blobs, each after a last look.
    fn sweep(&self, batch: &[BlobId], max_age: Duration, report: &mut GcReport) {
        let _alone = self.removal.write().expect("BUG: no one panics with this lock");
        for id in batch {
            match self.remove_if_unused(id, max_age) {
                Ok(true) => report.removed.add(id.size_bytes),
                Ok(false) => report.in_use.add(id.size_bytes),
                Err(error) => failed(&error, report),
            }
        }
    }

    fn remove_if_unused(&self, id: &BlobId, max_age: Duration) -> Result<bool, DiskError> {
        let (_, file) = self.layout.blob(id);
        if self.inflight.get(id).is_some() {
            return Ok(false);
        }
        // Gone already: somebody else's garbage collection.
        let Some(found) = self.look(id)? else { return Ok(false) };
        match kept(&found, SystemTime::now(), max_age).on("look at", &file)? {
            Kept::Young | Kept::Held => Ok(false),
            Kept::No => {
                let (prefix, own) = Layout::blob_dirs(id);
                let dir = self.open_dir(&format!("{prefix}/{own}"))?;
                dir.remove_file(Layout::blob_name(id))?;
                self.counts.removed(id);
                self.remove_blob_dir(id);
                Ok(true)
            }
        }
    }

    /// Removes the directory of a blob that is gone from it, unless there is one of the same digest
    /// and another size. An empty directory is in nobody's way.
    pub(super) fn remove_blob_dir(&self, id: &BlobId) {
        let (prefix, own) = Layout::blob_dirs(id);
        let removed = self.open_dir(&prefix).and_then(|dir| dir.remove_dir_if_empty(own));
        if let Err(error) = removed {
            tracing::warn!("{error}: {}", error.source);
        }
    }

    /// Forgets checkouts that somebody has removed by other means.
    fn forget_gone_checkouts(&self) -> Result<(), DiskError> {
        for (path, _) in self.records()? {
            let _unchanged = self.naming.lock().expect("BUG: no one panics with this lock");
            match fs::symlink_metadata(self.layout.checkout(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.remove_record(&path)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what has been in quarantine for long and is stored again.
    fn empty_quarantine(&self, max_age: Duration, report: &mut GcReport) -> Result<(), DiskError> {
        let now = SystemTime::now();
        for (id, file) in self.quarantined()? {
            let found = fs::symlink_metadata(&file).on("look at", &file)?;
            // Its own time says when the blob was needed, that of the change when it was moved.
            let is_old = !is_young(changed(&found).on("look at", &file)?, now, max_age);
            if is_old && found.is_file() && self.is_there(&id)?.is_some() {
                remove_file(&file)?;
                report.quarantined_removed.add(found.len());
            }
        }
        Ok(())
    }

    /// What is in quarantine: which blob it was to be, and where it is.
    pub(super) fn quarantined(&self) -> Result<Vec<(BlobId, std::path::PathBuf)>, DiskError> {
        let dir = self.layout.quarantine();
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).on("list", &dir)? {
            let entry = entry.on("list", &dir)?;
            let name = entry.file_name();
            let mut parts = name.to_str().unwrap_or_default().split('-');
            if let (Some(digest), Some(size)) = (parts.next(), parts.next())
                && let Some((prefix, rest)) = digest.split_at_checked(2)
                && let Some(id) = Layout::parse(prefix, rest, size)
            {
                found.push((id, entry.path()));
            }
        }
        Ok(found)
    }
}

fn failed(error: &DiskError, report: &mut GcReport) {
    report.failed += 1;
    if report.errors.len() < TOLD_ERRORS {
        report.errors.push(format!("{error}: {}", error.source));
    }
}

/// When a file was last moved or otherwise changed.
fn changed(found: &fs::Metadata) -> io::Result<SystemTime> {
    #[cfg(unix)]
    {
        let since = crate::disk::Fingerprint::of(found).ctime_ns.max(0);
        Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(since.unsigned_abs()))
    }
    #[cfg(not(unix))]
    found.modified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{CheckoutPath, Manifest},
        store::{Durability, EraseOptions, Options},
    };

    #[test]
    fn a_batch_has_few_blobs_or_bytes() {
        let blobs = |sizes: &[u64]| -> Vec<BlobId> {
            let digest = crate::domain::Digest::from_bytes([1; 32]);
            sizes.iter().map(|&size_bytes| BlobId { digest, size_bytes }).collect()
        };
        assert_eq!(next_batch(&blobs(&[1; 40]), 32), 32);
        assert_eq!(next_batch(&blobs(&[1; 3]), 32), 3);
        assert_eq!(next_batch(&blobs(&[BATCH_BYTES, 1]), 32), 1);
        assert_eq!(next_batch(&blobs(&[u64::MAX, u64::MAX]), 32), 1, "it must go, too");
        assert_eq!(next_batch(&blobs(&[BATCH_BYTES / 4; 9]), 32), 4);
    }

    #[test]
    fn checkouts_that_all_vanished_are_a_missing_disk() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { durability: Durability::Relaxed, ..Options::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let name: CheckoutPath = "shot".parse().unwrap();
        store.checkout(&name, &Manifest::default()).unwrap();
        store.require_checkouts().unwrap();
        fs::remove_dir(store.layout.checkout(&name)).unwrap();
        assert!(matches!(store.require_checkouts(), Err(GcError::NoCheckouts { known: 1, .. })));
        store.erase(&name, EraseOptions::default()).unwrap();
        store.require_checkouts().unwrap();
    }

    #[test]
    fn young_is_what_was_needed_within_the_age_or_will_be() {
        let now = SystemTime::now();
        let (day, hour) = (Duration::from_secs(86_400), Duration::from_secs(3600));
        assert!(is_young(now - day, now, 2 * day));
        assert!(!is_young(now - 3 * day, now, 2 * day));
        assert!(is_young(now + 3 * day, now, 2 * day), "from the future");
        assert!(is_young(now - hour, now, Duration::ZERO), "below the least age");
        assert!(!is_young(now - MIN_AGE, now, Duration::ZERO));
    }
}
