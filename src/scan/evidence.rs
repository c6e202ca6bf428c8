//! What a folder looked like when it was scanned, to find out later whether it still does.

use rayon::prelude::*;

use super::{Scan, plan};
use crate::disk::Fingerprint;

/// What decides about a scan besides the files in it: the directories, and the files with ignore rules.
///
/// A file or directory that is changed by a name outside the folder, or that a mount covers, causes no
/// event, but looks different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Paths below the root; empty for the root itself.
    pub(super) seen: Vec<(Box<str>, Fingerprint)>,
    /// A time before all of it was looked at.
    pub(super) began_ns: i64,
}

impl Evidence {
    /// Whether everything had been at rest for longer than a tick of the file system's clock. Otherwise it
    /// may have changed again right after it was looked at, and look the same.
    pub fn was_at_rest(&self, scan: &Scan) -> bool {
        let rested = |seen: &Fingerprint| {
            plan::changed_ns(seen).saturating_add(plan::racy_window_ns(seen)) < self.began_ns
        };
        self.seen.iter().all(|(_, seen)| rested(seen))
            && scan.files.iter().all(|file| rested(&file.fingerprint))
    }

    /// Whether everything still looks as it did. One look for each file and directory; nothing is listed
    /// or read.
    pub fn holds(&self, scan: &Scan) -> bool {
        let is_same = |path: &str, seen: &Fingerprint| {
            let path = if path.is_empty() { scan.root.clone() } else { scan.root.join(path) };
            std::fs::metadata(path).is_ok_and(|found| Fingerprint::of(&found) == *seen)
        };
        let files = || scan.files.par_iter().with_min_len(256);
        let seen = || self.seen.par_iter().with_min_len(256);
        seen().all(|(path, seen)| is_same(path, seen))
            && files().all(|file| is_same(file.path.as_str(), &file.fingerprint))
    }
}
