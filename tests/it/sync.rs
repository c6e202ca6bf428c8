//! The client and the sync job against servers that are slow, wrong, or gone.

use std::{
    collections::VecDeque,
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use farmhand::{
    agent::{self, SyncError, SyncReport},
    client::{self, ClientError, Shaman},
    meter::Progress,
    scan::{self, Scan, Scanner, SkipReason},
};
use serde_json::json;

use super::common::*;

/// All that a sync needs, with a fresh cache.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    progress: Arc<Progress>,
    scanner: Arc<Mutex<Scanner>>,
    shaman: Shaman,
}

impl Client {
    pub fn new(url: &str) -> Self {
        Self::with(url, client::Options { retries: 3, ..client::Options::default() })
    }

    pub fn with(url: &str, options: client::Options) -> Self {
        let progress = Arc::new(Progress::default());
        let stop = Arc::new(AtomicBool::new(false));
        let scanner = Scanner::new(scan::Options::default(), progress.clone(), stop).unwrap();
        Self {
            runtime: tokio::runtime::Runtime::new().unwrap(),
            progress,
            scanner: Arc::new(Mutex::new(scanner)),
            shaman: Shaman::new(url, options).unwrap(),
        }
    }

    pub fn scan(&self, dir: &Path) -> Scan {
        self.scanner.lock().unwrap().scan(dir).unwrap()
    }

    fn sync(&mut self, scan: Scan) -> Result<SyncReport, SyncError> {
        let options = agent::Options {
            retries: 3,
            defer: Duration::from_secs(2),
            ..agent::Options::default()
        };
        self.sync_with(scan, options)
    }

    pub fn sync_with(
        &mut self,
        scan: Scan,
        options: agent::Options,
    ) -> Result<SyncReport, SyncError> {
        let (scanner, progress) = (self.scanner.clone(), self.progress.clone());
        self.runtime.block_on(agent::sync(&mut self.shaman, scan, scanner, progress, options))
    }

    fn checkout(&mut self, scan: Scan) -> Result<(String, SyncReport), SyncError> {
        self.checkout_with(scan, agent::Options { retries: 3, ..agent::Options::default() })
    }

    pub fn checkout_with(
        &mut self,
        scan: Scan,
        options: agent::Options,
    ) -> Result<(String, SyncReport), SyncError> {
        let (scanner, progress) = (self.scanner.clone(), self.progress.clone());
        let wish = "demo".parse().unwrap();
        self.runtime.block_on(agent::create_checkout(
            &mut self.shaman,
            scan,
            scanner,
            progress,
            options,
            &wish,
        ))
    }
}

/// A folder with these files.
pub fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

#[test]
fn each_content_is_sent_once_and_the_second_time_nothing() {
    let server = TestServer::start();
    let (one, other) = (random(300_000), random(5));
    let dir = folder(&[("a", &one), ("same/as/a", &one), ("b", &other), ("empty", b"")]);
    let mut client = Client::new(&server.url());
    let report = client.sync(client.scan(dir.path())).unwrap();
    assert_eq!((report.uploaded_files, report.uploaded_bytes), (3, 300_005));
    assert_eq!(report.files.len(), 4);
    let (path, report) = client.checkout(client.scan(dir.path())).unwrap();
    assert_eq!((report.uploaded_files, report.retries, report.deferrals), (0, 0, 0));
    assert!(tree(&server.storage().join("jobs").join(path)) == tree(dir.path()));
}

#[test]
fn a_file_that_changes_after_it_was_hashed_is_sent_as_it_is() {
    let server = TestServer::start();
    for size in [10_000, 1_000_000] {
        let dir = folder(&[("changes", &random(size)), ("stays", &random(size))]);
        let mut client = Client::new(&server.url());
        let scan = client.scan(dir.path());
        fs::write(dir.path().join("changes"), random(size)).unwrap();
        let (path, report) = client.checkout(scan).unwrap();
        assert_eq!((report.skipped.len(), report.uploaded_files), (0, 2));
        assert!(tree(&server.storage().join("jobs").join(path)) == tree(dir.path()));
    }
}

#[test]
fn a_file_that_goes_away_is_left_out_and_named() {
    let server = TestServer::start();
    let (same, alone) = (random(1000), random(2000));
    let dir = folder(&[("gone", &alone), ("gone too", &same), ("stays", &same)]);
    let mut client = Client::new(&server.url());
    let scan = client.scan(dir.path());
    fs::remove_file(dir.path().join("gone")).unwrap();
    fs::remove_file(dir.path().join("gone too")).unwrap();
    let (path, report) = client.checkout(scan).unwrap();
    // "gone too" has the content of "stays": it is as it was when it was scanned.
    let named: Vec<_> = report.skipped.iter().map(|s| (s.path.as_str(), &s.reason)).collect();
    assert_eq!(named[0], ("gone", &SkipReason::Vanished), "{named:?}");
    let made = tree(&server.storage().join("jobs").join(path));
    assert!(made["stays"] == same && !made.contains_key("gone"));
}

/// Passes connections on to a server, and meddles with some of them.
struct Proxy {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

/// What to do with a connection.
#[derive(Clone, Copy)]
enum Meddle {
    Nothing,
    /// Close after so many bytes from the client.
    CutRequest(usize),
    /// Pass the request on, and close before the answer.
    CutAnswer,
}

impl Proxy {
    /// The first connections get these, in this order; all others nothing.
    fn start(server: SocketAddr, meddle: Vec<Meddle>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        std::thread::spawn(move || {
            let mut meddle = VecDeque::from(meddle);
            for client in listener.incoming() {
                counter.fetch_add(1, SeqCst);
                let what = meddle.pop_front().unwrap_or(Meddle::Nothing);
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                std::thread::spawn(move || pass(client, server, what));
            }
        });
        Self { addr, connections }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

fn pass(client: TcpStream, server: TcpStream, meddle: Meddle) {
    let back = {
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if matches!(meddle, Meddle::CutAnswer) || to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        })
    };
    let (mut from, mut to) = (client, server);
    let mut buffer = [0; 65536];
    let mut total = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        total += count;
        if matches!(meddle, Meddle::CutRequest(limit) if total > limit)
            || to.write_all(&buffer[..count]).is_err()
        {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    back.join().unwrap();
}

#[test]
fn a_connection_that_breaks_costs_a_question_and_no_file() {
    let server = TestServer::start();
    let meddle = vec![
        Meddle::CutRequest(10), // the requirements
        Meddle::Nothing,
        Meddle::CutRequest(500_000),
        Meddle::CutRequest(2_000_000),
        Meddle::CutAnswer,
        Meddle::CutAnswer,
    ];
    let proxy = Proxy::start(server.addr, meddle);
    let files: Vec<_> = (0..12).map(|i| (format!("f{i}"), random(1_500_000))).collect();
    let borrowed: Vec<_> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let dir = folder(&borrowed);
    let mut client = Client::new(&proxy.url());
    let (path, report) = client.checkout(client.scan(dir.path())).unwrap();
    assert!(report.retries >= 2, "{}", report.retries);
    assert!(tree(&server.storage().join("jobs").join(path)) == tree(dir.path()));
    // How many of these come to pass depends on how many connections are opened: at least one for each upload at
    // once. `faults.rs` sees to the rest.
    assert!(proxy.connections.load(SeqCst) >= 4);
}

#[test]
fn a_checkout_is_not_asked_for_twice() {
    // A create whose answer is lost may have been made: that is said, and not tried again.
    let server = TestServer::start();
    let dir = folder(&[("a", b"content")]);
    let mut client = Client::new(&server.url());
    client.sync(client.scan(dir.path())).unwrap();
    let proxy = Proxy::start(server.addr, vec![Meddle::CutAnswer; 10]);
    let client = Client::new(&proxy.url());
    let result = client.runtime.block_on(client.shaman.create("once", vec![]));
    assert!(matches!(result, Err(ClientError::Unreachable { was_sent: true, .. })), "{result:?}");
    assert_eq!(proxy.connections.load(SeqCst), 1);
    until(|| server.storage().join("jobs/once").exists());
}

#[test]
fn a_server_that_comes_back_is_gone_on_with() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let mut server = ServerProcess::start(home.path(), &storage, &[]);
    let files: Vec<_> = (0..200).map(|i| (format!("f{i}"), random(20_000))).collect();
    let borrowed: Vec<_> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let dir = folder(&borrowed);
    let mut client = Client::new(&server.url);
    let scan = client.scan(dir.path());
    let address = server.url["http://".len()..].trim_end_matches('/').to_owned();
    let (report, server) = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| client.sync(scan));
        // As soon as something is stored.
        until(|| {
            walkdir::WalkDir::new(&storage)
                .into_iter()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().ends_with(".blob"))
        });
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let again = farmhand(home.path())
            .args(["serve", "--listen", &address, "--storage"])
            .arg(&storage)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let again = ServerProcess { child: again, url: server.url.clone() };
        (syncing.join().unwrap().unwrap(), again)
    });
    assert_eq!(report.files.len(), 200);
    drop(server);
    let stored = walkdir::WalkDir::new(&storage)
        .into_iter()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().ends_with(".blob"));
    assert_eq!(stored.count(), 200);
}

type Script<T> = Arc<Mutex<VecDeque<T>>>;

fn next<T>(script: &Script<T>) -> Option<T> {
    script.lock().unwrap().pop_front()
}

/// A server that answers as its script says, and notes what it was asked.
struct Scripted {
    url: String,
    log: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Default)]
struct Answers {
    uploads: Script<(u16, &'static str)>,
    statuses: Script<&'static str>,
    /// How many of all asked for are said to be missing; in the end, none.
    requirements: Script<usize>,
    creates: Script<u16>,
}

impl Scripted {
    fn start(answers: Answers) -> Self {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let note = {
            let log = log.clone();
            move |text: String| log.lock().unwrap().push(text)
        };
        let upload = {
            let (answers, note) = (answers.clone(), note.clone());
            async move |headers: axum::http::HeaderMap, _body: Bytes| -> Response {
                let defers = headers["x-shaman-can-defer-upload"] == "true";
                assert!(headers.contains_key("content-length"));
                // Only whole bodies come here.
                note(format!("upload{}", if defers { "" } else { " now" }));
                let (status, message) = next(&answers.uploads).unwrap_or((204, ""));
                let mut answer = (
                    StatusCode::from_u16(status).unwrap(),
                    Json(json!({ "code": status, "message": message })),
                )
                    .into_response();
                if status == 204 {
                    answer = StatusCode::NO_CONTENT.into_response();
                }
                answer
            }
        };
        let status = {
            let (answers, note) = (answers.clone(), note.clone());
            async move || {
                note("status".into());
                Json(json!({ "status": next(&answers.statuses).unwrap_or("stored") }))
            }
        };
        let requirements = {
            let (answers, note) = (answers.clone(), note.clone());
            async move |Json(body): Json<serde_json::Value>| {
                note("requirements".into());
                let count = next(&answers.requirements).unwrap_or(0);
                let missing: Vec<_> = body["files"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .take(count)
                    .cloned()
                    .map(|mut file| {
                        file["status"] = "unknown".into();
                        file
                    })
                    .collect();
                Json(json!({ "files": missing }))
            }
        };
        let create = async move |Json(body): Json<serde_json::Value>| -> Response {
            note("create".into());
            match next(&answers.creates).unwrap_or(200) {
                200 => Json(json!({ "checkoutPath": body["checkoutPath"] })).into_response(),
                status => (
                    StatusCode::from_u16(status).unwrap(),
                    Json(json!({ "code": status, "message": "script" })),
                )
                    .into_response(),
            }
        };
        let router = Router::new()
            .route("/prefix/api/v3/shaman/files/{sha}/{size}", get(status).post(upload))
            .route("/prefix/api/v3/shaman/checkout/requirements", post(requirements))
            .route("/prefix/api/v3/shaman/checkout/create", post(create))
            .route(
                "/moved/{*rest}",
                axum::routing::any(async |uri: axum::http::Uri| {
                    axum::response::Redirect::temporary(&uri.path().replace("/moved/", "/prefix/"))
                }),
            );
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/prefix/", listener.local_addr().unwrap());
        runtime.spawn(async { axum::serve(listener, router).await });
        Self { url, log, _runtime: runtime }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn script<T>(items: impl IntoIterator<Item = T>) -> Script<T> {
    Arc::new(Mutex::new(items.into_iter().collect()))
}

/// One file, one sync, these answers.
fn sync_one(answers: Answers) -> (Result<SyncReport, SyncError>, Vec<String>) {
    let server = Scripted::start(answers);
    let dir = folder(&[("file.bin", b"content")]);
    let mut client = Client::new(&server.url);
    let result = client.sync(client.scan(dir.path()));
    (result, server.log())
}

#[test]
fn both_dialects_of_stored_are_understood() {
    for status in [200, 204] {
        let (report, log) = sync_one(Answers {
            requirements: script([1]),
            uploads: script([(status, "")]),
            ..Answers::default()
        });
        assert_eq!(report.unwrap().uploaded_files, 1);
        assert_eq!(log, ["requirements", "upload", "requirements"]);
    }
}

#[test]
fn a_deferred_file_is_asked_for_until_it_is_stored() {
    let (report, log) = sync_one(Answers {
        requirements: script([1]),
        uploads: script([(425, "")]),
        statuses: script(["uploading", "stored"]),
        ..Answers::default()
    });
    let report = report.unwrap();
    assert_eq!((report.deferrals, report.uploaded_files), (1, 0));
    assert_eq!(log, ["requirements", "upload", "status", "status", "requirements"]);
}

#[test]
fn a_deferred_file_that_the_other_one_fails_to_send_is_sent() {
    let (report, log) = sync_one(Answers {
        requirements: script([1]),
        uploads: script([(425, "")]),
        statuses: script(["unknown"]),
        ..Answers::default()
    });
    assert_eq!(report.unwrap().uploaded_files, 1);
    assert_eq!(log, ["requirements", "upload", "status", "upload", "requirements"]);
}

#[test]
fn waiting_for_somebody_else_ends() {
    let (report, log) = sync_one(Answers {
        requirements: script([1]),
        uploads: script([(425, "")]),
        statuses: script(["uploading"; 100]),
        ..Answers::default()
    });
    assert_eq!(report.unwrap().uploaded_files, 1);
    assert_eq!(log[log.len() - 2], "upload now");
}

/// Not even to a server that would take anything.
#[test]
fn what_has_changed_is_not_sent_under_its_old_name() {
    for size in [10_000, 1_000_000] {
        let server = Scripted::start(Answers { requirements: script([1]), ..Answers::default() });
        let dir = folder(&[("changes", &random(size))]);
        let mut client = Client::new(&server.url);
        let scan = client.scan(dir.path());
        let new = random(size);
        fs::write(dir.path().join("changes"), &new).unwrap();
        let report = client.sync(scan).unwrap();
        assert_eq!(report.files[0].digest.to_string(), sha(&new));
        assert_eq!(report.uploaded_files, 0);
        assert_eq!(server.log(), ["requirements", "requirements"]);
    }
}

#[test]
fn a_rejected_file_is_hashed_again_and_sent_again() {
    let (report, log) = sync_one(Answers {
        requirements: script([1, 1]),
        uploads: script([(417, "damaged")]),
        ..Answers::default()
    });
    assert_eq!(report.unwrap().uploaded_files, 1);
    assert_eq!(log, ["requirements", "upload", "requirements", "upload", "requirements"]);
}

#[test]
fn a_server_that_rejects_what_is_right_is_an_integrity_error() {
    let (result, log) = sync_one(Answers {
        requirements: script([1; 20]),
        uploads: script([(417, "damaged"); 20]),
        ..Answers::default()
    });
    assert!(
        matches!(result, Err(SyncError::Integrity { ref path, .. }) if path == "file.bin"),
        "{result:?}"
    );
    assert_eq!(log.iter().filter(|entry| *entry == "upload").count(), 4);
}

#[test]
fn a_server_that_forgets_is_found_out() {
    let (result, _) = sync_one(Answers { requirements: script([1; 100]), ..Answers::default() });
    assert!(matches!(result, Err(SyncError::Forgetful { count: 1, .. })), "{result:?}");
}

#[test]
fn a_server_in_trouble_is_tried_again_and_given_up() {
    let (report, log) = sync_one(Answers {
        requirements: script([1]),
        uploads: script([(500, ""), (503, ""), (429, "")]),
        ..Answers::default()
    });
    assert_eq!(report.unwrap().retries, 3);
    assert_eq!(log.iter().filter(|entry| *entry == "upload").count(), 4);
    let (result, log) = sync_one(Answers {
        requirements: script([1]),
        uploads: script([(503, "still down"); 10]),
        ..Answers::default()
    });
    let Err(SyncError::Exhausted { path, reason, .. }) = result else { panic!("{result:?}") };
    assert_eq!(path.as_deref(), Some("file.bin"));
    assert!(reason.contains("503") && reason.contains("still down"), "{reason}");
    assert_eq!(log.iter().filter(|entry| *entry == "upload").count(), 4);
}

#[test]
fn a_server_that_refuses_is_asked_once() {
    for (status, expected) in
        [(401, "Refused"), (403, "Refused"), (507, "Full"), (400, "Status"), (413, "Status")]
    {
        let (result, log) = sync_one(Answers {
            requirements: script([1]),
            uploads: script([(status, "because"); 10]),
            ..Answers::default()
        });
        let Err(SyncError::Client(error)) = result else { panic!("{result:?}") };
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        assert!(error.to_string().contains("because"), "{error}");
        assert_eq!(log, ["requirements", "upload"]);
    }
}

#[test]
fn both_dialects_of_missing_at_create_are_understood() {
    for status in [424, 500] {
        let server = Scripted::start(Answers {
            requirements: script([0, 1]),
            creates: script([status]),
            ..Answers::default()
        });
        let dir = folder(&[("file.bin", b"content")]);
        let mut client = Client::new(&server.url);
        let (path, report) = client.checkout(client.scan(dir.path())).unwrap();
        assert_eq!((path.as_str(), report.uploaded_files), ("demo", 1));
        assert_eq!(
            server.log(),
            ["requirements", "create", "requirements", "upload", "requirements", "create"]
        );
    }
}

#[test]
fn a_create_that_fails_for_another_reason_is_given_up() {
    let server = Scripted::start(Answers { creates: script([500; 20]), ..Answers::default() });
    let dir = folder(&[("file.bin", b"content")]);
    let mut client = Client::new(&server.url);
    let result = client.checkout(client.scan(dir.path()));
    assert!(
        matches!(result, Err(SyncError::Client(ClientError::MissingFiles { certain: false, .. }))),
        "{result:?}"
    );
    assert_eq!(server.log().iter().filter(|entry| *entry == "create").count(), 2);
}

#[test]
fn a_server_that_has_moved_is_followed() {
    let server = Scripted::start(Answers { requirements: script([1]), ..Answers::default() });
    let dir = folder(&[("file.bin", b"content")]);
    let mut client = Client::new(&server.url.replace("/prefix/", "/moved/"));
    let (_, report) = client.checkout(client.scan(dir.path())).unwrap();
    assert_eq!(report.uploaded_files, 1);
    assert_eq!(client.shaman.url().as_str(), server.url);
}
