//! What is remembered of checkouts: which there are, and what they had in them.
//!
//! Evidence, not truth: a checkout without a record (made by another server, or long ago) is known by
//! its look, and a record without its directory says that somebody removed that by other means.

use std::{
    fs, io,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Durability, Store, layout::Layout};
use crate::{
    disk::{DiskError, IoContext, remove_file, replace_file},
    domain::{CheckoutPath, Digest, Entry, Manifest, report::LinkMode},
};

/// One checkout, as it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub path: String,
    /// Seconds since 1970.
    pub created_s: u64,
    pub files: u64,
    pub bytes: u64,
    pub link_mode: LinkMode,
    /// Of all paths and blobs: see [`digest_of`].
    pub manifest: Digest,
}

impl Record {
    pub fn new(path: &CheckoutPath, manifest: &Manifest, link_mode: LinkMode) -> Self {
        Self {
            path: path.as_str().to_owned(),
            created_s: unix_s(SystemTime::now()),
            files: manifest.len() as u64,
            bytes: manifest.total_bytes(),
            link_mode,
            manifest: digest_of(manifest.entries()),
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One digest for all paths and blobs of a checkout, sorted by path.
pub(super) fn digest_of(entries: &[Entry]) -> Digest {
    let mut hasher = Sha256::new();
    for entry in entries {
        hasher.update(entry.path.as_str());
        hasher.update([0]);
        hasher.update(entry.blob.digest.as_bytes());
        hasher.update(entry.blob.size_bytes.to_le_bytes());
    }
    Digest::from_bytes(hasher.finalize().into())
}

impl Store {
    pub(super) fn write_record(
        &self,
        path: &CheckoutPath,
        record: &Record,
    ) -> Result<(), DiskError> {
        let file = self.layout.record(path);
        let text = serde_json::to_vec(record).map_err(io::Error::from).on("write", &file)?;
        replace_file(&file, &text, self.options.durability == Durability::Full)?;
        self.sync_dir(&self.layout.records())
    }

    /// The record of a checkout. One that cannot be understood is as good as none.
    pub(super) fn record(&self, path: &CheckoutPath) -> Result<Option<Record>, DiskError> {
        let file = self.layout.record(path);
        match fs::read(&file) {
            Ok(text) => Ok(parse(&text).filter(|record| record.path == path.as_str())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", &file),
        }
    }

    /// The checkout on record that a path below the directory of checkouts lies in.
    ///
    /// # Errors
    /// If records cannot be read.
    pub fn checkout_above(&self, path: &str) -> Result<Option<CheckoutPath>, DiskError> {
        let mut above = path;
        while let Some((parent, _)) = above.rsplit_once('/') {
            above = parent;
            let Ok(checkout) = above.parse::<CheckoutPath>() else { continue };
            if self.record(&checkout)?.is_some() {
                return Ok(Some(checkout));
            }
        }
        Ok(None)
    }

    /// Whether a checkout of exactly this path is on record.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn is_on_record(&self, path: &CheckoutPath) -> Result<bool, DiskError> {
        Ok(self.record(path)?.is_some())
    }

    /// A checkout on record that lies inside this path, or that this path lies inside.
    ///
    /// # Errors
    /// If records cannot be read.
    pub fn checkout_overlapping(
        &self,
        path: &CheckoutPath,
    ) -> Result<Option<CheckoutPath>, DiskError> {
        let mut others = self.records()?.into_iter().map(|(other, _)| other);
        Ok(others.find(|other| other != path && other.overlaps(path)))
    }

    /// All records that can be understood.
    pub(super) fn records(&self) -> Result<Vec<(CheckoutPath, Record)>, DiskError> {
        let dir = self.layout.records();
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).on("list", &dir)? {
            let file = entry.on("list", &dir)?.path();
            // One that is being written.
            if file.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = match fs::read(&file) {
                Ok(text) => text,
                // Erased meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).on("read", &file),
            };
            let record = parse(&text);
            let path = record.as_ref().and_then(|record| record.path.parse::<CheckoutPath>().ok());
            match path.zip(record) {
                Some(record) => found.push(record),
                None => tracing::warn!("{} is no record of a checkout", file.display()),
            }
        }
        found.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        Ok(found)
    }

    /// Forgets a checkout. Returns whether it was known.
    pub(super) fn remove_record(&self, path: &CheckoutPath) -> Result<bool, DiskError> {
        match remove_file(&self.layout.record(path)) {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Removes records that a killed process was writing.
pub(super) fn remove_leftovers(layout: &Layout) -> Result<(), DiskError> {
    let dir = layout.records();
    for entry in fs::read_dir(&dir).on("list", &dir)? {
        let file = entry.on("list", &dir)?.path();
        if file.extension().is_some_and(|extension| extension == "new") {
            super::remove_leftover(remove_file(&file));
        }
    }
    Ok(())
}

/// Removes the record of a checkout that was being erased when the process was killed, unless there
/// is one of that name. Left alone, it would look as if the disk with the checkout were missing.
pub(super) fn forget_erased(layout: &Layout, path: &Digest) -> Result<(), DiskError> {
    let file = layout.record_of(path);
    let record = match fs::read(&file) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).on("read", &file),
    };
    let path = record.and_then(|record| record.path.parse::<CheckoutPath>().ok());
    let is_gone = |path: &CheckoutPath| {
        let found = fs::symlink_metadata(layout.checkout(path));
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    if path.is_some_and(|path| is_gone(&path)) { remove_file(&file) } else { Ok(()) }
}

fn parse(text: &[u8]) -> Option<Record> {
    serde_json::from_slice(text).ok()
}
