//! The rows of a store that is large, looked after, or has many clients at once.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Barrier, thread, time::Instant};

use bytesize::ByteSize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    fixture,
    http::{Connection, Server, blob_url, head, request, status_request, upload_request},
    measure::{Contender, Limit, Line, Row, Sample, Work, cores, grouped, own_cpu_s, settle},
    part::{self, Part},
    rows::{Bench, on, remove},
    server::{requirements_body, requirements_request},
};

/// How soon a server is ready.
const READY_WITHIN_S: f64 = 1.0;
/// What garbage collection may need of memory.
const GC_LIMIT_BYTES: u64 = 300 << 20;
/// How much longer requests may take while the store is looked after.
const UPKEEP_RATIO: f64 = 2.0;
/// What a server may need of memory for as many uploads as it receives at once.
const UPLOADS_LIMIT_BYTES: u64 = 64 << 20;

/// Of so many blobs one is held by a checkout.
const HELD_ONE_IN: usize = 10;

/// How many days ago a blob was last needed that is garbage.
pub const GARBAGE_DAYS: u64 = 40;

/// A store of blobs that were last needed so long ago, and a checkout of some of them.
pub fn make_held_store(storage: &Path, blobs: usize, days: u64) {
    eprintln!("a store of {} blobs …", grouped(blobs as f64));
    fixture::make_empty_store(storage);
    let job = storage.join("jobs/bench-job");
    fs::create_dir_all(&job).expect("cannot make a checkout");
    part::each(cores(), blobs, |number| {
        let content = fixture::blob_content(number);
        let (sha, size) = (fixture::sha256_hex(&content), content.len() as u64);
        fixture::make_old(&fixture::make_blob(storage, &content), days);
        if number % HELD_ONE_IN == 0 {
            let target = fixture::blob_path(Path::new("../.."), &sha, size).1;
            let dir = job.join(format!("dir-{:03}", number / HELD_ONE_IN / 100));
            fs::create_dir_all(&dir).expect("cannot make a directory");
            symlink(Path::new("..").join(target), dir.join(format!("{number}")))
                .expect("cannot make a link");
        }
    });
}

/// From the start of the program to the answer that it is ready.
pub fn ready(bench: &Bench) -> Row {
    let blobs = bench.sizes.store_blobs;
    let (storage, empty) = (bench.fresh("storage"), bench.fresh("empty"));
    make_held_store(&storage, blobs, GARBAGE_DAYS);
    fixture::make_empty_store(&empty);
    let start = |storage: &Path| {
        let start = Instant::now();
        let server = Server::farmhand(&bench.dir, storage);
        let mut connection = Connection::open(&server);
        assert_eq!(connection.exchange(&head("GET", "/readyz", 0)).status, 200);
        let wall_s = start.elapsed().as_secs_f64();
        let (cpu_s, peak_bytes) = (server.cpu_s(), server.peak_bytes());
        Sample { wall_s, cpu_s, peak_bytes, ..Sample::default() }
    };
    let row = bench.compare(
        format!("start, {} blobs stored", grouped(blobs as f64)),
        Work::Moment,
        vec![
            Contender::new("server", || start(&storage)).within(&[Limit::Seconds(READY_WITHIN_S)]),
        ],
        vec![Contender::new("floor: the same, nothing stored", || start(&empty))],
    );
    remove(&storage);
    remove(&empty);
    row
}

/// Has a server collect the garbage of a store of so many blobs that are old, or say what would go.
pub fn collected(bench: &Bench, storage: &Path, blobs: usize, dry_run: bool) -> Sample {
    let mut answer = None;
    let body = format!("{{\"dry_run\":{dry_run}}}");
    let sample = Server::farmhand(&bench.dir, storage).measure(|server| {
        let mut connection = Connection::open(server);
        let start = Instant::now();
        let request = request("POST", "/farmhand/v1/gc", body.as_bytes());
        answer = Some(connection.exchange(&request));
        start.elapsed().as_secs_f64()
    });
    let body = answer.expect("it was answered").body;
    let lines = String::from_utf8(body).expect("lines are text");
    let last = lines.lines().rfind(|line| line.starts_with("{\"report\"")).expect(&lines);
    let report = &serde_json::from_str::<Value>(last).expect("a report")["report"];
    assert_eq!(report["stored"]["blobs"], blobs, "{report}");
    assert_eq!(report["removed"]["blobs"], blobs - blobs.div_ceil(HELD_ONE_IN), "{report}");
    sample
}

/// Garbage collection of a store of which a tenth is held; first only to know what would go.
pub fn gc(bench: &Bench) -> Vec<Row> {
    let blobs = bench.sizes.store_blobs;
    let storage = bench.fresh("storage");
    let row = |dry_run: bool| {
        // What was removed is made anew each time.
        let prepare = || {
            if !dry_run {
                remove(&storage);
                make_held_store(&storage, blobs, GARBAGE_DAYS);
                settle(&bench.dir);
            }
        };
        let ours = || {
            prepare();
            collected(bench, &storage, blobs, dry_run)
        };
        let floor = Part::Collect { storage: storage.clone(), remove: !dry_run };
        let floor = || {
            prepare();
            floor.sample()
        };
        let (what, does) = if dry_run {
            ("gc --dry-run", "list + stat")
        } else {
            ("gc", "list + stat + unlink + rmdir")
        };
        bench.compare(
            format!("{what}, {} blobs, nine tenths garbage", grouped(blobs as f64)),
            Work::Files(blobs as u64),
            vec![Contender::new("server", ours).within(&[Limit::Bytes(GC_LIMIT_BYTES)])],
            vec![Contender::new(format!("floor: {does}, {}", on(cores())), floor)],
        )
    };
    make_held_store(&storage, blobs, GARBAGE_DAYS);
    let rows = [true, false].map(row);
    remove(&storage);
    rows.into()
}

/// How many files are asked for at once.
const ASKED: usize = 100;

/// One client that asks for the status of a blob, for requirements, and sends a blob, over and over;
/// how long each took, in seconds.
struct Foreground<'a> {
    storage: &'a Path,
    next_seed: u64,
}

impl Foreground<'_> {
    const KINDS: [&'static str; 3] = ["status", "requirements of 100", "upload of 16 KiB"];

    /// Until it is enough; returns how long each took, sorted, and the figures of the server.
    fn run(&mut self, upkeep: bool, enough: impl Fn(usize) -> bool) -> ([Vec<f64>; 3], Sample) {
        let server = Server::upkeep(self.storage, upkeep);
        let mut connection = Connection::open(&server);
        let mut specs = fixture::file_specs(ASKED * HELD_ONE_IN, ASKED * HELD_ONE_IN);
        // Those that are held: there before and after garbage collection.
        specs = specs.into_iter().step_by(HELD_ONE_IN).collect();
        let status = status_request(&specs[0].sha, specs[0].size);
        let required = requirements_request(&requirements_body(specs));
        let mut took: [Vec<f64>; 3] = Default::default();
        let generator_cpu_s = own_cpu_s();
        while !enough(took[0].len()) {
            let content = fixture::random_bytes(self.next_seed, 16 << 10);
            self.next_seed += 1;
            let upload = upload_request(&content);
            for (took, (request, expected)) in
                took.iter_mut().zip([(&status, 200), (&required, 200), (&upload, 204)])
            {
                let start = Instant::now();
                let answer = connection.exchange(request);
                took.push(start.elapsed().as_secs_f64());
                assert_eq!(answer.status, expected);
            }
        }
        took.iter_mut().for_each(|took| took.sort_by(f64::total_cmp));
        let sample = Sample {
            cpu_s: server.cpu_s(),
            peak_bytes: server.peak_bytes(),
            other_cpu_s: Some(own_cpu_s() - generator_cpu_s),
            ..Sample::default()
        };
        (took, sample)
    }
}

/// What of a hundred requests the slowest but one takes: with garbage collection and a scrub in the
/// background, as they run by themselves, and without.
pub fn upkeep(bench: &Bench) -> Vec<Row> {
    let blobs = bench.sizes.upkeep_blobs;
    eprintln!("upkeep …");
    let storage = bench.fresh("storage");
    let least = if blobs < 10_000 { 100 } else { 2_000 };
    let mut foreground = Foreground { storage: &storage, next_seed: 1 << 32 };
    let mut samples: [[Vec<Sample>; 2]; 3] = Default::default();
    for _ in 0..bench.repeat {
        remove(&storage);
        make_held_store(&storage, blobs, GARBAGE_DAYS);
        let is_collected = || storage.join("farmhand/history.json").exists();
        settle(&bench.dir);
        // Through all that garbage collection does, from its beginning to its end; the scrub takes longer.
        let busy = foreground.run(true, |rounds| rounds >= 100 && is_collected());
        let rounds = busy.0[0].len().max(least);
        settle(&bench.dir);
        let idle = foreground.run(false, |done| done >= rounds);
        for (at, (took, sample)) in [busy, idle].into_iter().enumerate() {
            for (kind, took) in took.iter().enumerate() {
                let p99 = took[(took.len() * 99).div_ceil(100) - 1];
                samples[kind][at].push(Sample { wall_s: p99, ..sample });
            }
        }
    }
    remove(&storage);
    let line = |name: &str, samples: Vec<Sample>, limit: Option<Limit>| Line {
        name: name.into(),
        samples,
        is_floor: limit.is_none(),
        limits: limit.into_iter().collect(),
    };
    let row = |(kind, [busy, idle]): (&str, [Vec<Sample>; 2])| Row {
        title: format!("99th percentile, {kind}"),
        work: Work::Moment,
        lines: vec![
            line("server, while it scrubs and collects", busy, Some(Limit::Ratio(UPKEEP_RATIO))),
            line("floor: the same server, at rest", idle, None),
        ],
    };
    Foreground::KINDS.into_iter().zip(samples).map(row).collect()
}

/// As many uploads as the server receives at once, all of them under way from the beginning on.
pub fn many(bench: &Bench) -> Row {
    const UPLOADS: usize = 64;
    const PIECE_BYTES: usize = 1 << 20;
    let size_bytes = bench.sizes.many_bytes;
    let content = fixture::random_bytes(3, usize::try_from(size_bytes).expect("it fits memory"));
    // They differ in their first piece.
    let (first, rest) = content.split_at(PIECE_BYTES);
    let first = |number: usize| {
        let mut piece = first.to_vec();
        piece[..8].copy_from_slice(&(number as u64).to_le_bytes());
        piece
    };
    let shas: Vec<_> = (0..UPLOADS)
        .map(|number| {
            let mut hasher = Sha256::new();
            hasher.update(first(number));
            hasher.update(rest);
            const_hex::encode(hasher.finalize())
        })
        .collect();
    let ours = || {
        let storage = bench.fresh("storage");
        let sample = Server::farmhand(&bench.dir, &storage).measure(|server| {
            let begun = Barrier::new(UPLOADS);
            let start = Instant::now();
            thread::scope(|scope| {
                for (number, sha) in shas.iter().enumerate() {
                    let (first, begun) = (&first, &begun);
                    scope.spawn(move || {
                        let mut connection = Connection::open(server);
                        connection.send(&head("POST", &blob_url(sha, size_bytes), size_bytes));
                        connection.send(&first(number));
                        begun.wait();
                        rest.chunks(PIECE_BYTES).for_each(|piece| connection.send(piece));
                        assert_eq!(connection.receive().status, 204);
                    });
                }
            });
            start.elapsed().as_secs_f64()
        });
        remove(&storage);
        sample
    };
    let target = bench.fresh("large");
    let all_bytes = size_bytes * UPLOADS as u64;
    let floor = || {
        let part = Part::HashAndWrite {
            target: target.clone(),
            size_bytes: all_bytes,
            apart: false,
            sync: false,
        };
        let sample = part.sample();
        remove(&target);
        sample
    };
    bench.compare(
        format!("{UPLOADS} uploads of {} at once", ByteSize::b(size_bytes)),
        Work::Bytes(all_bytes),
        vec![Contender::new("server", ours).within(&[Limit::Bytes(UPLOADS_LIMIT_BYTES)])],
        vec![Contender::new("floor: SHA-256 + write of as much, 1 thread", floor)],
    )
}
