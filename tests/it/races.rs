//! Many at once: nothing is lost, and nobody is told what is not so.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use farmhand::{
    server::Options,
    store::{self, Durability},
};
use serde_json::json;

use super::common::*;

/// A store that does not sync: thousands of uploads, and no power cut.
fn relaxed(options: Options) -> TestServer {
    let store = store::Options { durability: Durability::Relaxed, ..Default::default() };
    TestServer::with_store(options, store)
}

/// Whatever is called stored is there, whole.
fn check(server: &TestServer, content: &[u8]) {
    let sha = sha(content);
    let path = format!("file-store/stored/{}/{}/{}.blob", &sha[..2], &sha[2..], content.len());
    let stored = std::fs::read(server.storage().join(path)).expect("it was said to be stored");
    assert!(stored == content, "it is not what was sent");
}

#[test]
fn two_uploaders_ending_together_both_succeed() {
    let server = relaxed(Options::default());
    let mut senders = [server.connect(), server.connect()];
    for round in 0..1000 {
        let content = random(100 + round);
        for sender in &mut senders {
            sender.half_upload(&content, "");
        }
        let statuses = std::thread::scope(|scope| {
            senders
                .each_mut()
                .map(|sender| scope.spawn(|| sender.other_half(&content).status))
                .map(|thread| thread.join().unwrap())
        });
        assert!(statuses == [204, 208] || statuses == [208, 204], "round {round}: {statuses:?}");
        check(&server, &content);
    }
}

/// Clients that lie, stall, or go away in the middle, beside honest ones with the same blobs.
#[test]
fn bad_clients_do_not_harm_good_ones() {
    const CLIENTS: usize = 32;
    const ROUNDS: usize = 12;
    let options = Options {
        hold: Duration::from_millis(200),
        body_timeout: Duration::from_millis(500),
        ..Options::default()
    };
    let server = relaxed(options);
    let (stored, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for _ in 0..ROUNDS {
        let blobs: Vec<Vec<u8>> = (0..4).map(|_| random(60_000)).collect();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (server, blobs, stored, refused) = (&server, &blobs, &stored, &refused);
                scope.spawn(move || {
                    let content = &blobs[client % blobs.len()];
                    let mut connection = server.connect();
                    match client / blobs.len() % 4 {
                        // Goes away in the middle.
                        0 => connection.half_upload(content, ""),
                        // Lies, if it is let.
                        1 => {
                            connection.half_upload(content, "");
                            let answer = connection.other_half(&vec![0; content.len()]);
                            // Not let run for long enough, it has stalled.
                            assert!(matches!(answer.status, 417 | 208 | 408), "{answer:?}");
                            refused.fetch_add(1, SeqCst);
                        }
                        // Stalls until it is told to go.
                        2 => {
                            connection.half_upload(content, "");
                            let answer = connection.answer();
                            assert!(matches!(answer.status, 408 | 208), "{answer:?}");
                            refused.fetch_add(1, SeqCst);
                        }
                        // Means it.
                        _ => {
                            let answer = connection.upload(content, "");
                            assert!(matches!(answer.status, 204 | 208), "{answer:?}");
                            check(server, content);
                            stored.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
        });
        for content in &blobs {
            server.until_status(content, "stored");
            check(&server, content);
        }
        let files: Vec<_> =
            blobs.iter().enumerate().map(|(i, blob)| file(blob, &i.to_string())).collect();
        let answer = server
            .post_json("checkout/create", &json!({ "checkoutPath": "round", "files": files }));
        assert_eq!(answer.status, 200);
    }
    assert_eq!(stored.into_inner(), ROUNDS * CLIENTS / 4);
    assert_eq!(refused.into_inner(), ROUNDS * CLIENTS / 2);
    until(|| server.temp_files() == 0);
}
