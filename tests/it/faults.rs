//! A network between client and server that does whatever networks do. Afterwards all is as it should be, and
//! nothing was sent again of which the client had heard that it is stored.

use std::{
    collections::{BTreeMap, HashSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use farmhand::{agent, client};

use super::{
    common::*,
    sync::{Client, folder},
};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connection breaks when so much of the body is through.
    CutAt(u64),
    /// From there on nothing moves any more.
    StallAt(u64),
    /// So many KiB go through at one KiB a second.
    Trickle(u64),
    /// The server gets it, and the answer is broken off in the middle.
    CutAnswer,
    /// The answer says that it is so much longer (or shorter) than it is.
    WrongLength(i64),
    /// Somebody else answers 500 in its place.
    Error,
}

#[derive(Debug, Default)]
struct State {
    server: Option<SocketAddr>,
    /// Each strikes the first upload that is long enough for it.
    uploads: Vec<Fault>,
    /// Each strikes a call that asks for requirements.
    requirements: Vec<Fault>,
    /// Connections that are open and in which nothing moves.
    stalled: Vec<TcpStream>,
    /// What the client has heard to be stored.
    told_stored: HashSet<String>,
    sent: BTreeMap<String, u32>,
    sent_again: Vec<String>,
}

struct Proxy {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    fn start(server: SocketAddr, uploads: &[Fault], requirements: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            server: Some(server),
            uploads: uploads.to_vec(),
            requirements: requirements.to_vec(),
            ..State::default()
        }));
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), shared.clone());
                // Whatever breaks is over.
                thread::spawn(move || while pass(&client, &state).is_some() {});
            }
        });
        Self { addr, state }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn serves(&self, server: Option<SocketAddr>) {
        self.state.lock().unwrap().server = server;
    }

    /// All faults have struck, and nothing was sent without need.
    #[track_caller]
    fn check(&self) {
        let state = self.state.lock().unwrap();
        assert!(state.uploads.is_empty() && state.requirements.is_empty(), "left: {state:?}");
        assert_eq!(state.sent_again, Vec::<String>::new());
        assert!(!state.told_stored.is_empty());
    }
}

/// Reads until an empty line.
fn read_head(from: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while from.read_line(&mut head).ok()? > 0 {
        if head.ends_with("\r\n\r\n") {
            return Some(head);
        }
    }
    None
}

fn length(head: &str) -> u64 {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    length.unwrap_or(0)
}

/// One request and its answer; `None`: this connection is done with.
fn pass(mut client: &TcpStream, state: &Mutex<State>) -> Option<()> {
    // What follows comes only when this has been answered, so nothing is lost with the buffer.
    let mut reader = BufReader::with_capacity(16 << 10, client);
    let head = read_head(&mut reader)?;
    let (total, mut words) = (length(&head), head.split(' '));
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let is_upload = method == "POST" && path.contains("/files/");
    let is_batch = path.ends_with("/farmhand/v1/batch");
    let fault = {
        let mut state = state.lock().unwrap();
        if is_upload {
            *state.sent.entry(path.clone()).or_default() += 1;
            if state.told_stored.contains(&path) {
                state.sent_again.push(path.clone());
            }
        }
        let faults = match () {
            () if is_upload || is_batch => &mut state.uploads,
            () if path.ends_with("/requirements") => &mut state.requirements,
            () => &mut Vec::new(),
        };
        let strikes = |fault: &Fault| match fault {
            Fault::CutAt(at) | Fault::StallAt(at) => total > *at,
            Fault::Trickle(kib) => total > kib << 10,
            _ => true,
        };
        faults.iter().position(strikes).map(|place| faults.remove(place))
    };
    if fault == Some(Fault::Error) {
        std::io::copy(&mut (&mut reader).take(total), &mut std::io::sink()).ok()?;
        let body = r#"{"code":500,"message":"not well"}"#;
        let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n";
        let length = body.len();
        return write!(client, "{head}Content-Length: {length}\r\n\r\n{body}").ok();
    }
    let server = state.lock().unwrap().server?;
    let mut server = TcpStream::connect(server).ok()?;
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.write_all(head.as_bytes()).ok()?;
    let mut done = 0;
    let mut buffer = vec![0; 16 << 10];
    while done < total {
        let mut limit = total - done;
        match fault {
            Some(Fault::CutAt(at)) if done == at => return None,
            Some(Fault::StallAt(at)) if done == at => {
                state.lock().unwrap().stalled.push(client.try_clone().unwrap());
                return None;
            }
            Some(Fault::CutAt(at) | Fault::StallAt(at)) => limit = at - done,
            Some(Fault::Trickle(kib)) if done < kib << 10 => {
                limit = 1 << 10;
                thread::sleep(Duration::from_secs(1));
            }
            _ => {}
        }
        let limit = buffer.len().min(usize::try_from(limit).unwrap());
        let count = reader.read(&mut buffer[..limit]).ok().filter(|count| *count > 0)?;
        // A server that has answered may have closed.
        let _ = server.write_all(&buffer[..count]);
        done += count as u64;
    }
    let mut server = BufReader::new(server);
    let head = read_head(&mut server)?;
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    let mut body = vec![0; usize::try_from(length(&head)).unwrap()];
    server.read_exact(&mut body).ok()?;
    let mut answer = [head.as_bytes(), &body].concat();
    match fault {
        Some(Fault::CutAnswer) => {
            answer.truncate(if body.is_empty() { head.len() / 2 } else { answer.len() - 1 });
            client.write_all(&answer).ok()?;
            return None;
        }
        Some(Fault::WrongLength(by)) => {
            let kept = head.lines().filter(|line| !line.is_empty());
            let kept = kept.filter(|line| !line.to_lowercase().starts_with("content-length"));
            // 204 has no length.
            let head = kept.collect::<Vec<_>>().join("\r\n").replace("204 No Content", "200 OK");
            let length = (body.len() as i64 + by).max(0);
            answer = format!("{head}\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            answer.extend(body);
        }
        _ => {}
    }
    if is_upload && [" 200 ", " 204 ", " 208 "].iter().any(|status| head[..16].contains(status)) {
        // Before the client can act on it.
        state.lock().unwrap().told_stored.insert(path);
    }
    client.write_all(&answer).ok()?;
    let _ = client.flush();
    if matches!(fault, Some(Fault::WrongLength(_))) { None } else { Some(()) }
}

/// Files of all sizes, and one content twice.
fn project() -> tempfile::TempDir {
    let same = random(40_000);
    let mut files: Vec<(String, Vec<u8>)> =
        (0..20).map(|number| (format!("small/{number}"), random(10_000 + number))).collect();
    files.extend((0..4).map(|number| (format!("large/{number}"), random((3 << 20) + number))));
    files.push(("middle".into(), random(300_000)));
    files.push(("empty".into(), vec![]));
    files.push(("same/a".into(), same.clone()));
    files.push(("same/b".into(), same));
    let files: Vec<_> = files.iter().map(|(path, content)| (&**path, &**content)).collect();
    folder(&files)
}

/// A checkout through a network with these faults, of each file by itself, and of small ones together.
fn survives(uploads: &[Fault], requirements: &[Fault]) {
    for extension in [false, true] {
        survives_with(extension, uploads, requirements);
    }
}

fn survives_with(extension: bool, uploads: &[Fault], requirements: &[Fault]) {
    let server = TestServer::start();
    let proxy = Proxy::start(server.addr, uploads, requirements);
    let dir = project();
    let mut client = Client::with(
        &proxy.url(),
        client::Options { stall_timeout: Duration::from_secs(5), ..client::Options::default() },
    );
    let options = agent::Options { retries: 8, extension, ..agent::Options::default() };
    let (path, report) = client.checkout_with(client.scan(dir.path()), options).unwrap();
    assert!(report.skipped.is_empty(), "{:?}", report.skipped);
    assert!(tree(&server.storage().join("jobs").join(path)) == tree(dir.path()));
    if extension {
        // There are fewer requests than some of these lists are long.
        let state = proxy.state.lock().unwrap();
        assert!(state.uploads.len() < uploads.len());
        assert_eq!(state.sent_again, Vec::<String>::new());
    } else {
        proxy.check();
    }
    // Those that stand still are let go, so that the server is not kept from ending.
    proxy.state.lock().unwrap().stalled.clear();
}

#[test]
fn connections_that_break_anywhere_in_a_body_are_survived() {
    survives(
        &[0, 1, 1000, 9_999, 65_536, 262_144, 1_000_000, 3_000_000].map(Fault::CutAt),
        &[Fault::CutAt(0), Fault::CutAt(100)],
    );
}

#[test]
fn connections_that_stall_anywhere_in_a_body_are_survived() {
    survives(&[0, 200_000, 2_000_000].map(Fault::StallAt), &[Fault::StallAt(50)]);
}

#[test]
fn connections_that_are_slow_at_first_are_survived() {
    survives(&[Fault::Trickle(3), Fault::Trickle(2)], &[Fault::Trickle(1)]);
}

#[test]
fn servers_that_are_not_well_at_first_are_survived() {
    survives(&[Fault::Error; 12], &[Fault::Error; 2]);
}

#[test]
fn answers_that_break_off_are_survived() {
    survives(&[Fault::CutAnswer; 6], &[Fault::CutAnswer; 2]);
}

#[test]
fn answers_of_another_length_than_they_say_are_survived() {
    let wrong = [Fault::WrongLength(10), Fault::WrongLength(-5), Fault::WrongLength(1_000_000)];
    survives(&wrong, &wrong);
}

#[test]
fn all_of_it_at_once_is_survived() {
    let mut uploads = vec![
        Fault::CutAt(100_000),
        Fault::Error,
        Fault::CutAnswer,
        Fault::StallAt(1000),
        Fault::WrongLength(7),
        Fault::Trickle(1),
        Fault::CutAt(0),
    ];
    for _ in 0..3 {
        fastrand::shuffle(&mut uploads);
        survives(&uploads, &[Fault::CutAnswer, Fault::Error]);
    }
}

/// What a store holds, as it is named in addresses.
fn stored_blobs(storage: &Path) -> usize {
    let files = walkdir::WalkDir::new(storage).into_iter().flatten();
    files.filter(|entry| entry.file_name().to_string_lossy().ends_with(".blob")).count()
}

/// The program itself, while the server is killed in the middle and comes back at another address.
#[test]
fn a_server_that_is_killed_and_comes_back_is_gone_on_with() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let mut server = ServerProcess::start(home.path(), &storage, &[]);
    let proxy = Proxy::start(server.address(), &[Fault::CutAt(2_000_000), Fault::CutAnswer], &[]);
    let dir = project();
    let mut child = farmhand(home.path())
        .args(["checkout", "--as", "demo", "--limit", "10MiB/s", "--server", &proxy.url()])
        .arg(dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until(|| stored_blobs(&storage) > 5);
    proxy.serves(None);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let before = stored_blobs(&storage);
    let server = ServerProcess::start(home.path(), &storage, &[]);
    proxy.serves(Some(server.address()));
    let mut path = String::new();
    child.stdout.take().unwrap().read_to_string(&mut path).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(path, "demo\n");
    assert!(before < stored_blobs(&storage), "it was done before the server went");
    assert!(tree(&storage.join("jobs/demo")) == tree(dir.path()));
    proxy.check();
    drop(server);
}
