//! Hashes files, several at once on each thread: read, and see that nothing has changed meanwhile.
//!
//! A file that was looked at by the walk is opened, read, and looked at again: if all its evidence is as
//! before, then its content is that of one moment. What has changed is read again a little later,
//! between a look before and one after.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
    vec,
};

use super::{
    cache::CacheRow,
    plan::{FINE_WINDOW_NS, changed_ns, racy_window_ns},
    readers::Gate,
    walk::{Found, kind},
};
use crate::{
    disk::{Fingerprint, unix_ns},
    domain::{Digest, RelPath},
    meter::Progress,
    sha256::{self, BLOCK_BYTES, INITIAL, Lanes, MAX_LANES, State},
};

/// How much is read at once, for each file of a thread. They are used again: fresh ones for each file
/// cost half the speed on small ones. All of a thread's fit into the second cache of a core.
const BUFFER_BYTES: usize = 128 * 1024;

/// Small files are taken from the queue several at once, so that threads do not wait for each other.
const SMALL_BYTES: u64 = 1 << 20;
const MAX_TAKEN: usize = 64;

/// A file of which so much is left, and nothing else to do, is read by one thread and hashed by another.
const LONG_BYTES: u64 = 32 << 20;

/// The pieces in which it goes from one to the other, and how many there are.
const PIECE_BYTES: usize = 1 << 20;
const PIECES: usize = 3;

/// Opening a file and ending it takes as long as reading so many bytes.
const FILE_WORK: u64 = 32 * 1024;

/// How often a file that changed while it was read is read again.
const TRIES: u32 = 3;

/// How long its writer has to come to an end.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else by now.
    #[error("it is {0}")]
    NotAFile(&'static str),
    /// It changed each time it was read.
    #[error("it changes while it is read")]
    Unstable,
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

/// The folder that files are opened in. Paths are looked up from there, not from the root of all.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    #[cfg(unix)]
    open: Option<std::os::fd::OwnedFd>,
}

impl Folder {
    pub fn new(path: &Path) -> Self {
        #[cfg(unix)]
        let open = {
            use rustix::fs::{Mode, OFlags, open};
            open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty()).ok()
        };
        Self {
            path: path.to_owned(),
            #[cfg(unix)]
            open,
        }
    }

    fn full(&self, path: &RelPath) -> PathBuf {
        self.path.join(path.as_str())
    }

    /// Opens a file for reading; a pipe that has taken its place does not block.
    fn open(&self, path: &RelPath) -> io::Result<File> {
        #[cfg(unix)]
        {
            use rustix::fs::{CWD, Mode, OFlags, openat};
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let opened = match &self.open {
                Some(folder) => openat(folder, path.as_str(), flags, Mode::empty()),
                None => openat(CWD, self.full(path), flags, Mode::empty()),
            };
            Ok(opened?.into())
        }
        #[cfg(not(unix))]
        File::open(self.full(path))
    }
}

/// A file to hash.
#[derive(Debug)]
struct Task {
    path: RelPath,
    /// What it looked like before; `None` if that is still to be seen.
    seen: Option<Fingerprint>,
    tries: u32,
    not_before: Option<Instant>,
}

/// Files to hash, for all threads.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    files: vec::IntoIter<Found>,
    /// What these will take.
    work: u64,
    again: Vec<Task>,
    in_hand: usize,
    /// What each thread had still to do when it last asked.
    held: Vec<u64>,
}

enum Next {
    /// At least one.
    Files(Vec<Task>),
    /// Others are to have what there is.
    NotForYou,
    /// Not yet.
    Wait(Duration),
    Nothing,
}

impl Queue {
    /// They are taken in this order.
    pub fn new(files: Vec<Found>) -> Self {
        Self(Mutex::new(Waiting {
            work: files.iter().map(|found| work(found.fingerprint.size_bytes)).sum(),
            files: files.into_iter(),
            again: Vec::new(),
            in_hand: 0,
            held: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("BUG: no one panics with this lock")
    }

    /// Some for the thread of this number, one of so many, that has files in hand already which will
    /// take so much. Two large files are done sooner by two cores than by one: whoever would end last
    /// with the next leaves it to a thread that has less.
    fn next(&self, number: usize, in_hand: Option<u64>, threads: usize) -> Next {
        let mut waiting = self.lock();
        let waiting = &mut *waiting;
        if waiting.held.len() < threads.max(number + 1) {
            waiting.held.resize(threads.max(number + 1), 0);
        }
        waiting.held[number] = in_hand.unwrap_or(0);
        if let (Some(mine), Some(next)) = (in_hand, waiting.files.as_slice().first()) {
            let others = &waiting.held[..threads];
            let share = (waiting.work + others.iter().sum::<u64>()) / threads as u64;
            let has_most = mine + work(next.fingerprint.size_bytes) > share;
            if has_most && others.iter().any(|other| *other < mine) {
                return Next::NotForYou;
            }
        }
        let mut tasks = Vec::new();
        // Of small ones a few, and never so many that others have none in the end.
        let most = (waiting.files.len() / (threads.max(1) * 8)).clamp(1, MAX_TAKEN);
        while tasks.len() < most
            && let Some(Found { path, fingerprint }) = waiting.files.next()
        {
            let (is_large, work) =
                (fingerprint.size_bytes > SMALL_BYTES, work(fingerprint.size_bytes));
            waiting.work -= work;
            waiting.held[number] += work;
            tasks.push(Task { path, seen: Some(fingerprint), tries: 0, not_before: None });
            if is_large {
                break;
            }
        }
        if tasks.is_empty() {
            let due = |task: &Task| task.not_before.map_or(Duration::ZERO, time_until);
            let soonest = waiting.again.iter().enumerate().min_by_key(|(_, task)| due(task));
            match soonest.map(|(at, task)| (at, due(task))) {
                Some((at, Duration::ZERO)) => tasks.push(waiting.again.swap_remove(at)),
                Some((_, due)) => return Next::Wait(due),
                None => return Next::Nothing,
            }
        }
        waiting.in_hand += tasks.len();
        Next::Files(tasks)
    }

    /// Whether there is nothing but one file that somebody has.
    fn is_last(&self) -> bool {
        let waiting = self.lock();
        waiting.in_hand == 1 && waiting.files.len() == 0 && waiting.again.is_empty()
    }

    /// A thread that asks no more has nothing in hand.
    fn leave(&self, number: usize) {
        if let Some(held) = self.lock().held.get_mut(number) {
            *held = 0;
        }
    }

    /// So many have come to their end, and these are to be done again.
    fn done(&self, count: usize, again: &mut Vec<Task>) {
        let mut waiting = self.lock();
        waiting.in_hand -= count;
        waiting.again.append(again);
    }
}

/// What a file of this size takes, as if it were all reading.
fn work(bytes: u64) -> u64 {
    bytes.saturating_add(FILE_WORK)
}

fn time_until(then: Instant) -> Duration {
    then.saturating_duration_since(Instant::now())
}

/// A file that is being read, and what of it has been read and not hashed.
struct Lane {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
    state: State,
    open: Option<Open>,
}

struct Open {
    task: Task,
    file: File,
    expected: Fingerprint,
    hashed_at_ns: i64,
    read_bytes: u64,
    ended: bool,
}

impl Lane {
    fn new() -> Self {
        // Room for the padding behind the last bytes.
        let buffer = vec![0; BUFFER_BYTES + 2 * BLOCK_BYTES].into();
        Self { buffer, from: 0, to: 0, state: INITIAL, open: None }
    }

    fn blocks(&self) -> usize {
        (self.to - self.from) / BLOCK_BYTES
    }

    /// What is still to be done here.
    fn work_left(&self) -> u64 {
        let left = |open: &Open| open.expected.size_bytes.saturating_sub(open.read_bytes);
        self.open.as_ref().map_or(0, |open| work(left(open)))
    }

    /// Reads until there is a whole block, or the end; how much.
    fn fill(&mut self, progress: &Progress) -> io::Result<u64> {
        let Some(open) = &mut self.open else { return Ok(0) };
        let before = open.read_bytes;
        while !open.ended && self.to - self.from < BLOCK_BYTES {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            let size = open.expected.size_bytes;
            let count = match open.file.read(&mut self.buffer[self.to..BUFFER_BYTES]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.to += count;
            open.read_bytes += count as u64;
            progress.add_bytes(count as u64);
            // All of it, so there is no need to ask for more; more than there was: no need to follow a
            // log for ever. The look afterwards tells.
            if count == 0 || open.read_bytes >= size {
                open.ended = true;
                let (padding, length) = sha256::padding(open.read_bytes);
                self.buffer[self.to..self.to + length].copy_from_slice(&padding[..length]);
                self.to += length;
            }
        }
        Ok(open.read_bytes - before)
    }
}

/// Who is told of each file, and what became of it.
type Told<'a> = &'a mut dyn FnMut(RelPath, Result<CacheRow, HashError>);

/// Hashes files, several in step.
pub(super) struct Hasher<'a> {
    folder: &'a Folder,
    lanes: [Lane; MAX_LANES],
    engine: Lanes,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    /// Taken from the queue, and not begun.
    taken: VecDeque<Task>,
    /// How many have ended since the queue was last told, and what is to be done again.
    ended: usize,
    again: Vec<Task>,
    /// How many blocks went in with so many files in step.
    #[cfg(test)]
    in_step: [usize; MAX_LANES + 1],
    /// How many pieces another thread has read.
    #[cfg(test)]
    piped: u64,
}

impl<'a> Hasher<'a> {
    pub fn new(folder: &'a Folder, progress: &'a Progress, stop: &'a AtomicBool) -> Self {
        let lanes = std::array::from_fn(|_| Lane::new());
        Self {
            folder,
            lanes,
            engine: Lanes::detect(),
            progress,
            stop,
            taken: VecDeque::new(),
            ended: 0,
            again: Vec::new(),
            #[cfg(test)]
            in_step: [0; MAX_LANES + 1],
            #[cfg(test)]
            piped: 0,
        }
    }

    /// The digest of one file, and the evidence that it was all of one moment.
    pub fn hash(&mut self, path: &RelPath) -> Result<CacheRow, HashError> {
        let queue = Queue::new(Vec::new());
        let task = Task { path: path.clone(), seen: None, tries: 0, not_before: None };
        queue.lock().again.push(task);
        let mut result = Err(HashError::Stopped);
        self.run(&queue, &Gate::fixed(1), 0, &mut |_, hashed| result = hashed);
        result
    }

    /// Hashes files as long as there are some for this thread, which is the one of this number.
    pub fn run(&mut self, queue: &Queue, gate: &Gate, number: usize, told: Told) {
        while !self.stop.load(Relaxed) {
            let has = self.lanes.iter().filter(|lane| lane.open.is_some()).count();
            if has < MAX_LANES && self.taken.is_empty() && number < gate.limit() {
                if self.ended > 0 {
                    queue.done(std::mem::take(&mut self.ended), &mut self.again);
                }
                let in_hand = self.lanes.iter().map(Lane::work_left).sum();
                match queue.next(number, (has > 0).then_some(in_hand), gate.limit()) {
                    Next::Files(tasks) => self.taken.extend(tasks),
                    Next::Wait(due) if has == 0 => {
                        thread::sleep(due);
                        continue;
                    }
                    Next::Nothing if has == 0 => break,
                    Next::Wait(_) | Next::Nothing | Next::NotForYou => {
                        if has == 1 && queue.is_last() {
                            self.pipe();
                        }
                    }
                }
            }
            if has == 0 && self.taken.is_empty() {
                break;
            }
            for _ in has..MAX_LANES {
                let Some(task) = self.taken.pop_front() else { break };
                self.begin(task, told);
            }
            gate.did(number, self.step(told));
        }
        queue.done(std::mem::take(&mut self.ended), &mut self.again);
        queue.leave(number);
    }

    /// Hashes what is left of a long file while another thread reads it. Does nothing if that is not to
    /// be had; what fails is found again by reading on here.
    fn pipe(&mut self) {
        let (engine, progress, stop) = (self.engine, self.progress, self.stop);
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.open.is_some()) else { return };
        let Some(open) = &mut lane.open else { return };
        let left = open.expected.size_bytes.saturating_sub(open.read_bytes);
        if open.ended || lane.from != lane.to || left < LONG_BYTES {
            return;
        }
        // The last piece is left to be read as usual, with the end of the file.
        let pieces = (left - 1) / PIECE_BYTES as u64;
        let (file, state) = (&open.file, &mut lane.state);
        thread::scope(|scope| {
            // Dropped here, so that the other thread does not wait for pieces when this one has stopped.
            let (empty, empties) = mpsc::channel();
            let (full, fulls) = mpsc::channel::<Vec<u8>>();
            for _ in 0..PIECES {
                let _ = empty.send(vec![0; PIECE_BYTES]);
            }
            let read = move || {
                for (_, mut piece) in (0..pieces).zip(empties) {
                    let mut file = file;
                    // A file that ends early has changed, and is read again in any case.
                    if file.read_exact(&mut piece).is_err() || full.send(piece).is_err() {
                        return;
                    }
                }
            };
            if thread::Builder::new().name("read".into()).spawn_scoped(scope, read).is_err() {
                return;
            }
            for piece in fulls {
                #[cfg(test)]
                {
                    self.piped += 1;
                }
                engine.compress([(&mut *state, piece.as_slice())].into_iter());
                open.read_bytes += piece.len() as u64;
                progress.add_bytes(piece.len() as u64);
                if stop.load(Relaxed) {
                    return;
                }
                let _ = empty.send(piece);
            }
        });
    }

    fn end(&mut self, path: RelPath, result: Result<CacheRow, HashError>, told: Told) {
        self.ended += 1;
        self.progress.add_files(1);
        told(path, result);
    }

    fn begin(&mut self, task: Task, told: Told) {
        let opened = self.folder.open(&task.path).map_err(HashError::from).and_then(|file| {
            let expected = match task.seen {
                Some(seen) => seen,
                None => look(&file)?,
            };
            Ok((file, expected))
        });
        match opened {
            Ok((file, expected)) => {
                rest(&expected);
                let hashed_at_ns = unix_ns(SystemTime::now());
                let lane = self.lanes.iter_mut().find(|lane| lane.open.is_none());
                let lane = lane.expect("BUG: a file is begun when a lane is free");
                (lane.from, lane.to, lane.state) = (0, 0, INITIAL);
                lane.open =
                    Some(Open { task, file, expected, hashed_at_ns, read_bytes: 0, ended: false });
            }
            Err(error) => self.end(task.path, Err(error), told),
        }
    }

    /// Reads, hashes as much of all files as there is of each, and ends those that have ended. How
    /// much work that was.
    fn step(&mut self, told: Told) -> u64 {
        let mut work = 0;
        for number in 0..MAX_LANES {
            let lane = &mut self.lanes[number];
            match lane.fill(self.progress) {
                Ok(bytes) => work += bytes,
                Err(error) => {
                    if let Some(open) = lane.open.take() {
                        self.end(open.task.path, Err(error.into()), told);
                    }
                }
            }
        }
        let reading = |lane: &&mut Lane| lane.open.is_some();
        let blocks = self.lanes.iter_mut().filter(reading).map(|lane| lane.blocks()).min();
        let bytes = blocks.unwrap_or(0) * BLOCK_BYTES;
        #[cfg(test)]
        {
            let open = self.lanes.iter().filter(|lane| lane.open.is_some()).count();
            self.in_step[open] += open * bytes / BLOCK_BYTES;
        }
        self.engine.compress(self.lanes.iter_mut().filter(reading).map(|lane| {
            let data = &lane.buffer[lane.from..lane.from + bytes];
            lane.from += bytes;
            (&mut lane.state, data)
        }));
        for number in 0..MAX_LANES {
            let lane = &mut self.lanes[number];
            let Some(open) = lane.open.take_if(|open| open.ended && lane.from == lane.to) else {
                continue;
            };
            work += FILE_WORK;
            let digest = Digest::from_bytes(sha256::digest(&lane.state));
            match finish(open, digest, self.folder, self.progress) {
                Ok((path, result)) => self.end(path, result, told),
                Err(task) => {
                    self.ended += 1;
                    self.again.push(task);
                }
            }
        }
        work
    }
}

/// What a file looks like that is open.
fn look(file: &File) -> Result<Fingerprint, HashError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(HashError::NotAFile(kind(&metadata)));
    }
    Ok(Fingerprint::of(&metadata))
}

/// The digest of a file that has been read to its end, if it is still what it was; the task to do again
/// if it is not.
fn finish(
    open: Open,
    digest: Digest,
    folder: &Folder,
    progress: &Progress,
) -> Result<(RelPath, Result<CacheRow, HashError>), Task> {
    let Open { task, file, expected: fingerprint, hashed_at_ns, read_bytes, .. } = open;
    let evidence = look(&file).and_then(|now| {
        // What was seen before it was opened was seen by its path. Otherwise that is still to be done:
        // saving by rename leaves the old file as it was, under no name.
        let by_path = match task.seen {
            Some(_) => now,
            None => Fingerprint::of(&std::fs::metadata(folder.full(&task.path))?),
        };
        Ok(now == fingerprint && by_path == fingerprint && read_bytes == fingerprint.size_bytes)
    });
    match evidence {
        Ok(true) => Ok((task.path, Ok(CacheRow { fingerprint, hashed_at_ns, digest }))),
        // It may be something else by now; the next look tells.
        Ok(false) | Err(HashError::NotAFile(_)) if task.tries + 1 < TRIES => {
            progress.take_back_bytes(read_bytes);
            let not_before = Some(Instant::now() + TRY_AGAIN_AFTER);
            Err(Task { seen: None, tries: task.tries + 1, not_before, ..task })
        }
        Ok(false) => {
            progress.take_back_bytes(read_bytes);
            Ok((task.path, Err(HashError::Unstable)))
        }
        Err(error) => Ok((task.path, Err(error))),
    }
}

/// A file that has only just changed is given a few milliseconds: read in the same tick of the
/// clock as it was written, its digest could never be trusted again.
fn rest(fingerprint: &Fingerprint) {
    if racy_window_ns(fingerprint) == FINE_WINDOW_NS {
        let age = unix_ns(SystemTime::now()).saturating_sub(changed_ns(fingerprint));
        if (0..=FINE_WINDOW_NS).contains(&age) {
            let left = (FINE_WINDOW_NS - age).unsigned_abs() + 1_000_000;
            thread::sleep(Duration::from_nanos(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, io::Write};

    use sha2::{Digest as _, Sha256};

    use super::*;

    fn hash(path: &Path) -> Result<CacheRow, HashError> {
        let folder = Folder::new(path.parent().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        Hasher::new(&folder, &Progress::default(), &AtomicBool::new(false)).hash(&name)
    }

    /// All files of a folder, by this many threads, in this order.
    fn hash_all(
        folder: &Path,
        names: &[String],
        threads: usize,
    ) -> BTreeMap<String, Result<CacheRow, HashError>> {
        let found = |name: &String| Found {
            path: name.parse().unwrap(),
            fingerprint: Fingerprint::of(&fs::metadata(folder.join(name)).unwrap()),
        };
        let queue = Queue::new(names.iter().map(found).collect());
        let (folder, gate) = (Folder::new(folder), Gate::fixed(threads));
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let results = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for number in 0..threads {
                let (queue, gate, folder) = (&queue, &gate, &folder);
                let (progress, stop, results) = (&progress, &stop, &results);
                scope.spawn(move || {
                    Hasher::new(folder, progress, stop).run(
                        queue,
                        gate,
                        number,
                        &mut |path, row| {
                            let old = results.lock().unwrap().insert(path.to_string(), row);
                            assert!(old.is_none(), "{path} was hashed twice");
                        },
                    );
                });
            }
        });
        results.into_inner().unwrap()
    }

    #[test]
    fn files_of_all_sizes_are_hashed_in_step() {
        let dir = tempfile::tempdir().unwrap();
        let edges = [0, 1, 55, 56, 63, 64, 65, 119, 120, 4096];
        let around = [BUFFER_BYTES - 65, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1];
        let sizes = edges.into_iter().chain(around).chain([3 * BUFFER_BYTES + 5]).cycle().take(60);
        let mut expected = BTreeMap::new();
        for (number, size) in sizes.enumerate() {
            let content: Vec<u8> = (0..size).map(|i| (i * 7 + number) as u8).collect();
            let name = format!("{number:02}");
            fs::write(dir.path().join(&name), &content).unwrap();
            expected.insert(name, Digest::from_bytes(Sha256::digest(&content).into()));
        }
        let names: Vec<_> = expected.keys().cloned().collect();
        for threads in [1, 2, 5] {
            let found = hash_all(dir.path(), &names, threads);
            let digests = found.into_iter().map(|(name, row)| (name, row.unwrap().digest));
            assert_eq!(digests.collect::<BTreeMap<_, _>>(), expected, "{threads} threads");
        }
    }

    #[test]
    fn all_lanes_are_busy_whatever_the_sizes() {
        let dir = tempfile::tempdir().unwrap();
        for sizes in [&[4096][..], &[300_000, 10, 5_000, 70_000, 1]] {
            let mut files = Vec::new();
            for number in 0..800 {
                let name = format!("{number:03}");
                fs::write(dir.path().join(&name), vec![1; sizes[number % sizes.len()]]).unwrap();
                let found = fs::metadata(dir.path().join(&name)).unwrap();
                let fingerprint = Fingerprint::of(&found);
                files.push(Found { path: name.parse().unwrap(), fingerprint });
            }
            let (folder, queue) = (Folder::new(dir.path()), Queue::new(files));
            let (progress, stop) = (Progress::default(), AtomicBool::new(false));
            let mut hasher = Hasher::new(&folder, &progress, &stop);
            hasher.run(&queue, &Gate::fixed(1), 0, &mut |_, row| assert!(row.is_ok()));
            let (all, full) = (hasher.in_step.iter().sum::<usize>(), hasher.in_step[MAX_LANES]);
            assert!(full * 10 >= all * 9, "{:?} of {sizes:?}", hasher.in_step);
        }
    }

    #[test]
    fn few_files_are_shared_by_all_threads() {
        let files = |count: usize| {
            let found = |number: usize| Found {
                path: format!("{number}").parse().unwrap(),
                fingerprint: Fingerprint::of(&fs::metadata("Cargo.toml").unwrap()),
            };
            Queue::new((0..count).map(found).collect())
        };
        let one = work(fs::metadata("Cargo.toml").unwrap().len());
        // Of four, two threads get two each, whoever asks first.
        let taken = |queue: &Queue, number, has: u64, threads| match queue.next(
            number,
            (has > 0).then_some(has * one),
            threads,
        ) {
            Next::Files(tasks) => Some(tasks.len()),
            Next::NotForYou => Some(0),
            Next::Wait(_) => panic!("there is nothing to wait for"),
            Next::Nothing => None,
        };
        let queue = files(4);
        for (number, has) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] {
            assert_eq!(taken(&queue, number, has, 2), Some(usize::from(has < 2)));
        }
        assert_eq!(taken(&queue, 0, 0, 2), None);
        // Of many small ones, some at once.
        let queue = files(10_000);
        assert_eq!(taken(&queue, 0, 0, 2), Some(MAX_TAKEN));
        let queue = files(100);
        for has in 0..4 {
            assert!((1..=6).contains(&taken(&queue, 0, has, 2).unwrap()));
        }
        // Whoever has none gets one.
        assert_eq!(taken(&files(1), 0, 0, 8), Some(1));
    }

    /// How long threads take that hash files of these sizes, in units of work, if a thread with two
    /// files does both in the time of one and a third.
    fn simulated(sizes: &[u64], threads: usize) -> f64 {
        let fingerprint = Fingerprint::of(&fs::metadata("Cargo.toml").unwrap());
        let found = |size_bytes: &u64| Found {
            path: "f".parse().unwrap(),
            fingerprint: Fingerprint { size_bytes: *size_bytes, ..fingerprint },
        };
        let queue = Queue::new(sizes.iter().map(found).collect());
        let mut lanes: Vec<Vec<f64>> = vec![Vec::new(); threads];
        let mut at = 0.0;
        loop {
            for (number, lanes) in lanes.iter_mut().enumerate() {
                while lanes.len() < MAX_LANES {
                    let in_hand = lanes.iter().sum::<f64>() as u64;
                    let Next::Files(tasks) =
                        queue.next(number, (!lanes.is_empty()).then_some(in_hand), threads)
                    else {
                        break;
                    };
                    let size = |task: Task| work(task.seen.unwrap().size_bytes) as f64;
                    lanes.extend(tasks.into_iter().map(size));
                }
            }
            let speed = |lanes: &[f64]| [0.0, 1.0, 0.75, 0.6, 0.45][lanes.len().min(MAX_LANES)];
            let ends = |lanes: &Vec<f64>| {
                let least = lanes.iter().take(MAX_LANES).copied().reduce(f64::min)?;
                Some(least / speed(lanes))
            };
            let Some(time) = lanes.iter().filter_map(ends).reduce(f64::min) else { return at };
            at += time;
            for lanes in &mut lanes {
                let done = speed(lanes) * time;
                lanes.iter_mut().take(MAX_LANES).for_each(|left| *left -= done);
                lanes.retain(|left| *left > 1.0);
            }
        }
    }

    #[test]
    fn large_files_go_to_different_threads_whatever_else_there_is() {
        let gib = 1_u64 << 30;
        for threads in [2, 3, 8] {
            for others in [0, 1, 20, 1_000] {
                for size in [4 << 10, 2 << 20] {
                    let mut sizes = vec![4 * gib; threads];
                    sizes.extend(vec![size; others]);
                    // As long as one takes, and the others beside them.
                    let others = others as f64 * work(size) as f64;
                    let most = work(4 * gib) as f64 + others;
                    let time = simulated(&sizes, threads);
                    assert!(time <= most, "{threads} {others} {size}: {time} > {most}");
                }
            }
        }
        // One more than threads goes beside another; and one that takes longest has a thread for itself.
        assert!(simulated(&[4 * gib; 3], 2) < 6.0 * gib as f64);
        let mut sizes = vec![100 * gib];
        sizes.extend(vec![gib; 60]);
        assert!(simulated(&sizes, 2) < 101.0 * gib as f64);
    }

    #[test]
    fn what_was_replaced_since_it_was_seen_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["same", "rewritten", "replaced", "gone", "folder"] {
            fs::write(at(name), "before").unwrap();
        }
        let seen = |name: &str| Found {
            path: name.parse().unwrap(),
            fingerprint: Fingerprint::of(&fs::metadata(at(name)).unwrap()),
        };
        let queue =
            Queue::new(["same", "rewritten", "replaced", "gone", "folder"].map(seen).into());
        fs::write(at("rewritten"), "after").unwrap();
        fs::write(at("new"), "after").unwrap();
        fs::rename(at("new"), at("replaced")).unwrap();
        for name in ["gone", "folder"] {
            fs::remove_file(at(name)).unwrap();
        }
        fs::create_dir(at("folder")).unwrap();
        let (folder, progress, stop) =
            (Folder::new(dir.path()), Progress::default(), AtomicBool::new(false));
        let mut results = BTreeMap::new();
        Hasher::new(&folder, &progress, &stop).run(&queue, &Gate::fixed(1), 0, &mut |path, row| {
            results.insert(path.to_string(), row);
        });
        for (name, content) in [("same", "before"), ("rewritten", "after"), ("replaced", "after")] {
            let row = results.remove(name).unwrap().unwrap();
            assert_eq!(row.digest.as_bytes()[..], Sha256::digest(content)[..], "{name}");
            assert_eq!(row.fingerprint, Fingerprint::of(&fs::metadata(at(name)).unwrap()));
        }
        assert!(matches!(results.remove("gone"), Some(Err(HashError::Io(_)))));
        let folder = results.remove("folder");
        assert!(
            matches!(folder, Some(Err(HashError::NotAFile(_) | HashError::Io(_)))),
            "{folder:?}"
        );
    }

    #[test]
    fn hashes_known_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (content, digest) in [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ] {
            fs::write(&path, content).unwrap();
            let row = hash(&path).unwrap();
            assert_eq!(row.digest.to_string(), digest);
            assert_eq!(row.fingerprint.size_bytes, content.len() as u64);
        }
        let long = vec![7; 3 * BUFFER_BYTES + 5];
        fs::write(&path, &long).unwrap();
        assert_eq!(hash(&path).unwrap().digest.as_bytes()[..], Sha256::digest(&long)[..]);
    }

    #[test]
    fn a_fresh_file_is_at_rest_when_it_is_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "x").unwrap();
        let row = hash(&path).unwrap();
        let window = racy_window_ns(&row.fingerprint);
        if window == FINE_WINDOW_NS {
            assert!(row.hashed_at_ns > changed_ns(&row.fingerprint) + window);
        }
    }

    #[test]
    fn a_file_that_keeps_changing_is_unstable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // So long that the other thread gets its turn while it is read, whatever the machine does.
        const SIZE: u64 = 256 << 20;
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(&path).unwrap();
                while !stop.load(Relaxed) {
                    file.write_all(b"more").unwrap();
                }
            });
            while fs::metadata(&path).unwrap().len() == SIZE {
                thread::yield_now();
            }
            let result = hash(&path);
            stop.store(true, Relaxed);
            assert!(matches!(result, Err(HashError::Unstable)), "{result:?}");
        });
    }

    #[test]
    fn a_long_file_is_read_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let block: Vec<u8> = (0..1_000_003).map(|i| (i * 31 + i / 251) as u8).collect();
        for rest in [0, 1, 64, 777] {
            let mut content = block.repeat(LONG_BYTES as usize / block.len() + 3);
            content.truncate(LONG_BYTES as usize + 2 * PIECE_BYTES + BUFFER_BYTES + rest);
            fs::write(&path, &content).unwrap();
            let (folder, name) = (Folder::new(dir.path()), "long".parse().unwrap());
            let (progress, stop) = (Progress::default(), AtomicBool::new(false));
            let mut hasher = Hasher::new(&folder, &progress, &stop);
            let row = hasher.hash(&name).unwrap();
            assert_eq!(row.digest.as_bytes()[..], Sha256::digest(&content)[..], "{rest}");
            assert_eq!(progress.snapshot().bytes, content.len() as u64);
            // All but what was read before there was known to be nothing else, and the end.
            let pieces = (content.len() / PIECE_BYTES) as u64;
            assert!((pieces - 2..=pieces).contains(&hasher.piped), "{} of {pieces}", hasher.piped);
        }
    }

    #[test]
    fn a_long_file_can_be_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        File::create(&path).unwrap().set_len(20 * LONG_BYTES).unwrap();
        let folder = Folder::new(dir.path());
        for part in [1, 40, 100] {
            let (progress, stop) = (Progress::default(), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    while progress.snapshot().bytes < part * PIECE_BYTES as u64 {
                        thread::yield_now();
                    }
                    stop.store(true, Relaxed);
                });
                let name = "long".parse().unwrap();
                let result = Hasher::new(&folder, &progress, &stop).hash(&name);
                assert!(matches!(result, Err(HashError::Stopped)), "{result:?}");
            });
        }
    }

    #[test]
    fn a_file_that_shrinks_is_hashed_as_it_is_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shrinks");
        const SIZE: u64 = 128 << 20;
        for end in [0, 1000, SIZE / 2] {
            File::create(&path).unwrap().set_len(SIZE).unwrap();
            let progress = Progress::default();
            thread::scope(|scope| {
                scope.spawn(|| {
                    // In the middle of it.
                    while progress.snapshot().bytes < SIZE / 8 {
                        thread::yield_now();
                    }
                    File::options().write(true).open(&path).unwrap().set_len(end).unwrap();
                });
                let folder = Folder::new(dir.path());
                let name = "shrinks".parse().unwrap();
                let stop = AtomicBool::new(false);
                let row = Hasher::new(&folder, &progress, &stop).hash(&name).unwrap();
                assert_eq!(row.fingerprint.size_bytes, end);
                let expected = Sha256::digest(vec![0; end as usize]);
                assert_eq!(row.digest.as_bytes()[..], expected[..]);
            });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from(0o644)).unwrap();
        assert!(matches!(hash(&path), Err(HashError::NotAFile("a pipe"))));
    }
}
