//! `farmhand service`, with a `systemctl` that notes down what it is asked to do.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    cli::{Home, Ran, run},
    common::*,
};

const SHOW: &str = "--user show --property=Version";
const RELOAD: &str = "--user daemon-reload";
const ENABLE: &str = "--user enable --now farmhand-watch.service";
const RESTART: &str = "--user try-restart farmhand-watch.service";
const DISABLE: &str = "--user disable --now farmhand-watch.service";

/// A user with a configuration, and a `systemctl` of their own.
struct User(Home);

impl User {
    /// `script` is what the `systemctl` does besides noting down how it was called.
    fn new(script: &str) -> Self {
        let user = Self(Home::new());
        fs::create_dir(user.at("bin")).unwrap();
        user.systemctl(script);
        fs::create_dir_all(user.at("config/farmhand")).unwrap();
        user.configure("server = \"http://farm:8080/\"\nwatch.folders = [\"/projects\"]\n");
        user
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn configure(&self, text: &str) {
        fs::write(self.at("config/farmhand/config.toml"), text).unwrap();
    }

    fn systemctl(&self, script: &str) {
        let (file, calls) = (self.at("bin/systemctl"), self.at("calls"));
        let text = format!("#!/bin/sh\necho \"$*\" >> '{}'\n{script}\n", calls.display());
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = farmhand(self.0.path());
        command.current_dir(self.0.path()).arg("service").args(arguments);
        command.env("PATH", self.at("bin"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    /// How `systemctl` was called since this was last asked.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.at("calls"));
        text.lines().map(str::to_owned).collect()
    }

    fn unit(&self) -> PathBuf {
        self.at("config/systemd/user/farmhand-watch.service")
    }
}

/// The value of a key of a unit.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let pairs = unit.lines().filter_map(|line| line.split_once('='));
    let values: Vec<_> = pairs.filter(|(found, _)| *found == key).collect();
    let [(_, value)] = values[..] else { panic!("not one {key} in {unit}") };
    value
}

#[test]
fn it_is_installed_enabled_started_and_removed() {
    let user = User::new("");
    let ran = user.run(&["install"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(user.calls(), [SHOW, RELOAD, ENABLE]);
    assert!(ran.out.contains(user.unit().to_str().unwrap()), "{}", ran.out);
    assert!(ran.out.contains("loginctl enable-linger"), "{}", ran.out);
    let unit = fs::read_to_string(user.unit()).unwrap();
    let program = env!("CARGO_BIN_EXE_farmhand");
    assert_eq!(value(&unit, "ExecStart"), format!("\"{program}\" watch"));
    for (key, expected) in [
        ("Type", "notify"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2 6"),
        ("NoNewPrivileges", "yes"),
        ("WantedBy", "default.target"),
    ] {
        assert_eq!(value(&unit, key), expected, "{key}");
    }

    // Again: nothing is written, and nothing started anew.
    let again = user.run(&["install", "--json"]).json();
    assert_eq!(again["written"], json!(false));
    assert_eq!(user.calls(), [SHOW, RELOAD, ENABLE]);

    let ran = user.run(&["uninstall"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(user.calls(), [DISABLE, RELOAD]);
    assert!(!user.unit().exists());
    // Twice is no mistake.
    let ran = user.run(&["uninstall"]);
    assert!(ran.code == 0 && ran.out.contains("not installed"), "{}", ran.out);
    assert!(user.calls().is_empty());
}

#[test]
fn print_does_nothing_and_what_it_prints_is_what_is_installed() {
    let user = User::new("exit 1");
    let printed = user.run(&["install", "--print"]);
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    assert!(user.calls().is_empty() && !user.at("config/systemd").exists());
    user.systemctl("");
    user.run(&["install"]).fails_not();
    assert_eq!(fs::read_to_string(user.unit()).unwrap(), printed.out);
}

#[test]
fn a_configuration_that_was_given_counts_for_the_service() {
    let user = User::new("");
    let odd = user.at("my farm %h $HOME \"x\".toml");
    fs::copy(user.at("config/farmhand/config.toml"), &odd).unwrap();
    let name = odd.file_name().unwrap().to_str().unwrap();
    // Relative to where we are, which is not where the service will be.
    let flag = user.run(&["install", "--print", "--config", name]);
    let env = run(user.command(&["install", "--print"]).env("FARMHAND_CONFIG", name));
    assert_eq!(flag.out, env.out);
    let quoted = format!("{}/my farm %%h $$HOME \\\"x\\\".toml", user.0.path().display());
    let start = value(&flag.out, "ExecStart").to_owned();
    assert!(start.ends_with(&format!(" watch --config \"{quoted}\"")), "{start}");

    let set_here = run(user.command(&["install"]).env("FARMHAND_TOKEN", "very-secret"));
    assert_eq!(set_here.code, 0);
    assert!(set_here.err.contains("FARMHAND_TOKEN is set here"), "{}", set_here.err);
    assert!(!fs::read_to_string(user.unit()).unwrap().contains("secret"));
}

#[test]
fn what_could_not_watch_anything_is_not_installed() {
    let user = User::new("");
    for (config, says) in [
        ("server = \"http://farm:8080/\"\n", "watch.folders"),
        ("watch.folders = [\"/projects\"]\n", "/projects has no server"),
    ] {
        user.configure(config);
        user.run(&["install"]).fails(2, &[says]);
    }
    assert!(user.calls().is_empty() && !user.unit().exists());
}

#[test]
fn a_unit_that_was_edited_is_left_alone_unless_forced() {
    let user = User::new("");
    user.run(&["install"]).fails_not();
    let ours = fs::read_to_string(user.unit()).unwrap();
    let edited = ours.replace("Nice=10", "Nice=5");
    fs::write(user.unit(), &edited).unwrap();
    user.calls();
    for command in ["install", "uninstall"] {
        user.run(&[command]).fails(1, &["changed by hand", "--force"]);
        assert_eq!(fs::read_to_string(user.unit()).unwrap(), edited);
        assert!(!user.calls().iter().any(|call| call != SHOW));
    }
    let ran = user.run(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["edited"], json!(true));
    user.calls();

    user.run(&["install", "--force"]).fails_not();
    assert_eq!(fs::read_to_string(user.unit()).unwrap(), ours);
    // What runs is the old one.
    assert_eq!(user.calls(), [SHOW, RELOAD, RESTART, ENABLE]);
    // Somebody else's.
    fs::write(user.unit(), "[Service]\nExecStart=/bin/other\n").unwrap();
    user.run(&["uninstall"]).fails(1, &["not ours"]);
    user.run(&["uninstall", "--force"]).fails_not();
    assert!(!user.unit().exists());
}

/// An older version's text is ours all the same.
#[test]
fn a_unit_of_another_version_is_replaced() {
    let user = User::new("");
    let body = "[Service]\nExecStart=/old/farmhand watch\n";
    let mark = "# Made by `farmhand service install`; the digest of what follows is ";
    fs::create_dir_all(user.unit().parent().unwrap()).unwrap();
    fs::write(user.unit(), format!("{mark}{}\n{body}", sha(body.as_bytes()))).unwrap();
    user.run(&["install"]).fails_not();
    assert_eq!(user.calls(), [SHOW, RELOAD, RESTART, ENABLE]);
    assert!(!fs::read_to_string(user.unit()).unwrap().contains("/old/"));
}

#[test]
fn what_systemd_says_is_passed_on() {
    let user = User::new("echo 'Failed to connect to bus: No medium found' >&2; exit 1");
    user.run(&["install"]).fails(1, &["connect to bus", "enable-linger", "docs/SERVICE.md"]);
    assert!(!user.unit().exists(), "it was written all the same");
    assert_eq!(user.calls(), [SHOW]);

    user.systemctl("case \"$2\" in enable) echo 'Job for it failed.' >&2; exit 3;; esac");
    user.run(&["install"]).fails(1, &["enable --now", "Job for it failed.", "journalctl"]);
    assert!(user.unit().exists());

    user.systemctl("case \"$2\" in disable) exit 3;; esac");
    user.run(&["uninstall"]).fails(1, &["disable --now"]);
    assert!(user.unit().exists(), "what may still run is not removed");
}

#[test]
fn without_systemd_it_says_where_to_read_on() {
    let user = User::new("");
    fs::remove_file(user.at("bin/systemctl")).unwrap();
    for command in ["install", "status"] {
        user.run(&[command])
            .fails(1, &["there is no systemctl here", "docs/SERVICE.md", "launchd"]);
    }
    assert!(!user.unit().exists());
}

#[test]
fn status_tells_and_succeeds_only_if_it_runs() {
    let user = User::new("echo ActiveState=inactive; echo SubState=dead; echo UnitFileState=");
    let ran = user.run(&["status"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    assert!(
        ran.out.contains("(not installed)") && ran.out.contains("inactive (dead)"),
        "{}",
        ran.out
    );

    user.systemctl("");
    user.run(&["install"]).fails_not();
    user.systemctl("echo ActiveState=active; echo SubState=running; echo UnitFileState=enabled");
    let ran = user.run(&["status", "--json"]);
    assert_eq!(
        ran.json(),
        json!({
            "schema": "farmhand.service.status/1",
            "unit": user.unit(),
            "installed": true,
            "edited": false,
            "enabled": "enabled",
            "running": true,
            "state": "active",
            "detail": "running",
        })
    );
    user.systemctl("echo ActiveState=failed; echo SubState=failed; echo UnitFileState=enabled");
    assert_eq!(user.run(&["status"]).code, 1);
}

/// Where there is the real systemd, it finds nothing to complain about.
#[test]
fn systemd_itself_accepts_the_unit() {
    let user = User::new("");
    let odd = user.at("a b%c $d");
    fs::create_dir(&odd).unwrap();
    let program = odd.join("farmhand");
    fs::copy(env!("CARGO_BIN_EXE_farmhand"), &program).unwrap();
    let mut command = Command::new(&program);
    for (name, value) in user.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let printed = run(command.args(["service", "install", "--print"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let start = value(&printed.out, "ExecStart");
    assert!(start.ends_with("/a b%%c $d/farmhand\" watch"), "{start}");

    let unit = user.at("farmhand-watch.service");
    fs::write(&unit, &printed.out).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["--user", "verify"]).arg(&unit).env("XDG_RUNTIME_DIR", user.0.path());
    match verify.stdin(Stdio::null()).output() {
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let about_ours: Vec<_> =
                said.lines().filter(|line| line.contains("farmhand-watch")).collect();
            assert!(about_ours.is_empty(), "{said}");
        }
        Err(error) => eprintln!("not verified by systemd: {error}"),
    }
}
