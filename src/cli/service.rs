//! `farmhand service install|uninstall|status`: the agent as a systemd service of the user.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Subcommand;
use etcetera::BaseStrategy;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    settings::{Settings, Source, default_file},
};

/// What the service is called.
const UNIT: &str = "farmhand-watch.service";

/// What a unit of ours begins with; then the digest of all lines below.
const MARK: &str = "# Made by `farmhand service install`; the digest of what follows is ";

const DOCUMENT: &str = "docs/SERVICE.md says how to do it with launchd (macOS), the Task Scheduler \
                        (Windows), or by hand";

/// Have `farmhand watch` run in the background whenever you are logged in
///
/// As a systemd service of the user, for the folders of the configuration (watch.folders). For macOS and
/// Windows see docs/SERVICE.md.
#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Write the unit, enable it, and start it
    ///
    /// A --config that is given now counts for the service, too; the environment does not.
    Install {
        /// Print the unit, and do nothing
        #[arg(long)]
        print: bool,
        /// Overwrite a unit that was changed by hand
        #[arg(long)]
        force: bool,
    },
    /// Stop and disable the service, and remove its unit
    Uninstall {
        /// Also a unit that was changed by hand
        #[arg(long)]
        force: bool,
    },
    /// Say whether the service is installed, enabled, and running; exit code 1 if it does not run
    Status,
}

impl Service {
    pub fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Install { print: true, .. } => {
                print(unit_for(&context.settings)?.trim_end()).map(|()| Exit::Done)
            }
            Self::Install { force, .. } => install(context, force),
            Self::Uninstall { force } => uninstall(context, force),
            Self::Status => status(context),
        }
    }
}

fn install(context: &Context, force: bool) -> Result<Exit, Failure> {
    let settings = &context.settings;
    let text = unit_for(settings)?;
    refuse_idle(settings)?;
    // Before anything is written.
    systemctl(&["show", "--property=Version"])?;
    let file = unit_file()?;
    let old = read(&file)?;
    refuse_edited(old.as_deref(), &file, force)?;
    let is_new = old.as_deref() != Some(&text);
    if is_new {
        let written = (|| {
            fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
            fs::write(&file, &text)
        })();
        written.map_err(|error| disk_failure("write", &file, &error))?;
    }
    systemctl(&["daemon-reload"])?;
    if is_new && old.is_some() {
        systemctl(&["try-restart", UNIT])?;
    }
    systemctl(&["enable", "--now", UNIT])?;
    for (key, _, source) in settings.all() {
        if let Source::Env(name) = source {
            tracing::warn!(
                "{name} is set here and not for the service; put {key} into the configuration file"
            );
        }
    }
    if context.json {
        return print_json(&json!({
            "schema": "farmhand.service.install/1", "unit": file.to_string_lossy(), "written": is_new,
        }))
        .map(|()| Exit::Done);
    }
    let what = if is_new { "wrote" } else { "kept as it is:" };
    print(&format!("{what} {}", file.display()))?;
    print(&format!("{UNIT} is enabled and runs; its log: journalctl --user -u {UNIT}"))?;
    print("it runs while you are logged in; to have it run always: loginctl enable-linger")?;
    Ok(Exit::Done)
}

/// What `farmhand watch` would refuse is better said now than in a log.
fn refuse_idle(settings: &Settings) -> Result<(), Failure> {
    let folders = &settings.values.watch.folders;
    if folders.is_empty() {
        let message = "there is nothing to watch; list folders in the configuration as watch.folders, \
                       then run this again";
        return Err(Failure::new(Exit::Usage, message));
    }
    match folders.iter().find(|folder| folder.server.is_none() && settings.server().is_none()) {
        Some(folder) => Err(Failure::new(
            Exit::Usage,
            format!(
                "{} has no server to be sent to; set server in the configuration, for all folders or \
                 for this one",
                folder.path.display()
            ),
        )),
        None => Ok(()),
    }
}

fn uninstall(context: &Context, force: bool) -> Result<Exit, Failure> {
    let file = unit_file()?;
    let old = read(&file)?;
    let removed = old.is_some();
    if removed {
        refuse_edited(old.as_deref(), &file, force)?;
        systemctl(&["disable", "--now", UNIT])?;
        fs::remove_file(&file).map_err(|error| disk_failure("remove", &file, &error))?;
        systemctl(&["daemon-reload"])?;
    }
    if context.json {
        print_json(&json!({
            "schema": "farmhand.service.uninstall/1", "unit": file.to_string_lossy(), "removed": removed,
        }))?;
    } else if removed {
        print(&format!("{UNIT} is stopped and disabled; removed {}", file.display()))?;
    } else {
        print(&format!("{UNIT} is not installed: there is no {}", file.display()))?;
    }
    Ok(Exit::Done)
}

fn status(context: &Context) -> Result<Exit, Failure> {
    let file = unit_file()?;
    let text = read(&file)?;
    let shown = systemctl(&["show", "--property=ActiveState,SubState,UnitFileState", UNIT])?;
    let state = |name: &str| {
        let mut lines = shown.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value)
    };
    let (active, detail) = (state("ActiveState").unwrap_or("unknown"), state("SubState"));
    let enabled = state("UnitFileState").unwrap_or("no");
    let (installed, running) = (text.is_some(), active == "active");
    let edited = text.as_deref().is_some_and(|text| !is_untouched(text));
    if context.json {
        print_json(&json!({
            "schema": "farmhand.service.status/1",
            "unit": file.to_string_lossy(),
            "installed": installed,
            "edited": edited,
            "enabled": enabled,
            "running": running,
            "state": active,
            "detail": detail,
        }))?;
    } else {
        let how = match (installed, edited) {
            (false, _) => "not installed",
            (true, false) => "installed",
            (true, true) => "installed, and changed by hand",
        };
        print(&format!("unit     {} ({how})", file.display()))?;
        print(&format!("enabled  {enabled}"))?;
        let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
        print(&format!("running  {active}{detail}"))?;
    }
    Ok(if running { Exit::Done } else { Exit::Failed })
}

fn unit_file() -> Result<PathBuf, Failure> {
    let dirs = etcetera::choose_base_strategy().map_err(|error| {
        Failure::new(Exit::Failed, format!("no place for a unit: {error}; set XDG_CONFIG_HOME"))
    })?;
    Ok(dirs.config_dir().join("systemd/user").join(UNIT))
}

fn read(file: &Path) -> Result<Option<String>, Failure> {
    match fs::read(file) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk_failure("read", file, &error)),
    }
}

fn disk_failure(what: &str, file: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot {what} {}: {error}; check its permissions", file.display());
    Failure::new(Exit::Failed, message)
}

fn refuse_edited(text: Option<&str>, file: &Path, force: bool) -> Result<(), Failure> {
    match text {
        Some(text) if !force && !is_untouched(text) => Err(Failure::new(
            Exit::Failed,
            format!(
                "{} was changed by hand, or is not ours; move the changes to a drop-in (systemctl --user \
                 edit {UNIT}) and add --force, which loses what is in the file",
                file.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether a unit is as we have written it, by whichever version of ours.
fn is_untouched(text: &str) -> bool {
    let marked = text.strip_prefix(MARK).and_then(|rest| rest.split_once('\n'));
    marked.is_some_and(|(digest, body)| digest == digest_of(body))
}

fn digest_of(body: &str) -> String {
    const_hex::encode(Sha256::digest(body.as_bytes()))
}

/// Calls `systemctl --user`, and returns what that prints.
fn systemctl(arguments: &[&str]) -> Result<String, Failure> {
    let command = format!("systemctl --user {}", arguments.join(" "));
    let mut systemctl = Command::new("systemctl");
    systemctl.arg("--user").args(arguments).stdin(Stdio::null());
    let done = systemctl.output().map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no systemctl here, and so no service to look after; {DOCUMENT}")
            }
            _ => format!("cannot run `{command}`: {error}; {DOCUMENT}"),
        };
        Failure::new(Exit::Failed, message)
    })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = if lines.is_empty() { done.status.to_string() } else { lines.join(" ") };
    // Nobody is logged in, or not through systemd: `su`, `sudo`, containers.
    let has_no_manager = ["connect to bus", "booted with systemd", "No medium found"]
        .iter()
        .any(|text| said.contains(text));
    let next = if has_no_manager {
        format!(
            "log in as this user (not with su or sudo), or run `loginctl enable-linger` first; where there \
             is no systemd, {DOCUMENT}"
        )
    } else {
        format!("see journalctl --user -u {UNIT}")
    };
    Err(Failure::new(Exit::Failed, format!("`{command}` failed: {said}; {next}")))
}

/// The unit for this program and the configuration that was asked for.
fn unit_for(settings: &Settings) -> Result<String, Failure> {
    let failed = |message: String| Failure::new(Exit::Failed, message);
    let program = std::env::current_exe().map_err(|error| {
        failed(format!("cannot find this program: {error}; call it by its path"))
    })?;
    if !program.exists() {
        let message = format!("{} is not there any more; run the new one", program.display());
        return Err(failed(message));
    }
    // The usual one is found by the service as well.
    let config = settings.file.as_ref().filter(|file| Some(*file) != default_file().as_ref());
    let config = config
        .map(std::path::absolute)
        .transpose()
        .map_err(|error| failed(format!("cannot find the configuration: {error}")))?;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!("{} is not UTF-8; choose another path", path.display()),
            )
        })
    };
    let config = config.as_deref().map(text).transpose()?;
    let program = text(&program)?;
    unit(&program, config.as_deref()).ok_or_else(|| {
        let message = format!(
            "systemd starts no program whose path has quotes, backslashes or control characters: \
             {program:?}; move it"
        );
        Failure::new(Exit::Usage, message)
    })
}

/// The text of the unit; `None` if systemd cannot start a program with this path.
fn unit(program: &str, config: Option<&str>) -> Option<String> {
    if program.contains(|c: char| c.is_control() || matches!(c, '"' | '\'' | '\\')) {
        return None;
    }
    // In the path of the program a dollar is a dollar.
    let mut start = format!("\"{}\" watch", program.replace('%', "%%"));
    if let Some(config) = config {
        start.push_str(&format!(" --config {}", quote(config)));
    }
    let body = format!(
        "# To change something, use `systemctl --user edit {UNIT}`: that is kept when this is written anew.

[Unit]
Description=Keep project folders uploaded to the render farm (farmhand watch)

[Service]
Type=notify
ExecStart={start}
Restart=on-failure
RestartSec=10
# Wrong usage or configuration, and refused: trying again would change nothing.
RestartPreventExitStatus=2 6
Nice=10
IOSchedulingClass=idle
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native
StandardError=journal

[Install]
WantedBy=default.target
"
    );
    Some(format!("{MARK}{}\n{body}", digest_of(&body)))
}

/// An argument of a command, in quotes, such that systemd hands it over as it is: `%` would be a
/// specifier there, and `$` a variable.
fn quote(argument: &str) -> String {
    let mut quoted = String::from("\"");
    for character in argument.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '%' | '$' => quoted.extend([character, character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What systemd makes of a quoted argument.
    fn unquote(quoted: &str) -> String {
        let inner = quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let (mut text, mut rest) = (String::new(), inner.chars());
        while let Some(c) = rest.next() {
            match c {
                '\\' => match rest.next().unwrap() {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'x' => {
                        let hex: String = rest.by_ref().take(2).collect();
                        text.push(char::from(u8::from_str_radix(&hex, 16).unwrap()));
                    }
                    c @ ('"' | '\\') => text.push(c),
                    other => panic!("\\{other}"),
                },
                '"' => panic!("it ends early: {quoted}"),
                '\n' => panic!("the line ends early: {quoted}"),
                c => text.push(c),
            }
        }
        // Specifiers and variables, when the quotes are gone.
        let expand = |text: &str, sign: &str| {
            let pieces: Vec<_> = text.split(&sign.repeat(2)).collect();
            assert!(pieces.iter().all(|piece| !piece.contains(sign)), "{quoted}");
            pieces.join(sign)
        };
        expand(&expand(&text, "%"), "$")
    }

    proptest! {
        #[test]
        fn an_argument_arrives_as_it_was(argument in "[^\0]*", signs in "[%$\"\\\\\n a']{0,12}") {
            for text in [&argument, &signs] {
                prop_assert_eq!(&unquote(&quote(text)), text);
            }
        }
    }

    #[test]
    fn paths_are_quoted_by_the_rules_of_systemd() {
        let start = |program, config| {
            let text = unit(program, config).unwrap();
            text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap().to_owned()
        };
        for (program, config, expected) in [
            ("/usr/bin/farmhand", None, r#""/usr/bin/farmhand" watch"#),
            ("/a b/100%/$x/ä", None, r#""/a b/100%%/$x/ä" watch"#),
            ("/f", Some("/my farm/c.toml"), r#""/f" watch --config "/my farm/c.toml""#),
            ("/f", Some(r#"/a"b\c'd"#), r#""/f" watch --config "/a\"b\\c'd""#),
            ("/f", Some("/%h/$HOME"), r#""/f" watch --config "/%%h/$$HOME""#),
            ("/f", Some("/a\nExecStart=/b\u{7}"), r#""/f" watch --config "/a\nExecStart=/b\x07""#),
        ] {
            assert_eq!(start(program, config), expected);
        }
        for bad in ["/a\"b", "/a'b", "/a\\b", "/a\nb"] {
            assert_eq!(unit(bad, None), None, "{bad:?}");
        }
    }

    #[test]
    fn a_change_by_hand_is_noticed_wherever_it_is() {
        let text = unit("/f", None).unwrap();
        assert!(is_untouched(&text));
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let mut edited = text.clone();
            edited.insert(at, '#');
            assert!(!is_untouched(&edited), "at {at}");
            edited.truncate(at);
            assert!(!is_untouched(&edited), "cut at {at}");
        }
        assert!(!is_untouched("") && !is_untouched(MARK));
    }
}
