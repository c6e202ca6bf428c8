//! Looking after a store: garbage collection, scrubbing, checkouts listed, erased and checked.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use farmhand::{
    domain::report::LinkMode,
    server::{self, Upkeep},
    store::{self, Durability, Store},
};
use serde_json::{Value, json};

use super::{common::*, metrics::scrape};

const DAY: Duration = Duration::from_secs(86_400);

fn blob_path(storage: &Path, content: &[u8]) -> PathBuf {
    let sha = sha(content);
    storage.join(format!("file-store/stored/{}/{}/{}.blob", &sha[..2], &sha[2..], content.len()))
}

/// Has a file last been needed so long ago.
fn age(path: &Path, by: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

/// Writes over a read-only file.
pub(super) fn damage(path: &Path, content: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

impl TestServer {
    pub(super) fn blob(&self, content: &[u8]) -> PathBuf {
        blob_path(&self.storage(), content)
    }

    /// Stores a blob that nobody has needed for long.
    fn store_old(&self, content: &[u8]) {
        assert_eq!(self.upload(content).status, 204);
        age(&self.blob(content), 40 * DAY);
    }

    pub(super) fn checkout(&self, path: &str, files: &[(&str, &[u8])]) -> Answer {
        let files: Vec<_> = files.iter().map(|(path, content)| file(content, path)).collect();
        self.post_json("checkout/create", &json!({ "checkoutPath": path, "files": files }))
    }

    /// An operation that ends well; its report.
    #[track_caller]
    fn report(&self, path: &str, body: Value) -> Value {
        let answer = self.admin("POST", path, body);
        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
        // One that takes a while says how far it is before.
        let text = String::from_utf8(answer.body).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(last["report"].is_object(), "{text}");
        last["report"].clone()
    }
}

#[test]
fn gc_removes_what_nobody_needs_and_keeps_the_rest() {
    let server = TestServer::start();
    let storage = server.storage();
    let names = [
        "garbage",
        "linked",
        "absolute",
        "through",
        "dangling",
        "pinned",
        "young",
        "future",
        "hardlinked",
        "building",
        "in a linked folder",
    ];
    for name in names {
        server.store_old(name.as_bytes());
    }
    age(&server.blob(b"young"), 2 * DAY);
    fs::File::open(server.blob(b"future")).unwrap().set_modified(SystemTime::now() + DAY).unwrap();
    assert_eq!(server.checkout("shows/a", &[("x", b"linked")]).status, 200);
    age(&server.blob(b"linked"), 40 * DAY);
    // As other servers and people make them: absolute, and through another name of the storage.
    let alias = server.dir.path().join("alias");
    symlink(&storage, &alias).unwrap();
    let jobs = storage.join("jobs");
    symlink(server.blob(b"absolute"), jobs.join("shows/a/absolute")).unwrap();
    symlink(blob_path(&alias, b"through"), jobs.join("shows/a/through")).unwrap();
    symlink(blob_path(Path::new("/elsewhere"), b"dangling"), jobs.join("shows/a/dangling"))
        .unwrap();
    fs::hard_link(server.blob(b"hardlinked"), jobs.join("shows/a/hard")).unwrap();
    fs::create_dir(jobs.join(".farmhand-building/half")).unwrap();
    symlink(server.blob(b"building"), jobs.join(".farmhand-building/half/x")).unwrap();
    let other = server.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    symlink(server.blob(b"in a linked folder"), other.join("x")).unwrap();
    symlink(&other, jobs.join("other")).unwrap();
    // Links in a circle, and links to nothing, are no reason to stop.
    symlink(&jobs, jobs.join("shows/a/circle")).unwrap();
    symlink("itself", jobs.join("shows/a/itself")).unwrap();
    let pin = server.admin("PUT", &format!("pins/{}", sha(b"pinned")), Value::Null);
    assert_eq!(pin.json()["changed"], true);

    let dry = server.report("gc", json!({ "dry_run": true }));
    assert_eq!(dry["removed"], json!({ "blobs": 2, "bytes": 15 }), "{dry}");
    assert!(server.blob(b"garbage").exists());
    let report = server.report("gc", json!({}));
    for (what, blobs) in [("stored", 11), ("young", 2), ("held", 6), ("pinned", 1), ("removed", 2)]
    {
        assert_eq!(report[what]["blobs"], blobs, "{what} in {report}");
        assert_eq!(report[what], dry[what]);
    }
    for name in names {
        // Whatever is really being built has all its blobs made young.
        let is_garbage = matches!(name, "garbage" | "building");
        assert_eq!(server.blob(name.as_bytes()).exists(), !is_garbage, "{name}");
    }
    assert!(!server.blob(b"garbage").parent().unwrap().exists(), "an empty directory is left");
    assert_eq!(server.status(b"garbage"), "unknown");
    assert_eq!(server.upload(b"garbage").status, 204);
    // Once it is erased and unpinned, all of it may go but what is young.
    assert_eq!(server.admin("DELETE", "checkouts?path=shows/a", Value::Null).status, 200);
    fs::remove_file(jobs.join("other")).unwrap();
    fs::remove_dir_all(jobs.join(".farmhand-building/half")).unwrap();
    server.admin("DELETE", &format!("pins/{}", sha(b"pinned")), Value::Null);
    let report = server.report("gc", json!({ "max_age_s": 0 }));
    // A hard link that somebody has made by hand is not the checkout's, and stays with its blob.
    assert_eq!(report["removed"]["blobs"], 7, "{report}");
    assert!(jobs.join("shows/a/hard").exists() && server.blob(b"hardlinked").exists());
    assert!(server.blob(b"garbage").exists(), "sent again just now");
}

#[test]
fn gc_in_doubt_removes_nothing() {
    let server = TestServer::start();
    server.store_old(b"garbage");
    let storage = server.storage();
    let refused = |status, says: &str| {
        server.admin("POST", "gc", json!({})).is_error(status, says);
        assert!(server.blob(b"garbage").exists());
    };
    // Pins that cannot be understood.
    let pins = storage.join("farmhand/pins");
    fs::write(&pins, "not a digest\n").unwrap();
    refused(500, "line 1");
    server.admin("PUT", &format!("pins/{}", sha(b"x")), Value::Null).is_error(500, "line 1");
    fs::remove_file(&pins).unwrap();
    fs::create_dir(&pins).unwrap();
    refused(500, "cannot read");
    fs::remove_dir(&pins).unwrap();
    // A disk with the checkouts that is not there.
    assert_eq!(server.checkout("a", &[]).status, 200);
    let (jobs, away) = (storage.join("jobs"), storage.join("away"));
    fs::rename(&jobs, &away).unwrap();
    refused(500, "jobs");
    fs::create_dir(&jobs).unwrap();
    refused(409, "is the disk with the checkouts mounted?");
    fs::remove_dir(&jobs).unwrap();
    fs::rename(&away, &jobs).unwrap();
    // Whoever asks for something that there is not.
    server.admin("POST", "gc", json!({ "max_age": 1 })).is_error(400, "max_age");
    assert_eq!(server.report("gc", json!({}))["removed"]["blobs"], 1);
}

/// Requirements, garbage collection and create in any order: what is said to be there is there.
#[test]
fn gc_never_takes_what_was_said_to_be_there() {
    let relaxed = store::Options { durability: Durability::Relaxed, ..Default::default() };
    let server = TestServer::with_store(server::Options::default(), relaxed);
    let contents: Vec<Vec<u8>> = (0..64).map(|number| format!("{number}").into_bytes()).collect();
    /// Ends the other thread however this one ends.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let collected = std::thread::scope(|scope| {
        let stops = Stop(&stop);
        let collecting = scope.spawn(|| {
            let mut removed = 0;
            while !stop.load(Relaxed) {
                let report = server.report("gc", json!({ "max_age_s": 0 }));
                removed += report["removed"]["blobs"].as_u64().unwrap();
                assert_eq!(report["failed"], 0, "{report}");
            }
            removed
        });
        let files: Vec<_> = contents.iter().map(|content| file(content, &sha(content))).collect();
        for round in 0..60 {
            for content in &contents {
                server.connect().upload(content, "");
            }
            // All at once, long ago.
            contents.iter().for_each(|content| {
                let path = server.blob(content);
                if path.exists()
                    && let Ok(file) = fs::File::open(&path)
                {
                    file.set_modified(SystemTime::now() - 40 * DAY).unwrap();
                }
            });
            let answer =
                server.post_json("checkout/requirements", &json!({ "files": files })).json();
            let missing = answer["files"].as_array().unwrap();
            let is_missing =
                |content: &[u8]| missing.iter().any(|file| file["sha"] == sha(content).as_str());
            for content in &contents {
                if !is_missing(content) {
                    assert!(
                        server.blob(content).exists(),
                        "round {round}: it was said to be there"
                    );
                }
            }
            for content in contents.iter().filter(|content| is_missing(content)) {
                assert_eq!(server.upload(content).status, 204);
            }
            let name = format!("c{round}");
            let body = json!({ "checkoutPath": name, "files": files });
            assert_eq!(server.post_json("checkout/create", &body).status, 200);
            assert_eq!(tree(&server.storage().join("jobs").join(&name)).len(), contents.len());
            server.admin("DELETE", &format!("checkouts?path={name}"), Value::Null);
        }
        drop(stops);
        collecting.join().unwrap()
    });
    assert!(collected > 0, "nothing was ever collected");
}

#[test]
fn garbage_is_collected_while_checkouts_are_made_all_the_time() {
    let relaxed = store::Options { durability: Durability::Relaxed, ..Default::default() };
    let server = TestServer::with_store(server::Options::default(), relaxed);
    assert_eq!(server.upload(b"held").status, 204);
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..2)
            .map(|maker| {
                let (server, stop) = (&server, &stop);
                scope.spawn(move || {
                    let mut made = 0;
                    while !stop.load(Relaxed) {
                        let path = format!("{maker}/{made}");
                        assert_eq!(server.checkout(&path, &[("x", b"held")]).status, 200);
                        made += 1;
                    }
                    made
                })
            })
            .collect();
        for round in 0..5 {
            let garbage = format!("garbage {round}");
            server.store_old(garbage.as_bytes());
            let answer = server.admin("POST", "gc", json!({}));
            if !server.status(garbage.as_bytes()).eq("unknown") {
                stop.store(true, Relaxed);
                panic!("round {round}: {}", String::from_utf8_lossy(&answer.body));
            }
        }
        stop.store(true, Relaxed);
        makers.into_iter().map(|maker| maker.join().unwrap()).sum::<i32>()
    });
    assert!(made > 0);
    assert_eq!(server.report("verify", json!({}))["wrong"], 0);
}

#[test]
fn a_checkout_that_moves_while_it_is_walked_is_found() {
    let relaxed = store::Options { durability: Durability::Relaxed, ..Default::default() };
    let server = TestServer::with_store(server::Options::default(), relaxed);
    server.store_old(b"held");
    let jobs = server.storage().join("jobs");
    // Many directories, so that there is something to miss.
    for number in 0..300 {
        fs::create_dir_all(jobs.join(format!("d{number}"))).unwrap();
    }
    assert_eq!(server.checkout("d0/mover", &[("x", b"held")]).status, 200);
    assert_eq!(server.checkout("stays", &[]).status, 200);
    let mut at = 0;
    for _ in 0..10 {
        age(&server.blob(b"held"), 40 * DAY);
        std::thread::scope(|scope| {
            let collecting = scope.spawn(|| server.report("gc", json!({})));
            for _ in 0..fastrand::usize(0..20) {
                let next = (at + 150) % 300;
                let to = jobs.join(format!("d{next}/mover"));
                fs::rename(jobs.join(format!("d{at}/mover")), to).unwrap();
                at = next;
                std::thread::sleep(Duration::from_micros(fastrand::u64(0..5000)));
            }
            assert_eq!(collecting.join().unwrap()["removed"]["blobs"], 0);
        });
        assert!(server.blob(b"held").exists());
    }
}

#[test]
fn why_says_what_keeps_a_blob() {
    let server = TestServer::start();
    server.store_old(b"held");
    assert_eq!(server.checkout("shows/a", &[("x", b"held"), ("y", b"held")]).status, 200);
    let why = |content: &[u8]| {
        server.admin("GET", &format!("blobs/{}", sha(content)), Value::Null).json()
    };
    let held = why(b"held");
    assert_eq!(held["blobs"][0]["held_by"], json!(["shows/a/x", "shows/a/y"]));
    assert_eq!(held["blobs"][0].get("may_go_s"), None);
    // Touched by the checkout.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let needed = held["blobs"][0]["needed_s"].as_u64().unwrap();
    assert!(now - needed < 100);
    server.admin("DELETE", "checkouts?path=shows/a", Value::Null);
    assert_eq!(why(b"held")["blobs"][0]["may_go_s"], needed + 31 * 86_400);
    server.admin("PUT", &format!("pins/{}", sha(b"held")), Value::Null);
    let pinned = why(b"held");
    assert_eq!((&pinned["pinned"], pinned["blobs"][0].get("may_go_s")), (&json!(true), None));
    assert_eq!(why(b"nobody knows this")["blobs"], json!([]));
    server.admin("GET", "blobs/xyz", Value::Null).is_error(400, "not a SHA-256 digest");
}

#[test]
fn checkouts_are_listed_weighed_checked_and_erased() {
    let server = TestServer::start();
    for content in [&b"common"[..], b"one", b"three"] {
        server.upload(content);
    }
    server.checkout("show/a", &[("x", b"common"), ("dir/y", b"one"), ("z", b"common")]);
    server.checkout("show/b", &[("deep/er/x", b"common"), ("deep/w", b"three")]);
    server.checkout("empty", &[]);
    let list = server.admin("GET", "checkouts", Value::Null).json();
    let summary: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|info| json!([info["path"], info["files"], info["bytes"], info["link_mode"]]))
        .collect();
    let expected = json!([
        ["empty", 0, 0, "symlink"],
        ["show/a", 3, 15, "symlink"],
        ["show/b", 2, 11, "symlink"]
    ]);
    assert_eq!(json!(summary), expected);
    // Whatever it looks like, no checkout is made in another.
    server.checkout("show/b/inner", &[]).is_error(409, "\"show/b\" is itself a checkout");
    server.checkout("show/b/deep/inner", &[]).is_error(409, "is itself a checkout");

    let usage = server.admin("GET", "usage", Value::Null).json();
    assert_eq!(usage["stored"], json!({ "blobs": 3, "bytes": 14 }));
    assert_eq!(usage["held"], json!({ "blobs": 3, "bytes": 14 }));
    let rows = |name: &str| -> Vec<Value> {
        let rows = usage[name].as_array().unwrap().iter();
        rows.map(|row| json!([row["path"], row["files"], row["bytes"], row["own_bytes"]])).collect()
    };
    assert_eq!(
        json!(rows("checkouts")),
        json!([["empty", 0, 0, 0], ["show/a", 3, 9, 3], ["show/b", 2, 11, 5]])
    );
    assert_eq!(json!(rows("folders")), json!([["empty", 0, 0, 0], ["show", 5, 14, 14]]));

    assert_eq!(server.report("verify", json!({}))["wrong"], 0);
    assert_eq!(server.report("verify", json!({ "checkout": "show/a" }))["files"], 3);
    server.admin("POST", "verify", json!({ "checkout": "show" })).is_error(404, "no checkout");

    server
        .admin("DELETE", "checkouts?path=show", Value::Null)
        .is_error(409, "there are checkouts in it");
    server.admin("DELETE", "checkouts?path=no", Value::Null).is_error(404, "there is no checkout");
    server
        .admin("DELETE", "checkouts?path=.farmhand-building", Value::Null)
        .is_error(404, "no checkout");
    server.admin("DELETE", "checkouts?path=a/%2e%2e/empty", Value::Null).is_error(400, "checkout");
    let erased = server.admin("DELETE", "checkouts?path=show/a", Value::Null).json();
    assert_eq!(
        erased,
        json!({
            "path": "show/a", "dry_run": false, "files": 3, "directories": 2,
            "outputs": { "files": 0, "bytes": 0, "left": 0, "paths": [] }, "outputs_removed": false,
        })
    );
    let erased = server.admin("DELETE", "checkouts?path=show/b", Value::Null).json();
    assert_eq!((&erased["files"], &erased["directories"]), (&json!(2), &json!(4)), "and `show`");
    assert!(!server.storage().join("jobs/show").exists());
    assert_eq!(server.status(b"common"), "stored");
    let usage = server.admin("GET", "usage", Value::Null).json();
    assert_eq!(usage["not_held"], json!({ "blobs": 3, "bytes": 14 }));
    // Removed by other means, it is listed as gone until it is erased, and in nobody's way.
    fs::remove_dir(server.storage().join("jobs/empty")).unwrap();
    assert_eq!(server.admin("GET", "checkouts", Value::Null).json()[0]["gone"], true);
    assert_eq!(server.report("verify", json!({}))["wrong"], 1);
    assert_eq!(server.checkout("empty/below", &[]).status, 200);
    let list = server.admin("GET", "checkouts", Value::Null).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["path"]), (1, &json!("empty/below")));
}

#[test]
fn what_rots_is_quarantined_asked_for_again_and_healed() {
    let server = TestServer::start();
    let (good, bad) = (random(5000), random(300_000));
    let files: [(&str, &[u8]); 2] = [("good", &good), ("bad", &bad)];
    for (_, content) in files {
        server.upload(content);
    }
    assert_eq!(server.checkout("a", &files).status, 200);
    let mut rotten = bad.clone();
    rotten[123_456] ^= 1;
    damage(&server.blob(&bad), &rotten);
    assert_eq!(server.report("verify", json!({ "deep": true }))["wrong"], 1);

    let report = server.report("scrub", json!({}));
    assert_eq!((&report["complete"], &report["read"]["blobs"]), (&json!(true), &json!(2)));
    let quarantined = &report["quarantined"][0];
    assert_eq!(quarantined["blob"], address(&bad));
    assert_eq!(quarantined["found"], address(&rotten));
    assert_eq!(fs::read(quarantined["moved_to"].as_str().unwrap()).unwrap(), rotten);
    assert_eq!((server.status(&bad), server.status(&good)), ("unknown".into(), "stored".into()));
    let why = server.admin("GET", &format!("blobs/{}", sha(&bad)), Value::Null).json();
    assert_eq!(why["quarantined"][0], quarantined["moved_to"]);
    let problems = server.report("verify", json!({}));
    assert!(problems["problems"][0]["problem"].as_str().unwrap().contains("not stored"));

    // The next sync sends it, and the checkout is whole without being made again.
    let list = json!({ "files": [file(&good, "good"), file(&bad, "bad")] });
    let needed = server.post_json("checkout/requirements", &list).json();
    assert_eq!(needed["files"][0]["sha"], sha(&bad));
    assert_eq!(server.upload(&bad).status, 204);
    assert_eq!(server.report("verify", json!({ "deep": true }))["wrong"], 0);
    assert_eq!(fs::read(server.storage().join("jobs/a/bad")).unwrap(), bad);
    assert_eq!(server.report("scrub", json!({}))["quarantined"], json!([]));
    // Quarantine is emptied of what is stored again, in its time.
    assert_eq!(server.report("gc", json!({}))["quarantined_removed"]["blobs"], 0);
}

#[test]
fn a_scrub_finds_every_kind_of_damage_and_removes_nothing_it_cannot_read() {
    let server = TestServer::start();
    let contents: Vec<Vec<u8>> = (0..5).map(|number| vec![number; 1000]).collect();
    for content in &contents {
        server.upload(content);
    }
    let path = |number: usize| server.blob(&contents[number]);
    damage(&path(0), &contents[0][..999]);
    damage(&path(1), &contents[2]);
    fs::remove_file(path(2)).unwrap();
    fs::create_dir(path(2)).unwrap();
    fs::write(path(2).join("inside"), "x").unwrap();
    fs::remove_file(path(3)).unwrap();
    symlink("/dev/null", path(3)).unwrap();
    let stray = server.storage().join("file-store/stored/ab/readme");
    fs::write(&stray, "x").unwrap();
    // What is damaged in length or kind does not count as stored even before.
    for (number, status) in [(0, "unknown"), (1, "stored"), (2, "unknown"), (3, "unknown")] {
        assert_eq!(server.status(&contents[number]), status, "{number}");
    }
    let report = server.report("scrub", json!({}));
    let found: Vec<_> = report["quarantined"].as_array().unwrap().iter().collect();
    assert_eq!(found.len(), 4, "{report}");
    assert_eq!(report["strays"], json!([stray.to_str().unwrap()]));
    assert!(stray.exists());
    for content in &contents[..4] {
        assert_eq!(server.status(content), "unknown");
        assert_eq!(server.upload(content).status, 204);
        assert_eq!(fs::read(server.blob(content)).unwrap(), *content);
    }
    assert_eq!(server.report("scrub", json!({}))["quarantined"], json!([]));
}

/// What stands in a blob's way is set aside, and nothing of it is lost.
#[test]
fn an_upload_is_stored_whatever_stands_in_its_place() {
    let server = TestServer::start();
    let place = server.blob(b"content");
    let ways: [fn(&Path); 4] = [
        |place| fs::create_dir_all(place.join("sub")).unwrap(),
        |place| fs::write(place.parent().unwrap(), "in the way").unwrap(),
        |place| {
            fs::create_dir(place.parent().unwrap()).unwrap();
            symlink("/nowhere", place).unwrap();
        },
        |place| symlink("/nowhere", place.parent().unwrap()).unwrap(),
    ];
    for (number, way) in ways.iter().enumerate() {
        way(&place);
        assert_eq!(server.status(b"content"), "unknown", "{number}");
        assert_eq!(server.upload(b"content").status, 204, "{number}");
        assert_eq!(fs::read(&place).unwrap(), b"content");
        fs::remove_dir_all(place.parent().unwrap()).unwrap();
    }
    assert_eq!(fs::read_dir(server.storage().join("file-store/quarantine")).unwrap().count(), 3);
}

#[test]
fn a_scrub_goes_on_where_it_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let options = store::Options { durability: Durability::Relaxed, ..Default::default() };
    let contents: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 200_000]).collect();
    {
        let server = TestServer::with_store(server::Options::default(), options);
        for content in &contents {
            assert_eq!(server.upload(content).status, 204);
        }
        fs::rename(server.storage(), dir.path().join("storage")).unwrap();
        fs::create_dir_all(server.storage().join("file-store/uploading")).unwrap();
    }
    let store = Store::open(&dir.path().join("storage"), options).unwrap();
    let scrub = |rate, work: &store::Work| {
        let options = store::ScrubOptions { rate, from_start: false, threads: 1, gentle: false };
        store.scrub(options, work).unwrap()
    };
    let work = store::Work::default();
    let first = std::thread::scope(|scope| {
        let scrubbing = scope.spawn(|| scrub(Some(20_000_000), &work));
        until(|| work.done().blobs >= 10);
        // Nobody else scrubs meanwhile.
        let options =
            store::ScrubOptions { rate: None, from_start: true, threads: 1, gentle: false };
        let other = store.scrub(options, &store::Work::default());
        assert!(matches!(other, Err(store::ScrubError::Busy)));
        work.stop();
        scrubbing.join().unwrap()
    });
    assert!(!first.complete && first.read.blobs < 40);
    let second = scrub(None, &store::Work::default());
    assert!(second.complete);
    assert_eq!(first.read.blobs + second.read.blobs, 40);
    // And then from the start.
    assert_eq!(scrub(None, &store::Work::default()).read.blobs, 40);
}

#[test]
fn upkeep_goes_on_in_the_background_and_remembers_when() {
    let upkeep = Upkeep {
        quiet_start: Duration::ZERO,
        gc_every: Some(DAY),
        scrub_every: Some(DAY),
        scrub_rate: 1 << 40,
        ..Upkeep::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let start = || {
        let options = server::Options { upkeep, ..server::Options::default() };
        TestServer::over(storage.clone(), options)
    };
    drop(Store::open(&storage, store::Options::default()).unwrap());
    let put = |content: &[u8], stored: &[u8]| {
        let path = blob_path(&storage, content);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, stored).unwrap();
        path
    };
    let garbage = put(b"garbage", b"garbage");
    age(&garbage, 40 * DAY);
    let rotten = put(b"right", b"wrong");
    let history = || -> Value {
        let text = fs::read(storage.join("farmhand/history.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    let server = start();
    until(|| !garbage.exists() && !rotten.exists());
    until(|| history()["gc_s"].is_u64() && history()["scrub_s"].is_u64());
    drop(server);
    let before = history();
    // Done today: not again because of a restart.
    age(&put(b"garbage", b"garbage"), 40 * DAY);
    let server = start();
    server.alive();
    drop(server);
    assert!(garbage.exists());
    assert_eq!(history(), before);
}

#[test]
fn link_modes_make_what_they_say() {
    let writable = |path: &Path| fs::metadata(path).unwrap().mode() & 0o200 != 0;
    for mode in [LinkMode::Hardlink, LinkMode::Copy] {
        let options = store::Options { link_mode: mode, ..Default::default() };
        let server = TestServer::with_store(server::Options::default(), options);
        server.upload(b"content");
        assert_eq!(server.checkout("a", &[("x", b"content"), ("dir/y", b"content")]).status, 200);
        let (blob, file) = (server.blob(b"content"), server.storage().join("jobs/a/dir/y"));
        assert_eq!(fs::read(&file).unwrap(), b"content");
        assert!(!file.is_symlink());
        let is_same = fs::metadata(&blob).unwrap().ino() == fs::metadata(&file).unwrap().ino();
        assert_eq!(is_same, mode == LinkMode::Hardlink);
        assert_eq!(writable(&file), mode == LinkMode::Copy, "jobs may write to what is their own");
        assert_eq!(server.report("verify", json!({}))["wrong"], 0);
        let usage = server.admin("GET", "usage", Value::Null).json();
        age(&blob, 40 * DAY);
        let report = server.report("gc", json!({}));
        if mode == LinkMode::Hardlink {
            assert_eq!(usage["held"], json!({ "blobs": 1, "bytes": 7 }));
            assert_eq!(report["held"]["blobs"], 1, "{report}");
            let why =
                server.admin("GET", &format!("blobs/{}", sha(b"content")), Value::Null).json();
            assert_eq!(why["blobs"][0]["held_by"], json!(["a/dir/y", "a/x"]));
        } else {
            assert_eq!(usage["copies"], json!({ "blobs": 2, "bytes": 14 }));
            assert_eq!(report["removed"]["blobs"], 1, "copies need no blob: {report}");
            assert_eq!(server.report("verify", json!({}))["wrong"], 0);
            fs::write(&file, "changed").unwrap();
            let report = server.report("verify", json!({}));
            assert!(report["problems"][0]["problem"].as_str().unwrap().contains("not those"));
        }
    }
}

/// Where files can share content, they do; elsewhere the store says so instead of copying.
#[test]
fn a_mode_that_cannot_work_is_refused_at_the_start_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let output = farmhand(home.path())
        .args(["checkout", "--json", "--as", "a", "--storage"])
        .args([&storage, &fixture("blend-project")])
        .env("FARMHAND_STORE_LINK_MODE", "reflink")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {
            assert_eq!(tree(&storage.join("jobs/a")), tree(&fixture("blend-project")));
        }
        code => {
            assert_eq!(code, Some(2), "{error}");
            assert!(error.contains("btrfs") && error.contains("link_mode"), "{error}");
        }
    }
    assert_eq!(fs::read_dir(storage.join("jobs/.farmhand-building")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(storage.join("file-store/uploading")).unwrap().count(), 0);
    // Checkouts on another file system than blobs: no hard links.
    let mut program = farmhand(home.path());
    program.args(["store", "list", "--storage"]).arg(&storage);
    program.env("FARMHAND_STORE_LINK_MODE", "hardlink");
    match super::disk_full::with_small_disk(&program, &storage.join("jobs")) {
        None => eprintln!("NOT TESTED: no file system can be mounted here"),
        Some(mut command) => {
            let output = command.output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.contains("on one file system"), "{error}");
        }
    }
}

fn store_command(home: &Path, arguments: &[&str], storage: &Path) -> Output {
    farmhand(home)
        .arg("store")
        .args(arguments)
        .arg(if arguments[0] == "adopt" { "--" } else { "--storage" })
        .arg(storage)
        .output()
        .unwrap()
}

#[test]
fn the_storage_of_another_server_is_taken_over_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("shaman");
    let put = |content: &[u8], stored: &[u8]| {
        let path = blob_path(&storage, content);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, stored).unwrap();
        path
    };
    let good = put(b"good", b"good");
    let other = put(b"other", b"other");
    age(&good, 5 * DAY);
    let rotten = put(b"rotten", b"ROTTEN");
    let checkout = storage.join("jobs/2026-11-23/shot");
    fs::create_dir_all(checkout.join("lib")).unwrap();
    symlink(
        good.strip_prefix(&storage).map(|p| Path::new("../../..").join(p)).unwrap(),
        checkout.join("a"),
    )
    .unwrap();
    symlink(&other, checkout.join("lib/b")).unwrap();
    let theirs = storage.join("file-store/uploading/ab/cdef");
    fs::create_dir_all(&theirs).unwrap();
    fs::write(theirs.join("7-1234.tmp"), "half").unwrap();

    let nothing = store_command(home.path(), &["adopt"], &home.path().join("no"));
    assert_eq!(nothing.status.code(), Some(4));
    assert!(!home.path().join("no").exists());
    let before = tree(&storage.join("jobs"));
    let quick = store_command(home.path(), &["adopt", "--quick", "--json"], &storage);
    assert_eq!(quick.status.code(), Some(0), "{quick:?}");
    let report: Value = serde_json::from_slice(&quick.stdout).unwrap();
    assert_eq!(report["made_read_only"], 3);
    assert_eq!(report["verify"]["checkouts"], 1);
    assert_eq!(report["usage"]["checkouts"][0]["path"], "2026-11-23/shot");
    assert_eq!(report["usage"]["checkouts"][0]["bytes"], 9);
    let whole = store_command(home.path(), &["adopt", "--json"], &storage);
    assert_eq!(whole.status.code(), Some(9), "{whole:?}");
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(report["scrub"]["quarantined"][0]["blob"], address(b"rotten"));
    assert!(!rotten.exists());
    // All else is as it was.
    assert_eq!(tree(&storage.join("jobs")), before);
    assert!(theirs.join("7-1234.tmp").exists());
    assert_eq!(fs::metadata(&good).unwrap().mode() & 0o777, 0o444);
    assert!(fs::metadata(&good).unwrap().modified().unwrap().elapsed().unwrap() > 4 * DAY);
    assert_eq!(store_command(home.path(), &["adopt"], &storage).status.code(), Some(0));
    // And it is served.
    let server = ServerProcess::start(home.path(), &storage, &[]);
    let path = format!("/api/v3/shaman/files/{}", address(b"good"));
    assert_eq!(server.connect().get(&path).json()["status"], "stored");
}

#[test]
fn the_commands_work_with_a_directory_and_with_a_server() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let project = fixture("blend-project");
    let sync = |name: &str| {
        let mut command = farmhand(home.path());
        command.args(["checkout", "--as", name, "--storage"]).args([&storage, &project]);
        assert!(command.output().unwrap().status.success());
    };
    sync("shows/one");
    let served = std::cell::RefCell::new(None::<ServerProcess>);
    let run = |arguments: &[&str]| {
        let mut command = farmhand(home.path());
        command.arg("store").args(arguments);
        match &*served.borrow() {
            Some(server) => command.args(["--server", &server.url]),
            None => command.arg("--storage").arg(&storage),
        };
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let content = fs::read(project.join(tree(&project).keys().next().unwrap())).unwrap();
    let digest = sha(&content);
    for round in 0..2 {
        let (code, list, error) = run(&["list"]);
        assert_eq!(code, 0, "{error}");
        assert!(list.contains("shows/one"), "{list}");
        let (code, du, _) = run(&["du"]);
        assert!(code == 0 && du.contains("CHECKOUT") && du.contains("stored"), "{du}");
        assert_eq!(run(&["verify"]).0, 0);
        let (code, why, _) = run(&["why", &digest]);
        assert!(code == 0 && why.contains("shows/one/"), "{why}");
        assert_eq!(run(&["why", &"ab".repeat(32)]).0, 4);
        assert_eq!(run(&["pin", &digest]).0, 0);
        assert_eq!(run(&["pin", &"ab".repeat(32)]).0, 4);
        assert_eq!(run(&["pin"]).1.trim(), digest);
        assert_eq!(run(&["unpin", &digest]).0, 0);
        assert_eq!(run(&["unpin", &digest]).0, 4);
        let (code, gc, _) = run(&["gc", "--dry-run", "--max-age", "1d"]);
        assert!(code == 0 && gc.contains("would remove"), "{gc}");
        let (code, json, _) = run(&["gc", "--json"]);
        let report: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, &report["schema"]), (0, &json!("farmhand.store.gc/1")));
        let (code, scrub, _) = run(&["scrub", "--rate", "10GiB/s"]);
        assert!(code == 0 && scrub.contains("read"), "{scrub}");
        for (arguments, says) in [
            (&["gc", "--max-age", "soon"][..], "is no time"),
            (&["scrub", "--rate", "fast"], "is no rate"),
            (&["erase", "../x"], "names no checkout"),
            (&["why", "abc"], "not a SHA-256 digest"),
        ] {
            let (code, _, error) = run(arguments);
            assert!(code == 2 && error.contains(says), "{arguments:?}: {error}");
        }
        let (code, _, error) = run(&["erase", "nothing"]);
        assert!(code == 4 && error.contains("there is no checkout"), "{error}");
        let (code, erased, _) = run(&["erase", "shows/one"]);
        assert!(code == 0 && erased.contains("erased shows/one"), "{erased}");
        assert!(!storage.join("jobs/shows").exists());
        if round == 0 {
            sync("shows/one");
            *served.borrow_mut() = Some(ServerProcess::start(home.path(), &storage, &[]));
        }
    }
    // While it is served, the directory is not to be had, and the message says where.
    let output = store_command(home.path(), &["list"], &storage);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("--server"), "{error}");
    let missing = store_command(home.path(), &["list"], &home.path().join("typo"));
    assert_eq!(missing.status.code(), Some(4));
    assert!(!home.path().join("typo").exists(), "looking makes no store");
}

/// What stands in checkouts, and what farmhand remembers, is damaged in every way: it is noticed, and
/// costs nothing else.
#[test]
fn the_metrics_tell_what_is_stored_and_what_was_done_to_it() {
    let storage = tempfile::tempdir().unwrap();
    let server = TestServer::over(storage.path().to_owned(), server::Options::default());
    let counted = |server: &TestServer| {
        let found = scrape(server);
        [
            "store_blobs",
            "store_bytes",
            "gc_removed_blobs_total",
            "gc_removed_bytes_total",
            "scrub_read_blobs_total",
            "scrub_read_bytes_total",
            "scrub_unreadable_total",
            "quarantined_total",
        ]
        .map(|name| found.get(&format!("farmhand_{name}")).map(|value| *value as u64))
    };
    let is = |expected: [u64; 8]| expected.map(Some);
    until(|| counted(&server) == is([0; 8]));
    for (content, size) in [(&b"garbage"[..], 7), (b"damaged", 7), (b"fine", 4)] {
        let before = counted(&server);
        for status in [204, 208] {
            assert_eq!(server.upload(content).status, status);
        }
        let after = counted(&server);
        assert_eq!(after[1].unwrap() - before[1].unwrap(), size);
    }
    assert_eq!(counted(&server), is([3, 18, 0, 0, 0, 0, 0, 0]));
    age(&server.blob(b"garbage"), 40 * DAY);
    server.report("gc", json!({}));
    assert_eq!(counted(&server), is([2, 11, 1, 7, 0, 0, 0, 0]));
    damage(&server.blob(b"damaged"), b"demaged");
    server.report("scrub", json!({}));
    assert_eq!(counted(&server), is([1, 4, 1, 7, 2, 11, 0, 1]));
    // Sent again, over what somebody has cut short: no more and no fewer.
    damage(&server.blob(b"fine"), b"fin");
    assert_eq!(server.upload(b"fine").status, 204);
    assert_eq!(counted(&server)[..2], [Some(1), Some(4)]);
    // What others remove is noticed by the next garbage collection.
    fs::remove_file(server.blob(b"fine")).unwrap();
    server.report("gc", json!({}));
    assert_eq!(counted(&server)[..2], [Some(0), Some(0)]);
    server.upload(b"fine");

    // Another one counts anew, and knows when the last one was done.
    let jobs = |server: &TestServer| {
        let job = |name| format!("farmhand_last_success_timestamp_seconds{{job=\"{name}\"}}");
        let found = scrape(server);
        ["gc", "scrub"].map(|name| found.get(&job(name)).map(|value| value.floor() as u64))
    };
    let before = jobs(&server);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    drop(server);
    let server = TestServer::over(storage.path().to_owned(), server::Options::default());
    assert_eq!(jobs(&server), before);
    until(|| counted(&server) == is([1, 4, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn damage_to_checkouts_and_to_what_is_remembered_is_noticed_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let jobs = storage.join("jobs");
    let start = || TestServer::over(storage.clone(), server::Options::default());
    let server = start();
    server.upload(b"one");
    server.upload(b"two");
    let names = ["deleted", "other", "folder", "foreign", "gone", "replaced", "whole"];
    for name in names {
        assert_eq!(server.checkout(name, &[("a", b"one"), ("b", b"two")]).status, 200);
    }
    fs::remove_file(jobs.join("deleted/a")).unwrap();
    fs::remove_file(jobs.join("other/a")).unwrap();
    fs::copy(jobs.join("other/b"), jobs.join("x")).unwrap();
    symlink(fs::read_link(jobs.join("other/b")).unwrap(), jobs.join("other/a")).unwrap();
    fs::remove_file(jobs.join("folder/a")).unwrap();
    fs::create_dir(jobs.join("folder/a")).unwrap();
    fs::remove_file(jobs.join("foreign/a")).unwrap();
    symlink("/etc/hostname", jobs.join("foreign/a")).unwrap();
    fs::remove_dir_all(jobs.join("gone")).unwrap();
    fs::remove_dir_all(jobs.join("replaced")).unwrap();
    fs::write(jobs.join("replaced"), "a file").unwrap();
    let wrong = |server: &TestServer| -> std::collections::BTreeSet<String> {
        let report = server.report("verify", json!({}));
        let problems = report["problems"].as_array().unwrap().iter();
        problems.map(|problem| problem["checkout"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(wrong(&server), names.iter().take(6).map(|name| name.to_string()).collect());
    drop(server);

    // All that is remembered becomes nonsense: nothing depends on it but what it is about.
    for file in tree(&storage.join("farmhand")).keys() {
        fs::remove_file(storage.join("farmhand").join(file)).unwrap();
        fs::write(storage.join("farmhand").join(file), "nonsense").unwrap();
    }
    for file in ["scrub.json", "history.json"] {
        fs::write(storage.join("farmhand").join(file), "{\"from\": 7").unwrap();
    }
    let server = start();
    // By their look, they are checkouts still; what they had in them is not known any more.
    assert_eq!(wrong(&server), ["foreign".to_owned()].into());
    server.checkout("whole/inner", &[]).is_error(409, "is itself a checkout");
    assert_eq!(server.report("scrub", json!({}))["complete"], true);
    assert_eq!(server.report("gc", json!({}))["removed"]["blobs"], 0);
    server.admin("DELETE", "checkouts?path=whole", Value::Null).is_error(409, "not on record");
    assert_eq!(server.admin("DELETE", "checkouts?path=whole&force=true", Value::Null).status, 200);
    assert_eq!(server.checkout("whole", &[("a", b"one")]).json()["checkoutPath"], "whole");
    assert_eq!(server.report("verify", json!({ "checkout": "whole" }))["wrong"], 0);
}

#[test]
fn a_lock_that_is_damaged_lets_no_second_server_in() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let server = ServerProcess::start(home.path(), &storage, &[]);
    let lock = storage.join("farmhand.lock");
    let second = || {
        let mut command = farmhand(home.path());
        command.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(&storage);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        if !url.is_empty() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    fs::write(&lock, "nonsense \u{1b}[31m").unwrap();
    assert!(second().contains("is in use by another farmhand"));
    fs::remove_file(&lock).unwrap();
    assert!(second().contains("is in use by another farmhand"), "the lock file was removed");
    drop(server);
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert!(second().contains("farmhand.lock"));
    fs::remove_dir(&lock).unwrap();
    ServerProcess::start(home.path(), &storage, &[]);
}
