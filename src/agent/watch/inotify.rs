//! Events of a directory tree from inotify(7): one thread reads them, any other thread adds
//! watches.
//!
//! The crate `notify` serves the other systems. Its stable back end for Linux asks for `IN_OPEN`,
//! so that listing a directory queues two events; it adds watches on the thread that should read
//! them; and it compares every watched path for each directory that is removed. Above
//! `max_queued_events` directories, that overflows the queue again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, PipeReader, PipeWriter},
    mem::MaybeUninit,
    ops::Bound::{Included, Unbounded},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use super::source::{Ear, MOUNTED, NoEvents};
use crate::disk::Mounts;

/// Changes of names, content or attributes. Opening a file, reading it, and closing it afterwards
/// are none of these, so that a scan causes no events.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB);

/// Only a directory itself, and none that a link leads to.
const DIRECTORY: WatchFlags = WatchFlags::ONLYDIR.union(WatchFlags::DONT_FOLLOW);

/// The top of the tree has no directory above it that is watched.
const TOP: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

/// What is read of the queue at once.
const BUFFER_BYTES: usize = 64 << 10;

/// An inotify instance and the thread that reads its events, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The thread ends when this is closed.
    end: Option<PipeWriter>,
}

#[derive(Debug)]
struct Shared {
    inotify: OwnedFd,
    root: PathBuf,
    marks: PathBuf,
    watches: Mutex<Watches>,
    ear: Arc<Ear>,
    is_ended: AtomicBool,
}

impl Watcher {
    /// Reads events, of no directory but `marks` so far. What is made there is reported as a mark.
    /// A change of `mounts`, which are those of the root, is reported as lost events.
    pub fn new(
        root: &Path,
        marks: &Path,
        mounts: &Mounts,
        ear: Arc<Ear>,
    ) -> Result<Self, NoEvents> {
        let other = |error: io::Error| NoEvents::Other(error.to_string());
        let inotify =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(no_instance)?;
        let (ended, end) = io::pipe().map_err(other)?;
        let table = Mounts::open_table().map_err(other)?;
        let (root, marks) = (root.to_owned(), marks.to_owned());
        let is_ended = AtomicBool::new(false);
        let watches = Mutex::default();
        let shared = Arc::new(Shared { inotify, root, marks, watches, ear, is_ended });
        shared.add(&shared.marks)?;
        let (reader, mounts) = (shared.clone(), mounts.clone());
        let thread = std::thread::Builder::new().name("inotify".into());
        let thread = thread.spawn(move || reader.listen(&ended, &table, &mounts)).map_err(other)?;
        Ok(Self { shared, thread: Some(thread), end: Some(end) })
    }

    /// Watches the root and all directories below it, also those below directories that are
    /// watched.
    pub fn watch_all(&self) -> Result<(), NoEvents> {
        self.shared.add_tree(&self.shared.root, true)
    }
}

impl Drop for Watcher {
    /// Waits for the thread: its watches count against the user's limit until then.
    fn drop(&mut self) {
        self.shared.is_ended.store(true, Relaxed);
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches one directory. Returns whether it was watched under this path already.
    fn add(&self, dir: &Path) -> Result<AddOutcome, NoEvents> {
        let flags = match dir {
            _ if dir == self.root => CHANGES | TOP,
            _ if dir == self.marks => WatchFlags::CREATE,
            _ => CHANGES,
        };
        // Under the lock, so that no event of the new watch is read before its path is known.
        let mut watches = self.watches();
        match inotify::add_watch(&self.inotify, dir, flags | DIRECTORY) {
            Ok(number) => Ok(match watches.insert(dir, number) {
                InsertOutcome::Known => AddOutcome::Known,
                InsertOutcome::New { unused } => {
                    unused.into_iter().for_each(|number| self.remove(number));
                    AddOutcome::New
                }
            }),
            Err(Errno::NOSPC) => Err(NoEvents::Watches),
            // It has gone, or became a file, or may not be read, which a scan reports.
            Err(
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::NAMETOOLONG,
            ) if dir != self.root => Ok(AddOutcome::Nothing),
            Err(error) => Err(NoEvents::Other(error.to_string())),
        }
    }

    /// Watches a directory and all below it. A directory that is watched already was listed after
    /// its watch began; directories below it are visited only if `again`.
    fn add_tree(&self, top: &Path, again: bool) -> Result<(), NoEvents> {
        let mut left = vec![top.to_owned()];
        while let Some(dir) = left.pop() {
            if self.is_ended.load(Relaxed) {
                break;
            }
            match self.add(&dir)? {
                AddOutcome::New => {}
                AddOutcome::Known if again => {}
                AddOutcome::Known | AddOutcome::Nothing => continue,
            }
            match fs::read_dir(&dir) {
                Ok(entries) => {
                    let entries = entries.flatten();
                    let is_dir =
                        |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
                    left.extend(entries.filter(is_dir).map(|entry| entry.path()));
                }
                // It is added anew when its permissions change.
                Err(_) => self.forget(&dir),
            }
        }
        Ok(())
    }

    /// Ends the watches of a directory and of all below it.
    fn forget(&self, dir: &Path) {
        let mut watches = self.watches();
        watches.forget_tree(dir).into_iter().for_each(|number| self.remove(number));
    }

    fn remove(&self, number: i32) {
        // The kernel may have removed it with its directory.
        let _ = inotify::remove_watch(&self.inotify, number);
    }

    /// Reads events until the other end of the pipe is closed.
    fn listen(&self, ended: &PipeReader, table: &File, mounts: &Mounts) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while !self.is_ended.load(Relaxed) {
            match reader.next() {
                Ok(event) => self.hear(&event),
                Err(Errno::AGAIN) => {
                    let mut sources = [
                        PollFd::new(&self.inotify, PollFlags::IN),
                        PollFd::new(ended, PollFlags::IN),
                        PollFd::new(table, PollFlags::PRI),
                    ];
                    match poll(&mut sources, None) {
                        // Something was mounted or unmounted, anywhere on the machine.
                        Ok(_) if !sources[2].revents().is_empty() => self.compare(mounts),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => {
                            return self.ear.lose(format!("events cannot be waited for: {error}"));
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.ear.lose(format!("events cannot be read: {error}")),
            }
        }
    }

    /// Reports lost events if the mounts of the root are others now.
    fn compare(&self, mounts: &Mounts) {
        if Mounts::of(&self.root).is_ok_and(|now| now != *mounts) {
            self.ear.lose(MOUNTED);
        }
    }

    /// Takes one event. Directories that appear are watched before the next event is read.
    fn hear(&self, event: &inotify::Event<'_>) {
        self.ear.receive();
        let kind = event.events();
        if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.ear.lose("the system had more events than it keeps");
        }
        if kind.contains(ReadFlags::IGNORED) {
            return self.watches().forget(event.wd());
        }
        if kind.contains(ReadFlags::UNMOUNT) {
            return self.ear.lose("a disk was unmounted");
        }
        let dirs = self.watches().paths(event.wd());
        if dirs.is_empty() {
            // Its directory has just been moved away, or is watched under another path by now.
            return self.ear.stir();
        }
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
        for dir in dirs {
            let path = name.map_or_else(|| dir.to_path_buf(), |name| dir.join(name));
            if path.starts_with(&self.marks) {
                self.ear.mark(&path);
                continue;
            }
            let is_dir = kind.contains(ReadFlags::ISDIR) && name.is_some();
            if is_dir && kind.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
                self.forget(&path);
            } else if is_dir
                && kind.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO | ReadFlags::ATTRIB)
                && let Err(error) = self.add_tree(&path, false)
            {
                self.ear.lose(error.to_string());
            }
            self.ear.note_path(path);
        }
    }
}

/// What became of a directory that was to be watched.
enum AddOutcome {
    New,
    Known,
    Nothing,
}

/// The limits of inotify_init1(2).
fn no_instance(error: Errno) -> NoEvents {
    match error {
        Errno::MFILE | Errno::NFILE => NoEvents::Watchers,
        error => NoEvents::Other(error.to_string()),
    }
}

/// The paths of watches. A bind mount gives one directory, and so one watch, several paths.
#[derive(Debug, Default)]
struct Watches {
    by_path: BTreeMap<Arc<Path>, i32>,
    by_number: BTreeSet<(i32, Arc<Path>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum InsertOutcome {
    Known,
    /// The path had another watch before, which no path has now.
    New {
        unused: Option<i32>,
    },
}

impl Watches {
    fn insert(&mut self, path: &Path, number: i32) -> InsertOutcome {
        let before = self.by_path.get(path).copied();
        if before == Some(number) {
            return InsertOutcome::Known;
        }
        let unused = before.and_then(|before| self.forget_path(path, before));
        let path: Arc<Path> = path.into();
        self.by_path.insert(path.clone(), number);
        self.by_number.insert((number, path));
        InsertOutcome::New { unused }
    }

    fn paths(&self, number: i32) -> Vec<Arc<Path>> {
        let first = (number, Path::new("").into());
        let from_first = self.by_number.range((Included(first), Unbounded));
        let paths = from_first.take_while(|(other, _)| *other == number);
        paths.map(|(_, path)| path.clone()).collect()
    }

    /// Forgets a watch under all its paths.
    fn forget(&mut self, number: i32) {
        for path in self.paths(number) {
            self.forget_path(&path, number);
        }
    }

    /// Forgets a path and all below it. Returns the watches that no path has any more.
    fn forget_tree(&mut self, top: &Path) -> Vec<i32> {
        let from_top = self.by_path.range::<Path, _>((Included(top), Unbounded));
        let below = from_top.take_while(|(path, _)| path.starts_with(top));
        let below: Vec<_> = below.map(|(path, number)| (path.clone(), *number)).collect();
        below.iter().filter_map(|(path, number)| self.forget_path(path, *number)).collect()
    }

    /// Returns the watch if no path has it any more.
    fn forget_path(&mut self, path: &Path, number: i32) -> Option<i32> {
        self.by_path.remove(path);
        self.by_number.remove(&(number, path.into()));
        self.paths(number).is_empty().then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[Arc<Path>]) -> Vec<&str> {
        paths.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn a_tree_is_forgotten_alone() {
        let mut watches = Watches::default();
        for (number, path) in [(1, "/a"), (2, "/a/b"), (3, "/a/b/c"), (4, "/a/b c"), (5, "/a/bb")] {
            assert_eq!(
                watches.insert(Path::new(path), number),
                InsertOutcome::New { unused: None }
            );
        }
        assert_eq!(watches.insert(Path::new("/a"), 1), InsertOutcome::Known);
        assert_eq!(watches.forget_tree(Path::new("/a/b")), [2, 3]);
        assert_eq!(names(&watches.paths(4)), ["/a/b c"]);
        assert!(watches.paths(3).is_empty());
        watches.forget(5);
        assert_eq!(watches.by_path.len(), 2);
        assert_eq!(watches.by_number.len(), 2);
    }

    #[test]
    fn a_watch_stays_as_long_as_it_has_a_path() {
        let mut watches = Watches::default();
        for path in ["/a", "/b"] {
            watches.insert(Path::new(path), 7);
        }
        assert_eq!(names(&watches.paths(7)), ["/a", "/b"]);
        assert!(watches.forget_tree(Path::new("/a")).is_empty());
        assert_eq!(names(&watches.paths(7)), ["/b"]);
        // Another directory by the same path.
        let replaced = watches.insert(Path::new("/b"), 8);
        assert_eq!(replaced, InsertOutcome::New { unused: Some(7) });
    }
}
