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

/// The most readers that are tried.
pub(super) const MAX_READERS: usize = 32;

/// How long each number is tried.
const TRIED_FOR: Duration = Duration::from_millis(150);

/// More readers must be so much faster to be worth it.
const GAIN: f64 = 1.15;

/// Opening a file and ending it costs as much as reading so many bytes.
const FILE_BYTES: u64 = 32 * 1024;

/// Which number of readers is best: doubled as long as that helps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Probe {
    limit: usize,
    best: Option<(usize, f64)>,
    done: bool,
}

impl Probe {
    fn new(start: usize) -> Self {
        Self { limit: start.clamp(1, MAX_READERS), best: None, done: false }
    }

    /// With the present number, this was the rate.
    fn sample(&mut self, rate: f64) {
        let best = self.best.get_or_insert((self.limit, rate));
        let is_first = best.0 == self.limit;
        if self.done {
            return;
        }
        if !is_first && rate <= best.1 * GAIN {
            (self.limit, self.done) = (best.0, true);
            return;
        }
        *best = (self.limit, rate);
        self.done = self.limit == MAX_READERS;
        self.limit = (self.limit * 2).min(MAX_READERS);
    }
}

/// How many readers may go on, which may change while they do.
#[derive(Debug)]
pub(super) struct Gate {
    limit: AtomicUsize,
    work: AtomicU64,
    probing: Mutex<Option<(Probe, Instant)>>,
}

impl Gate {
    /// Always so many.
    pub fn fixed(readers: usize) -> Self {
        Self { limit: readers.max(1).into(), work: AtomicU64::new(0), probing: Mutex::new(None) }
    }

    /// As many as turn out to be best, beginning with so many.
    pub fn probing(start: usize) -> Self {
        let probe = Probe::new(start);
        Self {
            limit: probe.limit.into(),
            work: AtomicU64::new(0),
            probing: Mutex::new(Some((probe, Instant::now()))),
        }
    }

    /// How many there may be now.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// A file of this size has been read.
    pub fn did(&self, bytes: u64) {
        let work = self.work.fetch_add(bytes + FILE_BYTES, Relaxed) + bytes + FILE_BYTES;
        // Whoever comes second leaves it to the first.
        let Ok(mut probing) = self.probing.try_lock() else { return };
        let Some((probe, since)) = &mut *probing else { return };
        let time = since.elapsed();
        if time < TRIED_FOR {
            return;
        }
        probe.sample(work as f64 / time.as_secs_f64());
        self.limit.store(probe.limit, Relaxed);
        tracing::debug!(readers = probe.limit, settled = probe.done, "readers");
        *since = Instant::now();
        self.work.store(0, Relaxed);
        if probe.done {
            *probing = None;
        }
    }
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
            None => Gate::probing(start(cores(), is_rotational(first.fingerprint.device))),
        };
        let mut left = files.len();
        let (folder, queue, running) = (Folder::new(root), Queue::new(files), AtomicUsize::new(0));
        let (results, hashed) = mpsc::channel();
        let (folder, queue, gate, running) = (&folder, &queue, &gate, &running);
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
                    // No thread is to be had but this one.
                    let mut hasher = Hasher::new(folder, progress, stop);
                    return hasher.run(queue, &Gate::fixed(1), 0, &mut told);
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
            hashed.try_iter().flatten().for_each(|(path, result)| told(path, result));
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
    use super::*;

    /// Where a disk with these rates for 1, 2, 4, … readers ends up.
    fn settles(start: usize, rates: &[f64]) -> usize {
        let mut probe = Probe::new(start);
        for _ in 0..20 {
            probe.sample(rates[probe.limit.ilog2() as usize]);
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
        assert_eq!(settles(64, &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0]), 32);
        assert_eq!(settles(1, &[0.0, 0.0]), 1);
    }

    #[test]
    fn a_fixed_number_stays() {
        let gate = Gate::fixed(3);
        for _ in 0..100 {
            gate.did(1 << 30);
        }
        assert_eq!(gate.limit(), 3);
        assert_eq!(Gate::fixed(0).limit(), 1);
        assert_eq!((start(8, false), start(8, true)), (8, 1));
    }
}
