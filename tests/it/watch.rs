//! The agent: folders are kept uploaded, and the commands make use of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    common::{ServerProcess, TestServer, farmhand, tree, until},
    metrics::scrape,
};

/// `farmhand watch`, in a process of its own, that does not wait long for quiet.
pub struct AgentProcess {
    child: Child,
    home: PathBuf,
}

impl AgentProcess {
    pub fn start(home: &Path, dirs: &[&Path], url: &str, more: &[&str]) -> Self {
        Self::start_by(farmhand(home), home, dirs, url, more)
    }

    /// The command ends in calling farmhand.
    fn start_by(
        mut command: Command,
        home: &Path,
        dirs: &[&Path],
        url: &str,
        more: &[&str],
    ) -> Self {
        fs::create_dir_all(home.join("run")).unwrap();
        command.arg("watch").args(dirs).args(["--server", url]).args(more);
        for (name, value) in [("QUIET", "100ms"), ("MAX_DELAY", "1s")] {
            command.env(format!("FARMHAND_WATCH_{name}"), value);
        }
        let log = fs::File::create(home.join("watch.log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("watching "), "{line:?}");
        Self { child, home: home.to_owned() }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("watch.log")).unwrap()
    }

    fn status(&self) -> Value {
        let answer = json(farmhand(&self.home).args(["status", "--json"]));
        answer["agents"][0].clone()
    }

    pub fn folder(&self) -> Value {
        self.status()["folders"][0].clone()
    }

    pub fn until_state(&self, expected: &str) {
        until(|| self.folder()["state"] == expected);
    }

    /// How many files, connections and the like it has open; none where that cannot be counted.
    fn handles(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        open.map_or(0, Iterator::count)
    }

    /// Where it listens, and its token.
    fn address(&self) -> (String, String) {
        let path = format!("run/farmhand/agents/{}.agent", self.child.id());
        let text = fs::read_to_string(self.home.join(path)).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let url = record["url"].as_str().unwrap();
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        (address, record["token"].as_str().unwrap().to_owned())
    }

    /// Asks it something; the answer is not read.
    fn ask(&self, path: &str, token: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address().0).unwrap();
        write!(
            stream,
            "GET /v1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        BufReader::new(stream)
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{:?}: {error}", output.status))
}

pub fn write(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// What a checkout of a folder looks like.
pub fn checked_out(home: &Path, dir: &Path, url: &str, store: &Path) -> Vec<(String, Vec<u8>)> {
    let answer = json(farmhand(home).arg("checkout").arg(dir).args(["--server", url, "--json"]));
    let path = answer["checkout_path"].as_str().unwrap().to_owned();
    tree(&store.join("jobs").join(path)).into_iter().collect()
}

pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    tree(dir).into_iter().collect()
}

#[test]
fn a_folder_is_kept_uploaded() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "a/first", "one");
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    server.until_status(b"one", "stored");
    agent.until_state("synced");

    write(&project, "a/second", "two");
    // All at once, and deep.
    write(&project, "new/dir/with/file", "three");
    server.until_status(b"two", "stored");
    server.until_status(b"three", "stored");
    // Directories that were made meanwhile are watched, too.
    write(&project, "new/dir/with/another", "four");
    server.until_status(b"four", "stored");
    // As Blender saves: beside it, then renamed.
    write(&project, "scene.blend@", "five");
    fs::rename(project.join("scene.blend@"), project.join("scene.blend")).unwrap();
    server.until_status(b"five", "stored");
    fs::rename(project.join("new"), project.join("renamed")).unwrap();
    write(&project, "renamed/dir/six", "six");
    server.until_status(b"six", "stored");
    fs::remove_dir_all(project.join("renamed")).unwrap();
    for number in 0..500 {
        write(&project, &format!("burst/{number}"), &format!("burst {number}"));
    }
    server.until_status(b"burst 499", "stored");
    until(|| agent.folder()["files"] == 503 && agent.folder()["state"] == "synced");
    let folder = agent.folder();
    assert_eq!(folder["watch"]["mode"], "events", "{folder}");
    assert_eq!(folder["queued_files"], 0);
    assert!(folder["last_sync"].is_string() && folder["last_error"].is_null(), "{folder}");
}

#[test]
fn commands_take_what_the_agent_knows_and_never_what_is_old() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    let elsewhere = home.join("elsewhere");
    write(&project, "file", "begin");
    write(home, "elsewhere", "linked");
    std::os::unix::fs::symlink(&elsewhere, project.join("link")).unwrap();
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    agent.until_state("synced");
    // Nothing has changed: it is not looked at again.
    let output = farmhand(home)
        .arg("checkout")
        .arg(&project)
        .args(["--server", &server.url(), "-v"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("was_known=true"), "{said}");
    // Whatever was changed before a checkout is in it, also by a name that is not watched.
    for round in 0..20 {
        match round % 4 {
            0 => write(&project, "file", &format!("round {round}")),
            1 => write(&project, &format!("deep/{round}/new"), &format!("round {round}")),
            2 => write(home, "elsewhere", &format!("round {round}")),
            _ => fs::remove_dir_all(project.join("deep")).unwrap(),
        }
        let found = checked_out(home, &project, &server.url(), &server.storage());
        assert_eq!(found, files(&project), "round {round}");
    }
    drop(agent);
    let found = checked_out(home, &project, &server.url(), &server.storage());
    assert_eq!(found, files(&project), "without an agent");
}

/// A server that is killed, and started again where it was.
pub struct Restarted {
    home: PathBuf,
    pub storage: PathBuf,
    address: String,
    server: Option<ServerProcess>,
}

impl Restarted {
    pub fn new(home: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        Self { home: home.to_owned(), storage: home.join("store"), address, server: None }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn start(&mut self) {
        let mut command = farmhand(&self.home);
        command.args(["serve", "--listen", &self.address, "--storage"]).arg(&self.storage);
        self.server = Some(ServerProcess::spawn(command.stderr(Stdio::null())));
    }

    pub fn kill(&mut self) {
        self.server = None;
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }
}

#[test]
fn ten_thousand_changes_while_the_server_comes_and_goes_are_all_stored() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    fs::create_dir(&project).unwrap();
    let mut server = Restarted::new(home);
    // It is not there yet: the agent waits for it.
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    write(&project, "first", "first");
    agent.until_state("retrying");
    server.start();
    agent.until_state("synced");
    let handles_before = agent.handles();

    let mut random = fastrand::Rng::with_seed(7);
    let name = |random: &mut fastrand::Rng| {
        let depth = random.usize(1..4);
        let parts: Vec<_> = (0..depth).map(|_| format!("n{}", random.u8(0..6))).collect();
        parts.join("/")
    };
    for step in 0..10_000 {
        let path = project.join(name(&mut random));
        // What is in the way of one change is what others make: some fail.
        let _ = match random.u8(0..10) {
            0 => fs::remove_file(&path),
            1 => fs::remove_dir_all(&path),
            2 => fs::rename(&path, project.join(name(&mut random))),
            3 => fs::create_dir_all(&path),
            4 => fs::File::options()
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(b"more")),
            _ => fs::create_dir_all(path.parent().unwrap())
                .and_then(|()| fs::write(&path, format!("{step} {}", random.u8(0..50)))),
        };
        if step % 4_000 == 3_000 {
            server.kill();
        }
        if step % 4_000 == 3_900 {
            server.start();
        }
    }
    write(&project, "last", "last");
    let wait = farmhand(home)
        .arg("wait")
        .arg(&project)
        .args(["--server", &server.url(), "--timeout", "60s"])
        .output()
        .unwrap();
    assert!(wait.status.success(), "{wait:?}");
    until(|| agent.folder()["state"] == "synced" && agent.folder()["queued_files"] == 0);
    let answer =
        json(farmhand(home).args(["checkout", "--server", &server.url(), "--json"]).arg(&project));
    assert_eq!(answer["uploaded_files"], 0, "{answer}");
    let path = server.storage.join("jobs").join(answer["checkout_path"].as_str().unwrap());
    assert_eq!(files(&path), files(&project));
    // Connections that are kept for the next upload, and no more.
    let handles = agent.handles();
    assert!(handles <= handles_before + 32, "{handles_before} handles became {handles}");
}

/// Two artists have mostly the same in their folders.
#[test]
fn what_two_agents_have_both_is_sent_once() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let server = TestServer::start();
    for (own, home) in homes.iter().enumerate() {
        for number in 0..300 {
            let content = format!("{number:04}").repeat(1 + number * 100);
            write(&home.path().join("project"), &format!("shared/{number}"), &content);
            write(
                &home.path().join("project"),
                &format!("own/{number}"),
                &format!("{own} {number}"),
            );
        }
    }
    let agents = homes.each_ref().map(|home| {
        let home = home.path();
        AgentProcess::start(home, &[&home.join("project")], &server.url(), &[])
    });
    for agent in &agents {
        agent.until_state("synced");
    }
    let count =
        |outcome| scrape(&server)[&format!("farmhand_uploads_total{{outcome=\"{outcome}\"}}")];
    // Distinct contents, and none whose bytes came twice.
    assert_eq!(count("stored"), 900.0);
    assert_eq!(count("absorbed"), 0.0);
    for home in &homes {
        let project = home.path().join("project");
        let found = checked_out(home.path(), &project, &server.url(), &server.storage());
        assert_eq!(found, files(&project));
    }
}

#[test]
fn a_folder_has_one_agent_and_an_agent_that_ends_leaves_it() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let mut agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    std::os::unix::fs::symlink(&project, home.join("other name")).unwrap();
    let second = farmhand(home)
        .arg("watch")
        .arg(home.join("other name"))
        .args(["--server", &server.url()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("watched already, by process {}", agent.child.id())), "{said}");

    kill_process(Pid::from_child(&agent.child), Signal::TERM).unwrap();
    assert!(agent.child.wait().unwrap().success());
    let none = farmhand(home).arg("status").output().unwrap();
    assert_eq!(none.status.code(), Some(4));
    let left: Vec<_> = fs::read_dir(home.join("run/farmhand/agents")).unwrap().collect();
    assert_eq!(left.len(), 1, "the lock of claims alone: {left:?}");
    // One that is killed leaves its file, which counts for nothing.
    drop(AgentProcess::start(home, &[&project], &server.url(), &[]));
    assert_eq!(farmhand(home).arg("status").output().unwrap().status.code(), Some(4));
    AgentProcess::start(home, &[&project], &server.url(), &[]).until_state("synced");
}

#[test]
fn a_pause_holds_everything_back_and_is_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    agent.until_state("synced");
    let (_, token) = agent.address();
    let mut events = agent.ask("events", &token).lines().map(Result::unwrap);
    assert!(events.any(|line| line == "event: status"));
    assert!(farmhand(home).arg("pause").output().unwrap().status.success());
    assert!(events.any(|line| line == r#"data: {"event":"paused"}"#));
    assert_eq!(agent.status()["paused"], true);
    write(&project, "new", "new");
    // A command sends it all the same; the agent goes on when it may.
    let found = checked_out(home, &project, &server.url(), &server.storage());
    assert_eq!(found, files(&project));
    write(&project, "newer", "newer");
    assert_eq!(server.status(b"newer"), "unknown");
    assert!(farmhand(home).arg("resume").output().unwrap().status.success());
    assert!(events.any(|line| line == r#"data: {"event":"resumed"}"#));
    server.until_status(b"newer", "stored");
    assert!(events.any(|line| line.contains(r#""state":"synced""#)));
}

#[test]
fn only_those_who_know_the_token_are_answered() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    let (_, token) = agent.address();
    for (token, expected) in [(token.as_str(), "200"), ("wrong", "401"), ("", "401")] {
        let mut line = String::new();
        agent.ask("status", token).read_line(&mut line).unwrap();
        assert_eq!(line.split(' ').nth(1), Some(expected));
    }
    let mut all = String::new();
    fs::File::open(home.join("watch.log")).unwrap().read_to_string(&mut all).unwrap();
    assert!(!all.contains(&token));
}

#[test]
fn where_nothing_is_heard_of_changes_it_polls_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let config = home.join("farmhand.toml");
    fs::write(&config, "[watch]\nmode = \"poll\"\npoll_every = \"200ms\"\n").unwrap();
    let more = ["--config", config.to_str().unwrap()];
    let agent = AgentProcess::start(home, &[&project], &server.url(), &more);
    agent.until_state("synced");
    assert_eq!(agent.folder()["watch"]["mode"], "poll");
    assert!(agent.log().contains("it is looked at every"), "{}", agent.log());
    write(&project, "new", "new");
    server.until_status(b"new", "stored");
    // Nothing is concluded from silence.
    for round in 0..5 {
        write(&project, "file", &format!("round {round}"));
        let found = checked_out(home, &project, &server.url(), &server.storage());
        assert_eq!(found, files(&project));
    }
}

/// In a user namespace, everybody may have a limit of their own.
#[cfg(target_os = "linux")]
#[test]
fn at_the_limit_of_watches_it_polls_says_how_to_raise_it_and_hears_again_when_that_is_done() {
    const LIMIT: &str = "/proc/sys/user/max_inotify_watches";
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut trial = Command::new("unshare");
    trial.args(["-Ur", "sh", "-c", &format!("echo 9 >{LIMIT}")]);
    if !trial.output().is_ok_and(|output| output.status.success()) {
        eprintln!("not tested: there are no user namespaces here");
        return;
    }
    let project = home.join("project");
    for number in 0..20 {
        write(&project, &format!("{number}/file"), &format!("x{number}"));
    }
    let config = home.join("farmhand.toml");
    let text = "[watch]\npoll_every = \"200ms\"\nrescan_every = \"1s\"\n";
    fs::write(&config, text).unwrap();
    let server = TestServer::start();

    let farmhand = farmhand(home);
    let mut command = Command::new("unshare");
    for (name, value) in farmhand.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let raised = home.join("raised");
    let script = format!(
        "echo 9 >{LIMIT}
         {{ for i in $(seq 1200); do test -e '{}' && echo 999 >{LIMIT} && break; sleep 0.05; done; }} &
         exec '{}' \"$@\"",
        raised.display(),
        farmhand.get_program().display(),
    );
    command.args(["-Ur", "sh", "-c", &script, "sh"]);
    let more = ["--config", config.to_str().unwrap()];
    let agent = AgentProcess::start_by(command, home, &[&project], &server.url(), &more);
    agent.until_state("synced");
    let watch = agent.folder()["watch"].clone();
    assert_eq!(watch["mode"], "poll", "{watch}");
    let reason = watch["reason"].as_str().unwrap();
    assert!(reason.contains("sudo sysctl fs.inotify.max_user_watches="), "{reason}");
    assert!(agent.log().contains(reason), "{}", agent.log());
    write(&project, "7/new", "new");
    server.until_status(b"new", "stored");

    fs::write(&raised, "").unwrap();
    until(|| agent.folder()["watch"]["mode"] == "events");
    write(&project, "7/newer", "newer");
    server.until_status(b"newer", "stored");
    assert_eq!(agent.log().matches("limit").count(), 1, "{}", agent.log());

    // It can be reached at any time.
    for number in 0..1000 {
        fs::create_dir_all(project.join(format!("more/{number}"))).unwrap();
    }
    write(&project, "more/999/last", "last");
    server.until_status(b"last", "stored");
    until(|| agent.folder()["watch"]["mode"] == "poll");
}

#[test]
fn a_folder_that_goes_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    agent.until_state("synced");
    fs::rename(&project, home.join("away")).unwrap();
    agent.until_state("gone");
    // Another one in its place, as after a mount.
    write(&project, "other", "other");
    server.until_status(b"other", "stored");
    write(&project, "later", "later");
    server.until_status(b"later", "stored");
    assert!(agent.log().contains("is there again"), "{}", agent.log());
}

#[test]
fn another_directory_in_the_place_of_the_folder_is_not_taken_for_it() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (project, other) = (home.join("project"), home.join("other"));
    write(&project, "file", "one");
    write(&other, "file", "two");
    let server = TestServer::start();
    let agent = AgentProcess::start(home, &[&project], &server.url(), &[]);
    agent.until_state("synced");
    let check = || {
        let made = checked_out(home, &project, &server.url(), &server.storage());
        assert_eq!(made, files(&project));
    };
    check();
    // What is watched is the directory, not its name: until the agent notices, it hears of the old one.
    fs::rename(&project, home.join("old")).unwrap();
    fs::rename(&other, &project).unwrap();
    check();
    for content in ["three", "four", "five"] {
        write(&project, "file", content);
        check();
    }
}

#[test]
fn folders_of_the_configuration_have_settings_of_their_own() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (one, two) = (TestServer::start(), TestServer::start());
    for dir in ["first", "second"] {
        write(home, &format!("{dir}/file"), dir);
        write(home, &format!("{dir}/render/image"), &format!("image of {dir}"));
    }
    let config = home.join("farmhand.toml");
    let text = format!(
        "server = {:?}\n[[watch.folders]]\npath = \"first\"\nignore = [\"render/\"]\npriority = 3\n\
         [[watch.folders]]\npath = \"second\"\nserver = {:?}\n",
        one.url(),
        two.url()
    );
    fs::write(&config, text).unwrap();
    let mut command = farmhand(home);
    fs::create_dir(home.join("run")).unwrap();
    command.arg("watch").arg("--config").arg(&config).env("FARMHAND_WATCH_QUIET", "100ms");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    one.until_status(b"first", "stored");
    two.until_status(b"second", "stored");
    two.until_status(b"image of second", "stored");
    // The command follows the same rules, with the agent and without.
    let first = home.join("first");
    let checkout = || {
        let mut command = farmhand(home);
        let answer =
            json(command.arg("checkout").arg(&first).arg("--json").arg("--config").arg(&config));
        let path = answer["checkout_path"].as_str().unwrap().to_owned();
        files(&one.storage().join("jobs").join(path))
    };
    assert_eq!(checkout(), [("file".to_owned(), b"first".to_vec())]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(checkout(), [("file".to_owned(), b"first".to_vec())]);
    assert_eq!(one.status(b"image of first"), "unknown");
}

#[test]
fn a_barrier_without_an_agent_waits_or_says_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = home.join("project");
    write(&project, "file", "x");
    let server = TestServer::start();
    let wait = |url: &str, timeout: &str| {
        let mut command = farmhand(home);
        let command = command.arg("wait").arg(&project).args(["--server", url]);
        command.args(["--timeout", timeout, "--json"]).output().unwrap()
    };
    let done = wait(&server.url(), "60s");
    assert!(done.status.success(), "{done:?}");
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&answer["stored"], &answer["uploaded_files"]), (&true.into(), &1.into()));

    // One that comes later.
    fs::create_dir(home.join("later")).unwrap();
    let mut later = Restarted::new(&home.join("later"));
    let log = home.join("wait.log");
    let mut command = farmhand(home);
    command.arg("wait").arg(&project).args(["--server", &later.url(), "--timeout", "60s", "-vv"]);
    // Without retries of its own, so that it is the wait that goes on.
    command.env("FARMHAND_UPLOAD_RETRIES", "0").stderr(fs::File::create(&log).unwrap());
    let mut waiting = command.spawn().unwrap();
    until(|| fs::read_to_string(&log).unwrap().contains("Unreachable"));
    later.start();
    assert!(waiting.wait().unwrap().success());

    // A server that takes connections, and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let late = wait(&url, "300ms");
    assert_eq!(late.status.code(), Some(8), "{late:?}");
    let answer: Value = serde_json::from_slice(&late.stdout).unwrap();
    assert_eq!(answer["stored"], false);
    assert_eq!(answer["missing"], serde_json::json!(["file"]));
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(said.contains("the server does not answer, and may lack all 1 files"), "{said}");

    // One that is being sent by somebody who does not come to an end.
    write(&project, "held", "sent by another");
    let mut other = server.connect();
    other.half_upload(b"sent by another", "");
    server.until_status(b"sent by another", "uploading");
    let late = wait(&server.url(), "2s");
    assert_eq!(late.status.code(), Some(8), "{late:?}");
    let answer: Value = serde_json::from_slice(&late.stdout).unwrap();
    assert_eq!(answer["missing"], serde_json::json!(["held"]));
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(said.contains("1 files") && said.contains("not on the server: held"), "{said}");
}
