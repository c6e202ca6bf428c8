//! One folder that is kept uploaded: looks at it when it has changed, and sends what is new.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    debounce::{Candidate, Debouncer, Rhythm, Settling},
    shared::Shared,
    source::{Ear, Events, MOUNTED, NoEvents},
    status::{FolderState, FolderStatus, UploadStatus, WatchMode},
};
use crate::{
    agent::{
        sync::{Options, SyncError, lacking, sync},
        upload::Line,
    },
    client::Shaman,
    disk::{
        DirectoryId, DiskError, Fingerprint, Mounts, WatchLimits, unix_ns, watches_needed,
        written_to,
    },
    domain::{BlobId, RelPath},
    exec::Exec,
    meter::Progress,
    scan::{
        self, Evidence, IGNORE_FILE, Scan, ScanError, ScannedFile, Scanner, SkipReason, is_ignored,
    },
};

/// What is hashed at most before what is known is sent.
const HASH_SLICE_FILES: usize = 20_000;
const HASH_SLICE_BYTES: u64 = 4 << 30;

/// What is sent at most before changes are looked for again.
const SEND_SLICE_FILES: usize = 2_000;
const SEND_SLICE_BYTES: u64 = 256 << 20;

/// The pauses after a failure: at first, and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether the folder is still the one that is watched.
const BEAT: Duration = Duration::from_secs(5);

/// A clock that has gone on for so much longer than we have run: the machine was asleep.
const ASLEEP: Duration = Duration::from_secs(20);

/// Files that have not changed for so long are not asked after with the other programs.
const LONG_AT_REST_NS: i64 = 10 * 60 * 1_000_000_000;

/// A folder to keep uploaded.
#[derive(Debug)]
pub struct FolderOptions {
    /// The folder.
    pub dir: PathBuf,
    /// Where to.
    pub client: Shaman,
    /// The server, as it is shown.
    pub server: String,
    /// Folders with a higher one go first.
    pub priority: i32,
    /// How to scan.
    pub scan: scan::Options,
    /// How to send.
    pub sync: Options,
    /// How often to look.
    pub rhythm: Rhythm,
    /// Look every so often, and do not ask for events.
    pub poll: bool,
}

/// A scan, and how far it can be relied on.
#[derive(Debug)]
struct Known {
    scan: Arc<Scan>,
    /// Events heard before it began.
    count: u64,
    /// The watch that reports changes of it; none, if the scan is incomplete or of a folder that can change without an event.
    heard_by: Weak<Events>,
    /// What everything looked like.
    evidence: Arc<Evidence>,
}

#[derive(Debug)]
struct State {
    known: Option<Known>,
    /// Blobs that the server has said it has.
    stored: HashSet<BlobId>,
    /// Whether a known file is not among these.
    has_more: bool,
    watch: WatchMode,
    is_gone: bool,
    is_scanning: bool,
    is_hinted: bool,
    waiting_files: u64,
    last_sync: Option<Timestamp>,
    last_error: Option<String>,
    /// Whether that was about looking, and not about sending.
    is_blind: bool,
}

/// A folder that is kept uploaded.
#[derive(Debug)]
pub(super) struct Folder {
    /// Without links in it.
    pub root: PathBuf,
    options: FolderOptions,
    client: Mutex<Shaman>,
    scanner: Arc<Mutex<Scanner>>,
    stop: Arc<AtomicBool>,
    ear: Arc<Ear>,
    events: Mutex<Option<Arc<Events>>>,
    /// The file systems that the folder was on when it was last decided how to watch it.
    mounts: Mutex<Mounts>,
    /// There would be events if a limit of the system were raised.
    is_limited: AtomicBool,
    marks: PathBuf,
    settling: Mutex<Settling>,
    state: Mutex<State>,
    pub line: Arc<Line>,
    shared: Arc<Shared>,
    exec: Exec,
    began: Instant,
    /// Something for the loop to look at.
    nudge: Notify,
}

/// What came of a look.
struct Looked {
    scan: Arc<Scan>,
    /// What it cost to look, without hashing.
    cost: Duration,
    /// When to look at files again that were not at rest.
    again: Option<Duration>,
    is_remote: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Folder {
    /// Takes charge of a folder, which must be there. `marks` is a directory for its own use.
    pub fn new(
        mut options: FolderOptions,
        root: PathBuf,
        marks: PathBuf,
        shared: Arc<Shared>,
    ) -> Result<Self, ScanError> {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let scanner = Scanner::new(options.scan.clone(), progress, stop.clone())?;
        let line = Arc::new(shared.line.branch());
        options.sync.line = line.clone();
        options.sync.strict = false;
        Ok(Self {
            root,
            client: Mutex::new(options.client.clone()),
            scanner: Arc::new(Mutex::new(scanner)),
            stop,
            ear: Arc::default(),
            events: Mutex::default(),
            mounts: Mutex::default(),
            is_limited: AtomicBool::new(false),
            marks,
            settling: Mutex::default(),
            state: Mutex::new(State {
                known: None,
                stored: HashSet::new(),
                has_more: false,
                watch: WatchMode::Events,
                is_gone: false,
                is_scanning: false,
                is_hinted: false,
                waiting_files: 0,
                last_sync: None,
                last_error: None,
                is_blind: false,
            }),
            line,
            shared,
            exec: Exec::default(),
            began: Instant::now(),
            nudge: Notify::new(),
            options,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether scans with these options would find what this folder's scans find.
    pub fn scans_like(&self, options: &scan::Options) -> bool {
        let own = &self.options.scan;
        own.default_ignores == options.default_ignores && own.ignores == options.ignores
    }

    /// What it is at.
    pub fn status(&self) -> FolderStatus {
        let uploads = self.line.uploads();
        let is_paused = self.shared.is_paused();
        let state = self.state();
        let (mut files, mut bytes, mut queued) = (0, 0, (0, 0));
        let mut skipped = None;
        if let Some(known) = &state.known {
            skipped = Some(&known.scan.skipped);
            for file in &known.scan.files {
                let size = file.fingerprint.size_bytes;
                files += 1;
                bytes += size;
                if !state.stored.contains(&file.blob()) {
                    queued = (queued.0 + 1, queued.1 + size);
                }
            }
        }
        let at = match () {
            () if is_paused => FolderState::Paused,
            () if state.is_gone => FolderState::Gone,
            () if state.last_error.is_some() => FolderState::Retrying,
            () if state.is_scanning || state.known.is_none() => FolderState::Scanning,
            () if queued.0 > 0 => FolderState::Uploading,
            () if state.is_hinted || state.waiting_files > 0 => FolderState::Settling,
            () => FolderState::Synced,
        };
        FolderStatus {
            dir: self.options.dir.clone(),
            server: self.options.server.clone(),
            priority: self.options.priority,
            state: at,
            watch: state.watch.clone(),
            files,
            bytes,
            queued_files: queued.0,
            queued_bytes: queued.1,
            waiting_files: state.waiting_files,
            skipped_files: skipped.map_or(0, |skipped| skipped.len() as u64),
            skipped_example: skipped
                .and_then(|skipped| skipped.first())
                .map(|first| format!("{}: {}", first.path, first.reason)),
            uploads: uploads
                .into_iter()
                .map(|upload| UploadStatus {
                    rate: (upload.sent_bytes as f64 / upload.elapsed.as_secs_f64().max(0.001))
                        as u64,
                    path: upload.path,
                    size_bytes: upload.size_bytes,
                    sent_bytes: upload.sent_bytes,
                })
                .collect(),
            last_sync: state.last_sync,
            last_error: state.last_error.clone(),
        }
    }

    /// Tells those who follow the agent.
    fn changed(&self) {
        self.shared.folder_changed(&self.status());
    }

    /// Begins to hear of changes, or says why it polls. A scan of everything must follow.
    async fn watch(&self) {
        self.end_events().await;
        let started = self.try_watch().await;
        self.is_limited.store(matches!(started, Err(Deaf { is_limit: true, .. })), Relaxed);
        let mode = match started {
            Ok(events) => {
                events.forget_hints();
                *lock(&self.events) = Some(Arc::new(events));
                WatchMode::Events
            }
            Err(Deaf { reason, .. }) => {
                let every_s = self.options.rhythm.poll_every.as_secs();
                WatchMode::Poll { every_s, reason }
            }
        };
        let before = std::mem::replace(&mut self.state().watch, mode.clone());
        match mode {
            WatchMode::Poll { every_s, reason } if !before.polls_because(&reason) => {
                tracing::warn!(
                    "{}: {reason}: it is looked at every {every_s} s instead",
                    self.root.display()
                );
            }
            WatchMode::Events if matches!(before, WatchMode::Poll { .. }) => {
                tracing::info!("{}: changes are heard of now", self.root.display());
            }
            _ => {}
        }
    }

    async fn try_watch(&self) -> Result<Events, Deaf> {
        let deaf = |reason: String| Deaf { reason, is_limit: false };
        if self.options.poll {
            return Err(deaf("polling is what the configuration asks for".into()));
        }
        let root = self.root.clone();
        // Read before the watches are added: what is mounted meanwhile makes a difference later.
        let found = self.exec.blocking(move || {
            let mounts = Mounts::of(&root)?;
            let silent = mounts.silent();
            Ok::<_, DiskError>((mounts, silent))
        });
        let (mounts, silent) = found.await.map_err(|error| deaf(error.to_string()))?;
        (*lock(&self.mounts)).clone_from(&mounts);
        if let Some(silent) = silent {
            return Err(deaf(silent.to_string()));
        }
        match Events::start(&self.root, &self.marks, mounts, self.ear.clone()).await {
            Ok(events) => Ok(events),
            Err(error) => {
                let root = self.root.clone();
                let is_limit = !matches!(error, NoEvents::Other(_));
                let reason = self.exec.blocking(move || no_events(&error, &root)).await;
                Err(Deaf { reason, is_limit })
            }
        }
    }

    /// Ends the watch, if there is one, and waits until it counts no more against the limits.
    async fn end_events(&self) {
        let events = lock(&self.events).take();
        self.exec.blocking(move || drop(events)).await;
    }

    /// Whether something was mounted or unmounted in the folder, or above it, since it was decided how to
    /// watch it.
    async fn mounts_changed(&self) -> bool {
        let root = self.root.clone();
        let found = self.exec.blocking(move || Mounts::of(&root)).await;
        found.is_ok_and(|found| found != *lock(&self.mounts))
    }

    /// Runs until it is cancelled.
    pub async fn run(self: Arc<Self>, end: CancellationToken) {
        let mut debouncer = Debouncer::new(self.options.rhythm, self.now());
        let mut sending: Option<JoinHandle<Result<(), SyncError>>> = None;
        let (mut failures, mut retry_at) = (0, Duration::ZERO);
        let mut identity = None;
        let mut last_count = 0;
        let mut pauses = self.shared.pauses();
        let mut clocks = (Instant::now(), SystemTime::now());
        // The watch has missed something: it begins anew before the next look at everything.
        let mut is_incomplete = false;
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_paused = *pauses.borrow_and_update();
            let now = self.now();
            let is_gone = self.state().is_gone;
            if !is_paused && !is_gone && identity.is_some() && debouncer.due() <= now {
                let full = debouncer.begin(now);
                if full && std::mem::take(&mut is_incomplete) {
                    self.watch().await;
                }
                self.look_again(&mut debouncer, full).await;
                if end.is_cancelled() {
                    break;
                }
                continue;
            }
            let may_send = !is_paused && !is_gone && sending.is_none();
            if may_send && now >= retry_at && self.has_more_to_send() {
                sending = Some(tokio::spawn(self.clone().send_slice()));
            }
            let mut wake = debouncer.due();
            if retry_at > now {
                wake = wake.min(retry_at);
            }
            let is_stopped = is_paused || is_gone || identity.is_none();
            tokio::select! {
                () = end.cancelled() => break,
                () = tokio::time::sleep(wake.saturating_sub(now)), if !is_stopped => {}
                () = self.nudge.notified() => {}
                _ = pauses.changed() => self.changed(),
                () = self.ear.wake.notified() => {
                    let heard = self.ear.take();
                    if let Some(reason) = &heard.lost {
                        tracing::warn!(
                            "{}: {reason}: everything is looked at again", self.root.display()
                        );
                        is_incomplete = true;
                        debouncer.lost(self.now());
                    } else if !heard.is_nothing() {
                        let ignored = !heard.more && heard.paths.iter().all(|path| {
                            // Rules decide about other files, even if they ignore their own file.
                            !path.ends_with(IGNORE_FILE)
                                && is_ignored(&self.root, &self.options.scan, path)
                        });
                        if ignored {
                            let mut state = self.state();
                            if let Some(known) = &mut state.known && known.count == last_count {
                                known.count = heard.count;
                            }
                        } else {
                            debouncer.hint(self.now());
                            if !std::mem::replace(&mut self.state().is_hinted, true) {
                                self.changed();
                            }
                        }
                    }
                    last_count = heard.count;
                }
                ended = async { sending.as_mut().expect("BUG: it is there").await }, if sending.is_some() => {
                    sending = None;
                    match ended {
                        Ok(Ok(())) => {
                            failures = 0;
                            self.sent();
                        }
                        Ok(Err(error)) => {
                            failures += 1;
                            let pause = pause(failures, fastrand::f64());
                            retry_at = self.now() + pause;
                            self.failed(&error.to_string(), pause);
                        }
                        Err(error) => self.failed(&format!("BUG: {error}"), RETRY_MAX),
                    }
                }
                _ = beat.tick() => {
                    let slept = was_asleep(&mut clocks);
                    // Otherwise the watcher reports mounts.
                    let has_watcher = lock(&self.events).is_some();
                    let found = self.identify().await;
                    if found.is_none() || found != identity || is_gone {
                        self.note_gone(found.is_none());
                        if found.is_some() {
                            if identity.is_some() || is_gone {
                                tracing::info!(
                                    "{} is there again: everything is looked at", self.root.display()
                                );
                            }
                            self.watch().await;
                            debouncer.rush(self.now());
                            identity = found;
                        }
                    } else if slept {
                        tracing::info!(
                            "the machine was asleep: everything in {} is looked at again",
                            self.root.display()
                        );
                        self.watch().await;
                        debouncer.rush(self.now());
                    } else if !has_watcher && self.mounts_changed().await {
                        tracing::info!(
                            "{}: {MOUNTED}: everything is looked at again",
                            self.root.display()
                        );
                        self.watch().await;
                        debouncer.rush(self.now());
                    }
                }
            }
        }
        if let Some(sending) = sending {
            sending.abort();
        }
        self.end_events().await;
        self.exec.finish().await;
    }

    /// Has everything end soon.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    async fn identify(&self) -> Option<DirectoryId> {
        let root = self.root.clone();
        self.exec.blocking(move || DirectoryId::of(&root).ok().map(|(id, _)| id)).await
    }

    fn note_gone(&self, is_gone: bool) {
        let was_gone = std::mem::replace(&mut self.state().is_gone, is_gone);
        if is_gone && !was_gone {
            tracing::warn!("{} is not there: waiting for it", self.root.display());
            self.state().known = None;
        }
        if is_gone != was_gone {
            self.changed();
        }
    }

    async fn look_again(&self, debouncer: &mut Debouncer, full: bool) {
        let rhythm = &self.options.rhythm;
        if full {
            // The server may have lost what it had.
            self.state().stored.clear();
            // Somebody may have raised it.
            if self.is_limited.load(Relaxed) {
                self.watch().await;
            }
        }
        let looked = self.look(false).await;
        let now = self.now();
        let polls = || matches!(self.state().watch, WatchMode::Poll { .. });
        let mut cost = Duration::ZERO;
        match looked {
            Ok(looked) => {
                cost = looked.cost;
                if std::mem::take(&mut self.state().is_blind) {
                    self.state().last_error = None;
                }
                if let Some(time) = looked.again {
                    debouncer.look_at(time);
                }
                if looked.is_remote && !polls() {
                    let reason = "a link leads to another file system, where files can change \
                                  without an event";
                    self.poll_because(reason).await;
                }
            }
            Err(ScanError::Stopped) => return,
            Err(error) => {
                // Perhaps it is being taken away just now, which the next beat will see.
                self.failed(&error.to_string(), BEAT);
                self.state().is_blind = true;
                debouncer.look_at(now + BEAT);
            }
        }
        if polls() {
            debouncer.look_at(now + rhythm.poll_every.max(cost));
        }
        debouncer.ended(now, cost, full);
        self.state().is_hinted = debouncer.is_hinted();
        if !self.has_more_to_send() && self.state().last_error.is_none() {
            self.sent();
        }
        self.changed();
    }

    async fn poll_because(&self, reason: &str) {
        let every_s = self.options.rhythm.poll_every.as_secs();
        tracing::warn!("{}: {reason}: it is looked at every {every_s} s", self.root.display());
        self.state().watch = WatchMode::Poll { every_s, reason: reason.to_owned() };
        self.end_events().await;
        self.nudge.notify_one();
    }

    /// Scans the folder. If `all`, everything is hashed, as it is now; else what is at rest, and not
    /// more than a slice.
    async fn look(&self, all: bool) -> Result<Looked, ScanError> {
        let events = lock(&self.events).clone();
        let heard_by = match events {
            Some(events) if events.catch_up().await => Arc::downgrade(&events),
            _ => Weak::new(),
        };
        let count = self.ear.count();
        self.state().is_scanning = true;
        let scanner = self.scanner.clone();
        let (root, rhythm) = (self.root.clone(), self.options.rhythm);
        // Nothing is held back if somebody waits.
        let mut settling =
            if all { Settling::default() } else { std::mem::take(&mut *lock(&self.settling)) };
        let began = self.began;
        let scanned = self.exec.blocking(move || {
            let mut scanner = lock(&scanner);
            let start = Instant::now();
            let mut survey = scanner.survey(&root, false)?;
            let cost = start.elapsed();
            let mut again = None;
            let mut held = 0;
            if !all {
                let now = began.elapsed();
                let files = candidates(&survey, &root);
                let (paths, settled_at) =
                    settling.hold(&files, &rhythm, now, unix_ns(SystemTime::now()));
                again = settled_at;
                let paths: HashSet<RelPath> = paths.into_iter().collect();
                let mut slice = (0, 0);
                survey.hold_back(|path, file| {
                    let is_beyond = slice.0 >= HASH_SLICE_FILES || slice.1 >= HASH_SLICE_BYTES;
                    if paths.contains(path) || is_beyond {
                        if is_beyond {
                            again = Some(now);
                        }
                        held += 1;
                        return true;
                    }
                    slice = (slice.0 + 1, slice.1 + file.size_bytes);
                    false
                });
            }
            let (evidence, is_remote) = (std::mem::take(&mut survey.evidence), survey.is_remote);
            let scan = scanner.finish(survey)?;
            let evidence = evidence.was_at_rest(&scan).then_some(evidence);
            Ok::<_, ScanError>((scan, evidence, is_remote, cost, again, held, settling))
        });
        let scanned = scanned.await;
        let mut state = self.state();
        state.is_scanning = false;
        let (scan, evidence, is_remote, cost, mut again, held, settling) = scanned?;
        if !all {
            *lock(&self.settling) = settling;
            state.waiting_files = held;
        }
        let changing =
            |reason: &SkipReason| matches!(reason, SkipReason::Unstable | SkipReason::Vanished);
        let is_changing = scan.skipped.iter().any(|skipped| changing(&skipped.reason));
        if is_changing {
            let soon = self.now() + rhythm.quiet;
            again = Some(again.map_or(soon, |again| again.min(soon)));
        }
        let is_whole = held == 0 && !is_changing && !is_remote && evidence.is_some();
        let heard_by = if is_whole { heard_by } else { Weak::new() };
        let scan = Arc::new(scan);
        state.has_more = scan.files.iter().any(|file| !state.stored.contains(&file.blob()));
        let evidence = Arc::new(evidence.unwrap_or_default());
        state.known = Some(Known { scan: scan.clone(), count, heard_by, evidence });
        Ok(Looked { scan, cost, again, is_remote })
    }

    /// The folder as it is now. If nothing can have changed since the last look, that look.
    ///
    /// # Errors
    /// If it cannot be scanned.
    pub async fn scan_now(&self) -> Result<(Arc<Scan>, bool), ScanError> {
        if let Some(scan) = self.known_now().await {
            return Ok((scan, true));
        }
        let looked = self.look(true).await?;
        // The loop sees to it that it is sent.
        self.nudge.notify_one();
        Ok((looked.scan, false))
    }

    async fn known_now(&self) -> Option<Arc<Scan>> {
        let events = lock(&self.events).clone()?;
        if !events.catch_up().await {
            return None;
        }
        let (scan, evidence) = {
            let state = self.state();
            let known = state.known.as_ref()?;
            let is_heard = Weak::ptr_eq(&known.heard_by, &Arc::downgrade(&events));
            if !is_heard || known.count != self.ear.count() || state.is_gone {
                return None;
            }
            (known.scan.clone(), known.evidence.clone())
        };
        // Files also change by other names, which is no event here.
        self.exec.blocking(move || evidence.holds(&scan).then_some(scan)).await
    }

    fn has_more_to_send(&self) -> bool {
        self.state().has_more
    }

    fn update_has_more(&self) {
        let mut state = self.state();
        let State { known, stored, .. } = &*state;
        let mut files = known.iter().flat_map(|known| &known.scan.files);
        state.has_more = files.any(|file| !stored.contains(&file.blob()));
    }

    /// Asks what the server lacks, and sends a part of it.
    async fn send_slice(self: Arc<Self>) -> Result<(), SyncError> {
        let _turn = self.shared.turn(self.options.priority).await;
        let mut client = lock(&self.client).clone();
        let (scan, pending) = {
            let state = self.state();
            let Some(known) = &state.known else { return Ok(()) };
            let pending = |file: &&ScannedFile| !state.stored.contains(&file.blob());
            let pending: Vec<_> = known.scan.files.iter().filter(pending).cloned().collect();
            (known.scan.clone(), pending)
        };
        let missing: HashSet<BlobId> =
            lacking(&mut client, &pending).await?.into_iter().map(|(id, _)| id).collect();
        *lock(&self.client) = client.clone();
        let (mut to_send, here): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|file| missing.contains(&file.blob()));
        self.state().stored.extend(here.iter().map(ScannedFile::blob));
        let mut is_asked = false;
        while !to_send.is_empty() && !self.shared.is_paused() {
            // What the server was asked a while ago, it is asked again within a sync: somebody else may
            // have sent it.
            let mut bytes = 0;
            let slice = to_send.iter().take(SEND_SLICE_FILES).take_while(|file| {
                let is_first = bytes == 0;
                bytes += file.fingerprint.size_bytes.max(1);
                is_first || bytes <= SEND_SLICE_BYTES
            });
            let count = slice.count();
            let files: Vec<_> = to_send.drain(..count).collect();
            let slice = Scan { root: scan.root.clone(), files, skipped: Vec::new() };
            let options = self.options.sync.clone();
            let (scanner, progress) = (self.scanner.clone(), Arc::new(Progress::default()));
            let report = sync(&mut client, slice, scanner, progress, options).await?;
            self.state().stored.extend(report.files.iter().map(ScannedFile::blob));
            if !report.skipped.is_empty() || report.retries > 0 {
                // Not what it was: another look will say what it is.
                self.ear.stir();
                is_asked = true;
            }
            self.changed();
            if is_asked || !self.is_current(&scan) {
                break;
            }
        }
        Ok(())
    }

    fn is_current(&self, scan: &Arc<Scan>) -> bool {
        self.state().known.as_ref().is_some_and(|known| Arc::ptr_eq(&known.scan, scan))
    }

    fn sent(&self) {
        self.update_has_more();
        if !self.has_more_to_send() {
            let mut state = self.state();
            if state.known.is_some() && state.waiting_files == 0 {
                state.last_sync = Some(Timestamp::now());
            }
            // What is not needed any more is not kept in mind.
            let State { known, stored, .. } = &mut *state;
            let wanted = known.as_ref().map_or(0, |known| known.scan.files.len());
            if stored.len() > 2 * wanted + 1000 {
                let used: HashSet<_> = known
                    .iter()
                    .flat_map(|known| &known.scan.files)
                    .map(ScannedFile::blob)
                    .collect();
                stored.retain(|id| used.contains(id));
                stored.shrink_to_fit();
            }
        }
        if self.state().last_error.take().is_some() {
            tracing::info!("{}: it works again", self.root.display());
        }
        self.changed();
    }

    fn failed(&self, error: &str, pause: Duration) {
        let before = self.state().last_error.replace(error.to_owned());
        if before.as_deref() != Some(error) {
            tracing::warn!(
                "{}: {error}; trying again in {:.0} s, and so on",
                self.root.display(),
                pause.as_secs_f64()
            );
        }
        self.changed();
    }
}

/// All files that have to be hashed, with what is known of those who write to them.
fn candidates(survey: &scan::Survey, root: &Path) -> Vec<Candidate> {
    let now_ns = unix_ns(SystemTime::now());
    let is_young = |file: &&Fingerprint| {
        now_ns.saturating_sub(file.mtime_ns.max(file.ctime_ns)) < LONG_AT_REST_NS
    };
    let open = written_to(root, survey.to_hash().map(|(_, file)| file).filter(is_young));
    survey
        .to_hash()
        .map(|(path, fingerprint)| Candidate {
            path: path.clone(),
            fingerprint: *fingerprint,
            is_open: open.contains(&(fingerprint.device, fingerprint.inode)),
        })
        .collect()
}

/// Why changes are not heard of.
struct Deaf {
    reason: String,
    /// There would be events if a limit were raised.
    is_limit: bool,
}

/// Why there are no events, and what can be done about it.
fn no_events(error: &NoEvents, root: &Path) -> String {
    const MOST: u64 = 1_000_000;
    let raise = WatchLimits::read().and_then(|limits| match error {
        NoEvents::Watches => Some(limits.more_watches(watches_needed(root, MOST))),
        NoEvents::Watchers => Some(limits.more_watchers(1)),
        NoEvents::Other(_) => None,
    });
    let raise = raise.map(|raise| format!(" ({})", raise.replace('\n', "; ")));
    format!("the system tells of no changes: {error}{}", raise.unwrap_or_default())
}

/// Doubles with each failure; the upper half is left to chance.
fn pause(failures: u32, chance: f64) -> Duration {
    let full = RETRY_MIN.saturating_mul(1 << (failures - 1).min(10)).min(RETRY_MAX);
    full.mul_f64(0.5 + chance / 2.0)
}

/// Whether the clock on the wall has gone on much longer than this process since the last call.
fn was_asleep(clocks: &mut (Instant, SystemTime)) -> bool {
    let now = (Instant::now(), SystemTime::now());
    let ran = now.0 - clocks.0;
    let passed = now.1.duration_since(clocks.1).unwrap_or_default();
    *clocks = now;
    passed > ran + ASLEEP
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder whose server does not answer.
    #[cfg(target_os = "linux")]
    fn folder(dir: &Path) -> Arc<Folder> {
        let root = dir.canonicalize().unwrap().join("root");
        std::fs::create_dir(&root).unwrap();
        let server = "http://127.0.0.1:9/";
        let client = crate::client::Options { retries: 0, ..Default::default() };
        let options = FolderOptions {
            dir: root.clone(),
            client: Shaman::new(server, client).unwrap(),
            server: server.into(),
            priority: 0,
            scan: scan::Options::default(),
            sync: Options::default(),
            rhythm: Rhythm { quiet: Duration::from_millis(10), ..Rhythm::default() },
            poll: false,
        };
        let shared = Arc::new(Shared::new(Arc::default()));
        Arc::new(Folder::new(options, root, dir.join("marks"), shared).unwrap())
    }

    #[cfg(target_os = "linux")]
    async fn until(mut holds: impl FnMut() -> bool) {
        let holds = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), holds).await.expect("it never came to be");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_loss_before_a_watch_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        folder.ear.lose("simulated");
        folder.watch().await;
        assert!(lock(&folder.events).is_some());
        assert!(folder.ear.take().is_nothing(), "it would be watched and scanned once more");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_loss_leads_to_one_watch_and_one_scan() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let end = CancellationToken::new();
        let running = tokio::spawn(folder.clone().run(end.clone()));
        let events = || lock(&folder.events).clone();
        let files = || folder.state().known.as_ref().map(|known| known.scan.files.len());
        until(|| files() == Some(0)).await;
        let first = events().unwrap();
        folder.ear.lose("simulated");
        until(|| events().is_some_and(|now| !Arc::ptr_eq(&now, &first))).await;
        let second = events().unwrap();
        // Whatever else the loss had led to would be done before this is seen.
        for number in 1..4 {
            std::fs::write(folder.root.join(number.to_string()), "x").unwrap();
            until(|| files() == Some(number)).await;
        }
        assert!(Arc::ptr_eq(&events().unwrap(), &second), "it was watched once more");
        assert!(second.catch_up().await);
        end.cancel();
        running.await.unwrap();
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        assert_eq!(pause(1, 1.0), RETRY_MIN);
        assert_eq!(pause(3, 0.0), 2 * RETRY_MIN);
        assert_eq!(pause(1_000, 1.0), RETRY_MAX);
    }

    #[test]
    fn sleep_is_noticed_and_a_clock_set_back_is_none() {
        let now = (Instant::now(), SystemTime::now());
        let mut clocks = now;
        assert!(!was_asleep(&mut clocks));
        clocks.1 -= 2 * ASLEEP;
        assert!(was_asleep(&mut clocks));
        clocks.1 += 2 * ASLEEP;
        assert!(!was_asleep(&mut clocks));
    }
}
