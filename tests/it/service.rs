//! The agent as a service, with a `systemctl` that notes what it is asked.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::farmhand;

struct Systemd {
    home: tempfile::TempDir,
}

impl Systemd {
    /// One that answers like this.
    fn new(answers: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let bin = home.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\n{answers}\n",
            home.path().join("calls").display()
        );
        fs::write(bin.join("systemctl"), script).unwrap();
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = home.path().join("farmhand.toml");
        fs::write(config, "server = \"http://farm:8080/\"\nwatch.folders = [\"project\"]\n")
            .unwrap();
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn unit(&self) -> PathBuf {
        self.path("config/systemd/user/farmhand-watch.service")
    }

    fn service(&self, arguments: &[&str], path: &Path) -> Output {
        let mut command = farmhand(self.home.path());
        // The script needs a shell and echo, which are its own.
        command.env("PATH", path).arg("--config").arg(self.path("farmhand.toml"));
        command.arg("service").args(arguments).output().unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn it_is_installed_shown_and_removed() {
    let systemd = Systemd::new("");
    let bin = systemd.path("bin");
    assert_eq!(systemd.service(&["status"], &bin).status.code(), Some(1));
    let output = systemd.service(&["install"], &bin);
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(systemd.unit()).unwrap();
    let start = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let expected = format!(
        "ExecStart=\"{}\" --config \"{}\" watch",
        env!("CARGO_BIN_EXE_farmhand"),
        systemd.path("farmhand.toml").display()
    );
    assert_eq!(start, expected);
    assert!(text.contains("\nType=notify\n"));
    let enable = "--user enable --now farmhand-watch.service".to_owned();
    assert!(systemd.calls().contains(&enable), "{:?}", systemd.calls());
    let shown = systemd.service(&["status", "--json"], &bin);
    assert!(shown.status.success());
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["running"], &shown["enabled"]), (&true.into(), &true.into()));
    // Again, for a new version of the program.
    assert!(systemd.service(&["install"], &bin).status.success());
    assert!(systemd.service(&["uninstall"], &bin).status.success());
    assert!(!systemd.unit().exists());
    assert!(systemd.calls().iter().any(|call| call.starts_with("--user disable --now")));
    assert_eq!(systemd.service(&["uninstall"], &bin).status.code(), Some(4));
}

#[test]
fn what_others_have_written_is_not_replaced() {
    let systemd = Systemd::new("");
    let bin = systemd.path("bin");
    fs::create_dir_all(systemd.unit().parent().unwrap()).unwrap();
    fs::write(systemd.unit(), "[Service]\n").unwrap();
    let output = systemd.service(&["install"], &bin);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--force"));
    assert_eq!(fs::read_to_string(systemd.unit()).unwrap(), "[Service]\n");
    assert!(systemd.service(&["install", "--force"], &bin).status.success());
}

#[test]
fn where_systemd_is_not_or_fails_that_is_said() {
    let systemd = Systemd::new("[ \"$2\" = --version ] || { echo 'no bus' >&2; exit 1; }");
    let output = systemd.service(&["install"], &systemd.path("bin"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no bus"), "{output:?}");

    let output = systemd.service(&["install"], &systemd.path("nowhere"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("docs/SERVICE.md"), "{output:?}");
    fs::write(systemd.path("farmhand.toml"), "server = \"http://farm:8080/\"\n").unwrap();
    let output = systemd.service(&["install"], &systemd.path("bin"));
    assert_eq!(output.status.code(), Some(2), "nothing to watch");
}
