//! Which chunks are where in what is stored: SQLite. Derived data: it may be removed at any time, is made anew
//! in the background, and is never trusted. What is read from a place that it names is hashed.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::Notify;

use super::{Stopped, Store, Work, walk::Item};
use crate::{
    chunks::Chunker,
    disk::{DiskError, IoContext, rest_if_gentle},
    domain::{BlobId, Chunk, ChunkId, Digest},
};

/// Blobs smaller than this are not indexed, in bytes: to send them whole costs about as much as to ask.
pub const MIN_BYTES: u64 = 128 << 10;

/// How many blobs wait to be indexed at most; if there are more, the store is looked through instead.
const MAX_WAITING: usize = 10_000;

/// How many chunks are noted at once. A writer keeps others out for so long.
const AT_ONCE: usize = 4096;

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How much memory each connection may use for pages of the database, in KiB.
const CACHE_KIB: i64 = 8 << 10;

/// The key of a chunk is the first eight bytes of its digest: another chunk with the same is found out when it
/// is read. Each blob has its own rows, also of chunks that others have: these may go first.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS blobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        whole INTEGER NOT NULL DEFAULT 0,
        UNIQUE (digest, size)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS chunks (
        key INTEGER NOT NULL,
        blob INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        PRIMARY KEY (key, blob)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        complete INTEGER NOT NULL
    ) STRICT;
    INSERT OR IGNORE INTO state (one, complete) VALUES (1, 0);
";

/// Where a chunk is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub blob: BlobId,
    pub offset: u64,
}

/// What is indexed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Blobs whose chunks are known.
    pub blobs: u64,
    /// Blobs that are waiting for that; more may if the store is still to be looked through.
    pub waiting: u64,
    /// Whether all blobs that were stored have been looked at.
    pub complete: bool,
}

/// The index, and what is still to be done for it.
#[derive(Debug)]
pub(super) struct Index {
    tables: Option<Tables>,
    waiting: Mutex<VecDeque<BlobId>>,
    /// Being indexed right now.
    at_work: AtomicU64,
    /// The whole store is to be looked through.
    all: AtomicBool,
    wake: Notify,
}

#[derive(Debug)]
struct Tables {
    /// One to read and one to write: readers do not wait.
    read: Mutex<Connection>,
    write: Mutex<Connection>,
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Of derived data, the last may be lost, but nothing may be damaged.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

impl Tables {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let write = connect(path)?;
        write.execute_batch(SCHEMA)?;
        let read = connect(path)?;
        read.query_row("SELECT COUNT(*) FROM state", [], |_| Ok(()))?;
        Ok(Self { read: read.into(), write: write.into() })
    }

    fn read(&self) -> MutexGuard<'_, Connection> {
        self.read.lock().expect("BUG: no one panics with this lock")
    }

    fn write(&self) -> MutexGuard<'_, Connection> {
        self.write.lock().expect("BUG: no one panics with this lock")
    }

    fn places(&self, chunks: &[Chunk]) -> rusqlite::Result<Vec<Option<Place>>> {
        let connection = self.read();
        let mut find = connection.prepare_cached(
            "SELECT digest, size, offset FROM chunks JOIN blobs ON number = blob WHERE key = ?1
             ORDER BY blob DESC LIMIT 1",
        )?;
        chunks
            .iter()
            .map(|chunk| {
                let place = |row: &rusqlite::Row<'_>| {
                    let digest = Digest::from_bytes(row.get(0)?);
                    let (size, offset): (i64, i64) = (row.get(1)?, row.get(2)?);
                    let blob = BlobId { digest, size_bytes: size.cast_unsigned() };
                    Ok(Place { blob, offset: offset.cast_unsigned() })
                };
                find.query_row([key(&chunk.id)], place).optional()
            })
            .collect()
    }

    fn has(&self, id: &BlobId) -> rusqlite::Result<bool> {
        let read = self.read();
        read.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1 AND size = ?2 AND whole")?
            .exists(params![id.digest.as_bytes(), id.size_bytes.cast_signed()])
    }

    /// The number of a blob that is not whole here, new or not.
    fn begin_blob(&self, id: &BlobId) -> rusqlite::Result<i64> {
        let write = self.write();
        write.query_row(
            "INSERT INTO blobs (digest, size) VALUES (?1, ?2)
             ON CONFLICT (digest, size) DO UPDATE SET whole = 0 RETURNING number",
            params![id.digest.as_bytes(), id.size_bytes.cast_signed()],
            |row| row.get(0),
        )
    }

    /// All its chunks are here.
    fn end_blob(&self, blob: i64) -> rusqlite::Result<()> {
        self.write().execute("UPDATE blobs SET whole = 1 WHERE number = ?1", [blob])?;
        Ok(())
    }

    fn add(&self, blob: i64, chunks: &mut Vec<(ChunkId, u64)>) -> rusqlite::Result<()> {
        // In the order of the table: then pages are written once.
        chunks.sort_unstable_by_key(|(id, _)| key(id));
        let mut write = self.write();
        let all = write.transaction()?;
        {
            let mut add = all.prepare_cached(
                "INSERT OR REPLACE INTO chunks (key, blob, offset) VALUES (?1, ?2, ?3)",
            )?;
            for (id, offset) in chunks.drain(..) {
                add.execute(params![key(&id), blob, offset.cast_signed()])?;
            }
        }
        all.commit()
    }

    fn forget(&self, id: &BlobId) -> rusqlite::Result<()> {
        let write = self.write();
        write.execute(
            "DELETE FROM blobs WHERE digest = ?1 AND size = ?2",
            params![id.digest.as_bytes(), id.size_bytes.cast_signed()],
        )?;
        Ok(())
    }

    fn blobs(&self) -> rusqlite::Result<Vec<BlobId>> {
        let read = self.read();
        let mut all = read.prepare("SELECT digest, size FROM blobs")?;
        let id = |row: &rusqlite::Row<'_>| {
            let size: i64 = row.get(1)?;
            Ok(BlobId { digest: Digest::from_bytes(row.get(0)?), size_bytes: size.cast_unsigned() })
        };
        all.query_map([], id)?.collect()
    }

    fn count(&self) -> rusqlite::Result<(u64, bool)> {
        let read = self.read();
        let count: i64 =
            read.query_row("SELECT COUNT(*) FROM blobs WHERE whole", [], |row| row.get(0))?;
        let complete = read.query_row("SELECT complete FROM state", [], |row| row.get(0))?;
        Ok((count.cast_unsigned(), complete))
    }

    fn set_complete(&self, complete: bool) -> rusqlite::Result<()> {
        self.write().execute("UPDATE state SET complete = ?1", [complete])?;
        Ok(())
    }

    /// Removes the chunks of blobs that are forgotten.
    fn sweep(&self) -> rusqlite::Result<()> {
        self.write()
            .execute("DELETE FROM chunks WHERE blob NOT IN (SELECT number FROM blobs)", [])?;
        Ok(())
    }
}

fn key(id: &ChunkId) -> i64 {
    let first = id.as_bytes().first_chunk().expect("BUG: a digest has 32 bytes");
    i64::from_le_bytes(*first)
}

/// The files of an SQLite database.
fn files(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        name.into()
    })
}

impl Index {
    /// Opens the index at this path, or begins a new one. Without a path, or where neither can be done,
    /// nothing is known of chunks.
    pub fn open(path: Option<PathBuf>) -> Self {
        let tables = path.and_then(|path| {
            Tables::open(&path)
                .or_else(|error| {
                    tracing::warn!(
                        "the index of chunks in {} is made anew: {error}",
                        path.display()
                    );
                    for file in files(&path) {
                        // What is in the way is told by what follows.
                        let _ = std::fs::remove_file(file);
                    }
                    Tables::open(&path)
                })
                .inspect_err(|error| {
                    tracing::warn!("no index of chunks in {}: {error}", path.display());
                })
                .ok()
        });
        let complete = tables
            .as_ref()
            .is_some_and(|tables| tables.count().is_ok_and(|(_, complete)| complete));
        Self {
            tables,
            waiting: Mutex::default(),
            at_work: AtomicU64::new(0),
            all: AtomicBool::new(!complete),
            wake: Notify::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<BlobId>> {
        self.waiting.lock().expect("BUG: no one panics with this lock")
    }

    /// What came of it, or what comes of nothing. An index that cannot be used costs bytes on the wire, and no
    /// more.
    fn with<T: Default>(&self, what: impl FnOnce(&Tables) -> rusqlite::Result<T>) -> T {
        let Some(tables) = &self.tables else { return T::default() };
        what(tables).unwrap_or_else(|error| {
            tracing::warn!("the index of chunks: {error}; remove farmhand/chunks-1.sqlite in the store to have it made anew");
            T::default()
        })
    }
}

impl Store {
    /// Where these chunks are said to be.
    pub(super) fn places(&self, chunks: &[Chunk]) -> Vec<Option<Place>> {
        let mut places = self.index.with(|tables| tables.places(chunks));
        places.resize(chunks.len(), None);
        places
    }

    /// It is not there. Whether the place is forgotten, so that another one may be found.
    pub(super) fn forget_place(&self, place: &Place) -> bool {
        // A blob that is there may have rotted, or a chunk have the same key.
        let is_gone = self.is_there(&place.blob).is_ok_and(|found| found.is_none());
        is_gone && self.index.with(|tables| tables.forget(&place.blob).map(|()| true))
    }

    /// Has the chunks of a stored blob indexed.
    pub(super) fn index_soon(&self, id: BlobId) {
        if self.index.tables.is_none() || id.size_bytes < MIN_BYTES {
            return;
        }
        let mut waiting = self.index.waiting();
        if waiting.len() < MAX_WAITING {
            waiting.push_back(id);
        } else {
            self.index.all.store(true, Relaxed);
        }
        self.index.wake.notify_one();
    }

    /// Has the whole store looked through again: blobs have gone.
    pub(super) fn index_all(&self) {
        self.index.all.store(true, Relaxed);
        self.index.wake.notify_one();
    }

    /// Whether chunks are indexed at all.
    pub fn indexes_chunks(&self) -> bool {
        self.index.tables.is_some()
    }

    /// What is indexed, and what is still to be.
    pub fn indexed(&self) -> Indexed {
        let (blobs, complete) = self.index.with(Tables::count);
        let waiting = self.index.waiting().len() as u64 + self.index.at_work.load(Relaxed);
        Indexed { blobs, waiting, complete: complete && !self.index.all.load(Relaxed) }
    }

    /// Waits until there is something to index.
    pub async fn index_is_behind(&self) {
        while !self.index.all.load(Relaxed) && self.index.waiting().is_empty() {
            self.index.wake.notified().await;
        }
        if self.index.tables.is_none() {
            std::future::pending().await
        }
    }

    /// Indexes what is waiting, with low priority, until nothing is, or until it is stopped.
    ///
    /// # Errors
    /// If the store cannot be listed.
    pub fn index(&self, work: &Work) -> Result<(), DiskError> {
        let Some(tables) = &self.index.tables else { return Ok(()) };
        self.pool(1, true)?.install(|| {
            let done = |result: rusqlite::Result<()>| self.index.with(|_| result);
            loop {
                if work.is_stopped() {
                    return Ok(());
                }
                let next = {
                    let mut waiting = self.index.waiting();
                    let next = waiting.pop_front();
                    self.index.at_work.store(u64::from(next.is_some()), Relaxed);
                    next
                };
                if let Some(id) = next {
                    // If this process ends before that, the store is to be looked through.
                    done(tables.set_complete(false));
                    done(self.index_blob(tables, &id, true, work));
                    self.index.at_work.store(0, Relaxed);
                } else if self.index.all.swap(false, Relaxed) {
                    done(tables.set_complete(false));
                    match self.look_through(tables, work) {
                        Ok(Ok(())) => {}
                        Ok(Err(Stopped)) => {
                            self.index.all.store(true, Relaxed);
                            return Ok(());
                        }
                        // Not again and again: with the next blob that is removed, or the next start.
                        Err(error) => return Err(error),
                    }
                } else {
                    done(tables.set_complete(true));
                    return Ok(());
                }
            }
        })
    }

    /// Forgets the blobs that have gone, and indexes those that are not.
    fn look_through(&self, tables: &Tables, work: &Work) -> Result<Result<(), Stopped>, DiskError> {
        let mut gone = 0;
        for id in self.index.with(Tables::blobs) {
            if let Err(stopped) = work.go_on() {
                return Ok(Err(stopped));
            }
            if self.is_there(&id)?.is_none() {
                self.index.with(|tables| tables.forget(&id));
                gone += 1;
            }
        }
        if gone > 0 {
            self.index.with(Tables::sweep);
        }
        for prefix in 0..=u8::MAX {
            let mut ids = Vec::new();
            self.blobs_with_prefix(prefix, |item| {
                if let Item::Blob(id) = item
                    && id.size_bytes >= MIN_BYTES
                {
                    ids.push(id);
                }
            })?;
            for id in ids {
                if let Err(stopped) = work.go_on() {
                    return Ok(Err(stopped));
                }
                let result = self.index_blob(tables, &id, false, work);
                self.index.with(|_| result);
            }
        }
        Ok(Ok(()))
    }

    /// Indexes one blob: soon if it is new, or else without haste. What cannot be read is left to the scrub, and what is cut short to the next start.
    fn index_blob(
        &self,
        tables: &Tables,
        id: &BlobId,
        is_urgent: bool,
        work: &Work,
    ) -> rusqlite::Result<()> {
        if tables.has(id)? {
            return Ok(());
        }
        let path = self.layout.blob(id).1;
        let file = match File::open(&path).on("open", &path) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!("not indexed: {error}: {}", error.source);
                return Ok(());
            }
        };
        let number = tables.begin_blob(id)?;
        let (mut chunker, mut noted, mut offset) = (Chunker::new(file), Vec::new(), 0);
        loop {
            let next = match chunker.next_chunk() {
                Ok(next) => next.map(|(chunk, _)| chunk),
                Err(error) => {
                    tracing::debug!("not indexed to its end: {}: {error}", path.display());
                    return tables.add(number, &mut noted);
                }
            };
            let Some(chunk) = next else { break };
            // Whoever sends something now needs the processor more.
            if !is_urgent || self.admitted_bytes.load(Relaxed) > 0 {
                rest_if_gentle();
            }
            if work.is_stopped() {
                return Ok(());
            }
            noted.push((chunk.id, offset));
            offset += u64::from(chunk.size_bytes);
            if noted.len() >= AT_ONCE {
                tables.add(number, &mut noted)?;
            }
        }
        tables.add(number, &mut noted)?;
        tables.end_blob(number)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use sha2::{Digest as _, Sha256};

    use super::{super::Options, *};
    use crate::store::Begin;

    fn open(dir: &Path) -> Arc<Store> {
        Store::open(dir, Options::default()).unwrap()
    }

    fn store(store: &Arc<Store>, content: &[u8]) -> BlobId {
        let digest = Digest::from_bytes(Sha256::digest(content).into());
        let id = BlobId { digest, size_bytes: content.len() as u64 };
        if let Begin::Receive(ticket) = store.begin(id).unwrap() {
            ticket.receive([Ok(bytes::Bytes::copy_from_slice(content))]).unwrap();
        }
        id
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    fn chunks(content: &[u8]) -> Vec<Chunk> {
        let (mut chunker, mut chunks) = (Chunker::new(content), Vec::new());
        while let Some((chunk, _)) = chunker.next_chunk().unwrap() {
            chunks.push(chunk);
        }
        chunks
    }

    #[test]
    fn what_is_stored_is_indexed_and_so_is_what_was_stored_before() {
        let dir = tempfile::tempdir().unwrap();
        let (first, small) = (noise(400_000, 1), noise(MIN_BYTES as usize - 1, 2));
        let opened = open(dir.path());
        let id = store(&opened, &first);
        store(&opened, &small);
        assert_eq!(opened.known_chunks(&chunks(&first)), 0);
        opened.index(&Work::default()).unwrap();
        let all = chunks(&first);
        assert_eq!(opened.known_chunks(&all), all.len());
        assert_eq!(
            opened.places(&all[1..2])[0],
            Some(Place { blob: id, offset: all[0].size_bytes.into() })
        );
        assert_eq!(opened.known_chunks(&chunks(&small)), 0);
        assert_eq!(opened.indexed(), Indexed { blobs: 1, waiting: 0, complete: true });
        // Killed before it is indexed.
        let second = noise(300_000, 3);
        store(&opened, &second);
        opened.index.with(|tables| tables.set_complete(false));
        drop(opened);
        let opened = open(dir.path());
        assert!(!opened.indexed().complete);
        opened.index(&Work::default()).unwrap();
        assert_eq!(opened.known_chunks(&chunks(&second)), chunks(&second).len());
    }

    #[test]
    fn an_index_that_is_gone_or_damaged_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let content = noise(400_000, 1);
        let opened = open(dir.path());
        store(&opened, &content);
        opened.index(&Work::default()).unwrap();
        let path = opened.layout.chunk_index();
        drop(opened);
        for damage in [0, 1] {
            for file in files(&path) {
                let _ = std::fs::remove_file(file);
            }
            if damage == 1 {
                std::fs::File::create(&path).unwrap().write_all(&noise(10_000, 9)).unwrap();
            }
            let opened = open(dir.path());
            assert_eq!(opened.known_chunks(&chunks(&content)), 0);
            opened.index(&Work::default()).unwrap();
            assert_eq!(opened.known_chunks(&chunks(&content)), chunks(&content).len());
        }
    }

    #[test]
    fn what_has_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (stays, goes) = (noise(400_000, 1), noise(400_000, 2));
        let opened = open(dir.path());
        store(&opened, &stays);
        let id = store(&opened, &goes);
        opened.index(&Work::default()).unwrap();
        std::fs::remove_file(opened.layout.blob(&id).1).unwrap();
        opened.index_all();
        opened.index(&Work::default()).unwrap();
        assert_eq!(opened.known_chunks(&chunks(&goes)), 0);
        assert_eq!(opened.known_chunks(&chunks(&stays)), chunks(&stays).len());
        let rows: i64 = opened.index.with(|tables| {
            tables.read().query_row("SELECT COUNT(*) FROM chunks", [], |row| row.get(0))
        });
        assert_eq!(rows as usize, chunks(&stays).len());
    }

    #[test]
    fn what_two_blobs_share_is_known_when_either_has_gone() {
        for goes in [0, 1] {
            let dir = tempfile::tempdir().unwrap();
            let opened = open(dir.path());
            let first = noise(400_000, 1);
            let both = [first.clone(), [&first[..], b"more"].concat()];
            let ids = both.each_ref().map(|content| {
                let id = store(&opened, content);
                opened.index(&Work::default()).unwrap();
                id
            });
            std::fs::remove_file(opened.layout.blob(&ids[goes]).1).unwrap();
            if goes == 1 {
                opened.index_all();
                opened.index(&Work::default()).unwrap();
            }
            let all = chunks(&both[1 - goes]);
            let known = opened.places(&all).into_iter().flatten();
            let known =
                known.filter(|place| place.blob == ids[1 - goes] || opened.forget_place(place));
            assert_eq!(known.count(), all.len());
            let places = opened.places(&all).into_iter().flatten();
            assert_eq!(places.filter(|place| place.blob == ids[1 - goes]).count(), all.len());
        }
    }

    #[test]
    fn what_was_not_indexed_to_its_end_is_indexed_again() {
        let dir = tempfile::tempdir().unwrap();
        let content = noise(400_000, 1);
        let opened = open(dir.path());
        let id = store(&opened, &content);
        // As if the process had been killed after the first rows.
        opened.index.with(|tables| {
            tables.set_complete(false)?;
            tables.begin_blob(&id)
        });
        drop(opened);
        let opened = open(dir.path());
        opened.index(&Work::default()).unwrap();
        assert_eq!(opened.known_chunks(&chunks(&content)), chunks(&content).len());
        assert!(opened.indexed().complete);
    }

    #[test]
    fn a_store_without_an_index_knows_no_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { index_chunks: false, ..Options::default() };
        let opened = Store::open(dir.path(), options).unwrap();
        let content = noise(400_000, 1);
        store(&opened, &content);
        opened.index(&Work::default()).unwrap();
        assert_eq!(opened.known_chunks(&chunks(&content)), 0);
        assert!(!opened.layout.chunk_index().exists());
    }
}
