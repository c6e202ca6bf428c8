//! requirements → uploads → again until nothing is missing → create.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::upload::{self, Chooser, Delta, Job, Line, MODES, Mode, Tally};
use crate::{
    client::{ClientError, Shaman},
    domain::{BlobId, BlobStatus, CheckoutPath, RelPath},
    exec::Exec,
    meter::{Phase, Progress},
    scan::{HashError, Scan, ScannedFile, Scanner, SkipReason, Skipped},
    wire::FileSpec,
};

/// How often the server is asked what is missing. More than two are needed only when files change
/// meanwhile, or the server loses blobs.
const MAX_ROUNDS: u32 = 6;

/// How often a file may change during one job before it is left out.
const MAX_CHANGES: u32 = 3;

/// How to sync.
#[derive(Debug, Clone)]
pub struct Options {
    /// Uploads at once, at most.
    pub uploads: usize,
    /// How often an upload is tried again after a failure.
    pub retries: u32,
    /// How long somebody else may take to send a blob before we send it ourselves.
    pub defer: Duration,
    /// Whether it is an error to leave something out.
    pub strict: bool,
    /// When what is nearly the same as something the server has is not sent as a whole.
    pub delta: Delta,
    /// Whether to use what farmhand's server can do beside Shaman.
    pub extension: bool,
    /// What all uploads of this process go through.
    pub line: Arc<Line>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uploads: 8,
            retries: 5,
            defer: Duration::from_secs(600),
            strict: false,
            delta: Delta::Auto,
            extension: true,
            line: Arc::default(),
        }
    }
}

/// What a sync has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// The files that are stored now, sorted by path.
    pub files: Vec<ScannedFile>,
    /// What was left out, sorted by path.
    pub skipped: Vec<Skipped>,
    /// Blobs that were sent and that the server did not have.
    pub uploaded_files: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Files whose blobs the server had when it was first asked.
    pub already_stored_files: u64,
    /// How often the server said that somebody else is sending a blob.
    pub deferrals: u64,
    /// How often something was tried again.
    pub retries: u64,
    /// What was given to connections to send blobs, in bytes: also what broke off.
    pub sent_bytes: u64,
    /// What did not have to be sent of blobs that were, because the server had it in others, in bytes.
    pub reused_bytes: u64,
    /// In which way blobs were sent.
    pub modes: BTreeMap<Mode, ModeCount>,
}

/// What was sent in one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ModeCount {
    /// Blobs.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
}

impl SyncReport {
    /// The way in which most bytes went; `None` if nothing was sent.
    pub fn mode(&self) -> Option<Mode> {
        self.modes.iter().max_by_key(|(_, count)| (count.bytes, count.files)).map(|(mode, _)| *mode)
    }

    fn add_modes(&mut self, modes: impl IntoIterator<Item = (Mode, ModeCount)>) {
        for (mode, ModeCount { files, bytes }) in modes {
            let count = self.modes.entry(mode).or_default();
            count.files += files;
            count.bytes += bytes;
        }
    }
}

/// Why a sync did not come to its end. What was sent is stored: the next one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The server, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// One blob could not be sent, often enough.
    #[error("cannot send {} to {url}: {reason}", path.as_deref().unwrap_or("a file"))]
    Exhausted {
        /// A file with its content.
        path: Option<String>,
        /// The server.
        url: String,
        /// What happened last.
        reason: String,
        /// Whether the server said that, and not the lack of one.
        reached: bool,
    },
    /// The server says that a file is not what its digest says, and it is.
    #[error("{url} takes {path} for damaged, each time it is sent: {reason}")]
    Integrity {
        /// The file.
        path: String,
        /// The server.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The server goes on asking for files it said it has stored.
    #[error("{url} still lacks {count} files that it said it had stored, {path} among them")]
    Forgetful {
        /// The server.
        url: String,
        /// How many.
        count: usize,
        /// One of them.
        path: String,
    },
    /// Something would have been left out, and that was not wanted.
    #[error("{path} {}cannot be taken along: {reason}", more(*.count))]
    LeftOut {
        /// How many.
        count: usize,
        /// One of them.
        path: String,
        /// Why.
        reason: SkipReason,
    },
    /// Something that cannot happen.
    #[error("BUG: {0}")]
    Bug(String),
}

fn more(count: usize) -> String {
    if count > 1 { format!("and {} others ", count - 1) } else { String::new() }
}

/// Sees to it that all files of a scan are stored on the server. Files that turn out to have
/// changed are hashed again with `scanner`.
///
/// # Errors
/// If the server cannot be reached, refuses, or does not do as it says.
pub async fn sync(
    client: &mut Shaman,
    scan: Scan,
    scanner: Arc<Mutex<Scanner>>,
    progress: Arc<Progress>,
    options: Options,
) -> Result<SyncReport, SyncError> {
    let mut files: BTreeMap<RelPath, ScannedFile> =
        scan.files.into_iter().map(|file| (file.path.clone(), file)).collect();
    let mut report = SyncReport { skipped: scan.skipped, ..SyncReport::default() };
    let mut changes: HashMap<RelPath, u32> = HashMap::new();
    let exec = Exec::default();
    let mut capabilities = None;
    for round in 1..=MAX_ROUNDS {
        if let (true, Some(first)) = (options.strict, report.skipped.first()) {
            return Err(SyncError::LeftOut {
                count: report.skipped.len(),
                path: first.path.clone(),
                reason: first.reason.clone(),
            });
        }
        progress.enter(Phase::Asking);
        let missing = missing(client, &files).await?;
        if round == 1 {
            let asked_for: usize = missing.iter().map(|(_, same)| same.len()).sum();
            report.already_stored_files = (files.len() - asked_for) as u64;
        }
        let Some((_, first)) = missing.first() else {
            report.files = files.into_values().collect();
            report.skipped.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            return Ok(report);
        };
        if round == MAX_ROUNDS {
            return Err(SyncError::Forgetful {
                url: client.url().to_string(),
                count: missing.len(),
                path: first.last().map(|file| file.path.to_string()).unwrap_or_default(),
            });
        }
        if round > 2 {
            // Neither a file that is being written nor a server in trouble gets better by haste.
            tokio::time::sleep(Duration::from_millis(200) * round).await;
        }
        progress.enter(Phase::Uploading);
        progress.expect(missing.len() as u64, missing.iter().map(|(id, _)| id.size_bytes).sum());
        if capabilities.is_none()
            && options.extension
            && Chooser::would_matter(missing.iter().map(|(id, _)| id.size_bytes))
        {
            capabilities = Some(client.capabilities().await);
        }
        let chooser = Chooser::new(
            capabilities.clone().unwrap_or_default(),
            options.delta,
            client.is_loopback(),
        );
        let job = Arc::new(Job {
            client: client.clone(),
            root: scan.root.clone(),
            exec: exec.clone(),
            buffers: upload::Buffers::default(),
            progress: progress.clone(),
            options: options.clone(),
            sent_bytes: AtomicU64::new(0),
            sender: format!("{:032x}", fastrand::u128(..)),
            tally: Tally::default(),
            begun: Mutex::default(),
            chooser: chooser.into(),
        });
        let ended = upload::run(job.clone(), missing).await?;
        report.sent_bytes += job.sent_bytes.load(Relaxed);
        report.reused_bytes += job.tally.reused_bytes.load(Relaxed);
        report.add_modes(MODES.into_iter().filter_map(|mode| {
            let (files, bytes) = job.tally.of(mode);
            (files > 0).then_some((mode, ModeCount { files, bytes }))
        }));
        report.uploaded_files += ended.uploaded_blobs;
        report.uploaded_bytes += ended.uploaded_bytes;
        report.deferrals += ended.deferrals;
        report.retries += ended.retries;
        for (path, rejection) in ended.doubtful {
            report.retries += 1;
            let count = changes.entry(path.clone()).or_default();
            *count += 1;
            let before = files.get(&path).map(|file| file.digest);
            let (root, scanner, again) = (scan.root.clone(), scanner.clone(), path.clone());
            let hashed = exec
                .blocking(move || match scanner.lock() {
                    Ok(mut scanner) => scanner.rehash(&root, &again),
                    Err(_) => Err(HashError::Stopped),
                })
                .await;
            match (hashed, rejection) {
                (Ok(file), Some(reason)) if Some(file.digest) == before && *count > MAX_CHANGES => {
                    return Err(SyncError::Integrity {
                        path: path.to_string(),
                        url: client.url().to_string(),
                        reason,
                    });
                }
                (Ok(_), _) if *count > MAX_CHANGES => {
                    leave_out(&mut files, &mut report, path, SkipReason::Unstable);
                }
                (Ok(file), _) => {
                    files.insert(path, file);
                }
                (Err(error), _) => leave_out(&mut files, &mut report, path, error.into()),
            }
        }
    }
    unreachable!("BUG: the last round returns")
}

fn leave_out(
    files: &mut BTreeMap<RelPath, ScannedFile>,
    report: &mut SyncReport,
    path: RelPath,
    reason: SkipReason,
) {
    files.remove(&path);
    report.skipped.push(Skipped { path: path.to_string(), reason });
}

/// What the server lacks of files, each content once, in the order of its answer; nothing is sent.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub async fn lacking<'a>(
    client: &mut Shaman,
    files: impl IntoIterator<Item = &'a ScannedFile>,
) -> Result<Vec<(BlobId, BlobStatus)>, SyncError> {
    let mut asked_for = HashSet::new();
    let mut distinct = Vec::new();
    for file in files {
        if asked_for.insert(file.blob()) {
            distinct.push(FileSpec::new(&file.path, &file.blob()));
        }
    }
    let answer = client.requirements(distinct).await?;
    let mut lacking = Vec::with_capacity(answer.len());
    for asked in answer {
        let digest = asked.sha.parse().ok();
        let id = digest.map(|digest| BlobId { digest, size_bytes: asked.size });
        let Some(id) = id.filter(|id| asked_for.remove(id)) else {
            // Another server's dialect may list a blob twice; one that was never offered is odd.
            tracing::debug!(
                "the server asks for {}/{}, again or for no reason",
                asked.sha,
                asked.size
            );
            continue;
        };
        lacking.push((id, asked.status));
    }
    Ok(lacking)
}

/// What the server lacks, with the files that have it.
async fn missing(
    client: &mut Shaman,
    files: &BTreeMap<RelPath, ScannedFile>,
) -> Result<Vec<(BlobId, Vec<ScannedFile>)>, SyncError> {
    let lacking = lacking(client, files.values()).await?;
    let mut missing: Vec<_> = lacking.into_iter().map(|(id, _)| (id, Vec::new())).collect();
    let places: HashMap<BlobId, usize> =
        missing.iter().enumerate().map(|(place, (id, _))| (*id, place)).collect();
    for file in files.values() {
        if let Some(&place) = places.get(&file.blob()) {
            missing[place].1.push(file.clone());
        }
    }
    Ok(missing)
}

/// Syncs, and has the checkout created; returns the path that the server used.
///
/// # Errors
/// As [`sync`]; and if the server does not create the checkout, though it lacks nothing.
pub async fn create_checkout(
    client: &mut Shaman,
    scan: Scan,
    scanner: Arc<Mutex<Scanner>>,
    progress: Arc<Progress>,
    options: Options,
    wish: &CheckoutPath,
) -> Result<(String, SyncReport), SyncError> {
    let root = scan.root.clone();
    let mut total = sync(client, scan, scanner.clone(), progress.clone(), options.clone()).await?;
    for round in 1.. {
        progress.enter(Phase::Creating);
        let files =
            total.files.iter().map(|file| FileSpec::new(&file.path, &file.blob())).collect();
        let missing = match client.create(wish.as_str(), files).await {
            Ok(path) => return Ok((path, total)),
            Err(error @ ClientError::MissingFiles { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        // A blob was lost between the calls, or this is an internal error in the other dialect.
        let scan = Scan { root: root.clone(), files: total.files, skipped: total.skipped };
        let again = sync(client, scan, scanner.clone(), progress.clone(), options.clone()).await?;
        let nothing_missed = again.uploaded_files == 0;
        let modes = std::mem::take(&mut total.modes);
        total = SyncReport {
            uploaded_files: total.uploaded_files + again.uploaded_files,
            uploaded_bytes: total.uploaded_bytes + again.uploaded_bytes,
            already_stored_files: total.already_stored_files,
            deferrals: total.deferrals + again.deferrals,
            retries: total.retries + again.retries + 1,
            sent_bytes: total.sent_bytes + again.sent_bytes,
            reused_bytes: total.reused_bytes + again.reused_bytes,
            ..again
        };
        total.add_modes(modes);
        if round == 3 || (nothing_missed && round == 2) {
            return Err(missing.into());
        }
    }
    unreachable!("BUG: the last round returns")
}
