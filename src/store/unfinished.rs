//! Blobs that come in pieces, in any order, over broken connections and restarts.
//!
//! What has come is in a file beside the store, at its place in the blob. Nothing else is kept of it: which
//! pieces are there is found out by hashing them again, so that nothing can be wrong about it, whatever
//! happened in between. In memory is which of them this process has seen to be right. Those never change
//! again, and only when they are the whole blob is it verified as a whole, and published like any other.
//!
//! **Borrowed** is what was put in place from other blobs, on the word of a client that need not have it. Nobody may
//! learn from answers what is in there: it is never compared with anything but the name of the very chunk that
//! it was borrowed by. What was borrowed by an earlier process, or for an earlier sender, counts as not there; a file
//! beside the blob's says which ranges these are, and is on the disk before they are.

mod blob;

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

pub use blob::Request;
use blob::{Has, MAX_RANGES, State, Unfinished, range};
use rangemap::RangeSet;
use sha2::Digest as _;

use super::{Begin, Durability, Flight, Received, Store, Ticket, index::Place, layout::Layout};
use crate::{
    disk::{DiskError, IoContext, PartFile, append_file, read_at, remove_file},
    domain::{BlobId, Chunk, ChunkId, Digest},
};

/// How long a sender may be silent if nobody else asks for the blob.
const FORGOTTEN_FOR: Duration = Duration::from_secs(600);

/// How many blobs are sent in pieces at the same time.
const MAX_AT_ONCE: usize = 256;

/// How much of the beginning of a blob is hashed at most before a request with pieces of it is answered, in
/// bytes.
const HASH_AHEAD_BYTES: u64 = 32 << 20;

/// A request about an unfinished blob that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum UnfinishedError {
    /// Nobody is sending this blob in pieces, or another one is by now.
    #[error(
        "nothing was begun under this name, or it has ended, or another client goes on with it"
    )]
    NotBegun,
    /// Too many are.
    #[error("{MAX_AT_ONCE} blobs are being sent in pieces already")]
    TooMany,
    /// It goes beyond the end of the blob.
    #[error("bytes {offset} to {end} are not within a blob of {size_bytes} bytes")]
    Outside {
        /// Where it begins.
        offset: u64,
        /// Where it ends.
        end: u64,
        /// The size of the blob.
        size_bytes: u64,
    },
    /// A chunk is not what its name says.
    #[error("the chunk at {offset} is not what its digest says")]
    WrongChunk {
        /// Its place.
        offset: u64,
    },
    /// There are other bytes in this place, and they were right, too; or it is not to be told whether they are
    /// others.
    #[error("bytes {offset} to {end} are there already, and may be others")]
    Conflict {
        /// Where it begins.
        offset: u64,
        /// Where it ends.
        end: u64,
    },
    /// Another request is writing there.
    #[error("bytes {offset} to {end} are being written by another request")]
    Busy {
        /// Where it begins.
        offset: u64,
        /// Where it ends.
        end: u64,
    },
    /// It comes in too many pieces that do not touch each other.
    #[error("what has come of it is in more than {MAX_RANGES} places")]
    Scattered,
    /// Something is missing.
    #[error("{missing_bytes} bytes are missing, the first at {first}")]
    Incomplete {
        /// How many.
        missing_bytes: u64,
        /// Where.
        first: u64,
    },
    /// It is whole, and is not what its name says. What it is instead is not told: it may have been put
    /// together from what the client does not have.
    #[error("all of it together is not what the digest says")]
    WrongBlob,
    /// The store's file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What to do with a blob that is to come in pieces.
#[derive(Debug)]
pub enum BeginPieces {
    /// Nothing: the blob is stored.
    Stored,
    /// Somebody else is sending it.
    Busy(Flight),
    /// Send them.
    Begun {
        /// Whether there is something of it from an earlier try.
        resumable: bool,
    },
}

/// A blob that came in pieces, and is stored now.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// As of any other.
    pub received: Received,
    /// The bytes of chunks that were sent for it since this process began to receive it.
    pub sent_bytes: u64,
}

/// What became of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Laid {
    /// The places, in the recipe, of the chunks that must be sent.
    pub missing: Vec<u32>,
    /// The bytes that have been taken from what is stored.
    pub reused_bytes: u64,
}

/// What has come of a blob that nobody is sending.
struct Left {
    id: BlobId,
    written: SystemTime,
    allocated_bytes: u64,
}

/// All blobs that are being sent in pieces.
#[derive(Debug, Default)]
pub(super) struct AllUnfinished(Mutex<HashMap<BlobId, Arc<Unfinished>>>);

impl AllUnfinished {
    fn map(&self) -> MutexGuard<'_, HashMap<BlobId, Arc<Unfinished>>> {
        self.0.lock().expect("BUG: no one panics with this lock")
    }
}

impl Store {
    /// Begins to receive a blob in pieces, or goes on. Requests of one `sender` belong together.
    ///
    /// # Errors
    /// If there are too many of them, or the file system refuses.
    pub fn begin_pieces(
        self: &Arc<Self>,
        id: BlobId,
        sender: &str,
    ) -> Result<BeginPieces, UnfinishedError> {
        if self.is_stored_meanwhile(&id)? {
            return Ok(BeginPieces::Stored);
        }
        self.give_up_if_silent(&id, sender);
        if let Some(unfinished) = self.unfinished.map().get(&id) {
            let mut state = unfinished.state();
            if state.ticket.is_some() && state.sender == sender {
                state.is_seen();
                return Ok(BeginPieces::Begun { resumable: true });
            }
        }
        let ticket = match self.begin_with(id, self.written_of(&id)?)? {
            Begin::Stored => return Ok(BeginPieces::Stored),
            Begin::Busy(flight) => return Ok(BeginPieces::Busy(flight)),
            Begin::Receive(ticket) => ticket,
        };
        let mut all = self.unfinished.map();
        if all.len() >= MAX_AT_ONCE {
            return Err(UnfinishedError::TooMany);
        }
        if all.contains_key(&id) {
            // Its right to the name has ended with another upload, and it is about to: not two on one file.
            return Err(UnfinishedError::NotBegun);
        }
        let part = PartFile::open(self.layout.unfinished(&id))?;
        let found_bytes = part.size_bytes()?;
        let borrowed = self.borrowed_before(&id)?;
        let has_list = !borrowed.is_empty();
        let state = State {
            sender: sender.to_owned(),
            seen: Instant::now(),
            is_cut_off: false,
            is_wanted: false,
            right: RangeSet::new(),
            reserved: RangeSet::new(),
            borrowed,
            lent: HashMap::new(),
            sent_bytes: 0,
            ticket: Some(ticket),
        };
        let unfinished = Unfinished {
            id,
            part,
            found_bytes,
            has_list: has_list.into(),
            active: AtomicUsize::new(0),
            writing: RwLock::default(),
            state: state.into(),
            hashed: Mutex::default(),
        };
        all.insert(id, Arc::new(unfinished));
        Ok(BeginPieces::Begun { resumable: found_bytes > 0 })
    }

    /// What was borrowed for a blob before this process, or this sender, began with it.
    fn borrowed_before(&self, id: &BlobId) -> Result<RangeSet<u64>, DiskError> {
        let path = self.layout.borrowed(id);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RangeSet::new()),
            Err(error) => return Err(error).on("read", &path),
        };
        let (records, rest) = text.as_chunks::<16>();
        if !rest.is_empty() {
            // It was not yet borrowed. What is appended must not be taken for a part of it.
            PartFile::open(path)?.set_len((text.len() - rest.len()) as u64)?;
        }
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("BUG: eight bytes"));
        let ranges = records.iter().map(|record| {
            let offset = number(&record[..8]);
            range(offset, number(&record[8..]))
        });
        Ok(ranges.filter(|range| !range.is_empty()).collect())
    }

    /// Notes what is about to be borrowed, before it is.
    fn note_borrowed(&self, id: &BlobId, ranges: &RangeSet<u64>) -> Result<(), DiskError> {
        let mut text = Vec::new();
        for range in ranges.iter() {
            text.extend_from_slice(&range.start.to_le_bytes());
            text.extend_from_slice(&(range.end - range.start).to_le_bytes());
        }
        append_file(&self.layout.borrowed(id), &text, self.options.durability == Durability::Full)
    }

    /// How many of these chunks are somewhere in the store, as far as is known.
    pub fn known_chunks(&self, chunks: &[Chunk]) -> usize {
        self.places(chunks).into_iter().flatten().count()
    }

    /// Puts in place, from `offset` on, what there is of these consecutive chunks: from an earlier try, or
    /// from what is stored.
    ///
    /// # Errors
    /// If they do not fit into the blob, or not to what is there; or if the file system refuses.
    pub fn lay_chunks(
        &self,
        id: &BlobId,
        sender: &str,
        offset: u64,
        chunks: &[Chunk],
    ) -> Result<Laid, UnfinishedError> {
        let unfinished = self.request(id, sender)?;
        let length = chunks.iter().map(|chunk| u64::from(chunk.size_bytes)).sum();
        unfinished.check(&range(offset, length))?;
        let (mut laid, mut at) = (Laid::default(), offset);
        let mut wanted = Vec::new();
        let mut buffer = Vec::new();
        for (place, chunk) in (0u32..).zip(chunks) {
            let chunk_range = range(at, chunk.size_bytes.into());
            at = chunk_range.end;
            match unfinished.has(&chunk_range, chunk, &mut buffer)? {
                Has::There => {}
                Has::Nothing => wanted.push((place, *chunk, chunk_range)),
                Has::Something => laid.missing.push(place),
            }
        }
        let only: Vec<Chunk> = wanted.iter().map(|(_, chunk, _)| *chunk).collect();
        let known = self.places(&only);
        let to_borrow: RangeSet<u64> = wanted
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_some())
            .map(|((.., range), _)| range.clone())
            .collect();
        if !to_borrow.is_empty() {
            unfinished.has_list.store(true, Relaxed);
            self.note_borrowed(id, &to_borrow)?;
        }
        let mut source = Source::default();
        for ((place, chunk, range), known) in wanted.into_iter().zip(known) {
            buffer.resize(chunk.size_bytes as usize, 0);
            // Never trusted: what is there by now may be something else, or nothing.
            let is_found = source.find(self, known, &chunk, &mut buffer);
            if is_found && unfinished.borrow(&chunk, &range, &buffer)? {
                laid.reused_bytes += u64::from(chunk.size_bytes);
            } else {
                laid.missing.push(place);
            }
        }
        laid.missing.sort_unstable();
        unfinished.hash_ahead(HASH_AHEAD_BYTES)?;
        Ok(laid)
    }

    /// Puts one chunk in its place, if it is what its name says; one without a name is verified only with the
    /// whole. `content` may have another length than the chunk says.
    ///
    /// # Errors
    /// If it is not, or does not fit into the blob, or not to what is there; or if the file system refuses.
    pub fn put_chunk(
        &self,
        id: &BlobId,
        sender: &str,
        offset: u64,
        chunk: &Chunk,
        content: &[u8],
    ) -> Result<(), UnfinishedError> {
        let unfinished = self.request(id, sender)?;
        unfinished.check(&range(offset, content.len() as u64))?;
        let is_it = content.len() == chunk.size_bytes as usize
            && (chunk.id.is_nameless() || ChunkId::of(content) == chunk.id);
        if !is_it {
            return Err(UnfinishedError::WrongChunk { offset });
        }
        unfinished.put(offset, chunk, content)?;
        unfinished.state().sent_bytes += content.len() as u64;
        Ok(())
    }

    /// Hashes on with what has come of the beginning of the blob, as somebody has time for that.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn hash_ahead(&self, id: &BlobId, sender: &str) -> Result<(), UnfinishedError> {
        self.request(id, sender)?.hash_ahead(HASH_AHEAD_BYTES)
    }

    /// Stores the blob, if all of it has come and is what its name says. When this returns `Ok`, it is on
    /// the disk, and would be after a power cut. `None` if somebody else has stored it meanwhile.
    ///
    /// # Errors
    /// If something is missing: then the rest can still be sent. If it is not what its name says: then
    /// nothing of it is kept. Or if the file system refuses.
    pub fn finish_pieces(
        &self,
        id: &BlobId,
        sender: &str,
    ) -> Result<Option<Finished>, UnfinishedError> {
        let unfinished = match self.request(id, sender) {
            _ if self.is_stored_meanwhile(id)? => return Ok(None),
            unfinished => unfinished?,
        };
        // From here on, nothing is written to it.
        let _quiet = unfinished.writing.write().expect("BUG: no one panics with this lock");
        if unfinished.state().ticket.is_none() {
            // Another request of the same sender was first.
            return if self.is_there(id)?.is_some() {
                Ok(None)
            } else {
                Err(UnfinishedError::NotBegun)
            };
        }
        unfinished.check_whole()?;
        unfinished.hash_ahead(u64::MAX)?;
        let actual = {
            let mut hashed = unfinished.hashed.lock().expect("BUG: no one panics with this lock");
            Digest::from_bytes(std::mem::take(&mut *hashed).hasher.finalize().into())
        };
        let Some(ticket) = unfinished.state().ticket.take() else {
            return Err(UnfinishedError::NotBegun);
        };
        // From here on, it has ended, however that goes.
        self.unfinished.map().remove(id);
        if actual != id.digest {
            self.remove_unfinished(id)?;
            return Err(UnfinishedError::WrongBlob);
        }
        let sent_bytes = unfinished.state().sent_bytes;
        let received = self.publish_pieces(&unfinished.part, ticket)?;
        if unfinished.has_list.load(Relaxed) {
            // One that stays costs a new try nothing, and expires.
            let _ = self.remove_unfinished(id);
        }
        Ok(Some(Finished { received, sent_bytes }))
    }

    /// Whether somebody has stored a blob that is being sent in pieces, or was: then nobody need go on.
    fn is_stored_meanwhile(&self, id: &BlobId) -> Result<bool, DiskError> {
        let Some(found) = self.is_there(id)? else { return Ok(false) };
        if !self.keep(id, &found, SystemTime::now())? {
            return Ok(false);
        }
        let unfinished = self.unfinished.map().remove(id);
        if let Some(unfinished) = unfinished {
            let _quiet = unfinished.writing.write().expect("BUG: no one panics with this lock");
            let ticket = unfinished.state().ticket.take();
            self.remove_unfinished(id)?;
            drop(ticket);
        }
        Ok(true)
    }

    /// Gives a blob up that this sender has begun, and removes what has come of it.
    ///
    /// # Errors
    /// If it has not begun it, or the file cannot be removed.
    pub fn abandon_pieces(&self, id: &BlobId, sender: &str) -> Result<(), UnfinishedError> {
        let unfinished = self.request(id, sender)?;
        // From here on, nothing is written to it.
        let _quiet = unfinished.writing.write().expect("BUG: no one panics with this lock");
        let ticket = unfinished.state().ticket.take();
        self.unfinished.map().remove(id);
        self.remove_unfinished(id)?;
        drop(ticket);
        Ok(())
    }

    fn publish_pieces(&self, part: &PartFile, mut ticket: Ticket) -> Result<Received, DiskError> {
        let size_bytes = ticket.id.size_bytes;
        if part.size_bytes()? != size_bytes {
            part.set_len(size_bytes)?;
        }
        let start = Instant::now();
        if self.options.durability == Durability::Full
            && let Err(error) = part.sync()
        {
            // What could not be synced once may look right and never come to the disk: it must be sent again.
            // If it cannot be removed, it is read from the disk the next time.
            let _ = self.remove_unfinished(&ticket.id);
            return Err(error);
        }
        let synced = start.elapsed();
        let dirs = ticket.publish(|dir, name| part.publish(dir, name))?;
        let start = Instant::now();
        ticket.sync_name(&dirs)?;
        Ok(Received { synced: synced + start.elapsed() })
    }

    /// The blob that this sender has begun. As long as what is returned lives, nobody else takes it over.
    ///
    /// # Errors
    /// If it has not begun it.
    pub fn request(&self, id: &BlobId, sender: &str) -> Result<Request, UnfinishedError> {
        // Held until it counts as active: what is silent may be given up at any moment.
        let all = self.unfinished.map();
        let unfinished = all.get(id).ok_or(UnfinishedError::NotBegun)?;
        {
            let mut state = unfinished.state();
            if state.sender != sender || state.ticket.is_none() {
                return Err(UnfinishedError::NotBegun);
            }
            state.is_seen();
            unfinished.active.fetch_add(1, Relaxed);
        }
        Ok(Request(unfinished.clone()))
    }

    /// Gives up the right to blobs whose senders are silent, if others would send them, or for long: others
    /// may. What has come of them is kept.
    pub fn give_up_silent(&self) {
        self.unfinished.map().retain(|_, unfinished| {
            let is_over = {
                let state = unfinished.state();
                let is_silent = unfinished.active.load(Relaxed) == 0 && state.is_silent();
                is_silent && (state.is_wanted || state.seen.elapsed() >= FORGOTTEN_FOR)
            };
            if is_over {
                self.give_up(unfinished);
            }
            !is_over
        });
    }

    /// The same for one that somebody else would send now; if it is not given up now, it is noted that somebody
    /// would.
    pub(super) fn give_up_if_silent(&self, id: &BlobId, sender: &str) {
        let mut all = self.unfinished.map();
        let Some(unfinished) = all.get(id) else { return };
        let is_over = {
            let mut state = unfinished.state();
            if state.sender == sender {
                return;
            }
            state.is_wanted = true;
            unfinished.active.load(Relaxed) == 0 && state.is_silent()
        };
        if is_over {
            self.give_up(unfinished);
            all.remove(id);
        }
    }

    fn give_up(&self, unfinished: &Unfinished) {
        if unfinished.found_bytes == 0 && unfinished.state().right.is_empty() {
            // Not even a beginning. What cannot be removed expires.
            let _ = self.remove_unfinished(&unfinished.id);
        }
    }

    /// Gives up all of them: nobody is served any more. Each has a hold on the store, which is not closed
    /// before that.
    pub fn give_up_all(&self) {
        let all = std::mem::take(&mut *self.unfinished.map());
        // Not under the lock: the last one may close the store.
        drop(all);
    }

    /// Notes that the connection of a sender has broken: another one need not wait for it.
    pub fn sender_broke_off(&self, id: &BlobId, sender: &str) {
        if let Some(unfinished) = self.unfinished.map().get(id) {
            let mut state = unfinished.state();
            if state.sender == sender {
                state.is_cut_off = true;
            }
        }
    }

    /// Whether any blob is being sent in pieces.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.map().is_empty()
    }

    /// How much room what has come of a blob takes already.
    fn written_of(&self, id: &BlobId) -> Result<u64, DiskError> {
        let path = self.layout.unfinished(id);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(allocated_bytes(&found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).on("look at", &path),
        }
    }

    /// Removes what has come of blobs that nobody has gone on with for this long. Returns how many.
    ///
    /// # Errors
    /// If they cannot be listed or removed.
    pub fn forget_unfinished(&self, idle: Duration) -> Result<u64, DiskError> {
        let now = SystemTime::now();
        let mut removed = 0;
        for left in self.left_unfinished()? {
            if now.duration_since(left.written).is_ok_and(|age| age >= idle)
                && self.forget(&left.id)?
            {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the oldest of what nobody goes on with, until so many bytes are free again; nothing if all of it
    /// would not be enough, and never what has come of `id`. Whether it was.
    ///
    /// # Errors
    /// If it cannot be listed or removed.
    pub(super) fn make_room(&self, missing_bytes: u64, id: &BlobId) -> Result<bool, DiskError> {
        let mut left = self.left_unfinished()?;
        left.retain(|left| left.id != *id);
        left.sort_unstable_by_key(|left| left.written);
        let removable_bytes: u64 = left.iter().map(|left| left.allocated_bytes).sum();
        if missing_bytes == 0 || removable_bytes < missing_bytes {
            return Ok(false);
        }
        let mut freed_bytes = 0;
        for left in left {
            if freed_bytes >= missing_bytes {
                break;
            }
            if self.forget(&left.id)? {
                tracing::info!("{} will not be gone on with: its room is needed", left.id);
                freed_bytes += left.allocated_bytes;
            }
        }
        Ok(true)
    }

    /// What has come of blobs that are not being sent.
    fn left_unfinished(&self) -> Result<Vec<Left>, DiskError> {
        let dir = self.layout.uploading();
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&dir).on("list", &dir)? {
            let entry = entry.on("list", &dir)?;
            let Some(id) = entry.file_name().to_str().and_then(Layout::unfinished_id) else {
                continue;
            };
            let path = entry.path();
            let found = match entry.metadata() {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).on("look at", &path),
            };
            let written = found.modified().on("look at", &path)?;
            // A list without a blob, too; with one, it goes with it.
            let is_list = path != self.layout.unfinished(&id);
            if is_list && self.layout.unfinished(&id).exists() {
                continue;
            }
            if !self.unfinished.map().contains_key(&id) {
                all.push(Left { id, written, allocated_bytes: allocated_bytes(&found) });
            }
        }
        Ok(all)
    }

    /// Removes what has come of a blob, unless somebody goes on with it. Whether it did.
    fn forget(&self, id: &BlobId) -> Result<bool, DiskError> {
        // Nobody may begin with it meanwhile.
        let all = self.unfinished.map();
        if all.contains_key(id) {
            return Ok(false);
        }
        self.remove_unfinished(id).map(|()| true)
    }

    fn remove_unfinished(&self, id: &BlobId) -> Result<(), DiskError> {
        // The list last: while there is something borrowed, it must be there.
        for path in [self.layout.unfinished(id), self.layout.borrowed(id)] {
            match remove_file(&path) {
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }
}

/// How much room a file takes: what has holes takes less than it is long.
fn allocated_bytes(found: &std::fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(found) * 512;
    #[cfg(not(unix))]
    found.len()
}

/// A stored blob that chunks are read from: the last one is kept open.
#[derive(Default)]
struct Source(Option<(BlobId, File)>);

impl Source {
    /// Reads a chunk from where it is said to be, or from where else it is said to be if it is not.
    fn find(
        &mut self,
        store: &Store,
        known: Option<Place>,
        chunk: &Chunk,
        buffer: &mut [u8],
    ) -> bool {
        let mut next = known;
        while let Some(place) = next {
            if self.read(store, &place, buffer) && ChunkId::of(buffer) == chunk.id {
                return true;
            }
            if !store.forget_place(&place) {
                return false;
            }
            next = store.places(std::slice::from_ref(chunk)).pop().flatten();
        }
        false
    }

    /// Whether so much could be read from there.
    fn read(&mut self, store: &Store, place: &Place, buffer: &mut [u8]) -> bool {
        if self.0.as_ref().is_none_or(|(id, _)| *id != place.blob) {
            self.0 =
                File::open(store.layout.blob(&place.blob).1).ok().map(|file| (place.blob, file));
        }
        let Some((_, file)) = &self.0 else { return false };
        read_at(file, place.offset, buffer).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
