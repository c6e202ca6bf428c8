//! Heads of requests of all kinds, against the real server: an answer or the end of the connection,
//! never our fault; and it lives on.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use proptest::{prelude::*, test_runner::TestRunner};

use super::common::*;

/// A line of a head, right or nearly so.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let names = vec![
        "Content-Length",
        "Expect",
        "Transfer-Encoding",
        "X-Shaman-Original-Filename",
        "X-Shaman-Can-Defer-Upload",
        "Content-Type",
        "Connection",
        "Host",
        "Upgrade",
        "User-Agent",
        "TE",
        "Trailer",
        "X",
        "",
    ];
    let values = vec![
        "0",
        "5",
        "6",
        "-1",
        "+5",
        "5, 5",
        "18446744073709551616",
        "1e3",
        "100-continue",
        "chunked",
        "gzip, chunked",
        "=?utf-8?q?a=0D=0Ab?=",
        "=?utf-8?b?////?=",
        "=?",
        "True",
        "close",
        "keep-alive",
        "application/json",
        "h2c",
        "",
        "\u{e9}",
        "a\r\n b",
        "a\r\n\tb",
    ];
    let value = prop_oneof![
        6 => prop::sample::select(values).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let colon = prop::sample::select(vec![": ", ":", " : ", ""]);
    let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
    (prop::sample::select(names), colon, value, end).prop_map(|(name, colon, value, end)| {
        [name.as_bytes(), colon.as_bytes(), &value, end.as_bytes()].concat()
    })
}

/// A whole request, and perhaps half of another one.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let content = address(b"12345");
    let paths = vec![
        format!("/api/v3/shaman/files/{content}"),
        "/api/v3/shaman/files/%ff/5".to_owned(),
        "/api/v3/shaman/checkout/requirements".to_owned(),
        "/api/v3/shaman/checkout/create".to_owned(),
        "/healthz".to_owned(),
        "/%00".to_owned(),
        "*".to_owned(),
        "http://x/healthz".to_owned(),
    ];
    let methods = vec!["GET", "POST", "POST", "HEAD", "OPTIONS", "CONNECT", "BREW", ""];
    let versions = vec!["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""];
    (
        (
            prop::sample::select(methods),
            prop::sample::select(paths),
            prop::sample::select(versions),
        ),
        prop::collection::vec(line(), 0..6),
        prop::sample::select(vec!["", "12345", "5\r\n12345\r\n0\r\n\r\n", "{\"files\":[]}"]),
        prop::collection::vec(any::<u8>(), 0..10),
    )
        .prop_map(|((method, path, version), lines, body, more)| {
            let first = format!("{method} {path} {version}\r\n");
            [first.as_bytes(), &lines.concat(), b"\r\n", body.as_bytes(), &more].concat()
        })
}

#[test]
fn heads_of_all_kinds_are_answered_or_refused() {
    let server = TestServer::start();
    let ask = |request: Vec<u8>| {
        let mut stream = server.connect().stream;
        // It may have closed already.
        let _ = stream.write_all(&request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let text = String::from_utf8_lossy(&answers);
        prop_assert!(text.is_empty() || text.starts_with("HTTP/1."), "{}", text);
        for status in text.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)) {
            let status: u16 = status.parse().unwrap();
            prop_assert!((100..500).contains(&status), "{}", text);
        }
        Ok(())
    };
    TestRunner::default().run(&request(), ask).unwrap();
    server.alive();
    until(|| server.temp_files() == 0);
    // Nothing but the one blob that was sent, if it was.
    for (path, content) in tree(&server.storage().join("file-store/stored")) {
        assert_eq!(content, b"12345", "{path}");
    }
}
