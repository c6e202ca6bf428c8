//! `farmhand plan`: what it says is what a sync then does, and it does nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    http::{StatusCode, Uri},
    response::IntoResponse,
};
use serde_json::{Value, json};

use super::{
    cli::{Home, Ran, run},
    common::*,
};

/// Files with their state here and on the server.
fn states(plan: &Value) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let files = plan["files"].as_array().unwrap().iter();
    files.map(|file| (text(&file["path"]), (text(&file["here"]), text(&file["server"])))).collect()
}

fn put(home: &Home, path: &str, content: &[u8]) {
    let path = home.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn says(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, code, "{} {}", ran.out, ran.err);
    for part in parts {
        assert!(ran.out.contains(part), "no {part:?} in:\n{}", ran.out);
    }
}

#[test]
fn a_plan_says_what_a_push_then_does() {
    let home = Home::new();
    let server = ServerProcess::start(home.path(), &home.path().join("served"), &[]);
    let project = home.project();
    let plan = || home.run(&["plan", &project, "--server", &server.url, "--json"]).json();
    let push = || home.run(&["push", &project, "--server", &server.url, "--json"]).json();
    let sum = |files: u64, bytes: u64| json!({ "files": files, "bytes": bytes });

    let first = plan();
    assert_eq!(first["schema"], "farmhand.plan/1");
    assert_eq!(first["asked"], json!({ "server": server.url }));
    let totals = &first["totals"];
    assert_eq!((&totals["all"], &totals["new"]), (&sum(69, 4_119_572), &sum(69, 4_119_572)));
    assert_eq!(totals["to_send"], sum(69, 4_119_572));
    // Two textures are the same.
    assert_eq!(totals["uploads"], sum(68, 3_922_579));
    assert!(states(&first).values().all(|state| *state == ("new".into(), "unknown".into())));
    for file in first["files"].as_array().unwrap() {
        let content = fs::read(format!("{project}/{}", file["path"].as_str().unwrap())).unwrap();
        assert_eq!(
            (&file["sha256"], &file["size"]),
            (&json!(sha(&content)), &json!(content.len()))
        );
    }
    // It has hashed them: now they are known, and still not there.
    let second = plan();
    assert!(states(&second).values().all(|state| *state == ("unchanged".into(), "unknown".into())));
    let pushed = push();
    assert_eq!(
        (&pushed["uploaded_files"], &pushed["uploaded_bytes"]),
        (&json!(68), &json!(3_922_579))
    );
    assert!(states(&plan()).values().all(|state| *state == ("unchanged".into(), "stored".into())));

    fs::write(format!("{project}/scene.blend"), "saved again").unwrap();
    fs::write(format!("{project}/new.blend"), "brand new").unwrap();
    fs::copy(format!("{project}/lib/asset.blend"), format!("{project}/copy.blend")).unwrap();
    let third = plan();
    let mut states = states(&third);
    states.retain(|_, state| *state != ("unchanged".into(), "stored".into()));
    let state = |here: &str, server: &str| (here.to_owned(), server.to_owned());
    let expected = [
        ("copy.blend".to_owned(), state("new", "stored")),
        ("new.blend".to_owned(), state("new", "unknown")),
        ("scene.blend".to_owned(), state("changed", "unknown")),
    ];
    assert_eq!(states, expected.into());
    assert_eq!(third["totals"]["to_send"], sum(2, 20));
    assert_eq!(third["totals"]["changed"], sum(1, 11));
    let pushed = push();
    assert_eq!((&pushed["uploaded_files"], &pushed["uploaded_bytes"]), (&json!(2), &json!(20)));
    assert_eq!(plan()["totals"]["stored"]["files"], 71);
}

/// A file whose times are new and whose content is not has not changed.
#[test]
fn what_only_looks_changed_has_not() {
    let home = Home::new();
    put(&home, "p/file", b"content");
    assert_eq!(home.run(&["push", "p", "--storage", "s"]).code, 0);
    let file = fs::File::options().write(true).open(home.path().join("p/file")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    let here = |arguments: &[&str]| {
        let plan = home.run(&[&["plan", "p", "--json"], arguments].concat()).json();
        plan["files"][0]["here"].clone()
    };
    // Without reading it, nobody can tell.
    assert_eq!(here(&["--offline"]), "changed");
    assert_eq!(here(&["--storage", "s"]), "unchanged");
    assert_eq!(here(&["--offline"]), "unchanged");
}

/// A server that notes what is asked of it, and lacks everything.
fn counting_server() -> (tokio::runtime::Runtime, String, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let answer = async move |method: axum::http::Method, uri: Uri, body: axum::body::Bytes| {
        noted.lock().unwrap().push(format!("{method} {}", uri.path()));
        let Ok(mut asked) = serde_json::from_slice::<Value>(&body) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        for file in asked["files"].as_array_mut().unwrap() {
            file["status"] = json!("unknown");
        }
        Json(asked).into_response()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer);
    runtime.spawn(async { axum::serve(listener, router).await });
    (runtime, url, seen)
}

#[test]
fn nothing_is_asked_but_what_is_missing() {
    let home = Home::new();
    let project = home.project();
    let (_runtime, url, seen) = counting_server();
    for arguments in [&[][..], &["--json"], &["--all"], &["--why", "scene.blend"]] {
        let ran = home.run(&[&["plan", &project, "--server", &url], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        let asked: Vec<String> = std::mem::take(&mut seen.lock().unwrap());
        assert_eq!(asked, ["POST /api/v3/shaman/checkout/requirements"], "{arguments:?}");
    }
    let ran = run(farmhand(home.path()).env("FARMHAND_SERVER", &url).args([
        "plan",
        &project,
        "--offline",
    ]));
    assert_eq!(ran.code, 0);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn a_store_is_as_it_was() {
    let home = Home::new();
    let project = home.project();
    put(&home, "other/file", b"something");
    assert_eq!(home.run(&["push", "other", "--storage", "s"]).code, 0);
    let files = || -> BTreeSet<String> {
        let below = |dir| tree(&home.path().join("s").join(dir)).into_keys();
        below("file-store").chain(below("jobs")).collect()
    };
    let before = files();
    assert_eq!(before.len(), 1);
    let ran = home.run(&["plan", &project, "--storage", "s"]);
    says(&ran, 0, &["69 files", "to send (the same content once: 68 files"]);
    assert_eq!(files(), before);
    // None is made to see what is in it.
    let ran = home.run(&["plan", &project, "--storage", "none"]);
    says(&ran, 0, &["no store yet", "to send"]);
    assert!(!home.path().join("none").exists());
    let ran = home.run(&["plan", &project]);
    says(&ran, 0, &["no server asked", "unchanged"]);
    assert!(!home.path().join("data").exists());
}

#[test]
fn without_a_server_it_says_what_is_new_and_changed() {
    let home = Home::new();
    put(&home, "p/old", b"old");
    put(&home, "p/sub/changes", b"before");
    assert_eq!(home.run(&["hash", "p"]).code, 0);
    put(&home, "p/sub/changes", b"after all");
    put(&home, "p/new", b"new");
    let plan = home.run(&["plan", "p", "--offline", "--json"]).json();
    assert_eq!(plan["asked"], json!({ "nobody": "--offline" }));
    let state = |here: &str| (here.to_owned(), "-".to_owned());
    let expected = [
        ("new".to_owned(), state("new")),
        ("old".to_owned(), state("unchanged")),
        ("sub/changes".to_owned(), state("changed")),
    ];
    assert_eq!(states(&plan), expected.clone().into());
    assert_eq!(plan["totals"].get("to_send"), None);
    says(
        &home.run(&["plan", "p", "--offline"]),
        0,
        &["new: never hashed here", "changed since", "new (new)", "sub/changes (changed)"],
    );
    // No file was read: they are as new as before.
    assert_eq!(states(&home.run(&["plan", "p", "--offline", "--json"]).json()), expected.into());
}

#[test]
fn what_somebody_else_is_sending_is_not_called_missing() {
    let server = TestServer::start();
    let home = Home::new();
    let (sent, other) = (random(100_000), random(1000));
    put(&home, "p/sent", &sent);
    put(&home, "p/other", &other);
    let mut connection = server.connect();
    connection.half_upload(&sent, "");
    server.until_status(&sent, "uploading");
    let plan = home.run(&["plan", "p", "--server", &server.url(), "--json"]).json();
    assert_eq!(states(&plan)["sent"], ("new".into(), "uploading".into()));
    assert_eq!(plan["totals"]["uploading"], json!({ "files": 1, "bytes": 100_000 }));
    assert_eq!(plan["totals"]["to_send"], json!({ "files": 1, "bytes": 1000 }));
    let plan = ["plan", "p", "--server", &server.url()];
    says(&home.run(&plan), 0, &["being sent by somebody else", "other (not there)"]);
    let why = home.run(&[&plan[..], &["--why", "sent"]].concat());
    says(&why, 0, &["sent: somebody else is sending it"]);
    assert_eq!(connection.other_half(&sent).status, 204);
}

#[test]
fn sequences_are_one_line_with_their_gaps() {
    let home = Home::new();
    for frame in (1..=100).chain(102..=240) {
        put(&home, &format!("p/cache/smoke_{frame:04}.vdb"), b"x");
    }
    for frame in 1..=3 {
        put(&home, &format!("p/cache/smoke_{frame}.vdb"), b"y");
    }
    put(&home, "p/cache/notes.txt", b"z");
    let plan = home.run(&["plan", "p", "--offline", "--json"]).json();
    let sequences = plan["sequences"].as_array().unwrap();
    assert_eq!(sequences.len(), 2);
    let sum = |files: u64| json!({ "files": files, "bytes": files });
    assert_eq!(
        sequences[1],
        json!({
            "folder": "cache",
            "pattern": "smoke_[1-3].vdb",
            "first": "1",
            "last": "3",
            "missing": 0,
            "all": sum(3),
            "pending": sum(3),
        })
    );
    assert_eq!(sequences[0]["pattern"], "smoke_[0001-0100,0102-0240].vdb");
    assert_eq!((&sequences[0]["missing"], &sequences[0]["last"]), (&json!(1), &json!("0240")));
    assert_eq!(plan["folders"], json!([{ "path": "cache", "all": sum(243), "pending": sum(243) }]));
    let ran = home.run(&["plan", "p", "--offline"]);
    says(&ran, 0, &["smoke_[0001-0100,0102-0240].vdb (new)", "smoke_[1-3].vdb (new)", "notes.txt"]);
    assert!(ran.out.lines().count() < 10, "{}", ran.out);
    // Only the new frame is to be sent.
    assert_eq!(home.run(&["hash", "p"]).code, 0);
    put(&home, "p/cache/smoke_0101.vdb", b"x");
    let ran = home.run(&["plan", "p", "--offline"]);
    says(&ran, 0, &["cache/smoke_0101.vdb (new)"]);
    let ran = home.run(&["plan", "p", "--offline", "--all"]);
    says(&ran, 0, &["smoke_[0001-0240].vdb (1 new, 239 unchanged)", "notes.txt (unchanged)"]);
}

#[test]
fn a_large_folder_is_a_short_answer_and_all_of_it_on_request() {
    let home = Home::new();
    for folder in 0..40 {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            put(&home, &format!("p/shots/{folder:02}/{name}.png"), b"x");
        }
    }
    let ran = home.run(&["plan", "p", "--offline"]);
    says(&ran, 0, &["320 files", "in 28 more folders", "others (new)"]);
    assert!(ran.out.lines().count() < 110, "{}", ran.out);
    let ran = home.run(&["plan", "p", "--offline", "--all"]);
    assert_eq!(ran.out.matches(".png (new)").count(), 320);
}

#[test]
fn why_tells_of_one_path() {
    let home = Home::new();
    for path in [
        "p/scene.blend",
        "p/scene.blend1",
        "p/tex/a.tmp",
        "p/tex/keep.tmp",
        "p/tex/sub/aux.png",
        "p/.git/config",
        "out/x",
    ] {
        put(&home, path, path.as_bytes());
    }
    put(&home, "p/tex/.farmhandignore", b"# ours\n*.tmp\n!keep.tmp\n");
    symlink("../out", home.path().join("p/link")).unwrap();
    symlink("nowhere", home.path().join("p/broken")).unwrap();
    let storage = ["--storage", "s"];
    assert_eq!(home.run(&["push", "p", storage[0], storage[1]]).code, 3);
    put(&home, "p/scene.blend", b"saved");

    let why = |path: &str| home.run(&["plan", "p", "--storage", "s", "--why", path]);
    let of_them = "p/tex/.farmhandignore";
    for (path, code, parts) in [
        ("scene.blend", 0, &["to send: the server does not have it, and it has changed"][..]),
        (
            "p/tex/keep.tmp",
            0,
            &["already there", "because of !keep.tmp in tex/.farmhandignore line 3"],
        ),
        ("tex/a.tmp", 0, &["ignored by *.tmp in tex/.farmhandignore line 2"]),
        ("scene.blend1", 0, &["ignored by the default *.blend[1-9]; --no-default-ignores"]),
        (".git/config", 0, &["ignored with its folder .git/ by the default .git/"]),
        ("link/x", 3, &["skipped with its folder link/: a link to a directory"]),
        ("broken", 3, &["skipped: a link to nowhere, which does not exist"]),
        ("tex", 0, &["a folder of 3 files", "0 to send", "3 already there"]),
        (
            "tex/../tex/sub/aux.png",
            0,
            &["already there", "will hurt: tex/sub/aux.png: AUX is a device"],
        ),
        (of_them, 0, &["already there"]),
        (".", 0, &["a folder of 4 files", "1 to send", "3 already there"]),
    ] {
        says(&why(path), code, parts);
    }
    for path in ["nothing", "out/x", "/"] {
        why(path).fails(4, &[path, "check the path"]);
    }
    let absolute = home.path().join("p/tex/a.tmp");
    let ran = home.run(&["plan", "p", "--offline", "--json", "--why", absolute.to_str().unwrap()]);
    let answer = ran.json();
    assert_eq!(answer["schema"], "farmhand.why/1");
    assert_eq!((&answer["verdict"], &answer["path"]), (&json!("ignored"), &json!("tex/a.tmp")));
    assert_eq!(
        answer["rule"],
        json!({ "pattern": "*.tmp", "file": home.path().join(of_them), "line": 2 })
    );
    let ran = home.run(&["plan", "p", "--storage", "s", "--json", "--why", "scene.blend"]).json();
    assert_eq!((&ran["verdict"], &ran["here"]), (&json!("file"), &json!("unchanged")));
    assert_eq!(ran["server"], "unknown");
}

#[test]
fn one_path_costs_the_hashing_of_one() {
    let home = Home::new();
    put(&home, "p/one", b"one");
    put(&home, "p/other", b"other");
    let why = home.run(&["plan", "p", "--storage", "s", "--why", "one"]);
    says(&why, 0, &["one: to send", "never hashed here before"]);
    let plan = home.run(&["plan", "p", "--offline", "--json"]).json();
    let expected = ["unchanged", "new"];
    assert_eq!([&plan["files"][0]["here"], &plan["files"][1]["here"]], expected);
}

#[test]
fn what_is_ignored_is_listed_with_its_rule() {
    let home = Home::new();
    for path in ["p/a.blend1", "p/a.blend2", "p/x/y.log", "p/.git/config", "p/a.blend"] {
        put(&home, path, b"x");
    }
    put(&home, "p/x/.farmhandignore", b"*.log\n");
    let plan = home.run(&["plan", "p", "--offline", "--json"]).json();
    let file = home.path().join("p/x/.farmhandignore");
    assert_eq!(
        plan["ignored"],
        json!([
            { "path": ".git", "is_dir": true, "rule": { "pattern": ".git/" } },
            { "path": "a.blend1", "is_dir": false, "rule": { "pattern": "*.blend[1-9]" } },
            { "path": "a.blend2", "is_dir": false, "rule": { "pattern": "*.blend[1-9]" } },
            {
                "path": "x/y.log",
                "is_dir": false,
                "rule": { "pattern": "*.log", "file": file, "line": 1 },
            },
        ])
    );
    let ran = home.run(&["plan", "p", "--offline"]);
    let ignored = [
        "2 files  by the default *.blend[1-9]",
        "1 folder  by the default .git/",
        "1 file  by *.log in x/.farmhandignore line 1",
    ];
    says(&ran, 0, &ignored);
    says(&home.run(&["plan", "p", "--offline", "--all"]), 0, &["a.blend2", ".git/\n", "x/y.log"]);
    let plan = home.run(&["plan", "p", "--offline", "--json", "--no-default-ignores"]).json();
    assert_eq!(plan["ignored"].as_array().unwrap().len(), 1);
}

#[test]
fn names_that_will_hurt_are_named() {
    let home = Home::new();
    let long = format!("p/{}/{}", "d".repeat(120), "f".repeat(120));
    for path in [
        "p/Tex/a.png",
        "p/tex/b.png",
        "p/u\u{308}.png",
        "p/\u{fc}.png",
        "p/nul.txt",
        "p/what?.png",
        "p/end.",
        "p/back\\slash",
        &long,
    ] {
        put(&home, path, b"x");
    }
    let names = |arguments: &[&str]| -> Vec<(String, Vec<String>)> {
        let ran = home.run(&[&["plan", "p", "--offline", "--json"], arguments].concat());
        assert_eq!(ran.code, 3, "{}", ran.err);
        let plan: Value = serde_json::from_str(&ran.out).unwrap();
        let name = |name: &Value| {
            let paths = name["paths"].as_array().unwrap().iter();
            let paths = paths.map(|path| path.as_str().unwrap().to_owned()).collect();
            (name["trouble"].as_str().unwrap().to_owned(), paths)
        };
        plan["names"].as_array().unwrap().iter().map(name).collect()
    };
    let expect = |trouble: &str, paths: &[&str]| {
        (trouble.to_owned(), paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
    };
    let mut expected = vec![
        expect("cannot_be_sent", &["back\\slash"]),
        expect("case_clash", &["Tex", "tex"]),
        expect("unicode_clash", &["u\u{308}.png", "\u{fc}.png"]),
        expect("too_long", &[&long[2..]]),
        expect("reserved", &["nul.txt"]),
        expect("bad_character", &["what?.png"]),
        expect("bad_end", &["end."]),
    ];
    // X:\p-20261123T195738Z\ and 241 characters.
    assert_eq!(names(&[]), expected);
    // X:\a\ and S:\jobs\twelve-chars\.
    expected.retain(|(trouble, _)| trouble != "too_long");
    assert_eq!(names(&["--as", "a"]), expected);
    assert_eq!(names(&["--as", "a", "--windows-root", "S:\\jobs\\and\\more\\"]).len(), 7);
    let ran = home.run(&["plan", "p", "--offline"]);
    let words = [
        "Tex and tex: one name on Windows and macOS",
        "nul.txt: NUL is a device on Windows",
        "back\\slash: ",
        "characters in the checkout",
    ];
    says(&ran, 3, &words);
}

#[test]
fn exit_codes_are_those_of_other_commands() {
    let home = Home::new();
    put(&home, "p/file", b"x");
    put(&home, "file", b"x");
    fs::create_dir(home.path().join("empty")).unwrap();
    home.run(&["plan", "missing"]).fails(4, &["missing does not exist"]);
    home.run(&["plan", "file"]).fails(2, &["file is a file"]);
    home.run(&["plan", "p", "--server", "farm:8080"]).fails(2, &["farm:8080", "http://"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let down = format!("http://127.0.0.1:{port}/");
    let ran = run(farmhand(home.path())
        .current_dir(home.path())
        .env("FARMHAND_UPLOAD_RETRIES", "0")
        .args(["plan", "p", "--server", &down]));
    ran.fails(5, &[&down, "check that it runs"]);
    assert_eq!(home.run(&["plan", "p", "--offline", "--server", &down]).code, 2);
    assert_eq!(home.run(&["plan", "p", "--as", "../up"]).code, 2);
    says(&home.run(&["plan", "empty", "--storage", "s"]), 0, &["0 files"]);
    symlink("nowhere", home.path().join("p/broken")).unwrap();
    let ran = home.run(&["plan", "p", "--storage", "s"]);
    says(&ran, 3, &["broken: a link to nowhere"]);
    // A folder need not be given: it is the one we are in.
    let ran = run(farmhand(home.path()).current_dir(home.path().join("p")).arg("plan"));
    says(&ran, 3, &["1 file ", "unchanged"]);
}

#[test]
fn control_characters_make_no_line_of_their_own() {
    let home = Home::new();
    put(&home, "p/line\nbreak\u{1b}[31m", b"x");
    put(&home, "p/folder\n/x.blend1", b"x");
    for arguments in [&[][..], &["--all"], &["--why", "line\nbreak\u{1b}[31m"]] {
        let ran = home.run(&[&["plan", "p", "--offline"], arguments].concat());
        says(&ran, 0, &["line\\nbreak\\u{1b}[31m"]);
        assert!(!ran.out.contains('\u{1b}') && !ran.out.contains("folder\n"), "{}", ran.out);
    }
}
