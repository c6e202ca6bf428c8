//! Crashes and failing disks at every change that upkeep makes, and that the first start makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{
    common::*,
    crash::{ask, check, fields, log_lines, scenario, start, start_with},
};

const EIO: &str = "5";

const GARBAGE: [&[u8]; 3] = [b"garbage", b"more garbage", b"the rest"];
/// What stands at the places of two blobs that are damaged.
const ROTTEN: &[u8] = b"rotten!";
const EVIDENCE: &[u8] = b"evidence";

fn blob_path(storage: &Path, content: &[u8]) -> PathBuf {
    let sha = sha(content);
    storage.join(format!("file-store/stored/{}/{}/{}.blob", &sha[..2], &sha[2..], content.len()))
}

/// Whatever this is the content of was last needed long ago.
fn age(storage: &Path, content: &[u8]) {
    let long_ago = SystemTime::now() - Duration::from_secs(40 * 86_400);
    fs::File::open(blob_path(storage, content)).unwrap().set_modified(long_ago).unwrap();
}

/// A request with an answer that is whole; `None` if the server goes instead.
fn admin(connection: &mut Connection, method: &str, path: &str, body: &Value) -> Option<Answer> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} /farmhand/v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
         Content-Type: application/json\r\n\r\n{body}",
        body.len()
    );
    ask(connection, request.as_bytes())
}

/// The report of a long operation that came to its end.
fn report(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(last["report"].is_object(), "{text}");
    last["report"].clone()
}

/// A store in which there is something to do for everything that looks after it.
/// The checkout that is deleted, and a file in it that farmhand did not create.
const ERASED: &str = "jobs/shows/old/er";
const FRAME: &str = "render/0001.png";

fn prepare(home: &Path, storage: &Path) {
    let (server, _) = start(home, storage, "").unwrap();
    let mut connection = server.connect();
    let others: [&[u8]; 7] =
        [b"held", b"damaged", b"directory", b"pinned", b"to be pinned", b"young", b"erased"];
    for content in others.into_iter().chain(GARBAGE) {
        assert_eq!(connection.upload(content, "").status, 204);
    }
    for (path, files) in [
        ("shows/demo", vec![file(b"held", "a"), file(b"damaged", "b"), file(b"directory", "c")]),
        // One that has nothing at its top that makes it look like a checkout.
        ("shows/old/er", vec![file(b"erased", "dir/x"), file(b"held", "dir/y")]),
        ("removed", vec![file(b"held", "x")]),
    ] {
        let body = json!({ "checkoutPath": path, "files": files });
        assert_eq!(connection.post_json("checkout/create", &body).status, 200);
    }
    let pin = format!("pins/{}", sha(b"pinned"));
    assert_eq!(admin(&mut connection, "PUT", &pin, &Value::Null).unwrap().status, 200);
    drop(server);
    // A job has rendered this.
    fs::create_dir(storage.join(ERASED).join("render")).unwrap();
    fs::write(storage.join(ERASED).join(FRAME), FRAME).unwrap();
    for content in others.into_iter().chain(GARBAGE).filter(|content| *content != b"young") {
        age(storage, content);
    }
    // Somebody has removed it by other means.
    fs::remove_dir_all(storage.join("jobs/removed")).unwrap();
    let damaged = blob_path(storage, b"damaged");
    fs::set_permissions(&damaged, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&damaged, ROTTEN).unwrap();
    age(storage, b"damaged");
    let directory = blob_path(storage, b"directory");
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("x"), EVIDENCE).unwrap();
}

/// What was answered; `None` where there was no answer.
#[derive(Debug, Default)]
struct Done {
    pin: Option<Answer>,
    gc: Option<Answer>,
    scrub: Option<Answer>,
    erase: Option<Answer>,
    unpin: Option<Answer>,
}

impl Done {
    fn all(&self) -> [&Option<Answer>; 5] {
        [&self.pin, &self.gc, &self.scrub, &self.erase, &self.unpin]
    }

    /// The operations that were answered, and as if nothing had been wrong.
    fn went_well(&self) -> usize {
        let is_fine = |answer: &&Option<Answer>| {
            answer.as_ref().is_some_and(|answer| {
                let text = String::from_utf8_lossy(&answer.body);
                answer.status == 200
                    && !text.contains("\"error\"")
                    && !text.contains("Input/output error")
            })
        };
        self.all().into_iter().filter(is_fine).count()
    }
}

/// Everything that looks after a store, once. Ends with the server.
fn look_after(server: &ServerProcess) -> Done {
    let mut connection = server.connect();
    let mut ask = |method, path: &str, body| admin(&mut connection, method, path, &body);
    let pin = format!("pins/{}", sha(b"to be pinned"));
    Done {
        pin: ask("PUT", &pin, Value::Null),
        gc: ask("POST", "gc", json!({})),
        scrub: ask("POST", "scrub", json!({})),
        erase: ask("DELETE", "checkouts?path=shows/old/er", Value::Null),
        unpin: ask("DELETE", &format!("pins/{}", sha(b"pinned")), Value::Null),
    }
}

fn is_ok(answer: &Option<Answer>) -> bool {
    answer.as_ref().is_some_and(|answer| answer.status == 200)
}

fn is_error(answer: &Option<Answer>) -> bool {
    answer.as_ref().is_some_and(|answer| answer.status != 200)
}

/// All that must hold when the store is opened again.
fn check_upkeep(storage: &Path, done: &Done, at: &str) {
    // Temp files of every kind.
    for dir in ["file-store/uploading", "jobs/.farmhand-building"] {
        let left = fs::read_dir(storage.join(dir)).unwrap().count();
        assert_eq!(left, 0, "{at}: something is left in {dir}");
    }
    for entry in fs::read_dir(storage.join("farmhand/checkouts")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.ends_with(".json"), "{at}: {name} is left");
    }

    // Blobs: what is held, pinned or young is there; nothing else is damaged.
    let mut needed: Vec<&[u8]> = vec![b"held", b"pinned", b"young", b"erased"];
    if !is_error(&done.pin) {
        needed.push(b"to be pinned");
    }
    for content in needed {
        let found = fs::read(blob_path(storage, content)).unwrap_or_default();
        assert_eq!(found, content, "{at}: a blob that is needed is lost");
    }
    let mut evidence = BTreeSet::new();
    for (path, content) in tree(&storage.join("file-store/stored")) {
        let (sha, size) = (sha(&content), content.len());
        if path == format!("{}/{}/{size}.blob", &sha[..2], &sha[2..]) {
            continue;
        }
        assert!(content == ROTTEN || content == EVIDENCE, "{at}: {path} was damaged");
        assert!(evidence.insert(content), "{at}: {path} is there twice");
    }
    // What was damaged is at its place or in quarantine.
    for (path, content) in tree(&storage.join("file-store/quarantine")) {
        assert!(evidence.insert(content), "{at}: {path} is there twice");
    }
    assert_eq!(evidence, BTreeSet::from([ROTTEN.to_vec(), EVIDENCE.to_vec()]), "{at}");

    // What has happened was told, if there was an answer.
    let garbage = GARBAGE.into_iter().chain([&b"to be pinned"[..]]);
    let gone = garbage.filter(|content| !blob_path(storage, content).exists()).count();
    if let Some(answer) = done.gc.as_ref().filter(|answer| gone > 0 || answer.status == 200) {
        let collected = report(answer);
        assert_eq!(collected["removed"]["blobs"], gone, "{at}: {collected}");
    }
    let moved = tree(&storage.join("file-store/quarantine")).len();
    if let Some(answer) = done.scrub.as_ref().filter(|answer| answer.status == 200) {
        let scrubbed = report(answer);
        let told = scrubbed["quarantined"].as_array().unwrap().len();
        assert_eq!(told, moved, "{at}: {scrubbed}");
    }

    // Checkouts are whole or gone.
    for name in ["a", "b", "c"] {
        let link = storage.join("jobs/shows/demo").join(name);
        assert!(link.is_symlink(), "{at}: {name} of a checkout is gone");
    }
    let erased = tree(&storage.join(ERASED));
    assert_eq!(erased[FRAME], FRAME.as_bytes(), "{at}: a frame is lost");
    if erased.len() > 1 {
        assert_eq!(erased.len(), 3, "{at}: half a checkout is visible");
        assert!(!is_ok(&done.erase), "{at}: it was said to be gone");
    }

    // Pins are the old ones or the new ones.
    let text = fs::read_to_string(storage.join("farmhand/pins")).unwrap();
    let pins: BTreeSet<_> = text.lines().map(str::to_owned).collect();
    let (old, new) = (sha(b"pinned"), sha(b"to be pinned"));
    let (has_old, has_new) = (pins.contains(&old), pins.contains(&new));
    assert_eq!(pins.len(), usize::from(has_old) + usize::from(has_new), "{at}: {pins:?}");
    assert!(has_new || !is_ok(&done.pin), "{at}: it was said to be pinned");
    assert!(!has_old || !is_ok(&done.unpin), "{at}: it was said not to be pinned");
    // Whoever did not come as far as the erasing did not begin to take it away.
    assert!(has_old || done.erase.is_some(), "{at}: a pin was lost before it was taken away");
}

/// On a store that was opened again everything succeeds, whatever was half done.
fn look_after_again(server: &ServerProcess, storage: &Path, at: &str) {
    let mut connection = server.connect();
    let mut ask =
        |method, path: &str, body| admin(&mut connection, method, path, &body).expect("an answer");
    let listed = ask("GET", "checkouts", Value::Null).json();
    let is_listed = |path: &str| listed.as_array().unwrap().iter().any(|info| info["path"] == path);
    assert!(is_listed("shows/demo"), "{at}: {listed}");
    let whole_or_gone: BTreeSet<_> = ["shows/demo", "shows/old/er", "removed"].into();
    for info in listed.as_array().unwrap() {
        let path = info["path"].as_str().unwrap();
        assert!(whole_or_gone.contains(path), "{at}: {listed}");
    }

    // Garbage if it could not be pinned: that has been looked at.
    let was_kept = blob_path(storage, b"to be pinned").exists();
    let pin = format!("pins/{}", sha(b"to be pinned"));
    assert_eq!(ask("PUT", &pin, Value::Null).status, 200, "{at}");
    let collected = report(&ask("POST", "gc", json!({})));
    assert_eq!((&collected["failed"], &collected["errors"]), (&json!(0), &json!([])), "{at}");
    for content in GARBAGE {
        assert!(!blob_path(storage, content).exists(), "{at}: garbage is left");
    }
    let scrubbed = report(&ask("POST", "scrub", json!({ "from_start": true })));
    assert_eq!(
        (&scrubbed["complete"], &scrubbed["unreadable"]),
        (&json!(true), &json!([])),
        "{at}"
    );
    let quarantined = tree(&storage.join("file-store/quarantine")).len();
    assert_eq!(quarantined, 2, "{at}: {scrubbed}");
    let erase = ask("DELETE", "checkouts?path=shows/old/er", Value::Null);
    let expected = if is_listed("shows/old/er") { 200 } else { 404 };
    // Garbage collection forgets those of which only the record is left.
    assert_eq!(erase.status, expected, "{at}: {erase:?}");
    let left: Vec<_> = tree(&storage.join(ERASED)).into_keys().collect();
    assert_eq!(left, [FRAME], "{at}");
    assert_eq!(ask("DELETE", &format!("pins/{}", sha(b"pinned")), Value::Null).status, 200);
    assert_eq!(ask("GET", "pins", Value::Null).json()["pins"], json!([sha(b"to be pinned")]));
    let listed = ask("GET", "checkouts", Value::Null).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{at}: {listed}");

    // What is sent again is whole again, and nothing of what was erased or unpinned is kept.
    for content in [&b"damaged"[..], b"directory"] {
        assert_eq!(connection.upload(content, "").status, 204, "{at}");
    }
    let mut ask =
        |method, path: &str, body| admin(&mut connection, method, path, &body).expect("an answer");
    let verified = report(&ask("POST", "verify", json!({ "deep": true })));
    assert_eq!(
        (&verified["wrong"], &verified["files"]),
        (&json!(0), &json!(3)),
        "{at}: {verified}"
    );
    let collected = report(&ask("POST", "gc", json!({})));
    let kept: Vec<_> = [&b"pinned"[..], b"erased", b"to be pinned"]
        .into_iter()
        .map(|content| blob_path(storage, content).exists())
        .collect();
    assert_eq!(kept, [false, false, was_kept], "{at}: {collected}");
}

fn copy_store(from: &Path, to: &Path) {
    // With links as they are, and times.
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// How often each change was made or tried, by the log.
fn count_changes(log: &Path) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for line in log_lines(log) {
        let (change, ..) = fields(&line);
        if !change.is_empty() {
            *count.entry(change.to_owned()).or_default() += 1;
        }
    }
    count
}

/// Each fault in a run, then a run without one.
fn sweep(action: &str, after_fault: impl Fn(&Done, &Path, &str)) {
    let home = tempfile::tempdir().unwrap();
    let template = home.path().join("template");
    prepare(home.path(), &template);

    // How often each change is made when nothing fails.
    let storage = home.path().join("whole");
    copy_store(&template, &storage);
    let (server, log) = start(home.path(), &storage, "").unwrap();
    let done = look_after(&server);
    assert_eq!(done.went_well(), 5, "{done:?}");
    let collected = report(done.gc.as_ref().unwrap());
    for (what, blobs) in [("removed", 3), ("pinned", 2), ("young", 1)] {
        assert_eq!(collected[what]["blobs"], blobs, "{what} in {collected}");
    }
    let scrubbed = report(done.scrub.as_ref().unwrap());
    assert_eq!(scrubbed["quarantined"].as_array().unwrap().len(), 2, "{scrubbed}");
    drop(server);
    check_upkeep(&storage, &done, "without a fault");
    let changes = count_changes(&log);
    let kinds: Vec<_> = changes.keys().map(String::as_str).collect();
    let all =
        ["create-file", "remove", "rename", "sync-data", "sync-dir", "sync-file-system", "write"];
    assert_eq!(kinds, all, "it does not do everything");

    let mut struck = 0;
    for (change, count) in changes {
        for number in 1..=count {
            let at = format!("{change}:{number}={action}");
            let storage = home.path().join("storage");
            copy_store(&template, &storage);
            let mut done = Done::default();
            if let Some((server, log)) = start(home.path(), &storage, &at) {
                done = look_after(&server);
                after_fault(&done, &log, &at);
                struck += 1;
            }
            let (server, _) = start(home.path(), &storage, "").unwrap();
            check_upkeep(&storage, &done, &at);
            look_after_again(&server, &storage, &at);
            drop(server);
            fs::remove_dir_all(&storage).unwrap();
        }
    }
    assert!(struck > 30, "{struck}");
}

#[test]
fn killed_before_any_change_of_upkeep_it_loses_nothing() {
    sweep("kill", |done, _, at| {
        assert!(done.all().iter().any(|answer| answer.is_none()), "{at} did not strike");
    });
}

#[test]
fn a_disk_that_fails_at_any_change_of_upkeep_costs_that_alone() {
    sweep(EIO, |done, log, at| {
        assert!(done.all().iter().all(|answer| answer.is_some()), "{at}: {done:?}");
        // It is told: in an answer, or, where the answer is right nevertheless, in the log.
        let is_told = log_lines(log).iter().any(|line| {
            line["level"] != "TRACE"
                && line["fields"]["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("Input/output error"))
        });
        assert!(done.went_well() == 4 || (done.went_well() == 5 && is_told), "{at}: {done:?}");
    });
}

#[test]
fn upkeep_of_a_relaxed_store_syncs_nothing() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    prepare(home.path(), &storage);
    let relaxed = [("FARMHAND_STORE_DURABILITY", "relaxed")];
    let (server, log) = start_with(home.path(), &storage, "", &relaxed).unwrap();
    assert_eq!(look_after(&server).went_well(), 5);
    drop(server);
    let changes = count_changes(&log);
    assert_eq!(
        changes.into_keys().collect::<Vec<_>>(),
        ["create-file", "remove", "rename", "write"]
    );
}

/// All changes of a first start in this mode of links, of those that are alike only some.
fn changes_of_a_first_start(mode: &str) -> Vec<(String, usize)> {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let (server, log) = start_in_mode(home.path(), &storage, "", mode).unwrap();
    drop(server);
    let mut changes = Vec::new();
    let mut kinds: Vec<_> = log_lines(&log).iter().map(|line| fields(line).0.to_owned()).collect();
    kinds.retain(|change| !change.is_empty());
    let all = kinds.len();
    kinds.sort();
    for same in kinds.chunk_by(|a, b| a == b) {
        let count = same.len();
        let is_worth_it =
            |number: &usize| *number <= 10 || number.is_multiple_of(100) || *number == count;
        changes.extend((1..=count).filter(is_worth_it).map(|number| (same[0].clone(), number)));
    }
    assert!(all > 256 + 5 + 3, "the fixed directories, and they are synced");
    changes
}

fn start_in_mode(
    home: &Path,
    storage: &Path,
    fault: &str,
    mode: &str,
) -> Option<(ServerProcess, PathBuf)> {
    start_with(home, storage, fault, &[("FARMHAND_STORE_LINK_MODE", mode)])
}

#[test]
fn a_first_start_that_fails_or_is_killed_anywhere_is_made_up_for_by_the_next() {
    for (mode, action) in
        [("symlink", "kill"), ("symlink", EIO), ("hardlink", "kill"), ("hardlink", EIO)]
    {
        let mut struck = 0;
        for (change, number) in changes_of_a_first_start(mode) {
            // What both modes do is done once.
            if mode == "hardlink" && (change == "create-dir" || change == "sync-file-system") {
                continue;
            }
            let at = format!("{mode}, {change}:{number}={action}");
            let home = tempfile::tempdir().unwrap();
            let storage = home.path().join("storage");
            match start_in_mode(home.path(), &storage, &format!("{change}:{number}={action}"), mode)
            {
                None => struck += 1,
                // What cannot be removed stands in nobody's way.
                Some(_) => assert!(action == EIO && change == "remove", "{at} did not strike"),
            }
            let (server, _) = start_in_mode(home.path(), &storage, "", mode).expect(&at);
            let promised = scenario(&server);
            assert_eq!(promised.summary(), (3, 2, 0), "after {at}");
            drop(server);
            check(&storage, &[promised]);
        }
        assert!(struck >= 3, "{mode}, {action}: {struck}");
    }
}

/// With the only checkout on its way out, nothing must look as if the disk with the checkouts were gone.
#[test]
fn an_interrupted_deletion_is_finished() {
    for fault in [
        "rename:1=kill",
        "sync-dir:1=kill",
        "remove:1=kill",
        "remove:2=kill",
        "remove:3=kill",
        "remove:4=kill",
        "rename:1=5",
        "sync-dir:1=5",
        "remove:1=5",
        "remove:2=5",
    ] {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        let (server, _) = start(home.path(), &storage, "").unwrap();
        let mut connection = server.connect();
        assert_eq!(connection.upload(b"held", "").status, 204);
        let files = [file(b"held", "dir/x"), file(b"held", "dir/y")];
        let body = json!({ "checkoutPath": "shows/only", "files": files });
        assert_eq!(connection.post_json("checkout/create", &body).status, 200);
        drop(server);
        let frame = storage.join("jobs/shows/only/dir/frame");
        fs::write(&frame, "rendered").unwrap();
        age(&storage, b"held");
        let (server, _) = start(home.path(), &storage, fault).unwrap();
        let path = "checkouts?path=shows/only";
        let answer = admin(&mut server.connect(), "DELETE", path, &Value::Null);
        assert_eq!(answer.is_some(), fault.ends_with(EIO), "{fault}");
        assert!(!is_ok(&answer), "{fault}: {answer:?}");
        // It has not begun if its record could not be renamed.
        let has_begun = !fault.starts_with("rename:1");
        if answer.is_some() {
            let mut connection = server.connect();
            let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap().json();
            let is_listed = listed.as_array().unwrap().len() == 1;
            assert!(is_listed != has_begun || fault == "sync-dir:1=5", "{fault}: {listed}");
        }
        drop(server);
        // Nor if the next start cannot finish it, but the one after that.
        drop(start(home.path(), &storage, "remove:1=5").expect("it is opened nevertheless"));
        let (server, _) = start(home.path(), &storage, "").unwrap();
        let mut connection = server.connect();
        let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap().json();
        let is_there = listed.as_array().unwrap().len() == 1;
        assert_eq!(is_there, !has_begun, "{fault}: {listed}");
        let left = tree(&storage.join("jobs/shows"));
        assert_eq!(left.len(), if is_there { 3 } else { 1 }, "{fault}: {left:?}");
        let collected = report(&admin(&mut connection, "POST", "gc", &json!({})).unwrap());
        assert_eq!(collected["removed"]["blobs"], usize::from(!is_there), "{fault}: {collected}");
        let erased = admin(&mut connection, "DELETE", path, &Value::Null).unwrap();
        assert_eq!(erased.status, if is_there { 200 } else { 404 }, "{fault}");
        assert_eq!(fs::read(&frame).unwrap(), b"rendered", "{fault}");
        let records = fs::read_dir(storage.join("farmhand/checkouts")).unwrap().count();
        assert_eq!(records, 0, "{fault}");
    }
}

/// A deletion that failed can be asked for again, and a checkout of the same name is not taken for the rest of it.
#[test]
fn a_failed_deletion_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let (server, _) = start(home.path(), &storage, "remove:2=5").unwrap();
    let mut connection = server.connect();
    assert_eq!(connection.upload(b"held", "").status, 204);
    let files = [file(b"held", "x"), file(b"held", "y")];
    let body = json!({ "checkoutPath": "only", "files": files });
    assert_eq!(connection.post_json("checkout/create", &body).status, 200);
    let path = "checkouts?path=only";
    let failed = admin(&mut connection, "DELETE", path, &Value::Null).unwrap();
    failed.is_error(500, "cannot remove");
    assert_eq!(tree(&storage.join("jobs/only")).len(), 1, "it has begun");
    // What is left of it is no checkout, and none is made in it.
    let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap().json();
    assert_eq!(listed, json!([]));
    let manifest = admin(&mut connection, "GET", "checkouts/manifest?path=only", &Value::Null);
    manifest.unwrap().is_error(404, "no checkout");
    let inside = json!({ "checkoutPath": "only/inside", "files": [file(b"held", "x")] });
    connection.post_json("checkout/create", &inside).is_error(409, "is being deleted");
    let job = json!({
        "name": "late", "type": "simple-blender-render", "priority": 50, "submitter_platform": "linux",
        "settings": { "frames": "1", "blendfile": "{jobs}/only/x" },
    });
    connection.api("POST", "jobs", &job).is_error(409, "is being erased");
    let beside = connection.post_json("checkout/create", &body).json();
    assert!(beside["checkoutPath"].as_str().unwrap().starts_with("only-"), "{beside}");
    assert_eq!(admin(&mut connection, "DELETE", path, &Value::Null).unwrap().status, 200);
    assert!(!storage.join("jobs/only").exists());
    let answer = connection.post_json("checkout/create", &body);
    assert_eq!(answer.json()["checkoutPath"], "only");
    drop(server);
    let (server, _) = start(home.path(), &storage, "").unwrap();
    let listed = admin(&mut server.connect(), "GET", "checkouts", &Value::Null).unwrap().json();
    assert!(listed[0]["path"] == "only" && listed[0]["created_s"].is_u64(), "{listed}");
    assert_eq!(tree(&storage.join("jobs/only")).len(), 2);
}

/// The last request says whether outputs are removed, also to the start that finishes the deletion.
#[test]
fn a_deletion_is_finished_as_it_was_asked() {
    for asks_again in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        let (server, _) = start(home.path(), &storage, "remove:1=5").unwrap();
        let mut connection = server.connect();
        assert_eq!(connection.upload(b"held", "").status, 204);
        let body = json!({ "checkoutPath": "only", "files": [file(b"held", "x")] });
        assert_eq!(connection.post_json("checkout/create", &body).status, 200);
        let frame = storage.join("jobs/only/frame");
        fs::write(&frame, "rendered").unwrap();
        let with_outputs = "checkouts?path=only&with_outputs=true";
        let failed = admin(&mut connection, "DELETE", with_outputs, &Value::Null).unwrap();
        failed.is_error(500, "cannot remove");
        if asks_again {
            let again = admin(&mut connection, "DELETE", "checkouts?path=only", &Value::Null);
            assert_eq!(again.unwrap().status, 200);
        }
        drop(server);
        drop(start(home.path(), &storage, "").unwrap());
        assert_eq!(frame.exists(), asks_again);
        assert!(fs::symlink_metadata(storage.join("jobs/only/x")).is_err());
    }
}

/// A checkout that takes the name of one whose deletion was not finished is not taken for the rest of it.
#[test]
fn a_stale_deletion_does_not_reach_a_new_checkout() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let (server, _) = start(home.path(), &storage, "remove:1=5").unwrap();
    let mut connection = server.connect();
    assert_eq!(connection.upload(b"held", "").status, 204);
    let body = json!({ "checkoutPath": "only", "files": [file(b"held", "x")] });
    assert_eq!(connection.post_json("checkout/create", &body).status, 200);
    let path = "checkouts?path=only";
    let failed = admin(&mut connection, "DELETE", path, &Value::Null).unwrap();
    failed.is_error(500, "cannot remove");
    // By hand, as the rest was in the way.
    fs::remove_dir_all(storage.join("jobs/only")).unwrap();
    assert_eq!(connection.post_json("checkout/create", &body).json()["checkoutPath"], "only");
    let inside = json!({ "checkoutPath": "only/inside", "files": [file(b"held", "x")] });
    connection.post_json("checkout/create", &inside).is_error(409, "is itself a checkout");
    drop(server);
    let (server, _) = start(home.path(), &storage, "").unwrap();
    let mut connection = server.connect();
    let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap().json();
    assert_eq!((&listed[0]["path"], &listed[0]["gone"]), (&json!("only"), &json!(false)));
    assert_eq!(tree(&storage.join("jobs/only")).len(), 1);
    assert_eq!(admin(&mut connection, "DELETE", path, &Value::Null).unwrap().status, 200);
    let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap().json();
    assert_eq!(listed, json!([]));
}

/// A record that was being written when the process was killed is none.
#[test]
fn a_checkout_whose_record_was_half_written_can_be_erased_for_good() {
    for change in ["create-file", "write", "sync-data", "rename"] {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        let (server, _) = start(home.path(), &storage, "").unwrap();
        assert_eq!(server.connect().upload(b"held", "").status, 204);
        drop(server);
        // The first rename is that of the checkout itself.
        let number = if change == "rename" { 2 } else { 1 };
        let (server, _) = start(home.path(), &storage, &format!("{change}:{number}=kill")).unwrap();
        let body = json!({ "checkoutPath": "only", "files": [file(b"held", "x")] }).to_string();
        let head = post_head(
            "/api/v3/shaman/checkout/create",
            "Content-Type: application/json\r\n",
            body.len() as u64,
        );
        let mut connection = server.connect();
        connection.stream.write_all(&[&head[..], body.as_bytes()].concat()).unwrap();
        assert!(connection.try_answer().is_none());
        drop(server);
        age(&storage, b"held");
        let (server, _) = start(home.path(), &storage, "").unwrap();
        assert_eq!(fs::read_dir(storage.join("farmhand/checkouts")).unwrap().count(), 0);
        let mut connection = server.connect();
        let path = "checkouts?path=only&force=true";
        let erased = admin(&mut connection, "DELETE", path, &Value::Null).unwrap();
        assert_eq!(erased.status, 200, "{change}");
        let listed = admin(&mut connection, "GET", "checkouts", &Value::Null).unwrap();
        assert_eq!(listed.json(), json!([]), "{change}");
        let collected = report(&admin(&mut connection, "POST", "gc", &json!({})).unwrap());
        assert_eq!(collected["removed"]["blobs"], 1, "{change}: {collected}");
    }
}
