//! Our own server passes its own checks, and the checks can fail.

use farmhand::conformance::{self, Level, Target, Verdict};

use super::common::*;

fn run(url: &str, expendable: bool) -> Vec<conformance::Checked> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(async { conformance::run(&Target::new(url).unwrap(), expendable).await.unwrap() })
}

#[test]
fn all_checks_hold_on_our_server() {
    let server = TestServer::start();
    for checked in run(&server.url(), true) {
        assert_eq!(checked.verdict, Verdict::Holds, "{}", checked.name);
    }
    let outside: Vec<_> = std::fs::read_dir(server.dir.path()).unwrap().collect();
    assert_eq!(outside.len(), 1, "{outside:?}");
}

#[test]
fn hostile_checks_are_for_expendable_servers() {
    let server = TestServer::start();
    for checked in run(&server.url(), false) {
        let skipped = matches!(checked.verdict, Verdict::Skipped(_));
        assert_eq!(skipped, checked.level == Level::Hostile, "{}", checked.name);
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
    let results = run(&url, true);
    let holding: Vec<_> =
        results.iter().filter(|r| r.verdict == Verdict::Holds).map(|r| r.name).collect();
    assert_eq!(holding, ["a blob nobody has sent is unknown"]);
}
