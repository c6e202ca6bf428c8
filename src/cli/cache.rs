//! `farmhand cache …`

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    session::{Scans, interrupted},
    settings::Overrides,
};

/// Look after what is remembered of hashed files
///
/// The cache is shared by all farmhands of a user. It can be removed at any time: all that is lost is
/// the time to hash again.
#[derive(Debug, Args)]
pub(super) struct Cache {
    /// Where hashes are remembered, instead of the user's cache directory
    #[arg(long, value_name = "DIR", global = true)]
    cache_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show where the cache is, how large, and what folders it knows
    Stats,
    /// Hash files again, and look whether the cache is right
    ///
    /// Wrong entries are named and removed. Exit code 9 if there are some: content was changed, and its
    /// time and all else that the file system notes was set back, or the disk or memory is broken. Entries
    /// whose checksum is wrong are removed from all folders, and counted; no scan uses them.
    Verify {
        /// The folders [default: all that are known]
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// Hash so many files, chosen by chance
        #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "all")]
        sample: u64,
        /// Hash all files
        #[arg(long)]
        all: bool,
    },
    /// Forget everything, or some folders
    Clear {
        /// The folders [default: all]
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
}

impl Cache {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set("scan.cache", "cache", Some(true));
        overrides.set_path("scan.cache_dir", "--cache-dir", self.cache_dir.as_ref());
    }

    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let scans = Scans::new(context)?;
        match self.action {
            Action::Stats => stats(context, &scans),
            Action::Verify { dirs, sample, all } => {
                verify(context, &scans, roots(dirs)?, (!all).then_some(sample)).await
            }
            Action::Clear { dirs } => clear(context, &scans, &roots(dirs)?),
        }
    }
}

/// As a scan would call them.
fn roots(dirs: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let absolute = |dir: PathBuf| {
        std::path::absolute(&dir).map_err(|error| {
            Failure::new(Exit::Usage, format!("cannot find {}: {error}", dir.display()))
        })
    };
    dirs.into_iter().map(absolute).collect()
}

fn unusable() -> Failure {
    Failure::new(Exit::Failed, "the hash cache cannot be used; give its directory with --cache-dir")
}

fn stats(context: &Context, scans: &Scans) -> Result<Exit, Failure> {
    let mut scanner = scans.scanner.lock().expect("BUG: no one panics with this lock");
    let cache = scanner.cache();
    let (file, bytes) =
        cache.file().map(|(file, bytes)| (file.to_owned(), bytes)).ok_or_else(unusable)?;
    let roots = cache.roots().ok_or_else(unusable)?;
    let damaged = cache.damaged().ok_or_else(unusable)?;
    if context.json {
        print_json(&json!({
            "schema": "farmhand.cache.stats/1",
            "file": file.to_string_lossy(), "file_bytes": bytes, "roots": roots,
            "damaged": damaged,
        }))?;
        return Ok(Exit::Done);
    }
    print(&format!("{} ({})", file.display(), ByteSize(bytes)))?;
    let files: u64 = roots.iter().map(|root| root.files).sum();
    print(&format!("{files} files in {} folders", roots.len()))?;
    if damaged > 0 {
        print(&format!("{damaged} entries are damaged (wrong checksum), and are not used"))?;
    }
    for root in roots {
        let used = jiff::Timestamp::from_second(root.used_s).unwrap_or_default();
        let day = used.strftime("%Y-%m-%d");
        let gone = if Path::new(&root.path).exists() { "" } else { "  (not there)" };
        let size = ByteSize(root.bytes).to_string();
        print(&format!("{:>9} files {size:>10}  {day}  {}{gone}", root.files, root.path))?;
    }
    Ok(Exit::Done)
}

async fn verify(
    context: &Context,
    scans: &Scans,
    only: Vec<PathBuf>,
    at_most: Option<u64>,
) -> Result<Exit, Failure> {
    let display = scans.display(context);
    let scanner = scans.scanner.clone();
    let checking = tokio::task::spawn_blocking(move || {
        let mut scanner = scanner.lock().expect("BUG: no one panics with this lock");
        scanner.cache().file().ok_or_else(unusable)?;
        Ok::<_, Failure>(scanner.verify_cache(&only, at_most)?)
    });
    let report = tokio::select! {
        report = checking => {
            report.map_err(|error| Failure::new(Exit::Failed, format!("BUG: {error}")))??
        }
        () = interrupted() => {
            tokio::select! {
                () = scans.stop() => {}
                () = interrupted() => {} // a file that hangs
            }
            return Err(Failure::interrupted());
        }
    };
    drop(display);
    if context.json {
        print_json(&json!({
            "schema": "farmhand.cache.verify/1",
            "right": report.right,
            "bytes": report.bytes,
            "wrong": report.wrong,
            "outdated": report.outdated,
            "unreadable": report.unreadable,
            "damaged": report.damaged,
        }))?;
    } else {
        for path in &report.wrong {
            print(&format!("wrong  {path}"))?;
        }
        print(&format!(
            "{} files ({}) are right, {} are wrong; {} entries are of files that have changed or are \
             gone, {} files could not be read",
            report.right,
            ByteSize(report.bytes),
            report.wrong.len(),
            report.outdated,
            report.unreadable
        ))?;
        if report.damaged > 0 {
            print(&format!(
                "{} entries were damaged (wrong checksum): they were not used, and are removed; check \
                 the disk and the memory of this machine",
                report.damaged
            ))?;
        }
    }
    let is_right = report.wrong.is_empty() && report.damaged == 0;
    Ok(if is_right { Exit::Done } else { Exit::Integrity })
}

fn clear(context: &Context, scans: &Scans, only: &[PathBuf]) -> Result<Exit, Failure> {
    let mut scanner = scans.scanner.lock().expect("BUG: no one panics with this lock");
    let cleared = scanner
        .cache()
        .clear(only)
        .ok_or_else(|| Failure::new(Exit::Failed, "the hash cache cannot be written to"))?;
    if context.json {
        print_json(&json!({ "schema": "farmhand.cache.clear/1", "files": cleared }))?;
    } else {
        print(&format!("forgot {cleared} files"))?;
    }
    Ok(Exit::Done)
}
