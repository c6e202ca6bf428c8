//! What is known of files from earlier scans: SQLite, shared by all processes of the user.
//!
//! Derived data. Whatever is wrong with it costs time, never a job: a corrupt cache is set aside
//! and begun anew, one that cannot be used is done without, and both are warned about once.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::walk::Found;
use crate::{
    disk::{Fingerprint, Lock, LockError, unix_ns},
    domain::{Digest, RelPath},
};

/// In the name of the file: another layout gets another file, and versions do not quarrel.
const FILE_NAME: &str = "hashes-1.sqlite";

/// How long another process may hold the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS roots (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE IF NOT EXISTS files (
        root INTEGER NOT NULL,
        path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        device INTEGER NOT NULL,
        hashed_at_ns INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (root, path)
    ) STRICT, WITHOUT ROWID;
";

/// What was found out about a file, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheRow {
    pub fingerprint: Fingerprint,
    /// The time just before the first byte was read, in nanoseconds since 1970.
    pub hashed_at_ns: i64,
    pub digest: Digest,
}

/// The hash cache, or the lack of one.
#[derive(Debug)]
pub struct HashCache {
    open: Option<(Connection, PathBuf)>,
}

impl HashCache {
    /// Opens the cache in this directory, making it if needed; `None` means that there is none.
    pub fn open(dir: Option<&Path>) -> Self {
        let Some(dir) = dir else { return Self { open: None } };
        let path = dir.join(FILE_NAME);
        if let Err(error) = fs::create_dir_all(dir) {
            warn_unusable(&path, &error.to_string());
            return Self { open: None };
        }
        let _lock = lock(&path);
        let connection = match connect(&path) {
            Err(error) if is_corrupt(&error) => {
                begin_anew(&path, |_| Ok(())).map(|(fresh, ())| fresh)
            }
            connection => connection,
        };
        match connection {
            Ok(connection) => Self { open: Some((connection, path)) },
            Err(error) => {
                warn_unusable(&path, &explain(&error));
                Self { open: None }
            }
        }
    }

    /// All that is known of files below this root, by their paths.
    pub(super) fn load(&mut self, root: &Path) -> HashMap<String, CacheRow> {
        self.with(|connection| load(connection, root)).unwrap_or_default()
    }

    /// Notes what was found out.
    pub(super) fn save(&mut self, root: &Path, rows: &[(RelPath, CacheRow)]) {
        if !rows.is_empty() {
            self.with(|connection| save(connection, root, rows));
        }
    }

    /// Removes what is known of files that are no longer there.
    pub(super) fn forget(
        &mut self,
        root: &Path,
        known: &HashMap<String, CacheRow>,
        there: &[Found],
    ) {
        if known.is_empty() {
            return;
        }
        let there: HashSet<&str> = there.iter().map(|found| found.path.as_str()).collect();
        let gone: Vec<&str> =
            known.keys().map(String::as_str).filter(|path| !there.contains(path)).collect();
        if !gone.is_empty() {
            self.with(|connection| forget(connection, root, &gone));
        }
    }

    /// Does something with the cache. If it turns out to be corrupt, begins it anew and tries once
    /// more; if anything else is wrong, goes on without it.
    fn with<T>(&mut self, action: impl Fn(&mut Connection) -> rusqlite::Result<T>) -> Option<T> {
        let (mut connection, path) = self.open.take()?;
        let done = match action(&mut connection) {
            Err(error) if is_corrupt(&error) => {
                drop(connection);
                let _lock = lock(&path);
                begin_anew(&path, action)
            }
            done => done.map(|value| (connection, value)),
        };
        match done {
            Ok((connection, value)) => {
                self.open = Some((connection, path));
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
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("{error}: another farmhand has it")
        }
        _ => error.to_string(),
    }
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
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(SCHEMA)?;
    Ok(connection)
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
        let with_companion = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(companion);
            PathBuf::from(name)
        };
        // A companion need not be there; that the database cannot be renamed is said by what follows.
        let _ = fs::rename(with_companion(path), with_companion(&aside));
    }
    attempt()
}

/// Roots need not be UTF-8.
fn root_key(root: &Path) -> &[u8] {
    root.as_os_str().as_encoded_bytes()
}

fn root_id(connection: &Connection, root: &Path) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM roots WHERE path = ?1")?
        .query_row([root_key(root)], |row| row.get(0))
        .optional()
}

fn load(connection: &mut Connection, root: &Path) -> rusqlite::Result<HashMap<String, CacheRow>> {
    let Some(id) = root_id(connection, root)? else { return Ok(HashMap::new()) };
    let mut query = connection.prepare_cached(
        "SELECT path, size_bytes, mtime_ns, ctime_ns, inode, device, hashed_at_ns, digest
         FROM files WHERE root = ?1",
    )?;
    let rows = query.query_map([id], |row| {
        let fingerprint = Fingerprint {
            size_bytes: row.get::<_, i64>(1)?.cast_unsigned(),
            mtime_ns: row.get(2)?,
            ctime_ns: row.get(3)?,
            inode: row.get::<_, i64>(4)?.cast_unsigned(),
            device: row.get::<_, i64>(5)?.cast_unsigned(),
        };
        let digest = Digest::from_bytes(row.get(7)?);
        Ok((row.get(0)?, CacheRow { fingerprint, hashed_at_ns: row.get(6)?, digest }))
    })?;
    rows.collect()
}

fn save(
    connection: &mut Connection,
    root: &Path,
    rows: &[(RelPath, CacheRow)],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        transaction
            .prepare_cached("INSERT INTO roots (path) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([root_key(root)])?;
        let id = root_id(&transaction, root)?;
        let mut insert = transaction.prepare_cached(
            "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        for (path, row) in rows {
            let seen = &row.fingerprint;
            insert.execute(params![
                id,
                path.as_str(),
                seen.size_bytes.cast_signed(),
                seen.mtime_ns,
                seen.ctime_ns,
                seen.inode.cast_signed(),
                seen.device.cast_signed(),
                row.hashed_at_ns,
                row.digest.as_bytes(),
            ])?;
        }
    }
    transaction.commit()
}

fn forget(connection: &mut Connection, root: &Path, gone: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(id) = root_id(&transaction, root)? {
        let mut delete =
            transaction.prepare_cached("DELETE FROM files WHERE root = ?1 AND path = ?2")?;
        for path in gone {
            delete.execute(params![id, path])?;
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u8) -> CacheRow {
        let fingerprint = Fingerprint {
            size_bytes: u64::from(number),
            mtime_ns: -1,
            ctime_ns: i64::MAX,
            inode: u64::MAX,
            device: 3,
        };
        CacheRow { fingerprint, hashed_at_ns: 7, digest: Digest::from_bytes([number; 32]) }
    }

    fn path(text: &str) -> RelPath {
        text.parse().unwrap()
    }

    #[test]
    fn remembers_by_root_and_across_processes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let mut one = HashCache::open(Some(dir.path()));
        let mut other = HashCache::open(Some(dir.path()));
        one.save(a, &[(path("x"), row(1)), (path("звук"), row(2))]);
        other.save(b, &[(path("x"), row(3))]);
        one.save(a, &[(path("x"), row(4))]);
        let known = other.load(a);
        assert_eq!(known.len(), 2);
        assert_eq!((known["x"], known["звук"]), (row(4), row(2)));
        assert_eq!(one.load(b)["x"], row(3));

        let there = Found { path: path("x"), fingerprint: row(4).fingerprint };
        one.forget(a, &known, &[there]);
        assert_eq!(other.load(a).len(), 1);
        assert_eq!(other.load(b).len(), 1);
    }

    #[test]
    fn a_corrupt_cache_is_set_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let root = Path::new("/r");
        for damage in [
            &b"this is no database, and long enough to be sure of it........................................................."[..],
            b"SQLite format 3\0 and then nothing of the kind",
        ] {
            fs::write(&file, damage).unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            assert!(cache.load(root).is_empty());
            cache.save(root, &[(path("x"), row(1))]);
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
        let root = Path::new("/r");
        let mut cache = HashCache::open(Some(dir.path()));
        let rows: Vec<_> = (0..2000).map(|i| (path(&format!("a/long/name/{i}")), row(1))).collect();
        cache.save(root, &rows);
        drop(cache);
        // Everything but the first page, which has the schema.
        let file = dir.path().join(FILE_NAME);
        let mut content = fs::read(&file).unwrap();
        content[4096..].fill(0xa5);
        fs::write(&file, content).unwrap();
        let mut cache = HashCache::open(Some(dir.path()));
        assert!(cache.load(root).is_empty());
        cache.save(root, &rows);
        assert_eq!(cache.load(root).len(), 2000);
    }

    #[test]
    fn text_that_is_no_text_and_tables_that_are_others_are_healed_too() {
        let root = Path::new("/r");
        for damage in [
            "UPDATE files SET path = CAST(x'ff' AS TEXT)",
            "DROP TABLE files; CREATE TABLE files (root, path)",
            "PRAGMA ignore_check_constraints = 1; UPDATE files SET digest = x'00'",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            cache.save(root, &[(path("x"), row(1))]);
            drop(cache);
            connect(&dir.path().join(FILE_NAME)).unwrap().execute_batch(damage).unwrap();
            let mut cache = HashCache::open(Some(dir.path()));
            cache.load(root);
            cache.save(root, &[(path("x"), row(2))]);
            assert_eq!(cache.load(root).get("x"), Some(&row(2)), "{damage}");
        }
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
                        let root = PathBuf::from(format!("/{number}"));
                        let mut cache = HashCache::open(Some(dir));
                        cache.save(&root, &[(path("x"), row(number))]);
                        assert_eq!(cache.load(&root).get("x"), Some(&row(number)));
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
        cache.save(Path::new("/r"), &[(path("x"), row(1))]);
        assert!(cache.load(Path::new("/r")).is_empty());
    }
}
