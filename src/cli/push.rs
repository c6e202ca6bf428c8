//! `farmhand push DIR…`

use std::{path::PathBuf, time::Instant};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::{
    Context,
    checkout::Counts,
    exit::{Exit, Failure},
    print_json,
    session::{ScanArgs, ServerArgs, Session, report_skipped, require_folders},
    settings::Overrides,
};
use crate::agent;

/// Send what a server lacks of folders, without making a checkout
///
/// A checkout later then has nothing to send. Results are printed with --json only, one object per
/// folder.
#[derive(Debug, Args)]
pub(super) struct Push {
    /// The folders
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: &'static str,
    dir: String,
    #[serde(flatten)]
    counts: Counts<'a>,
}

impl Push {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        require_folders(context, &self.dirs)?;
        Session::run(context, async |session| {
            let mut exit = Exit::Done;
            let options = context.settings.sync_options();
            for dir in &self.dirs {
                let start = Instant::now();
                let scan = session.scan(context, dir).await?;
                let report = agent::sync(
                    &mut session.client,
                    scan,
                    session.scans.scanner.clone(),
                    session.scans.progress.clone(),
                    options.clone(),
                )
                .await?;
                if context.json {
                    print_json(&Answer {
                        schema: "farmhand.push/1",
                        dir: dir.display().to_string(),
                        counts: Counts::new(&report, start),
                    })?;
                } else if !context.logs.quiet {
                    eprintln!(
                        "{}: {} files are on the server; sent {} ({})",
                        dir.display(),
                        report.files.len(),
                        report.uploaded_files,
                        ByteSize::b(report.uploaded_bytes),
                    );
                }
                if report_skipped(&report.skipped) != Exit::Done {
                    exit = Exit::Skipped;
                }
            }
            Ok(exit)
        })
        .await
    }
}
