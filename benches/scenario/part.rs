//! What this program does when it is run again to be measured: farmhand's scan, and the floors.
//!
//! A floor does what nobody can do without, in the plainest way: no pool but threads and a counter,
//! no verification but what the row is about, every name and list made before the clock starts.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use farmhand::{
    chunks::Chunker,
    meter::Progress,
    scan::{Options, Scanner},
    server,
    store::{self, Store},
    wire::{FileSpec, RequirementsRequest},
};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, mkdirat, openat, statat,
    symlinkat, utimensat,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{self, STORED},
    measure::{Sample, cores, timed},
};

/// The first argument of a process that does a part.
pub const COMMAND: &str = "part";

/// The pieces in which large files are hashed and written.
const PIECE_BYTES: usize = 256 << 10;

/// Something to be measured, as it is told to a child process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Part {
    /// Ours: scanner started, folder walked, cache asked if there is one, the rest hashed.
    Scan { root: PathBuf, cache: Option<PathBuf>, cached_files: usize },
    /// Floor of hashing: each file of a list that is known read and hashed, on all cores.
    ReadAndHash { root: PathBuf },
    /// Floor of a scan that finds nothing changed: list the directories, stat the files. One thread.
    WalkAndStat { root: PathBuf },
    /// The part of the next that one request cannot spread over cores: parse the body.
    Parse { body: PathBuf },
    /// Floor of requirements: parse the body, then stat each blob's path, on all cores; and set the
    /// time of each if the server has to. Names may be those from the open directories of a store.
    ParseAndStat { body: PathBuf, storage: PathBuf, touch: bool, from_open: bool },
    /// Floor of status requests: stat the paths of blobs in turn, on all cores.
    Stat { storage: PathBuf, blobs: usize, requests: usize },
    /// Floor of a checkout: make the directories and the links, by so many threads with a directory
    /// each; and sync each directory if durability is asked for. Names may be those from the open
    /// directory that a link is in.
    Link {
        storage: PathBuf,
        job: String,
        files: usize,
        blobs: usize,
        threads: usize,
        sync: bool,
        from_open: bool,
    },
    /// Floor of uploads: create a temp file, write, make the blob's directory, rename, by so many
    /// threads; and sync data and directories as the server does if durability is asked for.
    Store { storage: PathBuf, blobs: usize, size_bytes: usize, threads: usize, sync: bool },
    /// Floor of a large upload: hash and write the same bytes from memory, in one thread or each in its
    /// own; and sync them in the end if durability is asked for.
    HashAndWrite { target: PathBuf, size_bytes: u64, apart: bool, sync: bool },
    /// Floor of a push: so many threads read and hash each file and send it through a socket, as many
    /// hash it again and store it as [`Part::Store`] does.
    Push { root: PathBuf, storage: PathBuf, threads: usize, sync: bool },
    /// Ours: read a file, cut it into chunks, and hash each.
    Cut { file: PathBuf },
    /// Floor of that: read a file and hash it with SHA-256, in one thread.
    ReadAndHashOne { file: PathBuf },
    /// Floor of garbage collection: list all directories of blobs, stat each file, and remove nine of
    /// ten with their directories if asked to, on all cores. Which are garbage is not looked for.
    Collect { storage: PathBuf, remove: bool },
    /// What programs do that every machine has. Their CPU time and memory are not counted.
    Shell { command: String, dir: PathBuf },
    /// A server whose upkeep begins at once, or never.
    Serve { storage: PathBuf, upkeep: bool },
    /// The wire alone: a server that reads requests, throws them away and answers 204, or what is
    /// asked for with a short text.
    Sink,
}

impl Part {
    /// A process that does this.
    pub fn command(&self) -> Command {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(serde_json::to_string(self).expect("a part is plain data"));
        command
    }

    /// Has a child process do this.
    pub fn sample(&self) -> Sample {
        let output = self.command().stderr(Stdio::inherit()).output().expect("cannot start a part");
        assert!(output.status.success(), "{self:?}: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("a part prints its sample")
    }
}

/// The main function of a child process.
pub fn act(part: &str) {
    let part: Part = serde_json::from_str(part).expect("this is for the benchmark itself");
    let sample = match part {
        Part::Scan { root, cache, cached_files } => scan(&root, cache, cached_files),
        Part::ReadAndHash { root } => read_and_hash(&root),
        Part::WalkAndStat { root } => timed(|| {
            for file in fixture::list(&root).expect("cannot walk") {
                black_box(fs::symlink_metadata(file).expect("cannot stat"));
            }
        }),
        Part::Parse { body } => {
            let body = fs::read(body).expect("cannot read the body");
            timed(|| drop(black_box(parse(&body))))
        }
        Part::ParseAndStat { body, storage, touch, from_open } => {
            parse_and_stat(&body, &storage, touch, from_open)
        }
        Part::Stat { storage, blobs, requests } => {
            let path = |spec: FileSpec| fixture::blob_path(&storage, &spec.sha, spec.size).1;
            let paths: Vec<_> = fixture::file_specs(blobs, blobs).into_iter().map(path).collect();
            timed(|| {
                each(cores(), requests, |number| {
                    let found = fs::symlink_metadata(&paths[number % blobs]);
                    black_box(found.expect("cannot stat"));
                });
            })
        }
        Part::Link { storage, job, files, blobs, threads, sync, from_open } => {
            let files = fixture::file_specs(files, blobs);
            link(&storage.join("jobs").join(job), &files, threads, sync, from_open)
        }
        Part::Store { storage, blobs, size_bytes, threads, sync } => {
            put(&storage, blobs, size_bytes, threads, sync)
        }
        Part::HashAndWrite { target, size_bytes, apart, sync } => {
            hash_and_write(&target, size_bytes, apart, sync)
        }
        Part::Push { root, storage, threads, sync } => push(&root, &storage, threads, sync),
        Part::Cut { file } => timed(|| {
            let mut chunker = Chunker::new(File::open(file).expect("cannot open"));
            while let Some((chunk, _)) = chunker.next_chunk().expect("cannot read") {
                black_box(chunk);
            }
        }),
        Part::ReadAndHashOne { file } => timed(|| {
            let mut file = File::open(file).expect("cannot open");
            let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
            loop {
                match file.read(&mut piece).expect("cannot read") {
                    0 => break,
                    count => hasher.update(&piece[..count]),
                }
            }
            black_box(hasher.finalize());
        }),
        Part::Collect { storage, remove } => collect(&storage, remove),
        Part::Shell { command, dir } => timed(|| {
            let mut shell = Command::new("sh");
            let status = shell.arg("-c").arg(&command).current_dir(dir).status();
            assert!(status.expect("there is a shell").success(), "{command}");
        }),
        Part::Serve { storage, upkeep } => return serve(&storage, upkeep),
        Part::Sink => return sink(),
    };
    println!("{}", serde_json::to_string(&sample).expect("a sample is plain data"));
}

/// Does `work` for each number below `count`, on so many threads.
pub fn each(threads: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

fn scan(root: &Path, cache: Option<PathBuf>, cached_files: usize) -> Sample {
    let mut scanned = None;
    let sample = timed(|| {
        let options = Options { cache, ..Options::default() };
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let mut scanner = Scanner::new(options, progress, stop).expect("cannot start a scanner");
        scanned = Some(scanner.scan(root).expect("cannot scan"));
    });
    let scan = scanned.expect("it was scanned");
    assert!(scan.skipped.is_empty(), "skipped: {:?}", scan.skipped);
    let cached = scan.files.iter().filter(|file| file.cached).count();
    assert_eq!(cached, cached_files, "files whose digest came from the cache");
    sample
}

fn read_and_hash(root: &Path) -> Sample {
    let files = fixture::list(root).expect("cannot walk");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; 64 << 10]; // one for all files of a thread
        while let Some(path) = files.get(next.fetch_add(1, Relaxed)) {
            let (mut file, mut hasher) = (File::open(path).expect("cannot open"), Sha256::new());
            loop {
                match file.read(&mut buffer).expect("cannot read") {
                    0 => break,
                    count => hasher.update(&buffer[..count]),
                }
            }
            black_box(hasher.finalize());
        }
    };
    timed(|| {
        thread::scope(|scope| {
            (0..cores()).for_each(|_| drop(scope.spawn(work)));
        });
    })
}

fn parse(body: &[u8]) -> RequirementsRequest<'_> {
    serde_json::from_slice(body).expect("it is JSON")
}

/// A directory that names can be looked up from.
fn open_dir(from: &OwnedFd, path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(from, path, flags, Mode::empty()).expect("cannot open a directory")
}

/// One that whole paths can be looked up from.
fn root_dir() -> OwnedFd {
    File::open("/").expect("cannot open the root directory").into()
}

fn parse_and_stat(body: &Path, storage: &Path, touch: bool, from_open: bool) -> Sample {
    let body = fs::read(body).expect("cannot read the body");
    let stored = storage.join(STORED);
    // Of each blob, one of the directories below, and the path from there.
    let path = |spec: &FileSpec| {
        let path = fixture::blob_path(storage, &spec.sha, spec.size).1;
        if !from_open {
            return (0, path);
        }
        let prefix = usize::from_str_radix(&spec.sha[..2], 16).expect("a digest is hex");
        let from_there = path.strip_prefix(stored.join(&spec.sha[..2]));
        (prefix, from_there.expect("it is in there").to_owned())
    };
    let paths: Vec<(usize, PathBuf)> = parse(&body).files.iter().map(path).collect();
    let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let now = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
    timed(|| {
        black_box(parse(&body));
        let root = root_dir();
        let dirs: Vec<OwnedFd> = match from_open {
            true => {
                fixture::prefixes().map(|prefix| open_dir(&root, &stored.join(prefix))).collect()
            }
            false => vec![root],
        };
        each(cores(), paths.len(), |number| {
            let (dir, path) = &paths[number];
            let found = statat(&dirs[*dir], path, AtFlags::SYMLINK_NOFOLLOW);
            if touch {
                utimensat(&dirs[*dir], path, &now, AtFlags::empty()).expect("cannot touch");
            }
            let _ = black_box(found); // a blob may be unknown
        });
    })
}

fn link(job: &Path, files: &[FileSpec], threads: usize, sync: bool, from_open: bool) -> Sample {
    let links: Vec<(PathBuf, PathBuf)> = files
        .iter()
        .map(|file| {
            let up = Path::new("../../.."); // from job/directory/link to the storage
            (job.join(&*file.path), fixture::blob_path(up, &file.sha, file.size).1)
        })
        .collect();
    let dirs: Vec<&[(PathBuf, PathBuf)]> =
        links.chunk_by(|(a, _), (b, _)| a.parent() == b.parent()).collect();
    timed(|| {
        fs::create_dir(job).expect("cannot make the checkout");
        let job_dir = open_dir(&root_dir(), job);
        each(threads, dirs.len(), |number| {
            let dir = dirs[number][0].0.parent().expect("a link is in a directory");
            if from_open {
                let name = dir.file_name().expect("a directory has a name");
                mkdirat(&job_dir, name, Mode::from(0o777)).expect("cannot make a directory");
                let dir = open_dir(&job_dir, Path::new(name));
                for (path, target) in dirs[number] {
                    let name = path.file_name().expect("a link has a name");
                    symlinkat(target, &dir, name).expect("cannot make a link");
                }
            } else {
                fs::create_dir(dir).expect("cannot make a directory");
                for (path, target) in dirs[number] {
                    symlink(target, path).expect("cannot make a link");
                }
            }
            if sync {
                sync_dir(dir);
            }
        });
        if sync {
            sync_dir(job);
        }
    })
}

fn put(storage: &Path, blobs: usize, size_bytes: usize, threads: usize, sync: bool) -> Sample {
    let content = fixture::random_bytes(1, size_bytes);
    let paths: Vec<_> = (0..blobs)
        .map(|number| {
            let sha = fixture::sha256_hex(&number.to_le_bytes());
            let temp = fixture::uploading(storage).join(format!("{number}.tmp"));
            (temp, fixture::blob_path(storage, &sha, size_bytes as u64))
        })
        .collect();
    timed(|| {
        each(threads, blobs, |number| {
            let (temp, place) = &paths[number];
            let mut file = create(temp);
            file.write_all(&content).expect("cannot write");
            publish(&file, temp, place, sync);
        });
    })
}

fn create(temp: &Path) -> File {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o444).open(temp).expect("cannot create")
}

/// Gives what was written the name of a blob.
fn publish(file: &File, temp: &Path, (dir, target): &(PathBuf, PathBuf), sync: bool) {
    if sync {
        file.sync_data().expect("cannot sync");
    }
    fs::create_dir(dir).expect("cannot make a directory");
    fs::rename(temp, target).expect("cannot rename");
    if sync {
        sync_dir(dir);
        sync_dir(dir.parent().expect("it has a parent"));
    }
}

fn sync_dir(dir: &Path) {
    File::open(dir).and_then(|dir| dir.sync_all()).expect("cannot sync a directory");
}

fn hash_and_write(target: &Path, size_bytes: u64, apart: bool, sync: bool) -> Sample {
    let content = fixture::random_bytes(1, PIECE_BYTES * 64);
    let pieces = || fixture::pieces(&content, PIECE_BYTES, size_bytes);
    let write = |file: &mut File, piece: &[u8]| file.write_all(piece).expect("cannot write");
    timed(|| {
        let mut file = File::create_new(target).expect("cannot create");
        let mut hasher = Sha256::new();
        if apart {
            thread::scope(|scope| {
                scope.spawn(|| pieces().for_each(|piece| hasher.update(piece)));
                pieces().for_each(|piece| write(&mut file, piece));
            });
        } else {
            for piece in pieces() {
                hasher.update(piece);
                write(&mut file, piece);
            }
        }
        black_box(hasher.finalize());
        if sync {
            file.sync_data().expect("cannot sync");
        }
    })
}

/// What goes before a file through the socket: its digest in hex, and its size.
const PUSH_HEAD_BYTES: usize = 64 + 16;

fn push(root: &Path, storage: &Path, threads: usize, sync: bool) -> Sample {
    let files = fixture::list(root).expect("cannot walk");
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen");
    let address = listener.local_addr().expect("it listens");
    let next = AtomicUsize::new(0);
    let send = |mut stream: TcpStream| {
        let mut content = Vec::new();
        while let Some(path) = files.get(next.fetch_add(1, Relaxed)) {
            content.clear();
            File::open(path)
                .and_then(|mut file| file.read_to_end(&mut content))
                .expect("cannot read");
            let head = format!("{}{:016}", fixture::sha256_hex(&content), content.len());
            stream.write_all(head.as_bytes()).expect("cannot send");
            stream.write_all(&content).expect("cannot send");
        }
    };
    timed(|| {
        thread::scope(|scope| {
            for number in 0..threads {
                let stream = TcpStream::connect(address).expect("cannot connect");
                scope.spawn(move || send(stream));
                let (stream, _) = listener.accept().expect("cannot accept");
                let temp = fixture::uploading(storage).join(format!("{number}.tmp"));
                scope.spawn(move || store_all(stream, storage, &temp, sync));
            }
        });
    })
}

/// The other side of a push.
fn store_all(mut stream: TcpStream, storage: &Path, temp: &Path, sync: bool) {
    let (mut head, mut piece) = ([0; PUSH_HEAD_BYTES], vec![0; PIECE_BYTES]);
    while stream.read_exact(&mut head).is_ok() {
        let head = str::from_utf8(&head).expect("a head is text");
        let (sha, size) = head.split_at(64);
        let size_bytes: usize = size.parse().expect("a size");
        let (mut file, mut hasher, mut left) = (create(temp), Sha256::new(), size_bytes);
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            stream.read_exact(piece).expect("cannot receive");
            hasher.update(&piece);
            file.write_all(piece).expect("cannot write");
            left -= piece.len();
        }
        assert_eq!(const_hex::encode(hasher.finalize()), sha);
        publish(&file, temp, &fixture::blob_path(storage, sha, size_bytes as u64), sync);
    }
}

fn collect(storage: &Path, remove: bool) -> Sample {
    let stored = storage.join(STORED);
    let list = |dir: &Path| fs::read_dir(dir).expect("cannot list");
    timed(|| {
        let prefixes: Vec<String> = fixture::prefixes().collect();
        each(cores(), prefixes.len(), |prefix| {
            for (number, dir) in list(&stored.join(&prefixes[prefix])).enumerate() {
                let dir = dir.expect("cannot list").path();
                for blob in list(&dir) {
                    let blob = blob.expect("cannot list").path();
                    black_box(fs::symlink_metadata(&blob).expect("cannot stat"));
                    if remove && number % 10 != 0 {
                        fs::remove_file(&blob).expect("cannot remove");
                        fs::remove_dir(&dir).expect("cannot remove");
                    }
                }
            }
        });
    })
}

fn serve(storage: &Path, upkeep: bool) {
    let day = Duration::from_secs(86_400);
    let upkeep = server::Upkeep {
        quiet_start: Duration::ZERO,
        gc_every: upkeep.then_some(day),
        scrub_every: upkeep.then_some(day),
        ..server::Upkeep::default()
    };
    let options = server::Options { upkeep, ..server::Options::default() };
    let store = Store::open(storage, store::Options::default()).expect("cannot open the store");
    let runtime = tokio::runtime::Runtime::new().expect("cannot start threads");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("cannot listen");
        println!("http://{}/", listener.local_addr().expect("it listens"));
        let stop = CancellationToken::new();
        server::serve(vec![listener], store, options, stop.clone(), stop).await;
    });
}

fn sink() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen");
    println!("http://{}/", listener.local_addr().expect("it listens"));
    for stream in listener.incoming().flatten() {
        // Ends, with an error or without, when the other side closes.
        thread::spawn(move || swallow(&stream));
    }
}

fn swallow(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::with_capacity(64 << 10, stream);
    loop {
        let (mut line, mut length, mut asks) = (String::new(), 0, false);
        while requests.read_line(&mut line)? > 2 {
            asks |= line.starts_with("GET ");
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        if line.is_empty() {
            return Ok(());
        }
        while length > 0 {
            let count = requests.fill_buf()?.len().min(length);
            if count == 0 {
                return Ok(());
            }
            requests.consume(count);
            length -= count;
        }
        let answer: &[u8] = match asks {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"status\":\"stored\"}",
            false => b"HTTP/1.1 204 No Content\r\n\r\n",
        };
        stream.write_all(answer)?;
    }
}
