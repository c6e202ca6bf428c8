//! `farmhand submit` and `farmhand job`, against our own server and against a Manager that does what a test
//! says.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use farmhand::{
    client::{Options, Shaman},
    jobs::JobStatus,
    server::{FarmOptions, Hook},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::*;

/// Stands for the id of any job.
const A_JOB: &str = "00000000-0000-0000-0000-000000000000";

/// What is done instead of passing a request on.
#[derive(Debug, Clone)]
enum Instead {
    /// This is answered.
    Answer(u16, &'static str, &'static str),
    /// It is passed on, and the connection breaks before the answer.
    LoseAnswer,
    /// It is passed on when [`Script::late`] is set; the client does not wait for that.
    Late,
    /// There is never an answer.
    Silence,
    /// This is answered, and then something, without end.
    Endless(&'static str),
}

#[derive(Debug, Default)]
struct Script {
    /// Method, end of the path, and what happens to the first such request.
    rules: Vec<(&'static str, &'static str, Instead)>,
    /// All heads.
    heads: Vec<String>,
    /// Answers to requests that are not about files.
    manager: Option<Go>,
    /// Answers to requests about the Manager's storage.
    storage: Option<ManagersStorage>,
    late: bool,
}

/// A Manager as its server, which is written in Go, answers.
#[derive(Debug, Default)]
struct Go {
    /// The jobs, as they were submitted, and what they are at.
    jobs: Vec<(Value, &'static str)>,
    /// Whether jobs are worked on, before there is a job and after that.
    status: [&'static str; 2],
}

impl Go {
    /// Job 0, 1, …
    fn id(number: usize) -> String {
        format!("a2b1c0d9-0000-4000-8000-{number:012}")
    }

    /// Optional fields that are empty are left out or not, as it happens.
    fn job(&self, number: usize) -> String {
        let (job, status) = &self.jobs[number];
        format!(
            r#"{{"activity":"","created":"2026-01-02T03:04:05.123456789+02:00","id":"{}","initial_status":null,
            "metadata":null,"name":{},"priority":{},"settings":{},"status":"{status}","steps_completed":null,
            "storage":{},"submitter_platform":"","type":{},"updated":"2026-01-02T03:04:05Z",
            "was_submitted_by":{{"new":["field"]}},"worker_tag":null}}"#,
            Self::id(number),
            job["name"],
            job["priority"],
            job["settings"],
            job["storage"],
            job["type"],
        )
    }

    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        // A Manager goes by the path, and does not mind a query.
        let path = path.split('?').next().unwrap();
        let parts: Vec<&str> = path.trim_start_matches("/api/v3/").split('/').collect();
        let found = |id: &str| (0..self.jobs.len()).find(|number| Self::id(*number) == id);
        let none = || (404, r#"{"code":404,"message":"no such job"}"#.to_owned());
        match (method, &parts[..]) {
            ("GET", ["version"]) => (
                200,
                r#"{"git":"v3.8","name":"Flamenco","shortversion":"3.8","version":"3.8"}"#.into(),
            ),
            ("GET", ["configuration", ..]) => (
                200,
                r#"{"audience":"users","location":"/x","platform":"linux","shamanEnabled":true}"#.into(),
            ),
            ("GET", ["jobs", "types"]) => (
                200,
                r#"{"job_types":[{"description":null,"etag":"e","label":"Other","name":"other","settings":null},
                {"description":"","etag":"e","label":"Render","name":"simple-blender-render","settings":[
                {"autoeval":null,"choices":null,"default":null,"description":"","editable":null,"evalInfo":null,
                "key":"frames","propargs":null,"required":true,"subtype":"","type":"string","visible":null},
                {"key":"blendfile","required":true,"type":"string","visible":"web"}]}]}"#
                    .into(),
            ),
            ("GET", ["status"]) => {
                let status = self.status[usize::from(!self.jobs.is_empty())];
                (200, format!(r#"{{"status":"{status}"}}"#))
            }
            ("GET", ["worker-mgt", "tags"]) => (200, r#"{"tags":null}"#.into()),
            ("POST", ["jobs", "check"]) => (204, String::new()),
            ("POST", ["jobs"]) => {
                self.jobs.push((serde_json::from_slice(body).unwrap(), "queued"));
                (200, self.job(self.jobs.len() - 1))
            }
            ("GET", ["jobs"]) => {
                let jobs: Vec<_> = (0..self.jobs.len()).map(|number| self.job(number)).collect();
                (200, format!(r#"{{"jobs":[{}]}}"#, jobs.join(",")))
            }
            ("GET", ["jobs", id]) => match found(id) {
                Some(number) => (200, self.job(number)),
                None => none(),
            },
            ("GET", ["jobs", _, "what-would-delete-do"]) => {
                (200, r#"{"shaman_checkout":true}"#.into())
            }
            ("DELETE", ["jobs", id]) => match found(id) {
                Some(number) => {
                    self.jobs.remove(number);
                    (204, String::new())
                }
                None => none(),
            },
            ("POST", ["jobs", id, "setstatus"]) => {
                let Some(number) = found(id) else { return none() };
                let wish: Value = serde_json::from_slice(body).unwrap();
                self.jobs[number].1 = match wish["status"].as_str().unwrap() {
                    "cancel-requested" => "cancel-requested",
                    "requeueing" => "requeueing",
                    other => panic!("{other}"),
                };
                (204, String::new())
            }
            _ => panic!("{method} {path}"),
        }
    }
}

/// A Manager: passes on what no rule is about.
struct Front {
    addr: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Front {
    fn start(server: &TestServer, rules: &[(&'static str, &'static str, Instead)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { rules: rules.to_vec(), ..Script::default() }));
        let (shared, server) = (script.clone(), server.addr);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, script) = (client.unwrap(), shared.clone());
                thread::spawn(move || pass(&client, server, &script));
            }
        });
        Self { addr, script }
    }

    /// One that is no farmhand but for the files.
    fn go(files: &TestServer, rules: &[(&'static str, &'static str, Instead)]) -> Self {
        let front = Self::start(files, rules);
        front.script.lock().unwrap().manager = Some(Go::default());
        front
    }

    /// Has the Manager use the storage in this directory.
    fn share(&self, storage: &Path) {
        self.script.lock().unwrap().storage = Some(ManagersStorage::at(storage));
    }

    /// Whether jobs are worked on, before there is a job and after that.
    fn set_farm(&self, status: [&'static str; 2]) {
        self.script.lock().unwrap().manager.as_mut().unwrap().status = status;
    }

    /// What Go's job is at from now on.
    fn set(&self, number: usize, status: &'static str) {
        let mut script = self.script.lock().unwrap();
        script.manager.as_mut().unwrap().jobs[number].1 = status;
    }

    fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// `METHOD path` of all requests so far that have this in them.
    fn requests(&self, about: &str) -> Vec<String> {
        let script = self.script.lock().unwrap();
        let line = |head: &String| head.lines().next().unwrap().replace(" HTTP/1.1", "");
        script.heads.iter().map(line).filter(|line| line.contains(about)).collect()
    }

    #[track_caller]
    fn all_rules_were_needed(&self) {
        assert!(self.script.lock().unwrap().rules.is_empty());
    }
}

fn pass(mut client: &TcpStream, server: SocketAddr, script: &Mutex<Script>) {
    let mut reader = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).unwrap();
        let mut parts = head.split(' ');
        let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
        let storage = script.lock().unwrap().storage.clone();
        if let Some(answer) = storage.and_then(|storage| storage.answer(method, path, &body)) {
            script.lock().unwrap().heads.push(head.clone());
            let text = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                text.len()
            );
            client.write_all(format!("{head}{text}").as_bytes()).unwrap();
            continue;
        }
        let rule = {
            let mut script = script.lock().unwrap();
            let is_job = path.rsplit('/').next().unwrap().len() == A_JOB.len();
            let is_meant = |end: &str| if end == A_JOB { is_job } else { path.ends_with(end) };
            let found = script.rules.iter().position(|rule| rule.0 == method && is_meant(rule.1));
            let rule = found.map(|index| script.rules.remove(index).2);
            script.heads.push(head.clone());
            rule
        };
        if let Some(Instead::Answer(status, kind, text)) = rule {
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            client.write_all(answer.as_bytes()).unwrap();
            continue;
        }
        match rule {
            Some(Instead::Silence) => {
                // Until the client gives up.
                let _ = reader.read_to_end(&mut Vec::new());
                return;
            }
            Some(Instead::Endless(start)) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{start}"
                );
                let mut sent = client.write_all(head.as_bytes());
                while sent.is_ok() {
                    sent = client.write_all(&[b' '; 1 << 16]);
                }
                return;
            }
            Some(Instead::Late) => until(|| script.lock().unwrap().late),
            _ => {}
        }
        let go = {
            let mut script = script.lock().unwrap();
            let manager = script.manager.as_mut().filter(|_| !path.contains("/shaman/"));
            manager.map(|go| go.answer(method, path, &body))
        };
        if let Some((status, text)) = go {
            if matches!(rule, Some(Instead::LoseAnswer)) {
                return;
            }
            let length = match status {
                204 => String::new(),
                _ => format!("Content-Length: {}\r\n", text.len()),
            };
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{length}\r\n{text}"
            );
            client.write_all(answer.as_bytes()).unwrap();
            continue;
        }
        let mut connection = Connection::new(server);
        connection.send(head.as_bytes());
        connection.send(&body);
        let answer = connection.answer();
        if matches!(rule, Some(Instead::LoseAnswer)) {
            return;
        }
        let lines = answer.head.lines().filter(|line| {
            let line = line.to_lowercase();
            !line.starts_with("content-length") && !line.starts_with("transfer-encoding")
        });
        let lines: Vec<_> = lines.collect();
        let length = match answer.status {
            204 => String::new(),
            _ => format!("Content-Length: {}\r\n", answer.body.len()),
        };
        let head = format!("{}\r\n{length}\r\n", lines.join("\r\n"));
        if client.write_all(head.as_bytes()).and_then(|()| client.write_all(&answer.body)).is_err()
        {
            return;
        }
    }
}

/// A project of some files, and a home of its own.
fn project() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("all/project");
    fs::create_dir_all(root.join("shots")).unwrap();
    fs::create_dir_all(root.join("textures")).unwrap();
    fs::write(root.join(".blender_project"), "").unwrap();
    fs::write(root.join("shots/010.blend"), random(1000)).unwrap();
    fs::write(root.join("textures/wood.png"), random(2000)).unwrap();
    fs::write(root.join("textures/unused.png"), random(3000)).unwrap();
    let file = root.join("shots/010.blend");
    (dir, file)
}

pub(super) fn submit(dir: &TempDir, file: &Path, url: &str, more: &[&str]) -> Output {
    let mut command = farmhand(&dir.path().join("home"));
    command.arg("submit").arg(file).args(["--server", url]).args(more).output().unwrap()
}

fn job(dir: &TempDir, url: &str, more: &[&str]) -> Output {
    let mut command = farmhand(&dir.path().join("home"));
    command.arg("job").args(more).args(["--server", url]).output().unwrap()
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
pub(super) fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// It ends with this code, and says in one line why.
#[track_caller]
pub(super) fn failed(output: &Output, code: i32, says: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    let lines: Vec<_> = error.lines().filter(|line| line.starts_with("farmhand: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains(says), "{error}");
}

pub(super) const FRAMES: [&str; 2] = ["--setting", "frames=1-24"];

pub(super) fn jobs_of(server: &TestServer) -> Vec<Value> {
    let jobs = server.api("GET", "jobs", Value::Null).json()["jobs"].clone();
    jobs.as_array().unwrap().clone()
}

pub(super) fn checkouts_of(server: &TestServer) -> Vec<String> {
    let found = server.admin("GET", "checkouts", Value::Null).json();
    let paths = found.as_array().unwrap().iter();
    paths.map(|checkout| checkout["path"].as_str().unwrap().to_owned()).collect()
}

pub(super) fn nothing_was_sent(server: &TestServer) {
    let stored = walkdir::WalkDir::new(server.storage().join("file-store/stored"));
    let files = stored.into_iter().filter(|entry| entry.as_ref().unwrap().file_type().is_file());
    assert_eq!(files.count(), 0);
    assert_eq!(checkouts_of(server), Vec::<String>::new());
    assert_eq!(jobs_of(server), Vec::<Value>::new());
}

#[test]
fn a_project_is_sent_and_a_job_submitted_for_a_file_of_it() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let name = "?*:;{}\\/.. \u{1f33e}";
    let more =
        ["--name", name, "--priority", "70", "--paused", "--metadata", "a=b=c", "-s", "fps=23.98"];
    let output = submit(&dir, &file, &server.url(), &[&FRAMES[..], &more].concat());
    let id = succeeded(&output).trim().to_owned();
    let jobs = jobs_of(&server);
    assert_eq!(jobs.len(), 1);
    let job_found = &jobs[0];
    assert_eq!(job_found["id"], id.as_str());
    assert_eq!((&job_found["name"], &job_found["priority"]), (&json!(name), &json!(70)));
    assert_eq!(
        (&job_found["status"], &job_found["metadata"]),
        (&json!("paused"), &json!({"a": "b=c"}))
    );
    let checkout = checkouts_of(&server)[0].clone();
    let settings = &job_found["settings"];
    assert_eq!(settings["blendfile"], format!("{{jobs}}/{checkout}/shots/010.blend"));
    assert_eq!((&settings["fps"], &settings["frames"]), (&json!(23.98), &json!("1-24")));
    assert_eq!(job_found["storage"]["shaman_checkout_id"], checkout.as_str());
    assert!(job_found["type_etag"].is_string());
    let made = tree(&server.storage().join("jobs").join(&checkout));
    assert_eq!(made, tree(&dir.path().join("all/project")));
    assert!(text(&output.stderr).contains(&format!("{}/api/v3/jobs/{id}", server.url())));

    // Once more: another checkout of the same files, and as one object.
    let output = submit(&dir, &file, &server.url(), &[&FRAMES[..], &["--json"]].concat());
    let answer: Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!(answer["schema"], "farmhand.submit/1");
    assert_eq!((&answer["uploaded_files"], &answer["hashed_files"]), (&json!(0), &json!(0)));
    assert_eq!(answer["job_id"], jobs_of(&server)[0]["id"]);

    let list = succeeded(&job(&dir, &server.url(), &["list"]));
    assert_eq!(list.lines().count(), 3);
    assert!(list.lines().nth(2).unwrap().starts_with(&id), "{list}");
    assert_eq!(
        succeeded(&job(&dir, &server.url(), &["list", "--status", "paused"])).lines().count(),
        2
    );
    let shown = succeeded(&job(&dir, &server.url(), &["show", &id]));
    assert!(shown.contains("status     paused") && shown.contains("frames = \"1-24\""), "{shown}");
    assert_eq!(succeeded(&job(&dir, &server.url(), &["cancel", &id])).trim(), "canceled");
    assert_eq!(succeeded(&job(&dir, &server.url(), &["requeue", &id])).trim(), "queued");
    failed(&job(&dir, &server.url(), &["tail", &id]), 4, "has no tasks yet");
    let deleted = succeeded(&job(&dir, &server.url(), &["delete", "--yes", &id]));
    assert!(deleted.contains("files that farmhand created are removed"), "{deleted}");
    assert!(!server.storage().join("jobs").join(&checkout).exists());
    failed(&job(&dir, &server.url(), &["show", &id]), 4, "there is no job");
    failed(&job(&dir, &server.url(), &["cancel", "../.."]), 4, "there is no job \"../..\"");
}

#[test]
fn what_is_wrong_with_a_job_is_said_before_anything_is_sent() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    for (more, code, says) in [
        (&[][..], 2, "requires: frames"),
        (&["-s", "frames"], 2, "write KEY=VALUE"),
        (
            &["-s", "frames=1", "-s", "chunk_size=many"],
            2,
            "chunk_size takes a whole number, not \"many\"",
        ),
        (&["-s", "frames=1", "-s", "fps=fast"], 2, "fps takes a number"),
        (&["-s", "other=1"], 2, "no setting \"other\"; it has frames, chunk_size"),
        (&["-s", "frames=1", "-s", "chunk_size=0"], 2, "chunk_size takes numbers from 1 on, not 0"),
        (&["-s", "frames=1", "-s", "blendfile=/x.blend"], 2, "leave this setting out"),
        (
            &["--type", "nuke"],
            2,
            "no job type \"nuke\"; give one of these as --type: simple-blender-render",
        ),
        (&["-s", "frames=1", "--tag", "gpu"], 2, "no worker tag \"gpu\"; it has none"),
        (&["-s", "frames=1", "--name", " "], 2, "--name is empty"),
        (&["-s", "frames=1", "--as", "../x"], 2, "--as"),
        (&["-s", "frames=1", "--metadata", "x"], 2, "write KEY=VALUE"),
        (&["-s", "frames=1", "--root", "/no/such/folder"], 4, "no such folder"),
        (&["-s", "frames=1", "--root", "/usr"], 2, "is not in /usr"),
    ] {
        failed(&submit(&dir, &file, &server.url(), more), code, says);
    }
    failed(&submit(&dir, Path::new("/no/such.blend"), &server.url(), &FRAMES), 4, "check the path");
    failed(&submit(&dir, dir.path(), &server.url(), &FRAMES), 2, "is no file");
    let no_server = farmhand(dir.path()).arg("submit").arg(&file).args(FRAMES).output().unwrap();
    failed(&no_server, 2, "no server to submit to");
    let output = submit(&dir, &file, &server.url(), &["-s", "frames=1", "--priority", "101"]);
    assert_eq!(output.status.code(), Some(2));
    nothing_was_sent(&server);
}

#[test]
fn the_project_is_the_nearest_marked_folder_above() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let root = dir.path().join("all/project");
    let path_sent = |more: &[&str]| {
        succeeded(&submit(&dir, &file, &server.url(), &[&FRAMES[..], more].concat()));
        let blendfile = jobs_of(&server)[0]["settings"]["blendfile"].as_str().unwrap().to_owned();
        blendfile.splitn(3, '/').nth(2).unwrap().to_owned()
    };
    assert_eq!(path_sent(&[]), "shots/010.blend");
    fs::write(root.join("shots/.farmhand.toml"), "").unwrap();
    assert_eq!(path_sent(&[]), "010.blend");
    assert_eq!(
        path_sent(&["--root", root.parent().unwrap().to_str().unwrap()]),
        "project/shots/010.blend"
    );
}

#[test]
fn a_dry_run_sends_nothing_and_says_what_it_would() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let said = succeeded(&submit(&dir, &file, &server.url(), &["-s", "frames=1", "--dry-run"]));
    assert!(said.starts_with("would send 4 of 4 files"), "{said}");
    let job: Value = serde_json::from_str(said.split_once('\n').unwrap().1).unwrap();
    assert_eq!(job["settings"]["frames"], "1");
    let more = ["-s", "frames=1", "--dry-run", "--json"];
    let answer: Value =
        serde_json::from_str(&succeeded(&submit(&dir, &file, &server.url(), &more))).unwrap();
    assert_eq!((&answer["missing_files"], &answer["missing_bytes"]), (&json!(4), &json!(6000)));
    nothing_was_sent(&server);
}

const JSON: &str = "application/json";

#[test]
fn a_job_that_is_refused_sends_nothing_or_takes_its_checkout_away() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let refusal = Instead::Answer(400, JSON, r#"{"code": 400, "message": "not today"}"#);
    let front = Front::start(&server, &[("POST", "/jobs/check", refusal.clone())]);
    let output = submit(&dir, &file, &front.url(), &FRAMES);
    failed(&output, 1, "the server refuses the job: not today; nothing was sent");
    nothing_was_sent(&server);
    assert_eq!(front.requests("/shaman/"), Vec::<String>::new());

    let front = Front::start(&server, &[("POST", "/v3/jobs", refusal)]);
    failed(&submit(&dir, &file, &front.url(), &FRAMES), 1, "not today; its checkout is erased");
    assert_eq!(checkouts_of(&server), Vec::<String>::new());

    // A Manager that fails, and whose list of jobs shows that it has not taken it.
    let trouble = Instead::Answer(500, JSON, r#"{"code": 500, "message": "database"}"#);
    let front = Front::start(&server, &[("POST", "/v3/jobs", trouble)]);
    failed(&submit(&dir, &file, &front.url(), &FRAMES), 1, "database");
    assert_eq!(checkouts_of(&server), Vec::<String>::new());
    assert_eq!(jobs_of(&server), Vec::<Value>::new());
    front.all_rules_were_needed();

    // One that cannot erase checkouts.
    let refusal = Instead::Answer(422, JSON, r#"{"code": 422, "message": "no"}"#);
    let none = Instead::Answer(404, "text/plain", "404 page not found");
    let rules = [("POST", "/v3/jobs", refusal), ("DELETE", "", none)];
    let front = Front::start(&server, &rules);
    let output = submit(&dir, &file, &front.url(), &[&FRAMES[..], &["--as", "mine"]].concat());
    failed(&output, 1, "its checkout mine is left on the server");
    front.all_rules_were_needed();
}

/// Fields that are empty, `null` or missing, fields and a status that nobody knows.
#[test]
fn a_manager_is_understood_however_it_writes_its_answers() {
    let files = TestServer::start();
    let (dir, file) = project();
    let front = Front::go(&files, &[("POST", "/v3/jobs", Instead::LoseAnswer)]);
    let url = front.url();
    let ids = [Go::id(0), Go::id(1), Go::id(2)];
    // Taken, although its answer does not come.
    assert_eq!(succeeded(&submit(&dir, &file, &url, &FRAMES)).trim(), ids[0]);
    front.all_rules_were_needed();
    assert_eq!(succeeded(&submit(&dir, &file, &url, &FRAMES)).trim(), ids[1]);
    assert_eq!(checkouts_of(&files).len(), 2);

    front.set(0, "archived");
    let list = succeeded(&job(&dir, &url, &["list"]));
    assert_eq!(list.lines().count(), 3);
    assert!(list.contains("archived") && list.contains("2026-01-02T01:04:05Z"), "{list}");
    let list = succeeded(&job(&dir, &url, &["list", "--json"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["jobs"][0]["submitter_platform"], "");
    let shown = succeeded(&job(&dir, &url, &["show", &ids[0]]));
    assert!(shown.contains("status     archived") && shown.contains("checkout   "), "{shown}");
    assert_eq!(succeeded(&job(&dir, &url, &["cancel", &ids[0]])).trim(), "cancel-requested");
    assert_eq!(succeeded(&job(&dir, &url, &["requeue", &ids[0]])).trim(), "requeueing");

    let script = front.script.clone();
    let waiter = thread::spawn(move || {
        until(|| {
            let mut script = script.lock().unwrap();
            let is_asked = script.heads.iter().any(|head| head.contains(&Go::id(2)));
            if is_asked {
                script.manager.as_mut().unwrap().jobs[2].1 = "completed";
            }
            is_asked
        });
    });
    let output = submit(&dir, &file, &url, &[&FRAMES[..], &["--wait", "--json"]].concat());
    waiter.join().unwrap();
    let answer: Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!((&answer["job_id"], &answer["status"]), (&json!(ids[2]), &json!("completed")));
    assert!(answer["job_url"].as_str().unwrap().ends_with(&format!("/app/jobs/{}", ids[2])));
    let deleted = succeeded(&job(&dir, &url, &["delete", "--yes", &ids[2]]));
    assert!(deleted.contains("its checkout is deleted"), "{deleted}");
    failed(&job(&dir, &url, &["show", &ids[2]]), 4, "no such job");
    failed(&job(&dir, &url, &["delete", "--yes", &ids[2]]), 4, "no such job");
}

/// What is between here and there gives up, and the Manager takes the job after that.
#[test]
fn a_job_that_is_taken_late_has_its_files() {
    let manager = TestServer::farm_for_others();
    let (dir, file) = project();
    let storage = dir.path().join("storage");
    let front = Front::start(&manager, &[("POST", "/v3/jobs", Instead::Late)]);
    front.share(&storage);
    let mut command = farmhand(dir.path());
    command.env("FARMHAND_SERVE_MANAGER_TIMEOUT", "1 s").stderr(Stdio::null());
    command.args(["serve", "--listen", "127.0.0.1:0", "--manager", &front.url(), "--storage"]);
    let gateway = ServerProcess::spawn(command.arg(&storage));
    let more = [&FRAMES[..], &["--as", "late"]].concat();
    let output = submit(&dir, &file, &gateway.url, &more);
    failed(&output, 5, "it is not known whether the job was taken: look with `farmhand job list`");
    assert!(text(&output.stderr).contains("in the checkout late"), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("run this again"), "{}", text(&output.stderr));
    front.script.lock().unwrap().late = true;
    until(|| jobs_of(&manager).len() == 1);
    assert_eq!(jobs_of(&manager)[0]["storage"]["shaman_checkout_id"], "late");
    assert_eq!(tree(&storage.join("jobs/late")), tree(&dir.path().join("all/project")));

    // Any other proxy that gives up.
    for (number, status) in [408, 502, 503, 504].into_iter().enumerate() {
        let rule = Instead::Answer(status, "text/html", "<html>");
        // One is tried again, as nothing was seen of it.
        let times = if status == 503 { 6 } else { 1 };
        let front = Front::start(&manager, &vec![("POST", "/v3/jobs", rule); times]);
        let name = format!("proxy-{number}");
        let output = submit(&dir, &file, &front.url(), &[&FRAMES[..], &["--as", &name]].concat());
        assert!(text(&output.stderr).contains(&format!("in the checkout {name}")), "{status}");
        assert!(checkouts_of(&manager).contains(&name), "{status}");
        front.all_rules_were_needed();
    }
}

/// A gateway may tell the Manager another name of the checkout than it tells its clients, or none.
#[test]
fn a_lost_answer_is_found_by_the_file() {
    let files = TestServer::start();
    let (dir, file) = project();
    let front = Front::go(&files, &[("POST", "/v3/jobs", Instead::LoseAnswer)]);
    let mut command = farmhand(dir.path());
    command.env("FARMHAND_SERVE_CHECKOUT_PATHS", "absolute").stderr(Stdio::null());
    command.args(["serve", "--listen", "127.0.0.1:0", "--manager", &front.url(), "--storage"]);
    let gateway = ServerProcess::spawn(command.arg(dir.path().join("storage")));
    assert_eq!(succeeded(&submit(&dir, &file, &gateway.url, &FRAMES)).trim(), Go::id(0));
    let job = front.script.lock().unwrap().manager.as_ref().unwrap().jobs[0].0.clone();
    assert_eq!(job["storage"], json!({}));
    assert!(Path::new(job["settings"]["blendfile"].as_str().unwrap()).exists(), "{job}");
    front.all_rules_were_needed();
}

#[test]
fn an_answer_that_is_lost_makes_no_second_job() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let front = Front::start(&server, &[("POST", "/v3/jobs", Instead::LoseAnswer)]);
    let id = succeeded(&submit(&dir, &file, &front.url(), &FRAMES)).trim().to_owned();
    let jobs = jobs_of(&server);
    assert_eq!((jobs.len(), &jobs[0]["id"]), (1, &json!(id)));
    assert_eq!(checkouts_of(&server).len(), 1);
    front.all_rules_were_needed();
}

#[test]
fn a_job_type_that_has_just_changed_is_fetched_again() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    const STALE: Instead = Instead::Answer(412, JSON, r#"{"code": 412, "message": "old"}"#);
    for path in ["/jobs/check", "/v3/jobs"] {
        let front = Front::start(&server, &[("POST", path, STALE)]);
        let output = submit(&dir, &file, &front.url(), &FRAMES);
        succeeded(&output);
        assert!(text(&output.stderr).contains("has just changed on the server"));
        assert_eq!(front.requests("/jobs/types").len(), 2);
        front.all_rules_were_needed();
    }
    // What is still old has not changed: somebody must look.
    let front =
        Front::start(&server, &[("POST", "/jobs/check", STALE), ("POST", "/jobs/check", STALE)]);
    failed(
        &submit(&dir, &file, &front.url(), &FRAMES),
        1,
        "refuses the job: old; nothing was sent",
    );
    // The new one wants something that was not given: nothing of it is left.
    let before = checkouts_of(&server).len();
    let other = r#"{"job_types": [{"name": "simple-blender-render", "label": "x", "etag": "y", "settings": [{"key": "new", "type": "int32", "required": true}]}]}"#;
    let front = Front::start(&server, &[("POST", "/v3/jobs", STALE)]);
    // The second time.
    front.script.lock().unwrap().rules.push(("GET", "/never", STALE));
    let script = front.script.clone();
    let waiter = thread::spawn(move || {
        until(|| script.lock().unwrap().heads.iter().any(|head| head.contains("/jobs/types")));
        script.lock().unwrap().rules.push((
            "GET",
            "/jobs/types",
            Instead::Answer(200, JSON, other),
        ));
    });
    let output = submit(&dir, &file, &front.url(), &FRAMES);
    waiter.join().unwrap();
    failed(&output, 2, "no setting \"frames\"; it has new; its checkout is erased");
    assert_eq!(checkouts_of(&server).len(), before);
}

#[test]
fn what_is_no_manager_is_said_in_one_line() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let html = "<html><body>It works!</body></html>";
    for (rule, code, says) in [
        (Instead::Answer(200, "text/html", html), 2, "is no Flamenco Manager"),
        (Instead::Answer(404, "text/html", html), 2, "is no Flamenco Manager"),
        (Instead::Answer(200, JSON, "{}"), 2, "is no Flamenco Manager"),
        (Instead::Answer(301, "text/html", html), 2, "is no Flamenco Manager"),
        (Instead::Answer(401, "text/html", html), 6, "refuses"),
    ] {
        let front = Front::start(&server, &[("GET", "/version", rule)]);
        failed(&submit(&dir, &file, &front.url(), &FRAMES), code, says);
    }
    let off =
        r#"{"location": "/x", "audience": "users", "platform": "linux", "shamanEnabled": false}"#;
    let rule = ("GET", "/shared-storage/users/linux", Instead::Answer(200, JSON, off));
    let front = Front::start(&server, &[rule]);
    failed(&submit(&dir, &file, &front.url(), &FRAMES), 2, "Shaman storage switched off");
    let store_only = TestServer::start();
    failed(&submit(&dir, &file, &store_only.url(), &FRAMES), 2, "is no Flamenco Manager");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{port}/");
    let mut command = farmhand(dir.path());
    command.env("FARMHAND_UPLOAD_RETRIES", "0");
    let output = command.arg("submit").arg(&file).args(["--server", &url]).args(FRAMES).output();
    failed(&output.unwrap(), 5, "cannot reach");
    failed(&job(&dir, &store_only.url(), &["list"]), 2, "is no Flamenco Manager");
    nothing_was_sent(&server);
}

#[test]
fn a_job_is_waited_for_and_its_end_is_the_exit_code() {
    let (dir, file) = project();
    for (script, code, says) in
        [("echo rendered", 0, ""), ("echo no frames; exit 3", 1, "the job is failed")]
    {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let hook = Hook { command, timeout: PATIENCE, parallel: 1, then: JobStatus::Completed };
        let server =
            TestServer::with_farm(FarmOptions { hook: Some(hook), ..FarmOptions::default() });
        // A Manager that is restarted meanwhile.
        let down = Instead::Answer(502, "text/plain", "bad gateway");
        let front =
            Front::start(&server, &[("GET", A_JOB, down), ("GET", A_JOB, Instead::LoseAnswer)]);
        let output = submit(&dir, &file, &front.url(), &[&FRAMES[..], &["--wait"]].concat());
        front.all_rules_were_needed();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
        let id = text(&output.stdout).trim().to_owned();
        let tail = succeeded(&job(&dir, &server.url(), &["tail", &id]));
        assert!(tail == "rendered\n" || tail == "no frames\n", "{tail}");
    }
}

/// Files here, jobs there.
#[test]
fn a_job_goes_through_a_gateway() {
    let manager = TestServer::farm_for_others();
    // Asked by the command, and by the gateway. The Manager that stands in has no checkout of its own to delete.
    let goes = Instead::Answer(200, "application/json", r#"{"shaman_checkout":true}"#);
    let rule = ("GET", "what-would-delete-do", goes);
    let front = Front::start(&manager, &[rule.clone(), rule]);
    let (dir, file) = project();
    let storage = dir.path().join("storage");
    front.share(&storage);
    let gateway = ServerProcess::start(
        dir.path(),
        &storage,
        &["--manager", &front.url(), "--header", "X-Auth: a-secret"],
    );
    let output = submit(&dir, &file, &gateway.url, &FRAMES);
    let id = succeeded(&output).trim().to_owned();
    assert_eq!(jobs_of(&manager)[0]["id"], id.as_str());
    assert_eq!(checkouts_of(&manager), Vec::<String>::new());
    let checkout =
        jobs_of(&manager)[0]["storage"]["shaman_checkout_id"].as_str().unwrap().to_owned();
    let made = storage.join("jobs").join(&checkout);
    assert_eq!(tree(&made), tree(&dir.path().join("all/project")));
    let heads = front.script.lock().unwrap().heads.clone();
    assert!(
        heads.iter().all(|head| head.to_lowercase().contains("x-auth: a-secret\r\n")),
        "{heads:?}"
    );
    assert!(heads.iter().all(|head| !head.contains("/shaman/")), "{heads:?}");
    // A Manager that says the checkout goes: ours.
    succeeded(&job(&dir, &gateway.url, &["delete", "--yes", &id]));
    until(|| !made.exists());
}

/// A program that lists what a .blend needs.
fn bat(dir: &TempDir, prints: &str, then: &str) -> PathBuf {
    let path = dir.path().join("my-bat");
    fs::write(dir.path().join("listed.json"), prints).unwrap();
    let listed = dir.path().join("listed.json");
    fs::write(
        &path,
        format!(
            "#!/bin/sh\n[ \"$1 $2\" = 'list --json' ] || exit 9\ncat {}\n{then}\n",
            listed.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn submit_needed(dir: &TempDir, file: &Path, url: &str, bat: &Path) -> Command {
    let mut command = farmhand(&dir.path().join("home"));
    command.env("FARMHAND_SUBMIT_BAT", bat);
    command.arg("submit").arg(file).args(["--server", url, "--only-needed"]).args(FRAMES);
    command
}

#[test]
fn only_what_a_file_needs_is_sent_if_that_is_asked_for() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let root = dir.path().join("all/project");
    let wood = root.join("textures/wood.png");
    let (file_text, wood_text) = (file.to_str().unwrap(), wood.to_str().unwrap());
    let tool = bat(&dir, &json!({ file_text: [wood_text] }).to_string(), "");
    let url = server.url();
    succeeded(&submit_needed(&dir, &file, &url, &tool).output().unwrap());
    let checkout = server.storage().join("jobs").join(&checkouts_of(&server)[0]);
    let made: Vec<_> = tree(&checkout).into_keys().collect();
    assert_eq!(made, ["shots/010.blend", "textures/wood.png"]);

    // What is not there is said, and the rest sent.
    let gone = root.join("textures/gone.png");
    let tool = bat(&dir, &json!({ file_text: [wood_text, gone] }).to_string(), "");
    let output = submit_needed(&dir, &file, &url, &tool).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("gone.png"));
    // As the real one does it.
    let warning =
        format!("echo 'x WARNING  Path {} does not exist for <BlockUsage>' >&2", gone.display());
    let tool = bat(&dir, &json!({ file_text: [wood_text] }).to_string(), &warning);
    let output = submit_needed(&dir, &file, &url, &tool).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let before = jobs_of(&server).len();
    let strict = submit_needed(&dir, &file, &url, &tool).arg("--strict").output().unwrap();
    failed(&strict, 4, "gone.png");

    assert!(text(&output.stderr).contains("it is needed, and not there"));
    // Not there and not even in the project.
    let outside = dir.path().join("outside.png");
    let warning =
        format!("echo 'x WARNING  Path {} does not exist for <BlockUsage>' >&2", outside.display());
    let tool = bat(&dir, &json!({ file_text: [wood_text] }).to_string(), &warning);
    failed(&submit_needed(&dir, &file, &url, &tool).output().unwrap(), 2, "outside.png");
    let tool = bat(&dir, &json!({ file_text: [outside, wood_text] }).to_string(), "");
    failed(&submit_needed(&dir, &file, &url, &tool).output().unwrap(), 2, "outside.png");
    fs::write(&outside, "x").unwrap();
    let tool = bat(&dir, &json!({ file_text: [outside, wood_text] }).to_string(), "");
    failed(&submit_needed(&dir, &file, &url, &tool).output().unwrap(), 2, "outside.png");
    fs::write(root.join(".farmhandignore"), "*.png\n").unwrap();
    let tool = bat(&dir, &json!({ file_text: [wood_text] }).to_string(), "");
    let output = submit_needed(&dir, &file, &url, &tool).output().unwrap();
    failed(&output, 2, "ignored by the rules");
    for (prints, then, says) in [
        ("", "", "is no list of files"),
        ("[]", "", "is no list of files"),
        ("{", "", "is no list of files"),
        ("{}", "echo 'no such block' >&2; exit 1", "no such block"),
    ] {
        let tool = bat(&dir, prints, then);
        failed(&submit_needed(&dir, &file, &url, &tool).output().unwrap(), 1, says);
    }
    let missing = dir.path().join("no-bat");
    let output = submit_needed(&dir, &file, &url, &missing).output().unwrap();
    failed(&output, 1, "Blender Asset Tracer is not there; install it");
    assert_eq!(jobs_of(&server).len(), before);
}

#[test]
fn headers_are_shown_to_the_server_alone_and_to_nobody_else() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let front = Front::start(&server, &[]);
    let more = ["--header", "X-Auth: a-secret, with more", "--header", "Cookie: another", "-v"];
    let output = submit(&dir, &file, &front.url(), &[&FRAMES[..], &more].concat());
    succeeded(&output);
    assert!(!text(&output.stderr).contains("secret"));
    let heads = front.script.lock().unwrap().heads.clone();
    assert!(heads.len() > 8);
    for head in &heads {
        let head = head.to_lowercase();
        assert!(
            head.contains("x-auth: a-secret, with more\r\n")
                && head.contains("cookie: another\r\n"),
            "{head}"
        );
    }
    // A server that sends us elsewhere.
    let other = Front::start(&server, &[]);
    let to: &'static str =
        Box::leak(format!("text/html\r\nLocation: {}api/v3/version", other.url()).into_boxed_str());
    let front = Front::start(&server, &[("GET", "/version", Instead::Answer(307, to, ""))]);
    failed(
        &submit(&dir, &file, &front.url(), &[&FRAMES[..], &more].concat()),
        2,
        "for which your headers are not meant",
    );
    assert_eq!(other.requests(""), Vec::<String>::new());
    for (header, says) in
        [("nonsense", "write NAME: VALUE"), ("Host: secret", "describes the request itself")]
    {
        let output =
            submit(&dir, &file, &front.url(), &[&FRAMES[..], &["--header", header]].concat());
        failed(&output, 2, says);
        assert!(!text(&output.stderr).contains("secret"));
    }
    let mut shown = farmhand(dir.path());
    shown.env("FARMHAND_HEADERS", "X-Auth: a-secret").args(["config", "show"]);
    let shown = text(&shown.output().unwrap().stdout);
    assert!(shown.contains("headers") && !shown.contains("a-secret"), "{shown}");
}

/// A client that is in a hurry.
fn hasty(url: &str) -> (Shaman, tokio::runtime::Runtime) {
    let options = Options { call_timeout: Duration::from_millis(200), ..Options::default() };
    (Shaman::new(url, options).unwrap(), tokio::runtime::Runtime::new().unwrap())
}

#[test]
fn a_manager_that_never_answers_is_given_up_soon() {
    let server = TestServer::with_farm(FarmOptions::default());
    let rules = vec![("GET", "/version", Instead::Silence); 6];
    let front = Front::start(&server, &rules);
    let (client, runtime) = hasty(&front.url());
    let error = runtime.block_on(client.version()).unwrap_err().to_string();
    assert!(error.contains("does not answer in time"), "{error}");
    // Failures that come at once would be tried more often.
    assert!((2..=3).contains(&front.requests("/version").len()), "{:?}", front.requests(""));
    let front = Front::start(&server, &vec![("POST", "/jobs/check", Instead::Silence); 6]);
    let (client, runtime) = hasty(&front.url());
    let job = json!({ "name": "x", "type": "x", "priority": 1, "submitter_platform": "linux" });
    let job = serde_json::from_value(job).unwrap();
    let error = runtime.block_on(client.check_job(&job)).unwrap_err().to_string();
    assert!(error.contains("does not answer in time"), "{error}");
    assert_eq!(front.requests("/jobs/check").len(), 1);
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    let server = TestServer::with_farm(FarmOptions::default());
    for (method, path) in [("GET", "/version"), ("GET", "/v3/jobs"), ("POST", "/requirements")] {
        let rules = [(method, path, Instead::Endless("{"))];
        let front = Front::start(&server, &rules);
        let options = Options::default();
        let mut client = Shaman::new(&front.url(), options).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(async {
            match path {
                "/version" => client.version().await.map(drop),
                "/v3/jobs" => client.jobs().await.map(drop),
                _ => client.requirements(Vec::new()).await.map(drop),
            }
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("is longer than 67108864 bytes"), "{error}");
        front.all_rules_were_needed();
    }
}

#[test]
fn what_a_server_says_does_nothing_to_a_terminal() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let evil =
        r#"{"code": 400, "message": "no\u001b]0;owned\u0007\u009b2J\nfarmhand: all is well"}"#;
    for (method, path) in [("POST", "/jobs/check"), ("GET", "/v3/jobs")] {
        let front = Front::start(&server, &[(method, path, Instead::Answer(400, JSON, evil))]);
        let output = match method {
            "POST" => submit(&dir, &file, &front.url(), &FRAMES),
            _ => job(&dir, &front.url(), &["list"]),
        };
        let error = text(&output.stderr);
        assert_eq!(
            error.lines().filter(|line| line.starts_with("farmhand: ")).count(),
            1,
            "{error}"
        );
        assert!(error.contains(r"no\u{1b}]0;owned\u{7}\u{9b}2J"), "{error:?}");
        assert!(!error.contains(|c: char| c.is_control() && c != '\n'), "{error:?}");
        front.all_rules_were_needed();
    }
}

#[test]
fn a_server_that_sends_all_requests_elsewhere_is_named_with_the_place() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let to = |path: &str| -> &'static str {
        let to = format!("text/html\r\nLocation: {}/farm/api/v3/{path}", server.url());
        Box::leak(to.into_boxed_str())
    };
    for (method, path, real) in [
        ("POST", "/jobs/check", "jobs/check"),
        ("POST", "/requirements", "shaman/checkout/requirements"),
        ("POST", "/v3/jobs", "jobs"),
    ] {
        for status in [301, 302, 303] {
            let rule = (method, path, Instead::Answer(status, to(real), ""));
            let front = Front::start(&server, &[rule]);
            let output = submit(&dir, &file, &front.url(), &FRAMES);
            let says = format!("it redirects to {}/farm/: give that address", server.url());
            failed(&output, 2, &says);
            front.all_rules_were_needed();
        }
    }
    assert_eq!(jobs_of(&server), Vec::<Value>::new());
}

#[test]
fn waiting_ends_with_the_job_or_in_time() {
    let server = TestServer::with_farm(farm_with_command("sleep 1000"));
    let (dir, file) = project();
    let more = [&FRAMES[..], &["--wait", "--wait-timeout", "1s"]].concat();
    failed(&submit(&dir, &file, &server.url(), &more), 8, "it goes on: see `farmhand job show");
    // While it is being deleted, a job is canceled: it is asked for when it is gone.
    let front = Front::start(&server, &[("GET", A_JOB, Instead::Late)]);
    let (script, addr) = (front.script.clone(), server.addr);
    let deleter = thread::spawn(move || {
        let mut path = String::new();
        until(|| {
            let script = script.lock().unwrap();
            let asked =
                |head: &&String| head.starts_with("GET /api/v3/jobs/") && head.contains('-');
            let mut ids = script.heads.iter().filter(asked).filter_map(|head| {
                let id = head.split(' ').nth(1)?.rsplit('/').next()?;
                (id.len() == A_JOB.len()).then(|| format!("jobs/{id}"))
            });
            path = ids.next_back().unwrap_or_default();
            !path.is_empty()
        });
        assert_eq!(Connection::new(addr).api("DELETE", &path, &Value::Null).status, 204);
        script.lock().unwrap().late = true;
    });
    let more = [&FRAMES[..], &["--wait", "--paused"]].concat();
    let output = submit(&dir, &file, &front.url(), &more);
    deleter.join().unwrap();
    failed(&output, 1, "was deleted while it was waited for");
    assert!(text(&output.stderr).contains("this waits until somebody starts it"));
}

#[test]
fn wait_without_job_command_is_refused() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    let wait = [&FRAMES[..], &["--wait", "--wait-timeout", "10s"]].concat();
    let output = submit(&dir, &file, &server.url(), &wait);
    failed(&output, 2, "nothing was sent, because --wait would never end: no command");
    nothing_was_sent(&server);
    let output = submit(&dir, &file, &server.url(), &FRAMES);
    succeeded(&output);
    assert!(text(&output.stderr).contains("jobs.hook"), "{}", text(&output.stderr));
    assert_eq!(jobs_of(&server).len(), 1);
}

#[test]
fn a_manager_without_workers_is_a_warning() {
    let files = TestServer::start();
    let (dir, file) = project();
    let front = Front::go(&files, &[]);
    let completes = |jobs: usize| {
        let script = front.script.clone();
        thread::spawn(move || {
            until(|| {
                let mut script = script.lock().unwrap();
                let id = Go::id(jobs - 1);
                let is_asked = script.heads.iter().any(|head| head.contains(&id));
                if is_asked {
                    script.manager.as_mut().unwrap().jobs[jobs - 1].1 = "completed";
                }
                is_asked
            });
        })
    };
    let wait = [&FRAMES[..], &["--wait"]].concat();
    for (status, says) in [
        (["inoperative"; 2], "nothing runs jobs on the server now"),
        (["asleep"; 2], "all workers of the server are asleep"),
        // After the job was taken.
        (["idle", "asleep"], "all workers of the server are asleep"),
    ] {
        front.set_farm(status);
        front.script.lock().unwrap().manager.as_mut().unwrap().jobs.clear();
        front.script.lock().unwrap().heads.clear();
        let completing = completes(1);
        let output = submit(&dir, &file, &front.url(), &wait);
        completing.join().unwrap();
        succeeded(&output);
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
    // Without an answer that is understood, as before.
    for (status, body) in [(404, "{}"), (200, "{}"), (200, r#"{"status":"new"}"#), (500, "")] {
        let rule = Instead::Answer(status, JSON, body);
        let front = Front::start(&files, &[("GET", "/v3/status", rule)]);
        front.script.lock().unwrap().manager = Some(Go::default());
        let output = submit(&dir, &file, &front.url(), &FRAMES);
        succeeded(&output);
        assert!(!text(&output.stderr).contains("worker"), "{}", text(&output.stderr));
        front.all_rules_were_needed();
    }
}

#[test]
fn a_server_without_job_types_is_said_to_have_none() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, file) = project();
    for none in [r#"{"job_types": []}"#, r#"{"job_types": null}"#] {
        let front =
            Front::start(&server, &[("GET", "/jobs/types", Instead::Answer(200, JSON, none))]);
        failed(&submit(&dir, &file, &front.url(), &FRAMES), 2, "has no job types at all");
    }
    nothing_was_sent(&server);
}
