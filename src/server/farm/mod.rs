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
    domain::CheckoutPath,
    jobs::{Job, JobStatus, Platform, RENDERS_VARIABLE, SubmittedJob, uses_checkout},
    ledger::{Entry, Ledger, LedgerError},
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
    checkouts: HashSet<CheckoutPath>,
}

impl Going {
    /// The checkout that is being deleted and that a job with this one, or with these settings, would use.
    fn needed_by(
        &self,
        checkout: Option<&str>,
        job: &SubmittedJob,
        jobs_dir: &str,
    ) -> Option<&str> {
        let mut going = self.checkouts.iter();
        let needed =
            |going: &&CheckoutPath| uses_checkout(going, checkout, &job.settings, jobs_dir);
        going.find(needed).map(CheckoutPath::as_str)
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

    /// Has no job taken that uses a checkout while it is deleted, unless one that has not ended uses it.
    ///
    /// # Errors
    /// That job, or if the jobs cannot be read.
    pub(super) async fn leave(
        self: &Arc<Self>,
        store: Arc<Store>,
        checkout: CheckoutPath,
        exec: &crate::exec::Exec,
    ) -> Result<Result<Option<Leaving>, Job>, LedgerError> {
        let turn = self.taking.clone().lock_owned().await;
        let farm = self.clone();
        exec.blocking(move || {
            let user = live_user(Some(&farm), &store, &checkout)?;
            let left = match user {
                Some(job) => Err(job),
                None => Ok(Leaving::begin(&farm, &checkout)),
            };
            drop(turn);
            Ok(left)
        })
        .await
    }

    /// Whether a job uses a checkout, or anything in it or above it.
    fn uses(&self, entry: &Entry, checkout: &CheckoutPath) -> bool {
        uses(entry, checkout, &shown(&self.checkouts))
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
        let value = match self.options.locations.get(platform.name()) {
            Some(location) => beside(location, RENDERS),
            None => shown(&self.storage.join(RENDERS)),
        };
        meanings.insert(RENDERS.into(), Meaning { value, is_twoway: false });
        meanings
    }

    /// A job as its command gets it: with what its settings stand for on this machine.
    fn expanded(&self, mut job: Job) -> Job {
        let mut meanings = self.meanings(Audience::Workers, Platform::HERE);
        // The command runs where the store is, whatever others call that place.
        let here =
            [("jobs", shown(&self.checkouts)), (RENDERS, shown(&self.storage.join(RENDERS)))];
        for (name, value) in here {
            meanings.insert(name.into(), Meaning { value, is_twoway: false });
        }
        expand(&mut job.submitted.settings, &meanings, job.created);
        job
    }
}

/// A checkout that is being deleted, until this is dropped: no job is taken that uses it.
#[derive(Debug)]
pub(super) struct Leaving {
    farm: Arc<Farm>,
    checkout: CheckoutPath,
}

impl Leaving {
    /// `None` if it is being deleted already.
    fn begin(farm: &Arc<Farm>, checkout: &CheckoutPath) -> Option<Self> {
        let is_new = farm.going().checkouts.insert(checkout.clone());
        is_new.then(|| Self { farm: farm.clone(), checkout: checkout.clone() })
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.farm.going().checkouts.remove(&self.checkout);
    }
}

/// The directory of the jobs' outputs in the storage, and the variable that stands for it.
const RENDERS: &str = "renders";

/// Whether a job in a ledger uses a checkout, or anything in it or above it.
fn uses(entry: &Entry, checkout: &CheckoutPath, jobs_dir: &str) -> bool {
    let job = &entry.job.submitted;
    let id = job.storage.as_ref().and_then(|storage| storage.shaman_checkout_id.as_deref());
    [entry.checkout.as_deref(), id]
        .into_iter()
        .any(|id| uses_checkout(checkout, id, &job.settings, jobs_dir))
}

/// A job that has not ended and uses a checkout of this store, or anything in it or above it: of a farm's jobs,
/// or of those that a farm has left in the store.
///
/// # Errors
/// If the jobs cannot be read.
pub(super) fn live_user(
    farm: Option<&Farm>,
    store: &Store,
    checkout: &CheckoutPath,
) -> Result<Option<Job>, LedgerError> {
    let entries = match farm {
        Some(farm) => farm.ledger.all()?,
        None => Ledger::read(&store.state_dir())?,
    };
    let jobs_dir = shown(&store.checkouts_dir());
    let is_user = |entry: &Entry| !entry.job.status.is_end() && uses(entry, checkout, &jobs_dir);
    Ok(entries.into_iter().find(is_user).map(|entry| entry.job))
}

/// The name of a job's directory below `renders/`.
fn output_dir(job: &Job) -> String {
    output_dir_name(&job.submitted.name, &job.id)
}

fn output_dir_name(name: &str, id: &str) -> String {
    let id: String = id.chars().take(8).collect();
    CheckoutPath::sanitized(name, &format!("-{id}")).as_str().to_owned()
}

/// Where a job renders to if it does not say: each frame to a file of its own, below the root that it names.
fn default_output(root: Option<&str>, name: &str, id: &str) -> String {
    let root = root.filter(|root| !root.is_empty()).unwrap_or(RENDERS_VARIABLE);
    format!("{}/{}/######", root.trim_end_matches(['/', '\\']), output_dir_name(name, id))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A name in a directory that may be of another platform.
pub(super) fn beside(dir: &str, name: &str) -> String {
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
