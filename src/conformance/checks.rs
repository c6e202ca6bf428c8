//! What must hold.

use std::pin::Pin;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Level, Miss,
    strict::*,
    target::{Content, Target},
};

type Run = for<'a> fn(&'a Target) -> Pin<Box<dyn Future<Output = Result<(), Miss>> + Send + 'a>>;

/// Something that must hold.
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// What it is for.
    pub level: Level,
    pub(super) run: Run,
}

macro_rules! checks {
    ($($level:ident $function:ident $name:literal)*) => {
        /// All checks, in the order in which they are run.
        pub const CHECKS: &[Check] = &[$(
            Check {
                name: $name,
                level: Level::$level,
                run: |target| Box::pin(async { $function(target).await.map_err(Miss::from) }),
            },
        )*];
    };
}

checks! {
    Core unknown "a blob nobody has sent is unknown"
    Core upload "an upload is stored, and then has the status stored"
    Core again "an upload of a stored blob is answered 208"
    Core large_again "so is a large one, and the answer is not lost while the client sends"
    Core empty "a file of zero bytes is a blob like any other"
    Core wrong_content "other content than the name says is answered 417 and not stored"
    Core wrong_size "another size than the name says is answered 417 and not stored"
    Core bad_digest "what is no digest is a client's error"
    Core all_required "requirements list what is unknown, each blob once, paths as they were sent"
    Core none_required "requirements do not list what is stored, and then are an empty list"
    Core extra_fields "fields that the protocol does not have are ignored"
    Core checkout "a checkout is created under the name wished for"
    Core taken "a name that is taken is answered with another one"
    Core incomplete "a checkout of missing files is refused"
    Core bad_json "what is no JSON is a client's error, with a code and a message"
    Core null_files "null for a list is a client's error"
    Strict no_content "an upload is answered 204"
    Strict known_at_once "an upload of a stored blob is answered 208 before its body comes"
    Strict empty_everywhere "a blob of zero bytes is stored, known, not required, and can be checked out"
    Strict uploading "a blob that is being sent has the status uploading, also in requirements"
    Strict deferral "425 is for those who said that they can defer, and only for them"
    Strict first_place "requirements list a blob by its first place, its path byte for byte"
    Strict suffix "a name that is taken gets four of a-z and 0-9 behind a hyphen"
    Strict missing "a checkout of missing files is answered 424"
    Strict more_fields "fields that the protocol does not have are ignored everywhere"
    Strict twice "the same file twice in a checkout counts once"
    Strict error_bodies "errors are JSON with a message, and the status as code"
    Strict content_types "answers are of the type application/json, and so may requests be, with a charset"
    Strict upper_case "a digest in upper case is answered 400"
    Strict bad_sizes "what is no size is answered 400"
    Strict bad_requests "what is no request of the protocol is answered 400"
    Strict folded "a header that is folded over two lines is accepted"
    Strict heads "HEAD is answered without a body"
    Strict early "an early answer is seen by those who send all of their body first"
    Hostile path_escapes "a file's path cannot leave the checkout"
    Hostile checkout_escapes "a checkout cannot leave the directory of checkouts"
    Hostile contradiction "one path with two contents is refused"
}

async fn unknown(target: &Target) -> Result<(), String> {
    has_status(target, &Content::random(100), "unknown").await
}

pub(super) async fn has_status(
    target: &Target,
    content: &Content,
    expected: &str,
) -> Result<(), String> {
    match target.status(&content.id).await? {
        status if status == expected => Ok(()),
        status => Err(format!("its status is {status}")),
    }
}

pub(super) async fn store(target: &Target, content: &Content) -> Result<(), String> {
    target.upload(&content.id, &content.bytes).await?.is(&[200, 204])
}

async fn upload(target: &Target) -> Result<(), String> {
    let content = Content::random(1000);
    store(target, &content).await?;
    has_status(target, &content, "stored").await
}

async fn again(target: &Target) -> Result<(), String> {
    let content = Content::random(1000);
    store(target, &content).await?;
    target.upload(&content.id, &content.bytes).await?.is(&[208])
}

async fn large_again(target: &Target) -> Result<(), String> {
    let content = Content::random(4 << 20);
    store(target, &content).await?;
    for _ in 0..5 {
        target.upload(&content.id, &content.bytes).await?.is(&[208])?;
    }
    Ok(())
}

async fn empty(target: &Target) -> Result<(), String> {
    let content = Content::new(Vec::new());
    target.upload(&content.id, &content.bytes).await?.is(&[200, 204, 208])?;
    has_status(target, &content, "stored").await
}

async fn wrong_content(target: &Target) -> Result<(), String> {
    let mut content = Content::random(1000);
    content.bytes[500] ^= 1;
    target.upload(&content.id, &content.bytes).await?.is(&[417])?;
    has_status(target, &content, "unknown").await
}

async fn wrong_size(target: &Target) -> Result<(), String> {
    for more in [true, false] {
        let mut content = Content::random(1000);
        if more {
            content.bytes.push(0);
        } else {
            content.bytes.pop();
        }
        target.upload(&content.id, &content.bytes).await?.is(&[417])?;
        has_status(target, &content, "unknown").await?;
    }
    Ok(())
}

async fn bad_digest(target: &Target) -> Result<(), String> {
    let digest = Content::random(10).id.digest.to_string();
    for bad in [&digest[1..], &format!("{}x", &digest[1..])] {
        let answer = target.send(Method::GET, &format!("files/{bad}/10"), &[], Vec::new()).await?;
        answer.is_client_error().map_err(|error| format!("{bad}: {error}"))?;
    }
    Ok(())
}

pub(super) fn files(answer: &Value) -> Result<&Vec<Value>, String> {
    answer["files"].as_array().ok_or_else(|| format!("files is no list: {answer}"))
}

async fn all_required(target: &Target) -> Result<(), String> {
    let (stored, one, other) = (Content::random(10), Content::random(11), Content::random(12));
    store(target, &stored).await?;
    let path = "текстуры/a \u{1f9f6} #1 & (2).png";
    let request = json!({ "files": [
        stored.file("stored"), one.file(path), one.file("the same again"), other.file("other")
    ]});
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200])?;
    let listed = files(&answer.body)?;
    if listed.len() != 2 {
        return Err(format!("{} files instead of 2: {}", listed.len(), answer.text));
    }
    for (content, paths) in [(&one, &[path, "the same again"][..]), (&other, &["other"])] {
        let digest = content.id.digest.to_string();
        let found = listed.iter().find(|file| file["sha"] == *digest).ok_or("one is not listed")?;
        if found["size"] != content.id.size_bytes || found["status"] != "unknown" {
            return Err(format!("listed as {found}"));
        }
        if !paths.iter().any(|path| found["path"] == **path) {
            return Err(format!("the path comes back as {}", found["path"]));
        }
    }
    Ok(())
}

async fn none_required(target: &Target) -> Result<(), String> {
    let content = Content::random(20);
    store(target, &content).await?;
    for request in [json!({ "files": [content.file("a")] }), json!({ "files": [] })] {
        let answer = target.post_json("checkout/requirements", &request).await?;
        answer.is(&[200])?;
        if !files(&answer.body)?.is_empty() {
            return Err(format!("it asks for {}", answer.text));
        }
    }
    Ok(())
}

async fn extra_fields(target: &Target) -> Result<(), String> {
    let request = json!({ "files": [], "farmhandConformance": { "a": [1] } });
    let answer = target.post_json("checkout/requirements", &request).await?;
    answer.is(&[200])?;
    files(&answer.body).map(drop)
}

pub(super) async fn create(target: &Target, name: &str, files: Value) -> Result<String, String> {
    let request = json!({ "checkoutPath": name, "files": files });
    let answer = target.post_json("checkout/create", &request).await?;
    answer.is(&[200])?;
    match answer.body["checkoutPath"].as_str() {
        Some(path) if !path.is_empty() => Ok(path.to_owned()),
        _ => Err(format!("no checkoutPath in {}", answer.text)),
    }
}

async fn checkout(target: &Target) -> Result<(), String> {
    let content = Content::random(30);
    store(target, &content).await?;
    let name = format!("farmhand-conformance-{}", target.run);
    let files = json!([content.file("dir/a.bin"), content.file("b.bin")]);
    match create(target, &name, files).await? {
        used if used == name => Ok(()),
        used => Err(format!("it is {used:?} instead of {name:?}")),
    }
}

async fn taken(target: &Target) -> Result<(), String> {
    let content = Content::random(30);
    store(target, &content).await?;
    // Made by the check before this one.
    let name = format!("farmhand-conformance-{}", target.run);
    match create(target, &name, json!([content.file("a")])).await? {
        used if used != name && used.starts_with(&name) => Ok(()),
        used => Err(format!("it is {used:?}")),
    }
}

async fn incomplete(target: &Target) -> Result<(), String> {
    let name = format!("farmhand-conformance-{}-incomplete", target.run);
    let request = json!({ "checkoutPath": name, "files": [Content::random(40).file("a")] });
    target.post_json("checkout/create", &request).await?.is(&[424, 500])
}

async fn bad_json(target: &Target) -> Result<(), String> {
    let headers = [("content-type", "application/json")];
    for body in ["{\"files\": [", "[]", "{}"] {
        let body = body.as_bytes().to_vec();
        let answer = target.send(Method::POST, "checkout/requirements", &headers, body).await?;
        answer.is_client_error()?;
        if answer.body["code"] != answer.status.as_u16() || !answer.body["message"].is_string() {
            return Err(format!("no code and message in {:?}", answer.text));
        }
    }
    Ok(())
}

async fn null_files(target: &Target) -> Result<(), String> {
    let request = json!({ "files": null });
    target.post_json("checkout/requirements", &request).await?.is_client_error()
}

async fn path_escapes(target: &Target) -> Result<(), String> {
    let content = Content::random(50);
    store(target, &content).await?;
    for (number, path) in [
        "../farmhand-escaped",
        "a/../../farmhand-escaped",
        "/tmp/farmhand-escaped",
        "a//b",
        "",
        ".",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("farmhand-conformance-{}-hostile-{number}", target.run);
        let request = json!({ "checkoutPath": name, "files": [content.file(path)] });
        let answer = target.post_json("checkout/create", &request).await?;
        answer.is_client_error().map_err(|error| format!("{path:?}: {error}"))?;
    }
    Ok(())
}

async fn checkout_escapes(target: &Target) -> Result<(), String> {
    let content = Content::random(60);
    store(target, &content).await?;
    for name in
        ["", ".", "..", "a/..", "../farmhand-escaped", "/tmp/farmhand-escaped", "a//b", "a/"]
    {
        let request = json!({ "checkoutPath": name, "files": [content.file("a")] });
        let answer = target.post_json("checkout/create", &request).await?;
        answer.is_client_error().map_err(|error| format!("{name:?}: {error}"))?;
    }
    Ok(())
}

async fn contradiction(target: &Target) -> Result<(), String> {
    let (one, other) = (Content::random(70), Content::random(71));
    store(target, &one).await?;
    store(target, &other).await?;
    for files in
        [json!([one.file("a"), other.file("a")]), json!([one.file("a"), other.file("a/b")])]
    {
        let name = format!("farmhand-conformance-{}-contradiction", target.run);
        let request = json!({ "checkoutPath": name, "files": files });
        target.post_json("checkout/create", &request).await?.is_client_error()?;
    }
    Ok(())
}
