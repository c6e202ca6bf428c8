//! How many threads read at once. Files that are in memory want as many as there are cores; those on a
//! disk that answers slowly want more, and a disk with heads may want one. So it is tried out.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    HashError,
    cache::CacheRow,
    hash::{Folder, Hasher, Queue},
    walk::Found,
};
use crate::{disk::is_rotational, domain::RelPath, meter::Progress};

/// The most readers that are tried, if there are not more cores.
const MAX_READERS: usize = 32;

/// How long each number is tried.
const TRIED_FOR: Duration = Duration::from_millis(150);

/// That files come from memory is seen sooner.
const SEEN_AFTER: Duration = Duration::from_millis(20);

/// More readers must be so much faster to be worth it.
const GAIN: f64 = 1.15;

/// A reader that is busy for so much of the time would hardly be faster if its disk were.
const BUSY: f64 = 0.85;

/// Which number of readers is best: doubled as long as that helps. Those that do not wait are as many
/// as there are cores.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Probe {
    cores: usize,
    limit: usize,
    best: Option<(usize, f64)>,
    done: bool,
}

impl Probe {
    fn new(start: usize, cores: usize) -> Self {
        Self { cores, limit: start.max(1), best: None, done: false }
    }

    /// Whether this was enough to judge by.
    fn is_seen(&self, time: Duration, busy: f64) -> bool {
        time >= TRIED_FOR || (time >= SEEN_AFTER && busy >= BUSY && self.best.is_none())
    }

    /// With the present number, this was the rate, and readers were busy for so much of the time.
    fn sample(&mut self, rate: f64, busy: f64) {
        if self.done {
            return;
        }
        if let Some((best, its_rate)) = self.best
            && rate <= its_rate * GAIN
        {
            (self.limit, self.done) = (best, true);
            return;
        }
        self.best = Some((self.limit, rate));
        let next = if busy >= BUSY { self.cores } else { self.limit * 2 };
        let next = next.min(MAX_READERS.max(self.cores));
        self.done = next <= self.limit;
        self.limit = self.limit.max(next);
    }
}

/// How many readers may go on, which may change while they do.
#[derive(Debug)]
pub(super) struct Gate {
    limit: AtomicUsize,
    work: AtomicU64,
    probing: Mutex<Option<Probing>>,
}

#[derive(Debug)]
struct Probing {
    probe: Probe,
    since: Instant,
    /// How long the first reader had been busy then.
    busy_before: Option<Duration>,
}

impl Gate {
    /// Always so many.
    pub fn fixed(readers: usize) -> Self {
        Self { limit: readers.max(1).into(), work: AtomicU64::new(0), probing: Mutex::new(None) }
    }

    /// As many as turn out to be best, beginning with so many.
    pub fn probing(start: usize, cores: usize) -> Self {
        let probe = Probe::new(start, cores);
        let probing = Probing { probe, since: Instant::now(), busy_before: None };
        Self {
            limit: probe.limit.into(),
            work: AtomicU64::new(0),
            probing: Mutex::new(Some(probing)),
        }
    }

    /// How many there may be now.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// So much has been read by the thread of this number. The first, which may always go on, looks how
    /// well that goes.
    pub fn did(&self, number: usize, work: u64) {
        let work = self.work.fetch_add(work, Relaxed) + work;
        if number > 0 {
            return;
        }
        let mut probing = self.probing.lock().expect("BUG: no one panics with this lock");
        let Some(Probing { probe, since, busy_before }) = &mut *probing else { return };
        let Some(before) = *busy_before else {
            (*since, *busy_before) = (Instant::now(), Some(busy_for()));
            return;
        };
        let time = since.elapsed();
        if time < SEEN_AFTER {
            return;
        }
        let busy = busy_for().saturating_sub(before).as_secs_f64() / time.as_secs_f64();
        if !probe.is_seen(time, busy) {
            return;
        }
        probe.sample(work as f64 / time.as_secs_f64(), busy);
        self.limit.store(probe.limit, Relaxed);
        tracing::debug!(readers = probe.limit, settled = probe.done, busy, "readers");
        (*since, *busy_before) = (Instant::now(), Some(busy_for()));
        self.work.store(0, Relaxed);
        if probe.done {
            *probing = None;
        }
    }
}

/// How long this thread has had a processor, since some time; zero where that is not known.
fn busy_for() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.try_into().unwrap_or_default()
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

/// Threads that hash files.
pub(super) struct Readers<'a> {
    /// How many; `None`: as many as turn out to be best.
    pub number: Option<usize>,
    pub progress: &'a Progress,
    pub stop: &'a AtomicBool,
}

impl Readers<'_> {
    /// Hashes files of a folder, in this order as far as several at once have one. `told` is called for
    /// each, by this thread; if it is stopped, not for all.
    pub fn hash(
        &self,
        root: &Path,
        files: Vec<Found>,
        mut told: impl FnMut(RelPath, Result<CacheRow, HashError>),
    ) {
        let Some(first) = files.first() else { return };
        let gate = match self.number {
            Some(number) => Gate::fixed(number),
            None => Gate::probing(start(cores(), is_rotational(first.fingerprint.device)), cores()),
        };
        self.hash_through(&gate, root, files, &mut told);
    }

    fn hash_through(
        &self,
        gate: &Gate,
        root: &Path,
        files: Vec<Found>,
        told: &mut dyn FnMut(RelPath, Result<CacheRow, HashError>),
    ) {
        let mut left = files.len();
        let (folder, queue, running) = (Folder::new(root), Queue::new(files), AtomicUsize::new(0));
        let (results, hashed) = mpsc::channel();
        let (folder, queue, running) = (&folder, &queue, &running);
        let (progress, stop) = (self.progress, self.stop);
        thread::scope(|scope| {
            let spawn = |number| {
                let (results, counted) = (results.clone(), Running::new(running));
                let builder = thread::Builder::new().name(format!("hash-{number}"));
                let run = move || {
                    let _counted = counted;
                    let mut hasher = Hasher::new(folder, progress, stop);
                    // Several at once: to wake another thread takes as long as a small file.
                    let (mut unsent, mut sent_at) = (Vec::new(), Instant::now());
                    // Whoever hears of it has gone when there is nothing more to hear.
                    hasher.run(queue, gate, number, &mut |path, result| {
                        unsent.push((path, result));
                        if unsent.len() >= TOLD_AT_ONCE || sent_at.elapsed() >= LOOK_EVERY {
                            let _ = results.send(std::mem::take(&mut unsent));
                            sent_at = Instant::now();
                        }
                    });
                    let _ = results.send(unsent);
                };
                builder.spawn_scoped(scope, run).inspect_err(|error| {
                    tracing::warn!("cannot start another thread that reads: {error}");
                })
            };
            let mut spawned = 0;
            while left > 0 {
                while spawned < gate.limit().min(left) && spawn(spawned).is_ok() {
                    spawned += 1;
                }
                if spawned == 0 {
                    break;
                }
                match hashed.recv_timeout(LOOK_EVERY) {
                    Ok(results) => {
                        left -= results.len();
                        results.into_iter().for_each(|(path, result)| told(path, result));
                    }
                    Err(_) if running.load(Relaxed) == 0 => break,
                    Err(_) => {}
                }
            }
            // What came in between the last look and the end of the last thread.
            for results in hashed.try_iter() {
                left -= results.len();
                results.into_iter().for_each(|(path, result)| told(path, result));
            }
            if left > 0 {
                // No thread was to be had but this one; or one that was too many by then has left a file
                // to be read again, and the others had gone.
                Hasher::new(folder, progress, stop).run(queue, &Gate::fixed(1), 0, told);
            }
        });
    }
}

/// Counts a thread for as long as it runs.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How many results are sent at once.
const TOLD_AT_ONCE: usize = 64;

/// How often it is looked whether there are to be more threads.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// With how many to begin: a disk with heads loses time by going to and fro.
pub(super) fn start(cores: usize, is_rotational: bool) -> usize {
    if is_rotational { 1 } else { cores }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::Fingerprint;

    /// Where a disk with these rates for 1, 2, 4, … readers ends up.
    fn settles(start: usize, rates: &[f64]) -> usize {
        let mut probe = Probe::new(start, 4);
        for _ in 0..20 {
            probe.sample(rates[probe.limit.ilog2() as usize], 0.3);
        }
        assert!(probe.done);
        probe.limit
    }

    #[test]
    fn as_many_as_help() {
        assert_eq!(settles(1, &[10.0, 5.0]), 1);
        assert_eq!(settles(1, &[10.0, 18.0, 19.0]), 2);
        assert_eq!(settles(2, &[0.0, 10.0, 20.0, 40.0, 41.0]), 8);
        assert_eq!(settles(2, &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0]), 32);
        assert_eq!(settles(1, &[0.0, 0.0]), 1);
    }

    #[test]
    fn readers_that_do_not_wait_are_as_many_as_cores() {
        let after = |start, cores, samples: &[(f64, f64)]| {
            let mut probe = Probe::new(start, cores);
            samples.iter().for_each(|(rate, busy)| probe.sample(*rate, *busy));
            (probe.limit, probe.done)
        };
        for cores in [1, 8, 100] {
            assert_eq!(after(cores, cores, &[(1.0, 0.99)]), (cores, true));
        }
        // On a disk with heads.
        assert_eq!(after(1, 16, &[(1.0, 0.99)]), (16, false));
        assert_eq!(after(1, 16, &[(1.0, 0.99), (9.0, 0.99)]), (16, true));
        // Only the first files were in memory.
        assert_eq!(after(1, 16, &[(1.0, 0.99), (0.1, 0.1)]), (1, true));
    }

    #[test]
    fn it_is_seen_soon_that_readers_do_not_wait() {
        let mut probe = Probe::new(1, 16);
        assert!(!probe.is_seen(SEEN_AFTER / 2, 1.0));
        assert!(probe.is_seen(SEEN_AFTER, 1.0));
        assert!(!probe.is_seen(SEEN_AFTER, 0.5));
        assert!(probe.is_seen(TRIED_FOR, 0.5));
        // Those that come later need time to begin.
        probe.sample(1.0, 1.0);
        assert!(!probe.is_seen(SEEN_AFTER, 1.0));
        let before = busy_for();
        #[cfg(unix)]
        while busy_for() == before {}
        assert!(busy_for() >= before);
    }

    #[test]
    fn no_file_is_lost_when_readers_become_fewer() {
        let dir = tempfile::tempdir().unwrap();
        // It would take half a minute: there is time to change it.
        const SIZE: u64 = 64 << 30;
        let path = dir.path().join("shrinks");
        fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let fingerprint = Fingerprint::of(&fs::metadata(&path).unwrap());
        let files = vec![Found { path: "shrinks".parse().unwrap(), fingerprint }];
        let (gate, progress, stop) = (Gate::fixed(1), Progress::default(), AtomicBool::new(false));
        let mut told = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                // While its reader has it, that one becomes one too many, and the file another.
                while progress.snapshot().bytes == 0 {
                    thread::yield_now();
                }
                gate.limit.store(0, Relaxed);
                fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
            });
            let readers = Readers { number: None, progress: &progress, stop: &stop };
            readers.hash_through(&gate, dir.path(), files, &mut |path, row| {
                told.push((path.to_string(), row.unwrap().fingerprint.size_bytes));
            });
        });
        assert_eq!(told, [("shrinks".to_owned(), 1000)]);
    }

    #[test]
    fn a_fixed_number_stays() {
        let gate = Gate::fixed(3);
        for _ in 0..100 {
            gate.did(0, 1 << 30);
        }
        assert_eq!(gate.limit(), 3);
        assert_eq!(Gate::fixed(0).limit(), 1);
        assert_eq!((start(8, false), start(8, true)), (8, 1));
    }
}
