//! The endpoints, as clients see them.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use farmhand::server::{Defer, Options};
use serde_json::json;

use super::common::*;

const DEFERS: &str = "X-Shaman-Can-Defer-Upload: True\r\nUser-Agent: somebody\r\n";
const ADDON: &str =
    "X-Shaman-Can-Defer-Upload: True\r\nUser-Agent: Flamenco/3.9-beta1 (Blender add-on)\r\n";

#[test]
fn a_blob_goes_from_unknown_to_stored() {
    on_each_kind_of_store(Options::default, |server| {
        for content in [
            random(10_000),
            random(3_000_000),
            b"one byte more than nothing"[..1].to_vec(),
            Vec::new(),
        ] {
            assert_eq!(server.status(&content), "unknown");
            assert_eq!(server.upload(&content).status, 204);
            assert_eq!(server.status(&content), "stored");
            assert_eq!(server.upload(&content).status, 208);
            let sha = sha(&content);
            let blob = server.storage().join(format!(
                "file-store/stored/{}/{}/{}.blob",
                &sha[..2],
                &sha[2..],
                content.len()
            ));
            assert_eq!(fs::read(&blob).unwrap(), content);
            assert_eq!(
                fs::metadata(&blob).unwrap().permissions().mode() & 0o222,
                0,
                "it can be written to"
            );
        }
        assert_eq!(server.temp_files(), 0);
    });
}

#[test]
fn what_is_not_what_its_name_says_is_not_stored() {
    on_each_kind_of_store(Options::default, |server| {
        // Read as a whole, as it comes, and hashed on a thread of its own.
        for size in [1000, 100_000, 5_000_000] {
            let content = random(size);
            let path = format!("/api/v3/shaman/files/{}", address(&content));
            let mut wrong = content.clone();
            wrong[size / 2] ^= 1;
            let refused = |body: &[u8], reason: &str| {
                server.connect().post(&path, "", body).is_error(417, reason);
            };
            refused(&wrong, "hash the file again");
            refused(&content[1..], &format!("Content-Length {}", size - 1));
            refused(&[&content[..], b"x"].concat(), &format!("Content-Length {}", size + 1));
            assert_eq!(server.status(&content), "unknown");
            assert_eq!(server.temp_files(), 0);
            assert_eq!(server.upload(&content).status, 204);
            assert_eq!(fs::read(server.blob(&content)).unwrap(), content);
        }
    });
}

#[test]
fn chunked_bodies_are_verified_like_any_other() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(100_000);
        let path = format!("/api/v3/shaman/files/{}", address(&content));
        let send = |parts: &[&[u8]]| {
            let mut connection = server.connect();
            connection.send(
                format!("POST {path} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .as_bytes(),
            );
            for part in parts.iter().chain([&&b""[..]]) {
                connection
                    .send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
            }
            connection.answer()
        };
        send(&[&content, b"more"]).is_error(417, "not 100000");
        send(&[&content[1..]]).is_error(417, "has 99999 bytes, not 100000");
        send(&[]).is_error(417, "has 0 bytes");
        assert_eq!(server.status(&content), "unknown");
        assert_eq!(send(&[&content[..10], &content[10..]]).status, 204);
        assert_eq!(server.status(&content), "stored");
    });
}

#[test]
fn requirements_list_what_is_missing_each_once_and_paths_as_they_came() {
    let server = TestServer::start();
    let (stored, unknown, uploading) = (random(10), random(20), random(30));
    server.upload(&stored);
    let mut sender = server.connect();
    sender.half_upload(&uploading, "");
    server.until_status(&uploading, "uploading");

    let odd = "dir\\звук \u{1f9f6} \"quoted\".wav";
    let answer = server.post_json(
        "checkout/requirements",
        &json!({ "files": [
            file(&stored, "a"), file(&unknown, odd), file(&unknown, "again"), file(&uploading, "c"),
        ]}),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({ "files": [
            { "sha": sha(&unknown), "size": 20, "path": odd, "status": "unknown" },
            { "sha": sha(&uploading), "size": 30, "path": "c", "status": "uploading" },
        ]})
    );
    assert_eq!(sender.other_half(&uploading).status, 204);
    let answer =
        server.post_json("checkout/requirements", &json!({ "files": [file(&uploading, "c")] }));
    assert_eq!(answer.json(), json!({ "files": [] }));
}

#[test]
fn a_needed_blob_is_touched() {
    let server = TestServer::start();
    let content = random(10);
    server.upload(&content);
    let sha = sha(&content);
    let blob =
        server.storage().join(format!("file-store/stored/{}/{}/10.blob", &sha[..2], &sha[2..]));
    let old = std::time::SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    let age = || fs::metadata(&blob).unwrap().modified().unwrap().elapsed().unwrap();
    for call in ["requirements", "create"] {
        fs::File::open(&blob).unwrap().set_modified(old).unwrap();
        let body = json!({ "checkoutPath": "touch", "files": [file(&content, "a")] });
        assert_eq!(server.post_json(&format!("checkout/{call}"), &body).status, 200);
        assert!(age() < Duration::from_secs(600), "{call}");
    }
}

#[test]
fn a_checkout_is_made_of_relative_links() {
    let server = TestServer::start();
    let (one, other) = (random(10), random(20));
    server.upload(&one);
    server.upload(&other);
    let body = json!({ "checkoutPath": "show/shot 010", "files": [
        file(&one, "scene.blend"), file(&other, "textures/деep/a.png"), file(&one, "textures\\windows.png"),
        file(&one, "scene.blend"),
    ]});
    let answer = server.post_json("checkout/create", &body);
    assert_eq!(answer.json(), json!({ "checkoutPath": "show/shot 010" }));
    let checkout = server.storage().join("jobs/show/shot 010");
    let made = tree(&checkout);
    assert_eq!(made.len(), 3);
    assert_eq!(made["scene.blend"], one);
    assert_eq!(made["textures/деep/a.png"], other);
    assert_eq!(made["textures/windows.png"], one);
    let target = fs::read_link(checkout.join("textures/деep/a.png")).unwrap();
    assert!(target.starts_with("../../../../../file-store/stored"), "{}", target.display());

    // Moved as a whole, the storage still works.
    let moved = server.dir.path().join("moved");
    fs::rename(server.storage(), &moved).unwrap();
    assert_eq!(tree(&moved.join("jobs/show/shot 010")), made);
    fs::rename(&moved, server.storage()).unwrap();
}

#[test]
fn a_taken_name_gets_a_suffix_and_an_empty_checkout_is_one() {
    let server = TestServer::start();
    let body = json!({ "checkoutPath": "name", "files": [] });
    assert_eq!(server.post_json("checkout/create", &body).json()["checkoutPath"], "name");
    for _ in 0..3 {
        let answer = server.post_json("checkout/create", &body).json();
        let path = answer["checkoutPath"].as_str().unwrap();
        let suffix = path.strip_prefix("name-").unwrap();
        assert!(
            suffix.len() == 4
                && suffix.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()),
            "{path}"
        );
        assert!(server.storage().join("jobs").join(path).is_dir());
    }
}

#[test]
fn many_checkouts_of_one_name_at_once_all_get_their_own() {
    let server = TestServer::start();
    let content = random(10);
    server.upload(&content);
    let names: std::collections::HashSet<String> = std::thread::scope(|scope| {
        let make = |number: usize| {
            let (server, content) = (&server, &content);
            scope.spawn(move || {
                let files: Vec<_> = (0..=number).map(|i| file(content, &format!("f{i}"))).collect();
                let body = json!({ "checkoutPath": "dir/same", "files": files });
                let path = server.post_json("checkout/create", &body).json()["checkoutPath"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                assert_eq!(tree(&server.storage().join("jobs").join(&path)).len(), number + 1);
                path
            })
        };
        (0..16)
            .map(make)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(names.len(), 16);
    assert!(names.contains("dir/same"));
    assert_eq!(fs::read_dir(server.storage().join("jobs/.farmhand-building")).unwrap().count(), 0);
}

#[test]
fn a_checkout_of_missing_files_leaves_nothing() {
    let server = TestServer::start();
    let (stored, missing) = (random(10), random(20));
    server.upload(&stored);
    let body = json!({ "checkoutPath": "new/dir/demo", "files": [file(&stored, "a"), file(&missing, "b")] });
    server.post_json("checkout/create", &body).is_error(424, &sha(&missing));
    assert!(!server.storage().join("jobs/new").exists());
}

#[test]
fn a_checkout_does_not_grow_into_another() {
    let server = TestServer::start();
    let content = random(10);
    server.upload(&content);
    let create = |path: &str, inner: &str| {
        server.post_json(
            "checkout/create",
            &json!({ "checkoutPath": path, "files": [file(&content, inner)] }),
        )
    };
    assert_eq!(create("job", "scene.blend").status, 200);
    create("job/inner", "a").is_error(409, "is itself a checkout");
    create("job/scene.blend", "a").is_error(409, "is itself a checkout");
    create(".farmhand-building/x", "a").is_error(409, "farmhand builds checkouts there");
    assert_eq!(tree(&server.storage().join("jobs/job")).len(), 1);
    // A directory of checkouts is none.
    assert_eq!(create("shows/a", "x").status, 200);
    assert_eq!(create("shows/b", "x").status, 200);
}

#[test]
fn a_client_that_can_defer_is_answered_425_and_the_addon_is_held() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(200_000);
        let mut first = server.connect();
        first.half_upload(&content, "");
        server.until_status(&content, "uploading");

        server.connect().upload(&content, DEFERS).is_error(425, "go on with others");
        let mut addon = server.connect();
        addon.send(&post_head(
            &format!("/api/v3/shaman/files/{}", address(&content)),
            ADDON,
            200_000,
        ));
        addon.send(&content);
        let mut other = server.connect();
        other.send(&post_head(&format!("/api/v3/shaman/files/{}", address(&content)), "", 200_000));
        other.send(&content);

        assert_eq!(first.other_half(&content).status, 204);
        assert_eq!(addon.answer().status, 208);
        assert_eq!(other.answer().status, 208);
        assert_eq!(addon.get("/healthz").status, 200, "the connection goes on");
    });
}

#[test]
fn a_held_upload_takes_over_when_the_first_one_fails() {
    on_each_kind_of_store(Options::default, |server| {
        for fails_by in ["closing", "lying"] {
            let content = random(200_000);
            let mut first = server.connect();
            first.half_upload(&content, DEFERS);
            server.until_status(&content, "uploading");
            let mut addon = server.connect();
            addon.send(&post_head(
                &format!("/api/v3/shaman/files/{}", address(&content)),
                ADDON,
                200_000,
            ));
            addon.send(&content[..1000]);
            if fails_by == "closing" {
                drop(first);
            } else {
                first.other_half(&[0; 200_000]).is_error(417, "hash the file again");
            }
            addon.send(&content[1000..]);
            assert_eq!(addon.answer().status, 204, "{fails_by}");
            assert_eq!(server.status(&content), "stored");
        }
    });
}

#[test]
fn a_held_upload_does_not_wait_for_ever() {
    on_each_kind_of_store(
        || Options { hold: Duration::from_millis(50), ..Options::default() },
        |server| {
            let content = random(200_000);
            let mut slow = server.connect();
            slow.half_upload(&content, "");
            server.until_status(&content, "uploading");
            assert_eq!(server.connect().upload(&content, ADDON).status, 204);
            assert_eq!(server.status(&content), "stored");
            // The slow one comes to its own end, and that is no failure.
            assert_eq!(slow.other_half(&content).status, 204);
            assert_eq!(server.status(&content), "stored");
        },
    );
}

#[test]
fn whether_to_defer_can_be_configured() {
    for (defer, addon_status) in [(Defer::Always, 425), (Defer::Never, 204)] {
        let hold = Duration::from_millis(500);
        let server = TestServer::with(Options { defer, hold, ..Options::default() });
        let content = random(1000);
        let mut first = server.connect();
        first.half_upload(&content, "");
        server.until_status(&content, "uploading");
        assert_eq!(server.connect().upload(&content, ADDON).status, addon_status);
        assert_eq!(first.other_half(&content).status, 204);
    }
}

/// A client that sends slowly what nobody has needed for long, so that it must be looked for.
#[test]
fn what_is_stored_stays_so_while_somebody_sends_it_again() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(1000);
        assert_eq!(server.upload(&content).status, 204);
        let blob = fs::File::open(server.blob(&content)).unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(100_000);
        blob.set_modified(long_ago).unwrap();

        let mut slow = server.connect();
        slow.half_upload(&content, "");
        server.until_status(&content, "stored");
        assert_eq!(slow.answer().status, 208, "before it has sent the rest");
        assert!(blob.metadata().unwrap().modified().unwrap() > long_ago, "it is needed now");
    });
}

#[test]
fn a_checkout_waits_for_blobs_in_flight() {
    let server = TestServer::start();
    let content = random(200_000);
    let mut sender = server.connect();
    sender.half_upload(&content, "");
    server.until_status(&content, "uploading");
    let mut creator = server.connect();
    let body = json!({ "checkoutPath": "waits", "files": [file(&content, "a")] }).to_string();
    creator.send(&post_head(
        "/api/v3/shaman/checkout/create",
        "Content-Type: application/json\r\n",
        body.len() as u64,
    ));
    creator.send(body.as_bytes());
    assert_eq!(sender.other_half(&content).status, 204);
    assert_eq!(creator.answer().status, 200);
    assert_eq!(tree(&server.storage().join("jobs/waits"))["a"], content);
}

/// Whenever the upload ends, before its blob is looked for, while the others are, or after: the
/// checkout is made. The rounds sweep over these moments.
#[test]
fn a_checkout_never_misses_a_blob_that_arrives() {
    let durability = farmhand::store::Durability::Relaxed; // a thousand uploads
    let options = farmhand::store::Options { durability, ..Default::default() };
    let server = TestServer::with_store(Options::default(), options);
    let mut connection = server.connect();
    let mut files = Vec::new();
    for number in 0..1000 {
        let content = random(100);
        assert_eq!(connection.upload(&content, "").status, 204);
        files.push(file(&content, &format!("f{number}")));
    }
    for round in 0..60u64 {
        let content = random(1000);
        let mut sender = server.connect();
        sender.half_upload(&content, "");
        server.until_status(&content, "uploading");
        let mut files = files.clone();
        files.push(file(&content, "last"));
        let body = json!({ "checkoutPath": "x", "files": files });
        let (start, moment) = (std::time::Instant::now(), Duration::from_micros(250 * round));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                until(|| start.elapsed() > moment);
                assert_eq!(sender.other_half(&content).status, 204);
            });
            let answer = server.post_json("checkout/create", &body);
            assert_eq!(answer.status, 200, "round {round}: {answer:?}");
        });
    }
}

#[test]
fn a_checkout_does_not_wait_for_ever() {
    let server =
        TestServer::with(Options { create_wait: Duration::from_millis(50), ..Options::default() });
    let content = random(200_000);
    let mut sender = server.connect();
    sender.half_upload(&content, "");
    server.until_status(&content, "uploading");
    let body = json!({ "checkoutPath": "waits", "files": [file(&content, "a")] });
    server.post_json("checkout/create", &body).is_error(424, "not stored");
}

/// A client that writes its whole body before it reads must still see every early answer.
#[test]
fn early_answers_are_never_lost() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(8 << 20);
        assert_eq!(server.upload(&content).status, 204);
        let other = random(4 << 20);
        let mut first = server.connect();
        first.half_upload(&other, "");
        server.until_status(&other, "uploading");
        let stored = format!("/api/v3/shaman/files/{}", address(&content));
        for round in 0..25 {
            let mut connection = server.connect();
            for (path, headers, body, expected) in [
                (stored.as_str(), "", &content, 208),
                (&format!("/api/v3/shaman/files/{}", address(&other)), DEFERS, &other, 425),
                ("/api/v3/shaman/files/short/1", "", &content, 400),
                (&format!("{stored}0"), "", &content, 417),
                ("/api/v3/shaman/checkout/create", "", &content, 415),
                ("/api/v3/no/such/thing", "", &content, 404),
                ("/healthz", "", &content, 405),
            ] {
                connection.send(&post_head(path, headers, body.len() as u64));
                connection.send(body);
                assert_eq!(connection.answer().status, expected, "{path}, round {round}");
            }
            // And the connection can still be used.
            assert_eq!(connection.get("/healthz").status, 200);
        }
        assert_eq!(first.other_half(&other).status, 204);
    });
}

#[test]
fn a_client_that_waits_for_our_word_is_not_told_to_send_what_nobody_wants() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(100_000);
        let head = post_head(
            &format!("/api/v3/shaman/files/{}", address(&content)),
            "Expect: 100-continue\r\n",
            100_000,
        );
        let mut connection = server.connect();
        connection.send(&head);
        assert_eq!(connection.answer().status, 100);
        connection.send(&content);
        assert_eq!(connection.answer().status, 204);
        let mut connection = server.connect();
        connection.send(&head);
        assert_eq!(connection.answer().status, 208);

        // Held for longer than clients wait for that word, it sends anyway, and must get its answer.
        let content = random(8 << 20);
        let mut first = server.connect();
        first.half_upload(&content, "");
        server.until_status(&content, "uploading");
        let mut held = server.connect();
        let path = format!("/api/v3/shaman/files/{}", address(&content));
        held.send(&post_head(&path, "Expect: 100-continue\r\n", content.len() as u64));
        std::thread::scope(|scope| {
            let mut stream = held.stream.try_clone().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            // Nothing comes for a second.
            assert!(std::io::Read::read(&mut stream, &mut [0]).is_err());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let body = &content;
            scope.spawn(move || std::io::Write::write_all(&mut stream, body).unwrap());
            assert_eq!(first.other_half(&content).status, 204);
            assert_eq!(held.answer().status, 208);
        });
    });
}

#[test]
fn silent_connections_are_closed_and_slow_uploads_are_not() {
    let head_timeout = Duration::from_millis(100);
    let server = TestServer::with(Options { head_timeout, ..Options::default() });
    let content = random(1000);
    let mut slow = server.connect();
    slow.half_upload(&content, "");
    // While these run out of time, one after another, the upload stands still.
    for half_a_head in ["", "G", "GET /healthz HTTP/1.1\r\nHost: te"] {
        let mut silent = server.connect();
        silent.send(half_a_head.as_bytes());
        assert!(silent.is_closed(), "{half_a_head:?}");
    }
    // So does a connection between two requests.
    let mut used = server.connect();
    assert_eq!(used.get("/healthz").status, 200);
    assert!(server.connect().is_closed());
    assert_eq!(used.get("/healthz").status, 200);
    assert_eq!(slow.other_half(&content).status, 204);
}

#[test]
fn an_idle_connection_is_closed_in_the_end() {
    let idle_timeout = Duration::from_millis(50);
    let server = TestServer::with(Options { idle_timeout, ..Options::default() });
    let mut used = server.connect();
    assert_eq!(used.get("/healthz").status, 200);
    assert!(used.is_closed());
}

#[test]
fn an_upload_that_stands_still_loses_its_claim() {
    let body_timeout = Duration::from_millis(100);
    on_each_kind_of_store(
        || Options { body_timeout, ..Options::default() },
        |server| {
            let content = random(1000);
            let mut stalled = server.connect();
            stalled.half_upload(&content, "");
            server.until_status(&content, "uploading");
            stalled.answer().is_error(408, "no data came");
            assert_eq!(server.status(&content), "unknown");
            assert_eq!(server.temp_files(), 0);
        },
    );
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(100_000);
        let mut broken = server.connect();
        broken.half_upload(&content, "");
        server.until_status(&content, "uploading");
        until(|| server.temp_files() == 1);
        drop(broken);
        server.until_status(&content, "unknown");
        until(|| server.temp_files() == 0);
        assert_eq!(server.upload(&content).status, 204);
    });
}

#[test]
fn more_uploads_than_are_received_at_once_wait_their_turn() {
    on_each_kind_of_store(
        || Options { max_uploads: 2, ..Options::default() },
        |server| {
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    let server = &server;
                    scope.spawn(move || {
                        for _ in 0..5 {
                            assert_eq!(server.upload(&random(50_000)).status, 204);
                        }
                    });
                }
            });
        },
    );
}

#[test]
fn a_blob_of_the_wrong_length_does_not_count() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(1000);
        server.upload(&content);
        let sha = sha(&content);
        let blob = server.storage().join(format!(
            "file-store/stored/{}/{}/1000.blob",
            &sha[..2],
            &sha[2..]
        ));
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, &content[..500]).unwrap();
        assert_eq!(server.status(&content), "unknown");
        let body = json!({ "checkoutPath": "x", "files": [file(&content, "a")] });
        server.post_json("checkout/create", &body).is_error(424, "not stored");
        assert_eq!(server.upload(&content).status, 204);
        assert_eq!(fs::read(&blob).unwrap(), content);
    });
}

#[test]
fn a_reserve_is_kept_free() {
    let reserve = farmhand::store::Reserve::Percent(100.0);
    let options = farmhand::store::Options { reserve, ..Default::default() };
    let server = TestServer::with_store(Options::default(), options);
    let content = random(8 << 20);
    // Before the body is read: the client has not sent it yet.
    let mut connection = server.connect();
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    connection.send(&post_head(&path, "", content.len() as u64));
    connection.answer().is_error(507, "are kept in reserve");
    server.connect().get("/readyz").is_error(503, "are kept in reserve");
    // Everything else goes on.
    server.alive();
    assert_eq!(server.status(&content), "unknown");
    let body = json!({ "checkoutPath": "x", "files": [] });
    assert_eq!(server.post_json("checkout/create", &body).status, 200);

    let server = TestServer::start();
    assert_eq!(server.connect().get("/readyz").json(), json!({ "status": "ready" }));
}

#[test]
fn room_is_promised_once() {
    on_each_kind_of_store(Options::default, |server| {
        let sha = |number: u8| sha(&[number]);
        // More than any disk has: what has begun and is to come counts.
        let head = |number: u8, length: u64| {
            post_head(&format!("/api/v3/shaman/files/{}/{length}", sha(number)), "", length)
        };
        let mut first = server.connect();
        first.send(&head(1, 1 << 60));
        first.answer().is_error(507, "are still to come");
        // A blob that somebody else is sending needs no room of its own.
        let content = random(200_000);
        let mut sender = server.connect();
        sender.half_upload(&content, "");
        server.until_status(&content, "uploading");
        server.connect().upload(&content, DEFERS).is_error(425, "go on with others");
        assert_eq!(sender.other_half(&content).status, 204);
        // What was refused takes none.
        assert_eq!(server.connect().get("/readyz").status, 200);
    });
}

#[test]
fn trouble_with_the_disk_is_not_called_unknown() {
    on_each_kind_of_store(Options::default, |server| {
        let content = random(1000);
        let prefix = server.storage().join("file-store/stored").join(&sha(&content)[..2]);
        fs::remove_dir(&prefix).unwrap();
        fs::write(&prefix, "a file where a directory should be").unwrap();
        let path = format!("/api/v3/shaman/files/{}", address(&content));
        server.connect().get(&path).is_error(500, "cannot look at");
        server.upload(&content).is_error(500, "cannot look at");
        let body = json!({ "checkoutPath": "x", "files": [file(&content, "a")] });
        server.post_json("checkout/requirements", &body).is_error(500, "cannot look at");
        server.post_json("checkout/create", &body).is_error(500, "cannot look at");
        server.alive();
    });
}

/// On a disk, each has one that may wait for it.
#[cfg(target_os = "linux")]
#[test]
fn uploads_to_a_store_in_memory_take_no_threads() {
    const UPLOADS: usize = 32;
    let home = tempfile::tempdir_in(MEMORY).unwrap();
    let mut serve = farmhand(home.path());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(home.path().join("storage"));
    serve.env("FARMHAND_STORE_RESERVE", "1 MiB").stderr(std::process::Stdio::null());
    let server = ServerProcess::spawn(&mut serve);
    let contents: Vec<_> = (0..UPLOADS).map(|_| random(100_000)).collect();
    let before = server.threads();
    let begin = |content: &Vec<u8>| {
        let mut connection = server.connect();
        connection.half_upload(content, "");
        connection
    };
    let begun: Vec<_> = contents.iter().map(begin).collect();
    let mut watch = server.connect();
    for content in &contents {
        let path = format!("/api/v3/shaman/files/{}", address(content));
        until(|| watch.get(&path).json()["status"] == "uploading");
    }
    // The server may have something to do for itself meanwhile.
    assert!(server.threads() < before + UPLOADS / 2, "{before}, now {}", server.threads());
    for (mut connection, content) in begun.into_iter().zip(&contents) {
        assert_eq!(connection.other_half(content).status, 204);
    }
}

/// What the allocator does with what is free is set for the one of glibc.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn many_long_requests_take_the_memory_of_one() {
    let home = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(home.path(), &home.path().join("storage"), &[]);
    let file = |number: u32| json!({ "sha": format!("{number:064x}"), "size": 1, "path": format!("a/long/way/to/{number}") });
    let files: Vec<_> = (0..50_000).map(file).collect();
    let body = json!({ "files": files }).to_string();
    let ask = || {
        let mut connection = server.connect();
        connection.send(&post_head(
            "/api/v3/shaman/checkout/requirements",
            "Content-Type: application/json\r\n",
            body.len() as u64,
        ));
        connection.send(body.as_bytes());
        assert_eq!(connection.answer().status, 200);
    };
    let before = server.peak_bytes();
    ask();
    let one = server.peak_bytes() - before;
    (0..12).for_each(|_| ask());
    let all = server.peak_bytes() - before;
    assert!(all < one + one / 2, "{} KiB for one, {} for all", one >> 10, all >> 10);
}
