//! The embedded store: blobs under the names of their content, and checkouts made of links to them.
//!
//! Synchronous. The only thing of `tokio` here is the signal that a flight has ended, which the
//! server awaits without holding a thread.

mod batch;
mod blobs;
mod checkout;
mod erase;
mod examine;
mod gc;
mod hasher;
mod holders;
mod index;
mod inflight;
mod layout;
mod lookup;
mod manifest;
mod materialize;
mod ownership;
mod pins;
mod receive;
mod records;
mod scrub;
mod tally;
mod unfinished;
mod walk;

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

pub use batch::{Batch, Batched};
pub use blobs::{Begin, Claimed, Ticket};
pub use checkout::CheckoutError;
pub use erase::{EraseError, EraseOptions};
pub use examine::{building_dir, holder, try_link_mode};
pub use gc::{GcError, GcOptions, MIN_AGE};
pub use index::{Indexed, MIN_BYTES as MIN_INDEXED_BYTES};
pub use inflight::Flight;
pub use manifest::ManifestError;
pub use materialize::ModeError;
pub use ownership::NotOurs;
pub use receive::{ReceiveError, Received, Receiving};
pub use scrub::{AdoptError, ScrubError, ScrubOptions};
pub use tally::Tally;
pub use unfinished::{BeginPieces, Finished, Laid, Request, UnfinishedError};
pub use walk::Work;

use crate::disk::{
    DiskError, FileSystem, IoContext, Lock, LockError, OpenDir, Space, be_gentle, replace_file,
    sync_dir,
};
use crate::domain::{BlobId, OsFamily, report::LinkMode};
use inflight::InFlight;
use layout::Layout;
use walk::Stopped;

/// What a store promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// What is said to be stored survives a power cut.
    #[default]
    Full,
    /// It survives the end of the process only. Nothing is synced, ever: a power cut may leave blobs
    /// that are empty or half written, under their names.
    Relaxed,
}

/// Free space that is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserve {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system.
    Percent(f64),
}

/// The room in a store's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub total_bytes: u64,
    /// What may still be written.
    pub free_bytes: u64,
    /// What of that is kept free.
    pub reserve_bytes: u64,
    /// What uploads that have begun have still to write.
    pub admitted_bytes: u64,
}

/// How a store behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What it promises.
    pub durability: Durability,
    /// What it keeps free: no upload begins that would leave less.
    pub reserve: Reserve,
    /// How the files of checkouts are made.
    pub link_mode: LinkMode,
    /// Whether it knows the chunks of what is stored, so that what is nearly the same need not be sent as a
    /// whole.
    pub index_chunks: bool,
    /// Whether it is in memory alone, so that nothing waits for a disk; if this does not say, its file system does.
    pub in_memory: Option<bool>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            reserve: Reserve::Bytes(256 << 20),
            link_mode: LinkMode::Symlink,
            index_chunks: true,
            in_memory: None,
        }
    }
}

/// When upkeep last succeeded, in seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct History {
    /// Garbage collection.
    pub gc_s: Option<u64>,
    /// A scrub of the whole store.
    pub scrub_s: Option<u64>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// On Windows.
    #[error(
        "a storage directory cannot be used on Windows yet: a checkout path can lead out of it there, \
         and garbage collection would remove blobs that checkouts use"
    )]
    OnWindows,
    /// Another farmhand uses it.
    #[error("the store {dir} is in use by another farmhand ({note})")]
    InUse {
        /// The storage directory.
        dir: String,
        /// What the other one says of itself.
        note: String,
    },
    /// Checkouts cannot be made in the way that was asked for.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// A file or directory of the store is not one that can be trusted.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
    /// Its directories cannot be made or read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Whether stores can be used on this system.
///
/// On Windows a part of a path can name a drive, and the number of links of a file is not read, so that blobs
/// in use count as unreferenced.
///
/// # Errors
/// On Windows.
pub fn require_supported(family: OsFamily) -> Result<(), OpenError> {
    match family {
        OsFamily::Unix => Ok(()),
        OsFamily::Windows => Err(OpenError::OnWindows),
    }
}

/// An open store. The directory is locked until it is dropped.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    /// The storage directory, held open: everything created, renamed or removed below it is reached
    /// from here without following a link.
    root: OpenDir,
    options: Options,
    inflight: InFlight,
    unfinished: unfinished::AllUnfinished,
    index: index::Index,
    /// Blobs whose names have been given and are not durable. They do not count as stored: not
    /// while that goes on, and not after it has failed.
    unsynced: Mutex<HashSet<BlobId>>,
    /// Bytes of uploads that have begun and are not written yet.
    admitted_bytes: AtomicU64,
    /// Held to read while a blob begins to be needed or gets its name; held to write while one is
    /// removed. So what is said to be there cannot go in the same moment.
    removal: RwLock<()>,
    /// Held while a checkout gets its name, or loses it.
    naming: Mutex<()>,
    erasing: Mutex<erase::Erasing>,
    pinning: Mutex<()>,
    /// One garbage collection at a time, and one scrub.
    counts: tally::Counts,
    collecting: Mutex<()>,
    /// How many threads do nothing but hash what others write.
    hashing: Arc<AtomicUsize>,
    scrubbing: Mutex<()>,
    lock: Mutex<Lock>,
    is_in_memory: bool,
    _dir_lock: Option<std::fs::File>,
}

impl Store {
    /// Opens the store in this directory, making it if needed, and removes what an earlier
    /// process left unfinished.
    ///
    /// # Errors
    /// If another process has it open, the file system refuses, or the system is not supported
    /// ([`require_supported`]).
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        Self::open_on(OsFamily::HERE, dir, options)
    }

    fn open_on(family: OsFamily, dir: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        require_supported(family)?;
        std::fs::create_dir_all(dir).on("create the storage directory", dir)?;
        let dir = std::path::absolute(dir).on("find", dir)?;
        let layout = Layout::new(&dir);
        ownership::check(&layout)?;
        let root = OpenDir::open(dir.clone()).on("open", &dir)?;
        let held = |error| match error {
            LockError::Held { note } => OpenError::InUse { dir: dir.display().to_string(), note },
            LockError::Disk(error) => error.into(),
        };
        let lock = Lock::acquire(&layout.lock()).map_err(held)?;
        layout.create(options.durability)?;
        let dir_lock = Lock::acquire_directory(&layout.stored()).map_err(held)?;
        receive::remove_leftovers(&layout, std::time::Duration::ZERO)?;
        records::remove_leftovers(&layout)?;
        checkout::remove_leftovers(&root)?;
        materialize::probe(&layout, options.link_mode)?;
        // One that does not say may be anything.
        let ask = || FileSystem::of(&layout.stored()).is_ok_and(|system| system.is_memory);
        let is_in_memory = options.in_memory.unwrap_or_else(ask);
        let index = index::Index::open(options.index_chunks.then(|| layout.chunk_index()));
        let store = Self {
            layout,
            root,
            options,
            inflight: InFlight::default(),
            unfinished: unfinished::AllUnfinished::default(),
            index,
            unsynced: Mutex::default(),
            admitted_bytes: AtomicU64::new(0),
            removal: RwLock::default(),
            naming: Mutex::default(),
            erasing: Mutex::default(),
            pinning: Mutex::default(),
            counts: tally::Counts::default(),
            collecting: Mutex::default(),
            hashing: Arc::default(),
            scrubbing: Mutex::default(),
            lock: lock.into(),
            is_in_memory,
            _dir_lock: dir_lock,
        };
        store.finish_erasing()?;
        Ok(Arc::new(store))
    }

    /// Opens a directory below the storage directory. No link on the way is followed.
    fn open_dir(&self, below: &str) -> Result<OpenDir, DiskError> {
        self.root.open_below(below).on("open", &self.layout.root().join(below))
    }

    /// The directory of the store, absolute.
    pub fn dir(&self) -> &Path {
        self.layout.root()
    }

    /// Whether it is in memory alone. Then what is done for one blob takes about as long as to wake a thread for it.
    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// The directory for what belongs to the store and is no file of anybody.
    pub fn state_dir(&self) -> std::path::PathBuf {
        self.layout.memory()
    }

    /// Tells a process that finds the store in use who has it.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn leave_note(&self, text: &str) -> Result<(), DiskError> {
        self.lock.lock().expect("BUG: no one panics with this lock").note(text)
    }

    /// How much room there is, and for what; `None` where that cannot be asked.
    ///
    /// # Errors
    /// If the file system does not answer.
    pub fn room(&self) -> Result<Option<Room>, DiskError> {
        let admitted_bytes = self.admitted_bytes.load(Relaxed);
        let Some(space) = Space::of(&self.layout.uploading())? else { return Ok(None) };
        let reserve_bytes = self.options.reserve.bytes(space.total_bytes);
        let Space { total_bytes, free_bytes } = space;
        Ok(Some(Room { total_bytes, free_bytes, reserve_bytes, admitted_bytes }))
    }

    /// Whether the uploads that have begun leave the reserve free.
    ///
    /// # Errors
    /// If not ([`DiskError::is_full`]), or if the file system cannot say.
    pub fn has_room(&self) -> Result<(), DiskError> {
        let Some(room) = self.room()? else { return Ok(()) };
        if room.free_bytes.saturating_sub(room.admitted_bytes) >= room.reserve_bytes
            && room.free_bytes >= room.admitted_bytes
        {
            return Ok(());
        }
        let mib = |bytes: u64| bytes / (1 << 20);
        let (free, kept, more) =
            (mib(room.free_bytes), mib(room.reserve_bytes), mib(room.admitted_bytes));
        let reason = format!(
            "{free} MiB are free, {kept} MiB are kept in reserve, and {more} MiB are still to come"
        );
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, reason);
        Err(DiskError { op: "store more in", path: self.layout.uploading(), source })
    }

    /// How many bytes are too few for the uploads that have begun and the reserve.
    fn missing_bytes(&self) -> Result<u64, DiskError> {
        Ok(self.room()?.map_or(0, |room| {
            room.reserve_bytes.saturating_add(room.admitted_bytes).saturating_sub(room.free_bytes)
        }))
    }

    /// Makes the names in a directory durable, if that is what the store promises.
    fn sync_dir(&self, dir: &Path) -> Result<(), DiskError> {
        match self.options.durability {
            Durability::Full => sync_dir(dir),
            Durability::Relaxed => Ok(()),
        }
    }

    /// Threads for a long operation.
    fn pool(&self, threads: usize, gentle: bool) -> Result<rayon::ThreadPool, DiskError> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .start_handler(move |_| {
                if gentle {
                    be_gentle();
                }
            })
            .build()
            .map_err(std::io::Error::other)
            .on("start threads for", self.layout.root())
    }

    /// When upkeep last succeeded: what [`Store::remember`] was told.
    pub fn history(&self) -> History {
        let text = std::fs::read(self.layout.history()).unwrap_or_default();
        // Not worth an error: then it is done again.
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Remembers when upkeep last succeeded.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn remember(&self, history: &History) -> Result<(), DiskError> {
        let file = self.layout.history();
        let text = serde_json::to_vec(history).map_err(Into::into).on("write", &file)?;
        replace_file(&file, &text, false)
    }

    /// The directory that holds all checkouts.
    pub fn checkouts_dir(&self) -> std::path::PathBuf {
        self.layout.jobs()
    }
}

/// What an earlier process left is in nobody's way if it cannot be removed: no reason not to open
/// the store.
fn remove_leftover(removed: Result<(), DiskError>) {
    if let Err(error) = removed {
        tracing::warn!("{error}: {}", error.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_store_is_opened_on_windows() {
        let dir = tempfile::tempdir().unwrap();
        let open = |family| Store::open_on(family, dir.path(), Options::default());
        assert!(matches!(open(OsFamily::Windows), Err(OpenError::OnWindows)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(open(OsFamily::Unix).is_ok());
    }
}
