//! A folder becomes a list of paths and digests: walk, look into the hash cache, hash the rest.

mod cache;
mod hash;
mod ignore;
mod plan;
mod survey;
mod walk;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

pub use self::ignore::{DEFAULT_IGNORES, IGNORE_FILE, IgnoreRule, deciding_rule};
pub use cache::HashCache;
pub use hash::HashError;
pub use survey::{Known, Survey};
pub use walk::{Ignored, SkipReason, Skipped, WalkError};

use crate::{
    disk::Fingerprint,
    domain::{BlobId, Digest, Entry, Manifest, ManifestError, RelPath},
    meter::{Phase, Progress},
};
use cache::CacheRow;
use hash::Hasher;
use walk::Found;

/// Hashed files are written to the cache in groups: at least so often, and at most so many at once.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_MAX_FILES: usize = 5_000;

/// How to scan.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether [`DEFAULT_IGNORES`] apply.
    pub default_ignores: bool,
    /// Threads that read and hash. Small files that are not in memory want more of them than there are cores.
    pub threads: usize,
    /// Where the hash cache is; `None`: nowhere.
    pub cache: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { default_ignores: true, threads: (4 * cores).max(8), cache: None }
    }
}

/// One file and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedFile {
    /// Its path below the root.
    pub path: RelPath,
    /// What it looked like when it was hashed.
    pub fingerprint: Fingerprint,
    /// SHA-256 of its content.
    pub digest: Digest,
    /// Whether the digest comes from the cache.
    pub cached: bool,
}

impl ScannedFile {
    /// The name of its content.
    pub fn blob(&self) -> BlobId {
        BlobId { digest: self.digest, size_bytes: self.fingerprint.size_bytes }
    }
}

/// A folder as it was when it was scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The folder, as an absolute path.
    pub root: PathBuf,
    /// Its files, sorted by path.
    pub files: Vec<ScannedFile>,
    /// What is in the folder and not in `files`, ignored files aside.
    pub skipped: Vec<Skipped>,
}

impl Scan {
    /// The checkout that this folder would be.
    ///
    /// # Errors
    /// Never for a scan of a real folder.
    pub fn manifest(&self) -> Result<Manifest, ManifestError> {
        let entries = self.files.iter();
        Manifest::new(entries.map(|f| Entry { path: f.path.clone(), blob: f.blob() }).collect())
    }
}

/// Why there is no scan.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The root cannot be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// Somebody asked to stop. What was hashed so far is in the cache.
    #[error("stopped")]
    Stopped,
    /// No threads to be had.
    #[error("cannot start the threads that hash: {0}")]
    Threads(String),
}

/// Scans folders. Keeps its threads and the open cache.
#[derive(Debug)]
pub struct Scanner {
    options: Options,
    pool: rayon::ThreadPool,
    cache: HashCache,
    /// Where to count.
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

impl Scanner {
    /// A scanner that counts what it does in `progress`, and stops soon after `stop` is set.
    ///
    /// # Errors
    /// If its threads cannot be started. A cache that cannot be used is no error: it is warned about.
    pub fn new(
        options: Options,
        progress: Arc<Progress>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, ScanError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.max(1))
            .thread_name(|number| format!("scan-{number}"))
            .build()
            .map_err(|error| ScanError::Threads(error.to_string()))?;
        let cache = HashCache::open(options.cache.as_deref());
        Ok(Self { options, pool, cache, progress, stop })
    }

    /// Scans a folder, or a single file in its folder.
    ///
    /// # Errors
    /// If `path` is not there or cannot be read, or the scan was stopped.
    pub fn scan(&mut self, path: &Path) -> Result<Scan, ScanError> {
        let survey = self.survey(path, false)?;
        self.finish(survey)
    }

    /// Finds out what there is, and what is known of it, without reading a file: the first half of a
    /// scan. If `note_ignored`, also what is ignored, and why.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn survey(&mut self, path: &Path, note_ignored: bool) -> Result<Survey, ScanError> {
        self.progress.enter(Phase::Walking);
        let walked =
            walk::walk(path, &self.options, note_ignored, &self.pool, &self.progress, &self.stop)?;
        if self.stop.load(Relaxed) {
            return Err(ScanError::Stopped);
        }
        let (root, skipped) = (walked.root, walked.skipped);
        let known = self.cache.load(&root);
        if walked.is_whole_root {
            self.cache.forget(&root, &known, &walked.files);
        }
        let plan = plan::plan(walked.files, &known);
        Ok(Survey::new(root, skipped, walked.ignored, plan))
    }

    /// Hashes what is not known: the second half of a scan.
    ///
    /// # Errors
    /// If it was stopped.
    pub fn finish(&mut self, survey: Survey) -> Result<Scan, ScanError> {
        let Survey { root, mut skipped, plan, .. } = survey;
        let mut files = plan.trusted;

        self.progress.enter(Phase::Hashing);
        let bytes = plan.to_hash.iter().map(|found| found.fingerprint.size_bytes).sum();
        self.progress.expect(plan.to_hash.len() as u64, bytes);
        self.hash(&root, plan.to_hash, &mut files, &mut skipped);
        if self.stop.load(Relaxed) {
            return Err(ScanError::Stopped);
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        skipped.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Scan { root, files, skipped })
    }

    /// Hashes one file again, whatever the cache says, and corrects the cache.
    ///
    /// # Errors
    /// If it cannot be read, or changes all the time.
    pub fn rehash(&mut self, root: &Path, path: &RelPath) -> Result<ScannedFile, HashError> {
        let hashed = Hasher::new(&self.progress, &self.stop).hash(&root.join(path.as_str()))?;
        self.cache.save(root, &[(path.clone(), hashed)]);
        Ok(ScannedFile {
            path: path.clone(),
            fingerprint: hashed.fingerprint,
            digest: hashed.digest,
            cached: false,
        })
    }

    /// Hashes files on all threads while this one writes what is known to the cache.
    fn hash(
        &mut self,
        root: &Path,
        to_hash: Vec<Found>,
        files: &mut Vec<ScannedFile>,
        skipped: &mut Vec<Skipped>,
    ) {
        let (results, hashed) = mpsc::channel();
        let queue = std::sync::Mutex::new(to_hash.into_iter());
        let (progress, stop, cache) = (&self.progress, &self.stop, &mut self.cache);
        let threads = self.pool.current_num_threads();
        self.pool.in_place_scope(|scope| {
            for _ in 0..threads {
                let (results, queue) = (results.clone(), &queue);
                scope.spawn(move |_| {
                    let mut hasher = Hasher::new(progress, stop);
                    while !stop.load(Relaxed) {
                        // Largest first, one by one: nobody is left alone with a big file at the end.
                        let next = queue.lock().expect("BUG: no one panics with this lock").next();
                        let Some(found) = next else { break };
                        let result = hasher.hash(&root.join(found.path.as_str()));
                        progress.add_files(1);
                        if results.send((found.path, result)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(results);

            let mut unsaved: Vec<(RelPath, CacheRow)> = Vec::new();
            let mut saved_at = std::time::Instant::now();
            for (path, result) in hashed {
                match result {
                    Ok(row) => {
                        files.push(ScannedFile {
                            path: path.clone(),
                            fingerprint: row.fingerprint,
                            digest: row.digest,
                            cached: false,
                        });
                        unsaved.push((path, row));
                    }
                    Err(HashError::Stopped) => {}
                    Err(error) => skipped
                        .push(Skipped { path: path.as_str().to_owned(), reason: error.into() }),
                }
                if unsaved.len() >= SAVE_MAX_FILES || saved_at.elapsed() >= SAVE_EVERY {
                    cache.save(root, &unsaved);
                    unsaved.clear();
                    saved_at = std::time::Instant::now();
                }
            }
            cache.save(root, &unsaved);
        });
    }
}
