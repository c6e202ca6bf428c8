//! A scan on its way from the agent to another process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    disk::Fingerprint,
    domain::Digest,
    scan::{Scan, ScannedFile, SkipReason, Skipped},
};

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScanRequest {
    pub dir: PathBuf,
    pub default_ignores: bool,
    pub ignores: Vec<String>,
}

/// Path, digest, size, mtime, ctime, inode, device, birth.
type FileRow = (String, Digest, u64, i64, i64, u64, u64, i64);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScanAnswer {
    root: PathBuf,
    files: Vec<FileRow>,
    skipped: Vec<(String, String)>,
    /// Whether the agent knew it without looking.
    pub was_known: bool,
}

impl ScanAnswer {
    pub fn new(scan: &Scan, was_known: bool) -> Self {
        let row = |file: &ScannedFile| {
            let Fingerprint { size_bytes, mtime_ns, ctime_ns, inode, device, born_ns } =
                file.fingerprint;
            let path = file.path.as_str().to_owned();
            (path, file.digest, size_bytes, mtime_ns, ctime_ns, inode, device, born_ns)
        };
        let skip = |skipped: &Skipped| (skipped.path.clone(), skipped.reason.to_string());
        Self {
            root: scan.root.clone(),
            files: scan.files.iter().map(row).collect(),
            skipped: scan.skipped.iter().map(skip).collect(),
            was_known,
        }
    }

    /// The scan; `None` if a path is none.
    pub fn scan(self) -> Option<Scan> {
        let file =
            |(path, digest, size_bytes, mtime_ns, ctime_ns, inode, device, born_ns): FileRow| {
                let fingerprint =
                    Fingerprint { size_bytes, mtime_ns, ctime_ns, inode, device, born_ns };
                Some(ScannedFile { path: path.parse().ok()?, fingerprint, digest, cached: true })
            };
        let skip = |(path, reason)| Skipped { path, reason: SkipReason::Reported(reason) };
        Some(Scan {
            root: self.root,
            files: self.files.into_iter().map(file).collect::<Option<_>>()?,
            skipped: self.skipped.into_iter().map(skip).collect(),
        })
    }
}
