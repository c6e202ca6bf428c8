//! The access log of the real program: a line for each upload and each checkout, with all that is
//! worth knowing, and never more lines than that.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::common::*;

const DEFERS: &str = "X-Shaman-Can-Defer-Upload: True\r\nUser-Agent: somebody\r\n";

/// A server whose log is in a file.
struct Logged {
    server: ServerProcess,
    log: PathBuf,
    _home: tempfile::TempDir,
}

impl Logged {
    fn start(format: &str, fault: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        let mut command = farmhand(home.path());
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", format, "--storage"])
            .arg(home.path().join("storage"))
            .env("FARMHAND_FAULT", fault)
            .stderr(fs::File::create(&log).unwrap());
        Self { server: ServerProcess::spawn(&mut command), log, _home: home }
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap().lines().map(str::to_owned).collect()
    }

    /// The fields of all lines of the access log.
    fn access(&self) -> Vec<Value> {
        let lines = self.lines().into_iter().map(|line| serde_json::from_str(&line).unwrap());
        lines
            .filter(|line: &Value| line["target"] == "farmhand::access")
            .map(|line| {
                assert!(line["timestamp"].is_string() && line["level"] == "INFO");
                line["fields"].clone()
            })
            .collect()
    }

    /// The next line is this, besides the time that it took.
    #[track_caller]
    fn expect(&self, seen: &mut usize, mut expected: Value) {
        until(|| self.access().len() > *seen);
        let mut line = self.access()[*seen].clone();
        *seen += 1;
        let time = line.as_object_mut().unwrap().remove("elapsed_ms").unwrap();
        assert!(time.is_u64());
        // What it says is for people: what matters is that it says it.
        if let Some(part) = expected["reason"].as_str() {
            let reason = line["reason"].as_str().unwrap_or_default();
            assert!(reason.contains(part), "{line}");
            expected["reason"] = line["reason"].clone();
        }
        assert_eq!(line, expected);
    }
}

fn named(name: &str) -> String {
    format!("X-Shaman-Original-Filename: {}\r\n", farmhand::wire::encode_filename(name))
}

#[test]
fn a_line_for_each_upload_says_how_it_ended() {
    let logged = Logged::start("json", "");
    let mut seen = 0;
    let content = random(10_000);
    let blob = address(&content);
    let client = "127.0.0.1";
    for (status, outcome, bytes) in [(204, "stored", 10_000), (208, "already_stored", 0)] {
        let answer = logged.server.connect().upload(&content, &named("textures/звук.png"));
        assert_eq!(answer.status, status);
        logged.expect(
            &mut seen,
            json!({
                "message": "upload", "client": client, "blob": blob, "name": "textures/звук.png",
                "bytes": bytes, "outcome": outcome, "status": status,
            }),
        );
    }

    let content = random(10_000);
    let mut sender = logged.server.connect();
    sender.half_upload(&content, "");
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    until(|| logged.server.connect().get(&path).json()["status"] == "uploading");
    assert_eq!(logged.server.connect().upload(&content, DEFERS).status, 425);
    logged.expect(
        &mut seen,
        json!({
            "message": "upload", "client": client, "blob": address(&content), "name": "-",
            "bytes": 0, "outcome": "deferred", "status": 425,
        }),
    );
    // One that waited for it.
    let received = || {
        let text = String::from_utf8(logged.server.connect().get("/metrics").body).unwrap();
        text.contains("farmhand_uploads_waiting 1\n")
    };
    std::thread::scope(|scope| {
        let held = scope.spawn(|| logged.server.connect().upload(&content, ""));
        until(received);
        assert_eq!(sender.other_half(&content).status, 204);
        assert_eq!(held.join().unwrap().status, 208);
    });
    until(|| logged.access().len() == seen + 2);
    let outcomes: Vec<_> =
        logged.access()[seen..].iter().map(|line| line["outcome"].clone()).collect();
    assert!(outcomes.contains(&json!("stored")) && outcomes.contains(&json!("absorbed")));
    seen += 2;

    // Something else than it says; refused before its body; no blob; gone in the middle.
    let content = random(10_000);
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    let failed = |blob: &str, bytes: u64, status: u64, reason: &str| {
        json!({
            "message": "upload failed", "client": client, "blob": blob, "name": "a b",
            "bytes": bytes, "outcome": "failed", "status": status, "reason": reason,
        })
    };
    let post = |path: &str, body: &[u8]| logged.server.connect().post(path, &named("a b"), body);
    assert_eq!(post(&path, &vec![0; 10_000]).status, 417);
    logged.expect(&mut seen, failed(&address(&content), 10_000, 417, "has the digest"));
    assert_eq!(post(&path, b"short").status, 417);
    logged.expect(&mut seen, failed(&address(&content), 0, 417, "Content-Length 5"));
    assert_eq!(post("/api/v3/shaman/files/none/7", b"content").status, 400);
    logged.expect(&mut seen, failed("none/7", 0, 400, "64 lower-case"));
    let mut broken = logged.server.connect();
    broken.half_upload(&content, &named("a b"));
    until(|| {
        let text = String::from_utf8(logged.server.connect().get("/metrics").body).unwrap();
        let line = text.lines().find(|line| line.starts_with("farmhand_received_bytes_total "));
        line.unwrap().ends_with(" 35000")
    });
    drop(broken);
    until(|| logged.access().len() > seen);
    let line = logged.access()[seen].clone();
    assert_eq!((&line["bytes"], &line["outcome"]), (&json!(5000), &json!("failed")), "{line}");
    assert!(line["reason"].is_string() && line["blob"] == address(&content), "{line}");
    assert_eq!(logged.access().len(), seen + 1);
}

#[test]
fn a_line_for_each_checkout_says_how_it_ended() {
    let logged = Logged::start("json", "");
    let content = random(1000);
    assert_eq!(logged.server.connect().upload(&content, "").status, 204);
    let mut seen = 1;
    let create = |path: &str, files: Value| {
        let body = json!({ "checkoutPath": path, "files": files });
        logged.server.connect().post_json("checkout/create", &body)
    };
    let files = json!([file(&content, "a"), file(&content, "b")]);
    for _ in 0..2 {
        let answer = create("show/demo", files.clone());
        assert_eq!(answer.status, 200);
        logged.expect(
            &mut seen,
            json!({
                "message": "checkout", "client": "127.0.0.1",
                "checkout": answer.json()["checkoutPath"], "files": 2, "bytes": 2000,
                "outcome": "created", "status": 200,
            }),
        );
    }
    let failed = |checkout: &str, files: u64, bytes: u64, status: u64, reason: &str| {
        json!({
            "message": "checkout failed", "client": "127.0.0.1", "checkout": checkout,
            "files": files, "bytes": bytes, "outcome": "failed", "status": status,
            "reason": reason,
        })
    };
    assert_eq!(create("new", json!([file(b"missing", "a")])).status, 424);
    logged.expect(&mut seen, failed("new", 1, 7, 424, "1 of the files are not stored"));
    assert_eq!(create("../out", json!([])).status, 400);
    logged.expect(&mut seen, failed("../out", 0, 0, 400, "checkoutPath: "));
    assert_eq!(logged.server.connect().post_json("checkout/create", &json!({})).status, 400);
    logged.expect(&mut seen, failed("-", 0, 0, 400, "missing field"));
    assert_eq!(logged.server.connect().post("/api/v3/shaman/checkout/create", "", b"").status, 415);
    logged.expect(&mut seen, failed("-", 0, 0, 415, "application/json"));
    assert_eq!(logged.access().len(), seen);
}

#[test]
fn no_name_makes_a_line_of_its_own() {
    let logged = Logged::start("text", "rename:4=5");
    let content = random(1000);
    let forged = "a\n2026-01-01T00:00:00Z  INFO farmhand::access: upload \u{1b}[31m\r\u{9b}x";
    // As an encoded word, and as the checkout's name, which may have anything a file name may.
    assert_eq!(logged.server.connect().upload(&content, &named(forged)).status, 204);
    let body = json!({ "checkoutPath": "a\nINFO forged\u{1b}", "files": [file(&content, forged)] });
    let answer = logged.server.connect().post_json("checkout/create", &body);
    // Not refused because of the colons: those are in the file's path.
    assert_eq!(answer.status, 200, "{answer:?}");
    let bad = json!({ "checkoutPath": "b\nINFO forged?", "files": [] });
    assert_eq!(logged.server.connect().post_json("checkout/create", &bad).status, 400);
    // In an error of the disk.
    let body = json!({ "checkoutPath": "c\nINFO forged", "files": [] });
    logged.server.connect().post_json("checkout/create", &body).is_error(500, "c\nINFO forged");

    let lines = logged.lines();
    let access = lines.iter().filter(|line| line.contains("farmhand::access: ")).count();
    // One says that jobs have no command, one where it serves, and one that the disk has failed.
    assert_eq!((access, lines.len()), (4, 7), "{lines:#?}");
    for line in &lines {
        assert!(line.starts_with("20") && !line.starts_with("2026-01-01T00:00:00Z"), "{line:?}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

/// Nobody answers it: neither the client's end nor the server's leaves an upload without a line.
#[test]
fn an_upload_that_the_end_of_the_server_breaks_off_has_its_line() {
    let logged = Logged::start("json", "");
    let content = random(10_000);
    let mut sender = logged.server.connect();
    sender.half_upload(&content, &named("a b"));
    let metrics = || String::from_utf8(logged.server.connect().get("/metrics").body).unwrap();
    until(|| metrics().contains("farmhand_received_bytes_total 5000\n"));
    // The second signal ends the time for unfinished requests.
    until(|| {
        logged.server.terminate();
        !logged.access().is_empty()
    });
    logged.expect(
        &mut 0,
        json!({
            "message": "upload failed", "client": "127.0.0.1", "blob": address(&content),
            "name": "a b", "bytes": 5000, "outcome": "failed",
            "reason": "broken off before it was answered",
        }),
    );
}
