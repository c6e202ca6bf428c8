//! `farmhand job …`: what became of jobs, and what is to become of them.

use std::io::IsTerminal;

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
    client::{Deletion, RemoteJob, Shaman, Task},
    domain::report::Outputs,
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
    /// Delete a job, and its checkout if no other job uses it
    ///
    /// Says what is deleted, and asks on a terminal. Of the checkout, only the files that farmhand created are
    /// removed: frames that were rendered there stay where they are.
    #[command(visible_alias = "rm")]
    Delete {
        /// Its id
        id: String,
        /// Do not ask; needed where there is no terminal
        #[arg(long, short = 'y')]
        yes: bool,
        /// Remove the job's outputs, too: other files below its checkout, and its directory below renders/
        #[arg(long)]
        with_outputs: bool,
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
            What::Delete { id, yes, with_outputs } => {
                delete(context, &client, plain(id)?, *yes, *with_outputs).await
            }
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

async fn delete(
    context: &Context,
    client: &Shaman,
    id: &str,
    yes: bool,
    with_outputs: bool,
) -> Result<Exit, Failure> {
    let (job, _) = client.job(id).await?;
    let preview = client.what_would_delete_do(id).await?;
    if !yes {
        confirm(&job, &preview, with_outputs)?;
    }
    let done = client.delete_job(id, with_outputs).await?;
    // A Manager deletes in the background, and says no more than before.
    let deletion = done.unwrap_or(preview);
    if context.json {
        let mut answer = json!({ "schema": "farmhand.job.delete/1", "job_id": id });
        let fields = serde_json::to_value(&deletion).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write the results: {error}"))
        })?;
        if let (Value::Object(answer), Value::Object(fields)) = (&mut answer, fields) {
            answer.extend(fields);
        }
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    print(&format!("deleted the job {}", escaped(id)))?;
    fate(&deletion, if with_outputs { Then::Removed } else { Then::Stayed })
        .iter()
        .try_for_each(|line| print(line))?;
    Ok(Exit::Done)
}

/// Shows what a deletion would do, and asks.
fn confirm(job: &RemoteJob, deletion: &Deletion, with_outputs: bool) -> Result<(), Failure> {
    let id = escaped(&job.id);
    if !std::io::stdin().is_terminal() {
        let message = format!(
            "the job {id} is not deleted: standard input is not a terminal, so the question cannot be asked; \
             give --yes to delete it"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    eprintln!("job {id}: {} ({})", escaped(&job.name), escaped(job.status.name()));
    for line in fate(deletion, if with_outputs { Then::Removed } else { Then::Stay }) {
        eprintln!("  {line}");
    }
    eprint!("Delete it? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        format!("the job {id} is not deleted, because the answer was not y"),
    ))
}

/// The end of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// They are removed, too.
    Removed,
    /// They stay, and could be removed.
    Stay,
    /// They have stayed, and only a removal by hand is left.
    Stayed,
}

/// The lines about a job's files, removed or kept.
fn fate(deletion: &Deletion, then: Then) -> Vec<String> {
    let mut lines = Vec::new();
    match &deletion.checkout {
        Some(erased) => {
            let (path, files) = (escaped(&erased.path), erased.files);
            lines.push(format!("checkout {path}: {files} files that farmhand created are removed"));
            lines.extend(outputs(&erased.outputs, &format!("below jobs/{path}"), then));
        }
        None if deletion.shaman_checkout => {
            lines.push("its checkout is deleted; the server does not say which files stay".into());
        }
        None => lines.push("its checkout stays, or it has none".into()),
    }
    lines.extend(outputs(&deletion.renders, "in its directory below renders/", then));
    lines
}

/// How many outputs are named.
const NAMED: usize = 5;

/// The line about outputs, removed or kept.
pub(super) fn outputs(outputs: &Outputs, place: &str, then: Then) -> Option<String> {
    if outputs.files == 0 {
        return None;
    }
    let (files, size) = (outputs.files, bytesize::ByteSize::b(outputs.bytes));
    let mut named: Vec<_> = outputs.paths.iter().take(NAMED).map(|path| escaped(path)).collect();
    if files > named.len() as u64 {
        named.push("…".into());
    }
    let left = outputs.left;
    let then = match then {
        Then::Removed if left > 0 => {
            format!("are removed, but for {left} that are mounted there or cannot be removed")
        }
        Then::Removed => "are removed".into(),
        Then::Stay => "stay (--with-outputs removes them)".into(),
        Then::Stayed => "stay; remove them by hand when they are not needed".to_owned(),
    };
    Some(format!("{files} files ({size}) that jobs made {place} {then}: {}", named.join(", ")))
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
    fn a_preview_names_what_stays() {
        let deletion = |text: Value| -> Deletion { serde_json::from_value(text).unwrap() };
        let paths = ["a", "b", "c", "d", "e"].map(|name| format!("render/{name}\u{1b}.png"));
        let both = deletion(json!({
            "shaman_checkout": true,
            "checkout": {
                "path": "shot", "files": 12, "directories": 2,
                "outputs": { "files": 6, "bytes": 2048, "paths": paths },
            },
            "renders": { "files": 1, "bytes": 1, "paths": ["0001.png"] },
        }));
        let lines = fate(&both, Then::Stay);
        assert_eq!(lines[0], "checkout shot: 12 files that farmhand created are removed");
        assert!(
            lines[1].contains("6 files (2.0 KiB) that jobs made below jobs/shot stay"),
            "{lines:?}"
        );
        assert!(lines[1].contains("render/e") && lines[1].ends_with(", …"), "{lines:?}");
        assert!(
            lines[2].contains("1 files (1 B)") && lines[2].ends_with(": 0001.png"),
            "{lines:?}"
        );
        assert!(fate(&both, Then::Removed)[1..].iter().all(|line| line.contains("are removed")));
        assert!(!lines.concat().contains(char::is_control), "{lines:?}");
        let of_a_manager = fate(&deletion(json!({ "shaman_checkout": true })), Then::Stay);
        assert!(of_a_manager[0].contains("does not say which files stay"), "{of_a_manager:?}");
        let stays = fate(&deletion(json!({ "shaman_checkout": false })), Then::Stay);
        assert_eq!(stays, ["its checkout stays, or it has none"]);
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
