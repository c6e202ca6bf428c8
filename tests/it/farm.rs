//! Jobs without a Manager: taken, kept, given to a command, and deleted.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio,
    time::Duration,
};

use farmhand::{
    jobs::JobStatus,
    server::{FarmOptions, Hook},
};
use serde_json::{Value, json};

use super::common::*;

fn job(name: &str) -> Value {
    json!({
        "name": name, "type": "simple-blender-render", "priority": 50, "submitter_platform": "linux",
        "settings": { "frames": "1-3", "blendfile": "{jobs}/shot/scene.blend" },
        "metadata": { "project": "x" },
    })
}

fn ask(server: &TestServer, path: &str) -> Value {
    let answer = server.api("GET", path, Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn submit(server: &TestServer, job: Value) -> String {
    let answer = server.api("POST", "jobs", job);
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn status_of(server: &TestServer, id: &str) -> String {
    ask(server, &format!("jobs/{id}"))["status"].as_str().unwrap().to_owned()
}

fn set_status(server: &TestServer, id: &str, status: &str) -> Answer {
    let body = json!({ "status": status, "reason": "because" });
    server.api("POST", &format!("jobs/{id}/setstatus"), body)
}

/// A server whose jobs are given to a shell script.
fn with_script(script: &str, change: impl FnOnce(&mut Hook)) -> (tempfile::TempDir, TestServer) {
    let dir = tempfile::tempdir().unwrap();
    let farm = scripted(dir.path(), script, change);
    (dir, TestServer::with_farm(farm))
}

pub(super) fn scripted(dir: &Path, script: &str, change: impl FnOnce(&mut Hook)) -> FarmOptions {
    let path = dir.join("hook");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut hook = Hook {
        command: vec!["/bin/sh".into(), path.to_str().unwrap().into(), "an argument".into()],
        timeout: 10 * PATIENCE,
        parallel: 1,
        then: JobStatus::Completed,
    };
    change(&mut hook);
    FarmOptions { hook: Some(hook), ..FarmOptions::default() }
}

#[test]
fn a_job_is_taken_kept_and_served() {
    let server = TestServer::with_farm(FarmOptions::default());
    assert_eq!(server.api("POST", "jobs/check", job("first")).status, 204);
    assert_eq!(ask(&server, "jobs")["jobs"], json!([]), "a check keeps nothing");
    let name = "?*:;{}\\/.. \u{1f33e} \n\t\u{202e}\0";
    let first = submit(&server, job(name));
    let mut paused = job("second");
    paused["initial_status"] = "paused".into();
    let second = submit(&server, paused);
    let all = ask(&server, "jobs")["jobs"].clone();
    assert_eq!(all[0]["id"], second.as_str(), "the latest first");
    let found = ask(&server, &format!("jobs/{first}"));
    assert_eq!(found, all[1]);
    assert_eq!(found["name"], name);
    assert_eq!(found["status"], "queued");
    assert_eq!(found["settings"]["chunk_size"], 1, "defaults are put in");
    assert_eq!(found["metadata"]["project"], "x");
    assert_eq!((&found["steps_completed"], &found["steps_total"]), (&json!(0), &json!(1)));
    let created: jiff::Timestamp = found["created"].as_str().unwrap().parse().unwrap();
    assert!(found["created"].as_str().unwrap().len() <= "2026-11-24T12:00:00.123456Z".len());
    assert!(jiff::Timestamp::now().duration_since(created) < jiff::SignedDuration::from_secs(60));
    assert_eq!(status_of(&server, &second), "paused");

    assert_eq!(set_status(&server, &second, "queued").status, 204);
    assert_eq!(status_of(&server, &second), "queued");
    assert_eq!(set_status(&server, &second, "cancel-requested").status, 204);
    let canceled = ask(&server, &format!("jobs/{second}"));
    assert_eq!(
        (&canceled["status"], &canceled["activity"]),
        (&json!("canceled"), &json!("because"))
    );
    set_status(&server, &second, "paused").is_error(422, "canceled cannot become paused");
    set_status(&server, &second, "asleep").is_error(400, "unknown variant");
    let path = format!("jobs/{first}/setpriority");
    assert_eq!(server.api("POST", &path, json!({ "priority": 90 })).status, 204);
    assert_eq!(ask(&server, &format!("jobs/{first}"))["priority"], 90);
    server.api("POST", &path, json!({ "priority": 101 })).is_error(422, "from 0 to 100");
    server.api("POST", &path, json!({ "priority": "high" })).is_error(400, "not as expected");
    assert_eq!(ask(&server, &format!("jobs/{first}/tasks"))["tasks"], json!([]));
    assert_eq!(server.api("GET", &format!("tasks/{first}/logtail"), Value::Null).status, 204);
}

#[test]
fn jobs_without_a_command_say_so() {
    let server = TestServer::with_farm(FarmOptions::default());
    assert_eq!(ask(&server, "status")["status"], "inoperative");
    let submitted = server.api("POST", "jobs", job("x")).json();
    let id = submitted["id"].as_str().unwrap().to_owned();
    assert_eq!(ask(&server, "status")["status"], "inoperative");
    let says = |job: &Value| {
        let activity = job["activity"].as_str().unwrap();
        assert!(activity.contains("no command") && activity.contains("jobs.hook"), "{activity}");
    };
    says(&submitted);
    says(&ask(&server, &format!("jobs/{id}")));
    says(&ask(&server, "jobs")["jobs"][0]);
    // Another program fetches it.
    assert_eq!(set_status(&server, &id, "active").status, 204);
    assert_eq!(ask(&server, "status")["status"], "active");
    assert_eq!(ask(&server, &format!("jobs/{id}"))["activity"], "because");
    assert_eq!(set_status(&server, &id, "completed").status, 204);
    assert_eq!(ask(&server, "status")["status"], "inoperative");

    let server = TestServer::with_farm(farm_with_command("exit 0"));
    assert_eq!(ask(&server, "status")["status"], "idle");
    let submitted = server.api("POST", "jobs", job("x")).json();
    assert_eq!(submitted["activity"], "");
}

#[test]
fn a_server_without_command_warns_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let warns = |arguments: &[&str]| {
        let storage = dir.path().join("storage");
        let mut server = ServerProcess::logging(dir.path(), &storage, arguments, &log);
        server.terminate();
        server.child.wait().unwrap();
        fs::read_to_string(&log).unwrap().contains("no command is configured to run jobs")
    };
    assert!(warns(&[]));
    assert!(!warns(&["--hook", "/bin/true"]));
}

#[test]
fn jobs_survive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let start = || {
        let own = tempfile::tempdir().unwrap();
        TestServer::farm_over(own, storage.clone(), FarmOptions::default())
    };
    let id = submit(&start(), job("kept"));
    let server = start();
    assert_eq!(ask(&server, &format!("jobs/{id}"))["name"], "kept");
}

#[test]
fn what_is_no_job_is_refused_and_keeps_nothing() {
    let server = TestServer::with_farm(FarmOptions::default());
    let with = |change: &dyn Fn(&mut Value)| {
        let mut job = job("x");
        change(&mut job);
        job
    };
    let set = |key: &'static str, value: Value| with(&|job| job["settings"][key] = value.clone());
    for (job, status, says) in [
        (json!({}), 400, "missing field"),
        (json!([]), 400, "it is a list"),
        (with(&|job| job["name"] = " ".into()), 400, "no name"),
        (with(&|job| job["name"] = Value::Null), 400, "not as expected"),
        (
            with(&|job| job["type"] = "unknown".into()),
            400,
            "no job type \"unknown\" here; there is simple-blender-render",
        ),
        (with(&|job| job["priority"] = json!(-1)), 400, "from 0 to 100"),
        (with(&|job| job["priority"] = json!(50.5)), 400, "not as expected"),
        (with(&|job| job["submitter_platform"] = "amiga".into()), 400, "unknown variant"),
        (with(&|job| job["type_etag"] = "old".into()), 412, "fetch the job types again"),
        (with(&|job| job["initial_status"] = "completed".into()), 400, "queued or paused"),
        (with(&|job| job["worker_tag"] = "gpu".into()), 400, "no worker tags"),
        (with(&|job| job["metadata"] = json!({"a": 1})), 400, "not as expected"),
        (with(&|job| job["settings"] = json!([])), 400, "not as expected"),
        (with(&|job| job["settings"] = json!({})), 400, "requires: frames, blendfile"),
        (set("frames", json!(7)), 400, "frames takes a text, not 7"),
        (set("chunk_size", json!("1")), 400, "chunk_size takes a whole number"),
        (set("chunk_size", json!(0)), 400, "chunk_size takes numbers from 1 on, not 0"),
        (set("fps", json!(true)), 400, "fps takes a number"),
        (set("more", json!(1)), 400, "no setting \"more\""),
        (with(&|job| job["name"] = "x".repeat(2 << 20).into()), 413, "longer than"),
    ] {
        for path in ["jobs/check", "jobs"] {
            server.api("POST", path, job.clone()).is_error(status, says);
        }
    }
    assert_eq!(ask(&server, "jobs")["jobs"], json!([]));
    for path in
        ["jobs/none", "jobs/none/tasks", "jobs/none/what-would-delete-do", "tasks/none/logtail"]
    {
        server.api("GET", path, Value::Null).is_error(404, "no job \"none\"");
    }
    set_status(&server, "none", "queued").is_error(404, "no job");
    server.api("DELETE", "jobs/none", Value::Null).is_error(404, "no job");
    for (method, path) in [
        ("GET", "worker-mgt/workers"),
        ("POST", "worker/register-worker"),
        ("GET", "configuration/file"),
        ("DELETE", "jobs/mass-delete"),
        ("GET", "jobs/last-rendered"),
        ("POST", "jobs/none/settag"),
        ("POST", "worker-mgt/tags"),
    ] {
        server.api(method, path, Value::Null).is_error(501, "needs a Flamenco Manager");
    }
    server
        .api("GET", "jobs/type/none", Value::Null)
        .is_error(404, "there is simple-blender-render");
}

#[test]
fn where_things_are_depends_on_who_asks() {
    let locations = BTreeMap::from([("windows", "F:\\farm".to_owned())]);
    let variables = json!([
        {"name": "share", "value": "/mnt/share", "platform": "linux", "two_way": true},
        {"name": "share", "value": "S:\\", "platform": "windows", "two_way": true},
        {"name": "blender", "value": "blender", "audience": "workers"},
    ]);
    let variables = serde_json::from_value(variables).unwrap();
    let server =
        TestServer::with_farm(FarmOptions { locations, variables, ..FarmOptions::default() });
    let storage = server.storage().to_str().unwrap().to_owned();
    for (platform, location) in [("linux", storage.as_str()), ("windows", "F:\\farm")] {
        let found = ask(&server, &format!("configuration/shared-storage/users/{platform}"));
        let expected = json!({
            "location": location, "audience": "users", "platform": platform, "shamanEnabled": true
        });
        assert_eq!(found, expected);
    }
    let found = ask(&server, "configuration/variables/workers/windows");
    assert_eq!(found["jobs"], json!({ "value": "F:\\farm\\jobs", "is_twoway": false }));
    assert_eq!(found["share"]["value"], "S:\\");
    assert_eq!(found["blender"]["value"], "blender");
    let found = ask(&server, "configuration/variables/users/linux");
    assert_eq!(found["jobs"]["value"], format!("{storage}/jobs"));
    assert!(found.get("blender").is_none());
    for path in ["shared-storage/users/amiga", "shared-storage/cats/linux", "variables/users/x"] {
        server.api("GET", &format!("configuration/{path}"), Value::Null).is_error(400, "ask for");
    }
    assert_eq!(ask(&server, "configuration")["storageLocation"], storage.as_str());
    // A path on one platform becomes a name that means the same on another.
    let mut job = job("x");
    job["settings"]["render_output_path"] = "/mnt/share/out/######".into();
    let id = submit(&server, job);
    let settings = ask(&server, &format!("jobs/{id}"))["settings"].clone();
    assert_eq!(settings["render_output_path"], "{share}/out/######");
}

#[test]
fn a_job_is_given_to_the_command_with_paths_of_this_machine() {
    let (dir, server) =
        with_script("echo \"$1 $FARMHAND_JOB_ID\"; echo problem >&2; cat > \"$0.json\"", |_| {});
    let mut job = job("x");
    job["settings"]["render_output_path"] = "/out/{timestamp}/######".into();
    let id = submit(&server, job);
    until(|| status_of(&server, &id) == "completed");
    let given = fs::read(dir.path().join("hook.json")).unwrap();
    let given: Value = serde_json::from_slice(&given).unwrap();
    let jobs = server.storage().join("jobs");
    assert_eq!(given["id"], id.as_str());
    assert_eq!(given["settings"]["blendfile"], format!("{}/shot/scene.blend", jobs.display()));
    let output = given["settings"]["render_output_path"].as_str().unwrap();
    assert_eq!(output.len(), "/out/2026-11-24_120000/######".len(), "{output}");
    let found = ask(&server, &format!("jobs/{id}"));
    assert_eq!(found["run"]["exit_code"], 0);
    let output = found["run"]["output"].as_str().unwrap();
    assert!(
        output.contains(&format!("an argument {id}\n")) && output.contains("problem\n"),
        "{output}"
    );
    assert_eq!(found["settings"]["blendfile"], "{jobs}/shot/scene.blend");
    assert_eq!(found["steps_completed"], 1);
    assert_eq!(ask(&server, &format!("jobs/{id}/tasks"))["tasks"][0]["status"], "completed");
    let tail = server.api("GET", &format!("tasks/{id}/logtail"), Value::Null);
    assert_eq!(String::from_utf8(tail.body).unwrap(), output);
    // Once more, on request.
    fs::remove_file(dir.path().join("hook.json")).unwrap();
    assert_eq!(set_status(&server, &id, "requeueing").status, 204);
    until(|| status_of(&server, &id) == "completed");
    assert!(dir.path().join("hook.json").exists());
}

#[test]
fn what_goes_wrong_with_the_command_is_kept_and_shown() {
    for (script, change, says) in [
        (
            "echo so far; exit 3",
            Box::new(|_: &mut Hook| {}) as Box<dyn FnOnce(&mut Hook)>,
            "exit code 3",
        ),
        ("kill -9 $$", Box::new(|_: &mut Hook| {}), "signal: 9"),
        (
            "",
            Box::new(|hook: &mut Hook| hook.command = vec!["/no/such/program".into()]),
            "cannot run /no/such/program: No such file",
        ),
        (
            "echo so far; sleep 1000",
            Box::new(|hook: &mut Hook| hook.timeout = Duration::from_millis(300)),
            "it took longer than 0.3 s",
        ),
    ] {
        let (_dir, server) = with_script(script, change);
        let id = submit(&server, job("x"));
        until(|| status_of(&server, &id) == "failed");
        let found = ask(&server, &format!("jobs/{id}"));
        let activity = found["activity"].as_str().unwrap();
        assert!(activity.contains(says), "{activity}");
        let said = script.contains("so far");
        assert_eq!(found["run"]["output"], if said { "so far\n" } else { "" });
        assert!(found["run"]["ended"].is_string());
    }
}

#[test]
fn a_command_that_runs_can_be_ended_with_all_it_has_started() {
    // The grandchild would go on.
    let script = "sleep 1000 & echo $! > \"$0.pid\"; echo started; wait";
    let (dir, server) = with_script(script, |_| {});
    let id = submit(&server, job("x"));
    // What it has written so far can be seen while it runs.
    until(|| ask(&server, &format!("jobs/{id}"))["run"]["output"] == "started\n");
    assert_eq!(ask(&server, "status")["status"], "active");
    set_status(&server, &id, "requeueing").is_error(422, "cancel it first");
    set_status(&server, &id, "paused").is_error(422, "cancel it first");
    assert_eq!(set_status(&server, &id, "cancel-requested").status, 204);
    until(|| ask(&server, &format!("jobs/{id}"))["run"]["ended"].is_string());
    assert_eq!(status_of(&server, &id), "canceled");
    let pid = fs::read_to_string(dir.path().join("hook.pid")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    // Gone, or waiting for somebody to take note of that.
    until(|| fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));

    // A job that runs can be deleted: its command is ended first.
    let id = submit(&server, job("y"));
    until(|| ask(&server, &format!("jobs/{id}"))["run"]["output"] == "started\n");
    assert_eq!(server.api("DELETE", &format!("jobs/{id}"), Value::Null).status, 204);
    server.api("GET", &format!("jobs/{id}"), Value::Null).is_error(404, "no job");
}

/// Is stopped: its command is ended, and the next server says of the job what became of it.
#[test]
fn a_command_ends_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let hook = dir.path().join("hook");
    fs::write(&hook, "#!/bin/sh\nsleep 1000 & echo $!; wait\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let arguments = ["--hook", hook.to_str().unwrap()];
    let mut program = farmhand(dir.path());
    program.env("FARMHAND_SERVE_GRACE", "1 s").stderr(Stdio::null());
    program.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(&storage).args(arguments);
    let mut server = ServerProcess::spawn(&mut program);
    let body = job("cut short").to_string();
    let head = post_head("/api/v3/jobs", "Content-Type: application/json\r\n", body.len() as u64);
    let mut connection = server.connect();
    connection.send(&head);
    connection.send(body.as_bytes());
    let path = format!("/api/v3/jobs/{}", connection.answer().json()["id"].as_str().unwrap());
    let mut pid = String::new();
    until(|| {
        pid = connection.get(&path).json()["run"]["output"].as_str().unwrap_or_default().into();
        pid.ends_with('\n')
    });
    drop(connection);
    server.terminate();
    until(|| server.child.try_wait().unwrap().is_some_and(|status| status.success()));
    let stat = format!("/proc/{}/stat", pid.trim());
    until(|| fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));

    let server = ServerProcess::start(dir.path(), &storage, &arguments);
    let job = server.connect().get(&path).json();
    assert_eq!(job["status"], "failed");
    assert_eq!(job["run"]["error"], "the server ended");
    assert_eq!(job["run"]["output"], pid);
}

/// Is killed: nobody ends its command but the next server.
#[test]
fn a_command_that_outlives_its_server_is_ended_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let hook = dir.path().join("hook");
    let script = "#!/bin/sh\nsetsid sleep 1000 & echo $! > \"$0.daemon\"\nsleep 1000 & echo $! > \"$0.pid\"; wait\n";
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let arguments = ["--hook", hook.to_str().unwrap()];
    let mut server = ServerProcess::start(dir.path(), &storage, &arguments);
    let answer = server.connect().api("POST", "jobs", &job("orphan"));
    let path = format!("/api/v3/jobs/{}", answer.json()["id"].as_str().unwrap());
    let pid = |of: &str| {
        let text = fs::read_to_string(dir.path().join(of)).unwrap_or_default();
        text.strip_suffix('\n').map(str::to_owned)
    };
    let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let runs = |pid: &str| stat(pid).contains("(sleep)") && !stat(pid).contains(") Z ");
    until(|| pid("hook.pid").is_some_and(|pid| runs(&pid)));
    let (child, daemon) = (pid("hook.pid").unwrap(), pid("hook.daemon").unwrap());
    until(|| runs(&daemon));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(runs(&child), "it outlives its server");
    let server = ServerProcess::start(dir.path(), &storage, &arguments);
    until(|| !runs(&child));
    assert_eq!(server.connect().get(&path).json()["status"], "failed");
    assert!(runs(&daemon), "what has made itself independent goes on");
    drop(server);
    let daemon = rustix::process::Pid::from_raw(daemon.parse().unwrap()).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn jobs_have_their_turn_by_priority() {
    let (dir, server) =
        with_script("while [ ! -e \"$0.go\" ]; do sleep 0.01; done; cat >> \"$0.json\"", |_| {});
    let ids: Vec<_> = [("a", 50), ("b", 10), ("c", 60), ("d", 60)]
        .into_iter()
        .map(|(name, priority)| {
            let mut job = job(name);
            job["priority"] = priority.into();
            let id = submit(&server, job);
            if name == "a" {
                until(|| status_of(&server, &id) == "active");
            }
            id
        })
        .collect();
    fs::write(dir.path().join("hook.go"), "").unwrap();
    for id in &ids {
        until(|| status_of(&server, id) == "completed");
    }
    let given = fs::read_to_string(dir.path().join("hook.json")).unwrap();
    let names: Vec<_> = given
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["a", "c", "d", "b"]);
}

#[test]
fn a_job_that_is_handed_over_is_active_until_somebody_says_how_it_ended() {
    let (_dir, server) = with_script("true", |hook| hook.then = JobStatus::Active);
    let id = submit(&server, job("x"));
    until(|| ask(&server, &format!("jobs/{id}"))["activity"] == "handed over");
    assert_eq!(status_of(&server, &id), "active");
    assert_eq!(set_status(&server, &id, "completed").status, 204);
    assert_eq!(status_of(&server, &id), "completed");
}

#[test]
fn a_checkout_that_another_job_uses_stays() {
    let server = TestServer::with_farm(FarmOptions::default());
    assert_eq!(server.upload(b"scene").status, 204);
    let body = json!({ "checkoutPath": "shot", "files": [file(b"scene", "scene.blend")] });
    assert_eq!(server.post_json("checkout/create", &body).status, 200);
    let (first, second) = (submit(&server, job("a")), submit(&server, job("b")));
    let goes = |id: &str| {
        ask(&server, &format!("jobs/{id}/what-would-delete-do"))["shaman_checkout"] == true
    };
    let checkout = server.storage().join("jobs/shot/scene.blend");
    assert!(!goes(&first) && !goes(&second));
    assert_eq!(server.api("DELETE", &format!("jobs/{first}"), Value::Null).status, 204);
    assert!(checkout.exists());
    assert!(goes(&second));
    assert_eq!(server.api("DELETE", &format!("jobs/{second}"), Value::Null).status, 204);
    assert!(!checkout.exists());
    // One whose checkout is gone already, or never was one, can be deleted, too.
    for (name, storage) in [
        ("gone", json!({"shaman_checkout_id": "shot"})),
        ("odd", json!({"shaman_checkout_id": "../.."})),
    ] {
        let mut job = job(name);
        job["storage"] = storage;
        let id = submit(&server, job);
        assert_eq!(server.api("DELETE", &format!("jobs/{id}"), Value::Null).status, 204);
    }
    assert!(server.storage().join("jobs").exists());
}

/// A checkout of this many files besides its scene.
fn checkout(server: &TestServer, path: &str, count: usize) {
    assert!(matches!(server.upload(b"scene").status, 204 | 208));
    let mut files = vec![file(b"scene", "scene.blend")];
    files.extend((0..count).map(|number| file(b"scene", &format!("a/{number}"))));
    let body = json!({ "checkoutPath": path, "files": files });
    assert_eq!(server.post_json("checkout/create", &body).status, 200);
}

/// While a checkout is erased, which takes its time, its job cannot be begun, and none be taken for it.
#[test]
fn a_job_that_is_being_deleted_never_begins_without_its_files() {
    const FILES: usize = 3000;
    let script = r#"job=$(cat); file=${job#*blendfile\":\"}; file=${file%%\"*}
        [ -e "$file" ] || echo "$file" >> "$0.missing"
        case $job in *hurry*) ;; *) sleep 1000 ;; esac"#;
    let (dir, server) = with_script(script, |_| {});
    for _ in 0..3 {
        checkout(&server, "shot", FILES);
        let mut paused = job("x");
        paused["initial_status"] = "paused".into();
        let id = submit(&server, paused.clone());
        let (addr, deleting) = (server.addr, format!("jobs/{id}"));
        let deletion = std::thread::spawn(move || {
            Connection::new(addr).api("DELETE", &deleting, &Value::Null).status
        });
        let mut others = Vec::new();
        until(|| {
            let answer = set_status(&server, &id, "requeueing");
            assert!(matches!(answer.status, 204 | 404 | 409 | 422), "{answer:?}");
            let other = server.api("POST", "jobs", paused.clone());
            match other.status {
                200 => others.push(other.json()["id"].as_str().unwrap().to_owned()),
                status => assert_eq!(status, 409, "{other:?}"),
            }
            answer.status == 404
        });
        assert_eq!(deletion.join().unwrap(), 204);
        // Jobs that were taken before that keep it, or were taken when there was none.
        let is_there = server.storage().join("jobs/shot/scene.blend").exists();
        for id in &others {
            let job = ask(&server, &format!("jobs/{id}"));
            assert!(is_there || job["created"].is_string(), "{job}");
            server.api("DELETE", &format!("jobs/{id}"), Value::Null);
        }
        assert!(!server.storage().join("jobs/shot").exists());
        // The next has its turn.
        checkout(&server, "shot", FILES);
        let next = submit(&server, job("hurry"));
        until(|| status_of(&server, &next) == "completed");
        assert_eq!(server.api("DELETE", &format!("jobs/{next}"), Value::Null).status, 204);
    }
    let missing = fs::read_to_string(dir.path().join("hook.missing")).unwrap_or_default();
    assert_eq!(missing, "", "these were not there when a command began");
}

#[test]
fn a_checkout_is_kept_and_erased_whatever_a_job_says_of_it() {
    let server = TestServer::with_farm(FarmOptions::default());
    let with = |id: &str, blend: &str| {
        let mut job = job(id);
        job["storage"] = json!({ "shaman_checkout_id": id });
        job["settings"]["blendfile"] = format!("{{jobs}}/{blend}/scene.blend").into();
        submit(&server, job)
    };
    let delete = |id: &str| {
        let goes = ask(&server, &format!("jobs/{id}/what-would-delete-do"));
        assert_eq!(server.api("DELETE", &format!("jobs/{id}"), Value::Null).status, 204);
        goes["shaman_checkout"] == true
    };
    let is_there = |path: &str| server.storage().join("jobs").join(path).exists();
    // Its id cannot be one, but its file is in one.
    checkout(&server, "plain", 0);
    let (odd, even) = (with("plain/", "plain"), with("plain", "plain"));
    assert!(!delete(&even) && is_there("plain/scene.blend"));
    assert!(delete(&odd) && !is_there("plain"));
    // A folder of checkouts is none, and goes with no job; what is in it stays.
    checkout(&server, "folder/one", 0);
    checkout(&server, "folder/two", 0);
    let folder = with("folder", "elsewhere");
    assert!(!delete(&folder) && is_there("folder/one/scene.blend"));
    let folder = with("folder", "folder/one");
    assert!(delete(&folder) && !is_there("folder/one") && is_there("folder/two/scene.blend"));
}

#[test]
fn a_web_page_cannot_submit() {
    let server = TestServer::with_farm(FarmOptions::default());
    let body = job("x").to_string();
    for header in ["Origin: http://localhost:8080", "Host: evil.example"] {
        let mut connection = server.connect();
        let host = if header.starts_with("Host") { "" } else { "Host: localhost\r\n" };
        let head = format!(
            "POST /api/v3/jobs HTTP/1.1\r\n{host}{header}\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\n\r\n{body}",
            body.len()
        );
        connection.send(head.as_bytes());
        connection.answer().is_error(403, "web page");
    }
    assert_eq!(ask(&server, "jobs")["jobs"], json!([]));
}
