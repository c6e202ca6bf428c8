//! A folder becomes a list of paths and digests: walk, look into the hash cache, hash the rest.

mod addon;
mod blend;
mod cache;
mod evidence;
mod hash;
mod ignore;
mod plan;
mod readers;
mod settle;
mod survey;
mod walk;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

pub use self::ignore::{DEFAULT_IGNORES, IGNORE_FILE, IgnoreRule, deciding_rule, is_ignored};
pub use blend::{BlendError, BlendPath, BlendPathKind, blend_paths};
pub use cache::{CacheHealth, CacheState, CachedRoot, HashCache};
pub use evidence::Evidence;
pub use hash::HashError;
pub use survey::{Known, Survey};
pub use walk::{Ignored, SkipReason, Skipped, WalkError};

use rayon::prelude::*;

use crate::{
    disk::{FileSystem, Fingerprint, unix_ns},
    domain::{BlobId, Digest, Entry, Manifest, ManifestError, RelPath},
    meter::{Phase, Progress},
};
use addon::AddonCaches;
use cache::{CacheRow, Root, Saved};
use hash::{Folder, Hasher};
use plan::{Comparison, Trust};
use readers::{Readers, cores};
use walk::Found;

/// Hashed files are written to the cache in groups: at least so often, and at most so many at once.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_MAX_FILES: usize = 5_000;

/// How to scan.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether [`DEFAULT_IGNORES`] apply.
    pub default_ignores: bool,
    /// More patterns of files to ignore, in the syntax of [`IGNORE_FILE`]; a project's own rules win.
    pub ignores: Vec<String>,
    /// How many files' readers there are, each with up to four files in hand; `None`: as many as turn
    /// out to be best.
    pub readers: Option<usize>,
    /// Where the hash cache is; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Where Blender's add-on has its caches (`~/.cache`), if they are to be read and written, too.
    pub addon_cache: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_ignores: true,
            ignores: Vec::new(),
            readers: None,
            cache: None,
            addon_cache: None,
        }
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
    addon: Option<AddonCaches>,
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
            // On a network disk each look is a round trip.
            .num_threads((4 * cores()).max(8))
            .thread_name(|number| format!("scan-{number}"))
            .build()
            .map_err(|error| ScanError::Threads(error.to_string()))?;
        let cache = HashCache::open(options.cache.as_deref());
        let addon = options.addon_cache.as_deref().map(AddonCaches::open);
        Ok(Self { options, pool, cache, addon, progress, stop })
    }

    /// Ignores these from now on, besides the defaults; the projects' own rules win.
    pub fn set_ignores(&mut self, ignores: Vec<String>) {
        self.options.ignores = ignores;
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
        let seen_at_ns = unix_ns(SystemTime::now());
        let walked =
            walk::walk(path, &self.options, note_ignored, &self.pool, &self.progress, &self.stop)?;
        if self.stop.load(Relaxed) {
            return Err(ScanError::Stopped);
        }
        let root = walked.root;
        let cached = identify(&root);
        let trusts = trusts(&root, &walked.files);
        let trust = |file: &Fingerprint| trusts.get(&file.device).copied().unwrap_or(Trust::LEAST);
        let begin = || Comparison::new(&walked.files, trust);
        let mut known = self.cache.compare(cached, begin, Comparison::row).finish();
        if !walked.is_whole_root {
            known.forget_others();
        }
        let mut plan = plan::plan(walked.files, known, trust, seen_at_ns);
        // If it cannot be now, then next time.
        let _: Saved = self.cache.save(cached, &plan.moved, &plan.gone);
        if let Some(addon) = &self.addon {
            let mut rows = Vec::new();
            plan.to_hash.retain(|Found { path, fingerprint }| {
                let trust = trust(fingerprint);
                let holds = |row: &CacheRow| plan::is_trusted(row, fingerprint, trust);
                let Some(row) = addon.find(&root, path, fingerprint, holds) else { return true };
                rows.push((path.clone(), row));
                false
            });
            let _: Saved = self.cache.save(cached, &rows, &[]);
            plan.trusted.extend(rows.into_iter().map(|(path, row)| ScannedFile {
                path,
                fingerprint: row.fingerprint,
                digest: row.digest,
                cached: true,
            }));
        }
        let is_remote = trusts.values().any(|trust| trust.is_remote());
        let survey = Survey::new(root, walked.skipped, walked.ignored, plan);
        let evidence = Evidence { seen: walked.seen, began_ns: seen_at_ns };
        Ok(Survey { evidence, is_remote, ..survey })
    }

    /// Hashes what is not known: the second half of a scan.
    ///
    /// # Errors
    /// If it was stopped.
    pub fn finish(&mut self, survey: Survey) -> Result<Scan, ScanError> {
        let Survey { root, mut skipped, plan, .. } = survey;
        let (mut files, to_hash) = (plan.trusted, plan.to_hash);
        let cached = identify(&root);

        self.progress.enter(Phase::Hashing);
        let bytes = to_hash.iter().map(|found| found.fingerprint.size_bytes).sum();
        self.progress.expect(to_hash.len() as u64, bytes);
        self.hash(cached, to_hash, &mut files, &mut skipped);
        if self.stop.load(Relaxed) {
            return Err(ScanError::Stopped);
        }
        self.pool.install(|| files.par_sort_unstable_by(|a, b| a.path.cmp(&b.path)));
        if let Some(addon) = &mut self.addon {
            self.pool.install(|| addon.warm(&root, &files));
        }
        skipped.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Scan { root, files, skipped })
    }

    /// Hashes one file again, whatever the cache says, and corrects the cache.
    ///
    /// # Errors
    /// If it cannot be read, or changes all the time.
    pub fn rehash(&mut self, root: &Path, path: &RelPath) -> Result<ScannedFile, HashError> {
        let folder = Folder::new(root);
        let hashed = Hasher::new(&folder, &self.progress, &self.stop).hash(path)?;
        let _: Saved = self.cache.save(identify(root), &[(path.clone(), hashed)], &[]);
        Ok(ScannedFile {
            path: path.clone(),
            fingerprint: hashed.fingerprint,
            digest: hashed.digest,
            cached: false,
        })
    }

    /// The hash cache.
    pub fn cache(&mut self) -> &mut HashCache {
        &mut self.cache
    }

    /// Hashes files again whose digests are in the cache, and looks whether these are right: all
    /// files, or those of some folders, or so many by chance. Wrong entries are removed, and so are all
    /// damaged ones.
    ///
    /// # Errors
    /// If it is stopped.
    pub fn verify_cache(
        &mut self,
        only: &[PathBuf],
        at_most: Option<u64>,
    ) -> Result<CacheCheck, ScanError> {
        let damaged = self.cache.remove_damaged().unwrap_or_default();
        let entries = self.cache.entries(only, at_most).unwrap_or_default();
        self.progress.enter(Phase::Hashing);
        let bytes = entries.iter().map(|(_, _, row)| row.fingerprint.size_bytes).sum();
        self.progress.expect(entries.len() as u64, bytes);
        // As in a scan: a file may be on another file system than its root.
        let mut trusts: HashMap<u64, Trust> = HashMap::new();
        let mut report = CacheCheck { damaged, ..CacheCheck::default() };
        let mut by_root: HashMap<&Path, HashMap<&str, &CacheRow>> = HashMap::new();
        for (root, path, row) in &entries {
            by_root.entry(root).or_default().insert(path, row);
        }
        let mut wrong: HashMap<&Path, Vec<Box<str>>> = HashMap::new();
        for (root, rows) in by_root {
            let mut to_hash = Vec::new();
            for (path, row) in &rows {
                let file = root.join(path);
                match fs::metadata(&file).map(|found| Fingerprint::of(&found)) {
                    Ok(fingerprint) => {
                        let trust = trusts.entry(fingerprint.device).or_insert_with(|| {
                            FileSystem::of(&file).as_ref().map_or(Trust::LEAST, Trust::from)
                        });
                        if !plan::is_trusted(row, &fingerprint, *trust) {
                            report.outdated += 1;
                            continue;
                        }
                        // What is no path has come into the database by other ways.
                        let Ok(path) = path.parse() else { continue };
                        to_hash.push(Found { path, fingerprint });
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        report.outdated += 1
                    }
                    Err(_) => report.unreadable += 1,
                }
            }
            let holds = |row: &CacheRow, now: &Fingerprint| {
                let trust = trusts.get(&now.device).copied().unwrap_or(Trust::LEAST);
                plan::is_trusted(row, now, trust)
            };
            let readers = Readers {
                number: self.options.readers,
                progress: &self.progress,
                stop: &self.stop,
            };
            readers.hash(root, to_hash, |path, result| {
                let Some(row) = rows.get(path.as_str()) else { return };
                match result {
                    Ok(now) if now.digest == row.digest => {
                        report.right += 1;
                        report.bytes += row.fingerprint.size_bytes;
                    }
                    Ok(now) if holds(row, &now.fingerprint) => {
                        report.wrong.push(root.join(path.as_str()).to_string_lossy().into_owned());
                        wrong.entry(root).or_default().push(path.as_str().into());
                    }
                    Ok(_) | Err(HashError::Unstable | HashError::Stopped) => report.outdated += 1,
                    Err(_) => report.unreadable += 1,
                }
            });
            if self.stop.load(Relaxed) {
                return Err(ScanError::Stopped);
            }
        }
        report.wrong.sort_unstable();
        for (root, paths) in wrong {
            let _: Saved = self.cache.save(identify(root), &[], &paths);
        }
        Ok(report)
    }

    /// Hashes files on other threads while this one writes what is known to the cache.
    fn hash(
        &mut self,
        root: Root,
        to_hash: Vec<Found>,
        files: &mut Vec<ScannedFile>,
        skipped: &mut Vec<Skipped>,
    ) {
        let mut unsaved: Vec<(RelPath, CacheRow)> = Vec::new();
        let (mut saved_at, mut is_busy) = (Instant::now(), false);
        let remembers = self.cache.file().is_some();
        let cache = &mut self.cache;
        let readers =
            Readers { number: self.options.readers, progress: &self.progress, stop: &self.stop };
        readers.hash(root.path, to_hash, |path, result| {
            match result {
                Ok(row) => {
                    files.push(ScannedFile {
                        path: path.clone(),
                        fingerprint: row.fingerprint,
                        digest: row.digest,
                        cached: false,
                    });
                    if remembers {
                        unsaved.push((path, row));
                    }
                }
                Err(HashError::Stopped) => {}
                Err(error) => {
                    skipped.push(Skipped { path: path.as_str().to_owned(), reason: error.into() });
                }
            }
            let is_full = unsaved.len() >= SAVE_MAX_FILES && !is_busy;
            if is_full || saved_at.elapsed() >= SAVE_EVERY {
                is_busy = cache.save(root, &unsaved, &[]) == Saved::Busy;
                if !is_busy {
                    unsaved.clear();
                }
                saved_at = Instant::now();
            }
        });
        if self.cache.save(root, &unsaved, &[]) == Saved::Busy {
            tracing::warn!(
                files = unsaved.len(),
                "another process writes to the hash cache all the time: what was hashed now is hashed \
                 again next time"
            );
        }
    }
}

/// What a look at the hash cache has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheCheck {
    /// Files whose digests are right.
    pub right: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// Files that look as they did, and hold something else. They are hashed again from now on.
    pub wrong: Vec<String>,
    /// Entries of files that have changed or are gone: they are not used.
    pub outdated: u64,
    /// Files that could not be read.
    pub unreadable: u64,
    /// Entries of all folders whose checksums are wrong: they were not used.
    pub damaged: u64,
}

/// The root as the cache knows it.
fn identify(root: &Path) -> Root<'_> {
    let found = fs::metadata(root).map(|found| Fingerprint::of(&found));
    let (device, inode) = found.map_or((0, 0), |found| (found.device, found.inode));
    Root { path: root, device, inode }
}

/// What the evidence is worth on the file systems that the files are on, by their device.
fn trusts(root: &Path, files: &[Found]) -> HashMap<u64, Trust> {
    let mut trusts = HashMap::new();
    let mut last = None;
    for found in files {
        let device = found.fingerprint.device;
        if last != Some(device) {
            last = Some(device);
            trusts.entry(device).or_insert_with(|| {
                let found = FileSystem::of(&root.join(found.path.as_str()));
                found.as_ref().map_or(Trust::LEAST, Trust::from)
            });
        }
    }
    trusts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_digests_in_the_cache_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (project, cache) = (dir.path().join("project"), dir.path().join("cache"));
        fs::create_dir(&project).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(project.join(name), name).unwrap();
        }
        let options = Options { cache: Some(cache), ..Options::default() };
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let mut scanner = Scanner::new(options, progress, stop).unwrap();
        let right = scanner.scan(&project).unwrap();
        // Saved with a right checksum: content that has rotted on the disk looks like this.
        let mut entries = scanner.cache.entries(&[], None).unwrap();
        entries.retain(|(_, path, _)| path == "b");
        let row = CacheRow { digest: Digest::from_bytes([0; 32]), ..entries[0].2 };
        let saved = scanner.cache.save(identify(&project), &[("b".parse().unwrap(), row)], &[]);
        assert_eq!(saved, Saved::Done);
        let wrong = vec![project.join("b").to_string_lossy().into_owned()];
        let found = scanner.verify_cache(&[], None).unwrap();
        assert_eq!((found.right, &found.wrong, found.damaged), (2, &wrong, 0));
        // It is removed, and hashed again.
        let digests =
            |scan: Scan| scan.files.into_iter().map(|file| file.digest).collect::<Vec<_>>();
        assert_eq!(digests(scanner.scan(&project).unwrap()), digests(right));
        assert_eq!(scanner.verify_cache(&[], None).unwrap().right, 3);
    }
}
