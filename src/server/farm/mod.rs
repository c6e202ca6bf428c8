//! What a Flamenco Manager answers, for those who have none: job types from files, jobs in a ledger, and a
//! command that they are given to. Flamenco's Blender add-on connects and submits to it.

mod hook;
#[cfg(target_os = "linux")]
mod orphans;
mod routes;
mod types;
mod variables;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{Timestamp, Unit};
use tokio::sync::Notify;

use crate::{
    jobs::{Job, JobStatus, Platform},
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

/// Why jobs wait for ever, and what to do about it.
const NO_COMMAND: &str = "no command is configured to run jobs: set jobs.hook in the server's configuration, or start \
                          the server with --hook PROGRAM";

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

/// What is being deleted: jobs, by their ids, that nothing else may happen to, and checkouts that no job
/// may be taken for.
#[derive(Debug, Default)]
struct Going {
    jobs: HashSet<String>,
    checkouts: HashSet<String>,
}

impl Going {
    /// The checkout that goes and that a job with this one, or with its .blend at this path below the
    /// checkouts, would use.
    fn needed_by(&self, checkout: Option<&str>, blend: Option<&str>) -> Option<&String> {
        let is_in = |path: &str, dir: &str| {
            path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let mut going = self.checkouts.iter();
        going.find(|dir| [checkout, blend].into_iter().flatten().any(|path| is_in(path, dir)))
    }
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
    /// What is being deleted. Locked after `running`, if both are.
    going: Mutex<Going>,
    /// There may be a job whose turn it is.
    wake: Notify,
    /// Held while a job is taken, and while it is settled whether a checkout goes with its job: so none is
    /// erased that a job just taken uses. Not while it is erased, which may take long.
    taking: Arc<tokio::sync::Mutex<()>>,
}

impl Farm {
    /// Opens the jobs that are kept in a store's directory. Where processes can be told (Linux), what the
    /// commands of a server that was killed have left running is ended.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(store: &Store, options: Options) -> Result<Arc<Self>, LedgerError> {
        let ledger = Ledger::open(&store.state_dir())?;
        #[cfg(target_os = "linux")]
        orphans::end(ledger.interrupted());
        Ok(Arc::new(Self {
            types: JobTypes::new(options.types.clone()),
            options,
            ledger,
            storage: store.dir().to_owned(),
            checkouts: store.checkouts_dir(),
            running: Mutex::default(),
            going: Mutex::default(),
            wake: Notify::new(),
            taking: Arc::default(),
        }))
    }

    fn running(&self) -> MutexGuard<'_, AllRunning> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn going(&self) -> MutexGuard<'_, Going> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where somebody on this platform finds the storage.
    fn location(&self, platform: Platform) -> String {
        let here = || self.storage.to_string_lossy().into_owned();
        self.options.locations.get(platform.name()).cloned().unwrap_or_else(here)
    }

    /// Why jobs that are submitted here wait, if no command is configured to run them.
    pub fn lacks_command(&self) -> Option<&'static str> {
        self.options.hook.is_none().then_some(NO_COMMAND)
    }

    /// A job as clients see it: one that waits for a command says so where none is configured.
    fn shown_job(&self, mut job: Job) -> Job {
        if self.options.hook.is_none()
            && matches!(job.status, JobStatus::Queued | JobStatus::Paused)
        {
            job.activity = match job.activity.as_str() {
                "" => NO_COMMAND.into(),
                activity => format!("{activity}; {NO_COMMAND}"),
            };
        }
        job
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
