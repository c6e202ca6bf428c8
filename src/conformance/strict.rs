//! The checks of the level strict: what the protocol says to the letter, and servers in use do not always do.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Miss,
    checks::{create, files, has_status, store},
    raw::Raw,
    target::{Content, Target},
};
use crate::wire;

/// Larger than what sockets hold by themselves.
const LARGE_BODY_BYTES: usize = 16 << 20;

/// How long it may take until what has begun can be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// How long a server that should wait is given to say something else.
const HASTE: Duration = Duration::from_millis(500);

pub(super) async fn no_content(target: &Target) -> Result<(), String> {
    for size in [1000, 300_000] {
        let content = Content::random(size);
        target.upload(&content.id, &content.bytes).await?.is(&[204])?;
    }
    Ok(())
}

pub(super) async fn known_at_once(target: &Target) -> Result<(), Miss> {
    let content = Content::random(100_000);
    store(target, &content).await?;
    let mut client = Raw::connect(target).await?;
    client.upload(&content.id, "").await?;
    if !client.answers_within(SEEN_WITHIN).await {
        return Err("it waits for the body".to_owned().into());
    }
    Ok(client.is(&[208]).await?)
}

pub(super) async fn empty_everywhere(target: &Target) -> Result<(), String> {
    let empty = Content::new(Vec::new());
    target.upload(&empty.id, &[]).await?.is(&[204, 208])?;
    target.upload(&empty.id, &[]).await?.is(&[208])?;
    has_status(target, &empty, "stored").await?;
    let request = json!({ "files": [empty.file("a")] });
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200])?;
    if !files(&answer.body)?.is_empty() {
        return Err(format!("it is required: {}", answer.text));
    }
    let name = format!("farmhand-conformance-{}-empty", target.run);
    create(target, &name, json!([empty.file("a"), empty.file("dir/b")])).await.map(drop)
}

/// Sends half of a blob, and waits until that can be seen.
async fn half_sent(target: &Target, content: &Content) -> Result<Raw, Miss> {
    let mut sender = Raw::connect(target).await?;
    sender.upload(&content.id, "").await?;
    sender.body(&content.bytes[..content.bytes.len() / 2]).await?;
    let start = Instant::now();
    while has_status(target, content, "uploading").await.is_err() {
        if start.elapsed() > SEEN_WITHIN {
            return Err("half of it is sent, and its status is not uploading".to_owned().into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(sender)
}

pub(super) async fn uploading(target: &Target) -> Result<(), Miss> {
    let content = Content::random(100_000);
    let mut sender = half_sent(target, &content).await?;
    let request = json!({ "files": [content.file("a")] });
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200])?;
    let listed = files(&answer.body)?;
    if listed.len() != 1 || listed[0]["status"] != "uploading" {
        return Err(format!("the requirements are {}", answer.text).into());
    }
    sender.body(&content.bytes[content.bytes.len() / 2..]).await?;
    sender.is(&[200, 204]).await?;
    Ok(has_status(target, &content, "stored").await?)
}

pub(super) async fn deferral(target: &Target) -> Result<(), Miss> {
    let content = Content::random(100_000);
    let mut sender = half_sent(target, &content).await?;
    let defers = format!("{}: true\r\n", wire::CAN_DEFER);
    let mut defers_to_it = Raw::connect(target).await?;
    defers_to_it.upload(&content.id, &defers).await?;
    defers_to_it.is(&[425]).await.map_err(|error| format!("one that can defer: {error}"))?;
    let mut others = Vec::new();
    for headers in [String::new(), format!("{}: False\r\n", wire::CAN_DEFER)] {
        let mut other = Raw::connect(target).await?;
        other.upload(&content.id, &headers).await?;
        other.body(&content.bytes).await?;
        // Most servers let it wait, and answer when the first one is done.
        other.answers_within(HASTE).await;
        others.push(other);
    }
    sender.body(&content.bytes[content.bytes.len() / 2..]).await?;
    sender.is(&[200, 204, 208]).await?;
    for mut other in others {
        let answer = other.is(&[200, 204, 208]).await;
        answer.map_err(|error| format!("one that cannot defer: {error}"))?;
    }
    Ok(has_status(target, &content, "stored").await?)
}

pub(super) async fn first_place(target: &Target) -> Result<(), String> {
    let (stored, one, other) = (Content::random(10), Content::random(11), Content::random(12));
    store(target, &stored).await?;
    // Composed and decomposed letters, which must not be made alike; a separator of Windows.
    let (first, second) = ("e\u{301} \u{e9}/\"quoted\" & #1%20.png", "dir\\windows.png");
    let request = json!({ "files": [
        one.file(first), stored.file("stored"), other.file(second), one.file("again"),
        other.file("again too"),
    ]});
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200])?;
    let listed = files(&answer.body)?;
    let mut expected = vec![one.file(first), other.file(second)];
    for file in &mut expected {
        file["status"] = json!("unknown");
    }
    let as_expected =
        listed.len() == expected.len() && expected.iter().all(|file| listed.contains(file));
    if as_expected { Ok(()) } else { Err(format!("listed are {}", answer.text)) }
}

pub(super) async fn suffix(target: &Target) -> Result<(), String> {
    let content = Content::random(30);
    store(target, &content).await?;
    let name = format!("farmhand-conformance-{}-suffix", target.run);
    let files = json!([content.file("a")]);
    create(target, &name, files.clone()).await?;
    for _ in 0..2 {
        let used = create(target, &name, files.clone()).await?;
        let suffix = used.strip_prefix(&format!("{name}-")).unwrap_or_default();
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if suffix.len() != 4 || !suffix.chars().all(good) {
            return Err(format!("it is {used:?}"));
        }
    }
    Ok(())
}

/// Requests a checkout of what is not there.
async fn create_missing(target: &Target) -> Result<super::target::Answer, String> {
    let name = format!("farmhand-conformance-{}-missing", target.run);
    let request = json!({ "checkoutPath": name, "files": [Content::random(40).file("a")] });
    target.post_json("checkout/create", &request).await
}

pub(super) async fn missing(target: &Target) -> Result<(), String> {
    create_missing(target).await?.is(&[424])
}

pub(super) async fn more_fields(target: &Target) -> Result<(), String> {
    let content = Content::random(20);
    store(target, &content).await?;
    let mut file = content.file("a");
    file["status"] = json!("unknown");
    file["farmhandConformance"] = json!({ "a": [null, 1.5] });
    let request = json!({
        "farmhandConformance": [{}], "files": [file],
        "checkoutPath": format!("farmhand-conformance-{}-more", target.run),
    });
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200]).map_err(|error| format!("requirements: {error}"))?;
    files(&answer.body)?;
    let answer = target.post_json("checkout/create", &request).await?;
    answer.is(&[200]).map_err(|error| format!("create: {error}"))
}

pub(super) async fn twice(target: &Target) -> Result<(), String> {
    let content = Content::random(20);
    store(target, &content).await?;
    let name = format!("farmhand-conformance-{}-twice", target.run);
    create(target, &name, json!([content.file("a"), content.file("a")])).await.map(drop)
}

pub(super) async fn error_bodies(target: &Target) -> Result<(), String> {
    let content = Content::random(100);
    let upper = content.id.digest.to_string().to_uppercase();
    let json = [("content-type", "application/json")];
    for (what, answer) in [
        (
            "no digest",
            target.send(Method::GET, &format!("files/{}/1", &upper[1..]), &[], Vec::new()).await?,
        ),
        ("other content", target.upload(&content.id, &[0; 100]).await?),
        ("another size", target.upload(&content.id, &content.bytes[1..]).await?),
        ("missing files", create_missing(target).await?),
        ("no JSON", target.send(Method::POST, "checkout/create", &json, b"{".to_vec()).await?),
    ] {
        let message = answer.body["message"].as_str().unwrap_or_default();
        if answer.body["code"] != answer.status.as_u16() || message.is_empty() {
            let status = answer.status.as_u16();
            return Err(format!("{what}: {status} with the body {:?}", answer.text));
        }
        if answer.kind != "application/json" {
            return Err(format!("{what}: the type is {:?}", answer.kind));
        }
    }
    Ok(())
}

pub(super) async fn content_types(target: &Target) -> Result<(), String> {
    let content = Content::random(20);
    store(target, &content).await?;
    let request = json!({
        "files": [content.file("a")],
        "checkoutPath": format!("farmhand-conformance-{}-types", target.run),
    });
    let headers = [("content-type", "application/json; charset=utf-8")];
    let post = |path| target.send(Method::POST, path, &headers, request.to_string().into_bytes());
    let status = format!("files/{}", content.id);
    for (what, answer) in [
        ("status", target.send(Method::GET, &status, &[], Vec::new()).await?),
        ("requirements", post("checkout/requirements").await?),
        ("create", post("checkout/create").await?),
    ] {
        answer.is(&[200]).map_err(|error| format!("{what}: {error}"))?;
        if answer.kind != "application/json" {
            return Err(format!("{what}: the type is {:?}", answer.kind));
        }
    }
    Ok(())
}

pub(super) async fn upper_case(target: &Target) -> Result<(), String> {
    let content = Content::random(1000);
    // A digest of digits alone has no case.
    let upper = content.id.digest.to_string().to_uppercase();
    let path = format!("files/{upper}/1000");
    let mut file = content.file("a");
    file["sha"] = json!(upper);
    let name = format!("farmhand-conformance-{}-upper", target.run);
    let request = json!({ "checkoutPath": name, "files": [file] });
    for (what, answer) in [
        ("status", target.send(Method::GET, &path, &[], Vec::new()).await?),
        ("upload", target.send(Method::POST, &path, &[], content.bytes.clone()).await?),
        ("requirements", target.post_json("checkout/requirements", &request).await?),
        ("create", target.post_json("checkout/create", &request).await?),
    ] {
        answer.is(&[400]).map_err(|error| format!("{what}: {error}"))?;
    }
    Ok(())
}

pub(super) async fn bad_sizes(target: &Target) -> Result<(), String> {
    let digest = Content::random(10).id.digest;
    for size in ["-1", "1.5", "ten", "99999999999999999999999"] {
        let answer =
            target.send(Method::GET, &format!("files/{digest}/{size}"), &[], Vec::new()).await?;
        answer.is(&[400]).map_err(|error| format!("{size}: {error}"))?;
    }
    Ok(())
}

pub(super) async fn bad_requests(target: &Target) -> Result<(), String> {
    let content = Content::random(10);
    let mut fraction = content.file("a");
    fraction["size"] = json!(10.5);
    let mut null = content.file("a");
    null["path"] = Value::Null;
    for (what, files) in [
        ("no list", json!({})),
        ("null", Value::Null),
        ("null in the list", json!([null])),
        ("half a byte", json!([fraction])),
        ("no path", json!([{ "sha": content.id.digest.to_string(), "size": 10 }])),
    ] {
        let name = format!("farmhand-conformance-{}-bad", target.run);
        let request = json!({ "checkoutPath": name, "files": files });
        for call in ["requirements", "create"] {
            let answer = target.post_json(&format!("checkout/{call}"), &request).await?;
            answer.is(&[400]).map_err(|error| format!("{call}, {what}: {error}"))?;
        }
    }
    Ok(())
}

pub(super) async fn folded(target: &Target) -> Result<(), Miss> {
    let content = Content::random(1000);
    let mut client = Raw::connect(target).await?;
    let name = wire::ORIGINAL_FILENAME;
    let header = format!("{name}: =?utf-8?q?a_long_?=\r\n =?utf-8?q?name=2Epng?=\r\n");
    client.upload(&content.id, &header).await?;
    client.body(&content.bytes).await?;
    client.is(&[200, 204]).await?;
    Ok(has_status(target, &content, "stored").await?)
}

pub(super) async fn heads(target: &Target) -> Result<(), Miss> {
    let content = Content::random(10);
    let mut client = Raw::connect(target).await?;
    client.head("HEAD", &format!("files/{}", content.id), "").await?;
    client.is(&[200, 405]).await?;
    match client.rest().await?.len() {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes come behind the head").into()),
    }
}

pub(super) async fn early(target: &Target) -> Result<(), Miss> {
    let body = vec![0; LARGE_BODY_BYTES];
    let content = Content::random(100);
    let digest = content.id.digest.to_string();
    for (path, expected) in
        [(format!("files/{}/1", &digest[1..]), 400), (format!("files/{}", content.id), 417)]
    {
        let mut client = Raw::connect(target).await?;
        client.head("POST", &path, &format!("Content-Length: {LARGE_BODY_BYTES}\r\n")).await?;
        client.body(&body).await?;
        client.is(&[expected]).await?;
    }
    Ok(())
}
