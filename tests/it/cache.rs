//! The hash cache, as users see it: what is hashed a second time, and what is not.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::common::*;

struct Home {
    dir: tempfile::TempDir,
    project: PathBuf,
}

impl Home {
    /// A project of six files that are at rest.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("project");
        for name in ["a.blend", "tex/wood.png", "tex/stone.png", "cache/1.vdb", "cache/2.vdb", "z"]
        {
            let path = project.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("this is {name}")).unwrap();
        }
        Self { dir, project }
    }

    /// The database.
    fn file(&self) -> PathBuf {
        self.dir.path().join("cache/hashes-3.sqlite")
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = farmhand(self.dir.path());
        command
            .arg("--json")
            .args(arguments)
            .env("FARMHAND_SCAN_CACHE_DIR", self.dir.path().join("cache"));
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let (exit, out, err) = self.run(arguments);
        assert_eq!(exit, code, "{out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// How many files had to be hashed.
    #[track_caller]
    fn push(&self, dir: &Path) -> u64 {
        let storage = self.dir.path().join("storage");
        let report =
            self.json(&["push", dir.to_str().unwrap(), "--storage", storage.to_str().unwrap()], 0);
        report["hashed_files"].as_u64().unwrap()
    }
}

/// Waits until the tick is over in which a file got its name.
fn at_rest(path: &Path) {
    let changed = fs::metadata(path).unwrap();
    let changed = Duration::new(changed.ctime() as u64, changed.ctime_nsec() as u32);
    until(|| SystemTime::UNIX_EPOCH.elapsed().unwrap() > changed + Duration::from_millis(25));
}

/// Whether files keep a time of birth here: without one, a file of a new name is hashed again.
fn knows_births(path: &Path) -> bool {
    fs::metadata(path).unwrap().created().is_ok()
}

#[test]
fn what_has_only_got_another_name_is_not_hashed_again() {
    let home = Home::new();
    let at = |name: &str| home.project.join(name);
    assert_eq!(home.push(&home.project), 6);
    assert_eq!(home.push(&home.project), 0);
    fs::rename(at("tex"), at("textures")).unwrap();
    assert_eq!(home.push(&home.project), 0, "a folder");
    assert_eq!(home.push(&home.project), 0);
    fs::rename(at("a.blend"), at("a.blend.bak")).unwrap();
    fs::write(at("a.blend"), "another").unwrap();
    at_rest(&at("a.blend.bak"));
    let expected = if knows_births(&at("z")) { 1 } else { 2 };
    assert_eq!(home.push(&home.project), expected, "a file, and one in its place");
    assert_eq!(home.push(&home.project), 0);
    let moved = home.dir.path().join("elsewhere");
    fs::rename(&home.project, &moved).unwrap();
    assert_eq!(home.push(&moved), 0, "the project");
    assert_eq!(home.push(&moved.join("textures")), 0, "a part of it");
    // A copy is another file, whatever its times.
    fs::copy(moved.join("z"), moved.join("y")).unwrap();
    assert_eq!(home.push(&moved), 1);
}

#[test]
fn whatever_is_written_is_hashed_again() {
    let home = Home::new();
    let at = |name: &str| home.project.join(name);
    home.push(&home.project);
    home.push(&home.project);
    let before = fs::metadata(at("z")).unwrap();
    // The same size, and the old time set again.
    fs::write(at("z"), "THIS IS z").unwrap();
    fs::File::options()
        .write(true)
        .open(at("z"))
        .unwrap()
        .set_modified(before.modified().unwrap())
        .unwrap();
    let after = fs::metadata(at("z")).unwrap();
    assert_eq!(
        (before.len(), before.ino(), before.mtime()),
        (after.len(), after.ino(), after.mtime())
    );
    assert_eq!(home.push(&home.project), 1);
    // Another file of the same size and time in its place.
    fs::write(at("new"), "this IS z").unwrap();
    fs::File::options()
        .write(true)
        .open(at("new"))
        .unwrap()
        .set_modified(before.modified().unwrap())
        .unwrap();
    fs::rename(at("new"), at("z")).unwrap();
    assert_eq!(home.push(&home.project), 1);
    assert_eq!(home.push(&home.project), 0);
    // Two that change places.
    fs::rename(at("cache/1.vdb"), at("x")).unwrap();
    fs::rename(at("cache/2.vdb"), at("cache/1.vdb")).unwrap();
    fs::rename(at("x"), at("cache/2.vdb")).unwrap();
    home.push(&home.project);
    let (code, out, _) = home.run(&["hash", home.project.to_str().unwrap()]);
    assert_eq!(code, 0);
    for line in out.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let content = fs::read(line["path"].as_str().unwrap()).unwrap();
        assert_eq!(line["sha256"], sha(&content), "{line}");
    }
}

#[test]
fn the_cache_is_shown_checked_and_cleared() {
    let home = Home::new();
    let project = home.project.to_str().unwrap();
    home.push(&home.project);
    let stats = home.json(&["cache", "stats"], 0);
    assert_eq!(stats["file"], home.file().to_str().unwrap());
    assert!(stats["file_bytes"].as_u64().unwrap() > 0);
    let bytes: usize = tree(&home.project).values().map(Vec::len).sum();
    let root = &stats["roots"][0];
    assert_eq!(
        (&root["path"], &root["files"], &root["bytes"]),
        (&json!(project), &json!(6), &json!(bytes))
    );
    // Files that were hashed within the tick of their last change count as outdated.
    let verified = home.json(&["cache", "verify", "--all"], 0);
    assert_eq!((&verified["right"], &verified["wrong"]), (&json!(6), &json!([])), "{verified}");
    assert_eq!(home.json(&["cache", "verify", "--sample", "2"], 0)["right"], 2);

    fs::write(home.project.join("z"), "changed").unwrap();
    fs::remove_file(home.project.join("a.blend")).unwrap();
    assert_eq!(home.json(&["cache", "verify", "/nowhere", "--all"], 0)["right"], 0);
    let verified = home.json(&["cache", "verify", "--all", project], 0);
    assert_eq!((&verified["right"], &verified["outdated"]), (&json!(4), &json!(2)));
    assert_eq!(home.push(&home.project), 1);
    assert_eq!(home.json(&["cache", "verify", "--all"], 0)["right"], 5);

    assert_eq!(home.json(&["cache", "clear", "/nowhere"], 0)["files"], 0);
    assert_eq!(home.json(&["cache", "clear", project], 0)["files"], 5);
    assert_eq!(home.json(&["cache", "stats"], 0)["roots"], json!([]));
    assert_eq!(home.push(&home.project), 5);
    assert_eq!(home.json(&["cache", "clear"], 0)["files"], 5);
}

#[test]
fn a_damaged_row_is_reported_and_not_used() {
    let home = Home::new();
    let project = home.project.to_str().unwrap();
    home.push(&home.project);
    let damage = || {
        let cache = Connection::open(home.file()).unwrap();
        let mut digest: Vec<u8> = cache
            .query_row("SELECT digest FROM files WHERE path = 'tex/wood.png'", [], |row| row.get(0))
            .unwrap();
        digest[7] ^= 4;
        let change = "UPDATE files SET digest = ?1 WHERE path = 'tex/wood.png'";
        assert_eq!(cache.execute(change, [digest]), Ok(1));
    };
    let hash = || {
        let (code, out, err) = home.run(&["hash", project]);
        assert_eq!((code, out.lines().count()), (0, 6), "{err}");
        for line in out.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let content = fs::read(line["path"].as_str().unwrap()).unwrap();
            assert_eq!(line["sha256"], sha(&content), "{line}");
        }
        err
    };
    damage();
    assert_eq!(home.json(&["cache", "stats"], 0)["damaged"], 1);
    let (_, out, _) = home.run(&["doctor", project]);
    assert!(out.contains("1 of 6 entries of"), "{out}");
    let warning = hash();
    assert!(warning.contains("damaged entries (wrong checksum)"), "{warning}");
    assert!(warning.contains("hashes-3.sqlite: 1; "), "{warning}");
    // It is written again.
    assert_eq!(hash(), "");
    assert_eq!(home.json(&["cache", "stats"], 0)["damaged"], 0);
    damage();
    let verified = home.json(&["cache", "verify", "--all"], 9);
    assert_eq!((&verified["damaged"], &verified["right"]), (&json!(1), &json!(5)), "{verified}");
    assert_eq!(home.json(&["cache", "verify", "--all"], 0)["damaged"], 0);
    assert_eq!(home.push(&home.project), 1);
}

#[test]
fn a_cache_that_another_process_holds_is_waited_for_and_done_without() {
    let home = Home::new();
    home.push(&home.project);
    let mut other = Connection::open(home.file()).unwrap();
    let holding =
        other.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).unwrap();
    fs::write(home.project.join("z"), "changed").unwrap();
    let (code, out, err) = home.run(&["hash", home.project.to_str().unwrap()]);
    assert_eq!((code, out.lines().count()), (0, 6), "{err}");
    assert!(err.contains("another process writes to the hash cache"), "{err}");
    drop(holding);
    // What was known is known.
    assert_eq!(home.push(&home.project), 1);
}

#[test]
fn a_cache_that_cannot_be_is_said_and_done_without() {
    let home = Home::new();
    fs::write(home.dir.path().join("cache"), "no directory").unwrap();
    for _ in 0..2 {
        let (code, out, err) = home.run(&["hash", home.project.to_str().unwrap()]);
        assert_eq!((code, out.lines().count()), (0, 6), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains("cannot be used") && err.contains("--cache-dir"), "{err}");
    }
    for action in ["stats", "verify", "clear"] {
        let (code, out, err) = home.run(&["cache", action]);
        assert_eq!((code, out.as_str()), (1, ""), "{action}: {err}");
    }
}

#[test]
fn times_from_the_future_are_no_reason_to_trust() {
    let home = Home::new();
    let future = SystemTime::now() + Duration::from_secs(1_000_000);
    let file = fs::File::options().write(true).open(home.project.join("z")).unwrap();
    file.set_modified(future).unwrap();
    assert_eq!(home.push(&home.project), 6);
    assert_eq!(home.push(&home.project), 0);
    let changed = home.project.join("z");
    fs::write(&changed, "this IS z").unwrap();
    fs::File::options().write(true).open(&changed).unwrap().set_modified(future).unwrap();
    assert_eq!(home.push(&home.project), 1);
}

/// The add-on's two caches, laid out by hand as it does.
struct Addon {
    dir: PathBuf,
}

impl Addon {
    fn newer(&self) -> PathBuf {
        self.dir.join("blender/flamenco/shaman_v1.sqlite")
    }

    fn begin_newer(&self) -> Connection {
        fs::create_dir_all(self.newer().parent().unwrap()).unwrap();
        let connection = Connection::open(self.newer()).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE files (
                    file_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT UNIQUE NOT NULL);
                 CREATE TABLE hashes (file_id, hash_algo VARCHAR(10), hexdigest TEXT,
                    size_in_bytes BIGINT, file_stat_mtime FLOAT, last_checked DATETIME,
                    PRIMARY KEY (file_id, hash_algo));",
            )
            .unwrap();
        connection
    }

    /// What the newer generation believes of a file, by its rule.
    fn newer_digest(&self, path: &Path) -> Option<String> {
        let found = fs::metadata(path).unwrap();
        Connection::open(self.newer())
            .unwrap()
            .query_row(
                "SELECT hexdigest FROM files JOIN hashes USING (file_id)
                 WHERE path = ?1 AND hash_algo = 'sha256' AND size_in_bytes = ?2
                   AND file_stat_mtime = ?3 AND last_checked LIKE '20__-__-__T__:__:__.______+00:00'",
                rusqlite::params![path.to_str().unwrap(), found.len().cast_signed(), python_mtime(path)],
                |row| row.get(0),
            )
            .ok()
    }

    fn older_file(&self, path: &Path) -> PathBuf {
        use base64::Engine;
        let text = |part: &std::ffi::OsStr| part.to_str().unwrap().to_owned();
        let (stem, parent) =
            (text(path.file_stem().unwrap()), text(path.parent().unwrap().as_os_str()));
        let suffix = path.extension().map_or(String::new(), |suffix| format!(".{}", text(suffix)));
        let key = format!("{stem}{}{suffix}", parent.chars().rev().collect::<String>());
        let name = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(key);
        self.dir.join("shaman-client/shasums").join(&name[..10]).join(&name[10..])
    }

    /// What the older generation believes of a file, by its rule.
    fn older_digest(&self, path: &Path) -> Option<String> {
        let entry: Value = serde_json::from_slice(&fs::read(self.older_file(path)).ok()?).unwrap();
        let found = fs::metadata(path).unwrap();
        let off = entry["file_mtime"].as_f64().unwrap() - python_mtime(path);
        (entry["file_size"] == found.len() && off.abs() < 0.01)
            .then(|| entry["checksum"].as_str().unwrap().to_owned())
    }
}

fn python_mtime(path: &Path) -> f64 {
    let found = fs::metadata(path).unwrap();
    found.mtime() as f64 + 1e-9 * found.mtime_nsec() as f64
}

impl Home {
    fn addon(&self) -> Addon {
        Addon { dir: self.dir.path().join("dot cache") }
    }

    /// Like [`Home::push`], with the add-on's caches.
    fn push_warm(&self) -> u64 {
        let (project, dir) = (self.project.to_str().unwrap(), self.addon().dir);
        let mut command = farmhand(self.dir.path());
        command
            .args(["--json", "push", project, "--warm-addon-cache", "--storage"])
            .arg(self.dir.path().join("storage"))
            .env("FARMHAND_SCAN_ADDON_CACHE_DIR", dir)
            .env("FARMHAND_SCAN_CACHE_DIR", self.dir.path().join("cache"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["hashed_files"].as_u64().unwrap()
    }

    /// Waits until no file is so new that it may change and look the same.
    fn rest(&self) {
        let rested = |path: &Path| {
            let changed = fs::metadata(path).unwrap().ctime() as u64;
            SystemTime::UNIX_EPOCH.elapsed().unwrap() > Duration::from_secs(changed + 4)
        };
        let files: Vec<_> =
            tree(&self.project).into_keys().map(|name| self.project.join(name)).collect();
        until(|| files.iter().all(|path| rested(path)));
    }
}

#[test]
fn a_submit_from_blender_hashes_nothing_once_we_have() {
    let home = Home::new();
    let addon = home.addon();
    fs::rename(home.project.join("z"), home.project.join("кэш.tar.gz")).unwrap();
    home.rest();
    let believe = |name: &str| {
        let path = home.project.join(name);
        (addon.newer_digest(&path), addon.older_digest(&path))
    };
    let all = tree(&home.project);
    for round in 0..3 {
        assert_eq!(home.push_warm(), if round == 0 { 6 } else { 0 });
        for (name, content) in &all {
            let expected = Some(sha(content));
            assert_eq!(believe(name), (expected.clone(), expected), "{name} in round {round}");
        }
        // Whatever the add-on forgets is written again.
        if round == 1 {
            fs::remove_file(addon.older_file(&home.project.join("a.blend"))).unwrap();
            Connection::open(addon.newer()).unwrap().execute("DELETE FROM hashes", []).unwrap();
        }
    }
    // Nothing of ours is left there, and what is there can be written by the add-on.
    let older = tree(&addon.dir.join("shaman-client"));
    assert_eq!(older.len(), 6);
    // What has just changed is left for the next time.
    let scene = home.project.join("a.blend");
    fs::write(&scene, "changed").unwrap();
    assert_eq!(home.push_warm(), 1);
    assert_eq!(believe("a.blend"), (None, None));
    home.rest();
    assert_eq!(home.push_warm(), 0);
    let expected = Some(sha(b"changed"));
    assert_eq!(believe("a.blend"), (expected.clone(), expected));
    // With only one of the two, the other is not begun.
    fs::remove_dir_all(addon.dir.join("blender")).unwrap();
    assert_eq!(home.push_warm(), 0);
    assert!(!addon.newer().exists());
}

#[test]
fn what_blender_has_hashed_is_not_hashed_again() {
    let home = Home::new();
    let addon = home.addon();
    home.rest();
    let newer = addon.begin_newer();
    // The digests are made up: so it shows who knew them.
    let (made_up, other) = ("ab".repeat(32), "cd".repeat(32));
    let path = |name: &str| home.project.join(name);
    let remember = |name: &str, size: u64, mtime: f64, checked: &str| {
        newer
            .execute("INSERT INTO files (path) VALUES (?1)", [path(name).to_str().unwrap()])
            .unwrap();
        let row = rusqlite::params![made_up, size.cast_signed(), mtime, checked];
        newer
            .execute(
                "INSERT INTO hashes VALUES (last_insert_rowid(), 'sha256', ?1, ?2, ?3, ?4)",
                row,
            )
            .unwrap();
    };
    let size = |name: &str| fs::metadata(path(name)).unwrap().len();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string();
    let now = now.as_str();
    remember("a.blend", size("a.blend"), python_mtime(&path("a.blend")), now);
    remember("z", size("z") + 1, python_mtime(&path("z")), now);
    remember("cache/1.vdb", size("cache/1.vdb"), python_mtime(&path("cache/1.vdb")) + 0.001, now);
    // Checked before the file last changed, whatever its modification time says.
    let before = "2001-01-01T00:00:00.000000+00:00";
    remember("cache/2.vdb", size("cache/2.vdb"), python_mtime(&path("cache/2.vdb")), before);
    let future = "2099-01-01T00:00:00.000000+00:00";
    remember("tex/stone.png", size("tex/stone.png"), python_mtime(&path("tex/stone.png")), future);
    let wood = path("tex/wood.png");
    let entry = json!({
        "checksum": other, "file_mtime": python_mtime(&wood) + 0.005, "file_size": size("tex/wood.png"),
    });
    let file = addon.older_file(&wood);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, entry.to_string()).unwrap();
    let stone = addon.older_file(&path("tex/stone.png"));
    fs::create_dir_all(stone.parent().unwrap()).unwrap();
    fs::write(&stone, "no json").unwrap();

    let mut command = farmhand(home.dir.path());
    command
        .args(["--json", "hash", "--warm-addon-cache"])
        .arg(&home.project)
        .env("FARMHAND_SCAN_ADDON_CACHE_DIR", &addon.dir);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = Path::new(line["path"].as_str().unwrap()).strip_prefix(&home.project).unwrap();
        let expected = match name.to_str().unwrap() {
            "a.blend" => made_up.clone(),
            "tex/wood.png" => other.clone(),
            name => sha(&fs::read(path(name)).unwrap()),
        };
        assert_eq!(line["sha256"], expected, "{line}");
    }
}

#[test]
fn addon_caches_that_differ_are_corrected() {
    let home = Home::new();
    let addon = home.addon();
    home.rest();
    home.push_warm();
    let scene = home.project.join("a.blend");
    let right = Some(sha(&fs::read(&scene).unwrap()));
    let flip = |digest: &str| {
        let mut bytes = digest.as_bytes().to_owned();
        bytes[5] ^= 1;
        String::from_utf8(bytes).unwrap()
    };
    for flips_newer in [true, false] {
        if flips_newer {
            let digest = flip(&addon.newer_digest(&scene).unwrap());
            let change = "UPDATE hashes SET hexdigest = ?1 WHERE file_id =
                          (SELECT file_id FROM files WHERE path = ?2)";
            let newer = Connection::open(addon.newer()).unwrap();
            let changed = newer.execute(change, [&digest, scene.to_str().unwrap()]);
            assert_eq!(changed, Ok(1));
        } else {
            let file = addon.older_file(&scene);
            let mut entry: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            entry["checksum"] = flip(entry["checksum"].as_str().unwrap()).into();
            fs::write(file, entry.to_string()).unwrap();
        }
        assert_ne!(addon.newer_digest(&scene), addon.older_digest(&scene));
        // We know nothing, and the two contradict each other.
        home.json(&["cache", "clear"], 0);
        assert_eq!(home.push_warm(), 1);
        assert_eq!(
            (addon.newer_digest(&scene), addon.older_digest(&scene)),
            (right.clone(), right.clone())
        );
    }
}

#[test]
fn caches_of_the_addon_that_cannot_be_used_are_said_and_left_alone() {
    let home = Home::new();
    let addon = home.addon();
    home.rest();
    // One that Blender writes to all the time.
    let mut newer = addon.begin_newer();
    let holding =
        newer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    assert_eq!(home.push_warm(), 6);
    drop(holding);
    assert_eq!(home.push_warm(), 0);
    assert!(addon.newer_digest(&home.project.join("z")).is_some());
    drop(newer);
    for damage in [&b"no database at all, but long enough to be sure of that"[..], b""] {
        fs::remove_dir_all(addon.newer().parent().unwrap()).unwrap();
        fs::create_dir_all(addon.newer().parent().unwrap()).unwrap();
        fs::write(addon.newer(), damage).unwrap();
        assert_eq!(home.push_warm(), 0);
        let now = fs::read(addon.newer()).unwrap();
        assert!(damage.is_empty() || now == damage);
    }
}
