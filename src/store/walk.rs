//! What is in the storage: all blobs, and everything in checkouts that holds one.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use super::{Store, layout::Layout};
use crate::{
    disk::{DirectoryId, DiskError, IoContext, rest_if_gentle, unix_ns},
    domain::{BlobId, report::Done},
};

/// How fine the times of directories are, at worst: the tick of a kernel's clock, and some.
const TICK: Duration = Duration::from_millis(20);

/// A long operation: how far it is, and whether it is to stop.
#[derive(Debug, Default)]
pub struct Work {
    stop: AtomicBool,
    blobs: AtomicU64,
    bytes: AtomicU64,
}

impl Work {
    /// Has it stop soon.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether it is to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// So much has been done.
    pub fn done(&self) -> Done {
        Done { blobs: self.blobs.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    pub(super) fn did(&self, blobs: u64, bytes: u64) {
        self.blobs.fetch_add(blobs, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// # Errors
    /// If it is to stop.
    pub(super) fn go_on(&self) -> Result<(), Stopped> {
        if self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }
}

/// It was told to stop.
#[derive(Debug)]
pub(super) struct Stopped;

/// Something in `stored/`.
pub(super) enum Item {
    /// A file, or something else, under the name of a blob.
    Blob(BlobId),
    /// Something that is no blob.
    Stray(PathBuf),
}

/// Something in a checkout.
pub(super) enum Held {
    /// A link to this blob, there or not.
    Link(BlobId),
    /// A file: a copy, or another name of a blob's file.
    File(fs::Metadata),
    /// A link to something that is no blob.
    Foreign,
}

/// The names in a directory; none if it is gone.
fn names(dir: &Path) -> Result<Vec<fs::DirEntry>, DiskError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<_>>().on("list", dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).on("list", dir),
    }
}

impl Store {
    /// All blobs whose digest begins with this byte, in the order of their names.
    pub(super) fn blobs_with_prefix(
        &self,
        prefix: u8,
        mut visit: impl FnMut(Item),
    ) -> Result<(), DiskError> {
        let prefix = format!("{prefix:02x}");
        let dir = self.layout.stored().join(&prefix);
        let mut entries = names(&dir)?;
        entries.sort_by_cached_key(fs::DirEntry::file_name);
        for entry in entries {
            rest_if_gentle();
            let (dir, rest) = (entry.path(), entry.file_name());
            let Some(rest) =
                rest.to_str().filter(|rest| Layout::parse(&prefix, rest, "0").is_some())
            else {
                visit(Item::Stray(dir));
                continue;
            };
            let blobs = match names(&dir) {
                Ok(blobs) => blobs,
                Err(error) if error.source.kind() == io::ErrorKind::NotADirectory => {
                    visit(Item::Stray(dir));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for blob in blobs {
                let name = blob.file_name();
                let size = name.to_str().and_then(|name| name.strip_suffix(".blob"));
                visit(match size.and_then(|size| Layout::parse(&prefix, rest, size)) {
                    Some(id) => Item::Blob(id),
                    None => Item::Stray(blob.path()),
                });
            }
        }
        Ok(())
    }

    /// What `stat` says of a blob's file; `None` if it is gone.
    pub(super) fn look(&self, id: &BlobId) -> Result<Option<fs::Metadata>, DiskError> {
        let (dir, path) = self.layout.blob(id);
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Something else stands where the blob's own directory should: that is damage to this
            // blob, which sending it again mends.
            Err(error)
                if error.kind() == io::ErrorKind::NotADirectory
                    && dir.symlink_metadata().is_ok() =>
            {
                Ok(None)
            }
            Err(error) => Err(error).on("look at", &path),
        }
    }
}

/// Walks directories of checkouts. Links to directories are followed, each directory once.
pub(super) struct Walk<'a> {
    visit: &'a (dyn Fn(&Path, Held) + Sync),
    /// A directory to leave out.
    except: PathBuf,
    seen: Mutex<HashMap<DirectoryId, Seen>>,
    failed: Mutex<Option<DiskError>>,
}

struct Seen {
    path: PathBuf,
    changed_ns: i64,
    looked_ns: i64,
}

impl<'a> Walk<'a> {
    /// `visit` gets the path of everything that is no directory, and what it is.
    pub fn new(visit: &'a (dyn Fn(&Path, Held) + Sync)) -> Self {
        Self { visit, except: PathBuf::new(), seen: Mutex::default(), failed: Mutex::default() }
    }

    /// Leaves this directory out.
    pub fn except(self, except: PathBuf) -> Self {
        Self { except, ..self }
    }

    /// Visits everything below a directory, on the threads of the current pool.
    ///
    /// # Errors
    /// If anything cannot be looked at, but for what vanishes meanwhile.
    pub fn run(&self, root: &Path) -> Result<(), DiskError> {
        rayon::scope(|scope| self.enter(root.to_owned(), scope));
        match self.failed.lock().expect("BUG: no one panics with this lock").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Looks again at what has changed since it was looked at, until nothing has. A checkout that is
    /// moved while it is walked is found this way. What is visited may be visited again. `false` if it
    /// does not settle.
    ///
    /// # Errors
    /// As [`Walk::run`].
    pub fn settle(&self, rounds: u32) -> Result<bool, DiskError> {
        for round in 0..rounds {
            let mut changed = Vec::new();
            self.seen.lock().expect("BUG: no one panics with this lock").retain(|id, seen| {
                let is_changed = match DirectoryId::of(&seen.path) {
                    Ok((now, changed_ns)) => {
                        // Within a tick, a second change leaves no trace.
                        let tick_ns = TICK.as_nanos() as i64;
                        now != *id
                            || changed_ns != seen.changed_ns
                            || seen.changed_ns > seen.looked_ns - tick_ns
                    }
                    // What was in it is gone, or elsewhere: the directory it went to has changed.
                    Err(error) => error.source.kind() != io::ErrorKind::NotFound,
                };
                if is_changed {
                    changed.push(seen.path.clone());
                }
                !is_changed
            });
            if changed.is_empty() {
                return Ok(true);
            }
            thread::sleep(TICK * 2u32.pow(round.min(5)));
            for path in changed {
                self.run(&path)?;
            }
        }
        Ok(false)
    }

    fn enter<'s>(&'s self, dir: PathBuf, scope: &rayon::Scope<'s>) {
        scope.spawn(move |scope| {
            if let Err(error) = self.look_into(&dir, scope)
                && error.source.kind() != io::ErrorKind::NotFound
            {
                self.failed.lock().expect("BUG: no one panics with this lock").get_or_insert(error);
            }
        });
    }

    fn look_into<'s>(&'s self, dir: &Path, scope: &rayon::Scope<'s>) -> Result<(), DiskError> {
        let (id, changed_ns) = DirectoryId::of(dir)?;
        {
            use std::collections::hash_map::Entry;
            let mut seen = self.seen.lock().expect("BUG: no one panics with this lock");
            let Entry::Vacant(entry) = seen.entry(id) else { return Ok(()) };
            let looked_ns = unix_ns(SystemTime::now());
            entry.insert(Seen { path: dir.to_owned(), changed_ns, looked_ns });
        }
        for entry in names(dir)? {
            match self.look_at(&entry, scope) {
                // Gone meanwhile.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                looked => looked?,
            }
        }
        Ok(())
    }

    fn look_at<'s>(
        &'s self,
        entry: &fs::DirEntry,
        scope: &rayon::Scope<'s>,
    ) -> Result<(), DiskError> {
        let path = entry.path();
        let kind = entry.file_type().on("look at", &path)?;
        if kind.is_dir() {
            if path != self.except {
                self.enter(path, scope);
            }
        } else if kind.is_symlink() {
            match follow(&path)? {
                // By its own name: blobs in it are known by theirs.
                Followed::Dir => self.enter(fs::canonicalize(&path).on("follow", &path)?, scope),
                Followed::Held(held) => (self.visit)(&path, held),
            }
        } else {
            let held = match Layout::blob_of(&path) {
                Some(id) => Held::Link(id),
                None => Held::File(entry.metadata().on("look at", &path)?),
            };
            (self.visit)(&path, held);
        }
        Ok(())
    }
}

/// What a link leads to.
pub(super) enum Followed {
    /// A directory.
    Dir,
    /// Something else.
    Held(Held),
}

/// What a link leads to. That of a blob is known by its text alone: the storage may be mounted
/// elsewhere, and a blob that is not there is still one that is held.
pub(super) fn follow(link: &Path) -> Result<Followed, DiskError> {
    let target = fs::read_link(link).on("read the link", link)?;
    if let Some(id) = Layout::blob_of(&target) {
        return Ok(Followed::Held(Held::Link(id)));
    }
    match fs::metadata(link) {
        Ok(found) if found.is_dir() => Ok(Followed::Dir),
        Ok(_) => {
            let end = fs::canonicalize(link).on("follow", link)?;
            let held = Layout::blob_of(&end).map_or(Held::Foreign, Held::Link);
            Ok(Followed::Held(held))
        }
        Err(error) if leads_nowhere(&error) => Ok(Followed::Held(Held::Foreign)),
        Err(error) => Err(error).on("follow", link),
    }
}

fn leads_nowhere(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    #[cfg(unix)]
    let is_loop = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    #[cfg(not(unix))]
    let is_loop = false;
    is_loop || matches!(error.kind(), NotFound | NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// One that is moved from where the walk has not been yet to where it has already been.
    #[test]
    fn what_moves_while_it_is_walked_is_found_when_it_settles() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let mut missed = 0;
        for attempt in 0..40 {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            for (number, dir) in ["p", "q", "r"].iter().enumerate() {
                fs::create_dir(at(dir)).unwrap();
                if number != attempt % 3 {
                    fs::write(at(dir).join("file"), "").unwrap();
                }
            }
            let from = at(["p", "q", "r"][attempt % 3]).join("mover");
            fs::create_dir(&from).unwrap();
            fs::write(from.join("x"), "").unwrap();
            let seen = Mutex::new(HashSet::new());
            let visit = |path: &Path, _: Held| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                // Where this file is has been listed.
                let to = path.parent().unwrap().join("mover");
                if seen.lock().unwrap().insert(name) && !path.ends_with("mover/x") {
                    fs::rename(&from, &to).unwrap();
                }
            };
            let walk = Walk::new(&visit);
            pool.install(|| walk.run(root.path())).unwrap();
            missed += usize::from(!seen.lock().unwrap().contains("x"));
            assert!(pool.install(|| walk.settle(12)).unwrap());
            assert!(seen.lock().unwrap().contains("x"));
        }
        assert!(missed > 0, "it never moved to where the walk had been");
    }
}
