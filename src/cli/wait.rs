//! `farmhand wait DIR`: a barrier.

use std::{
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
    domain::BlobStatus,
    scan::{SkipReason, Skipped},
};

/// How many missing files are named.
const NAMED: usize = 20;

/// How long between looks at files that are being written.
const AGAIN: Duration = Duration::from_millis(500);

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
        require_folders(std::slice::from_ref(&self.dir))?;
        let start = Instant::now();
        Session::run(context, async |session| {
            let client = session.client.clone();
            let mut scanned = Vec::new();
            let work = self.until_stored(context, session, &mut scanned);
            let timeout = self.timeout.unwrap_or(Duration::MAX);
            let result = match tokio::time::timeout(timeout, work).await {
                Ok(result) => result?,
                Err(_) => {
                    // What is missing now, if the server can still say that.
                    let mut client = client;
                    let asked = agent::lacking(&mut client, &scanned);
                    let missing = match tokio::time::timeout(AGAIN * 10, asked).await {
                        Ok(Ok(missing)) => missing,
                        _ => {
                            scanned.iter().map(|file| (file.blob(), BlobStatus::Unknown)).collect()
                        }
                    };
                    let missing: std::collections::HashSet<_> =
                        missing.into_iter().map(|(id, _)| id).collect();
                    let files = scanned.iter().filter(|file| missing.contains(&file.blob()));
                    let missing: Vec<String> = files.map(|file| file.path.to_string()).collect();
                    return self.timed_out(context, missing, scanned.is_empty());
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
        scanned: &mut Vec<crate::scan::ScannedFile>,
    ) -> Result<SyncReport, Failure> {
        let moving = |skipped: &Skipped| {
            matches!(skipped.reason, SkipReason::Unstable | SkipReason::Vanished)
        };
        loop {
            let scan = session.scan(context, &self.dir).await?;
            scanned.clone_from(&scan.files);
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
        was_not_scanned: bool,
    ) -> Result<Exit, Failure> {
        let (dir, count) = (self.dir.display(), missing.len());
        let message = if was_not_scanned {
            format!("waited in vain: {dir} is still being read; give it more time")
        } else {
            let mut named = missing[..count.min(NAMED)].join(", ");
            if count > NAMED {
                named.push_str(", …");
            }
            format!(
                "waited in vain: {count} files of {dir} are not on the server: {named}; give it more time"
            )
        };
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
