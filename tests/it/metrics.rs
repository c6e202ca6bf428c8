//! `/metrics` counts exactly what has happened.

use std::{collections::BTreeMap, time::Duration};

use farmhand::server::Options;
use serde_json::json;

use super::common::*;

const DEFERS: &str = "X-Shaman-Can-Defer-Upload: True\r\nUser-Agent: somebody\r\n";

/// All series with their values.
pub(super) type Scrape = BTreeMap<String, f64>;

/// Asks for the metrics, and reads them as Prometheus would.
pub(super) fn scrape(server: &TestServer) -> Scrape {
    let answer = server.connect().get("/metrics");
    assert_eq!(answer.status, 200);
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(answer.head.contains(kind), "{}", answer.head);
    let text = String::from_utf8(answer.body).unwrap();
    let text = text.strip_suffix("# EOF\n").expect("it has an end");
    let mut typed = Vec::new();
    let mut found = Scrape::new();
    for line in text.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.split(' ');
            if words.next() == Some("TYPE") {
                typed.push(words.next().unwrap().to_owned());
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        // Every series belongs to the type before it.
        assert!(series.starts_with(typed.last().unwrap().as_str()), "{line}");
        let old = found.insert(series.to_owned(), value.parse().unwrap());
        assert_eq!(old, None, "{series} is there twice");
    }
    typed.sort();
    let count = typed.len();
    typed.dedup();
    assert_eq!(typed.len(), count, "a type is there twice");
    found
}

/// What has been counted in between, but for the scrapes themselves.
fn counted(before: &Scrape, after: &Scrape) -> Vec<(String, f64)> {
    assert!(before.keys().all(|series| after.contains_key(series)), "a series is gone");
    after
        .iter()
        .filter(|(series, _)| {
            let name = series.split('{').next().unwrap();
            (name.ends_with("_total") || name.ends_with("_count"))
                && !series.contains("\"/metrics\"")
        })
        .map(|(series, value)| {
            let series = series.strip_prefix("farmhand_").unwrap().to_owned();
            let before = before.get(&format!("farmhand_{series}")).unwrap_or(&0.0);
            (series, value - before)
        })
        .filter(|(_, more)| *more != 0.0)
        .collect()
}

#[track_caller]
fn assert_counted(before: &Scrape, after: &Scrape, expected: &[(&str, u32)]) {
    let mut expected: Vec<_> =
        expected.iter().map(|(series, more)| ((*series).to_owned(), f64::from(*more))).collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(counted(before, after), expected);
}

#[test]
fn uploads_are_counted_by_how_they_end() {
    let server = TestServer::start();
    let (one, other, third) = (random(1000), random(2000), random(4000));
    let path = format!("/api/v3/shaman/files/{}", address(&third));
    let before = scrape(&server);
    for outcome in ["stored", "already_stored", "absorbed", "deferred", "failed"] {
        assert_eq!(before[&format!("farmhand_uploads_total{{outcome=\"{outcome}\"}}")], 0.0);
    }

    assert_eq!(server.upload(&one).status, 204);
    assert_eq!(server.upload(&one).status, 208);
    // One that defers, and one that waits for the other's end.
    let mut sender = server.connect();
    sender.half_upload(&other, "");
    server.until_status(&other, "uploading");
    let asked = scrape(&server);
    assert_eq!(server.connect().upload(&other, DEFERS).status, 425);
    let waiting = |count: f64| until(|| scrape(&server)["farmhand_uploads_waiting"] == count);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| server.upload(&other).status);
        waiting(1.0);
        assert_eq!(sender.other_half(&other).status, 204);
        assert_eq!(held.join().unwrap(), 208);
    });
    waiting(0.0);
    // One that goes away in the middle, and one that takes over.
    let received = |scrape: &Scrape| scrape["farmhand_received_bytes_total"];
    let so_far = received(&scrape(&server));
    let mut broken = server.connect();
    broken.half_upload(&third, "");
    until(|| received(&scrape(&server)) == so_far + 2000.0);
    let now = scrape(&server);
    assert_eq!(now["farmhand_uploads_in_flight"], 1.0);
    until(|| scrape(&server)["farmhand_storage_promised_bytes"] == 2000.0);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| server.upload(&third).status);
        waiting(1.0);
        drop(broken);
        assert_eq!(held.join().unwrap(), 204);
    });
    // And those that are not what they say.
    let fourth = random(500);
    let name = format!("/api/v3/shaman/files/{}", address(&fourth));
    assert_eq!(server.connect().post(&name, "", &vec![0; 500]).status, 417);
    assert_eq!(server.connect().post(&name, "", &fourth[1..]).status, 417);
    assert_eq!(server.connect().post("/api/v3/shaman/files/short/1", "", b"x").status, 400);
    assert_eq!(server.connect().post(&path, "", &third).status, 208);

    until(|| scrape(&server)["farmhand_uploads_total{outcome=\"failed\"}"] == 4.0);
    let after = scrape(&server);
    let files = |code: u16, method: &str| {
        format!(
            "requests_total{{route=\"/api/v3/shaman/files/{{sha}}/{{size}}\",method=\"{method}\",code=\"{code}\"}}"
        )
    };
    let durations = |method: &str| {
        format!(
            "request_duration_seconds_count{{route=\"/api/v3/shaman/files/{{sha}}/{{size}}\",method=\"{method}\"}}"
        )
    };
    // How often the status was asked for is not known.
    let asks = counted(&before, &asked)
        .into_iter()
        .find_map(|(series, more)| (series == files(200, "GET")).then_some(more as u32))
        .unwrap();
    // The one that went away may or may not have been answered for nobody.
    let counts = counted(&before, &after);
    let wrong = counts.iter().find(|(series, _)| *series == files(400, "POST")).unwrap().1 as u32;
    assert!(matches!(wrong, 1 | 2), "{wrong}");
    assert_counted(
        &before,
        &after,
        &[
            (&files(200, "GET"), asks),
            (&durations("GET"), asks),
            (&files(204, "POST"), 3),
            (&files(208, "POST"), 3),
            (&files(425, "POST"), 1),
            (&files(417, "POST"), 2),
            (&files(400, "POST"), wrong),
            (&durations("POST"), 9 + wrong),
            ("uploads_total{outcome=\"stored\"}", 3),
            ("uploads_total{outcome=\"already_stored\"}", 2),
            ("uploads_total{outcome=\"absorbed\"}", 1),
            ("uploads_total{outcome=\"deferred\"}", 1),
            ("uploads_total{outcome=\"failed\"}", 4),
            ("uploads_held_total{end=\"absorbed\"}", 1),
            ("uploads_held_total{end=\"took_over\"}", 1),
            ("verify_failures_total{reason=\"size\"}", 1),
            ("verify_failures_total{reason=\"digest\"}", 1),
            ("received_bytes_total", 1000 + 2000 + 2000 + 4000 + 500),
            ("stored_bytes_total", 1000 + 2000 + 4000),
            ("upload_sync_seconds_count", 3),
        ],
    );
    assert!(after["farmhand_upload_sync_seconds_sum"] > 0.0);
    assert_eq!(after["farmhand_uploads_in_flight"], 0.0);
    assert_eq!(after["farmhand_storage_promised_bytes"], 0.0);
}

#[test]
fn one_that_waits_too_long_sends_beside() {
    let server =
        TestServer::with(Options { hold: Duration::from_millis(20), ..Options::default() });
    let content = random(100_000);
    let mut slow = server.connect();
    slow.half_upload(&content, "");
    server.until_status(&content, "uploading");
    let before = scrape(&server);
    assert_eq!(server.upload(&content).status, 204);
    assert_eq!(slow.other_half(&content).status, 204);
    let after = scrape(&server);
    let beside = "farmhand_uploads_held_total{end=\"beside\"}";
    assert_eq!((before[beside], after[beside]), (0.0, 1.0));
    // A size that turns out to be wrong only when the body has come.
    let path = format!("/api/v3/shaman/files/{}", address(b"abc"));
    let mut chunked = server.connect();
    chunked.send(
        format!("POST {path} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(chunked.answer().status, 417);
    assert_eq!(scrape(&server)["farmhand_verify_failures_total{reason=\"size\"}"], 1.0);
}

#[test]
fn checkouts_and_wrong_requests_are_counted_by_route_and_code() {
    let server = TestServer::start();
    let (one, other) = (random(1000), random(2000));
    server.upload(&one);
    server.upload(&other);
    let before = scrape(&server);
    let files = json!([file(&one, "a"), file(&one, "b"), file(&other, "c")]);
    for _ in 0..2 {
        let body = json!({ "checkoutPath": "x", "files": files });
        assert_eq!(server.post_json("checkout/create", &body).status, 200);
    }
    let missing = json!({ "checkoutPath": "y", "files": [file(b"missing", "a")] });
    assert_eq!(server.post_json("checkout/create", &missing).status, 424);
    assert_eq!(server.post_json("checkout/create", &json!({ "files": [] })).status, 400);
    assert_eq!(server.post_json("checkout/requirements", &missing).status, 200);
    assert_eq!(server.connect().post("/api/v3/shaman/checkout/create", "", b"{}").status, 415);
    assert_eq!(server.connect().get("/api/v3/shaman/files/short/1").status, 400);
    assert_eq!(server.connect().get("/api/v3/shaman/files/short").status, 400);
    for path in ["/", "/made/up", "/made/up/too", "/metrics/"] {
        assert_eq!(server.connect().get(path).status, 404);
    }
    assert_eq!(server.connect().post("/healthz", "", b"").status, 405);
    let mut odd = server.connect();
    odd.send(b"BREW /readyz HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(odd.answer().status, 405);
    let mut malformed = server.connect();
    malformed.send(b"GET / HTTP/9.9\r\n\r\n");
    assert_eq!(malformed.answer().status, 400);
    assert!(malformed.is_closed());

    until(|| scrape(&server)["farmhand_malformed_requests_total"] == 1.0);
    let after = scrape(&server);
    let create = "route=\"/api/v3/shaman/checkout/create\",method=\"POST\"";
    let requirements = "route=\"/api/v3/shaman/checkout/requirements\",method=\"POST\"";
    let status = "route=\"/api/v3/shaman/files/{sha}/{size}\",method=\"GET\"";
    let healthz = "route=\"/healthz\",method=\"POST\"";
    let readyz = "route=\"/readyz\",method=\"other\"";
    let none = "route=\"none\",method=\"GET\"";
    let requests = |labels: &str, code: u16| format!("requests_total{{{labels},code=\"{code}\"}}");
    let durations = |labels: &str| format!("request_duration_seconds_count{{{labels}}}");
    assert_counted(
        &before,
        &after,
        &[
            (&requests(create, 200), 2),
            (&requests(create, 424), 1),
            (&requests(create, 400), 1),
            (&requests(create, 415), 1),
            (&durations(create), 5),
            (&requests(requirements, 200), 1),
            (&durations(requirements), 1),
            (&requests(status, 400), 1),
            (&durations(status), 1),
            (&requests(healthz, 405), 1),
            (&durations(healthz), 1),
            (&requests(readyz, 405), 1),
            (&durations(readyz), 1),
            (&requests(none, 404), 4),
            (&requests(none, 400), 1),
            (&durations(none), 5),
            ("malformed_requests_total", 1),
            ("checkouts_total{outcome=\"created\"}", 2),
            ("checkouts_total{outcome=\"failed\"}", 3),
            ("checkout_links_total", 6),
            ("checkout_bytes_total", 2 * (1000 + 1000 + 2000)),
        ],
    );
}

#[test]
fn the_server_says_what_it_is_and_how_it_is() {
    let before = std::time::SystemTime::now();
    let server = TestServer::start();
    let open = [server.connect(), server.connect()];
    // Of these and of the one that asks.
    until(|| scrape(&server)["farmhand_connections_open"] == 3.0);
    drop(open);
    until(|| scrape(&server)["farmhand_connections_open"] == 1.0);
    let found = scrape(&server);
    assert_eq!(
        found[&format!("farmhand_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))],
        1.0
    );
    let now = |time: std::time::SystemTime| {
        time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
    };
    let between = now(before)..=now(std::time::SystemTime::now());
    assert!(between.contains(&found["process_start_time_seconds"]));
    // Opening the store has cleaned up; the other jobs have never been done.
    let jobs: Vec<_> = found.keys().filter(|series| series.contains("last_success")).collect();
    let cleanup = "farmhand_last_success_timestamp_seconds{job=\"temp_cleanup\"}";
    assert_eq!(jobs, [cleanup]);
    assert!(between.contains(&found[cleanup]));
    let room = |name: &str| found[&format!("farmhand_storage_{name}_bytes")];
    assert_eq!(room("reserve"), f64::from(256 << 20));
    assert!(room("free") > 0.0 && room("free") < room("size"));
    assert_eq!(room("promised"), 0.0);
    // Servers share nothing.
    let other = TestServer::start();
    other.upload(b"x");
    assert_eq!(scrape(&server)["farmhand_stored_bytes_total"], 0.0);
    assert_eq!(scrape(&other)["farmhand_stored_bytes_total"], 1.0);
}
