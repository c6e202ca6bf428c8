//! What must be hashed. Pure.

use std::collections::HashMap;

use super::{ScannedFile, cache::CacheRow, walk::Found};
use crate::{
    disk::Fingerprint,
    domain::{Digest, RelPath},
};

/// Within this time of its last change, a file may change again and keep its times: the coarsest
/// clock tick of kernels that note times to the nanosecond is 10 ms (`CONFIG_HZ=100`).
pub(super) const FINE_WINDOW_NS: i64 = 20_000_000;

/// The same for file systems that note times to the second or, as FAT does, to two.
const COARSE_WINDOW_NS: i64 = 2_100_000_000;

/// Files whose digest is known, and files to hash.
#[derive(Debug, Default)]
pub(super) struct HashPlan {
    pub trusted: Vec<ScannedFile>,
    /// Largest first.
    pub to_hash: Vec<Found>,
    /// Of these, the ones that were hashed before, with what came of it.
    pub outdated: HashMap<RelPath, Digest>,
}

pub(super) fn plan(files: Vec<Found>, cache: &HashMap<String, CacheRow>) -> HashPlan {
    let mut plan = HashPlan::default();
    for found in files {
        match cache.get(found.path.as_str()) {
            Some(row) if is_trusted(row, &found.fingerprint) => plan.trusted.push(ScannedFile {
                path: found.path,
                fingerprint: found.fingerprint,
                digest: row.digest,
                cached: true,
            }),
            row => {
                if let Some(row) = row {
                    plan.outdated.insert(found.path.clone(), row.digest);
                }
                plan.to_hash.push(found);
            }
        }
    }
    plan.to_hash.sort_by_key(|found| std::cmp::Reverse(found.fingerprint.size_bytes));
    plan
}

/// A digest holds for a file that looks the same, if the file had been at rest when it was hashed:
/// otherwise it may have changed right afterwards, within the same tick of the file system's clock.
fn is_trusted(row: &CacheRow, now: &Fingerprint) -> bool {
    row.fingerprint == *now
        && changed_ns(now).saturating_add(racy_window_ns(now)) < row.hashed_at_ns
}

/// When the content last changed, as far as the file system tells. On Unix no program can set this.
pub(super) fn changed_ns(fingerprint: &Fingerprint) -> i64 {
    if cfg!(unix) { fingerprint.ctime_ns } else { fingerprint.mtime_ns }
}

pub(super) fn racy_window_ns(fingerprint: &Fingerprint) -> i64 {
    if changed_ns(fingerprint) % 1_000_000_000 == 0 { COARSE_WINDOW_NS } else { FINE_WINDOW_NS }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fingerprint(size_bytes: u64, at_ns: i64) -> Fingerprint {
        Fingerprint { size_bytes, mtime_ns: at_ns, ctime_ns: at_ns, inode: 5, device: 6 }
    }

    fn row(fingerprint: Fingerprint, hashed_at_ns: i64) -> CacheRow {
        CacheRow { fingerprint, hashed_at_ns, digest: Digest::from_bytes([9; 32]) }
    }

    #[test]
    fn a_digest_is_trusted_only_for_a_file_that_was_at_rest() {
        let second = 1_000_000_000;
        let fine = fingerprint(1, 100 * second + 1);
        assert!(is_trusted(&row(fine, fine.ctime_ns + FINE_WINDOW_NS + 1), &fine));
        assert!(!is_trusted(&row(fine, fine.ctime_ns + FINE_WINDOW_NS), &fine));
        assert!(!is_trusted(&row(fine, fine.ctime_ns - 1), &fine), "hashed before it changed");
        let coarse = fingerprint(1, 100 * second);
        assert!(!is_trusted(&row(coarse, coarse.ctime_ns + second), &coarse));
        assert!(is_trusted(&row(coarse, coarse.ctime_ns + 3 * second), &coarse));
        let extreme = fingerprint(1, i64::MAX);
        assert!(!is_trusted(&row(extreme, 0), &extreme));
    }

    #[test]
    fn any_difference_counts() {
        let before = fingerprint(1, 1_000_000_001);
        let old = row(before, i64::MAX);
        assert!(is_trusted(&old, &before));
        for after in [
            Fingerprint { size_bytes: 2, ..before },
            Fingerprint { mtime_ns: 0, ..before },
            Fingerprint { ctime_ns: 0, ..before },
            Fingerprint { inode: 0, ..before },
            Fingerprint { device: 0, ..before },
        ] {
            assert!(!is_trusted(&old, &after), "{after:?}");
        }
    }

    #[test]
    fn what_was_hashed_before_is_told_from_what_is_new() {
        let now = fingerprint(1, 1_000_000_001);
        let before = fingerprint(2, 1_000_000_001);
        let found = |path: &str| Found { path: path.parse().unwrap(), fingerprint: now };
        let cache = HashMap::from([("changed".to_owned(), row(before, i64::MAX))]);
        let plan = plan(vec![found("changed"), found("new")], &cache);
        assert_eq!(plan.to_hash.len(), 2);
        assert_eq!(
            plan.outdated,
            [("changed".parse().unwrap(), Digest::from_bytes([9; 32]))].into()
        );
    }

    proptest! {
        #[test]
        fn each_file_is_planned_once_and_the_largest_first(sizes in prop::collection::vec(0u64..9, 0..20)) {
            let found = |(i, size): (usize, &u64)| Found {
                path: format!("f{i}").parse().unwrap(),
                fingerprint: fingerprint(*size, 1_000_000_001),
            };
            let files: Vec<_> = sizes.iter().enumerate().map(found).collect();
            let cache = files.iter().step_by(2)
                .map(|f| (f.path.as_str().to_owned(), row(f.fingerprint, i64::MAX)))
                .collect();
            let plan = plan(files.clone(), &cache);
            prop_assert_eq!(plan.trusted.len(), files.len().div_ceil(2));
            prop_assert_eq!(plan.to_hash.len(), files.len() / 2);
            prop_assert!(plan.outdated.is_empty());
            prop_assert!(plan.to_hash.is_sorted_by_key(|f| std::cmp::Reverse(f.fingerprint.size_bytes)));
        }
    }
}
