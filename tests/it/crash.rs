//! Crashes, power cuts and failing disks at every point: what was promised is kept.
//!
//! Every change of the file system is a fault point and a line in the log (`src/disk/change.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

use super::common::*;

/// What the server said it has done.
#[derive(Default)]
pub(super) struct Promised {
    stored: Vec<Vec<u8>>,
    checkouts: Vec<(String, BTreeMap<String, Vec<u8>>)>,
    /// Answers of 5xx.
    failures: Vec<Answer>,
}

impl Promised {
    /// How many blobs were stored, checkouts made, and requests not done.
    pub fn summary(&self) -> (usize, usize, usize) {
        (self.stored.len(), self.checkouts.len(), self.failures.len())
    }
}

/// The contents of the scenario: the same in every run, so that runs can follow each other.
fn contents() -> Vec<Vec<u8>> {
    vec![b"first".to_vec(), vec![7; 300_000], Vec::new()]
}

/// Uploads, one of them wrong, and checkouts, one of them of a taken name. Ends with the connection.
pub(super) fn scenario(server: &ServerProcess) -> Promised {
    let mut promised = Promised::default();
    let mut connection = server.connect();
    let contents = contents();
    for content in &contents {
        let path = format!("/api/v3/shaman/files/{}", address(content));
        let request = [post_head(&path, "", content.len() as u64), content.clone()].concat();
        match ask(&mut connection, &request) {
            None => return promised,
            Some(answer) if answer.status >= 500 => promised.failures.push(answer),
            Some(answer) => {
                assert!(matches!(answer.status, 204 | 208), "{answer:?}");
                promised.stored.push(content.clone());
            }
        }
    }
    let wrong = post_head(&format!("/api/v3/shaman/files/{}", address(b"right")), "", 5);
    match ask(&mut connection, &[&wrong[..], b"wrong"].concat()) {
        None => return promised,
        Some(answer) if answer.status >= 500 => promised.failures.push(answer),
        Some(answer) => assert_eq!(answer.status, 417),
    }
    for _ in 0..2 {
        let files: BTreeMap<_, _> = ["a", "dir/b", "dir/deep/er/c"]
            .iter()
            .zip(&contents)
            .map(|(path, content)| (path.to_string(), content.clone()))
            .collect();
        let list: Vec<_> = files.iter().map(|(path, content)| file(content, path)).collect();
        let body = json!({ "checkoutPath": "shows/demo", "files": list }).to_string();
        let head = post_head(
            "/api/v3/shaman/checkout/create",
            "Content-Type: application/json\r\n",
            body.len() as u64,
        );
        match ask(&mut connection, &[&head[..], body.as_bytes()].concat()) {
            None => return promised,
            Some(answer) if answer.status == 200 => {
                let path = answer.json()["checkoutPath"].as_str().unwrap().to_owned();
                promised.checkouts.push((path, files));
            }
            // 424: a file of it could not be stored before.
            Some(answer) => promised.failures.push(answer),
        }
    }
    promised
}

pub(super) fn ask(connection: &mut Connection, request: &[u8]) -> Option<Answer> {
    std::io::Write::write_all(&mut connection.stream, request).ok()?;
    connection.try_answer()
}

/// A server with a fault, and its log in a file.
pub(super) fn start(home: &Path, storage: &Path, fault: &str) -> Option<(ServerProcess, PathBuf)> {
    start_with(home, storage, fault, &[])
}

pub(super) fn start_with(
    home: &Path,
    storage: &Path,
    fault: &str,
    settings: &[(&str, &str)],
) -> Option<(ServerProcess, PathBuf)> {
    let log = home.join("log");
    let mut child = farmhand(home)
        .envs(settings.iter().copied())
        .args(["serve", "--log-format", "json", "--listen", "127.0.0.1:0", "--storage"])
        .arg(storage)
        // There are no jobs, and no command for them.
        .env(
            "FARMHAND_LOG",
            "warn,farmhand::disk=trace,farmhand::access=info,farmhand::cli::serve=error",
        )
        .env("FARMHAND_FAULT", fault)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut url = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut url,
    )
    .unwrap();
    let url = url.trim().to_owned();
    let server = ServerProcess { child, url };
    // A fault at the start ends it before it says where it is.
    (!server.url.is_empty()).then_some((server, log))
}

pub(super) fn log_lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) fn fields(line: &Value) -> (&str, &str, &str) {
    let text = |name: &str| line["fields"][name].as_str().unwrap_or_default();
    (text("change"), text("from"), text("path"))
}

/// All that must hold whenever a store is opened again, and everything that was promised.
pub(super) fn check(storage: &Path, promised: &[Promised]) {
    let mut stored = HashMap::new();
    for (path, content) in tree(&storage.join("file-store/stored")) {
        let name =
            format!("{}/{}/{}.blob", &sha(&content)[..2], &sha(&content)[2..], content.len());
        assert_eq!(path, name, "a blob is not what its name says");
        stored.insert(address(&content), content);
    }
    let uploading = fs::read_dir(storage.join("file-store/uploading")).unwrap();
    let names = uploading.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // What has come in part is kept.
    assert_eq!(names.filter(|name| !name.ends_with(".farmhand-part")).count(), 0);
    assert_eq!(fs::read_dir(storage.join("jobs/.farmhand-building")).unwrap().count(), 0);
    for promised in promised {
        for content in &promised.stored {
            assert_eq!(stored.get(&address(content)), Some(content), "a stored blob is lost");
        }
        for (path, files) in &promised.checkouts {
            assert!(tree(&storage.join("jobs").join(path)) == *files, "{path} is not whole");
        }
    }
    // Also those that nobody was told of are whole, or are not there.
    if let Ok(checkouts) = fs::read_dir(storage.join("jobs/shows")) {
        for checkout in checkouts {
            assert_eq!(tree(&checkout.unwrap().path()).len(), 3, "half a checkout is visible");
        }
    }
}

/// What is done to a server, and what it has then promised: blobs and checkouts.
#[derive(Clone, Copy)]
struct Play {
    run: fn(&ServerProcess) -> Promised,
    promises: (usize, usize),
    changes: &'static [&'static str],
}

const SESSION: Play = Play {
    run: scenario,
    promises: (3, 2),
    changes: &[
        "create-dir",
        "create-file",
        "remove",
        "rename",
        "symlink",
        "sync-data",
        "sync-dir",
        "sync-file-system",
        "write",
    ],
};

/// A blob in pieces, one in a batch of its own, and a batch that is synced as one.
const EXTENSION: Play = Play {
    run: extension_scenario,
    promises: (1 + 2 + 16, 0),
    changes: &[
        "create-dir",
        "create-file",
        "read-only",
        "rename",
        "sync-data",
        "sync-dir",
        "sync-file-system",
        "write",
    ],
};

fn extension_scenario(server: &ServerProcess) -> Promised {
    let mut promised = Promised::default();
    let mut connection = server.connect();
    let whole = [vec![1; 1000], vec![2; 1000]].concat();
    let path = format!("/farmhand/v1/unfinished/{}", address(&whole));
    let sender = "X-Farmhand-Sender: me\r\n";
    let chunk = |half: &[u8], offset: u64| {
        let id = farmhand::domain::ChunkId::of(half);
        let length = (half.len() as u32).to_le_bytes();
        [&id.as_bytes()[..], &offset.to_le_bytes(), &length, &length, half].concat()
    };
    for (what, body) in [
        ("", Vec::new()),
        // The second comes first.
        ("/chunks", chunk(&whole[1000..], 1000)),
        ("/chunks", chunk(&whole[..1000], 0)),
        ("/finish", Vec::new()),
    ] {
        let head = post_head(&format!("{path}{what}"), sender, body.len() as u64);
        match ask(&mut connection, &[head, body].concat()) {
            None => return promised,
            Some(answer) if matches!(answer.status, 200 | 204 | 208) => {
                if what == "/finish" {
                    promised.stored.push(whole.clone());
                }
            }
            // 404 and 409: what was asked for before was not done. But for one that is stored already.
            Some(answer) => promised.failures.push(answer),
        }
    }
    for numbers in [0..2u8, 2..18] {
        let files: Vec<Vec<u8>> = numbers.map(|number| vec![number; 50]).collect();
        let mut body = Vec::new();
        for file in &files {
            let digest: farmhand::domain::Digest = sha(file).parse().unwrap();
            body.extend_from_slice(digest.as_bytes());
            body.extend_from_slice(&[50, 0, 0, 0, 50, 0, 0, 0, 1, 0, b'f']);
            body.extend_from_slice(file);
        }
        let head = post_head("/farmhand/v1/batch", "", body.len() as u64);
        match ask(&mut connection, &[head, body].concat()) {
            None => return promised,
            Some(answer) if answer.status == 200 => {
                let results = answer.json()["blobs"].as_array().unwrap().clone();
                assert_eq!(results.len(), files.len());
                for (file, result) in files.into_iter().zip(results) {
                    match result["status"].as_u64().unwrap() {
                        204 | 208 => promised.stored.push(file),
                        status => promised.failures.push(Answer {
                            status: status as u16,
                            head: String::new(),
                            body: result.to_string().into_bytes(),
                        }),
                    }
                }
            }
            Some(answer) => promised.failures.push(answer),
        }
    }
    promised
}

/// How often each change is made in a whole run on a store that exists.
fn changes(play: Play) -> BTreeMap<String, usize> {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    drop(start(home.path(), &storage, "").unwrap());
    let (server, log) = start(home.path(), &storage, "").unwrap();
    let promised = (play.run)(&server);
    let (blobs, checkouts) = play.promises;
    assert_eq!(promised.summary(), (blobs, checkouts, 0));
    drop(server);
    check(&storage, &[promised]);
    let mut count = BTreeMap::new();
    for line in log_lines(&log) {
        let (change, ..) = fields(&line);
        if !change.is_empty() {
            *count.entry(change.to_owned()).or_default() += 1;
        }
    }
    let kinds: Vec<_> = count.keys().map(String::as_str).collect();
    assert_eq!(kinds, play.changes, "the scenario does not do everything");
    // How many pieces a body comes in differs; each of the three that are not empty has one.
    if play.changes == SESSION.changes {
        count.insert("write".to_owned(), 3);
    }
    count
}

/// Each fault in a run, then a run without one.
fn sweep(play: Play, action: &str, after_fault: impl Fn(&Promised, &str)) {
    let mut struck = 0;
    for (change, count) in changes(play) {
        for number in 1..=count {
            let fault = format!("{change}:{number}={action}");
            let home = tempfile::tempdir().unwrap();
            let storage = home.path().join("storage");
            drop(start(home.path(), &storage, "").unwrap());
            let mut all = Vec::new();
            if let Some((server, _)) = start(home.path(), &storage, &fault) {
                let promised = (play.run)(&server);
                after_fault(&promised, &fault);
                all.push(promised);
                struck += 1;
            }
            let (server, _) = start(home.path(), &storage, "").unwrap();
            check(&storage, &all);
            let promised = (play.run)(&server);
            let done = (promised.stored.len(), promised.checkouts.len());
            assert_eq!(done, play.promises, "after {fault}");
            all.push(promised);
            drop(server);
            check(&storage, &all);
        }
    }
    assert!(struck > 30, "{struck}");
}

#[test]
fn killed_before_any_change_it_comes_back_and_keeps_what_it_said() {
    for play in [SESSION, EXTENSION] {
        sweep(play, "kill", |promised, fault| {
            let done = (promised.stored.len(), promised.checkouts.len());
            assert!(done != play.promises, "{fault} did not strike");
        });
    }
}

#[test]
fn a_disk_that_fails_at_any_change_costs_that_request_only() {
    const EIO: &str = "5";
    sweep(EXTENSION, EIO, |promised, fault| {
        for answer in &promised.failures {
            assert!(matches!(answer.status, 500 | 404 | 409), "{fault}: {answer:?}");
        }
        assert!(!promised.failures.is_empty(), "{fault} did not strike");
    });
    sweep(SESSION, EIO, |promised, fault| {
        for answer in &promised.failures {
            assert!(matches!(answer.status, 500 | 424), "{fault}: {answer:?}");
        }
        // What fails in the background is the removal of what is not needed.
        assert!(
            !promised.failures.is_empty() || fault.starts_with("remove"),
            "{fault} did not strike"
        );
    });
}

/// The file is there, under its name; but nobody can say that it would be after a power cut.
#[test]
fn a_blob_whose_name_could_not_be_synced_is_not_stored() {
    for number in 1..=2 {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        drop(start(home.path(), &storage, "").unwrap());
        let (server, _) = start(home.path(), &storage, &format!("sync-dir:{number}=5")).unwrap();
        let content = b"content";
        let path = format!("/api/v3/shaman/files/{}", address(content));
        server.connect().upload(content, "").is_error(500, "cannot sync the directory");
        assert_eq!(server.connect().get(&path).json()["status"], "unknown");
        let body = json!({ "checkoutPath": "x", "files": [file(content, "a")] });
        assert_eq!(server.connect().post_json("checkout/create", &body).status, 424);
        assert_eq!(server.connect().upload(content, "").status, 204);
        assert_eq!(server.connect().upload(content, "").status, 208);
        assert_eq!(server.connect().post_json("checkout/create", &body).status, 200);
    }
}

#[test]
fn a_checkout_whose_name_could_not_be_synced_is_not_there() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let (server, _) = start(home.path(), &storage, "").unwrap();
    assert_eq!(server.connect().upload(b"content", "").status, 204);
    drop(server);
    // The first is of what is in the checkout, the second of its name.
    let (server, _) = start(home.path(), &storage, "sync-dir:2=5").unwrap();
    let body = json!({ "checkoutPath": "x", "files": [file(b"content", "a")] });
    server.connect().post_json("checkout/create", &body).is_error(500, "cannot sync the directory");
    assert!(!storage.join("jobs/x").exists());
    let answer = server.connect().post_json("checkout/create", &body);
    assert_eq!(answer.json()["checkoutPath"], "x");
}

#[test]
fn a_full_disk_is_said_to_be_one() {
    const ENOSPC: &str = "28";
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    for change in ["create-file", "write", "sync-data", "rename", "create-dir", "symlink"] {
        // The first directory that is made in a new store belongs to it.
        drop(start(home.path(), &storage, "").unwrap());
        let (server, _) = start(home.path(), &storage, &format!("{change}:1={ENOSPC}")).unwrap();
        let promised = scenario(&server);
        promised.failures[0].is_error(507, "the server's storage is full");
        drop(server);
        fs::remove_dir_all(&storage).unwrap();
    }
}

/// After a failed sync, pages that never came to the disk may look right, and the next sync succeed.
#[test]
fn what_came_in_pieces_and_could_not_be_synced_is_sent_again() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    drop(start(home.path(), &storage, "").unwrap());
    let (server, _) = start(home.path(), &storage, "sync-data:1=5").unwrap();
    let promised = extension_scenario(&server);
    promised.failures[0].is_error(500, "cannot sync");
    let whole = [vec![1; 1000], vec![2; 1000]].concat();
    let path = format!("/farmhand/v1/unfinished/{}", address(&whole));
    let begun = server.connect().post(&path, "X-Farmhand-Sender: me\r\n", b"");
    assert_eq!(begun.json(), json!({ "resumable": false }));
}

/// A file system of which only what was synced is left after a power cut, rebuilt from the log.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Durable>,
    violations: Vec<String>,
}

#[derive(Clone, Copy)]
struct Durable {
    name: bool,
    content: bool,
}

impl Model {
    fn run(lines: &[Value], storage: &str) -> Vec<String> {
        let mut model = Self::default();
        for line in lines {
            let (change, from, path) = fields(line);
            if line["fields"]["failed"] == true {
                continue;
            }
            match change {
                "" => model.promise(line, storage),
                _ => model.change(change, from, path, storage),
            }
        }
        model.violations
    }

    fn below<'a>(&'a self, root: &'a str) -> impl Iterator<Item = (&'a String, &'a Durable)> {
        let prefix = format!("{root}/");
        self.entries.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix))
    }

    fn change(&mut self, change: &str, from: &str, path: &str, storage: &str) {
        match change {
            "create-file" => {
                self.entries.insert(path.into(), Durable { name: false, content: false });
            }
            "read-only" => {}
            "create-dir" | "symlink" => {
                self.entries.insert(path.into(), Durable { name: false, content: true });
            }
            "write" => self.entries.get_mut(path).unwrap().content = false,
            "sync-data" => self.entries.get_mut(path).unwrap().content = true,
            "sync-dir" => {
                for (entry, durable) in &mut self.entries {
                    if entry.rsplit_once('/').unwrap().0 == path {
                        durable.name = true;
                    }
                }
            }
            "sync-file-system" => {
                self.entries.values_mut().for_each(|d| *d = Durable { name: true, content: true });
            }
            "remove" => {
                let gone: Vec<_> = self.below(path).map(|(path, _)| path.clone()).collect();
                self.entries.remove(path);
                self.entries.retain(|path, _| !gone.contains(path));
            }
            "rename" => {
                // The new name may be on the disk from now on, whether synced or not: what it
                // names must be whole by then.
                let moved = self.entries.remove(from).unwrap();
                let inside: Vec<_> = self.below(from).map(|(path, d)| (path.clone(), *d)).collect();
                if !moved.content || inside.iter().any(|(_, d)| !d.name || !d.content) {
                    self.violations.push(format!("{path} may appear before it is whole"));
                }
                self.entries.insert(path.into(), Durable { name: false, ..moved });
                for (old, durable) in inside {
                    self.entries.remove(&old);
                    self.entries.insert(format!("{path}{}", &old[from.len()..]), durable);
                }
            }
            other => panic!("{other} on {path} in {storage}"),
        }
    }

    /// After an answer, what it says must be found again.
    fn promise(&mut self, line: &Value, storage: &str) {
        let fields = &line["fields"];
        let paths = match (fields["message"].as_str().unwrap(), fields["outcome"].as_str()) {
            ("upload", Some("stored" | "already_stored" | "absorbed")) => {
                let (sha, size) = fields["blob"].as_str().unwrap().split_once('/').unwrap();
                vec![format!("{storage}/file-store/stored/{}/{}/{size}.blob", &sha[..2], &sha[2..])]
            }
            ("checkout", _) => {
                let name = fields["checkout"].as_str().unwrap();
                let record = format!("{storage}/farmhand/checkouts/{}.json", sha(name.as_bytes()));
                vec![format!("{storage}/jobs/{name}"), record]
            }
            ("upload failed", _) => return,
            other => panic!("{other:?}"),
        };
        let inside: Vec<_> =
            paths.iter().flat_map(|path| self.below(path)).map(|(path, _)| path.clone()).collect();
        for path in inside.into_iter().chain(paths) {
            let Some(durable) = self.entries.get(&path) else {
                self.violations.push(format!("{path} was promised and is not there"));
                continue;
            };
            let mut lost = !durable.name || !durable.content;
            let mut above = path.as_str();
            while let Some((parent, _)) = above.rsplit_once('/') {
                lost |= self.entries.get(parent).is_some_and(|durable| !durable.name);
                above = parent;
            }
            if lost {
                self.violations.push(format!("{path} was promised and may be lost"));
            }
        }
    }
}

#[test]
fn a_power_cut_loses_nothing_and_without_any_one_sync_it_would() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    // From the very first change on: the store is made, too.
    let (server, log) = start(home.path(), &storage, "").unwrap();
    let promised = scenario(&server);
    assert_eq!((promised.stored.len(), promised.checkouts.len()), (3, 2));
    drop(server);
    let lines = log_lines(&log);
    let storage = storage.to_str().unwrap();
    assert_eq!(Model::run(&lines, storage), Vec::<String>::new());

    let mut needless = Vec::new();
    for number in 0..lines.len() {
        if fields(&lines[number]).0.starts_with("sync-") {
            let mut without = lines.clone();
            let taken_out = without.remove(number);
            if Model::run(&without, storage).is_empty() {
                needless.push(format!("{} {}", fields(&taken_out).0, fields(&taken_out).2));
            }
        }
    }
    // A store that is new needs one of its three, but they may be on different file systems. And the
    // directory above the second checkout was synced by the first, but it might not have been.
    let kinds: Vec<_> = needless.iter().map(|sync| sync.replace(storage, "")).collect();
    let expected = [
        "sync-file-system /file-store/stored",
        "sync-file-system /jobs",
        "sync-file-system /farmhand",
        "sync-dir /jobs",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_power_cut_loses_nothing_of_what_came_in_pieces_or_together() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    drop(start(home.path(), &storage, "").unwrap());
    let (server, log) = start(home.path(), &storage, "").unwrap();
    assert_eq!(extension_scenario(&server).summary(), (19, 0, 0));
    drop(server);
    let lines = log_lines(&log);
    let storage = storage.to_str().unwrap();
    assert_eq!(Model::run(&lines, storage), Vec::<String>::new());
    let begun = lines.iter().position(|line| fields(line).0 == "create-file").unwrap();
    let mut syncs = 0;
    for number in begun..lines.len() {
        if fields(&lines[number]).0.starts_with("sync-") {
            let mut without = lines.clone();
            let taken_out = without.remove(number);
            assert!(!Model::run(&without, storage).is_empty(), "needless: {taken_out}");
            syncs += 1;
        }
    }
    // Three for each of three blobs, and two for all the others.
    assert_eq!(syncs, 3 * 3 + 2);
}

#[test]
fn a_relaxed_store_syncs_nothing_and_is_whole_when_the_process_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    drop(start(home.path(), &storage, "").unwrap());
    let (server, log) =
        start_with(home.path(), &storage, "", &[("FARMHAND_STORE_DURABILITY", "relaxed")]).unwrap();
    let promised = scenario(&server);
    drop(server); // as kill -9 does
    check(&storage, &[promised]);
    let lines = log_lines(&log);
    let count = |kind: &str| lines.iter().filter(|line| fields(line).0 == kind).count();
    assert_eq!((count("sync-data"), count("sync-dir"), count("sync-file-system")), (0, 0, 0));
    assert!(count("rename") >= 5);
    // And the model sees what that means.
    assert!(!Model::run(&lines, storage.to_str().unwrap()).is_empty());
}
