//! `farmhand job …`: what became of jobs, and what is to become of them.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Context,
    exit::{Exit, Failure},
    hash::escaped,
    print, print_json,
    session::ManagerArgs,
    settings::Overrides,
    submit::require_manager,
};
use crate::{
    client::{RemoteJob, Shaman, Task},
    jobs::JobStatus,
};

/// Look at jobs on a Flamenco Manager or a farmhand that serves, and change what they are at
#[derive(Debug, Args)]
pub(super) struct JobCommand {
    #[command(flatten)]
    server: ManagerArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All jobs, the latest first
    List {
        /// Only those that are this, like queued or failed
        #[arg(long, value_parser = status)]
        status: Option<JobStatus>,
    },
    /// All that is known of a job
    Show {
        /// Its id, as submit prints it
        id: String,
    },
    /// Have a job stopped
    Cancel {
        /// Its id
        id: String,
        /// Why; kept with the job
        #[arg(long, default_value = "canceled with farmhand")]
        reason: String,
    },
    /// Have a job done once more
    Requeue {
        /// Its id
        id: String,
        /// Why; kept with the job
        #[arg(long, default_value = "requeued with farmhand")]
        reason: String,
    },
    /// Delete a job, and its checkout where the server says that it goes, too
    Delete {
        /// Its id
        id: String,
    },
    /// The last that a job's task has written: the one that is worked on, or else the latest
    Tail {
        /// Its id
        id: String,
    },
}

/// A status by its name.
fn status(text: &str) -> Result<JobStatus, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

impl JobCommand {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        require_manager(context)?;
        let settings = &context.settings;
        let url = settings.server().unwrap_or_default();
        let client = Shaman::new(url, settings.client_options()?)?;
        match &self.what {
            What::List { status } => list(context, &client, *status).await,
            What::Show { id } => show(context, &client, plain(id)?).await,
            What::Cancel { id, reason } => {
                change(context, &client, plain(id)?, JobStatus::CancelRequested, reason).await
            }
            What::Requeue { id, reason } => {
                change(context, &client, plain(id)?, JobStatus::Requeueing, reason).await
            }
            What::Delete { id } => delete(context, &client, plain(id)?).await,
            What::Tail { id } => tail(context, &client, plain(id)?).await,
        }
    }
}

/// An id that can be part of an address.
fn plain(id: &str) -> Result<&str, Failure> {
    if matches!(id, "" | "." | "..") {
        let message = format!("{id:?} is no id of a job; `farmhand job list` shows them");
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(id)
}

async fn list(
    context: &Context,
    client: &Shaman,
    status: Option<JobStatus>,
) -> Result<Exit, Failure> {
    let mut jobs = client.jobs().await?;
    jobs.retain(|job| status.is_none_or(|only| job.status == only));
    jobs.sort_by_key(|job| std::cmp::Reverse(job.created));
    if context.json {
        print_json(&json!({ "schema": "farmhand.job.list/1", "jobs": jobs }))?;
        return Ok(Exit::Done);
    }
    for line in table(&jobs) {
        print(&line)?;
    }
    Ok(Exit::Done)
}

fn table(jobs: &[RemoteJob]) -> Vec<String> {
    let line = |id: &str, status: &str, done: &str, priority: &str, created: &str, name: &str| {
        format!("{id:<36}  {status:<18}  {done:>9}  {priority:>4}  {created:<20}  {name}")
    };
    if jobs.is_empty() {
        return vec!["no jobs".into()];
    }
    let mut lines = vec![line("ID", "STATUS", "STEPS", "PRIO", "SUBMITTED", "NAME")];
    lines.extend(jobs.iter().map(|job| {
        line(
            &escaped(&job.id),
            &escaped(job.status.name()),
            &format!("{}/{}", job.steps_completed, job.steps_total),
            &job.priority.to_string(),
            &seconds(job.created),
            &escaped(&job.name),
        )
    }));
    lines
}

/// A time to the second.
fn seconds(time: Option<Timestamp>) -> String {
    time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

async fn show(context: &Context, client: &Shaman, id: &str) -> Result<Exit, Failure> {
    let (job, all) = client.job(id).await?;
    if context.json {
        print_json(&all)?;
        return Ok(Exit::Done);
    }
    for line in description(&job, &all) {
        print(&line)?;
    }
    Ok(Exit::Done)
}

fn description(job: &RemoteJob, all: &Value) -> Vec<String> {
    let steps = format!("{}/{}", job.steps_completed, job.steps_total);
    let priority = job.priority.to_string();
    let (created, updated) = (seconds(job.created), seconds(job.updated));
    let mut lines: Vec<String> = [
        ("id", job.id.as_str()),
        ("name", &job.name),
        ("type", &job.job_type),
        ("status", job.status.name()),
        ("activity", &job.activity),
        ("steps", &steps),
        ("priority", &priority),
        ("submitted", &created),
        ("changed", &updated),
        ("checkout", job.checkout().unwrap_or_default()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| format!("{key:<10} {}", escaped(value)))
    .collect();
    let settings = job.settings.iter().map(|(key, value)| ("setting", key, value.to_string()));
    let metadata = job.metadata.iter().map(|(key, value)| ("metadata", key, value.clone()));
    for (what, key, value) in settings.chain(metadata) {
        lines.push(format!("{what:<10} {} = {}", escaped(key), escaped(&value)));
    }
    // What farmhand's own server keeps of its command.
    let run = &all["run"];
    if let Some(code) = run["exit_code"].as_i64() {
        lines.push(format!("{:<10} {code}", "exit code"));
    }
    if let Some(error) = run["error"].as_str() {
        lines.push(format!("{:<10} {}", "error", escaped(error)));
    }
    if let Some(output) = run["output"].as_str().filter(|output| !output.is_empty()) {
        lines.push("output".into());
        lines.extend(output.lines().map(|line| format!("  {}", escaped(line))));
    }
    lines
}

async fn change(
    context: &Context,
    client: &Shaman,
    id: &str,
    to: JobStatus,
    reason: &str,
) -> Result<Exit, Failure> {
    client.set_job_status(id, to, reason).await?;
    let (job, _) = client.job(id).await?;
    if context.json {
        print_json(
            &json!({ "schema": "farmhand.job.status/1", "job_id": id, "status": job.status }),
        )?;
    } else {
        print(&escaped(job.status.name()))?;
    }
    Ok(Exit::Done)
}

async fn delete(context: &Context, client: &Shaman, id: &str) -> Result<Exit, Failure> {
    let goes = client.what_would_delete_do(id).await?;
    client.delete_job(id).await?;
    if context.json {
        print_json(&json!({
            "schema": "farmhand.job.delete/1", "job_id": id, "shaman_checkout": goes.shaman_checkout,
        }))?;
    } else if goes.shaman_checkout {
        print("deleted, and its checkout")?;
    } else {
        print("deleted; its checkout, if it has one, stays")?;
    }
    Ok(Exit::Done)
}

async fn tail(context: &Context, client: &Shaman, id: &str) -> Result<Exit, Failure> {
    let tasks = client.tasks(id).await?;
    let Some(task) = latest(&tasks) else {
        let message =
            format!("the job {id} has no tasks yet; `farmhand job show {id}` says what it is at");
        return Err(Failure::new(Exit::Missing, message));
    };
    let text = client.log_tail(&task.id).await?;
    if context.json {
        print_json(&json!({
            "schema": "farmhand.job.tail/1", "job_id": id, "task_id": task.id, "task": task.name,
            "status": task.status, "text": text,
        }))?;
        return Ok(Exit::Done);
    }
    for line in text.lines() {
        print(&escaped(line))?;
    }
    Ok(Exit::Done)
}

/// The task that is worked on, or else the one that changed last.
fn latest(tasks: &[Task]) -> Option<&Task> {
    let changed = |task: &&Task| task.updated.parse::<Timestamp>().ok();
    let active = tasks.iter().filter(|task| task.status == "active").max_by_key(changed);
    active.or_else(|| tasks.iter().max_by_key(changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, status: &str, updated: &str) -> Task {
        Task { id: id.into(), name: id.into(), status: status.into(), updated: updated.into() }
    }

    #[test]
    fn what_is_worked_on_is_looked_at_first() {
        let mut tasks = vec![
            task("a", "completed", "2026-01-03T00:00:00Z"),
            task("b", "failed", "2026-01-04T02:00:00+02:00"),
            task("c", "queued", ""),
        ];
        assert_eq!(latest(&tasks).unwrap().id, "b");
        tasks.push(task("d", "active", "2026-01-02T00:00:00Z"));
        assert_eq!(latest(&tasks).unwrap().id, "d");
        assert!(latest(&[]).is_none());
    }

    #[test]
    fn names_of_jobs_do_nothing_to_a_terminal() {
        let job = json!({
            "id": "1", "name": "a\u{1b}[2J\nb", "type": "t", "priority": 50, "submitter_platform": "linux",
            "created": "2026-01-01T00:00:00.5Z", "updated": "2026-01-01T00:00:00Z", "status": "active",
            "activity": "x\r", "steps_completed": 1, "steps_total": 3,
        });
        let all = json!({ "run": { "exit_code": 3, "output": "one\n\u{1b}two\n" } });
        let job: RemoteJob = serde_json::from_value(job).unwrap();
        let lines = [table(std::slice::from_ref(&job)), description(&job, &all)].concat();
        assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{lines:?}");
        assert!(lines[1].contains("1/3") && lines[1].contains("2026-01-01T00:00:00Z"), "{lines:?}");
        assert!(lines.contains(&"exit code  3".to_owned()) && lines.contains(&"  one".to_owned()));
    }
}
