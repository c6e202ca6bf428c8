//! What operations on a store have found and done: the answers of `/farmhand/v1/…`, and of
//! `farmhand store …` with `--json`.
//!
//! Times are seconds since 1970, sizes bytes.

use serde::{Deserialize, Serialize};

use super::Digest;

/// How the files of a checkout are made from blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkMode {
    /// Relative symbolic links.
    #[default]
    Symlink,
    /// Other names of the blobs' files.
    Hardlink,
    /// Files that share the blobs' content until they are written to.
    Reflink,
    /// Files of their own.
    Copy,
}

/// So many blobs, of so many bytes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Amount {
    /// How many.
    pub blobs: u64,
    /// The sum of their sizes.
    pub bytes: u64,
}

impl Amount {
    /// One more blob.
    pub fn add(&mut self, size_bytes: u64) {
        self.blobs += 1;
        self.bytes = self.bytes.saturating_add(size_bytes);
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.blobs += other.blobs;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What a garbage collection has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GcReport {
    /// Nothing was removed: this is what would be.
    pub dry_run: bool,
    /// How long a blob must not have been needed, in seconds.
    pub max_age_s: u64,
    /// All blobs.
    pub stored: Amount,
    /// Kept because they are needed again, or new.
    pub young: Amount,
    /// Kept because checkouts hold them.
    pub held: Amount,
    /// Kept because they are pinned.
    pub pinned: Amount,
    /// Kept because somebody is sending them, or began to need them meanwhile.
    pub in_use: Amount,
    /// Removed, or to be removed.
    pub removed: Amount,
    /// Quarantined files removed, whose blobs are stored again.
    pub quarantined_removed: Amount,
    /// What could not be removed, and why: the first of them.
    pub errors: Vec<String>,
    /// How many could not be removed.
    pub failed: u64,
}

/// What a scrub has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScrubReport {
    /// It has come to the end of the store; otherwise it was stopped, and goes on there.
    pub complete: bool,
    /// Blobs read.
    pub read: Amount,
    /// Blobs that were not what their names say, and are in quarantine.
    pub quarantined: Vec<Quarantined>,
    /// Blobs that could not be read. They are left alone.
    pub unreadable: Vec<String>,
    /// Blobs that read wrong once and right the second time: the disk's cable, or the memory.
    pub flickering: Vec<String>,
    /// What stands in the store and is no blob. It is left alone.
    pub strays: Vec<String>,
}

impl ScrubReport {
    /// Whether all that was read is as it should be.
    pub fn is_clean(&self) -> bool {
        self.quarantined.is_empty() && self.unreadable.is_empty() && self.flickering.is_empty()
    }
}

/// A blob that was not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quarantined {
    /// The blob, as `digest/size`.
    pub blob: String,
    /// What it was instead.
    pub found: String,
    /// Where its content is now, in the storage directory.
    pub moved_to: String,
}

/// A checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckoutInfo {
    /// Its path below the directory of checkouts.
    pub path: String,
    /// When it was created; not known of those that farmhand has not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_s: Option<u64>,
    /// How many files it has.
    pub files: u64,
    /// The sum of their sizes; a blob at two paths counts twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_mode: Option<LinkMode>,
    /// Its directory is gone: somebody has removed it by other means.
    pub gone: bool,
}

/// The effect of deleting a checkout, or of a dry run of that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Erased {
    /// The checkout.
    pub path: String,
    /// Nothing was removed: the counts are of a dry run.
    #[serde(default)]
    pub dry_run: bool,
    /// How many files and links it had that farmhand created.
    pub files: u64,
    /// How many directories, with its own and those above it that have become empty.
    pub directories: u64,
    /// Files in it that farmhand did not create.
    #[serde(default)]
    pub outputs: Outputs,
    /// The outputs were removed, too; otherwise they are where they were.
    #[serde(default)]
    pub outputs_removed: bool,
}

impl Erased {
    /// Logs the outputs of a deletion: where they are, or that they are gone.
    pub fn log_outputs(&self) {
        if self.outputs.files == 0 {
            return;
        }
        let (checkout, files, bytes) = (&self.path, self.outputs.files, self.outputs.bytes);
        let first = self.outputs.paths.first();
        if self.outputs_removed {
            tracing::info!(
                checkout,
                files,
                bytes,
                first,
                "outputs were removed with their checkout"
            );
        } else {
            tracing::warn!(
                checkout,
                files,
                bytes,
                first,
                "files that farmhand did not create stay where the checkout was"
            );
        }
    }
}

/// Files below a checkout that farmhand did not create: frames that a job has rendered, mostly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outputs {
    /// How many.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// How many of them stay in any case: mounts, and entries that cannot be removed.
    #[serde(default)]
    pub left: u64,
    /// Their paths below the checkout: the first of them.
    pub paths: Vec<String>,
}

impl Outputs {
    /// One more, listed by its path if fewer than `most` are.
    pub fn add(&mut self, path: &str, size_bytes: u64, most: usize) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size_bytes);
        if self.paths.len() < most {
            self.paths.push(path.to_owned());
        }
    }
}

/// What fills a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// All blobs.
    pub stored: Amount,
    /// Those that checkouts hold, each once.
    pub held: Amount,
    /// Those that no checkout holds.
    pub not_held: Amount,
    /// What is in quarantine.
    pub quarantined: Amount,
    /// What checkouts hold in files of their own.
    pub copies: Amount,
    /// By the first part of the checkouts' paths.
    pub folders: Vec<UsageOf>,
    /// By checkout.
    pub checkouts: Vec<UsageOf>,
}

/// What a checkout, or a folder of checkouts, takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageOf {
    /// Its path.
    pub path: String,
    /// How many files it has.
    pub files: u64,
    /// The blobs it holds, each once, and its own copies.
    pub bytes: u64,
    /// Of these, what nothing else holds.
    pub own_bytes: u64,
}

/// Why a blob is kept, or when it may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Why {
    /// Its digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// What is stored under it: nearly always one, or none.
    pub blobs: Vec<WhyBlob>,
    /// It is pinned.
    pub pinned: bool,
    /// What is in quarantine under this digest.
    pub quarantined: Vec<String>,
}

/// One blob of a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhyBlob {
    /// Its size.
    pub size_bytes: u64,
    /// When it was last needed, within an hour.
    pub needed_s: u64,
    /// Somebody is sending it.
    pub in_flight: bool,
    /// Other names of its file, if there are any: checkouts of hard links, mostly.
    pub other_names: u64,
    /// Where checkouts hold it: the first of them.
    pub held_by: Vec<String>,
    /// In how many places checkouts hold it.
    pub holders: u64,
    /// When nothing but its age keeps it: from when on garbage collection may remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_go_s: Option<u64>,
}

/// What is wrong in checkouts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyReport {
    /// Everything was looked at; otherwise it was stopped on the way.
    pub complete: bool,
    /// How many checkouts were looked at.
    pub checkouts: u64,
    /// How many files in them.
    pub files: u64,
    /// What is wrong: the first of it.
    pub problems: Vec<CheckoutProblem>,
    /// How much is wrong.
    pub wrong: u64,
}

/// Something wrong in a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckoutProblem {
    /// The checkout.
    pub checkout: String,
    /// Where in it; empty: the whole.
    pub path: String,
    /// What it is.
    pub problem: String,
}

/// How far an operation is: a line of its answer while it goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Done {
    /// Blobs, or files, done.
    pub blobs: u64,
    /// Bytes done.
    pub bytes: u64,
}
