//! Checks of the Shaman protocol that can be run against any server.
//!
//! What the checks leave behind is harmless: a handful of small blobs and one of 4 MiB, all of random content,
//! and a few checkouts whose names begin with `farmhand-conformance-`. Hostile paths are sent only to
//! servers that are declared expendable: one that follows them may overwrite its own files.

mod checks;
mod raw;
mod strict;
mod target;

use serde::Serialize;

pub use checks::CHECKS;
pub use target::{Target, TargetError};

/// What a check is for. Each level has the checks of those before it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What clients rely on.
    Core,
    /// What the protocol says, to the letter.
    Strict,
    /// What must not get through: sent to expendable servers only.
    Hostile,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "reason")]
pub enum Verdict {
    /// The server does as it should.
    Holds,
    /// It does not; with what it did.
    Fails(String),
    /// It was not asked; with the reason.
    Skipped(String),
}

/// One check and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// What must hold.
    pub name: &'static str,
    /// What the check is for.
    pub level: Level,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Why a check does not hold.
enum Miss {
    /// The server did something else.
    Fails(String),
    /// It could not be asked.
    NotAsked(String),
}

impl From<String> for Miss {
    fn from(reason: String) -> Self {
        Self::Fails(reason)
    }
}

/// Runs the checks up to a level, one after another.
///
/// # Errors
/// If nobody answers at all.
pub async fn run(target: &Target, level: Level) -> Result<Vec<Checked>, TargetError> {
    target.reach().await?;
    let mut results = Vec::new();
    for check in CHECKS {
        let verdict = if check.level > level {
            Verdict::Skipped(match check.level {
                Level::Hostile => "only with --expendable-server".into(),
                _ => "only with --level strict".into(),
            })
        } else {
            match (check.run)(target).await {
                Ok(()) => Verdict::Holds,
                Err(Miss::Fails(reason)) => Verdict::Fails(reason),
                Err(Miss::NotAsked(reason)) => Verdict::Skipped(reason),
            }
        };
        results.push(Checked { name: check.name, level: check.level, verdict });
    }
    Ok(results)
}
