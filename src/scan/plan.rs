//! What must be hashed. Pure.

use std::{cmp::Ordering, collections::HashMap};

use super::{ScannedFile, cache::CacheRow, walk::Found};
use crate::{
    disk::{FileSystem, Fingerprint},
    domain::{Digest, RelPath},
};

/// Within this time of its last change, a file may change again and keep its times: the coarsest
/// clock tick of kernels that note times to the nanosecond is 10 ms (`CONFIG_HZ=100`).
pub(super) const FINE_WINDOW_NS: i64 = 20_000_000;

/// The same for file systems that note times to the second or, as FAT does, to two.
const COARSE_WINDOW_NS: i64 = 2_100_000_000;

/// The same where another machine notes the times, by its own clock: so much may that be slow.
const REMOTE_WINDOW_NS: i64 = 600_000_000_000;

/// How far the evidence of files goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trust {
    remote: bool,
    inodes: bool,
}

impl Trust {
    /// On a file system of this machine, that keeps inode numbers.
    #[cfg(test)]
    pub const FULL: Self = Self { remote: false, inodes: true };
    /// Where nothing is known.
    pub const LEAST: Self = Self { remote: true, inodes: false };

    /// Whether others can change files there without this machine knowing.
    pub fn is_remote(self) -> bool {
        self.remote
    }
}

impl From<&FileSystem> for Trust {
    fn from(found: &FileSystem) -> Self {
        Self { remote: found.is_remote, inodes: found.has_stable_inodes }
    }
}

/// What the cache tells about the files that were found.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// For each file, in their order, its digest if that still holds.
    digests: Vec<Option<Digest>>,
    /// What is in the cache and holds for no file under its own path.
    left: Vec<(Box<str>, CacheRow)>,
    /// Of these, paths where there is no file any more.
    gone: Vec<Box<str>>,
}

impl Known {
    /// Not all files have been looked at: nothing is known of the others.
    pub fn forget_others(&mut self) {
        self.left.clear();
        self.gone.clear();
    }
}

/// Holds files against the cache, both sorted by path.
pub(super) struct Comparison<'a, T> {
    files: &'a [Found],
    trust: T,
    known: Known,
}

impl<'a, T: Fn(&Fingerprint) -> Trust> Comparison<'a, T> {
    pub fn new(files: &'a [Found], trust: T) -> Self {
        Self { files, trust, known: Known::default() }
    }

    /// The next entry of the cache.
    pub fn row(&mut self, path: &str, row: CacheRow) {
        let known = &mut self.known;
        while let Some(found) = self.files.get(known.digests.len()) {
            match found.path.as_str().cmp(path) {
                Ordering::Less => known.digests.push(None),
                Ordering::Greater => break,
                Ordering::Equal => {
                    let now = &found.fingerprint;
                    let holds = is_trusted(&row, now, (self.trust)(now));
                    known.digests.push(holds.then_some(row.digest));
                    if !holds {
                        known.left.push((path.into(), row));
                    }
                    return;
                }
            }
        }
        known.left.push((path.into(), row));
        known.gone.push(path.into());
    }

    pub fn finish(mut self) -> Known {
        self.known.digests.resize(self.files.len(), None);
        self.known
    }
}

/// Files whose digest is known, and files to hash.
#[derive(Debug, Default)]
pub(super) struct HashPlan {
    pub trusted: Vec<ScannedFile>,
    /// Largest first.
    pub to_hash: Vec<Found>,
    /// Of these, the ones that were hashed before at their path, with what came of it.
    pub outdated: HashMap<RelPath, Digest>,
    /// Trusted files that are known by another path so far.
    pub moved: Vec<(RelPath, CacheRow)>,
    /// Paths to forget.
    pub gone: Vec<Box<str>>,
}

/// `seen_at_ns` is a time before the files were looked at.
pub(super) fn plan(
    files: Vec<Found>,
    mut known: Known,
    trust: impl Fn(&Fingerprint) -> Trust,
    seen_at_ns: i64,
) -> HashPlan {
    known.digests.resize(files.len(), None);
    let mut plan = HashPlan { gone: known.gone, ..HashPlan::default() };
    // Where else the content of a file may be known from: only what has left its path is moved.
    let mut moved: HashMap<u64, Vec<&CacheRow>> = HashMap::new();
    let inode_at = |path: &str| {
        let at = files.binary_search_by(|found| found.path.as_str().cmp(path)).ok()?;
        Some(files[at].fingerprint.inode)
    };
    let mut replaced: HashMap<&str, Digest> = HashMap::new();
    for (path, row) in &known.left {
        let inode = inode_at(path);
        if inode.is_some() {
            replaced.insert(path, row.digest);
        }
        if inode != Some(row.fingerprint.inode) {
            moved.entry(row.fingerprint.inode).or_default().push(row);
        }
    }
    for (found, digest) in files.into_iter().zip(known.digests) {
        let Found { path, fingerprint } = found;
        let before = || moved.get(&fingerprint.inode).into_iter().flatten();
        let row = if digest.is_some() {
            None
        } else {
            let trust = trust(&fingerprint);
            before().find_map(|row| after_move(row, &fingerprint, trust, seen_at_ns))
        };
        let Some(digest) = digest.or(row.map(|row| row.digest)) else {
            if let Some(before) = replaced.get(path.as_str()) {
                plan.outdated.insert(path.clone(), *before);
            }
            plan.to_hash.push(Found { path, fingerprint });
            continue;
        };
        if let Some(row) = row {
            plan.moved.push((path.clone(), row));
        }
        plan.trusted.push(ScannedFile { path, fingerprint, digest, cached: true });
    }
    plan.to_hash.sort_by_key(|found| std::cmp::Reverse(found.fingerprint.size_bytes));
    plan
}

/// A digest holds for a file that looks the same, if the file had been at rest when it was hashed:
/// otherwise it may have changed right afterwards, within the same tick of the file system's clock.
pub(super) fn is_trusted(row: &CacheRow, now: &Fingerprint, trust: Trust) -> bool {
    row.fingerprint.ctime_ns == now.ctime_ns
        && is_same_file(&row.fingerprint, now, trust)
        && was_at_rest(row, trust)
}

/// All evidence but the time of the last change of attributes, and the path.
fn is_same_file(before: &Fingerprint, now: &Fingerprint, trust: Trust) -> bool {
    before.size_bytes == now.size_bytes
        && before.mtime_ns == now.mtime_ns
        && before.born_ns == now.born_ns
        && (before.inode == now.inode || !trust.inodes)
        && before.lasting_device() == now.lasting_device()
}

fn was_at_rest(row: &CacheRow, trust: Trust) -> bool {
    let seen = &row.fingerprint;
    let (changed_ns, window_ns) = if trust.remote {
        // Some set one of the two to nonsense.
        (seen.ctime_ns.max(seen.mtime_ns), REMOTE_WINDOW_NS)
    } else {
        (changed_ns(seen), racy_window_ns(seen))
    };
    changed_ns.saturating_add(window_ns) < row.hashed_at_ns
}

/// What is known of a file that was known by another path. A folder's new name leaves no trace in the
/// files in it; a file's own does: the time of the last change of its attributes. Its content was not
/// written to meanwhile, or the time of that, too, would be another one; it could only have been set
/// back on purpose. That it is the same file and not one that got the same number is known by the
/// time it was made.
fn after_move(
    row: &CacheRow,
    now: &Fingerprint,
    trust: Trust,
    seen_at_ns: i64,
) -> Option<CacheRow> {
    if !trust.inodes || now.inode == 0 || !is_same_file(&row.fingerprint, now, trust) {
        return None;
    }
    if row.fingerprint.ctime_ns == now.ctime_ns {
        return was_at_rest(row, trust).then_some(CacheRow { fingerprint: *now, ..*row });
    }
    let is_known_file =
        now.born_ns != 0 && !trust.remote && now.ctime_ns > row.fingerprint.ctime_ns;
    (is_known_file && was_at_rest(row, trust)).then_some(CacheRow {
        fingerprint: *now,
        hashed_at_ns: seen_at_ns,
        digest: row.digest,
    })
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

    const SECOND: i64 = 1_000_000_000;
    const REMOTE: Trust = Trust { remote: true, inodes: true };

    fn fingerprint(size_bytes: u64, at_ns: i64) -> Fingerprint {
        let device = 0x801; // a disk
        Fingerprint { size_bytes, mtime_ns: at_ns, ctime_ns: at_ns, inode: 5, device, born_ns: 7 }
    }

    fn row(fingerprint: Fingerprint, hashed_at_ns: i64) -> CacheRow {
        CacheRow { fingerprint, hashed_at_ns, digest: Digest::from_bytes([9; 32]) }
    }

    fn found(path: &str, fingerprint: Fingerprint) -> Found {
        Found { path: path.parse().unwrap(), fingerprint }
    }

    fn compare(files: &[Found], rows: &[(&str, CacheRow)], trust: Trust) -> Known {
        let mut comparison = Comparison::new(files, |_: &Fingerprint| trust);
        rows.iter().for_each(|(path, row)| comparison.row(path, *row));
        comparison.finish()
    }

    fn plan_all(files: &[Found], rows: &[(&str, CacheRow)], trust: Trust) -> HashPlan {
        plan(files.to_vec(), compare(files, rows, trust), |_| trust, SEEN)
    }

    const SEEN: i64 = 1_000_000 * SECOND;

    #[test]
    fn a_digest_is_trusted_only_for_a_file_that_was_at_rest() {
        let trusted = |row: &CacheRow, now| is_trusted(row, now, Trust::FULL);
        let fine = fingerprint(1, 100 * SECOND + 1);
        assert!(trusted(&row(fine, fine.ctime_ns + FINE_WINDOW_NS + 1), &fine));
        assert!(!trusted(&row(fine, fine.ctime_ns + FINE_WINDOW_NS), &fine));
        assert!(!trusted(&row(fine, fine.ctime_ns - 1), &fine), "hashed before it changed");
        let coarse = fingerprint(1, 100 * SECOND);
        assert!(!trusted(&row(coarse, coarse.ctime_ns + SECOND), &coarse));
        assert!(trusted(&row(coarse, coarse.ctime_ns + 3 * SECOND), &coarse));
        let extreme = fingerprint(1, i64::MAX);
        assert!(!trusted(&row(extreme, 0), &extreme));
    }

    #[test]
    fn other_machines_clocks_may_be_slow() {
        let file = fingerprint(1, 100 * SECOND + 1);
        for trust in [REMOTE, Trust::LEAST] {
            assert!(!is_trusted(&row(file, file.ctime_ns + 599 * SECOND), &file, trust));
            assert!(is_trusted(&row(file, file.ctime_ns + 601 * SECOND), &file, trust));
            let odd = Fingerprint { ctime_ns: 0, ..file };
            assert!(!is_trusted(&row(odd, file.mtime_ns + SECOND), &odd, trust));
        }
    }

    #[test]
    fn any_difference_counts() {
        let before = fingerprint(1, 1_000_000_001);
        let old = row(before, i64::MAX);
        assert!(is_trusted(&old, &before, Trust::FULL));
        for after in [
            Fingerprint { size_bytes: 2, ..before },
            Fingerprint { mtime_ns: 0, ..before },
            Fingerprint { ctime_ns: 0, ..before },
            Fingerprint { inode: 0, ..before },
            #[cfg(target_os = "linux")]
            Fingerprint { device: 0x802, ..before },
            Fingerprint { born_ns: 0, ..before },
        ] {
            assert!(!is_trusted(&old, &after, Trust::FULL), "{after:?}");
            let same_inode = after.inode == before.inode;
            assert_eq!(is_trusted(&old, &after, Trust::LEAST), !same_inode, "{after:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_network_disk_may_be_mounted_again() {
        let before = Fingerprint { device: 0x2a, ..fingerprint(1, 1_000_000_001) };
        let after = Fingerprint { device: 0x2b, ..before };
        assert!(is_trusted(&row(before, i64::MAX), &after, REMOTE));
    }

    #[test]
    fn what_was_hashed_before_is_told_from_what_is_new() {
        let print = |inode, size| Fingerprint { inode, ..fingerprint(size, 1_000_000_001) };
        let rows = [
            ("changed", row(print(1, 1), i64::MAX)),
            ("gone", row(print(2, 1), i64::MAX)),
            ("same", row(print(3, 1), i64::MAX)),
        ];
        let files =
            [found("changed", print(1, 2)), found("new", print(4, 1)), found("same", print(3, 1))];
        let plan = plan_all(&files, &rows, Trust::FULL);
        assert_eq!((plan.to_hash.len(), plan.trusted.len()), (2, 1));
        let digest = Digest::from_bytes([9; 32]);
        assert_eq!(plan.outdated, [("changed".parse().unwrap(), digest)].into());
    }

    #[test]
    fn what_is_moved_with_its_folder_is_known() {
        let file = fingerprint(1, 100 * SECOND + 1);
        let rested = row(file, file.ctime_ns + SECOND);
        let plan = plan_all(&[found("new/a", file)], &[("old/a", rested)], Trust::FULL);
        assert_eq!((plan.trusted.len(), plan.to_hash.len()), (1, 0));
        assert_eq!(plan.moved, [("new/a".parse().unwrap(), rested)]);
        assert_eq!(plan.gone, ["old/a".into()]);
        // Hashed within the tick of its last change: no more to be trusted here than there.
        let plan = plan_all(&[found("new/a", file)], &[("old/a", row(file, 0))], Trust::FULL);
        assert_eq!((plan.trusted.len(), plan.to_hash.len()), (0, 1));
    }

    #[test]
    fn what_is_renamed_itself_is_known_if_it_is_certain_which_file_it_is() {
        let before = fingerprint(1, 100 * SECOND + 1);
        let after = Fingerprint { ctime_ns: 200 * SECOND + 1, ..before };
        let rested = row(before, before.ctime_ns + SECOND);
        let is_known = |now: Fingerprint, rows: &[(&str, CacheRow)], trust| {
            let plan = plan_all(&[found("new", now)], rows, trust);
            assert_eq!(plan.trusted.len() + plan.to_hash.len(), 1);
            assert_eq!(plan.moved.len(), plan.trusted.len());
            for (path, row) in &plan.moved {
                assert_eq!(path.as_str(), "new");
                // It is trusted next time.
                assert!(is_trusted(row, &now, trust));
            }
            plan.trusted.len() == 1
        };
        assert!(is_known(after, &[("old", rested)], Trust::FULL));
        for changed in [
            Fingerprint { size_bytes: 2, ..after },
            Fingerprint { mtime_ns: 150 * SECOND + 1, ..after },
            Fingerprint { inode: 6, ..after },
            #[cfg(target_os = "linux")]
            Fingerprint { device: 0x802, ..after },
            Fingerprint { born_ns: 8, ..after },
            Fingerprint { ctime_ns: 50 * SECOND + 1, ..after },
        ] {
            assert!(!is_known(changed, &[("old", rested)], Trust::FULL), "{changed:?}");
        }
        assert!(!is_known(after, &[("old", row(before, before.ctime_ns))], Trust::FULL));
        // Without a time of birth, or inode numbers, or a clock of its own.
        let unborn = |fingerprint| Fingerprint { born_ns: 0, ..fingerprint };
        let old = row(unborn(before), rested.hashed_at_ns);
        assert!(!is_known(unborn(after), &[("old", old)], Trust::FULL));
        let long_rested = row(before, SEEN);
        assert!(!is_known(after, &[("old", long_rested)], REMOTE));
        assert!(!is_known(after, &[("old", long_rested)], Trust::LEAST));
        // Only its attributes have changed, under the same name.
        assert!(!is_known(after, &[("new", rested)], Trust::FULL));
    }

    #[test]
    fn versions_that_step_aside_are_known() {
        // scene.blend becomes scene.blend1, and a new scene.blend is written.
        let old = fingerprint(10, 100 * SECOND + 1);
        let aside = Fingerprint { ctime_ns: 200 * SECOND + 1, ..old };
        let new = Fingerprint { inode: 6, born_ns: 9, ..fingerprint(11, 200 * SECOND + 1) };
        let older = Fingerprint { inode: 4, ..fingerprint(9, 50 * SECOND + 1) };
        let files = [found("scene.blend", new), found("scene.blend1", aside)];
        let rows = [
            ("scene.blend", row(old, old.ctime_ns + SECOND)),
            ("scene.blend1", row(older, older.ctime_ns + SECOND)),
        ];
        let plan = plan_all(&files, &rows, Trust::FULL);
        let paths = |found: &Found| found.path.as_str().to_owned();
        assert_eq!(plan.to_hash.iter().map(paths).collect::<Vec<_>>(), ["scene.blend"]);
        assert_eq!((plan.moved.len(), plan.gone.len()), (1, 0));
    }

    #[test]
    fn a_second_name_is_hashed_as_its_first() {
        // A hard link changes the attributes of the file, and both names are there.
        let old = fingerprint(10, 100 * SECOND + 1);
        let now = Fingerprint { ctime_ns: 200 * SECOND + 1, ..old };
        let files = [found("a", now), found("b", now)];
        let plan = plan_all(&files, &[("a", row(old, old.ctime_ns + SECOND))], Trust::FULL);
        assert_eq!(plan.to_hash.len(), 2);
    }

    proptest! {
        #[test]
        fn each_file_is_planned_once_and_the_largest_first(
            sizes in prop::collection::vec(0u64..9, 0..20),
            in_cache in prop::collection::btree_set(0usize..25, 0..20),
        ) {
            let name = |i: usize| format!("f{i:02}");
            let print = |i: usize, size: u64| Fingerprint {
                inode: 100 + i as u64,
                ..fingerprint(size, 1_000_000_001)
            };
            let files: Vec<_> =
                sizes.iter().enumerate().map(|(i, size)| found(&name(i), print(i, *size))).collect();
            let rows: Vec<_> = in_cache.iter().map(|i| {
                let size = sizes.get(*i).copied().unwrap_or(1);
                (name(*i), row(print(*i, size), i64::MAX))
            }).collect();
            let rows: Vec<_> = rows.iter().map(|(name, row)| (name.as_str(), *row)).collect();
            let plan = plan_all(&files, &rows, Trust::FULL);
            let both = in_cache.iter().filter(|i| **i < files.len()).count();
            prop_assert_eq!(plan.trusted.len(), both);
            prop_assert_eq!(plan.to_hash.len(), files.len() - both);
            prop_assert_eq!(plan.gone.len(), in_cache.len() - both);
            prop_assert!(plan.to_hash.is_sorted_by_key(|f| std::cmp::Reverse(f.fingerprint.size_bytes)));
        }
    }
}
