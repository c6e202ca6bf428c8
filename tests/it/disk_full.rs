//! A disk that is really full: a small file system of its own, which only the server sees.
//!
//! Mounting it takes a name space of mounts: those that users may make for themselves, or those of
//! root. Where neither is to be had, the errors of a full disk are made by fault points instead.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    addon::{SESSIONS, Session, is_shaman, send},
    common::*,
};

/// Ways to get a name space of mounts.
const WAYS: [&[&str]; 2] = [&["-U", "-r", "-m"], &["-m"]];

/// Mounts a file system of this size on the first argument, and becomes the rest of them.
const MOUNT: &str = "mount -t tmpfs -o size=8m,nr_inodes=1500 tmpfs \"$1\" && shift && exec \"$@\"";

/// A command that runs `program` with a small file system on `dir`; `None` where that cannot be.
pub(super) fn with_small_disk(program: &Command, dir: &Path) -> Option<Command> {
    let command = |way: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(way).args(["sh", "-c", MOUNT, "sh"]).arg(dir);
        command
    };
    let works = |way: &[&str]| {
        let output = command(way).arg("true").stderr(Stdio::null()).status();
        output.is_ok_and(|status| status.success())
    };
    let way = WAYS.into_iter().find(|way| works(way))?;
    let mut command = command(way);
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(command)
}

fn serve(home: &Path, storage: &Path) -> Command {
    let mut command = farmhand(home);
    command.env("FARMHAND_STORE_RESERVE", "0 B");
    command.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(storage);
    command
}

/// What is left behind by what has failed.
fn leftovers(storage: &Path) -> usize {
    ["file-store/uploading", "jobs/.farmhand-building"]
        .map(|dir| fs::read_dir(storage.join(dir)).unwrap().count())
        .iter()
        .sum()
}

fn create(server: &ServerProcess, files: &[Value]) -> Answer {
    let body = json!({ "checkoutPath": "show/demo", "files": files });
    server.connect().post_json("checkout/create", &body)
}

/// Writes to a file until there is no room for another byte.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        loop {
            match file.write_all(&vec![1; size]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Makes files until there can be no other one.
fn fill_with_files(dir: &Path) -> Vec<PathBuf> {
    let mut made = Vec::new();
    loop {
        let path = dir.join(made.len().to_string());
        match File::create(&path) {
            Ok(_) => made.push(path),
            Err(error) if error.kind() == ErrorKind::StorageFull => return made,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_disk_that_is_really_full_loses_nothing_and_goes_on_when_there_is_room() {
    let home = tempfile::tempdir().unwrap();
    let disk = home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let program = serve(home.path(), &disk.join("storage"));
    let Some(mut command) = with_small_disk(&program, &disk) else {
        eprintln!("no small file system can be mounted here: its errors are made by fault points");
        return a_disk_that_says_it_is_full_loses_nothing();
    };
    let server = ServerProcess::spawn(command.stderr(Stdio::null()));
    // As the server sees it.
    let disk = PathBuf::from(format!("/proc/{}/root{}", server.child.id(), disk.display()));
    let storage = disk.join("storage");
    let free = || rustix::fs::statvfs(&disk).map(|found| found.f_bavail * found.f_frsize).unwrap();
    assert!(free() < 8 << 20, "this is not the small disk");

    let (one, other) = (random(500_000), random(600_000));
    assert_eq!(server.connect().upload(&one, "").status, 204);
    // It becomes full while a file is being received.
    let mut sender = server.connect();
    sender.half_upload(&other, "");
    let received = || {
        let files = fs::read_dir(storage.join("file-store/uploading")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    until(|| received() == 300_000);
    fill(&disk.join("filler"));
    assert_eq!(free(), 0);
    sender.other_half(&other).is_error(507, "the server's storage is full");
    assert_eq!(leftovers(&storage), 0);
    // And it is full when one begins.
    fill(&disk.join("more filler"));
    server.connect().upload(&other, "").is_error(507, "are still to come");
    assert_eq!(leftovers(&storage), 0);
    // What was stored is, and can still be asked for.
    assert_eq!(server.connect().upload(&one, "").status, 208);
    let files = [file(&one, "a"), file(&other, "b")];
    create(&server, &files).is_error(424, "not stored");

    // With room again, it goes on.
    fs::remove_file(disk.join("filler")).unwrap();
    fs::remove_file(disk.join("more filler")).unwrap();
    assert_eq!(server.connect().upload(&other, "").status, 204);

    // Now there can be no more files; and then just enough for a part of a checkout.
    let fillers = disk.join("fillers");
    fs::create_dir(&fillers).unwrap();
    let mut made = fill_with_files(&fillers);
    let many: Vec<_> = (0..200).map(|i| file(&one, &format!("dir{}/{i}", i % 7))).collect();
    create(&server, &many).is_error(507, "the server's storage is full");
    server.connect().upload(&random(100), "").is_error(507, "the server's storage is full");
    for path in made.drain(made.len() - 60..) {
        fs::remove_file(path).unwrap();
    }
    create(&server, &many).is_error(507, "the server's storage is full");
    assert_eq!(leftovers(&storage), 0);
    assert!(!storage.join("jobs/show").exists(), "half a checkout is there");
    for path in made {
        fs::remove_file(path).unwrap();
    }
    let answer = create(&server, &many);
    assert_eq!(answer.json()["checkoutPath"], "show/demo");
    let checkout = tree(&storage.join("jobs/show/demo"));
    assert_eq!(checkout.len(), 200);
    assert!(checkout.values().all(|content| *content == one));
    assert_eq!(tree(&storage.join("file-store/stored")).len(), 2);
    assert_eq!(leftovers(&storage), 0);
}

/// The add-on submits to a disk on which half of its files have room, alone or two of them at once: it is told
/// so, what else there is goes on being answered, and with room again the same session makes its checkout and
/// its job.
#[test]
fn a_submission_to_a_nearly_full_disk_is_refused_and_goes_on_when_there_is_room() {
    for names in [&SESSIONS[..1], &SESSIONS[1..], &SESSIONS[..]] {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let program = serve(home.path(), &disk.join("storage"));
        let Some(mut command) = with_small_disk(&program, &disk) else {
            return eprintln!("not checked: no small file system can be mounted here");
        };
        let server = ServerProcess::spawn(command.stderr(Stdio::null()));
        let disk = PathBuf::from(format!("/proc/{}/root{}", server.child.id(), disk.display()));
        let storage = disk.join("storage");
        let free = || {
            let found = rustix::fs::statvfs(&disk).unwrap();
            found.f_bavail * found.f_frsize
        };
        let filler = File::create(disk.join("filler")).unwrap();
        let room = free() - (1 << 20);
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, room).unwrap();
        drop(filler); // an open file keeps its room

        let sessions: Vec<_> = names.iter().map(|name| Session::load(name)).collect();
        let submit = |session: &Session| {
            let mut refused = 0;
            for step in session.steps.iter().filter(|step| is_shaman(step)) {
                let answer = send(&mut server.connect(), step);
                let path = step["path"].as_str().unwrap();
                if path.ends_with("/create") {
                    answer.is_error(424, "not stored");
                } else if path.contains("/shaman/files/") && answer.status == 507 {
                    answer.is_error(507, "the server's storage is full");
                    refused += 1;
                } else {
                    assert!([200, 204, 208].contains(&answer.status), "{path}: {answer:?}");
                }
            }
            refused
        };
        let refused: Vec<usize> = std::thread::scope(|scope| {
            let all: Vec<_> =
                sessions.iter().map(|session| scope.spawn(|| submit(session))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(refused.iter().all(|refused| *refused > 0), "{names:?}: there was room");
        let session = &sessions[0];
        assert_eq!(leftovers(&storage), 0);
        // Not even a byte: what only reads is served, and no job is kept that would be lost.
        fill(&disk.join("more filler"));
        let mut connection = server.connect();
        for path in ["/api/v3/version", "/api/v3/jobs/types", "/api/v3/jobs", "/healthz"] {
            assert_eq!(connection.get(path).status, 200, "{path}");
        }
        let types = connection.get("/api/v3/jobs/types").json();
        let job = session.steps.iter().find(|step| {
            let path = step["path"].as_str().unwrap();
            path.ends_with("/api/v3/jobs") && step["method"] == "POST"
        });
        let mut job = job.unwrap()["json"].clone();
        job["type_etag"] = types["job_types"][0]["etag"].clone();
        // As large as it may be, so that it finds no gap.
        job["metadata"]["notes"] = "x".repeat(200_000).into();
        let body = job.to_string();
        let kind = "Content-Type: application/json\r\n";
        connection.send(&post_head("/api/v3/jobs", kind, body.len() as u64));
        connection.send(body.as_bytes());
        connection.answer().is_error(507, "full");
        assert_eq!(connection.get("/api/v3/jobs").json()["jobs"], json!([]));

        for filler in ["filler", "more filler"] {
            fs::remove_file(disk.join(filler)).unwrap();
        }
        std::thread::scope(|scope| {
            for session in &sessions {
                scope.spawn(|| {
                    let (checkout, job) = session.replay_whole(server.address());
                    session.check(&storage, &checkout);
                    let path = format!("/api/v3/jobs/{}", job["id"].as_str().unwrap());
                    assert_eq!(server.connect().get(&path).json()["id"], job["id"]);
                });
            }
        });
        assert_eq!(leftovers(&storage), 0);
    }
}

/// The same with errors that are made.
#[test]
fn a_disk_that_says_it_is_full_loses_nothing() {
    let (one, other) = (random(500_000), random(600_000));
    let files = [file(&one, "dir/a"), file(&other, "dir/b")];
    for fault in ["write:2=28", "create-file:2=28", "rename:2=28", "sync-data:2=28"] {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        let mut command = serve(home.path(), &storage);
        let command = command.env("FARMHAND_FAULT", fault).stderr(Stdio::null());
        let server = ServerProcess::spawn(command);
        let uploads = [&one, &other, &one, &other];
        let statuses = uploads.map(|content| server.connect().upload(content, "").status);
        // A body may come in one piece or in many.
        let expected: &[[u16; 4]] = match fault {
            "write:2=28" => &[[507, 204, 204, 208], [204, 507, 208, 204]],
            _ => &[[204, 507, 208, 204]],
        };
        assert!(expected.contains(&statuses), "{fault}: {statuses:?}");
        assert_eq!(leftovers(&storage), 0, "{fault}");
        assert_eq!(tree(&storage.join("file-store/stored")).len(), 2, "{fault}");
        assert_eq!(create(&server, &files).status, 200, "{fault}");
    }
    for fault in ["symlink:2=28", "rename:3=28"] {
        let home = tempfile::tempdir().unwrap();
        let storage = home.path().join("storage");
        let mut command = serve(home.path(), &storage);
        let command = command.env("FARMHAND_FAULT", fault).stderr(Stdio::null());
        let server = ServerProcess::spawn(command);
        assert_eq!([&one, &other].map(|c| server.connect().upload(c, "").status), [204, 204]);
        create(&server, &files).is_error(507, "the server's storage is full");
        assert_eq!(leftovers(&storage), 0, "{fault}");
        assert!(!storage.join("jobs/show").exists(), "{fault}");
        assert_eq!(create(&server, &files).json()["checkoutPath"], "show/demo");
    }
}
