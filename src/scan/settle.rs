//! Lists directories again that have changed while a folder was walked.
//!
//! A file or folder that is moved from a directory that is not listed yet to one that has been would
//! be in no listing. Both directories have changed then, so they are listed once more.

use std::{
    collections::HashSet, fs, path::PathBuf, sync::atomic::Ordering::Relaxed, thread,
    time::Duration,
};

use rayon::prelude::*;

use super::{
    ignore::Rules,
    walk::{FoundAll, Walk},
};
use crate::disk::Fingerprint;

/// How often directories are listed again. In a folder that changes all the time, a file must be moved
/// in each round to be missed.
const ROUNDS: u32 = 3;

/// How fine the times of directories are, at worst: the tick of a kernel's clock, and some.
const TICK: Duration = Duration::from_millis(20);

/// A directory as it was when it was listed.
pub(super) struct Listed {
    pub dir: PathBuf,
    /// Its path below the root; `None` is the root.
    pub prefix: Option<String>,
    /// The rules that hold for its own name.
    pub rules: Rules,
    /// Before it was listed.
    pub own: Fingerprint,
    pub listed_ns: i64,
}

/// One round of listing directories again.
#[derive(Default)]
pub(super) struct Again {
    /// Directories that are listed already, or by this round, by their paths below the root.
    listed: HashSet<String>,
    /// Those of them that were found again.
    found: HashSet<String>,
}

impl Listed {
    fn path(&self) -> &str {
        self.prefix.as_deref().unwrap_or_default()
    }

    /// Whether its names may have changed since it was listed.
    fn has_changed(&self) -> bool {
        let Ok(found) = fs::metadata(&self.dir) else { return true };
        let now = Fingerprint::of(&found);
        let own = &self.own;
        // Within a tick, a second change leaves no trace.
        let age_ns = self.listed_ns.saturating_sub(own.mtime_ns).unsigned_abs();
        (now.mtime_ns, now.ctime_ns, now.inode, now.device)
            != (own.mtime_ns, own.ctime_ns, own.inode, own.device)
            || u128::from(age_ns) < TICK.as_nanos()
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl FoundAll {
    /// Removes everything about paths, as the test says.
    fn forget(&mut self, is_forgotten: impl Fn(&str) -> bool) {
        self.files.retain(|file| !is_forgotten(file.path.as_str()));
        self.skipped.retain(|skipped| !is_forgotten(&skipped.path));
        self.ignored.retain(|ignored| !is_forgotten(&ignored.path));
    }
}

impl Walk<'_> {
    /// Whether a directory that was found need not be walked, because this round lists others again.
    pub fn is_listed(&self, prefix: &str) -> bool {
        let mut again = self.again.lock().expect("BUG: no one panics with this lock");
        let Some(again) = again.as_mut() else { return false };
        let is_listed = again.listed.contains(prefix);
        if is_listed {
            again.found.insert(prefix.to_owned());
        }
        is_listed
    }

    /// Lists directories again until none has changed since, for some rounds.
    pub fn settle(&self, pool: &rayon::ThreadPool) {
        for round in 0..ROUNDS {
            if self.stop.load(Relaxed) || !self.list_changed(pool, round) {
                return;
            }
        }
        tracing::debug!("the folder changes all the time while it is scanned");
    }

    /// Returns whether anything had changed.
    fn list_changed(&self, pool: &rayon::ThreadPool, round: u32) -> bool {
        let lock = || self.found.lock().expect("BUG: no one panics with this lock");
        let listed = std::mem::take(&mut lock().listed);
        let changed: Vec<bool> =
            pool.install(|| listed.par_iter().map(Listed::has_changed).collect());
        if !changed.contains(&true) {
            return false;
        }
        thread::sleep(TICK * 2u32.pow(round));
        let again = listed.iter().map(|listed| listed.path().to_owned()).collect();
        let mut is_changed = changed.into_iter();
        let (changed, kept): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|_| is_changed.next().unwrap_or(false));
        let dirs: HashSet<String> = changed.iter().map(|dir| dir.path().to_owned()).collect();
        {
            let mut found = lock();
            found.listed = kept;
            found.forget(|path| dirs.contains(parent(path)));
            found.seen.retain(|(path, _)| {
                let is_rules = path.rsplit('/').next() == Some(super::ignore::IGNORE_FILE);
                !(dirs.contains(&**path) || is_rules && dirs.contains(parent(path)))
            });
        }
        let lock_again = || self.again.lock().expect("BUG: no one panics with this lock");
        *lock_again() = Some(Again { listed: again, found: HashSet::new() });
        pool.scope(|scope| {
            for Listed { dir, prefix, rules, .. } in changed {
                self.dir(scope, dir, prefix, rules);
            }
        });
        let again = lock_again().take().unwrap_or_default();
        let is_gone = |path: &&String| dirs.contains(parent(path)) && !again.found.contains(*path);
        let gone: HashSet<&str> = again
            .listed
            .iter()
            .filter(|path| !path.is_empty())
            .filter(is_gone)
            .map(String::as_str)
            .collect();
        if !gone.is_empty() {
            let is_below_gone = |path: &str| {
                let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
                ends.into_iter().any(|end| gone.contains(&path[..end]))
            };
            let mut found = lock();
            found.forget(is_below_gone);
            found.seen.retain(|(path, _)| !is_below_gone(path));
            found.listed.retain(|listed| !is_below_gone(listed.path()));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Barrier, atomic::AtomicBool},
    };

    use super::super::{Options, walk::walk};
    use crate::meter::Progress;

    use super::*;

    const DIRECTORIES: usize = 400;

    fn found_in(root: &Path, name: &str) -> Vec<String> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let walked = walk(root, &Options::default(), false, &pool, &progress, &stop).unwrap();
        assert_eq!(walked.skipped, [], "what was moved is not missing");
        let names = walked.files.iter().map(|file| file.path.as_str().to_owned());
        names.filter(|path| path.rsplit('/').next() == Some(name)).collect()
    }

    /// Moves something once while the folder is walked, at another moment each time.
    fn move_while_walked(what: &str) {
        let dir = tempfile::tempdir().unwrap();
        let at = |number: usize| dir.path().join(format!("d{number:03}"));
        for number in 0..DIRECTORIES {
            fs::create_dir(at(number)).unwrap();
            fs::write(at(number).join("file"), "").unwrap();
        }
        let places = [at(0).join(what), at(DIRECTORIES - 1).join(what)];
        if what == "x" {
            fs::write(&places[0], "").unwrap();
        } else {
            fs::create_dir(&places[0]).unwrap();
            fs::write(places[0].join("x"), "").unwrap();
        }
        let mut delay = Duration::ZERO;
        for round in 0..60 {
            let (from, to) = (&places[round % 2], &places[(round + 1) % 2]);
            let start = Barrier::new(2);
            let found = thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    thread::sleep(delay);
                    fs::rename(from, to).unwrap();
                });
                start.wait();
                found_in(dir.path(), "x")
            });
            assert_eq!(found.len(), 1, "in round {round}: {found:?}");
            delay += Duration::from_micros(150);
        }
    }

    #[test]
    fn a_file_moved_while_walked_is_found_once() {
        move_while_walked("x");
    }

    #[test]
    fn a_folder_moved_while_walked_is_found_once() {
        move_while_walked("folder");
    }
}
