//! Which rows there are, how much of everything, and what the rows share.

use std::{
    cell::Cell,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use clap::ValueEnum;

use crate::{
    client, fixture, growth,
    growth::Curve,
    http::{Server, send_all, upload_request},
    less,
    measure::{Contender, Limit, Row, Sample, Work, compare, grouped},
    part::Part,
    server, store,
};

/// What a server may need of memory, but for requests that list 100,000 files.
pub const MEMORY: Limit = Limit::Bytes(32 << 20);

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowName {
    /// Send many small files
    Uploads,
    /// Send many small files that are stored already
    Resend,
    /// Ask for the status of many files, one by one
    Status,
    /// Send one large file
    Large,
    /// Ask the server what it lacks of many files
    Requirements,
    /// Have a checkout of many files created
    Checkout,
    /// Scan a folder without a hash cache, pages warm
    Hash,
    /// Scan the same folder with a hash cache, nothing changed
    Rescan,
    /// Send a folder with our client: hash, ask, send
    Push,
    /// Scan a folder of tiny files
    Define,
    /// Scan other folders, without and with a hash cache
    Folders,
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
    /// What each file costs, by how many there are
    Growth,
}

impl RowName {
    /// Those that have a goal in the comparison with other servers and clients.
    pub const GOALS: [Self; 10] = [
        Self::Uploads,
        Self::Resend,
        Self::Status,
        Self::Large,
        Self::Requirements,
        Self::Checkout,
        Self::Hash,
        Self::Rescan,
        Self::Push,
        Self::Define,
    ];

    /// Those that can be about a server that runs already.
    pub const AT_URL: [Self; 7] = [
        Self::Uploads,
        Self::Resend,
        Self::Status,
        Self::Large,
        Self::Requirements,
        Self::Checkout,
        Self::Push,
    ];
}

/// How much of everything.
#[derive(Debug)]
pub struct Sizes {
    /// A folder to scan and to send: how many files, of how many bytes.
    pub folder: (usize, usize),
    /// A folder of tiny files.
    pub tiny: (usize, usize),
    /// More folders to scan.
    pub folders: [(usize, usize); 3],
    /// Files of a request.
    pub entries: usize,
    /// Distinct blobs of a checkout.
    pub checkout_blobs: usize,
    pub uploads: usize,
    pub upload_bytes: usize,
    /// Requests for a status, for each of as many blobs as there are uploads.
    pub status_rounds: usize,
    /// One file that is sent again, or in pieces.
    pub resent_bytes: usize,
    pub large_bytes: u64,
    pub memory_bytes: u64,
    /// Blobs of a store that is started over, or has its garbage collected.
    pub store_blobs: usize,
    /// The same, for garbage collection while requests are answered.
    pub upkeep_blobs: usize,
    /// Each of many uploads.
    pub many_bytes: u64,
    /// How many files there are while they become more.
    pub growth: Vec<usize>,
}

impl Sizes {
    pub fn full(large_bytes: u64, memory_bytes: u64) -> Self {
        Self {
            folder: (2_000, (1 << 30) / 2_000),
            tiny: (10_000, 1_000),
            folders: [(10_000, 16 << 10), (100_000, 4 << 10), (1, 4 << 30)],
            entries: 100_000,
            checkout_blobs: 1_000,
            uploads: 10_000,
            upload_bytes: 16 << 10,
            status_rounds: 4,
            resent_bytes: 1 << 30,
            large_bytes,
            memory_bytes,
            store_blobs: 1_000_000,
            upkeep_blobs: 100_000,
            many_bytes: 64 << 20,
            growth: vec![1_000, 10_000, 100_000, 1_000_000],
        }
    }

    pub fn quick() -> Self {
        Self {
            folder: (20, 100_000),
            tiny: (200, 1_000),
            folders: [(200, 16 << 10), (300, 4 << 10), (1, 10 << 20)],
            entries: 2_000,
            checkout_blobs: 50,
            uploads: 200,
            upload_bytes: 16 << 10,
            status_rounds: 4,
            resent_bytes: 40 << 20,
            large_bytes: 20 << 20,
            memory_bytes: 50 << 20,
            store_blobs: 2_000,
            upkeep_blobs: 2_000,
            many_bytes: 2 << 20,
            growth: vec![100, 1_000, 3_000],
        }
    }
}

/// A server that lines are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Ours, which syncs what it says is stored.
    Full,
    /// Ours, which syncs nothing.
    Relaxed,
    /// The one that runs already.
    AtUrl,
}

impl Subject {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "server, durability full",
            Self::Relaxed => "server, relaxed",
            Self::AtUrl => "server at the URL",
        }
    }
}

/// Where, how much, how often, and of which server.
#[derive(Debug)]
pub struct Bench {
    pub dir: PathBuf,
    /// Whether that is on a tmpfs. Some goals depend on it.
    pub is_tmpfs: bool,
    pub sizes: Sizes,
    pub repeat: u32,
    /// Address and port of a server that runs already, instead of ours.
    pub running: Option<String>,
    next_seed: Cell<u64>,
}

impl Bench {
    pub fn new(
        dir: PathBuf,
        is_tmpfs: bool,
        sizes: Sizes,
        repeat: u32,
        running: Option<String>,
    ) -> Self {
        // A server that runs on may have the content of earlier runs.
        let next_seed = Cell::new(fastrand::u64(1 << 40..1 << 60));
        Self { dir, is_tmpfs, sizes, repeat, running, next_seed }
    }

    pub fn compare(
        &self,
        title: String,
        work: Work,
        ours: Vec<Contender>,
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

    /// Seeds of content that no server has seen.
    pub fn seeds(&self, count: usize) -> Range<u64> {
        let first = self.next_seed.get();
        self.next_seed.set(first + count as u64);
        first..self.next_seed.get()
    }

    /// The goal on a tmpfs, and elsewhere.
    pub fn goal(&self, tmpfs: f64, elsewhere: f64) -> f64 {
        if self.is_tmpfs { tmpfs } else { elsewhere }
    }

    /// The servers that a row is about if it matters what they sync.
    pub fn subjects(&self) -> &'static [Subject] {
        match self.running {
            None => &[Subject::Full, Subject::Relaxed],
            Some(_) => &[Subject::AtUrl],
        }
    }

    /// The server that a row is about if that does not matter.
    pub fn subject(&self) -> Subject {
        self.subjects()[0]
    }

    /// Starts it over this storage, if it is ours to start.
    pub fn serve(&self, subject: Subject, storage: &Path) -> Server {
        let server = match (&self.running, subject) {
            (Some(address), Subject::AtUrl) => Server::running(address),
            (_, Subject::Relaxed) => Server::farmhand_with(&self.dir, storage, "relaxed"),
            _ => Server::farmhand(&self.dir, storage),
        };
        server.at_rest()
    }

    /// A storage that has these blobs. A server that runs already is sent them.
    pub fn stored(&self, name: &str, contents: impl Iterator<Item = Vec<u8>>) -> PathBuf {
        let contents: Vec<_> = contents.collect();
        if let Some(address) = &self.running {
            eprintln!("sending what is to be stored …");
            let requests: Vec<_> = contents.iter().map(|content| upload_request(content)).collect();
            send_all(&Server::running(address), &requests, 16, &[200, 204, 208]);
        }
        let storage = self.fresh(name);
        fixture::make_store(&storage, contents.into_iter());
        storage
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Results {
    pub rows: Vec<Row>,
    pub growth: Vec<Curve>,
}

impl Results {
    /// Runs one row; some are of several parts.
    pub fn run(&mut self, row: RowName, bench: &Bench) {
        self.rows.extend(match row {
            RowName::Uploads => server::uploads(bench),
            RowName::Resend => server::resend(bench),
            RowName::Status => server::status(bench),
            RowName::Large => vec![server::large(bench)],
            RowName::Requirements => server::requirements(bench),
            RowName::Checkout => vec![server::checkout(bench)],
            RowName::Hash => vec![client::hash(bench)],
            RowName::Rescan => vec![client::rescan(bench)],
            RowName::Push => vec![client::push(bench)],
            RowName::Define => vec![client::define(bench)],
            RowName::Folders => client::folders(bench),
            RowName::Ready => vec![store::ready(bench)],
            RowName::Gc => store::gc(bench),
            RowName::Upkeep => store::upkeep(bench),
            RowName::Many => vec![store::many(bench)],
            RowName::Cut => vec![less::cut(bench)],
            RowName::Batch => less::batch(bench),
            RowName::Pieces => vec![less::pieces(bench)],
            RowName::Delta => vec![less::delta(bench)],
            RowName::Memory => vec![client::memory(bench)],
            RowName::Growth => {
                self.growth = growth::curves(bench);
                Vec::new()
            }
        });
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

/// Has a part store something in a storage that has nothing, and removes that.
pub fn into_empty_store(bench: &Bench, part: impl FnOnce(PathBuf) -> Part) -> Sample {
    let storage = bench.fresh("storage");
    fixture::make_empty_store(&storage);
    crate::measure::settle(&bench.dir);
    let sample = part(storage.clone()).sample();
    remove(&storage);
    sample
}

/// Files, and one of their sizes, for titles.
pub fn amount(files: usize, size_bytes: usize) -> String {
    format!("{} × {}", grouped(files as f64), ByteSize::b(size_bytes as u64))
}

pub fn on(threads: usize) -> String {
    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") }
}
