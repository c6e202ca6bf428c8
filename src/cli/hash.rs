//! `farmhand hash PATH…`

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    not_written,
    session::{ScanArgs, Scans, interrupted, report_skipped},
    settings::Overrides,
};
use crate::scan::Scan;

/// Print SHA-256, size and path of files, as Shaman knows them
#[derive(Debug, Args)]
pub(super) struct Hash {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    scan: ScanArgs,
}

impl Hash {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.scan.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let scans = Scans::new(context)?;
        let mut exit = Exit::Done;
        // One for all: a signal that comes between two waits must not be lost.
        let stop = interrupted();
        tokio::pin!(stop);
        for path in &self.paths {
            let scan = tokio::select! {
                scan = scans.scan(context, path) => scan?,
                () = &mut stop => {
                    tokio::select! {
                        () = scans.stop() => {}
                        () = interrupted() => {} // a file that hangs
                    }
                    return Err(Failure::interrupted());
                }
            };
            let (path, json) = (path.clone(), context.json);
            let skipped = scan.skipped.clone();
            let printing = tokio::task::spawn_blocking(move || print_all(&path, &scan, json));
            tokio::select! {
                printed = printing => printed
                    .map_err(|error| Failure::new(Exit::Failed, format!("BUG: {error}")))??,
                // Whoever reads may not read on.
                () = &mut stop => return Err(Failure::interrupted()),
            }
            if report_skipped(&skipped) != Exit::Done {
                let strict = context.settings.values.scan.strict;
                exit = if strict { Exit::Missing } else { Exit::Skipped };
            }
        }
        Ok(exit)
    }
}

fn print_all(path: &Path, scan: &Scan, as_json: bool) -> Result<(), Failure> {
    let is_file = path.is_file();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print =
        |line: std::fmt::Arguments| writeln!(out, "{line}").map_err(|error| not_written(&error));
    for file in &scan.files {
        let shown = if is_file { path.to_owned() } else { path.join(file.path.as_str()) };
        let (sha, size) = (file.digest, file.fingerprint.size_bytes);
        if as_json {
            let path = shown.to_string_lossy();
            print(format_args!("{}", json!({ "sha256": sha, "size": size, "path": path })))?;
        } else {
            print(format_args!("{sha}  {size}  {}", escaped(&shown.to_string_lossy())))?;
        }
    }
    out.flush().map_err(|error| not_written(&error))
}

/// One line per file, whatever its name: control characters are written as escapes.
pub(super) fn escaped(name: &str) -> String {
    let escape =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(escape).collect()
}
