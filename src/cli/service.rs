//! `farmhand service install|uninstall|status`: the agent as a systemd user unit.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Subcommand};
use etcetera::BaseStrategy;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
};

/// The unit's name.
const UNIT: &str = "farmhand-watch.service";

/// What the first line of a unit says that we have written.
const MARK: &str = "# Written by `farmhand service install`.";

/// Run `farmhand watch` in the background, from login on (systemd; for other systems see docs/SERVICE.md)
///
/// The folders are those of the configuration, as watch.folders.
#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Write the unit, and start it now and at each login
    Install(Install),
    /// Stop it, and remove the unit
    Uninstall,
    /// Say whether it is installed and runs
    Status,
}

#[derive(Debug, Args)]
pub(super) struct Install {
    /// Print the unit, and do nothing
    #[arg(long)]
    print: bool,

    /// Replace a unit that somebody else has written
    #[arg(long)]
    force: bool,
}

impl Service {
    pub fn run(&self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Install(install) => install.run(context),
            Self::Uninstall => uninstall(),
            Self::Status => status(context),
        }
    }
}

impl Install {
    fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let program = std::env::current_exe().map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot tell where this program is: {error}"))
        })?;
        let config = context.settings.file.as_deref().map(std::path::absolute).transpose();
        let config = config.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let text = unit(&program, config.as_deref())?;
        if self.print {
            return print(text.trim_end()).map(|()| Exit::Done);
        }
        if context.settings.values.watch.folders.is_empty() {
            let message = "there would be nothing to watch; list folders in the configuration, as \
                           watch.folders";
            return Err(Failure::new(Exit::Usage, message));
        }
        let path = path()?;
        if let Ok(there) = fs::read_to_string(&path)
            && !there.starts_with(MARK)
            && !self.force
        {
            let message =
                format!("{} is not ours; look at it, and replace it with --force", path.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        let failed = |error: io::Error| {
            Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
        };
        // Before anything is written: where there is no systemd, nothing is.
        systemctl(&["--version"])?;
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        fs::write(&path, text).map_err(failed)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", UNIT])?;
        // What runs already has the old unit.
        systemctl(&["restart", UNIT])?;
        eprintln!(
            "{} is installed and runs. `farmhand status` says what it is at, `journalctl --user -u {UNIT}` \
             what it said. It runs while you are logged in; `loginctl enable-linger` has it run from the \
             machine's start on.",
            path.display()
        );
        Ok(Exit::Done)
    }
}

fn uninstall() -> Result<Exit, Failure> {
    let path = path()?;
    if !path.exists() {
        let message = format!("there is no {}", path.display());
        return Err(Failure::new(Exit::Missing, message));
    }
    systemctl(&["disable", "--now", UNIT])?;
    fs::remove_file(&path).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot remove {}: {error}", path.display()))
    })?;
    systemctl(&["daemon-reload"])?;
    eprintln!("{} is stopped and removed", path.display());
    Ok(Exit::Done)
}

fn status(context: &Context) -> Result<Exit, Failure> {
    let path = path()?;
    let installed = path.exists();
    let is = |what| systemctl(&[what, "--quiet", UNIT]).is_ok();
    let (enabled, running) = (installed && is("is-enabled"), installed && is("is-active"));
    if context.json {
        print_json(&json!({
            "schema": "farmhand.service/1",
            "unit": path,
            "installed": installed,
            "enabled": enabled,
            "running": running,
        }))?;
    } else {
        let words = match (installed, running, enabled) {
            (false, ..) => "not installed; see `farmhand service install`",
            (true, true, true) => "runs, and starts at each login",
            (true, true, false) => "runs, and does not start at login",
            (true, false, true) => "does not run, and starts at the next login",
            (true, false, false) => "installed, does not run, and does not start at login",
        };
        print(&format!("{}: {words}", path.display()))?;
    }
    Ok(if running { Exit::Done } else { Exit::Failed })
}

/// Where the user's units are.
fn path() -> Result<PathBuf, Failure> {
    let dirs = etcetera::base_strategy::choose_base_strategy()
        .map_err(|error| Failure::new(Exit::Usage, format!("no place for a unit: {error}")))?;
    Ok(dirs.config_dir().join("systemd").join("user").join(UNIT))
}

fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new("systemctl").arg("--user").args(arguments).output();
    let output = output.map_err(|error| {
        let message = format!(
            "cannot run systemctl: {error}; this is for systems with systemd, docs/SERVICE.md says what \
             to do on others"
        );
        Failure::new(Exit::Failed, message)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = format!("systemctl --user {} failed: {}", arguments.join(" "), said.trim());
    Err(Failure::new(Exit::Failed, format!("{message}; is there a systemd session of this user?")))
}

/// The unit (systemd.service(5)).
fn unit(program: &Path, config: Option<&Path>) -> Result<String, Failure> {
    let word = |path: &Path| match path.to_str() {
        Some(text) if !text.contains('\n') => Ok(quoted(text)),
        _ => {
            let message = format!("{} cannot be written into a unit; rename it", path.display());
            Err(Failure::new(Exit::Usage, message))
        }
    };
    let mut command = word(program)?;
    if let Some(config) = config {
        command = format!("{command} --config {}", word(config)?);
    }
    // 2 and 6: usage or configuration, and a token that is not taken: trying again does not help.
    Ok(format!(
        "{MARK}\n\
         [Unit]\n\
         Description=farmhand keeps project folders uploaded to the render farm\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={command} watch\n\
         Restart=on-failure\n\
         RestartSec=10\n\
         RestartPreventExitStatus=2 6\n\
         Nice=10\n\
         IOSchedulingClass=idle\n\
         NoNewPrivileges=yes\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    ))
}

/// A word of a command line in a unit: systemd.service(5), "Command lines".
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            character => quoted.push(character),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_as_systemd_wants_them() {
        let text = unit(Path::new("/a b/100%/$x\"\\"), Some(Path::new("/c d"))).unwrap();
        let start = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(start, r#"ExecStart="/a b/100%%/$$x\"\\" --config "/c d" watch"#);
        assert!(unit(Path::new("/a\nb"), None).is_err());
    }
}
