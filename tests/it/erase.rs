//! Deletions remove what farmhand created, as a whole, and nothing else.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use farmhand::{
    domain::report::LinkMode,
    server::{self, FarmOptions},
    store,
};
use serde_json::{Value, json};

use super::common::*;

/// A checkout of a scene and a texture.
fn checkout(server: &TestServer, path: &str) -> PathBuf {
    for content in [&b"scene"[..], b"texture"] {
        assert!(matches!(server.upload(content).status, 204 | 208));
    }
    let files = [file(b"scene", "scene.blend"), file(b"texture", "textures/wood.png")];
    let body = json!({ "checkoutPath": path, "files": files });
    assert_eq!(server.post_json("checkout/create", &body).status, 200);
    server.storage().join("jobs").join(path)
}

/// Submits a job for a file below the checkouts, with this storage id.
fn submit(server: &TestServer, id: Option<&str>, blend: &str) -> String {
    let mut job = json!({
        "name": "a job", "type": "simple-blender-render", "priority": 50, "submitter_platform": "linux",
        "settings": { "frames": "1-3", "blendfile": format!("{{jobs}}/{blend}") },
    });
    if let Some(id) = id {
        job["storage"] = json!({ "shaman_checkout_id": id });
    }
    let answer = server.api("POST", "jobs", job);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// What deleting a job would do, and what it did.
fn delete_job(server: &TestServer, id: &str, query: &str) -> (Value, Value) {
    let before = server.api("GET", &format!("jobs/{id}/what-would-delete-do"), Value::Null);
    assert_eq!(before.status, 200, "{before:?}");
    let path = format!("jobs/{id}?report=true{query}");
    let done = server.api("DELETE", &path, Value::Null);
    assert_eq!(done.status, 200, "{done:?}");
    (before.json(), done.json())
}

fn erase(server: &TestServer, query: &str) -> Answer {
    server.admin("DELETE", &format!("checkouts?path={query}"), Value::Null)
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    tree(dir).into_keys().collect()
}

/// A job renders below its checkout, and has saved a file of it anew. All of that outlives the checkout.
#[test]
fn deleting_a_job_keeps_rendered_frames() {
    let server = TestServer::with_farm(FarmOptions::default());
    let render = |dir: &Path| {
        write(&dir.join("render/0001.png"), "one");
        write(&dir.join("render/deep/0002.png"), "two!");
        fs::create_dir_all(dir.join("cache/empty")).unwrap();
        fs::remove_file(dir.join("scene.blend")).unwrap();
        write(&dir.join("scene.blend"), "saved again");
        symlink("0001.png", dir.join("render/latest")).unwrap();
    };
    let kept = ["render/0001.png", "render/deep/0002.png", "render/latest", "scene.blend"];
    for with_outputs in [false, true] {
        let dir = checkout(&server, "shot");
        let id = submit(&server, Some("shot"), "shot/scene.blend");
        render(&dir);
        let query = if with_outputs { "&with_outputs=true" } else { "" };
        let (before, done) = delete_job(&server, &id, query);
        for told in [&before, &done] {
            assert_eq!(told["shaman_checkout"], true);
            let outputs = &told["checkout"]["outputs"];
            assert_eq!(outputs["files"], 4, "{told}");
            let mut paths: Vec<_> =
                outputs["paths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
            paths.sort_unstable();
            assert_eq!(paths, kept);
            assert_eq!(told["checkout"]["files"], 1, "the link that is left: {told}");
        }
        assert_eq!(done["checkout"]["outputs_removed"], with_outputs);
        if with_outputs {
            assert!(!dir.exists());
            continue;
        }
        assert_eq!(names(&dir), kept);
        assert_eq!(fs::read(dir.join("scene.blend")).unwrap(), b"saved again");
        assert!(!dir.join("textures").exists() && !dir.join("cache").exists());
        // It is no checkout any more, and does not look like one.
        assert_eq!(server.admin("GET", "checkouts", Value::Null).json(), json!([]));
        fs::remove_dir_all(&dir).unwrap();
    }
    // Without a wish for a report, the answer is the protocol's.
    let id = submit(&server, None, "elsewhere/scene.blend");
    assert_eq!(server.api("DELETE", &format!("jobs/{id}"), Value::Null).status, 204);
    let id = submit(&server, None, "elsewhere/scene.blend");
    let answer = server.api("DELETE", &format!("jobs/{id}?report=maybe"), Value::Null);
    answer.is_error(400, "true or false");
}

#[test]
fn erasing_keeps_outputs_in_each_link_mode() {
    for mode in [LinkMode::Symlink, LinkMode::Hardlink, LinkMode::Copy] {
        let store = store::Options { link_mode: mode, ..store::Options::default() };
        let server = TestServer::with_store(server::Options::default(), store);
        assert_eq!(server.upload(b"").status, 204);
        let dir = checkout(&server, "show/shot");
        let elsewhere = server.dir.path().join("published.png");
        write(&dir.join("render/0001.png"), "frame");
        fs::hard_link(dir.join("render/0001.png"), &elsewhere).unwrap();
        write(&dir.join("render/0002.png"), "");
        let mut kept = vec!["render/0001.png", "render/0002.png"];
        if mode == LinkMode::Copy {
            // A job has written to a copy, which is its own.
            use std::os::unix::fs::PermissionsExt;
            let copy = dir.join("textures/wood.png");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&copy, "painted").unwrap();
            kept.push("textures/wood.png");
        }
        // Also where only the record tells that there is a checkout in it.
        erase(&server, "show").is_error(409, "there are checkouts in it (\"show/shot\"");
        let preview = erase(&server, "show/shot&dry_run=true").json();
        assert_eq!(names(&dir).len(), 4, "{mode:?}: a dry run removes nothing");
        let erased = erase(&server, "show/shot").json();
        for told in [&preview, &erased] {
            assert_eq!(told["outputs"]["files"], kept.len(), "{mode:?}: {told}");
            assert_eq!(told["files"], 4 - kept.len(), "{mode:?}: {told}");
        }
        assert_eq!((&preview["dry_run"], &erased["dry_run"]), (&json!(true), &json!(false)));
        assert_eq!(names(&dir), kept, "{mode:?}");
        assert_eq!(server.status(b"scene"), "stored");
        erase(&server, "show/shot&with_outputs=true").is_error(404, "no checkout");
    }
}

/// Frames that were rendered below an earlier checkout are outputs of the next one, too.
#[test]
fn frames_moved_between_checkouts_are_kept() {
    for mode in [LinkMode::Hardlink, LinkMode::Copy] {
        let store = store::Options { link_mode: mode, ..store::Options::default() };
        let server = TestServer::with_store(server::Options::default(), store);
        let first = checkout(&server, "first");
        write(&first.join("render/0001.png"), "frame");
        let second = checkout(&server, "second");
        fs::rename(first.join("render"), second.join("render")).unwrap();
        let erased = erase(&server, "second").json();
        assert_eq!((&erased["files"], &erased["outputs"]["files"]), (&json!(2), &json!(1)));
        assert_eq!(names(&second), ["render/0001.png"], "{mode:?}");
    }
}

/// A program saves a file over its link again and again while the checkout is deleted.
#[test]
fn a_file_saved_during_a_deletion_is_kept() {
    let server = TestServer::start();
    let mut kept = 0;
    for round in 0..30 {
        let name = format!("shot{round}");
        assert!(matches!(server.upload(b"scene").status, 204 | 208));
        let files: Vec<_> =
            (0..200).map(|number| file(b"scene", &format!("{number:03}.blend"))).collect();
        let body = json!({ "checkoutPath": name, "files": files });
        assert_eq!(server.post_json("checkout/create", &body).status, 200);
        let dir = server.storage().join("jobs").join(&name);
        let aside = server.dir.path().join("aside");
        let start = std::sync::Barrier::new(2);
        let saved = std::thread::scope(|scope| {
            let saving = scope.spawn(|| {
                let mut saved = Vec::new();
                start.wait();
                for number in 0..200 {
                    let file = dir.join(format!("{number:03}.blend"));
                    fs::write(&aside, "saved").unwrap();
                    if fs::rename(&aside, &file).is_ok() {
                        saved.push(file);
                    }
                }
                saved
            });
            start.wait();
            let erased = erase(&server, &name);
            assert_eq!(erased.status, 200, "{erased:?}");
            saving.join().unwrap()
        });
        for file in &saved {
            assert_eq!(fs::read(file).unwrap(), b"saved", "in round {round}: {file:?}");
        }
        kept += saved.len();
    }
    assert!(kept > 0, "nothing was saved in time");
}

/// A bind mount of the same file system, and a directory that may not be entered.
#[test]
fn mounts_inside_a_checkout_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, outside) = (dir.path().join("storage"), dir.path().join("outside"));
    write(&outside.join("precious"), "precious");
    {
        let own = tempfile::tempdir().unwrap();
        let server = TestServer::farm_over(own, storage.clone(), FarmOptions::default());
        let shot = checkout(&server, "shot");
        fs::create_dir(shot.join("mounted")).unwrap();
    }
    let mut program = farmhand(dir.path());
    program.args(["store", "erase", "shot", "--with-outputs", "--json", "--storage"]).arg(&storage);
    let mut command = std::process::Command::new("unshare");
    let script = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&outside);
    command.arg(storage.join("jobs/shot/mounted"));
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output();
    let Some(output) = output.ok().filter(|output| {
        !String::from_utf8_lossy(&output.stderr).contains("unshare")
            && !String::from_utf8_lossy(&output.stderr).contains("mount:")
    }) else {
        return eprintln!("NOT TESTED: no bind mount can be made here; see store::erase::tests");
    };
    let erased: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!((&erased["files"], &erased["outputs"]["left"]), (&json!(2), &json!(1)), "{erased}");
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    assert!(storage.join("jobs/shot/mounted").exists());
}

/// Part of somebody's checkout, a folder of checkouts, and plain files: none of it is a checkout.
#[test]
fn only_a_whole_checkout_is_deleted() {
    let server = TestServer::with_farm(FarmOptions::default());
    let alice = checkout(&server, "alice/shot");
    let plain = server.storage().join("jobs/plain/deep");
    write(&plain.join("notes.txt"), "notes");
    for (path, says) in [
        ("alice/shot/textures", "only a part of the checkout \"alice/shot\""),
        ("alice", "there are checkouts in it"),
    ] {
        erase(&server, path).is_error(409, says);
        erase(&server, &format!("{path}&force=true&with_outputs=true")).is_error(409, says);
    }
    for path in ["plain", "plain/deep"] {
        erase(&server, &format!("{path}&with_outputs=true")).is_error(404, "no checkout");
    }
    for id in ["alice/shot/textures", "alice", "plain", "plain/deep"] {
        let job = submit(&server, Some(id), "nowhere/scene.blend");
        let (before, done) = delete_job(&server, &job, "&with_outputs=true");
        assert_eq!(
            (&before["shaman_checkout"], &done["shaman_checkout"]),
            (&json!(false), &json!(false))
        );
    }
    assert_eq!(names(&alice), ["scene.blend", "textures/wood.png"]);
    assert_eq!(names(&plain), ["notes.txt"]);
    // Nor without its record, by its look alone.
    drop(fs::remove_dir_all(server.storage().join("farmhand/checkouts")));
    fs::create_dir(server.storage().join("farmhand/checkouts")).unwrap();
    erase(&server, "alice/shot/textures").is_error(409, "only a part of the checkout");
    erase(&server, "alice").is_error(409, "there are checkouts in it");
    erase(&server, "alice/shot").is_error(409, "is not on record");
    let job = submit(&server, Some("alice/shot"), "nowhere/scene.blend");
    let (before, _) = delete_job(&server, &job, "");
    assert_eq!(before["shaman_checkout"], false);
    assert_eq!(erase(&server, "alice/shot&force=true").json()["files"], 2);
}

/// A checkout stays as long as another job needs it, or anything in it or above it.
#[test]
fn a_checkout_that_a_job_uses_is_not_deleted() {
    let server = TestServer::with_farm(FarmOptions::default());
    let dir = checkout(&server, "alice/shot");
    let own = submit(&server, Some("alice/shot"), "alice/shot/scene.blend");
    for (id, blend) in [
        (Some("alice/shot/textures"), "nowhere/x.blend"),
        (Some("alice"), "nowhere/x.blend"),
        (Some("bob"), "alice/shot/scene.blend"),
        (None, "alice/shot/scene.blend"),
        (None, "/alice//shot/scene.blend"),
        (None, "../jobs/alice/shot/scene.blend"),
    ] {
        let other = submit(&server, id, blend);
        let (before, _) = delete_job(&server, &other, "");
        assert_eq!(before["shaman_checkout"], false, "{id:?} {blend}");
        let other = submit(&server, id, blend);
        let path = format!("jobs/{own}/what-would-delete-do");
        let would = server.api("GET", &path, Value::Null).json();
        assert_eq!(would["shaman_checkout"], false, "{id:?} {blend}");
        erase(&server, "alice/shot").is_error(409, "is used by the job");
        server.api("DELETE", &format!("jobs/{other}"), Value::Null);
    }
    assert_eq!(names(&dir).len(), 2);
    // A job that has ended does not keep it, and force overrules one that has not.
    erase(&server, "alice/shot").is_error(409, "--force");
    let canceled = json!({ "status": "cancel-requested", "reason": "x" });
    assert_eq!(server.api("POST", &format!("jobs/{own}/setstatus"), canceled).status, 204);
    assert_eq!(erase(&server, "alice/shot").status, 200);
    checkout(&server, "bob/shot");
    submit(&server, Some("bob/shot"), "bob/shot/scene.blend");
    erase(&server, "bob/shot").is_error(409, "is used by the job");
    assert_eq!(erase(&server, "bob/shot&force=true").status, 200);
}

/// The commands, on a directory that no server has open: its jobs would go on with the next one.
#[test]
fn the_command_refuses_a_checkout_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    {
        let own = tempfile::tempdir().unwrap();
        let server = TestServer::farm_over(own, storage.clone(), FarmOptions::default());
        write(&checkout(&server, "shot").join("render/0001.png"), "frame");
        submit(&server, Some("shot"), "shot/scene.blend");
    }
    let run = |more: &[&str]| -> Output {
        let mut command = farmhand(dir.path());
        command.args(["store", "erase", "shot", "--storage"]).arg(&storage).args(more);
        command.output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let refused = run(&[]);
    let error = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && error.contains("is used by the job"), "{error}");
    assert_eq!(run(&["--dry-run"]).status.code(), Some(1), "as without it");
    let preview = text(&run(&["--dry-run", "--force"]).stdout);
    assert!(preview.starts_with("would erase shot: 2 files, 1 directories\n"), "{preview}");
    assert!(preview.contains("1 files (5 B) that jobs made below jobs/shot stay"), "{preview}");
    assert_eq!(names(&storage.join("jobs/shot")).len(), 3);
    let erased = run(&["--force", "--with-outputs", "--json"]);
    let erased: Value = serde_json::from_slice(&erased.stdout).unwrap();
    assert_eq!(
        (&erased["schema"], &erased["files"]),
        (&json!("farmhand.store.erase/1"), &json!(2))
    );
    assert_eq!(
        (&erased["outputs_removed"], &erased["outputs"]["files"]),
        (&json!(true), &json!(1))
    );
    assert!(!storage.join("jobs/shot").exists());
}

/// `jobs/shared` leads elsewhere: no create, no deletion and no job gets there through it.
#[test]
fn no_link_below_the_checkouts_is_followed() {
    let server = TestServer::with_farm(FarmOptions::default());
    let elsewhere = server.dir.path().join("elsewhere");
    write(&elsewhere.join("Documents/precious.txt"), "precious");
    let blob = server.storage().join("file-store/stored");
    symlink(&elsewhere, server.storage().join("jobs/shared")).unwrap();
    // Even what looks like a checkout there.
    checkout(&server, "real");
    let link = fs::read_link(server.storage().join("jobs/real/scene.blend")).unwrap();
    symlink(
        blob.join(link.strip_prefix("../../file-store/stored").unwrap()),
        elsewhere.join("Documents/x"),
    )
    .unwrap();
    let before = names(&elsewhere);
    for id in ["shared/Documents", "shared"] {
        let job = submit(&server, Some(id), "nowhere/scene.blend");
        let (before, _) = delete_job(&server, &job, "&with_outputs=true");
        assert_eq!(before["shaman_checkout"], false);
        erase(&server, &format!("{id}&with_outputs=true&force=true")).is_error(404, "no checkout");
    }
    for path in ["shared/new", "shared/Documents/new"] {
        let body = json!({ "checkoutPath": path, "files": [file(b"scene", "scene.blend")] });
        server.post_json("checkout/create", &body).is_error(409, "is not a directory");
    }
    assert_eq!(names(&elsewhere), before);
    // A checkout that has been replaced by a link is gone; what the link leads to is not.
    fs::remove_dir_all(server.storage().join("jobs/real")).unwrap();
    symlink(&elsewhere, server.storage().join("jobs/real")).unwrap();
    assert_eq!(erase(&server, "real&with_outputs=true").json()["files"], 0);
    assert_eq!(names(&elsewhere), before);
}

/// A directory turns into a link again and again while checkouts are made and deleted below it.
#[test]
fn a_link_that_comes_and_goes_is_not_followed() {
    const ROUNDS: usize = 300;
    let server = TestServer::start();
    let jobs = server.storage().join("jobs");
    let elsewhere = server.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    assert_eq!(server.upload(b"scene").status, 204);
    let done = std::sync::atomic::AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                fs::create_dir_all(jobs.join("a/b")).ok();
                fs::rename(jobs.join("a/b"), jobs.join("aside")).ok();
                symlink(&elsewhere, jobs.join("a/b")).ok();
                fs::remove_file(jobs.join("a/b")).ok();
                fs::rename(jobs.join("aside"), jobs.join("a/b")).ok();
            }
        });
        let mut made = 0;
        let mut connection = server.connect();
        for round in 0..ROUNDS {
            let path = format!("a/b/{round}");
            let body = json!({ "checkoutPath": path, "files": [file(b"scene", "x")] });
            let answer = connection.post_json("checkout/create", &body);
            assert!(matches!(answer.status, 200 | 409 | 500), "{answer:?}");
            made += usize::from(answer.status == 200);
            if answer.status == 200 {
                erase(&server, &path);
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        flipper.join().unwrap();
        made
    });
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "something was made there");
    assert!(made > 0, "no checkout was made at all");
}

/// Starts a server that must refuse its storage, and returns what it says.
fn refused(home: &Path, storage: &Path) -> String {
    let mut command = farmhand(home);
    command.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(storage);
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn planted_links_stop_the_start() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    drop(ServerProcess::start(home.path(), &storage, &[]));
    let target = home.path().join("precious");
    write(&target.join("file"), "precious");
    // An empty one is planted in the place of each.
    for own in ["jobs/.farmhand-building", "jobs", "file-store/uploading", "file-store/stored/ab"] {
        let (path, aside) = (storage.join(own), home.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        symlink(&target, &path).unwrap();
        let error = refused(home.path(), &storage);
        let expected = format!("{} is a symbolic link", path.display());
        assert!(error.contains(&expected), "{error}");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    for own in ["farmhand.lock", "farmhand/pins"] {
        fs::remove_file(storage.join(own)).ok();
        symlink(target.join("file"), storage.join(own)).unwrap();
        assert!(refused(home.path(), &storage).contains("is a symbolic link"), "{own}");
        fs::remove_file(storage.join(own)).unwrap();
    }
    assert_eq!(tree(&target), [("file".to_owned(), b"precious".to_vec())].into());
    drop(ServerProcess::start(home.path(), &storage, &[]));
}

/// A job that says nothing about it renders to a directory of its own, which outlives its checkout.
#[test]
fn jobs_render_outside_their_checkout() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"cat > "$0.job"; echo frame > "$FARMHAND_JOB_OUTPUT/0001.png""#;
    let server = TestServer::with_farm(super::farm::scripted(dir.path(), script, |_| {}));
    for with_outputs in [false, true] {
        let place = checkout(&server, "shot");
        let id = submit(&server, None, "shot/scene.blend");
        let name = format!("a job-{}", &id[..8]);
        let job = || server.api("GET", &format!("jobs/{id}"), Value::Null).json();
        until(|| job()["status"] == "completed");
        let setting = job()["settings"]["render_output_path"].clone();
        assert_eq!(setting, format!("{{renders}}/{name}/######"));
        let given: Value =
            serde_json::from_slice(&fs::read(dir.path().join("hook.job")).unwrap()).unwrap();
        let renders = server.storage().join("renders").join(&name);
        let expected = renders.join("######");
        assert_eq!(given["settings"]["render_output_path"], expected.to_str().unwrap());
        assert_eq!(names(&renders), ["0001.png"]);
        let query = if with_outputs { "&with_outputs=true" } else { "" };
        let (before, done) = delete_job(&server, &id, query);
        for told in [before, done] {
            assert_eq!(
                told["renders"],
                json!({ "files": 1, "bytes": 6, "left": 0, "paths": ["0001.png"] })
            );
        }
        assert!(!place.exists());
        assert_eq!(renders.exists(), !with_outputs);
    }
    // The directory of a job that has put nothing there goes with the job.
    let id = submit(&server, None, "nowhere/scene.blend");
    until(|| server.api("GET", &format!("jobs/{id}"), Value::Null).json()["status"] == "completed");
    let renders = server.storage().join(format!("renders/a job-{}", &id[..8]));
    fs::remove_file(renders.join("0001.png")).unwrap();
    delete_job(&server, &id, "");
    assert!(!renders.exists());
    // What a job says counts.
    let mut job = json!({
        "name": "x", "type": "simple-blender-render", "priority": 50, "submitter_platform": "linux",
        "settings": { "frames": "1", "blendfile": "{jobs}/shot/x.blend", "render_output_path": "//out/" },
    });
    let answer = server.api("POST", "jobs", job.clone()).json();
    assert_eq!(answer["settings"]["render_output_path"], "//out/");
    job["settings"].as_object_mut().unwrap().remove("render_output_path");
    job["settings"]["render_output_root"] = "/mnt/out/".into();
    let answer = server.api("POST", "jobs", job.clone()).json();
    let path = answer["settings"]["render_output_path"].as_str().unwrap();
    assert!(path.starts_with("/mnt/out/x-") && path.ends_with("/######"), "{path}");
    job["settings"].as_object_mut().unwrap().remove("render_output_root");
    job["name"] = "../../etc".into();
    let answer = server.api("POST", "jobs", job).json();
    let path = answer["settings"]["render_output_path"].as_str().unwrap();
    assert!(path.starts_with("{renders}/.._.._etc-"), "{path}");
}

/// What `job delete` does, with this typed on a terminal.
fn delete_on_terminal(home: &Path, url: &str, id: &str, typed: &str) -> Output {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::Write;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let stdin = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    fs::File::from(terminal.try_clone().unwrap()).write_all(typed.as_bytes()).unwrap();
    let mut command = farmhand(home);
    command.args(["job", "delete", id, "--server", url]).stdin(stdin);
    command.output().unwrap()
}

#[test]
fn a_terminal_is_asked_before_a_job_goes() {
    let server = TestServer::with_farm(FarmOptions::default());
    let dir = checkout(&server, "shot");
    write(&dir.join("render/0001.png"), "frame");
    let id = submit(&server, None, "shot/scene.blend");
    let home = tempfile::tempdir().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let exists = || server.api("GET", &format!("jobs/{id}"), Value::Null).status == 200;
    let mut silent = farmhand(home.path());
    silent.args(["job", "delete", &id, "--server", &server.url()]).stdin(Stdio::null());
    let refused = silent.output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(text(&refused.stderr).contains("give --yes"), "{refused:?}");
    for typed in ["\n", "n\n", "yesterday\n"] {
        let output = delete_on_terminal(home.path(), &server.url(), &id, typed);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("checkout shot: 2 files that farmhand created are removed"),
            "{error}"
        );
        assert!(error.contains("1 files (5 B) that jobs made below jobs/shot stay"), "{error}");
        assert!(error.contains("Delete it? [y/N]") && error.contains("is not deleted"), "{error}");
        assert!(exists() && names(&dir).len() == 3, "{typed:?}");
    }
    let output = delete_on_terminal(home.path(), &server.url(), &id, "y\n");
    assert!(output.status.success() && !exists(), "{output:?}");
    assert!(text(&output.stdout).contains("render/0001.png"), "{output:?}");
    assert_eq!(names(&dir), ["render/0001.png"]);
    let id = submit(&server, None, "gone/scene.blend");
    let mut command = farmhand(home.path());
    command.args(["job", "rm", &id, "--yes", "--json", "--server", &server.url()]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["job_id"], &answer["shaman_checkout"]), (&json!(id), &json!(false)));
    assert_eq!(answer["renders"]["files"], 0);
}
