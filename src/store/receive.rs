//! An upload becomes a stored blob: received beside the store, verified, synced, renamed in.

use std::{
    collections::HashSet,
    fs, io,
    sync::{
        MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Durability, Store, Ticket, hasher::Hasher, layout::Layout};
use crate::{
    disk::{DiskError, EntryKind, IoContext, OpenDir, TempFile, remove_file},
    domain::{BlobId, Digest},
};

/// Why a body did not become a blob. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// More or fewer bytes than the name says.
    #[error("the content has {} bytes, not {expected_bytes}", if *more { "more".into() } else { received_bytes.to_string() })]
    Size {
        /// The size in the blob's name.
        expected_bytes: u64,
        /// How many bytes came before reading stopped.
        received_bytes: u64,
        /// Whether there were more.
        more: bool,
    },
    /// Other content than the name says.
    #[error("the content has the digest {actual}, not {expected}")]
    Digest {
        /// The digest in the blob's name.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The sender stopped.
    #[error("the body broke off after {received_bytes} bytes")]
    Body {
        /// How many bytes came.
        received_bytes: u64,
        /// What the connection said.
        source: io::Error,
    },
    /// The store's file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A blob that was received and stored.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// How long it took to make content and name durable; nothing where nothing is synced.
    pub synced: Duration,
}

/// A blob that is being received. Dropped, nothing of it is kept.
#[derive(Debug)]
pub struct Receiving {
    /// Removed before anybody else may receive the blob.
    temp: TempFile,
    ticket: Ticket,
    hasher: Hasher,
    received_bytes: u64,
}

impl Receiving {
    /// Takes the next piece of the content.
    ///
    /// # Errors
    /// If there is more than the blob's name says, or the file system refuses. Then it has ended: of this piece, some may
    /// have been written.
    pub fn write(mut self, piece: &Bytes) -> Result<Self, ReceiveError> {
        let count = piece.len() as u64;
        self.received_bytes += count;
        let (expected_bytes, received_bytes) = (self.ticket.id.size_bytes, self.received_bytes);
        if received_bytes > expected_bytes {
            return Err(ReceiveError::Size { expected_bytes, received_bytes, more: true });
        }
        self.hasher.update(piece);
        self.temp.write(piece)?;
        self.ticket.wrote(count);
        Ok(self)
    }

    /// Stores the blob, if what came is what its name says. When this returns `Ok`, it is on the disk, and would
    /// be after a power cut.
    ///
    /// # Errors
    /// If it is something else, or the file system refuses. The store is as before.
    pub fn finish(self) -> Result<Received, ReceiveError> {
        let Self { ticket, temp, hasher, received_bytes } = self;
        let BlobId { digest: expected, size_bytes: expected_bytes } = ticket.id;
        if received_bytes < expected_bytes {
            return Err(ReceiveError::Size { expected_bytes, received_bytes, more: false });
        }
        let actual = hasher.finish();
        if actual != expected {
            return Err(ReceiveError::Digest { expected, actual });
        }
        Ok(ticket.store(temp)?)
    }
}

impl Ticket {
    /// Begins to receive the blob piece by piece.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn start(self) -> Result<Receiving, ReceiveError> {
        let temp = self.store.temp_file()?;
        let hasher = Hasher::new(self.id.size_bytes, &self.store.hashing);
        Ok(Receiving { ticket: self, temp, hasher, received_bytes: 0 })
    }

    /// Reads the body to its end, and stores it if it is what the blob's name says. When this
    /// returns `Ok`, the blob is on the disk, and would be after a power cut.
    ///
    /// # Errors
    /// If the body is something else, breaks off, or the file system refuses. The store is as before.
    pub fn receive(
        self,
        body: impl IntoIterator<Item = io::Result<Bytes>>,
    ) -> Result<Received, ReceiveError> {
        let mut receiving = self.start()?;
        for piece in body {
            let received_bytes = receiving.received_bytes;
            let piece = piece.map_err(|source| ReceiveError::Body { received_bytes, source })?;
            receiving = receiving.write(&piece)?;
        }
        receiving.finish()
    }

    /// Writes the whole content, if it is what the blob's name says.
    pub(super) fn write(mut self, content: &[u8]) -> Result<(Self, TempFile), ReceiveError> {
        let (expected_bytes, received_bytes) = (self.id.size_bytes, content.len() as u64);
        if received_bytes != expected_bytes {
            let more = received_bytes > expected_bytes;
            return Err(ReceiveError::Size { expected_bytes, received_bytes, more });
        }
        let actual = Digest::from_bytes(Sha256::digest(content).into());
        if actual != self.id.digest {
            return Err(ReceiveError::Digest { expected: self.id.digest, actual });
        }
        let mut temp = self.store.temp_file()?;
        temp.write(content)?;
        self.wrote(received_bytes);
        Ok((self, temp))
    }

    /// Makes content that has been verified durable, and gives it its name. When this returns, the blob is on
    /// the disk, and would be after a power cut.
    pub(super) fn store(mut self, temp: TempFile) -> Result<Received, DiskError> {
        let start = Instant::now();
        if self.store.options.durability == Durability::Full {
            temp.sync()?;
        }
        let synced = start.elapsed();
        let dirs = self.publish(|dir, name| temp.publish_in(dir, name))?;
        let start = Instant::now();
        self.sync_name(&dirs)?;
        Ok(Received { synced: synced + start.elapsed() })
    }

    /// Gives verified content, which has been made durable, its name with `publish`. It does not count as
    /// stored before the name is durable, too: [`Ticket::sync_name`], or [`Ticket::name_is_synced`].
    ///
    /// # Errors
    /// If it cannot get its name.
    pub(super) fn publish(
        &self,
        publish: impl FnOnce(&OpenDir, &str) -> Result<(), DiskError>,
    ) -> Result<BlobDirs, DiskError> {
        let store = &self.store;
        let name = Layout::blob_name(&self.id);
        store.unsynced().insert(self.id);
        let published = {
            let _stays = store.removal.read().expect("BUG: no one panics with this lock");
            self.make_way(&name)
                .and_then(|(dirs, is_new)| publish(&dirs.own, &name).map(|()| (dirs, is_new)))
        };
        match published {
            Ok((dirs, is_new)) => {
                if is_new {
                    store.counts.stored(&self.id);
                }
                Ok(dirs)
            }
            Err(error) => {
                store.unsynced().remove(&self.id);
                // Windows does not replace a read-only file. If it is the same blob, sent beside us and
                // stored first, then that is as good.
                if store.is_there(&self.id)?.is_none() {
                    return Err(error);
                }
                let (prefix, own) = Layout::blob_dirs(&self.id);
                let prefix = store.open_dir(&prefix)?;
                let own = prefix.open_below(&own).on("open", &prefix.path().join(&own))?;
                Ok(BlobDirs { prefix, own })
            }
        }
    }

    /// Makes the name durable.
    ///
    /// # Errors
    /// If it cannot be: then the blob does not count as stored.
    pub(super) fn sync_name(&mut self, dirs: &BlobDirs) -> Result<(), DiskError> {
        if self.store.options.durability == Durability::Full {
            dirs.own.sync()?;
            // Also when the directory was there: whoever made it may not have come this far.
            dirs.prefix.sync()?;
        }
        self.name_is_synced();
        Ok(())
    }

    /// Content and name are durable: the blob is stored.
    pub(super) fn name_is_synced(&mut self) {
        self.store.unsynced().remove(&self.id);
        self.stored = true;
        self.store.index_soon(self.id);
    }
}

impl Ticket {
    /// Makes and opens the directory of a blob. What stands in its way and is no file cannot be replaced by
    /// one: it goes to quarantine, and so does a link in the place of the directory. Whether there is no such
    /// file yet.
    fn make_way(&self, name: &str) -> Result<(BlobDirs, bool), DiskError> {
        let (prefix, own_name) = Layout::blob_dirs(&self.id);
        let prefix = self.store.open_dir(&prefix)?;
        let path = prefix.path().join(&own_name);
        let is_new = create_if_missing(&prefix, &own_name)?;
        let own = match prefix.open_below(&own_name) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                self.store.quarantine(&self.id, &prefix, &own_name)?;
                create_if_missing(&prefix, &own_name)?;
                prefix.open_below(&own_name)
            }
            opened => opened,
        };
        let own = own.on("open", &path)?;
        let is_free = is_new
            || match own.stat(name) {
                Ok(found) if found.kind == EntryKind::Directory => {
                    self.store.quarantine(&self.id, &own, name)?;
                    true
                }
                Ok(_) => false,
                Err(_) => true,
            };
        // Moved to quarantine, it may have been the last in its directory, which then went, too.
        let own = if is_free && !is_new && create_if_missing(&prefix, &own_name)? {
            prefix.open_below(&own_name).on("open", &path)?
        } else {
            own
        };
        Ok((BlobDirs { prefix, own }, is_free))
    }
}

/// The directories of a blob: its own, and the one above that.
pub(super) struct BlobDirs {
    prefix: OpenDir,
    own: OpenDir,
}

/// Returns whether the directory was created.
fn create_if_missing(dir: &OpenDir, name: &str) -> Result<bool, DiskError> {
    match dir.create_dir(name) {
        Ok(()) => Ok(true),
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

impl Store {
    /// A file for a blob that comes in one go.
    pub(super) fn temp_file(&self) -> Result<TempFile, DiskError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}{}", std::process::id(), Layout::TEMP_SUFFIX);
        TempFile::create(self.layout.uploading().join(name))
    }

    pub(super) fn unsynced(&self) -> MutexGuard<'_, HashSet<BlobId>> {
        self.unsynced.lock().expect("BUG: no one panics with this lock")
    }

    /// Removes temp files that have not been written to for this long: those of uploads that have
    /// ended, and whose removal failed then. Returns how many.
    ///
    /// # Errors
    /// If they cannot be listed or removed.
    pub fn remove_stalled(&self, idle: Duration) -> Result<u64, DiskError> {
        remove_leftovers(&self.layout, idle)
    }
}

/// Removes what a killed process was receiving, and has not been written to for this long. Other
/// servers' files are left alone.
pub(super) fn remove_leftovers(layout: &Layout, idle: Duration) -> Result<u64, DiskError> {
    let (dir, now) = (layout.uploading(), SystemTime::now());
    let mut removed = 0;
    for entry in fs::read_dir(&dir).on("list", &dir)? {
        let entry = entry.on("list", &dir)?;
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(|name| name.ends_with(Layout::TEMP_SUFFIX)) {
            continue;
        }
        let written = match entry.metadata() {
            Ok(found) => found.modified().on("look at", &path)?,
            // Published, or removed, meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).on("look at", &path),
        };
        if idle.is_zero() || now.duration_since(written).is_ok_and(|since| since >= idle) {
            remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}
