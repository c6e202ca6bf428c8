//! Back from the store: blobs, whole and in part, and what checkouts are made of.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use farmhand::{
    client::{self, ClientError, DownloadError, Shaman},
    domain::{BlobId, report::LinkMode},
    server::{Access, Anonymous, Options, Scope, Token, Tokens},
    store::{self, Durability},
};
use serde_json::{Value, json};

use super::{cli::Home, common::*, store::damage};

fn path(content: &[u8]) -> String {
    format!("/farmhand/v1/blobs/{}", address(content))
}

fn id(content: &[u8]) -> BlobId {
    BlobId { digest: sha(content).parse().unwrap(), size_bytes: content.len() as u64 }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

fn get(server: &TestServer, path: &str, headers: &str) -> Answer {
    let mut connection = server.connect();
    ask(&mut connection, path, headers);
    connection.answer()
}

fn ask(connection: &mut Connection, path: &str, headers: &str) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    connection.send(head.as_bytes());
}

#[test]
fn a_blob_comes_back_whole_or_in_part() {
    let server = TestServer::start();
    let content = random(1_000_003);
    assert_eq!(server.upload(&content).status, 204);
    let (path, size) = (path(&content), content.len());
    let whole = get(&server, &path, "");
    assert_eq!(whole.status, 200);
    assert!(whole.body == content);
    let etag = format!("\"{}\"", sha(&content));
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-length", "1000003"),
        ("accept-ranges", "bytes"),
        ("etag", &etag),
        ("cache-control", "private, max-age=31536000, immutable"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(whole.header(name), Some(value), "{name}");
    }
    // One connection for all: none is broken by an answer.
    let mut connection = server.connect();
    for (range, from, to) in [
        ("0-0", 0, 1),
        ("0-", 0, size),
        ("7-1000", 7, 1001),
        ("131072-", 131_072, size),
        ("131071-262144", 131_071, 262_145),
        ("1000002-", size - 1, size),
        ("999-99999999999", 999, size),
        ("-1", size - 1, size),
        ("-300000", size - 300_000, size),
        ("-99999999999", 0, size),
    ] {
        ask(&mut connection, &path, &format!("Range: bytes={range}\r\n"));
        let part = connection.answer();
        assert_eq!(part.status, 206, "{range}");
        assert!(part.body == content[from..to], "{range}");
        let said = format!("bytes {from}-{}/{size}", to - 1);
        assert_eq!(part.header("content-range"), Some(&*said));
        assert_eq!(part.header("etag"), Some(&*etag));
    }
    for range in ["bytes=1000003-", "bytes=2000000-3000000", "bytes=-0"] {
        ask(&mut connection, &path, &format!("Range: {range}\r\n"));
        let none = connection.answer();
        none.is_error(416, "has no such bytes");
        assert_eq!(none.header("content-range"), Some("bytes */1000003"), "{range}");
        assert_eq!(none.header("cache-control"), None);
    }
    for range in ["bytes=0-1,5-6", "bytes=6-5", "bytes=x", "lines=0-1", ""] {
        ask(&mut connection, &path, &format!("Range: {range}\r\n"));
        let whole = connection.answer();
        assert_eq!((whole.status, whole.body.len()), (200, size), "{range:?}");
        assert_eq!(whole.header("content-range"), None);
    }
    // Nothing at all is a file, too.
    assert_eq!(server.upload(b"").status, 204);
    let empty = get(&server, &self::path(b""), "");
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    let none = get(&server, &self::path(b""), "Range: bytes=0-\r\n");
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */0")));
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    let server = TestServer::start();
    let content = random(1000);
    assert_eq!(server.upload(&content).status, 204);
    let path = path(&content);
    let etag = get(&server, &path, "").header("etag").unwrap().to_owned();
    for tags in [etag.clone(), format!("\"x\", {etag}"), format!("W/{etag}"), "*".to_owned()] {
        let has = get(&server, &path, &format!("If-None-Match: {tags}\r\nRange: bytes=0-1\r\n"));
        assert_eq!((has.status, has.body.len()), (304, 0), "{tags}");
        assert_eq!(has.header("etag"), Some(&*etag));
    }
    assert_eq!(get(&server, &path, "If-None-Match: \"x\"\r\n").status, 200);
    // What is not there is nothing that anybody has.
    get(&server, &self::path(b"other"), "If-None-Match: *\r\n").is_error(404, "not stored");
    for (tag, status) in [
        (&*etag, 206),
        ("\"other\"", 200),
        (&*format!("W/{etag}"), 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ] {
        let headers = format!("Range: bytes=990-\r\nIf-Range: {tag}\r\n");
        let answer = get(&server, &path, &headers);
        assert_eq!(answer.status, status, "{tag}");
        assert!(answer.body == content[if status == 206 { 990 } else { 0 }..]);
    }
}

#[test]
fn head_says_what_get_would_and_sends_nothing() {
    let server = TestServer::start();
    let content = random(300_000);
    assert_eq!(server.upload(&content).status, 204);
    let head = |path: &str, headers: &str| {
        let mut connection = server.connect();
        let text = format!(
            "HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        );
        connection.send(text.as_bytes());
        let mut answer = String::new();
        connection.tunnel().1.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\n"), "there is more than a head: {answer}");
        answer.to_lowercase()
    };
    let path = path(&content);
    for headers in ["", "Range: bytes=5-\r\n"] {
        let answer = head(&path, headers);
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
        for line in ["content-length: 300000\r\n", "accept-ranges: bytes\r\n", "etag: \""] {
            assert!(answer.contains(line), "{answer} lacks {line}");
        }
        assert!(!answer.contains("content-range"), "{answer}");
    }
    let has = head(&path, &format!("If-None-Match: \"{}\"\r\n", sha(&content)));
    assert!(has.starts_with("http/1.1 304 "), "{has}");
    assert!(head(&self::path(b"other"), "").starts_with("http/1.1 404 "));
}

#[test]
fn what_is_not_stored_is_404_and_what_is_no_name_400() {
    let server = TestServer::start();
    let content = random(1000);
    get(&server, &path(&content), "").is_error(404, "not stored");
    // On its way is not stored.
    let mut sender = server.connect();
    sender.half_upload(&content, "");
    server.until_status(&content, "uploading");
    get(&server, &path(&content), "").is_error(404, "not stored");
    assert_eq!(sender.other_half(&content).status, 204);
    assert_eq!(get(&server, &path(&content), "").status, 200);
    let sha = sha(&content);
    get(&server, &format!("/farmhand/v1/blobs/{sha}/999"), "").is_error(404, "not stored");
    for (name, says) in [
        ("short/1", "not a SHA-256 digest"),
        (&*format!("{}/1000", sha.to_uppercase()), "not a SHA-256 digest"),
        (&*format!("{sha}/x"), "not a size"),
        (&*format!("{sha}/-1"), "not a size"),
        (&*format!("{sha}/99999999999999999999"), "not a size"),
        (&*format!("..%2F..%2F{sha}/1"), "not a SHA-256 digest"),
    ] {
        get(&server, &format!("/farmhand/v1/blobs/{name}"), "").is_error(400, says);
    }
    // A neighbour, and none of its business.
    let why = server.admin("GET", &format!("blobs/{sha}"), Value::Null);
    assert_eq!(why.json()["blobs"][0]["size_bytes"], 1000);
    // Half a file is not the file.
    damage(&server.blob(&content), &content[..500]);
    get(&server, &path(&content), "").is_error(404, "not stored");
}

#[test]
fn to_fetch_needs_the_scope_read() {
    let mut tokens = Tokens::default();
    for scope in Scope::ALL {
        let text = format!("{scope}-token");
        let token = Token::new(scope.name(), [scope].into_iter().collect(), &text).unwrap();
        tokens.add(token).unwrap();
    }
    let access = Arc::new(Access::new(Anonymous::Nowhere, tokens));
    let server = TestServer::with(Options { access, ..Options::default() });
    let content = random(10);
    let upload = "Authorization: Bearer upload-token\r\n";
    assert_eq!(server.connect().upload(&content, upload).status, 204);
    let manifest = "/farmhand/v1/checkouts/manifest?path=x";
    for (path, found) in [(&*path(&content), 200), (manifest, 404)] {
        get(&server, path, "").is_error(401, "token");
        for scope in Scope::ALL {
            let answer = get(&server, path, &format!("Authorization: Bearer {scope}-token\r\n"));
            let expected = if scope == Scope::Read { found } else { 403 };
            assert_eq!(answer.status, expected, "{path} with {scope}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_breaks_the_connection() {
    let server = TestServer::start();
    let content = vec![7; 32 << 20];
    assert_eq!(server.upload(&content).status, 204);
    let mut connection = server.connect();
    ask(&mut connection, &path(&content), "");
    connection.until_it_answers();
    let blob = server.blob(&content);
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().write(true).open(&blob).unwrap().set_len(30 << 20).unwrap();
    assert!(connection.try_answer().is_none(), "half a file looks whole");
    server.alive();
}

#[test]
fn a_client_that_takes_nothing_keeps_no_server_from_ending() {
    let server = TestServer::start();
    let content = vec![8; 32 << 20];
    assert_eq!(server.upload(&content).status, 204);
    let mut connections: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for connection in &mut connections {
        ask(connection, &path(&content), "");
        connection.until_it_answers();
    }
    // Whoever goes away in the middle costs nothing.
    connections.truncate(4);
    server.alive();
    drop(server);
}

/// However large the file, and however many clients take their time.
#[cfg(target_os = "linux")]
#[test]
fn a_download_takes_little_memory() {
    let home = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(home.path(), &home.path().join("storage"), &[]);
    let content = vec![9; 64 << 20];
    assert_eq!(server.connect().upload(&content, "").status, 204);
    let before = server.peak_bytes();
    let mut connections: Vec<_> = (0..16).map(|_| server.connect()).collect();
    for connection in &mut connections {
        ask(connection, &path(&content), "");
        connection.until_it_answers();
    }
    let mut last = server.connect();
    ask(&mut last, &path(&content), "");
    assert!(last.answer().body == content);
    let grown = server.peak_bytes() - before;
    assert!(grown < 24 << 20, "{} MiB for 17 downloads", grown >> 20);
}

/// Passes connections on, and breaks each after so many bytes of what the server says; the last ones
/// go through. Notes what was asked, and counts what the server said.
struct Cutter {
    addr: SocketAddr,
    seen: Arc<Mutex<(Vec<String>, u64)>>,
}

impl Cutter {
    fn start(server: SocketAddr, cuts: Vec<u64>, forgets_ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new((Vec::new(), 0)));
        let shared = seen.clone();
        thread::spawn(move || {
            let mut cuts = cuts.into_iter();
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                let mut head = String::from_utf8(head).unwrap();
                if forgets_ranges {
                    head = head.replace("range:", "x-range:");
                }
                let mut to = TcpStream::connect(server).unwrap();
                to.write_all(head.as_bytes()).unwrap();
                shared.lock().unwrap().0.push(head);
                let limit = cuts.next().unwrap_or(u64::MAX);
                let (mut client_end, shared) = (client.try_clone().unwrap(), shared.clone());
                thread::spawn(move || {
                    let mut limited = to.try_clone().unwrap().take(limit);
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = limited.read(&mut piece) {
                        if client_end.write_all(&piece[..count]).is_err() {
                            break;
                        }
                        shared.lock().unwrap().1 += count as u64;
                    }
                    // All that was passed on arrives.
                    let _ = client_end.shutdown(Shutdown::Write);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        });
        Self { addr, seen }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}

#[test]
fn what_breaks_off_is_taken_up_where_it_broke() {
    let server = TestServer::start();
    let content = random(3_000_000);
    assert_eq!(server.upload(&content).status, 204);
    // In the body, in the head, at once, and again.
    let cutter = Cutter::start(server.addr, vec![1_000_000, 10, 0, 700_000, 300_000], false);
    let home = Home::new();
    let (sha, size) = (sha(&content), content.len().to_string());
    let file = home.path().join("back");
    let (url, output) = (cutter.url(), file.to_str().unwrap());
    home.run(&["store", "get", &sha, &size, "--server", &url, "-o", output]).fails_not();
    assert!(fs::read(&file).unwrap() == content);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "something else is left");
    let seen = cutter.seen.lock().unwrap();
    let (heads, bytes) = &*seen;
    assert_eq!(heads.len(), 6);
    let ranges: Vec<u64> = heads
        .iter()
        .map(|head| {
            let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
            range.map_or(0, |range| range.strip_suffix('-').unwrap().parse().unwrap())
        })
        .collect();
    assert!(ranges.is_sorted(), "{ranges:?}");
    assert!(ranges[1] > 999_000 && ranges[1] == ranges[3], "{ranges:?}");
    assert!(heads[1].contains(&format!("if-range: \"{sha}\"")), "{}", heads[1]);
    // Nothing came twice.
    assert!(*bytes < 3_000_000 + 6 * 500, "{bytes}");
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

async fn fetch(url: &str, id: BlobId) -> Result<Vec<u8>, DownloadError> {
    let options = client::Options { retries: 3, ..client::Options::default() };
    let shaman = Shaman::new(url, options).unwrap();
    let (mut download, mut found) = (shaman.download(id), Vec::new());
    while let Some(piece) = download.next().await? {
        found.extend_from_slice(&piece);
    }
    Ok(found)
}

#[test]
fn something_on_the_way_that_knows_no_ranges_costs_bytes_only() {
    let server = TestServer::start();
    let content = random(1_000_000);
    assert_eq!(server.upload(&content).status, 204);
    let cutter = Cutter::start(server.addr, vec![500_000, 700_001], true);
    assert!(block_on(fetch(&cutter.url(), id(&content))).unwrap() == content);
    let bytes = cutter.seen.lock().unwrap().1;
    assert!((2_200_000..2_210_000).contains(&bytes), "{bytes}");
}

#[test]
fn what_never_comes_ends_in_an_error() {
    let server = TestServer::start();
    let content = random(1000);
    let missing = block_on(fetch(&server.url(), id(&content))).unwrap_err();
    assert!(matches!(
        missing,
        DownloadError::Client(ClientError::Status { status, .. }) if status.as_u16() == 404
    ));
    assert_eq!(server.upload(&content).status, 204);
    let stuck = Cutter::start(server.addr, vec![10; 100], false);
    let gone = block_on(fetch(&stuck.url(), id(&content))).unwrap_err();
    assert!(matches!(gone, DownloadError::Client(ClientError::Unreachable { .. })), "{gone}");
    assert_eq!(stuck.seen.lock().unwrap().0.len(), 4, "three more tries");
}

#[test]
fn a_damaged_blob_is_noticed_and_leaves_no_file() {
    let server = TestServer::start();
    let content = random(300_000);
    assert_eq!(server.upload(&content).status, 204);
    let mut wrong = content.clone();
    wrong[200_000] ^= 1;
    damage(&server.blob(&content), &wrong);
    let home = Home::new();
    let (sha, size, url) = (sha(&content), content.len().to_string(), server.url());
    let mine = home.path().join("mine");
    for before in [None, Some("as it was")] {
        if let Some(text) = before {
            fs::write(&mine, text).unwrap();
        }
        let output = mine.to_str().unwrap();
        home.run(&["store", "get", &sha, &size, "--server", &url, "-o", output])
            .fails(9, &[&sha, "something else", "scrub"]);
        assert_eq!(fs::read_to_string(&mine).ok().as_deref(), before);
        let left = fs::read_dir(home.path()).unwrap().count();
        assert_eq!(left, usize::from(before.is_some()), "something else is left");
    }
    // What has gone out cannot be taken back; the exit code says it.
    let out = farmhand(home.path())
        .args(["store", "get", &sha, &size, "--server", &url])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(9));
    let error = block_on(fetch(&url, id(&content))).unwrap_err();
    assert!(matches!(error, DownloadError::Damaged { .. }), "{error}");
}

#[test]
fn the_command_writes_to_where_it_is_told() {
    let home = Home::new();
    let storage = home.path().join("storage");
    let (mut content, url) = (random(200_000), ServerProcess::start(home.path(), &storage, &[]));
    content[0] = b'\n';
    assert_eq!(url.connect().upload(&content, "").status, 204);
    let (sha, size) = (sha(&content), content.len().to_string());
    for output in [&[][..], &["-o", "-"]] {
        let out = farmhand(home.path())
            .args(["store", "get", &sha, &size, "--server", &url.url])
            .args(output)
            .output()
            .unwrap();
        assert!(out.status.success() && out.stdout == content, "{out:?}");
    }
    drop(url);
    // In a directory that nobody serves.
    let (storage, file) = (storage.to_str().unwrap(), home.path().join("x"));
    fs::write(&file, "before").unwrap();
    let output = file.to_str().unwrap();
    let get = |more: &[&str]| {
        home.run(&[&["store", "get", &sha, &size, "--storage", storage], more].concat())
    };
    let answer = get(&["-o", output, "--json"]).json();
    assert_eq!(answer["schema"], "farmhand.store.get/1");
    assert_eq!((&answer["sha256"], &answer["path"]), (&json!(sha), &json!(output)));
    assert!(fs::read(&file).unwrap() == content);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o200, 0o200, "what somebody fetches is theirs");
    get(&["--json"]).fails(2, &["--output"]);
    get(&["-o", storage]).fails(2, &["is a directory"]);
    get(&["-o", &format!("{output}/y")]).fails(1, &["cannot create"]);
    home.run(&["store", "get", &sha, "7", "--storage", storage, "-o", output])
        .fails(4, &["not stored"]);
    assert!(fs::read(&file).unwrap() == content);
}

fn manifest(server: &TestServer, path: &str) -> Answer {
    server.admin("GET", &format!("checkouts/manifest?path={path}"), Value::Null)
}

/// The same from what is on the disk.
fn listed(dir: &Path) -> Value {
    tree(dir).iter().map(|(path, content)| file(content, path)).collect()
}

const FILES: [(&str, &[u8]); 6] = [
    ("a/b/c.blend", b"one"),
    ("a/b d.txt", b"two"),
    ("a.txt", b"one"),
    ("empty", b""),
    ("ä/ö \u{1f980}.png", b"three"),
    ("z/empty too", b""),
];

#[test]
fn a_manifest_is_what_the_checkout_is() {
    for link_mode in [LinkMode::Symlink, LinkMode::Hardlink] {
        let options = store::Options { link_mode, ..store::Options::default() };
        let server = TestServer::with_store(Options::default(), options);
        for content in ["one", "two", "three", "", "six"] {
            assert_eq!(server.upload(content.as_bytes()).status, 204);
        }
        assert_eq!(server.checkout("show/shot 1", &FILES).status, 200);
        assert_eq!(server.checkout("nothing", &[]).status, 200);
        let dir = server.storage().join("jobs/show/shot 1");
        let found = manifest(&server, "show/shot%201").json();
        let expected = json!({ "checkoutPath": "show/shot 1", "files": listed(&dir) });
        assert_eq!(found, expected, "{link_mode:?}");
        assert_eq!(found["files"].as_array().unwrap().len(), 6);
        assert_eq!(manifest(&server, "nothing").json()["files"], json!([]));
        // It is what makes the same again.
        assert_eq!(server.post_json("checkout/create", &found).status, 200);

        let home = Home::new();
        let url = server.url();
        let ran = home.run(&["store", "manifest", "show/shot 1", "--server", &url, "--json"]);
        let answer = ran.json();
        assert_eq!(answer["schema"], "farmhand.store.manifest/1");
        assert_eq!(answer["files"], expected["files"]);
        let ran = home.run(&["store", "manifest", "show/shot 1", "--server", &url]);
        let lines: Vec<_> = ran.out.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[0], format!("{}  3  a.txt", sha(b"one")));
        home.run(&["store", "manifest", "no", "--server", &url]).fails(4, &["no checkout", "list"]);

        // Without a record, it is known by its look.
        let records = server.storage().join("farmhand/checkouts");
        for record in fs::read_dir(&records).unwrap() {
            fs::remove_file(record.unwrap().path()).unwrap();
        }
        assert_eq!(manifest(&server, "show/shot%201").json(), expected);
        manifest(&server, "nothing").is_error(404, "no checkout");
        // Whether they are stored is another question.
        if link_mode == LinkMode::Symlink {
            fs::remove_file(server.blob(b"two")).unwrap();
            assert_eq!(manifest(&server, "show/shot%201").json(), expected);
        }
    }
}

#[test]
fn there_is_no_manifest_of_what_is_no_checkout() {
    let server = TestServer::start();
    assert_eq!(server.upload(b"one").status, 204);
    assert_eq!(server.checkout("show/shot", &[("in/x", b"one"), ("y", b"one")]).status, 200);
    let jobs = server.storage().join("jobs");
    symlink(jobs.join("show"), jobs.join("linked")).unwrap();
    let names =
        ["none", "show", "show/shot/in", "show/shot/y", "linked/shot", ".farmhand-building"];
    for name in names {
        manifest(&server, name).is_error(404, "there is no checkout");
    }
    for name in ["..", "show/../show/shot", "/etc", "", "a%00b"] {
        manifest(&server, name).is_error(400, "checkout: ");
    }
    server.admin("GET", "checkouts/manifest", Value::Null).is_error(400, "which checkout?");
    assert_eq!(manifest(&server, "show/shot").status, 200);
    fs::remove_dir_all(jobs.join("show/shot")).unwrap();
    manifest(&server, "show/shot").is_error(404, "there is no checkout");
}

#[test]
fn a_manifest_is_all_of_it_or_an_error_that_names_the_rest() {
    let server = TestServer::start();
    assert_eq!(server.upload(b"one").status, 204);
    assert_eq!(server.checkout("x", &[("in/a", b"one"), ("b", b"one")]).status, 200);
    let dir = server.storage().join("jobs/x");
    let odd = dir.join("in/odd");
    let said = |says: &str| manifest(&server, "x").is_error(409, says);
    for (target, says) in [
        ("/etc/hostname", "\"in/odd\" is a link to something that is no blob"),
        ("nowhere", "\"in/odd\" is a link to something that is no blob"),
        (".", "\"in/odd\" is a link to a directory"),
    ] {
        symlink(target, &odd).unwrap();
        said(says);
        fs::remove_file(&odd).unwrap();
    }
    fs::write(&odd, "one").unwrap();
    said("\"in/odd\" is a file of its own");
    // Another name of it, and none of a blob's.
    fs::hard_link(&odd, dir.join("in/other")).unwrap();
    said("is a file of its own");
    fs::remove_file(dir.join("in/other")).unwrap();
    fs::remove_file(&odd).unwrap();
    fs::hard_link(server.blob(b"one"), dir.join("in/back\\slash")).unwrap();
    said("\"in/back\\\\slash\" is a name that nothing in a checkout can have");
    fs::rename(dir.join("in/back\\slash"), &odd).unwrap();
    // As other servers and people make them.
    symlink(
        format!("/elsewhere/stored/{}/{}/3.blob", &sha(b"x")[..2], &sha(b"x")[2..]),
        dir.join("c"),
    )
    .unwrap();
    symlink("b", dir.join("d")).unwrap();
    let found = manifest(&server, "x").json();
    let files = [("b", "one"), ("c", "x"), ("d", "one"), ("in/a", "one"), ("in/odd", "one")];
    let files = files
        .map(|(path, content)| json!({ "sha": sha(content.as_bytes()), "size": 3, "path": path }));
    assert_eq!(found["files"], json!(files));

    let copies = store::Options { link_mode: LinkMode::Copy, ..store::Options::default() };
    let server = TestServer::with_store(Options::default(), copies);
    assert_eq!(server.upload(b"one").status, 204);
    assert_eq!(server.upload(b"").status, 204);
    assert_eq!(server.checkout("x", &[("a", b"one")]).status, 200);
    manifest(&server, "x").is_error(409, "jobs may have written to it");
    assert_eq!(server.checkout("y", &[("a", b"")]).status, 200);
    assert_eq!(manifest(&server, "y").json()["files"], json!([file(b"", "a")]));
}

/// A checkout that goes, and another that comes under its name: never something of both.
#[test]
fn a_manifest_is_of_one_checkout_at_a_time() {
    let relaxed = store::Options { durability: Durability::Relaxed, ..Default::default() };
    let server = TestServer::with_store(Options::default(), relaxed);
    for content in [b"one", b"two"] {
        assert_eq!(server.upload(content).status, 204);
    }
    let names: Vec<String> = (0..40).map(|number| format!("d{number}/f")).collect();
    let whole = |content: &'static [u8]| -> Vec<(&str, &[u8])> {
        names.iter().map(|name| (name.as_str(), content)).collect()
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60 {
                let files = whole(if round % 2 == 0 { b"one" } else { b"two" });
                assert_eq!(server.checkout("x", &files).status, 200);
                assert_eq!(server.admin("DELETE", "checkouts?path=x", Value::Null).status, 200);
            }
            stop.store(true, Relaxed);
        });
        let mut seen = 0;
        while !stop.load(Relaxed) {
            let answer = manifest(&server, "x");
            if answer.status != 200 {
                assert!(matches!(answer.status, 404 | 409), "{answer:?}");
                continue;
            }
            let files = answer.json()["files"].as_array().unwrap().clone();
            assert_eq!(files.len(), 40);
            assert!(files.iter().all(|file| file["sha"] == files[0]["sha"]));
            seen += 1;
        }
        assert!(seen > 0, "it was never there");
    });
}
