//! What is remembered of checkouts: which there are, and what they had in them.
//!
//! Evidence, not truth: a checkout without a record (made by another server, or long ago) is known by
//! its look, and a record without its directory says that somebody removed that by other means.

use std::{
    collections::HashMap,
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

/// A file of its own that a checkout was created with. Once it has another size or time, a job has
/// written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    pub path: String,
    pub size_bytes: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What is kept of a checkout while it is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErasedRecord {
    pub path: String,
    /// Unknown for a checkout that farmhand did not create.
    #[serde(default)]
    pub link_mode: Option<LinkMode>,
}

impl ErasedRecord {
    /// That of a checkout without a record.
    pub fn by_look(path: &CheckoutPath) -> Self {
        Self { path: path.as_str().to_owned(), link_mode: None }
    }
}

impl From<Record> for ErasedRecord {
    fn from(record: Record) -> Self {
        Self { path: record.path, link_mode: Some(record.link_mode) }
    }
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
            Ok(()) => {
                let copies = self.layout.records().join(Layout::copies_name(path));
                if copies.exists() {
                    remove_file(&copies)?;
                }
                Ok(true)
            }
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// Notes which files of a checkout are its own, before the checkout has its name.
    pub(super) fn write_copies(
        &self,
        path: &CheckoutPath,
        copies: &[Copied],
    ) -> Result<(), DiskError> {
        let file = self.layout.records().join(Layout::copies_name(path));
        let text = serde_json::to_vec(copies).map_err(io::Error::from).on("write", &file)?;
        replace_file(&file, &text, self.options.durability == Durability::Full)
    }

    /// Which files of a checkout are its own, by path. Without the note, none is known to be.
    pub(super) fn read_copies(
        &self,
        record: &ErasedRecord,
    ) -> Result<HashMap<String, Copied>, DiskError> {
        let Ok(path) = record.path.parse() else { return Ok(HashMap::new()) };
        let file = self.layout.records().join(Layout::copies_name(&path));
        let copies: Vec<Copied> = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).on("read", &file),
        };
        Ok(copies.into_iter().map(|copied| (copied.path.clone(), copied)).collect())
    }

    /// What is kept of a checkout whose deletion has begun. One that cannot be understood says no more
    /// than its name.
    pub(super) fn erasing_record(&self, path: &CheckoutPath) -> Result<ErasedRecord, DiskError> {
        for with_outputs in [false, true] {
            let file = self.layout.records().join(Layout::erasing_name(path, with_outputs));
            match fs::read(&file) {
                Ok(text) => {
                    let record = serde_json::from_slice(&text).ok();
                    return Ok(record.unwrap_or_else(|| ErasedRecord::by_look(path)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).on("read", &file),
            }
        }
        Ok(ErasedRecord::by_look(path))
    }

    /// All checkouts whose deletion has begun, and whether it includes outputs.
    pub(super) fn records_of_erasing(
        &self,
    ) -> Result<Vec<(CheckoutPath, ErasedRecord, bool)>, DiskError> {
        let dir = self.layout.records();
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).on("list", &dir)? {
            let file = entry.on("list", &dir)?.path();
            let extension = file.extension().and_then(|extension| extension.to_str());
            let with_outputs = match extension {
                Some(Layout::ERASING) => false,
                Some(Layout::ERASING_ALL) => true,
                _ => continue,
            };
            let text = fs::read(&file).on("read", &file)?;
            let record = serde_json::from_slice::<ErasedRecord>(&text).ok();
            match record.and_then(|record| Some((record.path.parse().ok()?, record))) {
                Some((path, record)) => found.push((path, record, with_outputs)),
                None => tracing::warn!("{} is no record of a checkout", file.display()),
            }
        }
        Ok(found)
    }

    /// Removes what was kept of a checkout that is deleted, and makes that durable: a later checkout of
    /// its name must not be taken for it.
    pub(super) fn remove_erasing_record(&self, path: &CheckoutPath) -> Result<(), DiskError> {
        let records = self.open_dir(Layout::RECORDS)?;
        let names = [
            Layout::copies_name(path),
            Layout::erasing_name(path, false),
            Layout::erasing_name(path, true),
        ];
        for name in names {
            match records.remove_file(name) {
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        self.sync_dir(records.path())
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

fn parse(text: &[u8]) -> Option<Record> {
    serde_json::from_slice(text).ok()
}
