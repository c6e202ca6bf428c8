//! Which blob stands at which path of a checkout, read from the checkout itself.
//!
//! All of it or nothing: whoever fetches a checkout by its manifest must not get less than it has. So
//! links to directories are not followed here, and nothing is left out.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{
    Store,
    checkout::holds_files,
    gc::names_of,
    layout::{JOBS, Layout},
    materialize,
    walk::{Followed, Held, Item, follow},
};
use crate::{
    disk::{DiskError, Fingerprint, IoContext},
    domain::{BlobId, CheckoutPath, Digest, Entry, Manifest, RelPath},
};

/// How often a checkout is read that changes meanwhile.
const TRIES: usize = 3;

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none of this name.
    #[error("there is no checkout {0:?}")]
    Unknown(CheckoutPath),
    /// Something in it is not known to be a blob.
    #[error("what the checkout {checkout:?} holds is not known: {path:?} is {what}")]
    NoBlob {
        /// The checkout.
        checkout: CheckoutPath,
        /// Where in it.
        path: String,
        /// What stands there.
        what: String,
    },
    /// It is never the same for long enough.
    #[error("the checkout {0:?} changes while it is read")]
    Restless(CheckoutPath),
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What was found in a checkout.
#[derive(Default)]
struct Found {
    entries: Vec<Entry>,
    /// Files that may be other names of blobs.
    files: Vec<(RelPath, fs::Metadata)>,
}

impl Store {
    /// All files of a checkout, whether their blobs are still stored or not.
    ///
    /// # Errors
    /// If there is no such checkout, or something in it is not known to be a blob: a link to something
    /// else, a file of its own.
    pub fn manifest(&self, checkout: &CheckoutPath) -> Result<Manifest, ManifestError> {
        let dir = self.layout.checkout(checkout);
        for _ in 0..TRIES {
            match self.is_checkout(checkout) {
                Ok(true) => {}
                Ok(false) => return Err(ManifestError::Unknown(checkout.clone())),
                // It went while it was looked at; another one may be there already.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            }
            let read = (|| {
                let before = identity(&dir)?;
                let mut found = Found::default();
                self.read_dir(checkout, &dir, "", &mut found)?;
                self.name_files(checkout, &mut found)?;
                let is_same = identity(&dir)? == before;
                Ok(is_same.then_some(found.entries))
            })();
            match read {
                Ok(Some(entries)) => {
                    let manifest = Manifest::new(entries);
                    return Ok(manifest.expect("BUG: what stands in a directory can stand there"));
                }
                // Another one has its name now.
                Ok(None) => {}
                // Moved, erased, or a file in it was: half of it must not look like the whole.
                Err(ManifestError::Disk(error))
                    if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(ManifestError::Restless(checkout.clone()))
    }

    /// Whether a checkout is there and goes by this name, on record or by its look: what
    /// [`Store::checkouts`] lists, but for those whose directory is gone.
    fn is_checkout(&self, path: &CheckoutPath) -> Result<bool, DiskError> {
        if Layout::is_reserved(path) {
            return Ok(false);
        }
        let text = path.as_str();
        for (end, _) in text.match_indices('/').chain([(text.len(), "")]) {
            let part = text[..end].parse().expect("BUG: a part of a checkout's path is one");
            let dir = self.layout.checkout(&part);
            match fs::symlink_metadata(&dir) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Ok(false),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::NotADirectory
                            | io::ErrorKind::InvalidFilename
                    ) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error).on("look at", &dir),
            }
            if self.erasing().contains_key(&part) {
                return Ok(false);
            }
            let holds_files = || {
                let below = format!("{JOBS}/{part}");
                self.open_dir(&below).and_then(|dir| holds_files(&dir))
            };
            if self.record(&part)?.is_some() || holds_files()? {
                // A part of it would be a folder in another checkout.
                return Ok(end == text.len());
            }
        }
        Ok(false)
    }

    fn read_dir(
        &self,
        checkout: &CheckoutPath,
        dir: &Path,
        inside: &str,
        found: &mut Found,
    ) -> Result<(), ManifestError> {
        for entry in fs::read_dir(dir).on("list", dir)? {
            let entry = entry.on("list", dir)?;
            let (path, name) = (entry.path(), entry.file_name());
            let shown = name.to_string_lossy();
            let shown = if inside.is_empty() { shown.into() } else { format!("{inside}/{shown}") };
            let no_blob = |what: &str| ManifestError::NoBlob {
                checkout: checkout.clone(),
                path: shown.clone(),
                what: what.to_owned(),
            };
            let kind = entry.file_type().on("look at", &path)?;
            if name.to_str().is_none() {
                return Err(no_blob("a name that is not UTF-8"));
            }
            // This is also the end of a tree that is too deep.
            let Ok(place) = shown.parse::<RelPath>() else {
                return Err(no_blob("a name that nothing in a checkout can have"));
            };
            if kind.is_dir() {
                self.read_dir(checkout, &path, &shown, found)?;
            } else if kind.is_symlink() {
                let blob = match follow(&path)? {
                    Followed::Held(Held::Link(blob)) => blob,
                    Followed::Held(_) => {
                        return Err(no_blob("a link to something that is no blob"));
                    }
                    Followed::Dir => return Err(no_blob("a link to a directory")),
                };
                found.entries.push(Entry { path: place, blob });
            } else if kind.is_file() {
                found.files.push((place, entry.metadata().on("look at", &path)?));
            } else {
                return Err(no_blob("no file"));
            }
        }
        Ok(())
    }

    /// Finds out of which blobs files are other names.
    fn name_files(&self, checkout: &CheckoutPath, found: &mut Found) -> Result<(), ManifestError> {
        if found.files.is_empty() {
            return Ok(());
        }
        let is_other_name = |file: &fs::Metadata| cfg!(unix) && names_of(file) > 1;
        let files = found.files.iter();
        let sizes: HashSet<u64> =
            files.filter(|(_, file)| is_other_name(file)).map(|(_, file)| file.len()).collect();
        let blobs = self.blobs_by_inode(&sizes)?;
        let record = self.record(checkout)?;
        let are_own = record.is_some_and(|record| materialize::has_content(record.link_mode));
        for (path, file) in found.files.drain(..) {
            let print = Fingerprint::of(&file);
            let blob = match blobs.get(&(print.device, print.inode)) {
                Some(blob) if is_other_name(&file) => *blob,
                // It may stand at more places than a file can have names, and is copied then; without
                // content, it is known all the same.
                _ if file.len() == 0 => empty(),
                _ => {
                    let mut what = "a file of its own, no link to a blob".to_owned();
                    if are_own {
                        what.push_str(" (all of it was made so, and jobs may have written to it)");
                    }
                    let path = path.as_str().to_owned();
                    return Err(ManifestError::NoBlob { checkout: checkout.clone(), path, what });
                }
            };
            found.entries.push(Entry { path, blob });
        }
        Ok(())
    }

    /// The blobs of these sizes whose files have other names, by what makes a file the same file.
    pub(super) fn blobs_by_inode(
        &self,
        sizes: &HashSet<u64>,
    ) -> Result<HashMap<(u64, u64), BlobId>, DiskError> {
        let mut blobs = HashMap::new();
        if sizes.is_empty() {
            return Ok(blobs);
        }
        for prefix in 0..=u8::MAX {
            let mut ids = Vec::new();
            self.blobs_with_prefix(prefix, |item| match item {
                Item::Blob(id) if sizes.contains(&id.size_bytes) => ids.push(id),
                _ => {}
            })?;
            for id in ids {
                let found = self.look(&id)?.filter(|found| found.is_file() && names_of(found) > 1);
                // One that is too long or too short is not what its name says.
                if let Some(found) = found.filter(|found| found.len() == id.size_bytes) {
                    let print = Fingerprint::of(&found);
                    blobs.insert((print.device, print.inode), id);
                }
            }
        }
        Ok(blobs)
    }
}

/// What tells a checkout from another one that gets its name later, and perhaps its inode number.
fn identity(dir: &Path) -> Result<(u64, u64, i64, i64), DiskError> {
    let print = Fingerprint::of(&fs::symlink_metadata(dir).on("look at", dir)?);
    Ok((print.device, print.inode, print.born_ns, print.mtime_ns))
}

/// The blob without content.
fn empty() -> BlobId {
    BlobId { digest: Digest::from_bytes(Sha256::digest(b"").into()), size_bytes: 0 }
}
