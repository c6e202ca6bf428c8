//! The jobs that a server has taken: SQLite. Not derived data: what was accepted is on the disk before it
//! is said to be, and a ledger that is damaged is an error, not begun anew.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row,
    types::{FromSqlError, Type},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::jobs::{Job, JobStatus, SubmittedJob};

/// In the name of the file: another layout gets another file.
const FILE_NAME: &str = "jobs-1.sqlite";

/// One process has the store, and so the ledger: others only look.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        priority INTEGER NOT NULL,
        checkout TEXT,
        submitted TEXT NOT NULL,
        created TEXT NOT NULL,
        updated TEXT NOT NULL,
        activity TEXT NOT NULL,
        run TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, priority DESC, number);
";

const COLUMNS: &str = "id, status, priority, checkout, submitted, created, updated, activity, run";

/// What became of the command that a job was given to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobRun)]
pub struct Run {
    /// When it began.
    #[schema(value_type = String)]
    pub started: Timestamp,
    /// When it ended; if this is not said, it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended: Option<Timestamp>,
    /// What it ended with, if it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last that it wrote, standard output and standard error.
    #[serde(default)]
    pub output: String,
}

/// A job, and what only we know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The job.
    pub job: Job,
    /// The checkout that it uses.
    pub checkout: Option<String>,
    /// Its command's last run.
    pub run: Option<Run>,
}

impl Entry {
    /// Whether its command runs.
    pub fn runs(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.ended.is_none())
    }
}

/// The ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the jobs in {path}: {source}")]
pub struct LedgerError {
    /// Where it is.
    pub path: PathBuf,
    /// What SQLite says.
    pub source: rusqlite::Error,
}

/// All jobs that were taken and not deleted.
#[derive(Debug)]
pub struct Ledger {
    connection: Mutex<Connection>,
    path: PathBuf,
    interrupted: Vec<String>,
}

impl Ledger {
    /// Opens the ledger in this directory, which must be there. Jobs whose command ran when the last
    /// server ended are failed: how far it came is not known.
    ///
    /// # Errors
    /// If it cannot be opened, or is damaged.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join(FILE_NAME);
        let open = || {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A job that is taken stays taken.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = open().map_err(|source| LedgerError { path: path.clone(), source })?;
        let mut ledger = Self { connection: Mutex::new(connection), path, interrupted: Vec::new() };
        for mut entry in ledger.all()?.into_iter().filter(Entry::runs) {
            entry.job.status = JobStatus::Failed;
            entry.job.activity = "the server ended while the job's command ran: requeue it".into();
            if let Some(run) = &mut entry.run {
                run.ended = Some(Timestamp::now());
                run.error = Some("the server ended".into());
            }
            let id = entry.job.id.clone();
            ledger.update(&id, |_| Some(entry))?;
            ledger.interrupted.push(id);
        }
        Ok(ledger)
    }

    /// All jobs in the ledger of a directory, the latest first; none if there is no ledger. Nothing is changed.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(dir: &Path) -> Result<Vec<Entry>, LedgerError> {
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let read = || {
            let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            all(&connection)
        };
        read().map_err(|source| LedgerError { path: path.clone(), source })
    }

    /// The jobs whose command ran when the last server ended, by their ids. It may run still.
    pub fn interrupted(&self) -> &[String] {
        &self.interrupted
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let mut connection: MutexGuard<'_, Connection> =
            self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(|source| LedgerError { path: self.path.clone(), source })
    }

    /// Takes a job. When this returns, it is on the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.with(|connection| {
            let sql = format!("INSERT INTO jobs ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)");
            connection.execute(&sql, values(entry)?).map(drop)
        })
    }

    /// A job.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn get(&self, id: &str) -> Result<Option<Entry>, LedgerError> {
        self.with(|connection| get(connection, id))
    }

    /// All jobs, the latest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn all(&self) -> Result<Vec<Entry>, LedgerError> {
        self.with(|connection| all(connection))
    }

    /// Changes a job, if `change` makes something of it; what it is then, unless it is not there.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn update(
        &self,
        id: &str,
        change: impl FnOnce(Entry) -> Option<Entry>,
    ) -> Result<Option<Entry>, LedgerError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let Some(before) = get(&transaction, id)? else { return Ok(None) };
            let Some(mut after) = change(before.clone()) else { return Ok(Some(before)) };
            after.job.updated = Timestamp::now();
            after.job.steps_completed = steps_done(after.job.status);
            transaction.execute(
                "UPDATE jobs SET status = ?2, priority = ?3, checkout = ?4, submitted = ?5,
                 created = ?6, updated = ?7, activity = ?8, run = ?9 WHERE id = ?1",
                values(&after)?,
            )?;
            transaction.commit()?;
            Ok(Some(after))
        })
    }

    /// The job whose turn it is: of those that are queued, one of the highest priority, and of these the
    /// oldest.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn next(&self) -> Result<Option<Entry>, LedgerError> {
        self.with(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM jobs WHERE status = 'queued'
                 ORDER BY priority DESC, number LIMIT 1"
            );
            connection.prepare_cached(&sql)?.query_row([], entry).optional()
        })
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remove(&self, id: &str) -> Result<(), LedgerError> {
        self.with(|connection| connection.execute("DELETE FROM jobs WHERE id = ?1", [id]).map(drop))
    }
}

/// A job of ours has one step.
fn steps_done(status: JobStatus) -> i64 {
    i64::from(status == JobStatus::Completed)
}

fn all(connection: &Connection) -> rusqlite::Result<Vec<Entry>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs ORDER BY number DESC");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_map([], entry)?.collect()
}

fn get(connection: &Connection, id: &str) -> rusqlite::Result<Option<Entry>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row([id], entry).optional()
}

type Values =
    (String, &'static str, i64, Option<String>, String, String, String, String, Option<String>);

fn values(entry: &Entry) -> rusqlite::Result<Values> {
    let json = |error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let job = &entry.job;
    let run = entry.run.as_ref().map(serde_json::to_string).transpose().map_err(json)?;
    Ok((
        job.id.clone(),
        job.status.name(),
        job.submitted.priority,
        entry.checkout.clone(),
        serde_json::to_string(&job.submitted).map_err(json)?,
        job.created.to_string(),
        job.updated.to_string(),
        job.activity.clone(),
        run,
    ))
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    fn text<T: std::str::FromStr>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text: String = row.get(index)?;
        text.parse().map_err(|error| bad(index, error))
    }
    fn bad(index: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    }
    let status: String = row.get(1)?;
    let status: JobStatus = serde_json::from_value(status.into()).map_err(|error| bad(1, error))?;
    let submitted: String = row.get(4)?;
    let mut submitted: SubmittedJob =
        serde_json::from_str(&submitted).map_err(|error| bad(4, error))?;
    submitted.priority = row.get(2)?;
    let run: Option<String> = row.get(8)?;
    let run: Option<Run> = run
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| FromSqlError::Other(Box::new(error)))?;
    let job = Job {
        submitted,
        id: row.get(0)?,
        created: text(row, 5)?,
        updated: text(row, 6)?,
        status,
        activity: row.get(7)?,
        steps_completed: steps_done(status),
        steps_total: 1,
    };
    Ok(Entry { job, checkout: row.get(3)?, run })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(id: &str, priority: i64, checkout: Option<&str>) -> Entry {
        let submitted = json!({
            "name": format!("job {id}"), "type": "t", "priority": priority,
            "submitter_platform": "linux", "settings": {"a": 1}, "metadata": {"b": "c"},
        });
        let now = Timestamp::now();
        Entry {
            job: Job {
                submitted: serde_json::from_value(submitted).unwrap(),
                id: id.into(),
                created: now,
                updated: now,
                status: JobStatus::Queued,
                activity: String::new(),
                steps_completed: 0,
                steps_total: 1,
            },
            checkout: checkout.map(str::to_owned),
            run: None,
        }
    }

    #[test]
    fn jobs_are_there_when_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let entry = taken("a", 50, Some("shot"));
        Ledger::open(dir.path()).unwrap().add(&entry).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.get("a").unwrap(), Some(entry.clone()));
        assert_eq!(ledger.all().unwrap(), std::slice::from_ref(&entry));
        assert!(ledger.add(&entry).is_err(), "one id, one job");
        assert_eq!(ledger.get("b").unwrap(), None);
        ledger.remove("a").unwrap();
        assert_eq!(ledger.all().unwrap(), []);
    }

    #[test]
    fn the_highest_priority_is_next_and_then_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for (id, priority) in [("a", 50), ("b", 80), ("c", 80), ("d", 0)] {
            ledger.add(&taken(id, priority, None)).unwrap();
        }
        let mut order = Vec::new();
        while let Some(next) = ledger.next().unwrap() {
            let done = ledger.update(&next.job.id, |mut entry| {
                entry.job.status = JobStatus::Completed;
                Some(entry)
            });
            let done = done.unwrap().unwrap();
            assert_eq!((done.job.steps_completed, done.job.updated > next.job.updated), (1, true));
            assert_eq!(ledger.get(&next.job.id).unwrap(), Some(done));
            order.push(next.job.id);
        }
        assert_eq!(order, ["b", "c", "a", "d"]);
        assert_eq!(ledger.all().unwrap()[0].job.id, "d", "the latest first");
    }

    #[test]
    fn reading_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::read(dir.path()).unwrap(), []);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let ledger = Ledger::open(dir.path()).unwrap();
        let mut running = taken("a", 50, None);
        let (started, output) = (Timestamp::now(), String::new());
        running.run = Some(Run { started, ended: None, exit_code: None, error: None, output });
        ledger.add(&running).unwrap();
        drop(ledger);
        let read = Ledger::read(dir.path()).unwrap();
        assert!(read.len() == 1 && read[0].runs(), "{read:?}");
    }

    #[test]
    fn what_ran_when_the_server_ended_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let mut entry = taken("a", 50, None);
        entry.job.status = JobStatus::Active;
        let run = Run {
            started: Timestamp::now(),
            ended: None,
            exit_code: None,
            error: None,
            output: "x".into(),
        };
        entry.run = Some(run);
        Ledger::open(dir.path()).unwrap().add(&entry).unwrap();
        let found = Ledger::open(dir.path()).unwrap().get("a").unwrap().unwrap();
        assert_eq!(found.job.status, JobStatus::Failed);
        assert!(found.job.activity.contains("requeue"));
        let run = found.run.unwrap();
        assert!(run.ended.is_some() && run.error.is_some() && run.output == "x");
    }

    #[test]
    fn a_damaged_ledger_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, "this is no database, and never was one".repeat(100)).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE_NAME) && error.contains("not a database"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
