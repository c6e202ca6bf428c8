//! Folders with what no folder should have: it is named, the rest is done, and nothing hangs.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
        net::UnixListener,
        process::CommandExt,
    },
    path::Path,
    process::Stdio,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use serde_json::Value;

use super::common::*;

/// A folder with three good files, and whatever else `add` puts there.
fn folder(add: impl FnOnce(&Path)) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("p");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    for good in ["good", "a/good", "a/b/good"] {
        fs::write(dir.join(good), good).unwrap();
    }
    add(&dir);
    home
}

/// Has the folder planned without and with reading it, hashed, and made a checkout. Each comes to an end, names these
/// paths with these reasons, and has the good files. As nobody, if permissions matter.
#[track_caller]
fn skips(home: &Path, as_nobody: bool, expected: &[(&str, &str)]) {
    let run = |arguments: &[&str]| {
        let mut command = farmhand(home);
        command.current_dir(home).args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if as_nobody && rustix::process::geteuid().is_root() {
            fs::set_permissions(home, fs::Permissions::from_mode(0o777)).unwrap();
            command.uid(65534);
        }
        let mut child = command.spawn().unwrap();
        // Less than a pipe holds is written: it cannot wait for us.
        until(|| child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let code = if expected.is_empty() { 0 } else { 3 };
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        (String::from_utf8(output.stdout).unwrap(), error)
    };
    let check = |skipped: &Value| {
        let skipped = skipped.as_array().unwrap();
        assert_eq!(skipped.len(), expected.len(), "{skipped:?}");
        for (path, reason) in expected {
            let is_it = |one: &&Value| one["path"].as_str().unwrap().starts_with(path);
            let one = skipped.iter().find(is_it).unwrap_or_else(|| panic!("{path}: {skipped:?}"));
            assert!(one["reason"].as_str().unwrap().contains(reason), "{one}");
        }
    };
    let (hashes, errors) = run(&["hash", "p"]);
    assert_eq!(hashes.lines().count(), 3, "{hashes}");
    assert_eq!(errors.matches("skipped ").count(), expected.len(), "{errors}");

    let (plan, _) = run(&["plan", "p", "--storage", "s", "--json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["totals"]["to_send"]["files"], 3);
    check(&plan["skipped"]);

    let (made, _) = run(&["checkout", "p", "--storage", "s", "--as", "x", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    check(&made["skipped"]);
    let checkout = tree(&home.join("s/jobs/x"));
    for good in ["good", "a/good", "a/b/good"] {
        assert_eq!(checkout[good], good.as_bytes());
    }
    assert_eq!(checkout.len(), 3);
}

#[test]
fn a_file_and_a_folder_that_cannot_be_read() {
    let home = folder(|dir| {
        fs::write(dir.join("locked"), "x").unwrap();
        fs::set_permissions(dir.join("locked"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::create_dir(dir.join("a/closed")).unwrap();
        fs::set_permissions(dir.join("a/closed"), fs::Permissions::from_mode(0o0)).unwrap();
    });
    let expected =
        [("locked", "cannot be read: Permission"), ("a/closed", "cannot be read: Permission")];
    skips(home.path(), true, &expected);
    fs::set_permissions(home.path().join("p/a/closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn directories_that_lead_back_to_themselves() {
    let home = folder(|dir| {
        symlink(".", dir.join("here")).unwrap();
        symlink("../..", dir.join("a/b/up")).unwrap();
        symlink(dir, dir.join("a/absolute")).unwrap();
        symlink("itself", dir.join("itself")).unwrap();
        symlink("pong", dir.join("ping")).unwrap();
        symlink("ping", dir.join("pong")).unwrap();
    });
    let (link, many) = ("a link to a directory", "Too many levels of symbolic links");
    let expected = [
        ("here", link),
        ("a/b/up", link),
        ("a/absolute", link),
        ("itself", many),
        ("ping", many),
        ("pong", many),
    ];
    skips(home.path(), false, &expected);
}

#[test]
fn pipes_sockets_and_devices_also_behind_links() {
    let mut socket = None;
    let mut expected = vec![
        ("a/pipe", "a pipe"),
        ("socket", "a socket"),
        ("to pipe", "a pipe"),
        ("to socket", "a socket"),
        ("to null", "a device"),
    ];
    let home = folder(|dir| {
        mknodat(CWD, dir.join("a/pipe"), FileType::Fifo, Mode::from(0o644), 0).unwrap();
        socket = Some(UnixListener::bind(dir.join("socket")).unwrap());
        symlink("a/pipe", dir.join("to pipe")).unwrap();
        symlink("socket", dir.join("to socket")).unwrap();
        symlink("/dev/null", dir.join("to null")).unwrap();
        // The device of /dev/zero, which never ends. Not everybody may make one.
        let zero = rustix::fs::makedev(1, 5);
        let made =
            mknodat(CWD, dir.join("zero"), FileType::CharacterDevice, Mode::from(0o644), zero);
        if made.is_ok() {
            expected.push(("zero", "a device"));
        }
    });
    skips(home.path(), false, &expected);
}

#[test]
fn names_that_are_no_utf_8() {
    let name = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    let home = folder(|dir| {
        fs::write(dir.join(name(b"latin1-\xfc.png")), "x").unwrap();
        fs::create_dir(dir.join(name(b"a/dir-\xff"))).unwrap();
        fs::write(dir.join(name(b"a/dir-\xff/inside")), "x").unwrap();
        fs::write(dir.join("ok-back\\slash"), "x").unwrap();
    });
    let expected = [
        ("latin1-", "its name is not UTF-8"),
        ("a/dir-", "its name is not UTF-8"),
        ("ok-back", "its name cannot be sent"),
    ];
    skips(home.path(), false, &expected);
}

/// Makes directories below each other, whose path has this length, and a file in the last one.
fn deep(dir: &Path, name: &str, path_bytes: usize) {
    let directory = |at: &rustix::fd::OwnedFd, name: &str| {
        mkdirat(at, name, Mode::from(0o755)).unwrap();
        openat(at, name, OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let root = openat(CWD, dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut at = directory(&root, name);
    let mut left = path_bytes - name.len();
    while left > 0 {
        // One for the separator.
        let part = "d".repeat(if left > 250 { 199.min(left - 1) } else { left - 1 });
        left -= part.len() + 1;
        at = directory(&at, &part);
    }
    let file = openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o644)).unwrap();
    rustix::io::write(&file, b"x").unwrap();
}

#[test]
fn paths_that_are_longer_than_may_be() {
    let home = folder(|dir| {
        // Longer than a checkout may have, than the system opens at once, and than one page.
        deep(dir, "3100", 3100);
        deep(dir, "4096", 4096);
        deep(dir, "9000", 9000);
    });
    let expected = [
        ("3100", "is longer than 3072"),
        ("4096", "cannot be read: File name too long"),
        ("9000", "cannot be read: File name too long"),
    ];
    skips(home.path(), false, &expected);
}

#[test]
fn a_path_of_4096_bytes_that_is_given() {
    let home = folder(|_| {});
    let long = "x/".repeat(2048);
    for command in ["hash", "plan", "push"] {
        let mut farmhand = farmhand(home.path());
        farmhand.env("FARMHAND_STORAGE", home.path().join("store"));
        let output = farmhand.args([command, &long]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("File name too long"), "{error}");
    }
}

#[test]
fn more_folders_below_each_other_than_may_be() {
    let home = folder(|dir| {
        let path = dir.join(["d"; 200].join("/"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
    });
    skips(home.path(), false, &[("d/d/d", "more than 128 parts")]);
}

#[test]
fn strict_leaves_nothing_out() {
    let home = folder(|dir| symlink("nowhere", dir.join("broken")).unwrap());
    let storage = home.path().join("s");
    let run = |arguments: &[&str]| {
        let mut command = farmhand(home.path());
        let output = command.current_dir(home.path()).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    for arguments in [
        &["checkout", "p", "--strict", "--as", "x", "--storage", "s"][..],
        &["push", "p", "--strict", "--storage", "s"],
        &["hash", "p", "--strict"],
    ] {
        let (code, _, error) = run(arguments);
        assert_eq!(code, 4, "{arguments:?}: {error}");
        assert!(error.contains("broken") && error.contains("does not exist"), "{error}");
    }
    assert!(!storage.join("jobs/x").exists());
    // Nothing was sent.
    let (code, out, error) = run(&["checkout", "p", "--as", "x", "--storage", "s", "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["uploaded_files"]), (3, &3.into()), "{error}");
    fs::remove_file(home.path().join("p/broken")).unwrap();
    assert_eq!(run(&["checkout", "p", "--strict", "--as", "y", "--storage", "s"]).0, 0);
    assert_eq!(tree(&storage.join("jobs/y")).len(), 3);
}
