//! Servers in processes of their own, and a load generator that costs next to nothing: requests are
//! made before the clock starts and written at once, of answers only the head is looked at.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use farmhand::wire::SHAMAN;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    fixture,
    measure::{Sample, cpu_s, own_cpu_s, peak_bytes},
    part::Part,
};

/// The `farmhand` program that was built with this one, untouched by the user's own settings:
/// whatever it keeps of its own, it keeps in `home`.
pub fn farmhand(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farmhand"));
    command.env_clear().stdin(Stdio::null());
    for variable in ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env(variable, home);
    }
    command
}

/// A server that listens. If it was started here, it ends with this value.
pub struct Server {
    child: Option<Child>,
    /// Address and port.
    pub address: String,
}

impl Server {
    /// `farmhand serve`, as it is by default; its log goes nowhere, but is written.
    pub fn farmhand(home: &Path, storage: &Path) -> Self {
        Self::farmhand_with(home, storage, "full")
    }

    /// The same with this setting of `store.durability`.
    pub fn farmhand_with(home: &Path, storage: &Path, durability: &str) -> Self {
        let mut command = farmhand(home);
        command.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(storage);
        command.env("FARMHAND_STORE_DURABILITY", durability);
        Self::start(command.stderr(Stdio::null()))
    }

    /// A server that throws everything away.
    pub fn sink() -> Self {
        Self::start(&mut Part::Sink.command())
    }

    /// A server of this storage whose upkeep begins at once, or never.
    pub fn upkeep(storage: &Path, upkeep: bool) -> Self {
        Self::start(&mut Part::Serve { storage: storage.to_owned(), upkeep }.command())
    }

    /// One that runs already, wherever that is.
    pub fn running(address: &str) -> Self {
        Self { child: None, address: address.to_owned() }
    }

    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("cannot start a server");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut url).expect("cannot read what the server says");
        let address = url.trim().strip_prefix("http://").and_then(|url| url.strip_suffix('/'));
        let address =
            address.unwrap_or_else(|| panic!("{command:?} does not say where it listens"));
        Self { child: Some(child), address: address.to_owned() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn cpu_s(&self) -> Option<f64> {
        self.child.as_ref().map(|child| cpu_s(child.id()).expect("the server has ended"))
    }

    pub fn peak_bytes(&self) -> Option<u64> {
        self.child.as_ref().map(|child| peak_bytes(child.id()).expect("the server has ended"))
    }

    /// Waits until the server has done what it does after its start, like counting what is stored: for a while it
    /// takes no CPU time any more. One that runs already is taken to be there.
    pub fn at_rest(self) -> Self {
        const WHILE: Duration = Duration::from_millis(200);
        const AT_MOST: Duration = Duration::from_secs(600);
        let start = Instant::now();
        let mut before = self.cpu_s();
        while before.is_some() {
            thread::sleep(WHILE);
            let now = self.cpu_s();
            if now == before {
                break;
            }
            assert!(start.elapsed() < AT_MOST, "the server does not come to rest");
            before = now;
        }
        self
    }

    /// The CPU time since a figure of before.
    pub fn cpu_s_since(&self, before: Option<f64>) -> Option<f64> {
        Some(self.cpu_s()? - before?)
    }

    /// Measures this server while `work` keeps it busy; that returns how many seconds of it count. Memory
    /// counts from its start.
    pub fn measure(&self, work: impl FnOnce(&Self) -> f64) -> Sample {
        let (before, generator_cpu_s) = (self.cpu_s(), own_cpu_s());
        let wall_s = work(self);
        Sample {
            wall_s,
            cpu_s: self.cpu_s_since(before),
            peak_bytes: self.peak_bytes(),
            other_cpu_s: Some(own_cpu_s() - generator_cpu_s),
            other_peak_bytes: None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// The status of an answer, and its body; if that came in chunks, with their lengths between them.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A connection that is kept alive.
pub struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Connects, and has one request answered, so that both sides are ready.
    pub fn open(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.address).expect("cannot connect");
        stream.set_nodelay(true).expect("cannot set TCP_NODELAY");
        let mut connection = Self { stream, buffer: vec![0; 64 << 10].into() };
        // Of a blob of nothing: all Shaman servers can answer that, and it costs them nothing.
        connection.exchange(&status_request(&fixture::sha256_hex(&[]), 0));
        connection
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("cannot send");
    }

    pub fn exchange(&mut self, request: &[u8]) -> Answer {
        self.send(request);
        self.receive()
    }

    pub fn receive(&mut self) -> Answer {
        let mut filled = 0;
        let end = loop {
            let count = self.stream.read(&mut self.buffer[filled..]).expect("cannot receive");
            assert!(count > 0, "the server has closed the connection");
            filled += count;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n")
            {
                break end + 4;
            }
        };
        let head = str::from_utf8(&self.buffer[..end]).expect("a head is text");
        let status = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
        });
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            let mut body = self.buffer[end..filled].to_vec();
            while !body.ends_with(b"\r\n0\r\n\r\n") {
                let count = self.stream.read(&mut self.buffer).expect("cannot receive a body");
                assert!(count > 0, "the server has closed the connection");
                body.extend_from_slice(&self.buffer[..count]);
            }
            return Answer { status, body };
        }
        let mut body = vec![0; length.unwrap_or(0)];
        let (known, rest) = body.split_at_mut(filled - end);
        known.copy_from_slice(&self.buffer[end..filled]);
        self.stream.read_exact(rest).expect("cannot receive a body");
        Answer { status, body }
    }
}

/// The head of a request.
pub fn head(method: &str, path: &str, body_bytes: u64) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
    .into_bytes()
}

/// A whole request.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = head(method, path, body.len() as u64);
    request.extend_from_slice(body);
    request
}

pub fn blob_url(sha: &str, size_bytes: u64) -> String {
    format!("{SHAMAN}/files/{sha}/{size_bytes}")
}

/// Sends a blob.
pub fn upload_request(content: &[u8]) -> Vec<u8> {
    let path = blob_url(&fixture::sha256_hex(content), content.len() as u64);
    request("POST", &path, content)
}

/// Asks what is known of a blob.
pub fn status_request(sha: &str, size_bytes: u64) -> Vec<u8> {
    head("GET", &blob_url(sha, size_bytes), 0)
}

/// Sends all requests over so many connections, each with one request at a time, and returns how
/// many seconds that took. Each must be answered with one of these statuses.
pub fn send_all(
    server: &Server,
    requests: &[Vec<u8>],
    connections: usize,
    accepted: &[u16],
) -> f64 {
    let (next, ready) = (AtomicUsize::new(0), Barrier::new(connections + 1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(server);
                    ready.wait();
                    while let Some(request) = requests.get(next.fetch_add(1, Relaxed)) {
                        let Answer { status, body } = connection.exchange(request);
                        let said = String::from_utf8_lossy(&body);
                        assert!(accepted.contains(&status), "answered {status}: {said}");
                    }
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        for thread in threads {
            thread.join().expect("a connection failed");
        }
        start.elapsed().as_secs_f64()
    })
}
