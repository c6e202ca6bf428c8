//! `farmhand doctor`, against servers and disks that are well and such as are not.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use farmhand::{
    server::{Access, Anonymous, FarmOptions, Options, Scope, Token, Tokens},
    store,
};
use serde_json::{Value, json};

use super::{
    cli::{Home, Ran, run},
    common::*,
};

impl Home {
    /// What doctor says of this server and these folders, as JSON, and the exit code.
    fn doctor(&self, arguments: &[&str], token: Option<&str>) -> (i32, Vec<Value>) {
        let mut command = farmhand(self.path());
        command.current_dir(self.path()).args(["doctor", "--json"]).args(arguments);
        command.envs(token.map(|token| ("FARMHAND_TOKEN", token)));
        let Ran { code, out, err } = run(&mut command);
        assert_eq!(err, "");
        let mut report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["schema"], "farmhand.doctor/1");
        let Value::Array(checks) = report["checks"].take() else { panic!("{report}") };
        for check in &checks {
            let keys: Vec<_> = check.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["name", "state", "found", "next"]);
            // Something to do, or nothing to be done.
            assert_eq!(check["next"].is_null(), check["state"] == "ok", "{check}");
        }
        let failed = checks.iter().any(|check| check["state"] == "fail");
        assert_eq!(code, i32::from(failed), "{checks:?}");
        (code, checks)
    }
}

/// The only check of this name, which has this state and says all this.
#[track_caller]
fn says(checks: &[Value], name: &str, state: &str, parts: &[&str]) {
    let found: Vec<_> = checks.iter().filter(|check| check["name"] == name).collect();
    let [check] = found[..] else { panic!("not one {name} in {checks:?}") };
    assert_eq!(check["state"], state, "{check}");
    let text = format!("{} {}", check["found"], check["next"]);
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

fn names(checks: &[Value]) -> Vec<&str> {
    checks.iter().map(|check| check["name"].as_str().unwrap()).collect()
}

#[test]
fn missing_job_command_is_a_warning() {
    let home = Home::new();
    let server = TestServer::with_farm(FarmOptions::default());
    let (code, checks) = home.doctor(&["--server", &server.url()], None);
    assert_eq!(code, 0);
    says(&checks, "jobs", "warn", &["neither a worker nor a command", "jobs.hook"]);
    let server = TestServer::with_farm(farm_with_command("exit 0"));
    let (_, checks) = home.doctor(&["--server", &server.url()], None);
    says(&checks, "jobs", "ok", &["is idle"]);
    // A server that takes no jobs.
    let server = TestServer::start();
    let (_, checks) = home.doctor(&["--server", &server.url()], None);
    assert!(!names(&checks).contains(&"jobs"));
}

/// A server that has one answer to everything; the head's lines but for the length, and the body.
fn one_answer(head: String, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer = move |stream: TcpStream| {
        let mut reader = BufReader::new(&stream);
        loop {
            let (mut line, mut length) = (String::new(), 0u64);
            loop {
                line.clear();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                    length = text.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
            let text = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            (&stream).write_all(text.as_bytes()).unwrap();
        }
    };
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    url
}

/// An address that nobody listens at.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/", listener.local_addr().unwrap())
}

#[test]
fn where_all_is_well_it_says_so_of_each_thing() {
    let home = Home::new();
    let project = home.project();
    // Nothing else changes the store meanwhile.
    let store = store::Options { index_chunks: false, ..store::Options::default() };
    let server = TestServer::with_store(Options::default(), store);
    let url = server.url();
    home.run(&["push", &project, "--server", &url]).fails_not();
    let before = tree(&server.storage());
    let (code, checks) = home.doctor(&[&project, "--server", &url], None);
    assert_eq!(code, 0);
    let expected = [
        "configuration",
        "server",
        "token",
        "clock",
        "encryption",
        "folder",
        "watch limits",
        "hash cache",
        "free space",
        "open files",
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .filter(|name| *name != "watch limits" || cfg!(target_os = "linux"))
        .collect();
    assert_eq!(names(&checks), expected);
    let version = format!("farmhand {}", env!("CARGO_PKG_VERSION"));
    says(&checks, "configuration", "ok", &["no file at", "config.toml"]);
    says(&checks, "server", "ok", &[&url, &version]);
    says(&checks, "token", "ok", &["asks for none"]);
    says(&checks, "clock", "ok", &["agree within"]);
    says(&checks, "encryption", "ok", &["on this machine"]);
    says(&checks, "hash cache", "ok", &["69 files in 1 folders"]);
    says(&checks, "folder", "ok", &[&project]);
    assert!(tree(&server.storage()) == before, "the store was changed");

    // The same for people: a line each.
    let ran = home.run(&["doctor", &project, "--server", &url]);
    let lines: Vec<_> = ran.out.lines().filter(|line| line.starts_with("ok    ")).collect();
    let warned = checks.iter().filter(|check| check["state"] != "ok").count();
    assert_eq!((ran.code, lines.len(), ran.err.as_str()), (0, expected.len() - warned, ""));
    assert!(lines[1].starts_with(&format!("ok    server: {url}")), "{}", ran.out);
}

#[test]
fn a_token_is_tried_and_never_shown() {
    let mut tokens = Tokens::default();
    let reader = Token::new("reader", [Scope::Read].into_iter().collect(), "right-secret").unwrap();
    tokens.add(reader).unwrap();
    let access = Arc::new(Access::new(Anonymous::Nowhere, tokens));
    let server = TestServer::with(Options { access, ..Options::default() });
    let (home, url) = (Home::new(), server.url());

    let (code, checks) = home.doctor(&["--server", &url], Some("right-secret"));
    assert_eq!(code, 0, "{checks:?}");
    says(&checks, "server", "ok", &["farmhand 0."]);
    says(&checks, "token", "ok", &["does not refuse it"]);

    let (code, checks) = home.doctor(&["--server", &url], Some("wrong-secret"));
    assert_eq!(code, 1);
    says(&checks, "server", "ok", &["is there"]);
    says(&checks, "token", "fail", &["refuses it", "FARMHAND_TOKEN", "token_file"]);

    let (code, checks) = home.doctor(&["--server", &url], None);
    assert_eq!(code, 1);
    says(&checks, "token", "fail", &["who has none", "FARMHAND_TOKEN"]);

    let in_path = format!("{url}/t/wrong-secret/");
    for token in [None, Some("wrong-secret")] {
        let ran = run(farmhand(home.path())
            .args(["doctor", "--server", &in_path])
            .envs(token.map(|token| ("FARMHAND_TOKEN", token))));
        assert_eq!(ran.code, 1);
        assert!(!ran.out.contains("secret") && !ran.err.contains("secret"), "{}", ran.out);
    }

    // One that cannot be read is said, and the rest is looked at.
    fs::write(home.path().join("bad"), "two words").unwrap();
    let mut command = farmhand(home.path());
    command.args(["doctor", "--json", "--server", &url]);
    let ran = run(command.env("FARMHAND_TOKEN_FILE", home.path().join("bad")));
    assert_eq!(ran.code, 1);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let checks = report["checks"].as_array().unwrap();
    says(checks, "server", "fail", &["token_file", "no token"]);
    says(checks, "hash cache", "ok", &[]);
}

#[test]
fn servers_that_are_none_are_told_apart() {
    let home = Home::new();
    let (code, checks) = home.doctor(&["--server", &nobody()], None);
    assert_eq!(code, 1);
    says(&checks, "server", "fail", &["cannot reach http://127.0.0.1:", "check that it runs"]);
    assert!(!names(&checks).contains(&"token") && !names(&checks).contains(&"clock"));

    let html = "<!doctype html><title>It works</title>";
    for status in ["200 OK", "404 Not Found", "405 Method Not Allowed"] {
        let url = one_answer(format!("HTTP/1.1 {status}\r\nContent-Type: text/html"), html);
        let (code, checks) = home.doctor(&["--server", &url], None);
        assert_eq!(code, 1, "{status}");
        says(&checks, "server", "fail", &[&url, "no Shaman server", "Shaman storage"]);
        assert!(!names(&checks).contains(&"token"), "{checks:?}");
    }
    // JSON, and even of the right form, but no answer to what was asked.
    let wrong = r#"{"files":[{"sha":"00","size":1,"path":"x","status":"unknown"}]}"#;
    for body in [r#"{"hello":"world"}"#, wrong] {
        let url = one_answer("HTTP/1.1 200 OK\r\nContent-Type: application/json".into(), body);
        let (_, checks) = home.doctor(&["--server", &url], None);
        says(&checks, "server", "fail", &["no Shaman server"]);
    }
    let url = one_answer("HTTP/1.1 503 Service Unavailable".into(), "");
    let (_, checks) = home.doctor(&["--server", &url], None);
    says(&checks, "server", "fail", &["503", "when the server is back"]);
}

/// A plain Shaman server, that says of itself only what time it is.
#[test]
fn a_clock_that_is_off_is_a_warning() {
    let home = Home::new();
    let shaman = |seconds: i64| {
        let now = SystemTime::now();
        let apart = Duration::from_secs(seconds.unsigned_abs());
        let date = httpdate::fmt_http_date(if seconds < 0 { now - apart } else { now + apart });
        one_answer(format!("HTTP/1.1 200 OK\r\nDate: {date}"), r#"{"files":[]}"#)
    };
    for (seconds, way) in [(3600, "behind"), (-3600, "ahead of")] {
        let (code, checks) = home.doctor(&["--server", &shaman(seconds)], None);
        assert_eq!(code, 0);
        says(&checks, "server", "ok", &["speaks Shaman; it answered"]);
        says(&checks, "clock", "warn", &[way, "NTP"]);
    }
    let (_, checks) = home.doctor(&["--server", &shaman(0)], None);
    says(&checks, "clock", "ok", &[]);
    // No time, nothing to say of it.
    let url = one_answer("HTTP/1.1 200 OK".into(), r#"{"files":[]}"#);
    let (code, checks) = home.doctor(&["--server", &url], None);
    assert!(code == 0 && !names(&checks).contains(&"clock"), "{checks:?}");
}

#[test]
fn a_server_cannot_write_to_the_terminal() {
    let home = Home::new();
    let body = "{\"files\":[],\"name\":\"a\\u001b[2Jb\\nok    token: fine\",\"version\":\"1\"}";
    let url = one_answer("HTTP/1.1 200 OK".into(), body);
    let ran = home.run(&["doctor", "--server", &url]);
    assert!(ran.out.contains("[2Jb") && !ran.out.contains('\u{1b}'), "{:?}", ran.out);
    assert!(!ran.out.contains("\nok    token: fine"), "{:?}", ran.out);
}

#[test]
fn folders_that_cannot_be_used_are_named() {
    let home = Home::new();
    let (server, project) = (TestServer::start(), home.project());
    let arguments = |dir| ["--server".to_owned(), server.url(), dir];
    let missing = home.path().join("missing").to_str().unwrap().to_owned();
    let file = format!("{project}/scene.blend");
    for (dir, says_it) in [(missing, "does not exist"), (file, "is no folder")] {
        let arguments = arguments(dir.clone());
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (code, checks) = home.doctor(&arguments, None);
        assert_eq!(code, 1);
        says(&checks, "folder", "fail", &[&dir, says_it]);
        says(&checks, "server", "ok", &[]);
    }
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read everything.
    if fs::read_dir(&closed).is_err() {
        let (_, checks) = home.doctor(&[closed.to_str().unwrap()], None);
        says(&checks, "folder", "fail", &["cannot be read", "permissions"]);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_folders_and_servers_of_the_configuration_are_looked_at() {
    let home = Home::new();
    let (one, other) = (TestServer::start(), TestServer::start());
    home.project();
    let config = home.path().join("farm.toml");
    let folders = json!(["project", { "path": "later", "server": other.url() }]);
    let folders = toml::Value::try_from(folders).unwrap();
    fs::write(&config, format!("server = {:?}\nwatch.folders = {folders}\n", one.url())).unwrap();
    let (code, checks) = home.doctor(&["--config", config.to_str().unwrap()], None);
    assert_eq!(code, 0, "{checks:?}");
    says(&checks, "configuration", "ok", &["farm.toml"]);
    let of = |name: &str| checks.iter().filter(|check| check["name"] == name).collect::<Vec<_>>();
    assert_eq!(of("server").len(), 2);
    let folders = of("folder");
    assert_eq!((&folders[0]["state"], &folders[1]["state"]), (&json!("ok"), &json!("warn")));
    assert!(folders[1]["found"].as_str().unwrap().contains("waits for it"), "{checks:?}");
    // Named, it should be there.
    let (code, _) = home.doctor(&["later", "--config", config.to_str().unwrap()], None);
    assert_eq!(code, 1);

    fs::write(&config, "watch.folders = [\"project\"]\n").unwrap();
    let (_, checks) = home.doctor(&["--config", config.to_str().unwrap()], None);
    says(&checks, "server", "warn", &["does not start"]);
}

#[test]
fn a_corrupt_cache_is_a_warning_and_is_left_to_the_next_scan() {
    let home = Home::new();
    let project = home.project();
    let server = TestServer::start();
    home.run(&["hash", &project]).fails_not();
    let dir = home.path().join("cache/farmhand");
    let file = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "sqlite"))
        .unwrap();
    let mut content = fs::read(&file).unwrap();
    content[4096..].fill(0xa5);
    fs::write(&file, &content).unwrap();
    let (code, checks) = home.doctor(&[&project, "--server", &server.url()], None);
    assert_eq!(code, 0);
    says(&checks, "hash cache", "warn", &[file.to_str().unwrap(), "damaged", "sets it aside"]);
    assert!(fs::read(&file).unwrap() == content, "it was written to");

    assert_eq!(home.run(&["hash", &project]).code, 0);
    let (_, checks) = home.doctor(&[&project, "--server", &server.url()], None);
    says(&checks, "hash cache", "ok", &["69 files"]);
}

#[test]
fn without_a_server_the_embedded_store_is_looked_at() {
    let home = Home::new();
    let project = home.project();
    let (code, checks) = home.doctor(&[], None);
    assert_eq!(code, 0);
    says(&checks, "target", "warn", &["neither a server nor a store", "--server", "--storage"]);
    assert!(!names(&checks).contains(&"store"));
    let (_, checks) = home.doctor(&["--storage", "elsewhere"], None);
    says(&checks, "store", "warn", &["elsewhere is not there", "mount the disk"]);
    assert!(!home.path().join("elsewhere").exists());

    home.run(&["push", &project, "--storage", "store"]).fails_not();
    let before = tree(&home.path().join("store"));
    let (code, checks) = home.doctor(&["--storage", "store"], None);
    assert_eq!(code, 0);
    says(&checks, "store", "ok", &["can be written to"]);
    says(&checks, "store space", "ok", &["256.0 MiB of that are kept"]);
    says(&checks, "link mode", "ok", &["symlink works"]);
    assert!(tree(&home.path().join("store")) == before, "it was changed");

    let mut command = farmhand(home.path());
    command.current_dir(home.path()).args(["doctor", "--json", "--storage", "store"]);
    let ran = run(command.env("FARMHAND_STORE_RESERVE", "100%"));
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, 1);
    says(report["checks"].as_array().unwrap(), "store space", "fail", &["make room"]);

    let serving = ServerProcess::start(home.path(), &home.path().join("store"), &[]);
    let (code, checks) = home.doctor(&["--storage", "store"], None);
    assert_eq!(code, 0);
    says(&checks, "store", "warn", &["in use", "--server"]);
    drop(serving);

    fs::write(home.path().join("file"), "").unwrap();
    let (code, checks) = home.doctor(&["--storage", "file"], None);
    assert_eq!(code, 1);
    says(&checks, "store", "fail", &["no directory", "--storage"]);
}
