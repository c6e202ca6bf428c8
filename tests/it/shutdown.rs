//! Servers as processes: how they start, end, and die.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::common::*;

fn uploading(storage: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(storage.join("file-store/uploading")).unwrap().map(Result::unwrap).collect()
}

#[test]
fn after_sigterm_uploads_may_finish() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let mut server = ServerProcess::start(home.path(), &storage, &[]);
    let content = random(1_000_000);
    let mut connection = server.connect();
    let mut idle = server.connect();
    assert_eq!(idle.get("/healthz").status, 200);
    connection.half_upload(&content, "");
    until(|| uploading(&storage).len() == 1);
    server.terminate();
    assert!(idle.is_closed(), "an idle connection is closed at once");
    assert_eq!(connection.other_half(&content).status, 204);
    assert!(server.child.wait().unwrap().success());
    assert!(uploading(&storage).is_empty());
    assert!(std::net::TcpStream::connect(connection.stream.peer_addr().unwrap()).is_err());
}

#[test]
fn after_the_grace_period_uploads_are_broken_off_and_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let config = home.path().join("farmhand.toml");
    fs::write(&config, "[serve]\ngrace = \"100ms\"\n").unwrap();
    let mut server =
        ServerProcess::start(home.path(), &storage, &["--config", config.to_str().unwrap()]);
    let mut connection = server.connect();
    connection.half_upload(&random(1_000_000), "");
    until(|| uploading(&storage).len() == 1);
    server.terminate();
    assert!(server.child.wait().unwrap().success());
    assert!(uploading(&storage).is_empty());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let mut server = ServerProcess::start(home.path(), &storage, &[]);
    let mut connection = server.connect();
    connection.half_upload(&random(1_000_000), "");
    until(|| uploading(&storage).len() == 1);
    let start = Instant::now();
    // Signals of one kind are not counted: send until it is gone.
    until(|| {
        server.terminate();
        server.child.try_wait().unwrap().is_some()
    });
    assert!(start.elapsed() < Duration::from_secs(25), "it took its grace");
    assert!(uploading(&storage).is_empty());
}

#[test]
fn killed_in_the_middle_of_an_upload_it_comes_back_clean_and_the_next_run_succeeds() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let project = home.path().join("project");
    copy(&fixture("blend-project"), &project);
    let big = random(1_000_000);
    fs::write(project.join("big.bin"), &big).unwrap();

    let mut server = ServerProcess::start(home.path(), &storage, &[]);
    let mut connection = server.connect();
    connection.half_upload(&big, "");
    until(|| uploading(&storage).len() == 1);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert_eq!(uploading(&storage).len(), 1, "killed, it cannot have cleaned up");
    // Another server's unfinished business is not ours.
    let foreign = storage.join("file-store/uploading/foreign");
    fs::write(&foreign, "x").unwrap();

    let server = ServerProcess::start(home.path(), &storage, &[]);
    assert_eq!(uploading(&storage).len(), 1);
    assert!(foreign.exists());
    fs::remove_file(foreign).unwrap();
    let output = farmhand(home.path())
        .args(["checkout", "--as", "demo", "--server", &server.url])
        .arg(&project)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(tree(&storage.join("jobs/demo")) == tree(&project));
}

#[test]
fn a_second_server_on_one_store_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let server = ServerProcess::start(home.path(), &storage, &[]);
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["push", "."]] {
        let output =
            farmhand(home.path()).args(command).arg("--storage").arg(&storage).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("in use by another farmhand"), "{message}");
        assert!(message.contains(&server.url) && message.contains("--server"), "{message}");
    }
}

#[test]
fn commands_on_one_store_wait_for_each_other() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    let children: Vec<_> = (0..4)
        .map(|_| {
            farmhand(home.path())
                .args(["checkout", "--as", "demo", "--storage"])
                .arg(&storage)
                .arg(fixture("blend-project"))
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut names = std::collections::HashSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        names.insert(String::from_utf8(output.stdout).unwrap());
    }
    assert_eq!(names.len(), 4);
}
