//! The whole content of a checkout: which blob stands at which path.

use super::{BlobId, RelPath};

/// One file of a checkout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Where it stands in the checkout.
    pub path: RelPath,
    /// What it holds.
    pub blob: BlobId,
}

/// Why a list of entries cannot become a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// One path, two contents.
    #[error("{0:?} is listed twice with different content")]
    Contradiction(RelPath),
    /// One entry is the directory of another.
    #[error("{file:?} is listed as a file, and as the directory of {inside:?}")]
    FileIsDirectory {
        /// The entry that is both.
        file: RelPath,
        /// An entry below it.
        inside: RelPath,
    },
}

/// Entries sorted by path, each path once, none the directory of another.
///
/// Built in a fresh directory, this rules out that a link made for one entry is followed by another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest(Vec<Entry>);

impl Manifest {
    /// Sorts the entries and checks that they can stand side by side. An entry that is listed
    /// twice with the same content counts once.
    ///
    /// # Errors
    /// If two entries contradict each other.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_unstable();
        entries.dedup();
        for pair in entries.windows(2) {
            if pair[0].path == pair[1].path {
                return Err(ManifestError::Contradiction(pair[0].path.clone()));
            }
        }
        // Sorting does not put `a/b` right behind `a` (`a b` stands between), so every
        // directory is looked up. Neighbours share most of theirs: each is checked once.
        let find = |path: &str| entries.binary_search_by(|entry| entry.path.as_str().cmp(path));
        let mut previous = "";
        for entry in &entries {
            let path = entry.path.as_str();
            let (directory, _) = entry.path.split();
            let directory = directory.unwrap_or_default();
            if directory != previous {
                for (end, _) in path.match_indices('/') {
                    if let Ok(file) = find(&path[..end]) {
                        return Err(ManifestError::FileIsDirectory {
                            file: entries[file].path.clone(),
                            inside: entry.path.clone(),
                        });
                    }
                }
                previous = directory;
            }
        }
        Ok(Self(entries))
    }

    /// The entries, sorted by path.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no file at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum of all files' sizes, in bytes; a blob at two paths counts twice.
    pub fn total_bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.blob.size_bytes).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Digest;

    fn entry(path: &str, content: u8) -> Entry {
        let blob = BlobId { digest: Digest::from_bytes([content; 32]), size_bytes: 1 };
        Entry { path: path.parse().unwrap(), blob }
    }

    #[test]
    fn sorts_and_counts_equal_entries_once() {
        let manifest = Manifest::new(vec![entry("b", 1), entry("a", 2), entry("b", 1)]).unwrap();
        assert_eq!(manifest.entries(), [entry("a", 2), entry("b", 1)]);
    }

    #[test]
    fn refuses_contradictions() {
        assert!(matches!(
            Manifest::new(vec![entry("a", 1), entry("a", 2)]),
            Err(ManifestError::Contradiction(path)) if path.as_str() == "a"
        ));
        assert!(matches!(
            Manifest::new(vec![entry("a/b/c", 1), entry("a b", 2), entry("a", 2)]),
            Err(ManifestError::FileIsDirectory { file, .. }) if file.as_str() == "a"
        ));
    }

    proptest! {
        #[test]
        fn accepted_manifests_can_be_laid_out(paths in prop::collection::vec("[ab](/[ab! ]){0,3}", 0..8)) {
            let entries: Vec<_> = paths.iter().map(|path| entry(path, 1)).collect();
            let clash = paths.iter().any(|a| paths.iter().any(|b| b.starts_with(&format!("{a}/"))));
            prop_assert_eq!(Manifest::new(entries).is_err(), clash);
        }
    }
}
