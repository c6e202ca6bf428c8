//! What goes over the line when files are sent again that have changed a little, or when the line, the client
//! or the server breaks off: counted by a proxy between the two, every byte of it.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use farmhand::{
    agent::{self, Delta, Mode, SyncReport},
    client,
    server::Options,
    store,
};
use serde_json::Value;

use super::{
    common::*,
    sync::{Client, folder},
};

const MIB: u64 = 1 << 20;

/// Passes everything on, and counts what the client sends.
struct Proxy {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Where to; to nobody while there is none.
    server: Mutex<Option<SocketAddr>>,
    sent: AtomicU64,
    /// When so much has been sent, all connections break, and nobody is connected any more.
    breaks_at: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        state.breaks_at.store(u64::MAX, SeqCst);
        *state.server.lock().unwrap() = Some(server);
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                shared.pass(client.unwrap());
            }
        });
        Self { addr, state }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    fn sent(&self) -> u64 {
        self.state.sent.load(SeqCst)
    }

    /// What `call` sends.
    fn count<T>(&self, call: impl FnOnce() -> T) -> (T, u64) {
        let before = self.sent();
        let result = call();
        (result, self.sent() - before)
    }

    /// Has everything break when so much has been sent from now on.
    fn break_after(&self, bytes: u64) {
        self.state.breaks_at.store(self.sent() + bytes, SeqCst);
    }

    fn is_broken(&self) -> bool {
        self.state.server.lock().unwrap().is_none()
    }

    fn serve(&self, server: SocketAddr) {
        *self.state.server.lock().unwrap() = Some(server);
    }
}

impl State {
    fn pass(self: &Arc<Self>, client: TcpStream) {
        let Some(server) = *self.server.lock().unwrap() else { return };
        let Ok(server) = TcpStream::connect(server) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            self.connections.lock().unwrap().push(stream.try_clone().unwrap());
        }
        for (from, to, counts) in [
            (client.try_clone().unwrap(), server.try_clone().unwrap(), true),
            (server, client, false),
        ] {
            let state = self.clone();
            thread::spawn(move || state.copy(from, to, counts));
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, counts: bool) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if counts {
                let sent = self.sent.fetch_add(count as u64, SeqCst) + count as u64;
                // One of several connections, and once.
                let at = self.breaks_at.load(SeqCst);
                if sent >= at
                    && self.breaks_at.compare_exchange(at, u64::MAX, SeqCst, SeqCst).is_ok()
                {
                    self.break_all();
                    return;
                }
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // One side is done; so is the other one with what is on its way.
        let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
    }

    fn break_all(&self) {
        *self.server.lock().unwrap() = None;
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn options(delta: Delta) -> agent::Options {
    agent::Options { delta, ..agent::Options::default() }
}

/// A server, a proxy before it, and a client of that which sends by chunks.
struct Pair {
    server: TestServer,
    proxy: Proxy,
    client: Client,
    delta: Delta,
}

impl Pair {
    fn new(delta: Delta) -> Self {
        Self::with(delta, store::Options::default())
    }

    fn with(delta: Delta, store: store::Options) -> Self {
        let server = TestServer::with_store(Options::default(), store);
        let proxy = Proxy::start(server.addr);
        let client = Client::new(&proxy.url());
        Self { server, proxy, client, delta }
    }

    /// Sends a file with this content; what was done, and the bytes on the wire.
    fn send(&mut self, content: &[u8]) -> (SyncReport, u64) {
        let dir = folder(&[("scene.blend", content)]);
        let scan = self.client.scan(dir.path());
        let delta = self.delta;
        let (report, sent) =
            self.proxy.count(|| self.client.sync_with(scan, options(delta)).unwrap());
        assert_eq!(self.server.status(content), "stored");
        let [sha, size] = [sha(content), content.len().to_string()];
        let stored = self.server.storage().join("file-store/stored");
        let stored = stored.join(&sha[..2]).join(&sha[2..]).join(format!("{size}.blob"));
        assert!(fs::read(stored).unwrap() == content, "what is stored is not what was sent");
        (report, sent)
    }

    /// Sends one, has it indexed, and sends the other: the bytes on the wire for that.
    fn resend(&mut self, before: &[u8], after: &[u8]) -> (SyncReport, u64) {
        self.send(before);
        self.server.until_indexed(1);
        self.send(after)
    }
}

fn percent(part: u64, whole: usize) -> f64 {
    100.0 * part as f64 / whole as f64
}

fn resave(version: u32) -> Vec<u8> {
    fs::read(fixture(&format!("blend-resaves/v{version}.blend"))).unwrap()
}

/// The same as Blender saves it uncompressed.
fn uncompressed(version: u32) -> Vec<u8> {
    zstd::decode_all(&resave(version)[..]).unwrap()
}

/// An object was moved between the first two; the third and the fourth were sculpted on.
#[test]
fn a_scene_that_is_saved_again_sends_little() {
    for (read, limits) in
        [(uncompressed as fn(u32) -> Vec<u8>, [5.0, 50.0, 30.0]), (resave, [10.0, 102.0, 90.0])]
    {
        let mut pair = Pair::new(Delta::Always);
        pair.send(&read(0));
        for (version, limit) in (1..).zip(limits) {
            pair.server.until_indexed(version.into());
            let content = read(version);
            let (report, sent) = pair.send(&content);
            let share = percent(sent, content.len());
            assert!(share <= limit, "v{version}: {share} %");
            assert_eq!((report.uploaded_files, report.retries, report.deferrals), (1, 0, 0));
            assert!(report.sent_bytes <= sent, "{report:?}");
            if version == 1 {
                assert_eq!(report.mode(), Some(Mode::Delta));
                assert!(report.reused_bytes > content.len() as u64 / 10 * 9 - 10_000);
            }
        }
    }
}

/// As Blender compresses: one frame for each MiB.
fn compressed(content: &[u8]) -> Vec<u8> {
    content.chunks(1 << 20).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect()
}

/// A scene of 200 MB, made of many copies of a small one that differ, in one of which an object was moved.
#[test]
fn a_large_scene_that_is_saved_again_sends_next_to_nothing() {
    let (before, after) = (uncompressed(0), uncompressed(1));
    let copies: Vec<Vec<u8>> = (0..75u8)
        .map(|copy| before.iter().map(|byte| if *byte == 0 { 0 } else { byte ^ copy }).collect())
        .collect();
    let large = |changed: &[u8]| {
        let mut content = copies.concat();
        let at = 40 * before.len();
        content[at..at + before.len()].copy_from_slice(changed);
        content
    };
    let (before, after) = (large(&before), large(&after));
    assert!(before.len() > 200_000_000);
    for (before, after, limit) in
        [(compressed(&before), compressed(&after), 2.0), (before, after, 1.0)]
    {
        let (_, sent) = Pair::new(Delta::Always).resend(&before, &after);
        let share = percent(sent, after.len());
        assert!(share <= limit, "{share} % of {}", after.len());
    }
}

#[test]
fn what_is_inserted_or_appended_is_sent_and_not_much_more() {
    let before = random(32 << 20);
    let mut pair = Pair::new(Delta::Always);
    pair.send(&before);
    pair.server.until_indexed(1);
    let inserted = [b"x", &before[..]].concat();
    let (report, sent) = pair.send(&inserted);
    // Of a chunk and the list of all: 2 MiB of a GiB are 64 KiB of this, and one chunk more.
    assert!(sent < (64 << 10) + (64 << 10), "{sent}");
    assert!(report.reused_bytes >= before.len() as u64 - (64 << 10));
    let tail = random(100_000);
    let appended = [&before[..], &tail[..]].concat();
    let (_, sent) = pair.send(&appended);
    assert!(sent < 100_000 + 2 * (64 << 10) + (64 << 10), "{sent}");
    // In the middle, and something taken out.
    let mut changed = before.clone();
    changed[10 << 20] ^= 1;
    changed.drain(20 << 20..(20 << 20) + 1000);
    let (_, sent) = pair.send(&changed);
    assert!(sent < 4 * (64 << 10) + (64 << 10), "{sent}");
}

#[test]
fn what_has_nothing_in_common_costs_hardly_more_than_plain() {
    for size in [400_000, 3 << 20, 40 << 20] {
        let (one, other) = (random(size), random(size));
        let mut pair = Pair::new(Delta::Always);
        let (report, sent) = pair.resend(&one, &other);
        assert!(percent(sent, size) <= 102.0, "{size}: {sent}");
        let expected = if size < 32 << 20 { Mode::Plain } else { Mode::Pieces };
        assert_eq!((report.mode(), report.reused_bytes), (Some(expected), 0));
    }
}

#[test]
fn what_compresses_is_compressed_where_the_line_is_slow() {
    let text: Vec<u8> = (0..600_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let mut pair = Pair::new(Delta::Always);
    let line = Arc::new(agent::Line::new("100MB/s".parse().unwrap()));
    let small: Vec<(String, Vec<u8>)> =
        (0..100).map(|n| (format!("{n}.txt"), text[n * 5000..n * 5000 + 4000].to_vec())).collect();
    let files: Vec<(&str, &[u8])> =
        small.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let dir = folder(&files);
    let scan = pair.client.scan(dir.path());
    let options = agent::Options { line: line.clone(), ..options(Delta::Auto) };
    let (report, sent) = pair.proxy.count(|| pair.client.sync_with(scan, options).unwrap());
    assert_eq!(report.uploaded_files, 100);
    assert!(sent < 250_000, "{sent} of 400,000");
    for (_, content) in &small {
        assert_eq!(pair.server.status(content), "stored");
    }
    // Large ones, too, if they go in pieces.
    let large: Vec<u8> = text.iter().copied().cycle().take(40 << 20).collect();
    let dir = folder(&[("large", &large)]);
    let scan = pair.client.scan(dir.path());
    let options = agent::Options { line, ..agent::Options::default() };
    let (report, sent) = pair.proxy.count(|| pair.client.sync_with(scan, options).unwrap());
    assert!(sent < 20 * MIB, "{sent}");
    assert_eq!(
        (report.mode(), pair.server.status(&large).as_str()),
        (Some(Mode::Pieces), "stored")
    );
}

/// Something on the way that answers requests with this in their path by itself, and passes on all others.
fn refusing(server: SocketAddr, refused: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let text = String::from_utf8(head).unwrap();
                let (first, rest) = text.split_once("\r\n").unwrap();
                if first.contains(refused) {
                    let body = "<html>too large</html>";
                    let answer = format!(
                        "HTTP/1.1 413 Too Large\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = client.write_all(answer.as_bytes());
                    // So that it is seen.
                    let _ = client.shutdown(Shutdown::Write);
                    let _ = std::io::copy(&mut client, &mut std::io::sink());
                    return;
                }
                let mut server = TcpStream::connect(server).unwrap();
                let head = format!("{first}\r\nConnection: close\r\n{rest}");
                server.write_all(head.as_bytes()).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                });
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    format!("http://{addr}/")
}

/// Whatever does not get through, the plain uploads do.
#[test]
fn what_somebody_on_the_way_refuses_is_sent_plainly() {
    let before = random(3 << 20);
    let after = [&before[..], b"tail"].concat();
    let (large, small) = (random(33 << 20), (0..40).map(|_| random(100)).collect::<Vec<_>>());
    for refused in [
        "/farmhand/v1/capabilities",
        "/farmhand/v1/batch",
        "/farmhand/v1/chunks/known",
        "/farmhand/v1/unfinished/",
        "/recipe",
        "/chunks ",
        "/finish",
    ] {
        let server = TestServer::start();
        assert_eq!(server.upload(&before).status, 204);
        server.until_indexed(1);
        let mut client = Client::new(&refusing(server.addr, refused));
        let names: Vec<_> = (0..40).map(|number| format!("small-{number}")).collect();
        let mut files: Vec<(&str, &[u8])> =
            names.iter().map(String::as_str).zip(small.iter().map(Vec::as_slice)).collect();
        files.extend([("scene", &after[..]), ("large", &large[..])]);
        let dir = folder(&files);
        let report = client.sync_with(client.scan(dir.path()), options(Delta::Always)).unwrap();
        assert_eq!(report.uploaded_files, 42, "{refused}");
        for (name, content) in files {
            assert_eq!(server.status(content), "stored", "{name}, {refused}");
        }
        assert!(report.modes.contains_key(&Mode::Plain), "{refused}: {report:?}");
        assert_eq!(server.unfinished(), 0, "{refused}");
    }
}

#[test]
fn the_way_is_chosen_by_the_line() {
    let (before, tail) = (random(3 << 20), random(1000));
    let after = [&before[..], &tail[..]].concat();
    // To the same machine everything is faster than to look for what is there.
    let mut pair = Pair::new(Delta::Auto);
    let (report, sent) = pair.resend(&before, &after);
    assert_eq!((report.mode(), report.reused_bytes), (Some(Mode::Plain), 0));
    assert!(sent >= after.len() as u64);
    // Over a line that somebody has limited it is not.
    let mut pair = Pair::new(Delta::Auto);
    pair.send(&before);
    pair.server.until_indexed(1);
    let dir = folder(&[("scene.blend", &after)]);
    let scan = pair.client.scan(dir.path());
    let line = Arc::new(agent::Line::new("20MiB/s".parse().unwrap()));
    let report =
        pair.client.sync_with(scan, agent::Options { line, ..agent::Options::default() }).unwrap();
    assert_eq!(report.mode(), Some(Mode::Delta));
    // Whoever does not want it does without.
    let mut pair = Pair::new(Delta::Never);
    let (report, _) = pair.resend(&before, &after);
    assert_eq!(report.mode(), Some(Mode::Plain));
    // And a server that knows no chunks is asked for none.
    let blind = store::Options { index_chunks: false, ..store::Options::default() };
    let mut pair = Pair::with(Delta::Always, blind);
    pair.send(&before);
    let (report, _) = pair.send(&after);
    assert_eq!(report.mode(), Some(Mode::Plain));
}

#[test]
fn many_small_files_take_few_requests() {
    let files: Vec<(String, Vec<u8>)> =
        (0..1000).map(|number| (format!("f{number}"), random(1000))).collect();
    let all: Vec<(&str, &[u8])> =
        files.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let dir = folder(&all);
    let server = TestServer::start();
    let mut client = Client::new(&server.url());
    let report = client.sync_with(client.scan(dir.path()), agent::Options::default()).unwrap();
    assert_eq!((report.uploaded_files, report.mode()), (1000, Some(Mode::Batch)));
    let text = String::from_utf8(server.connect().get("/metrics").body).unwrap();
    let requests: u64 = text
        .lines()
        .filter(|line| line.starts_with("farmhand_requests_total") && !line.contains("/metrics"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(requests <= 40, "{requests}\n{text}");
    for (_, content) in &files {
        assert_eq!(server.status(content), "stored");
    }
}

/// Two of one studio save the same scene at the same time.
#[test]
fn two_who_send_the_same_large_file_send_it_once() {
    let server = TestServer::start();
    let content = random(40 << 20);
    let dirs = [(); 2].map(|()| folder(&[("scene.blend", &content)]));
    thread::scope(|scope| {
        for dir in &dirs {
            scope.spawn(|| {
                let mut client = Client::new(&server.url());
                client.sync_with(client.scan(dir.path()), agent::Options::default()).unwrap()
            });
        }
    });
    assert_eq!(server.status(&content), "stored");
    let text = String::from_utf8(server.connect().get("/metrics").body).unwrap();
    let line = text.lines().find(|line| line.starts_with("farmhand_received_bytes_total")).unwrap();
    let received: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(received < content.len() as f64 * 1.01, "{received}");
}

/// A file that is being written is never stored under a name that it does not have.
#[test]
fn a_file_that_changes_while_it_is_sent_in_pieces_is_sent_as_it_is() {
    let server = TestServer::start();
    let proxy = Proxy::start(server.addr);
    let dir = folder(&[("scene.blend", &random(40 << 20))]);
    let mut client = Client::new(&proxy.url());
    let scan = client.scan(dir.path());
    let path = dir.path().join("scene.blend");
    let changed = random(40 << 20);
    let line = Arc::new(agent::Line::new("60MiB/s".parse().unwrap()));
    let options = agent::Options { line: line.clone(), ..agent::Options::default() };
    let report = thread::scope(|scope| {
        let syncing = scope.spawn(|| client.sync_with(scan, options));
        until(|| proxy.sent() > 5 * MIB);
        // However long the disk takes for it, not all is sent before.
        let hold = line.hold();
        fs::write(&path, &changed).unwrap();
        drop(hold);
        syncing.join().unwrap().unwrap()
    });
    assert_eq!(server.status(&changed), "stored");
    assert_eq!((report.uploaded_files, report.files[0].digest.to_string()), (1, sha(&changed)));
    assert_eq!(server.unfinished(), 0, "what had come of the old one is of no use");
}

/// Longer than anybody may be silent: what has come is kept, and gone on with, also if somebody else would have
/// sent it.
#[test]
fn who_is_held_for_long_goes_on_where_it_was() {
    let server = TestServer::with(Options {
        body_timeout: std::time::Duration::from_millis(500),
        ..Options::default()
    });
    let proxy = Proxy::start(server.addr);
    let content = random(40 << 20);
    let dir = folder(&[("cache.vdb", &content)]);
    let mut client = Client::new(&proxy.url());
    let scan = client.scan(dir.path());
    let line = Arc::new(agent::Line::new("200MiB/s".parse().unwrap()));
    let options = agent::Options { line: line.clone(), ..agent::Options::default() };
    let path = format!("/farmhand/v1/unfinished/{}", address(&content));
    thread::scope(|scope| {
        let syncing = scope.spawn(|| client.sync_with(scan, options));
        until(|| line.sent_bytes() > 20 * MIB);
        let hold = line.hold();
        // Until another one may begin; that one goes away again.
        until(|| {
            let answer = server.connect().post(&path, "X-Farmhand-Sender: other\r\n", b"");
            answer.status == 200
        });
        let mut connection = server.connect();
        connection.send(&post_head(&format!("{path}/chunks"), "X-Farmhand-Sender: other\r\n", 100));
        drop(connection);
        drop(hold);
        let report = syncing.join().unwrap().unwrap();
        assert_eq!(report.uploaded_files, 1);
    });
    assert_eq!(server.status(&content), "stored");
    let share = percent(proxy.sent(), content.len());
    assert!(share < 125.0, "{share} % were sent");
}

#[test]
fn a_line_that_breaks_costs_little() {
    line_breaks(96 * MIB, 4);
}

fn line_breaks(size: u64, breaks: u64) {
    let server = TestServer::start();
    let proxy = Proxy::start(server.addr);
    let content = random(size as usize);
    let dir = folder(&[("cache.vdb", &content)]);
    let mut client =
        Client::with(&proxy.url(), client::Options { retries: 3, ..client::Options::default() });
    let scan = client.scan(dir.path());
    let options = agent::Options { retries: 20, ..agent::Options::default() };
    let report = thread::scope(|scope| {
        proxy.break_after(size / breaks);
        let syncing = scope.spawn(|| client.sync_with(scan, options));
        for left in (0..breaks - 1).rev() {
            until(|| proxy.is_broken());
            if left > 0 {
                proxy.break_after(size / breaks);
            }
            proxy.serve(server.addr);
        }
        syncing.join().unwrap().unwrap()
    });
    assert_eq!(server.status(&content), "stored");
    assert!(report.retries >= breaks - 1, "{report:?}");
    let share = percent(proxy.sent(), content.len());
    assert!(share < 110.0, "{share} % were sent");
}

/// The program, sending a folder to a proxy.
fn push(home: &Path, dir: &Path, proxy: &Proxy) -> Child {
    let mut command = farmhand(home);
    command.args(["push", "--json", "--server", &proxy.url()]).arg(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_client_that_is_killed_goes_on_where_it_was() {
    client_is_killed(96 * MIB, 4);
}

fn client_is_killed(size: u64, kills: u64) {
    let home = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let proxy = Proxy::start(server.addr);
    let content = random(size as usize);
    let dir = folder(&[("cache.vdb", &content)]);
    for _ in 1..kills {
        proxy.break_after(size / kills);
        let mut child = push(home.path(), dir.path(), &proxy);
        until(|| proxy.is_broken());
        child.kill().unwrap();
        child.wait().unwrap();
        proxy.serve(server.addr);
    }
    let output = push(home.path(), dir.path(), &proxy).wait_with_output().unwrap();
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["uploaded_files"], &said["mode"]), (&1.into(), &"pieces".into()));
    assert!(said["reused_bytes"].as_u64().unwrap() > size / 2, "{said}");
    assert_eq!(server.status(&content), "stored");
    let share = percent(proxy.sent(), content.len());
    assert!(share < 110.0, "{share} % were sent");
}

#[test]
fn a_server_that_is_killed_goes_on_where_it_was() {
    server_is_killed(128 * MIB, 3);
}

fn server_is_killed(size: u64, kills: u64) {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let start = || ServerProcess::start(home.path(), &storage, &[]);
    let mut server = start();
    let proxy = Proxy::start(server.address());
    let content = random(size as usize);
    let dir = folder(&[("cache.vdb", &content)]);
    let mut client = Client::new(&proxy.url());
    let scan = client.scan(dir.path());
    let options = agent::Options { retries: 40, ..agent::Options::default() };
    thread::scope(|scope| {
        proxy.break_after(size / kills);
        let syncing = scope.spawn(|| client.sync_with(scan, options));
        for left in (0..kills - 1).rev() {
            until(|| proxy.is_broken());
            server.child.kill().unwrap();
            server.child.wait().unwrap();
            server = start();
            if left > 0 {
                proxy.break_after(size / kills);
            }
            proxy.serve(server.address());
        }
        syncing.join().unwrap().unwrap()
    });
    let answer = server.connect().get(&format!("/api/v3/shaman/files/{}", address(&content)));
    assert_eq!(answer.json()["status"], "stored");
    let share = percent(proxy.sent(), content.len());
    assert!(share < 110.0, "{share} % were sent");
}

/// At every tenth of a GiB.
#[test]
#[ignore = "it takes minutes, and is to be run in release"]
fn a_gib_that_is_broken_off_at_every_tenth_sends_less_than_a_tenth_more() {
    line_breaks(1024 * MIB, 10);
    client_is_killed(1024 * MIB, 10);
    server_is_killed(1024 * MIB, 10);
}

/// One byte at the front of a GiB.
#[test]
#[ignore = "it takes a minute, and is to be run in release"]
fn a_byte_at_the_front_of_a_gib_sends_less_than_two_mib() {
    let before = random(1 << 30);
    let mut pair = Pair::new(Delta::Always);
    pair.send(&before);
    pair.server.until_indexed(1);
    let (_, sent) = pair.send(&[b"x", &before[..]].concat());
    assert!(sent < 2 * MIB, "{sent}");
}
