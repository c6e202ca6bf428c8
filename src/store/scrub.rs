//! Scrubbing: reads blobs again, and takes out of the way what is no longer what its name says.
//!
//! A blob in quarantine is no longer stored: the next requirements call asks for it, and the links of
//! all checkouts lead to it again once it has been sent.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Options, Stopped, Store, Work, gc::names_of, layout::Layout, records::unix_s, walk::Item,
};
use crate::{
    disk::{DiskError, IoContext, OpenDir, make_read_only, read_from_disk, replace_file},
    domain::{BlobId, Digest, report::Quarantined, report::ScrubReport},
};

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// A file costs at least as much as so many bytes: opening it is work for a disk, too.
const FILE_BYTES: u64 = 64 << 10;

/// How often it is noted how far a scrub is.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// How many findings of a kind are told in words.
const TOLD: usize = 100;

/// How to scrub.
#[derive(Debug, Clone, Copy)]
pub struct ScrubOptions {
    /// How many bytes a second are read at most.
    pub rate: Option<u64>,
    /// Begin with the first blob, wherever the last scrub stopped.
    pub from_start: bool,
    /// How many threads read.
    pub threads: usize,
    /// Others go first: they wait for a processor less than this.
    pub gentle: bool,
}

/// Why there was no scrub.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// Another one is at it.
    #[error("a scrub is going on")]
    Busy,
    /// The store cannot be listed, or a bad blob not moved.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a storage was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is none.
    #[error("{} is no Shaman storage: there is no directory file-store/stored in it", .0.display())]
    NoStorage(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] super::OpenError),
}

/// Where a scrub is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place {
    /// Blobs with smaller digests are done.
    from: Digest,
}

/// Spreads bytes over time.
struct Pace {
    rate: Option<u64>,
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self { rate, start: Instant::now(), bytes: 0 }
    }

    /// Waits as long as so many bytes may take, in small steps.
    fn spend(&mut self, bytes: u64, work: &Work) -> Result<(), Stopped> {
        work.go_on()?;
        let Some(rate) = self.rate else { return Ok(()) };
        self.bytes += bytes;
        let due = self.start + Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64);
        loop {
            work.go_on()?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// The smallest digest there can be.
const FIRST: Digest = Digest::from_bytes([0; 32]);

/// A scrub that goes on.
struct Run<'a> {
    store: &'a Store,
    options: ScrubOptions,
    work: &'a Work,
    report: ScrubReport,
    /// When its place was last written down.
    noted: Instant,
}

impl Run<'_> {
    /// `Ok(Err(_))`: stopped on the way, and that noted.
    fn prefix(&mut self, prefix: u8, from: &Digest) -> Result<Result<(), Stopped>, DiskError> {
        let (store, work) = (self.store, self.work);
        let mut ids = Vec::new();
        store.blobs_with_prefix(prefix, |item| match item {
            Item::Blob(id) if id.digest < *from => {}
            Item::Blob(id) => ids.push(id),
            Item::Stray(path) => tell(&mut self.report.strays, || path.display().to_string()),
        })?;
        let rate = self.options.rate;
        // With a rate, one after the other.
        let at_once = if rate.is_some() { 1 } else { self.options.threads.max(1) * 4 };
        let mut pace = Pace::new(rate);
        for ids in ids.chunks(at_once) {
            let found: Vec<_> = match ids {
                [id] => vec![store.scrub_blob(id, &mut pace, work)],
                ids => ids
                    .par_iter()
                    .map(|id| store.scrub_blob(id, &mut Pace::new(None), work))
                    .collect(),
            };
            for (id, found) in ids.iter().zip(found) {
                let Ok(finding) = found else {
                    store.note_scrub_place(id.digest)?;
                    return Ok(Err(Stopped));
                };
                self.add(id, finding);
                if self.noted.elapsed() >= NOTE_EVERY {
                    store.note_scrub_place(id.digest)?;
                    self.noted = Instant::now();
                }
            }
        }
        Ok(Ok(()))
    }

    fn add(&mut self, id: &BlobId, finding: Finding) {
        let report = &mut self.report;
        match finding {
            Finding::Gone => return,
            Finding::Good => {}
            Finding::Flickering => {
                tracing::error!(blob = %id, "a blob was read wrong once, and right again");
                tell(&mut report.flickering, || id.to_string());
            }
            Finding::Quarantined(bad) => {
                tracing::error!(
                    blob = %bad.blob, found = %bad.found, moved_to = %bad.moved_to,
                    "a blob is not what its name says: it is in quarantine, and asked for again"
                );
                report.quarantined.push(bad);
            }
            Finding::Unreadable(error) => {
                self.store.counts.unreadable.fetch_add(1, Relaxed);
                tracing::error!(blob = %id, "{error}: {}", error.source);
                tell(&mut report.unreadable, || format!("{id}: {error}: {}", error.source));
            }
        }
        report.read.add(id.size_bytes);
        self.store.counts.scrubbed(id);
        self.work.did(1, id.size_bytes);
    }
}

/// What one blob turned out to be.
enum Finding {
    Good,
    /// Gone, or not there as a file at all: removed meanwhile.
    Gone,
    Flickering,
    Quarantined(Quarantined),
    Unreadable(DiskError),
}

impl Store {
    /// Reads all blobs again, from where the last scrub was stopped, to the end of the store.
    ///
    /// # Errors
    /// If the store cannot be listed. A blob that cannot be read is a finding, not an error.
    pub fn scrub(&self, options: ScrubOptions, work: &Work) -> Result<ScrubReport, ScrubError> {
        let _one = self.scrubbing.try_lock().map_err(|_| ScrubError::Busy)?;
        let pool = self.pool(options.threads, options.gentle)?;
        let from = if options.from_start { None } else { self.scrub_place() };
        let mut run = Run {
            store: self,
            options,
            work,
            report: ScrubReport::default(),
            noted: Instant::now(),
        };
        let from = from.unwrap_or(FIRST);
        for prefix in from.as_bytes()[0]..=u8::MAX {
            if pool.install(|| run.prefix(prefix, &from))?.is_err() {
                return Ok(run.report);
            }
        }
        run.report.complete = true;
        self.note_scrub_place(FIRST)?;
        Ok(run.report)
    }

    fn scrub_blob(&self, id: &BlobId, pace: &mut Pace, work: &Work) -> Result<Finding, Stopped> {
        pace.spend(FILE_BYTES.saturating_sub(id.size_bytes), work)?;
        let (_, file) = self.layout.blob(id);
        let mut wrong = None;
        // What is wrong is read twice: memory and cables fail, too, and nothing is to be lost by that.
        for _ in 0..2 {
            match read(&file, pace, work)? {
                Ok(None) => return Ok(Finding::Gone),
                Ok(Some(found)) if found.is(id) => {
                    let was_wrong = wrong.is_some();
                    return Ok(if was_wrong { Finding::Flickering } else { Finding::Good });
                }
                Ok(Some(found)) => wrong = Some(found),
                Err(error) => return Ok(Finding::Unreadable(error)),
            }
        }
        let Some(wrong) = wrong else { return Ok(Finding::Good) };
        let _alone = self.removal.write().expect("BUG: no one panics with this lock");
        match self.look(id) {
            // Sent again meanwhile: the next scrub will read that.
            Ok(now) if now.as_ref().is_none_or(|now| !wrong.is_same_file(now)) => Ok(Finding::Gone),
            Ok(_) => Ok(match self.quarantine_blob(id) {
                Ok(moved_to) => {
                    self.counts.gone(id);
                    Finding::Quarantined(Quarantined {
                        blob: id.to_string(),
                        found: wrong.what,
                        moved_to: moved_to.display().to_string(),
                    })
                }
                Err(error) => Finding::Unreadable(error),
            }),
            Err(error) => Ok(Finding::Unreadable(error)),
        }
    }

    /// Moves the file of a blob to quarantine. The caller holds `removal`.
    fn quarantine_blob(&self, id: &BlobId) -> Result<PathBuf, DiskError> {
        let (prefix, own) = Layout::blob_dirs(id);
        self.quarantine(id, &self.open_dir(&format!("{prefix}/{own}"))?, &Layout::blob_name(id))
    }

    /// Moves an entry of a blob's directories to quarantine. The caller holds `removal`.
    pub(super) fn quarantine(
        &self,
        id: &BlobId,
        dir: &OpenDir,
        name: &str,
    ) -> Result<PathBuf, DiskError> {
        let now = unix_s(SystemTime::now());
        let target = format!("{}-{}-{now}-{:04x}", id.digest, id.size_bytes, fastrand::u16(..));
        let quarantine = self.open_dir(Layout::QUARANTINE)?;
        dir.rename(name, &quarantine, &target)?;
        self.counts.quarantined.fetch_add(1, Relaxed);
        self.remove_blob_dir(id);
        Ok(quarantine.path().join(target))
    }

    /// Where the last scrub stopped. Not worth an error: then it begins anew.
    fn scrub_place(&self) -> Option<Digest> {
        let text = fs::read(self.layout.scrub_state()).ok()?;
        Some(serde_json::from_slice::<Place>(&text).ok()?.from)
    }

    fn note_scrub_place(&self, from: Digest) -> Result<(), DiskError> {
        let (file, place) = (self.layout.scrub_state(), Place { from });
        let text = serde_json::to_vec(&place).map_err(io::Error::from).on("write", &file)?;
        replace_file(&file, &text, false)
    }

    /// Opens a storage that another Shaman server has made. It stays as that server has left it, but
    /// for directories of farmhand's own.
    ///
    /// # Errors
    /// If there is none, or it cannot be opened.
    pub fn adopt(dir: &Path, options: Options) -> Result<std::sync::Arc<Self>, AdoptError> {
        if !Layout::new(dir).stored().is_dir() {
            return Err(AdoptError::NoStorage(dir.to_owned()));
        }
        Ok(Self::open(dir, options)?)
    }

    /// Takes the right to write away from all blobs that can be written to. Returns how many could.
    ///
    /// # Errors
    /// If a blob cannot be looked at or changed.
    pub fn make_blobs_read_only(&self, work: &Work) -> Result<u64, DiskError> {
        let mut changed = 0;
        for prefix in 0..=u8::MAX {
            let mut ids = Vec::new();
            self.blobs_with_prefix(prefix, |item| {
                if let Item::Blob(id) = item {
                    ids.push(id);
                }
            })?;
            for id in ids {
                if work.go_on().is_err() {
                    return Ok(changed);
                }
                let Some(found) = self.look(&id)?.filter(fs::Metadata::is_file) else { continue };
                // Not that of a file that has other names, which may be meant to be written to.
                if !found.permissions().readonly() && names_of(&found) == 1 {
                    make_read_only(&self.layout.blob(&id).1)?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }
}

fn tell(told: &mut Vec<String>, text: impl FnOnce() -> String) {
    if told.len() < TOLD {
        told.push(text());
    }
}

/// What was read under the name of a blob.
struct Content {
    what: String,
    id: Option<BlobId>,
    file: Option<fs::Metadata>,
}

impl Content {
    fn is(&self, id: &BlobId) -> bool {
        self.id.as_ref() == Some(id)
    }

    /// Whether this is still what stands there.
    fn is_same_file(&self, now: &fs::Metadata) -> bool {
        match &self.file {
            #[cfg(unix)]
            Some(file) => {
                let (was, is) =
                    (crate::disk::Fingerprint::of(file), crate::disk::Fingerprint::of(now));
                (was.device, was.inode, was.size_bytes) == (is.device, is.inode, is.size_bytes)
            }
            #[cfg(not(unix))]
            Some(file) => file.len() == now.len() && file.created().ok() == now.created().ok(),
            None => !now.is_file(),
        }
    }
}

/// Which blob the content of a file is; `None` if there is no file.
pub(super) fn content(path: &Path) -> Result<Option<BlobId>, DiskError> {
    match read(path, &mut Pace::new(None), &Work::default()) {
        Ok(found) => Ok(found?.and_then(|content| content.id)),
        Err(Stopped) => unreachable!("BUG: nobody stops this work"),
    }
}

/// Reads what stands at a blob's place; `None`: nothing does.
fn read(
    path: &Path,
    pace: &mut Pace,
    work: &Work,
) -> Result<Result<Option<Content>, DiskError>, Stopped> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error).on("look at", path)),
    };
    if !found.is_file() {
        let what = if found.is_dir() { "a directory" } else { "no file" };
        return Ok(Ok(Some(Content { what: what.into(), id: None, file: None })));
    }
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error).on("open", path)),
    };
    read_from_disk(&file);
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(found.len()).unwrap_or(0) + 1)];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&piece[..count]);
                size_bytes += count as u64;
                pace.spend(count as u64, work)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error).on("read", path)),
        }
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    let id = BlobId { digest, size_bytes };
    Ok(Ok(Some(Content { what: id.to_string(), id: Some(id), file: Some(found) })))
}
