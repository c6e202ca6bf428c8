//! What Blender's add-on remembers of files: two caches, of its older and of its newer generation. They
//! are read, so that what Blender has hashed is not hashed again, and written, so that Blender does not
//! hash what we have.
//!
//! They are the add-on's, and keep to its rules: nothing is removed or begun anew here. Both know files
//! by their absolute paths, links not followed, and believe an entry if size and modification time
//! are those of the file. We ask for more: that the file has not changed in any way since the entry was
//! written, and that the two caches agree, where both have an entry.
//!
//! Their entries have no checksums. A bit that flips in an entry of one cache, and the other has none, gives a
//! wrong digest: to the add-on as well as here.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rayon::prelude::*;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{ScannedFile, cache::CacheRow};
use crate::{
    disk::{Fingerprint, unix_ns},
    domain::{Digest, RelPath},
};

/// Blender fails when it cannot write for five seconds: so we write little at once.
const ROWS_AT_ONCE: usize = 200;

/// How long we wait for Blender.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// What changed so recently is not written down: it may change again and look the same.
const RESTED_NS: i64 = 2_100_000_000;

/// How far modification times may lie apart for the older generation, in seconds.
const OLDER_TOLERANCE_S: f64 = 0.01;

/// The longest file name.
const MAX_NAME_BYTES: usize = 255;

const NEWER_SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS files (
        file_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
        path TEXT UNIQUE NOT NULL
    );
    CREATE TABLE IF NOT EXISTS hashes (
        file_id INTEGER NOT NULL,
        hash_algo VARCHAR(10) NOT NULL,
        hexdigest TEXT NOT NULL,
        size_in_bytes BIGINT NOT NULL,
        file_stat_mtime FLOAT NOT NULL,
        last_checked DATETIME NOT NULL,
        PRIMARY KEY (file_id, hash_algo),
        FOREIGN KEY (file_id) REFERENCES files(file_id)
    );
";

/// The caches of the add-on, as far as they are there.
#[derive(Debug)]
pub(super) struct AddonCaches {
    older: Option<PathBuf>,
    newer: Option<Connection>,
}

/// An entry of the older generation: a file of its own.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OlderEntry {
    checksum: String,
    file_mtime: f64,
    file_size: u64,
}

impl AddonCaches {
    /// Those in this directory, which is `~/.cache` for the add-on. If there is none at all, both are
    /// begun: it is not known which Blender will come.
    pub fn open(dir: &Path) -> Self {
        let older = dir.join("shaman-client/shasums");
        let newer = dir.join("blender/flamenco/shaman_v1.sqlite");
        let is_new = !older.exists() && !newer.exists();
        let begin = |path: &Path| {
            (is_new || path.exists()).then(|| {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                Ok(path.to_owned())
            })
        };
        let told = |path: &Path, error: &dyn std::fmt::Display| {
            tracing::warn!("the add-on's hash cache {} cannot be used: {error}", path.display());
        };
        let usable = |path: &Path, begun: Option<io::Result<PathBuf>>| {
            begun?.inspect_err(|error| told(path, error)).ok()
        };
        let connect = |path: PathBuf| {
            let connection = connect(&path);
            connection.inspect_err(|error| told(&path, error)).ok()
        };
        Self {
            older: usable(&older, begin(&older)),
            newer: usable(&newer, begin(&newer)).and_then(connect),
        }
    }

    /// What the add-on knows of a file, as far as `holds` for it. Two caches that contradict each other know
    /// nothing.
    pub fn find(
        &self,
        root: &Path,
        path: &RelPath,
        now: &Fingerprint,
        holds: impl Fn(&CacheRow) -> bool,
    ) -> Option<CacheRow> {
        let path = native(root, path)?;
        // A time from the future says nothing.
        let written_before = unix_ns(SystemTime::now());
        let holds = |row: &CacheRow| row.hashed_at_ns <= written_before && holds(row);
        let newer = self.find_newer(&path, now).filter(holds);
        let older = self.find_older(&path, now).filter(holds);
        if let (Some(newer), Some(older)) = (newer, older)
            && newer.digest != older.digest
        {
            tracing::warn!(
                "the two hash caches of Blender's add-on contradict each other about {path}: it is hashed \
                 again; if this comes back, check the disk and the memory of this machine"
            );
            return None;
        }
        newer.or(older)
    }

    fn find_newer(&self, path: &str, now: &Fingerprint) -> Option<CacheRow> {
        let mut query = self
            .newer
            .as_ref()?
            .prepare_cached(
                "SELECT hexdigest, size_in_bytes, file_stat_mtime, last_checked
                 FROM files JOIN hashes USING (file_id) WHERE path = ?1 AND hash_algo = 'sha256'",
            )
            .ok()?;
        let found: Option<(String, i64, f64, String)> = query
            .query_row([path], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()
            .ok()?;
        let (digest, size, mtime, checked) = found?;
        let same = size.cast_unsigned() == now.size_bytes && mtime == seconds(now.mtime_ns);
        let hashed_at_ns = i64::try_from(parse_time(&checked)?.as_nanosecond()).ok()?;
        let digest = digest.parse().ok()?;
        same.then_some(CacheRow { fingerprint: *now, hashed_at_ns, digest })
    }

    fn find_older(&self, path: &str, now: &Fingerprint) -> Option<CacheRow> {
        let file = older_entry(self.older.as_ref()?, path)?;
        let hashed_at_ns = unix_ns(fs::metadata(&file).ok()?.modified().ok()?);
        let entry: OlderEntry = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        let same = entry.file_size == now.size_bytes
            && (entry.file_mtime - seconds(now.mtime_ns)).abs() < OLDER_TOLERANCE_S;
        let digest = entry.checksum.parse().ok()?;
        same.then_some(CacheRow { fingerprint: *now, hashed_at_ns, digest })
    }

    /// Has the add-on know what we know.
    pub fn warm(&mut self, root: &Path, files: &[ScannedFile]) {
        let before_ns = unix_ns(SystemTime::now()).saturating_sub(RESTED_NS);
        let rested = |file: &&ScannedFile| {
            file.fingerprint.mtime_ns.max(file.fingerprint.ctime_ns) < before_ns
        };
        let files: Vec<_> = files
            .iter()
            .filter(rested)
            .filter_map(|file| Some((native(root, &file.path)?, file)))
            .collect();
        if let Some(dir) = &self.older
            && let Err(error) =
                files.par_iter().try_for_each(|(path, file)| warm_older(dir, path, file))
        {
            let dir = dir.display();
            tracing::warn!("the add-on's hash cache {dir} cannot be written to: {error}");
        }
        if let Some(connection) = &mut self.newer
            && let Err(error) = warm_newer(connection, root, &files)
        {
            tracing::warn!("the add-on's hash cache cannot be written to: {error}");
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('files', 'hashes')";
    if connection.query_row(tables, [], |row| row.get::<_, i64>(0))? < 2 {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.execute_batch(NEWER_SCHEMA)?;
    }
    // Whatever else there may be, this is what is needed.
    connection.prepare_cached(
        "SELECT path, hexdigest, size_in_bytes, file_stat_mtime, last_checked
         FROM files JOIN hashes USING (file_id) WHERE hash_algo = 'sha256'",
    )?;
    Ok(connection)
}

/// A path as the system writes it; only what is UTF-8 can be in the caches.
fn native(root: &Path, path: &RelPath) -> Option<String> {
    let path: PathBuf = root.components().chain(Path::new(path.as_str()).components()).collect();
    path.into_os_string().into_string().ok()
}

/// A time as Python's `stat` tells it: this sum, and not the nanoseconds divided.
fn seconds(ns: i64) -> f64 {
    const SECOND: i64 = 1_000_000_000;
    ns.div_euclid(SECOND) as f64 + 1e-9 * ns.rem_euclid(SECOND) as f64
}

/// A time as Python writes it.
fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

/// The file that the older generation keeps an entry in. Its name is made from the file's: stem, the
/// directory backwards, suffix.
fn older_entry(dir: &Path, path: &str) -> Option<PathBuf> {
    let (parent, name) = path.rsplit_once(std::path::MAIN_SEPARATOR)?;
    // A dot at the begin or end of a name begins no suffix.
    let (stem, suffix) = match name.rfind('.') {
        Some(at) if at > 0 && at + 1 < name.len() => name.split_at(at),
        _ => (name, ""),
    };
    let parent = if parent.is_empty() { "/" } else { parent };
    let key = format!("{stem}{}{suffix}", parent.chars().rev().collect::<String>());
    let encoded = BASE64_URL_SAFE_NO_PAD.encode(key);
    let (first, rest) = encoded.split_at_checked(10)?;
    (!rest.is_empty() && rest.len() <= MAX_NAME_BYTES).then(|| dir.join(first).join(rest))
}

fn warm_older(dir: &Path, path: &str, file: &ScannedFile) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Some(target) = older_entry(dir, path) else { return Ok(()) };
    // Written after the file last changed: it is right, or the add-on will see that it is not. One that was
    // not used for a file that was hashed just now can be damaged.
    let written =
        fs::metadata(&target).and_then(|found| found.modified()).map_or(i64::MIN, unix_ns);
    if file.cached && written > file.fingerprint.ctime_ns {
        return Ok(());
    }
    let entry = OlderEntry {
        checksum: file.digest.to_string(),
        file_mtime: seconds(file.fingerprint.mtime_ns),
        file_size: file.fingerprint.size_bytes,
    };
    let folder = target.parent().unwrap_or(dir);
    fs::create_dir_all(folder)?;
    let number = NUMBER.fetch_add(1, Relaxed);
    let temp = folder.join(format!(".farmhand-{}-{number}", std::process::id()));
    fs::write(&temp, serde_json::to_vec(&entry)?)?;
    fs::rename(&temp, &target).inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

fn warm_newer(
    connection: &mut Connection,
    root: &Path,
    files: &[(String, &ScannedFile)],
) -> rusqlite::Result<()> {
    let Some(prefix) = root.to_str().map(|root| {
        format!("{}{}", root.trim_end_matches(std::path::MAIN_SEPARATOR), std::path::MAIN_SEPARATOR)
    }) else {
        return Ok(());
    };
    let known = {
        let mut query = connection.prepare_cached(
            "SELECT path, hexdigest, size_in_bytes, file_stat_mtime
             FROM files JOIN hashes USING (file_id)
             WHERE hash_algo = 'sha256' AND substr(path, 1, ?2) = ?1",
        )?;
        let length = prefix.chars().count().cast_signed();
        let rows = query.query_map(params![prefix, length], |row| {
            let entry: (String, i64, f64) = (row.get(1)?, row.get(2)?, row.get(3)?);
            Ok((row.get::<_, String>(0)?, entry))
        })?;
        rows.collect::<rusqlite::Result<HashMap<_, _>>>()?
    };
    let is_known = |path: &str, file: &ScannedFile| {
        known.get(path).is_some_and(|(digest, size, mtime)| {
            digest.parse::<Digest>() == Ok(file.digest)
                && size.cast_unsigned() == file.fingerprint.size_bytes
                && *mtime == seconds(file.fingerprint.mtime_ns)
        })
    };
    let missing: Vec<_> = files.iter().filter(|(path, file)| !is_known(path, file)).collect();
    let checked = format_time(Timestamp::now());
    for rows in missing.chunks(ROWS_AT_ONCE) {
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for (path, file) in rows {
            transaction
                .prepare_cached("INSERT INTO files (path) VALUES (?1) ON CONFLICT DO NOTHING")?
                .execute([path])?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO hashes
                     (file_id, hash_algo, hexdigest, size_in_bytes, file_stat_mtime, last_checked)
                     SELECT file_id, 'sha256', ?2, ?3, ?4, ?5 FROM files WHERE path = ?1",
                )?
                .execute(params![
                    path,
                    file.digest.to_string(),
                    file.fingerprint.size_bytes.cast_signed(),
                    seconds(file.fingerprint.mtime_ns),
                    checked
                ])?;
        }
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_doubles_that_python_makes() {
        // Made with CPython: os.stat of files with these times, and repr of st_mtime.
        for (ns, text) in [
            (1_700_000_000_123_456_789, "1700000000.1234567"),
            (1_732_384_796_644_246_001, "1732384796.644246"),
            (0, "0.0"),
            (-1_500_000_000, "-1.5"),
        ] {
            assert_eq!(format!("{:?}", seconds(ns)), text);
        }
        // Where the order of the operations shows.
        let differ = (0..1000_i64).filter(|number| {
            let ns = 1_700_000_000_000_000_000 + number * 1_234_577;
            seconds(ns) != ns as f64 / 1e9
        });
        assert!(differ.count() > 100);
        let text = "2026-11-23T17:59:56.644246+00:00";
        assert_eq!(format_time(parse_time(text).unwrap()), text);
    }

    #[cfg(unix)]
    #[test]
    fn names_of_older_entries_are_made_from_paths() {
        let name = |path: &str| {
            let entry = older_entry(Path::new("/c"), path)?;
            let text = entry.strip_prefix("/c").unwrap().to_str().unwrap().replace('/', "");
            Some(String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap())
        };
        for (path, expected) in [
            ("/home/a/p/scene.blend", "scenep/a/emoh/.blend"),
            ("/home/a/archive.tar.gz", "archive.tara/emoh/.gz"),
            ("/home/a/.hidden", ".hiddena/emoh/"),
            ("/home/a/ends.", "ends.a/emoh/"),
            ("/home/é/ü.png", "üé/emoh/.png"),
            ("/top-level-file", "top-level-file/"),
        ] {
            assert_eq!(name(path).as_deref(), Some(expected));
        }
        assert_eq!(name(&format!("/{}", "long/".repeat(60))), None);
        let entry = older_entry(Path::new("/c"), "/home/a/p/scene.blend").unwrap();
        assert_eq!(entry.parent().unwrap().file_name().unwrap().len(), 10);
    }
}
