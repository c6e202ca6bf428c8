//! The rows: what is prepared, what runs, and which floors stand beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use clap::ValueEnum;
use farmhand::wire::{CheckoutRequest, FileSpec, RequirementsRequest, SHAMAN};
use sha2::{Digest as _, Sha256};

use crate::{
    fixture,
    http::{Connection, Server, farmhand, head, request, send_all},
    less,
    measure::{
        Contender, Limit, Line, Row, Sample, Work, compare, cores, cpu_s, grouped, peak_bytes,
        settle,
    },
    part::Part,
    store,
};

/// What server and client may need for a file of any size.
const MEMORY_LIMIT_BYTES: u64 = 100 << 20;

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowName {
    /// Scan folders without a hash cache, pages warm
    Hash,
    /// Scan the same folders with a hash cache, nothing changed
    Rescan,
    /// Ask the server what it lacks of many files
    Requirements,
    /// Have a checkout of many files created
    Checkout,
    /// Send many small files
    Uploads,
    /// Send one large file
    Large,
    /// Start the server over a large store
    Ready,
    /// Collect the garbage of a large store
    Gc,
    /// The slowest of small requests, while the store is looked after
    Upkeep,
    /// Send many large files at once
    Many,
    /// Cut a file into chunks
    Cut,
    /// Send many small files, together and one by one
    Batch,
    /// Send a large file of which nothing is known, in pieces and plainly
    Pieces,
    /// Send a large file that is nearly known, by its chunks and plainly
    Delta,
    /// Memory of server and client for one huge file
    Memory,
}

impl RowName {
    pub const ALL: [Self; 15] = [
        Self::Hash,
        Self::Rescan,
        Self::Requirements,
        Self::Checkout,
        Self::Uploads,
        Self::Large,
        Self::Ready,
        Self::Gc,
        Self::Upkeep,
        Self::Many,
        Self::Cut,
        Self::Batch,
        Self::Pieces,
        Self::Delta,
        Self::Memory,
    ];
}

/// How much of everything.
#[derive(Debug)]
pub struct Sizes {
    /// Folders to scan: how many files, of how many bytes.
    folders: [(usize, usize); 4],
    /// Files of a request.
    entries: usize,
    /// Distinct blobs of a checkout.
    checkout_blobs: usize,
    pub uploads: usize,
    pub upload_bytes: usize,
    /// One file that is sent again, or in pieces.
    pub resent_bytes: usize,
    large_bytes: u64,
    memory_bytes: u64,
    /// Blobs of a store that is started over, or has its garbage collected.
    pub store_blobs: usize,
    /// The same, for garbage collection while requests are answered.
    pub upkeep_blobs: usize,
    /// Each of many uploads.
    pub many_bytes: u64,
}

impl Sizes {
    pub fn full(large_bytes: u64, memory_bytes: u64) -> Self {
        Self {
            folders: [
                (2_000, (1 << 30) / 2_000),
                (10_000, 16 << 10),
                (100_000, 4 << 10),
                (1, 4 << 30),
            ],
            entries: 100_000,
            checkout_blobs: 1_000,
            uploads: 10_000,
            upload_bytes: 16 << 10,
            resent_bytes: 1 << 30,
            large_bytes,
            memory_bytes,
            store_blobs: 1_000_000,
            upkeep_blobs: 100_000,
            many_bytes: 64 << 20,
        }
    }

    pub fn quick() -> Self {
        Self {
            folders: [(20, 100_000), (200, 16 << 10), (300, 4 << 10), (1, 10 << 20)],
            entries: 2_000,
            checkout_blobs: 50,
            uploads: 200,
            upload_bytes: 16 << 10,
            resent_bytes: 40 << 20,
            large_bytes: 20 << 20,
            memory_bytes: 50 << 20,
            store_blobs: 2_000,
            upkeep_blobs: 2_000,
            many_bytes: 2 << 20,
        }
    }
}

/// Where, how much, how often.
#[derive(Debug)]
pub struct Bench {
    pub dir: PathBuf,
    pub sizes: Sizes,
    pub repeat: u32,
}

impl Bench {
    pub fn compare(
        &self,
        title: String,
        work: Work,
        ours: Contender,
        floors: Vec<Contender>,
    ) -> Row {
        compare(title, work, (&self.dir, self.repeat), ours, floors)
    }

    /// A path that nothing is at.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        remove(&path);
        path
    }
}

/// Runs one row; some are of several parts.
pub fn run(row: RowName, bench: &Bench) -> Vec<Row> {
    match row {
        RowName::Hash => scans(bench, false),
        RowName::Rescan => scans(bench, true),
        RowName::Requirements => requirements(bench),
        RowName::Checkout => vec![checkout(bench)],
        RowName::Uploads => uploads(bench),
        RowName::Large => vec![large(bench)],
        RowName::Ready => vec![store::ready(bench)],
        RowName::Gc => store::gc(bench),
        RowName::Upkeep => store::upkeep(bench),
        RowName::Many => vec![store::many(bench)],
        RowName::Cut => vec![less::cut(bench)],
        RowName::Batch => less::batch(bench),
        RowName::Pieces => vec![less::pieces(bench)],
        RowName::Delta => vec![less::delta(bench)],
        RowName::Memory => vec![memory(bench)],
    }
}

pub fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("cannot remove {}: {error}", path.display())
        }
        _ => {}
    }
}

pub fn part(name: impl Into<String>, part: Part) -> Contender<'static> {
    Contender::new(name, move || part.sample())
}

/// Files, and one of their sizes, for titles.
pub fn amount(files: usize, size_bytes: usize) -> String {
    format!("{} × {:.0} KiB", grouped(files as f64), size_bytes as f64 / 1024.0)
}

pub fn on(threads: usize) -> String {
    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") }
}

/// What people have who have no scanner.
const OPENSSL: &str = "find . -type f -print0 | xargs -0 -P2 -n100 openssl dgst -sha256";

fn shell(command: &str, dir: &Path) -> Part {
    Part::Shell { command: format!("{command} > /dev/null"), dir: dir.to_owned() }
}

/// Both kinds of scan. Starting the scanner's threads and opening its cache count: each command does
/// both.
fn scans(bench: &Bench, again: bool) -> Vec<Row> {
    let row = |&(files, size_bytes): &(usize, usize)| {
        let (root, cache) = (bench.fresh("folder"), bench.fresh("cache"));
        fixture::make_folder(&root, files, size_bytes);
        // The scanner waits for files that have only just changed. These have been at rest.
        thread::sleep(Duration::from_millis(100));
        let amount = amount(files, size_bytes);
        let row = if again {
            // Hashes and remembers.
            Part::Scan { root: root.clone(), cache: Some(cache.clone()), cached_files: 0 }.sample();
            let (cache, root) = (Some(cache.clone()), root.clone());
            bench.compare(
                format!("rescan, {amount}"),
                Work::Files(files as u64),
                part("Scanner", Part::Scan { root: root.clone(), cache, cached_files: files }),
                vec![
                    part("floor: walk + stat, 1 thread", Part::WalkAndStat { root: root.clone() }),
                    part("find -printf", shell("find . -type f -printf '%s %T@ %i\\n'", &root)),
                ],
            )
        } else {
            let root = root.clone();
            let floor = format!("floor: read + SHA-256, {}", on(cores()));
            bench.compare(
                format!("hash, {amount}"),
                Work::Bytes((files * size_bytes) as u64),
                part("Scanner", Part::Scan { root: root.clone(), cache: None, cached_files: 0 }),
                vec![
                    part(floor, Part::ReadAndHash { root: root.clone() }),
                    part("openssl, 2 at once", shell(OPENSSL, &root)),
                ],
            )
        };
        remove(&root);
        remove(&cache);
        row
    };
    // That one file has not changed is soon seen.
    bench.sizes.folders.iter().filter(|(files, _)| !again || *files > 1).map(row).collect()
}

/// Has a server of its own answer one request, and returns the body of the answer, too.
fn one_request(bench: &Bench, storage: &Path, request: &[u8]) -> (Sample, Vec<u8>) {
    let mut answer = None;
    let sample = Server::farmhand(&bench.dir, storage).measure(|server| {
        let mut connection = Connection::open(server);
        let start = Instant::now();
        answer = Some(connection.exchange(request));
        start.elapsed().as_secs_f64()
    });
    let answer = answer.expect("it was answered");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    (sample, answer.body)
}

/// One request with many files: none known, all known and needed lately, all known and not needed
/// for a day, so that the server has to note for each that it is needed again.
fn requirements(bench: &Bench) -> Vec<Row> {
    let entries = bench.sizes.entries;
    let specs = fixture::file_specs(entries, entries);
    let (known, unknown) = (bench.fresh("known"), bench.fresh("unknown"));
    fixture::make_store(&known, entries);
    fixture::make_empty_store(&unknown);
    let blob = |spec: &FileSpec| fixture::blob_path(&known, &spec.sha, spec.size).1;
    let blobs: Vec<PathBuf> = specs.iter().map(blob).collect();
    let body = serde_json::to_vec(&RequirementsRequest { files: specs }).expect("plain data");
    let body_file = bench.fresh("body.json");
    fs::write(&body_file, &body).expect("cannot write the body");
    let request = request("POST", &format!("{SHAMAN}/checkout/requirements"), &body);

    let rows =
        [("unknown", &unknown, false), ("known", &known, false), ("known, old", &known, true)].map(
            |(title, storage, old)| {
                let age = || {
                    if old {
                        fixture::make_old(&blobs);
                    }
                };
                let ours = || {
                    age();
                    let (sample, answer) = one_request(bench, storage, &request);
                    let needed = answer.windows(6).filter(|six| six == b"\"sha\":").count();
                    assert_eq!(needed, if storage == &unknown { entries } else { 0 });
                    sample
                };
                let floor = Part::ParseAndStat {
                    body: body_file.clone(),
                    storage: storage.clone(),
                    touch: old,
                };
                let does = if old { "parse + stat + utimensat" } else { "parse + stat" };
                bench.compare(
                    format!("requirements, {} {title}", grouped(entries as f64)),
                    Work::Files(entries as u64),
                    Contender::new("server", ours),
                    vec![
                        part(
                            "floor: parse alone, 1 thread",
                            Part::Parse { body: body_file.clone() },
                        ),
                        Contender::new(format!("floor: {does}, {}", on(cores())), || {
                            age();
                            floor.sample()
                        }),
                    ],
                )
            },
        );
    for path in [&known, &unknown, &body_file] {
        remove(path);
    }
    rows.into()
}

fn checkout(bench: &Bench) -> Row {
    let (files, blobs) = (bench.sizes.entries, bench.sizes.checkout_blobs);
    let storage = bench.fresh("storage");
    fixture::make_store(&storage, blobs);
    fs::create_dir(storage.join("jobs")).expect("cannot make a directory");
    const JOB: &str = "bench-job";
    let job = storage.join("jobs").join(JOB);
    let wish =
        CheckoutRequest { checkout_path: JOB.into(), files: fixture::file_specs(files, blobs) };
    let body = serde_json::to_vec(&wish).expect("plain data");
    let request = request("POST", &format!("{SHAMAN}/checkout/create"), &body);
    let ours = || {
        let (sample, _) = one_request(bench, &storage, &request);
        assert_eq!(fixture::list(&job).expect("the checkout is there").len(), files);
        remove(&job);
        sample
    };
    let floor = |threads, sync| {
        let (job, storage) = (job.clone(), storage.clone());
        let part = Part::Link { storage, job: JOB.into(), files, blobs, threads, sync };
        let synced = if sync { " + fsync of directories" } else { "" };
        Contender::new(format!("floor: mkdir + symlink{synced}, {}", on(threads)), move || {
            let sample = part.sample();
            remove(&job);
            sample
        })
    };
    let row = bench.compare(
        format!("checkout, {} links", grouped(files as f64)),
        Work::Files(files as u64),
        Contender::new("server", ours),
        vec![floor(1, false), floor(cores(), false), floor(cores(), true)],
    );
    remove(&storage);
    row
}

fn uploads(bench: &Bench) -> Vec<Row> {
    let (count, size_bytes) = (bench.sizes.uploads, bench.sizes.upload_bytes);
    let upload = |number: usize| {
        let content = fixture::random_bytes(number as u64, size_bytes);
        let sha = fixture::sha256_hex(&content);
        request("POST", &format!("{SHAMAN}/files/{sha}/{size_bytes}"), &content)
    };
    let requests: Vec<Vec<u8>> = (0..count).map(upload).collect();
    let row = |connections: usize| {
        let ours = || {
            let storage = bench.fresh("storage");
            let server = Server::farmhand(&bench.dir, &storage);
            settle(&bench.dir);
            let sample = server.measure(|server| send_all(server, &requests, connections, 204));
            remove(&storage);
            sample
        };
        let wire =
            || Server::sink().measure(|server| send_all(server, &requests, connections, 204));
        let floor = |threads: usize, sync: bool| {
            let does = if sync { "write + fdatasync + rename + fsync" } else { "write + rename" };
            Contender::new(format!("floor: {does}, {}", on(threads)), move || {
                let storage = bench.fresh("storage");
                fixture::make_empty_store(&storage);
                settle(&bench.dir);
                let part = Part::Store {
                    storage: storage.clone(),
                    blobs: count,
                    size_bytes,
                    threads,
                    sync,
                };
                let sample = part.sample();
                remove(&storage);
                sample
            })
        };
        bench.compare(
            format!("uploads, {}, {connections} connections", amount(count, size_bytes)),
            Work::Files(count as u64),
            Contender::new("server", ours),
            vec![
                Contender::new("floor: same requests, thrown away", wire),
                floor(2, false),
                // Syncs are waited for together: as many threads as the server has clients.
                floor(connections, true),
            ],
        )
    };
    [4, 16].map(row).into()
}

fn large(bench: &Bench) -> Row {
    let size_bytes = bench.sizes.large_bytes;
    let content = fixture::random_bytes(2, 16 << 20);
    // The same content over and over: nothing between here and the disk can tell.
    let pieces = || {
        let mut left = size_bytes;
        content.chunks(1 << 20).cycle().map_while(move |piece| {
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= count as u64;
            (count > 0).then(|| &piece[..count])
        })
    };
    let mut hasher = Sha256::new();
    pieces().for_each(|piece| hasher.update(piece));
    let sha = base16ct::lower::encode_string(&hasher.finalize());
    let head = head("POST", &format!("{SHAMAN}/files/{sha}/{size_bytes}"), size_bytes);
    let ours = || {
        let storage = bench.fresh("storage");
        let sample = Server::farmhand(&bench.dir, &storage).measure(|server| {
            let mut connection = Connection::open(server);
            let start = Instant::now();
            connection.send(&head);
            pieces().for_each(|piece| connection.send(piece));
            assert_eq!(connection.receive().status, 204);
            start.elapsed().as_secs_f64()
        });
        remove(&storage);
        sample
    };
    let target = bench.fresh("large");
    let floor = || {
        let sample = Part::HashAndWrite { target: target.clone(), size_bytes }.sample();
        remove(&target);
        sample
    };
    bench.compare(
        format!("one upload of {}", ByteSize::b(size_bytes)),
        Work::Bytes(size_bytes),
        Contender::new("server", ours),
        vec![Contender::new("floor: SHA-256 + write, 1 thread", floor)],
    )
}

/// Both sides are the real program; what it has needed is read while it lives. What counts is the
/// limit. The plain write beside it is there for the order of magnitude of the time, and is not
/// compared: it runs once, after ours, and the first to touch a machine's memory pays for it.
fn memory(bench: &Bench) -> Row {
    let size_bytes = bench.sizes.memory_bytes;
    let (folder, storage) = (bench.fresh("folder"), bench.fresh("storage"));
    fs::create_dir(&folder).expect("cannot make a folder");
    let file = fs::File::create_new(folder.join("huge.vdb")).expect("cannot make a file");
    file.set_len(size_bytes).expect("cannot make a sparse file");
    drop(file);
    eprintln!("memory …");

    let server = Server::farmhand(&bench.dir, &storage);
    let server_cpu_s = server.cpu_s();
    let start = Instant::now();
    let mut push = farmhand(&bench.dir)
        .args(["--quiet", "push", "--server", &format!("http://{}/", server.address)])
        .arg(&folder)
        .stdout(Stdio::null())
        .spawn()
        .expect("cannot start the client");
    let mut client = Sample { wall_s: 0.0, cpu_s: 0.0, peak_bytes: 0, generator_cpu_s: None };
    let status = loop {
        // Until it has ended, even if nobody has waited for it yet, there is a status to be read.
        if let (Some(peak), Some(cpu)) = (peak_bytes(push.id()), cpu_s(push.id())) {
            (client.peak_bytes, client.cpu_s) = (peak, cpu);
        }
        match push.try_wait().expect("cannot wait for the client") {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    client.wall_s = start.elapsed().as_secs_f64();
    assert!(status.success(), "farmhand push: {status}");
    let served = Sample {
        wall_s: client.wall_s,
        cpu_s: server.cpu_s() - server_cpu_s,
        peak_bytes: server.peak_bytes(),
        generator_cpu_s: None,
    };
    drop(server);
    remove(&folder);
    remove(&storage);
    let target = bench.fresh("large");
    let written = Part::HashAndWrite { target: target.clone(), size_bytes }.sample();
    remove(&target);
    let plain = Line {
        name: "for the time: SHA-256 + write, 1 thread".into(),
        samples: vec![written],
        is_floor: false,
        limit: None,
    };
    let line = |name: &str, sample: Sample| Line {
        name: name.into(),
        samples: vec![sample],
        is_floor: false,
        limit: Some(Limit::Bytes(MEMORY_LIMIT_BYTES)),
    };
    Row {
        title: format!("memory, one file of {}", ByteSize::b(size_bytes)),
        work: Work::Bytes(size_bytes),
        lines: vec![line("client: push", client), line("server", served), plain],
    }
}
