//! What is known of files from earlier scans: SQLite, shared by all processes of the user.
//!
//! Derived data. Whatever is wrong with it costs time, never a job: a corrupt cache is set aside
//! and begun anew, one that cannot be used is done without, and both are warned about once. A row whose
//! checksum is wrong counts as missing: its file is hashed again.

#[cfg(test)]
mod bit_rot;
mod checksum;
mod health;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
    ffi, params,
};

pub use health::{CacheHealth, CacheState};

use crate::{
    disk::{Fingerprint, Lock, LockError, unix_ns},
    domain::{Digest, RelPath},
};
use checksum::RowChecksum;

/// In the name of the file: another layout gets another file, and versions do not quarrel.
const VERSION: i64 = 3;
const FILE_NAME: &str = "hashes-3.sqlite";

/// How long another process may hold the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Roots that have not been scanned for so long are forgotten: half a year, in seconds.
const FORGOTTEN_AFTER_S: i64 = 183 * 86_400;

/// That a root was scanned is noted once a day, in seconds.
const NOTED_EVERY_S: i64 = 86_400;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS roots (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL UNIQUE,
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        used_s INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS files (
        root INTEGER NOT NULL,
        path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        device INTEGER NOT NULL,
        born_ns INTEGER NOT NULL,
        hashed_at_ns INTEGER NOT NULL,
        digest BLOB NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (root, path)
    ) STRICT, WITHOUT ROWID;
";

/// The columns of `files` that [`read_row`] reads. A query can have the root behind them.
const COLUMNS: &str =
    "path, size_bytes, mtime_ns, ctime_ns, inode, device, born_ns, hashed_at_ns, digest, checksum";

const ROOT_COLUMN: usize = 10;

/// Writes a row: see [`insert_row`].
const INSERT: &str =
    "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// What was found out about a file, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheRow {
    pub fingerprint: Fingerprint,
    /// The time just before the first byte was read, in nanoseconds since 1970.
    pub hashed_at_ns: i64,
    pub digest: Digest,
}

/// A folder whose files are in the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root<'a> {
    pub path: &'a Path,
    /// What `stat` says of the folder, by which it is known under another name.
    pub device: u64,
    pub inode: u64,
}

/// What the cache has of one folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CachedRoot {
    /// The folder, with unreadable characters replaced.
    pub path: String,
    /// How many files.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// When it was last scanned, in seconds since 1970, within a day.
    pub used_s: i64,
}

/// The hash cache, or the lack of one.
#[derive(Debug)]
pub struct HashCache {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    path: PathBuf,
    read_only: bool,
}

/// What became of rows that were to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    /// They are, or there is no cache.
    Done,
    /// Another process writes; they can be saved later.
    Busy,
}

impl HashCache {
    /// Opens the cache in this directory, making it if needed; `None` means that there is none.
    pub fn open(dir: Option<&Path>) -> Self {
        let Some(dir) = dir else { return Self { open: None } };
        let path = dir.join(FILE_NAME);
        let connection = match fs::create_dir_all(dir) {
            Ok(()) => {
                let _lock = lock(&path);
                if !path.exists() {
                    remove_earlier_layouts(dir);
                }
                match connect(&path) {
                    Err(error) if is_corrupt(&error) => {
                        begin_anew(&path, |_| Ok(())).map(|(fresh, ())| fresh)
                    }
                    connection => connection,
                }
            }
            Err(error) => Err(refused(&error.to_string())),
        };
        let error = match connection {
            Ok(connection) => {
                return Self { open: Some(Open { connection, path, read_only: false }) };
            }
            Err(error) => error,
        };
        if is_refused(&error)
            && let Ok(connection) = connect_read_only(&path)
        {
            tracing::warn!(
                "the hash cache {} can be read only: {error}; what is hashed now is hashed again next \
                 time",
                path.display()
            );
            return Self { open: Some(Open { connection, path, read_only: true }) };
        }
        warn_unusable(&path, &explain(&error));
        Self { open: None }
    }

    /// Calls `begin`, and gives what that returns all that is known of files below this root, by their
    /// paths. If the cache turns out to be corrupt on the way, it begins again.
    pub(super) fn compare<C>(
        &mut self,
        root: Root,
        begin: impl Fn() -> C,
        row: impl Fn(&mut C, &str, CacheRow),
    ) -> C {
        let read_only = self.open.as_ref().is_some_and(|open| open.read_only);
        let compared = self.with(|connection| {
            let mut comparison = begin();
            let Some((id, mut damaged)) = find_root(connection, root, read_only)? else {
                return Ok((comparison, 0));
            };
            let found = each(connection, id, root.path, |path, found| {
                row(&mut comparison, path, found);
            })?;
            damaged += found.len();
            if !read_only {
                unless_busy(remove_damaged(connection, &found))?;
            }
            Ok((comparison, damaged))
        });
        let Some((comparison, damaged)) = compared else { return begin() };
        if damaged > 0
            && let Some((file, _)) = self.file()
        {
            tracing::warn!(
                "damaged entries (wrong checksum) in the hash cache {}: {damaged}; their files are hashed \
                 again; if this comes back, check the disk and the memory of this machine",
                file.display()
            );
        }
        comparison
    }

    /// How many rows are damaged: their checksums are wrong, or they belong to no root. `None` if the
    /// cache cannot be read.
    pub fn damaged(&mut self) -> Option<u64> {
        self.with(|connection| Ok(damaged_rows(connection)?.len() as u64))
    }

    /// Removes the damaged rows, if the cache can be written to, and returns how many there were; `None`
    /// if it cannot be read.
    pub(super) fn remove_damaged(&mut self) -> Option<u64> {
        let read_only = self.open.as_ref()?.read_only;
        self.with(|connection| {
            let damaged = damaged_rows(connection)?;
            if !read_only {
                unless_busy(remove_damaged(connection, &damaged))?;
            }
            Ok(damaged.len() as u64)
        })
    }

    /// Notes what was found out, and that there are no such files any more as in `gone`.
    pub(super) fn save(
        &mut self,
        root: Root,
        rows: &[(RelPath, CacheRow)],
        gone: &[Box<str>],
    ) -> Saved {
        let read_only = self.open.as_ref().is_none_or(|open| open.read_only);
        if read_only || (rows.is_empty() && gone.is_empty()) {
            return Saved::Done;
        }
        let saved = self.with(|connection| match save(connection, root, rows, gone) {
            Err(error) if is_busy(&error) => Ok(Saved::Busy),
            saved => saved.map(|()| Saved::Done),
        });
        saved.unwrap_or(Saved::Done)
    }

    /// Where it is, and how large, in bytes; `None` if there is none.
    pub fn file(&self) -> Option<(&Path, u64)> {
        let path = self.open.as_ref()?.path.as_path();
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        Some((path, size(path) + size(&with_suffix(path, "-wal"))))
    }

    /// What it has of each folder, the one with the most files first; `None` if it cannot be read.
    pub fn roots(&mut self) -> Option<Vec<CachedRoot>> {
        self.with(|connection| {
            let mut query = connection.prepare(
                "SELECT roots.path, used_s, count(files.path), coalesce(sum(size_bytes), 0)
                 FROM roots LEFT JOIN files ON files.root = roots.id
                 GROUP BY roots.id ORDER BY 3 DESC, 1",
            )?;
            let rows = query.query_map([], |row| {
                Ok(CachedRoot {
                    path: String::from_utf8_lossy(&row.get::<_, Vec<u8>>(0)?).into_owned(),
                    files: row.get::<_, i64>(2)?.cast_unsigned(),
                    bytes: row.get::<_, i64>(3)?.cast_unsigned(),
                    used_s: row.get(1)?,
                })
            })?;
            rows.collect()
        })
    }

    /// All entries, or those of some folders only, or so many of them by chance: the folder, the path
    /// below it, and what is known. `None` if it cannot be read.
    pub(super) fn entries(
        &mut self,
        only: &[PathBuf],
        at_most: Option<u64>,
    ) -> Option<Vec<(PathBuf, String, CacheRow)>> {
        let chosen = |root: &Path| only.is_empty() || only.iter().any(|only| only == root);
        let limit = at_most.map_or(i64::MAX, |most| i64::try_from(most).unwrap_or(i64::MAX));
        self.with(|connection| {
            let mut roots = Vec::new();
            connection
                .prepare("SELECT id, path FROM roots")?
                .query_map([], |row| {
                    let Some(root) = root_of(&row.get::<_, Vec<u8>>(1)?) else { return Ok(()) };
                    if chosen(&root) {
                        let checksum = RowChecksum::new(root_key(&root));
                        roots.push((row.get::<_, i64>(0)?, root, checksum));
                    }
                    Ok(())
                })?
                .collect::<rusqlite::Result<()>>()?;
            let ids: Vec<_> = roots.iter().map(|(id, ..)| id.to_string()).collect();
            let mut query = connection.prepare(&format!(
                "SELECT {COLUMNS}, root FROM files WHERE root IN ({}) ORDER BY random() LIMIT ?1",
                ids.join(",")
            ))?;
            let mut rows = query.query([limit])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(ROOT_COLUMN)?;
                let Some((_, root, checksum)) = roots.iter().find(|(root, ..)| *root == id) else {
                    continue;
                };
                if let Ok((path, found)) = read_row(row, *checksum)? {
                    entries.push((root.clone(), path.to_owned(), found));
                }
            }
            Ok(entries)
        })
    }

    /// Forgets all folders, or some. Returns how many files; `None` if it cannot be written to.
    pub fn clear(&mut self, only: &[PathBuf]) -> Option<u64> {
        if self.open.as_ref()?.read_only {
            return None;
        }
        self.with(|connection| {
            let transaction = begin(connection)?;
            let mut removed = 0;
            if only.is_empty() {
                removed += transaction.execute("DELETE FROM files", [])?;
                transaction.execute("DELETE FROM roots", [])?;
            }
            for root in only {
                if let Some(id) = root_id(&transaction, root)? {
                    removed += transaction.execute("DELETE FROM files WHERE root = ?1", [id])?;
                    transaction.execute("DELETE FROM roots WHERE id = ?1", [id])?;
                }
            }
            transaction.commit()?;
            connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?;
            Ok(removed as u64)
        })
    }

    /// Does something with the cache. If it turns out to be corrupt, begins it anew and tries once
    /// more; if anything else is wrong, goes on without it.
    fn with<T>(&mut self, action: impl Fn(&mut Connection) -> rusqlite::Result<T>) -> Option<T> {
        let Open { mut connection, path, read_only } = self.open.take()?;
        let done = match action(&mut connection) {
            Err(error) if is_corrupt(&error) && !read_only => {
                drop(connection);
                let _lock = lock(&path);
                begin_anew(&path, action)
            }
            done => done.map(|value| (connection, value)),
        };
        match done {
            Ok((connection, value)) => {
                self.open = Some(Open { connection, path, read_only });
                Some(value)
            }
            Err(error) => {
                warn_unusable(&path, &explain(&error));
                None
            }
        }
    }
}

fn warn_unusable(path: &Path, error: &str) {
    tracing::warn!(
        "the hash cache {} cannot be used: {error}; files are hashed again next time, unless you choose another place with --cache-dir",
        path.display()
    );
}

fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => format!("{error}: make room there"),
        _ if is_busy(error) => format!("{error}: another farmhand has it"),
        _ => error.to_string(),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether it may be read, though not written to.
fn is_refused(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, PermissionDenied, ReadOnly, SystemIoFailure};
    let code = error.sqlite_error_code();
    matches!(code, Some(CannotOpen | PermissionDenied | ReadOnly | SystemIoFailure))
}

/// An error of ours that is about the way to the file, not about what is in it.
fn refused(reason: &str) -> rusqlite::Error {
    let code = ffi::Error::new(ffi::SQLITE_CANTOPEN);
    rusqlite::Error::SqliteFailure(code, Some(reason.to_owned()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Taken while a cache is opened or begun anew: SQLite does not always wait for another process that
/// makes the same file, or switches it to WAL, at the same time.
fn lock(path: &Path) -> Option<Lock> {
    let start = Instant::now();
    loop {
        match Lock::acquire(&path.with_extension("lock")) {
            Err(LockError::Held { .. }) if start.elapsed() < BUSY_TIMEOUT => {
                thread::sleep(Duration::from_millis(5));
            }
            // Without a lock it is done all the same: all that can be lost is time.
            lock => return lock.ok(),
        }
    }
}

/// Opens the database, under the lock.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > VERSION {
        return Err(refused("a newer farmhand has written it"));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(SCHEMA)?;
    if version != VERSION {
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(connection)
}

/// Opens a database that cannot be written to: on a disk that is mounted so, or another user's.
fn connect_read_only(path: &Path) -> rusqlite::Result<Connection> {
    // Nothing is read until something is asked for.
    let ask = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM roots", [], |_| Ok(()))
    };
    Ok(open_read_only(path, ask)?.0)
}

/// Opens a database for reading, and asks it something.
fn open_read_only<T>(
    path: &Path,
    ask: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<(Connection, T)> {
    let open = |name: &Path, flags| -> rusqlite::Result<(Connection, T)> {
        let connection = Connection::open_with_flags(name, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let answer = ask(&connection)?;
        Ok((connection, answer))
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    open(path, flags).or_else(|error| {
        // Where its companions cannot be made, it can be read if it has none: nobody writes to it.
        let text = path.to_str().filter(|_| !with_suffix(path, "-wal").exists()).ok_or(error)?;
        let text = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let name = format!("file:{text}?immutable=1");
        open(Path::new(&name), flags | OpenFlags::SQLITE_OPEN_URI)
    })
}

/// Whether an error is about what is in the file, and not about the way to it.
fn is_corrupt(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        ConstraintViolation, DatabaseCorrupt, NotADatabase, SchemaChanged, TypeMismatch, Unknown,
    };
    match error.sqlite_error_code() {
        Some(code) => matches!(
            code,
            // `Unknown` is SQLite's general error: a table with other columns, for instance.
            DatabaseCorrupt
                | NotADatabase
                | ConstraintViolation
                | SchemaChanged
                | TypeMismatch
                | Unknown
        ),
        // Values that are not of the type they should be, text that is no UTF-8, and the like.
        None => true,
    }
}

/// Sets a corrupt cache aside, so that somebody may look at it, begins a new one, and does what
/// could not be done; under the lock. Of several processes that find it corrupt, one sets it aside.
fn begin_anew<T>(
    path: &Path,
    action: impl Fn(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<(Connection, T)> {
    let attempt = || {
        let mut connection = connect(path)?;
        let value = action(&mut connection)?;
        Ok((connection, value))
    };
    match attempt() {
        Err(error) if is_corrupt(&error) => {}
        done => return done,
    }
    let aside = path.with_extension(format!("corrupt-{}", unix_ns(SystemTime::now())));
    tracing::warn!(
        "the hash cache {} is corrupt: it is begun anew, and the old one kept as {}",
        path.display(),
        aside.display()
    );
    for companion in ["-wal", "-shm", ""] {
        // A companion need not be there; that the database cannot be renamed is said by what follows.
        let _ = fs::rename(with_suffix(path, companion), with_suffix(&aside, companion));
    }
    attempt()
}

/// Removes what an earlier farmhand left in the directory: only that version can read it.
fn remove_earlier_layouts(dir: &Path) {
    for version in 1..VERSION {
        for suffix in ["-wal", "-shm", ""] {
            // It need not exist; one that cannot be removed takes up room, and no more.
            let _ = fs::remove_file(dir.join(format!("hashes-{version}.sqlite{suffix}")));
        }
        let _ = fs::remove_file(dir.join(format!("hashes-{version}.lock")));
    }
}

/// Roots need not be UTF-8.
fn root_key(root: &Path) -> &[u8] {
    root.as_os_str().as_encoded_bytes()
}

/// The root of a key. On Windows only what is UTF-8 can be made a path again.
fn root_of(key: &[u8]) -> Option<PathBuf> {
    #[cfg(unix)]
    return Some(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(key).into());
    #[cfg(not(unix))]
    std::str::from_utf8(key).ok().map(PathBuf::from)
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().cast_signed()
}

/// For writing: to begin by reading would not wait for others that write.
fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn root_id(connection: &Connection, root: &Path) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM roots WHERE path = ?1")?
        .query_row([root_key(root)], |row| row.get(0))
        .optional()
}

/// The root's number. One that is new takes over what is known of it under another name, or as a part
/// of another root. With it, how many damaged rows were found meanwhile.
fn find_root(
    connection: &mut Connection,
    root: Root,
    read_only: bool,
) -> rusqlite::Result<Option<(i64, usize)>> {
    let found = connection
        .prepare_cached("SELECT id, used_s FROM roots WHERE path = ?1")?
        .query_row([root_key(root.path)], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    let now = now_s();
    match found {
        Some((id, used_s)) => {
            if !read_only && now.saturating_sub(used_s) >= NOTED_EVERY_S {
                let noted = connection
                    .execute("UPDATE roots SET used_s = ?1 WHERE id = ?2", params![now, id]);
                unless_busy(noted)?;
            }
            Ok(Some((id, 0)))
        }
        None if read_only => Ok(None),
        None => {
            let damaged = unless_busy(take_over(connection, root, now))?.unwrap_or_default();
            Ok(root_id(connection, root.path)?.map(|id| (id, damaged)))
        }
    }
}

/// Does without a write if another process writes all the time.
fn unless_busy<T>(done: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match done {
        Err(error) if is_busy(&error) => Ok(None),
        done => done.map(Some),
    }
}

/// Begins a root with what others have of it, if they have something, and forgets those that nobody
/// has used for long. Returns how many rows of the others are damaged; they are removed.
///
/// The other root can be a wrong one, if its own row is damaged: each row that is copied still has to
/// match a file in all of its evidence.
fn take_over(connection: &mut Connection, root: Root, now: i64) -> rusqlite::Result<usize> {
    let same: Option<(i64, Vec<u8>)> = connection
        .prepare_cached(
            "SELECT id, path FROM roots WHERE inode = ?1 AND device = ?2 AND inode != 0
             ORDER BY used_s DESC LIMIT 1",
        )?
        .query_row(params![root.inode.cast_signed(), root.device.cast_signed()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let mut source = same.map(|(id, key)| (id, RowChecksum::new(&key), String::new()));
    if source.is_none() {
        for above in root.path.ancestors().skip(1) {
            if let Some(id) = root_id(connection, above)?
                && let Some(below) = root.path.strip_prefix(above).ok().and_then(Path::to_str)
            {
                let prefix = format!("{}/", below.replace(std::path::MAIN_SEPARATOR, "/"));
                source = Some((id, RowChecksum::new(root_key(above)), prefix));
                break;
            }
        }
    }
    let Some((source, checksum, prefix)) = source else { return Ok(0) };
    let transaction = begin(connection)?;
    let id = insert_root(&transaction, root, now)?;
    let damaged = copy_rows(&transaction, (source, checksum, &prefix), id, root)?;
    remove_rows(&transaction, &damaged)?;
    let forgotten = now.saturating_sub(FORGOTTEN_AFTER_S);
    transaction.execute(
        "DELETE FROM files WHERE root IN (SELECT id FROM roots WHERE used_s < ?1)",
        [forgotten],
    )?;
    transaction.execute("DELETE FROM roots WHERE used_s < ?1", [forgotten])?;
    transaction.commit()?;
    Ok(damaged.len())
}

/// Copies the rows below a prefix from one root to another, with new checksums. Returns those that are
/// damaged: these are not copied.
fn copy_rows(
    transaction: &Transaction,
    (source, checksum, prefix): (i64, RowChecksum, &str),
    id: i64,
    root: Root,
) -> rusqlite::Result<Vec<DamagedRow>> {
    // All paths with this prefix: `0` comes after `/`. An empty one is that of all.
    let end = prefix.strip_suffix('/').map_or("\u{10ffff}".to_owned(), |dir| format!("{dir}0"));
    let mut query = transaction.prepare(&format!(
        "SELECT {COLUMNS}, root FROM files WHERE root = ?1 AND path >= ?2 AND path < ?3"
    ))?;
    let (mut found, mut damaged) = (Vec::new(), Vec::new());
    let mut rows = query.query(params![source, prefix, end])?;
    while let Some(row) = rows.next()? {
        match read_row(row, checksum)? {
            Ok((path, row)) => found.push((Box::<str>::from(path), row)),
            Err(row) => damaged.push(row),
        }
    }
    // All are read before the first is written: in a table that is not in order, a query meets rows again
    // that are inserted meanwhile, without end.
    let checksum = RowChecksum::new(root_key(root.path));
    let mut insert = transaction.prepare_cached(INSERT)?;
    for (path, row) in found {
        let path = path.strip_prefix(prefix).unwrap_or(&path);
        insert_row(&mut insert, id, checksum, path, &row)?;
    }
    Ok(damaged)
}

fn insert_root(connection: &Connection, root: Root, now: i64) -> rusqlite::Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO roots (path, device, inode, used_s) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (path) DO UPDATE SET device = ?2, inode = ?3, used_s = ?4 RETURNING id",
        )?
        .query_row(
            params![root_key(root.path), root.device.cast_signed(), root.inode.cast_signed(), now],
            |row| row.get(0),
        )
}

/// The key of a row that cannot be used: root, and path in bytes that need not be UTF-8.
type DamagedRow = (i64, Box<[u8]>);

/// Reads [`COLUMNS`] and the root: a row whose checksum matches, or the key of one that is damaged.
fn read_row<'a>(
    row: &'a Row,
    checksum: RowChecksum,
) -> rusqlite::Result<Result<(&'a str, CacheRow), DamagedRow>> {
    let values = || -> rusqlite::Result<_> {
        let fingerprint = Fingerprint {
            size_bytes: row.get::<_, i64>(1)?.cast_unsigned(),
            mtime_ns: row.get(2)?,
            ctime_ns: row.get(3)?,
            inode: row.get::<_, i64>(4)?.cast_unsigned(),
            device: row.get::<_, i64>(5)?.cast_unsigned(),
            born_ns: row.get(6)?,
        };
        let (hashed_at_ns, digest) = (row.get(7)?, Digest::from_bytes(row.get(8)?));
        let found = CacheRow { fingerprint, hashed_at_ns, digest };
        let path = row.get_ref(0)?.as_str()?;
        Ok((checksum.of(path, &found) == row.get::<_, i64>(9)?).then_some((path, found)))
    };
    match values() {
        Ok(Some(found)) => return Ok(Ok(found)),
        Ok(None) => {}
        // A value of another type.
        Err(error) if error.sqlite_error_code().is_none() => {}
        Err(error) => return Err(error),
    }
    Ok(Err((row.get(ROOT_COLUMN)?, row.get_ref(0)?.as_bytes()?.into())))
}

/// All files of a root, sorted by path. Returns the rows that are damaged.
fn each(
    connection: &Connection,
    root: i64,
    root_path: &Path,
    mut visit: impl FnMut(&str, CacheRow),
) -> rusqlite::Result<Vec<DamagedRow>> {
    let query = format!("SELECT {COLUMNS}, root FROM files WHERE root = ?1 ORDER BY path");
    let mut query = connection.prepare_cached(&query)?;
    let (checksum, mut damaged) = (RowChecksum::new(root_key(root_path)), Vec::new());
    let mut rows = query.query([root])?;
    while let Some(row) = rows.next()? {
        match read_row(row, checksum)? {
            Ok((path, found)) => visit(path, found),
            Err(row) => damaged.push(row),
        }
    }
    Ok(damaged)
}

/// The damaged rows of all roots, and those of none.
fn damaged_rows(connection: &Connection) -> rusqlite::Result<Vec<DamagedRow>> {
    let checksums = connection
        .prepare("SELECT id, path FROM roots")?
        .query_map([], |row| Ok((row.get(0)?, RowChecksum::new(&row.get::<_, Vec<u8>>(1)?))))?
        .collect::<rusqlite::Result<HashMap<i64, _>>>()?;
    let no_root = RowChecksum::new(b"");
    let mut query = connection.prepare(&format!("SELECT {COLUMNS}, root FROM files"))?;
    let (mut rows, mut damaged) = (query.query([])?, Vec::new());
    while let Some(row) = rows.next()? {
        let checksum = checksums.get(&row.get(ROOT_COLUMN)?).copied().unwrap_or(no_root);
        damaged.extend(read_row(row, checksum)?.err());
    }
    Ok(damaged)
}

/// Removes rows that were found to be damaged.
fn remove_damaged(connection: &mut Connection, damaged: &[DamagedRow]) -> rusqlite::Result<()> {
    if damaged.is_empty() {
        return Ok(());
    }
    let transaction = begin(connection)?;
    remove_rows(&transaction, damaged)?;
    transaction.commit()
}

/// Removes rows that were found to be damaged.
///
/// # Errors
/// If one cannot be found under its key: then the table is not in order, and the cache is corrupt.
fn remove_rows(transaction: &Transaction, damaged: &[DamagedRow]) -> rusqlite::Result<()> {
    let mut delete = transaction
        .prepare_cached("DELETE FROM files WHERE root = ?1 AND path = CAST(?2 AS TEXT)")?;
    let mut missed = false;
    for (root, path) in damaged {
        missed |= delete.execute(params![root, path])? == 0;
    }
    // Another process may have removed it meanwhile.
    if missed && damaged_rows(transaction)?.iter().any(|row| damaged.contains(row)) {
        let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
        let message = "a damaged row cannot be removed".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(message)));
    }
    Ok(())
}

/// Runs [`INSERT`].
fn insert_row(
    insert: &mut rusqlite::CachedStatement,
    root: i64,
    checksum: RowChecksum,
    path: &str,
    row: &CacheRow,
) -> rusqlite::Result<()> {
    let seen = &row.fingerprint;
    insert.execute(params![
        root,
        path,
        seen.size_bytes.cast_signed(),
        seen.mtime_ns,
        seen.ctime_ns,
        seen.inode.cast_signed(),
        seen.device.cast_signed(),
        seen.born_ns,
        row.hashed_at_ns,
        row.digest.as_bytes(),
        checksum.of(path, row),
    ])?;
    Ok(())
}

fn save(
    connection: &mut Connection,
    root: Root,
    rows: &[(RelPath, CacheRow)],
    gone: &[Box<str>],
) -> rusqlite::Result<()> {
    let transaction = begin(connection)?;
    {
        let id = insert_root(&transaction, root, now_s())?;
        let mut delete =
            transaction.prepare_cached("DELETE FROM files WHERE root = ?1 AND path = ?2")?;
        for path in gone {
            delete.execute(params![id, path])?;
        }
        let (mut insert, checksum) =
            (transaction.prepare_cached(INSERT)?, RowChecksum::new(root_key(root.path)));
        for (path, row) in rows {
            insert_row(&mut insert, id, checksum, path.as_str(), row)?;
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(number: u8) -> CacheRow {
        let fingerprint = Fingerprint {
            size_bytes: u64::from(number),
            mtime_ns: -1,
            ctime_ns: i64::MAX,
            inode: u64::MAX,
            device: 3,
            born_ns: 5,
        };
        CacheRow { fingerprint, hashed_at_ns: 7, digest: Digest::from_bytes([number; 32]) }
    }

    fn path(text: &str) -> RelPath {
        text.parse().unwrap()
    }

    /// A folder that is known by its path only.
    fn root(path: &str) -> Root<'_> {
        Root { path: Path::new(path), device: 0, inode: 0 }
    }

    impl HashCache {
        fn load(&mut self, root: Root) -> BTreeMap<String, CacheRow> {
            let insert = |all: &mut BTreeMap<String, CacheRow>, path: &str, row| {
                // They come in this order, once.
                assert!(all.last_key_value().is_none_or(|(last, _)| last.as_str() < path));
                all.insert(path.to_owned(), row);
            };
            self.compare(root, BTreeMap::new, insert)
        }

        fn keep(&mut self, root: Root, rows: &[(RelPath, CacheRow)]) {
            assert_eq!(self.save(root, rows, &[]), Saved::Done);
        }
    }

    #[test]
    fn remembers_by_root_and_across_processes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (root("/a"), root("/b"));
        let mut one = HashCache::open(Some(dir.path()));
        let mut other = HashCache::open(Some(dir.path()));
        one.keep(a, &[(path("x"), row(1)), (path("звук"), row(2))]);
        other.keep(b, &[(path("x"), row(3))]);
        one.keep(a, &[(path("x"), row(4))]);
        let known = other.load(a);
        assert_eq!(known.len(), 2);
        assert_eq!((known["x"], known["звук"]), (row(4), row(2)));
        assert_eq!(one.load(b)["x"], row(3));

        assert_eq!(one.save(a, &[], &["звук".into(), "never there".into()]), Saved::Done);
        assert_eq!(other.load(a).len(), 1);
        assert_eq!(other.load(b).len(), 1);
    }

    #[test]
    fn a_corrupt_cache_is_set_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let root = root("/r");
        for damage in [
            &b"this is no database, and long enough to be sure of it........................................................."[..],
            b"SQLite format 3\0 and then nothing of the kind",
        ] {
            fs::write(&file, damage).unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            assert!(cache.load(root).is_empty());
            cache.keep(root, &[(path("x"), row(1))]);
            assert_eq!(cache.load(root)["x"], row(1));
            drop(cache);
            assert_eq!(HashCache::open(Some(dir.path())).load(root)["x"], row(1));
        }
        let aside = fs::read_dir(dir.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains("corrupt")
        });
        assert!(aside.count() >= 1);
    }

    #[test]
    fn damage_found_later_is_healed_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = root("/r");
        let mut cache = HashCache::open(Some(dir.path()));
        let rows: Vec<_> = (0..2000).map(|i| (path(&format!("a/long/name/{i}")), row(1))).collect();
        cache.keep(root, &rows);
        drop(cache);
        // Everything but the first page, which has the schema.
        let file = dir.path().join(FILE_NAME);
        let mut content = fs::read(&file).unwrap();
        content[4096..].fill(0xa5);
        fs::write(&file, content).unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        assert!(cache.load(root).is_empty());
        cache.keep(root, &rows);
        assert_eq!(cache.load(root).len(), 2000);
    }

    #[test]
    fn text_that_is_no_text_and_tables_that_are_others_are_healed_too() {
        let root = root("/r");
        for damage in [
            "UPDATE files SET path = CAST(x'ff' AS TEXT)",
            "DROP TABLE files; CREATE TABLE files (root, path)",
            "PRAGMA ignore_check_constraints = 1; UPDATE files SET digest = x'00'",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            cache.keep(root, &[(path("x"), row(1))]);
            drop(cache);
            connect(&dir.path().join(FILE_NAME)).unwrap().execute_batch(damage).unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            cache.load(root);
            cache.keep(root, &[(path("x"), row(2))]);
            assert_eq!(cache.load(root).get("x"), Some(&row(2)), "{damage}");
        }
    }

    #[test]
    fn rows_hold_for_their_own_root_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        let others = |cache: &mut HashCache| (cache.load(root("/a")), cache.load(root("/b")));
        for damage in [
            "UPDATE files SET root = (SELECT id FROM roots WHERE path = CAST('/b' AS BLOB))",
            "UPDATE files SET path = 'y'",
            "UPDATE roots SET path = CAST('/c' AS BLOB) WHERE path = CAST('/b' AS BLOB);
             UPDATE roots SET path = CAST('/b' AS BLOB) WHERE path = CAST('/a' AS BLOB)",
        ] {
            cache.clear(&[]).unwrap();
            cache.keep(root("/b"), &[(path("z"), row(1))]);
            assert_eq!(cache.save(root("/b"), &[], &["z".into()]), Saved::Done);
            cache.keep(root("/a"), &[(path("x"), row(1))]);
            assert_eq!(cache.damaged(), Some(0), "{damage}");
            connect(&dir.path().join(FILE_NAME)).unwrap().execute_batch(damage).unwrap();
            assert_eq!(cache.damaged(), Some(1), "{damage}");
            assert_eq!(others(&mut cache), (BTreeMap::new(), BTreeMap::new()), "{damage}");
        }
    }

    #[test]
    fn damaged_rows_are_removed_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let damage = |damage: &str| connect(&file).unwrap().execute_batch(damage).unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        let rows = [(path("x"), row(1)), (path("y"), row(2)), (path("z"), row(3))];
        cache.keep(root("/r"), &rows);
        damage(
            "UPDATE files SET digest = zeroblob(32) WHERE path = 'x';
             UPDATE files SET path = CAST(x'ff' AS TEXT) WHERE path = 'y'",
        );
        assert_eq!(cache.entries(&[], None).unwrap().len(), 1);
        assert_eq!(cache.damaged(), Some(2));
        assert_eq!(cache.load(root("/r")).keys().collect::<Vec<_>>(), ["z"]);
        assert_eq!(cache.damaged(), Some(0));
        cache.keep(root("/r"), &rows[..2]);
        assert_eq!(cache.load(root("/r")).len(), 3);
        // Rows of no root are found when all are checked.
        damage("UPDATE files SET root = 99 WHERE path = 'x'");
        assert_eq!((cache.remove_damaged(), cache.damaged()), (Some(1), Some(0)));
        assert!(
            fs::read_dir(dir.path())
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains("corrupt") })
        );
    }

    #[test]
    fn damaged_rows_are_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        cache.keep(root("/p"), &[(path("sub/x"), row(1)), (path("sub/y"), row(2))]);
        let damage = "UPDATE files SET mtime_ns = 0 WHERE path = 'sub/x'";
        connect(&dir.path().join(FILE_NAME)).unwrap().execute_batch(damage).unwrap();
        assert_eq!(cache.load(root("/p/sub")).keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!(cache.damaged(), Some(0));
    }

    #[test]
    fn caches_of_earlier_layouts_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["hashes-2.sqlite", "hashes-2.sqlite-wal", "hashes-2.lock", "hashes-x.sqlite"];
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        drop(HashCache::open(Some(dir.path())));
        let left: Vec<_> = names.iter().filter(|name| dir.path().join(name).exists()).collect();
        assert_eq!(left, [&"hashes-x.sqlite"]);
        // Once: an earlier farmhand that is still in use may make its own again.
        fs::write(dir.path().join(names[0]), "").unwrap();
        drop(HashCache::open(Some(dir.path())));
        assert!(dir.path().join(names[0]).exists());
    }

    #[test]
    fn many_may_begin_together_even_a_corrupt_one() {
        for damage in [None, Some(&b"no database at all, and some more bytes than that"[..])] {
            let dir = tempfile::tempdir().unwrap();
            if let Some(damage) = damage {
                fs::write(dir.path().join(FILE_NAME), damage).unwrap();
            }
            thread::scope(|scope| {
                for number in 0..8u8 {
                    let dir = dir.path();
                    scope.spawn(move || {
                        let name = format!("/{number}");
                        let root = root(&name);
                        let mut cache = HashCache::open(Some(dir));
                        cache.keep(root, &[(path("x"), row(number))]);
                        assert_eq!(cache.load(root).get("x"), Some(&row(number)));
                    });
                }
            });
        }
    }

    #[test]
    fn a_cache_that_cannot_be_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut cache = HashCache::open(Some(&file.join("below")));
        cache.keep(root("/r"), &[(path("x"), row(1))]);
        assert!(cache.load(root("/r")).is_empty());
    }

    #[test]
    fn a_folder_is_known_under_its_new_name_and_as_a_part_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        let old = Root { path: Path::new("/p/old"), device: 7, inode: 8 };
        let rows = [(path("a"), row(1)), (path("sub/б/x"), row(2)), (path("sub0"), row(3))];
        cache.keep(old, &rows);
        assert_eq!(cache.load(Root { path: Path::new("/p/new"), ..old }).len(), 3);
        assert!(cache.load(Root { path: Path::new("/p/other"), inode: 9, ..old }).is_empty());
        assert!(cache.load(root("/p")).is_empty());
        for (below, expected) in [("sub", "б/x"), ("sub/б", "x")] {
            let below = format!("/p/old/{below}");
            let known = cache.load(root(&below));
            assert_eq!(known.keys().collect::<Vec<_>>(), [expected], "{below}");
            assert_eq!(known[expected], row(2));
        }
        // It is asked of others once: from now on, it is a folder of its own.
        cache.keep(old, &[(path("sub/y"), row(4))]);
        assert_eq!(cache.load(root("/p/old/sub")).len(), 1);
        assert_eq!(cache.load(old).len(), 4);
    }

    #[test]
    fn folders_that_nobody_has_used_for_long_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        for name in ["/old", "/used", "/above"] {
            cache.keep(root(name), &[(path("below/x"), row(1))]);
        }
        let used = |seconds: i64| {
            let connection = connect(&dir.path().join(FILE_NAME)).unwrap();
            let change = "UPDATE roots SET used_s = ?1 WHERE path != CAST('/above' AS BLOB)";
            connection.execute(change, [seconds]).unwrap();
        };
        used(now_s() - FORGOTTEN_AFTER_S - 10);
        // That it is used is noted.
        assert_eq!(cache.load(root("/used")).len(), 1);
        assert_eq!(cache.load(root("/above/below")).len(), 1);
        assert!(cache.load(root("/old")).is_empty());
        assert_eq!(cache.load(root("/used")).len(), 1);
        let all = cache.roots().unwrap();
        assert_eq!(all.iter().map(|root| root.files).sum::<u64>(), 3, "{all:?}");
    }

    #[test]
    fn a_cache_of_a_newer_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let newer = Connection::open(&file).unwrap();
        newer.execute_batch("CREATE TABLE files (other); PRAGMA user_version = 99").unwrap();
        drop(newer);
        let before = fs::read(&file).unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        cache.keep(root("/r"), &[(path("x"), row(1))]);
        assert!(cache.load(root("/r")).is_empty());
        drop(cache);
        assert!(fs::read(&file).unwrap() == before, "it was written to");
    }

    #[test]
    fn what_cannot_be_written_to_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        HashCache::open(Some(dir.path())).keep(root("/r"), &[(path("x"), row(1))]);
        let before = fs::read(&file).unwrap();
        // Opened so by hand: tests may be run by somebody who may write everywhere.
        let connection = connect_read_only(&file).unwrap();
        let mut cache =
            HashCache { open: Some(Open { connection, path: file.clone(), read_only: true }) };
        for _ in 0..2 {
            assert_eq!(cache.load(root("/r"))["x"], row(1));
            assert_eq!(cache.save(root("/r"), &[(path("y"), row(2))], &["x".into()]), Saved::Done);
            assert!(cache.load(root("/new")).is_empty());
            assert_eq!(cache.clear(&[]), None);
        }
        assert_eq!(cache.roots().unwrap()[0].files, 1);
        drop(cache);
        assert!(fs::read(&file).unwrap() == before, "it was written to");
        assert!(connect_read_only(&dir.path().join("none")).is_err());
    }

    #[test]
    fn folders_are_cleared_one_by_one_or_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        for name in ["/a", "/b", "/c"] {
            cache.keep(root(name), &[(path("x"), row(1)), (path("y"), row(2))]);
        }
        assert_eq!(cache.clear(&["/a".into(), "/none".into()]), Some(2));
        assert_eq!(cache.entries(&[], None).unwrap().len(), 4);
        assert_eq!(cache.entries(&[], Some(3)).unwrap().len(), 3);
        let of_b = cache.entries(&["/b".into(), "/none".into()], None).unwrap();
        assert!(of_b.len() == 2 && of_b.iter().all(|(root, ..)| root == Path::new("/b")));
        assert_eq!(cache.clear(&[]), Some(4));
        assert_eq!(cache.roots().unwrap(), []);
    }
}
