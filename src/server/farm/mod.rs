//! What a Flamenco Manager answers, for those who have none: job types from files, jobs in a ledger, and a
//! command that they are given to. Flamenco's Blender add-on connects and submits to it.

mod hook;
mod routes;
mod types;
mod variables;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{Timestamp, Unit};
use tokio::sync::Notify;

use crate::{
    jobs::{Job, Platform},
    ledger::{Ledger, LedgerError},
    store::Store,
};

use hook::AllRunning;
pub use hook::Hook;
pub(super) use hook::run;
pub(super) use routes::{is_ours, routes};
pub use types::{BadFile, JobTypes};
pub use variables::{Audience, Variable};
use variables::{Meaning, Meanings, expand, meanings};

/// How jobs are served.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The directory with definitions of job types; without one, there is one type, of ours.
    pub types: Option<PathBuf>,
    /// Where artists and workers find the storage, by platform; where this is not said, it is where the
    /// server finds it.
    pub locations: BTreeMap<&'static str, String>,
    /// Texts that stand for others in settings.
    pub variables: Vec<Variable>,
    /// What jobs are given to; without it, they wait for somebody who asks for them.
    pub hook: Option<Hook>,
}

/// Jobs without a Manager.
#[derive(Debug)]
pub struct Farm {
    options: Options,
    types: JobTypes,
    ledger: Ledger,
    /// The directory of the storage.
    storage: PathBuf,
    /// The directory of checkouts.
    checkouts: PathBuf,
    running: Mutex<AllRunning>,
    /// There may be a job whose turn it is.
    wake: Notify,
    /// Held while jobs are taken, and while one is deleted: so a checkout is not erased while a job that
    /// uses it is being taken.
    taking: Arc<tokio::sync::Mutex<()>>,
}

impl Farm {
    /// Opens the jobs that are kept in a store's directory.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(store: &Store, options: Options) -> Result<Arc<Self>, LedgerError> {
        Ok(Arc::new(Self {
            types: JobTypes::new(options.types.clone()),
            options,
            ledger: Ledger::open(&store.state_dir())?,
            storage: store.dir().to_owned(),
            checkouts: store.checkouts_dir(),
            running: Mutex::default(),
            wake: Notify::new(),
            taking: Arc::default(),
        }))
    }

    fn running(&self) -> MutexGuard<'_, AllRunning> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where somebody on this platform finds the storage.
    fn location(&self, platform: Platform) -> String {
        let here = || self.storage.to_string_lossy().into_owned();
        self.options.locations.get(platform.name()).cloned().unwrap_or_else(here)
    }

    fn meanings(&self, audience: Audience, platform: Platform) -> Meanings {
        let mut meanings = meanings(&self.options.variables, audience, platform);
        let value = match self.options.locations.get(platform.name()) {
            Some(location) => beside(location, "jobs"),
            None => shown(&self.checkouts),
        };
        meanings.insert("jobs".into(), Meaning { value, is_twoway: false });
        meanings
    }

    /// A job as its command gets it: with what its settings stand for on this machine.
    fn expanded(&self, mut job: Job) -> Job {
        let mut meanings = self.meanings(Audience::Workers, Platform::HERE);
        // The command runs where the store is, whatever others call that place.
        let value = shown(&self.checkouts);
        meanings.insert("jobs".into(), Meaning { value, is_twoway: false });
        expand(&mut job.submitted.settings, &meanings, job.created);
        job
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A name in a directory that may be of another platform.
fn beside(dir: &str, name: &str) -> String {
    let separator = if dir.contains('\\') && !dir.contains('/') { '\\' } else { '/' };
    format!("{}{separator}{name}", dir.trim_end_matches(separator))
}

/// The time, as exactly as Python can read it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_other_platforms_have_their_own_separators() {
        assert_eq!(beside("/mnt/farm", "jobs"), "/mnt/farm/jobs");
        assert_eq!(beside("/", "jobs"), "/jobs");
        assert_eq!(beside("F:\\farm\\", "jobs"), "F:\\farm\\jobs");
        assert_eq!(beside("//nas/farm", "jobs"), "//nas/farm/jobs");
    }
}
