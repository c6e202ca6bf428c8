//! Where data goes: only to a server or a store that is given, and never into itself.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
};

use farmhand::server::FarmOptions;

use super::{
    cli::{Home, Ran, run},
    common::*,
    submit::{FRAMES, failed, nothing_was_sent, submit},
};

fn small_project(home: &Home) {
    fs::create_dir(home.path().join("p")).unwrap();
    fs::write(home.path().join("p/scene.blend"), "x").unwrap();
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_target_is_required() {
    let home = Home::new();
    small_project(&home);
    for arguments in [&["checkout", "p"][..], &["push", "p"], &["wait", "p"], &["store", "list"]] {
        home.run(arguments).fails(2, &["--server URL", "--storage DIR", "FARMHAND_SERVER"]);
    }
    home.run(&["serve", "--listen", "127.0.0.1:0"]).fails(2, &["--storage DIR"]);
    assert!(!home.path().join("data").exists());

    // It sends nothing.
    let ran = home.run(&["plan", "p"]);
    ran.fails_not();
    assert!(ran.out.contains("no --server and no --storage"), "{}", ran.out);
    // Each way to give one.
    home.run(&["push", "p", "--storage", "s"]).fails_not();
    run(farmhand(home.path())
        .current_dir(home.path())
        .args(["push", "p"])
        .env("FARMHAND_STORAGE", "s"))
    .fails_not();
    fs::write(home.path().join("c.toml"), "storage = \"s\"\n").unwrap();
    home.run(&["push", "p", "--config", "c.toml"]).fails_not();
}

#[test]
fn unknown_variables_are_refused() {
    let home = Home::new();
    small_project(&home);
    let push = |name: &str, value: &str| -> Ran {
        let mut command = farmhand(home.path());
        command.current_dir(home.path()).args(["push", "p", "--storage", "s"]);
        run(command.env(name, value))
    };
    push("FARMHAND_SERVR", "http://farm/")
        .fails(2, &["unknown environment variable FARMHAND_SERVR; did you mean FARMHAND_SERVER?"]);
    push("FARMHAND_UPLOAD_PARALEL", "4").fails(2, &["FARMHAND_UPLOAD_PARALLEL?"]);
    push("FARMHAND_", "").fails(2, &["FARMHAND_"]);
    assert!(!home.path().join("s").exists());
    // What farmhand itself sets or reads.
    for (name, value) in [
        ("FARMHAND_JOB_ID", "7"),
        ("FARMHAND_LOG", "warn"),
        ("FARMHAND_FAULT", ""),
        ("FARMHAND_CONFIG", ""),
        ("FARMHAND_UPLOAD_PARALLEL", "4"),
        ("OTHER_FARMHAND_SERVR", "x"),
    ] {
        push(name, value).fails_not();
    }
}

#[test]
fn a_url_is_no_storage() {
    let home = Home::new();
    small_project(&home);
    let before = names_in(home.path());
    for (url, says) in [
        ("s3://bucket/x", "mount that storage"),
        ("http://farm:8080/", "--server"),
        ("HTTPS://farm/", "--server"),
        ("file:///mnt/farm", "write the path alone"),
    ] {
        let says = ["this is a URL", says, url];
        home.run(&["push", "p", "--storage", url]).fails(2, &says);
        let mut command = farmhand(home.path());
        command.current_dir(home.path()).args(["push", "p"]);
        run(command.env("FARMHAND_STORAGE", url)).fails(2, &says);
        assert_eq!(names_in(home.path()), before);
        let config = home.path().join("c.toml");
        fs::write(&config, format!("storage = \"{url}\"\n")).unwrap();
        home.run(&["push", "p", "--config", "c.toml"]).fails(2, &says);
        fs::remove_file(config).unwrap();
    }
    // Such a directory is one.
    home.run(&["push", "p", "--storage", "a:b//c"]).fails_not();
}

#[test]
fn a_store_in_its_project_is_refused() {
    let home = Home::new();
    small_project(&home);
    symlink(home.path().join("p"), home.path().join("link")).unwrap();
    for store in ["p/store", "p", "link/store/deep", "p/../p/store"] {
        for command in ["checkout", "push", "wait", "plan"] {
            let ran = home.run(&[command, "p", "--storage", store]);
            ran.fails(2, &["is inside the folder", "nothing was sent"]);
        }
        assert_eq!(names_in(&home.path().join("p")), ["scene.blend"]);
    }
    home.run(&["push", "p", "--storage", "p-store"]).fails_not();
    // Also if it belongs to a server of this machine.
    let config = home.path().join("c.toml");
    fs::write(&config, "server = \"http://127.0.0.1:1/\"\nstorage = \"p/store\"\n").unwrap();
    home.run(&["push", "p", "--config", "c.toml"]).fails(2, &["is inside the folder"]);
    let mut command = farmhand(home.path());
    command.current_dir(home.path()).args(["watch", "p", "--config", "c.toml"]);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It says what it watches, or ends.
    let mut said = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut said).unwrap();
    if !said.is_empty() {
        watch.kill().unwrap();
    }
    let output = watch.wait_with_output().unwrap();
    assert_eq!(said, "");
    failed(&output, 2, "is inside the folder");
}

#[test]
fn a_project_in_a_store_is_refused() {
    let home = Home::new();
    small_project(&home);
    home.run(&["checkout", "p", "--storage", "s", "--as", "x"]).fails_not();
    for storage in ["s", "other"] {
        for dir in ["s", "s/jobs/x"] {
            let ran = home.run(&["checkout", dir, "--storage", storage]);
            assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
        }
        let ran = home.run(&["push", "s/jobs/x", "--storage", storage]);
        ran.fails(2, &["is inside the store"]);
    }
    assert!(!home.path().join("other").exists());
}

/// The settings of the client know nothing of it.
#[test]
fn a_served_store_in_the_project_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let project = home.path().join("p");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("scene.blend"), "x").unwrap();
    let served = ServerProcess::start(home.path(), &project.join("sub/store"), &[]);
    let project = project.to_str().unwrap();
    for command in ["checkout", "push", "wait", "plan"] {
        let mut farmhand = farmhand(home.path());
        run(farmhand.args([command, project, "--server", &served.url]))
            .fails(2, &["the store", "is inside the folder"]);
    }
    let server = TestServer::with_farm(FarmOptions::default());
    let more = [&FRAMES[..], &["--root", project]].concat();
    let file = Path::new(project).join("scene.blend");
    failed(&submit(&home, &file, &server.url(), &more), 2, "is inside the folder");
    nothing_was_sent(&server);
}
