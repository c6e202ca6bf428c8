//! `farmhand submit` and `farmhand job`, against our own server and against a Manager that does what a test
//! says.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use farmhand::{
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
}

#[derive(Debug, Default)]
struct Script {
    /// Method, end of the path, and what happens to the first such request.
    rules: Vec<(&'static str, &'static str, Instead)>,
    /// All heads.
    heads: Vec<String>,
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
        let script = Arc::new(Mutex::new(Script { rules: rules.to_vec(), heads: Vec::new() }));
        let (shared, server) = (script.clone(), server.addr);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, script) = (client.unwrap(), shared.clone());
                thread::spawn(move || pass(&client, server, &script));
            }
        });
        Self { addr, script }
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
        let mut connection = Connection::new(server);
        connection.send(head.as_bytes());
        connection.send(&body);
        let answer = connection.answer();
        if rule.is_some() {
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

fn submit(dir: &TempDir, file: &Path, url: &str, more: &[&str]) -> Output {
    let mut command = farmhand(&dir.path().join("home"));
    command.arg("submit").arg(file).args(["--server", url]).args(more).output().unwrap()
}

fn job(dir: &TempDir, url: &str, more: &[&str]) -> Output {
    let mut command = farmhand(&dir.path().join("home"));
    command.arg("job").args(more).args(["--server", url]).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// It ends with this code, and says in one line why.
#[track_caller]
fn failed(output: &Output, code: i32, says: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    let lines: Vec<_> = error.lines().filter(|line| line.starts_with("farmhand: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains(says), "{error}");
}

const FRAMES: [&str; 2] = ["--setting", "frames=1-24"];

fn jobs_of(server: &TestServer) -> Vec<Value> {
    let jobs = server.api("GET", "jobs", Value::Null).json()["jobs"].clone();
    jobs.as_array().unwrap().clone()
}

fn checkouts_of(server: &TestServer) -> Vec<String> {
    let found = server.admin("GET", "checkouts", Value::Null).json();
    let paths = found.as_array().unwrap().iter();
    paths.map(|checkout| checkout["path"].as_str().unwrap().to_owned()).collect()
}

fn nothing_was_sent(server: &TestServer) {
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
    assert!(succeeded(&job(&dir, &server.url(), &["delete", &id])).contains("and its checkout"));
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
    fs::remove_file(root.join("shots/.farmhand.toml")).unwrap();
    fs::remove_file(root.join(".blender_project")).unwrap();
    assert_eq!(path_sent(&[]), "010.blend", "the file's own folder");
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
    let front = Front::start(&manager, &[]);
    let (dir, file) = project();
    let storage = dir.path().join("storage");
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
    succeeded(&job(&dir, &gateway.url, &["delete", &id]));
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

    let outside = dir.path().join("outside.png");
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
