//! What a server must withstand: each is answered as a client's error that says what is wrong;
//! nothing is written where it should not be, nothing is lost, and the server lives on.

use std::fs;

use farmhand::server::Options;
use serde_json::{Value, json};

use super::common::*;

/// A server with one blob and one checkout, which must be there unharmed in the end, and alone.
struct Guarded {
    server: TestServer,
    content: Vec<u8>,
    before: std::collections::BTreeMap<String, Vec<u8>>,
}

impl Guarded {
    fn new() -> Self {
        Self::with(TestServer::start())
    }

    fn with(server: TestServer) -> Self {
        let content = random(100);
        assert_eq!(server.upload(&content).status, 204);
        let body = json!({ "checkoutPath": "kept", "files": [file(&content, "a")] });
        assert_eq!(server.post_json("checkout/create", &body).status, 200);
        let before = kept(&server);
        Self { server, content, before }
    }

    fn create(&self, path: &str, files: &Value) -> Answer {
        self.server.post_json("checkout/create", &json!({ "checkoutPath": path, "files": files }))
    }
}

/// What is on the disk, but for what is made anew in the background.
fn kept(server: &TestServer) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut tree = tree(server.dir.path());
    tree.retain(|path, _| !path.contains("/chunks-1.sqlite"));
    tree
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.server.alive();
            assert_eq!(self.server.temp_files(), 0);
            let after = kept(&self.server);
            assert!(after == self.before, "there is something new: {:?}", after.keys());
        }
    }
}

#[test]
fn digests_and_sizes_that_are_none() {
    let guarded = Guarded::new();
    let good = sha(b"x");
    let upper = good.to_uppercase();
    let not_hex = format!("{}g", &good[1..]);
    for (sha, size) in [
        ("", "1"),
        ("a", "1"),
        (&good[1..], "1"),
        (&format!("{good}0"), "1"),
        (&upper, "1"),
        (&not_hex, "1"),
        ("a%2Fb", "1"),
        ("a/b", "1"),
        ("%2e%2e", "1"),
        ("..", "1"),
        ("%00", "1"),
        ("%ff", "1"),
        (&good, ""),
        (&good, "-1"),
        (&good, "+1"),
        (&good, "1.5"),
        (&good, "1e3"),
        (&good, "0x1"),
        (&good, "%201"),
        (&good, "9223372036854775808"),
        (&good, "99999999999999999999999999"),
        (&good, ".."),
        (&good, "1/2"),
        (&good, "1.blob"),
    ] {
        let path = format!("/api/v3/shaman/files/{sha}/{size}");
        let answer = guarded.server.connect().get(&path);
        answer.is_error(400, "");
        assert!(answer.json()["message"].as_str().unwrap().len() > 20, "{path}");
        guarded.server.connect().post(&path, "", b"x").is_error(400, "");
    }
}

#[test]
fn bodies_of_another_length() {
    let guarded = Guarded::new();
    let content = random(1000);
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    // Shorter than declared: the client closes, or at least its side of the connection.
    let mut short = guarded.server.connect();
    short.send(&post_head(&path, "", 1000));
    short.send(&content[..999]);
    short.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answer = short.try_answer();
    assert!(answer.is_none_or(|answer| answer.status == 400));
    guarded.server.until_status(&content, "unknown");
    // Of a length that is none, or two.
    for lengths in [
        "Content-Length: -1\r\n",
        "Content-Length: x\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
    ] {
        let mut connection = guarded.server.connect();
        connection.send(format!("POST {path} HTTP/1.1\r\nHost: t\r\n{lengths}\r\n").as_bytes());
        assert_eq!(connection.answer().status, 400, "{lengths}");
    }
    // Huge, and promised only.
    let mut huge = guarded.server.connect();
    huge.send(&post_head(&path, "", 1 << 62));
    huge.answer().is_error(417, "Content-Length");
}

#[test]
fn a_body_longer_than_declared_is_the_next_request_and_none() {
    let server = TestServer::start();
    let content = random(1000);
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    let mut connection = server.connect();
    connection.send(&[&post_head(&path, "", 1000)[..], &content, b"more of the same"].concat());
    assert_eq!(connection.answer().status, 204);
    connection.send(b"\r\n\r\n");
    assert_eq!(connection.answer().status, 400);
    assert_eq!(server.status(&content), "stored");
}

#[test]
fn names_of_checkouts_that_are_none() {
    let guarded = Guarded::new();
    let files = json!([file(&guarded.content, "a")]);
    for name in [
        "",
        ".",
        "..",
        "a/..",
        "../a",
        "a/../../b",
        "./a",
        "/abs",
        "/",
        "C:\\x",
        "C:x",
        "\\\\host\\share",
        "a\\b",
        "a\0b",
        "a//b",
        "a/",
        "a?",
        "a*",
        "a:b",
        "a;b",
        "{jobs}",
        &"x".repeat(5000),
        &"x".repeat(256),
        &"x/".repeat(2499),
        &format!("{}x", "x/".repeat(1500)),
    ] {
        guarded.create(name, &files).is_error(400, "checkoutPath: ");
    }
}

#[test]
fn paths_of_files_that_are_none() {
    let guarded = Guarded::new();
    for path in [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        "/abs",
        "a//b",
        "a/",
        "a\0b",
        "..\\a",
        "\\a",
        "a\\..\\b",
        "C:\\a",
        "C:a",
        "\\\\host\\share",
        &"x".repeat(5000),
        &"x".repeat(256),
    ] {
        let files = json!([file(&guarded.content, "fine"), file(&guarded.content, path)]);
        guarded.create("new", &files).is_error(400, "files[1]: path: ");
        let body = json!({ "files": files });
        guarded.server.post_json("checkout/requirements", &body).is_error(400, "files[1]: path: ");
    }
}

#[test]
fn names_and_paths_that_are_too_long_together() {
    let guarded = Guarded::new();
    let long = |parts: usize| vec!["x".repeat(100); parts].join("/");
    let files = json!([file(&guarded.content, &long(25))]);
    guarded.create(&long(20), &files).is_error(400, "use shorter names");
}

#[test]
fn lists_that_contradict_themselves() {
    let guarded = Guarded::new();
    let (one, other) = (&guarded.content, random(50));
    let twice = json!([file(one, "a"), file(&other, "a")]);
    guarded.create("new", &twice).is_error(400, "\"a\" is listed twice");
    let inside = json!([file(one, "a"), file(one, "a b"), file(one, "a/b/c")]);
    guarded.create("new", &inside).is_error(400, "\"a\" is listed as a file");
    let windows = json!([file(one, "a/b"), file(&other, "a\\b")]);
    guarded.create("new", &windows).is_error(400, "\"a/b\" is listed twice");
}

#[test]
fn json_that_is_none_or_something_else() {
    let guarded = Guarded::new();
    let good = json!({ "checkoutPath": "new", "files": [file(&guarded.content, "a")] });
    let text = good.to_string();
    let entry = good["files"][0].to_string();
    let bodies = [
        String::new(),
        "{".into(),
        text[..text.len() - 1].into(),
        text[..40].into(),
        format!("{text}x"),
        "null".into(),
        "[]".into(),
        "[\"new\",[]]".into(),
        "[[]]".into(),
        "{}".into(),
        "\"text\"".into(),
        "1".into(),
        r#"{"checkoutPath":"new","files":null}"#.into(),
        r#"{"checkoutPath":"new","files":{}}"#.into(),
        r#"{"checkoutPath":"new","files":[null]}"#.into(),
        r#"{"checkoutPath":"new","files":[[]]}"#.into(),
        text.replace("\"size\":100", "\"size\":100.5"),
        text.replace("\"size\":100", "\"size\":1e2"),
        text.replace("\"size\":100", "\"size\":-100"),
        text.replace("\"size\":100", "\"size\":\"100\""),
        text.replace("\"size\":100", "\"size\":18446744073709551615"),
        text.replace("\"size\":100", "\"size\":99999999999999999999999"),
        text.replace("\"size\":100", "\"size\":null"),
        text.replace("\"size\":100,", ""),
        text.replace(&sha(&guarded.content), "abc"),
        text.replace(&sha(&guarded.content), &sha(&guarded.content).to_uppercase()),
        text.replace(&format!("\"{}\"", sha(&guarded.content)), "null"),
        text.replace("\"a\"", "null"),
        text.replace("\"a\"", "\"\\ud800\""),
        text.replace(&entry, &"[".repeat(100_000)),
    ];
    for body in bodies {
        for call in ["requirements", "create"] {
            let mut connection = guarded.server.connect();
            let path = format!("/api/v3/shaman/checkout/{call}");
            connection
                .post(&path, "Content-Type: application/json\r\n", body.as_bytes())
                .is_error(400, "");
        }
    }
    for body in [
        r#"{"checkoutPath":null,"files":[]}"#,
        r#"{"files":[]}"#,
        r#"{"checkoutPath":7,"files":[]}"#,
    ] {
        let path = "/api/v3/shaman/checkout/create";
        guarded
            .server
            .connect()
            .post(path, "Content-Type: application/json\r\n", body.as_bytes())
            .is_error(400, "");
    }
    for kind in
        ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
    {
        let path = "/api/v3/shaman/checkout/create";
        guarded
            .server
            .connect()
            .post(path, kind, text.as_bytes())
            .is_error(415, "application/json");
    }
    let with_charset = "Content-Type: Application/JSON; charset=utf-8\r\n";
    let path = "/api/v3/shaman/checkout/requirements";
    assert_eq!(guarded.server.connect().post(path, with_charset, text.as_bytes()).status, 200);
}

#[test]
fn a_million_entries() {
    let server = TestServer::start();
    let content = random(100);
    assert_eq!(server.upload(&content).status, 204);
    let mut body = String::from("{\"files\":[");
    let sha = sha(&content);
    for number in 0..1_000_000 {
        let comma = if number == 0 { "" } else { "," };
        body.push_str(&format!("{comma}{{\"sha\":\"{sha}\",\"size\":100,\"path\":\"{number}\"}}"));
    }
    body.push_str("]}");
    let path = "/api/v3/shaman/checkout/requirements";
    let answer = server.connect().post(path, "Content-Type: application/json\r\n", body.as_bytes());
    assert_eq!((answer.status, &answer.body[..]), (200, &br#"{"files":[]}"#[..]));
}

#[test]
fn more_than_the_limits() {
    let options = Options { max_files: 1000, max_json_bytes: 200_000, ..Options::default() };
    let guarded = Guarded::with(TestServer::with(options));
    let files = |count| {
        json!((0..count).map(|i| file(&guarded.content, &i.to_string())).collect::<Vec<_>>())
    };
    guarded.create("new", &files(1001)).is_error(413, "1001 files are more than the 1000");
    guarded.create("new", &files(5000)).is_error(413, "longer than the 200000 bytes");
    let mut chunked = guarded.server.connect();
    chunked.send(b"POST /api/v3/shaman/checkout/create HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n30d41\r\n");
    chunked.send(&vec![b' '; 200_001]);
    chunked.send(b"\r\n0\r\n\r\n");
    chunked.answer().is_error(413, "longer than the 200000 bytes");
}

#[test]
fn names_that_some_file_systems_hold_to_be_one() {
    let server = TestServer::start();
    let (one, other) = (random(10), random(20));
    server.upload(&one);
    server.upload(&other);
    // A letter with a dot, composed and not; upper and lower case.
    let names = ["Texture.png", "texture.png", "\u{e9}.png", "e\u{301}.png"];
    let files: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, name)| file(if i % 2 == 0 { &one } else { &other }, name))
        .collect();
    let answer =
        server.post_json("checkout/create", &json!({ "checkoutPath": "names", "files": files }));
    // Either all of them stand side by side, or it is said why not; never one for the other.
    if answer.status == 200 {
        let made = tree(&server.storage().join("jobs/names"));
        for (i, name) in names.iter().enumerate() {
            assert_eq!(made[*name], if i % 2 == 0 { one.as_slice() } else { other.as_slice() });
        }
    } else {
        answer.is_error(409, "does not tell them apart");
        assert!(!server.storage().join("jobs/names").exists());
    }
}

#[test]
fn heads_that_are_none() {
    let guarded = Guarded::new();
    for head in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
    ] {
        let mut connection = guarded.server.connect();
        connection.send(head.as_bytes());
        assert!((400..500).contains(&connection.answer().status), "{head:?}");
        assert!(connection.is_closed());
    }
    // More than a head may be.
    let mut endless = guarded.server.connect();
    let line = format!("X: {}\r\n", "y".repeat(8000));
    endless.send(b"GET / HTTP/1.1\r\n");
    while endless.stream.set_nodelay(true).is_ok()
        && std::io::Write::write_all(&mut endless.stream, line.as_bytes()).is_ok()
    {}
    guarded.server.alive();
}

#[test]
fn two_uploads_of_one_blob_ending_together() {
    let server = TestServer::start();
    for _ in 0..50 {
        let content = random(20_000);
        let mut senders = [server.connect(), server.connect()];
        for sender in &mut senders {
            sender.half_upload(&content, "");
        }
        let statuses = std::thread::scope(|scope| {
            senders
                .map(|mut sender| {
                    let content = &content;
                    scope.spawn(move || sender.other_half(content).status)
                })
                .map(|thread| thread.join().unwrap())
        });
        assert!(statuses == [204, 208] || statuses == [208, 204], "{statuses:?}");
        assert_eq!(server.status(&content), "stored");
    }
}

#[test]
fn writing_through_a_link_is_not_allowed() {
    use std::os::unix::fs::PermissionsExt;
    let guarded = Guarded::new();
    let link = guarded.server.storage().join("jobs/kept/a");
    assert_eq!(fs::metadata(link).unwrap().permissions().mode() & 0o222, 0);
}
