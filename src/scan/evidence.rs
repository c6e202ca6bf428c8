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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use super::*;
    use crate::scan::{Options, Scanner};

    fn look(dir: &Path) -> (Scan, Evidence) {
        let mut scanner = Scanner::new(Options::default(), Arc::default(), Arc::default()).unwrap();
        let mut survey = scanner.survey(dir, false).unwrap();
        let evidence = std::mem::take(&mut survey.evidence);
        (scanner.finish(survey).unwrap(), evidence)
    }

    #[test]
    fn any_change_of_files_names_or_rules_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/empty")).unwrap();
        fs::write(at("a/file"), "file").unwrap();
        fs::write(at("a/.farmhandignore"), ".farmhandignore\n").unwrap();
        let changes: [(&str, &dyn Fn()); 5] = [
            ("content", &|| fs::write(at("a/file"), "changed").unwrap()),
            ("a name in an empty directory", &|| fs::write(at("a/empty/new"), "x").unwrap()),
            ("a name in the root", &|| fs::create_dir(at("new")).unwrap()),
            ("rules that are ignored themselves", &|| {
                fs::write(at("a/.farmhandignore"), ".farmhandignore\nx").unwrap();
            }),
            ("a missing file", &|| fs::remove_file(at("a/file")).unwrap()),
        ];
        for (what, change) in changes {
            let (scan, evidence) = look(dir.path());
            assert!(evidence.holds(&scan), "before: {what}");
            change();
            assert!(!evidence.holds(&scan), "{what}");
        }
    }

    #[test]
    fn what_has_just_changed_is_not_at_rest() {
        let seen = |at_ns| Fingerprint {
            size_bytes: 1,
            mtime_ns: at_ns,
            ctime_ns: at_ns,
            inode: 1,
            device: 1,
            born_ns: 1,
        };
        let digest = crate::domain::Digest::from_bytes([0; 32]);
        let file = |at_ns| crate::scan::ScannedFile {
            path: "file".parse().unwrap(),
            fingerprint: seen(at_ns),
            digest,
            cached: false,
        };
        let now = 1_000_000_000_000_000_001;
        let window = plan::racy_window_ns(&seen(now));
        for (file_at, dir_at, rested) in [
            (now - window - 1, now - window - 1, true),
            (now - window, now - window - 1, false),
            (now - window - 1, now - window, false),
        ] {
            let scan = Scan { root: "/".into(), files: vec![file(file_at)], skipped: Vec::new() };
            let evidence = Evidence { seen: vec![("".into(), seen(dir_at))], began_ns: now };
            assert_eq!(evidence.was_at_rest(&scan), rested, "{file_at} {dir_at}");
        }
    }
}
