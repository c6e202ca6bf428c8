//! `farmhand checkout DIR`

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    session::{ScanArgs, ServerArgs, Session, report_skipped, require_folders},
    settings::Overrides,
};
use crate::{
    agent::{self, Mode, ModeCount, SyncReport},
    domain::CheckoutPath,
    scan::Skipped,
};

/// Make a checkout of a folder on a server, sending what is missing
///
/// Prints the path of the checkout that the server used, below its directory of checkouts. Needs a server or
/// the directory of a store.
#[derive(Debug, Args)]
pub(super) struct Checkout {
    /// The folder
    dir: PathBuf,

    /// What to call the checkout; if that is taken, the server adds to it [default: the folder's
    /// name and the time]
    #[arg(long = "as", value_name = "PATH")]
    wish: Option<String>,

    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: &'static str,
    checkout_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkout_dir: Option<PathBuf>,
    #[serde(flatten)]
    counts: Counts<'a>,
}

/// The numbers of a sync.
#[derive(Debug, Serialize)]
pub(super) struct Counts<'a> {
    files: usize,
    bytes: u64,
    hashed_files: usize,
    cached_files: usize,
    uploaded_files: u64,
    uploaded_bytes: u64,
    already_stored_files: u64,
    deferrals: u64,
    retries: u64,
    /// What was given to connections to send blobs, and what of them was not, because the server had it.
    sent_bytes: u64,
    reused_bytes: u64,
    /// How most bytes went; `none` if there was nothing to send.
    #[serde(serialize_with = "mode_or_none")]
    mode: Option<Mode>,
    modes: &'a BTreeMap<Mode, ModeCount>,
    skipped: &'a [Skipped],
    elapsed_ms: u64,
}

fn mode_or_none<S: serde::Serializer>(mode: &Option<Mode>, to: S) -> Result<S::Ok, S::Error> {
    match mode {
        Some(mode) => mode.serialize(to),
        None => to.serialize_str("none"),
    }
}

impl<'a> Counts<'a> {
    pub fn new(report: &'a SyncReport, start: Instant) -> Self {
        let cached_files = report.files.iter().filter(|file| file.cached).count();
        let files = report.files.len();
        Self {
            files,
            bytes: report.files.iter().map(|file| file.fingerprint.size_bytes).sum(),
            hashed_files: files - cached_files,
            cached_files,
            uploaded_files: report.uploaded_files,
            uploaded_bytes: report.uploaded_bytes,
            already_stored_files: report.already_stored_files,
            deferrals: report.deferrals,
            retries: report.retries,
            sent_bytes: report.sent_bytes,
            reused_bytes: report.reused_bytes,
            mode: report.mode(),
            modes: &report.modes,
            skipped: &report.skipped,
            elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Checkout {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let start = Instant::now();
        let wish = match &self.wish {
            Some(text) => text.parse().map_err(|error| {
                Failure::new(Exit::Usage, format!("--as: {error}; choose another name"))
            })?,
            None => default_name(&self.dir),
        };
        require_folders(context, std::slice::from_ref(&self.dir))?;
        Session::run(context, async |session| {
            let scan = session.scan(context, &self.dir).await?;
            if scan.files.is_empty() {
                report_skipped(&scan.skipped);
                let message =
                    format!("there is nothing to send in {}; check the path", self.dir.display());
                return Err(Failure::new(Exit::Missing, message));
            }
            let (path, report) = agent::create_checkout(
                &mut session.client,
                scan,
                session.scans.scanner.clone(),
                session.scans.progress.clone(),
                context.settings.sync_options(),
                &wish,
            )
            .await?;
            if context.json {
                print_json(&Answer {
                    schema: "farmhand.checkout/1",
                    checkout_path: &path,
                    checkout_dir: session.checkout_dir(&path),
                    counts: Counts::new(&report, start),
                })?;
            } else {
                print(&path)?;
            }
            Ok(report_skipped(&report.skipped))
        })
        .await
    }
}

/// The folder's name and the time: `shot 010-20261123T195738Z`.
pub(super) fn default_name(dir: &Path) -> CheckoutPath {
    // `.` and `..` have no name of their own.
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let time = Timestamp::now().strftime("-%Y%m%dT%H%M%SZ").to_string();
    CheckoutPath::sanitized(&name, &time)
}
