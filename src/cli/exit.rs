//! How the program ends: exit codes, and errors with their next step.

use std::{error::Error, process::ExitCode};

use super::{hash::escaped, settings::LogFormat};
use crate::{
    agent::SyncError,
    client::{ClientError, DownloadError},
    control::RegistryError,
    disk::DiskError,
    scan::{ScanError, WalkError},
    store::{AdoptError, EraseError, OpenError, ScrubError},
};

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    /// Internal, or input and output.
    Failed = 1,
    /// Usage or configuration.
    Usage = 2,
    /// Done, but for files that were skipped.
    Skipped = 3,
    /// Missing input.
    Missing = 4,
    Unreachable = 5,
    Refused = 6,
    Full = 7,
    /// Waited in vain.
    TimedOut = 8,
    Integrity = 9,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to. One line: what, why, and what to do next.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// What the exit code will say.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Ends without a word.
    pub fn silent() -> Self {
        Self::new(Exit::Failed, "")
    }

    pub fn interrupted() -> Self {
        Self::new(
            Exit::Interrupted,
            "interrupted; nothing is lost: the same command goes on where this one stopped",
        )
    }

    fn of(exit: Exit, error: &dyn Error, next: &str) -> Self {
        let mut message = with_causes(error);
        if !next.is_empty() {
            message.push_str("; ");
            message.push_str(next);
        }
        Self { exit, message }
    }

    /// The line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Says it on standard error.
    pub fn print(&self, format: LogFormat) -> ExitCode {
        if !self.message.is_empty() {
            match format {
                LogFormat::Text => eprintln!("farmhand: {}", harmless(&self.message)),
                // Not through the log, whose filter may be anything.
                LogFormat::Json => eprintln!(
                    "{}",
                    serde_json::json!({
                        "timestamp": jiff::Timestamp::now(),
                        "level": "ERROR",
                        "fields": { "message": self.message },
                        "target": "farmhand::cli",
                        "exit_code": self.exit as u8,
                    })
                ),
            }
        }
        self.exit.into()
    }
}

/// A text of several lines with nothing in it that a terminal would obey: what servers say and files are
/// called is for them to choose.
pub(super) fn harmless(text: &str) -> String {
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| line.split('\t').map(escaped).collect::<Vec<_>>().join("\t"))
        .collect();
    lines.join("\n")
}

/// An error and what led to it, in one line.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (exit, next) = next_step(&error);
        let Self { exit, message } = Self::of(exit, &error, next);
        // A line break in what a server says would begin a line of its own.
        Self { exit, message: escaped(&message) }
    }
}

/// What an error of a server means for the exit code, and what to do about it; nothing, if the error
/// says that itself.
pub(super) fn next_step(error: &ClientError) -> (Exit, &'static str) {
    match error {
        _ if error.is_gateway() => (Exit::Unreachable, "run this again when the server is back"),
        ClientError::BadUrl { .. } => (Exit::Usage, "give a URL like http://farm:8080/"),
        ClientError::Setup { .. } => (Exit::Failed, "are root certificates installed?"),
        ClientError::Unreachable { .. } => (
            Exit::Unreachable,
            "check that it runs and that --server is right, then run this again",
        ),
        ClientError::NotShaman { .. } => {
            (Exit::Usage, "check --server, and that Shaman storage is switched on there")
        }
        ClientError::Refused { .. } => (
            Exit::Refused,
            "give a token that may do this, as FARMHAND_TOKEN or with the setting token_file; \
             who runs the server has them",
        ),
        ClientError::Untrusted { .. } => (
            Exit::Unreachable,
            "if its certificate is not from one of this machine's authorities, give the right \
             root certificate with --ca",
        ),
        ClientError::Full { .. } => {
            (Exit::Full, "run this again when there is room: what was sent is kept")
        }
        ClientError::MissingFiles { certain: true, .. } => {
            (Exit::Integrity, "run this again; if that does not help, check the server's disk")
        }
        ClientError::NotManager { .. } => (
            Exit::Usage,
            "check --server: it must be the address that is given to Blender's add-on",
        ),
        // With a message that says what to do.
        ClientError::Status { status, .. } if status.as_u16() == 404 => (Exit::Missing, ""),
        ClientError::Status { status, .. } if matches!(status.as_u16(), 400 | 412 | 422 | 501) => {
            (Exit::Failed, "")
        }
        ClientError::Status { status, .. } if status.as_u16() == 409 => (Exit::Failed, ""),
        ClientError::MissingFiles { certain: false, .. } | ClientError::Status { .. } => {
            (Exit::Failed, "see the server's log")
        }
    }
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Client(error) => error.into(),
            DownloadError::Damaged { .. } => Self::of(
                Exit::Integrity,
                &error,
                "have the store read again (farmhand store scrub): what has rotted is asked for at \
                 the next sync",
            ),
        }
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let (exit, next) = match error {
            SyncError::Client(error) => return error.into(),
            SyncError::Exhausted { reached: true, .. } => {
                (Exit::Failed, "see the server's log, then run this again: what was sent is kept")
            }
            SyncError::Exhausted { reached: false, .. } => {
                (Exit::Unreachable, "run this again when the server is well: what was sent is kept")
            }
            SyncError::Integrity { .. } => (
                Exit::Integrity,
                "something between here and its disk damages data: check memory, network and disk",
            ),
            SyncError::Forgetful { .. } => (Exit::Integrity, "check the server's disk and its log"),
            SyncError::LeftOut { .. } => {
                (Exit::Missing, "without --strict, the rest is done and the exit code is 3")
            }
            SyncError::Bug(_) => (Exit::Failed, "please report this"),
        };
        Self::of(exit, &error, next)
    }
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Self {
        let (exit, next) = match &error {
            ScanError::Walk(WalkError::Missing(_)) => (Exit::Missing, "check the path"),
            ScanError::Walk(WalkError::NotAFile { .. }) => (Exit::Usage, "give a folder"),
            ScanError::Walk(WalkError::Unreadable { .. }) => {
                (Exit::Failed, "check its permissions")
            }
            ScanError::Walk(WalkError::BadName { .. }) => (Exit::Failed, ""),
            ScanError::Stopped => return Self::interrupted(),
            ScanError::Threads(_) => {
                (Exit::Failed, "end other programs, or raise the limit of processes")
            }
        };
        Self::of(exit, &error, next)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Watched { .. } => Self::of(
                Exit::Usage,
                &error,
                "see `farmhand status`; end that agent, or leave the folder to it",
            ),
            RegistryError::Disk(error) => error.into(),
        }
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        Self::of(Exit::Failed, &error, "check the disk and the permissions there")
    }
}

impl From<AdoptError> for Failure {
    fn from(error: AdoptError) -> Self {
        match error {
            AdoptError::Open(error) => error.into(),
            AdoptError::NoStorage(_) => {
                Self::of(Exit::Missing, &error, "give the directory that holds file-store and jobs")
            }
        }
    }
}

impl From<ScrubError> for Failure {
    fn from(error: ScrubError) -> Self {
        Self::of(Exit::Failed, &error, "check the disk and the permissions there")
    }
}

impl From<EraseError> for Failure {
    fn from(error: EraseError) -> Self {
        Self::of(Exit::Failed, &error, "check the disk and the permissions there")
    }
}

/// The next step after [`OpenError::OnWindows`].
pub(super) const NO_STORE_ON_WINDOWS: &str =
    "run `farmhand serve` on Linux, and give its address with --server";

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let next = match &error {
            OpenError::OnWindows => return Self::of(Exit::Usage, &error, NO_STORE_ON_WINDOWS),
            OpenError::InUse { .. } => {
                "go through its server with --server, or wait until it has ended"
            }
            OpenError::Mode(_) => {
                return Self::of(Exit::Usage, &error, "choose another store.link_mode");
            }
            // It says what to do.
            OpenError::NotOurs(_) => return Self::new(Exit::Failed, with_causes(&error)),
            OpenError::Disk(error) if error.is_full() => {
                "make room there, or choose another --storage"
            }
            OpenError::Disk(_) => "check the permissions there, or choose another --storage",
        };
        Self::of(Exit::Failed, &error, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::OsFamily, store::require_supported};

    #[test]
    fn stores_are_refused_on_windows() {
        assert!(require_supported(OsFamily::Unix).is_ok());
        let failure = Failure::from(require_supported(OsFamily::Windows).unwrap_err());
        assert!(matches!(failure.exit, Exit::Usage));
        for part in ["Windows", "garbage collection", "`farmhand serve` on Linux", "--server"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }
}
