//! Servers, connections and files for tests.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use farmhand::{
    server,
    store::{self, Store},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A file system in memory.
#[cfg(target_os = "linux")]
pub const MEMORY: &str = "/dev/shm";

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn sha(content: &[u8]) -> String {
    farmhand::domain::Digest::from_bytes(Sha256::digest(content).into()).to_string()
}

/// `sha/size`, as in URLs.
pub fn address(content: &[u8]) -> String {
    format!("{}/{}", sha(content), content.len())
}

/// Content that no other test has.
pub fn random(size: usize) -> Vec<u8> {
    let mut content = vec![0; size];
    fastrand::fill(&mut content);
    content
}

/// An element of `files`.
pub fn file(content: &[u8], path: &str) -> Value {
    serde_json::json!({ "sha": sha(content), "size": content.len(), "path": path })
}

/// Opens a store. A process that another test is just starting has this one's open files until it runs its
/// program, the lock of a store that was closed among them.
fn open(storage: &Path, options: store::Options) -> std::sync::Arc<Store> {
    let mut opened = None;
    until(|| {
        opened = match Store::open(storage, options) {
            Err(store::OpenError::InUse { .. }) => None,
            opened => Some(opened.unwrap()),
        };
        opened.is_some()
    });
    opened.unwrap()
}

/// A server in this process, over a store in a temporary directory.
pub struct TestServer {
    pub dir: TempDir,
    storage: PathBuf,
    pub addr: SocketAddr,
    shutdown: CancellationToken,
    now: CancellationToken,
    serving: Option<JoinHandle<()>>,
    runtime: Runtime,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with(server::Options::default())
    }

    pub fn with(options: server::Options) -> Self {
        Self::with_store(options, store::Options::default())
    }

    pub fn with_store(options: server::Options, store: store::Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Below another directory, so that escapes can be seen.
        let storage = dir.path().join("storage");
        Self::serve(dir, storage, options, store)
    }

    /// Over a storage that stays when the server goes.
    pub fn over(storage: PathBuf, options: server::Options) -> Self {
        Self::serve(tempfile::tempdir().unwrap(), storage, options, store::Options::default())
    }

    /// One that keeps jobs, too.
    pub fn with_farm(farm: server::FarmOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        Self::farm_over(dir, storage, farm)
    }

    /// The same, and others may ask it.
    pub fn farm_for_others() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        let access = server::Access::new(server::Anonymous::Anywhere, server::Tokens::default());
        let options = server::Options { access: access.into(), ..Default::default() };
        Self::farm_with(dir, storage, server::FarmOptions::default(), options)
    }

    fn farm_with(
        dir: TempDir,
        storage: PathBuf,
        farm: server::FarmOptions,
        options: server::Options,
    ) -> Self {
        let store = open(&storage, store::Options::default());
        let farm = Some(server::Farm::open(&store, farm).unwrap());
        Self::serve_store(dir, storage, server::Options { farm, ..options }, store)
    }

    /// The same over a storage that stays.
    pub fn farm_over(dir: TempDir, storage: PathBuf, farm: server::FarmOptions) -> Self {
        Self::farm_with(dir, storage, farm, server::Options::default())
    }

    fn serve(
        dir: TempDir,
        storage: PathBuf,
        options: server::Options,
        store: store::Options,
    ) -> Self {
        let store = open(&storage, store);
        Self::serve_store(dir, storage, options, store)
    }

    fn serve_store(
        dir: TempDir,
        storage: PathBuf,
        options: server::Options,
        store: std::sync::Arc<Store>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, now) = (CancellationToken::new(), CancellationToken::new());
        let serving = runtime.spawn(server::serve(
            vec![listener],
            store,
            options,
            shutdown.clone(),
            now.clone(),
        ));
        Self { dir, storage, addr, shutdown, now, serving: Some(serving), runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn storage(&self) -> PathBuf {
        self.storage.clone()
    }

    pub fn connect(&self) -> Connection {
        Connection::new(self.addr)
    }

    /// One request on a connection of its own.
    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.connect().post_json(path, body)
    }

    /// Sends JSON, or nothing, to one of farmhand's own endpoints.
    pub fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut connection = self.connect();
        let head = format!(
            "{method} /farmhand/v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\n\r\n{body}",
            body.len()
        );
        connection.send(head.as_bytes());
        connection.answer()
    }

    /// Any request of the Manager's API, with JSON or without a body.
    pub fn api(&self, method: &str, path: &str, body: Value) -> Answer {
        self.connect().api(method, path, &body)
    }

    pub fn upload(&self, content: &[u8]) -> Answer {
        self.connect().upload(content, "")
    }

    pub fn status(&self, content: &[u8]) -> String {
        let answer = self.connect().get(&format!("/api/v3/shaman/files/{}", address(content)));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until the status is this.
    pub fn until_status(&self, content: &[u8], expected: &str) {
        until(|| self.status(content) == expected);
    }

    pub fn alive(&self) {
        assert_eq!(self.connect().get("/healthz").status, 200);
    }

    /// How many uploads have left something behind.
    pub fn temp_files(&self) -> usize {
        self.uploading(|name| {
            [".farmhand-part", ".farmhand-borrowed"].iter().all(|end| !name.ends_with(end))
        })
    }

    /// How many blobs have come in part.
    pub fn unfinished(&self) -> usize {
        self.uploading(|name| name.contains(".farmhand-") && !name.ends_with("-tmp"))
    }

    fn uploading(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        let entries = fs::read_dir(self.storage().join("file-store/uploading")).unwrap();
        entries
            .filter(|entry| is_meant(entry.as_ref().unwrap().file_name().to_str().unwrap()))
            .count()
    }

    /// Waits until the chunks of all that is stored are known.
    pub fn until_indexed(&self, blobs: u64) {
        until(|| {
            let text = self.connect().get("/metrics").body;
            let text = String::from_utf8(text).unwrap();
            let value = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name)).unwrap();
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
            };
            value("farmhand_chunk_index_blobs ") == blobs
                && value("farmhand_chunk_index_behind ") == 0
        });
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.now.cancel();
        if let Some(serving) = self.serving.take() {
            let ended =
                self.runtime.block_on(async { tokio::time::timeout(PATIENCE, serving).await });
            if !std::thread::panicking() {
                ended.expect("the server does not end").unwrap();
                assert_eq!(self.temp_files(), 0, "temp files are left");
            }
        }
    }
}

/// The storage of a stand-in Manager. Its answers about it are those of a real one: it looks on the
/// disk, and tries whether it could write there.
#[derive(Debug, Clone)]
pub struct ManagersStorage {
    /// The path by which it calls its storage.
    pub location: String,
    /// The directory that this path leads to.
    pub dir: PathBuf,
    /// Whether its own Shaman is enabled.
    pub shaman_enabled: bool,
    /// Whether it makes each directory that it is asked about.
    pub makes_directories: bool,
    /// What it lists among its variables.
    pub variables: Value,
}

impl ManagersStorage {
    /// That in a directory, with Shaman enabled.
    pub fn at(dir: &Path) -> Self {
        let location = dir.to_str().unwrap().to_owned();
        Self::called(&location, dir)
    }

    /// That in a directory which the Manager finds under another path.
    pub fn called(location: &str, dir: &Path) -> Self {
        Self {
            location: location.to_owned(),
            dir: dir.to_owned(),
            shaman_enabled: true,
            makes_directories: false,
            variables: serde_json::json!({}),
        }
    }

    /// The directory that this path leads to, if it is in the storage.
    pub fn lead(&self, path: &str) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.location)?.replace('\\', "/");
        Some(self.dir.join(rest.trim_start_matches('/')))
    }

    /// The answer to a request about it; nothing to any other.
    pub fn answer(&self, method: &str, path: &str, body: &[u8]) -> Option<Value> {
        let path = path.split_once("/api/v3/configuration")?.1;
        match (method, path) {
            ("GET", "") => Some(serde_json::json!({
                "storageLocation": self.location, "shamanEnabled": self.shaman_enabled,
                "isFirstRun": false,
            })),
            ("POST", "/check/shared-storage") => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                let path = asked["path"].as_str().unwrap();
                let cause = self.check(self.lead(path).as_deref()).err().unwrap_or_default();
                let is_usable = cause.is_empty();
                Some(serde_json::json!({ "path": path, "is_usable": is_usable, "cause": cause }))
            }
            ("GET", path) if path.starts_with("/variables/") => Some(self.variables.clone()),
            _ => None,
        }
    }

    fn check(&self, dir: Option<&Path>) -> Result<(), String> {
        if let Some(dir) = dir.filter(|_| self.makes_directories) {
            fs::create_dir_all(dir).unwrap();
        }
        let dir = dir.filter(|dir| dir.is_dir()).ok_or("the directory does not exist")?;
        let file = dir.join("manager-was-here.txt");
        fs::write(&file, "test").map_err(|error| format!("cannot write {file:?}: {error}"))?;
        fs::remove_file(&file).map_err(|error| format!("cannot remove {file:?}: {error}"))
    }
}

/// Runs a test over a store that has threads for its disk, and over one that does at once what they do, as it is in memory.
pub fn on_each_kind_of_store(options: impl Fn() -> server::Options, test: impl Fn(&TestServer)) {
    for in_memory in [false, true] {
        let store = store::Options { in_memory: Some(in_memory), ..Default::default() };
        test(&TestServer::with_store(options(), store));
    }
}

/// Jobs that are given to this shell script.
pub fn farm_with_command(script: &str) -> server::FarmOptions {
    let hook = server::Hook {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 10 * PATIENCE,
        parallel: 1,
        then: farmhand::jobs::JobStatus::Completed,
    };
    server::FarmOptions { hook: Some(hook), ..server::FarmOptions::default() }
}

/// Waits until something is so.
pub fn until(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never came to be");
        std::thread::yield_now();
    }
}

/// A bare HTTP connection: what is sent is what is given, byte for byte.
#[derive(Debug)]
pub struct Connection {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The lines of its head, as they came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// It is this error, in the protocol's form, and the message says this.
    #[track_caller]
    pub fn is_error(&self, status: u16, says: &str) {
        assert_eq!(self.status, status, "{:?}", String::from_utf8_lossy(&self.body));
        let problem = self.json();
        assert_eq!(problem["code"], status);
        let message = problem["message"].as_str().unwrap();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
}

impl Connection {
    pub fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Any request of the Manager's API, with JSON or without a body.
    pub fn api(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} /api/v3/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\n\r\n{body}",
            body.len()
        );
        self.send(head.as_bytes());
        self.answer()
    }

    /// The next answer; `None` if the server closes instead.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let (mut length, mut is_chunked) = (0, false);
        let mut head = String::new();
        loop {
            head.push_str(&line);
            line.clear();
            self.reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap();
            }
            is_chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        let body = if is_chunked { self.chunks()? } else { self.exactly(length)? };
        Some(Answer { status, head, body })
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).ok()?;
        Some(body)
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            body.extend(self.exactly(length)?);
            self.exactly(2)?;
            if length == 0 {
                return Some(body);
            }
        }
    }

    /// Returns when something has come.
    pub fn until_it_answers(&mut self) {
        assert!(!self.reader.fill_buf().unwrap().is_empty(), "no answer");
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("no answer")
    }

    /// Whether the server closes the connection without a further word.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.reader.read(&mut byte), Ok(0))
    }

    /// Both ways, after an answer that switched to another protocol; nothing that has come is lost.
    pub fn tunnel(self) -> (TcpStream, BufReader<TcpStream>) {
        (self.stream, self.reader)
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        self.answer()
    }

    pub fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.send(&post_head(path, headers, body.len() as u64));
        // A server that answers early may close: the answer is what counts.
        let _ = self.stream.write_all(body);
        self.answer()
    }

    pub fn post_json(&mut self, path: &str, body: &Value) -> Answer {
        let path = format!("/api/v3/shaman/{path}");
        self.post(&path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    pub fn upload(&mut self, content: &[u8], headers: &str) -> Answer {
        self.post(&format!("/api/v3/shaman/files/{}", address(content)), headers, content)
    }

    /// Sends the head of an upload, and half of its body.
    pub fn half_upload(&mut self, content: &[u8], headers: &str) {
        let path = format!("/api/v3/shaman/files/{}", address(content));
        self.send(&post_head(&path, headers, content.len() as u64));
        self.send(&content[..content.len() / 2]);
    }

    /// Sends the other half.
    pub fn other_half(&mut self, content: &[u8]) -> Answer {
        self.send(&content[content.len() / 2..]);
        self.answer()
    }
}

pub fn post_head(path: &str, headers: &str, length: u64) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n")
        .into_bytes()
}

/// All files below a directory, links followed, with their content.
pub fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        if !entry.file_type().is_dir() {
            let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(path, fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    for (path, content) in tree(from) {
        let path = to.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The program, with nothing of the user's configuration, in directories of its own.
pub fn farmhand(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farmhand"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("FARMHAND_") || text.to_lowercase().ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
    for (name, dir) in [
        ("HOME", "home"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_RUNTIME_DIR", "run"),
    ] {
        command.env(name, home.join(dir));
    }
    command
}

/// A server in a process of its own.
pub struct ServerProcess {
    pub child: Child,
    pub url: String,
}

fn serve<'a>(command: &'a mut Command, storage: &Path, arguments: &[&str]) -> &'a mut Command {
    command.arg("serve").args(["--listen", "127.0.0.1:0", "--storage"]).arg(storage).args(arguments)
}

impl ServerProcess {
    pub fn start(home: &Path, storage: &Path, arguments: &[&str]) -> Self {
        let mut command = farmhand(home);
        command.stderr(Stdio::null());
        Self::spawn(serve(&mut command, storage, arguments))
    }

    /// One that logs everything to a file.
    pub fn logging(home: &Path, storage: &Path, arguments: &[&str], log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let mut command = farmhand(home);
        command.env("FARMHAND_LOG", "trace").stderr(log);
        Self::spawn(serve(&mut command, storage, arguments))
    }

    /// Waits until it says where it is.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.contains("://127.0.0.1:"), "{url:?}");
        Self { child, url: url.trim().to_owned() }
    }

    pub fn address(&self) -> SocketAddr {
        let (_, address) = self.url.split_once("://").unwrap();
        address.trim_end_matches('/').parse().unwrap()
    }

    pub fn connect(&self) -> Connection {
        Connection::new(self.address())
    }

    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Has it read its tokens and its certificate again.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// The most memory it has ever had.
    #[cfg(target_os = "linux")]
    pub fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// How many threads it has.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
