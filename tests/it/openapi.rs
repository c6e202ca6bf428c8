//! The OpenAPI document says what the server does: no more routes, no fewer, and answers as described.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use farmhand::{
    jobs::JobStatus,
    server::{Access, Anonymous, FarmOptions, Hook, Options, Scope, Token, Tokens},
};
use serde_json::{Value, json};

use super::common::*;

const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];

fn document(server: &TestServer) -> Value {
    let answer = server.connect().get("/api/v3/openapi3.json");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json\r\n"), "{}", answer.head);
    answer.json()
}

/// All (path, method, operation).
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    all.collect()
}

/// Calls `seen` with everything that is anywhere below a key of this name.
fn each<'a>(value: &'a Value, key: &str, seen: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    seen(value);
                }
                each(value, key, seen);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| each(item, key, seen)),
        _ => {}
    }
}

#[test]
fn it_is_well_formed_and_has_the_names_that_clients_generate_code_from() {
    let server = TestServer::with_farm(FarmOptions::default());
    let document = document(&server);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut refs = BTreeSet::new();
    each(&document, "$ref", &mut |target| {
        let target = target.as_str().unwrap();
        let found = document.pointer(target.strip_prefix('#').unwrap());
        assert!(found.is_some_and(Value::is_object), "{target} is not there");
        refs.insert(target.rsplit('/').next().unwrap());
    });
    let schemas: BTreeSet<_> =
        document["components"]["schemas"].as_object().unwrap().keys().map(String::as_str).collect();
    // The reports of long operations are named, and written out in the lines of their answers.
    let unnamed: Vec<_> = schemas.difference(&refs).collect();
    assert_eq!(unnamed, [&"GcReport", &"ScrubReport", &"VerifyReport"]);
    for name in [
        "Error",
        "ShamanCheckout",
        "ShamanCheckoutResult",
        "ShamanFileSpec",
        "ShamanFileSpecWithStatus",
        "ShamanFileStatus",
        "ShamanRequirementsRequest",
        "ShamanRequirementsResponse",
        "ShamanSingleFileStatus",
        "AvailableJobType",
        "AvailableJobTypes",
        "FarmStatusReport",
        "FlamencoVersion",
        "Job",
        "JobDeletionInfo",
        "JobPriorityChange",
        "JobStatus",
        "JobStatusChange",
        "JobsQueryResult",
        "ManagerConfiguration",
        "SharedStorageLocation",
        "SubmittedJob",
        "WorkerTagList",
    ] {
        assert!(schemas.contains(name), "{name}");
    }
    let mut ids = BTreeMap::new();
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert_eq!(ids.insert(id, (path, method)), None, "{id} is there twice");
        let named: BTreeSet<_> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| {
                assert_eq!(parameter["required"], true);
                parameter["name"].as_str().unwrap()
            })
            .collect();
        let in_path: BTreeSet<_> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(named, in_path, "{path}");
        for (code, answer) in operation["responses"].as_object().unwrap() {
            assert!((200..600).contains(&code.parse::<u16>().unwrap()), "{code}");
            assert!(!answer["description"].as_str().unwrap().is_empty());
        }
    }
    for (id, path, method) in [
        ("shamanFileStoreCheck", "/api/v3/shaman/files/{sha}/{size}", "get"),
        ("shamanFileStore", "/api/v3/shaman/files/{sha}/{size}", "post"),
        ("shamanCheckoutRequirements", "/api/v3/shaman/checkout/requirements", "post"),
        ("shamanCheckout", "/api/v3/shaman/checkout/create", "post"),
        ("submitJob", "/api/v3/jobs", "post"),
        ("submitJobCheck", "/api/v3/jobs/check", "post"),
        ("getJobTypes", "/api/v3/jobs/types", "get"),
        ("getVersion", "/api/v3/version", "get"),
    ] {
        assert_eq!(ids[id], (path, method));
    }
}

#[test]
fn it_lists_what_is_served_and_nothing_else() {
    let server = TestServer::with_farm(FarmOptions::default());
    let document = document(&server);
    let content = random(10);
    // What is not there is 404, too.
    assert_eq!(server.upload(&content).status, 204);
    for (path, item) in document["paths"].as_object().unwrap() {
        let job = server.api("POST", "jobs", a_job()).json()["id"].as_str().unwrap().to_owned();
        let real = path.replace("{sha}", &sha(&content)).replace("{size}", "10");
        let real = real.replace("{audience}", "users").replace("{platform}", "linux");
        let real = real.replace("{name}", "simple-blender-render").replace("{id}", &job);
        if path.contains("/tasks/") {
            // There are none without a command; their answers are looked at elsewhere.
            continue;
        }
        // For parameters of routes that are still to come.
        let real: Vec<_> =
            real.split('/').map(|part| if part.starts_with('{') { "1" } else { part }).collect();
        let real = real.join("/");
        for method in METHODS {
            let mut connection = server.connect();
            let head = post_head(&real, "", 0);
            let text = String::from_utf8(head).unwrap();
            connection.send(text.replacen("POST", &method.to_uppercase(), 1).as_bytes());
            let status = connection.answer().status;
            if item.get(method).is_some() {
                assert!(!matches!(status, 404 | 405), "{method} {real} is listed: {status}");
            } else {
                assert_eq!(status, 405, "{method} {real} is not listed");
            }
        }
    }
    // What is not listed cannot be asked for; so no route may be registered beside the list.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap());
    for file in entries.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()) {
        let source = fs::read_to_string(&file).unwrap();
        for way in [".route(", ".route_service(", ".nest_service("] {
            assert!(!source.contains(way), "{}: {way} leaves the list out", file.display());
        }
    }
}

fn is_a(kind: &Value, value: &Value) -> Result<bool, String> {
    Ok(match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => return Err(format!("unknown type {other}")),
    })
}

/// All fields of an object that is described in parts, and whether they must be there.
fn flatten(document: &Value, schema: &Value, whole: &mut Value) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let target = part["$ref"].as_str().map(|target| document.pointer(&target[1..]).unwrap());
        flatten(document, target.unwrap_or(part), whole);
    }
    let fields = schema["properties"].as_object().into_iter().flatten();
    whole["properties"]
        .as_object_mut()
        .unwrap()
        .extend(fields.map(|(name, schema)| (name.clone(), schema.clone())));
    let required = schema["required"].as_array().into_iter().flatten();
    whole["required"].as_array_mut().unwrap().extend(required.cloned());
    // Any fields at all.
    if schema.get("properties").is_none() && schema.get("allOf").is_none() {
        whole["additionalProperties"] = json!({});
    }
}

/// Whether a value is as a schema says; knows what our schemas use, and fails on anything else.
fn matches(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (keyword, says) in schema.as_object().ok_or("no schema")? {
        let holds = match keyword.as_str() {
            "$ref" => {
                let target = document.pointer(&says.as_str().unwrap()[1..]).unwrap();
                matches(document, target, value)?;
                true
            }
            "type" => {
                let one = std::slice::from_ref(says);
                let kinds = says.as_array().map_or(one, Vec::as_slice).iter();
                kinds.map(|kind| is_a(kind, value)).collect::<Result<Vec<_>, _>>()?.contains(&true)
            }
            "required" => says
                .as_array()
                .unwrap()
                .iter()
                .all(|name| value.get(name.as_str().unwrap()).is_some()),
            "properties" => {
                let known = says.as_object().unwrap();
                for (name, value) in value.as_object().ok_or("no object")? {
                    let schema = match known.get(name) {
                        Some(schema) => schema,
                        None if schema.get("additionalProperties").is_some() => continue,
                        None => return Err(format!("{name} is not described")),
                    };
                    matches(document, schema, value).map_err(|error| format!("{name}: {error}"))?;
                }
                true
            }
            // The parts of one object: each knows its own fields only.
            "allOf" => {
                let mut whole = json!({ "properties": {}, "required": [] });
                flatten(document, schema, &mut whole);
                matches(document, &whole, value)?;
                true
            }
            "additionalProperties" => {
                let known = schema["properties"].as_object();
                let fields = value.as_object().ok_or("no object")?.iter();
                for (name, value) in
                    fields.filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)))
                {
                    matches(document, says, value).map_err(|error| format!("{name}: {error}"))?;
                }
                true
            }
            "propertyNames" => true,
            "items" => {
                for item in value.as_array().ok_or("no list")? {
                    matches(document, says, item)?;
                }
                true
            }
            "oneOf" => {
                let one = says.as_array().unwrap().iter();
                one.filter(|schema| matches(document, schema, value).is_ok()).count() == 1
            }
            "enum" => says.as_array().unwrap().contains(value),
            "minimum" => value.as_f64() >= says.as_f64(),
            "pattern" => {
                assert_eq!(says, "^[0-9a-f]{64}$");
                value.as_str().is_some_and(|text| text.parse::<farmhand::domain::Digest>().is_ok())
            }
            "description" | "format" | "default" => true,
            other => return Err(format!("unknown keyword {other}")),
        };
        if !holds {
            return Err(format!("{value} is not {keyword} {says}"));
        }
    }
    Ok(())
}

/// The answers of a server, held against its document.
struct Checked<'a> {
    document: &'a Value,
    /// (operation, code) that have been seen.
    seen: BTreeSet<(String, String)>,
}

impl Checked<'_> {
    #[track_caller]
    fn check(&mut self, operation: &str, answer: &Answer) {
        let described = operations(self.document)
            .into_iter()
            .find(|(_, _, described)| described["operationId"] == operation);
        let responses = &described.unwrap().2["responses"];
        let code = answer.status.to_string();
        let response = responses.get(&code).unwrap_or_else(|| panic!("{operation}: {answer:?}"));
        self.seen.insert((operation.to_owned(), code));
        let kind = answer
            .head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
        let Some(content) = response.get("content") else {
            assert_eq!((kind, answer.body.len()), (None, 0), "{operation}");
            return;
        };
        let (described, schema) = content.as_object().unwrap().iter().next().unwrap();
        assert_eq!(kind.unwrap().split(';').next().unwrap(), described, "{operation}");
        if described == "application/json" {
            matches(self.document, &schema["schema"], &answer.json()).unwrap();
        }
        if described == "application/x-ndjson" {
            let text = std::str::from_utf8(&answer.body).unwrap();
            assert!(text.ends_with('\n'));
            for line in text.lines() {
                let line = serde_json::from_str(line).unwrap();
                matches(self.document, &schema["schema"], &line).unwrap();
            }
        }
        if answer.status >= 400 {
            assert_eq!(answer.json()["code"], answer.status);
        }
    }
}

#[test]
fn answers_are_as_it_describes_them() {
    // Tokens of one scope each; without any, everything is allowed.
    let mut tokens = Tokens::default();
    for scope in [Scope::Read, Scope::Checkout] {
        let text = format!("{scope}-token");
        let token = Token::new(scope.name(), [scope].into_iter().collect(), &text).unwrap();
        tokens.add(token).unwrap();
    }
    let options = Options {
        access: Arc::new(Access::new(Anonymous::Loopback, tokens)),
        body_timeout: Duration::from_millis(100),
        max_files: 10,
        max_json_bytes: 1 << 20,
        ..Options::default()
    };
    let server = TestServer::with(options);
    let document = document(&server);
    let mut checked = Checked { document: &document, seen: BTreeSet::new() };
    for (operation, path) in [
        ("getOpenAPI", "/api/v3/openapi3.json"),
        ("getHealth", "/healthz"),
        ("getReadiness", "/readyz"),
        ("getMetrics", "/metrics"),
    ] {
        checked.check(operation, &server.connect().get(path));
    }
    let (content, other) = (random(1000), random(2000));
    let at = |content: &[u8]| format!("/api/v3/shaman/files/{}", address(content));
    let ask = |path: &str| server.connect().get(path);
    checked.check("shamanFileStoreCheck", &ask(&at(&content)));
    for _ in 0..2 {
        checked.check("shamanFileStore", &server.upload(&content));
    }
    checked.check("shamanFileStoreCheck", &ask(&at(&content)));
    checked.check("shamanFileStoreCheck", &ask("/api/v3/shaman/files/short/1"));
    let wrong = server.connect().post(&at(&other), "", &content);
    checked.check("shamanFileStore", &wrong);
    checked.check("shamanFileStore", &server.connect().post("/api/v3/shaman/files/x/1", "", b"x"));

    let files = json!([file(&content, "a"), file(&other, "b")]);
    let required = server.post_json("checkout/requirements", &json!({ "files": files, "more": 1 }));
    assert_eq!(required.json()["files"].as_array().unwrap().len(), 1);
    checked.check("shamanCheckoutRequirements", &required);
    let many: Vec<_> = (0..11).map(|i| file(&content, &i.to_string())).collect();
    let create = |path: &str, files: Value| {
        let body = json!({ "checkoutPath": path, "files": files });
        server.post_json("checkout/create", &body)
    };
    checked.check("shamanCheckout", &create("x", files));
    checked.check("shamanCheckout", &create("x", json!([file(&content, "a")])));
    checked.check("shamanCheckout", &create("x/y", json!([])));
    checked.check("shamanCheckout", &create("..", json!([])));
    checked.check("shamanCheckout", &create("x", json!(many)));
    let body = json!({ "files": many });
    checked.check("shamanCheckoutRequirements", &server.post_json("checkout/requirements", &body));
    for (operation, call) in
        [("shamanCheckoutRequirements", "requirements"), ("shamanCheckout", "create")]
    {
        checked.check(operation, &server.post_json(&format!("checkout/{call}"), &json!({})));
        let path = format!("/api/v3/shaman/checkout/{call}");
        checked.check(operation, &server.connect().post(&path, "", b"{}"));
        let mut silent = server.connect();
        silent.send(&post_head(&path, "Content-Type: application/json\r\n", 10));
        checked.check(operation, &silent.answer());
    }

    // Somebody else sends it, and then stands still.
    let mut sender = server.connect();
    sender.half_upload(&other, "");
    server.until_status(&other, "uploading");
    let defers = "X-Shaman-Can-Defer-Upload: True\r\nUser-Agent: somebody\r\n";
    checked.check("shamanFileStore", &server.connect().upload(&other, defers));
    checked.check("shamanFileStore", &sender.answer());
    // More than any disk has.
    let mut huge = server.connect();
    let size = 1_u64 << 60;
    huge.send(&post_head(&format!("/api/v3/shaman/files/{}/{size}", sha(b"x")), "", size));
    checked.check("shamanFileStore", &huge.answer());
    extension(&server, &mut checked);
    refusals(&server, &mut checked);
    administration(&server, &mut checked);
    // A disk in more disorder.
    let prefix = server.storage().join("file-store/stored").join(&sha(&other)[..2]);
    if fs::remove_dir(&prefix).is_err() {
        fs::remove_dir_all(&prefix).unwrap();
    }
    fs::write(&prefix, "no directory").unwrap();
    let files = json!([file(&other, "a")]);
    checked.check("shamanFileStoreCheck", &ask(&at(&other)));
    checked.check("shamanFileStore", &server.upload(&other));
    let body = json!({ "files": files });
    checked.check("shamanCheckoutRequirements", &server.post_json("checkout/requirements", &body));
    checked.check("shamanCheckout", &create("z", files));
    checked.check("downloadBlob", &ask(&format!("/farmhand/v1/blobs/{}", address(&other))));
    let begin = format!("/farmhand/v1/unfinished/{}", address(&other));
    checked.check("beginUnfinished", &server.connect().post(&begin, SENDER, b""));
    // No room.
    let reserve = farmhand::store::Reserve::Percent(100.0);
    let full = farmhand::store::Options { reserve, ..Default::default() };
    let full = TestServer::with_store(Options::default(), full);
    checked.check("getReadiness", &full.connect().get("/readyz"));

    // Every code that is described has been seen, but for these: they need a full disk, minutes, a
    // Manager, or a server that stops.
    let unseen: Vec<_> = operations(&document)
        .into_iter()
        .flat_map(|(_, _, operation)| {
            let id = operation["operationId"].as_str().unwrap();
            let codes = operation["responses"].as_object().unwrap().keys();
            codes.map(move |code| (id.to_owned(), code.clone()))
        })
        .filter(|described| !checked.seen.contains(described))
        .map(|(operation, code)| format!("{operation} {code}"))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(
        unseen,
        [
            "abandonUnfinished 500",
            "beginUnfinished 409",
            "collectGarbage 503",
            "finishUnfinished 500",
            "finishUnfinished 507",
            "layUnfinished 500",
            "layUnfinished 507",
            "sendBatch 500",
            "sendUnfinished 425",
            "sendUnfinished 500",
            "sendUnfinished 507",
            "shamanCheckout 412",
            "shamanCheckout 503",
            "shamanCheckout 507",
            "shamanCheckoutRequirements 503"
        ]
    );
}

const SENDER: &str = "X-Farmhand-Sender: me\r\n";

/// What farmhand speaks beside Shaman.
fn extension(server: &TestServer, checked: &mut Checked<'_>) {
    let (content, piece) = (random(2000), |content: &[u8], offset: u64| {
        let id = farmhand::domain::ChunkId::of(content);
        let length = (content.len() as u32).to_le_bytes();
        [&id.as_bytes()[..], &offset.to_le_bytes(), &length, &length, content].concat()
    });
    let entry = |content: &[u8]| {
        let id = farmhand::domain::ChunkId::of(content);
        [&id.as_bytes()[..], &(content.len() as u32).to_le_bytes()].concat()
    };
    let path = format!("/farmhand/v1/unfinished/{}", address(&content));
    let post = |headers: &str, what: &str, body: &[u8]| {
        server.connect().post(&format!("{path}{what}"), headers, body)
    };
    let silent = |path: &str| {
        let mut silent = server.connect();
        silent.send(&post_head(path, SENDER, 10));
        silent.answer()
    };
    let delete = |headers: &str| {
        let mut connection = server.connect();
        let head = format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        connection.send(head.as_bytes());
        connection.answer()
    };
    checked.check("getCapabilities", &server.connect().get("/farmhand/v1/capabilities"));
    let long = vec![0; 700_000];
    for body in [&entry(b"x")[..], b"x", &long] {
        let answer = server.connect().post("/farmhand/v1/chunks/known", "", body);
        checked.check("countKnownChunks", &answer);
    }
    checked.check("countKnownChunks", &silent("/farmhand/v1/chunks/known"));
    for headers in [SENDER, ""] {
        checked.check("abandonUnfinished", &delete(headers));
    }
    let (half, rest) = content.split_at(1000);
    for (operation, what, body) in [
        ("layUnfinished", "/recipe?offset=0", entry(half)),
        ("sendUnfinished", "/chunks", piece(half, 0)),
        ("finishUnfinished", "/finish", Vec::new()),
    ] {
        checked.check(operation, &post(SENDER, what, &body));
    }
    for headers in [SENDER, "X-Farmhand-Sender: other\r\n", ""] {
        checked.check("beginUnfinished", &post(headers, "", b""));
    }
    for body in [entry(half), b"x".to_vec(), long] {
        checked.check("layUnfinished", &post(SENDER, "/recipe?offset=0", &body));
    }
    checked.check("layUnfinished", &silent(&format!("{path}/recipe?offset=0")));
    for body in [piece(half, 0), piece(rest, 0), b"x".to_vec(), vec![0; 65 << 20]] {
        checked.check("sendUnfinished", &post(SENDER, "/chunks", &body));
    }
    let mut wrong = piece(half, 0);
    wrong[0] ^= 1;
    checked.check("sendUnfinished", &post(SENDER, "/chunks", &wrong));
    checked.check("layUnfinished", &post(SENDER, "/recipe?offset=0", &entry(rest)));
    for headers in [SENDER, ""] {
        checked.check("finishUnfinished", &post(headers, "/finish", b""));
    }
    checked.check("abandonUnfinished", &delete(SENDER));
    for (second, code) in [(half, 417), (rest, 204), (rest, 208)] {
        if code < 208 || code == 417 {
            checked.check("beginUnfinished", &post(SENDER, "", b""));
            let both = [piece(half, 0), piece(second, 1000)].concat();
            checked.check("sendUnfinished", &post(SENDER, "/chunks", &both));
        }
        let finished = post(SENDER, "/finish", b"");
        assert_eq!(finished.status, code);
        checked.check("finishUnfinished", &finished);
    }
    checked.check("beginUnfinished", &post(SENDER, "", b""));
    // More than any disk has.
    let huge = format!("/farmhand/v1/unfinished/{}/{}", sha(b"x"), 1_u64 << 60);
    checked.check("beginUnfinished", &server.connect().post(&huge, SENDER, b""));
    // One that goes on with its silence.
    let begun = random(10);
    let path = format!("/farmhand/v1/unfinished/{}", address(&begun));
    checked.check("beginUnfinished", &server.connect().post(&path, SENDER, b""));
    checked.check("sendUnfinished", &silent(&format!("{path}/chunks")));
    for body in [&b""[..], b"x", &vec![0; 17 << 20]] {
        checked.check("sendBatch", &server.connect().post("/farmhand/v1/batch", "", body));
    }
    checked.check("sendBatch", &silent("/farmhand/v1/batch"));
}

fn a_job() -> Value {
    json!({
        "name": "x", "type": "simple-blender-render", "priority": 50, "submitter_platform": "linux",
        "settings": { "frames": "1", "blendfile": "x.blend" },
    })
}

#[test]
fn answers_about_jobs_are_as_it_describes_them() {
    let command = ["/bin/sh", "-c", "echo said; cat > /dev/null"].map(str::to_owned).to_vec();
    let hook = Hook { command, timeout: PATIENCE, parallel: 1, then: JobStatus::Completed };
    let server = TestServer::with_farm(FarmOptions { hook: Some(hook), ..FarmOptions::default() });
    let document = document(&server);
    let mut checked = Checked { document: &document, seen: BTreeSet::new() };
    let ask = |path: &str| server.api("GET", path, Value::Null);
    for (operation, path) in [
        ("getVersion", "version"),
        ("getFarmStatus", "status"),
        ("getConfiguration", "configuration"),
        ("getSharedStorage", "configuration/shared-storage/users/linux"),
        ("getSharedStorage", "configuration/shared-storage/users/x"),
        ("getVariables", "configuration/variables/users/linux"),
        ("getVariables", "configuration/variables/x/linux"),
        ("fetchWorkerTags", "worker-mgt/tags"),
        ("getJobTypes", "jobs/types"),
        ("getJobType", "jobs/type/simple-blender-render"),
        ("getJobType", "jobs/type/x"),
        ("fetchTask", "tasks/mass-delete"),
    ] {
        checked.check(operation, &ask(path));
    }
    let tag = server.api("POST", "worker-mgt/tags", json!({ "name": "gpu" }));
    checked.check("createWorkerTag", &tag);
    let mut stale = a_job();
    stale["type_etag"] = "stale".into();
    let mut paused = a_job();
    paused["initial_status"] = "paused".into();
    for (operation, path) in [("submitJobCheck", "jobs/check"), ("submitJob", "jobs")] {
        for job in [&paused, &stale, &json!({})] {
            checked.check(operation, &server.api("POST", path, job.clone()));
        }
        let path = format!("/api/v3/{path}");
        checked.check(operation, &server.connect().post(&path, "", b"{}"));
        let mut long = server.connect();
        long.send(&post_head(&path, "Content-Type: application/json\r\n", 1 << 40));
        checked.check(operation, &long.answer());
    }
    let jobs = ask("jobs");
    checked.check("fetchJobs", &jobs);
    let id = jobs.json()["jobs"][0]["id"].as_str().unwrap().to_owned();
    checked.check("fetchTaskLogTail", &ask(&format!("tasks/{id}/logtail")));
    for id in [id.as_str(), "none", "mass-delete"] {
        for (operation, path) in [
            ("fetchJob", format!("jobs/{id}")),
            ("deleteJobWhatWouldItDo", format!("jobs/{id}/what-would-delete-do")),
            ("fetchJobTasks", format!("jobs/{id}/tasks")),
        ] {
            checked.check(operation, &ask(&path));
        }
        for (operation, path, body) in [
            ("setJobPriority", "setpriority", json!({ "priority": 60 })),
            ("setJobPriority", "setpriority", json!({ "priority": 600 })),
            ("setJobPriority", "setpriority", json!({})),
            ("setJobStatus", "setstatus", json!({ "status": "under-construction" })),
            ("setJobStatus", "setstatus", json!({ "status": "x" })),
            ("setJobStatus", "setstatus", json!({ "status": "queued", "reason": "now" })),
        ] {
            let path = format!("jobs/{id}/{path}");
            checked.check(operation, &server.api("POST", &path, body));
            checked.check(operation, &server.connect().post(&format!("/api/v3/{path}"), "", b"{}"));
        }
    }
    until(|| ask(&format!("jobs/{id}")).json()["status"] == "completed");
    checked.check("fetchJob", &ask(&format!("jobs/{id}")));
    checked.check("fetchTask", &ask(&format!("tasks/{id}")));
    checked.check("fetchTask", &ask("tasks/none"));
    checked.check("fetchTaskLogTail", &ask(&format!("tasks/{id}/logtail")));
    checked.check("fetchTaskLogTail", &ask("tasks/none/logtail"));
    checked.check("fetchJobTasks", &ask(&format!("jobs/{id}/tasks")));
    for id in [id.as_str(), "none", "mass-delete"] {
        let path = format!("jobs/{id}");
        checked.check("deleteJob", &server.api("DELETE", &path, Value::Null));
    }
    // All operations on jobs have done what they are for, at least once.
    for (_, _, operation) in operations(&document) {
        if operation["tags"] == json!(["farm"]) {
            let id = operation["operationId"].as_str().unwrap();
            let did = checked.seen.iter().any(|(seen, code)| seen == id && code.starts_with('2'));
            // That one is there to say that it is for a Manager.
            assert!(did || id == "createWorkerTag", "{id}");
        }
    }
}

/// Everything below `/farmhand/v1`, done, done wrongly, and with a disk in disorder.
fn administration(server: &TestServer, checked: &mut Checked) {
    let ask = |method: &str, path: &str| server.admin(method, path, Value::Null);
    let short = "0".repeat(63);
    let sha = sha(b"whatever");
    let (blob, pin) = (format!("blobs/{sha}"), format!("pins/{sha}"));
    let (bad_blob, bad_pin) = (format!("blobs/{short}"), format!("pins/{short}"));
    let posts = [("collectGarbage", "gc"), ("scrubStore", "scrub"), ("verifyCheckouts", "verify")];

    assert_eq!(server.upload(b"whatever").status, 204);
    let files = json!([file(b"whatever", "a")]);
    for path in ["in/folder", "gone"] {
        let body = json!({ "checkoutPath": path, "files": files });
        assert_eq!(server.post_json("checkout/create", &body).status, 200);
    }
    checked.check("listCheckouts", &ask("GET", "checkouts"));
    checked.check("getUsage", &ask("GET", "usage"));
    for (path, status) in [("path=gone", 200), ("path=in", 404), ("path=..", 400), ("", 400)] {
        let answer = ask("GET", &format!("checkouts/manifest?{path}"));
        assert_eq!(answer.status, status);
        checked.check("getManifest", &answer);
    }
    let own = server.storage().join("jobs/gone/own");
    fs::write(&own, "of its own").unwrap();
    checked.check("getManifest", &ask("GET", "checkouts/manifest?path=gone"));
    fs::remove_file(&own).unwrap();
    for (blob, headers, status) in [
        (&format!("{blob}/8"), "", 200),
        (&format!("{blob}/8"), "Range: bytes=3-\r\n", 206),
        (&format!("{blob}/8"), "If-None-Match: *\r\n", 304),
        (&format!("{blob}/8"), "Range: bytes=8-\r\n", 416),
        (&format!("{blob}/9"), "", 404),
        (&format!("{bad_blob}/8"), "", 400),
    ] {
        let mut connection = server.connect();
        let head = format!("GET /farmhand/v1/{blob} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        connection.send(head.as_bytes());
        let answer = connection.answer();
        assert_eq!(answer.status, status);
        checked.check("downloadBlob", &answer);
    }
    checked.check("whyBlob", &ask("GET", &blob));
    checked.check("whyBlob", &ask("GET", &bad_blob));
    checked.check("pinBlob", &ask("PUT", &pin));
    checked.check("pinBlob", &ask("PUT", &bad_pin));
    checked.check("listPins", &ask("GET", "pins"));
    checked.check("unpinBlob", &ask("DELETE", &pin));
    checked.check("unpinBlob", &ask("DELETE", &bad_pin));
    checked.check("eraseCheckout", &ask("DELETE", "checkouts?path=gone"));
    for (path, status) in [("?path=gone", 404), ("", 400), ("?path=..", 400), ("?path=in", 409)] {
        let answer = ask("DELETE", &format!("checkouts{path}"));
        assert_eq!(answer.status, status);
        checked.check("eraseCheckout", &answer);
    }
    for (operation, path) in posts {
        checked.check(operation, &server.admin("POST", path, json!({})));
        checked.check(operation, &server.admin("POST", path, json!({ "what": 1 })));
        let path = format!("/farmhand/v1/{path}");
        checked.check(operation, &server.connect().post(&path, "", b"{}"));
        let json = "Content-Type: application/json\r\n";
        let mut silent = server.connect();
        silent.send(&post_head(&path, json, 10));
        checked.check(operation, &silent.answer());
        let mut long = server.connect();
        long.send(&post_head(&path, json, 2 << 20));
        checked.check(operation, &long.answer());
    }
    let unknown = json!({ "checkout": "unknown" });
    checked.check("verifyCheckouts", &server.admin("POST", "verify", unknown));

    // One byte per second: it goes on until nobody waits for it, and another one may not.
    let mut slow = server.connect();
    let body = json!({ "rate": 1, "from_start": true }).to_string();
    let json = "Content-Type: application/json\r\n";
    slow.send(&post_head("/farmhand/v1/scrub", json, body.len() as u64));
    slow.send(body.as_bytes());
    slow.until_it_answers();
    checked.check("scrubStore", &server.admin("POST", "scrub", json!({})));
    drop(slow);

    // Checkouts that are known, and none of them there: whoever took them away may bring them back.
    let jobs = server.storage().join("jobs");
    fs::rename(&jobs, server.storage().join("elsewhere")).unwrap();
    fs::create_dir(&jobs).unwrap();
    checked.check("collectGarbage", &server.admin("POST", "gc", json!({})));
    fs::remove_dir(&jobs).unwrap();
    fs::rename(server.storage().join("elsewhere"), &jobs).unwrap();

    // A disk in disorder.
    let ours = server.storage().join("farmhand");
    fs::rename(&ours, server.storage().join("farmhand-was")).unwrap();
    fs::write(&ours, "no directory").unwrap();
    checked.check("listCheckouts", &ask("GET", "checkouts"));
    checked.check("getUsage", &ask("GET", "usage"));
    checked.check("getManifest", &ask("GET", "checkouts/manifest?path=in/folder"));
    checked.check("whyBlob", &ask("GET", &blob));
    checked.check("pinBlob", &ask("PUT", &pin));
    checked.check("unpinBlob", &ask("DELETE", &pin));
    checked.check("listPins", &ask("GET", "pins"));
    checked.check("eraseCheckout", &ask("DELETE", "checkouts?path=in/folder"));
    for (operation, path) in posts {
        let mut answer = None;
        // The slow one does not stop at once.
        until(|| {
            answer = Some(server.admin("POST", path, json!({})));
            answer.as_ref().is_some_and(|answer| answer.status != 409)
        });
        checked.check(operation, &answer.unwrap());
    }
}

/// What those are told who may not ask.
fn refusals(server: &TestServer, checked: &mut Checked) {
    let all = operations(checked.document);
    for (path, method, operation) in all {
        let id = operation["operationId"].as_str().unwrap();
        let path = path.replace("{sha}", &sha(b"x")).replace("{size}", "1");
        let with = |token: &str| {
            let mut connection = server.connect();
            let head = post_head(&path, &format!("Authorization: Bearer {token}\r\n"), 0);
            let head = String::from_utf8(head).unwrap();
            connection.send(head.replacen("POST", &method.to_uppercase(), 1).as_bytes());
            connection.answer()
        };
        let refused = with("unknown");
        assert_eq!(refused.status, 401, "{id}");
        checked.check(id, &refused);
        let security = operation.get("security");
        // All that needs a token can do without one somewhere; which scope it needs is said.
        let scope = security.map(|ways| {
            assert_eq!((ways[0].clone(), ways.as_array().unwrap().len()), (json!({}), 2), "{id}");
            ways[1]["bearer"][0].as_str().unwrap()
        });
        for token in ["read", "checkout"] {
            let answer = with(&format!("{token}-token"));
            let lacks = scope.is_some_and(|scope| scope != token);
            assert_eq!(answer.status == 403, lacks, "{id} with {token}: {answer:?}");
            if lacks {
                checked.check(id, &answer);
            }
        }
    }
}
