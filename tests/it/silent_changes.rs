//! Changes of a watched folder that the system reports by no event: mounts, links, other names of a
//! file.
//!
//! After each change, a checkout through the agent must equal the folder at once. docs/DESIGN.md
//! lists all such changes ("Changes without events").

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use farmhand::disk::Mounts;

use crate::{
    common::{TestServer, farmhand, until},
    mounts::{self, MountGuard},
    watch::{AgentProcess, checked_out, files, write},
};

/// Runs a test of this file in a mount namespace of its own. Where the system allows none, only
/// checks that the mount table is understood.
fn in_mount_namespace(name: &str, test: impl FnOnce()) {
    mounts::in_namespace(&format!("silent_changes::{name}"), |is_alone| match is_alone {
        true => test(),
        false => mount_table_is_understood(),
    });
}

fn mount_table_is_understood() {
    let dir = Path::new("/data/show");
    let parse = |line: &str| {
        let table = format!("22 1 8:1 / / rw - ext4 /dev/root rw\n{line}\n");
        Mounts::parse(table.as_bytes(), dir)
    };
    let before = parse("");
    assert_ne!(parse("30 22 0:9 / /data/show/x rw - tmpfs tmpfs rw"), before);
    assert_ne!(parse("30 22 0:9 / /data rw - tmpfs tmpfs rw"), before);
    assert_eq!(parse("30 22 0:9 / /data/showreel rw - tmpfs tmpfs rw"), before);
}

/// A watched folder, all of it on the server.
struct WatchedFolder {
    home: tempfile::TempDir,
    project: PathBuf,
    server: TestServer,
    agent: AgentProcess,
}

impl WatchedFolder {
    /// `prepare` gets the directory that holds `project`.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let project = home.path().join("project");
        write(&project, "file", "begin");
        prepare(home.path());
        let server = TestServer::start();
        let agent = AgentProcess::start(home.path(), &[&project], &server.url(), &[]);
        agent.until_state("synced");
        Self { home, project, server, agent }
    }

    fn dir(&self) -> &Path {
        self.home.path()
    }

    /// A checkout that begins now equals the folder as it is now.
    #[track_caller]
    fn check(&self, after: &str) {
        let (url, storage) = (self.server.url(), self.server.storage());
        let found = checked_out(self.dir(), &self.project, &url, &storage);
        assert_eq!(found, files(&self.project), "after: {after}");
    }

    /// The agent uploads a new file by itself.
    fn check_upload(&self, path: &Path) {
        let content = path.to_string_lossy().into_owned();
        fs::write(path, &content).unwrap();
        self.server.until_status(content.as_bytes(), "stored");
    }
}

#[test]
fn a_disk_mounted_inside_is_seen() {
    in_mount_namespace("a_disk_mounted_inside_is_seen", || {
        let watched = WatchedFolder::new(|home| write(home, "project/late/below", "below"));
        let late = watched.project.join("late");
        watched.check("start");

        let disk = MountGuard::tmpfs(&late);
        write(&late, "cache.vdb", "one");
        watched.check("mount");
        drop(disk);
        watched.check("unmount");
        // Without a checkout that makes the agent look.
        let disk = MountGuard::tmpfs(&late);
        watched.check_upload(&late.join("later"));
        drop(disk);
        watched.check("unmount");
        watched.check_upload(&late.join("revealed"));

        let disk = MountGuard::tmpfs(&late);
        write(&late, "cache.vdb", "two");
        watched.check_upload(&late.join("again"));
        watched.check("second mount");
        // The next one may get the numbers of this one: the mount table then reads the same.
        drop(disk);
        let _disk = MountGuard::tmpfs(&late);
        write(&late, "cache.vdb", "3!!");
        watched.check("exchange");
        watched.check_upload(&late.join("last"));
    });
}

#[test]
fn a_disk_exchanged_inside_is_seen() {
    in_mount_namespace("a_disk_exchanged_inside_is_seen", || {
        let images = ["one", "two"].map(|content| {
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(4 << 20).unwrap();
            let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()).status();
            (image, content, made.is_ok_and(|status| status.success()))
        });
        if images.iter().any(|(.., made)| !made) {
            return eprintln!("NOT TESTED: mkfs.ext4 makes no file system here");
        }
        let watched = WatchedFolder::new(|home| fs::create_dir(home.join("project/disk")).unwrap());
        let disk = watched.project.join("disk");
        for round in 0..4 {
            let (image, content, _) = &images[round % 2];
            let path = image.path().to_str().unwrap();
            let Some(_mounted) = MountGuard::attempt(&["-o", "loop", path], &disk) else { return };
            if round < 2 {
                write(&disk, "frame", content);
            }
            watched.check(&format!("mount {round}"));
            watched.check_upload(&disk.join(format!("new{round}")));
            watched.check(&format!("upload {round}"));
        }
        watched.check("unmount");
    });
}

#[test]
fn bind_mounts_inside_are_seen() {
    in_mount_namespace("bind_mounts_inside_are_seen", || {
        let watched = WatchedFolder::new(|home| {
            write(home, "project/bound/below", "below");
            write(home, "elsewhere/dir/a", "a");
            write(home, "elsewhere/other/a", "another a");
            write(home, "elsewhere/file", "elsewhere");
        });
        let elsewhere = watched.dir().join("elsewhere");
        let bound = watched.project.join("bound");
        let dir = MountGuard::bind(&elsewhere.join("dir"), &bound);
        watched.check("bind");
        write(&elsewhere, "dir/a", "changed elsewhere");
        watched.check("change elsewhere");
        write(&elsewhere, "dir/sub/new", "made elsewhere");
        watched.check("new file elsewhere");
        watched.check_upload(&elsewhere.join("dir/sub/later"));
        drop(dir);
        let other = MountGuard::bind(&elsewhere.join("other"), &bound);
        watched.check("another directory");
        watched.check_upload(&elsewhere.join("other/later"));
        drop(other);
        watched.check("unbind");

        // The file has no second name, and its directory is not watched.
        let file = MountGuard::bind(&elsewhere.join("file"), &watched.project.join("file"));
        watched.check("bound file");
        write(&elsewhere, "file", "changed");
        watched.check("change of the bound file");
        drop(file);
        watched.check("unbound file");
    });
}

#[test]
fn changed_overlay_layers_are_seen() {
    in_mount_namespace("changed_overlay_layers_are_seen", || {
        let mut overlay = None;
        let watched = WatchedFolder::new(|home| {
            write(home, "lower/dir/file", "lower");
            write(home, "upper/other", "upper");
            fs::create_dir(home.join("project/merged")).unwrap();
            let layers = ["upper", "lower"].map(|name| home.join(name).display().to_string());
            let layers = format!("lowerdir={}:{}", layers[0], layers[1]);
            let arguments = ["-t", "overlay", "overlay", "-o", &layers];
            overlay = MountGuard::attempt(&arguments, &home.join("project/merged"));
        });
        if overlay.is_none() {
            return;
        }
        watched.check("start");
        write(watched.dir(), "lower/dir/file", "changed");
        watched.check("change of a lower layer");
        write(watched.dir(), "lower/dir/new", "new");
        watched.check("new file in a lower layer");
        let watch = watched.agent.folder()["watch"].clone();
        assert_eq!(watch["mode"], "poll", "{watch}");
        let reason = watch["reason"].as_str().unwrap();
        assert!(reason.contains("merged is on overlay"), "{reason}");
        drop(overlay);
        watched.check("unmount");
        until(|| watched.agent.folder()["watch"]["mode"] == "events");
    });
}

/// A message queue file system is none that the agent knows, which is treated like a network disk.
#[test]
fn a_network_disk_inside_is_polled() {
    in_mount_namespace("a_network_disk_inside_is_polled", || {
        let watched = WatchedFolder::new(|home| fs::create_dir(home.join("project/net")).unwrap());
        let mode = || watched.agent.folder()["watch"].clone();
        assert_eq!(mode()["mode"], "events");
        let net = watched.project.join("net");
        let Some(disk) = MountGuard::attempt(&["-t", "mqueue", "mqueue"], &net) else { return };
        until(|| mode()["mode"] == "poll");
        let reason = mode()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(&format!("{} is on ", net.display())), "{reason}");
        assert!(watched.agent.log().contains(&reason), "{}", watched.agent.log());
        write(&watched.project, "file", "changed");
        watched.check("change while polling");
        drop(disk);
        until(|| mode()["mode"] == "events");
        watched.check("unmount");
    });
}

#[test]
fn a_hard_link_changed_elsewhere_is_seen() {
    let watched = WatchedFolder::new(|home| {
        write(home, "elsewhere/old", "old");
        fs::hard_link(home.join("elsewhere/old"), home.join("project/old")).unwrap();
    });
    let elsewhere = watched.dir().join("elsewhere");
    write(&elsewhere, "old", "changed");
    watched.check("change by the other name");
    // The folder has had no event: a link is told to the directory that gets it.
    fs::hard_link(watched.project.join("file"), elsewhere.join("new")).unwrap();
    watched.check("new link");
    watched.agent.until_state("synced");
    watched.check("new link");
    write(&elsewhere, "new", "changed");
    watched.check("change by the new name");
}

#[test]
fn link_targets_changed_elsewhere_are_seen() {
    let watched = WatchedFolder::new(|home| {
        write(home, "elsewhere/target", "target");
        symlink(home.join("elsewhere/target"), home.join("project/link")).unwrap();
    });
    let elsewhere = watched.dir().join("elsewhere");
    write(&elsewhere, "target", "changed");
    watched.check("changed target");
    write(&elsewhere, "other", "exchange");
    fs::rename(elsewhere.join("other"), elsewhere.join("target")).unwrap();
    watched.check("exchanged target");
}

#[test]
fn a_link_target_that_appears_is_seen() {
    let watched = WatchedFolder::new(|home| {
        fs::create_dir(home.join("elsewhere")).unwrap();
        symlink(home.join("elsewhere/target"), home.join("project/link")).unwrap();
    });
    let checkout = || {
        let mut command = farmhand(watched.dir());
        command.arg("checkout").arg(&watched.project);
        command.args(["--server", &watched.server.url()]).output().unwrap()
    };
    // A broken link is reported.
    assert_eq!(checkout().status.code(), Some(3));
    write(watched.dir(), "elsewhere/target", "appeared");
    watched.check("the target appeared");
}

#[test]
fn rules_that_ignore_themselves_count() {
    let watched = WatchedFolder::new(|home| {
        write(home, "project/.farmhandignore", ".farmhandignore\n*.tmp\n");
        write(home, "project/a.tmp", "a temporary file");
    });
    assert_eq!(watched.server.status(b"a temporary file"), "unknown");
    // Renamed into place: an empty file in between would ignore nothing.
    write(watched.dir(), "rules", ".farmhandignore\n");
    fs::rename(watched.dir().join("rules"), watched.project.join(".farmhandignore")).unwrap();
    watched.server.until_status(b"a temporary file", "stored");
}

#[test]
fn linked_ignore_rules_that_change_are_seen() {
    let watched = WatchedFolder::new(|home| {
        write(home, "elsewhere/rules", ".farmhandignore\n*.tmp\n");
        write(home, "project/a.tmp", "a");
        write(home, "project/b.bak", "b");
        symlink(home.join("elsewhere/rules"), home.join("project/.farmhandignore")).unwrap();
    });
    let paths = || {
        let (url, storage) = (watched.server.url(), watched.server.storage());
        let found = checked_out(watched.dir(), &watched.project, &url, &storage);
        found.into_iter().map(|(path, _)| path).collect::<Vec<_>>()
    };
    assert_eq!(paths(), ["b.bak", "file"]);
    write(watched.dir(), "elsewhere/rules", ".farmhandignore\n*.bak\n");
    assert_eq!(paths(), ["a.tmp", "file"]);
}
