//! The command that jobs are given to: started for each in its turn, with the job on its standard input.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use super::{Farm, now, output_dir};
use crate::{
    jobs::JobStatus,
    ledger::{Entry, LedgerError, Run},
    server::App,
};

/// How much of what a command writes is kept, in bytes.
const OUTPUT_BYTES: usize = 64 << 10;

/// How long after its end its output is still read: something it started may hold it open.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The variable that tells a command, and all that it starts, which job they are for.
pub(super) const JOB_ID: &str = "FARMHAND_JOB_ID";

/// The variable that tells a command where the job's outputs go: a directory that exists.
const OUTPUT_DIR: &str = "FARMHAND_JOB_OUTPUT";

/// A command that jobs are given to.
#[derive(Debug, Clone)]
pub struct Hook {
    /// The program, and its arguments.
    pub command: Vec<String>,
    /// How long it may take for a job.
    pub timeout: Duration,
    /// How many run at once.
    pub parallel: usize,
    /// What a job is when it has succeeded: [`JobStatus::Completed`]; or [`JobStatus::Active`], if it hands
    /// jobs over to somebody who says later how they ended.
    pub then: JobStatus,
}

/// One that runs.
#[derive(Debug, Default)]
pub(super) struct Running {
    output: Mutex<Tail>,
    /// Has it end.
    pub cancel: CancellationToken,
    /// It has ended, and what came of it is in the ledger.
    pub ended: CancellationToken,
}

/// All that run, by the job's id.
pub(super) type AllRunning = HashMap<String, Arc<Running>>;

/// The last of what was written.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * OUTPUT_BYTES {
            self.0.drain(..self.0.len() - OUTPUT_BYTES);
        }
    }

    fn text(&self) -> String {
        let start = self.0.len().saturating_sub(OUTPUT_BYTES);
        let text = String::from_utf8_lossy(&self.0[start..]);
        // From a whole line on, if something is missing.
        match text.split_once('\n') {
            Some((_, rest)) if start > 0 => rest.to_owned(),
            _ => text.into_owned(),
        }
    }
}

impl Running {
    /// What it has written so far, or the last of it.
    pub fn output(&self) -> String {
        self.tail().text()
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a command ended.
enum End {
    Exited(ExitStatus),
    Failed(String),
    Canceled,
}

/// Gives jobs to the command until the server stops.
pub(in crate::server) async fn run(app: App, farm: Arc<Farm>) {
    let Some(hook) = farm.options.hook.clone() else { return };
    let slots = Arc::new(tokio::sync::Semaphore::new(hook.parallel.max(1)));
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot.expect("BUG: never closed"),
            () = app.shutdown.cancelled() => return,
        };
        let (entry, running) = loop {
            let claiming = farm.clone();
            match app.exec.blocking(move || claim(&claiming)).await {
                Ok(Some(claimed)) => break claimed,
                Ok(None) => {}
                Err(error) => tracing::error!("no job can be begun: {error}"),
            }
            tokio::select! {
                () = farm.wake.notified() => {}
                () = app.shutdown.cancelled() => return,
            }
        };
        let (farm, hook, ending) = (farm.clone(), hook.clone(), app.end.clone());
        let (exec, store) = (app.exec.clone(), app.store.clone());
        app.exec.spawn(async move {
            let _slot = slot;
            let id = entry.job.id.clone();
            let name = output_dir(&entry.job);
            let created = exec.blocking(move || store.create_output_dir(&name)).await;
            if let Err(error) = &created {
                tracing::warn!(
                    job = id,
                    "a job has no output directory: {error}: {}",
                    error.source
                );
            }
            let end = perform(&hook, &farm, entry, created.ok(), &running, &ending).await;
            let noting = running.clone();
            let noted = exec.blocking(move || note(&farm, &hook, &id, &noting, &end)).await;
            if let Err(error) = noted {
                tracing::error!("what became of a job is not kept: {error}");
            }
            running.ended.cancel();
        });
    }
}

/// Takes the job whose turn it is.
fn claim(farm: &Farm) -> Result<Option<(Entry, Arc<Running>)>, LedgerError> {
    let mut all = farm.running();
    let Some(next) = farm.ledger.next()? else { return Ok(None) };
    let claimed = farm.ledger.update(&next.job.id, |mut entry| {
        entry.job.status = JobStatus::Active;
        entry.job.activity = "its command runs".into();
        entry.run = Some(Run {
            started: now(),
            ended: None,
            exit_code: None,
            error: None,
            output: String::new(),
        });
        Some(entry)
    })?;
    let Some(entry) = claimed else { return Ok(None) };
    let running = Arc::new(Running::default());
    all.insert(entry.job.id.clone(), running.clone());
    Ok(Some((entry, running)))
}

async fn perform(
    hook: &Hook,
    farm: &Farm,
    entry: Entry,
    output: Option<PathBuf>,
    running: &Running,
    server_ends: &CancellationToken,
) -> End {
    let id = entry.job.id.clone();
    let job = farm.expanded(entry.job);
    let mut input = serde_json::to_vec(&job).expect("BUG: jobs are plain data");
    input.push(b'\n');
    let program = hook.command.first().map_or("", String::as_str);
    let mut command = Command::new(program);
    command
        .args(&hook.command[1.min(hook.command.len())..])
        .env(JOB_ID, &id)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(output) = output {
        command.env(OUTPUT_DIR, output);
    }
    // What it starts ends with it.
    #[cfg(unix)]
    command.process_group(0);
    tracing::info!(job = id, command = program, "a job begins");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return End::Failed(format!("cannot run {program}: {error}")),
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let told = async {
        // A command that does not want to know closes it.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input).await;
        }
    };
    let read = async { tokio::join!(keep(stdout, running), keep(stderr, running)) };
    let (told, read) = (std::pin::pin!(told), std::pin::pin!(read));
    let mut talk = std::pin::pin!(async { tokio::join!(told, read) });
    let mut is_silent = false;
    let limit = tokio::time::sleep(hook.timeout);
    tokio::pin!(limit);
    let end = loop {
        tokio::select! {
            status = child.wait() => break match status {
                Ok(status) => End::Exited(status),
                Err(error) => End::Failed(format!("cannot wait for {program}: {error}")),
            },
            _ = &mut talk, if !is_silent => is_silent = true,
            () = &mut limit => {
                let limit = hook.timeout.as_secs_f64();
                break End::Failed(format!("it took longer than {limit} s, and was ended"));
            }
            () = running.cancel.cancelled() => break End::Canceled,
            () = server_ends.cancelled() => break End::Failed("the server ended".into()),
        }
    };
    if !matches!(end, End::Exited(_)) {
        kill(&mut child).await;
    }
    if !is_silent {
        let _ = tokio::time::timeout(LAST_WORDS, talk).await;
    }
    end
}

async fn keep(source: Option<impl AsyncRead + Unpin>, running: &Running) {
    let Some(mut source) = source else { return };
    let mut piece = vec![0; 8 << 10];
    while let Ok(length @ 1..) = source.read(&mut piece).await {
        running.tail().push(&piece[..length]);
    }
}

/// Ends it, and what it has started.
async fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok())
        && let Some(group) = rustix::process::Pid::from_raw(group)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill().await;
}

/// Keeps what came of it.
fn note(
    farm: &Farm,
    hook: &Hook,
    id: &str,
    running: &Running,
    end: &End,
) -> Result<(), LedgerError> {
    let mut all = farm.running();
    all.remove(id);
    let ended: Timestamp = now();
    let noted = farm.ledger.update(id, |mut entry| {
        let (exit_code, error) = match end {
            End::Exited(status) => {
                (status.code(), status.code().is_none().then(|| status.to_string()))
            }
            End::Failed(error) => (None, Some(error.clone())),
            End::Canceled => (None, Some("canceled".into())),
        };
        if entry.job.status != JobStatus::Canceled {
            let succeeded = exit_code == Some(0);
            entry.job.status = if succeeded { hook.then } else { JobStatus::Failed };
            entry.job.activity = match (exit_code, &error) {
                (Some(0), _) if hook.then == JobStatus::Active => "handed over".into(),
                (Some(0), _) => "its command succeeded".into(),
                (Some(code), _) => format!("its command ended with exit code {code}"),
                (None, Some(error)) => format!("its command failed: {error}"),
                (None, None) => "its command failed".into(),
            };
        }
        if let Some(run) = &mut entry.run {
            run.ended = Some(ended);
            (run.exit_code, run.error) = (exit_code, error);
            run.output = running.output();
        }
        Some(entry)
    })?;
    if let Some(entry) = noted {
        let (job, activity) = (&entry.job.id, &entry.job.activity);
        tracing::info!(job, status = %entry.job.status, "a job has ended: {activity}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_whole() {
        let mut tail = Tail::default();
        tail.push(b"all of it");
        assert_eq!(tail.text(), "all of it");
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\n").as_bytes());
            assert!(tail.0.len() <= 2 * OUTPUT_BYTES);
        }
        let text = tail.text();
        assert!(text.len() <= OUTPUT_BYTES && text.len() > OUTPUT_BYTES - 20);
        assert!(text.starts_with("line ") && text.ends_with("line 99999\n"));
    }
}
