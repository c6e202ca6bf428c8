//! In front of a Manager: what is not ours goes there and comes back as it is, byte for byte. The
//! Manager is a stand-in that speaks real HTTP and keeps in mind what it got.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener as StdListener, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use farmhand::server::{
    Access, Anonymous, Gateway, GatewayOptions, Options, Scope, Tls, Token, Tokens,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};

use super::{
    addon::{SESSIONS, Session, is_shaman, send},
    common::*,
    tls::Certificates,
};

/// What the Manager got.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query as they came.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A Manager that answers as a test says.
pub struct Manager {
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Its answers about its storage, to what the server asks by itself; without one, 404.
    pub storage: Arc<Mutex<Option<ManagersStorage>>>,
    /// While this is set, it does not say whether it could use a directory.
    pub is_silent: Arc<AtomicBool>,
    runtime: Option<Runtime>,
}

impl Manager {
    pub fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        Self::on(([127, 0, 0, 1], 0).into(), answer)
    }

    pub fn on(
        addr: SocketAddr,
        answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::sharing(addr, Arc::default(), answer)
    }

    pub fn sharing(
        addr: SocketAddr,
        storage: Arc<Mutex<Option<ManagersStorage>>>,
        answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(addr)).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let is_silent: Arc<AtomicBool> = Arc::default();
        let (all, answer, own) = (seen.clone(), Arc::new(answer), storage.clone());
        let silent = is_silent.clone();
        let router = Router::new().fallback(move |request: Request| {
            let (all, answer) = (all.clone(), answer.clone());
            let (own, silent) = (own.clone(), silent.clone());
            async move {
                let (parts, body) = request.into_parts();
                let Ok(body) = body.collect().await else {
                    return StatusCode::BAD_REQUEST.into_response();
                };
                let seen = Seen {
                    method: parts.method.to_string(),
                    target: parts.uri.to_string(),
                    headers: parts.headers,
                    body: body.to_bytes(),
                };
                // The server looks by itself whether there is a Manager, and what its storage is.
                if seen.headers.contains_key("x-test") || seen.headers.contains_key("user-agent") {
                    all.lock().unwrap().push(seen.clone());
                } else if seen.target.contains("/api/v3/configuration") {
                    while seen.method == "POST" && silent.load(SeqCst) {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    let Some(storage) = own.lock().unwrap().clone() else {
                        return StatusCode::NOT_FOUND.into_response();
                    };
                    if let Some(answer) = storage.answer(&seen.method, &seen.target, &seen.body) {
                        return axum::Json(answer).into_response();
                    }
                }
                answer(&seen)
            }
        });
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { addr, seen, storage, is_silent, runtime: Some(runtime) }
    }

    /// What clients have sent since this was asked.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    pub fn one(&self) -> Seen {
        let mut seen = self.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// A server in front of it, with which it shares its storage.
    pub fn gateway(&self) -> TestServer {
        self.shared_by(gateway(&self.url()))
    }

    pub fn shared_by(&self, server: TestServer) -> TestServer {
        *self.storage.lock().unwrap() = Some(ManagersStorage::at(&server.storage()));
        server
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    }
}

/// A Manager of bare sockets: it is given the head of each request and its connection, and says
/// whether the connection goes on.
fn raw(
    serve: impl Fn(&str, &mut BufReader<TcpStream>) -> bool + Send + Sync + 'static,
) -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(head) = head(&mut reader) {
                    let own = ["GET /api/v3/version ", "GET /api/v3/configuration "];
                    if own.iter().any(|own| head.starts_with(own)) {
                        let none = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                        reader.get_mut().write_all(none).unwrap();
                    } else if !serve(&head, &mut reader) {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// The head of a request; `None` at the end.
fn head(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

pub fn options(manager: &str) -> Options {
    with(manager, GatewayOptions::default())
}

pub fn with(manager: &str, gateway: GatewayOptions) -> Options {
    let gateway = Gateway::new(manager, gateway).unwrap();
    Options { manager: Some(Arc::new(gateway)), ..Options::default() }
}

pub fn gateway(manager: &str) -> TestServer {
    TestServer::with(options(manager))
}

const BROWSER: &str = "X-Test: 1\r\nUser-Agent: Mozilla/5.0 (X11)\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n\
    Cookie: a=1; b=\"2\"\r\nAuthorization: Basic YTpi\r\nIf-None-Match: W/\"x\"\r\nRange: bytes=0-\r\n\
    X-Twice: one\r\nX-Twice: two, three\r\nX-Bytes: \u{e4}\u{f6}\r\nOrigin: http://farm.example\r\n";

/// One exchange on a connection of its own.
pub fn exchange(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> Answer {
    let mut connection = Connection::new(addr);
    let length = match body.len() {
        0 if matches!(method, "GET" | "HEAD" | "OPTIONS" | "DELETE") => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let close = if method == "HEAD" { "Connection: close\r\n" } else { "" };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: farm.example:8080\r\n{headers}{length}{close}\r\n"
    );
    connection.send(head.as_bytes());
    connection.send(body);
    if method != "HEAD" {
        return connection.answer();
    }
    let mut text = String::new();
    connection.stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "", "HEAD is answered with a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: format!("{head}\r\n"), body: Vec::new() }
}

/// The headers of an answer that are about what is answered, and its reason.
fn end_to_end(answer: &Answer) -> Vec<String> {
    let mut lines = answer.head.lines();
    let first = lines.next().unwrap().to_owned();
    let mut lines: Vec<String> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            format!("{}: {}", name.to_lowercase(), value.trim())
        })
        .filter(|line| {
            let of_the_connection = ["connection:", "transfer-encoding:", "keep-alive:", "date:"];
            !of_the_connection.iter().any(|name| line.starts_with(name))
        })
        .collect();
    lines.sort();
    lines.insert(0, first);
    lines
}

pub fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// It is an error of ours about the Manager, and can be told from the Manager's own.
#[track_caller]
pub fn is_gateway_error(answer: &Answer, status: u16, says: &str) {
    answer.is_error(status, says);
    assert_eq!(header(answer, "x-farmhand-gateway"), Some("error"), "{}", answer.head);
}

const JOB: &str = r#"{"name":"My Render","type":"simple-blender-render","priority":50,"submitter_platform":"linux"}"#;

/// Every endpoint of a Manager but Shaman's, and but those whose answers are corrected: method, path, body, status, and what kind of answer.
const ENDPOINTS: &[(&str, &str, &str, u16, &str)] = &[
    ("GET", "/api/v3/version", "", 200, "json"),
    ("GET", "/api/v3/status", "", 200, "json"),
    ("GET", "/api/v3/configuration/file", "", 200, "yaml"),
    ("PUT", "/api/v3/configuration/file", r#"{"storage":"/render"}"#, 204, ""),
    ("GET", "/api/v3/configuration/variables/workers/linux", "", 200, "json"),
    ("GET", "/api/v3/configuration/check/blender", "", 200, "json"),
    ("POST", "/api/v3/configuration/check/blender", r#"{"path":"/usr/bin/blender"}"#, 200, "json"),
    ("POST", "/api/v3/configuration/check/shared-storage", r#"{"path":"/r"}"#, 200, "json"),
    ("POST", "/api/v3/configuration/setup-assistant", r#"{"storageLocation":"/r"}"#, 204, ""),
    ("GET", "/api/v3/jobs", "", 200, "json"),
    ("POST", "/api/v3/jobs", JOB, 200, "json"),
    ("POST", "/api/v3/jobs", JOB, 412, "json"),
    ("POST", "/api/v3/jobs/check", JOB, 204, ""),
    ("GET", "/api/v3/jobs/4a5b", "", 200, "json"),
    ("GET", "/api/v3/jobs/4a5b", "", 404, "json"),
    ("DELETE", "/api/v3/jobs/4a5b", "", 204, ""),
    (
        "DELETE",
        "/api/v3/jobs/mass-delete",
        r#"{"last_updated_max":"2025-01-01T00:00:00Z"}"#,
        416,
        "json",
    ),
    ("POST", "/api/v3/jobs/4a5b/setstatus", r#"{"status":"canceled","reason":"x"}"#, 204, ""),
    ("POST", "/api/v3/jobs/4a5b/setstatus", r#"{"status":"queued","reason":"x"}"#, 422, "json"),
    ("POST", "/api/v3/jobs/4a5b/setpriority", r#"{"priority":75}"#, 204, ""),
    ("POST", "/api/v3/jobs/4a5b/settag", "", 204, ""),
    ("GET", "/api/v3/jobs/4a5b/tasks", "", 200, "chunked"),
    ("GET", "/api/v3/jobs/4a5b/blocklist", "", 200, "json"),
    (
        "DELETE",
        "/api/v3/jobs/4a5b/blocklist",
        r#"[{"worker_id":"w","task_type":"blender"}]"#,
        204,
        "",
    ),
    ("GET", "/api/v3/jobs/4a5b/last-rendered", "", 200, "json"),
    ("GET", "/api/v3/jobs/last-rendered", "", 204, ""),
    ("GET", "/api/v3/jobs/types", "", 200, "gzip"),
    ("GET", "/api/v3/jobs/type/simple-blender-render", "", 200, "json"),
    ("GET", "/api/v3/tasks/77", "", 200, "json"),
    ("POST", "/api/v3/tasks/77/setstatus", r#"{"status":"queued","reason":"x"}"#, 204, ""),
    ("GET", "/api/v3/tasks/77/log", "", 200, "json"),
    ("GET", "/api/v3/tasks/77/logtail", "", 200, "text"),
    ("GET", "/api/v3/worker-mgt/workers", "", 200, "json"),
    ("GET", "/api/v3/worker-mgt/workers/w1", "", 200, "json"),
    ("DELETE", "/api/v3/worker-mgt/workers/w1", "", 204, ""),
    (
        "POST",
        "/api/v3/worker-mgt/workers/w1/setstatus",
        r#"{"status":"asleep","is_lazy":true}"#,
        204,
        "",
    ),
    ("POST", "/api/v3/worker-mgt/workers/w1/settags", r#"{"tag_ids":["t"]}"#, 204, ""),
    ("GET", "/api/v3/worker-mgt/workers/w1/sleep-schedule", "", 204, ""),
    ("POST", "/api/v3/worker-mgt/workers/w1/sleep-schedule", r#"{"is_active":true}"#, 204, ""),
    ("GET", "/api/v3/worker-mgt/tags", "", 200, "json"),
    ("POST", "/api/v3/worker-mgt/tags", r#"{"name":"GPU"}"#, 200, "json"),
    ("GET", "/api/v3/worker-mgt/tag/t1", "", 200, "json"),
    ("PUT", "/api/v3/worker-mgt/tag/t1", r#"{"name":"New"}"#, 204, ""),
    ("DELETE", "/api/v3/worker-mgt/tag/t1", "", 204, ""),
    ("POST", "/api/v3/worker/register-worker", r#"{"secret":"s"}"#, 200, "json"),
    ("POST", "/api/v3/worker/sign-on", r#"{"name":"w"}"#, 200, "json"),
    ("POST", "/api/v3/worker/sign-off", "", 204, ""),
    ("GET", "/api/v3/worker/state", "", 204, ""),
    ("POST", "/api/v3/worker/state-changed", r#"{"status":"awake"}"#, 204, ""),
    ("POST", "/api/v3/worker/task", "", 200, "json"),
    ("POST", "/api/v3/worker/task", "", 423, "json"),
    ("POST", "/api/v3/worker/task/77", r#"{"log":"x"}"#, 204, ""),
    ("GET", "/api/v3/worker/task/77/may-i-run", "", 200, "json"),
    ("POST", "/api/v3/worker/task/77/output-produced", "\u{89}PNG\r\n\0\u{1a}", 202, "text"),
    // What else a Manager serves, and what it may be asked for.
    ("GET", "/", "", 200, "html"),
    ("HEAD", "/", "", 200, "html"),
    ("GET", "/app/jobs/4a5b", "", 200, "html"),
    ("GET", "/api/v3/openapi3.json", "", 200, "json"),
    ("GET", "/api/v3/swagger-ui/", "", 301, "redirect"),
    ("GET", "/flamenco3-addon.zip", "", 200, "gzip"),
    ("GET", "/job-files/job-4a5b/last-rendered.jpg?ts=1", "", 304, ""),
    ("POST", "/socket.io/?EIO=4&transport=polling", "40", 200, "text"),
    ("OPTIONS", "/api/v3/jobs", "", 204, ""),
    ("PATCH", "/api/v3/jobs", "{}", 405, "json"),
    ("PROPFIND", "/x", "<a/>", 207, "text"),
    ("GET", "/a/%2e%2e/b%2Fc/../d/./e//f;g=h/%C3%A4%zz?a=b&c&%20+=/?x", "", 404, "text"),
    ("GET", "//evil.example/x", "", 404, "text"),
    ("GET", "/api/v3/jobs", "", 500, "json"),
    ("GET", "/api/v3/jobs", "", 502, "html"),
    ("GET", "/api/v3/jobs", "", 503, "text"),
    ("GET", "/teapot", "", 418, "text"),
];

/// An answer as `X-Answer: STATUS KIND` asks for it.
fn as_asked(seen: &Seen) -> Response {
    let text = |name: &str| {
        seen.headers.get(name).map_or("404 text", |value| value.to_str().unwrap()).to_owned()
    };
    let asked = text("x-answer");
    let (status, kind) = asked.split_once(' ').unwrap_or((&asked, ""));
    let content = format!("{{\"you asked\": \"{} {}\"}}\n", seen.method, seen.target);
    let (media, body) = match kind {
        "" => ("", Body::empty()),
        "json" => ("application/json; charset=UTF-8", Body::from(content)),
        "yaml" => ("application/x-yaml", Body::from(format!("- {content}"))),
        "html" => ("text/html", Body::from("<!doctype html><title>Flamenco</title>".repeat(500))),
        "gzip" => ("application/octet-stream", Body::from((0..=255).collect::<Vec<u8>>())),
        "redirect" => ("text/html", Body::from("<a href=/x>Moved</a>")),
        "chunked" => {
            let (mut sender, body) = http_body_util::channel::Channel::<Bytes>::new(4);
            tokio::spawn(async move {
                for piece in ["{\"tasks\": [", "1, 2", "]}"] {
                    sender.send_data(piece.into()).await.unwrap();
                }
            });
            ("application/json", Body::new(body))
        }
        _ => ("text/plain;charset=utf-8", Body::from(content)),
    };
    let mut answer = (StatusCode::from_u16(status.parse().unwrap()).unwrap(), body).into_response();
    let headers = answer.headers_mut();
    if media.is_empty() {
        headers.remove("content-type");
    } else {
        headers.insert("content-type", media.parse().unwrap());
    }
    for (name, value) in [
        ("etag", "W/\"1-a\""),
        ("set-cookie", "a=1; Path=/; HttpOnly"),
        ("set-cookie", "b=2"),
        ("vary", "Accept-Encoding, Origin"),
        ("cache-control", "no-cache"),
        ("access-control-allow-origin", "*"),
        ("server", "Flamenco/3.9"),
        ("x-manager", "one"),
        ("x-manager", "two"),
        ("last-modified", "Tue, 01 Jul 2025 00:00:00 GMT"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    match kind {
        "gzip" => drop(headers.insert("content-encoding", "gzip".parse().unwrap())),
        "redirect" => {
            drop(headers.insert("location", "/api/v3/swagger-ui/index.html".parse().unwrap()))
        }
        _ => {}
    }
    answer
}

/// What the Manager got from a client, without what gateways put in.
fn original(seen: &Seen) -> BTreeSet<(String, Vec<u8>)> {
    let of_the_way = ["host", "connection", "x-farmhand-gateway"];
    let names = seen.headers.iter().filter(|(name, _)| {
        !of_the_way.contains(&name.as_str()) && !name.as_str().starts_with("x-forwarded-")
    });
    names.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

#[test]
fn every_endpoint_is_passed_on_as_it_is_and_so_is_its_answer() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    for prefix in ["", "/site/token"] {
        let with_prefix;
        let server = if prefix.is_empty() {
            &server
        } else {
            with_prefix = gateway(&format!("http://{}{prefix}/", manager.addr));
            &with_prefix
        };
        for (method, path, body, status, kind) in ENDPOINTS {
            let headers =
                format!("{BROWSER}X-Answer: {status} {kind}\r\nContent-Type: application/json\r\n");
            let body = body.as_bytes();
            let target = format!("{prefix}{path}");
            let direct = exchange(manager.addr, method, &target, &headers, body);
            let direct_seen = manager.one();
            let passed = exchange(server.addr, method, path, &headers, body);
            // A deletion has the Manager asked beforehand.
            let mut seen = manager.take();
            seen.retain(|seen| seen.method == *method);
            assert_eq!(seen.len(), 1, "{method} {path}: {seen:?}");
            let seen = seen.remove(0);

            assert_eq!(direct.status, *status, "{method} {path}");
            assert_eq!(end_to_end(&passed), end_to_end(&direct), "{method} {path} {status}");
            assert!(passed.body == direct.body, "{method} {path} {status}");
            assert_eq!(header(&passed, "x-farmhand-gateway"), None);

            assert_eq!((&seen.method, &seen.target), (&direct_seen.method, &target), "{path}");
            assert_eq!(seen.body, direct_seen.body, "{method} {path}");
            assert_eq!(seen.body, body, "{method} {path}");
            assert_eq!(original(&seen), original(&direct_seen), "{method} {path}");
            assert_eq!(seen.headers["host"], manager.addr.to_string());
            assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
            assert_eq!(seen.headers["x-forwarded-host"], "farm.example:8080");
            assert_eq!(seen.headers["x-forwarded-proto"], "http");
        }
    }
}

#[test]
fn what_is_ours_never_reaches_the_manager() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    // The Manager's storage is looked at meanwhile.
    until(|| server.connect().get("/readyz").status == 200);
    for (method, path, status) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("POST", "/healthz", 405),
        ("GET", "/farmhand/v1/usage", 200),
        ("GET", "/farmhand/v1/nothing", 404),
        ("GET", "/api/v3/shaman", 404),
        ("GET", "/api/v3/shaman/files/x/1", 400),
        ("DELETE", "/api/v3/shaman/checkout/create", 405),
    ] {
        let answer = exchange(server.addr, method, path, "X-Test: 1\r\n", b"");
        assert_eq!(answer.status, status, "{method} {path}");
    }
    let content = random(1000);
    assert_eq!(server.upload(&content).status, 204);
    let seen = manager.take();
    assert!(seen.is_empty(), "{seen:?}");
    exchange(server.addr, "GET", "/x", "X-Test: 1\r\n", b"");
    let metrics = String::from_utf8(server.connect().get("/metrics").body).unwrap();
    assert!(
        metrics.contains(r#"route="manager",method="GET",code="404"} 1"#),
        "{}",
        metrics.lines().filter(|line| line.contains("manager")).collect::<String>()
    );
}

#[test]
fn bodies_of_unknown_length_arrive_whole_with_any_method() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    for method in ["POST", "GET", "DELETE", "PUT"] {
        let mut connection = server.connect();
        let head = format!(
            "{method} /x HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\nTransfer-Encoding: chunked\r\n\
             Expect: 100-continue\r\nX-Answer: 200 json\r\n\r\n"
        );
        connection.send(head.as_bytes());
        assert_eq!(connection.answer().status, 100);
        connection.send(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
        assert_eq!(connection.answer().status, 200, "{method}");
        let seen = manager.one();
        assert_eq!(seen.body, "hello world", "{method}");
        assert!(!seen.headers.contains_key("expect"));
        assert!(!seen.headers.contains_key("content-length"));
    }
}

#[test]
fn a_client_of_http_1_0_is_served() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    let mut connection = server.connect();
    connection.send(b"GET /x HTTP/1.0\r\nX-Test: 1\r\nX-Answer: 200 chunked\r\n\r\n");
    let mut text = String::new();
    connection.stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("\r\n\r\n{\"tasks\": [1, 2]}"), "{text}");
    assert!(!manager.one().headers.contains_key("x-forwarded-host"));
}

#[test]
fn what_is_about_one_connection_is_not_passed_on() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = heads.clone();
    let manager = raw(move |head, reader| {
        all.lock().unwrap().push(head.to_lowercase());
        let answer = b"HTTP/1.1 200 OK\r\nConnection: X-Secret, keep-alive\r\nX-Secret: s\r\n\
            Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n\
            Proxy-Connection: x\r\nX-Kept: yes\r\nTransfer-Encoding: chunked\r\nContent-Length: 77\r\n\r\n\
            2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
        true
    });
    let server = gateway(&format!("http://{manager}"));
    let sent = "Connection: x-hop, Upgrade\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic x\r\n\
        Proxy-Connection: x\r\nTE: trailers\r\nTrailer: x-sum\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\
        X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2, 192.0.2.3\r\nX-Forwarded-Proto: gopher\r\n\
        X-Forwarded-Host: evil\r\n";
    // What came through another proxy does not count as coming from this machine.
    assert_eq!(exchange(server.addr, "GET", "/x", sent, b"").status, 401);
    assert!(heads.lock().unwrap().is_empty());
    let access = Arc::new(Access::new(Anonymous::Anywhere, Tokens::default()));
    let server = TestServer::with(Options { access, ..options(&format!("http://{manager}")) });
    let answer = exchange(server.addr, "GET", "/x", sent, b"");
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok".as_slice()));
    let expected = ["HTTP/1.1 200 OK", "x-kept: yes"];
    assert_eq!(end_to_end(&answer), expected, "{}", answer.head);
    let head = heads.lock().unwrap().remove(0);
    for gone in [
        "x-hop",
        "keep-alive",
        "proxy-",
        "te:",
        "trailer",
        "upgrade",
        "evil",
        "gopher",
        "connection",
    ] {
        assert!(!head.contains(&format!("\r\n{gone}")), "{gone}: {head}");
    }
    assert!(
        head.contains("\r\nx-forwarded-for: 192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nx-forwarded-host: farm.example:8080\r\n"), "{head}");
}

#[test]
fn no_request_is_two_requests_for_the_manager() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\n\r\n";
    for headers in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 60",
        "Content-Length: 6\r\nContent-Length: 60",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:\x0bchunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Content-Length: 5\r\nConnection: content-length",
        "Content-Length: +5",
        "Transfer-Encoding: chunked\r\nConnection: transfer-encoding",
    ] {
        let mut connection = server.connect();
        let text = format!(
            "POST /first HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}"
        );
        connection.send(text.as_bytes());
        connection.stream.shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        while let Some(answer) = connection.try_answer() {
            answers.push(answer.status);
        }
        let passed = answers.iter().filter(|status| **status == 404).count();
        let seen = manager.take();
        // Each that it got was one for us, too: it has passed the access rules, and was answered.
        assert_eq!(seen.len(), passed, "{headers:?}: {answers:?} {seen:?}");
        for seen in seen {
            let framed = ["content-length", "transfer-encoding"];
            let framed = framed.iter().filter(|name| seen.headers.contains_key(**name)).count();
            assert!(framed <= 1, "{headers:?}: {seen:?}");
        }
        server.alive();
    }
}

#[test]
fn the_whole_session_of_the_addon_goes_through() {
    for name in SESSIONS {
        let manager = Manager::start(|seen| {
            let storage = json!({ "location": "/farm", "shamanEnabled": false });
            match seen.target.as_str() {
                "/api/v3/jobs/check" => StatusCode::NO_CONTENT.into_response(),
                path if path.contains("shared-storage") => axum::Json(storage).into_response(),
                path => axum::Json(json!({ "path": path })).into_response(),
            }
        });
        let server = manager.gateway();
        let mut connection = server.connect();
        let mut others = 0;
        let session = Session::load(name);
        for step in &session.steps {
            let answer = send(&mut connection, step);
            let path = step["path"].as_str().unwrap();
            let seen = manager.take();
            assert_eq!(step["status_seen"], answer.status, "{path}: {answer:?}");
            if is_shaman(step) {
                assert!(seen.is_empty(), "{seen:?}");
                continue;
            }
            assert_eq!((seen.len(), seen[0].target.as_str()), (1, path));
            assert_eq!(seen[0].method, step["method"].as_str().unwrap());
            let mut sent: Value = serde_json::from_slice(&seen[0].body).unwrap_or_default();
            if path == "/api/v3/jobs" {
                // The newer generation does not say it itself.
                assert_eq!(sent["storage"]["shaman_checkout_id"], "shot 010");
                if step["json"]["storage"].is_null() {
                    sent.as_object_mut().unwrap().remove("storage");
                }
            }
            assert_eq!(sent, step["json"], "{path}");
            let headers = step["headers"].as_object().unwrap().iter();
            for (name, value) in headers.filter(|(name, _)| *name != "Content-Length") {
                assert_eq!(
                    seen[0].headers[name.as_str()],
                    value.as_str().unwrap(),
                    "{path} {name}"
                );
            }
            if path.contains("shared-storage") {
                assert_eq!(answer.json()["shamanEnabled"], true);
            }
            others += 1;
        }
        assert!(others >= 10, "{others}");
    }
}

#[test]
fn a_websocket_is_a_tunnel_both_ways() {
    let manager = raw(|head, reader| {
        let lower = head.to_lowercase();
        assert!(lower.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(lower.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(lower.contains("\r\nsec-websocket-key: abc\r\n"), "{head}");
        // The first word comes with the head.
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: xyz\r\n\r\nhello";
        reader.get_mut().write_all(answer).unwrap();
        let mut byte = [0];
        while reader.read(&mut byte).unwrap_or(0) == 1 {
            byte.make_ascii_uppercase();
            reader.get_mut().write_all(&byte).unwrap();
        }
        let _ = reader.get_mut().write_all(b"bye");
        false
    });
    let short = Duration::from_millis(20);
    let options = options(&format!("http://{manager}/"));
    let server = TestServer::with(Options { head_timeout: short, idle_timeout: short, ..options });
    let mut connection = server.connect();
    // So does the client's.
    connection.send(
        b"GET /socket.io/?EIO=4 HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\n\
          Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\nfirst\r\n \r\n\r\n",
    );
    let answer = connection.answer();
    assert_eq!(answer.status, 101);
    let expected =
        ["HTTP/1.1 101 Switching Protocols", "sec-websocket-accept: xyz", "upgrade: websocket"];
    assert_eq!(end_to_end(&answer), expected);
    assert!(answer.head.to_lowercase().contains("connection: upgrade"));
    let (mut sender, mut stream) = connection.tunnel();
    let mut expect = |text: &str| {
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), text);
    };
    expect("helloFIRST\r\n \r\n\r\n");
    // It counts, besides the one that asks.
    let metrics = String::from_utf8(server.connect().get("/metrics").body).unwrap();
    assert!(metrics.contains("\nfarmhand_connections_open 2\n"));
    // Others are cut for being silent.
    assert!(server.connect().is_closed());
    sender.write_all(b"and\r\n now").unwrap();
    expect("AND\r\n NOW");
    sender.shutdown(Shutdown::Write).unwrap();
    expect("bye");
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).unwrap(), 0);
}

#[test]
fn a_websocket_that_is_refused_is_an_answer_like_any_other() {
    let manager = Manager::start(as_asked);
    let server = manager.gateway();
    let mut connection = server.connect();
    let head = "GET /ws HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        X-Answer: 403 json\r\n\r\n";
    for _ in 0..2 {
        connection.send(head.as_bytes());
        let answer = connection.answer();
        assert_eq!((answer.status, header(&answer, "upgrade")), (403, None));
    }
}

#[test]
fn a_manager_that_switches_unasked_is_an_error() {
    let manager = raw(|_, reader| {
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
        false
    });
    let server = gateway(&format!("http://{manager}"));
    let answer = exchange(server.addr, "POST", "/x", "", b"");
    is_gateway_error(&answer, 502, "broke off");
}

#[test]
fn tunnels_end_when_the_server_is_to_stop() {
    let manager = raw(|_, reader| {
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        false
    });
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("farmhand.toml");
    // With the grace period it would outlast every patience.
    fs::write(&config, format!("[serve]\ngrace = \"1h\"\nmanager = \"http://{manager}/\"\n"))
        .unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let mut server = ServerProcess::start(home.path(), &home.path().join("s"), &arguments);
    let mut connection = server.connect();
    connection.send(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(connection.answer().status, 101);
    server.terminate();
    assert!(connection.is_closed());
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn events_arrive_as_they_happen_and_may_be_rare() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let manager = raw(move |_, reader| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
        reader.get_mut().write_all(head).unwrap();
        wait.lock().unwrap().recv().unwrap();
        reader.get_mut().write_all(b"data: 2\n\n").unwrap();
        false
    });
    let short = Duration::from_millis(20);
    let options = options(&format!("http://{manager}/"));
    let server = TestServer::with(Options { head_timeout: short, idle_timeout: short, ..options });
    let mut connection = server.connect();
    connection.send(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut lines = BufReader::new(connection.stream.try_clone().unwrap()).lines();
    let mut until_line = |text: &str| lines.by_ref().find(|line| line.as_ref().unwrap() == text);
    // The stream goes on only after it has come.
    until_line("data: 1").unwrap().unwrap();
    // A silent connection is cut, but not this one.
    for _ in 0..3 {
        assert!(server.connect().is_closed());
    }
    go.send(()).unwrap();
    until_line("data: 2").unwrap().unwrap();
    until_line("0").unwrap().unwrap();
}

#[test]
fn a_manager_that_is_not_there_is_told_apart_from_one_that_fails() {
    let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = gateway(&format!("http://{gone}/t/secret/"));
    for method in ["GET", "POST", "DELETE"] {
        let answer = exchange(server.addr, method, "/api/v3/jobs/1", "", b"");
        is_gateway_error(
            &answer,
            502,
            &format!("the Manager at http://{gone}/t/…/ cannot be reached"),
        );
        answer.is_error(502, "is it running");
        answer.is_error(502, "onnection refused");
    }
    let unknown = gateway("http://nowhere.invalid:8080");
    let answer = exchange(unknown.addr, "GET", "/", "", b"");
    is_gateway_error(&answer, 502, "the Manager at http://nowhere.invalid:8080 cannot be reached");
    // Ours go on.
    let content = random(100);
    assert_eq!(server.upload(&content).status, 204);
}

#[test]
fn a_manager_that_does_not_answer_is_a_timeout_and_a_client_that_does_not_send_another() {
    let manager = raw(|_, reader| {
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        false
    });
    let short = Duration::from_millis(50);
    let gateway = GatewayOptions { answer_timeout: short, ..GatewayOptions::default() };
    let server = TestServer::with(with(&format!("http://{manager}"), gateway.clone()));
    let answer = exchange(server.addr, "POST", "/x", "", b"body");
    is_gateway_error(&answer, 504, "has not answered");
    // As long as the body is on its way, it is not the Manager that is waited for.
    let options = with(&format!("http://{manager}"), gateway);
    let server = TestServer::with(Options { body_timeout: Duration::from_millis(300), ..options });
    let mut connection = server.connect();
    connection.send(&post_head("/x", "", 10));
    connection.send(b"half");
    is_gateway_error(&connection.answer(), 408, "did not get the whole request");
}

#[test]
fn a_request_that_breaks_off_breaks_off_for_the_manager() {
    let ended: Arc<Mutex<Vec<usize>>> = Arc::default();
    let asked = Arc::new(AtomicUsize::new(0));
    let (all, count) = (ended.clone(), asked.clone());
    let manager = raw(move |_, reader| {
        count.fetch_add(1, SeqCst);
        let mut body = Vec::new();
        let _ = reader.read_to_end(&mut body);
        all.lock().unwrap().push(body.len());
        false
    });
    let server = gateway(&format!("http://{manager}"));
    let mut connection = server.connect();
    connection.send(&post_head("/x", "", 1000));
    connection.send(&[b'x'; 10]);
    until(|| asked.load(SeqCst) == 1);
    drop(connection);
    until(|| ended.lock().unwrap().len() == 1);
    assert!(ended.lock().unwrap()[0] <= 10);
    // And what is no body is the client's fault.
    let mut connection = server.connect();
    connection.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    is_gateway_error(&connection.answer(), 400, "did not get the whole request");
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let manager = raw(|head, reader| {
        let answer: &[u8] = match head.split(' ').nth(1).unwrap() {
            "/length" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "/storage" | "/api/v3/configuration/shared-storage/users/linux" => {
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"a\":"
            }
            _ => b"HTTP/1.1 2",
        };
        reader.get_mut().write_all(answer).unwrap();
        false
    });
    let server = gateway(&format!("http://{manager}"));
    for path in ["/length", "/chunks"] {
        let mut connection = server.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        let mut all = String::new();
        let _ = connection.stream.read_to_string(&mut all);
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
        // Closed, and neither 100 bytes nor a last chunk have come.
        assert!(!all.contains("0\r\n\r\n") && all.len() < 300, "{all}");
        assert!(all.trim_end().ends_with("half"), "{all}");
    }
    for path in ["/head", "/api/v3/configuration/shared-storage/users/linux"] {
        let answer = exchange(server.addr, "GET", path, "", b"");
        is_gateway_error(&answer, 502, "broke off");
    }
}

#[test]
fn only_what_does_no_harm_is_asked_again_and_only_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let manager = raw(move |_, _| {
        counted.fetch_add(1, SeqCst);
        false
    });
    let server = gateway(&format!("http://{manager}"));
    for (method, body, times) in [
        ("GET", "", 2),
        ("HEAD", "", 2),
        ("POST", "", 1),
        ("PUT", "x", 1),
        ("GET", "x", 1),
        ("PATCH", "", 1),
    ] {
        let answer = exchange(server.addr, method, "/x", "", body.as_bytes());
        assert_eq!(answer.status, 502, "{method}");
        assert_eq!(asked.swap(0, SeqCst), times, "{method} {body}");
    }
}

#[test]
fn a_manager_may_be_restarted_between_two_requests() {
    let manager = Manager::start(as_asked);
    let addr = manager.addr;
    let server = manager.gateway();
    let mut connection = server.connect();
    let get = b"GET /x HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\nX-Answer: 200 json\r\n\r\n";
    for _ in 0..2 {
        connection.send(get);
        assert_eq!(connection.answer().status, 200);
    }
    drop(manager);
    connection.send(get);
    is_gateway_error(&connection.answer(), 502, "cannot be reached");
    let _manager = Manager::on(addr, as_asked);
    connection.send(get);
    assert_eq!(connection.answer().status, 200);
}

#[test]
fn connections_to_the_manager_are_used_again_and_a_closed_one_costs_nothing() {
    let (asked, close) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, closing) = (asked.clone(), close.clone());
    let manager = raw(move |head, reader| {
        assert!(head.starts_with("GET /x "));
        count.fetch_add(1, SeqCst);
        if closing.swap(0, SeqCst) > 0 {
            // Taken, and closed without an answer, as when it has just timed out.
            return false;
        }
        let port = reader.get_ref().peer_addr().unwrap().port();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Port: {port}\r\n\r\nok");
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        true
    });
    let server = gateway(&format!("http://{manager}"));
    let mut connection = server.connect();
    let mut port = || {
        let answer = connection.get("/x");
        assert_eq!(answer.status, 200, "{answer:?}");
        header(&answer, "x-port").unwrap().to_owned()
    };
    let mut last = port();
    // One is not used again that is not known to be free yet.
    until(|| std::mem::replace(&mut last, port()) == last);
    let before = asked.load(SeqCst);
    close.store(1, SeqCst);
    assert_ne!(port(), last);
    assert_eq!(asked.load(SeqCst) - before, 2);
}

/// What the way through costs: for `benches/RESULTS.md`.
#[test]
#[ignore = "it measures, and is to be run in release and alone"]
fn what_the_gateway_costs() {
    const ROUNDS: usize = 10;
    const REQUESTS: usize = 1000;
    let manager = Manager::start(|_| axum::Json(json!({ "version": "3.9" })).into_response());
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", manager.addr);
    let storage = home.path().join("s");
    let server = ServerProcess::start(home.path(), &storage, &["--manager", url.as_str()]);
    let mut ways = [(manager.addr, Vec::new()), (server.address(), Vec::new())];
    for round in 0..=ROUNDS {
        for (addr, times) in &mut ways {
            let mut connection = Connection::new(*addr);
            for _ in 0..REQUESTS {
                let start = std::time::Instant::now();
                assert_eq!(connection.get("/api/v3/version").status, 200);
                // The first round warms up.
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
    }
    for (name, (_, times)) in ["directly", "through the gateway"].iter().zip(&mut ways) {
        times.sort();
        let of = |share: usize| times[times.len() * share / 100].as_micros();
        println!("{name}: p50 {} µs, p90 {} µs, p99 {} µs", of(50), of(90), of(99));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn long_bodies_take_no_memory_either_way() {
    const LENGTH: usize = 256 << 20;
    const MAX: u64 = 64 << 20;
    let manager = raw(|_, reader| {
        let mut sum = 0;
        let mut piece = vec![0; 1 << 16];
        while sum < LENGTH {
            sum += reader.read(&mut piece).unwrap();
        }
        let stream = reader.get_mut();
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes())
            .unwrap();
        for _ in 0..LENGTH / piece.len() {
            stream.write_all(&piece).unwrap();
        }
        true
    });
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{manager}/");
    let server =
        ServerProcess::start(home.path(), &home.path().join("s"), &["--manager", url.as_str()]);
    let mut connection = server.connect();
    connection.send(&post_head("/big", "", LENGTH as u64));
    let piece = vec![b'x'; 1 << 16];
    for _ in 0..LENGTH / piece.len() {
        connection.send(&piece);
    }
    // The first half is read when the gateway has had time to take all it wants: none is taken early.
    let answer = connection.answer();
    assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
    let peak = server.peak_bytes();
    assert!(peak < MAX, "{} KiB", peak >> 10);
}

#[test]
fn shared_storage_says_that_there_is_a_shaman() {
    let before = r#"{"location":"/farm","audience":"users","shamanEnabled":false,"platform":"linux","x":1.50}"#;
    let after = r#"{"location":"/farm","audience":"users","shamanEnabled":true,"platform":"linux","x":1.50}"#;
    let manager = Manager::start(move |seen| {
        let kind = seen.headers["x-answer"].to_str().unwrap().to_owned();
        let headers = [("content-type", "application/json"), ("x-kept", "yes")];
        match kind.as_str() {
            "ok" => (headers, before).into_response(),
            "missing" => (headers, r#"{"location":"/farm"}"#).into_response(),
            "list" => (headers, "[1 , 2]").into_response(),
            "text" => (headers, "shamanEnabled?").into_response(),
            "encoded" => (headers, [("content-encoding", "br")], before).into_response(),
            _ => (StatusCode::NOT_FOUND, headers, before).into_response(),
        }
    });
    let server = manager.gateway();
    let path = "/api/v3/configuration/shared-storage/users/linux";
    for (kind, path, status, expected) in [
        ("ok", path, 200, after),
        ("ok", "/api/v3/configuration/shared-storage/workers/windows?x=y", 200, after),
        ("ok", "/api/v3/configuration/variables/workers/windows", 200, before),
        ("ok", "/api/v3/configuration", 200, after),
        ("missing", path, 200, r#"{"location":"/farm","shamanEnabled":true}"#),
        ("list", path, 200, "[1 , 2]"),
        ("text", path, 200, "shamanEnabled?"),
        ("encoded", path, 200, before),
        ("404", path, 404, before),
    ] {
        let headers = format!("X-Test: 1\r\nAccept-Encoding: gzip\r\nX-Answer: {kind}\r\n");
        let answer = exchange(server.addr, "GET", path, &headers, b"");
        assert_eq!(answer.status, status, "{kind}");
        assert_eq!(String::from_utf8_lossy(&answer.body), expected, "{kind}");
        assert_eq!(header(&answer, "content-length"), Some(expected.len().to_string().as_str()));
        assert_eq!(header(&answer, "x-kept"), Some("yes"));
        // What is to be read must not come packed.
        let accepts = if path.contains("variables") { "gzip" } else { "identity" };
        assert_eq!(manager.one().headers["accept-encoding"], accepts, "{kind}");
    }
}

/// What a Manager that deletes says.
#[derive(Clone)]
struct Says {
    /// Of the job.
    job: (u16, Value),
    /// Of what goes with it.
    preview: (u16, Value),
    /// To the deletion.
    delete: u16,
    /// Of all jobs, afterwards.
    jobs: (u16, Value),
}

impl Says {
    fn certain(checkout: &str) -> Self {
        Self {
            job: (200, json!({ "id": "j1", "storage": { "shaman_checkout_id": checkout } })),
            preview: (200, json!({ "shaman_checkout": true })),
            delete: 204,
            // Not marked as deleted yet.
            jobs: (
                200,
                json!({ "jobs": [{ "id": "j1", "storage": { "shaman_checkout_id": checkout } }] }),
            ),
        }
    }
}

pub fn make_checkout(server: &TestServer, name: &str) -> String {
    let content = random(100);
    assert_eq!(server.upload(&content).status, 204);
    let request = json!({ "checkoutPath": name, "files": [file(&content, "scene.blend")] });
    let answer = server.post_json("checkout/create", &request);
    answer.json()["checkoutPath"].as_str().unwrap().to_owned()
}

pub fn checkouts(server: &TestServer) -> Vec<String> {
    let answer = server.admin("GET", "checkouts", Value::Null).json();
    let names =
        answer.as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap().to_owned());
    names.collect()
}

fn says(says: &(u16, Value)) -> Response {
    (StatusCode::from_u16(says.0).unwrap(), says.1.to_string()).into_response()
}

#[test]
fn a_deleted_job_takes_its_checkout_with_it_if_the_manager_says_so_and_never_else() {
    let now: Arc<Mutex<Option<Says>>> = Arc::default();
    let asked = now.clone();
    let manager = Manager::start(move |seen| {
        let Some(one) = asked.lock().unwrap().clone() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        match (seen.method.as_str(), seen.target.as_str()) {
            ("GET", "/api/v3/jobs/j1") => says(&one.job),
            ("GET", "/api/v3/jobs") => says(&one.jobs),
            ("GET", "/api/v3/jobs/j1/what-would-delete-do") => says(&one.preview),
            ("DELETE", "/api/v3/jobs/j1") => {
                (StatusCode::from_u16(one.delete).unwrap(), [("x-manager", "yes")], "")
                    .into_response()
            }
            other => panic!("{other:?}"),
        }
    });
    let server = manager.gateway();
    let kept = make_checkout(&server, "others/kept");
    let certain = Says::certain("shots/one");
    let unsure: Vec<(&str, Says)> = vec![
        (
            "no preview",
            Says { preview: (200, json!({ "shaman_checkout": false })), ..certain.clone() },
        ),
        (
            "odd preview",
            Says { preview: (200, json!({ "shaman_checkout": "true" })), ..certain.clone() },
        ),
        (
            "failed preview",
            Says { preview: (500, json!({ "shaman_checkout": true })), ..certain.clone() },
        ),
        ("no job", Says { job: (404, certain.job.1.clone()), ..certain.clone() }),
        ("no storage", Says { job: (200, json!({ "id": "j1" })), ..certain.clone() }),
        (
            "null storage",
            Says { job: (200, json!({ "id": "j1", "storage": null })), ..certain.clone() },
        ),
        (
            "bad name",
            Says {
                job: (200, json!({ "id": "j1", "storage": { "shaman_checkout_id": "../one" } })),
                ..certain.clone()
            },
        ),
        (
            "empty name",
            Says {
                job: (200, json!({ "id": "j1", "storage": { "shaman_checkout_id": "" } })),
                ..certain.clone()
            },
        ),
        (
            "a folder",
            Says {
                job: (200, json!({ "id": "j1", "storage": { "shaman_checkout_id": "shots" } })),
                ..certain.clone()
            },
        ),
        ("not JSON", Says { job: (200, json!("j1")), ..certain.clone() }),
        ("refused", Says { delete: 422, ..certain.clone() }),
        ("failed", Says { delete: 500, ..certain.clone() }),
        ("redirected", Says { delete: 307, ..certain.clone() }),
    ];
    let user = |id: &str, more: Value| {
        let mut job = json!({ "id": id, "storage": { "shaman_checkout_id": "shots/one" } });
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (200, json!({ "jobs": [job] }))
    };
    let mut unsure = unsure;
    unsure.push(("used by another", Says { jobs: user("j2", json!({})), ..certain.clone() }));
    unsure.push(("no list", Says { jobs: (500, json!({ "jobs": [] })), ..certain.clone() }));
    let one = make_checkout(&server, "shots/one");
    assert_eq!(one, "shots/one");
    for (name, one) in unsure {
        let status = one.delete;
        *now.lock().unwrap() = Some(one);
        let answer = exchange(server.addr, "DELETE", "/api/v3/jobs/j1", BROWSER, b"");
        assert_eq!((answer.status, header(&answer, "x-manager")), (status, Some("yes")), "{name}");
        if ["used by another", "no list"].contains(&name) {
            // Asked for after the answer: the next case must not answer it.
            let is_list = |seen: &Seen| seen.target == "/api/v3/jobs";
            until(|| manager.seen.lock().unwrap().iter().any(is_list));
        }
        let seen = manager.take();
        assert!(seen.iter().any(|seen| seen.method == "DELETE"), "{name}");
        assert_eq!(seen.iter().filter(|seen| seen.method == "DELETE").count(), 1, "{name}");
    }
    // What is done after an answer is done when the next deletion has erased its checkout.
    *now.lock().unwrap() = Some(Says::certain(&make_checkout(&server, "shots/two")));
    assert_eq!(exchange(server.addr, "DELETE", "/api/v3/jobs/j1", BROWSER, b"").status, 204);
    until(|| checkouts(&server) == [kept.clone(), one.clone()]);
    // Whoever protects the Manager sees the client's name in the questions, too.
    for seen in manager.take() {
        assert_eq!(seen.headers["authorization"], "Basic YTpi", "{}", seen.target);
        let conditional = seen.headers.contains_key("range");
        assert_eq!(conditional, seen.method == "DELETE", "{}", seen.target);
    }
    // The other one that uses it is going, too.
    let goes = user("j2", json!({ "delete_requested_at": "2025-07-01T00:00:00Z" }));
    *now.lock().unwrap() = Some(Says { jobs: goes, ..certain });
    for _ in 0..2 {
        // The second time there is none any more, which is no error.
        assert_eq!(exchange(server.addr, "DELETE", "/api/v3/jobs/j1", BROWSER, b"").status, 204);
        until(|| checkouts(&server) == [kept.clone()]);
    }
    // A Manager that goes away erases nothing.
    drop(manager);
    is_gateway_error(
        &exchange(server.addr, "DELETE", "/api/v3/jobs/j1", "", b""),
        502,
        "cannot be",
    );
    assert_eq!(checkouts(&server), [kept]);
}

#[test]
fn a_deletion_is_done_to_its_end_when_nobody_waits_for_it() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let manager = Manager::start(move |seen| {
        let certain = Says::certain("shots/one");
        match (seen.method.as_str(), seen.target.as_str()) {
            ("GET", "/api/v3/jobs/j1") => says(&certain.job),
            ("GET", "/api/v3/jobs/j1/what-would-delete-do") => says(&certain.preview),
            ("GET", "/api/v3/jobs") => says(&certain.jobs),
            ("DELETE", _) => {
                wait.lock().unwrap().recv().unwrap();
                StatusCode::NO_CONTENT.into_response()
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    });
    let server = manager.gateway();
    make_checkout(&server, "shots/one");
    let mut connection = server.connect();
    connection.send(b"DELETE /api/v3/jobs/j1 HTTP/1.1\r\nHost: h\r\nX-Test: 1\r\n\r\n");
    until(|| manager.seen.lock().unwrap().iter().any(|seen| seen.method == "DELETE"));
    drop(connection);
    // The one that asks is left.
    until(|| {
        let metrics = server.connect().get("/metrics");
        String::from_utf8(metrics.body).unwrap().contains("\nfarmhand_connections_open 1\n")
    });
    assert_eq!(checkouts(&server), ["shots/one"]);
    go.send(()).unwrap();
    until(|| checkouts(&server).is_empty());
}

#[test]
fn a_mass_deletion_erases_the_checkouts_of_what_is_gone() {
    let deleted = Arc::new(AtomicUsize::new(0));
    let (count, fails) = (deleted.clone(), Arc::new(AtomicUsize::new(0)));
    let failing = fails.clone();
    let old = "2024-06-01T00:00:00Z";
    let job = move |id: &str, updated: &str| {
        let storage = json!({ "shaman_checkout_id": format!("shots/{id}") });
        json!({ "id": id, "updated": updated, "storage": storage })
    };
    let manager = Manager::start(move |seen| {
        let is_deleted = count.load(SeqCst) > 0;
        match (seen.method.as_str(), seen.target.as_str()) {
            ("GET", "/api/v3/jobs") => {
                let (mut marked, young) =
                    (job("marked", old), job("young", "2025-06-01T00:00:00Z"));
                let mut shares = job("shares", "2025-06-01T00:00:00Z");
                shares["storage"]["shaman_checkout_id"] = json!("shots/shared");
                let mut jobs = vec![young, shares];
                jobs.extend(["spared", "vetoed", "evil"].map(|id| job(id, old)));
                // No name that a Manager gives, and another path.
                jobs[4]["id"] = json!("../evil");
                if is_deleted {
                    marked["delete_requested_at"] = json!("2025-07-01T00:00:00Z");
                } else {
                    jobs.extend([job("gone", old), job("shared", old)]);
                }
                jobs.push(marked);
                axum::Json(json!({ "jobs": jobs })).into_response()
            }
            ("DELETE", "/api/v3/jobs/mass-delete") if failing.load(SeqCst) > 0 => {
                StatusCode::RANGE_NOT_SATISFIABLE.into_response()
            }
            ("DELETE", "/api/v3/jobs/mass-delete") => {
                count.fetch_add(1, SeqCst);
                StatusCode::NO_CONTENT.into_response()
            }
            ("GET", path) if path.ends_with("/what-would-delete-do") => {
                let may = !path.contains("vetoed");
                axum::Json(json!({ "shaman_checkout": may })).into_response()
            }
            other => panic!("{other:?}"),
        }
    });
    let server = manager.gateway();
    for name in ["gone", "marked", "shared", "spared", "vetoed", "young"] {
        assert_eq!(make_checkout(&server, &format!("shots/{name}")), format!("shots/{name}"));
    }
    let delete = |body: &str| {
        let headers = "X-Test: 1\r\nContent-Type: application/json\r\n";
        exchange(server.addr, "DELETE", "/api/v3/jobs/mass-delete", headers, body.as_bytes()).status
    };
    let body = r#"{"last_updated_max":"2025-01-01T00:00:00Z"}"#;
    fails.store(1, SeqCst);
    assert_eq!(delete(body), 416);
    assert_eq!(checkouts(&server).len(), 6);
    fails.store(0, SeqCst);
    manager.take();
    assert_eq!(delete(body), 204);
    until(|| checkouts(&server) == ["shots/shared", "shots/spared", "shots/vetoed", "shots/young"]);
    let seen = manager.take();
    let passed: Vec<_> = seen.iter().filter(|seen| seen.method == "DELETE").collect();
    assert_eq!((passed.len(), passed[0].body.as_ref()), (1, body.as_bytes()));
    assert!(
        seen.iter().all(|seen| !seen.target.contains("evil") && !seen.target.contains("young/"))
    );
    // What cannot be understood is for the Manager to answer.
    for body in ["", "{}", r#"{"last_updated_max":"soon"}"#] {
        assert_eq!(delete(body), 204, "{body}");
        let seen = manager.take();
        let passed = seen.iter().find(|seen| seen.method == "DELETE").unwrap();
        assert_eq!(passed.body, body);
    }
    assert_eq!(delete(&" ".repeat(100_000)), 400);
    assert_eq!(checkouts(&server).len(), 4);
}

#[test]
fn to_reach_the_manager_takes_a_token_with_the_scope() {
    let manager = Manager::start(as_asked);
    let mut tokens = Tokens::default();
    for scope in Scope::ALL {
        let text = format!("{scope}-token");
        let token = Token::new(scope.name(), [scope].into_iter().collect(), &text).unwrap();
        tokens.add(token).unwrap();
    }
    let access = Arc::new(Access::new(Anonymous::Nowhere, tokens));
    let url = format!("http://{}", manager.addr);
    let server = TestServer::with(Options { access, ..options(&url) });
    for (method, path, needs) in [
        ("GET", "/", "read"),
        ("HEAD", "/api/v3/jobs", "read"),
        ("OPTIONS", "/api/v3/jobs", "read"),
        ("GET", "/api/v3/openapi3.json", "read"),
        ("GET", "/api/v3/%73haman/files/x", "read"),
        ("POST", "/api/v3/%73haman/checkout/create", "checkout"),
        ("POST", "/api/v3/jobs", "checkout"),
        ("PUT", "/api/v3/configuration/file", "checkout"),
        ("DELETE", "/api/v3/jobs/1", "checkout"),
        ("DELETE", "/healthz/x", "checkout"),
        ("BREW", "/", "checkout"),
    ] {
        let headers = "X-Test: 1\r\nX-Answer: 200 json\r\n";
        assert_eq!(
            exchange(server.addr, method, path, headers, b"").status,
            401,
            "{method} {path}"
        );
        assert!(manager.take().is_empty(), "{method} {path}");
        for scope in Scope::ALL {
            let headers = format!("{headers}Authorization: Bearer {scope}-token\r\n");
            let answer = exchange(server.addr, method, path, &headers, b"");
            let seen = manager.take();
            if scope.name() == needs {
                assert_eq!(answer.status, 200, "{method} {path} {scope}");
                assert!(!seen.is_empty());
                assert!(seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
            } else {
                assert_eq!(answer.status, 403, "{method} {path} {scope}");
                assert!(seen.is_empty(), "{method} {path} {scope}");
            }
        }
        let in_path = format!("/t/{needs}-token{path}");
        assert_eq!(exchange(server.addr, method, &in_path, headers, b"").status, 200);
        for seen in manager.take() {
            assert!(seen.target.starts_with(path), "{}", seen.target);
            assert!(!format!("{seen:?}").contains("-token"), "{seen:?}");
        }
    }
    // A tunnel takes more than the GET that it looks like.
    let tunnel = "X-Test: 1\r\nX-Answer: 200 json\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    for (scope, status) in [("read", 403), ("checkout", 200)] {
        let headers = format!("{tunnel}Authorization: Bearer {scope}-token\r\n");
        assert_eq!(exchange(server.addr, "GET", "/ws", &headers, b"").status, status, "{scope}");
    }
}

#[test]
fn a_gateway_that_leads_back_to_itself_says_so() {
    let back: Arc<OnceLock<SocketAddr>> = Arc::default();
    let target = back.clone();
    let manager = raw(move |head, reader| {
        let mut connection = Connection::new(*target.get().unwrap());
        connection.send(head.as_bytes());
        let answer = connection.answer();
        reader.get_mut().write_all(answer.head.as_bytes()).unwrap();
        reader.get_mut().write_all(b"\r\n").unwrap();
        reader.get_mut().write_all(&answer.body).unwrap();
        true
    });
    let access = Arc::new(Access::new(Anonymous::Anywhere, Tokens::default()));
    let server = TestServer::with(Options { access, ..options(&format!("http://{manager}")) });
    back.set(server.addr).unwrap();
    let answer = exchange(server.addr, "GET", "/x", "", b"");
    is_gateway_error(&answer, 508, "leads back to this server");
}

#[test]
fn what_the_manager_is_to_get_it_gets_instead_of_the_clients() {
    let manager = Manager::start(as_asked);
    let headers = vec![
        (HeaderName::from_static("authorization"), HeaderValue::from_static("Basic ours")),
        (HeaderName::from_static("x-farm"), HeaderValue::from_static("1")),
    ];
    let gateway = GatewayOptions { headers, ..GatewayOptions::default() };
    let server = TestServer::with(with(&format!("http://{}", manager.addr), gateway));
    exchange(server.addr, "GET", "/x", BROWSER, b"");
    let seen = manager.one();
    let all: Vec<_> = seen.headers.get_all("authorization").iter().collect();
    assert_eq!(all, ["Basic ours"]);
    assert_eq!(seen.headers["x-farm"], "1");
}

#[test]
fn a_manager_behind_https_must_have_a_trusted_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&dir.path().join("ours"));
    let others = Certificates::new(&dir.path().join("others"));
    let tls = Tls::load(&certificates.cert, &certificates.key).unwrap();
    // Another server of ours will do: it has a path that we would pass on.
    let manager = TestServer::with(Options { tls: Some(Arc::new(tls)), ..Options::default() });
    let url = format!("https://{}", manager.addr);
    let access = || Arc::new(Access::new(Anonymous::Anywhere, Tokens::default()));
    for (ca, status) in [(&certificates.ca, 200), (&others.ca, 502)] {
        let mut gateway = GatewayOptions::default();
        assert!(gateway.trust(&fs::read(ca).unwrap()));
        let server = TestServer::with(Options { access: access(), ..with(&url, gateway) });
        let answer = exchange(server.addr, "GET", "/api/v3/openapi3.json", "", b"");
        assert_eq!(answer.status, status);
        if status == 200 {
            assert_eq!(answer.json()["info"]["title"], "farmhand");
        } else {
            is_gateway_error(&answer, 502, "certificate");
        }
    }
    // And one that speaks no TLS.
    let head_timeout = Duration::from_millis(50);
    let plain = TestServer::with(Options { head_timeout, ..Options::default() });
    let server = gateway(&format!("https://{}", plain.addr));
    is_gateway_error(&exchange(server.addr, "GET", "/", "", b""), 502, "cannot be reached");
}

#[test]
fn the_program_says_what_is_behind_it() {
    let manager = Manager::start(|seen| match seen.target.as_str() {
        "/good/api/v3/version" => {
            axum::Json(json!({ "version": "3.9", "name": "My Farm" })).into_response()
        }
        "/html/api/v3/version" => "<!doctype html>".into_response(),
        "/away/api/v3/version" => axum::response::Redirect::temporary("/").into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    });
    let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, level, says) in [
        (format!("http://{}/good/", manager.addr), "INFO", r#"name="My Farm" version="3.9""#),
        (format!("http://{}/html", manager.addr), "WARN", "is none of a Manager"),
        (format!("http://{}/away/", manager.addr), "WARN", "it answers 307"),
        (format!("http://{}/t/secret/", manager.addr), "WARN", "/t/…/"),
        (format!("http://{gone}"), "WARN", "cannot be reached"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        let arguments = ["--manager", url.as_str()];
        let server = ServerProcess::logging(home.path(), &home.path().join("s"), &arguments, &log);
        let text = || fs::read_to_string(&log).unwrap();
        until(|| text().lines().any(|line| line.contains(level) && line.contains(says)));
        assert_eq!(server.connect().get("/healthz").status, 200);
        assert!(!text().contains("secret"));
    }
    let home = tempfile::tempdir().unwrap();
    for bad in ["farm:8080", "ftp://farm/", "http://"] {
        let output = farmhand(home.path()).args(["serve", "--manager", bad]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("serve.manager") && text.contains("http://HOST:PORT/"), "{text}");
    }
    let mut command = farmhand(home.path());
    command.args(["config", "show"]).env("FARMHAND_SERVE_MANAGER", "http://farm/t/secret/");
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("http://farm/t/…/") && !text.contains("secret"), "{text}");
}

/// A Manager whose host only a proxy knows.
#[test]
fn the_manager_is_reached_through_the_proxy_of_the_environment() {
    let proxy = StdListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::<String>::new()));
    let seen = heads.clone();
    std::thread::spawn(move || {
        for client in proxy.incoming() {
            let mut client = client.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let (status, body) = match head.starts_with("GET http://") {
                true => ("200 OK", r#"{"version":"3.9","name":"Far Away"}"#),
                false => ("403 Forbidden", "{}"),
            };
            seen.lock().unwrap().push(head);
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let proxy = format!("http://user:secret@{address}");
    let home = tempfile::tempdir().unwrap();
    let asked = |manager: &str, variable: &str, value: &str, without: &str| {
        heads.lock().unwrap().clear();
        let mut command = farmhand(home.path());
        command.env(variable, value).env("NO_PROXY", without).stderr(std::process::Stdio::null());
        command.args(["serve", "--listen", "127.0.0.1:0", "--manager", manager, "--storage"]);
        let server = ServerProcess::spawn(command.arg(home.path().join("storage")));
        let answer = server.connect().get("/api/v3/version");
        (answer, heads.lock().unwrap().clone())
    };
    let (answer, heads) = asked("http://farm.invalid:8080/x", "HTTP_PROXY", &proxy, "other");
    assert_eq!((answer.status, &answer.json()["name"]), (200, &json!("Far Away")));
    let head = heads.last().unwrap();
    assert!(
        head.starts_with("GET http://farm.invalid:8080/x/api/v3/version HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{head}");
    assert!(head.to_lowercase().contains("host: farm.invalid:8080"), "{head}");
    let (answer, heads) = asked("https://farm.invalid/", "HTTPS_PROXY", &proxy, "");
    is_gateway_error(&answer, 502, "cannot be reached");
    let head = heads.last().unwrap();
    assert!(head.starts_with("CONNECT farm.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: basic"), "{head}");
    // Others are reached directly, and this machine always.
    let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (manager, without) in
        [("http://farm.invalid/".to_owned(), "farm.invalid"), (format!("http://{gone}"), "")]
    {
        let (answer, heads) = asked(&manager, "HTTP_PROXY", &proxy, without);
        is_gateway_error(&answer, 502, "cannot be reached");
        assert_eq!(heads, Vec::<String>::new(), "{manager}");
    }
    let mut command = farmhand(home.path());
    command.env("ALL_PROXY", "socks5://user:secret@proxy:1080");
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--manager",
        "http://farm.invalid/",
        "--storage",
    ]);
    let output = command.arg(home.path().join("storage")).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("NO_PROXY") && !text.contains("secret"), "{text}");
}
