//! The recorded sessions of both generations of the Blender add-on, sent again byte for byte.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::SocketAddr,
    path::Path,
    thread,
};

use farmhand::server::FarmOptions;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Value, ser::Formatter};

use super::{common::*, gateway::Manager};

/// Writes JSON as Python's `json.dumps` does: a space behind commas and colons, ASCII only.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: std::io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        text: &str,
    ) -> std::io::Result<()> {
        for character in text.chars() {
            if character.is_ascii() {
                write!(w, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(w, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

fn python_json(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Python)).unwrap();
    bytes
}

pub struct Session {
    pub steps: Vec<Value>,
    /// What each blob of the session holds.
    contents: HashMap<String, Vec<u8>>,
}

impl Session {
    pub fn load(name: &str) -> Self {
        let text = fs::read(fixture("addon-sessions").join(name)).unwrap();
        let session: Value = serde_json::from_slice(&text).unwrap();
        let steps = session["steps"].as_array().unwrap().clone();
        let contents = steps.iter().filter_map(body).map(|body| (sha(&body), body)).collect();
        Self { steps, contents }
    }

    /// Sends the Shaman steps on one connection, as the add-on does; returns the checkout's path.
    fn replay(&self, server: SocketAddr) -> String {
        self.replay_steps(server, is_shaman).0
    }

    /// Sends all of it, with what the add-on takes from earlier answers taken from these; returns the
    /// checkout's path and the job.
    pub fn replay_whole(&self, server: SocketAddr) -> (String, Value) {
        let (checkout, job) = self.replay_steps(server, |_| true);
        (checkout, job.unwrap())
    }

    fn replay_steps(
        &self,
        server: SocketAddr,
        which: impl Fn(&Value) -> bool,
    ) -> (String, Option<Value>) {
        let mut connection = Connection::new(server);
        let (mut checkout, mut etag, mut job): (Option<String>, _, _) = (None, None, None);
        let mut steps = 0;
        for step in self.steps.iter().filter(|step| which(step)) {
            let step = &adapted(step, etag.as_ref(), checkout.as_deref());
            let answer = send(&mut connection, step);
            let expected = step["status_seen"].as_u64().unwrap();
            let path = step["path"].as_str().unwrap();
            // Of two sessions at once, one finds what the other has sent.
            assert!(
                u64::from(answer.status) == expected || (expected == 204 && answer.status == 208),
                "{path}: {answer:?}"
            );
            if path.ends_with("/create") {
                checkout = Some(answer.json()["checkoutPath"].as_str().unwrap().to_owned());
            } else if path.ends_with("/jobs/types") {
                etag = Some(answer.json()["job_types"][0]["etag"].clone());
            } else if path.ends_with("/version") {
                assert_eq!(answer.json()["shortversion"], "3.9-beta1");
            } else if path.ends_with("/tags") {
                assert_eq!(answer.json()["tags"], serde_json::json!([]));
            } else if path.contains("/shared-storage/") {
                let answer = answer.json();
                assert_eq!(answer["shamanEnabled"], true);
                assert!(answer["location"].as_str().unwrap().starts_with('/'));
            } else if path.ends_with("/jobs") {
                job = Some(answer.json());
            }
            steps += 1;
        }
        assert!(steps > 50, "{steps}");
        (checkout.unwrap(), job)
    }

    /// What the session uploads, in its order.
    fn uploads(&self) -> Vec<Vec<u8>> {
        let uploads = self.steps.iter().filter(|step| {
            is_shaman(step) && step["path"].as_str().unwrap().contains("/shaman/files/")
        });
        uploads.filter_map(body).collect()
    }

    /// The checkout is what the session says it should be.
    pub fn check(&self, storage: &Path, checkout: &str) {
        let create = self
            .steps
            .iter()
            .find(|step| step["path"].as_str().unwrap().ends_with("/create"))
            .unwrap();
        let made = tree(&storage.join("jobs").join(checkout));
        let files = create["json"]["files"].as_array().unwrap();
        assert_eq!(made.len(), files.len());
        for file in files {
            let (path, sha) = (file["path"].as_str().unwrap(), file["sha"].as_str().unwrap());
            assert!(made[path] == self.contents[sha], "{path} differs");
            // But for the .blend, which is rewritten on its way, and the list of what was packed.
            let source = fixture("blend-project").join(path);
            if !path.ends_with("scene.blend") && path != "pack-info.txt" {
                assert!(made[path] == fs::read(source).unwrap(), "{path} is not the project's");
            }
        }
    }
}

pub fn is_shaman(step: &Value) -> bool {
    step["path"].as_str().unwrap().starts_with("/api/v3/shaman/")
}

/// A step with what the add-on would have put in, had these been the answers it got.
fn adapted(step: &Value, etag: Option<&Value>, checkout: Option<&str>) -> Value {
    let mut step = step.clone();
    if step["json"]["type_etag"].is_string() {
        let job = &mut step["json"];
        job["type_etag"] = etag.unwrap().clone();
        if let Some(checkout) = checkout {
            let blendfile = job["settings"]["blendfile"].as_str().unwrap();
            // An absolute path takes the place of the whole.
            let dir = if checkout.starts_with('/') { "" } else { "{jobs}/" };
            let blendfile = blendfile.replace("{jobs}/shot 010/", &format!("{dir}{checkout}/"));
            job["settings"]["blendfile"] = blendfile.into();
            if job["storage"].is_object() {
                job["storage"]["shaman_checkout_id"] = checkout.into();
            }
        }
        let length = python_json(&step["json"]).len().to_string();
        step["headers"]["Content-Length"] = length.into();
    }
    step
}

fn body(step: &Value) -> Option<Vec<u8>> {
    if let Some(text) = step["body_base64"].as_str() {
        return Some(STANDARD.decode(text).unwrap());
    }
    step["body_file"].as_str().map(|path| fs::read(fixture(path)).unwrap())
}

pub fn send(connection: &mut Connection, step: &Value) -> Answer {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: localhost:8080\r\n",
        step["method"].as_str().unwrap(),
        step["path"].as_str().unwrap()
    );
    for (name, value) in step["headers"].as_object().unwrap() {
        head.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
    }
    head.push_str("\r\n");
    let body = match &step["json"] {
        Value::Null => body(step).unwrap_or_default(),
        json => python_json(json),
    };
    if let Some(length) = step["headers"]["Content-Length"].as_str() {
        assert_eq!(length, body.len().to_string(), "this is not what was recorded");
    }
    connection.send(head.as_bytes());
    connection.send(&body);
    connection.answer()
}

pub const SESSIONS: [&str; 2] = ["v1-blender-4.5.json", "v2-blender-5.2.json"];

/// Both sessions, each twice, all at the same time.
fn at_once<T: Send>(replay: impl Fn(&Session) -> T + Sync) -> Vec<(Session, T)> {
    let replay = &replay;
    thread::scope(|scope| {
        let replays = [0, 1, 0, 1].map(|which| {
            scope.spawn(move || {
                let session = Session::load(SESSIONS[which]);
                let result = replay(&session);
                (session, result)
            })
        });
        replays.map(|replay| replay.join().unwrap()).into()
    })
}

#[test]
fn both_generations_make_their_checkouts() {
    for name in SESSIONS {
        let server = TestServer::start();
        let session = Session::load(name);
        let checkout = session.replay(server.addr);
        assert_eq!(checkout, "shot 010");
        session.check(&server.storage(), &checkout);
        // Once more: everything is there, and the name is taken.
        let again = session.replay(server.addr);
        assert_ne!(again, checkout);
        session.check(&server.storage(), &again);
    }
}

#[test]
fn both_at_once_send_each_file_and_get_their_own_checkouts() {
    let server = TestServer::start();
    let replays = at_once(|session| session.replay(server.addr));
    for (session, checkout) in &replays {
        session.check(&server.storage(), checkout);
    }
    let names: HashSet<_> = replays.iter().map(|(_, name)| name).collect();
    assert_eq!(names.len(), 4);
}

/// Without a Manager.
#[test]
fn both_generations_connect_and_submit() {
    let server = TestServer::with_farm(FarmOptions::default());
    for (session, (checkout, job)) in at_once(|session| session.replay_whole(server.addr)) {
        session.check(&server.storage(), &checkout);
        assert_eq!(job["settings"]["blendfile"], format!("{{jobs}}/{checkout}/scene.blend"));
        // The newer one does not say which checkout is its own, and it goes with the job all the same.
        let id = job["id"].as_str().unwrap();
        let goes = server.api("GET", &format!("jobs/{id}/what-would-delete-do"), Value::Null);
        assert_eq!(goes.json()["shaman_checkout"], true);
        assert_eq!(server.api("DELETE", &format!("jobs/{id}"), Value::Null).status, 204);
        assert!(!server.storage().join("jobs").join(checkout).exists());
    }
    assert_eq!(server.api("GET", "jobs", Value::Null).json()["jobs"], serde_json::json!([]));
}

/// A Manager, its jobs, which a server of jobs without a Manager keeps, and ours in front of it.
fn before_a_manager() -> (Manager, TestServer, TestServer) {
    let farm = TestServer::farm_for_others();
    let addr = farm.addr;
    let manager = Manager::start(move |seen| {
        let mut head = format!("{} {} HTTP/1.1\r\n", seen.method, seen.target);
        for (name, value) in &seen.headers {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        let mut connection = Connection::new(addr);
        connection.send(format!("{head}\r\n").as_bytes());
        connection.send(&seen.body);
        let answer = connection.answer();
        let status = axum::http::StatusCode::from_u16(answer.status).unwrap();
        let media = [("content-type", "application/json")];
        axum::response::IntoResponse::into_response((status, media, answer.body))
    });
    let server = manager.gateway();
    (manager, farm, server)
}

#[test]
fn both_generations_connect_and_submit_through_the_gateway() {
    for name in SESSIONS {
        let (_manager, farm, server) = before_a_manager();
        let session = Session::load(name);
        let (checkout, job) = session.replay_whole(server.addr);
        assert_eq!(checkout, "shot 010");
        session.check(&server.storage(), &checkout);
        submitted_to(&farm, &job, &checkout);
    }
}

#[test]
fn both_submit_at_once_through_the_gateway() {
    let (_manager, farm, server) = before_a_manager();
    let replays = at_once(|session| session.replay_whole(server.addr));
    for (session, (checkout, job)) in &replays {
        session.check(&server.storage(), checkout);
        submitted_to(&farm, job, checkout);
    }
    let jobs: HashSet<_> = replays.iter().map(|(_, (_, job))| job["id"].to_string()).collect();
    assert_eq!(jobs.len(), 4);
}

/// The Manager has the job, and no file of it.
fn submitted_to(farm: &TestServer, job: &Value, checkout: &str) {
    let id = job["id"].as_str().unwrap();
    let kept = farm.api("GET", &format!("jobs/{id}"), Value::Null).json();
    assert_eq!(kept["settings"]["blendfile"], format!("{{jobs}}/{checkout}/scene.blend"));
    // Of both generations: the newer one does not say it itself.
    assert_eq!(kept["storage"]["shaman_checkout_id"], checkout);
    assert_eq!(tree(&farm.storage().join("file-store/stored")).len(), 0);
}

/// Somebody else is sending one of the files, and takes until the session has come to it.
#[test]
fn a_session_behind_a_slow_uploader_waits_for_its_file() {
    for name in SESSIONS {
        let (_manager, _farm, behind) = before_a_manager();
        for server in [TestServer::with_farm(FarmOptions::default()), behind] {
            let session = Session::load(name);
            let uploads = session.uploads();
            let [.., before, last] = &uploads[..] else { panic!("{name} uploads nothing") };
            let mut slow = server.connect();
            slow.half_upload(last, "");
            server.until_status(last, "uploading");
            let checkout = thread::scope(|scope| {
                let replay = scope.spawn(|| session.replay_whole(server.addr).0);
                server.until_status(before, "stored");
                assert_eq!(server.status(last), "uploading");
                assert_eq!(slow.other_half(last).status, 204);
                replay.join().unwrap()
            });
            session.check(&server.storage(), &checkout);
        }
    }
}

#[test]
fn what_is_not_served_yet_is_a_clear_answer_on_a_connection_that_goes_on() {
    let server = TestServer::start();
    let session = Session::load(SESSIONS[0]);
    let mut connection = server.connect();
    for step in session.steps.iter().filter(|step| !is_shaman(step)) {
        send(&mut connection, step).is_error(404, "there is no");
    }
    assert_eq!(connection.get("/healthz").status, 200);
}

/// Released add-ons fold the file's name over several lines.
#[test]
fn folded_headers_are_joined() {
    let server = TestServer::start();
    let mut connection = server.connect();
    for ending in ["\n", "\r\n"] {
        let content = random(1000);
        let headers = format!(
            "User-Agent: Flamenco/3.8.5 (Blender add-on)\r\nX-Shaman-Original-Filename: \
             =?utf-8?q?a/very/long/path/that/goes/on/for/more/than/a/line/of/its?={ending} =?utf-8?q?/header=2Eblend?=\r\n"
        );
        assert_eq!(connection.upload(&content, &headers).status, 204);
        assert_eq!(server.status(&content), "stored");
    }
}
