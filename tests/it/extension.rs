//! What farmhand's server speaks beside Shaman, as any client could speak it: `docs/EXTENSION.md`, and lies.

use std::{
    fs,
    io::Write,
    time::{Duration, SystemTime},
};

use farmhand::{
    domain::ChunkId,
    server::Options,
    store::{self, Durability},
};
use serde_json::{Value, json};

use super::common::*;

const ME: &str = "X-Farmhand-Sender: me\r\n";

/// A recipe of these chunks.
fn recipe(chunks: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in chunks {
        body.extend_from_slice(ChunkId::of(chunk).as_bytes());
        body.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
    }
    body
}

/// One chunk, as it is sent: said to be `name`.
fn frame(name: &[u8], offset: u64, content: &[u8]) -> Vec<u8> {
    let mut body = ChunkId::of(name).as_bytes().to_vec();
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&(content.len() as u32).to_le_bytes());
    body.extend_from_slice(&(content.len() as u32).to_le_bytes());
    body.extend_from_slice(content);
    body
}

/// One small blob, as it is sent: said to be `name`.
fn small(name: &[u8], path: &str, content: &[u8]) -> Vec<u8> {
    let digest: farmhand::domain::Digest = sha(name).parse().unwrap();
    let mut body = digest.as_bytes().to_vec();
    body.extend_from_slice(&(content.len() as u32).to_le_bytes());
    body.extend_from_slice(&(content.len() as u32).to_le_bytes());
    body.extend_from_slice(&(path.len() as u16).to_le_bytes());
    body.extend_from_slice(path.as_bytes());
    body.extend_from_slice(content);
    body
}

/// Requests about one unfinished blob, from one sender.
struct Sender<'a> {
    server: &'a TestServer,
    blob: String,
    header: String,
}

impl<'a> Sender<'a> {
    fn new(server: &'a TestServer, content: &[u8]) -> Self {
        Self { server, blob: address(content), header: ME.to_owned() }
    }

    fn named(self, name: &str) -> Self {
        Self { header: format!("X-Farmhand-Sender: {name}\r\n"), ..self }
    }

    fn post(&self, what: &str, body: &[u8]) -> Answer {
        let path = format!("/farmhand/v1/unfinished/{}{what}", self.blob);
        self.server.connect().post(&path, &self.header, body)
    }

    fn begin(&self) -> Answer {
        self.post("", b"")
    }

    #[track_caller]
    fn begun(self) -> Self {
        assert_eq!(self.begin().status, 200);
        self
    }

    fn lay(&self, offset: u64, chunks: &[&[u8]]) -> Answer {
        self.post(&format!("/recipe?offset={offset}"), &recipe(chunks))
    }

    fn put(&self, offset: u64, content: &[u8]) -> Answer {
        self.post("/chunks", &frame(content, offset, content))
    }

    fn finish(&self) -> Answer {
        self.post("/finish", b"")
    }

    fn abandon(&self) -> Answer {
        let mut connection = self.server.connect();
        let (blob, header) = (&self.blob, &self.header);
        let head = format!(
            "DELETE /farmhand/v1/unfinished/{blob} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n"
        );
        connection.send(head.as_bytes());
        connection.answer()
    }
}

fn batch(server: &TestServer, blobs: &[Vec<u8>]) -> Answer {
    server.connect().post("/farmhand/v1/batch", "", &blobs.concat())
}

fn statuses(answer: &Answer) -> Vec<u64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let blobs = answer.json()["blobs"].as_array().unwrap().clone();
    blobs.iter().map(|blob| blob["status"].as_u64().unwrap()).collect()
}

#[test]
fn what_it_can_is_said() {
    let server = TestServer::start();
    let said = server.connect().get("/farmhand/v1/capabilities").json();
    assert_eq!(said["software"], "farmhand");
    assert_eq!(said["chunks"]["cut"], "fastcdc-2020/8192/16384/65536");
    assert_eq!(said["chunks"]["reuse"], true);
    assert_eq!((&said["chunks"]["zstd"], &said["download"]), (&json!(true), &json!(true)));
    assert!(said["batch"]["max_blobs"].as_u64().unwrap() >= 256);
    let options = store::Options { index_chunks: false, ..store::Options::default() };
    let server = TestServer::with_store(Options::default(), options);
    let said = server.connect().get("/farmhand/v1/capabilities").json();
    assert_eq!(said["chunks"]["reuse"], false);
}

#[test]
fn a_file_comes_in_pieces() {
    let server = TestServer::start();
    let content = random(100_000);
    let sender = Sender::new(&server, &content);
    assert_eq!(sender.begin().json(), json!({ "resumable": false }));
    assert_eq!(server.status(&content), "uploading");
    let pieces: Vec<&[u8]> = content.chunks(30_000).collect();
    let missing = sender.lay(0, &pieces).json();
    assert_eq!(missing, json!({ "missing": [[0, 4]] }));
    assert_eq!(sender.put(30_000, pieces[1]).status, 204);
    assert_eq!(sender.lay(0, &pieces).json(), json!({ "missing": [[0, 1], [2, 2]] }));
    // Recipes may be of parts, and cut elsewhere.
    assert_eq!(sender.lay(40_000, &[&content[40_000..45_000]]).json(), json!({ "missing": [] }));
    sender.finish().is_error(409, "70000 bytes are missing, the first at 0");
    // Many at once, in any order.
    let mut body = frame(pieces[3], 90_000, pieces[3]);
    body.extend(frame(pieces[0], 0, pieces[0]));
    body.extend(frame(pieces[2], 60_000, pieces[2]));
    assert_eq!(sender.post("/chunks", &body).status, 204);
    assert_eq!(sender.finish().status, 204);
    assert_eq!(server.status(&content), "stored");
    assert_eq!(fs::read(blob_path(&server, &content)).unwrap(), content);
    assert_eq!((sender.begin().status, sender.finish().status), (208, 208));
    assert_eq!((server.unfinished(), server.temp_files()), (0, 0));
}

fn blob_path(server: &TestServer, content: &[u8]) -> std::path::PathBuf {
    let (sha, size) = (sha(content), content.len());
    let stored = server.storage().join("file-store/stored");
    stored.join(&sha[..2]).join(&sha[2..]).join(format!("{size}.blob"))
}

#[test]
fn what_was_whole_of_a_body_that_breaks_off_is_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let content = random(200_000);
    let (first, rest) = content.split_at(80_000);
    {
        let server = TestServer::over(storage.clone(), Options::default());
        let sender = Sender::new(&server, &content).begun();
        let mut body = frame(first, 0, first);
        body.extend(frame(rest, 80_000, rest));
        let path = format!("/farmhand/v1/unfinished/{}/chunks", sender.blob);
        let mut connection = server.connect();
        connection.send(&post_head(&path, ME, body.len() as u64));
        connection.stream.write_all(&body[..body.len() - 1]).unwrap();
        drop(connection);
        until(|| sender.lay(0, &[first, rest]).json() == json!({ "missing": [[1, 1]] }));
    }
    let server = TestServer::over(storage, Options::default());
    assert_eq!((server.unfinished(), server.temp_files()), (1, 0));
    let sender = Sender::new(&server, &content).named("another");
    assert_eq!(sender.begin().json(), json!({ "resumable": true }));
    assert_eq!(sender.lay(0, &[first, rest]).json(), json!({ "missing": [[1, 1]] }));
    assert_eq!(sender.put(80_000, rest).status, 204);
    assert_eq!(sender.finish().status, 204);
    assert_eq!(fs::read(blob_path(&server, &content)).unwrap(), content);
}

#[test]
fn chunks_of_other_files_are_put_in_place_and_never_shown() {
    let server = TestServer::start();
    // Somebody else's secret, of which this client has but the digests of its chunks.
    let secret = random(300_000);
    assert_eq!(server.upload(&secret).status, 204);
    server.until_indexed(1);
    let cut = chunks_of(&secret);
    let known = server.connect().post("/farmhand/v1/chunks/known", "", &recipe(&cut));
    assert_eq!(known.json(), json!({ "known": cut.len() }));
    assert!(cut[1].len() < 65_537);
    // The whole, named by what the client would like to know: refused, and not told what it is.
    let wanted = format!("{}/{}", sha(b"guessed"), cut[1].len());
    let sender = Sender { server: &server, blob: wanted.clone(), header: ME.to_owned() };
    assert_eq!(sender.begin().status, 200);
    assert_eq!(sender.lay(0, &cut[1..2]).json(), json!({ "missing": [] }));
    let refused = sender.finish();
    refused.is_error(417, "is not what the digest says");
    let told = String::from_utf8(refused.body).unwrap();
    assert!(!told.contains(&sha(cut[1])[..16]) && !told.contains(&sha(cut[1])[48..]), "{told}");
    for blob in [wanted, address(cut[1])] {
        let answer = server.connect().get(&format!("/farmhand/v1/blobs/{blob}"));
        assert_eq!(answer.status, 404);
    }
    assert_eq!((server.unfinished(), server.status(cut[1]).as_str()), (0, "unknown"));
    // Nor can it be found out piece by piece, whatever was borrowed is compared with.
    let made_up = format!("{}/{}", sha(b"made up"), cut[1].len());
    let sender = Sender { server: &server, blob: made_up, header: ME.to_owned() };
    assert_eq!(sender.begin().status, 200);
    assert_eq!(sender.lay(0, &cut[1..2]).json(), json!({ "missing": [] }));
    for guess in [cut[1][0], !cut[1][0]] {
        sender.lay(0, &[&[guess]]).is_error(409, "may be others");
        sender.put(0, &[guess]).is_error(409, "may be others");
    }
    assert_eq!(sender.abandon().status, 204);
    // Whoever knows the digest of all of it has all of it.
    let mine = [&secret[..], b"and more"].concat();
    let sender = Sender::new(&server, &mine).begun();
    let cut = chunks_of(&mine);
    let missing = sender.lay(0, &cut).json();
    assert_eq!(missing, json!({ "missing": [[cut.len() - 1, 1]] }));
    let last = cut[cut.len() - 1];
    assert_eq!(sender.put((mine.len() - last.len()) as u64, last).status, 204);
    assert_eq!(sender.finish().status, 204);
    assert_eq!(fs::read(blob_path(&server, &mine)).unwrap(), mine);
}

/// Cut as the document says, in its plain form.
fn chunks_of(content: &[u8]) -> Vec<&[u8]> {
    let mut gear = [0u64; 256];
    for (byte, value) in (0..=u8::MAX).zip(&mut gear) {
        *value = gear_of(byte);
    }
    let (mut rest, mut chunks) = (content, Vec::new());
    while !rest.is_empty() {
        let window = rest.len().min(65_536);
        let mut hash = 0u64;
        let mut length = window;
        for at in 8_192..window {
            hash = (hash << 1).wrapping_add(gear[usize::from(rest[at])]);
            let mask = if at < 16_384 { 0x0000_d90f_0353_0000 } else { 0x0000_d903_0353_0000 };
            if hash & mask == 0 {
                length = at;
                break;
            }
        }
        let (chunk, left) = rest.split_at(length);
        chunks.push(chunk);
        rest = left;
    }
    chunks
}

/// The first eight bytes of the MD5 of this byte, 64 times: as published.
fn gear_of(byte: u8) -> u64 {
    const SHIFTS: [[u32; 4]; 4] =
        [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let mut end = [0u8; 64];
    end[0] = 0x80;
    end[56..].copy_from_slice(&512u64.to_le_bytes());
    for block in [[byte; 64], end] {
        let [mut a, mut b, mut c, mut d] = state;
        for step in 0..64 {
            let (mixed, word) = match step / 16 {
                0 => ((b & c) | (!b & d), step),
                1 => ((d & b) | (!d & c), (5 * step + 1) % 16),
                2 => (b ^ c ^ d, (3 * step + 5) % 16),
                _ => (c ^ (b | !d), (7 * step) % 16),
            };
            let sine = ((step as f64 + 1.0).sin().abs() * 4_294_967_296.0) as u32;
            let word = u32::from_le_bytes(block[4 * word..4 * word + 4].try_into().unwrap());
            let sum = a.wrapping_add(mixed).wrapping_add(sine).wrapping_add(word);
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[step / 16][step % 4]));
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let bytes = [state[0].to_le_bytes(), state[1].to_le_bytes()].concat();
    u64::from_be_bytes(bytes.try_into().unwrap())
}

#[test]
fn lies_get_a_clear_answer_and_publish_nothing() {
    let server = TestServer::with(Options {
        body_timeout: Duration::from_millis(300),
        ..Options::default()
    });
    let (a, b) = (random(10_000), random(10_000));
    let content = [&a[..], &b[..]].concat();
    let me = Sender::new(&server, &content);
    // Nothing was begun.
    me.put(0, &a).is_error(404, "begin anew");
    me.lay(0, &[&a]).is_error(404, "begin anew");
    me.finish().is_error(404, "begin anew");
    me.abandon().is_error(404, "begin anew");
    for header in
        ["", "X-Farmhand-Sender: \r\n", "X-Farmhand-Sender: a b\r\n", "X-Farmhand-Sender: ../x\r\n"]
    {
        let nobody = Sender { header: header.to_owned(), ..Sender::new(&server, &content) };
        nobody.begin().is_error(400, "x-farmhand-sender");
    }
    let long = Sender::new(&server, &content).named(&"a".repeat(65));
    long.begin().is_error(400, "x-farmhand-sender");
    let me = me.begun();
    // Wrong chunks, wrong lengths.
    me.post("/chunks", &frame(&a, 0, &b))
        .is_error(417, "the chunk at 0 is not what its digest says");
    me.post("/chunks", &frame(&a, 0, &a[1..])).is_error(417, "is not what its digest says");
    me.put(10_001, &a).is_error(400, "bytes 10001 to 20001 are not within a blob of 20000 bytes");
    me.put(u64::MAX - 5, &a).is_error(400, "are not within a blob");
    me.lay(15_000, &[&a]).is_error(400, "are not within a blob");
    me.lay(0, &[&a[..]; 3]).is_error(400, "are not within a blob");
    let mut cut = frame(&a, 0, &a);
    cut.pop();
    me.post("/chunks", &cut).is_error(400, "in the middle of frame 0");
    me.post("/chunks", &frame(b"", 0, b"")).is_error(400, "a chunk has 1 to 1048576 bytes, not 0");
    let mut bomb = frame(&a, 0, &a);
    bomb[44..48].copy_from_slice(&9_999u32.to_le_bytes());
    me.post("/chunks", &bomb).is_error(400, "no zstd");
    bomb[44..48].copy_from_slice(&10_001u32.to_le_bytes());
    me.post("/chunks", &bomb).is_error(400, "cannot be");
    me.post("/recipe?offset=0", &recipe(&[&a])[1..]).is_error(400, "in the middle of frame 0");
    me.post("/recipe", &recipe(&[&a])).is_error(400, "?offset=BYTES");
    me.post("/recipe?offset=-1", &recipe(&[&a])).is_error(400, "?offset=BYTES");
    // A list of a million entries.
    let million = vec![1u8; 36 * 1_000_000];
    me.post("/recipe?offset=0", &million).is_error(413, "send less at once");
    server
        .connect()
        .post("/farmhand/v1/chunks/known", "", &million)
        .is_error(413, "send less at once");
    let mut chunked = server.connect();
    let path = format!("/farmhand/v1/unfinished/{}/recipe?offset=0", me.blob);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{ME}Transfer-Encoding: chunked\r\n\r\n"
    );
    chunked.send(head.as_bytes());
    let _ = chunked.stream.write_all(format!("{:x}\r\n", million.len()).as_bytes());
    let _ = chunked.stream.write_all(&million);
    chunked.answer().is_error(413, "send less at once");
    // Batches that overlap: what is in place stays.
    let twice = [frame(&a, 0, &a), frame(&b, 5_000, &b)].concat();
    me.post("/chunks", &twice)
        .is_error(409, "bytes 5000 to 15000 are there already, and may be others");
    let same = [&a[5_000..], &b[..5_000]].concat();
    assert_eq!(me.put(5_000, &same).status, 204);
    me.lay(0, &[&b]).is_error(409, "send the file as a whole");
    // Others wait.
    let other = Sender::new(&server, &content).named("other");
    other.begin().is_error(425, "another client");
    other.put(0, &a).is_error(404, "begin anew");
    other.finish().is_error(404, "begin anew");
    other.abandon().is_error(404, "begin anew");
    assert_eq!(me.abandon().status, 204);
    assert_eq!((server.unfinished(), server.status(&content).as_str()), (0, "unknown"));
    // The right chunks in the wrong order.
    let me = me.begun();
    assert_eq!((me.put(0, &b).status, me.put(10_000, &a).status), (204, 204));
    me.finish().is_error(417, "hash the file again");
    for whole in [&content, &[&b[..], &a[..]].concat()] {
        assert_eq!(server.status(whole), "unknown");
    }
    // Names that are none.
    for blob in ["x/1", "00/1", &format!("{}/-1", sha(b"x")), &format!("{}/1e3", sha(b"x"))] {
        let sender = Sender { server: &server, blob: blob.to_string(), header: ME.to_owned() };
        assert_eq!(sender.begin().status, 400, "{blob}");
    }
    // One that stops.
    let me = me.begun();
    let mut silent = server.connect();
    silent.send(&post_head(&format!("/farmhand/v1/unfinished/{}/chunks", me.blob), ME, 100));
    silent.answer().is_error(408, "no data came");
    // And all the same it can be sent.
    assert_eq!(me.abandon().status, 204);
    assert_eq!(server.upload(&content).status, 204);
    assert_eq!((server.unfinished(), server.temp_files()), (0, 0));
}

#[test]
fn a_plain_upload_and_pieces_know_of_each_other() {
    let server =
        TestServer::with(Options { hold: Duration::from_millis(50), ..Options::default() });
    let content = random(50_000);
    let me = Sender::new(&server, &content).begun();
    let defers = "X-Shaman-Can-Defer-Upload: true\r\n";
    server.connect().upload(&content, defers).is_error(425, "another client");
    // Who cannot wait sends it beside, and then it is there for both.
    assert_eq!(server.upload(&content).status, 204);
    assert_eq!((me.begin().status, me.finish().status), (208, 208));
    assert_eq!(fs::read(blob_path(&server, &content)).unwrap(), content);
    let other = random(50_000);
    let mut plain = server.connect();
    plain.half_upload(&other, "");
    server.until_status(&other, "uploading");
    Sender::new(&server, &other).begin().is_error(425, "another client");
    assert_eq!(plain.other_half(&other).status, 204);
    assert_eq!(Sender::new(&server, &other).begin().status, 208);
}

#[test]
fn garbage_collection_and_scrubs_do_no_harm_to_what_is_unfinished() {
    let server = TestServer::start();
    let before = random(300_000);
    let after = [&before[..], b"tail"].concat();
    assert_eq!(server.upload(&before).status, 204);
    server.until_indexed(1);
    let cut = chunks_of(&after);
    let me = Sender::new(&server, &after).begun();
    let half = cut.len() / 2;
    assert_eq!(me.lay(0, &cut[..half]).json(), json!({ "missing": [] }));
    // What the rest would be taken from goes.
    let long_ago = SystemTime::now() - Duration::from_secs(90 * 86_400);
    fs::File::open(blob_path(&server, &before)).unwrap().set_modified(long_ago).unwrap();
    for (call, body) in [("gc", json!({ "max_age_s": 86_400 })), ("scrub", json!({}))] {
        let answer = server.admin("POST", call, body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(server.status(&before), "unknown");
    let rest = cut[..half].iter().map(|chunk| chunk.len() as u64).sum();
    let missing = me.lay(rest, &cut[half..]).json();
    assert_eq!(missing, json!({ "missing": [[0, cut.len() - half]] }));
    let mut offset = rest;
    for chunk in &cut[half..] {
        assert_eq!(me.put(offset, chunk).status, 204);
        offset += chunk.len() as u64;
    }
    assert_eq!(me.finish().status, 204);
    assert_eq!(fs::read(blob_path(&server, &after)).unwrap(), after);
    let scrubbed = server.admin("POST", "scrub", json!({}));
    let report: Value =
        serde_json::from_slice(scrubbed.body.split(|b| *b == b'\n').rev().nth(1).unwrap()).unwrap();
    assert_eq!(report["report"]["quarantined"], json!([]));
}

#[test]
fn what_is_scrubbed_away_is_not_taken_for_chunks() {
    let server = TestServer::start();
    let before = random(300_000);
    assert_eq!(server.upload(&before).status, 204);
    server.until_indexed(1);
    let cut = chunks_of(&before);
    // It has rotted, and nobody has noticed.
    let path = blob_path(&server, &before);
    let mut rotten = before.clone();
    rotten[cut[0].len()] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, &rotten).unwrap();
    let after = [&before[..], b"tail"].concat();
    let me = Sender::new(&server, &after).begun();
    let missing = me.lay(0, &chunks_of(&before)).json();
    assert_eq!(missing, json!({ "missing": [[1, 1]] }));
}

#[test]
fn each_file_of_a_batch_is_verified_and_answered_by_itself() {
    let server = TestServer::start();
    let files: Vec<Vec<u8>> = (0..40).map(|size| random(size * 100)).collect();
    assert_eq!(server.upload(&files[3]).status, 204);
    let mut uploading = server.connect();
    uploading.half_upload(&files[5], "");
    server.until_status(&files[5], "uploading");
    let blobs: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(place, file)| match place {
            7 => small(file, "wrong", &files[8]),
            9 => small(file, "short", &file[1..]),
            _ => small(file, &format!("ünï/{place}"), file),
        })
        .collect();
    let answer = batch(&server, &blobs);
    let expected: Vec<u64> = (0..40)
        .map(|place| match place {
            3 => 208,
            5 => 425,
            7 | 9 => 417,
            _ => 204,
        })
        .collect();
    assert_eq!(statuses(&answer), expected);
    assert!(answer.json()["blobs"][7]["message"].as_str().unwrap().contains("hash the file again"));
    for (place, file) in files.iter().enumerate() {
        match expected[place] {
            204 | 208 => assert_eq!(&fs::read(blob_path(&server, file)).unwrap(), file),
            425 => assert_eq!(server.status(file), "uploading"),
            _ => assert_eq!(server.status(file), "unknown"),
        }
    }
    assert_eq!(uploading.other_half(&files[5]).status, 204);
    // Twice the same in one: the first is stored.
    let twin = random(10);
    let twins = batch(&server, &[small(&twin, "a", &twin), small(&twin, "b", &twin)]);
    assert_eq!(statuses(&twins), [204, 425]);
    assert!(statuses(&batch(&server, &[])).is_empty());
    assert_eq!(statuses(&batch(&server, &[small(&twin, "b", &twin)])), [208]);
}

#[test]
fn a_batch_that_is_none_stores_nothing() {
    let server = TestServer::with(Options {
        body_timeout: Duration::from_millis(300),
        ..Options::default()
    });
    let one = random(1000);
    let good = small(&one, "a", &one);
    let large = random(300_000);
    for (body, status, says) in [
        ([&good[..], &good[..50]].concat(), 400, "in the middle of frame 1"),
        ([&good[..], &small(&large, "b", &large)].concat(), 400, "send it by itself"),
        (good.repeat(1025), 413, "more than 1024 files"),
        (vec![0; 17 << 20], 413, "send less at once"),
    ] {
        let answer = server.connect().post("/farmhand/v1/batch", "", &body);
        answer.is_error(status, says);
        assert_eq!(server.status(&one), "unknown", "{says}");
    }
    let mut silent = server.connect();
    silent.send(&post_head("/farmhand/v1/batch", "", 10_000));
    silent.send(&good);
    silent.answer().is_error(408, "no data came");
    assert_eq!(server.status(&one), "unknown");
    assert_eq!(server.temp_files(), 0);
}

/// For as long as it says something, however slowly, or nobody else asks.
#[test]
fn a_slow_sender_is_not_silent() {
    let server = TestServer::start();
    let content = random(200);
    let me = Sender::new(&server, &content).begun();
    let other = Sender::new(&server, &content).named("other");
    let body = frame(&content, 0, &content);
    let mut slow = server.connect();
    slow.send(&post_head(
        &format!("/farmhand/v1/unfinished/{}/chunks", me.blob),
        ME,
        body.len() as u64,
    ));
    let start = std::time::Instant::now();
    let (mut sent, mut asked) = (0, 0);
    // Longer than anybody may be silent.
    while start.elapsed() < Duration::from_secs(7) {
        if start.elapsed() > Duration::from_millis(40) * sent as u32 && sent < body.len() - 1 {
            slow.send(&body[sent..=sent]);
            sent += 1;
        }
        other.begin().is_error(425, "another client");
        asked += 1;
    }
    assert!(sent > 100 && asked > 100);
    slow.send(&body[sent..]);
    assert_eq!(slow.answer().status, 204);
    assert_eq!(me.finish().status, 204);
}

/// What the store does to the disk, counted.
#[test]
fn a_batch_is_synced_as_one() {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let server = ServerProcess::logging(home.path(), &home.path().join("store"), &[], &log);
    let count = |change: &str| {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().filter(|line| line.contains(&format!("change=\"{change}\""))).count()
    };
    let kinds = ["sync-file-system", "sync-data", "sync-dir", "create-file", "rename"];
    let before: Vec<_> = kinds.iter().map(|kind| count(kind)).collect();
    let files: Vec<Vec<u8>> = (0..100).map(|_| random(100)).collect();
    let body: Vec<u8> = files.iter().flat_map(|file| small(file, "f", file)).collect();
    let answer = server.connect().post("/farmhand/v1/batch", "", &body);
    assert_eq!(answer.status, 200);
    let after: Vec<_> = kinds.iter().map(|kind| count(kind)).collect();
    let made: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    // One for the contents, one for the names.
    assert_eq!(made, [2, 0, 0, 100, 100], "{kinds:?}");
}

#[test]
fn a_batch_without_durability_syncs_nothing() {
    let relaxed = store::Options { durability: Durability::Relaxed, ..store::Options::default() };
    let server = TestServer::with_store(Options::default(), relaxed);
    let files: Vec<Vec<u8>> = (0..30).map(|_| random(100)).collect();
    let blobs: Vec<_> = files.iter().map(|file| small(file, "f", file)).collect();
    assert_eq!(statuses(&batch(&server, &blobs)), [204; 30]);
    assert!(files.iter().all(|file| server.status(file) == "stored"));
}
