//! When to look at a folder again. Pure: hints and the time go in, times come out.

use std::{collections::HashMap, time::Duration};

use crate::{disk::Fingerprint, domain::RelPath};

/// So many times what a look costs is nothing done after it, unless somebody waits for it.
const REST: u32 = 5;

/// How a folder is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// After so long without a change, changes are looked at. A file that has changed within this time is
    /// taken for one that is being written.
    pub quiet: Duration,
    /// Changes that go on are looked at after this time, and files that are being written are sent.
    pub max_delay: Duration,
    /// Everything is looked at, and asked for, so often, whatever was heard of changes.
    pub rescan_every: Duration,
    /// Where nothing is heard of changes, everything is looked at so often.
    pub poll_every: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(2),
            max_delay: Duration::from_secs(30),
            rescan_every: Duration::from_secs(30 * 60),
            poll_every: Duration::from_secs(30),
        }
    }
}

/// Puts hints together, and says when the next look is due. Times are counted from any start.
#[derive(Debug)]
pub(super) struct Debouncer {
    rhythm: Rhythm,
    /// The first and the last hint since the last look began.
    hinted: Option<(Duration, Duration)>,
    /// A look that is due at its time, however quiet it is.
    set: Option<Duration>,
    /// The next look at everything.
    full: Duration,
    /// Not before, for hints alone.
    rested: Duration,
}

impl Debouncer {
    /// The first look is due at once.
    pub fn new(rhythm: Rhythm, now: Duration) -> Self {
        Self { rhythm, hinted: None, set: None, full: now, rested: now }
    }

    /// Something may have changed.
    pub fn hint(&mut self, now: Duration) {
        let (first, _) = self.hinted.unwrap_or((now, now));
        self.hinted = Some((first, now));
    }

    /// Everything must be looked at, now.
    pub fn rush(&mut self, now: Duration) {
        self.full = self.full.min(now);
    }

    /// Events were lost. Everything must be looked at, but not at once if the last look took long: events
    /// that go on being lost must not keep us busy all the time.
    pub fn lost(&mut self, now: Duration) {
        self.full = self.full.min(now.max(self.rested));
    }

    /// A look is due then, or before.
    pub fn look_at(&mut self, time: Duration) {
        self.set = Some(self.set.map_or(time, |set| set.min(time)));
    }

    /// When to look.
    pub fn due(&self) -> Duration {
        let hinted = self.hinted.map(|(first, last)| {
            (last + self.rhythm.quiet).min(first + self.rhythm.max_delay).max(self.rested)
        });
        [hinted, self.set].into_iter().flatten().fold(self.full, Duration::min)
    }

    /// Whether a change was heard of that has not been looked at.
    pub fn is_hinted(&self) -> bool {
        self.hinted.is_some()
    }

    /// A look begins: what was heard of until now, it will see. Returns whether it is due to look at
    /// everything.
    pub fn begin(&mut self, now: Duration) -> bool {
        self.hinted = None;
        self.set = None;
        self.full <= now
    }

    /// A look has ended that cost so much; the next one, without a hint, is due after this time.
    pub fn ended(&mut self, now: Duration, cost: Duration, was_full: bool) {
        self.rested = now + (cost * REST).min(self.rhythm.max_delay);
        if was_full {
            self.full = now + self.rhythm.rescan_every;
        }
    }
}

/// Which files are being written, as far as can be told from looks at them.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Since when each has been held back.
    held: HashMap<RelPath, Duration>,
}

/// A file that has to be hashed.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub path: RelPath,
    pub fingerprint: Fingerprint,
    /// A program has it open for writing.
    pub is_open: bool,
}

impl Settling {
    /// Of these files, all that have to be hashed, those that are to wait; and when to look at them
    /// again. `clock_ns` is the time of day of `now`.
    pub fn hold(
        &mut self,
        files: &[Candidate],
        rhythm: &Rhythm,
        now: Duration,
        clock_ns: i64,
    ) -> (Vec<RelPath>, Option<Duration>) {
        let mut held = HashMap::new();
        let mut again: Option<Duration> = None;
        for Candidate { path, fingerprint, is_open } in files {
            let changed_ns = fingerprint.mtime_ns.max(fingerprint.ctime_ns);
            let age = u64::try_from(clock_ns.saturating_sub(changed_ns)).map(Duration::from_nanos);
            // A time that is yet to come is that of another clock, and says nothing.
            let left = age.ok().and_then(|age| rhythm.quiet.checked_sub(age));
            let left = left.filter(|left| !left.is_zero()).or(is_open.then_some(rhythm.quiet));
            let Some(left) = left else { continue };
            let since = self.held.get(path).copied().unwrap_or(now);
            let end = since + rhythm.max_delay;
            if end <= now {
                continue;
            }
            held.insert(path.clone(), since);
            let time = (now + left).min(end);
            again = Some(again.map_or(time, |again| again.min(time)));
        }
        let paths = held.keys().cloned().collect();
        self.held = held;
        (paths, again)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const RHYTHM: Rhythm = Rhythm {
        quiet: Duration::from_millis(2_000),
        max_delay: Duration::from_millis(10_000),
        rescan_every: Duration::from_millis(100_000),
        poll_every: Duration::from_millis(5_000),
    };

    #[test]
    fn a_burst_is_one_look_and_a_long_one_several() {
        let mut debouncer = Debouncer::new(RHYTHM, Duration::ZERO);
        assert!(debouncer.begin(Duration::ZERO), "the first look is at everything");
        debouncer.ended(Duration::ZERO, Duration::ZERO, true);
        assert_eq!(debouncer.due(), 100_000 * MS);
        for time in (1_000..5_000).step_by(100) {
            debouncer.hint(time * MS);
        }
        assert_eq!(debouncer.due(), 6_900 * MS, "quiet for two seconds");
        for time in (5_000..20_000).step_by(100) {
            debouncer.hint(time * MS);
        }
        assert_eq!(debouncer.due(), 11_000 * MS, "the first change is ten seconds old");
        assert!(!debouncer.begin(11_000 * MS));
        debouncer.ended(11_000 * MS, 100 * MS, false);
        assert_eq!(debouncer.due(), 100_000 * MS, "unhinted, the last full look counts");
        debouncer.hint(11_001 * MS);
        assert_eq!(debouncer.due(), 13_001 * MS);
        debouncer.rush(11_500 * MS);
        assert_eq!(debouncer.due(), 11_500 * MS);
        assert!(debouncer.begin(11_500 * MS));
    }

    #[test]
    fn looks_take_a_small_part_of_the_time() {
        let mut debouncer = Debouncer::new(RHYTHM, Duration::ZERO);
        debouncer.begin(Duration::ZERO);
        debouncer.ended(Duration::ZERO, 1_000 * MS, true);
        debouncer.hint(Duration::ZERO);
        assert_eq!(debouncer.due(), 5_000 * MS);
        debouncer.lost(1_000 * MS);
        assert_eq!(debouncer.due(), 5_000 * MS);
        debouncer.look_at(100 * MS);
        assert_eq!(debouncer.due(), 100 * MS, "but not if somebody waits");
    }

    fn candidate(path: &str, changed_ms: i64, is_open: bool) -> Candidate {
        let ns = changed_ms * 1_000_000;
        let fingerprint = Fingerprint {
            size_bytes: 1,
            mtime_ns: ns,
            ctime_ns: ns,
            inode: 1,
            device: 1,
            born_ns: 0,
        };
        Candidate { path: path.parse().unwrap(), fingerprint, is_open }
    }

    #[test]
    fn files_that_are_written_wait_but_not_for_ever() {
        let mut settling = Settling::default();
        let hold = |settling: &mut Settling, files: &[Candidate], now: u32| {
            let (mut paths, again) =
                settling.hold(files, &RHYTHM, now * MS, i64::from(now) * 1_000_000);
            paths.sort();
            (paths.iter().map(ToString::to_string).collect::<Vec<_>>(), again)
        };
        let old = candidate("old", 1_000, false);
        let young = candidate("young", 9_500, false);
        let open = candidate("open", 1_000, true);
        let future = candidate("future", 99_000, false);
        let files = [old, young, open, future];
        let (held, again) = hold(&mut settling, &files, 10_000);
        assert_eq!((held, again), (vec!["open".into(), "young".into()], Some(11_500 * MS)));
        let (held, again) = hold(&mut settling, &files, 11_500);
        assert_eq!((held, again), (vec!["open".to_owned()], Some(13_500 * MS)));
        let (held, again) = hold(&mut settling, &files, 19_000);
        assert_eq!((held, again), (vec!["open".to_owned()], Some(20_000 * MS)));
        assert_eq!(hold(&mut settling, &files, 20_000), (vec![], None), "long enough");
    }

    proptest! {
        /// After each hint there is a look that began after it, soon enough; and without hints no more
        /// looks than the timer wants.
        #[test]
        fn no_hint_is_lost(hints in prop::collection::vec(0u32..60_000, 0..80), costs in prop::collection::vec(0u32..400, 1..20)) {
            let mut hints = hints;
            hints.sort_unstable();
            let mut debouncer = Debouncer::new(RHYTHM, Duration::ZERO);
            let mut costs = costs.into_iter().cycle();
            let (mut looks, mut at, mut now) = (Vec::new(), 0, Duration::ZERO);
            loop {
                let due = debouncer.due().max(now);
                if at < hints.len() && hints[at] * MS <= due {
                    now = now.max(hints[at] * MS);
                    debouncer.hint(hints[at] * MS);
                    at += 1;
                    continue;
                }
                now = due;
                if now >= RHYTHM.rescan_every {
                    break;
                }
                let full = debouncer.begin(now);
                looks.push(now);
                let cost = costs.next().unwrap() * MS;
                // What is hinted at during the look belongs to the next one.
                while at < hints.len() && hints[at] * MS <= now + cost {
                    debouncer.hint(hints[at] * MS);
                    at += 1;
                }
                now += cost;
                debouncer.ended(now, cost, full);
            }
            for hint in &hints {
                let look = looks.iter().find(|look| **look >= *hint * MS);
                let most = RHYTHM.max_delay + 400 * MS * (1 + REST);
                prop_assert!(look.is_some_and(|look| *look <= *hint * MS + most), "{hint}: {looks:?}");
            }
            prop_assert!(looks.len() <= 1 + hints.len());
        }
    }
}
