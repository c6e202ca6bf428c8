//! Uploads that are limited and held.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use farmhand::{
    agent::{Line, Options},
    server,
};

use super::{
    common::*,
    sync::{Client, folder},
};

const MIB: u64 = 1 << 20;

/// Slow enough that something can be done meanwhile.
fn slow() -> Arc<Line> {
    Arc::new(Line::new("4MiB/s".parse().unwrap()))
}

#[test]
fn a_limit_is_kept() {
    let server = TestServer::start();
    // Whole files, and one in pieces.
    let small: Vec<_> = (0..16).map(|_| random(64 << 10)).collect();
    let large = random(2 << 20);
    let names: Vec<_> = (0..16).map(|number| format!("small-{number}")).collect();
    let mut files: Vec<_> =
        names.iter().map(String::as_str).zip(small.iter().map(Vec::as_slice)).collect();
    files.push(("large", &large));
    let dir = folder(&files);
    let mut client = Client::new(&server.url());
    let line = slow();
    let start = Instant::now();
    let report = client
        .sync_with(client.scan(dir.path()), Options { line: line.clone(), ..Options::default() })
        .unwrap();
    // Three MiB, less what may go at once at first and what is paid for afterwards.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    assert_eq!((report.uploaded_bytes, report.sent_bytes), (3 * MIB, line.sent_bytes()));
    // Some go together, and have heads.
    assert!((3 * MIB..3 * MIB + 10_000).contains(&line.sent_bytes()), "{}", line.sent_bytes());
    assert_eq!((line.rate(), line.uploads()), (Some(4 * MIB), vec![]));
}

#[test]
fn a_held_upload_stops_at_once_and_goes_on_later() {
    let server = TestServer::start();
    let (large, small) = (random(3 << 20), random(100));
    let dir = folder(&[("large", &large)]);
    let other = folder(&[("other", &random(5 << 20)), ("small", &small)]);
    let line = slow();
    thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut client = Client::new(&server.url());
            let options = Options { line: line.clone(), ..Options::default() };
            client.sync_with(client.scan(dir.path()), options)
        });
        until(|| line.sent_bytes() > MIB / 2);
        let hold = line.hold();
        let sent = line.sent_bytes();
        assert!(line.is_held() && sent < 3 * MIB, "{sent}");
        let now = line.uploads();
        assert_eq!(now.len(), 1);
        assert_eq!((&*now[0].path, now[0].size_bytes, now[0].sent_bytes), ("large", 3 * MIB, sent));
        // Somebody else, with a line of their own, has all the time they need.
        let mut urgent = Client::new(&server.url());
        let report = urgent.sync_with(urgent.scan(other.path()), Options::default()).unwrap();
        assert_eq!(report.uploaded_files, 2);
        assert_eq!(line.sent_bytes(), sent);
        assert_eq!(server.status(&large), "uploading");
        drop(hold);
        assert_eq!(syncing.join().unwrap().unwrap().retries, 0);
    });
    assert_eq!(server.status(&large), "stored");
}

/// A server does not wait for ever for the rest of a file. That is our doing.
#[test]
fn a_hold_that_lasts_longer_than_the_server_waits_costs_no_retry() {
    let body_timeout = Duration::from_millis(300);
    let server = TestServer::with(server::Options { body_timeout, ..server::Options::default() });
    let large = random(3 << 20);
    let dir = folder(&[("large", &large)]);
    let line = slow();
    thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut client = Client::new(&server.url());
            let options = Options { retries: 0, line: line.clone(), ..Options::default() };
            client.sync_with(client.scan(dir.path()), options)
        });
        let mut sent = 0;
        for _ in 0..3 {
            until(|| line.sent_bytes() > sent + MIB / 2 || syncing.is_finished());
            assert!(!syncing.is_finished(), "{:?}", syncing.join());
            let hold = line.hold();
            sent = line.sent_bytes();
            server.until_status(&large, "unknown");
            assert_eq!(line.sent_bytes(), sent);
            drop(hold);
        }
        let report = syncing.join().unwrap().unwrap();
        assert_eq!((report.retries, report.uploaded_files), (0, 1));
    });
    assert_eq!(server.status(&large), "stored");
    assert!(line.sent_bytes() > 4 * MIB, "{}", line.sent_bytes());
}
