//! Evidence that a folder is still as it was when it was scanned.

use std::{fs, io, path::Path};

use rayon::prelude::*;

use super::{Scan, SkipReason, Skipped, plan};
use crate::disk::Fingerprint;

/// Fingerprints that decide about a scan besides those of its files: directories, and ignore rules.
///
/// A file or directory that is changed by a name outside the folder, or that a mount covers, causes
/// no event, but looks different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Paths below the root; empty for the root itself.
    pub(super) seen: Vec<(Box<str>, Fingerprint)>,
    /// A time before all of it was looked at.
    pub(super) began_ns: i64,
}

impl Evidence {
    /// Whether everything had been at rest for longer than a tick of the file system's clock.
    /// Otherwise it may have changed again right after it was looked at, and look the same.
    pub fn was_at_rest(&self, scan: &Scan) -> bool {
        let rested = |seen: &Fingerprint| {
            plan::changed_ns(seen).saturating_add(plan::racy_window_ns(seen)) < self.began_ns
        };
        self.seen.iter().all(|(_, seen)| rested(seen))
            && scan.files.iter().all(|file| rested(&file.fingerprint))
    }

    /// Whether everything still has its fingerprint, and the reasons for skipping still hold. Costs
    /// one `stat` for each file and directory; nothing is listed or read.
    pub fn holds(&self, scan: &Scan) -> bool {
        let is_same = |path: &str, seen: &Fingerprint| {
            let path = if path.is_empty() { scan.root.clone() } else { scan.root.join(path) };
            fs::metadata(path).is_ok_and(|found| Fingerprint::of(&found) == *seen)
        };
        let files = || scan.files.par_iter().with_min_len(256);
        let seen = || self.seen.par_iter().with_min_len(256);
        seen().all(|(path, seen)| is_same(path, seen))
            && files().all(|file| is_same(file.path.as_str(), &file.fingerprint))
            && scan.skipped.iter().all(|skipped| is_still_skipped(&scan.root, skipped))
    }
}

/// Whether the reason holds that something was skipped for. The target of a link may appear, or
/// become a file, without an event in the folder.
fn is_still_skipped(root: &Path, skipped: &Skipped) -> bool {
    let found = || fs::metadata(root.join(&skipped.path));
    match skipped.reason {
        // The name is an event when it changes.
        SkipReason::BadName(_) => true,
        SkipReason::BrokenLink(_) => {
            found().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        }
        SkipReason::LinkToDirectory => found().is_ok_and(|found| found.is_dir()),
        SkipReason::NotAFile(_) => found().is_ok_and(|found| !found.is_dir() && !found.is_file()),
        SkipReason::Unreadable(_)
        | SkipReason::Vanished
        | SkipReason::Unstable
        | SkipReason::Reported(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scan::{Options, Scanner};

    fn look(dir: &Path) -> (Scan, Evidence) {
        let mut scanner = Scanner::new(Options::default(), Arc::default(), Arc::default()).unwrap();
        let mut survey = scanner.survey(dir, false).unwrap();
        let evidence = std::mem::take(&mut survey.evidence);
        (scanner.finish(survey).unwrap(), evidence)
    }

    #[test]
    fn changed_files_names_and_rules_are_seen() {
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

    #[cfg(unix)]
    #[test]
    fn skipped_links_are_looked_at() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let target = dir.path().join("target");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a\\b"), "a name that cannot be sent").unwrap();
        symlink(&target, root.join("link")).unwrap();
        let (scan, evidence) = look(&root);
        assert_eq!(scan.skipped.len(), 2, "{scan:?}");
        assert!(evidence.holds(&scan), "broken");
        fs::create_dir(&target).unwrap();
        assert!(!evidence.holds(&scan), "a directory has appeared");
        let (scan, evidence) = look(&root);
        fs::write(target.join("file"), "in the directory").unwrap();
        assert!(evidence.holds(&scan), "a link to a directory");
        fs::remove_dir_all(&target).unwrap();
        fs::write(&target, "x").unwrap();
        assert!(!evidence.holds(&scan), "the directory has become a file");
        let (mut scan, evidence) = look(&root);
        assert!(evidence.holds(&scan));
        let reason = SkipReason::Unreadable("denied".into());
        scan.skipped.push(Skipped { path: "secret".into(), reason });
        assert!(!evidence.holds(&scan), "it may be readable by now");
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
