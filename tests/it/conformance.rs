//! Our own server passes its own checks, and the checks can fail.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use farmhand::conformance::{self, CHECKS, Level, Target, Verdict};
use serde_json::{Value, json};

use super::common::*;

fn run(url: &str, level: Level) -> Vec<conformance::Checked> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { conformance::run(&Target::new(url).unwrap(), level).await.unwrap() })
}

#[test]
fn all_checks_hold_on_our_server() {
    let server = TestServer::start();
    for checked in run(&server.url(), Level::Hostile) {
        assert_eq!(checked.verdict, Verdict::Holds, "{}", checked.name);
    }
    let outside: Vec<_> = std::fs::read_dir(server.dir.path()).unwrap().collect();
    assert_eq!(outside.len(), 1, "{outside:?}");
}

#[test]
fn each_level_has_those_before_it() {
    let server = TestServer::start();
    assert!(Level::Core < Level::Strict && Level::Strict < Level::Hostile);
    for level in [Level::Core, Level::Strict] {
        for checked in run(&server.url(), level) {
            let skipped = matches!(checked.verdict, Verdict::Skipped(_));
            assert_eq!(skipped, checked.level > level, "{}", checked.name);
        }
    }
}

/// A server that takes everything and stores nothing: hardly a check may hold.
#[test]
fn the_checks_see_a_server_that_lies() {
    use axum::{
        Json, Router,
        routing::{get, post},
    };
    let router = Router::new()
        .route(
            "/api/v3/shaman/files/{sha}/{size}",
            get(async || Json(serde_json::json!({ "status": "unknown" }))).post(async || ()),
        )
        .route(
            "/api/v3/shaman/checkout/requirements",
            post(async || Json(serde_json::json!({ "files": null }))),
        )
        .route(
            "/api/v3/shaman/checkout/create",
            post(async || Json(serde_json::json!({ "checkoutPath": "x" }))),
        );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async { axum::serve(listener, router).await });
    let results = run(&url, Level::Hostile);
    let holding: Vec<_> =
        results.iter().filter(|r| r.verdict == Verdict::Holds).map(|r| r.name).collect();
    // What it says is true here, or nothing that these are about.
    let innocent = [
        "a blob nobody has sent is unknown",
        "the same file twice in a checkout counts once",
        "answers are of the type application/json, and so may requests be, with a charset",
        "HEAD is answered without a body",
    ];
    assert_eq!(holding, innocent);
}

/// An answer on its way through a [`faulty`] server.
struct Reply {
    status: u16,
    json: Value,
    kind: String,
    /// Bytes behind an answer that has no body.
    more: &'static str,
}

/// What is wrong with a server that is right in all else.
struct Fault {
    name: &'static str,
    /// The checks up to strict that see it.
    seen_by: &'static [&'static str],
    /// Refuses requests for checkouts with this in them.
    refuses: &'static str,
    /// Changes the head of a request; or answers with this status, at once.
    request: fn(&mut String) -> Option<u16>,
    /// Changes the answer to a request.
    answer: fn(&str, &mut Reply),
    /// Reads all of a body before it does anything.
    buffers: bool,
    /// Closes without reading what is still coming in.
    hasty: bool,
}

const RIGHT: Fault = Fault {
    name: "none",
    seen_by: &[],
    refuses: "",
    request: |_| None,
    answer: |_, _| {},
    buffers: false,
    hasty: false,
};

/// Our server with a fault.
fn faulty(server: SocketAddr, fault: &'static Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            // A client that goes away is not our trouble.
            std::thread::spawn(move || serve_faulty(client.unwrap(), server, fault));
        }
    });
    url
}

fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8(head).unwrap())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name));
    head.lines().find_map(|line| value(line).map(|(_, value)| value))
}

fn length(head: &str) -> usize {
    header(head, "content-length").map_or(0, |value| value.parse().unwrap())
}

fn serve_faulty(mut client: TcpStream, server: SocketAddr, fault: &Fault) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut head = read_head(&mut from_client)?;
    if let Some(status) = (fault.request)(&mut head) {
        let problem = json!({ "code": status, "message": "a fault" });
        let reply = Reply { status, json: problem, kind: "application/json".into(), more: "" };
        write_reply(&mut client, &reply)?;
        if !fault.hasty {
            client.shutdown(Shutdown::Write)?;
            io::copy(&mut from_client, &mut io::sink())?;
        }
        return Ok(());
    }
    let mut body = Vec::new();
    if fault.buffers {
        body.resize(length(&head), 0);
        from_client.read_exact(&mut body)?;
    }
    if !fault.refuses.is_empty() && head.contains("/checkout/") {
        body.resize(length(&head), 0);
        from_client.read_exact(&mut body)?;
        if String::from_utf8_lossy(&body).matches(fault.refuses).count() > 1 {
            let json = json!({ "code": 400, "message": "a fault" });
            let kind = "application/json".into();
            return write_reply(&mut client, &Reply { status: 400, json, kind, more: "" });
        }
    }
    let mut to_server = TcpStream::connect(server)?;
    let mut from_server = BufReader::new(to_server.try_clone()?);
    if header(&head, "connection").is_none() {
        head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    }
    to_server.write_all(head.as_bytes())?;
    to_server.write_all(&body)?;
    let passing = std::thread::spawn(move || {
        if io::copy(&mut from_client, &mut to_server).is_err() {
            let _ = io::copy(&mut from_client, &mut io::sink());
        }
    });
    let answer = read_head(&mut from_server)?;
    let mut body = vec![0; if head.starts_with("HEAD") { 0 } else { length(&answer) }];
    from_server.read_exact(&mut body)?;
    let mut reply = Reply {
        status: answer.split(' ').nth(1).unwrap().parse().unwrap(),
        json: serde_json::from_slice(&body).unwrap_or(Value::Null),
        kind: header(&answer, "content-type").unwrap_or_default().to_owned(),
        more: "",
    };
    (fault.answer)(&head, &mut reply);
    write_reply(&mut client, &reply)?;
    client.shutdown(Shutdown::Write)?;
    passing.join().unwrap();
    Ok(())
}

fn write_reply(client: &mut TcpStream, reply: &Reply) -> io::Result<()> {
    let body = if reply.json.is_null() { String::new() } else { reply.json.to_string() };
    let kind = match reply.kind.as_str() {
        "" => String::new(),
        kind => format!("Content-Type: {kind}\r\n"),
    };
    let (status, length, more) = (reply.status, body.len(), reply.more);
    let length =
        if status == 204 { String::new() } else { format!("Content-Length: {length}\r\n") };
    write!(client, "HTTP/1.1 {status} X\r\nConnection: close\r\n{kind}{length}\r\n{body}{more}")
}

fn is_create(head: &str) -> bool {
    head.contains("/checkout/create ")
}

fn is_requirements(head: &str) -> bool {
    head.contains("/checkout/requirements ")
}

const FAULTS: &[Fault] = &[
    RIGHT,
    Fault {
        name: "200 instead of 204",
        seen_by: &["an upload is answered 204"],
        answer: |_, reply| {
            if reply.status == 204 {
                reply.status = 200;
            }
        },
        ..RIGHT
    },
    Fault {
        name: "reads all of an upload before it looks whether it has it",
        seen_by: &[
            "an upload of a stored blob is answered 208 before its body comes",
            "a blob that is being sent has the status uploading, also in requirements",
            "425 is for those who said that they can defer, and only for them",
        ],
        buffers: true,
        ..RIGHT
    },
    Fault {
        name: "forgets empty files",
        seen_by: &[
            "a file of zero bytes is a blob like any other",
            "a blob of zero bytes is stored, known, not required, and can be checked out",
        ],
        answer: |head, reply| {
            if head.starts_with("GET") && head.contains("/0 HTTP") {
                reply.json = json!({ "status": "unknown" });
            }
        },
        ..RIGHT
    },
    Fault {
        name: "does not say in the requirements what is being sent",
        seen_by: &["a blob that is being sent has the status uploading, also in requirements"],
        answer: |head, reply| {
            if is_requirements(head) {
                let text = reply.json.to_string().replace("\"uploading\"", "\"unknown\"");
                reply.json = serde_json::from_str(&text).unwrap();
            }
        },
        ..RIGHT
    },
    Fault {
        name: "never says 425",
        seen_by: &["425 is for those who said that they can defer, and only for them"],
        answer: |_, reply| {
            if reply.status == 425 {
                (reply.status, reply.json) = (208, Value::Null);
            }
        },
        ..RIGHT
    },
    Fault {
        name: "says 425 to all",
        seen_by: &["425 is for those who said that they can defer, and only for them"],
        request: |head| {
            *head = head.replace("defer-upload: False", "defer-upload: True");
            None
        },
        ..RIGHT
    },
    Fault {
        name: "lists blobs by their last place",
        seen_by: &["requirements list a blob by its first place, its path byte for byte"],
        answer: |head, reply| {
            if is_requirements(head) {
                let text = reply.json.to_string().replace("dir\\\\windows.png", "again too");
                reply.json = serde_json::from_str(&text).unwrap();
            }
        },
        ..RIGHT
    },
    Fault {
        name: "turns paths into what Unix likes",
        seen_by: &["requirements list a blob by its first place, its path byte for byte"],
        answer: |head, reply| {
            if is_requirements(head) {
                let text = reply.json.to_string().replace("\\\\", "/");
                reply.json = serde_json::from_str(&text).unwrap();
            }
        },
        ..RIGHT
    },
    Fault {
        name: "lists what is stored, and says so",
        seen_by: &[
            "requirements list what is unknown, each blob once, paths as they were sent",
            "requirements do not list what is stored, and then are an empty list",
            "a blob of zero bytes is stored, known, not required, and can be checked out",
            "a blob that is being sent has the status uploading, also in requirements",
            "requirements list a blob by its first place, its path byte for byte",
        ],
        answer: |head, reply| {
            if let Some(Value::Array(files)) =
                reply.json.get_mut("files").filter(|_| is_requirements(head))
            {
                let (sha, path) = ("0".repeat(64), "x");
                files.push(json!({ "sha": sha, "size": 1, "path": path, "status": "stored" }));
            }
        },
        ..RIGHT
    },
    Fault {
        name: "a suffix of its own",
        seen_by: &["a name that is taken gets four of a-z and 0-9 behind a hyphen"],
        answer: |head, reply| {
            if let Some(path) = reply.json["checkoutPath"].as_str().filter(|_| is_create(head)) {
                let path = path.to_owned();
                let at = path.len().saturating_sub(5);
                if path.as_bytes()[at] == b'-' {
                    reply.json["checkoutPath"] =
                        json!(format!("{}_{}", &path[..at], &path[at + 1..]));
                }
            }
        },
        ..RIGHT
    },
    Fault {
        name: "500 instead of 424",
        seen_by: &["a checkout of missing files is answered 424"],
        answer: |_, reply| {
            if reply.status == 424 {
                (reply.status, reply.json["code"]) = (500, json!(500));
            }
        },
        ..RIGHT
    },
    Fault {
        name: "errors of another form",
        seen_by: &[
            "what is no JSON is a client's error, with a code and a message",
            "errors are JSON with a message, and the status as code",
        ],
        answer: |_, reply| {
            if reply.status >= 400 {
                reply.json = json!({ "code": 0, "message": "error" });
            }
        },
        ..RIGHT
    },
    Fault {
        name: "answers without a type",
        seen_by: &[
            "errors are JSON with a message, and the status as code",
            "answers are of the type application/json, and so may requests be, with a charset",
        ],
        answer: |_, reply| reply.kind.clear(),
        ..RIGHT
    },
    Fault {
        name: "knows only one spelling of the type of JSON",
        seen_by: &[
            "answers are of the type application/json, and so may requests be, with a charset",
        ],
        request: |head| head.contains("charset").then_some(415),
        ..RIGHT
    },
    Fault {
        name: "takes upper case for lower case",
        seen_by: &["a digest in upper case is answered 400"],
        request: |head| {
            let (line, rest) = head.split_once("\r\n").unwrap();
            let line = line.to_lowercase().replace("http", "HTTP");
            let line = line.replace("get", "GET").replace("post", "POST").replace("head", "HEAD");
            *head = format!("{line}\r\n{rest}");
            None
        },
        ..RIGHT
    },
    Fault {
        name: "takes no fields that it does not know",
        seen_by: &["fields that the protocol does not have are ignored everywhere"],
        refuses: "farmhandConformance",
        ..RIGHT
    },
    Fault {
        name: "takes no path twice",
        seen_by: &["the same file twice in a checkout counts once"],
        refuses: "\"path\":\"a\"",
        ..RIGHT
    },
    Fault {
        name: "404 for what is no size",
        seen_by: &["what is no size is answered 400"],
        answer: |head, reply| {
            let size = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap();
            if head.starts_with("GET") && size.parse::<u64>().is_err() {
                (reply.status, reply.json["code"]) = (404, json!(404));
            }
        },
        ..RIGHT
    },
    Fault {
        name: "422 for what is no request",
        seen_by: &[
            "a digest in upper case is answered 400",
            "what is no request of the protocol is answered 400",
        ],
        answer: |head, reply| {
            if (is_create(head) || is_requirements(head)) && reply.status == 400 {
                (reply.status, reply.json["code"]) = (422, json!(422));
            }
        },
        ..RIGHT
    },
    Fault {
        name: "refuses folded headers",
        seen_by: &["a header that is folded over two lines is accepted"],
        request: |head| head.contains("\r\n ").then_some(400),
        ..RIGHT
    },
    Fault {
        name: "answers HEAD with a body",
        seen_by: &["HEAD is answered without a body"],
        answer: |head, reply| {
            if head.starts_with("HEAD") {
                reply.more = "{}";
            }
        },
        ..RIGHT
    },
    Fault {
        name: "answers and closes while the client sends",
        seen_by: &["an early answer is seen by those who send all of their body first"],
        request: |head| (length(head) >= 16 << 20).then_some(400),
        hasty: true,
        ..RIGHT
    },
];

/// Each fault is seen by the checks that are about it, and by no others.
#[test]
fn a_server_with_a_fault_fails_the_checks_that_are_about_it() {
    let server = TestServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let runs: Vec<_> = FAULTS
        .iter()
        .map(|fault| {
            let url = faulty(server.addr, fault);
            let running = async move {
                conformance::run(&Target::new(&url).unwrap(), Level::Strict).await.unwrap()
            };
            (fault, runtime.spawn(running))
        })
        .collect();
    let mut unseen: BTreeSet<_> =
        CHECKS.iter().filter(|check| check.level == Level::Strict).map(|c| c.name).collect();
    for (fault, running) in runs {
        let results = runtime.block_on(running).unwrap();
        let failing: Vec<_> = results
            .iter()
            .filter_map(|checked| match &checked.verdict {
                Verdict::Fails(reason) => Some((checked.name, reason)),
                _ => None,
            })
            .collect();
        let names: Vec<_> = failing.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, fault.seen_by, "{}: {failing:#?}", fault.name);
        fault.seen_by.iter().for_each(|name| {
            unseen.remove(name);
        });
    }
    assert_eq!(unseen, BTreeSet::new(), "nothing fails these");
}
