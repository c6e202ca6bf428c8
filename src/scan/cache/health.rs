//! How the hash cache is, looked at without healing it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    FILE_NAME, HashCache, VERSION, damaged_rows, explain, is_corrupt, open_read_only, with_suffix,
};
use crate::disk::{nearest_existing, try_writing};

/// What a look at the hash cache has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheHealth {
    /// Where it is, or would be.
    pub file: PathBuf,
    /// How large, in bytes.
    pub bytes: u64,
    /// What is in it.
    pub state: CacheState,
    /// Why nothing can be remembered; `None`: it can.
    pub unwritable: Option<String>,
}

/// What is in the hash cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheState {
    /// Nothing yet: there is no file.
    New,
    /// What belongs there.
    Sound {
        /// How many folders are known.
        folders: u64,
        /// How many files.
        files: u64,
    },
    /// What belongs there, and rows whose checksums are wrong: their files are hashed again.
    DamagedRows {
        /// How many are damaged.
        damaged: u64,
        /// How many rows there are.
        rows: u64,
    },
    /// Something else: the next scan begins it anew.
    Corrupt(String),
    /// What a newer farmhand has written; it is left alone.
    Newer,
    /// It cannot be read.
    Unreadable(String),
}

impl HashCache {
    /// Looks at the cache in this directory. Nothing is changed: what is wrong is left for a scan to heal.
    pub fn examine(dir: &Path) -> CacheHealth {
        let file = dir.join(FILE_NAME);
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        let bytes = size(&file) + size(&with_suffix(&file, "-wal"));
        let state = if file.exists() { look(&file) } else { CacheState::New };
        CacheHealth { unwritable: unwritable(dir, &file), file, bytes, state }
    }
}

fn look(file: &Path) -> CacheState {
    let version = |connection: &rusqlite::Connection| {
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
    };
    let counted = open_read_only(file, version).and_then(|(connection, version)| {
        if version > VERSION {
            return Ok(CacheState::Newer);
        }
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Ok(CacheState::Corrupt(found));
        }
        let count = |table: &str| {
            let query = format!("SELECT count(*) FROM {table}");
            connection.query_row(&query, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
        };
        let (folders, files) = (count("roots")?, count("files")?);
        Ok(match damaged_rows(&connection)?.len() as u64 {
            0 => CacheState::Sound { folders, files },
            damaged => CacheState::DamagedRows { damaged, rows: files },
        })
    });
    counted.unwrap_or_else(|error| match is_corrupt(&error) {
        true => CacheState::Corrupt(error.to_string()),
        false => CacheState::Unreadable(explain(&error)),
    })
}

/// SQLite writes to the file, and makes others beside it.
fn unwritable(dir: &Path, file: &Path) -> Option<String> {
    if file.exists()
        && let Err(error) = fs::File::options().append(true).open(file)
    {
        return Some(error.to_string());
    }
    let Some(there) = nearest_existing(dir) else { return Some("there is no such place".into()) };
    try_writing(&there).err().map(|error| format!("{error}: {}", error.source))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::{
        disk::Fingerprint,
        domain::Digest,
        scan::cache::{CacheRow, Root, Saved},
    };

    fn state(dir: &Path) -> CacheState {
        let health = HashCache::examine(dir);
        assert_eq!(health.unwritable, None);
        health.state
    }

    #[test]
    fn every_state_is_told_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        assert_eq!(state(&dir.path().join("not/yet")), CacheState::New);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        drop(HashCache::open(Some(dir.path())));
        assert_eq!(state(dir.path()), CacheState::Sound { folders: 0, files: 0 });

        let connection = Connection::open(&file).unwrap();
        connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        connection.execute_batch("DROP TABLE roots").unwrap();
        drop(connection);
        assert_eq!(state(dir.path()), CacheState::Newer);

        fs::write(&file, "this is no database, whatever its name may say of it".repeat(100))
            .unwrap();
        let before = fs::read(&file).unwrap();
        let found = state(dir.path());
        assert!(matches!(found, CacheState::Corrupt(_)), "{found:?}");
        assert!(fs::read(&file).unwrap() == before, "it was written to");
        assert!(
            fs::read_dir(dir.path())
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains("corrupt") })
        );
    }

    fn fill(dir: &Path, files: usize) {
        let fingerprint = Fingerprint {
            size_bytes: 1,
            mtime_ns: 1,
            ctime_ns: 1,
            inode: 1,
            device: 1,
            born_ns: 1,
        };
        let row = CacheRow { fingerprint, hashed_at_ns: 1, digest: Digest::from_bytes([0; 32]) };
        let rows: Vec<_> =
            (0..files).map(|i| (format!("a/long/name/{i}").parse().unwrap(), row)).collect();
        let root = Root { path: Path::new("/r"), device: 0, inode: 0 };
        assert_eq!(HashCache::open(Some(dir)).save(root, &rows, &[]), Saved::Done);
    }

    #[test]
    fn damaged_rows_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 5);
        let connection = Connection::open(dir.path().join(FILE_NAME)).unwrap();
        let damage =
            "UPDATE files SET size_bytes = 2 WHERE path IN ('a/long/name/1', 'a/long/name/3');
                      UPDATE files SET root = 9 WHERE path = 'a/long/name/4'";
        connection.execute_batch(damage).unwrap();
        drop(connection);
        assert_eq!(state(dir.path()), CacheState::DamagedRows { damaged: 3, rows: 5 });
    }

    /// A page that nobody has looked at yet.
    #[test]
    fn damage_inside_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        fill(dir.path(), 3000);
        assert_eq!(state(dir.path()), CacheState::Sound { folders: 1, files: 3000 });
        let sound = fs::read(&file).unwrap();
        let middle = sound.len() / 2 / 4096 * 4096;
        // A page; and the number of free pages, which nobody misses who only reads.
        for (damaged, byte) in [(middle..middle + 4096, 0xa5), (39..40, 5)] {
            let mut content = sound.clone();
            content[damaged.clone()].fill(byte);
            fs::write(&file, content).unwrap();
            let found = state(dir.path());
            assert!(matches!(found, CacheState::Corrupt(_)), "{damaged:?}: {found:?}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let health = HashCache::examine(&file.join("below"));
        assert!(health.unwritable.is_some(), "{health:?}");
    }
}
