//! What is stored, what is needed, and the right to receive a blob.

use std::{
    collections::HashSet,
    fs, io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use rayon::prelude::*;

use super::{Flight, Store, inflight::Claim};
use crate::{
    disk::{DiskError, IoContext, touch},
    domain::{BlobId, BlobStatus},
};

/// A blob's modification time says when it was last needed. It is not written again within this
/// time: garbage collection counts in days.
pub(super) const TOUCHED_RECENTLY: Duration = Duration::from_secs(3600);

/// What to do with an upload.
#[derive(Debug)]
pub enum Begin {
    /// Nothing: the blob is stored.
    Stored,
    /// Somebody else is sending it.
    Busy(Flight),
    /// Receive it.
    Receive(Ticket),
}

/// The right to receive one blob. Dropped, it hands the right over to whoever waits for it.
#[derive(Debug)]
pub struct Ticket {
    pub(super) store: Arc<Store>,
    pub(super) id: BlobId,
    pub(super) stored: bool,
    claim: Claim,
    /// What of the blob is not written yet.
    left_bytes: u64,
}

impl Ticket {
    fn new(store: &Arc<Store>, id: BlobId, claim: Claim) -> Self {
        let left_bytes = id.size_bytes;
        store.admitted_bytes.fetch_add(left_bytes, Relaxed);
        Self { store: store.clone(), id, stored: false, claim, left_bytes }
    }

    /// So many bytes have been written, and are no longer to come.
    pub(super) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left_bytes);
        self.left_bytes -= bytes;
        self.store.admitted_bytes.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.store.admitted_bytes.fetch_sub(self.left_bytes, Relaxed);
        self.store.inflight.release(&self.id, self.claim, self.stored);
    }
}

impl Store {
    /// Whether a blob's file is there, whole and durable: one of another length than its name says does
    /// not count.
    ///
    /// Who also asks whether it is in flight must do that *first*: then a blob that arrives in between
    /// is seen as stored.
    pub(super) fn is_there(&self, id: &BlobId) -> Result<Option<fs::Metadata>, DiskError> {
        match self.look(id)? {
            Some(found) if found.is_file() && found.len() == id.size_bytes => {
                Ok((!self.unsynced().contains(id)).then_some(found))
            }
            _ => Ok(None),
        }
    }

    /// What is known of a blob.
    ///
    /// # Errors
    /// If the file system cannot say: that is no "unknown".
    pub fn status(&self, id: &BlobId) -> Result<BlobStatus, DiskError> {
        Ok(if self.inflight.get(id).is_some() {
            BlobStatus::Uploading
        } else if self.is_there(id)?.is_some() {
            BlobStatus::Stored
        } else {
            BlobStatus::Unknown
        })
    }

    /// Whether any of these blobs is stored, or in flight.
    ///
    /// # Errors
    /// If the file system cannot say.
    pub fn any_known(&self, ids: &[BlobId]) -> Result<bool, DiskError> {
        for id in ids {
            if self.status(id)? != BlobStatus::Unknown {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Which of these blobs must still be sent: each once, by its first place in the list. Those
    /// that are stored count as needed now.
    ///
    /// # Errors
    /// If the file system cannot say, or a stored blob cannot be touched.
    pub fn requirements(&self, ids: &[BlobId]) -> Result<Vec<(usize, BlobStatus)>, DiskError> {
        let mut seen = HashSet::with_capacity(ids.len());
        let distinct: Vec<usize> = (0..ids.len()).filter(|&i| seen.insert(ids[i])).collect();
        let now = SystemTime::now();
        let found: Vec<_> = distinct
            .into_par_iter()
            .map(|i| {
                let status = self.mark_needed(&ids[i], now)?;
                Ok((status != BlobStatus::Stored).then_some((i, status)))
            })
            .collect::<Result<_, DiskError>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Notes that a blob is needed now, if it is stored, and says what is known of it.
    pub(super) fn mark_needed(
        &self,
        id: &BlobId,
        now: SystemTime,
    ) -> Result<BlobStatus, DiskError> {
        if self.inflight.get(id).is_some() {
            return Ok(BlobStatus::Uploading);
        }
        let Some(found) = self.is_there(id)? else { return Ok(BlobStatus::Unknown) };
        let is_kept = self.keep(id, &found, now)?;
        Ok(if is_kept { BlobStatus::Stored } else { BlobStatus::Unknown })
    }

    /// Notes that a blob is needed now that was found to be there. Whether it still is.
    pub(super) fn keep(
        &self,
        id: &BlobId,
        found: &fs::Metadata,
        now: SystemTime,
    ) -> Result<bool, DiskError> {
        let recent = found
            .modified()
            .is_ok_and(|at| now.duration_since(at).unwrap_or_default() < TOUCHED_RECENTLY);
        if recent {
            // Garbage collection removes nothing that is this young.
            return Ok(true);
        }
        let _stays = self.removal.read().expect("BUG: no one panics with this lock");
        match touch(&self.layout.blob(id).1) {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The file of a blob, open for reading; `None` if it is not stored. It counts as needed now: who
    /// reads half of it may come again for the rest.
    ///
    /// # Errors
    /// If the file system cannot say, or the file cannot be opened.
    pub fn read_blob(&self, id: &BlobId) -> Result<Option<fs::File>, DiskError> {
        if self.is_there(id)?.is_none() {
            return Ok(None);
        }
        self.mark_needed(id, SystemTime::now())?;
        let (_, path) = self.layout.blob(id);
        match fs::File::open(&path) {
            // Open, it can be read to its end whatever happens to its name.
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("open", &path),
        }
    }

    /// Starts an upload.
    ///
    /// # Errors
    /// If the file system cannot say whether the blob is stored.
    pub fn begin(self: &Arc<Self>, id: BlobId) -> Result<Begin, DiskError> {
        self.begin_with(id, 0)
    }

    /// The same for a blob of which so much has been written already.
    pub(super) fn begin_with(
        self: &Arc<Self>,
        id: BlobId,
        written_bytes: u64,
    ) -> Result<Begin, DiskError> {
        if self.mark_needed(&id, SystemTime::now())? == BlobStatus::Stored {
            return Ok(Begin::Stored);
        }
        // Somebody may have begun to send it in pieces, and gone.
        self.give_up_if_silent(&id, "");
        let claim = match self.inflight.claim(id) {
            Ok(claim) => claim,
            Err(flight) => return Ok(Begin::Busy(flight)),
        };
        let mut ticket = Ticket::new(self, id, claim);
        ticket.wrote(written_bytes);
        // Whoever had the claim before may have stored it since the first look.
        if self.is_there(&id)?.is_some() {
            return Ok(Begin::Stored);
        }
        if let Err(error) = self.has_room() {
            // What somebody may want to go on with is worth less than what somebody sends now.
            if !error.is_full() || !self.make_room(self.missing_bytes()?, &id)? {
                return Err(error);
            }
            self.has_room()?;
        }
        Ok(Begin::Receive(ticket))
    }

    /// The right to receive a blob beside somebody else who is sending it, too slowly to wait for.
    pub fn join(self: &Arc<Self>, id: BlobId) -> Ticket {
        Ticket::new(self, id, self.inflight.join(id))
    }

    /// The uploads in progress of any of these blobs.
    pub fn flights<'a>(&self, ids: impl IntoIterator<Item = &'a BlobId>) -> Vec<Flight> {
        ids.into_iter().filter_map(|id| self.inflight.get(id)).collect()
    }
}
