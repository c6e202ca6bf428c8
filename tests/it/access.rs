//! Who may do what, asked of real servers.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use farmhand::server::{Access, Anonymous, Options, Scope, Token, Tokens};
use serde_json::{Value, json};

use super::common::*;

const STATUS: &str =
    "/api/v3/shaman/files/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0";
const REQUIREMENTS: &str = "/api/v3/shaman/checkout/requirements";
const CREATE: &str = "/api/v3/shaman/checkout/create";

/// A server with one token for each scope, which has the scope's name and `-token` as its text.
fn guarded(anonymous: Anonymous) -> TestServer {
    let mut tokens = Tokens::default();
    for scope in Scope::ALL {
        let text = format!("{scope}-token");
        let token = Token::new(scope.name(), [scope].into_iter().collect(), &text).unwrap();
        tokens.add(token).unwrap();
    }
    let access = Arc::new(Access::new(anonymous, tokens));
    TestServer::with(Options { access, ..Options::default() })
}

/// The whole answer to a request without a body.
fn answer(address: SocketAddr, method: &str, path: &str, headers: &str) -> String {
    let mut stream = Connection::new(address).stream;
    let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn status(address: SocketAddr, method: &str, path: &str, headers: &str) -> u16 {
    let text = answer(address, method, path, headers);
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("it was killed"), text(stdout), text(stderr))
}

/// A token made by the program, in this file.
fn new_token(file: &Path, name: &str, scopes: &str) -> String {
    let arguments = ["token", "new", "--name", name, "--scope", scopes, "--file"];
    let (code, out, err) = run(farmhand(file.parent().unwrap()).args(arguments).arg(file));
    assert_eq!((code, err.as_str()), (0, ""));
    out.trim_end().to_owned()
}

/// A folder with one file that no other test has.
fn small_project(home: &Path) -> PathBuf {
    let project = home.join("p");
    fs::create_dir_all(&project).unwrap();
    fs::write(project.join("file"), random(1000)).unwrap();
    project
}

#[test]
fn a_token_allows_what_it_lists_and_nothing_else() {
    let server = guarded(Anonymous::Nowhere);
    for (method, path, need) in [
        ("GET", STATUS, Scope::Read),
        ("HEAD", STATUS, Scope::Read),
        ("POST", REQUIREMENTS, Scope::Read),
        ("GET", "/farmhand/v1/anything", Scope::Read),
        ("GET", "/metrics", Scope::Read),
        ("POST", STATUS, Scope::Upload),
        ("POST", CREATE, Scope::Checkout),
        ("POST", "/farmhand/v1/anything", Scope::Admin),
        ("DELETE", "/farmhand/v1/anything", Scope::Admin),
        ("GET", "/farmhand/v1/checkouts", Scope::Read),
        ("POST", "/farmhand/v1/verify", Scope::Read),
        ("GET", "/farmhand/v1/capabilities", Scope::Read),
        ("POST", "/farmhand/v1/batch", Scope::Upload),
        ("POST", "/farmhand/v1/chunks/known", Scope::Upload),
        ("POST", "/farmhand/v1/unfinished/0/1", Scope::Upload),
        ("DELETE", "/farmhand/v1/unfinished/0/1", Scope::Upload),
        ("POST", "/farmhand/v1/unfinished/0/1/chunks", Scope::Upload),
        ("POST", "/farmhand/v1/gc", Scope::Admin),
        ("POST", "/farmhand/v1/scrub", Scope::Admin),
        ("DELETE", "/farmhand/v1/checkouts?path=x", Scope::Admin),
        ("PUT", "/farmhand/v1/pins/x", Scope::Admin),
    ] {
        let ask = |prefix: &str, headers: &str| {
            answer(
                server.addr,
                method,
                &format!("{prefix}{path}"),
                &format!("Host: x\r\n{headers}"),
            )
        };
        let none = ask("", "");
        assert!(none.starts_with("HTTP/1.1 401 "), "{method} {path}: {none}");
        assert!(none.contains("\r\nwww-authenticate: Bearer\r\n"), "{none}");
        if method != "HEAD" {
            let body: Value = serde_json::from_str(none.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!(body["code"], 401);
            let says = format!("a token with the scope {need}");
            assert!(body["message"].as_str().unwrap().contains(&says), "{body}");
        }
        for scope in Scope::ALL {
            for (prefix, header) in [
                (format!("/t/{scope}-token"), String::new()),
                (format!("/%74/{scope}%2Dtoken"), String::new()),
                (String::new(), format!("Authorization: Bearer {scope}-token\r\n")),
            ] {
                let given = ask(&prefix, &header);
                let code = given.split(' ').nth(1).unwrap();
                let refused = matches!(code, "401" | "403");
                assert_eq!(refused, scope != need, "{method} {prefix}{path} {header}: {given}");
                if scope != need && method != "HEAD" {
                    assert!(
                        code == "403" && given.contains(&format!("the scope {need} is missing"))
                    );
                    assert!(!given.contains("www-authenticate"), "{given}");
                }
            }
        }
        for (prefix, header) in [
            ("/t/nonsense", ""),
            ("/t//", ""),
            ("", "Authorization: Bearer nonsense\r\n"),
            ("", "Authorization: Bearer\r\n"),
            ("/t/nonsense", "Authorization: Bearer admin-token\r\n"),
            ("/t/admin-token", "Authorization: Bearer nonsense\r\n"),
        ] {
            assert!(ask(prefix, header).starts_with("HTTP/1.1 401 "), "{method} {prefix} {header}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(server.addr, "GET", path, "Host: x\r\n"), 200);
        assert_eq!(status(server.addr, "GET", &format!("/t/read-token{path}"), "Host: x\r\n"), 200);
        // Whoever gives a token relies on it.
        assert_eq!(status(server.addr, "GET", &format!("/t/nonsense{path}"), "Host: x\r\n"), 401);
    }
    assert_eq!(status(server.addr, "GET", "/no/such/thing", "Host: x\r\n"), 404);
}

/// The add-on, unmodified: its Manager URL is `http://host:8080/t/TOKEN/`.
#[test]
fn an_addon_with_a_token_in_its_url_is_served() {
    let mut tokens = Tokens::default();
    let scopes = [Scope::Read, Scope::Upload, Scope::Checkout].into_iter().collect();
    tokens.add(Token::new("blender", scopes, "secret").unwrap()).unwrap();
    let access = Arc::new(Access::new(Anonymous::Nowhere, tokens));
    let server = TestServer::with(Options { access, ..Options::default() });
    let content = random(100_000);
    let mut addon = server.connect();
    let agent = "User-Agent: Flamenco/3.9-beta1 (Blender add-on)\r\n";
    let json_headers = format!("{agent}Content-Type: application/json\r\n");
    let blob = format!("/t/secret/api/v3/shaman/files/{}", address(&content));
    let body = json!({ "checkoutPath": "demo", "files": [file(&content, "a.blend")] }).to_string();
    let needed = addon.post(&format!("/t/secret{REQUIREMENTS}"), &json_headers, body.as_bytes());
    assert_eq!(needed.json()["files"].as_array().unwrap().len(), 1);
    assert_eq!(addon.get(&blob).json()["status"], "unknown");
    // A file's name that is folded, and a body behind it that nobody reads before the answer.
    let folded = format!("{agent}X-Shaman-Original-Filename: =?utf-8?q?a?=\r\n =?utf-8?q?b?=\r\n");
    assert_eq!(addon.post(&blob, &folded, &content).status, 204);
    assert_eq!(addon.post(&blob, &folded, &content).status, 208);
    let made = addon.post(&format!("/t/secret{CREATE}"), &json_headers, body.as_bytes());
    assert_eq!(made.json()["checkoutPath"], "demo");
    assert!(fs::read(server.storage().join("jobs/demo/a.blend")).unwrap() == content);
}

#[test]
fn refusals_are_seen_by_clients_that_are_still_sending() {
    let server = guarded(Anonymous::Nowhere);
    let content = random(16 << 20);
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    for round in 0..8 {
        let mut connection = server.connect();
        for (path, headers, expected) in [
            (path.clone(), "", 401),
            (format!("/t/read-token{path}"), "", 403),
            (path.clone(), "Authorization: Bearer nonsense\r\n", 401),
        ] {
            connection.send(&post_head(&path, headers, content.len() as u64));
            connection.send(&content);
            connection.answer().is_error(expected, "token");
            assert_eq!(connection.get("/healthz").status, 200, "round {round}");
        }
    }
    assert_eq!(server.temp_files(), 0);
    let stored = server.connect().get(&format!("/t/read-token{path}"));
    assert_eq!(stored.json()["status"], "unknown");
}

#[test]
fn what_came_through_a_proxy_does_not_count_as_this_machine() {
    let local = "Host: localhost\r\n";
    for (anonymous, read, admin) in
        [(Anonymous::Loopback, 401, 401), (Anonymous::Anywhere, 200, 401)]
    {
        let server = guarded(anonymous);
        assert_eq!(status(server.addr, "GET", STATUS, local), 200);
        // There is nothing of that name; who may not, is not told.
        assert_eq!(status(server.addr, "POST", "/farmhand/v1/nothing", local), 404);
        for proxy in [
            "Forwarded: for=192.0.2.1",
            "X-Forwarded-For: 127.0.0.1",
            "x-real-ip: 127.0.0.1",
            "Via: 1.1 proxy",
            "Via:",
        ] {
            let headers = format!("{local}{proxy}\r\n");
            assert_eq!(status(server.addr, "GET", STATUS, &headers), read, "{proxy}");
            assert_eq!(status(server.addr, "POST", "/farmhand/v1/x", &headers), admin, "{proxy}");
            let headers = format!("{headers}Authorization: Bearer read-token\r\n");
            assert_eq!(status(server.addr, "GET", STATUS, &headers), 200, "{proxy}");
        }
    }
}

#[test]
fn a_web_page_cannot_administer() {
    let server = TestServer::start();
    let post = |headers: &str| status(server.addr, "POST", "/farmhand/v1/nothing", headers);
    for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:1"] {
        assert_eq!(post(&format!("Host: {host}\r\n")), 404, "{host}");
    }
    for headers in [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example:8080\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
    ] {
        assert_eq!(post(headers), 403, "{headers}");
    }
    // Reading and sending is for the machine's programs, whatever they call it.
    assert_eq!(status(server.addr, "GET", STATUS, "Host: workstation\r\n"), 200);
}

#[test]
fn a_server_without_tokens_knows_none() {
    let server = TestServer::start();
    assert_eq!(status(server.addr, "GET", STATUS, "Host: x\r\n"), 200);
    assert_eq!(status(server.addr, "GET", &format!("/t/x{STATUS}"), "Host: x\r\n"), 401);
}

#[test]
fn tokens_are_made_listed_and_kept_as_hashes() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens.toml");
    let farm =
        |arguments: &[&str]| run(farmhand(home.path()).current_dir(home.path()).args(arguments));
    let blender = new_token(&tokens, "blender", "read,upload,checkout");
    assert_eq!(fs::metadata(&tokens).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, out, _) = farm(&[
        "token",
        "new",
        "--name",
        "ops",
        "--scope",
        "admin",
        "--file",
        "tokens.toml",
        "--json",
    ]);
    let ops: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &ops["scopes"], &ops["name"]), (0, &json!(["admin"]), &json!("ops")));
    let text = fs::read_to_string(&tokens).unwrap();
    for token in [&blender, ops["token"].as_str().unwrap()] {
        assert!(token.len() == 46 && token.starts_with("fh_"), "{token}");
        assert!(!text.contains(token) && text.contains(&sha(token.as_bytes())));
    }
    let (code, out, err) = farm(&["token", "list", "--file", "tokens.toml"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "blender  read,upload,checkout\nops  admin\n");
    let (_, out, _) = farm(&["token", "list", "--file", "tokens.toml", "--json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list["tokens"][1], json!({ "name": "ops", "scopes": ["admin"] }));

    // Without a file, what is to be added is shown, and it is what would have been added.
    let (code, out, err) = farm(&["token", "new", "--name", "other", "--scope", "read"]);
    assert_eq!(code, 0);
    assert!(Tokens::parse(&err).unwrap().find(out.trim_end().as_bytes()).is_some(), "{err}");

    let new = |name: &str, scope: &str, file: &str| {
        let (code, out, err) =
            farm(&["token", "new", "--name", name, "--scope", scope, "--file", file]);
        assert_eq!(out, "", "a token that the file does not have");
        (code, err)
    };
    let (code, err) = new("ops", "read", "tokens.toml");
    assert!(code == 2 && err.contains("one named \"ops\" already"), "{err}");
    assert_eq!(fs::read_to_string(&tokens).unwrap(), text);
    assert_eq!(new("x", "everything", "tokens.toml").0, 2);
    assert_eq!(new("", "read", "tokens.toml").0, 2);
    let (code, err) = new("x", "read", "no/such/dir");
    assert!(code == 1 && err.contains("no/such/dir"), "{err}");
    // What cannot be added to without breaking it is left alone.
    let inline =
        format!("token = [{{ name = \"a\", scopes = [\"read\"], sha256 = \"{}\" }}]", sha(b"a"));
    for broken in [inline.as_str(), "nonsense"] {
        fs::write(home.path().join("other.toml"), broken).unwrap();
        assert_eq!(new("x", "read", "other.toml").0, 2);
        assert_eq!(fs::read_to_string(home.path().join("other.toml")).unwrap(), broken);
    }
}

/// Two that add to a file do not miss each other: the second waits, and sees what the first has added.
#[cfg(target_os = "linux")]
#[test]
fn a_file_of_tokens_has_one_writer_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("tokens.toml");
    new_token(&path, "first", "read");
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.lock().unwrap();
    let mut child = farmhand(home.path())
        .args(["token", "new", "--name", "same", "--scope", "read", "--file"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = format!(" {} ", child.id());
    until(|| {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let waits = locks.lines().any(|line| line.contains("->") && line.contains(&pid));
        waits || child.try_wait().unwrap().is_some()
    });
    let other = Token::new("same", [Scope::Read].into_iter().collect(), "other").unwrap();
    file.write_all(other.to_string().as_bytes()).unwrap();
    file.unlock().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert_eq!(Tokens::read(&path).unwrap().len(), 2);
}

#[test]
fn a_server_does_not_start_with_access_that_makes_no_sense() {
    let home = tempfile::tempdir().unwrap();
    let serve = |arguments: &[&str]| {
        let listen = ["serve", "--listen", "127.0.0.1:0", "--storage", "s"];
        let (code, out, err) =
            run(farmhand(home.path()).current_dir(home.path()).args(listen).args(arguments));
        assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1), "{arguments:?} {err}");
        err
    };
    let broken = home.path().join("broken.toml");
    for (text, says) in [
        ("[[token]]\nname = \"fh_secret\"", "line 2: token 1: name"),
        (
            "[[token]]\nname = \"x\"\ntoken = \"fh_secret\"",
            "line 3: token 1: there is a key that is none",
        ),
        ("[[token]]\nscopes = [\"fh_secret\"]", "line 2: token 1: scopes"),
        ("fh_secret", "line 1"),
    ] {
        fs::write(&broken, text).unwrap();
        let err = serve(&["--tokens", "broken.toml"]);
        assert!(err.contains("broken.toml") && err.contains(says), "{err}");
        assert!(!err.contains("fh_secret"), "{err}");
    }
    assert!(serve(&["--tokens", "none.toml"]).contains("cannot read the tokens in none.toml"));
    assert!(serve(&["--anonymous", "nowhere"]).contains("nobody could do anything"));
    assert!(serve(&["--anonymous", "somewhere"]).contains("--anonymous somewhere"));
    assert!(!home.path().join("s").exists(), "a store was made for nothing");
}

#[test]
fn with_tokens_or_for_everybody_other_machines_can_be_listened_to() {
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens.toml");
    new_token(&tokens, "x", "read");
    let config = home.path().join("farmhand.toml");
    // In a configuration file, paths are relative to it.
    for access in ["tokens = \"tokens.toml\"", "anonymous = \"anywhere\""] {
        fs::write(
            &config,
            format!("[serve]\nlisten = [\"127.0.0.1:0\", \"0.0.0.0:0\"]\n{access}\n"),
        )
        .unwrap();
        let mut server = farmhand(home.path())
            .args(["serve", "--storage", "s", "--config"])
            .arg(&config)
            .current_dir(home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut urls = String::new();
        let mut out = server.stdout.take().unwrap();
        until(|| {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "it ended: {urls}");
            urls.push(byte[0].into());
            urls.matches('\n').count() == 2
        });
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(urls.contains("http://0.0.0.0:"), "{urls}");
    }
}

#[test]
fn tokens_are_read_again_when_the_server_is_told_to() {
    let home = tempfile::tempdir().unwrap();
    let (tokens, log) = (home.path().join("tokens.toml"), home.path().join("log"));
    let kept = new_token(&tokens, "kept", "read,upload");
    let only_kept = fs::read_to_string(&tokens).unwrap();
    let revoked = new_token(&tokens, "revoked", "read,upload");
    let server = ServerProcess::logging(
        home.path(),
        &home.path().join("s"),
        &["--anonymous", "nowhere", "--tokens", tokens.to_str().unwrap()],
        &log,
    );
    let logged = |says: &str| until(|| fs::read_to_string(&log).unwrap().contains(says));
    let read = |token: &str| {
        status(
            server.address(),
            "GET",
            STATUS,
            &format!("Host: x\r\nAuthorization: Bearer {token}\r\n"),
        )
    };
    assert_eq!((read(&kept), read(&revoked)), (200, 200));
    let content = random(1_000_000);
    let mut under_way = server.connect();
    under_way.half_upload(&content, &format!("Authorization: Bearer {revoked}\r\n"));
    let uploading = home.path().join("s/file-store/uploading");
    until(|| fs::read_dir(&uploading).unwrap().count() == 1);

    fs::write(&tokens, &only_kept).unwrap();
    server.hang_up();
    until(|| read(&revoked) == 401);
    logged("read 1 tokens from");
    assert_eq!(read(&kept), 200);
    assert_eq!(under_way.other_half(&content).status, 204, "what was under way is not disturbed");
    assert_eq!(under_way.upload(&content, "").status, 401, "the next request is");

    fs::write(&tokens, "[[token]]\nname = \"kept\"\n").unwrap();
    server.hang_up();
    logged("the tokens remain as they were");
    logged("line 1: token 1: it has no scopes");
    assert_eq!(read(&kept), 200);
    fs::remove_file(&tokens).unwrap();
    server.hang_up();
    logged("cannot read the tokens");
    assert_eq!((read(&kept), read(&revoked)), (200, 401));

    let fresh = new_token(&tokens, "fresh", "read");
    server.hang_up();
    until(|| read(&fresh) == 200);
    assert_eq!(read(&kept), 401);
}

/// Everything that a token may come near is looked through for it: all logs at their most talkative, all
/// output of server and client, all answers, and the store.
#[test]
fn a_token_is_never_shown() {
    let home = tempfile::tempdir().unwrap();
    let (tokens, log) = (home.path().join("tokens.toml"), home.path().join("log"));
    let token = new_token(&tokens, "artist", "read,upload,checkout");
    let reader = new_token(&tokens, "reader", "read");
    let storage = home.path().join("s");
    let server = ServerProcess::logging(
        home.path(),
        &storage,
        &["--anonymous", "nowhere", "--tokens", tokens.to_str().unwrap(), "-vv"],
        &log,
    );
    let unknown = "fh_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let made_up = "hand-made-token";
    let mut seen = Vec::new();

    // Requests, good and bad.
    for secret in [&token, &reader, unknown, made_up] {
        let encoded: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for path in [
            format!("/t/{secret}{STATUS}"),
            format!("/t/{secret}"),
            format!("/t/{secret}/no/such/thing"),
            format!("/t/{secret}/api/v3/shaman/files/short/1"),
            format!("/t/{secret}/t/{secret}/x"),
            format!("/t/{secret}?x"),
            format!("//t/{secret}/x"),
            format!("/x/t/{secret}/x"),
            format!("/%74/{encoded}{STATUS}"),
            format!("/%74/{encoded}/x"),
            format!("/%2574/{encoded}/x"),
            format!("/t%2F{secret}/x"),
            format!("/api/v3/shaman/files/t/{secret}"),
            format!("/api/v3/shaman/files/x/t/{secret}"),
            format!("http://host/t/{secret}{STATUS}"),
        ] {
            for method in ["GET", "POST", "DELETE"] {
                seen.push(answer(server.address(), method, &path, "Host: x\r\n"));
            }
        }
        for path in [STATUS, CREATE, "/farmhand/v1/x", "/no/such/thing"] {
            let headers = format!("Host: x\r\nAuthorization: Bearer {secret}\r\n");
            seen.push(answer(server.address(), "POST", path, &headers));
        }
    }
    assert!(seen.iter().any(|answer| answer.starts_with("HTTP/1.1 200")));

    // Clients, at their most talkative.
    let project = small_project(home.path());
    let project = project.to_str().unwrap();
    let url = |secret: &str| format!("{}t/{secret}/", server.url);
    let gone = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        format!("http://127.0.0.1:{port}/t/{token}/")
    };
    for (environment, arguments, code) in [
        (None, vec!["checkout", project, "--server", &url(&token)], 0),
        (Some(&token), vec!["checkout", project, "--server", &server.url], 0),
        (Some(&token), vec!["push", project, "--server", &url(&token), "--json"], 0),
        (None, vec!["push", project, "--server", &url(unknown)], 6),
        (None, vec!["checkout", project, "--server", &url(&reader)], 6),
        (Some(&reader), vec!["checkout", project, "--server", &server.url], 6),
        (None, vec!["push", project, "--server", &format!("{}x/", url(&token))], 2),
        (None, vec!["push", project, "--server", &url(&token).replace("http://", "")], 2),
        (None, vec!["push", project, "--server", &gone], 5),
        (None, vec!["conformance", &gone], 5),
        (None, vec!["conformance", &url(&token)], 0),
        (Some(&token), vec!["conformance", &server.url, "--json"], 0),
        (None, vec!["conformance", &url(&reader), "--json"], 1),
        (Some(&token), vec!["config", "show"], 0),
        (Some(&token), vec!["config", "show", "--json"], 0),
        (Some(&token), vec!["config", "check"], 0),
    ] {
        let mut command = farmhand(home.path());
        command.args(&arguments).arg("-vv").env("FARMHAND_LOG", "trace");
        command.env("FARMHAND_UPLOAD_RETRIES", "1");
        command.env("FARMHAND_SERVER", url(&token));
        if let Some(token) = environment {
            command.env("FARMHAND_TOKEN", token);
        }
        let (seen_code, out, err) = run(&mut command);
        assert_eq!(seen_code, code, "{arguments:?}: {err}");
        if code == 6 {
            assert!(err.contains("FARMHAND_TOKEN"), "{err}");
        }
        if code == 5 || code == 6 && environment.is_none() {
            assert!(err.contains("/t/…/"), "{err}");
        }
        seen.extend([out, err]);
    }
    seen.push(fs::read_to_string(&log).unwrap());
    assert!(seen.last().unwrap().contains("as{token=\"artist\"}"), "a request's token has a name");
    assert!(seen.last().unwrap().contains("refused"));
    for entry in walkdir::WalkDir::new(&storage).into_iter().map(Result::unwrap) {
        if entry.file_type().is_file() {
            seen.push(String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned());
        }
    }
    for secret in [&token, &reader, unknown, made_up] {
        // Without what may be left of it when it is cut or encoded.
        let core = &secret[4..secret.len().min(30)];
        let encoded: String = core.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for text in &seen {
            for line in text.lines() {
                assert!(!line.contains(core) && !line.contains(&encoded), "{line}");
            }
        }
    }
}

#[test]
fn settings_with_a_token_do_not_show_it() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("farmhand.toml");
    let show = |arguments: &[&str]| {
        run(farmhand(home.path()).args(["config", "show", "--config"]).arg(&config).args(arguments))
    };
    fs::write(&config, "server = \"http://farm/t/s3cret/\"\ntoken = \"s3cret\"\n").unwrap();
    let (code, text, _) = show(&[]);
    assert!(code == 0 && text.contains("# token = \"(set)\"  # file"), "{text}");
    assert!(text.contains("server = \"http://farm/t/…/\""), "{text}");
    let (_, json, _) = show(&["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["settings"]["token"]["value"], "(set)");
    assert!(!text.contains("s3cret") && !json.to_string().contains("s3cret"));
    for broken in [
        "token = s3cret",
        "token = [\"s3cret\"]",
        "token = \"s3cret",
        "tokn = \"s3cret\"\ntoken = 1",
        "server = http://farm/t/s3cret/",
        "upload = { token = \"s3cret\" }",
    ] {
        fs::write(&config, broken).unwrap();
        let (code, _, err) = show(&[]);
        assert!(code == 2 && err.contains("farmhand.toml"), "{err}");
        if !broken.starts_with("tokn") {
            assert!(!err.contains("s3cret"), "{err}");
        }
    }
}

#[test]
fn a_client_takes_its_token_from_a_setting_or_a_file() {
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens.toml");
    let token = new_token(&tokens, "artist", "read,upload,checkout");
    let server = ServerProcess::start(
        home.path(),
        &home.path().join("s"),
        &["--anonymous", "nowhere", "--tokens", tokens.to_str().unwrap()],
    );
    let project = small_project(home.path());
    let config = home.path().join("farmhand.toml");
    fs::write(home.path().join("token.txt"), format!("{token}\nsecond line\n")).unwrap();
    fs::write(home.path().join("wrong.txt"), "wrong\n").unwrap();
    fs::write(home.path().join("empty.txt"), "\n").unwrap();
    let push = |settings: &str, environment: Option<(&str, &str)>| {
        fs::write(&config, format!("server = \"{}\"\n{settings}", server.url)).unwrap();
        let mut command = farmhand(home.path());
        command.arg("push").arg(&project).arg("--config").arg(&config);
        let (code, _, err) = run(command.envs(environment));
        assert!(!err.contains(&token), "{err}");
        (code, err)
    };
    let (code, err) = push("", None);
    assert_eq!(code, 6);
    assert!(err.contains("needs a token") && err.contains("FARMHAND_TOKEN"), "{err}");
    assert_eq!(push(&format!("token = \"{token}\"\n"), None).0, 0);
    assert_eq!(push("token_file = \"token.txt\"\n", None).0, 0);
    assert_eq!(push("token_file = \"wrong.txt\"\n", None).0, 6);
    assert_eq!(push("token_file = \"wrong.txt\"\n", Some(("FARMHAND_TOKEN", &token))).0, 0);
    let file = home.path().join("token.txt");
    let file = Some(("FARMHAND_TOKEN_FILE", file.to_str().unwrap()));
    assert_eq!(push("token = \"wrong\"\n", file).0, 0);
    assert_eq!(push("token = \"wrong\"\ntoken_file = \"token.txt\"\n", None).0, 6);
    let (code, err) = push("token_file = \"empty.txt\"\n", None);
    assert!(code == 2 && err.contains("empty.txt") && err.contains("no token"), "{err}");
    let (code, err) = push("token_file = \"none.txt\"\n", None);
    assert!(code == 2 && err.contains("none.txt"), "{err}");
    let (code, err) = push("token = \"two words\"\n", None);
    assert!(code == 2 && err.contains("the setting token") && !err.contains("two words"), "{err}");
}

#[test]
fn who_looks_after_a_store_from_elsewhere_needs_a_token_for_that() {
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens.toml");
    let reader = new_token(&tokens, "artist", "read,upload,checkout");
    let admin = new_token(&tokens, "ops", "admin,read");
    let server = ServerProcess::start(
        home.path(),
        &home.path().join("s"),
        &["--anonymous", "nowhere", "--tokens", tokens.to_str().unwrap()],
    );
    let project = small_project(home.path());
    let with = |token: &str, arguments: &[&str]| {
        let mut command = farmhand(home.path());
        command.env("FARMHAND_TOKEN", token).args(arguments).args(["--server", &server.url]);
        let (code, out, err) = run(&mut command);
        for token in [&reader, &admin] {
            assert!(!err.contains(token) && !out.contains(token), "{out}{err}");
        }
        (code, err)
    };
    let checkout = ["checkout", project.to_str().unwrap(), "--as", "demo"];
    assert_eq!(with(&reader, &checkout).0, 0);
    let sha = sha(&fs::read(project.join("file")).unwrap());
    for (arguments, code) in [
        (&["list"][..], 0),
        (&["du"], 0),
        (&["verify"], 0),
        (&["verify", "demo", "--deep"], 0),
        (&["why", &sha], 0),
    ] {
        let arguments = [&["store"], arguments].concat();
        assert_eq!(with(&reader, &arguments).0, code, "{arguments:?}");
        let (code, err) = with("unknown", &arguments);
        assert!(code == 6 && err.contains("token"), "{arguments:?}: {code} {err}");
    }
    for arguments in [
        &["gc"][..],
        &["gc", "--dry-run"],
        &["scrub"],
        &["pin", &sha],
        &["unpin", &sha],
        &["erase", "demo"],
    ] {
        let arguments = [&["store"], arguments].concat();
        let (code, err) = with(&reader, &arguments);
        assert!(code == 6 && err.contains("the scope admin"), "{arguments:?}: {code} {err}");
        assert_eq!(with(&admin, &arguments).0, 0, "{arguments:?}");
    }
    let mut none = farmhand(home.path());
    let (code, _, err) = run(none.args(["store", "gc", "--server", &server.url]));
    assert!(code == 6 && err.contains("FARMHAND_TOKEN"), "{code} {err}");
}

/// What a request to one of two servers had.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A server that notes down who shows it what, and answers so.
fn recorder(
    runtime: &tokio::runtime::Runtime,
    answers: fn(&str, &str) -> Response,
    other: String,
) -> (String, Seen) {
    let seen = Seen::default();
    let router = Router::new().fallback({
        let seen = seen.clone();
        move |request: Request| {
            let (seen, other) = (seen.clone(), other.clone());
            async move {
                let path = request.uri().path().to_owned();
                let (parts, body) = request.into_parts();
                let headers = parts.headers;
                let shown = headers.get(header::AUTHORIZATION).or(headers.get(header::REFERER));
                let shown = shown.map(|value| value.to_str().unwrap().to_owned());
                seen.lock().unwrap().push((path.clone(), shown));
                let _ = axum::body::to_bytes(body, usize::MAX).await;
                answers(&path, &other)
            }
        }
    });
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async { axum::serve(listener, router).await });
    (url, seen)
}

/// A client that is sent to another server, and then goes on there, shows its token to the first only.
#[test]
fn a_token_goes_to_the_server_that_was_given_and_no_other() {
    let home = tempfile::tempdir().unwrap();
    let project = small_project(home.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    fn stores(path: &str, _: &str) -> Response {
        match path {
            REQUIREMENTS => Json(json!({ "files": [] })).into_response(),
            CREATE => Json(json!({ "checkoutPath": "x" })).into_response(),
            _ => StatusCode::NO_CONTENT.into_response(),
        }
    }
    fn sends_away(path: &str, other: &str) -> Response {
        let path = path.strip_prefix("/t/path-secret").unwrap();
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{other}{path}"))])
            .into_response()
    }
    let (other, other_seen) = recorder(&runtime, stores, String::new());
    let (first, first_seen) = recorder(&runtime, sends_away, other);
    let (code, out, err) = run(farmhand(home.path())
        .args(["checkout", "--server", &format!("{first}/t/path-secret/")])
        .arg(&project)
        .env("FARMHAND_TOKEN", "header-secret"));
    assert_eq!((code, out.as_str()), (0, "x\n"), "{err}");
    let first = first_seen.lock().unwrap();
    assert!(first.iter().any(|(path, _)| path.ends_with("requirements")), "{first:?}");
    assert!(
        first.iter().all(|(_, shown)| shown.as_deref() == Some("Bearer header-secret")),
        "{first:?}"
    );
    let other = other_seen.lock().unwrap();
    assert!(other.iter().any(|(path, _)| path == CREATE), "{other:?}");
    assert!(
        other.iter().all(|(path, shown)| shown.is_none() && !path.contains("secret")),
        "{other:?}"
    );
}

/// The ports that a process listens on.
#[cfg(target_os = "linux")]
fn listening(pid: u32) -> Vec<u16> {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok()
        })
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "0A" && sockets.iter().any(|inode| inode == row[9]))
        .map(|row| u16::from_str_radix(row[1].split_once(':').unwrap().1, 16).unwrap())
        .collect()
}

/// While a command serves its store to itself, other users of the machine get nothing there.
#[cfg(target_os = "linux")]
#[test]
fn an_embedded_store_is_not_for_others() {
    let home = tempfile::tempdir().unwrap();
    let project = home.path().join("p");
    fs::create_dir(&project).unwrap();
    // Takes hours to hash, and no room.
    fs::File::create(project.join("endless")).unwrap().set_len(1 << 40).unwrap();
    let mut child = farmhand(home.path())
        .args(["checkout", "p", "--storage", "s"])
        .current_dir(home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut port = 0;
    until(|| {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        port = listening(child.id()).first().copied().unwrap_or_default();
        port != 0
    });
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let host = "Host: localhost\r\n";
    let refused = [
        status(address, "GET", STATUS, host),
        status(address, "POST", STATUS, host),
        status(address, "POST", CREATE, host),
        status(address, "POST", "/farmhand/v1/x", host),
        status(address, "GET", &format!("/t/guess{STATUS}"), host),
    ];
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(refused, [401; 5]);
}
