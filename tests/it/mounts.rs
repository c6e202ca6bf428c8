//! Mount namespaces for tests, and mounts in them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Set for a test that runs in a mount namespace of its own.
const INSIDE: &str = "IN_MOUNT_NAMESPACE";

/// Arguments of unshare(1) for a mount namespace: as root, and as a user.
const WAYS: [&[&str]; 2] = [&["-m"], &["-U", "-r", "-m"]];

/// Runs a test, which has this name, in a mount namespace of its own: this program starts itself
/// again for it. Where the system allows no namespace, says so and runs the test here. The test is
/// told which.
pub fn in_namespace(name: &str, test: impl FnOnce(bool)) {
    if std::env::var_os(INSIDE).is_some() {
        return test(true);
    }
    let dir = tempfile::tempdir().unwrap();
    let works = |way: &&[&str]| {
        let mut command = Command::new("unshare");
        command.args(*way).args(["mount", "-t", "tmpfs", "tmpfs"]).arg(dir.path());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let Some(way) = WAYS.into_iter().find(works) else {
        eprintln!("NOT TESTED: {name} with mounts: this system allows no mount namespace");
        return test(false);
    };
    let output = Command::new("unshare")
        .args(way)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        // Progress and panics are shown as they come.
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}");
    // A name that is none would run nothing.
    assert!(stdout.contains("1 passed"), "{stdout}");
}

/// Something that is mounted until this is dropped.
pub struct MountGuard(PathBuf);

impl MountGuard {
    /// `None`, and a line on standard error, if the system refuses.
    pub fn attempt(arguments: &[&str], at: &Path) -> Option<Self> {
        let output = Command::new("mount").args(arguments).arg(at).output().unwrap();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("NOT TESTED: mount {arguments:?}: {error}");
            return None;
        }
        Some(Self(at.to_owned()))
    }

    pub fn new(arguments: &[&str], at: &Path) -> Self {
        Self::attempt(arguments, at).expect("a tmpfs could be mounted here")
    }

    pub fn tmpfs(at: &Path) -> Self {
        Self::new(&["-t", "tmpfs", "tmpfs"], at)
    }

    pub fn bind(from: &Path, at: &Path) -> Self {
        Self::new(&["--bind", from.to_str().unwrap()], at)
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
