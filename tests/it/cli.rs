//! The program, as its users see it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use super::common::*;

pub(super) struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// It did what it was asked to.
    #[track_caller]
    pub fn fails_not(&self) {
        assert_eq!(self.code, 0, "{}", self.err);
    }

    /// It failed with this code, and said why in one line, with all of this in it.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{}", self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.trim_end().lines().count(), 1, "{}", self.err);
        for part in says {
            assert!(self.err.contains(part), "{:?} does not say {part:?}", self.err);
        }
    }
}

pub(super) fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        code: status.code().expect("it was killed"),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

pub(super) struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(farmhand(self.path()).current_dir(self.path()).args(arguments))
    }

    /// A copy of the real project.
    pub fn project(&self) -> String {
        let project = self.path().join("project");
        copy(&fixture("blend-project"), &project);
        project.to_str().unwrap().to_owned()
    }
}

const FIELDS: [&str; 18] = [
    "already_stored_files",
    "bytes",
    "cached_files",
    "checkout_dir",
    "checkout_path",
    "deferrals",
    "elapsed_ms",
    "files",
    "hashed_files",
    "mode",
    "modes",
    "retries",
    "reused_bytes",
    "schema",
    "sent_bytes",
    "skipped",
    "uploaded_bytes",
    "uploaded_files",
];

#[test]
fn a_folder_becomes_a_checkout_in_the_embedded_store() {
    let home = Home::new();
    let project = home.project();
    let first = home.run(&["checkout", &project, "--storage", "store", "--as", "demo"]);
    assert_eq!((first.code, first.out.as_str(), first.err.as_str()), (0, "demo\n", ""));
    let checkout = home.path().join("store/jobs/demo");
    assert!(tree(&checkout) == tree(Path::new(&project)));
    for entry in walkdir::WalkDir::new(&checkout).into_iter().map(Result::unwrap) {
        assert!(entry.file_type().is_dir() || fs::read_link(entry.path()).unwrap().is_relative());
    }

    let second =
        home.run(&["checkout", &project, "--storage", "store", "--as", "demo", "--json"]).json();
    let fields: BTreeSet<_> = second.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, FIELDS.into());
    for (field, value) in [
        ("files", json!(69)),
        ("hashed_files", json!(0)),
        ("cached_files", json!(69)),
        ("uploaded_files", json!(0)),
        ("uploaded_bytes", json!(0)),
        ("already_stored_files", json!(69)),
        ("skipped", json!([])),
        ("schema", json!("farmhand.checkout/1")),
        ("bytes", json!(4_119_572)),
    ] {
        assert_eq!(second[field], value, "{field}");
    }
    let dir = second["checkout_dir"].as_str().unwrap();
    assert!(
        Path::new(dir).is_absolute() && dir.ends_with(second["checkout_path"].as_str().unwrap())
    );
    assert!(tree(Path::new(dir)) == tree(Path::new(&project)));
}

#[test]
fn the_same_through_a_server() {
    let home = Home::new();
    let project = home.project();
    let storage = home.path().join("served");
    let server = ServerProcess::start(home.path(), &storage, &[]);
    let first = home
        .run(&["checkout", &project, "--server", &server.url, "--as", "show/demo", "--json"])
        .json();
    assert_eq!(first["checkout_path"], "show/demo");
    assert_eq!(first.get("checkout_dir"), None);
    assert_eq!((&first["hashed_files"], &first["uploaded_files"]), (&json!(69), &json!(68)));
    assert_eq!(first["uploaded_bytes"], 3_922_579);
    let second = home
        .run(&["checkout", &project, "--server", &server.url, "--as", "show/demo", "--json"])
        .json();
    assert_eq!((&second["hashed_files"], &second["uploaded_files"]), (&json!(0), &json!(0)));
    for path in [&first["checkout_path"], &second["checkout_path"]] {
        assert!(
            tree(&storage.join("jobs").join(path.as_str().unwrap())) == tree(Path::new(&project))
        );
    }
}

#[test]
fn a_checkout_has_folder_and_time_as_name() {
    let home = Home::new();
    let project = home.project();
    let ran = home.run(&["checkout", &project, "--storage", "store"]);
    assert_eq!(ran.code, 0);
    let store = home.path().join("store");
    let name = ran.out.trim_end();
    let time = name.strip_prefix("project-").unwrap();
    assert!(time.len() == 16 && time.ends_with('Z') && time.as_bytes()[8] == b'T', "{name}");
    assert!(tree(&store.join("jobs").join(name)) == tree(Path::new(&project)));
}

#[test]
fn push_sends_and_makes_no_checkout() {
    let home = Home::new();
    let project = home.project();
    fs::create_dir(home.path().join("other")).unwrap();
    fs::write(home.path().join("other/new"), "something new").unwrap();
    let ran = home.run(&["push", &project, "other", "--storage", "store", "--json"]);
    let answers: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(
        (&answers[0]["uploaded_files"], &answers[1]["uploaded_files"]),
        (&json!(68), &json!(1))
    );
    assert_eq!(answers[1]["schema"], "farmhand.push/1");
    let jobs = fs::read_dir(home.path().join("store/jobs")).unwrap();
    assert!(jobs.map(|job| job.unwrap().file_name()).all(|name| name == ".farmhand-building"));
    let ran = home.run(&["push", "other", "--storage", "store"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert!(ran.err.contains("1 files are on the server; sent 0"), "{}", ran.err);
}

#[test]
fn hash_prints_what_shaman_needs() {
    let home = Home::new();
    let project = home.project();
    let scene = format!("{project}/scene.blend");
    let ran = home.run(&["hash", &scene, &project]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines.len(), 70);
    let content = fs::read(&scene).unwrap();
    let expected = format!("{}  {}  {scene}", sha(&content), content.len());
    assert_eq!(lines[0], expected);
    assert!(lines[1..].contains(&expected.as_str()));

    let ran = home.run(&["hash", "--json", &project]);
    for line in ran.out.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let content = fs::read(line["path"].as_str().unwrap()).unwrap();
        assert_eq!(line["sha256"], sha(&content));
        assert_eq!(line["size"], content.len());
    }

    fs::write(home.path().join("line\nbreak"), "").unwrap();
    assert!(home.run(&["hash", "line\nbreak"]).out.ends_with("  0  line\\nbreak\n"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error_worth_a_word() {
    let home = Home::new();
    let project = home.project();
    let mut child = farmhand(home.path())
        .args(["hash", &project])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn what_is_ignored_can_be_chosen() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir_all(project.join(".git")).unwrap();
    for name in ["a.blend", "a.blend1", "Thumbs.db", ".git/config", "notes.tmp"] {
        fs::write(project.join(name), name).unwrap();
    }
    let files = |arguments: &[&str]| -> BTreeSet<String> {
        let ran = home.run(&[&["hash", "p", "--json"], arguments].concat());
        let path = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap()["path"].as_str().unwrap().to_owned()
        };
        ran.out.lines().map(|line| path(line)["p/".len()..].to_owned()).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(files(&[]), set(&["a.blend", "notes.tmp"]));
    assert_eq!(files(&["--no-default-ignores"]).len(), 5);
    fs::write(project.join(".farmhandignore"), "*.tmp\n!*.blend1\n").unwrap();
    assert_eq!(files(&[]), set(&[".farmhandignore", "a.blend", "a.blend1"]));
    let help = home.run(&["checkout", "--help"]).out;
    for pattern in [
        "*.blend1",
        "*.blend32",
        "*.blend@",
        ".git/",
        ".svn/",
        "Thumbs.db",
        ".DS_Store",
        ".mayaSwatches/",
    ] {
        assert!(help.contains(pattern), "{pattern} is not in the help");
    }
}

#[test]
fn files_that_cannot_be_taken_along_are_named_and_the_rest_is_done() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir_all(project.join("dir")).unwrap();
    fs::write(project.join("good"), "good").unwrap();
    std::os::unix::fs::symlink("nowhere", project.join("broken")).unwrap();
    std::os::unix::fs::symlink("dir", project.join("link")).unwrap();
    let ran = home.run(&["checkout", "p", "--storage", "store", "--as", "x"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, "x\n"));
    assert!(ran.err.contains("skipped broken: a link to nowhere"), "{}", ran.err);
    assert!(ran.err.contains("skipped link: a link to a directory"), "{}", ran.err);
    assert_eq!(tree(&home.path().join("store/jobs/x")).len(), 1);
    let ran = home.run(&["checkout", "p", "--storage", "store", "--as", "x", "--json"]);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, 3);
    assert_eq!(answer["skipped"][0]["path"], "broken");
    assert_eq!(home.run(&["hash", "p"]).code, 3);
}

#[test]
fn unreadable_files_are_reported() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir_all(project.join("locked dir")).unwrap();
    for name in ["good", "locked", "locked dir/inside"] {
        fs::write(project.join(name), name).unwrap();
    }
    for name in ["locked", "locked dir"] {
        fs::set_permissions(project.join(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    // Permissions do not hold for root: then the program runs as nobody.
    let mut command = farmhand(home.path());
    command.current_dir(home.path()).args(["hash", "p", "--no-cache"]);
    if fs::read(project.join("locked")).is_ok() {
        use std::os::unix::process::CommandExt;
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        command.uid(65534);
    }
    let ran = run(&mut command);
    fs::set_permissions(project.join("locked dir"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert_eq!(ran.out.lines().count(), 1);
    assert!(ran.err.contains("skipped locked: cannot be read: Permission denied"), "{}", ran.err);
    assert!(
        ran.err.contains("skipped locked dir: cannot be read: Permission denied"),
        "{}",
        ran.err
    );
}

#[test]
fn wrong_input_is_one_line_and_the_right_exit_code() {
    let home = Home::new();
    fs::create_dir(home.path().join("empty")).unwrap();
    fs::create_dir(home.path().join("p")).unwrap();
    fs::write(home.path().join("p/file"), "content").unwrap();
    fs::write(home.path().join("file"), "content").unwrap();
    let store = ["--storage", "store"];
    let checkout = |arguments: &[&str]| home.run(&[&["checkout"], arguments].concat());
    checkout(&["missing", store[0], store[1]])
        .fails(4, &["missing does not exist", "check the path"]);
    home.run(&["push", "p", "missing", store[0], store[1]]).fails(4, &["missing does not exist"]);
    assert!(!home.path().join("store").exists(), "a store was made for nothing");
    checkout(&["empty", store[0], store[1]]).fails(4, &["nothing to send in empty"]);
    checkout(&["file", store[0], store[1]]).fails(2, &["file is a file", "give the folder"]);
    checkout(&["p", "--as", "../up", store[0], store[1]])
        .fails(2, &["--as", "\"..\"", "another name"]);
    checkout(&["p", "--server", "farm:8080"]).fails(2, &["farm:8080", "http://"]);
    checkout(&["p", "--storage", "file"]).fails(1, &["file", "choose another --storage"]);
    home.run(&["hash", "missing"]).fails(4, &["missing does not exist"]);
    home.run(&["serve", "--listen", "nonsense"]).fails(2, &["nonsense", "ADDRESS:PORT"]);
    for address in ["0.0.0.0:0", "[::]:0"] {
        home.run(&["serve", "--listen", address, store[0], store[1]])
            .fails(2, &[address, "--tokens", "--anonymous anywhere"]);
    }
    assert_eq!(home.run(&["checkout", "p", "--server", "http://x", "--storage", "y"]).code, 2);
    assert_eq!(home.run(&["no-such-command"]).code, 2);
    assert_eq!(home.run(&["checkout"]).code, 2);
}

#[test]
fn a_folder_without_permission_is_one_line() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir(&project).unwrap();
    fs::set_permissions(&project, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = farmhand(home.path());
    command.current_dir(home.path()).args(["hash", "p", "--no-cache"]);
    if fs::read_dir(&project).is_ok() {
        use std::os::unix::process::CommandExt;
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        command.uid(65534);
    }
    run(&mut command).fails(1, &["cannot read p", "Permission denied", "check its permissions"]);
}

#[test]
fn servers_that_are_none() {
    let home = Home::new();
    fs::create_dir(home.path().join("p")).unwrap();
    fs::write(home.path().join("p/file"), "content").unwrap();
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let down = format!("http://127.0.0.1:{port}/");
    for command in [
        &["checkout", "p", "--server", &down][..],
        &["push", "p", "--server", &down],
        &["conformance", &down],
    ] {
        let ran = run(farmhand(home.path())
            .current_dir(home.path())
            .env("FARMHAND_UPLOAD_RETRIES", "1")
            .args(command));
        ran.fails(5, &[&down, "Connection refused", "check that it runs"]);
    }

    use axum::{Router, response::Html, routing::any};
    let router = Router::new()
        .route("/html/{*rest}", any(async || Html("<h1>a web page</h1>")))
        .route(
            "/secure/{*rest}",
            any(async || axum::response::Redirect::temporary("https://127.0.0.1:1/x")),
        )
        .route(
            "/loop/{*rest}",
            any(async |uri: axum::http::Uri| axum::response::Redirect::temporary(uri.path())),
        )
        .route("/private/{*rest}", any(async || axum::http::StatusCode::UNAUTHORIZED));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async { axum::serve(listener, router).await });
    for (path, code, says) in [
        ("/", 2, "is no Shaman server: 404"),
        ("/html/", 2, "is no Shaman server"),
        ("/secure/", 2, "it redirects to https://127.0.0.1:1/x"),
        ("/loop/", 2, "it redirects too often"),
        ("/private/", 6, "refuses"),
    ] {
        let ran = home.run(&["push", "p", "--server", &format!("{url}{path}")]);
        ran.fails(code, &[&url, says]);
    }
}

/// Small machines have no root certificates, and need none for http.
#[test]
fn certificates_are_needed_for_https_only() {
    let home = Home::new();
    fs::create_dir(home.path().join("p")).unwrap();
    fs::write(home.path().join("p/file"), "content").unwrap();
    let push = |arguments: &[&str]| {
        run(farmhand(home.path())
            .current_dir(home.path())
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .args(["push", "p", "-q"])
            .args(arguments))
    };
    let ran = push(&["--storage", "store"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ran = push(&["--server", "https://127.0.0.1:1/"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("are root certificates installed?"), "{}", ran.err);
}

#[test]
fn a_port_that_is_taken() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = home.run(&["serve", "--listen", &address, "--storage", "store"]);
    ran.fails(1, &[&address, "in use", "--listen"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let home = Home::new();
    let project = home.project();
    // No file may grow beyond some blocks: as on a full disk, writing fails in the middle.
    let script = r#"trap '' XFSZ; ulimit -f 16; exec "$0" "$@""#;
    let limited = |arguments: &[&str]| {
        let program = farmhand(home.path());
        let mut command = Command::new("sh");
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        run(command
            .args(["-c", script])
            .arg(program.get_program())
            .current_dir(home.path())
            .args(arguments))
    };
    let ran = limited(&["hash", &project]);
    assert_eq!((ran.code, ran.out.lines().count()), (0, 69), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("the hash cache") && ran.err.contains("--cache-dir"), "{}", ran.err);

    let ran = home.run(&["hash", &project, "--cache-dir", &format!("{project}/scene.blend/below")]);
    assert_eq!((ran.code, ran.out.lines().count()), (0, 69));
    assert!(ran.err.contains("the hash cache") && ran.err.contains("--cache-dir"), "{}", ran.err);
}

#[test]
fn settings_come_from_flags_environment_file_and_defaults_in_this_order() {
    let home = Home::new();
    let config = home.path().join("config/farmhand/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let show = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = farmhand(home.path());
        run(command
            .envs(environment.iter().copied())
            .args(arguments)
            .args(["config", "show", "--json"]))
    };
    let value = |ran: Ran, key: &str| {
        let setting = &ran.json()["settings"][key];
        (setting["value"].clone(), setting["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(value(show(&[], &[]), "upload.parallel"), (json!(8), "default".into()));
    fs::write(&config, "storage = \"here\"\nprogress = \"never\"\n[upload]\nparallel = 3\n")
        .unwrap();
    assert_eq!(value(show(&[], &[]), "upload.parallel"), (json!(3), "file".into()));
    assert_eq!(value(show(&[], &[]), "storage").0, json!(config.with_file_name("here")));
    let env = [
        ("FARMHAND_UPLOAD_PARALLEL", "4"),
        ("FARMHAND_SERVE_LISTEN", "127.0.0.1:1, [::1]:1"),
        ("FARMHAND_PROGRESS", "auto"),
    ];
    assert_eq!(
        value(show(&env, &[]), "upload.parallel"),
        (json!(4), "environment FARMHAND_UPLOAD_PARALLEL".into())
    );
    assert_eq!(value(show(&env, &[]), "serve.listen").0, json!(["127.0.0.1:1", "[::1]:1"]));
    let limit = "20MiB/s; Mon,Wed-Fri 09:00-18:00 5MiB/s";
    let env_limit = [("FARMHAND_UPLOAD_LIMIT", limit)];
    assert_eq!(value(show(&env_limit, &[]), "upload.limit").0, json!(limit));
    assert_eq!(
        value(show(&env, &["--progress", "always"]), "progress"),
        (json!("always"), "flag --progress".into())
    );

    let text = run(farmhand(home.path()).args(["config", "show"]));
    assert!(
        text.out.contains("parallel = 3  # file") && text.out.contains("# server is not set"),
        "{}",
        text.out
    );
    // What is shown can be read back.
    let copy = home.path().join("copy.toml");
    fs::write(&copy, &text.out).unwrap();
    let again = home.run(&["config", "show", "--json", "--config", copy.to_str().unwrap()]).json();
    assert_eq!(again["settings"]["serve.max_json"]["value"], "512.0 MiB");
    assert!(home.run(&["config", "check"]).out.contains("is valid"));
}

#[test]
fn settings_that_are_none() {
    let home = Home::new();
    let file = home.path().join("bad.toml");
    for (text, says) in [
        ("servr = \"x\"", "servr"),
        ("[upload]\nparallel = \"many\"", "parallel"),
        ("[upload]\nlimit = [\"20MiB/s\", \"9-18 1MiB/s\"]", "9-18"),
        ("[serve]\nhold = \"soon\"", "soon"),
        ("[serve]\ndefer = \"maybe\"", "maybe"),
        ("[serve", "line 1"),
    ] {
        fs::write(&file, text).unwrap();
        let ran = home.run(&["config", "check", "--config", file.to_str().unwrap()]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.contains("bad.toml") && ran.err.contains(says), "{}", ran.err);
    }
    home.run(&["config", "check", "--config", "none.toml"]).fails(2, &["cannot read", "none.toml"]);
    for (name, value) in [
        ("FARMHAND_UPLOAD_PARALLEL", "many"),
        ("FARMHAND_SCAN_CACHE", "maybe"),
        ("FARMHAND_SERVE_HOLD", "soon"),
        ("FARMHAND_UPLOAD_LIMIT", "Mon-Fry 5MiB/s"),
    ] {
        let ran = run(farmhand(home.path()).env(name, value).args(["config", "check"]));
        ran.fails(2, &[name, value]);
    }
    home.run(&["hash", ".", "--readers", "-1"]);
    for command in ["push", "checkout"] {
        home.run(&[command, ".", "--limit", "fast"])
            .fails(2, &["--limit", "fast", "write 20MiB/s", "Mon-Fri 09:00-18:00 5MiB/s"]);
    }
}

#[test]
fn the_server_given_closer_to_the_command_counts() {
    let home = Home::new();
    fs::create_dir(home.path().join("p")).unwrap();
    fs::write(home.path().join("p/file"), "content").unwrap();
    let ran = run(farmhand(home.path())
        .current_dir(home.path())
        .env("FARMHAND_SERVER", "http://127.0.0.1:1/")
        .args(["checkout", "p", "--storage", "store", "--as", "x"]));
    assert_eq!((ran.code, ran.out.as_str()), (0, "x\n"), "{}", ran.err);
    let ran = run(farmhand(home.path())
        .current_dir(home.path())
        .env("FARMHAND_SERVER", "http://127.0.0.1:1/")
        .env("FARMHAND_STORAGE", "store")
        .env("FARMHAND_UPLOAD_RETRIES", "0")
        .args(["checkout", "p", "--as", "x"]));
    assert_eq!(ran.code, 5);
}

#[test]
fn logs_and_progress_stay_off_standard_output() {
    let home = Home::new();
    let project = home.project();
    let ran = home.run(&[
        "checkout",
        &project,
        "--storage",
        "s",
        "--as",
        "x",
        "-vv",
        "--progress",
        "always",
        "--log-format",
        "json",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "x\n"));
    let logged = ran.err.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert!(logged > 0, "{}", ran.err);
    let ran = home.run(&["checkout", "missing", "--log-format", "json", "--storage", "s"]);
    let error: Value = serde_json::from_str(ran.err.trim()).unwrap();
    assert_eq!((ran.code, &error["level"]), (4, &json!("ERROR")));
}

#[test]
fn conformance_prints_a_table_and_fails_if_a_check_does() {
    let home = Home::new();
    let server = ServerProcess::start(home.path(), &home.path().join("served"), &[]);
    let ran = home.run(&["conformance", &server.url]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert!(ran.out.contains("ok    core") && ran.out.contains(", 0 fail, "), "{}", ran.out);
    let answer = home.run(&["conformance", &server.url, "--json", "--expendable-server"]).json();
    assert_eq!(answer["holds"], true);
    assert!(answer["checks"].as_array().unwrap().iter().all(|check| check["outcome"] == "holds"));
    let answer = home.run(&["conformance", &server.url, "--json", "--level", "strict"]).json();
    for check in answer["checks"].as_array().unwrap() {
        let expected = if check["level"] == "hostile" { "skipped" } else { "holds" };
        assert_eq!(check["outcome"], expected, "{check}");
    }
    let ran = home.run(&["conformance", &server.url, "--level", "hostile"]);
    ran.fails(2, &["hostile", "--expendable-server"]);
    // A server whose store cannot be written to any more.
    let stored = home.path().join("served/file-store/uploading");
    fs::remove_dir(&stored).unwrap();
    let ran = home.run(&["conformance", &server.url]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("FAIL  core     an upload is stored"), "{}", ran.out);
    fs::create_dir(&stored).unwrap();
}

#[test]
fn completions_are_printed_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = home.run(&["completions", shell]);
        assert!(
            ran.code == 0 && ran.out.contains("farmhand") && ran.out.contains("conformance"),
            "{shell}"
        );
    }
}

/// Whoever reads may not read on: then printing stands still, and must be stoppable all the same.
#[test]
fn hash_can_be_interrupted_while_it_prints() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir(&project).unwrap();
    // More lines than a pipe holds.
    for number in 0..1500 {
        fs::write(project.join(format!("file-{number}")), "").unwrap();
    }
    let mut child = farmhand(home.path())
        .args(["hash", "--no-cache", project.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut code = None;
    until(|| {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(130));
}

#[test]
fn interrupted_it_says_so_and_the_next_run_goes_on() {
    let home = Home::new();
    let project = home.path().join("p");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), random(100_000)).unwrap();
    // Somebody accepts the connection, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let child = farmhand(home.path())
        .args(["push", project.to_str().unwrap(), "--server", &url])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = silent.accept().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().contains("goes on where this one stopped"));
    let answer = home.run(&["push", "p", "--storage", "store", "--json"]).json();
    assert_eq!((&answer["cached_files"], &answer["uploaded_files"]), (&json!(1), &json!(1)));
}
