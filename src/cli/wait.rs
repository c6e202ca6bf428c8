//! `farmhand wait DIR`: a barrier.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use super::{
    Context,
    checkout::Counts,
    exit::{Exit, Failure},
    print_json,
    session::{ScanArgs, ServerArgs, Session, report_skipped, require_folders},
    settings::{Overrides, parse_time},
};
use crate::{
    agent::{self, SyncReport},
    scan::{ScannedFile, SkipReason, Skipped},
};

/// How many missing files are named.
const NAMED: usize = 20;

/// How long between looks at files that are being written.
const AGAIN: Duration = Duration::from_millis(500);

/// How long the server may take to say what it lacks, after all that time in vain.
const LAST_QUESTION: Duration = Duration::from_secs(2);

/// Why it was in vain.
#[derive(Clone, Copy)]
enum Why {
    NotRead,
    Missing,
    NoAnswer,
}

/// Wait until everything in a folder, as it is now, is stored on the server
///
/// Sends what is missing. With an agent (`farmhand watch`), it usually has been sent already.
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The folder
    dir: PathBuf,

    /// How long to wait at most (exit code 8), like 10m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: &'static str,
    dir: String,
    stored: bool,
    #[serde(flatten)]
    counts: Option<Counts<'a>>,
    missing: Vec<String>,
}

impl Wait {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        require_folders(context, std::slice::from_ref(&self.dir))?;
        let start = Instant::now();
        Session::run(context, async |session| {
            let client = session.client.clone();
            let mut scanned = None;
            let work = self.until_stored(context, session, &mut scanned);
            let timeout = self.timeout.unwrap_or(Duration::MAX);
            let result = match tokio::time::timeout(timeout, work).await {
                Ok(result) => result?,
                Err(_) => {
                    let was_scanned = scanned.is_some();
                    let scanned: Vec<ScannedFile> = scanned.unwrap_or_default();
                    // What is missing now, if the server can still say that.
                    let mut client = client;
                    let asked = agent::lacking(&mut client, &scanned);
                    let missing = tokio::time::timeout(LAST_QUESTION, asked).await;
                    // Without a file there is no question.
                    let is_answered = !scanned.is_empty() && matches!(missing, Ok(Ok(_)));
                    let missing: HashSet<_> = match missing {
                        Ok(Ok(missing)) => missing.into_iter().map(|(id, _)| id).collect(),
                        _ => scanned.iter().map(ScannedFile::blob).collect(),
                    };
                    let files = scanned.iter().filter(|file| missing.contains(&file.blob()));
                    let missing = files.map(|file| file.path.to_string()).collect();
                    let why = match (was_scanned, is_answered) {
                        (false, _) => Why::NotRead,
                        (true, true) => Why::Missing,
                        (true, false) => Why::NoAnswer,
                    };
                    return self.timed_out(context, missing, why);
                }
            };
            if context.json {
                print_json(&Answer {
                    schema: "farmhand.wait/1",
                    dir: self.dir.display().to_string(),
                    stored: true,
                    counts: Some(Counts::new(&result, start)),
                    missing: Vec::new(),
                })?;
            }
            Ok(report_skipped(&result.skipped))
        })
        .await
    }

    /// Syncs until nothing changes under our hands.
    async fn until_stored(
        &self,
        context: &Context,
        session: &mut Session,
        scanned: &mut Option<Vec<ScannedFile>>,
    ) -> Result<SyncReport, Failure> {
        let moving = |skipped: &Skipped| {
            matches!(skipped.reason, SkipReason::Unstable | SkipReason::Vanished)
        };
        loop {
            let scan = session.scan(context, &self.dir).await?;
            *scanned = Some(scan.files.clone());
            let scans = &session.scans;
            let (scanner, progress) = (scans.scanner.clone(), scans.progress.clone());
            let options = context.settings.sync_options();
            let synced = agent::sync(&mut session.client, scan, scanner, progress, options).await;
            let report = match synced.map_err(Failure::from) {
                Ok(report) => report,
                // There is time for it to come back.
                Err(failure) if failure.exit() == Exit::Unreachable && self.timeout.is_some() => {
                    tracing::debug!("{failure:?}");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            if self.timeout.is_none() || !report.skipped.iter().any(moving) {
                return Ok(report);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn timed_out(
        &self,
        context: &Context,
        missing: Vec<String>,
        why: Why,
    ) -> Result<Exit, Failure> {
        let (dir, count) = (self.dir.display(), missing.len());
        let mut named = missing[..count.min(NAMED)].join(", ");
        if count > NAMED {
            named.push_str(", …");
        }
        let message = match why {
            Why::NotRead => format!("{dir} is still being read; give it more time"),
            Why::Missing => {
                format!("{count} files of {dir} are not on the server: {named}; give it more time")
            }
            Why::NoAnswer => format!(
                "the server does not answer, and may lack all {count} files of {dir}; check that it runs \
                 and that --server is right, `farmhand doctor` helps"
            ),
        };
        let message = format!("waited in vain: {message}");
        if context.json {
            print_json(&Answer {
                schema: "farmhand.wait/1",
                dir: dir.to_string(),
                stored: false,
                counts: None,
                missing,
            })?;
        }
        Err(Failure::new(Exit::TimedOut, message))
    }
}
