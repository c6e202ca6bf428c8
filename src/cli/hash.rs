//! `farmhand hash PATH…`

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use clap::Args;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    session::ScanArgs,
    settings::Overrides,
};
use crate::{meter::Progress, scan::Scanner};

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

    pub fn run(&self, context: &Context) -> Result<Exit, Failure> {
        // Without a runtime there is no bar, and Ctrl-C ends the process: the cache survives that.
        let mut scanner = Scanner::new(
            context.settings.scan_options(),
            Arc::new(Progress::default()),
            Arc::new(AtomicBool::new(false)),
        )?;
        let mut exit = Exit::Done;
        for path in &self.paths {
            let scan = scanner.scan(path)?;
            let is_file = path.is_file();
            for file in &scan.files {
                let shown = if is_file { path.clone() } else { path.join(file.path.as_str()) };
                let (sha, size) = (file.digest, file.fingerprint.size_bytes);
                if context.json {
                    print_json(
                        &json!({ "sha256": sha, "size": size, "path": shown.to_string_lossy() }),
                    )?;
                } else {
                    print(&format!("{sha}  {size}  {}", escaped(&shown.to_string_lossy())))?;
                }
            }
            for skipped in &scan.skipped {
                tracing::warn!("skipped {}: {}", skipped.path, skipped.reason);
                exit = Exit::Skipped;
            }
        }
        Ok(exit)
    }
}

/// One line per file, whatever its name: control characters are written as escapes.
fn escaped(name: &str) -> String {
    let escape =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(escape).collect()
}
