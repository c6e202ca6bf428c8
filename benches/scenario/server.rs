//! What is asked of a server, by a load generator.

use std::{fs, path::Path, time::Instant};

use bytesize::ByteSize;
use farmhand::wire::{CheckoutRequest, FileSpec, RequirementsRequest, SHAMAN};
use sha2::{Digest as _, Sha256};

use crate::{
    fixture,
    http::{Connection, Server, blob_url, head, request, send_all, status_request, upload_request},
    measure::{Contender, Limit, Row, Sample, Work, cores, grouped, settle},
    part::{self, Part},
    rows::{Bench, MEMORY, Subject, amount, into_empty_store, on, part, remove},
};

/// What a server may need of memory for requests that list 100,000 files.
const LISTS_MEMORY: Limit = Limit::Bytes(80 << 20);
/// How long it may take to say what it lacks of 100,000 files.
const REQUIREMENTS_S: f64 = 0.1;
/// Uploads of what is stored, and requests for a status, in a second.
const RESENT_PER_S: f64 = 30_000.0;
const STATUS_PER_S: f64 = 40_000.0;

/// Connections, and how many blobs a second are then to be stored on a tmpfs.
const CONNECTIONS: [(usize, f64); 2] = [(4, 10_000.0), (16, 14_000.0)];
/// The same elsewhere, whatever the connections.
const UPLOADS_PER_S: f64 = 1_900.0;

/// Sends requests to a server, and measures that.
fn sent(
    bench: &Bench,
    (subject, storage): (Subject, &Path),
    requests: &[Vec<u8>],
    connections: usize,
    accepted: &[u16],
) -> Sample {
    let server = bench.serve(subject, storage);
    settle(&bench.dir);
    server.measure(|server| send_all(server, requests, connections, accepted))
}

/// The wire and the load generator alone.
fn thrown_away(requests: &[Vec<u8>], connections: usize) -> Contender<'_> {
    Contender::new("floor: same requests, thrown away", move || {
        Server::sink().measure(|server| send_all(server, requests, connections, &[200, 204]))
    })
}

pub fn uploads(bench: &Bench) -> Vec<Row> {
    let (count, size_bytes) = (bench.sizes.uploads, bench.sizes.upload_bytes);
    let requests = || -> Vec<Vec<u8>> {
        let content = |seed| upload_request(&fixture::random_bytes(seed, size_bytes));
        bench.seeds(count).map(content).collect()
    };
    let some = requests();
    let row = |(connections, per_s): (usize, f64)| {
        let ours = |&subject: &Subject| {
            let run = move || {
                let (storage, requests) = (bench.fresh("storage"), requests());
                let sample = sent(bench, (subject, &storage), &requests, connections, &[200, 204]);
                remove(&storage);
                sample
            };
            Contender::new(subject.name(), run)
                .within(&[Limit::Rate(bench.goal(per_s, UPLOADS_PER_S)), MEMORY])
        };
        let floor = |threads: usize, sync: bool| {
            let does = if sync { "write + fdatasync + rename + fsync" } else { "write + rename" };
            Contender::new(format!("floor: {does}, {}", on(threads)), move || {
                into_empty_store(bench, |storage| Part::Store {
                    storage,
                    blobs: count,
                    size_bytes,
                    threads,
                    sync,
                })
            })
        };
        bench.compare(
            format!("uploads, {}, {connections} connections", amount(count, size_bytes)),
            Work::Files(count as u64),
            bench.subjects().iter().map(ours).collect(),
            vec![
                thrown_away(&some, connections),
                floor(cores(), false),
                // Syncs are waited for together: as many threads as the server has clients.
                floor(connections, true),
            ],
        )
    };
    CONNECTIONS.map(row).into()
}

/// Uploads of blobs that are stored.
pub fn resend(bench: &Bench) -> Vec<Row> {
    let (count, size_bytes) = (bench.sizes.uploads, bench.sizes.upload_bytes);
    let seeds = bench.seeds(count);
    let contents = || seeds.clone().map(|seed| fixture::random_bytes(seed, size_bytes));
    let storage = bench.stored("storage", contents());
    let requests: Vec<_> = contents().map(|content| upload_request(&content)).collect();
    let row = |(connections, _)| {
        let subject = bench.subject();
        let ours = || sent(bench, (subject, &storage), &requests, connections, &[208]);
        bench.compare(
            format!("uploads again, {}, {connections} connections", amount(count, size_bytes)),
            Work::Files(count as u64),
            vec![Contender::new(subject.name(), ours).within(&[Limit::Rate(RESENT_PER_S), MEMORY])],
            vec![thrown_away(&requests, connections)],
        )
    };
    let rows = CONNECTIONS.map(row);
    remove(&storage);
    rows.into()
}

/// Requests for the status of blobs that are stored, and of as many that are not.
pub fn status(bench: &Bench) -> Vec<Row> {
    let blobs = bench.sizes.uploads;
    let count = blobs * bench.sizes.status_rounds;
    let storage = bench.stored("storage", (0..blobs).map(fixture::blob_content));
    let requests = |specs: Vec<FileSpec>| -> Vec<Vec<u8>> {
        let of = |spec: &FileSpec| status_request(&spec.sha, spec.size);
        specs.iter().cycle().take(count).map(of).collect()
    };
    let known = requests(fixture::file_specs(blobs, blobs));
    let unknown = requests(fixture::unknown_specs(blobs));
    let row = |(connections, _)| {
        let subject = bench.subject();
        let (storage, known) = (&storage, &known);
        let ours = |what: &str, requests| {
            let run = move || sent(bench, (subject, storage), requests, connections, &[200]);
            Contender::new(format!("{}, {what}", subject.name()), run)
                .within(&[Limit::Rate(STATUS_PER_S), MEMORY])
        };
        let stat = Part::Stat { storage: storage.clone(), blobs, requests: count };
        bench.compare(
            format!("status, {} requests, {connections} connections", grouped(count as f64)),
            Work::Requests(count as u64),
            vec![ours("stored", known), ours("unknown", &unknown)],
            vec![
                thrown_away(known, connections),
                part(format!("floor: stat, {}", on(cores())), stat),
            ],
        )
    };
    let rows = CONNECTIONS.map(row);
    remove(&storage);
    rows.into()
}

/// One upload. Relaxed is what comes before the final sync, which is the disk's.
pub fn large(bench: &Bench) -> Row {
    const SEED_BYTES: usize = 8;
    let size_bytes = bench.sizes.large_bytes;
    let content = fixture::random_bytes(2, 16 << 20);
    let pieces = || fixture::pieces(&content, 1 << 20, size_bytes - SEED_BYTES as u64);
    let mut hasher = Sha256::new();
    pieces().for_each(|piece| hasher.update(piece));
    // No two uploads are of the same blob: they differ in their end.
    let send = |server: &Server| {
        let end = bench.seeds(1).start.to_le_bytes();
        let sha = hasher.clone().chain_update(end).finalize();
        let sha = const_hex::encode(sha);
        let mut connection = Connection::open(server);
        let start = Instant::now();
        connection.send(&head("POST", &blob_url(&sha, size_bytes), size_bytes));
        pieces().for_each(|piece| connection.send(piece));
        connection.send(&end);
        let status = connection.receive().status;
        assert!(matches!(status, 200 | 204), "answered {status}");
        start.elapsed().as_secs_f64()
    };
    let ours = |&subject: &Subject| {
        let run = move || {
            let storage = bench.fresh("storage");
            let server = bench.serve(subject, &storage);
            let sample = server.measure(send);
            remove(&storage);
            sample
        };
        let limits: &[Limit] = match (subject, bench.is_tmpfs) {
            (Subject::Full, false) => &[MEMORY],
            (_, false) => &[Limit::Rate(900.0), MEMORY],
            (_, true) => &[Limit::Rate(1_100.0), MEMORY],
        };
        Contender::new(subject.name(), run).within(limits)
    };
    let floor = |name: &str, apart: bool, sync: bool| {
        Contender::new(name, move || {
            let target = bench.fresh("large");
            let part = Part::HashAndWrite { target: target.clone(), size_bytes, apart, sync };
            let sample = part.sample();
            remove(&target);
            sample
        })
    };
    bench.compare(
        format!("one upload of {}", ByteSize::b(size_bytes)),
        Work::Bytes(size_bytes),
        bench.subjects().iter().map(ours).collect(),
        vec![
            floor("floor: SHA-256 + write, 1 thread", false, false),
            floor("floor: SHA-256 and write, a thread each", true, false),
            floor("floor: the same + fdatasync", true, true),
            Contender::new("floor: same bytes, thrown away", || Server::sink().measure(send)),
        ],
    )
}

/// Has a server answer one request, and returns the body of the answer, too. Its memory is that after so many
/// more of the same, which are not timed: what it keeps of each adds up.
pub fn one_request(
    bench: &Bench,
    (subject, storage): (Subject, &Path),
    request: &[u8],
    more: usize,
) -> (Sample, Vec<u8>) {
    let server = bench.serve(subject, storage);
    let mut answer = None;
    let mut sample = server.measure(|server| {
        let mut connection = Connection::open(server);
        let start = Instant::now();
        answer = Some(connection.exchange(request));
        start.elapsed().as_secs_f64()
    });
    let answer = answer.expect("it was answered");
    let said = String::from_utf8_lossy(&answer.body);
    assert!(matches!(answer.status, 200 | 204), "answered {}: {said}", answer.status);
    for _ in 0..more {
        Connection::open(&server).exchange(request);
    }
    sample.peak_bytes = server.peak_bytes();
    (sample, answer.body)
}

/// A request for what is lacking of these files.
pub fn requirements_body(files: Vec<FileSpec>) -> Vec<u8> {
    serde_json::to_vec(&RequirementsRequest { files }).expect("plain data")
}

pub fn requirements_request(body: &[u8]) -> Vec<u8> {
    request("POST", &format!("{SHAMAN}/checkout/requirements"), body)
}

/// A request for a checkout of these files.
pub fn checkout_request(name: &str, files: Vec<FileSpec>) -> Vec<u8> {
    let wish = CheckoutRequest { checkout_path: name.into(), files };
    let body = serde_json::to_vec(&wish).expect("plain data");
    request("POST", &format!("{SHAMAN}/checkout/create"), &body)
}

/// One request with many files: none known, all known and needed lately, all known and not needed
/// for a day, so that the server has to note for each that it is needed again.
pub fn requirements(bench: &Bench) -> Vec<Row> {
    let entries = bench.sizes.entries;
    let specs = fixture::file_specs(entries, entries);
    let known = bench.stored("known", (0..entries).map(fixture::blob_content));
    let unknown = bench.fresh("unknown");
    fixture::make_empty_store(&unknown);
    let make_old = || {
        part::each(cores(), entries, |number| {
            let spec = &specs[number];
            fixture::make_old(&fixture::blob_path(&known, &spec.sha, spec.size).1, 1);
        });
    };
    let row = |title: &str, storage: &Path, files: Vec<FileSpec>, old: bool| {
        let body = requirements_body(files);
        let request = requirements_request(&body);
        let body_file = bench.fresh("body.json");
        fs::write(&body_file, body).expect("cannot write the body");
        let age = || {
            if old {
                make_old();
                settle(&bench.dir);
            }
        };
        let subject = bench.subject();
        let ours = || {
            age();
            let (sample, answer) = one_request(bench, (subject, storage), &request, 4);
            // Others may send their answers in chunks that fall anywhere.
            if bench.running.is_none() {
                let needed = answer.windows(6).filter(|six| six == b"\"sha\":").count();
                assert_eq!(needed, if storage == unknown { entries } else { 0 });
            }
            sample
        };
        let floor = |from_open: bool| {
            let (body, storage) = (body_file.clone(), storage.to_owned());
            let part = Part::ParseAndStat { body, storage, touch: old, from_open };
            let does = if old { "parse + stat + utimensat" } else { "parse + stat" };
            let from = if from_open { " from open directories" } else { "" };
            let name = format!("floor: {does}{from}, {}", on(cores()));
            Contender::new(name, move || {
                age();
                part.sample()
            })
        };
        let parse = Part::Parse { body: body_file.clone() };
        let mut limits = vec![LISTS_MEMORY];
        if !old {
            limits.insert(0, Limit::Seconds(REQUIREMENTS_S));
        }
        let row = bench.compare(
            format!("requirements, {} {title}", grouped(entries as f64)),
            Work::Files(entries as u64),
            vec![Contender::new(subject.name(), ours).within(&limits)],
            vec![part("floor: parse alone, 1 thread", parse), floor(false), floor(true)],
        );
        remove(&body_file);
        row
    };
    let mut rows = vec![
        row("unknown", &unknown, fixture::unknown_specs(entries), false),
        row("known", &known, specs.clone(), false),
    ];
    // Only the files of a store at hand can be made old.
    if bench.running.is_none() {
        rows.push(row("known, old", &known, specs.clone(), true));
    }
    remove(&known);
    remove(&unknown);
    rows
}

pub fn checkout(bench: &Bench) -> Row {
    let (files, blobs) = (bench.sizes.entries, bench.sizes.checkout_blobs);
    let storage = bench.stored("storage", (0..blobs).map(fixture::blob_content));
    let jobs = storage.join("jobs");
    fs::create_dir(&jobs).expect("cannot make a directory");
    let specs = fixture::file_specs(files, blobs);
    let ours = |&subject: &Subject| {
        let (storage, jobs, specs) = (&storage, &jobs, &specs);
        let run = move || {
            // Where checkouts stay, each has a name of its own.
            let name = format!("bench-{}", bench.seeds(1).start);
            let request = checkout_request(&name, specs.clone());
            let (sample, _) = one_request(bench, (subject, storage), &request, 0);
            if bench.running.is_none() {
                let job = jobs.join(name);
                assert_eq!(fixture::list(&job).expect("the checkout is there").len(), files);
                remove(&job);
            }
            sample
        };
        Contender::new(subject.name(), run)
            .within(&[Limit::Seconds(bench.goal(0.5, 1.5)), LISTS_MEMORY])
    };
    let floor = |threads, sync, from_open| {
        const JOB: &str = "bench-floor";
        let (job, storage) = (jobs.join(JOB), storage.clone());
        let part = Part::Link { storage, job: JOB.into(), files, blobs, threads, sync, from_open };
        let from = if from_open { " from open directories" } else { "" };
        let synced = if sync { " + fsync of directories" } else { "" };
        let name = format!("floor: mkdir + symlink{from}{synced}, {}", on(threads));
        Contender::new(name, move || {
            let sample = part.sample();
            remove(&job);
            sample
        })
    };
    let row = bench.compare(
        format!("checkout, {} links", grouped(files as f64)),
        Work::Files(files as u64),
        bench.subjects().iter().map(ours).collect(),
        vec![
            floor(1, false, false),
            floor(cores(), false, false),
            floor(cores(), false, true),
            floor(cores(), true, true),
        ],
    );
    remove(&storage);
    row
}
