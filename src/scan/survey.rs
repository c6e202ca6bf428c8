//! What is known of a folder before any of its files is read.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{Evidence, Ignored, Skipped, plan::HashPlan};
use crate::{
    disk::Fingerprint,
    domain::{Digest, RelPath},
};

/// What is known of a file that was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: it was never hashed at this place.
    New,
    /// It was hashed, and does not look the same any more, or was too young then to be sure.
    Outdated,
    /// It was hashed, and looks the same.
    Unchanged,
}

/// A folder that was walked and looked up in the hash cache: the first half of a scan.
#[derive(Debug)]
pub struct Survey {
    /// The folder, as an absolute path.
    pub root: PathBuf,
    /// What cannot be in the checkout, sorted by path.
    pub skipped: Vec<Skipped>,
    /// What was ignored, if that was to be noted, sorted by path.
    pub ignored: Vec<Ignored>,
    /// What decides about it besides its files.
    pub evidence: Evidence,
    /// Whether some of it is where other machines can change it without this one knowing.
    pub is_remote: bool,
    pub(super) plan: HashPlan,
}

impl Survey {
    pub(super) fn new(
        root: PathBuf,
        mut skipped: Vec<Skipped>,
        mut ignored: Vec<Ignored>,
        plan: HashPlan,
    ) -> Self {
        skipped.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        // Rules are few, and what they ignore may be much.
        let mut lines: HashMap<(String, Option<PathBuf>), Option<usize>> = HashMap::new();
        for Ignored { rule, .. } in &mut ignored {
            let key = (rule.pattern.clone(), rule.file.clone());
            rule.line = *lines.entry(key).or_insert_with(|| {
                rule.find_line();
                rule.line
            });
        }
        Self { root, skipped, ignored, evidence: Evidence::default(), is_remote: false, plan }
    }

    /// All files with their sizes, in no order.
    pub fn files(&self) -> impl Iterator<Item = (&RelPath, u64, Known)> {
        let HashPlan { trusted, to_hash, outdated, .. } = &self.plan;
        let trusted =
            trusted.iter().map(|file| (&file.path, file.fingerprint.size_bytes, Known::Unchanged));
        let to_hash = to_hash.iter().map(|found| {
            let known =
                if outdated.contains_key(&found.path) { Known::Outdated } else { Known::New };
            (&found.path, found.fingerprint.size_bytes, known)
        });
        trusted.chain(to_hash)
    }

    /// The old digests of the files that are [`Known::Outdated`]: some may turn out to be unchanged.
    pub fn outdated(&self) -> &HashMap<RelPath, Digest> {
        &self.plan.outdated
    }

    /// The files that have to be hashed, the largest first.
    pub fn to_hash(&self) -> impl Iterator<Item = (&RelPath, &Fingerprint)> {
        self.plan.to_hash.iter().map(|found| (&found.path, &found.fingerprint))
    }

    /// Takes those files out that would have to be hashed and are not to be now; they are in no scan that
    /// is made of this. Files come largest first.
    pub fn hold_back(&mut self, mut holds: impl FnMut(&RelPath, &Fingerprint) -> bool) {
        self.plan.to_hash.retain(|found| !holds(&found.path, &found.fingerprint));
    }

    /// Forgets all files but this one, or those below this folder.
    pub fn retain_below(&mut self, path: &str) {
        self.retain(|file| Path::new(file.as_str()).starts_with(path));
    }

    /// Forgets all files but these.
    pub fn retain(&mut self, keep: impl Fn(&RelPath) -> bool) {
        self.plan.trusted.retain(|file| keep(&file.path));
        self.plan.to_hash.retain(|found| keep(&found.path));
    }
}
