//! What is stored, what is needed, and the right to receive a blob.

use std::{
    fs, io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use super::{Flight, ReceiveError, Received, Store, inflight::Claim};
use crate::{
    disk::{AtOnce, DiskError, Found, IoContext, look_at_once, touch},
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

/// The right to receive one blob, if it turns out that it is to be received.
#[derive(Debug)]
pub struct Claimed(Ticket);

impl Claimed {
    /// Looks whether there is something to receive, and room for it, of which so much has been written.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin(self, written_bytes: u64) -> Result<Begin, DiskError> {
        let Self(mut ticket) = self;
        ticket.wrote(written_bytes);
        let (store, id) = (&ticket.store, &ticket.id);
        // Whoever had the claim before may have stored it since anybody looked.
        if let Some(found) = store.is_there(id)?
            && store.keep(id, &found, SystemTime::now())?
        {
            return Ok(Begin::Stored);
        }
        if let Err(error) = store.has_room() {
            // What somebody may want to go on with is worth less than what somebody sends now.
            if !error.is_full() || !store.make_room(store.missing_bytes()?, id)? {
                return Err(error);
            }
            store.has_room()?;
        }
        Ok(Begin::Receive(ticket))
    }

    /// Stores the whole content of a blob, as [`Ticket::receive`] does. `None` if it was stored already.
    ///
    /// # Errors
    /// As [`Store::begin`] and [`Ticket::receive`].
    pub fn receive(self, content: &[u8]) -> Result<Option<Received>, ReceiveError> {
        match self.begin(0)? {
            Begin::Receive(ticket) => {
                let (ticket, temp) = ticket.write(content)?;
                Ok(Some(ticket.store(temp)?))
            }
            _ => Ok(None),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.store.admitted_bytes.fetch_sub(self.left_bytes, Relaxed);
        self.store.inflight.release(&self.id, self.claim, self.stored);
    }
}

/// Whether what was found is all of a blob.
pub(super) fn is_whole(found: &Found, id: &BlobId) -> bool {
    found.is_file && found.size_bytes == id.size_bytes
}

/// Whether a blob was needed so recently that this need not be noted again: garbage collection removes nothing
/// that is this young.
pub(super) fn is_recent(found: &Found, now: SystemTime) -> bool {
    now.duration_since(found.modified).unwrap_or_default() < TOUCHED_RECENTLY
}

impl Store {
    /// Whether a blob's file is there, whole and durable: one of another length than its name says does
    /// not count.
    ///
    /// Who also asks whether it is in flight must do that *first*: then a blob that arrives in between
    /// is seen as stored.
    pub(super) fn is_there(&self, id: &BlobId) -> Result<Option<Found>, DiskError> {
        let found = self.look(id)?.map(|found| Found::from(&found));
        let whole = found.filter(|found| is_whole(found, id));
        Ok(whole.filter(|_| !self.unsynced().contains(id)))
    }

    /// The same from memory alone: unsaid if the disk would have to be asked. What it has of another length may have been
    /// mended since by another machine.
    fn is_there_at_once(&self, id: &BlobId) -> AtOnce {
        match look_at_once(&self.layout.blob(id).1) {
            AtOnce::Found(found) if !is_whole(&found, id) => AtOnce::Unsaid,
            AtOnce::Found(_) if self.unsynced().contains(id) => AtOnce::Nothing,
            looked => looked,
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

    /// What is known of a blob, if that needs no disk.
    pub fn status_at_once(&self, id: &BlobId) -> Option<BlobStatus> {
        if self.inflight.get(id).is_some() {
            return Some(BlobStatus::Uploading);
        }
        match self.is_there_at_once(id) {
            AtOnce::Found(_) => Some(BlobStatus::Stored),
            AtOnce::Nothing => Some(BlobStatus::Unknown),
            AtOnce::Unsaid => None,
        }
    }

    /// Whether a blob is certainly stored, and noted as needed, without a look at the disk. If not, nothing
    /// is known.
    pub fn is_kept_at_once(&self, id: &BlobId) -> bool {
        self.inflight.get(id).is_none()
            && matches!(self.is_there_at_once(id), AtOnce::Found(found) if is_recent(&found, SystemTime::now()))
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
        found: &Found,
        now: SystemTime,
    ) -> Result<bool, DiskError> {
        if is_recent(found, now) {
            return Ok(true);
        }
        self.touch_if_there(|| touch(&self.layout.blob(id).1))
    }

    /// Has a stored blob touched, and says whether it is still there.
    pub(super) fn touch_if_there(
        &self,
        touch: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<bool, DiskError> {
        let _stays = self.removal.read().expect("BUG: no one panics with this lock");
        match touch() {
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
        match self.inflight.claim(id) {
            Ok(claim) => Claimed(Ticket::new(self, id, claim)).begin(written_bytes),
            Err(flight) => Ok(Begin::Busy(flight)),
        }
    }

    /// Claims a blob without a look at what there is; `None` if somebody else is sending it.
    pub fn claim(self: &Arc<Self>, id: BlobId) -> Option<Claimed> {
        Some(Claimed(Ticket::new(self, id, self.inflight.claim(id).ok()?)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Digest, store::Options};

    /// Whatever the system answers from memory, it is what the disk says, or nothing.
    #[test]
    fn at_once_nothing_else_is_said_than_after_a_look() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let id = BlobId { digest: Digest::from_bytes([7; 32]), size_bytes: 4 };
        let (own, file) = store.layout.blob(&id);
        let check = |expected| {
            // Before and after it is in memory.
            assert!([None, Some(expected)].contains(&store.status_at_once(&id)), "{expected:?}");
            assert_eq!(store.status(&id).unwrap(), expected);
            assert!([None, Some(expected)].contains(&store.status_at_once(&id)), "{expected:?}");
            assert!(!store.is_kept_at_once(&id) || expected == BlobStatus::Stored);
        };
        check(BlobStatus::Unknown);
        fs::create_dir(&own).unwrap();
        check(BlobStatus::Unknown);
        fs::write(&file, "not").unwrap();
        check(BlobStatus::Unknown);
        fs::write(&file, "this").unwrap();
        check(BlobStatus::Stored);
        store.unsynced().insert(id);
        check(BlobStatus::Unknown);
        store.unsynced().remove(&id);
        let Ok(Begin::Stored) = store.begin(id) else { panic!("it is stored") };
        let ticket = store.join(id);
        check(BlobStatus::Uploading);
        drop(ticket);
        check(BlobStatus::Stored);
        fs::remove_file(&file).unwrap();
        check(BlobStatus::Unknown);
    }
}
