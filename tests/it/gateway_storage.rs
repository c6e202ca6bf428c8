//! A gateway and the storage of its Manager: one directory, or no checkouts. And which checkout a job
//! has, whatever the job and the Manager say of it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use farmhand::server::{CheckoutPaths, GatewayOptions};
use serde_json::{Value, json};

use super::{
    addon::{SESSIONS, Session},
    common::*,
    gateway::{
        Manager, Seen, checkouts, exchange, gateway, is_gateway_error, make_checkout, options, with,
    },
};

/// A Manager that keeps jobs, with what an add-on asks of it.
struct Flamenco {
    manager: Manager,
    jobs: Arc<Mutex<Vec<Value>>>,
}

impl Flamenco {
    fn start() -> Self {
        let jobs: Arc<Mutex<Vec<Value>>> = Arc::default();
        let storage: Arc<Mutex<Option<ManagersStorage>>> = Arc::default();
        let (all, own) = (jobs.clone(), storage.clone());
        let answer = move |seen: &Seen| {
            let storage = own.lock().unwrap().clone();
            match storage {
                Some(storage) => answer(seen, &storage, &mut all.lock().unwrap()),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let manager = Manager::sharing(([127, 0, 0, 1], 0).into(), storage, answer);
        Self { manager, jobs }
    }

    /// A server in front of it, which has this storage in common with it.
    fn gateway(&self) -> TestServer {
        self.manager.gateway()
    }

    fn set_storage(&self, storage: ManagersStorage) {
        *self.manager.storage.lock().unwrap() = Some(storage);
    }

    /// Has it know a job that did not come through the gateway.
    fn add(&self, id: &str, checkout_id: Option<&str>, blendfile: &str) {
        let storage = checkout_id.map(|id| json!({ "shaman_checkout_id": id }));
        let settings = json!({ "blendfile": blendfile });
        let job = json!({ "id": id, "storage": storage, "settings": settings });
        self.jobs.lock().unwrap().push(job);
    }

    fn job(&self, id: &Value) -> Value {
        let jobs = self.jobs.lock().unwrap();
        jobs.iter().find(|job| job["id"] == *id).unwrap().clone()
    }

    /// The file that a worker finds as the job's .blend.
    fn blend(&self, job: &Value) -> PathBuf {
        let storage = self.manager.storage.lock().unwrap().clone().unwrap();
        let jobs = match storage.shaman_enabled {
            true => format!("{}/jobs", storage.location),
            false => storage.location.clone(),
        };
        let path = job["settings"]["blendfile"].as_str().unwrap().replace("{jobs}", &jobs);
        storage.lead(&path).unwrap_or_else(|| path.into())
    }
}

fn answer(seen: &Seen, storage: &ManagersStorage, jobs: &mut Vec<Value>) -> Response {
    if let Some(answer) = storage.answer(&seen.method, &seen.target, &seen.body) {
        return axum::Json(answer).into_response();
    }
    let path = seen.target.split('?').next().unwrap();
    let parts: Vec<&str> = path.split('/').skip(3).collect();
    let find = |id: &str| jobs.iter().position(|job| job["id"] == id);
    let answer = match (seen.method.as_str(), &parts[..]) {
        ("GET", ["version"]) => {
            let version = "3.9-beta1";
            json!({ "version": version, "shortversion": version, "name": "Flamenco", "git": "x" })
        }
        ("GET", ["configuration", "shared-storage", audience, platform]) => json!({
            "location": storage.location, "audience": audience, "platform": platform,
            "shamanEnabled": storage.shaman_enabled,
        }),
        ("GET", ["jobs", "types"]) => {
            let name = "simple-blender-render";
            json!({ "job_types": [{ "name": name, "label": name, "etag": "e", "settings": [] }] })
        }
        ("GET", ["worker-mgt", "tags"]) => json!({ "tags": [] }),
        ("POST", ["jobs", "check"]) => return StatusCode::NO_CONTENT.into_response(),
        ("POST", ["jobs"]) => {
            let job = serde_json::from_slice::<Value>(&seen.body).ok();
            let Some(mut job) = job.filter(Value::is_object) else {
                return StatusCode::BAD_REQUEST.into_response();
            };
            job["id"] = json!(format!("submitted-{}", jobs.len()));
            jobs.push(job.clone());
            job
        }
        ("GET", ["jobs"]) => json!({ "jobs": jobs }),
        ("GET", ["jobs", id]) => jobs[find(id).unwrap()].clone(),
        ("GET", ["jobs", id, "what-would-delete-do"]) => {
            let named = jobs[find(id).unwrap()]["storage"]["shaman_checkout_id"].is_string();
            json!({ "shaman_checkout": storage.shaman_enabled && named })
        }
        ("DELETE", ["jobs", id]) => {
            jobs.remove(find(id).unwrap());
            return StatusCode::NO_CONTENT.into_response();
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    axum::Json(answer).into_response()
}

/// What a probe, or a checkout that is being built, has left.
fn leftovers(storage: &Path) -> usize {
    fs::read_dir(storage.join("jobs/.farmhand-building")).map_or(0, Iterator::count)
}

fn try_checkout(server: &TestServer) -> Answer {
    let content = random(100);
    assert_eq!(server.upload(&content).status, 204);
    let request = json!({ "checkoutPath": "shot", "files": [file(&content, "scene.blend")] });
    server.post_json("checkout/create", &request)
}

fn is_ready(server: &TestServer) -> bool {
    server.connect().get("/readyz").status == 200
}

/// No checkout is made, and the server is not ready, for this reason.
#[track_caller]
fn refuses(server: &TestServer, status: u16, parts: &[&str]) {
    let answer = try_checkout(server);
    for part in parts {
        answer.is_error(status, part);
        server.connect().get("/readyz").is_error(503, part);
    }
    answer.is_error(status, "serve.checkout_paths");
    assert_eq!(checkouts(server), Vec::<String>::new());
    assert_eq!(leftovers(&server.storage()), 0);
}

fn goes(server: &TestServer, id: &Value) -> bool {
    let path = format!("jobs/{}/what-would-delete-do", id.as_str().unwrap());
    let answer = server.api("GET", &path, Value::Null);
    assert_eq!(answer.status, 200);
    answer.json()["shaman_checkout"].as_bool().unwrap()
}

fn delete(server: &TestServer, id: &Value) {
    let path = format!("jobs/{}", id.as_str().unwrap());
    assert_eq!(server.api("DELETE", &path, Value::Null).status, 204);
}

/// Deletes a job whose checkout stays: what that does is done when a later deletion is.
fn delete_in_vain(flamenco: &Flamenco, server: &TestServer, id: &Value) {
    flamenco.manager.take();
    exchange(
        server.addr,
        "DELETE",
        &format!("/api/v3/jobs/{}", id.as_str().unwrap()),
        "X-Test: 1\r\n",
        b"",
    );
    let other = make_checkout(server, "other");
    let name = other.rsplit('/').next().unwrap().to_owned();
    let prefix = if other.starts_with("jobs/") { "jobs/" } else { "" };
    flamenco.add("other", None, &format!("{{jobs}}/{prefix}{name}/x.blend"));
    delete(server, &json!("other"));
    until(|| !checkouts(server).contains(&name));
}

#[test]
fn one_storage_is_proven() {
    fn jobs(storage: &Path, jobs: &str) -> ManagersStorage {
        let variables = json!({ "jobs": { "value": jobs, "is_twoway": false } });
        ManagersStorage { variables, ..ManagersStorage::called("/mnt/farm", storage) }
    }
    type View = fn(&Path) -> ManagersStorage;
    let views: [(View, &str); 7] = [
        (ManagersStorage::at, ""),
        // By another path, and on another platform.
        (|dir| ManagersStorage::called("/mnt/farm", dir), ""),
        (|dir| ManagersStorage::called("F:\\farm", dir), ""),
        // One that calls the directory of checkouts its storage.
        (|dir| ManagersStorage::called("/mnt/farm/jobs", &dir.join("jobs")), ""),
        // One that says where its {jobs} leads.
        (|dir| jobs(dir, "/mnt/farm/jobs"), ""),
        (|dir| jobs(dir, "/mnt/farm"), "jobs/"),
        (|dir| ManagersStorage { shaman_enabled: false, ..ManagersStorage::at(dir) }, "jobs/"),
    ];
    let manager = Manager::start(|_| StatusCode::NOT_FOUND.into_response());
    for (number, (view, prefix)) in views.into_iter().enumerate() {
        *manager.storage.lock().unwrap() = None;
        let server = gateway(&manager.url());
        *manager.storage.lock().unwrap() = Some(view(&server.storage()));
        let answer = try_checkout(&server);
        assert_eq!(answer.status, 200, "{number}: {answer:?}");
        assert_eq!(answer.json()["checkoutPath"], format!("{prefix}shot"), "{number}");
        assert!(is_ready(&server));
        assert_eq!(checkouts(&server), ["shot"]);
        assert_eq!(leftovers(&server.storage()), 0);
    }
}

#[test]
fn another_storage_is_refused() {
    let manager = Manager::start(|_| StatusCode::NOT_FOUND.into_response());
    let server = gateway(&manager.url());
    let elsewhere = tempfile::tempdir().unwrap();
    let storage = server.storage();
    let (own, other) = (storage.to_str().unwrap(), elsewhere.path().to_str().unwrap());
    for dir in ["jobs", "jobs/.farmhand-building"] {
        fs::create_dir(elsewhere.path().join(dir)).unwrap();
    }
    *manager.storage.lock().unwrap() = Some(ManagersStorage::at(elsewhere.path()));
    refuses(&server, 412, &[own, other, "uses another storage"]);
    // Below its {jobs}, but not where that leads.
    let jobs = ManagersStorage {
        variables: json!({ "jobs": { "value": "/mnt/farm/jobs" } }),
        ..ManagersStorage::called("/mnt/farm", elsewhere.path())
    };
    *manager.storage.lock().unwrap() = Some(jobs);
    refuses(&server, 412, &[own, "/mnt/farm", "uses another storage"]);
    // The same path on another machine.
    *manager.storage.lock().unwrap() = Some(ManagersStorage::called(own, elsewhere.path()));
    refuses(&server, 412, &[own, "the paths are equal"]);
    // Mended.
    *manager.storage.lock().unwrap() = Some(ManagersStorage::at(&storage));
    assert_eq!(try_checkout(&server).status, 200);
    assert!(is_ready(&server));
    assert_eq!(leftovers(elsewhere.path()), 0);
}

#[test]
fn another_storage_is_an_error_in_the_log() {
    let manager = Manager::start(|_| StatusCode::NOT_FOUND.into_response());
    let home = tempfile::tempdir().unwrap();
    let (storage, log) = (home.path().join("s"), home.path().join("log"));
    *manager.storage.lock().unwrap() = Some(ManagersStorage::at(home.path()));
    let url = manager.url();
    let _server = ServerProcess::logging(home.path(), &storage, &["--manager", &url], &log);
    let (own, other) = (storage.to_str().unwrap(), home.path().to_str().unwrap());
    until(|| {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().any(|line| {
            line.contains("ERROR")
                && line.contains(&format!("its own is {other}"))
                && line.contains(&format!("this server's is {own}"))
        })
    });
}

#[test]
fn yes_to_everything_proves_nothing() {
    let manager = Manager::start(|_| StatusCode::NOT_FOUND.into_response());
    let server = gateway(&manager.url());
    let elsewhere = tempfile::tempdir().unwrap();
    let makes =
        |dir: &Path| ManagersStorage { makes_directories: true, ..ManagersStorage::at(dir) };
    *manager.storage.lock().unwrap() = Some(makes(elsewhere.path()));
    refuses(&server, 503, &["usable that do not exist"]);
    // But it does if the directories are made here.
    *manager.storage.lock().unwrap() = Some(makes(&server.storage()));
    assert_eq!(try_checkout(&server).status, 200);
    assert_eq!(leftovers(&server.storage()), 0);
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_manager_that_returns_is_checked() {
    let addr = free_address();
    let server = gateway(&format!("http://{addr}/"));
    let elsewhere = tempfile::tempdir().unwrap();
    refuses(&server, 503, &["cannot be reached", server.storage().to_str().unwrap()]);
    let start = |dir: &Path| {
        let storage = Arc::new(Mutex::new(Some(ManagersStorage::at(dir))));
        Manager::sharing(addr, storage, |_| StatusCode::NO_CONTENT.into_response())
    };
    let get = || exchange(server.addr, "GET", "/x", "X-Test: 1\r\n", b"");
    let manager = start(&server.storage());
    assert_eq!(get().status, 204);
    assert_eq!(try_checkout(&server).status, 200);
    assert!(is_ready(&server));
    // While it is away, it disproves nothing.
    drop(manager);
    is_gateway_error(&get(), 502, "cannot be reached");
    assert_eq!(try_checkout(&server).status, 200);
    assert!(is_ready(&server));
    // Another one is there in its place: known before the next checkout.
    let _manager = start(elsewhere.path());
    assert_eq!(get().status, 204);
    try_checkout(&server).is_error(412, "uses another storage");
    assert!(!is_ready(&server));
}

/// Without a checkout that asks for it: the server hears that the Manager is there again.
#[test]
fn a_replaced_manager_is_noticed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |addr: SocketAddr, dir: &Path| {
        let storage = Arc::new(Mutex::new(Some(ManagersStorage::at(dir))));
        Manager::sharing(addr, storage, |_| StatusCode::NO_CONTENT.into_response())
    };
    let manager = start(([127, 0, 0, 1], 0).into(), dir.path());
    let addr = manager.addr;
    let server = TestServer::over(dir.path().to_owned(), options(&manager.url()));
    // The next check is due in minutes.
    until(|| is_ready(&server));
    drop(manager);
    let get = || exchange(server.addr, "GET", "/x", "X-Test: 1\r\n", b"");
    is_gateway_error(&get(), 502, "cannot be reached");
    let _manager = start(addr, elsewhere.path());
    assert_eq!(get().status, 204);
    until(|| !is_ready(&server));
    assert_eq!(leftovers(dir.path()), 0);
}

#[test]
fn probes_are_always_removed() {
    let manager = Manager::start(|_| StatusCode::NOT_FOUND.into_response());
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("s");
    *manager.storage.lock().unwrap() = Some(ManagersStorage::at(&storage));
    let url = manager.url();
    let start = || ServerProcess::start(home.path(), &storage, &["--manager", &url]);
    let during_a_check = || {
        manager.is_silent.store(true, SeqCst);
        let server = start();
        until(|| leftovers(&storage) == 1);
        server
    };
    // It is told to stop in a check.
    let mut server = during_a_check();
    server.terminate();
    assert!(server.child.wait().unwrap().success());
    assert_eq!(leftovers(&storage), 0);
    // It is killed.
    let server = during_a_check();
    drop(server);
    assert_eq!(leftovers(&storage), 1);
    manager.is_silent.store(false, SeqCst);
    let server = start();
    until(|| server.connect().get("/readyz").status == 200);
    assert_eq!(leftovers(&storage), 0);
    drop(server);
    // The Manager goes in a check.
    let server = during_a_check();
    drop(manager);
    until(|| leftovers(&storage) == 0);
    // The probe goes before the result is known.
    until(|| {
        let answer = server.connect().get("/readyz");
        answer.status == 503
            && answer.json()["message"].as_str().unwrap().contains("it is not known")
    });
}

#[test]
fn absolute_paths_need_no_jobs() {
    for (name, shaman_enabled) in
        SESSIONS.into_iter().flat_map(|name| [(name, true), (name, false)])
    {
        let flamenco = Flamenco::start();
        let elsewhere = tempfile::tempdir().unwrap();
        let storage = ManagersStorage { shaman_enabled, ..ManagersStorage::at(elsewhere.path()) };
        flamenco.set_storage(storage);
        let checkout_paths = CheckoutPaths::Absolute;
        let options = GatewayOptions { checkout_paths, ..GatewayOptions::default() };
        let server = TestServer::with(with(&flamenco.manager.url(), options));
        let session = Session::load(name);
        let (checkout, job) = session.replay_whole(server.addr);
        let dir = server.storage().join("jobs/shot 010");
        assert_eq!(Path::new(&checkout), dir);
        session.check(&server.storage(), &checkout);
        let job = flamenco.job(&job["id"]);
        assert_eq!(flamenco.blend(&job), dir.join("scene.blend"));
        // A Manager with a Shaman of its own would look for that id in its own storage.
        let id = &job["storage"]["shaman_checkout_id"];
        assert_eq!(*id, if shaman_enabled { Value::Null } else { json!("shot 010") }, "{name}");
        assert!(is_ready(&server));
        assert!(goes(&server, &job["id"]), "{name}");
        delete(&server, &job["id"]);
        until(|| !dir.exists());
    }
}

#[test]
fn disabled_shaman_is_consistent() {
    for name in SESSIONS {
        let flamenco = Flamenco::start();
        let dir = tempfile::tempdir().unwrap();
        let storage = ManagersStorage::at(dir.path());
        flamenco.set_storage(ManagersStorage { shaman_enabled: false, ..storage });
        let server = TestServer::over(dir.path().to_owned(), options(&flamenco.manager.url()));
        for path in ["configuration", "configuration/shared-storage/workers/linux"] {
            let answer = server.api("GET", path, Value::Null).json();
            assert_eq!(answer["shamanEnabled"], true, "{path}");
        }
        let session = Session::load(name);
        let (checkout, job) = session.replay_whole(server.addr);
        // Its {jobs} is the storage.
        assert_eq!(checkout, "jobs/shot 010");
        session.check(&server.storage(), "shot 010");
        let job = flamenco.job(&job["id"]);
        assert!(flamenco.blend(&job).exists(), "{job}");
        assert_eq!(job["storage"]["shaman_checkout_id"], "shot 010");
        assert!(goes(&server, &job["id"]));
        // Another one that uses it.
        flamenco.add("late", None, "{jobs}/jobs/shot 010/lib/asset.blend");
        assert!(!goes(&server, &job["id"]) && !goes(&server, &json!("late")));
        delete_in_vain(&flamenco, &server, &job["id"]);
        assert_eq!(checkouts(&server), ["shot 010"]);
        assert!(goes(&server, &json!("late")));
        delete(&server, &json!("late"));
        until(|| checkouts(&server).is_empty());
    }
}

fn submit(server: &TestServer, headers: &str, body: &[u8]) -> Answer {
    let headers = format!("X-Test: 1\r\nContent-Type: application/json\r\n{headers}");
    exchange(server.addr, "POST", "/api/v3/jobs", &headers, body)
}

#[test]
fn a_job_without_id_gets_one() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    assert_eq!(make_checkout(&server, "show/shot"), "show/shot");
    let before = r#"{ "name":"ä", "settings" : {"blendfile":"{jobs}\/show/shot/x.blend","n":1.50},"x":[1e3 , 2]
}"#;
    let after = r#"{ "name":"ä", "settings" : {"blendfile":"{jobs}\/show/shot/x.blend","n":1.50},"x":[1e3 , 2]
,"storage":{"shaman_checkout_id":"show/shot"}}"#;
    assert_eq!(submit(&server, "", before.as_bytes()).status, 200);
    let seen = flamenco.manager.take().into_iter().find(|seen| seen.method == "POST").unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.body), after);
    assert_eq!(seen.headers["content-length"], after.len().to_string());
    // A check has no checkout yet.
    let headers = "X-Test: 1\r\nContent-Type: application/json\r\n";
    exchange(server.addr, "POST", "/api/v3/jobs/check", headers, before.as_bytes());
    assert_eq!(flamenco.manager.one().body, before);
}

#[test]
fn an_odd_job_is_passed_on_as_it_is() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    make_checkout(&server, "shot");
    let job = r#"{"settings":{"blendfile":"{jobs}/shot/x.blend"}}"#;
    let long = format!("{job}{}", " ".repeat(2 << 20));
    for (headers, body) in [
        ("Content-Encoding: gzip\r\n", job),
        ("", long.as_str()),
        ("", "{\"settings\": nonsense"),
        ("", r#"["{jobs}/shot/x.blend"]"#),
        ("", r#"{"settings":{"blendfile":"{jobs}/elsewhere/x.blend"}}"#),
    ] {
        submit(&server, headers, body.as_bytes());
        assert!(flamenco.manager.one().body == body, "{headers} {}", &body[..20]);
    }
    // One whose length is not known beforehand.
    let mut connection = server.connect();
    connection.send(
        b"POST /api/v3/jobs HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    for piece in long.as_bytes().chunks(1 << 16) {
        connection.send(format!("{:x}\r\n", piece.len()).as_bytes());
        connection.send(piece);
        connection.send(b"\r\n");
    }
    connection.send(b"0\r\n\r\n");
    assert_eq!(connection.answer().status, 200);
    assert!(flamenco.manager.one().body == long);
}

#[test]
fn jobs_without_id_use_their_checkouts() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    make_checkout(&server, "shots/one");
    // From before the gateway added ids; one was given a path of its own machine.
    flamenco.add("a", None, "{jobs}/shots/one/x.blend");
    flamenco.add("b", None, "{jobs}/shots/one/y.blend");
    flamenco.add("c", Some("shots/one"), "x.blend");
    flamenco.add("d", None, "{share}/jobs/shots/one/x.blend");
    // What the Manager erases by itself it says itself.
    assert!(!goes(&server, &json!("a")) && goes(&server, &json!("c")));
    for id in ["a", "c", "d"] {
        delete_in_vain(&flamenco, &server, &json!(id));
        assert_eq!(checkouts(&server), ["shots/one"], "{id}");
    }
    assert!(goes(&server, &json!("b")));
    delete(&server, &json!("b"));
    until(|| checkouts(&server).is_empty());
}

#[test]
fn a_part_of_a_checkout_stays() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    let content = random(100);
    server.upload(&content);
    let files = [file(&content, "x.blend"), file(&content, "textures/wood.png")];
    let request = json!({ "checkoutPath": "alice/shot", "files": files });
    assert_eq!(server.post_json("checkout/create", &request).status, 200);
    let alice = server.storage().join("jobs/alice");
    let before = tree(&alice);
    for id in ["alice/shot/textures", "alice", "alice/shot/x.blend"] {
        flamenco.add("part", Some(id), "{jobs}/alice/shot/x.blend");
        delete_in_vain(&flamenco, &server, &json!("part"));
        assert!(tree(&alice) == before, "{id}");
        // The Manager itself would erase it with the job, if its Shaman is enabled.
        flamenco.manager.take();
        let job = json!({ "name": "x", "storage": { "shaman_checkout_id": id } });
        let answer = submit(&server, "", job.to_string().as_bytes());
        is_gateway_error(&answer, 400, "is not a whole checkout");
        assert!(flamenco.manager.take().is_empty());
    }
}

#[test]
fn a_job_elsewhere_erases_nothing_here() {
    let flamenco = Flamenco::start();
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = || TestServer::over(dir.path().to_owned(), options(&flamenco.manager.url()));
    flamenco.set_storage(ManagersStorage::at(dir.path()));
    let server = start();
    for name in ["shot", "mine"] {
        make_checkout(&server, name);
    }
    drop(server);
    // The Manager's own Shaman has a checkout of the same name.
    flamenco.set_storage(ManagersStorage::at(elsewhere.path()));
    flamenco.add("theirs", Some("shot"), "{jobs}/shot/x.blend");
    flamenco.add("newer", None, "{jobs}/shot/x.blend");
    let mine = dir.path().join("jobs/mine/x.blend");
    flamenco.add("mine", None, mine.to_str().unwrap());
    let server = start();
    assert!(!goes(&server, &json!("newer")) && goes(&server, &json!("mine")));
    for id in ["theirs", "newer", "mine"] {
        delete(&server, &json!(id));
    }
    until(|| checkouts(&server) == ["shot"]);
    assert!(dir.path().join("jobs/shot/scene.blend").exists());
}

/// A frame that was rendered below the checkout outlives the job, unless the outputs are to go, too.
#[test]
fn gateway_deletion_keeps_frames() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    // Its own Shaman would delete the checkout itself, with everything in it.
    let mut storage = ManagersStorage::at(&server.storage());
    storage.shaman_enabled = false;
    flamenco.set_storage(storage);
    for with_outputs in [false, true] {
        let checkout = make_checkout(&server, "shot");
        let dir = server.storage().join("jobs/shot");
        let frame = dir.join("render/0001.png");
        fs::create_dir(dir.join("render")).unwrap();
        fs::write(&frame, "frame").unwrap();
        flamenco.add("a", None, &format!("{{jobs}}/{checkout}/scene.blend"));
        let told = server.api("GET", "jobs/a/what-would-delete-do", Value::Null).json();
        assert_eq!(told["shaman_checkout"], true, "{told}");
        let outputs = json!({ "files": 1, "bytes": 5, "left": 0, "paths": ["render/0001.png"] });
        assert_eq!(told["checkout"]["outputs"], outputs, "{told}");
        let query = if with_outputs { "?report=true&with_outputs=true" } else { "?report=true" };
        assert_eq!(server.api("DELETE", &format!("jobs/a{query}"), Value::Null).status, 204);
        if with_outputs {
            until(|| !dir.exists());
        } else {
            until(|| fs::symlink_metadata(dir.join("scene.blend")).is_err());
            until(|| checkouts(&server).is_empty());
            assert_eq!(fs::read(&frame).unwrap(), b"frame");
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}

/// `store erase` asks the Manager for the users of a checkout.
#[test]
fn a_checkout_of_a_live_job_is_not_erased() {
    let flamenco = Flamenco::start();
    let server = flamenco.gateway();
    flamenco.set_storage(ManagersStorage::at(&server.storage()));
    let checkout = make_checkout(&server, "shot");
    let erase =
        |more: &str| server.admin("DELETE", &format!("checkouts?path=shot{more}"), Value::Null);
    flamenco.add("a", None, &format!("{{jobs}}/{checkout}/scene.blend"));
    let set = |status: &str| flamenco.jobs.lock().unwrap()[0]["status"] = status.into();
    for status in ["queued", "active", "paused", "a status of the future"] {
        set(status);
        erase("").is_error(409, "is used by the job a");
    }
    set("completed");
    assert_eq!(erase("&dry_run=true").status, 200);
    flamenco.jobs.lock().unwrap()[0] = json!("no job");
    erase("").is_error(409, "it is not known whether a job of the Manager uses the checkout");
    assert_eq!(erase("&force=true").status, 200);
    let checkout = make_checkout(&server, "shot");
    flamenco.jobs.lock().unwrap().clear();
    flamenco.add("a", Some(&checkout), "{jobs}/elsewhere/scene.blend");
    set("failed");
    assert_eq!(erase("").status, 200);
}

/// A checkout is deleted by the name that `checkout/create` answered, too.
#[test]
fn an_answered_name_can_be_erased() {
    let flamenco = Flamenco::start();
    let dir = tempfile::tempdir().unwrap();
    let storage = ManagersStorage::at(dir.path());
    flamenco.set_storage(ManagersStorage { shaman_enabled: false, ..storage });
    let server = TestServer::over(dir.path().to_owned(), options(&flamenco.manager.url()));
    for name in ["jobs/shot".to_owned(), format!("{}/jobs/shot", server.storage().display())] {
        assert_eq!(make_checkout(&server, "shot"), "jobs/shot");
        let erased = server.admin("DELETE", &format!("checkouts?path={name}"), Value::Null);
        assert_eq!(erased.json()["path"], "shot", "{erased:?}");
        assert!(checkouts(&server).is_empty());
    }
}
