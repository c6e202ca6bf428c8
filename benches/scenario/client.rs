//! What the client does: scans, and sending a folder.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bytesize::ByteSize;

use crate::{
    fixture,
    http::{Server, farmhand},
    measure::{Contender, Limit, Line, Row, Sample, Work, cores, cpu_s, peak_bytes, settle},
    part::Part,
    rows::{Bench, Subject, amount, into_empty_store, on, part, remove},
};

/// How long a scan may take that reads all files, or none.
const HASH_S: f64 = 0.35;
const RESCAN_S: f64 = 0.03;
/// How long it may take to read many tiny files.
const DEFINE_S: f64 = 0.1;
/// How long hashing and sending a folder may take.
const PUSH_S: f64 = 1.5;
/// What server and client may need for a file of any size.
const HUGE_FILE_MEMORY: Limit = Limit::Bytes(100 << 20);
/// Over how many connections the client sends at most.
const CLIENT_CONNECTIONS: usize = 8;

/// The scanner waits for files that have only just changed. So long after, they are at rest.
pub fn rest() {
    thread::sleep(Duration::from_millis(100));
}

/// Runs the client to its end, and measures it while it lives; beside it the server. Returns what it says,
/// too, which may be no more than a pipe can hold.
pub fn run_client(command: &mut Command, server: &Server) -> (Sample, String) {
    let server_cpu_s = server.cpu_s();
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().expect("cannot start the client");
    let mut sample = Sample::default();
    let status = loop {
        // Until it has ended, even if nobody has waited for it yet, there is something to be read.
        sample.peak_bytes = peak_bytes(child.id()).or(sample.peak_bytes);
        sample.cpu_s = cpu_s(child.id()).or(sample.cpu_s);
        match child.try_wait().expect("cannot wait for the client") {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    sample.wall_s = start.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    sample.other_cpu_s = server.cpu_s_since(server_cpu_s);
    sample.other_peak_bytes = server.peak_bytes();
    let stdout = child.stdout.take().expect("it is piped");
    (sample, io::read_to_string(stdout).expect("what it says is text"))
}

/// A push of a folder.
pub fn push_command(bench: &Bench, server: &Server, folder: &Path) -> Command {
    let mut command = farmhand(&bench.dir);
    command.args(["--quiet", "push", "--server", &server.url()]).arg(folder);
    command
}

/// What people have who have no scanner.
const OPENSSL: &str = "find . -type f -print0 | xargs -0 -P2 -n100 openssl dgst -sha256";

fn shell(command: &str, dir: &Path) -> Part {
    Part::Shell { command: format!("{command} > /dev/null"), dir: dir.to_owned() }
}

/// Starting the scanner's threads counts: each command does that.
fn hash_row(bench: &Bench, title: &str, folder: (usize, usize), limits: &[Limit]) -> Row {
    let (files, size_bytes) = folder;
    let root = bench.fresh("folder");
    fixture::make_folder(&root, files, size_bytes, 0);
    rest();
    let scan = Part::Scan { root: root.clone(), cache: None, cached_files: 0 };
    let row = bench.compare(
        format!("{title}, {}", amount(files, size_bytes)),
        Work::Bytes((files * size_bytes) as u64),
        vec![part("Scanner", scan).within(limits)],
        vec![
            part(
                format!("floor: read + SHA-256, {}", on(cores())),
                Part::ReadAndHash { root: root.clone() },
            ),
            part("openssl, 2 at once", shell(OPENSSL, &root)),
        ],
    );
    remove(&root);
    row
}

/// Opening the cache counts, too.
fn rescan_row(bench: &Bench, (files, size_bytes): (usize, usize), limits: &[Limit]) -> Row {
    let (root, cache) = (bench.fresh("folder"), bench.fresh("cache"));
    fixture::make_folder(&root, files, size_bytes, 0);
    rest();
    let scan =
        |cached_files| Part::Scan { root: root.clone(), cache: Some(cache.clone()), cached_files };
    // Hashes and remembers.
    scan(0).sample();
    let row = bench.compare(
        format!("rescan, {}", amount(files, size_bytes)),
        Work::Files(files as u64),
        vec![part("Scanner", scan(files)).within(limits)],
        vec![
            part("floor: walk + stat, 1 thread", Part::WalkAndStat { root: root.clone() }),
            part("find -printf", shell("find . -type f -printf '%s %T@ %i\\n'", &root)),
        ],
    );
    remove(&root);
    remove(&cache);
    row
}

pub fn hash(bench: &Bench) -> Row {
    hash_row(bench, "hash", bench.sizes.folder, &[Limit::Seconds(HASH_S)])
}

pub fn rescan(bench: &Bench) -> Row {
    rescan_row(bench, bench.sizes.folder, &[Limit::Seconds(RESCAN_S)])
}

/// What a definition of a checkout needs: digests of all files, from no cache.
pub fn define(bench: &Bench) -> Row {
    hash_row(bench, "define", bench.sizes.tiny, &[Limit::Seconds(DEFINE_S)])
}

/// Other folders.
pub fn folders(bench: &Bench) -> Vec<Row> {
    let folders = bench.sizes.folders;
    let hashed = folders.iter().map(|&folder| hash_row(bench, "hash", folder, &[]));
    // That one file has not changed is soon seen.
    let again = folders.iter().filter(|(files, _)| *files > 1);
    hashed.chain(again.map(|&folder| rescan_row(bench, folder, &[]))).collect()
}

/// Our client sends a folder of which the server knows nothing, and itself no hash.
pub fn push(bench: &Bench) -> Row {
    let (files, size_bytes) = bench.sizes.folder;
    let folder = bench.fresh("folder");
    let make_folder = || {
        remove(&folder);
        fixture::make_folder(&folder, files, size_bytes, bench.seeds(files).start);
        rest();
    };
    make_folder();
    let (make_folder, folder) = (&make_folder, &folder);
    let ours = |&subject: &Subject| {
        let run = move || {
            let (storage, cache) = (bench.fresh("storage"), bench.fresh("cache"));
            // A server that runs on has kept what it was sent.
            if subject == Subject::AtUrl {
                make_folder();
            }
            let server = bench.serve(subject, &storage);
            settle(&bench.dir);
            let mut command = push_command(bench, &server, folder);
            let (sample, _) = run_client(command.arg("--cache-dir").arg(&cache), &server);
            drop(server);
            remove(&storage);
            remove(&cache);
            sample
        };
        Contender::new(format!("farmhand push (+ {})", subject.name()), run)
            .within(&[Limit::Seconds(PUSH_S)])
    };
    let floor = |threads: usize, sync: bool| {
        let does = if sync { "write + fdatasync + rename + fsync" } else { "write + rename" };
        let name =
            format!("floor: read + SHA-256, send, SHA-256 + {does}, {threads} + {threads} threads");
        Contender::new(name, move || {
            let root = folder.clone();
            into_empty_store(bench, |storage| Part::Push { root, storage, threads, sync })
        })
    };
    let row = bench.compare(
        format!("push, {}", amount(files, size_bytes)),
        Work::Bytes((files * size_bytes) as u64),
        bench.subjects().iter().map(ours).collect(),
        // Syncs are waited for together.
        vec![floor(cores(), false), floor(CLIENT_CONNECTIONS, true)],
    );
    remove(folder);
    row
}

/// Both sides are the real program; what it has needed is read while it lives. What counts is the
/// limit. The plain write beside it is there for the order of magnitude of the time, and is not
/// compared: it runs once, after ours, and the first to touch a machine's memory pays for it.
pub fn memory(bench: &Bench) -> Row {
    let size_bytes = bench.sizes.memory_bytes;
    let (folder, storage) = (bench.fresh("folder"), bench.fresh("storage"));
    fs::create_dir(&folder).expect("cannot make a folder");
    let file = fs::File::create_new(folder.join("huge.vdb")).expect("cannot make a file");
    file.set_len(size_bytes).expect("cannot make a sparse file");
    drop(file);
    eprintln!("memory …");

    let server = Server::farmhand(&bench.dir, &storage);
    let (sample, _) = run_client(&mut push_command(bench, &server, &folder), &server);
    let client = Sample { other_cpu_s: None, other_peak_bytes: None, ..sample };
    let served =
        Sample { cpu_s: sample.other_cpu_s, peak_bytes: sample.other_peak_bytes, ..client };
    drop(server);
    remove(&folder);
    remove(&storage);
    let target = bench.fresh("large");
    let part = Part::HashAndWrite { target: target.clone(), size_bytes, apart: false, sync: false };
    let written = part.sample();
    remove(&target);
    let line = |name: &str, sample: Sample, limits: &[Limit]| Line {
        name: name.into(),
        samples: vec![sample],
        is_floor: false,
        limits: limits.to_vec(),
    };
    Row {
        title: format!("memory, one file of {}", ByteSize::b(size_bytes)),
        work: Work::Bytes(size_bytes),
        lines: vec![
            line("client: push", client, &[HUGE_FILE_MEMORY]),
            line("server", served, &[HUGE_FILE_MEMORY]),
            line("for the time: SHA-256 + write, 1 thread", written, &[]),
        ],
    }
}
