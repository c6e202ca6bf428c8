//! What sending less costs and saves: chunks, batches, pieces. Beside ours stands the same program doing it
//! plainly, so that "ours ÷ floor" is how many times as long it takes.

use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use bytesize::ByteSize;
use farmhand::wire::{ADMIN, write_blob};

use crate::{
    client::{push_command, rest, run_client},
    fixture,
    http::{Connection, Server, blob_url, farmhand, head, request, send_all, upload_request},
    measure::{Contender, Row, Sample, Work, settle},
    part::Part,
    rows::{Bench, amount, into_empty_store, part, remove},
};

/// Blobs of a batch: as farmhand's client sends them.
const BATCH_BLOBS: usize = 256;

/// Cutting and hashing chunks, beside the hash that has to be made anyway.
pub fn cut(bench: &Bench) -> Row {
    let file = bench.fresh("file");
    fs::write(&file, fixture::random_bytes(1, bench.sizes.resent_bytes)).expect("cannot write");
    let row = bench.compare(
        format!("cut {} into chunks", ByteSize::b(bench.sizes.resent_bytes as u64)),
        Work::Bytes(bench.sizes.resent_bytes as u64),
        vec![part("read + cut + BLAKE3, 1 thread", Part::Cut { file: file.clone() })],
        vec![part("floor: read + SHA-256, 1 thread", Part::ReadAndHashOne { file: file.clone() })],
    );
    remove(&file);
    row
}

/// Many small blobs together, and the same one by one.
pub fn batch(bench: &Bench) -> Vec<Row> {
    let (count, size_bytes) = (bench.sizes.uploads, bench.sizes.upload_bytes);
    let contents = || (0..count).map(|number| fixture::random_bytes(number as u64, size_bytes));
    let plain: Vec<_> = contents().map(|content| upload_request(&content)).collect();
    let contents: Vec<Vec<u8>> = contents().collect();
    let batches: Vec<Vec<u8>> = contents
        .chunks(BATCH_BLOBS)
        .map(|contents| {
            let mut body = Vec::new();
            for content in contents {
                let digest = fixture::sha256_hex(content).parse().expect("a digest");
                write_blob(&digest, "texture.exr", content, None, &mut body);
            }
            request("POST", &format!("{ADMIN}/batch"), &body)
        })
        .collect();
    let send = |requests: &[Vec<u8>], connections: usize, status: u16| {
        let storage = bench.fresh("storage");
        let server = Server::farmhand(&bench.dir, &storage);
        settle(&bench.dir);
        let sample = server.measure(|server| send_all(server, requests, connections, &[status]));
        remove(&storage);
        sample
    };
    let row = |connections: usize| {
        let store = || {
            let (blobs, threads) = (count, 2);
            into_empty_store(bench, |storage| Part::Store {
                storage,
                blobs,
                size_bytes,
                threads,
                sync: false,
            })
        };
        bench.compare(
            format!("batches, {}, {connections} connections", amount(count, size_bytes)),
            Work::Files(count as u64),
            vec![Contender::new("server, by batches", || send(&batches, connections, 200))],
            vec![
                Contender::new("the same server, one by one", || send(&plain, connections, 204)),
                Contender::new("floor: write + rename, nothing synced, 2 threads", store),
            ],
        )
    };
    [4, 16].map(row).into()
}

/// A run of the client, with these settings.
fn push(bench: &Bench, server: &Server, folder: &Path, settings: &[(&str, &str)]) -> Sample {
    run_client(push_command(bench, server, folder).envs(settings.iter().copied()), server).0
}

const PLAIN: (&str, &str) = ("FARMHAND_UPLOAD_EXTENSION", "false");

/// A folder with one file, of which the client knows the hash.
fn folder(bench: &Bench, name: &str, content: &[u8]) -> std::path::PathBuf {
    let folder = bench.fresh(name);
    fs::create_dir(&folder).expect("cannot make a folder");
    fs::write(folder.join("scene.blend"), content).expect("cannot write");
    rest();
    let hashed = farmhand(&bench.dir).arg("hash").arg(&folder).stdout(Stdio::null()).status();
    assert!(hashed.expect("cannot start the client").success());
    folder
}

/// A large file of which the server knows nothing.
pub fn pieces(bench: &Bench) -> Row {
    let size_bytes = bench.sizes.resent_bytes;
    let folder = folder(bench, "folder", &fixture::random_bytes(7, size_bytes));
    let send = |settings: &[(&str, &str)]| {
        let storage = bench.fresh("storage");
        let server = Server::farmhand(&bench.dir, &storage);
        let sample = push(bench, &server, &folder, settings);
        drop(server);
        remove(&storage);
        sample
    };
    let row = bench.compare(
        format!("push {}, nothing known", ByteSize::b(size_bytes as u64)),
        Work::Bytes(size_bytes as u64),
        vec![Contender::new("in pieces", || send(&[]))],
        vec![
            Contender::new("plainly", || send(&[PLAIN])),
            Contender::new("asked about, then in pieces", || {
                send(&[("FARMHAND_UPLOAD_DELTA", "always")])
            }),
        ],
    );
    remove(&folder);
    row
}

/// A large file of which the server knows all but a piece in the middle.
pub fn delta(bench: &Bench) -> Row {
    let size_bytes = bench.sizes.resent_bytes;
    let mut content = fixture::random_bytes(7, size_bytes);
    let sha = fixture::sha256_hex(&content);
    let plain = head("POST", &blob_url(&sha, size_bytes as u64), size_bytes as u64);
    let before = content.clone();
    let middle = size_bytes / 2;
    content.splice(middle..middle + 1000, fixture::random_bytes(8, 5000));
    let folder = folder(bench, "folder", &content);
    let send = |settings: &[(&str, &str)]| {
        let storage = bench.fresh("storage");
        let server = Server::farmhand(&bench.dir, &storage);
        let mut connection = Connection::open(&server);
        connection.send(&plain);
        connection.send(&before);
        assert_eq!(connection.receive().status, 204);
        until_indexed(&mut connection);
        let sample = push(bench, &server, &folder, settings);
        drop(server);
        remove(&storage);
        sample
    };
    let row = bench.compare(
        format!("push {}, nearly known", ByteSize::b(size_bytes as u64)),
        Work::Bytes(size_bytes as u64),
        vec![Contender::new("by its chunks", || send(&[("FARMHAND_UPLOAD_DELTA", "always")]))],
        vec![Contender::new("plainly", || send(&[PLAIN]))],
    );
    remove(&folder);
    row
}

fn until_indexed(connection: &mut Connection) {
    loop {
        let text = connection.exchange(&head("GET", "/metrics", 0)).body;
        let text = String::from_utf8(text).expect("metrics are text");
        if text.contains("farmhand_chunk_index_blobs 1\n")
            && text.contains("farmhand_chunk_index_behind 0\n")
        {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
