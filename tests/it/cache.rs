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
        self.dir.path().join("cache/hashes-2.sqlite")
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

    Connection::open(home.file())
        .unwrap()
        .execute("UPDATE files SET digest = zeroblob(32) WHERE path = 'tex/wood.png'", [])
        .unwrap();
    fs::write(home.project.join("z"), "changed").unwrap();
    fs::remove_file(home.project.join("a.blend")).unwrap();
    assert_eq!(home.json(&["cache", "verify", "/nowhere", "--all"], 0)["right"], 0);
    let verified = home.json(&["cache", "verify", "--all", project], 9);
    let wrong = home.project.join("tex/wood.png");
    assert_eq!(verified["wrong"], json!([wrong]), "{verified}");
    assert_eq!((&verified["right"], &verified["outdated"]), (&json!(3), &json!(2)));
    // What was wrong is hashed again.
    assert_eq!(home.push(&home.project), 2);
    assert_eq!(home.json(&["cache", "verify", "--all"], 0)["right"], 5);

    assert_eq!(home.json(&["cache", "clear", "/nowhere"], 0)["files"], 0);
    assert_eq!(home.json(&["cache", "clear", project], 0)["files"], 5);
    assert_eq!(home.json(&["cache", "stats"], 0)["roots"], json!([]));
    assert_eq!(home.push(&home.project), 5);
    assert_eq!(home.json(&["cache", "clear"], 0)["files"], 5);
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
